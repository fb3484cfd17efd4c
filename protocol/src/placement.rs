//! Placement: which nodes hold a blob, by weighted rendezvous hashing.
//!
//! Every node gets a score from its id, its weight and the placement key; nodes in descending order of score are the
//! blob's order. A node of twice the weight comes first twice as often, and a node that joins or leaves moves only what it
//! gains or loses. The arithmetic is integer only, so that the order is the same on every machine and for ever: it is
//! golden-tested, and changing it would lose sight of stored data.
//!
//! With `u` uniform in (0, 1] from BLAKE3(node id, placement key), the score is `weight / -log2(u)`
//! (Mosharaf Chowdhury and others call it weighted highest-random-weight; Schindelhauer and Schomaker, 2005).

use crate::cluster_map::{ClusterMap, NodeEntry, NodeState};
use crate::name::{NodeId, PlacementKey};

/// Fractional bits of the logarithm.
const LOG_FRACTION_BITS: u32 = 40;

/// All nodes of the map in the blob's order: where a read looks, first to last.
pub fn read_order(map: &ClusterMap, key: PlacementKey) -> Vec<&NodeEntry> {
    let mut scored: Vec<(u128, &NodeEntry)> =
        map.nodes.iter().map(|node| (distance(node.id, node.weight, key), node)).collect();
    scored.sort_unstable_by_key(|(distance, node)| (*distance, node.id));
    scored.into_iter().map(|(_, node)| node).collect()
}

/// The nodes that may take a write, in the blob's order. The first `max_replica` of them are its replica set; the rest
/// are where a write is handed off to.
pub fn write_order(map: &ClusterMap, key: PlacementKey) -> Vec<&NodeEntry> {
    let mut order = read_order(map, key);
    order.retain(|node| node.state == NodeState::Up);
    order
}

/// The inverse of the score, as an integer: `-log2(u) / weight`. The smaller, the earlier.
fn distance(node: NodeId, weight: u32, key: PlacementKey) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(node.as_bytes());
    hasher.update(key.as_bytes());
    let digest = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    let negative_log2 = (64_u128 << LOG_FRACTION_BITS) - u128::from(log2_of_successor(u64::from_le_bytes(first)));
    // Shifted up so that dividing by the weight keeps all the logarithm's bits.
    (negative_log2 << 64) / u128::from(weight.max(1))
}

/// log2(h + 1) in fixed point, rounded down.
fn log2_of_successor(h: u64) -> u64 {
    let Some(x) = h.checked_add(1) else { return 64 << LOG_FRACTION_BITS };
    let integer = x.ilog2();
    // The mantissa in [1, 2) with 63 fractional bits; squaring it yields one bit of the logarithm at a time.
    let mut mantissa = u128::from(x) << (63 - integer);
    let mut log = u64::from(integer);
    for _ in 0..LOG_FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 63;
        let bit = (mantissa >> 64) as u64;
        mantissa >>= bit;
        log = (log << 1) | bit;
    }
    log
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::cluster_map::StorageType;
    use crate::name::{BlobName, ClusterId};

    fn map(weights: &[u32]) -> ClusterMap {
        ClusterMap {
            cluster: ClusterId([7; 16]),
            epoch: 1,
            min_replica: 1,
            max_replica: 1,
            cleanuprange: 0,
            storage_type: StorageType::Salt,
            nodes: (1_u8..)
                .zip(weights)
                .map(|(i, &weight)| NodeEntry {
                    id: NodeId([i; 16]),
                    name: format!("node{i}"),
                    address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8890 + u16::from(i))),
                    weight,
                    state: NodeState::Up,
                })
                .collect(),
        }
    }

    fn first_bytes(order: &[&NodeEntry]) -> Vec<u8> {
        order.iter().map(|node| node.id.0[0]).collect()
    }

    /// Computed by an independent implementation with floating-point logarithms.
    #[test]
    fn golden_orders_never_change() {
        let map = map(&[1, 1, 2, 1, 5]);
        let golden: [(&[u8], [u8; 5]); 4] = [
            (b"", [5, 2, 3, 1, 4]),
            (b"a", [2, 5, 4, 3, 1]),
            (b"lazaret", [5, 3, 2, 4, 1]),
            (b"a quarantine station", [2, 1, 3, 4, 5]),
        ];
        for (content, order) in golden {
            assert_eq!(first_bytes(&read_order(&map, BlobName::of(content).placement())), order, "{content:?}");
        }
    }

    #[test]
    fn the_logarithm_is_within_one_unit_of_the_exact_one() {
        for h in [0, 1, 2, 3, 6, 7, 1000, 1 << 40, u64::MAX / 3, u64::MAX - 1] {
            let exact = ((h as f64) + 1.0).log2();
            let ours = log2_of_successor(h) as f64 / (1_u64 << LOG_FRACTION_BITS) as f64;
            assert!((exact - ours).abs() < 1e-9, "{h}: {exact} against {ours}");
        }
        assert_eq!(log2_of_successor(u64::MAX), 64 << LOG_FRACTION_BITS);
    }

    #[test]
    fn shares_follow_weights_and_only_a_leaving_node_s_blobs_move() {
        let all = map(&[1, 1, 2, 1, 5]);
        let mut fewer = all.clone();
        fewer.nodes.remove(2);
        let mut first = [0_u32; 6];
        for i in 0..10_000_u32 {
            let key = BlobName::of(&i.to_le_bytes()).placement();
            let with = first_bytes(&read_order(&all, key));
            first[usize::from(with[0])] += 1;
            let without: Vec<u8> = with.iter().copied().filter(|&n| n != 3).collect();
            assert_eq!(first_bytes(&read_order(&fewer, key)), without);
        }
        for (node, share) in [(1, 0.1), (2, 0.1), (3, 0.2), (4, 0.1), (5, 0.5)] {
            let got = f64::from(first[node]) / 10_000.0;
            assert!((got - share).abs() < 0.02, "node {node}: {got} instead of {share}");
        }
    }

    #[test]
    fn a_draining_node_is_read_from_and_not_written_to() {
        let mut map = map(&[1, 1, 1]);
        map.nodes[1].state = NodeState::Draining;
        let key = BlobName::of(b"x").placement();
        assert_eq!(read_order(&map, key).len(), 3);
        assert!(write_order(&map, key).iter().all(|node| node.id != NodeId([2; 16])));
    }
}
