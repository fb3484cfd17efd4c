//! A root that several scanners take apart together comes to what one of them finds alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::*;
use lazaret_analysis::{FileResult, NestedRecord, PartResult, Rule};
use lazaret_scan_worker::engines;
use lazaret_scan_worker::scan::{Remainder, Root, RootPart, Scanner, ScannerOptions, Sharing, TreeOutcome};

/// Who has which members, in memory.
#[derive(Default)]
struct Board(Mutex<Vec<(&'static str, Range<u32>)>>);

impl Board {
    fn of(&self, who: &str) -> Vec<Range<u32>> {
        let claims = self.0.lock().unwrap();
        claims.iter().filter(|(claimant, _)| *claimant == who).map(|(_, range)| range.clone()).collect()
    }
}

struct Claimant {
    board: Arc<Board>,
    name: &'static str,
}

impl Sharing for Claimant {
    fn leads(&self) -> bool {
        self.name == "lead"
    }

    fn begin(&self) -> bool {
        true
    }

    fn claim(&self, count: u32) -> Result<Option<Range<u32>>, String> {
        let mut claims = self.board.0.lock().unwrap();
        let first = claims.iter().map(|(_, range)| range.end).max().unwrap_or(0);
        // Few, so that both get some of a short archive.
        let range = first..first + count.min(3);
        claims.push((self.name, range.clone()));
        Ok(Some(range))
    }
}

/// Few numbers, drawn from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn begin(scanner: &Scanner, content: &Bytes, rule: &Rule, sharing: Arc<dyn Sharing>) -> (Root, Arc<Records>) {
    let root = root("shared.zip", content.clone(), rule.clone(), scanner);
    (Root { sharing: Some(sharing), ..root }, Arc::default())
}

/// Scans the members that fall to `sharing`, and puts their records to the others'.
fn part(
    scanner: &Scanner,
    content: &Bytes,
    rule: &Rule,
    sharing: Arc<dyn Sharing>,
    all: &Mutex<Vec<NestedRecord>>,
) -> Box<RootPart> {
    let (root, records) = begin(scanner, content, rule, sharing);
    let outcome = scanner.scan(root, Arc::new(MemoryStore::default()), records.clone()).wait();
    let TreeOutcome::Shared(part) = outcome else { panic!("not a part: {outcome:?}") };
    all.lock().unwrap().append(&mut records.0.lock().unwrap());
    part
}

/// How a shared scan went: the result, if the parts added up, and all records.
struct Together {
    whole: Option<FileResult>,
    parts: String,
    records: Vec<NestedRecord>,
    helpers_members: u64,
}

/// Two scanners at once. What the helper had is scanned once more instead if it is `lost`.
fn together(options: &ScannerOptions, content: &Bytes, rule: &Rule, lost: bool) -> Together {
    let scanners = [(); 2].map(|()| scanner(options.clone(), engines::builtin().unwrap()));
    let board = Arc::new(Board::default());
    let sharing = |name| -> Arc<dyn Sharing> { Arc::new(Claimant { board: board.clone(), name }) };
    let all = Mutex::default();
    let (lead, helper) = std::thread::scope(|scope| {
        let helping = scope.spawn(|| part(&scanners[1], content, rule, sharing("helper"), &all));
        let lead = part(&scanners[0], content, rule, sharing("lead"), &all);
        (lead, helping.join().unwrap())
    });
    let mut others: Vec<PartResult> = vec![helper.result().clone()];
    let mut records: Vec<NestedRecord> = all.into_inner().unwrap();
    if lost {
        let again = Mutex::default();
        let rest = part(&scanners[0], content, rule, Arc::new(Remainder::new(board.of("helper"))), &again);
        others = vec![rest.result().clone()];
        for record in again.into_inner().unwrap() {
            let before = records.iter_mut().find(|before| before.data_id == record.data_id).expect("the same rows");
            assert_eq!((before.ordinal, &before.path), (record.ordinal, &record.path));
            *before = record;
        }
    }
    let helpers_members = others[0].totals.files;
    let parts = format!("{:?} and {others:?}", lead.result());
    let whole = lead.whole(&others).map(|(result, _)| result);
    Together { whole, parts, records, helpers_members }
}

/// Checks that two scanners find what one does. How many files the helper found.
fn compare(options: &ScannerOptions, content: Vec<u8>, rule: &Rule, what: &str) -> u64 {
    let content = Bytes::from(content);
    let alone =
        scan_with(&scanner(options.clone(), engines::builtin().unwrap()), "shared.zip", content.clone(), rule.clone());
    let mut helped = 0;
    for lost in [false, true] {
        let Together { whole, parts, records, helpers_members } = together(options, &content, rule, lost);
        let whole = whole.unwrap_or_else(|| panic!("{what}: the parts don't add up: {parts}"));
        let shared = Scanned { root: whole, records, spooled_bytes: 0 };
        assert_eq!(shared.without_times(), alone.without_times(), "{what}, lost: {lost}");
        helped += helpers_members;
    }
    helped
}

/// Members of all kinds: short, long, threats, archives.
fn members(seed: u64, count: u64) -> Vec<(String, Vec<u8>)> {
    let mut draw = Draw(seed);
    let member = |number: u64, draw: &mut Draw| match draw.below(12) {
        0 => (format!("{number}.com"), eicar()),
        1 | 2 => {
            let inner: Vec<_> = (0..draw.below(5)).map(|at| format!("{seed} {number} {at}")).collect();
            let named: Vec<(&str, &[u8])> = inner.iter().map(|text| (text.as_str(), text.as_bytes())).collect();
            (format!("{number}.zip"), zip(&named))
        }
        3 => (format!("{number}.tar.gz"), gz(&tar(&[("a", b"text"), ("b/c", &eicar())]))),
        4 => (format!("{number}.bin"), vec![draw.below(250) as u8; draw.below(300_000) as usize]),
        5 => (format!("{number}.zip"), zip(&[("cut", b"off")])[..40].to_vec()),
        _ => (format!("{number}.txt"), format!("member {number} of {seed}").into_bytes()),
    };
    (0..count).map(|number| member(number, &mut draw)).collect()
}

fn borrowed(members: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
    members.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect()
}

#[test]
fn two_scanners_find_what_one_finds() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let rule = Rule::with_defaults("test");
    let outside = ScannerOptions { sandbox: None, ..options() };
    let mut helped = 0;
    for round in 0..4 {
        let members = members(seed + round, 60);
        let members = borrowed(&members);
        helped += compare(&options(), zip(&members), &rule, "zip");
        helped += compare(&options(), tar(&members), &rule, "tar");
        helped += compare(&outside, zip(&members), &rule, "zip, not in the sandbox");
    }
    assert!(helped > 0, "nobody helped");
}

