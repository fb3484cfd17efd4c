//! Archive passwords on their way from the submitter to the worker.
//!
//! Invariants: they are written down only sealed (AES-256-GCM under a key from the cluster's secret, bound to the analysis),
//! and only until the analysis ends; they appear in no debug output, no log and no snapshot of a rule; what held them in
//! the clear is overwritten when it is dropped.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use crate::id::DataId;

/// Most passwords of one submission: each costs a key derivation for each container that doesn't take it.
pub const PASSWORDS_MAX: usize = 64;
/// The longest password, in bytes of UTF-8.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// What the sealing key is derived for, so that other uses of the secret have other keys.
const KEY_CONTEXT: &str = "lazaret 2026 sealed archive passwords v1";
/// The first byte of what is sealed; another one is another format.
const VERSION: u8 = 1;

/// Passwords in the order in which they are tried.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PasswordList(Vec<String>);

impl PasswordList {
    /// Adds one, unless it is there already.
    pub fn push(&mut self, mut password: String) {
        if self.0.contains(&password) {
            password.zeroize();
        } else {
            self.0.push(password);
        }
    }

    /// Adds those of another list that are not there already.
    pub fn extend(&mut self, other: &Self) {
        other.iter().for_each(|password| self.push(password.to_owned()));
    }

    /// Each of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is wrong with it, in words that don't show it.
    pub fn check(&self) -> Result<(), String> {
        if self.0.len() > PASSWORDS_MAX {
            return Err(format!("at most {PASSWORDS_MAX} passwords are taken, these are {}", self.0.len()));
        }
        if self.0.iter().any(|password| password.is_empty() || password.len() > PASSWORD_BYTES_MAX) {
            return Err(format!("a password has 1 to {PASSWORD_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}

impl Drop for PasswordList {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PasswordList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passwords", self.0.len())
    }
}

/// The passwords of one analysis, for nobody without the cluster's secret.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedPasswords(pub Vec<u8>);

impl fmt::Debug for SealedPasswords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sealed bytes", self.0.len())
    }
}

/// Passwords that could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The cryptographic library refused, which it does without a reason.
    #[error("the passwords could not be sealed")]
    Seal,
    /// They were sealed by another secret or for another analysis, or are damaged.
    #[error("the sealed passwords do not open: gateway and worker must have the same cluster secret")]
    Open,
}

/// Seals and opens passwords.
pub struct PasswordSeal(RandomizedNonceKey);

impl PasswordSeal {
    /// With a key from the cluster's secret.
    pub fn from_secret(secret: &str) -> Result<Self, SealError> {
        let key = Zeroizing::new(blake3::derive_key(KEY_CONTEXT, secret.trim().as_bytes()));
        RandomizedNonceKey::new(&AES_256_GCM, &*key).map(Self).map_err(|_| SealError::Seal)
    }

    /// The passwords of this analysis, sealed; nothing if there are none.
    pub fn seal(&self, data_id: DataId, passwords: &PasswordList) -> Result<Option<SealedPasswords>, SealError> {
        if passwords.is_empty() {
            return Ok(None);
        }
        let mut text = Zeroizing::new(serde_json::to_vec(&passwords.0).map_err(|_| SealError::Seal)?);
        let nonce = self.0.seal_in_place_append_tag(Aad::from(data_id.0), &mut *text).map_err(|_| SealError::Seal)?;
        let mut sealed = vec![VERSION];
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&text);
        Ok(Some(SealedPasswords(sealed)))
    }

    /// The passwords that were sealed for this analysis.
    pub fn open(&self, data_id: DataId, sealed: &SealedPasswords) -> Result<PasswordList, SealError> {
        let (version, rest) = sealed.0.split_first().ok_or(SealError::Open)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Open)?;
        if *version != VERSION {
            return Err(SealError::Open);
        }
        let mut text = Zeroizing::new(text.to_vec());
        let opened = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(data_id.0), &mut text);
        serde_json::from_slice(opened.map_err(|_| SealError::Open)?).map_err(|_| SealError::Open)
    }
}

impl fmt::Debug for PasswordSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordSeal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(passwords: &[&str]) -> PasswordList {
        let mut list = PasswordList::default();
        passwords.iter().for_each(|password| list.push((*password).to_owned()));
        list
    }

    #[test]
    fn what_was_sealed_opens_for_its_analysis_and_secret_alone() {
        let seal = PasswordSeal::from_secret("secret\n").unwrap();
        let (one, other) = (DataId::random(), DataId::random());
        let passwords = list(&["fox", "", "Füchse", "fox"]);
        assert_eq!(passwords.len(), 3);
        let sealed = seal.seal(one, &passwords).unwrap().unwrap();
        assert!(!sealed.0.windows(3).any(|bytes| bytes == b"fox"));
        assert_ne!(seal.seal(one, &passwords).unwrap().unwrap(), sealed, "a nonce of its own");
        assert_eq!(PasswordSeal::from_secret("secret").unwrap().open(one, &sealed).unwrap(), passwords);

        assert_eq!(seal.open(other, &sealed), Err(SealError::Open));
        assert_eq!(PasswordSeal::from_secret("another").unwrap().open(one, &sealed), Err(SealError::Open));
        for at in 0..sealed.0.len() {
            let mut damaged = sealed.clone();
            damaged.0[at] ^= 1;
            assert_eq!(seal.open(one, &damaged), Err(SealError::Open), "byte {at}");
            assert_eq!(seal.open(one, &SealedPasswords(sealed.0[..at].to_vec())), Err(SealError::Open));
        }
        assert_eq!(seal.seal(one, &PasswordList::default()), Ok(None));
    }

    #[test]
    fn lists_are_bounded_and_never_shown() {
        assert_eq!(format!("{:?}", list(&["fox"])), "1 passwords");
        assert!(list(&["fox"]).check().is_ok());
        assert!(list(&[""]).check().is_err());
        assert!(list(&["x".repeat(PASSWORD_BYTES_MAX + 1).as_str()]).check().is_err());
        let many: Vec<String> = (0..=PASSWORDS_MAX).map(|number| number.to_string()).collect();
        assert!(list(&many.iter().map(String::as_str).collect::<Vec<_>>()).check().is_err());
    }
}
