//! `lazaret up`: a whole cluster in one process. Its parts talk through the in-process transport; its nodes also listen for
//! QUIC on loopback, so that other commands work against it.
//!
//! Everything lies below one directory, and a second start on it finds everything again.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use lazaret_analysis::SqliteBackend;
use lazaret_node_client::Environment;
use lazaret_node_client::cluster::Cluster;
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_node_client::local::LocalNetwork;
use lazaret_protocol::message::Role;
use lazaret_protocol::{NodeEntry, NodeId};
use lazaret_storage_node::listener::Listener;
use lazaret_storage_node::node;
use lazaret_storage_node::service::NodeService;
use lazaret_storage_node::store::{DiskSource, Store};
use lazaret_storage_node::{Node, NodeOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cli::{InitOptions, JudgingOptions, UpOptions};
use crate::components::{self, NodeIdentity};
use crate::config::{self, GatewayConfig, ScanWorkerConfig, default_reserve_bytes, default_segment_bytes_max};
use crate::{init, metrics};

/// Replicas and nodes of a cluster for which nothing else was asked.
const NODES: u16 = 3;
const MIN_REPLICA: u8 = 2;
const MAX_REPLICA: u8 = 3;

/// Runs a cluster until SIGINT or SIGTERM.
pub async fn run(options: UpOptions) -> anyhow::Result<ExitCode> {
    let terminated = components::terminated();
    let cluster = EmbeddedCluster::start(&options).await?;
    components::ready(format_args!("gateway={} data={}", cluster.url(), options.data.display()))?;
    terminated.await;
    cluster.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// A running cluster.
pub struct EmbeddedCluster {
    gateway_address: SocketAddr,
    gateway: Running,
    /// Learns of newer cluster maps.
    watching: Running,
    worker: Running,
    listeners: Running,
    nodes: Vec<Node>,
    stores: Vec<Store>,
    cluster: Cluster,
    client_key_file: PathBuf,
    /// Held for as long as the cluster runs.
    _lock: File,
}

/// Tasks that end after they were told to.
struct Running {
    shutdown: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    fn new() -> Self {
        Self { shutdown: watch::Sender::new(false), tasks: Vec::new() }
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&mut self, task: impl FnOnce(watch::Receiver<bool>) -> F) {
        self.tasks.push(tokio::spawn(task(self.shutdown.subscribe())));
    }

    async fn stop(self) {
        let _ = self.shutdown.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// Completes once shutdown was asked for.
async fn asked(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|asked| *asked).await;
}

impl EmbeddedCluster {
    /// Starts a cluster in `options.data`, which is made if it is not there. When it returns, everything serves.
    pub async fn start(options: &UpOptions) -> anyhow::Result<Self> {
        let mut stores = Vec::new();
        match Self::start_with(options, &mut stores).await {
            Ok(cluster) => Ok(Self { stores, ..cluster }),
            Err(error) => {
                // A process must not end while an engine's threads still run.
                close_all(stores).await;
                Err(error)
            }
        }
    }

    /// Starts everything; what was opened of `stores` is the caller's to close.
    async fn start_with(options: &UpOptions, stores: &mut Vec<Store>) -> anyhow::Result<Self> {
        let data = options.data.as_path();
        let lock = lock(data)?;
        // Before anything is written: the most likely thing to be wrong.
        let http = components::bind_http(options.listen).await?;
        let gateway_address = http.local_addr()?;
        let file = cluster_file(options)?;

        let network = LocalNetwork::new();
        let Started { file, listeners, nodes } = start_nodes(data, file, &network, stores).await?;
        if let Some(address) = options.metrics {
            metrics::serve(address, nodes.clone()).await?;
        }
        let cluster = components::cluster_over(file.map.clone(), Arc::new(network))?;

        let config = gateway_config(data, &options.judging);
        // One back-end for both, so that a submission wakes the worker at once.
        let backend = SqliteBackend::open(&config.results).await?;
        let gateway = components::open_gateway(&config, &backend, cluster.clone()).await?;
        let worker = components::open_worker(&worker_config(data, options)?, &backend, cluster.clone()).await?;
        let mut watching = Running::new();
        let watched = cluster.clone();
        watching.spawn(|shutdown| async move { watched.run_background(asked(shutdown)).await });
        let mut running_gateway = Running::new();
        running_gateway.spawn(|shutdown| async move {
            if let Err(error) = gateway.serve(http, asked(shutdown)).await {
                tracing::error!(%error, "the gateway ended");
            }
        });
        let mut running_worker = Running::new();
        running_worker.spawn(|shutdown| async move { worker.run(shutdown).await });
        Ok(Self {
            gateway_address,
            gateway: running_gateway,
            watching,
            worker: running_worker,
            listeners,
            nodes,
            stores: Vec::new(),
            cluster,
            client_key_file: config.client_key_file,
            _lock: lock,
        })
    }

    /// The gateway's URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.gateway_address)
    }

    /// A submitter's API key.
    pub fn client_key(&self) -> anyhow::Result<String> {
        let path = &self.client_key_file;
        let key = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(key.trim().to_owned())
    }

    /// Finishes uploads in flight, gives back what is being scanned, completes background copies, closes the stores.
    pub async fn stop(self) {
        self.gateway.stop().await;
        self.worker.stop().await;
        self.watching.stop().await;
        self.cluster.close().await;
        self.nodes.iter().for_each(Node::stop);
        self.listeners.stop().await;
        close_all(self.stores).await;
    }
}

async fn close_all(stores: Vec<Store>) {
    for store in stores {
        components::close(store).await;
    }
}

/// Takes the directory for this process.
fn lock(data: &Path) -> anyhow::Result<File> {
    let unusable = || format!("cannot use the data directory {}", data.display());
    // For nobody else's eyes: it holds keys, names of files and results.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data).with_context(unusable)?;
    let lock = File::create(data.join("lock")).with_context(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!("{} is in use by another lazaret: stop it, or choose another --data", data.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(unusable),
    }
}

/// The cluster's file: the one that is there, checked against what was asked for, or a new cluster's.
fn cluster_file(options: &UpOptions) -> anyhow::Result<ClusterFile> {
    let path = options.data.join(init::CLUSTER_FILE);
    if path.exists() {
        let file = ClusterFile::load(&path)?;
        let differs = |what: &str, there: usize, asked: Option<usize>| match asked {
            Some(asked) if asked != there => Err(anyhow!(
                "{} has {what} {there}, not {asked}: leave the option out, or choose another --data",
                options.data.display()
            )),
            _ => Ok(()),
        };
        differs("--nodes", file.map.nodes.len(), options.nodes.map(usize::from))?;
        differs("--min-replica", file.map.min_replica.into(), options.min_replica.map(usize::from))?;
        differs("--max-replica", file.map.max_replica.into(), options.max_replica.map(usize::from))?;
        return Ok(file);
    }
    let nodes = options.nodes.unwrap_or(NODES);
    let max_replica = options.max_replica.unwrap_or(MAX_REPLICA);
    let new = InitOptions {
        dir: options.data.clone(),
        nodes,
        // Free ports, chosen when the nodes listen.
        node_addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); usize::from(nodes)],
        gateway_address: options.listen,
        min_replica: options.min_replica.unwrap_or(MIN_REPLICA.min(max_replica)),
        max_replica,
    };
    Ok(ClusterFile::load(&init::init(&new, &*Environment::system().random)?)?)
}

/// Nodes at work.
struct Started {
    file: ClusterFile,
    listeners: Running,
    nodes: Vec<Node>,
}

/// Opens and serves every node of the map, in the process and over QUIC, and writes down where they listen. Engines that
/// were opened are in `stores` even if it fails.
async fn start_nodes(
    data: &Path,
    mut file: ClusterFile,
    network: &LocalNetwork,
    stores: &mut Vec<Store>,
) -> anyhow::Result<Started> {
    let ids: Vec<NodeId> = file.map.nodes.iter().map(|node| node.id).collect();
    open_stores(data, &file, stores).await?;
    // An administrator may have changed the map since the file was written.
    for kept in stores.iter().filter_map(node::map::kept) {
        if kept.epoch > file.map.epoch && kept.cluster == file.map.cluster {
            file.map = kept;
        }
    }
    let peers = LocalNetwork::new();
    let (mut nodes, mut bound, mut moved) = (Vec::new(), Vec::new(), false);
    for (id, store) in ids.into_iter().zip(stores.iter()) {
        // A node that was removed is opened once more at most, and serves nobody.
        let Some(entry) = file.map.node(id).cloned() else { continue };
        let cluster = components::cluster_over(file.map.clone(), Arc::new(peers.clone()))?;
        let node = Node::new(id, store.clone(), cluster, Environment::system(), NodeOptions::default());
        let service = NodeService::new(node.clone());
        network.register(id, service.handler(Role::Client));
        peers.register(id, service.handler(Role::Peer));
        let listener = listen_somewhere(data, &file, &entry, service)?;
        let address = listener.local_addr()?;
        if let Some(entry) = file.map.nodes.iter_mut().find(|entry| entry.id == id) {
            moved |= entry.address != address;
            entry.address = address;
        }
        nodes.push(node);
        bound.push(listener);
    }
    if moved {
        file.map.epoch += 1;
    }
    replace(&data.join(init::CLUSTER_FILE), &init::cluster_file(file.map.clone()).to_yaml()?)?;
    let mut listeners = Running::new();
    for (node, listener) in nodes.iter().zip(bound) {
        node.adopt(file.map.clone())?;
        node.start();
        listeners.spawn(|shutdown| async move { listener.run(asked(shutdown)).await });
    }
    Ok(Started { file, listeners, nodes })
}

/// Opens every node's disk, all at once, since recovery reads segments.
async fn open_stores(data: &Path, file: &ClusterFile, stores: &mut Vec<Store>) -> anyhow::Result<()> {
    let mut opening = Vec::new();
    for node in &file.map.nodes {
        let (folder, map, id) = (data.join(&node.name), file.map.clone(), node.id);
        let sizes = (default_segment_bytes_max(), default_reserve_bytes());
        let source = vec![DiskSource::directory(folder, false)];
        opening.push(tokio::spawn(async move { components::open_store(source, &map, id, sizes).await }));
    }
    let mut outcome = Ok(());
    for (opening, node) in opening.into_iter().zip(&file.map.nodes) {
        match opening.await? {
            Ok(store) => stores.push(store),
            Err(error) => outcome = outcome.and(Err(error.context(format!("cannot open {}", node.name)))),
        }
    }
    outcome
}

/// Listens where the map says, or, where that port was taken meanwhile, on a free one.
fn listen_somewhere(
    data: &Path,
    file: &ClusterFile,
    node: &NodeEntry,
    service: NodeService,
) -> anyhow::Result<Listener> {
    let (certificate, private_key) = (data.join(format!("{}.pem", node.name)), data.join(format!("{}.key", node.name)));
    let identity = NodeIdentity { certificate: &certificate, private_key: &private_key };
    match components::listen(node.address, &identity, file, service.clone()) {
        Ok(listener) => Ok(listener),
        Err(error) if node.address.port() == 0 => Err(error),
        Err(_) => components::listen(SocketAddr::new(node.address.ip(), 0), &identity, file, service),
    }
}

/// The gateway's configuration in a data directory.
pub fn gateway_config(data: &Path, judging: &JudgingOptions) -> GatewayConfig {
    GatewayConfig {
        rules: judging.rules.clone(),
        results: data.join("results.db"),
        identity: data.join("identity.db"),
        admin_key_file: data.join("admin.key"),
        client_key_file: data.join("client.key"),
        secret: data.join(init::SECRET_FILE),
        ..GatewayConfig::default()
    }
}

fn worker_config(data: &Path, options: &UpOptions) -> anyhow::Result<ScanWorkerConfig> {
    Ok(ScanWorkerConfig {
        results: data.join("results.db"),
        secret: data.join(init::SECRET_FILE),
        scan_threads: options.workers.into(),
        engines: options.judging.engines.as_deref().map(config::load).transpose()?.unwrap_or_default(),
        ..ScanWorkerConfig::default()
    })
}

/// Replaces a file as a whole, durably.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
