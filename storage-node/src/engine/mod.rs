//! The engine: one disk, one index, one writer.
//!
//! **Acknowledged means durable**: an answer to a put comes after append, sync and index, in this order. Writes go
//! through one bounded queue to the writer; reads go past it, straight to index and disk, and find only what is durable.
//! Hashing, salting and checksums run off the async threads.
//!
//! What it does about retention, deletion, holds, damage and space it does when it is told to, and for its own disk alone: it
//! knows no setting, no peers and no wire.

mod compaction;
mod counters;
mod error;
mod identity;
mod ledger;
mod moves;
mod reader;
mod removal;
mod retention;
mod scrub;
mod standing;
mod store;
mod upload;

use std::sync::{Arc, Condvar, Mutex, PoisonError};

pub(crate) use counters::Counters;
pub use error::EngineError;
use lazaret_node_client::environment::Environment;
use lazaret_node_client::stream::Pieces;
use lazaret_protocol::limits::{GROUP_BYTES, HELD_BYTES_MAX, KIB, MIB, PUT_TIME_SKEW_MAX_MS, UPLOAD_LEASE_MAX_MS};
use lazaret_protocol::message::{BlobStat, DiskReport, NodeStatus, PutDone, PutLocator};
use lazaret_protocol::tree::{TreeBuilder, tree_bytes};
use lazaret_protocol::{BlobName, ClusterId, NodeId, PlacementKey, StorageType, UploadId};
pub(crate) use ledger::{Changed, Changes, Ledger, Progress};
pub use reader::BlobReader;
pub use scrub::Scrubbed;
pub(crate) use store::{Store, UnderWay};
use tokio::sync::{Semaphore, mpsc, oneshot};
pub use upload::EngineUpload;

pub use identity::DiskId;
pub(crate) use identity::{Identity, check_owner};
pub(crate) use retention::Retention;

use crate::disk::Disk;
use crate::index::{BlobEntry, Entry, Index, LocatorEntry};
use crate::record::{PreparedRecord, RECORD_HEADER_BYTES, RecordKind, encode_locator, record_buffer};
use crate::recovery::{self, Recovered};
use crate::salt::SaltKey;
use crate::segments::SegmentSource;
pub use crate::writer::Pump;
use crate::writer::{self, Meaning, QUEUE_WRITES_MAX, Write, Writer, Written};

/// Segments are begun anew at this size unless told otherwise: large enough to be few, small enough to be rewritten.
pub const SEGMENT_BYTES_DEFAULT: u64 = 512 * MIB;
/// Space that writes leave free unless told otherwise: enough for the index, and for recovery to write a tail again.
pub const RESERVE_BYTES_DEFAULT: u64 = 256 * MIB;
/// Space that even deletions, holds and compaction leave free unless told otherwise: enough for the index to tell of them.
pub const URGENT_RESERVE_BYTES_DEFAULT: u64 = 64 * MIB;

/// Most bytes that wait to be written: two groups, so that one fills while the other is written.
const QUEUE_BYTES_MAX: u64 = 64 * MIB;
/// What the queue's bytes are counted in, since a semaphore counts to 2^29 only on small machines.
const QUEUE_UNIT_BYTES: u64 = KIB;
/// Up to so many bytes are hashed and salted where they are, for a tenth of a millisecond at most: on a busy machine the way to another
/// thread and back takes longer.
const INLINE_BYTES_MAX: usize = 4 * GROUP_BYTES;

/// What an engine is told about itself.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The cluster whose data these are.
    pub cluster: ClusterId,
    /// The node whose data these are.
    pub node: NodeId,
    /// How payloads lie on disk. Both kinds are read, whatever is chosen.
    pub storage_type: StorageType,
    /// A segment of more bytes takes no more records.
    pub segment_bytes_max: u64,
    /// With less free space than this, writes are refused.
    pub reserve_bytes: u64,
    /// With less free space than this, even deletions, holds and compaction are.
    pub urgent_reserve_bytes: u64,
}

impl EngineOptions {
    /// The defaults for a node.
    pub fn new(cluster: ClusterId, node: NodeId) -> Self {
        Self {
            cluster,
            node,
            storage_type: StorageType::default(),
            segment_bytes_max: SEGMENT_BYTES_DEFAULT,
            reserve_bytes: RESERVE_BYTES_DEFAULT,
            urgent_reserve_bytes: URGENT_RESERVE_BYTES_DEFAULT,
        }
    }
}

