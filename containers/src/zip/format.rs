//! The structures of a ZIP file (PKWARE APPNOTE 6.3.10): where its directories are, and what its headers say.
//!
//! Everything here is a claim of the file: offsets and lengths are checked arithmetic, and nothing is allocated by them.

use std::io::{self, Read, SeekFrom};

use crate::container::{ReadSeek, read_full};

pub(super) const LOCAL_SIGNATURE: [u8; 4] = *b"PK\x03\x04";
pub(super) const CENTRAL_SIGNATURE: [u8; 4] = *b"PK\x01\x02";
pub(super) const END_SIGNATURE: [u8; 4] = *b"PK\x05\x06";
const END64_SIGNATURE: [u8; 4] = *b"PK\x06\x06";
const LOCATOR64_SIGNATURE: [u8; 4] = *b"PK\x06\x07";

pub(super) const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: usize = 46;
pub(super) const END_BYTES: u64 = 22;
const LOCATOR64_BYTES: u64 = 20;
const END64_BYTES: u64 = 56;
/// The longest comment, so the farthest that the end record lies from the end of the file.
const COMMENT_BYTES_MAX: u64 = u16::MAX as u64;

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
    /// What is added to the offsets in it: the length of whatever was put before the archive.
    pub base: u64,
}

/// Where the directories are, and the end record that says so.
pub(super) struct Directories {
    pub list: Vec<Directory>,
    /// Where the end records begin and end, comment not included.
    pub end_records: (u64, u64),
    /// How many entries the end record counts, modulo 65536; none if it leaves that to the ZIP64 record.
    pub entries: Option<u16>,
}

fn read_at<const N: usize>(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    input.seek(SeekFrom::Start(offset))?;
    Ok((read_full(input, &mut bytes)? == N).then_some(bytes))
}

fn has_signature(input: &mut dyn ReadSeek, offset: u64, signature: [u8; 4]) -> io::Result<bool> {
    Ok(read_at::<4>(input, offset)? == Some(signature))
}

/// The directories of a file of `length` bytes; none if it has no end record. A file whose end record leads different readers
/// to different directories has both in the list.
pub(super) fn find_directories(input: &mut dyn ReadSeek, length: u64) -> io::Result<Option<Directories>> {
    let tail_offset = length.saturating_sub(END_BYTES + COMMENT_BYTES_MAX);
    let mut tail = Vec::new();
    input.seek(SeekFrom::Start(tail_offset))?;
    input.take(END_BYTES + COMMENT_BYTES_MAX).read_to_end(&mut tail)?;
    let Some(at) = end_record(&tail) else { return Ok(None) };
    let end = tail.get(at..).unwrap_or_default();
    let end_offset = tail_offset + at as u64;

    let mut records_offset = end_offset;
    let mut directory_bytes = u64::from(u32_at(end, 12));
    let mut directory_offset = u64::from(u32_at(end, 16));
    let mut entries = Some(u16_at(end, 10));
    if let Some((offset, bytes, start)) = end64_record(input, end_offset)? {
        (records_offset, directory_bytes, directory_offset) = (offset, bytes, start);
        entries = entries.filter(|count| *count != u16::MAX);
    }
    let mut list = Vec::new();
    // Most readers trust the offset; those that allow for something before the archive trust the length.
    if let Some(start) = records_offset.checked_sub(directory_bytes)
        && has_signature(input, start, CENTRAL_SIGNATURE)?
    {
        list.push(Directory { start, base: start.saturating_sub(directory_offset) });
    }
    if list.iter().all(|directory| directory.start != directory_offset)
        && has_signature(input, directory_offset, CENTRAL_SIGNATURE)?
    {
        list.push(Directory { start: directory_offset, base: 0 });
    }
    Ok(Some(Directories { list, end_records: (records_offset, end_offset + END_BYTES), entries }))
}

/// The end record in a file's tail: the last whose comment fills the file exactly, else the last.
fn end_record(tail: &[u8]) -> Option<usize> {
    let mut candidates =
        memchr::memmem::rfind_iter(tail, &END_SIGNATURE).filter(|at| at + END_BYTES as usize <= tail.len());
    let last = candidates.next()?;
    let fits = |at: &usize| at + END_BYTES as usize + usize::from(u16_at(tail, at + 20)) == tail.len();
    std::iter::once(last).chain(candidates).find(fits).or(Some(last))
}

/// The ZIP64 end record, if there is one: its offset, and the directory's length and offset.
fn end64_record(input: &mut dyn ReadSeek, end_offset: u64) -> io::Result<Option<(u64, u64, u64)>> {
    let Some(locator_offset) = end_offset.checked_sub(LOCATOR64_BYTES) else { return Ok(None) };
    let Some(locator) = read_at::<{ LOCATOR64_BYTES as usize }>(input, locator_offset)? else { return Ok(None) };
    if !locator.starts_with(&LOCATOR64_SIGNATURE) {
        return Ok(None);
    }
    // The locator's offset doesn't know of anything put before the archive; then the record lies right before it.
    for offset in [Some(u64_at(&locator, 8)), locator_offset.checked_sub(END64_BYTES)].into_iter().flatten() {
        if let Some(end64) = read_at::<{ END64_BYTES as usize }>(input, offset)?
            && end64.starts_with(&END64_SIGNATURE)
        {
            return Ok(Some((offset, u64_at(&end64, 40), u64_at(&end64, 48))));
        }
    }
    Ok(None)
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
            header_offset: values[2].saturating_add(self.directory.base),
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

/// The compression method that a local header says, when nothing else of it matters.
pub(super) fn local_method(header: &[u8]) -> u16 {
    u16_at(header, 8)
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
