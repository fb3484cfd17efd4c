//! Scrub: reads a sealed segment as it lies on disk and checks every byte of it, before somebody needs it.
//!
//! It reads forward in large pieces, under no lock, at the pace it is given. What it finds damaged is noted in the index,
//! so that it is served no more and can be replaced. On the way it counts anew what is dead, since the running account
//! knows nothing of abandoned uploads and of small records.

use std::ops::Range;
use std::sync::Arc;

use lazaret_protocol::BlobName;
use lazaret_protocol::limits::MIB;

use super::standing::{LastOwner, Standing};
use super::{Engine, EngineError, Store};
use crate::disk::DiskError;
use crate::record::{
    Location, Marker, RECORD_HEADER_BYTES, RecordHeader, RecordKind, SEGMENT_HEADER_BYTES, SegmentAddress,
};
use crate::scan::{Scan, Step, find_marker, read_segment_header};

/// Bytes read at a time: long enough for a disk to be at its best, short enough for a pace.
const READ_BYTES: usize = 4 * MIB as usize;
/// Entries read at a time when the index is searched for what lies in a damaged place.
const ENTRIES_PAGE: usize = 1024;

/// What a scrub of one segment found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes verified.
    pub bytes: u64,
    /// Records found damaged; a place where no record can be made out counts as one.
    pub damaged_records: u64,
    /// Blobs of which the copy here is damaged.
    pub names: Vec<BlobName>,
}

impl Engine {
    /// Verifies a sealed segment. `pace` is told of bytes before they are read, and may wait. A segment that is gone, or takes
    /// records still, or of which nothing ever counted, is passed over. Blocks, for as long as all that takes, and waits for no other task.
    pub fn scrub_segment(&self, address: SegmentAddress, pace: &mut dyn FnMut(u64)) -> Result<Scrubbed, EngineError> {
        let store = &self.shared.store;
        let _generation = store.removals.enter();
        let state = store.ledger.lock().segments().get(&address).copied();
        let Some(state) = state.filter(|state| state.sealed && !state.removed && state.synced > 0) else {
            return Ok(Scrubbed::default());
        };
        let window = Window { store, address, pace, start: 0, bytes: Vec::new(), end: state.synced, read: 0 };
        let mut scrub = Scrub {
            store,
            address,
            window,
            found: Scrubbed::default(),
            dead_bytes: 0,
            gaps: Vec::new(),
            last: LastOwner::default(),
        };
        scrub.run()?;
        let Scrub { mut found, dead_bytes, gaps, window, .. } = scrub;
        found.bytes = window.read;
        let in_gaps = store.mark_damaged_in(address, &gaps)?;
        found.names.extend(in_gaps);
        found.names.sort_unstable();
        found.names.dedup();
        store.counters.corrupt_reads.add(found.damaged_records);
        store.ledger.lock().recount(&*store.index, &store.counters, address, dead_bytes)?;
        if found.damaged_records > 0 {
            let (damaged, blobs) = (found.damaged_records, found.names.len());
            tracing::error!(segment = %address, damaged, blobs, "scrub found damage");
        }
        Ok(found)
    }
}

struct Scrub<'a> {
    store: &'a Store,
    address: SegmentAddress,
    window: Window<'a>,
    found: Scrubbed,
    dead_bytes: u64,
    /// Places where no record can be made out.
    gaps: Vec<Range<u64>>,
    last: LastOwner,
}

