//! What one node is asked, and what can go wrong with it. A failure always carries what was being done; with the node's
//! name it becomes a line of the error a user sees.

use std::fmt;
use std::time::Duration;

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
    /// The node holds a newer map than the one it was asked by, and that map could not be fetched.
    #[error("holds a cluster map of epoch {epoch}, which could not be fetched")]
    NewerMap {
        /// Its map's epoch.
        epoch: u64,
    },
    /// The map has no such node.
    #[error("the cluster map has no node {0}")]
    NotInMap(NodeId),
    /// What was to be sent to it could not be had.
    #[error("the copy's source failed: {0}")]
    Source(String),
}

impl NodeError {
    /// The code of the node's refusal, if that is what it is.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(reply) => Some(reply.code),
            _ => None,
        }
    }

    /// Whether the same request may succeed in a moment: the node restarts, or has no place just now.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(TransportError::NoAnswer { .. } | TransportError::Failed { .. })
            | Self::Broken { source: StreamError::ConnectionLost(_), .. } => true,
            _ => self.is(ErrorCode::Busy),
        }
    }

    pub(crate) fn is(&self, code: ErrorCode) -> bool {
        self.code() == Some(code)
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
    cluster.health().earn_extra();
    let begun = async {
        let (mut send, recv) = cluster.transport().open(node).await?;
        send.send_message(request).await.map_err(|source| NodeError::Broken { doing, source })?;
        Ok((send, recv))
    };
    let limit = cluster.options().progress_timeout;
    let begun = cluster.environment().within(limit, begun).await;
    cluster.heard(node.id, cluster.transport().epoch_heard());
    begun.map_err(|source| NodeError::Stalled { doing, source })?
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
/// connection reaches it. All requests may be repeated. It takes nothing of the budget for extra requests: once a request
/// at most, and only for those that were under way on a connection that is gone.
pub(crate) async fn once_more_if_lost<T, R>(request: impl Fn() -> R) -> Result<T, NodeError>
where
    R: Future<Output = Result<T, NodeError>>,
{
    match request().await {
        Err(NodeError::Broken { source: StreamError::ConnectionLost(_), .. }) => request().await,
        answered => answered,
    }
}

/// A request without a body, and its answer, within the time for such requests.
pub(crate) async fn ask(cluster: &Cluster, node: &NodeEntry, request: &Request) -> Result<Response, NodeError> {
    ask_within(cluster, node, request, limit(cluster, request)).await
}

/// A request without a body, and its answer, within `limit`.
pub(crate) async fn ask_within(
    cluster: &Cluster,
    node: &NodeEntry,
    request: &Request,
    limit: Duration,
) -> Result<Response, NodeError> {
    let answer = once_more_if_lost(|| ask_once(cluster, node, request, limit)).await;
    cluster.heard_in(node, &answer);
    answer
}

/// How long a node may take for a request: reading blobs from disk or comparing a partition takes longer than a lookup.
fn limit(cluster: &Cluster, request: &Request) -> Duration {
    let options = cluster.options();
    match request {
        Request::Verify(_)
        | Request::RepairDigests(_)
        | Request::RepairItems(_)
        | Request::RetentionPreview(_)
        | Request::Delete(_)
        | Request::Hold(_)
        | Request::PushMap(_) => options.commit_timeout,
        _ => options.request_timeout,
    }
}

async fn ask_once(
    cluster: &Cluster,
    node: &NodeEntry,
    request: &Request,
    limit: Duration,
) -> Result<Response, NodeError> {
    let doing = "waiting for the answer";
    let asked = async {
        let (mut send, mut recv) = begin(cluster, node, request).await?;
        // The answer tells more than why the end could not be sent.
        let _ = send.finish().await;
        answer(&mut recv, doing).await
    };
    cluster.environment().within(limit, asked).await.map_err(|source| NodeError::Stalled { doing, source })?
}
