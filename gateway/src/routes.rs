//! The table of routes. Each route's own file reads the request, calls a workflow and writes the answer, and nothing else.
//!
//! Every path is served under `/metascan_rest` as well, where older clients look for it. What is not in the table answers
//! in JSON like everything else.

mod file_result;
mod file_submit;
mod login;
mod logout;
mod passwords;
mod readyz;
mod version;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::error::{ApiError, Reason};
use crate::gateway::Shared;
use crate::options::READ_TIMEOUT;

/// Where older clients look for the same paths.
const ALIAS: &str = "/metascan_rest";

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let reads = Router::new()
        .route("/file/{data_id}", get(file_result::handle))
        .route("/login", post(login::handle))
        .route("/logout", post(logout::handle))
        .route("/readyz", get(readyz::handle))
        .route("/version", get(version::handle))
        .route_layer(middleware::from_fn(in_time));
    let paths = Router::new()
        .route("/file", post(file_submit::handle))
        .merge(reads)
        .method_not_allowed_fallback(|| async { ApiError::NoMethod });
    Router::new()
        .merge(paths.clone())
        .nest(ALIAS, paths)
        .fallback(|| async { ApiError::NoRoute })
        .layer(middleware::from_fn(logged))
        .with_state(shared)
}

/// Answers 503 instead of letting a client wait without end.
async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(READ_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::Timeout.into_response(),
    }
}

/// One event a refusal or failure; successes only for those who debug, since polls are many. The path goes in without
/// its query, which may hold a key.
async fn logged(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let reason = response.extensions().get::<Reason>().map_or("", |reason| reason.0.as_str());
    if response.status() >= StatusCode::INTERNAL_SERVER_ERROR {
        tracing::warn!(%method, path, status, ms, reason, "request failed");
    } else if response.status() >= StatusCode::BAD_REQUEST {
        tracing::info!(%method, path, status, ms, reason, "request refused");
    } else {
        tracing::debug!(%method, path, status, ms, "request answered");
    }
    response
}
