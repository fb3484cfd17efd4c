//! BLAKE3's tree of one file under way (the BLAKE3 paper, 2.1), and what is done with the trees of many files at once.
//!
//! Chunks of 1 KiB don't wait for each other, nor do parents on one level, so they fill the lanes whether they are of one
//! file or of many: a file of 27 KB leaves no lane empty as long as there are others.
//!
//! Invariants: the last chunk that is known, whole or not, stays in [`Lanes::last`] until more bytes come or the file ends,
//! because the top of the tree is compressed otherwise than the rest. All chunks before it are merged as far as they fill
//! subtrees of a power of two.
//!
//! A file alone goes by the `blake3` crate, which is quicker with what fills no lanes. So does every file on a machine on
//! which no path takes several side by side: the crate knows instructions that are not known here.

use arrayvec::ArrayVec;

use crate::kernels::blake3::{BLOCK_BYTES, CHUNK_END, CHUNK_START, Node, ROOT};
use crate::kernels::{Algorithm, Blake3, Lane};
use crate::plan::{Choice, LANES_MAX};

const CHUNK_BYTES: usize = 1024;
/// Subtrees of 2^53 chunks are the largest below a root of 2^64 bytes.
const LEVELS: usize = 54;

/// The most trees at once: a thread's lanes, and the files that wait to be closed.
const TREES_MAX: usize = 3 * LANES_MAX;

/// One file's tree. A file is boxed, and in one process nearly all are of one kind, so the difference in size is no loss.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Tree {
    Lanes(Lanes),
    Crate(blake3::Hasher),
}

/// A tree whose nodes are compressed beside those of others.
pub(crate) struct Lanes {
    /// Chaining values of whole subtrees: one of 2^n chunks at index n for each bit n of `chunks` that is set.
    subtrees: [[u8; 32]; LEVELS],
    /// Chunks that are in `subtrees`.
    chunks: u64,
    /// The last chunk that is known, as far as it is.
    last: [u8; CHUNK_BYTES],
    last_bytes: usize,
    /// The digest, once closed.
    root: [u8; 32],
}

/// A tree and its file's next bytes.
pub(crate) struct Part<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) bytes: &'a [u8],
    /// More bytes of the file are certain to come, so that a whole last chunk need not be kept.
    pub(crate) more: bool,
}

impl Tree {
    /// The tree of an empty file.
    pub(crate) fn new(choice: &Choice) -> Self {
        match choice.path(LANES_MAX) {
            path if Blake3::lanes(path).is_some_and(|lanes| lanes > 1) => Self::Lanes(Lanes {
                subtrees: [[0; 32]; LEVELS],
                chunks: 0,
                last: [0; CHUNK_BYTES],
                last_bytes: 0,
                root: [0; 32],
            }),
            _ => Self::alone(),
        }
    }

    /// The tree of an empty file that has no company.
    pub(crate) fn alone() -> Self {
        Self::Crate(blake3::Hasher::new())
    }

    /// Makes it the tree of an empty file again.
    pub(crate) fn begin(&mut self) {
        match self {
            Self::Lanes(lanes) => (lanes.chunks, lanes.last_bytes) = (0, 0),
            Self::Crate(hasher) => {
                hasher.reset();
            }
        }
    }

    /// How many of the bytes at hand to take next, if at least `least`: up to a chunk's end, or all.
    pub(crate) fn reach(&self, least: usize, at_hand: usize) -> usize {
        match self {
            Self::Lanes(Lanes { last_bytes, .. }) => {
                at_hand.min((last_bytes + least).next_multiple_of(CHUNK_BYTES) - last_bytes)
            }
            Self::Crate(_) => at_hand.min(least),
        }
    }

    /// The digest of a closed tree.
    pub(crate) fn root(&self) -> [u8; 32] {
        match self {
            Self::Lanes(lanes) => lanes.root,
            Self::Crate(hasher) => *hasher.finalize().as_bytes(),
        }
    }
}

/// Compresses nodes, of whatever trees, in as few passes as they fill.
fn run<'a>(choice: &Choice, mut lanes: impl Iterator<Item = Lane<'a, Node>>) {
    loop {
        let mut group: ArrayVec<_, LANES_MAX> = lanes.by_ref().take(LANES_MAX).collect();
        if group.is_empty() {
            break;
        }
        Blake3::run(choice.path(group.len()), &mut group);
    }
}

/// A tree that takes bytes: what became of them so far.
struct Taking<'a> {
    tree: &'a mut Lanes,
    /// The bytes that did not fill up the last chunk.
    bytes: &'a [u8],
    /// The last chunk is whole and not the file's last.
    completes: bool,
    /// Whole chunks of `bytes` behind it.
    chunks: usize,
    /// Chaining values that come to the level under work.
    values: usize,
}

