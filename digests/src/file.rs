//! One file's digests under way, and the things that are done with many files at once: mixing whole blocks into their
//! states, taking BLAKE3 as far, and closing them.
//!
//! Invariant: a file's bytes come in order, in runs of whole [`BLOCK_BYTES`] (the longest block of the four digests, and a
//! multiple of the others), and what is left over comes with its end. Nothing is buffered here
//! but BLAKE3's last chunk.

use arrayvec::ArrayVec;

use crate::kernels::{Algorithm, Lane, Md5, Md5Sha1, Sha1, Sha256, Sha512};
use crate::plan::{Choice, LANES_MAX, Plan};
use crate::tree::{self, Tree};
use crate::{Digests, Selection};

/// The unit in which files advance: SHA-512's block, two blocks of each of the others.
pub(crate) const BLOCK_BYTES: usize = 128;
/// What is left of a file after its last whole unit, padding and length: at most two units.
const PADDED_BYTES_MAX: usize = 2 * BLOCK_BYTES;

/// The states of one file's digests.
pub(crate) struct File {
    selection: Selection,
    blake3: Tree,
    /// MD5's four words and SHA-1's five, so that they can be advanced together.
    md5_sha1: [u32; 9],
    sha256: [u32; 8],
    sha512: [u64; 8],
    length: u64,
}

impl File {
    /// An empty file, to be digested beside others.
    pub(crate) fn new(plan: &Plan, selection: Selection) -> Self {
        Self::with(Tree::new(&plan.blake3), selection)
    }

    /// An empty file that has no company.
    pub(crate) fn alone(selection: Selection) -> Self {
        Self::with(Tree::alone(), selection)
    }

    /// What is wanted of it.
    pub(crate) fn selection(&self) -> Selection {
        self.selection
    }

    fn with(blake3: Tree, selection: Selection) -> Self {
        Self { selection, blake3, md5_sha1: Md5Sha1::START, sha256: Sha256::START, sha512: Sha512::START, length: 0 }
    }

    /// Makes it an empty file again.
    pub(crate) fn begin(&mut self, selection: Selection) {
        self.selection = selection;
        self.blake3.begin();
        self.md5_sha1 = Md5Sha1::START;
        self.sha256 = Sha256::START;
        self.sha512 = Sha512::START;
        self.length = 0;
    }

    /// How many of the bytes at hand BLAKE3 best takes if it takes this many at least: to a chunk's end.
    pub(crate) fn reach(&self, least: usize, at_hand: usize) -> usize {
        self.blake3.reach(least, at_hand)
    }

    fn md5(&mut self) -> Option<&mut [u32; 4]> {
        self.md5_sha1.first_chunk_mut().filter(|_| self.selection.md5)
    }

    fn sha1(&mut self) -> Option<&mut [u32; 5]> {
        self.md5_sha1.last_chunk_mut().filter(|_| self.selection.sha1)
    }

    fn wants_both(&self) -> bool {
        self.selection.md5 && self.selection.sha1
    }

    /// The digests of a closed file.
    pub(crate) fn digests(&self) -> Digests {
        let Selection { md5, sha1, sha256, sha512 } = self.selection;
        Digests {
            blake3: self.blake3.root(),
            md5: self.md5_sha1.first_chunk::<4>().filter(|_| md5).map(|words| bytes(words.map(u32::to_le_bytes))),
            sha1: self.md5_sha1.last_chunk::<5>().filter(|_| sha1).map(|words| bytes(words.map(u32::to_be_bytes))),
            sha256: sha256.then(|| bytes(self.sha256.map(u32::to_be_bytes))),
            sha512: sha512.then(|| bytes(self.sha512.map(u64::to_be_bytes))),
        }
    }
}

/// The bytes of words.
fn bytes<const WORD: usize, const WORDS: usize, const BYTES: usize>(words: [[u8; WORD]; WORDS]) -> [u8; BYTES] {
    const { assert!(WORD * WORDS == BYTES) };
    let mut bytes = [0; BYTES];
    bytes.copy_from_slice(words.as_flattened());
    bytes
}

/// A file and its next bytes for BLAKE3, of any length.
pub(crate) struct Run<'a> {
    pub(crate) file: &'a mut File,
    pub(crate) bytes: &'a [u8],
    /// Whether more bytes are certain to come.
    pub(crate) more: bool,
}

/// Takes each file's next bytes into BLAKE3, which need not keep pace with the others.
pub(crate) fn advance_blake3<'a>(plan: &Plan, parts: impl Iterator<Item = Run<'a>>) {
    let parts = parts.map(|Run { file, bytes, more }| tree::Part { tree: &mut file.blake3, bytes, more });
    tree::advance(&plan.blake3, parts);
}

/// A file and its next whole units.
pub(crate) struct Part<'a> {
    pub(crate) file: &'a mut File,
    pub(crate) bytes: &'a [u8],
}

