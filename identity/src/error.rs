//! Why a request about identities was not carried out. No variant can hold a key.

use std::io;

use crate::principal::Role;

/// A request about identities that was not carried out.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {object}: {source}")]
pub struct IdentityError {
    /// What was asked for, in words.
    pub operation: &'static str,
    /// To what: a path, a user's name.
    pub object: String,
    /// Why not.
    pub source: IdentityFault,
}

/// Why a request about identities was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFault {
    /// The data was written by a newer build.
    #[error(
        "its schema version {found} is newer than this build's ({known}): run the build that wrote it, or a newer one"
    )]
    NewerSchema {
        /// The version on disk.
        found: i64,
        /// The newest version that this build knows.
        known: i64,
    },
    /// The user exists with another role.
    #[error("the user exists with the role {found}, {wanted} was asked for")]
    OtherRole {
        /// The role on disk.
        found: Role,
        /// The role that was asked for.
        wanted: Role,
    },
    /// A name that no user can have.
    #[error("a user's name has 1 to {max} characters and no control characters")]
    UserName {
        /// The longest that is taken.
        max: usize,
    },
    /// The file's key stands for nobody.
    #[error(
        "its key is not known here: the file or the identity database is another's. Remove the file to get a new key"
    )]
    UnknownKey,
    /// The file is no key file.
    #[error("it holds no API key (64 hexadecimal digits): remove the file to get a new key")]
    NoKey,
    /// A file could not be used.
    #[error("{source} (its directory must exist and be writable)")]
    Io {
        /// What the operating system said.
        source: io::Error,
    },
    /// The database refused.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The database's schema could not be brought up to date.
    #[error(transparent)]
    Schema(sqlx::migrate::MigrateError),
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes: {0}")]
    Randomness(getrandom::Error),
    /// The runtime is being shut down.
    #[error("the process is shutting down")]
    ShuttingDown,
}

impl From<io::Error> for IdentityFault {
    fn from(source: io::Error) -> Self {
        Self::Io { source }
    }
}

impl IdentityFault {
    /// Says what was not carried out because of it.
    pub(crate) fn during(self, operation: &'static str, object: impl ToString) -> IdentityError {
        IdentityError { operation, object: object.to_string(), source: self }
    }
}
