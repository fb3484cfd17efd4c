//! The disks of one node as one store. Each is an engine with segments and an index of its own.
//!
//! - A name lies on the disk that is highest for it among those in use with space. So a disk more or less moves nothing:
//!   what lies elsewhere is found there, since all disks are asked, and the newest put decides.
//! - Tombstones and holds go to every disk, and each of them counts wherever its name lies. Disks that missed some (they
//!   were out of use, or are new) are told by [`Store::agree`]; until then nothing expires.
//! - A disk whose writes keep failing is out of use: the others take what comes, what can still be read from it is read,
//!   and what can't counts as missing, for repair to bring back from other nodes. A disk with a damaged index is out of use
//!   until the index is rebuilt, which begins at once. Meanwhile nothing is said to be absent that may lie on it.
//! - What expired on one disk has expired on all: the latest horizon of any disk is the store's.
//!
//! It moves nothing between disks and knows no other node.

mod agree;
mod lookup;
mod open;
mod slot;
mod upload;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lazaret_node_client::environment::Environment;
use lazaret_node_client::stream::Pieces;
use lazaret_protocol::limits::BUCKET_MS;
use lazaret_protocol::message::{DiskReport, Expirable, Hold, NodeStatus, PutDone, PutLocator, Tombstone};
use lazaret_protocol::{BlobName, PlacementKey, UploadId};
pub use open::{Rebuilt, rebuild_index};
pub use slot::DiskSource;
pub use upload::StoreUpload;

use crate::engine::{DiskId, Engine, EngineError, EngineOptions, Origin, Scrubbed};
use crate::record::{SegmentAddress, bucket_of};
use slot::{Noted, Placed, Slot};

/// A scrub looks so often whether the store was closed while it rests.
const REST_MAX: Duration = Duration::from_millis(100);

/// The store. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    /// In the order of the configuration.
    slots: Vec<Slot>,
    environment: Environment,
    /// What an engine is opened with again; `None` if none can be.
    options: Option<EngineOptions>,
    /// The latest horizon of any disk.
    horizon: AtomicU32,
    /// Whether every disk in use has every tombstone and hold of the others.
    agreed: AtomicBool,
    /// How often a disk came back into use, so that an agreement that began before does not count.
    returns: AtomicU64,
    closed: AtomicBool,
    /// The disks that were last known to agree, in use or not.
    agreement: Mutex<BTreeSet<DiskId>>,
}

impl From<Engine> for Store {
    /// A store of one disk that is open already. Its index is not rebuilt before the node starts again.
    fn from(engine: Engine) -> Self {
        let (environment, horizon) = (engine.environment().clone(), engine.horizon());
        let id = Some(engine.disk_id());
        let slot = Slot::new("disk".to_owned(), id, slot::State::Serving(engine), None);
        Self::of(vec![slot], environment, None, horizon)
    }
}

