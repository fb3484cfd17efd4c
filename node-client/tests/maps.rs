//! A client whose map is outdated learns of the newer one by whatever it asks, and draws no false conclusion meanwhile; and
//! what a node needs to make copies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "this test uses a part")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream;
use lazaret_node_client::{AdoptError, ClusterOptions, GetError, NodeError};
use lazaret_protocol::cluster_map::NodeState;
use lazaret_protocol::limits::HELD_BYTES_MAX;
use lazaret_protocol::message::{ErrorCode, PutHeader, PutTarget, Request, Response};
use lazaret_protocol::name::{BlobName, NodeId, PlacementKey, UploadId};
use support::{Fault, TestCluster, content};

/// How long a thing that happens in the background may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_blob_on_a_node_that_only_a_newer_map_names_is_found() {
    for by_stat in [false, true] {
        let mut test = TestCluster::new(3, 1, 2);
        let newer = test.grow();
        let body = content(1_000);
        test.nodes[3].give(&body);
        // Two of the old nodes lag behind; one has heard of it.
        test.nodes[1].set_map(newer.clone());
        let name = BlobName::of(&body);
        if by_stat {
            assert_eq!(test.cluster.stat(name).await.unwrap().held_on, [test.nodes[3].id]);
        } else {
            assert_eq!(test.read(name).await.unwrap(), body);
        }
        assert_eq!(*test.cluster.map(), newer);
        let absent = BlobName::of(b"absent by the new map as well");
        assert!(matches!(test.read(absent).await, Err(GetError::NotFound { .. })));
        assert!(matches!(test.cluster.stat(absent).await, Err(GetError::NotFound { .. })));
    }
}

#[tokio::test]
async fn absent_by_an_outdated_map_is_no_absence() {
    let mut test = TestCluster::new(3, 1, 2);
    let newer = test.grow();
    test.nodes[1].set_map(newer);
    // It speaks of the map and does not hand it out.
    let serving = test.nodes[1].clone();
    serving.set_map_fault(true);
    let name = BlobName::of(b"anything");
    for error in [test.read(name).await.unwrap_err(), test.cluster.stat(name).await.unwrap_err()] {
        let GetError::Unavailable { reasons, .. } = &error else { panic!("{error}") };
        assert!(reasons.iter().any(|reason| matches!(reason.error, NodeError::NewerMap { epoch: 2 })), "{error}");
    }
    serving.set_map_fault(false);
    // After a failure nobody fetches for a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(matches!(test.read(name).await, Err(GetError::NotFound { .. })));
    assert_eq!(test.cluster.map().epoch, 2);
}

#[tokio::test]
async fn a_blob_that_moves_past_the_search_is_found() {
    for by_stat in [false, true] {
        let test = TestCluster::new(4, 1, 2);
        let body = content(700);
        let name = BlobName::of(&body);
        let order = test.order(name.placement());
        // Not yet on its first node, still on its last, as during repair.
        let (new, old) = (order[0].clone(), order[3].clone());
        old.give(&body);
        let moved = Arc::new(AtomicBool::new(false));
        let (to, from, once, bytes) = (new, old.clone(), Arc::clone(&moved), body.clone());
        old.before_get(move || {
            if !once.swap(true, Ordering::Relaxed) {
                to.give(&bytes);
                from.forget(BlobName::of(&bytes));
            }
        });
        if by_stat {
            test.cluster.stat(name).await.unwrap();
        } else {
            assert_eq!(test.read(name).await.unwrap(), body);
            assert!(moved.load(Ordering::Relaxed));
        }
    }
}

#[tokio::test]
async fn a_newer_map_is_noticed_in_the_background_and_by_refusals() {
    let options = ClusterOptions { ping_interval: Duration::from_millis(20), ..ClusterOptions::default() };
    let mut test = TestCluster::with_options(3, 1, 2, options);
    let newer = test.grow();
    test.nodes[2].set_map(newer.clone());
    let mut watched = test.cluster.watch_map();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let cluster = test.cluster.clone();
    let background = tokio::spawn(async move {
        cluster
            .run_background(async {
                let _ = stopped.await;
            })
            .await;
    });
    tokio::time::timeout(PATIENCE, watched.changed()).await.expect("noticed by a ping").unwrap();
    assert_eq!(**watched.borrow_and_update(), newer);
    stop.send(()).unwrap();
    background.await.unwrap();

    for code in [ErrorCode::Draining, ErrorCode::OtherEpoch] {
        let test = TestCluster::new(2, 1, 2);
        let mut draining = test.cluster.map().as_ref().clone();
        draining.epoch = 5;
        draining.nodes[0].state = NodeState::Draining;
        test.nodes[0].set_map(draining);
        test.nodes[0].set(Fault::RefusesPuts(code));
        let mut watched = test.cluster.watch_map();
        // Acknowledged by the other node; what the first says is still of use.
        test.cluster.put(content(10)).await.unwrap();
        test.cluster.settle().await;
        tokio::time::timeout(PATIENCE, watched.changed()).await.expect("noticed by a refusal").unwrap();
        assert_eq!(test.cluster.map().epoch, 5);
    }
}

