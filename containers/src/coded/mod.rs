//! More compressed streams: LZ4 (frames and the legacy format), lzip, LZMA alone, compress (.Z), lzop, SZDD. Each has one member, the
//! content of all that the file holds one after the other, named after the file without its suffix.
//!
//! What follows the last stream must be nothing or zeros. Decoders get bounded memory, whatever a header asks for. A .Z file doesn't
//! say where it ends, so that one that is cut off can't be told from a whole one.

pub(crate) mod compress;
mod lz4;
mod lzip;
pub(crate) mod lzo;
mod lzop;
mod szdd;

use std::io::{self, BufRead, BufReader, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{le32, le64};
use crate::format::{Claim, Format, whole_if};
use crate::limits::admit_decoder;
use crate::outcome::ExtractionOutcome;
use crate::parts::{BUFFER_BYTES, Out};
use crate::stream::member_name;

type Input<'i> = BufReader<&'i mut dyn ReadSeek>;

/// One compressed format.
struct Coded {
    /// Suffixes that are cut off, and what takes their place.
    suffixes: &'static [(&'static str, &'static str)],
    decoder: for<'i> fn(Input<'i>) -> io::Result<Box<dyn Read + 'i>>,
}

/// LZ4. Format: the LZ4 Frame Format Description 1.6.
pub(crate) static LZ4: Format = Format {
    name: "lz4",
    description: "LZ4",
    mime: "application/x-lz4",
    extension: "lz4",
    category: "A",
    // Both have frames to be skipped, with the same marks.
    beside: &["zstd"],
    probe: |probe| whole_if(matches!(probe.head, [0x04, 0x22, 0x4d, 0x18, ..] | [0x02, 0x21, 0x4c, 0x18, ..])),
    extractor: &Coded {
        suffixes: &[(".tlz4", ".tar"), (".lz4", "")],
        decoder: |input| Ok(Box::new(lz4::Decoder::new(input))),
    },
};

/// lzip. Format: draft-diaz-lzip.
pub(crate) static LZIP: Format = Format {
    name: "lzip",
    description: "lzip",
    mime: "application/lzip",
    extension: "lz",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(matches!(probe.head, [b'L', b'Z', b'I', b'P', 1, ..])),
    extractor: &Coded {
        suffixes: &[(".tlz", ".tar"), (".lz", "")],
        decoder: |input| Ok(Box::new(lzip::Decoder::new(input))),
    },
};

/// The longest content that an LZMA header with a known length is believed to have: as XZ Utils do.
const LZMA_BYTES_MAX: u64 = 1 << 38;

/// How many bytes must come out of what has the header of LZMA: random bytes seldom give as many before they point to what
/// never came.
const LZMA_TRIAL_BYTES: u64 = 16;

/// LZMA alone. Format: lzma-file-format.txt of XZ Utils. It has no magic number, so headers that no encoder writes are not
/// taken for one, nor those behind which nothing can be decoded.
pub(crate) static LZMA: Format = Format {
    name: "lzma",
    description: "LZMA",
    mime: "application/x-lzma",
    extension: "lzma",
    category: "A",
    beside: &[],
    probe: |probe| {
        let head = probe.head;
        let properties = head.first().copied().filter(|properties| *properties < 9 * 5 * 5);
        // XZ Utils take dictionaries of 2^n and 2^n + 2^(n-1) bytes only, and write none below 4 KiB; other programs take any.
        let dictionary = le32(head, 1).is_some_and(|bytes| {
            let is_round = bytes.is_power_of_two() || (bytes % 3 == 0 && (bytes / 3).is_power_of_two());
            bytes == u32::MAX || (bytes >= 4096 && is_round)
        });
        let length = le64(head, 5).is_some_and(|length| length == u64::MAX || (1..LZMA_BYTES_MAX).contains(&length));
        let is_usual = dictionary && properties.is_some_and(|properties| properties % 9 <= 4);
        let may_be = properties.is_some() && length && head.get(13) == Some(&0) && lzma_begins(head);
        if may_be && !is_usual && lzma_goes_on(head) {
            // Repetitions of other kinds of files can be decoded as well.
            return Ok(vec![Claim::Inside(0)]);
        }
        whole_if(may_be && is_usual)
    },
    extractor: &Coded {
        suffixes: &[(".tlz", ".tar"), (".lzma", "")],
        decoder: |mut input| {
            admit_decoder(u64::from(le32(input.fill_buf()?, 1).unwrap_or(0)))?;
            Ok(Box::new(lzma_rust2::LzmaReader::new_mem_limit(input, u32::MAX, None)?))
        },
    },
};

