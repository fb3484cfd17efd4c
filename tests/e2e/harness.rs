//! Starts and stops lazaret processes, talks to their gateways, makes content.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lazaret_node_client::Environment;
use lazaret_node_client::cluster::{Cluster, ClusterOptions, GetError};
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_node_client::quic::{Credentials, QuicTransport};
use lazaret_protocol::BlobName;
use reqwest::StatusCode;
use serde_json::Value;

/// How long anything may take before a test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs lazaret to its end.
pub fn lazaret(args: &[&str]) -> Output {
    command(args).output().expect("lazaret runs")
}

/// A lazaret command with nothing of this process's environment that it would look at.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
    command.args(args).env_remove("LAZARET_CLUSTER").env_remove("LAZARET_APIKEY").env("LAZARET_LOG", "warn");
    command
}

/// A lazaret process that serves. Killed when dropped.
pub struct Process {
    child: Child,
    /// What its ready line said, by key.
    pub ready: BTreeMap<String, String>,
    /// From its start to its ready line.
    pub ready_after: Duration,
}

impl Process {
    /// Starts one and waits for its ready line.
    pub fn start(args: &[&str]) -> Self {
        Self::try_start(args).unwrap_or_else(|stderr| panic!("lazaret {args:?} did not get ready: {stderr}"))
    }

    /// The same; what it wrote to stderr if it ended instead.
    pub fn try_start(args: &[&str]) -> Result<Self, String> {
        Self::try_start_command(command(args))
    }

