//! Programs that UPX packed: for Windows and DOS, and for Linux. NRV2B, NRV2D, NRV2E, LZMA and Deflate. Format: the sources of UPX 4
//! (`packhead.cpp`, `linux.hh`) as documentation.
//!
//! What comes out is what the program unpacks into memory: a Linux program is the file that was packed; of a Windows program it is its sections
//! one after the other, without headers. Filters are not undone: the targets of calls stay as UPX put them, all else is as it was.
//!
//! A packed program whose marks somebody took away looks like any other. One whose data doesn't decode is told as broken.

mod nrv;

use std::io::{self, Cursor, Read};

use self::nrv::Variant;
use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{array, find, invalid, le32};
use crate::format::{Format, Probe, whole_if};
use crate::limits::TooMuchMemory;
use crate::outcome::ExtractionOutcome;
use crate::parts::{Exactly, Out, adler32, cut_off, read_array, read_start, read_vec};
use crate::{elf, pe};

/// The most that a program unpacks to here, and that it is packed in: both are held at once.
const PROGRAM_BYTES_MAX: u64 = 96 << 20;
/// What every header of UPX begins with.
const MARK: &[u8] = b"UPX!";
/// How far into a file UPX's header is looked for: behind the headers of a program and a short loader.
const SEARCHED_BYTES: u64 = 16 * 1024;
/// Mark, version, format, method, level, two checksums, two lengths, the file's length, filter and the header's checksum.
const HEADER_BYTES: usize = 32;
/// What UPX puts in front of the blocks of a Linux program: its mark, and what it says of the file.
const LINUX_BYTES: u64 = 12 + 12;
const BLOCK_HEADER_BYTES: u64 = 12;
/// Most blocks of a Linux program, each of half a megabyte mostly.
const BLOCKS_MAX: u32 = 4096;

/// Programs that UPX packed.
pub(crate) static FORMAT: Format = Format {
    name: "upx",
    description: "Executable packed by UPX",
    mime: "application/x-executable",
    extension: "exe",
    category: "E",
    // It is a program all the same, and may carry what others carry.
    beside: &["pe", "elf", "zip", "squashfs"],
    probe: |probe| whole_if(is_packed(probe)),
    extractor: &Upx,
};

fn is_packed(probe: &mut Probe<'_>) -> bool {
    let head = probe.head;
    if head.starts_with(b"MZ") {
        let searched = head.get(..SEARCHED_BYTES as usize).unwrap_or(head);
        return Header::all(searched).next().is_some();
    }
    let Some(blocks) = linux_blocks(probe.input) else { return false };
    matches!(Block::read(probe.input, blocks), Ok(Some(block)) if block.fits(blocks, probe.length))
}

struct Upx;

impl Extractor for Upx {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let (length, input) = (container.length, &mut *container.input);
        let result = match linux_blocks(input) {
            Some(blocks) => {
                let mut reader =
                    Blocks { input, budget, offset: blocks, length, left: BLOCKS_MAX, block: Box::new(io::empty()) };
                out.member("unpacked".to_owned(), None, &mut reader);
                Ok(())
            }
            None => windows(input, length, &mut out),
        };
        out.end("the packed program is broken", result)
    }
}

/// Whether [`decode`] knows a method.
fn is_method(method: u8) -> bool {
    matches!(method, 2..=10 | 14 | 15)
}

/// What something becomes, by UPX's number of how it is packed: as it comes, so that a limit ends it before it is all in memory.
fn decode(method: u8, packed: Vec<u8>, length: usize) -> io::Result<Exactly<Box<dyn Read>>> {
    let nrv = |packed, variant, word_bytes| Box::new(nrv::Decoder::new(packed, variant, word_bytes, length));
    let content: Box<dyn Read> = match method {
        2 => nrv(packed, Variant::B, 4),
        3 => nrv(packed, Variant::B, 1),
        4 => nrv(packed, Variant::B, 2),
        5 => nrv(packed, Variant::D, 4),
        6 => nrv(packed, Variant::D, 1),
        7 => nrv(packed, Variant::D, 2),
        8 => nrv(packed, Variant::E, 4),
        9 => nrv(packed, Variant::E, 1),
        10 => nrv(packed, Variant::E, 2),
        14 => lzma(packed, length)?,
        15 => Box::new(flate2::bufread::DeflateDecoder::new(Cursor::new(packed))),
        _ => return Err(invalid("a method that UPX has not")),
    };
    Ok(Exactly::new(content, length as u64))
}

/// LZMA behind two bytes: bits of literals and positions, and the former once more by kind.
fn lzma(packed: Vec<u8>, length: usize) -> io::Result<Box<dyn Read>> {
    let [first, second] = array(&packed, 0).ok_or_else(cut_off)?;
    let (positions, of_position, of_context) = (first & 7, second >> 4, second & 15);
    if first >> 3 != of_position + of_context {
        return Err(invalid("malformed properties of LZMA"));
    }
    let mut data = Cursor::new(packed);
    data.set_position(2);
    let window = u32::try_from(length).map_err(|_| invalid("it is too long"))?;
    let (lc, lp, pb) = (of_context.into(), of_position.into(), positions.into());
    Ok(Box::new(lzma_rust2::LzmaReader::new(data, length as u64, lc, lp, pb, window.max(4096), None)?))
}

