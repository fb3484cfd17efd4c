//! What `lazaret scan --url` says and does when results don't come, and whom it trusts; and commands that nobody listens to.

use crate::harness::{Gateway, Process, Unattended, command, lazaret};

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_without_a_worker_says_so_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (station, files) = (dir.path().join("station"), dir.path().join("files"));
    let unattended = Unattended::start(&station, &[]);
    std::fs::create_dir(&files).unwrap();
    for name in ["one", "two", "three"] {
        std::fs::write(files.join(name), name).unwrap();
    }
    let (url, key) = (&unattended.gateway.ready["gateway"], station.join("client.key"));
    let scan = ["scan", "--url", url, "--apikey-file", key.to_str().unwrap(), "--json", "--concurrency", "2"];
    let output = lazaret(&[&scan[..], &["--wait", "8", files.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    let said_of = |what: &str| said.lines().filter(|line| line.starts_with("lazaret: ") && line.contains(what)).count();
    assert_eq!(said_of("waiting for results"), 1, "{said}");
    assert_eq!(said_of("no results from"), 1, "{said}");
    assert!(said.contains("no scan worker is alive"), "{said}");
    let rows = String::from_utf8(output.stdout).unwrap();
    let errors: Vec<String> = rows
        .lines()
        .map(|row| serde_json::from_str::<serde_json::Value>(row).unwrap()["err"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(errors.len(), 3, "a row for each file: {rows}");
    let kept: Vec<&str> = errors.iter().filter_map(|error| error.strip_prefix("no result for ")).collect();
    assert!(!kept.is_empty(), "{errors:?}");

    // What was submitted is scanned once somebody does.
    let _worker = Process::start(&["scan-worker", "--config", station.join("scan-worker.yml").to_str().unwrap()]);
    let gateway = Gateway::new(url, &key);
    for error in kept {
        gateway.finished(error.split(':').next().unwrap()).await;
    }
}

#[test]
fn an_authority_of_its_own_is_trusted_when_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("tls.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("tls.key"), made.signing_key.serialize_pem()).unwrap();
    let tls = format!("tls:\n  certificate: {}\n  private_key: {}", path("tls.pem"), path("tls.key"));
    let station = dir.path().join("station");
    let unattended = Unattended::start(&station, &[("tls: null", &tls)]);
    let _worker = Process::start(&["scan-worker", "--config", station.join("scan-worker.yml").to_str().unwrap()]);
    let url = unattended.gateway.ready["gateway"].replace("127.0.0.1", "localhost");
    assert!(url.starts_with("https://"), "{url}");
    std::fs::write(path("file"), "a file").unwrap();
    std::fs::write(path("nonsense.pem"), "nonsense").unwrap();
    let key = station.join("client.key");
    let client = ["--url", &url, "--apikey-file", key.to_str().unwrap(), "--json"];
    let run = |command: &[&str], ca: &str| {
        let output = lazaret(&[command, &client[..], &["--ca", ca]].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["scan", &path("file")], &path("tls.pem"));
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&["bench", "archive", &path("file")], &path("tls.pem"));
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&["bench", "submit", "--seconds", "1", "--rate", "5"], &path("tls.pem"));
    assert_eq!(code, Some(0), "{said}");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(path("other.pem"), other.cert.pem()).unwrap();
    let (code, said) = run(&["scan", &path("file")], &path("other.pem"));
    assert!(code == Some(2) && said.contains("certificate"), "{said}");
    let (code, said) = run(&["scan", &path("file")], &path("nonsense.pem"));
    assert!(code == Some(2) && said.contains("nonsense.pem holds no certificate"), "{said}");
}

#[test]
fn a_reader_that_goes_away_changes_no_exit_code_and_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let station = dir.path().join("station");
    drop(Unattended::start(&station, &[]));
    let node = station.join("node1.yml");
    std::fs::write(dir.path().join("rules.yml"), "rules:\n  - name: default\n").unwrap();
    let rules = dir.path().join("rules.yml");
    let commands = [
        &["storage-node", "--config", node.to_str().unwrap(), "--fsck"][..],
        &["storage-node", "--config", node.to_str().unwrap(), "--fsck", "--json"],
        &["rules", "check", rules.to_str().unwrap()],
        &["user", "--config", station.join("gateway.yml").to_str().unwrap(), "list"],
    ]
    .map(|args| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
    for args in commands {
        // As after `| head -1`: nobody reads.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = command(&args).stdout(writer).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{args:?}: {:?} {said}", output.status);
    }
}
