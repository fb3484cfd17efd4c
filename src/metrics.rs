//! `GET /metrics` for Prometheus, on a listener of its own, so that whoever scrapes reaches nothing else. One listener tells of
//! everything that runs in the process.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lazaret_gateway::GatewayMonitor;
use lazaret_scan_worker::WorkerMonitor;
use lazaret_storage_node::node::{Node, metrics};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The media type of the OpenMetrics text format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The last line of the text.
const END: &str = "# EOF";

/// Scrapes at once; further ones wait. Each asks the queue, the disks and every part of the gateway.
const SCRAPES_MAX: usize = 2;

/// What runs in this process.
#[derive(Clone, Default)]
pub struct Told {
    /// Storage nodes.
    pub nodes: Vec<Node>,
    /// The scan worker, if there is one.
    pub worker: Option<WorkerMonitor>,
    /// The gateway, if there is one.
    pub gateway: Option<GatewayMonitor>,
}

impl Told {
    /// All of it as text.
    async fn text(self) -> anyhow::Result<String> {
        let nodes = self.nodes;
        // Nodes ask their disks.
        let mut registry = tokio::task::spawn_blocking(move || {
            let mut registry = Registry::default();
            metrics::describe(&nodes, &mut registry);
            describe_process(&mut registry);
            #[cfg(feature = "otlp")]
            describe_traces(&mut registry);
            registry
        })
        .await?;
        if let Some(worker) = &self.worker {
            worker.describe(&mut registry);
        }
        if let Some(gateway) = &self.gateway {
            gateway.describe(&mut registry).await;
        }
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(each_family_once(&text))
    }
}

/// The same samples with each family in one piece, as the format asks for: the encoder begins a family anew for every node and
/// every disk that has it. A family begins with its `# HELP` line; families and samples stay in the order in which they came.
fn each_family_once(text: &str) -> String {
    let mut families: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    let mut current = None;
    for line in text.lines().filter(|line| *line != END) {
        let begins = line.strip_prefix("# HELP ").and_then(|rest| rest.split(' ').next());
        if let Some(name) = begins {
            let next = families.len();
            current = Some(*known.entry(name).or_insert(next));
            if current == Some(next) {
                families.push((Vec::new(), Vec::new()));
            }
        }
        let Some((head, samples)) = current.and_then(|index| families.get_mut(index)) else { continue };
        if !line.starts_with('#') {
            samples.push(line);
        } else if !head.contains(&line) {
            head.push(line);
        }
    }
    let mut whole = String::with_capacity(text.len());
    for line in families.iter().flat_map(|(head, samples)| head.iter().chain(samples)).chain([&END]) {
        whole.push_str(line);
        whole.push('\n');
    }
    whole
}

/// What monitoring commonly asks of every process, by the names that Prometheus' own clients use.
fn describe_process(registry: &mut Registry) {
    /// Of /proc/PID/stat: what is behind the name, counted from the state on; in units of 1/100 s (proc(5)).
    const USER_TICKS: usize = 11;
    const SYSTEM_TICKS: usize = 12;
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    if let (Some(user), Some(system)) = (ticks(USER_TICKS), ticks(SYSTEM_TICKS)) {
        let seconds = ConstCounter::<f64>::new((user + system) / TICKS_PER_SECOND);
        registry.register_with_unit("process_cpu", "processor time used", Unit::Seconds, seconds);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse::<i64>().ok()
    };
    if let Some(kib) = number("VmRSS:") {
        let bytes = ConstGauge::<i64>::new(kib.saturating_mul(1024));
        registry.register_with_unit("process_resident_memory", "resident memory", Unit::Bytes, bytes);
    }
    if let Some(threads) = number("Threads:") {
        registry.register("process_threads", "threads", ConstGauge::<i64>::new(threads));
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        let open = ConstGauge::<i64>::new(i64::try_from(descriptors.count()).unwrap_or(i64::MAX));
        registry.register("process_open_fds", "open file descriptors", open);
    }
}

/// What became of the spans of traces.
#[cfg(feature = "otlp")]
fn describe_traces(registry: &mut Registry) {
    let (sent, dropped) = (crate::traces::sent(), crate::traces::dropped());
    registry.register("lazaret_otlp_spans_sent", "spans that the collector took", ConstCounter::new(sent));
    registry.register("lazaret_otlp_spans_dropped", "spans that were lost", ConstCounter::new(dropped));
}

/// Serves what there is to tell at `address` until the process ends; returns where.
pub async fn serve(address: SocketAddr, told: Told) -> anyhow::Result<SocketAddr> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen for metrics on {address}"))?;
    let bound = listener.local_addr()?;
    let places = Arc::new(Semaphore::new(SCRAPES_MAX));
    let scrape = move || {
        let (told, places) = (told.clone(), Arc::clone(&places));
        async move {
            let _place = places.acquire().await;
            answer(told.text().await)
        }
    };
    let router = Router::new().route("/metrics", get(scrape));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    tracing::info!(address = %bound, "metrics are served");
    Ok(bound)
}

fn answer(text: anyhow::Result<String>) -> Response {
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be put together");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_of_several_nodes_is_told_once() {
        let text = "# HELP a first.\n# TYPE a gauge\na{node=\"1\"} 1\n# HELP b_bytes second.\n# TYPE b_bytes gauge\n\
                    # UNIT b_bytes bytes\nb_bytes{node=\"1\"} 2\n# HELP a first.\n# TYPE a gauge\na{node=\"2\"} 3\n# EOF\n";
        let once = "# HELP a first.\n# TYPE a gauge\na{node=\"1\"} 1\na{node=\"2\"} 3\n# HELP b_bytes second.\n\
                    # TYPE b_bytes gauge\n# UNIT b_bytes bytes\nb_bytes{node=\"1\"} 2\n# EOF\n";
        assert_eq!(each_family_once(text), once);
        assert_eq!(each_family_once(once), once);
        assert_eq!(each_family_once("# EOF\n"), "# EOF\n");
    }
}
