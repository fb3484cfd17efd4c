//! The compound file itself: sectors, chains, the directory. Format: [MS-CFB].
//!
//! Invariants: what is held is bounded by the file's length, never by what it claims; a chain that comes back to itself ends
//! with an error, since none is longer than the file has sectors; a broken piece costs what depends on it and nothing else.

use std::io::{self, Cursor, Read, SeekFrom};

use crate::container::{ReadSeek, read_full};
use crate::fields::{cut_off, invalid, le16, le32, le64, utf16_le};

/// What every compound file begins with.
pub(crate) const MAGIC: [u8; 8] = [0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1];
/// Streams shorter than this lie in the stream of small sectors.
const MINI_CUTOFF_BYTES: u64 = 4096;
const MINI_SECTOR_BITS: u16 = 6;
const MINI_SECTOR_BYTES: u64 = 1 << MINI_SECTOR_BITS;
const ENTRY_BYTES: usize = 128;
/// Numbers of sectors from here on have other meanings: free, end of a chain.
const SECTORS_MAX: u32 = 0xffff_fffa;
const END_OF_CHAIN: u32 = 0xffff_fffe;
/// No entry.
const NO_ENTRY: u32 = 0xffff_ffff;
/// Most entries of a directory that are looked at; a large installer has some thousands.
const ENTRIES_MAX: usize = 1 << 17;
/// Most storages that a path names.
const PATH_DEPTH_MAX: usize = 32;
/// Most sectors that are read at once.
const RUN_SECTORS_MAX: u32 = 64;

/// What an entry of the directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Storage,
    Stream,
    Root,
    Unused,
}

/// An entry of the directory.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The entry of the storage it lies in; none for the root and for what no storage knows.
    pub(super) parent: Option<usize>,
    left: u32,
    right: u32,
    child: u32,
    start: u32,
    pub(super) size: u64,
}

/// An opened compound file.
pub(super) struct Compound<'i> {
    input: &'i mut dyn ReadSeek,
    sector_bytes: u64,
    /// For each sector the next of its chain.
    next: Vec<u32>,
    /// The same for the small sectors.
    mini_next: Vec<u32>,
    /// The sectors that the small ones lie in.
    mini_sectors: Vec<u32>,
    pub(super) entries: Vec<Entry>,
    /// What was found broken while opening.
    pub(super) broken: Option<io::Error>,
}

impl<'i> Compound<'i> {
    /// Opens a compound file of `length` bytes. What is broken but not hopeless is in `broken`.
    pub(super) fn open(input: &'i mut dyn ReadSeek, length: u64) -> io::Result<Self> {
        let mut header = [0; 512];
        input.seek(SeekFrom::Start(0))?;
        if read_full(input, &mut header)? < header.len() || !header.starts_with(&MAGIC) {
            return Err(invalid("no header of a compound file"));
        }
        let number = |at| le32(&header, at).unwrap_or(END_OF_CHAIN);
        let sector_bytes = match le16(&header, 30) {
            Some(9) => 512,
            Some(12) => 4096,
            _ => return Err(invalid("a compound file has sectors of 512 or 4096 bytes")),
        };
        let mut compound = Self {
            input,
            sector_bytes,
            next: Vec::new(),
            mini_next: Vec::new(),
            mini_sectors: Vec::new(),
            entries: Vec::new(),
            broken: None,
        };
        if le16(&header, 32) != Some(MINI_SECTOR_BITS) || u64::from(number(56)) != MINI_CUTOFF_BYTES {
            // LibreOffice goes by what the header says, Windows by what must be there.
            compound.note(invalid("small sectors are of another length than the format has"));
        }
        let sectors = usize::try_from(length.div_ceil(sector_bytes)).unwrap_or(usize::MAX).min(SECTORS_MAX as usize);
        let listed = (0..109).map(|at| number(76 + 4 * at));
        compound.read_allocation(listed.collect(), number(68), sectors);
        let is_long = sector_bytes == 4096;
        compound.read_directory(number(48), is_long);
        let root = compound.entries.iter().find(|entry| entry.kind == Kind::Root).cloned();
        if let Some(root) = root {
            compound.mini_sectors = compound.chain(root.start);
            compound.read_mini_allocation(number(60));
        } else {
            compound.note(invalid("the directory has no root"));
        }
        Ok(compound)
    }

