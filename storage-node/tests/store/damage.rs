//! Damaged indexes: whatever happens to RocksDB's files, the index is rebuilt from the segments, and nothing else is.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::{Hold, Locator, PutLocator, Tombstone};
use lazaret_protocol::{PlacementKey, UploadId};
use lazaret_storage_node::index::Entry;
use lazaret_storage_node::store::{DiskSource, Store, rebuild_index};
use lazaret_storage_node::{EngineError, Index, Origin, RocksIndex};

use crate::common::{NOON_MS, content, environment, options};
use crate::support::{assert_holds, open, open_directories, put};

const BLOBS: u64 = 3000;

/// A node with blobs of all sorts in one directory, closed; its tables are on disk.
async fn filled(root: &Path) -> (Vec<Bytes>, Vec<(BlobName, Entry)>) {
    let store = open_directories(&[root], 1);
    let mut blobs = Vec::new();
    let mut puts = tokio::task::JoinSet::new();
    for at in 0..BLOBS {
        let (store, blob) = (store.clone(), content(at, 50 + at as usize % 100));
        blobs.push(blob.clone());
        puts.spawn(async move { put(&store, &blob).await.map(|_| ()) });
    }
    puts.join_all().await.into_iter().for_each(|done| done.unwrap());
    let long = content(BLOBS, (4 << 20) + 5);
    let mut upload = store.begin_upload(UploadId([1; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client).unwrap();
    upload.append(long.clone()).await.unwrap();
    upload.commit(BlobName::of(&long), long.len() as u64).await.unwrap();
    blobs.push(long);
    let locator = Locator { placement: PlacementKey([5; 32]), length: 1 << 33 };
    let put = PutLocator { name: BlobName([77; 32]), locator, put_time_ms: NOON_MS };
    store.put_locator(put, Origin::Client).await.unwrap();
    store.delete(Tombstone { name: BlobName::of(&blobs[0]), time_ms: NOON_MS }).await.unwrap();
    store
        .hold(Hold { name: BlobName::of(&blobs[1]), time_ms: NOON_MS, placed: true, from_bucket: None })
        .await
        .unwrap();
    blobs.remove(0);
    let entries = all_entries(&store);
    store.close();
    drop(store);
    // Opening writes what lay in the log to a table.
    let store = open_directories(&[root], 2);
    store.close();
    drop(store);
    let bytes: u64 = tables(root).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes > 100_000);
    (blobs, entries)
}

fn all_entries(store: &Store) -> Vec<(BlobName, Entry)> {
    store.entries(None, None, usize::MAX).unwrap()
}

fn files(root: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("index")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| wanted(path.file_name().unwrap().to_str().unwrap())).collect();
    found.sort_unstable();
    found
}

fn tables(root: &Path) -> Vec<PathBuf> {
    files(root, |name| name.ends_with(".sst"))
}

/// Flips bits where a table's data lie. What lies at its end is read, and missed, as soon as it is opened.
fn flip(path: &Path, every: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at: Vec<usize> = (every / 2..bytes.len() / 2).step_by(every).collect();
    assert!(!at.is_empty());
    at.into_iter().for_each(|at| bytes[at] ^= 0x55);
    fs::write(path, bytes).unwrap();
}

fn garble(path: &Path) {
    fs::write(path, content(99, fs::metadata(path).unwrap().len().max(64) as usize)).unwrap();
}

fn cut(path: &Path) {
    let length = fs::metadata(path).unwrap().len();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length / 2).unwrap();
}

fn remove(paths: Vec<PathBuf>) {
    assert!(!paths.is_empty());
    paths.into_iter().for_each(|path| fs::remove_file(path).unwrap());
}

