//! Engines of the site's own: the example, and one that misbehaves in every way.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lazaret_analysis::ResultCode;
use lazaret_scan_worker::Engine;
use lazaret_scan_worker::engines::conformance::{self, Case, judge};
use lazaret_scan_worker::engines::{ExternalAddress, ExternalEngine, ExternalOptions};

use crate::wait_until;

fn options(address: ExternalAddress) -> ExternalOptions {
    ExternalOptions {
        name: "Own".into(),
        address,
        timeout: Duration::from_secs(20),
        processes: 2,
        max_file_bytes: 1 << 20,
        digests: false,
    }
}

fn python(script: &Path, more: &[&str]) -> ExternalOptions {
    let mut command = vec!["python3".to_owned(), script.to_str().unwrap().to_owned()];
    command.extend(more.iter().map(|&argument| argument.to_owned()));
    options(ExternalAddress::Command(command))
}

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_example_is_an_engine_like_any_other() {
    let engine =
        ExternalEngine::start(python(&file("../examples/engines/wordlist.py"), &["confidential", "two words"]))
            .unwrap();
    let bad = b"this is confidential".to_vec();
    conformance::check(&Case {
        engine: &engine,
        bad,
        bad_code: ResultCode::SUSPICIOUS,
        clean_code: ResultCode::NO_THREAT,
    });
    let info = engine.info();
    assert_eq!((info.name.as_str(), info.version.as_str(), info.database_version.as_str()), ("Own", "1.0", "2 words"));
    assert_eq!(judge(&engine, "f", b"two words").threat, "Word.two_words");
    assert_eq!(judge(&engine, "f", &vec![b'x'; (1 << 20) + 1]).code, ResultCode::NOT_SCANNED);
    assert_eq!(judge(&engine, "f", &vec![b'x'; 1 << 20]).code, ResultCode::NO_THREAT);
}

/// The ill engine, and the file in which it counts its starts.
fn ill(folder: &Path, more: &[&str], timeout_ms: u64) -> (ExternalOptions, PathBuf) {
    let starts = folder.join("starts");
    let arguments = [&[starts.to_str().unwrap()], more].concat();
    let options = python(&file("tests/data/ill.py"), &arguments);
    (ExternalOptions { timeout: Duration::from_millis(timeout_ms), processes: 1, ..options }, starts)
}

fn started(starts: &Path) -> usize {
    std::fs::read(starts).map_or(0, |dots| dots.len())
}

#[test]
fn whatever_an_engine_does_its_file_fails_and_the_next_one_is_judged() {
    let folder = tempfile::tempdir().unwrap();
    let (options, starts) = ill(folder.path(), &[], 1500);
    let engine = ExternalEngine::start(options).unwrap();
    for sin in ["crash", "exit", "hang", "chatter", "garbage", "lie", "unknown"] {
        conformance::check_broken(&engine, sin.as_bytes(), Duration::from_secs(6));
        assert!(engine.trouble().is_some(), "{sin}");
        let next = judge(&engine, "file", b"something bad");
        assert_eq!((next.code, next.threat.as_str()), (ResultCode::INFECTED, "Bad thing"), "after {sin}");
        assert_eq!(engine.trouble(), None, "{sin}");
    }
    // That it failed is an answer, and no reason to start it again.
    let before = started(&starts);
    assert_eq!(judge(&engine, "file", b"failed").threat, "no licence");
    assert_eq!(judge(&engine, "file", b"clean").code, ResultCode::NO_THREAT);
    assert_eq!(started(&starts), before);
    // An answer too many is never taken for the next file's.
    assert_eq!(judge(&engine, "file", b"two").code, ResultCode::NO_THREAT);
    assert_eq!(judge(&engine, "file", b"bad").code, ResultCode::INFECTED);
}

#[test]
fn an_engine_that_keeps_failing_is_given_pauses() {
    let folder = tempfile::tempdir().unwrap();
    let (options, starts) = ill(folder.path(), &[], 1500);
    let engine = ExternalEngine::start(options).unwrap();
    let (began, mut paused) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(5) {
        let verdict = judge(&engine, "file", b"crash");
        assert_eq!(verdict.code, ResultCode::SCAN_FAILED, "{verdict:?}");
        paused += usize::from(verdict.threat.contains("not started again yet"));
    }
    // It is tried at once, after 0.1, 0.2, 0.4, 0.8, 1.6 and 3.2 s; files behind the longer pauses don't wait for their end.
    assert!(started(&starts) <= 10 && paused > 0, "{} starts, {paused} files failed in a pause", started(&starts));
    assert!(engine.trouble().is_some());
}

#[test]
fn processes_end_with_all_that_they_started() {
    let folder = tempfile::tempdir().unwrap();
    let (options, starts) = ill(folder.path(), &[], 1000);
    let engine = ExternalEngine::start(options).unwrap();
    conformance::check_broken(&engine, b"hang", Duration::from_secs(5));
    judge(&engine, "file", b"clean");
    drop(engine);
    let argument = starts.to_str().unwrap().as_bytes().to_vec();
    let alive = || {
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        processes
            .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
            .any(|line| line.windows(argument.len()).any(|part| part == argument))
    };
    wait_until("the end of its processes", || !alive());
}

#[test]
fn a_command_that_does_not_run_or_says_nothing_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (crashes, _) = ill(folder.path(), &["crash"], 1000);
    assert!(ExternalEngine::start(crashes).is_err());
    assert!(ExternalEngine::start(options(ExternalAddress::Command(vec!["/absent/engine".into()]))).is_err());
    let chatty = options(ExternalAddress::Command(vec!["echo".into(), "hello".into()]));
    assert!(ExternalEngine::start(chatty).is_err());
}

