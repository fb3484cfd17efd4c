//! POST /login: a session for a name and a password. The body is JSON, whatever its Content-Type says.
//!
//! A refusal does not say why, and nothing of the body is repeated in an answer or a log: it holds a password.

use std::sync::Arc;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use lazaret_analysis::DataId;
use lazaret_identity::LoginError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::documented::{BadRequest, Busy, Forbidden, Unexpected};
use crate::access::client_address;
use crate::error::ApiError;
use crate::gateway::Shared;

/// Longest body: the longest name and password, with every character escaped, fit.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// Who logs in.
#[derive(Deserialize, ToSchema)]
pub(super) struct Credentials {
    user: String,
    password: String,
}

/// A session.
#[derive(Serialize, ToSchema)]
pub(super) struct Begun {
    /// The reference's clients expect one. Nothing here asks for it: no cookie is ever set, so that no foreign page can make a
    /// browser send a session along.
    #[serde(rename = "oms-csrf-token")]
    csrf_token: String,
    /// What goes into the header `apikey`.
    session_id: String,
}

/// Begins a session. The body is JSON, whatever its Content-Type says.
#[utoipa::path(post, path = "/login", tag = "Authentication", security(()), request_body = Credentials,
    responses((status = 200, description = "The session", body = Begun), BadRequest, Forbidden, Unexpected, Busy))]
pub(super) async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Begun>, ApiError> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| ApiError::BadCredentials)?;
    // The parser's own words would repeat the body.
    let asked: Credentials = serde_json::from_slice(&body).map_err(|_| ApiError::BadCredentials)?;
    match shared.identity.login(&asked.user, &asked.password, client_address(&parts)).await {
        Ok(session) => {
            // 128 random bits, in the form in which they are at hand here.
            Ok(Json(Begun { csrf_token: DataId::random().to_string(), session_id: session.id.0 }))
        }
        Err(LoginError::Refused) => Err(ApiError::LoginFailed),
        Err(LoginError::Busy) => Err(ApiError::TooManyLogins),
        Err(LoginError::Identity(error)) => Err(ApiError::Identity(error)),
    }
}
