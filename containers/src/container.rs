//! The seam for extractors: whatever takes a container apart and hands its members out one by one, as streams.
//!
//! Invariants:
//! - Every member passes through [`hand_out`], which counts it and its bytes against the budget.
//! - What came out before a container turned out to be broken, or a limit was hit, was handed out; the ending says which.
//! - A member's name is for showing: it is never used as a path. See [`display_name`].

use std::io::{self, Read, Seek};

use crate::budget::Budget;
use crate::detect::FileType;
use crate::limits::Halt;
use crate::outcome::ExtractionOutcome;
use crate::passwords::Passwords;

/// The longest name that is kept of a member, in characters; what goes beyond is cut off.
const NAME_CHARS_MAX: usize = 1024;

/// How much the budget's guard lets through at once, which is how often limits are checked.
const READ_BYTES_MAX: usize = 256 * 1024;

/// How much of a member that nobody wants is read at once.
const PASS_OVER_BYTES: usize = 64 * 1024;

/// Reads from anywhere.
pub trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// A container to be taken apart.
pub struct Container<'c> {
    /// Its own name, for showing: a compressed stream's member is named after it.
    pub name: &'c str,
    /// Its length in bytes.
    pub length: u64,
    /// Its content, positioned anywhere.
    pub input: &'c mut dyn ReadSeek,
    /// The passwords to try, in order, on whatever needs one.
    pub passwords: &'c Passwords,
}

/// A member on its way out. Whoever takes it reads it to the end or to an error; what came before an error is part of it.
pub struct Member<'m> {
    /// Its name, for showing.
    pub name: String,
    /// Its length as the container claims it, for sizing buffers and nothing else.
    pub length_hint: Option<u64>,
    /// Its content.
    pub content: &'m mut dyn Read,
    /// Its type, if whoever hands it out knows it.
    pub file_type: Option<FileType>,
    /// What else whoever hands it out says of it.
    pub remark: Option<Remark>,
}

/// Something that is said of a member, and which version of whoever says it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The version.
    pub version: u64,
    /// What is said.
    pub said: Vec<u8>,
}

/// Whoever takes members says so when it takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// Takes members.
pub type Sink<'s> = dyn FnMut(Member<'_>) -> Result<(), Refused> + 's;

/// Takes containers of one format apart.
pub trait Extractor: Send + Sync {
    /// Hands out the members of a container, in order, each through [`hand_out`]. It never panics, whatever the container
    /// holds; memory is bounded whatever it claims (see [`crate::limits::admit_decoder`]); and each loop that may go on without reading the
    /// input or handing out asks [`Budget::check`].
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome;
}

/// Hands out one member. `Ok` carries the error that its content ended with, if it did.
pub fn hand_out(
    name: String,
    length_hint: Option<u64>,
    content: &mut dyn Read,
    budget: &Budget,
    sink: &mut Sink<'_>,
) -> Result<Option<io::Error>, Halt> {
    budget.count_file()?;
    let takes = budget.takes_next()?;
    budget.number_one();
    let mut metered = Metered { content, budget, failure: None };
    if takes {
        sink(Member { name, length_hint, content: &mut metered, file_type: None, remark: None })
            .map_err(|Refused| Halt::Stopped)?;
    } else {
        // Somebody else's. What comes after it in the container is found by reading it; what is wrong with it is noted as ever.
        metered.read_to_end()?;
    }
    match metered.failure {
        Some(error) => match Halt::of(&error) {
            Some(halt) => Err(halt),
            None => Ok(Some(error)),
        },
        None => Ok(None),
    }
}

/// A member's content, counted as it comes out. Keeps the error that ended it.
struct Metered<'m> {
    content: &'m mut dyn Read,
    budget: &'m Budget,
    failure: Option<io::Error>,
}

impl Metered<'_> {
    /// Reads what nobody wants, to its end or to the error that ends it.
    fn read_to_end(&mut self) -> Result<(), Halt> {
        let mut scratch = vec![0; PASS_OVER_BYTES];
        loop {
            match self.read(&mut scratch) {
                Ok(0) => return Ok(()),
                Ok(_) => self.budget.check()?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Kept, for whoever asks how it ended.
                Err(_) => return Ok(()),
            }
        }
    }
}

impl Read for Metered<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::Error::other("the member ended with an error before"));
        }
        let most = into.len().min(READ_BYTES_MAX);
        let result = match self.content.read(into.get_mut(..most).unwrap_or_default()) {
            Ok(read) => match self.budget.count_bytes(read as u64) {
                Ok(()) => Ok(read),
                Err(halt) => Err(halt.into()),
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => Err(error),
        };
        result.map_err(|error| {
            let told = io::Error::new(error.kind(), error.to_string());
            self.failure = Some(error);
            told
        })
    }
}

/// A container's input that ends the extraction when the budget does, so that a decoder that reads without producing
/// anything is stopped too.
pub struct Guarded<'g, F> {
    /// The input.
    pub input: &'g mut dyn ReadSeek,
    /// The budget that is asked at every read.
    pub budget: &'g Budget,
    /// Is told how many bytes were read.
    pub on_read: F,
}

impl<F: FnMut(u64)> Read for Guarded<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.budget.check()?;
        let most = into.len().min(READ_BYTES_MAX);
        let read = self.input.read(into.get_mut(..most).unwrap_or_default())?;
        (self.on_read)(read as u64);
        Ok(read)
    }
}

impl<F> Seek for Guarded<'_, F> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.input.seek(to)
    }
}

/// A member's name as it is shown and recorded: what is not UTF-8 is replaced, control characters are escaped, and it is
/// cut to a bounded length. `../` and leading slashes stay, since they are evidence and nothing here uses a name as a path.
pub fn display_name(raw: &[u8]) -> String {
    let mut name = String::new();
    for character in String::from_utf8_lossy(raw).chars().take(NAME_CHARS_MAX) {
        if character.is_control() {
            name.extend(character.escape_default());
        } else {
            name.push(character);
        }
    }
    name
}

/// Reads until `into` is full or the input ends; says how much came.
pub fn read_full(input: &mut (impl Read + ?Sized), into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_and_never_hide_anything() {
        assert_eq!(display_name(b"../../etc/passwd"), "../../etc/passwd");
        assert_eq!(display_name(b"a\0b\n\x1b[31m"), "a\\u{0}b\\n\\u{1b}[31m");
        assert_eq!(display_name(b"\xff\xfe.txt"), "\u{fffd}\u{fffd}.txt");
        assert_eq!(display_name(&[b'a'; 100_000]).len(), NAME_CHARS_MAX);
    }
}
