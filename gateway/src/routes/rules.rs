//! GET /file/rules: the rules that the caller may use.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::documented::{Forbidden, Unexpected};
use super::headers;
use crate::access::{Gate, require};
use crate::error::ApiError;
use crate::gateway::Shared;

/// A rule, as far as it concerns those who submit.
#[derive(Serialize, ToSchema)]
pub(super) struct RuleAnswer {
    /// The longest file that it takes, in bytes.
    max_file_size: u64,
    /// Its name.
    name: String,
    /// How long an analysis may take.
    global_timeout: GlobalTimeout,
}

/// A time limit.
#[derive(Serialize, ToSchema)]
struct GlobalTimeout {
    /// In seconds; 0 if there is none.
    value: u64,
    /// Whether there is one.
    enabled: bool,
}

/// The rules that the caller may use.
#[utoipa::path(get, path = "/file/rules", tag = "Analysis",
    responses((status = 200, description = "The rules", body = Vec<RuleAnswer>), Forbidden, Unexpected))]
pub(super) async fn handle(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Vec<RuleAnswer>>, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(&shared, &parts, Gate::RULES).await?;
    let user_agent = headers::user_agent(&parts.headers);
    let rules = shared.rules();
    let usable = rules.rules().iter().filter(|rule| rule.admits(principal.role.as_str(), &user_agent));
    let answer = usable.map(|rule| RuleAnswer {
        max_file_size: rule.max_file_size_bytes,
        name: rule.name.clone(),
        global_timeout: GlobalTimeout {
            value: rule.global_timeout_seconds.unwrap_or(0),
            enabled: rule.global_timeout_seconds.is_some(),
        },
    });
    Ok(Json(answer.collect()))
}
