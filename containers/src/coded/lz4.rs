//! LZ4 frames and the legacy format, over the block decoder of `lz4_flex`. The crate's own frame reader takes an input that ends
//! anywhere between two blocks for whole.

use std::hash::Hasher;
use std::io::{self, Read};

use lz4_flex::block::decompress_into_with_dict;
use twox_hash::XxHash32;

use super::next_magic;
use crate::container::read_full;
use crate::fields::{invalid, unsupported};
use crate::parts::cut_off;

const FRAME_MAGIC: u32 = 0x184d_2204;
const LEGACY_MAGIC: u32 = 0x184c_2102;
/// Frames to be skipped: sixteen marks.
const SKIP_MAGIC: u32 = 0x184d_2a50;
/// What a block of a legacy frame decodes to at most.
const LEGACY_BLOCK_BYTES: usize = 8 << 20;
/// How far back a block may refer into those before.
const WINDOW_BYTES: usize = 64 * 1024;

/// A frame's blocks.
struct Frame {
    block_bytes: usize,
    linked: bool,
    block_sums: bool,
    content_bytes: Option<u64>,
    content_sum: Option<XxHash32>,
    produced: u64,
}

enum State {
    Between,
    Frame(Box<Frame>),
    /// A legacy frame, and whether a block of it was seen.
    Legacy(bool),
    Done,
}

/// Decodes one frame after the other.
pub(super) struct Decoder<R> {
    input: R,
    state: State,
    packed: Vec<u8>,
    /// What was decoded, and how much of it was read.
    block: Vec<u8>,
    read: usize,
    window: Vec<u8>,
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, state: State::Between, packed: Vec::new(), block: Vec::new(), read: 0, window: Vec::new() }
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn begin(&mut self, magic: u32) -> io::Result<()> {
        self.state = match magic {
            FRAME_MAGIC => State::Frame(Box::new(self.frame()?)),
            LEGACY_MAGIC => State::Legacy(false),
            _ if magic & !0xf == SKIP_MAGIC => {
                let length = u64::from(self.number()?);
                let skipped = io::copy(&mut (&mut self.input).take(length), &mut io::sink())?;
                if skipped < length {
                    return Err(cut_off());
                }
                State::Between
            }
            _ => return Err(invalid("data that is no frame")),
        };
        self.window.clear();
        Ok(())
    }

    fn frame(&mut self) -> io::Result<Frame> {
        let mut descriptor = [0; 2];
        self.input.read_exact(&mut descriptor)?;
        let [flags, block] = descriptor;
        if flags >> 6 != 1 {
            return Err(invalid("an unknown version of the frame format"));
        }
        let block_bytes = match block >> 4 & 7 {
            4 => 64 * 1024,
            5 => 256 * 1024,
            6 => 1 << 20,
            7 => 4 << 20,
            _ => return Err(invalid("malformed block size")),
        };
        let content_bytes = if flags & 8 != 0 {
            let mut bytes = [0; 8];
            self.input.read_exact(&mut bytes)?;
            Some(u64::from_le_bytes(bytes))
        } else {
            None
        };
        if flags & 1 != 0 {
            return Err(unsupported("it needs a dictionary that is not part of it"));
        }
        let mut header_sum = [0];
        self.input.read_exact(&mut header_sum)?;
        Ok(Frame {
            block_bytes,
            linked: flags & 0x20 == 0,
            block_sums: flags & 0x10 != 0,
            content_bytes,
            content_sum: (flags & 4 != 0).then(|| XxHash32::with_seed(0)),
            produced: 0,
        })
    }

    /// Decodes the next block of a frame. False at its end.
    fn frame_block(&mut self, frame: &mut Frame) -> io::Result<bool> {
        let word = self.number()?;
        if word == 0 {
            if frame.content_bytes.is_some_and(|claimed| claimed != frame.produced) {
                return Err(invalid("a frame is not as long as it says"));
            }
            if let Some(sum) = &frame.content_sum {
                let computed = sum.finish() as u32;
                if self.number()? != computed {
                    return Err(invalid("the checksum is wrong"));
                }
            }
            return Ok(false);
        }
        let (stored, length) = (word >> 31 == 1, (word & 0x7fff_ffff) as usize);
        if length > frame.block_bytes {
            return Err(invalid("a block longer than its frame allows"));
        }
        self.packed.resize(length, 0);
        self.input.read_exact(&mut self.packed)?;
        if frame.block_sums {
            let mut sum = XxHash32::with_seed(0);
            sum.write(&self.packed);
            if self.number()? != sum.finish() as u32 {
                return Err(invalid("a block's checksum is wrong"));
            }
        }
        if stored {
            std::mem::swap(&mut self.block, &mut self.packed);
        } else {
            self.decode(frame.block_bytes)?;
        }
        frame.produced = frame.produced.saturating_add(self.block.len() as u64);
        if let Some(sum) = &mut frame.content_sum {
            sum.write(&self.block);
        }
        if frame.linked {
            self.window.extend_from_slice(&self.block);
            let old = self.window.len().saturating_sub(WINDOW_BYTES);
            self.window.drain(..old);
        }
        Ok(true)
    }

    fn decode(&mut self, most: usize) -> io::Result<()> {
        self.block.resize(most, 0);
        let length = decompress_into_with_dict(&self.packed, &mut self.block, &self.window)
            .map_err(|error| invalid(format!("a block is broken: {error}")))?;
        self.block.truncate(length);
        Ok(())
    }

    /// Decodes the next block of a legacy frame, which ends where the input does or another frame begins.
    fn legacy_block(&mut self, begun: bool) -> io::Result<()> {
        let mut word = [0; 4];
        match read_full(&mut self.input, &mut word)? {
            0 if begun => {
                self.state = State::Done;
                return Ok(());
            }
            4 => {}
            _ => return Err(cut_off()),
        }
        let word = u32::from_le_bytes(word);
        if matches!(word, FRAME_MAGIC | LEGACY_MAGIC) || word & !0xf == SKIP_MAGIC {
            return self.begin(word);
        }
        let length = word as usize;
        if length > LEGACY_BLOCK_BYTES + LEGACY_BLOCK_BYTES / 255 + 16 {
            return Err(invalid("a block longer than the legacy format allows"));
        }
        self.packed.resize(length, 0);
        self.input.read_exact(&mut self.packed)?;
        self.decode(LEGACY_BLOCK_BYTES)
    }

    fn advance(&mut self) -> io::Result<()> {
        (self.read, self.block) = (0, Vec::new());
        match std::mem::replace(&mut self.state, State::Done) {
            State::Between => {
                if let Some(magic) = next_magic(&mut self.input)? {
                    self.begin(u32::from_le_bytes(magic))?;
                }
            }
            State::Frame(mut frame) => {
                let goes_on = self.frame_block(&mut frame)?;
                self.state = if goes_on { State::Frame(frame) } else { State::Between };
            }
            State::Legacy(begun) => {
                self.state = State::Legacy(true);
                self.legacy_block(begun)?;
            }
            State::Done => {}
        }
        Ok(())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            let rest = self.block.get(self.read..).unwrap_or_default();
            if !rest.is_empty() {
                let length = rest.len().min(into.len());
                if let (Some(to), Some(from)) = (into.get_mut(..length), rest.get(..length)) {
                    to.copy_from_slice(from);
                }
                self.read += length;
                return Ok(length);
            }
            if matches!(self.state, State::Done) {
                return Ok(0);
            }
            self.advance()?;
        }
    }
}
