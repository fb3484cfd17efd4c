//! A station in one process for the gateway's tests: the real result store, queue and identity on SQLite, the real
//! cluster client over in-process streams, and real storage nodes on simulated disks.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use lazaret_analysis::{
    AnalysisRecord, DataId, PasswordSeal, ProgressCache, ResultStore, SqliteBackend, TaskQueue, WorkerReport,
};
use lazaret_gateway::{Backends, Gateway, GatewayOptions, Signer};
use lazaret_identity::{Identity, Role};
use lazaret_node_client::cluster::ClusterOptions;
use lazaret_node_client::local::Handler;
use lazaret_node_client::{Cluster, Environment, LocalNetwork};
use lazaret_protocol::cluster_map::{ClusterMap, NodeEntry, NodeState, StorageType};
use lazaret_protocol::message::Role as StreamRole;
use lazaret_protocol::name::{BlobName, ClusterId, NodeId};
use lazaret_storage_node::service::NodeService;
use lazaret_storage_node::{Engine, EngineOptions, MemoryIndex, Node, NodeOptions, SimDisk};
use serde_json::Value;
use tower::ServiceExt;

/// Nodes of a test's cluster, of which [`MIN_REPLICA`] must hold a blob.
const NODES: u8 = 3;
const MIN_REPLICA: u8 = 2;
pub const SECRET: &str = "the cluster's secret";

/// Everything around one gateway.
pub struct Station {
    pub results: Arc<dyn ResultStore>,
    pub queue: Arc<dyn TaskQueue>,
    pub progress: Arc<dyn ProgressCache>,
    pub cluster: Cluster,
    pub network: LocalNetwork,
    pub identity: Identity,
    pub admin: String,
    pub alice: String,
    pub bob: String,
    directory: tempfile::TempDir,
}

impl Station {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let backend = Arc::new(SqliteBackend::open(directory.path().join("results.db")).await.unwrap());
        let identity = Identity::open(&directory.path().join("identity.db")).await.unwrap();
        let network = LocalNetwork::new();
        for id in node_ids() {
            network.register(id, storage_node(id));
        }
        let options = ClusterOptions::default();
        let cluster = Cluster::new(map(), Arc::new(network.clone()), Environment::system(), options).unwrap();
        let key = async |name: &str, role| identity.create_key(name, role).await.unwrap().0;
        let admin = key("root", Role::Administrator).await;
        let alice = key("alice", Role::Submitter).await;
        let bob = key("bob", Role::Submitter).await;
        Self {
            results: backend.clone(),
            queue: backend.clone(),
            progress: backend,
            cluster,
            network,
            identity,
            admin,
            alice,
            bob,
            directory,
        }
    }

    /// A gateway over the station. Several may share it, as they do in production.
    pub fn gateway(&self, options: GatewayOptions) -> Gateway {
        let backends = Backends {
            results: self.results.clone(),
            queue: self.queue.clone(),
            progress: self.progress.clone(),
            cluster: self.cluster.clone(),
            identity: self.identity.clone(),
            seal: Arc::new(PasswordSeal::from_secret(SECRET).unwrap()),
        };
        Gateway::new(options, backends, Environment::system())
    }

    /// Where the identities are.
    pub fn identity_file(&self) -> std::path::PathBuf {
        self.directory.path().join("identity.db")
    }

    pub fn router(&self) -> Router {
        self.gateway(self.options()).router()
    }

    /// The defaults, with a key that signs.
    pub fn options(&self) -> GatewayOptions {
        let signer = Signer::open(&self.directory.path().join("signing.pem")).unwrap();
        GatewayOptions { signer: Some(Arc::new(signer)), ..GatewayOptions::default() }
    }

    /// The file in which the results lie.
    pub fn results_file(&self) -> std::path::PathBuf {
        self.directory.path().join("results.db")
    }

    /// A scan worker says that it lives.
    pub async fn attend(&self) {
        let worker = WorkerReport { name: "a worker".to_owned(), ..WorkerReport::default() };
        self.results.report_worker(&worker, Environment::system().clock.unix_ms()).await.unwrap();
    }

    /// Takes all nodes but one away.
    pub fn lose_quorum(&self) {
        for id in node_ids().skip(1) {
            self.network.unregister(id);
        }
    }

    pub async fn record(&self, data_id: DataId) -> AnalysisRecord {
        self.results.get(data_id).await.unwrap().unwrap()
    }

    pub async fn content(&self, name: &str) -> Vec<u8> {
        let mut download = self.cluster.get(name.parse::<BlobName>().unwrap(), None).await.unwrap();
        let mut content = Vec::new();
        while let Some(piece) = download.next().await.unwrap() {
            content.extend_from_slice(&piece);
        }
        content
    }

    /// That no analysis and no task exist.
    pub async fn assert_nothing_created(&self) {
        assert_eq!(self.results.count_unfinished().await.unwrap(), 0);
        assert_eq!(self.queue.depth().await.unwrap().queued, 0);
    }
}

fn node_ids() -> impl Iterator<Item = NodeId> {
    (1..=NODES).map(|n| NodeId([n; 16]))
}

fn storage_node(id: NodeId) -> Handler {
    let map = map();
    let disk = Arc::new(SimDisk::new());
    let index = Arc::new(MemoryIndex::new());
    let environment = Environment::system();
    let engine = Engine::open(disk, index, environment.clone(), EngineOptions::new(map.cluster, id)).unwrap();
    // It reaches no other node, and needs none.
    let alone =
        Cluster::new(map, Arc::new(LocalNetwork::new()), environment.clone(), ClusterOptions::default()).unwrap();
    let node = Node::new(id, engine.into(), alone, environment, NodeOptions::default());
    NodeService::new(node).handler(StreamRole::Client)
}

fn map() -> ClusterMap {
    let node = |id: NodeId| NodeEntry {
        id,
        name: format!("node-{}", id.0[0]),
        address: ([127, 0, 0, 1], 1).into(),
        weight: 1,
        state: NodeState::Up,
    };
    ClusterMap {
        cluster: ClusterId([9; 16]),
        epoch: 1,
        min_replica: MIN_REPLICA,
        max_replica: NODES,
        cleanuprange: 0,
        storage_type: StorageType::Salt,
        nodes: node_ids().map(node).collect(),
    }
}

/// Bytes that repeat nowhere soon.
pub fn content(length: usize) -> Vec<u8> {
    let mut content = vec![0; length];
    blake3::Hasher::new().update(&length.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

/// A submission by a client that announces the body's length.
pub fn submission(key: &str, body: &[u8]) -> Request<Body> {
    Request::post("/file")
        .header("apikey", key)
        .header("content-length", body.len())
        .body(Body::from(body.to_vec()))
        .unwrap()
}

pub fn get(path: &str, key: &str) -> Request<Body> {
    Request::get(path).header("apikey", key).body(Body::empty()).unwrap()
}

/// The answer: its status and its JSON.
pub async fn ask(router: &Router, request: Request<Body>) -> (StatusCode, Value) {
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

/// A submission that must succeed.
pub async fn accepted(router: &Router, request: Request<Body>) -> DataId {
    let (status, answer) = ask(router, request).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer["data_id"].as_str().unwrap().parse().unwrap()
}

/// A request that must be refused with this status; its text.
pub async fn refused(router: &Router, request: Request<Body>, status: u16) -> String {
    let (got, answer) = ask(router, request).await;
    assert_eq!(got.as_u16(), status, "{answer}");
    assert_eq!(answer.as_object().unwrap().len(), 1, "{answer}");
    answer["err"].as_str().unwrap().to_owned()
}
