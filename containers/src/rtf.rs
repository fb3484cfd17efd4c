//! Rich Text Format: embedded objects, pictures, and whatever else lies in it as hexadecimal digits. Format: Rich Text Format
//! Specification 1.9.1, and what Word makes of files that don't keep to it.
//!
//! An object is handed out as its content: the file in a package with its name, or else what follows the header of OLE 1, to its
//! end and not to where a length says, since Word opens objects whose lengths lie. Where the header itself can't be trusted, all of the
//! data comes out, and besides the package or compound file in it.
//!
//! What lies behind the document's last brace is read like the document: not every program stops there.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, hand_out};
use crate::fields::{find, read_at_most};
use crate::format::{Format, whole_if};
use crate::ole::{self, package};
use crate::outcome::ExtractionOutcome;
use crate::transfer::hex_digit;

const BUFFER_BYTES: usize = 64 * 1024;
/// What an object's data is shown as.
const OBJECT: &str = "object";
/// The longest control word; the longest that means anything has some twenty letters.
const WORD_BYTES_MAX: usize = 40;
/// How many bytes pass between two looks at the clock.
const BYTES_BETWEEN_CHECKS: u32 = 1 << 20;
/// How often a document's length is read again, in all, for data that lies in other data.
const AGAIN_TIMES: u64 = 16;

/// Rich Text Format.
pub(crate) static FORMAT: Format = Format {
    name: "rtf",
    description: "Rich Text Format",
    mime: "application/rtf",
    extension: "rtf",
    category: "D",
    beside: &[],
    // Word asks for no more.
    probe: |probe| whole_if(probe.head.trim_ascii_start().starts_with(b"{\\rt")),
    extractor: &Rtf,
};

struct Rtf;

impl Extractor for Rtf {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        if let Err(error) = walk(container, budget, sink, &mut outcome) {
            outcome.note_error("the document is broken", &error);
        }
        outcome
    }
}

/// The groups of control words that have data, and what it is shown as.
fn destination(word: &[u8]) -> Option<&'static str> {
    Some(match word {
        b"objdata" => OBJECT,
        b"pict" => "picture",
        b"datastore" => "datastore",
        b"themedata" => "theme",
        b"colorschememapping" => "colors",
        b"passwordhash" | b"datafield" => "data",
        _ => return None,
    })
}

fn walk(
    container: &mut Container<'_>,
    budget: &Budget,
    sink: &mut Sink<'_>,
    outcome: &mut ExtractionOutcome,
) -> io::Result<()> {
    container.input.seek(SeekFrom::Start(0))?;
    let mut again_bytes = container.length.saturating_mul(AGAIN_TIMES);
    let input: &mut dyn ReadSeek = &mut *container.input;
    let mut tokens = Tokens { input: BufReader::with_capacity(BUFFER_BYTES, input), budget, bytes: 0, depth: 0 };
    let (mut members, mut has_ended) = (0u64, false);
    while let Some(byte) = tokens.next()? {
        match byte {
            b'{' => tokens.depth += 1,
            b'}' => {
                tokens.depth = tokens.depth.saturating_sub(1);
                has_ended |= tokens.depth == 0;
            }
            b'\\' => {
                let Some(control) = tokens.control()? else { continue };
                if control.word == b"bin" {
                    tokens.skip(control.number)?;
                }
                let mut kind = destination(&control.word);
                while let Some(some) = kind.take() {
                    members += 1;
                    let next = group(&format!("{some}-{members}"), some == OBJECT, &mut tokens, budget, sink, outcome)?;
                    if outcome.is_over() {
                        return Ok(());
                    }
                    if let Some(next) = next {
                        kind = tokens.go_on_at(next, &mut again_bytes, outcome)?;
                    }
                }
            }
            _ => {}
        }
    }
    if !has_ended {
        outcome.note_broken("the document is cut off");
    }
    Ok(())
}

/// Hands out what a group of data has, in each reading. Tells where other data begins in it.
fn group(
    name: &str,
    is_object: bool,
    tokens: &mut Tokens<'_>,
    budget: &Budget,
    sink: &mut Sink<'_>,
    outcome: &mut ExtractionOutcome,
) -> io::Result<Option<Next>> {
    let start = tokens.place()?;
    let mut next = None;
    for is_other_reading in [false, true] {
        tokens.go_back(start)?;
        let mut data = Data::new(tokens, is_other_reading);
        let hidden = member(name, &mut data, budget, sink, outcome)?;
        let is_disputed = data.is_disputed;
        next = next.or(data.next);
        // Pictures have properties in groups; nobody writes any into an object.
        if !is_object {
            break;
        }
        for part in hidden {
            if outcome.is_over() {
                return Ok(None);
            }
            tokens.go_back(start)?;
            part.hand_out(Data::new(tokens, is_other_reading), budget, sink)?;
        }
        if !is_disputed || outcome.is_over() {
            break;
        }
        outcome.note_suspicious(format!("programs differ in what the data of {name:?} is"));
    }
    Ok(next)
}