    /// The path of an entry: the storages that it lies in, and its name.
    pub(super) fn path(&self, index: usize) -> String {
        let mut names = Vec::new();
        let mut at = Some(index);
        while let Some(entry) = at.and_then(|at| self.entries.get(at)) {
            if entry.kind == Kind::Root || names.len() >= PATH_DEPTH_MAX {
                break;
            }
            names.push(entry.name.as_str());
            at = entry.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// The content of a stream.
    pub(super) fn stream(&mut self, index: usize) -> io::Result<Stream<'_, 'i>> {
        let entry = self.entries.get(index).ok_or_else(|| invalid("no such entry"))?;
        let (start, size) = (entry.start, entry.size);
        if size < MINI_CUTOFF_BYTES {
            return Ok(Stream::Small(self.small_stream(start, size)));
        }
        Ok(Stream::Large(Chain { compound: self, sector: start, left_bytes: size, run: 0..0, sectors_read: 0 }))
    }

    fn note(&mut self, error: io::Error) {
        self.broken.get_or_insert(error);
    }

    fn offset(&self, sector: u32) -> u64 {
        (u64::from(sector) + 1) * self.sector_bytes
    }

    /// The numbers in a sector.
    fn numbers(&mut self, sector: u32) -> io::Result<Vec<u32>> {
        let bytes = self.sector(sector)?;
        Ok(bytes.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect())
    }

    fn sector(&mut self, sector: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.sector_bytes as usize];
        self.input.seek(SeekFrom::Start(self.offset(sector)))?;
        if sector >= SECTORS_MAX || read_full(self.input, &mut bytes)? < bytes.len() {
            return Err(cut_off(format!("sector {sector} lies outside of the file")));
        }
        Ok(bytes)
    }

    /// Reads the table of chains: its sectors are listed in the header, and from there on in a chain of their own.
    fn read_allocation(&mut self, mut listed: Vec<u32>, first_list: u32, sectors: usize) {
        let mut list = first_list;
        // A list names at least 127 sectors, each of which accounts for 128: no file needs more lists than this.
        for _ in 0..=sectors / 128 {
            if list >= SECTORS_MAX {
                break;
            }
            match self.numbers(list) {
                Ok(mut numbers) => {
                    list = numbers.pop().unwrap_or(END_OF_CHAIN);
                    listed.extend(numbers);
                }
                Err(error) => {
                    self.note(error);
                    break;
                }
            }
        }
        // A place that is free keeps its place before others.
        let end = listed.iter().rposition(|sector| *sector < SECTORS_MAX).map_or(0, |last| last + 1);
        for sector in listed.into_iter().take(end) {
            if self.next.len() >= sectors {
                break;
            }
            match self.numbers(sector) {
                Ok(numbers) => self.next.extend(numbers),
                Err(error) => {
                    // What follows keeps its place.
                    self.next.resize(self.next.len() + (self.sector_bytes / 4) as usize, END_OF_CHAIN);
                    self.note(error);
                }
            }
        }
    }

    /// The sectors of a chain as far as it leads.
    fn chain(&mut self, start: u32) -> Vec<u32> {
        let mut sectors = Vec::new();
        let mut sector = start;
        while sector < SECTORS_MAX {
            let Some(next) = self.next.get(sector as usize) else {
                self.note(invalid(format!("a chain leads to sector {sector}, which isn't there")));
                break;
            };
            if sectors.len() >= self.next.len() {
                self.note(invalid("a chain of sectors goes in a circle"));
                break;
            }
            sectors.push(sector);
            sector = *next;
        }
        sectors
    }

    fn read_mini_allocation(&mut self, start: u32) {
        for sector in self.chain(start) {
            match self.numbers(sector) {
                Ok(numbers) => self.mini_next.extend(numbers),
                Err(error) => return self.note(error),
            }
        }
    }

    fn read_directory(&mut self, start: u32, is_long: bool) {
        for sector in self.chain(start) {
            match self.sector(sector) {
                Ok(bytes) => {
                    let entries = bytes.as_chunks::<ENTRY_BYTES>().0.iter();
                    self.entries.extend(entries.map(|entry| read_entry(entry, is_long)));
                }
                Err(error) => self.note(error),
            }
            if self.entries.len() > ENTRIES_MAX {
                self.entries.truncate(ENTRIES_MAX);
                self.note(invalid(format!("the directory has more than {ENTRIES_MAX} entries")));
                break;
            }
        }
        if self.entries.is_empty() {
            self.note(invalid("the file has no directory"));
        }
        self.find_parents();
    }

    /// Walks the tree that the entries make, which names for each the storage that it lies in.
    fn find_parents(&mut self) {
        let mut seen = vec![false; self.entries.len()];
        let mut to_visit: Vec<(u32, Option<usize>)> = vec![(0, None)];
        while let Some((at, parent)) = to_visit.pop() {
            let Ok(index) = usize::try_from(at) else { continue };
            let (Some(entry), Some(seen)) = (self.entries.get_mut(index), seen.get_mut(index)) else { continue };
            if std::mem::replace(seen, true) {
                continue;
            }
            entry.parent = parent;
            let inside = Some(index).filter(|_| matches!(entry.kind, Kind::Storage | Kind::Root));
            let siblings = [(entry.left, parent), (entry.right, parent), (entry.child, inside)];
            to_visit.extend(siblings.into_iter().filter(|(at, _)| *at != NO_ENTRY));
        }
    }

    /// A stream of small sectors, with the error that it ends with.
    fn small_stream(&mut self, start: u32, size: u64) -> Small {
        let mut content = Vec::new();
        let mut mini = start;
        let mut error = None;
        while (content.len() as u64) < size {
            match self.mini_sector(mini) {
                Ok(bytes) => {
                    let left = (size - content.len() as u64) as usize;
                    content.extend_from_slice(bytes.get(..left).unwrap_or(&bytes));
                    mini = self.mini_next.get(mini as usize).copied().unwrap_or(END_OF_CHAIN);
                }
                Err(problem) => {
                    error = Some(problem);
                    break;
                }
            }
        }
        Small { content: Cursor::new(content), error }
    }

    fn mini_sector(&mut self, mini: u32) -> io::Result<[u8; MINI_SECTOR_BYTES as usize]> {
        let at = u64::from(mini) * MINI_SECTOR_BYTES;
        let sector = usize::try_from(at / self.sector_bytes).ok().and_then(|at| self.mini_sectors.get(at)).copied();
        let Some(sector) = sector.filter(|_| mini < SECTORS_MAX) else {
            return Err(cut_off("the chain of a stream ends before the stream does"));
        };
        let mut bytes = [0; MINI_SECTOR_BYTES as usize];
        self.input.seek(SeekFrom::Start(self.offset(sector) + at % self.sector_bytes))?;
        if read_full(self.input, &mut bytes)? < bytes.len() {
            return Err(cut_off("the file ends inside a stream"));
        }
        Ok(bytes)
    }
}

fn read_entry(bytes: &[u8; ENTRY_BYTES], is_long: bool) -> Entry {
    let number = |at| le32(bytes, at).unwrap_or(NO_ENTRY);
    let name_bytes = usize::from(le16(bytes, 64).unwrap_or(0)).min(64);
    let size = le64(bytes, 120).unwrap_or(0);
    Entry {
        name: utf16_le(bytes.get(..name_bytes).unwrap_or_default()),
        kind: match bytes.get(66) {
            Some(1) => Kind::Storage,
            Some(2) => Kind::Stream,
            Some(5) => Kind::Root,
            _ => Kind::Unused,
        },
        parent: None,
        left: number(68),
        right: number(72),
        child: number(76),
        start: number(116),
        // With sectors of 512 bytes the upper half is not always zero and counts for nothing.
        size: if is_long { size } else { size & 0xffff_ffff },
    }
}

/// A stream's content on its way out.
pub(super) enum Stream<'s, 'i> {
    Small(Small),
    Large(Chain<'s, 'i>),
}

impl Read for Stream<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Small(small) => small.read(into),
            Self::Large(chain) => chain.read(into),
        }
    }
}

