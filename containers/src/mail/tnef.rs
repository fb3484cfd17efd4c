//! What Outlook sends as `winmail.dat`: the attachments, and the text. Format: [MS-OXTNEF].

use std::io::{self, Cursor, Read, SeekFrom};

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, display_name, hand_out, read_full};
use crate::fields::{cut_off, invalid, le32, read_at_most, until_zero, utf16_le};
use crate::format::{Format, whole_if};
use crate::ole::package;
use crate::outcome::ExtractionOutcome;

const SIGNATURE: [u8; 4] = [0x78, 0x9f, 0x3e, 0x22];
const HEADER_BYTES: u64 = 6;
/// Level, number and length before an attribute, its checksum behind.
const ATTRIBUTE_BYTES: u64 = 9;
/// The longest list of properties that is taken into memory; an attachment may be in one.
const PROPERTIES_BYTES_MAX: u64 = 64 << 20;

const TITLE: u32 = 0x0001_8010;
const DATA: u32 = 0x0006_800f;
const RENDERING: u32 = 0x0006_9002;
const ATTACHMENT_PROPERTIES: u32 = 0x0006_9005;
const MESSAGE_PROPERTIES: u32 = 0x0006_9003;
const BODY: u32 = 0x0002_800c;

/// Outlook's `winmail.dat`.
pub(crate) static FORMAT: Format = Format {
    name: "tnef",
    description: "Transport Neutral Encapsulation Format",
    mime: "application/vnd.ms-tnef",
    extension: "tnef",
    category: "Z",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(&SIGNATURE)),
    extractor: &Tnef,
};

struct Tnef;

/// An attachment, as far as it was read.
#[derive(Default)]
struct Attachment {
    begun: bool,
    title: Option<String>,
    long_name: Option<String>,
    /// Where its data lies, and how long it is.
    data: Option<(u64, u64)>,
    /// An object that it is instead.
    object: Option<Vec<u8>>,
}

impl Extractor for Tnef {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut walk = Walk { container, budget, sink, outcome: ExtractionOutcome::default(), attachments: 0 };
        if let Err(error) = walk.run() {
            walk.outcome.note_error("the file is broken", &error);
        }
        walk.outcome
    }
}

struct Walk<'w, 'c, 's> {
    container: &'w mut Container<'c>,
    budget: &'w Budget,
    sink: &'w mut Sink<'s>,
    outcome: ExtractionOutcome,
    attachments: u32,
}

