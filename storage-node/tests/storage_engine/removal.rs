//! What makes blobs go and what keeps them, one promise at a time: retention, deletion, holds, giving up copies.

use std::sync::Arc;

use bytes::Bytes;
use lazaret_protocol::limits::BUCKET_MS;
use lazaret_protocol::message::{ErrorCode, Hold, Locator, PutLocator, Tombstone};
use lazaret_protocol::{BlobName, PlacementKey, UploadId};
use lazaret_storage_node::disk::SimDisk;
use lazaret_storage_node::record::{HELD_BUCKET, bucket_of};
use lazaret_storage_node::{Disk, Engine, EngineError, FsDisk, MemoryIndex, Origin, RocksIndex};

use crate::common::{
    NOON_MS, assert_absent, assert_holds, content, environment, open, open_on, options, put, read_all,
};

const EXTENT: usize = 4 << 20;
const NOON: u32 = (NOON_MS / BUCKET_MS) as u32;

async fn put_at(engine: &Engine, content: &Bytes, put_time_ms: u64) -> Result<(), EngineError> {
    engine.put_whole(BlobName::of(content), content.clone(), put_time_ms, Origin::Peer).await.map(|_| ())
}

async fn upload_at(engine: &Engine, content: &Bytes, put_time_ms: u64, id: u8) -> Result<(), EngineError> {
    let placement = PlacementKey(BlobName::of(&content[..EXTENT]).0);
    let mut upload = engine.begin_upload(UploadId([id; 16]), placement, put_time_ms, Origin::Peer)?;
    for piece in content.chunks(1 << 20) {
        upload.append(content.slice_ref(piece)).await?;
    }
    upload.commit(BlobName::of(content), content.len() as u64).await.map(|_| ())
}

async fn hold(engine: &Engine, content: &Bytes, time_ms: u64, placed: bool) {
    engine.hold(Hold { name: BlobName::of(content), time_ms, placed, from_bucket: None }).await.unwrap();
}

