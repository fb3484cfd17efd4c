//! Malformed files of every format of README's table, through all of a worker but its leases: each ends with a verdict, and nobody
//! dies of it but processes of the sandbox.
//!
//! Each file is cut, made to lie about its lengths, made to refer to itself by pieces that are copied to other places, and changed
//! at random; what leads in circles for sure is made by hand. The seed is printed, and `LAZARET_SEED` replays one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod measured;
mod table;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use common::*;
use lazaret_analysis::{ResultCode, Rule};
use lazaret_containers::Passwords;
use lazaret_containers::conformance::{Random, mutate};
use lazaret_scan_worker::engines;
use lazaret_scan_worker::scan::{Scanner, ScannerOptions};
use measured::{Cost, measured};
use table::{File, Row, rows};

/// Fewer would not be worth the name of a corpus.
const FILES_MIN: usize = 400;
/// What this process and its children may hold together.
const MEMORY_MAX: u64 = 300 << 20;
/// Longer files are left to others of their row, or there would be gigabytes.
const BYTES_MAX: usize = 8 << 20;
/// How many files are scanned at once.
const THREADS: usize = 2;
/// Random changes of each file; fewer where each costs the derivation of a key.
const CHANGES: usize = 5;
const CHANGES_LOCKED: usize = 2;
/// What is written over lengths and places.
const LIES: [[u8; 8]; 4] = [[0xff; 8], [0; 8], (i64::MAX as u64).to_le_bytes(), (i32::MAX as u64).to_be_bytes()];

/// Where a file is cut: in its first structures, all along, and in its last.
fn cuts(length: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = [1, 7, 16, 31, 64, 128, 512].into_iter().filter(|at| *at < length).collect();
    cuts.extend((1..8).map(|eighth| length * eighth / 8));
    cuts.extend([512, 64, 22, 8, 1].into_iter().filter_map(|back| length.checked_sub(back)));
    cuts.sort_unstable();
    cuts.dedup();
    cuts.retain(|at| *at > 0);
    cuts
}

/// Where a file is made to lie: near its beginning and its end, where structure is dense.
fn places(length: usize) -> Vec<usize> {
    let near = [4, 8, 12, 16, 20, 28, 60];
    let mut places: Vec<usize> =
        near.into_iter().chain(near.into_iter().map(|back| length.saturating_sub(back + 8))).collect();
    places.retain(|at| at + 8 <= length);
    places
}

/// How often each thing happened.
#[derive(Default)]
struct Tally {
    files: usize,
    codes: BTreeMap<String, usize>,
    lost: BTreeMap<String, usize>,
    by_row: BTreeMap<&'static str, usize>,
    /// The one that took longest, and its members.
    longest: (Duration, String, usize),
}

impl Tally {
    /// Adds what was found of a row.
    fn add(&mut self, row: &'static str, other: Self) {
        *self.by_row.entry(row).or_default() += other.files;
        self.files += other.files;
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        self.lost.extend(other.lost);
        self.longest = std::mem::take(&mut self.longest).max(other.longest);
    }

    /// The same, after it was printed.
    fn reported(self, cost: &Cost) -> Self {
        println!("{} malformed files in {:.1?}, {} MiB at most", self.files, cost.took, cost.peak_bytes >> 20);
        println!("{:#?}\n{:#?}\nprocesses lost: {:#?}", self.codes, self.by_row, self.lost);
        println!("longest: {:?}", self.longest);
        self
    }

