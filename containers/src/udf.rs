//! UDF, the file system of DVDs and Blu-ray discs, 1.02 to 2.60, also beside ISO 9660. Format: ECMA-167, 3rd edition; "Universal Disk
//! Format Specification" (OSTA), 2.60.
//!
//! Files, and the streams of files as `file:stream`. Deleted files are left out. Discs that were written in sessions over a virtual allocation table are
//! told as not supported; spared packets come out as they lie in their first place.

use std::io::{self, Read};

use crate::container::ReadSeek;
use crate::fields::{array, find, invalid, le16, le32, le64, unsupported};
use crate::file_systems::FileSystem;
use crate::format::{Format, whole_if};
use crate::parts::{Out, cut_off, read_array, read_vec};
use crate::tree::{Folders, Pieces, join};

/// Where the descriptors that tell the volume's kind begin, how far apart they are, and how many are looked at.
const RECOGNITION_AT: usize = 0x8000;
const RECOGNITION_BYTES: usize = 2048;
const RECOGNITION_MAX: usize = 8;
/// Sectors may have these lengths; the anchor is in the one of this number.
const SECTOR_BYTES: [u64; 4] = [2048, 512, 4096, 1024];
const ANCHOR_SECTOR: u64 = 256;
/// Most descriptors of a volume, and most partitions.
const DESCRIPTORS_MAX: u64 = 64;
const PARTITIONS_MAX: usize = 16;
const LOGICAL_BLOCK_BYTES_MAX: u64 = 32 << 10;
const MAPS_BYTES_MAX: u64 = 32 << 10;
/// The longest directory.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// Most blocks in which the extents of one file go on.
const CONTINUATIONS_MAX: u32 = 1 << 12;

const TAG_ANCHOR: u16 = 2;
const TAG_PARTITION: u16 = 5;
const TAG_LOGICAL_VOLUME: u16 = 6;
const TAG_END: u16 = 8;
const TAG_FILE_SET: u16 = 256;
const TAG_IDENTIFIER: u16 = 257;
const TAG_EXTENTS: u16 = 258;
const TAG_FILE: u16 = 261;
const TAG_EXTENDED_FILE: u16 = 266;

const FILE_KIND_DIRECTORY: u8 = 4;
const FILE_KIND_STREAMS: u8 = 13;
const FILE_KINDS_DATA: [u8; 4] = [0, 5, 249, 250];
const ENTRY_DELETED: u8 = 4;
const ENTRY_PARENT: u8 = 8;

/// UDF.
pub(crate) static FORMAT: Format = Format {
    name: "udf",
    description: "UDF",
    mime: "application/x-udf-image",
    extension: "iso",
    category: "I",
    beside: &["iso9660", "hfs"],
    probe: |probe| whole_if(is_one(probe.head)),
    extractor: &FILE_SYSTEM,
};

pub(crate) static FILE_SYSTEM: FileSystem =
    FileSystem { owns_first_sector: false, is_one, volume, broken: "the image is broken" };

/// Whether a volume that begins like this is one.
fn is_one(head: &[u8]) -> bool {
    let descriptors = head.get(RECOGNITION_AT..).unwrap_or_default().chunks(RECOGNITION_BYTES).take(RECOGNITION_MAX);
    descriptors.into_iter().any(|descriptor| matches!(descriptor.get(1..6), Some(b"NSR02" | b"NSR03")))
}

/// A block of a partition: its number, and the partition's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Address {
    block: u32,
    partition: u16,
}

/// Where the blocks of a partition are.
struct Volume<'v> {
    input: &'v mut dyn ReadSeek,
    sector_bytes: u64,
    block_bytes: u64,
    partitions: Vec<Option<Pieces>>,
}

/// A file's entry.
struct Entry {
    kind: u8,
    length: u64,
    streams: Option<Address>,
    content: Content,
}

enum Content {
    /// It lies in the entry.
    Inside(Vec<u8>),
    Pieces(Pieces),
}

/// Hands out all files of a file system, in a folder.
fn volume(input: &mut dyn ReadSeek, folder: &str, out: &mut Out<'_, '_>) -> io::Result<()> {
    let (mut volume, root) = Volume::open(input, out)?;
    let mut folders = Folders::new(root, folder);
    while let Some((address, path)) = folders.next() {
        if out.is_over() {
            return Ok(());
        }
        if let Err(error) = volume.directory(address, &path, &mut folders, out) {
            out.outcome.note_error(&format!("directory {path:?}"), &error);
        }
    }
    Ok(())
}

