//! Who makes a request, and what it may do: rights, the roles that bundle them, and principals.
//!
//! A right is what a request needs, a role what a user has. The built-in roles are fixed, so that a build knows what each
//! of them means; others are made by the operator out of the same rights.

use std::fmt;
use std::str::FromStr;

/// One thing that a principal may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// Submit files.
    Submit,
    /// See the results of what it submitted itself.
    ReadOwn,
    /// See everybody's results.
    ReadAll,
    /// Look results that it sees up by the content's hash, rather than by an id that only their submitter was told.
    Search,
    /// Cancel what it submitted itself.
    CancelOwn,
    /// Cancel what anybody submitted.
    CancelAll,
    /// Make, fill and close batches.
    Batch,
    /// Download what processing made of the files whose results it sees.
    Download,
    /// See the state of engines and nodes.
    Stat,
    /// See the licence and the configuration.
    AdminRead,
    /// Make and remove users, roles and keys, and read the audit log.
    ManageUsers,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Submit,
        Self::ReadOwn,
        Self::ReadAll,
        Self::Search,
        Self::CancelOwn,
        Self::CancelAll,
        Self::Batch,
        Self::Download,
        Self::Stat,
        Self::AdminRead,
        Self::ManageUsers,
    ];

    /// The right's name on disk and on the command line (*format*).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::ReadOwn => "read-own",
            Self::ReadAll => "read-all",
            Self::Search => "search",
            Self::CancelOwn => "cancel-own",
            Self::CancelAll => "cancel-all",
            Self::Batch => "batch",
            Self::Download => "download",
            Self::Stat => "stat",
            Self::AdminRead => "admin-read",
            Self::ManageUsers => "manage-users",
        }
    }
}

/// A text that names no right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no right is named {0:?}; there are {all}", all = Rights::ALL)]
pub struct UnknownRight(String);

impl FromStr for Right {
    type Err = UnknownRight;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|right| right.as_str() == text).ok_or_else(|| UnknownRight(text.to_owned()))
    }
}

/// A set of rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights(u16);

impl Rights {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// All there are.
    pub const ALL: Self = Self::of(&Right::ALL);

    /// These and no others.
    pub const fn of(rights: &[Right]) -> Self {
        let (mut bits, mut rest) = (0, rights);
        while let [right, others @ ..] = rest {
            bits |= 1 << *right as u16;
            rest = others;
        }
        Self(bits)
    }

    /// Whether the right is among them.
    pub const fn has(self, right: Right) -> bool {
        self.0 & (1 << right as u16) != 0
    }

    /// Whether any of `others` is among them.
    pub const fn intersects(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// Each of them, in the order of their declaration.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.has(*right))
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        Self(rights.into_iter().fold(0, |bits, right| bits | 1 << right as u16))
    }
}

/// Names, with commas and without spaces.
impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, right) in self.iter().enumerate() {
            write!(f, "{}{}", if number == 0 { "" } else { "," }, right.as_str())?;
        }
        Ok(())
    }
}

impl FromStr for Rights {
    type Err = UnknownRight;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Right::from_str).collect()
    }
}

/// What a user is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything, and sees what everybody submitted.
    Administrator,
    /// Submits files and sees what it submitted.
    Submitter,
    /// Sees what everybody submitted, and submits nothing.
    Viewer,
    /// Whoever submits without a key, where the gateway lets it. No user has this role.
    Anonymous,
    /// One that the operator made.
    Custom(String),
}

impl Role {
    /// Those that users can have and every installation knows.
    pub const BUILT_IN: [Self; 3] = [Self::Administrator, Self::Submitter, Self::Viewer];

    /// The role's name in settings and on disk (*format*).
    pub fn as_str(&self) -> &str {
        match self {
            Self::Administrator => "administrator",
            Self::Submitter => "submitter",
            Self::Viewer => "viewer",
            Self::Anonymous => "anonymous",
            Self::Custom(name) => name,
        }
    }

    /// The role of that name, which may be one of the operator's.
    pub fn named(name: &str) -> Self {
        let built_in = [Self::Administrator, Self::Submitter, Self::Viewer, Self::Anonymous];
        built_in.into_iter().find(|role| role.as_str() == name).unwrap_or_else(|| Self::Custom(name.to_owned()))
    }

    /// What a built-in role may do; `None` for the operator's, whose rights are in the identity database.
    pub const fn built_in_rights(&self) -> Option<Rights> {
        match self {
            Self::Administrator => Some(Rights::ALL),
            Self::Submitter => Some(Rights::of(&[
                Right::Submit,
                Right::ReadOwn,
                Right::Search,
                Right::CancelOwn,
                Right::Batch,
                Right::Download,
                Right::Stat,
            ])),
            Self::Viewer => {
                Some(Rights::of(&[Right::ReadOwn, Right::ReadAll, Right::Search, Right::Download, Right::Stat]))
            }
            // No search: all of them are one user, and would find each other's files.
            Self::Anonymous => Some(Rights::of(&[Right::Submit, Right::ReadOwn])),
            Self::Custom(_) => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whom a key or a session stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// 32 random hexadecimal digits. All keys and sessions of one user share them.
    pub user_id: String,
    /// What people call the user; unique.
    pub user_name: String,
    /// What the user is.
    pub role: Role,
    /// What it may do.
    pub rights: Rights,
    /// Whether it asks by a session, which it can have any number of, rather than by a key that an administrator made.
    pub by_session: bool,
}

impl Principal {
    /// Whoever asks without a key. All of them are one user: a result is told to whoever of them knows its id.
    pub fn anonymous() -> Self {
        Self {
            // No user can have this id: it is not hexadecimal.
            user_id: "anonymous".to_owned(),
            user_name: "anonymous".to_owned(),
            role: Role::Anonymous,
            rights: Role::Anonymous.built_in_rights().unwrap_or_default(),
            by_session: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_as_they_are_written() {
        for right in Right::ALL {
            assert_eq!(right.as_str().parse(), Ok(right));
            let one = Rights::of(&[right]);
            assert!(Right::ALL.into_iter().all(|other| one.has(other) == (other == right)), "{right:?}");
        }
        for rights in [Rights::NONE, Rights::ALL, Rights::of(&[Right::Submit, Right::ManageUsers])] {
            assert_eq!(rights.to_string().parse(), Ok(rights));
            assert_eq!(rights.iter().collect::<Rights>(), rights);
        }
        assert_eq!(" submit, stat ,".parse(), Ok(Rights::of(&[Right::Submit, Right::Stat])));
        assert!("submit,everything".parse::<Rights>().unwrap_err().to_string().contains("manage-users"));
    }

    #[test]
    fn built_in_roles_may_what_they_are_for() {
        let rights = |role: Role| role.built_in_rights().unwrap();
        assert_eq!(rights(Role::Administrator), Rights::ALL);
        assert!(!rights(Role::Viewer).has(Right::Submit) && rights(Role::Viewer).has(Right::ReadAll));
        assert!(!rights(Role::Submitter).has(Right::ReadAll) && !rights(Role::Submitter).has(Right::CancelAll));
        assert!(!rights(Role::Anonymous).has(Right::Batch));
        for role in Role::BUILT_IN.into_iter().chain([Role::Anonymous]) {
            assert_eq!(Role::named(role.as_str()), role);
        }
        assert_eq!(Role::named("mail-gate").built_in_rights(), None);
    }
}
