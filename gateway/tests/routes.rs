//! The routes through the router, without a socket: what is created, what is refused and how, who sees what.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Request;
use common::{SECRET, Station, accepted, ask, content, get, refused, submission};
use futures_util::{StreamExt, stream};
use lazaret_analysis::{
    ContainerResult, DataId, FileInfo, FileResult, Findings, NestedRecord, PasswordSeal, Progress, ResultCode, RuleSet,
    State, Times,
};
use lazaret_gateway::GatewayOptions;
use lazaret_protocol::limits::HELD_BYTES_MAX;
use serde_json::json;
use tokio::sync::Notify;
use tower::ServiceExt;

fn result(code: ResultCode) -> FileResult {
    FileResult {
        own: code,
        overall: code,
        engines: Vec::new(),
        file: FileInfo::default(),
        container: None,
        blocked_reasons: Vec::new(),
        times: Times::default(),
        detail: String::new(),
        findings: Findings::default(),
    }
}

/// A body of announced length whose bytes come only when `go` is notified; `asked` says that the first is waited for.
fn held_back(key: &str, body: &'static [u8], asked: Arc<Notify>, go: Arc<Notify>) -> Request<Body> {
    let pieces = stream::once(async move {
        asked.notify_one();
        go.notified().await;
        Ok::<_, std::io::Error>(Bytes::from_static(body))
    });
    Request::post("/file")
        .header("apikey", key)
        .header("content-length", body.len())
        .body(Body::from_stream(pieces))
        .unwrap()
}