/// What of a volume's descriptors is of use.
#[derive(Default)]
struct Descriptors {
    /// Number, first sector and count of each partition.
    partitions: Vec<(u16, u32, u32)>,
    logical_volume: Option<Vec<u8>>,
}

impl<'v> Volume<'v> {
    /// The volume and its root directory.
    fn open(input: &'v mut dyn ReadSeek, out: &mut Out<'_, '_>) -> io::Result<(Self, Address)> {
        let (sector_bytes, anchor) = anchor(input)?;
        let mut descriptors = Descriptors::default();
        // The main sequence, and its copy if that one is damaged.
        for at in [16, 24] {
            let (Some(length), Some(first)) = (le32(&anchor, at), le32(&anchor, at + 4)) else { return Err(cut_off()) };
            let begin = u64::from(first).saturating_mul(sector_bytes);
            descriptors.read(input, begin, u64::from(length), sector_bytes)?;
            if descriptors.logical_volume.is_some() && !descriptors.partitions.is_empty() {
                break;
            }
        }
        let logical = descriptors.logical_volume.take().ok_or_else(|| invalid("no logical volume"))?;
        let block_bytes = le32(&logical, 212).map(u64::from).unwrap_or_default();
        if !block_bytes.is_power_of_two() || !(512..=LOGICAL_BLOCK_BYTES_MAX).contains(&block_bytes) {
            return Err(invalid("a malformed logical volume"));
        }
        let mut volume = Self { input, sector_bytes, block_bytes, partitions: Vec::new() };
        volume.map_partitions(&logical, &descriptors.partitions, out)?;
        let set = long_address(&logical, 248).ok_or_else(cut_off)?;
        let set = volume.block(set)?;
        let root = long_address(&set, 400).filter(|_| le16(&set, 0) == Some(TAG_FILE_SET));
        Ok((volume, root.ok_or_else(|| invalid("no root directory"))?))
    }

    /// Finds out where each partition is that the logical volume is made of.
    fn map_partitions(&mut self, logical: &[u8], known: &[(u16, u32, u32)], out: &mut Out<'_, '_>) -> io::Result<()> {
        let malformed = || invalid("a malformed map of partitions");
        let maps_bytes = le32(logical, 264).ok_or_else(malformed)? as usize;
        let mut rest = logical.get(440..).and_then(|maps| maps.get(..maps_bytes)).ok_or_else(malformed)?;
        let mut metadata = Vec::new();
        while let [kind, length, ..] = rest {
            let (map, behind) = rest.split_at_checked(usize::from(*length).max(6)).ok_or_else(malformed)?;
            rest = behind;
            let number = le16(map, if *kind == 1 { 4 } else { 38 }).ok_or_else(malformed)?;
            let physical = known.iter().find(|(known, ..)| *known == number).ok_or_else(malformed)?;
            let mut pieces = Pieces::default();
            let bytes = u64::from(physical.2).saturating_mul(self.sector_bytes);
            pieces.push(Some(u64::from(physical.1).saturating_mul(self.sector_bytes)), bytes)?;
            if find(map, b"*UDF Metadata Partition").is_some() {
                metadata.push((self.partitions.len(), le32(map, 40).ok_or_else(malformed)?));
            }
            let is_virtual = find(map, b"*UDF Virtual Partition").is_some();
            self.partitions.push((!is_virtual).then_some(pieces));
            if self.partitions.len() > PARTITIONS_MAX {
                return Err(malformed());
            }
        }
        // The metadata file lies in the partition itself, and is the partition for whatever refers to it.
        for (at, block) in metadata {
            let entry = self.entry(Address { block, partition: at as u16 }, out)?;
            match (entry.content, self.partitions.get_mut(at)) {
                (Content::Pieces(pieces), Some(partition)) => *partition = Some(pieces),
                _ => return Err(malformed()),
            }
        }
        Ok(())
    }

    /// Where a block is, and how many bytes follow it there.
    fn place(&self, address: Address) -> io::Result<(u64, u64)> {
        let partition = self.partitions.get(usize::from(address.partition));
        let partition = partition.ok_or_else(|| invalid("a partition that is not there"))?;
        let pieces = partition.as_ref().ok_or_else(|| unsupported("a disc written in sessions"))?;
        match pieces.locate(u64::from(address.block).saturating_mul(self.block_bytes)) {
            Some((Some(offset), left)) => Ok((offset, left)),
            _ => Err(invalid(format!("block {} is not there", address.block))),
        }
    }

