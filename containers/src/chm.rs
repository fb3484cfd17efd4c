//! Compiled HTML help (CHM). Format: "Microsoft's HTML Help (.chm) format" by Matthew Russotto and others; LZX over the `lzxd`
//! crate.
//!
//! Files of the compressed section lie in one stream, which is decoded once from its beginning. What begins with "::" or is empty is the format's own
//! and left out, but for the compressed stream itself when it can't be decoded.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use lzxd::{Lzxd, WindowSize};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{invalid, le32, le64, unsupported};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Exactly, Out, cut_off, read_array, read_vec};

const MAGIC: &[u8] = b"ITSF";
/// Most chunks of the directory, and the longest one.
const CHUNKS_MAX: u32 = 1 << 17;
const CHUNK_BYTES_MAX: u32 = 1 << 16;
/// Most files: each is kept until its turn comes.
const FILES_MAX: usize = 1 << 18;
/// What a block of the stream decodes to.
const BLOCK_BYTES: u64 = 0x8000;
/// The longest table of blocks: for 64 GiB.
const TABLE_BYTES_MAX: u64 = 16 << 20;

const CONTENT: &[u8] = b"::DataSpace/Storage/MSCompressed/Content";
const CONTROL: &[u8] = b"::DataSpace/Storage/MSCompressed/ControlData";
const TABLE: &[u8] =
    b"::DataSpace/Storage/MSCompressed/Transform/{7FC28940-9D31-11D0-9B27-00A0C91E9C7C}/InstanceData/ResetTable";

/// CHM.
pub(crate) static FORMAT: Format = Format {
    name: "chm",
    description: "Compiled HTML help",
    mime: "application/vnd.ms-htmlhelp",
    extension: "chm",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(MAGIC) && matches!(le32(probe.head, 4), Some(2 | 3))),
    extractor: &Chm,
};

struct Chm;

impl Extractor for Chm {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = help(&mut *container.input, container.length, &mut out);
        out.end("the help file is broken", result)
    }
}

/// A file: the number of its section, and where it lies in that.
struct Entry {
    name: Vec<u8>,
    section: u64,
    offset: u64,
    length: u64,
}

fn help(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let header: [u8; 0x60] = read_array(input, 0)?;
    let (Some(version), Some(directory), Some(directory_bytes)) =
        (le32(&header, 4), le64(&header, 0x48), le64(&header, 0x50))
    else {
        return Err(cut_off());
    };
    // Version 2 doesn't say where the content begins: behind the directory.
    let behind = directory.checked_add(directory_bytes);
    let data = if version >= 3 { le64(&header, 0x58) } else { behind };
    let data = data.ok_or_else(|| invalid("malformed offset"))?;
    let mut entries = entries(input, directory, out)?;
    let find = |name: &[u8]| entries.iter().find(|entry| entry.name == name && entry.section == 0);
    let stream = match (find(CONTENT), find(CONTROL), find(TABLE)) {
        (Some(content), Some(control), Some(table)) => Some(Layout::read(input, data, content, control, table)?),
        _ => None,
    };
    entries.retain(|entry| entry.length > 0 && !entry.name.starts_with(b"::"));
    entries.sort_by_key(|entry| (entry.section, entry.offset));
    let (stored, packed) = entries.split_at(entries.partition_point(|entry| entry.section == 0));
    for entry in stored {
        if out.is_over() {
            return Ok(());
        }
        let offset = data.checked_add(entry.offset).ok_or_else(|| invalid("malformed offset"))?;
        out.stored(display_name(&entry.name), input, offset, entry.length);
    }
    match stream {
        Some(layout) => packed_files(input, layout, packed, out)?,
        None if packed.is_empty() => {}
        None => return Err(invalid("the compressed section is not there")),
    }
    // The first section of the header says how long the file is.
    let first: [u8; 16] = read_array(input, le64(&header, 0x38).ok_or_else(cut_off)?)?;
    if le64(&first, 8).is_some_and(|claimed| claimed > length) { Err(cut_off()) } else { Ok(()) }
}

