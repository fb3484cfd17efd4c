//! The rest of the API through the router: look-up by hash, batches and their certificates, cancel, downloads, rules,
//! statistics, encoded bodies, and what GET /openapi.json says of all of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use common::{Station, accepted, ask, content, get, refused, submission};
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;
use lazaret_analysis::conformance::{sample_nested, sample_result};
use lazaret_analysis::{
    ContainerResult, DataId, DiskReport, EngineInfo, HostReport, Limits, PasswordSeal, ResultCode, Rule, RuleSet,
    Rules, State, WorkerReport,
};
use lazaret_gateway::GatewayOptions;
use lazaret_node_client::Environment;
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tower::ServiceExt;

fn post(path: &str, key: &str) -> Request<Body> {
    Request::post(path).header("apikey", key).body(Body::empty()).unwrap()
}

fn with(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

async fn answered(router: &Router, request: Request<Body>) -> Value {
    let (status, answer) = ask(router, request).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

impl Station {
    async fn finish(&self, data_id: DataId, code: ResultCode) {
        let mut result = sample_result(code, "x");
        result.file = self.record(data_id).await.new.file;
        let now_ms = Environment::system().clock.unix_ms();
        assert!(self.results.finish(data_id, &result, now_ms).await.unwrap());
    }

    async fn batch(&self, router: &Router, key: &str) -> String {
        answered(router, post("/file/batch", key)).await["batch_id"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_hash_finds_the_newest_finished_analysis_that_the_caller_may_see() {
    let station = Station::new().await;
    let router = station.router();
    let body = content(5000);
    let mut ids = Vec::new();
    for key in [&station.alice, &station.alice, &station.bob] {
        ids.push(accepted(&router, submission(key, &body)).await);
    }
    let file = station.record(ids[0]).await.new.file;
    let at = |key: &str, hash: &str| get(&format!("/hash/{hash}"), key);
    let not_found = json!({ file.sha256.clone(): "Not Found" });
    assert_eq!(answered(&router, at(&station.alice, &file.sha256)).await, not_found, "nothing is finished");
    let in_progress = with(at(&station.alice, &file.sha256), "include-inprogress", "true");
    let document = answered(&router, in_progress).await;
    assert_eq!((&document["data_id"], &document["process_info"]["result"]), (&json!(ids[1]), &json!("Processing")));

    station.finish(ids[0], ResultCode::NO_THREAT).await;
    for hash in [&file.md5, &file.sha1, &file.sha256, &file.sha512, &file.sha256.to_uppercase()] {
        assert_eq!(answered(&router, at(&station.alice, hash)).await["data_id"], json!(ids[0]), "{hash}");
    }
    let in_progress = with(at(&station.alice, &file.sha256), "include-inprogress", "true");
    assert_eq!(answered(&router, in_progress).await["data_id"], json!(ids[0]), "what is finished comes first");
    station.finish(ids[1], ResultCode::INFECTED).await;
    station.finish(ids[2], ResultCode::NO_THREAT).await;
    assert_eq!(answered(&router, at(&station.alice, &file.md5)).await["data_id"], json!(ids[1]));
    assert_eq!(answered(&router, at(&station.bob, &file.md5)).await["data_id"], json!(ids[2]), "one's own");
    assert_eq!(answered(&router, at(&station.admin, &file.md5)).await["data_id"], json!(ids[2]), "everybody's");

    let narrowed = |name, value| with(at(&station.alice, &file.sha1), name, value);
    assert_eq!(answered(&router, narrowed("timerange", "1")).await["data_id"], json!(ids[1]));
    assert_eq!(answered(&router, narrowed("rule", "default")).await["data_id"], json!(ids[1]));
    refused(&router, narrowed("rule", "nonesuch"), 403).await;
    refused(&router, narrowed("timerange", "a day"), 400).await;
    for bad in ["x", "abc", &"g".repeat(32), &"a".repeat(33), &"a".repeat(5000), "%ff"] {
        let text = refused(&router, at(&station.alice, bad), 404).await;
        assert_eq!(text, "Invalid hash format");
    }
    let unknown = "0".repeat(40);
    assert_eq!(answered(&router, at(&station.alice, &unknown)).await, json!({ unknown.clone(): "Not Found" }));
    refused(&router, at("wrong", &file.md5), 403).await;
}

#[tokio::test]
async fn a_hash_finds_nested_files_unless_only_submissions_are_asked_for() {
    let station = Station::new().await;
    let router = station.router();
    let root = accepted(&router, submission(&station.alice, b"an archive")).await;
    let nested = sample_nested(root, 0);
    station.results.put_nested(std::slice::from_ref(&nested)).await.unwrap();
    let mut result = sample_result(ResultCode::NO_THREAT, "x");
    result.container = Some(ContainerResult { extracted_count: 1, ..ContainerResult::default() });
    station.results.finish(root, &result, 1).await.unwrap();
    let hash = &nested.result.file.sha512;
    let document = answered(&router, get(&format!("/hash/{hash}"), &station.alice)).await;
    assert_eq!(document["data_id"], json!(nested.data_id));
    let selfonly = with(get(&format!("/hash/{hash}"), &station.alice), "selfonly", "true");
    assert_eq!(answered(&router, selfonly).await, json!({ hash.clone(): "Not Found" }));
    let foreign = get(&format!("/hash/{hash}"), &station.bob);
    assert_eq!(answered(&router, foreign).await, json!({ hash.clone(): "Not Found" }));
}

#[tokio::test]
async fn rules_are_those_that_the_caller_may_use() {
    let station = Station::new().await;
    let yaml = "rules:\n  - name: default\n  - name: quick\n    max_file_size_bytes: 10\n    global_timeout_seconds: 30\n  - name: admins\n    roles: [administrator]\n  - name: gate\n    user_agents: [mail-gate]\n";
    let options = GatewayOptions { rules: RuleSet::from_yaml(yaml).unwrap().into(), ..GatewayOptions::default() };
    let router = station.gateway(options).router();
    let rules = answered(&router, get("/file/rules", &station.alice)).await;
    assert_eq!(
        rules,
        json!([
            {"name": "default", "max_file_size": 1_u64 << 40, "global_timeout": {"value": 0, "enabled": false}},
            {"name": "quick", "max_file_size": 10, "global_timeout": {"value": 30, "enabled": true}},
        ])
    );
    let names = |rules: &Value| -> Vec<String> {
        rules.as_array().unwrap().iter().map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&answered(&router, get("/file/rules", &station.admin)).await), ["default", "quick", "admins"]);
    let gate = with(get("/metascan_rest/file/rules", &station.alice), "user_agent", "mail-gate");
    assert_eq!(names(&answered(&router, gate).await), ["default", "quick", "gate"]);
    refused(&router, get("/file/rules", ""), 403).await;
}

#[tokio::test]
async fn an_analysis_is_cancelled_by_whoever_may() {
    let station = Station::new().await;
    let router = station.router();
    let (queued, running) = (
        accepted(&router, submission(&station.alice, b"queued")).await,
        accepted(&router, submission(&station.alice, b"running")).await,
    );
    let cancel = |id: &str, key: &str| post(&format!("/file/{id}/cancel"), key);
    assert_eq!(refused(&router, cancel(&queued.to_string(), &station.bob), 404).await, "Not found");
    assert_eq!(refused(&router, cancel(&DataId::random().to_string(), &station.alice), 404).await, "Not found");
    assert_eq!(refused(&router, cancel("nonsense", &station.alice), 404).await, "Not found");
    refused(&router, cancel(&queued.to_string(), "wrong"), 400).await;
    assert!(!station.record(queued).await.cancel_requested);

    for _ in 0..2 {
        let answer = answered(&router, cancel(&queued.to_string(), &station.alice)).await;
        assert_eq!(answer, json!({ queued.to_string(): "cancelled" }));
    }
    let document = answered(&router, get(&format!("/file/{queued}"), &station.alice)).await;
    assert_eq!(document["scan_results"]["scan_all_result_i"], 19);
    assert_eq!(document["scan_results"]["scan_all_result_a"], "Cancelled");
    assert_eq!(document["process_info"]["result"], "Blocked");
    assert_eq!(document["process_info"]["progress_percentage"], 100);

    station.results.start(running, 1).await.unwrap();
    answered(&router, cancel(&running.to_string(), &station.admin)).await;
    let record = station.record(running).await;
    assert!(record.cancel_requested && record.state == State::Running, "its worker ends it");
    station.finish(running, ResultCode::NO_THREAT).await;
    refused(&router, cancel(&running.to_string(), &station.alice), 400).await;
}

#[tokio::test]
async fn a_batch_is_filled_closed_polled_and_signed() {
    let station = Station::new().await;
    let router = station.router();
    let named = with(post("/file/batch", &station.alice), "user-data", "n%C3%A4chtlich%20%22x%22%0Ay");
    let id = answered(&router, named).await["batch_id"].as_str().unwrap().to_owned();
    let path = format!("/file/batch/{id}");
    let document = answered(&router, get(&path, &station.alice)).await;
    assert_eq!(
        document["batch_files"],
        json!({"batch_count": 0, "files_in_batch": [], "first_index": 0, "page_size": 50})
    );
    assert_eq!((&document["is_closed"], &document["user_data"]), (&json!(false), &json!("nächtlich \"x\"\ny")));

    let mut members = Vec::new();
    for name in ["a.txt", "b%20%22%0A.txt", "c.txt"] {
        let request = with(submission(&station.alice, name.as_bytes()), "batch", &id);
        members.push(accepted(&router, with(request, "filename", name)).await);
    }
    let document = answered(&router, get(&path, &station.alice)).await;
    assert_eq!(document["batch_files"]["batch_count"], 3);
    assert_eq!(document["scan_results"]["scan_all_result_i"], 255);
    assert_eq!(document["process_info"]["result"], "Processing");
    let page = answered(&router, get(&format!("{path}?first=1&size=1"), &station.alice)).await;
    let files = page["batch_files"]["files_in_batch"].as_array().unwrap();
    assert_eq!((files.len(), &files[0]["data_id"]), (1, &json!(members[1])));

    for member in &members {
        station.finish(*member, ResultCode::NO_THREAT).await;
    }
    let open = answered(&router, get(&path, &station.alice)).await;
    assert_eq!(open["process_info"]["result"], "Processing", "a file may still come");
    let certificate = format!("{path}/certificate");
    refused(&router, get(&certificate, &station.alice), 400).await;
    let closed = answered(&router, post(&format!("{path}/close"), &station.alice)).await;
    assert_eq!((&closed["is_closed"], &closed["process_info"]["result"]), (&json!(true), &json!("Allowed")));
    assert_eq!(closed["scan_results"]["total_avs"], 0);
    let late = with(submission(&station.alice, b"late"), "batch", &id);
    assert_eq!(refused(&router, late, 400).await, "The batch is closed.");

    // Whoever may not see it, and whoever asks for what is not there.
    let unknown = format!("/file/batch/{}", DataId::random());
    for (path, key) in [(&path, &station.bob), (&unknown, &station.alice)] {
        assert_eq!(refused(&router, get(path, key), 404).await, "Not found");
        assert_eq!(refused(&router, get(&format!("{path}/certificate"), key), 404).await, "Not found");
        assert_eq!(refused(&router, post(&format!("{path}/close"), key), 404).await, "Not found");
        assert_eq!(refused(&router, post(&format!("{path}/cancel"), key), 404).await, "Not found");
    }
    refused(&router, get(&path, "wrong"), 400).await;
    refused(&router, post("/file/batch", ""), 400).await;
    let foreign = with(submission(&station.bob, b"foreign"), "batch", &id);
    assert_eq!(refused(&router, foreign, 404).await, "Batch not found");
    let nonsense = with(submission(&station.alice, b"nonsense"), "batch", "none");
    assert_eq!(refused(&router, nonsense, 404).await, "Batch not found");
    let long = with(post("/file/batch", &station.alice), "user-data", &"x".repeat(1025));
    refused(&router, long, 400).await;

    let response = router.clone().oneshot(get(&certificate, &station.alice)).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/x-yaml".parse().unwrap())
    );
    let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let (report, signed) = text.split_once("...\n---\n").expect("two documents");
    let report: Value = serde_saphyr::from_str(report).unwrap();
    let signed: Value = serde_saphyr::from_str(signed.trim_end_matches("...\n")).unwrap();
    assert_eq!((&report["batch_id"], &report["user_data"]), (&json!(id), &json!("nächtlich \"x\"\ny")));
    let files = report["batch_files"]["files_in_batch"].as_array().unwrap();
    assert_eq!((files.len(), &report["batch_files"]["batch_count"]), (3, &json!(3)));
    assert_eq!(files[1]["display_name"], "b%20%22%EF%BF%BD.txt", "no name breaks the report");
    assert_eq!(files[0]["sha256"], json!(station.record(members[0]).await.new.file.sha256));
    assert_eq!(report["process_info"]["result"], "Allowed");
    assert_eq!(report["scan_results"]["scan_all_result_a"], "No Threat Detected");
    assert!(signed["certificate"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(signed["signature"].as_str().unwrap().len() > 80);
}

#[tokio::test]
async fn a_batch_takes_its_rule_and_is_as_bad_as_its_worst_file() {
    let station = Station::new().await;
    let yaml = "rules:\n  - name: default\n  - name: strict\n    allowed_codes: [0]\n";
    let options = GatewayOptions { rules: RuleSet::from_yaml(yaml).unwrap().into(), ..station.options() };
    let router = station.gateway(options).router();
    let id = answered(&router, with(post("/file/batch", &station.alice), "rule", "strict")).await["batch_id"].clone();
    let id = id.as_str().unwrap();
    let inherited = accepted(&router, with(submission(&station.alice, b"1"), "batch", id)).await;
    let own = with(with(submission(&station.alice, b"2"), "batch", id), "rule", "default");
    let own = accepted(&router, own).await;
    assert_eq!(station.record(inherited).await.new.rule.name, "strict");
    assert_eq!(station.record(own).await.new.rule.name, "default");
    station.finish(inherited, ResultCode::NO_THREAT).await;
    station.finish(own, ResultCode::INFECTED).await;
    let document = answered(&router, post(&format!("/file/batch/{id}/close"), &station.alice)).await;
    assert_eq!(document["process_info"]["result"], "Blocked");
    assert_eq!(document["process_info"]["blocked_reason"], "Infected");
    assert_eq!(document["process_info"]["profile"], "strict");
    assert_eq!(document["scan_results"]["scan_all_result_i"], 1);
    assert_eq!(document["batch_files"]["files_in_batch"][1]["detected_by"], 1);
    refused(&router, with(post("/file/batch", &station.alice), "rule", "nonesuch"), 403).await;
}

#[tokio::test]
async fn files_of_a_batch_get_its_rule_as_it_is_when_they_come() {
    let station = Station::new().await;
    let rules = Rules::from(
        RuleSet::from_yaml("rules: [{name: default}, {name: strict, passwords: [infected], user_agents: [maker]}]")
            .unwrap(),
    );
    let router = station.gateway(GatewayOptions { rules: rules.clone(), ..station.options() }).router();
    let batch = with(with(post("/file/batch", &station.alice), "rule", "strict"), "user-agent", "maker");
    let id = answered(&router, batch).await["batch_id"].as_str().unwrap().to_owned();
    let member = |name: &[u8]| with(submission(&station.alice, name), "batch", &id);
    let (seal, first) = (PasswordSeal::from_secret(common::SECRET).unwrap(), accepted(&router, member(b"1")).await);
    let sealed = station.record(first).await.new.passwords.expect("the rule's passwords come along");
    assert_eq!(seal.open(first, &sealed).unwrap().iter().collect::<Vec<_>>(), ["infected"]);

    rules
        .replace(RuleSet::from_yaml("rules: [{name: default}, {name: strict, file_types: {blocked: [.js]}}]").unwrap());
    let second = station.record(accepted(&router, member(b"2")).await).await.new;
    assert_eq!((second.rule.name.as_str(), second.rule.file_types.blocked.len()), ("strict", 1));
    assert_eq!(second.passwords, None, "it has none any more");
    // No longer for whoever made the batch.
    rules.replace(RuleSet::from_yaml("rules: [{name: default}, {name: strict, roles: [administrator]}]").unwrap());
    assert_eq!(refused(&router, member(b"3"), 403).await, "no rule is named \"strict\"");
    // Gone: another one in its place would be a wrong scan without a word.
    rules.replace(RuleSet::from_yaml("rules: [{name: default}]").unwrap());
    assert_eq!(refused(&router, member(b"4"), 403).await, "no rule is named \"strict\"");
    let own = accepted(&router, with(member(b"5"), "rule", "default")).await;
    assert_eq!(station.record(own).await.new.rule.name, "default");
}

#[tokio::test]
async fn what_cannot_be_recorded_now_may_be_sent_again_later() {
    let station = Station::new().await;
    let router = station.router();
    let options = SqliteConnectOptions::new().filename(station.results_file());
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    // As it says when its disk is full.
    let full =
        "CREATE TRIGGER full BEFORE INSERT ON analysis BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END";
    sqlx::query(full).execute(&mut database).await.unwrap();
    let response = router.clone().oneshot(submission(&station.alice, b"a")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[header::RETRY_AFTER], "10");
    station.assert_nothing_created().await;
    sqlx::query("DROP TRIGGER full").execute(&mut database).await.unwrap();
    accepted(&router, submission(&station.alice, b"a")).await;
}

#[tokio::test]
async fn a_batch_is_cancelled_under_both_paths() {
    let station = Station::new().await;
    let router = station.router();
    for path in ["/file/batch/{}/cancel", "/file/{}/cancel", "/metascan_rest/file/{}/cancel"] {
        let id = station.batch(&router, &station.alice).await;
        let member = accepted(&router, with(submission(&station.alice, b"x"), "batch", &id)).await;
        let cancel = path.replace("{}", &id);
        refused(&router, post(&cancel, &station.bob), 404).await;
        refused(&router, post(&cancel, "wrong"), 400).await;
        assert_eq!(answered(&router, post(&cancel, &station.alice)).await, json!({ id.clone(): "cancelled" }));
        assert_eq!(station.record(member).await.state, State::Cancelled, "no worker had begun it");
        let document = answered(&router, get(&format!("/file/batch/{id}"), &station.alice)).await;
        assert_eq!(
            (&document["is_closed"], &document["scan_results"]["scan_all_result_i"]),
            (&json!(true), &json!(19))
        );
    }
}

#[tokio::test]
async fn what_was_made_of_a_file_is_downloaded_and_the_file_itself_never() {
    let station = Station::new().await;
    let router = station.router();
    let name = "..%2F..%2Fr%C3%A9sum%C3%A9%22%0D%0A.pdf";
    let id = accepted(&router, with(submission(&station.alice, b"the original"), "filename", name)).await;
    let (converted, download) = (format!("/file/converted/{id}"), format!("/file/download/{id}"));
    let unknown = DataId::random();
    for key in [&station.alice, &station.bob] {
        assert_eq!(refused(&router, get(&converted, key), 404).await, "Not found");
        assert_eq!(refused(&router, get(&download, key), 404).await, "File could not be found");
    }
    assert_eq!(
        refused(&router, get(&format!("/file/download/{unknown}"), &station.alice), 404).await,
        "File could not be found"
    );
    assert_eq!(refused(&router, get("/file/converted/x", &station.alice), 404).await, "Not found");

    let clean = content(9_000_000);
    let stored = station.cluster.put(clean.clone().into()).await.unwrap();
    let options = SqliteConnectOptions::new().filename(station.results_file());
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("UPDATE analysis SET sanitized_blob = $1 WHERE data_id = $2")
        .bind(stored.name.to_string())
        .bind(id.0.to_vec())
        .execute(&mut database)
        .await
        .unwrap();
    assert_eq!(refused(&router, get(&converted, &station.bob), 404).await, "Not found");
    for path in [converted.clone(), download, format!("{converted}?apikey={}", station.alice)] {
        let key = if path.contains('?') { None } else { Some(&station.alice) };
        let mut request = Request::get(&path);
        if let Some(key) = key {
            request = request.header("apikey", key);
        }
        let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let disposition = response.headers()["content-disposition"].to_str().unwrap().to_owned();
        assert!(disposition.starts_with("attachment; filename=\"r_sum__"), "{disposition}");
        assert!(disposition.contains("filename*=UTF-8''r%C3%A9sum%C3%A9%22"), "{disposition}");
        assert_eq!(response.headers()["content-length"], "9000000");
        assert!(response.into_body().collect().await.unwrap().to_bytes() == clean);
    }
    let ranged = |range: &str| with(get(&converted, &station.alice), "range", range);
    for (range, expected) in
        [("bytes=0-9", 0..10), ("bytes=5000000-", 5_000_000..9_000_000), ("bytes=-7", 8_999_993..9_000_000)]
    {
        let response = router.clone().oneshot(ranged(range)).await.unwrap();
        assert_eq!(response.status(), 206);
        let expected_header = format!("bytes {}-{}/9000000", expected.start, expected.end - 1);
        assert_eq!(response.headers()["content-range"], expected_header.as_str());
        assert!(response.into_body().collect().await.unwrap().to_bytes() == clean[expected]);
    }
    let response = router.clone().oneshot(ranged("bytes=9000000-")).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-range"]),
        (416, &"bytes */9000000".parse().unwrap())
    );
    let etag = format!("\"{}\"", stored.name);
    let known = with(get(&converted, &station.alice), "if-none-match", &etag);
    assert_eq!(router.clone().oneshot(known).await.unwrap().status(), 304);
    let changed = with(ranged("bytes=0-9"), "if-range", "\"another\"");
    assert_eq!(router.clone().oneshot(changed).await.unwrap().status(), 200, "the whole of what changed");
    let same = with(ranged("bytes=0-9"), "if-range", &etag);
    assert_eq!(router.clone().oneshot(same).await.unwrap().status(), 206);
}

#[tokio::test]
async fn statistics_are_what_workers_report() {
    let station = Station::new().await;
    let router = station.router();
    assert_eq!(answered(&router, get("/stat/engines", &station.admin)).await, json!([]));
    assert_eq!(
        answered(&router, get("/stat/nodes", &station.admin)).await,
        json!({"external_nodes_allowed": true, "max_node_count": 0, "statuses": []})
    );
    let engine = |name: &str, def_time_ms| EngineInfo {
        id: format!("{name}_1"),
        name: name.to_owned(),
        version: "1.2".to_owned(),
        kind: "antivirus".to_owned(),
        database_version: "77".to_owned(),
        def_time_ms,
        trouble: "it limps".to_owned(),
    };
    let now_ms = Environment::system().clock.unix_ms();
    let worker = |name: &str, def_time_ms| WorkerReport {
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        scan_threads: 2,
        concurrent_files: 4,
        running: 1,
        engines: vec![engine("ClamAV", def_time_ms), engine("Lazaret", 0)],
        started_ms: now_ms.saturating_sub(60_000),
        host: HostReport {
            os: "Debian".to_owned(),
            cpu_cores: 2,
            memory_bytes: 8 << 30,
            memory_available_bytes: 2 << 30,
            load_percent: 50,
            disk: DiskReport { folder: "/var/lib/lazaret".to_owned(), free_bytes: 3 << 30, total_bytes: 9 << 30 },
        },
    };
    station.results.report_worker(&worker("w1", 1_700_000_000_000), now_ms).await.unwrap();
    station.results.report_worker(&worker("w2", 1_700_000_086_400), now_ms).await.unwrap();
    station.results.report_worker(&worker("gone", 1_800_000_000_000), now_ms - 60_000).await.unwrap();
    let engines = answered(&router, get("/stat/engines", &station.admin)).await;
    assert_eq!(engines.as_array().unwrap().len(), 2, "each once");
    assert_eq!(
        engines[0],
        json!({"abandoned": false, "active": true, "def_time": "2023-11-14T22:14:46.400Z", "download_progress": 100,
            "download_time": "2023-11-14T22:14:46.400Z", "eng_id": "ClamAV_1", "eng_name": "ClamAV",
            "eng_type": "antivirus engine", "eng_ver": "1.2", "engine_type": "av", "notified_messages": ["it limps"],
            "pinned": false, "state": "production", "type": "engine"})
    );
    let nodes = answered(&router, get("/stat/nodes", &station.admin)).await;
    assert_eq!(nodes["max_node_count"], 2, "a worker that is silent is gone");
    let status = &nodes["statuses"][0];
    assert_eq!((&status["id"], &status["cpu_cores"], &status["total_mem"]), (&json!("w1"), &json!(2), &json!(8192)));
    assert_eq!((&status["available_mem"], &status["load"]), (&json!(2048), &json!(50)));
    assert_eq!(
        (&status["free_disk_space"], &status["total_disk_space"]),
        (&json!(3_u64 << 30), &json!(9_u64 << 30)),
        "in bytes, as the reference has them"
    );
    let disk = json!({"dirs": ["/var/lib/lazaret"], "free": 3_u64 << 30, "location": "/var/lib/lazaret", "total": 9_u64 << 30});
    assert_eq!(status["info_disk_space"], json!([disk]));
    assert!(status["uptime"].as_u64().unwrap() >= 60);
    assert_eq!(
        status["scan_queue_details"],
        json!({"archive_scan_queue_ratio": -1, "available_slots": 3, "extracted_file_slots": 0, "file_slots": 1, "total_scan_queue": 4})
    );
    let license = answered(&router, get("/admin/license", &station.admin)).await;
    assert_eq!((&license["expiration"], &license["max_agent_count"]), (&json!("12/31/2099"), &json!("2")));
    assert!(license["days_left"].as_u64().unwrap() > 10_000 && license["online_activated"] == false);
    assert_eq!(license["licensed_engines"], json!(["ClamAV_1", "Lazaret_1"]));
    let health = answered(&router, get("/admin/config/healthcheck", &station.admin)).await;
    assert_eq!(
        (&health["enabled"], &health["status"], &health["components"]["status"]),
        (&json!(true), &json!(true), &json!(true))
    );
    for path in ["/stat/engines", "/stat/nodes", "/admin/license", "/admin/config/healthcheck"] {
        refused(&router, get(path, "wrong"), 403).await;
        assert_eq!(refused(&router, get(path, ""), 403).await, "Access denied");
    }
    refused(&router, get("/admin/license", &station.alice), 405).await;
}

#[tokio::test]
async fn a_synchronous_submission_answers_with_the_finished_analysis() {
    let station = Station::new().await;
    let router = station.router();
    let mut request = submission(&station.alice, b"wait for me");
    *request.uri_mut() = "/file/sync".parse().unwrap();
    let finishing = async {
        loop {
            let leases = station.queue.lease("w", 1, 60_000, Environment::system().clock.unix_ms()).await.unwrap();
            if let Some(lease) = leases.first() {
                station.finish(lease.task.data_id, ResultCode::INFECTED).await;
                return lease.task.data_id;
            }
            station.queue.wait(std::time::Duration::from_millis(10)).await;
        }
    };
    let (document, data_id) = tokio::join!(answered(&router, request), finishing);
    assert_eq!(document["data_id"], json!(data_id));
    assert_eq!(document["scan_results"]["progress_percentage"], 100);
    assert_eq!(document["process_info"]["blocked_reason"], "Infected");
    let mut empty = submission(&station.alice, b"");
    *empty.uri_mut() = "/file/sync".parse().unwrap();
    refused(&router, empty, 422).await;
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn an_encoded_body_is_decoded_before_anything_looks_at_it() {
    let station = Station::new().await;
    let router = station.router();
    let encoded = |encoding: &str, body: &[u8]| with(submission(&station.alice, body), "content-encoding", encoding);
    for length in [1, 300_000, 9_000_000] {
        let plain = content(length);
        let id = accepted(&router, encoded("gzip", &gzip(&plain))).await;
        let record = station.record(id).await;
        assert_eq!(record.new.file.size_bytes, length as u64);
        assert_eq!(record.new.blob, blake3::hash(&plain).to_hex().as_str());
        assert_eq!(
            record.new.file.sha256,
            lazaret_digests::Set::digest(lazaret_digests::Selection::default(), &plain).sha256_hex()
        );
        assert!(station.content(&record.new.blob).await == plain);
    }
    let id = accepted(&router, encoded("BASE64", b"aGVs\r\nbG8=\r\n")).await;
    assert_eq!(station.content(&station.record(id).await.new.blob).await, b"hello");
    let id = accepted(&router, encoded("identity", b"as it is")).await;
    assert_eq!(station.content(&station.record(id).await.new.blob).await, b"as it is");
    let submitted = station.queue.depth().await.unwrap().queued;

    let whole = gzip(&content(100_000));
    let text = refused(&router, encoded("gzip", &whole[..whole.len() / 2]), 400).await;
    assert!(text.contains("gzip"), "{text}");
    refused(&router, encoded("gzip", b"no gzip"), 400).await;
    refused(&router, encoded("base64", b"a$b="), 400).await;
    refused(&router, encoded("br", b"x"), 400).await;
    refused(&router, encoded("gzip, base64", b"x"), 400).await;
    assert_eq!(refused(&router, encoded("gzip", &gzip(b"")), 422).await, "File is empty.");
    assert_eq!(station.queue.depth().await.unwrap().queued, submitted, "nothing of it was submitted");

    let limits = Limits { ratio: 10, ratio_free_bytes: 1 << 20, ..Limits::default() };
    let tight = Rule { limits, max_file_size_bytes: 4 << 20, ..Rule::with_defaults("default") };
    let yaml = serde_json::to_string(&json!({ "rules": [tight] })).unwrap();
    let options = GatewayOptions { rules: RuleSet::from_yaml(&yaml).unwrap().into(), ..GatewayOptions::default() };
    let router = station.gateway(options).router();
    let text = refused(&router, encoded("gzip", &gzip(&vec![0; 3 << 20])), 413).await;
    assert!(text.contains("10 times"), "{text}");
    let text = refused(&router, encoded("gzip", &gzip(&content(5 << 20))), 413).await;
    assert!(text.contains("4194304"), "{text}");
    accepted(&router, encoded("gzip", &gzip(&vec![0; 1 << 20]))).await;
    // The ratio is that of the whole body, in whatever pieces it comes.
    let body = gzip(&[vec![0; 2 << 20], content(400_000)].concat());
    let pieces: Vec<Result<_, std::io::Error>> = body.chunks(500).map(|piece| Ok(piece.to_vec())).collect();
    let request = encoded("gzip", &body).map(|_| Body::from_stream(futures_util::stream::iter(pieces)));
    accepted(&router, request).await;
}

#[tokio::test]
async fn names_and_metadata_come_back_as_they_were_sent() {
    let station = Station::new().await;
    let router = station.router();
    let long = format!("{}.pdf", "n".repeat(1020));
    for (sent, shown) in [
        (long.as_str(), long.as_str()),
        ("a%22b%27c.txt", "a\"b'c.txt"),
        ("..%2F..%2Fetc%2Fpasswd", "../../etc/passwd"),
        ("two%0Alines", "two\u{fffd}lines"),
        ("", ""),
    ] {
        let id = accepted(&router, with(submission(&station.alice, b"x"), "filename", sent)).await;
        let document = answered(&router, get(&format!("/file/{id}"), &station.alice)).await;
        assert_eq!(document["file_info"]["display_name"], shown);
    }
    let request = with(submission(&station.alice, b"x"), "engines-metadata", "%7B%22depth%22%3A%203%7D");
    let id = accepted(&router, with(request, "metadata", "{\"a\": [1, null]}")).await;
    let record = station.record(id).await;
    assert_eq!(record.new.sent_along.engines_metadata.as_deref(), Some("{\"depth\": 3}"));
    let document = answered(&router, get(&format!("/file/{id}"), &station.alice)).await;
    assert_eq!(document["metadata"], json!({"a": [1, null]}));
}

#[tokio::test]
async fn every_route_is_described() {
    let station = Station::new().await;
    let router = station.router();
    let api = answered(&router, get("/openapi.json", "")).await;
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    let routes = [
        ("post", "/file"),
        ("post", "/file/sync"),
        ("get", "/file/{data_id}"),
        ("get", "/hash/{hash}"),
        ("get", "/file/rules"),
        ("get", "/file/converted/{data_id}"),
        ("get", "/file/download/{data_id}"),
        ("post", "/file/{data_id}/cancel"),
        ("post", "/file/batch"),
        ("post", "/file/batch/{batch_id}/close"),
        ("get", "/file/batch/{batch_id}"),
        ("get", "/file/batch/{batch_id}/certificate"),
        ("post", "/file/batch/{batch_id}/cancel"),
        ("get", "/admin/license"),
        ("get", "/admin/config/healthcheck"),
        ("get", "/stat/engines"),
        ("get", "/stat/nodes"),
        ("get", "/readyz"),
        ("get", "/version"),
        ("get", "/openapi.json"),
        ("get", "/docs"),
        ("post", "/login"),
        ("post", "/logout"),
        ("get", "/admin/user"),
        ("post", "/admin/user"),
        ("delete", "/admin/user/{user_id}"),
        ("post", "/user/changepassword"),
    ];
    let paths = api["paths"].as_object().unwrap();
    let mut described = 0;
    for (path, methods) in paths {
        for (method, route) in methods.as_object().unwrap() {
            assert!(routes.contains(&(method.as_str(), path.as_str())), "{method} {path} is in no list");
            assert!(
                route["responses"].get("200").is_some() && route["summary"].is_string(),
                "{method} {path}: {route}"
            );
            described += 1;
            // It is served: whoever has no key is refused, or answered, but never told that there is no such thing.
            for prefix in ["", "/metascan_rest"] {
                let served = path.replace("{data_id}", "x").replace("{batch_id}", "x").replace("{hash}", "x");
                let served = served.replace("{user_id}", "x");
                let request =
                    Request::builder().method(method.to_uppercase().as_str()).uri(format!("{prefix}{served}"));
                let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
                assert!(
                    ![404, 405, 500].contains(&response.status().as_u16()),
                    "{method} {path}: {}",
                    response.status()
                );
            }
        }
    }
    for (method, path) in routes {
        assert!(
            paths.get(path).is_some_and(|methods| methods.get(method).is_some()),
            "{method} {path} is not described"
        );
    }
    assert_eq!(described, routes.len());
    // Every reference leads somewhere.
    let schemas = api["components"]["schemas"].as_object().unwrap();
    for part in api.to_string().split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name} is not described");
    }
    let page = router.clone().oneshot(get("/docs", "")).await.unwrap();
    assert_eq!(
        (page.status().as_u16(), &page.headers()[header::CONTENT_TYPE]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    let page = String::from_utf8(page.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(
        !page.contains("http://") && !page.contains("https://") && !page.contains("src="),
        "it needs no other host"
    );
}