#[tokio::test]
async fn a_submission_is_stored_recorded_and_queued() {
    let station = Station::new().await;
    let router = station.router();
    // Held and whole, at the boundary, and streamed.
    for length in [1, 70_000, HELD_BYTES_MAX, HELD_BYTES_MAX + 1, 3 * HELD_BYTES_MAX + 12_345] {
        let body = content(length);
        let mut request = submission(&station.alice, &body);
        request.headers_mut().insert("filename", "r%C3%A9sum%C3%A9.pdf".parse().unwrap());
        request.headers_mut().insert("user-agent", "mail-gate/1.0".parse().unwrap());
        request.headers_mut().insert("metadata", "%7B%22ticket%22%3A7%7D".parse().unwrap());
        request.headers_mut().insert("global-timeout", "90".parse().unwrap());
        let data_id = accepted(&router, request).await;

        let record = station.record(data_id).await;
        assert_eq!(record.state, State::Queued);
        assert_eq!(record.new.blob, blake3::hash(&body).to_hex().as_str());
        assert_eq!(record.new.file.size_bytes, length as u64);
        assert_eq!(record.new.file.display_name, "résumé.pdf");
        let digests = lazaret_digests::Set::digest(lazaret_digests::Selection::default(), &body);
        assert_eq!(record.new.file.md5, digests.md5_hex());
        assert_eq!(record.new.file.sha1, digests.sha1_hex());
        assert_eq!(record.new.file.sha256, digests.sha256_hex());
        assert_eq!(record.new.file.sha512, digests.sha512_hex());
        assert_eq!(record.new.principal.user_name, "alice");
        assert_eq!(record.new.principal.role, "submitter");
        assert_eq!(record.new.user_agent, "mail-gate/1.0");
        assert_eq!(record.new.metadata.as_deref(), Some(r#"{"ticket":7}"#));
        assert_eq!(record.new.rule.name, "default");
        assert_eq!(record.new.rule.global_timeout_seconds, Some(90));
        assert!(record.new.receive_ms <= record.new.upload_ms && record.new.upload_ms <= record.new.queued_ms);
        assert!(station.queue.contains(data_id).await.unwrap(), "the task is queued");
        assert!(station.content(&record.new.blob).await == body, "{length} bytes came back otherwise");

        let (status, document) = ask(&router, get(&format!("/file/{data_id}"), &station.alice)).await;
        assert_eq!(status, 200);
        assert_eq!(document["process_info"]["result"], "Processing");
        assert_eq!(document["file_info"]["sha256"], digests.sha256_hex());
        assert_eq!(document["metadata"], json!({"ticket": 7}));
    }
}

#[tokio::test]
async fn passwords_are_kept_sealed_with_those_of_the_rule() {
    let station = Station::new().await;
    let yaml = "rules:\n  - name: default\n    passwords: [infected, fox]";
    let options = GatewayOptions { rules: RuleSet::from_yaml(yaml).unwrap().into(), ..GatewayOptions::default() };
    let router = station.gateway(options).router();
    let mut request = submission(&station.alice, b"x");
    request.headers_mut().insert("archivepwd2", "cow".parse().unwrap());
    request.headers_mut().insert("archivepwd1", "f%6Fx".parse().unwrap());
    let data_id = accepted(&router, request).await;
    let record = station.record(data_id).await;
    let sealed = record.new.passwords.clone().unwrap();
    let opened = PasswordSeal::from_secret(SECRET).unwrap().open(data_id, &sealed).unwrap();
    assert_eq!(opened.iter().collect::<Vec<_>>(), ["fox", "f%6Fx", "cow", "infected"]);
    assert!(record.new.rule.passwords.is_empty(), "the snapshot of the rule has none in the clear");
    let (_, document) = ask(&router, get(&format!("/file/{data_id}"), &station.alice)).await;
    assert!(!document.to_string().contains("infected"), "{document}");

    let mut request = submission(&station.alice, b"x");
    request.headers_mut().insert("archivepwdx", "cow".parse().unwrap());
    let error = refused(&router, request, 400).await;
    assert!(error.contains("archivepwd") && !error.contains("cow"), "{error}");
}

#[tokio::test]
async fn the_body_is_the_file_whatever_its_label_says() {
    let station = Station::new().await;
    let router = station.router();
    let body = b"--x\r\nContent-Disposition: form-data; name=f\r\n\r\na=b&c=%41\r\n--x--\r\n";
    for label in
        ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/json", "nonsense"]
    {
        let mut request = submission(&station.alice, body);
        request.headers_mut().insert("content-type", label.parse().unwrap());
        let data_id = accepted(&router, request).await;
        let record = station.record(data_id).await;
        assert_eq!(station.content(&record.new.blob).await, body, "{label}");
    }
}

#[tokio::test]
async fn a_key_is_needed() {
    let station = Station::new().await;
    let router = station.router();
    let without = Request::post("/file").header("content-length", 1).body(Body::from("x")).unwrap();
    assert_eq!(refused(&router, without, 403).await, "Access denied");
    let wrong = "0".repeat(64);
    for key in ["", "wrong", &wrong, &"f".repeat(10_000)] {
        assert_eq!(refused(&router, submission(key, b"x"), 403).await, "Access denied");
    }
    let id = DataId::random();
    refused(&router, Request::get(format!("/file/{id}")).body(Body::empty()).unwrap(), 403).await;
    station.assert_nothing_created().await;

    let path = format!("/file/{id}?first=0&apikey={}", station.alice);
    let (status, _) = ask(&router, Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(status, 200, "the key as a query parameter");
    // The header wins: a wrong one is not saved by the query.
    let mut both = get(&format!("/file/{id}?apikey={}", station.alice), &wrong);
    refused(&router, both, 403).await;
    both = get(&format!("/file/{id}?apikey={wrong}"), &station.alice);
    assert_eq!(ask(&router, both).await.0, 200);
}

#[tokio::test]
async fn what_cannot_be_scanned_as_asked_is_refused() {
    let station = Station::new().await;
    let yaml = "rules:\n  - name: default\n  - name: small\n    max_file_size_bytes: 10\n  - name: admins\n    roles: [administrator]\n";
    let options = GatewayOptions { rules: RuleSet::from_yaml(yaml).unwrap().into(), ..GatewayOptions::default() };
    let router = station.gateway(options).router();
    let with = |name: &'static str, value: &'static str, body: &[u8]| {
        let mut request = submission(&station.alice, body);
        request.headers_mut().insert(name, value.parse().unwrap());
        request
    };
    let unannounced = Request::post("/file").header("apikey", &station.alice).body(Body::from("x")).unwrap();
    assert_eq!(refused(&router, unannounced, 411).await, "Missing Content-Length header.");
    let chunked = with("transfer-encoding", "chunked", b"x");
    assert_eq!(refused(&router, chunked, 411).await, "Missing Content-Length header.");
    assert_eq!(refused(&router, submission(&station.alice, b""), 422).await, "File is empty.");
    assert_eq!(refused(&router, with("rule", "nonesuch", b"x"), 403).await, "no rule is named \"nonesuch\"");
    let hidden = refused(&router, with("rule", "admins", b"x"), 403).await;
    assert_eq!(hidden, "no rule is named \"admins\"", "nobody is told of rules that are not for them");
    refused(&router, with("rule", "small", b"eleven byte"), 413).await;
    refused(&router, with("workflow", "small", b"eleven byte"), 413).await;
    refused(&router, with("global-timeout", "soon", b"x"), 400).await;
    refused(&router, with("global-timeout", "0", b"x"), 400).await;
    for name in ["downloadfrom", "callbackurl"] {
        let text = refused(&router, with(name, "something", b"x"), 400).await;
        assert!(text.contains("not supported") && text.contains(name), "{text}");
    }
    let too_long = Request::post("/file")
        .header("apikey", &station.alice)
        .header("content-length", (1_u64 << 40) + 1)
        .body(Body::empty())
        .unwrap();
    refused(&router, too_long, 413).await;
    station.assert_nothing_created().await;
    let data_id = accepted(&router, with("rule", "sm%61ll", b"ten bytes!")).await;
    assert_eq!(station.record(data_id).await.new.rule.name, "small");
}

#[tokio::test]
async fn past_the_bound_a_body_is_refused_unread() {
    let station = Station::new().await;
    for options in [
        GatewayOptions { inflight_uploads_max: 1, ..GatewayOptions::default() },
        GatewayOptions { inflight_bytes_max: 1, ..GatewayOptions::default() },
    ] {
        let router = station.gateway(options).router();
        let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let first = held_back(&station.alice, b"first", asked.clone(), go.clone());
        let first = tokio::spawn({
            let router = router.clone();
            async move { accepted(&router, first).await }
        });
        asked.notified().await;

        let (second_asked, never) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let mut second = held_back(&station.alice, b"second", second_asked, never);
        // Without this the gateway would read the body after the refusal, to be polite.
        second.headers_mut().insert("expect", "100-continue".parse().unwrap());
        let response = router.clone().oneshot(second).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        let text = refused(&router, submission(&station.alice, b"third"), 503).await;
        assert_eq!(text, "Server is too busy. Try again later.");

        go.notify_one();
        first.await.unwrap();
        accepted(&router, submission(&station.alice, b"fourth")).await;
    }
}

/// Submits `body` as `declared` bytes to a gateway with one place, and sees that nothing is left of it.
async fn failed_upload(station: &Station, body: Body, declared: u64, status: u16) -> String {
    let options = GatewayOptions {
        inflight_uploads_max: 1,
        body_idle_timeout: Duration::from_millis(100),
        ..GatewayOptions::default()
    };
    let router = station.gateway(options).router();
    let request =
        Request::post("/file").header("apikey", &station.alice).header("content-length", declared).body(body).unwrap();
    let text = refused(&router, request, status).await;
    station.assert_nothing_created().await;
    let (status, answer) = ask(&router, submission(&station.alice, b"")).await;
    assert_eq!(status, 422, "{answer}");
    // The place was given back: the answer to a real file is not that the server is busy.
    let (_, answer) = ask(&router, submission(&station.bob, b"next")).await;
    assert_ne!(answer["err"], "Server is too busy. Try again later.");
    text
}

#[tokio::test]
async fn a_body_that_fails_half_way_leaves_nothing() {
    // Beyond 4 MiB the body is on its way to the nodes already.
    for length in [10_000, 2 * HELD_BYTES_MAX] {
        let declared = length as u64 + 1;
        let station = Station::new().await;
        let text = failed_upload(&station, Body::from(content(length)), declared, 400).await;
        assert!(text.contains(&format!("{length} of {declared} bytes")), "{text}");

        let station = Station::new().await;
        let reset = || Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        let broken = stream::iter([Ok(Bytes::from(content(length))), reset()]);
        failed_upload(&station, Body::from_stream(broken), declared, 400).await;

        let station = Station::new().await;
        let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from(content(length)))]);
        let stuck = first.chain(stream::pending());
        failed_upload(&station, Body::from_stream(stuck), declared, 408).await;

        let station = Station::new().await;
        failed_upload(&station, Body::from(content(length)), length as u64 - 1, 400).await;
    }
}

