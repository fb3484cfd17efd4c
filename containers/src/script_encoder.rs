//! Scripts that Windows runs encoded: `.vbe`, `.jse`, and such parts of pages and other scripts. Microsoft's script encoder replaces each character by one
//! of three tables and hides nothing, but no rule for scripts finds anything in what it wrote. Nobody wrote the format down.
//!
//! What comes out is the whole text with these parts decoded.

use std::io::{self, Cursor};

use memchr::memmem::find;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::encoded::is_text;
use crate::fields::le32;
use crate::format::{Claim, Claims, Format, Probe};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, read_start};
use crate::text::any_window;
use crate::transfer::{self, digit};

/// What an encoded part begins with, before its length.
const START: &[u8] = b"#@~^";
/// What it ends with, behind its checksum.
const END: &[u8] = b"^#~@";
/// The length or the checksum: four bytes in base64.
const NUMBER_BYTES: usize = 8;
/// The longest text that is decoded.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// What the characters from the space on stand for, by each of the tables; and the tab.
const CHARACTERS: [&[u8; 96]; 3] = [
    b".GzVBj/&IA42[vrC89pEhqO\tbD#uJ~J^@wJa]\"KoN;LPg*}tT+-,0nkf5%!dMRc?{x)(sY3\x7fmUS|:_eFX1ilZH'\\=$y7`Q 6",
    b"-uR`q^I\\b})6 |z\x7fkc3+hQfv1dTCL:L~LE,*t'7DyY/o&rj9{?8wgSG4x]0#Z[lHUpi.L!$NP\tVs5aKX;W\"mM%(FJ2A=_OBe",
    b"20!)[83=X:5e9\\VsfNEkbYx^}JmqA`AS@B'Hru17MR\"TjGd- \x7f.L]~loytC&v%$+(#A4\t*D?w;UiacPgQIOFh|6pnz/_KZ,W",
];
const TABS: [u8; 3] = *b"Wn{";
/// Which table each character of a part is encoded by, over and over.
const TABLES: &[u8; 64] = b"0120121221210212021200122102122100212120200120210212001220012021";

/// A script with encoded parts.
pub(crate) static FORMAT: Format = Format {
    name: "scriptencoder",
    description: "Encoded script",
    mime: "text/vbscript-encoded",
    extension: "vbe",
    category: "T",
    beside: &[],
    probe,
    extractor: &Encoded,
};

fn probe(probe: &mut Probe<'_>) -> io::Result<Claims> {
    let is_one = is_text(probe.head) && (part(probe.head).is_some() || !probe.is_short() && is_far(probe.input)?);
    Ok(if is_one { vec![Claim::Inside(0)] } else { Vec::new() })
}

/// Whether a part lies anywhere in a text.
fn is_far(input: &mut dyn ReadSeek) -> io::Result<bool> {
    // What may be the beginning of a part is searched again with what follows.
    any_window(input, START.len() + NUMBER_BYTES, |text| part(text).is_some())
}

/// The first part of a text: where it begins, and where what is encoded does.
fn part(text: &[u8]) -> Option<(usize, usize)> {
    let mut from = 0;
    while let Some(found) = find(text.get(from..)?, START) {
        let start = from + found;
        let encoded = start + START.len() + NUMBER_BYTES;
        let [digits @ .., b'=', b'='] = text.get(start + START.len()..encoded)? else {
            from = start + 1;
            continue;
        };
        if digits.iter().all(|byte| digit(*byte).is_some()) {
            return Some((start, encoded));
        }
        from = start + 1;
    }
    None
}

struct Encoded;

impl Extractor for Encoded {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let text = read_start(container.input, TEXT_BYTES_MAX);
        let result = text.map(|text| {
            if container.length > TEXT_BYTES_MAX {
                out.outcome.note_broken("the script is longer than what is decoded");
            }
            let script = decoded(&text);
            out.member("script.txt".to_owned(), Some(script.len() as u64), &mut Cursor::new(script));
        });
        out.end("the script can't be read", result)
    }
}

