//! The file systems of Linux: ext2, ext3 and ext4. Format: "ext4 Data Structures and Algorithms" of the Linux kernel's documentation.
//!
//! Files come out from extents, block maps and inodes that hold them. Links, devices, deleted files and extended attributes are left out; a file with
//! several names is handed out once. A journal that was not played back is not played back here either. Encrypted files are told.

use std::io;

use crate::container::ReadSeek;
use crate::fields::{array, invalid, le16, le32, unsupported};
use crate::file_systems::FileSystem;
use crate::format::{Format, whole_if};
use crate::outcome::Protection;
use crate::parts::{Out, cut_off, read_vec};
use crate::tree::{Folders, Pieces, join};

/// Where the superblock is, and how much of it is read.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: u64 = 512;
const MAGIC: u16 = 0xef53;
const ROOT_INODE: u32 = 2;
/// Blocks are 1 KiB shifted left by at most so much: 64 KiB.
const BLOCK_SHIFT_MAX: u32 = 6;
/// The longest inode that is read: as long as the longest block would be senseless.
const INODE_BYTES_MAX: u64 = 4096;
const INODE_BYTES_MIN: u64 = 128;
/// The longest directory: about a million names.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// Most blocks of one file's map, or of its extent tree, that are read: 64 Ki of them map 256 GiB in the worst case.
const MAP_BLOCKS_MAX: u32 = 1 << 16;
/// How deep an extent tree is at most: the kernel's own bound.
const EXTENT_DEPTH_MAX: u16 = 5;
const EXTENT_MAGIC: u16 = 0xf30a;
/// Extents from this length on are allocated and not yet written, so they read as zeros.
const EXTENT_WRITTEN_MAX: u16 = 32_768;

const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_COMPRESSION: u32 = 1;
const INCOMPAT_JOURNAL_DEVICE: u32 = 8;
const INCOMPAT_META_GROUPS: u32 = 0x10;
const INCOMPAT_64_BITS: u32 = 0x80;
const RO_COMPAT_SPARSE_SUPER: u32 = 1;

const INODE_ENCRYPTED: u32 = 0x800;
const INODE_EXTENTS: u32 = 0x8_0000;
const INODE_INLINE: u32 = 0x1000_0000;

/// ext2, ext3 and ext4.
pub(crate) static FORMAT: Format = Format {
    name: "ext",
    description: "ext2, ext3 or ext4 file system",
    mime: "application/x-ext-image",
    extension: "img",
    category: "I",
    // A file system may leave its first kilobyte to a boot record.
    beside: &["disk"],
    probe: |probe| whole_if(is_one(probe.head)),
    extractor: &FILE_SYSTEM,
};

pub(crate) static FILE_SYSTEM: FileSystem =
    FileSystem { owns_first_sector: false, is_one, volume, broken: "the file system is broken" };

/// Whether a volume that begins like this is one.
fn is_one(head: &[u8]) -> bool {
    head.get(SUPERBLOCK_AT as usize..).is_some_and(|superblock| Layout::parse(superblock).is_some())
}

/// Where things are, from the superblock.
#[derive(Clone, Copy)]
struct Layout {
    block_bytes: u64,
    first_block: u64,
    blocks_per_group: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_bytes: u64,
    descriptor_bytes: u64,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    first_meta_group: u64,
}

impl Layout {
    /// None if it is no superblock.
    fn parse(superblock: &[u8]) -> Option<Self> {
        let shift = le32(superblock, 24)?;
        if le16(superblock, 56)? != MAGIC || shift > BLOCK_SHIFT_MAX {
            return None;
        }
        let block_bytes = 1024u64 << shift;
        let is_dynamic = le32(superblock, 76)? > 0;
        let feature = |at| if is_dynamic { le32(superblock, at) } else { Some(0) };
        let incompat = feature(96)?;
        let inode_bytes = if is_dynamic { u64::from(le16(superblock, 88)?) } else { INODE_BYTES_MIN };
        let descriptor_bytes = match incompat & INCOMPAT_64_BITS {
            0 => 32,
            _ => u64::from(le16(superblock, 254)?),
        };
        let layout = Self {
            block_bytes,
            first_block: u64::from(le32(superblock, 20)?),
            blocks_per_group: u64::from(le32(superblock, 32)?),
            inodes: le32(superblock, 0)?,
            inodes_per_group: le32(superblock, 40)?,
            inode_bytes,
            descriptor_bytes,
            compat: feature(92)?,
            incompat,
            ro_compat: feature(100)?,
            first_meta_group: u64::from(le32(superblock, 260)?),
        };
        let is_sane = layout.inodes_per_group > 0
            && layout.blocks_per_group > 0
            && layout.first_block <= 1
            && (INODE_BYTES_MIN..=INODE_BYTES_MAX).contains(&inode_bytes)
            && (32..=1024).contains(&descriptor_bytes);
        is_sane.then_some(layout)
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_superblock(&self, group: u64) -> bool {
        let is_power = |base: u64| {
            std::iter::successors(Some(1u64), |n| n.checked_mul(base)).take_while(|n| *n <= group).any(|n| n == group)
        };
        if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            return group == 0;
        }
        self.ro_compat & RO_COMPAT_SPARSE_SUPER == 0 || group <= 1 || is_power(3) || is_power(5) || is_power(7)
    }

