//! The identifier of an analysis and of each file nested in it.
//!
//! A root's id is random, so that it can't be guessed. A nested file's id is a keyed hash of its root and of its place in
//! it: a task that is delivered again rewrites the same rows, and without the key nobody derives one id from another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Identifies an analysis, or one file nested in it. Prints and parses as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataId(pub [u8; 16]);

/// A text that is not a data id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a data id: expected 32 hexadecimal digits, got {got:?}")]
pub struct ParseDataIdError {
    got: String,
}

/// Longest piece of a refused text that an error repeats.
const SHOWN_CHARS: usize = 80;

impl DataId {
    /// The identifier's length in bytes.
    pub const BYTES: usize = 16;

    /// A new id that nobody can guess.
    pub fn random() -> Self {
        Self(random_bytes())
    }

    /// The id of the file that is reached from `root` by `ordinal_path`: the index within each parent, outermost first.
    pub fn nested(root_secret_key: &[u8; 32], root: DataId, ordinal_path: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(root_secret_key);
        hasher.update(&root.0);
        for ordinal in ordinal_path {
            hasher.update(&ordinal.to_le_bytes());
        }
        let mut bytes = [0; Self::BYTES];
        hasher.finalize_xof().fill(&mut bytes);
        Self(bytes)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Sixteen bytes from the operating system.
pub(crate) fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => bytes,
        // Going on would hand out ids that collide or can be guessed. No kernel that this builds for fails here once it
        // has booted.
        #[expect(clippy::panic, reason = "the operating system has no randomness: nothing can be done safely")]
        Err(error) => panic!("the operating system gives no random bytes: {error}"),
    }
}

impl fmt::Display for DataId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for DataId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataId({self})")
    }
}

impl FromStr for DataId {
    type Err = ParseDataIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; Self::BYTES];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(ParseDataIdError { got: text.chars().take(SHOWN_CHARS).collect() }),
        }
    }
}

impl Serialize for DataId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DataId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses() {
        let id = DataId([0xab; 16]);
        assert_eq!(id.to_string(), "ab".repeat(16));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        assert_eq!(serde_json::from_str::<DataId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
        for bad in ["", "ab", &"g".repeat(32), &"a".repeat(33), &"é".repeat(16)] {
            assert!(bad.parse::<DataId>().is_err(), "{bad}");
        }
        assert!("x".repeat(100_000).parse::<DataId>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn random_ids_differ() {
        assert_ne!(DataId::random(), DataId::random());
    }

    #[test]
    fn nested_ids_depend_on_key_root_and_path() {
        let root = DataId([1; 16]);
        let id = DataId::nested(&[7; 32], root, &[0, 3]);
        // A golden value: rows on disk are found by it after a restart.
        assert_eq!(id.to_string(), "c8150875dc2a9130f74796e13feff248");
        assert_eq!(id, DataId::nested(&[7; 32], root, &[0, 3]));
        for other in [
            DataId::nested(&[8; 32], root, &[0, 3]),
            DataId::nested(&[7; 32], DataId([2; 16]), &[0, 3]),
            DataId::nested(&[7; 32], root, &[3, 0]),
            DataId::nested(&[7; 32], root, &[0]),
            DataId::nested(&[7; 32], root, &[0, 3, 0]),
        ] {
            assert_ne!(id, other);
        }
    }
}
