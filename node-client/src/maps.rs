//! The cluster map in force, how a newer one is noticed, and how it is fetched.
//!
//! Invariants: the epoch never falls; a map of another cluster, one that does not hold together, and another one of the same
//! epoch are never taken. A newer map is fetched by one task at a time, and after a failure not again for a while, however
//! many requests noticed it: a node that claims epochs it does not have costs next to nothing.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use lazaret_protocol::cluster_map::{ClusterMap, MapError, NodeEntry, NodeState};
use lazaret_protocol::message::{ErrorCode, Ping, Request, Response};
use lazaret_protocol::name::{ClusterId, NodeId};
use tokio::sync::watch;

use crate::cluster::{ASKED_AT_ONCE, Cluster};
use crate::node::{self, NodeError};

/// How long after a failed attempt to fetch a newer map nobody tries again.
const FETCH_PAUSE: Duration = Duration::from_secs(1);

/// Why a map was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// It does not hold together.
    #[error(transparent)]
    Invalid(#[from] MapError),
    /// It is of another cluster.
    #[error("a map of cluster {theirs} is offered to cluster {ours}")]
    OtherCluster {
        /// The cluster of the map in force.
        ours: ClusterId,
        /// The cluster of the map offered.
        theirs: ClusterId,
    },
    /// Two different maps carry one epoch: two writers were at work, or somebody edited a file by hand.
    #[error("two different maps of epoch {epoch} are about; make one with a higher epoch (lazaret cluster set)")]
    Conflict {
        /// The epoch.
        epoch: u64,
    },
}

/// The map in force and what is known of newer ones.
pub(crate) struct Maps {
    current: watch::Sender<Arc<ClusterMap>>,
    /// Held while a newer map is being fetched.
    fetching: tokio::sync::Mutex<()>,
    /// A task that fetches was started and has not ended.
    fetch_started: AtomicBool,
    /// When the last fetch failed, in monotonic time.
    failed_at: Mutex<Option<Duration>>,
}

impl Maps {
    pub(crate) fn new(map: ClusterMap) -> Self {
        Self {
            current: watch::Sender::new(Arc::new(map)),
            fetching: tokio::sync::Mutex::new(()),
            fetch_started: AtomicBool::new(false),
            failed_at: Mutex::new(None),
        }
    }

    pub(crate) fn current(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.current.borrow())
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.current.subscribe()
    }

    /// Puts `map` in force if it is newer.
    pub(crate) fn adopt(&self, map: ClusterMap) -> Result<bool, AdoptError> {
        map.validate()?;
        let mut outcome = Ok(false);
        self.current.send_if_modified(|current| {
            if map.cluster != current.cluster {
                outcome = Err(AdoptError::OtherCluster { ours: current.cluster, theirs: map.cluster });
            } else if map.epoch > current.epoch {
                outcome = Ok(true);
                *current = Arc::new(map);
                return true;
            } else if map.epoch == current.epoch && !same_content(&map, current) {
                outcome = Err(AdoptError::Conflict { epoch: map.epoch });
            }
            false
        });
        outcome
    }

    fn paused(&self, now: Duration) -> bool {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.is_some_and(|at| now.saturating_sub(at) < FETCH_PAUSE)
    }

    fn note_outcome(&self, now: Duration, fetched: bool) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = if fetched { None } else { Some(now) };
    }
}

/// Whether two maps say the same; the order of nodes means nothing.
fn same_content(one: &ClusterMap, other: &ClusterMap) -> bool {
    let sorted = |map: &ClusterMap| {
        let mut map = map.clone();
        map.nodes.sort_by_key(|node| node.id);
        map
    };
    one == other || sorted(one) == sorted(other)
}

impl Cluster {
    /// Puts `map` in force if it is newer than the one that is; whether it did. Another map of the epoch in force is an
    /// alarm for an operator.
    pub fn adopt(&self, map: ClusterMap) -> Result<bool, AdoptError> {
        let epoch = map.epoch;
        let outcome = self.maps().adopt(map);
        match &outcome {
            Ok(true) => tracing::info!(epoch, "cluster map adopted"),
            Ok(false) => {}
            Err(error) => tracing::error!(epoch, %error, alarm = "cluster map", "cluster map refused"),
        }
        outcome
    }

    /// The map in force, and each that replaces it.
    pub fn watch_map(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.maps().watch()
    }

