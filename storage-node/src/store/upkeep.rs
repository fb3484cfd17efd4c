//! What keeps the disks in order: compaction and scrub, disk by disk.

use super::{Store, died};
use crate::engine::{EngineError, Scrubbed};
use crate::record::SegmentAddress;

impl Store {
    /// Compacts one segment of the first disk that has one of which at least `min_dead_share` is dead. Returns the bytes
    /// given back, or `None` if there was no such segment.
    pub async fn compact(&self, min_dead_share: f64) -> Result<Option<u64>, EngineError> {
        for (slot, engine) in self.serving() {
            let compacted = engine.compact(min_dead_share).await;
            if let Some(bytes) = self.noted(slot, &engine, compacted)? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The segments that take no more records, each with the number of its disk. Blocks.
    pub fn sealed_segments(&self) -> Result<Vec<(usize, SegmentAddress)>, EngineError> {
        let mut sealed = Vec::new();
        for (slot, engine) in self.serving() {
            let segments = self.noted(slot, &engine, engine.sealed_segments())?;
            sealed.extend(segments.into_iter().map(|address| (slot, address)));
        }
        Ok(sealed)
    }

    /// Verifies a sealed segment. `pace` is told of bytes before they are read, on the thread that reads them, and may wait.
    /// One that is gone, or lies on a disk out of use, is passed over.
    pub async fn scrub_segment(
        &self,
        disk: usize,
        address: SegmentAddress,
        mut pace: impl FnMut(u64) + Send + 'static,
    ) -> Result<Scrubbed, EngineError> {
        let Some((slot, engine)) = self.serving().find(|(slot, _)| *slot == disk) else {
            return Ok(Scrubbed::default());
        };
        let scrubbing = engine.clone();
        let scrub = move || scrubbing.scrub_segment(address, &mut pace);
        let scrubbed = self.inner.environment.blocking(scrub).await;
        self.noted(slot, &engine, scrubbed.unwrap_or_else(|| Err(died("the scrub"))))
    }
}
