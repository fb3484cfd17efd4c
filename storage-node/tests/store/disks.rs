//! Several disks: what is spread over them, and what happens when one fails, is missing, comes back or is replaced.

use bytes::Bytes;
use lazaret_protocol::message::{ErrorCode, Hold, Locator, PutLocator, Tombstone};
use lazaret_protocol::{BlobName, ClusterId, PlacementKey, UploadId};
use lazaret_storage_node::store::{DiskSource, Store};
use lazaret_storage_node::{Engine, EngineError, Origin};
use tokio::task::JoinSet;

use crate::common::{self, NOON_MS, Seeded, content, environment, options};
use crate::support::{
    Simulated, assert_absent, assert_holds, missing, open, open_directories, open_simulated, put, read_all,
};

const HOUR_MS: u64 = 3_600_000;
const BUCKET: u32 = 500_000;

fn blobs_of(store: &Store) -> Vec<u64> {
    store.report().iter().map(|disk| disk.blobs).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_spread_over_all_disks_and_are_found_whatever_their_order() {
    let [a, b, c] = ["a", "b", "c"].map(Simulated::new);
    let store = open_simulated(&[&a, &b, &c], 1);
    let blobs: Vec<Bytes> = (0..300).map(|at| content(at, 1 + at as usize)).collect();
    for blob in &blobs {
        assert!(!put(&store, blob).await.unwrap().already_held);
    }
    let long = content(1000, (4 << 20) + 5);
    let mut upload = store.begin_upload(UploadId([1; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client).unwrap();
    upload.append(long.clone()).await.unwrap();
    upload.commit(BlobName::of(&long), long.len() as u64).await.unwrap();
    let (located, locator) = (BlobName([77; 32]), Locator { placement: PlacementKey([5; 32]), length: 1 << 33 });
    store.put_locator(PutLocator { name: located, locator, put_time_ms: NOON_MS }, Origin::Client).await.unwrap();

    let spread = blobs_of(&store);
    assert!(spread.iter().all(|&blobs| blobs > 60), "{spread:?}");
    assert_eq!(store.status().blobs, 301);
    for blob in &blobs {
        assert!(put(&store, blob).await.unwrap().already_held);
    }
    assert_eq!(blobs_of(&store), spread, "what lies on a disk is not written to another");

    // The pages of all disks, merged in the order of names.
    let mut names: Vec<BlobName> =
        blobs.iter().chain([&long]).map(|blob| BlobName::of(blob)).chain([located]).collect();
    names.sort_unstable();
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = store.entries(after, None, 7).unwrap();
        seen.extend(page.iter().map(|(name, _)| *name));
        match page.last() {
            Some((last, _)) if page.len() == 7 => after = Some(*last),
            _ => break,
        }
    }
    assert_eq!(seen, names);

    store.close();
    let store = open_simulated(&[&c, &a, &b], 2);
    blobs.iter().chain([&long]).for_each(|blob| assert_holds(&store, blob));
    assert_eq!(store.stat(located).unwrap().locator, Some(locator));
    assert_eq!(blobs_of(&store), [spread[2], spread[0], spread[1]]);
    // A name goes where it went, whatever the order.
    for blob in blobs.iter().take(50) {
        assert!(store.put_whole(BlobName::of(blob), blob.clone(), NOON_MS, Origin::Client).await.unwrap().already_held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_under_load_goes_out_of_use_and_no_put_fails() {
    for seed in 0..10 {
        println!("seed {seed}");
        let disks = ["a", "b", "c"].map(Simulated::new);
        let store = open_simulated(&disks.iter().collect::<Vec<_>>(), seed);
        let mut random = Seeded(seed);
        let victim = random.below(3) as usize;
        let mut acknowledged: Vec<Bytes> = (0..60).map(|at| content(seed << 32 | (5000 + at), 500)).collect();
        for blob in &acknowledged {
            put(&store, blob).await.unwrap();
        }
        let mut puts = JoinSet::new();
        for at in 0..400 {
            if at == 200 {
                disks[victim].disk.fail_syncs(u32::MAX);
            }
            let (store, blob) = (store.clone(), content(seed << 32 | at, 500));
            puts.spawn(async move { put(&store, &blob).await.map(|_| blob) });
            if random.below(3) == 0 {
                tokio::task::yield_now().await;
            }
        }
        acknowledged.extend(puts.join_all().await.into_iter().map(|done| done.unwrap()));
        // Whatever was in flight then, the disk is out of use after a few more.
        for at in 0..40 {
            put(&store, &content(seed << 32 | (1000 + at), 500)).await.unwrap();
        }
        let report = store.report();
        for (at, disk) in report.iter().enumerate() {
            assert_eq!(disk.failed.is_some(), at == victim, "{report:?}");
        }
        assert!(report[victim].failed.as_ref().unwrap().contains("sync"), "{report:?}");
        acknowledged.iter().for_each(|blob| assert_holds(&store, blob));

        // Then nothing of it can be read any more either: what lay there is missing, and the rest goes on.
        let on_victim = report[victim].blobs;
        disks[victim].disk.cut_power_after(0);
        let held = acknowledged.iter().filter(|blob| read_all(&store, BlobName::of(blob)).unwrap().is_some()).count();
        assert!(held < acknowledged.len() && held + on_victim as usize >= acknowledged.len(), "{held} and {on_victim}");
        store.entries(None, None, 1000).unwrap();
        // What is missing can be put again, on the disks that are left.
        for blob in &acknowledged {
            put(&store, blob).await.unwrap();
        }

        // After a power failure of the whole node, without that disk.
        let mut survivors: Vec<DiskSource> = Vec::new();
        for (at, disk) in disks.iter().enumerate() {
            survivors.push(if at == victim { missing("gone") } else { disk.crash(seed).source() });
        }
        let store = open(survivors, seed + 100).unwrap();
        acknowledged.iter().for_each(|blob| assert_holds(&store, blob));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_sync_costs_no_disk() {
    let (a, b) = (Simulated::new("a"), Simulated::new("b"));
    let store = open_simulated(&[&a, &b], 1);
    for at in 0..60 {
        if at % 5 == 0 {
            a.disk.fail_syncs(1);
        }
        put(&store, &content(at, 100)).await.unwrap();
    }
    assert!(store.report().iter().all(|disk| disk.failed.is_none()), "{:?}", store.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_disk_in_use_nothing_is_acknowledged() {
    let (a, b) = (Simulated::new("a"), Simulated::new("b"));
    let store = open_simulated(&[&a, &b], 1);
    put(&store, &content(1, 100)).await.unwrap();
    a.disk.fail_syncs(u32::MAX);
    b.disk.fail_syncs(u32::MAX);
    let mut last = None;
    for at in 10..30 {
        last = put(&store, &content(at, 100)).await.err();
        assert!(last.is_some());
    }
    let last = last.unwrap();
    assert!(
        matches!(&last, EngineError::NoDisk { reasons } if reasons.contains("a: ") && reasons.contains("b: ")),
        "{last}"
    );
    let name = BlobName::of(&content(1, 100));
    assert!(store.delete(Tombstone { name, time_ms: NOON_MS }).await.is_err());
    assert!(store.begin_upload(UploadId([1; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client).is_err());
    assert!(store.status().full, "a node without a disk takes nothing");
    assert_holds(&store, &content(1, 100));
    store.close();
    assert_eq!(put(&store, &content(50, 100)).await.unwrap_err().code(), ErrorCode::Draining);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_disk_does_not_stop_the_node_and_all_missing_do() {
    let a = Simulated::new("a");
    let store = open(vec![a.source(), missing("b")], 1).unwrap();
    put(&store, &content(1, 100)).await.unwrap();
    assert_holds(&store, &content(1, 100));
    let report = store.report();
    assert_eq!((report[0].failed.is_none(), report[1].path.as_str()), (true, "b"));
    assert!(report[1].failed.as_ref().unwrap().contains("missing disk"), "{report:?}");
    assert!(matches!(open(vec![missing("a"), missing("b")], 1), Err(EngineError::Disk(_))));

    // In directories: a mount point that is not there is not made.
    let root = tempfile::tempdir().unwrap();
    let (data, mount) = (root.path().join("data"), root.path().join("mount"));
    let sources = || vec![DiskSource::directory(&data, false), DiskSource::directory(&mount, true)];
    let store = open(sources(), 1).unwrap();
    assert!(store.report()[1].failed.is_some() && !mount.exists());
    store.close();
    drop(store);
    std::fs::create_dir(&mount).unwrap();
    assert!(open(sources(), 2).unwrap().report().iter().all(|disk| disk.failed.is_none()));
}

#[test]
fn other_peoples_disks_copies_and_disks_in_use_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let [one, two, copy] = ["one", "two", "copy"].map(|name| root.path().join(name));
    let sources = |roots: &[&std::path::PathBuf]| -> Vec<DiskSource> {
        roots.iter().map(|root| DiskSource::directory(root.as_path(), false)).collect()
    };
    let store = open(sources(&[&one, &two]), 1).unwrap();
    let Err(refused) = open(sources(&[&copy, &two]), 2) else { panic!("a disk in use was taken") };
    assert!(refused.to_string().contains("in use by another node"), "{refused}");
    store.close();
    drop(store);

    std::fs::copy(one.join("node.yml"), copy.join("node.yml")).unwrap();
    let Err(refused) = open(sources(&[&one, &copy]), 3) else { panic!("a copy was taken") };
    assert!(refused.to_string().contains("the same disk"), "{refused}");

    let mut other = options();
    other.cluster = ClusterId([8; 16]);
    let Err(refused) = Store::open(sources(&[&two]), environment(1).0, other) else {
        panic!("a foreign disk was taken")
    };
    assert!(matches!(&refused, EngineError::Foreign { .. }) && refused.to_string().contains("two"), "{refused}");
    let text = std::fs::read_to_string(two.join("node.yml")).unwrap();
    std::fs::write(two.join("node.yml"), text.replace("format: 2", "format: 9")).unwrap();
    let Err(refused) = open(sources(&[&one, &two]), 4) else { panic!("another format was taken") };
    assert!(refused.to_string().contains("format version 9"), "{refused}");
    std::fs::write(two.join("node.yml"), "rotten").unwrap();
    let store = open(sources(&[&one, &two]), 5).unwrap();
    assert!(store.report()[1].failed.as_ref().unwrap().contains("node.yml"), "a broken disk is no refusal");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_while_a_disk_was_away_does_not_come_back_with_it() {
    let (a, b) = (Simulated::new("a"), Simulated::new("b"));
    let store = open_simulated(&[&a, &b], 1);
    let blobs: Vec<Bytes> = (0..20).map(|at| content(at, 100)).collect();
    for blob in &blobs {
        put(&store, blob).await.unwrap();
    }
    store.agree().await.unwrap();
    store.close();
    let away = (b.kill(), blobs_of(&store)[1]);
    assert!(away.1 > 3);
    let a = a.kill();
    let store = open(vec![a.source(), missing("b")], 2).unwrap();
    for blob in &blobs {
        store.delete(Tombstone { name: BlobName::of(blob), time_ms: NOON_MS }).await.unwrap();
    }
    store.close();

    let (a, b) = (a.kill(), away.0);
    let store = open_simulated(&[&a, &b], 3);
    assert_eq!(blobs_of(&store)[1], away.1, "the disk itself knows nothing of it yet");
    blobs.iter().for_each(|blob| assert_absent(&store, blob));
    assert!(store.entries(None, None, 100).unwrap().iter().all(|(_, entry)| entry.blob.is_none()));
    store.agree().await.unwrap();
    assert_eq!(blobs_of(&store), [0, 0]);
    store.close();
    // Now that the disk knows, it needs no other to say so.
    let store = open_simulated(&[&b.kill()], 4);
    blobs.iter().for_each(|blob| assert_absent(&store, blob));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_held_expires_on_a_disk_that_was_away_and_what_expired_meanwhile_stays_so() {
    let (a, b) = (Simulated::new("a"), Simulated::new("b"));
    let store = open_simulated(&[&a, &b], 1);
    let blobs: Vec<Bytes> = (0..20).map(|at| content(at, 100)).collect();
    for blob in &blobs {
        put(&store, blob).await.unwrap();
    }
    store.agree().await.unwrap();
    store.close();
    let (a, b) = (a.kill(), b.kill());
    let on_a: Vec<bool> = {
        let only_a = open_simulated(&[&a], 9);
        only_a.close();
        blobs.iter().map(|blob| only_a.holds(BlobName::of(blob)).unwrap()).collect()
    };
    let a = a.kill();
    let store = open(vec![a.source(), missing("b")], 2).unwrap();
    // Half of the blobs are held; nobody asks on which disk they are.
    for blob in blobs.iter().step_by(2) {
        store.hold(Hold { name: BlobName::of(blob), time_ms: NOON_MS, placed: true, from_bucket: None }).await.unwrap();
    }
    store.close();

    let (a, b) = (a.kill(), b.kill());
    let store = open_simulated(&[&a, &b], 3);
    store.expire(BUCKET + 1).await.unwrap();
    assert_eq!(store.horizon(), BUCKET + 1);
    for (at, blob) in blobs.iter().enumerate() {
        if at % 2 == 0 { assert_holds(&store, blob) } else { assert_absent(&store, blob) }
    }
    store.close();

    // And the other way round: a bucket expires while a disk is away.
    let (a, b) = (a.kill(), b.kill());
    let late = content(100, 100);
    let (environment, clock) = environment(4);
    clock.advance(2 * HOUR_MS);
    let store = Store::open(vec![a.source(), b.source()], environment.clone(), options()).unwrap();
    let time = NOON_MS + HOUR_MS;
    for at in 100..120 {
        let blob = content(at, 100);
        store.put_whole(BlobName::of(&blob), blob, time, Origin::Peer).await.unwrap();
    }
    store.close();
    let (a, b) = (a.kill(), b.kill());
    let store = Store::open(vec![a.source(), missing("b")], environment.clone(), options()).unwrap();
    store.expire(BUCKET + 2).await.unwrap();
    store.close();
    let (a, b) = (a.kill(), b.kill());
    let store = Store::open(vec![a.source(), b.source()], environment, options()).unwrap();
    assert_eq!(store.horizon(), BUCKET + 2);
    for at in 100..120 {
        assert_absent(&store, &content(at, 100));
    }
    let refused = store.put_whole(BlobName::of(&late), late, time, Origin::Peer).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Expired);
    store.agree().await.unwrap();
    store.close();
    let alone = open_simulated(&[&b.kill()], 6);
    assert_eq!(alone.horizon(), BUCKET + 2, "the disk that was away has been told");
    let held = blobs.iter().enumerate().filter(|(at, _)| at % 2 == 0 && !on_a[*at]);
    assert!(held.clone().count() > 2);
    held.for_each(|(_, blob)| assert_holds(&alone, blob));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_disk_begins_empty_and_is_told_what_it_must_know() {
    let (a, b) = (Simulated::new("a"), Simulated::new("b"));
    let store = open_simulated(&[&a, &b], 1);
    let held = content(7, 100);
    store.hold(Hold { name: BlobName::of(&held), time_ms: NOON_MS, placed: true, from_bucket: None }).await.unwrap();
    let killed = content(8, 100);
    store.delete(Tombstone { name: BlobName::of(&killed), time_ms: NOON_MS }).await.unwrap();
    store.close();
    let fresh = Simulated::new("b");
    let store = open_simulated(&[&a.kill(), &fresh], 2);
    store.agree().await.unwrap();
    for blob in [&held, &killed] {
        put(&store, blob).await.unwrap();
    }
    store.close();
    let alone = open_simulated(&[&fresh.kill()], 3);
    let entries = alone.entries(None, None, 10).unwrap();
    assert_eq!(entries.iter().filter(|(_, entry)| entry.hold.is_some_and(|hold| hold.placed)).count(), 1);
    assert_eq!(entries.iter().filter(|(_, entry)| entry.killed_until_ms == Some(NOON_MS)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_puts_on_two_disks_the_newest_counts_and_a_damaged_copy_is_passed_over() {
    let (a, b) = (Simulated::new("a"), Simulated::new("b"));
    let blob = content(1, 3000);
    let name = BlobName::of(&blob);
    for (disk, time, seed) in [(&a, NOON_MS - HOUR_MS, 11), (&b, NOON_MS, 12)] {
        let store = open_simulated(&[disk], seed);
        store.put_whole(name, blob.clone(), time, Origin::Peer).await.unwrap();
        store.close();
    }
    let (a, b) = (a.kill(), b.kill());
    let store = open_simulated(&[&a, &b], 1);
    assert_eq!(store.stat(name).unwrap().held.unwrap().put_time_ms, NOON_MS);
    assert_eq!(store.entries(None, None, 10).unwrap().len(), 1);
    assert!(put(&store, &blob).await.unwrap().already_held);
    let (address, _) = b.disk.contents()[0];
    b.disk.flip_bit(address, 1000, 3);
    assert!(store.verify(name).unwrap(), "one copy is sound");
    assert_holds(&store, &blob);
    assert!(!store.holds(name).unwrap(), "the newest put has to be made good");
    assert!(!put(&store, &blob).await.unwrap().already_held);
    assert!(store.holds(name).unwrap());
    assert!(store.forget(name, NOON_MS).await.unwrap());
    assert_absent(&store, &blob);
    assert!(!store.forget(name, NOON_MS).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_passed_over_until_it_has_space_again() {
    const MIB: u64 = 1 << 20;
    let (a, b) = (Simulated::new("a"), Simulated::new("b"));
    let mut options = options();
    options.reserve_bytes = 40 * MIB;
    let store = Store::open(vec![a.source(), b.source()], environment(1).0, options).unwrap();
    a.disk.set_total_bytes(40 * MIB);
    for at in 0..50 {
        put(&store, &content(at, 100)).await.unwrap();
    }
    let report = store.report();
    assert_eq!((report[0].blobs, report[0].full, report[1].blobs, report[1].full), (0, true, 50, false));
    assert!(!store.status().full);
    a.disk.set_total_bytes(100 * MIB);
    for at in 50..100 {
        put(&store, &content(at, 100)).await.unwrap();
    }
    assert!(store.report()[0].blobs > 10 && !store.report()[0].full);
    a.disk.set_total_bytes(40 * MIB);
    b.disk.set_total_bytes(40 * MIB);
    let refused = put(&store, &content(200, 100)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Full);
    assert!(store.report().iter().all(|disk| disk.failed.is_none()), "full is not failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_disk_serves_as_before_and_closes() {
    let root = tempfile::tempdir().unwrap();
    let store = open_directories(&[root.path()], 1);
    let blob = content(1, 5000);
    put(&store, &blob).await.unwrap();
    store.write_small("map.yml", b"a map").unwrap();
    assert_eq!(store.read_small("map.yml").unwrap(), [b"a map".to_vec()]);
    store.close();
    assert_eq!(put(&store, &content(2, 10)).await.unwrap_err().code(), ErrorCode::Draining);
    drop(store);
    let store = open_directories(&[root.path()], 2);
    assert_holds(&store, &blob);
    store.close();
    drop(store);

    let disk = Simulated::new("a");
    let engine: Engine = common::open(&disk.disk, &disk.index);
    let store = Store::from(engine);
    put(&store, &blob).await.unwrap();
    assert_holds(&store, &blob);
    store.expire(BUCKET + 1).await.unwrap();
    assert_absent(&store, &blob);
}