    /// Where the descriptor of a group is.
    fn descriptor(&self, group: u64) -> u64 {
        let per_block = (self.block_bytes / self.descriptor_bytes).max(1);
        let (number, at) = (group / per_block, group % per_block * self.descriptor_bytes);
        let is_meta = self.incompat & INCOMPAT_META_GROUPS != 0 && number >= self.first_meta_group;
        let block = if is_meta {
            let first = number.saturating_mul(per_block);
            let begin = first.saturating_mul(self.blocks_per_group).saturating_add(self.first_block);
            begin.saturating_add(u64::from(self.has_superblock(first)))
        } else {
            self.first_block.saturating_add(1).saturating_add(number)
        };
        self.offset(block).saturating_add(at)
    }

    fn offset(&self, block: u64) -> u64 {
        block.saturating_mul(self.block_bytes)
    }
}

struct Volume<'v> {
    input: &'v mut dyn ReadSeek,
    layout: Layout,
}

/// An inode, as it lies there.
struct Inode {
    bytes: Vec<u8>,
    kind: u16,
    length: u64,
    flags: u32,
}

const KIND_DIRECTORY: u16 = 0x4000;
const KIND_FILE: u16 = 0x8000;
/// Where the map, the extents, or the first bytes of a file in its inode are.
const MAP: std::ops::Range<usize> = 40..100;

/// Hands out all files of a file system, in a folder.
fn volume(input: &mut dyn ReadSeek, folder: &str, out: &mut Out<'_, '_>) -> io::Result<()> {
    let superblock = read_vec(input, SUPERBLOCK_AT, SUPERBLOCK_BYTES, SUPERBLOCK_BYTES)?;
    let layout = Layout::parse(&superblock).ok_or_else(|| invalid("a malformed superblock"))?;
    if layout.incompat & (INCOMPAT_COMPRESSION | INCOMPAT_JOURNAL_DEVICE) != 0 {
        return Err(unsupported("a file system with features that are not known here"));
    }
    let mut volume = Volume { input, layout };
    let mut folders = Folders::new(ROOT_INODE, folder);
    while let Some((number, path)) = folders.next() {
        if out.is_over() {
            return Ok(());
        }
        if let Err(error) = volume.directory(number, &path, &mut folders, out) {
            out.outcome.note_error(&format!("directory {path:?}"), &error);
        }
    }
    Ok(())
}

