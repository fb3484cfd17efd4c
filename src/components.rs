//! The components as processes of their own, and the pieces they are made of, which `lazaret up` puts together in one
//! process.

use std::fs;
use std::future::Future;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use lazaret_analysis::{PasswordSeal, Rules, SqliteBackend};
use lazaret_gateway::{
    Backends, CallbackKey, CallbackOptions, Gateway, GatewayOptions, OutboundOptions, Signer, Tls, TlsFiles,
};
use lazaret_identity::{Identity, Role};
use lazaret_node_client::Environment;
use lazaret_node_client::cluster::{Cluster, ClusterOptions};
use lazaret_node_client::cluster_file::{self, ClusterFile};
use lazaret_node_client::quic::QuicTransport;
use lazaret_node_client::transport::Transport;
use lazaret_node_client::{CredentialFiles, TrustFiles};
use lazaret_protocol::{ClusterMap, NodeEntry, NodeId};
use lazaret_sandbox::{Sandbox, SandboxOptions};
use lazaret_scan_worker::pool::EXPRESS_THREADS_MAX;
use lazaret_scan_worker::spool::SpoolOptions;
use lazaret_scan_worker::{ScanWorker, WorkerOptions};
use lazaret_storage_node::Node;
use lazaret_storage_node::engine::EngineOptions;
use lazaret_storage_node::listener::{Listener, ListenerFiles};
use lazaret_storage_node::service::NodeService;
use lazaret_storage_node::store::{DiskSource, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cli::{ComponentOptions, StorageNodeOptions};
use crate::config::{self, Config, GatewayConfig, SandboxMode, ScanWorkerConfig, StorageNodeConfig};
use crate::logging::LogConfig;
use crate::metrics::Told;
use crate::{logging, metrics, notify, offline, rules};

/// Loads a component's configuration; `None` if it was only to be printed or checked, which is done.
fn configured<C: Config>(options: &ComponentOptions, service: &str) -> anyhow::Result<Option<C>> {
    let mut config: C = config::load(&options.config)?;
    if options.print_config {
        write!(crate::output::stdout(), "{}", config::to_yaml(&config)?)?;
        return Ok(None);
    }
    if options.check_config {
        writeln!(crate::output::stdout(), "{} is a valid configuration", options.config.display())?;
        return Ok(None);
    }
    let otlp = config.otlp().cloned().unwrap_or_default();
    logging::start(config.log().map_or(&LogConfig::default(), |log| log), &otlp, service)?;
    Ok(Some(config))
}

/// `lazaret storage-node`.
pub async fn storage_node(options: StorageNodeOptions) -> anyhow::Result<ExitCode> {
    let Some(config) = configured::<StorageNodeConfig>(&options.component, "lazaret-storage-node")? else {
        return Ok(ExitCode::SUCCESS);
    };
    if options.fsck {
        return offline::fsck(config, options.json).await;
    }
    let cluster = ClusterFile::load(&config.cluster)?;
    let node = cluster
        .map
        .node(config.node)
        .with_context(|| format!("{} has no node {}", config.cluster.display(), config.node))?
        .clone();
    let sizes = (config.segment_bytes_max, config.reserve_bytes);
    if options.rebuild_index {
        return offline::rebuild_index(config.disks().collect(), engine_options(&cluster.map, config.node, sizes))
            .await;
    }
    let sources = config.disks().map(|(path, must_exist)| DiskSource::directory(path, must_exist)).collect();
    let store = open_store(sources, &cluster.map, config.node, sizes).await?;
    let served = serve_node(&config, &cluster, &node, store.clone()).await;
    // Also after a failure: a process must not end while an engine's threads still run.
    close(store).await;
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve_node(
    config: &StorageNodeConfig,
    cluster: &ClusterFile,
    node: &NodeEntry,
    store: Store,
) -> anyhow::Result<()> {
    let identity = NodeIdentity { certificate: &config.certificate, private_key: &config.private_key };
    let credentials =
        CredentialFiles::Peer { certificate: config.certificate.clone(), private_key: config.private_key.clone() };
    let peers = quic_cluster_as(cluster, credentials)?;
    let node_at_work = Node::new(node.id, store, peers, Environment::system(), config.background.options());
    let service = NodeService::new(node_at_work.clone());
    let listener = listen(config.listen.unwrap_or(node.address), &identity, cluster, service)?;
    if let Some(address) = config.metrics {
        metrics::serve(address, Told { nodes: vec![node_at_work.clone()], ..Told::default() }).await?;
    }
    node_at_work.start();
    ready(format_args!("storage-node={} address={}", node.name, listener.local_addr()?))?;
    listener.run(terminated()).await;
    node_at_work.stop();
    Ok(())
}

/// `lazaret gateway`.
pub async fn gateway(options: ComponentOptions) -> anyhow::Result<ExitCode> {
    let Some(config) = configured::<GatewayConfig>(&options, "lazaret-gateway")? else { return Ok(ExitCode::SUCCESS) };
    let listener = bind_http(config.listen).await?;
    let address = listener.local_addr()?;
    let cluster = quic_cluster(&ClusterFile::load(&config.cluster)?)?;
    follow_map(&cluster, &config.cluster);
    let backend = SqliteBackend::open(&config.results).await?;
    let gateway = open_gateway(&config, &backend, cluster.clone()).await?;
    if let Some(address) = config.metrics {
        metrics::serve(address, Told { gateway: Some(gateway.monitor()), ..Told::default() }).await?;
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    ready(format_args!("gateway={scheme}://{address}"))?;
    gateway.serve(listener, terminated()).await?;
    cluster.close().await;
    Ok(ExitCode::SUCCESS)
}

/// `lazaret scan-worker`.
pub async fn scan_worker(options: ComponentOptions) -> anyhow::Result<ExitCode> {
    let Some(config) = configured::<ScanWorkerConfig>(&options, "lazaret-scan-worker")? else {
        return Ok(ExitCode::SUCCESS);
    };
    let cluster = quic_cluster(&ClusterFile::load(&config.cluster)?)?;
    follow_map(&cluster, &config.cluster);
    let backend = SqliteBackend::open(&config.results).await?;
    let worker = open_worker(&config, &backend, cluster.clone()).await?;
    if let Some(address) = config.metrics {
        metrics::serve(address, Told { worker: Some(worker.monitor()), ..Told::default() }).await?;
    }
    worker.announce().await;
    ready(format_args!("scan-worker={}", config.name))?;
    let (shutdown, on_shutdown) = watch::channel(false);
    tokio::spawn(async move {
        terminated().await;
        let _ = shutdown.send(true);
    });
    worker.run(on_shutdown).await;
    cluster.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Opens a node's disks, off the async threads, since recovery reads segments.
pub async fn open_store(
    sources: Vec<DiskSource>,
    map: &ClusterMap,
    node: NodeId,
    sizes: (u64, u64),
) -> anyhow::Result<Store> {
    let options = engine_options(map, node, sizes);
    let open = move || Store::open(sources, Environment::system(), options);
    let store = tokio::task::spawn_blocking(open).await??;
    let agreeing = store.clone();
    tokio::spawn(async move {
        // It is tried again before anything expires.
        if let Err(error) = agreeing.agree().await {
            tracing::error!(%error, "the disks could not be brought into agreement");
        }
    });
    Ok(store)
}

fn engine_options(map: &ClusterMap, node: NodeId, (segment_bytes_max, reserve_bytes): (u64, u64)) -> EngineOptions {
    let options = EngineOptions::new(map.cluster, node);
    EngineOptions { storage_type: map.storage_type, segment_bytes_max, reserve_bytes, ..options }
}

/// Lets the store finish what it took, off the async threads.
pub async fn close(store: Store) {
    let _ = tokio::task::spawn_blocking(move || store.close()).await;
}

/// A node's certificate and key.
pub struct NodeIdentity<'a> {
    /// PEM file.
    pub certificate: &'a Path,
    /// PEM file.
    pub private_key: &'a Path,
}

/// Binds a node's QUIC listener.
pub fn listen(
    address: SocketAddr,
    identity: &NodeIdentity<'_>,
    cluster: &ClusterFile,
    service: NodeService,
) -> anyhow::Result<Listener> {
    let files = ListenerFiles {
        certificate: identity.certificate.to_owned(),
        private_key: identity.private_key.to_owned(),
        ca: cluster.ca.clone(),
        connection_key: cluster.connection_key.clone(),
        admin_key: cluster.admin_key.clone(),
    };
    Listener::bind_files(address, files, cluster.map.cluster, service)
        .with_context(|| format!("cannot serve {} with {}", address, identity.certificate.display()))
}

/// The cluster as seen over QUIC with the connection key.
pub fn quic_cluster(file: &ClusterFile) -> anyhow::Result<Cluster> {
    quic_cluster_as(file, CredentialFiles::Connection(file.connection_key.clone()))
}

/// The cluster as seen over QUIC with other credentials.
pub fn quic_cluster_as(file: &ClusterFile, credentials: CredentialFiles) -> anyhow::Result<Cluster> {
    let files = TrustFiles { ca: file.ca.clone(), credentials };
    let transport = QuicTransport::from_files(files, file.map.cluster)?;
    cluster_over(file.map.clone(), Arc::new(transport))
}

/// Lets a process that serves follow the cluster map and keep it in the cluster's file, for as long as it lives.
fn follow_map(cluster: &Cluster, path: &Path) {
    let (cluster, path) = (cluster.clone(), path.to_owned());
    tokio::spawn(async move {
        let forever = std::future::pending;
        tokio::join!(cluster.run_background(forever()), cluster_file::keep_map(path, cluster.clone(), forever()));
    });
}

/// The cluster as seen through `transport`.
pub fn cluster_over(map: ClusterMap, transport: Arc<dyn Transport>) -> anyhow::Result<Cluster> {
    Ok(Cluster::new(map, transport, Environment::system(), ClusterOptions::default())?)
}

/// A gateway on its back-ends. Its first keys are made if they are not there yet.
pub async fn open_gateway(
    config: &GatewayConfig,
    backend: &SqliteBackend,
    cluster: Cluster,
) -> anyhow::Result<Gateway> {
    let rules = match &config.rules {
        Some(path) => rules::follow(path).await?,
        None => Rules::default(),
    };
    let identity = Identity::open_with(&config.identity, config.identity_options()).await?;
    identity.ensure_key_file(&config.admin_key_file, "admin", Role::Administrator).await?;
    identity.ensure_key_file(&config.client_key_file, "client", Role::Submitter).await?;
    let signing_key = config.signing_key.clone();
    let signer = tokio::task::spawn_blocking(move || Signer::open(&signing_key)).await??;
    let callbacks = match config.callbacks.hosts.as_slice() {
        [] => None,
        hosts => Some(CallbackOptions {
            outbound: OutboundOptions {
                hosts: hosts.to_vec(),
                private_addresses: config.callbacks.private_addresses,
                time_max: Duration::from_secs(config.callbacks.seconds_max.max(1)),
                ..OutboundOptions::default()
            },
            key: CallbackKey::open(&config.callback_key)
                .with_context(|| format!("the callback key {}", config.callback_key.display()))?,
        }),
    };
    let options = GatewayOptions {
        downloads: OutboundOptions {
            hosts: config.downloads.hosts.clone(),
            private_addresses: config.downloads.private_addresses,
            time_max: Duration::from_secs(config.downloads.seconds_max.max(1)),
            bytes_max: config.downloads.bytes_max,
        },
        callbacks,
        signer: Some(Arc::new(signer)),
        history: (config.history_hours > 0).then(|| Duration::from_secs(config.history_hours.saturating_mul(3600))),
        inflight_bytes_max: config.inflight_bytes_max,
        inflight_uploads_max: config.inflight_uploads_max,
        queue_max: config.queue_max,
        rate_limits: config.rate_limits.limits(),
        connections_max: config.connections_max,
        header_read_timeout: Duration::from_secs(config.header_read_seconds),
        body_idle_timeout: Duration::from_secs(config.body_idle_seconds),
        shutdown_grace: Duration::from_secs(config.shutdown_seconds),
        anonymous: config.anonymous,
        tls: load_tls(config.tls.clone()).await?,
        trusted_proxies: config.trusted_proxies.iter().map(IpAddr::to_canonical).collect(),
        rules,
        digests: config.digests,
        ..GatewayOptions::default()
    };
    let backend = Arc::new(backend.clone());
    let backends = Backends {
        results: backend.clone(),
        queue: backend.clone(),
        progress: backend,
        cluster,
        identity,
        seal: Arc::new(PasswordSeal::from_secret(&read(&config.secret)?)?),
    };
    Ok(Gateway::new(options, backends, Environment::system()))
}

/// The certificate that a gateway is to have.
async fn load_tls(files: Option<TlsFiles>) -> anyhow::Result<Option<Arc<Tls>>> {
    let Some(files) = files else { return Ok(None) };
    Ok(Some(Arc::new(tokio::task::spawn_blocking(|| Tls::load(files)).await??)))
}

/// A scan worker on its back-ends, with the engines of its configuration.
pub async fn open_worker(
    config: &ScanWorkerConfig,
    backend: &SqliteBackend,
    cluster: Cluster,
) -> anyhow::Result<ScanWorker> {
    let secret = read(&config.secret)?;
    // A context of its own, so that other uses of the secret have other keys.
    let nested_id_key = blake3::derive_key("lazaret 2026 nested analysis id v1", secret.trim().as_bytes());
    let seal = PasswordSeal::from_secret(&secret)?;
    let mut options = WorkerOptions::new(&config.name, nested_id_key, Arc::new(seal));
    if config.scan_threads > 0 {
        options.scan_threads = config.scan_threads;
    }
    options.engine_timeout = config.engines.timeout();
    let (wanted, scan_threads) = (config.engines.clone(), options.scan_threads);
    let engines = tokio::task::spawn_blocking(move || wanted.start(scan_threads)).await??;
    if config.concurrent_files > 0 {
        options.concurrent_files = config.concurrent_files;
    }
    options.sandbox = match config.sandbox {
        SandboxMode::Required => {
            let sandboxing = SandboxOptions::new(options.scan_threads + EXPRESS_THREADS_MAX);
            let started = tokio::task::spawn_blocking(|| Sandbox::start(sandboxing)).await?;
            Some(started.context("`sandbox: off` in the worker's configuration does without, at the worker's risk")?)
        }
        SandboxMode::Off => {
            tracing::warn!("files are taken apart without a sandbox: a fault in a reader is the worker's");
            None
        }
    };
    options.sample_memory_max_bytes = config.sample_memory_max_bytes;
    options.sample_budget_bytes = config.sample_budget_bytes;
    // Written to already, for SQLite's log: on a disk of this machine.
    let beside = config.results.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = config.spool_dir.as_deref().unwrap_or(beside).to_owned();
    options.spool = SpoolOptions { folder, bytes_max: config.spool_bytes };
    options.lease_ms = config.lease_seconds * 1000;
    options.digests = config.digests;
    let (results, queue, progress) = (Arc::new(backend.clone()), Arc::new(backend.clone()), Arc::new(backend.clone()));
    // Has the engines' rules made ready in the sandbox.
    let start = || ScanWorker::new(options, results, queue, progress, cluster, Environment::system(), engines);
    Ok(tokio::task::spawn_blocking(start).await??)
}

/// Binds the gateway's listener.
pub async fn bind_http(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow!("{address} is in use: stop what listens there, or choose another address")
        }
        _ => anyhow!("cannot listen on {address}: {error}"),
    })
}

