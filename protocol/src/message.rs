//! The messages between clients, nodes and nodes among themselves. One bidirectional stream carries one request.
//!
//! | request | after the request | answer | after the answer |
//! |---|---|---|---|
//! | `Hello` (first stream of a connection) | | `Welcome` | |
//! | `Put` | body frames, an empty frame, a `PutTrailer` | `Put` | |
//! | `Get` | | `Get` | the bao encoding of the range |
//! | all others | | the answer of that name | |
//!
//! A body frame is a length (u32, little-endian, at most `FRAME_BYTES_MAX`) and so many bytes. Any request may be answered
//! with `Error` instead. New variants go at the end; a change to an existing one bumps `codec::VERSION`.

use serde::{Deserialize, Serialize};

use crate::cluster_map::ClusterMap;
use crate::name::{BlobName, ClusterId, NodeId, PlacementKey, UploadId};

/// The proof of knowing a key: `blake3::keyed_hash` of keying material exported from the TLS session, so that the key
/// never travels and a proof is worth nothing on another connection.
pub type KeyProof = [u8; 32];

/// Who opens a connection, and what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Proves the connection key: puts and gets.
    Client,
    /// Proves the storage admin key: everything a client may, and delete, drain, map.
    Admin,
    /// Presented a node's certificate of the cluster's CA; the proof is all zeros.
    Peer,
}

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Opens a connection.
    Hello(Hello),
    /// Stores a blob.
    Put(PutHeader),
    /// Records where a streamed blob lies.
    PutLocator(PutLocator),
    /// Reads a blob or a range of it.
    Get(GetRequest),
    /// Which of these blobs the node holds, in order.
    Has(Vec<BlobName>),
    /// What the node knows of a blob.
    Stat(BlobName),
    /// The node's own state and counters.
    Status,
    /// The node's cluster map.
    Map,
    /// Replaces the cluster map (admin).
    PushMap(ClusterMap),
    /// Deletes a blob for every submitter (admin, peer).
    Delete(Tombstone),
    /// Digests of what the node holds of a partition and bucket (peer).
    RepairDigests(RepairScope),
    /// The names behind such a digest (peer).
    RepairNames(RepairScope),
    /// Verifies everything on disk now (admin).
    Scrub,
}

/// Opens a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster the caller means.
    pub cluster: ClusterId,
    /// As whom it calls.
    pub role: Role,
    /// Its right to.
    pub proof: KeyProof,
}

/// Stores a blob. The body and a [`PutTrailer`] follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutHeader {
    /// When the blob was put, in Unix milliseconds; its bucket and its age follow from it.
    pub put_time_ms: u64,
    /// How long the upload may take before the node may forget it.
    pub lease_ms: u32,
    /// What is known of the blob before its body.
    pub target: PutTarget,
}

/// What is known of a blob before its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutTarget {
    /// Name and length: a body of at most `HELD_BYTES_MAX` bytes.
    Whole {
        /// The blob's name.
        name: BlobName,
        /// The blob's length in bytes.
        length: u64,
    },
    /// A longer body, whose name the trailer tells.
    Streamed {
        /// The upload.
        upload: UploadId,
        /// Where the blob is placed.
        placement: PlacementKey,
    },
}

/// The commit of a put: the node refuses it if what it received hashes to something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutTrailer {
    /// The blob's name.
    pub name: BlobName,
    /// The blob's length in bytes.
    pub length: u64,
}

/// Under which placement key a streamed blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locator {
    /// The placement key.
    pub placement: PlacementKey,
    /// The blob's length in bytes.
    pub length: u64,
}

/// Records where a streamed blob lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutLocator {
    /// The blob's name.
    pub name: BlobName,
    /// Where it lies.
    pub locator: Locator,
    /// The blob's own put time.
    pub put_time_ms: u64,
}

/// Reads a blob or a range of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetRequest {
    /// Which.
    pub name: BlobName,
    /// Which bytes; all when absent. The answer is rounded to groups and holds the last group always.
    pub range: Option<ByteRange>,
}

