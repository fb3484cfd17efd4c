//! The structures of a ZIP file (PKWARE APPNOTE 6.3.10): where its directories are, and what its headers say.
//!
//! Everything here is a claim of the file: offsets and lengths are checked arithmetic, and nothing is allocated by them.

use std::io::{self, Read, SeekFrom};

use super::decode;
use crate::container::{ReadSeek, read_full};

pub(super) const LOCAL_SIGNATURE: [u8; 4] = *b"PK\x03\x04";
const CENTRAL_SIGNATURE: [u8; 4] = *b"PK\x01\x02";
const END_SIGNATURE: [u8; 4] = *b"PK\x05\x06";
const END64_SIGNATURE: [u8; 4] = *b"PK\x06\x06";
const LOCATOR64_SIGNATURE: [u8; 4] = *b"PK\x06\x07";

const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: u64 = 22;
const LOCATOR64_BYTES: u64 = 20;
const END64_BYTES: u64 = 56;
/// The longest comment, so the farthest that the end record lies from the end of the file.
const COMMENT_BYTES_MAX: u64 = u16::MAX as u64;
/// How many end records are looked into. The right one is the last nearly always: what follows it is a comment, which rarely has any.
const ENDS_MAX: usize = 256;

/// General purpose flag: encrypted.
pub(super) const FLAG_ENCRYPTED: u16 = 1;
/// General purpose flag: encrypted in a way that only PKWARE's programs know.
pub(super) const FLAG_STRONG: u16 = 1 << 6;
/// General purpose flag: lengths and checksum follow the data.
pub(super) const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// The method that stands for AES encryption.
pub(super) const METHOD_AES: u16 = 99;
/// Not compressed.
pub(super) const METHOD_STORED: u16 = 0;

/// Little-endian numbers at fixed places of a header that is long enough.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// What a header, central or local, says of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: Vec<u8>,
    pub flags: u16,
    pub method: u16,
    pub crc32: u32,
    pub compressed_bytes: u64,
    pub size_bytes: u64,
    /// Where the local header is, in the file.
    pub header_offset: u64,
    /// When it was last changed, in DOS's words.
    pub time: u16,
    /// How it is encrypted, if that is AES.
    pub aes: Option<AesField>,
}

/// WinZip's extra field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AesField {
    /// 1, or 2 for members without a checksum.
    pub version: u16,
    /// 1 for 128 bits, 2 for 192, 3 for 256.
    pub strength: u8,
    /// How the member is compressed.
    pub method: u16,
}

fn aes_field(extra: &[u8]) -> Option<AesField> {
    match extra_field(extra, 0x9901)? {
        field @ [_, _, b'A', b'E', strength, _, _, ..] => {
            Some(AesField { version: u16_at(field, 0), strength: *strength, method: u16_at(field, 5) })
        }
        _ => None,
    }
}

impl Entry {
    pub fn is_encrypted(&self) -> bool {
        self.flags & FLAG_ENCRYPTED != 0 || self.method == METHOD_AES
    }

    pub fn is_directory(&self) -> bool {
        self.name.ends_with(b"/") && self.compressed_bytes == 0 && self.size_bytes == 0
    }
}

/// A local header and where its data begins.
pub(super) struct Local {
    pub entry: Entry,
    pub data_offset: u64,
}

/// A run of central headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Directory {
    pub start: u64,
    /// What is added to the offsets in it: the length of whatever was put before the archive, or less than nothing if something was cut
    /// off there.
    pub base: i64,
    /// How many entries its end record counts, modulo 65536; none if it leaves that to the ZIP64 record.
    pub entries: Option<u16>,
}

/// Where the directories are, and the end records that say so.
#[derive(Default)]
pub(super) struct Directories {
    pub list: Vec<Directory>,
    /// Where the end records begin and end, comments not included.
    pub end_records: Vec<(u64, u64)>,
    /// One of the end records says that there are no members.
    pub is_empty: bool,
    /// The file ends with one of them, or with its comment.
    pub is_at_end: bool,
    /// There are more than are looked into.
    pub has_more: bool,
}

impl Directories {
    fn add(&mut self, directory: Directory) {
        let is_same = |other: &Directory| (other.start, other.base) == (directory.start, directory.base);
        if !self.list.iter().any(is_same) {
            self.list.push(directory);
        }
    }
}

