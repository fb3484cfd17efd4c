//! Known-bad nodes and clients. Each breaks one promise of the shipped code by wrapping what it stands on, so that nothing
//! in the shipped code knows of it. A simulation that does not catch them proves nothing.

use std::sync::Arc;

use lazaret_node_client::Transport;
use lazaret_storage_node::Index;

use crate::environment::SimClock;

/// A promise broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The disk reports every sync as done and does none.
    SkipSync,
    /// Puts are acknowledged when one node fewer than `min_replica` holds them.
    AcknowledgeEarly,
    /// Recovery adopts what lies behind the synced offset without making it durable.
    AdoptUnsyncedTail,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::SkipSync, Self::AcknowledgeEarly, Self::AdoptUnsyncedTail];

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
        }
    }
}

/// The index that a node of this kind uses.
pub(crate) fn index(_mutant: Option<Mutant>, index: Arc<dyn Index>) -> Arc<dyn Index> {
    index
}

/// The network as a node of this kind reaches it.
pub(crate) fn transport(
    _mutant: Option<Mutant>,
    transport: Arc<dyn Transport>,
    _clock: &Arc<SimClock>,
) -> Arc<dyn Transport> {
    transport
}
