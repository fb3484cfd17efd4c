//! The spool: files that are too long for memory, encrypted in a file without a name. By itself, and under whole scans.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use common::*;
use lazaret_analysis::{EngineInfo, ResultCode, Rule};
use lazaret_scan_worker::engine::{Engine, EngineVerdict, ScanContext, Subject};
use lazaret_scan_worker::engines;
use lazaret_scan_worker::scan::ScannerOptions;
use lazaret_scan_worker::spool::{Spool, SpoolError, SpoolOptions, Spooled, TreeSpool};
use tempfile::TempDir;

const BLOCK: usize = 64 << 10;
const EXTENT: usize = 4 << 20;

/// Printed by tests that use it, so that a failure can be had again: `LAZARET_SEED`.
static SEED: LazyLock<u64> = LazyLock::new(|| {
    let seed =
        std::env::var("LAZARET_SEED").map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    println!("LAZARET_SEED={seed}");
    seed
});

/// Bytes that differ for every seed, and numbers made of them.
struct Draws(blake3::OutputReader);

impl Draws {
    fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.fill(&mut bytes);
        bytes
    }

    fn below(&mut self, end: usize) -> usize {
        let mut number = [0; 8];
        self.0.fill(&mut number);
        (u64::from_le_bytes(number) % end as u64) as usize
    }
}

fn spool(folder: &Path, bytes_max: u64) -> Arc<Spool> {
    Spool::open(SpoolOptions { folder: folder.to_owned(), bytes_max }).unwrap()
}

fn put(tree: &TreeSpool, content: &[u8]) -> Result<Spooled, SpoolError> {
    let mut writer = tree.writer()?;
    writer.write(content)?;
    writer.finish()
}

/// The open files of this process that lie in a folder, as paths under which they can be opened.
fn open_in(folder: &Path) -> Vec<PathBuf> {
    let folder = folder.canonicalize().unwrap();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    // Another thread may have closed it meanwhile.
    links.filter(|link| std::fs::read_link(link).is_ok_and(|target| target.starts_with(&folder))).collect()
}

/// The one file of a spool.
fn file_in(folder: &Path) -> File {
    let [path] = open_in(folder).try_into().expect("one file is open");
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn any_range_comes_back_as_it_was_written() {
    let folder = TempDir::new().unwrap();
    let tree = TreeSpool::new(spool(folder.path(), 1 << 30));
    let mut draws = Draws::new(*SEED);
    for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 1 << 20, EXTENT - 1, EXTENT, EXTENT + 1, 2 * EXTENT + 70_001] {
        let content = draws.bytes(length);
        let mut writer = tree.writer().unwrap();
        let mut rest = &content[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + draws.below(700_000)));
            writer.write(now).unwrap();
            rest = later;
        }
        let spooled = writer.finish().unwrap();
        assert_eq!(spooled.length(), length as u64);
        assert!(spooled.read(0, u64::MAX).unwrap() == content, "{length} bytes");
        for _ in 0..50 {
            let start = draws.below(length + 2);
            let end = start + draws.below(length + 2);
            let expected = &content[start.min(length)..end.min(length)];
            assert!(spooled.read(start as u64, end as u64).unwrap() == expected, "{start}..{end} of {length}");
        }
        assert_eq!(spooled.fault(), None);
    }
    assert_eq!(tree.spool().used_bytes(), 0);
}

#[test]
fn many_threads_write_and_read_one_file_at_once() {
    let folder = TempDir::new().unwrap();
    let tree = TreeSpool::new(spool(folder.path(), 1 << 30));
    let seed = *SEED;
    let contents: Vec<Vec<u8>> = (0..4).map(|at| Draws::new(seed + at).bytes(2 * EXTENT + 12_345)).collect();
    let all: Vec<Spooled> = std::thread::scope(|scope| {
        let writers: Vec<_> = contents.iter().map(|content| scope.spawn(|| put(&tree, content).unwrap())).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert_eq!(open_in(folder.path()).len(), 1, "one file for all");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (all, contents) = (&all, &contents);
            scope.spawn(move || {
                let mut draws = Draws::new(seed ^ (1000 + thread));
                for _ in 0..100 {
                    let at = draws.below(all.len());
                    let start = draws.below(contents[at].len());
                    let end = (start + draws.below(1 << 20)).min(contents[at].len());
                    assert!(all[at].read(start as u64, end as u64).unwrap() == contents[at][start..end]);
                }
            });
        }
    });
}