#[tokio::test]
async fn without_a_quorum_nothing_is_acknowledged() {
    for length in [10, 2 * HELD_BYTES_MAX] {
        let station = Station::new().await;
        station.lose_quorum();
        let body = content(length);
        let text = failed_upload(&station, Body::from(body), length as u64, 503).await;
        assert!(text.contains("replicas") && text.contains("node-"), "{text}");
    }
}

#[tokio::test]
async fn an_id_is_shown_to_its_submitter_and_to_administrators() {
    let station = Station::new().await;
    let router = station.router();
    let data_id = accepted(&router, submission(&station.alice, b"hers")).await;
    let nested = NestedRecord {
        data_id: DataId::random(),
        root: data_id,
        parent: data_id,
        ordinal: 0,
        path: "inside.txt".into(),
        result: result(ResultCode::NO_THREAT),
    };
    station.results.put_nested(std::slice::from_ref(&nested)).await.unwrap();
    for id in [data_id, nested.data_id] {
        let path = format!("/file/{id}");
        for key in [&station.alice, &station.admin] {
            let (status, document) = ask(&router, get(&path, key)).await;
            assert_eq!((status.as_u16(), &document["data_id"]), (200, &json!(id.to_string())));
        }
        let (status, answer) = ask(&router, get(&path, &station.bob)).await;
        assert_eq!((status.as_u16(), answer), (200, json!({id.to_string(): "Not Found"})));
    }
    let unknown = DataId::random().to_string();
    for asked in [unknown.as_str(), "abc", "%C3%A9", "ZZ"] {
        let (status, answer) = ask(&router, get(&format!("/file/{asked}"), &station.alice)).await;
        let shown = if asked.starts_with('%') { "é" } else { asked };
        assert_eq!((status.as_u16(), answer), (200, json!({shown: "Not Found"})));
    }
    let (status, answer) = ask(&router, get("/file/%FF%FE", &station.alice)).await;
    assert_eq!((status.as_u16(), answer.as_object().unwrap().values().next()), (200, Some(&json!("Not Found"))));
}

