//! VBA source as it lies in a document: compressed, behind the compiled code of its module. Format: [MS-OVBA] 2.3.4 and 2.4.1.

use std::io::{self, Read};

use crate::container::read_full;
use crate::fields::{find, invalid, le16, le32, utf16_le};

/// What a piece of compressed source stands for.
const CHUNK_BYTES: usize = 4096;
/// What a compressed container begins with.
const SIGNATURE: u8 = 1;
/// How every module's source begins, "Attribute", as it is compressed: a byte of flags before every eight tokens.
const BEGINNING: &[u8] = b"\0Attribut";

/// A module, as the project's directory names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// The stream that it lies in.
    pub(super) stream: String,
    /// Where in the stream its source begins.
    pub(super) offset: u32,
}

/// The modules that a decompressed `dir` stream names, and whether it could be read to its end.
pub(super) fn modules(dir: &[u8]) -> (Vec<Module>, bool) {
    const PROJECT_VERSION: u16 = 0x09;
    const STREAM_NAME: u16 = 0x1a;
    const STREAM_NAME_UTF16: u16 = 0x32;
    const OFFSET: u16 = 0x31;
    let mut modules = Vec::new();
    let mut stream = String::new();
    let mut at = 0;
    while let (Some(id), Some(size)) = (le16(dir, at), le32(dir, at + 2)) {
        let data = at + 6;
        // The one record whose length leaves out its last two bytes.
        let size = if id == PROJECT_VERSION { 6 } else { size as usize };
        let Some(record) = data.checked_add(size).and_then(|end| dir.get(data..end)) else { break };
        match id {
            STREAM_NAME => stream = String::from_utf8_lossy(record).into_owned(),
            STREAM_NAME_UTF16 => stream = utf16_le(record),
            OFFSET => {
                if let Some(offset) = le32(record, 0) {
                    modules.push(Module { stream: std::mem::take(&mut stream), offset });
                }
            }
            _ => {}
        }
        at = data + size;
    }
    (modules, at == dir.len())
}

/// Where the source of a module begins that no directory names: behind a signature and the header of a piece.
pub(super) fn find_source(stream: &[u8]) -> Option<usize> {
    find(stream, BEGINNING)?.checked_sub(3).filter(|at| stream.get(*at) == Some(&SIGNATURE))
}

/// Decompresses what `input` yields.
pub(super) struct Decompressor<R> {
    input: R,
    begun: bool,
    chunk: Vec<u8>,
    given: usize,
}

impl<R: Read> Decompressor<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, begun: false, chunk: Vec::new(), given: 0 }
    }

    /// Decompresses the next piece. False at the end.
    fn next_chunk(&mut self) -> io::Result<bool> {
        if !std::mem::replace(&mut self.begun, true) {
            let mut signature = [0];
            if read_full(&mut self.input, &mut signature)? == 0 || signature != [SIGNATURE] {
                return Err(invalid("no compressed source"));
            }
        }
        let mut header = [0; 2];
        match read_full(&mut self.input, &mut header)? {
            0 => return Ok(false),
            2 => {}
            _ => return Err(invalid("the source ends inside a header")),
        }
        let header = u16::from_le_bytes(header);
        if header & 0x7000 != 0x3000 {
            // What follows the last piece in the stream is none.
            return if self.chunk.is_empty() { Err(invalid("no compressed source")) } else { Ok(false) };
        }
        let mut data = vec![0; usize::from(header & 0x0fff) + 1];
        let read = read_full(&mut self.input, &mut data)?;
        let is_cut = read < data.len();
        data.truncate(read);
        self.given = 0;
        self.chunk = if header & 0x8000 != 0 { decompress(&data)? } else { data };
        if is_cut && self.chunk.is_empty() { Err(invalid("the source ends inside a piece")) } else { Ok(true) }
    }
}

/// Decompresses one piece: tokens in groups of eight, each a byte or a copy of what came before in the piece.
fn decompress(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(CHUNK_BYTES);
    let mut at = 0;
    while let Some(flags) = data.get(at) {
        at += 1;
        for bit in 0..8 {
            if out.len() > CHUNK_BYTES {
                return Err(invalid("a piece of source longer than a piece can be"));
            }
            if flags & (1 << bit) == 0 {
                let Some(byte) = data.get(at) else { return Ok(out) };
                out.push(*byte);
                at += 1;
                continue;
            }
            let Some(token) = le16(data, at) else { return Ok(out) };
            at += 2;
            // The further into the piece, the more bits the distance takes of the sixteen: at least four.
            let distance_bits = (usize::BITS - out.len().saturating_sub(1).leading_zeros()).clamp(4, 12);
            let length = usize::from(token & (0xffff >> distance_bits)) + 3;
            let distance = usize::from(token >> (16 - distance_bits)) + 1;
            let from = out.len().checked_sub(distance).ok_or_else(|| invalid("source that copies from nowhere"))?;
            for copied in from..from + length {
                let byte = out.get(copied).copied().unwrap_or_default();
                out.push(byte);
            }
        }
    }
    Ok(out)
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given >= self.chunk.len() {
            if into.is_empty() || !self.next_chunk()? {
                return Ok(0);
            }
        }
        let rest = self.chunk.get(self.given..).unwrap_or_default();
        let read = rest.len().min(into.len());
        if let (Some(into), Some(rest)) = (into.get_mut(..read), rest.get(..read)) {
            into.copy_from_slice(rest);
        }
        self.given += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decompressed(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decompressor::new(data).read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn the_examples_of_the_specification_decompress() {
        // [MS-OVBA] 3.2.1 and 3.2.3.
        let none = b"\x01\x19\xb0\x00abcdefgh\x00ijklmnop\x00qrstuv.";
        assert_eq!(decompressed(none).unwrap(), b"abcdefghijklmnopqrstuv.");
        let maximum = b"\x01\x03\xb0\x02a\x45\x00";
        assert_eq!(decompressed(maximum).unwrap(), [b'a'; 73]);
        assert!(decompressed(b"\x01\x03\xb0\x02a\x45\xff").is_err());
        assert!(decompressed(b"").is_err());
    }

    #[test]
    fn modules_are_named_with_their_offsets() {
        let mut dir = Vec::new();
        let mut record = |id: u16, size: u32, data: &[u8]| {
            dir.extend_from_slice(&id.to_le_bytes());
            dir.extend_from_slice(&size.to_le_bytes());
            dir.extend_from_slice(data);
        };
        record(0x09, 4, &[1, 0, 0, 0, 2, 0]);
        record(0x1a, 2, b"M1");
        record(0x32, 4, b"M\x002\0");
        record(0x31, 4, &[7, 0, 0, 0]);
        record(0x1a, u32::MAX, b"");
        let named = vec![Module { stream: "M2".to_owned(), offset: 7 }];
        assert_eq!(modules(&dir), (named.clone(), false));
        assert_eq!(modules(&dir[..dir.len() - 6]), (named, true));
    }
}
