//! Tape archives: V7, ustar, GNU (long names, old sparse files) and PAX.
//!
//! Headers are parsed by the `tar` crate's `Header`; walking them is done here, because the crate's own iterator keeps a
//! "long name" of any length in memory. Reading goes on behind the two zero blocks that end an archive, since some programs
//! do: what is there is handed out too. The data of sparse files is handed out as it lies in the archive, without the holes,
//! and the archive counts as not fully extracted, since the file itself was not seen.

use std::io::{self, Read, SeekFrom};

use tar::{EntryType, Header};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name, hand_out, read_full};
use crate::format::{Format, whole_if};
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
    probe: |probe| whole_if(probe.head.first_chunk().is_some_and(is_header)),
    extractor: &Tar,
};

struct Tar;

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
        let mut walk = Walk { container, offset: 0, ended: false, extensions: Extensions::default() };
        let mut outcome = ExtractionOutcome::default();
        while !outcome.is_over() {
            let offset = walk.offset;
            match walk.step(budget, sink, &mut outcome) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    outcome.note_error(&format!("the archive is broken at {offset}"), &error);
                    break;
                }
            }
        }
        outcome
    }
}

/// What extension headers said about the next entry.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// The next entry's content is a map and pieces.
    sparse: bool,
}

struct Walk<'w, 'c> {
    container: &'w mut Container<'c>,
    offset: u64,
    /// A zero block was seen.
    ended: bool,
    extensions: Extensions,
}

impl Walk<'_, '_> {
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
        match header.entry_type() {
            EntryType::GNULongName => self.extensions.name = Some(self.read_extension(header.entry_size()?)?),
            EntryType::XHeader => {
                let records = self.read_extension(header.entry_size()?)?;
                self.read_pax(&records);
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
                self.extensions.size = std::str::from_utf8(size).ok().and_then(|size| size.parse().ok());
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
