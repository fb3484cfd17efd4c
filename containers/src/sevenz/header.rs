//! The header of a 7z archive. Format: `DOC/7zFormat.txt` of the LZMA SDK.
//!
//! A header of some megabytes can describe millions of streams. It is walked, and never unfolded: everything here is a place in
//! its bytes, so that it costs no memory beyond them.

use std::io;

use crate::fields::{array, invalid, unsupported};
use crate::parts::cut_off;

const ID_END: u64 = 0;
const ID_HEADER: u64 = 1;
const ID_ARCHIVE_PROPERTIES: u64 = 2;
const ID_ADDITIONAL_STREAMS: u64 = 3;
const ID_MAIN_STREAMS: u64 = 4;
const ID_FILES: u64 = 5;
const ID_PACK: u64 = 6;
const ID_UNPACK: u64 = 7;
const ID_SUBSTREAMS: u64 = 8;
const ID_SIZE: u64 = 9;
const ID_CRC: u64 = 10;
const ID_FOLDER: u64 = 11;
const ID_CODERS_UNPACK_SIZE: u64 = 12;
const ID_NUM_UNPACK_STREAMS: u64 = 13;
const ID_EMPTY_STREAM: u64 = 14;
const ID_EMPTY_FILE: u64 = 15;
const ID_ANTI: u64 = 16;
const ID_NAMES: u64 = 17;
const ID_ENCODED_HEADER: u64 = 23;

/// Most coders of a folder, and most streams of a coder: as 7-Zip itself has it.
const CODERS_MAX: u64 = 32;

/// A place in the header.
#[derive(Clone, Copy)]
pub(super) struct Place<'h> {
    rest: &'h [u8],
}

impl<'h> Place<'h> {
    fn bytes(&mut self, length: u64) -> io::Result<&'h [u8]> {
        let length = usize::try_from(length).map_err(|_| cut_off())?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn byte(&mut self) -> io::Result<u8> {
        let (byte, rest) = self.rest.split_first().ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(*byte)
    }

    fn le32(&mut self) -> io::Result<u32> {
        self.bytes(4)?.first_chunk().map(|four| u32::from_le_bytes(*four)).ok_or_else(cut_off)
    }

    /// A number: each leading one of the first byte stands for a byte that follows, the least significant first.
    fn number(&mut self) -> io::Result<u64> {
        let first = self.byte()?;
        let more = first.leading_ones();
        let mut number = 0;
        for at in 0..more {
            number |= u64::from(self.byte()?) << (8 * at);
        }
        if more < 7 {
            let high = u64::from(first) & ((1 << (7 - more)) - 1);
            number |= high << (8 * more);
        }
        Ok(number)
    }

    fn skip_numbers(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            self.number()?;
        }
        Ok(())
    }

    fn bits(&mut self, count: u64) -> io::Result<Bits<'h>> {
        Ok(Bits { bytes: self.bytes(count.div_ceil(8))?, all: false })
    }

    /// Bits behind a byte that may say that all of them are set.
    fn optional_bits(&mut self, count: u64) -> io::Result<Bits<'h>> {
        if self.byte()? != 0 { Ok(Bits { bytes: &[], all: true }) } else { self.bits(count) }
    }

    fn digests(&mut self, count: u64) -> io::Result<Digests<'h>> {
        let defined = self.optional_bits(count)?;
        let numbers = if defined.all { count } else { (0..count).filter(|at| defined.get(*at)).count() as u64 };
        let crcs = Place { rest: self.bytes(numbers.saturating_mul(4))? };
        Ok(Digests { defined, crcs, at: 0 })
    }
}

/// A row of bits, the first of a byte in its most significant place.
#[derive(Clone, Copy, Default)]
struct Bits<'h> {
    bytes: &'h [u8],
    all: bool,
}

impl Bits<'_> {
    fn get(&self, at: u64) -> bool {
        let byte = usize::try_from(at / 8).ok().and_then(|byte| self.bytes.get(byte));
        self.all || byte.is_some_and(|byte| byte << (at % 8) & 0x80 != 0)
    }
}

/// Checksums, of which some may be missing.
#[derive(Clone, Copy)]
struct Digests<'h> {
    defined: Bits<'h>,
    crcs: Place<'h>,
    at: u64,
}

impl Digests<'_> {
    const NONE: Self = Self { defined: Bits { bytes: &[], all: false }, crcs: Place { rest: &[] }, at: 0 };

    fn next(&mut self) -> io::Result<Option<u32>> {
        let defined = self.defined.get(self.at);
        self.at += 1;
        if defined { self.crcs.le32().map(Some) } else { Ok(None) }
    }
}

/// Something that decodes.
pub(super) struct Coder {
    pub(super) method: u64,
    pub(super) properties: Vec<u8>,
    pub(super) inputs: u64,
    pub(super) outputs: u64,
}

