//! What a node finds when it opens again: its data, a lost index, damage, somebody else's directory.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lazaret_protocol::PlacementKey;
use lazaret_protocol::message::{ErrorCode, Locator, PutLocator};
use lazaret_protocol::{BlobName, ClusterId, NodeId};
use lazaret_storage_node::Origin;
use lazaret_storage_node::disk::SimDisk;
use lazaret_storage_node::index::{IndexBatch, SegmentState};
use lazaret_storage_node::record::{
    PreparedRecord, RecordKind, SEGMENT_HEADER_BYTES, SegmentAddress, SegmentHeader, record_buffer,
};
use lazaret_storage_node::{Disk, Engine, EngineError, FsDisk, Index, MemoryIndex, RocksIndex};

use crate::common::{
    NOON_MS, assert_absent, assert_holds, content, environment, open, open_on, options, put, read_all, upload,
};

const EXTENT: usize = 4 << 20;

fn open_directory(root: &Path) -> Engine {
    let disk = Arc::new(FsDisk::open(root).unwrap());
    let index = Arc::new(RocksIndex::open(root.join("index")).unwrap());
    open_on(disk, index).unwrap()
}

/// A few blobs of all sorts, and a locator.
async fn fill(engine: &Engine) -> (Vec<Bytes>, BlobName) {
    let mut blobs: Vec<Bytes> = (0..40).map(|at| content(at, 1 + 700 * at as usize)).collect();
    for blob in &blobs {
        put(engine, blob).await.unwrap();
    }
    for at in 40..43 {
        let long = content(at, EXTENT + 100_000 * at as usize);
        upload(engine, &long, 1 << 20).await.unwrap();
        blobs.push(long);
    }
    let name = BlobName([77; 32]);
    engine.put_locator(PutLocator { name, locator: locator(), put_time_ms: NOON_MS }, Origin::Client).await.unwrap();
    (blobs, name)
}

fn locator() -> Locator {
    Locator { placement: PlacementKey([5; 32]), length: 1 << 33 }
}

