//! GET /file/converted/{data_id} and GET /file/download/{data_id}: what processing made of a file, never the file itself.
//!
//! The name goes into `Content-Disposition` as RFC 6266 has it: what is not plain ASCII, or could end the quotes or the
//! line, is replaced in `filename` and percent-encoded in `filename*`. One range is honoured (RFC 9110), with `If-Range`; several at once
//! are answered with the whole file, as the RFC allows.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use lazaret_analysis::{AnalysisRecord, DataId};
use lazaret_node_client::GetError;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::documented::{BadRange, Forbidden, NoRight, NotFound, Unexpected};
use crate::access::{Gate, may_see, require};
use crate::error::ApiError;
use crate::gateway::Shared;

/// The characters of `attr-char` in RFC 8187 stand as they are.
const EXTENDED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// Longest name that is sent. Longer ones are of no use to any file system.
const NAME_CHARS_MAX: usize = 255;

/// The sanitized file.
#[utoipa::path(get, path = "/file/converted/{data_id}", tag = "Analysis",
    params(("data_id" = String, Path, description = "The analysis or nested file")),
    responses((status = 200, description = "The sanitized file", content_type = "application/octet-stream"),
        (status = 206, description = "A range of it", content_type = "application/octet-stream"),
        (status = 304, description = "It is what If-None-Match names"),
        Forbidden, NotFound, NoRight, BadRange, Unexpected))]
pub(super) async fn converted(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(&shared, path, request, ApiError::NotFound).await
}

/// The sanitized file; where there is none, the one without sensitive data.
#[utoipa::path(get, path = "/file/download/{data_id}", tag = "Analysis",
    params(("data_id" = String, Path, description = "The analysis or nested file")),
    responses((status = 200, description = "The processed file", content_type = "application/octet-stream"),
        (status = 206, description = "A range of it", content_type = "application/octet-stream"),
        (status = 304, description = "It is what If-None-Match names"),
        Forbidden, NotFound, NoRight, BadRange, Unexpected))]
pub(super) async fn download(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(&shared, path, request, ApiError::FileNotFound).await
}

async fn answer(
    shared: &Shared,
    path: Result<Path<String>, PathRejection>,
    request: Request,
    absent: ApiError,
) -> Result<Response, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(shared, &parts, Gate::DOWNLOAD).await?;
    let id = path.ok().and_then(|Path(text)| text.parse::<DataId>().ok());
    let record = match id {
        Some(id) => shared.results.get(id).await.map_err(ApiError::Results)?,
        None => None,
    };
    let Some(record) = record.filter(|record| may_see(&principal, record)) else { return Err(absent) };
    let Some(name) = record.sanitized_blob.as_deref().and_then(|name| name.parse::<BlobName>().ok()) else {
        return Err(absent);
    };
    match file(shared, &parts, &record, name).await {
        Err(ApiError::Content(GetError::NotFound { .. })) => Err(absent),
        other => other,
    }
}

async fn file(shared: &Shared, parts: &Parts, record: &AnalysisRecord, name: BlobName) -> Result<Response, ApiError> {
    let etag = format!("\"{name}\"");
    if names(parts.headers.get(header::IF_NONE_MATCH), &etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let whole = shared.intake.cluster.get(name, None).await.map_err(ApiError::Content)?;
    let length = whole.length();
    let current = parts.headers.get(header::IF_RANGE).is_none_or(|value| names(Some(value), &etag));
    let asked = parts.headers.get(header::RANGE).filter(|_| current).and_then(|value| range(value, length));
    let (status, download, range) = match asked {
        None => (StatusCode::OK, whole, None),
        Some(None) => {
            let mut response = ApiError::BadRange { length }.into_response();
            response.headers_mut().insert(header::CONTENT_RANGE, text(&format!("bytes */{length}")));
            return Ok(response);
        }
        Some(Some(range)) => {
            drop(whole);
            let part = shared.intake.cluster.get(name, Some(range)).await.map_err(ApiError::Content)?;
            (StatusCode::PARTIAL_CONTENT, part, Some(range))
        }
    };
    let sent = range.map_or(length, |range| range.end.saturating_sub(range.start));
    let body = Body::from_stream(stream::try_unfold(download, |mut download| async move {
        Ok::<_, GetError>(download.next().await?.map(|piece| (piece, download)))
    }));
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(sent));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, text(&etag));
    headers.insert(header::CONTENT_DISPOSITION, text(&disposition(&record.new.file.display_name)));
    // A browser must neither guess what it is nor run it.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    if let Some(range) = range {
        let last = range.end.saturating_sub(1);
        headers.insert(header::CONTENT_RANGE, text(&format!("bytes {}-{last}/{length}", range.start)));
    }
    Ok((status, headers, body).into_response())
}

