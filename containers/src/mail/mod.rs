//! Mail: messages with their parts, as files of their own, in mailboxes, and as web pages with everything in them (MHTML). Formats:
//! RFC 5322, 2045 to 2049, 2557, 4155.
//!
//! Every part that is no container of parts is handed out, decoded, under the name its sender gave it; files that were put into
//! text by uuencode or yEnc too, and text around the parts if there is any. A message in a message is a part like others. The
//! text is read line by line, so memory doesn't depend on its length.
//!
//! Where programs differ in how they read a message (what ends a line, which lines are fields, which of several boundaries counts),
//! it is read in all of these ways, and so are the base64 and the quoted-printable of a part. What one of these ways has to remark is kept of the first alone.

mod content;
mod headers;
mod lines;
pub(crate) mod tnef;

use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};

use self::content::{Content, ContentEnd, Encoding};
use self::headers::Headers;
use self::lines::Lines;
use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, hand_out, read_full};
use crate::encoded::is_text;
use crate::format::{Claim, Claims, Format, Probe, whole_if};
use crate::outcome::ExtractionOutcome;

/// The longest fields of a message or part that say how to read it.
const HEADERS_BYTES_MAX: usize = 1 << 20;
/// The deepest that parts of parts lie, without messages in messages.
const DEPTH_MAX: usize = 64;
const BUFFER_BYTES: usize = 64 * 1024;
/// In how many ways a message is read at most. Real ones can be read in one.
const READINGS_MAX: usize = 16;
/// What is said where that is not all.
const MORE_WAYS: &str = "the message can be read in more ways than are tried";
/// How many fields of a mail the beginning of one has at least.
const FIELDS_MIN: usize = 2;
/// Fields that mails have and other texts with fields don't.
const FIELDS: [&str; 22] = [
    "bcc",
    "cc",
    "content-disposition",
    "content-transfer-encoding",
    "content-type",
    "date",
    "delivered-to",
    "dkim-signature",
    "from",
    "in-reply-to",
    "message-id",
    "mime-version",
    "received",
    "references",
    "reply-to",
    "return-path",
    "sender",
    "subject",
    "thread-topic",
    "to",
    "x-mailer",
    "x-originating-ip",
];

/// Encodings of mail that are none.
const NO_ENCODINGS: [&[u8]; 4] = [b"", b"7bit", b"8bit", b"binary"];
/// Marks the order of bytes, which text in UTF-8 doesn't need.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A message.
pub(crate) static EML: Format = Format {
    name: "eml",
    description: "E-mail message",
    mime: "message/rfc822",
    extension: "eml",
    category: "Z",
    beside: &[],
    probe: probe_eml,
    extractor: &Eml,
};

/// A mailbox.
pub(crate) static MBOX: Format = Format {
    name: "mbox",
    description: "Mailbox",
    mime: "application/mbox",
    extension: "mbox",
    category: "Z",
    beside: &[],
    probe: probe_mbox,
    extractor: &Mbox,
};

/// A file is a mailbox if it begins with the line of one, and behind that or another such line is a mail.
fn probe_mbox(probe: &mut Probe<'_>) -> io::Result<Claims> {
    // Some programs make a blank line first.
    let first = probe.head.trim_ascii_start();
    if !first.starts_with(b"From ") {
        return Ok(Vec::new());
    }
    let is_one = has_mail(Cursor::new(first))?;
    if is_one || probe.is_short() {
        return whole_if(is_one);
    }
    probe.input.seek(SeekFrom::Start(0))?;
    whole_if(has_mail(BufReader::with_capacity(BUFFER_BYTES, &mut *probe.input))?)
}

