//! Compressed streams: gzip, bzip2, xz, Zstandard. Each has one member, the content of all its streams one after the other,
//! named after the file without its suffix.
//!
//! What follows the last stream must be nothing or zeros; anything else makes the file broken, since other programs might
//! read it differently. Decoders get bounded memory, whatever a header asks for.

use std::io::{self, BufRead, BufReader, Read, SeekFrom};

use crate::budget::Budget;
use crate::extractor::{Container, ExtractionOutcome, Extractor, ReadSeek, Sink, hand_out};

/// What a decoder may allocate for its dictionary: the most that `xz -9` and `zstd --ultra` make.
pub(super) const DICTIONARY_KIB_MAX: u32 = 192 * 1024;
/// The same for Zstandard, as the logarithm of its window: 128 MiB.
pub(super) const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How much is read from the container at once.
const BUFFER_BYTES: usize = 64 * 1024;

type Input<'i> = BufReader<&'i mut dyn ReadSeek>;

/// One compressed format.
pub(super) struct Stream {
    format: &'static str,
    /// Suffixes that are cut off, and what takes their place.
    suffixes: &'static [(&'static str, &'static str)],
    decoder: for<'i> fn(Input<'i>) -> io::Result<Box<dyn Read + 'i>>,
}

pub(super) static GZIP: Stream = Stream {
    format: "gzip",
    suffixes: &[(".tgz", ".tar"), (".svgz", ".svg"), (".gz", "")],
    decoder: |input| Ok(Box::new(Concatenated::new(input, flate2::bufread::GzDecoder::new, |gz| gz.into_inner()))),
};

pub(super) static BZIP2: Stream = Stream {
    format: "bzip2",
    suffixes: &[(".tbz2", ".tar"), (".tbz", ".tar"), (".bz2", "")],
    decoder: |input| Ok(Box::new(Concatenated::new(input, bzip2::bufread::BzDecoder::new, |bz| bz.into_inner()))),
};

pub(super) static XZ: Stream = Stream {
    format: "xz",
    suffixes: &[(".txz", ".tar"), (".xz", "")],
    decoder: |input| Ok(Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, DICTIONARY_KIB_MAX))),
};

pub(super) static ZSTD: Stream = Stream {
    format: "zstd",
    suffixes: &[(".tzst", ".tar"), (".zst", "")],
    decoder: |input| {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Ok(Box::new(decoder))
    },
};

impl Extractor for Stream {
    fn format(&self) -> &'static str {
        self.format
    }

    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        let name = self.member_name(container.name);
        let decoder = container
            .input
            .seek(SeekFrom::Start(0))
            .and_then(|_| (self.decoder)(BufReader::with_capacity(BUFFER_BYTES, &mut *container.input)));
        let handed_out = match decoder {
            Ok(mut decoder) => hand_out(name, None, &mut *decoder, budget, sink),
            Err(error) => Ok(Some(error)),
        };
        match handed_out {
            Ok(None) => {}
            Ok(Some(error)) => outcome.note_error(&format!("the {} stream is broken", self.format), &error),
            Err(halt) => outcome.note_halt(halt),
        }
        outcome
    }
}

impl Stream {
    fn member_name(&self, container: &str) -> String {
        // In its own container the member lies in no folder, whatever folder the container lies in.
        let container = container.rsplit('/').next().unwrap_or(container);
        for (suffix, instead) in self.suffixes {
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
}

/// Decodes one stream after the other until the input ends, or only zeros follow.
struct Concatenated<R, D> {
    /// The decoder of the current stream; absent before the first, at the end and after an error.
    decoder: Option<D>,
    input: Option<R>,
    begun: bool,
    begin: fn(R) -> D,
    end: fn(D) -> R,
}

impl<R: BufRead, D: Read> Concatenated<R, D> {
    fn new(input: R, begin: fn(R) -> D, end: fn(D) -> R) -> Self {
        Self { decoder: None, input: Some(input), begun: false, begin, end }
    }

    /// Begins the next stream. False if there is none.
    fn next_stream(&mut self) -> io::Result<bool> {
        let Some(mut input) = self.input.take() else { return Ok(false) };
        let first = input.fill_buf()?.first().copied();
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
        assert_eq!(GZIP.member_name("a.tar.gz"), "a.tar");
        assert_eq!(GZIP.member_name("a.TGZ"), "a.tar");
        assert_eq!(GZIP.member_name("a"), "a");
        assert_eq!(GZIP.member_name(".gz"), ".gz");
        assert_eq!(XZ.member_name("é.xz"), "é");
        assert_eq!(ZSTD.member_name("é"), "é");
    }
}
