//! POST /file/{id}/cancel and POST /file/batch/{batch_id}/cancel. The first takes a batch's id as well, as older clients
//! send it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use futures_util::{TryStreamExt, stream};
use lazaret_analysis::store::PAGE_RECORDS_MAX;
use lazaret_analysis::{AnalysisRecord, DataId, FileResult, ResultCode, State as Progressing};

use super::documented::{BadRequest, Forbidden, NoRight, NotFound, Unexpected};
use crate::access::{Gate, may_cancel, require};
use crate::error::ApiError;
use crate::gateway::Shared;

/// Files of a batch that are closed at once: they share transactions.
const CLOSED_AT_ONCE: usize = 64;

/// `{"<id>": "cancelled"}`.
type Cancelled = Json<BTreeMap<String, &'static str>>;

/// Cancels an analysis that is under way; the id of a batch cancels the batch.
#[utoipa::path(post, path = "/file/{data_id}/cancel", tag = "Analysis",
    params(("data_id" = String, Path, description = "The analysis")),
    responses((status = 200, description = "{\"<data_id>\": \"cancelled\"}", body = BTreeMap<String, String>),
        BadRequest, Forbidden, NotFound, NoRight, Unexpected))]
pub(super) async fn of_file(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Cancelled, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(&shared, &parts, Gate::CANCEL).await?;
    let asked = path.map(|Path(text)| text).unwrap_or_default();
    let id = asked.parse::<DataId>().map_err(|_| ApiError::NotFound)?;
    let Some(record) = shared.results.get(id).await.map_err(ApiError::Results)? else {
        return cancel_batch(&shared, &parts, asked).await;
    };
    if !may_cancel(&principal, &record.new.principal.user_id) {
        return Err(ApiError::NotFound);
    }
    cancel(&shared, record).await?;
    Ok(Json(BTreeMap::from([(asked, "cancelled")])))
}

/// Cancels all analyses of a batch that are under way, and closes it.
#[utoipa::path(post, path = "/file/batch/{batch_id}/cancel", tag = "Batch",
    params(("batch_id" = String, Path, description = "The batch")),
    responses((status = 200, description = "{\"<batch_id>\": \"cancelled\"}", body = BTreeMap<String, String>),
        BadRequest, Forbidden, NotFound, Unexpected))]
pub(super) async fn of_batch(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Cancelled, ApiError> {
    let (parts, _) = request.into_parts();
    cancel_batch(&shared, &parts, path.map(|Path(text)| text).unwrap_or_default()).await
}

/// Asks for an analysis to be cancelled. One that no worker has begun is closed at once, since nobody else would see to it
/// before a worker is free.
async fn cancel(shared: &Shared, record: AnalysisRecord) -> Result<(), ApiError> {
    let id = record.data_id;
    if record.state == Progressing::Cancelled {
        return Ok(());
    }
    if !shared.results.request_cancel(id).await.map_err(ApiError::Results)? {
        return Err(ApiError::Finished);
    }
    close_queued(shared, record).await?;
    tracing::info!(data_id = %id, "analysis cancelled");
    Ok(())
}

/// Finishes an analysis that was cancelled before a worker began it. A worker that begins meanwhile finds it finished and lets
/// go of it.
async fn close_queued(shared: &Shared, record: AnalysisRecord) -> Result<(), ApiError> {
    if record.state != Progressing::Queued {
        return Ok(());
    }
    let now_ms = shared.now_ms();
    let result = FileResult::unscanned(record.new.file, ResultCode::CANCELLED, String::new(), now_ms);
    shared.results.finish(record.data_id, &result, now_ms).await.map_err(ApiError::Results)?;
    Ok(())
}

/// The same for all files of a batch. Nothing joins it any more.
async fn close_queued_of(shared: &Shared, batch_id: DataId) -> Result<(), ApiError> {
    let mut first = 0;
    loop {
        let members = shared.results.batch_members(batch_id, first, PAGE_RECORDS_MAX).await;
        let members = members.map_err(ApiError::Results)?;
        if members.is_empty() {
            return Ok(());
        }
        first = first.saturating_add(PAGE_RECORDS_MAX);
        let closing = stream::iter(members.into_iter().map(Ok));
        closing.try_for_each_concurrent(CLOSED_AT_ONCE, |member| close_queued(shared, member)).await?;
    }
}

async fn cancel_batch(shared: &Shared, parts: &Parts, asked: String) -> Result<Cancelled, ApiError> {
    let principal = require(shared, parts, Gate::BATCH_CANCEL).await?;
    let id = asked.parse::<DataId>().map_err(|_| ApiError::NotFound)?;
    let (batch, _) = shared.results.batch_head(id).await.map_err(ApiError::Results)?.ok_or(ApiError::NotFound)?;
    if !may_cancel(&principal, &batch.principal.user_id) {
        return Err(ApiError::NotFound);
    }
    if !shared.results.cancel_batch(id, shared.now_ms()).await.map_err(ApiError::Results)? {
        return Err(ApiError::NotFound);
    }
    close_queued_of(shared, id).await?;
    tracing::info!(batch_id = %id, "batch cancelled");
    Ok(Json(BTreeMap::from([(asked, "cancelled")])))
}
