//! The offline check: it finds what was planted, and changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::Tombstone;
use lazaret_protocol::{PlacementKey, UploadId};
use lazaret_storage_node::fsck::{FsckReport, fsck};
use lazaret_storage_node::index::{Entry, IndexBatch, Layout};
use lazaret_storage_node::record::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use lazaret_storage_node::{Index, Origin, RocksIndex};

use crate::common::{NOON_MS, content};
use crate::support::{open_directories, put, tree};

const LENGTH: usize = 2000;
const RECORD: usize = RECORD_HEADER_BYTES + LENGTH;

/// Twenty blobs in one segment, in order, then a streamed one and a tombstone; closed.
async fn filled(root: &Path) -> Vec<Bytes> {
    let store = open_directories(&[root], 1);
    let mut blobs: Vec<Bytes> = (0..20).map(|at| content(at, LENGTH)).collect();
    for blob in &blobs {
        put(&store, blob).await.unwrap();
    }
    let long = content(100, (4 << 20) + 5);
    let mut upload = store.begin_upload(UploadId([1; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client).unwrap();
    upload.append(long.clone()).await.unwrap();
    upload.commit(BlobName::of(&long), long.len() as u64).await.unwrap();
    blobs.push(long);
    store.delete(Tombstone { name: BlobName([9; 32]), time_ms: NOON_MS }).await.unwrap();
    store.close();
    blobs
}

fn segments(root: &Path) -> Vec<PathBuf> {
    tree(&root.join("segments")).into_keys().map(PathBuf::from).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn name(blob: &Bytes) -> String {
    BlobName::of(blob).to_string()
}

/// Checks, and that the check changed nothing.
fn check(root: &Path) -> FsckReport {
    let before = tree(root);
    let report = fsck(root).unwrap();
    let after = tree(root);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before == after, "the check changed a file");
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_disk_is_sound_and_counted() {
    let root = tempfile::tempdir().unwrap();
    let blobs = filled(root.path()).await;
    let report = check(root.path());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.segments, report.blobs, report.entries), (1, 21, 22));
    assert_eq!(report.blob_bytes, blobs.iter().map(|blob| blob.len() as u64).sum::<u64>());
    let of = |kind: &str| report.records.get(kind).map(|count| (count.records, count.bytes));
    assert_eq!(of("blob"), Some((20, 20 * RECORD as u64)));
    assert_eq!(of("extent").unwrap().0, 2);
    assert_eq!((of("tree").unwrap().0, of("commit").unwrap().0, of("tombstone").unwrap().0), (1, 1, 1));
    assert_eq!((report.tail.records, report.given_up.records, report.foreign_files.len()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_given_up_is_no_damage() {
    let root = tempfile::tempdir().unwrap();
    let blobs = filled(root.path()).await;
    let store = open_directories(&[root.path()], 2);
    assert!(store.forget(BlobName::of(&blobs[3]), NOON_MS).await.unwrap());
    store.close();
    drop(store);
    let report = check(root.path());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.blobs, report.given_up.records, report.given_up.bytes), (20, 1, RECORD as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_records_are_found_with_their_names() {
    let root = tempfile::tempdir().unwrap();
    let blobs = filled(root.path()).await;
    let segment = &segments(root.path())[0];
    let at = |record: usize| SEGMENT_HEADER_BYTES + record * RECORD;
    // A payload, a header, and the middle of an extent.
    flip(segment, at(4) + RECORD_HEADER_BYTES + 77);
    flip(segment, at(11) + 30);
    flip(segment, at(20) + RECORD_HEADER_BYTES + 1_000_000);
    let report = check(root.path());
    assert!(!report.is_clean());
    let found: Vec<(u64, u64, Vec<String>)> =
        report.damaged.first.iter().map(|place| (place.offset, place.end, place.names.clone())).collect();
    assert_eq!(found[0], (at(4) as u64, at(5) as u64, vec![name(&blobs[4])]));
    assert_eq!(found[1], (at(11) as u64, at(12) as u64, vec![name(&blobs[11])]));
    assert_eq!((found[2].0, &found[2].2), (at(20) as u64, &vec![name(&blobs[20])]));
    assert_eq!((report.damaged.count, report.without_record.count, report.without_entry.count), (3, 0, 0));

    // The segment's header costs the whole segment.
    flip(segment, 20);
    let report = check(root.path());
    assert_eq!((report.damaged.count, report.damaged.first[0].names.len()), (1, 21));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_segment_and_wrong_entries_are_found() {
    let root = tempfile::tempdir().unwrap();
    let blobs = filled(root.path()).await;
    let index = RocksIndex::open(root.path().join("index")).unwrap();
    let lost = BlobName::of(&blobs[2]);
    let mut wrong = index.get(BlobName::of(&blobs[5])).unwrap().unwrap();
    let Layout::Whole(location) = &mut wrong.blob.as_mut().unwrap().layout else { panic!("a whole blob") };
    location.offset += 8;
    let entries =
        vec![(lost, Entry::default()), (BlobName::of(&blobs[5]), wrong), (BlobName([9; 32]), Entry::default())];
    index.apply(IndexBatch { entries, ..IndexBatch::default() }).unwrap();
    index.close();
    let report = check(root.path());
    let mut without_entry: Vec<&str> = report.without_entry.first.iter().map(|place| place.name.as_str()).collect();
    without_entry.sort_unstable();
    // The record to which the moved entry should point is explained by none either.
    let mut expected = [lost.to_string(), BlobName([9; 32]).to_string()];
    expected.sort_unstable();
    assert!(expected.iter().all(|name| without_entry.contains(&name.as_str())), "{without_entry:?}");
    let without_record: Vec<&str> = report.without_record.first.iter().map(|place| place.name.as_str()).collect();
    assert_eq!(without_record, [name(&blobs[5])]);
    assert!(!report.is_clean());

    fs::remove_file(&segments(root.path())[0]).unwrap();
    let report = check(root.path());
    assert_eq!((report.missing_segments.count, report.segments), (1, 0));
    assert_eq!(report.without_record.count, 20 + 2, "twenty-one blobs but one, of which one has three records");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_counted_and_is_no_damage() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    fs::remove_dir_all(root.path().join("index")).unwrap();
    let segment = &segments(root.path())[0];
    let length = fs::metadata(segment).unwrap().len();
    // The last record is the tombstone of 104 bytes, which nothing after it proves.
    fs::OpenOptions::new().write(true).open(segment).unwrap().set_len(length - 50).unwrap();
    let report = check(root.path());
    assert_eq!(report.damaged.count, 0, "{report:?}");
    assert!(report.index_damage.is_some() && !report.is_clean());
    assert_eq!(report.records.get("tombstone"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_foreign_files_and_what_can_not_be_checked() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    // Opening writes what lay in the log to a table.
    open_directories(&[root.path()], 2).close();
    fs::write(root.path().join("stray"), "x").unwrap();
    fs::write(segments(root.path())[0].with_file_name("other.txt"), "x").unwrap();
    let report = check(root.path());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.foreign_files.len(), 2, "{report:?}");
    for table in tree(&root.path().join("index")).keys().filter(|path| path.ends_with(".sst")) {
        let length = fs::metadata(table).unwrap().len() as usize;
        (100..length).step_by(500).for_each(|at| flip(Path::new(table), at));
    }
    let report = check(root.path());
    assert!(report.index_damage.is_some(), "{report:?}");
    assert_eq!(report.damaged.count, 0);

    let store = open_directories(&[root.path()], 3);
    let refused = fsck(root.path()).unwrap_err();
    assert!(refused.to_string().contains("in use by another node"), "{refused}");
    store.close();
    let empty = tempfile::tempdir().unwrap();
    assert!(fsck(empty.path()).is_err());
    assert!(fsck(&empty.path().join("nowhere")).is_err());
    assert!(tree(empty.path()).is_empty());
}
