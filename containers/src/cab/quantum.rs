//! Quantum, the compression of David Stafford that cabinets took over: copies and literals behind an adaptive arithmetic coder. There is
//! no public specification by its makers; this follows Matthew Russotto's "Quantum compression format".
//!
//! Each block of a folder begins with a new state of the coder, and goes on with the models and the window of the one before. A block is
//! decoded to the length that it says and no further; bits behind its end read as zeros, as the last ones of a block may be left out.

use std::io;

use crate::fields::invalid;

/// The smallest and the largest window that cabinets may have, as powers of two.
const WINDOW_BITS: std::ops::RangeInclusive<u16> = 10..=21;
/// What a symbol's frequency grows by each time.
const STEP: u16 = 8;
/// Above this sum of frequencies a model is made smaller.
const SUM_MAX: u16 = 3800;
/// How often a model is halved before it is put in order for the first time, and then.
const HALVINGS_FIRST: u8 = 4;
const HALVINGS: u8 = 50;
/// Copies of one length have offsets from a model of their own, of at most so many slots.
const SLOTS_OF_THREE: u16 = 24;
const SLOTS_OF_FOUR: u16 = 36;
/// Where the lengths of longer copies begin, and how many bits say which is meant.
const LENGTHS: [(u16, u8); 27] = [
    (0, 0),
    (1, 0),
    (2, 0),
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 1),
    (8, 1),
    (10, 1),
    (12, 1),
    (14, 2),
    (18, 2),
    (22, 2),
    (26, 2),
    (30, 3),
    (38, 3),
    (46, 3),
    (54, 3),
    (62, 4),
    (78, 4),
    (94, 4),
    (110, 4),
    (126, 5),
    (158, 5),
    (190, 5),
    (222, 5),
    (254, 0),
];

/// Decodes the blocks of one folder.
pub(super) struct Quantum {
    window: Vec<u8>,
    /// Where in the window the next byte goes.
    at: usize,
    /// How much of the window was written.
    filled: usize,
    selector: Model,
    literals: [Model; 4],
    offsets: [Model; 3],
    lengths: Model,
}

impl Quantum {
    /// A decoder with a window of so many bits.
    pub(super) fn new(window_bits: u16) -> io::Result<Self> {
        if !WINDOW_BITS.contains(&window_bits) {
            return Err(invalid("malformed window size"));
        }
        let slots = window_bits * 2;
        Ok(Self {
            window: vec![0; 1 << window_bits],
            at: 0,
            filled: 0,
            selector: Model::new(0, 7),
            literals: [0, 64, 128, 192].map(|first| Model::new(first, 64)),
            offsets: [slots.min(SLOTS_OF_THREE), slots.min(SLOTS_OF_FOUR), slots].map(|slots| Model::new(0, slots)),
            lengths: Model::new(0, LENGTHS.len() as u16),
        })
    }

    /// Decodes a block, which becomes so many bytes.
    pub(super) fn block(&mut self, packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let mut coder = Coder::new(packed);
        let mut out = Vec::with_capacity(length);
        while out.len() < length {
            let selector = usize::from(coder.symbol(&mut self.selector));
            if let Some(literals) = self.literals.get_mut(selector) {
                let byte = coder.symbol(literals) as u8;
                self.put(byte, &mut out);
                continue;
            }
            let copied = match selector {
                4 => 3,
                5 => 4,
                _ => {
                    let (base, bits) = *LENGTHS
                        .get(usize::from(coder.symbol(&mut self.lengths)))
                        .ok_or_else(|| invalid("malformed length"))?;
                    usize::from(base) + coder.bits(bits) + 5
                }
            };
            let slots = self.offsets.get_mut(selector - 4).ok_or_else(|| invalid("malformed selector"))?;
            let (base, bits) = slot(coder.symbol(slots));
            let back = base + coder.bits(bits) + 1;
            if back > self.filled || copied > length - out.len() {
                return Err(invalid("a copy from where nothing is"));
            }
            for _ in 0..copied {
                let from = (self.at + self.window.len() - back) % self.window.len();
                let byte = self.window.get(from).copied().unwrap_or_default();
                self.put(byte, &mut out);
            }
        }
        Ok(out)
    }

    fn put(&mut self, byte: u8, out: &mut Vec<u8>) {
        if let Some(place) = self.window.get_mut(self.at) {
            *place = byte;
        }
        self.at = (self.at + 1) % self.window.len();
        self.filled = (self.filled + 1).min(self.window.len());
        out.push(byte);
    }
}

/// Where the offsets of a slot begin, and how many bits say which is meant.
fn slot(number: u16) -> (usize, u8) {
    match number {
        0..4 => (usize::from(number), 0),
        _ => {
            let bits = number / 2 - 1;
            (usize::from(2 + number % 2) << bits, bits as u8)
        }
    }
}

