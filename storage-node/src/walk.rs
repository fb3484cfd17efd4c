//! Reads a segment from front to back in large pieces and checks every record on the way.
//!
//! It trusts nothing: a record is one only if it begins with the segment's marker and its header's checksum holds, and it
//! is whole only if its payload's does. After damage it searches for the next such place. A part of the file that the disk
//! can't read is damage like any other, as long as the disk reads anything around it. It decides nothing about what is
//! durable and changes nothing.

use std::sync::Arc;

use lazaret_protocol::limits::MIB;

use crate::disk::{Disk, DiskError};
use crate::record::{Marker, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES, SegmentAddress};

/// How much is read at a time: enough for a disk to work at its sequential rate, and for the longest extent.
const WINDOW_BYTES: usize = 4 * MIB as usize;
/// What is read at a time where a whole window can't be: the unit in which disks lose data and kernels cache it.
const PAGE_BYTES: usize = 4096;

/// What lies at a place of a segment.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// A record whose checksums hold, and its payload as it lies on disk.
    Whole { offset: u64, header: RecordHeader, payload: &'a [u8] },
    /// A record whose payload is damaged or cut short.
    Damaged { offset: u64, header: RecordHeader },
    /// Nothing readable from `offset` up to `end`, where the next record begins or the segment ends.
    Gap { offset: u64, end: u64 },
}

/// A walk through one segment.
pub(crate) struct Walk {
    disk: Arc<dyn Disk>,
    address: SegmentAddress,
    marker: Marker,
    /// Where the next step begins.
    offset: u64,
    length: u64,
    /// What was read last, and from where.
    window: Vec<u8>,
    window_start: u64,
    /// Bytes of the file that the disk could not read.
    pub(crate) unreadable_bytes: u64,
}

impl Walk {
    /// A walk from `offset` on.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        address: SegmentAddress,
        marker: Marker,
        offset: u64,
    ) -> Result<Self, DiskError> {
        let length = disk.length(address)?;
        let offset = offset.max(SEGMENT_HEADER_BYTES as u64);
        Ok(Self { disk, address, marker, offset, length, window: Vec::new(), window_start: 0, unreadable_bytes: 0 })
    }

    /// The next step; `None` at the segment's end.
    pub(crate) fn next(&mut self) -> Result<Option<Found<'_>>, DiskError> {
        let offset = self.offset;
        if offset >= self.length {
            return Ok(None);
        }
        let Some(header) = self.header_at(offset)? else {
            self.offset = self.search(offset + 1)?;
            return Ok(Some(Found::Gap { offset, end: self.offset }));
        };
        self.offset = offset + header.record_bytes();
        // Bounded by what the header's kind allows.
        let payload_bytes = header.payload_bytes as usize;
        let payload = self.bytes(offset + RECORD_HEADER_BYTES as u64, payload_bytes)?;
        if payload.len() < payload_bytes || crc32c::crc32c(payload) != header.payload_crc {
            return Ok(Some(Found::Damaged { offset, header }));
        }
        Ok(Some(Found::Whole { offset, header, payload }))
    }

    fn header_at(&mut self, offset: u64) -> Result<Option<RecordHeader>, DiskError> {
        let marker = self.marker;
        let Some(bytes) = self.bytes(offset, RECORD_HEADER_BYTES)?.first_chunk::<RECORD_HEADER_BYTES>() else {
            return Ok(None);
        };
        // A record can't prove more of its segment durable than lies before it.
        let header = RecordHeader::decode(bytes).ok();
        Ok(header.filter(|header| header.marker == marker && header.synced <= offset))
    }

    /// The offset of the next record from `from` on, or the segment's end.
    fn search(&mut self, mut from: u64) -> Result<u64, DiskError> {
        let marker = self.marker;
        while from < self.length {
            let bytes = self.bytes(from, PAGE_BYTES)?;
            match bytes.windows(marker.len()).position(|bytes| bytes == marker) {
                Some(at) => {
                    from += at as u64;
                    if self.header_at(from)?.is_some() {
                        return Ok(from);
                    }
                    from += 1;
                }
                // A marker may lie across two pages.
                None if bytes.len() > marker.len() => from += (bytes.len() - (marker.len() - 1)) as u64,
                None => break,
            }
        }
        Ok(self.length)
    }

    /// `count` bytes from `offset` on, fewer only at the segment's end.
    fn bytes(&mut self, offset: u64, count: usize) -> Result<&[u8], DiskError> {
        let end = offset.saturating_add(count as u64).min(self.length);
        if offset < self.window_start || end > self.window_start + self.window.len() as u64 {
            self.slide(offset, count)?;
        }
        let at = usize::try_from(offset - self.window_start).unwrap_or(usize::MAX);
        let rest = self.window.get(at..).unwrap_or_default();
        Ok(rest.get(..count).unwrap_or(rest))
    }

    /// Moves the window to begin at `offset` and to hold at least `count` bytes, if the segment has them.
    fn slide(&mut self, offset: u64, count: usize) -> Result<(), DiskError> {
        // What the old window holds of the new one is not read again.
        match usize::try_from(offset.wrapping_sub(self.window_start)) {
            Ok(passed) if passed < self.window.len() => drop(self.window.drain(..passed)),
            _ => self.window.clear(),
        }
        self.window_start = offset;
        let held = self.window.len();
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.window.resize(count.max(WINDOW_BYTES).min(left).max(held), 0);
        let from = offset + held as u64;
        let fresh = self.window.get_mut(held..).unwrap_or_default();
        let read = match self.disk.read_at(self.address, from, fresh) {
            Err(error) if error.is_unreadable() => {
                let (read, unreadable) = read_in_pages(&*self.disk, self.address, from, fresh, error)?;
                self.unreadable_bytes += unreadable;
                read
            }
            read => read?,
        };
        self.window.truncate(held + read);
        self.disk.read_ahead(self.address, from + read as u64, WINDOW_BYTES as u64);
        Ok(())
    }
}

/// Reads what can be read of a part that can't be read at once; the rest becomes zeros, which are no record. Returns how
/// many bytes the segment has there and how many of them were unreadable. If nothing is readable, it is the disk.
fn read_in_pages(
    disk: &dyn Disk,
    address: SegmentAddress,
    from: u64,
    bytes: &mut [u8],
    error: DiskError,
) -> Result<(usize, u64), DiskError> {
    let (mut filled, mut unreadable) = (0, 0);
    for page in bytes.chunks_mut(PAGE_BYTES) {
        match disk.read_at(address, from + filled as u64, page) {
            Ok(count) => {
                filled += count;
                if count < page.len() {
                    break;
                }
            }
            Err(page_error) if page_error.is_unreadable() => {
                page.fill(0);
                filled += page.len();
                unreadable += page.len() as u64;
            }
            Err(page_error) => return Err(page_error),
        }
    }
    if unreadable == filled as u64 {
        return Err(error);
    }
    tracing::error!(segment = %address, offset = from, unreadable, "the disk could not read a part of a segment");
    Ok((filled, unreadable))
}
