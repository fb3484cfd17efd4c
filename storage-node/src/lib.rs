//! A storage node: the engine that keeps blobs on one disk, and the service that answers requests for them.
//!
//! The engine's own words: a *segment* is an append-only file of *records*, a *bucket* the segments of one hour of put
//! time, the *index* says where a name's records lie. This crate never knows HTTP, analyses or engines of the scanning kind.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod disk;
pub mod engine;
pub mod index;
pub mod record;
pub mod salt;

pub mod fsck;

pub mod listener;
pub mod node;
pub mod service;
pub mod store;

mod recovery;
mod scan;
mod segments;
mod walk;
mod writer;

pub use disk::{Disk, DiskError, FsDisk, SimDisk};
pub use engine::{BlobReader, Engine, EngineError, EngineOptions, EngineUpload, Origin, Pump};
pub use index::{Index, IndexError, MemoryIndex, RocksIndex};
pub use node::{Node, NodeOptions};
