//! Files in, verdicts out.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::process::Command;

use bytes::Bytes;
use serde_json::Value;

use crate::harness::{Gateway, Processes, Up, command, content, eicar, files_below, lazaret, verdict};

fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn tar_gz_of(members: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default()));
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // Into the header as it is: the builder itself refuses names that only an attacker would write.
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        archive.append(&header, *bytes).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

/// Files with the result code that each must get.
fn corpus() -> BTreeMap<&'static str, (Vec<u8>, u64)> {
    let three_deep = zip_of(&[
        ("readme.txt", b"hello"),
        (
            "docs/middle.tar.gz",
            &tar_gz_of(&[(b"inner.zip", &zip_of(&[("eicar.com", &eicar())])), (b"clean.txt", b"clean")]),
        ),
    ]);
    let truncated = zip_of(&[("a.txt", &content(1, 100_000)), ("b.txt", &content(2, 100_000))]);
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..300 {
        bomb.write_all(&vec![0; 1 << 20]).unwrap();
    }
    BTreeMap::from([
        ("clean.txt", (b"nothing to see".to_vec(), 0)),
        ("clean.zip", (zip_of(&[("a", b"one"), ("b", &content(3, 70_000))]), 0)),
        ("eicar.com", (eicar(), 1)),
        ("three-deep.zip", (three_deep, 1)),
        ("truncated.zip", (truncated[..truncated.len() - 60].to_vec(), 24)),
        ("bomb.gz", (bomb.finish().unwrap(), 13)),
        ("names.tar.gz", (tar_gz_of(&[(b"docs/../../../etc/passwd", b"root"), (b"/abs\xff\xfe", b"not UTF-8")]), 0)),
    ])
}

/// What of a result does not depend on when and by whom it was made.
async fn comparable(gateway: &Gateway, document: &Value) -> Value {
    let mut members = Vec::new();
    if let Some(files) = document["extracted_files"]["files_in_archive"].as_array() {
        for file in files {
            let nested = gateway.result(file["data_id"].as_str().unwrap()).await.unwrap();
            members.push(Box::pin(comparable(gateway, &nested)).await);
        }
    }
    let engines: BTreeMap<String, (Value, Value)> = document["scan_results"]["scan_details"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(engine, result)| (engine.clone(), (result["scan_result_i"].clone(), result["threat_found"].clone())))
        .collect();
    let file = &document["file_info"];
    serde_json::json!([
        file["display_name"],
        file["file_size"],
        file["file_type"],
        file["md5"],
        file["sha1"],
        file["sha256"],
        file["sha512"],
        document["scan_results"]["scan_all_result_i"],
        document["process_info"]["result"],
        document["process_info"]["blocked_reason"],
        engines,
        members,
    ])
}

async fn scan_corpus(gateway: &Gateway) -> BTreeMap<&'static str, Value> {
    let mut results = BTreeMap::new();
    for (name, (bytes, code)) in corpus() {
        let document = gateway.scan(name, bytes).await;
        assert_eq!(verdict(&document), (code, code == 0), "{name}: {document}");
        results.insert(name, comparable(gateway, &document).await);
    }
    results
}

#[tokio::test(flavor = "multi_thread")]
async fn separate_processes_judge_as_one_process_does() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("up"), &[]);
    let in_one = scan_corpus(&up.gateway).await;
    let processes = Processes::start(&dir.path().join("processes"));
    assert_eq!(scan_corpus(&processes.gateway).await, in_one);
    assert_eq!(processes.gateway_process.terminate(), Some(0));
    assert_eq!(processes.worker.terminate(), Some(0));
    for node in processes.nodes {
        assert_eq!(node.terminate(), Some(0));
    }
}

/// A body of zeros with a marker somewhere, made as it is sent.
/// A password that is in no file by chance.
const PASSWORD: &str = "fox & hounds 7f3a9c05";

#[tokio::test]
async fn what_is_encrypted_is_opened_with_the_password_that_came_along() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("eicar.com"), eicar()).unwrap();
    let args = ["-q", "-P", PASSWORD, "secret.zip", "eicar.com"];
    assert!(Command::new("zip").args(args).current_dir(dir.path()).status().unwrap().success());
    let secret = std::fs::read(dir.path().join("secret.zip")).unwrap();
    let nested = zip_of(&[("secret.zip", &secret), ("clean.txt", b"clean")]);

    let data = dir.path().join("data");
    let up = Up::start(&data, &[]);
    assert_eq!(verdict(&up.gateway.scan("none.zip", nested.clone()).await), (12, false));
    let encoded = PASSWORD.replace(' ', "%20").replace('&', "%26");
    for (headers, code) in [
        (vec![("archivepwd", "cow")], 12),
        (vec![("archivepwd", encoded.as_str())], 1),
        (vec![("archivepwd", PASSWORD)], 1),
        (vec![("archivepwd1", "cow"), ("archivepwd2", "%00"), ("archivepwd10", encoded.as_str())], 1),
    ] {
        let (status, answer) = up.gateway.post_with("given.zip", nested.clone(), &headers).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        let document = up.gateway.finished(answer["data_id"].as_str().unwrap()).await;
        assert_eq!(verdict(&document), (code, false), "{headers:?}: {document}");
        assert!(!document.to_string().contains("hounds"), "{document}");
    }
    // Of the archive itself it is told whether a password opened it.
    for (password, told) in [("cow", "Failed"), (PASSWORD, "Success")] {
        let (_, answer) =
            up.gateway.post_with("secret.zip", secret.clone(), &[("archivepwd", password)]).await.unwrap();
        let document = up.gateway.finished(answer["data_id"].as_str().unwrap()).await;
        assert_eq!(document["extraction_info"]["decrypted_status"], told, "{document}");
        assert_eq!(document["filetype_info"]["file_info"]["encrypted"], true, "{document}");
    }
    let (status, answer) = up.gateway.post_with("odd.zip", nested, &[("archivepwd0", "cow")]).await.unwrap();
    assert_eq!(status, 400, "{answer}");

    // The command line sends them from a file, one a line.
    let (passwords, archive) = (dir.path().join("passwords"), dir.path().join("secret.zip"));
    std::fs::write(&passwords, format!("cow\n{PASSWORD}\n")).unwrap();
    let (url, key) = (up.gateway.url.clone(), data.join("client.key"));
    let args = ["scan", "--url", &url, "--apikey-file", key.to_str().unwrap(), archive.to_str().unwrap()];
    let with_passwords = [&args[..], &["--password-file", passwords.to_str().unwrap()]].concat();
    assert_eq!(lazaret(&args).status.code(), Some(1));
    let found = lazaret(&with_passwords);
    let table = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.status.code() == Some(1) && table.contains("EICAR-Test-File"), "{table}");

    drop(up);
    for file in files_below(&data) {
        let bytes = std::fs::read(&file).unwrap();
        let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(!holds(PASSWORD.as_bytes()) && !holds(encoded.as_bytes()), "{} holds a password", file.display());
    }
}

