//! Decryption for documents: AES in CBC and ECB mode, and RC4. Documents of the field are encrypted with these; whether they should
//! be is not asked here.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};

/// The length of a block of AES.
pub(crate) const BLOCK_BYTES: usize = 16;

/// AES with a key of any of its lengths.
pub(crate) enum Aes {
    /// 128 bits.
    Short(Aes128),
    /// 192 bits.
    Middle(Aes192),
    /// 256 bits.
    Long(Aes256),
}

impl Aes {
    /// With this key; none if it is of no length that AES has.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        match key.len() {
            16 => Aes128::new_from_slice(key).ok().map(Self::Short),
            24 => Aes192::new_from_slice(key).ok().map(Self::Middle),
            32 => Aes256::new_from_slice(key).ok().map(Self::Long),
            _ => None,
        }
    }

    fn decrypt_block(&self, block: &mut [u8; BLOCK_BYTES]) {
        let mut array = Array::from(*block);
        match self {
            Self::Short(aes) => aes.decrypt_block(&mut array),
            Self::Middle(aes) => aes.decrypt_block(&mut array),
            Self::Long(aes) => aes.decrypt_block(&mut array),
        }
        *block = array.into();
    }

    fn encrypt_block(&self, block: &mut [u8; BLOCK_BYTES]) {
        let mut array = Array::from(*block);
        match self {
            Self::Short(aes) => aes.encrypt_block(&mut array),
            Self::Middle(aes) => aes.encrypt_block(&mut array),
            Self::Long(aes) => aes.encrypt_block(&mut array),
        }
        *block = array.into();
    }

    /// Encrypts one block on its own.
    pub(crate) fn encrypt_one(&self, block: &mut [u8; BLOCK_BYTES]) {
        self.encrypt_block(block);
    }

    /// Decrypts whole blocks, each on its own; what is left over stays.
    pub(crate) fn decrypt_ecb(&self, data: &mut [u8]) {
        for block in data.as_chunks_mut().0 {
            self.decrypt_block(block);
        }
    }

    /// Decrypts whole blocks, each mixed with the one before; what is left over stays. `vector` is what the first is mixed
    /// with, and afterwards what the next would be.
    pub(crate) fn decrypt_cbc(&self, vector: &mut [u8; BLOCK_BYTES], data: &mut [u8]) {
        for block in data.as_chunks_mut().0 {
            let encrypted = *block;
            self.decrypt_block(block);
            mix(block, vector);
            *vector = encrypted;
        }
    }

    /// The reverse, which the key derivation of PDF 2.0 uses.
    pub(crate) fn encrypt_cbc(&self, vector: &mut [u8; BLOCK_BYTES], data: &mut [u8]) {
        for block in data.as_chunks_mut().0 {
            mix(block, vector);
            self.encrypt_block(block);
            *vector = *block;
        }
    }
}

fn mix(block: &mut [u8; BLOCK_BYTES], with: &[u8; BLOCK_BYTES]) {
    for (byte, other) in block.iter_mut().zip(with) {
        *byte ^= other;
    }
}

/// The stream cipher RC4, as everybody knows it. Kept here because thirty lines need no library.
pub(crate) struct Rc4 {
    state: [u8; 256],
    i: u8,
    j: u8,
}

impl Rc4 {
    /// With this key; an empty one counts as a zero byte.
    pub(crate) fn new(key: &[u8]) -> Self {
        let mut state: [u8; 256] = std::array::from_fn(|at| at as u8);
        let mut j = 0u8;
        let key = if key.is_empty() { &[0][..] } else { key };
        for (i, key_byte) in (0..=255u8).zip(key.iter().cycle()) {
            j = j.wrapping_add(state[usize::from(i)]).wrapping_add(*key_byte);
            state.swap(usize::from(i), usize::from(j));
        }
        Self { state, i: 0, j: 0 }
    }

    /// Decrypts, or encrypts, what comes next.
    pub(crate) fn apply(&mut self, data: &mut [u8]) {
        for byte in data {
            self.i = self.i.wrapping_add(1);
            let at_i = self.state[usize::from(self.i)];
            self.j = self.j.wrapping_add(at_i);
            let at_j = self.state[usize::from(self.j)];
            self.state.swap(usize::from(self.i), usize::from(self.j));
            *byte ^= self.state[usize::from(at_i.wrapping_add(at_j))];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rc4_is_the_rc4_of_the_known_vectors() {
        let mut data = *b"Plaintext";
        Rc4::new(b"Key").apply(&mut data);
        assert_eq!(data, [0xbb, 0xf3, 0x16, 0xe8, 0xd9, 0x40, 0xaf, 0x0a, 0xd3]);
    }

    #[test]
    fn aes_is_that_of_nist_sp_800_38a() {
        let key = [0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6, 0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c];
        let plain = [0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d, 0x7e, 0x11, 0x73, 0x93, 0x17, 0x2a];
        let cbc = [0x76, 0x49, 0xab, 0xac, 0x81, 0x19, 0xb2, 0x46, 0xce, 0xe9, 0x8e, 0x9b, 0x12, 0xe9, 0x19, 0x7d];
        let ecb = [0x3a, 0xd7, 0x7b, 0xb4, 0x0d, 0x7a, 0x36, 0x60, 0xa8, 0x9e, 0xca, 0xf3, 0x24, 0x66, 0xef, 0x97];
        let aes = Aes::new(&key).unwrap();
        let vector = std::array::from_fn(|at| at as u8);
        let mut data = cbc;
        aes.decrypt_cbc(&mut vector.clone(), &mut data);
        assert_eq!(data, plain);
        aes.encrypt_cbc(&mut vector.clone(), &mut data);
        assert_eq!(data, cbc);
        let mut data = ecb;
        aes.decrypt_ecb(&mut data);
        assert_eq!(data, plain);
        assert!(Aes::new(&key[1..]).is_none());
    }
}
