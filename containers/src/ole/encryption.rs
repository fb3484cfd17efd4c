//! Office documents under a password: an OOXML package encrypted as a stream of a compound file. Format: [MS-OFFCRYPTO] 2.3.4, the
//! standard and the agile way. Other ways (extensible, rights management) stay closed.

use std::io::{self, Read};

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::budget::Budget;
use crate::cipher::{Aes, BLOCK_BYTES};
use crate::container::read_full;
use crate::fields::{cut_off, invalid, le16, le32, le64};
use crate::limits::Halt;
use crate::passwords::Passwords;

/// The longest `EncryptionInfo` that is read: its XML may name some certificates besides the password.
pub(super) const INFO_BYTES_MAX: u64 = 1 << 20;
/// Excel opens what is encrypted with this without asking.
const DEFAULT_PASSWORD: &str = "VelvetSweatshop";
/// How many times the standard way hashes a password.
const STANDARD_ROUNDS: u32 = 50_000;
/// The most rounds that the specification allows.
const ROUNDS_MAX: u32 = 10_000_000;
/// How many rounds pass between two looks at the clock.
const ROUNDS_BETWEEN_CHECKS: u32 = 10_000;
/// What the agile way encrypts with one vector.
const SEGMENT_BYTES: usize = 4096;

/// How an opened package is decrypted.
pub(super) enum Key {
    Standard(Aes),
    Agile { aes: Aes, hash: Hash, salt: Vec<u8> },
}

/// The hash functions that documents name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Md5,
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "MD5" => Self::Md5,
            "SHA1" | "SHA-1" => Self::Sha1,
            "SHA256" | "SHA-256" => Self::Sha256,
            "SHA384" | "SHA-384" => Self::Sha384,
            "SHA512" | "SHA-512" => Self::Sha512,
            _ => return None,
        })
    }

    fn of(self, parts: &[&[u8]]) -> Vec<u8> {
        fn digest<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut digest = D::new();
            for part in parts {
                digest.update(part);
            }
            digest.finalize().to_vec()
        }
        match self {
            Self::Md5 => digest::<Md5>(parts),
            Self::Sha1 => digest::<Sha1>(parts),
            Self::Sha256 => digest::<Sha256>(parts),
            Self::Sha384 => digest::<Sha384>(parts),
            Self::Sha512 => digest::<Sha512>(parts),
        }
    }

    /// The hash of a password, made slow.
    fn stretched(self, salt: &[u8], password: &str, rounds: u32, budget: &Budget) -> Result<Vec<u8>, Halt> {
        let utf16: Vec<u8> = password.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut hash = self.of(&[salt, &utf16]);
        for round in 0..rounds {
            if round % ROUNDS_BETWEEN_CHECKS == 0 {
                budget.check()?;
            }
            hash = self.of(&[&round.to_le_bytes(), &hash]);
        }
        Ok(hash)
    }
}

/// Finds the key of a package, and whether one of the given passwords is it. None if no password fits, or the package is encrypted in a way
/// that is not known here.
pub(super) fn open(info: &[u8], passwords: &Passwords, budget: &Budget) -> Result<Option<(Key, bool)>, Halt> {
    let (Some(major), Some(minor)) = (le16(info, 0), le16(info, 2)) else { return Ok(None) };
    for password in passwords.iter().chain([DEFAULT_PASSWORD]) {
        let key = match (major, minor) {
            (4, 4) => open_agile(info, password, budget)?,
            (2..=4, 2) => open_standard(info, password, budget)?,
            _ => None,
        };
        if let Some(key) = key {
            // Under the other one every program opens it.
            return Ok(Some((key, password != DEFAULT_PASSWORD)));
        }
    }
    Ok(None)
}

