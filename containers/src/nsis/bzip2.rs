//! NSIS's own bzip2: without the headers, checksums and the randomising of the original. Format: NSIS's `Source/bzip2/decompress.c`; the rest is
//! that of bzip2 1.0.
//!
//! A block and what it takes to decode it are bounded by the format: 900,000 bytes, four times that for the way back.

use std::io::{self, BufRead, Read};

use crate::fields::invalid;
use crate::parts::cut_off;

const BLOCK_BEGINS: u32 = 0x31;
const STREAM_ENDS: u32 = 0x17;
const BLOCK_BYTES_MAX: usize = 900_000;
const CODES_MAX: u32 = 6;
/// After so many symbols another code may be used.
const GROUP_SYMBOLS: usize = 50;
/// As many groups as a block can have.
const SELECTORS_MAX: u32 = 18_002;
const CODE_BITS_MAX: usize = 20;
/// After so many equal bytes comes a count of further ones.
const RUN_BYTES: u32 = 4;

fn malformed() -> io::Error {
    invalid("malformed compressed data")
}

/// Decodes a stream.
pub(super) struct Decoder<R> {
    bits: Bits<R>,
    block: Block,
    ended: bool,
}

impl<R: BufRead> Decoder<R> {
    pub(super) fn new(input: R) -> Self {
        Self { bits: Bits { input, bits: 0, count: 0 }, block: Block::default(), ended: false }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut written = 0;
        while let Some(place) = into.get_mut(written) {
            if let Some(byte) = self.block.next() {
                *place = byte;
                written += 1;
                continue;
            }
            if written > 0 || self.ended {
                break;
            }
            match self.bits.take(8)? {
                BLOCK_BEGINS => self.block = Block::read(&mut self.bits)?,
                STREAM_ENDS => self.ended = true,
                _ => return Err(malformed()),
            }
        }
        Ok(written)
    }
}

/// Bits, the highest of each byte first.
struct Bits<R> {
    input: R,
    bits: u64,
    count: u32,
}

impl<R: BufRead> Bits<R> {
    /// The next bits, at most 24.
    fn take(&mut self, count: u32) -> io::Result<u32> {
        while self.count < count {
            let byte = self.input.fill_buf()?.first().copied().ok_or_else(cut_off)?;
            self.input.consume(1);
            self.bits = self.bits << 8 | u64::from(byte);
            self.count += 8;
        }
        self.count -= count;
        Ok((self.bits >> self.count) as u32 & ((1 << count) - 1))
    }
}

/// A block that is decoded but for the last steps: going back through the sorted rotations, and runs.
#[derive(Default)]
struct Block {
    /// Each the byte at a place, and above it the place of the one that follows it.
    places: Vec<u32>,
    at: u32,
    left: usize,
    /// The byte that came last, how often in a row, and how often it comes once more.
    last: Option<u8>,
    run: u32,
    repeats: u8,
}

impl Block {
    /// The next byte; none at the end of the block.
    fn next(&mut self) -> Option<u8> {
        if self.repeats > 0 {
            self.repeats -= 1;
            return self.last;
        }
        loop {
            if self.left == 0 {
                return None;
            }
            let place = self.places.get(self.at as usize).copied().unwrap_or(0);
            let byte = place as u8;
            (self.at, self.left) = (place >> 8, self.left - 1);
            if self.run == RUN_BYTES {
                self.run = 0;
                if let Some(more) = byte.checked_sub(1) {
                    self.repeats = more;
                    return self.last;
                }
                continue;
            }
            self.run = if self.last == Some(byte) && self.run > 0 { self.run + 1 } else { 1 };
            self.last = Some(byte);
            return Some(byte);
        }
    }

    fn read<R: BufRead>(bits: &mut Bits<R>) -> io::Result<Self> {
        let origin = bits.take(24)?;
        let used = used_bytes(bits)?;
        // Two symbols for runs, one for the end, and the bytes but the first.
        let symbols = used.len() + 2;
        let codes_count = bits.take(3)?;
        let selectors_count = bits.take(15)?;
        if used.is_empty() || !(2..=CODES_MAX).contains(&codes_count) || !(1..=SELECTORS_MAX).contains(&selectors_count)
        {
            return Err(malformed());
        }
        let mut recent: Vec<u8> = (0..codes_count as u8).collect();
        let mut selectors = Vec::with_capacity(selectors_count as usize);
        for _ in 0..selectors_count {
            let mut index = 0;
            while bits.take(1)? == 1 {
                index += 1;
                if index >= recent.len() {
                    return Err(malformed());
                }
            }
            selectors.push(to_front(&mut recent, index)?);
        }
        let codes = (0..codes_count).map(|_| Code::read(bits, symbols)).collect::<io::Result<Vec<_>>>()?;
        let bytes = moved_to_front(bits, used, &selectors, &codes)?;
        Self::sorted_back(&bytes, origin)
    }

