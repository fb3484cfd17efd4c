//! What every index must do, as a suite that runs against any. It is public so that an index to come runs it unchanged;
//! nothing but tests calls it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use lazaret_protocol::message::Locator;
use lazaret_protocol::{BlobName, PlacementKey};

use super::{BlobEntry, Entry, Index, IndexBatch, Layout, LocatorEntry, SegmentState};
use crate::record::{Location, SegmentAddress};

/// Runs the suite. `open` returns a new, empty index at each call.
///
/// # Panics
/// If the index does not conform.
pub fn all(open: &dyn Fn() -> Arc<dyn Index>) {
    an_empty_index_knows_nothing(&*open());
    a_batch_is_read_back(&*open());
    the_newest_entry_replaces_the_others(&*open());
    entries_page_in_order_and_apart_from_segments(&*open());
    long_entries_come_back(&*open());
    readers_see_batches_whole(open());
}

fn blob(put_time_ms: u64) -> Entry {
    let location = Location { segment: SegmentAddress { bucket: 1, id: 2 }, offset: 72 };
    Entry { blob: Some(BlobEntry { length: 5, put_time_ms, layout: Layout::Whole(location) }), ..Entry::default() }
}

fn name(at: u8) -> BlobName {
    BlobName([at; 32])
}

fn an_empty_index_knows_nothing(index: &dyn Index) {
    assert_eq!(index.get(name(1)).unwrap(), None);
    assert_eq!(index.segments().unwrap(), []);
    assert_eq!(index.entries(None, 10).unwrap(), []);
    assert_eq!(index.blobs().unwrap(), 0);
    index.flush().unwrap();
}

fn a_batch_is_read_back(index: &dyn Index) {
    let locator = Locator { placement: PlacementKey([4; 32]), length: 9 };
    let full = Entry { locator: Some(LocatorEntry { locator, put_time_ms: 3 }), killed_until_ms: Some(1), ..blob(7) };
    let segment = (SegmentAddress { bucket: 3, id: 4 }, SegmentState { synced: 500, sealed: false });
    let batch = IndexBatch { entries: vec![(name(1), full.clone())], segments: vec![segment], blobs: 1 };
    index.apply(batch).unwrap();
    assert_eq!(index.get(name(1)).unwrap(), Some(full));
    assert_eq!(index.get(name(2)).unwrap(), None);
    assert_eq!(index.segments().unwrap(), [segment]);
    assert_eq!(index.blobs().unwrap(), 1);
}

fn the_newest_entry_replaces_the_others(index: &dyn Index) {
    let address = SegmentAddress { bucket: 3, id: 4 };
    for time in 1..=3 {
        let state = SegmentState { synced: time * 100, sealed: time == 3 };
        let entries = vec![(name(1), blob(time)), (name(time as u8 + 1), blob(time))];
        index.apply(IndexBatch { entries, segments: vec![(address, state)], blobs: time + 1 }).unwrap();
    }
    assert_eq!(index.get(name(1)).unwrap(), Some(blob(3)));
    assert_eq!(index.get(name(2)).unwrap(), Some(blob(1)));
    assert_eq!(index.segments().unwrap(), [(address, SegmentState { synced: 300, sealed: true })]);
    assert_eq!(index.blobs().unwrap(), 4);
}

fn entries_page_in_order_and_apart_from_segments(index: &dyn Index) {
    // The extremes would show a key space that overlaps with another one.
    let names: Vec<u8> = (0..=255).collect();
    let entries = names.iter().rev().map(|&at| (name(at), blob(u64::from(at)))).collect();
    let segments = (0..20).map(|id| (SegmentAddress { bucket: u32::MAX, id }, SegmentState::default())).collect();
    index.apply(IndexBatch { entries, segments, blobs: 256 }).unwrap();
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = index.entries(after, 7).unwrap();
        assert!(page.len() <= 7);
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (name, entry) in page {
            assert_eq!(entry, blob(u64::from(name.0[0])));
            seen.push(name.0[0]);
        }
    }
    assert_eq!(seen, names);
    assert_eq!(index.segments().unwrap().len(), 20);
}

fn long_entries_come_back(index: &dyn Index) {
    // A blob of 64 GiB.
    let length: u64 = 64 << 30;
    let location = |offset| Location { segment: SegmentAddress { bucket: 1, id: offset % 7 }, offset };
    let extents = (0..length >> 22).map(location).collect();
    let tree = (0..crate::record::tree_piece_count(length) as u64).map(location).collect();
    let layout = Layout::Streamed { extents, tree };
    let entry = Entry { blob: Some(BlobEntry { length, put_time_ms: 9, layout }), ..Entry::default() };
    index.apply(IndexBatch { entries: vec![(name(9), entry.clone())], segments: Vec::new(), blobs: 1 }).unwrap();
    index.flush().unwrap();
    assert_eq!(index.get(name(9)).unwrap(), Some(entry));
}

fn readers_see_batches_whole(index: Arc<dyn Index>) {
    const BATCHES: u64 = 300;
    let batch = |time| IndexBatch {
        entries: vec![(name(1), blob(time)), (name(2), blob(time))],
        segments: Vec::new(),
        blobs: 2,
    };
    index.apply(batch(0)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (1..=BATCHES).for_each(|time| index.apply(batch(time)).unwrap()));
        let time_of = |at| index.get(name(at)).unwrap().unwrap().blob.unwrap().put_time_ms;
        loop {
            // The second is read after the first, so it is never older if both are written together.
            let (first, second) = (time_of(1), time_of(2));
            assert!(second >= first, "half a batch was visible: {first}, {second}");
            if first == BATCHES {
                break;
            }
        }
    });
}
