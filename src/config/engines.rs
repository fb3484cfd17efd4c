//! The engines of a scan worker: what stands below `engines` in its configuration, and how they are started.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use lazaret_protocol::limits::MIB;
use lazaret_scan_worker::Engine;
use lazaret_scan_worker::engines::{
    self, ClamavEngine, ClamavOptions, ClamdAddress, ExternalAddress, ExternalEngine, ExternalOptions, HashListEngine,
    HashListOptions, YaraEngine, YaraOptions,
};
use serde::{Deserialize, Serialize};

use super::Config;

/// A worker's engines.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnginesConfig {
    /// Whether the built-in signatures judge files. Default true.
    pub builtin: bool,
    /// The operator's YARA rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yara: Option<YaraConfig>,
    /// Lists of digests of known files.
    pub hash_lists: Vec<HashListConfig>,
    /// Servers of ClamAV.
    pub clamav: Vec<ClamavConfig>,
    /// Engines of the site's own.
    pub external: Vec<ExternalConfig>,
}

impl Default for EnginesConfig {
    fn default() -> Self {
        Self { builtin: true, yara: None, hash_lists: Vec::new(), clamav: Vec::new(), external: Vec::new() }
    }
}

/// The operator's YARA rules.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YaraConfig {
    /// Rule files, and folders that are searched for them.
    pub rules: Vec<PathBuf>,
    /// How long a file may take; whole seconds count.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Files at once; 0 takes as many as the worker has scan threads.
    #[serde(default)]
    pub concurrency: usize,
}

/// A list of digests of known files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashListConfig {
    /// The engine's name.
    pub name: String,
    /// Files or folders with digests of known malware: Known Bad (38).
    #[serde(default)]
    pub bad: Vec<PathBuf>,
    /// Files or folders with digests of what is known to be harmless: Known Good (39).
    #[serde(default)]
    pub good: Vec<PathBuf>,
}

/// A clamd.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClamavConfig {
    /// The engine's name.
    #[serde(default = "default_clamav_name")]
    pub name: String,
    /// Its LocalSocket.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Or its TCPAddr and TCPSocket.
    #[serde(default)]
    pub tcp: Option<SocketAddr>,
    /// How long a file may take.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Sessions at once; no more than clamd's MaxThreads.
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// Longer files are not sent (10); no more than clamd's MaxFileSize and StreamMaxLength.
    #[serde(default = "default_clamav_bytes")]
    pub max_file_bytes: u64,
}

/// An engine of the site's own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalConfig {
    /// The engine's name.
    pub name: String,
    /// A program and its arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// Or a Unix socket on which a server listens.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// How long a file may take.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Processes, or connections to the server, at once.
    #[serde(default = "default_processes")]
    pub processes: usize,
    /// Longer files are not shown to it (10).
    #[serde(default = "default_external_bytes")]
    pub max_file_bytes: u64,
    /// Whether it wants files' digests, which then have to be there before it sees the file.
    #[serde(default)]
    pub digests: bool,
}

fn default_timeout_ms() -> u64 {
    60_000
}

fn default_clamav_name() -> String {
    "ClamAV".to_owned()
}

/// Below clamd's own `MaxThreads`, 10.
fn default_connections() -> usize {
    8
}

/// Debian's `StreamMaxLength` and `MaxFileSize`.
fn default_clamav_bytes() -> u64 {
    25 * MIB
}

fn default_processes() -> usize {
    2
}

/// What a worker holds in memory of one file.
fn default_external_bytes() -> u64 {
    256 * MIB
}

