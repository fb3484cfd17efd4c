//! What every index must do, as a suite that runs against any. It is public so that an index to come runs it unchanged;
//! nothing but tests calls it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use lazaret_protocol::message::Locator;
use lazaret_protocol::{BlobName, PlacementKey, UploadId};

use super::{BlobEntry, Entry, HoldEntry, Index, IndexBatch, Layout, LocatorEntry, SegmentState, Totals, UploadOwner};
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
    what_is_removed_is_gone(&*open());
    expired_entries_may_go_and_others_stay(&*open());
    readers_see_batches_whole(open());
}

fn blob(put_time_ms: u64) -> Entry {
    let location = Location { segment: SegmentAddress { bucket: 1, id: 2 }, offset: 72 };
    let blob = BlobEntry { length: 5, put_time_ms, layout: Layout::Whole(location), damaged: false };
    Entry { blob: Some(blob), ..Entry::default() }
}

fn name(at: u8) -> BlobName {
    BlobName([at; 32])
}

fn an_empty_index_knows_nothing(index: &dyn Index) {
    assert_eq!(index.get(name(1)).unwrap(), None);
    assert_eq!(index.segments().unwrap(), []);
    assert_eq!(index.entries(None, None, 10).unwrap(), []);
    assert_eq!(index.totals().unwrap(), []);
    assert_eq!(index.upload(UploadId([1; 16])).unwrap(), None);
    index.flush().unwrap();
}

fn a_batch_is_read_back(index: &dyn Index) {
    let locator = Locator { placement: PlacementKey([4; 32]), length: 9 };
    let hold = Some(HoldEntry { time_ms: 8, placed: true, from_bucket: 2 });
    let full =
        Entry { locator: Some(LocatorEntry { locator, put_time_ms: 3 }), killed_until_ms: Some(1), hold, ..blob(7) };
    let address = SegmentAddress { bucket: 3, id: 4 };
    let state = SegmentState { synced: 500, sealed: false, dead_bytes: 6, removed: true };
    let totals = (3, Totals { blobs: 1, bytes: 5 });
    let owner = UploadOwner { name: name(1), bucket: 3 };
    let batch = IndexBatch {
        entries: vec![(name(1), full.clone())],
        segments: vec![(address, Some(state))],
        totals: vec![totals],
        uploads: vec![(UploadId([1; 16]), owner)],
    };
    index.apply(batch).unwrap();
    assert_eq!(index.get(name(1)).unwrap(), Some(full));
    assert_eq!(index.get(name(2)).unwrap(), None);
    assert_eq!(index.segments().unwrap(), [(address, state)]);
    assert_eq!(index.totals().unwrap(), [totals]);
    assert_eq!(index.upload(UploadId([1; 16])).unwrap(), Some(owner));
    assert_eq!(index.upload(UploadId([2; 16])).unwrap(), None);
}

fn the_newest_entry_replaces_the_others(index: &dyn Index) {
    let address = SegmentAddress { bucket: 3, id: 4 };
    for time in 1..=3 {
        let state = SegmentState { synced: time * 100, sealed: time == 3, ..SegmentState::default() };
        let entries = vec![(name(1), blob(time)), (name(time as u8 + 1), blob(time))];
        let totals = vec![(3, Totals { blobs: time, bytes: 1 })];
        let batch = IndexBatch { entries, segments: vec![(address, Some(state))], totals, ..IndexBatch::default() };
        index.apply(batch).unwrap();
    }
    assert_eq!(index.get(name(1)).unwrap(), Some(blob(3)));
    assert_eq!(index.get(name(2)).unwrap(), Some(blob(1)));
    let state = SegmentState { synced: 300, sealed: true, ..SegmentState::default() };
    assert_eq!(index.segments().unwrap(), [(address, state)]);
    assert_eq!(index.totals().unwrap(), [(3, Totals { blobs: 3, bytes: 1 })]);
}

