//! NRV2B, NRV2D and NRV2E of the UCL library: copies and literals, told apart by bits that come in words between the bytes.

use std::io::{self, Read};

use crate::fields::invalid;

/// Which of the three it is: they tell offsets and lengths of copies differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    B,
    D,
    E,
}

/// Copies from further away are longer by one.
const FAR_OF_B: u32 = 0xd00;
const FAR_OF_OTHERS: u32 = 0x500;
/// An offset that says that this was all.
const END: u32 = u32::MAX;
/// How much of a copy is made at once: it may be as long as all that comes out.
const COPIED_BYTES_MAX: usize = 64 * 1024;

/// Decodes what becomes at most so many bytes, which its caller admitted. What came before an error is handed out first.
pub(super) struct Decoder {
    packed: Vec<u8>,
    at: usize,
    variant: Variant,
    /// How many bytes of bits come at once, the least significant first.
    word_bytes: usize,
    held: u32,
    held_bits: u32,
    /// All that came out: a copy may come from its beginning.
    out: Vec<u8>,
    /// How much of it was read.
    read: usize,
    most: usize,
    last_offset: u32,
    /// A copy that is not done: from how far back, and how much.
    copy: (usize, usize),
    done: bool,
    failure: Option<io::Error>,
}

impl Decoder {
    pub(super) fn new(packed: Vec<u8>, variant: Variant, word_bytes: usize, most: usize) -> Self {
        let out = Vec::with_capacity(most);
        let (held, held_bits, last_offset) = (0, 0, 1);
        Self {
            packed,
            at: 0,
            variant,
            word_bytes,
            held,
            held_bits,
            out,
            read: 0,
            most,
            last_offset,
            copy: (0, 0),
            done: false,
            failure: None,
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let byte = self.packed.get(self.at).copied().ok_or_else(|| invalid("the data ends before its end mark"))?;
        self.at += 1;
        Ok(byte)
    }

    fn bit(&mut self) -> io::Result<u32> {
        if self.held_bits == 0 {
            self.held = 0;
            for at in 0..self.word_bytes {
                self.held |= u32::from(self.byte()?) << (8 * at);
            }
            self.held_bits = 8 * self.word_bytes as u32;
        }
        self.held_bits -= 1;
        Ok(self.held >> self.held_bits & 1)
    }

    /// A number that goes on until a bit says that it ends. In the denser way of the later variants a round has a bit more.
    fn number(&mut self, is_denser: bool) -> io::Result<u32> {
        let mut number = 1u32;
        loop {
            number = grown(number, self.bit()?)?;
            if self.bit()? == 1 {
                return Ok(number);
            }
            if is_denser {
                number = grown(number.wrapping_sub(1), self.bit()?)?;
            }
        }
    }

    /// Decodes one literal, or some of a copy.
    fn advance(&mut self) -> io::Result<()> {
        let (back, left) = self.copy;
        if left > 0 {
            let from = self.out.len() - back;
            let count = left.min(COPIED_BYTES_MAX);
            for at in from..from + count {
                self.out.push(self.out.get(at).copied().unwrap_or_default());
            }
            self.copy = (back, left - count);
            return Ok(());
        }
        let room = self.most.saturating_sub(self.out.len());
        if self.bit()? == 1 {
            let byte = self.byte()?;
            if room == 0 {
                return Err(invalid("more comes out than is said"));
            }
            self.out.push(byte);
            return Ok(());
        }
        match self.next_copy()? {
            None => self.done = true,
            Some((offset, _)) if offset as usize > self.out.len() => {
                return Err(invalid("a copy from where nothing is"));
            }
            Some((_, length)) if length > room => return Err(invalid("more comes out than is said")),
            Some((offset, length)) => self.copy = (offset as usize, length),
        }
        Ok(())
    }

    /// From how far back is copied, and how much; none at the end.
    fn next_copy(&mut self) -> io::Result<Option<(u32, usize)>> {
        let place = self.number(self.variant != Variant::B)?;
        let mut length = None;
        if place != 2 {
            let place = place.checked_sub(3).ok_or_else(|| invalid("malformed offset"))?;
            let told = place.wrapping_mul(256).wrapping_add(self.byte()?.into());
            if told == END {
                return Ok(None);
            }
            self.last_offset = if self.variant == Variant::B {
                told
            } else {
                // The lowest bit begins the length.
                length = Some(!told & 1);
                told >> 1
            } + 1;
        }
        let offset = self.last_offset;
        let first = match length {
            Some(bit) => bit,
            None => self.bit()?,
        };
        let variant = self.variant;
        let length = match variant {
            Variant::B | Variant::D => match first * 2 + self.bit()? {
                0 => self.number(false)?.saturating_add(2),
                short => short,
            },
            Variant::E if first == 1 => 1 + self.bit()?,
            Variant::E if self.bit()? == 1 => 3 + self.bit()?,
            Variant::E => self.number(false)?.saturating_add(3),
        };
        let far = if self.variant == Variant::B { FAR_OF_B } else { FAR_OF_OTHERS };
        Ok(Some((offset, length as usize + usize::from(offset > far) + 1)))
    }
}

fn grown(number: u32, bit: u32) -> io::Result<u32> {
    number.checked_mul(2).and_then(|twice| twice.checked_add(bit)).ok_or_else(|| invalid("a number that is too long"))
}

impl Read for Decoder {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.out.len() - self.read < into.len() && !self.done && self.failure.is_none() {
            if let Err(error) = self.advance() {
                self.failure = Some(error);
            }
        }
        let fresh = self.out.get(self.read..).unwrap_or_default();
        if fresh.is_empty()
            && !into.is_empty()
            && let Some(error) = self.failure.take()
        {
            self.done = true;
            return Err(error);
        }
        let count = fresh.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..count), fresh.get(..count)) {
            to.copy_from_slice(from);
        }
        self.read += count;
        Ok(count)
    }
}
