//! Configuration of the components: one struct each, read from its YAML file, then from the environment
//! (`LAZARET_GATEWAY_LISTEN=...`). Unknown keys are refused. Relative paths are meant from the file's directory.

mod accounts;
mod engines;
mod load;
mod otlp;
mod up;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use figment::Figment;
use figment::providers::{Env, Serialized};
use lazaret_digests::Selection;
use lazaret_gateway::TlsFiles;
use lazaret_identity::IdentityOptions;
use lazaret_protocol::limits::MIB;
use lazaret_protocol::{NodeEntry, NodeId};
use lazaret_storage_node::NodeOptions;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::engines::EnginesConfig;
pub use self::load::RateLimitsConfig;
pub use self::otlp::OtlpConfig;
pub use self::up::UpConfig;
use crate::logging::LogConfig;
use accounts::{LockoutConfig, PasswordsConfig, SessionsConfig};

/// A component's configuration.
pub trait Config: Serialize + DeserializeOwned {
    /// What the names of its environment variables begin with.
    const ENV_PREFIX: &'static str;

    /// The paths in it, so that relative ones can be taken from the file's directory.
    fn paths(&mut self) -> Vec<&mut PathBuf>;

    /// Where log lines go.
    fn log(&mut self) -> Option<&mut LogConfig> {
        None
    }

    /// Where traces go.
    fn otlp(&self) -> Option<&OtlpConfig> {
        None
    }

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
    /// Where the node keeps its segments and index. Made when it is not there.
    pub data: PathBuf,
    /// More disks, each a directory with segments and an index of its own. They must be there: a mount point that is not
    /// counts as a disk out of use, and the node goes on with the others. Blobs are spread over `data` and these alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<PathBuf>,
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
    /// Where `GET /metrics` is answered, in Prometheus' text format; nowhere when absent.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// What the node does by itself.
    #[serde(default)]
    pub background: BackgroundConfig,
    /// Where log lines go.
    #[serde(default)]
    pub log: LogConfig,
}

/// What a storage node does by itself, and how hard it works at it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackgroundConfig {
    /// How often the other nodes are asked whether they live.
    pub ping_milliseconds: u64,
    /// How long a node may stay silent before its share of the copies is made elsewhere: longer than a restart takes.
    pub lost_after_seconds: u64,
    /// How long after a comparison with the other nodes the next one begins, if nothing asks for one sooner.
    pub repair_interval_seconds: u64,
    /// Copies that are made at once while no client wants anything of the node; one at a time, with rests, while some do.
    pub repair_concurrency: usize,
    /// How often is looked for what has expired.
    pub retention_interval_seconds: u64,
    /// How fast a scrub reads.
    pub scrub_bytes_per_second: u64,
    /// How long after a scrub the next one begins.
    pub scrub_interval_hours: u64,
    /// How often is looked for segments worth compacting.
    pub compact_interval_seconds: u64,
    /// A segment is compacted once so much of it (0 to 1) is dead.
    pub compact_min_dead_share: f64,
}

impl Default for BackgroundConfig {
    fn default() -> Self {
        let options = NodeOptions::default();
        Self {
            ping_milliseconds: options.ping_interval.as_millis() as u64,
            lost_after_seconds: options.lost_after.as_secs(),
            repair_interval_seconds: options.repair_interval.as_secs(),
            repair_concurrency: options.repair_concurrency,
            retention_interval_seconds: options.retention_interval.as_secs(),
            scrub_bytes_per_second: options.scrub_bytes_per_second,
            scrub_interval_hours: options.scrub_interval.as_secs() / 3600,
            compact_interval_seconds: options.compact_interval.as_secs(),
            compact_min_dead_share: options.compact_min_dead_share,
        }
    }
}