impl<'a> Taking<'a> {
    fn new(tree: &'a mut Lanes, bytes: &'a [u8], more: bool) -> Self {
        // An empty last chunk takes nothing: whole ones need not be copied.
        let missing = if tree.last_bytes == 0 { 0 } else { CHUNK_BYTES - tree.last_bytes };
        let (filling, bytes) = bytes.split_at(missing.min(bytes.len()));
        tree.keep(filling);
        let completes = tree.last_bytes == CHUNK_BYTES && (more || !bytes.is_empty());
        let chunks = if more { bytes.len() } else { bytes.len().saturating_sub(1) } / CHUNK_BYTES;
        Self { tree, bytes, completes, chunks, values: chunks + usize::from(completes) }
    }

    /// The chunks to compress, in order.
    fn blocks(&self) -> impl Iterator<Item = &[u8]> {
        let last = self.completes.then_some(&self.tree.last[..]);
        last.into_iter().chain(self.bytes.chunks_exact(CHUNK_BYTES).take(self.chunks))
    }

    /// Keeps what is left, once the chunks are compressed.
    fn keep_rest(&mut self) {
        if self.completes {
            self.tree.last_bytes = 0;
        }
        self.tree.keep(self.bytes.get(self.chunks * CHUNK_BYTES..).unwrap_or_default());
    }
}

impl Lanes {
    /// Appends bytes to the last chunk, which has room for them.
    fn keep(&mut self, bytes: &[u8]) {
        let end = self.last_bytes + bytes.len();
        debug_assert!(end <= CHUNK_BYTES);
        if let Some(room) = self.last.get_mut(self.last_bytes..end) {
            room.copy_from_slice(bytes);
            self.last_bytes = end;
        }
    }

    fn has_subtree(&self, level: usize) -> bool {
        self.chunks >> level & 1 == 1
    }
}

/// Takes each tree's next bytes.
pub(crate) fn advance<'a>(choice: &Choice, mut parts: impl Iterator<Item = Part<'a>>) {
    loop {
        let mut more = false;
        let mut takings: ArrayVec<Taking<'_>, TREES_MAX> = ArrayVec::new();
        for Part { tree, bytes, more: file_goes_on } in parts.by_ref().take(TREES_MAX) {
            more = true;
            match tree {
                Tree::Lanes(tree) => takings.push(Taking::new(tree, bytes, file_goes_on)),
                Tree::Crate(hasher) => {
                    hasher.update(bytes);
                }
            }
        }
        if !more {
            break;
        }
        let mut nodes = Vec::with_capacity(takings.iter().map(|taking| taking.values).sum());
        for taking in &takings {
            nodes.extend((taking.tree.chunks..).take(taking.values).map(Node::chunk));
        }
        let blocks = takings.iter().flat_map(Taking::blocks);
        run(choice, nodes.iter_mut().zip(blocks).map(|(state, bytes)| Lane { state, bytes }));
        takings.iter_mut().for_each(Taking::keep_rest);
        merge(choice, &mut takings, nodes);
    }
}

/// Merges new chunks, of all trees level by level, into the subtrees that are there. It is an addition: a level with a
/// value left over is a bit of the sum, and its pairs are carried.
fn merge(choice: &Choice, takings: &mut [Taking<'_>], mut nodes: Vec<Node>) {
    let sums: ArrayVec<u64, TREES_MAX> =
        takings.iter().map(|taking| taking.tree.chunks + taking.values as u64).collect();
    let mut values: Vec<[u8; 32]> = Vec::with_capacity(nodes.len() + takings.len());
    for level in 0..LEVELS {
        if nodes.is_empty() {
            break;
        }
        values.clear();
        let mut new = nodes.iter().map(Node::bytes);
        for taking in &mut *takings {
            if taking.values == 0 {
                continue;
            }
            let begin = values.len();
            if taking.tree.has_subtree(level) {
                values.extend(taking.tree.subtrees.get(level));
            }
            values.extend(new.by_ref().take(taking.values));
            let count = values.len() - begin;
            if count % 2 == 1
                && let (Some(subtree), Some(value)) = (taking.tree.subtrees.get_mut(level), values.pop())
            {
                *subtree = value;
            }
            taking.values = count / 2;
        }
        drop(new);
        nodes.clear();
        nodes.resize(values.len() / 2, Node::PARENT);
        let pairs = values.as_flattened().chunks_exact(BLOCK_BYTES);
        run(choice, nodes.iter_mut().zip(pairs).map(|(state, bytes)| Lane { state, bytes }));
    }
    for (taking, sum) in takings.iter_mut().zip(sums) {
        taking.tree.chunks = sum;
    }
}

/// A tree at its end: the node on its right edge.
struct Closing<'a> {
    tree: &'a mut Lanes,
    node: Node,
    /// Blocks of the last chunk.
    blocks: usize,
    /// The subtrees that are still to be merged, as bits.
    left: u64,
    pair: [[u8; 32]; 2],
}

impl<'a> Closing<'a> {
    fn new(tree: &'a mut Lanes) -> Self {
        tree.last.iter_mut().skip(tree.last_bytes).for_each(|byte| *byte = 0);
        let (node, left) = (Node::chunk(tree.chunks), tree.chunks);
        Self { blocks: tree.last_bytes.div_ceil(BLOCK_BYTES).max(1), tree, node, left, pair: [[0; 32]; 2] }
    }

