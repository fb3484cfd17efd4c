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
use crate::limits::{BUCKET_MS, DAY_MS};
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
    /// Digests of what two nodes should both hold of a partition, one a day of put time (peer).
    RepairDigests(RepairScope),
    /// The items behind such a digest (peer).
    RepairItems(RepairPage),
    /// Verifies everything on disk now (admin).
    Scrub,
    /// Whether the node lives, which map it holds, and what its clock says.
    Ping(Ping),
    /// Places or releases a legal hold (admin, peer).
    Hold(Hold),
    /// Reads copies whole from disk and says which of them are there, sound, and no older than named, in order (peer).
    Verify(CopyClaims),
    /// Compares everything with the other nodes now (admin).
    Repair,
    /// The node's own account of its disks and of what it does in the background.
    Report,
    /// What a `cleanuprange` of so many hours would remove now, and removes nothing (admin).
    RetentionPreview(u32),
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// A legal hold: while it stands, a blob does not expire. Of two holds on one name the later one decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Which blob.
    pub name: BlobName,
    /// When it was placed or released, in Unix milliseconds.
    pub time_ms: u64,
    /// Placed, or released.
    pub placed: bool,
    /// The first hour since 1970 whose puts it protects, as far as a node knows. An administrator leaves it open: it
    /// protects whatever has not expired on a node by then.
    pub from_bucket: Option<u32>,
}

/// Copies that a node is asked for by one that would give up its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyClaims {
    /// The map by which the asking node has no share in them. By any other the answer would mean nothing: two nodes could each
    /// take the other for the owner.
    pub epoch: u64,
    /// The copies.
    pub copies: Vec<CopyClaim>,
}

/// A copy that a node should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyClaim {
    /// Which blob.
    pub name: BlobName,
    /// A put time of the bucket it should be in at the earliest, in Unix milliseconds.
    pub put_time_ms: u64,
}

/// One end's part of a comparison: what both `node` and the node asked should hold of a partition, as `node` sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairScope {
    /// Who asks.
    pub node: NodeId,
    /// The epoch of its map; a node with another one refuses with `OtherEpoch`.
    pub epoch: u64,
    /// The first byte of the names meant.
    pub partition: u8,
    /// Nodes of the map that it counts as lost, whose share falls to the next ones in order.
    pub lost: Vec<NodeId>,
}

/// A page of the items behind a digest, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairPage {
    /// The comparison.
    pub scope: RepairScope,
    /// The day: [`RepairItem::day`].
    pub day: u32,
    /// Names up to this one were seen.
    pub after: Option<BlobName>,
}

/// A thing that nodes keep in agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepairItem {
    /// A copy of a blob.
    Blob {
        /// The blob's name.
        name: BlobName,
        /// Its length in bytes.
        length: u64,
        /// Its newest put time in Unix milliseconds.
        put_time_ms: u64,
        /// Where it is placed.
        placement: PlacementKey,
    },
    /// A locator, whole.
    Locator(PutLocator),
    /// A tombstone, whole. All nodes hold it.
    Tombstone(Tombstone),
    /// A hold, whole. All nodes hold it.
    Hold(Hold),
}

/// The items of one day in a comparison. Two nodes agree if they are the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayDigest {
    /// Days since the Unix epoch.
    pub day: u32,
    /// How many items.
    pub items: u64,
    /// The sum of their fingerprints, see [`RepairItem::fingerprint`].
    pub sum: [u8; 16],
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
    /// One digest a day that has items.
    RepairDigests(Vec<DayDigest>),
    /// Items, and whether more follow after the last one.
    RepairItems(RepairItems),
    /// A scrub has begun.
    Scrubbing,
    /// The request was not carried out.
    Error(ErrorReply),
    /// The node lives.
    Pong(Ping),
    /// The hold is durable on this node.
    HoldSet,
    /// One answer a copy.
    Verified(Vec<bool>),
    /// A comparison with the other nodes has begun.
    Repairing,
    /// The node's account of itself.
    Report(NodeReport),
    /// What would go.
    RetentionPreview(Expirable),
    /// The node holds no such blob, and knows of no locator. Its epoch tells a client whether it asked by an old map.
    Absent(Absent),
}

/// A page of items.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairItems {
    /// The items, in the order of their names.
    pub items: Vec<RepairItem>,
    /// Where the next page begins; `None` if this was the last one.
    pub next: Option<BlobName>,
}

/// What two parties tell each other of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// The epoch of the sender's map.
    pub epoch: u64,
    /// The sender's clock, in Unix milliseconds.
    pub now_ms: u64,
}

/// A blob that a node does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The epoch of the node's map.
    pub epoch: u64,
}

/// What a retention setting removes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expirable {
    /// Blobs.
    pub blobs: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Put times before this one, in Unix milliseconds.
    pub before_ms: u64,
}

