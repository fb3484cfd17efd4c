//! What a file is, by its content alone: its name and its sender's claims don't count.
//!
//! The `file-format` crate names the type; the formats that can be taken apart are recognised here by their structure, since
//! what is not recognised as a container is not looked into.

use std::io::{self, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use file_format::{FileFormat, Kind};

use crate::extractor::{ReadSeek, read_full};
use crate::extractors::ContainerFormat;
use crate::extractors::{ar_magic, is_tar_header};

/// How much of a file's beginning is looked at for containers: a tar header.
const HEAD_BYTES: usize = 512;
/// A ZIP end record without its comment (APPNOTE 4.3.16).
const ZIP_END_BYTES: usize = 22;
/// How much of a file's end is looked at: a ZIP end record with the longest comment.
const TAIL_BYTES: u64 = ZIP_END_BYTES as u64 + 65_535;
/// How many signatures of an end record are looked into. What follows the right one is a comment, which rarely has any.
const ZIP_ENDS_MAX: usize = 16;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileType {
    /// MIME type.
    pub mime: String,
    /// The usual extension, without a dot.
    pub extension: String,
    /// The type in words.
    pub description: String,
    /// The group that clients know: one letter, see `category`.
    pub category: Vec<String>,
    /// How it is taken apart, if it is a container.
    pub container: Option<ContainerFormat>,
    /// It is a container of another format as well, and other programs may open it as that one.
    pub ambiguous: bool,
}

impl FileType {
    fn of(format: FileFormat) -> Self {
        Self {
            mime: format.media_type().to_owned(),
            extension: format.extension().to_owned(),
            description: format.name().to_owned(),
            category: vec![category(format).to_owned()],
            container: None,
            ambiguous: false,
        }
    }
}

/// Detects the type of a file of `length` bytes. An error is one of reading it.
pub fn detect(input: &mut dyn ReadSeek, length: u64) -> io::Result<FileType> {
    if length == 0 {
        return Ok(FileType::of(FileFormat::Empty));
    }
    let (container, ambiguous) = container(input, length)?;
    input.seek(SeekFrom::Start(0))?;
    // A parser of other people's, over hostile input: if it fails or panics the type is unknown, and what the structure
    // says still holds.
    let format = catch_unwind(AssertUnwindSafe(|| FileFormat::from_reader(&mut *input)));
    let format = match format {
        Ok(Ok(format)) => format,
        Ok(Err(error)) if crate::budget::Halt::of(&error).is_some() => return Err(error),
        _ => FileFormat::ArbitraryBinaryData,
    };
    let mut detected = FileType { ambiguous, ..FileType::of(format) };
    if let Some(container) = container {
        let plain = FileFormat::from(container);
        // A type that names something better than "some data" stands: a document is a ZIP too.
        if matches!(format.kind(), Kind::Other) {
            detected = FileType { ambiguous, ..FileType::of(plain) };
        }
        detected.container = Some(container);
    }
    Ok(detected)
}

impl From<ContainerFormat> for FileFormat {
    fn from(container: ContainerFormat) -> Self {
        match container {
            ContainerFormat::Zip => Self::Zip,
            ContainerFormat::Tar => Self::TapeArchive,
            ContainerFormat::Gzip => Self::Gzip,
            ContainerFormat::Bzip2 => Self::Bzip2,
            ContainerFormat::Xz => Self::Xz,
            ContainerFormat::Zstd => Self::Zstandard,
            ContainerFormat::Ar => Self::UnixArchiver,
        }
    }
}

/// What container it is, and whether it is another one as well.
fn container(input: &mut dyn ReadSeek, length: u64) -> io::Result<(Option<ContainerFormat>, bool)> {
    let mut head = [0; HEAD_BYTES];
    input.seek(SeekFrom::Start(0))?;
    let read = read_full(input, &mut head)?;
    let by_head = by_head(head.get(..read).unwrap_or_default());
    let tar = (read == HEAD_BYTES && is_tar_header(&head)).then_some(ContainerFormat::Tar);
    let zip_end = zip_end(input, length)?;
    match by_head.or(tar) {
        // A ZIP archive behind something else.
        None => Ok((zip_end.map(|_| ContainerFormat::Zip), false)),
        Some(format) => {
            // A container often holds a ZIP archive near its end; one that ends as a ZIP archive is meant to be opened as such.
            let also_zip = format != ContainerFormat::Zip && zip_end == Some(ZipEnd::AtTheEnd);
            Ok((Some(format), also_zip || (by_head.is_some() && tar.is_some())))
        }
    }
}

/// Where the last end record of a ZIP archive lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ZipEnd {
    AtTheEnd,
    /// Something follows, which most programs don't mind.
    BeforeTheEnd,
}

