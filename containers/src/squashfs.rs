//! SquashFS 4 images, also behind the ELF program of an AppImage. Format: "Squashfs Binary Format" (dr-emann), after the Linux
//! kernel's `squashfs_fs.h`.
//!
//! All compressors are read. Links, devices and extended attributes are left out; a file with several names is handed out once.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};

use crate::budget::Budget;
use crate::coded::lzo;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::elf;
use crate::fields::{invalid, le16, le32, le64, unsupported};
use crate::format::{Claim, Format, whole_if};
use crate::limits::DECODER_BYTES_MAX;
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array, read_vec};

pub(crate) const MAGIC: &[u8] = b"hsqs";
const SUPERBLOCK_BYTES: usize = 96;
/// A metadata block decodes to at most this.
const METADATA_BYTES: usize = 8192;
/// So many decoded metadata blocks are kept: neighbours in a directory have their inodes in the same one.
const METADATA_KEPT: usize = 64;
/// Blocks of files: the format's own bounds.
const BLOCK_BYTES_MIN: u32 = 4096;
const BLOCK_BYTES_MAX: u32 = 1 << 20;
/// Most directories and most files that are remembered so as to be visited once.
const NODES_MAX: usize = 1 << 20;
const QUEUE_MAX: usize = 1 << 16;
/// Most blocks of a file: each has four bytes in its inode.
const FILE_BLOCKS_MAX: u64 = 1 << 22;
const NO_FRAGMENT: u32 = u32::MAX;
/// The longest path that is kept.
const PATH_BYTES_MAX: usize = 4096;

/// SquashFS.
pub(crate) static FORMAT: Format = Format {
    name: "squashfs",
    description: "SquashFS",
    mime: "application/vnd.squashfs",
    extension: "squashfs",
    category: "I",
    beside: &[],
    probe: |probe| {
        if probe.head.starts_with(MAGIC) {
            return whole_if(true);
        }
        match elf::end(probe) {
            Some(end) if probe.read_at::<4>(end)?.is_some_and(|mark| mark == MAGIC) => Ok(vec![Claim::Whole(end)]),
            _ => Ok(Vec::new()),
        }
    },
    extractor: &SquashFs,
};

struct SquashFs;

impl Extractor for SquashFs {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result =
            Image::open(&mut *container.input, budget).and_then(|mut image| image.walk(container.length, &mut out));
        out.end("the image is broken", result)
    }
}

#[derive(Clone, Copy)]
enum Compressor {
    Zlib,
    Lzma,
    Lzo,
    Xz,
    Lz4,
    Zstd,
}

impl Compressor {
    /// Decodes a block of at most `most` bytes.
    fn decode(self, packed: &[u8], most: usize) -> io::Result<Vec<u8>> {
        let most_kib = (DECODER_BYTES_MAX / 1024) as u32;
        let reader: Box<dyn Read + '_> = match self {
            Self::Lzo => return lzo::decompress(packed, most),
            Self::Lz4 => {
                let mut block = vec![0; most];
                let length = lz4_flex::block::decompress_into(packed, &mut block)
                    .map_err(|error| invalid(format!("a block doesn't decode: {error}")))?;
                block.truncate(length);
                return Ok(block);
            }
            Self::Zlib => Box::new(flate2::bufread::ZlibDecoder::new(packed)),
            Self::Lzma => Box::new(lzma_rust2::LzmaReader::new_mem_limit(packed, most_kib, None)?),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(packed, false, most_kib)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
                decoder.window_log_max(crate::stream::ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        };
        let mut block = Vec::new();
        reader.take(most as u64 + 1).read_to_end(&mut block)?;
        if block.len() <= most { Ok(block) } else { Err(invalid("a block longer than the format allows")) }
    }
}

