//! Users and what they may do, their API keys, passwords and sessions, and the log of who did what; in a SQLite file of
//! their own.
//!
//! Invariants:
//! - A key or session id is shown once, when it is made. Only its hash is kept, and no error, log or `Debug` output holds a
//!   key, a session id or a password.
//! - A key is 256 random bits, so that a fast hash is enough: there is nothing to guess. Passwords are hashed with Argon2id,
//!   off the async threads, a bounded number at once.
//! - A request with a key that was accepted a moment ago needs no query. Within a second of the removal of a key, session
//!   or user no process accepts it any more.
//! - A change to an account and its line in the audit log are one transaction.
//! - Several processes of one host may share the file: its schema is changed under a file lock, and every write transaction
//!   begins IMMEDIATE.
//!
//! It deliberately knows nothing of HTTP, and no user directory but its own.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod audit;
mod database;
mod directory;
mod error;
mod identity;
mod key;
mod key_file;
mod password;
mod principal;
mod session;
mod settings;
mod users;

pub use audit::{Actor, AuditEvent};
pub use directory::{NumberedUser, UserDetails};
pub use error::{IdentityError, IdentityFault};
pub use identity::Identity;
pub use key::ApiKey;
pub use password::WeakPassword;
pub use principal::{Principal, Right, Rights, Role, UnknownRight};
pub use session::{LoginError, Logout, Session};
pub use settings::{Clock, IdentityOptions, LockoutPolicy, PasswordPolicy, SessionPolicy};
pub use users::{KeyInfo, RoleInfo, UserInfo};
