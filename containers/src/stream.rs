//! Compressed streams: gzip, bzip2, xz, Zstandard, zlib. Each has one member, the content of all its streams one after the other,
//! named after the file without its suffix.
//!
//! What follows the last stream must be nothing or zeros; anything else makes the file broken, since other programs might
//! read it differently. Decoders get bounded memory, whatever a header asks for.
//!
//! zlib has two bytes for a magic number, and programs that read a file of it take one stream, whatever follows. So what follows is left to the
//! search of files that are nothing else.

use std::io::{self, BufRead, BufReader, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, hand_out};
use crate::disk::ends_as_dmg;
use crate::format::{Claim, Claims, Format, Probe, whole_if};
use crate::limits::{DECODER_BYTES_MAX, Halt};
use crate::outcome::ExtractionOutcome;

/// What a decoder may allocate for its dictionary: the most that `xz -9` and `zstd --ultra` make.
pub(crate) const DICTIONARY_KIB_MAX: u32 = (DECODER_BYTES_MAX / 1024) as u32;
/// The same for Zstandard, as the logarithm of its window: 128 MiB.
pub(crate) const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How much is read from the container at once.
const BUFFER_BYTES: usize = 64 * 1024;

type Input<'i> = BufReader<&'i mut dyn ReadSeek>;

/// One compressed format.
struct Stream {
    format: &'static str,
    /// Suffixes that are cut off, and what takes their place.
    suffixes: &'static [(&'static str, &'static str)],
    decoder: for<'i> fn(Input<'i>) -> io::Result<Box<dyn Read + 'i>>,
}

/// gzip.
pub(crate) static GZIP: Format = Format {
    name: "gzip",
    description: "gzip",
    mime: "application/gzip",
    extension: "gz",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(matches!(probe.head, [0x1f, 0x8b, 8, ..])),
    extractor: &GZIP_STREAM,
};

static GZIP_STREAM: Stream = Stream {
    format: "gzip",
    suffixes: &[(".tgz", ".tar"), (".svgz", ".svg"), (".gz", "")],
    decoder: |input| {
        Ok(Box::new(Concatenated::new(input, flate2::bufread::GzDecoder::new, |gz| gz.into_inner(), |_| 0)))
    },
};

/// bzip2.
pub(crate) static BZIP2: Format = Format {
    name: "bzip2",
    description: "bzip2",
    mime: "application/x-bzip2",
    extension: "bz2",
    category: "A",
    beside: &[],
    probe: |probe| {
        // A block, or the end of an empty stream.
        let [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..] = probe.head else { return whole_if(false) };
        let marks = [[0x31, 0x41, 0x59, 0x26, 0x53, 0x59], [0x17, 0x72, 0x45, 0x38, 0x50, 0x90]];
        whole_if(marks.iter().any(|mark| rest.starts_with(mark)))
    },
    extractor: &BZIP2_STREAM,
};

static BZIP2_STREAM: Stream = Stream {
    format: "bzip2",
    suffixes: &[(".tbz2", ".tar"), (".tbz", ".tar"), (".bz2", "")],
    decoder: |input| {
        Ok(Box::new(Concatenated::new(input, bzip2::bufread::BzDecoder::new, |bz| bz.into_inner(), empty_bzip2)))
    },
};

/// XZ.
pub(crate) static XZ: Format = Format {
    name: "xz",
    description: "XZ",
    mime: "application/x-xz",
    extension: "xz",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(matches!(probe.head, [0xfd, b'7', b'z', b'X', b'Z', 0, ..])),
    extractor: &XZ_STREAM,
};

static XZ_STREAM: Stream = Stream {
    format: "xz",
    suffixes: &[(".txz", ".tar"), (".xz", "")],
    decoder: |input| Ok(Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, DICTIONARY_KIB_MAX))),
};

/// Zstandard.
pub(crate) static ZSTD: Format = Format {
    name: "zstd",
    description: "Zstandard",
    mime: "application/zstd",
    extension: "zst",
    category: "A",
    beside: &[],
    probe: |probe| {
        // A frame, or one to be skipped, behind which frames may follow.
        whole_if(matches!(probe.head, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]))
    },
    extractor: &ZSTD_STREAM,
};

static ZSTD_STREAM: Stream = Stream {
    format: "zstd",
    suffixes: &[(".tzst", ".tar"), (".zst", "")],
    decoder: |input| {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Ok(Box::new(decoder))
    },
};

/// What programs that Nuitka made bring along, as a resource or behind their end: all their files in one frame of Zstandard, behind which
/// there may be what tells where it begins.
pub(crate) static NUITKA: Format = Format {
    name: "nuitka",
    description: "Files of a program made by Nuitka",
    mime: "application/octet-stream",
    extension: "bin",
    category: "A",
    beside: &[],
    probe: |probe| {
        let is_one = matches!(probe.head, [b'K', b'A', b'Y', 0x28, 0xb5, 0x2f, 0xfd, ..]);
        Ok(if is_one { vec![Claim::Whole(NUITKA_MARK_BYTES)] } else { Vec::new() })
    },
    extractor: &NUITKA_STREAM,
};

