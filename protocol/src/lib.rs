//! What every part of the storage cluster agrees on: names, limits, the cluster map, placement, messages and their
//! encoding, and the BLAKE3 tree by which any range of a blob verifies against its name.
//!
//! This crate does no I/O and reads no clock: everything in it is a function of its arguments, so that it can be
//! golden-tested and driven by a simulation.

pub mod cluster_map;
pub mod codec;
pub mod limits;
pub mod message;
pub mod name;
pub mod placement;
pub mod tree;

pub use cluster_map::{ClusterMap, NodeEntry, NodeState, StorageType};
pub use name::{BlobName, ClusterId, NodeId, PlacementKey, UploadId};
