//! Canonical Huffman codes, and the bits of LZX and XPRESS: units of 16 bits, least significant byte first, each read from its highest bit on.

use std::io;

use crate::fields::invalid;

/// The longest code: LZX has 16 bits.
const CODE_BITS_MAX: usize = 16;
/// Codes up to this length are looked up in one step.
const FAST_BITS: usize = 10;

/// The bits of a chunk. Behind its end there are zeros, a bounded number of them.
pub(super) struct Bits<'b> {
    rest: &'b [u8],
    bits: u32,
    count: u32,
    /// Units that were read behind the end.
    missing: u32,
}

/// Decoders look ahead, so some units behind the end are no error.
const MISSING_MAX: u32 = 4;

impl<'b> Bits<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes, bits: 0, count: 0, missing: 0 }
    }

    /// Makes sure that there are so many bits, at most 16.
    pub(super) fn ensure(&mut self, count: u32) -> io::Result<()> {
        while self.count < count {
            let unit = match self.rest {
                [low, high, rest @ ..] => {
                    self.rest = rest;
                    u16::from_le_bytes([*low, *high])
                }
                _ => {
                    self.missing += 1;
                    self.rest = &[];
                    0
                }
            };
            if self.missing > MISSING_MAX {
                return Err(invalid("a chunk that is cut off"));
            }
            self.bits |= u32::from(unit) << (16 - self.count);
            self.count += 16;
        }
        Ok(())
    }

    /// The next bits, at most 16.
    pub(super) fn take(&mut self, count: u32) -> io::Result<u32> {
        if count == 0 {
            return Ok(0);
        }
        self.ensure(count)?;
        let taken = self.bits >> (32 - count);
        self.bits <<= count;
        self.count -= count;
        Ok(taken)
    }

    /// Drops what is left of the current unit; a whole one if there is nothing left of it.
    pub(super) fn align(&mut self) -> io::Result<()> {
        self.ensure(1)?;
        (self.bits, self.count) = (0, 0);
        Ok(())
    }

    /// The next bytes, behind the units that were read.
    pub(super) fn bytes(&mut self, count: usize) -> io::Result<&'b [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or_else(|| invalid("a chunk that is cut off"))?;
        self.rest = rest;
        Ok(bytes)
    }
}

/// A code: which symbol each sequence of bits stands for.
pub(super) struct Huffman {
    /// By the first bits: symbol and length; length 0 for what is longer.
    fast: Vec<(u16, u8)>,
    /// By length: the first 16 bits behind the codes of the length, and where their symbols are, less their first code.
    ends: [u32; CODE_BITS_MAX + 1],
    bases: [i64; CODE_BITS_MAX + 1],
    symbols: Vec<u16>,
}

impl Huffman {
    /// The code whose symbols have these lengths; 0 for those that do not occur.
    pub(super) fn new(lengths: &[u8]) -> io::Result<Self> {
        let mut counts = [0u32; CODE_BITS_MAX + 1];
        for length in lengths {
            *counts.get_mut(usize::from(*length)).ok_or_else(|| invalid("a code that is too long"))? += 1;
        }
        let mut symbols: Vec<u16> = (0..lengths.len() as u16).collect();
        let length_of = |symbol: u16| lengths.get(usize::from(symbol)).copied().unwrap_or(0);
        symbols.retain(|symbol| length_of(*symbol) > 0);
        symbols.sort_by_key(|symbol| length_of(*symbol));
        let (mut ends, mut bases) = ([0; CODE_BITS_MAX + 1], [0; CODE_BITS_MAX + 1]);
        let mut fast = vec![(0, 0); 1 << FAST_BITS];
        let (mut code, mut first) = (0u32, 0usize);
        for bits in 1..=CODE_BITS_MAX {
            code <<= 1;
            let count = counts.get(bits).copied().unwrap_or(0);
            if code + count > 1 << bits {
                return Err(invalid("a code with too many symbols"));
            }
            for at in 0..if bits <= FAST_BITS { count } else { 0 } {
                let symbol = symbols.get(first + at as usize).copied().unwrap_or(0);
                let begin = ((code + at) as usize) << (FAST_BITS - bits);
                let slots = fast.get_mut(begin..begin + (1 << (FAST_BITS - bits))).unwrap_or_default();
                slots.fill((symbol, bits as u8));
            }
            if let (Some(end), Some(base)) = (ends.get_mut(bits), bases.get_mut(bits)) {
                *base = first as i64 - i64::from(code);
                *end = (code + count) << (CODE_BITS_MAX - bits);
            }
            code += count;
            first += count as usize;
        }
        Ok(Self { fast, ends, bases, symbols })
    }

    /// The next symbol.
    pub(super) fn symbol(&self, bits: &mut Bits<'_>) -> io::Result<usize> {
        bits.ensure(16)?;
        let next = bits.bits >> 16;
        if let Some((symbol, length @ 1..)) = self.fast.get(next as usize >> (16 - FAST_BITS)) {
            bits.take(u32::from(*length))?;
            return Ok(usize::from(*symbol));
        }
        for length in FAST_BITS + 1..=CODE_BITS_MAX {
            if self.ends.get(length).is_some_and(|end| next < *end) {
                let base = self.bases.get(length).copied().unwrap_or(0);
                let at = usize::try_from(base + i64::from(next >> (CODE_BITS_MAX - length)));
                bits.take(length as u32)?;
                let symbol = at.ok().and_then(|at| self.symbols.get(at));
                return symbol.map(|symbol| usize::from(*symbol)).ok_or_else(|| invalid("a code of no symbol"));
            }
        }
        Err(invalid("a code of no symbol"))
    }
}

/// Repeats what was decoded `distance` bytes ago, but no further than to `most` bytes in all.
pub(super) fn repeat(decoded: &mut Vec<u8>, distance: usize, length: usize, most: usize) -> io::Result<()> {
    let from = decoded.len().checked_sub(distance).filter(|_| distance > 0 && decoded.len() + length <= most);
    let from = from.ok_or_else(|| invalid("malformed compressed data"))?;
    if distance >= length {
        decoded.extend_from_within(from..from + length);
        return Ok(());
    }
    for at in from..from + length {
        decoded.extend(decoded.get(at).copied());
    }
    Ok(())
}
