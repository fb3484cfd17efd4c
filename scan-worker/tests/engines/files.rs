//! Engines that are made from files: the suite, and reloading while files are scanned.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lazaret_analysis::ResultCode;
use lazaret_digests::{Selection, Set};
use lazaret_scan_worker::Engine;
use lazaret_scan_worker::engines::conformance::{self, Case, judge};
use lazaret_scan_worker::engines::{self, BuiltinEngine, HashListEngine, HashListOptions, YaraEngine, YaraOptions};

use crate::wait_until;

#[test]
fn engines_made_from_files_and_the_built_in_one_conform() {
    conformance::check(&Case {
        engine: &BuiltinEngine::new().unwrap(),
        bad: engines::builtin::marker().into_bytes(),
        bad_code: ResultCode::INFECTED,
        clean_code: ResultCode::NO_THREAT,
    });

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yar"), r#"rule a { strings: $a = "bad" condition: $a and filesize < 1000 }"#)
        .unwrap();
    conformance::check(&Case {
        engine: &yara(folder.path(), 3),
        bad: b"so bad".to_vec(),
        bad_code: ResultCode::YARA_MATCHED,
        clean_code: ResultCode::NO_THREAT,
    });

    let list = folder.path().join("list.csv");
    fs::write(&list, format!("sha256,name\n{},x\n", Set::digest(Selection::ALL, b"bad").sha256_hex())).unwrap();
    let options = HashListOptions { name: "List".into(), bad: vec![list], good: vec![] };
    conformance::check(&Case {
        engine: &HashListEngine::start(options).unwrap(),
        bad: b"bad".to_vec(),
        bad_code: ResultCode::KNOWN_BAD,
        clean_code: ResultCode::NOT_SCANNED,
    });
}

fn yara(folder: &Path, concurrency: usize) -> YaraEngine {
    let timeout = Duration::from_secs(30);
    YaraEngine::start(YaraOptions { rules: vec![folder.to_owned()], timeout, concurrency }).unwrap()
}

/// A set of rules of which one matches `needle`, and the others like real ones match nothing here.
fn rules(count: usize, needle: &str, salt: u64) -> String {
    let mut text = format!("rule needle {{ strings: $a = \"{needle}\" condition: $a }}\n");
    for n in 1..count {
        let digest = blake3::hash(&[salt.to_le_bytes(), (n as u64).to_le_bytes()].concat()).to_hex().to_string();
        let (hex, texts) = digest.split_at(32);
        let pairs: Vec<&str> = (0..16).filter_map(|at| hex.get(at * 2..at * 2 + 2)).collect();
        writeln!(
            text,
            "rule r{n} {{ meta: description = \"rule {n}\" strings: $a = {{ {} }} $b = \"{texts}\" wide ascii $c = /x{}[0-9]{{3,9}}y/ \
             condition: uint16(0) == 0x5a4d and filesize < 10MB and ($a or all of ($b, $c)) }}",
            pairs.join(" "),
            texts.get(..8).unwrap(),
        )
        .unwrap();
    }
    text
}

/// Resident memory of this process in KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

struct Measured {
    scans: usize,
    slowest: Duration,
    reload: Duration,
}

/// Scans without a pause on two threads while other rules are put in place. Every scan must give the former set's
/// verdict or the new one's.
fn reload_under_load(engine: &YaraEngine, folder: &Path, count: usize, salt: u64) -> Measured {
    let stop = Arc::new(AtomicBool::new(false));
    let (before, after) = (format!("needle-{}", salt - 1), format!("needle-{salt}"));
    let both = format!("{before} {after}");
    let began = Instant::now();
    std::thread::scope(|scope| {
        let scanning: Vec<_> = (0..2)
            .map(|_| {
                let (stop, both) = (stop.clone(), &both);
                scope.spawn(move || {
                    let (mut scans, mut slowest) = (0, Duration::ZERO);
                    while !stop.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        let verdict = judge(engine, "file", both.as_bytes());
                        slowest = slowest.max(began.elapsed());
                        assert_eq!((verdict.code, verdict.hits.len()), (ResultCode::YARA_MATCHED, 1), "{verdict:?}");
                        scans += 1;
                    }
                    (scans, slowest)
                })
            })
            .collect();
        fs::write(folder.join("rules.yar"), rules(count, &after, salt)).unwrap();
        let version = engine.info().database_version;
        let deadline = Instant::now() + Duration::from_secs(300);
        while engine.info().database_version == version && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let reload = began.elapsed();
        // A while longer, so that every thread of the engine has changed over.
        wait_until("the new set", || judge(engine, "file", after.as_bytes()).hits.len() == 1);
        stop.store(true, Ordering::Relaxed);
        let done: Vec<(usize, Duration)> = scanning.into_iter().map(|thread| thread.join().unwrap()).collect();
        Measured {
            scans: done.iter().map(|(scans, _)| scans).sum(),
            slowest: done.iter().map(|(_, slowest)| *slowest).max().unwrap(),
            reload,
        }
    })
}

#[test]
fn no_scan_fails_while_rules_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rules.yar"), rules(300, "needle-0", 0)).unwrap();
    let engine = yara(folder.path(), 2);
    for salt in 1..=3 {
        let measured = reload_under_load(&engine, folder.path(), 300, salt);
        println!("{} scans, slowest {:?}, reload {:?}", measured.scans, measured.slowest, measured.reload);
        assert!(measured.scans > 10);
    }
    assert_eq!(engine.trouble(), None);
}

/// `cargo test --release --workspace --test engines -- --ignored --nocapture reload_of_20000_rules`
#[test]
#[ignore = "a measurement"]
fn reload_of_20000_rules() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rules.yar"), rules(20_000, "needle-0", 0)).unwrap();
    let began = Instant::now();
    let engine = yara(folder.path(), 2);
    println!("{} rules compiled in {:?}", engine.rule_count(), began.elapsed());
    for _ in 0..100 {
        judge(&engine, "file", b"to make the scanners");
    }
    // What compiling took goes back by and by.
    std::thread::sleep(Duration::from_secs(20));
    let first = resident_kib();
    println!("{} MiB resident", first / 1024);
    for salt in 1..=4 {
        let measured = reload_under_load(&engine, folder.path(), 20_000, salt);
        println!(
            "reload {salt}: {:.1} s, {} scans meanwhile, slowest {:?}, {} MiB resident",
            measured.reload.as_secs_f64(),
            measured.scans,
            measured.slowest,
            resident_kib() / 1024
        );
    }
    let most = first + first / 10;
    wait_until("the memory of the reload", || resident_kib() <= most);
}
