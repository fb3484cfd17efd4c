//! What kind of run a seed stands for: how large the cluster is, how fast time passes, which faults there are. Few seeds have
//! all kinds of faults, so that each is also seen without the noise of the others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use lazaret_protocol::cluster_map::{NodeEntry, NodeState, StorageType};
use lazaret_protocol::{ClusterId, ClusterMap, NodeId};

use crate::network::Weather;
use crate::random::Decisions;

/// The cluster of every run.
pub(crate) const CLUSTER: ClusterId = ClusterId([1; 16]);
/// Nodes of the largest cluster at the beginning.
const NODES_MAX: u64 = 5;

/// Which kinds of faults a run has, and at what pace.
#[derive(Debug, Clone)]
pub(crate) struct Temper {
    pub(crate) power: bool,
    pub(crate) kills: bool,
    pub(crate) cuts: bool,
    pub(crate) weather: bool,
    pub(crate) disks: bool,
    pub(crate) losses: bool,
    pub(crate) clocks: bool,
    pub(crate) deletions: bool,
    pub(crate) holds: bool,
    pub(crate) maps: bool,
    /// Hours pass, and not only seconds: blobs expire, nodes count as lost.
    pub(crate) long: bool,
}

impl Temper {
    pub(crate) fn draw(decisions: &mut Decisions) -> Self {
        let mut often = || decisions.below(5) < 3;
        Self {
            power: often(),
            kills: often(),
            cuts: often(),
            weather: often(),
            disks: often(),
            losses: often(),
            clocks: often(),
            deletions: often(),
            holds: often(),
            maps: often(),
            long: decisions.once_in(3),
        }
    }

    /// The longest of the usual pauses between two steps.
    pub(crate) fn pause(&self) -> Duration {
        Duration::from_millis(120)
    }

    /// The longest of the rare pauses.
    pub(crate) fn long_pause(&self) -> Duration {
        Duration::from_secs(if self.long { 3000 } else { 20 })
    }
}

/// The map a cluster begins with.
pub(crate) fn draw_map(decisions: &mut Decisions, temper: &Temper) -> ClusterMap {
    let nodes = decisions.between(1, NODES_MAX + 1);
    let max_replica = decisions.between(1, nodes.min(4) + 1);
    let min_replica = decisions.between(1, max_replica + 1);
    ClusterMap {
        cluster: CLUSTER,
        epoch: 1,
        min_replica: min_replica as u8,
        max_replica: max_replica as u8,
        cleanuprange: draw_cleanuprange(decisions, temper),
        storage_type: if decisions.once_in(4) { StorageType::None } else { StorageType::Salt },
        nodes: (1..=nodes).map(node_entry).collect(),
    }
}

/// Hours that blobs are kept.
pub(crate) fn draw_cleanuprange(decisions: &mut Decisions, temper: &Temper) -> u32 {
    let choices: &[u32] = if temper.long { &[0, 1, 2, 4, 24] } else { &[0, 24] };
    decisions.pick(choices).copied().unwrap_or(0)
}

/// The node of this number.
pub(crate) fn node_entry(number: u64) -> NodeEntry {
    NodeEntry {
        id: NodeId([number as u8; 16]),
        name: format!("node-{number}"),
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000 + number as u16),
        weight: 1,
        state: NodeState::Up,
    }
}

pub(crate) fn draw_weather(decisions: &mut Decisions) -> Weather {
    Weather {
        delay_max: Duration::from_micros(100 << decisions.below(12)),
        slow_once_in: [0, 10, 100][decisions.below(3) as usize],
        slow_max: Duration::from_millis(decisions.below(8000)),
        break_once_in: [0, 8, 40][decisions.below(3) as usize],
    }
}