/// Who puts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A client, whose put times are compared with the node's clock.
    Client,
    /// Another node, which passes on put times that were compared when they were new.
    Peer,
}

/// The engine. Clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    store: Arc<Store>,
    environment: Environment,
    storage_type: StorageType,
    disk_id: DiskId,
    reserve_bytes: u64,
    /// `None` once the engine is closed.
    queue: Mutex<Option<mpsc::Sender<Write>>>,
    queue_memory: Arc<Semaphore>,
    /// Held by the one compaction at a time.
    compacting: tokio::sync::Mutex<()>,
    writer_done: Arc<Latch>,
}

impl Engine {
    /// Opens what lies on `disk`: checks whose it is, recovers, and begins to take writes.
    pub fn open(
        disk: Arc<dyn Disk>,
        index: Arc<dyn Index>,
        environment: Environment,
        options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        let spawner = Arc::clone(&environment.spawner);
        let (engine, pump) = Self::open_pumped(disk, index, environment, options)?;
        let done = LatchGuard::new(Arc::clone(&engine.shared.writer_done));
        let run = Box::new(move || {
            let _done = done;
            pump.run();
        });
        spawner
            .spawn_thread("lazaret-writer", run)
            .map_err(|error| EngineError::Thread { operation: "the writer", reason: error.to_string() })?;
        Ok(engine)
    }

    /// As [`Engine::open`], without a thread: the caller drives the writer, group by group. For simulations.
    pub fn open_pumped(
        disk: Arc<dyn Disk>,
        index: Arc<dyn Index>,
        environment: Environment,
        options: EngineOptions,
    ) -> Result<(Engine, Pump), EngineError> {
        let disk_id = identity::check(&*disk, &options, &*environment.random)?;
        let retention = Retention::load(&*disk)?;
        let counters = Arc::new(Counters::default());
        let source = SegmentSource {
            disk: Arc::clone(&disk),
            random: Arc::clone(&environment.random),
            cluster: options.cluster,
            node: options.node,
            segment_bytes_max: options.segment_bytes_max,
            next_id: retention.first_segment_id.max(1),
            counters: Arc::clone(&counters),
        };
        let horizon = retention.expired_before_bucket;
        let Recovered { segments, ledger, missing } = recovery::recover(&disk, &index, source, horizon)?;
        // Only now: recovery may find a hold after what it protects.
        index.expire(horizon, 0)?;
        let store = Arc::new(Store::new(disk, index, Arc::clone(&counters), ledger));
        if !missing.is_empty() {
            // So that other nodes are asked for them, and nobody finds out by reading.
            let names = store.mark_damaged_where(|at| missing.contains(&at.segment))?;
            tracing::error!(node = %options.node, segments = missing.len(), blobs = names.len(), "copies are missing");
        }
        tracing::info!(
            node = %options.node,
            blobs = counters.blobs.get(),
            segments = counters.segments.get(),
            recovered_records = counters.recovered_records.get(),
            "engine opened"
        );
        let writer = Writer {
            store: Arc::clone(&store),
            segments,
            clock: Arc::clone(&environment.clock),
            reserve_bytes: options.reserve_bytes,
            urgent_reserve_bytes: options.urgent_reserve_bytes.min(options.reserve_bytes),
        };
        let (sender, queue) = mpsc::channel(QUEUE_WRITES_MAX);
        let shared = Shared {
            store,
            environment,
            storage_type: options.storage_type,
            disk_id,
            reserve_bytes: options.reserve_bytes,
            queue: Mutex::new(Some(sender)),
            queue_memory: Arc::new(Semaphore::new((QUEUE_BYTES_MAX / QUEUE_UNIT_BYTES) as usize)),
            compacting: tokio::sync::Mutex::new(()),
            writer_done: Arc::default(),
        };
        Ok((Engine { shared: Arc::new(shared) }, Pump { writer, queue }))
    }

    /// Stores a blob that is whole in memory.
    pub async fn put_whole(
        &self,
        name: BlobName,
        content: impl Into<Pieces>,
        put_time_ms: u64,
        origin: Origin,
    ) -> Result<PutDone, EngineError> {
        let content = content.into();
        let length = content.len() as u64;
        if content.len() > HELD_BYTES_MAX {
            return Err(EngineError::BodyTooLong(length));
        }
        self.shared.check_clock(put_time_ms, 0, origin)?;
        let salt = self.shared.salt();
        let environment = &self.shared.environment;
        let prepare = move || prepare_whole(name, &content, put_time_ms, salt);
        let record = off_thread(environment, length as usize, prepare).await??;
        self.shared.put_done(record, Meaning::Whole { name, length }, put_time_ms).await
    }

