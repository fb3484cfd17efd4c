//! What talks to storage nodes: the environment traits, streams and their transports (QUIC, in-process), one node's
//! requests, and the cluster as a whole (quorum put, verified and hedged get).
//!
//! This crate trusts no node's bytes: whatever a download hands out has verified against the blob's name. It stores
//! nothing and decides nothing about a node's disks.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod background;
pub mod cluster;
pub mod cluster_file;
mod copy;
pub mod download;
pub mod environment;
mod health;
pub mod local;
mod maps;
pub mod node;
pub mod probe;
pub mod quic;
mod quorum;
mod restart;
pub mod stream;
mod streamed_put;
pub mod tls;
pub mod transport;
pub mod trust;
pub mod upload;

pub use cluster::{Cluster, ClusterOptions, ClusterStat, GetError, PutError, Stored};
pub use cluster_file::ClusterFile;
pub use download::Download;
pub use environment::Environment;
pub use local::LocalNetwork;
pub use maps::AdoptError;
pub use node::{NodeError, NodeFailure};
pub use quic::{Credentials, QuicTransport};
pub use transport::{Transport, TransportError};
pub use trust::{CredentialFiles, TrustFiles};
pub use upload::Upload;
