//! How a stream to a node comes about. One trait, so that the cluster's logic is the same over QUIC, inside one process
//! and in a simulation.

use std::net::SocketAddr;

use async_trait::async_trait;
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::name::NodeId;

use crate::stream::{RecvHalf, SendHalf};

/// Opens streams to nodes.
#[async_trait]
pub trait Transport: Send + Sync {
    /// A new stream to `node`. Bounded in time by the transport; a node that could not be reached just now may be refused
    /// at once.
    async fn open(&self, node: &NodeEntry) -> Result<(SendHalf, RecvHalf), TransportError>;

    /// The node let a request stall. A transport that keeps connections uses the present one for no new stream: behind it
    /// there may be nobody any more.
    fn distrust(&self, _node: &NodeEntry) {}

    /// The highest epoch that a node spoke of when a connection to it began; 0 if none did.
    fn epoch_heard(&self) -> u64 {
        0
    }

    /// Tells the nodes that nothing follows, so that they need not wait to find out. For a process that is about to end.
    async fn close(&self) {}
}

/// Why there is no stream to a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Nothing answered in time.
    #[error("cannot connect to {address}: no answer within {after_ms} ms")]
    NoAnswer {
        /// Where.
        address: SocketAddr,
        /// How long was waited.
        after_ms: u64,
    },
    /// The connection failed or broke.
    #[error("connection to {address} failed: {reason}")]
    Failed {
        /// Where.
        address: SocketAddr,
        /// What QUIC says.
        reason: String,
    },
    /// The TLS handshake failed: one end's certificate is not of the other's cluster CA, or names another node.
    #[error("no trust between here and {address}: {reason}; check that both use the same cluster CA")]
    Untrusted {
        /// Where.
        address: SocketAddr,
        /// What TLS says.
        reason: String,
    },
    /// The node refused the key, the cluster or the role. Trying again does not help.
    #[error("{address} refuses this client: {reason}")]
    NotAllowed {
        /// Where.
        address: SocketAddr,
        /// What the node says.
        reason: String,
    },
    /// What listens there is not this node.
    #[error("{address} is not node {expected}: {found}")]
    WrongNode {
        /// Where.
        address: SocketAddr,
        /// The node that was meant.
        expected: NodeId,
        /// What answered.
        found: String,
    },
    /// No node of this id runs in this process.
    #[error("node {0} does not run in this process")]
    NotHere(NodeId),
    /// This end cannot open a socket.
    #[error("cannot open a UDP socket: {0}")]
    Socket(String),
}