/// What UPX says of what it packed as one.
struct Header {
    method: u8,
    packed_sum: u32,
    length: u32,
    packed_bytes: u32,
    /// Behind it the data lie, if they are not where a section is.
    end: u64,
}

impl Header {
    /// Every header in some bytes.
    fn all(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let at = from + find(bytes.get(from..)?, MARK)?;
            from = at + 1;
            Some(at)
        })
        .filter_map(|at| Self::parse(bytes.get(at..)?, at as u64))
    }

    fn parse(header: &[u8], at: u64) -> Option<Self> {
        let [version, format, method, _] = array(header, 4)?;
        let parsed = Self {
            method,
            packed_sum: le32(header, 12)?,
            length: le32(header, 16)?,
            packed_bytes: le32(header, 20)?,
            end: at + HEADER_BYTES as u64,
        };
        let is_one = (8..=30).contains(&version) && format > 0 && is_method(method);
        (is_one && parsed.packed_bytes > 0 && parsed.length >= parsed.packed_bytes).then_some(parsed)
    }
}

fn windows(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let head = read_start(input, SEARCHED_BYTES)?;
    let sections = pe::headers(input).map(|headers| headers.sections).unwrap_or_default();
    let mut any = false;
    for header in Header::all(&head) {
        any = true;
        admit(u64::from(header.length).max(header.packed_bytes.into()))?;
        // Behind the header, or where a section begins: what has the checksum.
        let places = std::iter::once(header.end).chain(sections.iter().map(|section| section.span.offset));
        for at in places.filter(|at| at.saturating_add(header.packed_bytes.into()) <= length) {
            out.check()?;
            let packed = read_vec(input, at, header.packed_bytes.into(), PROGRAM_BYTES_MAX)?;
            if adler32(&packed) == header.packed_sum {
                let content = decode(header.method, packed, header.length as usize);
                out.made("unpacked".to_owned(), Some(header.length.into()), content);
                return Ok(());
            }
        }
    }
    Err(invalid(if any { "what UPX packed was changed since" } else { "no header of UPX" }))
}

fn admit(asked_bytes: u64) -> Result<(), TooMuchMemory> {
    if asked_bytes > PROGRAM_BYTES_MAX { Err(TooMuchMemory { asked_bytes }) } else { Ok(()) }
}

/// Where the blocks of a Linux program begin: behind its headers and what UPX says of the file. None if it is none.
fn linux_blocks(input: &mut dyn ReadSeek) -> Option<u64> {
    let headers = elf::headers_end(input).ok()?;
    let mark: [u8; 8] = read_array(input, headers).ok()?;
    mark.ends_with(MARK).then_some(headers + LINUX_BYTES)
}

/// A block of a Linux program.
struct Block {
    length: u32,
    packed_bytes: u32,
    method: u8,
}

impl Block {
    /// The block at an offset; none at the end.
    fn read(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Option<Self>> {
        let header: [u8; BLOCK_HEADER_BYTES as usize] = read_array(input, offset)?;
        let (Some(length), Some(packed_bytes)) = (le32(&header, 0), le32(&header, 4)) else { return Err(cut_off()) };
        if length == 0 {
            return Ok(None);
        }
        let [.., method, _, _, _] = header;
        if packed_bytes > length || packed_bytes == 0 || !(packed_bytes == length || is_method(method)) {
            return Err(invalid("a malformed block"));
        }
        Ok(Some(Self { length, packed_bytes, method }))
    }

    fn fits(&self, offset: u64, length: u64) -> bool {
        offset + BLOCK_HEADER_BYTES + u64::from(self.packed_bytes) <= length
    }
}

/// What the blocks of a Linux program become, one after the other.
struct Blocks<'i, 'b> {
    input: &'i mut dyn ReadSeek,
    budget: &'b Budget,
    offset: u64,
    length: u64,
    left: u32,
    block: Box<dyn Read>,
}

impl Blocks<'_, '_> {
    fn next(&mut self) -> io::Result<bool> {
        self.left = self.left.checked_sub(1).ok_or_else(|| invalid("more blocks than any program has"))?;
        self.budget.check()?;
        let Some(block) = Block::read(self.input, self.offset)? else { return Ok(false) };
        if !block.fits(self.offset, self.length) {
            return Err(cut_off());
        }
        admit(block.length.into())?;
        let data = self.offset + BLOCK_HEADER_BYTES;
        let packed = read_vec(self.input, data, block.packed_bytes.into(), PROGRAM_BYTES_MAX)?;
        self.offset = data + u64::from(block.packed_bytes);
        let is_stored = block.packed_bytes == block.length;
        self.block = match is_stored {
            true => Box::new(Cursor::new(packed)),
            false => Box::new(decode(block.method, packed, block.length as usize)?),
        };
        Ok(true)
    }
}

impl Read for Blocks<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.block.read(into)?;
            if read > 0 || into.is_empty() || !self.next()? {
                return Ok(read);
            }
        }
    }
}
