//! What is put is what is read, whole and in ranges, and nothing of it lies on the disk as it came.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use lazaret_protocol::message::{BlobStat, ByteRange, ErrorCode, Locator, PutLocator, Tombstone};
use lazaret_protocol::{BlobName, PlacementKey, StorageType, UploadId};
use lazaret_storage_node::Origin;
use lazaret_storage_node::disk::SimDisk;
use lazaret_storage_node::{Engine, FsDisk, MemoryIndex};

use crate::common::{
    NOON_MS, assert_absent, assert_holds, content, environment, open, open_on, options, put, read, upload,
};

const GROUP: usize = 64 << 10;
const EXTENT: usize = 4 << 20;
const HOUR_MS: u64 = 3_600_000;

fn check_ranges(engine: &Engine, content: &Bytes) {
    let length = content.len() as u64;
    let ranges =
        [(0, 1), (length / 2, length / 2 + 70_000), (length.saturating_sub(1), length + 9), (length / 3, length / 3)];
    for (start, end) in ranges {
        let leaves = read(engine, BlobName::of(content), Some(ByteRange { start, end })).unwrap().unwrap();
        for (offset, bytes) in &leaves {
            assert_eq!(bytes[..], content[*offset as usize..][..bytes.len()], "{length}: {start}..{end}");
        }
        for wanted in [start, end.min(length).saturating_sub(1)].into_iter().filter(|at| start < end && *at < length) {
            let came = |(offset, bytes): &(u64, Vec<u8>)| (*offset..offset + bytes.len() as u64).contains(&wanted);
            assert!(leaves.iter().any(came), "{length}: {start}..{end} lacks {wanted}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_all_sizes_come_back_whole_and_in_ranges() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let lengths = [0, 1, GROUP - 1, GROUP, GROUP + 1, EXTENT - 1, EXTENT, EXTENT + 1, 3 * EXTENT + 7];
    let mut blobs = 0;
    for length in lengths {
        for piece in [1 << 20, 100_003] {
            let streamed = content((length + piece) as u64, length);
            let done = upload(&engine, &streamed, piece).await.unwrap();
            assert_holds(&engine, &streamed);
            check_ranges(&engine, &streamed);
            blobs += u64::from(!done.already_held);
        }
        let whole = content(length as u64 + 77, length);
        match put(&engine, &whole).await {
            Ok(done) => {
                assert_eq!(done.put_time_ms, NOON_MS);
                assert_holds(&engine, &whole);
                check_ranges(&engine, &whole);
                blobs += u64::from(!done.already_held);
            }
            Err(error) => {
                assert!(length > EXTENT, "{error}");
                assert_eq!(error.code(), ErrorCode::BadRequest);
            }
        }
    }
    let status = engine.status();
    assert_eq!(status.blobs, blobs);
    assert_eq!(status.corrupt_reads, 0);
    assert_eq!(status.segment_bytes, disk.contents().iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    // Everything again, from what lies on the disk alone.
    engine.close();
    let again = open(&disk, &MemoryIndex::new());
    assert_eq!(again.status().blobs, blobs);
    for length in lengths {
        assert_holds(&again, &content((length + 100_003) as u64, length));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_several_records_comes_back() {
    // 300 MiB have a tree of 300 KiB, which is one full tree record and a part of another.
    let length = 300 << 20;
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(FsDisk::open(directory.path()).unwrap());
    let engine = open_on(disk, Arc::new(MemoryIndex::new())).unwrap();
    let blob = content(1, length);
    upload(&engine, &blob, 1 << 20).await.unwrap();
    assert_holds(&engine, &blob);
    check_ranges(&engine, &blob);
}

/// Whether any 32 bytes of `content` (at a multiple of 32) lie in a segment as they are.
fn plaintext_on(disk: &SimDisk, content: &Bytes) -> bool {
    let pieces: HashSet<&[u8]> = content.chunks_exact(32).collect();
    disk.contents().iter().any(|(_, bytes)| bytes.windows(32).any(|window| pieces.contains(window)))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_plaintext_reaches_the_disk_unless_it_may() {
    for (storage_type, expected) in [(StorageType::Salt, false), (StorageType::None, true)] {
        let disk = SimDisk::new();
        let mut options = options();
        options.storage_type = storage_type;
        let index = Arc::new(MemoryIndex::new());
        let engine = Engine::open(Arc::new(disk.clone()), index, environment(1).0, options).unwrap();
        for length in [100, 300_000] {
            let whole = content(length as u64, length);
            put(&engine, &whole).await.unwrap();
            assert_eq!(plaintext_on(&disk, &whole), expected, "{storage_type:?} {length}");
            assert_holds(&engine, &whole);
        }
        let streamed = content(3, EXTENT + 1000);
        upload(&engine, &streamed, 1 << 20).await.unwrap();
        assert_eq!(plaintext_on(&disk, &streamed), expected, "{storage_type:?} streamed");
        assert_holds(&engine, &streamed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_it_says_is_refused() {
    let engine = open(&SimDisk::new(), &MemoryIndex::new());
    let (right, wrong) = (content(1, 1000), content(2, 1000));
    let error = engine.put_whole(BlobName::of(&wrong), right.clone(), NOON_MS, Origin::Client).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NameMismatch);
    for (name, length) in [(BlobName::of(&wrong), 1000), (BlobName::of(&right), 999)] {
        let mut upload =
            engine.begin_upload(UploadId([1; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client).unwrap();
        upload.append(right.clone()).await.unwrap();
        assert_eq!(upload.commit(name, length).await.unwrap_err().code(), ErrorCode::NameMismatch);
    }
    let long = content(3, 5 << 20);
    let mut upload = engine.begin_upload(UploadId([1; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client).unwrap();
    upload.append(long.clone()).await.unwrap();
    assert_eq!(upload.commit(BlobName::of(&wrong), 5 << 20).await.unwrap_err().code(), ErrorCode::NameMismatch);
    for blob in [&right, &wrong, &long] {
        assert_absent(&engine, blob);
    }
    for time in [NOON_MS - 301_000, NOON_MS + 301_000, 0, u64::MAX] {
        let error = engine.put_whole(BlobName::of(&right), right.clone(), time, Origin::Client).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ClockSkew);
        assert!(engine.begin_upload(UploadId([1; 16]), PlacementKey([7; 32]), time, Origin::Client).is_err());
    }
    let name = BlobName::of(&right);
    put(&engine, &right).await.unwrap();
    let backwards = engine.open_blob(name).unwrap().unwrap().encode(Some(ByteRange { start: 2, end: 1 }), Vec::new());
    assert_eq!(backwards.unwrap_err().code(), ErrorCode::BadRequest);
    let gone = engine.open_blob(name).unwrap().unwrap().encode(None, &mut [0u8; 10][..]);
    assert_eq!(gone.unwrap_err().code(), ErrorCode::Internal);
    assert_eq!(engine.status().corrupt_reads, 0, "a reader that goes away is not damage");
    engine.close();
    engine.close();
    assert_eq!(put(&engine, &wrong).await.unwrap_err().code(), ErrorCode::Draining);
    assert_holds(&engine, &right);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_is_no_newer_writes_nothing_and_the_newest_put_decides() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let (environment, clock) = environment(1);
    let engine = Engine::open(Arc::new(disk.clone()), Arc::new(index), environment, options()).unwrap();
    let blob = content(1, 5000);
    let name = BlobName::of(&blob);
    let put_at = async |time| engine.put_whole(name, blob.clone(), time, Origin::Client).await.unwrap();
    assert!(!put_at(NOON_MS).await.already_held);
    let bytes = engine.status().segment_bytes;
    let again = put_at(NOON_MS - 60_000).await;
    assert_eq!((again.already_held, again.put_time_ms), (true, NOON_MS));
    assert_eq!(engine.status().segment_bytes, bytes);

    // Within the hour, too: a deletion that this node has not heard of yet may lie between the two.
    assert!(!put_at(NOON_MS + 60_000).await.already_held);
    engine.delete(Tombstone { name, time_ms: NOON_MS + 30_000 }).await.unwrap();
    assert_holds(&engine, &blob);

    clock.advance(HOUR_MS);
    let later = put_at(NOON_MS + HOUR_MS).await;
    assert_eq!((later.already_held, later.put_time_ms), (false, NOON_MS + HOUR_MS));
    assert!(engine.status().segment_bytes > bytes);
    assert_eq!(engine.stat(name).unwrap().held.unwrap().put_time_ms, NOON_MS + HOUR_MS);
    assert_eq!(engine.status().blobs, 1);

    // As a streamed upload, too.
    let long = content(2, EXTENT + 5);
    let time = NOON_MS + HOUR_MS;
    for expected in [false, true] {
        let mut upload = engine.begin_upload(UploadId([7; 16]), PlacementKey([7; 32]), time, Origin::Client).unwrap();
        upload.append(long.clone()).await.unwrap();
        let done = upload.commit(BlobName::of(&long), long.len() as u64).await.unwrap();
        assert_eq!(done.already_held, expected);
    }
    assert_holds(&engine, &long);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locator_stands_beside_a_blob() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let blob = content(1, 100);
    let name = BlobName::of(&blob);
    assert_eq!(engine.stat(name).unwrap(), BlobStat { held: None, locator: None });
    let locator = Locator { placement: PlacementKey([5; 32]), length: 12345 };
    engine.put_locator(PutLocator { name, locator, put_time_ms: NOON_MS }, Origin::Client).await.unwrap();
    assert_absent(&engine, &blob);
    assert_eq!(engine.stat(name).unwrap().locator, Some(locator));
    assert_eq!(engine.stat(name).unwrap().held, None);
    put(&engine, &blob).await.unwrap();
    let syncs = engine.status().syncs;
    engine.put_locator(PutLocator { name, locator, put_time_ms: NOON_MS }, Origin::Client).await.unwrap();
    assert_eq!(engine.status().syncs, syncs, "a locator that stands is not written again");
    engine.close();
    let again = open(&disk, &MemoryIndex::new());
    let stat = again.stat(name).unwrap();
    assert_eq!((stat.locator, stat.held.unwrap().length), (Some(locator), 100));
}

/// Lets each of up to some thousand tasks run until it waits for the writer. The runtime polls 61 of them a turn.
async fn all_wait() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn puts_that_wait_share_one_sync_and_a_twin_waits_for_the_first() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let (engine, mut pump) =
        Engine::open_pumped(Arc::new(disk.clone()), Arc::new(index), environment(1).0, options()).unwrap();
    let mut puts = tokio::task::JoinSet::new();
    for at in 0..200 {
        let engine = engine.clone();
        // The last ten are put twice.
        puts.spawn(async move { put(&engine, &content(at % 190, 1000)).await.unwrap() });
    }
    all_wait().await;
    assert!(puts.try_join_next().is_none(), "acknowledged before anything was written");
    assert_eq!(pump.step(), 200);
    let mut held = 0;
    while let Some(done) = puts.join_next().await {
        held += usize::from(done.unwrap().already_held);
    }
    assert_eq!((disk.syncs(), held), (1, 10));
    assert_eq!(engine.status().puts, 200);

    // A twin of a put that fails is not acknowledged either.
    disk.fail_syncs(1);
    let mut twins = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let engine = engine.clone();
        twins.spawn(async move { put(&engine, &content(999, 1000)).await });
    }
    all_wait().await;
    assert_eq!(pump.step(), 2);
    while let Some(refused) = twins.join_next().await {
        assert_eq!(refused.unwrap().unwrap_err().code(), ErrorCode::Internal);
    }
    assert_absent(&engine, &content(999, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_concurrent_puts_take_far_fewer_syncs_of_a_real_disk() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(FsDisk::open(directory.path()).unwrap());
    let engine = open_on(disk, Arc::new(MemoryIndex::new())).unwrap();
    let mut puts = tokio::task::JoinSet::new();
    for at in 0..200 {
        let engine = engine.clone();
        puts.spawn(async move { put(&engine, &content(at, 2000)).await.unwrap() });
    }
    while let Some(done) = puts.join_next().await {
        assert!(!done.unwrap().already_held);
    }
    let syncs = engine.status().syncs;
    println!("200 concurrent puts took {syncs} syncs");
    assert!(syncs < 100, "{syncs}");
}
