//! What must be true, judged from what clients and the operator were told and from what was done to the machines.
//!
//! The model is told of everything when it begins and when it ends, so that it never demands more than was promised: a put
//! that was not acknowledged may appear or not, a deletion under way may have killed a blob or not yet, and a copy that was
//! destroyed on purpose need not be there. What it is not told is how nodes do any of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use lazaret_node_client::{GetError, PutError, Stored};
use lazaret_protocol::limits::{BUCKET_MS, PUT_TIME_SKEW_MAX_MS};
use lazaret_protocol::message::{Hold, Tombstone};
use lazaret_protocol::{BlobName, ClusterMap, NodeId};

use crate::counts::Counts;
use crate::names;

/// A node whose clock is ahead by as much as clocks may differ lets a bucket go that much too early.
const CLOCK_SLACK_MS: u64 = PUT_TIME_SKEW_MAX_MS + 30_000;

pub(crate) struct Model {
    blobs: BTreeMap<BlobName, Blob>,
    /// Maps that may be in force somewhere.
    maps: Vec<ClusterMap>,
    /// Buckets before this one may have expired somewhere by maps that are no longer in force.
    expired_before: u32,
    violation: Option<String>,
    pub(crate) counts: Counts,
}

struct Blob {
    content: Bytes,
    puts: Vec<Put>,
    deletions: Vec<Deletion>,
    holds: Vec<Placed>,
}

/// A put, by the clock of the client.
struct Put {
    /// No node counts it from sooner than this.
    from_ms: u64,
    /// No node counts it from later than this; `None` while it is under way.
    to_ms: Option<u64>,
    acknowledged: Option<Acknowledged>,
    /// Every copy of it may have been destroyed on purpose since it began.
    may_be_lost: bool,
}

#[derive(Clone, Copy)]
struct Acknowledged {
    at: Duration,
    /// The put time that counts, as the client was told.
    put_time_ms: u64,
}

struct Deletion {
    time_ms: u64,
    confirmed: BTreeSet<NodeId>,
    /// Nodes whose disks were emptied since it began: what they confirmed before is forgotten.
    forgotten: BTreeSet<NodeId>,
    /// When all nodes of all maps had confirmed it.
    complete: Option<Duration>,
}

/// A hold placed or released.
struct Placed {
    hold: Hold,
    /// All nodes of all maps confirmed it.
    complete: bool,
    /// When it was placed everywhere, the blob had certainly not expired anywhere.
    in_time: bool,
}

/// What a read was told.
pub(crate) enum Read<'a> {
    Content(&'a [u8]),
    Length(u64),
    NotFound,
    Unavailable,
}

impl<'a> Read<'a> {
    pub(crate) fn of<T>(result: &'a Result<T, GetError>, found: impl FnOnce(&'a T) -> Read<'a>) -> Self {
        match result {
            Ok(value) => found(value),
            Err(GetError::NotFound { .. }) => Self::NotFound,
            Err(_) => Self::Unavailable,
        }
    }
}

/// A moment: virtual time and true wall-clock time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) at: Duration,
    pub(crate) unix_ms: u64,
}

fn bucket(time_ms: u64) -> u32 {
    u32::try_from(time_ms / BUCKET_MS).unwrap_or(u32::MAX)
}

/// The first bucket that a range of so many hours keeps.
fn first_kept(cleanuprange_hours: u32, now_ms: u64) -> u32 {
    if cleanuprange_hours == 0 { 0 } else { bucket(now_ms.saturating_sub(u64::from(cleanuprange_hours) * BUCKET_MS)) }
}

impl Model {
    pub(crate) fn new(map: ClusterMap) -> Self {
        Self { blobs: BTreeMap::new(), maps: vec![map], expired_before: 0, violation: None, counts: Counts::default() }
    }

    /// The first violation there was.
    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    pub(crate) fn violated(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert_with(|| what.into());
    }

    /// All names there are.
    pub(crate) fn names(&self) -> Vec<BlobName> {
        self.blobs.keys().copied().collect()
    }

    // Maps.

    /// A map may come into force on some node from now on.
    pub(crate) fn map_proposed(&mut self, map: &ClusterMap) {
        if !self.maps.contains(map) {
            self.maps.push(map.clone());
        }
    }

    /// All nodes hold `map`, and no other.
    pub(crate) fn map_settled(&mut self, map: &ClusterMap, now: Moment) {
        self.expired_before = self.may_have_expired_before(now);
        self.maps.retain(|other| other == map);
        self.map_proposed(map);
    }

