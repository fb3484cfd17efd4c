//! Microsoft cabinets: stored, MSZIP, Quantum and LZX. Format: [MS-CAB]; MSZIP as in [MS-MCI], LZX over the `lzxd` crate.
//!
//! A folder is decoded once if its files lie in it one after the other, as all writers put them. What goes on in another
//! cabinet of a set is told as broken; what follows a cabinet is handed out as a member.

mod quantum;

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use flate2::{Decompress, FlushDecompress, Status};
use lzxd::{Lzxd, WindowSize};

use self::quantum::Quantum;
use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name, read_full};
use crate::fields::{invalid, le16, le32, unsupported};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Exactly, Out, cut_off, read_array, read_vec};

const MAGIC: [u8; 4] = *b"MSCF";
const HEADER_BYTES: u64 = 36;
const FILE_BYTES: usize = 16;
/// The longest name, its end included.
const NAME_BYTES_MAX: usize = 257;
/// What a block decodes to at most.
const BLOCK_BYTES: usize = 32 * 1024;

const HAS_PREVIOUS: u16 = 1;
const HAS_NEXT: u16 = 2;
const HAS_RESERVE: u16 = 4;
/// Names are UTF-8; else they are of some code page.
const NAME_IS_UTF8: u16 = 0x80;
/// From here on folder numbers say that a file begins or goes on in another cabinet.
const FOLDER_CONTINUED: u16 = 0xfffd;

/// Cabinets.
pub(crate) static FORMAT: Format = Format {
    name: "cab",
    description: "Microsoft Cabinet",
    mime: "application/vnd.ms-cab-compressed",
    extension: "cab",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(is_header(probe.head, probe.length)),
    extractor: &Cab,
};

/// Whether a file begins as a cabinet. Of the fields that are reserved programs look at none; where they are set, the rest of the header
/// must do: a text may begin with the four letters.
fn is_header(head: &[u8], length: u64) -> bool {
    head.starts_with(&MAGIC) && (head.get(4..8) == Some(&[0; 4]) || has_files(head, length))
}

/// Whether a cabinet begins here by more than its mark, which installers have in their own data: its version, which never changed, and what
/// it has.
pub(crate) fn begins_cabinet(bytes: &[u8]) -> bool {
    let length = le32(bytes, 8).map(u64::from).unwrap_or_default();
    bytes.starts_with(&MAGIC) && bytes.get(24..26) == Some(&[3, 1]) && has_files(bytes, length)
}

/// Whether a header has folders and files, of which the list lies within so many bytes.
fn has_files(header: &[u8], length: u64) -> bool {
    let files_offset = le32(header, 16).map(u64::from);
    le16(header, 26).is_some_and(|folders| folders > 0)
        && le16(header, 28).is_some_and(|files| files > 0)
        && files_offset.is_some_and(|offset| (HEADER_BYTES..length).contains(&offset))
}

struct Cab;

impl Extractor for Cab {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = cabinet(&mut *container.input, container.length, &mut out);
        out.end("the cabinet is broken", result)
    }
}

struct Folder {
    data_offset: u64,
    blocks: u16,
    method: u16,
}

struct File {
    length: u32,
    offset: u32,
    folder: u16,
    name: String,
}

