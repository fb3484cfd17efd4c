//! The three ways to set replicas, as the reference's table has them, with nodes lost before, during and after writes:
//!
//! | `min_replica`, `max_replica` | lost before a write | lost during a streamed write | lost after a write |
//! |---|---|---|---|
//! | 1, 1: sharding | all but one | none: the upload is sent again | the lost node's blobs, and no others |
//! | 1 < min < max: high availability | all but min | max - min | max - 1 |
//! | min = max: strict | all but min | none: the upload is sent again | max - 1 |
//!
//! A body of at most 4 MiB is in the client's hands, so that any loss during its write is made good at the next node while
//! `min_replica` are left. Of a streamed one only the first 8 MiB are.

use std::collections::HashSet;

use bytes::Bytes;
use lazaret_node_client::{Cluster, GetError, LocalNetwork, PutError};
use lazaret_protocol::limits::HELD_BYTES_MAX;
use lazaret_protocol::message::Role;
use lazaret_protocol::name::{BlobName, NodeId, PlacementKey};
use lazaret_protocol::placement::read_order;

use crate::support::{Node, content, in_process, map, read};

const NODES: u8 = 4;
const SETTINGS: [(u8, u8); 3] = [(1, 1), (2, 3), (3, 3)];
/// So much of a streamed body was sent when nodes are lost: more than what is kept to begin anew.
const SENT: usize = 4 * HELD_BYTES_MAX;
const STREAMED: usize = 6 * HELD_BYTES_MAX + 12_345;

fn replica_set(cluster: &Cluster, placement: PlacementKey, count: usize) -> Vec<NodeId> {
    read_order(&cluster.map(), placement).into_iter().take(count).map(|node| node.id).collect()
}

/// The node is gone: nobody reaches it any more, and what it was doing ends.
fn lose(nodes: &[Node], network: &LocalNetwork, lost: NodeId) {
    network.unregister(lost);
    nodes.iter().find(|node| node.id == lost).unwrap().disk.cut_power_after(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_lost_before_a_write() {
    for (min, max) in SETTINGS {
        let (nodes, network, cluster) = in_process(map(NODES, min, max));
        for (lost, next) in nodes.iter().enumerate() {
            for length in [20_000 + lost, HELD_BYTES_MAX + 1 + lost] {
                let body = content(length);
                let put = cluster.put(body.clone()).await;
                if usize::from(NODES) - lost >= usize::from(min) {
                    let stored = put.unwrap_or_else(|error| panic!("{min}/{max}, {lost} lost: {error}"));
                    assert!(stored.durable_on.len() >= usize::from(min), "{min}/{max}, {lost} lost");
                    assert_eq!(read(&cluster, stored.name).await.unwrap(), body, "{min}/{max}, {lost} lost");
                } else {
                    let error = put.unwrap_err();
                    let PutError::NotEnoughReplicas { needed, durable, .. } = error else { panic!("{error}") };
                    assert!(needed == usize::from(min) && durable < needed, "{min}/{max}, {lost} lost");
                }
            }
            network.unregister(next.id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_lost_during_streamed_writes() {
    for (min, max) in SETTINGS {
        let tolerated = usize::from(max - min);
        for lost in 0..=tolerated + 1 {
            let (nodes, network, cluster) = in_process(map(NODES, min, max));
            let body = content(STREAMED + lost);
            let mut upload = cluster.upload();
            upload.write(body.slice(..SENT)).await.unwrap();
            let replicas = replica_set(&cluster, PlacementKey::of_head(&body[..HELD_BYTES_MAX]), usize::from(max));
            replicas.iter().take(lost).for_each(|&node| lose(&nodes, &network, node));
            let outcome = match upload.write(body.slice(SENT..)).await {
                Ok(()) => upload.finish().await,
                Err(error) => Err(error),
            };
            if lost <= tolerated {
                let stored = outcome.unwrap_or_else(|error| panic!("{min}/{max}, {lost} lost: {error}"));
                assert!(stored.durable_on.iter().all(|node| !replicas[..lost].contains(node)));
                assert_eq!(read(&cluster, stored.name).await.unwrap(), body, "{min}/{max}, {lost} lost");
                continue;
            }
            let error = outcome.unwrap_err();
            assert!(matches!(error, PutError::LostOnTheWay { .. }), "{min}/{max}, {lost} lost: {error}");
            assert!(error.to_string().contains("send it again"), "{error}");
            // Sent again it finds other nodes, if there are enough.
            let again = cluster.put(body.clone()).await;
            assert_eq!(again.is_ok(), usize::from(NODES) - lost >= usize::from(min), "{min}/{max}, {lost} lost");
            if again.is_ok() {
                assert_eq!(read(&cluster, BlobName::of(&body)).await.unwrap(), body, "{min}/{max}, {lost} lost");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_lost_during_writes_of_bodies_in_hand() {
    for (min, max) in SETTINGS {
        let (nodes, network, cluster) = in_process(map(NODES, min, max));
        let put = |number: usize| {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.put(content(300_000 + number)).await })
        };
        let mut puts = Vec::new();
        for lost in 0..=usize::from(NODES - min) {
            puts.extend((0..20).map(|i| put(100 * lost + i)));
            if lost > 0 {
                // Some of them are under way by now, and none of them may fail for it.
                tokio::task::yield_now().await;
                lose(&nodes, &network, nodes[lost].id);
            }
            for put in puts.drain(..) {
                put.await.unwrap().unwrap_or_else(|error| panic!("{min}/{max}, {lost} lost: {error}"));
            }
            cluster.settle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_lost_after_writes() {
    for (min, max) in SETTINGS {
        let (nodes, network, cluster) = in_process(map(NODES, min, max));
        let mut bodies: Vec<Bytes> = (0..40).map(|i| content(1_000 + i)).collect();
        bodies.push(content(STREAMED));
        let mut holders = Vec::new();
        for body in &bodies {
            let name = cluster.put(body.clone()).await.unwrap().name;
            cluster.settle().await;
            holders.push(cluster.stat(name).await.unwrap().held_on.into_iter().collect::<HashSet<NodeId>>());
        }
        assert!(holders.iter().all(|holders| holders.len() == usize::from(max)), "{min}/{max}");
        // Every choice of nodes to lose, as bits.
        for lost in 1_u8..(1 << NODES) - 1 {
            let is_lost = |id: NodeId| lost & (1 << (id.0[0] - 1)) != 0;
            nodes.iter().filter(|node| is_lost(node.id)).for_each(|node| network.unregister(node.id));
            for (body, holders) in bodies.iter().zip(&holders) {
                let survives = holders.iter().any(|&holder| !is_lost(holder));
                assert!(survives || lost.count_ones() >= u32::from(max), "{min}/{max}: {holders:?}");
                match read(&cluster, BlobName::of(body)).await {
                    Ok(got) => assert!(survives && got == body[..], "{min}/{max}, lost {lost:b}"),
                    // Out of reach is not absent.
                    Err(GetError::Unavailable { .. }) => assert!(!survives, "{min}/{max}, lost {lost:b}"),
                    Err(error) => panic!("{min}/{max}, lost {lost:b}: {error}"),
                }
            }
            for node in &nodes {
                network.register(node.id, node.service.handler(Role::Client));
            }
        }
    }
}