/// Whether the first bytes of an LZMA stream can be decoded, as far as they are there.
fn lzma_begins(head: &[u8]) -> bool {
    lzma_trial(head, LZMA_TRIAL_BYTES).is_some()
}

/// How many bytes must come out of what has a header of LZMA that no encoder writes, if there are as many: that a file of another kind
/// gives these is not to be feared.
const LZMA_ODD_BYTES_LEAST: usize = 32;
/// How many zeros such a stream may have besides: encoders end streams with some.
const LZMA_ZEROS_FREE: usize = 4;
/// How many bytes of such a stream are decoded to find out.
const LZMA_ODD_TRIAL_BYTES: u64 = 1 << 20;

/// Whether all that is there of an LZMA stream can be decoded. Zeros can, as zeros without end, and many files of other kinds are full of
/// them; but what was compressed has hardly more of them than of any other byte.
fn lzma_goes_on(head: &[u8]) -> bool {
    let coded = head.get(14..).unwrap_or_default();
    let is_dense = coded.iter().filter(|byte| **byte == 0).count() <= coded.len() / 8 + LZMA_ZEROS_FREE;
    is_dense && lzma_trial(head, LZMA_ODD_TRIAL_BYTES).is_some_and(|content| content.len() >= LZMA_ODD_BYTES_LEAST)
}

/// What the first bytes of an LZMA stream are decoded to, as far as they are there: at most so many bytes, none if they are broken.
fn lzma_trial(head: &[u8], most_bytes: u64) -> Option<Vec<u8>> {
    let (properties, length, coded) = (head.first()?, le64(head, 5)?, head.get(13..)?);
    // Nothing that comes out can point further back than the beginning, and the beginning has no end.
    let dictionary = most_bytes.max(4096) as u32;
    let header = [&[*properties], &dictionary.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    let mut content = Vec::new();
    let decoded = lzma_rust2::LzmaReader::new_mem_limit(header.chain(coded), u32::MAX, None)
        .and_then(|decoder| decoder.take(length.min(most_bytes)).read_to_end(&mut content));
    match decoded {
        // Fewer bytes without an error are all there are, or all that were not cut off.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => None,
        _ => Some(content),
    }
}

/// compress.
pub(crate) static COMPRESS: Format = Format {
    name: "compress",
    description: "compress",
    mime: "application/x-compress",
    extension: "Z",
    category: "A",
    beside: &[],
    probe: |probe| {
        let is_one = matches!(probe.head, [0x1f, 0x9d, flags, ..] if (9..=16).contains(&(flags & 0x1f)));
        whole_if(is_one)
    },
    extractor: &Coded {
        suffixes: &[(".taz", ".tar"), (".z", "")],
        decoder: |input| Ok(Box::new(compress::Decoder::new(input)?)),
    },
};

/// lzop.
pub(crate) static LZOP: Format = Format {
    name: "lzop",
    description: "lzop",
    mime: "application/x-lzop",
    extension: "lzo",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(&lzop::MAGIC)),
    extractor: &Coded {
        suffixes: &[(".tzo", ".tar"), (".lzo", "")],
        decoder: |input| Ok(Box::new(lzop::Decoder::new(input))),
    },
};

/// SZDD.
pub(crate) static SZDD: Format = Format {
    name: "szdd",
    description: "Microsoft COMPRESS",
    mime: "application/x-ms-compress-szdd",
    extension: "ex_",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(&szdd::MAGIC)),
    extractor: &Coded { suffixes: &[("_", "")], decoder: |input| Ok(Box::new(szdd::Decoder::new(input)?)) },
};

impl Extractor for Coded {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let name = member_name(container.name, self.suffixes);
        let decoder = container
            .input
            .seek(SeekFrom::Start(0))
            .and_then(|_| (self.decoder)(BufReader::with_capacity(BUFFER_BYTES, &mut *container.input)));
        out.made(name, None, decoder);
        out.outcome
    }
}