fn read_at<const N: usize>(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Option<[u8; N]>> {
    // A place that no file has is an error of seeking to it.
    if i64::try_from(offset).is_err() {
        return Ok(None);
    }
    let mut bytes = [0; N];
    input.seek(SeekFrom::Start(offset))?;
    Ok((read_full(input, &mut bytes)? == N).then_some(bytes))
}

fn has_signature(input: &mut dyn ReadSeek, offset: u64, signature: [u8; 4]) -> io::Result<bool> {
    Ok(read_at::<4>(input, offset)? == Some(signature))
}

/// The directories of a file of `length` bytes; none if it has no end record. A file whose end records lead different readers
/// to different directories has all of them in the list.
pub(super) fn find_directories(input: &mut dyn ReadSeek, length: u64) -> io::Result<Option<Directories>> {
    let tail_offset = length.saturating_sub(END_BYTES + COMMENT_BYTES_MAX);
    let mut tail = Vec::new();
    input.seek(SeekFrom::Start(tail_offset))?;
    input.take(END_BYTES + COMMENT_BYTES_MAX).read_to_end(&mut tail)?;
    directories_by_tail(input, &tail, tail_offset)
}

/// The same of a file whose end, with the longest comment that there may be, is known.
///
/// Of several end records some programs take the last, some the last whose comment fills the file, and some the last that leads to a
/// directory. Those before that are no program's: the archives that lie stored in this one have their own.
pub(super) fn directories_by_tail(
    input: &mut dyn ReadSeek,
    tail: &[u8],
    tail_offset: u64,
) -> io::Result<Option<Directories>> {
    // Forwards, since searching backwards is much slower; a tail has room for few.
    let ends: Vec<usize> = memchr::memmem::find_iter(tail, &END_SIGNATURE).collect();
    let ends = ends.into_iter().rev().filter_map(|at| tail.get(at..at + END_BYTES as usize).map(|record| (at, record)));
    let mut found = Directories::default();
    let mut looked_into = 0;
    for (at, record) in ends {
        let fits = at + END_BYTES as usize + usize::from(u16_at(record, 20)) == tail.len();
        found.is_at_end |= fits;
        if looked_into > 0 && !fits && !found.list.is_empty() {
            continue;
        }
        if looked_into == ENDS_MAX {
            found.has_more = true;
            break;
        }
        looked_into += 1;
        let is_one = end_record(input, tail_offset + at as u64, record, &mut found)?;
        if fits && is_one {
            break;
        }
    }
    Ok((looked_into > 0).then_some(found))
}

/// Whether an end record at `offset` leads to a directory.
pub(crate) fn is_end_of_archive(input: &mut dyn ReadSeek, offset: u64) -> io::Result<bool> {
    let Some(record) = read_at::<{ END_BYTES as usize }>(input, offset)? else { return Ok(false) };
    let mut found = Directories::default();
    end_record(input, offset, &record, &mut found)?;
    Ok(!found.list.is_empty())
}

/// Adds what an end record leads to. False if it leads nowhere, although it says that there are members.
fn end_record(input: &mut dyn ReadSeek, offset: u64, record: &[u8], found: &mut Directories) -> io::Result<bool> {
    let records64 = end64_records(input, offset)?;
    let entries = Some(u16_at(record, 10)).filter(|count| *count != u16::MAX || records64.is_empty());
    let (bytes, start) = (u32_at(record, 12), u32_at(record, 16));
    let mut places = Vec::new();
    let mut ends = Vec::new();
    for record64 in &records64 {
        places.push((record64.directory_bytes, record64.directory_offset));
        // Some programs replace only the fields that say so.
        let or = |short: u32, long: u64| if short == u32::MAX { long } else { u64::from(short) };
        places.push((or(bytes, record64.directory_bytes), or(start, record64.directory_offset)));
        ends.push(record64.offset);
    }
    if records64.is_empty() {
        places.push((bytes.into(), start.into()));
        ends.push(offset);
    }
    let mut is_one = entries == Some(0);
    found.is_empty |= is_one;
    for (bytes, start) in places {
        for directory in directories_at(input, bytes, start, &ends)? {
            is_one = true;
            found.add(Directory { entries, ..directory });
        }
    }
    if is_one || found.end_records.is_empty() {
        found.end_records.push((offset, offset + END_BYTES));
        for record64 in records64 {
            // What lies between them is not theirs.
            found.end_records.push((record64.offset, record64.offset.saturating_add(END64_BYTES)));
        }
    }
    Ok(is_one)
}

/// The directories that are so long, or begin so far into the file or the archive.
fn directories_at(input: &mut dyn ReadSeek, bytes: u64, offset: u64, ends: &[u64]) -> io::Result<Vec<Directory>> {
    let mut list = Vec::new();
    // Most readers trust the offset; those that allow for something before the archive trust the length.
    for start in ends.iter().filter_map(|end| end.checked_sub(bytes)) {
        let Ok(base) = i64::try_from(i128::from(start) - i128::from(offset)) else { continue };
        if has_signature(input, start, CENTRAL_SIGNATURE)? {
            list.push(Directory { start, base, entries: None });
            if base < 0 {
                // Not all believe that the archive's beginning is missing.
                list.push(Directory { start, base: 0, entries: None });
            }
        }
    }
    if list.iter().all(|directory| directory.start != offset) && has_signature(input, offset, CENTRAL_SIGNATURE)? {
        list.push(Directory { start: offset, base: 0, entries: None });
    }
    Ok(list)
}

/// What a ZIP64 end record says, and where it is.
#[derive(PartialEq, Eq)]
struct End64 {
    offset: u64,
    directory_bytes: u64,
    directory_offset: u64,
}

/// The ZIP64 end records that belong to an end record: where the locator before it says, and right before the locator. That is one place,
/// unless something was put before the archive, of which the locator doesn't know.
fn end64_records(input: &mut dyn ReadSeek, end_offset: u64) -> io::Result<Vec<End64>> {
    let Some(locator_offset) = end_offset.checked_sub(LOCATOR64_BYTES) else { return Ok(Vec::new()) };
    let Some(locator) = read_at::<{ LOCATOR64_BYTES as usize }>(input, locator_offset)? else { return Ok(Vec::new()) };
    if !locator.starts_with(&LOCATOR64_SIGNATURE) {
        return Ok(Vec::new());
    }
    let mut records = Vec::new();
    for offset in [Some(u64_at(&locator, 8)), locator_offset.checked_sub(END64_BYTES)].into_iter().flatten() {
        if let Some(end64) = read_at::<{ END64_BYTES as usize }>(input, offset)?
            && end64.starts_with(&END64_SIGNATURE)
        {
            let (directory_bytes, directory_offset) = (u64_at(&end64, 40), u64_at(&end64, 48));
            let record = End64 { offset, directory_bytes, directory_offset };
            if !records.contains(&record) {
                records.push(record);
            }
        }
    }
    Ok(records)
}

/// Reads central headers one after the other, through a buffer of its own, since members are read in between.
pub(super) struct CentralHeaders {
    directory: Directory,
    offset: u64,
    buffer: Vec<u8>,
    used: usize,
}

/// How much of a directory is read at once: many of the longest central headers, since a file that is read on demand comes in pieces of
/// this length, and each time that reading goes from the directory to a member and back costs two of them.
const CENTRAL_BUFFER_BYTES: u64 = 4 << 20;

impl CentralHeaders {
    pub fn new(directory: Directory) -> Self {
        Self { directory, offset: directory.start, buffer: Vec::new(), used: 0 }
    }

    /// Where the next header would be.
    pub fn offset(&self) -> u64 {
        self.offset + self.used as u64
    }

    /// The next header; none where the signature ends.
    pub fn next(&mut self, input: &mut dyn ReadSeek) -> io::Result<Option<Entry>> {
        // 46 bytes and three texts of at most 65,535.
        const LONGEST: usize = CENTRAL_BYTES + 3 * u16::MAX as usize;
        if self.buffer.len() - self.used < LONGEST {
            self.offset += self.used as u64;
            self.used = 0;
            self.buffer.clear();
            input.seek(SeekFrom::Start(self.offset))?;
            input.take(CENTRAL_BUFFER_BYTES).read_to_end(&mut self.buffer)?;
        }
        let rest = self.buffer.get(self.used..).unwrap_or_default();
        if !rest.starts_with(&CENTRAL_SIGNATURE) {
            return Ok(None);
        }
        let name_end = CENTRAL_BYTES + usize::from(u16_at(rest, 28));
        let extra_end = name_end + usize::from(u16_at(rest, 30));
        let end = extra_end + usize::from(u16_at(rest, 32));
        let (Some(name), Some(extra), Some(_)) =
            (rest.get(CENTRAL_BYTES..name_end), rest.get(name_end..extra_end), rest.get(..end))
        else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the central directory is cut off"));
        };
        let mut values = [u64::from(u32_at(rest, 24)), u64::from(u32_at(rest, 20)), u64::from(u32_at(rest, 42))];
        zip64_values(extra, &mut values);
        let entry = Entry {
            name: name.to_vec(),
            flags: u16_at(rest, 8),
            method: u16_at(rest, 10),
            crc32: u32_at(rest, 16),
            compressed_bytes: values[1],
            size_bytes: values[0],
            // Before the file's beginning there is no header.
            header_offset: values[2].checked_add_signed(self.directory.base).unwrap_or(u64::MAX),
            time: u16_at(rest, 12),
            aes: aes_field(extra),
        };
        self.used += end;
        Ok(Some(entry))
    }
}

