//! XPRESS with Huffman codes. Format: [MS-XCA] 2.1 and 2.2.

use std::io;

use crate::fields::invalid;

use super::huffman::{Bits, Huffman, repeat};

const SYMBOLS: usize = 512;
/// From this symbol on they stand for repetitions.
const LITERALS: usize = 256;
const LENGTH_MIN: usize = 3;

/// Decodes a chunk, which has so many bytes then.
pub(super) fn decode(packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
    let (lengths, rest) = packed.split_at_checked(SYMBOLS / 2).ok_or_else(|| invalid("a chunk that is cut off"))?;
    let lengths: Vec<u8> = lengths.iter().flat_map(|two| [two & 15, two >> 4]).collect();
    let code = Huffman::new(&lengths)?;
    let mut bits = Bits::new(rest);
    let mut decoded = Vec::with_capacity(length);
    while decoded.len() < length {
        let symbol = code.symbol(&mut bits)?;
        if symbol < LITERALS {
            decoded.push(symbol as u8);
            continue;
        }
        // Long lengths are bytes between the units of bits, behind those that a decoder has read by now.
        bits.ensure(16)?;
        let mut count = symbol & 15;
        if count == 15 {
            count = match bits.bytes(1)? {
                [255] => bits.bytes(2)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)),
                more => 15 + more.first().map_or(0, |byte| usize::from(*byte)),
            };
        }
        let distance_bits = symbol >> 4 & 15;
        let distance = 1 << distance_bits | bits.take(distance_bits as u32)? as usize;
        repeat(&mut decoded, distance, count + LENGTH_MIN, length)?;
    }
    Ok(decoded)
}
