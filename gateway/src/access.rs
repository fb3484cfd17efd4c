//! Who asks, what each route asks of its callers, and what they may see.
//!
//! A route calls [`require`] with its [`Gate`] before anything else. The gates below are the one place that says which
//! right a route needs and with which status it refuses: the API reference's tables of statuses differ from route to route.
//!
//! The key or session comes in the `apikey` header; as the query parameter `apikey` where a client cannot set headers. The
//! header wins. Neither is ever logged.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::Query;
use axum::http::StatusCode;
use axum::http::request::Parts;
use lazaret_analysis::AnalysisRecord;
use lazaret_identity::{Principal, Right, Rights};
use sha2::{Digest, Sha256};

use crate::error::ApiError;
use crate::gateway::Shared;
use crate::requests::RequestNotes;

/// Longest key that is looked at; real ones have 64 characters.
const KEY_CHARS_MAX: usize = 256;

/// The name of the header and of the query parameter.
const APIKEY: &str = "apikey";

/// What a route asks of its callers, and how it refuses the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate {
    /// One of these rights is needed. None: any key or session will do.
    any_of: Rights,
    /// The answer to a missing or wrong key.
    without_key: StatusCode,
    /// The answer to a caller who has none of the rights.
    without_right: StatusCode,
}

impl Gate {
    /// The usual one: 403 for whoever is not let in.
    const fn of(any_of: &[Right]) -> Self {
        Self { any_of: Rights::of(any_of), without_key: StatusCode::FORBIDDEN, without_right: StatusCode::FORBIDDEN }
    }

    /// The same where the reference documents 405 for a caller without the right.
    const fn lacking_405(self) -> Self {
        Self { without_right: StatusCode::METHOD_NOT_ALLOWED, ..self }
    }

    /// The same where the reference documents 400 for a missing or wrong key.
    const fn keyless_400(self) -> Self {
        Self { without_key: StatusCode::BAD_REQUEST, ..self }
    }
}

// The gates, in the order of the API reference.
impl Gate {
    /// POST /file, POST /file/sync.
    pub(crate) const SUBMIT: Self = Self::of(&[Right::Submit]);
    /// GET /file/{data_id}: see [`may_see`] as well.
    pub(crate) const RESULT: Self = Self::of(&[Right::ReadOwn, Right::ReadAll]).lacking_405();
    /// GET /hash/{hash}: what is found is what [`may_see`] allows.
    pub(crate) const HASH: Self = Self::of(&[Right::Search]);
    /// GET /file/rules.
    pub(crate) const RULES: Self = Self::of(&[Right::Submit, Right::ReadAll, Right::AdminRead]);
    /// GET /file/converted/{data_id}, GET /file/download/{data_id}: see [`may_see`] as well.
    pub(crate) const DOWNLOAD: Self = Self::of(&[Right::Download]).lacking_405();
    /// POST /file/{data_id}/cancel: see [`may_cancel`] as well.
    pub(crate) const CANCEL: Self = Self::of(&[Right::CancelOwn, Right::CancelAll]).keyless_400().lacking_405();
    /// POST /file/batch, POST /file/batch/{batch_id}/close.
    pub(crate) const BATCH: Self = Self::of(&[Right::Batch]).keyless_400();
    /// GET /file/batch/{batch_id} and its certificate: see [`may_see_of`] as well.
    pub(crate) const BATCH_RESULT: Self = Self::of(&[Right::ReadOwn, Right::ReadAll]).keyless_400();
    /// POST /file/batch/{batch_id}/cancel: see [`may_cancel`] as well.
    pub(crate) const BATCH_CANCEL: Self = Self::of(&[Right::CancelOwn, Right::CancelAll]).keyless_400();
    /// GET /admin/license.
    pub(crate) const LICENSE: Self = Self::of(&[Right::AdminRead]).lacking_405();
    /// GET /stat/engines.
    pub(crate) const ENGINES: Self = Self::of(&[Right::Stat]);
    /// GET /stat/nodes.
    pub(crate) const NODES: Self = Self::of(&[Right::Stat]).lacking_405();
    /// GET and POST /admin/user, DELETE /admin/user/{user_id}.
    pub(crate) const USERS: Self = Self::of(&[Right::ManageUsers]).lacking_405();
    /// GET /admin/config/healthcheck.
    pub(crate) const HEALTH_CHECK: Self = Self::of(&[Right::Stat]).lacking_405();
    /// What any key or session opens: the details of GET /readyz, POST /logout.
    pub(crate) const ANY_KEY: Self = Self::of(&[]);
}

