//! What all parties of a run share, and the run itself: a cluster, clients, steps in which something is asked or breaks, a
//! time in which everything heals, and the final reckoning.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lazaret_node_client::{Cluster, ClusterOptions};
use lazaret_protocol::cluster_map::{NodeEntry, NodeState, StorageType};
use lazaret_protocol::message::Role;
use lazaret_protocol::{BlobName, ClusterId, ClusterMap, NodeId};
use lazaret_storage_node::{Disk, EngineError, EngineOptions};

use crate::environment::{SimClock, environment};
use crate::executor::Executor;
use crate::machine::Machine;
use crate::model::Model;
use crate::mutants::Mutant;
use crate::names::{blob, node};
use crate::network::{Network, Party, Weather};
use crate::random::Decisions;
use crate::workload::{Client, content};

const CLUSTER: ClusterId = ClusterId([1; 16]);
/// Nodes of the largest cluster.
const NODES_MAX: u64 = 6;
/// What a node's disk keeps free: enough for the tails that these short runs leave.
const RESERVE_BYTES: u64 = 8 << 20;
/// More operations than any disk sees.
const NEVER: u64 = u64::MAX / 2;
/// Requests of clients under way at once.
const REQUESTS_MAX: usize = 24;
/// How long requests may take to end once everything works: as long as an upload that lost its replicas.
const SETTLE: Duration = Duration::from_secs(150);
/// Tasks that a node may have when nobody asks it anything.
const IDLE_TASKS_MAX: usize = 32;

/// What the parties of a run share.
pub(crate) struct World {
    pub(crate) executor: Executor,
    model: Mutex<Model>,
}

impl World {
    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which kinds of faults a run has: few seeds have all, so that each is also seen without the noise of the others.
struct Temper {
    power: bool,
    kills: bool,
    cuts: bool,
    weather: bool,
    disks: bool,
    losses: bool,
    clocks: bool,
}

impl Temper {
    fn draw(decisions: &mut Decisions) -> Self {
        let mut often = || decisions.below(5) < 3;
        Self {
            power: often(),
            kills: often(),
            cuts: often(),
            weather: often(),
            disks: often(),
            losses: often(),
            clocks: often(),
        }
    }
}

/// A run.
pub(crate) struct Run {
    pub(crate) world: Arc<World>,
    network: Network,
    machines: Vec<Machine>,
    clients: Vec<Client>,
    map: ClusterMap,
    temper: Temper,
    contents: Vec<Bytes>,
    /// Nodes of which copies were destroyed; never `min_replica` of them.
    destroyed: Vec<NodeId>,
}

impl Run {
    pub(crate) fn new(executor: &Executor, mutant: Option<Mutant>) -> Self {
        let network = Network::new(executor);
        let (map, temper, segment_bytes_max) =
            executor.decide(|decisions| (draw_map(decisions), Temper::draw(decisions), 16_384 << decisions.below(8)));
        let world = World { executor: executor.clone(), model: Mutex::new(Model::new(map.min_replica)) };
        let world = Arc::new(world);
        let machines = map
            .nodes
            .iter()
            .map(|node| {
                let mut options = EngineOptions::new(CLUSTER, node.id);
                options.segment_bytes_max = segment_bytes_max;
                options.reserve_bytes = RESERVE_BYTES;
                Machine::new(executor, &network, options, map.clone(), mutant)
            })
            .collect();
        let mut run = Self {
            world,
            network,
            machines,
            clients: Vec::new(),
            map,
            temper,
            contents: Vec::new(),
            destroyed: Vec::new(),
        };
        for number in 0..2 {
            run.add_client(number, mutant);
        }
        run
    }

    fn add_client(&mut self, number: u64, mutant: Option<Mutant>) {
        let executor = &self.world.executor;
        let group = executor.new_group();
        let ahead_ms = executor.decide(|decisions| decisions.below(20_000) as i64 - 10_000);
        let environment = environment(executor, &SimClock::new(executor, ahead_ms), group);
        let transport = self.network.transport(Party::Client(number), Role::Client);
        let mut map = self.map.clone();
        if mutant == Some(Mutant::AcknowledgeEarly) {
            map.min_replica = map.min_replica.saturating_sub(1).max(1);
        }
        match Cluster::new(map, transport, environment, ClusterOptions::default()) {
            Ok(cluster) => self.clients.push(Client { world: Arc::clone(&self.world), cluster, group }),
            Err(error) => self.world.model().violated(format!("a client refuses the map: {error}")),
        }
    }

