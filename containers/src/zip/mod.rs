//! ZIP, read by its central directory and by its local headers.
//!
//! A ZIP file says twice what is in it, and programs differ in which they believe; so does malware. Here the members of the
//! central directory are handed out first, in its order. Then everything that they don't cover is searched for local
//! headers, and what those lead to is handed out too. Where the two disagree the archive is suspicious: a member only in one of
//! them, other data under one name, two directories, members that overlap. Where there are several directories, since programs differ in
//! how they look for them, the members of all are handed out. A member covers what its data was decoded from: a header may say that it
//! goes on behind that, but programs that read from the front go on there.
//!
//! The whole is walked here rather than by a library, since those keep one entry a name and believe one directory. The `zip`
//! crate writes the archives that the tests read.

mod crypt;
mod decode;
mod format;
mod legacy;
mod probe;
mod whole;

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read, SeekFrom};

use self::format::{
    CentralHeaders, Directories, Entry, FLAG_DESCRIPTOR, LIKELY_BYTES, LOCAL_SIGNATURE, Local, METHOD_STORED,
    find_directories, is_likely_local, read_local,
};
use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name, hand_out};
use crate::format::Format;
use crate::outcome::{ExtractionOutcome, Protection};
use crate::parts::read_start;
use crate::passwords::Passwords;
use crate::pe;

pub(crate) use self::format::is_end_of_archive;

/// How much is read from the container at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// How much is searched for local headers at once.
const SEARCH_BYTES: usize = 64 * 1024;
/// How long the descriptor is that follows a member, without and with its signature. With ZIP64 it is longer.
const DESCRIPTOR_BYTES: [u64; 2] = [12, 16];
const DESCRIPTOR_SIGNATURE: [u8; 4] = *b"PK\x07\x08";

/// ZIP, and whatever is one inside: office documents, Java archives, packages.
pub(crate) static FORMAT: Format = Format {
    name: "zip",
    description: "ZIP",
    mime: "application/zip",
    extension: "zip",
    category: "A",
    beside: &[],
    probe: probe::probe,
    extractor: &Zip,
};

struct Zip;

impl Extractor for Zip {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut walk = Walk {
            input: &mut *container.input,
            length: container.length,
            budget,
            sink,
            outcome: ExtractionOutcome::default(),
            covered: Vec::new(),
            passwords: container.passwords,
            last_password: 0,
            bench: whole::Bench::default(),
        };
        if let Err(error) = walk.run() {
            walk.outcome.note_error("the archive is broken", &error);
        }
        walk.outcome
    }
}

/// Part of the file that a header accounts for: from its first byte up to but not including its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    start: u64,
    end: u64,
    /// Where it ends by what was read of it, if that is before.
    read_end: u64,
    /// Its lengths and checksum follow it.
    has_descriptor: bool,
    /// Neither its local header nor its data says where it ends.
    is_open: bool,
}

impl Span {
    fn new(start: u64, end: u64) -> Self {
        Self { start, end, read_end: end, has_descriptor: false, is_open: false }
    }
}

struct Walk<'w, 's> {
    input: &'w mut dyn ReadSeek,
    length: u64,
    budget: &'w Budget,
    sink: &'w mut Sink<'s>,
    outcome: ExtractionOutcome,
    covered: Vec<Span>,
    passwords: &'w Passwords,
    /// Which of them opened the last encrypted member.
    last_password: usize,
    bench: whole::Bench,
}

impl Walk<'_, '_> {
    fn run(&mut self) -> io::Result<()> {
        let directories = find_directories(self.input, self.length)?;
        match &directories {
            Some(directories) => self.central_members(directories)?,
            None => self.outcome.note_broken("the archive has no central directory: it is cut off"),
        }
        // What the directory doesn't name is found by searching, and by one walk is enough.
        if !self.outcome.is_over() && self.budget.takes_rest() {
            self.hidden_members(directories.is_some())?;
        }
        Ok(())
    }

