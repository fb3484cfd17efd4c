//! Walks the records of a segment, damaged or torn as it may be.
//!
//! It trusts nothing: a record is one only if it begins with the segment's marker and its header's checksum holds. After
//! damage it searches for the next such place. Payloads are not read on the way.

use std::sync::Arc;

use crate::disk::{Ahead, Disk, DiskError};
use crate::record::{
    Marker, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES, SegmentAddress, SegmentHeader, record_buffer,
};

/// How much is read at a time in search of a marker.
const SEARCH_BYTES: usize = 256 * 1024;

/// A step of the walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A record; its payload may still be damaged.
    Record { offset: u64, header: RecordHeader },
    /// Nothing readable from `offset` on, up to the next record or the segment's end.
    Gap { offset: u64 },
}

pub(crate) struct Scan {
    disk: Arc<dyn Disk>,
    address: SegmentAddress,
    marker: Marker,
    offset: u64,
    length: u64,
    ahead: Ahead,
}

/// A segment's header; the inner error says that it is damaged, or of another format.
pub(crate) fn read_segment_header(
    disk: &dyn Disk,
    address: SegmentAddress,
) -> Result<Result<SegmentHeader, crate::record::FormatError>, DiskError> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    disk.read_at(address, 0, &mut bytes)?;
    Ok(SegmentHeader::decode(&bytes))
}

/// How a segment's records begin: its header tells, or its first record if the header is damaged.
pub(crate) fn find_marker(disk: &dyn Disk, address: SegmentAddress) -> Result<Option<Marker>, DiskError> {
    if let Ok(header) = read_segment_header(disk, address)? {
        return Ok(Some(header.marker));
    }
    let first = read_record_header(disk, address, SEGMENT_HEADER_BYTES as u64)?;
    Ok(first.map(|header| header.marker))
}

/// The record header at `offset`, if there is one.
pub(crate) fn read_record_header(
    disk: &dyn Disk,
    address: SegmentAddress,
    offset: u64,
) -> Result<Option<RecordHeader>, DiskError> {
    let mut bytes = [0; RECORD_HEADER_BYTES];
    let count = disk.read_at(address, offset, &mut bytes)?;
    Ok(if count == RECORD_HEADER_BYTES { RecordHeader::decode(&bytes).ok() } else { None })
}

/// The payload of a record behind space for its header, as it lies on disk, if its checksum holds.
pub(crate) fn read_record_buffer(
    disk: &dyn Disk,
    address: SegmentAddress,
    offset: u64,
    header: &RecordHeader,
) -> Result<Option<Vec<u8>>, DiskError> {
    // Bounded by what the header's kind allows.
    let payload_bytes = header.payload_bytes as usize;
    let mut buffer = record_buffer(payload_bytes);
    buffer.resize(RECORD_HEADER_BYTES + payload_bytes, 0);
    let payload = buffer.get_mut(RECORD_HEADER_BYTES..).unwrap_or_default();
    let count = disk.read_at(address, offset + RECORD_HEADER_BYTES as u64, payload)?;
    let holds = count == payload_bytes && crc32c::crc32c(payload) == header.payload_crc;
    Ok(holds.then_some(buffer))
}

impl Scan {
    /// A walk from `offset` on.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        address: SegmentAddress,
        marker: Marker,
        offset: u64,
    ) -> Result<Self, DiskError> {
        let length = disk.length(address)?;
        Ok(Self {
            disk,
            address,
            marker,
            offset: offset.max(SEGMENT_HEADER_BYTES as u64),
            length,
            ahead: Ahead::default(),
        })
    }

    /// Where the next step begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next step; `None` at the segment's end.
    pub(crate) fn next(&mut self) -> Result<Option<Step>, DiskError> {
        if self.offset >= self.length {
            return Ok(None);
        }
        let offset = self.offset;
        // Where records are short, their headers lie close together.
        self.ahead.read(&*self.disk, self.address, offset, offset + RECORD_HEADER_BYTES as u64, self.length);
        match self.header_at(offset)? {
            Some(header) => {
                self.offset += header.record_bytes();
                Ok(Some(Step::Record { offset, header }))
            }
            None => {
                self.offset = self.search(offset + 1)?;
                Ok(Some(Step::Gap { offset }))
            }
        }
    }

    fn header_at(&self, offset: u64) -> Result<Option<RecordHeader>, DiskError> {
        let header = read_record_header(&*self.disk, self.address, offset)?;
        // A record can't prove more of its segment durable than lies before it.
        Ok(header.filter(|header| header.marker == self.marker && header.synced <= offset))
    }

    /// The offset of the next record from `from` on, or the segment's end.
    fn search(&self, mut from: u64) -> Result<u64, DiskError> {
        let mut window = vec![0; SEARCH_BYTES];
        while from < self.length {
            let count = self.disk.read_at(self.address, from, &mut window)?;
            let read = window.get(..count).unwrap_or_default();
            if count < self.marker.len() {
                break;
            }
            let found = read.windows(self.marker.len()).enumerate().filter(|(_, bytes)| *bytes == self.marker);
            for (at, _) in found {
                if self.header_at(from + at as u64)?.is_some() {
                    return Ok(from + at as u64);
                }
            }
            // A marker may lie across two windows.
            from += (count - (self.marker.len() - 1)) as u64;
        }
        Ok(self.length)
    }
}