#[test]
fn what_is_on_disk_is_neither_plain_nor_left_behind() {
    let folder = TempDir::new().unwrap();
    let spool = spool(folder.path(), 1 << 30);
    assert!(open_in(folder.path()).is_empty(), "nothing is there before it is needed");
    let tree = TreeSpool::new(spool.clone());
    let line = b"a line that must be on no disk\n";
    let plain: Vec<u8> = line.iter().copied().cycle().take(EXTENT + BLOCK).collect();
    let (kept, gone) = (put(&tree, &plain).unwrap(), put(&tree, &plain).unwrap());
    assert!(is_empty(folder.path()), "it has no name");
    let file = file_in(folder.path());
    let mut on_disk = Vec::new();
    (&file).read_to_end(&mut on_disk).unwrap();
    assert!(on_disk.len() >= 2 * plain.len());
    let finds = |what: &[u8]| on_disk.windows(what.len()).any(|window| window == what);
    assert!(!finds(&line[..12]));
    // Equal blocks don't look equal.
    let blocks: std::collections::HashSet<&[u8]> =
        on_disk.chunks(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)).collect();
    assert_eq!(blocks.len(), 2 * (EXTENT / BLOCK + 1));

    let before = (spool.used_bytes(), file.metadata().unwrap().blocks());
    drop(gone);
    let after = (spool.used_bytes(), file.metadata().unwrap().blocks());
    assert_eq!(before.0 - after.0, plain.len().next_multiple_of(4096) as u64);
    assert!(after.1 < before.1 * 3 / 4, "what is scanned is given back at once: {before:?}, {after:?}");
    drop(tree);
    assert!(kept.read(0, u64::MAX).unwrap() == plain, "it is there as long as somebody has it");
    drop(kept);
    assert_eq!(spool.used_bytes(), 0);
    drop(file);
    assert!(open_in(folder.path()).is_empty() && is_empty(folder.path()));
}

