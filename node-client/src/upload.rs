//! A put of a body of any length. Up to [`HELD_BYTES_MAX`] bytes are held until the body is whole, so that its name is
//! known and any node can be retried; a longer body goes on as a `StreamedPut`.
//!
//! An upload that is dropped is abandoned: its streams are reset and nothing is committed.

use bytes::{Bytes, BytesMut};
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::limits::{FRAME_BYTES_MAX, HELD_BYTES_MAX, UPLOAD_LEASE_MAX_MS};
use lazaret_protocol::message::{PutHeader, PutTarget, PutTrailer, Request, Response};
use lazaret_protocol::name::{BlobName, PlacementKey};
use tracing::field::Empty;

use crate::cluster::{Cluster, PutError, Stored, check_length};
use crate::node::{self, NodeError};
use crate::quorum::{self, Durable};
use crate::stream::{SendHalf, StreamError};
use crate::streamed_put::StreamedPut;

/// What is hashed before other tasks get their turn: a third of a millisecond.
const HASH_STEP_BYTES: usize = 1024 * 1024;

/// A put under way.
pub struct Upload {
    cluster: Cluster,
    hasher: blake3::Hasher,
    length: u64,
    state: State,
    /// For traces: from the first byte to the answer.
    span: tracing::Span,
}

enum State {
    /// Nothing, or all of a short body.
    Held(Held),
    Streaming(Box<StreamedPut>),
    /// A write failed, or was cancelled half way.
    Failed,
}

/// The bytes in hand. A body that comes in one piece, as from memory, is not copied.
enum Held {
    One(Bytes),
    Many(BytesMut),
}

impl Held {
    fn len(&self) -> usize {
        match self {
            Self::One(piece) => piece.len(),
            Self::Many(pieces) => pieces.len(),
        }
    }

    fn push(self, piece: Bytes) -> Self {
        match self {
            Self::One(first) if first.is_empty() => Self::One(piece),
            Self::One(first) => {
                let mut pieces = BytesMut::from(&first[..]);
                pieces.extend_from_slice(&piece);
                Self::Many(pieces)
            }
            Self::Many(mut pieces) => {
                pieces.extend_from_slice(&piece);
                Self::Many(pieces)
            }
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::One(piece) => piece,
            Self::Many(pieces) => pieces.freeze(),
        }
    }
}

impl Upload {
    pub(crate) fn new(cluster: Cluster) -> Self {
        let state = State::Held(Held::One(Bytes::new()));
        let span = tracing::trace_span!(target: "lazaret::trace", "store put", bytes = Empty, replicas = Empty);
        Self { cluster, hasher: blake3::Hasher::new(), length: 0, state, span }
    }

    /// Takes the next piece of the body; waits while replicas are behind. After an error the upload is over.
    pub async fn write(&mut self, mut piece: Bytes) -> Result<(), PutError> {
        // Taken out for the time being: a call that is cancelled half way must not be followed by one that succeeds.
        let mut state = std::mem::replace(&mut self.state, State::Failed);
        check_length(self.length.saturating_add(piece.len() as u64))?;
        while !piece.is_empty() {
            state = match state {
                State::Failed => return Err(PutError::Failed),
                State::Held(held) if held.len() < HELD_BYTES_MAX => {
                    let part = piece.split_to(piece.len().min(HELD_BYTES_MAX - held.len()));
                    self.hash(&part).await;
                    State::Held(held.push(part))
                }
                State::Held(held) => {
                    // Exactly the head was hashed so far, so its hash comes for free.
                    let placement = PlacementKey(*self.hasher.finalize().as_bytes());
                    State::Streaming(Box::new(StreamedPut::begin(&self.cluster, placement, held.into_bytes())))
                }
                State::Streaming(mut put) => {
                    let part = piece.split_to(piece.len().min(HASH_STEP_BYTES));
                    self.hash(&part).await;
                    put.write(part).await?;
                    State::Streaming(put)
                }
            };
        }
        self.state = state;
        Ok(())
    }

