//! `GET /metrics` for Prometheus, on a listener of its own, so that whoever scrapes reaches nothing else.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::http::header;
use axum::routing::get;
use lazaret_storage_node::node::{Node, metrics};
use tokio::net::TcpListener;

/// The media type of the OpenMetrics text format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the metrics of `nodes` at `address` until the process ends; returns where.
pub async fn serve(address: SocketAddr, nodes: Vec<Node>) -> anyhow::Result<SocketAddr> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen for metrics on {address}"))?;
    let bound = listener.local_addr()?;
    let scrape = move || async move {
        let text = tokio::task::spawn_blocking(move || metrics::render(&nodes)).await.unwrap_or_default();
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
