//! Tape archives: V7, ustar, GNU (long names, old sparse files) and PAX.
//!
//! Headers are parsed by the `tar` crate's `Header`; walking them is done here, because the crate's own iterator keeps a
//! "long name" of any length in memory. Reading goes on behind the two zero blocks that end an archive, since some programs
//! do: what is there is handed out too. The data of sparse files is handed out as it lies in the archive, without the holes,
//! and the archive counts as not fully extracted, since the file itself was not seen.
//!
//! Programs differ in how long an entry is: whether links have content, whether they know an extension, how they read its numbers. Then the
//! archive is read on from both places.

use std::collections::HashSet;
use std::io::{self, Read, SeekFrom};

use tar::{EntryType, Header};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name, hand_out, read_full};
use crate::format::{Claim, Claims, Format, Probe};
use crate::outcome::ExtractionOutcome;

const BLOCK_BYTES: usize = 512;
/// The longest extension (long name, PAX records) that is kept in memory.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// The most blocks of a sparse map that are followed: each names 21 pieces.
const SPARSE_BLOCKS_MAX: u32 = 1 << 16;

/// Tape archive in any of its dialects.
pub(crate) static FORMAT: Format = Format {
    name: "tar",
    description: "Tape Archive",
    mime: "application/x-tar",
    extension: "tar",
    category: "A",
    beside: &[],
    probe,
    extractor: &Tar,
};

struct Tar;

/// How many blocks before the first header some programs pass over.
const JUNK_BLOCKS_MAX: usize = 8;

fn probe(probe: &mut Probe<'_>) -> io::Result<Claims> {
    if probe.head.first_chunk().is_some_and(is_header) {
        return Ok(vec![Claim::Whole(0)]);
    }
    // Some programs pass over what is no header at the beginning. That is believed if the header has its magic number too.
    let blocks = probe.head.as_chunks::<BLOCK_BYTES>().0.iter().take(JUNK_BLOCKS_MAX + 1);
    let has_magic = |block: &[u8; BLOCK_BYTES]| block.get(257..262) == Some(b"ustar") && is_header(block);
    let first = blocks.enumerate().find(|(_, block)| has_magic(block));
    Ok(first.map(|(at, _)| Claim::Inside((at * BLOCK_BYTES) as u64)).into_iter().collect())
}

/// In how many ways an archive is walked at most. Real ones can be walked in one.
const WALKS_MAX: usize = 64;
/// How many headers are remembered as read.
const SEEN_MAX: usize = 1 << 20;
/// How many places with two meanings are kept of an archive.
const DISPUTES_MAX: usize = 4096;

/// Whether a block is a header: its checksum fits.
fn is_header(block: &[u8; BLOCK_BYTES]) -> bool {
    let Some(claimed) = claimed_checksum(block) else { return false };
    // The checksum counts its own field as spaces. Old writers summed signed characters.
    let field = 148..156;
    let mut unsigned = 0u32;
    let mut signed = 0i32;
    for (at, byte) in block.iter().enumerate() {
        let byte = if field.contains(&at) { b' ' } else { *byte };
        unsigned += u32::from(byte);
        signed += i32::from(byte as i8);
    }
    claimed == u64::from(unsigned) || i64::try_from(claimed).is_ok_and(|claimed| claimed == i64::from(signed))
}

/// The checksum that a header claims: octal digits behind any spaces and zeros, as the widest of readers takes it.
fn claimed_checksum(block: &[u8; BLOCK_BYTES]) -> Option<u64> {
    let padding = |byte: &u8| matches!(*byte, b' ' | 0);
    let mut digits =
        block.get(148..156)?.iter().skip_while(|byte| padding(byte)).take_while(|byte| !padding(byte)).peekable();
    digits.peek()?;
    digits.try_fold(0, |sum, digit| matches!(digit, b'0'..=b'7').then(|| sum * 8 + u64::from(digit - b'0')))
}

impl Extractor for Tar {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        // Where programs differ in how long an entry is, the archive goes on at two places, and is read from both. What was read
        // once is not read again, so that all of it together takes no longer than the archive is long, a few times.
        let (mut starts, mut seen) = (vec![0], HashSet::new());
        let mut next = 0;
        while let Some(start) = starts.get(next).copied().filter(|_| !outcome.is_over()) {
            let disputes = Vec::new();
            let mut walk = Walk { container, offset: start, ended: false, extensions: Extensions::default(), disputes };
            let mut walked = ExtractionOutcome::default();
            while !walked.is_over() {
                // Where another walk came by, both go on alike.
                let is_new = seen.len() >= SEEN_MAX || seen.insert(walk.offset);
                if !is_new && walk.extensions.is_none() {
                    break;
                }
                let offset = walk.offset;
                match walk.step(budget, sink, &mut walked) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        walked.note_error(&format!("the archive is broken at {offset}"), &error);
                        break;
                    }
                }
            }
            for dispute in walk.disputes {
                let mut block = [0; BLOCK_BYTES];
                let read =
                    container.input.seek(SeekFrom::Start(dispute)).and_then(|_| read_full(container.input, &mut block));
                // What is no header is none for the programs that look there either.
                if !read.is_ok_and(|read| read == BLOCK_BYTES) || !is_header(&block) || seen.contains(&dispute) {
                    continue;
                }
                if starts.len() < WALKS_MAX {
                    starts.push(dispute);
                } else {
                    outcome.note_suspicious("different programs find different entries in the archive");
                }
            }
            if next > 0 {
                // From there it may be no archive, which it is for the others.
                walked.broken = None;
            }
            outcome.merge(walked);
            next += 1;
        }
        outcome
    }
}