    /// The fewest nodes that a put may be acknowledged by.
    pub(crate) fn min_replica(&self) -> usize {
        self.maps.iter().map(|map| usize::from(map.min_replica)).min().unwrap_or(1)
    }

    /// What was put before this bucket may have expired.
    pub(crate) fn may_have_expired_before(&self, now: Moment) -> u32 {
        let now_ms = now.unix_ms + CLOCK_SLACK_MS;
        self.maps.iter().map(|map| first_kept(map.cleanuprange, now_ms)).max().unwrap_or(0).max(self.expired_before)
    }

    // Puts.

    /// Returns the put's number.
    pub(crate) fn put_begins(&mut self, name: BlobName, content: &Bytes, client_ms: u64) -> usize {
        self.counts.puts += 1;
        let new = || Blob { content: content.clone(), puts: Vec::new(), deletions: Vec::new(), holds: Vec::new() };
        let blob = self.blobs.entry(name).or_insert_with(new);
        blob.puts.push(Put { from_ms: client_ms, to_ms: None, acknowledged: None, may_be_lost: false });
        blob.puts.len() - 1
    }

    pub(crate) fn put_ended(
        &mut self,
        name: BlobName,
        number: usize,
        (at, client_ms): (Duration, u64),
        result: &Result<Stored, PutError>,
    ) {
        let needed = self.min_replica();
        let Some(blob) = self.blobs.get_mut(&name) else { return };
        let length = blob.content.len() as u64;
        let Some(put) = blob.puts.get_mut(number) else { return };
        put.to_ms = Some(client_ms);
        let Ok(stored) = result else { return };
        let put_time_ms = stored.put_time_ms;
        put.acknowledged = Some(Acknowledged { at, put_time_ms });
        let from_ms = put.from_ms;
        self.counts.acknowledged += 1;
        if stored.name != name || stored.length != length {
            let other = names::blob(stored.name);
            self.violated(format!(
                "{} of {length} bytes was stored as {other} of {}",
                names::blob(name),
                stored.length
            ));
        }
        // It may count from a later put of somebody else, or from an earlier one of the same hour.
        if bucket(put_time_ms) < bucket(from_ms) {
            self.violated(format!("{} counts from {put_time_ms}, put from {from_ms} on", names::blob(name)));
        }
        let held = stored.durable_on.iter().collect::<BTreeSet<_>>().len();
        if held < needed {
            self.violated(format!("{} was acknowledged by {held} nodes, {needed} are needed", names::blob(name)));
        }
    }

    /// Copies were destroyed on purpose, of which there need not have been others: everything so far may be gone.
    pub(crate) fn may_lose(&mut self) {
        for blob in self.blobs.values_mut() {
            blob.puts.iter_mut().for_each(|put| put.may_be_lost = true);
        }
    }

    // Deletions and holds.

    /// A tombstone is sent to nodes from now on. Returns the deletion's number.
    pub(crate) fn deletion_begins(&mut self, tombstone: Tombstone) -> usize {
        self.counts.deletions += 1;
        let Some(blob) = self.blobs.get_mut(&tombstone.name) else { return 0 };
        let (confirmed, forgotten) = (BTreeSet::new(), BTreeSet::new());
        blob.deletions.push(Deletion { time_ms: tombstone.time_ms, confirmed, forgotten, complete: None });
        blob.deletions.len() - 1
    }

    pub(crate) fn deletion_ended(&mut self, name: BlobName, number: usize, confirmed: &BTreeSet<NodeId>, at: Duration) {
        let by_all = self.is_every_node(confirmed);
        if let Some(deletion) = self.blobs.get_mut(&name).and_then(|blob| blob.deletions.get_mut(number)) {
            deletion.confirmed = confirmed - &deletion.forgotten;
            deletion.complete = Some(at).filter(|_| by_all && !deletion.confirmed.is_empty());
        }
    }

    /// Whether those are all nodes that anybody may take for one of the cluster's.
    fn is_every_node(&self, ids: &BTreeSet<NodeId>) -> bool {
        self.maps.iter().flat_map(|map| &map.nodes).all(|node| ids.contains(&node.id))
    }

    /// A hold is sent to nodes from now on. Returns its number.
    pub(crate) fn hold_begins(&mut self, hold: Hold) -> usize {
        self.counts.holds += 1;
        let Some(blob) = self.blobs.get_mut(&hold.name) else { return 0 };
        blob.holds.push(Placed { hold, complete: false, in_time: false });
        blob.holds.len() - 1
    }