impl BackgroundConfig {
    /// The same in the node's own words.
    pub fn options(&self) -> NodeOptions {
        NodeOptions {
            ping_interval: Duration::from_millis(self.ping_milliseconds),
            lost_after: Duration::from_secs(self.lost_after_seconds),
            repair_interval: Duration::from_secs(self.repair_interval_seconds),
            repair_concurrency: self.repair_concurrency,
            retention_interval: Duration::from_secs(self.retention_interval_seconds),
            scrub_bytes_per_second: self.scrub_bytes_per_second,
            scrub_interval: Duration::from_secs(self.scrub_interval_hours.saturating_mul(3600)),
            compact_interval: Duration::from_secs(self.compact_interval_seconds),
            compact_min_dead_share: self.compact_min_dead_share,
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        const CONCURRENCY_MAX: usize = 256;
        let intervals = [
            ("ping_milliseconds", self.ping_milliseconds),
            ("lost_after_seconds", self.lost_after_seconds),
            ("repair_interval_seconds", self.repair_interval_seconds),
            ("retention_interval_seconds", self.retention_interval_seconds),
            ("scrub_bytes_per_second", self.scrub_bytes_per_second),
            ("scrub_interval_hours", self.scrub_interval_hours),
            ("compact_interval_seconds", self.compact_interval_seconds),
        ];
        if let Some((name, _)) = intervals.iter().find(|(_, value)| *value == 0) {
            bail!("background.{name} must be at least 1");
        }
        if !(1..=CONCURRENCY_MAX).contains(&self.repair_concurrency) {
            bail!("background.repair_concurrency must be 1 to {CONCURRENCY_MAX}, got {}", self.repair_concurrency);
        }
        if !(0.05..=1.0).contains(&self.compact_min_dead_share) {
            bail!("background.compact_min_dead_share must be 0.05 to 1, got {}", self.compact_min_dead_share);
        }
        Ok(())
    }
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
            disks: Vec::new(),
            certificate: format!("{}.pem", node.name).into(),
            private_key: format!("{}.key", node.name).into(),
            listen: None,
            segment_bytes_max: default_segment_bytes_max(),
            reserve_bytes: default_reserve_bytes(),
            metrics: None,
            background: BackgroundConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl StorageNodeConfig {
    /// All disks, and of each whether it must be there.
    pub fn disks(&self) -> impl Iterator<Item = (PathBuf, bool)> + '_ {
        std::iter::once((self.data.clone(), false)).chain(self.disks.iter().map(|disk| (disk.clone(), true)))
    }
}

impl Config for StorageNodeConfig {
    const ENV_PREFIX: &'static str = "LAZARET_STORAGE_NODE_";

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let mut paths = vec![&mut self.cluster, &mut self.data, &mut self.certificate, &mut self.private_key];
        paths.extend(&mut self.disks);
        paths
    }

    fn log(&mut self) -> Option<&mut LogConfig> {
        Some(&mut self.log)
    }

    fn check(&self) -> anyhow::Result<()> {
        // Below this a segment would hold less than one streamed extent and its record header.
        const SEGMENT_BYTES_MIN: u64 = 8 * MIB;
        if self.segment_bytes_max < SEGMENT_BYTES_MIN {
            bail!("segment_bytes_max must be at least {SEGMENT_BYTES_MIN}, got {}", self.segment_bytes_max);
        }
        // Every read asks every disk's index.
        const DISKS_MAX: usize = 64;
        if self.disks.len() >= DISKS_MAX {
            bail!("a node has at most {DISKS_MAX} disks, got {}", self.disks.len() + 1);
        }
        let mut all: Vec<&PathBuf> = self.disks.iter().chain([&self.data]).collect();
        all.sort_unstable();
        if let Some([twin, _]) = all.windows(2).find_map(|pair| <[_; 2]>::try_from(pair).ok().filter(|[a, b]| a == b)) {
            bail!("disk {} is given twice", twin.display());
        }
        self.log.check()?;
        self.background.check()
    }
}

/// Whom a gateway fetches files from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DownloadsConfig {
    /// Hosts: `files.example`, `files.example:8443`, `*.example`. None switches it off.
    pub hosts: Vec<String>,
    /// Whether addresses may be asked that are not public: loopback, private, link-local.
    pub private_addresses: bool,
    /// The longest file.
    pub bytes_max: u64,
    /// How long one may take.
    pub seconds_max: u64,
}

impl Default for DownloadsConfig {
    fn default() -> Self {
        Self { hosts: Vec::new(), private_addresses: false, bytes_max: 4096 * MIB, seconds_max: 300 }
    }
}

