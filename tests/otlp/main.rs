//! Traces by OTLP: the binary sends them to a collector, which decodes them, and to none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "../e2e/harness.rs"]
mod harness;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::harness::{Up, content, eicar, verdict};

/// How long spans may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
const FILE_NAME: &str = "a-name-to-keep.com";

/// A field of a protobuf message.
enum Field<'m> {
    Number(u64),
    Bytes(&'m [u8]),
}

/// A message's fields, by number.
fn fields(mut message: &[u8]) -> BTreeMap<u64, Vec<Field<'_>>> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = message[0];
            *message = &message[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found: BTreeMap<u64, Vec<Field<'_>>> = BTreeMap::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut message)),
            1 => {
                let (number, rest) = message.split_at(8);
                message = rest;
                Field::Number(u64::from_le_bytes(number.try_into().unwrap()))
            }
            2 => {
                let length = varint(&mut message) as usize;
                let (bytes, rest) = message.split_at(length);
                message = rest;
                Field::Bytes(bytes)
            }
            other => panic!("wire type {other}"),
        };
        found.entry(tag >> 3).or_default().push(field);
    }
    found
}

fn bytes<'m>(fields: &BTreeMap<u64, Vec<Field<'m>>>, number: u64) -> Vec<&'m [u8]> {
    let bytes = |field: &Field<'m>| match field {
        Field::Bytes(bytes) => *bytes,
        Field::Number(number) => panic!("{number} is no bytes"),
    };
    fields.get(&number).into_iter().flatten().map(bytes).collect()
}

fn number(fields: &BTreeMap<u64, Vec<Field<'_>>>, number: u64) -> u64 {
    match fields[&number][0] {
        Field::Number(number) => number,
        Field::Bytes(bytes) => panic!("{bytes:?} is no number"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Attributes with their values as text.
fn attributes(pairs: Vec<&[u8]>) -> BTreeMap<String, String> {
    let pair = |pair| {
        let pair = fields(pair);
        let value = fields(bytes(&pair, 2)[0]);
        let value = bytes(&value, 1).first().map_or_else(|| number(&value, 3).to_string(), |value| text(value));
        (text(bytes(&pair, 1)[0]), value)
    };
    pairs.into_iter().map(pair).collect()
}

#[derive(Debug, Clone)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    times_ns: (u64, u64),
    attributes: BTreeMap<String, String>,
}

/// The spans of a request, after a check of who sent them.
fn spans(request: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource_spans in bytes(&fields(request), 1) {
        let resource_spans = fields(resource_spans);
        let resource = attributes(bytes(&fields(bytes(&resource_spans, 1)[0]), 1));
        assert_eq!(resource["service.name"], "lazaret");
        for scope in bytes(&resource_spans, 2) {
            for span in bytes(&fields(scope), 2).into_iter().map(fields) {
                let hex = |number| bytes(&span, number).first().map(hex::encode).unwrap_or_default();
                spans.push(Span {
                    trace: hex(1),
                    id: hex(2),
                    parent: hex(4),
                    name: text(bytes(&span, 5)[0]),
                    times_ns: (number(&span, 7), number(&span, 8)),
                    attributes: attributes(bytes(&span, 9)),
                });
            }
        }
    }
    spans
}

/// A collector: refuses the first request, as one that is busy, and passes on the others.
async fn collector() -> (SocketAddr, UnboundedReceiver<Bytes>) {
    let (came, requests) = unbounded_channel();
    let asked = Arc::new(AtomicU32::new(0));
    let take = move |headers: HeaderMap, body: Bytes| async move {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        if asked.fetch_add(1, Ordering::Relaxed) == 0 {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        came.send(body).unwrap();
        StatusCode::OK
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/v1/traces", post(take))).await });
    (address, requests)
}

/// `lazaret up` that sends its traces to this address.
fn up(dir: &std::path::Path, collector: SocketAddr, more: &[&str]) -> Up {
    let config = dir.join("up.yml");
    std::fs::write(&config, format!("otlp: {{endpoint: 'http://{collector}'}}\n")).unwrap();
    Up::start(&dir.join("data"), &[&["--config", config.to_str().unwrap()], more].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_files_trace_goes_from_its_submission_to_its_verdict() {
    let (address, mut requests) = collector().await;
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path(), address, &[]);
    let document = up.gateway.scan(FILE_NAME, eicar()).await;
    assert_eq!(verdict(&document), (1, false));
    let data_id = document["data_id"].as_str().unwrap().to_owned();

    let mut trace: Vec<Span> = Vec::new();
    let mut all = Vec::new();
    while !trace.iter().any(|span| span.name == "analysis") || !trace.iter().any(|span| span.name == "POST /file") {
        let request = tokio::time::timeout(PATIENCE, requests.recv()).await.expect("spans come").unwrap();
        trace.extend(spans(&request).into_iter().filter(|span| span.trace == data_id));
        all.push(request);
    }
    let span = |name: &str| {
        let named: Vec<&Span> = trace.iter().filter(|span| span.name == name).collect();
        assert_eq!(named.len(), 1, "{name} in {trace:#?}");
        named[0]
    };
    let submission = span("POST /file");
    assert_eq!(submission.parent, "");
    assert_eq!(submission.attributes["http.response.status_code"], "200");
    assert_eq!(submission.attributes["data_id"], data_id);
    assert_eq!(span("analysis").attributes["result"], "Infected");
    for (child, parent) in [
        ("store put", "POST /file"),
        ("analysis", "POST /file"),
        ("queue wait", "analysis"),
        ("store get", "analysis"),
        ("scan", "analysis"),
        ("file type", "scan"),
        ("engines", "scan"),
        ("Lazaret", "engines"),
    ] {
        assert_eq!(span(child).parent, span(parent).id, "{child} in {parent}");
    }
    assert!(trace.iter().all(|span| span.times_ns.0 > 0 && span.times_ns.0 <= span.times_ns.1), "{trace:?}");

    // What ends last is not lost: the process sends it before it is gone.
    let last = up.gateway.scan("last.bin", content(1, 100_000)).await["data_id"].as_str().unwrap().to_owned();
    let key = up.gateway.key.clone();
    assert_eq!(up.process.terminate(), Some(0));
    let mut ended = false;
    while let Ok(request) = requests.try_recv() {
        ended |= spans(&request).iter().any(|span| span.trace == last && span.name == "analysis");
        all.push(request);
    }
    assert!(ended, "the last file's spans");
    for secret in [FILE_NAME, "last.bin", &key] {
        let told = all.iter().any(|body| body.windows(secret.len()).any(|part| part == secret.as_bytes()));
        assert!(!told, "{secret} is in a trace");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_files_are_scanned_and_spans_are_counted_as_lost() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let up = up(dir.path(), nobody, &["--metrics", &metrics.to_string()]);
    assert_eq!(verdict(&up.gateway.scan("a.com", eicar()).await), (1, false));
    // Each batch is offered five times, with pauses of 15 s in all.
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = http.get(format!("http://{metrics}/metrics")).send().await.unwrap().text().await.unwrap();
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(value("lazaret_otlp_spans_sent_total "), "0");
        if value("lazaret_otlp_spans_dropped_total ") != "0" {
            break;
        }
        assert!(Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let asked = Instant::now();
    assert_eq!(up.process.terminate(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
}
