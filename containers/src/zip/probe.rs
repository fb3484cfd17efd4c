//! Whether a file is a ZIP archive: it begins with a member, or it ends with an end record, as self-extracting archives do
//! and whatever else was put before an archive.

use std::io;

use super::format::{CENTRAL_SIGNATURE, END_BYTES, END_SIGNATURE};
use crate::format::{Claim, Claims, Probe};

const END: usize = END_BYTES as usize;
/// How many signatures of an end record are looked into. What follows the right one is a comment, which rarely has any.
const ENDS_MAX: usize = 16;

pub(super) fn probe(probe: &mut Probe<'_>) -> io::Result<Claims> {
    if begins_as_zip(probe.head) {
        return Ok(vec![Claim::Whole(0)]);
    }
    // The walk finds its own way to what lies before the archive.
    Ok(match zip_end(probe)? {
        Some(ZipEnd::AtTheEnd) => vec![Claim::Whole(0)],
        // A container often holds a ZIP archive near its end; one that ends as a ZIP archive is meant to be opened as such.
        Some(ZipEnd::BeforeTheEnd) => vec![Claim::Inside(0)],
        None => Vec::new(),
    })
}

fn begins_as_zip(head: &[u8]) -> bool {
    // The first is a member, the second an empty archive, the others the marker of one split or meant to be.
    matches!(head, [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, b'P', b'K', ..])
        || head.starts_with(b"PK00PK")
}

/// Where the last end record of a ZIP archive lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ZipEnd {
    AtTheEnd,
    /// Something follows, which most programs don't mind.
    BeforeTheEnd,
}

/// The last end record that belongs to an archive: it ends the file, or a central directory lies before it.
fn zip_end(probe: &mut Probe<'_>) -> io::Result<Option<ZipEnd>> {
    let (tail, start) = (probe.tail, probe.tail_offset());
    // Forwards, since searching backwards is much slower; a tail has room for few.
    let ends: Vec<usize> = memchr::memmem::find_iter(tail, &END_SIGNATURE).collect();
    let ends = ends.into_iter().rev().filter_map(|at| tail.get(at..at + END).map(|record| (at, record)));
    let mut candidates = Vec::new();
    for (at, record) in ends.take(ENDS_MAX) {
        let [.., d0, d1, d2, d3, _, _, _, _, c0, c1] = record else { continue };
        let comment_bytes = usize::from(u16::from_le_bytes([*c0, *c1]));
        if at + END + comment_bytes == tail.len() {
            return Ok(Some(ZipEnd::AtTheEnd));
        }
        candidates.push((start + at as u64, u64::from(u32::from_le_bytes([*d0, *d1, *d2, *d3]))));
    }
    for (end, directory_bytes) in candidates {
        let Some(directory) = end.checked_sub(directory_bytes).filter(|_| directory_bytes > 0) else { continue };
        if probe.read_at::<4>(directory)? == Some(CENTRAL_SIGNATURE) {
            return Ok(Some(ZipEnd::BeforeTheEnd));
        }
    }
    Ok(None)
}