    /// Finds out, for each place in the last column of the sorted rotations, where the byte that follows is.
    fn sorted_back(bytes: &[u8], origin: u32) -> io::Result<Self> {
        let mut next = [0u32; 256];
        for byte in bytes {
            if let Some(count) = next.get_mut(usize::from(*byte)) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for count in &mut next {
            (*count, sum) = (sum, sum + *count);
        }
        let mut places: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte)).collect();
        for (at, byte) in bytes.iter().enumerate() {
            let to = next.get_mut(usize::from(*byte)).ok_or_else(malformed)?;
            *places.get_mut(*to as usize).ok_or_else(malformed)? |= (at as u32) << 8;
            *to += 1;
        }
        let first = places.get(origin as usize).ok_or_else(malformed)? >> 8;
        Ok(Self { left: places.len(), places, at: first, ..Self::default() })
    }
}

/// The bytes that occur in a block: a map of maps.
fn used_bytes<R: BufRead>(bits: &mut Bits<R>) -> io::Result<Vec<u8>> {
    let groups = bits.take(16)?;
    let mut used = Vec::new();
    for group in (0..16u8).filter(|group| groups >> (15 - group) & 1 == 1) {
        let map = bits.take(16)?;
        used.extend((0..16u8).filter(|byte| map >> (15 - byte) & 1 == 1).map(|byte| group << 4 | byte));
    }
    Ok(used)
}

/// Moves the entry of an index to the front, and gives it.
fn to_front(recent: &mut [u8], index: usize) -> io::Result<u8> {
    let front = recent.get_mut(..=index).ok_or_else(malformed)?;
    front.rotate_right(1);
    front.first().copied().ok_or_else(malformed)
}

/// Decodes the symbols of a block to bytes: runs of the one at the front, and others that move there.
fn moved_to_front<R: BufRead>(
    bits: &mut Bits<R>,
    mut recent: Vec<u8>,
    selectors: &[u8],
    codes: &[Code],
) -> io::Result<Vec<u8>> {
    let end = recent.len() + 1;
    let mut bytes = Vec::new();
    let (mut run, mut weight) = (0usize, 1usize);
    for selector in selectors {
        let code = codes.get(usize::from(*selector)).ok_or_else(malformed)?;
        for _ in 0..GROUP_SYMBOLS {
            let symbol = code.symbol(bits)?;
            if symbol <= 1 {
                // The digits of a run's length are 1 and 2, the lowest first.
                run += weight << symbol;
                weight <<= 1;
                if run > BLOCK_BYTES_MAX {
                    return Err(malformed());
                }
                continue;
            }
            let front = recent.first().copied().ok_or_else(malformed)?;
            bytes.resize(bytes.len() + run, front);
            (run, weight) = (0, 1);
            if symbol == end {
                return if bytes.len() <= BLOCK_BYTES_MAX { Ok(bytes) } else { Err(malformed()) };
            }
            bytes.push(to_front(&mut recent, symbol - 1)?);
            if bytes.len() > BLOCK_BYTES_MAX {
                return Err(malformed());
            }
        }
    }
    Err(malformed())
}

/// A canonical code.
struct Code {
    counts: [u32; CODE_BITS_MAX + 1],
    symbols: Vec<u16>,
}

impl Code {
    /// Reads the lengths of the codes of so many symbols, each as the difference from the one before.
    fn read<R: BufRead>(bits: &mut Bits<R>, symbols: usize) -> io::Result<Self> {
        let mut length = bits.take(5)? as usize;
        let mut counts = [0; CODE_BITS_MAX + 1];
        let mut lengths = Vec::with_capacity(symbols);
        for _ in 0..symbols {
            while bits.take(1)? == 1 {
                length = if bits.take(1)? == 0 { length + 1 } else { length.wrapping_sub(1) };
                if !(1..=CODE_BITS_MAX).contains(&length) {
                    return Err(malformed());
                }
            }
            *counts.get_mut(length).filter(|_| length > 0).ok_or_else(malformed)? += 1;
            lengths.push(length);
        }
        let mut symbols: Vec<u16> = (0..symbols as u16).collect();
        symbols.sort_by_key(|symbol| lengths.get(usize::from(*symbol)).copied());
        Ok(Self { counts, symbols })
    }

    fn symbol<R: BufRead>(&self, bits: &mut Bits<R>) -> io::Result<usize> {
        let (mut code, mut first, mut index) = (0u32, 0u32, 0u32);
        for count in self.counts.iter().skip(1) {
            code = code << 1 | bits.take(1)?;
            if let Some(at) = code.checked_sub(first).filter(|at| at < count) {
                let symbol = self.symbols.get((index + at) as usize);
                return symbol.map(|symbol| usize::from(*symbol)).ok_or_else(malformed);
            }
            index += count;
            first = (first + count) << 1;
        }
        Err(malformed())
    }
}