/// Whom a gateway tells of finished analyses.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CallbacksConfig {
    /// Hosts, as for `downloads`. None switches it off.
    pub hosts: Vec<String>,
    /// Whether addresses may be asked that are not public: loopback, private, link-local.
    pub private_addresses: bool,
    /// How long an answer may take.
    pub seconds_max: u64,
}

impl Default for CallbacksConfig {
    fn default() -> Self {
        Self { hosts: Vec::new(), private_addresses: false, seconds_max: 30 }
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
    /// The certificate (PEM, with those up to the authority's) and its key under which HTTPS is spoken; plain HTTP when absent.
    /// Files that are replaced are taken over within seconds.
    pub tls: Option<TlsFiles>,
    /// Proxies that are believed whom they speak for (`X-Forwarded-For`).
    pub trusted_proxies: Vec<IpAddr>,
    /// The cluster's file.
    pub cluster: PathBuf,
    /// The SQLite file of analyses, tasks and progress, shared with the workers of this host.
    pub results: PathBuf,
    /// The SQLite file of users, keys and sessions, shared with the gateways of this host.
    pub identity: PathBuf,
    /// Where the first administrator's key is written.
    pub admin_key_file: PathBuf,
    /// Where the first submitter's key is written.
    pub client_key_file: PathBuf,
    /// The cluster's secret, as the workers have it; archive passwords are sealed with it.
    pub secret: PathBuf,
    /// The key and certificate (PEM) that sign the results of batches. Made on the first start.
    pub signing_key: PathBuf,
    /// Whom files may be fetched from (`downloadfrom`).
    pub downloads: DownloadsConfig,
    /// Whom finished analyses may be told to (`callbackurl`).
    pub callbacks: CallbacksConfig,
    /// The key (32 characters or more) that signs callbacks. Made when they are switched on.
    pub callback_key: PathBuf,
    /// How many hours finished analyses are kept, with all that was found in them; 0 keeps them for good.
    pub history_hours: u64,
    /// Whether whoever has no key may submit files, and read their results by id.
    pub anonymous: bool,
    /// How long sessions live and what they are bound to.
    pub sessions: SessionsConfig,
    /// What wrong passwords lead to.
    pub lockout: LockoutConfig,
    /// What new passwords must be like.
    pub passwords: PasswordsConfig,
    /// Rules (YAML); the built-in `default` when absent.
    pub rules: Option<PathBuf>,
    /// Bytes of uploads in memory, over all uploads; past it 503.
    pub inflight_bytes_max: u64,
    /// Uploads at once; past it 503. Keys share both fairly.
    pub inflight_uploads_max: usize,
    /// Submissions that wait for workers; past it 503. Users share it fairly. 0: any number.
    pub queue_max: u64,
    /// How fast one key may submit; past it 503.
    pub rate_limits: RateLimitsConfig,
    /// Connections at once; further ones wait.
    pub connections_max: usize,
    /// How long a client may take to send a request's header, and keep a connection open without a request.
    pub header_read_seconds: u64,
    /// How long an upload may go without a byte.
    pub body_idle_seconds: u64,
    /// How long uploads in flight may go on once the gateway was told to stop.
    pub shutdown_seconds: u64,
    /// The digests that are computed of uploads (`md5: false` leaves one out). BLAKE3, a blob's name, always is.
    pub digests: Selection,
    /// Where `GET /metrics` is answered, in Prometheus' text format; nowhere when absent.
    pub metrics: Option<SocketAddr>,
    /// Where log lines go.
    pub log: LogConfig,
    /// Where traces go.
    pub otlp: OtlpConfig,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8899)),
            plain_http_off_loopback: false,
            tls: None,
            trusted_proxies: Vec::new(),
            cluster: crate::init::CLUSTER_FILE.into(),
            results: "results.db".into(),
            identity: "identity.db".into(),
            admin_key_file: "admin.key".into(),
            client_key_file: "client.key".into(),
            signing_key: "signing.pem".into(),
            downloads: DownloadsConfig::default(),
            callbacks: CallbacksConfig::default(),
            callback_key: "callback.key".into(),
            history_hours: 0,
            secret: crate::init::SECRET_FILE.into(),
            anonymous: false,
            sessions: SessionsConfig::default(),
            lockout: LockoutConfig::default(),
            passwords: PasswordsConfig::default(),
            rules: None,
            inflight_bytes_max: 256 * MIB,
            inflight_uploads_max: 512,
            queue_max: 100_000,
            rate_limits: RateLimitsConfig::default(),
            connections_max: 4096,
            header_read_seconds: 30,
            body_idle_seconds: 30,
            shutdown_seconds: 30,
            digests: Selection::ALL,
            metrics: None,
            log: LogConfig::default(),
            otlp: OtlpConfig::default(),
        }
    }
}

