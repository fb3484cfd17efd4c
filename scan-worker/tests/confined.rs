//! Rules are matched in the sandbox: everywhere in a tree, while they change, and whatever becomes of the process that matches.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use lazaret_analysis::{ResultCode, Rule};
use lazaret_sandbox::{Sandbox, SandboxOptions};
use lazaret_scan_worker::Engine;
use lazaret_scan_worker::engines::builtin::marker;
use lazaret_scan_worker::engines::conformance::judge;
use lazaret_scan_worker::engines::{self, YaraEngine, YaraOptions};
use lazaret_scan_worker::scan::{Scanner, ScannerOptions};

/// A scanner with the built-in signatures and these rules.
struct Station {
    folder: tempfile::TempDir,
    yara: Arc<YaraEngine>,
    sandbox: Sandbox,
    scanner: Scanner,
}

fn write(folder: &Path, rules: &str) {
    // By another name first: what is half written is not loaded.
    std::fs::write(folder.join("new"), rules).unwrap();
    std::fs::rename(folder.join("new"), folder.join("rules.yar")).unwrap();
}

fn station_with(rules: &str, change: impl FnOnce(&mut ScannerOptions)) -> Station {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), rules);
    let rules = vec![folder.path().to_owned()];
    let yara = YaraEngine::start(YaraOptions { rules, timeout: Duration::from_secs(60), concurrency: 2 }).unwrap();
    let (yara, mut options) = (Arc::new(yara), options());
    change(&mut options);
    let sandbox = options.sandbox.clone().unwrap();
    let mut engines = engines::builtin().unwrap();
    engines.push(yara.clone());
    Station { folder, yara, sandbox, scanner: scanner(options, engines) }
}

fn station(rules: &str) -> Station {
    station_with(rules, |_| ())
}

impl Station {
    fn scan(&self, name: &str, content: Vec<u8>) -> Scanned {
        let mut rule = Rule::with_defaults("test");
        rule.limits.ratio_free_bytes = 1 << 40;
        scan_with(&self.scanner, name, content, rule)
    }
}

fn needle(word: &str) -> String {
    format!("rule found_{word} {{ meta: by = \"a test\" strings: $a = \"needle {word}\" condition: $a }}")
}

/// Bytes that don't compress, with something in the middle.
fn around(planted: &[u8], bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let mut content: Vec<u8> = (0..bytes / 2).map(|_| noise()).collect();
    content.extend_from_slice(planted);
    content.extend((0..bytes / 2).map(|_| noise()));
    content
}

#[test]
fn rules_are_found_by_in_files_of_every_length_and_place() {
    // The last one is too long for memory, and is matched by pieces.
    let station = station_with(&needle("one"), |options| options.sample_memory_max_bytes = 12 * MIB);
    let members: Vec<(String, Vec<u8>)> = [0, 1000, 600 << 10, 5 << 20, 9 << 20, 13 << 20]
        .into_iter()
        .flat_map(|bytes| {
            [("needle one".to_owned(), "yara"), (marker(), "builtin"), ("nothing".to_owned(), "clean")]
                .map(|(planted, name)| (format!("{name}-{bytes}"), around(planted.as_bytes(), bytes)))
        })
        .collect();
    let named: Vec<(&str, &[u8])> = members.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let inner = zip(&[("inner needle.txt", b"a needle one"), ("clean.txt", b"")]);
    let mut named = named;
    named.push(("inner.zip", &inner));
    let scanned = station.scan("all.zip", zip_by(zip::CompressionMethod::Stored, &named));
    for (name, content) in &members {
        let result = &scanned.at(name).result;
        let expected = match name.split('-').next().unwrap() {
            "yara" => ResultCode::YARA_MATCHED,
            "builtin" => ResultCode::INFECTED,
            _ => ResultCode::NO_THREAT,
        };
        assert_eq!(result.own, expected, "{name}, {} bytes: {:?}", content.len(), result.engines);
        assert_eq!(result.engines.len(), 2);
        if expected == ResultCode::YARA_MATCHED {
            let hits = &result.findings.yara.as_ref().unwrap().hits;
            assert_eq!((hits[0].rule.as_str(), hits[0].namespace.as_str()), ("found_one", "rules.yar"));
            assert_eq!(hits[0].meta["by"], "a test");
        }
    }
    assert_eq!(scanned.at("inner.zip/inner needle.txt").result.own, ResultCode::YARA_MATCHED);
    // A file that is nothing but itself, short and long.
    for bytes in [0, 700 << 10, 6 << 20] {
        let root = station.scan("file", around(b"needle one", bytes)).root;
        assert_eq!(root.own, ResultCode::YARA_MATCHED, "{bytes}: {:?}", root.engines);
        assert_eq!(station.scan("file", around(b"nothing", bytes)).root.own, ResultCode::NO_THREAT);
    }
    assert_eq!(station.sandbox.lost(), 0);
    // Here they can't be matched any more.
    let here = judge(&*station.yara, "file", b"needle one");
    assert_eq!(here.code, ResultCode::SCAN_FAILED, "{here:?}");
}

