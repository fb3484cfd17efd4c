//! The methods of PKZIP before 2.0: shrink, reduce and implode. Format: APPNOTE 5.1 to 5.3, and H. Wennborg's "Shrink, Reduce, and Implode:
//! The Legacy Zip Compression Methods" for what it leaves open.
//!
//! None of them says where its data ends: the header does. What they repeat from before the beginning is zeros.

use std::io::{self, BufRead, Read};

use crate::fields::invalid;
use crate::parts::cut_off;

/// How far back repetitions reach: 8 KiB with implode, 4 KiB with reduce.
const WINDOW_BYTES: usize = 8 << 10;
/// So much is decoded before what lies behind the window is let go.
const BATCH_BYTES: usize = 32 << 10;

/// A method on its way through a member.
pub(super) struct Legacy<R> {
    bits: Bits<R>,
    method: Box<dyn Method<R>>,
    /// What was decoded: some of it given out, and kept as the window.
    decoded: Vec<u8>,
    given: usize,
    left: u64,
}

/// Decodes step by step.
trait Method<R> {
    /// Adds a byte at least to what was decoded.
    fn step(&mut self, bits: &mut Bits<R>, decoded: &mut Vec<u8>) -> io::Result<()>;
}

impl<R: BufRead> Legacy<R> {
    /// Shrink.
    pub(super) fn shrink(input: R, length: u64) -> io::Result<Self> {
        Ok(Self::new(Bits::new(input), Box::new(Shrink::new()), length))
    }

    /// Reduce, with a factor from 1 to 4.
    pub(super) fn reduce(input: R, factor: u32, length: u64) -> io::Result<Self> {
        let mut bits = Bits::new(input);
        let method = if length == 0 { Reduce::empty(factor) } else { Reduce::new(&mut bits, factor)? };
        Ok(Self::new(bits, Box::new(method), length))
    }

    /// Implode: the flags of its header say how large its window is and how many trees it has.
    pub(super) fn implode(input: R, flags: u16, length: u64) -> io::Result<Self> {
        let mut bits = Bits::new(input);
        let method = Implode::new(&mut bits, flags)?;
        Ok(Self::new(bits, Box::new(method), length))
    }

    fn new(bits: Bits<R>, method: Box<dyn Method<R>>, left: u64) -> Self {
        Self { bits, method, decoded: Vec::new(), given: 0, left }
    }
}

impl<R: BufRead> Read for Legacy<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || into.is_empty() {
            return Ok(0);
        }
        if self.given >= self.decoded.len() {
            let kept = self.decoded.len().saturating_sub(WINDOW_BYTES);
            self.decoded.drain(..kept);
            self.given = self.decoded.len();
            let most = usize::try_from(self.left).map_or(BATCH_BYTES, |left| left.min(BATCH_BYTES));
            while self.decoded.len() - self.given < most {
                if let Err(error) = self.method.step(&mut self.bits, &mut self.decoded) {
                    if self.decoded.len() == self.given {
                        return Err(error);
                    }
                    // What came before comes out; the next step fails again, since the bits are at their end or make no sense.
                    self.bits.failure = Some(error.to_string());
                    break;
                }
            }
        }
        let mut rest = self.decoded.get(self.given..).unwrap_or_default();
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        let read = rest.read(into.get_mut(..most).unwrap_or_default())?;
        self.given += read;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Repeats what was decoded some bytes ago.
fn repeat(decoded: &mut Vec<u8>, distance: usize, length: usize) {
    for _ in 0..length {
        let byte = decoded.len().checked_sub(distance).and_then(|at| decoded.get(at)).copied();
        decoded.push(byte.unwrap_or(0));
    }
}

/// Bits, the lowest of each byte first.
struct Bits<R> {
    input: R,
    bits: u32,
    count: u32,
    /// What ended it before.
    failure: Option<String>,
}

impl<R: BufRead> Bits<R> {
    fn new(input: R) -> Self {
        Self { input, bits: 0, count: 0, failure: None }
    }

    /// The next bits, at most 16.
    fn take(&mut self, count: u32) -> io::Result<u32> {
        if let Some(failure) = &self.failure {
            return Err(invalid(failure.clone()));
        }
        while self.count < count {
            let byte = self.input.fill_buf()?.first().copied().ok_or_else(cut_off)?;
            self.input.consume(1);
            self.bits |= u32::from(byte) << self.count;
            self.count += 8;
        }
        let taken = self.bits & ((1 << count) - 1);
        self.bits >>= count;
        self.count -= count;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(8)? as u8)
    }
}

/// The longest code of shrink has 13 bits.
const SHRINK_CODES: usize = 1 << 13;
const SHRINK_CONTROL: usize = 256;
const NONE: u16 = u16::MAX;

