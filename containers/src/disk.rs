//! Disk images: partitions of MBR and GPT, and the dynamic disks of VHD. Formats: UEFI Specification 2.10, chapter 5; "Virtual
//! Hard Disk Image Format Specification" 1.0.
//!
//! A partition with a file system that is read here comes out as the files in it; any other as one member. A VHD of fixed length is a disk with
//! a footer, which needs no reader of its own. Differencing disks need another file and are told as broken.

use std::io::{self, Read, Seek, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fat;
use crate::fields::{array, be32, be64, invalid, le32, le64, unsupported};
use crate::format::{Format, Section, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array};

const SECTOR_BYTES: u64 = 512;
/// Where the four entries of a partition table are, and the mark behind them.
const TABLE_AT: usize = 446;
const MARK: [u8; 2] = [0x55, 0xaa];
/// Partitions in an extended one; each names the next.
const LOGICAL_MAX: usize = 128;
/// Entries of a GPT: 128 in all real ones.
const GPT_ENTRIES_MAX: u32 = 1024;
const GPT_MARK: &[u8] = b"EFI PART";

/// A disk with partitions.
pub(crate) static DISK: Format = Format {
    name: "disk",
    description: "disk image",
    mime: "application/x-raw-disk-image",
    extension: "img",
    category: "I",
    // A hybrid image boots from a stick and from a disc.
    beside: &["iso9660"],
    probe: |probe| {
        let is_one = !fat::is_one(probe.head) && !partitions(probe.head, probe.length).is_empty();
        whole_if(is_one)
    },
    extractor: &Disk,
};

/// VHD, but for those of fixed length.
pub(crate) static VHD: Format = Format {
    name: "vhd",
    description: "Virtual Hard Disk",
    mime: "application/x-virtualbox-vhd",
    extension: "vhd",
    category: "I",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(VHD_MARK)),
    extractor: &Vhd,
};

/// A partition: where it begins and how long it is, in sectors, and its type.
#[derive(Clone, Copy)]
struct Partition {
    first: u64,
    count: u64,
    kind: u8,
}

/// The partitions of a boot record; none if it is no such record.
fn partitions(head: &[u8], length: u64) -> Vec<Partition> {
    if head.get(510..512) != Some(&MARK) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for entry in head.get(TABLE_AT..510).unwrap_or_default().chunks_exact(16) {
        let (Some([status]), Some([kind])) = (array(entry, 0), array(entry, 4)) else { continue };
        let (Some(first), Some(count)) = (le32(entry, 8), le32(entry, 12)) else { continue };
        // Code where a table would be is no table.
        if status & 0x7f != 0 {
            return Vec::new();
        }
        let (first, count) = (u64::from(first), u64::from(count));
        if kind != 0 && count > 0 {
            if first == 0 || first.saturating_mul(SECTOR_BYTES) >= length {
                return Vec::new();
            }
            found.push(Partition { first, count, kind });
        }
    }
    found
}

struct Disk;

impl Extractor for Disk {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = disk(&mut *container.input, container.length, &mut out);
        out.end("the disk image is broken", result)
    }
}

fn disk(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let boot: [u8; 512] = read_array(input, 0)?;
    if fat::is_one(&boot) {
        return fat::volume(input, "", out);
    }
    let mut number = 0;
    for partition in partitions(&boot, length) {
        if out.is_over() {
            return Ok(());
        }
        match partition.kind {
            0xee => gpt(input, &mut number, out)?,
            0x05 | 0x0f | 0x85 => extended(input, partition.first, &mut number, out)?,
            _ => volume(input, partition.first, partition.count, &mut number, out),
        }
    }
    if number == 0 { Err(invalid("no partition")) } else { Ok(()) }
}

/// Hands out what is in a partition.
fn volume(input: &mut dyn ReadSeek, first: u64, count: u64, number: &mut u32, out: &mut Out<'_, '_>) {
    *number += 1;
    let name = format!("partition {number}");
    let (Some(offset), Some(length)) = (first.checked_mul(SECTOR_BYTES), count.checked_mul(SECTOR_BYTES)) else {
        return out.outcome.note_broken(format!("{name} is nowhere"));
    };
    let boot = read_array::<512>(input, offset);
    if boot.is_ok_and(|boot| fat::is_one(&boot)) {
        if let Err(error) = fat::volume(&mut Section::new(input, offset), &name, out) {
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

const VHD_MARK: &[u8] = b"conectix";
const VHD_DYNAMIC: u32 = 3;
/// The largest disk of the format: 2,040 GiB.
const VHD_BYTES_MAX: u64 = 2040 << 30;
const VHD_ABSENT: u32 = u32::MAX;

struct Vhd;

impl Extractor for Vhd {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = Dynamic::open(&mut *container.input).and_then(|mut virtual_disk| {
            let length = virtual_disk.length;
            disk(&mut virtual_disk, length, &mut out)
        });
        out.end("the virtual disk is broken", result)
    }
}

/// A dynamic disk: blocks that may be absent, which are zeros.
struct Dynamic<'d> {
    input: &'d mut dyn ReadSeek,
    length: u64,
    table: u64,
    entries: u32,
    block_bytes: u64,
    position: u64,
    /// The last entry of the table that was looked up.
    kept: Option<(u64, u32)>,
}

impl<'d> Dynamic<'d> {
    fn open(input: &'d mut dyn ReadSeek) -> io::Result<Self> {
        let footer: [u8; 64] = read_array(input, 0)?;
        if be32(&footer, 60) != Some(VHD_DYNAMIC) {
            return Err(unsupported("a disk that is but the difference from another"));
        }
        let (Some(header), Some(length)) = (be64(&footer, 16), be64(&footer, 48)) else { return Err(cut_off()) };
        let header: [u8; 36] = read_array(input, header)?;
        let fields = (be64(&header, 16), be32(&header, 28), be32(&header, 32));
        let (Some(table), Some(entries), Some(block_bytes)) = fields else { return Err(cut_off()) };
        let is_sane = header.starts_with(b"cxsparse") && block_bytes.is_power_of_two() && block_bytes >= 4096;
        if !is_sane || length > VHD_BYTES_MAX {
            return Err(invalid("a malformed header"));
        }
        Ok(Self { input, length, table, entries, block_bytes: u64::from(block_bytes), position: 0, kept: None })
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
        Ok((entry != VHD_ABSENT).then(|| u64::from(entry) * SECTOR_BYTES + map))
    }
}

impl Read for Dynamic<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (number, at) = (self.position / self.block_bytes, self.position % self.block_bytes);
        let left = self.length.saturating_sub(self.position);
        let most = (self.block_bytes - at).min(left).min(into.len() as u64) as usize;
        let Some(into) = into.get_mut(..most).filter(|into| !into.is_empty()) else { return Ok(0) };
        let read = match self.block(number)? {
            Some(data) => {
                self.input.seek(SeekFrom::Start(data.saturating_add(at)))?;
                match self.input.read(into)? {
                    0 => return Err(cut_off()),
                    read => read,
                }
            }
            None => {
                into.fill(0);
                into.len()
            }
        };
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Dynamic<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or_else(|| invalid("seek before the beginning"))?;
        Ok(self.position)
    }
}
