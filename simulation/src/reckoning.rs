//! What must be true once faults have stopped and time has passed.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use lazaret_protocol::limits::HELD_BYTES_MAX;
use lazaret_protocol::message::{Request, Response};
use lazaret_protocol::placement::write_order;
use lazaret_protocol::{BlobName, NodeId, PlacementKey};

use crate::machine::Machine;
use crate::names::{blob, node, nodes};
use crate::network::Weather;
use crate::run::Run;

/// More operations than any disk sees.
const NEVER: u64 = u64::MAX / 2;
/// How long requests may take to end once everything works: as long as an upload that lost its replicas.
const SETTLE: Duration = Duration::from_secs(150);
/// How long it may take until all copies are where they belong: clocks must have run evenly for an hour before anything
/// expires, and lost nodes are waited for.
const CONVERGE_MAX: Duration = Duration::from_secs(3 * 3600);
/// How often is looked.
const LOOK_INTERVAL: Duration = Duration::from_secs(20);
/// Tasks that a node may have when nobody asks it anything.
const IDLE_TASKS_MAX: usize = 48;
/// Tasks that all parties together may have at any time: a few for each request under way.
const TASKS_MAX: usize = 4000;

impl Run {
    /// Everything works again, and what was under way ends.
    pub(crate) async fn heal(&mut self) {
        self.note("faults stop");
        self.network.mend();
        self.network.set_weather(Weather::fair());
        self.bury_the_fallen();
        for machine in &self.machines {
            machine.clock.set_ahead(0);
        }
        self.calm = true;
        for at in 0..self.machines.len() {
            if let Some(machine) = self.machines.get(at) {
                let disk = machine.disk();
                disk.fail_syncs(0);
                disk.fail_writes(0);
                disk.set_total_bytes(1 << 40);
                disk.cut_power_after(NEVER);
            }
            self.start(at);
        }
        self.world.executor.sleep(SETTLE).await;
    }

    /// Waits until all is where it should be, and judges what is there.
    pub(crate) async fn reckon(&mut self) {
        if let Err(what) = self.settle_the_map().await {
            return self.violated(what);
        }
        if let Err(what) = self.scrub().await {
            return self.violated(what);
        }
        if let Err(what) = self.converge().await {
            return self.violated(format!("copies are not where they belong: {what}"));
        }
        self.check_horizons();
        self.read_everything().await;
        for client in &self.clients {
            let left = self.world.executor.tasks_of(client.group);
            if left > 0 {
                self.violated(format!("{left} requests of a client never ended"));
            }
        }
        for machine in self.mapped() {
            self.audit(machine);
        }
        let tasks = self.world.executor.tasks_max();
        if tasks > TASKS_MAX {
            self.violated(format!("there were {tasks} tasks at once"));
        }
        self.destroyed.clear();
        self.calm = false;
        self.machines.iter_mut().for_each(|machine| machine.damaged = false);
        self.world.model().counts.reckonings += 1;
        self.note("all is well");
    }