/// Replaces the values that say "see the ZIP64 extra field", which has them in this order, by what is there.
fn zip64_values(extra: &[u8], values: &mut [u64]) {
    let Some(mut field) = extra_field(extra, 1) else { return };
    for value in values.iter_mut().filter(|value| **value == u64::from(u32::MAX)) {
        let Some((eight, rest)) = field.split_at_checked(8) else { return };
        *value = u64_at(eight, 0);
        field = rest;
    }
}

fn extra_field(mut extra: &[u8], wanted: u16) -> Option<&[u8]> {
    while extra.len() >= 4 {
        let end = 4 + usize::from(u16_at(extra, 2));
        let field = extra.get(4..end)?;
        if u16_at(extra, 0) == wanted {
            return Some(field);
        }
        extra = extra.get(end..)?;
    }
    None
}

/// How much of a local header and what follows it tells whether it likely is one.
pub(super) const LIKELY_BYTES: usize = LOCAL_BYTES as usize + 64;
/// More of the format than this no header needs: 6.3.
const VERSION_MAX: u8 = 63;

/// Whether a local header's signature is likely one, `left` bytes before the file's end. Programs that read archives have it in their code,
/// so with a method that nobody knows all else must be as writers write it.
pub(super) fn is_likely_local(bytes: &[u8], left: u64) -> bool {
    let method = u16_at(bytes, 8);
    if decode::is_known(method) || method == METHOD_AES {
        return true;
    }
    let name_bytes = usize::from(u16_at(bytes, 26));
    let name = bytes.iter().skip(LOCAL_BYTES as usize).take(name_bytes.min(LIKELY_BYTES - LOCAL_BYTES as usize));
    let rest_bytes = LOCAL_BYTES + name_bytes as u64 + u64::from(u16_at(bytes, 28)) + u64::from(u32_at(bytes, 18));
    let is_version = bytes.get(4).is_some_and(|version| *version <= VERSION_MAX);
    is_version && name_bytes > 0 && rest_bytes <= left && !name.copied().any(|byte| byte.is_ascii_control())
}

/// The local header at `offset`, if there is one.
pub(super) fn read_local(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Option<Local>> {
    let Some(header) = read_at::<{ LOCAL_BYTES as usize }>(input, offset)? else { return Ok(None) };
    if !header.starts_with(&LOCAL_SIGNATURE) {
        return Ok(None);
    }
    let name_bytes = usize::from(u16_at(&header, 26));
    let extra_bytes = usize::from(u16_at(&header, 28));
    let mut texts = vec![0; name_bytes + extra_bytes];
    if read_full(input, &mut texts)? < texts.len() {
        return Ok(None);
    }
    let (name, extra) = texts.split_at(name_bytes);
    let mut values = [u64::from(u32_at(&header, 22)), u64::from(u32_at(&header, 18))];
    zip64_values(extra, &mut values);
    let entry = Entry {
        name: name.to_vec(),
        flags: u16_at(&header, 6),
        method: u16_at(&header, 8),
        crc32: u32_at(&header, 14),
        compressed_bytes: values[1],
        size_bytes: values[0],
        header_offset: offset,
        time: u16_at(&header, 10),
        aes: aes_field(extra),
    };
    Ok(Some(Local { entry, data_offset: offset + LOCAL_BYTES + texts.len() as u64 }))
}
