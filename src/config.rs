//! Configuration of the components: one struct each, read from its YAML file, then from the environment
//! (`LAZARET_GATEWAY_LISTEN=...`). Unknown keys are refused. Relative paths are meant from the file's directory.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use figment::Figment;
use figment::providers::{Env, Serialized};
use lazaret_digests::Selection;
use lazaret_protocol::limits::MIB;
use lazaret_protocol::{NodeEntry, NodeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A component's configuration.
pub trait Config: Serialize + DeserializeOwned {
    /// What the names of its environment variables begin with.
    const ENV_PREFIX: &'static str;

    /// The paths in it, so that relative ones can be taken from the file's directory.
    fn paths(&mut self) -> Vec<&mut PathBuf>;

    /// Checks what types alone can't.
    fn check(&self) -> anyhow::Result<()>;
}

/// One storage node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageNodeConfig {
    /// Which node of the map this is.
    pub node: NodeId,
    /// The cluster's file.
    pub cluster: PathBuf,
    /// Where the node keeps its segments and index.
    pub data: PathBuf,
    /// The node's certificate (PEM).
    pub certificate: PathBuf,
    /// The certificate's key (PEM).
    pub private_key: PathBuf,
    /// Where to listen; the address in the map when absent.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// A segment that reached this length is sealed.
    #[serde(default = "default_segment_bytes_max")]
    pub segment_bytes_max: u64,
    /// With less free space than this, writes are refused; reads go on.
    #[serde(default = "default_reserve_bytes")]
    pub reserve_bytes: u64,
}

/// 512 MiB: few files, and still quick to verify or rebuild one.
pub const fn default_segment_bytes_max() -> u64 {
    512 * MIB
}

/// 256 MiB: what open segments and the index may still need when writes are already refused.
pub const fn default_reserve_bytes() -> u64 {
    256 * MIB
}

impl StorageNodeConfig {
    /// The configuration that `cluster init` writes for a node.
    pub fn of_node(node: &NodeEntry) -> Self {
        Self {
            node: node.id,
            cluster: crate::init::CLUSTER_FILE.into(),
            data: node.name.clone().into(),
            certificate: format!("{}.pem", node.name).into(),
            private_key: format!("{}.key", node.name).into(),
            listen: None,
            segment_bytes_max: default_segment_bytes_max(),
            reserve_bytes: default_reserve_bytes(),
        }
    }
}

impl Config for StorageNodeConfig {
    const ENV_PREFIX: &'static str = "LAZARET_STORAGE_NODE_";

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.cluster, &mut self.data, &mut self.certificate, &mut self.private_key]
    }

    fn check(&self) -> anyhow::Result<()> {
        // Below this a segment would hold less than one streamed extent and its record header.
        const SEGMENT_BYTES_MIN: u64 = 8 * MIB;
        if self.segment_bytes_max < SEGMENT_BYTES_MIN {
            bail!("segment_bytes_max must be at least {SEGMENT_BYTES_MIN}, got {}", self.segment_bytes_max);
        }
        Ok(())
    }
}

/// One gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Where to listen for HTTP.
    pub listen: SocketAddr,
    /// Plain HTTP shows keys and files to whoever is on the way, so it leaves the loopback interface only on demand.
    pub plain_http_off_loopback: bool,
    /// The cluster's file.
    pub cluster: PathBuf,
    /// The SQLite file of analyses, tasks and progress, shared with the workers of this host.
    pub results: PathBuf,
    /// The SQLite file of API keys.
    pub identity: PathBuf,
    /// Where the first administrator's key is written.
    pub admin_key_file: PathBuf,
    /// Where the first submitter's key is written.
    pub client_key_file: PathBuf,
    /// Rules (YAML); the built-in `default` when absent.
    pub rules: Option<PathBuf>,
    /// Bytes of uploads in memory, over all uploads; past it 503.
    pub inflight_bytes_max: u64,
    /// Uploads at once; past it 503.
    pub inflight_uploads_max: usize,
    /// The digests that are computed of uploads (`md5: false` leaves one out). BLAKE3, a blob's name, always is.
    pub digests: Selection,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8899)),
            plain_http_off_loopback: false,
            cluster: crate::init::CLUSTER_FILE.into(),
            results: "results.db".into(),
            identity: "identity.db".into(),
            admin_key_file: "admin.key".into(),
            client_key_file: "client.key".into(),
            rules: None,
            inflight_bytes_max: 256 * MIB,
            inflight_uploads_max: 256,
            digests: Selection::ALL,
        }
    }
}

