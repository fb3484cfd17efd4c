//! The salt: payloads are XORed with AES-128 in counter mode under a random key that lies in the record's header.
//!
//! It keeps what is on disk from being executed or matched by on-access scanners. It hides nothing from whoever reads the
//! disk on purpose, and is nowhere called encryption.

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};

/// The counter counts these.
const BLOCK_BYTES: u32 = 16;

/// The key of one record. Chosen at random for each, so that a counter that starts at zero never repeats under it.
pub type SaltKey = [u8; 16];

/// Salts or unsalts `bytes`, which lie at `position` of a record's payload, in place.
///
/// The position is 32 bits wide, as payload lengths are; the keystream is 2^132 bytes long, so it cannot run out.
pub fn apply(key: &SaltKey, position: u32, bytes: &mut [u8]) {
    let (first_block, within) = (position / BLOCK_BYTES, position % BLOCK_BYTES);
    if within == 0 {
        return keystream(key, first_block, bytes);
    }
    let (head, rest) = bytes.split_at_mut(bytes.len().min((BLOCK_BYTES - within) as usize));
    let mut block = [0; BLOCK_BYTES as usize];
    keystream(key, first_block, &mut block);
    head.iter_mut().zip(block.iter().skip(within as usize)).for_each(|(byte, stream)| *byte ^= stream);
    keystream(key, first_block + 1, rest);
}

/// XORs `bytes` with the keystream from the block `first` on.
#[expect(clippy::expect_used, reason = "what was not salted may not go to the disk, and it can't fail")]
fn keystream(key: &SaltKey, first: u32, bytes: &mut [u8]) {
    let counter = EncryptionContext::Iv128(u128::from(first).to_be_bytes().into());
    let key = UnboundCipherKey::new(&AES_128, key).and_then(EncryptingKey::ctr);
    let salted = key.and_then(|key| key.less_safe_encrypt(bytes, counter));
    salted.expect("counter mode takes any length and any counter, and the key has its cipher's length");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keystream_is_aes_ctr_from_zero() {
        // FIPS 197, appendix C.1: the key 00..0f; the first block of the stream is the encrypted zero block.
        let key: SaltKey = std::array::from_fn(|at| at as u8);
        let mut bytes = [0; 16];
        apply(&key, 0, &mut bytes);
        assert_eq!(hex::encode(bytes), "c6a13b37878f5b826f4f8162a1c8d879");
    }

    #[test]
    fn any_range_unsalts_alone() {
        let key = [7; 16];
        let plain: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
        let mut salted = plain.clone();
        apply(&key, 0, &mut salted);
        for (start, end) in [(0, 100_000), (1, 2), (15, 17), (16, 32), (4_097, 70_003), (99_999, 100_000)] {
            let mut range = salted[start..end].to_vec();
            assert_ne!(range, plain[start..end]);
            apply(&key, start as u32, &mut range);
            assert_eq!(range, plain[start..end], "{start}..{end}");
        }
    }
}
