//! RAR archives from 1.3 to 7, solid or not, encrypted or not, over the `rars` crate.
//!
//! The crate writes members where it is told to and can't be read from, and it keeps its input: both are held in memory here, one
//! member at a time, and an archive or a member beyond the constants below counts as one that takes too much memory. Volumes are
//! not put together: members that go on in another one are told as broken. A panic of the crate is an archive that is broken.
//!
//! In a program for Windows an archive may lie anywhere: what opens self-extracting archives searches for it, and asks no section's leave.
//!
//! What the crate keeps apart from the members comes out too: comments, alternate streams, which WinRAR writes to NTFS unasked, and
//! what directories and records of no known kind hold. Not so what tells of members or mends them, which no program shows. An archive behind
//! the end of another one is a member; what else lies there no program opens.

use std::cell::RefCell;
use std::io::{self, BufReader, Cursor, Read, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use rars::{
    Archive, ArchiveMember, ArchiveReadOptions, ArchiveReader, Error, ErrorKind, ExtractionDecision,
    ExtractionErrorAction, rar15_40, rar50,
};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name, read_full};
use crate::fields::{le16, le32};
use crate::format::{Claim, Claims, Format, Probe, whole_if};
use crate::limits::Limit;
use crate::outcome::{ExtractionOutcome, Protection};
use crate::parts::{Out, read_array, read_vec};
use crate::passwords::Passwords;
use crate::pe;
use crate::stream::is_zeros;

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

/// Records that tell of members or mend them: owners, rights and attributes, the list for opening quickly, recovery, authenticity; and which
/// program wrote the archive.
const RECORDS_OF_NO_CONTENT: [&[u8]; 9] = [b"QO", b"RR", b"ACL", b"NTACL", b"UOW", b"EA2", b"EABE", b"AV", b"RARS"];
/// Flags of an archive that is solid, of a member that goes on from the one before it, and of a directory; in versions 5 and later, and before.
const SOLID: u64 = 4;
const SOLID_4: u16 = 8;
const GOES_ON: u64 = 0x40;
const GOES_ON_4: u16 = 0x10;
const DIRECTORY: u64 = 1;
const DIRECTORY_4: u16 = 0xe0;
const DIRECTORY_ATTRIBUTE: u32 = 0x10;
/// Records of RAR 2 besides those of files, which kind of them are alternate streams, and how much of their headers tells how they are packed.
const OLD_RECORD_4: u8 = 0x77;
const OLD_STREAM: u16 = 0x105;
const OLD_STREAM_HEADER_BYTES: usize = 20;
const STORED_4: u8 = 0x30;

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
        let all = || {
            let Some((archive, password)) = opened(bytes, passwords, &mut out) else { return };
            whole(archive, password, &mut *container.input, length, &mut out);
        };
        if catch_unwind(AssertUnwindSafe(all)).is_err() {
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

/// An archive, and the password that opens it; none, which is noted, if it can't be read.
fn opened<'p>(bytes: Vec<u8>, passwords: &'p Passwords, out: &mut Out<'_, '_>) -> Option<(Archive, Option<&'p str>)> {
    let bytes: Rc<[u8]> = bytes.into();
    let error = match ArchiveReader::read_with_options(&bytes, options(None)) {
        Ok(archive) => {
            drop(bytes);
            let password = member_password(&archive, passwords, out);
            if password.is_some() {
                out.outcome.note_decrypted();
            }
            return Some((archive, password));
        }
        Err(error) => error,
    };
    // The headers themselves are encrypted.
    let opened = (asks_password(&error) || passwords_matter(&error)).then(|| {
        passwords.iter().find_map(|password| {
            out.check().ok()?;
            let archive = ArchiveReader::read_with_options(&bytes, options(Some(password))).ok()?;
            Some((archive, Some(password)))
        })
    });
    let opened = opened.flatten();
    match &opened {
        Some(_) => out.outcome.note_decrypted(),
        None => note(&error, "the archive is broken", &mut out.outcome),
    }
    opened
}