fn open_standard(info: &[u8], password: &str, budget: &Budget) -> Result<Option<Key>, Halt> {
    // Version and flags, then the length of the header, the header, the verifier.
    let Some(header_bytes) = le32(info, 8) else { return Ok(None) };
    let (Some(key_bits), Some(verifier_at)) = (le32(info, 12 + 16), (header_bytes as usize).checked_add(12)) else {
        return Ok(None);
    };
    let key_bits = if key_bits == 0 { 128 } else { key_bits };
    let Some(verifier) = info.get(verifier_at..) else { return Ok(None) };
    let (Some(salt), Some(encrypted), Some(encrypted_hash)) =
        (verifier.get(4..20), verifier.get(20..36), verifier.get(40..72))
    else {
        return Ok(None);
    };
    let hash = Hash::Sha1.stretched(salt, password, STANDARD_ROUNDS, budget)?;
    let hash = Hash::Sha1.of(&[&hash, &0u32.to_le_bytes()]);
    let mut key = Vec::new();
    for pad in [0x36u8, 0x5c] {
        let mut block = [pad; 64];
        for (byte, hashed) in block.iter_mut().zip(&hash) {
            *byte ^= hashed;
        }
        key.extend(Hash::Sha1.of(&[&block]));
    }
    let Some(aes) = key.get(..(key_bits / 8) as usize).and_then(Aes::new) else { return Ok(None) };
    let (mut encrypted, mut encrypted_hash) = (encrypted.to_vec(), encrypted_hash.to_vec());
    aes.decrypt_ecb(&mut encrypted);
    aes.decrypt_ecb(&mut encrypted_hash);
    let fits = encrypted_hash.starts_with(&Hash::Sha1.of(&[&encrypted]));
    Ok(fits.then_some(Key::Standard(aes)))
}

fn open_agile(info: &[u8], password: &str, budget: &Budget) -> Result<Option<Key>, Halt> {
    let Some(agile) = Agile::parse(info.get(8..).unwrap_or_default()) else { return Ok(None) };
    let password_hash = agile.key_hash.stretched(&agile.key_salt, password, agile.rounds, budget)?;
    let decrypt = |purpose: [u8; 8], encrypted: &[u8]| {
        let key = padded(agile.key_hash.of(&[&password_hash, &purpose]), agile.key_bytes);
        let mut vector = padded(agile.key_salt.clone(), BLOCK_BYTES).first_chunk().copied()?;
        let mut data = encrypted.to_vec();
        Aes::new(&key)?.decrypt_cbc(&mut vector, &mut data);
        Some(data)
    };
    // The purposes of [MS-OFFCRYPTO] 2.3.4.13.
    let input = decrypt([0xfe, 0xa7, 0xd2, 0x76, 0x3b, 0x4b, 0x9e, 0x79], &agile.verifier_input);
    let value = decrypt([0xd7, 0xaa, 0x0f, 0x6d, 0x30, 0x61, 0x34, 0x4e], &agile.verifier_hash);
    let secret = decrypt([0x14, 0x6e, 0x0b, 0xe7, 0xab, 0xac, 0xd0, 0xd6], &agile.key);
    let (Some(input), Some(value), Some(mut secret)) = (input, value, secret) else { return Ok(None) };
    if value.is_empty() || !value.starts_with(&agile.key_hash.of(&[input.get(..agile.salt_bytes).unwrap_or(&input)])) {
        return Ok(None);
    }
    secret.truncate(agile.data_key_bytes);
    let aes = Aes::new(&secret);
    Ok(aes.map(|aes| Key::Agile { aes, hash: agile.data_hash, salt: agile.data_salt.clone() }))
}

/// Cut or filled up to a length, as the specification does with keys and vectors.
fn padded(mut bytes: Vec<u8>, length: usize) -> Vec<u8> {
    bytes.resize(length, 0x36);
    bytes
}

/// What the XML of the agile way says.
struct Agile {
    data_hash: Hash,
    data_salt: Vec<u8>,
    data_key_bytes: usize,
    key_hash: Hash,
    key_salt: Vec<u8>,
    key_bytes: usize,
    salt_bytes: usize,
    rounds: u32,
    verifier_input: Vec<u8>,
    verifier_hash: Vec<u8>,
    key: Vec<u8>,
}

