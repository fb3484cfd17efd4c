//! Compaction: gives back the space of a segment much of which is dead, by moving what is alive and unlinking the rest.
//!
//! It goes through the segment record by record, asks what each stands for, and moves what stands through the writer,
//! which decides whether the copy counts. A record that was overtaken is asked about again. Only when nothing in the
//! segment stands for anything does the index, durably, count it as removed; then it is unlinked, and not under a reader.
//! Interrupted at any point it leaves copies that count and originals that do not, or the other way round.
//!
//! Copies that are known to be damaged are not moved. Their names stay known as damaged here, but only to the index. So do
//! those of copies that lie where no record can be made out: the index is searched for them before the segment goes.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use lazaret_protocol::limits::MIB;
use lazaret_protocol::{BlobName, UploadId};

use super::ledger::Changes;
use super::standing::{LastOwner, Standing};
use super::{Engine, EngineError, Shared};
use crate::index::Layout;
use crate::record::{Location, Marker, RecordHeader, RecordKind, SegmentAddress, bucket_of};
use crate::scan::{Scan, Step, find_marker};
use crate::writer::{Meaning, Moved, Written};

/// Most bytes of copies under way at once: they share the writer's groups, and leave its queue to others.
const BATCH_BYTES_MAX: u64 = 4 * MIB;
/// Most records looked at in one go on a thread that blocks.
const BATCH_RECORDS_MAX: usize = 1024;
/// How often a record that is overtaken by changes is asked about again before the segment is left for another time.
const TRIES_MAX: usize = 8;

/// A sealed segment and how much of it is dead.
struct Candidate {
    address: SegmentAddress,
    length: u64,
    dead_share: f64,
}

/// A record that stands for something, and what it stands for.
struct Found {
    at: Location,
    header: RecordHeader,
    standing: Standing,
}

/// A part of the walk over a segment.
struct Batch {
    found: Vec<Found>,
    /// Places where no record can be made out.
    gaps: Vec<Range<u64>>,
    /// Where to go on, if this was not the end.
    next: Option<u64>,
}

impl Engine {
    /// The segments that take no more records, in the order of their addresses. Waits for the writer's group.
    pub fn sealed_segments(&self) -> Result<Vec<SegmentAddress>, EngineError> {
        let ledger = self.shared.store.ledger.lock();
        let sealed = ledger.segments().iter().filter(|(_, state)| state.sealed && !state.removed);
        Ok(sealed.map(|(&address, _)| address).collect())
    }

    /// Compacts the sealed segment of which the greatest share is dead, if that is at least `min_dead_share`. Returns the
    /// bytes given back, or `None` if there was no such segment. Goes through the writer's queue; reads and index work run
    /// where they block nobody. One at a time: a second call waits for the first.
    pub async fn compact(&self, min_dead_share: f64) -> Result<Option<u64>, EngineError> {
        let shared = &self.shared;
        let _one_at_a_time = shared.compacting.lock().await;
        let candidates = shared.blocking("choosing a segment", move |shared| shared.candidates(min_dead_share)).await?;
        for candidate in candidates {
            // Taken before anything is read, so that an expiry meanwhile unlinks nothing under this.
            let generation = shared.store.removals.enter();
            let copied = shared.move_live(candidate.address).await?;
            drop(generation);
            let Some(copied) = copied else { continue };
            let address = candidate.address;
            shared.blocking("removing a segment", move |shared| shared.remove_compacted(address)).await?;
            let reclaimed = candidate.length.saturating_sub(copied);
            tracing::info!(segment = %address, reclaimed, copied, "segment compacted");
            return Ok(Some(reclaimed));
        }
        Ok(None)
    }
}

impl Shared {
    /// Sealed segments with at least that share of dead bytes, the deadest first.
    fn candidates(&self, min_dead_share: f64) -> Result<Vec<Candidate>, EngineError> {
        let sealed: Vec<_> = {
            let ledger = self.store.ledger.lock();
            let sealed = ledger.segments().iter().filter(|(_, state)| state.sealed && !state.removed);
            sealed.map(|(&address, &state)| (address, state)).collect()
        };
        let mut candidates = Vec::new();
        for (address, state) in sealed {
            // A segment that is gone is damage, and no space.
            let Ok(length) = self.store.disk.length(address) else { continue };
            let dead = state.dead_bytes.saturating_add(length.saturating_sub(state.synced)).min(length);
            let dead_share = dead as f64 / length.max(1) as f64;
            if dead > 0 && dead_share >= min_dead_share {
                candidates.push(Candidate { address, length, dead_share });
            }
        }
        candidates.sort_by(|a, b| b.dead_share.total_cmp(&a.dead_share));
        Ok(candidates)
    }

