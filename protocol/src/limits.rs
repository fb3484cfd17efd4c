//! The bounds that both ends of the wire and the disk format rely on. Changing one that is marked *format* needs a new
//! format version.

/// Bytes one KiB has.
pub const KIB: u64 = 1024;
/// Bytes one MiB has.
pub const MIB: u64 = 1024 * KIB;

/// Longest contiguous piece of a blob in a segment (*format*).
pub const EXTENT_BYTES_MAX: usize = 4 * MIB as usize;

/// A body up to this length is held by the client until its name is known; a longer one streams to its replicas, and its
/// first so many bytes decide its placement (*format*: it decides where blobs are looked for).
pub const HELD_BYTES_MAX: usize = 4 * MIB as usize;

/// log2 of the BLAKE3 chunks of 1 KiB in one group of the tree: groups are 64 KiB (*format*).
pub const GROUP_CHUNKS_LOG2: u8 = 6;
/// Bytes in one group of the tree.
pub const GROUP_BYTES: usize = 1024 << GROUP_CHUNKS_LOG2;

/// Longest blob: 1 TiB. It bounds the commit record of a streamed blob (one entry an extent) to about 10 MiB.
pub const BLOB_BYTES_MAX: u64 = 1 << 40;

/// Longest encoded message, header or trailer. A cluster map of 1,000 nodes takes about 150 KiB.
pub const MESSAGE_BYTES_MAX: usize = MIB as usize;

/// Longest body frame of a put.
pub const FRAME_BYTES_MAX: usize = MIB as usize;

/// Most names in one `Has` request.
pub const HAS_NAMES_MAX: usize = 4096;

/// Most nodes in one cluster map.
pub const NODES_MAX: usize = 1000;
/// Most weight one node may have: keeps placement arithmetic inside 128 bits.
pub const WEIGHT_MAX: u32 = 1_000_000;
/// Most replicas that can be asked for.
pub const REPLICAS_MAX: u8 = 16;

/// A client's put time may be off from the node's clock by no more than this, in milliseconds.
pub const PUT_TIME_SKEW_MAX_MS: u64 = 5 * 60 * 1000;
/// How long an upload may stay without a commit, in milliseconds, before a node may treat it as garbage.
pub const UPLOAD_LEASE_MAX_MS: u32 = 60 * 60 * 1000;

/// Milliseconds of put time that share a bucket: one hour (*format*).
pub const BUCKET_MS: u64 = 60 * 60 * 1000;
/// Milliseconds of put time that share a repair digest: one day.
pub const DAY_MS: u64 = 24 * BUCKET_MS;

/// Most items in one page of a comparison, and most names in one `Verify`: at most about 120 KiB.
pub const REPAIR_ITEMS_MAX: usize = 1024;
