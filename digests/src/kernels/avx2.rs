//! AVX2: eight 32-bit or four 64-bit words a register.
//!
//! Safety: every intrinsic here needs instructions that not every processor has. They are used in two kinds of places
//! only: behind an `unsafe` function whose caller promises the instructions, and in methods of a type whose values come
//! from such functions alone (see [`super::words`]). The six entries at the end carry `#[target_feature]`, everything
//! else is inlined into them; memory is touched by `load`, `store` and the two `gather` functions alone, within the bounds
//! their callers promise.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::blake3::{self, Node};
use super::drive::{Lane, drive};
use super::rounds::{Md5, Md5Sha1, Sha1, Sha256, Sha512};
use super::words::{LANES_MAX, Words};

/// 8 words of 32 bits.
#[derive(Clone, Copy)]
pub(super) struct W32(__m256i);

impl Words for W32 {
    type Word = u32;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: the caller promises the words and the instructions.
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: the caller promises room for the words.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn gather(files: &[*const u8; LANES_MAX], offset: usize, little: bool) -> [Self; 16] {
        // SAFETY: the caller promises the words and the instructions.
        unsafe { gather_32(files, offset, little) }
    }

    #[inline(always)]
    fn splat(self, word: u32) -> Self {
        // SAFETY: `self` exists, so the processor has the instructions. The same holds below.
        Self(unsafe { _mm256_set1_epi32(word as i32) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }

    #[inline(always)]
    fn xor3(self, b: Self, c: Self) -> Self {
        self.xor(b).xor(c)
    }

    #[inline(always)]
    fn choose(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_xor_si256(c.0, _mm256_and_si256(self.0, _mm256_xor_si256(b.0, c.0))) })
    }

    #[inline(always)]
    fn majority(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe {
            _mm256_or_si256(_mm256_and_si256(self.0, b.0), _mm256_and_si256(c.0, _mm256_or_si256(self.0, b.0)))
        })
    }

    #[inline(always)]
    fn md5_i(self, b: Self, c: Self, d: Self) -> Self {
        // SAFETY: as above.
        self.add(Self(unsafe {
            let not_d = _mm256_xor_si256(d.0, _mm256_set1_epi32(-1));
            _mm256_xor_si256(c.0, _mm256_or_si256(b.0, not_d))
        }))
    }

    #[inline(always)]
    fn swap_bytes(self) -> Self {
        // SAFETY: as above.
        Self(unsafe {
            let order = _mm256_broadcastsi128_si256(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
            _mm256_shuffle_epi8(self.0, order)
        })
    }

    #[inline(always)]
    fn rotate<const LEFT: i32, const RIGHT: i32>(self) -> Self {
        const { assert!(LEFT + RIGHT == 32) };
        // SAFETY: as above.
        Self(unsafe { _mm256_or_si256(_mm256_slli_epi32::<LEFT>(self.0), _mm256_srli_epi32::<RIGHT>(self.0)) })
    }

    #[inline(always)]
    fn shift_right<const RIGHT: i32>(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_srli_epi32::<RIGHT>(self.0) })
    }
}

/// 4 words of 64 bits.
#[derive(Clone, Copy)]
pub(super) struct W64(__m256i);

impl Words for W64 {
    type Word = u64;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u64) -> Self {
        // SAFETY: the caller promises the words and the instructions.
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u64) {
        // SAFETY: the caller promises room for the words.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn gather(files: &[*const u8; LANES_MAX], offset: usize, little: bool) -> [Self; 16] {
        // SAFETY: the caller promises the words and the instructions.
        unsafe { gather_64(files, offset, little) }
    }

    #[inline(always)]
    fn splat(self, word: u64) -> Self {
        // SAFETY: `self` exists, so the processor has the instructions. The same holds below.
        Self(unsafe { _mm256_set1_epi64x(word as i64) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_add_epi64(self.0, other.0) })
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }

    #[inline(always)]
    fn xor3(self, b: Self, c: Self) -> Self {
        self.xor(b).xor(c)
    }

    #[inline(always)]
    fn choose(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_xor_si256(c.0, _mm256_and_si256(self.0, _mm256_xor_si256(b.0, c.0))) })
    }

    #[inline(always)]
    fn majority(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe {
            _mm256_or_si256(_mm256_and_si256(self.0, b.0), _mm256_and_si256(c.0, _mm256_or_si256(self.0, b.0)))
        })
    }

    #[inline(always)]
    fn md5_i(self, b: Self, c: Self, d: Self) -> Self {
        // SAFETY: as above.
        self.add(Self(unsafe {
            let not_d = _mm256_xor_si256(d.0, _mm256_set1_epi32(-1));
            _mm256_xor_si256(c.0, _mm256_or_si256(b.0, not_d))
        }))
    }

    #[inline(always)]
    fn swap_bytes(self) -> Self {
        // SAFETY: as above.
        Self(unsafe {
            let order = _mm256_broadcastsi128_si256(_mm_set_epi8(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
            _mm256_shuffle_epi8(self.0, order)
        })
    }

    #[inline(always)]
    fn rotate<const LEFT: i32, const RIGHT: i32>(self) -> Self {
        const { assert!(LEFT + RIGHT == 64) };
        // SAFETY: as above.
        Self(unsafe { _mm256_or_si256(_mm256_slli_epi64::<LEFT>(self.0), _mm256_srli_epi64::<RIGHT>(self.0)) })
    }

    #[inline(always)]
    fn shift_right<const RIGHT: i32>(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_srli_epi64::<RIGHT>(self.0) })
    }
}

