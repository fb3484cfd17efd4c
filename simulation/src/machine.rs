//! One simulated machine with a storage node on it: a disk and an index that outlive the process, and the process, which
//! starts, stops, is killed, or loses its power.

use std::sync::Arc;
use std::time::Duration;

use lazaret_node_client::environment::Environment;
use lazaret_node_client::{Cluster, ClusterOptions};
use lazaret_protocol::message::Role;
use lazaret_protocol::{BlobName, ClusterMap, NodeId};
use lazaret_storage_node::service::NodeService;
use lazaret_storage_node::store::Store;
use lazaret_storage_node::{
    Disk, Engine, EngineError, EngineOptions, Index, MemoryIndex, Node, NodeOptions, Pump, SimDisk,
};
use tokio::sync::watch;

use crate::environment::{SimClock, environment};
use crate::executor::{Executor, Group};
use crate::mutants::{self, Mutant};
use crate::names::node;
use crate::network::{Network, Party};
use crate::temper::{CLUSTER, Temper};

/// What a node's disk keeps free: enough for the tails that these short runs leave.
pub(crate) const RESERVE_BYTES: u64 = 8 << 20;
/// How long a process that is told to stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// A group of writes becomes durable after this at most, unless the disk is slow.
const SYNC_MAX: Duration = Duration::from_millis(3);
/// How long a slow disk takes for a group.
const SLOW_SYNC_MAX: Duration = Duration::from_millis(1500);

pub(crate) struct Machine {
    pub(crate) id: NodeId,
    pub(crate) clock: Arc<SimClock>,
    executor: Executor,
    network: Network,
    mutant: Option<Mutant>,
    engine_options: EngineOptions,
    node_options: NodeOptions,
    /// The map its configuration names.
    map: ClusterMap,
    disk: SimDisk,
    index: MemoryIndex,
    life: u64,
    running: Option<Running>,
    /// Its disk was damaged on purpose since the last reckoning.
    pub(crate) damaged: bool,
    /// Its disk was ever damaged on purpose, so that it may have found damage.
    pub(crate) was_damaged: bool,
}

struct Running {
    group: Group,
    engine: Engine,
    node: Node,
    closed: watch::Receiver<bool>,
}

impl Machine {
    pub(crate) fn new(
        executor: &Executor,
        network: &Network,
        id: NodeId,
        map: ClusterMap,
        temper: &Temper,
        segment_bytes_max: u64,
        mutant: Option<Mutant>,
    ) -> Self {
        let mut engine_options = EngineOptions::new(CLUSTER, id);
        engine_options.segment_bytes_max = segment_bytes_max;
        engine_options.reserve_bytes = RESERVE_BYTES;
        engine_options.storage_type = map.storage_type;
        let mut machine = Self {
            id,
            clock: SimClock::new(executor, 0),
            executor: executor.clone(),
            network: network.clone(),
            mutant,
            engine_options,
            node_options: node_options(temper),
            map,
            disk: SimDisk::new(),
            index: MemoryIndex::new(),
            life: 0,
            running: None,
            damaged: false,
            was_damaged: false,
        };
        machine.new_disk();
        machine
    }

    fn new_disk(&mut self) {
        (self.disk, self.index) = (SimDisk::new(), MemoryIndex::new());
        self.disk.never_sync(self.mutant == Some(Mutant::SkipSync));
    }

