//! What a container format is to the rest: a name, a way to recognise it, and a reader.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, read_full};
use crate::formats::FORMATS;
use crate::outcome::ExtractionOutcome;
use crate::passwords::Passwords;

/// How much of a file's beginning a probe is shown: past the volume descriptors of ISO 9660 at 32 KiB.
pub const HEAD_BYTES: usize = 64 * 1024;
/// How much of a file's end a probe is shown: a ZIP end record with the longest comment.
pub const TAIL_BYTES: usize = 22 + 65_535;
/// Most claims that are kept of one file: what lies beyond is told as suspicious.
pub const CLAIMS_MAX: usize = 16;

/// A container format: one line of [`FORMATS`].
pub struct Format {
    /// Its short name, in lower case. It names the format between processes, so it never changes.
    pub name: &'static str,
    /// The type in words, as it is shown when nothing more precise is known.
    pub description: &'static str,
    /// MIME type, for the same.
    pub mime: &'static str,
    /// The usual extension, without a dot.
    pub extension: &'static str,
    /// The group that clients know, one letter: A archive, D document, E executable, I disk image, P PDF, T text, Z mail.
    pub category: &'static str,
    /// Formats that a file of this one may rightfully be as well, since they are made of each other or of one structure: a
    /// file of both is not suspicious for that. It is enough that one of the two names the other.
    pub beside: &'static [&'static str],
    /// Finds out where in a file a container of this format begins, by all that the format's specification and common
    /// readers allow. It looks at structure, never at names, and believes nothing that it can check.
    pub probe: fn(&mut Probe<'_>) -> io::Result<Claims>,
    /// Takes it apart.
    pub extractor: &'static dyn Extractor,
}

/// A format of the table. Serialised as its name.
#[derive(Clone, Copy)]
pub struct ContainerFormat(pub(crate) &'static Format);

impl ContainerFormat {
    /// The format of this name.
    pub fn named(name: &str) -> Option<Self> {
        FORMATS.iter().find(|format| format.name == name).map(|format| Self(format))
    }

    /// All formats, in the table's order.
    pub fn all() -> impl Iterator<Item = Self> {
        FORMATS.iter().map(|format| Self(format))
    }

    /// What is known of it.
    pub fn format(self) -> &'static Format {
        self.0
    }

    /// Its short name.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Whether a file may be of both formats without being suspicious.
    pub fn may_be_beside(self, other: Self) -> bool {
        self == other || self.0.beside.contains(&other.0.name) || other.0.beside.contains(&self.0.name)
    }
}

impl PartialEq for ContainerFormat {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ContainerFormat {}

impl fmt::Debug for ContainerFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl Serialize for ContainerFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name)
    }
}

impl<'de> Deserialize<'de> for ContainerFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| de::Error::custom(format!("{name:?} is not a container format")))
    }
}

/// How a program comes to open a file as a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claim {
    /// Programs for the format open the file as it is: the container begins this far into it, at 0 for most formats, and
    /// for those that search for their own beginning or end.
    Whole(u64),
    /// A container seems to begin so far into the file, but it may as well be content of another one. It counts when the file is
    /// nothing else.
    Inside(u64),
}

impl Claim {
    /// Where the container begins.
    pub fn offset(self) -> u64 {
        match self {
            Self::Whole(offset) | Self::Inside(offset) => offset,
        }
    }
}

/// What a probe found; mostly nothing.
pub type Claims = Vec<Claim>;

/// The claim that a file begins with a container, if it does. What most probes return.
pub fn whole_if(is_one: bool) -> io::Result<Claims> {
    Ok(if is_one { vec![Claim::Whole(0)] } else { Vec::new() })
}

/// A file as probes see it.
pub struct Probe<'p> {
    /// Its beginning, at most [`HEAD_BYTES`].
    pub head: &'p [u8],
    /// Its end, at most [`TAIL_BYTES`]; in a short file it overlaps the beginning.
    pub tail: &'p [u8],
    /// Its length.
    pub length: u64,
    /// All of it, positioned anywhere.
    pub input: &'p mut dyn ReadSeek,
    /// The head is text that was searched, and no data lies in it. Noted, so that it is not searched again with the rest of the file.
    pub(crate) head_is_bare: bool,
}

