//! A put of a body too long to hold: it streams to `max_replica` nodes at once while it is hashed, each fed by a task of
//! its own through a bounded queue, and a locator under its name is written before it counts as stored.
//!
//! The slowest replica sets the pace, until it makes no progress for the progress timeout; then it is given up, and the
//! put goes on while `min_replica` remain. While all that was sent is still in hand, a lost replica is replaced by the
//! next node in order, and where none is left, by one that may be back in a moment. After that nothing can be handed off: the
//! body is with the replicas alone, none of which has committed and could be read from. The put then survives
//! `max_replica - min_replica` losses, with `min_replica = max_replica` none, and fails with an error that says so.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use futures_util::future::{AbortHandle, abortable, join_all};
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::limits::{FRAME_BYTES_MAX, HELD_BYTES_MAX, UPLOAD_LEASE_MAX_MS};
use lazaret_protocol::message::{Locator, PutDone, PutHeader, PutLocator, PutTarget, PutTrailer, Request, Response};
use lazaret_protocol::name::{PlacementKey, UploadId};
use tokio::sync::{mpsc, oneshot};

use crate::cluster::{Cluster, PutError};
use crate::copy::put_answer;
use crate::node::{self, NodeError, NodeFailure};
use crate::quorum::{self, Comebacks, Durable};
use crate::stream::{SendHalf, StreamError};
use crate::upload::send_commit;

/// Pieces are gathered to this length before they go out, so that a body that trickles in does not travel in crumbs.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces one replica may lie behind the others, on top of what its stream holds: at most 8 MiB, and the replicas share
/// the bytes.
const QUEUED_PIECES_MAX: usize = 8;
/// What a replica that completes in the background may hold.
const QUEUED_BYTES_MAX: u64 = (QUEUED_PIECES_MAX * FRAME_BYTES_MAX) as u64;
/// Up to this length what was sent is kept, to begin anew at another node: the head and as much again, so that a node
/// that refuses at once is replaced even if its answer takes a while.
const REPLAY_BYTES_MAX: usize = 2 * HELD_BYTES_MAX;

pub(crate) struct StreamedPut {
    cluster: Cluster,
    placement: PlacementKey,
    put_time_ms: u64,
    /// Nodes not yet tried, in order.
    rest: VecDeque<NodeEntry>,
    replicas: Vec<Replica>,
    outcomes: mpsc::Receiver<Outcome>,
    outcome_sender: mpsc::Sender<Outcome>,
    /// Gathered, not yet sent.
    gathered: BytesMut,
    /// All that was sent, while it is short enough.
    replay: Option<Vec<Bytes>>,
    comebacks: Comebacks,
    /// The last failure of each node.
    reasons: Vec<NodeFailure>,
}

/// A replica under way. Dropping it aborts its task, which resets its stream.
struct Replica {
    node: NodeEntry,
    queue: mpsc::Sender<Item>,
    abort: Option<AbortHandle>,
    /// Says that the node took all that was sent before the replica began, or closes because it did not. Absent once seen.
    begun: Option<oneshot::Receiver<()>>,
    /// Was told to commit.
    committing: bool,
}

enum Item {
    Piece(Bytes),
    Commit(PutTrailer),
}

/// How a replica's task ended.
struct Outcome {
    node: NodeEntry,
    result: Result<PutDone, NodeError>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(abort) = &self.abort {
            abort.abort();
        }
    }
}

impl StreamedPut {
    /// Begins at the first `max_replica` nodes for `placement`, with the body's first bytes.
    pub(crate) fn begin(cluster: &Cluster, placement: PlacementKey, head: Bytes) -> Self {
        let map = cluster.map();
        // One outcome a node at a time, so that no task ever waits to report.
        let (outcome_sender, outcomes) = mpsc::channel(map.nodes.len());
        let mut put = Self {
            cluster: cluster.clone(),
            placement,
            put_time_ms: cluster.environment().clock.unix_ms(),
            rest: cluster.write_order(&map, placement).into(),
            replicas: Vec::new(),
            outcomes,
            outcome_sender,
            gathered: BytesMut::new(),
            replay: Some(vec![head]),
            comebacks: Comebacks::new(cluster),
            reasons: Vec::new(),
        };
        put.fill(0);
        put
    }

