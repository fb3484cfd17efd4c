//! Known-bad nodes and clients. Each breaks one promise of the shipped code by wrapping what it stands on, so that nothing
//! in the shipped code knows of it. A simulation that does not catch them proves nothing.

use std::sync::Arc;

use async_trait::async_trait;
use lazaret_node_client::environment::Clock;
use lazaret_node_client::stream::{RecvHalf, SendHalf, local_pair};
use lazaret_node_client::{Transport, TransportError};
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::message::{Ping, Request, Response};

use crate::environment::SimClock;
use crate::executor::{Executor, Group};

/// A promise broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The disk reports every sync as done and does none.
    SkipSync,
    /// Puts are acknowledged when one node fewer than `min_replica` holds them.
    AcknowledgeEarly,
    /// Recovery adopts what lies behind the synced offset without making it durable.
    AdoptUnsyncedTail,
    /// Every other deletion is confirmed to the operator and never reaches the node.
    DropTombstone,
    /// Every peer's clock seems to agree with the node's own, right or wrong.
    TrustWrongClock,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::SkipSync, Self::AcknowledgeEarly, Self::AdoptUnsyncedTail, Self::DropTombstone, Self::TrustWrongClock];

    /// The one that is called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutant| mutant.name() == name)
    }

    /// What it is called on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::SkipSync => "skip-sync",
            Self::AcknowledgeEarly => "acknowledge-early",
            Self::AdoptUnsyncedTail => "adopt-unsynced-tail",
            Self::DropTombstone => "drop-tombstone",
            Self::TrustWrongClock => "trust-wrong-clock",
        }
    }
}

/// The network as the operator reaches it.
pub(crate) fn operators_transport(
    mutant: Option<Mutant>,
    transport: Arc<dyn Transport>,
    (executor, group): (&Executor, Group),
) -> Arc<dyn Transport> {
    if mutant != Some(Mutant::DropTombstone) {
        return transport;
    }
    let executor = executor.clone();
    Arc::new(Meddling { transport, meddle: Meddle::Deletions, executor, group, clock: None })
}

/// The network as a node reaches it.
pub(crate) fn nodes_transport(
    mutant: Option<Mutant>,
    transport: Arc<dyn Transport>,
    (executor, group): (&Executor, Group),
    clock: &Arc<SimClock>,
) -> Arc<dyn Transport> {
    if mutant != Some(Mutant::TrustWrongClock) {
        return transport;
    }
    let executor = executor.clone();
    Arc::new(Meddling { transport, meddle: Meddle::Clocks, executor, group, clock: Some(Arc::clone(clock)) })
}

/// A network whose streams pass through hands that change what they please.
struct Meddling {
    transport: Arc<dyn Transport>,
    meddle: Meddle,
    executor: Executor,
    group: Group,
    clock: Option<Arc<SimClock>>,
}

#[derive(Clone, Copy)]
enum Meddle {
    Deletions,
    Clocks,
}

#[async_trait]
impl Transport for Meddling {
    async fn open(&self, node: &NodeEntry) -> Result<(SendHalf, RecvHalf), TransportError> {
        let (send, recv) = self.transport.open(node).await?;
        let (caller, (back, forth)) = local_pair();
        let drops = self.executor.decide(|decisions| decisions.once_in(2));
        let (meddle, clock) = (self.meddle, self.clock.clone());
        self.executor.spawn(
            self.group,
            Box::pin(async move {
                // Whatever fails here breaks the caller's stream, as any failure on the way does.
                let _ = match meddle {
                    Meddle::Deletions => confirm_deletions(forth, back, send, recv, drops).await,
                    Meddle::Clocks => agree(forth, back, send, recv, clock).await,
                };
            }),
        );
        Ok(caller)
    }
}

type Meddled = Result<(), lazaret_node_client::stream::StreamError>;

/// Passes an operator's request on, unless it is a deletion to be dropped; that one is confirmed.
async fn confirm_deletions(
    mut forth: RecvHalf,
    mut back: SendHalf,
    mut send: SendHalf,
    mut recv: RecvHalf,
    drops: bool,
) -> Meddled {
    let request: Request = forth.recv_message().await?;
    let response = if drops && matches!(request, Request::Delete(_)) {
        Response::Deleted
    } else {
        send.send_message(&request).await?;
        send.finish().await?;
        recv.recv_message().await?
    };
    back.send_message(&response).await?;
    back.finish().await
}

/// Passes everything on, and lets a peer's answer to a ping tell the node's own time.
async fn agree(
    mut forth: RecvHalf,
    mut back: SendHalf,
    mut send: SendHalf,
    mut recv: RecvHalf,
    clock: Option<Arc<SimClock>>,
) -> Meddled {
    let request: Request = forth.recv_message().await?;
    let pings = matches!(request, Request::Ping(_));
    send.send_message(&request).await?;
    let requests = async {
        while let Some(piece) = forth.recv().await? {
            send.send(piece).await?;
        }
        send.finish().await
    };
    let answers = async {
        if pings && let Some(clock) = clock {
            let mut response: Response = recv.recv_message().await?;
            if let Response::Pong(Ping { now_ms, .. }) = &mut response {
                *now_ms = clock.unix_ms();
            }
            back.send_message(&response).await?;
        }
        while let Some(piece) = recv.recv().await? {
            back.send(piece).await?;
        }
        back.finish().await
    };
    futures_util::try_join!(requests, answers).map(|_| ())
}
