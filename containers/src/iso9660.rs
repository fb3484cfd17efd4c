//! ISO 9660 images, with the long names of Rock Ridge and Joliet. Format: ECMA-119; Joliet Specification 1; IEEE P1281 (SUSP)
//! and P1282 (Rock Ridge).
//!
//! An image has a directory tree for each kind of reader, and they may differ. All are walked; a file that lies at the same place in several
//! of them is handed out once. Before a file may lie blocks of attributes, which some programs take for its beginning: it comes out both ways,
//! and directories are read both ways. Interleaved files and those that zisofs compressed come out as they lie there, and are told.
//!
//! What a computer boots from need not be a file: images of "El Torito" 1.0, and what UEFI 2.10, 13.3.2 makes of it, come out besides.
//! An image that was written in sessions has a volume for each, of which the others know nothing: where no file lies, volumes are looked for,
//! and what their trees have come out too. Some lie at the beginning of an image within, and count from there.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{array, invalid, le16, le32, read_at_most};
use crate::format::{Format, Probe, whole_if};
use crate::limits::Halt;
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, part, read_array, read_vec};

/// Where volume descriptors begin, and how long each is.
const DESCRIPTORS_OFFSET: u64 = 0x8000;
const DESCRIPTOR_BYTES: u64 = 2048;
/// Most descriptors that are looked at: real images have two to five.
const DESCRIPTORS_MAX: u64 = 64;
/// The longest directory: some 300,000 files.
const DIRECTORY_BYTES_MAX: u64 = 16 << 20;
/// Most directories, and most files: each costs a place in a set.
const DIRECTORIES_MAX: usize = 1 << 16;
const FILES_MAX: usize = 1 << 20;
/// Most pieces of all files, which are kept to know the files by.
const PIECES_MAX: usize = 1 << 21;
/// Most pieces of one file. Each holds up to 4 GiB.
const EXTENTS_MAX: usize = 1 << 10;
/// The longest path that is kept.
const PATH_CHARS_MAX: usize = 1024;
/// Most areas in which Rock Ridge entries of one record go on.
const CONTINUATIONS_MAX: usize = 8;

/// Most volumes that are looked into besides those at the beginning: a disc takes 99 sessions.
const OTHER_VOLUMES_MAX: usize = 128;
/// How much is searched at once for these.
const SEARCHED_BYTES: usize = 1 << 20;
/// What a record of what to boot has in it, and where the catalog's place lies.
const BOOT_SYSTEM: &[u8] = b"EL TORITO SPECIFICATION";
const CATALOG_AT: usize = 71;
const BOOT_ENTRY_BYTES: usize = 32;
/// In what the lengths of images to boot are counted.
const BOOT_SECTOR_BYTES: u64 = 512;

const FLAG_DIRECTORY: u8 = 2;
const FLAG_GOES_ON: u8 = 0x80;

/// ISO 9660.
pub(crate) static FORMAT: Format = Format {
    name: "iso9660",
    description: "ISO 9660",
    mime: "application/x-iso9660-image",
    extension: "iso",
    category: "I",
    beside: &[],
    probe: |probe| whole_if(is_one(probe)),
    extractor: &Iso,
};

fn is_one(probe: &Probe<'_>) -> bool {
    let at = DESCRIPTORS_OFFSET as usize;
    probe.head.get(at..at + 7).is_some_and(|mark| mark.get(1..6) == Some(b"CD001") && mark.get(6) == Some(&1))
}

struct Iso;

impl Extractor for Iso {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut walk = Walk {
            length: container.length,
            input: &mut *container.input,
            out: Out::new(budget, sink),
            base: 0,
            block_bytes: DESCRIPTOR_BYTES,
            joliet: false,
            files: HashSet::new(),
            pieces: 0,
            directories: HashMap::new(),
        };
        let result = walk.run();
        walk.out.end("the image is broken", result)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Extent {
    offset: u64,
    length: u64,
}

struct Directory {
    extent: Extent,
    /// It begins there only for programs that don't pass over attributes.
    with_attributes: bool,
    path: String,
}

struct Walk<'w, 'o, 's> {
    input: &'w mut dyn ReadSeek,
    length: u64,
    out: Out<'o, 's>,
    /// Where the image begins whose volume is read.
    base: u64,
    block_bytes: u64,
    joliet: bool,
    /// Where the files lie that were handed out.
    files: HashSet<Box<[Extent]>>,
    /// How many pieces they have.
    pieces: usize,
    /// The directories that were read, by how records of them are read.
    directories: HashMap<(bool, u64, u64), HashSet<Extent>>,
}