    /// Asks nodes now and then whether they hold a newer map, one each [`crate::ClusterOptions::ping_interval`], until
    /// `shutdown` completes. Without it a newer map is still noticed, by the requests that meet it.
    pub async fn run_background(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        // A node of its own to begin with, so that many clients do not ask the same one.
        let mut turn = usize::from(u16::from_le_bytes(self.environment().random_bytes()));
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                () = self.environment().clock.sleep(self.options().ping_interval) => {}
            }
            let map = self.map();
            let Some(node) = map.nodes.get(turn % map.nodes.len().max(1)) else { continue };
            turn = turn.wrapping_add(1);
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                // What it says of itself is taken note of on the way.
                _ = self.ping(node) => {}
            }
        }
    }

    /// Asks a node how it is, and learns from the answer.
    pub(crate) async fn ping(&self, node: &NodeEntry) -> Result<Ping, NodeError> {
        let ping = Ping { epoch: self.map().epoch, now_ms: self.environment().clock.unix_ms() };
        match self.ask_entry(node, Request::Ping(ping)).await? {
            Response::Pong(pong) => Ok(pong),
            _ => Err(NodeError::Unexpected { doing: "asking whether the node lives" }),
        }
    }

    /// A node spoke of `epoch`: if that is a newer map, it is fetched in the background.
    pub(crate) fn heard(&self, node: NodeId, epoch: u64) {
        if epoch > self.map().epoch {
            self.fetch_soon(node);
        }
    }

    /// What an answer says of the node's map.
    pub(crate) fn heard_in(&self, node: &NodeEntry, answer: &Result<Response, NodeError>) {
        match answer {
            Ok(Response::Absent(absent)) => self.heard(node.id, absent.epoch),
            Ok(Response::Pong(pong)) => self.heard(node.id, pong.epoch),
            Ok(Response::Report(report)) => self.heard(node.id, report.epoch),
            Ok(_) => {}
            Err(error) => self.heard_in_refusal(node, error),
        }
    }

    /// Refusals that a newer map explains.
    pub(crate) fn heard_in_refusal(&self, node: &NodeEntry, error: &NodeError) {
        let newer = match error.code() {
            Some(ErrorCode::OtherEpoch) => true,
            Some(ErrorCode::Draining) => self.map().node(node.id).is_some_and(|entry| entry.state == NodeState::Up),
            _ => false,
        };
        if newer {
            self.fetch_soon(node.id);
        }
    }

    fn fetch_soon(&self, node: NodeId) {
        let maps = self.maps();
        if maps.paused(self.now()) || maps.fetch_started.swap(true, Ordering::Relaxed) {
            return;
        }
        let cluster = self.clone();
        self.environment().spawner.spawn(Box::pin(async move {
            cluster.fetch_map(cluster.map().epoch, Some(node)).await;
            cluster.maps().fetch_started.store(false, Ordering::Relaxed);
        }));
    }

    /// Fetches a map of an epoch above `epoch`, from `node` first, then from any; whether one is in force now.
    pub(crate) async fn fetch_map(&self, epoch: u64, node: Option<NodeId>) -> bool {
        let maps = self.maps();
        let _one_at_a_time = maps.fetching.lock().await;
        // Others may have fetched it, or failed to, while this one waited.
        if self.map().epoch > epoch {
            return true;
        }
        if maps.paused(self.now()) {
            return false;
        }
        let map = self.map();
        let (first, others): (Vec<_>, Vec<_>) = map.nodes.iter().cloned().partition(|entry| Some(entry.id) == node);
        let mut fetched = false;
        for nodes in [first, others] {
            let mut answers = stream::iter(nodes).map(|node| self.take_map_of(node)).buffer_unordered(ASKED_AT_ONCE);
            while !fetched && answers.next().await.is_some() {
                fetched = self.map().epoch > epoch;
            }
        }
        maps.note_outcome(self.now(), fetched);
        fetched
    }

    async fn take_map_of(&self, node: NodeEntry) {
        match node::ask(self, &node, &Request::Map).await {
            // A map that is refused was reported where it was refused.
            Ok(Response::Map(map)) => drop(self.adopt(map)),
            Ok(_) => tracing::warn!(node = %node.id, "unexpected answer to a question for the cluster map"),
            Err(error) => tracing::debug!(node = %node.id, %error, "the node did not tell its cluster map"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use lazaret_protocol::cluster_map::StorageType;

    use super::*;

    fn map() -> ClusterMap {
        let entry = |i: u8| NodeEntry {
            id: NodeId([i; 16]),
            name: format!("node{i}"),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            weight: 1,
            state: NodeState::Up,
        };
        ClusterMap {
            cluster: ClusterId([1; 16]),
            epoch: 5,
            min_replica: 1,
            max_replica: 2,
            cleanuprange: 0,
            storage_type: StorageType::Salt,
            nodes: vec![entry(1), entry(2)],
        }
    }

    #[test]
    fn only_a_newer_map_of_this_cluster_that_holds_together_is_adopted() {
        let maps = Maps::new(map());
        let mut watched = maps.watch();
        let changed = |change: fn(&mut ClusterMap)| {
            let mut map = map();
            change(&mut map);
            maps.adopt(map)
        };
        assert_eq!(changed(|_| {}), Ok(false));
        assert_eq!(changed(|map| map.nodes.reverse()), Ok(false));
        assert_eq!(changed(|map| map.epoch = 4), Ok(false));
        assert_eq!(changed(|map| map.cleanuprange = 1), Err(AdoptError::Conflict { epoch: 5 }));
        assert!(matches!(changed(|map| (map.epoch, map.min_replica) = (6, 3)), Err(AdoptError::Invalid(_))));
        assert!(matches!(
            changed(|map| (map.epoch, map.cluster) = (6, ClusterId([2; 16]))),
            Err(AdoptError::OtherCluster { .. })
        ));
        assert!(!watched.has_changed().unwrap());
        assert_eq!(changed(|map| map.epoch = 9), Ok(true));
        assert!(watched.has_changed().unwrap());
        assert_eq!(watched.borrow_and_update().epoch, 9);
        assert_eq!(changed(|map| map.epoch = 8), Ok(false));
        assert_eq!(maps.current().epoch, 9);
    }
}
