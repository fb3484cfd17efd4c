//! GET /readyz: public. The details are for callers with a key; a probe without one gets the status alone.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::{Gate, query_parameter, require};
use crate::gateway::Shared;
use crate::readiness::Report;

/// The answer: with details to callers with a key who ask for them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ReadyAnswer {
    Brief(Brief),
    Full(Box<Report>),
}

/// The answer without details.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Brief {
    /// Whether everything works.
    status: bool,
}

/// Whether everything works; with `verbose` and a key, which part does not.
#[utoipa::path(get, path = "/readyz", tag = "Statistics", security((), ("apikey" = [])),
    params(("verbose" = Option<bool>, Query, description = "Show the details, to callers with a key")),
    responses((status = 200, description = "Healthy", body = ReadyAnswer), (status = 503, description = "Not healthy", body = ReadyAnswer)))]
pub(super) async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> (StatusCode, Json<ReadyAnswer>) {
    let (parts, _) = request.into_parts();
    let report = shared.readiness.report().await;
    let code = if report.status { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let asked = query_parameter(&parts, "verbose")
        .is_some_and(|value| ["", "1", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes)));
    let answer = if asked && require(&shared, &parts, Gate::ANY_KEY).await.is_ok() {
        ReadyAnswer::Full(Box::new(Report::clone(&report)))
    } else {
        ReadyAnswer::Brief(Brief { status: report.status })
    };
    (code, Json(answer))
}
