//! Repair: brings copies to where they belong, without an operator.
//!
//! A *round* goes through the 256 partitions of the name space. In each this node compares itself with every other one
//! ([`share`]: digests of what both should hold, then the items behind those that differ) and fetches what it lacks
//! ([`fetch`]); and it hands over what belongs elsewhere ([`surplus`]). So each node makes good its own losses and gives up
//! its own surplus, and nobody coordinates. Rounds run after a start, a new map, the return or the loss of a node, damage, on
//! demand, and now and then anyway.
//!
//! Invariants: a surplus copy goes only after every owner has read its own copy and found it sound and no older; nothing
//! expired is fetched or taken; two nodes with different maps compare nothing. A round is idempotent and may be cut short
//! anywhere. It yields to clients: one step at a time with rests while they want the node.

pub(crate) mod answer;
mod fetch;
pub(crate) mod share;
mod surplus;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lazaret_protocol::message::{DayDigest, RepairReport, RepairScope, Request, Response};
use lazaret_protocol::{BlobName, ClusterMap, NodeId};
use tokio::sync::Notify;

use self::share::View;
use self::surplus::SurplusItem;
use super::Shared;
use crate::index::Entry;

/// Parts of the name space, one a first byte.
pub(crate) const PARTITIONS: u32 = 256;
/// Entries read from the index at a time.
const PAGE_ENTRIES: usize = 1024;
/// How soon a round that left something undone is followed by the next.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How long to wait after the first reason for a round, since reasons come in groups.
const GATHER: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(crate) struct Repair {
    wake: Notify,
    running: AtomicBool,
    partitions_done: AtomicU64,
    rounds: AtomicU64,
    clean: AtomicBool,
    missing_blobs: AtomicU64,
    missing_bytes: AtomicU64,
    damaged_blobs: AtomicU64,
    surplus_blobs: AtomicU64,
    copied_blobs: AtomicU64,
    copied_bytes: AtomicU64,
    removed_blobs: AtomicU64,
    failed_blobs: AtomicU64,
    began: Mutex<Option<Duration>>,
}

