//! BLAKE3's compression (the BLAKE3 paper, section 2), written once for registers of every width: chunks and parents of
//! any files side by side, each with its own place in its tree. The tree itself is `crate::tree`'s.
//!
//! Safety: as in `drive.rs`, blocks are read through pointers of slices whose lengths are asserted first.
#![allow(unsafe_code)]

use super::constants::SHA256_START as IV;
use super::drive::Lane;
use super::words::{LANES_MAX, Words};

/// BLAKE3.
pub(crate) struct Blake3;

/// The first block of a chunk.
pub(crate) const CHUNK_START: u32 = 1;
/// The last block of a chunk.
pub(crate) const CHUNK_END: u32 = 2;
/// Two chaining values.
pub(crate) const PARENT: u32 = 4;
/// The top of the tree.
pub(crate) const ROOT: u32 = 8;
/// Bytes a block.
pub(crate) const BLOCK_BYTES: usize = 64;

/// A node of a tree while its blocks are compressed: a chunk, a part of one, or a parent.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    /// What the blocks before came to.
    pub(crate) chaining: [u32; 8],
    /// The chunk's number in its file; zero for parents.
    pub(crate) counter: u64,
    /// Flags of the next run's first block.
    pub(crate) first: u32,
    /// Flags of the next run's last block.
    pub(crate) last: u32,
    /// Bytes of the next run's last block that are the file's; behind them are zeros.
    pub(crate) last_bytes: u32,
}

impl Node {
    /// A chunk before its first block.
    pub(crate) const fn chunk(counter: u64) -> Self {
        Self { chaining: IV, counter, first: CHUNK_START, last: CHUNK_END, last_bytes: BLOCK_BYTES as u32 }
    }

    /// A parent.
    pub(crate) const PARENT: Self =
        Self { chaining: IV, counter: 0, first: PARENT, last: 0, last_bytes: BLOCK_BYTES as u32 };

    /// The chaining value as it stands in a parent's block.
    pub(crate) fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(self.chaining) {
            *to = word.to_le_bytes();
        }
        bytes
    }
}

macro_rules! mix {
    ($v:ident, $a:literal $b:literal $c:literal $d:literal, $x:expr, $y:expr) => {
        $v[$a] = $v[$a].add($x).add($v[$b]);
        $v[$d] = $v[$d].xor($v[$a]).rotate::<16, 16>();
        $v[$c] = $v[$c].add($v[$d]);
        $v[$b] = $v[$b].xor($v[$c]).rotate::<20, 12>();
        $v[$a] = $v[$a].add($y).add($v[$b]);
        $v[$d] = $v[$d].xor($v[$a]).rotate::<24, 8>();
        $v[$c] = $v[$c].add($v[$d]);
        $v[$b] = $v[$b].xor($v[$c]).rotate::<25, 7>();
    };
}

/// A round: columns, then diagonals, with the block's words in the round's order.
macro_rules! round {
    ($v:ident, $w:ident, $($i:literal)*) => {
        round!(@ $v, $($w[$i]),*)
    };
    (@ $v:ident, $m0:expr, $m1:expr, $m2:expr, $m3:expr, $m4:expr, $m5:expr, $m6:expr, $m7:expr, $m8:expr, $m9:expr,
     $m10:expr, $m11:expr, $m12:expr, $m13:expr, $m14:expr, $m15:expr) => {
        mix!($v, 0 4 8 12, $m0, $m1);
        mix!($v, 1 5 9 13, $m2, $m3);
        mix!($v, 2 6 10 14, $m4, $m5);
        mix!($v, 3 7 11 15, $m6, $m7);
        mix!($v, 0 5 10 15, $m8, $m9);
        mix!($v, 1 6 11 12, $m10, $m11);
        mix!($v, 2 7 8 13, $m12, $m13);
        mix!($v, 3 4 9 14, $m14, $m15);
    };
}

