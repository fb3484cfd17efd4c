//! RAR archives from 1.3 to 7, solid or not, encrypted or not, over the `rars` crate.
//!
//! The crate writes members where it is told to and can't be read from, and it keeps its input: both are held in memory here, one
//! member at a time, and an archive or a member beyond the constants below counts as one that takes too much memory. Volumes are
//! not put together: members that go on in another one are told as broken. A panic of the crate is an archive that is broken.
//!
//! In a program for Windows an archive may lie anywhere: what opens self-extracting archives searches for it, and asks no section's leave.

use std::cell::RefCell;
use std::io::{self, Cursor, Read, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use rars::{
    Archive, ArchiveMember, ArchiveReadOptions, ArchiveReader, Error, ErrorKind, ExtractionDecision,
    ExtractionErrorAction,
};

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, display_name, read_full};
use crate::fields::{le16, le32};
use crate::format::{Claim, Claims, Format, Probe, whole_if};
use crate::limits::Limit;
use crate::outcome::{ExtractionOutcome, Protection};
use crate::parts::{Out, read_vec};
use crate::passwords::Passwords;
use crate::pe;

/// The longest archive that is taken apart: it lies in memory, beside a member and the decoder's dictionary.
const ARCHIVE_BYTES_MAX: u64 = 48 << 20;
/// The longest member.
const MEMBER_BYTES_MAX: u64 = 64 << 20;
/// The largest dictionary; the decoder's other structures come on top.
const DICTIONARY_BYTES_MAX: u64 = 64 << 20;
/// All that a decoder may hold.
const WORKSPACE_BYTES_MAX: u64 = 96 << 20;
/// Most headers of an archive, and most bytes in them.
const HEADERS_MAX: u64 = 1 << 20;
const HEADER_BYTES_MAX: u64 = 32 << 20;

/// How far programs search for an archive in a program, and how many of the places that look like one are looked into.
const PROGRAM_BYTES_MAX: u64 = 4 << 20;
const PLACES_MAX: usize = 4096;
const SEARCH_BYTES: u64 = 256 << 10;
/// What the archives begin with that are searched for.
const MARK: &[u8] = b"Rar!\x1a\x07";
/// The longest first header of an archive in a program: a real one has some twenty bytes.
const FIRST_HEADER_BYTES_MAX: usize = 512;

/// RAR.
pub(crate) static FORMAT: Format = Format {
    name: "rar",
    description: "RAR",
    mime: "application/vnd.rar",
    extension: "rar",
    category: "A",
    // What unpacks itself is a program.
    beside: &["pe", "upx"],
    probe: |probe| {
        if probe.head.starts_with(b"MZ") {
            return in_program(probe);
        }
        let marks: [&[u8]; 3] = [b"Rar!\x1a\x07\0", b"Rar!\x1a\x07\x01\0", b"RE~^"];
        whole_if(marks.iter().any(|mark| probe.head.starts_with(mark)))
    },
    extractor: &Rar,
};

/// The first archive in a program, unless the program's reader hands it out.
fn in_program(probe: &mut Probe<'_>) -> io::Result<Claims> {
    let finder = memchr::memmem::Finder::new(MARK);
    let end = probe.length.min(PROGRAM_BYTES_MAX);
    let (mut offset, mut places) = (0, 0);
    while offset < end {
        let block = read_vec(probe.input, offset, (end - offset).min(SEARCH_BYTES), SEARCH_BYTES)?;
        for at in finder.find_iter(&block) {
            let place = offset + at as u64;
            places += 1;
            if places > PLACES_MAX {
                // One of them may be an archive: whoever opens this one tells that it is none.
                return Ok(vec![Claim::Whole(place)]);
            }
            let mut start = [0; MARK.len() + 2 + FIRST_HEADER_BYTES_MAX];
            probe.input.seek(SeekFrom::Start(place))?;
            let read = read_full(probe.input, &mut start)?;
            if begins_archive(start.get(..read).unwrap_or_default()) {
                let comes_out = pe::comes_out(probe.input, probe.length, place);
                return Ok(if comes_out { Vec::new() } else { vec![Claim::Whole(place)] });
            }
        }
        if offset + block.len() as u64 >= end {
            break;
        }
        // A mark that goes on behind this block is found with the next one.
        offset += (block.len() + 1 - MARK.len()) as u64;
    }
    Ok(Vec::new())
}