    fn block(&mut self, address: Address) -> io::Result<Vec<u8>> {
        let (offset, _) = self.place(address)?;
        read_vec(self.input, offset, self.block_bytes, LOGICAL_BLOCK_BYTES_MAX)
    }

    fn entry(&mut self, address: Address, out: &Out<'_, '_>) -> io::Result<Entry> {
        out.check()?;
        let block = self.block(address)?;
        let malformed = || invalid("a malformed file entry");
        let (attributes_at, is_extended) = match le16(&block, 0) {
            Some(TAG_FILE) => (168, false),
            Some(TAG_EXTENDED_FILE) => (208, true),
            _ => return Err(malformed()),
        };
        let fields = (le64(&block, 56), le16(&block, 34), array(&block, 27));
        let (Some(length), Some(flags), Some([kind])) = fields else { return Err(malformed()) };
        let lengths = (le32(&block, attributes_at), le32(&block, attributes_at + 4));
        let (Some(attributes_bytes), Some(extents_bytes)) = lengths else { return Err(malformed()) };
        let begin = (attributes_at + 8).checked_add(attributes_bytes as usize).ok_or_else(malformed)?;
        let extents = block.get(begin..).and_then(|rest| rest.get(..extents_bytes as usize)).ok_or_else(malformed)?;
        let content = match flags & 7 {
            3 => Content::Inside(extents.to_vec()),
            form => Content::Pieces(self.extents(extents.to_vec(), form, address.partition, length, out)?),
        };
        let streams =
            long_address(&block, 152).filter(|_| is_extended && le32(&block, 152).is_some_and(|length| length > 0));
        Ok(Entry { kind, length, streams, content })
    }

    /// Where a file is that extents of a form say the places of: short or long ones.
    fn extents(
        &mut self,
        mut extents: Vec<u8>,
        form: u16,
        partition: u16,
        length: u64,
        out: &Out<'_, '_>,
    ) -> io::Result<Pieces> {
        const RECORDED: u32 = 0;
        const GOES_ON: u32 = 3;
        let (extent_bytes, long) = match form {
            0 => (8, false),
            1 => (16, true),
            _ => return Err(unsupported("extents of a form that is not known here")),
        };
        let mut pieces = Pieces::default();
        for _ in 0..CONTINUATIONS_MAX {
            out.check()?;
            let mut goes_on = None;
            for extent in extents.chunks_exact(extent_bytes) {
                let (Some(head), Some(block)) = (le32(extent, 0), le32(extent, 4)) else { return Err(cut_off()) };
                let partition = if long { le16(extent, 8).ok_or_else(cut_off)? } else { partition };
                let (kind, bytes) = (head >> 30, u64::from(head & 0x3fff_ffff));
                let address = Address { block, partition };
                match kind {
                    _ if bytes == 0 => break,
                    GOES_ON => {
                        goes_on = Some(address);
                        break;
                    }
                    RECORDED => self.add(address, bytes, &mut pieces)?,
                    _ => pieces.push(None, bytes)?,
                }
            }
            let Some(address) = goes_on.filter(|_| pieces.length() < length) else { return Ok(pieces) };
            let block = self.block(address)?;
            let count = le32(&block, 20).filter(|_| le16(&block, 0) == Some(TAG_EXTENTS)).ok_or_else(cut_off)?;
            extents = block.get(24..).and_then(|rest| rest.get(..count as usize)).ok_or_else(cut_off)?.to_vec();
        }
        Err(invalid("a file whose extents go on and on"))
    }

