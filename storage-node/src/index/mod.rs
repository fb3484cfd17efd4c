//! The index: where the records of a name lie, and how far each segment is known to be durable.
//!
//! It holds nothing that the segments can't rebuild. A batch takes effect as a whole; after a crash the index is some
//! prefix of the batches it was given. It is never told of a record before that record is durable.

pub mod conformance;
mod entry;
mod memory;
mod rocks;

use std::sync::Arc;

pub use entry::{BlobEntry, Change, Dropped, ENTRY_VERSION, Entry, HoldEntry, Layout, LocatorEntry, UploadOwner};
use lazaret_protocol::{BlobName, UploadId};
pub use memory::MemoryIndex;
pub use rocks::RocksIndex;

use crate::record::SegmentAddress;

/// An operation on the index that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("could not {operation} the index {object}: {source}")]
pub struct IndexError {
    /// What was attempted.
    pub operation: &'static str,
    /// Which index.
    pub object: String,
    /// Why it failed.
    pub source: Arc<dyn std::error::Error + Send + Sync>,
    /// The index itself is damaged: opened again, it begins anew and is rebuilt from the segments.
    pub damaged: bool,
}

impl IndexError {
    /// An error of `operation` on `object`.
    pub fn new(
        operation: &'static str,
        object: impl ToString,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { operation, object: object.to_string(), source: Arc::from(source.into()), damaged: false }
    }

    /// The same, of an index that is damaged.
    pub fn damaged(self) -> Self {
        Self { damaged: true, ..self }
    }
}

/// What is known of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SegmentState {
    /// Everything before this offset is durable.
    pub synced: u64,
    /// Nothing is ever written to it again, and nothing behind `synced` counts.
    pub sealed: bool,
    /// Of these bytes, how many nothing refers to any more. An estimate from below, which a scrub sets right.
    pub dead_bytes: u64,
    /// Nothing in it counts: it is to be unlinked, or has been.
    pub removed: bool,
}

/// What is held of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Blobs.
    pub blobs: u64,
    /// Bytes of their content.
    pub bytes: u64,
}

/// Changes that take effect together.
#[derive(Debug, Clone, Default)]
pub struct IndexBatch {
    /// Whole entries, each replacing the one of its name. An empty one removes it.
    pub entries: Vec<(BlobName, Entry)>,
    /// States of segments; `None` forgets the segment.
    pub segments: Vec<(SegmentAddress, Option<SegmentState>)>,
    /// What is held of buckets once the batch has taken effect. Nothing at all removes the bucket.
    pub totals: Vec<(u32, Totals)>,
    /// Whose the pieces of uploads are.
    pub uploads: Vec<(UploadId, UploadOwner)>,
}

/// An index. All of it may block for as long as a read of a disk takes.
pub trait Index: Send + Sync {
    /// What is known of `name`.
    fn get(&self, name: BlobName) -> Result<Option<Entry>, IndexError>;

    /// Makes changes take effect, all or none. It survives the process at once, and the machine after [`Index::flush`].
    fn apply(&self, batch: IndexBatch) -> Result<(), IndexError>;

    /// As [`Index::apply`], but what is loaded may be forgotten as soon as the process dies, latest first, until
    /// [`Index::flush`]. It must be flushed before anything is applied again. For rebuilding from the segments.
    fn load(&self, batch: IndexBatch) -> Result<(), IndexError> {
        self.apply(batch)
    }

    /// All segments it was told of and did not forget, in no particular order.
    fn segments(&self) -> Result<Vec<(SegmentAddress, SegmentState)>, IndexError>;

    /// At most `limit` entries in the order of their names, of names after `after` and not after `until`, where given.
    fn entries(
        &self,
        after: Option<BlobName>,
        until: Option<BlobName>,
        limit: usize,
    ) -> Result<Vec<(BlobName, Entry)>, IndexError>;

    /// What is held, by the bucket with which it expires.
    fn totals(&self) -> Result<Vec<(u32, Totals)>, IndexError>;

    /// Whose the pieces of an upload are.
    fn upload(&self, upload: UploadId) -> Result<Option<UploadOwner>, IndexError>;

    /// From now on buckets before `horizon` have expired: an entry of which [`Entry::live`] leaves nothing may go, now or
    /// later or never. `blobs` says about how many that are.
    fn expire(&self, horizon: u32, blobs: u64) -> Result<(), IndexError>;

    /// Makes durable what was applied or loaded.
    fn flush(&self) -> Result<(), IndexError>;

    /// Lets go of everything: whatever is asked after that fails. Whoever asks already gets an answer first.
    fn close(&self) {}
}
