//! Whether a record still stands for something: what compaction keeps and scrub counts as alive.

use std::collections::HashSet;
use std::sync::Arc;

use lazaret_protocol::{BlobName, UploadId};

use super::{EngineError, Store};
use crate::index::{BlobEntry, Change, HoldEntry, Layout, LocatorEntry};
use crate::record::{
    Commit, Location, RECORD_HEADER_BYTES, RecordHeader, RecordKind, decode_hold_position, decode_locator,
};
use crate::scan::read_record_buffer;

/// What a record stands for.
pub(crate) enum Standing {
    /// Nothing: it may go.
    Dead,
    /// An upload or a move that is not committed yet, or may be so any moment.
    UnderWay,
    /// A blob, of which it is all, a piece or the commit.
    Blob { name: BlobName, blob: Arc<BlobEntry> },
    /// A locator, a tombstone or a hold, as the entry has it.
    Small { name: BlobName, change: Change },
}

/// The blob of which pieces were seen last, since pieces of one blob follow each other and its entry may be long.
#[derive(Default)]
pub(crate) struct LastOwner(Option<(UploadId, Option<Owned>)>);

#[derive(Clone)]
struct Owned {
    name: BlobName,
    blob: Arc<BlobEntry>,
    locations: Arc<HashSet<Location>>,
}

impl Store {
    /// What the record at `at` stands for. A copy that is known to be damaged stands for nothing.
    pub(crate) fn standing(
        &self,
        at: Location,
        header: &RecordHeader,
        last: &mut LastOwner,
    ) -> Result<Standing, EngineError> {
        let name = header.subject.name();
        match header.kind {
            RecordKind::Extent | RecordKind::Tree => return self.standing_of_piece(at, header.subject.upload(), last),
            RecordKind::Commit => return self.standing_of_commit(at, header),
            RecordKind::Blob => {
                let blob = self.entry(name)?.and_then(|entry| entry.blob);
                let here = blob.filter(|blob| !blob.damaged && blob.layout == Layout::Whole(at));
                return Ok(here.map_or(Standing::Dead, |blob| Standing::Blob { name, blob: Arc::new(blob) }));
            }
            RecordKind::Locator | RecordKind::Tombstone | RecordKind::Hold => {}
        }
        let change = match header.kind {
            RecordKind::Tombstone => Change::Tombstone(header.time_ms),
            RecordKind::Hold => {
                let (placed, from_bucket) = decode_hold_position(header.position);
                Change::Hold(HoldEntry { time_ms: header.time_ms, placed, from_bucket })
            }
            _ => {
                let payload = self.payload(at, header)?;
                let Some(locator) = payload.and_then(|payload| decode_locator(&mut &payload[..])) else {
                    return Ok(Standing::Dead);
                };
                Change::Locator(LocatorEntry { locator, put_time_ms: header.time_ms })
            }
        };
        let stands = self.entry(name)?.is_some_and(|entry| entry.states(&change));
        Ok(if stands { Standing::Small { name, change } } else { Standing::Dead })
    }

    fn standing_of_piece(&self, at: Location, upload: UploadId, last: &mut LastOwner) -> Result<Standing, EngineError> {
        // Asked first: an upload that ends between the two questions has told the index by the second.
        let under_way = self.is_under_way(upload);
        let owned = match &last.0 {
            Some((held, owned)) if *held == upload => owned.clone(),
            _ => self.owned_by(upload)?,
        };
        last.0 = Some((upload, owned.clone()));
        Ok(match owned.filter(|owned| owned.locations.contains(&at)) {
            Some(Owned { name, blob, .. }) => Standing::Blob { name, blob },
            None if under_way => Standing::UnderWay,
            None => Standing::Dead,
        })
    }

    fn owned_by(&self, upload: UploadId) -> Result<Option<Owned>, EngineError> {
        let Some(owner) = self.index.upload(upload)? else { return Ok(None) };
        let Some(blob) = self.entry(owner.name)?.and_then(|entry| entry.blob).filter(|blob| !blob.damaged) else {
            return Ok(None);
        };
        let locations = Arc::new(blob.layout.locations().copied().collect());
        Ok(Some(Owned { name: owner.name, blob: Arc::new(blob), locations }))
    }

    fn standing_of_commit(&self, at: Location, header: &RecordHeader) -> Result<Standing, EngineError> {
        let name = header.subject.name();
        let Some(commit) = self.payload(at, header)?.and_then(|payload| Commit::decode(&payload).ok()) else {
            return Ok(Standing::Dead);
        };
        let blob = self.entry(name)?.and_then(|entry| entry.blob);
        let as_said = |blob: &BlobEntry| match &blob.layout {
            Layout::Streamed { extents, tree, .. } => {
                !blob.damaged
                    && blob.put_time_ms == header.time_ms
                    && (extents, tree) == (&commit.extents, &commit.tree)
            }
            Layout::Whole(_) => false,
        };
        Ok(match blob.filter(as_said) {
            Some(blob) => Standing::Blob { name, blob: Arc::new(blob) },
            None if self.is_under_way(commit.upload) => Standing::UnderWay,
            None => Standing::Dead,
        })
    }

    /// The payload of a record as it was before it was salted, if it is whole.
    fn payload(&self, at: Location, header: &RecordHeader) -> Result<Option<Vec<u8>>, EngineError> {
        let buffer = read_record_buffer(&*self.disk, at.segment, at.offset, header)?;
        Ok(buffer.map(|mut buffer| {
            let mut payload = buffer.split_off(RECORD_HEADER_BYTES);
            header.unsalt(0, &mut payload);
            payload
        }))
    }
}
