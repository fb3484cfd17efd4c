//! Damage, scrub and compaction: what is damaged is never served and never absent, and space comes back under no reader.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use lazaret_protocol::message::{ErrorCode, Hold, Locator, PutLocator, Tombstone};
use lazaret_protocol::tree::TreeBuilder;
use lazaret_protocol::{BlobName, PlacementKey, UploadId};
use lazaret_storage_node::disk::SimDisk;
use lazaret_storage_node::record::{
    Commit, Location, PreparedRecord, RECORD_HEADER_BYTES, RecordKind, SEGMENT_HEADER_BYTES, SegmentAddress,
    SegmentHeader, record_buffer,
};
use lazaret_storage_node::{Disk, Engine, MemoryIndex, Origin};

use crate::common::{NOON_MS, assert_absent, assert_holds, content, environment, open, options, put, read_all, upload};

const EXTENT: usize = 4 << 20;
const HEADER: u64 = RECORD_HEADER_BYTES as u64;

/// An engine whose segments are sealed at this size.
fn open_small(disk: &SimDisk, index: &MemoryIndex, segment_bytes_max: u64) -> Engine {
    let mut options = options();
    options.segment_bytes_max = segment_bytes_max;
    Engine::open(Arc::new(disk.clone()), Arc::new(index.clone()), environment(1).0, options).unwrap()
}

fn scrub_all(engine: &Engine) -> (u64, Vec<BlobName>) {
    let (mut damaged, mut names) = (0, Vec::new());
    for address in engine.sealed_segments().unwrap() {
        let mut paced = 0;
        let scrubbed = engine.scrub_segment(address, &mut |bytes| paced += bytes).unwrap();
        assert!(paced >= scrubbed.bytes && scrubbed.bytes > 0, "{paced} {scrubbed:?}");
        damaged += scrubbed.damaged_records;
        names.extend(scrubbed.names);
    }
    (damaged, names)
}

fn damaged(engine: &Engine, blob: &Bytes) -> bool {
    let name = BlobName::of(blob);
    let flagged = engine.entry(name).unwrap().unwrap().blob.unwrap().damaged;
    if flagged {
        assert_eq!(engine.open_blob(name).err().unwrap().code(), ErrorCode::Corrupt);
        assert_eq!(engine.stat(name).unwrap_err().code(), ErrorCode::Corrupt);
        assert!(!engine.holds(name).unwrap() && !engine.verify(name).unwrap());
    }
    flagged
}

/// Puts so many blobs of 3,000 bytes, one after the other.
async fn put_blobs(engine: &Engine, count: u64) -> Vec<Bytes> {
    let blobs: Vec<Bytes> = (0..count).map(|at| content(at, 3000)).collect();
    for blob in &blobs {
        put(engine, blob).await.unwrap();
    }
    blobs
}

