//! A disk that fails, fills up or rots.

use bytes::Bytes;
use lazaret_protocol::PlacementKey;
use lazaret_protocol::message::ErrorCode;
use lazaret_protocol::{BlobName, UploadId};
use lazaret_storage_node::Origin;
use lazaret_storage_node::disk::SimDisk;
use lazaret_storage_node::index::IndexBatch;
use lazaret_storage_node::record::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use lazaret_storage_node::{Engine, Index, MemoryIndex};

use crate::common::{
    NOON_MS, Seeded, assert_absent, assert_holds, content, environment, open, options, put, read_all, upload,
};

const EXTENT: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_acknowledges_nothing_and_nothing_of_it_is_ever_served() {
    for seed in 0..20 {
        println!("seed {seed}");
        let (disk, index) = (SimDisk::new(), MemoryIndex::new());
        let engine = open(&disk, &index);
        let [before, failed, after] = [0, 1, 2].map(|at| content(at + 10 * seed, 3000));
        put(&engine, &before).await.unwrap();
        disk.fail_syncs(1);
        assert_eq!(put(&engine, &failed).await.unwrap_err().code(), ErrorCode::Internal);
        assert_absent(&engine, &failed);
        put(&engine, &after).await.unwrap();
        let segments = disk.contents().len();
        assert_eq!(segments, 2, "the failed segment is not written to again");

        let crashed = disk.crash(seed);
        let engine = open(&crashed, &index.crash(seed));
        assert_holds(&engine, &before);
        assert_holds(&engine, &after);
        assert_absent(&engine, &failed);
        put(&engine, &failed).await.unwrap();
        assert_holds(&engine, &failed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_segment_failed_is_refused_at_its_commit() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let long = content(1, 2 * EXTENT + 100);
    let mut upload = engine.begin_upload(UploadId([1; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client).unwrap();
    // Two extents are on their way once more than two were taken.
    upload.append(long.clone()).await.unwrap();
    while disk.contents().iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < 2 * EXTENT {
        tokio::task::yield_now().await;
    }
    disk.fail_syncs(1);
    assert!(put(&engine, &content(2, 10)).await.is_err());
    let refused = upload.commit(BlobName::of(&long), long.len() as u64).await.unwrap_err();
    assert!(refused.to_string().contains("was lost"), "{refused}");
    assert_absent(&engine, &long);
    crate::common::upload(&engine, &long, 1 << 20).await.unwrap();
    assert_holds(&engine, &long);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_for_which_there_is_no_space_fails_alone() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    put(&engine, &content(1, 3000)).await.unwrap();
    disk.fail_writes(1);
    assert_eq!(put(&engine, &content(2, 3000)).await.unwrap_err().code(), ErrorCode::Full);
    put(&engine, &content(3, 3000)).await.unwrap();
    let engine = open(&disk.crash(1), &index.crash(1));
    assert_holds(&engine, &content(1, 3000));
    assert_holds(&engine, &content(3, 3000));
    assert_absent(&engine, &content(2, 3000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stays_broken_does_not_fill_with_failed_segments() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    put(&engine, &content(0, 3000)).await.unwrap();
    disk.fail_syncs(u32::MAX);
    for at in 1..200 {
        assert!(put(&engine, &content(at, 3000)).await.is_err());
    }
    assert!(disk.contents().len() < 100, "{}", disk.contents().len());
    assert_holds(&engine, &content(0, 3000));
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_reserve_writes_are_refused_until_there_is_clearly_space_again() {
    const MIB: u64 = 1 << 20;
    let disk = SimDisk::new();
    disk.set_total_bytes(100 * MIB);
    let mut options = options();
    options.reserve_bytes = 40 * MIB;
    let index = std::sync::Arc::new(MemoryIndex::new());
    let engine = Engine::open(std::sync::Arc::new(disk.clone()), index, environment(1).0, options).unwrap();
    put(&engine, &content(1, 3000)).await.unwrap();
    disk.set_total_bytes(40 * MIB);
    let refused = put(&engine, &content(2, 3000)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Full, "{refused}");
    assert!(engine.status().full);
    assert_holds(&engine, &content(1, 3000));
    disk.set_total_bytes(45 * MIB);
    assert_eq!(put(&engine, &content(2, 3000)).await.unwrap_err().code(), ErrorCode::Full, "at the edge");
    disk.set_total_bytes(51 * MIB);
    put(&engine, &content(2, 3000)).await.unwrap();
    assert!(!engine.status().full);
}

/// Flips single bits all over the segment of one blob: it is read whole and right, or reported as damaged.
async fn rot(blob: Bytes, streamed: bool) {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    if streamed {
        upload(&engine, &blob, 1 << 20).await.unwrap();
    } else {
        put(&engine, &blob).await.unwrap();
    }
    let name = BlobName::of(&blob);
    let entry = index.get(name).unwrap().unwrap();
    let (address, bytes) = disk.contents().remove(0);
    let mut random = Seeded(blob.len() as u64);
    let first = SEGMENT_HEADER_BYTES as u64;
    let header = first..first + RECORD_HEADER_BYTES as u64;
    let anywhere = (0..60).map(|_| first + random.below(bytes.len() as u64 - first));
    let mut damaged = 0;
    for offset in header.clone().chain(anywhere).collect::<Vec<_>>() {
        assert!(disk.flip_bit(address, offset, offset as u8));
        match read_all(&engine, name) {
            Ok(held) => assert!(held.unwrap() == blob[..]),
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::Corrupt, "{error}");
                damaged += 1;
            }
        }
        assert!(!header.contains(&offset) || damaged > 0, "damage of a header went unnoticed");
        disk.flip_bit(address, offset, offset as u8);
        // What was found damaged is not read again.
        if let Err(error) = engine.open_blob(name) {
            assert_eq!(error.code(), ErrorCode::Corrupt);
            index.apply(IndexBatch { entries: vec![(name, entry.clone())], ..IndexBatch::default() }).unwrap();
        }
    }
    assert_holds(&engine, &blob);
    assert_eq!(engine.status().corrupt_reads, damaged);
    assert!(damaged >= 104 + 50, "{damaged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_noticed_and_counted() {
    rot(content(1, 10), false).await;
    rot(content(1, 300_000), false).await;
    rot(content(2, EXTENT + 200_000), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_fails_acknowledges_nothing() {
    let (disk, power) = (SimDisk::new(), SimDisk::new());
    let index = MemoryIndex::new().powered_by(power.power());
    let engine = open(&disk, &index);
    put(&engine, &content(1, 100)).await.unwrap();
    index.flush().unwrap();
    let survived = power.crash(0);
    assert_eq!(put(&engine, &content(2, 100)).await.unwrap_err().code(), ErrorCode::Internal);
    let index = index.crash(0).powered_by(survived.power());
    let engine = open(&disk.crash(0), &index);
    assert_holds(&engine, &content(1, 100));
}