    /// Takes the next piece, at most [`FRAME_BYTES_MAX`] long.
    pub(crate) async fn write(&mut self, piece: Bytes) -> Result<(), PutError> {
        if self.gathered.is_empty() && piece.len() >= PIECE_BYTES {
            return self.send(piece).await;
        }
        self.gathered.extend_from_slice(&piece);
        if self.gathered.len() >= PIECE_BYTES {
            // At most a frame, and less than a piece before it: cut so that no frame is over its limit.
            let mut gathered = self.gathered.split().freeze();
            let first = gathered.split_to(gathered.len().min(FRAME_BYTES_MAX));
            self.send(first).await?;
            self.gathered.extend_from_slice(&gathered);
        }
        Ok(())
    }

    /// Commits on the replicas, then writes the locator; both with the same quorum.
    pub(crate) async fn commit(mut self, trailer: PutTrailer) -> Result<Vec<Durable>, PutError> {
        let rest = self.gathered.split().freeze();
        if !rest.is_empty() {
            self.send(rest).await?;
        }
        let needed = self.needed();
        let mut durable: Vec<Durable> = Vec::new();
        while durable.len() < needed {
            self.tell_commit(trailer).await;
            if self.replicas.is_empty() {
                if !self.try_again(durable.len()).await {
                    return Err(self.too_few(durable.len()));
                }
                continue;
            }
            // `self` holds a sender, so there is always something to wait for; tasks end within their timeouts.
            let Some(Outcome { node, result }) = self.outcomes.recv().await else { break };
            match result {
                Ok(done) => {
                    self.cluster.health().worked(node.id);
                    self.replicas.retain(|replica| replica.node.id != node.id);
                    durable.push(Durable { node: node.id, put_time_ms: done.put_time_ms });
                }
                Err(error) => self.lost(&node, error, durable.len()),
            }
        }
        self.write_locator(trailer).await?;
        self.leave_to_background();
        Ok(durable)
    }

    /// Sends the commit to the replicas that were not told yet: all of them at first, later those that replaced others.
    async fn tell_commit(&mut self, trailer: PutTrailer) {
        let new = self.replicas.iter_mut().filter(|replica| !replica.committing);
        join_all(new.map(|replica| {
            replica.committing = true;
            // An error means that the task has ended and will say why.
            replica.queue.send(Item::Commit(trailer))
        }))
        .await;
    }

    async fn write_locator(&self, trailer: PutTrailer) -> Result<(), PutError> {
        let map = self.cluster.map();
        let order = self.cluster.write_order(&map, trailer.name.placement());
        let locator = Locator { placement: self.placement, length: trailer.length };
        let put_time_ms = self.put_time_ms;
        let request = Request::PutLocator(PutLocator { name: trailer.name, locator, put_time_ms });
        let owned = self.cluster.clone();
        let written = quorum::write(&self.cluster, order, 0, move |node| {
            let (cluster, request) = (owned.clone(), request.clone());
            async move {
                match node::ask(&cluster, &node, &request).await? {
                    Response::LocatorPut => Ok(put_time_ms),
                    _ => Err(NodeError::Unexpected { doing: "writing the locator" }),
                }
            }
        });
        written.await.map(|_| ())
    }

    /// Lets the replicas that are still at it complete, as far as the budget goes.
    fn leave_to_background(&mut self) {
        for mut replica in self.replicas.drain(..) {
            let Some(under_way) = self.cluster.background().begin(QUEUED_BYTES_MAX, 1) else { continue };
            replica.abort = None;
            let closed = replica.queue.clone();
            // The queue closes when the task ends, and so does what counts it.
            self.cluster.environment().spawner.spawn(Box::pin(async move {
                closed.closed().await;
                drop(under_way);
            }));
        }
    }

