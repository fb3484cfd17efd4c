//! OneNote: the files that are embedded in a section. Format: [MS-ONESTORE] 2.6.13, FileDataStoreObject.
//!
//! The file is searched for the objects that hold files, whatever lists them, since the lists have revisions and nothing in the
//! file keeps a program from opening what no list knows. Names lie elsewhere and are not shown.

use std::io::{self, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, hand_out};
use crate::fields::{find, le64, read_at_most};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;

/// What a section begins with: {7B5C52E4-D88C-4DA7-AEB1-5378D02996D3}.
const SECTION: [u8; 16] =
    [0xe4, 0x52, 0x5c, 0x7b, 0x8c, 0xd8, 0xa7, 0x4d, 0xae, 0xb1, 0x53, 0x78, 0xd0, 0x29, 0x96, 0xd3];
/// What an embedded file begins with: {BDE316E7-2665-4511-A4C4-8D4D0B7A9EAC}.
const EMBEDDED: [u8; 16] =
    [0xe7, 0x16, 0xe3, 0xbd, 0x65, 0x26, 0x11, 0x45, 0xa4, 0xc4, 0x8d, 0x4d, 0x0b, 0x7a, 0x9e, 0xac];
/// The same, its length, and what is not used.
const HEADER_BYTES: u64 = 36;
/// Where the header says how long the section is.
const LENGTH_AT: usize = 196;
const WINDOW_BYTES: usize = 256 * 1024;

/// A section of OneNote.
pub(crate) static FORMAT: Format = Format {
    name: "onenote",
    description: "Microsoft OneNote section",
    mime: "application/onenote",
    extension: "one",
    category: "D",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(&SECTION)),
    extractor: &OneNote,
};

struct OneNote;

impl Extractor for OneNote {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        if let Err(error) = walk(container, budget, sink, &mut outcome) {
            outcome.note_error("the section is broken", &error);
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
    let length = container.length;
    let header = read(container.input, 0, 1024)?;
    let expected = le64(&header, LENGTH_AT).unwrap_or(u64::MAX);
    if expected > length {
        outcome.note_broken("the section is shorter than it says: it is cut off");
    }
    let mut position = 0;
    let mut members = 0u64;
    while position < length {
        budget.check()?;
        let window = read(container.input, position, WINDOW_BYTES as u64)?;
        let Some(at) = find(&window, &EMBEDDED) else {
            match window.len().checked_sub(EMBEDDED.len()) {
                Some(searched) if searched > 0 => position += searched as u64,
                _ => break,
            }
            continue;
        };
        let start = position + at as u64;
        // What is embedded may itself hold what looks like it: the search goes on behind the header only.
        position = start + EMBEDDED.len() as u64;
        let header = read(container.input, start, HEADER_BYTES)?;
        let Some(size) = le64(&header, EMBEDDED.len()) else { break };
        members += 1;
        container.input.seek(SeekFrom::Start(start + HEADER_BYTES))?;
        let input: &mut dyn ReadSeek = &mut *container.input;
        let mut content = input.take(size);
        match hand_out(format!("file-{members}"), Some(size), &mut content, budget, sink) {
            Ok(None) if content.limit() > 0 => outcome.note_broken(format!("file {members} is cut off")),
            Ok(None) => {}
            Ok(Some(error)) => return Err(error),
            Err(halt) => return Err(halt.into()),
        }
    }
    Ok(())
}

fn read(input: &mut dyn ReadSeek, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    input.seek(SeekFrom::Start(offset))?;
    read_at_most(input, bytes)
}