    /// Scans a file, which must end. Tells with what.
    fn scan(&mut self, scanner: &Scanner, what: &str, bytes: Vec<u8>, passwords: Passwords) -> Scanned {
        let began = Instant::now();
        let scanned = scan_locked(scanner, what, Bytes::from(bytes), Rule::with_defaults("test"), passwords);
        let took = (began.elapsed(), what.to_owned(), scanned.records.len());
        self.longest = std::mem::take(&mut self.longest).max(took);
        self.files += 1;
        *self.codes.entry(scanned.root.overall.text().to_owned()).or_default() += 1;
        if ["crashed", "panicked", "overflowed", "ended early", "senseless"]
            .iter()
            .any(|end| scanned.detail().contains(end))
        {
            *self.lost.entry(format!("{what}: {}", scanned.detail())).or_default() += 1;
        }
        scanned
    }
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    std::env::var("LAZARET_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now)
}

#[test]
fn every_malformed_file_ends_with_a_verdict() {
    let seed = seed();
    println!("LAZARET_SEED={seed}");
    let options = ScannerOptions { sample_memory_max_bytes: 32 * MIB, sample_budget_bytes: 64 * MIB, ..options() };
    let scanner = scanner(options, engines::builtin().unwrap());
    let rows = rows();
    table::check(&rows);
    let files: Vec<(&Row, &File)> = rows
        .iter()
        .flat_map(|row| row.files.iter().map(move |file| (row, file)))
        .filter(|(_, file)| file.bytes.len() <= BYTES_MAX)
        .collect();
    // Each file's changes are its own, whichever thread comes to it.
    let tally = Mutex::new(Tally::default());
    let next = AtomicUsize::new(0);
    let (_, cost) = measured(|| {
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some((row, file)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let name = file.name.bytes().fold(0, |sum: u64, byte| sum * 31 % 1_000_003 + u64::from(byte));
                        let mut own = Tally::default();
                        malformed(&scanner, file, row.is_opened, &mut Random(seed ^ name), &mut own);
                        tally.lock().unwrap().add(row.formats, own);
                    }
                });
            }
        });
    });
    let Tally { by_row, .. } = tally.into_inner().unwrap().reported(&cost);
    let files: usize = by_row.values().sum();
    assert!(files >= FILES_MIN, "only {files} malformed files");
    assert!(by_row.len() == rows.len() && by_row.values().all(|count| *count >= 10), "{by_row:?}");
    assert!(cost.peak_bytes < MEMORY_MAX, "{} bytes", cost.peak_bytes);
    // The same worker goes on as before.
    let scanned = scan_with(&scanner, "e.zip", zip(&[("e.com", &eicar())]), Rule::with_defaults("test"));
    assert_eq!(scanned.root.overall, ResultCode::INFECTED);
}

fn malformed(scanner: &Scanner, file: &File, is_opened: bool, random: &mut Random, tally: &mut Tally) {
    let passwords = || Passwords::new(file.password.map(str::to_owned));
    let whole = &file.bytes;
    for at in cuts(whole.len()) {
        let what = format!("{} cut at {at}", file.name);
        let scanned = tally.scan(scanner, &what, whole[..at].to_vec(), passwords());
        // Cut off it is infected or said to be broken, and never clean, as long as it is known for what it is.
        let is_same = scanned.root.container.is_some() && scanned.root.file.file_type != "text/plain";
        if is_opened && file.has_end && is_same {
            assert_ne!(scanned.root.overall, ResultCode::NO_THREAT, "{what}");
        }
    }
    let (lies, changes) = match file.password {
        None => (&LIES[..], CHANGES),
        Some(_) => (&LIES[..1], CHANGES_LOCKED),
    };
    for (number, at) in places(whole.len()).into_iter().enumerate() {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&lies[number % lies.len()]);
        tally.scan(scanner, &format!("{} that lies at {at}", file.name), bytes, passwords());
    }
    for _ in 0..changes {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(4) {
            mutate(&mut bytes, random);
        }
        tally.scan(scanner, &format!("{} changed", file.name), bytes, passwords());
        // A piece over another one: what lies where something else should be, its own beginning included.
        let mut bytes = whole.clone();
        let length = (16 + random.below(512)).min(bytes.len());
        let from = random.below(bytes.len() - length + 1);
        let to = random.below(bytes.len() - length + 1);
        bytes.copy_within(from..from + length, to);
        tally.scan(scanner, &format!("{} over itself", file.name), bytes, passwords());
    }
}

