//! BinHex 4, how files of Macs travelled in mail. Format: RFC 1741, appendix A.
//!
//! A text may hold one file, among other lines: its data fork, and its resource fork as `file/..namedfork/rsrc`.

use std::io::{self, BufRead, BufReader, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{be16, be32, find, invalid};
use crate::format::{Claim, Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{BUFFER_BYTES, Exactly, Out, cut_off, read_bytes};
use crate::runs::Runs;
use crate::tree::join;

/// What the line in front of a file says, up to the version.
const MARK: &[u8] = b"(This file must be converted with BinHex";
/// How much of a text is searched for that line.
const SEARCHED_BYTES: usize = 4096;
/// The same when the text is read.
const BEFORE_BYTES_MAX: u64 = 64 << 10;
const ALPHABET: &[u8; 64] = b"!\"#$%&'()*+,-012345689@ABCDEFGHIJKLMNPQRSTUVXYZ[`abcdefhijklmpqr";
/// The shortest header, of a file whose name has one letter: 23 bytes, of which those that repeat may be left out.
const HEADER_CHARACTERS_MIN: usize = 16;

/// BinHex 4.
pub(crate) static FORMAT: Format = Format {
    name: "binhex",
    description: "BinHex 4",
    mime: "application/mac-binhex40",
    extension: "hqx",
    category: "T",
    beside: &[],
    probe: |probe| {
        let head = probe.head.get(..SEARCHED_BYTES).unwrap_or(probe.head);
        let is_all = probe.head.len() as u64 >= probe.length;
        match find(head, MARK) {
            Some(0) => whole_if(true),
            // If no file is behind it the text only speaks of such files.
            Some(mark) if !is_all || has_file(probe.head.get(mark..).unwrap_or_default()) => Ok(vec![Claim::Inside(0)]),
            _ => Ok(Vec::new()),
        }
    },
    extractor: &BinHex,
};

/// Whether a file begins somewhere in a text: a colon, and no other characters than those of its alphabet for a while.
fn has_file(text: &[u8]) -> bool {
    memchr::memchr_iter(b':', text).any(|colon| {
        let rest = text.get(colon + 1..).unwrap_or_default();
        let mut characters = rest.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')).take(HEADER_CHARACTERS_MIN);
        characters.clone().count() == HEADER_CHARACTERS_MIN && characters.all(|byte| ALPHABET.contains(byte))
    })
}

struct BinHex;

impl Extractor for BinHex {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = file(&mut *container.input, &mut out);
        out.end("the BinHex text is broken", result)
    }
}

fn file(input: &mut dyn ReadSeek, out: &mut Out<'_, '_>) -> io::Result<()> {
    input.seek(SeekFrom::Start(0))?;
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    // The file begins with a colon behind the line that tells of it.
    let mut before = Vec::new();
    while find(&before, MARK).is_none() {
        before.clear();
        if (&mut input).take(BEFORE_BYTES_MAX).read_until(b'\n', &mut before)? == 0 {
            return Err(invalid("there is no file in it"));
        }
    }
    let read = (&mut input).take(BEFORE_BYTES_MAX).read_until(b':', &mut before)?;
    if read == 0 || !before.ends_with(b":") {
        return Err(cut_off());
    }
    let mut bytes = Bytes { packed: Packed { input, bits: 0, count: 0 }, runs: Runs::default(), crc: 0, failure: None };
    let mut name_bytes = [0];
    bytes.read_exact(&mut name_bytes)?;
    let [name_bytes] = name_bytes;
    let mut header = vec![0; usize::from(name_bytes) + 19];
    bytes.read_exact(&mut header)?;
    bytes.check("the header", out)?;
    let at = usize::from(name_bytes);
    let name = display_name(header.get(..at).unwrap_or_default());
    let (Some(data), Some(resources)) = (be32(&header, at + 11), be32(&header, at + 15)) else { return Err(cut_off()) };
    let resource_name = join("", &format!("{name}/..namedfork/rsrc"));
    for (name, length, is_data) in [(name, data, true), (resource_name, resources, false)] {
        if length > 0 || is_data {
            let mut fork = Exactly::new(&mut bytes, u64::from(length));
            if !out.member(name.clone(), Some(u64::from(length)), &mut fork) || !fork.is_read() {
                return Ok(());
            }
        }
        bytes.check(&name, out)?;
    }
    Ok(())
}

/// What the text decodes to.
struct Bytes<'b> {
    packed: Packed<'b>,
    runs: Runs,
    crc: u16,
    /// What the next read ends with.
    failure: Option<io::Error>,
}

impl Bytes<'_> {
    /// Compares the checksum of what came since the last one with the one that comes next.
    fn check(&mut self, what: &str, out: &mut Out<'_, '_>) -> io::Result<()> {
        let sum = [0, 0].into_iter().fold(self.crc, crc);
        let mut said = [0; 2];
        self.read_exact(&mut said)?;
        self.crc = 0;
        if be16(&said, 0) != Some(sum) {
            out.outcome.note_broken(format!("{what:?} doesn't have the checksum that it says"));
        }
        Ok(())
    }
}

/// The same before runs are undone.
struct Packed<'b> {
    input: BufReader<&'b mut dyn ReadSeek>,
    bits: u32,
    count: u32,
}

impl Packed<'_> {
    fn next(&mut self) -> io::Result<u8> {
        while self.count < 8 {
            let mut character = [0];
            self.input.read_exact(&mut character).map_err(|_| cut_off())?;
            let [character] = character;
            if character.is_ascii_whitespace() {
                continue;
            }
            let six = ALPHABET.iter().position(|known| *known == character);
            let six = six.ok_or_else(|| invalid("a character that is not of BinHex"))?;
            self.bits = self.bits << 6 | six as u32;
            self.count += 6;
        }
        self.count -= 8;
        Ok((self.bits >> self.count) as u8)
    }
}

fn crc(crc: u16, byte: u8) -> u16 {
    (0..8).rev().fold(crc, |crc, bit| {
        let out = crc & 0x8000 != 0;
        let next = crc << 1 | u16::from(byte >> bit & 1);
        if out { next ^ 0x1021 } else { next }
    })
}

impl Read for Bytes<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_bytes(into, &mut self.failure, || {
            let byte = self.runs.next(|| self.packed.next().map(Some))?;
            self.crc = byte.map_or(self.crc, |byte| crc(self.crc, byte));
            Ok(byte)
        })
    }
}
