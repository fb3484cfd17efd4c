//! The digests of a file, all in one pass over it: BLAKE3 (its name in the store, always) and MD5, SHA-1, SHA-256 and
//! SHA-512 (attributes of an analysis, each can be switched off).
//!
//! Two faces, one answer. A [`Set`] digests one file on the caller's thread. A [`Pool`] digests many at once on threads of
//! its own: it lays up to sixteen files side by side into vector registers, which costs little more than one of them alone.
//! Whoever has many files, from however many tasks, gives each a [`Stream`].
//!
//! Invariant: however a file is cut into pieces, whatever else is digested beside it, and by whichever path of the
//! processor, its digests are the same. The crate does no I/O.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod file;
mod kernels;
mod plan;
mod pool;
mod set;
mod tree;

use serde::{Deserialize, Serialize};

pub use kernels::Path;
pub use plan::Digest;
pub use pool::{Lost, Pending, Pool, Settings, Stream};
pub use set::Set;

/// Which digests are wanted besides BLAKE3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// MD5.
    pub md5: bool,
    /// SHA-1.
    pub sha1: bool,
    /// SHA-256.
    pub sha256: bool,
    /// SHA-512.
    pub sha512: bool,
}

impl Selection {
    /// Everything on.
    pub const ALL: Self = Self { md5: true, sha1: true, sha256: true, sha512: true };
    /// BLAKE3 alone.
    pub const NONE: Self = Self { md5: false, sha1: false, sha256: false, sha512: false };
}

impl Default for Selection {
    fn default() -> Self {
        Self::ALL
    }
}

/// The digests of one file. A digest that was switched off is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// BLAKE3, the file's name in the store.
    pub blake3: [u8; 32],
    /// MD5.
    pub md5: Option<[u8; 16]>,
    /// SHA-1.
    pub sha1: Option<[u8; 20]>,
    /// SHA-256.
    pub sha256: Option<[u8; 32]>,
    /// SHA-512.
    pub sha512: Option<[u8; 64]>,
}

impl Digests {
    /// BLAKE3 in lower-case hexadecimal.
    pub fn blake3_hex(&self) -> String {
        hex::encode(self.blake3)
    }

    /// MD5 in lower-case hexadecimal, empty when it was off.
    pub fn md5_hex(&self) -> String {
        self.md5.map(hex::encode).unwrap_or_default()
    }

    /// SHA-1 in lower-case hexadecimal, empty when it was off.
    pub fn sha1_hex(&self) -> String {
        self.sha1.map(hex::encode).unwrap_or_default()
    }

    /// SHA-256 in lower-case hexadecimal, empty when it was off.
    pub fn sha256_hex(&self) -> String {
        self.sha256.map(hex::encode).unwrap_or_default()
    }

    /// SHA-512 in lower-case hexadecimal, empty when it was off.
    pub fn sha512_hex(&self) -> String {
        self.sha512.map(hex::encode).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
