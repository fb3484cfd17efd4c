//! What is signed or compressed with its signature around it: S/MIME's `smime.p7m`, and documents with `.p7m` behind their names. Format: the
//! Cryptographic Message Syntax, RFC 5652, with RFC 3274 (compressed) and RFC 5544 (stamped with a time).
//!
//! Signatures are not verified: what they are around is handed out, since programs show it whoever signed it. What is encrypted for
//! somebody's certificate is told as protected. Certificates, catalogs and signatures that lie beside what they sign have no members.

use std::io::{self, BufReader, Read, SeekFrom};

use flate2::bufread::ZlibDecoder;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{cut_off, invalid, read_at_most};
use crate::format::{Format, whole_if};
use crate::outcome::{ExtractionOutcome, Protection};
use crate::parts::Out;
use crate::stream::member_name;

/// The kinds of content, by the object identifiers that tell them: 1.2.840.113549.1.7 and 1.2.840.113549.1.9.16.1.
const PKCS7: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07";
const SMIME: &[u8] = b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01";

/// How a value is written: [X.690] 8.1.2 and 8.1.3.
const END: u8 = 0;
const OCTETS: u8 = 0x04;
const OCTETS_IN_PIECES: u8 = 0x24;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const EXPLICIT: u8 = 0xa0;
const INDEFINITE: u8 = 0x80;
/// The longest header: a tag, and a length of eight bytes.
const HEADER_BYTES_MAX: u64 = 10;
/// How deep pieces of content lie in each other at most.
const DEPTH_MAX: usize = 16;
/// Most values that a sequence has before its content.
const VALUES_MAX: usize = 16;

/// Signed, compressed and encrypted messages.
pub(crate) static FORMAT: Format = Format {
    name: "cms",
    description: "Cryptographic Message Syntax",
    mime: "application/pkcs7-mime",
    extension: "p7m",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(Kind::of(probe.head).is_some()),
    extractor: &Cms,
};

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Compressed,
    Encrypted,
}

impl Kind {
    /// The kind of the message that a file begins with.
    fn of(head: &[u8]) -> Option<Self> {
        let [SEQUENCE, length, rest @ ..] = head else { return None };
        let identifier = rest.get(usize::from(length & 0x7f).min(rest.len())..).filter(|_| length & 0x80 != 0);
        let identifier = identifier.unwrap_or(rest);
        if let Some(rest) = identifier.strip_prefix(PKCS7) {
            return match rest.first()? {
                // Data, signed, digested; enveloped, signed and enveloped, encrypted.
                1 | 2 | 5 => Some(Self::Plain),
                3 | 4 | 6 => Some(Self::Encrypted),
                _ => None,
            };
        }
        match identifier.strip_prefix(SMIME)?.first()? {
            // Authenticated, stamped with a time.
            2 | 31 => Some(Self::Plain),
            9 => Some(Self::Compressed),
            // Authenticated and enveloped.
            23 => Some(Self::Encrypted),
            _ => None,
        }
    }
}

struct Cms;

impl Extractor for Cms {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = walk(container, budget, &mut out);
        out.end("the message is broken", result)
    }
}

fn walk(container: &mut Container<'_>, budget: &Budget, out: &mut Out<'_, '_>) -> io::Result<()> {
    let input = &mut *container.input;
    input.seek(SeekFrom::Start(0))?;
    let kind = Kind::of(&read_at_most(input, 32)?).ok_or_else(|| invalid("no message"))?;
    if kind == Kind::Encrypted {
        out.outcome.note_protected(Protection::Document);
    } else if let Some(content) = content(input, budget)?
        && !hand_out(kind, content, container, out)
    {
        return Ok(());
    }
    behind(container, budget, out)
}

/// Hands out the content of a message. False if it ended with an error or nothing more may come out.
fn hand_out(kind: Kind, content: Header, container: &mut Container<'_>, out: &mut Out<'_, '_>) -> bool {
    let name = member_name(container.name, &[(".p7m", ""), (".p7s", ""), (".p7z", ""), (".tsd", "")]);
    let mut octets = BufReader::new(Octets::new(&mut *container.input, content));
    match kind {
        Kind::Compressed => out.member(name, None, &mut ZlibDecoder::new(octets)),
        _ => out.member(name, None, &mut octets),
    }
}

/// Hands out what lies behind the message: whoever opens the file as something else may find it there.
fn behind(container: &mut Container<'_>, budget: &Budget, out: &mut Out<'_, '_>) -> io::Result<()> {
    let end = Header::read(container.input, 0)?.next(container.input, budget)?;
    let Some(length) = container.length.checked_sub(end) else {
        out.outcome.note_broken("the message is cut off");
        return Ok(());
    };
    if length > 0 {
        out.stored("behind the message".to_owned(), container.input, end, length);
    }
    Ok(())
}