    fn central_members(&mut self, directories: &Directories) -> io::Result<()> {
        let end_records = directories.end_records.iter().map(|(start, end)| Span::new(*start, *end));
        self.covered.extend(end_records);
        if directories.has_more {
            self.outcome.note_suspicious("the archive has more end records than any real one");
        }
        if directories.list.is_empty() && !directories.is_empty {
            self.outcome.note_broken("the central directory is not where the end record says");
        }
        if directories.list.len() > 1 {
            self.outcome.note_suspicious("the archive has two central directories");
        }
        for directory in &directories.list {
            // A second directory leads to the same data mostly: once is enough.
            let mut handed_out = self.covered.clone();
            handed_out.sort_unstable();
            let mut headers = CentralHeaders::new(*directory);
            let mut entries = 0u64;
            while let Some(entry) = headers.next(self.input)? {
                entries += 1;
                self.budget.check()?;
                self.central_member(&entry, &handed_out)?;
                if self.outcome.is_over() {
                    return Ok(());
                }
            }
            if let Some(counted) = directory.entries.filter(|counted| *counted != entries as u16) {
                self.outcome.note_suspicious(format!(
                    "the end record counts {counted} members, the central directory has {entries}"
                ));
            }
            self.covered.push(Span::new(directory.start, headers.offset()));
        }
        Ok(())
    }

    fn central_member(&mut self, entry: &Entry, handed_out: &[Span]) -> io::Result<()> {
        let shown = display_name(&entry.name);
        let Some(local) = read_local(self.input, entry.header_offset)? else {
            self.outcome.note_broken(format!("member {shown:?} has no local header"));
            return Ok(());
        };
        let end = local.data_offset.saturating_add(entry.compressed_bytes);
        let place = (entry.header_offset, end);
        if handed_out.binary_search_by_key(&place, |span| (span.start, span.end)).is_ok() {
            return Ok(());
        }
        let span = self.covered.len();
        let has_descriptor = local.entry.flags & FLAG_DESCRIPTOR != 0;
        let is_open = has_descriptor && entry.method == METHOD_STORED && local.entry.compressed_bytes == 0;
        self.covered.push(Span { has_descriptor, is_open, ..Span::new(entry.header_offset, end) });
        let difference = difference(entry, &local.entry);
        if entry.is_directory() {
            // A writer that compresses a directory's nothing gives it a length: two bytes.
            let unbounded = local.entry.flags & FLAG_DESCRIPTOR != 0 && local.entry.method != METHOD_STORED;
            if difference.is_some() || unbounded {
                self.outcome.note_suspicious(format!("directory {shown:?} has content by its local header"));
            }
            return Ok(());
        }
        if let Some(what) = difference {
            self.outcome.note_suspicious(format!("member {shown:?} has two different {what}"));
        }
        let read_end = self.member(entry, local.data_offset, entry.is_encrypted() && local.entry.is_encrypted())?;
        if let Some(span) = self.covered.get_mut(span) {
            span.read_end = read_end.min(end);
        }
        if self.budget.is_shared() && read_end < end && !self.outcome.is_over() {
            // Whoever searches what is not covered need not be whoever read this member. Nobody's data end so far before they should that
            // it takes long.
            let is_long = end - read_end > SEARCH_BYTES as u64;
            let remark = format!("member {shown:?} has another one behind its end");
            if is_long {
                self.outcome.note_suspicious(remark);
            } else {
                self.search(read_end, end, &mut |walk, _| {
                    walk.outcome.note_suspicious(remark.clone());
                    Ok(end)
                })?;
            }
        }
        if matches!(difference, Some("methods" | "lengths")) && !self.outcome.is_over() {
            self.member(&local.entry, local.data_offset, local.entry.is_encrypted())?;
        }
        Ok(())
    }