    /// Starts a command that runs lazaret in the end, and waits for lazaret's ready line.
    pub fn try_start_command(mut command: Command) -> Result<Self, String> {
        let started = Instant::now();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("lazaret runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let Some(facts) = line.strip_prefix("ready ") else {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            child.wait().unwrap();
            return Err(said);
        };
        // Passed on, so that a failing test shows it; a full pipe would stop the process.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
        let ready = facts.split_whitespace().filter_map(|fact| fact.split_once('='));
        let ready = ready.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(Self { child, ready, ready_after: started.elapsed() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `lazaret up` on a directory.
pub struct Up {
    pub process: Process,
    pub data: PathBuf,
    pub gateway: Gateway,
}

impl Up {
    /// Starts it on a free port.
    pub fn start(data: &Path, more: &[&str]) -> Self {
        let mut args = vec!["up", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
        args.extend(more);
        let process = Process::start(&args);
        let gateway = Gateway::new(&process.ready["gateway"], &data.join("client.key"));
        Self { process, data: data.to_owned(), gateway }
    }

    /// The path of its cluster file.
    pub fn cluster_file(&self) -> PathBuf {
        self.data.join("cluster.yml")
    }
}

/// Gateway, three storage nodes and a worker, each a process of its own.
pub struct Processes {
    pub nodes: Vec<Process>,
    pub worker: Process,
    pub gateway_process: Process,
    pub gateway: Gateway,
}

impl Processes {
    /// Makes a cluster in `dir` and starts all of it.
    pub fn start(dir: &Path) -> Self {
        let addresses = free_addresses(3);
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let mut init = vec!["cluster", "init", dir.to_str().unwrap(), "--gateway-address", "127.0.0.1:0"];
        for address in &addresses {
            init.extend(["--node-address", address]);
        }
        let output = lazaret(&init);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let config = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let nodes =
            (1..=3).map(|n| Process::start(&["storage-node", "--config", &config(&format!("node{n}.yml"))])).collect();
        let gateway_process = Process::start(&["gateway", "--config", &config("gateway.yml")]);
        let worker = Process::start(&["scan-worker", "--config", &config("scan-worker.yml")]);
        let gateway = Gateway::new(&gateway_process.ready["gateway"], &dir.join("client.key"));
        Self { nodes, worker, gateway_process, gateway }
    }
}

/// A gateway over one storage node, each a process of its own, and no scan worker.
pub struct Unattended {
    _node: Process,
    pub gateway: Process,
}

impl Unattended {
    /// Makes a cluster in `dir` and starts both, after these lines of the gateway's configuration became others.
    pub fn start(dir: &Path, changes: &[(&str, &str)]) -> Self {
        let address = free_addresses(1)[0].to_string();
        let init = ["cluster", "init", dir.to_str().unwrap(), "--min-replica", "1", "--max-replica", "1"];
        let addresses = ["--gateway-address", "127.0.0.1:0", "--nodes", "1", "--node-address", &address];
        let output = lazaret(&[&init[..], &addresses[..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let config = dir.join("gateway.yml");
        let mut text = std::fs::read_to_string(&config).unwrap();
        for (line, other) in changes {
            assert!(text.contains(line), "{line} in {text}");
            text = text.replace(line, other);
        }
        std::fs::write(&config, text).unwrap();
        let node = Process::start(&["storage-node", "--config", dir.join("node1.yml").to_str().unwrap()]);
        let gateway = Process::start(&["gateway", "--config", config.to_str().unwrap()]);
        Self { _node: node, gateway }
    }
}

/// Loopback addresses that are free for QUIC at this moment.
pub fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let sockets: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
}

/// A gateway as its clients see it.
#[derive(Clone)]
pub struct Gateway {
    pub url: String,
    pub key: String,
    http: reqwest::Client,
}

impl Gateway {
    pub fn new(url: &str, key_file: &Path) -> Self {
        let key = std::fs::read_to_string(key_file).unwrap().trim().to_owned();
        Self { url: url.to_owned(), key, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    /// A request with the key.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).header("apikey", &self.key)
    }

    /// A request that must be answered with a document.
    pub async fn asked(&self, request: reqwest::RequestBuilder) -> Value {
        let response = request.send().await.unwrap();
        let status = response.status();
        let document = response.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{document}");
        document
    }

    /// POST /file; the answer's status and document.
    pub async fn post(&self, name: &str, body: impl Into<reqwest::Body>) -> reqwest::Result<(StatusCode, Value)> {
        self.post_with(name, body, &[]).await
    }

    /// The same with more headers.
    pub async fn post_with(
        &self,
        name: &str,
        body: impl Into<reqwest::Body>,
        headers: &[(&str, &str)],
    ) -> reqwest::Result<(StatusCode, Value)> {
        let mut request =
            self.http.post(format!("{}/file", self.url)).header("apikey", &self.key).header("filename", name);
        for (header, value) in headers {
            request = request.header(*header, *value);
        }
        let body = body.into();
        if body.as_bytes().is_some_and(<[u8]>::is_empty) {
            // The client leaves it out otherwise, which is another error.
            request = request.header("content-length", 0);
        }
        let response = request.body(body).send().await?;
        Ok((response.status(), response.json().await?))
    }

    /// Submits a file that must be taken; its data_id.
    pub async fn submit(&self, name: &str, body: impl Into<reqwest::Body>) -> String {
        let (status, answer) = self.post(name, body).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["data_id"].as_str().unwrap().to_owned()
    }

    /// GET /file/{data_id}.
    pub async fn result(&self, data_id: &str) -> reqwest::Result<Value> {
        let request = self.http.get(format!("{}/file/{data_id}?size=1000", self.url)).header("apikey", &self.key);
        request.send().await?.error_for_status()?.json().await
    }

    /// Polls until the result is whole.
    pub async fn finished(&self, data_id: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let document = self.result(data_id).await.unwrap();
            if document["scan_results"]["progress_percentage"] == 100 {
                return document;
            }
            assert!(Instant::now() < deadline, "no result: {document}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Submits and polls.
    pub async fn scan(&self, name: &str, body: impl Into<reqwest::Body>) -> Value {
        let data_id = self.submit(name, body).await;
        self.finished(&data_id).await
    }
}

/// A document's code, and whether the file is allowed.
pub fn verdict(document: &Value) -> (u64, bool) {
    let code = document["scan_results"]["scan_all_result_i"].as_u64().expect("a result code");
    (code, document["process_info"]["result"] == "Allowed")
}

/// The cluster over QUIC, as `cluster.yml` says.
pub fn cluster(file: &Path) -> Cluster {
    let file = ClusterFile::load(file).unwrap();
    let credentials = Credentials::Connection(file.read_connection_key().unwrap());
    let transport = QuicTransport::new(&file.read_ca().unwrap(), file.map.cluster, credentials).unwrap();
    Cluster::new(file.map, Arc::new(transport), Environment::system(), ClusterOptions::default()).unwrap()
}

/// A whole blob.
pub async fn read(cluster: &Cluster, name: BlobName) -> Result<Vec<u8>, GetError> {
    let mut download = cluster.get(name, None).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = download.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Bytes that no compressor shortens and that differ for every seed.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The EICAR test file. It is written backwards, so that neither this source nor the test program holds it.
pub fn eicar() -> Vec<u8> {
    br"*H+H$!ELIF-TSET-SURIVITNA-DRADNATS-RACIE$}7)CC7)^P(45XZP\4[PA@%P!O5X".iter().rev().copied().collect()
}

/// Every file below a directory.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.unwrap());
    entries.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

/// A line of `/proc/<pid>/status` in MiB.
pub fn memory_mib(pid: u32, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|found| found.strip_prefix(line)).and_then(|rest| rest.split_whitespace().next());
    kib.map_or(0, |kib| kib.parse::<u64>().unwrap() / 1024)
}
