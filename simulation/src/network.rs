//! The network between simulated parties: streams are relayed piece by piece, each after a delay of its own, so that
//! streams overtake each other; links are cut in one direction or both, swallow what is sent, or break streams in the middle.
//!
//! What is sent on one stream arrives in order and unaltered, or the stream breaks: that much QUIC promises. A caller that
//! has a connection already can open a stream to a node that is no longer there, and learns of it late.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{Either, select};
use lazaret_node_client::local::Handler;
use lazaret_node_client::stream::{RecvHalf, SendHalf, local_pair};
use lazaret_node_client::{Transport, TransportError};
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::message::Role;
use lazaret_protocol::name::NodeId;

use crate::executor::{Executor, Group};
use crate::names::node;

/// How long a connection attempt takes to give up, as with the QUIC transport.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection without a word from the other side lives.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often is looked whether a link works again.
const RETRANSMIT_INTERVAL: Duration = Duration::from_millis(200);

/// An end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    /// A client, by number.
    Client(u64),
    /// A node.
    Node(NodeId),
}

/// What happens to streams besides delays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Longest usual delay of a piece.
    pub(crate) delay_max: Duration,
    /// One piece in so many takes much longer; 0 for none.
    pub(crate) slow_once_in: u64,
    /// How long that may be.
    pub(crate) slow_max: Duration,
    /// One stream in so many breaks in the middle; 0 for none.
    pub(crate) break_once_in: u64,
}

impl fmt::Display for Party {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(number) => write!(formatter, "client {number}"),
            Self::Node(id) => formatter.write_str(&node(*id)),
        }
    }
}

impl Weather {
    /// A network that works.
    pub(crate) fn fair() -> Self {
        let delay_max = Duration::from_millis(2);
        Self { delay_max, slow_once_in: 0, slow_max: Duration::ZERO, break_once_in: 0 }
    }
}

/// The network. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Network {
    executor: Executor,
    /// The tasks that carry pieces: no party's.
    group: Group,
    state: Arc<Mutex<State>>,
}

struct State {
    nodes: BTreeMap<NodeId, Presence>,
    cut: BTreeSet<(Party, Party)>,
    weather: Weather,
}

#[derive(Clone)]
enum Presence {
    /// It runs, for the so-many-th time.
    Here { life: u64, serve: Arc<dyn Fn(Role) -> Handler + Send + Sync> },
    /// Its process is gone: the machine says so to whoever asks.
    Gone,
    /// The machine is off: nobody says anything.
    Silent,
}