#[test]
fn what_is_wrong_with_an_archive_is_found_by_parts_too() {
    let rule = Rule::with_defaults("test");
    let members = members(5, 40);
    let good = zip_by(zip::CompressionMethod::Stored, &borrowed(&members));
    compare(&options(), zip(&[]), &rule, "empty");
    // A member that the directory doesn't name, behind the others.
    let hidden = zip(&[("hidden.txt", b"hidden")]);
    let end = hidden.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    compare(&options(), [&hidden[..end], &good[..]].concat(), &rule, "with a hidden member");
    // A member whose content is not what its checksum says.
    let at = good.windows(7).position(|bytes| bytes == b"member ");
    let mut broken = good.clone();
    broken[at.unwrap()] ^= 1;
    compare(&options(), broken, &rule, "with a broken member");
    compare(&options(), good[..good.len() - 400].to_vec(), &rule, "cut off");
}

#[test]
fn where_limits_strike_parts_are_not_folded() {
    let mut rule = Rule::with_defaults("test");
    rule.limits.files = 30;
    let members = members(5, 40);
    let content = Bytes::from(zip(&borrowed(&members)));
    let Together { whole, .. } = together(&options(), &content, &rule, false);
    assert_eq!(whole, None);
    // Neither part comes to the limit, both together do.
    let many: Vec<_> = (0..50).map(|number| (format!("{number}"), vec![7; 100_000])).collect();
    let content = Bytes::from(zip_by(zip::CompressionMethod::Stored, &borrowed(&many)));
    let mut rule = Rule::with_defaults("test");
    rule.limits.produced_bytes = 4_900_000;
    let Together { whole, helpers_members, .. } = together(&options(), &content, &rule, false);
    println!("the helper had {helpers_members}");
    assert_eq!(whole, None);
}