/// Coders that work together, and where their input is.
pub(super) struct Folder {
    pub(super) coders: Vec<Coder>,
    /// Input stream and the output stream that feeds it, counted over all coders.
    pub(super) bonds: Vec<(u64, u64)>,
    /// The input streams that are fed from the archive, in the order in which they lie there.
    pub(super) packed: Vec<u64>,
    /// For each of those where it lies: offset behind the signature header, and length.
    pub(super) spans: Vec<(u64, u64)>,
    /// The length of each output stream.
    pub(super) unpacked_bytes: Vec<u64>,
    pub(super) crc: Option<u32>,
    /// How many files its output is.
    pub(super) files: u64,
}

impl Folder {
    fn read(place: &mut Place<'_>) -> io::Result<Self> {
        let count = place.number()?;
        if !(1..=CODERS_MAX).contains(&count) {
            return Err(unsupported(format!("a folder of {count} coders")));
        }
        let (mut coders, mut inputs, mut outputs) = (Vec::new(), 0, 0);
        for _ in 0..count {
            let coder = Self::coder(place)?;
            inputs += coder.inputs;
            outputs += coder.outputs;
            coders.push(coder);
        }
        let pairs = |place: &mut Place<'_>| Ok::<_, io::Error>((place.number()?, place.number()?));
        let bonds = (1..outputs).map(|_| pairs(place)).collect::<io::Result<Vec<_>>>()?;
        let packed_count = inputs.checked_sub(bonds.len() as u64).filter(|count| *count > 0);
        let packed_count = packed_count.ok_or_else(|| invalid("a folder without input"))?;
        let packed = if packed_count == 1 {
            (0..inputs).filter(|input| bonds.iter().all(|(bound, _)| bound != input)).take(1).collect()
        } else {
            (0..packed_count).map(|_| place.number()).collect::<io::Result<Vec<_>>>()?
        };
        let (spans, unpacked_bytes) = (Vec::new(), Vec::new());
        Ok(Self { coders, bonds, packed, spans, unpacked_bytes, crc: None, files: 1 })
    }

    fn coder(place: &mut Place<'_>) -> io::Result<Coder> {
        let flags = place.byte()?;
        if flags & 0xc0 != 0 {
            return Err(unsupported("a coder with alternatives"));
        }
        let method = place.bytes(u64::from(flags & 15).min(8))?;
        let method = method.iter().fold(0, |method, byte| method << 8 | u64::from(*byte));
        let (inputs, outputs) = if flags & 0x10 != 0 { (place.number()?, place.number()?) } else { (1, 1) };
        if inputs > CODERS_MAX || outputs > CODERS_MAX {
            return Err(unsupported("a coder of too many streams"));
        }
        let length = if flags & 0x20 != 0 { place.number()? } else { 0 };
        Ok(Coder { method, properties: place.bytes(length)?.to_vec(), inputs, outputs })
    }

    /// The output stream that feeds no coder, which is what the folder decodes to.
    pub(super) fn main_output(&self) -> Option<u64> {
        let outputs = self.coders.iter().map(|coder| coder.outputs).sum();
        (0..outputs).find(|output| self.bonds.iter().all(|(_, bound)| bound != output))
    }

    /// The length of what it decodes to.
    pub(super) fn unpacked(&self) -> io::Result<u64> {
        let main = self.main_output().and_then(|main| self.unpacked_bytes.get(usize::try_from(main).ok()?));
        main.copied().ok_or_else(|| invalid("a folder without output"))
    }
}

/// Where the streams of an archive are described.
#[derive(Clone, Copy)]
pub(super) struct Streams<'h> {
    pack_offset: u64,
    pack_sizes: Place<'h>,
    folder_count: u64,
    folders: Place<'h>,
    unpack_sizes: Place<'h>,
    folder_digests: Digests<'h>,
    file_counts: Option<Place<'h>>,
    file_sizes: Place<'h>,
    file_digests: Digests<'h>,
}

impl<'h> Streams<'h> {
    fn read(place: &mut Place<'h>) -> io::Result<Self> {
        let empty = Place { rest: &[] };
        let mut streams = Streams {
            pack_offset: 0,
            pack_sizes: empty,
            folder_count: 0,
            folders: empty,
            unpack_sizes: empty,
            folder_digests: Digests::NONE,
            file_counts: None,
            file_sizes: empty,
            file_digests: Digests::NONE,
        };
        loop {
            match place.number()? {
                ID_END => return Ok(streams),
                ID_PACK => streams.read_pack(place)?,
                ID_UNPACK => streams.read_unpack(place)?,
                ID_SUBSTREAMS => streams.read_substreams(place)?,
                other => return Err(invalid(format!("an unknown part {other} of the header"))),
            }
        }
    }