/// A kind of damage, by name.
type Damage = (&'static str, fn(&Path));

const KINDS: [Damage; 16] = [
    ("the directory is gone", |root| fs::remove_dir_all(root.join("index")).unwrap()),
    ("the directory is a file", |root| {
        fs::remove_dir_all(root.join("index")).unwrap();
        fs::write(root.join("index"), "x").unwrap();
    }),
    ("the directory is empty", |root| remove(files(root, |_| true))),
    ("CURRENT is gone", |root| remove(files(root, |name| name == "CURRENT"))),
    ("CURRENT is garbage", |root| garble(&root.join("index/CURRENT"))),
    ("CURRENT is empty", |root| fs::write(root.join("index/CURRENT"), "").unwrap()),
    ("the manifest is gone", |root| remove(files(root, |name| name.starts_with("MANIFEST")))),
    ("the manifest is garbage", |root| files(root, |name| name.starts_with("MANIFEST")).iter().for_each(|p| garble(p))),
    ("the manifest is cut", |root| files(root, |name| name.starts_with("MANIFEST")).iter().for_each(|p| cut(p))),
    ("a table is gone", |root| remove(tables(root).drain(..1).collect())),
    ("all tables are gone", |root| remove(tables(root))),
    ("the tables are cut", |root| tables(root).iter().for_each(|path| cut(path))),
    ("the tables are garbage", |root| tables(root).iter().for_each(|path| garble(path))),
    ("the tables have flipped bits", |root| tables(root).iter().for_each(|path| flip(path, 3000))),
    ("the ends of the tables have flipped bits", |root| {
        for path in tables(root) {
            let mut bytes = fs::read(&path).unwrap();
            let from = bytes.len() * 19 / 20;
            bytes.iter_mut().skip(from).step_by(50).for_each(|byte| *byte ^= 0x55);
            fs::write(path, bytes).unwrap();
        }
    }),
    ("the log is garbage", |root| {
        let logs = files(root, |name| name.ends_with(".log"));
        assert!(!logs.is_empty());
        logs.iter().for_each(|path| garble(path));
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_damaged_in_an_index_it_is_rebuilt_by_itself() {
    let filled_root = tempfile::tempdir().unwrap();
    let (blobs, entries) = filled(filled_root.path()).await;
    for (kind, damage) in KINDS {
        println!("{kind}");
        let root = tempfile::tempdir().unwrap();
        copy(filled_root.path(), root.path());
        damage(root.path());
        let store = open_directories(&[root.path()], 3);
        // Flipped bits show only where they are read.
        for blob in &blobs {
            let _ = store.stat(BlobName::of(blob));
        }
        let reopening = store.clone();
        tokio::task::spawn_blocking(move || reopening.wait_for_reopening()).await.unwrap();
        assert_eq!(store.report()[0].failed, None, "{kind}");
        assert_eq!(all_entries(&store).len(), entries.len(), "{kind}");
        blobs.iter().for_each(|blob| assert_holds(&store, blob));
        let new = content(5000, 100);
        put(&store, &new).await.unwrap();
        store.close();
        drop(store);
        let store = open_directories(&[root.path()], 4);
        assert_holds(&store, &new);
        assert_eq!(store.status().blobs, blobs.len() as u64 + 1, "{kind}");
        assert_eq!(store.status().recovered_records, 0, "{kind}: it is not rebuilt a second time");
        assert!(!root.path().join("index.damaged").exists());
        store.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_index_is_rebuilt_nothing_is_said_to_be_absent_and_other_disks_go_on() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (root.path().join("one"), root.path().join("two"));
    let (blobs, _) = filled(&one).await;
    for path in tables(&one) {
        flip(&path, 3000);
    }
    let store = open_directories(&[&one, &two], 3);
    let mut rebuilding = 0;
    for blob in &blobs {
        match store.open_blob(BlobName::of(blob)) {
            Ok(held) => assert!(held.is_some()),
            Err(EngineError::Rebuilding { disk }) => {
                assert!(disk.ends_with("one"));
                rebuilding += 1;
            }
            Err(EngineError::Index(_)) => {}
            Err(other) => panic!("{other}"),
        }
        if rebuilding == 1 {
            put(&store, &content(9000, 100)).await.unwrap();
            assert!(matches!(store.entries(None, None, 1), Err(EngineError::Rebuilding { .. }) | Ok(_)));
        }
    }
    assert!(rebuilding > 0, "the damage was not found");
    let reopening = store.clone();
    tokio::task::spawn_blocking(move || reopening.wait_for_reopening()).await.unwrap();
    blobs.iter().chain([&content(9000, 100)]).for_each(|blob| assert_holds(&store, blob));
    store.agree().await.unwrap();
    store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_was_met_is_noted_and_the_next_opening_rebuilds() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, entries) = filled(root.path()).await;
    for path in tables(root.path()) {
        flip(&path, 3000);
    }
    let before: Vec<_> =
        crate::support::tree(&root.path().join("index")).into_iter().map(|(name, bytes)| (name, bytes.len())).collect();
    println!("{before:#?}");
    let index = RocksIndex::open(root.path().join("index")).unwrap();
    let error = blobs.iter().find_map(|blob| index.get(BlobName::of(blob)).err()).expect("the damage was not found");
    assert!(error.damaged, "{error}");
    let note = fs::read_to_string(root.path().join("index.damaged")).unwrap();
    assert!(note.contains("orruption"), "{note}");
    index.close();
    assert!(index.get(BlobName([1; 32])).unwrap_err().to_string().contains("closed"));
    drop(index);
    let store = open_directories(&[root.path()], 3);
    assert!(store.status().recovered_records >= blobs.len() as u64);
    assert_eq!(all_entries(&store).len(), entries.len());
    assert!(!root.path().join("index.damaged").exists());
    store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_in_use_is_no_damaged_one() {
    let root = tempfile::tempdir().unwrap();
    let (_, entries) = filled(root.path()).await;
    let index = RocksIndex::open(root.path().join("index")).unwrap();
    let refused = RocksIndex::open(root.path().join("index")).err().unwrap();
    assert!(!refused.damaged && refused.to_string().contains("lock"), "{refused}");
    assert_eq!(index.entries(None, None, usize::MAX).unwrap().len(), entries.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_index_says_what_the_old_one_did() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, before) = filled(root.path()).await;
    let rebuild = || rebuild_index(root.path(), environment(5).0, options());
    let rebuilt = rebuild().unwrap();
    assert_eq!((rebuilt.blobs, rebuilt.damaged_records), (blobs.len() as u64, 0));
    assert!(rebuilt.bytes_read > blobs.iter().map(|blob| blob.len() as u64).sum());
    let store = open_directories(&[root.path()], 6);
    // All segments are sealed and proven by what was written after, but for the last group, which may lie elsewhere now.
    let names = |entries: &[(BlobName, Entry)]| -> Vec<_> {
        let of = |(name, entry): &(BlobName, Entry)| {
            let blob = entry.blob.as_ref().map(|blob| (blob.length, blob.put_time_ms, blob.placement(), blob.damaged));
            (*name, blob, entry.locator, entry.killed_until_ms, entry.hold)
        };
        entries.iter().map(of).collect()
    };
    assert_eq!(names(&all_entries(&store)), names(&before));
    blobs.iter().for_each(|blob| assert_holds(&store, blob));
    let refused = rebuild().unwrap_err();
    assert!(refused.to_string().contains("in use by another node"), "{refused}");
    blobs.iter().for_each(|blob| assert_holds(&store, blob));
    store.close();
    drop(store);

    let mut other = options();
    other.node = lazaret_protocol::NodeId([8; 16]);
    assert!(matches!(rebuild_index(root.path(), environment(5).0, other), Err(EngineError::Foreign { .. })));
    let store = open_directories(&[root.path()], 7);
    assert_eq!(store.status().recovered_records, 0, "another node's index is left alone");
    store.close();
}

#[test]
fn a_disk_that_can_not_be_read_is_not_a_damaged_index() {
    let root = tempfile::tempdir().unwrap();
    // Where the index should be made there is no directory to make it in.
    fs::write(root.path().join("file"), "x").unwrap();
    let index = root.path().join("file").join("index");
    assert!(!RocksIndex::open(&index).err().unwrap().damaged);
    let source = DiskSource::new(
        "broken",
        {
            let root = root.path().join("disk");
            move || Ok(std::sync::Arc::new(lazaret_storage_node::FsDisk::open(&root)?))
        },
        move || Ok(std::sync::Arc::new(RocksIndex::open(&index)?)),
    );
    assert!(matches!(open(vec![source], 1), Err(EngineError::Index(_))));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