#[tokio::test]
async fn progress_goes_up_to_100_and_never_back() {
    let station = Station::new().await;
    let router = station.router();
    let data_id = accepted(&router, submission(&station.alice, b"file")).await;
    let percent = async || {
        let (_, document) = ask(&router, get(&format!("/file/{data_id}"), &station.alice)).await;
        let percent = document["scan_results"]["progress_percentage"].as_u64().unwrap();
        assert_eq!(document["process_info"]["progress_percentage"].as_u64(), Some(percent));
        percent
    };
    assert_eq!(percent().await, 0);
    station.results.start(data_id, 1).await.unwrap();
    let set = async |percent| {
        station.progress.set(data_id, Progress { percent, last_file: String::new() }).await.unwrap();
    };
    set(40).await;
    assert_eq!(percent().await, 40);
    set(10).await;
    assert_eq!(percent().await, 40);
    station.results.finish(data_id, &result(ResultCode::NO_THREAT), 2).await.unwrap();
    assert_eq!(percent().await, 100);
    station.progress.remove(data_id).await.unwrap();
    assert_eq!(percent().await, 100);
}

#[tokio::test]
async fn a_container_is_shown_in_pages() {
    let station = Station::new().await;
    let router = station.router();
    let root = accepted(&router, submission(&station.alice, b"container")).await;
    let nested: Vec<_> = (0..120)
        .map(|ordinal| NestedRecord {
            data_id: DataId::random(),
            root,
            parent: root,
            ordinal,
            path: format!("{ordinal}.txt"),
            result: result(if ordinal == 77 { ResultCode::INFECTED } else { ResultCode::NO_THREAT }),
        })
        .collect();
    station.results.put_nested(&nested).await.unwrap();
    let mut whole = result(ResultCode::INFECTED);
    whole.container = Some(ContainerResult {
        extracted_count: 120,
        detected_count: 1,
        worst_child: Some(nested[77].data_id),
        ..ContainerResult::default()
    });
    station.results.finish(root, &whole, 1).await.unwrap();
    // (query, first_index, page_size, names shown)
    let pages: [(&str, u64, u64, std::ops::Range<u32>); 7] = [
        ("", 0, 50, 0..50),
        ("?first=50&size=30", 50, 30, 50..80),
        ("?first=100", 100, 50, 100..120),
        ("?first=120", 120, 50, 0..0),
        ("?size=99999", 0, 1000, 0..120),
        ("?first=x&size=-1", 0, 50, 0..50),
        ("?first=99999999999", u64::from(u32::MAX), 50, 0..0),
    ];
    for (query, first, size, names) in pages {
        let (status, document) = ask(&router, get(&format!("/file/{root}{query}"), &station.alice)).await;
        assert_eq!(status, 200);
        let extracted = &document["extracted_files"];
        assert_eq!(extracted["files_extracted_count"], 120);
        assert_eq!(extracted["first_index"], first, "{query}");
        assert_eq!(extracted["page_size"], size, "{query}");
        assert_eq!(extracted["worst_data_id"], nested[77].data_id.to_string());
        let shown: Vec<_> =
            extracted["files_in_archive"].as_array().unwrap().iter().map(|file| file["display_name"].clone()).collect();
        let expected: Vec<_> = names.map(|ordinal| json!(format!("{ordinal}.txt"))).collect();
        assert_eq!(shown, expected, "{query}");
    }
}