/// The offset of what follows `blob`'s own bytes in the only segment, which holds blobs put one after the other.
fn place(blobs: &[Bytes], at: usize) -> u64 {
    let before: usize = blobs[..at].iter().map(|blob| RECORD_HEADER_BYTES + blob.len()).sum();
    (SEGMENT_HEADER_BYTES + before) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_found_damaged_is_never_absent_and_the_next_put_replaces_it() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let blobs = put_blobs(&engine, 4).await;
    let (address, _) = disk.contents()[0];
    disk.flip_bit(address, place(&blobs, 1) + HEADER + 7, 1);
    disk.flip_bit(address, place(&blobs, 2) + HEADER + 7, 1);
    assert_eq!(read_all(&engine, BlobName::of(&blobs[1])).unwrap_err().code(), ErrorCode::Corrupt);
    assert!(!engine.verify(BlobName::of(&blobs[2])).unwrap());
    assert!(engine.verify(BlobName::of(&blobs[0])).unwrap());
    assert!(!engine.verify(BlobName([7; 32])).unwrap());
    assert!([0, 1, 2, 3].map(|at| damaged(&engine, &blobs[at])) == [false, true, true, false]);
    assert_eq!((engine.report().dead_bytes, engine.status().blobs), (2 * 3104, 4));
    engine.close();
    // Known to the index, and to one begun anew.
    drop(engine);
    for index in [index.clone(), MemoryIndex::new()] {
        let engine = open(&disk, &index);
        assert!([0, 1, 2, 3].map(|at| damaged(&engine, &blobs[at])) == [false, true, true, false]);
        engine.close();
    }
    let engine = open(&disk, &index);
    // An earlier put of the hour would be held already, were the copy sound. It counts as the newer one then.
    let done = engine.put_whole(BlobName::of(&blobs[1]), blobs[1].clone(), NOON_MS - 5, Origin::Peer).await.unwrap();
    assert!(!done.already_held);
    assert_holds(&engine, &blobs[1]);
    put(&engine, &blobs[2]).await.unwrap();
    assert!(put(&engine, &blobs[2]).await.unwrap().already_held);
    engine.close();
    for index in [index.clone(), MemoryIndex::new()] {
        let engine = open(&disk, &index);
        blobs.iter().for_each(|blob| assert_holds(&engine, blob));
        assert_eq!(engine.status().blobs, 4);
        engine.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_every_damaged_copy_and_no_other() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let mut blobs = put_blobs(&engine, 40).await;
    let mut ends = Vec::new();
    for (at, id) in [(40, 1), (41, 2), (42, 3)] {
        let long = content(at, 2 * EXTENT + 70_000);
        let mut upload =
            engine.begin_upload(UploadId([id; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client).unwrap();
        upload.append(long.clone()).await.unwrap();
        upload.commit(BlobName::of(&long), long.len() as u64).await.unwrap();
        ends.push(disk.contents()[0].1.len() as u64);
        blobs.push(long);
    }
    engine.close();
    let engine = open(&disk, &index);
    assert_eq!(scrub_all(&engine), (0, Vec::new()));
    assert_eq!(engine.report().dead_bytes, 0);
    let (address, _) = disk.contents()[0];
    disk.flip_bit(address, place(&blobs, 3) + HEADER + 2999, 1);
    disk.flip_bit(address, place(&blobs, 5) + 31, 1);
    // Two in a row: one place where nothing can be made out.
    disk.flip_bit(address, place(&blobs, 8) + 31, 1);
    disk.flip_bit(address, place(&blobs, 9) + 31, 1);
    // In an extent of the first upload, and in the tree record of the second, which is the one before its commit.
    disk.flip_bit(address, place(&blobs, 40) + HEADER + 5_000_000, 1);
    disk.flip_bit(address, ends[1] - HEADER - 200, 1);
    let mut expected: Vec<BlobName> = [3, 5, 8, 9, 40, 41].map(|at| BlobName::of(&blobs[at])).to_vec();
    expected.sort_unstable();
    let (count, names) = scrub_all(&engine);
    assert_eq!((count, names), (5, expected));
    for (at, blob) in blobs.iter().enumerate() {
        if [3, 5, 8, 9, 40, 41].contains(&at) {
            assert!(damaged(&engine, blob), "{at}");
        } else {
            assert_holds(&engine, blob);
        }
    }
    assert_eq!(engine.status().corrupt_reads, 5);
    assert_eq!(scrub_all(&engine), (5, Vec::new()), "nothing new");
    upload(&engine, &blobs[40], 1 << 20).await.unwrap();
    assert_holds(&engine, &blobs[40]);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_of_a_damaged_segment_leaves_no_copy_that_seems_sound() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let blobs = put_blobs(&engine, 10).await;
    engine.close();
    let engine = open(&disk, &index);
    // No record can be made out where the ninth lies.
    disk.flip_bit(disk.contents()[0].0, place(&blobs, 8) + 31, 1);
    for blob in &blobs[..8] {
        engine.delete(Tombstone { name: BlobName::of(blob), time_ms: NOON_MS }).await.unwrap();
    }
    assert!(engine.compact(0.5).await.unwrap().unwrap() > 8 * 3000);
    assert!(damaged(&engine, &blobs[8]));
    assert_holds(&engine, &blobs[9]);
    assert_eq!(engine.status().corrupt_reads, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_a_segment_that_vanished_are_known_as_damaged_when_the_engine_opens() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open_small(&disk, &index, 20_000);
    let blobs = put_blobs(&engine, 10).await;
    engine.close();
    let first = disk.contents()[0].0;
    disk.remove_segments(&[first]).unwrap();
    for _ in 0..2 {
        let engine = open_small(&disk, &index, 20_000);
        let gone: Vec<bool> = blobs.iter().map(|blob| damaged(&engine, blob)).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 6, "{gone:?}");
        blobs.iter().zip(&gone).filter(|(_, gone)| !**gone).for_each(|(blob, _)| assert_holds(&engine, blob));
        assert_eq!(engine.status().corrupt_reads, 1);
        engine.close();
    }
    let engine = open_small(&disk, &index, 20_000);
    put(&engine, &blobs[0]).await.unwrap();
    assert_holds(&engine, &blobs[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_header_costs_no_blob() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let blobs = put_blobs(&engine, 10).await;
    engine.close();
    let engine = open(&disk, &index);
    disk.flip_bit(disk.contents()[0].0, 20, 1);
    assert_eq!(scrub_all(&engine), (1, Vec::new()));
    blobs.iter().for_each(|blob| assert_holds(&engine, blob));
    for blob in &blobs[..9] {
        engine.delete(Tombstone { name: BlobName::of(blob), time_ms: NOON_MS }).await.unwrap();
    }
    assert!(engine.compact(0.5).await.unwrap().unwrap() > 9 * 3000);
    assert_holds(&engine, &blobs[9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_gives_back_what_is_dead_and_disturbs_nobody() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open_small(&disk, &index, 1 << 20);
    let blobs: Vec<Bytes> = (0..200).map(|at| content(at, 10_000)).collect();
    for blob in &blobs {
        put(&engine, blob).await.unwrap();
    }
    let name = BlobName([77; 32]);
    let locator = Locator { placement: PlacementKey([5; 32]), length: 7 };
    engine.put_locator(PutLocator { name, locator, put_time_ms: NOON_MS }, Origin::Client).await.unwrap();
    assert_eq!(engine.compact(0.1).await.unwrap(), None, "nothing is dead");
    let killed = |at: usize| !at.is_multiple_of(5);
    for (_, blob) in blobs.iter().enumerate().filter(|(at, _)| killed(*at)) {
        engine.delete(Tombstone { name: BlobName::of(blob), time_ms: NOON_MS }).await.unwrap();
    }
    let first = engine.sealed_segments().unwrap()[0];
    let before = engine.report();
    assert!(before.dead_bytes > 160 * 10_000);
    let reader = engine.open_blob(BlobName::of(&blobs[0])).unwrap().unwrap();
    let mut given_back = 0;
    while let Some(bytes) = engine.compact(0.5).await.unwrap() {
        given_back += bytes;
    }
    assert!(disk.length(first).is_ok(), "a reader is in it");
    let mut encoded = Vec::new();
    reader.encode(None, &mut encoded).unwrap();
    drop(reader);
    assert!(disk.length(first).is_err());
    let after = engine.report();
    // But for the headers of the segments that the copies went to.
    let less = before.segment_bytes - after.segment_bytes;
    assert!(less <= given_back && given_back < less + 1000, "{less} {given_back}");
    assert!(given_back > 70 * 10_000, "{given_back}");
    let check = |engine: &Engine| {
        for (at, blob) in blobs.iter().enumerate() {
            if killed(at) { assert_absent(engine, blob) } else { assert_holds(engine, blob) }
        }
        assert_eq!(engine.stat(name).unwrap().locator, Some(locator));
        assert_eq!((engine.status().blobs, engine.status().corrupt_reads), (40, 0));
    };
    check(&engine);
    check(&open(&disk.crash(1), &MemoryIndex::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_blobs_move_and_abandoned_uploads_go() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open_small(&disk, &index, 13 << 20);
    let [kept, gone] = [1, 2].map(|at| content(at, 3 * EXTENT + 123));
    let begin = |id| engine.begin_upload(UploadId([id; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client).unwrap();
    let (mut first, mut second, mut third) = (begin(1), begin(2), begin(3));
    let unfinished = content(3, 3 * EXTENT + 5);
    // Piece by piece in turns, so that each segment has something of all.
    for start in (0..3 * EXTENT).step_by(1 << 20) {
        first.append(kept.slice(start..start + (1 << 20))).await.unwrap();
        second.append(gone.slice(start..start + (1 << 20))).await.unwrap();
        third.append(unfinished.slice(start..start + (1 << 20))).await.unwrap();
    }
    first.append(kept.slice(3 * EXTENT..)).await.unwrap();
    second.append(gone.slice(3 * EXTENT..)).await.unwrap();
    first.commit(BlobName::of(&kept), kept.len() as u64).await.unwrap();
    second.commit(BlobName::of(&gone), gone.len() as u64).await.unwrap();
    engine.delete(Tombstone { name: BlobName::of(&gone), time_ms: NOON_MS }).await.unwrap();
    assert!(engine.report().dead_bytes > 3 * EXTENT as u64);
    let segments = disk.segments().unwrap().len();
    assert_eq!(engine.compact(0.1).await.unwrap(), None, "an upload is under way in all of them");
    // It is not lost by that: it goes on and commits.
    third.append(unfinished.slice(3 * EXTENT..)).await.unwrap();
    third.commit(BlobName::of(&unfinished), unfinished.len() as u64).await.unwrap();
    assert_holds(&engine, &unfinished);
    let mut abandoned = begin(4);
    abandoned.append(content(4, 2 * EXTENT + 1)).await.unwrap();
    while disk.segments().unwrap().len() <= segments {
        tokio::task::yield_now().await;
    }
    drop(abandoned);
    while engine.compact(0.1).await.unwrap().is_some() {}
    assert_holds(&engine, &kept);
    assert_holds(&engine, &unfinished);
    engine.close();
    let engine = open(&disk, &index);
    scrub_all(&engine);
    assert!(engine.report().dead_bytes >= EXTENT as u64, "abandoned extents: {:?}", engine.report());
    while engine.compact(0.1).await.unwrap().is_some() {}
    let report = engine.report();
    let live = (kept.len() + unfinished.len()) as u64;
    assert!(report.segment_bytes < live + live / 4, "{report:?}");
    let check = |engine: &Engine| {
        assert_holds(engine, &kept);
        assert_holds(engine, &unfinished);
        assert_absent(engine, &gone);
        assert_eq!(engine.status().corrupt_reads, 0);
    };
    check(&engine);
    check(&open(&disk.crash(1), &MemoryIndex::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_and_is_released_leaves_the_held_bucket() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open_small(&disk, &index, 100_000);
    let blobs: Vec<Bytes> = (0..60).map(|at| content(at, 5_000)).collect();
    let set = async |blob: &Bytes, time_ms, placed| {
        engine.hold(Hold { name: BlobName::of(blob), time_ms, placed, from_bucket: None }).await.unwrap();
    };
    for blob in &blobs {
        put(&engine, blob).await.unwrap();
        set(blob, NOON_MS, true).await;
    }
    for blob in &blobs[..30] {
        engine.delete(Tombstone { name: BlobName::of(blob), time_ms: NOON_MS }).await.unwrap();
    }
    for blob in &blobs[30..45] {
        set(blob, NOON_MS + 1, false).await;
    }
    while engine.compact(0.3).await.unwrap().is_some() {}
    blobs[30..].iter().for_each(|blob| assert_holds(&engine, blob));
    engine.expire((NOON_MS / 3_600_000) as u32 + 1).unwrap();
    let check = |engine: &Engine| {
        blobs[..45].iter().for_each(|blob| assert_absent(engine, blob));
        blobs[45..].iter().for_each(|blob| assert_holds(engine, blob));
        assert_eq!(engine.status().blobs, 15);
    };
    check(&engine);
    check(&open(&disk.crash(1), &MemoryIndex::new()));
}

/// A data directory as version 1 wrote it: a whole blob, and a streamed one whose commit tells no placement key.
fn version_1(disk: &SimDisk, whole: &Bytes, long: &Bytes) {
    let (cluster, node) = (options().cluster, options().node);
    disk.write_small("node.yml", format!("format: 1\ncluster: {cluster}\nnode: {node}\n").as_bytes()).unwrap();
    let address = SegmentAddress { bucket: (NOON_MS / 3_600_000) as u32, id: 1 };
    let marker = *b"12345678";
    let mut header = SegmentHeader { address, cluster, node, marker }.encode();
    header[8] = 1;
    let crc = crc32c::crc32c(&header[..68]).to_le_bytes();
    header[68..].copy_from_slice(&crc);
    let mut file = disk.create_segment(address).unwrap();
    let mut offset = 0;
    let mut write = |bytes: &[u8]| {
        file.write_at(offset, &[IoSlice::new(bytes)]).unwrap();
        offset += bytes.len() as u64;
        Location { segment: address, offset: offset - bytes.len() as u64 }
    };
    write(&header);
    let salt = Some([3; 16]);
    let mut record = |kind, subject, position, tree, payload: &[u8]| {
        let mut buffer = record_buffer(payload.len());
        buffer.extend_from_slice(payload);
        write(&PreparedRecord::new(kind, subject, position, NOON_MS, tree, salt, buffer).placed(marker, 0))
    };
    record(RecordKind::Blob, BlobName::of(whole).into(), 0, 0, whole);
    let upload = UploadId([4; 16]);
    let mut builder = TreeBuilder::new();
    builder.push(long);
    let (name, pairs) = builder.finish();
    let extents = long
        .chunks(EXTENT)
        .enumerate()
        .map(|(at, extent)| record(RecordKind::Extent, upload.into(), (at * EXTENT) as u64, 0, extent))
        .collect();
    let tree = vec![record(RecordKind::Tree, upload.into(), 0, 0, &pairs)];
    let mut payload = Vec::new();
    Commit { upload, length: long.len() as u64, placement: None, extents, tree }.encode(&mut payload);
    record(RecordKind::Commit, name.into(), 0, 0, &payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_version_1_are_read_and_become_version_2() {
    let (whole, long) = (content(1, 5000), content(2, EXTENT + 70_000));
    let disk = SimDisk::new();
    version_1(&disk, &whole, &long);
    let index = MemoryIndex::new();
    for opening in 0..3 {
        // The last time from what was written by then.
        let index = if opening == 2 { MemoryIndex::new() } else { index.clone() };
        let engine = open(&disk, &index);
        assert_holds(&engine, &whole);
        assert_holds(&engine, &long);
        let blob = engine.entry(BlobName::of(&long)).unwrap().unwrap().blob.unwrap();
        assert_eq!(blob.placement(), Some(PlacementKey(BlobName::of(&long[..EXTENT]).0)));
        let whole_entry = engine.entry(BlobName::of(&whole)).unwrap().unwrap().blob.unwrap();
        assert_eq!(whole_entry.placement(), None);
        assert_eq!((engine.status().blobs, engine.status().corrupt_reads), (2, 0));
        let identity = String::from_utf8(disk.read_small("node.yml").unwrap().unwrap()).unwrap();
        assert!(identity.contains("format: 2"), "{identity}");
        engine.close();
    }
    let newest = disk.contents().pop().unwrap().1;
    assert_eq!(newest[8], 2);
}
