//! Keys and certificates are replaced under traffic, and no request fails for it; afterwards the old ones are worth nothing.

#[allow(dead_code)]
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Authority, CLUSTER, Node, anywhere, map, node, read};
use bytes::Bytes;
use lazaret_node_client::trust::previous_key_path;
use lazaret_node_client::{
    Cluster, ClusterOptions, CredentialFiles, Credentials, Environment, QuicTransport, Transport, TransportError,
    TrustFiles,
};
use lazaret_protocol::ClusterMap;
use lazaret_protocol::message::{Request, Response};
use lazaret_storage_node::listener::{Listener, ListenerFiles};
use tokio::task::JoinHandle;

/// How long anything may take before the test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three nodes over QUIC, whose keys and certificates lie in a directory.
struct Rotating {
    directory: tempfile::TempDir,
    map: ClusterMap,
    _nodes: Vec<Node>,
}

impl Rotating {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut map = map(3, 2, 3);
        let authority = Authority::new();
        let this = |name: &str| directory.path().join(name);
        fs::write(this("ca.pem"), &authority.pem).unwrap();
        fs::write(this("connection.key"), "first connection key").unwrap();
        fs::write(this("admin.key"), "first admin key\n").unwrap();
        let nodes: Vec<Node> = map.nodes.iter().map(|entry| node(entry.id, &map)).collect();
        for (entry, node) in map.nodes.iter_mut().zip(&nodes) {
            let (certificate, key) = authority.node(node.id);
            fs::write(this(&format!("{}.pem", entry.name)), certificate).unwrap();
            fs::write(this(&format!("{}.key", entry.name)), key).unwrap();
            let files = ListenerFiles {
                certificate: this(&format!("{}.pem", entry.name)),
                private_key: this(&format!("{}.key", entry.name)),
                ca: this("ca.pem"),
                connection_key: this("connection.key"),
                admin_key: Some(this("admin.key")),
            };
            let listener = Listener::bind_files(anywhere(), files, CLUSTER, node.service.clone()).unwrap();
            entry.address = listener.local_addr().unwrap();
            tokio::spawn(listener.run(std::future::pending()));
        }
        Self { directory, map, _nodes: nodes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A client that reads its key and the CA from the directory.
    fn client(&self, credentials: CredentialFiles) -> Cluster {
        let files = TrustFiles { ca: self.path("ca.pem"), credentials };
        let transport = QuicTransport::from_files(files, CLUSTER).unwrap();
        let options = ClusterOptions::default();
        Cluster::new(self.map.clone(), Arc::new(transport), Environment::system(), options).unwrap()
    }

    fn connection_client(&self) -> Cluster {
        self.client(CredentialFiles::Connection(self.path("connection.key")))
    }

    /// What a new client with these credentials is told by the first node; `None` if it is let in.
    async fn refusal(&self, credentials: Credentials) -> Option<TransportError> {
        let transport = QuicTransport::new(&fs::read_to_string(self.path("ca.pem")).unwrap(), CLUSTER, credentials);
        transport.unwrap().open(&self.map.nodes[0]).await.err()
    }

    /// Puts another key in place, the present one beside it, as an operator's tool does.
    fn replace_key(&self, name: &str, key: &str) {
        let path = self.path(name);
        replace(&previous_key_path(&path), &fs::read_to_string(&path).unwrap());
        replace(&path, key);
    }

    fn remove_previous(&self, name: &str) {
        fs::remove_file(previous_key_path(&self.path(name))).unwrap();
    }

    /// Certificates of `authority` for all nodes.
    fn replace_certificates(&self, authority: &Authority) {
        for entry in &self.map.nodes {
            let (certificate, key) = authority.node(entry.id);
            replace(&self.path(&format!("{}.pem", entry.name)), &certificate);
            replace(&self.path(&format!("{}.key", entry.name)), &key);
        }
    }
}

/// Replaces a file as a whole.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// Puts and gets without pause until it is stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU32>,
    tasks: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(cluster: &Cluster) -> Self {
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let worker = |number: u32| {
            let (cluster, stop, requests) = (cluster.clone(), Arc::clone(&stop), Arc::clone(&requests));
            tokio::spawn(async move {
                let mut body = vec![number as u8; 50_000];
                while !stop.load(Ordering::Relaxed) {
                    let request = requests.fetch_add(1, Ordering::Relaxed);
                    body[..4].copy_from_slice(&request.to_le_bytes());
                    let stored = cluster.put(Bytes::copy_from_slice(&body)).await.unwrap();
                    assert!(stored.durable_on.len() >= 2);
                    assert_eq!(read(&cluster, stored.name).await.unwrap(), body);
                }
            })
        };
        let tasks = (0..4).map(worker).collect();
        Self { stop, requests, tasks }
    }

