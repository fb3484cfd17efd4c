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
    /// While something is done in it, if it is for any file.
    _occupied: Option<Arc<()>>,
}

impl Slot {
    fn free(permit: Option<OwnedSemaphorePermit>, small: bool) -> Self {
        Self { _permit: permit, _others: None, small, _occupied: None }
    }
}

/// By what right a task is under way.
pub(super) enum Place {
    /// It is being scanned, or about to be.
    Slot(Slot),
    /// It waits, for a twin or until nothing else runs.
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
    /// One reference for each slot for any file in which something is done, and one here.
    occupied: Arc<()>,
}

impl Slots {
    /// So many for any file, at least one, and [`SMALL_PER_ANY`] times as many for small ones.
    pub fn new(any: usize) -> Self {
        let any_count = u32::try_from(any.max(1)).unwrap_or(u32::MAX).min(1 << 20);
        let small_count = any_count * SMALL_PER_ANY;
        let slots = |count: u32| Arc::new(Semaphore::new(count as usize));
        let occupied = Arc::default();
        Self { any: slots(any_count), small: slots(small_count), any_count, small_count, occupied }
    }

    /// Waits until there is a slot, and takes all that there are: those for any file, and those for small ones.
    pub async fn free(&self) -> (Vec<Slot>, Vec<Slot>) {
        let first = tokio::select! {
            biased;
            permit = self.any.clone().acquire_owned() => Slot::free(permit.ok(), false),
            permit = self.small.clone().acquire_owned() => Slot::free(permit.ok(), true),
        };
        let all = |slots: &Arc<Semaphore>, small| {
            let permits = std::iter::from_fn(|| slots.clone().try_acquire_owned().ok());
            permits.map(move |permit| Slot::free(Some(permit), small)).collect::<Vec<_>>()
        };
        let (mut any, mut small) = (all(&self.any, false), all(&self.small, true));
        if first.small {
            small.push(first)
        } else {
            any.push(first)
        }
        (any, small)
    }

    /// From now on something is done in the slot.
    pub fn occupy(&self, slot: Slot) -> Slot {
        let occupied = (!slot.small).then(|| self.occupied.clone());
        Slot { _occupied: occupied, ..slot }
    }

    /// Waits for a slot for any file, and occupies it.
    pub async fn any(&self) -> Slot {
        self.occupy(Slot::free(self.any.clone().acquire_owned().await.ok(), false))
    }

    /// Waits for all slots that there are, and occupies them as one. Whoever asks for one afterwards waits until they are given back.
    pub async fn every(&self) -> Slot {
        let (any, small) = (self.any.clone(), self.small.clone());
        let (any, small) =
            tokio::join!(any.acquire_many_owned(self.any_count), small.acquire_many_owned(self.small_count));
        self.occupy(Slot { _others: small.ok(), ..Slot::free(any.ok(), false) })
    }

    /// Exchanges a small file's slot for one for any file, if there is one.
    pub fn prefer_any(&self, slot: &mut Slot) {
        if slot.small
            && let Ok(permit) = self.any.clone().try_acquire_owned()
        {
            *slot = self.occupy(Slot::free(Some(permit), false));
        }
    }

    /// In how many for any file something is done. Those that are only held while tasks are asked for don't count.
    pub fn occupied(&self) -> u64 {
        (Arc::strong_count(&self.occupied) as u64).saturating_sub(1)
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
        assert_eq!(slots.occupied(), 0, "nothing is done in them yet");
        let large: Vec<Slot> = large.into_iter().map(|slot| slots.occupy(slot)).collect();
        let mut one = slots.occupy(small.pop().unwrap());
        assert_eq!(slots.occupied(), 2);
        slots.prefer_any(&mut one);
        assert!(one.small, "there was none");
        drop(large);
        slots.prefer_any(&mut one);
        assert!(!one.small && slots.occupied() == 1);
        drop((one, small));
        let every = slots.every().await;
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), slots.free()).await.is_err());
        drop(every);
        slots.all().await;
    }
}
