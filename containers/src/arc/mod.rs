//! ARC, of the eighties, and its kin of RISC OS, Spark: stored, packed, squeezed, crunched and squashed members. Format: "Technical
//! Information" of ARC 5.20 by System Enhancement Associates; what follows it in ARC 5.21.
//!
//! Members that ARC up to 4.5 crunched, with the hashes of its memory for codes, are told as not read, and so are those of PAK. That a member
//! is under a password is nowhere told; its checksum is wrong then.

mod squeezed;

use std::io::{self, BufReader, Read};

use crate::budget::Budget;
use crate::coded::compress;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{invalid, le16, le32, unsupported, until_zero};
use crate::format::{Format, Probe, whole_if};
use crate::lzh::Summed16;
use crate::outcome::ExtractionOutcome;
use crate::parts::{BUFFER_BYTES, Exactly, Out, cut_off, part, read_array, read_bytes};
use crate::runs::Runs;

/// What each member begins with, and the end of the archive.
const MARK: u8 = 0x1a;
const NAME_BYTES: usize = 13;
/// Mark, method, name, packed length, date, time, checksum and length; the oldest ones lack the last.
const HEADER_BYTES: usize = 29;
const OLD_HEADER_BYTES: u64 = 25;
/// Spark sets this bit of a method, and has where a file is loaded to behind the header.
const OF_SPARK: u8 = 0x80;
const SPARK_BYTES: u64 = 12;
/// The widest codes of what is squashed.
const SQUASHED_BITS: u32 = 13;

/// ARC.
pub(crate) static FORMAT: Format = Format {
    name: "arc",
    description: "ARC",
    mime: "application/x-freearc",
    extension: "arc",
    category: "A",
    beside: &[],
    // One byte is little to know a file by: the first member must be one as well, and be followed by another or the end.
    probe: |probe| {
        let is_one = probe.head.first() == Some(&MARK) && begins(probe).unwrap_or(false);
        whole_if(is_one)
    },
    extractor: &Arc,
};

fn begins(probe: &mut Probe<'_>) -> io::Result<bool> {
    let Some(Next::Member(member)) = member(probe.input, 0).ok() else { return Ok(false) };
    let is_name = !member.raw_name.is_empty() && member.raw_name.iter().all(|byte| (b' '..0x7f).contains(byte));
    let next: Option<[u8; 1]> = probe.read_at(member.end)?;
    Ok(is_name
        && matches!(member.method, 1..=11 | 0x7f)
        && next.is_none_or(|next| next == [MARK])
        && member.end <= probe.length)
}

struct Arc;

impl Extractor for Arc {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let (length, input) = (container.length, &mut *container.input);
        Out::new(budget, sink).walk(|offset, out| match member(&mut *input, offset)? {
            Next::Member(member) => {
                let name = display_name(&member.raw_name);
                let content = member.content(&mut *input);
                let complete = out.made(name, Some(member.length), content);
                // Each member says where the next one is, whatever became of it.
                Ok((complete || !out.is_over()).then_some(member.end))
            }
            Next::End(end) => {
                // Some programs pad an archive.
                if end < length && !is_padding(&mut *input, end, length)? {
                    out.stored("behind the archive".to_owned(), &mut *input, end, length - end);
                }
                Ok(None)
            }
        })
    }
}

/// Whether nothing is left but zeros and marks, as CP/M pads files.
fn is_padding(input: &mut dyn ReadSeek, offset: u64, length: u64) -> io::Result<bool> {
    const BYTES_MAX: u64 = 4096;
    if length - offset > BYTES_MAX {
        return Ok(false);
    }
    let mut rest = Vec::new();
    part(input, offset, length - offset)?.read_to_end(&mut rest)?;
    Ok(rest.iter().all(|byte| matches!(*byte, 0 | MARK)))
}

enum Next {
    Member(Member),
    /// The archive's end, and what is behind.
    End(u64),
}

struct Member {
    method: u8,
    raw_name: Vec<u8>,
    data: u64,
    packed_bytes: u64,
    length: u64,
    sum: u16,
    end: u64,
}

/// What is at an offset.
fn member(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Next> {
    let [mark, method] = read_array(input, offset)?;
    if mark != MARK {
        return Err(invalid("no member header"));
    }
    if method & !OF_SPARK == 0 {
        return Ok(Next::End(offset + 2));
    }
    let is_old = method & !OF_SPARK == 1;
    let old: [u8; OLD_HEADER_BYTES as usize] = read_array(input, offset)?;
    let packed_bytes = le32(&old, 15).ok_or_else(cut_off)?;
    let length = if is_old {
        packed_bytes
    } else {
        let header: [u8; HEADER_BYTES] = read_array(input, offset)?;
        le32(&header, 25).ok_or_else(cut_off)?
    };
    let header_bytes = if is_old { OLD_HEADER_BYTES } else { HEADER_BYTES as u64 };
    let data = offset + header_bytes + if method & OF_SPARK != 0 { SPARK_BYTES } else { 0 };
    Ok(Next::Member(Member {
        method: method & !OF_SPARK,
        raw_name: until_zero(old.get(2..2 + NAME_BYTES).unwrap_or_default()).to_vec(),
        data,
        packed_bytes: packed_bytes.into(),
        length: length.into(),
        sum: le16(&old, 23).ok_or_else(cut_off)?,
        end: data + u64::from(packed_bytes),
    }))
}

impl Member {
    fn content<'i>(&self, input: &'i mut dyn ReadSeek) -> io::Result<impl Read + 'i> {
        let mut packed = BufReader::with_capacity(
            BUFFER_BYTES,
            Exactly::new(part(input, self.data, self.packed_bytes)?, self.packed_bytes),
        );
        let content: Box<dyn Read + 'i> = match self.method {
            1 | 2 => Box::new(packed),
            3 => Box::new(without_runs(packed)),
            4 => {
                let mut squeezed = squeezed::Decoder::new(packed)?;
                let bytes = ByteByByte { next: move || squeezed.next(), failure: None };
                Box::new(without_runs(bytes))
            }
            8 | 0x7f => {
                let mut bits = [0];
                packed.read_exact(&mut bits)?;
                let codes = compress::Decoder::without_header(packed, bits[0].into(), true)?;
                if self.method == 8 { Box::new(without_runs(codes)) } else { Box::new(codes) }
            }
            9 => Box::new(compress::Decoder::without_header(packed, SQUASHED_BITS, true)?),
            method => return Err(unsupported(format!("method {method} of ARC is not read"))),
        };
        // What a code stands for may go on behind the member's end.
        Ok(Summed16::new(Exactly::new(content, self.length), self.sum))
    }
}

fn without_runs(packed: impl Read) -> impl Read {
    let mut packed = BufReader::with_capacity(BUFFER_BYTES, packed).bytes();
    let mut runs = Runs::default();
    ByteByByte { next: move || runs.next(|| packed.next().transpose()), failure: None }
}

/// Reads what comes a byte at a time.
struct ByteByByte<F> {
    next: F,
    failure: Option<io::Error>,
}

impl<F: FnMut() -> io::Result<Option<u8>>> Read for ByteByByte<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_bytes(into, &mut self.failure, &mut self.next)
    }
}
