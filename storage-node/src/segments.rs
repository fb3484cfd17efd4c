//! The segments being written: which one a bucket's records go to, what of each is durable, and which have failed.
//!
//! Records are staged (given a place), then written, then synced, all for a whole group at a time. A segment whose write
//! or sync failed is never touched again, and nothing behind its synced offset counts from then on. Ids are never reused.
//!
//! Repair brings puts of many old buckets in turn. So that this does not begin a segment each time, a bucket whose file is
//! closed to make room for others keeps its segment, idle, and goes on with it. A segment is sealed when it is full, or
//! when nothing was written to it for an hour.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use lazaret_node_client::environment::Random;
use lazaret_protocol::limits::MIB;
use lazaret_protocol::{ClusterId, NodeId};

use crate::disk::{Disk, DiskError, SegmentFile};
use crate::engine::{Counters, Progress};
use crate::record::{Location, Marker, PreparedRecord, SEGMENT_HEADER_BYTES, SegmentAddress, SegmentHeader};

/// Most segments open for appending. Clients use two buckets at a time and long uploads older ones; repair goes through
/// the 24 of a day.
const ACTIVE_SEGMENTS_MAX: usize = 64;
/// Most segments that are neither open nor sealed: half a year of buckets. Each costs recovery a look at its end.
const IDLE_SEGMENTS_MAX: usize = 4096;
/// After so long without a record a segment is sealed, so that scrub and compaction may have it.
const SEAL_AFTER: Duration = Duration::from_secs(3600);
/// How often segments are looked at for that.
const SEAL_CHECK_EVERY: Duration = Duration::from_secs(60);
/// Most bytes of a segment that wait for a sync. It bounds how long a commit may have to wait for its own, and how much a
/// recovery reads.
const UNSYNCED_BYTES_MAX: u64 = 64 * MIB;
/// After so many failed segments nothing more is written until the node is opened again: the disk is broken, and each
/// try leaves another file behind.
const FAILED_SEGMENTS_MAX: usize = 64;

/// Where new segments come from.
pub(crate) struct SegmentSource {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) segment_bytes_max: u64,
    pub(crate) next_id: u64,
    pub(crate) counters: Arc<Counters>,
}

pub(crate) struct Segments {
    source: SegmentSource,
    /// The segment that a bucket's records go to.
    active: BTreeMap<u32, OpenSegment>,
    /// To be closed, once what they have is durable.
    retired: Vec<Retired>,
    /// Closed and not sealed: the segment that a bucket's records go to.
    idle: BTreeMap<u32, IdleSegment>,
    /// Idle segments that were sealed, of which the index has not been told.
    sealed: Vec<Progress>,
    /// The time, as of the group's beginning.
    now: Duration,
    sealed_stale_at: Duration,
    /// Synced offsets of the segments that failed since the node was opened.
    failed: BTreeMap<u64, u64>,
    /// Failures that the index has not been told of.
    failures: Vec<Progress>,
}

struct OpenSegment {
    address: SegmentAddress,
    file: Box<dyn SegmentFile>,
    marker: Marker,
    written: u64,
    synced: u64,
    staged: Vec<Vec<u8>>,
    staged_bytes: u64,
    /// When it last took a record.
    used: Duration,
}

struct Retired {
    segment: OpenSegment,
    /// For good.
    sealed: bool,
}

/// All of it is durable.
struct IdleSegment {
    address: SegmentAddress,
    marker: Marker,
    written: u64,
    used: Duration,
}

impl IdleSegment {
    fn sealed(&self) -> Progress {
        Progress { address: self.address, synced: self.written, sealed: true }
    }
}

impl OpenSegment {
    fn end(&self) -> u64 {
        self.written + self.staged_bytes
    }

    fn write(&mut self) -> Result<u64, DiskError> {
        let pieces: Vec<IoSlice<'_>> = self.staged.iter().map(|piece| IoSlice::new(piece)).collect();
        self.file.write_at(self.written, &pieces)?;
        let bytes = self.staged_bytes;
        self.written += bytes;
        self.unstage();
        Ok(bytes)
    }

    fn unstage(&mut self) {
        self.staged.clear();
        self.staged_bytes = 0;
    }
}

impl SegmentSource {
    fn open(&mut self, bucket: u32) -> Result<OpenSegment, DiskError> {
        let address = SegmentAddress { bucket, id: self.next_id };
        // The id counts as used even if the segment can't be created: a half-created one may turn up after a crash.
        self.next_id += 1;
        let mut marker = Marker::default();
        self.random.fill(&mut marker);
        let file = self.disk.create_segment(address)?;
        self.counters.segments.add(1);
        let header = SegmentHeader { address, cluster: self.cluster, node: self.node, marker };
        Ok(OpenSegment {
            address,
            file,
            marker,
            written: 0,
            synced: 0,
            staged: vec![header.encode().to_vec()],
            staged_bytes: SEGMENT_HEADER_BYTES as u64,
            used: Duration::ZERO,
        })
    }

