//! DMG, the disk images of Macs. Format: "Demystifying the DMG File Format" (J. Levin), after Apple's UDIF.
//!
//! The disk lies in chunks that a property list at the end names: stored, zeros, ADC, zlib, bzip2, LZFSE and LZMA. Encrypted images are told, and
//! so are those of several segments.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{be32, be64, find, invalid, read_at_most, unsupported};
use crate::format::{Format, whole_if};
use crate::limits::admit_decoder;
use crate::outcome::{ExtractionOutcome, Protection};
use crate::parts::{Out, cut_off, read_array, read_vec};
use crate::stream::DICTIONARY_KIB_MAX;
use crate::transfer;

use super::virtual_disk::{Blocks, Kept, VirtualDisk, read_part};
use super::{SECTOR_BYTES, adc, virtual_disk_content};

const MARK: &[u8] = b"koly";
const TRAILER_BYTES: u64 = 512;
const ENCRYPTED_MARK: &[u8] = b"encrcdsa";
/// The property list: a chunk of a megabyte costs some fifty bytes in it.
const LIST_BYTES_MAX: u64 = 16 << 20;
/// Most chunks: those of a disk of a terabyte.
const CHUNKS_MAX: usize = 1 << 20;
const CHUNK_BYTES: usize = 40;
const TABLE_MARK: &[u8] = b"mish";
/// Most arrays with chunks: real images have one.
const DISKS_MAX: usize = 4;
/// Where the chunks of a table begin.
const TABLE_HEADER_BYTES: usize = 204;
/// A chunk that is decoded must be no larger than this: real ones have up to a megabyte, and some of them are kept.
const DECODED_BYTES_MAX: u64 = 8 << 20;

const ZEROS: u32 = 0;
const STORED: u32 = 1;
const IGNORED: u32 = 2;
const ADC: u32 = 0x8000_0004;
const ZLIB: u32 = 0x8000_0005;
const BZIP2: u32 = 0x8000_0006;
const LZFSE: u32 = 0x8000_0007;
const LZMA: u32 = 0x8000_0008;
const COMMENT: u32 = 0x7fff_fffe;
const END: u32 = u32::MAX;

/// DMG.
pub(crate) static DMG: Format = Format {
    name: "dmg",
    description: "Apple disk image",
    mime: "application/x-apple-diskimage",
    extension: "dmg",
    category: "I",
    // A stored image is the disk itself, and compressed ones begin with compressed data.
    beside: &["disk", "hfs", "iso9660", "udf", "fat", "exfat", "ntfs", "ext", "bzip2", "xz", "lzma"],
    probe: |probe| {
        let at = probe.tail.len().checked_sub(TRAILER_BYTES as usize);
        let has_trailer = at.and_then(|at| probe.tail.get(at..)).is_some_and(|trailer| trailer.starts_with(MARK));
        whole_if(has_trailer || probe.head.starts_with(ENCRYPTED_MARK))
    },
    extractor: &Dmg,
};

/// Whether a file ends as one does: compressed ones begin with a stream of what compresses them, whatever follows it.
pub(crate) fn ends_as_dmg(input: &mut dyn ReadSeek, length: u64) -> bool {
    let trailer = length.checked_sub(TRAILER_BYTES).and_then(|at| read_array::<4>(input, at).ok());
    trailer.is_some_and(|mark| mark == MARK)
}

struct Dmg;

impl Extractor for Dmg {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = image(&mut *container.input, container.length, &mut out);
        out.end("the disk image is broken", result)
    }
}

fn image(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    if read_array::<8>(input, 0).is_ok_and(|head| head == ENCRYPTED_MARK) {
        out.outcome.note_protected(Protection::Archive);
        return Ok(());
    }
    let trailer =
        read_vec(input, length.checked_sub(TRAILER_BYTES).ok_or_else(cut_off)?, TRAILER_BYTES, TRAILER_BYTES)?;
    let fields = (be64(&trailer, 24), be64(&trailer, 216), be64(&trailer, 224), be32(&trailer, 60));
    let (Some(data), Some(list), Some(list_bytes), Some(segments)) = fields else { return Err(cut_off()) };
    if !trailer.starts_with(MARK) {
        return Err(invalid("the image's trailer is missing"));
    }
    if segments > 1 {
        out.outcome.note_broken("the disk image is one of several segments, which are not joined");
    }
    let list = read_vec(input, list, list_bytes, LIST_BYTES_MAX)?;
    let disks = disks(&list, data)?;
    if disks.len() > 1 {
        out.outcome
            .note_suspicious("the disk image has several lists of chunks, of which programs take different ones");
    }
    for chunks in disks {
        if out.is_over() {
            break;
        }
        if let Err(error) = disk(input, chunks, out) {
            out.outcome.note_error("the disk image is broken", &error);
        }
    }
    Ok(())
}

