//! LZH and ARJ archives, over the decoders of the `delharc` crate.
//!
//! LZH: headers of levels 0 to 3, methods lh0 to lh7, lz4, lz5, lzs. ARJ: its headers are read here, after `technote.txt` of ARJ 3.10; methods 1
//! to 3 are that of lh6, method 4 is decoded here. Files that were garbled with a password are opened with one; GOST is not.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use delharc::decode::{Decoder, DecoderAny};
use delharc::{CompressionMethod, LhaHeader};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{array, invalid, le16, le32, unsupported};
use crate::format::{Format, whole_if};
use crate::outcome::{ExtractionOutcome, Protection};
use crate::parts::{Checked, Exactly, Out, cut_off, part, read_array, read_vec};
use crate::passwords::Passwords;

/// LZH.
pub(crate) static LZH: Format = Format {
    name: "lzh",
    description: "LZH",
    mime: "application/x-lzh-compressed",
    extension: "lzh",
    category: "A",
    beside: &[],
    probe: |probe| {
        let method =
            matches!(probe.head.get(2..7), Some([b'-', b'l', b'h' | b'z', _, b'-'] | [b'-', b'p', b'm', _, b'-']));
        whole_if(method && probe.head.get(20).is_some_and(|level| *level <= 3))
    },
    extractor: &Lzh,
};

/// ARJ.
pub(crate) static ARJ: Format = Format {
    name: "arj",
    description: "ARJ",
    mime: "application/x-arj",
    extension: "arj",
    category: "A",
    beside: &[],
    probe: |probe| {
        let header = le16(probe.head, 2).is_some_and(|bytes| (30..=HEADER_BYTES_MAX).contains(&u64::from(bytes)));
        // The main header says of itself that it is one.
        whole_if(probe.head.starts_with(&ARJ_MARK) && header && probe.head.get(10) == Some(&2))
    },
    extractor: &Arj,
};

/// A decoder of the crate as a reader of so many bytes. A panic of it is data that is broken.
struct Decoded<R> {
    decoder: DecoderAny<R>,
    left: u64,
}

impl<R: Read> Read for Decoded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        let into = into.get_mut(..most).unwrap_or_default();
        match catch_unwind(AssertUnwindSafe(|| self.decoder.fill_buffer(into).map_err(|error| error.to_string()))) {
            Ok(Ok(())) => {
                self.left -= most as u64;
                Ok(most)
            }
            Ok(Err(error)) => Err(invalid(error)),
            Err(_) => Err(invalid("it doesn't decode")),
        }
    }
}

struct Lzh;

impl Extractor for Lzh {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let (input, length) = (&mut *container.input, container.length);
        Out::new(budget, sink).walk(|offset, out| lzh_member(input, offset, length, out))
    }
}

/// Counts what is read.
struct Counted<'i> {
    input: &'i mut dyn ReadSeek,
    bytes: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Hands out the member at `offset`; tells where the next one is.
fn lzh_member(input: &mut dyn ReadSeek, offset: u64, length: u64, out: &mut Out<'_, '_>) -> io::Result<Option<u64>> {
    // Some writers leave out the zero at the end.
    if offset >= length {
        return Ok(None);
    }
    input.seek(io::SeekFrom::Start(offset))?;
    let mut counted = Counted { input: &mut *input, bytes: 0 };
    let header = catch_unwind(AssertUnwindSafe(|| LhaHeader::read(&mut counted).map_err(|error| error.to_string())));
    let header = header.unwrap_or_else(|_| Err("a malformed header".to_owned())).map_err(invalid)?;
    let data = offset + counted.bytes;
    let Some(header) = header else {
        if data < length {
            out.stored("behind the archive".to_owned(), input, data, length - data);
        }
        return Ok(None);
    };
    let next = data.checked_add(header.compressed_size).ok_or_else(|| invalid("malformed length"))?;
    let name = catch_unwind(AssertUnwindSafe(|| header.parse_pathname_to_str()));
    let name = display_name(name.unwrap_or_else(|_| "unreadable name".to_owned()).as_bytes());
    if header.is_directory() && header.compressed_size == 0 {
        return Ok(Some(next));
    }
    let packed = part(input, data, header.compressed_size)?;
    let decoder = header.compression_method().ok().map(|method| DecoderAny::new_from_compression(method, packed));
    let Some(decoder) = decoder.filter(DecoderAny::is_supported) else {
        let method = String::from_utf8_lossy(&header.compression).into_owned();
        out.outcome.note_broken(format!("member {name:?}: compression method {method} is not supported"));
        return Ok(Some(next));
    };
    let decoded = Decoded { decoder, left: header.original_size };
    let mut content = Summed16::new(decoded, header.file_crc);
    out.member(name, Some(header.original_size), &mut content);
    Ok(Some(next))
}

