//! A gateway under more load than it takes, over real connections: who floods it, who wants little, what they are told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Station, content};
use lazaret_gateway::{GatewayOptions, RateLimits};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway on a port of its own, ended with the test.
struct Server {
    address: SocketAddr,
    task: JoinHandle<std::io::Result<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(station: &Station, options: GatewayOptions) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(station.gateway(options).serve(listener, std::future::pending()));
    Server { address, task }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap()
}

struct Answer {
    status: StatusCode,
    retry_after: Option<u64>,
    document: Value,
}

async fn submit(client: &reqwest::Client, server: &Server, key: &str, body: Vec<u8>) -> Answer {
    let request = client.post(format!("http://{}/file", server.address)).header("apikey", key).body(body);
    let response = request.send().await.unwrap();
    let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
    Answer { status: response.status(), retry_after, document: response.json().await.unwrap() }
}

/// An upload that has begun and stays open: all but the last byte has been sent.
async fn unfinished(server: &Server, key: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("POST /file HTTP/1.1\r\nhost: x\r\napikey: {key}\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&content(length)[1..]).await.unwrap();
    stream
}

async fn in_flight(station_uploads: &lazaret_gateway::GatewayMonitor) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    station_uploads.describe(&mut registry).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_open_uploads_leaves_a_modest_key_all_it_wants() {
    let station = Station::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = station.gateway(GatewayOptions { inflight_uploads_max: 18, ..station.options() });
    let monitor = gateway.monitor();
    let server = Server { address, task: tokio::spawn(gateway.serve(listener, std::future::pending())) };

    // As many as there are places: the flooding key gets eight ninths of them, and holds them.
    let mut open = Vec::new();
    for _ in 0..18 {
        open.push(unfinished(&server, &station.alice, 1000).await);
    }
    let all_in = async {
        while value(&in_flight(&monitor).await, "lazaret_gateway_uploads ") < 16.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_in).await.expect("sixteen are in flight");
    let client = client();
    let refused = submit(&client, &server, &station.alice, content(100)).await;
    assert_eq!((refused.status, refused.retry_after), (StatusCode::SERVICE_UNAVAILABLE, Some(1)));
    assert_eq!(refused.document["err"], "Server is too busy. Try again later.");
    for number in 0..20 {
        let taken = submit(&client, &server, &station.bob, content(200 + number)).await;
        assert_eq!(taken.status, StatusCode::OK, "{}", taken.document);
    }
    // What was let in is finished all the same.
    let mut finished = 0;
    for mut stream in open {
        // The body's first byte was left out, and any will do.
        if stream.write_all(b"x").await.is_ok() {
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.unwrap();
            finished += usize::from(&head == b"HTTP/1.1 200");
        }
    }
    assert_eq!(finished, 16);
    let text = in_flight(&monitor).await;
    assert_eq!(value(&text, "lazaret_gateway_submissions_total{outcome=\"accepted\"}"), 36.0);
    assert_eq!(value(&text, "lazaret_gateway_submissions_total{outcome=\"busy\"}"), 3.0);
    assert_eq!(value(&text, "lazaret_gateway_uploads "), 0.0);
    assert_eq!(value(&text, "lazaret_gateway_upload_bytes "), 0.0);
    assert_eq!(value(&text, "lazaret_queue_waiting "), 36.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_submissions_by_one_key_does_not_refuse_another_once() {
    let station = Station::new().await;
    let options = GatewayOptions { inflight_bytes_max: 4 << 20, inflight_uploads_max: 9, ..station.options() };
    let server = Arc::new(serve(&station, options).await);
    let stop = Arc::new(AtomicBool::new(false));
    let refused = Arc::new(AtomicU64::new(0));
    let mut storm = JoinSet::new();
    for number in 0..24 {
        let (server, stop, refused, key) = (server.clone(), stop.clone(), refused.clone(), station.alice.clone());
        storm.spawn(async move {
            let client = client();
            while !stop.load(Ordering::Relaxed) {
                let answer = submit(&client, &server, &key, content(300_000 + number)).await;
                match answer.status {
                    StatusCode::OK => {}
                    StatusCode::SERVICE_UNAVAILABLE => {
                        assert!(answer.retry_after.is_some());
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    other => panic!("{other}: {}", answer.document),
                }
            }
        });
    }
    let client = client();
    // One file at a time, as modest programs send them, until the storm was refused often.
    let modest = async {
        let mut sent = 0;
        while sent < 30 || refused.load(Ordering::Relaxed) < 50 {
            let answer = submit(&client, &server, &station.bob, content(40_000 + sent)).await;
            assert_eq!(answer.status, StatusCode::OK, "{} after {sent}", answer.document);
            sent += 1;
        }
    };
    tokio::time::timeout(PATIENCE, modest).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = storm.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_who_filled_it_and_takes_from_others() {
    let station = Station::new().await;
    let server = serve(&station, GatewayOptions { queue_max: 18, ..station.options() }).await;
    let client = client();
    let mut taken = 0;
    let full = loop {
        let answer = submit(&client, &server, &station.alice, content(100 + taken)).await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        taken += 1;
        assert!(taken <= 18);
    };
    assert_eq!(taken, 16, "eight ninths");
    assert_eq!((full.status, full.retry_after), (StatusCode::SERVICE_UNAVAILABLE, Some(10)));
    assert_eq!(submit(&client, &server, &station.bob, content(999)).await.status, StatusCode::OK);
    // Workers make room, and all are welcome again.
    for lease in station.queue.lease("w", 100, 1000, u64::MAX / 4).await.unwrap() {
        assert!(station.queue.ack(&lease.token).await.unwrap());
    }
    let again = async {
        while submit(&client, &server, &station.alice, content(5000)).await.status != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the queue is counted again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_queue_is_full_only_as_long_as_it_is() {
    let station = Station::new().await;
    let server = serve(&station, GatewayOptions { queue_max: 2, ..station.options() }).await;
    let client = client();
    for number in 0..20 {
        let answer = submit(&client, &server, &station.alice, content(100 + number)).await;
        assert_eq!(answer.status, StatusCode::OK, "{number}: {}", answer.document);
        let full = submit(&client, &server, &station.alice, content(50)).await;
        assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE, "one of the two is left for others");
        // A worker is done with it, which nobody tells the gateway.
        for lease in station.queue.lease("w", 100, 1000, u64::MAX / 4).await.unwrap() {
            assert!(station.queue.ack(&lease.token).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_submits_too_fast_is_told_when_to_come_back_and_reads_on() {
    let station = Station::new().await;
    // So slow that no machine can be slower: the burst and one more, then nothing for an hour.
    let rate_limits = RateLimits {
        submissions_per_second: 1.0 / 3600.0,
        burst: Duration::from_secs(4 * 3600),
        ..RateLimits::default()
    };
    let server = serve(&station, GatewayOptions { rate_limits, ..station.options() }).await;
    let client = client();
    let mut ids = Vec::new();
    for number in 0..5 {
        let taken = submit(&client, &server, &station.alice, content(100 + number)).await;
        assert_eq!(taken.status, StatusCode::OK, "{}", taken.document);
        ids.push(taken.document["data_id"].as_str().unwrap().to_owned());
    }
    let refused = submit(&client, &server, &station.alice, content(99)).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    let retry_after = refused.retry_after.unwrap();
    assert!((3000..=3600).contains(&retry_after), "{retry_after}");
    assert!(refused.document["err"].as_str().unwrap().contains(&format!("{retry_after} s")), "{}", refused.document);
    assert_eq!(submit(&client, &server, &station.bob, content(98)).await.status, StatusCode::OK);
    // Another key of the same user has a debt of its own; all sessions of a user have one.
    let actor = lazaret_identity::Actor::new("a test".to_owned(), None);
    let second = station.identity.add_key(&actor, "alice").await.unwrap().0;
    assert_eq!(submit(&client, &server, &second, content(97)).await.status, StatusCode::OK);
    station.identity.set_password(&actor, "bob", "correct horse battery").await.unwrap();
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let address = Some(server.address.ip());
        sessions.push(station.identity.login("bob", "correct horse battery", address).await.unwrap().id.0);
    }
    for number in 0..5 {
        let taken = submit(&client, &server, &sessions[number % 2], content(50 + number)).await;
        assert_eq!(taken.status, StatusCode::OK, "{}", taken.document);
    }
    for session in &sessions {
        assert_eq!(submit(&client, &server, session, content(49)).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    // Reads are never limited.
    for id in &ids {
        let poll = client.get(format!("http://{}/file/{id}", server.address)).header("apikey", &station.alice);
        assert_eq!(poll.send().await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_body_decodes_to_is_owed_also_when_it_is_refused() {
    let station = Station::new().await;
    let rate_limits = RateLimits { bytes_per_second: 100, burst: Duration::from_secs(60), ..RateLimits::default() };
    let server = serve(&station, GatewayOptions { rate_limits, ..station.options() }).await;
    let client = client();
    let gzip = |content: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, content).unwrap();
        encoder.finish().unwrap()
    };
    let whole = gzip(&vec![0; 1 << 20]);
    let broken = whole[..whole.len() - 1].to_vec();
    for (key, body, status) in
        [(&station.alice, whole.clone(), StatusCode::OK), (&station.bob, broken, StatusCode::BAD_REQUEST)]
    {
        let send = async |body: Vec<u8>| {
            let request = client.post(format!("http://{}/file", server.address)).header("apikey", key);
            request.header("content-encoding", "gzip").body(body).send().await.unwrap()
        };
        // The body itself is 11 seconds' worth, what it becomes three hours'.
        assert_eq!(send(body).await.status(), status);
        let refused = send(whole.clone()).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let retry_after: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((9_000..=10_486).contains(&retry_after), "{retry_after}");
    }
}
