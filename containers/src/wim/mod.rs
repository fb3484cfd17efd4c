//! WIM, the images that Windows is installed from. Format: "Windows Imaging File Format (WIM)" (Microsoft, 2007) and wimlib's headers.
//!
//! Every stream of the file is a member, under the first name that an image has for it; one that no image names has its digest for a name.
//! Uncompressed, XPRESS and LZX are read. LZMS, and the solid resources of ESD files, which need it, are told, as are split files.

mod huffman;
mod lzx;
mod xpress;

use std::collections::HashMap;
use std::io::{self, Read};

use sha1::{Digest as _, Sha1};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{array, invalid, le16, le32, le64, unsupported, utf16_le};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Exactly, Out, cut_off, read_array, read_vec};
use crate::tree::join;

const MARK: &[u8] = b"MSWIM\0\0\0";
const HEADER_BYTES: usize = 208;
const ENTRY_BYTES: usize = 50;
/// Where an entry has its digest, and a digest's length.
const ENTRY_DIGEST_AT: usize = 30;
type Digest = [u8; 20];
/// Most streams of a file that are read: an installation of Windows has a hundred thousand.
const STREAMS_MAX: u64 = 1 << 20;
/// The longest description of an image: of an installation it has some 40 MiB.
const METADATA_BYTES_MAX: u64 = 64 << 20;
/// Most names, and most folders that wait.
const NAMES_MAX: usize = 1 << 18;
/// What the names may take together.
const NAMES_BYTES_MAX: usize = 64 << 20;
/// Chunks have 32 KiB in most files, and up to 2 MiB with LZX.
const CHUNK_BYTES: std::ops::RangeInclusive<u32> = 1 << 12..=1 << 21;

const FLAG_COMPRESSED: u32 = 2;
const FLAG_XPRESS: u32 = 0x2_0000;
const FLAG_LZX: u32 = 0x4_0000;
const RESOURCE_METADATA: u8 = 2;
const RESOURCE_COMPRESSED: u8 = 4;
const RESOURCE_SPANNED: u8 = 8;
const RESOURCE_SOLID: u8 = 16;
const ATTRIBUTE_DIRECTORY: u32 = 16;

/// WIM.
pub(crate) static FORMAT: Format = Format {
    name: "wim",
    description: "Windows Imaging Format",
    mime: "application/x-ms-wim",
    extension: "wim",
    category: "I",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(MARK)),
    extractor: &Wim,
};

struct Wim;

impl Extractor for Wim {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = file(&mut *container.input, container.length, &mut out);
        out.end("the image is broken", result)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Stored,
    Xpress,
    Lzx,
    Unknown,
}

/// How resources are compressed.
#[derive(Clone, Copy)]
struct Coding {
    method: Method,
    chunk_bytes: u64,
}

/// Where a resource lies.
#[derive(Clone, Copy)]
struct Resource {
    stored_bytes: u64,
    flags: u8,
    offset: u64,
    length: u64,
}

impl Resource {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let size = le64(bytes, 0)?;
        let [.., flags] = size.to_le_bytes();
        let (offset, length) = (le64(bytes, 8)?, le64(bytes, 16)?);
        Some(Self { stored_bytes: size & 0x00ff_ffff_ffff_ffff, flags, offset, length })
    }

    /// Its content.
    fn content<'i>(&self, input: &'i mut dyn ReadSeek, coding: Coding) -> io::Result<Exactly<Resources<'i>>> {
        if self.flags & RESOURCE_SOLID != 0 {
            return Err(unsupported("a solid resource"));
        }
        if self.flags & RESOURCE_SPANNED != 0 {
            return Err(unsupported("a resource that goes on in another file"));
        }
        let is_compressed = self.flags & RESOURCE_COMPRESSED != 0;
        let coding = if is_compressed { coding } else { Coding { method: Method::Stored, ..coding } };
        if coding.method == Method::Unknown {
            return Err(unsupported("a compression that is not known here"));
        }
        let chunk = io::Cursor::new(Vec::new());
        Ok(Exactly::new(Resources { input, resource: *self, coding, number: 0, chunk }, self.length))
    }
}

