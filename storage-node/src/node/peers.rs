//! What this node knows of the others: who answers, since when who does not, and whether its own clock is theirs.
//!
//! Invariant: nothing expires by a clock that does not agree, within what put times may be off, with a majority of the map's
//! nodes, or that jumped within the last hour. A node that is alone in its map has only the second half of that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use lazaret_protocol::limits::PUT_TIME_SKEW_MAX_MS;
use lazaret_protocol::message::{Ping, Request, Response};
use lazaret_protocol::{ClusterMap, NodeId};

use super::Shared;

/// Answers older than so many intervals say nothing any more.
const STALE_INTERVALS: u32 = 5;
/// How long a clock that jumped must run evenly before anything expires by it.
const STEADY_FOR: Duration = Duration::from_secs(3600);
/// Wall-clock and monotonic time may drift apart by so much from one look to the next, before it counts as a jump: more
/// than a time daemon slews, less than a put time may be off.
const JUMP_MIN_MS: u64 = 60_000;

#[derive(Default)]
pub(crate) struct Peers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// At most one entry a node of the map.
    peers: HashMap<NodeId, Peer>,
    /// The clocks at the last look: wall clock in milliseconds and monotonic time.
    last_look: Option<(u64, Duration)>,
    jumped_at: Option<Duration>,
    now: Duration,
    stale_after: Duration,
}

#[derive(Clone, Copy)]
struct Peer {
    /// Since when it has been silent, or when it was first looked for.
    silent_since: Duration,
    answered: bool,
    /// How far its clock was ahead of ours when it last answered, in milliseconds.
    ahead_ms: i64,
    answered_at: Option<Duration>,
}

impl Peers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the node's clock may decide about expiry.
    pub(crate) fn clock_trusted(&self, map: &ClusterMap) -> bool {
        let state = self.state();
        if state.jumped_at.is_some_and(|at| state.now.saturating_sub(at) < STEADY_FOR) {
            return false;
        }
        let agreeing = map.nodes.iter().filter(|node| {
            let peer = state.peers.get(&node.id);
            peer.is_some_and(|peer| {
                let fresh = peer.answered_at.is_some_and(|at| state.now.saturating_sub(at) <= state.stale_after);
                fresh && peer.ahead_ms.unsigned_abs() <= PUT_TIME_SKEW_MAX_MS
            })
        });
        // This node agrees with itself.
        (agreeing.count() + 1) * 2 > map.nodes.len()
    }

    /// The time that expiry may go by at `now`, if the clock is trusted: the wall clock at the last look, and what has passed
    /// since. So a clock that jumped after that look does not count, however soon expiry comes after the jump.
    pub(crate) fn trusted_unix_ms(&self, map: &ClusterMap, now: Duration) -> Option<u64> {
        if !self.clock_trusted(map) {
            return None;
        }
        let (unix_ms, looked) = self.state().last_look?;
        Some(unix_ms.saturating_add(now.saturating_sub(looked).as_millis() as u64))
    }

    /// Nodes of the map that did not answer the last time.
    pub(crate) fn unreachable(&self, map: &ClusterMap, own: NodeId) -> Vec<NodeId> {
        let state = self.state();
        let silent = |id: &NodeId| state.peers.get(id).is_some_and(|peer| !peer.answered);
        map.nodes.iter().map(|node| node.id).filter(|id| *id != own && silent(id)).collect()
    }

    /// Nodes of the map that have been silent for as long as `lost_after`.
    pub(crate) fn lost(&self, map: &ClusterMap, own: NodeId, lost_after: Duration) -> Vec<NodeId> {
        let state = self.state();
        let lost = |id: &NodeId| {
            state
                .peers
                .get(id)
                .is_some_and(|peer| !peer.answered && state.now.saturating_sub(peer.silent_since) >= lost_after)
        };
        map.nodes.iter().map(|node| node.id).filter(|id| *id != own && lost(id)).collect()
    }

    /// Notes who answered what. Returns whether a node came back, or one became lost, since the last look.
    fn look(
        &self,
        answers: &[(NodeId, Option<i64>)],
        (unix_ms, now): (u64, Duration),
        stale_after: Duration,
        lost_after: Duration,
    ) -> bool {
        let mut state = self.state();
        if let Some((last_unix_ms, last_now)) = state.last_look {
            let expected_ms = last_unix_ms as i128 + now.saturating_sub(last_now).as_millis() as i128;
            let jump_ms = (i128::from(unix_ms) - expected_ms).unsigned_abs();
            if jump_ms >= u128::from(JUMP_MIN_MS) {
                tracing::error!(
                    jump_ms = jump_ms as u64,
                    "this node's clock jumped: nothing expires until it has run evenly for an hour"
                );
                state.jumped_at = Some(now);
            }
        }
        let before = state.now;
        state.last_look = Some((unix_ms, now));
        (state.now, state.stale_after) = (now, stale_after);
        let mut changed = false;
        for &(id, ahead_ms) in answers {
            let new = Peer { silent_since: now, answered: true, ahead_ms: 0, answered_at: None };
            let peer = state.peers.entry(id).or_insert(new);
            match ahead_ms {
                Some(ahead_ms) => {
                    changed |= !peer.answered;
                    *peer = Peer { silent_since: now, answered: true, ahead_ms, answered_at: Some(now) };
                }
                None => {
                    if peer.answered {
                        (peer.answered, peer.silent_since) = (false, now);
                    }
                    let silent = |at: Duration| at.saturating_sub(peer.silent_since) >= lost_after;
                    changed |= silent(now) && !silent(before);
                }
            }
        }
        state.peers.retain(|id, _| answers.iter().any(|(asked, _)| asked == id));
        changed
    }
}

