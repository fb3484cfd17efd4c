//! The storage nodes of a cluster in this process. They are reached without a network, and listen for QUIC on loopback as
//! well, so that other commands work against them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

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

use crate::components::{self, NodeIdentity, Running, asked};
use crate::config::{default_reserve_bytes, default_segment_bytes_max};
use crate::init;

/// Nodes at work.
pub struct Nodes {
    file: ClusterFile,
    network: LocalNetwork,
    listeners: Running,
    nodes: Vec<Node>,
    stores: Vec<Store>,
}

impl Nodes {
    /// Opens and serves every node of the map below `data`, and writes down where they listen.
    pub async fn start(data: &Path, file: ClusterFile) -> anyhow::Result<Self> {
        let mut stores = Vec::new();
        match start_with(data, file, &mut stores).await {
            Ok(nodes) => Ok(Self { stores, ..nodes }),
            Err(error) => {
                // A process must not end while an engine's threads still run.
                close_all(stores).await;
                Err(error)
            }
        }
    }

    /// The cluster as a client in this process sees it.
    pub fn cluster(&self) -> anyhow::Result<Cluster> {
        components::cluster_over(self.file.map.clone(), Arc::new(self.network.clone()))
    }

    /// Each of them.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Ends their background work, lets requests in flight finish, closes the stores.
    pub async fn stop(self) {
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

/// Engines that were opened are in `stores` even if it fails.
async fn start_with(data: &Path, mut file: ClusterFile, stores: &mut Vec<Store>) -> anyhow::Result<Nodes> {
    let ids: Vec<NodeId> = file.map.nodes.iter().map(|node| node.id).collect();
    open_stores(data, &file, stores).await?;
    let network = LocalNetwork::new();
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
    init::replace(&data.join(init::CLUSTER_FILE), &init::cluster_file(file.map.clone()).to_yaml()?)?;
    let mut listeners = Running::new();
    for (node, listener) in nodes.iter().zip(bound) {
        node.adopt(file.map.clone())?;
        node.start();
        listeners.spawn(|shutdown| async move { listener.run(asked(shutdown)).await });
    }
    Ok(Nodes { file, network, listeners, nodes, stores: Vec::new() })
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
