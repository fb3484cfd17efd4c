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
        comebacks: Comebacks::new(cluster),
        reasons: Vec::new(),
    };
    loop {
        spread.fill(wanted);
        spread.run(needed, wanted).await;
        if spread.durable.len() >= needed {
            break;
        }
        let Some(again) = spread.comebacks.take(spread.durable.len(), needed, &mut spread.reasons).await else {
            return Err(PutError::NotEnoughReplicas { needed, durable: spread.durable.len(), reasons: spread.reasons });
        };
        spread.rest = again.into_iter();
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
    comebacks: Comebacks,
    /// The last failure of each node.
    reasons: Vec<NodeFailure>,
}

/// Nodes that may be back in a moment, for which a write waits a while.
pub(crate) struct Comebacks {
    cluster: Cluster,
    /// Those that failed in a way that may pass.
    passing: Vec<NodeEntry>,
    /// When patience ends; counted from the first pause.
    until: Option<Duration>,
    pause: Duration,
}

impl Comebacks {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), passing: Vec::new(), until: None, pause: PAUSE_MIN }
    }

    /// Takes note of a node that failed.
    pub(crate) fn note(&mut self, node: &NodeEntry, error: &NodeError) {
        if error.may_pass() {
            self.passing.push(node.clone());
        }
    }

    /// The nodes to try again, after a pause, with their failures struck out. None, at once, if with the `have` there are they
    /// can't be `needed`, or no patience is left.
    pub(crate) async fn take(
        &mut self,
        have: usize,
        needed: usize,
        reasons: &mut Vec<NodeFailure>,
    ) -> Option<Vec<NodeEntry>> {
        let now = self.cluster.now();
        if have + self.passing.len() < needed {
            return None;
        }
        let until = *self.until.get_or_insert(now + self.cluster.options().quorum_patience);
        if now >= until {
            return None;
        }
        self.cluster.environment().clock.sleep(self.pause.min(until - now)).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        let again = std::mem::take(&mut self.passing);
        reasons.retain(|failure| !again.iter().any(|node| node.id == failure.node));
        Some(again)
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
                    self.comebacks.note(&node, &error);
                    let failure = self.cluster.failed(&node, error);
                    self.reasons.push(failure);
                    self.fill(wanted);
                }
            }
        }
    }
}

/// What a node that is out of space counts as before anything was put to it.
pub(crate) fn full() -> NodeError {
    NodeError::Refused(ErrorReply { code: ErrorCode::Full, message: "the node's disk has no space for writes".into() })
}
