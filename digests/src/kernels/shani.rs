//! SHA-1 and SHA-256 by the processor's SHA instructions, two files at a time: one alone waits for each instruction's
//! result, the other's fill the gaps.
//!
//! Safety: as in the vector modules, every entry carries `#[target_feature]` and is `unsafe` for whoever can't promise the
//! instructions. Memory is read through pointers of slices whose lengths are asserted first.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::array::from_fn;

use super::constants::SHA256_K;
use super::drive::Lane;

/// # Safety
/// The processor has the SHA extensions, SSSE3 and SSE4.1.
#[target_feature(enable = "sha,ssse3,sse4.1")]
pub(super) unsafe fn sha256(lanes: &mut [Lane<'_, [u32; 8]>], blocks: usize) {
    match lanes {
        // SAFETY: the caller promises the instructions.
        [a, b] => unsafe { sha256_files([&mut *a, &mut *b], blocks) },
        lanes => lanes.iter_mut().for_each(|lane| {
            // SAFETY: as above.
            unsafe { sha256_files([lane], blocks) }
        }),
    }
}

/// # Safety
/// The processor has the SHA extensions, SSSE3 and SSE4.1.
#[target_feature(enable = "sha,ssse3,sse4.1")]
pub(super) unsafe fn sha1(lanes: &mut [Lane<'_, [u32; 5]>], blocks: usize) {
    match lanes {
        // SAFETY: the caller promises the instructions.
        [a, b] => unsafe { sha1_files([&mut *a, &mut *b], blocks) },
        lanes => lanes.iter_mut().for_each(|lane| {
            // SAFETY: as above.
            unsafe { sha1_files([lane], blocks) }
        }),
    }
}

/// # Safety
/// As [`sha256`].
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
unsafe fn sha256_files<const N: usize>(lanes: [&mut Lane<'_, [u32; 8]>; N], blocks: usize) {
    assert!(lanes.iter().all(|lane| lane.bytes.len() / 64 >= blocks), "a lane is shorter than the blocks asked for");
    let swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    // The instructions want the state as a b e f and c d g h, from the highest word down.
    let pack =
        |s: &[u32; 8], [w, x, y, z]: [usize; 4]| _mm_set_epi32(s[w] as i32, s[x] as i32, s[y] as i32, s[z] as i32);
    let mut abef: [__m128i; N] = from_fn(|n| pack(lanes[n].state, [0, 1, 4, 5]));
    let mut cdgh: [__m128i; N] = from_fn(|n| pack(lanes[n].state, [2, 3, 6, 7]));
    for block in 0..blocks {
        let (abef_before, cdgh_before) = (abef, cdgh);
        let mut w: [[__m128i; N]; 4] = from_fn(|i| {
            // SAFETY: the slice has a whole block at `64 * block`, by the assertion above.
            from_fn(|n| unsafe {
                let row = lanes[n].bytes.as_ptr().add(64 * block + 16 * i);
                _mm_shuffle_epi8(_mm_loadu_si128(row.cast()), swap)
            })
        });
        let (constants, _) = SHA256_K.as_chunks::<16>();
        for (group, k) in constants.iter().enumerate() {
            for i in 0..4 {
                // SAFETY: four constants lie there.
                let k = unsafe { _mm_loadu_si128(k.as_ptr().add(4 * i).cast()) };
                for n in 0..N {
                    if group > 0 {
                        let (a, b, c, d) = (w[i][n], w[(i + 1) % 4][n], w[(i + 2) % 4][n], w[(i + 3) % 4][n]);
                        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8::<4>(d, c));
                        w[i][n] = _mm_sha256msg2_epu32(sum, d);
                    }
                    let sum = _mm_add_epi32(w[i][n], k);
                    cdgh[n] = _mm_sha256rnds2_epu32(cdgh[n], abef[n], sum);
                    abef[n] = _mm_sha256rnds2_epu32(abef[n], cdgh[n], _mm_shuffle_epi32::<0x0e>(sum));
                }
            }
        }
        for n in 0..N {
            abef[n] = _mm_add_epi32(abef[n], abef_before[n]);
            cdgh[n] = _mm_add_epi32(cdgh[n], cdgh_before[n]);
        }
    }
    for (n, lane) in lanes.into_iter().enumerate() {
        let [f, e, b, a] = words(abef[n]);
        let [h, g, d, c] = words(cdgh[n]);
        *lane.state = [a, b, c, d, e, f, g, h];
    }
}

/// Twenty rounds of SHA-1, four at a time: the schedule's next words, then the rounds with function and constant `$f`.
macro_rules! sha1_twenty {
    ($w:ident, $abcd:ident, $e:ident, $files:ident, $f:literal, $from:literal) => {
        for i in $from..$from + 5 {
            for n in 0..$files {
                if i >= 4 {
                    let (a, b, c, d) = ($w[i % 4][n], $w[(i + 1) % 4][n], $w[(i + 2) % 4][n], $w[(i + 3) % 4][n]);
                    $w[i % 4][n] = _mm_sha1msg2_epu32(_mm_xor_si128(_mm_sha1msg1_epu32(a, b), c), d);
                }
                let e = if i == 0 { _mm_add_epi32($e[n], $w[0][n]) } else { _mm_sha1nexte_epu32($e[n], $w[i % 4][n]) };
                $e[n] = $abcd[n];
                $abcd[n] = _mm_sha1rnds4_epu32::<$f>($abcd[n], e);
            }
        }
    };
}

/// # Safety
/// As [`sha1`].
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
unsafe fn sha1_files<const N: usize>(lanes: [&mut Lane<'_, [u32; 5]>; N], blocks: usize) {
    assert!(lanes.iter().all(|lane| lane.bytes.len() / 64 >= blocks), "a lane is shorter than the blocks asked for");
    // Bytes are turned from the first to the last, so that the first word is the highest.
    let swap = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut abcd: [__m128i; N] = from_fn(|n| {
        let [a, b, c, d, _] = lanes[n].state.map(|word| word as i32);
        _mm_set_epi32(a, b, c, d)
    });
    let mut e: [__m128i; N] = from_fn(|n| _mm_set_epi32(lanes[n].state[4] as i32, 0, 0, 0));
    for block in 0..blocks {
        let (abcd_before, e_before) = (abcd, e);
        let mut w: [[__m128i; N]; 4] = from_fn(|i| {
            // SAFETY: the slice has a whole block at `64 * block`, by the assertion above.
            from_fn(|n| unsafe {
                let row = lanes[n].bytes.as_ptr().add(64 * block + 16 * i);
                _mm_shuffle_epi8(_mm_loadu_si128(row.cast()), swap)
            })
        });
        sha1_twenty!(w, abcd, e, N, 0, 0);
        sha1_twenty!(w, abcd, e, N, 1, 5);
        sha1_twenty!(w, abcd, e, N, 2, 10);
        sha1_twenty!(w, abcd, e, N, 3, 15);
        for n in 0..N {
            // The instruction rotates the `a` of four rounds ago into what is `e` now.
            e[n] = _mm_sha1nexte_epu32(e[n], e_before[n]);
            abcd[n] = _mm_add_epi32(abcd[n], abcd_before[n]);
        }
    }
    for (n, lane) in lanes.into_iter().enumerate() {
        let [d, c, b, a] = words(abcd[n]);
        let [_, _, _, e] = words(e[n]);
        *lane.state = [a, b, c, d, e];
    }
}

/// The register's words from the lowest to the highest.
#[inline]
#[target_feature(enable = "sse4.1")]
fn words(register: __m128i) -> [u32; 4] {
    [
        _mm_extract_epi32::<0>(register) as u32,
        _mm_extract_epi32::<1>(register) as u32,
        _mm_extract_epi32::<2>(register) as u32,
        _mm_extract_epi32::<3>(register) as u32,
    ]
}
