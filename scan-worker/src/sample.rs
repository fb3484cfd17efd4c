//! What an engine or an extractor is handed: a file's name, its length, and its content, contiguous in memory or readable
//! by ranges.
//!
//! Invariant: bytes come out as they are in the file or as an error, never short: a read that ends before the length the
//! sample declares is an error.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lazaret_containers::windows;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;

use crate::memory::Reservation;
use crate::source::{BlobSource, SourceError};
use crate::spool::Spooled;

/// A file to be judged.
pub struct Sample {
    name: String,
    length: u64,
    content: Content,
}

/// A file's content.
#[derive(Clone)]
pub enum Content {
    /// All of it, contiguous.
    Memory(Bytes, Option<Arc<Reservation>>),
    /// In the store.
    Remote(BlobName, Arc<dyn BlobSource>),
    /// In the worker's spool.
    Spooled(Arc<Spooled>),
}

impl Sample {
    /// A file whose content is in memory.
    pub fn memory(name: impl Into<String>, content: impl Into<Bytes>) -> Self {
        Self::reserved(name.into(), content.into(), None)
    }

    /// The same, with the budget's permission to hold it, which is given back with the sample.
    pub fn reserved(name: String, content: Bytes, reservation: Option<Reservation>) -> Self {
        Self { name, length: content.len() as u64, content: Content::Memory(content, reservation.map(Arc::new)) }
    }

    /// A file whose content is in the store.
    pub fn remote(name: impl Into<String>, blob: BlobName, length: u64, source: Arc<dyn BlobSource>) -> Self {
        Self { name: name.into(), length, content: Content::Remote(blob, source) }
    }

    /// A file whose content is in the worker's spool.
    pub fn spooled(name: impl Into<String>, content: Spooled) -> Self {
        Self { name: name.into(), length: content.length(), content: Content::Spooled(Arc::new(content)) }
    }

    /// The file's name, for showing.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Its content if that is in memory.
    pub fn bytes(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Memory(bytes, _) => Some(bytes),
            Content::Remote(..) | Content::Spooled(_) => None,
        }
    }

    /// Whether it is in memory by the budget's permission.
    pub(crate) fn is_reserved(&self) -> bool {
        matches!(&self.content, Content::Memory(_, Some(_)))
    }

    /// Why something of it could not be read, if that happened and concerns this file alone. Whoever could not read it may
    /// have taken it for a broken file; so whoever judges it asks here. What the store can't read ends the whole scan.
    pub fn fault(&self) -> Option<&str> {
        match &self.content {
            Content::Memory(..) | Content::Remote(..) => None,
            Content::Spooled(spooled) => spooled.fault(),
        }
    }

    /// Up to `length` bytes from `offset` on; fewer only at the file's end.
    pub fn read_at(&self, offset: u64, length: u64) -> Result<Bytes, SourceError> {
        let start = offset.min(self.length);
        let end = offset.saturating_add(length).min(self.length);
        match &self.content {
            Content::Memory(bytes, _) => Ok(bytes.slice(start as usize..end as usize)),
            Content::Remote(..) if start == end => Ok(Bytes::new()),
            Content::Remote(name, source) => {
                let bytes = source.read(*name, ByteRange { start, end })?;
                if bytes.len() as u64 == end - start {
                    Ok(bytes)
                } else {
                    let reason = format!("{} bytes came for {start}..{end}", bytes.len());
                    Err(SourceError::Unavailable { name: *name, reason })
                }
            }
            Content::Spooled(spooled) => {
                spooled.read(start, end).map_err(|error| SourceError::Spool { reason: error.to_string() })
            }
        }
    }

    /// The content as contiguous pieces that together cover it, each beginning with the last `overlap` bytes of the one
    /// before, so that whatever is at most `overlap` + 1 bytes long lies whole in one of them. A content in memory is one
    /// piece.
    pub fn windows(&self, size_bytes: u64, overlap_bytes: u64) -> Windows<'_> {
        debug_assert!(overlap_bytes < size_bytes);
        Windows { sample: self, size_bytes, overlap_bytes, next_offset: 0, last: Bytes::new(), done: false }
    }

    /// Reads it from the beginning.
    pub fn reader(&self) -> SampleReader<'_> {
        SampleReader { sample: self, position: 0, windows: windows::Windows::default(), contents: Default::default() }
    }
}

/// A contiguous piece of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Where in the sample it begins.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Bytes,
}

/// The windows of one sample. See [`Sample::windows`].
pub struct Windows<'s> {
    sample: &'s Sample,
    size_bytes: u64,
    overlap_bytes: u64,
    next_offset: u64,
    last: Bytes,
    done: bool,
}

