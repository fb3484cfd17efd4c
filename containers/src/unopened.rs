//! Containers that are known and not opened: disk images and archives whose content nothing here reads. They are told as broken with this
//! reason, so that what is in them never passes for scanned.

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;

/// What they begin with, and what they are.
const KINDS: [(&[u8], &str); 9] = [
    (b"QFI\xfb", "QEMU disk image"),
    (b"LRZI", "lrzip"),
    (b"GRZipII\0", "grzip"),
    (b"\x37\xe4\x53\x96\xc9\xdb\xd6\x07", "zisofs"),
    (b"WARC/1.", "WARC"),
    (b"zPQ", "ZPAQ"),
    (b"7kSt", "ZPAQ"),
    (b"ArC\x01", "FreeArc"),
    (b"<<< QEMU VM Virtual Disk Image >>>", "VirtualBox disk image"),
];
/// How far into an ACE archive its signature lies.
const ACE_AT: usize = 7;

/// A container that is known and not opened.
pub(crate) static FORMAT: Format = Format {
    name: "unopened",
    description: "Container of a format that is not opened",
    mime: "application/octet-stream",
    extension: "bin",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(kind(probe.head).is_some()),
    extractor: &Unopened,
};

/// What a file that begins like this is.
fn kind(head: &[u8]) -> Option<&'static str> {
    if head.get(ACE_AT..).is_some_and(|rest| rest.starts_with(b"**ACE**")) {
        return Some("ACE");
    }
    KINDS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
}

struct Unopened;

impl Extractor for Unopened {
    fn extract(&self, container: &mut Container<'_>, _: &Budget, _: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        match crate::parts::read_start(container.input, 64) {
            Ok(head) => {
                let kind = kind(&head).unwrap_or("container");
                outcome.note_broken(format!("what is in this file ({kind}) is not read"));
            }
            Err(error) => outcome.note_error("the file can't be read", &error),
        }
        outcome
    }
}
