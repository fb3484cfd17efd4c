//! POST /file: the body is the file, byte for byte, whatever its Content-Type says.
//!
//! Everything that can be decided from the header is decided before the first byte of the body is read. A header that
//! would change how the file is scanned and is not supported refuses the file: a wrong scan without a word is worse.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::BodyDataStream;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use futures_util::StreamExt;
use lazaret_analysis::{DataId, Principal, Rule};
use lazaret_protocol::limits::{BLOB_BYTES_MAX, MIB};
use percent_encoding::percent_decode;
use serde::Serialize;

use super::passwords;
use crate::access::{Gate, require};
use crate::error::ApiError;
use crate::gateway::Shared;
use crate::submit::Submission;

/// Headers that change what is to be scanned or what is to follow, and that are not supported.
const UNSUPPORTED: [&str; 4] = ["batch", "callbackurl", "content-encoding", "downloadfrom"];
/// Hints to engines. They never make a result milder, so a file that comes with them is taken.
const ENGINES_METADATA: &str = "engines-metadata";

/// Most bytes of a refused body that are read and dropped, so that the client reads the answer instead of a reset.
const REFUSED_BYTES_MAX: u64 = 64 * MIB;
/// How long that may take.
const REFUSED_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(Serialize)]
pub(super) struct Submitted {
    data_id: DataId,
}

pub(super) async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Submitted>, ApiError> {
    let (parts, body) = request.into_parts();
    let mut body = body.into_data_stream();
    match submit(&shared, &parts, &mut body).await {
        Ok(data_id) => Ok(Json(Submitted { data_id })),
        Err(error) => {
            // A body that failed by itself has nothing more to say.
            if !matches!(&error, ApiError::Submit(error) if error.is_of_the_body()) {
                discard(&parts, body);
            }
            Err(error)
        }
    }
}

async fn submit(shared: &Shared, parts: &Parts, body: &mut BodyDataStream) -> Result<DataId, ApiError> {
    let principal = require(shared, parts, Gate::SUBMIT).await?;
    let length = declared_length(&parts.headers)?;
    refuse_unsupported(&parts.headers)?;
    let submission = submission(shared, &parts.headers, principal)?;
    let max = submission.rule.max_file_size_bytes.min(BLOB_BYTES_MAX);
    if length > max {
        return Err(ApiError::TooLarge { length, max, rule: submission.rule.name });
    }
    Ok(shared.intake.submit(submission, length, body).await?)
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

fn refuse_unsupported(headers: &HeaderMap) -> Result<(), ApiError> {
    for (name, value) in headers {
        let name = name.as_str();
        // Clients send some headers empty, and `identity`, to say that they want nothing.
        let says_nothing = value.is_empty() || (name == "content-encoding" && value == "identity");
        if !says_nothing && UNSUPPORTED.contains(&name) {
            return Err(ApiError::Unsupported(name.to_owned()));
        }
    }
    Ok(())
}

fn submission(
    shared: &Shared,
    headers: &HeaderMap,
    principal: lazaret_identity::Principal,
) -> Result<Submission, ApiError> {
    let user_agent = printable(first_text(headers, &["user_agent", "user-agent"]).unwrap_or_default());
    let wanted = first_text(headers, &["rule", "workflow"]);
    let role = principal.role.as_str();
    let mut rule: Rule = shared.rules.current().select(wanted.as_deref(), role, &user_agent)?.clone();
    if let Some(seconds) = first_text(headers, &["global-timeout"]) {
        rule.global_timeout_seconds = Some(timeout_seconds(&seconds)?);
    }
    if headers.contains_key(ENGINES_METADATA) {
        tracing::info!("a file came with engines-metadata, which no engine here reads");
    }
    Ok(Submission {
        display_name: printable(first_text(headers, &["filename"]).unwrap_or_default()),
        rule,
        principal: Principal {
            user_id: principal.user_id.to_string(),
            user_name: principal.user_name,
            role: role.to_owned(),
        },
        user_agent,
        metadata: first_text(headers, &["metadata"]),
        passwords: passwords::of(headers)?,
    })
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

/// The text of the first of these headers that is there and not empty.
fn first_text(headers: &HeaderMap, names: &[&str]) -> Option<String> {
    names.iter().filter_map(|name| headers.get(*name)).map(header_text).find(|text| !text.is_empty())
}

/// A header's text: percent-encoded UTF-8 as some clients send it, or raw UTF-8, or raw Latin-1, which every byte
/// sequence is.
fn header_text(value: &HeaderValue) -> String {
    let raw = value.as_bytes();
    if let Ok(decoded) = percent_decode(raw).decode_utf8() {
        return decoded.trim().to_owned();
    }
    match std::str::from_utf8(raw) {
        Ok(text) => text.trim().to_owned(),
        Err(_) => raw.iter().map(|byte| char::from(*byte)).collect::<String>().trim().to_owned(),
    }
}

/// The text without control characters, which could write on the terminal of whoever lists analyses.
fn printable(text: String) -> String {
    if text.contains(char::is_control) {
        text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
    } else {
        text
    }
}

/// Reads on for a while after a refusal and drops what comes. A connection that is closed with unread bytes is reset, and
/// the reset overtakes the answer. A client that waits for `100 Continue` sends nothing, so there is nothing to read.
fn discard(parts: &Parts, mut body: BodyDataStream) {
    if parts.headers.contains_key(header::EXPECT) {
        return;
    }
    let mut dropped = 0;
    let reading = async move {
        while let Some(Ok(piece)) = body.next().await {
            dropped += piece.len() as u64;
            if dropped > REFUSED_BYTES_MAX {
                break;
            }
        }
    };
    tokio::spawn(tokio::time::timeout(REFUSED_TIME_MAX, reading));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(raw: &[u8]) -> String {
        header_text(&HeaderValue::from_bytes(raw).unwrap())
    }

    #[test]
    fn names_come_percent_encoded_or_raw() {
        assert_eq!(text(b"r%C3%A9sum%C3%A9.pdf"), "résumé.pdf");
        assert_eq!(text("résumé.pdf".as_bytes()), "résumé.pdf");
        assert_eq!(text(b"r\xe9sum\xe9.pdf"), "résumé.pdf", "Latin-1");
        assert_eq!(text(b"100% sure.txt"), "100% sure.txt", "not an escape");
        assert_eq!(text(b"caf%E9.txt"), "caf%E9.txt", "decodes to no UTF-8: taken as it is");
        assert_eq!(text(b"%E6%96%87%E4%BB%B6.zip"), "文件.zip");
        assert_eq!(printable(text(b"a%1B[2Jb%00.txt")), "a\u{fffd}[2Jb\u{fffd}.txt");
    }

    #[test]
    fn only_headers_that_say_something_are_refused() {
        let refused = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            refuse_unsupported(&headers).is_err()
        };
        for name in ["batch", "content-encoding", "downloadfrom"] {
            assert!(refused(name, "x"), "{name}");
            assert!(!refused(name, ""), "{name}");
        }
        assert!(!refused("content-encoding", "identity"));
        assert!(!refused("content-type", "multipart/form-data"));
    }
}