struct Image<'i> {
    input: &'i mut dyn ReadSeek,
    budget: &'i Budget,
    compressor: Compressor,
    block_bytes: u32,
    root: u64,
    bytes_used: u64,
    inodes: u64,
    directories: u64,
    fragments: u64,
    fragment_count: u32,
    /// Decoded metadata blocks, with the place of the one behind.
    metadata: HashMap<u64, (Vec<u8>, u64)>,
    /// The last fragment block that was decoded, and its place.
    fragment: Option<(u64, Vec<u8>)>,
}

/// A place in metadata.
#[derive(Clone, Copy)]
struct Place {
    block: u64,
    offset: usize,
}

struct Node {
    inode: u64,
    path: String,
}

struct File {
    start: u64,
    fragment: Option<(u32, u32)>,
    sizes: Place,
    blocks: u64,
}

impl<'i> Image<'i> {
    fn open(input: &'i mut dyn ReadSeek, budget: &'i Budget) -> io::Result<Self> {
        let superblock: [u8; SUPERBLOCK_BYTES] = read_array(input, 0)?;
        let number = |at| le64(&superblock, at).ok_or_else(cut_off);
        let small = |at| le32(&superblock, at).ok_or_else(cut_off);
        if (le16(&superblock, 28), le16(&superblock, 30)) != (Some(4), Some(0)) {
            return Err(unsupported("a version other than 4.0"));
        }
        let compressor = match le16(&superblock, 20) {
            Some(1) => Compressor::Zlib,
            Some(2) => Compressor::Lzma,
            Some(3) => Compressor::Lzo,
            Some(4) => Compressor::Xz,
            Some(5) => Compressor::Lz4,
            Some(6) => Compressor::Zstd,
            other => return Err(unsupported(format!("compressor {other:?}"))),
        };
        let block_bytes = small(12)?;
        if !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) || !block_bytes.is_power_of_two() {
            return Err(invalid("malformed block length"));
        }
        Ok(Self {
            compressor,
            block_bytes,
            root: number(32)?,
            bytes_used: number(40)?,
            inodes: number(64)?,
            directories: number(72)?,
            fragments: number(80)?,
            fragment_count: small(16)?,
            metadata: HashMap::new(),
            fragment: None,
            input,
            budget,
        })
    }

    fn walk(&mut self, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
        let mut seen = HashSet::from([self.root]);
        let mut queue = vec![Node { inode: self.root, path: String::new() }];
        while let Some(node) = queue.pop() {
            if out.is_over() {
                return Ok(());
            }
            if let Err(error) = self.node(&node, &mut queue, &mut seen, out) {
                out.outcome.note_error(&format!("{:?}", node.path), &error);
            }
        }
        if self.bytes_used > length {
            return Err(cut_off());
        }
        Ok(())
    }

    fn place(&self, inode: u64) -> io::Result<Place> {
        let block = self.inodes.checked_add(inode >> 16).ok_or_else(|| invalid("malformed reference"))?;
        Ok(Place { block, offset: (inode & 0xffff) as usize })
    }

    /// Reads metadata on from a place.
    fn read(&mut self, place: &mut Place, length: usize) -> io::Result<Vec<u8>> {
        self.budget.check()?;
        let mut bytes = Vec::new();
        while bytes.len() < length {
            if !self.metadata.contains_key(&place.block) {
                let header = read_array(self.input, place.block)?;
                let header = u16::from_le_bytes(header);
                let packed_bytes = u64::from(header & 0x7fff);
                let packed = read_vec(self.input, place.block + 2, packed_bytes, 0x7fff)?;
                let block = match header & 0x8000 {
                    0 => self.compressor.decode(&packed, METADATA_BYTES)?,
                    _ => packed,
                };
                if block.is_empty() {
                    return Err(invalid("an empty metadata block"));
                }
                if self.metadata.len() >= METADATA_KEPT {
                    self.metadata.clear();
                }
                self.metadata.insert(place.block, (block, place.block + 2 + packed_bytes));
            }
            let Some((block, next)) = self.metadata.get(&place.block) else { return Err(cut_off()) };
            let rest = block.get(place.offset..).ok_or_else(|| invalid("a place beyond its block"))?;
            let take = rest.len().min(length - bytes.len());
            bytes.extend_from_slice(rest.get(..take).unwrap_or_default());
            place.offset += take;
            if place.offset >= block.len() {
                *place = Place { block: *next, offset: 0 };
            }
        }
        Ok(bytes)
    }

    fn node(
        &mut self,
        node: &Node,
        queue: &mut Vec<Node>,
        seen: &mut HashSet<u64>,
        out: &mut Out<'_, '_>,
    ) -> io::Result<()> {
        let mut place = self.place(node.inode)?;
        let header = self.read(&mut place, 16)?;
        let kind = le16(&header, 0).ok_or_else(cut_off)?;
        let small = |bytes: &[u8], at| le32(bytes, at).ok_or_else(cut_off);
        match kind {
            1 => {
                let inode = self.read(&mut place, 16)?;
                let (length, offset) = (le16(&inode, 8), le16(&inode, 10));
                let (Some(length), Some(offset)) = (length, offset) else { return Err(cut_off()) };
                self.directory(node, small(&inode, 0)?, offset, u32::from(length), queue, seen)
            }
            8 => {
                let inode = self.read(&mut place, 24)?;
                let offset = le16(&inode, 18).ok_or_else(cut_off)?;
                self.directory(node, small(&inode, 8)?, offset, small(&inode, 4)?, queue, seen)
            }
            2 => {
                let inode = self.read(&mut place, 16)?;
                let start = u64::from(small(&inode, 0)?);
                let fragment = (small(&inode, 4)?, small(&inode, 8)?);
                self.file(node, start, u64::from(small(&inode, 12)?), fragment, place, out)
            }
            9 => {
                let inode = self.read(&mut place, 40)?;
                let number = |at| le64(&inode, at).ok_or_else(cut_off);
                let fragment = (small(&inode, 28)?, small(&inode, 32)?);
                self.file(node, number(0)?, number(8)?, fragment, place, out)
            }
            3..=7 | 10..=14 => Ok(()),
            other => Err(invalid(format!("an inode of unknown kind {other}"))),
        }
    }

    fn directory(
        &mut self,
        node: &Node,
        block: u32,
        offset: u16,
        length: u32,
        queue: &mut Vec<Node>,
        seen: &mut HashSet<u64>,
    ) -> io::Result<()> {
        let block = self.directories.checked_add(u64::from(block)).ok_or_else(|| invalid("malformed reference"))?;
        let mut place = Place { block, offset: usize::from(offset) };
        // The length counts three bytes that aren't there, for "." and "..".
        let mut left = length.saturating_sub(3) as usize;
        while left > 0 {
            let header = self.read(&mut place, 12)?;
            left = left.checked_sub(12).ok_or_else(|| invalid("a malformed directory"))?;
            let (count, start) = (le32(&header, 0), le32(&header, 4));
            let (Some(count @ 0..256), Some(start)) = (count, start) else {
                return Err(invalid("a malformed directory"));
            };
            for _ in 0..=count {
                let entry = self.read(&mut place, 8)?;
                let (Some(at), Some(name_bytes)) = (le16(&entry, 0), le16(&entry, 6)) else { return Err(cut_off()) };
                let name = self.read(&mut place, usize::from(name_bytes) + 1)?;
                left = left.checked_sub(9 + usize::from(name_bytes)).ok_or_else(|| invalid("a malformed directory"))?;
                let inode = u64::from(start) << 16 | u64::from(at);
                let mut path = node.path.clone();
                if !path.is_empty() {
                    path.push('/');
                }
                path.push_str(&display_name(&name));
                if path.len() > PATH_BYTES_MAX {
                    return Err(invalid("a path longer than any real one"));
                }
                if seen.len() >= NODES_MAX || queue.len() >= QUEUE_MAX {
                    return Err(invalid("more files than any real image has"));
                }
                if seen.insert(inode) {
                    queue.push(Node { inode, path });
                }
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        node: &Node,
        start: u64,
        length: u64,
        (fragment, fragment_offset): (u32, u32),
        sizes: Place,
        out: &mut Out<'_, '_>,
    ) -> io::Result<()> {
        let block_bytes = u64::from(self.block_bytes);
        let (fragment, blocks) = match fragment {
            NO_FRAGMENT => (None, length.div_ceil(block_bytes)),
            fragment => (Some((fragment, fragment_offset)), length / block_bytes),
        };
        if blocks > FILE_BLOCKS_MAX {
            return Err(invalid("a file longer than any real one"));
        }
        let file = File { start, fragment, sizes, blocks };
        let mut content = Content { image: self, file, left: length, block: io::Cursor::default() };
        out.member(node.path.clone(), Some(length), &mut content);
        Ok(())
    }

    fn data_block(&mut self, at: u64, size: u32) -> io::Result<Vec<u8>> {
        let stored = size >> 24 & 1 == 1;
        let packed = read_vec(self.input, at, u64::from(size & 0xff_ffff), u64::from(self.block_bytes))?;
        if stored { Ok(packed) } else { self.compressor.decode(&packed, self.block_bytes as usize) }
    }

    fn fragment(&mut self, number: u32) -> io::Result<&[u8]> {
        if number >= self.fragment_count {
            return Err(invalid("a fragment that is not there"));
        }
        // Entries of 16 bytes, 512 in a metadata block, whose places are in a list.
        let at = self.fragments.checked_add(u64::from(number / 512) * 8).ok_or_else(cut_off)?;
        let block = u64::from_le_bytes(read_array(self.input, at)?);
        let entry = self.read(&mut Place { block, offset: (number % 512) as usize * 16 }, 16)?;
        let (Some(start), Some(size)) = (le64(&entry, 0), le32(&entry, 8)) else { return Err(cut_off()) };
        if self.fragment.as_ref().is_none_or(|(kept, _)| *kept != start) {
            let content = self.data_block(start, size)?;
            self.fragment = Some((start, content));
        }
        Ok(self.fragment.as_ref().map_or(&[], |(_, content)| content))
    }
}

/// A file's content, block by block.
struct Content<'c, 'i> {
    image: &'c mut Image<'i>,
    file: File,
    /// How much of the file was not decoded yet.
    left: u64,
    block: io::Cursor<Vec<u8>>,
}

impl Content<'_, '_> {
    fn next_block(&mut self) -> io::Result<()> {
        let file = &mut self.file;
        let block_bytes = u64::from(self.image.block_bytes);
        let length = self.left.min(block_bytes) as usize;
        let block = if file.blocks > 0 {
            let size = self.image.read(&mut file.sizes, 4)?;
            let size = le32(&size, 0).ok_or_else(cut_off)?;
            file.blocks -= 1;
            if size == 0 {
                vec![0; length]
            } else {
                let block = self.image.data_block(file.start, size)?;
                file.start = file.start.saturating_add(u64::from(size & 0xff_ffff));
                block
            }
        } else if let Some((number, offset)) = file.fragment {
            let fragment = self.image.fragment(number)?;
            let end = (offset as usize).saturating_add(length);
            fragment.get(offset as usize..end).ok_or_else(|| invalid("a file beyond its fragment"))?.to_vec()
        } else {
            return Err(invalid("a file of fewer blocks than it says"));
        };
        if block.len() != length {
            return Err(invalid("a block is not as long as it should be"));
        }
        self.left -= length as u64;
        self.block = io::Cursor::new(block);
        Ok(())
    }
}

impl Read for Content<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.block.read(into)?;
            if read > 0 || self.left == 0 || into.is_empty() {
                return Ok(read);
            }
            self.next_block()?;
        }
    }
}
