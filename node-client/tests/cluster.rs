//! The cluster's promises against nodes that fail in every way the protocol knows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "this test uses a part")]
mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_node_client::{ClusterOptions, GetError, NodeError, PutError};
use lazaret_protocol::limits::{FRAME_BYTES_MAX, GROUP_BYTES, HELD_BYTES_MAX};
use lazaret_protocol::message::{ByteRange, ErrorCode};
use lazaret_protocol::name::{BlobName, PlacementKey};
use support::{Fault, TIMEOUT, TestCluster, content};

const STREAMED: usize = 3 * HELD_BYTES_MAX + 70_001;

fn placement_of(content: &[u8]) -> PlacementKey {
    PlacementKey::of_head(&content[..HELD_BYTES_MAX])
}

fn holders(test: &TestCluster, name: BlobName) -> usize {
    test.nodes.iter().filter(|node| node.holds(name)).count()
}

#[tokio::test]
async fn every_length_comes_back_from_its_replica_set() {
    let test = TestCluster::new(5, 2, 3);
    let lengths = [
        0,
        1,
        GROUP_BYTES,
        GROUP_BYTES + 1,
        FRAME_BYTES_MAX,
        FRAME_BYTES_MAX + 1,
        HELD_BYTES_MAX - 1,
        HELD_BYTES_MAX,
        HELD_BYTES_MAX + 1,
        STREAMED,
    ];
    for length in lengths {
        let body = content(length);
        let stored = test.cluster.put(body.clone()).await.unwrap();
        assert_eq!(stored.name, BlobName::of(&body));
        assert_eq!(stored.length, length as u64);
        assert!(stored.durable_on.len() >= 2, "{length}");
        test.cluster.settle().await;
        let placement = if length > HELD_BYTES_MAX { placement_of(&body) } else { stored.name.placement() };
        let order = test.order(placement);
        for (at, node) in order.iter().enumerate() {
            assert_eq!(node.holds(stored.name), at < 3, "{length}: node {at} in order");
        }
        assert!(order.iter().take(3).all(|node| node.put_time_ms(stored.name) == Some(stored.put_time_ms)));
        let located = test.order(stored.name.placement()).iter().filter(|n| n.locator(stored.name).is_some()).count();
        assert_eq!(located, if length > HELD_BYTES_MAX { 3 } else { 0 }, "{length}");
        assert_eq!(test.read(stored.name).await.unwrap(), body, "{length}");
        let stat = test.cluster.stat(stored.name).await.unwrap();
        assert_eq!((stat.length, stat.put_time_ms), (length as u64, stored.put_time_ms));
        assert_eq!(stat.held_on.len(), 3, "{length}");
    }
}

#[tokio::test]
async fn pieces_of_any_length_make_the_same_blob() {
    let test = TestCluster::new(3, 2, 2);
    let body = content(STREAMED);
    for piece in [1_000, 65_536, 300_000, HELD_BYTES_MAX + 5] {
        let mut upload = test.cluster.upload();
        for part in body.chunks(piece) {
            upload
                .write(Bytes::copy_from_slice(part))
                .await
                .unwrap_or_else(|error| panic!("pieces of {piece}: {error}"));
        }
        let stored = upload.finish().await.unwrap_or_else(|error| panic!("pieces of {piece}: {error}"));
        assert_eq!(stored.name, BlobName::of(&body), "pieces of {piece}");
    }
    assert_eq!(test.read(BlobName::of(&body)).await.unwrap(), body);
}

#[tokio::test]
async fn a_dead_node_is_passed_over_for_the_next() {
    let test = TestCluster::new(4, 3, 3);
    for length in [1_000, STREAMED] {
        let body = content(length);
        let placement = if length > HELD_BYTES_MAX { placement_of(&body) } else { BlobName::of(&body).placement() };
        let order = test.order(placement);
        test.stop(order[0]);
        let stored = test.cluster.put(body.clone()).await.unwrap();
        assert_eq!(stored.durable_on.len(), 3);
        assert!(!stored.durable_on.contains(&order[0].id));
        assert!(order[3].holds(stored.name), "the fourth in order takes the first one's place");
        assert_eq!(test.read(stored.name).await.unwrap(), body);
        test.start(order[0]);
    }
}

