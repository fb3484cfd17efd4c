//! What every format must do, as suites that run against it. They panic with what was violated.
//!
//! A test of a format makes a container around some content, and hands both to [`check`]. Random rounds print their seed;
//! `LAZARET_SEED` replays one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a suite panics when it is violated")]

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use crate::budget::{Budget, TreeBudget};
use crate::container::Member;
use crate::detect::detect;
use crate::format::{ContainerFormat, Found};
use crate::limits::Limits;
use crate::outcome::ExtractionOutcome;
use crate::passwords::Passwords;

/// How long one run may take: far longer than the clock of [`limits`] allows, so that a busy machine fails no test.
const RUN_MAX: Duration = Duration::from_secs(40);
/// Files up to this length are cut at every byte, longer ones at so many places.
const CUTS_MAX: usize = 2048;
/// How many containers deep content is looked for.
const DEPTH_MAX: u32 = 12;

/// The EICAR test file. It is written backwards, so that neither this source nor a test program holds it.
pub fn eicar() -> Vec<u8> {
    br"*H+H$!ELIF-TSET-SURIVITNA-DRADNATS-RACIE$}7)CC7)^P(45XZP\4[PA@%P!O5X".iter().rev().copied().collect()
}

/// Limits that small tests stay within, and bombs don't.
pub fn limits() -> Limits {
    Limits {
        depth: 20,
        files: 10_000,
        produced_bytes: 256 << 20,
        ratio: 1000,
        ratio_free_bytes: 64 << 20,
        archive_seconds: 10,
        file_bytes: None,
    }
}

/// A container and what is known of it.
pub struct Case<'c> {
    /// The name of its format in the table.
    pub format: &'c str,
    /// The file.
    pub file: &'c [u8],
    /// What must be found in it, however deep.
    pub holds: &'c [u8],
    /// The passwords that it needs.
    pub passwords: Passwords,
    /// The format has no end mark or count: cut between two members it is complete.
    pub open_ended: bool,
}

impl<'c> Case<'c> {
    /// A container of a format that says where it ends, without passwords.
    pub fn new(format: &'c str, file: &'c [u8], holds: &'c [u8]) -> Self {
        Self { format, file, holds, passwords: Passwords::NONE, open_ended: false }
    }

    fn format(&self) -> ContainerFormat {
        ContainerFormat::named(self.format).unwrap_or_else(|| panic!("no format {:?} in the table", self.format))
    }
}

/// What came out of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The members, in order: name and content.
    pub members: Vec<(String, Vec<u8>)>,
    /// How it ended.
    pub outcome: ExtractionOutcome,
}

/// Takes a file apart as one format, at `offset`, whatever it looks like.
pub fn take_apart_as(format: ContainerFormat, file: &[u8], offset: u64, passwords: &Passwords) -> Taken {
    take_apart_within(format, file, offset, passwords, limits())
}

/// The same under limits of the caller's own.
pub fn take_apart_within(
    format: ContainerFormat,
    file: &[u8],
    offset: u64,
    passwords: &Passwords,
    limits: Limits,
) -> Taken {
    let length = file.len() as u64;
    let stop: Arc<AtomicBool> = Arc::default();
    let budget = Budget::new(Arc::new(TreeBudget::new(limits, length)), stop, length);
    let mut members = Vec::new();
    let began = Instant::now();
    let mut sink = |member: Member<'_>| {
        let mut content = Vec::new();
        // What broke the member is in the outcome.
        let _ = member.content.read_to_end(&mut content);
        members.push((member.name, content));
        Ok(())
    };
    let found = Found { format, offset };
    let outcome = found.extract("file", length, &mut Cursor::new(file), passwords, &budget, &mut sink);
    assert!(began.elapsed() < RUN_MAX, "{format:?}: took {:?}, whatever the clock says", began.elapsed());
    Taken { members, outcome }
}

/// Takes a file apart as everything that it is.
pub fn take_apart(file: &[u8], passwords: &Passwords) -> Taken {
    let detected = detect(&mut Cursor::new(file), file.len() as u64).expect("reading memory");
    let mut all = Taken { members: Vec::new(), outcome: ExtractionOutcome::default() };
    if let Some(suspicious) = detected.suspicious {
        all.outcome.note_suspicious(suspicious);
    }
    for found in detected.containers {
        let taken = take_apart_as(found.format, file, found.offset, passwords);
        all.members.extend(taken.members);
        all.outcome.merge(taken.outcome);
    }
    all
}

