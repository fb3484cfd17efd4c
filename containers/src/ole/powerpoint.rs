//! What a presentation embeds: objects of other programs, controls and the project of its macros are compound files themselves, each in a
//! record of the one stream of slides, deflated mostly. Format: [MS-PPT] 2.10.34 to 2.10.40.
//!
//! The stream is searched for such records from end to end. What its directory leads to decides what PowerPoint opens, and that directory
//! may lead anywhere.

use std::io::{self, Read};

use memchr::memmem::find_iter;

use super::compound::MAGIC;
use crate::container::read_full;
use crate::fields::{array, le32};

/// The stream that they lie in.
pub(super) const STREAM: &str = "PowerPoint Document";
/// Most of them that come out of one stream: each is looked for from the stream's beginning.
const STORAGES_MAX: usize = 1024;
/// The number of their records, behind four bits of version and twelve that say whether it is deflated.
const RECORD: [u8; 2] = [0x11, 0x10];
/// A record's header, and the length that a deflated one begins with.
const HEADER_BYTES: usize = 8;
const LENGTH_BYTES: usize = 4;
/// How much is searched at once.
const SEARCH_BYTES: usize = 256 * 1024;
/// What must be seen of a record to know it.
const SEEN_BYTES: usize = HEADER_BYTES + LENGTH_BYTES + 4;

/// A compound file in a stream: where its bytes lie.
pub(super) struct Storage {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) is_deflated: bool,
}

/// Finds all of them; and says whether there were more than are kept.
pub(super) fn storages(mut stream: impl Read) -> io::Result<(Vec<Storage>, bool)> {
    let (mut found, mut start) = (Vec::new(), 0u64);
    let mut buffer = vec![0; SEARCH_BYTES];
    let mut kept = 0;
    loop {
        let read = read_full(&mut stream, buffer.get_mut(kept..).unwrap_or_default())?;
        let filled = kept + read;
        let seen = buffer.get(..filled).unwrap_or_default();
        for at in find_iter(seen, &RECORD) {
            let Some(storage) = at.checked_sub(2).and_then(|at| storage(seen.get(at..)?, start + at as u64)) else {
                continue;
            };
            if found.last().is_some_and(|last: &Storage| last.offset >= storage.offset) {
                continue;
            }
            if found.len() == STORAGES_MAX {
                return Ok((found, true));
            }
            found.push(storage);
        }
        if read == 0 {
            return Ok((found, false));
        }
        // What may be the beginning of a record is searched again with what follows.
        kept = filled.min(SEEN_BYTES);
        buffer.copy_within(filled - kept..filled, 0);
        start += (filled - kept) as u64;
    }
}

/// The storage whose record begins here, if it is one.
fn storage(record: &[u8], at: u64) -> Option<Storage> {
    let instance = array::<2>(record, 0)?;
    let length = u64::from(le32(record, 4)?);
    match instance {
        [0x10, 0] => {
            // RFC 1950: the method is deflate, and the two bytes together are a multiple of 31.
            let begins: [u8; 2] = array(record, HEADER_BYTES + LENGTH_BYTES)?;
            let is_zlib = begins[0] & 0x0f == 8 && u16::from_be_bytes(begins).is_multiple_of(31);
            let offset = at + (HEADER_BYTES + LENGTH_BYTES) as u64;
            is_zlib.then(|| Storage { offset, length: length.saturating_sub(LENGTH_BYTES as u64), is_deflated: true })
        }
        [0, 0] => {
            let is_compound = record.get(HEADER_BYTES..)?.starts_with(&MAGIC);
            is_compound.then(|| Storage { offset: at + HEADER_BYTES as u64, length, is_deflated: false })
        }
        _ => None,
    }
}