/// Hands out all of an archive, which begins a file of `length` bytes, and what is behind it.
fn whole(archive: Archive, password: Option<&str>, input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) {
    if out.is_over() {
        return;
    }
    comment(&archive, password, out);
    members(&archive, password, out);
    // Before version 5 writers could leave the end out.
    if let Some(archive) = archive.as_rar50() {
        match archive.blocks.last() {
            Some(rar50::Block::End(end)) if end.has_next_volume() => {
                out.outcome.note_broken("the archive goes on in another volume");
            }
            Some(rar50::Block::End(_)) => {}
            _ => out.outcome.note_broken("the archive has no end"),
        }
    }
    if let Some(archive) = archive.as_rar15_40() {
        old_streams(archive, input, out);
    }
    let end = end(&archive);
    if !out.is_over()
        && let Some(kept_apart) = kept_apart(archive)
    {
        members(&kept_apart, password, out);
    }
    if let Some(end) = end {
        behind(input, end, length, out);
    }
}

/// Where an archive ends by its own end record.
fn end(archive: &Archive) -> Option<u64> {
    if let Some(archive) = archive.as_rar50() {
        let Some(rar50::Block::End(end)) = archive.blocks.last() else { return None };
        return Some(end.block.data_range.end as u64);
    }
    let archive = archive.as_rar15_40()?;
    let Some(rar15_40::Block::End(end)) = archive.blocks.last() else { return None };
    let header = u64::from(end.head_size);
    // An encrypted header has a salt before it, and is filled up to whole blocks.
    let header = if archive.main.has_encrypted_headers() { 8 + header.next_multiple_of(16) } else { header };
    Some((end.offset as u64).saturating_add(header).saturating_add(end.add_size.unwrap_or(0)))
}

/// Hands out what is behind an archive's end, unless it is zeros, which fill up a medium's last block: another archive, or what programs
/// show that take the file for something else.
fn behind(input: &mut dyn ReadSeek, end: u64, length: u64, out: &mut Out<'_, '_>) {
    if end >= length || out.is_over() {
        return;
    }
    match input.seek(SeekFrom::Start(end)).and_then(|_| is_zeros(&mut BufReader::new(&mut *input))) {
        Ok(false) => {
            out.stored("behind the archive".to_owned(), input, end, length - end);
        }
        Ok(true) => {}
        Err(error) => out.outcome.note_error("what is behind the archive can't be read", &error),
    }
}

/// Hands out the comment of an old archive, which is no record like members'.
fn comment(archive: &Archive, password: Option<&str>, out: &mut Out<'_, '_>) {
    let is_old =
        |archive: &rar15_40::Archive| archive.blocks.iter().any(|block| matches!(block, rar15_40::Block::Comment(_)));
    if archive.as_rar13().is_none() && !archive.as_rar15_40().is_some_and(is_old) {
        return;
    }
    match archive.comment_with_options(options(password)) {
        Ok(Some(comment)) => {
            out.member("CMT".to_owned(), Some(comment.len() as u64), &mut &*comment);
        }
        Ok(None) => {}
        Err(error) => note(&error, "the archive's comment is broken", &mut out.outcome),
    }
}

/// Hands out alternate streams as RAR 2 wrote them.
fn old_streams(archive: &rar15_40::Archive, input: &mut dyn ReadSeek, out: &mut Out<'_, '_>) {
    for block in &archive.blocks {
        let rar15_40::Block::Unknown(record) = block else { continue };
        let length = record.add_size.unwrap_or(0);
        if record.head_type != OLD_RECORD_4 || length == 0 {
            continue;
        }
        if out.is_over() {
            return;
        }
        match read_array::<OLD_STREAM_HEADER_BYTES>(input, record.offset as u64) {
            Ok(header) if le16(&header, 11) != Some(OLD_STREAM) => {}
            Ok(header) if header.get(19) == Some(&STORED_4) => {
                let data = record.offset as u64 + u64::from(record.head_size);
                out.stored("STM".to_owned(), input, data, length);
            }
            Ok(_) => out.outcome.note_broken("a compressed alternate stream of RAR 2 is not read"),
            Err(error) => return out.outcome.note_error("a record can't be read", &error),
        }
    }
}

