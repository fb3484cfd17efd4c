//! Files in text: uuencode, its base64 variant, and yEnc. Formats: POSIX.1-2017, uuencode; yEnc draft 1.3.
//!
//! A text may hold several, one after the other, among other lines; each is a member. Parts of a yEnc file of several parts come
//! out as they are and are told as broken. Text in messages is the business of the readers of messages.

use std::io::{self, BufRead, BufReader, Read};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::encoded::has_begin;
use crate::fields::invalid;
use crate::format::{Claim, Claims, Format, Probe};
use crate::outcome::ExtractionOutcome;
use crate::parts::{BUFFER_BYTES, Checked, Out, cut_off};
use crate::transfer;

/// The longest line that is looked at: a line of yEnc has up to 997 bytes and its escapes, and of uuencode 61.
const LINE_BYTES_MAX: u64 = 4096;

/// uuencode.
pub(crate) static UUENCODE: Format = Format {
    name: "uuencode",
    description: "uuencoded text",
    mime: "text/x-uuencode",
    extension: "uue",
    category: "T",
    beside: &["yenc"],
    probe: |probe| Ok(claims(probe, |line| transfer::uu_begin(line).is_some_and(|begin| begin.is_sure))),
    extractor: &Text(Begin::uuencode),
};

/// yEnc.
pub(crate) static YENC: Format = Format {
    name: "yenc",
    description: "yEnc text",
    mime: "text/x-yenc",
    extension: "yenc",
    category: "T",
    beside: &[],
    probe: |probe| Ok(claims(probe, |line| Begin::yenc(line).is_some())),
    extractor: &Text(Begin::yenc),
};

/// How much of a text is searched for the beginning of a file: every file is, so that it must cost next to nothing. The rest is
/// searched if nothing claims the file, see [`crate::text::search`].
const SEARCHED_BYTES: usize = 4096;

/// A text that begins with a file is one for whoever opens it; one that holds a file somewhere may be anything.
fn claims(probe: &Probe<'_>, begins: impl Fn(&[u8]) -> bool) -> Claims {
    let head = probe.head.get(..SEARCHED_BYTES).unwrap_or(probe.head);
    if !has_begin(head) {
        return Vec::new();
    }
    let mut lines = head.split(|byte| *byte == b'\n');
    if lines.next().is_some_and(&begins) {
        return vec![Claim::Whole(0)];
    }
    if lines.any(begins) { vec![Claim::Inside(0)] } else { Vec::new() }
}

/// The line that a file begins with.
struct Begin {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Uu,
    /// Perhaps only prose that begins like it.
    PerhapsUu,
    Base64,
    Yenc,
}

impl Begin {
    fn uuencode(line: &[u8]) -> Option<Self> {
        let begin = transfer::uu_begin(line)?;
        let kind = match (begin.is_base64, begin.is_sure) {
            (true, _) => Kind::Base64,
            (false, true) => Kind::Uu,
            (false, false) => Kind::PerhapsUu,
        };
        Some(Self { name: display_name(begin.name), kind })
    }

    fn yenc(line: &[u8]) -> Option<Self> {
        let rest = line.trim_ascii_end().strip_prefix(b"=ybegin ")?;
        let at = rest.windows(6).position(|six| six == b" name=")?;
        rest.windows(5).any(|five| five == b"size=").then_some(())?;
        Some(Self { name: display_name(rest.get(at + 6..)?), kind: Kind::Yenc })
    }
}

struct Text(fn(&[u8]) -> Option<Begin>);

impl Extractor for Text {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let input: &mut dyn ReadSeek = &mut *container.input;
        let result = input.seek(io::SeekFrom::Start(0)).and_then(|_| {
            let input = BufReader::with_capacity(BUFFER_BYTES, input);
            self.files(&mut Lines { input, line: Vec::new() }, &mut out)
        });
        out.end("the text is broken", result)
    }
}

impl Text {
    fn files(&self, lines: &mut Lines<'_>, out: &mut Out<'_, '_>) -> io::Result<()> {
        while lines.next()? {
            if out.is_over() {
                return Ok(());
            }
            let Some(begin) = self.0(&lines.line) else { continue };
            let part = value(&lines.line, b"part=").is_some();
            let whole = value(&lines.line, b"size=");
            let mut body = Body { lines, kind: begin.kind, decoded: io::Cursor::default(), produced: 0, end: None };
            if part {
                out.outcome.note_broken(format!("{:?} is part of a file", begin.name));
            }
            // The checksum comes behind the content, so that it is compared when that was read.
            let mut summed = Checked::new(&mut body, None);
            if !out.member(begin.name.clone(), None, &mut summed) {
                continue;
            }
            let sum = summed.sum();
            let (produced, end) = (body.produced, body.end.take().unwrap_or_default());
            let claimed = value(&end, b"pcrc32=").or_else(|| value(&end, b"crc32="));
            let claimed = claimed.and_then(|text| u32::from_str_radix(&text, 16).ok());
            if claimed.is_some_and(|claimed| claimed != sum) {
                out.outcome.note_broken(format!("{:?} doesn't have the checksum that it says", begin.name));
            }
            let whole = whole.filter(|_| !part && matches!(begin.kind, Kind::Yenc));
            if whole.and_then(|text| text.parse().ok()).is_some_and(|whole: u64| whole != produced) {
                out.outcome.note_broken(format!("{:?} is not as long as it says", begin.name));
            }
        }
        Ok(())
    }
}

