//! Mail: messages with their parts, as files of their own, in mailboxes, and as web pages with everything in them (MHTML). Formats:
//! RFC 5322, 2045 to 2049, 2557, 4155.
//!
//! Every part that is no container of parts is handed out, decoded, under the name its sender gave it; files that were put into
//! text by uuencode or yEnc too, and text around the parts if there is any. A message in a message is a part like others. The
//! text is read line by line, so memory doesn't depend on its length.

mod headers;
mod lines;
pub(crate) mod tnef;

use std::io::{self, BufRead, BufReader, Cursor, Read, SeekFrom};

use self::headers::Headers;
use self::lines::Lines;
use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name, hand_out};
use crate::format::{Claims, Format, Probe, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::transfer::{self, Base64};

/// The longest headers of a message or part.
const HEADERS_BYTES_MAX: usize = 1 << 20;
/// The deepest that parts of parts lie, without messages in messages.
const DEPTH_MAX: usize = 64;
const BUFFER_BYTES: usize = 64 * 1024;
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

/// A message.
pub(crate) static EML: Format = Format {
    name: "eml",
    description: "E-mail message",
    mime: "message/rfc822",
    extension: "eml",
    category: "Z",
    beside: &[],
    probe: |probe| whole_if(begins_as_mail(probe.head)),
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

fn probe_mbox(probe: &mut Probe<'_>) -> io::Result<Claims> {
    let first = probe.head.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    whole_if(first.starts_with(b"From ") && begins_as_mail(probe.head.get(first.len()..).unwrap_or_default()))
}

/// Whether a text begins with the fields of a mail.
fn begins_as_mail(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let mut found = 0;
    for line in head.split(|byte| *byte == b'\n') {
        if line.first().is_some_and(|first| matches!(first, b' ' | b'\t')) {
            continue;
        }
        let Some((name, value)) = headers::field(line) else { return false };
        // A boundary is enough: whatever opens mail finds parts in it.
        if name.eq_ignore_ascii_case(b"content-type")
            && value.trim_ascii().to_ascii_lowercase().starts_with(b"multipart/")
        {
            return true;
        }
        found += usize::from(FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field.as_bytes())));
        if found >= FIELDS_MIN {
            return true;
        }
    }
    false
}

struct Eml;

impl Extractor for Eml {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        if let Err(error) = container.input.seek(SeekFrom::Start(0)) {
            outcome.note_error("the message can't be read", &error);
            return outcome;
        }
        let input: &mut dyn ReadSeek = &mut *container.input;
        let input = BufReader::with_capacity(BUFFER_BYTES, input);
        let mut message = Message { lines: Lines::new(input), boundaries: Vec::new(), parts: 0, budget, sink, outcome };
        if let Err(error) = message.run() {
            message.outcome.note_error("the message is broken", &error);
        }
        message.outcome
    }
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
    /// The boundaries of the multiparts that are open, the outermost first.
    boundaries: Vec<Vec<u8>>,
    parts: u64,
    budget: &'m Budget,
    sink: &'m mut Sink<'s>,
    outcome: ExtractionOutcome,
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
        if let Some(boundary) = headers.boundary() {
            if self.boundaries.len() < DEPTH_MAX {
                self.boundaries.push(boundary);
                return self.text_around("preamble");
            }
            self.outcome.note_broken(format!("parts lie more than {DEPTH_MAX} deep"));
        }
        self.part(&headers)
    }

    /// Reads headers; tells what ended them, if it was not an empty line.
    fn headers(&mut self) -> io::Result<(Headers, Option<End>)> {
        let mut headers = Headers::default();
        let mut bytes = 0usize;
        loop {
            let Some((line, begins)) = self.lines.next()? else { return Ok((headers, Some(End::Input))) };
            if let Some(end) = boundary(line, &self.boundaries).filter(|_| begins) {
                return Ok((headers, Some(end)));
            }
            bytes += line.len();
            if bytes > HEADERS_BYTES_MAX {
                self.outcome.note_broken("headers longer than any real message has");
                return Ok((headers, None));
            }
            let is_whole = line.ends_with(b"\n");
            // A line of spaces goes on with a field, as the specification has it.
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                return Ok((headers, None));
            }
            if begins && !headers.push(line) {
                // What is no field begins the content for most programs.
                if !is_whole {
                    self.outcome.note_broken("the message ends inside its headers");
                }
                self.lines.give_back();
                return Ok((headers, None));
            }
        }
    }

    /// Hands out a part; tells what ended it.
    fn part(&mut self, headers: &Headers) -> io::Result<End> {
        self.parts += 1;
        let encoding = match headers.encoding().as_str() {
            "base64" => Encoding::Base64(Base64::default()),
            "quoted-printable" => Encoding::QuotedPrintable,
            _ => Encoding::Text,
        };
        let extension = match headers.media_type().as_str() {
            "message/rfc822" | "message/global" => ".eml",
            "text/html" => ".html",
            "text/plain" | "" => ".txt",
            _ => "",
        };
        let name = headers.file_name().unwrap_or_else(|| format!("part-{}{extension}", self.parts));
        self.content(name, encoding)
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
                return self.content(name.to_owned(), Encoding::Text);
            }
        }
    }

    /// Hands out content up to the next boundary, and the files that lie in it as text.
    fn content(&mut self, name: String, encoding: Encoding) -> io::Result<End> {
        let mut content = Content {
            lines: &mut self.lines,
            boundaries: &self.boundaries,
            encoding,
            out: Vec::new(),
            given: 0,
            held: Vec::new(),
            end: None,
        };
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
                    return Ok(end);
                }
                Some(ContentEnd::File(file, encoding)) => {
                    name = file;
                    content.encoding = encoding;
                }
                Some(ContentEnd::FileEnded) => {
                    name = format!("part-{}.txt", self.parts);
                    content.encoding = Encoding::Text;
                }
                None => return Ok(End::Input),
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

