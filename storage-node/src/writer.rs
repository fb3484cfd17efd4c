//! The writer: takes everything that waits as one group, writes it, syncs each segment that a waiting commit depends on
//! once, tells the index, and only then answers.
//!
//! There is one writer an engine, and it works on one group at a time, holding the ledger. So whatever it finds in the
//! index is durable, and a second put of a name in the same group shares the fate of the first.
//!
//! It is also where it is decided what a write is worth by the time its turn comes: whether it has expired, was killed, is
//! held already, or was overtaken.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use lazaret_node_client::environment::Clock;
use lazaret_protocol::limits::{BUCKET_MS, MIB};
use lazaret_protocol::message::Hold;
use lazaret_protocol::{BlobName, PlacementKey, UploadId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::engine::{Changed, Changes, EngineError, Ledger, Progress, Store, UnderWay};
use crate::index::{BlobEntry, Change, Dropped, Entry, HoldEntry, Layout, LocatorEntry, UploadOwner};
use crate::record::{
    Commit, HELD_BUCKET, Location, PreparedRecord, RecordKind, bucket_of, hold_position, record_buffer,
};
use crate::segments::Segments;

/// Most writes that wait. A group takes them all, so it also bounds a group's index batch.
pub(crate) const QUEUE_WRITES_MAX: usize = 1024;
/// Most bytes of one group: about a tenth of a second of a disk, by which the first of a group waits for the last.
const GROUP_WRITE_BYTES_MAX: u64 = 32 * MIB;

/// A record to write and what it means.
pub(crate) struct Write {
    pub(crate) record: PreparedRecord,
    pub(crate) meaning: Meaning,
    /// Gives space back or says what must not be kept, so that it may use the last reserve.
    pub(crate) urgent: bool,
    pub(crate) reply: oneshot::Sender<Result<Written, EngineError>>,
    /// Its share of the memory that waiting writes may take.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    /// Of a commit: its upload is under way until the index knows.
    pub(crate) under_way: Option<Arc<UnderWay>>,
}

pub(crate) enum Meaning {
    /// A blob in one record.
    Whole { name: BlobName, length: u64 },
    /// A part of an upload, which waits for nothing. It goes to the bucket of its put time unless another is given.
    Piece { bucket: Option<u32> },
    /// The end of an upload.
    Commit { name: BlobName, commit: Commit },
    /// A locator.
    Locator { name: BlobName, locator: LocatorEntry },
    /// A deletion up to the record's time.
    Tombstone { name: BlobName },
    /// A hold. The writer knows what it protects, and makes the record anew. Small records that were copied to where
    /// nothing expires are told.
    Hold { name: BlobName, placed: bool, from_bucket: Option<u32>, secured: Secured },
    /// A copy of a record that lies elsewhere, for `bucket`.
    Moved { name: BlobName, bucket: u32, moved: Moved },
}

/// Small records of a name of which a durable copy lies where nothing expires.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Secured {
    pub(crate) locator: Option<LocatorEntry>,
    pub(crate) killed_until_ms: Option<u64>,
}

/// What is moved. It counts only if the entry still says so.
pub(crate) enum Moved {
    /// A blob in one record, which lay here.
    Whole { from: Location },
    /// A blob whose pieces lay so; they were copied before.
    Commit { from: Layout, commit: Commit },
    /// A record that still stands for this.
    Standing(Change),
}

/// What became of a write that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It lies here. Durable, unless it is a piece.
    At(Location),
    /// A put of this time, or what else the write would say, was there already, and nothing was written.
    Held(u64),
    /// A deletion has killed it, or it deletes only what is gone, and nothing was written.
    Dead,
    /// A hold stands, and what it protects must be moved where nothing expires first. Nothing was written.
    MustMove,
    /// What was moved has changed meanwhile, and nothing was written.
    Overtaken,
}

pub(crate) struct Writer {
    pub(crate) store: Arc<Store>,
    pub(crate) segments: Segments,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) reserve_bytes: u64,
    pub(crate) urgent_reserve_bytes: u64,
}