/// The one line that says a component serves; the service manager is told as well.
pub fn ready(what: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready {what}")?;
    stdout.flush()?;
    notify::ready();
    Ok(())
}

/// Tasks that end after they were told to.
pub struct Running {
    shutdown: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    /// None yet.
    pub fn new() -> Self {
        Self { shutdown: watch::Sender::new(false), tasks: Vec::new() }
    }

    /// Begins one, which is handed what tells it to end.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&mut self, task: impl FnOnce(watch::Receiver<bool>) -> F) {
        self.tasks.push(tokio::spawn(task(self.shutdown.subscribe())));
    }

    /// Tells all of them to end and waits until they have.
    pub async fn stop(self) {
        let _ = self.shutdown.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// Completes once shutdown was asked for.
pub async fn asked(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|asked| *asked).await;
}

/// Completes on SIGINT or SIGTERM.
pub fn terminated() -> impl Future<Output = ()> + Send + 'static {
    use tokio::signal::unix::{SignalKind, signal};
    // Installed at once, so that a signal between this call and the first poll is not lost.
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        match signals {
            (Ok(mut interrupt), Ok(mut terminate)) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                notify::stopping();
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "cannot wait for signals; only a kill ends this process");
                std::future::pending().await
            }
        }
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    if text.trim().is_empty() {
        bail!("{} is empty", path.display());
    }
    Ok(text)
}
