//! A storage node for tests of the client: it keeps blobs in memory, speaks the protocol in full, and misbehaves on
//! request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lazaret_node_client::stream::{RecvHalf, SendHalf, StreamError};
use lazaret_node_client::{Cluster, ClusterOptions, Environment, LocalNetwork};
use lazaret_protocol::cluster_map::{ClusterMap, NodeEntry, NodeState, StorageType};
use lazaret_protocol::message::{
    Absent, BlobStat, ErrorCode, ErrorReply, GetHeader, GetRequest, Locator, NodeStatus, Ping, PutDone, PutHeader,
    PutTarget, PutTrailer, Request, Response,
};
use lazaret_protocol::name::{BlobName, ClusterId, NodeId};
use lazaret_protocol::tree::{self, TreeBuilder};
use tokio::sync::Notify;

/// How a node misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Takes requests and never answers.
    Hangs,
    /// Refuses puts with this code before reading the body.
    RefusesPuts(ErrorCode),
    /// Gives a put up after so many body bytes.
    DropsPutAfter(usize),
    /// Stops reading a put's body after so many bytes, and keeps the stream open.
    StallsPutAfter(usize),
    /// Flips a bit of what it sends at this offset of the encoding.
    FlipsBitAt(usize),
    /// Resets an answer after so many bytes of the encoding.
    ResetsGetAfter(usize),
    /// Takes a put in full and acknowledges it only when told.
    HoldsAcknowledgement,
}

#[derive(Clone)]
pub struct MemoryNode {
    pub id: NodeId,
    state: Arc<Mutex<State>>,
    pub acknowledge: Arc<Notify>,
    pub requests: Arc<AtomicUsize>,
}

struct State {
    fault: Fault,
    /// The map it holds, and the epoch it speaks of.
    map: Option<ClusterMap>,
    hides_map: bool,
    /// Called before a get is answered.
    before_get: Option<Arc<dyn Fn() + Send + Sync>>,
    full: bool,
    blobs: HashMap<BlobName, (Bytes, u64)>,
    locators: HashMap<BlobName, Locator>,
}

impl MemoryNode {
    fn new(id: NodeId) -> Self {
        let state = State {
            fault: Fault::None,
            map: None,
            hides_map: false,
            before_get: None,
            full: false,
            blobs: HashMap::new(),
            locators: HashMap::new(),
        };
        Self { id, state: Arc::new(Mutex::new(state)), acknowledge: Arc::default(), requests: Arc::default() }
    }

    pub fn set(&self, fault: Fault) {
        self.state.lock().unwrap().fault = fault;
    }

    pub fn set_map(&self, map: ClusterMap) {
        self.state.lock().unwrap().map = Some(map);
    }

    /// Whether it keeps its map to itself.
    pub fn set_map_fault(&self, faulty: bool) {
        self.state.lock().unwrap().hides_map = faulty;
    }

    fn epoch(&self) -> u64 {
        self.state.lock().unwrap().map.as_ref().map_or(1, |map| map.epoch)
    }

    pub fn before_get(&self, call: impl Fn() + Send + Sync + 'static) {
        self.state.lock().unwrap().before_get = Some(Arc::new(call));
    }

    pub fn give(&self, content: &Bytes) {
        self.state.lock().unwrap().blobs.insert(BlobName::of(content), (content.clone(), 1));
    }

    pub fn set_full(&self, full: bool) {
        self.state.lock().unwrap().full = full;
    }

    pub fn holds(&self, name: BlobName) -> bool {
        self.state.lock().unwrap().blobs.contains_key(&name)
    }

    pub fn locator(&self, name: BlobName) -> Option<Locator> {
        self.state.lock().unwrap().locators.get(&name).copied()
    }

    pub fn blobs(&self) -> usize {
        self.state.lock().unwrap().blobs.len()
    }

    pub fn put_time_ms(&self, name: BlobName) -> Option<u64> {
        self.state.lock().unwrap().blobs.get(&name).map(|(_, put_time_ms)| *put_time_ms)
    }

    pub fn forget(&self, name: BlobName) {
        self.state.lock().unwrap().blobs.remove(&name);
    }

