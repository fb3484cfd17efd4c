//! Containers that are known and not opened: disk images, archives, installers, mailboxes and databases whose content nothing here reads. They are told as broken with this
//! reason, so that what is in them never passes for scanned.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink};
use crate::format::{Claims, Format, Probe, whole_if};
use crate::outcome::ExtractionOutcome;

/// What they are told by: where, by what, and what they are.
const KINDS: [(usize, &[u8], &str); 65] = [
    (0, b"QFI\xfb", "QEMU disk image"),
    (0, b"<<< QEMU VM Virtual Disk Image >>>", "VirtualBox disk image"),
    (0, b"<<< Oracle VM VirtualBox Disk Image >>>", "VirtualBox disk image"),
    (0, b"QED\0", "QEMU disk image"),
    (0, b"WithoutFreeSpace", "Parallels disk image"),
    (0, b"WithouFreSpacExt", "Parallels disk image"),
    (0, b"Bochs Virtual HD Image", "Bochs disk image"),
    (0, b"COWD\x01\0\0\0", "VMware disk image"),
    (0, b"sprs\0\0\0\x03", "sparse disk image of a Mac"),
    (0, b"\x3a\xff\x26\xed\x01\0", "sparse image of Android"),
    (0, b"LUKS\xba\xbe", "encrypted disk of Linux"),
    (3, b"-FVE-FS-", "BitLocker disk"),
    (0, b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0", "raw image of a CD"),
    (0, b"\x45\x3d\xcd\x28", "cramfs"),
    (0, b"-rom1fs-", "romfs"),
    (3, b"ReFS\0\0\0\0", "ReFS"),
    (32, b"NXSB", "APFS"),
    (0, b"LRZI", "lrzip"),
    (0, b"GRZipII\0", "grzip"),
    (0, b"RZIP\x02", "rzip"),
    (0, b"BZ3v1", "bzip3"),
    (0, b"bvx1", "LZFSE"),
    (0, b"bvx2", "LZFSE"),
    (0, b"bvx-", "LZFSE"),
    (0, b"\xff\x06\0\0sNaPpY", "Snappy"),
    // Before the format was settled.
    (0, b"\x25\xb5\x2f\xfd", "Zstandard 0.5"),
    (0, b"\x26\xb5\x2f\xfd", "Zstandard 0.6"),
    (0, b"\x27\xb5\x2f\xfd", "Zstandard 0.7"),
    (0, b"\x37\xe4\x53\x96\xc9\xdb\xd6\x07", "zisofs"),
    (0, b"WARC/1.", "WARC"),
    (0, b"zPQ", "ZPAQ"),
    (0, b"7kSt", "ZPAQ"),
    (0, b"ArC\x01", "FreeArc"),
    (7, b"**ACE**", "ACE"),
    (0, b"ALZ\x01", "ALZ"),
    (0, b"EGGA\0\x01", "EGG"),
    (0, b"KGB_arch", "KGB"),
    (0, b"MAR1\0", "Mozilla archive"),
    (0, b"MLA\x01\0\0\0", "MLA"),
    (0, b"StuffIt!", "StuffIt"),
    (0, b"StuffIt?", "StuffIt"),
    (0, b"StuffIt (c)1997", "StuffIt"),
    (10, b"rLau", "StuffIt"),
    (0, b"ISc(", "InstallShield cabinet"),
    // What the program behind which they lie unpacks.
    (0, b"zlb\x1a", "Inno Setup"),
    (0, b"idska32\x1a", "Inno Setup"),
    (0, b"Inno Setup Setup Data (", "Inno Setup"),
    (0, b"\xa3\x48\x4b\xbe\x98\x6c\x4a\xa9\x99\x4c\x53\x0a\x86\xd6\x48\x7d", "AutoIt script"),
    (0, b"!BDN", "Outlook mailbox"),
    // Attachments and macros lie in their tables.
    (4, b"Standard Jet DB\0", "Access database"),
    (4, b"Standard ACE DB\0", "Access database"),
    // A section as OneDrive gives it away: {638DE92F-A6D4-4BC1-9A36-B3FC2511A5B7} in place of how files are stored.
    (48, b"\x2f\xe9\x8d\x63\xd4\xa6\xc1\x4b\x9a\x36\xb3\xfc\x25\x11\xa5\xb7", "OneNote section in packages"),
    (0, b"flatpak\0\x01\0\x89\xe5", "Flatpak bundle"),
    // What Macs' archiver and installer open.
    // Behind a mark of letters and a length.
    (6, b"TYP1", "Apple archive"),
    (0, b"pbzx\0", "Apple archive"),
    (0, b"pbze\0", "Apple archive"),
    (0, b"pbzz\0", "Apple archive"),
    (0, b"pbz4\0", "Apple archive"),
    (0, b"ITOLITLS\x01\0\0\0", "Microsoft Help 2"),
    (0, b"\xca\xfe\xd0\x0d", "Pack200"),
    (0, b"\x8f\xaf\xac\x84", "PPMd"),
    (0, b"UHA\x06", "UHARC"),
    (7, b"-sqx-", "SQX"),
    (14, b"\x1aJar\x1b", "JAR of ARJ"),
    (20, b"\xdc\xa7\xc4\xfd", "ZOO"),
];
const BTRFS_AT: u64 = 0x1_0040;
const BTRFS: [u8; 8] = *b"_BHRfS_M";
const MAC_FOOTER_BYTES: usize = 512;
/// What the first chunk of a Mac's disk image may be.
const FIRST_CHUNKS: [&str; 2] = ["LZFSE", "APFS"];

/// A container that is known and not opened.
pub(crate) static FORMAT: Format = Format {
    name: "unopened",
    description: "Container of a format that is not opened",
    mime: "application/octet-stream",
    extension: "bin",
    category: "A",
    beside: &["onenote"],
    probe,
    extractor: &Unopened,
};

fn probe(probe: &mut Probe<'_>) -> io::Result<Claims> {
    // A Mac's disk image begins with its first chunk, as that is stored.
    let footer = probe.tail.len().checked_sub(MAC_FOOTER_BYTES).and_then(|at| probe.tail.get(at..));
    let is_image = footer.is_some_and(|footer| footer.starts_with(b"koly"));
    let kind = kind(probe.head).filter(|kind| !(is_image && FIRST_CHUNKS.contains(kind)));
    // Where Btrfs tells what it is, no probe is shown a file.
    whole_if(kind.is_some() || probe.read_at(BTRFS_AT)? == Some(BTRFS))
}

/// What a file that begins like this is.
fn kind(head: &[u8]) -> Option<&'static str> {
    KINDS
        .iter()
        .find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(.., name)| *name)
}

