//! Nodes that fail, hang and come back, as many requests see them: what a failure costs, and that trouble is not made worse.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "this test uses a part")]
mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lazaret_node_client::ClusterOptions;
use lazaret_protocol::message::ErrorCode;
use lazaret_protocol::name::BlobName;
use support::{Fault, MemoryNode, TestCluster, content};

fn requests(node: &MemoryNode) -> usize {
    node.requests.load(Ordering::Relaxed)
}

/// Contents whose first node in order is `node`.
fn contents_first_on(test: &TestCluster, node: &MemoryNode, count: usize) -> Vec<bytes::Bytes> {
    let all = (1_000..).map(content);
    all.filter(|body| test.order(BlobName::of(body).placement())[0].id == node.id).take(count).collect()
}

#[tokio::test]
async fn a_dead_node_is_passed_over_at_once_by_reads_and_writes_and_used_again_when_it_answers() {
    let options = ClusterOptions {
        progress_timeout: Duration::from_millis(300),
        request_timeout: Duration::from_millis(300),
        ..ClusterOptions::default()
    };
    let test = TestCluster::with_options(4, 2, 2, options);
    let dead = &test.nodes[1];
    let bodies = contents_first_on(&test, dead, 40);
    for body in &bodies[..20] {
        test.cluster.put(body.clone()).await.unwrap();
    }
    dead.set(Fault::Hangs);
    // The first finds out.
    test.cluster.put(bodies[20].clone()).await.unwrap();
    let (asked, begun) = (requests(dead), Instant::now());
    for (old, new) in bodies[..19].iter().zip(&bodies[21..]) {
        assert_eq!(test.read(BlobName::of(old)).await.unwrap(), *old);
        let stored = test.cluster.put(new.clone()).await.unwrap();
        assert!(!stored.durable_on.contains(&dead.id));
    }
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?} for what costs nothing", begun.elapsed());
    assert!(requests(dead) <= asked + 1, "asked {} times", requests(dead) - asked);

    dead.set(Fault::None);
    let begun = Instant::now();
    let mut answered_at = None;
    for i in 0.. {
        assert!(begun.elapsed() < Duration::from_secs(40), "it is never used again");
        let before = requests(dead);
        let stored = test.cluster.put(content(200_000 + i)).await.unwrap();
        if requests(dead) > before && answered_at.is_none() {
            answered_at = Some(Instant::now());
        }
        if stored.durable_on.contains(&dead.id) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if let Some(answered_at) = answered_at {
        assert!(answered_at.elapsed() < Duration::from_secs(1), "{:?} after its first answer", answered_at.elapsed());
    }
}

#[tokio::test]
async fn a_write_that_needs_a_node_left_alone_still_has_it() {
    let test = TestCluster::new(2, 2, 2);
    test.stop(&test.nodes[0]);
    test.cluster.put(content(10)).await.unwrap_err();
    test.start(&test.nodes[0]);
    // Not a moment has passed, and yet it is asked: without it nothing could be acknowledged.
    let stored = test.cluster.put(content(11)).await.unwrap();
    assert_eq!(stored.durable_on.len(), 2);
    // The same for a read of what only it holds.
    let test = TestCluster::new(3, 1, 1);
    let only = content(500);
    test.nodes[0].give(&only);
    test.stop(&test.nodes[0]);
    test.read(BlobName::of(&only)).await.unwrap_err();
    test.start(&test.nodes[0]);
    assert_eq!(test.read(BlobName::of(&only)).await.unwrap(), only);
}

#[tokio::test]
async fn a_full_node_is_not_sent_every_body_in_vain() {
    let test = TestCluster::new(4, 2, 2);
    let full = &test.nodes[2];
    full.set(Fault::RefusesPuts(ErrorCode::Full));
    let bodies = contents_first_on(&test, full, 30);
    let begun = Instant::now();
    for body in bodies {
        assert_eq!(test.cluster.put(body).await.unwrap().durable_on.len(), 2);
    }
    // Once a second it is tried.
    assert!(requests(full) <= 1 + begun.elapsed().as_secs() as usize, "{} requests", requests(full));
}

#[tokio::test]
async fn many_reads_of_a_cluster_that_hangs_do_not_multiply() {
    const READS: usize = 3_000;
    let options = ClusterOptions {
        progress_timeout: Duration::from_millis(1_500),
        request_timeout: Duration::from_millis(1_500),
        ..ClusterOptions::default()
    };
    let test = TestCluster::with_options(4, 4, 4, options);
    let body = content(100);
    let name = test.cluster.put(body).await.unwrap().name;
    let before: usize = test.nodes.iter().map(requests).sum();
    for node in &test.nodes {
        node.set(Fault::Hangs);
    }
    let reads: Vec<_> = (0..READS)
        .map(|_| {
            let cluster = test.cluster.clone();
            tokio::spawn(async move { cluster.get(name, None).await.is_err() })
        })
        .collect();
    // All are under way, and hedge delays have passed several times over.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let sent = test.nodes.iter().map(requests).sum::<usize>() - before;
    // Without a budget it would be four times as many.
    assert!((READS..=READS * 5 / 4 + 1_100).contains(&sent), "{sent} requests for {READS} reads");
    for read in reads {
        read.abort();
    }
}