impl Walk<'_, '_, '_> {
    fn run(&mut self) -> io::Result<()> {
        let mut attachment = Attachment::default();
        let mut offset = HEADER_BYTES;
        if self.container.length <= offset {
            return Err(cut_off("there is nothing behind the header"));
        }
        while !self.outcome.is_over() && offset < self.container.length {
            self.budget.check()?;
            match self.attribute(offset, &mut attachment) {
                Ok(next) => offset = next,
                Err(error) => {
                    // What came before is handed out nevertheless.
                    self.finish(attachment)?;
                    return Err(error);
                }
            }
        }
        self.finish(attachment)
    }

    /// Takes the attribute at `offset`; tells where the next one is.
    fn attribute(&mut self, offset: u64, attachment: &mut Attachment) -> io::Result<u64> {
        let mut header = [0; ATTRIBUTE_BYTES as usize];
        self.container.input.seek(SeekFrom::Start(offset))?;
        if read_full(self.container.input, &mut header)? < header.len() {
            return Err(cut_off(format!("no attribute at {offset}")));
        }
        let (Some(number), Some(length)) = (le32(&header, 1), le32(&header, 5)) else {
            return Err(invalid("no attribute"));
        };
        if !matches!(header.first(), Some(1 | 2)) {
            return Err(invalid(format!("no attribute at {offset}")));
        }
        let data = offset + ATTRIBUTE_BYTES;
        let end = data + u64::from(length) + 2;
        if end > self.container.length {
            // The data that is there comes out.
            if number == DATA {
                attachment.data = Some((data, u64::from(length)));
            }
            return Err(cut_off(format!("the attribute at {offset} is cut off")));
        }
        match number {
            RENDERING => {
                let before = std::mem::replace(attachment, Attachment { begun: true, ..Attachment::default() });
                self.finish(before)?;
            }
            TITLE => {
                let title = read_at_most(&mut *self.container.input, u64::from(length).min(4096))?;
                attachment.title = Some(String::from_utf8_lossy(until_zero(&title)).into_owned());
            }
            DATA => attachment.data = Some((data, u64::from(length))),
            BODY => self.hand_out_part("text.txt".to_owned(), data, u64::from(length))?,
            ATTACHMENT_PROPERTIES | MESSAGE_PROPERTIES => {
                let length = u64::from(length);
                if length > PROPERTIES_BYTES_MAX {
                    self.hand_out_part("properties".to_owned(), data, length)?;
                } else {
                    let bytes = read_at_most(&mut *self.container.input, length)?;
                    self.properties(&bytes, number, attachment)?;
                }
            }
            _ => {}
        }
        Ok(end)
    }

    fn properties(&mut self, bytes: &[u8], of: u32, attachment: &mut Attachment) -> io::Result<()> {
        let mut reader = Properties { bytes, at: 4 };
        for _ in 0..le32(bytes, 0).unwrap_or(0) {
            self.budget.check()?;
            let Some((number, values)) = reader.next() else {
                self.outcome.note_broken("a list of properties is cut off");
                return Ok(());
            };
            for value in values {
                match (of, number) {
                    (ATTACHMENT_PROPERTIES, 0x3707_001f) => attachment.long_name = Some(utf16_le(value)),
                    (ATTACHMENT_PROPERTIES, 0x3707_001e) => {
                        attachment.long_name = Some(String::from_utf8_lossy(until_zero(value)).into_owned());
                    }
                    // An embedded message or object: which interface it has comes first.
                    (ATTACHMENT_PROPERTIES, 0x3701_000d) => attachment.object = value.get(16..).map(<[u8]>::to_vec),
                    (ATTACHMENT_PROPERTIES, 0x3701_0102) => attachment.object = Some(value.to_vec()),
                    (MESSAGE_PROPERTIES, 0x1009_0102) => {
                        let (text, end) = crate::ole::compressed_text(value);
                        self.hand_out_bytes("text.rtf".to_owned(), &text)?;
                        if let Err(error) = end {
                            self.outcome.note_error("the message's text", &error);
                        }
                    }
                    (MESSAGE_PROPERTIES, 0x1013_0102) => self.hand_out_bytes("text.html".to_owned(), value)?,
                    (MESSAGE_PROPERTIES, 0x1000_001e | 0x1000_001f) => {
                        self.hand_out_bytes("text.txt".to_owned(), value)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Hands out an attachment.
    fn finish(&mut self, attachment: Attachment) -> io::Result<()> {
        if attachment.data.is_none() && attachment.object.is_none() {
            if attachment.begun {
                self.outcome.note_broken("an attachment has no content");
            }
            return Ok(());
        }
        self.attachments += 1;
        let name = attachment.long_name.or(attachment.title).filter(|name| !name.is_empty());
        let name =
            name.map_or_else(|| format!("attachment-{}", self.attachments), |name| display_name(name.as_bytes()));
        if let Some((offset, length)) = attachment.data {
            self.hand_out_part(name.clone(), offset, length)?;
        }
        if let Some(object) = attachment.object {
            // A package shows its own name; everything else is a file by itself.
            match package::package(&object, 4) {
                Some(package) => {
                    let content = object.get(package.offset..).unwrap_or_default();
                    let content = content.get(..package.length as usize).unwrap_or(content);
                    self.hand_out_bytes(package.name, content)?;
                }
                None => self.hand_out_bytes(name, &object)?,
            }
        }
        Ok(())
    }

    fn hand_out_part(&mut self, name: String, offset: u64, length: u64) -> io::Result<()> {
        self.container.input.seek(SeekFrom::Start(offset))?;
        let mut content = (&mut *self.container.input).take(length);
        match hand_out(name, Some(length), &mut content, self.budget, self.sink) {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(halt) => Err(halt.into()),
        }
    }

    fn hand_out_bytes(&mut self, name: String, bytes: &[u8]) -> io::Result<()> {
        match hand_out(name, Some(bytes.len() as u64), &mut Cursor::new(bytes), self.budget, self.sink) {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(halt) => Err(halt.into()),
        }
    }
}

/// A list of properties: type and number, a name for those with numbers from 0x8000 on, and values padded to four bytes.
struct Properties<'p> {
    bytes: &'p [u8],
    at: usize,
}

impl<'p> Properties<'p> {
    fn number(&mut self) -> Option<usize> {
        let number = le32(self.bytes, self.at)?;
        self.at += 4;
        usize::try_from(number).ok()
    }

    fn take(&mut self, length: usize) -> Option<&'p [u8]> {
        let end = self.at.checked_add(length)?;
        let value = self.bytes.get(self.at..end)?;
        self.at = end.checked_next_multiple_of(4)?;
        Some(value)
    }

    /// The next property: its number with its type in the lower half, and its values.
    fn next(&mut self) -> Option<(u32, Vec<&'p [u8]>)> {
        let number = u32::try_from(self.number()?).ok()?;
        if number >= 0x8000_0000 {
            self.at += 16;
            if self.number()? == 0 {
                self.number()?;
            } else {
                let length = self.number()?;
                self.take(length)?;
            }
        }
        let kind = number & 0xffff;
        let (multiple, kind) = (kind & 0x1000 != 0, kind & 0x0fff);
        let fixed = match kind {
            0x02 | 0x03 | 0x04 | 0x0a | 0x0b => Some(4),
            0x05 | 0x06 | 0x07 | 0x14 | 0x40 => Some(8),
            0x48 => Some(16),
            0x00 | 0x01 => Some(0),
            _ => None,
        };
        // What has no fixed length says how many values there are, even if it is one.
        let count = if multiple || fixed.is_none() { self.number()? } else { 1 };
        let mut values = Vec::new();
        for _ in 0..count.min(self.bytes.len()) {
            let length = match fixed {
                Some(0) => return Some((number, values)),
                Some(length) => length,
                None => self.number()?,
            };
            values.push(self.take(length)?);
        }
        Some((number, values))
    }
}