#[tokio::test]
async fn a_node_that_refuses_hangs_or_drops_the_stream_is_passed_over() {
    let faults = [
        Fault::RefusesPuts(ErrorCode::Full),
        Fault::RefusesPuts(ErrorCode::Draining),
        Fault::DropsPutAfter(1),
        Fault::Hangs,
    ];
    for fault in faults {
        let test = TestCluster::new(3, 2, 2);
        let body = content(100_000);
        let order = test.order(BlobName::of(&body).placement());
        order[0].set(fault);
        let stored = test.cluster.put(body).await.unwrap();
        assert!(order[1].holds(stored.name) && order[2].holds(stored.name), "{fault:?}");
    }
}

#[tokio::test]
async fn too_few_nodes_acknowledge_nothing_and_every_reason_is_named() {
    let test = TestCluster::new(3, 2, 3);
    test.stop(&test.nodes[0]);
    test.nodes[1].set(Fault::RefusesPuts(ErrorCode::Full));
    for length in [10, STREAMED] {
        let error = test.cluster.put(content(length)).await.unwrap_err();
        let PutError::NotEnoughReplicas { needed: 2, durable, reasons } = &error else { panic!("{error}") };
        assert!(*durable < 2);
        assert_eq!(reasons.len(), 2, "{error}");
        let text = error.to_string();
        assert!(text.contains("node1") && text.contains("node2: full"), "{text}");
    }
    test.cluster.writable().await.unwrap();
    test.stop(&test.nodes[2]);
    assert!(test.cluster.writable().await.is_err());
    test.start(&test.nodes[0]);
    test.cluster.writable().await.unwrap();
    test.nodes[0].set_full(true);
    let error = test.cluster.writable().await.unwrap_err().to_string();
    assert!(error.contains("node1: full") && error.contains("node3"), "{error}");
}

#[tokio::test]
async fn a_put_waits_a_while_for_nodes_that_may_be_back() {
    for length in [10, STREAMED, 5 * STREAMED] {
        let test = TestCluster::new(3, 2, 3);
        test.stop(&test.nodes[0]);
        let busy = test.nodes[1].clone();
        busy.set(Fault::RefusesPuts(ErrorCode::Busy));
        let freed = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            busy.set(Fault::None);
        });
        let stored = test.cluster.put(content(length)).await.unwrap();
        assert!(freed.is_finished() && stored.durable_on.len() == 2, "{length} bytes");

        let options = ClusterOptions { quorum_patience: Duration::from_millis(300), ..ClusterOptions::default() };
        let test = TestCluster::with_options(3, 2, 3, options);
        test.stop(&test.nodes[0]);
        test.nodes[1].set(Fault::RefusesPuts(ErrorCode::Busy));
        let error = test.cluster.put(content(length)).await.unwrap_err();
        let PutError::NotEnoughReplicas { needed: 2, reasons, .. } = &error else { panic!("{error}") };
        assert_eq!(reasons.len(), 2, "each node is named once: {error}");
    }
}

#[tokio::test]
async fn a_put_is_acknowledged_at_min_and_completes_behind() {
    for length in [10, STREAMED] {
        let test = TestCluster::new(3, 2, 3);
        let slow = &test.nodes[1];
        slow.set(Fault::HoldsAcknowledgement);
        let stored = test.cluster.put(content(length)).await.unwrap();
        assert_eq!(stored.durable_on.len(), 2);
        assert!(!stored.durable_on.contains(&slow.id) && !slow.holds(stored.name));
        slow.acknowledge.notify_one();
        test.cluster.settle().await;
        assert_eq!(holders(&test, stored.name), 3);
    }
}

#[tokio::test]
async fn never_acknowledged_below_min() {
    for length in [10, STREAMED] {
        let test = TestCluster::new(3, 2, 2);
        for node in &test.nodes {
            node.set(Fault::HoldsAcknowledgement);
        }
        let body = content(length);
        let placement = if length > HELD_BYTES_MAX { placement_of(&body) } else { BlobName::of(&body).placement() };
        let first = test.order(placement)[0].clone();
        first.acknowledge.notify_one();
        let cluster = test.cluster.clone();
        let mut put = tokio::spawn(async move { cluster.put(body).await });
        // One of two is durable; the put must still be waiting when the other's time is nearly over.
        let early = tokio::time::timeout(TIMEOUT / 2, &mut put).await;
        assert!(early.is_err(), "acknowledged with one replica of two");
        put.abort();
    }
}

#[tokio::test]
async fn copies_past_the_background_budget_are_left_to_repair_and_counted() {
    let options = ClusterOptions { background_bytes_max: 1_000, ..ClusterOptions::default() };
    let test = TestCluster::with_options(3, 2, 3, options);
    test.nodes[1].set(Fault::HoldsAcknowledgement);
    for (length, left) in [(100_000, 1), (STREAMED, 2)] {
        let stored = test.cluster.put(content(length)).await.unwrap();
        test.cluster.settle().await;
        assert_eq!(holders(&test, stored.name), 2);
        assert_eq!(test.cluster.copies_left_to_repair(), left);
    }
}