/// Whether a mail is in a text behind any line of mailboxes.
fn has_mail(mut input: impl BufRead + Seek) -> io::Result<bool> {
    for returns_end in [false, true] {
        input.seek(SeekFrom::Start(0))?;
        let mut lines = Lines::new(&mut input, 0, returns_end);
        let mut fields: Option<Fields> = None;
        while let Some((line, begins)) = lines.next()? {
            if begins && line.starts_with(b"From ") {
                fields = Some(Fields::default());
            } else if let Some(beginning) = fields.as_mut().and_then(|fields| fields.line(line, begins)) {
                if beginning != Beginning::Other {
                    return Ok(true);
                }
                fields = None;
            }
        }
        if fields.and_then(|mut fields| fields.told()).is_some() {
            return Ok(true);
        }
        if !lines.has_lone_return() {
            break;
        }
    }
    Ok(false)
}

/// What a text is by the lines that it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    Mail,
    /// A mail for programs that pass over lines which are no fields. It may be any text, so that it is taken apart as that too; and
    /// one behind whose fields nothing is decoded is left to those that search texts, notes and settings being like that.
    PerhapsMail,
    Other,
}

/// Tells whether a file begins with the fields of a mail, however many others come first.
fn probe_eml(probe: &mut Probe<'_>) -> io::Result<Claims> {
    let beginning = match beginning(Cursor::new(probe.head))? {
        None if !probe.is_short() => {
            probe.input.seek(SeekFrom::Start(0))?;
            beginning(BufReader::with_capacity(BUFFER_BYTES, &mut *probe.input))?
        }
        known => known,
    };
    Ok(match beginning {
        Some(Beginning::Mail) => vec![Claim::Whole(0)],
        // Data with texts among them, such as translations, have fields too.
        Some(Beginning::PerhapsMail) if is_text(probe.head) => vec![Claim::Inside(0)],
        _ => Vec::new(),
    })
}

/// Whether a text begins with the fields of a mail.
pub(crate) fn begins_as_mail(text: &[u8]) -> bool {
    matches!(beginning(Cursor::new(text)), Ok(Some(Beginning::Mail)))
}

/// What a text begins as; none if it ends among the fields.
fn beginning(mut input: impl BufRead + Seek) -> io::Result<Option<Beginning>> {
    let mut lines = Lines::new(&mut input, 0, false);
    let found = Fields::default().all(&mut lines)?;
    if matches!(found, Some(Beginning::Mail | Beginning::PerhapsMail)) || !lines.has_lone_return() {
        return Ok(found);
    }
    input.seek(SeekFrom::Start(0))?;
    Fields::default().all(&mut Lines::new(input, 0, true))
}

/// What is known of a text after some of its lines.
#[derive(Default)]
struct Fields {
    began: bool,
    /// A line came that is no field.
    has_others: bool,
    /// How many fields are those of mails.
    found: usize,
    /// One of them tells what the content is.
    has_content: bool,
    /// The last field, if it may tell by itself what the text is: whether it is the type, and its value.
    telling: Option<(bool, Vec<u8>)>,
}

impl Fields {
    fn all(mut self, lines: &mut Lines<impl BufRead>) -> io::Result<Option<Beginning>> {
        while let Some((line, begins)) = lines.next()? {
            if let Some(beginning) = self.line(line, begins) {
                return Ok(Some(beginning));
            }
            // Programs that pass over lines take no longer headers either.
            if self.has_others && lines.offset() > HEADERS_BYTES_MAX as u64 {
                return Ok(Some(Beginning::Other));
            }
        }
        Ok(self.told())
    }