/// Hands out what a group of data has, if it has anything. Tells what else lies in it if it is an object.
fn member(
    name: &str,
    data: &mut Data<'_, '_>,
    budget: &Budget,
    sink: &mut Sink<'_>,
    outcome: &mut ExtractionOutcome,
) -> io::Result<Vec<Hidden>> {
    let beginning = read_at_most(data, package::HEADER_BYTES_MAX)?;
    if beginning.is_empty() {
        return Ok(Vec::new());
    }
    let (mut name, mut from, mut length) = (name.to_owned(), 0, u64::MAX);
    if let Some(object) = package::embedded(&beginning) {
        from = object.offset;
        // Whatever class it says: several names stand for the program that opens packages.
        if let Some(package) = package::package(&beginning, object.offset) {
            (name, from, length) = (package.name, package.offset, u64::from(package.length));
        }
    }
    let hidden = if length == u64::MAX { Hidden::all(&name, &beginning, from) } else { Vec::new() };
    let mut content = beginning.get(from..).unwrap_or_default().chain(&mut *data).take(length);
    let handed_out = hand_out(name.clone(), None, &mut content, budget, sink);
    if length != u64::MAX && content.limit() > 0 {
        outcome.note_broken(format!("{name:?} is cut off"));
    }
    match handed_out {
        Ok(None) => {}
        Ok(Some(error)) => return Err(error),
        Err(halt) => return Err(halt.into()),
    }
    // What follows the content is searched for nothing, but must be read to get behind it.
    io::copy(data, &mut io::sink())?;
    Ok(hidden)
}

/// What lies in an object's data behind a header that says something else, or none that is known.
struct Hidden {
    name: String,
    from: u64,
    length: u64,
}

impl Hidden {
    /// The first package and the first compound file behind `from`, unless a compound file begins there.
    fn all(name: &str, beginning: &[u8], from: usize) -> Vec<Self> {
        let content = beginning.get(from..).unwrap_or_default();
        let compound = find(content, &ole::MAGIC);
        if compound == Some(0) {
            return Vec::new();
        }
        let at = |offset: usize| (from + offset) as u64;
        let package = package::hidden_package(content).map(|package| {
            let (from, length) = (at(package.offset), u64::from(package.length));
            Self { name: package.name, from, length }
        });
        let compound = compound.map(|offset| Self { name: format!("{name}.ole"), from: at(offset), length: u64::MAX });
        package.into_iter().chain(compound).collect()
    }

    fn hand_out(self, mut data: Data<'_, '_>, budget: &Budget, sink: &mut Sink<'_>) -> io::Result<()> {
        io::copy(&mut (&mut data).take(self.from), &mut io::sink())?;
        let handed_out = hand_out(self.name, None, &mut (&mut data).take(self.length), budget, sink);
        io::copy(&mut data, &mut io::sink())?;
        handed_out?.map_or(Ok(()), Err)
    }
}

/// Where other data begins in data: what it is, and where.
#[derive(Clone, Copy)]
struct Next {
    kind: &'static str,
    place: Place,
}

/// A place in the document, and how many groups it lies in.
#[derive(Clone, Copy)]
struct Place {
    position: u64,
    depth: u64,
}

/// A control word with its number.
struct Control {
    word: Vec<u8>,
    number: u64,
}

struct Tokens<'t> {
    input: BufReader<&'t mut dyn ReadSeek>,
    budget: &'t Budget,
    bytes: u32,
    /// How many groups are open.
    depth: u64,
}