impl Store {
    fn of(slots: Vec<Slot>, environment: Environment, options: Option<EngineOptions>, horizon: u32) -> Self {
        let inner = Inner {
            // One disk agrees with itself.
            agreed: AtomicBool::new(slots.len() == 1),
            slots,
            environment,
            options,
            horizon: AtomicU32::new(horizon),
            returns: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            agreement: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Stores a blob that is whole in memory.
    pub async fn put_whole(
        &self,
        name: BlobName,
        content: impl Into<Pieces>,
        put_time_ms: u64,
        origin: Origin,
    ) -> Result<PutDone, EngineError> {
        self.check_horizon(name, put_time_ms)?;
        let content = content.into();
        let put = |engine: Engine| {
            let content = content.clone();
            async move { engine.put_whole(name, content, put_time_ms, origin).await }
        };
        self.write_somewhere(self.order_for_name(name, put_time_ms).await?, put).await
    }

    /// Begins a streamed upload of a blob that is placed by `placement`.
    pub fn begin_upload(
        &self,
        upload: UploadId,
        placement: PlacementKey,
        put_time_ms: u64,
        origin: Origin,
    ) -> Result<StoreUpload, EngineError> {
        let order = self.order(placement.into());
        let slot = *order.first().ok_or_else(|| self.no_disk())?;
        let engine = self.slot(slot)?.serving().ok_or_else(|| self.no_disk())?;
        let begun = engine.begin_upload(upload, placement, put_time_ms, origin)?;
        Ok(StoreUpload::new(self.clone(), slot, engine, begun))
    }

    /// Stores a locator.
    pub async fn put_locator(&self, put: PutLocator, origin: Origin) -> Result<(), EngineError> {
        self.check_horizon(put.name, put.put_time_ms)?;
        let write = |engine: Engine| async move { engine.put_locator(put, origin).await };
        self.write_somewhere(self.order(put.name.into()), write).await
    }

    /// Kills every put of a name up to a time, wherever it lies and whenever it comes.
    pub async fn delete(&self, tombstone: Tombstone) -> Result<(), EngineError> {
        self.write_everywhere(|engine: Engine| async move { engine.delete(tombstone).await }).await
    }

    /// Places or releases a legal hold.
    pub async fn hold(&self, hold: Hold) -> Result<(), EngineError> {
        self.write_everywhere(|engine: Engine| async move { engine.hold(hold).await }).await
    }

    /// Drops this node's copies of a name that are of this put or older and not held; locators stay. Returns whether there
    /// were any.
    pub async fn forget(&self, name: BlobName, put_time_ms: u64) -> Result<bool, EngineError> {
        let forget = |engine: Engine, time_ms| async move { engine.forget(name, time_ms).await };
        self.drop_copies(name, put_time_ms, forget).await
    }

    /// The same for copies that may be held: for who knows that others hold the blob and know of the hold.
    pub async fn forget_held(&self, name: BlobName, put_time_ms: u64) -> Result<bool, EngineError> {
        let forget = |engine: Engine, time_ms| async move { engine.forget_held(name, time_ms).await };
        self.drop_copies(name, put_time_ms, forget).await
    }

    async fn drop_copies<F: Future<Output = Result<bool, EngineError>> + Send>(
        &self,
        name: BlobName,
        put_time_ms: u64,
        forget: impl Fn(Engine, u64) -> F,
    ) -> Result<bool, EngineError> {
        let mut forgotten = false;
        for (slot, engine) in self.serving() {
            let known = engine.clone();
            let entry = self.inner.environment.blocking(move || known.entry(name)).await;
            let entry = self.noted(slot, &engine, entry.unwrap_or_else(|| Err(died("reading the index"))))?;
            let held = entry.and_then(|entry| entry.blob).map(|blob| blob.put_time_ms);
            if let Some(time_ms) = held.filter(|time_ms| *time_ms <= put_time_ms) {
                forgotten |= self.noted(slot, &engine, forget(engine.clone(), time_ms).await)?;
            }
        }
        Ok(forgotten)
    }

    /// The first bucket that has not expired.
    pub fn horizon(&self) -> u32 {
        self.inner.horizon.load(Ordering::SeqCst)
    }

    /// What [`Store::expire`] would remove.
    pub fn expirable(&self, before_bucket: u32) -> Expirable {
        self.serving().map(|(_, engine)| engine.expirable(before_bucket)).fold(Expirable::default(), sum)
    }

    /// Removes everything of buckets before `before_bucket` that is not held, and says what that was. Nothing is removed
    /// while the disks do not agree on what is held; see [`Store::agree`].
    pub async fn expire(&self, before_bucket: u32) -> Result<Expirable, EngineError> {
        self.agree().await?;
        if !self.inner.agreed.load(Ordering::SeqCst) {
            // A disk came back meanwhile.
            return Ok(Expirable::default());
        }
        let mut expired = Expirable::default();
        for (slot, engine) in self.serving() {
            expired = sum(expired, self.expire_on(slot, &engine, before_bucket).await?);
            self.inner.horizon.fetch_max(engine.horizon(), Ordering::SeqCst);
        }
        Ok(expired)
    }

    async fn expire_on(&self, slot: usize, engine: &Engine, before_bucket: u32) -> Result<Expirable, EngineError> {
        let expiring = engine.clone();
        let expired = self.inner.environment.blocking(move || expiring.expire(before_bucket)).await;
        self.noted(slot, engine, expired.unwrap_or_else(|| Err(died("expiry"))))
    }

    /// What the disks in use keep under this name, in the order of the configuration. They may differ where one was out of
    /// use when it was written. Blocks.
    pub fn read_small(&self, name: &str) -> Result<Vec<Vec<u8>>, EngineError> {
        let mut found = Vec::new();
        for (slot, engine) in self.serving() {
            let content = engine.disk().read_small(name).map_err(EngineError::from);
            found.extend(self.noted(slot, &engine, content)?);
        }
        Ok(found)
    }

    /// Keeps a small file on every disk in use, durably. Blocks.
    pub fn write_small(&self, name: &str, content: &[u8]) -> Result<(), EngineError> {
        let mut written = false;
        for (slot, engine) in self.serving() {
            self.noted(slot, &engine, engine.disk().write_small(name, content).map_err(EngineError::from))?;
            written = true;
        }
        if written { Ok(()) } else { Err(self.no_disk()) }
    }

    /// Writes what is alive of the segment with the highest dead share above `min_dead_share` again, on the first disk that
    /// has one, and removes the segment. Returns the bytes given back; `None` if no disk has one.
    pub async fn compact(&self, min_dead_share: f64) -> Result<Option<u64>, EngineError> {
        for (slot, engine) in self.serving() {
            let given_back = self.noted(slot, &engine, engine.compact(min_dead_share).await)?;
            if given_back.is_some() {
                return Ok(given_back);
            }
        }
        Ok(None)
    }

    /// The sealed segments of all disks in use: the disk's number in the configuration, and the segment on it. Blocks for
    /// as long as a read of the indexes takes.
    pub fn sealed_segments(&self) -> Result<Vec<(usize, SegmentAddress)>, EngineError> {
        let mut all = Vec::new();
        for (slot, engine) in self.serving() {
            let segments = self.noted(slot, &engine, engine.sealed_segments())?;
            all.extend(segments.into_iter().map(|address| (slot, address)));
        }
        Ok(all)
    }

    /// Verifies a sealed segment of a disk at a pace, and marks what is damaged in it. A store that is closed meanwhile
    /// waits for it no longer than its reading takes.
    pub async fn scrub_segment(
        &self,
        disk: usize,
        address: SegmentAddress,
        bytes_per_second: u64,
    ) -> Result<Scrubbed, EngineError> {
        let engine = self.slot(disk)?.serving().ok_or_else(|| self.no_disk())?;
        let (store, scrubbed) = (self.clone(), engine.clone());
        let scrub = move || {
            let began = store.inner.environment.clock.monotonic();
            let mut read: u64 = 0;
            scrubbed.scrub_segment(address, &mut |bytes| {
                read = read.saturating_add(bytes);
                store.rest_until(began.saturating_add(time_for(read, bytes_per_second)));
            })
        };
        let outcome = self.inner.environment.blocking(scrub).await;
        self.noted(disk, &engine, outcome.unwrap_or_else(|| Err(died("a scrub"))))
    }

    /// Blocks until the clock says so, or the store is closed. Where work runs on the spot, time does not pass for it.
    fn rest_until(&self, due: Duration) {
        let Environment { clock, spawner, .. } = &self.inner.environment;
        while !spawner.blocks_in_place() && !self.inner.closed.load(Ordering::SeqCst) {
            let left = due.saturating_sub(clock.monotonic());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(REST_MAX));
        }
    }

    /// State and counters since the store was opened, over all disks.
    pub fn status(&self) -> NodeStatus {
        let mut all = NodeStatus { full: true, ..NodeStatus::default() };
        for slot in &self.inner.slots {
            let Some(engine) = slot.engine() else { continue };
            let one = engine.status();
            all.blobs += one.blobs;
            all.segments += one.segments;
            all.segment_bytes += one.segment_bytes;
            all.disk_free_bytes += one.disk_free_bytes;
            all.disk_total_bytes += one.disk_total_bytes;
            all.puts += one.puts;
            all.gets += one.gets;
            all.corrupt_reads += one.corrupt_reads;
            all.syncs += one.syncs;
            all.recovered_records += one.recovered_records;
            all.full &= one.full || slot.serving().is_none();
        }
        all
    }

    /// Each disk as it is now, in the order of the configuration.
    pub fn report(&self) -> Vec<DiskReport> {
        self.inner.slots.iter().map(Slot::report).collect()
    }

    /// Makes durable what the indexes were told.
    pub fn flush(&self) -> Result<(), EngineError> {
        for (slot, engine) in self.serving() {
            self.noted(slot, &engine, engine.flush())?;
        }
        Ok(())
    }

    /// Takes no more writes, finishes those that wait, and makes everything durable. Reads go on. Blocks; may be called
    /// again.
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::SeqCst);
        self.wait_for_reopening();
        for engine in self.inner.slots.iter().filter_map(Slot::engine) {
            engine.close();
        }
    }

    fn agreement(&self) -> MutexGuard<'_, BTreeSet<DiskId>> {
        self.inner.agreement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, number: usize) -> Result<&Slot, EngineError> {
        self.inner.slots.get(number).ok_or_else(|| self.no_disk())
    }

    /// The disks in use and their engines.
    fn serving(&self) -> impl Iterator<Item = (usize, Engine)> + '_ {
        self.inner.slots.iter().enumerate().filter_map(|(number, slot)| Some((number, slot.serving()?)))
    }

    fn no_disk(&self) -> EngineError {
        if self.inner.closed.load(Ordering::SeqCst) {
            return EngineError::Closed;
        }
        EngineError::NoDisk { reasons: self.failures() }
    }

    /// The disks out of use, and why they are.
    fn failures(&self) -> String {
        let failed = self.report().into_iter().filter_map(|disk| Some(format!("{}: {}", disk.path, disk.failed?)));
        failed.collect::<Vec<_>>().join("; ")
    }

    /// A put that has expired on one disk has expired on all, unless it is held: then its disk says.
    fn check_horizon(&self, name: BlobName, put_time_ms: u64) -> Result<(), EngineError> {
        if self.inner.slots.len() > 1 && bucket_of(put_time_ms) < self.horizon() {
            let held = self.lookup(name)?.entry.holds(put_time_ms);
            if !held {
                let expired_before_ms = u64::from(self.horizon()) * BUCKET_MS;
                return Err(EngineError::Expired { put_time_ms, expired_before_ms });
            }
        }
        Ok(())
    }

    /// The disks in use, the one for `key` first, full ones last.
    fn order(&self, key: Placed) -> Vec<usize> {
        let mut order: Vec<(bool, [u8; 32], usize)> = self
            .serving()
            .map(|(number, engine)| {
                let score = self.slot(number).map(|slot| slot.score(key)).unwrap_or_default();
                (engine.has_space(), score, number)
            })
            .collect();
        order.sort_unstable_by(|one, other| other.cmp(one));
        order.into_iter().map(|(_, _, number)| number).collect()
    }

    /// The disks in use, beginning with one that holds the name and has nothing to gain by another put of it.
    async fn order_for_name(&self, name: BlobName, put_time_ms: u64) -> Result<Vec<usize>, EngineError> {
        let mut order = self.order(name.into());
        if order.len() > 1 {
            let store = self.clone();
            let found = self.inner.environment.blocking(move || store.lookup(name)).await;
            let found = found.unwrap_or_else(|| Err(died("reading the index")))?;
            let holder = found.copies.iter().find(|copy| copy.blob.covers(put_time_ms)).map(|copy| copy.slot);
            if let Some(at) = order.iter().position(|&number| Some(number) == holder) {
                order.swap(0, at);
            }
        }
        Ok(order)
    }

    /// Writes to the first of these disks that can take it. What is wrong with the write and not with the disk ends it.
    async fn write_somewhere<T, F: Future<Output = Result<T, EngineError>> + Send>(
        &self,
        order: Vec<usize>,
        write: impl Fn(Engine) -> F,
    ) -> Result<T, EngineError> {
        let mut last = None;
        for number in order {
            let slot = self.slot(number)?;
            let Some(engine) = slot.serving() else { continue };
            match write(engine.clone()).await {
                Ok(done) => {
                    slot.note_success();
                    return Ok(done);
                }
                Err(error) => {
                    self.note(number, &engine, &error);
                    if !another_disk_may_help(&error) {
                        return Err(error);
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| self.no_disk()))
    }

    /// Writes to all disks in use. A disk that fails at it and goes out of use is passed over.
    async fn write_everywhere<F: Future<Output = Result<(), EngineError>> + Send>(
        &self,
        write: impl Fn(Engine) -> F,
    ) -> Result<(), EngineError> {
        let returns = self.inner.returns.load(Ordering::SeqCst);
        let mut written = 0;
        for (number, slot) in self.inner.slots.iter().enumerate() {
            let Some(engine) = slot.serving() else { continue };
            match write(engine.clone()).await {
                Ok(()) => {
                    slot.note_success();
                    written += 1;
                }
                Err(error) => match self.note(number, &engine, &error) {
                    Noted::Failed | Noted::IndexDamaged => {}
                    Noted::Nothing | Noted::Counted => return Err(error),
                },
            }
        }
        if written == 0 {
            return Err(self.no_disk());
        }
        if written < self.inner.slots.len() {
            // Before it is acknowledged: the disks that miss it must be told when they come back.
            self.write_down_who_agrees().await?;
        }
        if self.inner.returns.load(Ordering::SeqCst) != returns {
            // A disk came back meanwhile and may have missed this, even if it was brought into agreement before it was over.
            self.write_agreement(&BTreeSet::new()).await?;
            self.inner.agreed.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Passes a result on and draws the conclusion from an error.
    fn noted<T>(&self, number: usize, engine: &Engine, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(error) = &result {
            self.note(number, engine, error);
        }
        result
    }

    fn note(&self, number: usize, engine: &Engine, error: &EngineError) -> Noted {
        let Ok(slot) = self.slot(number) else { return Noted::Nothing };
        let noted = slot.note(engine, error);
        if noted == Noted::IndexDamaged {
            self.begin_reopening(number, engine.clone());
        }
        noted
    }
}

/// Whether a write that failed with this may succeed on another disk.
fn another_disk_may_help(error: &EngineError) -> bool {
    matches!(error, EngineError::Disk(_) | EngineError::Index(_) | EngineError::Full { .. } | EngineError::Closed)
}

fn time_for(bytes: u64, bytes_per_second: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1) as f64)
}

fn died(operation: &'static str) -> EngineError {
    EngineError::Thread { operation, reason: "it panicked".to_owned() }
}

fn sum(one: Expirable, other: Expirable) -> Expirable {
    Expirable {
        blobs: one.blobs.saturating_add(other.blobs),
        bytes: one.bytes.saturating_add(other.bytes),
        before_ms: one.before_ms.max(other.before_ms),
    }
}