impl Iterator for Windows<'_> {
    type Item = Result<Window, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if let Some(bytes) = self.sample.bytes() {
            self.done = true;
            return Some(Ok(Window { offset: 0, bytes: bytes.clone() }));
        }
        let kept = self.last.slice(self.last.len().saturating_sub(self.overlap_bytes as usize)..);
        let fresh = match self.sample.read_at(self.next_offset, self.size_bytes - kept.len() as u64) {
            Ok(fresh) => fresh,
            Err(error) => {
                self.done = true;
                return Some(Err(error));
            }
        };
        let offset = self.next_offset - kept.len() as u64;
        self.next_offset += fresh.len() as u64;
        self.done = self.next_offset >= self.sample.length;
        let bytes = if kept.is_empty() {
            fresh
        } else {
            let mut joined = BytesMut::with_capacity(kept.len() + fresh.len());
            joined.extend_from_slice(&kept);
            joined.extend_from_slice(&fresh);
            joined.freeze()
        };
        self.last = bytes.clone();
        Some(Ok(Window { offset, bytes }))
    }
}

/// Reads a sample, of which it holds a few windows if it is not in memory.
pub struct SampleReader<'s> {
    sample: &'s Sample,
    position: u64,
    windows: windows::Windows,
    /// What is in each window.
    contents: [Bytes; windows::WINDOWS],
}

impl SampleReader<'_> {
    /// Bytes from the position on, fetched if need be; empty at the end.
    fn available(&mut self) -> io::Result<&[u8]> {
        let Self { sample, position, windows, contents } = self;
        let (start, content) = match sample.bytes() {
            Some(content) => (0, Some(content)),
            None => {
                let (window, part) = windows.at(*position, sample.length, |window, part| {
                    let content = sample.read_at(part.start, part.end - part.start).map_err(io::Error::other)?;
                    let bytes = content.len() as u64;
                    if let Some(place) = contents.get_mut(window) {
                        *place = content;
                    }
                    Ok(bytes)
                })?;
                (part.start, contents.get(window))
            }
        };
        let skip = usize::try_from(*position - start).unwrap_or(usize::MAX);
        Ok(content.and_then(|content| content.get(skip..)).unwrap_or_default())
    }
}

impl Read for SampleReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.sample.length {
            return Ok(0);
        }
        let mut available = self.available()?;
        let read = available.read(into)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for SampleReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.sample.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position =
            target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the beginning"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Held(Bytes);

    impl BlobSource for Held {
        fn read(&self, _: BlobName, range: ByteRange) -> Result<Bytes, SourceError> {
            Ok(self.0.slice(range.start as usize..range.end as usize))
        }
    }

    fn remote(content: &[u8]) -> Sample {
        let source = Arc::new(Held(Bytes::copy_from_slice(content)));
        Sample::remote("file", BlobName::of(content), content.len() as u64, source)
    }

    #[test]
    fn windows_cover_everything_and_overlap() {
        let content: Vec<u8> = (0..1000u32).map(|i| (i % 251) as u8).collect();
        for length in [0, 1, 99, 100, 101, 190, 191, 1000] {
            let content = &content[..length];
            let mut rebuilt: Vec<u8> = Vec::new();
            for window in remote(content).windows(100, 10) {
                let window = window.unwrap();
                assert!(window.bytes.len() <= 100);
                let offset = window.offset as usize;
                assert_eq!(rebuilt.len() - offset, if offset == 0 { 0 } else { 10 });
                assert_eq!(rebuilt[offset..], window.bytes[..rebuilt.len() - offset]);
                rebuilt.truncate(offset);
                rebuilt.extend_from_slice(&window.bytes);
            }
            assert_eq!(rebuilt, content);
        }
    }

    #[test]
    fn a_reader_reads_and_seeks_alike_in_memory_and_remote() {
        let content: Vec<u8> = (0..(5 << 20) + 5000u32).map(|i| (i % 253) as u8).collect();
        for sample in [remote(&content), Sample::memory("file", content.clone())] {
            let mut reader = sample.reader();
            let mut whole = Vec::new();
            reader.read_to_end(&mut whole).unwrap();
            assert!(whole == content);
            let mut four = [0; 4];
            reader.seek(SeekFrom::End(-4)).unwrap();
            reader.read_exact(&mut four).unwrap();
            assert_eq!(four, content[content.len() - 4..]);
            reader.seek(SeekFrom::Start(77)).unwrap();
            reader.read_exact(&mut four).unwrap();
            assert_eq!(four, content[77..81]);
            assert!(reader.seek(SeekFrom::Current(-100)).is_err());
            reader.seek(SeekFrom::Start(u64::MAX)).unwrap();
            assert_eq!(reader.read(&mut four).unwrap(), 0);
        }
    }
}