/// The header of a value.
#[derive(Debug, Clone, Copy)]
struct Header {
    tag: u8,
    /// Where what is in it begins.
    content: u64,
    /// Where that ends; none if a mark says so.
    end: Option<u64>,
}

impl Header {
    fn read(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Self> {
        input.seek(SeekFrom::Start(offset))?;
        let bytes = read_at_most(input, HEADER_BYTES_MAX)?;
        let [tag, length, rest @ ..] = bytes.as_slice() else { return Err(cut_off("the message is cut off")) };
        // No value here has a tag of several bytes.
        if tag & 0x1f == 0x1f {
            return Err(invalid("a value of an unknown kind"));
        }
        let (digits, is_long) = (usize::from(length & 0x7f), length & 0x80 != 0);
        let (size, bytes) = match (is_long, *length) {
            (_, INDEFINITE) => return Ok(Self { tag: *tag, content: offset + 2, end: None }),
            (false, length) => (u64::from(length), 2),
            (true, _) => {
                let digits = rest.get(..digits).filter(|digits| digits.len() <= 8);
                let digits = digits.ok_or_else(|| invalid("a length that is none"))?;
                (digits.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)), 2 + digits.len() as u64)
            }
        };
        let content = offset + bytes;
        Ok(Self { tag: *tag, content, end: Some(content.saturating_add(size)) })
    }

    /// Where the next value begins.
    fn next(&self, input: &mut dyn ReadSeek, budget: &Budget) -> io::Result<u64> {
        if let Some(end) = self.end {
            return Ok(end);
        }
        let (mut at, mut depth) = (self.content, 1u64);
        while depth > 0 {
            budget.check()?;
            let header = Self::read(input, at)?;
            match header.end {
                Some(end) if header.tag == END => (at, depth) = (end, depth - 1),
                Some(end) => at = end,
                None => (at, depth) = (header.content, depth + 1),
            }
        }
        Ok(at)
    }
}

/// The content of a message, if it has any.
fn content(input: &mut dyn ReadSeek, budget: &Budget) -> io::Result<Option<Header>> {
    let message = Header::read(input, 0)?;
    let Some(explicit) = explicit(input, budget, message.content)? else { return Ok(None) };
    let inner = Header::read(input, explicit.content)?;
    if matches!(inner.tag, OCTETS | OCTETS_IN_PIECES) {
        return Ok(Some(inner));
    }
    let mut at = inner.content;
    for _ in 0..VALUES_MAX {
        if inner.end.is_some_and(|end| at >= end) {
            break;
        }
        let value = Header::read(input, at)?;
        match value.tag {
            OCTETS | OCTETS_IN_PIECES => return Ok(Some(value)),
            SEQUENCE => {
                if let Some(explicit) = self::explicit(input, budget, value.content)? {
                    let content = Header::read(input, explicit.content)?;
                    // Of other types are the lists of catalogs, and what signs programs.
                    return Ok(Some(content).filter(|content| matches!(content.tag, OCTETS | OCTETS_IN_PIECES)));
                }
            }
            END => break,
            _ => {}
        }
        at = value.next(input, budget)?;
    }
    Ok(None)
}

/// What follows an object identifier as its content: none if no identifier is at `offset`, or no content behind it.
fn explicit(input: &mut dyn ReadSeek, budget: &Budget, offset: u64) -> io::Result<Option<Header>> {
    let identifier = Header::read(input, offset)?;
    if identifier.tag != OBJECT_IDENTIFIER {
        return Ok(None);
    }
    let next = identifier.next(input, budget)?;
    // A message without content may end here.
    let header = match Header::read(input, next) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        header => header?,
    };
    Ok(Some(header).filter(|header| header.tag == EXPLICIT))
}

/// The bytes of a value, in one piece or many.
struct Octets<'i> {
    input: &'i mut dyn ReadSeek,
    at: u64,
    /// How many bytes are left of the piece at `at`.
    left: u64,
    /// Where the pieces in each other end that hold it.
    ends: Vec<Option<u64>>,
}

impl<'i> Octets<'i> {
    fn new(input: &'i mut dyn ReadSeek, value: Header) -> Self {
        let is_whole = value.tag == OCTETS;
        let left = value.end.filter(|_| is_whole).map_or(0, |end| end - value.content);
        let ends = if is_whole { Vec::new() } else { vec![value.end] };
        Self { input, at: value.content, left, ends }
    }

