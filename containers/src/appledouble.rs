//! AppleSingle and AppleDouble: how the forks of a Mac's file are kept where files have none. In the first all of a file is one, in the
//! second (`._name`, beside the file in archives and on shares) what is besides its data. Format: RFC 1740, appendices A and B.
//!
//! The data fork comes out under the file's name, the resource fork as `file/..namedfork/rsrc`. What else there is tells of the file: dates,
//! icons, attributes.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, display_name};
use crate::fields::{be16, be32};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array, read_vec};
use crate::tree::join;

const SINGLE: &[u8] = b"\0\x05\x16\0";
const DOUBLE: &[u8] = b"\0\x05\x16\x07";
/// What is before the table: magic number, version, a filler, and how many entries there are.
const HEADER_BYTES: usize = 26;
const ENTRY_BYTES: usize = 12;
/// Most entries: there are 15 kinds, and a file has one of each at most.
const ENTRIES_MAX: u16 = 256;
/// The longest name that is read.
const NAME_BYTES_MAX: u64 = 1024;

const DATA_FORK: u32 = 1;
const RESOURCE_FORK: u32 = 2;
const REAL_NAME: u32 = 3;

/// AppleSingle and AppleDouble.
pub(crate) static FORMAT: Format = Format {
    name: "appledouble",
    description: "AppleSingle or AppleDouble",
    mime: "multipart/appledouble",
    extension: "as",
    category: "A",
    beside: &[],
    // Without entries it is nothing.
    probe: |probe| {
        let is_one = probe.head.starts_with(SINGLE) || probe.head.starts_with(DOUBLE);
        whole_if(is_one && be16(probe.head, HEADER_BYTES - 2).is_some_and(|entries| entries > 0))
    },
    extractor: &AppleDouble,
};

struct AppleDouble;

impl Extractor for AppleDouble {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = forks(container, &mut out);
        out.end("the file is broken", result)
    }
}

/// An entry of the table.
struct Entry {
    kind: u32,
    offset: u64,
    length: u64,
}

fn forks(container: &mut Container<'_>, out: &mut Out<'_, '_>) -> io::Result<()> {
    let entries = entries(container, out)?;
    let real_name = entries.iter().find(|entry| entry.kind == REAL_NAME && entry.length > 0);
    let name = match real_name {
        Some(entry) => display_name(&read_vec(container.input, entry.offset, entry.length, NAME_BYTES_MAX)?),
        // In its own container it lies in no folder.
        None => container.name.rsplit('/').next().unwrap_or_default().to_owned(),
    };
    for entry in entries.iter().filter(|entry| entry.length > 0) {
        if out.is_over() {
            return Ok(());
        }
        let name = match entry.kind {
            DATA_FORK => name.clone(),
            RESOURCE_FORK => join("", &format!("{name}/..namedfork/rsrc")),
            _ => continue,
        };
        out.stored(name, container.input, entry.offset, entry.length);
    }
    Ok(())
}

fn entries(container: &mut Container<'_>, out: &mut Out<'_, '_>) -> io::Result<Vec<Entry>> {
    let header: [u8; HEADER_BYTES] = read_array(container.input, 0)?;
    let mut count = be16(&header, HEADER_BYTES - 2).ok_or_else(cut_off)?;
    if count > ENTRIES_MAX {
        out.outcome.note_broken(format!("{count} entries, more than any real file has"));
        count = ENTRIES_MAX;
    }
    let length = u64::from(count) * ENTRY_BYTES as u64;
    let table = read_vec(container.input, HEADER_BYTES as u64, length, length)?;
    let entry = |bytes: &[u8]| {
        let word = |at| be32(bytes, at).map(u64::from);
        Some(Entry { kind: be32(bytes, 0)?, offset: word(4)?, length: word(8)? })
    };
    Ok(table.chunks_exact(ENTRY_BYTES).filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Case, check, eicar, take_apart};
    use crate::passwords::Passwords;

    fn file(magic: &[u8], parts: &[(u32, &[u8])]) -> Vec<u8> {
        let mut file = [magic, &[0, 2, 0, 0], &[0; 16], &(parts.len() as u16).to_be_bytes()].concat();
        let mut offset = (HEADER_BYTES + parts.len() * ENTRY_BYTES) as u32;
        for (kind, part) in parts {
            let length = part.len() as u32;
            file.extend([*kind, offset, length].into_iter().flat_map(u32::to_be_bytes));
            offset += length;
        }
        file.extend(parts.iter().flat_map(|(_, part)| part.iter()));
        file
    }

    #[test]
    fn both_forks_come_out() {
        let eicar = eicar();
        for magic in [SINGLE, DOUBLE] {
            for kind in [DATA_FORK, RESOURCE_FORK] {
                check(&Case::new("appledouble", &file(magic, &[(9, &[0; 32]), (kind, &eicar)]), &eicar), 300);
            }
        }
        let whole =
            file(SINGLE, &[(REAL_NAME, b"a.exe"), (DATA_FORK, b"data"), (RESOURCE_FORK, b"resources"), (8, &[0; 16])]);
        let taken = take_apart(&whole, &Passwords::NONE);
        assert!(taken.outcome.is_complete(), "{:?}", taken.outcome);
        let names: Vec<_> = taken.members.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a.exe", "a.exe/..namedfork/rsrc"]);
    }

    #[test]
    fn what_macs_write_beside_files_is_whole() {
        // Attributes, and the resource fork that there is none of.
        let taken = take_apart(&file(DOUBLE, &[(9, &[0; 3760]), (RESOURCE_FORK, &[0; 286])]), &Passwords::NONE);
        assert!(taken.outcome.is_complete() && taken.members.len() == 1, "{:?}", taken.outcome);
        let taken = take_apart(&file(DOUBLE, &[(9, &[0; 32]), (RESOURCE_FORK, &[])]), &Passwords::NONE);
        assert!(taken.outcome.is_complete() && taken.members.is_empty(), "{:?}", taken.outcome);
        assert!(take_apart(&file(DOUBLE, &[]), &Passwords::NONE).outcome.is_complete());
    }

    #[test]
    fn more_entries_than_there_are_kinds_are_told() {
        let parts = vec![(RESOURCE_FORK, &b"a"[..]); 300];
        let taken = take_apart(&file(DOUBLE, &parts), &Passwords::NONE);
        assert!(taken.outcome.broken.is_some() && taken.members.len() == usize::from(ENTRIES_MAX));
    }
}
