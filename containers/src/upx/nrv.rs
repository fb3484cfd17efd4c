//! NRV2B, NRV2D and NRV2E of the UCL library: copies and literals, told apart by bits that come in words between the bytes.

use std::io;

use crate::fields::invalid;
use crate::limits::Halt;

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
/// So many bytes come out between two looks at the clock.
const CHECK_BYTES: usize = 1 << 20;

struct Input<'p> {
    rest: &'p [u8],
    /// How many bytes of bits come at once, the least significant first.
    word_bytes: usize,
    held: u32,
    held_bits: u32,
}

impl Input<'_> {
    fn byte(&mut self) -> io::Result<u8> {
        let (byte, rest) = self.rest.split_first().ok_or_else(|| invalid("the data ends before its end mark"))?;
        self.rest = rest;
        Ok(*byte)
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

    /// A number that goes on until a bit says that it ends.
    fn number(&mut self) -> io::Result<u32> {
        let mut number = 1u32;
        loop {
            number = grown(number, self.bit()?)?;
            if self.bit()? == 1 {
                return Ok(number);
            }
        }
    }

    /// The same in the way of the later variants, which have a bit more a round.
    fn denser_number(&mut self) -> io::Result<u32> {
        let mut number = 1u32;
        loop {
            number = grown(number, self.bit()?)?;
            if self.bit()? == 1 {
                return Ok(number);
            }
            number = grown(number.wrapping_sub(1), self.bit()?)?;
        }
    }
}

fn grown(number: u32, bit: u32) -> io::Result<u32> {
    number.checked_mul(2).and_then(|twice| twice.checked_add(bit)).ok_or_else(|| invalid("a number that is too long"))
}

/// Decodes what becomes at most so many bytes, which its caller admitted. What came out before an error comes with it.
pub(super) fn decode(
    packed: &[u8],
    variant: Variant,
    word_bytes: usize,
    most: usize,
    check: &dyn Fn() -> Result<(), Halt>,
) -> (Vec<u8>, io::Result<()>) {
    let mut out = Vec::with_capacity(most);
    let mut input = Input { rest: packed, word_bytes, held: 0, held_bits: 0 };
    let result = tokens(&mut input, variant, most, &mut out, check);
    (out, result)
}

fn tokens(
    input: &mut Input<'_>,
    variant: Variant,
    most: usize,
    out: &mut Vec<u8>,
    check: &dyn Fn() -> Result<(), Halt>,
) -> io::Result<()> {
    let (mut last, mut checked) = (1u32, 0);
    loop {
        while input.bit()? == 1 {
            out.push(input.byte()?);
            if out.len() > most {
                return Err(invalid("more comes out than is said"));
            }
        }
        let Some((offset, length)) = copy(input, variant, &mut last)? else { return Ok(()) };
        let from = out.len().checked_sub(offset as usize).filter(|_| offset > 0);
        let from = from.ok_or_else(|| invalid("a copy from where nothing is"))?;
        if length > most.saturating_sub(out.len()) {
            return Err(invalid("more comes out than is said"));
        }
        for at in from..from + length {
            out.push(out.get(at).copied().unwrap_or_default());
        }
        if out.len() - checked >= CHECK_BYTES {
            checked = out.len();
            check()?;
        }
    }
}

/// From how far back is copied, and how much; none at the end.
fn copy(input: &mut Input<'_>, variant: Variant, last: &mut u32) -> io::Result<Option<(u32, usize)>> {
    let place = if variant == Variant::B { input.number()? } else { input.denser_number()? };
    let mut length = None;
    let offset = if place == 2 {
        *last
    } else {
        let place = place.checked_sub(3).ok_or_else(|| invalid("malformed offset"))?;
        let told = place.wrapping_mul(256).wrapping_add(input.byte()?.into());
        if told == END {
            return Ok(None);
        }
        *last = if variant == Variant::B {
            told
        } else {
            // The lowest bit begins the length.
            length = Some(!told & 1);
            told >> 1
        } + 1;
        *last
    };
    let first = match length {
        Some(bit) => bit,
        None => input.bit()?,
    };
    let length = match variant {
        Variant::B | Variant::D => match first * 2 + input.bit()? {
            0 => input.number()?.saturating_add(2),
            short => short,
        },
        Variant::E if first == 1 => 1 + input.bit()?,
        Variant::E if input.bit()? == 1 => 3 + input.bit()?,
        Variant::E => input.number()?.saturating_add(3),
    };
    let far = if variant == Variant::B { FAR_OF_B } else { FAR_OF_OTHERS };
    Ok(Some((offset, length as usize + usize::from(offset > far) + 1)))
}