#[test]
fn a_server_on_a_socket_may_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let engine = ExternalEngine::start(options(ExternalAddress::Socket(path.clone()))).unwrap();
    assert!(engine.trouble().is_some());
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(connection));
        }
    });
    wait_until("the server", || judge(&engine, "f", b"clean").code == ResultCode::NO_THREAT);
    let bad = b"bad".to_vec();
    conformance::check(&Case {
        engine: &engine,
        bad,
        bad_code: ResultCode::INFECTED,
        clean_code: ResultCode::NO_THREAT,
    });
}

fn serve(connection: std::os::unix::net::UnixStream) {
    let mut output = connection.try_clone().unwrap();
    let mut input = BufReader::new(connection);
    writeln!(output, r#"{{"version": "2", "more": "is ignored"}}"#).unwrap();
    let mut line = String::new();
    while input.read_line(&mut line).is_ok_and(|read| read > 0) {
        let request: serde_json::Value = serde_json::from_str(&line).unwrap();
        let mut content = vec![0; request["size"].as_u64().unwrap() as usize];
        if input.read_exact(&mut content).is_err() {
            return;
        }
        let result = if content.windows(3).any(|part| part == b"bad") { "infected" } else { "clean" };
        if writeln!(output, r#"{{"id": {}, "result": "{result}", "threat": "it is {result}"}}"#, request["id"]).is_err()
        {
            return;
        }
        line.clear();
    }
}

/// The engine with this database.
fn versions(folder: &Path, words: &str) -> ExternalEngine {
    let database = folder.join("words");
    std::fs::write(&database, words).unwrap();
    ExternalEngine::start(python(&file("tests/data/versions.py"), &[database.to_str().unwrap()])).unwrap()
}

#[test]
fn a_verdict_is_that_of_the_process_which_gave_it() {
    let folder = tempfile::tempdir().unwrap();
    let engine = versions(folder.path(), "old");
    let first = engine.version();
    assert_eq!(judge(&engine, "f", b"x").judged_by.as_ref(), Some(&first));
    std::fs::write(folder.path().join("words"), "old newer").unwrap();
    // Two files at once make a second process begin, with the newer database.
    let databases = std::thread::scope(|scope| {
        let scans = [(); 2].map(|()| scope.spawn(|| judge(&engine, "f", b"slow").judged_by.unwrap().database.0));
        let mut databases = scans.map(|scan| scan.join().unwrap());
        databases.sort();
        databases
    });
    assert_eq!(databases, ["old", "old newer"]);
    assert_eq!(engine.info().database_version, "old newer");
    // Whatever is asked now, nothing that the first one calls clean passes for the newer database's verdict.
    for _ in 0..4 {
        let verdict = judge(&engine, "f", b"newer");
        let by_newer = verdict.judged_by.as_ref() == Some(&engine.version());
        assert_eq!(by_newer, verdict.code == ResultCode::INFECTED, "{verdict:?}");
    }
}

#[test]
fn what_an_engine_loads_while_it_runs_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let engine = versions(folder.path(), "old");
    std::fs::write(folder.path().join("words"), "told").unwrap();
    let verdict = judge(&engine, "f", b"load");
    assert_eq!(verdict.judged_by.as_ref(), Some(&engine.version()));
    assert_eq!((engine.info().database_version.as_str(), engine.info().def_time_ms), ("told", 7));
    // One that ends is started anew without a file that waits for it.
    std::fs::write(folder.path().join("words"), "started").unwrap();
    assert_eq!(judge(&engine, "f", b"end").code, ResultCode::NO_THREAT);
    wait_until("the next process", || engine.info().database_version == "started");
    assert_eq!(engine.trouble(), None);
}

#[test]
fn a_server_is_asked_again_what_it_searches_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let database = Arc::new(AtomicUsize::new(1));
    let loaded = database.clone();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().map_while(Result::ok) {
            let version = loaded.load(Ordering::SeqCst);
            writeln!(connection, r#"{{"version": "1", "database_version": "{version}"}}"#).unwrap();
            std::thread::spawn(move || connection.read_to_end(&mut Vec::new()));
        }
    });
    let engine = ExternalEngine::start(options(ExternalAddress::Socket(path))).unwrap();
    assert_eq!(engine.info().database_version, "1");
    database.store(2, Ordering::SeqCst);
    wait_until("the newer version", || engine.info().database_version == "2");
}

#[test]
fn what_it_is_told_and_shown_is_part_of_what_verdicts_are_kept_under() {
    let folder = tempfile::tempdir().unwrap();
    let command = |more: &[&str]| {
        ExternalAddress::Command(
            ["python3", "../examples/engines/wordlist.py"].iter().chain(more).map(|&part| part.to_owned()).collect(),
        )
    };
    let version = |options| ExternalEngine::start(options).unwrap().version();
    let absent = ExternalAddress::Socket(folder.path().join("absent"));
    let versions = [
        version(options(command(&["secret"]))),
        version(options(command(&["hidden"]))),
        version(ExternalOptions { max_file_bytes: 7, ..options(command(&["secret"])) }),
        version(ExternalOptions { digests: true, ..options(command(&["secret"])) }),
        version(options(absent)),
    ];
    for (at, one) in versions.iter().enumerate() {
        assert!(!versions[..at].contains(one), "{one:?}");
    }
    assert_eq!(versions[0], version(options(command(&["secret"]))));
}