impl Config for GatewayConfig {
    const ENV_PREFIX: &'static str = "LAZARET_GATEWAY_";

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let mut paths = vec![
            &mut self.cluster,
            &mut self.results,
            &mut self.identity,
            &mut self.admin_key_file,
            &mut self.client_key_file,
        ];
        paths.extend(&mut self.rules);
        paths
    }

    fn check(&self) -> anyhow::Result<()> {
        if !self.listen.ip().is_loopback() && !self.plain_http_off_loopback {
            bail!(
                "listen {} is not loopback: plain HTTP leaves this machine only with plain_http_off_loopback: true",
                self.listen
            );
        }
        if self.inflight_bytes_max < 16 * MIB || self.inflight_uploads_max == 0 {
            bail!("inflight_bytes_max must be at least {} and inflight_uploads_max at least 1", 16 * MIB);
        }
        Ok(())
    }
}

/// One scan worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScanWorkerConfig {
    /// What the worker is called in leases and logs.
    pub name: String,
    /// The cluster's file.
    pub cluster: PathBuf,
    /// The SQLite file of analyses, tasks and progress, shared with the gateways of this host.
    pub results: PathBuf,
    /// The cluster's secret; nested ids are keyed with it.
    pub secret: PathBuf,
    /// Submitted files scanned at once; 0 takes twice the cores, so that fetching and scanning overlap.
    pub concurrent_files: usize,
    /// Threads that extract and scan; 0 takes as many as there are cores.
    pub scan_threads: usize,
    /// A file up to this length is scanned in memory as a whole; a longer one in windows.
    pub sample_memory_max_bytes: u64,
    /// Memory of all samples together.
    pub sample_budget_bytes: u64,
    /// A task whose worker says nothing for so long is given to another.
    pub lease_seconds: u64,
    /// The digests that are computed of nested files; all four off, none is.
    pub digests: Selection,
}

impl Default for ScanWorkerConfig {
    fn default() -> Self {
        Self {
            name: "worker1".into(),
            cluster: crate::init::CLUSTER_FILE.into(),
            results: "results.db".into(),
            secret: crate::init::SECRET_FILE.into(),
            concurrent_files: 0,
            scan_threads: 0,
            sample_memory_max_bytes: 256 * MIB,
            sample_budget_bytes: 512 * MIB,
            lease_seconds: 30,
            digests: Selection::ALL,
        }
    }
}

impl Config for ScanWorkerConfig {
    const ENV_PREFIX: &'static str = "LAZARET_SCAN_WORKER_";

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.cluster, &mut self.results, &mut self.secret]
    }

    fn check(&self) -> anyhow::Result<()> {
        // Each thread takes a stack and each file a lease and buffers; more help nobody on any machine of today.
        const THREADS_MAX: usize = 1024;
        if self.scan_threads > THREADS_MAX || self.concurrent_files > THREADS_MAX {
            bail!("scan_threads and concurrent_files must be at most {THREADS_MAX}");
        }
        if !(2..=3600).contains(&self.lease_seconds) {
            bail!("lease_seconds must be 2 to 3600, got {}", self.lease_seconds);
        }
        if self.sample_memory_max_bytes < MIB || self.sample_budget_bytes < self.sample_memory_max_bytes {
            bail!("sample_memory_max_bytes must be at least {MIB} and sample_budget_bytes no less than it");
        }
        Ok(())
    }
}

/// Reads, merges and checks a component's configuration.
pub fn load<C: Config>(path: &Path) -> anyhow::Result<C> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the configuration {}", path.display()))?;
    let refused = |reason: String| anyhow!("configuration {}: {reason}", path.display());
    // First as the struct itself, since only that tells the line of an unknown or malformed key.
    serde_saphyr::from_str::<C>(&text).map_err(|error| refused(first_line(&error.to_string())))?;
    let file: figment::value::Value =
        serde_saphyr::from_str(&text).map_err(|error| refused(first_line(&error.to_string())))?;
    let mut config: C = Figment::new()
        .merge(Serialized::defaults(file))
        .merge(Env::prefixed(C::ENV_PREFIX))
        .extract()
        .map_err(|error| refused(first_line(&error.to_string())))?;
    config.check().map_err(|error| refused(error.to_string()))?;
    let base = path.parent().unwrap_or(Path::new("."));
    for path in config.paths() {
        *path = base.join(&*path);
    }
    Ok(config)
}

/// The configuration as the YAML that [`load`] reads.
pub fn to_yaml<C: Config>(config: &C) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(config)?)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
