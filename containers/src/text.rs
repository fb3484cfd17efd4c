//! Text with files in it: web pages and style sheets with `data:` addresses, scripts with long strings of base64, XML with binary data
//! (flat OpenDocument, Word of 2003, Flat OPC), calendars and address books with attachments. Formats: RFC 2397, RFC 4648.
//!
//! Any text may be such a file, so a text is one if what is seen of its beginning and end has a `data:` address or a long run of
//! base64, or if it is markup. It counts only if the file is nothing else. Short runs are left: they are hashes and names.
//! Strings that a script puts together from pieces count as one. Text in UTF-16 is the business of
//! [`crate::utf16`].
//!
//! Cut inside a string a text is complete, since text doesn't say where it ends; a `data:` address that nothing ends is cut off.
//!
//! An OpenDocument file under a password is a ZIP archive with a manifest that says so: the manifest is told as protected.

use std::io::{self, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, hand_out};
use crate::fields::find;
use crate::format::{Claim, Claims, Format, Probe};
use crate::outcome::{ExtractionOutcome, Protection};
use crate::transfer::{Base64, digit, hex_digit};

/// How many characters a run of base64 has at least: the longest hash's in hexadecimal are 128, and lists of hashes are long.
const RUN_CHARACTERS_MIN: usize = 160;
/// The same for what an element of XML or a field of a calendar begins with: the EICAR test file's are 92.
const ELEMENT_CHARACTERS_MIN: usize = 80;
/// How many different characters the beginning of a run has at least: else any line of dashes would be one.
const DIFFERENT_CHARACTERS_MIN: u32 = 8;
/// How many characters of a run stand together at least, before space or the end of a string: else any prose would be one.
const LINE_CHARACTERS_MIN: usize = 32;
/// The longest beginning of a `data:` address, up to its comma.
const ADDRESS_BYTES_MAX: usize = 200;
/// The longest beginning of a run in short lines, or of an address.
const SEARCH_AGAIN_BYTES: usize = 512;
/// How much of the text is held.
const WINDOW_BYTES: usize = 64 * 1024;
/// How far is looked ahead for where a string goes on.
const JOINT_BYTES_MAX: usize = 32;
/// How much of a manifest is looked at.
const MANIFEST_BYTES_MAX: usize = 60 * 1024;

/// Text with files in it.
pub(crate) static FORMAT: Format = Format {
    name: "text",
    description: "Plain Text",
    mime: "text/plain",
    extension: "txt",
    category: "T",
    beside: &[],
    probe,
    extractor: &Text,
};

fn probe(probe: &mut Probe<'_>) -> io::Result<Claims> {
    let begins_as_text = !probe.head.iter().take(4096).any(|byte| matches!(byte, 0..=8 | 14..=26 | 28..=31));
    let head = probe.head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(probe.head).trim_ascii_start();
    let markup = matches!(head, [b'<', b'!' | b'?' | b'a'..=b'z' | b'A'..=b'Z', ..]);
    let has_data = |text: &[u8]| !matches!(next_data(text, true), Found::Nothing(_));
    let is_one = begins_as_text && (markup || has_data(probe.head) || has_data(probe.tail));
    Ok(if is_one { vec![Claim::Inside(0)] } else { Vec::new() })
}

struct Text;

impl Extractor for Text {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        if let Err(error) = walk(container, budget, sink, &mut outcome) {
            outcome.note_error("the text can't be read", &error);
        }
        outcome
    }
}

