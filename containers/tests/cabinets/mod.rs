//! Writes cabinets: as much of LZX as copies zeros, and all of Quantum but what makes it good. `cabextract` reads what comes of it.
#![allow(dead_code, reason = "each test binary uses its own part")]

/// What a block decodes to at most.
pub const BLOCK_BYTES: usize = 32 * 1024;
/// The methods, as a folder tells them: number, level, and the window as a power of two.
pub const STORED: u16 = 0;
pub const MSZIP: u16 = 1;
pub const QUANTUM: u16 = 2 | 7 << 4 | 16 << 8;
pub const LZX: u16 = 3 | 15 << 8;

/// A folder: its method, its blocks, each with what it decodes to, and the file in it.
pub struct Folder<'f> {
    pub method: u16,
    pub blocks: Vec<(Vec<u8>, u16)>,
    pub name: &'f str,
}

/// A cabinet of folders with one file each.
pub fn cabinet(folders: &[Folder<'_>]) -> Vec<u8> {
    let files_at = 36 + 8 * folders.len();
    let files_bytes: usize = folders.iter().map(|folder| 17 + folder.name.len()).sum();
    let (mut data, mut heads, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for (number, folder) in folders.iter().enumerate() {
        heads.extend_from_slice(&((files_at + files_bytes + data.len()) as u32).to_le_bytes());
        heads.extend_from_slice(&(folder.blocks.len() as u16).to_le_bytes());
        heads.extend_from_slice(&folder.method.to_le_bytes());
        let mut length = 0;
        for (block, decoded) in &folder.blocks {
            data.extend_from_slice(&[0; 4]);
            data.extend_from_slice(&(block.len() as u16).to_le_bytes());
            data.extend_from_slice(&decoded.to_le_bytes());
            data.extend_from_slice(block);
            length += u32::from(*decoded);
        }
        files.extend_from_slice(&length.to_le_bytes());
        files.extend_from_slice(&[0, 0, 0, 0, number as u8, 0, 0x21, 0x5a, 0, 0, 0x20, 0]);
        files.extend_from_slice(folder.name.as_bytes());
        files.push(0);
    }
    let mut file = b"MSCF\0\0\0\0".to_vec();
    for number in [files_at + files_bytes + data.len(), 0, files_at, 0] {
        file.extend_from_slice(&(number as u32).to_le_bytes());
    }
    let count = folders.len() as u8;
    file.extend_from_slice(&[3, 1, count, 0, count, 0, 0, 0, 0, 0, 0, 0]);
    [file, heads, files, data].concat()
}

/// Bits in order, the first the highest.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    fn put(&mut self, value: usize, width: u32) {
        self.0.extend((0..width).rev().map(|at| value >> at & 1 == 1));
    }

    fn bytes(&self) -> Vec<u8> {
        let byte = |bits: &[bool]| (0..8).fold(0, |byte, at| byte << 1 | u8::from(bits.get(at) == Some(&true)));
        self.0.chunks(8).map(byte).collect()
    }
}

/// LZX: frames of 32 KiB, each of a zero, 127 copies of 257 bytes from one byte before, and zeros.
pub fn lzx_zeros(frames: usize) -> Vec<(Vec<u8>, u16)> {
    // Blocks of as many frames as the length of a block can tell.
    const FRAMES_MAX: usize = 511;
    let mut blocks = Vec::new();
    for frame in 0..frames {
        let mut bits = Bits::default();
        if frame == 0 {
            // No calls are translated.
            bits.put(0, 1);
        }
        if frame % FRAMES_MAX == 0 {
            bits.put(1, 3);
            bits.put(FRAMES_MAX.min(frames - frame) * BLOCK_BYTES, 24);
            lzx_trees(&mut bits, frame == 0);
        }
        bits.put(0, 1);
        bits.0.extend([true; 2 * 127]);
        bits.0.extend([false; BLOCK_BYTES - 1 - 127 * 257]);
        let mut bytes = bits.bytes();
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        // Words of sixteen bits, the low byte first.
        bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|word| word.reverse());
        blocks.push((bytes, BLOCK_BYTES as u16));
    }
    blocks
}

