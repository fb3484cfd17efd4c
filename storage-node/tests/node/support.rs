//! Clusters of real engines on simulated disks, served in process or over QUIC on the loopback address.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_node_client::stream::{RecvHalf, SendHalf};
use lazaret_node_client::tls::TlsError;
use lazaret_node_client::{
    Cluster, ClusterOptions, Credentials, Environment, GetError, LocalNetwork, QuicTransport, Transport,
};
use lazaret_protocol::cluster_map::{ClusterMap, NodeEntry, NodeState, StorageType};
use lazaret_protocol::message::{Request, Response, Role};
use lazaret_protocol::name::{BlobName, ClusterId, NodeId};
use lazaret_storage_node::listener::Listener;
use lazaret_storage_node::service::NodeService;
use lazaret_storage_node::{Engine, EngineOptions, MemoryIndex, NodeOptions, SimDisk};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const CLUSTER: ClusterId = ClusterId([9; 16]);
pub const CONNECTION_KEY: &str = "the connection key";
pub const ADMIN_KEY: &str = "the storage admin key";

pub struct Node {
    pub id: NodeId,
    pub disk: SimDisk,
    pub engine: Engine,
    pub node: lazaret_storage_node::Node,
    pub service: NodeService,
}

pub fn map(nodes: u8, min_replica: u8, max_replica: u8) -> ClusterMap {
    let entry = |i: u8| NodeEntry {
        id: NodeId([i; 16]),
        name: format!("node{i}"),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        weight: 1,
        state: NodeState::Up,
    };
    ClusterMap {
        cluster: CLUSTER,
        epoch: 1,
        min_replica,
        max_replica,
        cleanuprange: 0,
        storage_type: StorageType::Salt,
        nodes: (1..=nodes).map(entry).collect(),
    }
}

/// A node that knows its map and reaches nobody.
pub fn node(id: NodeId, map: &ClusterMap) -> Node {
    node_among(id, map, &LocalNetwork::new(), Environment::system(), SimDisk::new())
}

/// A node on `disk` that reaches others over `peers`. Nothing happens in the background yet.
pub fn node_among(id: NodeId, map: &ClusterMap, peers: &LocalNetwork, environment: Environment, disk: SimDisk) -> Node {
    let options = EngineOptions::new(CLUSTER, id);
    let index = Arc::new(MemoryIndex::new());
    let engine = Engine::open(Arc::new(disk.clone()), index, environment.clone(), options).unwrap();
    let cluster =
        Cluster::new(map.clone(), Arc::new(peers.clone()), environment.clone(), ClusterOptions::default()).unwrap();
    let node = lazaret_storage_node::Node::new(id, store(&engine), cluster, environment, quick());
    let service = NodeService::new(node.clone());
    Node { id, disk, engine, node, service }
}

/// Background work without long waits.
pub fn quick() -> NodeOptions {
    NodeOptions {
        ping_interval: Duration::from_millis(50),
        lost_after: Duration::from_millis(600),
        repair_interval: Duration::from_millis(300),
        retention_interval: Duration::from_millis(100),
        ..NodeOptions::default()
    }
}

fn store(engine: &Engine) -> lazaret_storage_node::store::Store {
    engine.clone().into()
}

/// Nodes in this process and a client of them.
pub fn in_process(map: ClusterMap) -> (Vec<Node>, LocalNetwork, Cluster) {
    let network = LocalNetwork::new();
    let nodes: Vec<Node> = map.nodes.iter().map(|entry| node(entry.id, &map)).collect();
    for node in &nodes {
        network.register(node.id, node.service.handler(Role::Client));
    }
    let cluster =
        Cluster::new(map, Arc::new(network.clone()), Environment::system(), ClusterOptions::default()).unwrap();
    (nodes, network, cluster)
}

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(parameters, key), pem }
    }

    /// Certificate and key of `node` in PEM.
    pub fn node(&self, node: NodeId) -> (String, String) {
        let mut parameters = CertificateParams::new([format!("{node}.node.lazaret")]).unwrap();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A listener at work.
pub struct Listening {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Listening {
    pub fn start(node: &Node, authority: &Authority, address: SocketAddr) -> Self {
        Self::with_certificate(node, authority, authority.node(node.id), address)
    }

    pub fn with_certificate(
        node: &Node,
        authority: &Authority,
        (certificate, key): (String, String),
        address: SocketAddr,
    ) -> Self {
        let bind = || {
            Listener::bind(
                address,
                &certificate,
                &key,
                &authority.pem,
                CLUSTER,
                CONNECTION_KEY.to_owned(),
                Some(ADMIN_KEY.to_owned()),
                node.service.clone(),
            )
        };
        // A listener's socket closes shortly after it has stopped, and nothing tells when.
        let begun = Instant::now();
        let listener = loop {
            match bind() {
                Err(TlsError::Bind { .. }) if begun.elapsed() < Duration::from_secs(10) => std::thread::yield_now(),
                bound => break bound.unwrap(),
            }
        };
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(listener.run(async {
            let _ = stopped.await;
        }));
        Self { address, stop, task }
    }

    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

pub fn anywhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Nodes behind QUIC listeners and a client of them.
pub fn over_quic(mut map: ClusterMap) -> (Vec<Node>, Vec<Listening>, Authority, Cluster) {
    let authority = Authority::new();
    let nodes: Vec<Node> = map.nodes.iter().map(|entry| node(entry.id, &map)).collect();
    let listening: Vec<_> = nodes.iter().map(|node| Listening::start(node, &authority, anywhere())).collect();
    for (entry, listening) in map.nodes.iter_mut().zip(&listening) {
        entry.address = listening.address;
    }
    let cluster = quic_client(map, &authority.pem, connection_key());
    (nodes, listening, authority, cluster)
}

pub fn connection_key() -> Credentials {
    Credentials::Connection(CONNECTION_KEY.to_owned())
}

pub fn quic_client(map: ClusterMap, ca_pem: &str, credentials: Credentials) -> Cluster {
    let transport = QuicTransport::new(ca_pem, map.cluster, credentials).unwrap();
    Cluster::new(map, Arc::new(transport), Environment::system(), ClusterOptions::default()).unwrap()
}

pub async fn read(cluster: &Cluster, name: BlobName) -> Result<Vec<u8>, GetError> {
    let mut download = cluster.get(name, None).await?;
    let mut content = Vec::new();
    while let Some(piece) = download.next().await? {
        content.extend_from_slice(&piece);
    }
    Ok(content)
}

/// Opens a stream and sends a request on it.
pub async fn begin(transport: &dyn Transport, node: &NodeEntry, request: &Request) -> (SendHalf, RecvHalf) {
    let (mut send, recv) = transport.open(node).await.unwrap();
    send.send_message(request).await.unwrap();
    (send, recv)
}

/// A whole request without a body.
pub async fn ask(transport: &dyn Transport, node: &NodeEntry, request: &Request) -> Response {
    let (mut send, mut recv) = begin(transport, node, request).await;
    send.finish().await.unwrap();
    recv.recv_message().await.unwrap()
}

/// Content that no compression or coincidence shortens.
pub fn content(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&length.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}
