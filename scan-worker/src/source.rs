//! Where submitted contents come from, seen from a scan thread: blocking calls, so that engines and extractors, which are
//! synchronous, can read on demand.
//!
//! Invariant: what [`BlobSource::read`] returns is verified against the blob's name or is an error.

use bytes::Bytes;
use lazaret_node_client::{Cluster, GetError};
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;
use tokio::runtime::Handle;

/// Why a content could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No node has it any more: trying again is no use.
    #[error("cannot read blob {0}: no node of the cluster holds it any more")]
    NotFound(BlobName),
    /// It may be readable later.
    #[error("cannot read blob {name} now: {reason}")]
    Unavailable {
        /// Which blob.
        name: BlobName,
        /// What each node said.
        reason: String,
    },
    /// A nested file that is too long for memory can't be read back.
    #[error("cannot read a nested file that is too long for memory: {reason}")]
    Spool {
        /// What became of it.
        reason: String,
    },
}

/// Reads blobs. Its calls block: never call it on a thread that drives asynchronous tasks.
pub trait BlobSource: Send + Sync {
    /// The bytes of `range`, cut at the blob's end. The caller asks for as much as it wants to hold in memory.
    fn read(&self, name: BlobName, range: ByteRange) -> Result<Bytes, SourceError>;
}

/// Blobs of the storage cluster.
pub struct ClusterSource {
    cluster: Cluster,
    runtime: Handle,
}

impl ClusterSource {
    /// Blobs of `cluster`, whose connections live on `runtime`.
    pub fn new(cluster: Cluster, runtime: Handle) -> Self {
        Self { cluster, runtime }
    }
}

/// What a failed get means for a scan.
pub(crate) fn get_error(name: BlobName, error: &GetError) -> SourceError {
    match error {
        GetError::NotFound { .. } => SourceError::NotFound(name),
        other => SourceError::Unavailable { name, reason: other.to_string() },
    }
}

impl BlobSource for ClusterSource {
    fn read(&self, name: BlobName, range: ByteRange) -> Result<Bytes, SourceError> {
        self.runtime.block_on(async {
            let mut download = self.cluster.get(name, Some(range)).await.map_err(|error| get_error(name, &error))?;
            let mut whole = Vec::new();
            while let Some(piece) = download.next().await.map_err(|error| get_error(name, &error))? {
                whole.extend_from_slice(&piece);
            }
            Ok(whole.into())
        })
    }
}