impl<'p> Probe<'p> {
    /// A file of `length` bytes, with its first and its last ones.
    pub fn new(head: &'p [u8], tail: &'p [u8], length: u64, input: &'p mut dyn ReadSeek) -> Self {
        Self { head, tail, length, input, head_is_bare: false }
    }

    /// Whether the head is all of it, and the tail the same.
    pub(crate) fn is_short(&self) -> bool {
        self.length <= self.head.len() as u64
    }

    /// Where the tail begins.
    pub fn tail_offset(&self) -> u64 {
        self.length.saturating_sub(self.tail.len() as u64)
    }

    /// The `N` bytes at `offset`; none if the file ends before.
    pub fn read_at<const N: usize>(&mut self, offset: u64) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        self.input.seek(SeekFrom::Start(offset))?;
        Ok((read_full(self.input, &mut bytes)? == N).then_some(bytes))
    }
}

/// A container of a file: its format and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its format.
    pub format: ContainerFormat,
    /// Where in the file it begins.
    pub offset: u64,
}

impl Found {
    /// Takes it apart. `name`, `length` and `input` are the whole file's.
    pub fn extract(
        &self,
        name: &str,
        length: u64,
        input: &mut dyn ReadSeek,
        passwords: &Passwords,
        budget: &Budget,
        sink: &mut Sink<'_>,
    ) -> ExtractionOutcome {
        let length = length.saturating_sub(self.offset);
        let extractor = self.format.0.extractor;
        if self.offset == 0 {
            return extractor.extract(&mut Container { name, length, input, passwords }, budget, sink);
        }
        let mut section = Section { input, offset: self.offset, position: 0 };
        extractor.extract(&mut Container { name, length, input: &mut section, passwords }, budget, sink)
    }
}

/// The part of an input from `offset` on, as an input of its own.
pub struct Section<'s> {
    input: &'s mut dyn ReadSeek,
    offset: u64,
    position: u64,
}

impl<'s> Section<'s> {
    /// The part of `input` from `offset` on. Seek before the first read.
    pub fn new(input: &'s mut dyn ReadSeek, offset: u64) -> Self {
        Self { input, offset, position: 0 }
    }
}

impl Read for Section<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}

impl Seek for Section<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "seek before the beginning");
        let target = match to {
            SeekFrom::Start(at) => at.saturating_add(self.offset),
            SeekFrom::End(back) => self.input.seek(SeekFrom::End(back))?,
            SeekFrom::Current(by) => {
                let at = self.position.checked_add_signed(by).ok_or_else(before)?;
                at.saturating_add(self.offset)
            }
        };
        self.position = target.checked_sub(self.offset).ok_or_else(before)?;
        self.input.seek(SeekFrom::Start(target))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::Cursor;

    use super::*;

    #[test]
    fn names_are_unique_lower_case_and_know_each_other() {
        let mut seen = HashSet::new();
        for format in ContainerFormat::all() {
            assert!(seen.insert(format.name()), "{format:?} is there twice");
            assert!(format.name().chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "{format:?}");
            for name in format.format().beside {
                assert!(ContainerFormat::named(name).is_some(), "{format:?} may be beside {name:?}, which is unknown");
            }
            let json = serde_json::to_string(&format).unwrap();
            assert_eq!(serde_json::from_str::<ContainerFormat>(&json).unwrap(), format);
        }
        assert!(serde_json::from_str::<ContainerFormat>("\"nothing\"").is_err());
    }

    #[test]
    fn a_section_is_an_input_of_its_own() {
        let mut whole = Cursor::new(b"0123456789");
        let mut section = Section::new(&mut whole, 4);
        assert_eq!(section.seek(SeekFrom::Start(1)).unwrap(), 1);
        let mut two = [0; 2];
        section.read_exact(&mut two).unwrap();
        assert_eq!((&two, section.stream_position().unwrap()), (b"56", 3));
        assert_eq!(section.seek(SeekFrom::End(-1)).unwrap(), 5);
        section.read_exact(&mut two[..1]).unwrap();
        assert_eq!(two[0], b'9');
        assert!(section.seek(SeekFrom::End(-7)).is_err());
        assert!(section.seek(SeekFrom::Current(-100)).is_err());
    }
}