    /// Queues `piece` at every replica.
    async fn send(&mut self, piece: Bytes) -> Result<(), PutError> {
        self.notice_losses();
        while self.replicas.len() < self.needed() {
            if !self.try_again(0).await {
                return Err(self.too_few(0));
            }
            self.notice_losses();
        }
        // An error means that the task has ended and will say why.
        join_all(self.replicas.iter().map(|replica| replica.queue.send(Item::Piece(piece.clone())))).await;
        if let Some(sent) = &mut self.replay {
            sent.push(piece);
            if sent.iter().map(Bytes::len).sum::<usize>() > REPLAY_BYTES_MAX {
                self.until_all_have_begun().await;
                while self.replicas.len() < self.needed() && self.try_again(0).await {
                    self.until_all_have_begun().await;
                }
                self.replay = None;
            }
        }
        Ok(())
    }

    fn notice_losses(&mut self) {
        while let Ok(Outcome { node, result }) = self.outcomes.try_recv() {
            // Before the commit a task ends only by failing.
            let error = result.err().unwrap_or(NodeError::Unexpected { doing: "sending the body" });
            self.lost(&node, error, 0);
        }
    }

    /// Waits until every replica has begun, those included that replaced others meanwhile: a node that is merely slow to
    /// turn out dead must not cost a replica for want of what was sent to it.
    async fn until_all_have_begun(&mut self) {
        while let Some(begun) = self.replicas.iter_mut().find_map(|replica| replica.begun.take()) {
            if begun.await.is_err() {
                self.notice_losses();
            }
        }
    }

    /// Notes that `node` is lost, and replaces it while that is possible.
    fn lost(&mut self, node: &NodeEntry, error: NodeError, durable: usize) {
        tracing::warn!(node = %node.id, %error, "replica of a streamed put lost");
        self.replicas.retain(|replica| replica.node.id != node.id);
        self.comebacks.note(node, &error);
        let failure = self.cluster.failed(node, error);
        self.reasons.push(failure);
        if self.replicas.len() + durable < usize::from(self.cluster.map().max_replica) {
            self.begin_next();
        }
    }

    /// Begins anew at nodes that may be back by now, while what was sent is in hand; false where that cannot be enough.
    async fn try_again(&mut self, durable: usize) -> bool {
        if self.replay.is_none() {
            return false;
        }
        let (have, needed) = (self.replicas.len() + durable, self.needed());
        let Some(again) = self.comebacks.take(have, needed, &mut self.reasons).await else { return false };
        self.rest.extend(again);
        self.fill(durable);
        true
    }

    /// Why the put cannot go on.
    fn too_few(&mut self, durable: usize) -> PutError {
        let (needed, reasons) = (self.needed(), std::mem::take(&mut self.reasons));
        if self.rest.is_empty() {
            // Every node was tried.
            return PutError::NotEnoughReplicas { needed, durable, reasons };
        }
        PutError::LostOnTheWay { needed, durable, reasons }
    }

    fn needed(&self) -> usize {
        usize::from(self.cluster.map().min_replica)
    }

    fn fill(&mut self, durable: usize) {
        while self.replicas.len() + durable < usize::from(self.cluster.map().max_replica) && self.begin_next() {}
    }

