//! How taking a container apart ended.

use std::collections::BTreeSet;
use std::io;

use serde::{Deserialize, Serialize};

use crate::limits::{Halt, Limit, TooMuchMemory};

/// What needs a password that was not among those given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protection {
    /// A document that asks for a password before it opens: office documents, PDF.
    Document,
    /// An archive, or a member of one.
    Archive,
}

/// How taking a container apart ended. Several things may be true of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractionOutcome {
    /// The limits that kept something from coming out.
    pub limits: BTreeSet<Limit>,
    /// What needs a password that was not given.
    pub protected: BTreeSet<Protection>,
    /// Something was encrypted, and one of the given passwords opened it.
    pub decrypted: bool,
    /// What was broken, the first time.
    pub broken: Option<String>,
    /// What makes it suspicious, the first time: a container that shows different readers different members.
    pub suspicious: Option<String>,
    /// It ended because the tree is no longer scanned.
    pub stopped: bool,
    /// Nothing more may come out: the tree is no longer scanned, or a limit of the whole container was hit.
    pub over: bool,
    /// Something was left unread for what the rest of the tree had used up: by itself the container may be found to be more.
    pub unrepeatable: bool,
}

impl ExtractionOutcome {
    /// Everything came out, and there is nothing to remark.
    pub fn is_complete(&self) -> bool {
        *self == Self { decrypted: self.decrypted, ..Self::default() }
    }

    /// Notes that something is broken.
    pub fn note_broken(&mut self, reason: impl Into<String>) {
        self.broken.get_or_insert_with(|| reason.into());
    }

    /// Notes that something is suspicious.
    pub fn note_suspicious(&mut self, reason: impl Into<String>) {
        self.suspicious.get_or_insert_with(|| reason.into());
    }

    /// Notes that something needs a password and none of those given opens it.
    pub fn note_protected(&mut self, what: Protection) {
        self.protected.insert(what);
    }

    /// Notes that a given password opened something.
    pub fn note_decrypted(&mut self) {
        self.decrypted = true;
    }

    /// Notes that a member was left out for a limit, while others may still come out.
    pub fn note_limit(&mut self, limit: Limit) {
        self.limits.insert(limit);
    }

    /// Notes a halt: nothing more may come out.
    pub fn note_halt(&mut self, halt: Halt) {
        self.over = true;
        match halt {
            Halt::Limit(limit) => self.note_limit(limit),
            Halt::Stopped => self.stopped = true,
        }
    }

    /// Notes an error of the container's own input, or of a decoder.
    pub fn note_error(&mut self, context: &str, error: &io::Error) {
        if let Some(halt) = Halt::of(error) {
            return self.note_halt(halt);
        }
        // The zstd library says it in words.
        let in_words = || error.to_string().contains("requires too much memory");
        if TooMuchMemory::of(error).is_some() || error.kind() == io::ErrorKind::OutOfMemory || in_words() {
            return self.note_limit(Limit::Memory);
        }
        self.note_broken(format!("{context}: {error}"));
    }

    /// Whether the extractor must return.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Adds what is true of the same file when it is read as another format.
    pub fn merge(&mut self, other: Self) {
        self.limits.extend(other.limits);
        self.protected.extend(other.protected);
        self.decrypted |= other.decrypted;
        self.broken = self.broken.take().or(other.broken);
        self.suspicious = self.suspicious.take().or(other.suspicious);
        self.stopped |= other.stopped;
        self.over |= other.over;
        self.unrepeatable |= other.unrepeatable;
    }

    /// What there is to say, in words; empty if it is complete.
    pub fn detail(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.suspicious.clone());
        parts.extend(self.broken.clone());
        parts.extend(self.limits.iter().map(ToString::to_string));
        parts.extend(self.protected.iter().map(|protection| match protection {
            Protection::Archive => "a member is encrypted, and no given password opens it".to_owned(),
            Protection::Document => "the document is encrypted, and no given password opens it".to_owned(),
        }));
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_true_hides_another_and_a_member_left_out_ends_nothing() {
        let mut outcome = ExtractionOutcome::default();
        outcome.note_protected(Protection::Archive);
        outcome.note_protected(Protection::Document);
        outcome.note_broken("first");
        outcome.note_broken("second");
        outcome.note_error("member", &TooMuchMemory { asked_bytes: 1 << 40 }.into());
        assert!(!outcome.is_over());
        outcome.note_error("member", &Halt::Limit(Limit::Size).into());
        assert!(outcome.is_over());
        assert_eq!(outcome.limits, [Limit::Size, Limit::Memory].into());
        assert_eq!(outcome.protected, [Protection::Document, Protection::Archive].into());
        assert!(outcome.detail().contains("first") && !outcome.detail().contains("second"));
        assert!(ExtractionOutcome::default().is_complete());
    }
}
