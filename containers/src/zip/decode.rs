//! The compression methods of ZIP members, each with bounded memory, whatever a header asks for.

use std::io::{self, BufRead, Read};

use lzma_rust2::{LzmaReader, XzReader};
use ppmd_rust::{Ppmd8Decoder, RestoreMethod};

use super::legacy::Legacy;
use crate::limits::admit_decoder;
use crate::stream::{DICTIONARY_KIB_MAX, ZSTD_WINDOW_LOG_MAX};

const STORED: u16 = 0;
const SHRUNK: u16 = 1;
/// Reduced with factors 1 to 4 are this and the next three.
const REDUCED: u16 = 2;
const REDUCED_LAST: u16 = 5;
const IMPLODED: u16 = 6;
pub(super) const DEFLATED: u16 = 8;
const DEFLATE64: u16 = 9;
const BZIP2: u16 = 12;
const LZMA: u16 = 14;
const ZSTD_OLD: u16 = 20;
const ZSTD: u16 = 93;
const XZ: u16 = 95;
const PPMD: u16 = 98;

/// Whether members of this method can be decoded.
pub(super) fn is_known(method: u16) -> bool {
    matches!(method, STORED..=IMPLODED | DEFLATED | DEFLATE64 | BZIP2 | LZMA | ZSTD_OLD | ZSTD | XZ | PPMD)
}

/// Decodes what `input` yields. The size is what the headers claim; LZMA and older methods need it to know where their data ends.
/// The flags are those of the header.
pub(super) fn decoder<'i>(
    method: u16,
    flags: u16,
    size_bytes: u64,
    mut input: impl BufRead + 'i,
) -> io::Result<Box<dyn Read + 'i>> {
    Ok(match method {
        STORED => Box::new(input),
        SHRUNK => Box::new(Legacy::shrink(input, size_bytes)?),
        REDUCED..=REDUCED_LAST => Box::new(Legacy::reduce(input, u32::from(method - REDUCED) + 1, size_bytes)?),
        IMPLODED => Box::new(Legacy::implode(input, flags, size_bytes)?),
        DEFLATED => Box::new(flate2::bufread::DeflateDecoder::new(input)),
        DEFLATE64 => Box::new(deflate64::Deflate64Decoder::with_buffer(input)),
        BZIP2 => Box::new(bzip2::bufread::BzDecoder::new(input)),
        LZMA => {
            // APPNOTE 5.8.8: version, length of the properties, the properties: one byte and the dictionary's size.
            let mut header = [0; 9];
            input.read_exact(&mut header)?;
            let [_, _, 5, 0, properties, dictionary @ ..] = header else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "malformed LZMA header"));
            };
            let dictionary_bytes = u32::from_le_bytes(dictionary);
            admit_decoder(u64::from(dictionary_bytes))?;
            Box::new(LzmaReader::new_with_props(input, size_bytes, properties, dictionary_bytes, None)?)
        }
        ZSTD | ZSTD_OLD => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        XZ => Box::new(XzReader::new_mem_limit(input, true, DICTIONARY_KIB_MAX)),
        PPMD => {
            // APPNOTE 5.10: order less one, memory less one in MiB, what happens when that is used up.
            let mut parameters = [0; 2];
            input.read_exact(&mut parameters)?;
            let parameters = u16::from_le_bytes(parameters);
            let memory_bytes = (u32::from(parameters >> 4 & 0xff) + 1) << 20;
            admit_decoder(u64::from(memory_bytes))?;
            let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "malformed PPMd parameters");
            let restore = RestoreMethod::from(u32::from(parameters >> 12));
            let decoder =
                Ppmd8Decoder::new(input, u32::from(parameters & 0xf) + 1, memory_bytes, restore).map_err(invalid)?;
            // It doesn't say where it ends: the header does.
            Box::new(decoder.take(size_bytes))
        }
        other => {
            let reason = format!("compression method {other} is not supported");
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
    })
}