#[tokio::test]
async fn a_streamed_put_survives_max_minus_min_losses_on_the_way() {
    let faults = [Fault::DropsPutAfter(2 * HELD_BYTES_MAX + 1), Fault::StallsPutAfter(2 * HELD_BYTES_MAX + 1)];
    for fault in faults {
        let test = TestCluster::new(3, 2, 3);
        let body = content(8 * HELD_BYTES_MAX);
        test.nodes[2].set(fault);
        let stored = test.cluster.put(body.clone()).await.unwrap();
        assert_eq!(stored.durable_on.len(), 2, "{fault:?}");
        assert_eq!(test.read(stored.name).await.unwrap(), body);
        test.nodes[0].set(fault);
        let error = test.cluster.put(content(8 * HELD_BYTES_MAX + 1)).await.unwrap_err().to_string();
        assert!(error.contains("node1") && error.contains("node3"), "{error}");
    }
}

#[tokio::test]
async fn a_streamed_put_that_loses_a_node_early_begins_anew_at_the_next() {
    let test = TestCluster::new(3, 2, 2);
    let body = content(STREAMED);
    let order = test.order(placement_of(&body));
    order[0].set(Fault::DropsPutAfter(1));
    let stored = test.cluster.put(body.clone()).await.unwrap();
    assert!(order[1].holds(stored.name) && order[2].holds(stored.name));
    order[0].set(Fault::None);
    assert_eq!(test.read(stored.name).await.unwrap(), body);
}

#[tokio::test]
async fn an_upload_that_is_dropped_leaves_nothing() {
    let test = TestCluster::new(3, 2, 3);
    let mut upload = test.cluster.upload();
    upload.write(content(STREAMED)).await.unwrap();
    drop(upload);
    // Its streams are gone: the next put's are served after them by the same single-threaded runtime.
    test.cluster.put(content(10)).await.unwrap();
    test.cluster.settle().await;
    assert!(test.nodes.iter().all(|node| node.blobs() == 1));
}

#[tokio::test]
async fn ranges_are_cut_to_what_was_asked_and_to_the_blob() {
    let test = TestCluster::new(3, 2, 2);
    for length in [0, 100, GROUP_BYTES, 5 * GROUP_BYTES + 3, STREAMED] {
        let body = content(length);
        let name = test.cluster.put(body.clone()).await.unwrap().name;
        let length = length as u64;
        let ranges = [
            (0, 0),
            (0, 1),
            (1, 70_000),
            (length / 2, length),
            (length, length + 9),
            (length + 5, u64::MAX),
            (0, u64::MAX),
        ];
        for (start, end) in ranges {
            let mut download = test.cluster.get(name, Some(ByteRange { start, end })).await.unwrap();
            let mut got = Vec::new();
            while let Some(piece) = download.next().await.unwrap() {
                assert!(!piece.is_empty());
                got.extend_from_slice(&piece);
            }
            let (from, to) = (start.min(length) as usize, end.min(length) as usize);
            assert_eq!(got, body[from..to], "{start}-{end} of {length}");
            assert_eq!(download.length(), length);
            assert_eq!(download.range(), ByteRange { start: from as u64, end: to as u64 });
        }
        let backwards = test.cluster.get(name, Some(ByteRange { start: 2, end: 1 })).await;
        assert!(matches!(backwards, Err(GetError::Range { start: 2, end: 1 })));
    }
}

#[tokio::test]
async fn a_damaged_copy_is_skipped_and_counted_wherever_the_damage_lies() {
    let body = content(STREAMED);
    for at in [0, 64, GROUP_BYTES + 100, STREAMED / 2, usize::MAX] {
        let test = TestCluster::new(3, 3, 3);
        let name = test.cluster.put(body.clone()).await.unwrap().name;
        test.order(placement_of(&body))[0].set(Fault::FlipsBitAt(at));
        // The first in the name's own order is asked first; damage it as well if it is another.
        test.order(name.placement())[0].set(Fault::FlipsBitAt(at));
        assert_eq!(test.read(name).await.unwrap(), body, "{at}");
        assert!(test.cluster.corrupt_reads() >= 1, "{at}");
    }
    let test = TestCluster::new(2, 2, 2);
    let name = test.cluster.put(body.clone()).await.unwrap().name;
    test.nodes.iter().for_each(|node| node.set(Fault::FlipsBitAt(1_000_000)));
    let error = test.read(name).await.unwrap_err();
    assert!(matches!(&error, GetError::Unavailable { reasons, .. } if reasons.len() == 2), "{error}");
    assert!(error.to_string().contains("node1: corrupt"), "{error}");
}

