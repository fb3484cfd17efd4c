//! LZX as WIM has it: each chunk for itself. Format: [MS-PATCH] and the comments of wimlib's `lzx_decompress.c` on how WIM differs from
//! cabinets.

use std::io;

use crate::fields::{array, invalid, le32};

use super::huffman::{Bits, Huffman, repeat};

const LITERALS: usize = 256;
const LENGTH_SYMBOLS: usize = 249;
const LENGTH_MIN: usize = 2;
const BLOCK_VERBATIM: u32 = 1;
const BLOCK_ALIGNED: u32 = 2;
const BLOCK_STORED: u32 = 3;
const BLOCK_BYTES_DEFAULT: usize = 32_768;
/// What the targets of calls are relative to.
const CALLS_SIZE: i32 = 12_000_000;

/// How many slots distances have, for windows of 2^15 bytes and more.
const SLOTS: [usize; 7] = [30, 32, 34, 36, 38, 42, 50];

/// Decodes a chunk, which has so many bytes then. Windows are as long as chunks may be: a power of two from 32 KiB to 2 MiB.
pub(super) fn decode(packed: &[u8], length: usize, window_bytes: usize) -> io::Result<Vec<u8>> {
    let order = window_bytes.max(1 << 15).ilog2();
    let slots = SLOTS.get(order as usize - 15).copied().ok_or_else(|| invalid("a window of no known length"))?;
    let mut main_lengths = vec![0; LITERALS + 8 * slots];
    let mut length_lengths = vec![0; LENGTH_SYMBOLS];
    let mut recent = [1usize; 3];
    let bases: Vec<usize> = (0..slots)
        .scan(0, |base, slot| {
            let this = *base;
            *base += 1 << extra_bits(slot);
            Some(this)
        })
        .collect();
    let mut bits = Bits::new(packed);
    let mut decoded = Vec::with_capacity(length);
    while decoded.len() < length {
        let kind = bits.take(3)?;
        let block_bytes = match bits.take(1)? {
            1 => BLOCK_BYTES_DEFAULT,
            _ if order >= 16 => (bits.take(16)? << 8 | bits.take(8)?) as usize,
            _ => bits.take(16)? as usize,
        };
        let end = decoded.len() + block_bytes;
        if block_bytes == 0 || end > length {
            return Err(invalid("a block longer than its chunk"));
        }
        let aligned = match kind {
            BLOCK_ALIGNED => {
                let lengths =
                    (0..8).map(|_| bits.take(3).map(|length| length as u8)).collect::<io::Result<Vec<_>>>()?;
                Some(Huffman::new(&lengths)?)
            }
            BLOCK_VERBATIM => None,
            BLOCK_STORED => {
                stored(&mut bits, block_bytes, &mut recent, &mut decoded)?;
                continue;
            }
            _ => return Err(invalid("a block of no known kind")),
        };
        let (literals, others) = main_lengths.split_at_mut(LITERALS);
        for lengths in [literals, others, &mut length_lengths] {
            read_lengths(&mut bits, lengths)?;
        }
        let (main, lengths) = (Huffman::new(&main_lengths)?, Huffman::new(&length_lengths)?);
        block(&mut bits, &Codes { main, lengths, aligned, bases: &bases }, end, &mut recent, &mut decoded)?;
    }
    calls_back(&mut decoded);
    Ok(decoded)
}

struct Codes<'c> {
    /// Where the distances of each slot begin.
    bases: &'c [usize],
    main: Huffman,
    lengths: Huffman,
    aligned: Option<Huffman>,
}

fn block(
    bits: &mut Bits<'_>,
    codes: &Codes<'_>,
    end: usize,
    recent: &mut [usize; 3],
    decoded: &mut Vec<u8>,
) -> io::Result<()> {
    while decoded.len() < end {
        let symbol = codes.main.symbol(bits)?;
        let Some(symbol) = symbol.checked_sub(LITERALS) else {
            decoded.push(symbol as u8);
            continue;
        };
        let mut length = symbol & 7;
        if length == 7 {
            length += codes.lengths.symbol(bits)?;
        }
        let slot = symbol >> 3;
        if slot < recent.len() {
            recent.swap(0, slot);
        } else {
            let distance = distance(bits, slot, codes)?;
            *recent = [distance, recent[0], recent[1]];
        }
        repeat(decoded, recent[0], length + LENGTH_MIN, end)?;
    }
    Ok(())
}

