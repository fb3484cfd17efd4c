//! A storage node at work: its store, what it knows of the other nodes, and what it does without being asked: it watches its
//! peers and its own clock, lets what is old expire, compares itself with the others and makes good what is missing, reads
//! what it holds to see whether it is sound, and gives back space.
//!
//! Invariants: background work is bounded in memory and yields to requests (`foreground.rs`); it removes a copy
//! only when every owner has confirmed its own, and lets nothing expire by a clock that the cluster does not share. All of it
//! may be interrupted at any point and begins again by itself.
//!
//! Requests are answered by [`crate::service`]; nothing here knows sockets.

pub(crate) mod foreground;
pub mod map;
pub mod metrics;
pub(crate) mod peers;
mod reclaim;
pub(crate) mod repair;
pub(crate) mod retention;
pub(crate) mod scrub;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lazaret_node_client::environment::Environment;
use lazaret_node_client::{AdoptError, Cluster};
use lazaret_protocol::limits::{BUCKET_MS, MIB};
use lazaret_protocol::message::NodeReport;
use lazaret_protocol::{ClusterMap, NodeId};
use tokio::sync::{RwLock, watch};

use foreground::Foreground;
use metrics::Metrics;
use peers::Peers;
use repair::Repair;
use scrub::Scrub;

use crate::store::Store;

/// What may be tuned of a node's background work.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// How often the other nodes are asked whether they live.
    pub ping_interval: Duration,
    /// How long a node may stay silent before its share of the copies is made elsewhere: longer than a restart or an upgrade.
    pub lost_after: Duration,
    /// How long after a comparison with the other nodes the next one begins, if nothing asks for one sooner.
    pub repair_interval: Duration,
    /// Copies that are made at once while nobody else wants anything of the node.
    pub repair_concurrency: usize,
    /// How often is looked for what has expired.
    pub retention_interval: Duration,
    /// How fast a scrub reads.
    pub scrub_bytes_per_second: u64,
    /// How long after a scrub the next one begins.
    pub scrub_interval: Duration,
    /// How often is looked for segments worth compacting.
    pub compact_interval: Duration,
    /// A segment is compacted once so much of it is dead.
    pub compact_min_dead_share: f64,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(2),
            lost_after: Duration::from_secs(600),
            repair_interval: Duration::from_secs(300),
            repair_concurrency: 16,
            retention_interval: Duration::from_secs(60),
            scrub_bytes_per_second: 32 * MIB,
            scrub_interval: Duration::from_secs(7 * 24 * 3600),
            compact_interval: Duration::from_secs(60),
            compact_min_dead_share: 0.5,
        }
    }
}

/// A node. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) id: NodeId,
    pub(crate) store: Store,
    /// The cluster as this node reaches it, with a node's rights. Its map is the node's map.
    pub(crate) cluster: Cluster,
    kept_map: map::Kept,
    /// Held to read by whoever tells a peer that copies here are sound, to write by whoever gives copies up.
    pub(crate) giving_up: RwLock<()>,
    pub(crate) environment: Environment,
    pub(crate) options: NodeOptions,
    pub(crate) foreground: Foreground,
    pub(crate) peers: Peers,
    pub(crate) repair: Repair,
    pub(crate) scrub: Scrub,
    pub(crate) metrics: Metrics,
    reclaimed_bytes: AtomicU64,
    stopping: watch::Sender<bool>,
}

impl Node {
    /// The node `id` of the cluster, which keeps its copies in `store`. If the store remembers a newer map than the
    /// cluster's, that one comes into force. Nothing happens in the background before [`Self::start`].
    pub fn new(id: NodeId, store: Store, cluster: Cluster, environment: Environment, options: NodeOptions) -> Self {
        map::restore(&store, &cluster);
        let shared = Shared {
            id,
            store,
            cluster,
            kept_map: map::Kept::default(),
            giving_up: RwLock::default(),
            environment,
            options,
            foreground: Foreground::default(),
            peers: Peers::default(),
            repair: Repair::default(),
            scrub: Scrub::default(),
            metrics: Metrics::default(),
            reclaimed_bytes: AtomicU64::new(0),
            stopping: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins the background work. Call it once.
    pub fn start(&self) {
        let spawn = |task| self.shared.environment.spawner.spawn(task);
        spawn(Box::pin(map::keep(Arc::clone(&self.shared))));
        spawn(Box::pin(peers::watch(Arc::clone(&self.shared))));
        spawn(Box::pin(retention::run(Arc::clone(&self.shared))));
        spawn(Box::pin(repair::run(Arc::clone(&self.shared))));
        spawn(Box::pin(scrub::run(Arc::clone(&self.shared))));
        spawn(Box::pin(reclaim::run(Arc::clone(&self.shared))));
    }

    /// Asks the background work to end; what is under way of it ends with its current step.
    pub fn stop(&self) {
        self.shared.stopping.send_replace(true);
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.shared.id
    }

    /// Puts a newer map in force.
    pub fn adopt(&self, map: ClusterMap) -> Result<bool, AdoptError> {
        self.shared.cluster.adopt(map)
    }

    /// The map in force.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.shared.cluster.map()
    }

    /// The node's account of itself. Asks the file system for its space, which is short.
    pub fn report(&self) -> NodeReport {
        let shared = &self.shared;
        NodeReport {
            epoch: shared.cluster.map().epoch,
            now_ms: shared.environment.clock.unix_ms(),
            clock_trusted: shared.peers.clock_trusted(&shared.cluster.map()),
            expired_before_ms: u64::from(shared.store.horizon()) * BUCKET_MS,
            unreachable: shared.peers.unreachable(&shared.cluster.map(), shared.id),
            disks: shared.store.report(),
            repair: shared.repair.report(shared.environment.clock.monotonic()),
            scrub: shared.scrub.report(),
            reclaimed_bytes: shared.reclaimed_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    /// Waits for `duration`; false if the node is stopping.
    pub(crate) async fn pause(&self, duration: Duration) -> bool {
        self.until(self.environment.clock.sleep(duration)).await.is_some()
    }

    /// What `future` returns, unless the node is stopping.
    pub(crate) async fn until<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            biased;
            // The sender lives as long as `self`.
            _ = stopping.wait_for(|stopping| *stopping) => None,
            value = future => Some(value),
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// What `work` on the store returns, which may block for a while.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Store) -> T + Send + 'static,
    ) -> Option<T> {
        let store = self.store.clone();
        self.environment.blocking(move || work(store)).await
    }
}
