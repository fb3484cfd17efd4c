//! A running cluster administered from the command line: settings, nodes that come and go, deletion and holds, and keys and
//! certificates replaced under uploads.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_node_client::cluster::{Cluster, GetError};
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_node_client::quic::{Credentials, QuicTransport};
use lazaret_node_client::transport::{Transport, TransportError};
use lazaret_protocol::BlobName;
use serde_json::Value;

use crate::harness::{Process, Processes, cluster, content, free_addresses, lazaret, read};

/// How long repair may take for a handful of blobs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster of processes in a directory, as an administrator sees it.
struct Administered {
    directory: tempfile::TempDir,
    processes: Processes,
}

impl Administered {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let processes = Processes::start(directory.path());
        Self { directory, processes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn cluster_file(&self) -> PathBuf {
        self.path("cluster.yml")
    }

    fn run(&self, args: &[&str]) -> Output {
        let file = self.cluster_file();
        let mut all = args.to_vec();
        all.extend(["--cluster", file.to_str().unwrap()]);
        lazaret(&all)
    }

    /// What a command says that must succeed.
    fn says(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The one line on stderr of a command that must fail with exit code 2.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}{stderr}", text(&output.stdout));
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        stderr
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.says(args)).unwrap()
    }

    fn cluster(&self) -> Cluster {
        cluster(&self.cluster_file())
    }

    /// What the node of that name says of itself.
    fn status_of(&self, node: &str) -> Value {
        let status = self.json(&["cluster", "status", "--json"]);
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().find(|entry| entry["node"]["name"] == node).unwrap_or_else(|| panic!("{status}")).clone()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Polls until `done` says so.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

async fn put_some(cluster: &Cluster, seeds: std::ops::Range<u64>) -> Vec<(BlobName, Vec<u8>)> {
    let mut blobs = Vec::new();
    for seed in seeds {
        // One in ten is streamed, and has a locator.
        let length = if seed % 10 == 0 { 5_000_000 } else { 1_000 + seed as usize };
        let bytes = content(seed, length);
        let stored = cluster.put(Bytes::from(bytes.clone())).await.unwrap();
        blobs.push((stored.name, bytes));
    }
    cluster.settle().await;
    blobs
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_changed_by_command_and_every_node_follows() {
    let admin = Administered::start();
    let said = admin.says(&["cluster", "set", "--cleanuprange", "48"]);
    assert!(said.contains("epoch 2 is in force: 3 of 3 nodes"), "{said}");
    assert_eq!(ClusterFile::load(&admin.cluster_file()).unwrap().map.cleanuprange, 48);
    let map = admin.json(&["cluster", "map", "--json"]);
    assert_eq!((map["epoch"].as_u64(), map["cleanuprange"].as_u64()), (Some(2), Some(48)));
    let said = admin.says(&["cluster", "set", "--cleanuprange", "48"]);
    assert!(said.contains("nothing to change"), "{said}");

    let said = admin.says(&["cluster", "set", "--cleanuprange", "1", "--dry-run"]);
    assert!(said.contains("nothing is changed") && said.contains("node3: 0 copies would expire"), "{said}");
    admin.says(&["cluster", "weight", "node2", "50"]);
    admin.says(&["cluster", "set", "--min-replica", "1", "--storage-type", "none"]);
    let status = admin.json(&["cluster", "status", "--json"]);
    assert_eq!(status["epoch"], 4, "{status}");
    assert_eq!((&status["min_replica"], &status["storage_type"]), (&Value::from(1), &Value::from("none")));
    for node in status["nodes"].as_array().unwrap() {
        assert_eq!((&node["reachable"], &node["report"]["epoch"]), (&Value::from(true), &Value::from(4)), "{node}");
        assert!(node["clock_offset_ms"].as_i64().unwrap().abs() < 5_000, "{node}");
        assert!(!node["report"]["disks"].as_array().unwrap().is_empty(), "{node}");
        assert_eq!(node["status"]["full"], false, "{node}");
    }
    assert_eq!(status["nodes"][1]["node"]["weight"], 50, "{status}");
    let table = admin.says(&["cluster", "status"]);
    assert!(table.contains("node3") && table.contains("epoch 4, replicas 1 to 3, 3 of 3 nodes answer"), "{table}");
    assert!(admin.says(&["cluster", "map"]).contains("storage type none"));
    for begun in [&["cluster", "repair"][..], &["cluster", "scrub", "--now"]] {
        assert_eq!(admin.says(begun).lines().count(), 3, "{begun:?}");
    }

    // What takes effect only if somebody insists, and what never does.
    let refused = admin.fails(&["cluster", "drain", "node1"]);
    assert!(refused.contains("max_replica") && refused.contains("--force"), "{refused}");
    admin.says(&["cluster", "set", "--min-replica", "2"]);
    admin.says(&["cluster", "drain", "node1", "--force"]);
    let refused = admin.fails(&["cluster", "drain", "node2", "--force"]);
    assert!(refused.contains("min_replica"), "{refused}");
    let refused = admin.fails(&["cluster", "set", "--min-replica", "3"]);
    assert!(refused.contains("2 nodes take writes"), "{refused}");
    admin.says(&["cluster", "drain", "node1", "--undo"]);
    for (args, says) in [
        (&["cluster", "drain", "node9"][..], "no node node9"),
        (&["cluster", "remove", "node1"], "not drained"),
        (&["cluster", "set", "--min-replica", "4"], "min_replica 4"),
        (&["cluster", "set"], "--min-replica"),
        (&["cluster", "weight", "node1", "0"], "1..=1000000"),
        (&["cluster", "add", "nowhere.yml"], "neither an address"),
        (&["cluster", "add", "127.0.0.1:0"], "no port"),
        (&["cluster", "rotate", "connection-key", "--finish"], "no rotation"),
    ] {
        let refused = admin.fails(args);
        assert!(refused.contains(says), "{args:?}: {refused}");
    }

    // Without a majority nothing is changed; with one, the node that was away learns of it.
    let mut admin = admin;
    admin.processes.nodes[2].kill();
    admin.says(&["cluster", "set", "--cleanuprange", "72"]);
    admin.processes.nodes[1].kill();
    let refused = admin.fails(&["cluster", "set", "--cleanuprange", "96"]);
    assert!(refused.contains("1 of 3 nodes answer") && refused.contains("node2"), "{refused}");
    for node in [1, 2] {
        let config = admin.path(&format!("node{}.yml", node + 1));
        admin.processes.nodes[node] = Process::start(&["storage-node", "--config", config.to_str().unwrap()]);
    }
    let epoch = admin.json(&["cluster", "map", "--json"])["epoch"].clone();
    until("a node never learns of the map", || admin.status_of("node3")["report"]["epoch"] == epoch);
    assert_eq!(admin.json(&["cluster", "map", "--json"])["cleanuprange"], 72);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_and_another_is_drained_and_struck_while_everything_stays_readable() {
    let mut admin = Administered::start();
    let client = admin.cluster();
    let blobs = put_some(&client, 0..30).await;
    let address = free_addresses(1)[0].to_string();
    let said = admin.says(&["cluster", "add", &address]);
    assert!(said.contains("node4.yml") && said.contains("epoch 2 is in force"), "{said}");
    let config = admin.path("node4.yml");
    admin.processes.nodes.push(Process::start(&["storage-node", "--config", config.to_str().unwrap()]));
    assert!(admin.fails(&["cluster", "add", &address]).contains("in the map already"));

    admin.says(&["cluster", "drain", "node1"]);
    let refused = admin.fails(&["cluster", "remove", "node1"]);
    assert!(refused.contains("still holds"), "{refused}");
    let late = put_some(&client, 30..40).await;
    admin.says(&["cluster", "repair"]);
    let blobs_on = |admin: &Administered, node: &str| admin.status_of(node)["status"]["blobs"].as_u64().unwrap();
    until("the drained node never gets empty", || blobs_on(&admin, "node1") == 0);
    assert!(blobs_on(&admin, "node4") > 0);
    admin.says(&["cluster", "remove", "node1"]);
    admin.processes.nodes[0].kill();
    let status = admin.json(&["cluster", "status", "--json"]);
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status}");
    for (name, bytes) in blobs.iter().chain(&late) {
        assert!(read(&client, *name).await.unwrap() == *bytes);
    }
    // By the map that the client began with, node1 would have to be asked.
    let absent = read(&client, BlobName::of(b"absent")).await;
    assert!(matches!(absent, Err(GetError::NotFound { .. })));
    assert_eq!(client.map().epoch, 4);
    let submitted = admin.processes.gateway.scan("after.txt", "after all of it").await;
    assert_eq!(submitted["process_info"]["result"], "Allowed", "{submitted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_deleted_and_held_by_name() {
    let mut admin = Administered::start();
    let client = admin.cluster();
    let blobs = put_some(&client, 1..6).await;
    let name = |at: usize| blobs[at].0.to_string();
    let said = admin.says(&["blob", "hold", &name(0)]);
    assert!(said.contains("held on 3 nodes"), "{said}");
    admin.says(&["blob", "release", &name(0)]);
    let said = admin.says(&["blob", "rm", &name(1), &name(2)]);
    assert_eq!(said.lines().filter(|line| line.contains("deleted on 3 nodes")).count(), 2, "{said}");
    for at in [1, 2] {
        assert!(matches!(read(&client, blobs[at].0).await, Err(GetError::NotFound { .. })));
        assert!(admin.fails(&["blob", "get", &name(at)]).contains("no blob"));
    }
    // What is gone, and what never was, is said to be unknown, whatever else is named with it.
    for unknown in [name(1), BlobName::of(b"never").to_string()] {
        for decision in ["rm", "hold"] {
            let said = admin.fails(&["blob", decision, &unknown]);
            assert!(said.contains(&unknown) && said.contains("no node has such a blob"), "{said}");
        }
    }
    // What is put again lives.
    let again = client.put(Bytes::from(blobs[1].1.clone())).await.unwrap();
    assert_eq!(read(&client, again.name).await.unwrap(), blobs[1].1);

    admin.processes.nodes[2].kill();
    let partly = admin.fails(&["blob", "rm", &name(3)]);
    assert!(partly.contains("2 of 3 nodes") && partly.contains("node3") && partly.contains("repair"), "{partly}");
    assert!(read(&client, blobs[3].0).await.is_err());
    let config = admin.path("node3.yml");
    admin.processes.nodes[2] = Process::start(&["storage-node", "--config", config.to_str().unwrap()]);
    // The node that was away is told by the others.
    admin.says(&["cluster", "repair"]);
    until("the deletion never reaches the node that was away", || {
        let output = admin.run(&["blob", "get", &name(3)]);
        output.status.code() == Some(2) && text(&output.stderr).contains("no blob")
    });
    assert_eq!(read(&client, blobs[4].0).await.unwrap(), blobs[4].1);

    // Who has only the connection key may do none of it.
    let mut file = ClusterFile::load(&admin.cluster_file()).unwrap();
    file.admin_key = None;
    let clients = admin.path("clients.yml");
    std::fs::write(&clients, file.to_yaml().unwrap()).unwrap();
    for args in [&["blob", "rm", &name(4)][..], &["cluster", "drain", "node1", "--force"], &["cluster", "repair"]] {
        let mut args = args.to_vec();
        args.extend(["--cluster", clients.to_str().unwrap()]);
        let output = lazaret(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("no storage admin key"), "{}", text(&output.stderr));
    }
}

/// Uploads over the gateway and straight to the nodes without pause.
struct Traffic {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Traffic {
    fn start(admin: &Administered) -> Self {
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..3_u64).map(|worker| {
            let (stop, requests) = (Arc::clone(&stop), Arc::clone(&requests));
            let gateway = admin.processes.gateway.clone();
            tokio::spawn(async move {
                for i in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // One in twenty is streamed.
                    let length = if i % 20 == 0 { 9_000_000 } else { 40_000 };
                    gateway.submit("upload.bin", content(worker << 32 | i, length)).await;
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, requests, tasks }
    }

    /// Waits until so many requests more were answered.
    async fn more(&self, requests: u64) {
        let until = self.requests.load(Ordering::Relaxed) + requests;
        let begun = Instant::now();
        while self.requests.load(Ordering::Relaxed) < until {
            assert!(begun.elapsed() < PATIENCE, "the traffic has stopped");
            assert!(self.tasks.iter().all(|task| !task.is_finished()), "a request failed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// Why a client with these credentials and the CA of that file is not let in by the first node.
async fn refusal(admin: &Administered, ca: &Path, credentials: Credentials) -> Option<TransportError> {
    let map = ClusterFile::load(&admin.cluster_file()).unwrap().map;
    let transport = QuicTransport::new(&std::fs::read_to_string(ca).unwrap(), map.cluster, credentials).unwrap();
    transport.open(&map.nodes[0]).await.err()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_certificates_are_replaced_under_uploads() {
    let admin = Administered::start();
    let key = |name: &str| std::fs::read_to_string(admin.path(name)).unwrap().trim().to_owned();
    let (first_key, first_admin_key) = (key("connection.key"), key("storage-admin.key"));
    let (ca, first_ca) = (admin.path("ca.pem"), admin.path("first-ca.pem"));
    std::fs::copy(&ca, &first_ca).unwrap();
    let traffic = Traffic::start(&admin);
    traffic.more(30).await;

    for (what, file, credentials) in [
        ("connection-key", "connection.key", Credentials::Connection(first_key.clone())),
        ("admin-key", "storage-admin.key", Credentials::Admin(first_admin_key)),
    ] {
        let said = admin.says(&["cluster", "rotate", what]);
        assert!(said.contains("--finish"), "{said}");
        traffic.more(30).await;
        assert_eq!(refusal(&admin, &ca, credentials.clone()).await, None, "{what}");
        assert!(admin.fails(&["cluster", "rotate", what]).contains("finish the last rotation first"));
        admin.says(&["cluster", "rotate", what, "--finish"]);
        assert!(!admin.path(&format!("{file}.previous")).exists());
        // A node notices that the file is gone a little later.
        let begun = Instant::now();
        let refused = loop {
            let refused = refusal(&admin, &ca, credentials.clone()).await;
            if refused.is_some() || begun.elapsed() > PATIENCE {
                break refused;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(matches!(refused, Some(TransportError::NotAllowed { .. })), "{what}: {refused:?}");
        traffic.more(30).await;
    }
    admin.says(&["cluster", "set", "--cleanuprange", "24"]);

    let certificate = key("node2.pem");
    let said = admin.says(&["cluster", "rotate", "certificates"]);
    assert!(said.contains("node2: new certificate") && certificate != key("node2.pem"), "{said}");
    traffic.more(30).await;
    admin.says(&["cluster", "rotate", "certificates", "--new-ca"]);
    traffic.more(30).await;
    assert!(admin.fails(&["cluster", "rotate", "certificates", "--new-ca"]).contains("several CAs"));
    admin.says(&["cluster", "rotate", "certificates", "--finish"]);
    traffic.more(60).await;
    let now = || Credentials::Connection(key("connection.key"));
    assert_eq!(refusal(&admin, &ca, now()).await, None);
    let refused = refusal(&admin, &first_ca, now()).await;
    assert!(matches!(refused, Some(TransportError::Untrusted { .. })), "{refused:?}");
    traffic.stop().await;

    // A node made now is of the new CA, and one that starts anew goes by all of it.
    let address = free_addresses(1)[0].to_string();
    admin.says(&["cluster", "add", &address]);
    let config = admin.path("node4.yml");
    let _fourth = Process::start(&["storage-node", "--config", config.to_str().unwrap()]);
    let status = admin.status_of("node4");
    assert_eq!(status["reachable"], true, "{status}");
}