fn cabinet(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let header: [u8; HEADER_BYTES as usize] = read_array(input, 0)?;
    let half = |at| le16(&header, at).map(u64::from).ok_or_else(cut_off);
    let cabinet_bytes = le32(&header, 8).map(u64::from).ok_or_else(cut_off)?;
    let files_offset = le32(&header, 16).map(u64::from).ok_or_else(cut_off)?;
    let (folder_count, file_count, flags) = (half(26)?, half(28)?, half(30)? as u16);
    let mut offset = HEADER_BYTES;
    let (mut folder_reserve, mut data_reserve) = (0, 0u8);
    if flags & HAS_RESERVE != 0 {
        let reserve: [u8; 4] = read_array(input, offset)?;
        let [low, high, folder, data] = reserve;
        offset += 4 + u64::from(u16::from_le_bytes([low, high]));
        (folder_reserve, data_reserve) = (u64::from(folder), data);
    }
    for flag in [HAS_PREVIOUS, HAS_NEXT] {
        // The name of a cabinet, and of the disk that it is on.
        for _ in 0..if flags & flag != 0 { 2 } else { 0 } {
            let most = length.saturating_sub(offset).min(NAME_BYTES_MAX as u64);
            let name = read_vec(input, offset, most, NAME_BYTES_MAX as u64)?;
            let end = name.iter().position(|byte| *byte == 0).ok_or_else(|| invalid("malformed name"))?;
            offset += end as u64 + 1;
        }
    }
    let mut folders = Vec::new();
    for _ in 0..folder_count {
        let [a, b, c, d, blocks @ .., low, high] = read_array::<8>(input, offset)?;
        let blocks = u16::from_le_bytes(blocks);
        let data_offset = u64::from(u32::from_le_bytes([a, b, c, d]));
        folders.push(Folder { data_offset, blocks, method: u16::from_le_bytes([low, high]) });
        offset += 8 + folder_reserve;
    }
    let mut files = files(input, files_offset, length, file_count, out)?;
    if cabinet_bytes > length {
        out.outcome.note_broken(format!("the cabinet is cut off: it says that it has {cabinet_bytes} bytes"));
    }
    // Folder by folder and forward in each, so that each is decoded once.
    files.sort_by_key(|file| (file.folder, file.offset));
    let mut rest = files.as_slice();
    while let Some(first) = rest.first() {
        if out.is_over() {
            return Ok(());
        }
        let count = rest.iter().take_while(|file| file.folder == first.folder).count();
        let (these, others) = rest.split_at_checked(count).unwrap_or_default();
        rest = others;
        match folders.get(usize::from(first.folder)) {
            Some(folder) => folder_files(input, folder, data_reserve, these, out),
            None if first.folder >= FOLDER_CONTINUED => {
                let name = &first.name;
                out.outcome.note_broken(format!("member {name:?} begins or goes on in another cabinet"));
            }
            None => out.outcome.note_broken(format!("member {:?} is in no folder", first.name)),
        }
    }
    if cabinet_bytes < length && !out.is_over() {
        out.stored("behind the cabinet".to_owned(), input, cabinet_bytes, length - cabinet_bytes);
    }
    Ok(())
}

fn files(
    input: &mut dyn ReadSeek,
    offset: u64,
    length: u64,
    count: u64,
    out: &mut Out<'_, '_>,
) -> io::Result<Vec<File>> {
    let most = count * (FILE_BYTES + NAME_BYTES_MAX) as u64;
    let bytes = read_vec(input, offset, length.saturating_sub(offset).min(most), most)?;
    let mut rest = bytes.as_slice();
    let mut files = Vec::new();
    for _ in 0..count {
        let entry = rest.split_at_checked(FILE_BYTES).and_then(|(fields, rest)| {
            let end = rest.iter().take(NAME_BYTES_MAX).position(|byte| *byte == 0)?;
            let file = File {
                length: le32(fields, 0)?,
                offset: le32(fields, 4)?,
                folder: le16(fields, 8)?,
                name: name(rest.get(..end)?, le16(fields, 14)?),
            };
            Some((file, rest.get(end + 1..)?))
        });
        let Some((file, behind)) = entry else {
            out.outcome.note_broken("the list of files is cut off");
            break;
        };
        files.push(file);
        rest = behind;
    }
    Ok(files)
}

fn name(raw: &[u8], attributes: u16) -> String {
    if attributes & NAME_IS_UTF8 != 0 || raw.is_ascii() {
        return display_name(raw);
    }
    // The code page is not told. Each byte stays visible.
    let shown: String = raw.iter().map(|byte| char::from(*byte)).collect();
    display_name(shown.as_bytes())
}

