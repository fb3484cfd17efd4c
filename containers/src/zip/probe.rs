//! Whether a file is a ZIP archive: it begins with a member, or it ends with an end record, as self-extracting archives do
//! and whatever else was put before an archive.

use std::io;

use super::format::directories_by_tail;
use crate::format::{Claim, Claims, Probe};

pub(super) fn probe(probe: &mut Probe<'_>) -> io::Result<Claims> {
    if begins_as_zip(probe.head) {
        return Ok(vec![Claim::Whole(0)]);
    }
    // The walk finds its own way to what lies before the archive.
    let tail_offset = probe.tail_offset();
    Ok(match directories_by_tail(probe.input, probe.tail, tail_offset)? {
        Some(found) if found.is_at_end => vec![Claim::Whole(0)],
        // Something follows, which most programs don't mind. A container often holds a ZIP archive near its end; one that ends as a ZIP
        // archive is meant to be opened as such.
        Some(found) if !found.list.is_empty() || found.has_more => vec![Claim::Inside(0)],
        _ => Vec::new(),
    })
}

fn begins_as_zip(head: &[u8]) -> bool {
    // The first is a member, the second an empty archive, the others the marker of one split or meant to be.
    matches!(head, [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, b'P', b'K', ..])
        || head.starts_with(b"PK00PK")
}