/// Whether an archive of version 3 or later begins here by more than its mark, which programs that open archives have in their own data: the
/// first header has a checksum.
pub(crate) fn begins_archive(bytes: &[u8]) -> bool {
    match bytes.strip_prefix(MARK) {
        Some([1, 0, header @ ..]) => {
            // Its checksum, its length behind this number of one or two bytes, its type: main or encryption.
            let Some(crc) = le32(header, 0) else { return false };
            let (length, digits) = match header.get(4..) {
                Some([low @ 0..0x80, ..]) => (usize::from(*low), 1),
                Some([low, high @ 0..0x80, ..]) => (usize::from(low & 0x7f) | usize::from(*high) << 7, 2),
                _ => return false,
            };
            let summed = header.get(4..4 + digits + length).unwrap_or_default();
            matches!(summed.get(digits), Some(1 | 4)) && crc32fast::hash(summed) == crc
        }
        Some([0, header @ ..]) => {
            let (Some(crc), Some(length)) = (le16(header, 0), le16(header, 5)) else { return false };
            // A comment in the header is not part of the sum.
            let sums = |end: usize| header.get(2..end).is_some_and(|summed| crc32fast::hash(summed) as u16 == crc);
            header.get(2) == Some(&0x73) && (sums(13) || sums(usize::from(length)))
        }
        _ => false,
    }
}

struct Rar;

impl Extractor for Rar {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let length = container.length;
        // What follows an archive in a program need not fit.
        let bytes = match read_vec(&mut *container.input, 0, length.min(ARCHIVE_BYTES_MAX), ARCHIVE_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) => return out.end("the archive can't be read", Err(error)),
        };
        let passwords = container.passwords;
        // The crate's bounds are its own; whatever they miss must cost this archive alone.
        if catch_unwind(AssertUnwindSafe(|| archive(bytes, passwords, &mut out))).is_err() {
            out.outcome.note_broken("the archive is broken: its reader failed");
        }
        if length > ARCHIVE_BYTES_MAX && out.outcome.broken.is_some() {
            out.outcome.note_limit(Limit::Memory);
            out.outcome.note_broken(format!("the archive is {length} bytes long, {ARCHIVE_BYTES_MAX} are allowed"));
        }
        out.outcome
    }
}

fn options(password: Option<&str>) -> ArchiveReadOptions<'_> {
    let mut options = ArchiveReadOptions::with_optional_password(password.map(str::as_bytes));
    options.max_header_count = Some(HEADERS_MAX);
    options.max_header_bytes = Some(HEADER_BYTES_MAX);
    options.rar50_dictionary_size_limit = Some(DICTIONARY_BYTES_MAX);
    options.rar50_buffered_decode_limit = Some(DICTIONARY_BYTES_MAX);
    options.max_member_output_bytes = Some(MEMBER_BYTES_MAX);
    options.max_reader_workspace_bytes = Some(WORKSPACE_BYTES_MAX);
    options
}

/// Whether a password was missing or wrong.
fn asks_password(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::PasswordRequired | ErrorKind::BadPassword)
}

fn note(error: &Error, context: &str, outcome: &mut ExtractionOutcome) {
    if asks_password(error) {
        return outcome.note_protected(Protection::Archive);
    }
    if error.kind() == ErrorKind::ResourceLimit {
        outcome.note_limit(Limit::Memory);
    }
    outcome.note_broken(format!("{context}: {error}"));
}

fn archive(bytes: Vec<u8>, passwords: &Passwords, out: &mut Out<'_, '_>) {
    let bytes: Rc<[u8]> = bytes.into();
    let first = ArchiveReader::read_with_options(&bytes, options(None));
    let (archive, password) = match first {
        Ok(archive) => {
            drop(bytes);
            let password = member_password(&archive, passwords, out);
            (archive, password)
        }
        // The headers themselves are encrypted.
        Err(error) if asks_password(&error) || passwords_matter(&error) => {
            let opened = passwords.iter().find_map(|password| {
                out.check().ok()?;
                let archive = ArchiveReader::read_with_options(&bytes, options(Some(password))).ok()?;
                Some((archive, Some(password)))
            });
            match opened {
                Some(opened) => opened,
                None => return note(&error, "the archive is broken", &mut out.outcome),
            }
        }
        Err(error) => return note(&error, "the archive is broken", &mut out.outcome),
    };
    if out.is_over() {
        return;
    }
    members(&archive, password, out);
    // Before version 5 writers could leave the end out.
    if let Some(archive) = archive.as_rar50() {
        match archive.blocks.last() {
            Some(rars::rar50::Block::End(end)) if end.has_next_volume() => {
                out.outcome.note_broken("the archive goes on in another volume");
            }
            Some(rars::rar50::Block::End(_)) => {}
            _ => out.outcome.note_broken("the archive has no end"),
        }
    }
}

