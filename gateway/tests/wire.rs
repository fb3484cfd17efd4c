//! What only a socket shows: chunked bodies, connections that end or break in the middle, `Expect`, refusals of bodies
//! that are still coming, bounds on headers, and a graceful end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Station, content};
use lazaret_gateway::GatewayOptions;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<std::io::Result<()>>,
}

async fn serve(station: &Station, options: GatewayOptions) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let gateway = station.gateway(options);
    let ended = tokio::spawn(gateway.serve(listener, async {
        let _ = stopped.await;
    }));
    Server { address, stop, ended }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.ended).await.unwrap().unwrap().unwrap();
    }
}

fn head(key: &str, fields: &str) -> Vec<u8> {
    format!("POST /file HTTP/1.1\r\nhost: lazaret\r\napikey: {key}\r\n{fields}\r\n").into_bytes()
}

/// The next answer on the connection: its status and its JSON.
async fn answer(stream: &mut TcpStream) -> (u16, Value) {
    let (status, headers) = answer_head(stream).await;
    let length = headers
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut body)).await.unwrap().unwrap();
    (status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
}

async fn answer_head(stream: &mut TcpStream) -> (u16, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head)
}

/// Reads until the server closes the connection, orderly or not.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the server closes");
}

/// Submits until the one place is free again, which it must be in finite time.
async fn place_is_free(server: &Server, key: &str) {
    let free = async {
        loop {
            let mut stream = server.connect().await;
            stream.write_all(&head(key, "content-length: 4\r\n")).await.unwrap();
            stream.write_all(b"next").await.unwrap();
            match answer(&mut stream).await.0 {
                200 => break,
                503 => tokio::task::yield_now().await,
                other => panic!("status {other}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("the place is given back");
}

fn one_place() -> GatewayOptions {
    GatewayOptions { inflight_uploads_max: 1, ..GatewayOptions::default() }
}

#[tokio::test]
async fn several_files_go_over_one_connection() {
    let station = Station::new().await;
    let server = serve(&station, GatewayOptions::default()).await;
    let mut stream = server.connect().await;
    for length in [1, 300_000, 9_000_001] {
        let body = content(length);
        // The name is raw UTF-8, as curl sends it.
        let fields = format!("filename: d\u{e9}j\u{e0} vu.txt\r\ncontent-length: {length}\r\n");
        stream.write_all(&head(&station.alice, &fields)).await.unwrap();
        stream.write_all(&body).await.unwrap();
        let (status, accepted) = answer(&mut stream).await;
        assert_eq!(status, 200, "{accepted}");
        let data_id = accepted["data_id"].as_str().unwrap().parse().unwrap();
        let record = station.record(data_id).await;
        assert_eq!(record.new.file.display_name, "d\u{e9}j\u{e0} vu.txt");
        assert!(station.content(&record.new.blob).await == body);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_chunked_or_empty_body_is_refused() {
    let station = Station::new().await;
    let server = serve(&station, GatewayOptions::default()).await;
    for (fields, body, status) in [
        ("transfer-encoding: chunked\r\n", "4\r\nbody\r\n0\r\n\r\n", 411),
        ("", "", 411),
        ("content-length: 0\r\n", "", 422),
    ] {
        let mut stream = server.connect().await;
        stream.write_all(&head(&station.alice, fields)).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let (got, error) = answer(&mut stream).await;
        assert_eq!(got, status, "{error}");
        assert!(error["err"].is_string());
    }
    station.assert_nothing_created().await;
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_ends_or_breaks_early_leaves_nothing() {
    let station = Station::new().await;
    let server = serve(&station, one_place()).await;
    // Before and after the bytes that are held back for placement.
    for sent in [0, 1000, 6_000_000] {
        let body = content(sent);
        let mut ended = server.connect().await;
        ended.write_all(&head(&station.alice, "content-length: 10000000\r\n")).await.unwrap();
        ended.write_all(&body).await.unwrap();
        ended.shutdown().await.unwrap();
        closed(&mut ended).await;
        station.assert_nothing_created().await;
    }
    place_is_free(&server, &station.alice).await;

    let before = station.results.count_unfinished().await.unwrap();
    let mut broken = server.connect().await;
    broken.write_all(&head(&station.alice, "content-length: 10000000\r\n")).await.unwrap();
    broken.write_all(&content(6_000_000)).await.unwrap();
    // Zero linger makes the close a reset.
    broken.set_zero_linger().unwrap();
    drop(broken);
    place_is_free(&server, &station.alice).await;
    let after = station.results.count_unfinished().await.unwrap();
    assert_eq!(after, before + 1, "only what was sent to see that the place is free");
    server.stop().await;
}

#[tokio::test]
async fn a_slow_body_is_cut_off() {
    let station = Station::new().await;
    let options = GatewayOptions { body_idle_timeout: Duration::from_millis(100), ..one_place() };
    let server = serve(&station, options).await;
    let mut stream = server.connect().await;
    stream.write_all(&head(&station.alice, "content-length: 10\r\n")).await.unwrap();
    stream.write_all(b"half").await.unwrap();
    let (status, error) = answer(&mut stream).await;
    assert_eq!(status, 408, "{error}");
    station.assert_nothing_created().await;
    place_is_free(&server, &station.alice).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_first() {
    let station = Station::new().await;
    let server = serve(&station, GatewayOptions::default()).await;
    let fields = "content-length: 4\r\nexpect: 100-continue\r\n";
    let mut stream = server.connect().await;
    stream.write_all(&head(&station.alice, fields)).await.unwrap();
    assert_eq!(answer_head(&mut stream).await.0, 100);
    stream.write_all(b"body").await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 200);

    let mut stream = server.connect().await;
    stream.write_all(&head("wrong", fields)).await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 403, "without a 100 before it");
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_is_readable_though_the_body_is_still_coming() {
    let station = Station::new().await;
    let server = serve(&station, GatewayOptions::default()).await;
    let body = content(8_000_000);
    let mut stream = server.connect().await;
    // Small enough that the whole body can't lie in the kernel's buffers.
    stream.write_all(&head("wrong", "content-length: 8000000\r\n")).await.unwrap();
    stream.write_all(&body).await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 403);
    // And the connection goes on.
    stream.write_all(&head(&station.alice, "content-length: 4\r\n")).await.unwrap();
    stream.write_all(b"body").await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn headers_are_bounded_in_size_number_and_time() {
    let station = Station::new().await;
    let options = GatewayOptions { header_read_timeout: Duration::from_millis(200), ..GatewayOptions::default() };
    let server = serve(&station, options).await;
    let long = format!("x: {}\r\n", "y".repeat(100_000));
    let many: String = (0..200).map(|n| format!("x{n}: y\r\n")).collect();
    for fields in [long, many] {
        let mut stream = server.connect().await;
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(&head(&station.alice, &fields)).await;
        assert_eq!(answer_head(&mut stream).await.0, 431);
    }
    let mut slow = server.connect().await;
    slow.write_all(b"POST /file HTTP/1.1\r\nhost: laz").await.unwrap();
    closed(&mut slow).await;
    server.stop().await;
}

#[tokio::test]
async fn connections_past_the_bound_wait_for_one_to_end() {
    let station = Station::new().await;
    let server = serve(&station, GatewayOptions { connections_max: 1, ..GatewayOptions::default() }).await;
    let request = b"GET /version HTTP/1.1\r\nhost: lazaret\r\n\r\n";
    let mut first = server.connect().await;
    first.write_all(request).await.unwrap();
    assert_eq!(answer(&mut first).await.0, 200);
    let mut second = server.connect().await;
    second.write_all(request).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), second.read_u8()).await;
    assert!(early.is_err(), "answered while the only place is taken");
    drop(first);
    assert_eq!(answer(&mut second).await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn an_upload_in_flight_survives_the_shutdown() {
    let station = Station::new().await;
    let server = serve(&station, GatewayOptions::default()).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /version HTTP/1.1\r\nhost: lazaret\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut idle).await.0, 200);
    let mut upload = server.connect().await;
    let fields = "content-length: 8\r\nexpect: 100-continue\r\n";
    upload.write_all(&head(&station.alice, fields)).await.unwrap();
    assert_eq!(answer_head(&mut upload).await.0, 100, "the upload is in flight");

    let Server { address, stop, ended } = server;
    stop.send(()).unwrap();
    // The idle connection is closed, and with it the listener.
    closed(&mut idle).await;
    assert!(TcpStream::connect(address).await.is_err(), "nothing is accepted any more");
    assert!(!ended.is_finished());
    upload.write_all(b"complete").await.unwrap();
    assert_eq!(answer(&mut upload).await.0, 200);
    tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap();
    assert_eq!(station.results.count_unfinished().await.unwrap(), 1);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever() {
    let station = Station::new().await;
    let options = GatewayOptions { shutdown_grace: Duration::from_millis(100), ..GatewayOptions::default() };
    let server = serve(&station, options).await;
    let mut stuck = server.connect().await;
    stuck.write_all(&head(&station.alice, "content-length: 8\r\nexpect: 100-continue\r\n")).await.unwrap();
    assert_eq!(answer_head(&mut stuck).await.0, 100);
    server.stop().await;
    closed(&mut stuck).await;
    station.assert_nothing_created().await;
}
