//! cpio archives: the old binary format in both byte orders, the portable ASCII one (odc, "070707"), and the new ASCII ones
//! ("070701" and, with checksums, "070702"). Formats: cpio(5) of FreeBSD, and the Linux kernel's buffer-format document.
//!
//! Behind the trailer there may be zeros and another archive, as in an initial RAM disk; whatever else is there is handed out as a
//! member of its own, since the kernel goes on with it. Directories, devices and symbolic links without content are left out.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{be16, invalid, le16};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, read_array, read_vec};

/// The longest name: PATH_MAX of the systems that write such archives.
const NAME_BYTES_MAX: u64 = 4096;
/// The name that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";
/// The type in a mode, and three of its values.
const MODE_TYPE: u64 = 0o170_000;
const MODE_REGULAR: u64 = 0o100_000;
const MODE_SYMLINK: u64 = 0o120_000;
/// A symbolic link's target that is longer than any path is something else.
const TARGET_BYTES_MAX: u64 = NAME_BYTES_MAX;
/// How many bytes are searched at once behind a trailer.
const SEARCH_BYTES: u64 = 64 * 1024;

/// cpio in any of its dialects.
pub(crate) static FORMAT: Format = Format {
    name: "cpio",
    description: "cpio archive",
    mime: "application/x-cpio",
    extension: "cpio",
    category: "A",
    beside: &[],
    probe: |probe| {
        let is_one = begins_archive(probe.head);
        whole_if(is_one)
    },
    extractor: &Cpio,
};

/// Whether there is a whole header: two bytes alone would be too weak a mark.
pub(crate) fn begins_archive(head: &[u8]) -> bool {
    matches!(Header::parse(head), Some(header) if (1..=NAME_BYTES_MAX).contains(&header.name_bytes)
        && head.get(header.header_bytes as usize..).is_some_and(|rest|
            rest.get(header.name_bytes as usize - 1) == Some(&0)))
}

struct Cpio;

struct Header {
    header_bytes: u64,
    mode: u64,
    name_bytes: u64,
    content_bytes: u64,
    /// What name and content are padded to.
    padding: u64,
    /// The sum of the content's bytes, in the dialect that has it.
    sum: Option<u32>,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first_chunk()? {
            b"070701" | b"070702" => {
                let field = |number: usize| {
                    let at = 6 + number * 8;
                    u64::from_str_radix(std::str::from_utf8(bytes.get(at..at + 8)?).ok()?, 16).ok()
                };
                let summed = bytes.get(5) == Some(&b'2');
                let sum = if summed { u32::try_from(field(12)?).ok() } else { None };
                Some(Self {
                    header_bytes: 110,
                    mode: field(1)?,
                    name_bytes: field(11)?,
                    content_bytes: field(6)?,
                    padding: 4,
                    sum,
                })
            }
            b"070707" => {
                let field = |at: usize, length: usize| {
                    u64::from_str_radix(std::str::from_utf8(bytes.get(at..at + length)?).ok()?, 8).ok()
                };
                Some(Self {
                    header_bytes: 76,
                    mode: field(18, 6)?,
                    name_bytes: field(59, 6)?,
                    content_bytes: field(65, 11)?,
                    padding: 1,
                    sum: None,
                })
            }
            _ => Self::parse_binary(bytes),
        }
    }

    fn parse_binary(bytes: &[u8]) -> Option<Self> {
        let half: fn(&[u8], usize) -> Option<u16> = match bytes.first_chunk()? {
            [0xc7, 0x71] => le16,
            [0x71, 0xc7] => be16,
            _ => return None,
        };
        // Longs are two halves, the more significant first, in either byte order.
        let long = |at: usize| Some(u64::from(half(bytes, at)?) << 16 | u64::from(half(bytes, at + 2)?));
        Some(Self {
            header_bytes: 26,
            mode: u64::from(half(bytes, 6)?),
            name_bytes: u64::from(half(bytes, 20)?),
            content_bytes: long(22)?,
            padding: 2,
            sum: None,
        })
    }

    fn read(input: &mut dyn ReadSeek, offset: u64, length: u64) -> io::Result<Self> {
        let bytes = read_vec(input, offset, length.saturating_sub(offset).min(110), 110)?;
        let header = Self::parse(&bytes).ok_or_else(|| invalid("no member header"))?;
        if header.name_bytes == 0 || header.name_bytes > NAME_BYTES_MAX {
            return Err(invalid("malformed name"));
        }
        Ok(header)
    }

    fn is_listed(&self) -> bool {
        match self.mode & MODE_TYPE {
            MODE_REGULAR | 0 => true,
            MODE_SYMLINK => self.content_bytes > TARGET_BYTES_MAX,
            _ => self.content_bytes > 0,
        }
    }
}

