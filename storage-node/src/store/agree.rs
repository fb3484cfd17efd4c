//! What every disk of a node has to know: the tombstones and holds of all of them.
//!
//! Each disk keeps in a small file with which others it is in agreement. Where a tombstone or a hold is taken while one of
//! them is out of use, that one is struck out before the acknowledgement. So whenever a disk comes back, or a new one
//! comes, the files show whether it may have missed something; only then are the indexes read through.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use lazaret_protocol::BlobName;
use lazaret_protocol::message::Tombstone;

use super::{Store, died};
use crate::engine::{DiskId, Engine, EngineError};
use crate::index::Entry;

/// The small file: ids of disks, one a line.
const FILE: &str = "agreed";
/// Entries looked at in one go, off the async threads.
const PAGE_ENTRIES: usize = 1024;

impl Store {
    /// Tells each disk in use the tombstones and holds of the others, if it may have missed some. To be called after opening
    /// and before anything expires; it is cheap when there is nothing to do.
    pub async fn agree(&self) -> Result<(), EngineError> {
        if self.inner.agreed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let returns = self.inner.returns.load(Ordering::SeqCst);
        let disks: Vec<(usize, Engine)> = self.serving().collect();
        tracing::info!(disks = disks.len(), "bringing the disks into agreement");
        for (from, engine) in &disks {
            self.tell_the_others(*from, engine, &disks).await?;
        }
        let horizon = self.horizon();
        for (number, engine) in disks.iter().filter(|(_, engine)| engine.horizon() < horizon) {
            self.expire_on(*number, engine, horizon).await?;
        }
        let ids = disks.iter().filter_map(|(number, _)| self.inner.slots.get(*number)?.id).collect();
        self.write_agreement(&ids).await?;
        if self.inner.returns.load(Ordering::SeqCst) == returns {
            self.inner.agreed.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    async fn tell_the_others(
        &self,
        from: usize,
        engine: &Engine,
        disks: &[(usize, Engine)],
    ) -> Result<(), EngineError> {
        let mut after = None;
        loop {
            let reader = engine.clone();
            let page = self.inner.environment.blocking(move || page_of(&reader, after)).await;
            let page = self.noted(from, engine, page.unwrap_or_else(|| Err(died("reading the index"))))?;
            let Some(last) = page.last else { return Ok(()) };
            after = Some(last);
            for (name, entry) in page.told {
                for (number, other) in disks.iter().filter(|(number, _)| *number != from) {
                    self.noted(*number, other, tell(other, name, &entry).await)?;
                }
            }
        }
    }

    /// Reads with whom each disk agrees.
    pub(super) fn read_who_agrees(&self) -> Result<(), EngineError> {
        if self.inner.slots.len() == 1 {
            return Ok(());
        }
        let serving: BTreeSet<DiskId> = self.serving_ids();
        let mut common: Option<BTreeSet<DiskId>> = None;
        for (_, engine) in self.serving() {
            let content = engine.disk().read_small(FILE)?.unwrap_or_default();
            let ids = String::from_utf8_lossy(&content).lines().filter_map(|line| line.parse().ok()).collect();
            common = Some(match common {
                Some(common) => common.intersection(&ids).copied().collect(),
                None => ids,
            });
        }
        let common = common.unwrap_or_default();
        let horizons_agree = self.serving().all(|(_, engine)| engine.horizon() == self.horizon());
        self.inner.agreed.store(common.is_superset(&serving) && horizons_agree, Ordering::SeqCst);
        *self.agreement() = common;
        Ok(())
    }

    /// Strikes out the disks that are out of use. Nothing is written if they are already.
    pub(super) async fn write_down_who_agrees(&self) -> Result<(), EngineError> {
        let serving = self.serving_ids();
        let agreeing: BTreeSet<DiskId> = {
            let agreement = self.agreement();
            if agreement.is_subset(&serving) {
                return Ok(());
            }
            agreement.intersection(&serving).copied().collect()
        };
        self.write_agreement(&agreeing).await
    }

    pub(super) async fn write_agreement(&self, agreeing: &BTreeSet<DiskId>) -> Result<(), EngineError> {
        let text: String = agreeing.iter().map(|id| format!("{id}\n")).collect();
        for (number, engine) in self.serving() {
            let (disk, text) = (engine.disk().clone(), text.clone());
            let written = self.inner.environment.blocking(move || disk.write_small(FILE, text.as_bytes())).await;
            let written = written.unwrap_or_else(|| Err(crate::disk::DiskError::new("write", FILE, panicked())));
            self.noted(number, &engine, written.map_err(EngineError::from))?;
        }
        self.agreement().clone_from(agreeing);
        Ok(())
    }

    fn serving_ids(&self) -> BTreeSet<DiskId> {
        self.serving().map(|(_, engine)| engine.disk_id()).collect()
    }
}

fn panicked() -> std::io::Error {
    std::io::Error::other("it panicked")
}

struct Page {
    /// The last name looked at; `None` at the end.
    last: Option<BlobName>,
    /// Entries of which other disks must know.
    told: Vec<(BlobName, Entry)>,
}

fn page_of(engine: &Engine, after: Option<BlobName>) -> Result<Page, EngineError> {
    let entries = engine.entries(after, None, PAGE_ENTRIES)?;
    let last = entries.last().map(|(name, _)| *name);
    let told = entries.into_iter().filter(|(_, entry)| entry.killed_until_ms.is_some() || entry.hold.is_some());
    Ok(Page { last, told: told.collect() })
}

/// Tells a disk a tombstone and a hold, as far as it does not know them.
async fn tell(engine: &Engine, name: BlobName, entry: &Entry) -> Result<(), EngineError> {
    let known = engine.entry(name)?.unwrap_or_default();
    if let Some(time_ms) = entry.killed_until_ms.filter(|time_ms| known.killed_until_ms < Some(*time_ms)) {
        match engine.delete(Tombstone { name, time_ms }).await {
            // Then all that it kills has expired there as well.
            Ok(()) | Err(EngineError::Expired { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(hold) = entry.hold
        && known.hold.is_none_or(|known| !known.covers(&hold.told(name)))
    {
        engine.hold(hold.told(name)).await?;
    }
    Ok(())
}