    /// The machines of the map.
    fn mapped(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|machine| self.map.node(machine.id).is_some())
    }

    /// Carries a proposed map through, and waits until every node and client goes by the newest.
    async fn settle_the_map(&mut self) -> Result<(), String> {
        let began = self.world.executor.now();
        loop {
            if self.proposed.is_some() {
                self.push_the_map().await;
            }
            let behind: Vec<NodeId> = self.behind().await;
            let clients = self.clients.iter().all(|client| client.cluster.map().epoch == self.map.epoch);
            if self.proposed.is_none() && behind.is_empty() && clients {
                let now = self.world.now();
                self.world.model().map_settled(&self.map, now);
                return Ok(());
            }
            if self.world.executor.now() - began > CONVERGE_MAX {
                return Err(format!("{} or clients never learn map {}", nodes(&behind), self.map.epoch));
            }
            self.world.executor.sleep(LOOK_INTERVAL).await;
        }
    }

    /// The nodes of the map that hold another one.
    async fn behind(&self) -> Vec<NodeId> {
        let Some(operator) = &self.operator else { return Vec::new() };
        let answers = join_all(self.map.nodes.iter().map(|node| operator.cluster.ask_entry(node, Request::Map))).await;
        let agrees = |answer: &_| matches!(answer, Ok(Response::Map(map)) if *map == self.map);
        self.map.nodes.iter().zip(answers).filter(|(_, answer)| !agrees(answer)).map(|(node, _)| node.id).collect()
    }

    /// Lets every node read everything, if there may be damage to find.
    async fn scrub(&mut self) -> Result<(), String> {
        let Some(operator) = self.operator.clone().filter(|_| self.has_damage()) else { return Ok(()) };
        // What is written to is not scrubbed, and a start seals everything.
        for at in 0..self.machines.len() {
            if let Some(machine) = self.machines.get_mut(at).filter(|machine| machine.damaged)
                && !machine.stop().await
            {
                return Err(format!("{} does not stop", node(machine.id)));
            }
            self.start(at);
        }
        let began = self.world.now();
        for entry in &self.map.nodes {
            let answer = operator.cluster.ask_entry(entry, Request::Scrub).await;
            if !matches!(answer, Ok(Response::Scrubbing)) {
                return Err(format!("{} does not scrub: {answer:?}", entry.name));
            }
        }
        for entry in &self.map.nodes {
            loop {
                let answer = operator.cluster.ask_entry(entry, Request::Report).await;
                if matches!(&answer, Ok(Response::Report(report)) if report.scrub.finished_ms >= began.unix_ms) {
                    break;
                }
                if self.world.executor.now() - began.at > CONVERGE_MAX {
                    return Err(format!("{} does not end its scrub: {answer:?}", entry.name));
                }
                self.world.executor.sleep(LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Whether a disk was damaged on purpose since the last reckoning.
    fn has_damage(&self) -> bool {
        self.machines.iter().any(|machine| machine.damaged)
    }

    async fn converge(&mut self) -> Result<(), String> {
        let began = self.world.executor.now();
        loop {
            let Some(what) = self.divergence() else {
                let took = self.world.executor.now() - began;
                self.note(format!("copies are where they belong after {} s", took.as_secs()));
                return Ok(());
            };
            if self.world.executor.now() - began > CONVERGE_MAX {
                self.note_reports().await;
                return Err(what);
            }
            self.world.executor.sleep(LOOK_INTERVAL).await;
        }
    }

    /// Records what nodes say of themselves, for whoever reads why copies are not where they belong.
    async fn note_reports(&self) {
        let Some(operator) = &self.operator else { return };
        for entry in &self.map.nodes {
            let answer = operator.cluster.ask_entry(entry, Request::Report).await;
            self.note(format!("{}: {answer:?}", entry.name));
        }
    }

    /// A blob that is not exactly where it belongs.
    fn divergence(&self) -> Option<String> {
        let now = self.world.now();
        for (name, content) in self.known() {
            let placement = placement(name, content);
            let owners: BTreeSet<NodeId> = write_order(&self.map, placement)
                .into_iter()
                .take(usize::from(self.map.max_replica))
                .map(|node| node.id)
                .collect();
            let holders: BTreeSet<NodeId> =
                self.mapped().filter(|machine| machine.holds(name)).map(|machine| machine.id).collect();
            let lists = || {
                let list = |ids: &BTreeSet<NodeId>| nodes(&ids.iter().copied().collect::<Vec<_>>());
                format!("{} is on {} and belongs on {}", blob(name), list(&holders), list(&owners))
            };
            let model = self.world.model();
            if let Some(why) = model.must_be_gone(name, &self.map, now) {
                if !holders.is_empty() {
                    return Some(format!("{why}, but {}", lists()));
                }
                continue;
            }
            let there = model.must_be_there(name, now.at, now);
            if let Some(machine) = self.mapped().find(|machine| there && machine.knows_damage_of(name)) {
                return Some(format!("{} still has a damaged copy of {}", node(machine.id), blob(name)));
            }
            if holders != owners && (there || !holders.is_empty()) {
                return Some(lists());
            }
        }
        None
    }

    async fn read_everything(&self) {
        let Some(client) = self.clients.first() else { return };
        let names: Vec<BlobName> = self.world.model().names();
        for name in names {
            let now = self.world.now();
            let (there, gone) = {
                let model = self.world.model();
                (model.must_be_there(name, now.at, now), model.must_be_gone(name, &self.map, now))
            };
            let read = client.read(name).await;
            if there && !read {
                self.violated(format!("{} was acknowledged and can't be read after all healed", blob(name)));
            }
            if let Some(why) = gone.filter(|_| read) {
                self.violated(format!("{} was {why} and can be read after all healed", blob(name)));
            }
        }
    }

    /// What a node has must be whole, and what it has left over must be little.
    fn audit(&self, machine: &Machine) {
        let id = machine.id;
        let Some(engine) = machine.engine() else {
            return self.violated(format!("{} does not run in the end", node(id)));
        };
        let tasks = machine.tasks();
        if tasks > IDLE_TASKS_MAX {
            self.violated(format!("{} has {tasks} tasks with nothing to do", node(id)));
        }
        let now = self.world.now();
        for (name, _) in self.known() {
            // Of what nobody was promised, the only copy there is may be the one that was damaged.
            if machine.was_damaged && !self.world.model().must_be_there(name, now.at, now) {
                continue;
            }
            let read = engine.open_blob(name).map(|blob| blob.map(|blob| blob.encode(None, std::io::sink())));
            if let Err(error) | Ok(Some(Err(error))) = read {
                self.violated(format!("{} has a bad copy of {}: {error}", node(id), blob(name)));
            }
        }
        let corrupt = engine.status().corrupt_reads;
        if corrupt > 0 && !machine.was_damaged {
            self.violated(format!("{} found {corrupt} damages on a sound disk", node(id)));
        }
    }
}

/// Where a blob is placed: a streamed one by the hash of its head.
fn placement(name: BlobName, content: &[u8]) -> PlacementKey {
    match content.get(..HELD_BYTES_MAX) {
        Some(head) if content.len() > HELD_BYTES_MAX => PlacementKey(*blake3::hash(head).as_bytes()),
        _ => name.placement(),
    }
}
