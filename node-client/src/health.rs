//! What recent requests taught about nodes: how long to wait before asking a second one, and whom not to ask first.
//!
//! It only orders reads and times hedges. Placement and quorum never depend on it.

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
/// How long a node that failed, or was overtaken, is asked last.
const SUSPECT_FOR: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Health {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    latency: Option<Latency>,
    /// Until when a node is asked last, in monotonic time. At most one entry a node of the map.
    suspect_until: HashMap<NodeId, Duration>,
}

/// Smoothed latency and its mean deviation, as TCP estimates its round trip (RFC 6298).
#[derive(Clone, Copy)]
struct Latency {
    mean: Duration,
    deviation: Duration,
}

impl Health {
    /// How long to wait for a node before the next is asked as well.
    pub(crate) fn hedge_delay(&self) -> Duration {
        self.state().latency.map_or(HEDGE_DELAY_START, |latency| {
            (latency.mean + 4 * latency.deviation).clamp(HEDGE_DELAY_MIN, HEDGE_DELAY_MAX)
        })
    }

    /// A node answered after `took`.
    pub(crate) fn answered(&self, node: NodeId, took: Duration) {
        let mut state = self.state();
        state.suspect_until.remove(&node);
        state.latency = Some(match state.latency {
            None => Latency { mean: took, deviation: took / 2 },
            Some(Latency { mean, deviation }) => {
                Latency { mean: (7 * mean + took) / 8, deviation: (3 * deviation + mean.abs_diff(took)) / 4 }
            }
        });
    }

    /// A node failed, or let itself be overtaken.
    pub(crate) fn disappointed(&self, node: NodeId, now: Duration) {
        self.state().suspect_until.insert(node, now + SUSPECT_FOR);
    }

    /// `order` with the nodes that recently disappointed moved behind the others.
    pub(crate) fn reorder(&self, order: Vec<&NodeEntry>, now: Duration) -> Vec<NodeEntry> {
        let state = self.state();
        let (suspects, trusted): (Vec<_>, Vec<_>) =
            order.into_iter().partition(|node| state.suspect_until.get(&node.id).is_some_and(|&until| now < until));
        trusted.into_iter().chain(suspects).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hedge_delay_follows_latency_within_its_bounds() {
        let health = Health::default();
        let node = NodeId([1; 16]);
        assert_eq!(health.hedge_delay(), HEDGE_DELAY_START);
        for _ in 0..100 {
            health.answered(node, Duration::from_micros(300));
        }
        assert_eq!(health.hedge_delay(), HEDGE_DELAY_MIN);
        for _ in 0..100 {
            health.answered(node, Duration::from_millis(40));
        }
        let steady = health.hedge_delay();
        assert!((Duration::from_millis(40)..Duration::from_millis(50)).contains(&steady), "{steady:?}");
        for _ in 0..100 {
            health.answered(node, Duration::from_secs(9));
        }
        assert_eq!(health.hedge_delay(), HEDGE_DELAY_MAX);
    }
}