/// A short stream, gathered at once.
pub(super) struct Small {
    content: Cursor<Vec<u8>>,
    error: Option<io::Error>,
}

impl Read for Small {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.content.read(into)? {
            0 if !into.is_empty() => self.error.take().map_or(Ok(0), Err),
            read => Ok(read),
        }
    }
}

/// A stream of whole sectors.
pub(super) struct Chain<'s, 'i> {
    compound: &'s mut Compound<'i>,
    /// The sector behind the current run.
    sector: u32,
    left_bytes: u64,
    /// The part of the file that is read next: sectors that follow each other.
    run: std::ops::Range<u64>,
    sectors_read: usize,
}

impl Chain<'_, '_> {
    fn next_run(&mut self) -> io::Result<()> {
        let start = self.sector;
        let compound = &*self.compound;
        if start >= SECTORS_MAX {
            return Err(cut_off("the chain of a stream ends before the stream does"));
        }
        let mut sectors = 0;
        while sectors < RUN_SECTORS_MAX && u64::from(self.sector) == u64::from(start) + u64::from(sectors) {
            let Some(next) = compound.next.get(self.sector as usize) else {
                return Err(invalid("the chain of a stream leads out of the file"));
            };
            self.sector = *next;
            sectors += 1;
        }
        self.sectors_read = self.sectors_read.saturating_add(sectors as usize);
        if self.sectors_read > compound.next.len() {
            return Err(invalid("the chain of a stream goes in a circle"));
        }
        let from = compound.offset(start);
        self.run = from..from + u64::from(sectors) * compound.sector_bytes;
        Ok(())
    }
}

impl Read for Chain<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left_bytes == 0 || into.is_empty() {
            return Ok(0);
        }
        if self.run.is_empty() {
            self.next_run()?;
        }
        let most = self.left_bytes.min(self.run.end - self.run.start).min(into.len() as u64) as usize;
        self.compound.input.seek(SeekFrom::Start(self.run.start))?;
        let read = self.compound.input.read(into.get_mut(..most).unwrap_or_default())?;
        if read == 0 {
            return Err(cut_off("the file ends inside a stream"));
        }
        self.run.start += read as u64;
        self.left_bytes -= read as u64;
        Ok(read)
    }
}