    /// Takes a line, or a piece of one; tells what the text is once that is known.
    fn line(&mut self, line: &[u8], begins: bool) -> Option<Beginning> {
        let mut line = line;
        if !self.began {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).trim_ascii_start();
            if line.is_empty() {
                return None;
            }
        } else if !begins || matches!(line.first(), Some(b' ' | b'\t')) {
            self.go_on(line);
            return None;
        }
        if let Some(beginning) = self.told() {
            return Some(beginning);
        }
        if matches!(line, b"\n" | b"\r\n") {
            return Some(Beginning::Other);
        }
        if self.began && is_passed_over(line) {
            return None;
        }
        self.began = true;
        match headers::field(line) {
            Some((name, value)) => self.field(&name.to_ascii_lowercase(), value),
            None => {
                self.has_others = true;
                if let Some((name, value)) = headers::loose_field(line) {
                    self.field(&name.to_ascii_lowercase(), value);
                }
            }
        }
        None
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        let is_type = name == b"content-type";
        if is_type || name == b"content-transfer-encoding" {
            self.telling = Some((is_type, value.to_vec()));
        }
        self.found += usize::from(FIELDS.iter().any(|field| name == field.as_bytes()));
        self.has_content |= is_type || name == b"content-disposition";
    }

    /// Takes more of the last field.
    fn go_on(&mut self, piece: &[u8]) {
        if let Some((_, value)) = self.telling.as_mut().filter(|(_, value)| value.len() < HEADERS_BYTES_MAX) {
            value.extend_from_slice(piece.trim_ascii_end());
        }
    }

    /// What the text is by the fields that came so far, the last of which is whole.
    fn told(&mut self) -> Option<Beginning> {
        // Either is enough: whatever opens mail finds parts in it, or decodes it.
        let is_enough = match self.telling.take() {
            Some((true, value)) => headers::may_hold_parts(&value),
            Some((false, value)) => !NO_ENCODINGS.contains(&value.trim_ascii().to_ascii_lowercase().as_slice()),
            None => false,
        };
        let is_mail = is_enough || self.found >= FIELDS_MIN && (self.has_content || !self.has_others);
        is_mail.then_some(if self.has_others { Beginning::PerhapsMail } else { Beginning::Mail })
    }
}

/// Whether a line among fields is none, and yet ends them for no program that is known.
fn is_passed_over(line: &[u8]) -> bool {
    line.starts_with(b"From ") || line.starts_with(b":")
}

/// How a message is read, where programs differ. The same text can be several messages.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Reading {
    /// A carriage return alone ends a line.
    returns_end: bool,
    other_lines: OtherLines,
    /// Which of the [`BOUNDARY_RULES`] is asked first.
    boundary_rule: usize,
    /// What has a boundary has parts, whatever its type.
    any_type_has_parts: bool,
}

/// What lines among fields do that are none.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum OtherLines {
    /// They end the fields, except for some.
    #[default]
    EndUnlessKnown,
    /// They end the fields.
    End,
    /// They are passed over, except for those that are fields to programs which do so.
    PassOver,
}

struct Eml;

impl Extractor for Eml {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut readings = vec![Reading::default()];
        let mut outcome = ExtractionOutcome::default();
        let mut next = 0;
        while let Some(reading) = readings.get(next).copied().filter(|_| !outcome.is_over()) {
            if next > 0 {
                if !budget.admits_rereading() {
                    note_more_ways(&mut outcome);
                    break;
                }
                budget.count_rereading(container.length);
            }
            let (read, missed, others) = read_message(container, reading, budget, sink);
            if next == 0 {
                outcome = read;
            } else {
                // Read like this it may be broken, which it is not for the others. What was not looked into counts all the same.
                let (broken, suspicious) = (missed.broken, missed.suspicious);
                outcome.merge(ExtractionOutcome { broken, suspicious, ..read });
            }
            for other in others {
                if readings.len() < READINGS_MAX && !readings.contains(&other) {
                    readings.push(other);
                } else if !readings.contains(&other) {
                    outcome.note_suspicious(MORE_WAYS);
                }
            }
            next += 1;
        }
        outcome
    }
}

/// Notes that something can be read in more ways than the tree has an allowance for.
fn note_more_ways(outcome: &mut ExtractionOutcome) {
    outcome.note_suspicious(MORE_WAYS);
    outcome.unrepeatable = true;
}