impl Tokens<'_> {
    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    fn next(&mut self) -> io::Result<Option<u8>> {
        let byte = self.peek()?;
        if byte.is_some() {
            self.input.consume(1);
            self.bytes += 1;
            if self.bytes >= BYTES_BETWEEN_CHECKS {
                self.bytes = 0;
                self.budget.check()?;
            }
        }
        Ok(byte)
    }

    fn place(&mut self) -> io::Result<Place> {
        Ok(Place { position: self.input.stream_position()?, depth: self.depth })
    }

    fn go_back(&mut self, place: Place) -> io::Result<()> {
        self.depth = place.depth;
        let position = self.input.stream_position()?;
        self.input.seek_relative(place.position as i64 - position as i64)
    }

    /// Goes back to where other data begins in data. Groups in each other would be read as often as they are deep.
    fn go_on_at(
        &mut self,
        next: Next,
        again_bytes: &mut u64,
        outcome: &mut ExtractionOutcome,
    ) -> io::Result<Option<&'static str>> {
        let bytes = self.input.stream_position()?.saturating_sub(next.place.position);
        let Some(left) = again_bytes.checked_sub(bytes) else {
            outcome.note_suspicious("more data lies in other data than is read");
            return Ok(None);
        };
        *again_bytes = left;
        self.go_back(next.place)?;
        Ok(Some(next.kind))
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.budget.check()?;
        io::copy(&mut (&mut self.input).take(bytes), &mut io::sink()).map(drop)
    }

    /// What follows a backslash: a control word with the space behind it, or none for a symbol, which is taken whole.
    fn control(&mut self) -> io::Result<Option<Control>> {
        let mut word = Vec::new();
        while let Some(letter) = self.peek()?.filter(u8::is_ascii_alphabetic) {
            if word.len() < WORD_BYTES_MAX {
                word.push(letter);
            }
            self.next()?;
        }
        if word.is_empty() {
            if self.next()? == Some(b'\'') {
                for _ in 0..2 {
                    if self.peek()?.is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        self.next()?;
                    }
                }
            }
            return Ok(None);
        }
        let is_negative = self.peek()? == Some(b'-');
        if is_negative {
            self.next()?;
        }
        let mut number = 0u64;
        while let Some(digit) = self.peek()?.filter(u8::is_ascii_digit) {
            number = number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
            self.next()?;
        }
        if self.peek()? == Some(b' ') {
            self.next()?;
        }
        // The one number that counts here is a length.
        Ok(Some(Control { word, number: if is_negative { 0 } else { number } }))
    }
}

/// The data of a group: its hexadecimal digits, up to the brace that ends it, and whatever bytes lie in it as they are. Groups in
/// it have properties, and everything else is passed over.
///
/// Word goes on with the data in groups that don't say that they may be ignored, and an escaped character makes it forget half a
/// byte: that is the other reading.
struct Data<'d, 't> {
    tokens: &'d mut Tokens<'t>,
    is_other_reading: bool,
    nested: u64,
    /// How deep the group lies that may be ignored.
    ignored: Option<u64>,
    binary_bytes: u64,
    has_ended: bool,
    /// Both readings differ.
    is_disputed: bool,
    /// The first other data in it, which ends it unless that lies in a group of its own.
    next: Option<Next>,
}

impl<'d, 't> Data<'d, 't> {
    fn new(tokens: &'d mut Tokens<'t>, is_other_reading: bool) -> Self {
        Self {
            tokens,
            is_other_reading,
            nested: 0,
            ignored: None,
            binary_bytes: 0,
            has_ended: false,
            is_disputed: false,
            next: None,
        }
    }

    /// The half of a byte that a digit stands for here.
    fn half(&mut self, byte: u8) -> Option<u8> {
        let half = hex_digit(byte)?;
        if self.nested > 0 {
            self.is_disputed |= self.ignored.is_none();
            return Some(half).filter(|_| self.is_other_reading && self.ignored.is_none());
        }
        Some(half)
    }

    /// Reads what follows a backslash.
    fn control(&mut self) -> io::Result<()> {
        let Some(control) = self.tokens.control()? else { return Ok(()) };
        if control.word == b"bin" {
            self.binary_bytes = control.number;
        }
        if let Some(kind) = destination(&control.word) {
            let place = self.tokens.place()?;
            self.next.get_or_insert(Next { kind, place });
            self.has_ended = self.nested == 0;
        }
        Ok(())
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        let mut high = None;
        while !self.has_ended {
            if self.binary_bytes > 0 {
                self.binary_bytes -= 1;
                return self.tokens.next();
            }
            match self.tokens.peek()? {
                None => self.has_ended = true,
                Some(b'}') if self.nested == 0 => self.has_ended = true,
                Some(byte) => {
                    self.tokens.next()?;
                    match (byte, self.half(byte)) {
                        (b'{', _) => {
                            self.nested += 1;
                            self.tokens.depth += 1;
                        }
                        (b'}', _) => {
                            self.ignored = self.ignored.filter(|depth| *depth < self.nested);
                            self.nested -= 1;
                            self.tokens.depth = self.tokens.depth.saturating_sub(1);
                        }
                        (b'\\', _) => {
                            match self.tokens.peek()? {
                                Some(b'*') if self.nested > 0 => _ = self.ignored.get_or_insert(self.nested),
                                Some(b'\'') if high.is_some() => {
                                    self.is_disputed = true;
                                    high = high.filter(|_| !self.is_other_reading);
                                }
                                _ => {}
                            }
                            self.control()?;
                        }
                        (_, Some(digit)) => match high {
                            None => high = Some(digit),
                            Some(high) => return Ok(Some(high << 4 | digit)),
                        },
                        _ => {}
                    }
                }
            }
        }
        Ok(None)
    }
}

impl Read for Data<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        for place in into {
            let Some(byte) = self.byte()? else { break };
            *place = byte;
            read += 1;
        }
        Ok(read)
    }
}
