//! Brings files and registers together: states into the lanes, block after block through the rounds, states back.
//!
//! Safety: this is the one place where blocks are read through pointers, because a check a lane and block costs more than
//! some of the rounds. Every pointer comes from a slice whose length is checked once, before the first block.
#![allow(unsafe_code)]

use super::words::{LANES_MAX, Rounds, Words};

/// How far ahead of each lane's block its bytes are asked for: eight blocks, several hundred nanoseconds. The processor does
/// that by itself for a few files and up to the end of a page, and sixteen lanes cross pages all the time.
const AHEAD_BYTES: usize = 512;

/// One file's next blocks and the state that they are to be mixed into.
pub(crate) struct Lane<'a, S> {
    /// The digest's state so far.
    pub(crate) state: &'a mut S,
    /// Whole blocks; of the same length in all lanes.
    pub(crate) bytes: &'a [u8],
}

/// Mixes `blocks` blocks of each lane, at most as many lanes as a register has. Registers' lanes without a file repeat the
/// first one's work, and what they make is thrown away.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn drive<R: Rounds<V, STATE>, V: Words, const STATE: usize>(
    lanes: &mut [Lane<'_, [V::Word; STATE]>],
    blocks: usize,
) {
    const { assert!(V::LANES <= LANES_MAX) };
    if lanes.is_empty() {
        return;
    }
    assert!(lanes.len() <= V::LANES, "more lanes than the register has");
    assert!(
        lanes.iter().all(|lane| lane.bytes.len() / R::BLOCK_BYTES >= blocks),
        "a lane is shorter than the blocks asked for"
    );
    let (mut pointers, mut columns) = ([std::ptr::null(); LANES_MAX], [[V::Word::default(); LANES_MAX]; STATE]);
    fill(lanes, &mut pointers, &mut columns);
    // No closures below: one is compiled without the instructions and can't be inlined where they are.
    // SAFETY: a column has `LANES_MAX` words, at least as many as the register; the caller promises the instructions.
    let mut state = [unsafe { V::load(columns[0].as_ptr()) }; STATE];
    for (word, column) in state.iter_mut().zip(&columns) {
        // SAFETY: as above.
        *word = unsafe { V::load(column.as_ptr()) };
    }
    for block in 0..blocks {
        for pointer in &pointers[..V::LANES] {
            prefetch(pointer.wrapping_add(block * R::BLOCK_BYTES + AHEAD_BYTES));
        }
        // SAFETY: every pointer is of a slice that has a whole block there, by the assertion above.
        let words = unsafe { V::gather(&pointers, block * R::BLOCK_BYTES, R::LITTLE) };
        R::block(&mut state, words);
    }
    for (column, word) in columns.iter_mut().zip(state) {
        // SAFETY: as for the load.
        unsafe { word.store(column.as_mut_ptr()) };
    }
    put_back(lanes, &columns);
}

/// Has the processor bring what lies there, if anything does, into its caches.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "there is no stable intrinsic for it"))]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: an address where nothing is, or nothing may be read, is ignored.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
}

/// Where each lane's bytes are, and the states' words side by side. Lanes without a file point where the first does.
///
/// Never inlined: with the instructions of the callers the compiler makes slow gathers of these few loads.
#[inline(never)]
fn fill<W: Copy, const STATE: usize>(
    lanes: &[Lane<'_, [W; STATE]>],
    pointers: &mut [*const u8; LANES_MAX],
    columns: &mut [[W; LANES_MAX]; STATE],
) {
    *pointers = [lanes.first().map_or(&[][..], |lane| lane.bytes).as_ptr(); LANES_MAX];
    for (l, lane) in lanes.iter().enumerate() {
        pointers[l] = lane.bytes.as_ptr();
        for (column, word) in columns.iter_mut().zip(&*lane.state) {
            column[l] = *word;
        }
    }
}

#[inline(never)]
fn put_back<W: Copy, const STATE: usize>(lanes: &mut [Lane<'_, [W; STATE]>], columns: &[[W; LANES_MAX]; STATE]) {
    for (l, lane) in lanes.iter_mut().enumerate() {
        for (word, column) in lane.state.iter_mut().zip(columns) {
            *word = column[l];
        }
    }
}
