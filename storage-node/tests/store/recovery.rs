//! What recovery makes of segments that are large, unreadable in parts, or proven late.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use lazaret_protocol::BlobName;
use lazaret_storage_node::record::{
    PreparedRecord, RecordKind, SEGMENT_HEADER_BYTES, SegmentAddress, SegmentHeader, record_buffer,
};
use lazaret_storage_node::{Disk, Engine, MemoryIndex, SimDisk};

use crate::common::{NOON_MS, assert_holds, content, open, open_on, options, put, read_all};

const ADDRESS: SegmentAddress = SegmentAddress { bucket: 500_000, id: 1 };

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_the_disk_can_not_read_costs_what_lies_in_it() {
    let disk = SimDisk::new();
    let engine = open(&disk, &MemoryIndex::new());
    let blobs: Vec<Bytes> = (0..50).map(|at| content(at, 3000)).collect();
    for blob in &blobs {
        put(&engine, blob).await.unwrap();
    }
    engine.close();
    let disk = disk.kill();
    disk.lose_range(disk.segments().unwrap()[0], 70_000..70_100);
    let engine = open(&disk, &MemoryIndex::new());
    let held = blobs.iter().filter(|blob| matches!(read_all(&engine, BlobName::of(blob)), Ok(Some(_)))).count();
    // One page either way.
    assert!((46..50).contains(&held), "{held}");
    assert!(engine.status().corrupt_reads > 0);
    let lost: Vec<&Bytes> = blobs.iter().filter(|blob| !engine.holds(BlobName::of(blob)).unwrap()).collect();
    for blob in lost {
        put(&engine, blob).await.unwrap();
        assert_holds(&engine, blob);
    }

    // A disk that reads nothing is no damaged segment.
    let disk = disk.kill();
    disk.lose_range(disk.segments().unwrap()[0], 0..u64::MAX);
    assert!(open_on(Arc::new(disk), Arc::new(MemoryIndex::new())).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sector_that_goes_bad_later_is_damage_of_one_copy() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let blob = content(1, 3000);
    put(&engine, &blob).await.unwrap();
    disk.lose_range(disk.segments().unwrap()[0], 1000..1001);
    let error = read_all(&engine, BlobName::of(&blob)).unwrap_err();
    assert_eq!(error.code(), lazaret_protocol::message::ErrorCode::Corrupt, "{error}");
    // It is noted, so that the blob is fetched or put again.
    assert!(!engine.holds(BlobName::of(&blob)).unwrap());
    put(&engine, &blob).await.unwrap();
    assert_holds(&engine, &blob);
}

fn tombstone(at: u64) -> PreparedRecord {
    PreparedRecord::new(RecordKind::Tombstone, name(at).into(), 0, NOON_MS, 0, None, record_buffer(0))
}

fn name(at: u64) -> BlobName {
    BlobName::of(&at.to_le_bytes())
}

/// A segment of so many tombstones written in one go, of which the last, if wanted, proves the others durable.
fn segment_of(count: u64, proven: bool) -> SimDisk {
    let disk = SimDisk::new();
    let (cluster, node, marker) = (options().cluster, options().node, *b"12345678");
    let mut bytes = SegmentHeader { address: ADDRESS, cluster, node, marker }.encode().to_vec();
    for at in 0..count {
        let synced = if proven && at + 1 == count { bytes.len() as u64 } else { 0 };
        bytes.extend(tombstone(at).placed(marker, synced));
    }
    let mut file = disk.create_segment(ADDRESS).unwrap();
    file.write_at(0, &[IoSlice::new(&bytes)]).unwrap();
    file.sync().unwrap();
    disk
}

fn check(engine: &Engine, count: u64) {
    for at in 0..count {
        assert_eq!(engine.entry(name(at)).unwrap().unwrap().killed_until_ms, Some(NOON_MS), "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_may_wait_for_its_proof_is_adopted_all_the_same() {
    // More than recovery lets wait, so that it looks ahead for the proof.
    const COUNT: u64 = 70_000;
    for (proven, moved) in [(true, 1), (false, COUNT)] {
        let disk = segment_of(COUNT, proven);
        let engine = open(&disk, &MemoryIndex::new());
        check(&engine, COUNT);
        let contents = disk.contents();
        assert_eq!(contents.len(), 2, "proven: {proven}");
        // What nothing proves is written again, and nothing else.
        assert_eq!(contents[1].1.len() as u64, SEGMENT_HEADER_BYTES as u64 + moved * 104, "proven: {proven}");
        engine.close();
        check(&open(&disk.kill(), &MemoryIndex::new()), COUNT);
    }
}
