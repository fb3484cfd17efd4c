//! What the readers of archive formats have in common: parts of an input as streams, and the handing out of members together
//! with a note of what was wrong with them.
//!
//! Invariant: nothing here allocates by what a file claims, except [`read_vec`], which is given the most it may.

use std::io::{self, BufReader, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{ReadSeek, Sink, hand_out, read_full};
use crate::fields::{self, invalid};
use crate::limits::Halt;
use crate::outcome::ExtractionOutcome;

/// How much is read from a container at once.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;

/// The error of an input that ends too early.
pub(crate) fn cut_off() -> io::Error {
    fields::cut_off("the data ends too early")
}

/// The bytes at `offset`, all `length` of them, which must be no more than `most`.
pub(crate) fn read_vec(input: &mut dyn ReadSeek, offset: u64, length: u64, most: u64) -> io::Result<Vec<u8>> {
    if length > most {
        return Err(invalid(format!("a structure of {length} bytes, longer than any real one")));
    }
    input.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    (&mut *input).take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(cut_off()) }
}

/// The `N` bytes at `offset`.
pub(crate) fn read_array<const N: usize>(input: &mut dyn ReadSeek, offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.seek(SeekFrom::Start(offset))?;
    if read_full(input, &mut bytes)? == N { Ok(bytes) } else { Err(cut_off()) }
}

/// The first `most` bytes; less if there are no more.
pub(crate) fn read_start(input: &mut dyn ReadSeek, most: u64) -> io::Result<Vec<u8>> {
    input.seek(SeekFrom::Start(0))?;
    fields::read_at_most(input, most)
}

/// Reads what `next` gives a byte at a time, none at its end. What came before an error is handed out first, and the error kept in
/// `failure` for the next call.
pub(crate) fn read_bytes(
    into: &mut [u8],
    failure: &mut Option<io::Error>,
    mut next: impl FnMut() -> io::Result<Option<u8>>,
) -> io::Result<usize> {
    if let Some(error) = failure.take() {
        return Err(error);
    }
    for (at, to) in into.iter_mut().enumerate() {
        match next() {
            Ok(Some(byte)) => *to = byte,
            Ok(None) => return Ok(at),
            Err(error) if at == 0 => return Err(error),
            Err(error) => {
                *failure = Some(error);
                return Ok(at);
            }
        }
    }
    Ok(into.len())
}

/// The Adler-32 of some bytes: RFC 1950, section 8.2.
pub(crate) fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    // So many bytes can't overflow 32 bits.
    for chunk in bytes.chunks(5552) {
        for byte in chunk {
            a += u32::from(*byte);
            b += a;
        }
        (a, b) = (a % 65_521, b % 65_521);
    }
    b << 16 | a
}

/// The `length` bytes at `offset` as a stream; an error if the input ends before.
pub(crate) fn part(
    input: &mut dyn ReadSeek,
    offset: u64,
    length: u64,
) -> io::Result<BufReader<Exactly<&mut dyn ReadSeek>>> {
    input.seek(SeekFrom::Start(offset))?;
    Ok(BufReader::with_capacity(BUFFER_BYTES, Exactly { inner: input, left: length }))
}

/// Reads so many bytes and then ends; an error if the inner reader ends before.
pub(crate) struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R> Exactly<R> {
    /// So many bytes of `inner`.
    pub(crate) fn new(inner: R, length: u64) -> Self {
        Self { inner, left: length }
    }

    /// Whether all of them were read.
    pub(crate) fn is_read(&self) -> bool {
        self.left == 0
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        if most == 0 {
            return Ok(0);
        }
        match self.inner.read(into.get_mut(..most).unwrap_or_default())? {
            0 => Err(cut_off()),
            read => {
                self.left = self.left.saturating_sub(read as u64);
                Ok(read)
            }
        }
    }
}

/// Ends with an error if what was read doesn't have the CRC-32 that the container says.
pub(crate) struct Checked<R> {
    inner: R,
    expected: Option<u32>,
    crc: flate2::Crc,
}

