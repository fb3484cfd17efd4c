//! End-to-end tests: the `lazaret` binary as users run it, on loopback, in temporary directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;
mod relay;
mod storage;

mod api;
mod bad_input;
mod blobs;
mod cluster_admin;
mod decoding;
mod disks;
mod durability;
mod engines;
mod faults;
mod measured;
mod operation;
mod refusals;
mod scanning;
mod spool;
mod users;
mod waiting;
mod workers;