    /// Begins a streamed upload of a blob that is placed by `placement`.
    pub fn begin_upload(
        &self,
        upload: UploadId,
        placement: PlacementKey,
        put_time_ms: u64,
        origin: Origin,
    ) -> Result<EngineUpload, EngineError> {
        self.shared.check_clock(put_time_ms, 0, origin)?;
        Ok(EngineUpload::new(Arc::clone(&self.shared), upload, placement, put_time_ms))
    }

    /// Stores a locator.
    pub async fn put_locator(&self, put: PutLocator, origin: Origin) -> Result<(), EngineError> {
        let PutLocator { name, locator, put_time_ms } = put;
        // The put time is the blob's own, from when its upload began.
        self.shared.check_clock(put_time_ms, u64::from(UPLOAD_LEASE_MAX_MS), origin)?;
        let mut buffer = record_buffer(0);
        encode_locator(&locator, &mut buffer);
        let record = PreparedRecord::new(RecordKind::Locator, name.into(), 0, put_time_ms, 0, None, buffer);
        let locator = LocatorEntry { locator, put_time_ms };
        self.shared.write(record, Meaning::Locator { name, locator }, false).await.map(|_| ())
    }

    /// What this node knows of a blob. A copy that is known to be damaged is an error, since its absence would be a lie.
    /// Blocks for as long as a read of the index takes.
    pub fn stat(&self, name: BlobName) -> Result<BlobStat, EngineError> {
        let entry = self.entry(name)?.unwrap_or_default();
        if let Some(blob) = &entry.blob {
            refuse_damaged(name, blob)?;
        }
        Ok(BlobStat { held: entry.blob.map(|blob| blob.header()), locator: entry.locator.map(|held| held.locator) })
    }

    /// Whether this node holds a blob, as far as it knows soundly. Blocks for as long as a read of the index takes.
    pub fn holds(&self, name: BlobName) -> Result<bool, EngineError> {
        Ok(self.entry(name)?.and_then(|entry| entry.blob).is_some_and(|blob| !blob.damaged))
    }

    /// The blob, if this node holds it; an error if the copy is known to be damaged. Blocks for as long as a read of the
    /// index takes. What the reader needs stays on disk until it is dropped, which may unlink segments and so block.
    pub fn open_blob(&self, name: BlobName) -> Result<Option<BlobReader>, EngineError> {
        // Before the index is asked, so that the segments it points to are kept.
        let generation = Some(self.shared.store.removals.enter());
        let Some(blob) = self.entry(name)?.and_then(|entry| entry.blob) else { return Ok(None) };
        refuse_damaged(name, &blob)?;
        Ok(Some(BlobReader { store: Arc::clone(&self.shared.store), name, blob, generation }))
    }