/// Hands out what is on the disk that some chunks make.
fn disk(input: &mut dyn ReadSeek, mut chunks: Vec<Chunk>, out: &mut Out<'_, '_>) -> io::Result<()> {
    chunks.sort_by_key(|chunk| chunk.position);
    if chunks.windows(2).any(|two| matches!(two, [one, next] if one.position + one.length > next.position)) {
        return Err(invalid("chunks that overlap"));
    }
    let disk_bytes = chunks.last().map_or(0, |last| last.position + last.length);
    let image = Chunks { input, chunks, kept: Kept::default() };
    virtual_disk_content(&mut VirtualDisk::new(image, disk_bytes), disk_bytes, out)
}

/// A chunk of the disk: where it is there, how it lies in the file, and where.
#[derive(Clone, Copy)]
struct Chunk {
    position: u64,
    length: u64,
    method: u32,
    offset: u64,
    stored_bytes: u64,
}

/// The chunks that a property list names, for each array that names some: tables in base64. A real list has one such array, `blkx`. Which
/// one of several a program takes depends on how it reads XML and finds keys, so none is passed over for its key.
fn disks(list: &[u8], data: u64) -> io::Result<Vec<Vec<Chunk>>> {
    let mut disks: Vec<Vec<Chunk>> = Vec::new();
    let (mut rest, mut is_same_array) = (list, false);
    while let Some(at) = find(rest, b"<data") {
        let (before, element) = rest.split_at_checked(at).ok_or_else(cut_off)?;
        is_same_array &= find(before, b"</array").is_none();
        let (tag, text) = find(element, b">").and_then(|begin| element.split_at_checked(begin)).ok_or_else(cut_off)?;
        let text = text.get(1..).unwrap_or_default();
        if tag.ends_with(b"/") {
            rest = text;
            continue;
        }
        let end = find(text, b"<").ok_or_else(cut_off)?;
        let (text, behind) = text.split_at_checked(end).ok_or_else(cut_off)?;
        if !behind.starts_with(b"</data") || !is_base64(text) {
            return Err(invalid("data in the property list that programs read differently"));
        }
        rest = behind;
        // Other arrays of the list have checksums and agreements to a licence.
        let table = transfer::base64(text).filter(|table| table.starts_with(TABLE_MARK));
        let Some(table) = table else { continue };
        if !is_same_array {
            if disks.len() >= DISKS_MAX {
                return Err(invalid("more lists of chunks than any real image has"));
            }
            disks.push(Vec::new());
            is_same_array = true;
        }
        add_table(&table, data, disks.last_mut().ok_or_else(cut_off)?)?;
    }
    if disks.is_empty() { Err(invalid("the property list has no tables")) } else { Ok(disks) }
}

/// Whether a text is base64 and nothing else.
fn is_base64(text: &[u8]) -> bool {
    let is_digit =
        |byte: &&u8| byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || matches!(byte, b'+' | b'/');
    text.iter().skip_while(is_digit).all(|byte| byte.is_ascii_whitespace() || *byte == b'=')
}

