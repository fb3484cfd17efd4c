//! The REST gateway: takes files in, answers with analyses.
//!
//! The HTTP layer (`routes`, `error`, `access`, `server`) is thin. The workflows lie behind it, free of HTTP types:
//! [`submit`] takes a body to the store, the result store and the queue; [`view`] turns a record into the document that
//! clients read; `readiness` says whether the gateway can keep its promises.
//!
//! **Invariants.** A `data_id` is answered only after the body is durable on the quorum and the analysis row is written.
//! A body is admitted against a budget before its first byte is read. Reads of results wait on nothing but their own
//! queries. No key, password, query string or file content reaches a log.
//!
//! It deliberately knows no engine and no storage node's inside, scans nothing and writes no file.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod access;
mod admission;
mod backlog;
mod callbacks;
pub mod decode;
mod drain;
mod error;
mod gateway;
mod hashing;
mod history;
mod metrics;
mod options;
mod outbound;
mod rate;
mod readiness;
mod requests;
mod routes;
mod server;
mod signer;
pub mod submit;
mod tls;
pub mod view;

pub use callbacks::{CallbackKey, CallbackOptions};
pub use gateway::{Backends, Gateway};
pub use metrics::GatewayMonitor;
pub use options::GatewayOptions;
pub use outbound::{OutboundError, OutboundOptions};
pub use rate::RateLimits;
pub use signer::{Signer, SignerError};
pub use tls::{Tls, TlsError, TlsFiles};
