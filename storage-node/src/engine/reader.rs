//! Reads a blob: content and tree come from their records, are unsalted and verified against the name, and leave as the
//! bao encoding. Nothing unverified leaves.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;

use lazaret_protocol::BlobName;
use lazaret_protocol::limits::{EXTENT_BYTES_MAX, GROUP_BYTES, KIB};
use lazaret_protocol::message::{ByteRange, GetHeader};
use lazaret_protocol::tree::{self, ReadAt, tree_bytes};

use super::EngineError;
use super::store::{Generation, Store};
use crate::disk::Ahead;
use crate::index::{BlobEntry, Layout};
use crate::record::{Location, RECORD_HEADER_BYTES, RecordHeader, RecordKind, TREE_PIECE_BYTES};
use crate::scan::read_record_header;

/// How much of a tree is read at a time: the whole of it for blobs up to 16 MiB.
const TREE_WINDOW_BYTES: usize = 16 * KIB as usize;

/// A blob held here, ready to be read.
pub struct BlobReader {
    pub(crate) store: Arc<Store>,
    pub(crate) name: BlobName,
    pub(crate) blob: BlobEntry,
    /// Keeps the segments in which the blob lies, whatever becomes of it. `None` only while it is dropped.
    pub(crate) generation: Option<Generation>,
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        self.generation = None;
        // It may have been the last for which removed segments waited.
        self.store.remove_ready();
    }
}

impl BlobReader {
    /// Length and put time.
    pub fn header(&self) -> GetHeader {
        self.blob.header()
    }

    /// Writes the bao encoding of `range` (of everything, if there is none) to `sink`, verified on the way. Blocks. What
    /// was written before an error has verified, but is not all of the range.
    pub fn encode(&self, range: Option<ByteRange>, sink: impl io::Write) -> Result<(), EngineError> {
        self.read(range, sink)?;
        self.store.counters.gets.add(1);
        Ok(())
    }

    /// Reads all of it and verifies it.
    pub(crate) fn verify(&self) -> Result<(), EngineError> {
        self.read(None, io::sink())
    }

    /// Encodes, and takes note of damage.
    fn read(&self, range: Option<ByteRange>, sink: impl io::Write) -> Result<(), EngineError> {
        let failure = RefCell::new(None);
        let end = range.map_or(self.blob.length, |range| range.end.saturating_add(GROUP_BYTES as u64));
        let (content, tree) = self.streams(&failure, end.min(self.blob.length));
        let tree = Windowed { stream: tree, window: RefCell::default() };
        let encoded = tree::encode(self.name, self.blob.length, range, content, tree, sink);
        let outcome = encoded.map_err(|error| match failure.take() {
            Some(failure) => failure,
            None => EngineError::of_tree(self.name, error),
        });
        if let Err(error @ EngineError::Corrupt { .. }) = &outcome {
            tracing::error!(%error, "a read failed verification");
            self.store.counters.corrupt_reads.add(1);
            if let Err(error) = self.store.mark_damaged(self.name, &self.blob.layout) {
                // Whoever reads it next finds the damage again.
                tracing::error!(%error, "the index was not told of a damaged copy");
            }
        }
        outcome
    }

    /// Content and tree; of the content nothing is wanted from `end` on.
    fn streams<'a>(&'a self, failure: &'a RefCell<Option<EngineError>>, end: u64) -> (Stream<'a>, Stream<'a>) {
        let length = self.blob.length;
        let (tree_length, reader) = (tree_bytes(length), self);
        let stream = |kind, pieces, piece_bytes: usize, length, payload_start, end| Stream {
            reader,
            failure,
            kind,
            pieces,
            piece_bytes: piece_bytes as u64,
            length,
            payload_start,
            ahead: Cell::new(None),
            end,
            open: Cell::new(None),
        };
        match &self.blob.layout {
            Layout::Whole(location) => {
                let pieces = std::slice::from_ref(location);
                (
                    stream(RecordKind::Blob, pieces, usize::MAX, length, 0, end),
                    stream(RecordKind::Blob, pieces, usize::MAX, tree_length, length, 0),
                )
            }
            Layout::Streamed { extents, tree, .. } => (
                stream(RecordKind::Extent, extents, EXTENT_BYTES_MAX, length, 0, end),
                stream(RecordKind::Tree, tree, TREE_PIECE_BYTES, tree_length, 0, 0),
            ),
        }
    }
}

/// A run of bytes that lies in the payloads of one or more records.
struct Stream<'a> {
    reader: &'a BlobReader,
    /// Why reading failed, better than an I/O error can say it.
    failure: &'a RefCell<Option<EngineError>>,
    kind: RecordKind,
    pieces: &'a [Location],
    /// Bytes in each piece but the last.
    piece_bytes: u64,
    length: u64,
    /// Where in the first piece's payload the stream begins.
    payload_start: u64,
    /// What the disk was asked for of the piece last read from.
    ahead: Cell<Option<(usize, Ahead)>>,
    /// From where on nothing is wanted; of a tree, which is read in windows, nothing is asked for before.
    end: u64,
    /// The piece last read from, so that its header is read once.
    open: Cell<Option<(usize, RecordHeader)>>,
}

