//! The content of a part of a mail, decoded line by line, and the files that lie in it as text.

use std::io::{self, Read};

use super::lines::Lines;
use super::{BUFFER_BYTES, End, Input, boundary};
use crate::container::display_name;
use crate::transfer::{self, Base64, Base64Rules, LiteralQuotedPrintable};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As it is; files may lie in it.
    Text,
    QuotedPrintable,
    /// The same as some programs decode it, see [`LiteralQuotedPrintable`].
    LiteralQuotedPrintable,
    Base64(Base64Rules),
    /// What begins like uuencode, but may be prose.
    PerhapsUuencoded,
    Uuencoded,
    Yenc,
}

impl Encoding {
    pub(super) fn named(name: &str) -> Self {
        match name {
            "base64" => Self::Base64(Base64Rules::default()),
            "quoted-printable" => Self::QuotedPrintable,
            _ => Self::Text,
        }
    }
}

/// What ends what is handed out.
pub(super) enum ContentEnd {
    Part(End),
    /// A file begins in the text.
    File(String, Encoding),
    /// That file ends.
    FileEnded,
}

/// The content of a part on its way out.
pub(super) struct Content<'c, 'i> {
    lines: &'c mut Lines<Input<'i>>,
    boundaries: &'c [Vec<u8>],
    pub(super) encoding: Encoding,
    base64: Base64,
    literal: LiteralQuotedPrintable,
    /// What is decoded as quoted-printable is something else when it is read literally.
    is_disputed: bool,
    out: Vec<u8>,
    given: usize,
    /// The last line break, which belongs to the boundary if one follows.
    held: Vec<u8>,
    /// The end of the last piece of a line that goes on.
    piece: Vec<u8>,
    pub(super) end: Option<ContentEnd>,
}

impl<'c, 'i> Content<'c, 'i> {
    /// What comes next in the lines, up to one of the boundaries.
    pub(super) fn new(lines: &'c mut Lines<Input<'i>>, boundaries: &'c [Vec<u8>], encoding: Encoding) -> Self {
        let rules = if let Encoding::Base64(rules) = encoding { rules } else { Base64Rules::default() };
        Self {
            lines,
            boundaries,
            encoding,
            base64: Base64::by(rules),
            literal: LiteralQuotedPrintable::default(),
            is_disputed: false,
            out: Vec::new(),
            given: 0,
            held: Vec::new(),
            piece: Vec::new(),
            end: None,
        }
    }

    /// The other encodings that programs take it for, which make a difference.
    pub(super) fn other_readings(&self) -> Vec<Encoding> {
        match self.encoding {
            Encoding::Base64(rules) if rules == Base64Rules::default() => {
                self.base64.other_readings().into_iter().map(Encoding::Base64).collect()
            }
            Encoding::QuotedPrintable if self.is_disputed => vec![Encoding::LiteralQuotedPrintable],
            _ => Vec::new(),
        }
    }