impl Volume<'_> {
    fn inode(&mut self, number: u32) -> io::Result<Inode> {
        let missing = || invalid(format!("inode {number} is not there"));
        let index = number.checked_sub(1).filter(|index| *index < self.layout.inodes).ok_or_else(missing)?;
        let group = u64::from(index / self.layout.inodes_per_group);
        let at = u64::from(index % self.layout.inodes_per_group).saturating_mul(self.layout.inode_bytes);
        let descriptor_bytes = self.layout.descriptor_bytes;
        let descriptor = read_vec(self.input, self.layout.descriptor(group), descriptor_bytes, descriptor_bytes)?;
        let low = le32(&descriptor, 8).ok_or_else(cut_off)?;
        let high = if descriptor_bytes >= 64 { le32(&descriptor, 40).ok_or_else(cut_off)? } else { 0 };
        let table = self.layout.offset(u64::from(high) << 32 | u64::from(low));
        let inode_bytes = self.layout.inode_bytes;
        let bytes = read_vec(self.input, table.saturating_add(at), inode_bytes, INODE_BYTES_MAX)?;
        let fields = (le16(&bytes, 0), le32(&bytes, 4), le32(&bytes, 108), le32(&bytes, 32));
        let (Some(mode), Some(low), Some(high), Some(flags)) = fields else { return Err(cut_off()) };
        Ok(Inode { kind: mode & 0xf000, length: u64::from(high) << 32 | u64::from(low), flags, bytes })
    }

    fn directory(
        &mut self,
        number: u32,
        path: &str,
        folders: &mut Folders<u32>,
        out: &mut Out<'_, '_>,
    ) -> io::Result<()> {
        let inode = self.inode(number)?;
        if inode.kind != KIND_DIRECTORY {
            return Err(invalid("it is no directory"));
        }
        if inode.flags & INODE_ENCRYPTED != 0 {
            // Its names are encrypted, and so are its files, which are told each for itself.
            out.outcome.note_protected(Protection::Archive);
        }
        let lists = if inode.flags & INODE_INLINE != 0 {
            let (first, rest) = inline(&inode)?;
            // The parent comes first.
            vec![first.get(4..).unwrap_or_default().to_vec(), rest]
        } else {
            let pieces = self.pieces(&inode, out)?;
            let bytes = pieces.read_vec(self.input, inode.length, DIRECTORY_BYTES_MAX)?;
            bytes.chunks(self.layout.block_bytes as usize).map(<[u8]>::to_vec).collect()
        };
        for list in lists {
            self.entries(&list, path, folders, out)?;
        }
        Ok(())
    }

    /// What a block of a directory lists. Blocks of an index look like a single entry of nothing.
    fn entries(
        &mut self,
        mut rest: &[u8],
        path: &str,
        folders: &mut Folders<u32>,
        out: &mut Out<'_, '_>,
    ) -> io::Result<()> {
        while rest.len() >= 8 {
            let (Some(number), Some(length), Some([name_bytes])) = (le32(rest, 0), le16(rest, 4), array(rest, 6))
            else {
                return Err(cut_off());
            };
            // The longest block has no number for its own length.
            let length = if matches!(length, 0 | 0xffff) { rest.len() } else { usize::from(length) };
            let name = rest.get(8..8 + usize::from(name_bytes)).filter(|_| length >= 8 + usize::from(name_bytes));
            let name = name.ok_or_else(|| invalid("a malformed entry"))?;
            if number != 0 && !matches!(name, b"." | b".." | b"") {
                let path = join(path, &String::from_utf8_lossy(name));
                if let Err(error) = self.entry(number, &path, folders, out) {
                    out.outcome.note_error(&format!("member {path:?}"), &error);
                }
            }
            if out.is_over() {
                return Ok(());
            }
            rest = rest.get(length..).ok_or_else(|| invalid("an entry longer than its block"))?;
        }
        Ok(())
    }

    fn entry(&mut self, number: u32, path: &str, folders: &mut Folders<u32>, out: &mut Out<'_, '_>) -> io::Result<()> {
        let inode = self.inode(number)?;
        match inode.kind {
            KIND_DIRECTORY => return folders.push(number, path.to_owned()),
            KIND_FILE if folders.is_new(number)? => {}
            _ => return Ok(()),
        }
        if inode.flags & INODE_ENCRYPTED != 0 {
            out.outcome.note_protected(Protection::Archive);
            return Ok(());
        }
        if inode.flags & INODE_INLINE != 0 {
            let (mut content, rest) = inline(&inode)?;
            content.extend_from_slice(&rest);
            let content = content.get(..inode.length as usize).ok_or_else(cut_off)?;
            out.member(path.to_owned(), Some(inode.length), &mut &*content);
            return Ok(());
        }
        let mut pieces = self.pieces(&inode, out)?;
        pieces.fill_up(inode.length)?;
        out.member(path.to_owned(), Some(inode.length), &mut pieces.content(self.input, inode.length));
        Ok(())
    }

    /// Where the content of a file is.
    fn pieces(&mut self, inode: &Inode, out: &Out<'_, '_>) -> io::Result<Pieces> {
        let map = inode.bytes.get(MAP).ok_or_else(cut_off)?;
        let mut found = Found { pieces: Pieces::default(), length: inode.length, blocks_read: 0 };
        if inode.flags & INODE_EXTENTS != 0 {
            self.extents(map, EXTENT_DEPTH_MAX, &mut found, out)?;
            return Ok(found.pieces);
        }
        // Twelve blocks, and then blocks that lead to blocks, up to three times.
        for (at, block) in map.as_chunks::<4>().0.iter().enumerate() {
            self.mapped(u32::from_le_bytes(*block), at.saturating_sub(11) as u32, &mut found, out)?;
        }
        Ok(found.pieces)
    }

    /// Adds what a block of a map leads to, `level` blocks further on.
    fn mapped(&mut self, block: u32, level: u32, found: &mut Found, out: &Out<'_, '_>) -> io::Result<()> {
        if found.pieces.length() >= found.length {
            return Ok(());
        }
        let block_bytes = self.layout.block_bytes;
        if block == 0 || level == 0 {
            let length = (0..level).try_fold(block_bytes, |bytes, _| bytes.checked_mul(block_bytes / 4));
            let length = length.unwrap_or(u64::MAX).min(found.length.saturating_sub(found.pieces.length()));
            return found.pieces.push((block != 0).then(|| self.layout.offset(u64::from(block))), length);
        }
        let blocks = self.map_block(u64::from(block), found, out)?;
        for block in blocks.as_chunks::<4>().0 {
            self.mapped(u32::from_le_bytes(*block), level - 1, found, out)?;
        }
        Ok(())
    }

    fn map_block(&mut self, block: u64, found: &mut Found, out: &Out<'_, '_>) -> io::Result<Vec<u8>> {
        out.check()?;
        found.blocks_read += 1;
        if found.blocks_read > MAP_BLOCKS_MAX {
            return Err(invalid("a file with a longer map than any real one"));
        }
        read_vec(self.input, self.layout.offset(block), self.layout.block_bytes, self.layout.block_bytes)
    }

    /// Adds the extents of a node of an extent tree, and of the nodes below.
    fn extents(&mut self, node: &[u8], depth_max: u16, found: &mut Found, out: &Out<'_, '_>) -> io::Result<()> {
        let (Some(EXTENT_MAGIC), Some(count), Some(depth)) = (le16(node, 0), le16(node, 2), le16(node, 6)) else {
            return Err(invalid("a malformed extent tree"));
        };
        if depth > depth_max {
            return Err(invalid("an extent tree that does not get flatter"));
        }
        let entries = node.get(12..12 + usize::from(count) * 12).ok_or_else(|| invalid("a malformed extent tree"))?;
        for entry in entries.chunks_exact(12) {
            let (Some(first), Some(low)) = (le32(entry, 0), le32(entry, if depth == 0 { 8 } else { 4 })) else {
                return Err(cut_off());
            };
            let high = le16(entry, if depth == 0 { 6 } else { 8 }).ok_or_else(cut_off)?;
            let block = u64::from(high) << 32 | u64::from(low);
            if depth > 0 {
                let below = self.map_block(block, found, out)?;
                self.extents(&below, depth - 1, found, out)?;
                continue;
            }
            let begin = self.layout.offset(u64::from(first));
            if begin < found.pieces.length() {
                return Err(invalid("extents that overlap"));
            }
            found.pieces.fill_up(begin)?;
            let count = le16(entry, 4).ok_or_else(cut_off)?;
            let is_written = count <= EXTENT_WRITTEN_MAX;
            let count = if is_written { count } else { count - EXTENT_WRITTEN_MAX };
            found.pieces.push(is_written.then(|| self.layout.offset(block)), self.layout.offset(u64::from(count)))?;
        }
        Ok(())
    }
}

