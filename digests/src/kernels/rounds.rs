//! The rounds of MD5 (RFC 1321), SHA-1, SHA-256 and SHA-512 (FIPS 180-4), written once for registers of every width.
//!
//! Each loop's body is sixteen rounds spelled out, so that the state's names rotate instead of its registers and every
//! index into the block's words is a constant.

use super::constants::{MD5_K, SHA1_K, SHA256_K, SHA512_K};
use super::words::{Rounds, Words};

/// MD5.
pub(crate) struct Md5;
/// SHA-1.
pub(crate) struct Sha1;
/// SHA-256.
pub(crate) struct Sha256;
/// SHA-512.
pub(crate) struct Sha512;

/// Spells out sixteen rounds of MD5: `$mix` of a sum and three words, constants from `$k` on, words by `$factor * round + $start`,
/// four rotations in turn.
macro_rules! md5_sixteen {
    ($a:ident $b:ident $c:ident $d:ident, $w:ident, $k:literal, $mix:expr, $factor:literal + $start:literal,
     $l0:literal $r0:literal, $l1:literal $r1:literal, $l2:literal $r2:literal, $l3:literal $r3:literal) => {
        md5_four!($a $b $c $d, $w, $k, 0, $mix, $factor + $start, $l0 $r0, $l1 $r1, $l2 $r2, $l3 $r3);
        md5_four!($a $b $c $d, $w, $k, 4, $mix, $factor + $start, $l0 $r0, $l1 $r1, $l2 $r2, $l3 $r3);
        md5_four!($a $b $c $d, $w, $k, 8, $mix, $factor + $start, $l0 $r0, $l1 $r1, $l2 $r2, $l3 $r3);
        md5_four!($a $b $c $d, $w, $k, 12, $mix, $factor + $start, $l0 $r0, $l1 $r1, $l2 $r2, $l3 $r3);
    };
}

macro_rules! md5_four {
    ($a:ident $b:ident $c:ident $d:ident, $w:ident, $k:literal, $i:literal, $mix:expr, $factor:literal + $start:literal,
     $l0:literal $r0:literal, $l1:literal $r1:literal, $l2:literal $r2:literal, $l3:literal $r3:literal) => {
        md5_round!($a $b $c $d, $w[($factor * $i + $start) % 16], $k + $i, $mix, $l0, $r0);
        md5_round!($d $a $b $c, $w[($factor * ($i + 1) + $start) % 16], $k + $i + 1, $mix, $l1, $r1);
        md5_round!($c $d $a $b, $w[($factor * ($i + 2) + $start) % 16], $k + $i + 2, $mix, $l2, $r2);
        md5_round!($b $c $d $a, $w[($factor * ($i + 3) + $start) % 16], $k + $i + 3, $mix, $l3, $r3);
    };
}

// What does not depend on the round before is added first: the chain from round to round is what limits MD5.
macro_rules! md5_round {
    ($a:ident $b:ident $c:ident $d:ident, $word:expr, $k:expr, $mix:expr, $left:literal, $right:literal) => {
        let early = $a.add($word.add($a.splat(MD5_K[$k])));
        $a = $mix(early, $b, $c, $d).rotate::<$left, $right>().add($b);
    };
}

impl<V: Words<Word = u32>> Rounds<V, 4> for Md5 {
    const BLOCK_BYTES: usize = 64;
    const LITTLE: bool = true;

    #[inline(always)]
    fn block(state: &mut [V; 4], w: [V; 16]) {
        let [mut a, mut b, mut c, mut d] = *state;
        md5_sixteen!(a b c d, w, 0, V::md5_f, 1 + 0, 7 25, 12 20, 17 15, 22 10);
        md5_sixteen!(a b c d, w, 16, V::md5_g, 5 + 1, 5 27, 9 23, 14 18, 20 12);
        md5_sixteen!(a b c d, w, 32, V::md5_h, 3 + 5, 4 28, 11 21, 16 16, 23 9);
        md5_sixteen!(a b c d, w, 48, V::md5_i, 7 + 0, 6 26, 10 22, 15 17, 21 11);
        *state = [state[0].add(a), state[1].add(b), state[2].add(c), state[3].add(d)];
    }
}

macro_rules! sha1_round {
    ($a:ident $b:ident $c:ident $d:ident $e:ident, $word:expr, $k:ident, $mix:expr) => {
        let early = $e.add($word.add($k)).add($mix($b, $c, $d));
        $e = early.add($a.rotate::<5, 27>());
        $b = $b.rotate::<30, 2>();
    };
}