    pub(crate) fn hold_ended(&mut self, name: BlobName, number: usize, confirmed: &BTreeSet<NodeId>, now: Moment) {
        let complete = self.is_every_node(confirmed);
        let in_time = self.must_be_there(name, now.at, now);
        if let Some(placed) = self.blobs.get_mut(&name).and_then(|blob| blob.holds.get_mut(number)) {
            (placed.complete, placed.in_time) = (complete, in_time);
        }
    }

    /// A node's disk was emptied: what only it had confirmed is forgotten.
    pub(crate) fn confirmations_lost(&mut self, node: NodeId) {
        for blob in self.blobs.values_mut() {
            for deletion in &mut blob.deletions {
                deletion.confirmed.remove(&node);
                deletion.forgotten.insert(node);
                // Where nobody knows of it, a put by a clock that is behind it lives.
                deletion.complete = deletion.complete.filter(|_| !deletion.confirmed.is_empty());
            }
        }
    }

    // Reads.

    /// A read of `name` that began at `began` has ended.
    pub(crate) fn read_ended(&mut self, name: BlobName, began: Duration, now: Moment, read: &Read<'_>) {
        self.counts.reads += 1;
        let must_be_there = self.must_be_there(name, began, now);
        let short = names::blob(name);
        let Some(blob) = self.blobs.get(&name) else { return };
        let expected = blob.content.len() as u64;
        match read {
            Read::Content(bytes) if blob.content != *bytes => {
                self.violated(format!("a get of {short} returned other content"));
            }
            Read::Length(length) if expected != *length => {
                self.violated(format!("a stat of {short} tells {length} bytes of {expected}"));
            }
            Read::Content(_) | Read::Length(_) => {
                if blob.is_deleted(began) {
                    self.violated(format!("{short} was deleted on all nodes, and read after that"));
                }
                self.counts.found += 1;
            }
            Read::NotFound => {
                self.counts.not_found += 1;
                if must_be_there {
                    self.violated(format!("{short} was acknowledged and is not found"));
                }
            }
            Read::Unavailable => self.counts.unavailable += 1,
        }
    }

    /// Whether a read of `name` that began at `began` and goes on until `now` must find it, if anybody answers.
    pub(crate) fn must_be_there(&self, name: BlobName, began: Duration, now: Moment) -> bool {
        let expired_before = self.may_have_expired_before(now);
        self.blobs.get(&name).is_some_and(|blob| {
            let held = blob.is_held();
            blob.puts.iter().filter(|put| !put.may_be_lost).filter_map(|put| put.acknowledged).any(|put| {
                let deleted = blob.deletions.iter().any(|deletion| deletion.time_ms >= put.put_time_ms);
                let expired = bucket(put.put_time_ms) < expired_before && !held;
                put.at <= began && !deleted && !expired
            })
        })
    }

    /// Why `name` must be gone, now that everything works, all nodes hold `map` and retention had its time; if it must.
    pub(crate) fn must_be_gone(&self, name: BlobName, map: &ClusterMap, now: Moment) -> Option<&'static str> {
        let blob = self.blobs.get(&name)?;
        let latest_ms = blob.puts.iter().map(|put| put.to_ms.unwrap_or(u64::MAX)).max()?;
        let stands = |deletion: &&Deletion| !deletion.confirmed.is_empty();
        if blob.deletions.iter().filter(stands).any(|deletion| deletion.time_ms >= latest_ms) {
            return Some("deleted");
        }
        let may_be_held = blob.holds.iter().any(|placed| placed.hold.placed);
        let kept = first_kept(map.cleanuprange, now.unix_ms);
        (bucket(latest_ms) < kept && !may_be_held).then_some("expired")
    }
}

impl Blob {
    /// Whether all nodes had a tombstone for everything that was ever put, at `began`.
    fn is_deleted(&self, began: Duration) -> bool {
        let Some(latest_ms) = self.puts.iter().map(|put| put.to_ms.unwrap_or(u64::MAX)).max() else { return false };
        self.deletions
            .iter()
            .any(|deletion| deletion.time_ms >= latest_ms && deletion.complete.is_some_and(|at| at <= began))
    }

    /// Whether a hold stands on all nodes that was placed in time, and nobody tried to release it since.
    fn is_held(&self) -> bool {
        let latest = self.holds.iter().map(|placed| placed.hold.time_ms).max();
        self.holds.iter().all(|placed| Some(placed.hold.time_ms) < latest || placed.hold.placed)
            && self.holds.iter().any(|placed| {
                let undone =
                    self.holds.iter().any(|other| !other.hold.placed && other.hold.time_ms >= placed.hold.time_ms);
                placed.hold.placed && placed.complete && placed.in_time && !undone
            })
    }
}
