//! Whatever the path, the pieces and the company, the digests are OpenSSL's (and `blake3`'s).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use bytes::Bytes;
use lazaret_digests::{Digest, Digests, Path, Pool, Selection, Set, Settings};
use openssl::hash::{MessageDigest, hash};

/// The paths that this machine has; the others are named, since what is not run is not tested.
fn paths() -> Vec<Path> {
    let (there, lacking): (Vec<_>, Vec<_>) = Path::ALL.into_iter().partition(|path| path.is_available());
    if !lacking.is_empty() {
        eprintln!("this machine lacks, and so leaves untested: {lacking:?}");
    }
    there
}

/// A small generator of repeatable noise.
struct Noise(u64);

impl Noise {
    /// A seed from the environment, or another each time; printed, so that a failure can be repeated.
    fn seeded() -> Self {
        let given = std::env::var("LAZARET_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            time.as_nanos() as u64
        });
        eprintln!("LAZARET_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 16) % bound as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Bytes {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

fn expected(content: &[u8]) -> Digests {
    let openssl = |kind| hash(kind, content).unwrap();
    Digests {
        blake3: *blake3::hash(content).as_bytes(),
        md5: openssl(MessageDigest::md5()).as_ref().try_into().ok(),
        sha1: openssl(MessageDigest::sha1()).as_ref().try_into().ok(),
        sha256: openssl(MessageDigest::sha256()).as_ref().try_into().ok(),
        sha512: openssl(MessageDigest::sha512()).as_ref().try_into().ok(),
    }
}

fn pool(threads: usize, path: Option<Path>) -> Pool {
    Pool::new(Settings { threads: NonZeroUsize::new(threads).unwrap(), path, ..Settings::default() }).unwrap()
}

#[test]
fn every_length_to_1025_by_every_path_alone() {
    let content = Noise(1).bytes(1025);
    let expected: Vec<Digests> = (0..=content.len()).map(|length| expected(&content[..length])).collect();
    for path in paths() {
        for (length, expected) in expected.iter().enumerate() {
            let mut set = Set::by(path, Selection::ALL);
            set.update(&content[..length]);
            assert_eq!(set.finish(), *expected, "{length} bytes by {path}");
        }
    }
}

#[test]
fn every_length_to_1025_by_every_path_side_by_side() {
    let content = Noise(1).bytes(1025);
    let expected: Vec<Digests> = (0..=content.len()).map(|length| expected(&content[..length])).collect();
    for path in paths() {
        let pool = pool(1, Some(path));
        let pending: Vec<_> = (0..=content.len())
            .map(|length| {
                let mut stream = pool.stream(Selection::ALL);
                stream.update_blocking(content.slice(..length));
                stream.end()
            })
            .collect();
        for (length, (pending, expected)) in pending.into_iter().zip(&expected).enumerate() {
            assert_eq!(pending.wait().unwrap(), *expected, "{length} bytes by {path}");
        }
    }
}

/// MD5 and SHA-1 share a pass where a file wants both, so they are tried apart too, and beside files that want both.
#[test]
fn md5_and_sha1_apart_by_every_path() {
    let content = Noise(3).bytes(4096);
    let apart = [(true, true), (true, false), (false, true)];
    for path in paths() {
        let pool = pool(1, Some(path));
        let pending: Vec<_> = (0..=content.len())
            .step_by(61)
            .flat_map(|length| apart.map(|(md5, sha1)| (length, Selection { md5, sha1, ..Selection::NONE })))
            .map(|(length, selection)| {
                let mut stream = pool.stream(selection);
                stream.update_blocking(content.slice(..length));
                (content.slice(..length), selection, stream.end())
            })
            .collect();
        pending.into_iter().for_each(check);
    }
}

/// Files that end in turn, one of them much longer than the others: those that are at their end wait for BLAKE3, which
/// follows in batches, while the long one gives its lane away and comes back.
#[test]
fn small_files_end_beside_a_long_one() {
    let content = Noise(4).bytes(600_000);
    let pool = pool(1, None);
    let lengths = || (0..200).map(|i| if i % 40 == 7 { 600_000 - i } else { 1_000 + (i * 7_919) % 52_000 });
    let begin = |length| {
        let mut stream = pool.stream(Selection::ALL);
        stream.update_blocking(content.slice(..length));
        stream.end()
    };
    let pending: Vec<_> = lengths().map(begin).collect();
    for (pending, length) in pending.into_iter().zip(lengths()) {
        assert_eq!(pending.wait().unwrap(), expected(&content[..length]), "{length} bytes");
    }
}

#[test]
fn lengths_around_every_boundary() {
    // Blocks, what is copied together, what is handed on whole, BLAKE3's window, a lane's stay, a file's share of the pool.
    let lengths: Vec<usize> = [64, 128, 4096, 16_384, 32_768, 65_536, 1 << 20]
        .into_iter()
        .flat_map(|boundary: usize| {
            [-129, -128, -127, -65, -64, -1, 0, 1, 63, 64, 127, 128, 129].map(|by| boundary.checked_add_signed(by))
        })
        .flatten()
        .collect();
    let content = Noise(2).bytes((1 << 20) + 129);
    let pool = pool(2, None);
    let pending: Vec<_> = lengths
        .iter()
        .map(|&length| {
            let mut stream = pool.stream(Selection::ALL);
            stream.update_blocking(content.slice(..length));
            stream.end()
        })
        .collect();
    for (length, pending) in lengths.into_iter().zip(pending) {
        assert_eq!(pending.wait().unwrap(), expected(&content[..length]), "{length} bytes");
    }
}

/// Many files of different lengths, in pieces of different lengths, in turns, some given up half-way, with different
/// digests switched off.
fn turns(noise: &mut Noise, pool: &Pool) {
    struct Under {
        stream: lazaret_digests::Stream,
        content: Bytes,
        taken: usize,
        selection: Selection,
        gives_up_at: usize,
        longest_piece: usize,
    }
    let mut under_way: Vec<Under> = Vec::new();
    let mut ended = VecDeque::new();
    let mut to_come = 120;
    while to_come > 0 || !under_way.is_empty() {
        if to_come > 0 && noise.below(3) == 0 {
            to_come -= 1;
            let longest = [200, 5_000, 70_000, 400_000][noise.below(4)];
            let length = noise.below(longest);
            let mut flag = || noise.below(5) > 0;
            let selection = Selection { md5: flag(), sha1: flag(), sha256: flag(), sha512: flag() };
            under_way.push(Under {
                stream: pool.stream(selection),
                content: noise.bytes(length),
                taken: 0,
                selection,
                gives_up_at: if noise.below(8) == 0 { noise.below(length + 1) } else { usize::MAX },
                longest_piece: [1 + length / 50, 700, 40_000, 300_000][noise.below(4)],
            });
        }
        if under_way.is_empty() {
            continue;
        }
        let index = noise.below(under_way.len());
        let file = &mut under_way[index];
        if file.taken >= file.gives_up_at {
            // In the middle of it, or as its digests are computed.
            let file = under_way.swap_remove(index);
            if noise.below(2) == 0 { drop(file.stream) } else { drop(file.stream.end()) }
        } else if file.taken == file.content.len() {
            let file = under_way.swap_remove(index);
            ended.push_back((file.content, file.selection, file.stream.end()));
        } else {
            let length = (1 + noise.below(file.longest_piece)).min(file.content.len() - file.taken);
            file.stream.update_blocking(file.content.slice(file.taken..file.taken + length));
            file.taken += length;
        }
        if ended.len() > 40 {
            check(ended.pop_front().unwrap());
        }
    }
    ended.into_iter().for_each(check);
}

fn check((content, selection, pending): (Bytes, Selection, lazaret_digests::Pending)) {
    let mut expected = expected(&content);
    expected.md5 = expected.md5.filter(|_| selection.md5);
    expected.sha1 = expected.sha1.filter(|_| selection.sha1);
    expected.sha256 = expected.sha256.filter(|_| selection.sha256);
    expected.sha512 = expected.sha512.filter(|_| selection.sha512);
    assert_eq!(pending.wait().unwrap(), expected, "{} bytes", content.len());
}

#[test]
fn random_files_in_random_pieces_by_every_path() {
    let mut noise = Noise::seeded();
    for path in paths() {
        turns(&mut noise, &pool(1, Some(path)));
    }
}

#[test]
fn random_files_in_random_pieces_on_several_threads() {
    let mut noise = Noise::seeded();
    let pool = pool(3, None);
    for _ in 0..3 {
        turns(&mut noise, &pool);
    }
}

/// Random files for as long as `LAZARET_SOAK_SECONDS` says, a new seed each round, every path in turn.
#[test]
#[ignore = "runs as long as it is told to"]
fn soak() {
    let seconds = std::env::var("LAZARET_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(60);
    let began = std::time::Instant::now();
    let pools: Vec<Pool> = paths().into_iter().map(|path| pool(2, Some(path))).chain([pool(3, None)]).collect();
    let mut rounds = 0;
    while began.elapsed().as_secs() < seconds {
        let mut noise = Noise::seeded();
        pools.iter().for_each(|pool| turns(&mut noise, pool));
        rounds += 1;
    }
    eprintln!("{rounds} rounds of 120 files by each of {} pools", pools.len());
}

#[test]
fn several_owners_on_threads_of_their_own_and_little_room() {
    let pool = Pool::new(Settings { queued_bytes_max: 100_000, ..Settings::default() }).unwrap();
    let mut noise = Noise::seeded();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (mut noise, pool) = (Noise(noise.next() | 1), pool.clone());
            scope.spawn(move || turns(&mut noise, &pool));
        }
    });
}

#[test]
fn a_path_that_lacks_a_digest_or_a_machine_that_lacks_a_path_is_no_error() {
    for path in Path::ALL {
        for digest in Digest::ALL {
            assert_eq!(digest.time(path, 3, 1, 1).is_some(), digest.lanes(path).is_some());
        }
        assert_eq!(Set::by(path, Selection::ALL).finish(), expected(b""));
    }
}
