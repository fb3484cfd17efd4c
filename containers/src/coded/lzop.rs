//! Files of lzop. Format: lzop 1.04's own source is the only description there is; the layout is that of its `lzop.h`.

use std::io::{self, Read};

use super::{lzo, next_magic};
use crate::fields::{invalid, unsupported};
use crate::parts::{adler32, cut_off};

pub(super) const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1a, b'\n'];
/// lzop makes blocks of 256 KiB; its reader takes up to this.
const BLOCK_BYTES_MAX: u32 = 64 << 20;
/// What this reader holds of a block: more than lzop ever writes.
const HELD_BYTES_MAX: u32 = 16 << 20;

const ADLER_PLAIN: u32 = 1;
const ADLER_PACKED: u32 = 2;
const EXTRA_FIELD: u32 = 0x40;
const CRC_PLAIN: u32 = 0x100;
const CRC_PACKED: u32 = 0x200;
const FILTER: u32 = 0x800;

/// Decodes one file after the other.
pub(super) struct Decoder<R> {
    input: R,
    /// The flags of the file whose blocks come.
    flags: Option<u32>,
    block: io::Cursor<Vec<u8>>,
    done: bool,
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, flags: None, block: io::Cursor::default(), done: false }
    }

    fn number<const N: usize>(&mut self) -> io::Result<u32> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn skip(&mut self, length: u32) -> io::Result<()> {
        let length = u64::from(length);
        let skipped = io::copy(&mut (&mut self.input).take(length), &mut io::sink())?;
        if skipped == length { Ok(()) } else { Err(cut_off()) }
    }

    fn header(&mut self) -> io::Result<u32> {
        let version = self.number::<2>()?;
        self.number::<2>()?;
        let is_new = version >= 0x0940;
        if is_new {
            self.number::<2>()?;
        }
        let method = self.number::<1>()?;
        if !(1..=3).contains(&method) {
            return Err(unsupported(format!("method {method}")));
        }
        if is_new {
            self.number::<1>()?;
        }
        let flags = self.number::<4>()?;
        if flags & FILTER != 0 {
            return Err(unsupported("a filter"));
        }
        // Mode and time, of which the upper half is new.
        self.skip(if is_new { 12 } else { 8 })?;
        let name_bytes = self.number::<1>()?;
        self.skip(name_bytes + 4)?;
        if flags & EXTRA_FIELD != 0 {
            let length = self.number::<4>()?;
            self.skip(length)?;
            self.number::<4>()?;
        }
        Ok(flags)
    }

    /// Decodes the next block. False at the end of the file's blocks.
    fn next_block(&mut self, flags: u32) -> io::Result<bool> {
        let length = self.number::<4>()?;
        if length == 0 {
            return Ok(false);
        }
        let packed_bytes = self.number::<4>()?;
        if packed_bytes > length || length > BLOCK_BYTES_MAX {
            return Err(invalid("malformed block length"));
        }
        crate::limits::admit_decoder(u64::from(length))?;
        if length > HELD_BYTES_MAX {
            return Err(unsupported(format!("a block of {length} bytes")));
        }
        let adler = if flags & ADLER_PLAIN != 0 { Some(self.number::<4>()?) } else { None };
        let crc = if flags & CRC_PLAIN != 0 { Some(self.number::<4>()?) } else { None };
        if packed_bytes < length {
            let sums = [ADLER_PACKED, CRC_PACKED].into_iter().filter(|sum| flags & sum != 0).count();
            self.skip(sums as u32 * 4)?;
        }
        let mut packed = Vec::new();
        (&mut self.input).take(u64::from(packed_bytes)).read_to_end(&mut packed)?;
        if packed.len() < packed_bytes as usize {
            return Err(cut_off());
        }
        let plain = if packed_bytes == length { packed } else { lzo::decompress(&packed, length as usize)? };
        let mut sum = flate2::Crc::new();
        sum.update(&plain);
        let fits = adler.is_none_or(|adler| adler == adler32(&plain)) && crc.is_none_or(|crc| crc == sum.sum());
        if plain.len() < length as usize || !fits {
            return Err(invalid("a block's checksum or length is wrong"));
        }
        self.block = io::Cursor::new(plain);
        Ok(true)
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.block.read(into)?;
            if read > 0 || self.done || into.is_empty() {
                return Ok(read);
            }
            if let Some(flags) = self.flags {
                if !self.next_block(flags)? {
                    self.flags = None;
                }
            } else {
                match next_magic(&mut self.input)? {
                    None => self.done = true,
                    Some(MAGIC) => self.flags = Some(self.header()?),
                    Some(_) => return Err(invalid("data follows the last block")),
                }
            }
        }
    }
}
