//! Engines and rules as an operator sets them up.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Up, eicar, lazaret, verdict};

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_rules_lists_and_engines_judge_and_follow_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/engines/wordlist.py");
    write(
        dir.path(),
        "rules.d/team.yar",
        r#"rule internal : secret { meta: description = "internal papers" strings: $a = "INTERNAL" condition: $a }"#,
    );
    // The MD5 of "known".
    write(dir.path(), "known.txt", "c90ae688b2a3b1fd0751fd743eb385cd\n");
    let engines = write(
        dir.path(),
        "engines.yml",
        format!(
            "yara: {{rules: [rules.d]}}\nhash_lists: [{{name: Known, bad: [known.txt]}}]\nexternal: [{{name: Words, command: [python3, {:?}, confidential]}}]\n",
            example.display().to_string()
        ),
    );
    let rules = write(dir.path(), "rules.yml", "rules:\n  - name: first\n    file_types: {mismatch: true}\n");
    let up = Up::start(&dir.path().join("data"), &["--engines", &engines, "--rules", &rules]);
    let scan = async |name: &str, body: &[u8]| up.gateway.scan(name, body.to_vec()).await;

    let clean = scan("a.txt", b"nothing").await;
    assert_eq!((verdict(&clean), &clean["yara"]["verdict"]), ((0, true), &Value::from(0)));
    let details = clean["scan_results"]["scan_details"].as_object().unwrap();
    assert_eq!(details.keys().collect::<Vec<_>>(), ["Known", "Lazaret", "Words", "YARA"]);
    assert_eq!(details["Known"]["scan_result_i"], 10);

    let matched = scan("a.txt", b"INTERNAL").await;
    assert_eq!(verdict(&matched), (21, false));
    assert_eq!(matched["scan_results"]["scan_details"]["YARA"]["scan_result_i"], 1);
    assert_eq!(matched["yara"]["verdict"], 1);
    let hit = &matched["yara"]["hits"]["internal"];
    assert_eq!(
        (&hit["description"], &hit["namespace"], &hit["tags"][0]),
        (&Value::from("internal papers"), &Value::from("team.yar"), &Value::from("secret"),)
    );
    assert_eq!(verdict(&scan("a.txt", &eicar()).await), (1, false));
    let known = scan("a.txt", b"known").await;
    assert_eq!(
        (verdict(&known), &known["scan_results"]["scan_details"]["Known"]["scan_result_i"]),
        ((38, false), &Value::from(1),)
    );
    let words = scan("a.txt", b"strictly confidential").await;
    assert_eq!(
        (verdict(&words), &words["scan_results"]["scan_details"]["Words"]["threat_found"]),
        ((2, false), &Value::from("Word.confidential"),)
    );
    let disguised = scan("a.pdf", b"just text").await;
    assert_eq!(verdict(&disguised), (17, false));
    assert_eq!(
        (&disguised["filetype_info"]["is_file_type_mismatch"], &disguised["filetype_info"]["final_verdict"]["verdict"]),
        (&Value::from(true), &Value::from("blocked"),)
    );

    // Rules and YARA rules are followed; broken ones are not.
    write(dir.path(), "rules.d/team.yar", "rule other { strings: $a = \"OTHER\" condition: $a }");
    until(async || verdict(&scan("a.txt", b"OTHER").await).0 == 21).await;
    write(dir.path(), "rules.yml", "rules:\n  - name: second\n");
    until(async || scan("a.pdf", b"just text").await["process_info"]["profile"] == "second").await;
    write(dir.path(), "rules.yml", "rules:\n  - name: third\n    surprise: 1\n");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(scan("a.pdf", b"just text").await["process_info"]["profile"], "second");
    assert_eq!(up.process.terminate(), Some(0));
}

async fn until(done: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done().await {
        assert!(Instant::now() < deadline, "it did not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn rules_are_checked_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let good = write(dir.path(), "good.yml", "rules:\n  - name: default\n    file_types: {blocked: [group:E]}\n");
    let output = lazaret(&["rules", "check", &good]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && stdout.contains("default") && stdout.contains("group:E"), "{stdout}");
    for (text, says) in [
        ("rules:\n  - name: a\n    file_types: {blocked: [\"no type\"]}\n", "line 3"),
        ("rules:\n  - name: a\n    surprise: 1\n", "surprise"),
    ] {
        let broken = write(dir.path(), "broken.yml", text);
        let output = lazaret(&["rules", "check", &broken]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(says) && stderr.contains("broken.yml"), "{stderr}");
        let output = lazaret(&[
            "up",
            "--data",
            dir.path().join("x").to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--rules",
            &broken,
        ]);
        assert_eq!(output.status.code(), Some(2));
    }
    let engines = write(dir.path(), "engines.yml", "yara: {rules: [absent.d]}\n");
    let output = lazaret(&["scan", "--engines", &engines, &good]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("YARA") && stderr.contains("absent.d"), "{stderr}");
}