/// Two codes of one bit in each tree: a zero and a copy of the longest length from where the last one came; the lengths 9 and 257.
/// Lengths of codes are told as how much less they are than in the block before.
fn lzx_trees(bits: &mut Bits, is_first: bool) {
    // One less than zero, of seventeen; or the same as before.
    let one = if is_first { 16 } else { 0 };
    // The tree that the lengths are coded in: this one, and runs of zeros of two kinds.
    let pretree = |bits: &mut Bits| {
        (0..20).for_each(|code| {
            bits.put([0, 1, 2][usize::from(code == one) + 2 * usize::from(code == 17 || code == 18)], 4)
        })
    };
    let zeros = |bits: &mut Bits, mut count: usize| {
        while count > 0 {
            let (code, run, base, width) =
                if count >= 20 { (0b11, count.min(51), 20, 5) } else { (0b10, count.min(19), 4, 4) };
            bits.put(code, 2);
            bits.put(run - base, width);
            count -= run;
        }
    };
    for (before, between, behind) in [(None, 255, false), (Some(7), 232, false), (None, 247, true)] {
        pretree(bits);
        before.into_iter().for_each(|count| zeros(bits, count));
        bits.put(0, 1);
        zeros(bits, between);
        if behind {
            bits.put(0, 1);
        }
    }
}

/// A model of Quantum: symbols with their frequencies.
struct Model {
    symbols: Vec<(u16, u32)>,
    halvings_left: u32,
}

impl Model {
    fn new(first: u16, count: u16) -> Self {
        Self { symbols: (first..first + count).map(|symbol| (symbol, 1)).collect(), halvings_left: 4 }
    }

    /// What is behind a symbol, what is before what is behind it, and all; counts it.
    fn code(&mut self, symbol: u16) -> (u32, u32, u32) {
        let at = self.symbols.iter().position(|(known, _)| *known == symbol).unwrap();
        let sum = |from: usize| self.symbols[from..].iter().map(|(_, frequency)| frequency).sum::<u32>();
        let told = (sum(at + 1), sum(at), sum(0));
        self.symbols[at].1 += 8;
        if told.2 + 8 > 3800 {
            self.shrink();
        }
        told
    }

    fn shrink(&mut self) {
        self.halvings_left -= 1;
        if self.halvings_left > 0 {
            // Sums are halved, and stay different from each other.
            let (mut sum, mut halved_behind) = (0, 0);
            for (_, frequency) in self.symbols.iter_mut().rev() {
                sum += *frequency;
                let halved = (sum / 2).max(halved_behind + 1);
                *frequency = halved - halved_behind;
                halved_behind = halved;
            }
            return;
        }
        self.halvings_left = 50;
        self.symbols.iter_mut().for_each(|(_, frequency)| *frequency = frequency.div_ceil(2));
        for at in 0..self.symbols.len() {
            for other in at + 1..self.symbols.len() {
                if self.symbols[at].1 < self.symbols[other].1 {
                    self.symbols.swap(at, other);
                }
            }
        }
    }
}

/// The arithmetic coder of Quantum. Plain bits are read behind the sixteen that the decoder has at hand, so they are put in
/// between when all is known.
struct Coder {
    low: u32,
    high: u32,
    /// Bits that are the opposite of the next one.
    pending: usize,
    coded: Vec<bool>,
    shifts: usize,
    /// Plain bits, and behind how many coded ones they come.
    plain: Vec<(usize, bool)>,
}

impl Coder {
    fn symbol(&mut self, (behind, before, sum): (u32, u32, u32)) {
        let (range, base) = (self.high - self.low + 1, self.low);
        self.high = base + before * range / sum - 1;
        self.low = base + behind * range / sum;
        loop {
            if (self.low ^ self.high) & 0x8000 == 0 {
                self.put(self.low & 0x8000 != 0);
            } else if self.low & 0x4000 != 0 && self.high & 0x4000 == 0 {
                self.pending += 1;
                self.low &= 0x3fff;
                self.high |= 0x4000;
            } else {
                return;
            }
            self.low = self.low << 1 & 0xffff;
            self.high = (self.high << 1 | 1) & 0xffff;
            self.shifts += 1;
        }
    }