/// LZW whose table may be cleared of what leads nowhere.
struct Shrink {
    code_bits: u32,
    /// What each code's string begins with, another code, and its last byte.
    prefixes: Vec<u16>,
    last_bytes: Vec<u8>,
    /// The next code that may be free.
    next: usize,
    previous: Option<usize>,
    first_byte: u8,
}

impl Shrink {
    fn new() -> Self {
        let mut prefixes = vec![NONE; SHRINK_CODES];
        prefixes.iter_mut().take(SHRINK_CONTROL).for_each(|prefix| *prefix = 0);
        let last_bytes = (0..SHRINK_CODES).map(|code| code as u8).collect();
        Self { code_bits: 9, prefixes, last_bytes, next: SHRINK_CONTROL + 1, previous: None, first_byte: 0 }
    }

    /// Frees the codes that no other one's string begins with.
    fn clear(&mut self) {
        let mut is_prefix = vec![false; SHRINK_CODES];
        for prefix in self.prefixes.iter().skip(SHRINK_CONTROL + 1) {
            if let Some(is_prefix) = is_prefix.get_mut(usize::from(*prefix)) {
                *is_prefix = true;
            }
        }
        for (prefix, is_prefix) in self.prefixes.iter_mut().zip(is_prefix).skip(SHRINK_CONTROL + 1) {
            if !is_prefix {
                *prefix = NONE;
            }
        }
        self.next = SHRINK_CONTROL + 1;
    }

    fn is_free(&self, code: usize) -> bool {
        self.prefixes.get(code) == Some(&NONE)
    }

    /// Gives the next free code to the previous string and a byte; nothing if there is none.
    fn add(&mut self, byte: u8) {
        let Some(previous) = self.previous else { return };
        let free = (self.next..SHRINK_CODES).find(|code| self.is_free(*code));
        self.next = free.map_or(SHRINK_CODES, |code| code + 1);
        if let Some(code) = free
            && let (Some(prefix), Some(last)) = (self.prefixes.get_mut(code), self.last_bytes.get_mut(code))
        {
            (*prefix, *last) = (previous as u16, byte);
        }
    }
}

impl<R: BufRead> Method<R> for Shrink {
    fn step(&mut self, bits: &mut Bits<R>, decoded: &mut Vec<u8>) -> io::Result<()> {
        let code = loop {
            match bits.take(self.code_bits)? as usize {
                SHRINK_CONTROL => match bits.take(self.code_bits)? {
                    1 if self.code_bits < 13 => self.code_bits += 1,
                    2 => self.clear(),
                    _ => return Err(invalid("a malformed code")),
                },
                code => break code,
            }
        };
        // A code that is not there yet is the one that is made now: the previous string and its own first byte.
        let is_new = self.is_free(code);
        if is_new {
            if self.previous.is_none() {
                return Err(invalid("a malformed code"));
            }
            self.add(self.first_byte);
        }
        let begin = decoded.len();
        let mut at = code;
        loop {
            let last = self.last_bytes.get(at).copied().unwrap_or(0);
            decoded.push(last);
            if at < SHRINK_CONTROL {
                self.first_byte = last;
                break;
            }
            let prefix = self.prefixes.get(at).copied().unwrap_or(NONE);
            if prefix == NONE || decoded.len() - begin > SHRINK_CODES {
                return Err(invalid("a code that leads nowhere"));
            }
            at = usize::from(prefix);
        }
        decoded.get_mut(begin..).unwrap_or_default().reverse();
        if !is_new {
            self.add(self.first_byte);
        }
        self.previous = Some(code);
        Ok(())
    }
}

/// What begins a repetition in reduce.
const REDUCE_MARK: u8 = 144;

/// Bytes that are likely to follow another, and then repetitions.
struct Reduce {
    factor: u32,
    followers: Vec<Vec<u8>>,
    last: u8,
}

impl Reduce {
    fn empty(factor: u32) -> Self {
        Self { factor, followers: Vec::new(), last: 0 }
    }

    fn new<R: BufRead>(bits: &mut Bits<R>, factor: u32) -> io::Result<Self> {
        let mut followers = Vec::with_capacity(256);
        for _ in 0..256 {
            let count = bits.take(6)?;
            if count > 32 {
                return Err(invalid("more followers than there may be"));
            }
            followers.push((0..count).map(|_| bits.byte()).collect::<io::Result<Vec<u8>>>()?);
        }
        // They come from the last byte to the first.
        followers.reverse();
        Ok(Self { followers, ..Self::empty(factor) })
    }

