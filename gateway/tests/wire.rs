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
        let (status, error) = answer(&mut stream).await;
        assert!(status == 431 && error["err"].as_str().unwrap().contains("header"), "{status} {error}");
    }
    let mut slow = server.connect().await;
    slow.write_all(b"POST /file HTTP/1.1\r\nhost: laz").await.unwrap();
    closed(&mut slow).await;
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_http_is_told_so_in_json() {
    let station = Station::new().await;
    let server = serve(&station, GatewayOptions::default()).await;
    let version = b"GET /version HTTP/1.1\r\nhost: lazaret\r\n\r\n";
    let two_lengths = "POST /file HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nbody";
    for malformed in ["GET /version HTTP/9\r\n\r\n", "no request at all\r\n\r\n", two_lengths] {
        for before in [0, 2] {
            let mut stream = server.connect().await;
            for _ in 0..before {
                stream.write_all(version).await.unwrap();
                assert_eq!(answer(&mut stream).await.0, 200);
            }
            stream.write_all(malformed.as_bytes()).await.unwrap();
            let (status, error) = answer(&mut stream).await;
            assert!(status == 400 && error["err"].is_string(), "{malformed:?} after {before}: {status} {error}");
            closed(&mut stream).await;
        }
    }
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

/// A certificate for `localhost` in a directory; the certificate alone, to be trusted.
fn certificate(directory: &std::path::Path) -> rustls::pki_types::CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(directory.join("tls.pem"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

/// Speaks TLS with the server, trusting that certificate alone; what the handshake agreed on.
async fn secured(
    server: &Server,
    trusted: &rustls::pki_types::CertificateDer<'static>,
    protocol: &[u8],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), server.connect().await).await
}

#[tokio::test]
async fn https_speaks_both_versions_and_follows_its_certificate() {
    let station = Station::new().await;
    let directory = tempfile::tempdir().unwrap();
    let first = certificate(directory.path());
    let files = lazaret_gateway::TlsFiles {
        certificate: directory.path().join("tls.pem"),
        private_key: directory.path().join("tls.key"),
    };
    let tls = std::sync::Arc::new(lazaret_gateway::Tls::load(files).unwrap());
    let server = serve(&station, GatewayOptions { tls: Some(tls), ..GatewayOptions::default() }).await;

    let mut stream = secured(&server, &first, b"http/1.1").await.unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.contains("strict-transport-security: max-age=31536000"), "{text}");

    let stream = secured(&server, &first, b"h2").await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let body = content(3_000_000);
    let request = axum::http::Request::post("https://localhost/file")
        .header("apikey", &station.alice)
        .header("content-length", body.len())
        .body(axum::body::Body::from(body.clone()))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, axum::http::Version::HTTP_2));
    let answer = axum::body::to_bytes(axum::body::Body::new(response.into_body()), 4096).await.unwrap();
    let data_id = serde_json::from_slice::<Value>(&answer).unwrap()["data_id"].as_str().unwrap().parse().unwrap();
    let record = station.record(data_id).await;
    assert!(station.content(&record.new.blob).await == body, "what came over HTTP/2 is the file");

    // Whoever speaks plain HTTP is not answered, and half a pair of new files changes nothing.
    let mut plain = server.connect().await;
    plain.write_all(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    closed(&mut plain).await;
    std::fs::write(directory.path().join("tls.key"), "nonsense").unwrap();
    assert!(secured(&server, &first, b"http/1.1").await.is_ok());
    let second = certificate(directory.path());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while secured(&server, &second, b"http/1.1").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the new certificate is never used");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(secured(&server, &first, b"http/1.1").await.is_err(), "the former one is gone");
    drop(client);
    server.stop().await;
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    certificate(directory.path());
    let path = |name: &str| directory.path().join(name);
    let refused = |certificate: &str, private_key: &str| {
        let files = lazaret_gateway::TlsFiles { certificate: path(certificate), private_key: path(private_key) };
        lazaret_gateway::Tls::load(files).unwrap_err().to_string()
    };
    assert!(refused("none.pem", "tls.key").contains("cannot read"));
    assert!(refused("tls.key", "tls.key").contains("no certificate"));
    assert!(refused("tls.pem", "tls.pem").contains("no private key"));
    let other = tempfile::tempdir().unwrap();
    certificate(other.path());
    std::fs::copy(other.path().join("tls.key"), path("other.key")).unwrap();
    assert!(refused("tls.pem", "other.key").contains("can't be used with its key"));
}