fn walk(
    container: &mut Container<'_>,
    budget: &Budget,
    sink: &mut Sink<'_>,
    outcome: &mut ExtractionOutcome,
) -> io::Result<()> {
    container.input.seek(SeekFrom::Start(0))?;
    let mut window = Window { input: &mut *container.input, bytes: Vec::new(), at: 0, ended: false };
    if is_encrypted_manifest(window.ahead(MANIFEST_BYTES_MAX)?) {
        outcome.note_protected(Protection::Document);
    }
    let mut members = 0u64;
    loop {
        budget.check()?;
        let ahead = window.ahead(WINDOW_BYTES / 2)?;
        if ahead.is_empty() {
            return Ok(());
        }
        let ended_before = ahead.len() < WINDOW_BYTES / 2;
        let found = next_data(ahead, ended_before);
        let (skip, kind) = match found {
            Found::Nothing(skip) => {
                window.at += skip;
                continue;
            }
            Found::Run(at) => (at, None),
            Found::Address(at, address) => (at, Some(address)),
        };
        window.at += skip;
        members += 1;
        let extension = kind.as_ref().map_or("", |address| address.extension.as_str());
        let name = format!("data-{members}{extension}");
        let is_base64 = kind.as_ref().is_none_or(|address| address.is_base64);
        let decoder = Base64::default();
        let is_address = kind.is_some();
        let mut data = Data {
            window: &mut window,
            is_base64,
            is_address,
            decoder,
            is_padded: false,
            line: 0,
            out: Vec::new(),
            given: 0,
            end: None,
        };
        match hand_out(name.clone(), None, &mut data, budget, sink) {
            Ok(None) if is_address && data.end == Some(End::OfText) => {
                outcome.note_broken(format!("the text ends inside {name}"))
            }
            Ok(None) => {}
            Ok(Some(error)) => return Err(error),
            Err(halt) => return Err(halt.into()),
        }
    }
}

fn is_encrypted_manifest(head: &[u8]) -> bool {
    find(head, b"urn:oasis:names:tc:opendocument:xmlns:manifest").is_some() && find(head, b":encryption-data").is_some()
}

/// What is next in a piece of text.
enum Found {
    /// Nothing in so many bytes.
    Nothing(usize),
    /// A run of base64 so far in.
    Run(usize),
    /// The data of an address so far in.
    Address(usize, Address),
}

struct Address {
    is_base64: bool,
    extension: String,
}

/// The first data in a piece of text. If the text goes on, what may be cut off at the end of the piece is left for the next.
fn next_data(text: &[u8], is_all: bool) -> Found {
    let mut run_start = 0;
    for (at, byte) in text.iter().enumerate() {
        if digit(*byte).is_some() {
            continue;
        }
        let run = text.get(run_start..at).unwrap_or_default();
        // Long lines may be one run together.
        if run.len() >= LINE_CHARACTERS_MIN && is_run(text, run_start) {
            return Found::Run(run_start);
        }
        let is_address = *byte == b':' && run.last_chunk::<4>().is_some_and(|word| word.eq_ignore_ascii_case(b"data"));
        if let Some((length, address)) = text.get(at + 1..).filter(|_| is_address).and_then(address) {
            return Found::Address(at + 1 + length, address);
        }
        run_start = at + 1;
    }
    if is_run(text, run_start) {
        return Found::Run(run_start);
    }
    // What may be the beginning of a run or an address is searched again with what follows.
    let kept = if is_all { 0 } else { SEARCH_AGAIN_BYTES };
    Found::Nothing(text.len().saturating_sub(kept).max(1))
}

/// Whether a run begins so far into a text, in one line or several, that is long enough, and no hash.
fn is_run(text: &[u8], start: usize) -> bool {
    let before = start.checked_sub(1).and_then(|before| text.get(before));
    let is_element = matches!(before, Some(b'>' | b':'));
    let least = if is_element { ELEMENT_CHARACTERS_MIN } else { RUN_CHARACTERS_MIN };
    let (mut characters, mut is_hash, mut different) = (0, true, 0u64);
    let mut rest = text.get(start..).unwrap_or_default();
    while characters < RUN_CHARACTERS_MIN {
        let line = rest.iter().take(RUN_CHARACTERS_MIN).take_while(|byte| digit(**byte).is_some()).count();
        is_hash &= rest.iter().take(line).all(|byte| byte.is_ascii_hexdigit());
        different |= rest.iter().take(line).filter_map(|byte| digit(*byte)).fold(0, |all, digit| all | 1 << digit);
        characters += line;
        if line < LINE_CHARACTERS_MIN {
            break;
        }
        rest = rest.get(line..).unwrap_or_default();
        let Some(length) = joint(rest.get(..JOINT_BYTES_MAX).unwrap_or(rest)) else { break };
        rest = rest.get(length..).unwrap_or_default();
    }
    let is_long = characters >= RUN_CHARACTERS_MIN || characters >= least && !is_hash;
    is_long && different.count_ones() >= DIFFERENT_CHARACTERS_MIN
}

