//! Disk images: the partitions of MBR, GPT and Apple's map, and the images of virtual machines and of Macs that hold a disk in
//! pieces. Formats: UEFI Specification 2.10, chapter 5; "Inside Macintosh: Devices", chapter 3, for Apple's map.
//!
//! A partition with a file system that is read here comes out as the files in it; any other as one member. Disks that are but the difference
//! from another need that file and are told as broken.

mod adc;
mod dmg;
mod vhd;
mod vhdx;
mod virtual_disk;
mod vmdk;

pub(crate) use dmg::{DMG, ends_as_dmg};
pub(crate) use vhd::VHD;
pub(crate) use vhdx::VHDX;
pub(crate) use vmdk::VMDK;

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{array, be32, invalid, le32, le64, until_zero};
use crate::file_systems;
use crate::format::{Format, HEAD_BYTES, Section, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array, read_start};

const SECTOR_BYTES: u64 = 512;
/// Where the four entries of a partition table are, and the mark behind them.
const TABLE_AT: usize = 446;
const MARK: [u8; 2] = [0x55, 0xaa];
/// Partitions in an extended one; each names the next.
const LOGICAL_MAX: usize = 128;
/// Entries of a GPT: 128 in all real ones.
const GPT_ENTRIES_MAX: u32 = 1024;
/// Entries of Apple's map: a dozen in real ones.
const APPLE_ENTRIES_MAX: u32 = 256;
const GPT_MARK: &[u8] = b"EFI PART";

/// A disk with partitions.
pub(crate) static DISK: Format = Format {
    name: "disk",
    description: "disk image",
    mime: "application/x-raw-disk-image",
    extension: "img",
    category: "I",
    // A hybrid image boots from a stick and from a disc.
    beside: &["iso9660", "udf"],
    probe: |probe| {
        let has_table = !partitions(probe.input, probe.head, probe.length).partitions.is_empty();
        whole_if(has_table || has_apple_map(probe.head))
    },
    extractor: &Disk,
};

/// A partition: where it begins and how long it is, in sectors, and its type.
#[derive(Clone, Copy)]
struct Partition {
    first: u64,
    count: u64,
    kind: u8,
}

/// What a boot record says of partitions.
#[derive(Default)]
struct Table {
    partitions: Vec<Partition>,
    /// An entry is no partition, nor empty. Some programs pass over it, and others believe none of them.
    has_senseless: bool,
}

/// The partitions of a boot record; none if it is no such record. Code or text may lie where a table would be, before the same mark: where
/// an entry makes no sense, or a file system has the sector for itself, one of the others must lead to something.
fn partitions(input: &mut dyn ReadSeek, head: &[u8], length: u64) -> Table {
    let table = table(head, length);
    let is_owned = || file_systems::of(head).is_some_and(|found| found.owns_first_sector);
    let is_certain = !table.has_senseless && !is_owned();
    if is_certain || table.partitions.iter().any(|partition| partition.leads_somewhere(&mut *input)) {
        table
    } else {
        Table::default()
    }
}

/// What lies where a boot record has its table.
fn table(head: &[u8], length: u64) -> Table {
    let mut table = Table::default();
    if head.get(510..512) != Some(&MARK) {
        return table;
    }
    for entry in head.get(TABLE_AT..510).unwrap_or_default().chunks_exact(16) {
        let (Some([status]), Some([kind])) = (array(entry, 0), array(entry, 4)) else { continue };
        let (Some(first), Some(count)) = (le32(entry, 8), le32(entry, 12)) else { continue };
        table.has_senseless |= status & 0x7f != 0;
        let (first, count) = (u64::from(first), u64::from(count));
        // One from the first sector on is the disk itself: images of discs that boot from sticks as well have it.
        if kind == 0 || count == 0 || first == 0 {
            continue;
        }
        if first.saturating_mul(SECTOR_BYTES) < length {
            table.partitions.push(Partition { first, count, kind });
        } else {
            table.has_senseless = true;
        }
    }
    table
}