impl GatewayConfig {
    /// The settings of the identity database.
    pub fn identity_options(&self) -> IdentityOptions {
        accounts::identity_options(&self.sessions, &self.lockout, &self.passwords)
    }

    fn check_bounds(&self) -> anyhow::Result<()> {
        // Each connection is a descriptor, and an upload holds some more; Linux gives a process a million at most.
        const CONNECTIONS_MAX: usize = 1_000_000;
        if !(1..=CONNECTIONS_MAX).contains(&self.connections_max) {
            bail!("connections_max must be 1 to {CONNECTIONS_MAX}, got {}", self.connections_max);
        }
        for (name, seconds) in [
            ("header_read_seconds", self.header_read_seconds),
            ("body_idle_seconds", self.body_idle_seconds),
            ("shutdown_seconds", self.shutdown_seconds),
        ] {
            if !(1..=3600).contains(&seconds) {
                bail!("{name} must be 1 to 3600, got {seconds}");
            }
        }
        self.rate_limits.check()
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
            &mut self.signing_key,
            &mut self.callback_key,
            &mut self.secret,
        ];
        paths.extend(&mut self.rules);
        paths.extend(self.tls.iter_mut().flat_map(|tls| [&mut tls.certificate, &mut tls.private_key]));
        paths
    }

    fn log(&mut self) -> Option<&mut LogConfig> {
        Some(&mut self.log)
    }

    fn otlp(&self) -> Option<&OtlpConfig> {
        Some(&self.otlp)
    }

    fn check(&self) -> anyhow::Result<()> {
        if !self.listen.ip().is_loopback() && !self.plain_http_off_loopback && self.tls.is_none() {
            bail!(
                "listen {} is not loopback: set tls; plain HTTP leaves this machine only with plain_http_off_loopback: true",
                self.listen
            );
        }
        if self.inflight_bytes_max < 16 * MIB || self.inflight_uploads_max == 0 {
            bail!("inflight_bytes_max must be at least {} and inflight_uploads_max at least 1", 16 * MIB);
        }
        self.check_bounds()?;
        self.log.check()?;
        self.otlp.check()?;
        accounts::check(&self.sessions, &self.lockout, &self.passwords)
    }
}

/// Whether hostile bytes are read in processes of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxMode {
    /// They are, or the worker does not start.
    Required,
    /// They are not.
    Off,
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
    /// The cluster's secret; nested ids are keyed and archive passwords sealed with it.
    pub secret: PathBuf,
    /// Submitted files scanned at once; 0 takes twice the cores, so that fetching and scanning overlap.
    pub concurrent_files: usize,
    /// Threads that extract and scan; 0 takes as many as there are cores.
    pub scan_threads: usize,
    /// Where files are identified and taken apart: in processes that can do nothing else (`required`, and the worker does
    /// not start where the kernel can't confine them), or in the worker itself (`off`), where a fault in a reader is the worker's.
    pub sandbox: SandboxMode,
    /// A file up to this length is scanned in memory as a whole; a longer one in windows.
    pub sample_memory_max_bytes: u64,
    /// Memory of all samples together.
    pub sample_budget_bytes: u64,
    /// Where nested files are, encrypted, that are too long for memory, while they are scanned; the folder of `results` when
    /// absent.
    pub spool_dir: Option<PathBuf>,
    /// The most bytes of such files at once, over all submissions. Never more than half of what is free there.
    pub spool_bytes: u64,
    /// A task whose worker says nothing for so long is given to another.
    pub lease_seconds: u64,
    /// The digests that are computed of nested files; all four off, none is.
    pub digests: Selection,
    /// The engines.
    pub engines: EnginesConfig,
    /// Where `GET /metrics` is answered, in Prometheus' text format; nowhere when absent.
    pub metrics: Option<SocketAddr>,
    /// Where log lines go.
    pub log: LogConfig,
    /// Where traces go.
    pub otlp: OtlpConfig,
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
            sandbox: SandboxMode::Required,
            sample_memory_max_bytes: 256 * MIB,
            sample_budget_bytes: 512 * MIB,
            spool_dir: None,
            spool_bytes: 16 * 1024 * MIB,
            lease_seconds: 30,
            digests: Selection::ALL,
            engines: EnginesConfig::default(),
            metrics: None,
            log: LogConfig::default(),
            otlp: OtlpConfig::default(),
        }
    }
}