/// A node's account of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The epoch of its map.
    pub epoch: u64,
    /// Its clock, in Unix milliseconds.
    pub now_ms: u64,
    /// Whether its clock agrees with a majority of the cluster. Until it does, nothing expires here.
    pub clock_trusted: bool,
    /// Put times before this one have expired here, in Unix milliseconds.
    pub expired_before_ms: u64,
    /// Nodes of the map that do not answer it.
    pub unreachable: Vec<NodeId>,
    /// Its disks.
    pub disks: Vec<DiskReport>,
    /// Repair.
    pub repair: RepairReport,
    /// Scrub.
    pub scrub: ScrubReport,
    /// Bytes that compaction gave back since the start.
    pub reclaimed_bytes: u64,
}

/// One disk of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Where it is.
    pub path: String,
    /// Why it is out of use, if it is.
    pub failed: Option<String>,
    /// Blobs in its index.
    pub blobs: u64,
    /// Segments on it.
    pub segments: u64,
    /// Bytes in segments.
    pub segment_bytes: u64,
    /// Of these, bytes that nothing refers to any more.
    pub dead_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Whether it refuses writes for want of space.
    pub full: bool,
}

/// Repair, since the node started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// Whether a comparison is under way.
    pub running: bool,
    /// Partitions of 256 that it has finished.
    pub partitions_done: u32,
    /// Comparisons finished.
    pub rounds: u64,
    /// Whether the last one found every node reachable and nothing to do.
    pub clean: bool,
    /// Copies this node should have and has not, as far as is known now.
    pub missing_blobs: u64,
    /// Bytes of them.
    pub missing_bytes: u64,
    /// Copies found damaged and not yet made good.
    pub damaged_blobs: u64,
    /// Copies that lie here and belong elsewhere, as far as is known now.
    pub surplus_blobs: u64,
    /// Copies fetched or sent.
    pub copied_blobs: u64,
    /// Bytes of them.
    pub copied_bytes: u64,
    /// Surplus copies removed.
    pub removed_blobs: u64,
    /// Copies that could not be made, to be tried again.
    pub failed_blobs: u64,
    /// Seconds until the comparison ends at the pace so far; `None` if nothing is known.
    pub remaining_seconds: Option<u64>,
}

/// Scrub, since the node started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Whether a pass is under way.
    pub running: bool,
    /// Segments verified in this pass.
    pub segments_done: u64,
    /// Segments there are.
    pub segments: u64,
    /// Bytes verified in all passes.
    pub verified_bytes: u64,
    /// Records found damaged in all passes.
    pub damaged_records: u64,
    /// When the last pass ended, in Unix milliseconds; 0 for never.
    pub finished_ms: u64,
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
    /// The node held the blob already, from a put that is no older, and stored nothing.
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
    /// What was put is older than what is kept.
    #[error("expired")]
    Expired,
    /// The two ends hold cluster maps of different epochs.
    #[error("other epoch")]
    OtherEpoch,
    /// The map was made from another one than the node holds.
    #[error("map refused")]
    MapRefused,
}

impl RepairItem {
    /// The name it is about.
    pub fn name(&self) -> BlobName {
        match self {
            Self::Blob { name, .. } => *name,
            Self::Locator(put) => put.name,
            Self::Tombstone(tombstone) => tombstone.name,
            Self::Hold(hold) => hold.name,
        }
    }

    /// The time that decides between two of its kind, in Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        match self {
            Self::Blob { put_time_ms, .. } => *put_time_ms,
            Self::Locator(put) => put.put_time_ms,
            Self::Tombstone(tombstone) => tombstone.time_ms,
            Self::Hold(hold) => hold.time_ms,
        }
    }

    /// The day whose digest it is in: days since the Unix epoch.
    pub fn day(&self) -> u32 {
        // Beyond the year 11,000,000 all days are one.
        u32::try_from(self.time_ms() / DAY_MS).unwrap_or(u32::MAX)
    }

    /// What it adds to its day's digest. Put times of one bucket count as the same: copies that differ by no more expire
    /// together, and a deletion between them makes them differ.
    pub fn fingerprint(&self) -> u128 {
        let (kind, time) = match self {
            Self::Blob { put_time_ms, .. } => (0, put_time_ms / BUCKET_MS),
            Self::Locator(put) => (1, put.put_time_ms / BUCKET_MS),
            Self::Tombstone(tombstone) => (2, tombstone.time_ms),
            Self::Hold(hold) => (if hold.placed { 3 } else { 4 }, hold.time_ms),
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[kind]);
        hasher.update(self.name().as_bytes());
        hasher.update(&time.to_le_bytes());
        let mut sum = [0; 16];
        hasher.finalize_xof().fill(&mut sum);
        u128::from_le_bytes(sum)
    }
}

impl DayDigest {
    /// Adds an item of the same day. The order of items does not matter.
    pub fn add(&mut self, item: &RepairItem) {
        self.items += 1;
        self.sum = u128::from_le_bytes(self.sum).wrapping_add(item.fingerprint()).to_le_bytes();
    }
}
