//! `lazaret up`: a whole cluster in one process. Its parts talk through the in-process transport; its nodes also listen for
//! QUIC on loopback, so that other commands work against it.
//!
//! Everything lies below one directory, and a second start on it finds everything again.

use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use lazaret_analysis::SqliteBackend;
use lazaret_node_client::Environment;
use lazaret_node_client::cluster::Cluster;
use lazaret_node_client::cluster_file::ClusterFile;
use tokio::net::TcpListener;

use crate::cli::{InitOptions, JudgingOptions, UpOptions};
use crate::components::{self, Running, asked};
use crate::config::{self, GatewayConfig, ScanWorkerConfig, UpConfig};
use crate::metrics::Told;
use crate::nodes::Nodes;
use crate::scan::client::read_key;
use crate::{init, logging, metrics};

/// Replicas and nodes of a cluster for which nothing else was asked.
const NODES: u16 = 3;
const MIN_REPLICA: u8 = 2;
const MAX_REPLICA: u8 = 3;

/// Runs a cluster until SIGINT or SIGTERM.
pub async fn run(options: UpOptions) -> anyhow::Result<ExitCode> {
    let terminated = components::terminated();
    let config = config(&options)?;
    logging::start(&config.log, &config.otlp, "lazaret")?;
    let cluster = EmbeddedCluster::start_with(&options, config).await?;
    components::ready(format_args!("gateway={} data={}", cluster.url(), options.data.display()))?;
    terminated.await;
    cluster.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// A running cluster.
pub struct EmbeddedCluster {
    services: Services,
    nodes: Nodes,
    /// Held for as long as the cluster runs.
    _lock: File,
}

/// What works on the nodes: a gateway and a worker.
struct Services {
    gateway_address: SocketAddr,
    scheme: &'static str,
    gateway: Running,
    /// Learns of newer cluster maps.
    watching: Running,
    worker: Running,
    cluster: Cluster,
    client_key_file: PathBuf,
}

impl EmbeddedCluster {
    /// Starts a cluster in `options.data`, which is made if it is not there. When it returns, everything serves.
    pub async fn start(options: &UpOptions) -> anyhow::Result<Self> {
        Self::start_with(options, config(options)?).await
    }

    async fn start_with(options: &UpOptions, config: UpConfig) -> anyhow::Result<Self> {
        let data = options.data.as_path();
        let lock = lock(data)?;
        // Before anything is written: the most likely thing to be wrong.
        let http = components::bind_http(options.listen).await?;
        let file = cluster_file(options)?;
        let nodes = Nodes::start(data, file).await?;
        match Services::start(options, config, &nodes, http).await {
            Ok(services) => Ok(Self { services, nodes, _lock: lock }),
            Err(error) => {
                // A process must not end while an engine's threads still run.
                nodes.stop().await;
                Err(error)
            }
        }
    }

    /// The gateway's URL.
    pub fn url(&self) -> String {
        format!("{}://{}", self.services.scheme, self.services.gateway_address)
    }

    /// A submitter's API key.
    pub fn client_key(&self) -> anyhow::Result<String> {
        read_key(&self.services.client_key_file)
    }

    /// Finishes uploads in flight, gives back what is being scanned, completes background copies, closes the stores.
    pub async fn stop(self) {
        self.services.stop().await;
        self.nodes.stop().await;
    }
}

impl Services {
    async fn start(options: &UpOptions, settings: UpConfig, nodes: &Nodes, http: TcpListener) -> anyhow::Result<Self> {
        let data = options.data.as_path();
        let gateway_address = http.local_addr()?;
        let cluster = nodes.cluster()?;
        let metrics_address = options.metrics.or(settings.metrics);
        let worker_config = worker_config(settings.scan_worker, data, options)?;
        let config = gateway_config_of(settings.gateway, data, &options.judging);
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        // One back-end for both, so that a submission wakes the worker at once; but polls don't hold up its reads.
        let backend = SqliteBackend::open(&config.results).await?;
        let gateway = components::open_gateway(&config, &backend, cluster.clone()).await?;
        let for_worker = backend.with_own_readers().await?;
        let worker = components::open_worker(&worker_config, &for_worker, cluster.clone()).await?;
        if let Some(address) = metrics_address {
            let told = Told {
                nodes: nodes.nodes().to_vec(),
                worker: Some(worker.monitor()),
                gateway: Some(gateway.monitor()),
            };
            metrics::serve(address, told).await?;
        }
        worker.announce().await;
        let mut watching = Running::new();
        let watched = cluster.clone();
        watching.spawn(|shutdown| async move { watched.run_background(asked(shutdown)).await });
        let mut running_gateway = Running::new();
        running_gateway.spawn(|shutdown| async move {
            if let Err(error) = gateway.serve(http, asked(shutdown)).await {
                tracing::error!(%error, "the gateway ended");
            }
        });
        let mut running_worker = Running::new();
        running_worker.spawn(|shutdown| async move { worker.run(shutdown).await });
        Ok(Self {
            gateway_address,
            scheme,
            gateway: running_gateway,
            watching,
            worker: running_worker,
            cluster,
            client_key_file: config.client_key_file,
        })
    }

    async fn stop(self) {
        self.gateway.stop().await;
        self.worker.stop().await;
        self.watching.stop().await;
        self.cluster.close().await;
    }
}

/// Takes the directory for this process.
fn lock(data: &Path) -> anyhow::Result<File> {
    let unusable = || format!("cannot use the data directory {}", data.display());
    // For nobody else's eyes: it holds keys, names of files and results.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data).with_context(unusable)?;
    let lock = File::create(data.join("lock")).with_context(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!("{} is in use by another lazaret: stop it, or choose another --data", data.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(unusable),
    }
}

/// The cluster's file: the one that is there, checked against what was asked for, or a new cluster's.
fn cluster_file(options: &UpOptions) -> anyhow::Result<ClusterFile> {
    let path = options.data.join(init::CLUSTER_FILE);
    if path.exists() {
        let file = ClusterFile::load(&path)?;
        let differs = |what: &str, there: usize, asked: Option<usize>| match asked {
            Some(asked) if asked != there => Err(anyhow!(
                "{} has {what} {there}, not {asked}: leave the option out, or choose another --data",
                options.data.display()
            )),
            _ => Ok(()),
        };
        differs("--nodes", file.map.nodes.len(), options.nodes.map(usize::from))?;
        differs("--min-replica", file.map.min_replica.into(), options.min_replica.map(usize::from))?;
        differs("--max-replica", file.map.max_replica.into(), options.max_replica.map(usize::from))?;
        return Ok(file);
    }
    let nodes = options.nodes.unwrap_or(NODES);
    let max_replica = options.max_replica.unwrap_or(MAX_REPLICA);
    let new = InitOptions {
        dir: options.data.clone(),
        nodes,
        // Free ports, chosen when the nodes listen.
        node_addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); usize::from(nodes)],
        gateway_address: options.listen,
        min_replica: options.min_replica.unwrap_or(MIN_REPLICA.min(max_replica)),
        max_replica,
    };
    Ok(ClusterFile::load(&init::init(&new, &*Environment::system().random)?)?)
}