/// Whether an archive that can't be parsed without a password might be with one.
fn passwords_matter(error: &Error) -> bool {
    error.kind() == ErrorKind::UnsupportedFeature
}

/// The first password that opens the first encrypted member.
fn member_password<'p>(archive: &Archive, passwords: &'p Passwords, out: &mut Out<'_, '_>) -> Option<&'p str> {
    let is_one = |member: &ArchiveMember| member.meta.is_encrypted && !member.meta.is_directory;
    let at = archive.members().position(|member| is_one(&member))?;
    passwords.iter().find(|password| {
        out.check().is_ok() && matches!(archive.read_member_at_with_options(at, options(Some(password))), Ok(Some(_)))
    })
}

/// A member that is being decoded, or is about to be handed out.
struct Pending {
    name: String,
    is_encrypted: bool,
    content: Rc<RefCell<Vec<u8>>>,
}

/// Where the crate writes a member.
struct Buffer(Rc<RefCell<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut content = self.0.borrow_mut();
        if content.len() as u64 + bytes.len() as u64 > MEMBER_BYTES_MAX {
            return Err(io::Error::other("a member longer than it says"));
        }
        content.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The members on their way from the crate to the sink: each is handed out when the next one begins.
struct Walk<'w, 'o, 's> {
    out: &'w mut Out<'o, 's>,
    has_password: bool,
    is_solid: bool,
    pending: Option<Pending>,
}

impl Walk<'_, '_, '_> {
    /// Hands out the member that was decoded, with the error that it ended with, if it did.
    fn hand_out(&mut self, failure: Option<&Error>) {
        let Some(pending) = self.pending.take() else { return };
        // With a wrong password members of old archives decode to anything.
        if let Some(error) = failure
            && (asks_password(error) || (pending.is_encrypted && error.kind() == ErrorKind::ChecksumMismatch))
        {
            return self.out.outcome.note_protected(Protection::Archive);
        }
        if failure.is_some_and(|error| error.kind() == ErrorKind::ResourceLimit) {
            self.out.outcome.note_limit(Limit::Memory);
        }
        let content = pending.content.take();
        let length = content.len() as u64;
        let mut content = Cursor::new(content).chain(Failing(failure.map(ToString::to_string)));
        self.out.member(pending.name, Some(length), &mut content);
    }

    fn decide(&mut self, member: &ArchiveMember) -> ExtractionDecision {
        self.hand_out(None);
        if self.out.is_over() {
            return ExtractionDecision::Stop;
        }
        let meta = &member.meta;
        let name = display_name(meta.name_bytes());
        let skip = if self.is_solid { ExtractionDecision::Stop } else { ExtractionDecision::Skip };
        if meta.is_directory || meta.is_redirection {
            return ExtractionDecision::Skip;
        }
        if meta.is_split_before || meta.is_split_after {
            let outcome = &mut self.out.outcome;
            outcome.note_broken(format!("member {name:?} goes on in another volume"));
            return skip;
        }
        if meta.is_encrypted && !self.has_password {
            self.out.outcome.note_protected(Protection::Archive);
            return skip;
        }
        let content: Rc<RefCell<Vec<u8>>> = Rc::default();
        self.pending = Some(Pending { name, is_encrypted: meta.is_encrypted, content: content.clone() });
        ExtractionDecision::Extract(Box::new(Buffer(content)))
    }
}

fn members(archive: &Archive, password: Option<&str>, out: &mut Out<'_, '_>) {
    let is_solid = archive.is_solid();
    let walk = RefCell::new(Walk { out, has_password: password.is_some(), is_solid, pending: None });
    let result = archive.extract_with_control_and_errors(
        options(password),
        |member| Ok(walk.borrow_mut().decide(member)),
        |_, error| {
            walk.borrow_mut().hand_out(Some(error));
            Ok(ExtractionErrorAction::Continue)
        },
    );
    let mut walk = walk.into_inner();
    match result {
        Ok(_) => walk.hand_out(None),
        Err(error) => {
            walk.hand_out(Some(&error));
            if !asks_password(&error) || walk.out.outcome.protected.is_none() {
                note(&error, "the archive is broken", &mut walk.out.outcome);
            }
        }
    }
}

/// Ends with an error, if there is one.
struct Failing(Option<String>);

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), |failure| Err(io::Error::other(failure)))
    }
}
