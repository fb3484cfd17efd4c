//! `lazaret bench store`: puts and gets against three storage nodes as processes of their own over loopback QUIC, in this
//! process without a network (`embedded`), or of any running cluster, durable, with content that is unique and does not
//! compress.
//!
//! A put counts when all its copies are durable, those past `min_replica` included. The load generator's own work is part of
//! what is measured, as both share the machine.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use lazaret_node_client::Environment;
use lazaret_node_client::cluster::Cluster;
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_protocol::BlobName;
use serde::Serialize;
use tokio::task::JoinSet;

use super::limits::{self, Limits};
use super::load::{Contents, Latencies};
use super::server::Server;
use crate::cli::{BenchStoreOptions, InitOptions};
use crate::components::quic_cluster;
use crate::init;
use crate::nodes::Nodes;

/// Sizes measured when none is asked for, and how many requests are under way at once with each.
const SIZES: [(usize, usize); 5] = [(4 << 10, 64), (10 << 10, 64), (140 << 10, 32), (4 << 20, 8), (16 << 20, 4)];
/// Nodes of the cluster that is started when none is given.
const NODES: u16 = 3;

/// One line of the result.
#[derive(Debug, Clone, Serialize)]
struct Figure {
    operation: &'static str,
    size_bytes: usize,
    concurrency: usize,
    requests: usize,
    failures: usize,
    seconds: f64,
    per_second: f64,
    bytes_per_second: f64,
    #[serde(flatten)]
    latency: Latencies,
}

/// The whole result.
#[derive(Debug, Serialize)]
struct Report {
    nodes: usize,
    min_replica: u8,
    max_replica: u8,
    limits: Option<Limits>,
    figures: Vec<Figure>,
}

/// Runs the command.
pub async fn run(options: BenchStoreOptions) -> anyhow::Result<ExitCode> {
    if options.embedded.is_some() {
        let own = EmbeddedNodes::start(options.min_replica, options.max_replica).await?;
        let outcome = measure(&options, own.cluster.clone(), Some(own.dir.path())).await;
        own.stop().await;
        return outcome;
    }
    if let Some(file) = &options.cluster.file {
        return measure(&options, quic_cluster(&ClusterFile::load(file)?)?, None).await;
    }
    let own = NodeProcesses::start(options.min_replica, options.max_replica)?;
    measure(&options, quic_cluster(&ClusterFile::load(&own.file)?)?, Some(own.dir.path())).await
}