/// Reads a message in one way; tells what of that was not looked into, and in which other ways it can be read.
fn read_message(
    container: &mut Container<'_>,
    reading: Reading,
    budget: &Budget,
    sink: &mut Sink<'_>,
) -> (ExtractionOutcome, ExtractionOutcome, Vec<Reading>) {
    let mut outcome = ExtractionOutcome::default();
    let input: &mut dyn ReadSeek = &mut *container.input;
    let start = match begin(input) {
        Ok(start) => start,
        Err(error) => {
            outcome.note_error("the message can't be read", &error);
            return (outcome, ExtractionOutcome::default(), Vec::new());
        }
    };
    let input = BufReader::with_capacity(BUFFER_BYTES, input);
    let lines = Lines::new(input, start, reading.returns_end);
    let boundaries = Vec::new();
    let (others, missed) = (Vec::new(), ExtractionOutcome::default());
    let mut message = Message { lines, reading, others, boundaries, parts: 0, start, budget, sink, outcome, missed };
    if let Err(error) = message.run() {
        message.outcome.note_error("the message is broken", &error);
    }
    if message.lines.has_lone_return() {
        message.note_other(Reading { returns_end: true, ..reading });
    }
    (message.outcome, message.missed, message.others)
}

/// Goes to where the text begins.
fn begin(input: &mut dyn ReadSeek) -> io::Result<u64> {
    let mut first = [0; BYTE_ORDER_MARK.len()];
    input.seek(SeekFrom::Start(0))?;
    let has_mark = read_full(input, &mut first)? == first.len() && first == BYTE_ORDER_MARK;
    input.seek(SeekFrom::Start(if has_mark { first.len() as u64 } else { 0 }))
}

type Input<'i> = BufReader<&'i mut dyn ReadSeek>;

/// What ends a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The boundary of the multipart at this depth: another part follows.
    Next(usize),
    /// The last boundary of the multipart at this depth.
    Last(usize),
    /// The end of the message.
    Input,
}

struct Message<'m, 's, 'i> {
    lines: Lines<Input<'i>>,
    reading: Reading,
    /// Other ways to read it, of which each makes a difference.
    others: Vec<Reading>,
    /// The boundaries of the multiparts that are open, the outermost first.
    boundaries: Vec<Vec<u8>>,
    parts: u64,
    /// Where the first line that is not blank begins.
    start: u64,
    budget: &'m Budget,
    sink: &'m mut Sink<'s>,
    outcome: ExtractionOutcome,
    /// What was not looked into, which is in the outcome too.
    missed: ExtractionOutcome,
}

