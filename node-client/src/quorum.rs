//! A write to a replica set whose content is in hand: the first `max_replica` nodes at once, each failure replaced by the
//! next node in order, acknowledged at `min_replica`, completed in the background.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::message::{ErrorCode, ErrorReply};
use lazaret_protocol::name::NodeId;

use crate::cluster::{Cluster, PutError};
use crate::environment::BoxFuture;
use crate::node::{NodeError, NodeFailure};

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
        reasons: Vec::new(),
    };
    spread.fill(wanted);
    spread.run(needed, wanted).await;
    if spread.durable.len() < needed {
        return Err(PutError::NotEnoughReplicas { needed, durable: spread.durable.len(), reasons: spread.reasons });
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
    reasons: Vec<NodeFailure>,
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
