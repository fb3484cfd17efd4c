//! One file at a time: by OpenSSL's assembly, or by the pure Rust of `sha2` and `sha1`, and for MD5 of this crate. All work on the same state
//! as the vector kernels, so that a file can go from one to the other between any two blocks.
//!
//! OpenSSL's contexts for SHA-1, SHA-256 and SHA-512 are public structures whose state may be set between two blocks; its
//! MD5 is not to be had that way through `openssl-sys`, so MD5 is always this crate's, and no FIPS configuration forbids it.
//!
//! Safety: the three calls into OpenSSL get a context on this stack that its own initialiser has filled, and a slice's
//! pointer with that slice's length. They don't keep either.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use openssl_sys as ffi;

use super::blake3::{self, Node};
use super::drive::Lane;
use super::rounds::Md5;
use super::words::{LANES_MAX, Rounds, Words};

/// MD5 by the rounds that the registers use, with a word in place of a register.
pub(super) fn md5(state: &mut [u32; 4], bytes: &[u8]) {
    let (blocks, _) = bytes.as_chunks::<64>();
    for block in blocks {
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(block.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Md5::block(state, words);
    }
}

/// MD5 and SHA-1, block by block: each of MD5's rounds waits for the one before, and meanwhile the processor goes on with SHA-1.
pub(super) fn md5_sha1(state: &mut [u32; 9], bytes: &[u8]) {
    let [a, b, c, d, p, q, r, s, t] = *state;
    let (mut of_md5, mut of_sha1) = ([a, b, c, d], [p, q, r, s, t]);
    for block in bytes.as_chunks::<64>().0 {
        md5(&mut of_md5, block);
        sha1(&mut of_sha1, block);
    }
    for (word, new) in state.iter_mut().zip(of_md5.into_iter().chain(of_sha1)) {
        *word = new;
    }
}

/// BLAKE3 in the same way as MD5.
pub(super) fn blake3(state: &mut Node, bytes: &[u8]) {
    let blocks = bytes.len() / blake3::BLOCK_BYTES;
    // SAFETY: a word of 32 bits needs no instructions that not every processor has.
    unsafe { blake3::drive::<u32>(&mut [Lane { state, bytes }], blocks) }
}

/// Has the compiler compute this word before it goes on, where it would sum in another order. Each of MD5's rounds waits for
/// the one before, so the order makes a fifth of its speed.
#[inline(always)]
fn first(word: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        let mut word = word;
        // SAFETY: no instruction at all, so nothing is touched.
        unsafe {
            std::arch::asm!("/* {0:e} */", inlateout(reg) word, options(pure, nomem, nostack, preserves_flags));
        }
        word
    }
    #[cfg(not(target_arch = "x86_64"))]
    word
}

impl Words for u32 {
    type Word = Self;
    const LANES: usize = 1;

    unsafe fn load(from: *const Self) -> Self {
        // SAFETY: the caller promises a readable word.
        unsafe { from.read_unaligned() }
    }

    unsafe fn store(self, to: *mut Self) {
        // SAFETY: the caller promises room for a word.
        unsafe { to.write_unaligned(self) }
    }