    fn reopen(&self, idle: &IdleSegment) -> Result<OpenSegment, DiskError> {
        Ok(OpenSegment {
            address: idle.address,
            file: self.disk.open_segment(idle.address)?,
            marker: idle.marker,
            written: idle.written,
            synced: idle.written,
            staged: Vec::new(),
            staged_bytes: 0,
            used: idle.used,
        })
    }
}

impl Segments {
    pub(crate) fn new(source: SegmentSource) -> Self {
        Self {
            source,
            active: BTreeMap::new(),
            retired: Vec::new(),
            idle: BTreeMap::new(),
            sealed: Vec::new(),
            now: Duration::ZERO,
            sealed_stale_at: Duration::ZERO,
            failed: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    /// Begins a group at `now`, by a clock that does not jump: retires what was not written to for long.
    pub(crate) fn begin(&mut self, now: Duration) {
        self.now = now;
        if now.saturating_sub(self.sealed_stale_at) < SEAL_CHECK_EVERY {
            return;
        }
        self.sealed_stale_at = now;
        let stale = |used: Duration| now.saturating_sub(used) >= SEAL_AFTER;
        let active = self.active.iter().filter(|(_, segment)| stale(segment.used));
        for bucket in active.map(|(&bucket, _)| bucket).collect::<Vec<_>>() {
            self.retire(bucket, true);
        }
        self.idle.retain(|_, segment| {
            let keep = !stale(segment.used);
            if !keep {
                self.sealed.push(segment.sealed());
            }
            keep
        });
    }

    /// Gives a record its place in the active segment of `bucket`.
    pub(crate) fn stage(&mut self, bucket: u32, record: PreparedRecord) -> Result<Location, DiskError> {
        if self.failed.len() >= FAILED_SEGMENTS_MAX {
            let reason = "too many writes failed: check the disk, then restart the node";
            return Err(DiskError::new("write to", "the data directory", std::io::Error::other(reason)));
        }
        if !self.active.contains_key(&bucket) {
            self.resume(bucket)?;
        }
        let full = |segment: &OpenSegment| segment.end() + record.record_bytes() > self.source.segment_bytes_max;
        if self.active.get(&bucket).is_some_and(full) {
            self.retire(bucket, true);
        }
        if !self.active.contains_key(&bucket) {
            self.make_room();
            let opened = self.source.open(bucket)?;
            self.active.insert(bucket, opened);
        }
        let Some(segment) = self.active.get_mut(&bucket) else {
            let reason = std::io::Error::other("it vanished");
            return Err(DiskError::new("write to the segment of bucket", bucket, reason));
        };
        segment.used = self.now;
        let location = Location { segment: segment.address, offset: segment.end() };
        segment.staged_bytes += record.record_bytes();
        segment.staged.push(record.placed(segment.marker, segment.synced));
        Ok(location)
    }

    fn retire(&mut self, bucket: u32, sealed: bool) {
        self.retired.extend(self.active.remove(&bucket).map(|segment| Retired { segment, sealed }));
    }

    /// Opens the segment that a bucket went on with, if there is one.
    fn resume(&mut self, bucket: u32) -> Result<(), DiskError> {
        let closing = |retired: &Retired| !retired.sealed && retired.segment.address.bucket == bucket;
        let segment = if let Some(at) = self.retired.iter().position(closing) {
            self.retired.remove(at).segment
        } else if let Some(idle) = self.idle.remove(&bucket) {
            self.source.reopen(&idle).inspect_err(|_| self.sealed.push(idle.sealed()))?
        } else {
            return Ok(());
        };
        self.make_room();
        self.active.insert(bucket, segment);
        Ok(())
    }

    /// Closes the segment that was not used for longest if too many are open.
    fn make_room(&mut self) {
        let oldest = || self.active.iter().min_by_key(|(_, segment)| segment.used).map(|(&bucket, _)| bucket);
        if self.active.len() >= ACTIVE_SEGMENTS_MAX
            && let Some(bucket) = oldest()
        {
            self.retire(bucket, false);
        }
    }

    /// All segments with open files.
    fn open_segments(&mut self) -> impl Iterator<Item = &mut OpenSegment> {
        self.active.values_mut().chain(self.retired.iter_mut().map(|retired| &mut retired.segment))
    }

    /// Writes what is staged. After a failure nothing of it counts, wherever it was to go.
    pub(crate) fn write(&mut self) -> Result<(), DiskError> {
        let mut outcome = Ok(());
        let mut failed = None;
        let (counters, disk) = (Arc::clone(&self.source.counters), Arc::clone(&self.source.disk));
        for segment in self.open_segments().filter(|segment| !segment.staged.is_empty()) {
            match segment.write() {
                Ok(bytes) => counters.segment_bytes.add(bytes),
                Err(error) => {
                    // What it left behind takes space until the segment goes.
                    let length = disk.length(segment.address).unwrap_or(segment.written);
                    counters.segment_bytes.add(length.saturating_sub(segment.written));
                    failed = Some(segment.address.id);
                    outcome = Err(error);
                    break;
                }
            }
        }
        if let Some(id) = failed {
            self.fail(id);
        }
        if outcome.is_err() {
            self.unstage();
        }
        outcome
    }

    /// Forgets what is staged and not written.
    pub(crate) fn unstage(&mut self) {
        self.open_segments().for_each(OpenSegment::unstage);
        // A segment whose header was staged only begins with nothing: it takes no records.
        let empty: Vec<u32> =
            self.active.iter().filter(|(_, segment)| segment.written == 0).map(|(&bucket, _)| bucket).collect();
        for bucket in empty {
            self.active.remove(&bucket);
        }
        self.retired.retain(|retired| retired.segment.written > 0);
    }

    /// Syncs the segments `wanted` (by id), those that take no more records and those with too much unsynced. Returns
    /// the new states.
    pub(crate) fn sync(&mut self, wanted: &BTreeSet<u64>) -> Result<Vec<Progress>, DiskError> {
        let mut states = Vec::new();
        let active = self.active.values_mut().filter(|segment| {
            let unsynced = segment.written - segment.synced;
            unsynced > 0 && (wanted.contains(&segment.address.id) || unsynced > UNSYNCED_BYTES_MAX)
        });
        let due: Vec<(&mut OpenSegment, bool)> = active
            .map(|segment| (segment, false))
            .chain(self.retired.iter_mut().map(|retired| (&mut retired.segment, retired.sealed)))
            .collect();
        let mut failed = None;
        for (segment, sealed) in due {
            let synced = if segment.written > segment.synced {
                self.source.counters.syncs.add(1);
                segment.file.sync()
            } else {
                Ok(())
            };
            match synced {
                Ok(()) => {
                    segment.synced = segment.written;
                    states.push(Progress { address: segment.address, synced: segment.synced, sealed });
                }
                Err(error) => {
                    failed = Some((segment.address.id, error));
                    break;
                }
            }
        }
        if let Some((id, error)) = failed {
            self.fail(id);
            return Err(error);
        }
        states.append(&mut self.sealed);
        self.close_retired(&mut states);
        Ok(states)
    }

    /// Closes what is durable and takes no records for now.
    fn close_retired(&mut self, states: &mut Vec<Progress>) {
        for Retired { segment, .. } in self.retired.drain(..).filter(|retired| !retired.sealed) {
            let OpenSegment { address, marker, written, used, .. } = segment;
            self.idle.insert(address.bucket, IdleSegment { address, marker, written, used });
        }
        while self.idle.len() > IDLE_SEGMENTS_MAX
            && let Some(&bucket) = self.idle.iter().min_by_key(|(_, segment)| segment.used).map(|(bucket, _)| bucket)
        {
            states.extend(self.idle.remove(&bucket).map(|segment| segment.sealed()));
        }
    }

    /// Syncs everything that is not durable yet.
    pub(crate) fn sync_all(&mut self) -> Result<Vec<Progress>, DiskError> {
        let all = self.active.values().map(|segment| segment.address.id).collect();
        self.sync(&all)
    }

    /// Syncs and closes everything.
    pub(crate) fn close(&mut self) -> Result<Vec<Progress>, DiskError> {
        let active = std::mem::take(&mut self.active);
        self.retired.extend(active.into_values().map(|segment| Retired { segment, sealed: true }));
        self.retired.iter_mut().for_each(|retired| retired.sealed = true);
        self.sealed.extend(std::mem::take(&mut self.idle).into_values().map(|segment| segment.sealed()));
        self.sync(&BTreeSet::new())
    }

    /// Whether the record at `location` was lost when its segment failed.
    pub(crate) fn lost(&self, location: &Location) -> bool {
        self.failed.get(&location.segment.id).is_some_and(|&synced| location.offset >= synced)
    }

    /// Whether a segment takes records, or has some that are not durable.
    pub(crate) fn is_open(&self, address: SegmentAddress) -> bool {
        let retired = self.retired.iter().map(|retired| &retired.segment);
        self.active.values().chain(retired).any(|segment| segment.address == address)
    }

    /// Failures that the index must be told of, each once.
    pub(crate) fn take_failures(&mut self) -> Vec<Progress> {
        std::mem::take(&mut self.failures)
    }

    /// Lets go of the segments of buckets before `bucket`, which have expired: nothing of them is worth a sync.
    pub(crate) fn abandon_before(&mut self, bucket: u32) {
        self.active.retain(|&of, _| of >= bucket);
        self.retired.retain(|retired| retired.segment.address.bucket >= bucket);
        self.idle.retain(|&of, _| of >= bucket);
        self.sealed.retain(|progress| progress.address.bucket >= bucket);
        self.failures.retain(|progress| progress.address.bucket >= bucket);
    }

    fn fail(&mut self, id: u64) {
        let bucket = self.active.iter().find(|(_, segment)| segment.address.id == id).map(|(&bucket, _)| bucket);
        let retired = self.retired.iter().position(|retired| retired.segment.address.id == id);
        let segment = bucket
            .and_then(|bucket| self.active.remove(&bucket))
            .or_else(|| retired.map(|at| self.retired.remove(at).segment));
        if let Some(segment) = segment {
            self.failed.insert(id, segment.synced);
            self.failures.push(Progress { address: segment.address, synced: segment.synced, sealed: true });
        }
    }
}