    /// Begins a replica at the next node, with all that was sent so far.
    fn begin_next(&mut self) -> bool {
        let Some(sent) = &self.replay else { return false };
        let Some(node) = self.rest.pop_front() else { return false };
        let (queue, items) = mpsc::channel(QUEUED_PIECES_MAX);
        // A node that is tried again may still be at what it was sent before: another upload.
        let upload = UploadId(self.cluster.environment().random_bytes());
        let feed = Feed {
            cluster: self.cluster.clone(),
            node: node.clone(),
            header: PutHeader {
                put_time_ms: self.put_time_ms,
                lease_ms: UPLOAD_LEASE_MAX_MS,
                target: PutTarget::Streamed { upload, placement: self.placement },
            },
            sent: sent.clone(),
            items,
        };
        let (outcomes, of) = (self.outcome_sender.clone(), node.clone());
        let (has_begun, begun) = oneshot::channel();
        let (task, abort) = abortable(async move {
            // Lives until the outcome was reported, so that who sees it closed finds the outcome.
            let mut has_begun = Some(has_begun);
            if let Some(result) = feed.run(&mut has_begun).await {
                // Full never, closed only when nobody wants to know.
                let _ = outcomes.try_send(Outcome { node: of, result });
            }
        });
        self.cluster.environment().spawner.spawn(Box::pin(async move {
            // An abort is how an abandoned put ends.
            let _ = task.await;
        }));
        self.replicas.push(Replica { node, queue, abort: Some(abort), begun: Some(begun), committing: false });
        true
    }
}

/// One replica's task.
struct Feed {
    cluster: Cluster,
    node: NodeEntry,
    header: PutHeader,
    sent: Vec<Bytes>,
    items: mpsc::Receiver<Item>,
}

impl Feed {
    /// Feeds the node until the commit is answered; `None` if the put was abandoned before.
    async fn run(mut self, has_begun: &mut Option<oneshot::Sender<()>>) -> Option<Result<PutDone, NodeError>> {
        let (mut send, mut recv) =
            match node::begin(&self.cluster, &self.node, &Request::Put(self.header.clone())).await {
                Ok(halves) => halves,
                Err(error) => return Some(Err(error)),
            };
        // One future for the whole put: an answer before the commit is a refusal, whenever it comes.
        let mut answer = Box::pin(put_answer(&mut recv));
        let mut sent = std::mem::take(&mut self.sent).into_iter();
        loop {
            let item = match sent.next() {
                Some(piece) => Item::Piece(piece),
                None => {
                    if let Some(has_begun) = has_begun.take() {
                        // Nobody may be waiting for it.
                        let _ = has_begun.send(());
                    }
                    tokio::select! {
                        biased;
                        early = &mut answer => {
                            let doing = "sending the body";
                            return Some(Err(early.err().unwrap_or(NodeError::Unexpected { doing })));
                        }
                        item = self.items.recv() => item?,
                    }
                }
            };
            let (committing, result) = match item {
                Item::Piece(piece) => (false, self.send_piece(&mut send, piece).await),
                Item::Commit(trailer) => (true, self.bounded(send_commit(&mut send, trailer)).await),
            };
            let environment = self.cluster.environment();
            if let Err(error) = result {
                // A node that refuses stops reading; its answer tells why.
                let refusal = environment.within(self.cluster.options().progress_timeout, answer).await;
                return Some(Err(match refusal {
                    Ok(Err(refused @ NodeError::Refused(_))) => refused,
                    _ => error,
                }));
            }
            if committing {
                let doing = "waiting until the blob is durable";
                let answered = environment.within(self.cluster.options().commit_timeout, answer).await;
                return Some(answered.unwrap_or_else(|source| Err(NodeError::Stalled { doing, source })));
            }
        }
    }

    async fn send_piece(&self, send: &mut SendHalf, mut piece: Bytes) -> Result<(), NodeError> {
        while !piece.is_empty() {
            // The head is longer than a frame.
            let frame = piece.split_to(piece.len().min(FRAME_BYTES_MAX));
            self.bounded(send.send_body_frame(frame)).await?;
        }
        Ok(())
    }

    /// A step of sending, within the time a node has for a step.
    async fn bounded(&self, step: impl Future<Output = Result<(), StreamError>>) -> Result<(), NodeError> {
        let doing = "sending the body";
        let done = self.cluster.environment().within(self.cluster.options().progress_timeout, step).await;
        done.map_err(|source| NodeError::Stalled { doing, source })?
            .map_err(|source| NodeError::Broken { doing, source })
    }
}
