//! POST /file: the body is the file, byte for byte, whatever its Content-Type says.
//!
//! Everything that can be decided from the header is decided before the first byte of the body is read. A header that
//! would change how the file is scanned and is not supported refuses the file: a wrong scan without a word is worse.
//! With `downloadfrom` the file is fetched instead, before the answer, so that what is answered is stored.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::BodyDataStream;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use lazaret_analysis::{DataId, NewBatch, Rule, SentAlong};
use lazaret_protocol::limits::BLOB_BYTES_MAX;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use serde::Serialize;
use utoipa::ToSchema;

use super::documented::{
    BadGateway, BadRequest, Busy, Empty, Forbidden, NoLength, NotFound, SubmissionHeaders, TooLong, TooSlow, Unexpected,
};
use super::{file_result, headers, passwords};
use crate::access::{Caller, Gate, may_see_of, require};
use crate::decode::Encoding;
use crate::error::ApiError;
use crate::gateway::Shared;
use crate::outbound::{self, checked_url};
use crate::submit::{Announced, Submission};
use crate::view::document::Document;

/// Where the file is to be fetched from.
const DOWNLOAD_FROM: &str = "downloadfrom";
/// Where the finished analysis is to be told.
const CALLBACK_URL: &str = "callbackurl";

/// How long POST /file/sync waits for a result: proxies and clients seldom wait longer.
const SYNC_TIME_MAX: Duration = Duration::from_secs(600);
/// The pauses between its looks at the result grow from here to here.
const SYNC_PAUSE_MIN: Duration = Duration::from_millis(5);
const SYNC_PAUSE_MAX: Duration = Duration::from_millis(250);

/// A new analysis.
#[derive(Serialize, ToSchema)]
pub(super) struct Submitted {
    /// What to ask for.
    #[schema(value_type = String)]
    data_id: DataId,
}

/// Takes a file to be analysed. The body is the file, byte for byte, whatever its Content-Type says.
#[utoipa::path(post, path = "/file", tag = "Analysis", params(SubmissionHeaders),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "It is stored and queued", body = Submitted),
        BadRequest, Forbidden, NotFound, BadGateway, TooSlow, NoLength, TooLong, Empty, Unexpected, Busy))]
pub(super) async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Submitted>, ApiError> {
    let (parts, body) = request.into_parts();
    let data_id = take(&shared, &parts, body.into_data_stream()).await?;
    Ok(Json(Submitted { data_id }))
}

/// Takes a file and answers with its analysis once it is finished; after ten minutes as it is then.
#[utoipa::path(post, path = "/file/sync", tag = "Analysis", params(SubmissionHeaders),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "The analysis", body = Document),
        BadRequest, Forbidden, NotFound, BadGateway, TooSlow, NoLength, TooLong, Empty, Unexpected, Busy))]
pub(super) async fn handle_sync(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let data_id = take(&shared, &parts, body.into_data_stream()).await?;
    let deadline = tokio::time::Instant::now() + SYNC_TIME_MAX;
    let mut pause = SYNC_PAUSE_MIN;
    loop {
        let record = shared.results.get(data_id).await.map_err(ApiError::Results)?;
        let late = tokio::time::Instant::now() >= deadline;
        if late || record.is_none_or(|record| record.state.is_finished()) {
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SYNC_PAUSE_MAX);
    }
    // Whoever may submit here is shown its own analysis, whatever else it may read.
    let document = file_result::own(&shared, &parts, data_id).await?;
    document.map(|document| Json(document).into_response()).ok_or(ApiError::NotFound)
}

async fn take(shared: &Shared, parts: &Parts, mut body: BodyDataStream) -> Result<DataId, ApiError> {
    match submit(shared, parts, &mut body).await {
        Ok((data_id, bytes)) => {
            shared.metrics.accepted(bytes);
            Ok(data_id)
        }
        Err(error) => {
            shared.metrics.refused(&error);
            Err(error)
        }
    }
}

async fn submit(shared: &Shared, parts: &Parts, body: &mut BodyDataStream) -> Result<(DataId, u64), ApiError> {
    let principal = require(shared, parts, Gate::SUBMIT).await?;
    let caller = Caller::of(parts, &principal);
    if let Some(url) = download_url(shared, &parts.headers)? {
        return fetch(shared, parts, (principal, caller), url).await;
    }
    let length = declared_length(&parts.headers)?;
    let encoding = encoding(&parts.headers)?;
    let submission = submission(shared, &parts.headers, principal).await?;
    let max = submission.rule.max_file_size_bytes.min(BLOB_BYTES_MAX);
    // What is encoded is measured as it is decoded.
    if length > max && encoding.is_none() {
        return Err(ApiError::TooLarge { length, max, rule: submission.rule.name });
    }
    Ok(shared.intake.submit(&caller, submission, Announced::Exactly(length), encoding, body).await?)
}

/// Where the file is to be fetched from, if the client says so.
fn download_url(shared: &Shared, headers: &HeaderMap) -> Result<Option<Url>, ApiError> {
    let Some(text) = headers::first_url(headers, DOWNLOAD_FROM) else { return Ok(None) };
    if shared.downloads.hosts.is_empty() {
        return Err(ApiError::Unsupported(DOWNLOAD_FROM.to_owned()));
    }
    let length = headers.get(header::CONTENT_LENGTH);
    if headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0") {
        let reason = "the file comes from there, or in the body, not both".to_owned();
        return Err(ApiError::BadHeader { name: DOWNLOAD_FROM, reason });
    }
    Ok(Some(checked_url(&shared.downloads, &text)?))
}