impl Config for EnginesConfig {
    const ENV_PREFIX: &'static str = "LAZARET_ENGINES_";

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let mut paths: Vec<&mut PathBuf> = Vec::new();
        paths.extend(self.yara.iter_mut().flat_map(|yara| &mut yara.rules));
        for list in &mut self.hash_lists {
            paths.extend(list.bad.iter_mut().chain(&mut list.good));
        }
        paths.extend(self.clamav.iter_mut().flat_map(|clamav| &mut clamav.socket));
        paths.extend(self.external.iter_mut().flat_map(|external| &mut external.socket));
        paths
    }

    fn check(&self) -> anyhow::Result<()> {
        // A thread, a session or a process each; more is a mistake.
        const CONCURRENCY_MAX: usize = 1024;
        let names = [self.builtin.then_some("Lazaret"), self.yara.as_ref().map(|_| engines::yara::ENGINE_NAME)];
        let mut seen: HashSet<&str> = names.into_iter().flatten().collect();
        let lists = self.hash_lists.iter().map(|list| &list.name);
        let others = self.clamav.iter().map(|one| &one.name).chain(self.external.iter().map(|one| &one.name));
        for name in lists.chain(others) {
            if name.trim().is_empty() || !seen.insert(name) {
                bail!("engines: each needs a name of its own, {name:?} is none");
            }
        }
        let mut limits: Vec<(&str, u64, usize)> = Vec::new();
        limits.extend(self.yara.iter().map(|yara| ("YARA", yara.timeout_ms, yara.concurrency.max(1))));
        limits.extend(self.clamav.iter().map(|one| (one.name.as_str(), one.timeout_ms, one.connections)));
        limits.extend(self.external.iter().map(|one| (one.name.as_str(), one.timeout_ms, one.processes)));
        for (name, timeout_ms, concurrency) in limits {
            if !(1000..=3_600_000).contains(&timeout_ms) {
                bail!("engines: {name}: timeout_ms must be 1000 to 3600000, got {timeout_ms}");
            }
            if !(1..=CONCURRENCY_MAX).contains(&concurrency) {
                bail!("engines: {name}: concurrency must be 1 to {CONCURRENCY_MAX}, got {concurrency}");
            }
        }
        if self.yara.as_ref().is_some_and(|yara| yara.rules.is_empty()) {
            bail!("engines: yara.rules is empty");
        }
        if let Some(list) = self.hash_lists.iter().find(|list| list.bad.is_empty() && list.good.is_empty()) {
            bail!("engines: {} has neither bad nor good files", list.name);
        }
        if let Some(one) = self.clamav.iter().find(|one| one.socket.is_some() == one.tcp.is_some()) {
            bail!("engines: {} needs either socket or tcp", one.name);
        }
        if let Some(one) = self.external.iter().find(|one| one.socket.is_some() != one.command.is_empty()) {
            bail!("engines: {} needs either command or socket", one.name);
        }
        Ok(())
    }
}

impl EnginesConfig {
    /// The longest that any engine may take for a file.
    pub fn timeout(&self) -> Duration {
        let yara = self.yara.iter().map(|one| one.timeout_ms);
        let others = self.clamav.iter().map(|one| one.timeout_ms).chain(self.external.iter().map(|one| one.timeout_ms));
        Duration::from_millis(yara.chain(others).max().unwrap_or_default().max(default_timeout_ms()))
    }

    /// Starts all of them for a worker with so many scan threads. Compiles rules and reads lists, so call it off the
    /// asynchronous threads.
    pub fn start(&self, scan_threads: usize) -> anyhow::Result<Vec<Arc<dyn Engine>>> {
        let mut started: Vec<Arc<dyn Engine>> = Vec::new();
        if self.builtin {
            started.extend(engines::builtin()?);
        }
        for list in &self.hash_lists {
            let options = HashListOptions { name: list.name.clone(), bad: list.bad.clone(), good: list.good.clone() };
            started.push(Arc::new(HashListEngine::start(options).with_context(|| format!("engine {}", list.name))?));
        }
        if let Some(yara) = &self.yara {
            let concurrency = if yara.concurrency == 0 { scan_threads } else { yara.concurrency };
            let timeout = Duration::from_millis(yara.timeout_ms);
            let options = YaraOptions { rules: yara.rules.clone(), timeout, concurrency };
            started.push(Arc::new(YaraEngine::start(options).context("engine YARA")?));
        }
        for one in &self.clamav {
            started.push(Arc::new(one.start().with_context(|| format!("engine {}", one.name))?));
        }
        for one in &self.external {
            started.push(Arc::new(one.start().with_context(|| format!("engine {}", one.name))?));
        }
        if started.is_empty() {
            tracing::warn!("no engine is loaded: every file will be Not Scanned");
        }
        Ok(started)
    }
}

impl ClamavConfig {
    fn start(&self) -> anyhow::Result<ClamavEngine> {
        let address = match (&self.socket, self.tcp) {
            (Some(path), None) => ClamdAddress::Unix(path.clone()),
            (None, Some(address)) => ClamdAddress::Tcp(address),
            _ => bail!("it needs either socket or tcp"),
        };
        Ok(ClamavEngine::start(ClamavOptions {
            name: self.name.clone(),
            address,
            timeout: Duration::from_millis(self.timeout_ms),
            connections: self.connections,
            max_file_bytes: self.max_file_bytes,
        })?)
    }
}

impl ExternalConfig {
    fn start(&self) -> anyhow::Result<ExternalEngine> {
        let address = match &self.socket {
            Some(path) => ExternalAddress::Socket(path.clone()),
            None => ExternalAddress::Command(self.command.clone()),
        };
        Ok(ExternalEngine::start(ExternalOptions {
            name: self.name.clone(),
            address,
            timeout: Duration::from_millis(self.timeout_ms),
            processes: self.processes,
            max_file_bytes: self.max_file_bytes,
            digests: self.digests,
        })?)
    }
}