fn add_table(table: &[u8], data: u64, chunks: &mut Vec<Chunk>) -> io::Result<()> {
    let malformed = || invalid("a malformed table of chunks");
    let fields = (be64(table, 8), be64(table, 24), be32(table, 200));
    let (Some(first), Some(own_data), Some(count)) = fields else { return Err(malformed()) };
    let entries = table.get(TABLE_HEADER_BYTES..).unwrap_or_default().chunks_exact(CHUNK_BYTES);
    if !table.starts_with(TABLE_MARK) || entries.len() < count as usize {
        return Err(malformed());
    }
    for entry in entries.take(count as usize) {
        let fields = (be32(entry, 0), be64(entry, 8), be64(entry, 16), be64(entry, 24), be64(entry, 32));
        let (Some(method), Some(sector), Some(sectors), Some(offset), Some(stored_bytes)) = fields else {
            return Err(malformed());
        };
        match method {
            COMMENT => continue,
            END => break,
            _ if sectors == 0 => continue,
            _ => {}
        }
        let position = first.checked_add(sector).and_then(|sector| sector.checked_mul(SECTOR_BYTES));
        let length = sectors.checked_mul(SECTOR_BYTES);
        let (Some(position), Some(length)) = (position, length) else { return Err(malformed()) };
        position.checked_add(length).ok_or_else(malformed)?;
        if chunks.len() >= CHUNKS_MAX {
            return Err(invalid("more chunks than any real image has"));
        }
        let offset = data.saturating_add(own_data).saturating_add(offset);
        chunks.push(Chunk { position, length, method, offset, stored_bytes });
    }
    Ok(())
}

/// The disk.
struct Chunks<'d> {
    input: &'d mut dyn ReadSeek,
    /// By position, without overlaps.
    chunks: Vec<Chunk>,
    kept: Kept,
}

impl Blocks for Chunks<'_> {
    fn read_at(&mut self, position: u64, into: &mut [u8]) -> io::Result<usize> {
        let next = self.chunks.partition_point(|chunk| chunk.position <= position);
        let chunk = next.checked_sub(1).and_then(|at| self.chunks.get(at)).copied();
        let Some(chunk) = chunk.filter(|chunk| position - chunk.position < chunk.length) else {
            // What no chunk has is zeros.
            let end = self.chunks.get(next).map_or(u64::MAX, |chunk| chunk.position);
            return read_part(self.input, None, end - position, into);
        };
        let at = position - chunk.position;
        match chunk.method {
            ZEROS | IGNORED => read_part(self.input, None, chunk.length - at, into),
            STORED if at >= chunk.stored_bytes => read_part(self.input, None, chunk.length - at, into),
            STORED => {
                let most = chunk.stored_bytes.min(chunk.length) - at;
                read_part(self.input, Some(chunk.offset.saturating_add(at)), most, into)
            }
            _ => {
                let input = &mut *self.input;
                let decoded = self.kept.get(chunk.position, || decode(input, &chunk))?;
                let part = decoded.get(at as usize..).unwrap_or_default();
                let most = part.len().min(into.len());
                into.get_mut(..most).unwrap_or_default().copy_from_slice(part.get(..most).unwrap_or_default());
                Ok(most)
            }
        }
    }
}

/// Decodes a chunk, which has so many bytes then.
fn decode(input: &mut dyn ReadSeek, chunk: &Chunk) -> io::Result<Vec<u8>> {
    if chunk.length > DECODED_BYTES_MAX {
        admit_decoder(chunk.length)?;
        return Err(invalid("a chunk larger than any real one"));
    }
    // What doesn't get smaller is stored.
    let packed = read_vec(input, chunk.offset, chunk.stored_bytes, DECODED_BYTES_MAX * 2)?;
    let all = |mut decoder: &mut dyn Read| read_at_most(&mut decoder, chunk.length.saturating_add(1));
    let decoded = match chunk.method {
        ADC => adc::decode(&packed, chunk.length as usize)?,
        ZLIB => all(&mut flate2::read::ZlibDecoder::new(packed.as_slice()))?,
        BZIP2 => all(&mut bzip2::read::BzDecoder::new(packed.as_slice()))?,
        LZMA => all(&mut lzma_rust2::XzReader::new_mem_limit(packed.as_slice(), true, DICTIONARY_KIB_MAX))?,
        LZFSE => {
            let decoded = catch_unwind(AssertUnwindSafe(|| {
                let mut decoder = lzfse_rust::LzfseRingDecoder::default();
                all(&mut decoder.reader(packed.as_slice()))
            }));
            decoded.unwrap_or_else(|_| Err(invalid("the LZFSE decoder failed")))?
        }
        _ => return Err(unsupported("a compression that is not known here")),
    };
    if decoded.len() as u64 == chunk.length {
        Ok(decoded)
    } else {
        Err(invalid("a chunk that is not as long as it says"))
    }
}
