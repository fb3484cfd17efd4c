//! Text in UTF-16 that holds files: it comes out as the same text in UTF-8, which is then taken apart as whatever it is. Formats: Unicode 16,
//! 3.10; the kinds of text are those of their own readers.
//!
//! Text that would hold nothing in UTF-8 either is no container. Cut off it is complete, since text doesn't say where it ends.

use std::io::{self, Cursor, Read, SeekFrom};

use encoding_rs::{CoderResult, Decoder, Encoding, UTF_16BE, UTF_16LE};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::format::{Claim, Claims, Format, Probe};
use crate::outcome::ExtractionOutcome;
use crate::parts::{BUFFER_BYTES, Out, read_start};
use crate::{binhex, mail, rtf, script_encoder, text, textual};

/// Without a mark at the beginning, so many of the first characters tell that a text is in UTF-16: all are of ASCII.
const TOLD_BY_CHARACTERS: usize = 32;

/// What a text in UTF-16 may be.
static KINDS: [&Format; 8] = [
    &script_encoder::FORMAT,
    &text::FORMAT,
    &rtf::FORMAT,
    &textual::UUENCODE,
    &textual::YENC,
    &binhex::FORMAT,
    &mail::EML,
    &mail::MBOX,
];

/// Text in UTF-16.
pub(crate) static FORMAT: Format = Format {
    name: "utf16",
    description: "Text in UTF-16",
    mime: "text/plain; charset=utf-16",
    extension: "txt",
    category: "T",
    beside: &[],
    probe,
    extractor: &Utf16,
};

/// The byte order of a text that begins like this; none if it is no text in UTF-16.
fn order(head: &[u8]) -> Option<&'static Encoding> {
    match head {
        // With two zeros behind it is UTF-32.
        [0xff, 0xfe, 0, 0, ..] => return None,
        [0xff, 0xfe, ..] => return Some(UTF_16LE),
        [0xfe, 0xff, ..] => return Some(UTF_16BE),
        _ => {}
    }
    let units = head.get(..2 * TOLD_BY_CHARACTERS)?.as_chunks::<2>().0;
    let is_ascii = |byte: u8| matches!(byte, b'\t' | b'\r' | b'\n' | b' '..=b'~');
    if units.iter().all(|[low, high]| is_ascii(*low) && *high == 0) {
        return Some(UTF_16LE);
    }
    units.iter().all(|[high, low]| is_ascii(*low) && *high == 0).then_some(UTF_16BE)
}

fn probe(probe: &mut Probe<'_>) -> io::Result<Claims> {
    let Some(order) = order(probe.head) else { return Ok(Vec::new()) };
    let (head, _) = order.decode_with_bom_removal(probe.head);
    // The end may begin inside a character's two bytes.
    let tail = probe.tail.get((probe.tail_offset() % 2) as usize..).unwrap_or_default();
    let (tail, _) = order.decode_with_bom_removal(tail);
    let mut input = Cursor::new(head.as_bytes());
    let length = head.len() as u64;
    for kind in KINDS {
        let mut inner = Probe::new(head.as_bytes(), tail.as_bytes(), length, &mut input);
        if !(kind.probe)(&mut inner)?.is_empty() {
            return Ok(vec![Claim::Inside(0)]);
        }
    }
    // What nothing claims is searched whole, but as the bytes that it is; so the text in it is searched here.
    probe.input.seek(SeekFrom::Start(0))?;
    let holds_files = text::holds_files(&mut Utf8::new(&mut *probe.input, order))?;
    Ok(if holds_files { vec![Claim::Inside(0)] } else { Vec::new() })
}

struct Utf16;

impl Extractor for Utf16 {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        // Whatever is opened as one is at least decoded as one.
        let order =
            read_start(container.input, 2 * TOLD_BY_CHARACTERS as u64).map(|head| order(&head).unwrap_or(UTF_16LE));
        let name = container.name.rsplit('/').next().unwrap_or_default().to_owned();
        let result = order.and_then(|order| {
            container.input.seek(SeekFrom::Start(0))?;
            out.member(name, None, &mut Utf8::new(&mut *container.input, order));
            Ok(())
        });
        out.end("the text can't be read", result)
    }
}

/// The text in UTF-8.
struct Utf8<'u> {
    input: &'u mut dyn ReadSeek,
    decoder: Decoder,
    text: Vec<u8>,
    given: usize,
    ended: bool,
}

impl<'u> Utf8<'u> {
    fn new(input: &'u mut dyn ReadSeek, order: &'static Encoding) -> Self {
        Self { input, decoder: order.new_decoder_with_bom_removal(), text: Vec::new(), given: 0, ended: false }
    }

    fn refill(&mut self) -> io::Result<()> {
        let mut units = Vec::new();
        (&mut *self.input).take(BUFFER_BYTES as u64).read_to_end(&mut units)?;
        self.ended = units.len() < BUFFER_BYTES;
        // A unit of two bytes becomes three at most.
        self.text.clear();
        self.text.resize(self.decoder.max_utf8_buffer_length(units.len()).unwrap_or(4 * BUFFER_BYTES), 0);
        let (result, _, written, _) = self.decoder.decode_to_utf8(&units, &mut self.text, self.ended);
        debug_assert_eq!(result, CoderResult::InputEmpty);
        self.text.truncate(written);
        self.given = 0;
        Ok(())
    }
}

impl Read for Utf8<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given >= self.text.len() && !self.ended {
            self.refill()?;
        }
        let mut rest = self.text.get(self.given..).unwrap_or_default();
        let read = rest.read(into)?;
        self.given += read;
        Ok(read)
    }
}