impl Message<'_, '_, '_> {
    fn run(&mut self) -> io::Result<()> {
        // Blank lines, and the line of a mailbox, before the first field.
        while let Some((line, _)) = self.lines.next()? {
            if !line.trim_ascii().is_empty() && !line.starts_with(b"From ") {
                self.lines.give_back();
                break;
            }
        }
        self.start = self.lines.offset();
        let mut end = self.entity()?;
        while !self.outcome.is_over() {
            self.budget.check()?;
            end = match end {
                End::Next(depth) => {
                    self.boundaries.truncate(depth + 1);
                    self.entity()?
                }
                End::Last(depth) => {
                    self.boundaries.truncate(depth);
                    self.text_around("epilogue")?
                }
                End::Input => {
                    if !self.boundaries.is_empty() {
                        self.outcome.note_broken("the message ends before its last part does");
                    }
                    break;
                }
            };
        }
        Ok(())
    }

    /// Takes headers and what belongs to them; tells what ended it.
    fn entity(&mut self) -> io::Result<End> {
        let (headers, end) = self.headers()?;
        if let Some(end) = end {
            return Ok(end);
        }
        for field in ["content-type", "content-transfer-encoding", "content-disposition"] {
            if headers.is_ambiguous(field) {
                self.outcome.note_suspicious(format!("a part has two different fields {field}"));
            }
        }
        // Without a field a text is no message but itself, which would be found in itself again.
        if self.lines.offset() == self.start {
            return Ok(End::Input);
        }
        if let Some(boundary) = self.boundary_of(&headers) {
            if self.boundaries.len() < DEPTH_MAX {
                self.boundaries.push(boundary);
                return self.text_around("preamble");
            }
            self.miss(|outcome| outcome.note_broken(format!("parts lie more than {DEPTH_MAX} deep")));
        }
        self.part(&headers)
    }

    /// What separates the parts by the first rule that tells; the others are other readings if they tell otherwise.
    fn boundary_of(&mut self, headers: &Headers) -> Option<Vec<u8>> {
        let boundaries = headers.boundaries()?;
        // Some programs read a type where others find none, or ask for the boundary alone.
        if !headers.is_multipart() && !self.reading.any_type_has_parts {
            self.note_other(Reading { any_type_has_parts: true, ..self.reading });
            return None;
        }
        let preferred = boundaries.get(self.reading.boundary_rule).cloned().flatten();
        let boundary = preferred.or_else(|| boundaries.iter().flatten().next().cloned())?;
        for (boundary_rule, other) in boundaries.iter().enumerate() {
            if other.as_ref().is_some_and(|other| *other != boundary) {
                self.note_other(Reading { boundary_rule, ..self.reading });
            }
        }
        Some(boundary)
    }

    /// Notes that something is not looked into, whichever reading this is.
    fn miss(&mut self, note: impl Fn(&mut ExtractionOutcome)) {
        note(&mut self.outcome);
        note(&mut self.missed);
    }

    fn note_other(&mut self, reading: Reading) {
        if !self.others.contains(&reading) {
            self.others.push(reading);
        }
    }

    /// Reads headers; tells what ended them, if it was not an empty line.
    fn headers(&mut self) -> io::Result<(Headers, Option<End>)> {
        let mut headers = Headers::default();
        loop {
            let Some((line, begins)) = self.lines.next()? else { return Ok((headers, Some(End::Input))) };
            if let Some(end) = boundary(line, &self.boundaries).filter(|_| begins) {
                return Ok((headers, Some(end)));
            }
            let is_whole = line.ends_with(b"\n");
            // A line of spaces goes on with a field, as the specification has it.
            let line = line.strip_suffix(b"\n").map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line));
            if !begins {
                headers.append(line);
            } else if line.is_empty() {
                return Ok((headers, None));
            } else if !headers.push(line) {
                // Of a line that begins with space there was none yet that it continues.
                let is_known = is_passed_over(line) || matches!(line.first(), Some(b' ' | b'\t'));
                let is_loose = headers::loose_field(line).is_some();
                let passes_over = match self.reading.other_lines {
                    OtherLines::EndUnlessKnown => is_known,
                    OtherLines::End => false,
                    OtherLines::PassOver => true,
                };
                if self.reading.other_lines == OtherLines::PassOver {
                    headers.pass_over(line);
                }
                let others = [OtherLines::End, OtherLines::PassOver];
                for other_lines in others.into_iter().filter(|_| is_whole) {
                    if is_loose || (other_lines == OtherLines::PassOver) != passes_over {
                        self.note_other(Reading { other_lines, ..self.reading });
                    }
                }
                if !passes_over {
                    // What is no field begins the content for most programs.
                    if !is_whole {
                        self.outcome.note_broken("the message ends inside its headers");
                    }
                    self.lines.give_back();
                    return Ok((headers, None));
                }
            }
            if headers.kept_bytes() > HEADERS_BYTES_MAX {
                self.miss(|outcome| outcome.note_broken("headers longer than any real message has"));
                return Ok((headers, None));
            }
        }
    }

    /// Hands out a part, once for each way in which programs decode it; tells what ended it.
    fn part(&mut self, headers: &Headers) -> io::Result<End> {
        self.parts += 1;
        let media_type = headers.media_type();
        if headers.has_more_encodings() {
            self.miss(|outcome| outcome.note_suspicious(MORE_WAYS));
        }
        let mut readings: Vec<_> = headers.encodings().iter().map(|name| Encoding::named(name)).collect();
        // Messages may not be encoded, and for some programs therefore are not.
        if readings.is_empty() || headers.is_message() {
            readings.push(Encoding::Text);
        }
        let extension = match media_type.as_str() {
            "message/rfc822" | "message/global" => ".eml",
            "text/html" => ".html",
            "text/plain" | "" => ".txt",
            _ => "",
        };
        let name = headers.file_name().unwrap_or_else(|| format!("part-{}{extension}", self.parts));
        let start = self.lines.offset();
        let mut done: Vec<Encoding> = Vec::new();
        let mut first_end = None;
        while !readings.is_empty() {
            let encoding = readings.remove(0);
            if done.contains(&encoding) {
                continue;
            }
            if !done.is_empty() {
                if !self.budget.admits_rereading() {
                    self.miss(note_more_ways);
                    break;
                }
                self.budget.count_rereading(self.lines.offset().saturating_sub(start));
                self.lines.seek(start)?;
            }
            done.push(encoding.clone());
            let (end, others) = self.content(name.clone(), encoding)?;
            readings.extend(others);
            first_end.get_or_insert(end);
        }
        Ok(first_end.unwrap_or(End::Input))
    }

    /// Hands out what lies before the first part or behind the last, if it is anything; tells what ended it.
    fn text_around(&mut self, name: &str) -> io::Result<End> {
        loop {
            let Some((line, begins)) = self.lines.next()? else { return Ok(End::Input) };
            if let Some(end) = boundary(line, &self.boundaries).filter(|_| begins) {
                return Ok(end);
            }
            if !line.trim_ascii().is_empty() {
                self.lines.give_back();
                return Ok(self.content(name.to_owned(), Encoding::Text)?.0);
            }
        }
    }

    /// Hands out content up to the next boundary, and the files that lie in it as text. Tells what ended it, and in which other
    /// ways it is decoded to something else.
    fn content(&mut self, name: String, encoding: Encoding) -> io::Result<(End, Vec<Encoding>)> {
        let mut content = Content::new(&mut self.lines, &self.boundaries, encoding);
        let mut name = name;
        loop {
            match hand_out(name.clone(), None, &mut content, self.budget, self.sink) {
                Ok(None) => {}
                Ok(Some(error)) => return Err(error),
                Err(halt) => return Err(halt.into()),
            }
            match content.end.take() {
                Some(ContentEnd::Part(end)) => {
                    if matches!(content.encoding, Encoding::Uuencoded | Encoding::Yenc) {
                        self.outcome.note_broken(format!("{name:?} ends before its last line"));
                    }
                    return Ok((end, content.other_readings()));
                }
                Some(ContentEnd::File(file, encoding)) => {
                    name = file;
                    content.encoding = encoding;
                }
                Some(ContentEnd::FileEnded) => {
                    name = format!("part-{}.txt", self.parts);
                    content.encoding = Encoding::Text;
                }
                None => return Ok((End::Input, Vec::new())),
            }
        }
    }
}

