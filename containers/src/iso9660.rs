//! ISO 9660 images, with the long names of Rock Ridge and Joliet. Format: ECMA-119; Joliet Specification 1; IEEE P1281 (SUSP)
//! and P1282 (Rock Ridge).
//!
//! An image has a directory tree for each kind of reader, and they may differ. All are walked; a file that lies at the same place in several
//! of them is handed out once. Before a file may lie blocks of attributes, which some programs take for its beginning: it comes out both ways,
//! and directories are read both ways. Interleaved files and those that zisofs compressed come out as they lie there, and are told.

use std::collections::HashSet;
use std::io::{self, Read};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{array, invalid, le16, le32};
use crate::format::{Format, Probe, whole_if};
use crate::limits::Halt;
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, part, read_vec};

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
            input: &mut *container.input,
            out: Out::new(budget, sink),
            block_bytes: DESCRIPTOR_BYTES,
            joliet: false,
            files: HashSet::new(),
            pieces: 0,
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
    out: Out<'o, 's>,
    block_bytes: u64,
    joliet: bool,
    /// Where the files lie that were handed out.
    files: HashSet<Box<[Extent]>>,
    /// How many pieces they have.
    pieces: usize,
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
        let mut any = false;
        for at in 0..DESCRIPTORS_MAX {
            let offset = DESCRIPTORS_OFFSET + at * DESCRIPTOR_BYTES;
            let descriptor = read_vec(self.input, offset, DESCRIPTOR_BYTES, DESCRIPTOR_BYTES)?;
            if descriptor.get(1..6) != Some(b"CD001") {
                return Err(invalid("the volume descriptors have no end"));
            }
            match descriptor.first() {
                Some(255) => break,
                Some(kind @ (1 | 2)) => {
                    let escape = descriptor.get(88..91).unwrap_or_default();
                    self.joliet = *kind == 2 && matches!(escape, b"%/@" | b"%/C" | b"%/E");
                    any = true;
                    self.tree(&descriptor)?;
                }
                _ => {}
            }
            if self.out.is_over() {
                return Ok(());
            }
        }
        if any { Ok(()) } else { Err(invalid("the image has no volume")) }
    }

    /// Walks one directory tree, breadth first.
    fn tree(&mut self, descriptor: &[u8]) -> io::Result<()> {
        self.block_bytes = match le16(descriptor, 128).map(u64::from) {
            Some(bytes @ (512 | 1024 | 2048)) => bytes,
            _ => return Err(invalid("malformed block length")),
        };
        let root = self.record(descriptor.get(156..190).unwrap_or_default())?;
        let root = root.ok_or_else(|| invalid("no root directory"))?;
        let (mut queue, mut seen) = (Vec::new(), HashSet::new());
        root.queue(String::new(), &mut queue, &mut seen);
        let mut at = 0;
        while let Some(directory) = queue.get_mut(at) {
            at += 1;
            let directory = Directory { path: std::mem::take(&mut directory.path), ..*directory };
            if self.out.is_over() {
                return Ok(());
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
        let offset = (u64::from(block) + u64::from(attribute_blocks)) * self.block_bytes;
        let extent = Extent { offset, length: u64::from(length) };
        let with_attributes = Extent { offset: u64::from(block) * self.block_bytes, ..extent };
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
            let offset = u64::from(block) * self.block_bytes + u64::from(at);
            area = read_vec(self.input, offset, u64::from(length), self.block_bytes)?;
        }
        Err(invalid("a name that goes on and on"))
    }
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