impl Repair {
    /// Asks for a round now, or after the one under way.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn report(&self, now: Duration) -> RepairReport {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let (running, done) = (self.running.load(Ordering::Relaxed), get(&self.partitions_done));
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        let remaining = |began: Duration| {
            let left = u64::from(PARTITIONS).saturating_sub(done);
            now.saturating_sub(began).as_secs().saturating_mul(left).checked_div(done)
        };
        RepairReport {
            running,
            partitions_done: u32::try_from(done).unwrap_or(PARTITIONS),
            rounds: get(&self.rounds),
            clean: self.clean.load(Ordering::Relaxed),
            missing_blobs: get(&self.missing_blobs),
            missing_bytes: get(&self.missing_bytes),
            damaged_blobs: get(&self.damaged_blobs),
            surplus_blobs: get(&self.surplus_blobs),
            copied_blobs: get(&self.copied_blobs),
            copied_bytes: get(&self.copied_bytes),
            removed_blobs: get(&self.removed_blobs),
            failed_blobs: get(&self.failed_blobs),
            remaining_seconds: began.filter(|_| running).and_then(remaining),
        }
    }

    fn begin_round(&self, now: Duration) {
        for number in [
            &self.partitions_done,
            &self.missing_blobs,
            &self.missing_bytes,
            &self.damaged_blobs,
            &self.surplus_blobs,
            &self.failed_blobs,
        ] {
            number.store(0, Ordering::Relaxed);
        }
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        self.running.store(true, Ordering::Relaxed);
    }

    fn end_round(&self, clean: bool) {
        self.running.store(false, Ordering::Relaxed);
        self.clean.store(clean, Ordering::Relaxed);
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is left to do after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Left {
    /// Something was found and done.
    done: bool,
    /// Something could not be done, or could not be asked.
    undone: bool,
}

impl Left {
    fn and(&mut self, other: Left) {
        self.done |= other.done;
        self.undone |= other.undone;
    }
}

pub(super) async fn run(shared: Arc<Shared>) {
    let repair = &shared.repair;
    let mut wait = GATHER;
    loop {
        let woken = async {
            tokio::select! {
                biased;
                () = repair.wake.notified() => shared.environment.clock.sleep(GATHER).await,
                () = shared.environment.clock.sleep(wait) => {}
            }
        };
        if shared.until(woken).await.is_none() {
            return;
        }
        repair.begin_round(shared.environment.clock.monotonic());
        let left = round(&shared).await;
        repair.end_round(left == Left::default());
        if left.done || left.undone {
            let report = repair.report(shared.environment.clock.monotonic());
            tracing::info!(node = %shared.id, copied = report.copied_blobs, removed = report.removed_blobs,
                failed = report.failed_blobs, undone = left.undone, "repair round");
        }
        wait =
            if left.undone { RETRY_AFTER.min(shared.options.repair_interval) } else { shared.options.repair_interval };
        if shared.is_stopping() {
            return;
        }
    }
}

/// What one round is about: it goes by one map and one opinion of who is lost.
struct Round {
    shared: Arc<Shared>,
    map: Arc<ClusterMap>,
    lost: Vec<NodeId>,
    /// Nodes to compare with.
    peers: Vec<NodeId>,
}

async fn round(shared: &Arc<Shared>) -> Left {
    let map = shared.cluster.map();
    let lost = shared.peers.lost(&map, shared.id, shared.options.lost_after);
    let unreachable = shared.peers.unreachable(&map, shared.id);
    let others = map.nodes.iter().map(|node| node.id).filter(|id| *id != shared.id);
    let peers: Vec<NodeId> = others.filter(|id| !unreachable.contains(id)).collect();
    let mut left = Left { undone: unreachable.iter().any(|id| !lost.contains(id)), done: false };
    let round = Round { shared: Arc::clone(shared), map, lost, peers };
    for partition in 0..PARTITIONS {
        // The map may have changed under the round: the next one goes by the new map.
        if shared.is_stopping() || *shared.cluster.map() != *round.map {
            left.undone = true;
            return left;
        }
        left.and(round.partition(partition as u8).await);
        shared.repair.partitions_done.fetch_add(1, Ordering::Relaxed);
    }
    left
}

impl Round {
    fn view(&self) -> View<'_> {
        View { map: &self.map, lost: &self.lost }
    }

    async fn partition(&self, partition: u8) -> Left {
        let mut digests: Vec<BTreeMap<u32, DayDigest>> = vec![BTreeMap::new(); self.peers.len()];
        let mut left = Left::default();
        let (mut after, end) = (share::before_partition(partition), share::end_of_partition(partition));
        loop {
            let from = after;
            let page = self.shared.blocking(move |store| store.entries(from, Some(end), PAGE_ENTRIES)).await;
            let Some(Ok(page)) = page else {
                left.undone = true;
                return left;
            };
            let last = page.last().map(|(name, _)| *name);
            let surplus = self.digest(&page, &mut digests);
            left.and(surplus::hand_over(self, surplus).await);
            match last {
                Some(last) if page.len() == PAGE_ENTRIES => after = Some(last),
                _ => break,
            }
        }
        for (peer, own) in self.peers.iter().zip(&digests) {
            left.and(self.compare(*peer, partition, own).await);
        }
        left
    }

    /// Adds a page to the digests shared with each peer; returns what of it belongs elsewhere. A damaged copy is in no digest,
    /// so that an owner fetches it again, and goes like any other one where it is surplus.
    fn digest(&self, page: &[(BlobName, Entry)], digests: &mut [BTreeMap<u32, DayDigest>]) -> Vec<SurplusItem> {
        let view = self.view();
        let mut surplus = Vec::new();
        for (name, entry) in page {
            let hold = share::hold(*name, entry).filter(|hold| hold.placed);
            let is_elsewhere =
                |owners: &Option<Vec<NodeId>>| owners.as_ref().is_some_and(|owners| !owners.contains(&self.shared.id));
            if let Some(blob) = entry.blob.as_ref().filter(|blob| blob.damaged) {
                self.shared.repair.damaged_blobs.fetch_add(1, Ordering::Relaxed);
                let item = share::copy(*name, blob);
                if is_elsewhere(&view.owners_of(&item)) {
                    surplus.push(SurplusItem { item, hold, damaged: true });
                }
            }
            for item in share::items(*name, entry) {
                let owners = view.owners_of(&item);
                if is_elsewhere(&owners) {
                    surplus.push(SurplusItem { item, hold, damaged: false });
                    continue;
                }
                for (peer, digests) in self.peers.iter().zip(digests.iter_mut()) {
                    if owners.as_ref().is_none_or(|owners| owners.contains(peer)) {
                        let day = item.day();
                        digests.entry(day).or_insert(DayDigest { day, ..DayDigest::default() }).add(&item);
                    }
                }
            }
        }
        surplus
    }

    /// Fetches what `peer` has of a partition and this node lacks.
    async fn compare(&self, peer: NodeId, partition: u8, own: &BTreeMap<u32, DayDigest>) -> Left {
        let scope = RepairScope { node: self.shared.id, epoch: self.map.epoch, partition, lost: self.lost.clone() };
        let theirs = match self.shared.cluster.ask(peer, Request::RepairDigests(scope.clone())).await {
            Ok(Response::RepairDigests(theirs)) => theirs,
            answer => {
                tracing::debug!(%peer, partition, ?answer, "a node could not be compared with");
                return Left { undone: true, done: false };
            }
        };
        let mut left = Left::default();
        for digest in theirs.iter().filter(|digest| own.get(&digest.day) != Some(digest)) {
            left.and(fetch::day(self, peer, &scope, digest.day).await);
            if self.shared.is_stopping() {
                left.undone = true;
                break;
            }
        }
        left
    }
}
