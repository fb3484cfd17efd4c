//! The BLAKE3 tree of a blob ("outboard"), by which any range of it verifies against its 32-byte name alone.
//!
//! Groups are 64 KiB; the tree holds 64 bytes for each inner node above them, in post-order, and nothing for a blob of one
//! group. A range travels as its bao encoding: inner nodes and groups in pre-order. Requested ranges are rounded to groups
//! and the last group always comes along, since it proves the length.
//!
//! Invariants: nothing here panics on what a peer or a disk supplies; lengths are checked against
//! [`BLOB_BYTES_MAX`] before any tree is laid over them.

use std::io;

use bao_tree::blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use bao_tree::io::outboard::PostOrderOutboard;
pub use bao_tree::io::sync::ReadAt;
use bao_tree::iter::{BaoChunk, ResponseIter};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};

use crate::limits::{BLOB_BYTES_MAX, GROUP_BYTES, GROUP_CHUNKS_LOG2};
use crate::message::ByteRange;
use crate::name::BlobName;

const BLOCK_SIZE: BlockSize = BlockSize::from_chunk_log(GROUP_CHUNKS_LOG2);
/// Bytes of one inner node: the hashes of its two children.
pub const PAIR_BYTES: usize = 64;

/// Why bytes do not verify, or a range cannot be asked for.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A length no blob has.
    #[error("length {0} is over the limit of {BLOB_BYTES_MAX} bytes")]
    Length(u64),
    /// `start` past `end`.
    #[error("range {start}-{end} is backwards")]
    Range {
        /// The first byte asked for.
        start: u64,
        /// The byte after the last one.
        end: u64,
    },
    /// Content or tree do not hash to the name.
    #[error("does not verify against {name} at byte {offset}")]
    Mismatch {
        /// The blob.
        name: BlobName,
        /// Where verification failed.
        offset: u64,
    },
    /// The caller handed over another number of bytes than [`Decoder::needed`] said.
    #[error("expected {expected} bytes, got {got}")]
    ItemLength {
        /// What was needed.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// Reading content or tree, or writing the encoding, failed.
    #[error("reading or writing: {0}")]
    Io(#[from] io::Error),
}

/// Bytes the tree of a blob of `length` bytes takes.
pub fn tree_bytes(length: u64) -> u64 {
    (length.div_ceil(GROUP_BYTES as u64).max(1) - 1) * PAIR_BYTES as u64
}

/// Builds a blob's tree and name from its content as it arrives, in pieces of any length.
pub struct TreeBuilder {
    /// Bytes of the group not yet hashed; never empty once anything was pushed, since only the last group may turn out to be
    /// the root.
    group: Vec<u8>,
    groups_hashed: u64,
    subtrees: Vec<ChainingValue>,
    pairs: Vec<u8>,
    length: u64,
}

impl Default for TreeBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl TreeBuilder {
    /// A builder that has seen nothing.
    pub fn new() -> Self {
        Self { group: Vec::new(), groups_hashed: 0, subtrees: Vec::new(), pairs: Vec::new(), length: 0 }
    }

    /// Bytes pushed so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes the next piece of content.
    pub fn push(&mut self, mut piece: &[u8]) {
        self.length += piece.len() as u64;
        while !piece.is_empty() {
            if self.group.is_empty() && piece.len() > GROUP_BYTES {
                let (group, rest) = piece.split_at(GROUP_BYTES);
                self.push_group(group);
                piece = rest;
                continue;
            }
            if self.group.len() == GROUP_BYTES {
                let group = std::mem::take(&mut self.group);
                self.push_group(&group);
                self.group = group;
                self.group.clear();
                continue;
            }
            let taken = piece.len().min(GROUP_BYTES - self.group.len());
            self.group.extend_from_slice(&piece[..taken]);
            piece = &piece[taken..];
        }
    }

    /// Inner nodes completed so far, removed from the builder. Whoever writes long trees takes them piece by piece;
    /// [`Self::finish`] returns the rest.
    pub fn take_pairs(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pairs)
    }

    /// The blob's name and the inner nodes not yet taken.
    pub fn finish(mut self) -> (BlobName, Vec<u8>) {
        if self.groups_hashed == 0 {
            return (BlobName::of(&self.group), self.pairs);
        }
        let mut right = chaining_value(self.groups_hashed, &self.group);
        while let Some(left) = self.subtrees.pop() {
            self.pairs.extend_from_slice(&left);
            self.pairs.extend_from_slice(&right);
            if self.subtrees.is_empty() {
                let root = merge_subtrees_root(&left, &right, Mode::Hash);
                return (BlobName(*root.as_bytes()), self.pairs);
            }
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        // groups_hashed > 0 leaves at least one subtree, so the loop has returned.
        (BlobName(right), self.pairs)
    }

    /// Hashes a full group that more content follows.
    fn push_group(&mut self, group: &[u8]) {
        debug_assert_eq!(group.len(), GROUP_BYTES);
        let mut subtree = chaining_value(self.groups_hashed, group);
        self.groups_hashed += 1;
        // As many subtrees are complete as the group count has trailing zeros.
        for _ in 0..self.groups_hashed.trailing_zeros() {
            let Some(left) = self.subtrees.pop() else { break };
            self.pairs.extend_from_slice(&left);
            self.pairs.extend_from_slice(&subtree);
            subtree = merge_subtrees_non_root(&left, &subtree, Mode::Hash);
        }
        self.subtrees.push(subtree);
    }
}

fn chaining_value(group_index: u64, group: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    // A multiple of the group length, so the alignment that `set_input_offset` asserts holds.
    hasher.set_input_offset(group_index * GROUP_BYTES as u64);
    hasher.update(group);
    hasher.finalize_non_root()
}

/// The groups that answer a request for `range` of a blob of `length` bytes.
fn answered_ranges(length: u64, range: Option<ByteRange>) -> Result<ChunkRanges, TreeError> {
    if length > BLOB_BYTES_MAX {
        return Err(TreeError::Length(length));
    }
    let Some(ByteRange { start, end }) = range else { return Ok(ChunkRanges::all()) };
    if start > end {
        return Err(TreeError::Range { start, end });
    }
    let group = GROUP_BYTES as u64;
    let chunk_of = |group_index: u64| ChunkNum(group_index << GROUP_CHUNKS_LOG2);
    let last_group = length.saturating_sub(1) / group;
    let mut ranges = ChunkRanges::from(chunk_of(last_group)..);
    let end = end.min(length);
    if start < end {
        ranges |= ChunkRanges::from(chunk_of(start / group)..chunk_of(end.div_ceil(group)));
    }
    Ok(ranges)
}

fn bao_tree_of(length: u64) -> BaoTree {
    BaoTree::new(length, BLOCK_SIZE)
}

/// Writes the bao encoding of `range` to `encoded`, verifying content and tree on the way: nothing that does not belong
/// to `name` is written.
pub fn encode(
    name: BlobName,
    length: u64,
    range: Option<ByteRange>,
    content: impl ReadAt,
    tree: impl ReadAt,
    mut encoded: impl io::Write,
) -> Result<(), TreeError> {
    use bao_tree::io::EncodeError;
    let ranges = answered_ranges(length, range)?;
    if length <= GROUP_BYTES as u64 {
        // One group, whatever the range, and no tree.
        let mut group = vec![0; length as usize];
        content.read_exact_at(0, &mut group)?;
        if blake3::hash(&group) != name.hash() {
            return Err(TreeError::Mismatch { name, offset: 0 });
        }
        return Ok(encoded.write_all(&group)?);
    }
    let outboard = PostOrderOutboard { root: name.hash(), tree: bao_tree_of(length), data: tree };
    bao_tree::io::sync::encode_ranges_validated(content, outboard, &ranges, encoded).map_err(|error| match error {
        EncodeError::ParentHashMismatch(node) => {
            TreeError::Mismatch { name, offset: node.chunk_range().start.to_bytes() }
        }
        EncodeError::LeafHashMismatch(chunk) => TreeError::Mismatch { name, offset: chunk.to_bytes() },
        EncodeError::Io(source) => TreeError::Io(source),
        other => TreeError::Io(io::Error::other(other.to_string())),
    })
}

/// Verifies the bao encoding of a range as it arrives. It is told the items' bytes one by one, so that it fits any
/// transport and holds nothing but the hashes still expected.
pub struct Decoder {
    name: BlobName,
    items: ResponseIter,
    expected: Vec<blake3::Hash>,
    current: Option<BaoChunk>,
}

impl Decoder {
    /// Expects the answer to a request for `range` of a blob said to have `length` bytes.
    pub fn new(name: BlobName, length: u64, range: Option<ByteRange>) -> Result<Self, TreeError> {
        let mut items = ResponseIter::new(bao_tree_of(length), answered_ranges(length, range)?);
        let current = items.next();
        Ok(Self { name, items, expected: vec![name.hash()], current })
    }

    /// The length of the next item; `None` once everything verified, the blob's length included.
    pub fn needed(&self) -> Option<usize> {
        match self.current.as_ref()? {
            BaoChunk::Parent { .. } => Some(PAIR_BYTES),
            BaoChunk::Leaf { size, .. } => Some(*size),
        }
    }

    /// Verifies the next item. Content returns its offset in the blob, an inner node returns `None`.
    pub fn push(&mut self, item: &[u8]) -> Result<Option<u64>, TreeError> {
        let needed = self.needed().unwrap_or(0);
        if item.len() != needed {
            return Err(TreeError::ItemLength { expected: needed, got: item.len() });
        }
        let Some(chunk) = self.current.take() else { return Ok(None) };
        let offset = match chunk {
            BaoChunk::Parent { is_root, left, right, node, .. } => {
                let (left_hash, right_hash) = (hash_at(item, 0), hash_at(item, 32));
                let actual = parent_hash(&left_hash, &right_hash, is_root);
                self.check(actual, node.chunk_range().start.to_bytes())?;
                if right {
                    self.expected.push(right_hash);
                }
                if left {
                    self.expected.push(left_hash);
                }
                None
            }
            BaoChunk::Leaf { is_root, start_chunk, .. } => {
                let start = start_chunk.to_bytes();
                let actual = if is_root {
                    blake3::hash(item)
                } else {
                    blake3::Hash::from_bytes(chaining_value(start / GROUP_BYTES as u64, item))
                };
                self.check(actual, start)?;
                Some(start)
            }
        };
        self.current = self.items.next();
        Ok(offset)
    }

    fn check(&mut self, actual: blake3::Hash, offset: u64) -> Result<(), TreeError> {
        if self.expected.pop() == Some(actual) { Ok(()) } else { Err(TreeError::Mismatch { name: self.name, offset }) }
    }
}

fn hash_at(item: &[u8], at: usize) -> blake3::Hash {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(&item[at..at + 32]);
    blake3::Hash::from_bytes(bytes)
}

fn parent_hash(left: &blake3::Hash, right: &blake3::Hash, is_root: bool) -> blake3::Hash {
    if is_root {
        merge_subtrees_root(left.as_bytes(), right.as_bytes(), Mode::Hash)
    } else {
        blake3::Hash::from_bytes(merge_subtrees_non_root(left.as_bytes(), right.as_bytes(), Mode::Hash))
    }
}

#[cfg(test)]
mod tests {
    use bao_tree::io::outboard::PostOrderMemOutboard;

    use super::*;
    use crate::limits::{HELD_BYTES_MAX, KIB, MIB};

    fn content(length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        blake3::Hasher::new().update(&length.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn lengths() -> Vec<u64> {
        let mut lengths = vec![0, 1, KIB - 1, KIB, KIB + 1, 3 * HELD_BYTES_MAX as u64 + 7];
        for around in [1, 2, 3, 4, 5, 7, 8, 9].map(|groups| groups * 64 * KIB).into_iter().chain([MIB, 4 * MIB]) {
            lengths.extend([around - 1, around, around + 1]);
        }
        lengths
    }

    fn built(bytes: &[u8], piece: usize) -> (BlobName, Vec<u8>) {
        let mut builder = TreeBuilder::new();
        let mut pairs = Vec::new();
        for piece in bytes.chunks(piece) {
            builder.push(piece);
            pairs.extend(builder.take_pairs());
        }
        let (name, rest) = builder.finish();
        pairs.extend(rest);
        (name, pairs)
    }

    #[test]
    fn built_trees_are_those_of_the_bao_tree_crate() {
        for length in lengths() {
            let bytes = content(length);
            let reference = PostOrderMemOutboard::create(&bytes, BLOCK_SIZE);
            for piece in [1 << 20, GROUP_BYTES, GROUP_BYTES + 1, 10_007] {
                let (name, pairs) = built(&bytes, piece);
                assert_eq!(name.hash(), blake3::hash(&bytes), "{length} in pieces of {piece}");
                assert_eq!(pairs, reference.data, "{length} in pieces of {piece}");
                assert_eq!(pairs.len() as u64, tree_bytes(length));
            }
        }
    }

    fn decode(
        name: BlobName,
        length: u64,
        range: Option<ByteRange>,
        encoded: &[u8],
    ) -> Result<Vec<(u64, Vec<u8>)>, TreeError> {
        let mut decoder = Decoder::new(name, length, range)?;
        let mut rest = encoded;
        let mut leaves = Vec::new();
        while let Some(needed) = decoder.needed() {
            let (item, after) = rest.split_at_checked(needed).unwrap_or((rest, &[]));
            if let Some(offset) = decoder.push(item)? {
                leaves.push((offset, item.to_vec()));
            }
            rest = after;
        }
        assert!(rest.is_empty(), "the encoding is longer than the decoder expects");
        Ok(leaves)
    }

    #[test]
    fn ranges_verify_and_a_flipped_bit_or_a_false_length_does_not() {
        for length in lengths() {
            let bytes = content(length);
            let (name, pairs) = built(&bytes, 1 << 20);
            let ranges = [
                (0, length),
                (0, 1),
                (length / 2, length / 2 + 70_000),
                (length, length + 5),
                (length / 3, length / 3),
            ];
            for range in [None].into_iter().chain(ranges.map(|(start, end)| Some(ByteRange { start, end }))) {
                let mut encoded = Vec::new();
                encode(name, length, range, &bytes[..], &pairs[..], &mut encoded).unwrap();
                let leaves = decode(name, length, range, &encoded).unwrap();
                let wanted = range.unwrap_or(ByteRange { start: 0, end: length });
                for at in [wanted.start, wanted.end.saturating_sub(1)]
                    .into_iter()
                    .filter(|&at| at < length && wanted.start < wanted.end)
                {
                    assert!(
                        leaves.iter().any(|(start, leaf)| (*start..start + leaf.len() as u64).contains(&at)),
                        "{length} {range:?} {at}"
                    );
                }
                for (start, leaf) in &leaves {
                    assert_eq!(leaf[..], bytes[*start as usize..][..leaf.len()]);
                }
                for flipped in [0, encoded.len() / 2, encoded.len().saturating_sub(1)] {
                    let mut damaged = encoded.clone();
                    if let Some(byte) = damaged.get_mut(flipped) {
                        *byte ^= 1;
                        assert!(decode(name, length, range, &damaged).is_err());
                    }
                }
                for false_length in [length + 1, length.wrapping_sub(1), length + 65_536, BLOB_BYTES_MAX + 1] {
                    let believed = std::panic::catch_unwind(|| decode(name, false_length, range, &encoded));
                    assert!(!matches!(believed, Ok(Ok(_))), "{length} passed as {false_length}, {range:?}");
                }
            }
        }
    }

    #[test]
    fn damaged_content_is_never_encoded() {
        let bytes = content(300_000);
        let (name, pairs) = built(&bytes, 1 << 20);
        let mut damaged = bytes.clone();
        damaged[200_000] ^= 0x10;
        let error = encode(name, 300_000, None, &damaged[..], &pairs[..], io::sink()).unwrap_err();
        assert!(matches!(error, TreeError::Mismatch { offset: 196_608, .. }), "{error}");
        let mut damaged_tree = pairs.clone();
        damaged_tree[70] ^= 1;
        assert!(encode(name, 300_000, None, &bytes[..], &damaged_tree[..], io::sink()).is_err());
        let short = encode(name, 300_000, None, &bytes[..299_000], &pairs[..], io::sink());
        assert!(matches!(short, Err(TreeError::Io(_))), "{short:?}");
    }
}