/// Compresses one block of every lane. `place` is the counter's two words, the block's length and its flags.
#[inline(always)]
fn compress<V: Words<Word = u32>>(chaining: &mut [V; 8], w: [V; 16], place: [V; 4]) {
    let [c0, c1, c2, c3, c4, c5, c6, c7] = *chaining;
    let [low, high, length, flags] = place;
    let [i0, i1, i2, i3] = [c0.splat(IV[0]), c0.splat(IV[1]), c0.splat(IV[2]), c0.splat(IV[3])];
    let mut v = [c0, c1, c2, c3, c4, c5, c6, c7, i0, i1, i2, i3, low, high, length, flags];
    round!(v, w, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    round!(v, w, 2 6 3 10 7 0 4 13 1 11 12 5 9 14 15 8);
    round!(v, w, 3 4 10 12 13 2 7 14 6 5 9 0 11 15 8 1);
    round!(v, w, 10 7 12 9 14 3 13 15 4 0 11 2 5 8 1 6);
    round!(v, w, 12 13 9 11 15 10 14 8 7 2 5 3 0 1 6 4);
    round!(v, w, 9 14 11 5 8 12 15 1 13 3 0 10 2 6 4 7);
    round!(v, w, 11 15 5 0 1 9 8 6 14 10 2 12 3 4 7 13);
    *chaining = [
        v[0].xor(v[8]),
        v[1].xor(v[9]),
        v[2].xor(v[10]),
        v[3].xor(v[11]),
        v[4].xor(v[12]),
        v[5].xor(v[13]),
        v[6].xor(v[14]),
        v[7].xor(v[15]),
    ];
}

/// Compresses `blocks` blocks of each lane, at most as many lanes as a register has, as [`super::drive::drive`] does.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn drive<V: Words<Word = u32>>(lanes: &mut [Lane<'_, Node>], blocks: usize) {
    const { assert!(V::LANES <= LANES_MAX) };
    if lanes.is_empty() {
        return;
    }
    assert!(lanes.len() <= V::LANES, "more lanes than the register has");
    assert!(
        lanes.iter().all(|lane| lane.bytes.len() / BLOCK_BYTES >= blocks),
        "a lane is shorter than the blocks asked for"
    );
    let (mut pointers, mut columns) = ([std::ptr::null(); LANES_MAX], [[0; LANES_MAX]; COLUMNS]);
    fill(lanes, &mut pointers, &mut columns);
    // No closures below, as in `drive.rs`.
    // SAFETY: a column has `LANES_MAX` words, at least as many as the register; the caller promises the instructions.
    let mut registers = [unsafe { V::load(columns[0].as_ptr()) }; COLUMNS];
    for (register, column) in registers.iter_mut().zip(&columns) {
        // SAFETY: as above.
        *register = unsafe { V::load(column.as_ptr()) };
    }
    let [c0, c1, c2, c3, c4, c5, c6, c7, low, high, last_length, first_flags, last_flags] = registers;
    let mut chaining = [c0, c1, c2, c3, c4, c5, c6, c7];
    let (no_flags, whole) = (low.splat(0), low.splat(BLOCK_BYTES as u32));
    for block in 0..blocks {
        // SAFETY: every pointer is of a slice that has a whole block there, by the assertion above.
        let words = unsafe { V::gather(&pointers, block * BLOCK_BYTES, true) };
        let begins = if block == 0 { first_flags } else { no_flags };
        let (length, ends) = if block + 1 == blocks { (last_length, last_flags) } else { (whole, no_flags) };
        compress(&mut chaining, words, [low, high, length, begins.xor(ends)]);
    }
    for (column, word) in columns.iter_mut().zip(chaining) {
        // SAFETY: as for the load.
        unsafe { word.store(column.as_mut_ptr()) };
    }
    put_back(lanes, &columns);
}

/// Of each lane: eight words of chaining value, the counter's two, the last block's length, the first and the last flags.
const COLUMNS: usize = 13;

/// Where each lane's bytes are, and the nodes' words side by side. Never inlined, as in `drive.rs`.
#[inline(never)]
fn fill(lanes: &[Lane<'_, Node>], pointers: &mut [*const u8; LANES_MAX], columns: &mut [[u32; LANES_MAX]; COLUMNS]) {
    *pointers = [lanes.first().map_or(&[][..], |lane| lane.bytes).as_ptr(); LANES_MAX];
    for (l, lane) in lanes.iter().enumerate() {
        pointers[l] = lane.bytes.as_ptr();
        let node = &*lane.state;
        for (column, word) in columns.iter_mut().zip(node.chaining) {
            column[l] = word;
        }
        columns[8][l] = node.counter as u32;
        columns[9][l] = (node.counter >> 32) as u32;
        columns[10][l] = node.last_bytes;
        columns[11][l] = node.first;
        columns[12][l] = node.last;
    }
}

#[inline(never)]
fn put_back(lanes: &mut [Lane<'_, Node>], columns: &[[u32; LANES_MAX]; COLUMNS]) {
    for (l, lane) in lanes.iter_mut().enumerate() {
        for (word, column) in lane.state.chaining.iter_mut().zip(columns) {
            *word = column[l];
        }
    }
}