impl Config for ScanWorkerConfig {
    const ENV_PREFIX: &'static str = "LAZARET_SCAN_WORKER_";

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let mut paths = vec![&mut self.cluster, &mut self.results, &mut self.secret];
        paths.extend(&mut self.spool_dir);
        paths.extend(self.engines.paths());
        paths
    }

    fn log(&mut self) -> Option<&mut LogConfig> {
        Some(&mut self.log)
    }

    fn otlp(&self) -> Option<&OtlpConfig> {
        Some(&self.otlp)
    }

    fn check(&self) -> anyhow::Result<()> {
        // Each thread takes a stack and each file a lease and buffers; more help nobody on any machine of today.
        const THREADS_MAX: usize = 1024;
        if self.scan_threads > THREADS_MAX || self.concurrent_files > THREADS_MAX {
            bail!("scan_threads and concurrent_files must be at most {THREADS_MAX}");
        }
        // The queue takes what ends later for a time of a clock that was set back.
        let lease_seconds_max = lazaret_analysis::store::LEASE_MS_MAX / 1000;
        if !(2..=lease_seconds_max).contains(&self.lease_seconds) {
            bail!("lease_seconds must be 2 to {lease_seconds_max}, got {}", self.lease_seconds);
        }
        if self.sample_memory_max_bytes < MIB || self.sample_budget_bytes < self.sample_memory_max_bytes {
            bail!("sample_memory_max_bytes must be at least {MIB} and sample_budget_bytes no less than it");
        }
        self.log.check()?;
        self.otlp.check()?;
        self.engines.check()
    }
}

/// Reads, merges and checks a component's configuration.
pub fn load<C: Config>(path: &Path) -> anyhow::Result<C> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the configuration {}", path.display()))?;
    let refused = |reason: String| anyhow!("configuration {}: {reason}", path.display());
    // As the struct itself: only that tells the line of an unknown or malformed key, and that an `off` is no boolean.
    let file: C = serde_saphyr::from_str(&text).map_err(|error| refused(first_line(&error.to_string())))?;
    let mut config: C = Figment::new()
        .merge(Serialized::defaults(file))
        .merge(Env::prefixed(C::ENV_PREFIX))
        .extract()
        .map_err(|error| refused(first_line(&error.to_string())))?;
    config.check().map_err(|error| refused(format!("{error:#}")))?;
    let base = path.parent().unwrap_or(Path::new("."));
    for path in config.paths() {
        *path = base.join(&*path);
    }
    if let Some(log) = config.log() {
        log.take_paths_from(base);
    }
    Ok(config)
}

/// The configuration as the YAML that [`load()`] reads.
pub fn to_yaml<C: Config>(config: &C) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(config)?)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of a configuration and of its sections.
    fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            found.push(key.clone());
            keys(value, found);
        }
    }

    #[test]
    fn every_setting_is_in_the_readme() {
        let readme = include_str!("../README.md");
        let node = NodeEntry {
            id: NodeId([1; 16]),
            name: "node1".to_owned(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            weight: 1,
            state: lazaret_protocol::NodeState::Up,
        };
        let mut found = Vec::new();
        for value in [
            serde_json::to_value(GatewayConfig::default()),
            serde_json::to_value(ScanWorkerConfig::default()),
            serde_json::to_value(StorageNodeConfig::of_node(&node)),
            serde_json::to_value(UpConfig::default()),
        ] {
            keys(&value.unwrap(), &mut found);
        }
        assert!(found.len() > 60, "{found:?}");
        let missing: Vec<_> = found.iter().filter(|key| !readme.contains(key.as_str())).collect();
        assert!(missing.is_empty(), "README tells nothing of {missing:?}");
    }
}