/// Mixes equally many units of each file into its states, all but BLAKE3's.
pub(crate) fn advance(plan: &Plan, parts: &mut [Part<'_>]) {
    for part in &mut *parts {
        debug_assert!(part.bytes.len().is_multiple_of(BLOCK_BYTES));
        part.file.length += part.bytes.len() as u64;
    }
    let together = plan.together(parts.iter().filter(|part| part.file.wants_both()).count());
    let apart = |file: &File| !(together && file.wants_both());
    if together {
        run::<Md5Sha1, _>(&plan.md5_sha1, parts, |part| {
            part.file.wants_both().then_some((&mut part.file.md5_sha1, part.bytes))
        });
    }
    run::<Md5, _>(&plan.md5, parts, |part| apart(part.file).then(|| part.file.md5())?.map(|state| (state, part.bytes)));
    run::<Sha1, _>(&plan.sha1, parts, |part| {
        apart(part.file).then(|| part.file.sha1())?.map(|state| (state, part.bytes))
    });
    run::<Sha256, _>(&plan.sha256, parts, |part| {
        part.file.selection.sha256.then_some((&mut part.file.sha256, part.bytes))
    });
    run::<Sha512, _>(&plan.sha512, parts, |part| {
        part.file.selection.sha512.then_some((&mut part.file.sha512, part.bytes))
    });
}

/// Runs one digest over those of `parts` that want it.
fn run<A: Algorithm, P>(
    choice: &Choice,
    parts: &mut [P],
    lane: impl for<'p> Fn(&'p mut P) -> Option<(&'p mut A::State, &'p [u8])>,
) {
    for parts in parts.chunks_mut(LANES_MAX) {
        let lanes = parts.iter_mut().filter_map(&lane).map(|(state, bytes)| Lane { state, bytes });
        let mut lanes: ArrayVec<_, LANES_MAX> = lanes.collect();
        if !lanes.is_empty() {
            A::run(choice.path(lanes.len()), &mut lanes);
        }
    }
}

/// A file and what is left of it after its last whole unit.
pub(crate) struct Ending<'a> {
    pub(crate) file: &'a mut File,
    pub(crate) rest: &'a [u8],
}

/// Takes a file's next whole units into all of its digests.
pub(crate) fn advance_one(plan: &Plan, file: &mut File, bytes: &[u8]) {
    advance_blake3(plan, std::iter::once(Run { file, bytes, more: false }));
    advance(plan, &mut [Part { file, bytes }]);
}

/// Pads and closes one file.
pub(crate) fn close_one(plan: &Plan, file: &mut File, rest: &[u8]) -> Digests {
    close(plan, &mut [Ending { file, rest }]);
    file.digests()
}

/// Pads and closes files, which have their digests from then on and take nothing more.
pub(crate) fn close(plan: &Plan, endings: &mut [Ending<'_>]) {
    for ending in &mut *endings {
        debug_assert!(ending.rest.len() < BLOCK_BYTES);
        ending.file.length += ending.rest.len() as u64;
    }
    advance_blake3(plan, endings.iter_mut().map(|Ending { file, rest }| Run { file, bytes: rest, more: false }));
    tree::close(&plan.blake3, endings.iter_mut().map(|ending| &mut ending.file.blake3));
    close_digest::<Md5, 8>(&plan.md5, endings, u64::to_le_bytes, File::md5);
    close_digest::<Sha1, 8>(&plan.sha1, endings, u64::to_be_bytes, File::sha1);
    close_digest::<Sha256, 8>(&plan.sha256, endings, u64::to_be_bytes, |file| {
        file.selection.sha256.then_some(&mut file.sha256)
    });
    let long = |bits: u64| u128::from(bits).to_be_bytes();
    close_digest::<Sha512, 16>(&plan.sha512, endings, long, |file| file.selection.sha512.then_some(&mut file.sha512));
}

/// A file's last blocks: what was left, a one bit, zeros, the length in bits.
struct Padded<'a, S> {
    state: &'a mut S,
    bytes: [u8; PADDED_BYTES_MAX],
    blocks: usize,
}

/// Closes one digest of all the files that want it, a block of each at a time; files with fewer last blocks than others
/// leave earlier.
fn close_digest<A: Algorithm, const LENGTH_BYTES: usize>(
    choice: &Choice,
    endings: &mut [Ending<'_>],
    length_bytes: impl Fn(u64) -> [u8; LENGTH_BYTES],
    state: impl for<'f> Fn(&'f mut File) -> Option<&'f mut A::State>,
) {
    for endings in endings.chunks_mut(LANES_MAX) {
        let mut padded: ArrayVec<Padded<'_, A::State>, LANES_MAX> = ArrayVec::new();
        for Ending { file, rest } in endings {
            let length = length_bytes(file.length.wrapping_mul(8));
            let Some(state) = state(file) else { continue };
            let blocks = (rest.len() + 1 + LENGTH_BYTES).div_ceil(A::BLOCK_BYTES);
            let mut bytes = [0; PADDED_BYTES_MAX];
            if let Some((to, [one, ..])) = bytes.split_at_mut_checked(rest.len()) {
                to.copy_from_slice(rest);
                *one = 0x80;
            }
            if let Some(end) = bytes.get_mut(..blocks * A::BLOCK_BYTES).and_then(<[u8]>::last_chunk_mut) {
                *end = length;
            }
            padded.push(Padded { state, bytes, blocks });
        }
        for block in 0..padded.iter().map(|padded| padded.blocks).max().unwrap_or(0) {
            run::<A, _>(choice, &mut padded, |padded| {
                let bytes = padded.bytes.chunks_exact(A::BLOCK_BYTES).take(padded.blocks).nth(block)?;
                Some((&mut *padded.state, bytes))
            });
        }
    }
}