#[test]
fn damage_is_an_error_and_never_other_bytes() {
    let mut draws = Draws::new(*SEED);
    let content = draws.bytes(EXTENT + 3 * BLOCK + 100);
    type Damage = fn(&File, &mut Draws, u64);
    let damages: [(&str, Damage); 5] = [
        ("a bit", |file, draws, length| {
            let at = draws.below(length as usize) as u64;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << draws.below(8))], at).unwrap();
        }),
        ("zeros", |file, draws, length| {
            let at = draws.below(length as usize - 16) as u64;
            file.write_all_at(&[0; 16], at).unwrap();
        }),
        ("a block from elsewhere", |file, _, _| {
            let mut block = vec![0; BLOCK];
            file.read_exact_at(&mut block, BLOCK as u64).unwrap();
            file.write_all_at(&block, 0).unwrap();
        }),
        ("cut", |file, draws, length| file.set_len(draws.below(length as usize) as u64).unwrap()),
        ("another file's", |file, draws, _| {
            let other = draws.bytes(BLOCK);
            file.write_all_at(&other, 2 * BLOCK as u64).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let folder = TempDir::new().unwrap();
        let tree = TreeSpool::new(spool(folder.path(), 1 << 30));
        let spooled = put(&tree, &content).unwrap();
        damage(&file_in(folder.path()), &mut draws, content.len() as u64);
        let error = spooled.read(0, u64::MAX).expect_err(what);
        assert!(!error.is_full(), "{error}");
        assert!(spooled.fault().is_some(), "{what}: {error}");
        let (mut sound, mut broken) = (0, 0);
        for at in (0..content.len()).step_by(BLOCK) {
            let end = (at + BLOCK).min(content.len());
            match spooled.read(at as u64, end as u64) {
                Ok(bytes) => {
                    assert!(bytes == content[at..end], "{what}: other bytes at {at}");
                    sound += 1;
                }
                Err(_) => broken += 1,
            }
        }
        assert!(broken > 0 && (sound > 0 || what == "cut"), "{what}: {sound} sound, {broken} broken");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_no_trace() {
    let folder = TempDir::new().unwrap();
    let spool = spool(folder.path(), 36 << 20);
    let tree = TreeSpool::new(spool.clone());
    let mut writer = tree.writer().unwrap();
    let piece = vec![7; 1 << 20];
    let (written, error) = (0..).find_map(|count| writer.write(&piece).err().map(|error| (count, error))).unwrap();
    assert!(error.is_full() && error.to_string().contains("37748736"), "{error}");
    assert_eq!(written, 32, "eight ninths of 36");
    drop(writer);
    assert_eq!(spool.used_bytes(), 0);
    assert_eq!(file_in(folder.path()).metadata().unwrap().blocks(), 0, "nor on disk");
    assert_eq!(put(&tree, &vec![7; 32 << 20]).unwrap().length(), 32 << 20, "another one finds the room");
    let none = Spool::open(SpoolOptions { folder: folder.path().join("none"), bytes_max: 1 << 30 }).unwrap_err();
    assert!(none.to_string().contains("none"), "{none}");
}

// A file system that is full.

/// A small file system of its own, or none where this process may not mount one.
struct Small(TempDir);

impl Small {
    fn mount(megabytes: u32) -> Option<Self> {
        let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
        if !root {
            eprintln!("skipped: it needs root");
            return None;
        }
        let folder = TempDir::new().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder.path()).status();
        assert!(mounted.unwrap().success());
        Some(Self(folder))
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let mut file = File::create(self.0.path().join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(self.0.path()).status();
    }
}

#[test]
fn half_of_a_file_system_is_left_to_others() {
    let Some(small) = Small::mount(72) else { return };
    let tree = TreeSpool::new(spool(small.0.path(), 1 << 40));
    let mut writer = tree.writer().unwrap();
    let piece = vec![7; 1 << 20];
    let written = (0..).find(|_| writer.write(&piece).is_err()).unwrap();
    // 36 MiB are half of it, and eight ninths of that one tree's.
    assert_eq!(written, 32);
}

#[test]
fn a_full_disk_is_a_full_spool_and_gets_its_space_back() {
    let Some(small) = Small::mount(64) else { return };
    let spool = spool(small.0.path(), 1 << 40);
    let tree = TreeSpool::new(spool.clone());
    let mut writer = tree.writer().unwrap();
    let piece = vec![7; 1 << 20];
    (0..5).for_each(|_| writer.write(&piece).unwrap());
    // It was asked how much is free, and then somebody else was quicker.
    small.fill();
    let error = (0..3).find_map(|_| writer.write(&piece).err()).expect("there is no space");
    assert!(matches!(error, SpoolError::Io { operation: "write", .. }) && error.is_full(), "{error}");
    drop(writer);
    assert_eq!(spool.used_bytes(), 0);
    assert_eq!(file_in(small.0.path()).metadata().unwrap().blocks(), 0);
    assert!(put(&tree, &piece).unwrap_err().is_full(), "what is free now is less than what a file is given");
    std::fs::remove_file(small.0.path().join("filler")).unwrap();
    assert!(put(&tree, &piece).unwrap().read(0, u64::MAX).unwrap() == piece);
}

// Whole scans.

fn rule() -> Rule {
    let mut rule = Rule::with_defaults("test");
    rule.limits.ratio_free_bytes = 1 << 40;
    rule
}

/// One thread, so that the order of things is known, and a memory of 1 MiB.
fn scarce(folder: &Path, bytes_max: u64) -> ScannerOptions {
    let spool = SpoolOptions { folder: folder.to_owned(), bytes_max };
    ScannerOptions { scan_threads: 1, sample_memory_max_bytes: MIB, spool, ..options() }
}

#[test]
fn a_member_without_room_has_its_code_and_the_others_go_on() {
    let folder = TempDir::new().unwrap();
    let scanner = scanner(scarce(folder.path(), 18 * MIB), engines::builtin().unwrap());
    let (long, fits) = (vec![b'.'; 40 * MIB as usize], vec![b'-'; 9 * MIB as usize]);
    let clean = zip(&[("long", &long), ("fits", &fits), ("short", b"short")]);
    let scanned = scan_with(&scanner, "clean.zip", clean, rule());
    assert_eq!((scanned.root.own, scanned.root.overall), (ResultCode::NO_THREAT, ResultCode::ARCHIVE_SIZE));
    assert!(!scanned.root.blocked_reasons.is_empty());
    let record = &scanned.at("long").result;
    assert_eq!((record.own, record.overall), (ResultCode::ARCHIVE_SIZE, ResultCode::ARCHIVE_SIZE));
    assert!(record.detail.contains("too long for memory") && record.detail.contains("18874368"), "{}", record.detail);
    assert!(record.engines.is_empty(), "nobody saw it");
    assert_eq!(record.blocked_reasons, ["Exceeded Archive Size", &record.detail]);
    // It is known for what it is all the same.
    let whole = scan_under("clean.zip", zip(&[("long", &long)]), rule());
    assert_eq!(record.file.sha512, whole.at("long").result.file.sha512);
    assert_eq!(record.file.size_bytes, long.len() as u64);
    for name in ["fits", "short"] {
        assert_eq!(scanned.at(name).result.overall, ResultCode::NO_THREAT, "{name}");
    }
    assert_eq!((scanner.spool().refused(), scanner.spool().used_bytes()), (1, 0));

    let bad = zip(&[("eicar.com", &eicar()), ("long", &long), ("fits", &[&fits[..], &eicar()].concat())]);
    let scanned = scan_with(&scanner, "bad.zip", bad, rule());
    assert_eq!(scanned.root.overall, ResultCode::INFECTED, "a threat outranks a limit");
    assert_eq!(scanned.at("fits").result.overall, ResultCode::INFECTED);
    assert_eq!(scanned.at("long").result.overall, ResultCode::ARCHIVE_SIZE);
}

/// However many long files there are, and however little room: they are scanned one after the other.
#[test]
fn while_room_is_scarce_what_is_spooled_is_scanned_first() {
    let folder = TempDir::new().unwrap();
    let scanner =
        scanner(ScannerOptions { scan_threads: 2, ..scarce(folder.path(), 72 * MIB) }, engines::builtin().unwrap());
    let long = vec![b'.'; 9 * MIB as usize];
    let names: Vec<String> = (0..30).map(|at| format!("{at}")).collect();
    let members: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &long[..])).collect();
    let scanned = scan_with(&scanner, "many.zip", zip(&members), rule());
    assert_eq!((scanned.root.overall, scanned.records.len()), (ResultCode::NO_THREAT, 30));
    assert_eq!(scanned.spooled_bytes, 30 * long.len() as u64);
    assert_eq!((scanner.spool().refused(), scanner.spool().used_bytes()), (0, 0));
}

