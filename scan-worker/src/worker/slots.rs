//! How many submissions a worker has under way.
//!
//! Each holds a slot, and no more are leased than there are slots: what waits does so in the queue, where other workers
//! can take it. As many slots again are for small files alone, so that these pass when large ones hold all the others. A
//! small file that turns out to be long in the scanning takes one of the others as soon as there is one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The right to have one submission under way.
pub(super) struct Slot {
    /// Never absent; neither semaphore is ever closed.
    _permit: Option<OwnedSemaphorePermit>,
    /// The small ones', of whoever has every slot.
    _others: Option<OwnedSemaphorePermit>,
    small: bool,
}

impl Slot {
    /// Whether it is for small files alone.
    pub fn is_for_small(&self) -> bool {
        self.small
    }
}

/// A worker's slots.
pub(super) struct Slots {
    any: Arc<Semaphore>,
    small: Arc<Semaphore>,
    each: u32,
}

impl Slots {
    /// So many of either kind, at least one.
    pub fn new(each: usize) -> Self {
        let each = u32::try_from(each.max(1)).unwrap_or(u32::MAX).min(1 << 20);
        let slots = || Arc::new(Semaphore::new(each as usize));
        Self { any: slots(), small: slots(), each }
    }

    /// Waits for a slot of either kind, rather one for any file.
    pub async fn next(&self) -> Slot {
        tokio::select! {
            biased;
            slot = self.any() => slot,
            permit = self.small.clone().acquire_owned() => Slot { _permit: permit.ok(), _others: None, small: true },
        }
    }

    /// Waits for a slot for any file.
    pub async fn any(&self) -> Slot {
        Slot { _permit: self.any.clone().acquire_owned().await.ok(), _others: None, small: false }
    }

    /// Waits for all slots that there are. Whoever asks for one afterwards waits until they are given back.
    pub async fn every(&self) -> Slot {
        let (any, small) = (self.any.clone(), self.small.clone());
        let (any, small) = tokio::join!(any.acquire_many_owned(self.each), small.acquire_many_owned(self.each));
        Slot { _permit: any.ok(), _others: small.ok(), small: false }
    }

    /// Gives back a slot for which there was no work. Returns when there may be some for another kind: when a slot for any
    /// file is free, if this one was not that already.
    pub async fn wait_for_any(&self, unused: Slot) {
        let was_small = unused.small;
        drop(unused);
        if was_small {
            drop(self.any().await);
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Exchanges a small file's slot for one for any file, if there is one.
    pub fn prefer_any(&self, slot: &mut Slot) {
        if slot.small
            && let Ok(permit) = self.any.clone().try_acquire_owned()
        {
            *slot = Slot { _permit: Some(permit), _others: None, small: false };
        }
    }

    /// How many for any file are held.
    pub fn held(&self) -> u64 {
        u64::from(self.each).saturating_sub(self.any.available_permits() as u64)
    }

    /// Waits until all are given back.
    pub async fn all(&self) {
        let _ = tokio::join!(self.any.acquire_many(self.each), self.small.acquire_many(self.each));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_files_have_slots_when_others_hold_all() {
        let slots = Slots::new(2);
        let large = [slots.next().await, slots.next().await];
        assert!(large.iter().all(|slot| !slot.is_for_small()));
        let mut small = slots.next().await;
        assert!(small.is_for_small());
        slots.prefer_any(&mut small);
        assert!(small.is_for_small(), "there was none");
        drop(large);
        slots.prefer_any(&mut small);
        assert!(!small.is_for_small());
        let unused = slots.next().await;
        assert!(!unused.is_for_small());
        drop((small, unused));
        let every = slots.every().await;
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), slots.next()).await.is_err());
        drop(every);
        slots.all().await;
    }
}