/// A header of characters that every header may have.
fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static("attachment"))
}

/// Whether the header names the entity, or any.
fn names(value: Option<&HeaderValue>, etag: &str) -> bool {
    let value = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The range that is asked for: none that we understand, one that lies outside, or one that does not.
fn range(value: &HeaderValue, length: u64) -> Option<Option<ByteRange>> {
    let (first, last) = value.to_str().ok()?.trim().strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(first) || !digits(last) || (first.is_empty() && last.is_empty()) {
        return None;
    }
    // A number that is too long for any file lies behind its end.
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    let (start, end) = match (first.is_empty(), last.is_empty()) {
        (true, _) => (length.saturating_sub(number(last)), length),
        (false, true) => (number(first), length),
        (false, false) if number(last) < number(first) => return None,
        (false, false) => (number(first), number(last).saturating_add(1).min(length)),
    };
    Some((start < end).then_some(ByteRange { start, end }))
}

/// The name as RFC 6266 has it. It is a name only: whatever stands before the last slash or backslash is left out.
fn disposition(display_name: &str) -> String {
    let last = display_name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = last.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
    let name = match name.trim() {
        "" | "." | ".." => "file",
        name => name,
    };
    let plain = |c: char| if c.is_ascii_graphic() && !"\"\\%;".contains(c) || c == ' ' { c } else { '_' };
    let ascii: String = name.chars().map(plain).collect();
    if ascii == name {
        return format!("attachment; filename=\"{ascii}\"");
    }
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", utf8_percent_encode(name, EXTENDED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_neither_end_the_header_nor_leave_their_directory() {
        for (name, expected) in [
            ("report.pdf", r#"attachment; filename="report.pdf""#),
            ("../../etc/passwd", r#"attachment; filename="passwd""#),
            (r"C:\temp\a b.txt", r#"attachment; filename="a b.txt""#),
            ("", r#"attachment; filename="file""#),
            ("a/..", r#"attachment; filename="file""#),
            (
                "x\"; filename=\"evil.exe",
                "attachment; filename=\"x__ filename=_evil.exe\"; filename*=UTF-8''x%22%3B%20filename%3D%22evil.exe",
            ),
            ("a\r\nSet-Cookie: x", "attachment; filename=\"aSet-Cookie: x\""),
            ("résumé.pdf", "attachment; filename=\"r_sum_.pdf\"; filename*=UTF-8''r%C3%A9sum%C3%A9.pdf"),
        ] {
            assert_eq!(disposition(name), expected);
            assert!(HeaderValue::from_str(&disposition(name)).is_ok());
        }
        assert!(disposition(&"文".repeat(5000)).len() < 4000);
    }

    #[test]
    fn ranges_are_those_of_rfc_9110() {
        let of = |value: &'static str| range(&HeaderValue::from_static(value), 10);
        let bytes = |start, end| Some(Some(ByteRange { start, end }));
        assert_eq!(of("bytes=0-3"), bytes(0, 4));
        assert_eq!(of("bytes=4-"), bytes(4, 10));
        assert_eq!(of("bytes=-3"), bytes(7, 10));
        assert_eq!(of("bytes=-30"), bytes(0, 10));
        assert_eq!(of("bytes=9-99999999999999999999999"), bytes(9, 10));
        for outside in ["bytes=10-", "bytes=10-12", "bytes=99999999999999999999999-", "bytes=-0"] {
            assert_eq!(of(outside), Some(None), "{outside}");
        }
        for none in ["bytes=3-1", "bytes=0-1,4-5", "bytes=-", "items=0-1", "bytes=a-b", "bytes=+1-2"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