struct Unopened;

impl Extractor for Unopened {
    fn extract(&self, container: &mut Container<'_>, _: &Budget, _: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        match crate::parts::read_start(container.input, 64) {
            Ok(head) => {
                let kind = kind(&head).unwrap_or("Btrfs");
                outcome.note_broken(format!("what is in this file ({kind}) is not read"));
            }
            Err(error) => outcome.note_error("the file can't be read", &error),
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::take_apart;
    use crate::passwords::Passwords;

    #[test]
    fn each_is_told_by_its_name() {
        for (at, magic, name) in KINDS {
            let file = [&vec![b'1'; at][..], magic, &[b'2'; 64]].concat();
            let outcome = take_apart(&file, &Passwords::NONE).outcome;
            assert!(outcome.broken.is_some_and(|broken| broken.contains(name)), "{name}");
            assert_eq!(outcome.suspicious, None, "{name}");
        }
    }

    #[test]
    fn a_section_of_onenote_in_packages_is_told() {
        let mut file = b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d\xae\xb1\x53\x78\xd0\x29\x96\xd3".to_vec();
        file.resize(48, 0);
        file.extend_from_slice(b"\x2f\xe9\x8d\x63\xd4\xa6\xc1\x4b\x9a\x36\xb3\xfc\x25\x11\xa5\xb7");
        file.resize(1024, 0);
        let outcome = take_apart(&file, &Passwords::NONE).outcome;
        assert!(outcome.broken.is_some_and(|broken| broken.contains("OneNote")));
        assert_eq!(outcome.suspicious, None);
    }
}
