//! The pieces of which routes are described for `/openapi.json`: refusals, and parameters that many routes have.
//!
//! The descriptions stand at the routes themselves; nothing here decides what a route does.

use std::collections::BTreeMap;

use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses};

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $why:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
                let refusal = ResponseBuilder::new().description($why).content("application/json", body).build();
                BTreeMap::from([($status.to_owned(), refusal.into())])
            }
        }
    )*};
}

refusals! {
    /// 400.
    BadRequest = "400", "Bad request: an invalid header, or the apikey is missing or invalid where the route says so";
    /// 403.
    Forbidden = "403", "Invalid user information or not allowed";
    /// 404.
    NotFound = "404", "Not found, or not the caller's";
    /// 405.
    NoRight = "405", "The user has no rights for this operation";
    /// 408.
    TooSlow = "408", "The body came too slowly";
    /// 411.
    NoLength = "411", "The Content-Length header is missing";
    /// 413.
    TooLong = "413", "The file is longer than its rule takes";
    /// 416.
    BadRange = "416", "The range lies outside the file";
    /// 422.
    Empty = "422", "The body is empty";
    /// 500.
    Unexpected = "500", "Unexpected event on server";
    /// 502.
    BadGateway = "502", "The file could not be fetched from where `downloadfrom` says";
    /// 503.
    Busy = "503", "Server is too busy, or a part of it is out of reach. Try again later";
}

/// A page of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it only describes")]
pub(crate) struct Paging {
    /// The index of the first item; 0 if it is left out.
    first: Option<u32>,
    /// Items on the page; 50 if it is left out, at most 1,000.
    size: Option<u32>,
}

/// How a submission is treated.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "it only describes")]
pub(crate) struct SubmissionHeaders {
    /// The name of the file, percent-encoded UTF-8.
    filename: Option<String>,
    /// The rule; the first one that the caller may use if it is left out. `workflow` says the same.
    rule: Option<String>,
    /// How the submitting program calls itself.
    user_agent: Option<String>,
    /// The batch that the file belongs to.
    batch: Option<String>,
    /// A password for archives, percent-encoded; further ones in `archivepwd1`, `archivepwd2` and so on.
    archivepwd: Option<String>,
    /// `gzip` or `base64`: how the body is encoded. What is scanned is what comes out.
    #[param(rename = "content-encoding")]
    content_encoding: Option<String>,
    /// JSON that is kept and shown with the analysis, percent-encoded.
    metadata: Option<String>,
    /// JSON for engines, percent-encoded.
    #[param(rename = "engines-metadata")]
    engines_metadata: Option<String>,
    /// How many seconds the analysis may take.
    #[param(rename = "global-timeout")]
    global_timeout: Option<u64>,
    /// Where the file is to be fetched from, instead of a body; refused unless the gateway is set to.
    downloadfrom: Option<String>,
    /// Where the finished analysis is to be told; refused unless the gateway is set to.
    callbackurl: Option<String>,
}

/// What a look-up by hash may be narrowed to.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "it only describes")]
pub(crate) struct HashHeaders {
    /// Only analyses under this rule.
    rule: Option<String>,
    /// Only submitted files, not those nested in them.
    selfonly: Option<bool>,
    /// Only what was submitted in so many last hours; 0 for all.
    timerange: Option<u64>,
    /// Also analyses that are not finished, if there is no finished one.
    #[param(rename = "include-inprogress")]
    include_inprogress: Option<bool>,
}
