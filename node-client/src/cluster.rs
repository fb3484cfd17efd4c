//! The cluster as one store: quorum puts, verified gets, and questions to all nodes.
//!
//! Invariants: a put is acknowledged when `min_replica` nodes said that they hold it durably, never sooner; NotFound is
//! answered only when every node of the map said so. This module keeps no blob and no queue of its own: an upload that
//! is dropped leaves nothing behind but garbage that nodes collect.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use lazaret_protocol::cluster_map::{ClusterMap, MapError, NodeEntry, NodeState};
use lazaret_protocol::limits::{BLOB_BYTES_MAX, HELD_BYTES_MAX, MIB};
use lazaret_protocol::message::{BlobStat, ByteRange, ErrorCode, Locator, NodeStatus, Request, Response};
use lazaret_protocol::name::{BlobName, NodeId, PlacementKey};
use lazaret_protocol::placement;

use crate::background::Background;
use crate::download::{Download, Sources};
use crate::environment::Environment;
use crate::health::{Health, Kind, Ordered};
use crate::maps::Maps;
use crate::node::{self, NodeError, NodeFailure, in_one_line};
use crate::quorum;
use crate::stream::StreamError;
use crate::transport::Transport;
use crate::upload::Upload;

/// Nodes that are asked the same question at once.
pub(crate) const ASKED_AT_ONCE: usize = 16;
/// Times that all nodes are asked again for a blob's state when none of them knew of it. Maps do not change more often in
/// such a short time.
const LOOKS_MAX: u32 = 4;

/// What may be tuned.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Bytes that acknowledged puts may hold while their copies past `min_replica` complete. Past it such copies are left
    /// to repair.
    pub background_bytes_max: u64,
    /// How long a node may take for a step of a put or a get: to take a frame, to send the next bytes, to make a small put
    /// durable.
    pub progress_timeout: Duration,
    /// How long a put waits for nodes to come back where too few are there: about what a node takes to restart.
    pub quorum_patience: Duration,
    /// How long a node may take to make a streamed blob durable, which may flush gigabytes.
    pub commit_timeout: Duration,
    /// How long a node may take for a request without a body.
    pub request_timeout: Duration,
    /// How often a node is asked whether it holds a newer map ([`Cluster::run_background`]).
    pub ping_interval: Duration,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            background_bytes_max: 256 * MIB,
            progress_timeout: Duration::from_secs(5),
            quorum_patience: Duration::from_secs(5),
            commit_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(3),
            ping_interval: Duration::from_secs(10),
        }
    }
}

/// A put that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The blob's name.
    pub name: BlobName,
    /// The blob's length in bytes.
    pub length: u64,
    /// When it was put, in Unix milliseconds: the earliest that a node in `durable_on` counts from.
    pub put_time_ms: u64,
    /// The nodes that held it durably when the put was acknowledged.
    pub durable_on: Vec<NodeId>,
}

/// Why a put was not acknowledged. It may still turn up later; that does no harm.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Fewer nodes than `min_replica` hold it.
    #[error("{durable} of {needed} needed replicas are durable ({})", in_one_line(reasons))]
    NotEnoughReplicas {
        /// `min_replica`.
        needed: usize,
        /// Nodes that hold it.
        durable: usize,
        /// What went wrong with the others.
        reasons: Vec<NodeFailure>,
    },
    /// Nodes were lost while a long body went to them, and too few are left. What was sent is no longer in hand, so that other
    /// nodes could not take their place; sent again, the body goes to nodes that live.
    #[error(
        "nodes were lost on the way and {durable} of {needed} needed replicas are durable; send it again ({})",
        in_one_line(reasons)
    )]
    LostOnTheWay {
        /// `min_replica`.
        needed: usize,
        /// Nodes that hold it.
        durable: usize,
        /// What went wrong with the others.
        reasons: Vec<NodeFailure>,
    },
    /// Longer than any blob.
    #[error("a blob has at most {limit} bytes")]
    TooLong {
        /// The longest there is.
        limit: u64,
    },
    /// The upload failed before; it cannot go on.
    #[error("the upload has failed before")]
    Failed,
}

/// Why a blob could not be read.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// Every node of the map said that it has no such blob.
    #[error("no blob {name}")]
    NotFound {
        /// Which.
        name: BlobName,
    },
    /// No node that answered has a sound copy, and not all answered: try again.
    #[error("blob {name} is unavailable ({})", in_one_line(reasons))]
    Unavailable {
        /// Which.
        name: BlobName,
        /// What went wrong with each node.
        reasons: Vec<NodeFailure>,
    },
    /// A range that ends before it starts.
    #[error("range {start}-{end} is backwards")]
    Range {
        /// The first byte asked for.
        start: u64,
        /// The byte after the last one.
        end: u64,
    },
}