/// Ends with an error if what was read doesn't have the CRC-16 that the header says.
pub(crate) struct Summed16<R> {
    inner: R,
    sum: u16,
    expected: u16,
    done: bool,
}

impl<R> Summed16<R> {
    /// Checks `inner` against a checksum.
    pub(crate) fn new(inner: R, expected: u16) -> Self {
        Self { inner, sum: 0, expected, done: false }
    }
}

impl<R: Read> Read for Summed16<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(into)?;
        if read == 0 && !std::mem::replace(&mut self.done, true) && self.sum != self.expected {
            return Err(invalid("the checksum is wrong"));
        }
        for byte in into.get(..read).unwrap_or_default() {
            self.sum ^= u16::from(*byte);
            for _ in 0..8 {
                self.sum = if self.sum & 1 == 1 { self.sum >> 1 ^ 0xa001 } else { self.sum >> 1 };
            }
        }
        Ok(read)
    }
}

const ARJ_MARK: [u8; 2] = [0x60, 0xea];
/// The longest header, as ARJ itself has it.
const HEADER_BYTES_MAX: u64 = 2600;
/// Most extended headers behind one.
const EXTENDED_MAX: u32 = 64;

const GARBLED: u8 = 1;
const IN_NEXT_VOLUME: u8 = 4;
const FROM_PREVIOUS_VOLUME: u8 = 8;

struct Arj;

impl Extractor for Arj {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = arj(container, &mut out);
        out.end("the archive is broken", result)
    }
}

/// A header and where its data begins; none at the end mark.
fn arj_header(input: &mut dyn ReadSeek, offset: u64) -> io::Result<(Option<Vec<u8>>, u64)> {
    let [a, b, low, high] = read_array(input, offset)?;
    if [a, b] != ARJ_MARK {
        return Err(invalid(format!("no header at {offset}")));
    }
    let length = u64::from(u16::from_le_bytes([low, high]));
    if length == 0 {
        return Ok((None, offset + 4));
    }
    let header = read_vec(input, offset + 4, length, HEADER_BYTES_MAX)?;
    let mut at = offset + 4 + length;
    let claimed = u32::from_le_bytes(read_array(input, at)?);
    let mut crc = flate2::Crc::new();
    crc.update(&header);
    if crc.sum() != claimed {
        return Err(invalid(format!("the checksum of the header at {offset} is wrong")));
    }
    at += 4;
    for _ in 0..EXTENDED_MAX {
        let length = u64::from(u16::from_le_bytes(read_array(input, at)?));
        at += 2;
        if length == 0 {
            return Ok((Some(header), at));
        }
        at += length + 4;
    }
    Err(invalid("extended headers without end"))
}

fn arj(container: &mut Container<'_>, out: &mut Out<'_, '_>) -> io::Result<()> {
    let input = &mut *container.input;
    let (_, mut offset) = arj_header(input, 0)?;
    while !out.is_over() {
        let (header, data) = arj_header(input, offset)?;
        let Some(header) = header else {
            if data < container.length {
                out.stored("behind the archive".to_owned(), input, data, container.length - data);
            }
            return Ok(());
        };
        let packed_bytes = le32(&header, 12).ok_or_else(cut_off)?;
        arj_member(input, data, &header, container.passwords, out)?;
        offset = data + u64::from(packed_bytes);
    }
    Ok(())
}