fn file(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let header: [u8; HEADER_BYTES] = read_array(input, 0)?;
    let fields = (le32(&header, 16), le32(&header, 20), le16(&header, 42), header.get(48..).and_then(Resource::parse));
    let (Some(flags), Some(chunk_bytes), Some(parts), Some(table)) = fields else { return Err(cut_off()) };
    let method = match flags {
        flags if flags & FLAG_COMPRESSED == 0 => Method::Stored,
        flags if flags & FLAG_XPRESS != 0 => Method::Xpress,
        flags if flags & FLAG_LZX != 0 => Method::Lzx,
        _ => Method::Unknown,
    };
    if method != Method::Stored && (!CHUNK_BYTES.contains(&chunk_bytes) || !chunk_bytes.is_power_of_two()) {
        return Err(invalid("a malformed header"));
    }
    if parts > 1 {
        out.outcome.note_broken("the image is split over several files, which are not joined");
    }
    let coding = Coding { method, chunk_bytes: u64::from(chunk_bytes.max(1)) };
    if table.length / ENTRY_BYTES as u64 > STREAMS_MAX || table.offset > length {
        return Err(invalid("a malformed table of streams"));
    }
    let mut entries = Vec::new();
    table.content(input, coding)?.read_to_end(&mut entries)?;
    let entries: Vec<(Resource, Digest)> = entries
        .chunks_exact(ENTRY_BYTES)
        .filter_map(|entry| Some((Resource::parse(entry)?, array(entry, ENTRY_DIGEST_AT)?)))
        .collect();
    let mut names = Names::default();
    for (resource, _) in entries.iter().filter(|(resource, _)| resource.flags & RESOURCE_METADATA != 0) {
        out.check()?;
        if let Err(error) = names.read(*resource, coding, input, out) {
            out.outcome.note_error("the description of an image", &error);
        }
    }
    for (resource, digest) in entries.iter().filter(|(resource, _)| resource.flags & RESOURCE_METADATA == 0) {
        if out.is_over() {
            return Ok(());
        }
        let unnamed = || digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = names.names.get(digest).cloned().unwrap_or_else(unnamed);
        let content = resource.content(input, coding).map(|inner| Digested { inner, sum: Sha1::new(), said: *digest });
        out.made(name, Some(resource.length), content);
    }
    Ok(())
}

/// The names that images have for streams.
#[derive(Default)]
struct Names {
    names: HashMap<Digest, String>,
    bytes: usize,
}

