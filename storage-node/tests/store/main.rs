//! A node's disks at the store's face: several of them, failing and missing ones, damaged indexes, and the offline check.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "../storage_engine/common.rs"]
mod common;

mod check;
mod damage;
mod disks;
mod recovery;
mod support;
