//! The digests of a file, all in one pass over it: BLAKE3 (its name in the store, always) and MD5, SHA-1, SHA-256 and
//! SHA-512 (attributes of an analysis, each can be switched off).
//!
//! Invariant: however a file is cut into pieces, its digests are the same. The crate does no I/O and starts no threads; a
//! caller with a long piece keeps it off the asynchronous threads (about 130 MB/s a core with everything on).

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

use openssl::hash::{Hasher, MessageDigest};
use openssl::sha::{Sha1, Sha256, Sha512};
use serde::{Deserialize, Serialize};

/// How far all five digests work through a piece before the next step: small enough that the bytes, read from memory once,
/// are still in the level-2 cache for the fifth of them, long enough for BLAKE3's widest code path (16 KiB with AVX-512).
const STEP_BYTES: usize = 64 * 1024;

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

    /// What of this selection the machine's OpenSSL computes: a FIPS configuration refuses MD5. What it refuses counts as
    /// switched off, so a service asks this once when it starts and tells its operator.
    pub fn supported(self) -> Self {
        Self { md5: self.md5 && Hasher::new(MessageDigest::md5()).is_ok(), ..self }
    }
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

/// One file being digested. The seam behind which other back-ends (several files side by side in one vector register)
/// can stand.
pub trait Digester: Send {
    /// Takes the file's next bytes.
    fn update(&mut self, piece: &[u8]);
    /// The digests of all bytes taken.
    fn finish(self: Box<Self>) -> Digests;
}

/// All digests of one file in one pass.
pub struct Set {
    digester: Box<dyn Digester>,
}

impl Set {
    /// Begins a file.
    pub fn new(selection: Selection) -> Self {
        Self { digester: Box::new(OpenSsl::new(selection)) }
    }

    /// Takes the file's next bytes.
    pub fn update(&mut self, piece: &[u8]) {
        self.digester.update(piece);
    }

    /// The digests of all bytes taken.
    pub fn finish(self) -> Digests {
        self.digester.finish()
    }

    /// The digests of bytes that are in memory already.
    pub fn digest(selection: Selection, content: &[u8]) -> Digests {
        let mut set = Self::new(selection);
        set.update(content);
        set.finish()
    }
}

impl Default for Set {
    fn default() -> Self {
        Self::new(Selection::default())
    }
}

/// BLAKE3 by its own crate, the others by OpenSSL, whose assembly is the fastest on machines without SHA instructions.
struct OpenSsl {
    blake3: Box<blake3::Hasher>,
    // OpenSSL offers MD5 only through its fallible interface. After an error MD5 counts as switched off.
    md5: Option<Hasher>,
    sha1: Option<Sha1>,
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
}

impl OpenSsl {
    fn new(selection: Selection) -> Self {
        Self {
            blake3: Box::new(blake3::Hasher::new()),
            md5: selection.md5.then(|| Hasher::new(MessageDigest::md5()).ok()).flatten(),
            sha1: selection.sha1.then(Sha1::new),
            sha256: selection.sha256.then(Sha256::new),
            sha512: selection.sha512.then(Sha512::new),
        }
    }

    fn step(&mut self, step: &[u8]) {
        self.blake3.update(step);
        if let Some(md5) = &mut self.md5
            && md5.update(step).is_err()
        {
            self.md5 = None;
        }
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(step);
        }
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(step);
        }
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(step);
        }
    }
}

impl Digester for OpenSsl {
    fn update(&mut self, piece: &[u8]) {
        piece.chunks(STEP_BYTES).for_each(|step| self.step(step));
    }

    fn finish(mut self: Box<Self>) -> Digests {
        let md5 = self.md5.as_mut().and_then(|md5| md5.finish().ok());
        Digests {
            blake3: *self.blake3.finalize().as_bytes(),
            md5: md5.and_then(|digest| digest.as_ref().try_into().ok()),
            sha1: self.sha1.map(Sha1::finish),
            sha256: self.sha256.map(Sha256::finish),
            sha512: self.sha512.map(Sha512::finish),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(content: &[u8]) -> [String; 5] {
        let digests = Set::digest(Selection::ALL, content);
        [digests.blake3_hex(), digests.md5_hex(), digests.sha1_hex(), digests.sha256_hex(), digests.sha512_hex()]
    }

    #[test]
    fn the_published_vectors() {
        // BLAKE3 test_vectors.json; RFC 1321 A.5; FIPS 180-4 examples.
        assert_eq!(
            all(b""),
            [
                "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
                "d41d8cd98f00b204e9800998ecf8427e",
                "da39a3ee5e6b4b0d3255bfef95601890afd80709",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
                 47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
            ]
        );
        assert_eq!(
            all(b"abc"),
            [
                "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
                "900150983cd24fb0d6963f7d28e17f72",
                "a9993e364706816aba3e25717850c26c9cd0d89d",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ]
        );
    }

    #[test]
    fn a_million_letters_a() {
        let [_, md5, sha1, sha256, sha512] = all(&vec![b'a'; 1_000_000]);
        assert_eq!(md5, "7707d6ae4e027c70eea2a935c2296f21");
        assert_eq!(sha1, "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
        assert_eq!(sha256, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
        assert_eq!(
            sha512,
            "e718483d0ce769644e2e42c7bc15b4638e1f98b13b2044285632a803afa973eb\
             de0ff244877ea60a4cb0432ce577c31beb009c5c2c49aa2e4eadb217ad8cc09b"
        );
    }

    #[test]
    fn pieces_of_any_length_give_what_one_piece_gives() {
        let content: Vec<u8> = (0..3 * STEP_BYTES + 17).map(|i| (i * 31 % 251) as u8).collect();
        let whole = Set::digest(Selection::ALL, &content);
        for length in [1, 63, 64, 65, 1023, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, content.len()] {
            let mut set = Set::new(Selection::ALL);
            content.chunks(length).for_each(|piece| set.update(piece));
            set.update(b"");
            assert_eq!(set.finish(), whole, "pieces of {length}");
        }
    }

    #[test]
    fn what_is_switched_off_is_absent_and_the_rest_unchanged() {
        let whole = Set::digest(Selection::ALL, b"content");
        for bits in 0..16u8 {
            let [md5, sha1, sha256, sha512] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            let digests = Set::digest(Selection { md5, sha1, sha256, sha512 }, b"content");
            assert_eq!(digests.blake3, whole.blake3);
            assert_eq!(digests.md5, whole.md5.filter(|_| md5));
            assert_eq!(digests.sha1, whole.sha1.filter(|_| sha1));
            assert_eq!(digests.sha256, whole.sha256.filter(|_| sha256));
            assert_eq!(digests.sha512, whole.sha512.filter(|_| sha512));
            assert_eq!(digests.sha512_hex().len(), if sha512 { 128 } else { 0 });
        }
    }
}
