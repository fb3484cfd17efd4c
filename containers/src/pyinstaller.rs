//! What PyInstaller puts behind or into a program: scripts, libraries and data, and an archive of modules in it. Format: PyInstaller's
//! documentation, "Bootstrap Process" and "PyInstaller Archives".
//!
//! The modules' archive is read from its beginning, one deflated module behind the other, and so is what lies behind its table of contents,
//! which is a Python object and may name both. Format of that: CPython, `Python/marshal.c`. Modules come out as the code that Python runs, with
//! its strings in it.

use std::io::{self, BufReader, Read, SeekFrom};

use flate2::bufread::ZlibDecoder;
use memchr::memmem::find_iter;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{be32, invalid, le32, until_zero};
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
/// How many objects of a table of contents lie in each other at most: they are names, places and lengths.
const OBJECTS_DEEP_MAX: usize = 16;

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
        // Forward, many times as fast as backward.
        if let Some(at) = find_iter(&piece, MAGIC).last() {
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
    if MODULES_AT >= end {
        out.outcome.note_broken("no module lies before the table of contents");
    }
    let mut number = 1;
    modules_within(input, MODULES_AT, end, &mut number, out)?;
    if out.outcome.is_over() || out.outcome.broken.is_some() {
        return Ok(());
    }
    let bytes = (length - end).min(TABLE_BYTES_MAX);
    let bytes = read_vec(input, end, bytes, TABLE_BYTES_MAX)?;
    let table = object_bytes(&bytes).ok_or_else(|| invalid("the table of contents is malformed"))?;
    modules_within(input, end + table as u64, length, &mut number, out)
}

/// Hands out the modules that lie one behind the other.
fn modules_within(
    input: &mut dyn ReadSeek,
    mut at: u64,
    end: u64,
    number: &mut u32,
    out: &mut Out<'_, '_>,
) -> io::Result<()> {
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
        *number += 1;
    }
    Ok(())
}

/// How long the Python object is that some bytes begin with.
fn object_bytes(bytes: &[u8]) -> Option<usize> {
    // How many objects are left in each of those that are open; none where a mark ends them.
    let mut open = vec![Some(1u64)];
    let mut at = 0usize;
    while let Some(left) = open.last_mut() {
        match left {
            Some(0) => {
                open.pop();
                continue;
            }
            Some(left) => *left -= 1,
            None => {}
        }
        // The highest bit says that it is referred to.
        let kind = bytes.get(at)? & 0x7f;
        at += 1;
        let (short, long) = (bytes.get(at).map(|byte| usize::from(*byte)), le32(bytes, at).map(|long| long as usize));
        let (skip, objects) = match kind {
            b'0' if left.is_none() => {
                open.pop();
                continue;
            }
            b'N' | b'T' | b'F' | b'S' | b'.' => (0, None),
            b'i' | b'r' | b'R' => (4, None),
            b'I' | b'g' => (8, None),
            b'y' => (16, None),
            b's' | b't' | b'u' | b'a' | b'A' => (long?.checked_add(4)?, None),
            b'z' | b'Z' | b'f' => (1 + short?, None),
            b'l' => ((long? as u32 as i32).unsigned_abs() as usize * 2 + 4, None),
            b'(' | b'[' | b'<' | b'>' => (4, Some(Some(long? as u64))),
            b')' => (1, Some(Some(short? as u64))),
            b'{' => (0, Some(None)),
            _ => return None,
        };
        at = at.checked_add(skip).filter(|at| *at <= bytes.len())?;
        if let Some(objects) = objects {
            if open.len() >= OBJECTS_DEEP_MAX {
                return None;
            }
            open.push(objects);
        }
    }
    Some(at)
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
        [MODULES_MAGIC, b"\xa7\x0d\x0d\x0a", &table, &[0; 5], &packed, TABLE].concat()
    }

    /// As Python writes `[("os", (0, 17, 30)), ("é", (1, 47, 3 << 40))]`.
    const TABLE: &[u8] = b"[\x02\0\0\0\xa9\x02\xda\x02os\xa9\x03\xe9\0\0\0\0\xe9\x11\0\0\0\xe9\x1e\0\0\0\
        \xa9\x02\xf5\x02\0\0\0\xc3\xa9\xa9\x03\xe9\x01\0\0\0\xe9\x2f\0\0\0l\x03\0\0\0\0\0\0\0\0\x0c";

    #[test]
    fn objects_of_python_have_an_end() {
        for object in [TABLE, b"{z\x01a)\x02Tr\0\0\0\x000", b"N", b"l\xfe\xff\xff\xff\0\0\0\0"] {
            assert_eq!(object_bytes(&[object, b"rest"].concat()), Some(object.len()));
            for length in 0..object.len() {
                assert_eq!(object_bytes(&object[..length]), None, "{object:?} {length}");
            }
        }
        let deep = [&b"(\x01\0\0\0".repeat(100)[..], b"N"].concat();
        for object in [&deep[..], b"x\x9c", b"0", b"(\xff\xff\xff\xffN"] {
            assert_eq!(object_bytes(object), None);
        }
    }

    #[test]
    fn modules_behind_the_table_come_out_or_are_told() {
        let file = [MODULES_MAGIC, b"\xa7\x0d\x0d\x0a", &17u32.to_be_bytes(), &[0; 5], &deflated(&eicar())].concat();
        assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some());
        let file = [modules(&[b"import os"]), deflated(&eicar())].concat();
        let taken = take_apart(&file, &Passwords::NONE);
        assert_eq!(taken.members.last(), Some(&("module-2".to_owned(), eicar())));
        assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
        let file = [modules(&[b"import os"]), b"no module".to_vec()].concat();
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
