//! What an operator does, with the storage admin key: deletes, places and releases holds, changes the cluster map.
//!
//! It is a careful one, as `lazaret cluster` is: a map is made from the newest that a majority of nodes knows, and the next
//! change waits until a majority took the last one, so that two maps never carry one epoch.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use lazaret_node_client::Cluster;
use lazaret_node_client::environment::Clock;
use lazaret_protocol::cluster_map::NodeEntry;
use lazaret_protocol::message::{Hold, Request, Response, Tombstone};
use lazaret_protocol::{BlobName, ClusterMap, NodeId};

use crate::environment::SimClock;
use crate::executor::Group;
use crate::names::{blob, nodes};
use crate::world::World;

#[derive(Clone)]
pub(crate) struct Operator {
    pub(crate) world: Arc<World>,
    pub(crate) cluster: Cluster,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) group: Group,
}

impl Operator {
    /// Begins to delete a blob and does not wait for it.
    pub(crate) fn delete(&self, name: BlobName) {
        let operator = self.clone();
        let tombstone = Tombstone { name, time_ms: self.clock.unix_ms() };
        let number = self.world.model().deletion_begins(tombstone);
        self.world.note(format!("delete {} up to {}", blob(name), tombstone.time_ms));
        self.spawn(async move {
            let confirmed = operator.tell_all(&Request::Delete(tombstone), &Response::Deleted).await;
            let world = &operator.world;
            world.note(format!("delete {} confirmed by {}", blob(name), list(&confirmed)));
            let now = world.executor.now();
            world.model().deletion_ended(name, number, &confirmed, now);
        });
    }

    /// Begins to place or release a hold and does not wait for it.
    pub(crate) fn hold(&self, name: BlobName, placed: bool) {
        let operator = self.clone();
        let hold = Hold { name, time_ms: self.clock.unix_ms(), placed, from_bucket: None };
        let number = self.world.model().hold_begins(hold);
        let what = if placed { "hold" } else { "release" };
        self.world.note(format!("{what} {}", blob(name)));
        self.spawn(async move {
            let confirmed = operator.tell_all(&Request::Hold(hold), &Response::HoldSet).await;
            let world = &operator.world;
            world.note(format!("{what} {} confirmed by {}", blob(name), list(&confirmed)));
            let now = world.now();
            world.model().hold_ended(name, number, &confirmed, now);
        });
    }

    /// Asks every node of the map, and returns those that answered as wished.
    async fn tell_all(&self, request: &Request, wished: &Response) -> BTreeSet<NodeId> {
        let map = self.cluster.map();
        let answers = join_all(map.nodes.iter().map(|node| self.cluster.ask_entry(node, request.clone()))).await;
        let is_wished = |answer: &Result<Response, _>| answer.as_ref().is_ok_and(|answer| answer == wished);
        map.nodes.iter().zip(answers).filter(|(_, answer)| is_wished(answer)).map(|(node, _)| node.id).collect()
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.world.executor.spawn(self.group, Box::pin(work));
    }

    /// The newest map that a majority of the nodes of `known` answers with; `None` if no majority answers.
    pub(crate) async fn newest_map(&self, known: &ClusterMap) -> Option<ClusterMap> {
        let answers = join_all(known.nodes.iter().map(|node| self.cluster.ask_entry(node, Request::Map))).await;
        let maps: Vec<ClusterMap> = answers
            .into_iter()
            .filter_map(|answer| match answer {
                Ok(Response::Map(map)) => Some(map),
                _ => None,
            })
            .collect();
        if 2 * maps.len() <= known.nodes.len() {
            return None;
        }
        maps.into_iter().max_by_key(|map| map.epoch)
    }

    /// Gives `map` to its nodes and to those of `former`; whether a majority of each has it now.
    pub(crate) async fn push(&self, map: &ClusterMap, former: &ClusterMap) -> bool {
        let gone = former.nodes.iter().filter(|node| map.node(node.id).is_none());
        let told: Vec<&NodeEntry> = map.nodes.iter().chain(gone).collect();
        let answers =
            join_all(told.iter().map(|node| self.cluster.ask_entry(node, Request::PushMap(map.clone())))).await;
        let accepted: BTreeSet<NodeId> = told
            .iter()
            .zip(answers)
            .filter(|(_, answer)| matches!(answer, Ok(Response::MapPushed)))
            .map(|(node, _)| node.id)
            .collect();
        self.world.note(format!("map {} accepted by {}", map.epoch, list(&accepted)));
        let majority =
            |of: &ClusterMap| 2 * of.nodes.iter().filter(|node| accepted.contains(&node.id)).count() > of.nodes.len();
        let enough = majority(map) && majority(former);
        if enough {
            // A refusal is reported by the nodes as well.
            let _ = self.cluster.adopt(map.clone());
        }
        enough
    }
}

fn list(ids: &BTreeSet<NodeId>) -> String {
    nodes(&ids.iter().copied().collect::<Vec<_>>())
}