/// Reads the directory, chunk by chunk in their order.
fn entries(input: &mut dyn ReadSeek, directory: u64, out: &mut Out<'_, '_>) -> io::Result<Vec<Entry>> {
    let header: [u8; 0x54] = read_array(input, directory)?;
    let fields = (le32(&header, 8), le32(&header, 0x10), le32(&header, 0x2c));
    let (Some(header_bytes), Some(chunk_bytes), Some(chunks)) = fields else { return Err(cut_off()) };
    if !header.starts_with(b"ITSP") || chunk_bytes > CHUNK_BYTES_MAX || chunks > CHUNKS_MAX {
        return Err(invalid("a malformed directory"));
    }
    let first = directory.checked_add(u64::from(header_bytes)).ok_or_else(|| invalid("malformed offset"))?;
    let mut entries = Vec::new();
    for chunk in 0..u64::from(chunks) {
        out.check()?;
        let offset = first.saturating_add(chunk * u64::from(chunk_bytes));
        let chunk = read_vec(input, offset, u64::from(chunk_bytes), u64::from(CHUNK_BYTES_MAX))?;
        // The others are an index of these.
        if !chunk.starts_with(b"PMGL") {
            continue;
        }
        let free = le32(&chunk, 4).map_or(0, |free| free as usize);
        let used = chunk.len().checked_sub(free).and_then(|end| chunk.get(0x14..end));
        let mut rest = used.ok_or_else(|| invalid("a malformed directory"))?;
        while !rest.is_empty() {
            let entry = entry(&mut rest).ok_or_else(|| invalid("a malformed directory entry"))?;
            if entries.len() >= FILES_MAX {
                return Err(invalid("more files than any real help file has"));
            }
            entries.push(entry);
        }
    }
    Ok(entries)
}

fn entry(rest: &mut &[u8]) -> Option<Entry> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (name, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(Entry { name: name.to_vec(), section: number(rest)?, offset: number(rest)?, length: number(rest)? })
}

/// Seven bits a byte, the most significant first; all bytes but the last have the upper bit set.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for _ in 0..9 {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// How the compressed stream is laid out.
struct Layout {
    window: WindowSize,
    /// After so many blocks the decoder begins anew.
    reset_blocks: u64,
    /// Where the stream is in the file, and where each of its blocks is in the stream.
    offset: u64,
    packed_bytes: u64,
    blocks: Vec<u64>,
    length: u64,
}

impl Layout {
    fn read(input: &mut dyn ReadSeek, data: u64, content: &Entry, control: &Entry, table: &Entry) -> io::Result<Self> {
        let at = |entry: &Entry| data.checked_add(entry.offset).ok_or_else(|| invalid("malformed offset"));
        let control: [u8; 24] = read_array(input, at(control)?)?;
        let fields = (le32(&control, 8), le32(&control, 12), le32(&control, 16));
        let (Some(version), Some(reset), Some(window)) = fields else { return Err(cut_off()) };
        let unit = if version >= 2 { BLOCK_BYTES } else { 1 };
        let (reset, window) = (u64::from(reset) * unit, u64::from(window) * unit);
        let window = match window {
            0x8000 => WindowSize::KB32,
            0x1_0000 => WindowSize::KB64,
            0x2_0000 => WindowSize::KB128,
            0x4_0000 => WindowSize::KB256,
            0x8_0000 => WindowSize::KB512,
            0x10_0000 => WindowSize::MB1,
            0x20_0000 => WindowSize::MB2,
            _ => return Err(unsupported(format!("a window of {window} bytes"))),
        };
        let offset = at(table)?;
        let header: [u8; 0x28] = read_array(input, offset)?;
        let fields = (le32(&header, 4), le32(&header, 0xc), le64(&header, 0x10), le64(&header, 0x18));
        let (Some(count), Some(header_bytes), Some(length), Some(packed_bytes)) = fields else {
            return Err(cut_off());
        };
        if le64(&header, 0x20) != Some(BLOCK_BYTES) || !control.get(4..).is_some_and(|mark| mark.starts_with(b"LZXC")) {
            return Err(invalid("a malformed compressed section"));
        }
        let table = offset.saturating_add(u64::from(header_bytes));
        let table = read_vec(input, table, u64::from(count) * 8, TABLE_BYTES_MAX)?;
        let blocks = table.chunks_exact(8).filter_map(|at| le64(at, 0)).collect();
        let reset_blocks = (reset / BLOCK_BYTES).max(1);
        Ok(Self { window, reset_blocks, offset: at(content)?, packed_bytes, blocks, length })
    }
}

