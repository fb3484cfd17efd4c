//! Bombs: files that are small and want to be large, many, deep or slow. Each ends with its own limit, in time and in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{HashMap, HashSet};
use std::io::{Cursor, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::Bytes;
use lazaret_containers::{Budget, FileType, Limit, Limits, Member, Passwords, TreeBudget};
use lazaret_sandbox::{Ended, Request, Sandbox, SandboxOptions};

const MIB: usize = 1 << 20;
/// What this process and its children may hold together.
const MEMORY_MAX: u64 = 300 << 20;
/// On a machine with nothing else to do none takes ten seconds; a busy one may take longer and fails no test.
const WALL_MAX: Duration = Duration::from_secs(90);
/// Members are looked into up to this length, as a worker with this much memory for one sample does.
const KEPT_BYTES_MAX: usize = 16 << 20;

fn limits() -> Limits {
    Limits {
        depth: 10,
        files: 10_000,
        produced_bytes: 1 << 30,
        ratio: 100,
        ratio_free_bytes: 4 << 20,
        archive_seconds: 60,
        file_bytes: None,
    }
}

/// What a tree ended with.
#[derive(Default)]
struct Found {
    limits: HashSet<Limit>,
    suspicious: bool,
    broken: Vec<String>,
}

struct Tree<'t> {
    sandbox: &'t Sandbox,
    budget: Arc<TreeBudget>,
    found: Found,
}

impl Tree<'_> {
    /// Takes a file apart, and what comes out of it, one after the other.
    fn walk(&mut self, file: &[u8], depth: u32, known: Option<FileType>) {
        if known.as_ref().is_some_and(|known| known.containers.is_empty()) {
            return;
        }
        let length = file.len() as u64;
        let stop: Arc<AtomicBool> = Arc::default();
        let budget = Budget::new(self.budget.clone(), stop, length);
        let limits = limits();
        let containers = known.map(|known| known.containers);
        let admitted = self.budget.admits_depth(depth);
        let input = Bytes(file, true);
        let request = Request {
            name: "file",
            length,
            containers: containers.as_deref(),
            extract: admitted,
            shared: false,
            limits: &limits,
            used: self.budget.used(),
            passwords: &Passwords::NONE,
        };
        let mut opening = self.sandbox.open(&request, &input).unwrap();
        let containers = match &containers {
            Some(containers) => containers.clone(),
            None => match opening.file_type(&|| Ok(())) {
                Ok(Ok(file_type)) => file_type.containers,
                Ok(Err(reason)) | Err(Ended::Failed(_, reason)) => return self.found.broken.push(reason),
                Err(Ended::Halted(halt)) => panic!("{halt}"),
            },
        };
        if containers.is_empty() {
            return opening.finish(&|| Ok(()));
        }
        if !admitted {
            self.found.limits.insert(Limit::Depth);
            return;
        }
        let mut inner = Vec::new();
        let outcome = opening.members(&request, &containers, &budget, &mut |member: Member<'_>| {
            let mut kept = Vec::new();
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = member.content.read(&mut buffer) {
                if kept.len() <= KEPT_BYTES_MAX {
                    kept.extend_from_slice(&buffer[..read]);
                }
            }
            let may_nest = member.file_type.as_ref().is_none_or(|file_type| !file_type.containers.is_empty());
            // Few are enough: what a bomb has many of is all alike.
            if may_nest && kept.len() <= KEPT_BYTES_MAX && inner.len() < 4 {
                inner.push((kept, member.file_type));
            }
            Ok(())
        });
        self.found.limits.extend(outcome.limit);
        self.found.suspicious |= outcome.suspicious.is_some();
        self.found.broken.extend(outcome.broken);
        for (file, file_type) in inner {
            self.walk(&file, depth + 1, file_type);
        }
    }
}