    async fn serve(self, mut send: SendHalf, mut recv: RecvHalf) -> Result<(), StreamError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let request = recv.recv_message().await?;
        let fault = self.state.lock().unwrap().fault;
        if fault == Fault::Hangs {
            // Until the peer gives up: a held stream, as a node that is stopped has.
            while recv.recv().await?.is_some() {}
            return std::future::pending().await;
        }
        let response = match request {
            Request::Put(header) => match self.put(header, fault, &mut recv).await? {
                Some(response) => response,
                None => return Ok(()),
            },
            Request::Get(get) => return self.get(get, fault, send).await,
            Request::PutLocator(put) => {
                if let Fault::RefusesPuts(code) = fault {
                    error(code)
                } else {
                    self.state.lock().unwrap().locators.insert(put.name, put.locator);
                    Response::LocatorPut
                }
            }
            Request::Stat(name) => {
                let state = self.state.lock().unwrap();
                let held = state.blobs.get(&name).map(|(content, put_time_ms)| GetHeader {
                    length: content.len() as u64,
                    put_time_ms: *put_time_ms,
                });
                Response::Stat(BlobStat { held, locator: state.locators.get(&name).copied() })
            }
            Request::Status => {
                let state = self.state.lock().unwrap();
                Response::Status(NodeStatus {
                    blobs: state.blobs.len() as u64,
                    full: state.full,
                    ..NodeStatus::default()
                })
            }
            Request::Ping(_) => Response::Pong(Ping { epoch: self.epoch(), now_ms: 1 }),
            Request::Map => {
                let state = self.state.lock().unwrap();
                match state.map.clone().filter(|_| !state.hides_map) {
                    Some(map) => Response::Map(map),
                    None => error(ErrorCode::Unsupported),
                }
            }
            _ => error(ErrorCode::Unsupported),
        };
        send.send_message(&response).await?;
        send.finish().await
    }

    async fn put(&self, header: PutHeader, fault: Fault, recv: &mut RecvHalf) -> Result<Option<Response>, StreamError> {
        if let Fault::RefusesPuts(code) = fault {
            return Ok(Some(error(code)));
        }
        let mut body = Vec::new();
        while let Some(frame) = recv.recv_body_frame().await? {
            frame.iter().for_each(|piece| body.extend_from_slice(piece));
            match fault {
                Fault::DropsPutAfter(bytes) if body.len() >= bytes => return Ok(None),
                Fault::StallsPutAfter(bytes) if body.len() >= bytes => return std::future::pending().await,
                _ => {}
            }
        }
        let trailer: PutTrailer = recv.recv_message().await?;
        if let PutTarget::Whole { name, length } = header.target
            && trailer != (PutTrailer { name, length })
        {
            return Ok(Some(error(ErrorCode::BadRequest)));
        }
        if BlobName::of(&body) != trailer.name || body.len() as u64 != trailer.length {
            return Ok(Some(error(ErrorCode::NameMismatch)));
        }
        if fault == Fault::HoldsAcknowledgement {
            self.acknowledge.notified().await;
        }
        self.state.lock().unwrap().blobs.insert(trailer.name, (body.into(), header.put_time_ms));
        Ok(Some(Response::Put(PutDone { put_time_ms: header.put_time_ms, already_held: false })))
    }

    async fn get(&self, request: GetRequest, fault: Fault, mut send: SendHalf) -> Result<(), StreamError> {
        let before_get = self.state.lock().unwrap().before_get.clone();
        if let Some(call) = before_get {
            call();
        }
        let (blob, locator) = {
            let state = self.state.lock().unwrap();
            (state.blobs.get(&request.name).cloned(), state.locators.get(&request.name).copied())
        };
        let Some((content, put_time_ms)) = blob else {
            send.send_message(&locator.map_or(Response::Absent(Absent { epoch: self.epoch() }), Response::Located))
                .await?;
            return send.finish().await;
        };
        let mut builder = TreeBuilder::new();
        builder.push(&content);
        let (_, outboard) = builder.finish();
        let (length, mut encoded) = (content.len() as u64, Vec::new());
        tree::encode(request.name, length, request.range, &content[..], &outboard[..], &mut encoded).unwrap();
        send.send_message(&Response::Get(GetHeader { length, put_time_ms })).await?;
        match fault {
            Fault::FlipsBitAt(at) => {
                let at = at.min(encoded.len() - 1);
                encoded[at] ^= 0x20;
            }
            Fault::ResetsGetAfter(bytes) => {
                encoded.truncate(bytes);
                send.send(encoded.into()).await?;
                send.reset();
                return Ok(());
            }
            _ => {}
        }
        send.send(encoded.into()).await?;
        send.finish().await
    }
}