fn arj_member(
    input: &mut dyn ReadSeek,
    data: u64,
    header: &[u8],
    passwords: &Passwords,
    out: &mut Out<'_, '_>,
) -> io::Result<()> {
    let [first_bytes, _, _, _, flags, method, kind, modifier] = array(header, 0).ok_or_else(cut_off)?;
    let fields = (le32(header, 12), le32(header, 16), le32(header, 20));
    let (Some(packed_bytes), Some(length), Some(crc)) = fields else { return Err(cut_off()) };
    let name = header.get(usize::from(first_bytes)..).and_then(|rest| rest.split(|byte| *byte == 0).next());
    let name = display_name(name.ok_or_else(|| invalid("malformed name"))?);
    let file = ArjFile { data, packed_bytes, length: u64::from(length), crc, method };
    // Directories, labels of disks and chapters have no content.
    if kind > 2 && packed_bytes == 0 {
        return Ok(());
    }
    if flags & (IN_NEXT_VOLUME | FROM_PREVIOUS_VOLUME) != 0 {
        out.outcome.note_broken(format!("member {name:?} begins or goes on in another volume"));
    }
    let mut password = None;
    if flags & GARBLED != 0 {
        // Nothing but what comes out tells a wrong password.
        password = passwords.iter().find(|password| {
            let key = Some((modifier, *password));
            let content = file.open(input, key).map(|content| Checked::new(content, Some(crc)));
            out.check().is_ok() && content.and_then(|mut content| io::copy(&mut content, &mut io::sink())).is_ok()
        });
        if password.is_none() {
            out.outcome.note_protected(Protection::Archive);
            return Ok(());
        }
        out.outcome.note_decrypted();
    }
    let content = file.open(input, password.map(|password| (modifier, password)));
    out.made(name, Some(file.length), content.map(|content| Checked::new(content, Some(file.crc))));
    Ok(())
}

struct ArjFile {
    data: u64,
    packed_bytes: u32,
    length: u64,
    crc: u32,
    method: u8,
}

impl ArjFile {
    fn open<'i>(&self, input: &'i mut dyn ReadSeek, key: Option<(u8, &str)>) -> io::Result<Box<dyn Read + 'i>> {
        let packed = part(input, self.data, u64::from(self.packed_bytes))?;
        let key = key.map(|(modifier, password)| password.bytes().map(|byte| byte.wrapping_add(modifier)).collect());
        let packed = Ungarbled { inner: packed, key: key.unwrap_or_default(), at: 0 };
        Ok(match self.method {
            0 => Box::new(Exactly::new(packed, self.length)),
            1..=3 => {
                let decoder = DecoderAny::new_from_compression(CompressionMethod::Lh6, packed);
                Box::new(Decoded { decoder, left: self.length })
            }
            4 => {
                let mut bytes = Vec::new();
                let mut packed = packed;
                crate::limits::admit_decoder(u64::from(self.packed_bytes).saturating_add(self.length))?;
                packed.read_to_end(&mut bytes)?;
                Box::new(io::Cursor::new(fastest(&bytes, self.length)?))
            }
            other => return Err(unsupported(format!("compression method {other} is not supported"))),
        })
    }
}

/// Exclusive-or with the password, each byte of which is moved by the header's modifier.
struct Ungarbled<R> {
    inner: R,
    key: Vec<u8>,
    at: usize,
}

impl<R: Read> Read for Ungarbled<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        if !self.key.is_empty() {
            let key = self.key.iter().cycle().skip(self.at);
            for (byte, key) in into.iter_mut().take(read).zip(key) {
                *byte ^= key;
            }
            self.at = (self.at + read) % self.key.len();
        }
        Ok(read)
    }
}

/// Method 4: lengths and distances in unary and binary, the most significant bit first.
fn fastest(packed: &[u8], length: u64) -> io::Result<Vec<u8>> {
    let mut bits = packed.iter().flat_map(|byte| (0..8).rev().map(move |bit| usize::from(byte >> bit & 1)));
    let mut number = |from: u32, to: u32| -> io::Result<usize> {
        let (mut sum, mut width) = (0, from);
        while width < to && bits.next().ok_or_else(cut_off)? == 1 {
            sum += 1 << width;
            width += 1;
        }
        let low = (0..width).try_fold(0, |low, _| Some(low << 1 | bits.next()?)).ok_or_else(cut_off)?;
        Ok(sum + low)
    };
    let mut out: Vec<u8> = Vec::new();
    while (out.len() as u64) < length {
        match number(0, 7)? {
            0 => out.push(number(8, 8)? as u8),
            count => {
                let distance = number(9, 13)? + 1;
                let from =
                    out.len().checked_sub(distance).ok_or_else(|| invalid("a reference before the beginning"))?;
                for at in from..from + count + 2 {
                    let byte = out.get(at).copied().unwrap_or_default();
                    out.push(byte);
                }
            }
        }
    }
    if out.len() as u64 == length { Ok(out) } else { Err(invalid("a file longer than it says")) }
}
