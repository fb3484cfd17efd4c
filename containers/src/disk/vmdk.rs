//! VMDK, the disks of VMware: sparse ones, also those compressed for transport. Format: "Virtual Disk Format" 5.0.
//!
//! A disk may be split over several files, each of which comes apart for itself where it has a partition table; a description without data is no
//! container. Disks that are but the difference from another are told.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{find, invalid, le16, le32, le64, read_at_most, unsupported};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array, read_vec};

use super::virtual_disk::{Blocks, Kept, VirtualDisk, read_part};
use super::{SECTOR_BYTES, virtual_disk_content};

const MARK: &[u8] = b"KDMV";
const HEADER_BYTES: usize = 79;
/// The directory of the grains is named in a footer at the end.
const DIRECTORY_IN_FOOTER: u64 = u64::MAX;
const FOOTER_FROM_END: u64 = 1024;
/// The largest disk of the format: 2 TiB in older versions, 62 in newer ones.
const DISK_SECTORS_MAX: u64 = (62 << 40) / SECTOR_BYTES;
/// A grain is 64 KiB in all real disks; it must hold a sector and be no larger than this.
const GRAIN_BYTES: std::ops::RangeInclusive<u64> = 4096..=4 << 20;
const TABLE_ENTRIES_MAX: u32 = 4096;
const DESCRIPTION_BYTES_MAX: u64 = 64 << 10;
const FLAG_COMPRESSED: u32 = 1 << 16;
/// An entry that says that a grain is zeros, where the flags allow such ones.
const ZEROED: u32 = 1;

/// VMDK.
pub(crate) static VMDK: Format = Format {
    name: "vmdk",
    description: "VMware virtual disk",
    mime: "application/x-vmdk",
    extension: "vmdk",
    category: "I",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(MARK) && le32(probe.head, 4).is_some_and(|version| version < 8)),
    extractor: &Vmdk,
};

struct Vmdk;

impl Extractor for Vmdk {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = Sparse::open(&mut *container.input, container.length)
            .and_then(|(sparse, length)| virtual_disk_content(&mut VirtualDisk::new(sparse, length), length, &mut out));
        out.end("the virtual disk is broken", result)
    }
}

/// A sparse disk: grains, found over two levels of tables.
struct Sparse<'d> {
    input: &'d mut dyn ReadSeek,
    directory: u64,
    grain_bytes: u64,
    table_entries: u64,
    is_compressed: bool,
    kept: Kept,
}

impl<'d> Sparse<'d> {
    /// The grains of a disk, and how long it is.
    fn open(input: &'d mut dyn ReadSeek, length: u64) -> io::Result<(Self, u64)> {
        let mut header: [u8; HEADER_BYTES] = read_array(input, 0)?;
        let description = (le64(&header, 28), le64(&header, 36));
        if le64(&header, 56) == Some(DIRECTORY_IN_FOOTER) {
            let at = length.checked_sub(FOOTER_FROM_END).ok_or_else(cut_off)?;
            header = read_array(input, at)?;
            if !header.starts_with(MARK) {
                return Err(invalid("the disk's footer is missing"));
            }
        }
        let fields = (le32(&header, 8), le64(&header, 12), le64(&header, 20), le32(&header, 44), le64(&header, 56));
        let (Some(flags), Some(sectors), Some(grain), Some(table_entries), Some(directory)) = fields else {
            return Err(cut_off());
        };
        let grain_bytes = grain.saturating_mul(SECTOR_BYTES);
        let is_sane = sectors <= DISK_SECTORS_MAX
            && GRAIN_BYTES.contains(&grain_bytes)
            && grain_bytes.is_power_of_two()
            && (1..=TABLE_ENTRIES_MAX).contains(&table_entries);
        if !is_sane {
            return Err(invalid("a malformed header"));
        }
        let is_compressed = flags & FLAG_COMPRESSED != 0;
        if is_compressed && le16(&header, 77) != Some(1) {
            return Err(unsupported("a compression that is not known here"));
        }
        if let (Some(at @ 1..), Some(count)) = description {
            let bytes = count.saturating_mul(SECTOR_BYTES).min(DESCRIPTION_BYTES_MAX);
            let text = read_vec(input, at.saturating_mul(SECTOR_BYTES), bytes, DESCRIPTION_BYTES_MAX)?;
            let parent = find(&text, b"parentCID=").and_then(|at| text.get(at + 10..at + 18));
            if parent.is_some_and(|parent| !parent.eq_ignore_ascii_case(b"ffffffff")) {
                return Err(unsupported("a disk that is but the difference from another"));
            }
        }
        let directory = directory.saturating_mul(SECTOR_BYTES);
        let table_entries = u64::from(table_entries);
        let sparse = Self { input, directory, grain_bytes, table_entries, is_compressed, kept: Kept::default() };
        Ok((sparse, sectors * SECTOR_BYTES))
    }

    /// Where a grain is; none if it is zeros.
    fn grain(&mut self, number: u64) -> io::Result<Option<u64>> {
        let (table, at) = (number / self.table_entries, number % self.table_entries);
        let table = u32::from_le_bytes(read_array(self.input, self.directory.saturating_add(table * 4))?);
        if table == 0 {
            return Ok(None);
        }
        let entry = u64::from(table) * SECTOR_BYTES + at * 4;
        let grain = u32::from_le_bytes(read_array(self.input, entry)?);
        Ok((grain > ZEROED).then_some(u64::from(grain) * SECTOR_BYTES))
    }
}

impl Blocks for Sparse<'_> {
    fn read_at(&mut self, position: u64, into: &mut [u8]) -> io::Result<usize> {
        let (number, at) = (position / self.grain_bytes, position % self.grain_bytes);
        let place = self.grain(number)?;
        let Some(place) = place.filter(|_| self.is_compressed) else {
            let place = place.map(|place| place.saturating_add(at));
            return read_part(self.input, place, self.grain_bytes - at, into);
        };
        let (input, grain_bytes) = (&mut *self.input, self.grain_bytes);
        let grain = self.kept.get(number, || decode(input, place, grain_bytes))?;
        let part = grain.get(at as usize..).unwrap_or_default();
        let most = part.len().min(into.len());
        into.get_mut(..most).unwrap_or_default().copy_from_slice(part.get(..most).unwrap_or_default());
        Ok(most)
    }
}

/// Decodes a grain, in front of which its place and its length are.
fn decode(input: &mut dyn ReadSeek, place: u64, grain_bytes: u64) -> io::Result<Vec<u8>> {
    let header: [u8; 12] = read_array(input, place)?;
    let length = le32(&header, 8).map(u64::from).ok_or_else(cut_off)?;
    let packed = read_vec(input, place.saturating_add(12), length, grain_bytes.saturating_mul(2))?;
    let mut grain = read_at_most(&mut flate2::read::ZlibDecoder::new(packed.as_slice()), grain_bytes)?;
    // The last grain of a disk may be short.
    grain.resize(grain_bytes as usize, 0);
    Ok(grain)
}