/// Hands out the files of the compressed section, which are in the order in which they lie there.
fn packed_files(input: &mut dyn ReadSeek, layout: Layout, files: &[Entry], out: &mut Out<'_, '_>) -> io::Result<()> {
    let mut stream = Stream { input, decoder: Lzxd::new(layout.window), layout, next: 0, block: Vec::new(), read: 0 };
    for file in files {
        if out.is_over() {
            return Ok(());
        }
        let position = stream.position();
        if file.offset < position {
            // Several names may stand for one place; what overlaps otherwise is decoded again from the last reset.
            stream.rewind_to(file.offset);
        }
        stream.skip_to(file.offset, out)?;
        let mut content = Exactly::new(&mut stream, file.length);
        if !out.member(display_name(&file.name), Some(file.length), &mut content) {
            return Ok(());
        }
    }
    Ok(())
}

/// What the compressed section decodes to.
struct Stream<'s> {
    input: &'s mut dyn ReadSeek,
    layout: Layout,
    decoder: Lzxd,
    /// The number of the next block.
    next: u64,
    block: Vec<u8>,
    /// How much of the block was read.
    read: usize,
}

impl Stream<'_> {
    fn position(&self) -> u64 {
        let before = if self.block.is_empty() { self.next } else { self.next.saturating_sub(1) };
        before * BLOCK_BYTES + self.read as u64
    }

    /// Goes back, to where the decoder began anew before an offset.
    fn rewind_to(&mut self, offset: u64) {
        let block = offset / BLOCK_BYTES;
        self.next = block - block % self.layout.reset_blocks;
        self.block.clear();
        self.read = 0;
    }

    fn skip_to(&mut self, offset: u64, out: &Out<'_, '_>) -> io::Result<()> {
        // What lies before the next reset need not be decoded.
        let reset = offset / BLOCK_BYTES / self.layout.reset_blocks * self.layout.reset_blocks;
        if reset > self.next {
            self.rewind_to(offset);
        }
        let mut block = [0; 4096];
        while self.position() < offset {
            out.check()?;
            let most = (offset - self.position()).min(block.len() as u64) as usize;
            if self.read(block.get_mut(..most).unwrap_or_default())? == 0 {
                return Err(cut_off());
            }
        }
        Ok(())
    }

    /// Decodes the next block. False behind the last.
    fn next_block(&mut self) -> io::Result<bool> {
        let (number, reset_blocks) = (self.next, self.layout.reset_blocks);
        if number >= self.layout.blocks.len() as u64 {
            return Ok(false);
        }
        let length = self.layout.length.saturating_sub(number * BLOCK_BYTES).min(BLOCK_BYTES);
        self.block = match self.decode(number, length) {
            // Some writers fill the last block up, and a match may reach over the end of what counts.
            Err(_) if length < BLOCK_BYTES => {
                for before in number - number % reset_blocks..number {
                    self.decode(before, BLOCK_BYTES)?;
                }
                let mut block = self.decode(number, BLOCK_BYTES)?;
                block.truncate(length as usize);
                block
            }
            block => block?,
        };
        (self.read, self.next) = (0, number + 1);
        Ok(true)
    }

    fn decode(&mut self, number: u64, length: u64) -> io::Result<Vec<u8>> {
        let layout = &self.layout;
        let at = |number: u64| layout.blocks.get(usize::try_from(number).ok()?).copied();
        let start = at(number).ok_or_else(cut_off)?;
        let end = at(number + 1).unwrap_or(layout.packed_bytes);
        let packed_bytes = end.checked_sub(start).ok_or_else(|| invalid("a malformed table of blocks"))?;
        // A block that doesn't compress grows by its headers.
        let packed = read_vec(self.input, layout.offset.saturating_add(start), packed_bytes, BLOCK_BYTES * 2)?;
        if number.is_multiple_of(layout.reset_blocks) {
            self.decoder.reset();
        }
        let decoder = &mut self.decoder;
        // The crate asserts what a hostile block may break.
        let block =
            catch_unwind(AssertUnwindSafe(|| decoder.decompress_next(&packed, length as usize).map(<[u8]>::to_vec)));
        match block {
            Ok(Ok(block)) => Ok(block),
            Ok(Err(error)) => Err(invalid(format!("a block doesn't decode: {error}"))),
            Err(_) => Err(invalid("a block doesn't decode")),
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read >= self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let rest = self.block.get(self.read..).unwrap_or_default();
        let length = rest.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.read += length;
        Ok(length)
    }
}