/// Damages the spool when it is shown a file of this name. Finds nothing.
struct Damages {
    folder: PathBuf,
    name: &'static str,
    done: AtomicBool,
}

impl Engine for Damages {
    fn info(&self) -> EngineInfo {
        engine_info("damages", "Damages")
    }

    fn scan(&self, subject: &Subject<'_>, _: &ScanContext) -> EngineVerdict {
        if subject.sample.name() == self.name && !self.done.swap(true, Ordering::Relaxed) {
            file_in(&self.folder).write_all_at(b"damaged", 5 * MIB + 4321).unwrap();
        }
        EngineVerdict::clean()
    }
}

#[test]
fn a_file_that_cannot_be_read_back_is_never_taken_for_a_clean_one() {
    let noise = Draws::new(*SEED).bytes(8 * MIB as usize);
    let stored = zip_by(zip::CompressionMethod::Stored, &[("noise", &noise)]);
    for (name, content, others) in [("long", &noise, true), ("inner.zip", &stored, true), ("long", &noise, false)] {
        let folder = TempDir::new().unwrap();
        let damages = Damages { folder: folder.path().to_owned(), name, done: AtomicBool::new(false) };
        // Alone, it is an engine that finds nothing: it looks at no content.
        let mut all: Vec<Arc<dyn Engine>> = vec![Arc::new(damages)];
        if others {
            all.extend(engines::builtin().unwrap());
        }
        let scanner = scanner(scarce(folder.path(), 1 << 30), all);
        let archive = zip(&[(name, content), ("short", b"short")]);
        let scanned = scan_with(&scanner, "file.zip", archive, rule());
        let record = &scanned.at(name).result;
        assert_eq!(scanned.at("short").result.overall, ResultCode::NO_THREAT);
        if name == "long" && !others {
            assert_eq!(record.overall, ResultCode::NO_THREAT, "nobody had to read what was damaged");
            continue;
        }
        assert_eq!((record.own, scanned.root.overall), (ResultCode::SCAN_FAILED, ResultCode::SCAN_FAILED), "{name}");
        assert!(record.detail.contains("damaged"), "{name}: {:?}", record.detail);
    }
}

/// Not run by default: how fast it is.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    let folder = TempDir::new().unwrap();
    let tree = TreeSpool::new(spool(folder.path(), 8 << 30));
    let length = 1_u64 << 30;
    let piece = Draws::new(1).bytes(1 << 20);
    let rate = |took: Duration| length as f64 / 1e6 / took.as_secs_f64();
    let began = Instant::now();
    let mut writer = tree.writer().unwrap();
    (0..1024).for_each(|_| writer.write(&piece).unwrap());
    let spooled = writer.finish().unwrap();
    println!("written: {:.0} MB/s", rate(began.elapsed()));
    for read_bytes in [EXTENT as u64, 1 << 20, BLOCK as u64] {
        let began = Instant::now();
        for start in (0..length).step_by(read_bytes as usize) {
            assert_eq!(spooled.read(start, start + read_bytes).unwrap().len() as u64, read_bytes);
        }
        println!("read by {read_bytes}: {:.0} MB/s", rate(began.elapsed()));
    }
}