    /// The whole run. What went wrong is in the model.
    pub(crate) async fn run(mut self, steps: u64) {
        self.note(format!(
            "{} nodes, replicas {} to {}",
            self.map.nodes.len(),
            self.map.min_replica,
            self.map.max_replica
        ));
        for at in 0..self.machines.len() {
            self.start(at);
        }
        for _ in 0..steps {
            self.step().await;
            if self.world.model().violation().is_some() {
                return;
            }
        }
        self.heal().await;
        self.reckon().await;
    }

    fn note(&self, event: impl Into<String>) {
        self.world.executor.note(event);
    }

    fn decide<T>(&self, draw: impl FnOnce(&mut Decisions) -> T) -> T {
        self.world.executor.decide(draw)
    }

    async fn step(&mut self) {
        self.bury_the_fallen();
        match self.decide(|decisions| decisions.below(100)) {
            0..60 => self.ask(),
            60..72 => self.restart_one().await,
            72..86 => self.break_a_node(),
            86..90 => self.break_a_disk(),
            90..96 => self.break_the_network(),
            96..98 if self.temper.clocks => self.break_a_clock(),
            _ => self.wait(20_000).await,
        }
        if self.decide(|decisions| decisions.once_in(2)) {
            self.wait(120).await;
        }
    }

    async fn wait(&self, longest_ms: u64) {
        let ms = self.decide(|decisions| decisions.below(longest_ms));
        self.world.executor.sleep(Duration::from_millis(ms)).await;
    }

    /// A client asks for something.
    fn ask(&mut self) {
        let busy: usize = self.clients.iter().map(|client| self.world.executor.tasks_of(client.group)).sum();
        if busy >= REQUESTS_MAX {
            return;
        }
        let Some(client) = self.decide(|decisions| decisions.pick(&self.clients).cloned()) else { return };
        let kind = self.decide(|decisions| decisions.below(100));
        match kind {
            0..45 => {
                let number = self.contents.len() as u64;
                let fresh = self.decide(|decisions| content(number, decisions));
                self.contents.push(fresh.clone());
                client.put(fresh);
            }
            _ => {
                let Some(known) = self.decide(|decisions| decisions.pick(&self.contents).cloned()) else { return };
                match kind {
                    45..58 => client.put(known),
                    58..90 => client.get(BlobName::of(&known)),
                    _ => client.stat(BlobName::of(&known)),
                }
            }
        }
    }

    /// Machines whose power went while they wrote are taken for what they are.
    fn bury_the_fallen(&mut self) {
        for machine in self.machines.iter_mut().filter(|machine| machine.has_fallen()) {
            self.world.model().counts.power_losses += 1;
            machine.lose_power(self.world.executor.decide(Decisions::next));
        }
    }

    async fn restart_one(&mut self) {
        let at = self.decide(|decisions| decisions.below(self.machines.len() as u64)) as usize;
        let down = self.machines.iter().position(|machine| !machine.is_running());
        let Some(machine) = self.machines.get_mut(down.unwrap_or(at)) else { return };
        if machine.is_running() {
            if !self.temper.kills || self.world.executor.decide(|decisions| decisions.below(4)) > 0 {
                return;
            }
            self.world.executor.note(format!("{} stops", node(machine.id)));
            if !machine.stop().await && !machine.has_fallen() {
                let id = machine.id;
                self.world.model().violated(format!("{} does not stop", node(id)));
            }
            return;
        }
        // The machine may have lost its power while its process was dead.
        if self.temper.power && self.world.executor.decide(|decisions| decisions.once_in(4)) {
            machine.lose_power(self.world.executor.decide(Decisions::next));
        }
        self.start(down.unwrap_or(at));
    }

    fn start(&mut self, at: usize) {
        let Some(machine) = self.machines.get_mut(at) else { return };
        if self.temper.disks && self.world.executor.decide(|decisions| decisions.once_in(8)) {
            let operations = self.world.executor.decide(|decisions| decisions.below(60));
            machine.disk().cut_power_after(operations);
        }
        self.world.executor.note(format!("{} starts", node(machine.id)));
        if let Err(error) = machine.start() {
            self.world.executor.note(format!("{} could not start: {error}", node(machine.id)));
            if machine.disk().power().is_off() {
                machine.lose_power(self.world.executor.decide(Decisions::next));
            } else if !matches!(error, EngineError::Disk(_)) || !self.temper.disks {
                let id = machine.id;
                self.world.model().violated(format!("{} does not start: {error}", node(id)));
            }
        }
    }