const NUITKA_MARK_BYTES: u64 = 3;

static NUITKA_STREAM: Stream = Stream {
    format: "nuitka",
    suffixes: &[],
    decoder: |input| {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Ok(Box::new(decoder.single_frame()))
    },
};

/// How much of a stream of zlib is decoded to find out whether it is one. Of other data, hardly any 100 bytes can be.
const ZLIB_TRIAL_BYTES: u64 = 1 << 20;

/// zlib: RFC 1950.
pub(crate) static ZLIB: Format = Format {
    name: "zlib",
    description: "zlib",
    mime: "application/zlib",
    extension: "zz",
    category: "A",
    beside: &[],
    probe: zlib,
    extractor: &ZLIB_STREAM,
};

static ZLIB_STREAM: Stream = Stream {
    format: "zlib",
    suffixes: &[(".zlib", ""), (".zz", "")],
    decoder: |input| Ok(Box::new(flate2::bufread::ZlibDecoder::new(input))),
};

/// Begins with a stream that can be decoded to its end and has the checksum that it says, or as far as is looked. It counts only if the file is
/// nothing else: many formats begin with compressed data, disk images of Macs among them.
fn zlib(probe: &mut Probe<'_>) -> io::Result<Claims> {
    let [method @ (0x08 | 0x18 | 0x28 | 0x38 | 0x48 | 0x58 | 0x68 | 0x78), flags, ..] = *probe.head else {
        return Ok(Vec::new());
    };
    // The two together are a multiple of 31, and without the flag that asks for a dictionary nobody needs to be told of one.
    if !u16::from_be_bytes([method, flags]).is_multiple_of(31) || flags & 0x20 != 0 {
        return Ok(Vec::new());
    }
    probe.input.seek(SeekFrom::Start(0))?;
    let input = BufReader::with_capacity(BUFFER_BYTES, &mut *probe.input);
    let mut trial = flate2::bufread::ZlibDecoder::new(input).take(ZLIB_TRIAL_BYTES);
    match io::copy(&mut trial, &mut io::sink()) {
        Ok(0) => Ok(Vec::new()),
        Ok(_) => Ok(vec![Claim::Inside(0)]),
        Err(error) if Halt::of(&error).is_some() => Err(error),
        Err(_) => Ok(Vec::new()),
    }
}

impl Extractor for Stream {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        let name = member_name(container.name, self.suffixes);
        let handed_out = {
            let decoder = container
                .input
                .seek(SeekFrom::Start(0))
                .and_then(|_| (self.decoder)(BufReader::with_capacity(BUFFER_BYTES, &mut *container.input)));
            match decoder {
                Ok(mut decoder) => hand_out(name, None, &mut *decoder, budget, sink),
                Err(error) => Ok(Some(error)),
            }
        };
        match handed_out {
            Ok(None) => {}
            // What follows the streams is a disk image's own, which its own reader judges. What came before came out.
            Ok(Some(error))
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
                    && ends_as_dmg(container.input, container.length) => {}
            Ok(Some(error)) => outcome.note_error(&format!("the {} stream is broken", self.format), &error),
            Err(halt) => outcome.note_halt(halt),
        }
        outcome
    }
}

/// What the member of a compressed stream is called: as the file that holds it, whose suffix is cut off or replaced.
pub(crate) fn member_name(container: &str, suffixes: &[(&str, &str)]) -> String {
    // In its own container the member lies in no folder, whatever folder the container lies in.
    let container = container.rsplit('/').next().unwrap_or(container);
    for (suffix, instead) in suffixes {
        if let Some(at) = container.len().checked_sub(suffix.len())
            && at > 0
            && let (Some(stem), Some(end)) = (container.get(..at), container.get(at..))
            && end.eq_ignore_ascii_case(suffix)
        {
            return format!("{stem}{instead}");
        }
    }
    container.to_owned()
}

/// Decodes one stream after the other until the input ends, or only zeros follow.
struct Concatenated<R, D> {
    /// The decoder of the current stream; absent before the first, at the end and after an error.
    decoder: Option<D>,
    input: Option<R>,
    begun: bool,
    begin: fn(R) -> D,
    end: fn(D) -> R,
    /// How long an empty stream is that the input begins with; 0 if it begins with none. Decoders are costly to make, and
    /// millions of empty streams need none.
    empty: fn(&[u8]) -> usize,
}

/// The length of the empty bzip2 stream that these bytes begin with.
fn empty_bzip2(bytes: &[u8]) -> usize {
    let end = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90, 0, 0, 0, 0];
    let is_one = matches!(bytes, [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..] if rest.starts_with(&end));
    if is_one { 4 + end.len() } else { 0 }
}

impl<R: BufRead, D: Read> Concatenated<R, D> {
    fn new(input: R, begin: fn(R) -> D, end: fn(D) -> R, empty: fn(&[u8]) -> usize) -> Self {
        Self { decoder: None, input: Some(input), begun: false, begin, end, empty }
    }