/// A directory record.
struct Record {
    extent: Extent,
    /// The same for programs that don't pass over attributes.
    with_attributes: Extent,
    flags: u8,
    interleaved: bool,
    name: String,
}

impl Record {
    /// Notes a directory to be read, unless it was noted before.
    fn queue(&self, path: String, queue: &mut Vec<Directory>, seen: &mut HashSet<Extent>) {
        if seen.insert(self.extent) {
            queue.push(Directory { extent: self.extent, with_attributes: false, path: path.clone() });
        }
        if seen.insert(self.with_attributes) {
            queue.push(Directory { extent: self.with_attributes, with_attributes: true, path });
        }
    }
}

impl Walk<'_, '_, '_> {
    fn run(&mut self) -> io::Result<()> {
        let (mut any, mut catalogs) = (false, Vec::new());
        let mut offset = DESCRIPTORS_OFFSET;
        while offset < DESCRIPTORS_OFFSET + DESCRIPTORS_MAX * DESCRIPTOR_BYTES {
            let descriptor = read_vec(self.input, offset, DESCRIPTOR_BYTES, DESCRIPTOR_BYTES)?;
            offset += DESCRIPTOR_BYTES;
            if descriptor.get(1..6) != Some(b"CD001") {
                return Err(invalid("the volume descriptors have no end"));
            }
            match descriptor.first() {
                Some(255) => break,
                Some(1 | 2) => {
                    any = true;
                    self.volume(&descriptor)?;
                }
                Some(0) if descriptor.get(7..).is_some_and(|system| system.starts_with(BOOT_SYSTEM)) => {
                    catalogs.extend(le32(&descriptor, CATALOG_AT));
                }
                _ => {}
            }
            if self.out.is_over() {
                return Ok(());
            }
        }
        if !any {
            return Err(invalid("the image has no volume"));
        }
        for catalog in catalogs {
            self.boot_images(u64::from(catalog) * DESCRIPTOR_BYTES)?;
        }
        self.other_volumes(offset)
    }

    fn volume(&mut self, descriptor: &[u8]) -> io::Result<()> {
        let escape = descriptor.get(88..91).unwrap_or_default();
        self.joliet = descriptor.first() == Some(&2) && matches!(escape, b"%/@" | b"%/C" | b"%/E");
        self.tree(descriptor)
    }

    /// Hands out the images to boot that a catalog has and no directory.
    fn boot_images(&mut self, catalog: u64) -> io::Result<()> {
        // Firmware reads one block of it.
        let catalog = read_vec(self.input, catalog, DESCRIPTOR_BYTES, DESCRIPTOR_BYTES)?;
        let mut entries = catalog.chunks_exact(BOOT_ENTRY_BYTES);
        let is_one = |first: &[u8]| first.first() == Some(&1) && first.get(30..) == Some(&[0x55, 0xaa]);
        if !entries.next().is_some_and(is_one) {
            return Ok(());
        }
        for entry in entries {
            let (Some(kind), Some(media)) = (entry.first(), entry.get(1)) else { continue };
            let (Some(sectors), Some(block)) = (le16(entry, 6), le32(entry, 8)) else { continue };
            // Others are headings, and what is said further of an image.
            if self.out.is_over() || !matches!(kind, 0 | 0x88) || block == 0 {
                continue;
            }
            let offset = u64::from(block) * DESCRIPTOR_BYTES;
            let length = self.boot_image_bytes(*media & 15, u64::from(sectors), offset)?;
            let image = Extent { offset, length };
            let is_in = |file: &Extent| file.offset == offset && file.length >= length;
            if !self.files.iter().any(|pieces| pieces.first().is_some_and(is_in)) {
                self.file(format!("boot-{block}.img"), &[image], false)?;
            }
        }
        Ok(())
    }

    /// How long an image to boot is: as the catalog says, or as the file system in it does, since many catalogs name its first sectors only.
    fn boot_image_bytes(&mut self, media: u8, sectors: u64, offset: u64) -> io::Result<u64> {
        let named = match media {
            1 => 1200 << 10,
            2 => 1440 << 10,
            3 => 2880 << 10,
            _ => sectors.max(1) * BOOT_SECTOR_BYTES,
        };
        self.input.seek(SeekFrom::Start(offset))?;
        let sector = read_at_most(self.input, BOOT_SECTOR_BYTES)?;
        let is_boot_sector = sector.get(510..) == Some(&[0x55, 0xaa]);
        let partitions = (446..510).step_by(16).filter_map(|at| {
            let end = u64::from(le32(&sector, at + 8)?) + u64::from(le32(&sector, at + 12)?);
            matches!(sector.get(at)?, 0 | 0x80).then_some(end * BOOT_SECTOR_BYTES)
        });
        let partitions = partitions.max().filter(|_| is_boot_sector && media == 4).unwrap_or(0);
        let file_system = fat_bytes(&sector).filter(|_| is_boot_sector).unwrap_or(0);
        let left = self.length.saturating_sub(offset);
        Ok(named.max(partitions.max(file_system).min(left)))
    }

    /// Looks for volumes where no file lies, from `start` on, and hands out what only they have.
    fn other_volumes(&mut self, start: u64) -> io::Result<()> {
        let mut found = 0;
        for (gap, end) in self.gaps(start) {
            let mut at = gap;
            while at < end && !self.out.is_over() {
                self.input.seek(SeekFrom::Start(at))?;
                let window = read_at_most(self.input, (SEARCHED_BYTES as u64).min(end - at))?;
                if window.is_empty() {
                    break;
                }
                let descriptors =
                    (at..).step_by(DESCRIPTOR_BYTES as usize).zip(window.chunks_exact(DESCRIPTOR_BYTES as usize));
                for (offset, descriptor) in descriptors.filter(|(_, block)| is_volume(block)) {
                    if found >= OTHER_VOLUMES_MAX {
                        self.out.outcome.note_broken("the image has more volumes than are looked into");
                        return Ok(());
                    }
                    found += usize::from(self.other_volume(offset, descriptor)?);
                    if self.out.is_over() {
                        return Ok(());
                    }
                }
                at += window.len() as u64;
            }
        }
        Ok(())
    }

    /// Hands out what a volume elsewhere in the image has, where its root directory is where it says: in the image, and in one within, whose
    /// first volume this is. Tells whether it is in either.
    fn other_volume(&mut self, offset: u64, descriptor: &[u8]) -> io::Result<bool> {
        let mut is_one = false;
        for base in [0, offset.saturating_sub(DESCRIPTORS_OFFSET)] {
            self.base = base;
            if self.has_root(descriptor) {
                is_one = true;
                self.volume(descriptor)?;
            }
        }
        self.base = 0;
        Ok(is_one)
    }

    /// Whether the root directory of a volume begins with its own record.
    fn has_root(&mut self, descriptor: &[u8]) -> bool {
        let (Some(block_bytes), Some(block)) = (le16(descriptor, 128), le32(descriptor, 158)) else { return false };
        let offset = self.base + u64::from(block) * u64::from(block_bytes);
        let Ok(first) = read_array::<34>(self.input, offset) else { return false };
        first[0] >= 34 && le32(&first, 2) == Some(block) && first[32..] == [1, 0]
    }

    /// What lies in no file, from `start` on, in whole blocks.
    fn gaps(&self, start: u64) -> Vec<(u64, u64)> {
        let mut files: Vec<_> = self.files.iter().flatten().map(|piece| (piece.offset, piece.length)).collect();
        files.sort_unstable();
        files.push((self.length, 0));
        let (mut gaps, mut at) = (Vec::new(), start);
        for (offset, length) in files {
            if at < offset.min(self.length) {
                gaps.push((at, offset.min(self.length)));
            }
            at = at.max(offset.saturating_add(length).next_multiple_of(DESCRIPTOR_BYTES));
        }
        gaps
    }

    /// Walks one directory tree, breadth first.
    fn tree(&mut self, descriptor: &[u8]) -> io::Result<()> {
        self.block_bytes = match le16(descriptor, 128).map(u64::from) {
            Some(bytes @ (512 | 1024 | 2048)) => bytes,
            _ => return Err(invalid("malformed block length")),
        };
        let root = self.record(descriptor.get(156..190).unwrap_or_default())?;
        let root = root.ok_or_else(|| invalid("no root directory"))?;
        let reading = (self.joliet, self.block_bytes, self.base);
        // Descriptors may lead to the same directories.
        let mut seen = self.directories.remove(&reading).unwrap_or_default();
        let mut queue = Vec::new();
        root.queue(String::new(), &mut queue, &mut seen);
        let mut at = 0;
        while let Some(directory) = queue.get_mut(at) {
            at += 1;
            let directory = Directory { path: std::mem::take(&mut directory.path), ..*directory };
            if self.out.is_over() {
                break;
            }
            let before = (queue.len(), self.files.len());
            let result = self.directory(&directory, &mut queue, &mut seen);
            // Attributes are no directory for most programs: where nothing is found in them that is nothing to remark.
            let is_none = directory.with_attributes && before == (queue.len(), self.files.len());
            if let Err(error) = result
                && (!is_none || Halt::of(&error).is_some())
            {
                self.out.outcome.note_error(&format!("directory {:?}", directory.path), &error);
            }
        }
        self.directories.insert(reading, seen);
        Ok(())
    }

    fn directory(
        &mut self,
        directory: &Directory,
        queue: &mut Vec<Directory>,
        seen: &mut HashSet<Extent>,
    ) -> io::Result<()> {
        let Extent { offset, length } = directory.extent;
        let bytes = read_vec(self.input, offset, length, DIRECTORY_BYTES_MAX)?;
        let (mut pieces, mut with_attributes) = (Vec::new(), Vec::new());
        // No record crosses the end of a block.
        for block in bytes.chunks(self.block_bytes as usize) {
            let mut rest = block;
            while let Some(length) = rest.first().map(|length| usize::from(*length)).filter(|length| *length > 0) {
                if self.out.is_over() {
                    return Ok(());
                }
                let (record, behind) =
                    rest.split_at_checked(length).ok_or_else(|| invalid("a record longer than its block"))?;
                rest = behind;
                let Some(record) = self.record(record)? else { continue };
                let path = join(&directory.path, &record.name);
                if record.flags & FLAG_DIRECTORY != 0 {
                    if queue.len() >= DIRECTORIES_MAX {
                        return Err(invalid("more directories than any real image has"));
                    }
                    record.queue(path, queue, seen);
                    continue;
                }
                if pieces.len() >= EXTENTS_MAX {
                    return Err(invalid("a file of more pieces than any real one has"));
                }
                pieces.push(record.extent);
                with_attributes.push(record.with_attributes);
                if record.flags & FLAG_GOES_ON == 0 {
                    let (pieces, others) = (std::mem::take(&mut pieces), std::mem::take(&mut with_attributes));
                    if others != pieces {
                        self.file(path.clone(), &others, record.interleaved)?;
                    }
                    self.file(path, &pieces, record.interleaved)?;
                }
            }
        }
        if pieces.is_empty() { Ok(()) } else { Err(invalid("a file whose last piece is missing")) }
    }

    fn file(&mut self, path: String, pieces: &[Extent], interleaved: bool) -> io::Result<()> {
        let length: u64 = pieces.iter().map(|piece| piece.length).sum();
        // Empty files share a place, and cost nothing.
        if length > 0 && !self.files.insert(pieces.into()) {
            return Ok(());
        }
        self.pieces += pieces.len();
        if self.files.len() > FILES_MAX || self.pieces > PIECES_MAX {
            return Err(invalid("more files than any real image has"));
        }
        if interleaved {
            self.out.outcome.note_broken(format!("file {path:?} is interleaved, which is not supported"));
        }
        if let [piece] = pieces {
            self.out.stored(path, self.input, piece.offset, piece.length);
            return Ok(());
        }
        let mut content = Pieces { input: self.input, pieces: pieces.to_vec(), at: 0, read: 0 };
        self.out.member(path, Some(length), &mut content);
        Ok(())
    }

    /// Takes a directory record apart; none for those of a directory itself and the one that it is in.
    fn record(&mut self, record: &[u8]) -> io::Result<Option<Record>> {
        let malformed = || invalid("a malformed directory record");
        let (Some(block), Some(length)) = (le32(record, 2), le32(record, 10)) else { return Err(malformed()) };
        let [attribute_blocks] = array(record, 1).ok_or_else(malformed)?;
        let [flags, unit, gap] = array(record, 25).ok_or_else(malformed)?;
        let [name_bytes] = array(record, 32).ok_or_else(malformed)?;
        let name_end = 33 + usize::from(name_bytes);
        let raw = record.get(33..name_end).ok_or_else(malformed)?;
        let offset = self.base + (u64::from(block) + u64::from(attribute_blocks)) * self.block_bytes;
        let extent = Extent { offset, length: u64::from(length) };
        let with_attributes = Extent { offset: self.base + u64::from(block) * self.block_bytes, ..extent };
        // The root's own record in a volume descriptor has such a name too.
        let is_own = matches!(raw, [0] | [1]);
        if is_own && record.len() != 34 {
            return Ok(None);
        }
        let long =
            if self.joliet { None } else { self.rock_ridge(record.get((name_end + 1) & !1..).unwrap_or_default())? };
        let name = match long {
            Some(name) => display_name(&name),
            None if self.joliet => {
                let units = raw.chunks_exact(2).map(|unit| array(unit, 0).map_or(0, u16::from_be_bytes));
                let name: String =
                    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
                display_name(without_version(&name).as_bytes())
            }
            None => without_version(&display_name(raw)).to_owned(),
        };
        Ok(Some(Record { extent, with_attributes, flags, interleaved: unit != 0 || gap != 0, name }))
    }

    /// The name that Rock Ridge gives, if it gives one.
    fn rock_ridge(&mut self, area: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut name: Option<Vec<u8>> = None;
        let mut area = area.to_vec();
        for _ in 0..CONTINUATIONS_MAX {
            let mut goes_on = None;
            let mut rest = area.as_slice();
            while let [a, b, length, _, ..] = rest
                && let Some((entry, behind)) = rest.split_at_checked(usize::from(*length).max(4))
            {
                match [a, b] {
                    [b'N', b'M'] => name.get_or_insert_default().extend(entry.get(5..).unwrap_or_default()),
                    [b'C', b'E'] => goes_on = Some((le32(entry, 4), le32(entry, 12), le32(entry, 20))),
                    [b'S', b'T'] => break,
                    _ => {}
                }
                rest = behind;
            }
            let Some((Some(block), Some(at), Some(length))) = goes_on else { return Ok(name) };
            let offset = self.base + u64::from(block) * self.block_bytes + u64::from(at);
            area = read_vec(self.input, offset, u64::from(length), self.block_bytes)?;
        }
        Err(invalid("a name that goes on and on"))
    }
}