    fn put(&mut self, bit: bool) {
        self.coded.push(bit);
        self.coded.extend(std::iter::repeat_n(!bit, std::mem::take(&mut self.pending)));
    }

    fn plain(&mut self, value: usize, width: u32) {
        let at = self.shifts + 16;
        self.plain.extend((0..width).rev().map(|bit| (at, value >> bit & 1 == 1)));
    }

    fn finish(mut self) -> Vec<u8> {
        let low = self.low;
        self.put(low & 0x8000 != 0);
        (0..15).rev().for_each(|bit| self.coded.push(low >> bit & 1 == 1));
        let (mut bits, mut plain) = (Bits::default(), self.plain.iter().peekable());
        for (at, bit) in self.coded.iter().enumerate() {
            while let Some((_, plain)) = plain.next_if(|(place, _)| *place <= at) {
                bits.0.push(*plain);
            }
            bits.0.push(*bit);
        }
        bits.0.extend(plain.map(|(_, bit)| *bit));
        bits.bytes()
    }
}

/// Quantum with a window of 64 KiB: copies from where the last bytes were alike, and literals.
pub fn quantum(content: &[u8]) -> Vec<(Vec<u8>, u16)> {
    const WINDOW: usize = 1 << 16;
    let mut selector = Model::new(0, 7);
    let mut literals = [0, 64, 128, 192].map(|first| Model::new(first, 64));
    let mut offsets = [24, 32, 32].map(|slots| Model::new(0, slots));
    let mut lengths = Model::new(0, 27);
    let mut last = std::collections::HashMap::new();
    let mut blocks = Vec::new();
    for (number, block) in content.chunks(BLOCK_BYTES).enumerate() {
        let mut coder = Coder { low: 0, high: 0xffff, pending: 0, coded: vec![], shifts: 0, plain: vec![] };
        let (mut at, end) = (number * BLOCK_BYTES, number * BLOCK_BYTES + block.len());
        while at < end {
            let from = content.get(at..at + 3).and_then(|three| last.insert(three, at));
            let alike =
                |from: usize| (at..end).take_while(|to| content[*to] == content[from + to - at]).count().min(259);
            let found = from.filter(|from| at - from < WINDOW).map(|from| (at - from, alike(from)));
            // A copy of three has its offset from a model of few slots.
            match found.filter(|(back, length)| *length >= 3 && (*length > 3 || *back <= 4096)) {
                None => {
                    let byte = u16::from(content[at]);
                    coder.symbol(selector.code(byte / 64));
                    coder.symbol(literals[usize::from(byte / 64)].code(byte));
                    at += 1;
                }
                Some((back, length)) => {
                    let kind = (length - 3).min(2);
                    coder.symbol(selector.code(4 + kind as u16));
                    if kind == 2 {
                        let bits = |at: u32| if at < 6 || at == 26 { 0 } else { (at - 2) / 4 };
                        let bases = (0..27).scan(0, |base, at| Some(std::mem::replace(base, *base + (1 << bits(at)))));
                        let (code, base) = (0u32..).zip(bases).filter(|(_, base)| *base <= length - 5).last().unwrap();
                        coder.symbol(lengths.code(code as u16));
                        coder.plain(length - 5 - base, bits(code));
                    }
                    let bits = |slot: u32| if slot < 4 { 0 } else { slot / 2 - 1 };
                    let bases = (0..32).scan(0, |base, slot| Some(std::mem::replace(base, *base + (1 << bits(slot)))));
                    let (slot, base) = (0u32..).zip(bases).filter(|(_, base)| *base < back).last().unwrap();
                    coder.symbol(offsets[kind].code(slot as u16));
                    coder.plain(back - 1 - base, bits(slot));
                    at += length;
                }
            }
        }
        blocks.push((coder.finish(), block.len() as u16));
    }
    blocks
}