enum Encoding {
    /// As it is; files may lie in it.
    Text,
    QuotedPrintable,
    Base64(Base64),
    Uuencoded,
    Yenc,
}

/// What ends what is handed out.
enum ContentEnd {
    Part(End),
    /// A file begins in the text.
    File(String, Encoding),
    /// That file ends.
    FileEnded,
}

/// The content of a part on its way out.
struct Content<'c, 'i> {
    lines: &'c mut Lines<Input<'i>>,
    boundaries: &'c [Vec<u8>],
    encoding: Encoding,
    out: Vec<u8>,
    given: usize,
    /// The last line break, which belongs to the boundary if one follows.
    held: Vec<u8>,
    end: Option<ContentEnd>,
}

impl Content<'_, '_> {
    /// Decodes the next line. False at the end.
    fn step(&mut self) -> io::Result<bool> {
        let next = self.lines.next()?;
        let end = match next {
            None => Some(End::Input),
            Some((line, begins)) => boundary(line, self.boundaries).filter(|_| begins),
        };
        let Some((line, begins)) = next.filter(|_| end.is_none()) else {
            if end == Some(End::Input) {
                self.out.append(&mut self.held);
            }
            self.held.clear();
            if let Encoding::Base64(decoder) = &mut self.encoding {
                decoder.finish(&mut self.out);
            }
            self.end = end.map(ContentEnd::Part);
            return Ok(false);
        };
        match &mut self.encoding {
            Encoding::Base64(decoder) => decoder.decode(line, &mut self.out),
            Encoding::Uuencoded => {
                if line.trim_ascii() == b"end" || !transfer::uuencoded(line, &mut self.out) {
                    self.end = Some(ContentEnd::FileEnded);
                    return Ok(false);
                }
            }
            Encoding::Yenc => {
                if line.starts_with(b"=yend") {
                    self.end = Some(ContentEnd::FileEnded);
                    return Ok(false);
                }
                if !line.starts_with(b"=ypart") {
                    yenc(line, &mut self.out);
                }
            }
            Encoding::Text | Encoding::QuotedPrintable => {
                let is_text = matches!(self.encoding, Encoding::Text);
                if let Some((name, encoding)) = embedded_file(line).filter(|_| begins && is_text) {
                    self.held.clear();
                    self.end = Some(ContentEnd::File(display_name(name), encoding));
                    return Ok(false);
                }
                self.out.append(&mut self.held);
                if is_text {
                    self.out.extend_from_slice(line);
                } else {
                    transfer::quoted_printable(line, &mut self.out);
                }
                if self.out.ends_with(b"\n") && !line.ends_with(b"=\n") {
                    let length = if self.out.ends_with(b"\r\n") { 2 } else { 1 };
                    self.held = self.out.split_off(self.out.len() - length);
                }
            }
        }
        Ok(true)
    }
}

