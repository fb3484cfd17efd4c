//! Windows shortcuts: what they start, and what lies behind their end. Format: [MS-SHLLINK].
//!
//! A shortcut's strings come out as lines of one text in UTF-8, since the arguments may be a whole script, or the base64 of one. What lies behind
//! the last block comes out whole: such a command finds it there.

use std::io::{self, Cursor};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{le32, utf16_le};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, read_array, read_vec};

/// The header's length, and the class of shortcuts.
const HEADER: &[u8; 20] = b"\x4c\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0\x46";
const HEADER_BYTES: u64 = 76;
const FLAGS_AT: usize = 20;
/// The flags that tell what follows the header.
const HAS_TARGET: u32 = 1;
const HAS_INFO: u32 = 1 << 1;
const IS_UTF16: u32 = 1 << 7;
/// The strings, in the order in which they follow: name, relative path, working directory, arguments, place of the icon.
const STRINGS: [u32; 5] = [1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6];
/// A block that is shorter is the last.
const BLOCK_BYTES_MIN: u32 = 4;

/// A shortcut.
pub(crate) static FORMAT: Format = Format {
    name: "lnk",
    description: "Windows shortcut",
    mime: "application/x-ms-shortcut",
    extension: "lnk",
    category: "O",
    // What other programs find behind a shortcut is no surprise: it comes out.
    beside: &["zip"],
    probe: |probe| whole_if(probe.head.starts_with(HEADER)),
    extractor: &Shortcut,
};

struct Shortcut;

impl Extractor for Shortcut {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let (input, length) = (&mut *container.input, container.length);
        let mut out = Out::new(budget, sink);
        let result = walk(input, length, &mut out);
        out.end("the shortcut is broken", result)
    }
}

fn walk(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let header = read_array::<{ HEADER_BYTES as usize }>(input, 0)?;
    let flags = le32(&header, FLAGS_AT).unwrap_or(0);
    let has = |flag| flags & flag != 0;
    let mut at = HEADER_BYTES;
    if has(HAS_TARGET) {
        at += 2 + u64::from(u16::from_le_bytes(read_array(input, at)?));
    }
    if has(HAS_INFO) {
        // Its length counts itself.
        at += u64::from(u32::from_le_bytes(read_array(input, at)?)).max(4);
    }
    let mut text = String::new();
    for _ in STRINGS.into_iter().filter(|flag| has(*flag)) {
        let characters = u64::from(u16::from_le_bytes(read_array(input, at)?));
        let bytes = if has(IS_UTF16) { 2 * characters } else { characters };
        let string = read_vec(input, at + 2, bytes, bytes)?;
        let string = if has(IS_UTF16) { utf16_le(&string) } else { String::from_utf8_lossy(&string).into_owned() };
        text.push_str(&string);
        text.push('\n');
        at += 2 + bytes;
    }
    if !text.is_empty() {
        let length = text.len() as u64;
        out.member("strings.txt".to_owned(), Some(length), &mut Cursor::new(text));
    }
    at = behind_blocks(input, at, length, out)?;
    if at < length && !out.outcome.is_over() {
        out.stored("behind the shortcut".to_owned(), input, at, length - at);
    }
    Ok(())
}

/// Where the blocks of other data end, of which the last says that it is. In the end of the file they end as well.
fn behind_blocks(input: &mut dyn ReadSeek, mut at: u64, length: u64, out: &mut Out<'_, '_>) -> io::Result<u64> {
    while at < length {
        out.check()?;
        let size = u32::from_le_bytes(read_array(input, at)?);
        if size < BLOCK_BYTES_MIN {
            return Ok(at + 4);
        }
        if u64::from(size) > length - at {
            out.outcome.note_broken("a block of the shortcut is cut off");
            return Ok(at);
        }
        at += u64::from(size);
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Case, eicar, take_apart};
    use crate::detect::detect_content;
    use crate::passwords::Passwords;

    /// A shortcut with a target, of which nothing is read, arguments and a block.
    fn shortcut(arguments: &str, is_utf16: bool, behind: &[u8]) -> Vec<u8> {
        let mut file = HEADER.to_vec();
        let flags = HAS_TARGET | HAS_INFO | STRINGS[3] | if is_utf16 { IS_UTF16 } else { 0 };
        file.extend_from_slice(&flags.to_le_bytes());
        file.resize(HEADER_BYTES as usize, 0);
        file.extend_from_slice(b"\x03\0abc\x06\0\0\0de");
        file.extend_from_slice(&(arguments.len() as u16).to_le_bytes());
        let bytes = |unit: u16| unit.to_le_bytes().into_iter().take(if is_utf16 { 2 } else { 1 });
        file.extend(arguments.encode_utf16().flat_map(bytes));
        file.extend_from_slice(b"\x0a\0\0\0\x01\0\0\xa0ab\0\0\0\0");
        file.extend_from_slice(behind);
        file
    }

    #[test]
    fn arguments_and_what_lies_behind_come_out() {
        let eicar = eicar();
        let text = format!("/c echo {}", String::from_utf8_lossy(&eicar));
        for is_utf16 in [false, true] {
            let file = shortcut(&text, is_utf16, b"");
            let taken = take_apart(&file, &Passwords::NONE);
            assert_eq!(taken.members, [("strings.txt".to_owned(), format!("{text}\n").into_bytes())]);
            conformance::check(&Case::new("lnk", &file, &eicar), 300);
        }
        let file = shortcut("/c start", true, &eicar);
        let taken = take_apart(&file, &Passwords::NONE);
        assert!(taken.members.contains(&("behind the shortcut".to_owned(), eicar.clone())), "{:?}", taken.members);
        assert!(taken.outcome.is_complete());
    }

    #[test]
    fn pages_behind_a_shortcut_are_found_as_before() {
        // The program that shows HTML applications takes the whole file for one.
        let page = b"<script src=\"data:text/plain;base64,QUJDREVGR0hJSktMTU5PUA==\"></script>";
        let found = detect_content(&shortcut("", true, page)).unwrap();
        assert_eq!(found.containers.iter().map(|found| found.format.name()).collect::<Vec<_>>(), ["lnk", "text"]);
    }
}
