//! Files that a program of .NET brings along in one file with it. Format: "Single-file Publish" of .NET's design documents, and what its host
//! reads: a mark in the program, before which the place of a table lies, whose entries tell where files are.
//!
//! The table of most such programs lies at their end, and where it is nothing but the place before the mark tells. The mark alone is no program
//! that brings something along: each that .NET made has it, and tools that take such programs apart.

use std::io::{self, SeekFrom};

use flate2::bufread::DeflateDecoder;
use memchr::memmem;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{invalid, le32, le64, read_at_most, unsupported};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, part};

/// The SHA-256 that stands for ".net core bundle".
const MARK: [u8; 32] = [
    0x8b, 0x12, 0x02, 0xb9, 0x6a, 0x61, 0x20, 0x38, 0x72, 0x7b, 0x93, 0x02, 0x14, 0xd7, 0xa0, 0x32, 0x13, 0xf5, 0xb9,
    0xe6, 0xef, 0xae, 0x33, 0x18, 0xee, 0x3b, 0x2d, 0xce, 0x24, 0xb3, 0x6a, 0xae,
];
/// The place of the table before it.
const PLACE_BYTES: usize = 8;
/// What such programs begin with: for Windows, Linux, and Macs.
const PROGRAMS: [&[u8]; 5] = [b"MZ", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe"];
/// Most marks of a program that are looked at: a program has one, and may bring others along that have one.
const MARKS_MAX: usize = 64;
/// How much is searched at once.
const SEARCHED_BYTES: u64 = 1 << 20;
/// The versions of the table: from the second on it has the places of two files more, from the sixth on files may be deflated.
/// Later ones are told.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=6;
const VERSION_MAX: u32 = 31;
const HAS_PLACES_FROM: u32 = 2;
const HAS_DEFLATED_FROM: u32 = 6;
/// The places and lengths of two files, and flags.
const PLACES_BYTES: usize = 40;
/// Most files of a program; all of .NET has some hundreds.
const FILES_MAX: u32 = 1 << 17;
/// The longest table.
const TABLE_BYTES_MAX: u64 = 16 << 20;

/// A program of .NET with files in it.
pub(crate) static FORMAT: Format = Format {
    name: "dotnet",
    description: "Program of .NET with its files",
    mime: "application/octet-stream",
    extension: "exe",
    category: "E",
    beside: &["pe", "elf", "upx", "zip", "pyinstaller"],
    probe: |probe| {
        let is_program = PROGRAMS.iter().any(|magic| probe.head.starts_with(magic));
        whole_if(is_program && !tables(probe.input, probe.length)?.0.is_empty())
    },
    extractor: &Bundle,
};

/// Where the tables lie that marks in a program lead to, and whether there are more marks than are looked at.
fn tables(input: &mut dyn ReadSeek, length: u64) -> io::Result<(Vec<u64>, bool)> {
    let (mut places, mut at) = (Vec::new(), 0);
    while at < length && places.len() <= MARKS_MAX {
        input.seek(SeekFrom::Start(at))?;
        let piece = read_at_most(input, SEARCHED_BYTES)?;
        let is_last = (piece.len() as u64) < SEARCHED_BYTES;
        let marks = memmem::find_iter(&piece, &MARK).filter_map(|mark| le64(&piece, mark.checked_sub(PLACE_BYTES)?));
        places.extend(marks.take(MARKS_MAX + 1 - places.len()));
        if is_last {
            break;
        }
        // A mark that begins at the end is found with what follows, and the place before it.
        at += SEARCHED_BYTES - (MARK.len() + PLACE_BYTES - 1) as u64;
    }
    let has_more = places.len() > MARKS_MAX;
    let mut tables = Vec::new();
    for place in places {
        // Where it is 0, a program brings nothing along.
        if place > 0
            && place < length
            && !tables.contains(&place)
            && Table::open(input, place, TABLE_BEGINNING)?.is_some()
        {
            tables.push(place);
        }
    }
    Ok((tables, has_more))
}

/// How much of a table tells whether it is one.
const TABLE_BEGINNING: u64 = 512;

/// The entries of a table.
struct Table {
    bytes: Vec<u8>,
    at: usize,
    version: u32,
    files: u32,
}

/// An entry: a file.
struct File {
    name: String,
    offset: u64,
    length: u64,
    /// How long it is there, if it is deflated.
    deflated: u64,
}

impl Table {
    /// The table at a place, of which at most so much is read; none if that is none.
    fn open(input: &mut dyn ReadSeek, place: u64, most: u64) -> io::Result<Option<Self>> {
        input.seek(SeekFrom::Start(place))?;
        let bytes = read_at_most(input, most)?;
        let (Some(version), Some(files)) = (le32(&bytes, 0), le32(&bytes, 8)) else { return Ok(None) };
        let mut table = Self { bytes, at: 12, version, files };
        let is_one = (1..=VERSION_MAX).contains(&version) && (1..=FILES_MAX).contains(&files);
        // What the program is known by, whatever that is.
        let is_one = is_one && table.text().is_some_and(|name| !name.is_empty());
        table.at += if version >= HAS_PLACES_FROM { PLACES_BYTES } else { 0 };
        Ok(is_one.then_some(table))
    }

    /// A text, behind its length in as many bytes of seven bits as it takes.
    fn text(&mut self) -> Option<&[u8]> {
        let (mut length, mut shift) = (0usize, 0);
        loop {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            length |= usize::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 21 {
                return None;
            }
        }
        let start = self.at;
        self.at = start.checked_add(length)?;
        self.bytes.get(start..self.at)
    }

    fn number(&mut self) -> Option<u64> {
        let number = le64(&self.bytes, self.at)?;
        self.at += 8;
        Some(number)
    }

    fn file(&mut self) -> Option<File> {
        let (offset, length) = (self.number()?, self.number()?);
        let deflated = if self.version >= HAS_DEFLATED_FROM { self.number()? } else { 0 };
        // What kind of file it is.
        self.at += 1;
        let name = display_name(self.text()?);
        Some(File { name, offset, length, deflated })
    }
}

struct Bundle;

impl Extractor for Bundle {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let (input, length) = (&mut *container.input, container.length);
        let mut out = Out::new(budget, sink);
        let result = tables(input, length).and_then(|(tables, has_more)| {
            if has_more {
                out.outcome.note_suspicious("the program has more marks of files than any real one");
            }
            tables.into_iter().try_for_each(|place| files(input, length, place, &mut out))
        });
        out.end("the table of the program's files is broken", result)
    }
}

