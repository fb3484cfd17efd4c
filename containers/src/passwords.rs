//! The passwords that came with a submission.
//!
//! Invariants: they appear in no debug output, and their memory is overwritten when they are dropped.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// Most passwords of one submission: each costs a key derivation for each container that doesn't take it.
pub const PASSWORDS_MAX: usize = 64;
/// The longest password, in bytes. Longer ones are not taken.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Passwords to be tried, in order. Each is text in UTF-8; a format that wants another encoding makes it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passwords(Vec<String>);

impl Passwords {
    /// None at all.
    pub const NONE: Self = Self(Vec::new());

    /// The passwords of a list that are not empty, not too long and not there twice, up to [`PASSWORDS_MAX`].
    pub fn new(list: impl IntoIterator<Item = String>) -> Self {
        let mut passwords = Self::default();
        for password in list.into_iter().map(Zeroizing::new) {
            let fits = !password.is_empty() && password.len() <= PASSWORD_BYTES_MAX;
            if fits && passwords.0.len() < PASSWORDS_MAX && !passwords.0.contains(&password) {
                passwords.0.push((*password).clone());
            }
        }
        passwords
    }

    /// Each of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Passwords {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passwords", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cleaned_and_bounded_and_never_shown() {
        let list = ["a", "", "b", "a"].map(str::to_owned).into_iter().chain(["x".repeat(PASSWORD_BYTES_MAX + 1)]);
        let passwords = Passwords::new(list);
        assert_eq!(passwords.iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(format!("{passwords:?}"), "2 passwords");
        let many = Passwords::new((0..1000).map(|i| i.to_string()));
        assert_eq!(many.iter().count(), PASSWORDS_MAX);
        assert!(Passwords::NONE.is_empty());
    }
}
