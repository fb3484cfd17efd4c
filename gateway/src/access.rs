//! Who asks: the API key of a request, and what its principal may see.
//!
//! The key comes in the `apikey` header; as the query parameter `apikey` where a client cannot set headers. The header
//! wins. Neither is ever logged.

use axum::extract::Query;
use axum::http::request::Parts;
use lazaret_analysis::AnalysisRecord;
use lazaret_identity::{Identity, Principal, Role};

use crate::error::ApiError;

/// Longest key that is looked at; real ones have 64 characters.
const KEY_CHARS_MAX: usize = 256;

/// The name of the header and of the query parameter.
const APIKEY: &str = "apikey";

/// The principal whose key the request carries.
pub(crate) async fn principal(identity: &Identity, parts: &Parts) -> Result<Principal, ApiError> {
    let key = presented_key(parts).ok_or(ApiError::AccessDenied)?;
    identity.authenticate(&key).await.map_err(ApiError::Identity)?.ok_or(ApiError::AccessDenied)
}

fn presented_key(parts: &Parts) -> Option<String> {
    let key = match parts.headers.get(APIKEY) {
        Some(value) => value.to_str().ok()?.trim().to_owned(),
        None => query_parameter(parts, APIKEY)?,
    };
    (!key.is_empty() && key.len() <= KEY_CHARS_MAX).then_some(key)
}

/// The first query parameter of that name. A query that cannot be parsed has none.
pub(crate) fn query_parameter(parts: &Parts, name: &str) -> Option<String> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).ok()?;
    pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// Whether the principal may see the analysis: its submitter and administrators may.
pub(crate) fn may_see(principal: &Principal, record: &AnalysisRecord) -> bool {
    principal.role == Role::Administrator || principal.user_id == record.new.principal.user_id
}