impl Stream<'_> {
    fn read(&self, position: u64, bytes: &mut [u8]) -> Result<usize, EngineError> {
        let piece = position / self.piece_bytes;
        let in_piece = position % self.piece_bytes;
        let left = self.length.saturating_sub(position).min(self.piece_bytes - in_piece);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let Some(bytes) = bytes.get_mut(..wanted).filter(|bytes| !bytes.is_empty()) else { return Ok(0) };
        let piece = usize::try_from(piece).unwrap_or(usize::MAX);
        let Some(location) = self.pieces.get(piece) else { return Err(self.corrupt(position, "it is incomplete")) };
        let (in_payload, header_bytes) = (self.payload_start + in_piece, RECORD_HEADER_BYTES as u64);
        let offset = location.offset + header_bytes + in_payload;
        let disk = &*self.reader.store.disk;
        // A record's header is read with its beginning.
        let from = if in_payload == 0 { location.offset } else { offset };
        let limit = offset + self.end.saturating_sub(position).min(self.piece_bytes - in_piece);
        let mut ahead = self.ahead.get().filter(|(of, _)| *of == piece).map_or_else(Ahead::default, |(_, ahead)| ahead);
        ahead.read(disk, location.segment, from, offset + wanted as u64, limit);
        self.ahead.set(Some((piece, ahead)));
        let header = self.header(piece, location, position)?;
        if in_payload + wanted as u64 > u64::from(header.payload_bytes) {
            return Err(self.corrupt(position, "a record is shorter than the index says"));
        }
        if disk.read_at(location.segment, offset, bytes).map_err(|error| self.failed(position, error))? < wanted {
            return Err(self.corrupt(position, "its segment ends early"));
        }
        // The payload's length is 32 bits wide, and this lies within it.
        header.unsalt(in_payload as u32, bytes);
        self.open.set(Some((piece, header)));
        Ok(wanted)
    }

    fn header(&self, piece: usize, location: &Location, position: u64) -> Result<RecordHeader, EngineError> {
        if let Some((_, header)) = self.open.take().filter(|(open, _)| *open == piece) {
            return Ok(header);
        }
        let header = read_record_header(&*self.reader.store.disk, location.segment, location.offset)
            .map_err(|error| self.failed(position, error))?;
        header
            .filter(|header| header.kind == self.kind)
            .ok_or_else(|| self.corrupt(position, "a record's header is damaged"))
    }

    /// A segment that is gone and a sector that can't be read are damage, which other copies make good; other errors are
    /// the disk's own.
    fn failed(&self, position: u64, error: crate::disk::DiskError) -> EngineError {
        if error.source.kind() == io::ErrorKind::NotFound {
            self.corrupt(position, "its segment is gone")
        } else if error.is_unreadable() {
            self.corrupt(position, "the disk can't read it")
        } else {
            EngineError::Disk(error)
        }
    }

    fn corrupt(&self, position: u64, what: &str) -> EngineError {
        let part = if matches!(self.kind, RecordKind::Tree) { "tree" } else { "content" };
        EngineError::Corrupt { name: self.reader.name, reason: format!("{what}, at byte {position} of its {part}") }
    }
}

impl ReadAt for Stream<'_> {
    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.read(position, bytes).map_err(|error| {
            let reported = io::Error::other(error.to_string());
            self.failure.replace(Some(error));
            reported
        })
    }
}

/// Reads ahead: a tree is asked for 64 bytes at a time.
struct Windowed<'a> {
    stream: Stream<'a>,
    window: RefCell<(u64, Vec<u8>)>,
}

impl ReadAt for Windowed<'_> {
    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut window = self.window.borrow_mut();
        let (start, held) = &mut *window;
        if position < *start || position >= *start + held.len() as u64 {
            *start = position - position % TREE_WINDOW_BYTES as u64;
            let left = usize::try_from(self.stream.length.saturating_sub(*start)).unwrap_or(usize::MAX);
            held.clear();
            held.resize(left.min(TREE_WINDOW_BYTES), 0);
            // Windows never straddle two pieces, as their length divides a piece's.
            if let Err(error) = self.stream.read_exact_at(*start, held) {
                held.clear();
                return Err(error);
            }
        }
        let from = held.get((position - *start) as usize..).unwrap_or_default();
        let count = from.len().min(bytes.len());
        if let (Some(to), Some(from)) = (bytes.get_mut(..count), from.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }
}
