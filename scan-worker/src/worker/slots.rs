//! How many submissions a worker has under way.
//!
//! Each holds a slot until its scan is over, and no more are leased than there are slots: what waits does so in the queue,
//! where other workers can take it. Other slots are for small files alone, so that these pass when large ones hold all the
//! rest; there are [`SMALL_PER_ANY`] times as many, because most of what a small file takes is waiting for the results'
//! store and for its content. A small file that turns out to be long in the scanning takes one of the others as soon as
//! there is one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many slots there are for small files, for each that is for any file.
const SMALL_PER_ANY: u32 = 4;

/// The right to have one submission under way.
pub(super) struct Slot {
    /// Never absent; neither semaphore is ever closed.
    _permit: Option<OwnedSemaphorePermit>,
    /// The small ones', of whoever has every slot.
    _others: Option<OwnedSemaphorePermit>,
    small: bool,
}

/// By what right a task is under way.
pub(super) enum Place {
    /// It is being scanned, or about to be.
    Slot(Slot),
    /// It waits, for a twin or until nothing else runs; or what was found is being recorded.
    Waiting { _permit: OwnedSemaphorePermit },
    /// It waits like that beyond the number of those that may.
    None,
}

/// A worker's slots.
pub(super) struct Slots {
    any: Arc<Semaphore>,
    small: Arc<Semaphore>,
    any_count: u32,
    small_count: u32,
}

impl Slots {
    /// So many for any file, at least one, and [`SMALL_PER_ANY`] times as many for small ones.
    pub fn new(any: usize) -> Self {
        let any_count = u32::try_from(any.max(1)).unwrap_or(u32::MAX).min(1 << 20);
        let small_count = any_count * SMALL_PER_ANY;
        let slots = |count: u32| Arc::new(Semaphore::new(count as usize));
        Self { any: slots(any_count), small: slots(small_count), any_count, small_count }
    }

    /// Waits until there is a slot, and takes all that there are: those for any file, and those for small ones.
    pub async fn free(&self) -> (Vec<Slot>, Vec<Slot>) {
        let first = tokio::select! {
            biased;
            slot = self.any() => slot,
            permit = self.small.clone().acquire_owned() => Slot { _permit: permit.ok(), _others: None, small: true },
        };
        let all = |slots: &Arc<Semaphore>, small| {
            let permits = std::iter::from_fn(|| slots.clone().try_acquire_owned().ok());
            permits.map(move |permit| Slot { _permit: Some(permit), _others: None, small }).collect::<Vec<_>>()
        };
        let (mut any, mut small) = (all(&self.any, false), all(&self.small, true));
        if first.small {
            small.push(first)
        } else {
            any.push(first)
        }
        (any, small)
    }

    /// Waits for a slot for any file.
    pub async fn any(&self) -> Slot {
        Slot { _permit: self.any.clone().acquire_owned().await.ok(), _others: None, small: false }
    }

    /// Waits for all slots that there are. Whoever asks for one afterwards waits until they are given back.
    pub async fn every(&self) -> Slot {
        let (any, small) = (self.any.clone(), self.small.clone());
        let (any, small) =
            tokio::join!(any.acquire_many_owned(self.any_count), small.acquire_many_owned(self.small_count));
        Slot { _permit: any.ok(), _others: small.ok(), small: false }
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
        u64::from(self.any_count).saturating_sub(self.any.available_permits() as u64)
    }

    /// Waits until all are given back.
    pub async fn all(&self) {
        let _ = tokio::join!(self.any.acquire_many(self.any_count), self.small.acquire_many(self.small_count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_files_have_slots_when_others_hold_all() {
        let slots = Slots::new(2);
        let (large, mut small) = slots.free().await;
        assert_eq!((large.len(), small.len()), (2, 2 * SMALL_PER_ANY as usize));
        assert!(large.iter().all(|slot| !slot.small) && small.iter().all(|slot| slot.small));
        let mut one = small.pop().unwrap();
        slots.prefer_any(&mut one);
        assert!(one.small, "there was none");
        drop(large);
        slots.prefer_any(&mut one);
        assert!(!one.small);
        drop((one, small));
        let every = slots.every().await;
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), slots.free()).await.is_err());
        drop(every);
        slots.all().await;
    }
}
