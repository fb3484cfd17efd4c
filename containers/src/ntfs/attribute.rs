//! The attributes of a file in NTFS: names, streams, and lists of further records.

use std::io;

use crate::fields::{array, invalid, le16, le32, le64, utf16_le};
use crate::parts::cut_off;
use crate::tree::Pieces;

/// The kind of attribute that lists attributes in other records.
pub(super) const LIST: u32 = 0x20;
/// The kind that has a name of the file.
pub(super) const FILE_NAME: u32 = 0x30;
/// The kind that is a stream.
pub(super) const DATA: u32 = 0x80;
const END: u32 = u32::MAX;

const FLAG_COMPRESSED: u16 = 1;
const FLAG_ENCRYPTED: u16 = 0x4000;
/// Most runs of one attribute: they lie in its record, in two bytes each at least.
const RUNS_MAX: usize = 1 << 15;
/// Units of compression are 16 clusters in all real files.
const UNIT_SHIFT_MAX: u16 = 8;

/// An attribute of a file.
#[derive(Clone)]
pub(super) struct Attribute {
    pub(super) kind: u32,
    pub(super) name: String,
    /// The first cluster of a stream that this attribute says the place of.
    pub(super) first_cluster: u64,
    pub(super) body: Body,
    flags: u16,
}

impl Attribute {
    pub(super) fn is_compressed(&self) -> bool {
        self.flags & FLAG_COMPRESSED != 0
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.flags & FLAG_ENCRYPTED != 0
    }
}

/// What an attribute holds.
#[derive(Clone)]
pub(super) enum Body {
    /// It lies in the record.
    Resident(Vec<u8>),
    /// It lies in clusters.
    Elsewhere(Runs),
}

/// Where a stream lies.
#[derive(Clone)]
pub(super) struct Runs {
    /// Each a first cluster, none for a hole, and a count.
    pub(super) runs: Vec<(Option<u64>, u64)>,
    /// How long the stream is, and how much of it was written.
    pub(super) length: u64,
    pub(super) written: u64,
    /// The logarithm of the clusters of a unit of compression; 0 for none.
    pub(super) unit_shift: u16,
}

impl Runs {
    /// How many clusters they have.
    pub(super) fn clusters(&self) -> u64 {
        self.runs.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Adds them to the pieces of a file.
    pub(super) fn add_to(&self, pieces: &mut Pieces, cluster_bytes: u64) -> io::Result<()> {
        for (first, count) in &self.runs {
            let first = first.map(|first| first.saturating_mul(cluster_bytes));
            pieces.push(first, count.saturating_mul(cluster_bytes))?;
        }
        Ok(())
    }
}

/// The attributes in a record.
pub(super) fn attributes(record: &[u8]) -> io::Result<Vec<Attribute>> {
    let mut all = Vec::new();
    let at = le16(record, 20).ok_or_else(cut_off)?;
    let mut rest = record.get(usize::from(at)..).ok_or_else(|| invalid("a malformed record"))?;
    while let Some(kind) = le32(rest, 0).filter(|kind| *kind != END) {
        let length = le32(rest, 4).ok_or_else(cut_off)? as usize;
        let attribute = rest.get(..length).filter(|attribute| attribute.len() >= 24);
        let attribute = attribute.ok_or_else(|| invalid("a malformed attribute"))?;
        all.push(parse(kind, attribute).ok_or_else(|| invalid("a malformed attribute"))??);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(all)
}

fn parse(kind: u32, bytes: &[u8]) -> Option<io::Result<Attribute>> {
    let [is_elsewhere, name_units] = array(bytes, 8)?;
    let name_at = usize::from(le16(bytes, 10)?);
    let name = utf16_le(bytes.get(name_at..)?.get(..usize::from(name_units) * 2)?);
    let flags = le16(bytes, 12)?;
    if is_elsewhere == 0 {
        let (length, at) = (le32(bytes, 16)? as usize, usize::from(le16(bytes, 20)?));
        let body = Body::Resident(bytes.get(at..)?.get(..length)?.to_vec());
        return Some(Ok(Attribute { kind, name, first_cluster: 0, body, flags }));
    }
    let first_cluster = le64(bytes, 16)?;
    let (runs_at, unit_shift) = (usize::from(le16(bytes, 32)?), le16(bytes, 34)?);
    if unit_shift > UNIT_SHIFT_MAX {
        return None;
    }
    let (length, written) = (le64(bytes, 48)?, le64(bytes, 56)?);
    Some(runs(bytes.get(runs_at..)?).map(|runs| {
        let body = Body::Elsewhere(Runs { runs, length, written, unit_shift });
        Attribute { kind, name, first_cluster, body, flags }
    }))
}

/// Takes a list of runs apart: each says how many bytes its numbers have, its count, and how far it is from the last one.
fn runs(mut rest: &[u8]) -> io::Result<Vec<(Option<u64>, u64)>> {
    let malformed = || invalid("a malformed list of runs");
    let mut runs = Vec::new();
    let mut last = 0i64;
    while let Some((widths, behind)) = rest.split_first().filter(|(widths, _)| **widths != 0) {
        let (count_bytes, offset_bytes) = (usize::from(widths & 15), usize::from(widths >> 4));
        let (count, behind) = behind.split_at_checked(count_bytes).ok_or_else(malformed)?;
        let (offset, behind) = behind.split_at_checked(offset_bytes).ok_or_else(malformed)?;
        rest = behind;
        let count = u64::try_from(number(count).ok_or_else(malformed)?).map_err(|_| malformed())?;
        let first = match offset {
            [] => None,
            offset => {
                last = last.checked_add(number(offset).ok_or_else(malformed)?).ok_or_else(malformed)?;
                Some(u64::try_from(last).map_err(|_| malformed())?)
            }
        };
        if runs.len() >= RUNS_MAX {
            return Err(malformed());
        }
        runs.push((first, count));
    }
    Ok(runs)
}

/// A signed little-endian number of as many bytes.
fn number(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() || bytes.len() > 8 {
        return None;
    }
    let is_negative = bytes.last()? & 0x80 != 0;
    let mut wide = if is_negative { [0xff; 8] } else { [0; 8] };
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_relative_and_may_be_holes() {
        let list = [0x31, 0x38, 0x73, 0x25, 0x34, 0x01, 0x10, 0x11, 0x08, 0xf0, 0];
        assert_eq!(runs(&list).unwrap(), [(Some(0x34_2573), 0x38), (None, 16), (Some(0x34_2563), 8)]);
        assert!(runs(&[0x11, 1]).is_err() && runs(&[0x11, 1, 0x80]).is_err() && runs(&[0x90]).is_err());
    }
}
