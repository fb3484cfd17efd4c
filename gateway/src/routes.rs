//! The table of routes. Each route's own file reads the request, calls a workflow and writes the answer, and nothing else.
//!
//! Every path is served under `/metascan_rest` as well, where older clients look for it. What is not in the table answers
//! in JSON like everything else.

mod admin;
mod batch;
mod cancel;
mod docs;
mod documented;
mod download;
mod file_result;
mod file_submit;
mod hash;
mod headers;
mod login;
mod logout;
mod passwords;
mod readyz;
mod rules;
mod stat;
mod users;
mod version;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use self::stat::EnginesSeen;
use crate::drain::drain;
use crate::error::ApiError;
use crate::gateway::Shared;
use crate::options::READ_TIMEOUT;
use crate::requests::{self, ALIAS};

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let reads = OpenApiRouter::with_openapi(docs::Description::openapi())
        .routes(routes!(file_result::handle))
        .routes(routes!(hash::handle))
        .routes(routes!(rules::handle))
        .routes(routes!(cancel::of_file))
        .routes(routes!(batch::create))
        .routes(routes!(batch::close))
        .routes(routes!(batch::status))
        .routes(routes!(cancel::of_batch))
        .routes(routes!(admin::license))
        .routes(routes!(admin::healthcheck))
        .routes(routes!(stat::engines))
        .routes(routes!(stat::nodes))
        .routes(routes!(login::handle))
        .routes(routes!(logout::handle))
        .routes(routes!(users::list, users::add))
        .routes(routes!(users::remove))
        .routes(routes!(users::change_password))
        .routes(routes!(readyz::handle))
        .routes(routes!(version::handle))
        .routes(routes!(docs::openapi))
        .routes(routes!(docs::page))
        .route_layer(middleware::from_fn(in_time));
    // What takes as long as the bytes on their way, or as an analysis.
    let (paths, openapi) = reads
        .routes(routes!(file_submit::handle))
        .routes(routes!(file_submit::handle_sync))
        .routes(routes!(batch::certificate))
        .routes(routes!(download::converted))
        .routes(routes!(download::download))
        .split_for_parts();
    let paths = paths.method_not_allowed_fallback(no_method);
    shared.openapi.get_or_init(|| openapi.to_json().unwrap_or_default());
    Router::new()
        .merge(paths.clone())
        .nest(ALIAS, paths)
        .fallback(no_route)
        .layer(middleware::from_fn(drain))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared.metrics), requests::told))
        .with_state(shared)
}

/// What a path of the table answers to other methods.
async fn no_method(method: Method, uri: Uri) -> ApiError {
    misdirected(&method, &uri).unwrap_or(ApiError::NoMethod)
}

/// What a path that is not in the table answers.
async fn no_route(method: Method, uri: Uri) -> ApiError {
    misdirected(&method, &uri).unwrap_or(ApiError::NoRoute)
}

/// The better answer where a client left out what belongs at the end of a path.
fn misdirected(method: &Method, uri: &Uri) -> Option<ApiError> {
    let path = uri.path().strip_prefix(ALIAS).unwrap_or(uri.path());
    (method == Method::DELETE && path.trim_end_matches('/') == "/admin/user").then(users::without_number)
}

/// Who asks, as an analysis keeps it.
fn recorded(principal: lazaret_identity::Principal) -> lazaret_analysis::Principal {
    lazaret_analysis::Principal {
        user_id: principal.user_id.to_string(),
        role: principal.role.as_str().to_owned(),
        user_name: principal.user_name,
    }
}

/// Answers 503 instead of letting a client wait without end.
async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(READ_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::Timeout.into_response(),
    }
}
