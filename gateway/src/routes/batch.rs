//! Batches: POST /file/batch, POST /file/batch/{batch_id}/close, GET /file/batch/{batch_id} and its certificate.
//!
//! Whoever may not see a batch is told exactly what is said of one that does not exist.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use lazaret_analysis::store::PAGE_RECORDS_MAX;
use lazaret_analysis::{AnalysisRecord, DataId, NewBatch, Progress};
use lazaret_identity::Principal;
use serde::Serialize;
use utoipa::ToSchema;

use super::documented::{BadRequest, Forbidden, NotFound, Paging, Unexpected};
use super::file_result::paging;
use super::headers;
use crate::access::{Gate, may_see_of, require};
use crate::error::ApiError;
use crate::gateway::Shared;
use crate::view::batch::{BatchDocument, batch_document};
use crate::view::certificate;

/// Longest name of a batch, as the API reference has it.
const USER_DATA_BYTES_MAX: usize = 1024;

/// A new batch.
#[derive(Serialize, ToSchema)]
pub(super) struct Created {
    /// What to submit files with, and to ask for.
    #[schema(value_type = String)]
    batch_id: DataId,
}

/// Makes a batch.
#[utoipa::path(post, path = "/file/batch", tag = "Batch",
    params(("rule" = Option<String>, Header, description = "The rule of files that name no other"),
        ("user-data" = Option<String>, Header, description = "The batch's name, at most 1,024 bytes, percent-encoded UTF-8")),
    responses((status = 200, description = "The batch", body = Created), BadRequest, Forbidden, Unexpected))]
pub(super) async fn create(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Created>, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(&shared, &parts, Gate::BATCH).await?;
    let user_data = headers::first_text(&parts.headers, &["user-data"]).unwrap_or_default();
    if user_data.len() > USER_DATA_BYTES_MAX {
        let reason = format!("it may have {USER_DATA_BYTES_MAX} bytes at most");
        return Err(ApiError::BadHeader { name: "user-data", reason });
    }
    let user_agent = headers::user_agent(&parts.headers);
    let wanted = headers::rule(&parts.headers);
    let rule = shared.rules().select(wanted.as_deref(), principal.role.as_str(), &user_agent)?.clone();
    let batch_id = DataId::random();
    let new = NewBatch {
        batch_id,
        rule,
        principal: super::recorded(principal),
        user_agent,
        user_data,
        created_ms: shared.now_ms(),
    };
    shared.results.create_batch(&new).await.map_err(ApiError::Results)?;
    tracing::info!(%batch_id, user = %new.principal.user_name, "batch made");
    Ok(Json(Created { batch_id }))
}

/// Lets a batch take no more files.
#[utoipa::path(post, path = "/file/batch/{batch_id}/close", tag = "Batch",
    params(("batch_id" = String, Path, description = "The batch")),
    responses((status = 200, description = "The batch as it is now", body = BatchDocument),
        BadRequest, Forbidden, NotFound, Unexpected))]
pub(super) async fn close(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<BatchDocument>, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(&shared, &parts, Gate::BATCH).await?;
    let batch_id = find(&shared, &principal, path).await?.batch_id;
    if !shared.results.close_batch(batch_id, shared.now_ms()).await.map_err(ApiError::Results)? {
        return Err(ApiError::NotFound);
    }
    answer(&shared, &parts, batch_id).await
}

/// How far a batch is, and a page of its files.
#[utoipa::path(get, path = "/file/batch/{batch_id}", tag = "Batch",
    params(("batch_id" = String, Path, description = "The batch"), Paging),
    responses((status = 200, description = "The batch", body = BatchDocument), BadRequest, Forbidden, NotFound, Unexpected))]
pub(super) async fn status(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<BatchDocument>, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(&shared, &parts, Gate::BATCH_RESULT).await?;
    let batch_id = find(&shared, &principal, path).await?.batch_id;
    answer(&shared, &parts, batch_id).await
}

/// The signed result of a finished batch.
#[utoipa::path(get, path = "/file/batch/{batch_id}/certificate", tag = "Batch",
    params(("batch_id" = String, Path, description = "The batch")),
    responses((status = 200, description = "The result, its signature and the certificate", body = String, content_type = "application/x-yaml"),
        BadRequest, Forbidden, NotFound, Unexpected))]
pub(super) async fn certificate(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(&shared, &parts, Gate::BATCH_RESULT).await?;
    let batch_id = find(&shared, &principal, path).await?.batch_id;
    let signer = shared.signer.clone().ok_or(ApiError::NotFound)?;
    let batch = shared.results.batch(batch_id).await.map_err(ApiError::Results)?.ok_or(ApiError::NotFound)?;
    // What is not final is not signed.
    if !batch.is_finished() {
        return Err(ApiError::Unfinished);
    }
    let mut report = certificate::begin(&batch, signer.fingerprint_sha1());
    let mut first = 0;
    loop {
        let members = shared.results.batch_members(batch_id, first, PAGE_RECORDS_MAX).await;
        let members = members.map_err(ApiError::Results)?;
        members.iter().for_each(|member| certificate::push_file(&mut report, member));
        first = first.saturating_add(PAGE_RECORDS_MAX);
        if members.is_empty() || u64::from(first) >= batch.count() {
            break;
        }
    }
    certificate::end(&mut report, &batch);
    // A long report takes a while to digest.
    let signed = tokio::task::spawn_blocking(move || signer.sign(report)).await.map_err(|_| ApiError::Unsigned)?;
    Ok(([(header::CONTENT_TYPE, "application/x-yaml")], signed.map_err(|_| ApiError::Unsigned)?).into_response())
}

async fn find(
    shared: &Shared,
    principal: &Principal,
    path: Result<Path<String>, PathRejection>,
) -> Result<NewBatch, ApiError> {
    let id = path.ok().and_then(|Path(text)| text.parse::<DataId>().ok()).ok_or(ApiError::NotFound)?;
    let head = shared.results.batch_head(id).await.map_err(ApiError::Results)?;
    let visible = head.filter(|(batch, _)| may_see_of(principal, &batch.principal.user_id));
    visible.map(|(batch, _)| batch).ok_or(ApiError::NotFound)
}

async fn answer(shared: &Shared, parts: &Parts, batch_id: DataId) -> Result<Json<BatchDocument>, ApiError> {
    let (first, size) = paging(parts);
    // The whole before its parts: it is then never finished while one of them is shown unfinished.
    let batch = shared.results.batch(batch_id).await.map_err(ApiError::Results)?.ok_or(ApiError::NotFound)?;
    let members = shared.results.batch_members(batch_id, first, size).await.map_err(ApiError::Results)?;
    let mut shown = Vec::with_capacity(members.len());
    for member in members {
        shown.push(with_progress(shared, member).await?);
    }
    Ok(Json(batch_document(&batch, &shown, first, size)))
}

/// The file's progress while it is not finished; its record again if it was finished meanwhile.
async fn with_progress(
    shared: &Shared,
    member: AnalysisRecord,
) -> Result<(AnalysisRecord, Option<Progress>), ApiError> {
    if member.state.is_finished() {
        return Ok((member, None));
    }
    let progress = shared.progress.get(member.data_id).await.unwrap_or_default();
    let again = shared.results.get(member.data_id).await.map_err(ApiError::Results)?;
    Ok((again.unwrap_or(member), progress))
}