/// Bytes from `start` up to but not including `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// The byte after the last one; may lie past the blob's end.
    pub end: u64,
}

/// A deletion by name: it kills every put of the name up to its time, in whatever order they arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Which blob.
    pub name: BlobName,
    /// Unix milliseconds up to which puts are killed.
    pub time_ms: u64,
}

/// A slice of the name space and of time, for repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairScope {
    /// The first byte of the names meant.
    pub partition: u8,
    /// The bucket: hours since the Unix epoch.
    pub bucket: u32,
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The connection stands.
    Welcome(Welcome),
    /// The blob is durable on this node.
    Put(PutDone),
    /// The locator is durable on this node.
    LocatorPut,
    /// The blob's bao encoding follows.
    Get(GetHeader),
    /// The node does not hold the blob, but knows where it lies.
    Located(Locator),
    /// One answer a name.
    Has(Vec<bool>),
    /// What the node knows of the blob.
    Stat(BlobStat),
    /// The node's state and counters.
    Status(NodeStatus),
    /// The cluster map.
    Map(ClusterMap),
    /// The new map is in force and on disk.
    MapPushed,
    /// The tombstone is durable on this node.
    Deleted,
    /// A digest of names and put times, one a bucket partition.
    RepairDigests(Vec<[u8; 32]>),
    /// Names and put times.
    RepairNames(Vec<(BlobName, u64)>),
    /// A scrub has begun.
    Scrubbing,
    /// The request was not carried out.
    Error(ErrorReply),
}

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The node.
    pub node: NodeId,
    /// The epoch of the map it holds.
    pub epoch: u64,
    /// Its clock, in Unix milliseconds.
    pub now_ms: u64,
}

/// A put that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutDone {
    /// The put time that counts on this node.
    pub put_time_ms: u64,
    /// The node held the blob already in the same bucket and stored nothing.
    pub already_held: bool,
}

/// What precedes a blob's bytes. The length is a claim until the last group verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetHeader {
    /// The blob's length in bytes.
    pub length: u64,
    /// When it was put, in Unix milliseconds.
    pub put_time_ms: u64,
}

/// What one node knows of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStat {
    /// The copy held here, if any.
    pub held: Option<GetHeader>,
    /// The locator held here, if any.
    pub locator: Option<Locator>,
}

/// A node's state and counters since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Blobs in the index.
    pub blobs: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Bytes in segments.
    pub segment_bytes: u64,
    /// Bytes free on the disk.
    pub disk_free_bytes: u64,
    /// Bytes the disk has.
    pub disk_total_bytes: u64,
    /// Puts acknowledged.
    pub puts: u64,
    /// Gets answered.
    pub gets: u64,
    /// Times that data failed its checksum or its name.
    pub corrupt_reads: u64,
    /// fdatasync calls.
    pub syncs: u64,
    /// Records adopted from behind the synced offset when the node opened.
    pub recovered_records: u64,
    /// Whether writes are refused for want of space.
    pub full: bool,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what failed, on what, what to do.
    pub message: String,
}

/// The kinds of refusal a caller treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ErrorCode {
    /// The node holds no such blob.
    #[error("not found")]
    NotFound,
    /// No space for writes; reads go on.
    #[error("full")]
    Full,
    /// The node takes no writes.
    #[error("draining")]
    Draining,
    /// Wrong key, wrong cluster, or a right that the role lacks.
    #[error("not allowed")]
    NotAllowed,
    /// A malformed or oversized request.
    #[error("bad request")]
    BadRequest,
    /// What was received hashes to another name.
    #[error("name mismatch")]
    NameMismatch,
    /// The node's own copy is damaged.
    #[error("corrupt")]
    Corrupt,
    /// The put time is too far from the node's clock.
    #[error("clock skew")]
    ClockSkew,
    /// More requests than the node takes at once.
    #[error("busy")]
    Busy,
    /// Known, but not carried out by this build.
    #[error("unsupported")]
    Unsupported,
    /// A disk or the index failed.
    #[error("internal error")]
    Internal,
}
