//! What a file is, by its content alone: its name and its sender's claims don't count.
//!
//! The `file-format` crate names the type; the formats that can be taken apart are recognised here by their structure, since
//! what is not recognised as a container is not looked into.

use std::io::{self, Cursor, Read, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use file_format::{FileFormat, Kind};

use serde::{Deserialize, Serialize};

use crate::container::ReadSeek;
use crate::format::{CLAIMS_MAX, Claim, ContainerFormat, Found, HEAD_BYTES, Probe, TAIL_BYTES};
use crate::limits::Halt;
use crate::{mail, text};

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileType {
    /// MIME type.
    pub mime: String,
    /// The usual extension, without a dot.
    pub extension: String,
    /// The type in words.
    pub description: String,
    /// The group that clients know: one letter, see `category`.
    pub category: Vec<String>,
    /// The containers that it is, in the order in which they are to be taken apart; empty for none.
    pub containers: Vec<Found>,
    /// What is suspicious about that: it is a container of several formats, and different programs open it as different ones.
    pub suspicious: Option<String>,
}

impl FileType {
    fn of(format: FileFormat) -> Self {
        Self {
            mime: format.media_type().to_owned(),
            extension: format.extension().to_owned(),
            description: format.name().to_owned(),
            category: vec![category(format).to_owned()],
            containers: Vec::new(),
            suspicious: None,
        }
    }
}

/// Detects the type of a file of `length` bytes. An error is one of reading it.
pub fn detect(input: &mut dyn ReadSeek, length: u64) -> io::Result<FileType> {
    if length == 0 {
        return Ok(FileType::of(FileFormat::Empty));
    }
    let head = read_part(input, 0, HEAD_BYTES)?;
    let tail = read_part(input, length.saturating_sub(TAIL_BYTES as u64), TAIL_BYTES)?;
    let probe = Probe::new(&head, &tail, length, &mut *input);
    type_of(probe, |input, head_is_bare| text::search(input, head_is_bare))
}

/// The same for a file in memory, of which nothing is copied.
pub fn detect_content(content: &[u8]) -> io::Result<FileType> {
    if content.is_empty() {
        return Ok(FileType::of(FileFormat::Empty));
    }
    let head = content.get(..HEAD_BYTES).unwrap_or(content);
    let tail = content.get(content.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
    let mut input = Cursor::new(content);
    let probe = Probe::new(head, tail, content.len() as u64, &mut input);
    type_of(probe, |input, head_is_bare| text::search_content(content, input, head_is_bare))
}

/// `search` looks through all of the file for what lies hidden in it; it is told whether that was done with the head, in vain.
fn type_of(
    mut probe: Probe<'_>,
    search: impl FnOnce(&mut dyn ReadSeek, bool) -> io::Result<text::Hidden>,
) -> io::Result<FileType> {
    let (containers, suspicious) = containers(&mut probe, search)?;
    let input = probe.input;
    input.seek(SeekFrom::Start(0))?;
    // A parser of other people's, over hostile input: if it fails or panics the type is unknown, and what the structure
    // says still holds.
    let format = catch_unwind(AssertUnwindSafe(|| FileFormat::from_reader(&mut *input)));
    let format = match format {
        Ok(Ok(format)) => format,
        Ok(Err(error)) if Halt::of(&error).is_some() => return Err(error),
        _ => FileFormat::ArbitraryBinaryData,
    };
    let mut detected = FileType::of(format);
    // A type that names something better than "some data" stands: a document is a ZIP too.
    if let Some(found) = containers.first().filter(|_| matches!(format.kind(), Kind::Other)) {
        let format = found.format.format();
        detected.mime = format.mime.to_owned();
        detected.extension = format.extension.to_owned();
        detected.description = format.description.to_owned();
        detected.category = vec![format.category.to_owned()];
    }
    Ok(FileType { containers, suspicious, ..detected })
}

/// The containers that a file is, and what is suspicious about them.
fn containers(
    probe: &mut Probe<'_>,
    search: impl FnOnce(&mut dyn ReadSeek, bool) -> io::Result<text::Hidden>,
) -> io::Result<(Vec<Found>, Option<String>)> {
    let (mut whole, mut inside) = (Vec::new(), Vec::new());
    for format in ContainerFormat::all() {
        for claim in (format.format().probe)(probe)? {
            let found = Found { format, offset: claim.offset() };
            let list = if matches!(claim, Claim::Whole(_)) { &mut whole } else { &mut inside };
            if !list.contains(&found) {
                list.push(found);
            }
        }
    }
    // Content that a container holds as it is would be found twice.
    let mut alone = true;
    for found in &whole {
        alone = alone && !holds_files_as_they_are(found.format, probe.input)?;
    }
    let mut suspicious = None;
    if alone {
        if !whole.is_empty() {
            let format = ContainerFormat(&mail::EML);
            let has_mail = whole.iter().chain(&inside).any(|found| found.format == format);
            let at = if has_mail { None } else { mail_within(probe.head) };
            inside.extend(at.map(|at| Found { format, offset: at as u64 }));
        }
        let hidden = search(probe.input, probe.head_is_bare)?;
        let is_pdf = whole.iter().chain(&inside).any(|found| found.format.name() == "pdf");
        let pdf = (hidden.pdf && !is_pdf, "pdf");
        let names = [pdf, (hidden.uuencode, "uuencode"), (hidden.yenc, "yenc"), (hidden.data, "text")];
        let names = names.into_iter().filter(|(is_there, _)| *is_there).map(|(_, name)| (0, name));
        if hidden.has_more {
            suspicious = Some("more in the file looks like archives than is looked into".to_owned());
        }
        if hidden.has_long_address {
            suspicious = Some("a data: address says more of itself than is read".to_owned());
        }
        for (offset, name) in hidden.archives.into_iter().chain(names) {
            // The probe saw it if programs find it by the file's end; farther from there it is an attachment.
            if name == "zip" && !whole.is_empty() {
                continue;
            }
            let found = ContainerFormat::named(name).map(|format| Found { format, offset });
            inside.extend(found.filter(|found| !inside.contains(found)));
        }
    }
    if let Some((a, b)) = strangers(&whole) {
        suspicious = Some(format!("the file is a container of two formats at once: {a:?} and {b:?}"));
    }
    let mut containers = whole;
    if alone {
        for found in inside {
            if !containers.contains(&found) {
                containers.push(found);
            }
        }
    }
    if containers.len() > CLAIMS_MAX {
        suspicious = Some(format!("the file is {} containers at once", containers.len()));
        containers.truncate(CLAIMS_MAX);
    }
    Ok((containers, suspicious))
}

/// Whether a container of this format holds what is in it as it is, mostly: what seems to lie inside is likely a member then. A PDF's
/// contents don't show, and what does is opened by whoever takes the file for another format: a browser shows a page behind a PDF's
/// header, and Word a web archive. A shortcut's show no more, and what it starts takes the shortcut itself for a page or an archive. So
/// it is with what is around the content of messages and forks, of which much is never read. So it is with a document in RTF, but its
/// pictures look like base64 in every way: it counts if a browser would find a page in it. What a mail says of itself, and what is no
/// base64 in a part that says so, show too; but its parts are mostly base64, so they count if an address is in them.
fn holds_files_as_they_are(format: ContainerFormat, input: &mut dyn ReadSeek) -> io::Result<bool> {
    Ok(match format.name() {
        "pdf" | "lnk" | "cms" | "pgp" | "appledouble" | "asar" => false,
        "rtf" => !text::has_markup(input)?,
        "eml" => !text::has_address(input)?,
        _ => true,
    })
}

/// Where in a file's beginning a web archive begins: Word opens one behind whatever else the file begins with.
fn mail_within(head: &[u8]) -> Option<usize> {
    const FIELD: &[u8] = b"mime-version:";
    let lines = memchr::memchr_iter(b'\n', head).map(|at| at + 1);
    let begins = lines.filter_map(|at| head.get(at..).map(|rest| (at, rest)));
    let named =
        begins.filter(|(_, rest)| rest.get(..FIELD.len()).is_some_and(|field| field.eq_ignore_ascii_case(FIELD)));
    named.take(CLAIMS_MAX).find(|(_, rest)| mail::begins_as_mail(rest)).map(|(at, _)| at)
}

/// Two formats of the list that no file should be of at once.
fn strangers(found: &[Found]) -> Option<(ContainerFormat, ContainerFormat)> {
    found.iter().enumerate().find_map(|(at, one)| {
        let others = found.get(at..).unwrap_or_default();
        others.iter().find(|other| !one.format.may_be_beside(other.format)).map(|other| (one.format, other.format))
    })
}

fn read_part(input: &mut dyn ReadSeek, offset: u64, most_bytes: usize) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    input.seek(SeekFrom::Start(offset))?;
    input.take(most_bytes as u64).read_to_end(&mut part)?;
    Ok(part)
}

/// The groups of file types that clients know: A archive, D document, E executable, G graphic, I disk image, M audio or
/// video, P PDF, T text, Z mail, O other.
fn category(format: FileFormat) -> &'static str {
    if format.media_type() == "application/pdf" {
        return "P";
    }
    if format.media_type().starts_with("text/") {
        return "T";
    }
    if matches!(format.media_type(), "message/rfc822" | "application/vnd.ms-outlook" | "application/mbox") {
        return "Z";
    }
    match format.kind() {
        Kind::Archive | Kind::Compressed | Kind::Package => "A",
        Kind::Document | Kind::Ebook | Kind::Presentation | Kind::Spreadsheet | Kind::Diagram | Kind::Formula => "D",
        Kind::Executable => "E",
        Kind::Image | Kind::Model => "G",
        Kind::Disk | Kind::Rom => "I",
        Kind::Audio | Kind::Video | Kind::Playlist => "M",
        Kind::Subtitle => "T",
        _ => "O",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(content: &[u8]) -> FileType {
        let detected = detect(&mut Cursor::new(content), content.len() as u64).unwrap();
        assert_eq!(detect_content(content).unwrap(), detected, "in memory it is the same");
        detected
    }

    fn containers(content: &[u8]) -> Vec<(&'static str, u64)> {
        of(content).containers.iter().map(|found| (found.format.name(), found.offset)).collect()
    }

    #[test]
    fn files_are_what_their_content_is() {
        assert_eq!(of(b"").mime, "application/x-empty");
        let text = of(b"hello, world\n");
        assert_eq!((text.mime.as_str(), text.category), ("text/plain", vec!["T".to_owned()]));
        let pdf = of(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n");
        assert_eq!((pdf.mime.as_str(), pdf.category), ("application/pdf", vec!["P".to_owned()]));
        let png = of(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
        assert_eq!((png.mime.as_str(), png.extension.as_str(), png.containers), ("image/png", "png", vec![]));
    }

    #[test]
    fn containers_are_found_by_structure() {
        const EMPTY_ZIP: &[u8] = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(containers(EMPTY_ZIP), [("zip", 0)]);
        assert_eq!(containers(&[b"#!/bin/sh\nexit\n", EMPTY_ZIP].concat()), [("zip", 0)]);
        assert_eq!(containers(&[0x1f, 0x8b, 8, 0]), [("gzip", 0)]);
        assert_eq!(containers(b"!<arch>\n"), [("ar", 0)]);
        let mut v7 = tar::Header::new_old();
        v7.set_path("a").unwrap();
        v7.set_size(0);
        v7.set_cksum();
        assert_eq!(containers(v7.as_bytes()), [("tar", 0)]);
        assert_eq!(of(v7.as_bytes()).category, ["A"]);
        assert_eq!(containers(&[0; 1024]), []);
    }

    #[test]
    fn a_file_of_two_formats_is_both_and_suspicious() {
        let mut both = tar::Header::new_old();
        both.as_mut_bytes()[..3].copy_from_slice(&[0x1f, 0x8b, 8]);
        both.set_size(0);
        both.set_cksum();
        assert_eq!(containers(both.as_bytes()), [("gzip", 0), ("tar", 0)]);
        assert!(of(both.as_bytes()).suspicious.unwrap().contains("gzip and tar"));
    }

    #[test]
    fn what_shows_behind_another_formats_header_counts_too() {
        let page = b"<html><a href=\"data:application/octet-stream;base64,QUJDREVGR0hJSktMTU5PUA==\">x</a></html>\n";
        assert_eq!(containers(&[b"%PDF-1.4\n%%EOF\n", &page[..]].concat()), [("pdf", 0), ("text", 0)]);
        let mail =
            b"MIME-Version: 1.0\r\nContent-Type: multipart/related; boundary=\"b\"\r\n\r\n--b\r\n\r\ntext\r\n--b--\r\n";
        assert_eq!(containers(&[b"%PDF-1.7\r\n\r\n%%EOF\r\n", &mail[..]].concat()), [("pdf", 0), ("eml", 19)]);
        // No program searches so far for a ZIP archive's end: this is an attachment.
        let zip = {
            let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
            writer.start_file("a", zip::write::SimpleFileOptions::default()).unwrap();
            writer.finish().unwrap().into_inner()
        };
        let pdf = |behind: usize| [b"%PDF-1.4\n%%EOF\n", &zip[..], &vec![0; behind]].concat();
        assert_eq!((containers(&pdf(1)), containers(&pdf(100_000))), (vec![("pdf", 0), ("zip", 0)], vec![("pdf", 0)]));
        let header = [3, 1, 0, 0];
        let archive = [b"Rar!\x1a\x07\x01\0", &crc32fast::hash(&header).to_le_bytes()[..], &header].concat();
        assert_eq!(containers(&[b"%PDF-1.4\n%%EOF\n", &archive[..]].concat()), [("pdf", 0), ("rar", 15)]);
        assert_eq!(containers(&[b"words ", &archive[..12]].concat()), [], "programs that open archives have its mark");
        let mut cabinet = [b"words before it ", &b"MSCF\x01\0\0\0\x40"[..], &[0; 60]].concat();
        assert_eq!(containers(&cabinet), []);
        cabinet[16 + 16..16 + 32].copy_from_slice(&[0x2c, 0, 0, 0, 0, 0, 0, 0, 3, 1, 1, 0, 1, 0, 0, 0]);
        assert_eq!(containers(&cabinet), [("cab", 16)]);
        let rtf = |behind: &[u8]| [b"{\\rtf1 ", &b"word ".repeat(20_000)[..], behind, b" a < b}"].concat();
        assert_eq!(containers(&rtf(page)), [("rtf", 0), ("text", 0)]);
        // A picture is no base64, and no letter before it any markup.
        let picture = [b"{\\pict ", b"0123456789abcdef".repeat(100).as_slice(), b"}"].concat();
        assert_eq!(containers(&rtf(&picture)), [("rtf", 0)]);
        let fields = b"From: a\r\nTo: b\r\nMIME-Version: 1.0\r\n";
        assert_eq!(containers(&[fields, &b"X: "[..], page, b"\r\n\r\ntext\r\n"].concat()), [("eml", 0), ("text", 0)]);
        let base64 = b"Content-Transfer-Encoding: base64\r\n\r\n";
        assert_eq!(containers(&[fields, &base64[..], page].concat()), [("eml", 0), ("text", 0)]);
        let attached = b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ejAxMjM0\r\n".repeat(9);
        assert_eq!(containers(&[fields, &base64[..], &attached].concat()), [("eml", 0)]);
        // Without a header and an end it is one for programs that go by its name.
        let objects = [&b"words ".repeat(20_000)[..], b"\n1 0 obj\n<</A 1>>\nendobj\n"].concat();
        assert_eq!(containers(&objects), [("pdf", 0)]);
        // In a tape archive it is a member.
        let mut header = tar::Header::new_old();
        header.set_path("page.html").unwrap();
        header.set_size(page.len() as u64);
        header.set_cksum();
        assert_eq!(containers(&[header.as_bytes(), &page[..]].concat()), [("tar", 0)]);
    }

    #[test]
    fn types_travel_between_processes() {
        let zip = of(b"PK\x03\x04");
        assert_eq!(serde_json::from_str::<FileType>(&serde_json::to_string(&zip).unwrap()).unwrap(), zip);
    }
}