/// The multipart whose boundary a line is, if it is one.
fn boundary(line: &[u8], boundaries: &[Vec<u8>]) -> Option<End> {
    let rest = line.trim_ascii_end().strip_prefix(b"--")?;
    // The innermost first.
    boundaries.iter().enumerate().rev().find_map(|(depth, boundary)| match rest.strip_prefix(boundary.as_slice())? {
        b"" => Some(End::Next(depth)),
        b"--" => Some(End::Last(depth)),
        _ => None,
    })
}

struct Mbox;

impl Extractor for Mbox {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        if let Err(error) = messages(container, budget, sink, &mut outcome) {
            outcome.note_error("the mailbox can't be read", &error);
        }
        outcome
    }
}

/// Hands out the messages of a mailbox. A line that begins one without a blank line before it does so for some programs only: such a
/// message is handed out whole, and then in the pieces behind the first that it is to these: of the first they see no more.
fn messages(
    container: &mut Container<'_>,
    budget: &Budget,
    sink: &mut Sink<'_>,
    outcome: &mut ExtractionOutcome,
) -> io::Result<()> {
    container.input.seek(SeekFrom::Start(0))?;
    let input: &mut dyn ReadSeek = &mut *container.input;
    let mut lines = Lines::new(BufReader::with_capacity(BUFFER_BYTES, input), 0, false);
    while lines.next()?.is_some_and(|(line, _)| line.trim_ascii().is_empty()) {}
    for number in 1u64.. {
        let start = lines.offset();
        let is_disputed = message(&mut lines, format!("message-{number}.eml"), true, budget, sink, outcome)?;
        let end = lines.offset();
        if is_disputed && !outcome.is_over() && !budget.admits_rereading() {
            note_more_ways(outcome);
        } else if is_disputed && !outcome.is_over() {
            budget.count_rereading(end - start);
            lines.seek(start)?;
            let mut piece = MessageOfMailbox::new(&mut lines, false);
            io::copy(&mut piece, &mut io::sink())?;
            for piece in 2u64.. {
                if outcome.is_over() || lines.offset() >= end || lines.next()?.is_none() {
                    break;
                }
                message(&mut lines, format!("message-{number}-{piece}.eml"), false, budget, sink, outcome)?;
            }
        }
        // The line that begins the next.
        if outcome.is_over() || lines.next()?.is_none() {
            break;
        }
    }
    Ok(())
}

