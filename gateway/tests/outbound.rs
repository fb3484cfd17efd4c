//! Files fetched from and callbacks made to URLs that clients name: over real sockets, to a small server of this test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get as getting, post as posting};
use common::{Station, accepted, ask, content, get, refused};
use lazaret_analysis::conformance::{sample_analysis, sample_result};
use lazaret_analysis::{DataId, ResultCode, SentAlong};
use lazaret_gateway::{CallbackKey, CallbackOptions, GatewayOptions, OutboundOptions};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// What the small server was told, and how often it is to fail first.
#[derive(Default)]
struct Told {
    failures_left: u32,
    calls: Vec<(HeaderMap, Bytes)>,
}

type Telling = Arc<Mutex<Told>>;

async fn file(Path(name): Path<String>) -> Response {
    match name.as_str() {
        "report.bin" => content(300_000).into_response(),
        "r%C3%A9.txt" | "ré.txt" => "named by its URL".into_response(),
        "unannounced" => {
            Body::from_stream(futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"chunks"))]))
                .into_response()
        }
        "long" => vec![0; 2_000_000].into_response(),
        "moved" => (StatusCode::FOUND, [("location", "/report.bin")]).into_response(),
        "away" => (StatusCode::FOUND, [("location", "http://other.test/x")]).into_response(),
        "metadata" => (StatusCode::FOUND, [("location", "http://169.254.169.254/latest/meta-data")]).into_response(),
        "circle" => (StatusCode::FOUND, [("location", "/circle")]).into_response(),
        "slow" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            "late".into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn told(State(telling): State<Telling>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let mut telling = telling.lock().unwrap();
    telling.calls.push((headers, body));
    if telling.failures_left == 0 {
        return StatusCode::OK;
    }
    telling.failures_left -= 1;
    StatusCode::INTERNAL_SERVER_ERROR
}

/// Serves until the test's end.
async fn small_server(telling: Telling) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/done", posting(told)).route("/{name}", getting(file)).with_state(telling);
    tokio::spawn(async move { axum_serve(listener, router).await });
    address
}

/// axum's own server is a feature that nothing else needs.
async fn axum_serve(listener: TcpListener, router: Router) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                .await;
        });
    }
}

fn options(address: SocketAddr) -> OutboundOptions {
    OutboundOptions {
        hosts: vec![
            address.to_string(),
            format!("localhost:{}", address.port()),
            "other.test".to_owned(),
            "169.254.169.254".to_owned(),
        ],
        private_addresses: true,
        time_max: Duration::from_secs(2),
        bytes_max: 1_000_000,
    }
}