    /// Adds an extent, which in a partition of metadata may itself lie in pieces.
    fn add(&self, address: Address, bytes: u64, pieces: &mut Pieces) -> io::Result<()> {
        let (mut block, mut missing) = (address.block, bytes);
        while missing > 0 {
            let (offset, left) = self.place(Address { block, ..address })?;
            let length = missing.min(left);
            pieces.push(Some(offset), length)?;
            missing -= length;
            let blocks = u32::try_from(length.div_ceil(self.block_bytes)).map_err(|_| cut_off())?;
            block = block.checked_add(blocks).ok_or_else(cut_off)?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        address: Address,
        path: &str,
        folders: &mut Folders<Address>,
        out: &mut Out<'_, '_>,
    ) -> io::Result<()> {
        let entry = self.entry(address, out)?;
        if !matches!(entry.kind, FILE_KIND_DIRECTORY | FILE_KIND_STREAMS) {
            return Err(invalid("it is no directory"));
        }
        let bytes = match entry.content {
            Content::Inside(bytes) => bytes,
            Content::Pieces(pieces) => pieces.read_vec(self.input, entry.length, DIRECTORY_BYTES_MAX)?,
        };
        let mut rest = bytes.as_slice();
        while rest.len() >= 38 && !out.is_over() {
            let fields = (le16(rest, 0), array(rest, 18), long_address(rest, 20), le16(rest, 36));
            let (Some(TAG_IDENTIFIER), Some([flags, name_bytes]), Some(target), Some(use_bytes)) = fields else {
                return Err(invalid("a malformed directory"));
            };
            let name_at = 38 + usize::from(use_bytes);
            let end = name_at + usize::from(name_bytes);
            let name = rest.get(name_at..end).ok_or_else(|| invalid("a malformed directory"))?;
            if flags & (ENTRY_DELETED | ENTRY_PARENT) == 0 {
                let name = characters(name);
                let path = if entry.kind == FILE_KIND_STREAMS {
                    join("", &format!("{path}:{name}"))
                } else {
                    join(path, &name)
                };
                if let Err(error) = self.file(target, &path, folders, out) {
                    out.outcome.note_error(&format!("member {path:?}"), &error);
                }
            }
            rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn file(
        &mut self,
        address: Address,
        path: &str,
        folders: &mut Folders<Address>,
        out: &mut Out<'_, '_>,
    ) -> io::Result<()> {
        let entry = self.entry(address, out)?;
        if let Some(streams) = entry.streams {
            folders.push(streams, path.to_owned())?;
        }
        if entry.kind == FILE_KIND_DIRECTORY {
            return folders.push(address, path.to_owned());
        }
        if !FILE_KINDS_DATA.contains(&entry.kind) || !folders.is_new(address)? {
            return Ok(());
        }
        match entry.content {
            Content::Inside(bytes) => {
                let mut content = bytes.as_slice().take(entry.length);
                out.member(path.to_owned(), Some(entry.length), &mut content);
            }
            Content::Pieces(mut pieces) => {
                pieces.fill_up(entry.length)?;
                out.member(path.to_owned(), Some(entry.length), &mut pieces.content(self.input, entry.length));
            }
        }
        Ok(())
    }
}

impl Descriptors {
    fn read(&mut self, input: &mut dyn ReadSeek, begin: u64, length: u64, sector_bytes: u64) -> io::Result<()> {
        for number in 0..(length / sector_bytes).min(DESCRIPTORS_MAX) {
            let at = begin.saturating_add(number * sector_bytes);
            let descriptor: [u8; 512] = read_array(input, at)?;
            match le16(&descriptor, 0) {
                Some(TAG_PARTITION) if self.partitions.len() < PARTITIONS_MAX => {
                    let fields = (le16(&descriptor, 22), le32(&descriptor, 188), le32(&descriptor, 192));
                    let (Some(number), Some(first), Some(count)) = fields else { return Err(cut_off()) };
                    self.partitions.push((number, first, count));
                }
                Some(TAG_LOGICAL_VOLUME) => {
                    let maps = le32(&descriptor, 264).map(u64::from).ok_or_else(cut_off)?;
                    self.logical_volume = Some(read_vec(input, at, maps.saturating_add(440), MAPS_BYTES_MAX)?);
                }
                Some(TAG_END) => break,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The descriptor that everything else is found by, and the length of a sector.
fn anchor(input: &mut dyn ReadSeek) -> io::Result<(u64, [u8; 32])> {
    for sector_bytes in SECTOR_BYTES {
        if let Ok(anchor) = read_array::<32>(input, ANCHOR_SECTOR * sector_bytes)
            && le16(&anchor, 0) == Some(TAG_ANCHOR)
            && le32(&anchor, 12) == Some(ANCHOR_SECTOR as u32)
        {
            return Ok((sector_bytes, anchor));
        }
    }
    Err(invalid("no anchor"))
}

/// The address in a long descriptor of an extent.
fn long_address(bytes: &[u8], at: usize) -> Option<Address> {
    Some(Address { block: le32(bytes, at + 4)?, partition: le16(bytes, at + 8)? })
}

/// Characters in OSTA's compressed Unicode: the first byte says how many bits each has.
fn characters(bytes: &[u8]) -> String {
    match bytes {
        [8 | 254, characters @ ..] => characters.iter().map(|character| char::from(*character)).collect(),
        [16 | 255, characters @ ..] => {
            let units = characters.as_chunks::<2>().0.iter().map(|unit| u16::from_be_bytes(*unit));
            char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
        other => String::from_utf8_lossy(other).into_owned(),
    }
}
