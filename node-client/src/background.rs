//! The copies that go on after a put was acknowledged: how many there are, and how many bytes they hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Counts copies under way and bounds the bytes they hold.
pub(crate) struct Background {
    bytes_max: u64,
    shared: Arc<Shared>,
    abandoned: AtomicU64,
}

struct Shared {
    bytes: AtomicU64,
    /// Copies under way, watched by who waits for them.
    under_way: watch::Sender<u64>,
}

/// A copy under way; dropped when it ended, however it did.
pub(crate) struct UnderWay {
    bytes: u64,
    shared: Arc<Shared>,
}

impl Background {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let shared = Shared { bytes: AtomicU64::new(0), under_way: watch::Sender::new(0) };
        Self { bytes_max, shared: Arc::new(shared), abandoned: AtomicU64::new(0) }
    }

    /// Registers a copy that holds `bytes`, unless the budget is used up; then the `copies` it stands for count as
    /// abandoned.
    pub(crate) fn begin(&self, bytes: u64, copies: usize) -> Option<UnderWay> {
        let fits = |held: u64| held.checked_add(bytes).filter(|&sum| sum <= self.bytes_max);
        if self.shared.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            self.abandoned.fetch_add(copies as u64, Ordering::Relaxed);
            return None;
        }
        self.shared.under_way.send_modify(|count| *count += 1);
        Some(UnderWay { bytes, shared: Arc::clone(&self.shared) })
    }

    /// Copies that were not begun for want of budget.
    pub(crate) fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub(crate) async fn settle(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.shared.under_way.subscribe().wait_for(|&count| count == 0).await;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.shared.under_way.send_modify(|count| *count -= 1);
    }
}