    /// The disk as it is now: after a crash it is another one.
    pub(crate) fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// The engine, while the process runs.
    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.running.as_ref().map(|running| &running.engine)
    }

    /// Whether the running process says that it holds a blob and knows of no damage.
    pub(crate) fn holds(&self, name: BlobName) -> bool {
        self.is_damaged(name) == Some(false)
    }

    /// Whether the running process says that its copy of a blob is damaged.
    pub(crate) fn knows_damage_of(&self, name: BlobName) -> bool {
        self.is_damaged(name) == Some(true)
    }

    fn is_damaged(&self, name: BlobName) -> Option<bool> {
        let entry = self.engine()?.entry(name).ok()??;
        entry.blob.map(|blob| blob.damaged)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// How many tasks its process has.
    pub(crate) fn tasks(&self) -> usize {
        self.running.as_ref().map_or(0, |running| self.executor.tasks_of(running.group))
    }

    /// Starts the process, if it does not run.
    pub(crate) fn start(&mut self) -> Result<(), EngineError> {
        if self.running.is_some() {
            return Ok(());
        }
        self.life += 1;
        let group = self.executor.new_group();
        let environment = environment(&self.executor, &self.clock, group);
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let index: Arc<dyn Index> = Arc::new(self.index.clone().powered_by(self.disk.power()));
        let lies = self.mutant == Some(Mutant::SkipSync);
        // What recovery adopts is then not durable.
        self.disk.never_sync(lies || self.mutant == Some(Mutant::AdoptUnsyncedTail));
        let opened = Engine::open_pumped(disk, index, environment.clone(), self.engine_options.clone());
        self.disk.never_sync(lies);
        let (engine, pump) = opened.inspect_err(|_| self.executor.end(group))?;
        let node = self.node(Store::from(engine.clone()), environment.clone(), group);
        let service = NodeService::new(node.clone());
        let (closing, closed) = watch::channel(false);
        self.executor.spawn(group, Box::pin(self.write(pump, environment, group, closing)));
        self.network.attach(self.id, self.life, Arc::new(move |role: Role| service.handler(role)));
        node.start();
        self.running = Some(Running { group, engine, node, closed });
        Ok(())
    }

    /// The node on a store that is open.
    fn node(&self, store: Store, environment: Environment, group: Group) -> Node {
        let transport = self.network.transport(Party::Node(self.id), Role::Peer);
        let transport = mutants::nodes_transport(self.mutant, transport, (&self.executor, group), &self.clock);
        // The map was checked when the run began, or when it was proposed.
        #[allow(clippy::expect_used)]
        let cluster = Cluster::new(self.map.clone(), transport, environment.clone(), ClusterOptions::default())
            .expect("a proposed map is valid");
        Node::new(self.id, store, cluster, environment, self.node_options.clone())
    }

    /// Drives the engine's writer. Ends the process if the power goes while it writes.
    fn write(
        &self,
        mut pump: Pump,
        environment: Environment,
        group: Group,
        closing: watch::Sender<bool>,
    ) -> impl Future<Output = ()> + 'static {
        let (executor, network, id, power) = (self.executor.clone(), self.network.clone(), self.id, self.disk.power());
        async move {
            loop {
                let took = executor.decide(|decisions| {
                    let longest = if decisions.once_in(500) { SLOW_SYNC_MAX } else { SYNC_MAX };
                    Duration::from_micros(decisions.below(longest.as_micros() as u64))
                });
                let written = pump.step_after(environment.clock.sleep(took)).await;
                if power.is_off() {
                    executor.note(format!("{} loses its power while it works", node(id)));
                    network.detach(id, true);
                    executor.end(group);
                    return;
                }
                if written == 0 {
                    break;
                }
            }
            // The queue is closed and empty, so this does not wait.
            pump.run();
            closing.send_replace(true);
        }
    }

    /// Whether the power went off by itself.
    pub(crate) fn has_fallen(&self) -> bool {
        self.running.is_some() && self.disk.power().is_off()
    }

    /// Cuts the power; `seed` decides what of the unsynced survives.
    pub(crate) fn lose_power(&mut self, seed: u64) {
        self.vanish(true);
        self.disk = self.disk.crash(seed);
        self.index = self.index.crash(seed.rotate_left(32));
    }

    /// Kills the process; the machine goes on.
    pub(crate) fn kill(&mut self) {
        self.vanish(false);
        self.disk = self.disk.kill();
    }

    /// Replaces the disk by an empty one, and sets the node up anew with `map`.
    pub(crate) fn lose_disk(&mut self, map: ClusterMap) {
        self.vanish(true);
        self.map = map;
        self.new_disk();
        (self.damaged, self.was_damaged) = (false, false);
    }

    /// Stops the process in good order. False if it could not be done, and the process was killed.
    pub(crate) async fn stop(&mut self) -> bool {
        let Some(running) = &mut self.running else { return true };
        self.network.detach(self.id, false);
        running.node.stop();
        running.engine.close();
        let environment = environment(&self.executor, &self.clock, running.group);
        let stopped = environment.within(STOP_TIMEOUT, running.closed.wait_for(|&closed| closed)).await.is_ok();
        if self.disk.power().is_off() {
            return false;
        }
        self.vanish(false);
        stopped
    }

    fn vanish(&mut self, silent: bool) {
        self.network.detach(self.id, silent);
        if let Some(running) = self.running.take() {
            self.executor.end(running.group);
        }
    }
}

/// Background work at the pace of the run.
fn node_options(temper: &Temper) -> NodeOptions {
    let seconds = |long, short| Duration::from_secs(if temper.long { long } else { short });
    NodeOptions {
        ping_interval: seconds(60, 5),
        lost_after: seconds(1800, 60),
        repair_interval: seconds(3600, 120),
        retention_interval: seconds(300, 60),
        scrub_interval: seconds(12 * 3600, 3600),
        compact_interval: seconds(600, 30),
        ..NodeOptions::default()
    }
}