/// An archive of what the crate keeps apart from the members of another one, as members; none if there is nothing.
fn kept_apart(archive: Archive) -> Option<Archive> {
    match archive {
        Archive::Rar50Plus(mut archive) => {
            archive.main.archive_flags &= !SOLID;
            let mut member = Vec::new();
            let blocks = std::mem::take(&mut archive.blocks).into_iter();
            archive.blocks = blocks.filter_map(|block| record(block, &mut member)).map(rar50::Block::File).collect();
            (!archive.blocks.is_empty()).then_some(Archive::Rar50Plus(archive))
        }
        Archive::Rar15To40(mut archive) => {
            archive.main.flags &= !SOLID_4;
            let mut member = Vec::new();
            let blocks = std::mem::take(&mut archive.blocks).into_iter();
            let records = blocks.filter_map(|block| record_4(block, &mut member));
            archive.blocks = records.map(rar15_40::Block::File).collect();
            (!archive.blocks.is_empty()).then_some(Archive::Rar15To40(archive))
        }
        _ => None,
    }
}

/// A record that holds what no member does, as a member; `member` is the name of the one before it, and then its own.
fn record(block: rar50::Block, member: &mut Vec<u8>) -> Option<rar50::FileHeader> {
    let mut record = match block {
        rar50::Block::File(file) => {
            *member = file.name.clone();
            file.is_directory().then_some(file)?
        }
        rar50::Block::Service(mut service) => {
            if RECORDS_OF_NO_CONTENT.contains(&service.name.as_slice()) {
                return None;
            }
            // Of an alternate stream the name is with the record: `:name`.
            let stream = service.service_data.take().filter(|stream| stream.starts_with(b":"));
            service.name = record_name(member, stream.as_deref(), &service.name);
            service
        }
        _ => return None,
    };
    record.file_flags &= !DIRECTORY;
    record.compression_info &= !GOES_ON;
    record.redirection = None;
    (!record.block.data_range.is_empty()).then_some(record)
}

/// The same for archives before version 5.
fn record_4(block: rar15_40::Block, member: &mut Vec<u8>) -> Option<rar15_40::FileHeader> {
    let mut record = match block {
        rar15_40::Block::File(file) => {
            *member = file.name.clone();
            file.is_directory().then_some(file)?
        }
        rar15_40::Block::NewSub(sub) => {
            let mut record = sub.file;
            if RECORDS_OF_NO_CONTENT.contains(&record.name.as_slice()) {
                return None;
            }
            record.name = record_name(member, None, &record.name);
            record
        }
        _ => return None,
    };
    record.unicode_name = None;
    record.block.flags &= !(DIRECTORY_4 | GOES_ON_4);
    record.attr &= !DIRECTORY_ATTRIBUTE;
    (!record.packed_range.is_empty()).then_some(record)
}