/// Opens a bomb; tells what it ended with, and holds it to its limits.
fn explode(name: &str, bomb: &[u8]) -> Found {
    let program = env!("CARGO_BIN_EXE_sandboxed-for-tests").into();
    let sandbox = Sandbox::start(SandboxOptions { program, ..SandboxOptions::new(1) }).unwrap();
    let (peak, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = std::thread::spawn({
        let (peak, done) = (peak.clone(), done.clone());
        move || {
            while !done.load(Ordering::Acquire) {
                peak.fetch_max(resident_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    let before = resident_bytes();
    let began = Instant::now();
    let budget = Arc::new(TreeBudget::new(limits(), bomb.len() as u64));
    let mut tree = Tree { sandbox: &sandbox, budget, found: Found::default() };
    tree.walk(bomb, 0, None);
    let took = began.elapsed();
    done.store(true, Ordering::Release);
    watch.join().unwrap();
    let peak = peak.load(Ordering::Relaxed);
    println!(
        "{name:<24} {} bytes: {:?} in {took:.1?}, {} MiB at most, {} before{}",
        bomb.len(),
        tree.found.limits,
        peak >> 20,
        before >> 20,
        tree.found.broken.first().map(|broken| format!(": {broken}")).unwrap_or_default(),
    );
    assert!(took < WALL_MAX, "{name} took {took:?}");
    assert!(peak < MEMORY_MAX, "{name} took {peak} bytes");
    tree.found
}

/// What this process and its descendants hold now, shared pages counted for each.
fn resident_bytes() -> u64 {
    let mut parents = HashMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // "pid (name) state parent ... resident pages", the name in parentheses being anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        parents.insert(pid, (number(1) as u32, number(21) * 4096));
    }
    let own = std::process::id();
    let descends = |mut pid: u32| {
        for _ in 0..64 {
            match (pid, parents.get(&pid)) {
                (pid, _) if pid == own => return true,
                (_, Some((parent, _))) => pid = *parent,
                _ => return false,
            }
        }
        false
    };
    parents.iter().filter(|(pid, _)| descends(**pid)).map(|(_, (_, resident))| resident).sum()
}

// The bombs.

fn zip(members: &[(String, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in members {
        writer.start_file(name.as_str(), zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn gz(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A central directory whose entries all lead to one member.
fn overlapping(entries: u32) -> Vec<u8> {
    let mut file = zip(&[("a".to_owned(), &vec![0; MIB])]);
    let end = file.len() - 22;
    let start = u32::from_le_bytes(file[end + 16..end + 20].try_into().unwrap()) as usize;
    let header = file[start..end].to_vec();
    let mut tail = file[end..].to_vec();
    file.truncate(start);
    for _ in 0..entries {
        file.extend_from_slice(&header);
    }
    let length = file.len() - start;
    tail[8..10].copy_from_slice(&(entries as u16).to_le_bytes());
    tail[10..12].copy_from_slice(&(entries as u16).to_le_bytes());
    tail[12..16].copy_from_slice(&(length as u32).to_le_bytes());
    file.extend_from_slice(&tail);
    file
}

/// A tar header for a member of this type and size.
fn header(kind: u8, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("member").unwrap();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn nested_archives_end_at_the_depth_or_the_size() {
    let mut deep = b"the end".to_vec();
    for _ in 0..30 {
        deep = gz(&deep);
    }
    assert!(explode("gz thirty deep", &deep).limits.contains(&Limit::Depth));
    let mut nested = zip(&[("zeros".to_owned(), &vec![0; 16 * MIB])]);
    for _ in 0..6 {
        let members: Vec<(String, &[u8])> = (0..16).map(|at| (format!("{at}.zip"), nested.as_slice())).collect();
        nested = zip(&members);
    }
    let found = explode("zip of zips of zips", &nested);
    assert!(!found.limits.is_empty() && found.limits.iter().all(|limit| matches!(limit, Limit::Ratio | Limit::Size)));
}

#[test]
fn members_that_share_their_data_end_at_the_ratio() {
    let found = explode("overlapping entries", &overlapping(9000));
    assert!(found.limits.contains(&Limit::Ratio) || found.limits.contains(&Limit::Size));
}

#[test]
fn four_gibibytes_of_zeros_end_at_the_ratio() {
    // Streams may be concatenated in each of these: that spares the test an hour of compressing.
    let zeros = vec![0; 64 * MIB];
    let bz2 = {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        encoder.write_all(&zeros).unwrap();
        encoder.finish().unwrap()
    };
    let xz = {
        let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        writer.write_all(&zeros).unwrap();
        writer.finish().unwrap()
    };
    let zst = zstd::encode_all(zeros.as_slice(), 1).unwrap();
    let gz = gz(&zeros);
    drop(zeros);
    for (name, part) in [("gz", gz), ("bz2", bz2), ("xz", xz), ("zstd", zst)] {
        let found = explode(&format!("4 GiB of zeros in {name}"), &part.repeat(64));
        assert!(found.limits.contains(&Limit::Ratio) || found.limits.contains(&Limit::Size), "{name}");
    }
}

#[test]
fn dictionaries_of_four_gibibytes_are_refused() {
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    writer.write_all(b"content").unwrap();
    let mut xz = writer.finish().unwrap();
    // The block header behind the stream's: its length, flags, the filter's id, the length of its properties, the dictionary.
    assert_eq!(xz[14..16], [0x21, 1]);
    xz[16] = 40;
    let length = (usize::from(xz[12]) + 1) * 4;
    let mut sum = flate2::Crc::new();
    sum.update(&xz[12..12 + length - 4]);
    xz[12 + length - 4..12 + length].copy_from_slice(&sum.sum().to_le_bytes());
    let found = explode("4 GiB xz dictionary", &xz);
    assert_eq!((found.limits, found.broken), (HashSet::from([Limit::Memory]), vec![]));
    // A frame header with a window of 2^31 bytes, and an empty last block.
    let zst = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
    let found = explode("2 GiB zstd window", &zst);
    assert_eq!((found.limits, found.broken), (HashSet::from([Limit::Memory]), vec![]));
}

#[test]
fn many_members_end_at_their_number() {
    let names: Vec<(String, &[u8])> = (0..60_000).map(|at| (at.to_string(), b"x".as_slice())).collect();
    assert_eq!(explode("60,000 members in zip", &zip(&names)).limits, HashSet::from([Limit::Files]));
    let many = [header(b'0', 0)].concat().repeat(200_000);
    assert_eq!(explode("200,000 members in tar", &many).limits, HashSet::from([Limit::Files]));
}

#[test]
fn long_names_and_deep_folders_cost_nothing() {
    let path = b"d/".repeat(100_000);
    let mut tar = header(b'L', path.len() as u64);
    tar.extend_from_slice(&path);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar.extend_from_slice(&header(b'0', 0));
    explode("100,000 folders deep", &tar);
    let mut name = header(b'L', MIB as u64);
    name.resize(512 + MIB, b'n');
    name.extend_from_slice(&header(b'0', 0));
    // The gzip of a tar that says a thousand names of a megabyte each.
    let found = explode("1 GiB of names", &gz(&name).repeat(1024));
    assert!(found.limits.contains(&Limit::Ratio) || found.limits.contains(&Limit::Size));
}

#[test]
fn what_only_costs_time_costs_little() {
    explode("5 million signatures", &b"PK\x03\x04".repeat(5 << 20));
    let empty = b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0";
    explode("1.5 million empty bz2", &empty.repeat(1_500_000));
}