fn check(engine: &Engine, blobs: &[Bytes], located: BlobName) {
    blobs.iter().for_each(|blob| assert_holds(engine, blob));
    assert_eq!(engine.stat(located).unwrap().locator, Some(locator()));
    let status = engine.status();
    assert_eq!((status.blobs, status.corrupt_reads), (blobs.len() as u64, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_opened_again_after_closing_and_after_dying() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open_directory(directory.path());
    let (mut blobs, located) = fill(&engine).await;
    engine.close();
    drop(engine);
    let engine = open_directory(directory.path());
    assert_eq!(engine.status().recovered_records, 0, "after closing there is nothing to recover");
    check(&engine, &blobs, located);
    blobs.push(content(100, 5000));
    put(&engine, &blobs[43]).await.unwrap();

    // A copy of the directory as it lies there is what a process that dies leaves behind.
    let copied = tempfile::tempdir().unwrap();
    copy(directory.path(), copied.path());
    check(&open_directory(copied.path()), &blobs, located);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_index_is_rebuilt_and_what_is_proven_durable_stays_where_it_lies() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open_directory(directory.path());
    let (blobs, located) = fill(&engine).await;
    let bytes_before = engine.status().segment_bytes;
    engine.close();
    drop(engine);
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    let engine = open_directory(directory.path());
    check(&engine, &blobs, located);
    let status = engine.status();
    assert_eq!(status.recovered_records, blobs.len() as u64 + 1);
    // Only the last group is written again: here the locator's.
    assert!(status.segment_bytes < bytes_before + 1000, "{} after {bytes_before}", status.segment_bytes);
    engine.close();
    drop(engine);
    let engine = open_directory(directory.path());
    check(&engine, &blobs, located);
    assert_eq!(engine.status().recovered_records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_before_the_synced_offset_costs_one_record_and_is_counted() {
    // Of five blobs, the header or the payload of the third one is damaged; the index is lost.
    let length = 2000;
    for in_header in [true, false] {
        let disk = SimDisk::new();
        let engine = open(&disk, &MemoryIndex::new());
        let blobs: Vec<Bytes> = (0..5).map(|at| content(at, length)).collect();
        for blob in &blobs {
            put(&engine, blob).await.unwrap();
        }
        let (address, _) = disk.contents()[0];
        let third = SEGMENT_HEADER_BYTES + 2 * (104 + length);
        disk.flip_bit(address, (third + if in_header { 30 } else { 500 }) as u64, 3);
        let before = disk.contents()[0].1.clone();
        let engine = open(&disk.crash(1), &MemoryIndex::new());
        for (at, blob) in blobs.iter().enumerate() {
            match at {
                // Its header alone tells whose it was.
                2 if in_header => assert_absent(&engine, blob),
                2 => assert_eq!(engine.open_blob(BlobName::of(blob)).err().unwrap().code(), ErrorCode::Corrupt),
                _ => assert_holds(&engine, blob),
            }
        }
        assert_eq!(engine.status().corrupt_reads, 1);
        assert_eq!(disk.contents()[0].1, before, "damage is left in place");
        // The same blob can be put again.
        put(&engine, &blobs[2]).await.unwrap();
        assert_holds(&engine, &blobs[2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_no_damage() {
    for seed in 0..25 {
        println!("seed {seed}");
        let (disk, index) = (SimDisk::new(), MemoryIndex::new());
        let engine = open(&disk, &index);
        let first = content(1, 2000);
        put(&engine, &first).await.unwrap();
        // Two extents without a commit.
        let mut abandoned = engine
            .begin_upload(lazaret_protocol::UploadId([3; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client)
            .unwrap();
        abandoned.append(content(seed, 2 * EXTENT + 1)).await.unwrap();
        while disk.contents().iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < 2 * EXTENT {
            tokio::task::yield_now().await;
        }
        let engine = open(&disk.crash(seed), &index.crash(seed));
        assert_holds(&engine, &first);
        assert_eq!((engine.status().corrupt_reads, engine.status().blobs), (0, 1));
    }
}

#[test]
fn a_directory_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let _disk = FsDisk::open(directory.path()).unwrap();
    let refused = FsDisk::open(directory.path()).err().unwrap();
    assert!(refused.to_string().contains("in use by another node"), "{refused}");
}

#[test]
fn a_directory_of_another_node_cluster_or_format_is_refused_by_name() {
    let disk = SimDisk::new();
    drop(open(&disk, &MemoryIndex::new()));
    let open_as = |cluster, node| {
        let mut options = options();
        (options.cluster, options.node) = (cluster, node);
        let (disk, index) = (Arc::new(disk.clone()), Arc::new(MemoryIndex::new()));
        Engine::open(disk, index, environment(1).0, options).err()
    };
    let (cluster, node) = (options().cluster, options().node);
    assert!(open_as(cluster, node).is_none());
    for (cluster, node) in [(ClusterId([8; 16]), node), (cluster, NodeId([8; 16]))] {
        let refused = open_as(cluster, node).unwrap();
        assert!(matches!(refused, EngineError::Foreign { .. }), "{refused}");
        assert!(refused.to_string().contains(&options().node.to_string()), "{refused}");
    }
    let text = String::from_utf8(disk.read_small("node.yml").unwrap().unwrap()).unwrap();
    disk.write_small("node.yml", text.replace("format: 2", "format: 3").as_bytes()).unwrap();
    let refused = open_as(cluster, node).unwrap();
    assert!(refused.to_string().contains("format version 3"), "{refused}");
    disk.write_small("node.yml", b"format: [").unwrap();
    assert!(matches!(open_as(cluster, node), Some(EngineError::Identity(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_not_used_again_even_if_only_the_index_knows_them() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let gone = (SegmentAddress { bucket: 3, id: 41 }, Some(SegmentState { sealed: true, ..SegmentState::default() }));
    index.apply(IndexBatch { segments: vec![gone], ..IndexBatch::default() }).unwrap();
    let engine = open(&disk, &index);
    put(&engine, &content(1, 10)).await.unwrap();
    assert_eq!(disk.segments().unwrap().iter().map(|address| address.id).collect::<Vec<_>>(), [42]);
}

#[test]
fn tombstones_kill_puts_up_to_their_time_in_any_order() {
    let (first, second) = (content(1, 500), content(2, 500));
    for tombstones_first in [true, false] {
        let disk = SimDisk::new();
        let address = SegmentAddress { bucket: (NOON_MS / 3_600_000) as u32, id: 1 };
        let (cluster, node, marker) = (options().cluster, options().node, *b"12345678");
        let header = SegmentHeader { address, cluster, node, marker }.encode();
        let blob = |content: &Bytes| {
            let mut buffer = record_buffer(content.len());
            buffer.extend_from_slice(content);
            PreparedRecord::new(RecordKind::Blob, BlobName::of(content).into(), 0, NOON_MS, 0, Some([9; 16]), buffer)
        };
        let tombstone = |content: &Bytes, time_ms| {
            let name = BlobName::of(content).into();
            PreparedRecord::new(RecordKind::Tombstone, name, 0, time_ms, 0, None, record_buffer(0))
        };
        let blobs = [blob(&first), blob(&second)];
        // The first put is killed, the second one is newer than its tombstone.
        let kills = [tombstone(&first, NOON_MS), tombstone(&second, NOON_MS - 1)];
        let records: Vec<PreparedRecord> = if tombstones_first {
            kills.into_iter().chain(blobs).collect()
        } else {
            blobs.into_iter().chain(kills).collect()
        };
        let mut file = disk.create_segment(address).unwrap();
        let mut offset = 0;
        for piece in std::iter::once(header.to_vec()).chain(records.into_iter().map(|record| record.placed(marker, 0)))
        {
            file.write_at(offset, &[IoSlice::new(&piece)]).unwrap();
            offset += piece.len() as u64;
        }
        let engine = open(&disk, &MemoryIndex::new());
        assert_absent(&engine, &first);
        assert_holds(&engine, &second);
        assert_eq!(engine.status().blobs, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_gone_is_damage_for_its_blobs_alone() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open_directory(directory.path());
    let lost = content(1, 100);
    put(&engine, &lost).await.unwrap();
    engine.close();
    drop(engine);
    for bucket in std::fs::read_dir(directory.path().join("segments")).unwrap() {
        std::fs::remove_dir_all(bucket.unwrap().path()).unwrap();
    }
    let engine = open_directory(directory.path());
    let error = read_all(&engine, BlobName::of(&lost)).unwrap_err();
    assert!(matches!(error, EngineError::Corrupt { .. }), "{error}");
    let kept = content(2, 100);
    put(&engine, &kept).await.unwrap();
    assert_holds(&engine, &kept);
}