/// The beginning of an address behind "data:": its length with the comma, and what it says.
fn address(text: &[u8]) -> Option<(usize, Address)> {
    let comma = text.iter().take(ADDRESS_BYTES_MAX).position(|byte| *byte == b',')?;
    let says = text.get(..comma)?;
    if says.iter().any(|byte| matches!(byte, b'"' | b'\'' | b'<' | b'>' | b'(' | b')' | b'{' | b'}' | b'\r' | b'\n')) {
        return None;
    }
    let mut parts = says.split(|byte| *byte == b';');
    let subtype = parts.next()?.rsplit(|byte| *byte == b'/').next()?;
    let word: String =
        subtype.iter().take_while(|byte| byte.is_ascii_alphanumeric()).take(8).copied().map(char::from).collect();
    let is_base64 = parts.any(|part| part.trim_ascii().eq_ignore_ascii_case(b"base64"));
    // "data:" is a common word in front of a colon; an address says what it is.
    let is_address = is_base64 || says.contains(&b'/');
    let extension = if word.is_empty() { String::new() } else { format!(".{word}") };
    is_address.then_some((comma + 1, Address { is_base64, extension }))
}

/// What may lie between two pieces of one run: space and line breaks, written out or escaped, and what puts two strings of a script
/// together. Tells how long it is; none if the run is not going on.
fn joint(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut quotes = 0;
    let mut joins = false;
    while let Some(byte) = text.get(at) {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | 11 | 12 => at += 1,
            b'\\' => match text.get(at + 1) {
                Some(b'n' | b'r' | b't' | b'\n' | b'\r') => at += 2,
                Some(b'/') => return Some(at + 1),
                _ => return None,
            },
            b'&' if text.get(at..at + 2) == Some(b"&#") => {
                let end = text.get(at..)?.iter().take(7).position(|byte| *byte == b';')?;
                at += end + 1;
            }
            b'"' | b'\'' | b'`' => {
                quotes += 1;
                at += 1;
            }
            // Visual Basic continues lines with an underscore.
            b'+' | b'&' | b'.' | b'_' | b',' if quotes == 1 => {
                joins = true;
                at += 1;
            }
            _ => {
                let goes_on = digit(*byte).is_some() && (quotes == 0 || quotes == 2 && joins);
                return (goes_on && at > 0).then_some(at);
            }
        }
    }
    None
}