impl Agile {
    fn parse(xml: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(xml);
        let data = element(&text, "keyData")?;
        let key = element(&text, "encryptedKey")?;
        for element in [data, key] {
            if attribute(element, "cipherAlgorithm")? != "AES"
                || attribute(element, "cipherChaining")? != "ChainingModeCBC"
            {
                return None;
            }
        }
        let base64 = |element, name| crate::transfer::base64(attribute(element, name)?.as_bytes());
        let bytes_of_bits = |element| attribute(element, "keyBits")?.parse().ok().map(|bits: usize| bits / 8);
        Some(Self {
            data_hash: Hash::named(attribute(data, "hashAlgorithm")?)?,
            data_salt: base64(data, "saltValue")?,
            data_key_bytes: bytes_of_bits(data)?,
            key_hash: Hash::named(attribute(key, "hashAlgorithm")?)?,
            key_salt: base64(key, "saltValue")?,
            key_bytes: bytes_of_bits(key).filter(|bytes| *bytes <= 64)?,
            salt_bytes: attribute(key, "saltSize")?.parse().ok()?,
            rounds: attribute(key, "spinCount")?.parse().ok().filter(|rounds| *rounds <= ROUNDS_MAX)?,
            verifier_input: base64(key, "encryptedVerifierHashInput")?,
            verifier_hash: base64(key, "encryptedVerifierHashValue")?,
            key: base64(key, "encryptedKeyValue")?,
        })
    }
}

/// The start tag of the first element with this local name.
fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.split('<').find_map(|tag| {
        let tag = tag.split('>').next()?;
        let qualified = tag.split_ascii_whitespace().next()?.trim_end_matches('/');
        (qualified.rsplit(':').next()? == name).then_some(tag)
    })
}

fn attribute<'t>(tag: &'t str, name: &str) -> Option<&'t str> {
    let value = tag.split_ascii_whitespace().find_map(|part| part.strip_prefix(name)?.strip_prefix("=\""))?;
    value.split('"').next()
}

/// An encrypted package on its way out, decrypted.
pub(super) struct Decrypted<R> {
    input: R,
    key: Key,
    /// What is left of the package, once its length was read.
    left_bytes: Option<u64>,
    segment: u32,
    data: Vec<u8>,
    given: usize,
}

impl<R: Read> Decrypted<R> {
    pub(super) fn new(input: R, key: Key) -> Self {
        Self { input, key, left_bytes: None, segment: 0, data: Vec::new(), given: 0 }
    }

    fn next_segment(&mut self) -> io::Result<bool> {
        let left = match self.left_bytes {
            Some(left) => left,
            None => {
                let mut length = [0; 8];
                if read_full(&mut self.input, &mut length)? < length.len() {
                    return Err(cut_off("the encrypted package has no length"));
                }
                le64(&length, 0).unwrap_or(0)
            }
        };
        if left == 0 {
            return Ok(false);
        }
        let mut data = vec![0; SEGMENT_BYTES];
        let read = read_full(&mut self.input, &mut data)?;
        data.truncate(read);
        if (read as u64) < left.min(SEGMENT_BYTES as u64) {
            return Err(cut_off("the encrypted package is cut off"));
        }
        match &self.key {
            Key::Standard(aes) => aes.decrypt_ecb(&mut data),
            Key::Agile { aes, hash, salt } => {
                let vector = padded(hash.of(&[salt, &self.segment.to_le_bytes()]), BLOCK_BYTES);
                let mut vector = vector.first_chunk().copied().ok_or_else(|| invalid("a hash shorter than a block"))?;
                aes.decrypt_cbc(&mut vector, &mut data);
            }
        }
        self.segment = self.segment.wrapping_add(1);
        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        self.left_bytes = Some(left - data.len() as u64);
        self.data = data;
        self.given = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Decrypted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given >= self.data.len() {
            if into.is_empty() || !self.next_segment()? {
                return Ok(0);
            }
        }
        let mut rest = self.data.get(self.given..).unwrap_or_default();
        let read = rest.read(into)?;
        self.given += read;
        Ok(read)
    }
}