    /// Hands out the member whose data begins at `data_offset`. Tells where the data ended that it was decoded from, or should have if it
    /// could not be decoded, or was not here.
    fn member(&mut self, entry: &Entry, data_offset: u64, encrypted: bool) -> io::Result<u64> {
        let end = data_offset.saturating_add(entry.compressed_bytes);
        let shown = display_name(&entry.name);
        let key = if encrypted { self.key(entry, data_offset)? } else { None };
        if encrypted && key.is_none() {
            self.outcome.note_protected(Protection::Archive);
            return Ok(end);
        }
        let summed_up = entry.aes.is_none_or(|aes| !encrypted || aes.version != 2);
        let skip_bytes = key.as_ref().map_or(0, |key| key.skip_bytes);
        // Behind encrypted data may be its checksum.
        let packed_bytes = key.as_ref().map_or(entry.compressed_bytes, |key| key.data_bytes);
        let used_bytes = Cell::new(0);
        self.input.seek(SeekFrom::Start(data_offset.saturating_add(skip_bytes)))?;
        let decoder = match key {
            Some(key) => {
                let method = key.method;
                let data = Used { input: crypt::Decrypting::new(&mut *self.input, key), bytes: &used_bytes };
                decode::decoder(method, entry.flags, entry.size_bytes, data)
            }
            None if entry.method == decode::DEFLATED && whole::is_short(entry.compressed_bytes, entry.size_bytes) => {
                let data = (&mut *self.input).take(entry.compressed_bytes);
                Ok(Box::new(whole::Short::new(&mut self.bench, data, entry.size_bytes, &used_bytes))
                    as Box<dyn Read + '_>)
            }
            None => {
                let input = BufReader::with_capacity(BUFFER_BYTES, (&mut *self.input).take(entry.compressed_bytes));
                let data = Used { input, bytes: &used_bytes };
                decode::decoder(entry.method, entry.flags, entry.size_bytes, data)
            }
        };
        let mut content = match decoder {
            Ok(decoder) => Summed { content: decoder, crc: crc32fast::Hasher::new(), bytes: 0 },
            Err(error) => {
                self.outcome.note_error(&format!("member {shown:?}"), &error);
                return Ok(end);
            }
        };
        match self.budget.takes_next() {
            Ok(true) => {}
            Ok(false) => {
                // The next member's place is known without reading this one.
                let counted = self.budget.count_file();
                self.budget.pass_over(entry.compressed_bytes);
                if let Err(halt) = counted {
                    self.outcome.note_halt(halt);
                }
                return Ok(end);
            }
            Err(halt) => {
                self.outcome.note_halt(halt);
                return Ok(end);
            }
        }
        match hand_out(shown.clone(), Some(entry.size_bytes), &mut content, self.budget, self.sink) {
            Ok(None) if content.bytes != entry.size_bytes => self.outcome.note_broken(format!(
                "member {shown:?} has {} bytes, its header says {}",
                content.bytes, entry.size_bytes
            )),
            // AES members of version 2 have no checksum.
            Ok(None) if summed_up && content.crc.clone().finalize() != entry.crc32 => {
                self.outcome.note_broken(format!("member {shown:?} doesn't have the checksum that its header says"));
            }
            Ok(None) => {}
            Ok(Some(error)) => {
                self.outcome.note_error(&format!("member {shown:?}"), &error);
                return Ok(end);
            }
            Err(halt) => {
                self.outcome.note_halt(halt);
                return Ok(end);
            }
        }
        drop(content);
        let is_all = used_bytes.get() >= packed_bytes;
        Ok(if is_all { end } else { data_offset.saturating_add(skip_bytes).saturating_add(used_bytes.get()) })
    }

    /// What opens an encrypted member, if one of the passwords does.
    fn key(&mut self, entry: &Entry, data_offset: u64) -> io::Result<Option<crypt::Opened>> {
        if self.passwords.is_empty() {
            return Ok(None);
        }
        self.input.seek(SeekFrom::Start(data_offset))?;
        let mut start = Vec::new();
        (&mut *self.input).take(crypt::START_BYTES.min(entry.compressed_bytes)).read_to_end(&mut start)?;
        // Most archives have one password: the one that opened the last member comes first.
        let (last, count) = (self.last_password, self.passwords.iter().count());
        let order = std::iter::once(last).chain((0..count).filter(|at| *at != last));
        let list = order.filter_map(|at| self.passwords.iter().nth(at).map(|password| (at, password)));
        let (input, budget) = (&mut *self.input, self.budget);
        let mut check = |opened: &crypt::Opened| {
            input.seek(SeekFrom::Start(data_offset.saturating_add(opened.skip_bytes)))?;
            crypt::fits(entry, opened, &mut *input)
        };
        let found = crypt::open(entry, list, budget, &start, &mut check)?;
        Ok(found.map(|(at, opened)| {
            self.last_password = at;
            self.outcome.note_decrypted();
            opened
        }))
    }

    /// Hands out what local headers lead to in the parts of the file that are not covered yet.
    fn hidden_members(&mut self, has_directory: bool) -> io::Result<()> {
        self.covered.sort_unstable();
        let mut covered = std::mem::take(&mut self.covered);
        // Of members that don't overlap all are looked through.
        let mut left_bytes = self.length;
        for span in covered.iter_mut().filter(|span| span.is_open) {
            let Some(left) = left_bytes.checked_sub(span.end.saturating_sub(span.start)) else {
                self.outcome.note_suspicious("members overlap");
                break;
            };
            left_bytes = left;
            span.read_end = self.descriptor_within(*span)?.unwrap_or(span.read_end);
        }
        let (mut gap_start, mut claimed_end) = (0, 0);
        let mut has_descriptor = false;
        for span in covered.iter().copied().chain([Span::new(self.length, self.length)]) {
            if span.start < claimed_end && span.end > span.start {
                self.outcome.note_suspicious("members overlap");
            }
            let gap_bytes = span.start.saturating_sub(gap_start);
            // What programs take for a member's descriptor they don't take for a header: most archives have no other gaps, and are not read
            // again for these.
            if !(has_descriptor && DESCRIPTOR_BYTES.contains(&gap_bytes)) {
                self.search(gap_start, span.start, &mut |walk, local| walk.hidden_member(local, has_directory))?;
            }
            if self.outcome.is_over() {
                return Ok(());
            }
            claimed_end = claimed_end.max(span.end);
            if span.read_end >= gap_start {
                gap_start = span.read_end;
                has_descriptor = span.has_descriptor && span.read_end == span.end;
            }
        }
        if let Some(first) = covered.first().filter(|first| first.start > 0) {
            self.before(first.start)?;
        }
        Ok(())
    }

    /// Hands out what is before the archive: a script, or what other programs open the file as. Not what is a format by its beginning and
    /// has its own reader, for which the archive may be a part of it.
    fn before(&mut self, bytes: u64) -> io::Result<()> {
        let head = read_start(self.input, 5)?;
        if head == b"%PDF-" || head.starts_with(b"\x7fELF") || pe::headers(self.input).is_ok() {
            return Ok(());
        }
        let handed_out = match self.budget.takes_next() {
            Ok(true) => {
                self.input.seek(SeekFrom::Start(0))?;
                let mut content = (&mut *self.input).take(bytes);
                hand_out("before the archive".to_owned(), Some(bytes), &mut content, self.budget, self.sink)
            }
            Ok(false) => self.budget.count_file().map(|()| None),
            Err(halt) => Err(halt),
        };
        match handed_out {
            Ok(None) => {}
            Ok(Some(error)) => return Err(error),
            Err(halt) => self.outcome.note_halt(halt),
        }
        Ok(())
    }

    /// Where a stored member whose header doesn't say how long it is ends for programs that read from the front: where its descriptor seems to
    /// be. One that lies in the content by rights is that of another member, of another length.
    fn descriptor_within(&mut self, span: Span) -> io::Result<Option<u64>> {
        const READ_AGAIN_BYTES: u64 = 11;
        let Some(Local { data_offset, .. }) = read_local(self.input, span.start)? else { return Ok(None) };
        let (mut block, mut offset) = (Vec::new(), data_offset);
        while offset < span.end {
            self.budget.check()?;
            block.clear();
            self.input.seek(SeekFrom::Start(offset))?;
            (&mut *self.input).take((span.end - offset).min(SEARCH_BYTES as u64)).read_to_end(&mut block)?;
            for at in memchr::memmem::find_iter(&block, &DESCRIPTOR_SIGNATURE) {
                let place = offset + at as u64;
                // Signature, checksum, packed length.
                let told = block.get(at + 8..).and_then(|rest| rest.first_chunk());
                if told.is_some_and(|told| u32::from_le_bytes(*told) == (place - data_offset) as u32) {
                    return Ok(Some(place));
                }
            }
            let Some(next) = (block.len() as u64).checked_sub(READ_AGAIN_BYTES).filter(|next| *next > 0) else { break };
            offset += next;
        }
        Ok(None)
    }

    /// Looks for local headers that begin in a part of the file, block by block, so that bytes which merely look like many of them cost
    /// one look each. Where such a header ends is its own affair: that what is covered goes on there is no reason to pass it by.
    /// `found` tells where to search on.
    fn search(
        &mut self,
        start: u64,
        end: u64,
        found: &mut dyn FnMut(&mut Self, &Local) -> io::Result<u64>,
    ) -> io::Result<()> {
        const SIGNATURE_BYTES: u64 = LOCAL_SIGNATURE.len() as u64;
        let mut block = Vec::new();
        let mut offset = start;
        while offset.saturating_add(SIGNATURE_BYTES) <= end {
            self.budget.check()?;
            block.clear();
            let searched_bytes = (end - offset).min(SEARCH_BYTES as u64);
            self.input.seek(SeekFrom::Start(offset))?;
            (&mut *self.input).take(searched_bytes + LIKELY_BYTES as u64).read_to_end(&mut block)?;
            let searched = block.get(..searched_bytes as usize).unwrap_or(&block);
            let mut from = offset;
            for at in memchr::memmem::find_iter(searched, &LOCAL_SIGNATURE) {
                let place = offset + at as u64;
                let header = block.get(at..).unwrap_or_default();
                if place < from || !is_likely_local(header, self.length.saturating_sub(place)) {
                    continue;
                }
                self.budget.check()?;
                if let Some(local) = read_local(self.input, place)? {
                    from = found(self, &local)?.max(place + 1);
                }
                if self.outcome.is_over() {
                    return Ok(());
                }
            }
            // A signature that goes on behind this block is found with the next one.
            offset = from.max(offset + searched_bytes + 1 - SIGNATURE_BYTES);
        }
        Ok(())
    }

    /// Hands out a member that only has a local header; tells where to search on.
    fn hidden_member(&mut self, local: &Local, has_directory: bool) -> io::Result<u64> {
        let Local { entry, data_offset } = local;
        if has_directory && !entry.is_directory() {
            let shown = display_name(&entry.name);
            self.outcome.note_suspicious(format!("member {shown:?} is not in the central directory"));
        }
        let length_unknown = entry.flags & FLAG_DESCRIPTOR != 0 && entry.compressed_bytes == 0;
        if entry.is_directory() && !length_unknown {
            return Ok(*data_offset);
        }
        if length_unknown && !entry.is_encrypted() {
            return self.hidden_member_of_unknown_length(entry, *data_offset);
        }
        self.member(entry, *data_offset, entry.is_encrypted())
    }

    /// The same for a member whose lengths follow its data: the data itself says where it ends.
    fn hidden_member_of_unknown_length(&mut self, entry: &Entry, data_offset: u64) -> io::Result<u64> {
        let shown = display_name(&entry.name);
        self.input.seek(SeekFrom::Start(data_offset))?;
        if entry.method != decode::DEFLATED {
            self.outcome.note_broken(format!("member {shown:?} doesn't say how long it is"));
            return Ok(data_offset);
        }
        let data = BufReader::with_capacity(BUFFER_BYTES, &mut *self.input);
        let mut content = flate2::bufread::DeflateDecoder::new(data);
        match hand_out(shown.clone(), None, &mut content, self.budget, self.sink) {
            Ok(None) => {}
            Ok(Some(error)) => self.outcome.note_error(&format!("member {shown:?}"), &error),
            Err(halt) => self.outcome.note_halt(halt),
        }
        Ok(data_offset.saturating_add(content.total_in()))
    }
}

/// In what a central and a local header differ, if in anything that changes what is extracted.
fn difference(central: &Entry, local: &Entry) -> Option<&'static str> {
    let lengths_known = local.flags & FLAG_DESCRIPTOR == 0 || local.compressed_bytes != 0;
    if central.method != local.method {
        Some("methods")
    } else if lengths_known
        && (central.compressed_bytes, central.size_bytes) != (local.compressed_bytes, local.size_bytes)
    {
        Some("lengths")
    } else if central.is_encrypted() != local.is_encrypted() {
        Some("answers to whether it is encrypted")
    } else if central.name != local.name {
        Some("names")
    } else {
        None
    }
}

/// Counts what a decoder uses of its input, whatever a buffer below has read ahead.
struct Used<'u, R> {
    input: R,
    bytes: &'u Cell<u64>,
}

impl<R: BufRead> Read for Used<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        self.bytes.set(self.bytes.get().saturating_add(read as u64));
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Used<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.bytes.set(self.bytes.get().saturating_add(bytes as u64));
        self.input.consume(bytes);
    }
}

/// Sums up what is read.
struct Summed<'d> {
    content: Box<dyn Read + 'd>,
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl Read for Summed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(into)?;
        self.crc.update(into.get(..read).unwrap_or_default());
        self.bytes += read as u64;
        Ok(read)
    }
}