    /// Decodes the next line. False at the end.
    fn step(&mut self) -> io::Result<bool> {
        let next = self.lines.next()?;
        let end = match next {
            None => Some(End::Input),
            Some((line, begins)) => boundary(line, self.boundaries).filter(|_| begins),
        };
        let Some((line, begins)) = next.filter(|_| end.is_none()) else {
            if end == Some(End::Input) {
                self.out.append(&mut self.held);
            }
            self.held.clear();
            match self.encoding {
                Encoding::Base64(_) => self.base64.finish(&mut self.out),
                Encoding::QuotedPrintable => {
                    transfer::quoted_printable(&std::mem::take(&mut self.piece), &mut self.out)
                }
                Encoding::LiteralQuotedPrintable => self.literal.finish(&mut self.out),
                _ => {}
            }
            self.end = end.map(ContentEnd::Part);
            return Ok(false);
        };
        if self.encoding == Encoding::PerhapsUuencoded {
            if !transfer::is_uuencoded(line) {
                self.lines.give_back();
                self.end = Some(ContentEnd::FileEnded);
                return Ok(false);
            }
            self.encoding = Encoding::Uuencoded;
        }
        match self.encoding {
            Encoding::Base64(_) => self.base64.decode(line, &mut self.out),
            Encoding::Uuencoded | Encoding::PerhapsUuencoded => {
                if line.trim_ascii() == b"end" || !transfer::uuencoded(line, &mut self.out) {
                    self.end = Some(ContentEnd::FileEnded);
                    return Ok(false);
                }
            }
            Encoding::Yenc => {
                if line.starts_with(b"=yend") {
                    self.end = Some(ContentEnd::FileEnded);
                    return Ok(false);
                }
                if !line.starts_with(b"=ypart") {
                    yenc(line, &mut self.out);
                }
            }
            Encoding::Text => {
                if let Some((name, encoding)) = embedded_file(line).filter(|_| begins) {
                    self.held.clear();
                    self.end = Some(ContentEnd::File(display_name(name), encoding));
                    return Ok(false);
                }
                self.out.append(&mut self.held);
                self.out.extend_from_slice(line);
                self.hold_line_break();
            }
            Encoding::QuotedPrintable => {
                // An escape may begin in one piece of a line and end in the next.
                self.piece.extend_from_slice(line);
                let is_whole = line.ends_with(b"\n");
                let is_returned = self.lines.line_break() == b"\r" && self.piece.ends_with(b"=\n");
                self.is_disputed |= is_returned || transfer::is_disputed(&self.piece);
                self.out.append(&mut self.held);
                if is_whole {
                    let is_soft = self.piece.ends_with(b"=\n");
                    transfer::quoted_printable(&self.piece, &mut self.out);
                    self.piece.clear();
                    if !is_soft {
                        self.hold_line_break();
                    }
                } else {
                    let rest = self.piece.split_off(self.piece.len() - transfer::undecided(&self.piece));
                    transfer::escapes(&self.piece, &mut self.out);
                    self.piece = rest;
                }
            }
            Encoding::LiteralQuotedPrintable => {
                self.out.append(&mut self.held);
                self.literal.decode(line.strip_suffix(b"\n").unwrap_or(line), &mut self.out);
                let before = self.out.len();
                self.literal.decode(self.lines.line_break(), &mut self.out);
                if self.out.len() > before {
                    self.hold_line_break();
                }
            }
        }
        Ok(true)
    }

    /// The last line break belongs to the boundary if one follows.
    fn hold_line_break(&mut self) {
        if self.out.ends_with(b"\n") {
            let length = if self.out.ends_with(b"\r\n") { 2 } else { 1 };
            self.held = self.out.split_off(self.out.len() - length);
        }
    }
}

impl Read for Content<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        while self.given >= self.out.len() {
            self.out.clear();
            self.given = 0;
            if self.end.is_some() {
                return Ok(0);
            }
            while self.out.len() < BUFFER_BYTES && self.step()? {}
        }
        let mut rest = self.out.get(self.given..).unwrap_or_default();
        let read = rest.read(into)?;
        self.given += read;
        Ok(read)
    }
}

/// The file that begins with a line of text.
fn embedded_file(line: &[u8]) -> Option<(&[u8], Encoding)> {
    if let Some(begin) = transfer::uu_begin(line).filter(|begin| !begin.is_base64) {
        return Some((begin.name, if begin.is_sure { Encoding::Uuencoded } else { Encoding::PerhapsUuencoded }));
    }
    let rest = line.strip_prefix(b"=ybegin ")?;
    let at = crate::fields::find(rest, b"name=")?;
    Some((rest.get(at + 5..)?.trim_ascii(), Encoding::Yenc))
}

/// Decodes a line of yEnc.
fn yenc(line: &[u8], into: &mut Vec<u8>) {
    let mut bytes = line.iter().filter(|byte| !matches!(byte, b'\r' | b'\n'));
    while let Some(byte) = bytes.next() {
        let byte = match (byte, byte == &b'=') {
            (_, true) => bytes.next().map_or(0, |escaped| escaped.wrapping_sub(64)),
            (byte, false) => *byte,
        };
        into.push(byte.wrapping_sub(42));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yenc_is_decoded() {
        let mut bytes = Vec::new();
        yenc(b"\x8b=\x6a\r\n", &mut bytes);
        assert_eq!(bytes, [0x61, 0x00]);
    }
}