    fn byte<R: BufRead>(&mut self, bits: &mut Bits<R>) -> io::Result<u8> {
        let followers = self.followers.get(usize::from(self.last)).map(Vec::as_slice).unwrap_or_default();
        self.last = if followers.is_empty() || bits.take(1)? == 1 {
            bits.byte()?
        } else {
            let index_bits = (followers.len() as u32 - 1).checked_ilog2().map_or(1, |log| log + 1);
            let follower = followers.get(bits.take(index_bits)? as usize);
            follower.copied().ok_or_else(|| invalid("a follower that is not there"))?
        };
        Ok(self.last)
    }
}

impl<R: BufRead> Method<R> for Reduce {
    fn step(&mut self, bits: &mut Bits<R>, decoded: &mut Vec<u8>) -> io::Result<()> {
        let byte = self.byte(bits)?;
        if byte != REDUCE_MARK {
            decoded.push(byte);
            return Ok(());
        }
        let code = self.byte(bits)?;
        if code == 0 {
            decoded.push(REDUCE_MARK);
            return Ok(());
        }
        let length_bits = 8 - self.factor;
        let longest = (1usize << length_bits) - 1;
        let mut length = usize::from(code) & longest;
        if length == longest {
            length += usize::from(self.byte(bits)?);
        }
        let distance = (usize::from(code >> length_bits) << 8) + usize::from(self.byte(bits)?) + 1;
        repeat(decoded, distance, length + 3);
        Ok(())
    }
}

const IMPLODE_LARGE_WINDOW: u16 = 2;
const IMPLODE_LITERAL_TREE: u16 = 4;
const IMPLODE_LENGTHS: usize = 64;

/// Literals, and repetitions in Shannon-Fano codes.
struct Implode {
    literals: Option<Tree>,
    lengths: Tree,
    distances: Tree,
    low_bits: u32,
}

impl Implode {
    fn new<R: BufRead>(bits: &mut Bits<R>, flags: u16) -> io::Result<Self> {
        let has_literals = flags & IMPLODE_LITERAL_TREE != 0;
        Ok(Self {
            literals: if has_literals { Some(Tree::read(bits, 256)?) } else { None },
            lengths: Tree::read(bits, IMPLODE_LENGTHS)?,
            distances: Tree::read(bits, IMPLODE_LENGTHS)?,
            low_bits: if flags & IMPLODE_LARGE_WINDOW != 0 { 7 } else { 6 },
        })
    }
}

impl<R: BufRead> Method<R> for Implode {
    fn step(&mut self, bits: &mut Bits<R>, decoded: &mut Vec<u8>) -> io::Result<()> {
        if bits.take(1)? == 1 {
            decoded.push(match &self.literals {
                Some(literals) => literals.symbol(bits)? as u8,
                None => bits.byte()?,
            });
            return Ok(());
        }
        let low = bits.take(self.low_bits)? as usize;
        let distance = self.distances.symbol(bits)? << self.low_bits | low;
        let mut length = self.lengths.symbol(bits)?;
        if length == IMPLODE_LENGTHS - 1 {
            length += usize::from(bits.byte()?);
        }
        repeat(decoded, distance + 1, length + if self.literals.is_some() { 3 } else { 2 });
        Ok(())
    }
}

/// A canonical code of up to 16 bits, each of them inverted.
struct Tree {
    counts: [u32; 17],
    symbols: Vec<u16>,
}

impl Tree {
    /// Reads the lengths of the codes of so many symbols: runs, in bytes of a count and a length.
    fn read<R: BufRead>(bits: &mut Bits<R>, symbols: usize) -> io::Result<Self> {
        let mut lengths = Vec::with_capacity(symbols);
        for _ in 0..=bits.byte()? {
            let run = bits.byte()?;
            lengths.extend(std::iter::repeat_n(usize::from(run & 15) + 1, usize::from(run >> 4) + 1));
        }
        let mut counts = [0; 17];
        for length in &lengths {
            if let Some(count) = counts.get_mut(*length) {
                *count += 1;
            }
        }
        let space: u32 = counts.iter().zip((0..17).rev()).map(|(count, bits)| count << bits).sum();
        if lengths.len() != symbols || space > 1 << 16 {
            return Err(invalid("a malformed tree"));
        }
        let mut symbols: Vec<u16> = (0..symbols as u16).collect();
        symbols.sort_by_key(|symbol| lengths.get(usize::from(*symbol)).copied());
        Ok(Self { counts, symbols })
    }

    fn symbol<R: BufRead>(&self, bits: &mut Bits<R>) -> io::Result<usize> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in self.counts.iter().skip(1) {
            code = code << 1 | (bits.take(1)? ^ 1);
            if let Some(at) = code.checked_sub(first).filter(|at| at < count) {
                let symbol = self.symbols.get((index + at) as usize);
                return symbol.map(|symbol| usize::from(*symbol)).ok_or_else(|| invalid("a malformed code"));
            }
            index += count;
            first = (first + count) << 1;
        }
        Err(invalid("a code of no symbol"))
    }
}