/// Whether `needle` is the content of a file, or part of it, or of anything in it.
pub fn is_found(file: &[u8], needle: &[u8], passwords: &Passwords) -> bool {
    is_found_within(file, needle, passwords, DEPTH_MAX)
}

fn is_found_within(file: &[u8], needle: &[u8], passwords: &Passwords, depth: u32) -> bool {
    // A stored member lies in its container as it is: only what came out counts, so containers are opened first.
    let taken = take_apart(file, passwords);
    if taken.members.is_empty() {
        return file.windows(needle.len().max(1)).any(|window| window == needle);
    }
    depth > 0 && taken.members.iter().any(|(_, member)| is_found_within(member, needle, passwords, depth - 1))
}

/// Everything below, with so many random rounds.
pub fn check(case: &Case<'_>, rounds: u32) {
    comes_apart(case);
    survives_cuts(case);
    survives_mutations(case, rounds);
}

/// It is recognised, comes apart with nothing to remark, and holds what it should.
pub fn comes_apart(case: &Case<'_>) {
    let detected = detect(&mut Cursor::new(case.file), case.file.len() as u64).expect("reading memory");
    let formats: Vec<_> = detected.containers.iter().map(|found| found.format).collect();
    assert!(formats.contains(&case.format()), "a file of format {} is taken for {formats:?}", case.format);
    let taken = take_apart(case.file, &case.passwords);
    assert!(taken.outcome.is_complete(), "{}: {}", case.format, taken.outcome.detail());
    assert!(is_found(case.file, case.holds, &case.passwords), "{}: what it holds is not found", case.format);
}

/// Cut anywhere, it ends with an outcome; and that says so, if anything is missing.
pub fn survives_cuts(case: &Case<'_>) {
    let whole = take_apart(case.file, &case.passwords);
    let step = case.file.len().div_ceil(CUTS_MAX).max(1);
    for length in (0..case.file.len()).step_by(step) {
        let cut = &case.file[..length];
        // Whoever opens it by its name gets this far even if it is no longer recognised.
        take_apart_as(case.format(), cut, 0, &case.passwords);
        let detected = detect(&mut Cursor::new(cut), length as u64).expect("reading memory");
        if !detected.containers.iter().any(|found| found.format == case.format()) {
            continue;
        }
        let taken = take_apart(cut, &case.passwords);
        if !taken.outcome.is_complete() {
            continue;
        }
        if case.open_ended {
            assert!(whole.members.starts_with(&taken.members), "{} cut at {length}: other members", case.format);
        } else {
            assert!(taken.members == whole.members, "{} cut at {length} passes for complete", case.format);
        }
    }
}

/// Changed at random, it ends with an outcome.
pub fn survives_mutations(case: &Case<'_>, rounds: u32) {
    let seed = std::env::var("LAZARET_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64)
    });
    println!("{}: LAZARET_SEED={seed}", case.format);
    let mut random = Random(seed);
    for _ in 0..rounds {
        let mut file = case.file.to_vec();
        for _ in 0..=random.below(4) {
            mutate(&mut file, &mut random);
        }
        take_apart_as(case.format(), &file, 0, &case.passwords);
        take_apart(&file, &case.passwords);
    }
}

/// Numbers that parsers stumble over.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// Changes a file in one place.
pub fn mutate(file: &mut Vec<u8>, random: &mut Random) {
    if file.is_empty() {
        return file.push(random.next() as u8);
    }
    // Structure is dense at both ends, so every second change goes there.
    let at = match random.below(4) {
        0 => random.below(file.len().min(512)),
        1 => file.len() - 1 - random.below(file.len().min(512)),
        _ => random.below(file.len()),
    };
    let span = (1 + random.below(64)).min(file.len() - at);
    match random.below(7) {
        0 => file[at] ^= 1 << random.below(8),
        1 => file[at] = random.next() as u8,
        2 => {
            let edge = EDGES[random.below(EDGES.len())];
            let bytes = if random.below(2) == 0 { edge.to_le_bytes() } else { edge.to_be_bytes() };
            let width = [1, 2, 4, 8][random.below(4)].min(file.len() - at);
            let from = if bytes[0] == 0 { 8 - width } else { 0 };
            file[at..at + width].copy_from_slice(&bytes[from..from + width]);
        }
        3 => file[at..at + span].fill([0, 0xff, b' ', b'0'][random.below(4)]),
        4 => drop(file.drain(at..at + span)),
        5 => {
            let piece = file[at..at + span].to_vec();
            let to = random.below(file.len());
            file.splice(to..to, piece);
        }
        _ => file.truncate(at),
    }
}

/// Random numbers from a seed: SplitMix64, which is enough to choose places with.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}
