//! Encrypted ZIP members: the traditional cipher (APPNOTE 6.1) and AES as WinZip writes it (its "AES Encryption
//! Information", versions AE-1 and AE-2). The strong encryption of APPNOTE 7 is not read.
//!
//! Each password is tried in order, and the one that opened the last member first. What a header can tell of a password is
//! little, for the traditional cipher one byte: where several passwords pass, the member is decoded with each, and its
//! checksum decides.

use std::io::{self, BufReader, Read};

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use super::decode;
use super::format::{AesField, Entry, FLAG_STRONG, METHOD_AES};
use crate::budget::Budget;
use crate::cipher::{Aes, BLOCK_BYTES};

/// How many bytes of the checksum over encrypted data a member keeps.
const MAC_BYTES: usize = 10;
/// Rounds of the key's derivation.
const ROUNDS: u32 = 1000;
const VERIFIER_BYTES: usize = 2;
/// The header of the traditional cipher.
const HEADER_BYTES: usize = 12;
/// How much is decrypted at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// What opens an encrypted member.
pub(super) enum Key {
    Traditional(Traditional),
    Aes(Box<(Aes, Hmac<Sha1>)>),
}

/// Where an encrypted member's data lies behind its salt or header, and how long it is.
pub(super) struct Opened {
    pub key: Key,
    pub skip_bytes: u64,
    pub data_bytes: u64,
    /// How the data is compressed.
    pub method: u16,
}

/// Finds the password of a member whose data begins with `start`; tells which it is. `check` says whether what a password
/// opens is what the member should be.
pub(super) fn open<'p>(
    entry: &Entry,
    passwords: impl Iterator<Item = (usize, &'p str)>,
    budget: &Budget,
    start: &[u8],
    check: &mut dyn FnMut(&Opened) -> io::Result<bool>,
) -> io::Result<Option<(usize, Opened)>> {
    match entry.aes {
        Some(aes) if entry.method == METHOD_AES => open_aes(entry, aes, passwords, budget, start),
        None if entry.method != METHOD_AES && entry.flags & FLAG_STRONG == 0 => {
            open_traditional(entry, passwords, budget, start, check)
        }
        _ => Ok(None),
    }
}

/// The most of a member's data that tells of a password.
pub(super) const START_BYTES: u64 = 18;

fn open_aes<'p>(
    entry: &Entry,
    field: AesField,
    passwords: impl Iterator<Item = (usize, &'p str)>,
    budget: &Budget,
    start: &[u8],
) -> io::Result<Option<(usize, Opened)>> {
    let key_bytes = match field.strength {
        1 => 16,
        2 => 24,
        3 => 32,
        _ => return Ok(None),
    };
    let salt_bytes = key_bytes / 2;
    let skip_bytes = (salt_bytes + VERIFIER_BYTES) as u64;
    let around = skip_bytes + MAC_BYTES as u64;
    let (Some(salt), Some(verifier)) = (start.get(..salt_bytes), start.get(salt_bytes..salt_bytes + VERIFIER_BYTES))
    else {
        return Ok(None);
    };
    let Some(data_bytes) = entry.compressed_bytes.checked_sub(around) else { return Ok(None) };
    for (at, password) in passwords {
        budget.check()?;
        let mut derived = [0; 2 * 32 + VERIFIER_BYTES];
        let derived = derived.get_mut(..2 * key_bytes + VERIFIER_BYTES).unwrap_or_default();
        pbkdf2::pbkdf2_hmac::<Sha1>(password.as_bytes(), salt, ROUNDS, derived);
        let (cipher_key, rest) = derived.split_at(key_bytes);
        let (mac_key, found) = rest.split_at(key_bytes);
        if found != verifier {
            continue;
        }
        let (Some(cipher), Ok(mac)) = (Aes::new(cipher_key), Hmac::new_from_slice(mac_key)) else { return Ok(None) };
        let opened = Opened { key: Key::Aes(Box::new((cipher, mac))), skip_bytes, data_bytes, method: field.method };
        return Ok(Some((at, opened)));
    }
    Ok(None)
}

fn open_traditional<'p>(
    entry: &Entry,
    passwords: impl Iterator<Item = (usize, &'p str)>,
    budget: &Budget,
    start: &[u8],
    check: &mut dyn FnMut(&Opened) -> io::Result<bool>,
) -> io::Result<Option<(usize, Opened)>> {
    let Some(header) = start.get(..HEADER_BYTES) else { return Ok(None) };
    let Some(data_bytes) = entry.compressed_bytes.checked_sub(HEADER_BYTES as u64) else { return Ok(None) };
    let mut first = None;
    let mut candidates = 0;
    for (at, password) in passwords {
        budget.check()?;
        let mut keys = Traditional::new(password.as_bytes());
        let mut header = header.to_vec();
        keys.decrypt(&mut header);
        let told = header.last().copied().unwrap_or(0);
        // Writers that know the checksum only afterwards take the time instead.
        if told != (entry.crc32 >> 24) as u8 && told != (entry.time >> 8) as u8 {
            continue;
        }
        candidates += 1;
        let opened =
            Opened { key: Key::Traditional(keys), skip_bytes: HEADER_BYTES as u64, data_bytes, method: entry.method };
        if check(&opened)? {
            return Ok(Some((at, opened)));
        }
        first = first.or(Some((at, opened)));
    }
    // One password that passes and a member that is broken: it is handed out as far as it goes.
    Ok(first.filter(|_| candidates == 1))
}