/// How many bits say how far a distance is into its slot.
fn extra_bits(slot: usize) -> u32 {
    if slot < 4 { 0 } else { (slot as u32 / 2 - 1).min(17) }
}

/// The distance of a slot: where the slot begins, and how far it is into it.
fn distance(bits: &mut Bits<'_>, slot: usize, codes: &Codes<'_>) -> io::Result<usize> {
    let base = codes.bases.get(slot).copied().unwrap_or(0);
    let count = extra_bits(slot);
    let wide = |bits: &mut Bits<'_>, count: u32| -> io::Result<usize> {
        // At most 16 bits are read at once.
        let high = bits.take(count.saturating_sub(16))?;
        Ok((high << count.min(16)) as usize | bits.take(count.min(16))? as usize)
    };
    let into = match &codes.aligned {
        Some(aligned) if count >= 3 => wide(bits, count - 3)? << 3 | aligned.symbol(bits)?,
        _ => wide(bits, count)?,
    };
    (base + into).checked_sub(2).ok_or_else(|| invalid("malformed compressed data"))
}

/// A block as it is, in front of which the recent distances are.
fn stored(bits: &mut Bits<'_>, length: usize, recent: &mut [usize; 3], decoded: &mut Vec<u8>) -> io::Result<()> {
    bits.align()?;
    let distances = bits.bytes(12)?;
    for (at, distance) in recent.iter_mut().enumerate() {
        *distance = le32(distances, at * 4).unwrap_or(0) as usize;
    }
    decoded.extend_from_slice(bits.bytes(length)?);
    if length % 2 == 1 {
        bits.bytes(1)?;
    }
    Ok(())
}

/// Reads the lengths of codes: as the differences from those of the block before, coded themselves.
fn read_lengths(bits: &mut Bits<'_>, lengths: &mut [u8]) -> io::Result<()> {
    let own = (0..20).map(|_| bits.take(4).map(|length| length as u8)).collect::<io::Result<Vec<_>>>()?;
    let code = Huffman::new(&own)?;
    let less = |old: u8, symbol: usize| ((usize::from(old) + 17 - symbol) % 17) as u8;
    let mut at = 0;
    while let Some(old) = lengths.get(at).copied() {
        let symbol = code.symbol(bits)?;
        let (length, count) = match symbol {
            17 => (0, 4 + bits.take(4)?),
            18 => (0, 20 + bits.take(5)?),
            19 => {
                let count = 4 + bits.take(1)?;
                match code.symbol(bits)? {
                    symbol @ 0..=16 => (less(old, symbol), count),
                    _ => return Err(invalid("malformed compressed data")),
                }
            }
            symbol => (less(old, symbol), 1),
        };
        let run = lengths.get_mut(at..at + count as usize).ok_or_else(|| invalid("malformed compressed data"))?;
        run.fill(length);
        at += count as usize;
    }
    Ok(())
}

/// Makes the targets of calls relative again, which the compressor made absolute.
fn calls_back(decoded: &mut [u8]) {
    let end = decoded.len().saturating_sub(10);
    let mut at = 0;
    while let Some(next) = decoded.get(at..end).and_then(|rest| memchr::memchr(0xe8, rest)) {
        at += next;
        let Some(absolute) = array(decoded, at + 1).map(i32::from_le_bytes) else { return };
        let place = at as i32;
        let relative = match absolute {
            0..CALLS_SIZE => Some(absolute - place),
            ..0 if absolute >= -place => Some(absolute + CALLS_SIZE),
            _ => None,
        };
        if let (Some(relative), Some(target)) = (relative, decoded.get_mut(at + 1..at + 5)) {
            target.copy_from_slice(&relative.to_le_bytes());
        }
        at += 5;
    }
}