    fn read_pack(&mut self, place: &mut Place<'h>) -> io::Result<()> {
        self.pack_offset = place.number()?;
        let count = place.number()?;
        loop {
            match place.number()? {
                ID_END => return Ok(()),
                ID_SIZE => {
                    self.pack_sizes = *place;
                    place.skip_numbers(count)?;
                }
                ID_CRC => drop(place.digests(count)?),
                other => return Err(invalid(format!("an unknown part {other} of the header"))),
            }
        }
    }

    fn read_unpack(&mut self, place: &mut Place<'h>) -> io::Result<()> {
        let mut outputs = 0u64;
        loop {
            match place.number()? {
                ID_END => return Ok(()),
                ID_FOLDER => {
                    self.folder_count = place.number()?;
                    if place.byte()? != 0 {
                        return Err(unsupported("folders that are described elsewhere"));
                    }
                    self.folders = *place;
                    for _ in 0..self.folder_count {
                        outputs += Folder::read(place)?.coders.iter().map(|coder| coder.outputs).sum::<u64>();
                    }
                }
                ID_CODERS_UNPACK_SIZE => {
                    self.unpack_sizes = *place;
                    place.skip_numbers(outputs)?;
                }
                ID_CRC => self.folder_digests = place.digests(self.folder_count)?,
                other => return Err(invalid(format!("an unknown part {other} of the header"))),
            }
        }
    }

    fn read_substreams(&mut self, place: &mut Place<'h>) -> io::Result<()> {
        loop {
            match place.number()? {
                ID_END => return Ok(()),
                ID_NUM_UNPACK_STREAMS => {
                    self.file_counts = Some(*place);
                    place.skip_numbers(self.folder_count)?;
                }
                ID_SIZE => {
                    self.file_sizes = *place;
                    let mut counts = self.file_counts;
                    for _ in 0..self.folder_count {
                        place.skip_numbers(next_count(&mut counts)?.saturating_sub(1))?;
                    }
                }
                ID_CRC => {
                    let (mut counts, mut known) = (self.file_counts, self.folder_digests);
                    let mut unknown = 0u64;
                    for _ in 0..self.folder_count {
                        let (count, crc) = (next_count(&mut counts)?, known.next()?);
                        let listed = if count == 1 && crc.is_some() { 0 } else { count };
                        unknown = unknown.checked_add(listed).ok_or_else(|| invalid("too many files"))?;
                    }
                    self.file_digests = place.digests(unknown)?;
                }
                other => return Err(invalid(format!("an unknown part {other} of the header"))),
            }
        }
    }

    /// Walks the folders and the lengths of the files in them.
    pub(super) fn walk(self) -> Walk<'h> {
        let pack_offset = self.pack_offset;
        Walk { streams: self, at: 0, pack_offset }
    }
}

/// How far behind the archive's first header what a packed header is made of ends, if these bytes are such a header and nothing else.
pub(super) fn end_of_packed(bytes: &[u8]) -> Option<u64> {
    let mut place = Place { rest: bytes };
    if place.number().ok()? != ID_ENCODED_HEADER {
        return None;
    }
    let streams = Streams::read(&mut place).ok().filter(|_| place.rest.is_empty())?;
    let folder = streams.walk().folder().ok()??;
    folder.spans.iter().map(|(offset, length)| offset.saturating_add(*length)).max()
}

fn next_count(counts: &mut Option<Place<'_>>) -> io::Result<u64> {
    counts.as_mut().map_or(Ok(1), Place::number)
}

/// A walk over all folders, and within each over its files. Each folder's files are to be asked for before the next folder.
pub(super) struct Walk<'h> {
    streams: Streams<'h>,
    at: u64,
    pack_offset: u64,
}

impl Walk<'_> {
    /// The next folder.
    pub(super) fn folder(&mut self) -> io::Result<Option<Folder>> {
        let streams = &mut self.streams;
        if self.at >= streams.folder_count {
            return Ok(None);
        }
        self.at += 1;
        let mut folder = Folder::read(&mut streams.folders)?;
        for _ in &folder.packed {
            let length = streams.pack_sizes.number()?;
            folder.spans.push((self.pack_offset, length));
            self.pack_offset = self.pack_offset.checked_add(length).ok_or_else(|| invalid("malformed length"))?;
        }
        for _ in 0..folder.coders.iter().map(|coder| coder.outputs).sum() {
            folder.unpacked_bytes.push(streams.unpack_sizes.number()?);
        }
        folder.crc = streams.folder_digests.next()?;
        folder.files = next_count(&mut streams.file_counts)?;
        Ok(Some(folder))
    }

    /// The length and the checksum of the next file of a folder of which so many bytes and files are left.
    pub(super) fn file(&mut self, folder: &Folder, left_bytes: u64, left: u64) -> io::Result<(u64, Option<u32>)> {
        let streams = &mut self.streams;
        let length = if left > 1 { streams.file_sizes.number()? } else { left_bytes };
        if length > left_bytes {
            return Err(invalid("files are longer than what holds them"));
        }
        let crc = match folder.crc {
            Some(crc) if folder.files == 1 => Some(crc),
            _ => streams.file_digests.next()?,
        };
        Ok((length, crc))
    }
}

