//! The disk under an engine: append-only segments and a few small files, with nothing hidden about what is durable.
//!
//! What is written is durable only after [`SegmentFile::sync`]; what [`Disk::create_segment`] and
//! [`Disk::write_small`] did is durable when they return. Reads see what was written, synced or not. All of it blocks.

mod ahead;
mod fs;
mod recent;
mod segment;
mod sim;

use std::io::{self, IoSlice};
use std::sync::Arc;

pub(crate) use ahead::Ahead;
pub use fs::FsDisk;
pub use sim::{Power, SimDisk, SplitMix};

use crate::record::SegmentAddress;

/// An operation on a disk that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("could not {operation} {object}: {source}")]
pub struct DiskError {
    /// What was attempted.
    pub operation: &'static str,
    /// On what.
    pub object: String,
    /// Why it failed. Shared, since every write of a group fails for the same reason.
    pub source: Arc<io::Error>,
}

impl DiskError {
    /// An error of `operation` on `object`.
    pub fn new(operation: &'static str, object: impl ToString, source: io::Error) -> Self {
        Self { operation, object: object.to_string(), source: Arc::new(source) }
    }

    /// Whether the device could not read or write the place. Elsewhere it may still work.
    pub fn is_unreadable(&self) -> bool {
        // EIO has no kind of its own.
        self.source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
    }

    /// Whether there was no space left.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// A disk's space in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free for us.
    pub free_bytes: u64,
    /// In all.
    pub total_bytes: u64,
}

/// One disk, taken by one engine.
pub trait Disk: Send + Sync {
    /// Where it is, for people.
    fn place(&self) -> String;

    /// Creates a segment, which must not exist, and makes its directory entry durable.
    fn create_segment(&self, address: SegmentAddress) -> Result<Box<dyn SegmentFile>, DiskError>;

    /// Opens a segment that is there, to write more of it.
    fn open_segment(&self, address: SegmentAddress) -> Result<Box<dyn SegmentFile>, DiskError>;

    /// Reads into `bytes` from `offset` on; returns how many there were, fewer only at the segment's end.
    fn read_at(&self, address: SegmentAddress, offset: u64, bytes: &mut [u8]) -> Result<usize, DiskError>;

    /// Says that this part of a segment is going to be read next. It may help and changes nothing.
    fn read_ahead(&self, _address: SegmentAddress, _offset: u64, _length: u64) {}

    /// A segment's length in bytes.
    fn length(&self, address: SegmentAddress) -> Result<u64, DiskError>;

    /// Unlinks segments, some of which may be gone already. Until it returns any of them may come back after a crash.
    fn remove_segments(&self, addresses: &[SegmentAddress]) -> Result<(), DiskError>;

    /// All segments, in no particular order.
    fn segments(&self) -> Result<Vec<SegmentAddress>, DiskError>;

    /// The content of a small file, if there is one of that name.
    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError>;

    /// Replaces a small file: after a crash it has either its old or its new content.
    fn write_small(&self, name: &str, content: &[u8]) -> Result<(), DiskError>;

    /// The disk's space.
    fn space(&self) -> Result<Space, DiskError>;
}

/// A segment open for writing. Whoever holds it sees every error of its syncs.
pub trait SegmentFile: Send {
    /// Writes all of `pieces`, one after the other, from `offset` on.
    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), DiskError>;

    /// Makes durable what was written. After a failure nobody knows what of it is: it must not be tried again.
    fn sync(&mut self) -> Result<(), DiskError>;
}