/// What the cluster knows of a blob. Claims of nodes: only reading verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStat {
    /// The blob's length in bytes.
    pub length: u64,
    /// The newest put that any asked node counts, in Unix milliseconds.
    pub put_time_ms: u64,
    /// Nodes that hold the blob, in the map's order. Once `max_replica` are known the others may be missing.
    pub held_on: Vec<NodeId>,
    /// Where it lies, if it was streamed.
    pub locator: Option<Locator>,
}

/// A cluster to put to and get from. Clones share connections, budgets and counters.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    maps: Maps,
    transport: Arc<dyn Transport>,
    environment: Environment,
    options: ClusterOptions,
    health: Health,
    background: Background,
    corrupt_reads: AtomicU64,
}

impl Cluster {
    /// The cluster of `map`, reached over `transport`. Connects nowhere yet.
    pub fn new(
        map: ClusterMap,
        transport: Arc<dyn Transport>,
        environment: Environment,
        options: ClusterOptions,
    ) -> Result<Self, MapError> {
        map.validate()?;
        let background = Background::new(options.background_bytes_max);
        let (maps, health, corrupt_reads) = (Maps::new(map), Health::default(), AtomicU64::new(0));
        Ok(Self { inner: Arc::new(Inner { maps, transport, environment, options, health, background, corrupt_reads }) })
    }

