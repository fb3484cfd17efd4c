//! What every engine must do, as one suite that runs against each through its trait, with the real thing behind it.

#![allow(clippy::panic, reason = "a suite panics when it is violated")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_analysis::{FileInfo, ResultCode};
use lazaret_digests::{Selection, Set};
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;

use crate::engine::{Engine, EngineVerdict, ScanContext, Subject};
use crate::sample::Sample;
use crate::source::{BlobSource, SourceError};

/// An engine, and what it is to find.
pub struct Case<'e> {
    /// The engine.
    pub engine: &'e dyn Engine,
    /// A file in which it finds something, as a whole.
    pub bad: Vec<u8>,
    /// The result of that.
    pub bad_code: ResultCode,
    /// The result of a file in which it finds nothing.
    pub clean_code: ResultCode,
}

/// How long no engine takes for the files of the suite.
const LIMIT: Duration = Duration::from_secs(30);
/// Files at once.
const TOGETHER: usize = 8;
/// Files one after another, of each of those.
const IN_A_ROW: usize = 25;

/// A file in which no engine of any test finds anything.
const CLEAN: &[u8] = b"nothing to be found here";

/// What an engine says of a file in memory.
pub fn judge(engine: &dyn Engine, name: &str, content: &[u8]) -> EngineVerdict {
    let sample = Sample::memory(name, Bytes::copy_from_slice(content));
    judge_sample(engine, &sample, content, LIMIT)
}

fn judge_sample(engine: &dyn Engine, sample: &Sample, content: &[u8], limit: Duration) -> EngineVerdict {
    let digests = Set::digest(Selection::ALL, content);
    let file = FileInfo {
        display_name: sample.name().to_owned(),
        size_bytes: sample.length(),
        md5: digests.md5_hex(),
        sha1: digests.sha1_hex(),
        sha256: digests.sha256_hex(),
        file_type: "application/octet-stream".into(),
        ..FileInfo::default()
    };
    engine.scan(&Subject { sample, file: &file, confined: None }, &ScanContext::within(limit))
}

/// A file that is not in memory.
struct Stored(Bytes);

impl BlobSource for Stored {
    fn read(&self, name: BlobName, range: ByteRange) -> Result<Bytes, SourceError> {
        let part = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let part = part.filter(|(start, end)| start <= end && *end <= self.0.len());
        part.map(|(start, end)| self.0.slice(start..end)).ok_or(SourceError::NotFound(name))
    }
}

/// Runs everything. Panics at the first thing that is wrong.
pub fn check(case: &Case<'_>) {
    says_what_it_is(case.engine);
    finds_what_it_should(case);
    names_do_it_no_harm(case);
    many_at_once_are_kept_apart(case);
    without_time_nothing_bad_passes(case);
    what_is_not_in_memory_is_never_called_clean_unseen(case);
    assert_eq!(case.engine.trouble(), None, "it is well after all that");
}

fn says_what_it_is(engine: &dyn Engine) {
    let info = engine.info();
    assert!(!info.id.is_empty() && !info.name.is_empty() && !info.version.is_empty(), "{info:?}");
    assert_eq!(engine.info(), info, "it stays what it is");
}

fn finds_what_it_should(case: &Case<'_>) {
    let found = judge(case.engine, "bad", &case.bad);
    assert_eq!(found.code, case.bad_code, "{found:?}");
    assert!(!found.threat.is_empty(), "it names what it found");
    for clean in [CLEAN, b"", &[0; 100_000]] {
        let verdict = judge(case.engine, "clean", clean);
        assert_eq!(verdict.code, case.clean_code, "{verdict:?}");
        assert!(verdict.hits.is_empty());
    }
    assert_eq!(judge(case.engine, "bad", &case.bad).code, case.bad_code, "it finds it again");
}

fn names_do_it_no_harm(case: &Case<'_>) {
    let long = "n".repeat(10_000);
    for name in ["", "../../etc/passwd", "a\nb\0c\r\n\"'$(id)\\", "\u{202e}\u{fffd}שלום", &long] {
        assert_eq!(judge(case.engine, name, &case.bad).code, case.bad_code, "{name:?}");
        assert_eq!(judge(case.engine, name, CLEAN).code, case.clean_code, "{name:?}");
    }
}

fn many_at_once_are_kept_apart(case: &Case<'_>) {
    std::thread::scope(|scope| {
        for thread in 0..TOGETHER {
            scope.spawn(move || {
                for turn in 0..IN_A_ROW {
                    let bad = (thread + turn) % 2 == 0;
                    let (content, code) = if bad { (&case.bad[..], case.bad_code) } else { (CLEAN, case.clean_code) };
                    let verdict = judge(case.engine, "one of many", content);
                    assert_eq!(verdict.code, code, "{verdict:?}");
                }
            });
        }
    });
}

fn without_time_nothing_bad_passes(case: &Case<'_>) {
    let sample = Sample::memory("bad", case.bad.clone());
    let verdict = judge_sample(case.engine, &sample, &case.bad, Duration::ZERO);
    assert!([case.bad_code, ResultCode::SCAN_FAILED].contains(&verdict.code), "{verdict:?}");
    assert_eq!(judge(case.engine, "bad", &case.bad).code, case.bad_code, "it goes on afterwards");
}

fn what_is_not_in_memory_is_never_called_clean_unseen(case: &Case<'_>) {
    let bad = Sample::remote(
        "bad",
        BlobName::of(&case.bad),
        case.bad.len() as u64,
        Arc::new(Stored(Bytes::copy_from_slice(&case.bad))),
    );
    let verdict = judge_sample(case.engine, &bad, &case.bad, LIMIT);
    assert!([case.bad_code, ResultCode::NOT_SCANNED].contains(&verdict.code), "{verdict:?}");
    // One that can't be read.
    let gone = Sample::remote("gone", BlobName([0; 32]), 1000, Arc::new(Stored(Bytes::new())));
    let verdict = judge_sample(case.engine, &gone, b"", LIMIT);
    assert!([ResultCode::SCAN_FAILED, ResultCode::NOT_SCANNED].contains(&verdict.code), "{verdict:?}");
}

/// An engine that should judge files and can't: each is Scan Failed, with a reason, soon enough.
pub fn check_broken(engine: &dyn Engine, content: &[u8], within: Duration) {
    let began = Instant::now();
    let verdict = judge(engine, "file", content);
    assert_eq!(verdict.code, ResultCode::SCAN_FAILED, "{verdict:?}");
    assert!(!verdict.threat.is_empty(), "it says why");
    assert!(began.elapsed() <= within, "{verdict:?} took {:?}", began.elapsed());
}
