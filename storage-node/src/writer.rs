//! The writer: takes everything that waits as one group, writes it, syncs each segment that a waiting commit depends on
//! once, tells the index, and only then answers.
//!
//! There is one writer an engine, and it works on one group at a time. So whatever it finds in the index is durable, and a
//! second put of a name in the same group shares the fate of the first.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use lazaret_protocol::limits::{BUCKET_MS, MIB};
use lazaret_protocol::{BlobName, UploadId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::disk::Disk;
use crate::engine::{Counters, EngineError};
use crate::index::{BlobEntry, Change, Entry, Index, IndexBatch, Layout, LocatorEntry, SegmentState};
use crate::record::{Location, PreparedRecord, SegmentAddress};
use crate::segments::Segments;

/// Most writes that wait. A group takes them all, so it also bounds a group's index batch.
pub(crate) const QUEUE_WRITES_MAX: usize = 1024;
/// Most bytes of one group: about a tenth of a second of a disk, by which the first of a group waits for the last.
const GROUP_WRITE_BYTES_MAX: u64 = 32 * MIB;

/// A record to write and what it means.
pub(crate) struct Write {
    pub(crate) record: PreparedRecord,
    pub(crate) meaning: Meaning,
    pub(crate) reply: oneshot::Sender<Result<Written, EngineError>>,
    /// Its share of the memory that waiting writes may take.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

pub(crate) enum Meaning {
    /// A blob in one record.
    Whole { name: BlobName, length: u64 },
    /// A part of an upload, which waits for nothing.
    Piece,
    /// The end of an upload.
    Commit { name: BlobName, length: u64, upload: UploadId, extents: Vec<Location>, tree: Vec<Location> },
    /// A locator.
    Locator { name: BlobName, locator: LocatorEntry },
}

/// What became of a write that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It lies here. Durable, unless it is a piece.
    At(Location),
    /// The name was already held by a put of this time, and nothing was written.
    Held(u64),
}

pub(crate) struct Writer {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) index: Arc<dyn Index>,
    pub(crate) segments: Segments,
    pub(crate) counters: Arc<Counters>,
    pub(crate) reserve_bytes: u64,
    pub(crate) blobs: u64,
}

/// What a group is going to change.
#[derive(Default)]
struct Group {
    entries: HashMap<BlobName, Entry>,
    /// Segments that must be durable before anything is answered.
    wanted: BTreeSet<u64>,
    /// Entries that have a blob now and had none.
    new_blobs: u64,
    waiting: Vec<(oneshot::Sender<Result<Written, EngineError>>, Written)>,
}

impl Writer {
    /// Carries out a group of writes and answers each.
    pub(crate) fn process(&mut self, writes: Vec<Write>) {
        let bytes = writes.iter().map(|write| write.record.record_bytes()).sum();
        if let Err(error) = self.check_space(bytes) {
            for write in writes {
                answer(write.reply, Err(error.clone()));
            }
            return;
        }
        let mut group = Group::default();
        // Their shares of memory are held until the group is written.
        let mut permits = Vec::with_capacity(writes.len());
        for mut write in writes {
            permits.push(write.permit.take());
            self.plan(&mut group, write);
        }
        let outcome = self.make_durable(&mut group);
        if let Err(error) = &outcome {
            tracing::error!(%error, writes = group.waiting.len(), "a group of writes failed");
        }
        for (reply, written) in group.waiting {
            answer(reply, outcome.clone().map(|()| written));
        }
        self.tell_failures();
    }

    /// Refuses writes below the reserve. It takes a quarter more than the reserve to accept them again, so that a disk at
    /// the edge does not flicker.
    fn check_space(&self, bytes: u64) -> Result<(), EngineError> {
        let space = self.disk.space()?;
        let enough = if self.counters.full.get() != 0 {
            self.reserve_bytes.saturating_add(self.reserve_bytes / 4)
        } else {
            self.reserve_bytes
        };
        let full = space.free_bytes < enough.saturating_add(bytes);
        if self.counters.full.set(u64::from(full)) != u64::from(full) {
            tracing::warn!(full, free_bytes = space.free_bytes, reserve_bytes = self.reserve_bytes, "disk space");
        }
        if full {
            return Err(EngineError::Full { free_bytes: space.free_bytes, reserve_bytes: self.reserve_bytes });
        }
        Ok(())
    }