    /// Moves everything that stands in a segment. Returns the bytes of the copies, or `None` if something in it can't be
    /// moved now.
    async fn move_live(self: &Arc<Self>, address: SegmentAddress) -> Result<Option<u64>, EngineError> {
        let find = move |shared: &Shared| Ok(find_marker(&*shared.store.disk, address)?);
        let Some(marker) = self.blocking("a read of the disk", find).await? else { return Ok(None) };
        let (mut next, mut copied, mut done, mut gaps) = (Some(0), 0_u64, HashSet::new(), Vec::new());
        while let Some(from) = next {
            let batch = self
                .blocking("looking for what is alive", move |shared| shared.find_live(address, marker, from))
                .await?;
            next = batch.next;
            gaps.extend(batch.gaps);
            let Some(bytes) = self.move_batch(batch.found, &mut done).await? else { return Ok(None) };
            copied += bytes;
        }
        if !gaps.is_empty() {
            let note = move |shared: &Shared| shared.store.mark_damaged_in(address, &gaps);
            let names = self.blocking("noting damage", note).await?;
            self.store.counters.corrupt_reads.add(1);
            tracing::error!(segment = %address, blobs = names.len(), "damage was found while a segment was compacted");
        }
        Ok(Some(copied))
    }

    fn find_live(&self, address: SegmentAddress, marker: Marker, from: u64) -> Result<Batch, EngineError> {
        let synced = self.store.ledger.lock().segments().get(&address).map_or(0, |state| state.synced);
        let mut scan = Scan::new(Arc::clone(&self.store.disk), address, marker, from)?;
        let (mut found, mut gaps, mut last) = (Vec::new(), Vec::new(), LastOwner::default());
        let mut bytes = 0;
        for _ in 0..BATCH_RECORDS_MAX {
            let (offset, header) = match scan.next()? {
                Some(Step::Record { offset, header }) if offset < synced => (offset, header),
                Some(Step::Gap { offset }) if offset < synced => {
                    gaps.push(offset..scan.offset().min(synced));
                    continue;
                }
                // What lies behind that counts for nothing, readable or not.
                _ => return Ok(Batch { found, gaps, next: None }),
            };
            let at = Location { segment: address, offset };
            let standing = self.store.standing(at, &header, &mut last)?;
            if !matches!(standing, Standing::Dead) {
                bytes += header.record_bytes();
                found.push(Found { at, header, standing });
            }
            if bytes >= BATCH_BYTES_MAX {
                break;
            }
        }
        Ok(Batch { found, gaps, next: Some(scan.offset()) })
    }

    /// Moves what was found; `None` if something of it can't be moved now. `done` are uploads all of whose pieces here were.
    async fn move_batch(
        self: &Arc<Self>,
        found: Vec<Found>,
        done: &mut HashSet<UploadId>,
    ) -> Result<Option<u64>, EngineError> {
        let mut bytes = 0_u64;
        let mut waiting = Vec::new();
        let mut again = Vec::new();
        for Found { at, header, standing } in found {
            match standing {
                Standing::Dead => {}
                Standing::UnderWay => return Ok(None),
                Standing::Blob { blob, .. } if matches!(blob.layout, Layout::Streamed { .. }) => {
                    again.push((at, header));
                }
                standing => match self.send_move(at, &header, standing).await? {
                    Some(reply) => waiting.push((at, header, reply)),
                    None => again.push((at, header)),
                },
            }
        }
        for (at, header, reply) in waiting {
            match reply.await.unwrap_or(Err(EngineError::Closed))? {
                Written::At(_) => bytes += header.record_bytes(),
                _ => again.push((at, header)),
            }
        }
        for (at, header) in again {
            let Some(moved) = self.move_one(at, &header, done).await? else { return Ok(None) };
            bytes += moved;
        }
        Ok(Some(bytes))
    }

