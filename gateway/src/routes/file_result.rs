//! GET /file/{data_id}: the document of an analysis or of a nested file, in every state.
//!
//! Whoever may not see an id is told exactly what is said of an id that does not exist, and so is a malformed one.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Extracted};
use axum::http::request::Parts;
use lazaret_analysis::{AnalysisRecord, DataId, Progress, State, outdated_data};
use lazaret_identity::Principal;
use serde::Serialize;
use utoipa::ToSchema;

use super::documented::{Forbidden, NoRight, Paging, Unexpected};
use crate::access::{Gate, may_see, query_parameter, require};
use crate::error::ApiError;
use crate::gateway::Shared;
use crate::view::document::Document;
use crate::view::{PageView, document};

/// Files on a page when the client does not say.
const PAGE_SIZE_DEFAULT: u32 = 50;
/// Most files on a page: about a megabyte of JSON.
const PAGE_SIZE_MAX: u32 = 1000;

/// What a look-up answers.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Looked {
    /// The analysis.
    Found(Box<Document>),
    /// `{"<as asked>": "Not Found"}`.
    Nothing(BTreeMap<String, String>),
}

impl Looked {
    /// What was found, if anything was.
    pub(super) fn of(document: Option<Document>, asked: String) -> Json<Self> {
        Json(match document {
            Some(document) => Self::Found(Box::new(document)),
            None => Self::Nothing(BTreeMap::from([(asked, "Not Found".to_owned())])),
        })
    }
}

/// An analysis or a nested file, in every state.
#[utoipa::path(get, path = "/file/{data_id}", tag = "Analysis",
    params(("data_id" = String, Path, description = "The analysis or nested file"), Paging),
    responses((status = 200, description = "The analysis, or {\"<data_id>\": \"Not Found\"}", body = Looked),
        Forbidden, NoRight, Unexpected))]
pub(super) async fn handle(
    Extracted(shared): Extracted<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Looked>, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(&shared, &parts, Gate::RESULT).await?;
    // A path that is not UTF-8 names nothing either.
    let asked = path.map(|Path(text)| text).unwrap_or_default();
    let document = match asked.parse::<DataId>() {
        Ok(data_id) => shown(&shared, &parts, &principal, data_id).await?,
        Err(_) => None,
    };
    Ok(Looked::of(document, asked))
}

/// What the principal may see of an id, with the page that the request asks for.
pub(super) async fn shown(
    shared: &Shared,
    parts: &Parts,
    principal: &Principal,
    data_id: DataId,
) -> Result<Option<Document>, ApiError> {
    let Some((record, progress)) = find(shared, principal, data_id).await? else { return Ok(None) };
    let page = page(shared, parts, &record).await?;
    let mut document = document(&record, page.as_ref(), progress.as_ref());
    document.process_info.outdated_data = outdated(shared, &record).await;
    Ok(Some(document))
}

/// What has changed since the file was judged. Without word of the workers the engines count as they were.
async fn outdated(shared: &Shared, record: &AnalysisRecord) -> Vec<String> {
    let Some(result) = record.result.as_ref().filter(|_| record.state.is_finished()) else { return Vec::new() };
    let engines = shared.engines.current(shared).await;
    let rules = shared.rules();
    let current = rules.rules().iter().find(|rule| rule.name == record.new.rule.name);
    outdated_data(result, &record.new.rule, current, &engines).into_iter().map(str::to_owned).collect()
}

/// The document of what was just submitted here.
pub(super) async fn own(shared: &Shared, parts: &Parts, data_id: DataId) -> Result<Option<Document>, ApiError> {
    let Some(record) = shared.results.get(data_id).await.map_err(ApiError::Results)? else { return Ok(None) };
    let page = page(shared, parts, &record).await?;
    Ok(Some(document(&record, page.as_ref(), None)))
}

/// The record that the principal may see, and its progress if it is under way.
async fn find(
    shared: &Shared,
    principal: &Principal,
    data_id: DataId,
) -> Result<Option<(AnalysisRecord, Option<Progress>)>, ApiError> {
    let visible = async || {
        let record = shared.results.get(data_id).await.map_err(ApiError::Results)?;
        Ok::<_, ApiError>(record.filter(|record| may_see(principal, record)))
    };
    // Polls are many: what waits and what is finished have no progress that would be worth a read.
    let Some(record) = visible().await? else { return Ok(None) };
    if record.state != State::Running {
        return Ok(Some((record, None)));
    }
    match shared.progress.get(data_id).await {
        Ok(Some(progress)) => Ok(Some((record, Some(progress)))),
        // It is forgotten once the result stands. If that is the reason, the result is there now; with neither the
        // percentage would go back to 0.
        Ok(None) => Ok(visible().await?.map(|record| (record, None))),
        Err(error) => {
            // The document is still right, only less precise.
            tracing::warn!(%data_id, %error, "progress could not be read");
            Ok(Some((record, None)))
        }
    }
}

/// The page that was asked for, if the file is a container whose result stands.
async fn page(shared: &Shared, parts: &Parts, record: &AnalysisRecord) -> Result<Option<PageView>, ApiError> {
    let finished = record.result.as_ref().filter(|_| record.state.is_finished());
    if finished.is_none_or(|result| result.container.is_none()) {
        return Ok(None);
    }
    let (first, size) = paging(parts);
    let page = shared.results.nested(record.data_id, first, size).await.map_err(ApiError::Results)?;
    Ok(Some(PageView { first, size, page }))
}

/// The index of the first item of a page, and how many it may have.
pub(super) fn paging(parts: &Parts) -> (u32, u32) {
    let size = number(parts, "size").unwrap_or(PAGE_SIZE_DEFAULT).min(PAGE_SIZE_MAX);
    (number(parts, "first").unwrap_or(0), size)
}

/// A number from the query. What is not one counts as absent, since a poll that fails makes clients loop; what is too
/// large for one lies past the end of every container.
fn number(parts: &Parts, name: &str) -> Option<u32> {
    let number = query_parameter(parts, name)?.trim().parse::<u64>().ok()?;
    Some(u32::try_from(number).unwrap_or(u32::MAX))
}