    fn break_a_node(&mut self) {
        let (at, seed, how) = self.decide(|decisions| {
            (decisions.below(self.machines.len() as u64) as usize, decisions.next(), decisions.below(10))
        });
        // With too many gone nothing happens any more.
        let down = self.machines.iter().filter(|machine| !machine.is_running()).count();
        if down > self.machines.len() / 2 {
            return;
        }
        let Some(machine) = self.machines.get_mut(at) else { return };
        let id = machine.id;
        match how {
            0..4 if self.temper.power => {
                self.world.model().counts.power_losses += 1;
                self.world.executor.note(format!("{} loses its power", node(id)));
                machine.lose_power(seed);
            }
            4..8 if self.temper.kills => {
                self.world.model().counts.kills += 1;
                self.world.executor.note(format!("{} is killed", node(id)));
                machine.kill();
            }
            8 if self.temper.losses => self.lose_a_disk(at),
            _ => {}
        }
    }

    fn lose_a_disk(&mut self, at: usize) {
        let Some(id) = self.machines.get(at).map(|machine| machine.id) else { return };
        if !self.may_destroy(id) {
            return;
        }
        self.note(format!("{} loses its disk", node(id)));
        self.world.model().counts.disks_lost += 1;
        if let Some(machine) = self.machines.get_mut(at) {
            machine.lose_disk();
        }
    }

    /// Whether copies on `id` may be destroyed so that every acknowledged blob must still be there.
    fn may_destroy(&mut self, id: NodeId) -> bool {
        if self.destroyed.contains(&id) {
            return true;
        }
        let may = self.destroyed.len() + 1 < usize::from(self.map.min_replica);
        if may {
            self.destroyed.push(id);
        }
        may
    }

    fn break_a_disk(&mut self) {
        if !self.temper.disks {
            return;
        }
        let (at, how, number) = self.decide(|decisions| {
            (decisions.below(self.machines.len() as u64) as usize, decisions.below(6), decisions.next())
        });
        let Some(id) = self.machines.get(at).map(|machine| machine.id) else { return };
        if how == 4 && !self.may_destroy(id) {
            return;
        }
        let Some(machine) = self.machines.get_mut(at) else { return };
        let disk = machine.disk().clone();
        let what = match how {
            0 => {
                disk.fail_syncs(1);
                "fails a sync"
            }
            1 => {
                disk.fail_writes(1);
                "fails a write"
            }
            2 => {
                disk.cut_power_after(number % 40);
                "will lose its power"
            }
            3 => {
                let used = disk.space().map_or(0, |space| space.total_bytes - space.free_bytes);
                disk.set_total_bytes(used + number % (2 * RESERVE_BYTES));
                "has a disk that is nearly full"
            }
            4 => {
                if !flip(&disk, number) {
                    return;
                }
                machine.damaged = true;
                "has a flipped bit"
            }
            _ => {
                disk.set_total_bytes(1 << 40);
                "has space again"
            }
        };
        self.world.model().counts.disk_faults += 1;
        self.note(format!("{} {what}", node(id)));
    }

    fn break_the_network(&mut self) {
        let mut parties: Vec<Party> = self.machines.iter().map(|machine| Party::Node(machine.id)).collect();
        parties.extend([Party::Client(0), Party::Client(1)]);
        let (one, other, how) = self.decide(|decisions| {
            (decisions.pick(&parties).copied(), decisions.pick(&parties).copied(), decisions.below(8))
        });
        let (Some(one), Some(other)) = (one, other) else { return };
        match how {
            0..4 if self.temper.cuts && one != other => {
                self.world.model().counts.cuts += 1;
                self.note(format!("nothing passes from {one} to {other}"));
                self.network.cut(one, other);
                if how < 2 {
                    self.network.cut(other, one);
                }
            }
            4..6 if self.temper.weather => {
                let weather = self.decide(draw_weather);
                self.note(format!("{weather:?}"));
                self.network.set_weather(weather);
            }
            6.. => {
                self.note("links work");
                self.network.mend();
            }
            _ => {}
        }
    }

    fn break_a_clock(&mut self) {
        let (at, ahead_ms) = self.decide(|decisions| {
            let ahead_ms = match decisions.below(4) {
                0 => 0,
                1 => decisions.below(8_000) as i64 - 4_000,
                2 => decisions.below(1_200_000) as i64 - 600_000,
                _ => decisions.below(200 * 3_600_000) as i64 - 100 * 3_600_000,
            };
            (decisions.below(self.machines.len() as u64) as usize, ahead_ms)
        });
        if let Some(machine) = self.machines.get(at) {
            self.note(format!("the clock of {} is {ahead_ms} ms ahead", node(machine.id)));
            machine.clock.set_ahead(ahead_ms);
        }
    }