/// Hands out files of one folder, which are in the order in which they lie there.
fn folder_files(input: &mut dyn ReadSeek, folder: &Folder, data_reserve: u8, files: &[File], out: &mut Out<'_, '_>) {
    let mut reader = match FolderReader::new(input, folder, data_reserve) {
        Ok(reader) => reader,
        Err(error) => return out.outcome.note_error("a folder can't be decoded", &error),
    };
    for file in files {
        if out.is_over() {
            return;
        }
        let offset = u64::from(file.offset);
        if offset < reader.position {
            out.outcome.note_suspicious(format!("member {:?} overlaps another one", file.name));
            if let Err(error) = reader.rewind() {
                return out.outcome.note_error("a folder can't be decoded", &error);
            }
        }
        if let Err(error) = reader.skip_to(offset, out) {
            return out.outcome.note_error(&format!("member {:?}", file.name), &error);
        }
        let length = u64::from(file.length);
        let mut content = Exactly::new(&mut reader, length);
        if !out.member(file.name.clone(), Some(length), &mut content) {
            // What the decoder fails at is before all that follows.
            return;
        }
    }
}

enum Decoder {
    Stored,
    MsZip(Box<Decompress>),
    Quantum(Box<Quantum>),
    Lzx(Box<Lzxd>),
}

/// What a folder decodes to.
struct FolderReader<'i> {
    input: &'i mut dyn ReadSeek,
    folder: &'i Folder,
    data_reserve: u8,
    decoder: Decoder,
    offset: u64,
    blocks_left: u16,
    /// The block as it is packed, behind what is reserved before it.
    packed: Vec<u8>,
    block: Vec<u8>,
    /// The one before, whose memory the next one takes.
    former: Vec<u8>,
    /// How much of the block was read.
    read: usize,
    /// The same, of the whole folder.
    position: u64,
}

impl<'i> FolderReader<'i> {
    fn new(input: &'i mut dyn ReadSeek, folder: &'i Folder, data_reserve: u8) -> io::Result<Self> {
        let mut reader = Self {
            input,
            folder,
            data_reserve,
            decoder: Decoder::Stored,
            offset: 0,
            blocks_left: 0,
            packed: Vec::new(),
            block: Vec::new(),
            former: Vec::new(),
            read: 0,
            position: 0,
        };
        reader.rewind()?;
        Ok(reader)
    }

    fn rewind(&mut self) -> io::Result<()> {
        let method = self.folder.method;
        self.decoder = match method & 15 {
            0 => Decoder::Stored,
            1 => Decoder::MsZip(Box::new(Decompress::new(false))),
            2 => Decoder::Quantum(Box::new(Quantum::new(method >> 8 & 31)?)),
            3 => Decoder::Lzx(Box::new(Lzxd::new(window(method >> 8 & 31)?))),
            other => return Err(unsupported(format!("compression method {other} is not supported"))),
        };
        (self.offset, self.blocks_left) = (self.folder.data_offset, self.folder.blocks);
        self.block.clear();
        (self.read, self.position) = (0, 0);
        Ok(())
    }

    fn skip_to(&mut self, offset: u64, out: &Out<'_, '_>) -> io::Result<()> {
        let mut block = [0; 4096];
        while self.position < offset {
            out.check()?;
            let most = (offset - self.position).min(block.len() as u64) as usize;
            if self.read(block.get_mut(..most).unwrap_or_default())? == 0 {
                return Err(cut_off());
            }
        }
        Ok(())
    }

