//! What the engine counts about itself since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that any thread may read and change.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, less: u64) {
        let before = self.0.fetch_sub(less, Ordering::Relaxed);
        debug_assert!(before >= less, "{less} are taken away from {before}");
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the number and returns what it was.
    pub(crate) fn set(&self, value: u64) -> u64 {
        self.0.swap(value, Ordering::Relaxed)
    }
}

/// The numbers behind [`lazaret_protocol::message::NodeStatus`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) blobs: Counter,
    pub(crate) segments: Counter,
    pub(crate) segment_bytes: Counter,
    /// Of these, bytes to which nothing refers any more.
    pub(crate) dead_bytes: Counter,
    pub(crate) puts: Counter,
    pub(crate) gets: Counter,
    pub(crate) corrupt_reads: Counter,
    pub(crate) syncs: Counter,
    pub(crate) recovered_records: Counter,
    /// Bytes of segments that were read when the engine opened.
    pub(crate) recovery_bytes: Counter,
    /// 1 while writes are refused for want of space.
    pub(crate) full: Counter,
}