    /// The last chunk's block of this number.
    fn block(&mut self, number: usize) -> Option<Lane<'_, Node>> {
        let ends = number + 1 == self.blocks;
        if number >= self.blocks {
            return None;
        }
        let root = if self.left == 0 { ROOT } else { 0 };
        self.node.first = if number == 0 { CHUNK_START } else { 0 };
        self.node.last = if ends { CHUNK_END | root } else { 0 };
        let before = number * BLOCK_BYTES;
        self.node.last_bytes = if ends { self.tree.last_bytes.saturating_sub(before) } else { BLOCK_BYTES } as u32;
        let bytes = self.tree.last.get(before..before + BLOCK_BYTES)?;
        Some(Lane { state: &mut self.node, bytes })
    }

    /// The next parent up the right edge.
    fn parent(&mut self) -> Option<Lane<'_, Node>> {
        // The bits that are set, from the lowest.
        let subtree = self.tree.subtrees.get(self.left.trailing_zeros() as usize)?;
        self.left &= self.left.wrapping_sub(1);
        self.pair = [*subtree, self.node.bytes()];
        self.node = Node { last: if self.left == 0 { ROOT } else { 0 }, ..Node::PARENT };
        Some(Lane { state: &mut self.node, bytes: self.pair.as_flattened() })
    }
}

/// Closes trees, which have their digests from then on and take nothing more.
pub(crate) fn close<'a>(choice: &Choice, trees: impl Iterator<Item = &'a mut Tree>) {
    let mut lanes = trees.filter_map(|tree| if let Tree::Lanes(lanes) = tree { Some(lanes) } else { None });
    loop {
        let mut closings: ArrayVec<_, TREES_MAX> = lanes.by_ref().take(TREES_MAX).map(Closing::new).collect();
        let Some(blocks) = closings.iter().map(|closing| closing.blocks).max() else { break };
        for number in 0..blocks {
            run(choice, closings.iter_mut().filter_map(|closing| closing.block(number)));
        }
        while closings.iter().any(|closing| closing.left != 0) {
            run(choice, closings.iter_mut().filter_map(Closing::parent));
        }
        for closing in closings {
            closing.tree.root = closing.node.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Path;
    use crate::plan::Plan;

    /// Lengths around chunks, full lanes and powers of two.
    const LENGTHS: [usize; 22] = [
        0, 1, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 4097, 8192, 15_360, 16_384, 16_385, 31_745, 32_768,
        65_535, 65_536, 131_073,
    ];

    fn content() -> Vec<u8> {
        (0..200_000_u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
    }

    fn choices() -> impl Iterator<Item = Choice> {
        let forced = Path::ALL.into_iter().filter(|path| path.is_available()).map(Plan::forced);
        forced.chain([*Plan::fastest()]).map(|plan| plan.blake3)
    }

    /// All trees take turns in pieces of about `piece` bytes; `reach` lets them end where chunks do.
    fn check(choice: &Choice, piece: usize, reach: bool) {
        let content = content();
        let mut trees: Vec<Tree> = LENGTHS.iter().map(|_| Tree::new(choice)).collect();
        // Twice, so that trees that were used before are tried too.
        for _ in 0..2 {
            let mut taken = [0; LENGTHS.len()];
            while taken != LENGTHS {
                let next = trees.iter_mut().zip(&mut taken).zip(LENGTHS).filter_map(|((tree, taken), length)| {
                    let at_hand = content.get(*taken..length).filter(|bytes| !bytes.is_empty())?;
                    let least = piece.min(at_hand.len());
                    let bytes = if reach { tree.reach(least, at_hand.len()) } else { least };
                    *taken += bytes;
                    Some(Part { tree, bytes: &at_hand[..bytes], more: reach && bytes < at_hand.len() })
                });
                advance(choice, next);
            }
            close(choice, trees.iter_mut());
            for (tree, length) in trees.iter_mut().zip(LENGTHS) {
                assert_eq!(tree.root(), *blake3::hash(&content[..length]).as_bytes(), "{length} bytes by {piece}");
                tree.begin();
            }
        }
    }

    #[test]
    fn trees_of_all_sizes_side_by_side_are_those_of_the_crate() {
        for choice in choices() {
            for piece in [1, 100, 1000, 1024, 5000, 16_384, 200_000] {
                // Byte by byte takes long, and is the same work for every path.
                if piece > 1 || choice == Plan::fastest().blake3 {
                    check(&choice, piece, false);
                }
                check(&choice, piece, true);
            }
        }
    }

    #[test]
    fn more_trees_than_go_at_once() {
        let content = content();
        for choice in choices() {
            let lengths = || (0..3 * TREES_MAX).map(|i| i * 977);
            let mut trees: Vec<Tree> = lengths().map(|_| Tree::new(&choice)).collect();
            let parts = trees.iter_mut().zip(lengths());
            advance(&choice, parts.map(|(tree, length)| Part { tree, bytes: &content[..length], more: false }));
            close(&choice, trees.iter_mut());
            for (tree, length) in trees.iter().zip(lengths()) {
                assert_eq!(tree.root(), *blake3::hash(&content[..length]).as_bytes(), "{length} bytes");
            }
        }
    }
}