/// Symbols and how often they come, the most frequent first by and by.
struct Model {
    /// A symbol, and the sum of its frequency and those of all behind it. The last one stands for none, with a sum of 0.
    entries: Vec<(u16, u16)>,
    halvings_left: u8,
}

impl Model {
    fn new(first: u16, count: u16) -> Self {
        let entries = (0..=count).map(|at| (first + at, count - at)).collect();
        Self { entries, halvings_left: HALVINGS_FIRST }
    }

    /// The sum of all frequencies.
    fn sum(&self) -> u16 {
        self.entries.first().map_or(0, |(_, sum)| *sum)
    }

    /// The symbol whose frequencies a place falls among, and between which sums that is. Counts it.
    fn take(&mut self, place: u16) -> (u16, u16, u16) {
        let behind = self.entries.iter().skip(1).position(|(_, sum)| *sum <= place).map_or(1, |at| at + 1);
        let low = self.entries.get(behind).map_or(0, |(_, sum)| *sum);
        let (symbol, high) = self.entries.get(behind - 1).copied().unwrap_or_default();
        for (_, sum) in self.entries.iter_mut().take(behind) {
            *sum += STEP;
        }
        if self.sum() > SUM_MAX {
            self.shrink();
        }
        (symbol, low, high)
    }

    fn shrink(&mut self) {
        self.halvings_left -= 1;
        if self.halvings_left > 0 {
            let mut behind = 0;
            for (_, sum) in self.entries.iter_mut().rev().skip(1) {
                *sum = (*sum / 2).max(behind + 1);
                behind = *sum;
            }
            return;
        }
        self.halvings_left = HALVINGS;
        // From sums to frequencies, halved; in their order; and to sums again.
        let sums: Vec<u16> = self.entries.iter().skip(1).map(|(_, sum)| *sum).collect();
        for ((_, sum), behind) in self.entries.iter_mut().zip(sums) {
            *sum = (*sum - behind).div_ceil(2);
        }
        let count = self.entries.len() - 1;
        // Which of equally frequent ones comes first is decided by how this sorts, so it sorts as everybody does.
        for at in 0..count {
            for other in at + 1..count {
                if let (Some((_, first)), Some((_, second))) = (self.entries.get(at), self.entries.get(other))
                    && first < second
                {
                    self.entries.swap(at, other);
                }
            }
        }
        let mut behind = 0;
        for (_, sum) in self.entries.iter_mut().rev().skip(1) {
            behind += *sum;
            *sum = behind;
        }
    }
}

/// The arithmetic coder: a range of sixteen bits, and where in it the input is.
struct Coder<'p> {
    packed: std::slice::Iter<'p, u8>,
    held: u8,
    held_bits: u8,
    low: u16,
    high: u16,
    code: u16,
}

impl<'p> Coder<'p> {
    fn new(packed: &'p [u8]) -> Self {
        let mut coder = Self { packed: packed.iter(), held: 0, held_bits: 0, low: 0, high: u16::MAX, code: 0 };
        coder.code = coder.bits(16) as u16;
        coder
    }

    fn bit(&mut self) -> u16 {
        if self.held_bits == 0 {
            self.held = self.packed.next().copied().unwrap_or_default();
            self.held_bits = 8;
        }
        self.held_bits -= 1;
        u16::from(self.held >> self.held_bits & 1)
    }

    /// A number of so many bits, the highest first.
    fn bits(&mut self, count: u8) -> usize {
        (0..count).fold(0, |number, _| number << 1 | usize::from(self.bit()))
    }

    fn symbol(&mut self, model: &mut Model) -> u16 {
        let range = u32::from(self.high.wrapping_sub(self.low)) + 1;
        let sum = u32::from(model.sum());
        let place = (u32::from(self.code.wrapping_sub(self.low)) + 1).wrapping_mul(sum).wrapping_sub(1) / range;
        let (symbol, behind, before) = model.take(place as u16);
        let part = |of: u16| (u32::from(of) * range / sum.max(1)) as u16;
        let base = self.low;
        self.high = base.wrapping_add(part(before)).wrapping_sub(1);
        self.low = base.wrapping_add(part(behind));
        loop {
            if (self.low ^ self.high) & 0x8000 != 0 {
                if self.low & 0x4000 == 0 || self.high & 0x4000 != 0 {
                    return symbol;
                }
                // The range lies around the middle: what both will begin with is known one bit later.
                self.code ^= 0x4000;
                self.low &= 0x3fff;
                self.high |= 0x4000;
            }
            self.low <<= 1;
            self.high = self.high << 1 | 1;
            self.code = self.code << 1 | self.bit();
        }
    }
}
