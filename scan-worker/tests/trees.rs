//! Trees as a whole: limits, memory, threads, engines, stopping.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use common::*;
use lazaret_analysis::rule::SkipReason;
use lazaret_analysis::{FileInfo, Findings, NestedRecord, ResultCode, Rule, SMALL_FILE_BYTES};
use lazaret_containers::Passwords;
use lazaret_digests::Selection;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;
use lazaret_scan_worker::budget::StopReason;
use lazaret_scan_worker::engine::{Engine, EngineInfo, EngineVerdict, ScanContext, Subject};
use lazaret_scan_worker::engines::{self, builtin::marker};
use lazaret_scan_worker::sample::Sample;
use lazaret_scan_worker::scan::{RecordSink, Root, ScannerOptions, TreeOutcome};
use lazaret_scan_worker::source::{BlobSource, SourceError};

fn rule(change: impl FnOnce(&mut Rule)) -> Rule {
    let mut rule = Rule::with_defaults("test");
    change(&mut rule);
    rule
}

/// An engine of the test's own.
struct TestEngine<F>(&'static str, F);

impl<F: Fn(&Sample) -> EngineVerdict + Send + Sync> Engine for TestEngine<F> {
    fn info(&self) -> EngineInfo {
        engine_info(self.0, self.0)
    }

    fn scan(&self, subject: &Subject<'_>, _: &ScanContext) -> EngineVerdict {
        (self.1)(subject.sample)
    }
}

fn engine(name: &'static str, scan: impl Fn(&Sample) -> EngineVerdict + Send + Sync + 'static) -> Arc<dyn Engine> {
    Arc::new(TestEngine(name, scan))
}

fn clean(name: &'static str) -> Arc<dyn Engine> {
    engine(name, |_| EngineVerdict::clean())
}

// Limits.

#[test]
fn a_bomb_is_stopped_by_the_ratio_in_bounded_memory() {
    let zeros = vec![0; 80 * MIB as usize];
    // 80 MiB of zeros deflate to about 80 KiB.
    for (name, bomb) in [("bomb.gz", gz(&zeros)), ("bomb.zip", zip(&[("zeros", &zeros)]))] {
        let largest = Arc::new(AtomicUsize::new(0));
        let seen = largest.clone();
        let engines = vec![engine("watch", move |sample| {
            seen.fetch_max(sample.bytes().map_or(0, Bytes::len), Ordering::Relaxed);
            EngineVerdict::clean()
        })];
        let rule = rule(|rule| (rule.limits.ratio, rule.limits.ratio_free_bytes) = (100, 4 * MIB));
        let bomb_bytes = bomb.len() as u64;
        let scanned = scan_with(&scanner(options(), engines), name, bomb, rule);
        assert_eq!(scanned.root.own, ResultCode::ARCHIVE_SIZE, "{name}");
        // What came out up to the limit was scanned, and hardly more came out.
        let most = (100 * bomb_bytes).max(4 * MIB) + MIB;
        let came_out = scanned.records[0].result.file.size_bytes;
        assert!(came_out > 4 * MIB - MIB && came_out <= most, "{name}: {came_out}");
        assert!(largest.load(Ordering::Relaxed) as u64 <= most);
    }
}

#[test]
fn a_rule_may_ask_for_the_exact_ratio_code_and_a_threat_outranks_it() {
    let zeros = vec![0; 8 * MIB as usize];
    let rule = rule(|rule| {
        (rule.limits.ratio, rule.limits.ratio_free_bytes, rule.ratio_code) = (2, MIB, ResultCode::ARCHIVE_RATIO);
    });
    let scanned = scan_under("bomb.zip", zip(&[("eicar", &eicar()), ("zeros", &zeros)]), rule);
    assert_eq!((scanned.root.own, scanned.root.overall), (ResultCode::ARCHIVE_RATIO, ResultCode::INFECTED));
    assert_eq!(scanned.root.blocked_reasons, ["Infected", "Exceeded Archive Expansion Factor"]);
}

#[test]
fn depth_count_bytes_and_file_length_have_their_codes() {
    let nested = gz(&gz(&gz(&gz(&eicar()))));
    let scanned = scan_under("file.gz", nested.clone(), rule(|rule| rule.limits.depth = 3));
    assert_eq!((scanned.root.own, scanned.root.overall), (ResultCode::NO_THREAT, ResultCode::ARCHIVE_DEPTH));
    assert_eq!(scanned.records.len(), 3);
    assert_eq!(scan_under("file.gz", nested, rule(|rule| rule.limits.depth = 4)).root.overall, ResultCode::INFECTED);

    let members: Vec<(String, Vec<u8>)> = (0..20).map(|i| (format!("{i}"), vec![b'x'; 1000])).collect();
    let members: Vec<(&str, &[u8])> = members.iter().map(|(name, content)| (name.as_str(), &content[..])).collect();
    let scanned = scan_under("file.tar", tar(&members), rule(|rule| rule.limits.files = 7));
    assert_eq!((scanned.root.own, scanned.records.len()), (ResultCode::ARCHIVE_FILES, 7));
    let scanned = scan_under("file.zip", zip(&members), rule(|rule| rule.limits.produced_bytes = 5500));
    assert_eq!((scanned.root.own, scanned.records.len()), (ResultCode::ARCHIVE_SIZE, 6));
    let scanned = scan_under("file.zip", zip(&members), rule(|rule| rule.limits.file_bytes = Some(999)));
    assert_eq!(scanned.root.own, ResultCode::ARCHIVE_SIZE);
    assert_eq!(scan_under("file.zip", zip(&members), rule(|_| ())).root.own, ResultCode::NO_THREAT);
}

#[test]
fn a_limit_counts_over_the_whole_tree() {
    let part = zip(&[("a", b"a"), ("b", b"b"), ("c", b"c")]);
    let whole = zip(&[("1.zip", &part), ("2.zip", &part), ("3.zip", &part)]);
    let scanned = scan_under("file.zip", whole.clone(), rule(|rule| rule.limits.files = 11));
    assert_eq!(scanned.root.overall, ResultCode::ARCHIVE_FILES);
    assert_eq!(scan_under("file.zip", whole, rule(|rule| rule.limits.files = 12)).root.overall, ResultCode::NO_THREAT);
}

#[test]
fn an_archive_that_takes_too_long_is_said_so() {
    let content: Vec<u8> = (0..4_000_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let scanned = scan_under("file.bz2", bz2(&content), rule(|rule| rule.limits.archive_seconds = 0));
    assert_eq!(scanned.root.own, ResultCode::ARCHIVE_TIMEOUT);
}

// Memory and threads.

#[test]
fn the_same_tree_gives_the_same_ids_and_results_on_any_number_of_threads() {
    let inner: Vec<(String, Vec<u8>)> = (0..50).map(|i| (format!("file-{i}"), format!("content {i}").into())).collect();
    let inner: Vec<(&str, &[u8])> = inner.iter().map(|(name, content)| (name.as_str(), &content[..])).collect();
    let outer: Vec<(String, Vec<u8>)> = (0..20)
        .map(|i| (format!("{i}.tar.gz"), gz(&if i % 7 == 3 { tar(&[("eicar", &eicar())]) } else { tar(&inner) })))
        .collect();
    let outer: Vec<(&str, &[u8])> = outer.iter().map(|(name, content)| (name.as_str(), &content[..])).collect();
    let archive = zip(&outer);
    let run = |threads| {
        let options = ScannerOptions { scan_threads: threads, ..options() };
        scan_with(&scanner(options, engines::builtin().unwrap()), "a.zip", archive.clone(), rule(|_| ()))
            .without_times()
    };
    let first = run(1);
    assert_eq!(first.1.len(), 20 + 20 + 17 * 50 + 3);
    assert_eq!(first.0.overall, ResultCode::INFECTED);
    for threads in [1, 2, 4, 8] {
        assert!(run(threads) == first, "with {threads} threads");
    }
}

#[test]
fn members_are_scanned_on_several_threads_at_once() {
    // Each scan waits for another one: only two threads together come through.
    let barrier = Arc::new(Barrier::new(2));
    let engines = vec![engine("together", move |sample| {
        if sample.name().starts_with("member") {
            barrier.wait();
        }
        EngineVerdict::clean()
    })];
    let members: Vec<(String, &[u8])> = (0..100).map(|i| (format!("member-{i}"), &b"content"[..])).collect();
    let members: Vec<(&str, &[u8])> = members.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    let scanned = scan_with(&scanner(options(), engines), "file.zip", zip(&members), rule(|_| ()));
    assert_eq!(scanned.records.len(), 100);
}

#[test]
fn without_memory_everything_is_scanned_all_the_same() {
    let noise: Vec<u8> = (0..1_200_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let inner = zip(&[("noise-1", &noise), ("noise-2", &noise[1..]), ("eicar", &eicar())]);
    let mut nested = zip(&[("inner.zip", &inner), ("small", b"small"), ("again.zip", &inner)]);
    for level in 0..10 {
        nested =
            zip_by(zip::CompressionMethod::Stored, &[(&format!("level-{level}.zip"), &nested), ("eicar", &eicar())]);
    }
    let records_expected = scan("file.zip", nested.clone()).records.len();
    for (threads, budget) in [(1, 0), (2, 0), (4, 0), (2, 10_000), (2, 20 * MIB)] {
        let options = ScannerOptions { scan_threads: threads, sample_budget_bytes: budget, ..options() };
        let scanner = scanner(options, engines::builtin().unwrap());
        let (store, records) = (Arc::new(MemoryStore::default()), Arc::new(Records::default()));
        let content: Bytes = nested.clone().into();
        let root = Root {
            data_id: ROOT_ID,
            file: FileInfo { display_name: "file.zip".into(), size_bytes: content.len() as u64, ..FileInfo::default() },
            rule: rule(|_| ()),
            blob: store.put(content),
            content: None,
            fetch_ms: 0,
            passwords: Passwords::NONE,
            verdicts: None,
            sharing: None,
        };
        let TreeOutcome::Finished(result) = scanner.scan(root, store.clone(), records.clone()).wait() else {
            panic!("not finished with a budget of {budget}");
        };
        assert_eq!(result.overall, ResultCode::INFECTED);
        assert_eq!(records.0.lock().unwrap().len(), records_expected, "budget {budget}, {threads} threads");
        if budget == 0 {
            // The members for which no thread had an allowance left.
            assert!(scanner.spool().spooled_bytes() > 0);
        }
        assert_eq!(scanner.memory().free_bytes(), budget, "memory was not given back");
    }
}

#[test]
fn what_is_too_long_for_memory_is_spooled_and_scanned_there() {
    let mut long = vec![b'.'; 9 * MIB as usize];
    let at = 5 * MIB as usize;
    long[at..at + marker().len()].copy_from_slice(marker().as_bytes());
    let inner = zip(&[("long", &long)]);
    let options = ScannerOptions { sample_memory_max_bytes: MIB, ..options() };
    let scanner = scanner(options, engines::builtin().unwrap());
    let scanned = scan_with(&scanner, "file.gz", gz(&inner), rule(|rule| rule.limits.ratio_free_bytes = 100 * MIB));
    let record = scanned.at("file/long");
    assert_eq!(record.result.engines[0].threat, "Lazaret-Test-Marker");
    assert_eq!(scanned.spooled_bytes, long.len() as u64);
    let in_memory = scan_under("file.gz", gz(&inner), rule(|rule| rule.limits.ratio_free_bytes = 100 * MIB));
    assert_eq!(in_memory.spooled_bytes, 0);
    assert_eq!(record.result.file, in_memory.at("file/long").result.file);
}

/// A blob of zeros with something at one place, made as it is read.
struct LazyBlob {
    length: u64,
    offset: u64,
    planted: Vec<u8>,
    largest_read: AtomicUsize,
}

impl BlobSource for LazyBlob {
    fn read(&self, _: BlobName, range: ByteRange) -> Result<Bytes, SourceError> {
        let end = range.end.min(self.length);
        let mut bytes = vec![0; (end - range.start) as usize];
        self.largest_read.fetch_max(bytes.len(), Ordering::Relaxed);
        for (at, byte) in self.planted.iter().enumerate() {
            let place = self.offset + at as u64;
            if (range.start..end).contains(&place) {
                bytes[(place - range.start) as usize] = *byte;
            }
        }
        Ok(bytes.into())
    }
}

#[test]
fn a_marker_far_inside_a_long_root_is_found_without_holding_the_root() {
    let (length, offset) = (300 * MIB, 100 * MIB - 20);
    let source = Arc::new(LazyBlob { length, offset, planted: marker().into(), largest_read: AtomicUsize::new(0) });
    let scanner = scanner(options(), engines::builtin().unwrap());
    let root = Root {
        data_id: ROOT_ID,
        file: FileInfo { display_name: "long".into(), size_bytes: length, ..FileInfo::default() },
        rule: rule(|_| ()),
        blob: BlobName([0; 32]),
        content: None,
        fetch_ms: 0,
        passwords: Passwords::NONE,
        verdicts: None,
        sharing: None,
    };
    let TreeOutcome::Finished(result) = scanner.scan(root, source.clone(), Arc::new(Records::default())).wait() else {
        panic!("not finished");
    };
    assert_eq!(result.overall, ResultCode::INFECTED);
    assert_eq!(result.engines[0].threat, "Lazaret-Test-Marker");
    assert!(source.largest_read.load(Ordering::Relaxed) as u64 <= 16 * MIB);
}

// Engines.

#[test]
fn an_engine_that_panics_or_fails_is_25_and_the_others_are_heard() {
    let engines = vec![
        engine("panics", |_| panic!("on purpose")),
        engine("fails", |_| EngineVerdict::failed("no database")),
        clean("works"),
    ];
    let scanner = scanner(options(), engines);
    for _ in 0..3 {
        let scanned = scan_with(&scanner, "file.zip", zip(&[("member", b"content")]), rule(|_| ()));
        assert_eq!(scanned.root.overall, ResultCode::SCAN_FAILED);
        let engines = &scanned.at("member").result.engines;
        let codes: Vec<_> = engines.iter().map(|engine| (engine.engine.as_str(), engine.code)).collect();
        let failed = ResultCode::SCAN_FAILED;
        assert_eq!(codes, [("panics", failed), ("fails", failed), ("works", ResultCode::NO_THREAT)]);
        assert!(engines[0].threat.contains("on purpose"));
    }
}

#[test]
fn no_engine_is_10_and_an_engine_that_is_not_loaded_is_25() {
    let none = scan_with(&scanner(options(), vec![]), "file.zip", zip(&[("member", b"content")]), rule(|_| ()));
    assert_eq!((none.root.own, none.root.overall), (ResultCode::NOT_SCANNED, ResultCode::NOT_SCANNED));
    let scanner = scanner(options(), vec![clean("loaded"), clean("other")]);
    let scanned =
        scan_with(&scanner, "file", "content", rule(|rule| rule.engines = vec!["loaded".into(), "absent".into()]));
    assert_eq!(scanned.root.overall, ResultCode::SCAN_FAILED);
    let names: Vec<_> = scanned.root.engines.iter().map(|engine| engine.engine.as_str()).collect();
    assert_eq!(names, ["loaded", "absent"]);
}

#[test]
fn an_engine_that_does_not_judge_counts_only_if_none_does() {
    let not_for_me = || engine("picky", |_| EngineVerdict::not_scanned(""));
    let both = scan_with(&scanner(options(), vec![not_for_me(), clean("works")]), "file", "content", rule(|_| ()));
    assert_eq!(both.root.overall, ResultCode::NO_THREAT);
    let alone = scanner(options(), vec![not_for_me()]);
    assert_eq!(scan_with(&alone, "file", "content", rule(|_| ())).root.overall, ResultCode::NOT_SCANNED);
    let container = scan_with(&alone, "file.zip", zip(&[("member", b"content")]), rule(|_| ()));
    assert_eq!((container.root.own, container.root.overall), (ResultCode::NO_THREAT, ResultCode::NOT_SCANNED));
}

// What a rule says of types and contents.

/// A rule of this YAML, below `rules: [{name: test, ...`.
fn yaml_rule(keys: &str) -> Rule {
    let set = lazaret_analysis::RuleSet::from_yaml(&format!("rules:\n  - name: test\n{keys}")).unwrap();
    set.rules()[0].clone()
}

#[test]
fn what_a_rule_skips_is_not_scanned_and_never_clean() {
    let both = || scanner(options(), vec![clean("works")]);
    let zip = zip(&[("a.txt", b"some text"), ("b.bin", b"\x00\x01\x02 no text")]);
    let scanned = scan_with(&both(), "f.zip", zip.clone(), yaml_rule("    skip: {types: [text/plain]}\n"));
    let text = &scanned.at("a.txt").result;
    assert_eq!((text.own, text.engines.len()), (ResultCode::NOT_SCANNED, 0));
    assert_eq!(text.findings.skipped.as_ref().unwrap().reason, SkipReason::Type);
    assert_eq!(scanned.at("b.bin").result.own, ResultCode::NO_THREAT);
    assert_eq!(scanned.root.overall, ResultCode::NOT_SCANNED);

    // By its length the container is shown to no engine, but what is in it is judged.
    let scanned = scan_with(&both(), "f.zip", zip.clone(), yaml_rule("    skip: {larger_than_bytes: 100, code: 7}\n"));
    assert_eq!((scanned.root.own, scanned.records.len()), (ResultCode::WHITELISTED, 2));
    let incomplete = yaml_rule("    skip: {larger_than_bytes: 100, code: 7}\n    limits: {files: 1}\n");
    assert_eq!(scan_with(&both(), "f.zip", zip.clone(), incomplete).root.own, ResultCode::ARCHIVE_FILES);

    // By its digest it is not even opened.
    let sha256 = lazaret_digests::Set::digest(Selection::ALL, b"some text").sha256_hex();
    let scanned = scan_with(&both(), "f.zip", zip.clone(), yaml_rule(&format!("    skip: {{hashes: [{sha256}]}}\n")));
    assert_eq!(scanned.at("a.txt").result.own, ResultCode::WHITELISTED);
    assert_eq!(scanned.root.overall, ResultCode::WHITELISTED);
    let scanned = scan_with(&both(), "f.zip", zip, yaml_rule(&format!("    blocked_hashes: [{sha256}]\n")));
    let blocked = &scanned.at("a.txt").result;
    assert_eq!((blocked.own, blocked.engines.len()), (ResultCode::BLACKLISTED, 0));
    assert_eq!(scanned.root.overall, ResultCode::BLACKLISTED);
}

#[test]
fn a_rule_that_blocks_by_a_digest_which_is_not_taken_lets_nothing_pass() {
    let digests = Selection { md5: false, ..Selection::ALL };
    let without = scanner(ScannerOptions { digests, ..options() }, engines::builtin().unwrap());
    let other_md5 = lazaret_digests::Set::digest(Selection::ALL, b"another text").md5_hex();
    let rule = || yaml_rule(&format!("    blocked_hashes: [{other_md5}]\n"));
    let zip = zip(&[("a.txt", b"some text".as_slice()), ("eicar.com", &eicar())]);
    let scanned = scan_with(&without, "f.zip", zip.clone(), rule());
    let unknown = &scanned.at("a.txt").result;
    assert_eq!(unknown.own, ResultCode::SCAN_FAILED);
    assert!(unknown.detail.contains("MD5"), "{unknown:?}");
    // A threat is one all the same.
    assert_eq!(scanned.at("eicar.com").result.own, ResultCode::INFECTED);
    let with = scanner(options(), engines::builtin().unwrap());
    assert_eq!(scan_with(&with, "f.zip", zip, rule()).at("a.txt").result.own, ResultCode::NO_THREAT);
}

#[test]
fn a_threat_outranks_a_forbidden_type_and_that_a_mismatch() {
    let finds = |code| engine("finds", move |_| EngineVerdict::new(code, "something"));
    let rule = || yaml_rule("    file_types: {blocked: [.pdf], mismatch: true, spoofing: true}\n");
    let of = |name: &str, code| {
        let scanned = scan_with(&scanner(options(), vec![finds(code)]), name, "just a text", rule());
        (scanned.root.own.code(), scanned.root.findings)
    };
    assert_eq!(of("a.pdf", ResultCode::INFECTED).0, 1);
    let (code, findings) = of("a.pdf", ResultCode::NO_THREAT);
    assert!(code == 8 && findings.forbidden_type.is_some() && findings.type_mismatch.is_some());
    assert_eq!(of("a.png", ResultCode::NO_THREAT).0, 17);
    assert_eq!(of("a.txt.exe", ResultCode::NO_THREAT).0, 17);
    assert_eq!(of("a.txt", ResultCode::NO_THREAT), (0, Findings::default()));
    let said = scan_with(&scanner(options(), vec![finds(ResultCode::NO_THREAT)]), "a.png", "text", rule_of_defaults());
    assert_eq!(said.root.own, ResultCode::NO_THREAT);
    assert!(said.root.findings.type_mismatch.is_some());
}

fn rule_of_defaults() -> Rule {
    rule(|_| ())
}

// Stopping.

/// Lets an engine be held inside a file until the test has done something.
fn held_at(name: &'static str) -> (Arc<dyn Engine>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (entered, begun) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    let channels = Mutex::new((entered, held));
    let engine = engine("holds", move |sample| {
        if sample.name() == name {
            let channels = channels.lock().unwrap();
            channels.0.send(()).unwrap();
            let _ = channels.1.recv();
        }
        EngineVerdict::clean()
    });
    (engine, begun, release)
}

/// A tar that is long enough to be scanned by as many threads as there are and none besides.
fn long_tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar(members);
    archive.resize(archive.len() + SMALL_FILE_BYTES as usize, 0);
    archive
}

#[test]
fn a_stopped_tree_says_so_for_every_file_and_keeps_its_threats() {
    for (reason, code) in
        [(StopReason::Cancelled, ResultCode::CANCELLED), (StopReason::GlobalTimeout, ResultCode::GLOBAL_TIMEOUT)]
    {
        let (holds, begun, release) = held_at("second");
        let options = ScannerOptions { scan_threads: 1, ..options() };
        let scanner = scanner(options, vec![holds]);
        let records = Arc::new(Records::default());
        let archive = long_tar(&[("first", b"1"), ("second", b"2"), ("third", b"3")]);
        let root = root("file.tar", archive.into(), rule(|_| ()), &scanner);
        let scan = scanner.scan(root, Arc::new(MemoryStore::default()), records.clone());
        begun.recv().unwrap();
        scan.stop(reason);
        release.send(()).unwrap();
        let TreeOutcome::Finished(result) = scan.wait() else { panic!("not finished") };
        assert_eq!(result.overall, code);
        // The newest member is scanned first: the third was done, the second was on its way, the first never began.
        let records = records.0.lock().unwrap();
        let mut codes: Vec<_> = records.iter().map(|record| (record.path.as_str(), record.result.own)).collect();
        codes.sort_unstable_by_key(|(path, _)| *path);
        assert_eq!(codes, [("first", code), ("second", code), ("third", ResultCode::NO_THREAT)]);
    }
}

#[test]
fn an_abandoned_tree_records_nothing_more() {
    let (holds, begun, release) = held_at("second");
    let scanner = scanner(ScannerOptions { scan_threads: 1, ..options() }, vec![holds]);
    let records = Arc::new(Records::default());
    let root = root("file.tar", long_tar(&[("first", b"1"), ("second", b"2")]).into(), rule(|_| ()), &scanner);
    let scan = scanner.scan(root, Arc::new(MemoryStore::default()), records.clone());
    begun.recv().unwrap();
    scan.stop(StopReason::Abandoned);
    release.send(()).unwrap();
    assert!(matches!(scan.wait(), TreeOutcome::Unfinished { source: None, .. }));
    assert!(records.0.lock().unwrap().is_empty());
}

struct Refuses;

impl RecordSink for Refuses {
    fn put(&self, _: NestedRecord) -> Result<(), String> {
        Err("the disk is full".into())
    }
}

#[test]
fn records_that_cannot_be_written_and_content_that_cannot_be_read_leave_no_result() {
    let scanner = scanner(options(), engines::builtin().unwrap());
    let archive: Bytes = zip(&[("member", b"content")]).into();
    let scan = scanner.scan(
        root("file.zip", archive.clone(), rule(|_| ()), &scanner),
        Arc::new(MemoryStore::default()),
        Arc::new(Refuses),
    );
    let TreeOutcome::Unfinished { source: None, detail } = scan.wait() else { panic!("finished") };
    assert_eq!(detail, "the disk is full");

    let mut gone = root("file.zip", archive, rule(|_| ()), &scanner);
    gone.content = None;
    let name = gone.blob;
    let scan = scanner.scan(gone, Arc::new(MemoryStore::default()), Arc::new(Records::default()));
    let TreeOutcome::Unfinished { source, .. } = scan.wait() else { panic!("finished") };
    assert_eq!(source, Some(SourceError::NotFound(name)));
}

#[test]
fn progress_goes_on_and_names_files() {
    let (holds, begun, release) = held_at("second");
    let scanner = scanner(ScannerOptions { scan_threads: 1, ..options() }, vec![holds]);
    let root = root("file.tar", long_tar(&[("first", b"1"), ("second", b"2")]).into(), rule(|_| ()), &scanner);
    let scan = scanner.scan(root, Arc::new(MemoryStore::default()), Arc::new(Records::default()));
    begun.recv().unwrap();
    let progress = scan.progress();
    assert!(progress.percent > 1 && progress.percent <= 99, "{progress:?}");
    assert_eq!(progress.last_file, "second");
    release.send(()).unwrap();
    assert!(matches!(scan.wait(), TreeOutcome::Finished(_)));
}

/// Not run by default: 200,000 members, for looking at time and memory.
#[test]
#[ignore = "a measurement"]
fn many_members() {
    let mut builder = tar::Builder::new(Vec::new());
    for i in 0..200_000 {
        let content = format!("content of member {i}");
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, format!("directory/{i}"), content.as_bytes()).unwrap();
    }
    struct Counts(AtomicUsize);
    impl RecordSink for Counts {
        fn put(&self, _: NestedRecord) -> Result<(), String> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }
    let scanner = scanner(
        ScannerOptions { sample_budget_bytes: 1 << 30, engine_timeout: Duration::from_secs(60), ..options() },
        engines::builtin().unwrap(),
    );
    let content: Bytes = gz(&builder.into_inner().unwrap()).into();
    let counts = Arc::new(Counts(AtomicUsize::new(0)));
    let began = std::time::Instant::now();
    let root = root("file.tar.gz", content, rule(|rule| rule.limits.ratio_free_bytes = 1 << 40), &scanner);
    let scan = scanner.scan(root, Arc::new(MemoryStore::default()), counts.clone());
    assert!(matches!(scan.wait(), TreeOutcome::Finished(_)));
    assert_eq!(counts.0.load(Ordering::Relaxed), 200_001);
    eprintln!("200,000 members in {:?}", began.elapsed());
}

#[test]
fn signers_are_read_in_the_sandbox_and_as_without_it() {
    let signed = include_bytes!("data/signed.exe");
    for sandbox in [options().sandbox, None] {
        let scanner = scanner(ScannerOptions { sandbox, ..options() }, engines::builtin().unwrap());
        let content = zip(&[("signed.exe", signed), ("text.txt", b"text"), ("cut.exe", &signed[..signed.len() - 100])]);
        let scanned = scan_with(&scanner, "programs.zip", content, rule(|_| ()));
        let signers = &scanned.at("signed.exe").result.findings.signers;
        assert_eq!(signers.len(), 1);
        assert!(signers[0].vendor_name.contains("Lazaret Test Vendor"), "{signers:?}");
        assert!(scanned.at("text.txt").result.findings.signers.is_empty());
        assert!(scanned.at("cut.exe").result.findings.signers.is_empty());
    }
}