fn buckets(disk: &SimDisk) -> Vec<u32> {
    let mut buckets: Vec<u32> = disk.contents().iter().map(|(address, _)| address.bucket).collect();
    buckets.dedup();
    buckets
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expired_is_gone_with_its_segments_and_stays_gone() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let blobs: Vec<Bytes> = (0..6).map(|at| content(at, 1000 + at as usize)).collect();
    for (at, blob) in blobs.iter().enumerate() {
        put_at(&engine, blob, NOON_MS + at as u64 / 2 * BUCKET_MS).await.unwrap();
    }
    let name = BlobName([9; 32]);
    let locator = Locator { placement: PlacementKey([5; 32]), length: 7 };
    engine.put_locator(PutLocator { name, locator, put_time_ms: NOON_MS }, Origin::Peer).await.unwrap();
    let preview = engine.expirable(NOON + 1);
    assert_eq!((preview.blobs, preview.bytes, preview.before_ms), (2, 2001, u64::from(NOON + 1) * BUCKET_MS));
    assert_eq!(buckets(&disk), [NOON, NOON + 1, NOON + 2], "a preview removes nothing");
    assert_eq!(engine.expire(NOON + 1).unwrap(), preview);
    assert_eq!(buckets(&disk), [NOON + 1, NOON + 2]);
    let bytes: u64 = disk.contents().iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let report = engine.report();
    assert_eq!((report.blobs, report.segments, report.segment_bytes, report.dead_bytes), (4, 2, bytes, 0));

    let refused = put_at(&engine, &blobs[0], NOON_MS).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Expired, "{refused}");
    let late = PutLocator { name, locator, put_time_ms: NOON_MS };
    assert_eq!(engine.put_locator(late, Origin::Peer).await.unwrap_err().code(), ErrorCode::Expired);
    let check = |engine: &Engine| {
        blobs[..2].iter().for_each(|blob| assert_absent(engine, blob));
        blobs[2..].iter().for_each(|blob| assert_holds(engine, blob));
        assert_eq!((engine.stat(name).unwrap().locator, engine.horizon()), (None, NOON + 1));
        assert_eq!(engine.entries(None, None, 99).unwrap().len(), 4);
    };
    check(&engine);
    // A longer setting brings nothing back, and neither does a crash that loses the index.
    assert_eq!(engine.expire(NOON - 5).unwrap().blobs, 0);
    check(&engine);
    let disk = disk.crash(3);
    for index in [index.crash(3), MemoryIndex::new()] {
        let engine = open(&disk, &index);
        check(&engine);
        // A put in a later hour lives on.
        engine.close();
    }
    let engine = open(&disk, &MemoryIndex::new());
    put_at(&engine, &blobs[0], NOON_MS + 5 * BUCKET_MS).await.unwrap();
    put_at(&engine, &blobs[2], NOON_MS + 5 * BUCKET_MS).await.unwrap();
    assert_eq!(engine.expire(NOON + 4).unwrap().blobs, 3);
    assert_holds(&engine, &blobs[0]);
    assert_holds(&engine, &blobs[2]);
    assert_absent(&engine, &blobs[3]);
    assert_eq!(engine.status().corrupt_reads, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_waits_for_the_readers_that_began_before() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let blob = content(1, 300_000);
    put(&engine, &blob).await.unwrap();
    let [first, second] = [0, 1].map(|_| engine.open_blob(BlobName::of(&blob)).unwrap().unwrap());
    engine.expire(NOON + 1).unwrap();
    assert_absent(&engine, &blob);
    drop(first);
    assert_eq!(buckets(&disk), [NOON], "a reader is still in it");
    let mut encoded = Vec::new();
    second.encode(None, &mut encoded).unwrap();
    assert!(encoded.len() > 300_000);
    drop(second);
    assert!(buckets(&disk).is_empty());
    assert_eq!((engine.report().segments, engine.report().segment_bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_kills_every_put_up_to_its_time_whatever_comes_first() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let [first, second, held] = [1, 2, 3].map(|at| content(at, 5000));
    let kill = async |blob: &Bytes, time_ms| {
        engine.delete(Tombstone { name: BlobName::of(blob), time_ms }).await.unwrap();
    };
    put_at(&engine, &first, NOON_MS).await.unwrap();
    put_at(&engine, &held, NOON_MS).await.unwrap();
    hold(&engine, &held, NOON_MS + 1, true).await;
    for blob in [&first, &second, &held] {
        kill(blob, NOON_MS + 5).await;
        assert_absent(&engine, blob);
    }
    assert!(engine.report().dead_bytes >= 3 * 5000, "the held one lies twice: {:?}", engine.report());
    let bytes = engine.report().segment_bytes;
    for blob in [&first, &second, &held] {
        put_at(&engine, blob, NOON_MS + 5).await.unwrap();
        assert_absent(&engine, blob);
    }
    assert_eq!(engine.report().segment_bytes, bytes, "what is dead on arrival is not written");
    for engine in [engine, open(&disk.crash(1), &MemoryIndex::new())] {
        assert_eq!(engine.entry(BlobName::of(&second)).unwrap().unwrap().killed_until_ms, Some(NOON_MS + 5));
        [&first, &second, &held].iter().for_each(|blob| assert_absent(&engine, blob));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_goes_with_its_bucket_and_nothing_it_killed_returns() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let blob = content(1, 5000);
    let name = BlobName::of(&blob);
    put_at(&engine, &blob, NOON_MS).await.unwrap();
    engine.delete(Tombstone { name, time_ms: NOON_MS + BUCKET_MS }).await.unwrap();
    engine.expire(NOON + 1).unwrap();
    assert!(engine.entry(name).unwrap().is_some());
    engine.expire(NOON + 2).unwrap();
    assert_eq!(engine.entry(name).unwrap(), None);
    assert!(disk.contents().is_empty(), "the tombstone's segment went as well");
    // One that comes late has nothing left to kill.
    engine.delete(Tombstone { name, time_ms: NOON_MS }).await.unwrap();
    assert!(disk.contents().is_empty());
    assert_eq!(put_at(&engine, &blob, NOON_MS).await.unwrap_err().code(), ErrorCode::Expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_outlives_its_bucket_and_released_it_does_not() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let whole = content(1, 5000);
    let early = content(2, 6000);
    let long = content(3, 2 * EXTENT + 1000);
    let long_early = content(4, EXTENT + 1000);
    let other = content(5, 700);
    // Two are put before their holds, two after.
    hold(&engine, &early, NOON_MS, true).await;
    hold(&engine, &long_early, NOON_MS, true).await;
    for blob in [&whole, &early, &other] {
        put_at(&engine, blob, NOON_MS).await.unwrap();
    }
    upload_at(&engine, &long, NOON_MS, 1).await.unwrap();
    upload_at(&engine, &long_early, NOON_MS, 2).await.unwrap();
    let name = BlobName::of(&whole);
    let locator = Locator { placement: PlacementKey([5; 32]), length: 7 };
    engine.put_locator(PutLocator { name, locator, put_time_ms: NOON_MS }, Origin::Peer).await.unwrap();
    hold(&engine, &whole, NOON_MS + 1, true).await;
    hold(&engine, &long, NOON_MS + 1, true).await;
    let held = [&whole, &early, &long, &long_early];
    assert_eq!(engine.expirable(NOON + 9).blobs, 1);
    assert_eq!(engine.expire(NOON + 1).unwrap().blobs, 1);
    assert_eq!(buckets(&disk), [HELD_BUCKET]);
    let (mut disk, kept) = (disk.crash(1), index.crash(5));
    for index in [kept, MemoryIndex::new()] {
        disk = disk.crash(2);
        let engine = &open(&disk, &index);
        assert_absent(engine, &other);
        for blob in held {
            assert_holds(engine, blob);
            let entry = engine.entry(BlobName::of(blob)).unwrap().unwrap();
            assert!(entry.hold.unwrap().placed);
            assert_eq!(entry.blob.unwrap().put_time_ms, NOON_MS);
        }
        assert_eq!(engine.stat(name).unwrap().locator, Some(locator));
        assert_eq!(engine.status().corrupt_reads, 0);
    }
    disk = disk.crash(3);
    let engine = open(&disk, &MemoryIndex::new());
    // A peer may still bring a held blob of an hour that has expired, of whatever length.
    let late = content(6, EXTENT + 10);
    hold(&engine, &whole, NOON_MS + 1, true).await;
    assert_eq!(upload_at(&engine, &late, NOON_MS, 3).await.unwrap_err().code(), ErrorCode::Expired);
    upload_at(&engine, &long, NOON_MS, 4).await.unwrap();

    for blob in held {
        hold(&engine, blob, NOON_MS + 2, false).await;
        assert_absent(&engine, blob);
        // A hold that comes too late brings nothing back, not even to an index begun anew.
        hold(&engine, blob, NOON_MS + 3, true).await;
        assert_absent(&engine, blob);
    }
    let engine = open(&disk.crash(2), &MemoryIndex::new());
    held.iter().for_each(|blob| assert_absent(&engine, blob));
    assert_eq!((engine.status().blobs, engine.expirable(HELD_BUCKET).blobs), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_hold_or_release_that_comes_late_changes_nothing() {
    let engine = open(&SimDisk::new(), &MemoryIndex::new());
    let blob = content(1, 100);
    put(&engine, &blob).await.unwrap();
    let placed = || engine.entry(BlobName::of(&blob)).unwrap().unwrap().hold.unwrap().placed;
    hold(&engine, &blob, NOON_MS + 5, true).await;
    hold(&engine, &blob, NOON_MS + 4, false).await;
    assert!(placed());
    hold(&engine, &blob, NOON_MS + 6, false).await;
    hold(&engine, &blob, NOON_MS + 5, true).await;
    assert!(!placed());
    assert_holds(&engine, &blob);
    engine.expire(NOON + 1).unwrap();
    assert_absent(&engine, &blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_given_up_only_if_it_is_still_that_put_and_not_held() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let engine = open(&disk, &index);
    let [blob, held] = [1, 2].map(|at| content(at, 5000));
    for blob in [&blob, &held] {
        put_at(&engine, blob, NOON_MS).await.unwrap();
    }
    hold(&engine, &held, NOON_MS, true).await;
    let name = BlobName::of(&blob);
    assert!(!engine.forget(name, NOON_MS - 1).await.unwrap());
    assert!(!engine.forget(BlobName::of(&held), NOON_MS).await.unwrap());
    assert_holds(&engine, &blob);
    let dead = engine.report().dead_bytes;
    assert!(engine.forget(name, NOON_MS).await.unwrap());
    assert!(!engine.forget(name, NOON_MS).await.unwrap());
    assert_absent(&engine, &blob);
    assert_eq!(engine.report().dead_bytes - dead, 5104);
    assert_eq!((engine.status().blobs, engine.entry(name).unwrap()), (1, None));
    put_at(&engine, &blob, NOON_MS).await.unwrap();
    assert_holds(&engine, &blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_and_holds_are_taken_below_the_reserve_down_to_another_one() {
    const MIB: u64 = 1 << 20;
    let disk = SimDisk::new();
    disk.set_total_bytes(100 * MIB);
    let mut options = options();
    (options.reserve_bytes, options.urgent_reserve_bytes) = (40 * MIB, 10 * MIB);
    let index = Arc::new(MemoryIndex::new());
    let engine = Engine::open(Arc::new(disk.clone()), index, environment(1).0, options).unwrap();
    let [first, second] = [1, 2].map(|at| content(at, 5000));
    put(&engine, &first).await.unwrap();
    put(&engine, &second).await.unwrap();
    disk.set_total_bytes(30 * MIB);
    let kill = |blob: &Bytes| engine.delete(Tombstone { name: BlobName::of(blob), time_ms: NOON_MS });
    assert_eq!(put(&engine, &content(3, 10)).await.unwrap_err().code(), ErrorCode::Full);
    kill(&first).await.unwrap();
    assert_absent(&engine, &first);
    assert!(engine.status().full);
    disk.set_total_bytes(10 * MIB);
    assert_eq!(kill(&second).await.unwrap_err().code(), ErrorCode::Full);
    assert_holds(&engine, &second);
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_that_take_turns_keep_their_segments() {
    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let (environment, clock) = environment(1);
    let engine = Engine::open(Arc::new(disk.clone()), Arc::new(index.clone()), environment, options()).unwrap();
    let blobs: Vec<Bytes> = (0..600).map(|at| content(at, 50)).collect();
    for (at, blob) in blobs.iter().enumerate() {
        put_at(&engine, blob, NOON_MS - at as u64 % 200 * BUCKET_MS).await.unwrap();
    }
    assert_eq!(disk.contents().len(), 200);
    assert_eq!(engine.sealed_segments().unwrap(), []);
    let engine_after_kill = open(&disk.crash(1), &index.crash(1));
    blobs.iter().for_each(|blob| assert_holds(&engine_after_kill, blob));

    let (disk, index) = (SimDisk::new(), MemoryIndex::new());
    let (environment, _) = crate::common::environment(2);
    let environment = lazaret_node_client::environment::Environment { clock: clock.clone(), ..environment };
    let engine = Engine::open(Arc::new(disk.clone()), Arc::new(index), environment, options()).unwrap();
    for (at, blob) in blobs.iter().enumerate() {
        put_at(&engine, blob, NOON_MS - at as u64 % 100 * BUCKET_MS).await.unwrap();
    }
    clock.advance(2 * BUCKET_MS);
    put_at(&engine, &content(1000, 10), NOON_MS + BUCKET_MS).await.unwrap();
    assert_eq!(engine.sealed_segments().unwrap().len(), 100, "nothing was written to them for an hour");
    blobs.iter().for_each(|blob| assert_holds(&engine, blob));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_disk_and_index_expire_and_say_the_same_when_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let disk = Arc::new(FsDisk::open(directory.path()).unwrap());
        open_on(disk, Arc::new(RocksIndex::open(directory.path().join("index")).unwrap())).unwrap()
    };
    let engine = open();
    let blobs: Vec<Bytes> = (0..300).map(|at| content(at, 500)).collect();
    for (at, blob) in blobs.iter().enumerate() {
        put_at(&engine, blob, NOON_MS + at as u64 % 3 * BUCKET_MS).await.unwrap();
    }
    hold(&engine, &blobs[0], NOON_MS, true).await;
    engine.delete(Tombstone { name: BlobName::of(&blobs[1]), time_ms: NOON_MS + BUCKET_MS }).await.unwrap();
    assert_eq!(engine.expire(NOON + 1).unwrap().blobs, 99);
    let check = |engine: &Engine| {
        for (at, blob) in blobs.iter().enumerate() {
            match at {
                0 => assert_holds(engine, blob),
                1 => assert_absent(engine, blob),
                _ if at % 3 == 0 => assert_absent(engine, blob),
                _ => assert_holds(engine, blob),
            }
        }
        assert_eq!((engine.status().blobs, engine.status().corrupt_reads), (200, 0));
        assert_eq!(engine.expirable(NOON + 2).blobs, 99);
    };
    check(&engine);
    let buckets = || std::fs::read_dir(directory.path().join("segments")).unwrap().count();
    assert_eq!(buckets(), 3, "two hours, and what is held");
    engine.close();
    drop(engine);
    let engine = open();
    check(&engine);
    engine.close();
    drop(engine);
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    let engine = open();
    check(&engine);
    assert!(read_all(&engine, BlobName::of(&blobs[0])).unwrap().is_some());
    assert_eq!(bucket_of(NOON_MS), NOON);
    assert!(Disk::segments(&SimDisk::new()).unwrap().is_empty());
}
