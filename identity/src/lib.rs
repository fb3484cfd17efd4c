//! API keys and the principals they stand for, in a SQLite file of their own.
//!
//! Invariants:
//! - A key is shown once, when it is made. Only its hash is kept, and no error, log or `Debug` output holds a key.
//! - A key is 256 random bits, so that a fast hash is enough: there is nothing to guess.
//! - A request with a key that was accepted before needs no query.
//! - Several processes of one host may share the file: its schema is changed under a file lock, and every write transaction
//!   begins IMMEDIATE.
//!
//! There are no passwords or sessions here, and a key is not revoked yet: whoever adds that has to empty the cache of
//! accepted keys in every process.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod database;
mod error;
mod identity;
mod key;
mod key_file;
mod principal;

pub use error::{IdentityError, IdentityFault};
pub use identity::Identity;
pub use key::ApiKey;
pub use principal::{Principal, Right, Rights, Role, UnknownRight};