/// Five rounds of SHA-1, after which the names stand as before.
macro_rules! sha1_five {
    ($a:ident $b:ident $c:ident $d:ident $e:ident, $w:ident, $i:expr, $k:ident, $mix:expr, $next:ident) => {
        sha1_round!($a $b $c $d $e, $next(&mut $w, $i), $k, $mix);
        sha1_round!($e $a $b $c $d, $next(&mut $w, $i + 1), $k, $mix);
        sha1_round!($d $e $a $b $c, $next(&mut $w, $i + 2), $k, $mix);
        sha1_round!($c $d $e $a $b, $next(&mut $w, $i + 3), $k, $mix);
        sha1_round!($b $c $d $e $a, $next(&mut $w, $i + 4), $k, $mix);
    };
}

macro_rules! sha1_twenty {
    ($a:ident $b:ident $c:ident $d:ident $e:ident, $w:ident, $i:literal, $k:ident, $mix:expr, $next:ident) => {
        sha1_five!($a $b $c $d $e, $w, $i, $k, $mix, $next);
        sha1_five!($a $b $c $d $e, $w, $i + 5, $k, $mix, $next);
        sha1_five!($a $b $c $d $e, $w, $i + 10, $k, $mix, $next);
        sha1_five!($a $b $c $d $e, $w, $i + 15, $k, $mix, $next);
    };
}

/// The schedule's word of round `i`, kept in place of the one sixteen rounds before.
#[inline(always)]
fn sha1_word<V: Words<Word = u32>>(w: &mut [V; 16], i: usize) -> V {
    if i >= 16 {
        let sum = w[(i + 13) % 16].xor3(w[(i + 8) % 16], w[(i + 2) % 16]);
        w[i % 16] = sum.xor(w[i % 16]).rotate::<1, 31>();
    }
    w[i % 16]
}

impl<V: Words<Word = u32>> Rounds<V, 5> for Sha1 {
    const BLOCK_BYTES: usize = 64;
    const LITTLE: bool = false;

    #[inline(always)]
    fn block(state: &mut [V; 5], mut w: [V; 16]) {
        let [mut a, mut b, mut c, mut d, mut e] = *state;
        let [k0, k1, k2, k3] = SHA1_K.map(|k| a.splat(k));
        sha1_twenty!(a b c d e, w, 0, k0, |b: V, c, d| b.choose(c, d), sha1_word);
        sha1_twenty!(a b c d e, w, 20, k1, |b: V, c, d| b.xor3(c, d), sha1_word);
        sha1_twenty!(a b c d e, w, 40, k2, |b: V, c, d| b.majority(c, d), sha1_word);
        sha1_twenty!(a b c d e, w, 60, k3, |b: V, c, d| b.xor3(c, d), sha1_word);
        *state = [state[0].add(a), state[1].add(b), state[2].add(c), state[3].add(d), state[4].add(e)];
    }
}

/// MD5 and SHA-1 of the same blocks, round beside round: MD5's rounds wait for one another, SHA-1's fill the gaps, and the
/// blocks are read and turned once. The state is MD5's, then SHA-1's.
pub(crate) struct Md5Sha1;

/// Four rounds of MD5 and five of SHA-1, the `$n`-th of those that share `$mix` and `$sha1_mix`. SHA-1's words are computed
/// sixteen rounds ahead, in place of the one just used, if `$next`.
macro_rules! md5_four_sha1_five {
    ($n:ident, $a:ident $b:ident $c:ident $d:ident, $w:ident, $k:literal, $mix:expr, $factor:literal + $start:literal,
     $l0:literal $r0:literal, $l1:literal $r1:literal, $l2:literal $r2:literal, $l3:literal $r3:literal;
     $p:ident $q:ident $r:ident $s:ident $t:ident, $x:ident, $i:literal, $sha1_k:ident, $sha1_mix:expr, $next:literal) => {
        let (m, i) = (4 * $n, 5 * $n + $i);
        md5_round!($a $b $c $d, $w[($factor * m + $start) % 16], ($k + m) % 64, $mix, $l0, $r0);
        sha1_round!($p $q $r $s $t, sha1_ahead::<V, $next>(&mut $x, i), $sha1_k, $sha1_mix);
        md5_round!($d $a $b $c, $w[($factor * (m + 1) + $start) % 16], ($k + m + 1) % 64, $mix, $l1, $r1);
        sha1_round!($t $p $q $r $s, sha1_ahead::<V, $next>(&mut $x, i + 1), $sha1_k, $sha1_mix);
        md5_round!($c $d $a $b, $w[($factor * (m + 2) + $start) % 16], ($k + m + 2) % 64, $mix, $l2, $r2);
        sha1_round!($s $t $p $q $r, sha1_ahead::<V, $next>(&mut $x, i + 2), $sha1_k, $sha1_mix);
        md5_round!($b $c $d $a, $w[($factor * (m + 3) + $start) % 16], ($k + m + 3) % 64, $mix, $l3, $r3);
        sha1_round!($r $s $t $p $q, sha1_ahead::<V, $next>(&mut $x, i + 3), $sha1_k, $sha1_mix);
        sha1_round!($q $r $s $t $p, sha1_ahead::<V, $next>(&mut $x, i + 4), $sha1_k, $sha1_mix);
    };
}

