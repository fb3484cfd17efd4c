//! What programs for Linux carry behind their end: self-extracting archives, installers. Format: "Tool Interface Standard, Executable and
//! Linking Format" 1.2, and its extension to 64 bits.
//!
//! A program that carries nothing is no container, and neither is one that is cut off. What lies in sections is part of the program's own
//! bytes, which are scanned as they are. A file system behind a program is SquashFS's to claim.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{be16, be32, be64, invalid, le16, le32, le64};
use crate::format::{Format, Probe, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array, read_vec};
use crate::squashfs;

const MAGIC: &[u8] = b"\x7fELF";
/// The longest header of a file.
const HEADER_BYTES: usize = 64;
/// How long an entry of the tables of sections and segments may say that it is; in all real ones it is at most 64.
const ENTRY_BYTES_MAX: u64 = 256;
/// A section that takes no place in the file.
const SECTION_WITHOUT_BYTES: u64 = 8;
/// Less than this is padding.
const BEHIND_BYTES_MIN: u64 = 16;

/// Programs for Linux that carry something.
pub(crate) static FORMAT: Format = Format {
    name: "elf",
    description: "Linux executable",
    mime: "application/x-executable",
    extension: "elf",
    category: "E",
    // What other programs find behind a program is no surprise.
    beside: &["zip", "squashfs"],
    probe: |probe| {
        let Some(end) = end(probe) else { return Ok(Vec::new()) };
        let behind: Option<[u8; BEHIND_BYTES_MIN as usize]> = probe.read_at(end)?;
        whole_if(behind.is_some_and(|behind| !behind.starts_with(squashfs::MAGIC)))
    },
    extractor: &Elf,
};

struct Elf;

impl Extractor for Elf {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = end_of(&mut *container.input).and_then(|end| {
            let length = container.length.checked_sub(end).ok_or_else(cut_off)?;
            out.stored("behind the program".to_owned(), &mut *container.input, end, length);
            Ok(())
        });
        out.end("the program's headers are broken", result)
    }
}

/// How wide numbers are, and in which order their bytes.
#[derive(Clone, Copy)]
struct Kind {
    is_wide: bool,
    is_big_endian: bool,
}

/// Where a table is, how long its entries are, and how many it has.
type Place = (u64, u64, u64);

impl Kind {
    fn segments(self, header: &[u8]) -> io::Result<Place> {
        let sizes = self.sizes();
        Ok((self.offset(header, 28, 32)?, self.half(header, sizes)?, self.half(header, sizes + 2)?))
    }

    fn sections(self, header: &[u8]) -> io::Result<Place> {
        let sizes = self.sizes() + 4;
        Ok((self.offset(header, 32, 40)?, self.half(header, sizes)?, self.half(header, sizes + 2)?))
    }

    /// Where the header tells the tables' sizes.
    fn sizes(self) -> usize {
        if self.is_wide { 54 } else { 42 }
    }

    fn half(self, bytes: &[u8], at: usize) -> io::Result<u64> {
        let half = if self.is_big_endian { be16(bytes, at) } else { le16(bytes, at) };
        half.map(u64::from).ok_or_else(cut_off)
    }

    fn word(self, bytes: &[u8], at: usize) -> io::Result<u64> {
        let word = if self.is_big_endian { be32(bytes, at) } else { le32(bytes, at) };
        word.map(u64::from).ok_or_else(cut_off)
    }

    /// An offset or a length, which lie in other places in each width.
    fn offset(self, bytes: &[u8], narrow_at: usize, wide_at: usize) -> io::Result<u64> {
        match (self.is_wide, self.is_big_endian) {
            (false, _) => self.word(bytes, narrow_at),
            (true, true) => be64(bytes, wide_at).ok_or_else(cut_off),
            (true, false) => le64(bytes, wide_at).ok_or_else(cut_off),
        }
    }
}

/// Where a program ends, if a file begins with one. Headers that can't be read are those of no program.
pub(crate) fn end(probe: &mut Probe<'_>) -> Option<u64> {
    probe.head.starts_with(MAGIC).then(|| end_of(probe.input).ok())?
}

/// Where the headers of a program end: behind its table of segments.
pub(crate) fn headers_end(input: &mut dyn ReadSeek) -> io::Result<u64> {
    let (kind, header) = header(input)?;
    let (offset, entry_bytes, count) = kind.segments(&header)?;
    Ok(offset.saturating_add(entry_bytes * count))
}

fn header(input: &mut dyn ReadSeek) -> io::Result<(Kind, [u8; HEADER_BYTES])> {
    let header: [u8; HEADER_BYTES] = read_array(input, 0)?;
    let [_, _, _, _, class, order, ..] = header;
    if !header.starts_with(MAGIC) || !matches!((class, order), (1 | 2, 1 | 2)) {
        return Err(invalid("no program for Linux"));
    }
    Ok((Kind { is_wide: class == 2, is_big_endian: order == 2 }, header))
}

/// Where a program ends: behind its tables, sections and segments.
fn end_of(input: &mut dyn ReadSeek) -> io::Result<u64> {
    let (kind, header) = header(input)?;
    let segments = table(input, kind.segments(&header)?)?;
    let sections = table(input, kind.sections(&header)?)?;
    let mut end = HEADER_BYTES as u64;
    for (table, is_section) in [(&segments, false), (&sections, true)] {
        end = end.max(table.end);
        for entry in table.bytes.chunks_exact(table.entry_bytes.max(1)) {
            let (offset, length) = match is_section {
                true if kind.word(entry, 4)? == SECTION_WITHOUT_BYTES => continue,
                true => (kind.offset(entry, 16, 24)?, kind.offset(entry, 20, 32)?),
                false => (kind.offset(entry, 4, 8)?, kind.offset(entry, 16, 32)?),
            };
            end = end.max(offset.saturating_add(length));
        }
    }
    Ok(end)
}

struct Table {
    bytes: Vec<u8>,
    entry_bytes: usize,
    end: u64,
}

fn table(input: &mut dyn ReadSeek, (offset, entry_bytes, count): Place) -> io::Result<Table> {
    if count == 0 || offset == 0 {
        return Ok(Table { bytes: Vec::new(), entry_bytes: 0, end: 0 });
    }
    if entry_bytes > ENTRY_BYTES_MAX {
        return Err(invalid("a table of entries that are too long"));
    }
    let length = entry_bytes * count;
    let bytes = read_vec(input, offset, length, ENTRY_BYTES_MAX * u64::from(u16::MAX))?;
    Ok(Table { bytes, entry_bytes: entry_bytes as usize, end: offset.saturating_add(length) })
}
