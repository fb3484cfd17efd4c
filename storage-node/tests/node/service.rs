//! The service and the listener over real engines: what a cluster of them keeps, and whom and what they refuse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{
    ADMIN_KEY, Authority, CLUSTER, Listening, anywhere, ask, begin, connection_key, content, in_process, map, node,
    over_quic, quic_client, read,
};
use bytes::Bytes;
use lazaret_node_client::{
    Cluster, ClusterOptions, Credentials, Environment, LocalNetwork, PutError, QuicTransport, Transport, TransportError,
};
use lazaret_protocol::cluster_map::{NodeEntry, NodeState};
use lazaret_protocol::limits::{FRAME_BYTES_MAX, GROUP_BYTES, HAS_NAMES_MAX, HELD_BYTES_MAX, PUT_TIME_SKEW_MAX_MS};
use lazaret_protocol::message::{
    ByteRange, ErrorCode, GetRequest, PutHeader, PutTarget, PutTrailer, Request, Response, Role, Tombstone,
};
use lazaret_protocol::name::{BlobName, ClusterId, NodeId, PlacementKey, UploadId};

const STREAMED: usize = 3 * HELD_BYTES_MAX + 70_001;
const LENGTHS: [usize; 7] = [0, 1, GROUP_BYTES, 1_000_000, HELD_BYTES_MAX, HELD_BYTES_MAX + 1, STREAMED];