#[test]
fn what_rules_may_ask_of_a_file_they_are_told_in_the_sandbox() {
    let station = station(
        r#"import "pe"
        rule by_name { condition: filename == "x.doc" and filepath == filename and extension == ".doc" and filetype == "text/plain" and filesize == 4 }
        rule program { condition: pe.is_pe and pe.number_of_signatures == 1 }"#,
    );
    let hits = |scanned: &Scanned, path: &str| -> Vec<String> {
        let hits = &scanned.at(path).result.findings.yara.as_ref().unwrap().hits;
        hits.iter().map(|hit| hit.rule.clone()).collect()
    };
    let signed = include_bytes!("data/signed.exe");
    let content = zip(&[("in/x.doc", b"text"), ("x.doc", b"texts"), ("y.doc", b"text"), ("signed.exe", signed)]);
    let scanned = station.scan("files.zip", content);
    assert_eq!(hits(&scanned, "in/x.doc"), ["by_name"]);
    assert!(hits(&scanned, "x.doc").is_empty() && hits(&scanned, "y.doc").is_empty());
    assert_eq!(hits(&scanned, "signed.exe"), ["program"]);
    assert_eq!(scanned.at("signed.exe").result.findings.signers.len(), 1);
}

#[test]
fn a_match_of_which_much_is_to_be_told_is_told() {
    let tags: Vec<String> = (0..60_000).map(|at| format!("tag{at}")).collect();
    let meta: Vec<String> = (0..100).map(|at| format!("m{at} = \"{}\"", "é".repeat(3000))).collect();
    let rules: String = (0..150)
        .map(|at| {
            let (tags, meta) = if at < 2 { (tags.join(" "), meta.join(" ")) } else { ("tag".into(), meta.join(" ")) };
            format!("rule r{at} : {tags} {{ meta: {meta} strings: $a = \"needle\" condition: $a }}\n")
        })
        .collect();
    let station = station(&rules);
    let root = station.scan("file", b"a needle".to_vec()).root;
    assert_eq!(root.own, ResultCode::YARA_MATCHED);
    let hits = root.findings.yara.unwrap().hits;
    assert!(!hits.is_empty() && hits[0].tags.len() <= 100, "{}", hits.len());
}

#[test]
fn a_file_that_takes_too_long_costs_itself_alone() {
    let slow = r#"rule slow { strings: $a = "slow" condition: $a and for all i in (0..filesize * 1000000000) : (uint8(i % 7) + i != 1) }"#;
    let station = station_with(slow, |options| options.engine_timeout = Duration::from_secs(1));
    let began = Instant::now();
    let content = zip(&[("a.txt", b"slow enough"), ("b.txt", b"fast"), ("c.txt", marker().as_bytes())]);
    let scanned = station.scan("files.zip", content);
    let failed = &scanned.at("a.txt").result;
    assert_eq!(failed.own, ResultCode::SCAN_FAILED);
    assert!(failed.engines.iter().any(|engine| engine.threat.contains("longer than it may")), "{:?}", failed.engines);
    assert_eq!(scanned.at("b.txt").result.own, ResultCode::NO_THREAT);
    assert_eq!(scanned.at("c.txt").result.own, ResultCode::INFECTED);
    // Nor, with as many archives as threads, does it cost its archive.
    std::thread::scope(|scope| {
        for number in 0..3 {
            let station = &station;
            let content = zip(&[("a.txt", format!("slow enough {number}").as_bytes()), ("c.txt", marker().as_bytes())]);
            scope.spawn(move || {
                let scanned = station.scan("files.zip", content);
                assert_eq!(scanned.at("a.txt").result.own, ResultCode::SCAN_FAILED);
                assert_eq!(scanned.at("c.txt").result.own, ResultCode::INFECTED);
            });
        }
    });
    assert_eq!(station.scan("file", b"slow enough".to_vec()).root.own, ResultCode::SCAN_FAILED);
    assert_eq!(station.scan("file", b"fast".to_vec()).root.own, ResultCode::NO_THREAT);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn no_scan_fails_or_is_judged_by_a_former_set_while_rules_are_replaced() {
    const SETS: usize = 4;
    let station = station(&needle("0"));
    let every: Vec<u8> = (0..SETS).flat_map(|set| format!("needle {set}\n").into_bytes()).collect();
    let members: Vec<String> = (0..40).map(|at| format!("{at}.txt")).collect();
    let members: Vec<(&str, &[u8])> = members.iter().map(|name| (name.as_str(), every.as_slice())).collect();
    let archive = zip(&members);
    let stop = AtomicBool::new(false);
    let scans: usize = std::thread::scope(|scope| {
        let scanning: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut scans = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let version_before = station.yara.info().database_version;
                        let scanned = station.scan("files.zip", archive.clone());
                        let unchanged = station.yara.info().database_version == version_before;
                        let mut sets: Vec<&str> = Vec::new();
                        for record in &scanned.records {
                            assert_eq!(record.result.own, ResultCode::YARA_MATCHED, "{:?}", record.result.engines);
                            let hits = &record.result.findings.yara.as_ref().unwrap().hits;
                            assert_eq!(hits.len(), 1, "{hits:?}");
                            sets.push(&hits[0].rule);
                        }
                        sets.sort_unstable();
                        sets.dedup();
                        // The next set is in place just before its version shows.
                        assert!(sets.len() <= 1 || !unchanged || sets.len() == 2, "{sets:?}");
                        scans += 1;
                    }
                    scans
                })
            })
            .collect();
        for set in 1..SETS {
            write(station.folder.path(), &needle(&set.to_string()));
            let version = station.yara.info().database_version;
            let deadline = Instant::now() + Duration::from_secs(60);
            while station.yara.info().database_version == version {
                assert!(Instant::now() < deadline, "the rules were not replaced: {:?}", station.yara.trouble());
                std::thread::sleep(Duration::from_millis(10));
            }
            // From here on nothing is judged by the former set.
            let root = station.scan("file", every.clone()).root;
            assert_eq!(root.findings.yara.unwrap().hits[0].rule, format!("found_{set}"));
        }
        stop.store(true, Ordering::Relaxed);
        scanning.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(scans > 0);
    assert_eq!(station.sandbox.lost(), 0);
}

