//! The one error of the HTTP layer, and what a client sees of it: a status and `{"err": "..."}`.
//!
//! What the client can act on is in the text. What only the operator can act on is logged, with its causes, and the
//! client is told where to look.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lazaret_analysis::{SelectError, StoreError};
use lazaret_identity::IdentityError;
use lazaret_node_client::{GetError, PutError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::outbound::OutboundError;
use crate::submit::SubmitError;

/// Seconds after which a client that was told to come back may do so, unless there is a better answer.
const RETRY_AFTER_SECONDS: u64 = 1;
/// The same while the queue is full or results can't be recorded: it takes workers, or an operator, a while to make room.
const RETRY_AFTER_QUEUE_SECONDS: u64 = 10;

/// Why a request was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("Access denied")]
    Refused { status: StatusCode },
    #[error("Failed to login")]
    LoginFailed,
    #[error("Server is too busy. Try again later.")]
    TooManyLogins,
    #[error(r#"The body must be JSON: {{"user": "...", "password": "..."}}"#)]
    BadCredentials,
    #[error("{0}")]
    BadUser(String),
    #[error("Item does not exist")]
    NoItem,
    #[error("The API key is not a session; it stays valid until it is revoked.")]
    NoSession,
    #[error("Missing Content-Length header.")]
    MissingLength,
    #[error("File is empty.")]
    EmptyFile,
    #[error("The file has {length} bytes, rule {rule:?} takes {max} at most.")]
    TooLarge { length: u64, max: u64, rule: String },
    #[error("The header {0:?} is not supported; nothing was submitted.")]
    Unsupported(String),
    #[error("The header {name:?} is not valid: {reason}")]
    BadHeader { name: &'static str, reason: String },
    #[error("{}", rule_text(.0))]
    Rule(#[from] SelectError),
    #[error("{}", submit_text(.0))]
    Submit(#[from] SubmitError),
    #[error("The results cannot be read now; the gateway's log has the reason. Try again later.")]
    Results(#[source] StoreError),
    #[error("Keys and passwords cannot be checked now; the gateway's log has the reason. Try again later.")]
    Identity(#[source] IdentityError),
    #[error("Not found")]
    NotFound,
    #[error("File could not be found")]
    FileNotFound,
    #[error("Invalid hash format")]
    BadHash,
    #[error("The batch is closed.")]
    BatchClosed,
    #[error("Batch not found")]
    NoBatch,
    #[error("The batch is not finished: close it, and ask again when its result is there.")]
    Unfinished,
    #[error("The analysis is finished.")]
    Finished,
    #[error("The result could not be signed.")]
    Unsigned,
    #[error("The range lies outside the file's {length} bytes.")]
    BadRange { length: u64 },
    #[error("The file cannot be read now; the gateway's log has the reason. Try again later.")]
    Content(#[source] GetError),
    #[error("{0}. Nothing was submitted.")]
    Outbound(#[from] OutboundError),
    #[error("The request took too long. Try again later.")]
    Timeout,
    #[error("There is no such resource.")]
    NoRoute,
    #[error("The resource does not know this method.")]
    NoMethod,
}

/// Why there is no rule. One that is there and not for this caller is answered like one that is not there; the access log has
/// the difference.
fn rule_text(error: &SelectError) -> String {
    match error {
        SelectError::NotAdmitted(name) => SelectError::Unknown(name.clone()).to_string(),
        other => other.to_string(),
    }
}

/// The text of a failed submission: the reference's words where it has them.
fn submit_text(error: &SubmitError) -> String {
    match error {
        SubmitError::Busy | SubmitError::QueueFull => "Server is too busy. Try again later.".to_owned(),
        SubmitError::TooFast { retry_after } => {
            format!("The key submits faster than it may. Try again in {} s.", whole_seconds(*retry_after))
        }
        SubmitError::Empty => "File is empty.".to_owned(),
        SubmitError::BatchClosed => "The batch is closed.".to_owned(),
        SubmitError::Hashing(_)
        | SubmitError::Passwords(_)
        | SubmitError::Results(_)
        | SubmitError::Mismatch { .. } => {
            format!("{error}; the gateway's log has the reason. Try again later.")
        }
        other => format!("{other}. Nothing was submitted."),
    }
}

impl ApiError {
    /// After how many seconds a client that got 503 may come back.
    fn retry_after_seconds(&self) -> u64 {
        match self {
            Self::Submit(SubmitError::TooFast { retry_after }) => whole_seconds(*retry_after),
            Self::Submit(SubmitError::QueueFull | SubmitError::Results(_)) => RETRY_AFTER_QUEUE_SECONDS,
            _ => RETRY_AFTER_SECONDS,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Refused { status } => *status,
            Self::Rule(_) | Self::LoginFailed => StatusCode::FORBIDDEN,
            Self::NotFound | Self::FileNotFound | Self::BadHash | Self::NoBatch | Self::NoItem => StatusCode::NOT_FOUND,
            Self::BatchClosed | Self::Unfinished | Self::Finished => StatusCode::BAD_REQUEST,
            Self::Unsigned => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BadRange { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Outbound(error) if error.is_refusal() => StatusCode::BAD_REQUEST,
            Self::Outbound(_) => StatusCode::BAD_GATEWAY,
            Self::Content(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::MissingLength => StatusCode::LENGTH_REQUIRED,
            Self::EmptyFile => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unsupported(_)
            | Self::BadHeader { .. }
            | Self::BadCredentials
            | Self::BadUser(_)
            | Self::NoSession => StatusCode::BAD_REQUEST,
            Self::Submit(error) => submit_status(error),
            Self::Results(_) | Self::Identity(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Timeout | Self::TooManyLogins => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoMethod => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// A time as whole seconds, rounded up: who comes back then is not refused again for the same reason.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).max(1)
}

fn submit_status(error: &SubmitError) -> StatusCode {
    match error {
        SubmitError::Busy | SubmitError::QueueFull | SubmitError::TooFast { .. } => StatusCode::SERVICE_UNAVAILABLE,
        SubmitError::Encoding(_) | SubmitError::BatchClosed => StatusCode::BAD_REQUEST,
        SubmitError::Empty => StatusCode::UNPROCESSABLE_ENTITY,
        SubmitError::TooLarge { .. } | SubmitError::Expanded { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        SubmitError::Store(PutError::TooLong { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        SubmitError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        SubmitError::Incomplete { .. } | SubmitError::Overlong { .. } | SubmitError::Broken { .. } => {
            StatusCode::BAD_REQUEST
        }
        SubmitError::Slow { .. } => StatusCode::REQUEST_TIMEOUT,
        SubmitError::Results(error) if error.source.may_pass() => StatusCode::SERVICE_UNAVAILABLE,
        SubmitError::Mismatch { .. }
        | SubmitError::Hashing(_)
        | SubmitError::Passwords(_)
        | SubmitError::Results(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What a refusal says.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// Why.
    err: String,
}

/// The reason of a refusal, left in the response for the one log event of the request.
#[derive(Clone)]
pub(crate) struct Reason {
    /// In words, with its causes.
    pub(crate) text: String,
    /// Whether it is the answer to more load than is wanted, and no failure.
    pub(crate) is_load: bool,
}

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // A text that repeats its cause says it once.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(ErrorBody { err: self.to_string() })).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after_seconds()));
        }
        let is_load = matches!(
            &self,
            Self::Submit(SubmitError::Busy | SubmitError::QueueFull | SubmitError::TooFast { .. })
                | Self::TooManyLogins
        );
        response.extensions_mut().insert(Reason { text: chain(&self), is_load });
        response
    }
}
