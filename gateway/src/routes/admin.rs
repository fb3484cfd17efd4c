//! GET /admin/license and GET /admin/config/healthcheck.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use time::{Date, Month, OffsetDateTime};
use utoipa::ToSchema;

use super::documented::{Forbidden, NoRight, Unexpected};
use super::stat;
use crate::access::{Gate, require};
use crate::error::ApiError;
use crate::gateway::Shared;
use crate::readiness::Report;

/// The licence. Lazaret's own does not end; clients of this API read a date, so it is one that none of them will see.
#[derive(Serialize, ToSchema)]
pub(super) struct License {
    /// Days left.
    days_left: i64,
    /// What the licence is bound to: nothing.
    deployment: String,
    /// `MM/DD/YYYY`.
    expiration: String,
    /// Identifiers of the engines that are loaded.
    licensed_engines: Vec<String>,
    /// Whom it is issued to.
    licensed_to: String,
    /// Scan workers there are now.
    max_agent_count: String,
    /// Whether it was activated over a network.
    online_activated: bool,
    /// The product.
    product_id: String,
    /// The product for people.
    product_name: String,
}

/// The licence.
#[utoipa::path(get, path = "/admin/license", tag = "License",
    responses((status = 200, description = "The licence", body = License), Forbidden, NoRight, Unexpected))]
pub(super) async fn license(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<License>, ApiError> {
    let (parts, _) = request.into_parts();
    require(&shared, &parts, Gate::LICENSE).await?;
    let workers = stat::workers(&shared).await?;
    let today = OffsetDateTime::from_unix_timestamp(i64::try_from(shared.now_ms() / 1000).unwrap_or(0))
        .map_or(OffsetDateTime::UNIX_EPOCH.date(), OffsetDateTime::date);
    let end = Date::from_calendar_date(2099, Month::December, 31).unwrap_or(Date::MAX);
    Ok(Json(License {
        days_left: (end - today).whole_days(),
        deployment: String::new(),
        expiration: format!("{:02}/{:02}/{:04}", u8::from(end.month()), end.day(), end.year()),
        licensed_engines: stat::latest_engines(&workers).into_iter().map(|engine| engine.id).collect(),
        licensed_to: String::new(),
        max_agent_count: workers.len().to_string(),
        online_activated: false,
        product_id: super::version::PRODUCT_ID.to_owned(),
        product_name: "Lazaret".to_owned(),
    }))
}

/// Health, as older clients ask for it: what GET /readyz tells, with details.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthCheck {
    /// Always true: health is always watched.
    enabled: bool,
    #[serde(flatten)]
    report: Report,
}

/// Health with details, under the path that older clients know.
#[utoipa::path(get, path = "/admin/config/healthcheck", tag = "Statistics",
    responses((status = 200, description = "Healthy", body = HealthCheck),
        (status = 503, description = "Not healthy", body = HealthCheck), Forbidden, NoRight, Unexpected))]
pub(super) async fn healthcheck(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<(StatusCode, Json<HealthCheck>), ApiError> {
    let (parts, _) = request.into_parts();
    require(&shared, &parts, Gate::HEALTH_CHECK).await?;
    let report = shared.readiness.report().await;
    let status = if report.status { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(HealthCheck { enabled: true, report: report.as_ref().clone() })))
}