#[test]
fn a_zygote_that_is_killed_or_old_is_followed_by_one_with_the_same_rules() {
    let program: std::path::PathBuf = env!("CARGO_BIN_EXE_sandboxed-scan-for-tests").into();
    // No template is kept, so that each is forked from the zygote.
    let killed = SandboxOptions { program: program.clone(), idle_max: 0, ..SandboxOptions::new(1) };
    let old = SandboxOptions { program, zygote_jobs_max: 3, ..SandboxOptions::new(1) };
    for (sandbox, kill) in [(killed, true), (old, false)] {
        let station = station_with(&needle("one"), |options| options.sandbox = Some(Sandbox::start(sandbox).unwrap()));
        for _ in 0..5 {
            let process = station.sandbox.process_id();
            if kill {
                let status = Command::new("kill").args(["-9", &process.to_string()]).status().unwrap();
                assert!(status.success());
            }
            let content = zip(&[("a.txt", b"a needle one"), ("b.txt", marker().as_bytes())]);
            let scanned = station.scan("files.zip", content);
            assert_eq!(scanned.at("a.txt").result.own, ResultCode::YARA_MATCHED);
            assert_eq!(scanned.at("b.txt").result.own, ResultCode::INFECTED);
            assert_eq!(station.scan("file", b"a needle one".to_vec()).root.own, ResultCode::YARA_MATCHED);
            assert_ne!(station.sandbox.process_id(), process);
        }
        assert_eq!(station.sandbox.lost(), 0);
    }
}

#[test]
fn members_are_judged_by_their_archives_process_when_there_are_as_many_archives_as_threads() {
    let station = station(
        r#"rule told { condition: filename == "x.doc" and extension == ".doc" and filetype == "text/plain" and filesize == 4 }
        rule found { strings: $a = "needle" condition: $a }"#,
    );
    let mut members: Vec<(String, Vec<u8>)> = (0..300).map(|at| (format!("{at}.txt"), b"nothing".to_vec())).collect();
    members.extend((0..300).map(|at| (format!("n{at}.txt"), around(b"a needle", 10 * at))));
    members.push(("in/x.doc".to_owned(), b"text".to_vec()));
    members.push(("marker".to_owned(), marker().into_bytes()));
    let named: Vec<(&str, &[u8])> = members.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let archive = zip(&named);
    let alone = station.scan("files.zip", archive.clone());
    // Besides others, whose number makes the difference, members are judged the same.
    let together: Vec<Scanned> = std::thread::scope(|scope| {
        let scans: Vec<_> = (0..4).map(|_| scope.spawn(|| station.scan("files.zip", archive.clone()))).collect();
        scans.into_iter().map(|scan| scan.join().unwrap()).collect()
    });
    assert_eq!(alone.at("in/x.doc").result.findings.yara.as_ref().unwrap().hits[0].rule, "told");
    assert_eq!(alone.at("marker").result.own, ResultCode::INFECTED);
    assert_eq!(alone.at("n7.txt").result.own, ResultCode::YARA_MATCHED);
    assert_eq!(alone.at("7.txt").result.own, ResultCode::NO_THREAT);
    for scanned in together {
        assert!(scanned.without_times() == alone.without_times());
    }
}

#[test]
fn a_file_is_judged_by_the_built_in_rules_wherever_in_it_they_match_and_whatever_its_length() {
    let station = station("rule never { condition: false }");
    // Up to 4 MiB the process that tells the type answers unasked; longer files are asked about.
    for bytes in [0, 1000, 4 << 20, (4 << 20) + 1, 6 << 20] {
        let scanned = station.scan("marker", around(marker().as_bytes(), bytes));
        assert_eq!(scanned.root.own, ResultCode::INFECTED, "{bytes} bytes around it");
        let scanned = station.scan("nothing", around(b"nothing", bytes));
        assert_eq!(scanned.root.own, ResultCode::NO_THREAT, "{bytes} bytes around it");
    }
}
