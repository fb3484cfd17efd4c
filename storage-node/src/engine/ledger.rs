//! The ledger: what the engine knows of its segments and buckets as a whole, and the one way to change the index.
//!
//! **Whoever reads an entry, changes it and writes it back holds the ledger** from the read to the write: the writer for a
//! group, others for a moment. So changes never overtake each other, totals are exact, and the horizon can't move while a
//! put is on its way below it. Numbers change here only after the index has them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lazaret_protocol::{BlobName, UploadId};

use super::Counters;
use crate::index::{Dropped, Entry, Index, IndexBatch, IndexError, SegmentState, Totals, UploadOwner};
use crate::record::SegmentAddress;

/// How far a segment is durable now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) address: SegmentAddress,
    pub(crate) synced: u64,
    pub(crate) sealed: bool,
}

/// An entry that changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changed {
    /// As the index has it.
    pub(crate) before: Entry,
    pub(crate) after: Entry,
}

/// Changes that take effect together.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) entries: Vec<(BlobName, Changed)>,
    pub(crate) progress: Vec<Progress>,
    /// Segments that are to be unlinked.
    pub(crate) removed: Vec<SegmentAddress>,
    /// Segments that are gone.
    pub(crate) forgotten: Vec<SegmentAddress>,
    /// Bytes that died.
    pub(crate) dropped: Dropped,
    pub(crate) uploads: Vec<(UploadId, UploadOwner)>,
}

#[derive(Default)]
pub(crate) struct Ledger {
    /// Buckets before this one have expired.
    pub(crate) horizon: u32,
    /// Whether the index is told without its log, see [`Index::load`].
    pub(crate) bulk: bool,
    totals: BTreeMap<u32, Totals>,
    segments: BTreeMap<SegmentAddress, SegmentState>,
}

/// The ledger behind its lock.
#[derive(Clone, Default)]
pub(crate) struct SharedLedger(Arc<Mutex<Ledger>>);

impl SharedLedger {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Mutex::new(ledger)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Ledger> {
        // It changes only after the index did, in steps that can't panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// What `index` says, whatever of it may have expired by `horizon`.
    pub(crate) fn load(index: &dyn Index, horizon: u32) -> Result<Self, IndexError> {
        let segments = index.segments()?.into_iter().collect();
        Ok(Self { horizon, bulk: false, totals: index.totals()?.into_iter().collect(), segments })
    }

    pub(crate) fn segments(&self) -> &BTreeMap<SegmentAddress, SegmentState> {
        &self.segments
    }

    /// Whether what lies in a segment may be relied on.
    pub(crate) fn keeps(&self, address: SegmentAddress) -> bool {
        self.segments.get(&address).is_some_and(|state| !state.removed)
    }

    /// Keeps account of a segment that the index may not know.
    pub(crate) fn know(&mut self, address: SegmentAddress) {
        self.segments.entry(address).or_default();
    }

    /// Segments that are to be unlinked, or have been.
    pub(crate) fn removed(&self) -> Vec<SegmentAddress> {
        self.segments.iter().filter(|(_, state)| state.removed).map(|(&address, _)| address).collect()
    }

    /// Forgets segments that are unlinked for good. The newest one stays known, so that its id is not used again.
    pub(crate) fn forget(
        &mut self,
        index: &dyn Index,
        counters: &Counters,
        gone: &[SegmentAddress],
    ) -> Result<(), IndexError> {
        let newest = self.segments.keys().map(|address| address.id).max();
        let forgotten = gone.iter().copied().filter(|address| Some(address.id) < newest).collect();
        self.apply(index, counters, Changes { forgotten, ..Changes::default() })
    }

    /// What is held in buckets before `bucket`.
    pub(crate) fn before(&self, bucket: u32) -> Totals {
        sum(self.totals.range(..bucket).map(|(_, totals)| totals))
    }

    /// Segments of buckets before `bucket`.
    pub(crate) fn segments_before(&self, bucket: u32) -> Vec<SegmentAddress> {
        self.segments.range(..SegmentAddress { bucket, id: 0 }).map(|(&address, _)| address).collect()
    }

    /// Tells the index of changes, and then takes note of them.
    pub(crate) fn apply(&mut self, index: &dyn Index, counters: &Counters, changes: Changes) -> Result<(), IndexError> {
        let segments = self.changed_segments(&changes);
        let totals = self.changed_totals(&changes.entries);
        let entries: Vec<_> = changes.entries.into_iter().map(|(name, changed)| (name, changed.after)).collect();
        if entries.is_empty() && segments.is_empty() && totals.is_empty() && changes.uploads.is_empty() {
            return Ok(());
        }
        let batch = IndexBatch {
            entries,
            segments: segments.iter().map(|(&address, &state)| (address, state)).collect(),
            totals: totals.iter().map(|(&bucket, &totals)| (bucket, totals)).collect(),
            uploads: changes.uploads,
        };
        if self.bulk {
            index.load(batch)?
        } else {
            index.apply(batch)?
        }
        for (address, state) in segments {
            match state {
                Some(state) => self.segments.insert(address, state),
                None => self.segments.remove(&address),
            };
        }
        self.totals.extend(totals);
        self.totals.retain(|_, totals| *totals != Totals::default());
        self.count(counters);
        Ok(())
    }