/// The last end record that belongs to an archive: it ends the file, or a central directory lies before it.
fn zip_end(input: &mut dyn ReadSeek, length: u64) -> io::Result<Option<ZipEnd>> {
    let tail_bytes = length.min(TAIL_BYTES);
    let start = length - tail_bytes;
    input.seek(SeekFrom::Start(start))?;
    let mut tail = vec![0; tail_bytes as usize];
    let read = read_full(input, &mut tail)?;
    tail.truncate(read);
    let ends = tail.windows(ZIP_END_BYTES).enumerate().rev().filter(|(_, record)| record.starts_with(b"PK\x05\x06"));
    let mut candidates = Vec::new();
    for (at, record) in ends.take(ZIP_ENDS_MAX) {
        let [.., d0, d1, d2, d3, _, _, _, _, c0, c1] = record else { continue };
        let comment_bytes = usize::from(u16::from_le_bytes([*c0, *c1]));
        if at + ZIP_END_BYTES + comment_bytes == tail.len() {
            return Ok(Some(ZipEnd::AtTheEnd));
        }
        candidates.push((start + at as u64, u64::from(u32::from_le_bytes([*d0, *d1, *d2, *d3]))));
    }
    for (end, directory_bytes) in candidates {
        let Some(directory) = end.checked_sub(directory_bytes).filter(|_| directory_bytes > 0) else { continue };
        let mut signature = [0; 4];
        input.seek(SeekFrom::Start(directory))?;
        read_full(input, &mut signature)?;
        if signature == *b"PK\x01\x02" {
            return Ok(Some(ZipEnd::BeforeTheEnd));
        }
    }
    Ok(None)
}

fn by_head(head: &[u8]) -> Option<ContainerFormat> {
    match head {
        // The first is a member, the second an empty archive, the others the marker of one split or meant to be.
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, b'P', b'K', ..] => {
            Some(ContainerFormat::Zip)
        }
        [b'P', b'K', b'0', b'0', b'P', b'K', ..] => Some(ContainerFormat::Zip),
        [0x1f, 0x8b, 8, ..] => Some(ContainerFormat::Gzip),
        // A block, or the end of an empty stream.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Some(ContainerFormat::Bzip2),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(ContainerFormat::Xz),
        // A frame, or one to be skipped, behind which frames may follow.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(ContainerFormat::Zstd),
        _ if head.starts_with(ar_magic()) => Some(ContainerFormat::Ar),
        _ => None,
    }
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
    use std::io::Cursor;

    use super::*;

    fn of(content: &[u8]) -> FileType {
        detect(&mut Cursor::new(content), content.len() as u64).unwrap()
    }

    #[test]
    fn files_are_what_their_content_is() {
        assert_eq!(of(b"").mime, "application/x-empty");
        let text = of(b"hello, world\n");
        assert_eq!((text.mime.as_str(), text.category), ("text/plain", vec!["T".to_owned()]));
        let pdf = of(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n");
        assert_eq!((pdf.mime.as_str(), pdf.category), ("application/pdf", vec!["P".to_owned()]));
        let png = of(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
        assert_eq!((png.mime.as_str(), png.extension.as_str(), png.container), ("image/png", "png", None));
    }

    #[test]
    fn containers_are_found_by_structure() {
        assert_eq!(of(b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").container, Some(ContainerFormat::Zip));
        let mut behind = b"#!/bin/sh\nexit\n".to_vec();
        behind.extend_from_slice(b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(of(&behind).container, Some(ContainerFormat::Zip));
        assert_eq!(of(&[0x1f, 0x8b, 8, 0]).container, Some(ContainerFormat::Gzip));
        assert_eq!(of(b"!<arch>\n").container, Some(ContainerFormat::Ar));
        let mut v7 = tar::Header::new_old();
        v7.set_path("a").unwrap();
        v7.set_size(0);
        v7.set_cksum();
        let v7 = of(v7.as_bytes());
        assert_eq!((v7.container, v7.category), (Some(ContainerFormat::Tar), vec!["A".to_owned()]));
        assert_eq!(of(&[0; 1024]).container, None);
    }
}
