//! The LZO1X decoder. Format: "LZO stream format as understood by Linux's LZO decompressor" (Documentation/staging/lzo.rst).

use std::io;

use crate::fields::invalid;
use crate::parts::cut_off;

/// Decodes one block into at most `most` bytes.
pub(crate) fn decompress(packed: &[u8], most: usize) -> io::Result<Vec<u8>> {
    let mut decoder = Decoder { input: packed.iter(), out: Vec::new(), most };
    decoder.run()?;
    Ok(decoder.out)
}

struct Decoder<'i> {
    input: std::slice::Iter<'i, u8>,
    out: Vec<u8>,
    most: usize,
}

impl Decoder<'_> {
    fn byte(&mut self) -> io::Result<usize> {
        self.input.next().map(|byte| usize::from(*byte)).ok_or_else(cut_off)
    }

    fn half(&mut self) -> io::Result<usize> {
        Ok(self.byte()? | self.byte()? << 8)
    }

    fn literals(&mut self, length: usize) -> io::Result<()> {
        let rest = self.input.as_slice();
        let (literals, rest) = rest.split_at_checked(length).ok_or_else(cut_off)?;
        if self.out.len() + length > self.most {
            return Err(invalid("a block longer than it says"));
        }
        self.out.extend_from_slice(literals);
        self.input = rest.iter();
        Ok(())
    }

    fn copy(&mut self, distance: usize, length: usize) -> io::Result<()> {
        let from = self.out.len().checked_sub(distance).filter(|_| distance > 0);
        let from = from.ok_or_else(|| invalid("a reference before the beginning"))?;
        if self.out.len() + length > self.most {
            return Err(invalid("a block longer than it says"));
        }
        for at in from..from + length {
            let byte = self.out.get(at).copied().unwrap_or_default();
            self.out.push(byte);
        }
        Ok(())
    }

    /// A length whose low bits are zero goes on in bytes: each zero is 255 more.
    fn length(&mut self, short: usize, mask: usize) -> io::Result<usize> {
        if short != 0 {
            return Ok(short);
        }
        let mut length = mask;
        loop {
            match self.byte()? {
                0 => length = length.checked_add(255).filter(|length| *length <= self.most).ok_or_else(cut_off)?,
                byte => return Ok(length + byte),
            }
        }
    }

    fn run(&mut self) -> io::Result<()> {
        // How many literals came last: 0 to 3, or 4 for four and more.
        let mut state = 0;
        let mut instruction = self.byte()?;
        if instruction > 17 {
            let length = instruction - 17;
            self.literals(length)?;
            state = length.min(4);
            instruction = self.byte()?;
        }
        loop {
            let trailing = match instruction {
                0..16 if state == 0 => {
                    let length = self.length(instruction, 15)? + 3;
                    self.literals(length)?;
                    (state, instruction) = (4, self.byte()?);
                    continue;
                }
                0..16 => {
                    let high = self.byte()? << 2;
                    let low = instruction >> 2;
                    if state == 4 {
                        self.copy(high + low + 2049, 3)?;
                    } else {
                        self.copy(high + low + 1, 2)?;
                    }
                    instruction & 3
                }
                16..32 => {
                    let length = self.length(instruction & 7, 7)? + 2;
                    let half = self.half()?;
                    let distance = 16384 + ((instruction & 8) << 11) + (half >> 2);
                    if distance == 16384 {
                        return if self.input.as_slice().is_empty() {
                            Ok(())
                        } else {
                            Err(invalid("data behind the end of a block"))
                        };
                    }
                    self.copy(distance, length)?;
                    half & 3
                }
                32..64 => {
                    let length = self.length(instruction & 31, 31)? + 2;
                    let half = self.half()?;
                    self.copy((half >> 2) + 1, length)?;
                    half & 3
                }
                _ => {
                    let high = self.byte()? << 3;
                    let length =
                        if instruction >= 128 { 5 + (instruction >> 5 & 3) } else { 3 + (instruction >> 5 & 1) };
                    self.copy(high + (instruction >> 2 & 7) + 1, length)?;
                    instruction & 3
                }
            };
            self.literals(trailing)?;
            (state, instruction) = (trailing, self.byte()?);
        }
    }
}