/// The type of an extension header of Solaris, which is otherwise one of PAX.
const SOLARIS_EXTENSION: u8 = b'X';

/// Whether a header says something about the next one.
fn is_extension(header: &Header) -> bool {
    matches!(header.as_old().linkflag, [b'L' | b'K' | b'x' | b'g' | SOLARIS_EXTENSION])
}

/// What extension headers said about the next entry.
#[derive(Default, PartialEq, Eq)]
struct Extensions {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// They are Solaris' own, which some programs don't know.
    is_solaris: bool,
    /// What else the size is for some programs.
    other_size: Option<u64>,
    /// The next entry's content is a map and pieces.
    sparse: bool,
}

impl Extensions {
    /// Whether nothing was said.
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

struct Walk<'w, 'c> {
    container: &'w mut Container<'c>,
    offset: u64,
    /// A zero block was seen.
    ended: bool,
    extensions: Extensions,
    /// Where else the archive goes on for some programs.
    disputes: Vec<u64>,
}

impl Walk<'_, '_> {
    /// Notes that for some programs the entry whose content begins here is so long.
    fn dispute(&mut self, size: u64) {
        let padded = size.checked_next_multiple_of(BLOCK_BYTES as u64);
        let next = padded.and_then(|padded| self.offset.checked_add(padded));
        if let Some(next) = next.filter(|_| self.disputes.len() < DISPUTES_MAX) {
            self.disputes.push(next);
        }
    }

    /// Takes the header at the offset and what belongs to it. False at the end.
    fn step(&mut self, budget: &Budget, sink: &mut Sink<'_>, outcome: &mut ExtractionOutcome) -> io::Result<bool> {
        let mut block = [0; BLOCK_BYTES];
        self.container.input.seek(SeekFrom::Start(self.offset))?;
        let read = read_full(self.container.input, &mut block)?;
        if read < BLOCK_BYTES {
            return self.end_of_input(read);
        }
        self.offset += BLOCK_BYTES as u64;
        if block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(true);
        }
        if !is_header(&block) {
            // Behind its end an archive may be padded with anything, and some programs go on behind that.
            return if self.ended { Ok(true) } else { Err(invalid("neither a header nor the end")) };
        }
        let header = Header::from_byte_slice(&block);
        let size = match self.extensions.size {
            Some(size) => size,
            None => header.entry_size()?,
        };
        let is_entry = !is_extension(header);
        if self.extensions.is_solaris && is_entry {
            self.extensions.other_size = header.entry_size().ok();
        }
        if let Some(other) = self.extensions.other_size.filter(|other| is_entry && *other != size) {
            self.dispute(other);
        }
        match header.entry_type() {
            EntryType::GNULongName => self.extensions.name = Some(self.read_extension(header.entry_size()?)?),
            EntryType::XHeader => {
                let records = self.read_extension(header.entry_size()?)?;
                self.read_pax(&records);
            }
            kind if kind.as_byte() == SOLARIS_EXTENSION => {
                // For programs that don't know it, it is a file, and the next entry's own size holds.
                let records = self.read_extension(header.entry_size()?)?;
                self.read_pax(&records);
                self.extensions.is_solaris = true;
            }
            EntryType::GNULongLink => self.skip(header.entry_size()?)?,
            EntryType::XGlobalHeader => {
                let records = self.read_extension(header.entry_size()?)?;
                let before = std::mem::take(&mut self.extensions);
                self.read_pax(&records);
                let global = std::mem::replace(&mut self.extensions, before);
                if global.name.is_some() || global.size.is_some() || global.sparse {
                    outcome.note_broken("a global header says of every entry what can be true of one only");
                }
            }
            EntryType::GNUSparse => {
                self.extensions.sparse = true;
                self.skip_sparse_map(header)?;
                self.entry(header, size, budget, sink, outcome)?;
            }
            // Links and devices have no content, whatever their size field says: some writers put a hard link's there.
            EntryType::Link | EntryType::Symlink | EntryType::Char | EntryType::Block | EntryType::Fifo => {
                if size > 0 {
                    self.dispute(size);
                }
                self.extensions = Extensions::default();
            }
            // V7 has no directory type: a regular entry whose name ends in a slash is one.
            EntryType::Directory | EntryType::Regular if size == 0 && header.path_bytes().ends_with(b"/") => {
                self.extensions = Extensions::default();
            }
            EntryType::Directory if size == 0 => self.extensions = Extensions::default(),
            _ => self.entry(header, size, budget, sink, outcome)?,
        }
        Ok(!outcome.is_over())
    }

