//! GET /version: public.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::gateway::Shared;

/// What the product calls itself.
const PRODUCT_ID: &str = "LAZARET";

#[derive(Serialize)]
pub(super) struct Version {
    product_id: &'static str,
    version: String,
}

pub(super) async fn handle(State(shared): State<Arc<Shared>>) -> Json<Version> {
    Json(Version { product_id: PRODUCT_ID, version: shared.version.clone() })
}
