//! Flash films: compressed by zlib (`CWS`) the whole film comes out as it was before. Those compressed by LZMA (`ZWS`) are told as broken,
//! since nothing here knows their header. Format: SWF File Format Specification, version 19, "The SWF header".

use std::io::{self, BufReader, Cursor, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink};
use crate::fields::unsupported;
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{BUFFER_BYTES, Out, read_array};

/// Signature, version, and the film's length.
const HEADER_BYTES: usize = 8;
/// No version is higher than this.
const VERSION_MAX: u8 = 60;

/// Compressed Flash films.
pub(crate) static FORMAT: Format = Format {
    name: "swf",
    description: "Shockwave Flash, compressed",
    mime: "application/x-shockwave-flash",
    extension: "swf",
    category: "M",
    beside: &[],
    probe: |probe| whole_if(matches!(probe.head, [b'C' | b'Z', b'W', b'S', 1..=VERSION_MAX, _, _, _, _, ..])),
    extractor: &Swf,
};

struct Swf;

impl Extractor for Swf {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = film(container, &mut out);
        out.end("the film is broken", result)
    }
}

fn film(container: &mut Container<'_>, out: &mut Out<'_, '_>) -> io::Result<()> {
    let mut header: [u8; HEADER_BYTES] = read_array(container.input, 0)?;
    if header.starts_with(b"Z") {
        return Err(unsupported("films compressed by LZMA are not opened"));
    }
    // Uncompressed it begins with F.
    header[0] = b'F';
    container.input.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
    let body = flate2::bufread::ZlibDecoder::new(BufReader::with_capacity(BUFFER_BYTES, &mut *container.input));
    // Some programs take what is in it for a file by itself, which a header before it would hide.
    let mut whole = Cursor::new(header).chain(body);
    if out.member("film.swf".to_owned(), None, &mut whole) && !out.is_over() {
        container.input.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
        let mut body = flate2::bufread::ZlibDecoder::new(BufReader::with_capacity(BUFFER_BYTES, &mut *container.input));
        out.member("film".to_owned(), None, &mut body);
    }
    Ok(())
}
