//! What recent requests taught about nodes: how long to wait before asking a second one, whom not to ask first, and whom to
//! leave alone for a while.
//!
//! A node that fails is left alone for a second, after each further failure twice as long, half a minute at most (a circuit
//! breaker). Then one ping goes to it in the background, so that no user's request pays for finding out; if it answers, one
//! request is let through, and if that succeeds all is as before. Nobody is ever left out: a node that is left alone is merely
//! asked last, so that a read finds what only it holds and a write that needs it has it.
//!
//! Requests beyond the first of their kind, hedges and repetitions, are paid for from a budget that grows with the requests
//! sent, so that a cluster in trouble is not sent a multiple of its load.
//!
//! It only orders and times requests. Which nodes may hold a blob, and how many must, never depends on it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::name::NodeId;

/// A hedge sooner than this would double requests over mere scheduling noise.
const HEDGE_DELAY_MIN: Duration = Duration::from_millis(5);
/// However slow the cluster is, a second node is asked after this.
const HEDGE_DELAY_MAX: Duration = Duration::from_millis(500);
/// Before anything was observed.
const HEDGE_DELAY_START: Duration = Duration::from_millis(50);
/// A node that is slower than all together is waited for no longer than so many times their delay.
const HEDGE_DELAY_RATIO_MAX: u32 = 4;
/// How long a node that was overtaken is asked last by reads.
const OVERTAKEN_FOR: Duration = Duration::from_secs(2);
/// How long a node that had no room for a request is asked last by requests of its kind.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// Times in a row that a node may be overtaken before that counts as a failure: one that hangs never fails, since its rivals
/// are always faster.
const OVERTAKEN_MAX: u32 = 3;
/// How long a node is left alone after its first failure.
const OPEN_MIN: Duration = Duration::from_secs(1);
/// How long it is left alone at most, before up to a quarter is added at random.
const OPEN_MAX: Duration = Duration::from_secs(24);
/// A ping or a single request that was let through, and of which nothing was heard for so long, was given up by its sender.
const TRIAL_MAX: Duration = Duration::from_secs(10);

/// What a request beyond the first costs the budget.
const EXTRA_COST: u32 = 10;
/// What every request sent adds to it: one more request for five.
const EXTRA_EARNED: u32 = 2;
/// The most that is saved up: enough for all reads under way when a node dies to be hedged at once.
const EXTRA_MAX: u32 = 1024 * EXTRA_COST;

pub(crate) struct Health {
    state: Mutex<State>,
}

struct State {
    /// All nodes together.
    latency: Option<Latency>,
    /// At most one entry a node that was ever in the map.
    nodes: HashMap<NodeId, NodeHealth>,
    extra: u32,
}

#[derive(Default)]
struct NodeHealth {
    latency: Option<Latency>,
    breaker: Breaker,
    /// Times in a row that it was left alone.
    openings: u32,
    /// Times in a row that it was overtaken, and when the last of them was.
    overtaken: u32,
    overtaken_at: Duration,
    reads_last_until: Duration,
    writes_last_until: Duration,
}

/// Times are monotonic.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Breaker {
    #[default]
    Closed,
    /// It failed, and is left alone until then.
    Open { until: Duration },
    /// It is being pinged; nobody hears from the ping after that time.
    Probing { until: Duration },
    /// It answered a ping. A request that was let through is under way until then.
    HalfOpen { trial_until: Duration },
}

/// Smoothed latency and its mean deviation, as TCP estimates its round trip (RFC 6298).
#[derive(Clone, Copy)]
struct Latency {
    mean: Duration,
    deviation: Duration,
}

impl Latency {
    fn after(before: Option<Self>, took: Duration) -> Self {
        match before {
            None => Self { mean: took, deviation: took / 2 },
            Some(Self { mean, deviation }) => {
                Self { mean: (7 * mean + took) / 8, deviation: (3 * deviation + mean.abs_diff(took)) / 4 }
            }
        }
    }

    fn hedge_delay(self) -> Duration {
        (self.mean + 4 * self.deviation).clamp(HEDGE_DELAY_MIN, HEDGE_DELAY_MAX)
    }
}

/// What a request does, as far as it decides whom to ask last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// In whom to put trust, and whom to ping.
pub(crate) struct Ordered {
    pub(crate) order: Vec<NodeEntry>,
    pub(crate) probes: Vec<NodeEntry>,
}