fn fetching(key: &str, url: &str) -> Request<Body> {
    Request::post("/file").header("apikey", key).header("downloadfrom", url).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn files_are_fetched_from_listed_hosts_and_from_no_others() {
    let station = Station::new().await;
    let address = small_server(Telling::default()).await;
    let router = station.gateway(GatewayOptions { downloads: options(address), ..station.options() }).router();
    let url = |path: &str| format!("http://{address}/{path}");
    for path in ["report.bin", "moved"] {
        let id = accepted(&router, fetching(&station.alice, &url(path))).await;
        let record = station.record(id).await;
        assert!(station.content(&record.new.blob).await == content(300_000));
        assert_eq!(record.new.file.display_name, path);
        let (_, document) = ask(&router, get(&format!("/file/{id}"), &station.alice)).await;
        assert_eq!(document["download_info"], json!({"status": "Download Success", "url": url(path)}));
    }
    let id = accepted(&router, fetching(&station.alice, &url("r%C3%A9.txt"))).await;
    assert_eq!(station.record(id).await.new.file.display_name, "ré.txt");
    let named = format!("http://LOCALHOST:{}/unannounced", address.port());
    accepted(&router, fetching(&station.alice, &named)).await;
    let id = accepted(&router, fetching(&station.alice, &url("unannounced"))).await;
    assert_eq!(station.content(&station.record(id).await.new.blob).await, b"chunks");
    let submitted = station.queue.depth().await.unwrap().queued;

    for (path, status) in [("missing", 502), ("long", 413), ("slow", 502), ("circle", 400)] {
        refused(&router, fetching(&station.alice, &url(path)), status).await;
    }
    for bad in ["http://unlisted.test/x", "ftp://other.test/x", "nonsense", &format!("http://u:p@{address}/report.bin")]
    {
        refused(&router, fetching(&station.alice, bad), 400).await;
    }
    let mut both = common::submission(&station.alice, b"a body as well");
    both.headers_mut().insert("downloadfrom", url("report.bin").parse().unwrap());
    refused(&router, both, 400).await;
    refused(&router, fetching("wrong", &url("report.bin")), 403).await;

    // Listed, but no public address: neither asked directly nor by a redirect.
    let public = OutboundOptions { private_addresses: false, ..options(address) };
    let router = station.gateway(GatewayOptions { downloads: public, ..station.options() }).router();
    let text = refused(&router, fetching(&station.alice, &url("report.bin")), 400).await;
    assert!(text.contains("not public"), "{text}");
    refused(&router, fetching(&station.alice, "http://169.254.169.254/latest"), 400).await;
    assert_eq!(station.queue.depth().await.unwrap().queued, submitted, "nothing of it was submitted");

    // Not even listed: off.
    let router = station.router();
    let text = refused(&router, fetching(&station.alice, &url("report.bin")), 400).await;
    assert!(text.contains("not supported"), "{text}");
}

#[tokio::test]
async fn redirects_are_checked_like_urls() {
    let station = Station::new().await;
    let address = small_server(Telling::default()).await;
    let downloads = OutboundOptions { hosts: vec![address.to_string()], ..options(address) };
    let router = station.gateway(GatewayOptions { downloads, ..station.options() }).router();
    for path in ["away", "metadata"] {
        let text = refused(&router, fetching(&station.alice, &format!("http://{address}/{path}")), 400).await;
        assert!(text.contains("not one that this gateway asks"), "{text}");
    }
    station.assert_nothing_created().await;
}

#[tokio::test]
async fn callbacks_are_signed_and_made_again_until_they_are_answered() {
    let station = Station::new().await;
    let telling = Telling::default();
    telling.lock().unwrap().failures_left = 1;
    let address = small_server(telling.clone()).await;
    let key = CallbackKey::from_text(KEY);
    let callbacks = Some(CallbackOptions { outbound: options(address), key: key.clone() });
    let with_callbacks = GatewayOptions { callbacks, ..station.options() };
    let router = station.gateway(with_callbacks.clone()).router();
    let submission = |url: &str| {
        let mut request = common::submission(&station.alice, b"tell me");
        request.headers_mut().insert("callbackurl", url.parse().unwrap());
        request
    };
    refused(&router, submission("http://unlisted.test/"), 400).await;
    refused(&router, submission("file:///etc/passwd"), 400).await;
    station.assert_nothing_created().await;
    let id = accepted(&router, submission(&format!("http://{address}/done"))).await;
    station.results.finish(id, &sample_result(ResultCode::INFECTED, "x"), 1).await.unwrap();

    // Only a gateway that serves tells.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let gateway = station.gateway(with_callbacks);
    let serving = tokio::spawn(gateway.serve(listener, async move { drop(stopped.await) }));
    let calls = || telling.lock().unwrap().calls.len();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while calls() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "told {} times", calls());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Once it is answered there is nothing more to tell.
    while !station.results.due_callbacks(u64::MAX, None, 9).await.unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert_eq!(calls(), 2);
    let telling = telling.lock().unwrap();
    for (headers, body) in &telling.calls {
        let signature = headers["x-lazaret-signature"].to_str().unwrap();
        let time: u64 = signature.strip_prefix("t=").unwrap().split(',').next().unwrap().parse().unwrap();
        assert_eq!(signature, key.signature(time, body));
        assert_ne!(signature, CallbackKey::from_text(&KEY.replace('0', "1")).signature(time, body));
        let document: Value = serde_json::from_slice(body).unwrap();
        assert_eq!((&document["data_id"], &document["scan_results"]["scan_all_result_i"]), (&json!(id), &json!(1)));
    }
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_holds_up_no_other() {
    let station = Station::new().await;
    let telling = Telling::default();
    let address = small_server(telling.clone()).await;
    // It takes connections and says nothing.
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hung_address = hung.local_addr().unwrap();
    let mut outbound = options(address);
    outbound.hosts.push(hung_address.to_string());
    outbound.time_max = Duration::from_secs(60);
    let callbacks = Some(CallbackOptions { outbound, key: CallbackKey::from_text(KEY) });
    let gateway = station.gateway(GatewayOptions { callbacks, ..station.options() });
    // More than one look takes, and what answers is due last.
    for number in 0..301u64 {
        let mut new = sample_analysis(DataId::random());
        let receiver = if number == 300 { address } else { hung_address };
        new.sent_along = SentAlong { callback_url: Some(format!("http://{receiver}/done")), ..SentAlong::default() };
        new.queued_ms += number;
        station.results.create(&new).await.unwrap();
        let result = sample_result(ResultCode::NO_THREAT, "x");
        station.results.finish(new.data_id, &result, new.queued_ms).await.unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(gateway.serve(listener, async move { drop(stopped.await) }));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while telling.lock().unwrap().calls.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "it waits for the one that hangs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    drop(hung);
}