/// The names of an archive's files.
#[derive(Clone, Copy)]
pub(super) struct Files<'h> {
    count: u64,
    at: u64,
    empty_at: u64,
    without_stream: Bits<'h>,
    empty: Bits<'h>,
    names: Place<'h>,
}

/// One of them.
pub(super) enum File {
    /// It has content.
    WithStream(Vec<u8>),
    /// It is empty.
    Empty(Vec<u8>),
    /// It is a directory, or says that a file is to be deleted.
    Directory,
}

impl<'h> Files<'h> {
    pub(super) const NONE: Self = Self {
        count: 0,
        at: 0,
        empty_at: 0,
        without_stream: Bits { bytes: &[], all: false },
        empty: Bits { bytes: &[], all: false },
        names: Place { rest: &[] },
    };

    fn read(place: &mut Place<'h>) -> io::Result<Self> {
        let count = place.number()?;
        // A file without a name or a length still has a bit: this bounds what is walked by the header's length.
        if count > (place.rest.len() as u64).saturating_mul(8) {
            return Err(invalid("more files than the header has bits"));
        }
        let mut files = Files { count, ..Files::NONE };
        let mut without = 0;
        loop {
            let id = place.number()?;
            if id == ID_END {
                return Ok(files);
            }
            let length = place.number()?;
            let mut property = Place { rest: place.bytes(length)? };
            match id {
                ID_EMPTY_STREAM => {
                    files.without_stream = property.bits(count)?;
                    without = (0..count).filter(|at| files.without_stream.get(*at)).count() as u64;
                }
                ID_EMPTY_FILE => files.empty = property.bits(without)?,
                // Whether a file is to be deleted matters to nobody who scans.
                ID_ANTI => {}
                ID_NAMES => {
                    if property.byte()? != 0 {
                        return Err(unsupported("names that are kept elsewhere"));
                    }
                    files.names = property;
                }
                _ => {}
            }
        }
    }

    /// The next file.
    pub(super) fn next(&mut self) -> Option<File> {
        if self.at >= self.count {
            return None;
        }
        let without = self.without_stream.get(self.at);
        self.at += 1;
        let name = self.name();
        if !without {
            return Some(File::WithStream(name));
        }
        let empty = self.empty.get(self.empty_at);
        self.empty_at += 1;
        Some(if empty { File::Empty(name) } else { File::Directory })
    }

    /// The next name, of UTF-16, in UTF-8.
    fn name(&mut self) -> Vec<u8> {
        let units = self.names.rest.chunks_exact(2).map(|unit| array(unit, 0).map_or(0, u16::from_le_bytes));
        let length = units.clone().take_while(|unit| *unit != 0).count();
        let name = char::decode_utf16(units.take(length)).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER));
        let name = name.collect::<String>().into_bytes();
        self.names.rest = self.names.rest.get(length * 2 + 2..).unwrap_or_default();
        name
    }
}

/// What a header says.
pub(super) enum Header<'h> {
    /// Where the real header is, in a folder of its own.
    Encoded(Streams<'h>),
    /// What is in the archive.
    Plain(Option<Streams<'h>>, Files<'h>),
}

impl<'h> Header<'h> {
    /// Reads it.
    pub(super) fn read(bytes: &'h [u8]) -> io::Result<Self> {
        let mut place = Place { rest: bytes };
        match place.number()? {
            ID_ENCODED_HEADER => return Ok(Self::Encoded(Streams::read(&mut place)?)),
            ID_HEADER => {}
            _ => return Err(invalid("no header")),
        }
        let (mut streams, mut files) = (None, Files::NONE);
        loop {
            match place.number()? {
                ID_END => return Ok(Self::Plain(streams, files)),
                ID_ARCHIVE_PROPERTIES => {
                    while place.number()? != ID_END {
                        let length = place.number()?;
                        place.bytes(length)?;
                    }
                }
                ID_ADDITIONAL_STREAMS => drop(Streams::read(&mut place)?),
                ID_MAIN_STREAMS => streams = Some(Streams::read(&mut place)?),
                ID_FILES => files = Files::read(&mut place)?,
                other => return Err(invalid(format!("an unknown part {other} of the header"))),
            }
        }
    }
}