/// Hands out a message; tells whether some programs take it for several.
fn message(
    lines: &mut Lines<Input<'_>>,
    name: String,
    needs_blank: bool,
    budget: &Budget,
    sink: &mut Sink<'_>,
    outcome: &mut ExtractionOutcome,
) -> io::Result<bool> {
    let mut message = MessageOfMailbox::new(lines, needs_blank);
    match hand_out(name, None, &mut message, budget, sink) {
        Ok(None) => {}
        Ok(Some(error)) => return Err(error),
        Err(halt) => outcome.note_halt(halt),
    }
    Ok(message.is_disputed)
}

/// A message of a mailbox, up to the line that begins the next.
struct MessageOfMailbox<'m, 'i> {
    lines: &'m mut Lines<Input<'i>>,
    line: Cursor<Vec<u8>>,
    /// Only behind a blank line the next message may begin.
    needs_blank: bool,
    after_blank: bool,
    /// It might have begun elsewhere.
    is_disputed: bool,
    ended: bool,
}

impl<'m, 'i> MessageOfMailbox<'m, 'i> {
    fn new(lines: &'m mut Lines<Input<'i>>, needs_blank: bool) -> Self {
        let line = Cursor::new(Vec::new());
        Self { lines, line, needs_blank, after_blank: false, is_disputed: false, ended: false }
    }
}