    /// Begins the next stream. False if there is none.
    fn next_stream(&mut self) -> io::Result<bool> {
        let Some(mut input) = self.input.take() else { return Ok(false) };
        let first = loop {
            let available = input.fill_buf()?;
            match (self.empty)(available) {
                0 => break available.first().copied(),
                length => input.consume(length),
            }
            self.begun = true;
        };
        match first {
            None => Ok(false),
            Some(0) if self.begun => skip_zeros(&mut input).map(|()| false),
            Some(_) => {
                self.begun = true;
                self.decoder = Some((self.begin)(input));
                Ok(true)
            }
        }
    }
}

/// Reads zeros to the end of the input; anything else is an error.
fn skip_zeros(input: &mut impl BufRead) -> io::Result<()> {
    let follows = || io::Error::new(io::ErrorKind::InvalidData, "data follows the last stream");
    if is_zeros(input)? { Ok(()) } else { Err(follows()) }
}

/// Whether there are only zeros up to the end of the input.
pub(crate) fn is_zeros(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok(true);
        }
        if available.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        let read = available.len();
        input.consume(read);
    }
}

impl<R: BufRead, D: Read> Read for Concatenated<R, D> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(decoder) = &mut self.decoder {
                let read = decoder.read(into)?;
                if read > 0 {
                    return Ok(read);
                }
                self.input = self.decoder.take().map(self.end);
            }
            if !self.next_stream()? {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;
    use crate::conformance::{Case, Random, comes_apart, eicar, survives_mutations, take_apart};
    use crate::detect::detect_content;
    use crate::passwords::Passwords;

    fn zlib_of(content: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn is_zlib(file: &[u8]) -> bool {
        detect_content(file).unwrap().containers.iter().any(|found| found.format.name() == "zlib")
    }

    #[test]
    fn a_stream_of_zlib_is_opened_whatever_follows() {
        let long: Vec<u8> = (0..600_000u32).flat_map(u32::to_le_bytes).collect();
        for level in [0, 1, 6, 9] {
            for content in [&eicar(), &long] {
                let mut file = zlib_of(content, level);
                comes_apart(&Case::new("zlib", &file, &content[..68]));
                file.extend(b"\nmore");
                let taken = take_apart(&file, &Passwords::NONE);
                assert!(taken.outcome.is_complete(), "{:?}", taken.outcome);
                assert_eq!(taken.members.first().map(|(_, member)| member), Some(content));
            }
        }
        // A smaller window, as the header may say.
        let mut small = zlib_of(&eicar(), 9);
        small[..2].copy_from_slice(&[0x18, 0x19]);
        comes_apart(&Case::new("zlib", &small, &eicar()));
        survives_mutations(&Case::new("zlib", &small, &eicar()), 200);
    }

    #[test]
    fn what_only_begins_like_zlib_is_none() {
        let mut random = Random(1);
        for header in [[0x78, 0x01], [0x78, 0x5e], [0x78, 0x9c], [0x78, 0xda], [b'h', b'C']] {
            for length in 2..2000 {
                let noise: Vec<u8> = (2..length).map(|_| random.next() as u8).collect();
                assert!(!is_zlib(&[&header, noise.as_slice()].concat()), "{header:?} {length}");
            }
            assert!(!is_zlib(&[&header[..], &[0; 70_000]].concat()) && !is_zlib(&header));
        }
        let whole = zlib_of(&eicar(), 9);
        assert!((0..whole.len()).all(|length| !is_zlib(&whole[..length])), "cut off it may be anything");
        let mut wrong = whole.clone();
        *wrong.last_mut().unwrap() ^= 1;
        assert!(!is_zlib(&wrong) && !is_zlib(&zlib_of(b"", 9)));
        // A Mac's disk image begins with its first chunk.
        let mut footer = vec![0; 512];
        footer[..12].copy_from_slice(b"koly\0\0\0\x04\0\0\x02\0");
        assert!(!is_zlib(&[whole, footer].concat()));
    }

    #[test]
    fn the_member_is_named_after_the_file() {
        assert_eq!(member_name("a.tar.gz", GZIP_STREAM.suffixes), "a.tar");
        assert_eq!(member_name("a.TGZ", GZIP_STREAM.suffixes), "a.tar");
        assert_eq!(member_name("a", GZIP_STREAM.suffixes), "a");
        assert_eq!(member_name(".gz", GZIP_STREAM.suffixes), ".gz");
        assert_eq!(member_name("é.xz", XZ_STREAM.suffixes), "é");
        assert_eq!(member_name("é", ZSTD_STREAM.suffixes), "é");
    }

    #[test]
    fn what_programs_of_nuitka_bring_along_is_a_stream_behind_a_mark() {
        let content = crate::conformance::eicar().repeat(3);
        let file = [b"KAY", &zstd::encode_all(&content[..], 1).unwrap()[..], b"\0\0\x10\x20"].concat();
        let taken = take_apart(&file, &Passwords::NONE);
        assert!(taken.outcome.is_complete(), "{:?}", taken.outcome);
        assert_eq!(taken.members, [("file".to_owned(), content)]);
    }
}
