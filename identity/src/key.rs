//! API keys, session ids, and the hashes by which both are known.

use std::fmt;
use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::IdentityFault;

/// Bytes of randomness in a key.
const KEY_BYTES: usize = 32;

/// Digits of a key that are kept in clear, so that people can tell their keys apart. 224 random bits are left.
const PREFIX_DIGITS: usize = 8;

/// What the hash of an older build's key is for (*format*: hashes on disk are made with it).
const OLD_HASH_CONTEXT: &str = "lazaret 2026 api key hash v1";

/// An API key or session id in clear: 64 hexadecimal digits. It exists where it is made and shown, and is kept nowhere.
#[derive(Clone)]
pub struct ApiKey(pub String);

impl ApiKey {
    pub(crate) fn random() -> Result<Self, IdentityFault> {
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes).map_err(IdentityFault::Randomness)?;
        Ok(Self(hex::encode(bytes)))
    }

    /// How the key begins: what it is called in lists.
    pub fn prefix(&self) -> &str {
        self.0.get(..PREFIX_DIGITS).unwrap_or_default()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(not shown)")
    }
}

/// The hash by which a key is known: SHA-256 of its text in lower case (*format*). A key is 256 random bits, so that a fast
/// hash is enough: there is nothing to guess. Deriving it takes the same time for every key.
#[derive(Clone, Copy)]
pub(crate) struct KeyHash(pub(crate) [u8; 32]);

impl KeyHash {
    /// The hash of a key as it was presented; none if the text cannot be a key.
    pub(crate) fn of(presented: &str) -> Option<Self> {
        let mut bytes = [0; KEY_BYTES];
        hex::decode_to_slice(presented, &mut bytes).ok()?;
        Some(Self(Sha256::digest(hex::encode(bytes)).into()))
    }

    /// The hash by which an older build knows the key.
    pub(crate) fn old_of(presented: &str) -> Option<Self> {
        let mut bytes = [0; KEY_BYTES];
        hex::decode_to_slice(presented, &mut bytes).ok()?;
        Some(Self(blake3::derive_key(OLD_HASH_CONTEXT, &bytes)))
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyHash {}

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_random_and_not_shown() {
        let (a, b) = (ApiKey::random().unwrap(), ApiKey::random().unwrap());
        assert_eq!(a.0.len(), 64);
        assert_ne!(a.0, b.0);
        assert!(a.0.starts_with(a.prefix()) && a.prefix().len() == PREFIX_DIGITS);
        assert!(!format!("{a:?}").contains(a.prefix()));
    }

    #[test]
    fn hashes_stay_as_they_are() {
        // Golden values: keys on disk are found by them. The first is what `printf 0f0f...0f | sha256sum` says.
        let key = "0f".repeat(32);
        let (hash, old) = (KeyHash::of(&key).unwrap(), KeyHash::old_of(&key).unwrap());
        assert_eq!(hex::encode(hash.0), "7152f9958a983e3313fb2498d743af1e83a0ff5999650fd341f0368d1678992c");
        assert_eq!(hex::encode(old.0), "1ec9a378c69032f2a84f26e4544ddd7e62b80890acd71d1990853f26d306cba4");
        assert!(hash == KeyHash::of(&"0F".repeat(32)).unwrap());
        assert!(hash != KeyHash::of(&"f0".repeat(32)).unwrap());
    }

    #[test]
    fn what_cannot_be_a_key_has_no_hash() {
        for text in ["", "0f", &"0f".repeat(31), &"0f".repeat(33), &"0g".repeat(32), &"é".repeat(32)] {
            assert!(KeyHash::of(text).is_none() && KeyHash::old_of(text).is_none(), "{text}");
        }
    }
}