/// What a group is going to change.
#[derive(Default)]
struct Group {
    entries: HashMap<BlobName, Changed>,
    /// Segments that must be durable before anything is answered.
    wanted: BTreeSet<u64>,
    dropped: Dropped,
    uploads: Vec<(UploadId, UploadOwner)>,
    waiting: Vec<(oneshot::Sender<Result<Written, EngineError>>, Written)>,
}

/// A name as a write finds it.
struct Subject {
    name: BlobName,
    before: Entry,
    entry: Entry,
    /// Nobody in the group has changed it.
    durable: bool,
}

impl Subject {
    fn known(&self, written: Written) -> Planned {
        if self.durable { Planned::Already(written) } else { Planned::InGroup(written) }
    }
}

impl Writer {
    /// Carries out a group of writes and answers each.
    pub(crate) fn process(&mut self, writes: Vec<Write>) {
        let store = Arc::clone(&self.store);
        let mut ledger = store.ledger.lock();
        self.segments.abandon_before(ledger.horizon);
        self.segments.begin(self.clock.monotonic());
        let writes = self.admit(writes);
        let mut group = Group::default();
        // What they hold is held until the group is written.
        let mut held = Vec::with_capacity(writes.len());
        for mut write in writes {
            held.push((write.permit.take(), write.under_way.take()));
            self.plan(&mut group, &ledger, write);
        }
        let outcome = self.make_durable(&mut group, &mut ledger);
        if let Err(error) = &outcome {
            tracing::error!(%error, writes = group.waiting.len(), "a group of writes failed");
        }
        for (reply, written) in group.waiting {
            answer(reply, outcome.clone().map(|()| written));
        }
        self.tell_failures(&mut ledger);
    }

    /// Answers the writes for which there is no space, and returns the others. It takes a quarter more than the reserve to
    /// accept writes again, so that a disk at the edge does not flicker.
    fn admit(&self, writes: Vec<Write>) -> Vec<Write> {
        let counters = &self.store.counters;
        let free_bytes = match self.store.disk.space() {
            Ok(space) => space.free_bytes,
            Err(error) => {
                writes.into_iter().for_each(|write| answer(write.reply, Err(error.clone().into())));
                return Vec::new();
            }
        };
        let bytes = |urgent| -> u64 {
            writes.iter().filter(|write| write.urgent == urgent).map(|write| write.record.record_bytes()).sum()
        };
        let was_full = counters.full.get() != 0;
        let enough = if was_full { enough_again(self.reserve_bytes) } else { self.reserve_bytes };
        let full = free_bytes < enough.saturating_add(bytes(false));
        let last = free_bytes < self.urgent_reserve_bytes.saturating_add(bytes(true));
        if counters.full.set(u64::from(full)) != u64::from(full) {
            tracing::warn!(full, free_bytes, reserve_bytes = self.reserve_bytes, "disk space");
        }
        let mut admitted = Vec::with_capacity(writes.len());
        for write in writes {
            let (refused, reserve_bytes) =
                if write.urgent { (last, self.urgent_reserve_bytes) } else { (full, self.reserve_bytes) };
            if refused {
                answer(write.reply, Err(EngineError::Full { free_bytes, reserve_bytes }));
            } else {
                admitted.push(write);
            }
        }
        admitted
    }