async fn probe(router: &Router, path: &str, key: Option<&str>) -> (u16, serde_json::Value) {
    let mut request = Request::get(path);
    if let Some(key) = key {
        request = request.header("apikey", key);
    }
    let (status, answer) = ask(router, request.body(Body::empty()).unwrap()).await;
    (status.as_u16(), answer)
}

#[tokio::test]
async fn readiness_is_public_and_its_details_are_not() {
    let station = Station::new().await;
    let router = station.router();
    let (status, details) = probe(&router, "/readyz?verbose=true", Some(&station.alice)).await;
    assert_eq!((status, &details["scan_queue"]["status"]), (503, &json!(false)), "nobody would scan");
    assert_eq!(details["scan_workers"], 0, "so that whoever waits for a result knows why it does not come");
    assert!(details["components"]["ometascan"]["detail"].as_str().unwrap().starts_with("no scan worker is alive"));
    station.attend().await;
    let router = station.router();
    let brief = json!({"status": true});
    for path in ["/readyz", "/metascan_rest/readyz", "/readyz?verbose=true", "/readyz?verbose=false"] {
        assert_eq!(probe(&router, path, None).await, (200, brief.clone()), "{path}");
    }
    accepted(&router, submission(&station.alice, b"waits")).await;
    let router = station.router();
    assert_eq!(probe(&router, "/readyz?verbose=true", Some("wrong")).await, (200, brief.clone()));
    assert_eq!(probe(&router, "/readyz", Some(&station.alice)).await, (200, brief));
    let (status, details) = probe(&router, "/readyz?verbose=true", Some(&station.alice)).await;
    assert_eq!((status, &details["status"]), (200, &json!(true)));
    assert_eq!(details["scan_queue"], json!({"number_in_queue": 1, "status": true}));
    assert_eq!(details["license"], json!({"status": "ok"}));
    assert_eq!(details["scan_workers"], 1);
    assert_eq!(details["components"]["status"], true);
    for part in ["datalake", "caching", "broker", "filestorage", "identity", "ometascan"] {
        let part = &details["components"][part];
        assert!(part["status"] == true && part["detail"].is_string(), "{details:#}");
    }
}

#[tokio::test]
async fn without_a_quorum_it_is_not_ready() {
    let station = Station::new().await;
    station.lose_quorum();
    let router = station.router();
    assert_eq!(probe(&router, "/readyz", None).await, (503, json!({"status": false})));
    let (status, details) = probe(&router, "/readyz?verbose=1", Some(&station.admin)).await;
    assert_eq!(status, 503);
    assert_eq!(details["components"]["filestorage"]["status"], false);
    assert_eq!(details["components"]["datalake"]["status"], true);
    assert_eq!(details["components"]["status"], false);
}

#[tokio::test]
async fn the_rest_answers_in_json() {
    let station = Station::new().await;
    let router = station.router();
    for prefix in ["", "/metascan_rest"] {
        for path in ["/", "/nonesuch", "/file/a/b", "/metascan_rest/metascan_rest/version"] {
            refused(&router, get(&format!("{prefix}{path}"), &station.alice), 404).await;
        }
        let delete = Request::delete(format!("{prefix}/file")).body(Body::empty()).unwrap();
        refused(&router, delete, 405).await;
        refused(&router, get(&format!("{prefix}/file"), &station.alice), 405).await;
        let post = Request::post(format!("{prefix}/version")).body(Body::empty()).unwrap();
        refused(&router, post, 405).await;
        let (status, version) = ask(&router, get(&format!("{prefix}/version"), "")).await;
        assert_eq!((status.as_u16(), &version["version"]), (200, &json!(env!("CARGO_PKG_VERSION"))));
        let mut request = submission(&station.alice, b"by the old path");
        *request.uri_mut() = format!("{prefix}/file").parse().unwrap();
        let data_id = accepted(&router, request).await;
        let (_, document) = ask(&router, get(&format!("{prefix}/file/{data_id}"), &station.alice)).await;
        assert_eq!(document["data_id"], data_id.to_string());
    }
}