/// The value of a key in a line of yEnc.
fn value(line: &[u8], key: &[u8]) -> Option<String> {
    let fields = line.split(|byte| byte.is_ascii_whitespace());
    let value = fields.filter_map(|field| field.strip_prefix(key)).next()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Lines, of which the longest are cut in pieces.
struct Lines<'l> {
    input: BufReader<&'l mut dyn ReadSeek>,
    line: Vec<u8>,
}

impl Lines<'_> {
    /// Reads the next line without its end. False at the end of the text.
    fn next(&mut self) -> io::Result<bool> {
        self.line.clear();
        let read = (&mut self.input).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)?;
        for end in [b'\n', b'\r'] {
            if self.line.last() == Some(&end) {
                self.line.pop();
            }
        }
        Ok(read > 0)
    }
}

/// What the lines of a file decode to.
struct Body<'b, 'l> {
    lines: &'b mut Lines<'l>,
    kind: Kind,
    decoded: io::Cursor<Vec<u8>>,
    produced: u64,
    /// The line that ended it.
    end: Option<Vec<u8>>,
}

impl Body<'_, '_> {
    fn next_line(&mut self) -> io::Result<()> {
        if !self.lines.next()? {
            return Err(cut_off());
        }
        let line = self.lines.line.as_slice();
        let decoded = match self.kind {
            Kind::PerhapsUu if !transfer::is_uuencoded(line) => None,
            Kind::Uu | Kind::PerhapsUu if line.trim_ascii_end() == b"end" => None,
            Kind::Base64 if line == b"====" => None,
            Kind::Yenc if line.starts_with(b"=yend") => None,
            Kind::Yenc if line.starts_with(b"=ypart ") => Some(Vec::new()),
            Kind::Uu | Kind::PerhapsUu => Some(uu_line(line)?),
            Kind::Base64 => Some(base64_line(line)?),
            Kind::Yenc => Some(yenc_line(line)),
        };
        if matches!(self.kind, Kind::PerhapsUu) {
            self.kind = Kind::Uu;
        }
        match decoded {
            Some(decoded) => {
                self.produced += decoded.len() as u64;
                self.decoded = io::Cursor::new(decoded);
            }
            None => self.end = Some(line.to_vec()),
        }
        Ok(())
    }
}

impl Read for Body<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.decoded.read(into)?;
            if read > 0 || self.end.is_some() || into.is_empty() {
                return Ok(read);
            }
            self.next_line()?;
        }
    }
}

/// Four characters of six bits each are three bytes.
fn three(four: impl Iterator<Item = u8>) -> [u8; 3] {
    let bits = four.chain(std::iter::repeat(0)).take(4).fold(0u32, |bits, six| bits << 6 | u32::from(six & 63));
    let [_, bytes @ ..] = bits.to_be_bytes();
    bytes
}

fn uu_line(line: &[u8]) -> io::Result<Vec<u8>> {
    let Some((length, rest)) = line.split_first() else { return Ok(Vec::new()) };
    let length = usize::from(length.wrapping_sub(b' ') & 63);
    // Spaces at the end of a line get lost on the way.
    let mut decoded: Vec<u8> =
        rest.chunks(4).flat_map(|four| three(four.iter().map(|byte| byte.wrapping_sub(b' ')))).collect();
    if decoded.len() + 3 * 21 < length {
        return Err(invalid("a line shorter than it says"));
    }
    decoded.resize(length, 0);
    Ok(decoded)
}

fn base64_line(line: &[u8]) -> io::Result<Vec<u8>> {
    let six = |byte: u8| {
        Ok(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(invalid("a character that is not of base64")),
        })
    };
    let line = line.trim_ascii();
    let digits: Vec<u8> =
        line.iter().filter(|byte| **byte != b'=').map(|byte| six(*byte)).collect::<io::Result<_>>()?;
    let mut decoded: Vec<u8> = digits.chunks(4).flat_map(|four| three(four.iter().copied())).collect();
    decoded.truncate(digits.len() * 3 / 4);
    Ok(decoded)
}

fn yenc_line(line: &[u8]) -> Vec<u8> {
    // Two dots at the beginning are one that news doubled.
    let line = if line.starts_with(b"..") { line.get(1..).unwrap_or_default() } else { line };
    let mut decoded = Vec::with_capacity(line.len());
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'=' => bytes.next().map_or(0, |byte| byte.wrapping_sub(64)),
            byte => *byte,
        };
        decoded.push(byte.wrapping_sub(42));
    }
    decoded
}