    /// Gives a write its place and notes what it changes; answers at once what needs no writing or can't be done.
    fn plan(&mut self, group: &mut Group, ledger: &Ledger, write: Write) {
        let Write { record, meaning, reply, .. } = write;
        match self.stage(group, ledger, record, meaning) {
            Ok(Planned::InGroup(written)) => group.waiting.push((reply, written)),
            Ok(Planned::Already(written)) => answer(reply, Ok(written)),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn stage(
        &mut self,
        group: &mut Group,
        ledger: &Ledger,
        record: PreparedRecord,
        meaning: Meaning,
    ) -> Result<Planned, EngineError> {
        let horizon = ledger.horizon;
        let name = match &meaning {
            Meaning::Piece { bucket } => {
                let bucket = bucket.unwrap_or_else(|| bucket_of(record.header().time_ms));
                // Only what is held may come that late. Whether it is, is known when its name is.
                let bucket = if bucket < horizon { HELD_BUCKET } else { bucket };
                return Ok(Planned::InGroup(Written::At(self.segments.stage(bucket, record)?)));
            }
            Meaning::Whole { name, .. }
            | Meaning::Commit { name, .. }
            | Meaning::Locator { name, .. }
            | Meaning::Tombstone { name }
            | Meaning::Hold { name, .. }
            | Meaning::Moved { name, .. } => *name,
        };
        let subject = self.subject(group, horizon, name)?;
        match meaning {
            Meaning::Tombstone { .. } => self.stage_tombstone(group, horizon, subject, record),
            Meaning::Hold { name, placed, from_bucket, secured } => {
                let hold = Hold { name, time_ms: record.header().time_ms, placed, from_bucket };
                self.stage_hold(group, horizon, subject, hold, secured)
            }
            Meaning::Moved { bucket, moved, .. } => self.stage_moved(group, ledger, subject, record, bucket, moved),
            put => self.stage_put(group, ledger, subject, record, put),
        }
    }

    /// A name as it is once the group's earlier writes have taken effect, without what has expired.
    fn subject(&self, group: &mut Group, horizon: u32, name: BlobName) -> Result<Subject, EngineError> {
        if let Some(Changed { before, after }) = group.entries.get(&name).cloned() {
            return Ok(Subject { name, before, entry: after, durable: false });
        }
        let before = self.store.index.get(name)?.unwrap_or_default();
        let (entry, dropped) = before.clone().live(horizon);
        group.dropped.extend(dropped);
        Ok(Subject { name, before, entry, durable: true })
    }

    fn stage_put(
        &mut self,
        group: &mut Group,
        ledger: &Ledger,
        mut subject: Subject,
        record: PreparedRecord,
        meaning: Meaning,
    ) -> Result<Planned, EngineError> {
        let horizon = ledger.horizon;
        let entry = &subject.entry;
        // What replaces a damaged copy is of its put time if that is newer, or the damaged one would still decide.
        let damaged_ms = match &meaning {
            Meaning::Whole { .. } | Meaning::Commit { .. } => {
                entry.blob.as_ref().filter(|blob| blob.damaged).map_or(0, |blob| blob.put_time_ms)
            }
            _ => 0,
        };
        let put_time_ms = record.header().time_ms.max(damaged_ms);
        let record = record.at_time(put_time_ms);
        let bucket = entry.expiry_bucket(put_time_ms);
        if bucket < horizon {
            return Err(EngineError::Expired { put_time_ms, expired_before_ms: u64::from(horizon) * BUCKET_MS });
        }
        if entry.kills(put_time_ms) {
            return Ok(subject.known(Written::Dead));
        }
        let held = match &meaning {
            Meaning::Locator { locator, .. } => entry
                .locator
                .filter(|held| held.locator == locator.locator && held.put_time_ms >= put_time_ms)
                .map(|held| held.put_time_ms),
            _ => entry.blob.as_ref().filter(|blob| blob.covers(put_time_ms)).map(|blob| blob.put_time_ms),
        };
        if let Some(put_time_ms) = held {
            return Ok(subject.known(Written::Held(put_time_ms)));
        }
        if let Meaning::Commit { commit, .. } = &meaning {
            self.check_pieces(group, ledger, commit)?;
            if bucket == HELD_BUCKET && !layout_of(commit).never_expires() {
                return Ok(subject.known(Written::MustMove));
            }
            group.uploads.push((commit.upload, UploadOwner { name: subject.name, bucket }));
        }
        let location = self.segments.stage(bucket, record)?;
        group.wanted.insert(location.segment.id);
        let blob = |length, layout| Change::Blob(BlobEntry { length, put_time_ms, layout, damaged: false });
        group.dropped.extend(subject.entry.absorb(match meaning {
            Meaning::Locator { locator, .. } => Change::Locator(locator),
            Meaning::Commit { commit, .. } => blob(commit.length, layout_of(&commit)),
            Meaning::Whole { length, .. } => blob(length, Layout::Whole(location)),
            Meaning::Piece { .. } | Meaning::Tombstone { .. } | Meaning::Hold { .. } | Meaning::Moved { .. } => {
                return Ok(Planned::InGroup(Written::At(location)));
            }
        }));
        Ok(group.changed(subject, location))
    }

    /// Refuses a commit whose pieces were lost, and wants them durable.
    fn check_pieces(&self, group: &mut Group, ledger: &Ledger, commit: &Commit) -> Result<(), EngineError> {
        let pieces = || commit.extents.iter().chain(&commit.tree);
        let gone = |address| !ledger.keeps(address) && !self.segments.is_open(address);
        if pieces().any(|location| self.segments.lost(location) || gone(location.segment)) {
            return Err(EngineError::UploadLost { upload: commit.upload });
        }
        group.wanted.extend(pieces().map(|location| location.segment.id));
        Ok(())
    }

    fn stage_tombstone(
        &mut self,
        group: &mut Group,
        horizon: u32,
        mut subject: Subject,
        record: PreparedRecord,
    ) -> Result<Planned, EngineError> {
        let time_ms = record.header().time_ms;
        if subject.entry.kills(time_ms) {
            return Ok(subject.known(Written::Held(time_ms)));
        }
        let bucket = subject.entry.expiry_bucket(time_ms);
        if bucket < horizon {
            // All that it could kill has expired.
            return Ok(subject.known(Written::Dead));
        }
        let location = self.segments.stage(bucket, record)?;
        group.wanted.insert(location.segment.id);
        group.dropped.extend(subject.entry.absorb(Change::Tombstone(time_ms)));
        Ok(group.changed(subject, location))
    }

    fn stage_hold(
        &mut self,
        group: &mut Group,
        horizon: u32,
        mut subject: Subject,
        hold: Hold,
        secured: Secured,
    ) -> Result<Planned, EngineError> {
        let Hold { name, time_ms, placed, from_bucket } = hold;
        let standing = subject.entry.hold;
        if standing.is_some_and(|held| held.covers(&hold)) {
            return Ok(subject.known(Written::Held(time_ms)));
        }
        // A hold that goes on protects what it did. One that is placed anew does not bring back what has expired, unless
        // another node had it in time.
        let from_bucket = match standing.filter(|held| held.placed) {
            Some(held) => from_bucket.map_or(held.from_bucket, |from| from.min(held.from_bucket)),
            None => from_bucket.unwrap_or(horizon),
        };
        let entry = &mut subject.entry;
        // All of it must be durable before the hold is written: of a group that is cut short any record may survive, and a
        // hold that does would protect what goes with its bucket.
        let small = Secured { locator: entry.locator, killed_until_ms: entry.killed_until_ms };
        let expires = |blob: &BlobEntry| !blob.damaged && !blob.layout.never_expires();
        if placed && (small != secured || entry.blob.as_ref().is_some_and(expires)) {
            return Ok(subject.known(Written::MustMove));
        }
        let position = hold_position(placed, from_bucket);
        let record = PreparedRecord::new(RecordKind::Hold, name.into(), position, time_ms, 0, None, record_buffer(0));
        let location = self.segments.stage(HELD_BUCKET, record)?;
        group.wanted.insert(location.segment.id);
        entry.absorb(Change::Hold(HoldEntry { time_ms, placed, from_bucket }));
        // Released, it may have expired long ago.
        let (entry, dropped) = std::mem::take(entry).live(horizon);
        group.dropped.extend(dropped);
        subject.entry = entry;
        Ok(group.changed(subject, location))
    }

    fn stage_moved(
        &mut self,
        group: &mut Group,
        ledger: &Ledger,
        mut subject: Subject,
        record: PreparedRecord,
        bucket: u32,
        moved: Moved,
    ) -> Result<Planned, EngineError> {
        // A hold may have been placed since it was decided where to.
        let held = subject.entry.blob.as_ref().is_some_and(|blob| subject.entry.holds(blob.put_time_ms));
        let entry = &mut subject.entry;
        let stands = match &moved {
            Moved::Whole { from } => entry.blob.as_ref().is_some_and(|blob| blob.layout == Layout::Whole(*from)),
            Moved::Commit { from, commit } => {
                let belongs = !held || layout_of(commit).never_expires();
                belongs && entry.blob.as_ref().is_some_and(|blob| blob.layout == *from)
            }
            Moved::Standing(change) => entry.states(change),
        };
        if !stands {
            return Ok(subject.known(Written::Overtaken));
        }
        if let Moved::Commit { commit, .. } = &moved {
            self.check_pieces(group, ledger, commit)?;
            group.uploads.push((commit.upload, UploadOwner { name: subject.name, bucket }));
        }
        let is_blob = !matches!(moved, Moved::Standing(_));
        let bucket = if held && is_blob { HELD_BUCKET } else { bucket };
        let location = self.segments.stage(bucket, record)?;
        group.wanted.insert(location.segment.id);
        let layout = match moved {
            Moved::Whole { .. } => Layout::Whole(location),
            Moved::Commit { commit, .. } => layout_of(&commit),
            Moved::Standing(_) => return Ok(Planned::InGroup(Written::At(location))),
        };
        if let Some(blob) = &mut entry.blob {
            let old = blob.clone();
            blob.layout = layout;
            group.dropped.extend(old.dropped(Some(blob)));
        }
        Ok(group.changed(subject, location))
    }

    /// Writes, syncs, and tells the index.
    fn make_durable(&mut self, group: &mut Group, ledger: &mut Ledger) -> Result<(), EngineError> {
        let Store { index, counters, .. } = &*self.store;
        self.segments.write().inspect_err(|error| {
            if error.is_full() {
                counters.full.set(1);
            }
        })?;
        let changes = Changes {
            progress: self.segments.sync(&group.wanted)?,
            entries: group.entries.drain().collect(),
            dropped: std::mem::take(&mut group.dropped),
            uploads: std::mem::take(&mut group.uploads),
            ..Changes::default()
        };
        Ok(ledger.apply(&**index, counters, changes)?)
    }

    /// Records in the index that failed segments end at their synced offset, so that no recovery adopts what lies behind.
    fn tell_failures(&mut self, ledger: &mut Ledger) {
        let progress = self.segments.take_failures();
        if progress.is_empty() {
            return;
        }
        for Progress { address, synced, .. } in &progress {
            tracing::error!(segment = %address, synced, "a segment failed and is sealed");
        }
        self.tell(progress, ledger);
    }

    fn tell(&self, progress: Vec<Progress>, ledger: &mut Ledger) {
        let Store { index, counters, .. } = &*self.store;
        let changes = Changes { progress, ..Changes::default() };
        if let Err(error) = ledger.apply(&**index, counters, changes).and_then(|()| index.flush()) {
            // Recovery then reads those segments again; nothing in them was acknowledged and not indexed.
            tracing::error!(%error, "the index was not told of sealed segments");
        }
    }

    /// Makes everything durable before the engine goes.
    pub(crate) fn close(&mut self) {
        let store = Arc::clone(&self.store);
        let mut ledger = store.ledger.lock();
        self.segments.abandon_before(ledger.horizon);
        match self.segments.close() {
            Ok(progress) => self.tell(progress, &mut ledger),
            Err(error) => tracing::error!(%error, "not all segments could be closed"),
        }
        self.tell_failures(&mut ledger);
    }
}

impl Group {
    fn changed(&mut self, subject: Subject, location: Location) -> Planned {
        let Subject { name, before, entry: after, .. } = subject;
        self.entries.insert(name, Changed { before, after });
        Planned::InGroup(Written::At(location))
    }
}

/// Where a commit says that its blob lies.
pub(crate) fn layout_of(commit: &Commit) -> Layout {
    // Only recovery meets commits that tell no placement, and it tells it.
    let placement = commit.placement.unwrap_or(PlacementKey([0; 32]));
    Layout::Streamed { placement, extents: commit.extents.clone(), tree: commit.tree.clone() }
}

/// How much must be free before a disk that was full is not.
pub(crate) fn enough_again(reserve_bytes: u64) -> u64 {
    reserve_bytes.saturating_add(reserve_bytes / 4)
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
