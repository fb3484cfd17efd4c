//! A write to a replica set whose content is in hand: the first `max_replica` nodes at once, each failure replaced by the
//! next node in order, acknowledged at `min_replica`, completed in the background. Where too few nodes are left, those that
//! may be back in a moment are tried again for a while: a node that restarts while another one still starts costs time, not
//! the write.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::message::{ErrorCode, ErrorReply};
use lazaret_protocol::name::NodeId;

use crate::cluster::{Cluster, PutError};
use crate::environment::BoxFuture;
use crate::node::{NodeError, NodeFailure};

/// The pause before nodes are tried again: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_millis(800);

/// A node that holds the write, and the put time that counts there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Durable {
    pub(crate) node: NodeId,
    pub(crate) put_time_ms: u64,
}

/// One attempt at one node.
type Write = BoxFuture<'static, (NodeEntry, Result<u64, NodeError>)>;

/// Writes to the nodes of `order` with `write`, which returns the put time that counts on the node. `held_bytes` is what
/// completing in the background holds in memory.
pub(crate) async fn write<F, W>(
    cluster: &Cluster,
    order: Vec<NodeEntry>,
    held_bytes: u64,
    write: F,
) -> Result<Vec<Durable>, PutError>
where
    F: Fn(NodeEntry) -> W + Send + 'static,
    W: Future<Output = Result<u64, NodeError>> + Send + 'static,
{
    let begin = move |node: NodeEntry| -> Write {
        let written = write(node.clone());
        Box::pin(async move { (node, written.await) })
    };
    let map = cluster.map();
    let (needed, wanted) = (usize::from(map.min_replica), usize::from(map.max_replica));
    let mut spread = Spread {
        cluster: cluster.clone(),
        begin: Box::new(begin),
        rest: order.into_iter(),
        under_way: FuturesUnordered::new(),
        durable: Vec::new(),
        passing: Vec::new(),
        reasons: Vec::new(),
    };
    let mut patience = Patience::new(cluster);
    loop {
        spread.fill(wanted);
        spread.run(needed, wanted).await;
        if spread.durable.len() >= needed {
            break;
        }
        let may_suffice = spread.durable.len() + spread.passing.len() >= needed;
        if !may_suffice || !patience.pause().await {
            return Err(PutError::NotEnoughReplicas { needed, durable: spread.durable.len(), reasons: spread.reasons });
        }
        spread.try_again();
    }
    let durable = spread.durable.clone();
    let missing = spread.under_way.len();
    if missing > 0
        && let Some(under_way) = cluster.background().begin(held_bytes, missing)
    {
        cluster.environment().spawner.spawn(Box::pin(async move {
            spread.run(wanted, wanted).await;
            drop(under_way);
        }));
    }
    Ok(durable)
}

struct Spread {
    cluster: Cluster,
    begin: Box<dyn Fn(NodeEntry) -> Write + Send>,
    rest: std::vec::IntoIter<NodeEntry>,
    under_way: FuturesUnordered<Write>,
    durable: Vec<Durable>,
    /// Nodes that failed in a way that may pass.
    passing: Vec<NodeEntry>,
    /// The last failure of each node.
    reasons: Vec<NodeFailure>,
}

/// How long a write waits for nodes to come back.
pub(crate) struct Patience {
    cluster: Cluster,
    /// When it ends; counted from the first pause.
    until: Option<Duration>,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), until: None, pause: PAUSE_MIN }
    }

    /// Waits a little; false at once where there is no patience left.
    pub(crate) async fn pause(&mut self) -> bool {
        let now = self.cluster.now();
        let until = *self.until.get_or_insert(now + self.cluster.options().quorum_patience);
        if now >= until {
            return false;
        }
        self.cluster.environment().clock.sleep(self.pause.min(until - now)).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

impl Spread {
    /// Keeps as many attempts under way as `wanted` replicas still need.
    fn fill(&mut self, wanted: usize) {
        while self.durable.len() + self.under_way.len() < wanted {
            let Some(node) = self.rest.next() else { return };
            self.under_way.push((self.begin)(node));
        }
    }

    /// Runs until `enough` nodes hold the write or no attempt is left.
    async fn run(&mut self, enough: usize, wanted: usize) {
        while self.durable.len() < enough {
            match self.under_way.next().await {
                None => return,
                Some((node, Ok(put_time_ms))) => {
                    self.cluster.health().worked(node.id);
                    self.durable.push(Durable { node: node.id, put_time_ms });
                }
                Some((node, Err(error))) => {
                    tracing::warn!(node = %node.id, %error, "replica not written, passed over for the next node");
                    if error.may_pass() {
                        self.passing.push(node.clone());
                    }
                    let failure = self.cluster.failed(&node, error);
                    self.reasons.push(failure);
                    self.fill(wanted);
                }
            }
        }
    }

    /// Makes the nodes whose failures may pass the next to be tried.
    fn try_again(&mut self) {
        let again = std::mem::take(&mut self.passing);
        self.reasons.retain(|failure| !again.iter().any(|node| node.id == failure.node));
        self.rest = again.into_iter();
    }
}

/// What a node that is out of space counts as before anything was put to it.
pub(crate) fn full() -> NodeError {
    NodeError::Refused(ErrorReply { code: ErrorCode::Full, message: "the node's disk has no space for writes".into() })
}
