//! VHDX, the disks of Hyper-V. Format: [MS-VHDX].
//!
//! A disk whose log was not written back comes out as it lies there, and is told.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{invalid, le16, le32, le64, unsupported};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array, read_vec};

use super::virtual_disk::{Blocks, VirtualDisk, read_part};
use super::virtual_disk_content;

const MARK: &[u8] = b"vhdxfile";
/// Where the two headers are, and the two tables of regions.
const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS_AT: [u64; 2] = [192 << 10, 256 << 10];
const REGIONS_BYTES: u64 = 64 << 10;
/// Most entries of a table of regions or of metadata: the format's bound.
const ENTRIES_MAX: u32 = 2047;
const METADATA_BYTES: u64 = 64 << 10;
/// The largest disk of the format.
const DISK_BYTES_MAX: u64 = 64 << 40;
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=256 << 20;

const REGION_BLOCKS: [u8; 16] =
    [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08];
const REGION_METADATA: [u8; 16] =
    [0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e];
const ITEM_PARAMETERS: [u8; 16] =
    [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b];
const ITEM_LENGTH: [u8; 16] =
    [0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8];
const ITEM_SECTOR: [u8; 16] =
    [0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f];
const HAS_PARENT: u32 = 2;

/// VHDX.
pub(crate) static VHDX: Format = Format {
    name: "vhdx",
    description: "Hyper-V virtual hard disk",
    mime: "application/x-vhdx",
    extension: "vhdx",
    category: "I",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(MARK)),
    extractor: &Vhdx,
};

struct Vhdx;

impl Extractor for Vhdx {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = open(&mut *container.input, &mut out).and_then(|(payload, length)| {
            virtual_disk_content(&mut VirtualDisk::new(payload, length), length, &mut out)
        });
        out.end("the virtual disk is broken", result)
    }
}

/// The blocks of a disk.
struct Payload<'d> {
    input: &'d mut dyn ReadSeek,
    table: u64,
    table_bytes: u64,
    block_bytes: u64,
    /// After so many entries of the table comes one of another kind.
    run: u64,
}

fn open<'d>(input: &'d mut dyn ReadSeek, out: &mut Out<'_, '_>) -> io::Result<(Payload<'d>, u64)> {
    let mut latest = None;
    for at in HEADERS_AT {
        let header: [u8; 64] = read_array(input, at)?;
        if header.starts_with(b"head") {
            let has_log = header.get(48..64).is_some_and(|log| log.iter().any(|byte| *byte != 0));
            latest = latest.max(le64(&header, 8).map(|number| (number, has_log)));
        }
    }
    match latest {
        None => return Err(invalid("no header")),
        Some((_, true)) => out.outcome.note_broken("the virtual disk's log was not written back to it"),
        Some(_) => {}
    }
    let mut regions = read_vec(input, REGIONS_AT[0], REGIONS_BYTES, REGIONS_BYTES)?;
    if !regions.starts_with(b"regi") {
        regions = read_vec(input, REGIONS_AT[1], REGIONS_BYTES, REGIONS_BYTES)?;
    }
    let count = le32(&regions, 8).filter(|count| regions.starts_with(b"regi") && *count <= ENTRIES_MAX);
    let count = count.ok_or_else(|| invalid("no table of regions"))?;
    let region = |id: [u8; 16]| {
        let entries = regions.get(16..).unwrap_or_default().chunks_exact(32).take(count as usize);
        let entry = entries.into_iter().find(|entry| entry.starts_with(&id));
        entry.and_then(|entry| Some((le64(entry, 16)?, u64::from(le32(entry, 24)?))))
    };
    let missing = || invalid("a region is missing");
    let (table, table_bytes) = region(REGION_BLOCKS).ok_or_else(missing)?;
    let (metadata, _) = region(REGION_METADATA).ok_or_else(missing)?;
    let entries = read_vec(input, metadata, METADATA_BYTES, METADATA_BYTES)?;
    let count = le16(&entries, 10).filter(|count| u32::from(*count) <= ENTRIES_MAX).ok_or_else(missing)?;
    let mut item = |id: [u8; 16]| -> io::Result<[u8; 8]> {
        let mut found = entries.get(32..).unwrap_or_default().chunks_exact(32).take(usize::from(count));
        let entry = found.find(|entry| entry.starts_with(&id)).ok_or_else(|| invalid("an item is missing"))?;
        let at = le32(entry, 16).ok_or_else(cut_off)?;
        read_array(input, metadata.saturating_add(u64::from(at)))
    };
    let (parameters, length) = (item(ITEM_PARAMETERS)?, u64::from_le_bytes(item(ITEM_LENGTH)?));
    let sector = le32(&item(ITEM_SECTOR)?, 0).map(u64::from).filter(|bytes| matches!(bytes, 512 | 4096));
    let (Some(block_bytes), Some(flags), Some(sector_bytes)) = (le32(&parameters, 0), le32(&parameters, 4), sector)
    else {
        return Err(invalid("malformed metadata"));
    };
    if flags & HAS_PARENT != 0 {
        return Err(unsupported("a disk that is but the difference from another"));
    }
    let block_bytes = u64::from(block_bytes);
    if !BLOCK_BYTES.contains(&block_bytes) || !block_bytes.is_power_of_two() || length > DISK_BYTES_MAX {
        return Err(invalid("malformed metadata"));
    }
    let run = ((sector_bytes << 23) / block_bytes).max(1);
    Ok((Payload { input, table, table_bytes, block_bytes, run }, length))
}

impl Blocks for Payload<'_> {
    fn read_at(&mut self, position: u64, into: &mut [u8]) -> io::Result<usize> {
        let (number, at) = (position / self.block_bytes, position % self.block_bytes);
        let index = (number + number / self.run).saturating_mul(8);
        if index.saturating_add(8) > self.table_bytes {
            return Err(invalid("a block that is not in the table"));
        }
        let entry = u64::from_le_bytes(read_array(self.input, self.table.saturating_add(index))?);
        let place = match entry & 7 {
            6 => Some((entry >> 20 << 20).saturating_add(at)),
            7 => return Err(unsupported("a block that is but the difference from another")),
            _ => None,
        };
        read_part(self.input, place, self.block_bytes - at, into)
    }
}