    unsafe fn gather(files: &[*const u8; LANES_MAX], offset: usize, little: bool) -> [Self; 16] {
        let mut words = [0; 16];
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: the caller promises sixteen words behind the first pointer.
            let bytes = unsafe { files[0].add(offset + 4 * i).cast::<[u8; 4]>().read() };
            *word = if little { Self::from_le_bytes(bytes) } else { Self::from_be_bytes(bytes) };
        }
        words
    }

    #[inline(always)]
    fn splat(self, word: Self) -> Self {
        word
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        self ^ other
    }

    #[inline(always)]
    fn xor3(self, b: Self, c: Self) -> Self {
        self ^ b ^ c
    }

    #[inline(always)]
    fn choose(self, b: Self, c: Self) -> Self {
        c ^ (self & (b ^ c))
    }

    #[inline(always)]
    fn majority(self, b: Self, c: Self) -> Self {
        (self & b) | (c & (self | b))
    }

    #[inline(always)]
    fn md5_f(self, b: Self, c: Self, d: Self) -> Self {
        first(self).wrapping_add(b.choose(c, d))
    }

    /// No bit is in both halves, so they can be added one by one, and only one operation and a sum wait for `b`.
    #[inline(always)]
    fn md5_g(self, b: Self, c: Self, d: Self) -> Self {
        first(first(self).wrapping_add(!d & c)).wrapping_add(d & b)
    }

    #[inline(always)]
    fn md5_h(self, b: Self, c: Self, d: Self) -> Self {
        first(self).wrapping_add(first(c ^ d) ^ b)
    }

    #[inline(always)]
    fn md5_i(self, b: Self, c: Self, d: Self) -> Self {
        first(self).wrapping_add(c ^ (b | !d))
    }

    #[inline(always)]
    fn swap_bytes(self) -> Self {
        Self::swap_bytes(self)
    }

    #[inline(always)]
    fn rotate<const LEFT: i32, const RIGHT: i32>(self) -> Self {
        self.rotate_left(LEFT as Self)
    }

    #[inline(always)]
    fn shift_right<const RIGHT: i32>(self) -> Self {
        self >> RIGHT
    }
}

/// SHA-1 in Rust, which uses the processor's SHA instructions where there are any.
pub(super) fn sha1(state: &mut [u32; 5], bytes: &[u8]) {
    sha1::block_api::compress(state, bytes.as_chunks().0);
}

/// SHA-256 in Rust, which uses the processor's SHA instructions where there are any.
pub(super) fn sha256(state: &mut [u32; 8], bytes: &[u8]) {
    sha2::block_api::compress256(state, bytes.as_chunks().0);
}

/// SHA-512 in Rust, which uses AVX2 where it is there.
pub(super) fn sha512(state: &mut [u64; 8], bytes: &[u8]) {
    sha2::block_api::compress512(state, bytes.as_chunks().0);
}

/// SHA-1 by OpenSSL.
pub(super) fn openssl_sha1(state: &mut [u32; 5], bytes: &[u8]) {
    let mut context = MaybeUninit::uninit();
    // SAFETY: the initialiser fills the whole context, which is then complete; the bytes are a slice's.
    unsafe {
        ffi::SHA1_Init(context.as_mut_ptr());
        let mut context: ffi::SHA_CTX = context.assume_init();
        [context.h0, context.h1, context.h2, context.h3, context.h4] = *state;
        ffi::SHA1_Update(&mut context, bytes.as_ptr().cast(), bytes.len());
        *state = [context.h0, context.h1, context.h2, context.h3, context.h4];
    }
}

/// SHA-256 by OpenSSL.
pub(super) fn openssl_sha256(state: &mut [u32; 8], bytes: &[u8]) {
    let mut context = MaybeUninit::uninit();
    // SAFETY: as for SHA-1.
    unsafe {
        ffi::SHA256_Init(context.as_mut_ptr());
        let mut context: ffi::SHA256_CTX = context.assume_init();
        context.h = *state;
        ffi::SHA256_Update(&mut context, bytes.as_ptr().cast(), bytes.len());
        *state = context.h;
    }
}

/// SHA-512 by OpenSSL.
pub(super) fn openssl_sha512(state: &mut [u64; 8], bytes: &[u8]) {
    let mut context = MaybeUninit::uninit();
    // SAFETY: as for SHA-1.
    unsafe {
        ffi::SHA512_Init(context.as_mut_ptr());
        let mut context: ffi::SHA512_CTX = context.assume_init();
        context.h = *state;
        ffi::SHA512_Update(&mut context, bytes.as_ptr().cast(), bytes.len());
        *state = context.h;
    }
}