/// A part of the text in memory, that moves along.
struct Window<'w> {
    input: &'w mut dyn ReadSeek,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Window<'_> {
    /// The next bytes: so many, if the text has as many.
    fn ahead(&mut self, bytes: usize) -> io::Result<&[u8]> {
        if self.bytes.len() - self.at < bytes && !self.ended {
            self.bytes.drain(..self.at);
            self.at = 0;
            let missing = WINDOW_BYTES.saturating_sub(self.bytes.len()) as u64;
            let read = (&mut *self.input).take(missing).read_to_end(&mut self.bytes)?;
            self.ended = (read as u64) < missing;
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        Ok(rest.get(..bytes).unwrap_or(rest))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    OfData,
    OfText,
}

/// Data on its way out, decoded.
struct Data<'d, 'w> {
    window: &'d mut Window<'w>,
    is_base64: bool,
    is_address: bool,
    decoder: Base64,
    /// The padding at the end was there.
    is_padded: bool,
    /// How many characters stand together so far.
    line: usize,
    out: Vec<u8>,
    given: usize,
    end: Option<End>,
}

impl Data<'_, '_> {
    /// Decodes what is ahead.
    fn step(&mut self) -> io::Result<()> {
        let ahead = self.window.ahead(4096)?;
        let Some(first) = ahead.first().copied() else {
            self.end = Some(End::OfText);
            return Ok(());
        };
        let mut used = 1;
        if self.is_base64 {
            let length = ahead.iter().take_while(|byte| digit(**byte).is_some()).count();
            if length > 0 && self.is_padded {
                return self.finish();
            } else if length > 0 {
                self.decoder.decode(ahead.get(..length).unwrap_or_default(), &mut self.out);
                self.line += length;
                used = length;
            } else if first == b'%' && self.is_address {
                let escaped = escaped(ahead);
                self.decoder.decode(&escaped.map_or([b'='], |byte| [byte]), &mut self.out);
                used = if escaped.is_some() { 3 } else { 1 };
            } else if first == b'=' {
                self.is_padded = true;
                self.decoder.decode(b"=", &mut self.out);
            } else {
                return self.next_line();
            }
        } else {
            let ends = |byte: &u8| matches!(byte, b'"' | b'\'' | b'<' | b'>' | b')' | b'`' | b'\n' | b' ');
            if ends(&first) {
                return self.finish();
            }
            match escaped(ahead) {
                Some(byte) => {
                    self.out.push(byte);
                    used = 3;
                }
                None => self.out.push(first),
            }
        }
        self.window.at += used;
        Ok(())
    }

    /// Moves to where a run goes on, if it does.
    fn next_line(&mut self) -> io::Result<()> {
        let ahead = self.window.ahead(JOINT_BYTES_MAX)?;
        let is_long = self.line >= LINE_CHARACTERS_MIN || self.is_address;
        match joint(ahead).filter(|_| is_long && !self.is_padded) {
            Some(length) => {
                self.window.at += length;
                self.line = 0;
                Ok(())
            }
            None => {
                // Something ends an address always.
                let is_cut = self.is_address && ahead.trim_ascii().is_empty();
                self.end = Some(if is_cut { End::OfText } else { End::OfData });
                Ok(())
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.end = Some(End::OfData);
        Ok(())
    }
}

/// The byte that an escape stands for: `%2B`.
fn escaped(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    Some(hex_digit(*high)? << 4 | hex_digit(*low)?)
}

impl Read for Data<'_, '_> {
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
            while self.out.len() < WINDOW_BYTES && self.end.is_none() {
                self.step()?;
            }
            if self.end.is_some() {
                self.decoder.finish(&mut self.out);
            }
        }
        let mut rest = self.out.get(self.given..).unwrap_or_default();
        let read = rest.read(into)?;
        self.given += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_go_on_in_many_ways() {
        for text in ["\r\n  A", "\" +\n\"A", "' & _\r\n '/", "\\nA", "&#13;\nA", "\\/"] {
            assert!(joint(text.as_bytes()).is_some(), "{text:?}");
        }
        for text in ["", "A", "\"A", ",\"A", "\"\"A", " <", "\" + B", "\\x"] {
            assert!(joint(text.as_bytes()).is_none(), "{text:?}");
        }
    }

    #[test]
    fn addresses_say_what_they_are() {
        let (length, says) = address(b"image/svg+xml;charset=x;base64,QQ").unwrap();
        assert_eq!((length, says.is_base64, says.extension.as_str()), (31, true, ".svg"));
        assert!(address(b" 1, 2").is_none() && address(b"text/plain").is_none());
        assert!(!address(b"text/html,a").unwrap().1.is_base64);
    }
}
