//! The coders of 7z: what each method number stands for, and how they are put together to read a folder.

use std::cell::RefCell;
use std::io::{self, BufReader, Read, SeekFrom};
use std::rc::Rc;

use lzma_rust2::filter::bcj::BcjReader;
use lzma_rust2::filter::bcj2::Bcj2Reader;
use lzma_rust2::filter::delta::DeltaReader;
use lzma_rust2::{Lzma2Reader, LzmaReader};

use super::aes::{AES, Decryptor, Keys};
use super::header::{Coder, Folder};
use crate::container::ReadSeek;
use crate::fields::{invalid, le32, unsupported};
use crate::limits::{TooMuchMemory, admit_decoder};
use crate::parts::{BUFFER_BYTES, Exactly};
use crate::stream::ZSTD_WINDOW_LOG_MAX;

/// What is behind the signature header; several readers take turns.
pub(super) type Shared<'i> = Rc<RefCell<&'i mut dyn ReadSeek>>;

/// Part of the archive.
struct Span<'i> {
    input: Shared<'i>,
    offset: u64,
    left: u64,
}

impl Read for Span<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        if most == 0 {
            return Ok(0);
        }
        let mut input = self.input.borrow_mut();
        input.seek(SeekFrom::Start(self.offset))?;
        let read = input.read(into.get_mut(..most).unwrap_or_default())?;
        self.offset = self.offset.saturating_add(read as u64);
        self.left -= read as u64;
        Ok(read)
    }
}

type Stream<'i> = Box<dyn Read + 'i>;

/// Whether a folder can't be read without a password.
pub(super) fn is_encrypted(folder: &Folder) -> bool {
    folder.coders.iter().any(|coder| coder.method == AES)
}

/// Whether a wrong password shows early, since what it decodes to is no valid stream of some method.
pub(super) fn is_compressed(folder: &Folder) -> bool {
    folder.coders.iter().any(|coder| coder.method == LZMA || coder.method == LZMA2)
}

/// Reads what a folder decodes to. `data_offset` is where the archive's streams begin.
pub(super) fn open<'i>(
    folder: &Folder,
    input: &Shared<'i>,
    data_offset: u64,
    keys: &mut Keys<'_>,
) -> io::Result<Stream<'i>> {
    let memory = folder.coders.iter().map(memory).try_fold(0u64, |sum, bytes| Ok::<_, io::Error>(sum + bytes?))?;
    admit_decoder(memory)?;
    let main = folder.main_output().ok_or_else(|| invalid("a folder without output"))?;
    let mut plumbing = Plumbing { folder, input, data_offset, keys, used: Vec::new() };
    plumbing.output(main)
}

struct Plumbing<'p, 'i, 'k> {
    folder: &'p Folder,
    input: &'p Shared<'i>,
    data_offset: u64,
    keys: &'p mut Keys<'k>,
    /// The coders that are in place: a second use would be a circle.
    used: Vec<usize>,
}

impl<'i> Plumbing<'_, 'i, '_> {
    /// What comes out of an output stream.
    fn output(&mut self, output: u64) -> io::Result<Stream<'i>> {
        let folder = self.folder;
        let (mut first_input, mut first_output) = (0, 0);
        let found = folder.coders.iter().enumerate().find(|(_, coder)| {
            let is_it = (first_output..first_output + coder.outputs).contains(&output);
            if !is_it {
                first_input += coder.inputs;
                first_output += coder.outputs;
            }
            is_it
        });
        let Some((at, coder)) = found else { return Err(invalid("a stream of no coder")) };
        if coder.outputs != 1 {
            return Err(unsupported("a coder of several outputs"));
        }
        if self.used.contains(&at) {
            return Err(invalid("coders that feed each other in a circle"));
        }
        self.used.push(at);
        let length = usize::try_from(output).ok().and_then(|output| folder.unpacked_bytes.get(output)).copied();
        let length = length.ok_or_else(|| invalid("a stream without a length"))?;
        let inputs =
            (first_input..first_input + coder.inputs).map(|input| self.input(input)).collect::<io::Result<Vec<_>>>()?;
        Ok(Box::new(Exactly::new(decoder(coder, inputs, length, self.keys)?, length)))
    }

    /// What goes into an input stream.
    fn input(&mut self, input: u64) -> io::Result<Stream<'i>> {
        if let Some((_, output)) = self.folder.bonds.iter().find(|(bound, _)| *bound == input) {
            return self.output(*output);
        }
        let span = self.folder.packed.iter().position(|packed| *packed == input);
        let span = span.and_then(|at| self.folder.spans.get(at)).ok_or_else(|| invalid("a stream from nowhere"))?;
        let offset = self.data_offset.checked_add(span.0).ok_or_else(|| invalid("malformed offset"))?;
        let span = Span { input: self.input.clone(), offset, left: span.1 };
        Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, span)))
    }
}

