//! What PyInstaller puts behind or into a program: scripts, libraries and data, and an archive of modules in it. Format: PyInstaller's
//! documentation, "Bootstrap Process" and "PyInstaller Archives".
//!
//! The modules' archive is read from its beginning, one deflated module behind the other: its table of contents is a Python object, and
//! names only what lies there. Modules come out as the code that Python runs, with its strings in it.

use std::io::{self, BufReader, Read, SeekFrom};

use flate2::bufread::ZlibDecoder;
use memchr::memmem::rfind;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{be32, invalid, until_zero};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, part, read_array, read_vec};

/// What the record at the archive's end begins with. The program looks for the last in its file.
const MAGIC: &[u8] = b"MEI\x0c\x0b\x0a\x0b\x0e";
/// The magic number, the archive's length, where its table lies and how long that is, and the version of Python; later the
/// name of a library as well.
const COOKIES_BYTES: [u64; 2] = [24 + 64, 24];
/// What an entry of the table has besides its name: its own length, where it lies, how long it is there and decompressed, whether it is
/// compressed, and its type.
const ENTRY_BYTES: usize = 18;
/// The longest table; a large program has some thousands of entries.
const TABLE_BYTES_MAX: u64 = 16 << 20;
const SEARCH_BYTES: u64 = 1 << 20;
/// What the programs begin with that PyInstaller makes: for Windows, Linux, and Macs.
const PROGRAMS: [&[u8]; 5] = [b"MZ", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe"];
/// What the archive of modules begins with, before the version of Python and where its table lies.
const MODULES_MAGIC: &[u8] = b"PYZ\0";
/// Where its first module lies.
const MODULES_AT: u64 = 17;

/// A program that PyInstaller made.
pub(crate) static FORMAT: Format = Format {
    name: "pyinstaller",
    description: "Program made by PyInstaller",
    mime: "application/octet-stream",
    extension: "exe",
    category: "E",
    beside: &["pe", "elf", "upx", "zip"],
    probe: |probe| {
        let is_one = PROGRAMS.iter().any(|magic| probe.head.starts_with(magic))
            && find_archive(probe.input, probe.length)?.is_some();
        whole_if(is_one)
    },
    extractor: &Program,
};

/// The archive of modules in it.
pub(crate) static MODULES: Format = Format {
    name: "pyz",
    description: "PyInstaller archive of modules",
    mime: "application/octet-stream",
    extension: "pyz",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(MODULES_MAGIC) && probe.length > MODULES_AT),
    extractor: &Modules,
};

/// Where an archive and its table lie.
struct Archive {
    start: u64,
    table: u64,
    table_bytes: u64,
    /// Where the table's archive ends.
    end: u64,
}

/// The archive that a program finds in itself.
fn find_archive(input: &mut dyn ReadSeek, length: u64) -> io::Result<Option<Archive>> {
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(SEARCH_BYTES);
        // What begins in this piece may end in the one behind it.
        let stop = (end + MAGIC.len() as u64 - 1).min(length);
        let piece = read_vec(input, start, stop - start, SEARCH_BYTES + MAGIC.len() as u64)?;
        if let Some(at) = rfind(&piece, MAGIC) {
            return archive_of(input, start + at as u64, length);
        }
        end = start;
    }
    Ok(None)
}

/// The archive whose last record lies at `at`, if that is one.
fn archive_of(input: &mut dyn ReadSeek, at: u64, length: u64) -> io::Result<Option<Archive>> {
    let Ok(record) = read_array::<24>(input, at) else { return Ok(None) };
    let [total, table, table_bytes] = [8, 12, 16].map(|at| be32(&record, at).map_or(0, u64::from));
    for cookie_bytes in COOKIES_BYTES {
        let end = at + cookie_bytes;
        let Some(start) = end.checked_sub(total).filter(|_| end <= length && table + table_bytes <= total) else {
            continue;
        };
        // The first entry's length tells which of the records it is.
        let Ok(first) = read_array::<4>(input, start + table) else { continue };
        let first = u64::from(u32::from_be_bytes(first));
        if first >= ENTRY_BYTES as u64 && first <= table_bytes {
            return Ok(Some(Archive { start, table: start + table, table_bytes, end: at }));
        }
    }
    Ok(None)
}

struct Program;

impl Extractor for Program {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let (input, length) = (&mut *container.input, container.length);
        let mut out = Out::new(budget, sink);
        let result = walk(input, length, &mut out);
        out.end("the archive is broken", result)
    }
}