impl<R> Checked<R> {
    /// Checks `inner` against a checksum, if there is one.
    pub(crate) fn new(inner: R, expected: Option<u32>) -> Self {
        Self { inner, expected, crc: flate2::Crc::new() }
    }
}

impl<R> Checked<R> {
    /// The checksum of what was read.
    pub(crate) fn sum(&self) -> u32 {
        self.crc.sum()
    }
}

impl<R> Checked<Exactly<R>> {
    /// Whether all of it was read, whatever its checksum.
    pub(crate) fn is_read(&self) -> bool {
        self.inner.is_read()
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(into)?;
        if read == 0 && self.expected.take().is_some_and(|expected| expected != self.crc.sum()) {
            return Err(invalid("the checksum is wrong"));
        }
        self.crc.update(into.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// Where members go, and what is noted on the way.
pub(crate) struct Out<'o, 's> {
    pub(crate) budget: &'o Budget,
    pub(crate) sink: &'o mut Sink<'s>,
    pub(crate) outcome: ExtractionOutcome,
}

impl<'o, 's> Out<'o, 's> {
    /// Nothing handed out, nothing noted.
    pub(crate) fn new(budget: &'o Budget, sink: &'o mut Sink<'s>) -> Self {
        Self { budget, sink, outcome: ExtractionOutcome::default() }
    }

    /// Hands out a member; notes what its content ended with. False if it ended with an error or nothing more may come out.
    pub(crate) fn member(&mut self, name: String, length: Option<u64>, content: &mut dyn Read) -> bool {
        let shown = name.clone();
        match hand_out(name, length, content, self.budget, self.sink) {
            Ok(None) => true,
            Ok(Some(error)) => {
                self.outcome.note_error(&format!("member {shown:?}"), &error);
                false
            }
            Err(halt) => {
                self.outcome.note_halt(halt);
                false
            }
        }
    }

    /// Hands out the `length` bytes at `offset`.
    pub(crate) fn stored(&mut self, name: String, input: &mut dyn ReadSeek, offset: u64, length: u64) -> bool {
        match part(input, offset, length) {
            Ok(mut content) => self.member(name, Some(length), &mut content),
            Err(error) => {
                self.outcome.note_error(&format!("member {name:?}"), &error);
                false
            }
        }
    }

    /// Hands out what a reader could be made for, or notes why it could not.
    pub(crate) fn made<R: Read>(&mut self, name: String, length: Option<u64>, content: io::Result<R>) -> bool {
        match content {
            Ok(mut content) => self.member(name, length, &mut content),
            Err(error) => {
                self.outcome.note_error(&format!("member {name:?}"), &error);
                false
            }
        }
    }

    /// Whether the extractor must return. Asked in every loop.
    pub(crate) fn is_over(&mut self) -> bool {
        if !self.outcome.is_over()
            && let Err(halt) = self.budget.check()
        {
            self.outcome.note_halt(halt);
        }
        self.outcome.is_over()
    }

    /// Counts one more structure of a walk that hands nothing out.
    pub(crate) fn check(&self) -> Result<(), Halt> {
        self.budget.check()
    }

    /// Walks from member to member: `member` hands out the one at an offset and tells where the next one is, if there is one.
    pub(crate) fn walk(
        mut self,
        mut member: impl FnMut(u64, &mut Self) -> io::Result<Option<u64>>,
    ) -> ExtractionOutcome {
        let mut offset = 0;
        let mut result = Ok(());
        while !self.is_over() {
            match member(offset, &mut self) {
                Ok(Some(next)) => offset = next,
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.end(&format!("the archive is broken at {offset}"), result)
    }

    /// Notes how a walk ended, and gives back all that was noted.
    pub(crate) fn end(mut self, context: &str, result: io::Result<()>) -> ExtractionOutcome {
        if let Err(error) = result {
            self.outcome.note_error(context, &error);
        }
        self.outcome
    }
}