    /// Goes on to the next piece that has any bytes. False at the end.
    fn next_piece(&mut self) -> io::Result<bool> {
        while let Some(end) = self.ends.last().copied() {
            if end.is_some_and(|end| self.at >= end) {
                self.ends.pop();
                continue;
            }
            let header = Header::read(self.input, self.at)?;
            self.at = header.content;
            match (header.tag, header.end) {
                (END, _) => drop(self.ends.pop()),
                (OCTETS, Some(end)) if end > header.content => {
                    self.left = end - header.content;
                    return Ok(true);
                }
                (OCTETS, Some(_)) => {}
                (OCTETS_IN_PIECES, end) if self.ends.len() < DEPTH_MAX => self.ends.push(end),
                _ => return Err(invalid("content in pieces that are none")),
            }
        }
        Ok(false)
    }
}

impl Read for Octets<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || self.left == 0 && !self.next_piece()? {
            return Ok(0);
        }
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        self.input.seek(SeekFrom::Start(self.at))?;
        let read = self.input.read(into.get_mut(..most).unwrap_or_default())?;
        if read == 0 {
            return Err(cut_off("the content is cut off"));
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::conformance::{self, Case, eicar, take_apart};
    use crate::passwords::Passwords;

    const DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";

    fn value(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u32).to_be_bytes();
        [&[tag, 0x84][..], &length, content].concat()
    }

    /// A message around a sequence of values.
    fn message(prefix: &[u8], kind: u8, values: &[Vec<u8>]) -> Vec<u8> {
        let content = value(EXPLICIT, &value(SEQUENCE, &values.concat()));
        value(SEQUENCE, &[prefix, &[kind], &content].concat())
    }

    fn signed(octets: &[u8]) -> Vec<u8> {
        let content = [DATA, &value(EXPLICIT, octets)].concat();
        message(PKCS7, 2, &[value(2, &[1]), value(0x31, b""), value(SEQUENCE, &content), value(0x31, b"")])
    }

    /// As programs write it that don't know lengths beforehand.
    fn signed_in_pieces(content: &[u8], piece: usize) -> Vec<u8> {
        let pieces: Vec<u8> = content.chunks(piece).flat_map(|piece| value(OCTETS, piece)).collect();
        let (open, close) = ([0x80], [0, 0]);
        let octets = [&[OCTETS_IN_PIECES][..], &open, &pieces, &value(OCTETS_IN_PIECES, b""), &close].concat();
        let inner = [&[SEQUENCE][..], &open, DATA, &[EXPLICIT], &open, &octets, &close, &close].concat();
        let values = [&value(2, &[1])[..], &[0x31, 0x80, 0x30, 0x80, 0, 0, 0, 0], &inner, &value(0x31, b"")].concat();
        let signed = [&[EXPLICIT][..], &open, &[SEQUENCE], &open, &values, &close, &close].concat();
        [&[SEQUENCE][..], &open, PKCS7, &[2], &signed, &close].concat()
    }

    fn members(file: &[u8]) -> Vec<Vec<u8>> {
        take_apart(file, &Passwords::NONE).members.into_iter().map(|(_, content)| content).collect()
    }

    #[test]
    fn what_is_signed_comes_out() {
        for file in [signed(&value(OCTETS, &eicar())), signed_in_pieces(&eicar(), 7)] {
            assert_eq!(members(&file), [eicar()]);
            conformance::check(&Case { open_ended: true, ..Case::new("cms", &file, &eicar()) }, 300);
        }
        let mut deflated = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        deflated.write_all(&eicar()).unwrap();
        let content = [DATA, &value(EXPLICIT, &value(OCTETS, &deflated.finish().unwrap()))].concat();
        let file = message(SMIME, 9, &[value(2, &[0]), value(SEQUENCE, b""), value(SEQUENCE, &content)]);
        assert_eq!(members(&file), [eicar()]);
        let file = message(SMIME, 31, &[value(2, &[1]), value(0x16, b"http://a"), value(OCTETS, &eicar())]);
        assert_eq!(members(&file), [eicar()]);
    }

    #[test]
    fn what_lies_behind_a_message_comes_out() {
        for message in [signed(&value(OCTETS, b"a")), signed_in_pieces(b"a", 7)] {
            assert_eq!(members(&[&message[..], &eicar()].concat()), [b"a".to_vec(), eicar()]);
        }
    }

    #[test]
    fn what_is_encrypted_is_told_and_what_only_signs_is_not() {
        let file = message(PKCS7, 3, &[value(2, &[0])]);
        assert_eq!(take_apart(&file, &Passwords::NONE).outcome.protected, [Protection::Document].into());
        let bundle = message(PKCS7, 2, &[value(2, &[1]), value(0x31, b""), value(SEQUENCE, DATA)]);
        let catalog = signed(&value(SEQUENCE, b"list"));
        for file in [bundle, catalog] {
            let taken = take_apart(&file, &Passwords::NONE);
            assert!(taken.members.is_empty() && taken.outcome.is_complete(), "{}", taken.outcome.detail());
        }
    }
}