impl Default for Health {
    fn default() -> Self {
        Self { state: Mutex::new(State { latency: None, nodes: HashMap::new(), extra: EXTRA_MAX }) }
    }
}

impl Health {
    /// How long to wait for `node` before the next is asked as well.
    pub(crate) fn hedge_delay(&self, node: NodeId) -> Duration {
        let state = self.state();
        let overall = state.latency.map_or(HEDGE_DELAY_START, Latency::hedge_delay);
        let own = state.nodes.get(&node).and_then(|node| node.latency).map_or(overall, Latency::hedge_delay);
        own.min(HEDGE_DELAY_RATIO_MAX * overall)
    }

    /// A read began to be answered after `took`.
    pub(crate) fn answered(&self, node: NodeId, took: Duration) {
        let mut state = self.state();
        state.latency = Some(Latency::after(state.latency, took));
        let node = state.nodes.entry(node).or_default();
        node.latency = Some(Latency::after(node.latency, took));
        node.reads_last_until = Duration::ZERO;
        node.works();
    }

    /// A put or get came to its end at the node.
    pub(crate) fn worked(&self, node: NodeId) {
        if let Some(node) = self.state().nodes.get_mut(&node) {
            node.works();
        }
    }

    /// The node answered, though that does not show yet that its disks work.
    pub(crate) fn alive(&self, node: NodeId) {
        if let Some(node) = self.state().nodes.get_mut(&node)
            && matches!(node.breaker, Breaker::Open { .. } | Breaker::Probing { .. })
        {
            node.breaker = Breaker::HalfOpen { trial_until: Duration::ZERO };
        }
    }

    /// The node has no room for requests of this kind just now.
    pub(crate) fn refused(&self, node: NodeId, kind: Kind, now: Duration) {
        let mut state = self.state();
        let node = state.nodes.entry(node).or_default();
        match kind {
            Kind::Read => node.reads_last_until = now + REFUSED_FOR,
            Kind::Write => node.writes_last_until = now + REFUSED_FOR,
        }
    }

    /// The node cannot be reached, or let a request hang. `dice` is random.
    pub(crate) fn failed(&self, node: NodeId, now: Duration, dice: u16) {
        self.state().nodes.entry(node).or_default().fails(now, dice);
    }

    /// A read that was sent at `began` was answered by another node sooner. `dice` is random.
    pub(crate) fn overtaken(&self, node: NodeId, began: Duration, now: Duration, dice: u16) {
        let mut state = self.state();
        let node = state.nodes.entry(node).or_default();
        // It would have taken at least as long.
        node.latency = Some(Latency::after(node.latency, now.saturating_sub(began)));
        node.reads_last_until = now + OVERTAKEN_FOR;
        if matches!(node.breaker, Breaker::HalfOpen { .. }) {
            return node.fails(now, dice);
        }
        // Requests that were under way at once count as one.
        if began >= node.overtaken_at {
            node.overtaken += 1;
            node.overtaken_at = now;
            if node.overtaken >= OVERTAKEN_MAX {
                node.fails(now, dice);
            }
        }
    }

    /// `order` with the nodes that are better left alone moved behind the others. The first `at_once` are going to be asked.
    pub(crate) fn order(&self, order: Vec<&NodeEntry>, kind: Kind, at_once: usize, now: Duration) -> Ordered {
        let mut state = self.state();
        let mut probes = Vec::new();
        let mut ranked: Vec<(u8, &NodeEntry)> = order
            .into_iter()
            .map(|node| match state.nodes.get_mut(&node.id) {
                None => (0, node),
                Some(health) => {
                    if health.wants_probe(now) {
                        health.breaker = Breaker::Probing { until: now + TRIAL_MAX };
                        probes.push(node.clone());
                    }
                    (health.rank(kind, now), node)
                }
            })
            .collect();
        // Stable: within a rank the order is the blob's.
        ranked.sort_by_key(|(rank, _)| *rank);
        for (_, node) in ranked.iter().take(at_once) {
            if let Some(health) = state.nodes.get_mut(&node.id)
                && matches!(health.breaker, Breaker::HalfOpen { trial_until } if trial_until <= now)
            {
                health.breaker = Breaker::HalfOpen { trial_until: now + TRIAL_MAX };
            }
        }
        Ordered { order: ranked.into_iter().map(|(_, node)| node.clone()).collect(), probes }
    }

    /// A request was sent.
    pub(crate) fn earn_extra(&self) {
        let mut state = self.state();
        state.extra = (state.extra + EXTRA_EARNED).min(EXTRA_MAX);
    }