#[inline(always)]
fn sha1_ahead<V: Words<Word = u32>, const NEXT: bool>(x: &mut [V; 16], i: usize) -> V {
    let word = x[i % 16];
    if NEXT {
        x[i % 16] = x[(i + 13) % 16].xor3(x[(i + 8) % 16], x[(i + 2) % 16]).xor(word).rotate::<1, 31>();
    }
    word
}

impl<V: Words<Word = u32>> Rounds<V, 9> for Md5Sha1 {
    const BLOCK_BYTES: usize = 64;
    const LITTLE: bool = true;

    #[inline(always)]
    fn block(state: &mut [V; 9], w: [V; 16]) {
        let [mut a, mut b, mut c, mut d, mut p, mut q, mut r, mut s, mut t] = *state;
        // No `map`, which takes a closure: one is compiled without the instructions.
        let mut x = [a; 16];
        for (x, word) in x.iter_mut().zip(&w) {
            *x = word.swap_bytes();
        }
        let (k0, k1, k2, k3) = (p.splat(SHA1_K[0]), p.splat(SHA1_K[1]), p.splat(SHA1_K[2]), p.splat(SHA1_K[3]));
        // Loops that the compiler must not unroll: it would put all of one digest's rounds before the other's, too far apart
        // for the processor to see both.
        let four = std::hint::black_box(4);
        for n in 0..four {
            md5_four_sha1_five!(n, a b c d, w, 0, V::md5_f, 1 + 0, 7 25, 12 20, 17 15, 22 10;
                p q r s t, x, 0, k0, V::choose, true);
        }
        for n in 0..four {
            md5_four_sha1_five!(n, a b c d, w, 16, V::md5_g, 5 + 1, 5 27, 9 23, 14 18, 20 12;
                p q r s t, x, 20, k1, V::xor3, true);
        }
        for n in 0..four {
            md5_four_sha1_five!(n, a b c d, w, 32, V::md5_h, 3 + 5, 4 28, 11 21, 16 16, 23 9;
                p q r s t, x, 40, k2, V::majority, true);
        }
        let first = 0;
        md5_four_sha1_five!(first, a b c d, w, 48, V::md5_i, 7 + 0, 6 26, 10 22, 15 17, 21 11;
            p q r s t, x, 60, k3, V::xor3, true);
        for n in 1..four {
            md5_four_sha1_five!(n, a b c d, w, 48, V::md5_i, 7 + 0, 6 26, 10 22, 15 17, 21 11;
                p q r s t, x, 60, k3, V::xor3, false);
        }
        for (sum, word) in state.iter_mut().zip([a, b, c, d, p, q, r, s, t]) {
            *sum = sum.add(word);
        }
    }
}

/// The functions in which SHA-256 and SHA-512 differ (FIPS 180-4, 4.1.2 and 4.1.3).
trait Sha2<V: Words> {
    fn sum0(a: V) -> V;
    fn sum1(e: V) -> V;
    fn sigma0(w: V) -> V;
    fn sigma1(w: V) -> V;

    /// One of the block's own words.
    #[inline(always)]
    fn own_word(w: &mut [V; 16], i: usize) -> V {
        w[i]
    }

    /// The schedule's next word, in place of the one sixteen rounds before.
    #[inline(always)]
    fn next_word(w: &mut [V; 16], i: usize) -> V {
        let late = w[i].add(w[(i + 9) % 16]);
        w[i] = late.add(Self::sigma0(w[(i + 1) % 16])).add(Self::sigma1(w[(i + 14) % 16]));
        w[i]
    }
}

