//! The byte budget over all samples in memory.
//!
//! Invariant: what is granted at any time is at most the budget. Nobody waits for a grant: who gets none does the work at
//! once on the thread that it has, or spools the content, so that no set of threads can wait for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The least that a sample is charged, so that the budget bounds the number of waiting samples too: a queued sample costs
/// its place in the tables besides its bytes.
pub const CHARGE_BYTES_MIN: u64 = 4096;

/// How many bytes of samples may be in memory at once.
#[derive(Debug)]
pub struct MemoryBudget {
    free_bytes: AtomicU64,
}

impl MemoryBudget {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { free_bytes: AtomicU64::new(bytes) })
    }

    /// What is not granted now.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Permission to hold `bytes`, if there is room.
    pub fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let bytes = bytes.max(CHARGE_BYTES_MIN);
        self.take(bytes).then(|| Reservation { budget: self.clone(), bytes })
    }

    fn take(&self, bytes: u64) -> bool {
        self.free_bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |free| free.checked_sub(bytes)).is_ok()
    }
}

/// Permission to hold so many bytes, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Reservation {
    /// Makes it cover `bytes`. False, and nothing changes, if there is no room.
    pub fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let granted = self.budget.take(more);
        if granted {
            self.bytes += more;
        }
        granted
    }

    /// Gives back what it covers beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        let bytes = bytes.max(CHARGE_BYTES_MIN);
        if let Some(less) = self.bytes.checked_sub(bytes) {
            self.bytes = bytes;
            self.budget.free_bytes.fetch_add(less, Ordering::AcqRel);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.free_bytes.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_grants_more_than_it_has_and_gets_everything_back() {
        let budget = MemoryBudget::new(20_000);
        let mut first = budget.try_reserve(1).unwrap();
        assert_eq!(budget.free_bytes(), 20_000 - CHARGE_BYTES_MIN);
        assert!(first.grow_to(15_000));
        assert!(!first.grow_to(20_001));
        assert!(budget.try_reserve(5_001).is_none());
        let second = budget.try_reserve(5_000).unwrap();
        first.shrink_to(0);
        assert_eq!(budget.free_bytes(), 15_000 - CHARGE_BYTES_MIN);
        drop((first, second));
        assert_eq!(budget.free_bytes(), 20_000);
    }
}
