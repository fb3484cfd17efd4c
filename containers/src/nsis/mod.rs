//! The data of NSIS installers, which lies behind their program. Format: NSIS's own `Source/exehead/fileform.h`.
//!
//! The files come out in the order in which they lie, without their names: those are in a script, which comes out as the first
//! member. LZMA, Deflate and NSIS's own bzip2 are read, solid or not.

mod bzip2;

use std::io::{self, BufReader, Read};

use lzma_rust2::LzmaReader;
use lzma_rust2::filter::bcj::BcjReader;

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, read_full};
use crate::fields::{array, invalid, le32};
use crate::format::{Format, whole_if};
use crate::limits::admit_decoder;
use crate::outcome::ExtractionOutcome;
use crate::parts::{BUFFER_BYTES, Exactly, Out, cut_off, part, read_array};

const MARK: &[u8] = b"\xef\xbe\xad\xdeNullsoftInst";
const FIRST_HEADER_BYTES: u64 = 28;
/// What follows has no checksum behind it, unless the second flag says that it has.
const FLAG_NO_CRC: u32 = 4;
const FLAG_FORCE_CRC: u32 = 8;
const CRC_BYTES: u64 = 4;
/// A block's length says with this bit that it is compressed.
const IS_COMPRESSED: u32 = 0x8000_0000;

/// NSIS.
pub(crate) static FORMAT: Format = Format {
    name: "nsis",
    description: "NSIS installer data",
    mime: "application/x-nsis",
    extension: "nsis",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(probe.head.get(4..20) == Some(MARK)),
    extractor: &Nsis,
};

struct Nsis;

impl Extractor for Nsis {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = installer(container, &mut out);
        out.end("the installer is broken", result)
    }
}

#[derive(Clone, Copy)]
enum Method {
    Stored,
    Deflate,
    Bzip2,
    Lzma { filtered: bool },
}

impl Method {
    /// Told by how compressed data begins; nothing says so.
    fn of(start: &[u8]) -> Self {
        let is_lzma = |start: &[u8]| matches!(start, [0x5d, 0, 0, _, _, 0, next, ..] if next & 0x80 == 0);
        match start {
            start if is_lzma(start) => Self::Lzma { filtered: false },
            [flag @ (0 | 1), rest @ ..] if is_lzma(rest) => Self::Lzma { filtered: *flag == 1 },
            [0x31, level, ..] if *level < 14 => Self::Bzip2,
            _ => Self::Deflate,
        }
    }

    fn open<'i>(self, mut packed: impl io::BufRead + 'i) -> io::Result<Box<dyn Read + 'i>> {
        Ok(match self {
            Self::Stored => Box::new(packed),
            Self::Deflate => Box::new(flate2::bufread::DeflateDecoder::new(packed)),
            Self::Bzip2 => Box::new(bzip2::Decoder::new(packed)),
            Self::Lzma { filtered } => {
                if packed.fill_buf()?.first().is_some_and(|flag| *flag <= 1) {
                    packed.consume(1);
                }
                let mut header = [0; 5];
                packed.read_exact(&mut header)?;
                let [properties, dictionary @ ..] = header;
                let dictionary = u32::from_le_bytes(dictionary);
                admit_decoder(u64::from(dictionary))?;
                let decoder = LzmaReader::new_with_props(packed, u64::MAX, properties, dictionary, None)?;
                if filtered { Box::new(BcjReader::new_x86(decoder, 0)) } else { Box::new(decoder) }
            }
        })
    }
}

fn installer(container: &mut Container<'_>, out: &mut Out<'_, '_>) -> io::Result<()> {
    let header: [u8; FIRST_HEADER_BYTES as usize] = read_array(container.input, 0)?;
    let fields = (le32(&header, 0), le32(&header, 20), le32(&header, 24));
    let (Some(flags), Some(header_bytes), Some(bytes)) = fields else { return Err(cut_off()) };
    let summed = flags & FLAG_NO_CRC == 0 || flags & FLAG_FORCE_CRC != 0;
    let end = u64::from(bytes).checked_sub(if summed { CRC_BYTES } else { 0 });
    let end = end.filter(|end| *end > FIRST_HEADER_BYTES).ok_or_else(|| invalid("malformed length"))?;
    if u64::from(bytes) > container.length {
        out.outcome.note_broken("the installer is cut off");
    }
    let start: [u8; 12] = read_array(container.input, FIRST_HEADER_BYTES)?;
    let first = array(&start, 0).map_or(0, u32::from_le_bytes);
    let method = Method::of(&start);
    // A script is shorter than 16 MiB, so that the last byte of its length has no more than the mark.
    let is_marked = first >> 24 == IS_COMPRESSED >> 24 && !matches!(method, Method::Lzma { .. });
    if first == header_bytes || is_marked {
        blocks(container, end, out)?;
    } else {
        solid(container, method, end, out)?;
    }
    if u64::from(bytes) < container.length && !out.is_over() {
        let rest = container.length - u64::from(bytes);
        out.stored("behind the installer".to_owned(), container.input, u64::from(bytes), rest);
    }
    Ok(())
}

fn name(number: u32) -> String {
    if number == 0 { "script".to_owned() } else { format!("file {number}") }
}

/// One stream of lengths and files.
fn solid(container: &mut Container<'_>, method: Method, end: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let packed = part(container.input, FIRST_HEADER_BYTES, end - FIRST_HEADER_BYTES)?;
    let mut content = BufReader::with_capacity(BUFFER_BYTES, method.open(packed)?);
    let mut number = 0;
    while !out.is_over() {
        let mut length = [0; 4];
        match read_full(&mut content, &mut length)? {
            0 => return Ok(()),
            4 => {}
            _ => return Err(cut_off()),
        }
        let length = u64::from(u32::from_le_bytes(length) & !IS_COMPRESSED);
        if !out.member(name(number), Some(length), &mut Exactly::new(&mut content, length)) {
            return Ok(());
        }
        number += 1;
    }
    Ok(())
}

/// Files that are compressed each for itself.
fn blocks(container: &mut Container<'_>, end: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let mut at = FIRST_HEADER_BYTES;
    let mut number = 0;
    while at < end && !out.is_over() {
        let word = u32::from_le_bytes(read_array(container.input, at)?);
        let length = u64::from(word & !IS_COMPRESSED);
        at += 4;
        let method = if word & IS_COMPRESSED == 0 {
            Ok(Method::Stored)
        } else {
            let mut start = [0; 8];
            read_full(&mut part(container.input, at, length)?, &mut start).map(|_| Method::of(&start))
        };
        let content = method.and_then(|method| method.open(part(container.input, at, length)?));
        out.made(name(number), None, content);
        at += length;
        number += 1;
    }
    Ok(())
}