    /// Waits until so many requests more were answered.
    async fn more(&self, requests: u32) {
        let until = self.requests.load(Ordering::Relaxed) + requests;
        let begun = Instant::now();
        while self.requests.load(Ordering::Relaxed) < until {
            assert!(begun.elapsed() < PATIENCE && self.tasks.iter().all(|task| !task.is_finished()), "traffic stopped");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// Polls until `done` says so.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_key_changes_under_traffic_and_the_old_one_ends_with_its_file() {
    let rotating = Rotating::start();
    let old = || Credentials::Connection("first connection key".to_owned());
    // One client reads its files, another knows the first key only, as one on a host where nothing was copied to yet.
    let cluster = rotating.connection_client();
    let other_host = tempfile::tempdir().unwrap();
    let elsewhere = other_host.path().join("connection.key");
    fs::write(&elsewhere, "first connection key").unwrap();
    let late = rotating.client(CredentialFiles::Connection(elsewhere.clone()));
    let traffic = [Traffic::start(&cluster), Traffic::start(&late)];
    traffic[0].more(50).await;
    rotating.replace_key("connection.key", "second connection key");
    traffic[0].more(50).await;
    traffic[1].more(50).await;
    assert_eq!(rotating.refusal(old()).await, None, "both keys are good while the former one lies there");
    assert_eq!(rotating.refusal(Credentials::Connection("second connection key".to_owned())).await, None);
    replace(&elsewhere, "second connection key");
    // All clients know the new key now, by what they say of themselves when they look at their files.
    tokio::time::sleep(Duration::from_secs(3)).await;
    traffic[1].more(50).await;
    rotating.remove_previous("connection.key");
    until("the old key is still good", async || {
        matches!(rotating.refusal(old()).await, Some(TransportError::NotAllowed { .. }))
    })
    .await;
    for traffic in traffic {
        traffic.more(200).await;
        traffic.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_key_that_is_no_longer_good_is_closed() {
    let rotating = Rotating::start();
    let transport = QuicTransport::new(
        &fs::read_to_string(rotating.path("ca.pem")).unwrap(),
        CLUSTER,
        Credentials::Connection("first connection key".to_owned()),
    );
    let (transport, entry) = (transport.unwrap(), &rotating.map.nodes[0]);
    assert!(matches!(crate::support::ask(&transport, entry, &Request::Status).await, Response::Status(_)));
    replace(&rotating.path("connection.key"), "second connection key");
    until("the connection lives on", async || {
        matches!(transport.open(entry).await, Err(TransportError::NotAllowed { .. }))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_new_key_that_nodes_do_not_know_yet_uses_the_former_one() {
    let rotating = Rotating::start();
    let other_host = tempfile::tempdir().unwrap();
    let path = other_host.path().join("connection.key");
    fs::write(&path, "second connection key").unwrap();
    fs::write(previous_key_path(&path), "first connection key").unwrap();
    let cluster = rotating.client(CredentialFiles::Connection(path));
    cluster.put(Bytes::from_static(b"abc")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_key_changes_under_traffic() {
    let rotating = Rotating::start();
    let admin = rotating.client(CredentialFiles::Admin(rotating.path("admin.key")));
    let traffic = Traffic::start(&admin);
    traffic.more(20).await;
    rotating.replace_key("admin.key", "second admin key");
    traffic.more(20).await;
    let old = || Credentials::Admin("first admin key".to_owned());
    assert_eq!(rotating.refusal(old()).await, None);
    tokio::time::sleep(Duration::from_secs(3)).await;
    traffic.more(20).await;
    rotating.remove_previous("admin.key");
    until("the old key is still good", async || {
        matches!(rotating.refusal(old()).await, Some(TransportError::NotAllowed { .. }))
    })
    .await;
    traffic.more(100).await;
    traffic.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_the_ca_change_under_traffic_of_clients_and_peers() {
    let rotating = Rotating::start();
    let first_ca = fs::read_to_string(rotating.path("ca.pem")).unwrap();
    let cluster = rotating.connection_client();
    let peer = rotating.client(CredentialFiles::Peer {
        certificate: rotating.path("node2.pem"),
        private_key: rotating.path("node2.key"),
    });
    let traffic = [Traffic::start(&cluster), Traffic::start(&peer)];
    traffic[0].more(50).await;
    // Both are trusted first, then the new one signs, then the old one goes.
    let second = Authority::new();
    replace(&rotating.path("ca.pem"), &format!("{first_ca}{}", second.pem));
    traffic[0].more(50).await;
    traffic[1].more(50).await;
    rotating.replace_certificates(&second);
    traffic[0].more(50).await;
    traffic[1].more(50).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    replace(&rotating.path("ca.pem"), &second.pem);
    let transport =
        QuicTransport::new(&first_ca, CLUSTER, Credentials::Connection("first connection key".to_owned())).unwrap();
    until("the old CA's certificate is still shown", async || {
        matches!(transport.open(&rotating.map.nodes[0]).await, Err(TransportError::Untrusted { .. }))
    })
    .await;
    for traffic in traffic {
        traffic.more(200).await;
        traffic.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_change_nothing() {
    let rotating = Rotating::start();
    let cluster = rotating.connection_client();
    let traffic = Traffic::start(&cluster);
    traffic.more(20).await;
    fs::write(rotating.path("ca.pem"), "not a certificate").unwrap();
    fs::write(rotating.path("connection.key"), " \n").unwrap();
    fs::remove_file(rotating.path("node1.key")).unwrap();
    // A certificate without its key.
    let (certificate, _) = Authority::new().node(rotating.map.nodes[1].id);
    replace(&rotating.path("node2.pem"), &certificate);
    tokio::time::sleep(Duration::from_secs(5)).await;
    traffic.more(100).await;
    traffic.stop().await;
}
