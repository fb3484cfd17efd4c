//! What one node is asked, and what can go wrong with it. A failure always carries what was being done; with the node's
//! name it becomes a line of the error a user sees.

use std::fmt;

use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::message::{ErrorCode, ErrorReply, Request, Response};
use lazaret_protocol::name::NodeId;
use lazaret_protocol::tree::TreeError;

use crate::cluster::Cluster;
use crate::environment::Elapsed;
use crate::stream::{RecvHalf, SendHalf, StreamError};
use crate::transport::TransportError;

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No stream to it.
    #[error(transparent)]
    Unreachable(#[from] TransportError),
    /// The stream broke.
    #[error("{doing}: {source}")]
    Broken {
        /// What was being done.
        doing: &'static str,
        /// How it broke.
        source: StreamError,
    },
    /// The node took too long.
    #[error("{doing}: {source}")]
    Stalled {
        /// What was being done.
        doing: &'static str,
        /// How long was waited.
        source: Elapsed,
    },
    /// The node said no.
    #[error("{}: {}", .0.code, .0.message)]
    Refused(ErrorReply),
    /// The answer does not fit the request.
    #[error("{doing}: unexpected answer")]
    Unexpected {
        /// What was being done.
        doing: &'static str,
    },
    /// What the node sent does not verify against the blob's name.
    #[error("corrupt: {0}")]
    Corrupt(#[from] TreeError),
    /// The node claims another length than the copy the download began with.
    #[error("claims {claimed} bytes where another copy claimed {expected}")]
    OtherLength {
        /// What this node claims.
        claimed: u64,
        /// What the first one claimed.
        expected: u64,
    },
    /// The node knows where the blob should lie, and does not hold it itself.
    #[error("holds only the blob's locator")]
    LocatorOnly,
}

impl NodeError {
    pub(crate) fn is(&self, code: ErrorCode) -> bool {
        matches!(self, Self::Refused(reply) if reply.code == code)
    }
}

/// A node and what went wrong with it.
#[derive(Debug)]
pub struct NodeFailure {
    /// The node's id.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// What went wrong.
    pub error: NodeError,
}

impl NodeFailure {
    pub(crate) fn new(node: &NodeEntry, error: NodeError) -> Self {
        Self { node: node.id, name: node.name.clone(), error }
    }
}

impl fmt::Display for NodeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.error)
    }
}

/// Failures in one line, for an error's message.
pub(crate) fn in_one_line(failures: &[NodeFailure]) -> String {
    match failures {
        [] => "no node failed".to_owned(),
        _ => failures.iter().map(NodeFailure::to_string).collect::<Vec<_>>().join("; "),
    }
}

/// Sends `request` to `node` on a stream of its own, which stays open in both directions.
pub(crate) async fn begin(
    cluster: &Cluster,
    node: &NodeEntry,
    request: &Request,
) -> Result<(SendHalf, RecvHalf), NodeError> {
    let doing = "sending the request";
    let begun = async {
        let (mut send, recv) = cluster.transport().open(node).await?;
        send.send_message(request).await.map_err(|source| NodeError::Broken { doing, source })?;
        Ok((send, recv))
    };
    let limit = cluster.options().progress_timeout;
    cluster.environment().within(limit, begun).await.map_err(|source| NodeError::Stalled { doing, source })?
}

/// The answer on `recv`; a refusal is an error.
pub(crate) async fn answer(recv: &mut RecvHalf, doing: &'static str) -> Result<Response, NodeError> {
    match recv.recv_message().await {
        Ok(Response::Error(reply)) => Err(NodeError::Refused(reply)),
        Ok(response) => Ok(response),
        Err(source) => Err(NodeError::Broken { doing, source }),
    }
}

/// Runs `request` a second time if the connection was lost under it: most likely the node was restarted, and a new
/// connection reaches it. All requests may be repeated.
pub(crate) async fn once_more_if_lost<T, R>(request: impl Fn() -> R) -> Result<T, NodeError>
where
    R: Future<Output = Result<T, NodeError>>,
{
    match request().await {
        Err(NodeError::Broken { source: StreamError::ConnectionLost(_), .. }) => request().await,
        answered => answered,
    }
}

/// A request without a body, and its answer, within the time for short requests.
pub(crate) async fn ask(cluster: &Cluster, node: &NodeEntry, request: &Request) -> Result<Response, NodeError> {
    once_more_if_lost(|| ask_once(cluster, node, request)).await
}

async fn ask_once(cluster: &Cluster, node: &NodeEntry, request: &Request) -> Result<Response, NodeError> {
    let doing = "waiting for the answer";
    let asked = async {
        let (mut send, mut recv) = begin(cluster, node, request).await?;
        // The answer tells more than why the end could not be sent.
        let _ = send.finish().await;
        answer(&mut recv, doing).await
    };
    let limit = cluster.options().request_timeout;
    cluster.environment().within(limit, asked).await.map_err(|source| NodeError::Stalled { doing, source })?
}