/// Measures a cluster; the machine's limits too if its files lie in `own`.
async fn measure(options: &BenchStoreOptions, cluster: Cluster, own: Option<&Path>) -> anyhow::Result<ExitCode> {
    let map = cluster.map();
    let limits = match own {
        Some(dir) if !options.no_limits => {
            let node = map.nodes.first().context("the map has no node")?;
            Some(limits::measure(dir, node.id, &node.name).await?)
        }
        _ => None,
    };
    let sizes: Vec<(usize, usize)> = match options.size {
        Some(size) => vec![(size, options.concurrency.map_or(default_concurrency(size), usize::from))],
        None => SIZES.map(|(size, concurrency)| (size, options.concurrency.map_or(concurrency, usize::from))).to_vec(),
    };
    let contents = Arc::new(Contents::new());
    let mut figures = Vec::new();
    for (size, concurrency) in sizes {
        let bench = Bench { cluster: cluster.clone(), contents: Arc::clone(&contents), size, concurrency };
        figures.extend(match options.puts {
            Some(puts) => bench.counted(puts, options.gets).await?,
            None => bench.all(Duration::from_secs(options.seconds)).await?,
        });
    }
    cluster.close().await;
    let report =
        Report { nodes: map.nodes.len(), min_replica: map.min_replica, max_replica: map.max_replica, limits, figures };
    let text = if options.json { serde_json::to_string(&report)? } else { table(&report) };
    writeln!(crate::output::stdout(), "{text}")?;
    let failed = report.figures.iter().any(|figure| figure.failures > 0);
    Ok(if failed { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn default_concurrency(size: usize) -> usize {
    SIZES.iter().find(|(known, _)| size <= *known).map_or(4, |(_, concurrency)| *concurrency)
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["Operation", "Size", "At once", "Requests", "Per second", "MB/s", "p50 ms", "p99 ms", "max ms"]);
    for figure in &report.figures {
        table.add_row([
            figure.operation.to_owned(),
            figure.size_bytes.to_string(),
            figure.concurrency.to_string(),
            figure.requests.to_string(),
            format!("{:.0}", figure.per_second),
            format!("{:.1}", figure.bytes_per_second / 1e6),
            format!("{:.2}", figure.latency.p50_ms),
            format!("{:.2}", figure.latency.p99_ms),
            format!("{:.2}", figure.latency.max_ms),
        ]);
    }
    let mut text = table.to_string();
    if let Some(limits) = &report.limits {
        text += &format!(
            "\nlimits: raw QUIC {:.0} MB/s, fdatasync {:.0}/s, disk {:.0} MB/s, BLAKE3 {:.0} MB/s, salt {:.0} MB/s",
            limits.quic_bytes_per_second / 1e6,
            limits.fdatasync_per_second,
            limits.disk_bytes_per_second / 1e6,
            limits.blake3_bytes_per_second / 1e6,
            limits.salt_bytes_per_second / 1e6
        );
    }
    text + &format!("\n{} nodes, replicas {} to {}", report.nodes, report.min_replica, report.max_replica)
}

/// One size.
#[derive(Clone)]
struct Bench {
    cluster: Cluster,
    contents: Arc<Contents>,
    size: usize,
    concurrency: usize,
}

/// What a phase saw.
#[derive(Default)]
struct Seen {
    latencies: Mutex<Vec<Duration>>,
    failures: AtomicUsize,
}

impl Seen {
    fn note(&self, took: Duration, outcome: anyhow::Result<()>) {
        match outcome {
            Ok(()) => self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(took),
            Err(error) => {
                tracing::warn!(%error, "a request failed");
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn figure(&self, operation: &'static str, bench: &Bench, took: Duration) -> anyhow::Result<Figure> {
        let latencies = std::mem::take(&mut *self.latencies.lock().unwrap_or_else(PoisonError::into_inner));
        if latencies.is_empty() {
            bail!("no {operation} of {} bytes succeeded", bench.size);
        }
        let per_second = latencies.len() as f64 / took.as_secs_f64();
        Ok(Figure {
            operation,
            size_bytes: bench.size,
            concurrency: bench.concurrency,
            requests: latencies.len(),
            failures: self.failures.load(Ordering::Relaxed),
            seconds: took.as_secs_f64(),
            per_second,
            bytes_per_second: per_second * bench.size as f64,
            latency: Latencies::of(latencies),
        })
    }
}

/// When enough was done.
#[derive(Clone)]
enum Until {
    Moment(Instant),
    Count(Arc<AtomicUsize>),
}

impl Until {
    fn after(duration: Duration) -> Self {
        Self::Moment(Instant::now() + duration)
    }

    fn count(count: usize) -> Self {
        Self::Count(Arc::new(AtomicUsize::new(count)))
    }

    /// Whether another request is to be made.
    fn goes_on(&self) -> bool {
        match self {
            Self::Moment(end) => Instant::now() < *end,
            Self::Count(left) => left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok(),
        }
    }
}

impl Bench {
    /// So many puts, then so many gets.
    async fn counted(&self, puts: usize, gets: usize) -> anyhow::Result<Vec<Figure>> {
        let names = Arc::new(Mutex::new(Vec::new()));
        let mut figures = vec![self.puts(&names, Until::count(puts)).await?];
        let names = Arc::new(std::mem::take(&mut *names.lock().unwrap_or_else(PoisonError::into_inner)));
        if gets > 0 {
            figures.push(self.gets(&names, &Arc::default(), Until::count(gets)).await?);
        }
        Ok(figures)
    }

    async fn puts(&self, names: &Arc<Mutex<Vec<BlobName>>>, until: Until) -> anyhow::Result<Figure> {
        let names = Arc::clone(names);
        self.saturate("put", until, move |bench| bench.put(Arc::clone(&names))).await
    }

    async fn gets(&self, names: &Arc<Vec<BlobName>>, next: &Arc<AtomicUsize>, until: Until) -> anyhow::Result<Figure> {
        let (names, next) = (Arc::clone(names), Arc::clone(next));
        self.saturate("get", until, move |bench| bench.get(Arc::clone(&names), Arc::clone(&next))).await
    }

    async fn all(&self, duration: Duration) -> anyhow::Result<Vec<Figure>> {
        let names = Arc::new(Mutex::new(Vec::new()));
        let put = self.puts(&names, Until::after(duration)).await?;
        let names: Arc<Vec<BlobName>> =
            Arc::new(std::mem::take(&mut *names.lock().unwrap_or_else(PoisonError::into_inner)));
        let next = Arc::new(AtomicUsize::new(0));
        let get = self.gets(&names, &next, Until::after(duration)).await?;
        let mixed = self.mixed(duration, (put.per_second / 4.0, get.per_second / 4.0), names, next).await?;
        Ok([put, get].into_iter().chain(mixed).collect())
    }

    async fn put(self, names: Arc<Mutex<Vec<BlobName>>>) -> anyhow::Result<()> {
        let stored = self.cluster.put(self.contents.next(self.size)).await?;
        names.lock().unwrap_or_else(PoisonError::into_inner).push(stored.name);
        Ok(())
    }

    async fn get(self, names: Arc<Vec<BlobName>>, next: Arc<AtomicUsize>) -> anyhow::Result<()> {
        let at = next.fetch_add(1, Ordering::Relaxed) % names.len().max(1);
        let name = *names.get(at).context("nothing was put")?;
        let mut download = self.cluster.get(name, None).await?;
        let mut length = 0;
        while let Some(piece) = download.next().await? {
            length += piece.len();
        }
        if length != self.size {
            bail!("{name} came back with {length} bytes");
        }
        Ok(())
    }

    /// As many requests as go, `concurrency` at once.
    async fn saturate<F, R>(&self, operation: &'static str, until: Until, request: F) -> anyhow::Result<Figure>
    where
        F: Fn(Bench) -> R + Clone + Send + 'static,
        R: Future<Output = anyhow::Result<()>> + Send,
    {
        let seen = Arc::new(Seen::default());
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..self.concurrency {
            let (bench, seen, request, until) = (self.clone(), Arc::clone(&seen), request.clone(), until.clone());
            tasks.spawn(async move {
                while until.goes_on() {
                    let begun = Instant::now();
                    let outcome = request(bench.clone()).await;
                    seen.note(begun.elapsed(), outcome);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        // Copies in the background are part of the price.
        self.cluster.settle().await;
        seen.figure(operation, self, began.elapsed())
    }

    /// Puts and gets side by side at fixed rates, latency counted from when each was due.
    async fn mixed(
        &self,
        duration: Duration,
        (puts, gets): (f64, f64),
        names: Arc<Vec<BlobName>>,
        next: Arc<AtomicUsize>,
    ) -> anyhow::Result<[Figure; 2]> {
        let stored = Arc::new(Mutex::new(Vec::new()));
        let put = self.at_rate(puts, duration, move |bench| bench.put(Arc::clone(&stored)));
        let get = self.at_rate(gets, duration, move |bench| bench.get(Arc::clone(&names), Arc::clone(&next)));
        let (puts, gets) = tokio::join!(put, get);
        Ok([puts.0.figure("put, mixed", self, puts.1)?, gets.0.figure("get, mixed", self, gets.1)?])
    }

    async fn at_rate<F, R>(&self, per_second: f64, duration: Duration, request: F) -> (Arc<Seen>, Duration)
    where
        F: Fn(Bench) -> R + Send,
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let seen = Arc::new(Seen::default());
        let began = tokio::time::Instant::now();
        let mut tasks = JoinSet::new();
        let mut number = 0_u32;
        loop {
            let due = began + Duration::from_secs_f64(f64::from(number) / per_second.max(0.1));
            if due.duration_since(began) >= duration {
                break;
            }
            tokio::time::sleep_until(due).await;
            let (seen, request) = (Arc::clone(&seen), request(self.clone()));
            tasks.spawn(async move {
                let outcome = request.await;
                seen.note(due.elapsed(), outcome);
            });
            while tasks.try_join_next().is_some() {}
            number += 1;
        }
        while tasks.join_next().await.is_some() {}
        (seen, began.elapsed())
    }
}

/// Nodes in processes of their own, for as long as this lives.
struct NodeProcesses {
    /// First, so that they have ended when their directory is removed.
    _nodes: Vec<Server>,
    dir: tempfile::TempDir,
    file: PathBuf,
}

impl NodeProcesses {
    fn start(min_replica: u8, max_replica: u8) -> anyhow::Result<Self> {
        let (dir, file) = new_cluster(min_replica, max_replica)?;
        let config = |number: u16| dir.path().join(format!("node{number}.yml"));
        let start = |number| Server::start(["storage-node".as_ref(), "--config".as_ref(), config(number).as_os_str()]);
        let nodes = (1..=NODES).map(start).collect::<anyhow::Result<_>>()?;
        Ok(Self { _nodes: nodes, dir, file })
    }
}

/// The files of a cluster in a directory of its own.
fn new_cluster(min_replica: u8, max_replica: u8) -> anyhow::Result<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::Builder::new().prefix("lazaret-bench-").tempdir()?;
    let options = InitOptions {
        dir: dir.path().to_owned(),
        nodes: NODES,
        node_addresses: free_addresses(usize::from(NODES))?,
        gateway_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        min_replica,
        max_replica,
    };
    let file = init::init(&options, &*Environment::system().random)?;
    Ok((dir, file))
}

/// Nodes in this process, reached without a network.
struct EmbeddedNodes {
    dir: tempfile::TempDir,
    cluster: Cluster,
    nodes: Nodes,
}

impl EmbeddedNodes {
    async fn start(min_replica: u8, max_replica: u8) -> anyhow::Result<Self> {
        let (dir, file) = new_cluster(min_replica, max_replica)?;
        let nodes = Nodes::start(dir.path(), ClusterFile::load(&file)?).await?;
        Ok(Self { cluster: nodes.cluster()?, dir, nodes })
    }

    async fn stop(self) {
        self.cluster.close().await;
        self.nodes.stop().await;
    }
}

fn free_addresses(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let sockets: Result<Vec<UdpSocket>, _> = (0..count).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    let addresses: Result<Vec<SocketAddr>, _> = sockets?.iter().map(UdpSocket::local_addr).collect();
    Ok(addresses?)
}