const COPY: u64 = 0;
const DELTA: u64 = 3;
const LZMA: u64 = 0x03_01_01;
const LZMA2: u64 = 0x21;
const PPMD: u64 = 0x03_04_01;
const BCJ2: u64 = 0x03_03_01_1b;
const DEFLATE: u64 = 0x04_01_08;
const DEFLATE64: u64 = 0x04_01_09;
const BZIP2: u64 = 0x04_02_02;
const ZSTD: u64 = 0x04_f7_11_01;

/// What a coder holds beyond buffers.
fn memory(coder: &Coder) -> io::Result<u64> {
    Ok(match coder.method {
        LZMA => u64::from(le32(&coder.properties, 1).ok_or_else(malformed)?),
        LZMA2 => u64::from(lzma2_dictionary(coder)?),
        PPMD => u64::from(le32(&coder.properties, 1).ok_or_else(malformed)?),
        // The window is bounded where the decoder is made; blocks of bzip2 are 900 KB, four bytes for each.
        ZSTD => 1 << ZSTD_WINDOW_LOG_MAX,
        BZIP2 => 4 << 20,
        _ => 0,
    })
}

fn malformed() -> io::Error {
    invalid("malformed properties of a coder")
}

fn lzma2_dictionary(coder: &Coder) -> io::Result<u32> {
    match coder.properties.first() {
        Some(40) => Err(TooMuchMemory { asked_bytes: u64::from(u32::MAX) }.into()),
        Some(bits @ 0..40) => Ok((2 | u32::from(bits & 1)) << (bits / 2 + 11)),
        _ => Err(malformed()),
    }
}

fn decoder<'i>(coder: &Coder, mut inputs: Vec<Stream<'i>>, length: u64, keys: &mut Keys<'_>) -> io::Result<Stream<'i>> {
    if coder.method == BCJ2 {
        return Ok(Box::new(Bcj2Reader::try_new(inputs, length)?));
    }
    let (Some(input), true) = (inputs.pop(), inputs.is_empty()) else {
        return Err(invalid("a coder of the wrong number of inputs"));
    };
    let properties = &coder.properties;
    Ok(match coder.method {
        COPY => input,
        LZMA => {
            let dictionary = le32(properties, 1).ok_or_else(malformed)?;
            let properties = *properties.first().ok_or_else(malformed)?;
            Box::new(LzmaReader::new_with_props(input, length, properties, dictionary, None)?)
        }
        LZMA2 => Box::new(Lzma2Reader::new(input, lzma2_dictionary(coder)?, None)),
        PPMD => {
            let order = u32::from(*properties.first().ok_or_else(malformed)?);
            let memory = le32(properties, 1).ok_or_else(malformed)?;
            let decoder = ppmd_rust::Ppmd7Decoder::new(input, order, memory);
            Box::new(decoder.map_err(|error| invalid(format!("PPMd: {error}")))?)
        }
        DEFLATE => Box::new(flate2::bufread::DeflateDecoder::new(BufReader::with_capacity(BUFFER_BYTES, input))),
        DEFLATE64 => Box::new(deflate64::Deflate64Decoder::with_buffer(BufReader::with_capacity(BUFFER_BYTES, input))),
        BZIP2 => Box::new(bzip2::bufread::MultiBzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, input))),
        ZSTD => {
            let input = BufReader::with_capacity(BUFFER_BYTES, input);
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        DELTA => {
            let distance = usize::from(*properties.first().ok_or_else(malformed)?) + 1;
            Box::new(DeltaReader::new(input, distance))
        }
        4 | 0x03_03_01_03 => Box::new(BcjReader::new_x86(input, 0)),
        5 | 0x03_03_02_05 => Box::new(BcjReader::new_ppc(input, 0)),
        6 | 0x03_03_04_01 => Box::new(BcjReader::new_ia64(input, 0)),
        7 | 0x03_03_05_01 => Box::new(BcjReader::new_arm(input, 0)),
        8 | 0x03_03_07_01 => Box::new(BcjReader::new_arm_thumb(input, 0)),
        9 | 0x03_03_08_05 => Box::new(BcjReader::new_sparc(input, 0)),
        10 => Box::new(BcjReader::new_arm64(input, 0)),
        11 => Box::new(BcjReader::new_riscv(input, 0)),
        AES => Box::new(Decryptor::new(input, properties, keys)?),
        other => return Err(unsupported(format!("compression method {other:x} is not supported"))),
    })
}