    /// The map in force.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.inner.maps.current()
    }

    /// Sends one node of the map a request without a body. Its failure counts against the node for the requests to come.
    pub async fn ask(&self, node: NodeId, request: Request) -> Result<Response, NodeError> {
        let map = self.map();
        let node = map.node(node).ok_or(NodeError::NotInMap(node))?;
        self.ask_entry(node, request).await
    }

    /// The same for a request that the node may work on for as long as `limit`.
    pub async fn ask_within(&self, node: NodeId, request: Request, limit: Duration) -> Result<Response, NodeError> {
        let map = self.map();
        let node = map.node(node).ok_or(NodeError::NotInMap(node))?;
        let answer = node::ask_within(self, node, &request, limit).await;
        self.note(node, &answer);
        answer
    }

    /// The same for a node that need not be in the map, as one that is about to join.
    pub async fn ask_entry(&self, node: &NodeEntry, request: Request) -> Result<Response, NodeError> {
        let answer = node::ask(self, node, &request).await;
        self.note(node, &answer);
        answer
    }

    /// Begins a put of a body of any length.
    pub fn upload(&self) -> Upload {
        Upload::new(self.clone())
    }

    /// Puts `content`.
    pub async fn put(&self, content: Bytes) -> Result<Stored, PutError> {
        let mut upload = self.upload();
        upload.write(content).await?;
        upload.finish().await
    }

    /// Reads a blob, or the bytes of `range` that it has. Returns once a node began to answer.
    pub async fn get(&self, name: BlobName, range: Option<ByteRange>) -> Result<Download, GetError> {
        Download::open(self.clone(), name, range, Sources::default()).await
    }

    /// Reads a whole blob, from `preferred` if it has a sound copy, and never from `excluded`: for a node that fetches what it
    /// lacks. With a node excluded, NotFound says nothing of that one.
    pub async fn get_from(
        &self,
        name: BlobName,
        preferred: Option<NodeId>,
        excluded: Option<NodeId>,
    ) -> Result<Download, GetError> {
        Download::open(self.clone(), name, None, Sources { preferred, excluded }).await
    }

    /// What nodes say of a blob.
    pub async fn stat(&self, name: BlobName) -> Result<ClusterStat, GetError> {
        let mut looks_left = LOOKS_MAX;
        loop {
            let map = self.map();
            let found = self.stat_by(&map, name).await;
            if !matches!(found, Err(GetError::NotFound { .. })) || looks_left == 0 {
                return found;
            }
            looks_left -= 1;
            // Absent by an outdated map says nothing; and repair may have moved the blob from a node that was asked after
            // it went to one that was asked before it came, so that one look is not enough.
            match self.newer_than(&map).await {
                Ok(false) if looks_left + 1 < LOOKS_MAX => return found,
                Ok(_) => {}
                Err(reason) => return Err(GetError::Unavailable { name, reasons: vec![reason] }),
            }
        }
    }

    /// Whether any node holds a newer map than `map`; if so, one is in force when this returns.
    async fn newer_than(&self, map: &ClusterMap) -> Result<bool, NodeFailure> {
        let mut pongs = stream::iter(map.nodes.clone())
            .map(|node| async move {
                let pong = self.ping(&node).await;
                (node, pong)
            })
            .buffer_unordered(ASKED_AT_ONCE);
        while let Some((node, pong)) = pongs.next().await {
            let epoch = match pong {
                Ok(pong) => pong.epoch,
                Err(error) => return Err(NodeFailure::new(&node, error)),
            };
            if epoch > map.epoch && !self.fetch_map(map.epoch, Some(node.id)).await {
                return Err(NodeFailure::new(&node, NodeError::NewerMap { epoch }));
            }
        }
        Ok(self.map().epoch > map.epoch)
    }

    async fn stat_by(&self, map: &ClusterMap, name: BlobName) -> Result<ClusterStat, GetError> {
        let order = placement::read_order(map, name.placement());
        let request = &Request::Stat(name);
        let mut answers = stream::iter(self.read_order(order))
            .map(async |node| match node::ask(self, &node, request).await {
                Ok(Response::Stat(stat)) => Ok((node, stat)),
                Ok(_) => Err(NodeFailure::new(&node, NodeError::Unexpected { doing: "asking for a blob's state" })),
                Err(error) => Err(self.failed(&node, error)),
            })
            .buffer_unordered(ASKED_AT_ONCE);
        let (mut holders, mut locator, mut reasons) = (Vec::new(), None, Vec::new());
        while let Some(answer) = answers.next().await {
            match answer {
                Ok((node, BlobStat { held, locator: known })) => {
                    locator = locator.or(known);
                    match held {
                        Some(header) => holders.push((node.id, header)),
                        None if known.is_some() => reasons.push(NodeFailure::new(&node, NodeError::LocatorOnly)),
                        None => {}
                    }
                }
                Err(failure) => reasons.push(failure),
            }
            if holders.len() >= usize::from(map.max_replica) {
                break;
            }
        }
        let Some(&(_, newest)) = holders.iter().max_by_key(|(_, header)| header.put_time_ms) else {
            return Err(if reasons.is_empty() {
                GetError::NotFound { name }
            } else {
                GetError::Unavailable { name, reasons }
            });
        };
        let holds = |node: &&NodeEntry| holders.iter().any(|(holder, _)| *holder == node.id);
        let held_on = map.nodes.iter().filter(holds).map(|node| node.id).collect();
        Ok(ClusterStat { length: newest.length, put_time_ms: newest.put_time_ms, held_on, locator })
    }

    /// The state of every node, in the map's order.
    pub async fn status(&self) -> Vec<(NodeEntry, Result<NodeStatus, NodeError>)> {
        self.ask_status(self.map().nodes.clone()).buffered(ASKED_AT_ONCE).collect().await
    }

    /// Whether a put could be acknowledged now: `min_replica` nodes answer and have space.
    pub async fn writable(&self) -> Result<(), PutError> {
        let needed = usize::from(self.map().min_replica);
        let mut nodes = self.map().nodes.clone();
        nodes.retain(|node| node.state == NodeState::Up);
        let mut answers = self.ask_status(nodes).buffer_unordered(ASKED_AT_ONCE);
        let (mut ready, mut reasons) = (0, Vec::new());
        while ready < needed {
            match answers.next().await {
                Some((_, Ok(status))) if !status.full => ready += 1,
                Some((node, Ok(_))) => reasons.push(NodeFailure::new(&node, quorum::full())),
                Some((node, Err(error))) => reasons.push(self.failed(&node, error)),
                None => return Err(PutError::NotEnoughReplicas { needed, durable: ready, reasons }),
            }
        }
        Ok(())
    }

    /// Waits until no copy is under way in the background.
    pub async fn settle(&self) {
        self.inner.background.settle().await;
    }

    /// Completes what is under way in the background and closes the connections. For a process that is about to end.
    pub async fn close(&self) {
        self.settle().await;
        self.inner.transport.close().await;
    }

    /// How often a node sent what did not verify, or said that its copy is damaged. Each was read from elsewhere or
    /// reported as an error.
    pub fn corrupt_reads(&self) -> u64 {
        self.inner.corrupt_reads.load(Ordering::Relaxed)
    }

    /// How many copies past `min_replica` were left to repair because the background budget was used up.
    pub fn copies_left_to_repair(&self) -> u64 {
        self.inner.background.abandoned()
    }

    /// A question to each of `nodes`. The futures own what they need: with borrowed nodes the compiler cannot show that they
    /// may move between threads.
    fn ask_status(
        &self,
        nodes: Vec<NodeEntry>,
    ) -> impl Stream<Item = impl Future<Output = (NodeEntry, Result<NodeStatus, NodeError>)>> {
        let cluster = self.clone();
        stream::iter(nodes).map(move |node| {
            let cluster = cluster.clone();
            async move {
                let status = cluster.node_status(&node).await;
                (node, status)
            }
        })
    }

    async fn node_status(&self, node: &NodeEntry) -> Result<NodeStatus, NodeError> {
        match node::ask(self, node, &Request::Status).await? {
            Response::Status(status) => Ok(status),
            _ => Err(NodeError::Unexpected { doing: "asking for the node's status" }),
        }
    }

    pub(crate) fn maps(&self) -> &Maps {
        &self.inner.maps
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.inner.transport
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.inner.environment
    }

    pub(crate) fn options(&self) -> &ClusterOptions {
        &self.inner.options
    }

    pub(crate) fn health(&self) -> &Health {
        &self.inner.health
    }

    pub(crate) fn background(&self) -> &Background {
        &self.inner.background
    }

    pub(crate) fn now(&self) -> Duration {
        self.inner.environment.clock.monotonic()
    }

    /// Learns from a node's failure, for the requests to come.
    pub(crate) fn failed(&self, node: &NodeEntry, error: NodeError) -> NodeFailure {
        self.note_failure(node, &error);
        NodeFailure::new(node, error)
    }

    /// Learns from how a question to a node went. An answer shows that it lives, though not that its disks work.
    pub(crate) fn note<T>(&self, node: &NodeEntry, outcome: &Result<T, NodeError>) {
        match outcome {
            Ok(_) => self.inner.health.alive(node.id),
            Err(error) => self.note_failure(node, error),
        }
    }

    pub(crate) fn note_failure(&self, node: &NodeEntry, error: &NodeError) {
        let (health, now) = (&self.inner.health, self.now());
        match error {
            NodeError::Unreachable(_)
            | NodeError::Stalled { .. }
            | NodeError::Broken { source: StreamError::ConnectionLost(_), .. } => {
                health.failed(node.id, now, self.dice());
            }
            NodeError::Refused(reply) => {
                health.alive(node.id);
                match reply.code {
                    ErrorCode::Full | ErrorCode::Draining => health.refused(node.id, Kind::Write, now),
                    ErrorCode::Busy => {
                        health.refused(node.id, Kind::Write, now);
                        health.refused(node.id, Kind::Read, now);
                    }
                    _ => {}
                }
            }
            // It answered, and what it said concerns one blob.
            _ => health.alive(node.id),
        }
        if matches!(error, NodeError::Stalled { .. }) {
            self.inner.transport.distrust(node);
        }
        self.heard_in_refusal(node, error);
    }

    /// Whom to read from, in order, those last that are better left alone.
    pub(crate) fn read_order(&self, order: Vec<&NodeEntry>) -> Vec<NodeEntry> {
        self.order(order, Kind::Read, 1)
    }

    /// Whom to write to, in order, those last that are better left alone.
    pub(crate) fn write_order(&self, map: &ClusterMap, placement: PlacementKey) -> Vec<NodeEntry> {
        self.order(placement::write_order(map, placement), Kind::Write, usize::from(map.max_replica))
    }

    fn order(&self, order: Vec<&NodeEntry>, kind: Kind, at_once: usize) -> Vec<NodeEntry> {
        let Ordered { order, probes } = self.inner.health.order(order, kind, at_once, self.now());
        for node in probes {
            let cluster = self.clone();
            self.inner.environment.spawner.spawn(Box::pin(async move {
                if let Err(error) = cluster.ping(&node).await {
                    tracing::info!(node = %node.id, %error, "the node is still left alone");
                }
            }));
        }
        order
    }

    pub(crate) fn dice(&self) -> u16 {
        u16::from_le_bytes(self.inner.environment.random_bytes())
    }

    pub(crate) fn count_corrupt_read(&self) {
        self.inner.corrupt_reads.fetch_add(1, Ordering::Relaxed);
    }
}

/// Refuses lengths that no blob has.
pub(crate) fn check_length(length: u64) -> Result<(), PutError> {
    if length > BLOB_BYTES_MAX { Err(PutError::TooLong { limit: BLOB_BYTES_MAX }) } else { Ok(()) }
}

// A held body must fit the budget of background copies, or every put would leave copies to repair.
const _: () = assert!(256 * MIB > HELD_BYTES_MAX as u64);