    /// Whether a hedge or a repetition may be sent.
    pub(crate) fn take_extra(&self) -> bool {
        let mut state = self.state();
        match state.extra.checked_sub(EXTRA_COST) {
            Some(rest) => {
                state.extra = rest;
                true
            }
            None => false,
        }
    }

    /// Whether there is a hedge or a repetition left.
    pub(crate) fn has_extra(&self) -> bool {
        self.state().extra >= EXTRA_COST
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeHealth {
    fn works(&mut self) {
        self.breaker = Breaker::Closed;
        self.openings = 0;
        self.overtaken = 0;
    }

    fn fails(&mut self, now: Duration, dice: u16) {
        if matches!(self.breaker, Breaker::Open { .. }) {
            // Of a request that began before.
            return;
        }
        let doublings = self.openings.min(OPEN_MAX.as_secs().ilog2() + 1);
        let pause = (OPEN_MIN * (1 << doublings)).min(OPEN_MAX);
        self.breaker = Breaker::Open { until: now + pause + pause * u32::from(dice) / (4 * u32::from(u16::MAX)) };
        self.openings = self.openings.saturating_add(1);
        self.overtaken = 0;
    }

    fn wants_probe(&self, now: Duration) -> bool {
        matches!(self.breaker, Breaker::Open { until } | Breaker::Probing { until } if until <= now)
    }

    fn rank(&self, kind: Kind, now: Duration) -> u8 {
        let last_until = match kind {
            Kind::Read => self.reads_last_until,
            Kind::Write => self.writes_last_until,
        };
        match self.breaker {
            Breaker::Open { .. } | Breaker::Probing { .. } => 2,
            Breaker::HalfOpen { trial_until } if now < trial_until => 2,
            Breaker::Closed | Breaker::HalfOpen { .. } if now < last_until => 1,
            Breaker::Closed | Breaker::HalfOpen { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use lazaret_protocol::cluster_map::NodeState;

    use super::*;

    const A: NodeId = NodeId([1; 16]);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn entries() -> Vec<NodeEntry> {
        let entry = |i: u8| NodeEntry {
            id: NodeId([i; 16]),
            name: format!("node{i}"),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            weight: 1,
            state: NodeState::Up,
        };
        (1..=3).map(entry).collect()
    }

    /// The order of three nodes, A being their first, and how many are to be pinged.
    fn order(health: &Health, kind: Kind, now: Duration) -> (Vec<u8>, usize) {
        let entries = entries();
        let ordered = health.order(entries.iter().collect(), kind, 1, now);
        (ordered.order.iter().map(|node| node.id.0[0]).collect(), ordered.probes.len())
    }

    #[test]
    fn the_hedge_delay_follows_latency_within_its_bounds() {
        let health = Health::default();
        assert_eq!(health.hedge_delay(A), HEDGE_DELAY_START);
        let after_100 = |took: Duration| {
            (0..100).for_each(|_| health.answered(A, took));
            health.hedge_delay(A)
        };
        assert_eq!(after_100(Duration::from_micros(300)), HEDGE_DELAY_MIN);
        let steady = after_100(Duration::from_millis(40));
        assert!((Duration::from_millis(40)..Duration::from_millis(50)).contains(&steady), "{steady:?}");
        assert_eq!(after_100(Duration::from_secs(9)), HEDGE_DELAY_MAX);
    }

    #[test]
    fn a_node_is_given_its_own_time_but_not_much_more_than_all() {
        let health = Health::default();
        let other = NodeId([2; 16]);
        for _ in 0..100 {
            health.answered(A, Duration::from_millis(12));
            (0..4).for_each(|_| health.answered(other, Duration::from_millis(8)));
        }
        assert!(health.hedge_delay(A) > health.hedge_delay(other));
        // Overtaken again and again: what is known of it is only that it takes longer.
        for i in 0..100_u64 {
            let began = Duration::from_secs(i);
            health.overtaken(A, began, began + Duration::from_millis(400), 0);
        }
        let overall = health.hedge_delay(NodeId([3; 16]));
        assert_eq!(health.hedge_delay(A), HEDGE_DELAY_RATIO_MAX * overall);
    }

    #[test]
    fn failures_leave_a_node_alone_for_one_to_thirty_seconds_and_one_ping_at_a_time_finds_out() {
        for dice in [0, u16::MAX] {
            let health = Health::default();
            let mut now = seconds(100.0);
            for (failure, pause) in [1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 24.0].into_iter().enumerate() {
                health.failed(A, now, dice);
                // Requests that were under way fail as well, and that says nothing new.
                health.failed(A, now + seconds(0.01), dice);
                let pause = if dice == 0 { pause } else { pause * 1.25 };
                for kind in [Kind::Read, Kind::Write] {
                    let early = now + seconds(pause - 0.001);
                    assert_eq!(order(&health, kind, early), (vec![2, 3, 1], 0), "failure {failure}");
                }
                now += seconds(pause + 0.001);
                assert_eq!(order(&health, Kind::Read, now), (vec![2, 3, 1], 1), "failure {failure}");
                assert_eq!(order(&health, Kind::Read, now), (vec![2, 3, 1], 0), "one ping is under way");
            }
        }
    }

    #[test]
    fn a_node_that_answers_a_ping_is_let_one_request_and_then_all() {
        let health = Health::default();
        health.failed(A, seconds(1.0), 0);
        let now = seconds(3.0);
        assert_eq!(order(&health, Kind::Read, now).1, 1);
        health.alive(A);
        assert_eq!(order(&health, Kind::Read, now).0, [1, 2, 3]);
        assert_eq!(order(&health, Kind::Read, now).0, [2, 3, 1], "one request is under way");
        health.worked(A);
        assert_eq!(order(&health, Kind::Read, now).0, [1, 2, 3]);
        assert_eq!(order(&health, Kind::Read, now).0, [1, 2, 3]);
        // The next failure counts as the first.
        health.failed(A, now, 0);
        assert_eq!(order(&health, Kind::Read, now + seconds(1.1)).1, 1);

        // The request that was let through fails: longer than before.
        health.alive(A);
        health.failed(A, seconds(5.0), 0);
        assert_eq!(order(&health, Kind::Read, seconds(6.9)), (vec![2, 3, 1], 0));
        assert_eq!(order(&health, Kind::Read, seconds(7.1)), (vec![2, 3, 1], 1));
        // Nobody hears from the ping: another one.
        assert_eq!(order(&health, Kind::Read, seconds(7.2) + TRIAL_MAX), (vec![2, 3, 1], 1));
        health.alive(A);
        let let_through = seconds(20.0);
        assert_eq!(order(&health, Kind::Write, let_through).0, [1, 2, 3]);
        assert_eq!(order(&health, Kind::Write, let_through).0, [2, 3, 1]);
        assert_eq!(order(&health, Kind::Write, let_through + TRIAL_MAX).0, [1, 2, 3], "given up by its sender");
    }

    #[test]
    fn a_node_that_is_overtaken_three_times_in_a_row_has_failed() {
        let health = Health::default();
        let overtaken = |at: f64| health.overtaken(A, seconds(at), seconds(at + 0.1), 0);
        // Many at once count as one.
        (0..10).for_each(|_| overtaken(1.0));
        overtaken(2.0);
        assert_eq!(order(&health, Kind::Read, seconds(2.2)).0, [2, 3, 1]);
        assert_eq!(order(&health, Kind::Write, seconds(2.2)).0, [1, 2, 3]);
        assert_eq!(order(&health, Kind::Read, seconds(4.2)).0, [1, 2, 3]);
        overtaken(5.0);
        assert_eq!(order(&health, Kind::Write, seconds(5.2)).0, [2, 3, 1]);
        health.alive(A);
        health.answered(A, Duration::from_millis(1));
        overtaken(8.0);
        assert_eq!(
            order(&health, Kind::Write, seconds(8.2)).0,
            [1, 2, 3],
            "an answer in between begins the count anew"
        );
    }

    #[test]
    fn a_full_node_is_asked_last_by_writes_for_a_second() {
        let health = Health::default();
        health.refused(A, Kind::Write, seconds(1.0));
        assert_eq!(order(&health, Kind::Write, seconds(1.9)).0, [2, 3, 1]);
        assert_eq!(order(&health, Kind::Read, seconds(1.9)).0, [1, 2, 3]);
        assert_eq!(order(&health, Kind::Write, seconds(2.0)).0, [1, 2, 3]);
    }

    #[test]
    fn extra_requests_are_a_fifth_of_all_in_the_long_run() {
        let health = Health::default();
        while health.take_extra() {}
        assert!(!health.has_extra());
        let mut extra = 0;
        for _ in 0..10_000 {
            health.earn_extra();
            extra += u32::from(health.take_extra());
        }
        assert_eq!(extra, 2_000);
    }
}
