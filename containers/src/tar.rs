//! Tape archives: V7, ustar, GNU (long names, old sparse files) and PAX.
//!
//! Headers are parsed by the `tar` crate's `Header`; walking them is done here, because the crate's own iterator keeps a
//! "long name" of any length in memory. Reading goes on behind the two zero blocks that end an archive, since some programs
//! do: what is there is handed out too, as entries where headers are, and the rest as members. The data of sparse files is handed out as it lies in the archive, without the holes,
//! and the archive counts as not fully extracted, since the file itself was not seen.
//!
//! Programs differ in how long an entry is: whether links have content, whether they know an extension, how they read its numbers. Then the
//! archive is read on from both places, and the entry comes out in each length.

use std::collections::HashSet;
use std::io::{self, BufReader, Read, SeekFrom};

use tar::{EntryType, Header};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name, hand_out, read_full};
use crate::fields::find;
use crate::format::{Claim, Claims, Format, Probe};
use crate::outcome::ExtractionOutcome;
use crate::parts::BUFFER_BYTES;

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
    let first = blocks.enumerate().find(|(_, block)| has_magic(block));
    Ok(first.map(|(at, _)| Claim::Inside((at * BLOCK_BYTES) as u64)).into_iter().collect())
}

/// In how many ways an archive is walked at most. Real ones can be walked in one.
const WALKS_MAX: usize = 64;
/// How many headers are remembered as read.
const SEEN_MAX: usize = 1 << 20;
/// How many places with two meanings are kept of an archive.
const DISPUTES_MAX: usize = 4096;
/// How many lengths of one entry are kept besides the one that holds for most programs.
const OTHER_SIZES_MAX: usize = 16;
/// How often the archive's length what only some programs see of it may be long, all of it together.
const OTHER_READINGS_MAX: u64 = 4;

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