fn error(code: ErrorCode) -> Response {
    Response::Error(ErrorReply { code, message: "as the test wants it".to_owned() })
}

/// Nodes, the network they are on, and a client's view of them.
pub struct TestCluster {
    pub nodes: Vec<MemoryNode>,
    pub network: LocalNetwork,
    pub cluster: Cluster,
}

pub const TIMEOUT: Duration = Duration::from_millis(400);

impl TestCluster {
    pub fn new(nodes: u8, min_replica: u8, max_replica: u8) -> Self {
        let options =
            ClusterOptions { progress_timeout: TIMEOUT, request_timeout: TIMEOUT, ..ClusterOptions::default() };
        Self::with_options(nodes, min_replica, max_replica, options)
    }

    pub fn with_options(nodes: u8, min_replica: u8, max_replica: u8, options: ClusterOptions) -> Self {
        let network = LocalNetwork::new();
        let nodes: Vec<_> = (1..=nodes).map(|i| MemoryNode::new(NodeId([i; 16]))).collect();
        let entry = |node: &MemoryNode| NodeEntry {
            id: node.id,
            name: format!("node{}", node.id.0[0]),
            address: ([127, 0, 0, 1], 8890).into(),
            weight: 1,
            state: NodeState::Up,
        };
        let map = ClusterMap {
            cluster: ClusterId([9; 16]),
            epoch: 1,
            min_replica,
            max_replica,
            cleanuprange: 0,
            storage_type: StorageType::Salt,
            nodes: nodes.iter().map(entry).collect(),
        };
        let cluster =
            Cluster::new(map, Arc::new(network.clone()), Environment::system(), options).expect("the map is sound");
        let this = Self { nodes, network, cluster };
        for node in &this.nodes {
            this.start(node);
        }
        this
    }

    pub fn start(&self, node: &MemoryNode) {
        let serving = node.clone();
        self.network.register(
            node.id,
            Arc::new(move |send, recv| {
                let node = serving.clone();
                tokio::spawn(async move { node.serve(send, recv).await });
            }),
        );
    }

    pub fn stop(&self, node: &MemoryNode) {
        self.network.unregister(node.id);
    }

    /// Adds a node that the client's map does not have; the map that has it, one epoch on.
    pub fn grow(&mut self) -> ClusterMap {
        let mut map = self.cluster.map().as_ref().clone();
        let id = NodeId([self.nodes.len() as u8 + 1; 16]);
        let first = map.nodes[0].clone();
        map.nodes.push(NodeEntry { id, name: format!("node{}", id.0[0]), ..first });
        map.epoch += 1;
        let node = MemoryNode::new(id);
        self.start(&node);
        self.nodes.push(node);
        map
    }

    /// The nodes in a placement's order.
    pub fn order(&self, placement: lazaret_protocol::PlacementKey) -> Vec<&MemoryNode> {
        let map = self.cluster.map();
        let order = lazaret_protocol::placement::read_order(&map, placement);
        order.iter().map(|entry| self.nodes.iter().find(|node| node.id == entry.id).unwrap()).collect()
    }

    pub async fn read(&self, name: BlobName) -> Result<Vec<u8>, lazaret_node_client::GetError> {
        let mut download = self.cluster.get(name, None).await?;
        let mut content = Vec::new();
        while let Some(piece) = download.next().await? {
            content.extend_from_slice(&piece);
        }
        assert_eq!(download.length(), content.len() as u64);
        Ok(content)
    }
}

/// Content that no compression or coincidence shortens.
pub fn content(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&length.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}