/// Reads the next bytes of a stream of streams: all `N`, or none at the end of the input or where only zeros follow.
fn next_magic<const N: usize>(input: &mut impl Read) -> io::Result<Option<[u8; N]>> {
    let mut magic = [0; N];
    match crate::container::read_full(input, &mut magic)? {
        0 => Ok(None),
        read if magic.get(..read).is_some_and(|read| read.iter().all(|byte| *byte == 0)) => {
            let mut block = [0; 4096];
            loop {
                match input.read(&mut block)? {
                    0 => return Ok(None),
                    read if block.get(..read).is_some_and(|read| read.iter().all(|byte| *byte == 0)) => {}
                    _ => return Err(crate::fields::invalid("data follows the last stream")),
                }
            }
        }
        read if read == N => Ok(Some(magic)),
        _ => Err(crate::parts::cut_off()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use crate::detect;

    fn formats(file: &[u8]) -> Vec<&'static str> {
        let found = detect(&mut Cursor::new(file), file.len() as u64).unwrap();
        found.containers.iter().map(|found| found.format.name()).collect()
    }

    #[test]
    fn lzma_with_a_header_that_no_encoder_writes_is_lzma() {
        let content: Vec<u8> = (0..100_000).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let content = [&[b'a'; 5000], &content[..]].concat();
        for (length, lc, dictionary) in
            [(68, 3, 1_u32), (68, 3, 0), (68, 3, 12_345), (105_000, 3, 2048), (40, 8, 4096), (105_000, 8, 4096)]
        {
            let options = lzma_rust2::LzmaOptions { lc, lp: 0, dict_size: 4096, ..Default::default() };
            for known in [Some(length as u64), None] {
                let mut encoder = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, known).unwrap();
                encoder.write_all(&content[..length]).unwrap();
                let mut file = encoder.finish().unwrap();
                file[1..5].copy_from_slice(&dictionary.to_le_bytes());
                assert_eq!(formats(&file), ["lzma"], "{length} bytes, lc {lc}, dictionary {dictionary}");
                let members = crate::conformance::take_apart(&file, &crate::passwords::Passwords::NONE).members;
                assert!(members[0].1 == content[..length], "{length} bytes, lc {lc}, dictionary {dictionary}");
            }
        }
        // Files of other kinds whose headers could be such: a program for Linux, and many zeros.
        let mut program =
            b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0\x40\x10\0\0\0\0\0\0\x40".to_vec();
        program.extend([0; 7]);
        program.extend(b"\x88\x3a\0\0\0\0\0\0\0\0\0\0\x40\0\x38\0\x0d\0\x40\0\x1f\0\x1e\0\x06\0\0\0\x04");
        for rest in [0, 4000, 200_000] {
            assert!(!formats(&[&program[..], &vec![0; rest]].concat()).contains(&"lzma"));
            assert!(!formats(&[&b"\x01\x02\0\0\0\x08"[..], &vec![0; rest + 50]].concat()).contains(&"lzma"));
        }
    }

    #[test]
    fn what_only_begins_like_lzma_is_none() {
        // A MATLAB 4 file: a matrix named a of 1 by 2 numbers.
        let mut matrix: Vec<u8> = [0_u32, 1, 2, 0, 2].iter().flat_map(|field| field.to_le_bytes()).collect();
        matrix.extend(b"a\0");
        matrix.extend([0.1_f64, 1.2].iter().flat_map(|number| number.to_le_bytes()));
        assert!(formats(&matrix).is_empty());

        for length in [1, 15, 16, 17, 100_000] {
            let content: Vec<u8> = (0..length).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            for known in [Some(u64::from(length)), None] {
                let options = lzma_rust2::LzmaOptions::default();
                let mut encoder = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, known).unwrap();
                encoder.write_all(&content).unwrap();
                let file = encoder.finish().unwrap();
                assert_eq!(formats(&file), ["lzma"], "{length} bytes, length {known:?}");
                // Cut off, it still is what it was.
                for cut in [14, file.len() / 2, file.len() - 1] {
                    assert_eq!(formats(&file[..cut.max(14)]), ["lzma"], "{length} bytes, cut at {cut}");
                }
            }
        }
    }
}
