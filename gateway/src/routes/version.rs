//! GET /version: public.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::gateway::Shared;

/// What the product calls itself.
pub(super) const PRODUCT_ID: &str = "LAZARET";

/// What runs here.
#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    product_id: &'static str,
    version: String,
}

/// The product and its version.
#[utoipa::path(get, path = "/version", tag = "Statistics", security(()),
    responses((status = 200, description = "The version", body = Version)))]
pub(super) async fn handle(State(shared): State<Arc<Shared>>) -> Json<Version> {
    Json(Version { product_id: PRODUCT_ID, version: shared.version.clone() })
}
