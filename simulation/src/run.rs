//! The course of a run: a cluster, clients, steps in which something is asked or breaks, a time in which everything heals, and
//! a reckoning; twice, so that what healed is tried again.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lazaret_node_client::{Cluster, ClusterOptions};
use lazaret_protocol::cluster_map::NodeState;
use lazaret_protocol::message::Role;
use lazaret_protocol::{BlobName, ClusterMap, NodeId};

use crate::environment::{SimClock, environment};
use crate::executor::Executor;
use crate::machine::Machine;
use crate::model::Model;
use crate::mutants::{self, Mutant};
use crate::names::node;
use crate::network::{Network, Party};
use crate::operator::Operator;
use crate::temper::{Temper, draw_cleanuprange, draw_map, node_entry};
use crate::workload::{Client, content};
use crate::world::World;

/// Requests of clients under way at once.
const REQUESTS_MAX: usize = 24;
/// Times that everything breaks and heals.
const ROUNDS: u64 = 2;
/// Clients, which share nothing.
pub(crate) const CLIENTS: u64 = 2;
/// The most nodes that ever join.
const NODES_MAX: u64 = 8;

/// A run.
pub(crate) struct Run {
    pub(crate) world: Arc<World>,
    pub(crate) network: Network,
    pub(crate) machines: Vec<Machine>,
    pub(crate) clients: Vec<Client>,
    pub(crate) operator: Option<Operator>,
    pub(crate) temper: Temper,
    /// The newest map that a majority took.
    pub(crate) map: ClusterMap,
    /// One that was proposed and of which that is not known.
    pub(crate) proposed: Option<ClusterMap>,
    /// Nodes of which copies were destroyed since the last reckoning; never as many as hold each blob at least.
    pub(crate) destroyed: Vec<NodeId>,
    /// Nothing breaks for the time being.
    pub(crate) calm: bool,
    mutant: Option<Mutant>,
    contents: Vec<Bytes>,
    next_node: u64,
    segment_bytes_max: u64,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.network.forget_nodes();
    }
}

impl Run {
    pub(crate) fn new(executor: &Executor, mutant: Option<Mutant>) -> Self {
        let network = Network::new(executor);
        let (temper, map, segment_bytes_max) = executor.decide(|decisions| {
            let temper = Temper::draw(decisions);
            let map = draw_map(decisions, &temper);
            (temper, map, 16_384 << decisions.below(8))
        });
        let world = Arc::new(World::new(executor, Model::new(map.clone())));
        let mut run = Self {
            next_node: map.nodes.len() as u64 + 1,
            world,
            network,
            machines: Vec::new(),
            clients: Vec::new(),
            operator: None,
            temper,
            map,
            proposed: None,
            destroyed: Vec::new(),
            calm: false,
            mutant,
            contents: Vec::new(),
            segment_bytes_max,
        };
        for entry in run.map.nodes.clone() {
            run.add_machine(entry.id, run.map.clone());
        }
        for number in 0..CLIENTS {
            run.add_client(number);
        }
        run.add_operator();
        run
    }

    fn add_machine(&mut self, id: NodeId, map: ClusterMap) {
        let machine = Machine::new(
            &self.world.executor,
            &self.network,
            id,
            map,
            &self.temper,
            self.segment_bytes_max,
            self.mutant,
        );
        self.machines.push(machine);
    }

    fn add_client(&mut self, number: u64) {
        let executor = &self.world.executor;
        let group = executor.new_group();
        let clock = SimClock::new(executor, self.decide(|decisions| decisions.below(20_000) as i64 - 10_000));
        let mut map = self.map.clone();
        if self.mutant == Some(Mutant::AcknowledgeEarly) {
            map.min_replica = map.min_replica.saturating_sub(1).max(1);
        }
        let transport = self.network.transport(Party::Client(number), Role::Client);
        let environment = environment(executor, &clock, group);
        match Cluster::new(map, transport, environment, ClusterOptions::default()) {
            Ok(cluster) => {
                let learning = cluster.clone();
                let background = executor.new_group();
                executor.spawn(background, Box::pin(async move { learning.run_background(pending()).await }));
                self.clients.push(Client { world: Arc::clone(&self.world), cluster, clock, group });
            }
            Err(error) => self.violated(format!("a client refuses the map: {error}")),
        }
    }