/// Reads rows of 32-bit words, eight at a time, and turns rows into columns.
///
/// # Safety
/// As [`Words::gather`].
#[inline(always)]
unsafe fn gather_32(files: &[*const u8; LANES_MAX], offset: usize, little: bool) -> [W32; 16] {
    // SAFETY: the caller promises eight readable pointers and the instructions; a block has two rows of 32 bytes.
    unsafe {
        let mut words = [_mm256_setzero_si256(); 16];
        for half in 0..2 {
            let mut rows = [_mm256_setzero_si256(); 8];
            for (row, pointer) in rows.iter_mut().zip(files) {
                *row = _mm256_loadu_si256(pointer.add(offset + 32 * half).cast());
            }
            let mut pairs = rows;
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
            }
            let mut fours = pairs;
            for i in 0..2 {
                fours[4 * i] = _mm256_unpacklo_epi64(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 1] = _mm256_unpackhi_epi64(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 2] = _mm256_unpacklo_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
                fours[4 * i + 3] = _mm256_unpackhi_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
            }
            for i in 0..4 {
                words[8 * half + i] = _mm256_permute2x128_si256::<0x20>(fours[i], fours[i + 4]);
                words[8 * half + i + 4] = _mm256_permute2x128_si256::<0x31>(fours[i], fours[i + 4]);
            }
        }
        let mut turned = [W32(_mm256_setzero_si256()); 16];
        for (turned, word) in turned.iter_mut().zip(words) {
            *turned = if little { W32(word) } else { W32(word).swap_bytes() };
        }
        turned
    }
}

/// # Safety
/// As [`Words::gather`].
#[inline(always)]
unsafe fn gather_64(files: &[*const u8; LANES_MAX], offset: usize, little: bool) -> [W64; 16] {
    // SAFETY: the caller promises four readable pointers and the instructions; a block has four rows of 32 bytes.
    unsafe {
        let mut words = [_mm256_setzero_si256(); 16];
        for quarter in 0..4 {
            let mut rows = [_mm256_setzero_si256(); 4];
            for (row, pointer) in rows.iter_mut().zip(files) {
                *row = _mm256_loadu_si256(pointer.add(offset + 32 * quarter).cast());
            }
            let low_even = _mm256_unpacklo_epi64(rows[0], rows[1]);
            let low_odd = _mm256_unpackhi_epi64(rows[0], rows[1]);
            let high_even = _mm256_unpacklo_epi64(rows[2], rows[3]);
            let high_odd = _mm256_unpackhi_epi64(rows[2], rows[3]);
            words[4 * quarter] = _mm256_permute2x128_si256::<0x20>(low_even, high_even);
            words[4 * quarter + 1] = _mm256_permute2x128_si256::<0x20>(low_odd, high_odd);
            words[4 * quarter + 2] = _mm256_permute2x128_si256::<0x31>(low_even, high_even);
            words[4 * quarter + 3] = _mm256_permute2x128_si256::<0x31>(low_odd, high_odd);
        }
        let mut turned = [W64(_mm256_setzero_si256()); 16];
        for (turned, word) in turned.iter_mut().zip(words) {
            *turned = if little { W64(word) } else { W64(word).swap_bytes() };
        }
        turned
    }
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn blake3(lanes: &mut [Lane<'_, Node>], blocks: usize) {
    // SAFETY: the caller promises the instructions of the registers' type.
    unsafe { blake3::drive::<W32>(lanes, blocks) }
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn md5(lanes: &mut [Lane<'_, [u32; 4]>], blocks: usize) {
    // SAFETY: the caller promises the instructions of the registers' type.
    unsafe { drive::<Md5, W32, 4>(lanes, blocks) }
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sha1(lanes: &mut [Lane<'_, [u32; 5]>], blocks: usize) {
    // SAFETY: the caller promises the instructions of the registers' type.
    unsafe { drive::<Sha1, W32, 5>(lanes, blocks) }
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn md5_sha1(lanes: &mut [Lane<'_, [u32; 9]>], blocks: usize) {
    // SAFETY: the caller promises the instructions of the registers' type.
    unsafe { drive::<Md5Sha1, W32, 9>(lanes, blocks) }
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sha256(lanes: &mut [Lane<'_, [u32; 8]>], blocks: usize) {
    // SAFETY: the caller promises the instructions of the registers' type.
    unsafe { drive::<Sha256, W32, 8>(lanes, blocks) }
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sha512(lanes: &mut [Lane<'_, [u64; 8]>], blocks: usize) {
    // SAFETY: the caller promises the instructions of the registers' type.
    unsafe { drive::<Sha512, W64, 8>(lanes, blocks) }
}
