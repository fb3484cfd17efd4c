//! Files of Microsoft's COMPRESS.EXE, "SZDD". Format: as described in libmspack's `szdd.h` documentation.

use std::io::{self, Read};

use crate::fields::invalid;
use crate::parts::cut_off;

pub(super) const MAGIC: [u8; 8] = [b'S', b'Z', b'D', b'D', 0x88, 0xf0, 0x27, 0x33];
const WINDOW_BYTES: usize = 4096;

/// Decodes one file.
pub(super) struct Decoder<R> {
    input: R,
    left: u64,
    window: [u8; WINDOW_BYTES],
    at: usize,
    /// Eight flags, and how many of them were not taken.
    flags: u8,
    flags_left: u32,
    /// The match that is being copied: where from, and how much is left.
    from: usize,
    copy_left: usize,
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(mut input: R) -> io::Result<Self> {
        let mut header = [0; 14];
        input.read_exact(&mut header)?;
        let [magic @ .., b'A', _, a, b, c, d] = header else { return Err(invalid("an unknown method")) };
        if magic != MAGIC {
            return Err(invalid("no header"));
        }
        Ok(Self {
            input,
            left: u64::from(u32::from_le_bytes([a, b, c, d])),
            window: [b' '; WINDOW_BYTES],
            at: WINDOW_BYTES - 16,
            flags: 0,
            flags_left: 0,
            from: 0,
            copy_left: 0,
        })
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut_off(),
            _ => error,
        })?;
        Ok(byte[0])
    }

    fn next(&mut self) -> io::Result<u8> {
        if self.copy_left == 0 {
            if self.flags_left == 0 {
                (self.flags, self.flags_left) = (self.byte()?, 8);
            }
            let literal = self.flags & 1 == 1;
            self.flags >>= 1;
            self.flags_left -= 1;
            if literal {
                let byte = self.byte()?;
                return Ok(self.keep(byte));
            }
            let (low, high) = (usize::from(self.byte()?), usize::from(self.byte()?));
            (self.from, self.copy_left) = (low | (high & 0xf0) << 4, (high & 15) + 3);
        }
        self.copy_left -= 1;
        let byte = self.window.get(self.from).copied().unwrap_or_default();
        self.from = (self.from + 1) % WINDOW_BYTES;
        Ok(self.keep(byte))
    }

    fn keep(&mut self, byte: u8) -> u8 {
        if let Some(place) = self.window.get_mut(self.at) {
            *place = byte;
        }
        self.at = (self.at + 1) % WINDOW_BYTES;
        byte
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        for (filled, to) in into.iter_mut().take(most).enumerate() {
            match self.next() {
                Ok(byte) => *to = byte,
                // The input stays at its end: the error comes again.
                Err(_) if filled > 0 => return Ok(filled),
                Err(error) => return Err(error),
            }
            self.left -= 1;
        }
        Ok(most)
    }
}