    /// Decodes the next block. False behind the last.
    fn next_block(&mut self) -> io::Result<bool> {
        let Some(blocks_left) = self.blocks_left.checked_sub(1) else { return Ok(false) };
        let header: [u8; 8] = read_array(self.input, self.offset)?;
        let [a, b, c, d, packed_low, packed_high, low, high] = header;
        let packed_bytes = u16::from_le_bytes([packed_low, packed_high]);
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length == 0 {
            return Err(unsupported("a block goes on in another cabinet"));
        }
        if length > BLOCK_BYTES {
            return Err(invalid("a block longer than the format allows"));
        }
        // At most some 64 KiB together; the memory is every block's.
        let reserve = usize::from(self.data_reserve);
        self.packed.resize(reserve + usize::from(packed_bytes), 0);
        if read_full(self.input, &mut self.packed)? < self.packed.len() {
            return Err(cut_off());
        }
        let claimed = u32::from_le_bytes([a, b, c, d]);
        let lengths = u32::from_le_bytes([packed_low, packed_high, low, high]);
        if claimed != 0 && checksum(&self.packed) ^ lengths != claimed {
            return Err(invalid("a block's checksum is wrong"));
        }
        self.decode(reserve, length)?;
        (self.blocks_left, self.read) = (blocks_left, 0);
        self.offset += 8 + self.packed.len() as u64;
        Ok(true)
    }

    /// Decodes the block, which is packed behind what is reserved.
    fn decode(&mut self, reserve: usize, length: usize) -> io::Result<()> {
        let packed = self.packed.get(reserve..).unwrap_or_default();
        match &mut self.decoder {
            Decoder::Stored => packed.clone_into(&mut self.block),
            Decoder::MsZip(inflate) => {
                let deflated = packed.strip_prefix(b"CK").ok_or_else(|| invalid("a block that is not MSZIP"))?;
                std::mem::swap(&mut self.block, &mut self.former);
                inflate.reset(false);
                if !self.former.is_empty() {
                    // Each block may refer to the one before.
                    inflate.set_dictionary(&self.former).map_err(|error| invalid(error.to_string()))?;
                }
                self.block.resize(length, 0);
                let status = inflate.decompress(deflated, &mut self.block, FlushDecompress::Finish);
                let whole = matches!(status, Ok(Status::StreamEnd)) && inflate.total_out() == length as u64;
                if !whole {
                    return Err(invalid("a block doesn't decode"));
                }
            }
            Decoder::Quantum(quantum) => self.block = quantum.block(packed, length)?,
            Decoder::Lzx(lzx) => {
                // The crate asserts what a hostile block may break.
                let block = catch_unwind(AssertUnwindSafe(|| lzx.decompress_next(packed, length).map(<[u8]>::to_vec)));
                self.block = match block {
                    Ok(Ok(block)) => block,
                    Ok(Err(error)) => return Err(invalid(format!("a block doesn't decode: {error}"))),
                    Err(_) => return Err(invalid("a block doesn't decode")),
                };
            }
        }
        if self.block.len() == length { Ok(()) } else { Err(invalid("a block is not as long as it says")) }
    }
}

impl Read for FolderReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read >= self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let rest = self.block.get(self.read..).unwrap_or_default();
        let length = rest.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.read += length;
        self.position += length as u64;
        Ok(length)
    }
}

fn window(bits: u16) -> io::Result<WindowSize> {
    Ok(match bits {
        15 => WindowSize::KB32,
        16 => WindowSize::KB64,
        17 => WindowSize::KB128,
        18 => WindowSize::KB256,
        19 => WindowSize::KB512,
        20 => WindowSize::MB1,
        21 => WindowSize::MB2,
        _ => return Err(invalid("malformed window size")),
    })
}

/// [MS-CAB] section 3.1: words exclusive-or-ed, the last bytes in the reverse order.
fn checksum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words.iter().fold(0, |sum, word| sum ^ u32::from_le_bytes(*word));
    sum ^ rest.iter().fold(0, |last, byte| last << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_fields_may_have_anything_and_texts_are_no_cabinets() {
        let mut header = [b"MSCF".as_slice(), &[0; 32], &[0; 100]].concat();
        (header[16], header[26], header[28]) = (44, 1, 1);
        assert!(is_header(&header, 136));
        for at in [4, 7, 12, 20] {
            let mut other = header.clone();
            other[at] = 1;
            assert!(is_header(&other, 136), "{at}");
        }
        assert!(!is_header(
            b"MSCF, the four letters that a cabinet begins with, may be read at the beginning of a text.",
            1 << 20
        ));
        assert!(!is_header(b"MSCF", 4));
    }
}
