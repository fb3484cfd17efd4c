//! The engine at its face: what it stores, what survives, and what it does when the disk fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod blobs;
mod common;
mod crashes;
mod faults;
mod lifecycle;
mod measured;
mod removal;
mod restarts;
mod upkeep;