    /// Lets the counters say what the ledger does, for those who do not wait for it.
    pub(crate) fn count(&self, counters: &Counters) {
        counters.blobs.set(sum(self.totals.values()).blobs);
        counters.dead_bytes.set(self.segments.values().map(|state| state.dead_bytes).sum());
    }

    /// Corrects how much of a segment is dead, after it was counted.
    pub(crate) fn recount(
        &mut self,
        index: &dyn Index,
        counters: &Counters,
        address: SegmentAddress,
        dead_bytes: u64,
    ) -> Result<(), IndexError> {
        let Some(state) = self.segments.get(&address).filter(|state| state.dead_bytes != dead_bytes) else {
            return Ok(());
        };
        let state = SegmentState { dead_bytes, ..*state };
        index.apply(IndexBatch { segments: vec![(address, Some(state))], ..IndexBatch::default() })?;
        self.segments.insert(address, state);
        self.count(counters);
        Ok(())
    }

    fn changed_segments(&self, changes: &Changes) -> BTreeMap<SegmentAddress, Option<SegmentState>> {
        let mut changed = BTreeMap::new();
        let mut change = |address: SegmentAddress, known: bool, how: &dyn Fn(&mut SegmentState)| {
            let held = self.segments.get(&address).copied();
            if known && held.is_none() && !changed.contains_key(&address) {
                return;
            }
            if let Some(state) = changed.entry(address).or_insert_with(|| Some(held.unwrap_or_default())) {
                how(state);
            }
        };
        for progress in &changes.progress {
            change(progress.address, false, &|state| {
                (state.synced, state.sealed) = (progress.synced, progress.sealed);
            });
        }
        for &(address, bytes) in &changes.dropped {
            // Segments that have expired or were never synced need no account.
            change(address, true, &|state| state.dead_bytes = state.dead_bytes.saturating_add(bytes));
        }
        for &address in &changes.removed {
            change(address, true, &|state| (state.removed, state.sealed) = (true, true));
        }
        changed.extend(changes.forgotten.iter().map(|&address| (address, None)));
        changed
    }

    fn changed_totals(&self, entries: &[(BlobName, Changed)]) -> BTreeMap<u32, Totals> {
        let mut changed: BTreeMap<u32, Totals> = BTreeMap::new();
        // What has expired is counted nowhere any more.
        let counted = |entry: &Entry| entry.counted().filter(|(bucket, _)| *bucket >= self.horizon);
        let held = |bucket| self.totals.get(&bucket).copied().unwrap_or_default();
        for (_, Changed { before, after }) in entries {
            if let Some((bucket, length)) = counted(before) {
                let totals = changed.entry(bucket).or_insert_with(|| held(bucket));
                totals.blobs = totals.blobs.saturating_sub(1);
                totals.bytes = totals.bytes.saturating_sub(length);
            }
            if let Some((bucket, length)) = counted(after) {
                let totals = changed.entry(bucket).or_insert_with(|| held(bucket));
                totals.blobs = totals.blobs.saturating_add(1);
                totals.bytes = totals.bytes.saturating_add(length);
            }
        }
        changed.retain(|&bucket, totals| *totals != held(bucket));
        changed
    }

    /// Moves the horizon to `bucket` and forgets everything before it. The horizon is durable already.
    pub(crate) fn expire(&mut self, index: &dyn Index, counters: &Counters, bucket: u32) -> Result<(), IndexError> {
        debug_assert!(bucket >= self.horizon);
        self.horizon = bucket;
        let totals: Vec<u32> = self.totals.range(..bucket).map(|(&bucket, _)| bucket).collect();
        let segments = self.segments_before(bucket);
        let batch = IndexBatch {
            segments: segments.iter().map(|&address| (address, None)).collect(),
            totals: totals.iter().map(|&bucket| (bucket, Totals::default())).collect(),
            ..IndexBatch::default()
        };
        // In memory even if the index can't be told: what it still says of them is passed over at the next opening.
        self.totals.retain(|&key, _| key >= bucket);
        self.segments.retain(|address, _| address.bucket >= bucket);
        self.count(counters);
        if segments.is_empty() && totals.is_empty() { Ok(()) } else { index.apply(batch) }
    }
}

fn sum<'a>(totals: impl Iterator<Item = &'a Totals>) -> Totals {
    totals.fold(Totals::default(), |sum, totals| Totals {
        blobs: sum.blobs.saturating_add(totals.blobs),
        bytes: sum.bytes.saturating_add(totals.bytes),
    })
}
