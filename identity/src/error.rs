//! Why a request about identities was not carried out. No variant can hold a key.

use std::io;

use crate::password::WeakPassword;
use crate::principal::{Role, UnknownRight};

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
    /// A process has the file open that is to be replaced, or it is being replaced.
    #[error("{0}")]
    InUse(&'static str),
    /// The user exists with another role.
    #[error("the user exists with the role {found}, {wanted} was asked for")]
    OtherRole {
        /// The role on disk.
        found: Role,
        /// The role that was asked for.
        wanted: Role,
    },
    /// A name that no user or role can have.
    #[error("a name has 1 to {max} characters and no control characters")]
    Name {
        /// The longest that is taken.
        max: usize,
    },
    /// A text about a user that is too long or has control characters.
    #[error("a text about a user has at most {max} characters and no control characters")]
    Text {
        /// The longest that is taken.
        max: usize,
    },
    /// The user has, or is to have, rights that whoever asks has not.
    #[error("the user's role has rights that you have not")]
    BeyondRights,
    /// Nobody would be left who may manage users.
    #[error("it is the last one who may manage users: make another administrator first")]
    LastAdministrator,
    /// There is no such user.
    #[error("there is no such user")]
    NoUser,
    /// There is a user of that name.
    #[error("there is such a user already")]
    UserExists,
    /// There is no role of that name, or none that users can have.
    #[error("users can't have the role {0:?}: there is none of that name")]
    NoRole(String),
    /// There is no role of that name to remove.
    #[error("there is no such role")]
    UnknownRole,
    /// The role is part of every installation.
    #[error("it is one of the built-in roles, which stay as they are")]
    BuiltInRole,
    /// Users have the role.
    #[error("{} it", if *users == 1 { "one user has".to_owned() } else { format!("{users} users have") })]
    RoleInUse {
        /// How many.
        users: i64,
    },
    /// The role's rights on disk are a newer build's.
    #[error(transparent)]
    Right(#[from] UnknownRight),
    /// The password is against the policy.
    #[error(transparent)]
    WeakPassword(#[from] WeakPassword),
    /// The user has no key that begins so.
    #[error("the user has no such key")]
    NoSuchKey,
    /// Several keys of the user begin so.
    #[error("several keys of the user begin so: give more of it")]
    AmbiguousKey,
    /// Too little of a key was given to name it.
    #[error("give the first {min} characters of the key at least")]
    ShortPrefix {
        /// The fewest.
        min: usize,
    },
    /// The user has as many keys as a user can.
    #[error("the user has {max} keys, the most there can be: revoke some")]
    TooManyKeys {
        /// How many.
        max: i64,
    },
    /// Too many passwords are being checked.
    #[error("too many passwords are being checked at once: try again later")]
    Busy,
    /// Argon2 refused its parameters.
    #[error("the password could not be hashed")]
    Hashing,
    /// A password's hash on disk is none, or asks for more than is computed.
    #[error("the password's hash on disk is damaged: set the password anew")]
    DamagedHash,
    /// The address of a session on disk is none.
    #[error("a session's address on disk is damaged")]
    DamagedAddress,
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
