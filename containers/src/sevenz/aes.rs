//! The encryption of 7z: AES-256 in CBC mode under a key that SHA-256 makes of the password. There is nothing to tell a wrong
//! password by but what comes out.

use std::io::{self, Read};

use aes::Aes256;
use aes::cipher::{Block, BlockCipherDecrypt, KeyInit};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::budget::Budget;
use crate::container::read_full;
use crate::fields::{invalid, unsupported};
use crate::parts::BUFFER_BYTES;

/// Its method number.
pub(super) const AES: u64 = 0x06_f1_07_01;
/// The key is the password itself.
const CYCLES_NONE: u8 = 0x3f;
/// More doublings of the key derivation than 7-Zip takes.
const CYCLES_MAX: u8 = 24;
/// How many rounds of the derivation pass between two looks at the clock.
const ROUNDS_AT_ONCE: u64 = 1 << 16;
const BLOCK_BYTES: usize = 16;

/// Makes keys of the current password, and remembers the last one: an archive's folders mostly share it.
pub(super) struct Keys<'k> {
    budget: &'k Budget,
    password: Zeroizing<Vec<u8>>,
    last: Option<(u8, Vec<u8>, Zeroizing<[u8; 32]>)>,
}

impl<'k> Keys<'k> {
    /// Keys of a password.
    pub(super) fn new(password: &str, budget: &'k Budget) -> Self {
        let password = Zeroizing::new(password.encode_utf16().flat_map(u16::to_le_bytes).collect());
        Self { budget, password, last: None }
    }

    fn key(&mut self, cycles: u8, salt: &[u8]) -> io::Result<Zeroizing<[u8; 32]>> {
        if let Some((_, _, key)) = self.last.as_ref().filter(|(c, s, _)| *c == cycles && s == salt) {
            return Ok(key.clone());
        }
        let mut key = Zeroizing::new([0; 32]);
        if cycles == CYCLES_NONE {
            for (to, from) in key.iter_mut().zip(salt.iter().chain(self.password.iter())) {
                *to = *from;
            }
        } else if cycles > CYCLES_MAX {
            return Err(unsupported("a key derivation of more rounds than anybody makes"));
        } else {
            let mut hash = Sha256::new();
            for round in 0..1u64 << cycles {
                if round % ROUNDS_AT_ONCE == 0 {
                    self.budget.check()?;
                }
                hash.update(salt);
                hash.update(self.password.as_slice());
                hash.update(round.to_le_bytes());
            }
            key.copy_from_slice(&hash.finalize());
        }
        self.last = Some((cycles, salt.to_vec(), key.clone()));
        Ok(key)
    }
}

/// Decrypts a stream.
pub(super) struct Decryptor<R> {
    input: R,
    cipher: Aes256,
    chain: [u8; BLOCK_BYTES],
    buffer: Zeroizing<Vec<u8>>,
    read: usize,
}

impl<R: Read> Decryptor<R> {
    pub(super) fn new(input: R, properties: &[u8], keys: &mut Keys<'_>) -> io::Result<Self> {
        let malformed = || invalid("malformed properties of the encryption");
        let (&first, rest) = properties.split_first().ok_or_else(malformed)?;
        let (mut salt, mut vector): (&[u8], &[u8]) = (&[], &[]);
        if first & 0xc0 != 0 {
            let (&second, rest) = rest.split_first().ok_or_else(malformed)?;
            let salt_bytes = usize::from((first >> 7 & 1) + (second >> 4));
            let vector_bytes = usize::from((first >> 6 & 1) + (second & 15));
            let rest = rest.get(..salt_bytes + vector_bytes).ok_or_else(malformed)?;
            (salt, vector) = rest.split_at_checked(salt_bytes).ok_or_else(malformed)?;
        }
        let mut chain = [0; BLOCK_BYTES];
        for (to, from) in chain.iter_mut().zip(vector) {
            *to = *from;
        }
        let key = keys.key(first & 0x3f, salt)?;
        let cipher = Aes256::new_from_slice(key.as_slice()).map_err(|_| malformed())?;
        Ok(Self { input, cipher, chain, buffer: Zeroizing::new(Vec::new()), read: 0 })
    }

    fn fill(&mut self) -> io::Result<()> {
        self.buffer.resize(BUFFER_BYTES, 0);
        let read = read_full(&mut self.input, &mut self.buffer)?;
        self.buffer.truncate(read);
        self.read = 0;
        if read % BLOCK_BYTES != 0 {
            return Err(invalid("an encrypted stream of broken blocks"));
        }
        let (blocks, _) = self.buffer.as_chunks_mut::<BLOCK_BYTES>();
        for block in blocks {
            let encrypted = *block;
            let mut plain = Block::<Aes256>::from(encrypted);
            self.cipher.decrypt_block(&mut plain);
            for ((to, plain), chain) in block.iter_mut().zip(plain).zip(self.chain) {
                *to = plain ^ chain;
            }
            self.chain = encrypted;
        }
        Ok(())
    }
}

impl<R: Read> Read for Decryptor<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.read >= self.buffer.len() {
            self.fill()?;
        }
        let rest = self.buffer.get(self.read..).unwrap_or_default();
        let length = rest.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.read += length;
        Ok(length)
    }
}