    fn add_operator(&mut self) {
        let executor = &self.world.executor;
        let (group, clock) = (executor.new_group(), SimClock::new(executor, 0));
        let transport = self.network.transport(Party::Client(CLIENTS), Role::Admin);
        let transport = mutants::operators_transport(self.mutant, transport, (executor, group));
        let environment = environment(executor, &clock, group);
        match Cluster::new(self.map.clone(), transport, environment, ClusterOptions::default()) {
            Ok(cluster) => {
                self.operator = Some(Operator { world: Arc::clone(&self.world), cluster, clock, group });
            }
            Err(error) => self.violated(format!("the operator refuses the map: {error}")),
        }
    }

    /// The whole run. What went wrong is in the model.
    pub(crate) async fn run(mut self, steps: u64) {
        let (nodes, min, max) = (self.map.nodes.len(), self.map.min_replica, self.map.max_replica);
        self.note(format!(
            "{nodes} nodes, replicas {min} to {max}, {} hours; {:?}",
            self.map.cleanuprange, self.temper
        ));
        for at in 0..self.machines.len() {
            self.start(at);
        }
        for _ in 0..ROUNDS {
            for _ in 0..steps.div_ceil(ROUNDS) {
                self.step().await;
                if self.is_over() {
                    return;
                }
            }
            self.heal().await;
            self.reckon().await;
            if self.is_over() {
                return;
            }
        }
    }

    fn is_over(&self) -> bool {
        self.world.model().violation().is_some()
    }