    /// Commits the body. What is returned is durable on at least `min_replica` nodes.
    pub async fn finish(self) -> Result<Stored, PutError> {
        let name = BlobName(*self.hasher.finalize().as_bytes());
        let durable = match self.state {
            State::Failed => return Err(PutError::Failed),
            State::Held(held) => put_whole(&self.cluster, name, held.into_bytes()).await?,
            State::Streaming(put) => put.commit(PutTrailer { name, length: self.length }).await?,
        };
        let put_time_ms = durable.iter().map(|durable| durable.put_time_ms).min().unwrap_or(0);
        self.span.record("bytes", self.length).record("replicas", durable.len());
        let durable_on = durable.iter().map(|durable| durable.node).collect();
        Ok(Stored { name, length: self.length, put_time_ms, durable_on })
    }

    async fn hash(&mut self, part: &[u8]) {
        self.length += part.len() as u64;
        let mut steps = part.chunks(HASH_STEP_BYTES).peekable();
        while let Some(step) = steps.next() {
            self.hasher.update(step);
            if steps.peek().is_some() {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Puts a body in hand on its replica set.
async fn put_whole(cluster: &Cluster, name: BlobName, content: Bytes) -> Result<Vec<Durable>, PutError> {
    let map = cluster.map();
    let order = cluster.write_order(&map, name.placement());
    let header = PutHeader {
        put_time_ms: cluster.environment().clock.unix_ms(),
        lease_ms: UPLOAD_LEASE_MAX_MS,
        target: PutTarget::Whole { name, length: content.len() as u64 },
    };
    let trailer = PutTrailer { name, length: content.len() as u64 };
    let owned = cluster.clone();
    quorum::write(cluster, order, trailer.length, move |node| {
        let (cluster, header, content) = (owned.clone(), header.clone(), content.clone());
        async move { node::once_more_if_lost(|| put_to_node(&cluster, &node, &header, &content, trailer)).await }
    })
    .await
}

/// Puts a body in hand on one node; returns the put time that counts there.
async fn put_to_node(
    cluster: &Cluster,
    node: &NodeEntry,
    header: &PutHeader,
    content: &Bytes,
    trailer: PutTrailer,
) -> Result<u64, NodeError> {
    let (environment, limit) = (cluster.environment(), cluster.options().progress_timeout);
    let (mut send, mut recv) = node::begin(cluster, node, &Request::Put(header.clone())).await?;
    let doing = "sending the body";
    let sent = environment
        .within(limit, send_body(&mut send, content.clone(), trailer))
        .await
        .map_err(|source| NodeError::Stalled { doing, source })?
        .map_err(|source| NodeError::Broken { doing, source });
    let doing = "waiting until the blob is durable";
    let answer = environment
        .within(limit, node::answer(&mut recv, doing))
        .await
        .unwrap_or_else(|source| Err(NodeError::Stalled { doing, source }));
    match (answer, sent) {
        (Ok(Response::Put(done)), Ok(())) => Ok(done.put_time_ms),
        // A node that refuses stops reading; its answer tells why.
        (Err(refused @ NodeError::Refused(_)), _) => Err(refused),
        (_, Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(error),
        (Ok(_), Ok(())) => Err(NodeError::Unexpected { doing }),
    }
}

async fn send_body(send: &mut SendHalf, mut content: Bytes, trailer: PutTrailer) -> Result<(), StreamError> {
    while !content.is_empty() {
        send.send_body_frame(content.split_to(content.len().min(FRAME_BYTES_MAX))).await?;
    }
    send_commit(send, trailer).await
}

/// Ends a body: an empty frame, the trailer, the stream's end.
pub(crate) async fn send_commit(send: &mut SendHalf, trailer: PutTrailer) -> Result<(), StreamError> {
    send.send_body_frame(Bytes::new()).await?;
    send.send_message(&trailer).await?;
    send.finish().await
}
