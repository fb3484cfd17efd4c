//! The seam for extractors: whatever takes a container apart and hands its members out one by one, as streams.
//!
//! Invariants:
//! - Every member passes through [`hand_out`], which counts it and its bytes against the budget.
//! - What came out before a container turned out to be broken, or a limit was hit, was handed out; the ending says which.
//! - A member's name is for showing: it is never used as a path. See [`display_name`].

use std::io::{self, Read, Seek};

use lazaret_analysis::{ResultCode, worst};

use crate::budget::{Budget, Halt};

/// The longest name that is kept of a member, in characters; what goes beyond is cut off.
const NAME_CHARS_MAX: usize = 1024;

/// How much the budget's guard lets through at once, which is how often limits are checked.
const READ_BYTES_MAX: usize = 256 * 1024;

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
}

/// A member on its way out. Whoever takes it reads it to the end or to an error; what came before an error is part of it.
pub struct Member<'m> {
    /// Its name, for showing.
    pub name: String,
    /// Its length as the container claims it, for sizing buffers and nothing else.
    pub length_hint: Option<u64>,
    /// Its content.
    pub content: &'m mut dyn Read,
}

/// Whoever takes members says so when it takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop;

/// Takes members.
pub type Sink<'s> = dyn FnMut(Member<'_>) -> Result<(), Stop> + 's;

/// How taking a container apart ended. Several things may be true of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtractionOutcome {
    /// The limit that ended it.
    pub limit: Option<ResultCode>,
    /// Something in it needs a password.
    pub encrypted: bool,
    /// What was broken, the first time.
    pub broken: Option<String>,
    /// What makes it suspicious, the first time: a container that shows different readers different members.
    pub suspicious: Option<String>,
    /// It ended because the tree is no longer scanned.
    pub stopped: bool,
}

impl ExtractionOutcome {
    /// Everything came out, and there is nothing to remark.
    pub fn is_complete(&self) -> bool {
        *self == Self::default()
    }

    /// Notes that something is broken.
    pub fn note_broken(&mut self, reason: impl Into<String>) {
        self.broken.get_or_insert_with(|| reason.into());
    }

    /// Notes that something is suspicious.
    pub fn note_suspicious(&mut self, reason: impl Into<String>) {
        self.suspicious.get_or_insert_with(|| reason.into());
    }

    /// Notes a halt.
    pub fn note_halt(&mut self, halt: Halt) {
        match halt {
            Halt::Limit(code) => self.limit = Some(code),
            Halt::Stopped => self.stopped = true,
        }
    }

    /// Notes an error of the container's own input, or of a decoder.
    pub fn note_error(&mut self, context: &str, error: &io::Error) {
        match Halt::of(error) {
            Some(halt) => self.note_halt(halt),
            None => self.note_broken(format!("{context}: {error}")),
        }
    }

    /// Whether the extractor must return.
    pub fn is_over(&self) -> bool {
        self.limit.is_some() || self.stopped
    }

    /// The container's result, as far as taking it apart decides it.
    pub fn code(&self) -> Option<ResultCode> {
        let codes = [
            self.limit,
            self.encrypted.then_some(ResultCode::ENCRYPTED_ARCHIVE),
            self.broken.as_ref().map(|_| ResultCode::EXTRACTION_FAILED),
            self.suspicious.as_ref().map(|_| ResultCode::SUSPICIOUS),
        ];
        codes.into_iter().flatten().reduce(worst)
    }

    /// The same in words; empty if it is complete.
    pub fn detail(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.suspicious.clone());
        parts.extend(self.broken.clone());
        parts.extend(self.limit.map(|code| code.text().to_owned()));
        parts.extend(self.encrypted.then(|| "a member is encrypted".to_owned()));
        parts.join("; ")
    }
}

/// Takes containers of one format apart.
pub trait Extractor: Send + Sync {
    /// The format's short name.
    fn format(&self) -> &'static str;

    /// Hands out the members of a container, in order.
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
    let mut metered = Metered { content, budget, failure: None };
    sink(Member { name, length_hint, content: &mut metered }).map_err(|Stop| Halt::Stopped)?;
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

    #[test]
    fn the_worst_of_what_is_true_decides() {
        let mut outcome = ExtractionOutcome { encrypted: true, ..Default::default() };
        assert_eq!(outcome.code(), Some(ResultCode::ENCRYPTED_ARCHIVE));
        outcome.note_broken("first");
        outcome.note_broken("second");
        assert_eq!(outcome.code(), Some(ResultCode::EXTRACTION_FAILED));
        outcome.note_suspicious("two directories");
        assert_eq!(outcome.code(), Some(ResultCode::SUSPICIOUS));
        assert!(outcome.detail().contains("first") && !outcome.detail().contains("second"));
        assert_eq!(ExtractionOutcome::default().code(), None);
    }
}
