//! Bad input gets one clear line and exit code 2, or the right verdict; never a backtrace, never success.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::harness::{Process, Up, command, lazaret, verdict};

/// Runs lazaret; it must refuse with one line that says all of `says`.
fn refused(args: &[&str], says: &[&str]) {
    let output = lazaret(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    for word in says {
        assert!(stderr.contains(word), "{args:?}: no {word:?} in {stderr}");
    }
}

#[test]
fn usage_errors_and_absent_files_are_one_line() {
    refused(&["frobnicate"], &["frobnicate"]);
    refused(&[], &["command"]);
    refused(&["scan"], &["PATH"]);
    refused(&["scan", "/absent/file"], &["/absent/file", "No such file"]);
    refused(&["up", "--nodes", "0"], &["--nodes"]);
    refused(&["blob", "put", "/etc/hostname"], &["--cluster", "LAZARET_CLUSTER"]);
    refused(&["gateway", "--config", "/absent.yml"], &["/absent.yml"]);
    let dir = tempfile::tempdir().unwrap();
    refused(&["scan", dir.path().to_str().unwrap()], &["nothing to scan"]);
    refused(&["scan", "/dev/null"], &["neither a file nor a folder"]);
    refused(
        &[
            "up",
            "--data",
            dir.path().join("x").to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--min-replica",
            "3",
            "--max-replica",
            "2",
        ],
        &["min_replica"],
    );
}

#[test]
fn configurations_are_checked_to_the_key_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    assert!(lazaret(&["cluster", "init", dir.path().to_str().unwrap()]).status.success());
    refused(&["cluster", "init", dir.path().to_str().unwrap()], &["already"]);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (component, name) in
        [("gateway", "gateway.yml"), ("scan-worker", "scan-worker.yml"), ("storage-node", "node1.yml")]
    {
        let check = lazaret(&[component, "--config", &path(name), "--check-config"]);
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
        let print = lazaret(&[component, "--config", &path(name), "--print-config"]);
        let printed = String::from_utf8(print.stdout).unwrap();
        assert!(printed.contains("cluster.yml"), "{printed}");

        let text = fs::read_to_string(path(name)).unwrap();
        fs::write(path("unknown.yml"), format!("{text}colour: blue\n")).unwrap();
        refused(&[component, "--config", &path("unknown.yml")], &["unknown.yml", "colour"]);
        fs::write(path("broken.yml"), format!("{text}: [\n")).unwrap();
        refused(&[component, "--config", &path("broken.yml")], &["broken.yml"]);
    }
    fs::write(path("binary.yml"), [0xff, 0xfe, 0x00]).unwrap();
    refused(&["gateway", "--config", &path("binary.yml")], &["binary.yml"]);
    let exposed = fs::read_to_string(path("gateway.yml")).unwrap().replace("127.0.0.1:8899", "0.0.0.0:8899");
    fs::write(path("exposed.yml"), exposed).unwrap();
    refused(&["gateway", "--config", &path("exposed.yml")], &["plain_http_off_loopback"]);

    let environment = command(&["gateway", "--config", &path("gateway.yml"), "--print-config"])
        .env("LAZARET_GATEWAY_INFLIGHT_UPLOADS_MAX", "7")
        .output()
        .unwrap();
    assert!(String::from_utf8(environment.stdout).unwrap().contains("inflight_uploads_max: 7"));

    // Not the boolean that YAML has it for.
    let unconfined = fs::read_to_string(path("scan-worker.yml")).unwrap();
    let unconfined = unconfined.replace("sandbox: required", "sandbox: off");
    fs::write(path("unconfined.yml"), unconfined).unwrap();
    let printed = lazaret(&["scan-worker", "--config", &path("unconfined.yml"), "--print-config"]).stdout;
    assert!(String::from_utf8_lossy(&printed).contains("sandbox: \"off\""), "{}", String::from_utf8_lossy(&printed));
    fs::write(path("printed.yml"), &printed).unwrap();
    assert_eq!(lazaret(&["scan-worker", "--config", &path("printed.yml"), "--print-config"]).stdout, printed);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    refused(&["up", "--listen", &address, "--data", dir.path().to_str().unwrap()], &[&address, "in use"]);

    let up = Up::start(dir.path(), &[]);
    refused(&["up", "--listen", "127.0.0.1:0", "--data", dir.path().to_str().unwrap()], &["in use by another lazaret"]);
    assert_eq!(up.process.terminate(), Some(0));
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    // An unprivileged user, since root may write anywhere, and a program that it may run.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("lazaret");
    fs::copy(env!("CARGO_BIN_EXE_lazaret"), &program).unwrap();
    let data = dir.path().join("data");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["up", "--listen", "127.0.0.1:0", "--data"])
        .arg(&data)
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(data.to_str().unwrap()) && stderr.contains("Permission denied"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");

    // A file in its place.
    fs::write(&data, b"").unwrap();
    refused(&["up", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()], &[data.to_str().unwrap()]);
}

#[test]
fn damaged_keys_and_certificates_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    assert_eq!(up.process.terminate(), Some(0));
    let start = |dir: &Path| {
        Process::try_start(&["up", "--listen", "127.0.0.1:0", "--data", dir.to_str().unwrap()]).err().unwrap()
    };
    for name in ["node1.pem", "connection.key", "cluster.yml", "client.key"] {
        let path = dir.path().join(name);
        let good = fs::read(&path).unwrap();
        fs::write(&path, b"\n").unwrap();
        let stderr = start(dir.path());
        assert!(stderr.contains(name) && stderr.lines().count() == 1, "{name}: {stderr}");
        fs::write(&path, good).unwrap();
    }
    assert_eq!(Up::start(dir.path(), &[]).process.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_files_and_strange_names_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let (status, answer) = up.gateway.post("empty", "").await.unwrap();
    assert_eq!((status.as_u16(), &answer["err"]), (422, &"File is empty.".into()));
    for name in ["../../etc/passwd", "caf%C3%A9 %22quoted%22%0Aline", &"x".repeat(1024)] {
        let document = up.gateway.scan(name, "content").await;
        assert_eq!(verdict(&document), (0, true));
        assert!(!document["file_info"]["display_name"].as_str().unwrap().is_empty());
    }
}