/// Fetches the file and takes it like one that was sent.
async fn fetch(
    shared: &Shared,
    parts: &Parts,
    (principal, caller): (lazaret_identity::Principal, Caller),
    url: Url,
) -> Result<(DataId, u64), ApiError> {
    let mut submission = submission(shared, &parts.headers, principal).await?;
    submission.sent_along.download_url = Some(url.to_string());
    if submission.display_name.is_empty() {
        let last = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default();
        submission.display_name = headers::printable(percent_decode_str(last).decode_utf8_lossy().into_owned());
    }
    let response = outbound::get(&shared.downloads, url).await?;
    let encoding = encoding(response.headers())?;
    let max = submission.rule.max_file_size_bytes.min(shared.downloads.bytes_max).min(BLOB_BYTES_MAX);
    let announced = match response.content_length() {
        Some(length) if length > max => {
            return Err(ApiError::TooLarge { length, max, rule: submission.rule.name });
        }
        Some(length) => Announced::Exactly(length),
        None => Announced::AtMost(max),
    };
    let mut body = response.bytes_stream().map(|piece| piece.map_err(reqwest::Error::without_url));
    Ok(shared.intake.submit(&caller, submission, announced, encoding, &mut body).await?)
}

/// Where the finished analysis is to be told, if the client says so.
fn callback_url(shared: &Shared, headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(text) = headers::first_url(headers, CALLBACK_URL) else { return Ok(None) };
    match &shared.callbacks {
        None => Err(ApiError::Unsupported(CALLBACK_URL.to_owned())),
        Some(options) => Ok(Some(checked_url(&options.outbound, &text)?.to_string())),
    }
}

/// How the body is encoded. A file that would be scanned in its encoding, without a word, is refused instead.
fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, ApiError> {
    match headers::first_text(headers, &[header::CONTENT_ENCODING.as_str()]) {
        None => Ok(None),
        Some(name) if name.eq_ignore_ascii_case("identity") => Ok(None),
        Some(name) => Encoding::named(&name).map(Some).ok_or_else(|| ApiError::BadHeader {
            name: "content-encoding",
            reason: "it may be gzip, base64 or identity".to_owned(),
        }),
    }
}

/// The announced length. A chunked body has none, even if the client claims one beside it.
fn declared_length(headers: &HeaderMap) -> Result<u64, ApiError> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(ApiError::MissingLength);
    }
    let value = headers.get(header::CONTENT_LENGTH).ok_or(ApiError::MissingLength)?;
    let text = value.to_str().unwrap_or_default().trim();
    let bad = |reason: &str| ApiError::BadHeader { name: "Content-Length", reason: reason.to_owned() };
    match text.parse::<u64>() {
        Ok(0) => Err(ApiError::EmptyFile),
        Ok(length) => Ok(length),
        Err(_) => Err(bad("it must be a number of bytes")),
    }
}

async fn submission(
    shared: &Shared,
    headers: &HeaderMap,
    principal: lazaret_identity::Principal,
) -> Result<Submission, ApiError> {
    let user_agent = headers::user_agent(headers);
    let batch = batch(shared, headers, &principal).await?;
    let mut rule: Rule = match (headers::rule(headers), &batch) {
        // As it is now, like anybody's: the batch's snapshot has no passwords, and what it lets pass may be blocked since. It was
        // for whoever made the batch, so that one must still be admitted.
        (None, Some(batch)) => {
            shared.rules().select(Some(&batch.rule.name), &batch.principal.role, &batch.user_agent)?.clone()
        }
        (wanted, _) => shared.rules().select(wanted.as_deref(), principal.role.as_str(), &user_agent)?.clone(),
    };
    if let Some(seconds) = headers::first_text(headers, &["global-timeout"]) {
        rule.global_timeout_seconds = Some(timeout_seconds(&seconds)?);
    }
    Ok(Submission {
        display_name: headers::printable(headers::first_text(headers, &["filename"]).unwrap_or_default()),
        rule,
        principal: super::recorded(principal),
        user_agent,
        metadata: headers::json_or_text(headers, "metadata"),
        sent_along: SentAlong {
            batch: batch.map(|batch| batch.batch_id),
            engines_metadata: headers::json_or_text(headers, "engines-metadata"),
            callback_url: callback_url(shared, headers)?,
            download_url: None,
        },
        passwords: passwords::of(headers)?,
    })
}

/// The batch that the file is for. It is looked at again when the analysis is recorded.
async fn batch(
    shared: &Shared,
    headers: &HeaderMap,
    principal: &lazaret_identity::Principal,
) -> Result<Option<NewBatch>, ApiError> {
    let Some(id) = headers::first_text(headers, &["batch"]) else { return Ok(None) };
    let id = id.parse::<DataId>().map_err(|_| ApiError::NoBatch)?;
    let head = shared.results.batch_head(id).await.map_err(ApiError::Results)?;
    match head.filter(|(batch, _)| may_see_of(principal, &batch.principal.user_id)) {
        None => Err(ApiError::NoBatch),
        Some((_, false)) => Err(ApiError::BatchClosed),
        Some((batch, true)) => Ok(Some(batch)),
    }
}

fn timeout_seconds(text: &str) -> Result<u64, ApiError> {
    match text.parse::<u64>() {
        Ok(seconds) if seconds > 0 => Ok(seconds),
        _ => Err(ApiError::BadHeader {
            name: "global-timeout",
            reason: "it must be a number of seconds, 1 or more".to_owned(),
        }),
    }
}
