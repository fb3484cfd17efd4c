//! Why the engine did not do what it was asked.

use std::io;
use std::sync::Arc;

use lazaret_protocol::limits::{BLOB_BYTES_MAX, HELD_BYTES_MAX, PUT_TIME_SKEW_MAX_MS};
use lazaret_protocol::message::ErrorCode;
use lazaret_protocol::tree::TreeError;
use lazaret_protocol::{BlobName, ClusterId, NodeId, UploadId};

use crate::disk::DiskError;
use crate::index::IndexError;
use crate::record::FormatError;

/// Why the engine did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// What was put is not what its name or its length says.
    #[error("the content put as {name} ({length} bytes) is {actual_name} ({actual_length} bytes)")]
    NameMismatch {
        /// The name given.
        name: BlobName,
        /// The length given.
        length: u64,
        /// The content's name.
        actual_name: BlobName,
        /// The content's length.
        actual_length: u64,
    },
    /// The put time is too far from the node's clock.
    #[error(
        "put time {put_time_ms} is more than {} s off this node's clock ({now_ms}): set the clocks",
        PUT_TIME_SKEW_MAX_MS / 1000
    )]
    ClockSkew {
        /// The put time.
        put_time_ms: u64,
        /// The node's clock.
        now_ms: u64,
    },
    /// What was put is older than what is kept.
    #[error("put time {put_time_ms} has expired: what was put before {expired_before_ms} is not kept")]
    Expired {
        /// The put time.
        put_time_ms: u64,
        /// Put times before this one have expired.
        expired_before_ms: u64,
    },
    /// No space for writes.
    #[error("the disk is full: {free_bytes} bytes are free, {reserve_bytes} are kept in reserve")]
    Full {
        /// Free bytes.
        free_bytes: u64,
        /// The reserve.
        reserve_bytes: u64,
    },
    /// A body that is not held whole was put as if it were.
    #[error("a body of {0} bytes is over the limit of {HELD_BYTES_MAX}: stream it")]
    BodyTooLong(u64),
    /// No blob is that long.
    #[error("a blob of more than {BLOB_BYTES_MAX} bytes is not stored")]
    BlobTooLong,
    /// A range that runs backwards.
    #[error("range {start}-{end} is backwards")]
    Range {
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// The copy on this node is damaged.
    #[error("the copy of {name} on this node is damaged: {reason}")]
    Corrupt {
        /// The blob.
        name: BlobName,
        /// What is wrong.
        reason: String,
    },
    /// What was written of an upload was lost with a segment that failed, or its caller gave up half-way.
    #[error("upload {upload} was lost: start it again")]
    UploadLost {
        /// The upload.
        upload: UploadId,
    },
    /// The engine takes no more writes.
    #[error("the storage engine is closed")]
    Closed,
    /// The data belong to another node or cluster.
    #[error(
        "{object} belongs to node {node} of cluster {cluster}, this is node {own_node} of cluster {own_cluster}: \
         check the data directory"
    )]
    Foreign {
        /// What was looked at.
        object: String,
        /// Whose it is.
        cluster: ClusterId,
        /// Whose it is.
        node: NodeId,
        /// Who asks.
        own_cluster: ClusterId,
        /// Who asks.
        own_node: NodeId,
    },
    /// The data are in a format that this build does not read.
    #[error("{object}: {source}")]
    Format {
        /// What was looked at.
        object: String,
        /// What is wrong.
        source: FormatError,
    },
    /// A blob that was to be moved was put again and again meanwhile.
    #[error("could not move {name}: it keeps changing, try again")]
    Unsettled {
        /// The blob.
        name: BlobName,
    },
    /// One of the data directory's own files says nothing that this build understands.
    #[error("the data directory is unreadable: {0}")]
    Identity(String),
    /// None of the node's disks is in use.
    #[error("no disk of this node is in use: {reasons}")]
    NoDisk {
        /// Why, disk by disk.
        reasons: String,
    },
    /// What was asked for may lie on a disk that is out of use.
    #[error("what lies on a disk out of use is not known: {reasons}")]
    DiskOut {
        /// Which disks are, and why.
        reasons: String,
    },
    /// What was asked for may lie on a disk whose index is being rebuilt.
    #[error("the index of disk {disk} is being rebuilt, what lies on it is not known yet: try again")]
    Rebuilding {
        /// Which.
        disk: String,
    },
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Whoever reads a blob did not take it.
    #[error("the reader went away: {0}")]
    Sink(Arc<io::Error>),
    /// A thread could not be had, or died.
    #[error("could not run {operation}: {reason}")]
    Thread {
        /// What was to run.
        operation: &'static str,
        /// Why it did not.
        reason: String,
    },
}

impl EngineError {
    /// The error's kind, for those who ask over the wire.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NameMismatch { .. } => ErrorCode::NameMismatch,
            Self::ClockSkew { .. } => ErrorCode::ClockSkew,
            Self::Expired { .. } => ErrorCode::Expired,
            Self::Full { .. } => ErrorCode::Full,
            Self::Disk(error) if error.is_full() => ErrorCode::Full,
            Self::BodyTooLong(_) | Self::BlobTooLong | Self::Range { .. } => ErrorCode::BadRequest,
            Self::Corrupt { .. } => ErrorCode::Corrupt,
            Self::Closed => ErrorCode::Draining,
            Self::Rebuilding { .. } => ErrorCode::Busy,
            Self::UploadLost { .. }
            | Self::Foreign { .. }
            | Self::Format { .. }
            | Self::Identity(_)
            | Self::NoDisk { .. }
            | Self::DiskOut { .. }
            | Self::Disk(_)
            | Self::Index(_)
            | Self::Sink(_)
            | Self::Unsettled { .. }
            | Self::Thread { .. } => ErrorCode::Internal,
        }
    }

    /// What a tree error means here, where content and tree come from this node's disk. Errors of reading are known
    /// better by who read; what is left is the sink's.
    pub(crate) fn of_tree(name: BlobName, error: TreeError) -> Self {
        match error {
            TreeError::Range { start, end } => Self::Range { start, end },
            TreeError::Io(error) => Self::Sink(Arc::new(error)),
            other => Self::Corrupt { name, reason: other.to_string() },
        }
    }
}