    /// Everything works again, and what was under way ends.
    async fn heal(&mut self) {
        self.note("faults stop");
        self.network.mend();
        self.network.set_weather(Weather::fair());
        self.bury_the_fallen();
        self.temper.disks = false;
        for machine in &self.machines {
            machine.clock.set_ahead(0);
            machine.disk().fail_syncs(0);
            machine.disk().fail_writes(0);
            machine.disk().set_total_bytes(1 << 40);
            machine.disk().cut_power_after(NEVER);
        }
        for at in 0..self.machines.len() {
            self.start(at);
        }
        let began = self.world.executor.now();
        while self.world.executor.now() - began < SETTLE {
            self.world.executor.sleep(Duration::from_secs(5)).await;
        }
    }

    /// Judges what is there in the end.
    async fn reckon(&mut self) {
        let Some(client) = self.clients.first().cloned() else { return };
        let names = self.world.model().names();
        for &name in &names {
            let must = self.world.model().must_be_there(name, self.world.executor.now());
            if !client.read(name).await && must {
                self.world
                    .model()
                    .violated(format!("{} was acknowledged and can't be read after all healed", blob(name)));
            }
        }
        for client in &self.clients {
            let left = self.world.executor.tasks_of(client.group);
            if left > 0 {
                self.world.model().violated(format!("{left} requests of a client never ended"));
            }
        }
        for machine in &self.machines {
            self.audit(machine, &names);
        }
    }

    /// What a node has must be whole, and what it has left over must be little.
    fn audit(&self, machine: &Machine, names: &[BlobName]) {
        let id = machine.id;
        let Some(engine) = machine.engine() else {
            return self.world.model().violated(format!("{} does not run in the end", node(id)));
        };
        let tasks = machine.tasks();
        if tasks > IDLE_TASKS_MAX {
            self.world.model().violated(format!("{} has {tasks} tasks with nothing to do", node(id)));
        }
        if machine.damaged {
            return;
        }
        for &name in names {
            let read = engine.open_blob(name).map(|blob| blob.map(|blob| blob.encode(None, std::io::sink())));
            if let Err(error) | Ok(Some(Err(error))) = read {
                self.world.model().violated(format!(
                    "{} has a bad copy of {} on a sound disk: {error}",
                    node(id),
                    blob(name)
                ));
            }
        }
        let corrupt = engine.status().corrupt_reads;
        if corrupt > 0 {
            self.world.model().violated(format!("{} found {corrupt} damages on a sound disk", node(id)));
        }
    }
}

fn draw_map(decisions: &mut Decisions) -> ClusterMap {
    let nodes = decisions.between(1, NODES_MAX + 1);
    let max_replica = decisions.between(1, nodes.min(4) + 1);
    let min_replica = decisions.between(1, max_replica + 1);
    let entry = |number: u64| NodeEntry {
        id: NodeId([number as u8; 16]),
        name: format!("node-{number}"),
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000 + number as u16),
        weight: 1,
        state: NodeState::Up,
    };
    ClusterMap {
        cluster: CLUSTER,
        epoch: 1,
        min_replica: min_replica as u8,
        max_replica: max_replica as u8,
        cleanuprange: 0,
        storage_type: StorageType::Salt,
        nodes: (1..=nodes).map(entry).collect(),
    }
}

fn draw_weather(decisions: &mut Decisions) -> Weather {
    Weather {
        delay_max: Duration::from_micros(100 << decisions.below(12)),
        slow_once_in: [0, 10, 100][decisions.below(3) as usize],
        slow_max: Duration::from_millis(decisions.below(8000)),
        break_once_in: [0, 8, 40][decisions.below(3) as usize],
    }
}

/// Flips a bit somewhere on the disk; false if nothing is on it.
fn flip(disk: &lazaret_storage_node::SimDisk, number: u64) -> bool {
    let Ok(mut segments) = disk.segments() else { return false };
    segments.sort_unstable();
    let Some(&address) = Decisions::new(number).pick(&segments) else { return false };
    let Ok(length) = disk.length(address) else { return false };
    length > 0 && disk.flip_bit(address, number.rotate_left(20) % length, (number % 8) as u8)
}
