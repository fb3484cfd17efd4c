//! The REST API of a running cluster, beyond one file and its result.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Method;
use serde_json::Value;

use crate::harness::{Up, eicar, verdict};

/// What README.md gives to verify a signed result, on `batch.yml` in the working directory.
const VERIFY: &str = r#"
sed '/^\.\.\.$/q' batch.yml > report.yml
sed -n '/^signature: |$/,/^certificate: |$/s/^  //p' batch.yml | openssl base64 -d > report.sig
sed -n '/^  -----BEGIN CERT/,/^  -----END CERT/s/^  //p' batch.yml > cert.pem
openssl x509 -in cert.pem -pubkey -noout > cert.pub
openssl dgst -sha256 -verify cert.pub -signature report.sig report.yml
"#;

/// How long a batch of three small files may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_batch_ends_in_a_result_that_openssl_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let gateway = &up.gateway;
    let named = gateway
        .request(Method::POST, "/file/batch")
        .header("user-data", "-----BEGIN%20CERTIFICATE-----%0A...%0A---%0Asignature%3A%20%7C%0A%20%20AAAA");
    let batch = gateway.asked(named).await["batch_id"].as_str().unwrap().to_owned();
    for (name, body) in [("clean.txt", b"clean".to_vec()), ("bad.com", eicar()), ("%0A...%0A.txt", b"odd".to_vec())] {
        let request = gateway.request(Method::POST, "/file").header("batch", &batch).header("filename", name);
        gateway.asked(request.body(body)).await;
    }
    gateway.asked(gateway.request(Method::POST, &format!("/file/batch/{batch}/close"))).await;
    let deadline = Instant::now() + PATIENCE;
    let document = loop {
        let document = gateway.asked(gateway.request(Method::GET, &format!("/file/batch/{batch}"))).await;
        if document["process_info"]["result"] != "Processing" {
            break document;
        }
        assert!(Instant::now() < deadline, "no result: {document}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(verdict(&document), (1, false));
    assert_eq!(document["batch_files"]["batch_count"], 3);

    let path = format!("/file/batch/{batch}/certificate");
    let signed = gateway.request(Method::GET, &path).send().await.unwrap().text().await.unwrap();
    let there = tempfile::tempdir().unwrap();
    let verify = |text: &str| {
        std::fs::write(there.path().join("batch.yml"), text).unwrap();
        Command::new("sh").args(["-ec", VERIFY]).current_dir(there.path()).output().unwrap()
    };
    let output = verify(&signed);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("Verified OK"), "{said}\n{signed}");
    let readme = include_str!("../../README.md");
    for line in VERIFY.trim().lines() {
        assert!(readme.contains(line), "README.md gives the same commands: {line}");
    }
    let forged = signed.replacen("result: Blocked", "result: Allowed", 1);
    assert!(forged != signed && !verify(&forged).status.success(), "a changed report is not verified");
    let mode = std::fs::metadata(up.data.join("signing.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_running_cluster_answers_all_of_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path(), &[]);
    let body = eicar();
    let document = up.gateway.asked(up.gateway.request(Method::POST, "/file/sync").body(body.clone())).await;
    assert_eq!(verdict(&document), (1, false), "answered with the finished analysis");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&body).unwrap();
    let encoded = up.gateway.request(Method::POST, "/file/sync").header("content-encoding", "gzip");
    let unpacked = up.gateway.asked(encoded.body(gzip.finish().unwrap())).await;
    assert_eq!(unpacked["file_info"]["sha256"], document["file_info"]["sha256"]);
    let sha256 = document["file_info"]["sha256"].as_str().unwrap();
    let by_hash = up.gateway.asked(up.gateway.request(Method::GET, &format!("/hash/{sha256}"))).await;
    assert_eq!(by_hash["data_id"], unpacked["data_id"], "the newest");
    let rules = up.gateway.asked(up.gateway.request(Method::GET, "/file/rules")).await;
    assert_eq!(rules[0]["name"], "default");

    up.gateway.key = std::fs::read_to_string(up.data.join("admin.key")).unwrap().trim().to_owned();
    let nodes = up.gateway.asked(up.gateway.request(Method::GET, "/stat/nodes")).await;
    let slots = &nodes["statuses"][0]["scan_queue_details"];
    assert!(slots["available_slots"].as_u64().unwrap() >= 1, "{nodes}");
    assert!(nodes["statuses"][0]["total_mem"].as_u64().unwrap() > 0);
    let engines: Value = up.gateway.asked(up.gateway.request(Method::GET, "/stat/engines")).await;
    let names: Vec<_> = engines.as_array().unwrap().iter().map(|engine| engine["eng_name"].as_str().unwrap()).collect();
    for engine in document["scan_results"]["scan_details"].as_object().unwrap().keys() {
        assert!(names.contains(&engine.as_str()), "{engine} is not in {names:?}");
    }
    let license = up.gateway.asked(up.gateway.request(Method::GET, "/admin/license")).await;
    assert_eq!(license["max_agent_count"], "1");
    let health = up.gateway.asked(up.gateway.request(Method::GET, "/admin/config/healthcheck")).await;
    assert_eq!(health["status"], true);
}
