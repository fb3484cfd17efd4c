//! Who may not: wrong keys, other certificates, frames that are none.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;
use lazaret_node_client::Environment;
use lazaret_node_client::cluster::{Cluster, ClusterOptions};
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_node_client::quic::{Credentials, QuicTransport};
use lazaret_node_client::transport::Transport;
use lazaret_protocol::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use lazaret_protocol::message::{ErrorCode, PutHeader, PutTarget, Request, Response};
use lazaret_protocol::{BlobName, codec};

use crate::harness::{Up, cluster, lazaret};

fn with(file: &ClusterFile, ca: &str, key: &str) -> Cluster {
    let transport = QuicTransport::new(ca, file.map.cluster, Credentials::Connection(key.to_owned())).unwrap();
    Cluster::new(file.map.clone(), Arc::new(transport), Environment::system(), ClusterOptions::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_or_ca_stores_and_reads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]);
    let file = ClusterFile::load(&up.cluster_file()).unwrap();
    let (ca, key) = (file.read_ca().unwrap(), file.read_connection_key().unwrap());
    let stored = with(&file, &ca, &key).put(Bytes::from_static(b"kept")).await.unwrap();

    let stranger = with(&file, &ca, "0000");
    let put = stranger.put(Bytes::from_static(b"from a stranger")).await.unwrap_err().to_string();
    assert!(put.contains("key") || put.contains("not allowed"), "{put}");
    assert!(stranger.get(stored.name, None).await.is_err());

    let other = dir.path().join("other");
    assert!(lazaret(&["cluster", "init", other.to_str().unwrap()]).status.success());
    let other_ca = std::fs::read_to_string(other.join("ca.pem")).unwrap();
    let misled = with(&file, &other_ca, &key);
    let put = misled.put(Bytes::from_static(b"to a stranger")).await.unwrap_err().to_string();
    assert!(put.contains("certificate") || put.contains("CA"), "{put}");

    // Whatever was refused, the nodes serve on.
    assert!(with(&file, &ca, &key).get(stored.name, None).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_and_malformed_frames_are_refused_and_the_node_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let file = ClusterFile::load(&up.cluster_file()).unwrap();
    let credentials = Credentials::Connection(file.read_connection_key().unwrap());
    let transport = QuicTransport::new(&file.read_ca().unwrap(), file.map.cluster, credentials).unwrap();
    let node = &file.map.nodes[0];

    let put = |length| {
        let target = PutTarget::Whole { name: BlobName::of(b"x"), length };
        let put_time_ms = Environment::system().clock.unix_ms();
        codec::encode(&Request::Put(PutHeader { put_time_ms, lease_ms: 60_000, target })).unwrap()
    };
    let long_frame = [put(1), (FRAME_BYTES_MAX as u32 + 1).to_le_bytes().to_vec()].concat();
    let mut other_version = codec::encode(&Request::Status).unwrap();
    other_version[4] = 99;
    let cases: [(&str, Vec<u8>); 6] = [
        ("a message longer than any", (MESSAGE_BYTES_MAX as u32 + 100).to_le_bytes().to_vec()),
        ("a message of garbage", [8_u32.to_le_bytes().to_vec(), vec![1, 0, 255, 255, 255, 255, 255, 255]].concat()),
        ("another version", other_version),
        ("a body frame longer than any", long_frame),
        ("a whole blob longer than is held", put(1 << 40)),
        ("nothing", Vec::new()),
    ];
    for (what, bytes) in cases {
        let (mut send, mut recv) = transport.open(node).await.unwrap();
        let _ = send.send(Bytes::from(bytes)).await;
        let _ = send.finish().await;
        match recv.recv_message::<Response>().await {
            Ok(Response::Error(error)) => assert_eq!(error.code, ErrorCode::BadRequest, "{what}: {}", error.message),
            Ok(other) => panic!("{what} was answered with {other:?}"),
            // Cutting the stream is a refusal too.
            Err(_) => {}
        }
        let (mut send, mut recv) = transport.open(node).await.unwrap();
        send.send_message(&Request::Status).await.unwrap();
        assert!(matches!(recv.recv_message().await, Ok(Response::Status(_))), "after {what} the node no longer serves");
    }
    assert!(cluster(&up.cluster_file()).put(Bytes::from_static(b"x")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_answers_403_to_a_wrong_key() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let mut gateway = up.gateway.clone();
    gateway.key = "0".repeat(64);
    let (status, answer) = gateway.post("a", "body").await.unwrap();
    assert_eq!(status.as_u16(), 403, "{answer}");
    assert!(answer["err"].is_string());
}

#[test]
fn a_client_that_sends_all_of_a_body_before_it_looks_is_told_why_it_is_refused() {
    const BODY_BYTES: usize = 160 << 20;
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let address = up.gateway.url.strip_prefix("http://").unwrap();
    let piece = vec![b'x'; 1 << 20];
    for (request, status) in
        [("POST /file", "403"), ("PUT /file", "405"), ("POST /nowhere", "404"), ("POST /login", "4")]
    {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_BYTES}\r\n\r\n").unwrap();
        for _ in 0..BODY_BYTES / piece.len() {
            stream.write_all(&piece).unwrap_or_else(|error| panic!("{request}: {error}"));
        }
        let mut answer = [0; 64];
        let read = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
}