/// The traditional cipher.
#[derive(Clone)]
pub(super) struct Traditional([u32; 3]);

impl Traditional {
    fn new(password: &[u8]) -> Self {
        let mut keys = Self([0x1234_5678, 0x2345_6789, 0x3456_7890]);
        for byte in password {
            keys.update(*byte);
        }
        keys
    }

    fn update(&mut self, plain: u8) {
        let [key0, key1, key2] = self.0;
        let key0 = crc_step(key0, plain);
        let key1 = key1.wrapping_add(key0 & 0xff).wrapping_mul(134_775_813).wrapping_add(1);
        let key2 = crc_step(key2, (key1 >> 24) as u8);
        self.0 = [key0, key1, key2];
    }

    fn decrypt(&mut self, data: &mut [u8]) {
        for byte in data {
            let mixed = (self.0[2] | 2) & 0xffff;
            let stream = (mixed.wrapping_mul(mixed ^ 1) >> 8) as u8;
            *byte ^= stream;
            self.update(*byte);
        }
    }
}

/// One byte of the CRC-32 that the cipher mixes with, without its inversions.
fn crc_step(crc: u32, byte: u8) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let mut value = at as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    (crc >> 8) ^ TABLE[usize::from((crc as u8) ^ byte)]
}

/// Decrypts what it reads. `input` begins behind the salt or header.
pub(super) struct Decrypting<R> {
    input: io::Take<R>,
    kind: Kind,
}

enum Kind {
    Traditional(Traditional),
    Aes(Box<Counter>),
}

/// AES in counter mode, as WinZip counts: from 1, the lowest byte first.
struct Counter {
    cipher: Aes,
    /// Gone once it was compared.
    mac: Option<Hmac<Sha1>>,
    counter: u128,
    stream: [u8; BLOCK_BYTES],
    used: usize,
}

impl Counter {
    fn decrypt(&mut self, data: &mut [u8]) {
        if let Some(mac) = &mut self.mac {
            mac.update(data);
        }
        for byte in data {
            if self.used == BLOCK_BYTES {
                self.counter = self.counter.wrapping_add(1);
                self.stream = self.counter.to_le_bytes();
                self.cipher.encrypt_one(&mut self.stream);
                self.used = 0;
            }
            *byte ^= self.stream.get(self.used).copied().unwrap_or(0);
            self.used += 1;
        }
    }
}

impl<R: Read> Decrypting<R> {
    pub fn new(input: R, opened: Opened) -> BufReader<Self> {
        let kind = match opened.key {
            Key::Traditional(keys) => Kind::Traditional(keys),
            Key::Aes(keys) => {
                let (cipher, mac) = *keys;
                Kind::Aes(Box::new(Counter {
                    cipher,
                    mac: Some(mac),
                    counter: 0,
                    stream: [0; BLOCK_BYTES],
                    used: BLOCK_BYTES,
                }))
            }
        };
        BufReader::with_capacity(BUFFER_BYTES, Self { input: input.take(opened.data_bytes), kind })
    }
}

impl<R: Read> Read for Decrypting<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        let data = into.get_mut(..read).unwrap_or_default();
        match &mut self.kind {
            Kind::Traditional(keys) => keys.decrypt(data),
            Kind::Aes(counter) => {
                counter.decrypt(data);
                // Behind the data lies what it should sum up to.
                if read == 0
                    && !into.is_empty()
                    && self.input.limit() == 0
                    && let Some(mac) = counter.mac.take()
                {
                    let mut told = [0; MAC_BYTES];
                    self.input.get_mut().read_exact(&mut told)?;
                    if mac.finalize().into_bytes().get(..MAC_BYTES) != Some(told.as_slice()) {
                        let reason = "the encrypted data doesn't have the checksum that follows it";
                        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
                    }
                }
            }
        }
        Ok(read)
    }
}

/// Whether a member that is opened so has the checksum that its header says.
pub(super) fn fits(entry: &Entry, opened: &Opened, input: impl Read) -> io::Result<bool> {
    let Key::Traditional(keys) = &opened.key else { return Ok(true) };
    let again = Opened { key: Key::Traditional(keys.clone()), ..*opened };
    let decrypted = Decrypting::new(input, again);
    let mut content = match decode::decoder(opened.method, entry.flags, entry.size_bytes, decrypted) {
        Ok(decoder) => decoder.take(entry.size_bytes.saturating_add(1)),
        Err(_) => return Ok(false),
    };
    let mut sum = crc32fast::Hasher::new();
    let mut buffer = [0; BUFFER_BYTES];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => return Ok(sum.finalize() == entry.crc32),
            Ok(read) => sum.update(buffer.get(..read).unwrap_or_default()),
            Err(error) => return crate::limits::Halt::of(&error).map_or(Ok(false), |halt| Err(halt.into())),
        }
    }
}