    /// Nothing is left but `read` bytes. Archives without zero blocks at the end are read by every program.
    fn end_of_input(&self, read: usize) -> io::Result<bool> {
        if self.extensions.name.is_some() || self.extensions.size.is_some() {
            return Err(invalid("the archive ends before the entry that an extension announced"));
        }
        if read > 0 && !self.ended {
            return Err(invalid("the archive ends inside a header"));
        }
        Ok(false)
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        budget: &Budget,
        sink: &mut Sink<'_>,
        outcome: &mut ExtractionOutcome,
    ) -> io::Result<()> {
        let extensions = std::mem::take(&mut self.extensions);
        let name = match &extensions.name {
            Some(name) => display_name(name),
            None => display_name(&header.path_bytes()),
        };
        if extensions.sparse {
            outcome.note_broken(format!("{name:?} is a sparse file, which is scanned in pieces only"));
        }
        let input: &mut dyn ReadSeek = &mut *self.container.input;
        let mut content = input.take(size);
        match hand_out(name, Some(size), &mut content, budget, sink) {
            Ok(None) if content.limit() > 0 => {
                outcome.note_broken(format!("the archive ends inside the entry at {}", self.offset));
            }
            Ok(None) => {}
            Ok(Some(error)) => return Err(error),
            Err(halt) => return Err(halt.into()),
        }
        self.skip(size)
    }

    /// Moves the offset behind so many bytes and their padding.
    fn skip(&mut self, size: u64) -> io::Result<()> {
        let padded = size.checked_next_multiple_of(BLOCK_BYTES as u64);
        self.offset =
            padded.and_then(|padded| self.offset.checked_add(padded)).ok_or_else(|| invalid("malformed size"))?;
        Ok(())
    }

    fn read_extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_BYTES_MAX {
            return Err(invalid("an extension longer than any real archive has"));
        }
        let mut bytes = Vec::new();
        let input: &mut dyn ReadSeek = &mut *self.container.input;
        input.take(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(invalid("the archive ends inside an extension"));
        }
        self.skip(size)?;
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(bytes)
    }

    /// Takes name and size from PAX records: "length key=value\n".
    fn read_pax(&mut self, records: &[u8]) {
        let mut rest = records;
        while let Some(space) = rest.iter().position(|byte| *byte == b' ') {
            let length =
                std::str::from_utf8(rest.get(..space).unwrap_or_default()).ok().and_then(|text| text.parse().ok());
            let Some((record, after)) = length.and_then(|length| rest.split_at_checked(length)) else { return };
            rest = after;
            let record = record.get(space + 1..).unwrap_or_default();
            let record = record.strip_suffix(b"\n").unwrap_or(record);
            self.extensions.sparse |= record.starts_with(b"GNU.sparse.");
            if let Some(path) = record.strip_prefix(b"path=") {
                self.extensions.name = Some(path.to_vec());
            } else if let Some(size) = record.strip_prefix(b"size=") {
                let text = std::str::from_utf8(size).unwrap_or_default();
                self.extensions.size = text.parse().ok();
                // Some programs take a number as the C library does: with space before it, and whatever behind.
                let digits = text.trim_start().trim_start_matches('+');
                let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
                self.extensions.other_size = digits.get(..end).and_then(|digits| digits.parse().ok());
            } else if let Some(path) = record.strip_prefix(b"GNU.sparse.name=") {
                self.extensions.name = Some(path.to_vec());
            }
        }
    }

    /// Moves behind the blocks that go on with an old GNU sparse map.
    fn skip_sparse_map(&mut self, header: &Header) -> io::Result<()> {
        let mut extended = header.as_gnu().is_some_and(|gnu| gnu.is_extended());
        for _ in 0..SPARSE_BLOCKS_MAX {
            if !extended {
                return Ok(());
            }
            let mut block = [0; BLOCK_BYTES];
            if read_full(self.container.input, &mut block)? < BLOCK_BYTES {
                return Err(invalid("the archive ends inside a sparse map"));
            }
            self.offset += BLOCK_BYTES as u64;
            // struct sparse_header: 21 pieces of 24 bytes, then "is extended".
            extended = block.get(504).is_some_and(|flag| *flag != 0);
        }
        Err(invalid("a sparse map longer than any real archive has"))
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
