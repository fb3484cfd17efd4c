//! The budget of uploads in flight: how many, and how much memory they may take together.
//!
//! **Invariant.** A place is taken before the first byte of a body is read and given back when the upload ends, however
//! it ends. Nobody waits for a place: a client that is told to come back later holds no memory here.

use std::sync::Arc;

use lazaret_protocol::limits::{HELD_BYTES_MAX, KIB, MIB};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one upload may hold beyond the bytes kept for placement: pieces on their way to replicas and to the digests.
pub(crate) const WINDOW_BYTES: u64 = 4 * MIB;

/// The budget, shared by all uploads.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    uploads: Arc<Semaphore>,
    /// One permit a KiB, since an acquisition counts in 32 bits.
    memory: Arc<Semaphore>,
    memory_kib: u32,
}

/// A place in the budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    _upload: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

impl Admission {
    pub(crate) fn new(bytes_max: u64, uploads_max: usize) -> Self {
        // A budget below one upload's need would refuse large files for ever: an upload is charged the whole budget at
        // most, and then goes alone.
        let memory_kib = u32::try_from(bytes_max.div_ceil(KIB)).unwrap_or(u32::MAX).max(1);
        let permits = usize::try_from(memory_kib).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            uploads: Arc::new(Semaphore::new(uploads_max.clamp(1, Semaphore::MAX_PERMITS))),
            memory: Arc::new(Semaphore::new(permits)),
            memory_kib,
        }
    }

    /// A place for a body of `declared_bytes`, or none when the budget is spent.
    pub(crate) fn admit(&self, declared_bytes: u64) -> Option<Place> {
        let held = declared_bytes.min(HELD_BYTES_MAX as u64 + WINDOW_BYTES).max(1);
        let permits = u32::try_from(held.div_ceil(KIB)).unwrap_or(u32::MAX).min(self.memory_kib);
        let upload = Arc::clone(&self.uploads).try_acquire_owned().ok()?;
        let memory = Arc::clone(&self.memory).try_acquire_many_owned(permits).ok()?;
        Some(Place { _upload: upload, _memory: memory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_count_are_both_bounded_and_given_back() {
        let admission = Admission::new(10 * KIB, 3);
        let big = admission.admit(8 * KIB).unwrap();
        assert!(admission.admit(4 * KIB).is_none(), "8 + 4 KiB do not fit in 10");
        let small = admission.admit(1).unwrap();
        let other = admission.admit(1).unwrap();
        assert!(admission.admit(1).is_none(), "three uploads are the bound");
        drop((small, other, big));
        assert!(admission.admit(10 * KIB).is_some());
    }

    #[test]
    fn a_large_body_is_charged_its_window_and_goes_alone_in_a_small_budget() {
        let admission = Admission::new(64 * MIB, 100);
        let places: Vec<_> = std::iter::from_fn(|| admission.admit(1 << 40)).collect();
        assert_eq!(places.len(), 8, "4 MiB held and 4 MiB window each");
        let tiny = Admission::new(1, 100);
        let alone = tiny.admit(1 << 40).unwrap();
        assert!(tiny.admit(1).is_none());
        drop(alone);
        assert!(tiny.admit(1).is_some());
    }
}
