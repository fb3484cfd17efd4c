//! The real clamd, with a database of two signatures.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lazaret_analysis::ResultCode;
use lazaret_scan_worker::Engine;
use lazaret_scan_worker::engines::conformance::{self, Case, judge};
use lazaret_scan_worker::engines::{ClamavEngine, ClamavOptions, ClamdAddress};

use crate::wait_until;

const BAD: &[u8] = b"xx LAZARET-TEST-SIGNATURE xx";
const UNWANTED: &[u8] = b"an unwanted-program";
const MIB: u64 = 1 << 20;

/// A clamd. Killed when dropped.
struct Clamd {
    folder: tempfile::TempDir,
    child: Option<Child>,
    tcp: SocketAddr,
}

impl Clamd {
    fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("db")).unwrap();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let signature = |name: &str, text: &[u8]| format!("{name}:0:*:{}\n", hex(text));
        fs::write(path("db/test.ndb"), signature("Lazaret.Test", b"LAZARET-TEST-SIGNATURE")).unwrap();
        fs::write(path("db/test.ndu"), signature("PUA.Lazaret.Test", b"unwanted-program")).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            "DatabaseDirectory {}\nLocalSocket {}\nTCPSocket {}\nTCPAddr 127.0.0.1\nForeground yes\nDetectPUA yes\n{more}",
            path("db").display(),
            path("clamd.sock").display(),
            tcp.port(),
        );
        fs::write(path("clamd.conf"), config).unwrap();
        // It would give up its rights and not get at the folder.
        let as_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        if as_root {
            let config = fs::read_to_string(path("clamd.conf")).unwrap() + "User root\n";
            fs::write(path("clamd.conf"), config).unwrap();
        }
        let mut clamd = Self { folder, child: None, tcp };
        clamd.run();
        clamd
    }

    fn run(&mut self) {
        let installed = Path::new("/usr/sbin/clamd");
        let program = if installed.exists() { installed } else { Path::new("clamd") };
        let child = Command::new(program)
            .arg("-c")
            .arg(self.folder.path().join("clamd.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("clamd runs: scripts/system-packages installs it");
        self.child = Some(child);
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("clamd.sock")
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn engine(&self, address: ClamdAddress, timeout_ms: u64) -> ClamavEngine {
        let engine = ClamavEngine::start(ClamavOptions {
            name: "ClamAV".into(),
            address,
            timeout: Duration::from_millis(timeout_ms),
            connections: 4,
            max_file_bytes: 8 * MIB,
        })
        .unwrap();
        // It takes a moment to load its database, and the engine finds it by itself.
        wait_until("clamd", || engine.trouble().is_none());
        engine
    }

    fn unix(&self, timeout_ms: u64) -> ClamavEngine {
        self.engine(ClamdAddress::Unix(self.socket()), timeout_ms)
    }
}

impl Drop for Clamd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn code(engine: &ClamavEngine, content: &[u8]) -> u16 {
    let verdict = judge(engine, "file", content);
    println!("{verdict:?}");
    verdict.code.code()
}

fn check(engine: &ClamavEngine) {
    conformance::check(&Case {
        engine,
        bad: BAD.to_vec(),
        bad_code: ResultCode::INFECTED,
        clean_code: ResultCode::NO_THREAT,
    });
    assert_eq!(code(engine, UNWANTED), 22);
}

#[test]
fn over_its_socket_and_over_tcp_it_is_an_engine_like_any_other() {
    let clamd = Clamd::start("AlertExceedsMax yes\nMaxFileSize 2M\nStreamMaxLength 1M\n");
    let unix = clamd.unix(20_000);
    check(&unix);
    assert!(unix.info().version.starts_with(|c: char| c.is_ascii_digit()));
    // Over its own limit, and over ours.
    assert_eq!(code(&unix, &vec![0; 3 * MIB as usize]), 10);
    assert_eq!(code(&unix, &vec![0; 9 * MIB as usize]), 10);

    let tcp = clamd.engine(ClamdAddress::Tcp(clamd.tcp), 20_000);
    check(&tcp);
    assert_eq!(code(&tcp, &vec![0; 7 * MIB as usize]), 10);
    assert_eq!(code(&tcp, BAD), 1);
}

#[test]
fn a_session_that_clamd_closed_meanwhile_is_replaced_unnoticed() {
    let clamd = Clamd::start("IdleTimeout 1\nCommandReadTimeout 1\n");
    let engine = clamd.unix(20_000);
    assert_eq!(code(&engine, BAD), 1);
    // Nothing tells that clamd closed it: that is the point.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(code(&engine, BAD), 1);
    assert_eq!(code(&engine, b"clean"), 0);
}

#[test]
fn killed_or_stopped_it_fails_files_in_time_and_recovers_by_itself() {
    let mut clamd = Clamd::start("");
    let engine = clamd.unix(2000);
    assert_eq!(code(&engine, BAD), 1);

    clamd.kill();
    conformance::check_broken(&engine, BAD, Duration::from_secs(1));
    conformance::check_broken(&engine, b"clean", Duration::from_secs(1));
    wait_until("the trouble", || engine.trouble().is_some());
    clamd.run();
    wait_until("recovery", || engine.trouble().is_none());
    assert_eq!((code(&engine, BAD), code(&engine, b"clean")), (1, 0));

    clamd.signal("-STOP");
    // Also with many files at once, more than there are sessions.
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| conformance::check_broken(&engine, BAD, Duration::from_secs(6)));
        }
    });
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    wait_until("the trouble", || engine.trouble().is_some());
    conformance::check_broken(&engine, BAD, Duration::from_millis(500));
    clamd.signal("-CONT");
    wait_until("recovery", || engine.trouble().is_none());
    assert_eq!((code(&engine, BAD), code(&engine, b"clean")), (1, 0));
}

#[test]
fn one_that_never_was_there_is_no_obstacle_but_judges_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = ClamavOptions {
        name: "ClamAV".into(),
        address: ClamdAddress::Unix(folder.path().join("absent")),
        timeout: Duration::from_secs(5),
        connections: 1,
        max_file_bytes: MIB,
    };
    let engine = ClamavEngine::start(options.clone()).unwrap();
    assert!(engine.trouble().is_some());
    conformance::check_broken(&engine, b"clean", Duration::from_secs(1));
    // Something else listens there.
    let _other = std::os::unix::net::UnixListener::bind(folder.path().join("absent")).unwrap();
    conformance::check_broken(&engine, b"clean", Duration::from_secs(6));
}
