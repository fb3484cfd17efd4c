//! How blobs and nodes are called in events and violations: short enough to follow one through a long log.

use lazaret_protocol::{BlobName, NodeId};

/// The first digits of a blob's name.
pub(crate) fn blob(name: BlobName) -> String {
    hex::encode(name.0.get(..5).unwrap_or_default())
}

/// A node by its number.
pub(crate) fn node(id: NodeId) -> String {
    format!("node-{}", id.0.first().copied().unwrap_or_default())
}

/// Nodes by their numbers.
pub(crate) fn nodes(ids: &[NodeId]) -> String {
    ids.iter().map(|&id| node(id)).collect::<Vec<_>>().join(", ")
}
