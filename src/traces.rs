//! Traces: spans that the components name `lazaret::trace`, sent to a collector by OTLP over HTTP (feature `otlp`).
//!
//! - A file's trace has its `data_id` as its id, so that gateway and worker need not tell each other: the request that
//!   submitted it, its time in the queue, and its scan by whichever process are one trace, which whoever has the id finds.
//!   Other requests are traces of their own.
//! - Nobody waits for a collector. What doesn't fit into the queue, or could not be sent, is dropped and counted.
//! - **Invariant.** A span has what its component put into it by name, and nothing of what is logged meanwhile: no header,
//!   query, key, password or name of a file.
//!
//! Rejected: the OpenTelemetry SDK and its bridge to `tracing`. They bring some twenty crates, and neither takes a trace's id from
//! a field, which is what spares the queue a column for it.

mod export;
mod message;
mod span;

pub use self::export::{dropped, flush, sent, start};

/// What the targets of traced spans are.
pub const TARGET: &str = "lazaret::trace";