    /// Gives a write its place and notes what it changes; answers at once what needs no writing or can't be done.
    fn plan(&mut self, group: &mut Group, write: Write) {
        let Write { record, meaning, reply, .. } = write;
        match self.stage(group, record, meaning) {
            Ok(Planned::InGroup(written)) => group.waiting.push((reply, written)),
            Ok(Planned::Already(written)) => answer(reply, Ok(written)),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn stage(&mut self, group: &mut Group, record: PreparedRecord, meaning: Meaning) -> Result<Planned, EngineError> {
        let time_ms = record.header().time_ms;
        // Put times are checked against the clock before they get here, so the bucket fits.
        let bucket = u32::try_from(time_ms / BUCKET_MS).unwrap_or(u32::MAX);
        let name = match &meaning {
            Meaning::Piece => return Ok(Planned::InGroup(Written::At(self.segments.stage(bucket, record)?))),
            Meaning::Whole { name, .. } | Meaning::Commit { name, .. } | Meaning::Locator { name, .. } => *name,
        };
        let in_group = group.entries.get(&name).cloned();
        let durable = in_group.is_none();
        let mut entry = match in_group {
            Some(entry) => entry,
            None => self.index.get(name)?.unwrap_or_default(),
        };
        let held = match &meaning {
            Meaning::Locator { locator, .. } => entry
                .locator
                .filter(|held| held.locator == locator.locator && held.put_time_ms >= time_ms)
                .map(|held| held.put_time_ms),
            _ => entry.blob.as_ref().filter(|blob| blob.covers(time_ms)).map(|blob| blob.put_time_ms),
        };
        if let Some(put_time_ms) = held {
            let held = Written::Held(put_time_ms);
            return Ok(if durable { Planned::Already(held) } else { Planned::InGroup(held) });
        }
        if let Meaning::Commit { extents, tree, upload, .. } = &meaning {
            if extents.iter().chain(tree).any(|location| self.segments.lost(location)) {
                return Err(EngineError::UploadLost { upload: *upload });
            }
            group.wanted.extend(extents.iter().chain(tree).map(|location| location.segment.id));
        }
        let location = self.segments.stage(bucket, record)?;
        group.wanted.insert(location.segment.id);
        let had_blob = entry.blob.is_some();
        entry.absorb(match meaning {
            Meaning::Locator { locator, .. } => Change::Locator(locator),
            Meaning::Commit { length, extents, tree, .. } => {
                let layout = Layout::Streamed { extents, tree };
                Change::Blob(BlobEntry { length, put_time_ms: time_ms, layout })
            }
            Meaning::Whole { length, .. } => {
                Change::Blob(BlobEntry { length, put_time_ms: time_ms, layout: Layout::Whole(location) })
            }
            Meaning::Piece => return Ok(Planned::InGroup(Written::At(location))),
        });
        group.new_blobs += u64::from(!had_blob && entry.blob.is_some());
        group.entries.insert(name, entry);
        Ok(Planned::InGroup(Written::At(location)))
    }

    /// Writes, syncs, and tells the index.
    fn make_durable(&mut self, group: &mut Group) -> Result<(), EngineError> {
        self.segments.write().inspect_err(|error| {
            if error.is_full() {
                self.counters.full.set(1);
            }
        })?;
        let segments = self.segments.sync(&group.wanted)?;
        let entries: Vec<(BlobName, Entry)> = group.entries.drain().collect();
        if entries.is_empty() && segments.is_empty() {
            return Ok(());
        }
        let blobs = self.blobs + group.new_blobs;
        self.index.apply(IndexBatch { entries, segments, blobs })?;
        self.blobs = blobs;
        self.counters.blobs.set(blobs);
        Ok(())
    }

    /// Records in the index that failed segments end at their synced offset, so that no recovery adopts what lies behind.
    fn tell_failures(&mut self) {
        let segments = self.segments.take_failures();
        if segments.is_empty() {
            return;
        }
        for (address, state) in &segments {
            tracing::error!(segment = %address, synced = state.synced, "a segment failed and is sealed");
        }
        self.tell(segments);
    }

    fn tell(&mut self, segments: Vec<(SegmentAddress, SegmentState)>) {
        let batch = IndexBatch { entries: Vec::new(), segments, blobs: self.blobs };
        if let Err(error) = self.index.apply(batch).and_then(|()| self.index.flush()) {
            // Recovery then reads those segments again; nothing in them was acknowledged and not indexed.
            tracing::error!(%error, "the index was not told of sealed segments");
        }
    }

    /// Makes everything durable before the engine goes.
    pub(crate) fn close(&mut self) {
        match self.segments.close() {
            Ok(states) => self.tell(states),
            Err(error) => tracing::error!(%error, "not all segments could be closed"),
        }
        self.tell_failures();
    }
}

enum Planned {
    /// Durable already.
    Already(Written),
    /// Shares the group's fate.
    InGroup(Written),
}

/// The caller may have gone away meanwhile, which changes nothing.
fn answer(reply: oneshot::Sender<Result<Written, EngineError>>, result: Result<Written, EngineError>) {
    let _ = reply.send(result);
}

/// The writer and the queue before it. It runs on a thread of its own, or a simulation steps it.
pub struct Pump {
    pub(crate) writer: Writer,
    pub(crate) queue: mpsc::Receiver<Write>,
}

impl Pump {
    /// Carries out what waits, as one group. Returns how many writes that were; 0 if nothing waited.
    pub fn step(&mut self) -> usize {
        match self.queue.try_recv() {
            Ok(first) => self.group_of(first),
            Err(_) => 0,
        }
    }

    /// Waits until there is a write, then for `delay`, and carries out what waits by then, as one group. Returns how many
    /// writes that were; 0 once the engine is closed and nothing waits.
    pub async fn step_after(&mut self, delay: impl Future<Output = ()>) -> usize {
        let Some(first) = self.queue.recv().await else { return 0 };
        delay.await;
        self.group_of(first)
    }

    /// Works until the engine is closed, then makes everything durable.
    pub fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            self.group_of(first);
        }
        self.writer.close();
    }

    fn group_of(&mut self, first: Write) -> usize {
        let mut bytes = first.record.record_bytes();
        let mut writes = vec![first];
        while writes.len() < QUEUE_WRITES_MAX && bytes < GROUP_WRITE_BYTES_MAX {
            let Ok(write) = self.queue.try_recv() else { break };
            bytes += write.record.record_bytes();
            writes.push(write);
        }
        let count = writes.len();
        self.writer.process(writes);
        count
    }
}