impl Partition {
    /// Whether something is there that is known here.
    fn leads_somewhere(&self, input: &mut dyn ReadSeek) -> bool {
        let offset = self.first.saturating_mul(SECTOR_BYTES);
        match self.kind {
            0xee => read_array::<8>(input, SECTOR_BYTES).is_ok_and(|mark| mark == GPT_MARK),
            0x05 | 0x0f | 0x85 => read_array::<2>(input, offset.saturating_add(510)).is_ok_and(|mark| mark == MARK),
            _ => read_start(&mut Section::new(input, offset), HEAD_BYTES as u64)
                .is_ok_and(|head| file_systems::of(&head).is_some()),
        }
    }
}

struct Disk;

impl Extractor for Disk {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        // A file system without a partition is a format of its own.
        let result = read_start(container.input, HEAD_BYTES as u64).and_then(|head| {
            let any = all_partitions(&mut *container.input, &head, container.length, &mut out)?;
            if any { Ok(()) } else { Err(invalid("no partition")) }
        });
        out.end("the disk image is broken", result)
    }
}

/// Hands out what is on a virtual disk: a file system, partitions, or both. One that holds something else, such as the image of a
/// disc, is a member itself.
fn virtual_disk_content(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let head = read_start(input, HEAD_BYTES as u64)?;
    let file_system = file_systems::of(&head);
    if let Some(found) = file_system
        && let Err(error) = (found.volume)(input, "", out)
    {
        out.outcome.note_error("the file system is broken", &error);
    }
    if !out.is_over() && !all_partitions(input, &head, length, out)? && file_system.is_none() {
        out.stored("disk".to_owned(), input, 0, length);
    }
    Ok(())
}

/// Hands out what is in the partitions of a disk. False if it has none.
fn all_partitions(input: &mut dyn ReadSeek, head: &[u8], length: u64, out: &mut Out<'_, '_>) -> io::Result<bool> {
    let mut number = 0;
    if has_apple_map(head) {
        apple_map(input, head, &mut number, out)?;
    }
    let table = partitions(input, head, length);
    if table.has_senseless {
        out.outcome.note_broken("an entry of the partition table leads nowhere");
    }
    for partition in table.partitions {
        if out.is_over() {
            return Ok(true);
        }
        let result = match partition.kind {
            0xee => gpt(input, &mut number, out),
            0x05 | 0x0f | 0x85 => extended(input, partition.first, &mut number, out),
            _ => {
                volume(input, partition.first, partition.count, &mut number, out);
                Ok(())
            }
        };
        // The others are there all the same.
        if let Err(error) = result {
            out.outcome.note_error("a partition is broken", &error);
        }
    }
    Ok(number > 0)
}

/// Hands out what is in a partition.
fn volume(input: &mut dyn ReadSeek, first: u64, count: u64, number: &mut u32, out: &mut Out<'_, '_>) {
    *number += 1;
    let name = format!("partition {number}");
    let (Some(offset), Some(length)) = (first.checked_mul(SECTOR_BYTES), count.checked_mul(SECTOR_BYTES)) else {
        return out.outcome.note_broken(format!("{name} is nowhere"));
    };
    let head = read_start(&mut Section::new(input, offset), HEAD_BYTES as u64);
    if let Some(found) = head.ok().and_then(|head| file_systems::of(&head)) {
        if let Err(error) = (found.volume)(&mut Section::new(input, offset), &name, out) {
            out.outcome.note_error(&name, &error);
        }
        return;
    }
    out.stored(display_name(name.as_bytes()), input, offset, length);
}

