//! An index in memory. It forgets on a crash what was not flushed, and of that only a suffix, as a write-ahead log does.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lazaret_protocol::{BlobName, UploadId};

use super::{Entry, Index, IndexBatch, IndexError, SegmentState, Totals, UploadOwner};
use crate::disk::{Power, SplitMix};
use crate::record::SegmentAddress;

/// Most batches that a crash may forget. Older ones have reached the disk in any real database; it bounds memory too.
const UNFLUSHED_BATCHES_MAX: usize = 1024;

/// The index. Clones are the same index.
#[derive(Clone, Default)]
pub struct MemoryIndex {
    state: Arc<Mutex<State>>,
    power: Power,
}

#[derive(Default)]
struct State {
    current: Content,
    durable: Content,
    unflushed: VecDeque<IndexBatch>,
}

#[derive(Clone, Default)]
struct Content {
    entries: BTreeMap<BlobName, Entry>,
    segments: BTreeMap<SegmentAddress, SegmentState>,
    totals: BTreeMap<u32, Totals>,
    uploads: HashMap<UploadId, UploadOwner>,
}

impl Content {
    fn apply(&mut self, batch: IndexBatch) {
        for (name, entry) in batch.entries {
            set(&mut self.entries, name, Some(entry).filter(|entry| !entry.is_empty()));
        }
        for (address, state) in batch.segments {
            set(&mut self.segments, address, state);
        }
        for (bucket, totals) in batch.totals {
            set(&mut self.totals, bucket, Some(totals).filter(|totals| *totals != Totals::default()));
        }
        self.uploads.extend(batch.uploads);
    }

    fn expire(&mut self, horizon: u32) {
        self.entries.retain(|_, entry| !entry.clone().live(horizon).0.is_empty());
        self.uploads.retain(|_, owner| owner.bucket >= horizon);
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl MemoryIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same content on `power`: once that is off, nothing works.
    pub fn powered_by(mut self, power: Power) -> Self {
        self.power = power;
        self
    }

    /// The index after a power failure: what was flushed, and as many of the batches after it as `seed` says.
    pub fn crash(&self, seed: u64) -> MemoryIndex {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut survived = state.durable.clone();
        let kept = SplitMix(seed).below(state.unflushed.len() as u64 + 1) as usize;
        state.unflushed.iter().take(kept).for_each(|batch| survived.apply(batch.clone()));
        let state = State { current: survived.clone(), durable: survived, unflushed: VecDeque::new() };
        Self { state: Arc::new(Mutex::new(state)), power: Power::default() }
    }

    fn begin(&self, operation: &'static str) -> Result<MutexGuard<'_, State>, IndexError> {
        if self.power.is_off() {
            return Err(IndexError::new(operation, "in memory", "the power is off"));
        }
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Index for MemoryIndex {
    fn get(&self, name: BlobName) -> Result<Option<Entry>, IndexError> {
        Ok(self.begin("read")?.current.entries.get(&name).cloned())
    }

    fn apply(&self, batch: IndexBatch) -> Result<(), IndexError> {
        let mut state = self.begin("write to")?;
        state.current.apply(batch.clone());
        state.unflushed.push_back(batch);
        if state.unflushed.len() > UNFLUSHED_BATCHES_MAX
            && let Some(oldest) = state.unflushed.pop_front()
        {
            state.durable.apply(oldest);
        }
        Ok(())
    }

    fn segments(&self) -> Result<Vec<(SegmentAddress, SegmentState)>, IndexError> {
        Ok(self.begin("read")?.current.segments.iter().map(|(&address, &state)| (address, state)).collect())
    }

    fn entries(
        &self,
        after: Option<BlobName>,
        until: Option<BlobName>,
        limit: usize,
    ) -> Result<Vec<(BlobName, Entry)>, IndexError> {
        let state = self.begin("read")?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = state.current.entries.range((from, Bound::Unbounded));
        let range = range.take_while(|(name, _)| until.is_none_or(|until| **name <= until));
        Ok(range.take(limit).map(|(&name, entry)| (name, entry.clone())).collect())
    }

    fn totals(&self) -> Result<Vec<(u32, Totals)>, IndexError> {
        Ok(self.begin("read")?.current.totals.iter().map(|(&bucket, &totals)| (bucket, totals)).collect())
    }

    fn upload(&self, upload: UploadId) -> Result<Option<UploadOwner>, IndexError> {
        Ok(self.begin("read")?.current.uploads.get(&upload).copied())
    }

    fn expire(&self, horizon: u32, _: u64) -> Result<(), IndexError> {
        // What a crash brings back of it has expired all the same.
        self.begin("write to")?.current.expire(horizon);
        Ok(())
    }

    fn flush(&self) -> Result<(), IndexError> {
        let mut state = self.begin("flush")?;
        let unflushed = std::mem::take(&mut state.unflushed);
        unflushed.into_iter().for_each(|batch| state.durable.apply(batch));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        super::super::conformance::all(&|| Arc::new(MemoryIndex::new()));
    }

    #[test]
    fn a_crash_forgets_a_suffix_of_what_was_not_flushed() {
        let index = MemoryIndex::new();
        let put = |at: u8| {
            let entry = Entry { killed_until_ms: Some(u64::from(at)), ..Entry::default() };
            index.apply(IndexBatch { entries: vec![(BlobName([at; 32]), entry)], ..IndexBatch::default() }).unwrap();
        };
        (0..3).for_each(put);
        index.flush().unwrap();
        (3..8).for_each(put);
        let mut kept = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let names: Vec<u8> =
                index.crash(seed).entries(None, None, 100).unwrap().into_iter().map(|(name, _)| name.0[0]).collect();
            assert_eq!(names, (0..names.len() as u8).collect::<Vec<_>>(), "seed {seed}");
            kept.insert(names.len());
        }
        assert_eq!(kept.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8]);
    }
}