impl Read for Content<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        while self.given >= self.out.len() {
            self.out.clear();
            self.given = 0;
            if self.end.is_some() {
                return Ok(0);
            }
            while self.out.len() < BUFFER_BYTES && self.step()? {}
        }
        let mut rest = self.out.get(self.given..).unwrap_or_default();
        let read = rest.read(into)?;
        self.given += read;
        Ok(read)
    }
}

/// The file that begins with a line of text.
fn embedded_file(line: &[u8]) -> Option<(&[u8], Encoding)> {
    if let Some(name) = transfer::uuencoded_name(line) {
        return Some((name, Encoding::Uuencoded));
    }
    let rest = line.strip_prefix(b"=ybegin ")?;
    let at = crate::fields::find(rest, b"name=")?;
    Some((rest.get(at + 5..)?.trim_ascii(), Encoding::Yenc))
}

/// Decodes a line of yEnc.
fn yenc(line: &[u8], into: &mut Vec<u8>) {
    let mut bytes = line.iter().filter(|byte| !matches!(byte, b'\r' | b'\n'));
    while let Some(byte) = bytes.next() {
        let byte = match (byte, byte == &b'=') {
            (_, true) => bytes.next().map_or(0, |escaped| escaped.wrapping_sub(64)),
            (byte, false) => *byte,
        };
        into.push(byte.wrapping_sub(42));
    }
}

struct Mbox;

impl Extractor for Mbox {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        if let Err(error) = container.input.seek(SeekFrom::Start(0)) {
            outcome.note_error("the mailbox can't be read", &error);
            return outcome;
        }
        let input: &mut dyn ReadSeek = &mut *container.input;
        let mut lines = Lines::new(BufReader::with_capacity(BUFFER_BYTES, input));
        for number in 1u64.. {
            match lines.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    outcome.note_error("the mailbox can't be read", &error);
                    break;
                }
            }
            let mut message =
                MessageOfMailbox { lines: &mut lines, line: Cursor::new(Vec::new()), after_blank: false, ended: false };
            match hand_out(format!("message-{number}.eml"), None, &mut message, budget, sink) {
                Ok(None) => {}
                Ok(Some(error)) => {
                    outcome.note_error(&format!("message {number}"), &error);
                    break;
                }
                Err(halt) => {
                    outcome.note_halt(halt);
                    break;
                }
            }
        }
        outcome
    }
}

/// A message of a mailbox, up to the line that begins the next.
struct MessageOfMailbox<'m, 'i> {
    lines: &'m mut Lines<Input<'i>>,
    line: Cursor<Vec<u8>>,
    after_blank: bool,
    ended: bool,
}

impl Read for MessageOfMailbox<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.ended && self.line.fill_buf()?.is_empty() && !into.is_empty() {
            match self.lines.next()? {
                None => self.ended = true,
                Some((line, true)) if self.after_blank && line.starts_with(b"From ") => {
                    self.lines.give_back();
                    self.ended = true;
                }
                Some((line, begins)) => {
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
    use super::*;

    #[test]
    fn mail_is_told_by_its_fields() {
        assert!(begins_as_mail(b"\r\nReturn-Path: <a>\r\nX: y\r\n z\r\nSubject: b\r\n\r\n"));
        assert!(begins_as_mail(b"MIME-Version: 1.0\nContent-Type: text/plain\n\n"));
        assert!(begins_as_mail(b"Content-Type: Multipart/mixed;\n boundary=x\n\n--x\n"));
        assert!(!begins_as_mail(b"Metadata-Version: 2.1\nName: x\n\nFrom: y\nTo: z\n"));
        assert!(!begins_as_mail(b"Subject: a text\n\nFrom: somebody\n"));
        assert!(!begins_as_mail(b""));
    }

    #[test]
    fn yenc_is_decoded() {
        let mut bytes = Vec::new();
        yenc(b"\x8b=\x6a\r\n", &mut bytes);
        assert_eq!(bytes, [0x61, 0x00]);
    }
}
