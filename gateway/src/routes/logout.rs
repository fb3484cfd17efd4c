//! POST /logout: ends the session that the request presents. An API key has no end, and is told so.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use lazaret_identity::Logout;
use serde::Serialize;
use utoipa::ToSchema;

use super::documented::{BadRequest, Forbidden, Unexpected};
use crate::access::{Presented, client_address, presented};
use crate::error::ApiError;
use crate::gateway::Shared;

/// The end of a session.
#[derive(Serialize, ToSchema)]
pub(super) struct Ended {
    /// In words.
    #[schema(value_type = String)]
    response: &'static str,
}

/// Ends the session that the request presents.
#[utoipa::path(post, path = "/logout", tag = "Authentication",
    responses((status = 200, description = "It is ended", body = Ended), BadRequest, Forbidden, Unexpected))]
pub(super) async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Ended>, ApiError> {
    let (parts, _) = request.into_parts();
    let Presented::Key(key) = presented(&parts) else {
        return Err(ApiError::Refused { status: StatusCode::FORBIDDEN });
    };
    match shared.identity.logout(&key, client_address(&parts)).await.map_err(ApiError::Identity)? {
        Logout::Ended => Ok(Json(Ended { response: "Logout success" })),
        Logout::ApiKey => Err(ApiError::NoSession),
        Logout::Unknown => Err(ApiError::Refused { status: StatusCode::FORBIDDEN }),
    }
}