/// Whether a block describes a volume.
fn is_volume(block: &[u8]) -> bool {
    matches!(block, [1 | 2, b'C', b'D', b'0', b'0', b'1', 1 | 2, ..])
}

/// How long a FAT file system is, by its first sector.
fn fat_bytes(sector: &[u8]) -> Option<u64> {
    let sector_bytes = u64::from(le16(sector, 11)?);
    let sectors = le16(sector, 19).map(u64::from).filter(|sectors| *sectors > 0).or(le32(sector, 32).map(u64::from))?;
    matches!(sector_bytes, 512 | 1024 | 2048 | 4096).then_some(sector_bytes * sectors)
}

fn without_version(name: &str) -> &str {
    let name = name.rsplit_once(';').map_or(name, |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name)
}

fn join(path: &str, name: &str) -> String {
    let joined = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    match joined.char_indices().nth(PATH_CHARS_MAX) {
        Some((at, _)) => joined.get(..at).unwrap_or_default().to_owned(),
        None => joined,
    }
}

/// The pieces of a file, one after the other.
struct Pieces<'p> {
    input: &'p mut dyn ReadSeek,
    pieces: Vec<Extent>,
    at: usize,
    /// How much of the current piece was read.
    read: u64,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = self.pieces.get(self.at) {
            let left = piece.length.saturating_sub(self.read);
            if left > 0 {
                let read = part(self.input, piece.offset.saturating_add(self.read), left)?.read(into)?;
                self.read += read as u64;
                return Ok(read);
            }
            self.at += 1;
            self.read = 0;
        }
        Ok(0)
    }
}
