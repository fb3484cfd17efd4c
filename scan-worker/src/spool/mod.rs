//! Where nested files that are too long for memory are while they are scanned: in a file without a name on the worker's own
//! disk, one a tree, written once and read by ranges.
//!
//! Invariants:
//! - No plaintext reaches the disk: every block is encrypted under a key that is made with the file, is nowhere but in this
//!   process's memory, and is gone with it (see [`file`]).
//! - What is read is what was written, or an error. A file of which something could not be read has a fault for good.
//! - What lies on the disk is bounded, over all trees: by a setting, and by half of what would be free without the spool. One
//!   tree leaves room for others.
//! - Nothing is left behind, however the process ends: the file has no name, so the kernel takes it back with the last handle.
//!
//! Not here: what becomes of a file that doesn't fit. No scan waits for room, since those that hold it may wait for the same
//! threads.

mod file;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use self::file::TreeFile;
pub use self::file::{SpoolWriter, Spooled};

/// How many times what is left over a tree may hold. Whoever is alone may have eight ninths of the room, and whoever comes
/// then finds the rest: so one hostile archive does not decide what becomes of everybody else's long files.
const SHARE_FACTOR: u64 = 8;

/// Where the spool lies, and how large it may get.
#[derive(Debug, Clone)]
pub struct SpoolOptions {
    /// The folder in which files are made. Only for a moment, and only where the file system can't do without, does one
    /// have a name.
    pub folder: PathBuf,
    /// The most bytes that lie there at once, over all trees.
    pub bytes_max: u64,
}

/// Why a file could not be put into the spool or read from it.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// There is no room: by the setting, by what is free on the file system, or beside what others hold.
    #[error(
        "it is too long for memory, and the spool for such files has no room for more of it, {limit_bytes} bytes being the most that may lie there"
    )]
    Full {
        /// How much might lie there at that moment.
        limit_bytes: u64,
    },
    /// No file could be made.
    #[error("cannot make the spool's file in {} (spool_dir): {source}", folder.display())]
    Open {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written or read, or its file system not be asked.
    #[error("cannot {operation} the spool's file: {source}")]
    Io {
        /// What was done.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// What was read is not what was written.
    #[error("the spool's file is damaged: the {length} bytes from {offset} on are not what was written there")]
    Damaged {
        /// Where in the nested file.
        offset: u64,
        /// Of how many bytes.
        length: usize,
    },
    /// The cryptographic library refused, which it does without a reason.
    #[error("the spool's blocks cannot be encrypted")]
    Cipher,
}

impl SpoolError {
    /// Whether it is for want of room.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self {
            Self::Full { .. } => true,
            Self::Open { source, .. } | Self::Io { source, .. } => {
                matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
            }
            Self::Damaged { .. } | Self::Cipher => false,
        }
    }
}

/// The spool of one worker.
#[derive(Debug)]
pub struct Spool {
    options: SpoolOptions,
    /// What is given out. Never locked while anything is read or written.
    used_bytes: Mutex<u64>,
    /// The most that might be given out when somebody last asked.
    limit_bytes: AtomicU64,
    spooled_bytes: AtomicU64,
    refused: AtomicU64,
}

impl Spool {
    /// Makes sure that files can be made in the folder. None is there before it is needed.
    pub fn open(options: SpoolOptions) -> Result<Arc<Self>, SpoolError> {
        file::nameless(&options.folder)?;
        let (used_bytes, limit_bytes) = (Mutex::default(), AtomicU64::new(options.bytes_max));
        let (spooled_bytes, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Arc::new(Self { options, used_bytes, limit_bytes, spooled_bytes, refused }))
    }

    /// What lies there now, in bytes.
    pub fn used_bytes(&self) -> u64 {
        *self.used()
    }

    /// All bytes that were ever written there.
    pub fn spooled_bytes(&self) -> u64 {
        self.spooled_bytes.load(Ordering::Relaxed)
    }

    /// How many files found no room.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether more than half of the room is used: then it is better to scan what was spooled than to spool more.
    pub fn is_crowded(&self) -> bool {
        self.used_bytes() > self.limit_bytes.load(Ordering::Relaxed) / 2
    }

    /// Counts a file that found no room.
    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn used(&self) -> MutexGuard<'_, u64> {
        // A number is whole even if somebody panicked beside it.
        self.used_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a tree so many bytes more, where `free_bytes` are free on the file system.
    fn take(&self, tree_bytes: &AtomicU64, bytes: u64, free_bytes: u64) -> Result<(), SpoolError> {
        let mut used = self.used();
        let limit_bytes = self.options.bytes_max.min(free_bytes.saturating_add(*used) / 2);
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
        let after = used.saturating_add(bytes);
        let tree_after = tree_bytes.load(Ordering::Relaxed).saturating_add(bytes);
        let fits = |left: u64| tree_after <= left.saturating_mul(SHARE_FACTOR);
        if !limit_bytes.checked_sub(after).is_some_and(fits) {
            return Err(SpoolError::Full { limit_bytes });
        }
        *used = after;
        tree_bytes.store(tree_after, Ordering::Relaxed);
        Ok(())
    }

    /// Takes back so many bytes of a tree.
    fn give_back(&self, tree_bytes: &AtomicU64, bytes: u64) {
        let mut used = self.used();
        debug_assert!(*used >= bytes && tree_bytes.load(Ordering::Relaxed) >= bytes, "more than was taken");
        *used = used.saturating_sub(bytes);
        tree_bytes.store(tree_bytes.load(Ordering::Relaxed).saturating_sub(bytes), Ordering::Relaxed);
    }
}

/// The spool of one tree. Its file is made when something is first to go there.
#[derive(Debug)]
pub struct TreeSpool {
    spool: Arc<Spool>,
    file: OnceLock<Arc<TreeFile>>,
}

impl TreeSpool {
    /// A tree's part of a worker's spool.
    pub fn new(spool: Arc<Spool>) -> Self {
        Self { spool, file: OnceLock::new() }
    }

    /// The worker's whole spool.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Begins a file.
    pub fn writer(&self) -> Result<SpoolWriter, SpoolError> {
        if let Some(file) = self.file.get() {
            return Ok(SpoolWriter::new(file.clone()));
        }
        // Two threads may make one each; the other one's goes, unused.
        let made = TreeFile::new(self.spool.clone())?;
        Ok(SpoolWriter::new(self.file.get_or_init(|| made).clone()))
    }
}