    /// Reads a blob whole and says whether it is sound; one that is not is noted as damaged. Blocks, for as long as that takes.
    pub fn verify(&self, name: BlobName) -> Result<bool, EngineError> {
        let verified = match self.open_blob(name) {
            Ok(None) => return Ok(false),
            Ok(Some(reader)) => reader.verify(),
            Err(error) => Err(error),
        };
        match verified {
            Ok(()) => Ok(true),
            Err(EngineError::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All that is known of a name and has not expired. Blocks for as long as a read of the index takes.
    pub fn entry(&self, name: BlobName) -> Result<Option<Entry>, EngineError> {
        self.shared.store.entry(name)
    }

    /// The next `limit` entries in the order of their names, of names after `after`, without what has expired. Fewer only
    /// at the end. Blocks for as long as reads of the index take.
    pub fn entries(
        &self,
        after: Option<BlobName>,
        until: Option<BlobName>,
        limit: usize,
    ) -> Result<Vec<(BlobName, Entry)>, EngineError> {
        let store = &self.shared.store;
        let (mut after, mut found) = (after, Vec::new());
        while found.len() < limit {
            let horizon = store.horizon();
            let page = store.index.entries(after, until, limit - found.len())?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let live = page.into_iter().map(|(name, entry)| (name, entry.live(horizon).0));
            found.extend(live.filter(|(_, entry)| !entry.is_empty()));
        }
        Ok(found)
    }

    /// State and counters since the engine was opened. Asks the file system for its space, which is short.
    pub fn status(&self) -> NodeStatus {
        let counters = &self.shared.store.counters;
        // A disk that does not tell its space has its say with the next write.
        let space = self.shared.store.disk.space().ok();
        NodeStatus {
            blobs: counters.blobs.get(),
            segments: counters.segments.get(),
            segment_bytes: counters.segment_bytes.get(),
            disk_free_bytes: space.map_or(0, |space| space.free_bytes),
            disk_total_bytes: space.map_or(0, |space| space.total_bytes),
            puts: counters.puts.get(),
            gets: counters.gets.get(),
            corrupt_reads: counters.corrupt_reads.get(),
            syncs: counters.syncs.get(),
            recovered_records: counters.recovered_records.get(),
            full: counters.full.get() != 0,
        }
    }

    /// The disk's own account of itself. Asks the file system for its space, which is short.
    pub fn report(&self) -> DiskReport {
        let NodeStatus { blobs, segments, segment_bytes, disk_free_bytes, disk_total_bytes, full, .. } = self.status();
        DiskReport {
            path: self.shared.store.disk.place(),
            failed: None,
            blobs,
            segments,
            segment_bytes,
            dead_bytes: self.shared.store.counters.dead_bytes.get(),
            free_bytes: disk_free_bytes,
            total_bytes: disk_total_bytes,
            full,
        }
    }

    /// Which disk this is.
    pub fn disk_id(&self) -> DiskId {
        self.shared.disk_id
    }

    /// What opening took: bytes of segments read and damaged records found on the way.
    pub(crate) fn recovery(&self) -> (u64, u64) {
        let counters = &self.shared.store.counters;
        (counters.recovery_bytes.get(), counters.corrupt_reads.get())
    }

    /// Whether a write would find space. Asks the file system only after one did not.
    pub(crate) fn has_space(&self) -> bool {
        let Shared { store, reserve_bytes, .. } = &*self.shared;
        store.counters.full.get() == 0
            || store.disk.space().is_ok_and(|space| space.free_bytes > writer::enough_again(*reserve_bytes))
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.shared.store.disk
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.shared.environment
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Makes the index durable, so that the next opening has little to recover. Blocks.
    pub fn flush(&self) -> Result<(), EngineError> {
        Ok(self.shared.store.index.flush()?)
    }

    /// Takes no more writes, finishes those that wait, and makes everything durable. Reads go on. Blocks; may be called
    /// again. An engine without a thread only stops taking writes.
    pub fn close(&self) {
        let queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(queue);
        self.shared.writer_done.wait();
    }
}

impl Shared {
    /// Refuses a client's put times that are further from the clock than clocks may differ, for a request that may come as
    /// much as `late_ms` after the put began.
    fn check_clock(&self, put_time_ms: u64, late_ms: u64, origin: Origin) -> Result<(), EngineError> {
        if origin == Origin::Peer {
            return Ok(());
        }
        let now_ms = self.environment.clock.unix_ms();
        let earliest_ms = now_ms.saturating_sub(PUT_TIME_SKEW_MAX_MS + late_ms);
        if put_time_ms < earliest_ms || put_time_ms > now_ms.saturating_add(PUT_TIME_SKEW_MAX_MS) {
            return Err(EngineError::ClockSkew { put_time_ms, now_ms });
        }
        Ok(())
    }

    /// A fresh salt, if payloads are salted.
    fn salt(&self) -> Option<SaltKey> {
        (self.storage_type == StorageType::Salt).then(|| {
            let mut key = SaltKey::default();
            self.environment.random.fill(&mut key);
            key
        })
    }

    /// Queues a write, waiting for space. Its answer comes through what is returned.
    async fn send(
        &self,
        record: PreparedRecord,
        meaning: Meaning,
        urgent: bool,
        under_way: Option<Arc<UnderWay>>,
    ) -> Result<oneshot::Receiver<Result<Written, EngineError>>, EngineError> {
        // No record is longer than the queue bears, so waiting ends.
        let units = record.record_bytes().div_ceil(QUEUE_UNIT_BYTES).min(QUEUE_BYTES_MAX / QUEUE_UNIT_BYTES) as u32;
        let permit = Arc::clone(&self.queue_memory).acquire_many_owned(units).await.ok();
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(EngineError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let write = Write { record, meaning, urgent, reply, permit, under_way };
        queue.send(write).await.map_err(|_| EngineError::Closed)?;
        Ok(answer)
    }

    /// Queues a write and waits for its answer.
    async fn write(&self, record: PreparedRecord, meaning: Meaning, urgent: bool) -> Result<Written, EngineError> {
        self.send(record, meaning, urgent, None).await?.await.unwrap_or(Err(EngineError::Closed))
    }

    /// Queues the record that makes a blob, and waits until it is durable.
    async fn put(
        &self,
        record: PreparedRecord,
        meaning: Meaning,
        put_time_ms: u64,
        under_way: Option<Arc<UnderWay>>,
    ) -> Result<Outcome, EngineError> {
        let answer = self.send(record, meaning, false, under_way).await?;
        let done = match answer.await.unwrap_or(Err(EngineError::Closed))? {
            // Killed by a deletion, it is as if it had come before that.
            Written::At(_) | Written::Dead | Written::Overtaken => PutDone { put_time_ms, already_held: false },
            Written::Held(put_time_ms) => PutDone { put_time_ms, already_held: true },
            Written::MustMove => return Ok(Outcome::MustMove),
        };
        self.store.counters.puts.add(1);
        Ok(Outcome::Done(done))
    }

    /// As [`Shared::put`], of a blob in one record, which is written where it belongs at once.
    async fn put_done(
        &self,
        record: PreparedRecord,
        meaning: Meaning,
        put_time_ms: u64,
    ) -> Result<PutDone, EngineError> {
        match self.put(record, meaning, put_time_ms, None).await? {
            Outcome::Done(done) => Ok(done),
            Outcome::MustMove => Err(EngineError::Closed),
        }
    }

    /// Runs what blocks where it holds up no task.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        work: impl FnOnce(&Shared) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let shared = Arc::clone(self);
        let done = self.environment.blocking(move || work(&shared)).await;
        done.unwrap_or_else(|| Err(EngineError::Thread { operation, reason: "it panicked".to_owned() }))
    }
}

/// What became of a put.
enum Outcome {
    Done(PutDone),
    /// Its pieces must lie where nothing expires.
    MustMove,
}

pub(crate) fn refuse_damaged(name: BlobName, blob: &BlobEntry) -> Result<(), EngineError> {
    if blob.damaged {
        return Err(EngineError::Corrupt { name, reason: "it was found damaged before".to_owned() });
    }
    Ok(())
}

/// Hashes a whole blob, checks its name, and makes its record.
fn prepare_whole(
    name: BlobName,
    content: &Pieces,
    put_time_ms: u64,
    salt: Option<SaltKey>,
) -> Result<PreparedRecord, EngineError> {
    let length = content.len() as u64;
    let mut buffer = record_buffer(content.len() + tree_bytes(length) as usize);
    content.iter().for_each(|piece| buffer.extend_from_slice(piece));
    let mut builder = TreeBuilder::new();
    // Hashed where it lies together: pieces are shorter than what is fastest to hash.
    builder.push(buffer.get(RECORD_HEADER_BYTES..).unwrap_or_default());
    let (actual_name, pairs) = builder.finish();
    if actual_name != name {
        return Err(EngineError::NameMismatch { name, length, actual_name, actual_length: length });
    }
    buffer.extend_from_slice(&pairs);
    Ok(PreparedRecord::new(RecordKind::Blob, name.into(), 0, put_time_ms, pairs.len(), salt, buffer))
}

/// Runs work on `bytes` bytes where it blocks no async thread.
pub(crate) async fn off_thread<T: Send + 'static>(
    environment: &Environment,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    if bytes <= INLINE_BYTES_MAX {
        return Ok(work());
    }
    let died = || EngineError::Thread { operation: "hashing", reason: "it panicked".to_owned() };
    environment.blocking(work).await.ok_or_else(died)
}

/// Something that happens once and can be waited for. Nothing to wait for is as good as happened.
#[derive(Default)]
pub(crate) struct Latch {
    pending: Mutex<bool>,
    changed: Condvar,
}

impl Latch {
    fn set(&self, pending: bool) {
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = pending;
        self.changed.notify_all();
    }

    pub(crate) fn wait(&self) {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(pending, |pending| *pending));
    }
}

/// The latch is pending for as long as this lives, so that it opens even if the writer panics.
pub(crate) struct LatchGuard(Arc<Latch>);

impl LatchGuard {
    pub(crate) fn new(latch: Arc<Latch>) -> Self {
        latch.set(true);
        Self(latch)
    }
}

impl Drop for LatchGuard {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