#[tokio::test]
async fn a_read_goes_on_elsewhere_from_where_a_node_broke_off() {
    let test = TestCluster::new(2, 2, 2);
    let body = content(STREAMED);
    let name = test.cluster.put(body.clone()).await.unwrap().name;
    // Both break off again and again, and each time a little further on; neither alone could serve the blob at once.
    test.nodes.iter().for_each(|node| node.set(Fault::ResetsGetAfter(HELD_BYTES_MAX)));
    assert_eq!(test.read(name).await.unwrap(), body);
    assert_eq!(test.cluster.corrupt_reads(), 0);
    // A node that breaks off before it sent anything is not asked for ever.
    test.nodes.iter().for_each(|node| node.set(Fault::ResetsGetAfter(10)));
    assert!(matches!(test.read(name).await, Err(GetError::Unavailable { .. })));
}

#[tokio::test]
async fn a_hanging_node_costs_one_hedge_and_then_nothing() {
    let options = ClusterOptions { progress_timeout: Duration::from_secs(60), ..ClusterOptions::default() };
    let test = TestCluster::with_options(3, 3, 3, options);
    let body = content(10_000);
    let name = test.cluster.put(body.clone()).await.unwrap().name;
    let first = test.order(name.placement())[0];
    first.set(Fault::Hangs);
    let begun = Instant::now();
    assert_eq!(test.read(name).await.unwrap(), body);
    assert!(begun.elapsed() < Duration::from_secs(30), "waited for the hanging node: {:?}", begun.elapsed());
    let asked = first.requests.load(Ordering::Relaxed);
    for _ in 0..5 {
        assert_eq!(test.read(name).await.unwrap(), body);
    }
    assert_eq!(first.requests.load(Ordering::Relaxed), asked, "a node just overtaken is asked last");
}

#[tokio::test]
async fn absent_is_said_only_when_every_node_says_so() {
    let test = TestCluster::new(3, 2, 2);
    let name = BlobName::of(b"never put");
    assert!(matches!(test.read(name).await, Err(GetError::NotFound { .. })));
    assert!(matches!(test.cluster.stat(name).await, Err(GetError::NotFound { .. })));
    for fault in [None, Some(Fault::Hangs)] {
        match fault {
            None => test.stop(&test.nodes[1]),
            Some(fault) => {
                test.start(&test.nodes[1]);
                test.nodes[1].set(fault);
            }
        }
        for error in [test.read(name).await.unwrap_err(), test.cluster.stat(name).await.unwrap_err()] {
            let GetError::Unavailable { reasons, .. } = &error else { panic!("{error}") };
            assert!(matches!(&reasons[..], [one] if one.name == "node2"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_locator_whose_blob_is_gone_is_a_loss_and_not_an_absence() {
    let test = TestCluster::new(3, 2, 2);
    let name = test.cluster.put(content(STREAMED)).await.unwrap().name;
    test.nodes.iter().for_each(|node| node.forget(name));
    let error = test.read(name).await.unwrap_err();
    let GetError::Unavailable { reasons, .. } = &error else { panic!("{error}") };
    assert!(reasons.iter().all(|reason| matches!(reason.error, NodeError::LocatorOnly)), "{error}");
}

#[tokio::test]
async fn a_blob_on_the_last_node_anyone_would_ask_is_found() {
    let test = TestCluster::new(6, 1, 1);
    let body = content(5_000);
    let order = test.order(BlobName::of(&body).placement());
    for node in &order[..5] {
        test.stop(node);
    }
    let stored = test.cluster.put(body.clone()).await.unwrap();
    assert_eq!(stored.durable_on, [order[5].id]);
    for node in &order[..5] {
        test.start(node);
    }
    assert_eq!(test.read(stored.name).await.unwrap(), body);
}

#[tokio::test]
async fn status_tells_of_every_node_in_the_map_s_order() {
    let test = TestCluster::new(3, 1, 3);
    test.cluster.put(content(1)).await.unwrap();
    test.cluster.settle().await;
    test.stop(&test.nodes[1]);
    let status = test.cluster.status().await;
    let names: Vec<&str> = status.iter().map(|(node, _)| node.name.as_str()).collect();
    assert_eq!(names, ["node1", "node2", "node3"]);
    assert!(matches!(&status[0].1, Ok(status) if status.blobs == 1));
    assert!(status[1].1.is_err());
}