#[tokio::test]
async fn a_map_is_adopted_only_if_it_is_newer_and_of_this_cluster() {
    let mut test = TestCluster::new(3, 1, 2);
    let newer = test.grow();
    assert_eq!(test.cluster.adopt(newer.clone()), Ok(true));
    assert_eq!(test.cluster.adopt(newer.clone()), Ok(false));
    let mut other = newer.clone();
    other.cleanuprange = 7;
    assert_eq!(test.cluster.adopt(other), Err(AdoptError::Conflict { epoch: 2 }));
    assert_eq!(*test.cluster.map(), newer);
    // Puts go by it at once.
    for length in 1..40 {
        test.cluster.put(content(length)).await.unwrap();
    }
    test.cluster.settle().await;
    assert!(test.nodes[3].blobs() > 0);
}

#[tokio::test]
async fn a_node_is_asked_by_its_id() {
    let test = TestCluster::new(2, 1, 2);
    let answer = test.cluster.ask(test.nodes[1].id, Request::Status).await.unwrap();
    assert!(matches!(answer, Response::Status(_)));
    let refused = test.cluster.ask(test.nodes[1].id, Request::Scrub).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Unsupported));
    let unknown = test.cluster.ask(NodeId([99; 16]), Request::Status).await.unwrap_err();
    assert!(matches!(unknown, NodeError::NotInMap(_)) && unknown.code().is_none());
}

#[tokio::test]
async fn a_copy_is_fetched_from_the_preferred_node_and_never_from_the_excluded_one() {
    let test = TestCluster::new(4, 4, 4);
    let body = content(HELD_BYTES_MAX + 5_000);
    let name = test.cluster.put(body.clone()).await.unwrap().name;
    let all_requests = || test.nodes.iter().map(|node| node.requests.load(Ordering::Relaxed)).collect::<Vec<_>>();
    for preferred in 0..4 {
        let before = all_requests();
        let excluded = (preferred + 1) % 4;
        let from = test.cluster.get_from(name, Some(test.nodes[preferred].id), Some(test.nodes[excluded].id)).await;
        let mut download = from.unwrap();
        let mut got = Vec::new();
        while let Some(piece) = download.next().await.unwrap() {
            got.extend_from_slice(&piece);
        }
        assert_eq!(got, body);
        let after = all_requests();
        assert_eq!(after[preferred], before[preferred] + 1);
        assert_eq!(after[excluded], before[excluded]);
    }
    // The only one that has it is the one not to be asked.
    let only = content(30);
    test.nodes[2].give(&only);
    let excluded = test.cluster.get_from(BlobName::of(&only), None, Some(test.nodes[2].id)).await;
    assert!(matches!(excluded, Err(GetError::NotFound { .. })));
}

#[tokio::test]
async fn a_copy_goes_to_one_node_with_its_own_put_time() {
    let test = TestCluster::new(3, 1, 1);
    for length in [0, 10_000, HELD_BYTES_MAX, 2 * HELD_BYTES_MAX + 77] {
        let body = content(length);
        let name = test.cluster.put(body.clone()).await.unwrap().name;
        let holder = test.nodes.iter().find(|node| node.holds(name)).unwrap().id;
        let target = test.nodes.iter().find(|node| !node.holds(name)).unwrap();
        let header = PutHeader {
            put_time_ms: 12_345,
            lease_ms: 60_000,
            target: if length > HELD_BYTES_MAX {
                let placement = PlacementKey::of_head(&body[..HELD_BYTES_MAX]);
                PutTarget::Streamed { upload: UploadId([3; 16]), placement }
            } else {
                PutTarget::Whole { name, length: length as u64 }
            },
        };
        let download = test.cluster.get_from(name, Some(holder), Some(target.id)).await.unwrap();
        let done = test.cluster.put_copy(target.id, header, name, length as u64, download.into_stream()).await.unwrap();
        assert_eq!(done.put_time_ms, 12_345, "{length}");
        assert_eq!(target.put_time_ms(name), Some(12_345), "{length}");
    }
}

#[tokio::test]
async fn a_copy_that_fails_says_on_whose_side() {
    let test = TestCluster::new(1, 1, 1);
    let (target, body) = (&test.nodes[0], content(50_000));
    let name = BlobName::of(&body);
    let length = body.len() as u64;
    let header = || PutHeader { put_time_ms: 1, lease_ms: 60_000, target: PutTarget::Whole { name, length } };
    let pieces = |last: Result<bytes::Bytes, String>| stream::iter([Ok(body.slice(..20_000)), last]);

    let broken = pieces(Err("the disk is gone".to_owned()));
    let error = test.cluster.put_copy(target.id, header(), name, length, broken).await.unwrap_err();
    assert!(matches!(&error, NodeError::Source(reason) if reason.contains("disk is gone")), "{error}");
    let other = pieces(Ok(content(30_000)));
    let error = test.cluster.put_copy(target.id, header(), name, length, other).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NameMismatch), "{error}");
    target.set(Fault::RefusesPuts(ErrorCode::Expired));
    let error = test.cluster.put_copy(target.id, header(), name, length, pieces(Ok(body.slice(20_000..)))).await;
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::Expired));
    assert!(!target.holds(name));
    target.set(Fault::None);
    test.cluster.put_copy(target.id, header(), name, length, pieces(Ok(body.slice(20_000..)))).await.unwrap();
    assert!(target.holds(name));
}
