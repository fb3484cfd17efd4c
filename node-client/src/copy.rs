//! A copy of a blob for one node: what repair, drain and return are made of. Put time and placement are the caller's, and
//! the node hashes what it receives as it does with every put, so a copy damaged on the way is refused there.

use std::fmt::Display;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use lazaret_protocol::limits::FRAME_BYTES_MAX;
use lazaret_protocol::message::{PutDone, PutHeader, PutTrailer, Request, Response};
use lazaret_protocol::name::{BlobName, NodeId};

use crate::cluster::{Cluster, GetError};
use crate::download::Download;
use crate::node::{self, NodeError};
use crate::stream::RecvHalf;
use crate::upload::send_commit;

impl Download {
    /// The verified bytes as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, GetError>> + Send {
        stream::unfold(Some(self), |download| async move {
            let mut download = download?;
            match download.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(download))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

impl Cluster {
    /// Puts a copy of `name` on `node` and on no other, with put time and target as `header` says: whole up to
    /// [`lazaret_protocol::limits::HELD_BYTES_MAX`], streamed beyond. Each step at the node is bounded in time; how long `body` takes between pieces is
    /// its own affair.
    pub async fn put_copy<E: Display>(
        &self,
        node: NodeId,
        header: PutHeader,
        name: BlobName,
        length: u64,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<PutDone, NodeError> {
        let map = self.map();
        let node = map.node(node).ok_or(NodeError::NotInMap(node))?;
        let put = self.send_copy(node, header, PutTrailer { name, length }, body).await;
        match &put {
            Ok(_) => self.health().worked(node.id),
            // The node has no part in that one.
            Err(NodeError::Source(_)) => {}
            Err(error) => self.note_failure(node, error),
        }
        put
    }

    async fn send_copy<E: Display>(
        &self,
        node: &lazaret_protocol::NodeEntry,
        header: PutHeader,
        trailer: PutTrailer,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<PutDone, NodeError> {
        let (environment, options) = (self.environment(), self.options());
        let (mut send, mut recv) = node::begin(self, node, &Request::Put(header)).await?;
        // One future for the whole put: an answer before the commit is a refusal, whenever it comes.
        let mut answer = Box::pin(put_answer(&mut recv));
        let mut body = std::pin::pin!(body);
        let doing = "sending the body";
        loop {
            let piece = tokio::select! {
                biased;
                early = &mut answer => return Err(early.err().unwrap_or(NodeError::Unexpected { doing })),
                piece = body.next() => piece,
            };
            let mut piece = match piece {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Err(NodeError::Source(error.to_string())),
                None => break,
            };
            while !piece.is_empty() {
                let frame = piece.split_to(piece.len().min(FRAME_BYTES_MAX));
                let sent = environment.within(options.progress_timeout, send.send_body_frame(frame)).await;
                match sent {
                    Ok(Ok(())) => {}
                    // A node that refuses stops reading; its answer tells why.
                    Ok(Err(source)) => {
                        let refusal = environment.within(options.progress_timeout, answer).await;
                        return Err(match refusal {
                            Ok(Err(refused @ NodeError::Refused(_))) => refused,
                            _ => NodeError::Broken { doing, source },
                        });
                    }
                    Err(source) => return Err(NodeError::Stalled { doing, source }),
                }
            }
        }
        let committed = environment.within(options.progress_timeout, send_commit(&mut send, trailer)).await;
        let doing = "waiting until the blob is durable";
        let answered = environment.within(options.commit_timeout, answer).await;
        match (answered, committed) {
            (Ok(Ok(done)), _) => Ok(done),
            (Ok(Err(refused @ NodeError::Refused(_))), _) => Err(refused),
            (_, Ok(Err(source))) => Err(NodeError::Broken { doing: "sending the body", source }),
            (_, Err(source)) => Err(NodeError::Stalled { doing: "sending the body", source }),
            (Ok(Err(error)), Ok(Ok(()))) => Err(error),
            (Err(source), Ok(Ok(()))) => Err(NodeError::Stalled { doing, source }),
        }
    }
}

/// The node's answer to a put.
pub(crate) async fn put_answer(recv: &mut RecvHalf) -> Result<PutDone, NodeError> {
    let doing = "waiting until the blob is durable";
    match node::answer(recv, doing).await? {
        Response::Put(done) => Ok(done),
        _ => Err(NodeError::Unexpected { doing }),
    }
}
