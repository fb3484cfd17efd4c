//! Compressed streams: gzip, bzip2, xz, Zstandard. Each has one member, the content of all its streams one after the other,
//! named after the file without its suffix.
//!
//! What follows the last stream must be nothing or zeros; anything else makes the file broken, since other programs might
//! read it differently. Decoders get bounded memory, whatever a header asks for.

use std::io::{self, BufRead, BufReader, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, hand_out};
use crate::disk::ends_as_dmg;
use crate::format::{Format, whole_if};
use crate::limits::DECODER_BYTES_MAX;
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
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok(());
        }
        if available.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "data follows the last stream"));
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
    use super::*;

    #[test]
    fn the_member_is_named_after_the_file() {
        assert_eq!(member_name("a.tar.gz", GZIP_STREAM.suffixes), "a.tar");
        assert_eq!(member_name("a.TGZ", GZIP_STREAM.suffixes), "a.tar");
        assert_eq!(member_name("a", GZIP_STREAM.suffixes), "a");
        assert_eq!(member_name(".gz", GZIP_STREAM.suffixes), ".gz");
        assert_eq!(member_name("é.xz", XZ_STREAM.suffixes), "é");
        assert_eq!(member_name("é", ZSTD_STREAM.suffixes), "é");
    }
}
