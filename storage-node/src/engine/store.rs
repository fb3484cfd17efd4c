//! What the engine, its writer and its readers share, and the unlinking of segments.
//!
//! **No segment is unlinked under a reader.** Each reader holds the generation in which it began. Segments that go begin a
//! new one, and wait until every reader of the old ones is gone. A segment goes only after the index has ceased to point
//! into it, so that whoever begins later does not need it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lazaret_protocol::{BlobName, UploadId};

use super::ledger::{Changed, Changes, Ledger, SharedLedger};
use super::{Counters, EngineError};
use crate::disk::Disk;
use crate::index::{BlobEntry, Entry, Index, Layout};
use crate::record::SegmentAddress;

/// What the engine, its writer and its readers share.
pub(crate) struct Store {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) index: Arc<dyn Index>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) ledger: SharedLedger,
    pub(crate) removals: Removals,
    /// The ledger's horizon, for reads, which do not wait for the ledger. It only grows.
    horizon: AtomicU32,
    /// Uploads, and moves of them, whose pieces the index may come to point to.
    under_way: Mutex<HashMap<UploadId, usize>>,
}

/// An upload, or a move of one, that is under way for as long as this lives.
pub(crate) struct UnderWay {
    store: Arc<Store>,
    upload: UploadId,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = self.store.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = under_way.get_mut(&self.upload) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.upload);
            }
        }
    }
}

/// Keeps the segments that were there when it was taken.
#[derive(Clone, Default)]
pub(crate) struct Generation(Arc<()>);

impl Generation {
    fn is_over(&self) -> bool {
        // One is the waiting list's own. Nobody takes an old generation, so others only become fewer.
        Arc::strong_count(&self.0) == 1
    }
}

/// Segments that wait for readers to go.
#[derive(Default)]
pub(crate) struct Removals(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    current: Generation,
    /// Oldest first.
    segments: VecDeque<(Generation, Vec<SegmentAddress>)>,
}

impl Removals {
    /// Keeps every segment that the index may point into from now on.
    pub(crate) fn enter(&self) -> Generation {
        self.waiting().current.clone()
    }

    fn add(&self, segments: Vec<SegmentAddress>) {
        let mut waiting = self.waiting();
        let over = std::mem::take(&mut waiting.current);
        waiting.segments.push_back((over, segments));
    }

    fn take_ready(&self) -> Vec<SegmentAddress> {
        let mut waiting = self.waiting();
        let mut ready = Vec::new();
        while waiting.segments.front().is_some_and(|(generation, _)| generation.is_over())
            && let Some((_, segments)) = waiting.segments.pop_front()
        {
            ready.extend(segments);
        }
        // A segment that was compacted may have expired meanwhile.
        ready.sort_unstable();
        ready.dedup();
        ready
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    pub(crate) fn new(disk: Arc<dyn Disk>, index: Arc<dyn Index>, counters: Arc<Counters>, ledger: Ledger) -> Self {
        ledger.count(&counters);
        let horizon = AtomicU32::new(ledger.horizon);
        let ledger = SharedLedger::new(ledger);
        Self { disk, index, counters, ledger, removals: Removals::default(), horizon, under_way: Mutex::default() }
    }

    /// Counts an upload as under way. Its pieces are not taken for garbage meanwhile.
    pub(crate) fn begin(self: &Arc<Self>, upload: UploadId) -> Arc<UnderWay> {
        *self.under_way.lock().unwrap_or_else(PoisonError::into_inner).entry(upload).or_default() += 1;
        Arc::new(UnderWay { store: Arc::clone(self), upload })
    }

    pub(crate) fn is_under_way(&self, upload: UploadId) -> bool {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&upload)
    }

    /// The bucket before which everything has expired.
    pub(crate) fn horizon(&self) -> u32 {
        self.horizon.load(Ordering::Acquire)
    }

    /// Expires the buckets before `bucket` in ledger, index and reads. That they have is durable already.
    pub(crate) fn expire(&self, ledger: &mut Ledger, bucket: u32) -> Result<(), EngineError> {
        self.horizon.fetch_max(bucket, Ordering::AcqRel);
        Ok(ledger.expire(&*self.index, &self.counters, bucket)?)
    }

    /// What is known of a name and has not expired.
    pub(crate) fn entry(&self, name: BlobName) -> Result<Option<Entry>, EngineError> {
        let entry = self.index.get(name)?.map(|entry| entry.live(self.horizon()).0);
        Ok(entry.filter(|entry| !entry.is_empty()))
    }

    /// Unlinks `segments`, to which the index points no more, now or when the readers that may be in them are gone.
    pub(crate) fn remove(&self, segments: Vec<SegmentAddress>) {
        if !segments.is_empty() {
            self.removals.add(segments);
        }
        self.remove_ready();
    }

    /// Unlinks what waited for readers that are gone. What can't be unlinked is tried again by the next expiry, or when the
    /// node opens again.
    pub(crate) fn remove_ready(&self) {
        let ready = self.removals.take_ready();
        if ready.is_empty() {
            return;
        }
        let lengths: Vec<u64> = ready.iter().filter_map(|&address| self.disk.length(address).ok()).collect();
        if let Err(error) = self.disk.remove_segments(&ready) {
            tracing::error!(%error, "segments could not be removed");
            return;
        }
        self.counters.segments.subtract(lengths.len() as u64);
        self.counters.segment_bytes.subtract(lengths.iter().sum());
        if let Err(error) = self.ledger.lock().forget(&*self.index, &self.counters, &ready) {
            tracing::error!(%error, "the index was not told of removed segments");
        }
    }

    /// Notes that the copy of a blob that lies so is damaged. One that has been replaced meanwhile is none of ours.
    pub(crate) fn mark_damaged(&self, name: BlobName, layout: &Layout) -> Result<bool, EngineError> {
        let mut ledger = self.ledger.lock();
        let before = self.index.get(name)?.unwrap_or_default();
        let mut after = before.clone();
        match &mut after.blob {
            Some(blob) if !blob.damaged && blob.layout == *layout => blob.damaged = true,
            _ => return Ok(false),
        }
        let dropped = before.blob.as_ref().map(BlobEntry::bytes).unwrap_or_default();
        let changes = Changes { entries: vec![(name, Changed { before, after })], dropped, ..Changes::default() };
        ledger.apply(&*self.index, &self.counters, changes)?;
        Ok(true)
    }
}