/// What was found of a file's map.
struct Found {
    pieces: Pieces,
    length: u64,
    blocks_read: u32,
}

/// The content that an inode holds itself: in the place of the map, and in the attribute `system.data` behind the inode.
fn inline(inode: &Inode) -> io::Result<(Vec<u8>, Vec<u8>)> {
    const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;
    const NAMESPACE_SYSTEM: u8 = 7;
    let first = inode.bytes.get(MAP).ok_or_else(cut_off)?.to_vec();
    let extra = inode.bytes.get(128..).and_then(|extra| Some((extra, usize::from(le16(extra, 0)?))));
    let attributes = extra.and_then(|(extra, bytes)| extra.get(bytes..)).unwrap_or_default();
    let mut found = Vec::new();
    if le32(attributes, 0) == Some(ATTRIBUTES_MAGIC) {
        let values = attributes.get(4..).unwrap_or_default();
        let mut rest = values;
        while let Some([name_bytes, namespace, low, high]) = array(rest, 0)
            && (name_bytes, namespace) != (0, 0)
        {
            let name = rest.get(16..16 + usize::from(name_bytes)).ok_or_else(cut_off)?;
            if namespace == NAMESPACE_SYSTEM && name == b"data" {
                let at = usize::from(u16::from_le_bytes([low, high]));
                let length = le32(rest, 8).ok_or_else(cut_off)? as usize;
                let value = values.get(at..).and_then(|value| value.get(..length));
                found = value.ok_or_else(|| invalid("a malformed attribute"))?.to_vec();
            }
            rest = rest.get((16 + usize::from(name_bytes)).next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Ok((first, found))
}
