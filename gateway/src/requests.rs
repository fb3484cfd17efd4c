//! What is said of each request: its id, one line of the access log, one observation for monitoring.
//!
//! A client's `X-Request-Id` is taken over if it can be nothing but an id, else one is made; the answer carries it, and so does
//! every event that is logged on the request's behalf, also in the parts behind the gateway that run within it.
//!
//! **Invariant.** Of what a client sends, the access log has the method, the path, the announced length and the id, and
//! nothing else: no query and no header, since keys, sessions, passwords and names of files stand there. A path that no
//! route has is left out as well, since nobody knows what it holds.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use lazaret_identity::Principal;
use tracing::Instrument;
use tracing::field::Empty;

use crate::access::ClientAddress;
use crate::error::Reason;
use crate::metrics::GatewayMetrics;

/// The header by which a request is known to whoever sends, passes on and answers it.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What a client's own trace is known by (W3C Trace Context).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest id that is taken over: an UUID and then some.
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Random bytes of an id of our own.
const REQUEST_ID_BYTES: usize = 16;
/// Where older clients look for the same paths.
pub(crate) const ALIAS: &str = "/metascan_rest";
/// What stands for the path of a request that no route has.
const NO_ROUTE: &str = "(none)";
/// Under which the lines of the access log can be told from others.
const ACCESS: &str = "lazaret::access";
/// Under which spans go to a collector of traces, if there is one.
pub(crate) const TRACE: &str = "lazaret::trace";

/// What a request's handler finds out that its line in the log is to tell.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestNotes(Arc<OnceLock<String>>);

impl RequestNotes {
    /// Who asks, now that its key was good.
    pub(crate) fn asked_by(&self, principal: &Principal) {
        // A second look at the key finds the same user.
        let _ = self.0.set(principal.user_name.clone());
    }
}

/// Handles one request, and tells of it.
pub(crate) async fn told(State(metrics): State<Arc<GatewayMetrics>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let notes = RequestNotes::default();
    request.extensions_mut().insert(notes.clone());
    let traceparent = request.headers().get(TRACEPARENT).cloned();
    let route = route(&request);
    let mut telling = Telling {
        metrics,
        begun: Instant::now(),
        notes,
        method: request.method().clone(),
        path: if route == NO_ROUTE { NO_ROUTE.to_owned() } else { request.uri().path().to_owned() },
        route,
        address: request.extensions().get::<ClientAddress>().map(|address| address.0.to_string()),
        bytes: announced(request.headers()),
        id: id.clone(),
        told: false,
    };
    let traceparent = traceparent.as_ref().and_then(|header| header.to_str().ok());
    // Of the highest level, so that the id is there whatever is logged.
    let span = tracing::error_span!("request", id);
    let trace = tracing::trace_span!(
        target: TRACE,
        parent: &span,
        "http",
        otel.name = format!("{} {}", telling.method, telling.route),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = %telling.method,
        http.route = telling.route,
        http.response.status_code = Empty,
        request_id = id,
        traceparent = traceparent,
        data_id = Empty,
    );
    let mut response = next.run(request).instrument(trace.clone()).instrument(span).await;
    telling.answered(&response);
    trace.record("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        trace.record("otel.status_code", "ERROR");
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The client's id, if it is one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let theirs = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    match theirs.filter(|id| is_sane(id)) {
        Some(id) => id.to_owned(),
        None => {
            let mut bytes = [0; REQUEST_ID_BYTES];
            // Without randomness requests are not to fail: they just share an id.
            let _ = getrandom::fill(&mut bytes);
            hex::encode(bytes)
        }
    }
}

/// Whether a text can be an id and nothing else: it goes into logs and into an answer's header.
fn is_sane(id: &str) -> bool {
    (1..=REQUEST_ID_CHARS_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:+/=".contains(&byte))
}

/// The route that the request takes, as it is written in the table of routes.
fn route(request: &Request) -> String {
    let matched = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, MatchedPath::as_str);
    matched.strip_prefix(ALIAS).unwrap_or(matched).to_owned()
}

fn announced(headers: &HeaderMap) -> u64 {
    headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// A request that is not yet told of. It is when it is answered, or dropped because its client went away.
struct Telling {
    metrics: Arc<GatewayMetrics>,
    begun: Instant,
    notes: RequestNotes,
    method: axum::http::Method,
    path: String,
    route: String,
    address: Option<String>,
    bytes: u64,
    id: String,
    told: bool,
}

impl Telling {
    fn answered(&mut self, response: &Response) {
        self.told = true;
        let status = response.status();
        let reason = response.extensions().get::<Reason>();
        let is_load = reason.is_some_and(|reason| reason.is_load);
        let reason = reason.map_or("", |reason| reason.text.as_str());
        self.observe(status.as_str());
        let (method, path, id, status_code) = (&self.method, &self.path, &self.id, status.as_u16());
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if status >= StatusCode::INTERNAL_SERVER_ERROR && !is_load {
            tracing::warn!(request_id = id, %method, path, status = status_code, ms, reason, "request failed");
        }
        self.access(status_code, reason);
    }

    fn observe(&self, status: &str) {
        self.metrics.request(&self.route, self.method.as_str(), status, self.begun.elapsed());
    }

    fn access(&self, status: u16, reason: &str) {
        tracing::info!(
            target: ACCESS,
            request_id = self.id,
            method = %self.method,
            path = self.path,
            status,
            ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            bytes = self.bytes,
            user = self.notes.0.get().map_or("-", String::as_str),
            address = self.address.as_deref().unwrap_or("-"),
            reason,
        );
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if !self.told {
            // As other servers write a client that closed its request.
            const CLOSED: u16 = 499;
            self.observe("499");
            self.access(CLOSED, "the client went away");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_taken_only_if_it_can_be_nothing_else() {
        let id = |text: &'static str| {
            request_id(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_bytes(text.as_bytes()).unwrap())]))
        };
        assert_eq!(id("7f3a-9c.05:x_1"), "7f3a-9c.05:x_1");
        assert_eq!(id("0000-4fbb-a1b2c3d4/+=="), "0000-4fbb-a1b2c3d4/+==");
        for bad in ["", "two words", "naïve", "tab\there", "{id}", "\"quoted\""] {
            let made = id(bad);
            assert!(made.len() == 2 * REQUEST_ID_BYTES && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{bad:?}");
        }
        let long = HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(&"a".repeat(129)).unwrap())]);
        assert_eq!(request_id(&long).len(), 2 * REQUEST_ID_BYTES);
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