/// Whether a block is a header with the magic number of all but the oldest ones.
pub(crate) fn has_magic(block: &[u8; BLOCK_BYTES]) -> bool {
    block.get(257..262) == Some(b"ustar") && is_header(block)
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
        let mut shared = Shared { spare_bytes: container.length.saturating_mul(OTHER_READINGS_MAX), has_pax: false };
        let mut next = 0;
        while let Some(start) = starts.get(next).copied().filter(|_| !outcome.is_over()) {
            let disputes = Vec::new();
            let extensions = Extensions::default();
            let mut walk = Walk { container, shared: &mut shared, offset: start, ended: false, extensions, disputes };
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
    /// What else the size is for some programs.
    other_sizes: Vec<u64>,
    /// The next entry's content is a map and pieces.
    sparse: bool,
}

impl Extensions {
    /// The name of the entry with this header.
    fn shown_name(&self, header: &Header) -> String {
        match &self.name {
            Some(name) => display_name(name),
            None => display_name(&header.path_bytes()),
        }
    }

    /// Takes a size as PAX has it: digits and nothing else. The last one holds.
    fn set_size(&mut self, value: &[u8]) {
        let digits = Some(value).filter(|value| value.iter().all(u8::is_ascii_digit));
        match digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()) {
            Some(size) => {
                let before = self.size.replace(size);
                self.add_other_sizes(before);
            }
            None => self.set_disputed_size(value),
        }
    }

    /// Takes what is no number for some programs: the C library passes over space and a sign before it and whatever is behind, and
    /// Python over underscores; and what is no number for it is 0.
    fn set_disputed_size(&mut self, value: &[u8]) {
        let is_passed_over = |byte: &&u8| matches!(**byte, b' ' | b'\t'..=b'\r' | b'+');
        let mut number = value.iter().skip_while(is_passed_over).copied().peekable();
        let (mut first, mut all) = (None, 0u64);
        while let Some(byte) = number.next_if(|byte| byte.is_ascii_digit() || *byte == b'_') {
            match byte {
                b'_' => first = first.or(Some(all)),
                digit => all = all.saturating_mul(10).saturating_add(u64::from(digit - b'0')),
            }
        }
        self.add_other_sizes([0, all].into_iter().chain(first));
    }

    fn add_other_sizes(&mut self, sizes: impl IntoIterator<Item = u64>) {
        for size in sizes {
            // One more than are looked at shows that there are too many.
            if self.other_sizes.len() <= OTHER_SIZES_MAX && !self.other_sizes.contains(&size) {
                self.other_sizes.push(size);
            }
        }
    }

    /// Whether nothing was said.
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What all walks through an archive share.
struct Shared {
    /// How much may still be handed out of what only some programs see.
    spare_bytes: u64,
    /// An extension of PAX was seen: it is an archive of a format in which hard links have content, for some programs.
    has_pax: bool,
}

struct Walk<'w, 'c> {
    container: &'w mut Container<'c>,
    shared: &'w mut Shared,
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

    /// Hands out what the entry whose content begins here holds for programs to which it is longer or shorter, and notes where they
    /// go on.
    fn other_sizes(
        &mut self,
        header: &Header,
        size: u64,
        budget: &Budget,
        sink: &mut Sink<'_>,
        outcome: &mut ExtractionOutcome,
    ) -> io::Result<()> {
        let mut others = std::mem::take(&mut self.extensions.other_sizes);
        if self.extensions.size.is_some() {
            // Some programs don't know the extension.
            others.extend(entry_size(header));
        }
        others.retain(|other| *other != size);
        for other in &others {
            self.dispute(*other);
        }
        match header.entry_type() {
            EntryType::Symlink | EntryType::Char | EntryType::Block | EntryType::Fifo => return Ok(()),
            EntryType::Link if size > 0 && self.link_may_have_content()? => others.push(size),
            _ => {}
        }
        if others.len() > OTHER_SIZES_MAX {
            outcome.note_suspicious("an entry has more lengths than programs could differ in");
            others.truncate(OTHER_SIZES_MAX);
        }
        // What is not there nobody reads.
        let left = self.container.length.saturating_sub(self.offset);
        let mut lengths: Vec<u64> = others.into_iter().map(|other| other.min(left)).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let name = self.extensions.shown_name(header);
        let offset = self.offset;
        for length in lengths.into_iter().filter(|length| *length > 0) {
            self.only_for_some(name.clone(), offset, length, budget, sink, outcome)?;
        }
        self.container.input.seek(SeekFrom::Start(self.offset))?;
        Ok(())
    }

    /// Whether some programs take the content of the hard link whose header ends here for its own. They do in archives of PAX and, in
    /// others, unless the next header follows: many writers give links a length and no content.
    fn link_may_have_content(&mut self) -> io::Result<bool> {
        let mut block = [0; BLOCK_BYTES];
        self.container.input.seek(SeekFrom::Start(self.offset))?;
        let read = read_full(self.container.input, &mut block)?;
        Ok(self.shared.has_pax || read < BLOCK_BYTES || !has_magic(&block))
    }

    /// Hands out what lies behind the end, up to the next header: some programs take it for an entry's content. Old writers pad the
    /// last record with whatever was in memory, so it is nothing to remark.
    fn behind_the_end(
        &mut self,
        budget: &Budget,
        sink: &mut Sink<'_>,
        outcome: &mut ExtractionOutcome,
    ) -> io::Result<()> {
        let start = self.offset;
        self.container.input.seek(SeekFrom::Start(start))?;
        let mut input = BufReader::with_capacity(BUFFER_BYTES, &mut *self.container.input);
        let mut end = start;
        let mut block = [0; BLOCK_BYTES];
        loop {
            budget.check()?;
            let read = read_full(&mut input, &mut block)?;
            if read == 0 || read == BLOCK_BYTES && is_header(&block) {
                break;
            }
            self.offset += read as u64;
            if block.iter().take(read).any(|byte| *byte != 0) {
                end = self.offset;
            }
        }
        self.only_for_some("behind the archive".to_owned(), start, end - start, budget, sink, outcome)
    }

    /// Hands out what only some programs take for a file: so many bytes at `offset`, all of which are there.
    fn only_for_some(
        &mut self,
        name: String,
        offset: u64,
        length: u64,
        budget: &Budget,
        sink: &mut Sink<'_>,
        outcome: &mut ExtractionOutcome,
    ) -> io::Result<()> {
        let Some(spare) = self.shared.spare_bytes.checked_sub(length) else {
            outcome.note_suspicious("different programs find different files in the archive");
            return Ok(());
        };
        self.shared.spare_bytes = spare;
        self.container.input.seek(SeekFrom::Start(offset))?;
        let input: &mut dyn ReadSeek = &mut *self.container.input;
        match hand_out(name, Some(length), &mut input.take(length), budget, sink) {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(halt) => Err(halt.into()),
        }
    }

    /// Takes the header at the offset and what belongs to it. False at the end.
    fn step(&mut self, budget: &Budget, sink: &mut Sink<'_>, outcome: &mut ExtractionOutcome) -> io::Result<bool> {
        let mut block = [0; BLOCK_BYTES];
        self.container.input.seek(SeekFrom::Start(self.offset))?;
        let read = read_full(self.container.input, &mut block)?;
        if self.ended && block.iter().take(read).any(|byte| *byte != 0) && (read < BLOCK_BYTES || !is_header(&block)) {
            self.behind_the_end(budget, sink, outcome)?;
            return Ok(!outcome.is_over());
        }
        if read < BLOCK_BYTES {
            return self.end_of_input(read);
        }
        self.offset += BLOCK_BYTES as u64;
        if block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(true);
        }
        if !is_header(&block) {
            return Err(invalid("neither a header nor the end"));
        }
        let header = Header::from_byte_slice(&block);
        let size = match self.extensions.size {
            Some(size) => size,
            None => entry_size(header)?,
        };
        if !is_extension(header) {
            self.other_sizes(header, size, budget, sink, outcome)?;
        }
        match header.entry_type() {
            EntryType::GNULongName => self.extensions.name = Some(self.read_extension(entry_size(header)?)?),
            EntryType::XHeader => self.read_pax_header(header)?,
            kind if kind.as_byte() == SOLARIS_EXTENSION => self.read_pax_header(header)?,
            EntryType::GNULongLink => self.skip(entry_size(header)?)?,
            EntryType::XGlobalHeader => {
                let before = std::mem::take(&mut self.extensions);
                self.read_pax_header(header)?;
                let global = std::mem::replace(&mut self.extensions, before);
                if !global.is_none() {
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
        let name = extensions.shown_name(header);
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

    /// Takes what an extension header of PAX says, of the next entry or of all.
    fn read_pax_header(&mut self, header: &Header) -> io::Result<()> {
        self.shared.has_pax = true;
        let records = self.read_extension(entry_size(header)?)?;
        self.read_pax(&records);
        Ok(())
    }

    /// Takes name and size from PAX records.
    fn read_pax(&mut self, records: &[u8]) {
        let mut rest = records;
        while !rest.is_empty() {
            let Some((key, value, behind)) = pax_record(rest) else {
                // Here some programs give up, and others read on in ways of their own; each finds these words if it finds a size.
                let sizes = memchr::memmem::find_iter(rest, b"size=").take(OTHER_SIZES_MAX + 1);
                for value in sizes.filter_map(|at| rest.get(at + 5..)) {
                    self.extensions.set_disputed_size(value);
                }
                self.extensions.sparse |= find(rest, b"GNU.sparse.").is_some();
                return;
            };
            rest = behind;
            self.extensions.sparse |= key.starts_with(b"GNU.sparse.");
            match key {
                b"path" | b"GNU.sparse.name" => self.extensions.name = Some(value.to_vec()),
                b"size" => self.extensions.set_size(value),
                // Some programs pass over space before a key.
                _ if key.trim_ascii() == b"size" => self.extensions.set_disputed_size(value),
                _ => {}
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

/// How long a header says that its entry is. A sign is no digit: programs differ in what they make of one.
fn entry_size(header: &Header) -> io::Result<u64> {
    if header.as_old().size.contains(&b'+') && header.as_old().size.is_ascii() {
        return Err(invalid("malformed size"));
    }
    header.entry_size()
}

/// Takes the first of some PAX records apart, "length key=value\n": its key, its value and what follows it. None if it is not as POSIX
/// has it.
fn pax_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|byte| !byte.is_ascii_digit())?;
    let length = std::str::from_utf8(records.get(..space)?).ok()?.parse().ok()?;
    let (record, behind) = records.split_at_checked(length)?;
    let record = record.get(space..)?.strip_prefix(b" ")?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, behind))
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