fn what_is_removed_is_gone(index: &dyn Index) {
    let address = |id| SegmentAddress { bucket: 3, id };
    let some = |id| (address(id), Some(SegmentState::default()));
    index
        .apply(IndexBatch {
            entries: vec![(name(1), blob(1)), (name(2), blob(2))],
            segments: vec![some(1), some(2)],
            totals: vec![(1, Totals { blobs: 1, bytes: 0 }), (2, Totals { blobs: 0, bytes: 1 })],
            ..IndexBatch::default()
        })
        .unwrap();
    index
        .apply(IndexBatch {
            entries: vec![(name(1), Entry::default())],
            segments: vec![(address(1), None)],
            totals: vec![(1, Totals::default())],
            ..IndexBatch::default()
        })
        .unwrap();
    assert_eq!(index.get(name(1)).unwrap(), None);
    assert_eq!(index.entries(None, None, 9).unwrap(), [(name(2), blob(2))]);
    assert_eq!(index.segments().unwrap(), [(address(2), SegmentState::default())]);
    assert_eq!(index.totals().unwrap(), [(2, Totals { blobs: 0, bytes: 1 })]);
}

fn expired_entries_may_go_and_others_stay(index: &dyn Index) {
    const HOUR_MS: u64 = 3_600_000;
    let hold = |placed| Some(HoldEntry { time_ms: 1, placed, from_bucket: 0 });
    let entries = vec![
        (name(1), blob(5 * HOUR_MS)),
        (name(2), blob(6 * HOUR_MS)),
        (name(3), Entry { hold: hold(true), ..blob(5 * HOUR_MS) }),
        (name(4), Entry { hold: hold(false), ..blob(5 * HOUR_MS) }),
        (name(5), Entry { killed_until_ms: Some(6 * HOUR_MS), ..blob(5 * HOUR_MS) }),
        (name(6), Entry { killed_until_ms: Some(5 * HOUR_MS), ..Entry::default() }),
    ];
    let uploads = (1..=2).map(|at| (UploadId([at; 16]), UploadOwner { name: name(at), bucket: 4 + u32::from(at) }));
    let batch = IndexBatch { entries: entries.clone(), uploads: uploads.collect(), ..IndexBatch::default() };
    index.apply(batch).unwrap();
    let live = || -> Vec<(BlobName, Entry)> {
        let all = index.entries(None, None, 99).unwrap().into_iter();
        all.map(|(name, entry)| (name, entry.live(6).0)).filter(|(_, entry)| !entry.is_empty()).collect()
    };
    let before = live();
    index.expire(6, 1_000_000).unwrap();
    assert_eq!(live(), before);
    assert_eq!(before.iter().map(|(name, _)| name.0[0]).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert!(index.upload(UploadId([2; 16])).unwrap().is_some());
    // An older horizon takes nothing back.
    index.expire(5, 0).unwrap();
    assert_eq!(live(), before);
}

fn entries_page_in_order_and_apart_from_segments(index: &dyn Index) {
    // The extremes would show a key space that overlaps with another one.
    let names: Vec<u8> = (0..=255).collect();
    let entries = names.iter().rev().map(|&at| (name(at), blob(u64::from(at)))).collect();
    let address = |id| SegmentAddress { bucket: u32::MAX, id };
    let segments = (0..20).map(|id| (address(id), Some(SegmentState::default()))).collect();
    let totals = vec![(u32::MAX, Totals { blobs: 256, bytes: 0 })];
    let uploads = [0, 255].map(|at| (UploadId([at; 16]), UploadOwner { name: name(at), bucket: 1 })).to_vec();
    index.apply(IndexBatch { entries, segments, totals, uploads }).unwrap();
    let between = |after, until| index.entries(after, until, 99).unwrap().into_iter().map(|(name, _)| name.0[0]);
    assert!(between(Some(name(7)), Some(name(12))).eq(8..=12));
    assert!(between(None, Some(name(0))).eq([0]) && between(Some(name(254)), None).eq([255]));
    assert_eq!(between(Some(name(9)), Some(name(9))).count() + between(Some(name(9)), Some(name(3))).count(), 0);
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = index.entries(after, None, 7).unwrap();
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
    let layout = Layout::Streamed { placement: PlacementKey([6; 32]), extents, tree };
    let entry = Entry { blob: Some(BlobEntry { length, put_time_ms: 9, layout, damaged: true }), ..Entry::default() };
    index.apply(IndexBatch { entries: vec![(name(9), entry.clone())], ..IndexBatch::default() }).unwrap();
    index.flush().unwrap();
    assert_eq!(index.get(name(9)).unwrap(), Some(entry));
}

fn readers_see_batches_whole(index: Arc<dyn Index>) {
    const BATCHES: u64 = 300;
    let batch =
        |time| IndexBatch { entries: vec![(name(1), blob(time)), (name(2), blob(time))], ..IndexBatch::default() };
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