async fn puts_and_reads_back(cluster: &Cluster) {
    for length in LENGTHS {
        let body = content(length);
        let stored = cluster.put(body.clone()).await.unwrap();
        cluster.settle().await;
        assert_eq!(stored.name, BlobName::of(&body), "{length}");
        assert_eq!(read(cluster, stored.name).await.unwrap(), body, "{length}");
        let stat = cluster.stat(stored.name).await.unwrap();
        assert_eq!((stat.length, stat.held_on.len()), (length as u64, 3), "{length}");
        assert_eq!(stat.locator.is_some(), length > HELD_BYTES_MAX, "{length}");
        let (start, end) = (length as u64 / 3, length as u64 / 3 + 100_000);
        let mut download = cluster.get(stored.name, Some(ByteRange { start, end })).await.unwrap();
        let mut got = Vec::new();
        while let Some(piece) = download.next().await.unwrap() {
            got.extend_from_slice(&piece);
        }
        assert_eq!(got, body[start as usize..(end as usize).min(length)], "{length}");
    }
    for (node, status) in cluster.status().await {
        assert_eq!(status.unwrap().blobs, LENGTHS.len() as u64, "{}", node.name);
    }
    cluster.writable().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_every_length_come_back_in_process() {
    let (_nodes, _network, cluster) = in_process(map(3, 2, 3));
    puts_and_reads_back(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_every_length_come_back_over_quic() {
    let (_nodes, _listening, _authority, cluster) = over_quic(map(3, 2, 3));
    puts_and_reads_back(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_damaged_on_disk_is_never_served_and_the_read_succeeds() {
    for length in [100_000, STREAMED] {
        let (nodes, _network, cluster) = in_process(map(3, 3, 3));
        let body = content(length);
        let name = cluster.put(body.clone()).await.unwrap().name;
        for damaged in &nodes[..2] {
            // The middle of the disk's largest segment lies within the blob's content.
            let (address, bytes) = damaged.disk.contents().into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
            assert!(damaged.disk.flip_bit(address, bytes.len() as u64 / 2, 3));
        }
        for _ in 0..3 {
            assert_eq!(read(&cluster, name).await.unwrap(), body);
        }
        let (address, bytes) = nodes[2].disk.contents().into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
        nodes[2].disk.flip_bit(address, bytes.len() as u64 / 2, 3);
        read(&cluster, name).await.unwrap_err();
        assert!(nodes.iter().all(|node| node.engine.status().corrupt_reads > 0));
    }
}

/// What a client should not send, and the code that answers it.
async fn refused(network: &LocalNetwork, node: &NodeEntry, request: Request, body: &[&[u8]]) -> ErrorCode {
    let (mut send, mut recv) = begin(network, node, &request).await;
    for bytes in body {
        // The node may have refused already.
        let _ = send.send(Bytes::copy_from_slice(bytes)).await;
    }
    let _ = send.finish().await;
    match recv.recv_message().await.unwrap() {
        Response::Error(reply) => reply.code,
        other => panic!("{request:?} was answered with {other:?}"),
    }
}

#[tokio::test]
async fn what_is_malformed_or_oversized_is_refused_and_the_node_goes_on_serving() {
    let (nodes, network, cluster) = in_process(map(1, 1, 1));
    let entry = &cluster.map().nodes[0].clone();
    let now = Environment::system().clock.unix_ms();
    let whole = |length: u64| {
        let target = PutTarget::Whole { name: BlobName::of(b"abc"), length };
        Request::Put(PutHeader { put_time_ms: now, lease_ms: 1000, target })
    };
    let streamed = |put_time_ms: u64| {
        let target = PutTarget::Streamed { upload: UploadId([1; 16]), placement: PlacementKey([1; 32]) };
        Request::Put(PutHeader { put_time_ms, lease_ms: 60_000, target })
    };
    let over = &(FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
    let trailer = |content: &[u8], length: u64| {
        lazaret_protocol::codec::encode(&PutTrailer { name: BlobName::of(content), length }).unwrap()
    };
    let abc: &[u8] = &[3, 0, 0, 0, b'a', b'b', b'c'];
    let end: &[u8] = &[0; 4];
    let cases: Vec<(&str, Request, Vec<&[u8]>, ErrorCode)> = vec![
        ("a whole put over the limit", whole(HELD_BYTES_MAX as u64 + 1), vec![], ErrorCode::BadRequest),
        ("an oversized frame", whole(3), vec![over], ErrorCode::BadRequest),
        ("an oversized frame of a streamed put", streamed(now), vec![abc, over], ErrorCode::BadRequest),
        ("a body longer than announced", whole(2), vec![abc, end], ErrorCode::BadRequest),
        ("a body shorter than announced", whole(4), vec![abc, end], ErrorCode::BadRequest),
        (
            "garbage for a trailer",
            whole(3),
            vec![abc, end, &[9, 0, 0, 0, 1, 0, 7, 7, 7, 7, 7, 7, 7]],
            ErrorCode::BadRequest,
        ),
        ("a put time of tomorrow", streamed(now + PUT_TIME_SKEW_MAX_MS * 2), vec![], ErrorCode::ClockSkew),
        ("too many names", Request::Has(vec![BlobName([0; 32]); HAS_NAMES_MAX + 1]), vec![], ErrorCode::BadRequest),
        (
            "a backwards range",
            Request::Get(GetRequest { name: BlobName([0; 32]), range: Some(ByteRange { start: 2, end: 1 }) }),
            vec![],
            ErrorCode::BadRequest,
        ),
        ("a right that clients lack", Request::Scrub, vec![], ErrorCode::NotAllowed),
        (
            "another right that clients lack",
            Request::Delete(Tombstone { name: BlobName([0; 32]), time_ms: 1 }),
            vec![],
            ErrorCode::NotAllowed,
        ),
    ];
    for (what, request, body, code) in cases {
        assert_eq!(refused(&network, entry, request, &body).await, code, "{what}");
    }
    let mismatched = trailer(b"abd", 3);
    assert_eq!(refused(&network, entry, whole(3), &[abc, end, &mismatched]).await, ErrorCode::BadRequest);
    assert_eq!(refused(&network, entry, streamed(now), &[abc, end, &mismatched]).await, ErrorCode::NameMismatch);
    let short = trailer(b"abc", 2);
    assert_eq!(refused(&network, entry, streamed(now), &[abc, end, &short]).await, ErrorCode::BadRequest);

    for (what, bytes) in [
        ("noise", &b"\x09\0\0\0\x01\0garbage"[..]),
        ("an announced gigabyte", &[0, 0, 0, 64]),
        ("another version", &[3, 0, 0, 0, 2, 0, 6]),
    ] {
        let (mut send, mut recv) = network.open(entry).await.unwrap();
        send.send(Bytes::copy_from_slice(bytes)).await.unwrap();
        match recv.recv_message().await.unwrap() {
            Response::Error(reply) => assert_eq!(reply.code, ErrorCode::BadRequest, "{what}: {}", reply.message),
            other => panic!("{what} was answered with {other:?}"),
        }
    }
    // A request that never ends is dropped with its stream.
    let (send, mut recv) = begin(&network, entry, &whole(3)).await;
    drop(send);
    recv.recv_message::<Response>().await.unwrap_err();

    assert_eq!(nodes[0].engine.status().blobs, 0);
    let stored = cluster.put(content(1000)).await.unwrap();
    assert_eq!(read(&cluster, stored.name).await.unwrap(), content(1000));
    nodes[0].service.idle().await;
}

#[tokio::test]
async fn roles_decide_what_may_be_asked() {
    let (nodes, network, cluster) = in_process(map(1, 1, 1));
    let entry = &cluster.map().nodes[0].clone();
    for role in [Role::Admin, Role::Peer] {
        network.register(nodes[0].id, nodes[0].service.handler(role));
        assert_eq!(ask(&network, entry, &Request::Scrub).await, Response::Scrubbing);
        assert!(matches!(ask(&network, entry, &Request::Map).await, Response::Map(map) if map == *cluster.map()));
        let stored = cluster.put(content(10)).await.unwrap();
        let has = ask(&network, entry, &Request::Has(vec![stored.name, BlobName([0; 32])])).await;
        assert_eq!(has, Response::Has(vec![true, false]));
    }
}

#[tokio::test]
async fn a_draining_node_reads_and_does_not_write() {
    let mut map = map(2, 1, 2);
    let (nodes, network, cluster) = in_process(map.clone());
    let name = cluster.put(content(500)).await.unwrap().name;
    cluster.settle().await;
    map.nodes[0].state = NodeState::Draining;
    map.epoch += 1;
    nodes[0].node.adopt(map).unwrap();
    network.unregister(nodes[1].id);
    assert_eq!(read(&cluster, name).await.unwrap(), content(500));
    // The client's map does not know yet: the node itself refuses.
    let error = cluster.put(content(501)).await.unwrap_err().to_string();
    assert!(error.contains("node1: draining"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_costs_a_read_over_quic_one_hedge() {
    let (_nodes, mut listening, _authority, cluster) = over_quic(map(3, 2, 3));
    let body = content(100_000);
    let name = cluster.put(body.clone()).await.unwrap().name;
    cluster.settle().await;
    let order = lazaret_protocol::placement::read_order(&cluster.map(), name.placement())[0].id;
    listening.remove(usize::from(order.0[0]) - 1).stop().await;
    let begun = Instant::now();
    assert_eq!(read(&cluster, name).await.unwrap(), body);
    // Connecting alone is given two seconds.
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
    // A put goes on with two of three, and a second one does not wait for the dead node again.
    cluster.put(content(10)).await.unwrap();
    cluster.settle().await;
    let begun = Instant::now();
    cluster.put(content(11)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarts_is_reached_again() {
    let (nodes, mut listening, authority, cluster) = over_quic(map(1, 1, 1));
    let name = cluster.put(content(1000)).await.unwrap().name;
    let stopped = listening.remove(0);
    let address = stopped.address;
    stopped.stop().await;
    let again = Listening::start(&nodes[0], &authority, address);
    assert_eq!(read(&cluster, name).await.unwrap(), content(1000));
    again.stop().await;
}

#[test]
fn a_node_that_died_without_goodbye_and_came_back_costs_no_timeout() {
    let client = tokio::runtime::Runtime::new().unwrap();
    let first_life = tokio::runtime::Runtime::new().unwrap();
    let mut map = map(1, 1, 1);
    let authority = Authority::new();
    let certificate = authority.node(map.nodes[0].id);
    let one = node(map.nodes[0].id, &map);
    let listening = {
        let _inside = first_life.enter();
        Listening::with_certificate(&one, &authority, certificate.clone(), anywhere())
    };
    map.nodes[0].address = listening.address;
    let _inside = client.enter();
    let cluster = quic_client(map, &authority.pem, connection_key());
    let small = client.block_on(cluster.put(content(1000))).unwrap();
    // Its tasks end where they are and no packet leaves any more, as when the process is killed.
    first_life.shutdown_background();
    let _second_life = Listening::with_certificate(&one, &authority, certificate, listening.address);
    let begun = Instant::now();
    assert_eq!(client.block_on(read(&cluster, small.name)).unwrap(), content(1000));
    client.block_on(cluster.put(content(1001))).unwrap();
    assert!(begun.elapsed() < ClusterOptions::default().progress_timeout, "{:?}", begun.elapsed());
}

async fn open_error(
    cluster_map: &lazaret_protocol::ClusterMap,
    ca_pem: &str,
    credentials: Credentials,
) -> TransportError {
    let transport = QuicTransport::new(ca_pem, cluster_map.cluster, credentials).unwrap();
    match transport.open(&cluster_map.nodes[0]).await {
        Ok(_) => panic!("the node let us in"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_told_apart_and_refused_and_the_node_goes_on_serving() {
    let (nodes, listening, authority, cluster) = over_quic(map(1, 1, 1));
    let right = &*cluster.map();
    let stranger = Authority::new();

    let wrong_key = Credentials::Connection("another key".to_owned());
    let error = open_error(right, &authority.pem, wrong_key).await;
    assert!(
        matches!(&error, TransportError::NotAllowed { reason, .. } if reason.contains("connection key")),
        "{error}"
    );
    let error = open_error(right, &authority.pem, Credentials::Admin("another key".to_owned())).await;
    assert!(matches!(&error, TransportError::NotAllowed { reason, .. } if reason.contains("admin key")), "{error}");
    let error = open_error(right, &stranger.pem, connection_key()).await;
    assert!(matches!(error, TransportError::Untrusted { .. }), "{error}");
    let mut other_cluster = right.clone();
    other_cluster.cluster = ClusterId([8; 16]);
    let error = open_error(&other_cluster, &authority.pem, connection_key()).await;
    assert!(
        matches!(&error, TransportError::NotAllowed { reason, .. } if reason.contains("another cluster")),
        "{error}"
    );
    let mut other_node = right.clone();
    other_node.nodes[0].id = NodeId([7; 16]);
    let error = open_error(&other_node, &authority.pem, connection_key()).await;
    assert!(matches!(error, TransportError::Untrusted { .. }), "{error}");
    let (certificate_pem, key_pem) = stranger.node(NodeId([1; 16]));
    let error = open_error(right, &authority.pem, Credentials::Peer { certificate_pem, key_pem }).await;
    assert!(matches!(error, TransportError::Untrusted { .. }), "{error}");

    let (certificate_pem, key_pem) = authority.node(NodeId([2; 16]));
    for credentials in [Credentials::Admin(ADMIN_KEY.to_owned()), Credentials::Peer { certificate_pem, key_pem }] {
        let transport = QuicTransport::new(&authority.pem, CLUSTER, credentials).unwrap();
        let answer = ask(&transport, &right.nodes[0], &Request::Scrub).await;
        assert_eq!(answer, Response::Scrubbing);
    }
    let stored = cluster.put(content(10)).await.unwrap();
    assert_eq!(read(&cluster, stored.name).await.unwrap(), content(10));
    drop((nodes, listening));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_named_in_the_put_s_error_and_asked_once() {
    let (_nodes, _listening, authority, cluster) = over_quic(map(1, 1, 1));
    let wrong = Credentials::Connection("another key".to_owned());
    let client = quic_client(cluster.map().as_ref().clone(), &authority.pem, wrong);
    let begun = Instant::now();
    for _ in 0..20 {
        let error = client.put(content(10)).await.unwrap_err();
        assert!(matches!(error, PutError::NotEnoughReplicas { needed: 1, durable: 0, .. }));
        assert!(error.to_string().contains("wrong connection key"), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_before_hello() {
    let (_nodes, listening, authority, _cluster) = over_quic(map(1, 1, 1));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let pem = rustls::pki_types::pem::PemObject::from_pem_slice(authority.pem.as_bytes());
    roots.add(pem.unwrap()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"lazaret/1".to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client(anywhere()).unwrap();
    let connecting = endpoint.connect_with(
        quinn::ClientConfig::new(Arc::new(config)),
        listening[0].address,
        &format!("{}.node.lazaret", NodeId([1; 16])),
    );
    let connection = connecting.unwrap().await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&lazaret_protocol::codec::encode(&Request::Status).unwrap()).await.unwrap();
    send.finish().unwrap();
    let answer = recv.read_to_end(10_000).await.unwrap();
    let answer: Response = lazaret_protocol::codec::decode_body(&answer[4..]).unwrap();
    assert!(matches!(answer, Response::Error(reply) if reply.code == ErrorCode::BadRequest));
    assert!(matches!(connection.closed().await, quinn::ConnectionError::ApplicationClosed(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_stops_lets_requests_end() {
    let (nodes, mut listening, authority, cluster) = over_quic(map(1, 1, 1));
    let transport = QuicTransport::new(&authority.pem, CLUSTER, connection_key()).unwrap();
    let target = PutTarget::Whole { name: BlobName::of(b"abc"), length: 3 };
    let put_time_ms = Environment::system().clock.unix_ms();
    let put = Request::Put(PutHeader { put_time_ms, lease_ms: 1000, target });
    let (mut send, mut recv) = begin(&transport, &cluster.map().nodes[0], &put).await;
    // Answers to requests that came behind it show that the put is being served.
    for _ in 0..20 {
        ask(&transport, &cluster.map().nodes[0], &Request::Status).await;
    }
    let stopping = tokio::spawn(listening.remove(0).stop());
    send.send_body_frame(Bytes::from_static(b"abc")).await.unwrap();
    send.send_body_frame(Bytes::new()).await.unwrap();
    send.send_message(&PutTrailer { name: BlobName::of(b"abc"), length: 3 }).await.unwrap();
    send.finish().await.unwrap();
    assert!(matches!(recv.recv_message().await.unwrap(), Response::Put(_)));
    stopping.await.unwrap();
    assert_eq!(nodes[0].engine.status().blobs, 1);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let authority = Authority::new();
    let one = node(NodeId([1; 16]), &map(1, 1, 1));
    let first = Listening::start(&one, &authority, anywhere());
    let (certificate, key) = authority.node(one.id);
    let error =
        lazaret_node_client::tls::server_endpoint(first.address, &certificate, &key, &authority.pem).unwrap_err();
    assert!(error.to_string().contains(&first.address.to_string()), "{error}");
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_put_over_quic_survives_a_disk_that_dies_on_the_way() {
    let (nodes, _listening, _authority, cluster) = over_quic(map(3, 2, 3));
    let body = content(6 * HELD_BYTES_MAX);
    let mut upload = cluster.upload();
    upload.write(body.slice(..3 * HELD_BYTES_MAX)).await.unwrap();
    nodes[1].disk.cut_power_after(0);
    upload.write(body.slice(3 * HELD_BYTES_MAX..)).await.unwrap();
    let stored = upload.finish().await.unwrap();
    let mut durable_on = stored.durable_on;
    durable_on.sort_unstable();
    assert_eq!(durable_on, [nodes[0].id, nodes[2].id]);
    assert_eq!(read(&cluster, stored.name).await.unwrap(), body);
}