fn body_with(marker: &'static [u8], at: usize, length: usize) -> reqwest::Body {
    const PIECE: usize = 1 << 20;
    let pieces = (0..length / PIECE).map(move |index| {
        let mut piece = vec![0; PIECE];
        let start = index * PIECE;
        if (start..start + PIECE).contains(&at) {
            // The marker lies across the middle of no piece: `at` is a multiple of the piece's length.
            piece[at - start..][..marker.len()].copy_from_slice(marker);
        }
        Ok::<_, std::io::Error>(Bytes::from(piece))
    });
    reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_deep_in_a_file_larger_than_memory_allows_is_never_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &["--min-replica", "1", "--max-replica", "1"]);
    let marker: &'static [u8] =
        Box::leak(lazaret_scan_worker::engines::builtin::marker().into_bytes().into_boxed_slice());
    let length = 300 << 20;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer: Value = http
        .post(format!("{}/file", up.gateway.url))
        .header("apikey", &up.gateway.key)
        .header("content-length", length)
        .body(body_with(marker, 100 << 20, length))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let data_id = answer["data_id"].as_str().unwrap_or_else(|| panic!("{answer}"));
    loop {
        let document = up.gateway.result(data_id).await.unwrap();
        assert_ne!(document["process_info"]["result"], "Allowed", "{document}");
        if document["scan_results"]["progress_percentage"] == 100 {
            assert_eq!(verdict(&document), (1, false), "{document}");
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[test]
fn the_scan_command_prints_a_table_or_json_and_exits_by_the_worst_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let (clean, all) = (dir.path().join("clean"), dir.path().join("all"));
    for folder in [&clean, &all] {
        std::fs::create_dir(folder).unwrap();
    }
    for (name, (bytes, code)) in corpus() {
        if code == 0 {
            std::fs::write(clean.join(name), &bytes).unwrap();
        }
        std::fs::write(all.join(name), &bytes).unwrap();
    }
    let allowed = lazaret(&["scan", clean.to_str().unwrap()]);
    let table = String::from_utf8(allowed.stdout).unwrap();
    assert_eq!(allowed.status.code(), Some(0), "{table} {}", String::from_utf8_lossy(&allowed.stderr));
    let summary = table.lines().last().unwrap();
    assert!(summary.starts_with("3 files, ") && summary.contains("files/s") && summary.contains("MB/s"), "{summary}");

    // An own cluster's gateway, the key in the environment.
    let up = Up::start(&dir.path().join("data"), &[]);
    let scan = |args: &[&str]| {
        let args = [&["scan", "--url", &up.gateway.url], args].concat();
        command(&args).env("LAZARET_APIKEY", &up.gateway.key).output().unwrap()
    };
    let blocked = scan(&[all.to_str().unwrap()]);
    assert_eq!(blocked.status.code(), Some(1));
    let table = String::from_utf8(blocked.stdout).unwrap();
    for wanted in ["docs/middle.tar.gz/", "inner.zip/eicar.com", "EICAR-Test-File", "Blocked", "Allowed"] {
        assert!(table.contains(wanted), "no {wanted} in {table}");
    }
    let json = scan(&["--json", all.to_str().unwrap()]);
    let lines: Vec<Value> =
        String::from_utf8(json.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), corpus().len());
    assert!(lines.iter().all(|document| document["scan_results"]["progress_percentage"] == 100));

    // An empty file is refused by the gateway: a failed submission.
    std::fs::write(clean.join("empty"), b"").unwrap();
    let failed = scan(&[clean.to_str().unwrap()]);
    assert_eq!(failed.status.code(), Some(2));
    assert!(String::from_utf8(failed.stdout).unwrap().contains("File is empty"));
    let wrong_key = Command::new(env!("CARGO_BIN_EXE_lazaret"))
        .args(["scan", "--url", &up.gateway.url, clean.join("clean.txt").to_str().unwrap()])
        .env("LAZARET_APIKEY", "0000")
        .output()
        .unwrap();
    assert_eq!(wrong_key.status.code(), Some(2));
}