/// The settings that were asked for.
fn config(options: &UpOptions) -> anyhow::Result<UpConfig> {
    options.config.as_deref().map_or_else(|| Ok(UpConfig::default()), config::load)
}

/// The gateway's configuration in a data directory.
pub fn gateway_config(data: &Path, judging: &JudgingOptions) -> GatewayConfig {
    gateway_config_of(GatewayConfig::default(), data, judging)
}

/// The same with other settings.
fn gateway_config_of(settings: GatewayConfig, data: &Path, judging: &JudgingOptions) -> GatewayConfig {
    GatewayConfig {
        rules: judging.rules.clone().or(settings.rules),
        results: data.join("results.db"),
        identity: data.join("identity.db"),
        admin_key_file: data.join("admin.key"),
        client_key_file: data.join("client.key"),
        signing_key: data.join("signing.pem"),
        callback_key: data.join("callback.key"),
        secret: data.join(init::SECRET_FILE),
        ..settings
    }
}

fn worker_config(settings: ScanWorkerConfig, data: &Path, options: &UpOptions) -> anyhow::Result<ScanWorkerConfig> {
    Ok(ScanWorkerConfig {
        results: data.join("results.db"),
        secret: data.join(init::SECRET_FILE),
        scan_threads: options.workers.into(),
        engines: options.judging.engines.as_deref().map(config::load).transpose()?.unwrap_or(settings.engines),
        ..settings
    })
}