/// A text with its parts decoded.
fn decoded(text: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((start, encoded)) = part(rest) {
        out.extend_from_slice(rest.get(..start).unwrap_or_default());
        let body = rest.get(encoded..).unwrap_or_default();
        // Where its length says that the part ends, or else at the first mark. Before that is the checksum.
        let said = length_of(rest.get(..encoded).unwrap_or_default()).map(|length| length.saturating_add(NUMBER_BYTES));
        let is_end = |end: &usize| body.get(*end..).is_some_and(|rest| rest.starts_with(END));
        let end = said.filter(is_end).or_else(|| find(body, END));
        let length = end.map_or(body.len(), |end| end.saturating_sub(NUMBER_BYTES));
        decode(body.get(..length).unwrap_or_default(), &mut out);
        rest = end.and_then(|end| body.get(end + END.len()..)).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}

/// How long a part says that it is, which lies before it.
fn length_of(before: &[u8]) -> Option<usize> {
    let length = transfer::base64(before.last_chunk::<NUMBER_BYTES>()?)?;
    usize::try_from(le32(&length, 0)?).ok()
}

fn decode(encoded: &[u8], out: &mut Vec<u8>) {
    let mut bytes = encoded.iter().copied().peekable();
    let mut number = 0;
    while let Some(byte) = bytes.next() {
        // What is left as it is would end a line, or an element of a page.
        let escaped = bytes.peek().filter(|_| byte == b'@').and_then(|next| match next {
            b'&' => Some(b'\n'),
            b'#' => Some(b'\r'),
            b'*' => Some(b'>'),
            b'!' => Some(b'<'),
            b'$' => Some(b'@'),
            _ => None,
        });
        if let Some(escaped) = escaped {
            bytes.next();
            out.push(escaped);
        } else {
            out.push(character(byte, number).unwrap_or(byte));
        }
        // Characters beyond ASCII are not counted.
        if byte.is_ascii() {
            number += 1;
        }
    }
}

/// What a character stands for as the so-manieth of a part; none if it stays what it is.
fn character(byte: u8, number: usize) -> Option<u8> {
    let table = usize::from(TABLES.get(number % TABLES.len())? - b'0');
    match byte {
        b'\t' => TABS.get(table).copied(),
        b'<' | b'>' | b'@' => None,
        _ => CHARACTERS.get(table)?.get(usize::from(byte.checked_sub(b' ')?)).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Case, eicar, take_apart};
    use crate::detect::detect_content;
    use crate::passwords::Passwords;

    /// As the encoder writes it.
    fn encoded(script: &[u8]) -> Vec<u8> {
        let mut out = [START, b"AAAAAA=="].concat();
        for (number, plain) in script.iter().enumerate() {
            match plain {
                b'\n' => out.extend_from_slice(b"@&"),
                b'\r' => out.extend_from_slice(b"@#"),
                b'>' => out.extend_from_slice(b"@*"),
                b'<' => out.extend_from_slice(b"@!"),
                b'@' => out.extend_from_slice(b"@$"),
                _ => out.push((0..128).find(|byte| character(*byte, number) == Some(*plain)).unwrap_or(*plain)),
            }
        }
        [&out[..], b"AAAAAA==", END].concat()
    }

    fn script(file: &[u8]) -> Vec<u8> {
        let members = take_apart(file, &Passwords::NONE).members;
        members.into_iter().find(|(name, _)| name == "script.txt").unwrap().1
    }

    #[test]
    fn encoded_scripts_come_out_as_they_were_written() {
        // Of programs that wrote such scripts.
        let mut out = Vec::new();
        decode(b"-mD~", &mut out);
        assert_eq!(out, b"var ");
        let eicar = [b"\tx = \"<>@\" & \"".to_vec(), eicar(), b"\"\r\n".to_vec()].concat();
        for file in [encoded(&eicar), [encoded(&eicar), b"\0".to_vec()].concat()] {
            assert!(script(&file).starts_with(&eicar), "{:?}", String::from_utf8_lossy(&script(&file)));
        }
        let file = encoded(&eicar);
        conformance::survives_mutations(&Case::new("scriptencoder", &file, &eicar), 300);
        // In a page, far from its beginning, twice.
        let page =
            |one: &[u8]| [b"<html>", &vec![b' '; 262_140][..], one, b"</script>", one, &vec![b' '; 70_000]].concat();
        assert_eq!(script(&page(&file)), page(&eicar));
    }

    #[test]
    fn a_part_is_as_long_as_it_says() {
        let plain = b"'^#~@ in a comment\r\nx";
        let mut file = encoded(plain);
        // All of these stand for themselves at some place, or the mark could not lie in what is encoded.
        let body = START.len() + NUMBER_BYTES;
        let end = file.len() - END.len() - NUMBER_BYTES;
        file.splice(body..end, [&b"aaaa^#~@"[..], b"bbbb"].concat());
        let length = base64_of_length(12);
        file.splice(START.len()..body, length);
        let mut expected = Vec::new();
        decode(b"aaaa^#~@bbbb", &mut expected);
        assert_eq!(script(&file), expected);
    }

    fn base64_of_length(length: u8) -> Vec<u8> {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        [&[DIGITS[usize::from(length >> 2)], DIGITS[usize::from(length & 3) << 4]], &b"AAAA=="[..]].concat()
    }

    #[test]
    fn text_with_the_same_marks_is_none() {
        for text in [&b"#@~^ is what encoded scripts begin with\n"[..], b"#@~^AAAAAAAA", b"#@~^AAA.AA==x", b"#@~^AAAA"]
        {
            assert!(detect_content(text).unwrap().containers.is_empty());
        }
    }
}
