//! ActiveMime: how Office puts macros into XML and web pages, `editdata.mso`. The content is a compound file, compressed.
//! Nobody wrote the format down; the header's length varies, and what it says of the content is in various places.

use std::io::{self, BufReader, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, hand_out};
use crate::fields::{invalid, read_at_most};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;

const MAGIC: &[u8] = b"ActiveMime";
/// How long the header may be: it is 50 bytes mostly.
const HEADER_BYTES_MAX: u64 = 512;

/// ActiveMime.
pub(crate) static FORMAT: Format = Format {
    name: "activemime",
    description: "ActiveMime",
    mime: "application/x-mso",
    extension: "mso",
    category: "D",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(MAGIC)),
    extractor: &ActiveMime,
};

struct ActiveMime;

impl Extractor for ActiveMime {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        if let Err(error) = walk(container, budget, sink) {
            outcome.note_error("the file is broken", &error);
        }
        outcome
    }
}

fn walk(container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> io::Result<()> {
    container.input.seek(SeekFrom::Start(0))?;
    let head = read_at_most(&mut *container.input, HEADER_BYTES_MAX)?;
    // RFC 1950: the method is deflate, and the two bytes together are a multiple of 31.
    let begins = |pair: &[u8; 2]| pair[0] == 0x78 && u16::from_be_bytes(*pair).is_multiple_of(31);
    let start =
        (MAGIC.len()..head.len()).find(|at| head.get(*at..).and_then(|rest| rest.first_chunk()).is_some_and(begins));
    let start = start.ok_or_else(|| invalid("nothing compressed follows the header"))?;
    container.input.seek(SeekFrom::Start(start as u64))?;
    let mut content = flate2::bufread::ZlibDecoder::new(BufReader::new(&mut *container.input));
    match hand_out("content".to_owned(), None, &mut content, budget, sink) {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(halt) => Err(halt.into()),
    }
}
