//! The LZW of compress(1), and of those who took it over: codes of 9 to 16 bits, least significant bit first. It follows ncompress 4.2, as every
//! reader does, in its quirk that codes come in groups of eight, and that what is left of a group is skipped when their width changes.

use std::io::{self, Read};

use crate::container::read_full;
use crate::fields::invalid;

const CLEAR: u16 = 256;
const FIRST_BITS: u32 = 9;
const BITS_MAX: u32 = 16;

/// Decodes one stream.
pub(crate) struct Decoder<R> {
    input: R,
    bits_max: u32,
    /// Whether code 256 clears the table.
    block_mode: bool,
    bits: u32,
    /// Codes of a group of eight that were not taken yet, and where the next one begins.
    group: Vec<u8>,
    group_at: u32,
    /// For each code beyond 255 the code before it and its last byte.
    prefix: Vec<u16>,
    suffix: Vec<u8>,
    previous: Option<u16>,
    first_byte: u8,
    /// What was decoded and not read yet, the last byte first.
    stack: Vec<u8>,
    done: bool,
    /// What went wrong behind what was handed out last.
    failure: Option<io::Error>,
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(mut input: R) -> io::Result<Self> {
        let mut header = [0; 3];
        input.read_exact(&mut header)?;
        let [0x1f, 0x9d, flags] = header else { return Err(invalid("no header")) };
        Self::without_header(input, u32::from(flags & 0x1f), flags & 0x80 != 0)
    }

    /// The same for a stream whose longest code is told elsewhere, and whether a code clears the table.
    pub(crate) fn without_header(input: R, bits_max: u32, block_mode: bool) -> io::Result<Self> {
        if !(FIRST_BITS..=BITS_MAX).contains(&bits_max) {
            return Err(invalid("malformed code width"));
        }
        let mut decoder = Self {
            input,
            bits_max,
            block_mode,
            bits: FIRST_BITS,
            group: Vec::new(),
            group_at: 0,
            prefix: Vec::new(),
            suffix: Vec::new(),
            previous: None,
            first_byte: 0,
            stack: Vec::new(),
            done: false,
            failure: None,
        };
        decoder.clear();
        Ok(decoder)
    }

    fn clear(&mut self) {
        let first_free = if self.block_mode { 257 } else { 256 };
        self.prefix.resize(first_free, 0);
        self.suffix.clear();
        self.suffix.extend(0..=u8::MAX);
        self.suffix.resize(first_free, 0);
    }

    /// The next code, or none at the end of the input.
    fn code(&mut self) -> io::Result<Option<u16>> {
        if self.group_at + self.bits > self.group.len() as u32 * 8 {
            // Less than a code left is the padding of the last one.
            self.group.resize(self.bits as usize, 0);
            let read = read_full(&mut self.input, &mut self.group)?;
            self.group.truncate(read);
            self.group_at = 0;
            if (read as u32) * 8 < self.bits {
                return Ok(None);
            }
        }
        let byte = (self.group_at / 8) as usize;
        let mut word = [0; 4];
        for (to, from) in word.iter_mut().zip(self.group.get(byte..).unwrap_or_default()) {
            *to = *from;
        }
        let code = u32::from_le_bytes(word) >> (self.group_at % 8) & ((1 << self.bits) - 1);
        self.group_at += self.bits;
        Ok(Some(code as u16))
    }

    /// Skips the rest of the group and goes on with codes of another width.
    fn widen(&mut self, bits: u32) {
        self.bits = bits;
        self.group.clear();
        self.group_at = 0;
    }

    /// Decodes one code onto the stack.
    fn advance(&mut self) -> io::Result<()> {
        // Codes grow when the next free one no longer fits; at the greatest width they stay.
        if self.prefix.len() as u32 > (1 << self.bits) - 1 && self.bits < self.bits_max {
            self.widen(self.bits + 1);
        }
        let Some(code) = self.code()? else {
            self.done = true;
            return Ok(());
        };
        let Some(previous) = self.previous else {
            self.first_byte = u8::try_from(code).map_err(|_| invalid("the first code is no byte"))?;
            self.previous = Some(code);
            self.stack.push(self.first_byte);
            return Ok(());
        };
        if code == CLEAR && self.block_mode {
            self.clear();
            self.previous = None;
            self.widen(FIRST_BITS);
            return Ok(());
        }
        let free = self.prefix.len();
        let mut at = code;
        if usize::from(code) >= free {
            if usize::from(code) > free {
                return Err(invalid("a code that stands for nothing yet"));
            }
            self.stack.push(self.first_byte);
            at = previous;
        }
        // Each code's prefix is a lower code, so this ends.
        while at > 255 {
            self.stack.push(self.suffix.get(usize::from(at)).copied().unwrap_or_default());
            at = self.prefix.get(usize::from(at)).copied().unwrap_or_default();
        }
        self.first_byte = at as u8;
        self.stack.push(self.first_byte);
        if free < 1 << self.bits_max {
            self.prefix.push(previous);
            self.suffix.push(self.first_byte);
        }
        self.previous = Some(code);
        Ok(())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failure.take() {
            self.done = true;
            return Err(error);
        }
        let mut filled = 0;
        for to in into.iter_mut() {
            while self.stack.is_empty() && !self.done {
                match self.advance() {
                    Ok(()) => {}
                    // What came before the error is handed out first.
                    Err(error) if filled > 0 => {
                        self.failure = Some(error);
                        return Ok(filled);
                    }
                    Err(error) => return Err(error),
                }
            }
            match self.stack.pop() {
                Some(byte) => *to = byte,
                None => break,
            }
            filled += 1;
        }
        Ok(filled)
    }
}