fn walk(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let archive = find_archive(input, length)?.ok_or_else(|| invalid("no archive"))?;
    let table = read_vec(input, archive.table, archive.table_bytes, TABLE_BYTES_MAX)?;
    let mut rest = table.as_slice();
    while !rest.is_empty() && !out.outcome.is_over() {
        out.check()?;
        let size = be32(rest, 0).map_or(0, |size| size as usize);
        let entry = rest.get(..size).filter(|entry| entry.len() >= ENTRY_BYTES);
        let Some(entry) = entry else { return Err(invalid("an entry of the table is malformed")) };
        let [offset, packed] = [4, 8].map(|at| be32(entry, at).map_or(0, u64::from));
        let name = display_name(until_zero(entry.get(ENTRY_BYTES..).unwrap_or_default()));
        let at = archive.start + offset;
        if at + packed > archive.end {
            out.outcome.note_broken(format!("member {name:?} lies outside of the archive"));
        } else if entry.get(16) == Some(&0) {
            // Options for the program have no content.
            if packed > 0 {
                out.stored(name, input, at, packed);
            }
        } else {
            let mut content = ZlibDecoder::new(part(input, at, packed)?);
            out.member(name, None, &mut content);
        }
        rest = rest.get(size..).unwrap_or_default();
    }
    Ok(())
}

struct Modules;

impl Extractor for Modules {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let (input, length) = (&mut *container.input, container.length);
        let mut out = Out::new(budget, sink);
        let result = walk_modules(input, length, &mut out);
        out.end("the archive is broken", result)
    }
}

fn walk_modules(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let header = read_array::<12>(input, 0)?;
    let table = be32(&header, 8).map_or(0, u64::from);
    if table > length {
        out.outcome.note_broken("the archive is cut off");
    }
    let end = table.min(length);
    let (mut at, mut number) = (MODULES_AT, 1);
    if at >= end {
        out.outcome.note_broken("no module lies before the table of contents");
    }
    while at < end && !out.outcome.is_over() {
        out.check()?;
        input.seek(SeekFrom::Start(at))?;
        let mut content = ZlibDecoder::new(BufReader::new((&mut *input).take(end - at)));
        out.member(format!("module-{number}"), None, &mut content);
        let read = content.total_in();
        if read == 0 || out.outcome.broken.is_some() {
            // Where the next begins, only this one tells. Older versions encrypt them.
            out.outcome.note_broken("modules are not deflated");
            return Ok(());
        }
        at += read;
        number += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::conformance::{self, Case, eicar, take_apart};
    use crate::passwords::Passwords;

    fn deflated(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn modules(modules: &[&[u8]]) -> Vec<u8> {
        let packed: Vec<u8> = modules.iter().flat_map(|module| deflated(module)).collect();
        let table = (MODULES_AT as u32 + packed.len() as u32).to_be_bytes();
        [MODULES_MAGIC, b"\xa7\x0d\x0d\x0a", &table, &[0; 5], &packed, b"table"].concat()
    }

    #[test]
    fn modules_behind_the_table_are_told() {
        let file = [MODULES_MAGIC, b"\xa7\x0d\x0d\x0a", &17u32.to_be_bytes(), &[0; 5], &deflated(&eicar())].concat();
        assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some());
    }

    fn program(members: &[(&str, u8, &[u8])], cookie_bytes: u64, signature: &[u8]) -> Vec<u8> {
        let (mut content, mut table) = (Vec::new(), Vec::new());
        for (name, is_deflated, member) in members {
            let packed = if *is_deflated == 1 { deflated(member) } else { member.to_vec() };
            let mut entry = Vec::new();
            let numbers = [ENTRY_BYTES + name.len() + 1, content.len(), packed.len(), member.len()];
            entry.extend(numbers.into_iter().flat_map(|number| (number as u32).to_be_bytes()));
            entry.extend_from_slice(&[*is_deflated, b'b']);
            entry.extend_from_slice(name.as_bytes());
            entry.push(0);
            table.extend(entry);
            content.extend(packed);
        }
        let mut cookie = MAGIC.to_vec();
        let total = content.len() + table.len() + cookie_bytes as usize;
        let numbers = [total, content.len(), table.len(), 311];
        cookie.extend(numbers.into_iter().flat_map(|number| (number as u32).to_be_bytes()));
        cookie.resize(cookie_bytes as usize, 0);
        [b"\x7fELF program ", MAGIC, &content[..], &table, &cookie, signature].concat()
    }

    #[test]
    fn what_a_program_brings_along_comes_out() {
        let (eicar, modules) = (eicar(), modules(&[b"import os", &eicar()]));
        for cookie_bytes in COOKIES_BYTES {
            let members: [(&str, u8, &[u8]); 4] =
                [("main", 1, &eicar), ("a.dll", 0, b"library"), ("pyi-option", 0, b""), ("PYZ.pyz", 1, &modules)];
            for signature in [&b""[..], &[b' '; 3_000_000]] {
                let file = program(&members, cookie_bytes, signature);
                let taken = take_apart(&file, &Passwords::NONE);
                let expected = [&members[..2], &members[3..]].concat();
                let expected: Vec<_> =
                    expected.into_iter().map(|(name, _, content)| (name.to_owned(), content.to_vec())).collect();
                assert_eq!(taken.members, expected);
                assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
            }
            let file = program(&members[..1], cookie_bytes, b"");
            conformance::check(&Case::new("pyinstaller", &file, &eicar), 300);
        }
        conformance::check(&Case::new("pyz", &modules, &eicar), 300);
        let locked = [&modules[..MODULES_AT as usize], &[7; 100]].concat();
        assert!(take_apart(&locked, &Passwords::NONE).outcome.broken.is_some());
    }
}