impl Extractor for Cpio {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let (input, length) = (&mut *container.input, container.length);
        Out::new(budget, sink).walk(|offset, out| member(input, offset, length, out))
    }
}

/// Hands out the member at `offset`; tells where the next one is.
fn member(input: &mut dyn ReadSeek, offset: u64, length: u64, out: &mut Out<'_, '_>) -> io::Result<Option<u64>> {
    let header = Header::read(input, offset, length)?;
    let name_offset = offset.saturating_add(header.header_bytes);
    let name = read_vec(input, name_offset, header.name_bytes, NAME_BYTES_MAX)?;
    let name = name.strip_suffix(b"\0").unwrap_or(&name);
    let pad = |at: u64| at.checked_next_multiple_of(header.padding).ok_or_else(|| invalid("malformed length"));
    // Padding counts from the member's beginning, which is aligned in all but concatenated archives.
    let data = offset + pad(header.header_bytes + header.name_bytes)?;
    if name == TRAILER {
        return behind_trailer(input, data.saturating_add(header.content_bytes), length, out);
    }
    let next = data.checked_add(pad(header.content_bytes)?).ok_or_else(|| invalid("malformed length"))?;
    if header.is_listed() {
        out.stored(display_name(name), input, data, header.content_bytes);
        if let Some(sum) = header.sum.filter(|_| !out.outcome.is_over())
            && byte_sum(input, data, header.content_bytes)? != sum
        {
            out.outcome
                .note_broken(format!("member {:?} doesn't have the sum that its header says", display_name(name)));
        }
    }
    // The last member's padding is left out by some writers, but then no trailer follows.
    Ok(Some(next))
}

fn byte_sum(input: &mut dyn ReadSeek, mut offset: u64, length: u64) -> io::Result<u32> {
    let mut left = length;
    let mut sum = 0u32;
    while left > 0 {
        let block = read_vec(input, offset, left.min(SEARCH_BYTES), SEARCH_BYTES)?;
        sum = block.iter().fold(sum, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        left -= block.len() as u64;
        offset += block.len() as u64;
    }
    Ok(sum)
}

/// Skips zeros behind a trailer. Another archive is gone on with; anything else is a member.
fn behind_trailer(
    input: &mut dyn ReadSeek,
    mut offset: u64,
    length: u64,
    out: &mut Out<'_, '_>,
) -> io::Result<Option<u64>> {
    while offset < length {
        out.check()?;
        let block = read_vec(input, offset, (length - offset).min(SEARCH_BYTES), SEARCH_BYTES)?;
        let Some(at) = block.iter().position(|byte| *byte != 0) else {
            offset += block.len() as u64;
            continue;
        };
        offset += at as u64;
        let is_archive = match length - offset {
            6.. => Header::read(input, offset, length).is_ok() && read_array::<2>(input, offset)? != [0, 0],
            _ => false,
        };
        if is_archive {
            return Ok(Some(offset));
        }
        out.stored("behind the archive".to_owned(), input, offset, length - offset);
        return Ok(None);
    }
    Ok(None)
}
