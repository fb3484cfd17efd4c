//! The cluster map: which nodes there are, how blobs are replicated over them, and the epoch that orders maps.
//!
//! A map is replaced as a whole, by one writer, with an epoch higher by one. Two different maps of the same epoch never
//! both take effect: whoever holds one refuses the other.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::limits::{NODES_MAX, REPLICAS_MAX, WEIGHT_MAX};
use crate::name::{ClusterId, NodeId};

/// How payloads lie on a node's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageType {
    /// XORed with a keystream of a random salt kept beside it: not executable, not matched by on-access scanners.
    /// It hides nothing from whoever reads the disk on purpose.
    #[default]
    Salt,
    /// As it came.
    None,
}

/// What the cluster may do with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Takes writes and answers reads.
    #[default]
    Up,
    /// Answers reads; writes pass it over.
    Draining,
}

/// One storage node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// The node's identity; its certificate carries it.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// Where it listens for QUIC.
    pub address: SocketAddr,
    /// Its share of the data relative to other nodes: 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// What the cluster may do with it.
    #[serde(default)]
    pub state: NodeState,
}

/// The nodes and settings of a cluster at one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterMap {
    /// Which cluster this is a map of.
    pub cluster: ClusterId,
    /// Higher by one with each change; the first map has 1.
    pub epoch: u64,
    /// Replicas that must hold a blob durably before a write is acknowledged.
    pub min_replica: u8,
    /// Replicas that a blob should have.
    pub max_replica: u8,
    /// Hours after which a blob expires; 0 keeps blobs for ever.
    #[serde(default)]
    pub cleanuprange: u32,
    /// How payloads lie on disk.
    #[serde(default)]
    pub storage_type: StorageType,
    /// The nodes, in any order.
    pub nodes: Vec<NodeEntry>,
}

/// Why a cluster map cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// No node, or more than the format bears.
    #[error("a cluster map has 1 to {NODES_MAX} nodes, this one has {0}")]
    NodeCount(usize),
    /// The replica settings contradict each other or the format.
    #[error(
        "replicas: 1 <= min_replica <= max_replica <= {REPLICAS_MAX} must hold, got min_replica {min}, max_replica {max}"
    )]
    Replicas {
        /// `min_replica` as given.
        min: u8,
        /// `max_replica` as given.
        max: u8,
    },
    /// Fewer nodes than a write needs.
    #[error("min_replica {min} needs as many nodes, the map has {nodes}")]
    TooFewNodes {
        /// `min_replica` as given.
        min: u8,
        /// Nodes in the map.
        nodes: usize,
    },
    /// A weight outside 1..=[`WEIGHT_MAX`].
    #[error("node {0}: weight must be 1 to {WEIGHT_MAX}")]
    Weight(String),
    /// Two entries with one id.
    #[error("node id {0} appears twice")]
    DuplicateNode(NodeId),
    /// Epoch 0.
    #[error("a cluster map's epoch starts at 1")]
    Epoch,
}

impl ClusterMap {
    /// Checks what the rest of the code relies on. Every map from a file or the wire passes here first.
    pub fn validate(&self) -> Result<(), MapError> {
        if self.nodes.is_empty() || self.nodes.len() > NODES_MAX {
            return Err(MapError::NodeCount(self.nodes.len()));
        }
        let (min, max) = (self.min_replica, self.max_replica);
        if min == 0 || min > max || max > REPLICAS_MAX {
            return Err(MapError::Replicas { min, max });
        }
        if self.nodes.len() < usize::from(min) {
            return Err(MapError::TooFewNodes { min, nodes: self.nodes.len() });
        }
        if let Some(node) = self.nodes.iter().find(|n| n.weight == 0 || n.weight > WEIGHT_MAX) {
            return Err(MapError::Weight(node.name.clone()));
        }
        let mut ids: Vec<NodeId> = self.nodes.iter().map(|n| n.id).collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MapError::DuplicateNode(pair[0]));
        }
        if self.epoch == 0 {
            return Err(MapError::Epoch);
        }
        Ok(())
    }

    /// The entry of `id`.
    pub fn node(&self, id: NodeId) -> Option<&NodeEntry> {
        self.nodes.iter().find(|node| node.id == id)
    }
}
