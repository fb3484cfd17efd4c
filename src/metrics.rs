//! `GET /metrics` for Prometheus, on a listener of its own, so that whoever scrapes reaches nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use axum::Router;
use axum::http::header;
use axum::routing::get;
use lazaret_scan_worker::scan::VerdictCounters;
use lazaret_storage_node::node::{Node, metrics};
use tokio::net::TcpListener;

/// The media type of the OpenMetrics text format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The end of a text in this format.
const END: &str = "# EOF\n";

/// Serves the metrics of `nodes` and of a scan worker at `address` until the process ends; returns where.
pub async fn serve(
    address: SocketAddr,
    nodes: Vec<Node>,
    verdicts: Option<Arc<VerdictCounters>>,
) -> anyhow::Result<SocketAddr> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen for metrics on {address}"))?;
    let bound = listener.local_addr()?;
    let scrape = move || async move {
        let mut text = tokio::task::spawn_blocking(move || metrics::render(&nodes)).await.unwrap_or_default();
        if let Some(verdicts) = &verdicts {
            text.truncate(text.strip_suffix(END).unwrap_or(&text).len());
            text += &verdict_metrics(verdicts);
            text += END;
        }
        ([(header::CONTENT_TYPE, CONTENT_TYPE)], text)
    };
    let router = Router::new().route("/metrics", get(scrape));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(bound)
}

/// What became of questions about earlier scans.
fn verdict_metrics(counters: &VerdictCounters) -> String {
    let all = [
        ("asked", "Files that were looked up among the verdicts of earlier scans", &counters.asked),
        ("known", "Files whose verdict was known", &counters.known),
        ("known_members", "Files nested in containers that were known", &counters.known_members),
        ("kept", "Files whose verdict was kept for others", &counters.kept),
        ("waited", "Submissions that waited for the scan of a twin", &counters.waited),
    ];
    let line = |(name, help, counter): (&str, &str, &std::sync::atomic::AtomicU64)| {
        let name = format!("lazaret_scan_verdicts_{name}");
        let count = counter.load(Ordering::Relaxed);
        format!("# HELP {name} {help}.\n# TYPE {name} counter\n{name}_total {count}\n")
    };
    all.map(line).concat()
}
