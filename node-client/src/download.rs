//! A verified read of a blob. Nodes are asked in the blob's order; when one is slow to begin, the next is asked as well;
//! when one is absent, dead, or sends what does not verify, the read goes on at the next from the last verified byte.
//!
//! Nothing is handed out that has not verified against the blob's name. The length is a node's claim until the last
//! group has verified, which is when [`Download::next`] returns `None`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lazaret_protocol::cluster_map::{ClusterMap, NodeEntry};
use lazaret_protocol::message::{ByteRange, ErrorCode, GetHeader, GetRequest, Locator, Request, Response};
use lazaret_protocol::name::{BlobName, NodeId, PlacementKey};
use lazaret_protocol::placement::read_order;
use lazaret_protocol::tree::Decoder;

use crate::cluster::{Cluster, GetError};
use crate::environment::BoxFuture;
use crate::node::{self, NodeError, NodeFailure};
use crate::stream::RecvHalf;

/// Nodes that are asked for one blob at once, however slow they are.
const HEDGES_MAX: usize = 4;
/// Maps that may replace one another during one search: more changes in such a short time are not the work of people.
const RESTARTS_MAX: u32 = 3;

/// A read under way.
pub struct Download {
    search: Search,
    header: GetHeader,
    /// What of the blob was asked for, cut to its length.
    wanted: ByteRange,
    /// The next byte to hand out; all before it has verified.
    position: u64,
    source: Option<Source>,
    /// Everything wanted has verified, the length included.
    done: bool,
    /// For traces: as long as somebody reads.
    _span: tracing::Span,
}

/// A node's answer being read.
struct Source {
    node: NodeEntry,
    recv: RecvHalf,
    decoder: Decoder,
    /// The position when this node's answer began.
    began_at: u64,
}

impl Download {
    pub(crate) async fn open(
        cluster: Cluster,
        name: BlobName,
        range: Option<ByteRange>,
        sources: Sources,
    ) -> Result<Self, GetError> {
        if let Some(ByteRange { start, end }) = range
            && start > end
        {
            return Err(GetError::Range { start, end });
        }
        let span = tracing::trace_span!(target: "lazaret::trace", "store get", bytes = tracing::field::Empty);
        let mut search = Search::new(cluster, name, sources);
        loop {
            let found = search.next(range).await?;
            // Refuses a length that no blob has.
            match Decoder::new(name, found.header.length, range) {
                Ok(decoder) => {
                    let header = found.header;
                    let length = header.length;
                    let wanted = range.map_or(ByteRange { start: 0, end: length }, |range| ByteRange {
                        start: range.start.min(length),
                        end: range.end.min(length),
                    });
                    let source = Some(Source { node: found.node, recv: found.recv, decoder, began_at: wanted.start });
                    span.record("bytes", wanted.end.saturating_sub(wanted.start));
                    return Ok(Self {
                        search,
                        header,
                        wanted,
                        position: wanted.start,
                        source,
                        done: false,
                        _span: span,
                    });
                }
                Err(error) => search.failed(&found.node, error.into()),
            }
        }
    }

    /// The length of the whole blob in bytes, as the first node claimed it.
    pub fn length(&self) -> u64 {
        self.header.length
    }

    /// When the blob was put, in Unix milliseconds.
    pub fn put_time_ms(&self) -> u64 {
        self.header.put_time_ms
    }

    /// The bytes that [`Self::next`] hands out in all: the range asked for, cut to the blob's length.
    pub fn range(&self) -> ByteRange {
        self.wanted
    }

    /// The next verified bytes, in order and never empty; `None` once all wanted bytes and the length have verified.
    pub async fn next(&mut self) -> Result<Option<Bytes>, GetError> {
        while !self.done {
            // Taken out for the time being: a call that is cancelled half way leaves no half-read source behind.
            let mut source = match self.source.take() {
                Some(source) => source,
                None => self.resume().await?,
            };
            match self.step(&mut source).await {
                Ok(Some(content)) => {
                    self.source = Some(source);
                    if !content.is_empty() {
                        return Ok(Some(content));
                    }
                }
                Ok(None) => self.done = true,
                Err(error) => {
                    // A sound copy whose stream broke, perhaps because our own caller paused too long, may be asked again.
                    // That ends: each time it has brought the read forward.
                    if self.position > source.began_at && !matches!(error, NodeError::Corrupt(_)) {
                        self.search.queue.push_back(source.node.clone());
                    }
                    self.search.failed(&source.node, error);
                }
            }
        }
        Ok(None)
    }

