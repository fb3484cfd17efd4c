//! GET /hash/{hash}: the newest analysis of a file of that MD5, SHA-1, SHA-256 or SHA-512 that the caller may see.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use lazaret_analysis::DigestQuery;
use lazaret_identity::{Principal, Right};

use super::documented::{Forbidden, HashHeaders, NotFound, Paging, Unexpected};
use super::file_result::{self, Looked};
use super::headers;
use crate::access::{Gate, require};
use crate::error::ApiError;
use crate::gateway::Shared;

/// Lengths of the digests that are looked up, in hexadecimal digits.
const DIGITS: [usize; 4] = [32, 40, 64, 128];
/// How many are tried: the first one is shown, unless it was removed meanwhile.
const FOUND_MAX: u32 = 4;
const MS_PER_HOUR: u64 = 60 * 60 * 1000;

/// The newest analysis of a file of this hash.
#[utoipa::path(get, path = "/hash/{hash}", tag = "Analysis",
    params(("hash" = String, Path, description = "MD5, SHA-1, SHA-256 or SHA-512 in hexadecimal"), Paging, HashHeaders),
    responses((status = 200, description = "The analysis, or {\"<hash>\": \"Not Found\"}", body = Looked),
        (status = 400, description = "A header is not valid", body = crate::error::ErrorBody),
        Forbidden, NotFound, Unexpected))]
pub(super) async fn handle(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Looked>, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(&shared, &parts, Gate::HASH).await?;
    let asked = path.map(|Path(text)| text).unwrap_or_default();
    let digest =
        Some(asked.as_str()).filter(|text| DIGITS.contains(&text.len())).and_then(|text| hex::decode(text).ok());
    let query = query(&shared, &principal, &parts.headers, digest.ok_or(ApiError::BadHash)?)?;
    for data_id in shared.results.find_by_digest(&query, FOUND_MAX).await.map_err(ApiError::Results)? {
        if let Some(document) = file_result::shown(&shared, &parts, &principal, data_id).await? {
            return Ok(Looked::of(Some(document), asked));
        }
    }
    Ok(Looked::of(None, asked))
}

fn query(
    shared: &Shared,
    principal: &Principal,
    headers: &HeaderMap,
    digest: Vec<u8>,
) -> Result<DigestQuery, ApiError> {
    let rule = match headers::rule(headers) {
        Some(name) => {
            let rules = shared.rules();
            let rule = rules.select(Some(&name), principal.role.as_str(), &headers::user_agent(headers))?;
            Some(rule.name.clone())
        }
        None => None,
    };
    let hours = headers::number(headers, "timerange")?.unwrap_or(0);
    let now_ms = shared.now_ms();
    Ok(DigestQuery {
        digest,
        user_id: (!principal.rights.has(Right::ReadAll)).then(|| principal.user_id.to_string()),
        rule,
        since_ms: if hours == 0 { 0 } else { now_ms.saturating_sub(hours.saturating_mul(MS_PER_HOUR)) },
        nested: !headers::flag(headers, "selfonly")?,
        unfinished: headers::flag(headers, "include-inprogress")?,
    })
}