impl Read for MessageOfMailbox<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.ended && self.line.fill_buf()?.is_empty() && !into.is_empty() {
            let next = self.lines.next()?;
            let begins_one = next.is_some_and(|(line, begins)| begins && line.starts_with(b"From "));
            match next {
                None => self.ended = true,
                Some(_) if begins_one && (self.after_blank || !self.needs_blank) => {
                    self.lines.give_back();
                    self.ended = true;
                }
                Some((line, begins)) => {
                    self.is_disputed |= begins_one;
                    self.after_blank = begins && line.trim_ascii().is_empty();
                    let mut reused = std::mem::take(&mut self.line).into_inner();
                    reused.clear();
                    reused.extend_from_slice(line);
                    self.line = Cursor::new(reused);
                }
            }
        }
        if self.ended { Ok(0) } else { self.line.read(into) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::budget::{TreeBudget, TreeUse};

    /// What becomes of a message in a tree of which so much was read again already.
    fn read_after(reread_bytes: u64, text: &str) -> ExtractionOutcome {
        let length = text.len() as u64;
        let used = TreeUse { root_bytes: length, files: 0, produced_bytes: 0, reread_bytes };
        let tree = Arc::new(TreeBudget::resumed(crate::conformance::limits(), used));
        let stop: Arc<AtomicBool> = Arc::default();
        let budget = Budget::new(tree, stop, length);
        let mut input = Cursor::new(text.as_bytes());
        let mut container = Container { name: "a.eml", length, input: &mut input, passwords: &crate::Passwords::NONE };
        Eml.extract(&mut container, &budget, &mut |member| {
            io::copy(member.content, &mut io::sink()).map(drop).map_err(|_| crate::Refused)
        })
    }

    #[test]
    fn what_is_not_looked_into_is_told_whichever_reading_comes_to_it() {
        // For the first reading the lone return ends no line, and the text is not encoded.
        let head = "Subject: a\r\nFrom: b\r\nX: y\r";
        let disputed = format!("{head}Content-Transfer-Encoding: base64\r\n\r\naGV-sbG8=\r\n");
        assert!(read_after(0, &disputed).is_complete());
        let all = (4 << 20) + 16 * disputed.len() as u64;
        for reread_bytes in [all - 1, all] {
            let outcome = read_after(reread_bytes, &disputed);
            assert_eq!(outcome.suspicious.as_deref(), Some(MORE_WAYS), "after {reread_bytes}");
            assert!(outcome.unrepeatable);
        }
        let five: String = (0..5).map(|n| format!("Content-Transfer-Encoding: x-{n}\r")).collect();
        let outcome = read_after(0, &format!("{head}{five}\r\n\r\ntext\r\n"));
        assert_eq!((outcome.suspicious.as_deref(), outcome.unrepeatable), (Some(MORE_WAYS), false));
        let deep: String =
            (0..=DEPTH_MAX).map(|n| format!("Content-Type: multipart/mixed; boundary={n}\r\r--{n}\r")).collect();
        let outcome = read_after(0, &format!("{head}{deep}\r\n"));
        assert!(outcome.broken.is_some_and(|reason| reason.contains("deep")));
    }

    /// Whether a text begins with the fields of a mail.
    fn begins_as_mail(head: &[u8]) -> bool {
        matches!(beginning(Cursor::new(head)), Ok(Some(Beginning::Mail)))
    }

    #[test]
    fn mail_behind_other_lines_is_one_for_some_programs() {
        let told = |text: &[u8]| beginning(Cursor::new(text)).unwrap();
        for text in [
            &b" goes on\nContent-Type: multipart/mixed; boundary=x\n\n--x\n"[..],
            b"X-A: b\r\nno field\r\nFrom: a\r\nContent-Type: multipart/mixed;\r\n boundary=x\r\n\r\n",
            b"X-\xe4: y\nContent-Transfer-Encoding: base64\n\nQUJD\n",
            b"no field\rContent-Transfer-Encoding:\r base64\r\rQUJD\r",
            b"POST / HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n",
            b"no field\nDate: a\nContent-Type: application/gzip\n\na",
            b"From a\nno field\nContent-Type: multipart/x; boundary=x",
        ] {
            assert_eq!(told(text), Some(Beginning::PerhapsMail), "{:?}", String::from_utf8_lossy(text));
        }
        // Ordinary texts, settings, sources and notes.
        for text in [
            &b"A text\nFrom: a\nTo: b\nSubject: c\n\nContent-Transfer-Encoding: base64\n"[..],
            b"---\ndate: 2020-01-01\nsubject: a\n---\n\n",
            b"# A title\n\nContent-Type: multipart/mixed; boundary=x\n",
            b"POST / HTTP/1.1\nHost: a\nContent-Type: application/json\n\n{}",
            b"commit a\nAuthor: b\nDate: c\n\n",
            b"\x7fELF\n\n",
        ] {
            assert_eq!(told(text), Some(Beginning::Other), "{:?}", String::from_utf8_lossy(text));
        }
        assert_eq!(told(b"A: b"), None);
    }

    #[test]
    fn mail_is_told_by_its_fields() {
        assert!(begins_as_mail(b"\r\nReturn-Path: <a>\r\nX: y\r\n z\r\nSubject: b\r\n\r\n"));
        assert!(begins_as_mail(b"Content-Type:\n multipart/mixed; boundary=x\n\n--x\n"));
        assert!(begins_as_mail(b"MIME-Version: 1.0\nContent-Type: text/plain\n\n"));
        assert!(begins_as_mail(b"Content-Type: Multipart/mixed;\n boundary=x\n\n--x\n"));
        assert!(begins_as_mail(b"Content-Type: (c) multipart/mixed; boundary=x\n\n--x\n"));
        assert!(!begins_as_mail(b"Content-Type: text/plain; charset=utf-8\n\na"));
        assert!(!begins_as_mail(b"Metadata-Version: 2.1\nName: x\n\nFrom: y\nTo: z\n"));
        assert!(!begins_as_mail(b"Subject: a text\n\nFrom: somebody\n"));
        assert!(!begins_as_mail(b""));
    }
}