/// Asks all other nodes at every interval.
pub(super) async fn watch(shared: Arc<Shared>) {
    let interval = shared.options.ping_interval;
    loop {
        let clock = &shared.environment.clock;
        // Before the others are asked: if the clock jumps meanwhile, the next look sees it.
        let looked = (clock.unix_ms(), clock.monotonic());
        let answers = ping_all(&shared).await;
        let trusted = shared.peers.clock_trusted(&shared.cluster.map());
        if shared.peers.look(&answers, looked, interval * STALE_INTERVALS, shared.options.lost_after) {
            shared.repair.wake();
        }
        let trusts = shared.peers.clock_trusted(&shared.cluster.map());
        if trusted && !trusts {
            tracing::warn!(node = %shared.id, "this node's clock agrees with no majority of the cluster: nothing expires");
        } else if trusts && !trusted {
            tracing::info!(node = %shared.id, "this node's clock agrees with a majority of the cluster");
        }
        if !shared.pause(interval).await {
            return;
        }
    }
}

/// How far each other node's clock is ahead; `None` for one that does not answer.
async fn ping_all(shared: &Arc<Shared>) -> Vec<(NodeId, Option<i64>)> {
    let map = shared.cluster.map();
    let others = map.nodes.iter().filter(|node| node.id != shared.id);
    join_all(others.map(|node| ping(shared, node.id))).await
}

async fn ping(shared: &Shared, node: NodeId) -> (NodeId, Option<i64>) {
    let clock = &shared.environment.clock;
    let (began, began_ms) = (clock.monotonic(), clock.unix_ms());
    let own = Ping { epoch: shared.cluster.map().epoch, now_ms: began_ms };
    match shared.cluster.ask(node, Request::Ping(own)).await {
        Ok(Response::Pong(pong)) => {
            if pong.epoch > shared.cluster.map().epoch {
                learn_map(shared, node).await;
            }
            // The peer read its clock somewhere between question and answer.
            let halfway_ms = began_ms + (clock.monotonic().saturating_sub(began).as_millis() / 2) as u64;
            let ahead_ms = i128::from(pong.now_ms) - i128::from(halfway_ms);
            (node, Some(i64::try_from(ahead_ms).unwrap_or(i64::MAX)))
        }
        Ok(_) => (node, None),
        Err(error) => {
            tracing::debug!(%node, %error, "a node does not answer");
            (node, None)
        }
    }
}

/// Takes over the map of a node that is further on.
async fn learn_map(shared: &Shared, node: NodeId) {
    if let Ok(Response::Map(map)) = shared.cluster.ask(node, Request::Map).await
        && let Err(error) = shared.cluster.adopt(map)
    {
        tracing::error!(%node, %error, "a node's map is refused");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use lazaret_protocol::cluster_map::{NodeEntry, NodeState, StorageType};
    use lazaret_protocol::name::ClusterId;

    use super::*;

    #[test]
    fn a_clock_that_jumps_between_two_looks_is_not_gone_by() {
        let entry = |number: u8| NodeEntry {
            id: NodeId([number; 16]),
            name: format!("node{number}"),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            weight: 1,
            state: NodeState::Up,
        };
        let map = ClusterMap {
            cluster: ClusterId([1; 16]),
            epoch: 1,
            min_replica: 1,
            max_replica: 2,
            cleanuprange: 1,
            storage_type: StorageType::Salt,
            nodes: (1..=3).map(entry).collect(),
        };
        let (peers, minute) = (Peers::default(), Duration::from_secs(60));
        let answers = [(NodeId([2; 16]), Some(0)), (NodeId([3; 16]), Some(0))];
        assert_eq!(peers.trusted_unix_ms(&map, minute), None, "nobody was asked yet");
        peers.look(&answers, (1_000_000, minute), minute, minute);
        // The wall clock may say anything now: what counts is the last look and the time since.
        assert_eq!(peers.trusted_unix_ms(&map, minute + Duration::from_millis(250)), Some(1_000_250));
        let jumped = (1_000_000_000, minute + Duration::from_secs(5));
        peers.look(&answers, jumped, minute, minute);
        assert_eq!(peers.trusted_unix_ms(&map, jumped.1), None, "a jump was seen");
    }
}