    /// Reads and verifies one item: the wanted part of its content, empty if there is none; `None` past the last.
    async fn step(&mut self, source: &mut Source) -> Result<Option<Bytes>, NodeError> {
        let doing = "receiving the blob";
        let Some(needed) = source.decoder.needed() else { return Ok(None) };
        let limit = self.search.cluster.options().progress_timeout;
        let item = self
            .search
            .cluster
            .environment()
            .within(limit, source.recv.read_exact(needed))
            .await
            .map_err(|source| NodeError::Stalled { doing, source })?
            .map_err(|source| NodeError::Broken { doing, source })?;
        let Some(offset) = source.decoder.push(&item)? else { return Ok(Some(Bytes::new())) };
        let item_end = offset + item.len() as u64;
        let (start, end) = (self.position.max(offset), self.wanted.end.min(item_end));
        // Groups come in order, so what lies before the position was handed out, and there is no gap after it.
        if start >= end {
            return Ok(Some(Bytes::new()));
        }
        self.position = end;
        Ok(Some(item.slice((start - offset) as usize..(end - offset) as usize)))
    }

    /// Goes on at another node, from the first byte not handed out.
    async fn resume(&mut self) -> Result<Source, GetError> {
        let range = Some(ByteRange { start: self.position, end: self.wanted.end.max(self.position) });
        loop {
            let Found { node, header, recv } = self.search.next(range).await?;
            if header.length != self.header.length {
                let error = NodeError::OtherLength { claimed: header.length, expected: self.header.length };
                self.search.failed(&node, error);
                continue;
            }
            match Decoder::new(self.search.name, header.length, range) {
                Ok(decoder) => return Ok(Source { node, recv, decoder, began_at: self.position }),
                Err(error) => self.search.failed(&node, error.into()),
            }
        }
    }
}

/// Whom a read asks first, and whom never.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sources {
    pub(crate) preferred: Option<NodeId>,
    pub(crate) excluded: Option<NodeId>,
}

/// The search for a node that holds the blob. Each node is asked once, those that were overtaken again, and all of them anew
/// when it turns out that the map they were taken from is outdated.
struct Search {
    cluster: Cluster,
    name: BlobName,
    sources: Sources,
    /// The map by which nodes are asked.
    map: Arc<ClusterMap>,
    /// The highest epoch that a node which lacks the blob spoke of, and that node.
    newer: Option<(u64, NodeEntry)>,
    /// Maps that may still replace this one.
    restarts_left: u32,
    /// All nodes were asked a second time.
    confirmed: bool,
    /// Nodes to ask, in order.
    queue: VecDeque<NodeEntry>,
    locator: Option<Locator>,
    reasons: Vec<NodeFailure>,
}

/// A node that began to answer.
struct Found {
    node: NodeEntry,
    header: GetHeader,
    recv: RecvHalf,
}

enum Answer {
    Found(GetHeader, RecvHalf),
    Located(Locator),
    /// The epoch of the node's map.
    Absent(u64),
}

type Question = BoxFuture<'static, (NodeEntry, Duration, Result<Answer, NodeError>)>;

impl Search {
    fn new(cluster: Cluster, name: BlobName, sources: Sources) -> Self {
        let map = cluster.map();
        let mut search = Self {
            cluster,
            name,
            sources,
            map,
            newer: None,
            restarts_left: RESTARTS_MAX,
            confirmed: false,
            queue: VecDeque::new(),
            locator: None,
            reasons: Vec::new(),
        };
        search.queue = search.order(name.placement());
        search
    }

    /// Whom to ask for what lies under `placement`, in order.
    fn order(&self, placement: PlacementKey) -> VecDeque<NodeEntry> {
        let order = read_order(&self.map, placement);
        let mut order = self.cluster.read_order(order);
        order.retain(|node| Some(node.id) != self.sources.excluded);
        if let Some(at) = order.iter().position(|node| Some(node.id) == self.sources.preferred) {
            order[..=at].rotate_right(1);
        }
        order.into()
    }

    /// The next node that begins to answer for `range`.
    async fn next(&mut self, range: Option<ByteRange>) -> Result<Found, GetError> {
        let mut asked: FuturesUnordered<Question> = FuturesUnordered::new();
        // Those in `asked`, in the order they were asked, and since when.
        let mut waiting: Vec<(NodeEntry, Duration)> = Vec::new();
        loop {
            let health = self.cluster.health();
            let hedge_delay = waiting.last().map_or(Duration::ZERO, |(node, _)| health.hedge_delay(node.id));
            let may_ask = !self.queue.is_empty() && asked.len() < HEDGES_MAX && health.has_extra();
            let (node, began, answer) = tokio::select! {
                biased;
                Some(answered) = asked.next() => answered,
                () = self.cluster.environment().clock.sleep(hedge_delay), if may_ask && !asked.is_empty() => {
                    if self.cluster.health().take_extra() {
                        self.ask_next(range, &asked, &mut waiting);
                    }
                    continue;
                }
                else => {
                    if self.queue.is_empty()
                        && let Some(error) = self.conclude().await
                    {
                        return Err(error);
                    }
                    self.ask_next(range, &asked, &mut waiting);
                    continue;
                }
            };
            waiting.retain(|(other, _)| other.id != node.id);
            match answer {
                Ok(Answer::Found(header, recv)) => {
                    let now = self.cluster.now();
                    self.cluster.health().answered(node.id, now.saturating_sub(began));
                    // Those asked before it were overtaken; all may be asked again should this one fail.
                    for (other, began) in waiting.into_iter().rev() {
                        self.cluster.health().overtaken(other.id, began, now, self.cluster.dice());
                        self.queue.push_front(other);
                    }
                    return Ok(Found { node, header, recv });
                }
                Ok(Answer::Located(locator)) => {
                    self.cluster.health().worked(node.id);
                    self.located(&node, locator);
                }
                Ok(Answer::Absent(epoch)) => {
                    self.cluster.health().worked(node.id);
                    self.cluster.heard(node.id, epoch);
                    if epoch > self.newer.as_ref().map_or(self.map.epoch, |(epoch, _)| *epoch) {
                        self.newer = Some((epoch, node));
                    }
                }
                Err(error) => self.failed(&node, error),
            }
            self.ask_next(range, &asked, &mut waiting);
        }
    }