impl Scrub<'_> {
    fn run(&mut self) -> Result<(), EngineError> {
        let end = self.window.end;
        if let Err(error) = read_segment_header(&*self.store.disk, self.address)? {
            tracing::error!(segment = %self.address, %error, "damaged");
            self.found.damaged_records += 1;
        }
        let Some(marker) = find_marker(&*self.store.disk, self.address)? else {
            self.gaps.push(0..end);
            return Ok(());
        };
        let mut offset = SEGMENT_HEADER_BYTES as u64;
        while offset < end {
            offset = match self.window.record_header(offset, marker)? {
                Some(header) => {
                    self.record(offset, &header)?;
                    offset + header.record_bytes()
                }
                None => self.gap(offset, marker)?,
            };
        }
        Ok(())
    }

    fn record(&mut self, offset: u64, header: &RecordHeader) -> Result<(), EngineError> {
        let at = Location { segment: self.address, offset };
        let crc = self.window.crc(offset + RECORD_HEADER_BYTES as u64, u64::from(header.payload_bytes))?;
        let standing = self.store.standing(at, header, &mut self.last)?;
        let whole = crc == Some(header.payload_crc);
        if !whole {
            tracing::error!(segment = %self.address, offset, kind = ?header.kind, "damaged");
            self.found.damaged_records += 1;
        }
        match standing {
            // A commit that can't be read is none of the blob's bytes: the index knows what it said.
            Standing::Blob { name, blob } if !whole && header.kind != RecordKind::Commit => {
                if self.store.mark_damaged(name, &blob.layout)? {
                    self.found.names.push(name);
                }
                self.dead_bytes += header.record_bytes();
                self.last = LastOwner::default();
            }
            Standing::Dead => self.dead_bytes += header.record_bytes(),
            Standing::UnderWay | Standing::Blob { .. } | Standing::Small { .. } => {}
        }
        Ok(())
    }

    /// Passes over what can't be made out, up to the next record.
    fn gap(&mut self, offset: u64, marker: Marker) -> Result<u64, EngineError> {
        tracing::error!(segment = %self.address, offset, "damaged");
        self.found.damaged_records += 1;
        let mut scan = Scan::new(Arc::clone(&self.store.disk), self.address, marker, offset)?;
        // A record may be made out there after all, if what was read before was not what lies there.
        let next = match scan.next()? {
            Some(Step::Gap { .. }) => scan.offset().min(self.window.end),
            Some(Step::Record { .. }) | None => self.window.end,
        };
        self.gaps.push(offset..next);
        self.dead_bytes += next - offset;
        Ok(next)
    }
}

impl Store {
    /// Notes as damaged what the index says lies in these places of a segment, and returns the names.
    pub(super) fn mark_damaged_in(
        &self,
        address: SegmentAddress,
        gaps: &[Range<u64>],
    ) -> Result<Vec<BlobName>, EngineError> {
        if gaps.is_empty() {
            return Ok(Vec::new());
        }
        let inside = |at: &Location| at.segment == address && gaps.iter().any(|gap| gap.contains(&at.offset));
        self.mark_damaged_where(inside)
    }

    /// Notes as damaged what the index says lies, in part, where nothing can be read any more, and returns the names. Goes
    /// through the whole index.
    pub(super) fn mark_damaged_where(&self, inside: impl Fn(&Location) -> bool) -> Result<Vec<BlobName>, EngineError> {
        let mut names = Vec::new();
        let mut after = None;
        loop {
            let page = self.index.entries(after, None, ENTRIES_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(names) };
            after = Some(*last);
            for (name, entry) in page {
                if let Some(blob) = entry.blob.filter(|blob| blob.layout.locations().any(&inside))
                    && self.mark_damaged(name, &blob.layout)?
                {
                    names.push(name);
                }
            }
        }
    }
}

/// What was read last of a segment.
struct Window<'a> {
    store: &'a Store,
    address: SegmentAddress,
    pace: &'a mut dyn FnMut(u64),
    start: u64,
    bytes: Vec<u8>,
    /// Nothing behind it counts.
    end: u64,
    read: u64,
}

impl Window<'_> {
    /// What lies from `offset` on, at least one byte unless it is the end.
    fn at(&mut self, offset: u64, wanted: usize) -> Result<&[u8], DiskError> {
        let held_end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + wanted as u64 > held_end {
            let length = self.end.saturating_sub(offset).min(READ_BYTES as u64);
            (self.pace)(length);
            self.start = offset;
            self.bytes.resize(length as usize, 0);
            let count = self.store.disk.read_at(self.address, offset, &mut self.bytes)?;
            self.bytes.truncate(count);
            self.read += count as u64;
        }
        Ok(self.bytes.get((offset - self.start) as usize..).unwrap_or_default())
    }

    fn record_header(&mut self, offset: u64, marker: Marker) -> Result<Option<RecordHeader>, DiskError> {
        let bytes = self.at(offset, RECORD_HEADER_BYTES)?;
        let header = bytes.first_chunk().and_then(|bytes| RecordHeader::decode(bytes).ok());
        Ok(header.filter(|header| header.marker == marker && header.synced <= offset))
    }

    /// The checksum of what lies there; `None` if it is not all there.
    fn crc(&mut self, mut offset: u64, length: u64) -> Result<Option<u32>, DiskError> {
        let (mut crc, mut left) = (0, length);
        while left > 0 {
            let bytes = self.at(offset, 1)?;
            let count = (bytes.len() as u64).min(left);
            if count == 0 {
                return Ok(None);
            }
            crc = crc32c::crc32c_append(crc, bytes.get(..count as usize).unwrap_or_default());
            (offset, left) = (offset + count, left - count);
        }
        Ok(Some(crc))
    }
}