/// What a record is called: the archive's own as itself, a member's behind that.
fn record_name(member: &[u8], stream: Option<&[u8]>, name: &[u8]) -> Vec<u8> {
    match stream {
        Some(stream) => [member, stream].concat(),
        None if member.is_empty() => name.to_vec(),
        None => [member, b":", name].concat(),
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
            if !asks_password(&error) || walk.out.outcome.protected.is_empty() {
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

#[cfg(test)]
mod tests {
    use crate::conformance::{eicar, take_apart};
    use crate::passwords::Passwords;

    const MAIN: u8 = 1;
    const FILE: u8 = 2;
    const SERVICE: u8 = 3;
    const END: u8 = 5;

    /// A record of version 5, whose numbers are all below 128.
    fn record(kind: u8, said: &[u8], extra: &[u8], data: &[u8]) -> Vec<u8> {
        let mut header = vec![kind, u8::from(!extra.is_empty()) | u8::from(!data.is_empty()) << 1];
        header.extend((!extra.is_empty()).then_some(extra.len() as u8));
        header.extend((!data.is_empty()).then_some(data.len() as u8));
        header.extend([said, extra].concat());
        header.insert(0, header.len() as u8);
        [&crc32fast::hash(&header).to_le_bytes(), header.as_slice(), data].concat()
    }

    fn file(kind: u8, name: &[u8], flags: u8, extra: &[u8], data: &[u8]) -> Vec<u8> {
        let crc = crc32fast::hash(data).to_le_bytes();
        let said = [&[flags | 4, data.len() as u8, 0x20], &crc[..], &[0, 0, name.len() as u8], name].concat();
        record(kind, &said, extra, data)
    }

    fn archive(records: &[Vec<u8>]) -> Vec<u8> {
        let (main, end) = (record(MAIN, &[0], &[], &[]), record(END, &[0], &[], &[]));
        [b"Rar!\x1a\x07\x01\0", main.as_slice(), &records.concat(), &end].concat()
    }

    fn members(file: &[u8]) -> Vec<(String, Vec<u8>)> {
        let taken = take_apart(file, &Passwords::NONE);
        assert!(taken.outcome.is_complete(), "{:?}", taken.outcome);
        taken.members
    }

    #[test]
    fn what_is_kept_with_members_comes_out() {
        let member = file(FILE, b"a.txt", 0, &[], b"words");
        let stream_name = [&[7, 7][..], b":x.exe"].concat();
        let stream = file(SERVICE, b"STM", 0, &stream_name, &eicar());
        let rights = file(SERVICE, b"ACL", 0, &[], b"rights");
        let plain = ("a.txt".to_owned(), b"words".to_vec());
        let found = members(&archive(&[member.clone(), rights, stream]));
        assert_eq!(found, [plain.clone(), ("a.txt:x.exe".to_owned(), eicar())]);
        let comment = file(SERVICE, b"CMT", 0, &[], &eicar());
        let found = members(&archive(&[comment, member.clone()]));
        assert_eq!(found, [plain, ("CMT".to_owned(), eicar())]);
        let directory = file(FILE, b"folder", 1, &[], &eicar());
        let found = members(&archive(&[file(FILE, b"empty", 1, &[], &[]), directory]));
        assert_eq!(found, [("folder".to_owned(), eicar())]);
    }

    #[test]
    fn an_archive_behind_another_ones_end_is_a_member() {
        let first = archive(&[file(FILE, b"a.txt", 0, &[], b"words")]);
        let second = archive(&[file(FILE, b"b", 0, &[], &eicar())]);
        let found = members(&[first.as_slice(), &second].concat());
        assert_eq!(found.get(1), Some(&("behind the archive".to_owned(), second)));
        // What fills up a medium's last block is nothing.
        assert_eq!(members(&[first.as_slice(), &[0; 600]].concat()).len(), 1);
    }

    /// A record of versions before 5.
    fn record_4(kind: u8, flags: u16, said: &[u8], data: &[u8]) -> Vec<u8> {
        let length = 7 + said.len() as u16;
        let header = [&[kind], &flags.to_le_bytes()[..], &length.to_le_bytes(), said].concat();
        let sum = crc32fast::hash(&header) as u16;
        [&sum.to_le_bytes(), header.as_slice(), data].concat()
    }

    fn file_4(kind: u8, name: &[u8], flags: u16, data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u32).to_le_bytes();
        let crc = crc32fast::hash(data).to_le_bytes();
        let time = [0; 4];
        let (version, method) = (29, 0x30);
        let name_length = (name.len() as u16).to_le_bytes();
        let said = [&length[..], &length, &[2], &crc, &time, &[version, method], &name_length, &[0x20, 0, 0, 0], name]
            .concat();
        record_4(kind, flags | 0x8000, &said, data)
    }

    #[test]
    fn so_it_does_in_older_archives() {
        let main = record_4(0x73, 0, &[0; 6], &[]);
        let archive = |records: &[Vec<u8>]| {
            let end = record_4(0x7b, 0x4000, &[], &[]);
            [b"Rar!\x1a\x07\0", main.as_slice(), &records.concat(), &end].concat()
        };
        let member = file_4(0x74, b"a.txt", 0, b"words");
        for name in [&b"CMT"[..], b"STM"] {
            let found = members(&archive(&[member.clone(), file_4(0x7a, name, 0, &eicar())]));
            assert_eq!(found.get(1).map(|(_, content)| content), Some(&eicar()), "{name:?}");
        }
        let found = members(&archive(&[member.clone(), file_4(0x7a, b"ACL", 0, b"rights")]));
        assert_eq!(found.len(), 1);
        // An alternate stream of RAR 2.
        let length = (eicar().len() as u32).to_le_bytes();
        let said = [&length[..], &[5, 1, 0], &length, &[20, 0x30], &[0; 4], &[2, 0], b":x"].concat();
        let found = members(&archive(&[member.clone(), record_4(0x77, 0x8000, &said, &eicar())]));
        assert_eq!(found.get(1), Some(&("STM".to_owned(), eicar())));
        let second = archive(&[file_4(0x74, b"b", 0, &eicar())]);
        let found = members(&[archive(&[member]).as_slice(), &second].concat());
        assert_eq!(found.get(1), Some(&("behind the archive".to_owned(), second)));
    }
}
