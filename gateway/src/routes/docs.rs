//! GET /openapi.json: this API in OpenAPI 3.1, generated from the routes. GET /docs: the same for people, a page that needs no
//! other host.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::error::ErrorBody;
use crate::gateway::Shared;

const PAGE: &str = include_str!("docs.html");

/// What the routes do not say of themselves.
#[derive(OpenApi)]
#[openapi(
    info(title = "Lazaret", description = "Takes files into quarantine, scans them, and answers with a verdict."),
    components(schemas(ErrorBody)),
    modifiers(&WithKey)
)]
pub(super) struct Description;

struct WithKey;

impl Modify for WithKey {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let key = ApiKeyValue::with_description("apikey", "An API key, or the session_id of POST /login");
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("apikey", SecurityScheme::ApiKey(ApiKey::Header(key)));
        openapi.security = Some(vec![SecurityRequirement::new("apikey", Vec::<String>::new())]);
    }
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "Description", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")))]
pub(super) async fn openapi(State(shared): State<Arc<Shared>>) -> Response {
    let json = shared.openapi.get().cloned().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// This description as a page.
#[utoipa::path(get, path = "/docs", tag = "Description", security(()),
    responses((status = 200, description = "A page that shows it", content_type = "text/html")))]
pub(super) async fn page() -> Response {
    let mut response = Html(PAGE).into_response();
    let policy = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}