    /// Moves what a record stands for, however often that changes meanwhile; `None` if it can't be moved now.
    async fn move_one(
        self: &Arc<Self>,
        at: Location,
        header: &RecordHeader,
        done: &mut HashSet<UploadId>,
    ) -> Result<Option<u64>, EngineError> {
        let piece = matches!(header.kind, RecordKind::Extent | RecordKind::Tree).then(|| header.subject.upload());
        if piece.is_some_and(|upload| done.contains(&upload)) {
            return Ok(Some(0));
        }
        for _ in 0..TRIES_MAX {
            let asked = header.clone();
            let ask = move |shared: &Shared| shared.store.standing(at, &asked, &mut LastOwner::default());
            match self.blocking("a read of the index", ask).await? {
                Standing::Dead => return Ok(Some(0)),
                Standing::UnderWay => return Ok(None),
                Standing::Blob { name, blob } if matches!(blob.layout, Layout::Streamed { .. }) => {
                    let bucket = self.bucket_for(name, blob.put_time_ms, at.segment.bucket).await?;
                    let before = blob.layout.locations().filter(|location| location.segment == at.segment).count();
                    match self.move_streamed(name, &blob, bucket, Some(at.segment), true).await {
                        Ok(Written::At(_)) => {
                            done.extend(piece);
                            let average = blob.length / blob.layout.locations().count().max(1) as u64;
                            return Ok(Some(before as u64 * average));
                        }
                        // Overtaken, or noted as damaged: then it stands for nothing any more.
                        Ok(_) | Err(EngineError::Corrupt { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                standing => {
                    let Some(reply) = self.send_move(at, header, standing).await? else { continue };
                    if let Written::At(_) = reply.await.unwrap_or(Err(EngineError::Closed))? {
                        return Ok(Some(header.record_bytes()));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Sends the copy of one record to the writer; `None` if it is damaged, which is noted, so that it stands for nothing.
    async fn send_move(
        self: &Arc<Self>,
        at: Location,
        header: &RecordHeader,
        standing: Standing,
    ) -> Result<Option<tokio::sync::oneshot::Receiver<Result<Written, EngineError>>>, EngineError> {
        let kind = header.kind;
        let record = self.blocking("a read of the disk", move |shared| shared.read_record(kind, at)).await?;
        let (name, bucket, moved, record) = match (standing, record) {
            (Standing::Blob { name, blob }, None) => {
                self.damaged(name, &blob).await;
                return Ok(None);
            }
            (Standing::Blob { name, blob }, Some(record)) => {
                let bucket = self.bucket_for(name, blob.put_time_ms, at.segment.bucket).await?;
                (name, bucket, Moved::Whole { from: at }, record)
            }
            (Standing::Small { name, change }, record) => {
                let Some(record) = record else { return Ok(None) };
                (name, at.segment.bucket, Moved::Standing(change), record)
            }
            (Standing::Dead | Standing::UnderWay, _) => return Ok(None),
        };
        self.send(record, Meaning::Moved { name, bucket, moved }, true, None).await.map(Some)
    }

    /// Where a blob that lies in `bucket` belongs: what was held and is no longer goes back to its own bucket.
    async fn bucket_for(self: &Arc<Self>, name: BlobName, put_time_ms: u64, bucket: u32) -> Result<u32, EngineError> {
        if bucket == bucket_of(put_time_ms) {
            return Ok(bucket);
        }
        let read = move |shared: &Shared| shared.store.entry(name);
        let entry = self.blocking("a read of the index", read).await?.unwrap_or_default();
        Ok(entry.expiry_bucket(put_time_ms))
    }

    /// Lets the index count a segment as removed, durably, and unlinks it once nobody reads it.
    fn remove_compacted(&self, address: SegmentAddress) -> Result<(), EngineError> {
        let store = &self.store;
        let changes = Changes { removed: vec![address], ..Changes::default() };
        store.ledger.lock().apply(&*store.index, &store.counters, changes)?;
        // Before the unlinking: else a crash could bring back an index that points into what is gone.
        store.index.flush()?;
        store.remove(vec![address]);
        Ok(())
    }
}