    pub(crate) fn violated(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("VIOLATION: {what}"));
        self.world.model().violated(what);
    }

    pub(crate) fn note(&self, event: impl Into<String>) {
        self.world.note(event);
    }

    pub(crate) fn decide<T>(&self, draw: impl FnOnce(&mut crate::random::Decisions) -> T) -> T {
        self.world.decide(draw)
    }

    async fn step(&mut self) {
        self.bury_the_fallen();
        match self.decide(|decisions| decisions.below(100)) {
            0..58 => self.ask(),
            58..70 => self.restart_one().await,
            70..80 => self.break_a_node(),
            80..84 => self.break_a_disk(),
            84..90 => self.break_the_network(),
            90..93 => self.break_a_clock(),
            93..96 => self.change_the_map().await,
            _ => self.wait_long().await,
        }
        if self.decide(|decisions| decisions.once_in(2)) {
            self.wait(self.temper.pause()).await;
        }
        self.check_horizons();
    }

    /// No node may have let anything expire that is younger than the range, by whatever clock.
    pub(crate) fn check_horizons(&self) {
        let bound = self.world.model().may_have_expired_before(self.world.now());
        for machine in &self.machines {
            if let Some(horizon) = machine.engine().map(|engine| engine.horizon()).filter(|&horizon| horizon > bound) {
                let id = node(machine.id);
                self.violated(format!("{id} let buckets before {horizon} expire; none from {bound} on may"));
            }
        }
    }

    /// Lets much time pass, mostly with all nodes there: those that miss one look for it all the time.
    async fn wait_long(&mut self) {
        if self.decide(|decisions| decisions.below(4)) > 0 {
            for at in 0..self.machines.len() {
                self.start(at);
            }
        }
        self.wait(self.temper.long_pause()).await;
    }

    async fn wait(&self, longest: Duration) {
        let micros = self.decide(|decisions| decisions.below(longest.as_micros() as u64));
        self.world.executor.sleep(Duration::from_micros(micros)).await;
    }

    /// A client or the operator asks for something.
    fn ask(&mut self) {
        let busy: usize = self.clients.iter().map(|client| self.world.executor.tasks_of(client.group)).sum();
        if busy >= REQUESTS_MAX {
            return;
        }
        let Some(client) = self.decide(|decisions| decisions.pick(&self.clients).cloned()) else { return };
        let kind = self.decide(|decisions| decisions.below(100));
        if kind < 42 {
            let number = self.contents.len() as u64;
            let fresh = self.decide(|decisions| content(number, decisions));
            self.contents.push(fresh.clone());
            return client.put(fresh);
        }
        let Some(known) = self.decide(|decisions| decisions.pick(&self.contents).cloned()) else { return };
        let name = BlobName::of(&known);
        match (kind, &self.operator) {
            (42..55, _) => client.put(known),
            (55..86, _) => client.get(name),
            (86..92, _) => client.stat(name),
            (92..96, Some(operator)) if self.temper.deletions => operator.delete(name),
            (96..98, Some(operator)) if self.temper.holds => operator.hold(name, true),
            (98.., Some(operator)) if self.temper.holds => operator.hold(name, false),
            _ => client.get(name),
        }
    }

    /// Changes the map, or goes on with a change of which a majority did not hear.
    async fn change_the_map(&mut self) {
        let Some(operator) = self.operator.clone().filter(|_| self.temper.maps) else { return };
        if self.proposed.is_none() {
            let Some(newest) = operator.newest_map(&self.map).await else { return };
            if newest.epoch != self.map.epoch {
                return;
            }
            let Some(changed) = self.changed_map() else { return };
            self.world.model().counts.maps += 1;
            self.world.model().map_proposed(&changed);
            self.note(format!("map {} proposed: {}", changed.epoch, describe(&changed)));
            self.proposed = Some(changed);
        }
        self.push_the_map().await;
    }

    /// Gives the proposed map to all nodes.
    pub(crate) async fn push_the_map(&mut self) {
        let (Some(operator), Some(proposed)) = (self.operator.clone(), self.proposed.clone()) else { return };
        if operator.push(&proposed, &self.map).await {
            self.map = proposed;
            self.proposed = None;
        }
    }

    /// The map with one thing changed.
    fn changed_map(&mut self) -> Option<ClusterMap> {
        let mut map = self.map.clone();
        map.epoch += 1;
        let writable = map.nodes.iter().filter(|node| node.state == NodeState::Up).count();
        let (kind, at, number) = self.decide(|decisions| {
            (decisions.below(7), decisions.below(map.nodes.len() as u64) as usize, decisions.next())
        });
        let spare = writable > usize::from(map.max_replica);
        match kind {
            0 => map.nodes.get_mut(at)?.weight = 1 + (number % 4) as u32,
            1 if spare => map.nodes.get_mut(at)?.state = NodeState::Draining,
            2 => map.nodes.iter_mut().for_each(|node| node.state = NodeState::Up),
            3 => {
                map.max_replica = (1 + number % writable.clamp(1, 4) as u64) as u8;
                map.min_replica = map.min_replica.min(map.max_replica);
            }
            4 => map.min_replica = (1 + number % u64::from(map.max_replica)) as u8,
            5 => map.cleanuprange = self.decide(|decisions| draw_cleanuprange(decisions, &self.temper)),
            _ => self.join_or_leave(&mut map)?,
        }
        (map.validate().is_ok() && map.nodes != self.map.nodes
            || map.max_replica != self.map.max_replica
            || map.min_replica != self.map.min_replica
            || map.cleanuprange != self.map.cleanuprange)
            .then_some(map)
    }

    /// Removes a node that was drained and is empty; if there is none, adds one.
    fn join_or_leave(&mut self, map: &mut ClusterMap) -> Option<()> {
        let empty = |machine: &&Machine| {
            let draining = map.node(machine.id).is_some_and(|node| node.state == NodeState::Draining);
            draining && machine.engine().is_some_and(|engine| engine.status().blobs == 0)
        };
        if let Some(id) = self.machines.iter().find(empty).map(|machine| machine.id) {
            map.nodes.retain(|node| node.id != id);
            return Some(());
        }
        if self.next_node > NODES_MAX {
            return None;
        }
        let entry = node_entry(self.next_node);
        self.next_node += 1;
        map.nodes.push(entry.clone());
        self.add_machine(entry.id, map.clone());
        self.start(self.machines.len() - 1);
        Some(())
    }

    /// Blobs by their contents.
    pub(crate) fn known(&self) -> impl Iterator<Item = (BlobName, &Bytes)> {
        self.contents.iter().map(|content| (BlobName::of(content), content))
    }
}

fn describe(map: &ClusterMap) -> String {
    let nodes: Vec<String> = map
        .nodes
        .iter()
        .map(|node| {
            let state = if node.state == NodeState::Draining { " draining" } else { "" };
            format!("{} x{}{state}", node.name, node.weight)
        })
        .collect();
    let (min, max, hours) = (map.min_replica, map.max_replica, map.cleanuprange);
    format!("{}, replicas {min} to {max}, {hours} hours", nodes.join(", "))
}