/// Follows the chain of records in an extended partition: each has one partition and the place of the next record.
fn extended(input: &mut dyn ReadSeek, base: u64, number: &mut u32, out: &mut Out<'_, '_>) -> io::Result<()> {
    let mut at = base;
    for _ in 0..LOGICAL_MAX {
        let record: [u8; 512] = read_array(input, at.saturating_mul(SECTOR_BYTES))?;
        if record.get(510..512) != Some(&MARK) {
            return Err(invalid("an extended partition without a table"));
        }
        let mut next = None;
        for entry in record.get(TABLE_AT..TABLE_AT + 32).unwrap_or_default().chunks_exact(16) {
            let (Some([kind]), Some(first), Some(count)) = (array(entry, 4), le32(entry, 8), le32(entry, 12)) else {
                continue;
            };
            match kind {
                0 => {}
                0x05 | 0x0f | 0x85 => next = Some(base + u64::from(first)),
                _ => volume(input, at + u64::from(first), u64::from(count), number, out),
            }
        }
        if out.is_over() {
            return Ok(());
        }
        match next.filter(|next| *next != at) {
            Some(next) => at = next,
            None => return Ok(()),
        }
    }
    Err(invalid("more logical partitions than any real disk has"))
}

fn gpt(input: &mut dyn ReadSeek, number: &mut u32, out: &mut Out<'_, '_>) -> io::Result<()> {
    let header: [u8; 92] = read_array(input, SECTOR_BYTES)?;
    let fields = (le64(&header, 72), le32(&header, 80), le32(&header, 84));
    let (Some(table), Some(count), Some(entry_bytes)) = fields else { return Err(cut_off()) };
    if !header.starts_with(GPT_MARK) || count > GPT_ENTRIES_MAX || !(128..=4096).contains(&entry_bytes) {
        return Err(invalid("a malformed GUID partition table"));
    }
    for at in 0..u64::from(count) {
        let offset = table.saturating_mul(SECTOR_BYTES).saturating_add(at * u64::from(entry_bytes));
        let entry: [u8; 48] = read_array(input, offset)?;
        let (Some(first), Some(last)) = (le64(&entry, 32), le64(&entry, 40)) else { return Err(cut_off()) };
        if entry.get(..16).is_some_and(|kind| kind.iter().any(|byte| *byte != 0)) {
            let count = last.checked_sub(first).and_then(|count| count.checked_add(1));
            volume(input, first, count.ok_or_else(|| invalid("a malformed partition"))?, number, out);
        }
        if out.is_over() {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a disk has Apple's partition map: its blocks are as long as the first one says.
fn has_apple_map(head: &[u8]) -> bool {
    head.starts_with(b"ER") && apple_block_bytes(head).is_some()
}

/// How far from each other the entries of the map are: in images of discs the first block may say otherwise than they are.
fn apple_block_bytes(head: &[u8]) -> Option<u64> {
    let said = crate::fields::be16(head, 2).map_or(SECTOR_BYTES, u64::from);
    [said, SECTOR_BYTES, 2048]
        .into_iter()
        .find(|at| head.get(*at as usize..).is_some_and(|entry| entry.starts_with(b"PM")))
}

fn apple_map(input: &mut dyn ReadSeek, head: &[u8], number: &mut u32, out: &mut Out<'_, '_>) -> io::Result<()> {
    let block_bytes = apple_block_bytes(head).ok_or_else(|| invalid("a malformed partition map"))?;
    let mut count = 1;
    let mut at = 1;
    while at <= count && !out.is_over() {
        let entry: [u8; 80] = read_array(input, at * block_bytes)?;
        let fields = (be32(&entry, 4), be32(&entry, 8), be32(&entry, 12));
        let (Some(entries), Some(first), Some(blocks)) = fields else { return Err(cut_off()) };
        if !entry.starts_with(b"PM") || entries > APPLE_ENTRIES_MAX {
            return Err(invalid("a malformed partition map"));
        }
        let kind = until_zero(entry.get(48..).unwrap_or_default());
        // The map itself, drivers and free space hold no files.
        let is_empty = matches!(kind, b"Apple_partition_map" | b"Apple_Free" | b"Apple_Void");
        if !is_empty {
            let sectors = block_bytes / SECTOR_BYTES;
            volume(input, u64::from(first) * sectors, u64::from(blocks) * sectors, number, out);
        }
        count = u64::from(entries);
        at += 1;
    }
    Ok(())
}