/// What refers to itself ends.
#[test]
fn what_leads_in_circles_ends() {
    let scanner = scanner(options(), engines::builtin().unwrap());
    let mut tally = Tally::default();
    let mut scan = |what: &str, bytes: Vec<u8>| tally.scan(&scanner, what, bytes, Passwords::NONE).root.overall;
    let sample = |name: &str| table::samples::SAMPLES.iter().find(|sample| sample.name == name).unwrap().file();
    // Extended partitions that are each other's next.
    let mut disk = vec![0; 64 * 512];
    for (sector, next) in [(0, 8u32), (8, 0), (16, 8)] {
        let at = sector * 512;
        disk[at + 450] = 5;
        disk[at + 454..at + 458].copy_from_slice(&next.to_le_bytes());
        disk[at + 458..at + 462].copy_from_slice(&64u32.to_le_bytes());
        disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    }
    scan("partitions in a circle", disk);
    // The table of a FAT whose clusters are all their own next.
    for name in ["fat12", "fat16"] {
        let mut fat = sample(name);
        let table = usize::from(u16::from_le_bytes([fat[14], fat[15]])) * 512;
        for (at, byte) in fat[table..table + 1024].iter_mut().enumerate() {
            *byte = [3, 0x30, 0][at % 3];
        }
        assert_ne!(scan(&format!("{name} in a circle"), fat), ResultCode::NO_THREAT);
    }
    // A directory that is in itself.
    let mut ext = sample("ext2");
    let at = ext.windows(6).position(|name| name == b"folder").unwrap() - 8;
    ext[at..at + 4].copy_from_slice(&2u32.to_le_bytes());
    assert_eq!(scan("ext2 with its root in itself", ext), ResultCode::INFECTED);
    // Sectors of a compound file that are their own next: every one of them in the table.
    let mut ole = table::rows().into_iter().flat_map(|row| row.files).find(|file| file.name == "doc").unwrap().bytes;
    let table = (usize::from(u16::from_le_bytes([ole[76], ole[77]])) + 1) * 512;
    for sector in 1..8u32 {
        let at = table + sector as usize * 4;
        ole[at..at + 4].copy_from_slice(&sector.to_le_bytes());
    }
    scan("doc in a circle", ole);
    // An object of a PDF whose length is itself, and a filter's parameters that are the object.
    let pdf = "%PDF-1.4\n1 0 obj\n<< /Length 1 0 R /Filter 1 0 R /DecodeParms 1 0 R >>\nstream\nx\nendstream\nendobj\n%%EOF\n";
    scan("pdf in a circle", pdf.into());
    // A message whose parts are separated by what separates the whole.
    let mail = "Content-Type: multipart/mixed; boundary=a\r\n\r\n".to_owned()
        + &"--a\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n".repeat(3000);
    scan("mail in a circle", mail.into());
    // A tape archive whose long name is a long name.
    let mut header = tar::Header::new_gnu();
    header.set_path("././@LongLink").unwrap();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(512);
    header.set_cksum();
    scan("tar in a circle", header.as_bytes().repeat(5000));
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
}

/// A message whose only part is a message, whose text is the same whether it is decoded or not: read in both ways at every step it
/// would be a million files.
#[test]
fn what_can_be_read_in_two_ways_does_not_double_with_every_step() {
    let scanner = scanner(options(), engines::builtin().unwrap());
    let head = "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: quoted-printable\r\nSubject: a\r\n\r\n";
    let mail = |steps: usize| head.repeat(steps) + "Subject: b\r\nFrom: c\r\n\r\ntext\r\n";
    let few = scan_with(&scanner, "few.eml", mail(3), Rule::with_defaults("test"));
    assert_eq!((few.root.overall, few.records.len()), (ResultCode::NO_THREAT, 22));
    let many = scan_with(&scanner, "many.eml", mail(19), Rule::with_defaults("test"));
    assert_eq!(many.root.overall, ResultCode::SUSPICIOUS, "{}", many.detail());
    assert!(many.records.len() < 30_000, "{} files", many.records.len());
}
