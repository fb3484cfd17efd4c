//! What can't be seen from outside: the rule by which room is given out, and files on file systems that know none without
//! a name. The rest is in `tests/spool.rs`.

use std::io::{Read, Seek, Write};
use std::path::Path;

use super::*;

const MIB: u64 = 1 << 20;

fn spool(folder: &Path, bytes_max: u64) -> Arc<Spool> {
    Spool::open(SpoolOptions { folder: folder.to_owned(), bytes_max }).unwrap()
}

/// How much a tree gets before it is refused, when so much is free.
fn gets(spool: &Spool, tree: &AtomicU64, free_bytes: impl Fn(u64) -> u64) -> u64 {
    let before = tree.load(Ordering::Relaxed);
    while spool.take(tree, MIB, free_bytes(spool.used_bytes())).is_ok() {}
    tree.load(Ordering::Relaxed) - before
}

#[test]
fn a_tree_leaves_room_for_those_that_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path(), 900 * MIB);
    let plenty = |_| u64::MAX;
    let (first, second, third) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    assert_eq!(gets(&spool, &first, plenty), 800 * MIB, "eight ninths");
    assert_eq!(gets(&spool, &second, plenty), 88 * MIB, "eight ninths of the rest");
    assert_eq!(gets(&spool, &first, plenty), 0);
    assert!(spool.is_crowded());
    spool.give_back(&first, 800 * MIB);
    assert!(!spool.is_crowded());
    assert_eq!(gets(&spool, &third, plenty), 721 * MIB, "what the second one leaves");
    spool.give_back(&second, 88 * MIB);
    spool.give_back(&third, 721 * MIB);
    assert_eq!(spool.used_bytes(), 0);
}

#[test]
fn half_of_what_is_free_is_left_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path(), u64::MAX);
    let tree = AtomicU64::new(0);
    // What is spooled is free no longer.
    let free = |used: u64| (180 * MIB).saturating_sub(used);
    assert_eq!(gets(&spool, &tree, free), 80 * MIB, "eight ninths of 90");
    // Somebody else fills the disk.
    assert_eq!(gets(&spool, &tree, |_| 0), 0);
    assert!(spool.is_crowded());
}

#[test]
fn a_file_that_was_made_with_a_name_has_none_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = file::unnamed(folder.path()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    file.write_all(b"content").unwrap();
    file.rewind().unwrap();
    let mut read = String::new();
    file.read_to_string(&mut read).unwrap();
    assert_eq!(read, "content");
    let refused = file::unnamed(&folder.path().join("none")).unwrap_err();
    assert!(refused.to_string().contains("none"), "{refused}");
}