    fn ask_next(
        &mut self,
        range: Option<ByteRange>,
        asked: &FuturesUnordered<Question>,
        waiting: &mut Vec<(NodeEntry, Duration)>,
    ) {
        let Some(node) = self.queue.pop_front() else { return };
        let began = self.cluster.now();
        waiting.push((node.clone(), began));
        let (cluster, request) = (self.cluster.clone(), GetRequest { name: self.name, range });
        asked.push(Box::pin(async move {
            let answer = ask(&cluster, &node, request).await;
            (node, began, answer)
        }));
    }

    /// A node knows under which placement key the blob lies: what is left to ask is put in that order.
    fn located(&mut self, node: &NodeEntry, locator: Locator) {
        self.reasons.push(NodeFailure::new(node, NodeError::LocatorOnly));
        if self.locator.replace(locator) == Some(locator) {
            return;
        }
        let mut order = self.order(locator.placement);
        order.retain(|node| self.queue.iter().any(|queued| queued.id == node.id));
        self.queue = order;
    }

    fn failed(&mut self, node: &NodeEntry, error: NodeError) {
        if matches!(error, NodeError::Corrupt(_)) || error.is(ErrorCode::Corrupt) {
            self.cluster.count_corrupt_read();
        }
        tracing::warn!(node = %node.id, blob = %self.name, %error, "copy not readable, passed over for the next node");
        let failure = self.cluster.failed(node, error);
        self.reasons.push(failure);
    }

    /// All nodes were asked and none is left: what follows from it, or `None` if there is reason to ask again, for which the
    /// queue is filled.
    async fn conclude(&mut self) -> Option<GetError> {
        if self.newer.is_some() || self.cluster.map().epoch > self.map.epoch {
            if self.restarts_left > 0 && self.renew_map().await {
                self.restarts_left -= 1;
                return None;
            }
            let newer = self.newer.take().or_else(|| Some((self.cluster.map().epoch, self.map.nodes.first()?.clone())));
            if let Some((epoch, node)) = newer {
                self.reasons.push(NodeFailure::new(&node, NodeError::NewerMap { epoch }));
            }
        }
        let name = self.name;
        if !self.reasons.is_empty() {
            return Some(GetError::Unavailable { name, reasons: std::mem::take(&mut self.reasons) });
        }
        if self.confirmed {
            return Some(GetError::NotFound { name });
        }
        // Repair may have moved the blob meanwhile, to a node that was asked before it came from one that was asked after it
        // went. To which, depends on whom nodes take for lost: all are asked.
        self.confirmed = true;
        self.queue = self.order(name.placement());
        None
    }

    /// Takes the map that is newer than the one so far and begins anew with it; false if it cannot be had.
    async fn renew_map(&mut self) -> bool {
        let from = self.newer.as_ref().map(|(_, node)| node.id);
        if !self.cluster.fetch_map(self.map.epoch, from).await {
            return false;
        }
        self.map = self.cluster.map();
        (self.newer, self.locator, self.confirmed) = (None, None, false);
        self.reasons.clear();
        self.queue = self.order(self.name.placement());
        true
    }
}

async fn ask(cluster: &Cluster, node: &NodeEntry, request: GetRequest) -> Result<Answer, NodeError> {
    let request = Request::Get(request);
    node::once_more_if_lost(|| ask_once(cluster, node, &request)).await
}

async fn ask_once(cluster: &Cluster, node: &NodeEntry, request: &Request) -> Result<Answer, NodeError> {
    let (mut send, mut recv) = node::begin(cluster, node, request).await?;
    // The answer tells more than why the end could not be sent.
    let _ = send.finish().await;
    let doing = "waiting for the blob";
    let limit = cluster.options().progress_timeout;
    match cluster.environment().within(limit, node::answer(&mut recv, doing)).await {
        Ok(Ok(Response::Get(header))) => Ok(Answer::Found(header, recv)),
        Ok(Ok(Response::Located(locator))) => Ok(Answer::Located(locator)),
        Ok(Ok(Response::Absent(absent))) => Ok(Answer::Absent(absent.epoch)),
        Ok(Ok(_)) => Err(NodeError::Unexpected { doing }),
        Ok(Err(error)) => Err(error),
        Err(source) => Err(NodeError::Stalled { doing, source }),
    }
}