impl Names {
    /// Adds those of an image.
    fn read(
        &mut self,
        resource: Resource,
        coding: Coding,
        input: &mut dyn ReadSeek,
        out: &Out<'_, '_>,
    ) -> io::Result<()> {
        if resource.length > METADATA_BYTES_MAX {
            return Err(invalid("a description longer than any real one"));
        }
        let mut metadata = Vec::new();
        resource.content(input, coding)?.read_to_end(&mut metadata)?;
        // Security descriptors come first, and then the root.
        let root = le32(&metadata, 0).ok_or_else(cut_off)?.max(8) as usize;
        let mut waiting = vec![(root.next_multiple_of(8), String::new())];
        // Lists that were read, so that folders in each other end.
        let mut seen = std::collections::HashSet::new();
        while let Some((at, folder)) = waiting.pop() {
            let mut rest = metadata.get(at..).unwrap_or_default();
            while let Some(entry) = Entry::parse(rest)? {
                out.check()?;
                let path = join(&folder, &entry.name);
                for (stream, digest) in entry.streams {
                    let name = if stream.is_empty() { path.clone() } else { join("", &format!("{path}:{stream}")) };
                    self.bytes = self.bytes.saturating_add(name.len());
                    if self.names.len() >= NAMES_MAX || self.bytes > NAMES_BYTES_MAX {
                        return Err(invalid("more names than any real image has"));
                    }
                    self.names.entry(digest).or_insert(name);
                }
                if let Some(below) = entry.folder
                    && seen.insert(below)
                {
                    self.bytes = self.bytes.saturating_add(path.len());
                    waiting.push((below, path));
                }
                rest = rest.get(entry.bytes..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// A file or a folder in the description of an image.
struct Entry {
    name: String,
    /// Where the list of a folder's entries is.
    folder: Option<usize>,
    /// The streams of a file: their names and digests.
    streams: Vec<(String, Digest)>,
    /// How many bytes it takes, its streams included.
    bytes: usize,
}

impl Entry {
    /// The entry that these bytes begin with; none at the end of a list.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let length = le64(bytes, 0).ok_or_else(cut_off)?;
        if length <= 8 {
            return Ok(None);
        }
        let malformed = || invalid("a malformed entry");
        let length = usize::try_from(length).ok().and_then(|length| length.checked_next_multiple_of(8));
        let length = length.ok_or_else(malformed)?;
        let own = bytes.get(..length).ok_or_else(malformed)?;
        let fields = (le32(own, 8), le64(own, 16), array(own, 64), le16(own, 96), le16(own, 100));
        let (Some(attributes), Some(folder), Some(digest), Some(more), Some(name_bytes)) = fields else {
            return Err(malformed());
        };
        let name = own.get(102..).and_then(|rest| rest.get(..usize::from(name_bytes))).ok_or_else(malformed)?;
        let mut streams = vec![(String::new(), digest)];
        let mut at = length;
        for _ in 0..more {
            let stream = bytes.get(at..).ok_or_else(malformed)?;
            let fields = (le64(stream, 0), array(stream, 16), le16(stream, 36));
            let (Some(length), Some(digest), Some(name_bytes)) = fields else { return Err(malformed()) };
            let name = stream.get(38..).and_then(|rest| rest.get(..usize::from(name_bytes))).ok_or_else(malformed)?;
            streams.push((utf16_le(name), digest));
            let length = usize::try_from(length).ok().and_then(|length| length.checked_next_multiple_of(8));
            at = length.and_then(|length| at.checked_add(length.max(8))).ok_or_else(malformed)?;
        }
        streams.retain(|(_, digest)| digest.iter().any(|byte| *byte != 0));
        let folder = usize::try_from(folder).ok().filter(|at| attributes & ATTRIBUTE_DIRECTORY != 0 && *at > 0);
        Ok(Some(Self { name: utf16_le(name), folder, streams, bytes: at }))
    }
}

/// The content of a resource: chunks, in front of which a table says where each ends, or everything as it is.
struct Resources<'i> {
    input: &'i mut dyn ReadSeek,
    resource: Resource,
    coding: Coding,
    /// The next chunk.
    number: u64,
    chunk: io::Cursor<Vec<u8>>,
}

impl Resources<'_> {
    /// Where a chunk begins, behind the table; the end of the last one is that of the resource.
    fn place(&mut self, number: u64, chunks: u64) -> io::Result<u64> {
        // Places are longer in a resource that needs it.
        let width = if self.resource.length > u64::from(u32::MAX) { 8 } else { 4 };
        let table_bytes = chunks.saturating_sub(1).saturating_mul(width);
        let begin = self.resource.offset.saturating_add(table_bytes);
        let place = match number {
            0 => 0,
            number if number >= chunks => self.resource.stored_bytes.saturating_sub(table_bytes),
            number => {
                let at = self.resource.offset.saturating_add((number - 1) * width);
                match width {
                    8 => u64::from_le_bytes(read_array(self.input, at)?),
                    _ => u64::from(u32::from_le_bytes(read_array(self.input, at)?)),
                }
            }
        };
        Ok(begin.saturating_add(place))
    }

    /// Decodes the next chunk; nothing behind the last.
    fn next_chunk(&mut self) -> io::Result<Vec<u8>> {
        let chunk_bytes = self.coding.chunk_bytes;
        let chunks = self.resource.length.div_ceil(chunk_bytes);
        if self.number >= chunks {
            return Ok(Vec::new());
        }
        let (begin, end) = (self.place(self.number, chunks)?, self.place(self.number + 1, chunks)?);
        let length = chunk_bytes.min(self.resource.length - self.number * chunk_bytes);
        self.number += 1;
        let stored_bytes = end.checked_sub(begin).ok_or_else(|| invalid("a chunk that ends before it begins"))?;
        let stored = read_vec(self.input, begin, stored_bytes, length)?;
        match self.coding.method {
            // What doesn't get smaller is stored.
            _ if stored_bytes == length => Ok(stored),
            Method::Xpress => xpress::decode(&stored, length as usize),
            Method::Lzx => lzx::decode(&stored, length as usize, chunk_bytes as usize),
            Method::Stored | Method::Unknown => Err(invalid("a chunk of no known kind")),
        }
    }
}

impl Read for Resources<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.coding.method == Method::Stored {
            // It is as long as it says, which whoever reads it knows.
            let at = self.resource.offset.saturating_add(self.number);
            self.input.seek(io::SeekFrom::Start(at))?;
            let read = self.input.read(into)?;
            self.number = self.number.saturating_add(read as u64);
            return Ok(read);
        }
        if self.chunk.position() >= self.chunk.get_ref().len() as u64 {
            self.chunk = io::Cursor::new(self.next_chunk()?);
        }
        self.chunk.read(into)
    }
}

/// Ends with an error if what was read doesn't have the digest that the file says.
struct Digested<R> {
    inner: R,
    sum: Sha1,
    said: Digest,
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.sum.update(into.get(..read).unwrap_or_default());
        if read == 0 && !into.is_empty() && self.sum.clone().finalize().as_slice() != self.said {
            return Err(invalid("the digest is wrong"));
        }
        Ok(read)
    }
}