fn files(input: &mut dyn ReadSeek, length: u64, place: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let mut table = Table::open(input, place, TABLE_BYTES_MAX)?.ok_or_else(|| invalid("no table"))?;
    if !VERSIONS.contains(&table.version) {
        return Err(unsupported(format!("version {} of it is not known", table.version)));
    }
    for _ in 0..table.files {
        if out.is_over() {
            return Ok(());
        }
        let File { name, offset, length: whole, deflated } = table.file().ok_or_else(cut_off)?;
        let bytes = if deflated > 0 { deflated } else { whole };
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            out.outcome.note_broken(format!("member {name:?} lies outside of the program"));
        } else if deflated > 0 {
            let mut content = DeflateDecoder::new(part(input, offset, deflated)?);
            out.member(name, Some(whole), &mut content);
        } else {
            out.stored(name, input, offset, whole);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::conformance::{self, Case, eicar, take_apart};
    use crate::detect::detect_content;
    use crate::passwords::Passwords;

    fn deflated(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn text(text: &str) -> Vec<u8> {
        [&[text.len() as u8], text.as_bytes()].concat()
    }

    /// A program with so many bytes before its mark, and files, deflated if the version allows it.
    fn program(version: u32, before: usize, members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = b"MZ".to_vec();
        file.resize(before, 0);
        let place_at = file.len();
        file.extend_from_slice(&[&[0; 8][..], &MARK, &[7; 100]].concat());
        let mut table = [version, 0, members.len() as u32].map(u32::to_le_bytes).concat();
        table.extend(text("Yx+1a/b_c-d="));
        table.resize(table.len() + if version > 1 { 40 } else { 0 }, 0);
        for (name, content) in members {
            let packed = if version > 5 { deflated(content) } else { content.to_vec() };
            let numbers = [file.len(), content.len(), packed.len()];
            let numbers = if version > 5 { &numbers[..] } else { &numbers[..2] };
            table.extend(numbers.iter().flat_map(|number| (*number as u64).to_le_bytes()));
            table.extend([&[1][..], &text(name)].concat());
            file.extend(packed);
        }
        let place = file.len() as u64;
        file[place_at..][..8].copy_from_slice(&place.to_le_bytes());
        [file, table].concat()
    }

    #[test]
    fn what_a_program_brings_along_comes_out() {
        let eicar = eicar();
        let members: [(&str, &[u8]); 3] = [("a.dll", b"library"), ("ref/e.com", &eicar), ("empty", b"")];
        for version in VERSIONS {
            for before in [400, (1 << 20) - 60, (1 << 20) - 39, (1 << 20) - 9, (1 << 20) - 1, 1 << 20, 3_000_000] {
                let file = program(version, before, &members);
                let taken = take_apart(&file, &Passwords::NONE);
                let expected: Vec<_> =
                    members.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
                assert_eq!(taken.members, expected, "version {version} behind {before}");
                assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
            }
            conformance::check(&Case::new("dotnet", &program(version, 400, &members[..2]), &eicar), 300);
        }
    }

    #[test]
    fn programs_that_have_only_the_mark_bring_nothing_along() {
        // What starts a program beside it, and a tool that knows the mark.
        for before in [[0; 8], [7; 8], [200, 0, 0, 0, 0, 0, 0, 0]] {
            let file = [b"MZ", &[0; 98][..], &before, &MARK, &[9; 3000]].concat();
            assert!(detect_content(&file).unwrap().containers.is_empty());
        }
        let mut file = program(6, 400, &[("a", b"library")]);
        file.truncate(file.len() - 1);
        assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some());
        let file = program(7, 400, &[("a", b"library")]);
        assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some());
    }
}
