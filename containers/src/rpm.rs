//! RPM packages: lead, signature header, header, payload. Format: the LSB's "Package File Format", and rpm's own documents for
//! what came later.
//!
//! Members are the scripts that run when the package is installed or removed, by the names of their tags, and the payload as it lies in the file: a
//! compressed cpio archive, which is taken apart in its turn.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{be32, be64, invalid};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, read_array, read_vec};

const LEAD_MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];
const LEAD_BYTES: u64 = 96;
const HEADER_MAGIC: [u8; 3] = [0x8e, 0xad, 0xe8];
/// rpm itself refuses headers beyond this.
const HEADER_BYTES_MAX: u64 = 256 << 20;
/// The index of a header: 16 bytes an entry. A package of a million files has some dozens of entries.
const ENTRIES_MAX: u32 = 64 * 1024;
/// The longest script that is handed out.
const SCRIPT_BYTES_MAX: u64 = 16 << 20;
/// Types of entries: one string, several strings.
const TYPE_STRING: u32 = 6;
const TYPE_STRINGS: u32 = 8;

/// Length of header and payload, as a tag of the signature header, in 32 and in 64 bits.
const SIGNATURE_SIZE: u32 = 1000;
const SIGNATURE_LONG_SIZE: u32 = 270;

/// Tags of scripts.
const SCRIPTS: [(u32, &str); 9] = [
    (1023, "PREIN"),
    (1024, "POSTIN"),
    (1025, "PREUN"),
    (1026, "POSTUN"),
    (1065, "TRIGGERSCRIPTS"),
    (1079, "VERIFYSCRIPT"),
    (1151, "PRETRANS"),
    (1152, "POSTTRANS"),
    (5066, "FILETRIGGERSCRIPTS"),
];

/// RPM packages.
pub(crate) static FORMAT: Format = Format {
    name: "rpm",
    description: "RPM package",
    mime: "application/x-rpm",
    extension: "rpm",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(&LEAD_MAGIC)),
    extractor: &Rpm,
};

struct Rpm;

impl Extractor for Rpm {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = package(&mut *container.input, container.length, &mut out);
        out.end("the package is broken", result)
    }
}

fn package(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let signature = Header::read(input, LEAD_BYTES)?;
    // The signature header alone is padded, to eight bytes.
    let header_offset = signature.end.next_multiple_of(8);
    let header = Header::read(input, header_offset)?;
    let claimed = match signature.find(SIGNATURE_LONG_SIZE) {
        Some(entry) => be64(&signature.value(input, entry, 8)?, 0),
        None => match signature.find(SIGNATURE_SIZE) {
            Some(entry) => be32(&signature.value(input, entry, 4)?, 0).map(u64::from),
            None => None,
        },
    };
    for (tag, name) in SCRIPTS {
        if let Some(entry) = header.find(tag).copied()
            && !out.is_over()
        {
            header.script(input, name, &entry, out)?;
        }
    }
    if out.is_over() {
        return Ok(());
    }
    let payload_bytes = length.checked_sub(header.end).ok_or_else(|| invalid("the file ends inside the header"))?;
    out.stored("payload".to_owned(), input, header.end, payload_bytes);
    if let Some(claimed) = claimed.filter(|claimed| *claimed != length - header_offset) {
        let actual = length - header_offset;
        out.outcome.note_broken(format!("header and payload have {actual} bytes, the signature says {claimed}"));
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Entry {
    tag: u32,
    kind: u32,
    offset: u32,
    count: u32,
}

/// A header's index, and where its store of values lies.
struct Header {
    entries: Vec<Entry>,
    store: u64,
    end: u64,
}

impl Header {
    fn read(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Self> {
        let intro: [u8; 16] = read_array(input, offset)?;
        let (count, store_bytes) = match (be32(&intro, 8), be32(&intro, 12)) {
            (Some(count), Some(store_bytes)) if intro.starts_with(&HEADER_MAGIC) => (count, u64::from(store_bytes)),
            _ => return Err(invalid(format!("no header at {offset}"))),
        };
        if count > ENTRIES_MAX || store_bytes > HEADER_BYTES_MAX {
            return Err(invalid("a header longer than any real package has"));
        }
        let index_bytes = u64::from(count) * 16;
        let index = read_vec(input, offset + 16, index_bytes, index_bytes)?;
        let entries = index
            .chunks_exact(16)
            .filter_map(|entry| {
                Some(Entry {
                    tag: be32(entry, 0)?,
                    kind: be32(entry, 4)?,
                    offset: be32(entry, 8)?,
                    count: be32(entry, 12)?,
                })
            })
            .collect();
        let store = offset + 16 + index_bytes;
        Ok(Self { entries, store, end: store + store_bytes })
    }

    fn find(&self, tag: u32) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.tag == tag)
    }

    fn value(&self, input: &mut dyn ReadSeek, entry: &Entry, length: u64) -> io::Result<Vec<u8>> {
        read_vec(input, self.store + u64::from(entry.offset), length, SCRIPT_BYTES_MAX)
    }

    /// Hands out one script, or several as one: strings end with a zero.
    fn script(&self, input: &mut dyn ReadSeek, name: &str, entry: &Entry, out: &mut Out<'_, '_>) -> io::Result<()> {
        let at = self.store + u64::from(entry.offset);
        let rest = self.end.saturating_sub(at).min(SCRIPT_BYTES_MAX);
        let strings = match entry.kind {
            TYPE_STRING => 1,
            TYPE_STRINGS => entry.count as usize,
            _ => return Err(invalid(format!("the script {name} is no text"))),
        };
        let store = read_vec(input, at, rest, SCRIPT_BYTES_MAX)?;
        let end = store.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at).take(strings).last();
        let end = end.ok_or_else(|| invalid(format!("the script {name} has no end")))?;
        out.stored(name.to_owned(), input, at, end as u64);
        Ok(())
    }
}
