//! Turns a leased task into a finished analysis: fetches the blob, detects what it is, runs the engines, takes containers
//! apart on all cores, and records what was found.
//!
//! Invariants:
//! - Nothing passes silently. Whatever was not judged has a result code that says so, and a threat outranks it.
//! - Every step may be repeated: a nested file's id and record follow from the root, its place and its content alone.
//! - No plaintext reaches a local disk. What is too long for memory is spooled, encrypted, and read back by ranges.
//! - Memory is bounded by settings, whatever is scanned: contents by a byte budget, records by a channel, names by limits.
//!
//! Engines know neither queue nor store, and what they exchange with the rest is serialisable, so that they can run in a
//! process of their own. What takes containers apart is the crate `lazaret-containers`, which knows none of this.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod budget;
pub mod confined;
pub mod engine;
pub mod engines;
pub mod examine;
pub mod file_type;
pub mod memory;
mod metrics;
pub mod pool;
mod program;
pub mod sample;
pub mod scan;
pub mod signers;
pub mod source;
pub mod spool;
#[cfg(test)]
mod testing;
pub mod worker;

pub use engine::Engine;
pub use engines::BuiltinEngine;
pub use metrics::WorkerMonitor;
pub use worker::{ScanWorker, WorkerOptions};

/// What runs in the sandbox: the program that a worker re-executes calls [`lazaret_sandbox::child::run_if_asked`] with it.
pub fn sandboxed() -> lazaret_sandbox::Extraction {
    lazaret_sandbox::Extraction::with(confined::Answering::default())
}