impl Network {
    pub(crate) fn new(executor: &Executor) -> Self {
        let state = State { nodes: BTreeMap::new(), cut: BTreeSet::new(), weather: Weather::fair() };
        Self { executor: executor.clone(), group: executor.new_group(), state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `node` runs for the `life`-th time, and serves each stream with the handler for its caller's role.
    pub(crate) fn attach(&self, node: NodeId, life: u64, serve: Arc<dyn Fn(Role) -> Handler + Send + Sync>) {
        self.state().nodes.insert(node, Presence::Here { life, serve });
    }

    /// `node` no longer runs; if its machine is off, nobody says so.
    pub(crate) fn detach(&self, node: NodeId, silent: bool) {
        self.state().nodes.insert(node, if silent { Presence::Silent } else { Presence::Gone });
    }

    /// Nobody is there any more: nodes know the network and the network knows nodes, which would keep both for ever.
    pub(crate) fn forget_nodes(&self) {
        let nodes = std::mem::take(&mut self.state().nodes);
        drop(nodes);
    }

    /// Whether anybody still holds the network.
    #[cfg(test)]
    pub(crate) fn watch(&self) -> impl Fn() -> bool + use<> {
        let state = Arc::downgrade(&self.state);
        move || state.upgrade().is_some()
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Lets nothing pass from one party to another.
    pub(crate) fn cut(&self, from: Party, to: Party) {
        self.state().cut.insert((from, to));
    }

    /// All links work again.
    pub(crate) fn mend(&self) {
        self.state().cut.clear();
    }

    /// The network as `from` reaches it, with the rights of `role`.
    pub(crate) fn transport(&self, from: Party, role: Role) -> Arc<dyn Transport> {
        Arc::new(Link { network: self.clone(), from, role })
    }

    fn is_cut(&self, from: Party, to: Party) -> bool {
        self.state().cut.contains(&(from, to))
    }

    fn presence(&self, node: NodeId) -> Presence {
        self.state().nodes.get(&node).cloned().unwrap_or(Presence::Silent)
    }

    fn delay(&self) -> Duration {
        let weather = self.state().weather;
        self.executor.decide(|decisions| {
            let longest = if decisions.once_in(weather.slow_once_in) { weather.slow_max } else { weather.delay_max };
            Duration::from_micros(decisions.between(50, u64::try_from(longest.as_micros()).unwrap_or(u64::MAX).max(51)))
        })
    }

    /// After how many pieces a stream breaks, if it does.
    fn pieces_until_break(&self) -> Option<u64> {
        let weather = self.state().weather;
        self.executor.decide(|decisions| decisions.once_in(weather.break_once_in).then(|| decisions.below(12)))
    }
}

struct Link {
    network: Network,
    from: Party,
    role: Role,
}

#[async_trait]
impl Transport for Link {
    async fn open(&self, node: &NodeEntry) -> Result<(SendHalf, RecvHalf), TransportError> {
        let (network, executor) = (&self.network, &self.network.executor);
        let to = Party::Node(node.id);
        let no_answer = TransportError::NoAnswer { address: node.address, after_ms: 3000 };
        executor.sleep(network.delay()).await;
        let connected = executor.decide(|decisions| decisions.once_in(2));
        if !connected && (network.is_cut(self.from, to) || network.is_cut(to, self.from)) {
            executor.sleep(CONNECT_TIMEOUT).await;
            return Err(no_answer);
        }
        match network.presence(node.id) {
            Presence::Here { life, serve } => {
                let ((send, recv), (back, forth)) = local_pair();
                let stream = Stream {
                    network: network.clone(),
                    caller: self.from,
                    node: node.id,
                    life,
                    breaks_after: network.pieces_until_break(),
                };
                let handler = serve(self.role);
                executor.spawn(network.group, Box::pin(stream.run(forth, back, handler)));
                Ok((send, recv))
            }
            Presence::Gone => {
                Err(TransportError::Failed { address: node.address, reason: "nobody listens there".to_owned() })
            }
            Presence::Silent => {
                executor.sleep(CONNECT_TIMEOUT).await;
                Err(no_answer)
            }
        }
    }
}

/// A stream between a caller and one life of a node.
struct Stream {
    network: Network,
    caller: Party,
    node: NodeId,
    life: u64,
    breaks_after: Option<u64>,
}

/// How one direction of a stream ended.
enum End {
    /// As its sender or its receiver wished.
    Wished,
    /// With the connection.
    Broken,
}

impl Stream {
    async fn run(self, forth: RecvHalf, back: SendHalf, handler: Handler) {
        let ((node_send, node_recv), (serving_send, serving_recv)) = local_pair();
        // The node hears of the stream with its first piece.
        let node = Party::Node(self.node);
        let requests = Box::pin(async {
            let mut forth = forth;
            if !self.reached(self.caller, node).await {
                return End::Broken;
            }
            handler(serving_send, serving_recv);
            self.carry(self.caller, node, &mut forth, node_send).await
        });
        let answers = Box::pin(async {
            let mut answers = node_recv;
            self.carry(node, self.caller, &mut answers, back).await
        });
        // A direction that is dropped breaks, so both break together.
        match select(requests, answers).await {
            Either::Left((End::Wished, answers)) => _ = answers.await,
            Either::Right((End::Wished, requests)) => _ = requests.await,
            Either::Left((End::Broken, _)) | Either::Right((End::Broken, _)) => {}
        }
    }

    async fn carry(&self, from: Party, to: Party, receive: &mut RecvHalf, mut send: SendHalf) -> End {
        let mut carried = 0;
        loop {
            let piece = receive.recv().await;
            // The end travels with the last piece.
            let ended = matches!(piece, Ok(None)) && carried > 0;
            if !ended && !self.reached(from, to).await || self.breaks_after.is_some_and(|after| carried >= after) {
                return End::Broken;
            }
            carried += 1;
            match piece {
                Ok(Some(piece)) => {
                    if send.send(piece).await.is_err() {
                        return End::Wished;
                    }
                }
                Ok(None) => {
                    // An error means that nobody reads any more, as with the pieces.
                    let _ = send.finish().await;
                    return End::Wished;
                }
                // The sender gave up, which its peer sees as what it is.
                Err(_) => return End::Wished,
            }
        }
    }

    /// Waits for as long as a piece takes from one end to the other; false if the connection dies of it.
    async fn reached(&self, from: Party, to: Party) -> bool {
        let (network, executor) = (&self.network, &self.network.executor);
        executor.sleep(network.delay()).await;
        let began = executor.now();
        loop {
            match network.presence(self.node) {
                Presence::Here { life, .. } if life == self.life => {
                    if !network.is_cut(from, to) {
                        return true;
                    }
                }
                // Another life of the node, or its machine, knows nothing of the connection and says so.
                Presence::Here { .. } | Presence::Gone => return false,
                Presence::Silent => {}
            }
            if executor.now().saturating_sub(began) >= IDLE_TIMEOUT {
                return false;
            }
            executor.sleep(RETRANSMIT_INTERVAL).await;
        }
    }
}