macro_rules! sha2_round {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $w:ident, $k:ident, $i:literal, $word:ident) => {
        let early = $h.add(Self::$word(&mut $w, $i).add($a.splat($k[$i])));
        let t = early.add($e.choose($f, $g)).add(Self::sum1($e));
        $d = $d.add(t);
        $h = t.add($a.majority($b, $c)).add(Self::sum0($a));
    };
}

macro_rules! sha2_eight {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $w:ident, $k:ident, $word:ident,
     $i0:literal $i1:literal $i2:literal $i3:literal $i4:literal $i5:literal $i6:literal $i7:literal) => {
        sha2_round!($a $b $c $d $e $f $g $h, $w, $k, $i0, $word);
        sha2_round!($h $a $b $c $d $e $f $g, $w, $k, $i1, $word);
        sha2_round!($g $h $a $b $c $d $e $f, $w, $k, $i2, $word);
        sha2_round!($f $g $h $a $b $c $d $e, $w, $k, $i3, $word);
        sha2_round!($e $f $g $h $a $b $c $d, $w, $k, $i4, $word);
        sha2_round!($d $e $f $g $h $a $b $c, $w, $k, $i5, $word);
        sha2_round!($c $d $e $f $g $h $a $b, $w, $k, $i6, $word);
        sha2_round!($b $c $d $e $f $g $h $a, $w, $k, $i7, $word);
    };
}

/// The block of SHA-256 and SHA-512: sixteen rounds with the block's own words, then sixteen at a time with the schedule's.
macro_rules! sha2_block {
    ($state:ident, $w:ident, $constants:ident) => {
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *$state;
        if let [first, more @ ..] = $constants.as_chunks::<16>().0 {
            sha2_eight!(a b c d e f g h, $w, first, own_word, 0 1 2 3 4 5 6 7);
            sha2_eight!(a b c d e f g h, $w, first, own_word, 8 9 10 11 12 13 14 15);
            for k in more {
                sha2_eight!(a b c d e f g h, $w, k, next_word, 0 1 2 3 4 5 6 7);
                sha2_eight!(a b c d e f g h, $w, k, next_word, 8 9 10 11 12 13 14 15);
            }
        }
        for (sum, word) in $state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *sum = sum.add(word);
        }
    };
}

impl<V: Words<Word = u32>> Sha2<V> for Sha256 {
    #[inline(always)]
    fn sum0(a: V) -> V {
        a.rotate::<30, 2>().xor3(a.rotate::<19, 13>(), a.rotate::<10, 22>())
    }

    #[inline(always)]
    fn sum1(e: V) -> V {
        e.rotate::<26, 6>().xor3(e.rotate::<21, 11>(), e.rotate::<7, 25>())
    }

    #[inline(always)]
    fn sigma0(w: V) -> V {
        w.rotate::<25, 7>().xor3(w.rotate::<14, 18>(), w.shift_right::<3>())
    }

    #[inline(always)]
    fn sigma1(w: V) -> V {
        w.rotate::<15, 17>().xor3(w.rotate::<13, 19>(), w.shift_right::<10>())
    }
}

impl<V: Words<Word = u32>> Rounds<V, 8> for Sha256 {
    const BLOCK_BYTES: usize = 64;
    const LITTLE: bool = false;

    #[inline(always)]
    fn block(state: &mut [V; 8], mut w: [V; 16]) {
        sha2_block!(state, w, SHA256_K);
    }
}

impl<V: Words<Word = u64>> Sha2<V> for Sha512 {
    #[inline(always)]
    fn sum0(a: V) -> V {
        a.rotate::<36, 28>().xor3(a.rotate::<30, 34>(), a.rotate::<25, 39>())
    }

    #[inline(always)]
    fn sum1(e: V) -> V {
        e.rotate::<50, 14>().xor3(e.rotate::<46, 18>(), e.rotate::<23, 41>())
    }

    #[inline(always)]
    fn sigma0(w: V) -> V {
        w.rotate::<63, 1>().xor3(w.rotate::<56, 8>(), w.shift_right::<7>())
    }

    #[inline(always)]
    fn sigma1(w: V) -> V {
        w.rotate::<45, 19>().xor3(w.rotate::<3, 61>(), w.shift_right::<6>())
    }
}

impl<V: Words<Word = u64>> Rounds<V, 8> for Sha512 {
    const BLOCK_BYTES: usize = 128;
    const LITTLE: bool = false;

    #[inline(always)]
    fn block(state: &mut [V; 8], mut w: [V; 16]) {
        sha2_block!(state, w, SHA512_K);
    }
}
