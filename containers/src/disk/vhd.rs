//! VHD, the disks of Virtual PC. Format: "Virtual Hard Disk Image Format Specification" 1.0.
//!
//! One of fixed length is a disk with a footer, which needs no reader of its own. Others begin with a copy of theirs; where that is lost
//! the footer itself counts.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{be32, be64, invalid, unsupported};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array};

use super::virtual_disk::{Blocks, VirtualDisk, read_part};
use super::{SECTOR_BYTES, virtual_disk_content};

const MARK: &[u8] = b"conectix";
/// Where a footer tells which kind of disk it is.
const KIND_AT: usize = 60;
const DYNAMIC: u32 = 3;
const DIFFERENCE: u32 = 4;
/// The largest disk of the format: 2,040 GiB.
const DISK_BYTES_MAX: u64 = 2040 << 30;
const ABSENT: u32 = u32::MAX;

/// VHD, but for those of fixed length.
pub(crate) static VHD: Format = Format {
    name: "vhd",
    description: "Virtual Hard Disk",
    mime: "application/x-virtualbox-vhd",
    extension: "vhd",
    category: "I",
    beside: &[],
    probe: |probe| {
        let at = probe.tail.len().checked_sub(SECTOR_BYTES as usize);
        let footer = at.and_then(|at| probe.tail.get(at..)).filter(|footer| footer.starts_with(MARK));
        let has_blocks = footer.is_some_and(|footer| matches!(be32(footer, KIND_AT), Some(DYNAMIC | DIFFERENCE)));
        whole_if(probe.head.starts_with(MARK) || has_blocks)
    },
    extractor: &Vhd,
};

struct Vhd;

impl Extractor for Vhd {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = Dynamic::open(&mut *container.input, container.length).and_then(|(dynamic, length)| {
            virtual_disk_content(&mut VirtualDisk::new(dynamic, length), length, &mut out)
        });
        out.end("the virtual disk is broken", result)
    }
}

/// A dynamic disk: blocks that may be absent, which are zeros.
struct Dynamic<'d> {
    input: &'d mut dyn ReadSeek,
    table: u64,
    entries: u32,
    block_bytes: u64,
    /// The last entry of the table that was looked up.
    kept: Option<(u64, u32)>,
}

impl<'d> Dynamic<'d> {
    /// The blocks of a disk, and how long it is.
    fn open(input: &'d mut dyn ReadSeek, length: u64) -> io::Result<(Self, u64)> {
        let mut footer: [u8; 64] = read_array(input, 0)?;
        if !footer.starts_with(MARK) {
            footer = read_array(input, length.saturating_sub(SECTOR_BYTES))?;
        }
        if be32(&footer, KIND_AT) != Some(DYNAMIC) {
            return Err(unsupported("a disk that is but the difference from another"));
        }
        let (Some(header), Some(length)) = (be64(&footer, 16), be64(&footer, 48)) else { return Err(cut_off()) };
        let header: [u8; 36] = read_array(input, header)?;
        let fields = (be64(&header, 16), be32(&header, 28), be32(&header, 32));
        let (Some(table), Some(entries), Some(block_bytes)) = fields else { return Err(cut_off()) };
        let is_sane = header.starts_with(b"cxsparse") && block_bytes.is_power_of_two() && block_bytes >= 4096;
        if !is_sane || length > DISK_BYTES_MAX {
            return Err(invalid("a malformed header"));
        }
        Ok((Self { input, table, entries, block_bytes: u64::from(block_bytes), kept: None }, length))
    }

    /// Where a block's data begins; none if it is absent.
    fn block(&mut self, number: u64) -> io::Result<Option<u64>> {
        if number >= u64::from(self.entries) {
            return Err(invalid("a block that is not in the table"));
        }
        let entry = match self.kept.filter(|(kept, _)| *kept == number) {
            Some((_, entry)) => entry,
            None => {
                let at = self.table.saturating_add(number * 4);
                let entry = u32::from_be_bytes(read_array(self.input, at)?);
                self.kept = Some((number, entry));
                entry
            }
        };
        // A map of the sectors in use comes first, a bit each, in whole sectors.
        let map = (self.block_bytes / SECTOR_BYTES / 8).next_multiple_of(SECTOR_BYTES);
        Ok((entry != ABSENT).then(|| u64::from(entry) * SECTOR_BYTES + map))
    }
}

impl Blocks for Dynamic<'_> {
    fn read_at(&mut self, position: u64, into: &mut [u8]) -> io::Result<usize> {
        let (number, at) = (position / self.block_bytes, position % self.block_bytes);
        let place = self.block(number)?.map(|data| data.saturating_add(at));
        read_part(self.input, place, self.block_bytes - at, into)
    }
}
