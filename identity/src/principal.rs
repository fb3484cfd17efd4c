//! Who makes a request.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a principal may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything, and sees what everybody submitted.
    Administrator,
    /// Submits files and sees what it submitted.
    Submitter,
}

impl Role {
    /// The role's name in settings and on disk.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::Submitter => "submitter",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no role is named {0:?}; there are administrator and submitter")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "administrator" => Ok(Self::Administrator),
            "submitter" => Ok(Self::Submitter),
            other => Err(UnknownRole(other.to_owned())),
        }
    }
}

/// Whom a key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// 32 random hexadecimal digits. All keys of one user share them.
    pub user_id: String,
    /// What people call the user; unique.
    pub user_name: String,
    /// What it may do.
    pub role: Role,
}
