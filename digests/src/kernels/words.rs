//! What a vector register must be able to do for the rounds to be written once for every width.
//!
//! Invariant: a value of one of these types exists only where the processor has the instructions that its methods use,
//! since the one way to make the first value is an `unsafe` function. That is why the methods themselves are safe, and why
//! a constant is made from a value that is there already ([`Words::splat`]).
#![allow(unsafe_code)]

/// The widest register's lanes.
pub(crate) const LANES_MAX: usize = 16;

/// One word of each of several files, side by side in a register.
pub(crate) trait Words: Copy {
    /// `u32` or `u64`.
    type Word: Copy + Default;
    /// How many files lie side by side.
    const LANES: usize;

    /// Reads one word a lane.
    ///
    /// # Safety
    /// `from` is readable for [`Self::LANES`] words, and the processor has this type's instructions.
    unsafe fn load(from: *const Self::Word) -> Self;

    /// Writes one word a lane.
    ///
    /// # Safety
    /// `to` is writable for [`Self::LANES`] words.
    unsafe fn store(self, to: *mut Self::Word);

    /// Reads sixteen words of each lane, `offset` bytes into its file, and turns them, so that the n-th result holds the n-th word of every lane. Words
    /// are little-endian in memory if `little`, big-endian if not.
    ///
    /// # Safety
    /// Each of the first [`Self::LANES`] pointers is readable for sixteen words from `offset` bytes on, and the processor has this type's
    /// instructions.
    unsafe fn gather(files: &[*const u8; LANES_MAX], offset: usize, little: bool) -> [Self; 16];

    /// The same word in every lane.
    fn splat(self, word: Self::Word) -> Self;
    /// Wrapping sum.
    fn add(self, other: Self) -> Self;
    /// Exclusive or.
    fn xor(self, other: Self) -> Self;
    /// `self ^ b ^ c`.
    fn xor3(self, b: Self, c: Self) -> Self;
    /// Bits of `b` where `self` has ones, of `c` where it has zeros.
    fn choose(self, b: Self, c: Self) -> Self;
    /// The bits that at least two of the three have.
    fn majority(self, b: Self, c: Self) -> Self;
    /// `self` and what MD5's first sixteen rounds mix of the three others (RFC 1321, 3.4), of which `b` is known last.
    #[inline(always)]
    fn md5_f(self, b: Self, c: Self, d: Self) -> Self {
        self.add(b.choose(c, d))
    }
    /// The same of the second sixteen rounds.
    #[inline(always)]
    fn md5_g(self, b: Self, c: Self, d: Self) -> Self {
        self.add(d.choose(b, c))
    }
    /// The same of the third.
    #[inline(always)]
    fn md5_h(self, b: Self, c: Self, d: Self) -> Self {
        self.add(b.xor3(c, d))
    }
    /// The same of the last.
    fn md5_i(self, b: Self, c: Self, d: Self) -> Self;
    /// Each word with its bytes in the other order.
    fn swap_bytes(self) -> Self;
    /// Rotates left by `LEFT`; `RIGHT` is the rest of the word's width, since a constant can't be computed from another here.
    fn rotate<const LEFT: i32, const RIGHT: i32>(self) -> Self;
    /// Shifts right by `RIGHT`, as an unsigned word.
    fn shift_right<const RIGHT: i32>(self) -> Self;
}

/// One of the four digests, but for its words' width in a register.
pub(crate) trait Rounds<V: Words, const STATE: usize> {
    /// Bytes a block.
    const BLOCK_BYTES: usize;
    /// Whether words are little-endian.
    const LITTLE: bool;
    /// Mixes one block of every lane into its state.
    fn block(state: &mut [V; STATE], words: [V; 16]);
}