/// Where a request comes from, as the server saw it. Absent where there is no socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);

/// The address of whoever sent the request.
pub(crate) fn client_address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ClientAddress>().map(|address| address.0)
}

/// For whom load is counted and limited: each key by itself, since an administrator made it; all sessions of a user
/// together, since it can log in as often as it likes; and whoever has no key by its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// SHA-256 of the key.
    Key([u8; 32]),
    /// The user's id.
    User(String),
    /// An address, or a network of IPv6, in which one host has as many addresses as it likes.
    Address(Option<IpAddr>),
}

/// Bits of an IPv6 address that tell networks apart (RFC 4291): within a /64 everybody is one caller.
const IPV6_NETWORK_BITS: u32 = 64;

impl Caller {
    /// The caller that passed a gate as that principal.
    pub(crate) fn of(parts: &Parts, principal: &Principal) -> Self {
        match presented(parts) {
            Presented::Key(_) if principal.by_session => Self::User(principal.user_id.clone()),
            Presented::Key(key) => Self::Key(Sha256::digest(key.to_ascii_lowercase()).into()),
            Presented::Nothing | Presented::NoKey => Self::Address(client_address(parts).map(network)),
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << IPV6_NETWORK_BITS)).into(),
    }
}

/// Who asks, if it may pass the gate; otherwise the gate's refusal. A caller without any key is the anonymous one where
/// the gateway is set to take such; a wrong key is refused there too.
pub(crate) async fn require(shared: &Shared, parts: &Parts, gate: Gate) -> Result<Principal, ApiError> {
    let keyless = ApiError::Refused { status: gate.without_key };
    let key = match presented(parts) {
        Presented::Key(key) => key,
        Presented::Nothing if shared.anonymous => {
            let anybody = Principal::anonymous();
            // What it may not, whoever has a key may.
            return if anybody.rights.intersects(gate.any_of) { Ok(anybody) } else { Err(keyless) };
        }
        Presented::Nothing | Presented::NoKey => return Err(keyless),
    };
    let found = shared.identity.authenticate_from(&key, client_address(parts)).await.map_err(ApiError::Identity)?;
    let principal = found.ok_or(keyless)?;
    if let Some(notes) = parts.extensions.get::<RequestNotes>() {
        notes.asked_by(&principal);
    }
    if gate.any_of == Rights::NONE || principal.rights.intersects(gate.any_of) {
        Ok(principal)
    } else {
        Err(ApiError::Refused { status: gate.without_right })
    }
}

/// What a request says about who sends it.
pub(crate) enum Presented {
    /// No word of a key.
    Nothing,
    /// Something that can be no key.
    NoKey,
    /// A key or a session, good or not.
    Key(String),
}

/// What the request presents.
pub(crate) fn presented(parts: &Parts) -> Presented {
    let key = match parts.headers.get(APIKEY) {
        Some(value) => value.to_str().ok().map(|key| key.trim().to_owned()),
        None => Some(query_parameter(parts, APIKEY).unwrap_or_default()),
    };
    match key {
        // Clients that were given no key send an empty one.
        Some(key) if key.is_empty() => Presented::Nothing,
        Some(key) if key.len() <= KEY_CHARS_MAX => Presented::Key(key),
        _ => Presented::NoKey,
    }
}

/// The first query parameter of that name. A query that cannot be parsed has none.
pub(crate) fn query_parameter(parts: &Parts, name: &str) -> Option<String> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).ok()?;
    pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// Whether the principal may see the analysis.
pub(crate) fn may_see(principal: &Principal, record: &AnalysisRecord) -> bool {
    may_see_of(principal, &record.new.principal.user_id)
}

/// Whether the principal may see what the user submitted.
pub(crate) fn may_see_of(principal: &Principal, owner_id: &str) -> bool {
    allowed(principal, owner_id, Right::ReadOwn, Right::ReadAll)
}

/// Whether the principal may cancel what the user submitted. Whoever may not is told what is said of an unknown id.
pub(crate) fn may_cancel(principal: &Principal, owner_id: &str) -> bool {
    allowed(principal, owner_id, Right::CancelOwn, Right::CancelAll)
}

fn allowed(principal: &Principal, owner_id: &str, own: Right, all: Right) -> bool {
    principal.rights.has(all) || (principal.rights.has(own) && principal.user_id == owner_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_no_key_counts_by_address_and_a_host_of_ipv6_by_its_network() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(ip("192.0.2.7")), ip("192.0.2.7"));
        assert_eq!(network(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_ne!(network(ip("2001:db8:1:3::1")), network(ip("2001:db8:1:2::1")));
    }
}
