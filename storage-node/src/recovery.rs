//! Recovery: what is done with the segments when a node opens, before it takes any write.
//!
//! A segment that the index knows as sealed is left alone. Of any other, records up to the offset that is proven durable
//! (by the index, or by a record that was written after the sync) count where they lie. Whole records behind it are
//! written again to a new segment, synced and indexed: what lies there now may be only in the page cache, or behind a sync
//! that failed. Then the segment is sealed. An index that was lost is rebuilt by the same walk.
//!
//! Each segment is read once, from front to back. A record proves what lies before it, so what was read waits only until a
//! later record proves it; at the end of the segment, what still waits is the tail. Extents and trees are remembered until
//! their commit comes, so that they are not read again for it.
//!
//! Damage before the proven offset is counted and left in place. A torn tail is not damage: nothing in it was
//! acknowledged. Every step may be interrupted and repeated. A blob whose header is sound and whose payload is not is known
//! as damaged, unless there is another copy.
//!
//! What has expired, or was to be unlinked when the node went down, is unlinked and not looked at.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use lazaret_protocol::limits::MIB;
use lazaret_protocol::{BlobName, ClusterId, NodeId, PlacementKey, UploadId};

use crate::disk::Disk;
use crate::engine::{Changed, Changes, Counters, EngineError, Ledger, Progress};
use crate::index::{BlobEntry, Change, Dropped, HoldEntry, Index, Layout, LocatorEntry, SegmentState, UploadOwner};
use crate::record::{
    Commit, HELD_BUCKET, Location, Marker, PreparedRecord, RECORD_HEADER_BYTES, RecordHeader, RecordKind,
    SegmentAddress, Subject, bucket_of, decode_hold_position, decode_locator, record_buffer,
};
use crate::scan::{Scan, Step, read_record_buffer, read_record_header, read_segment_header};
use crate::segments::{SegmentSource, Segments};
use crate::walk::{Found, Walk};
use crate::writer::layout_of;

/// Most locations that recovery holds in entries before it makes them durable: a streamed blob has one for each extent. With eight times
/// as many a rebuild of ten million blobs took twice the memory, most of it holes between long lists and what the index keeps.
const BATCH_LOCATIONS_MAX: usize = 2 * 1024;
/// Most bytes that recovery holds before it writes them.
const BATCH_BYTES_MAX: u64 = 32 * MIB;
/// Most that waits for its proof, in records and locations. A group of the writer is a thousand records, and the next one
/// proves it; where more wait, the proof is looked for ahead.
const WAITING_MAX: usize = 64 * 1024;
/// Most extents and trees remembered for their commit. Where more come, they are read again for it.
const PIECES_MAX: usize = 256 * 1024;
/// With more than this to read, the index is told without its log: should the process die, less is lost than is saved.
const BULK_BYTES_MIN: u64 = 256 * MIB;

/// What recovery leaves for the writer.
pub(crate) struct Recovered {
    pub(crate) segments: Segments,
    pub(crate) ledger: Ledger,
    /// Segments that held something when the node was here last, and are no longer there.
    pub(crate) missing: HashSet<SegmentAddress>,
}

pub(crate) struct Recovery {
    disk: Arc<dyn Disk>,
    index: Arc<dyn Index>,
    cluster: ClusterId,
    node: NodeId,
    counters: Arc<Counters>,
    segments: Segments,
    /// How far each segment seen so far may be trusted where it lies.
    trusted: HashMap<SegmentAddress, u64>,
    /// Extents and trees seen whole, of which no commit came yet.
    pieces: HashMap<Location, Piece>,
    entries: HashMap<BlobName, Changed>,
    dropped: Dropped,
    uploads: Vec<(UploadId, UploadOwner)>,
    locations: usize,
    staged_bytes: u64,
    ledger: Ledger,
}

/// A part of a streamed blob, seen whole.
#[derive(Clone, Copy)]
struct Piece {
    kind: RecordKind,
    subject: Subject,
    end: u64,
}

/// A place of the segment being walked that is not yet proven.
struct Waiting {
    offset: u64,
    end: u64,
    what: Read,
}

/// What was read.
enum Read {
    /// Nothing, or nothing whole; what can still be told of it.
    Damage(Option<(BlobName, BlobEntry)>),
    /// A record that makes, kills or holds something.
    Change(RecordHeader, Change),
    /// A record that makes a blob of pieces.
    Commit(RecordHeader, Commit),
}

impl Read {
    /// How much it counts among what waits.
    fn weight(&self) -> usize {
        match self {
            Self::Commit(_, commit) => 1 + commit.extents.len() + commit.tree.len(),
            Self::Damage(_) | Self::Change(..) => 1,
        }
    }
}

/// Brings segments and index into agreement.
pub(crate) fn recover(
    disk: &Arc<dyn Disk>,
    index: &Arc<dyn Index>,
    mut source: SegmentSource,
    horizon: u32,
) -> Result<Recovered, EngineError> {
    let mut ledger = Ledger::load(&**index, horizon)?;
    let mut on_disk = disk.segments()?;
    on_disk.sort_unstable_by_key(|address| address.id);
    let newest = ledger.segments().keys().chain(&on_disk).map(|address| address.id).max();
    source.next_id = source.next_id.max(newest.map_or(1, |id| id.saturating_add(1)));
    let (cluster, node, counters) = (source.cluster, source.node, Arc::clone(&source.counters));
    remove_what_is_gone(&**disk, &**index, &counters, &mut ledger, &mut on_disk)?;
    let known: HashMap<SegmentAddress, SegmentState> =
        ledger.segments().iter().filter(|(_, state)| !state.removed).map(|(&at, &state)| (at, state)).collect();
    let mut unread_bytes: u64 = 0;
    for address in &on_disk {
        let state = known.get(address).copied().unwrap_or_default();
        if !state.sealed {
            unread_bytes = unread_bytes.saturating_add(disk.length(*address)?.saturating_sub(state.synced));
        }
    }
    let bulk = unread_bytes >= BULK_BYTES_MIN;
    let count = on_disk.len();
    if bulk {
        tracing::warn!(segments = count, bytes = unread_bytes, "rebuilding the index from the segments");
    }
    ledger.bulk = bulk;
    let mut recovery = Recovery {
        disk: Arc::clone(disk),
        index: Arc::clone(index),
        cluster,
        node,
        counters,
        segments: Segments::new(source),
        trusted: HashMap::new(),
        pieces: HashMap::new(),
        entries: HashMap::new(),
        dropped: Dropped::new(),
        uploads: Vec::new(),
        locations: 0,
        staged_bytes: 0,
        ledger,
    };
    let is_missing = |address: &SegmentAddress| on_disk.binary_search_by_key(&address.id, |at| at.id).is_err();
    let held = known.iter().filter(|(_, state)| state.synced > 0).map(|(&address, _)| address);
    let missing: HashSet<SegmentAddress> = held.filter(is_missing).collect();
    for address in &missing {
        tracing::error!(segment = %address, "a segment is missing: its blobs are lost here");
        recovery.counters.corrupt_reads.add(1);
    }
    // In the order of their ids, which is the order in which they were begun: what a commit needs lies before it.
    for (at, address) in on_disk.into_iter().enumerate() {
        if bulk {
            tracing::info!(segment = %address, number = at + 1, of = count, "reading a segment");
        }
        recovery.counters.segments.add(1);
        recovery.counters.segment_bytes.add(disk.length(address)?);
        recovery.segment(address, known.get(&address).copied().unwrap_or_default())?;
    }
    recovery.flush(Vec::new())?;
    if bulk {
        // From here on the index's log is used again, and it must not hold what stands on something forgotten.
        index.flush()?;
        recovery.ledger.bulk = false;
    }
    Ok(Recovered { segments: recovery.segments, ledger: recovery.ledger, missing })
}

/// Unlinks segments that have expired or were to be removed, and forgets them.
fn remove_what_is_gone(
    disk: &dyn Disk,
    index: &dyn Index,
    counters: &Counters,
    ledger: &mut Ledger,
    on_disk: &mut Vec<SegmentAddress>,
) -> Result<(), EngineError> {
    let horizon = ledger.horizon;
    let removed = ledger.removed();
    let gone = |address: &SegmentAddress| address.bucket < horizon || removed.contains(address);
    let there: Vec<SegmentAddress> = on_disk.iter().copied().filter(gone).collect();
    if !there.is_empty() {
        disk.remove_segments(&there)?;
        on_disk.retain(|address| !gone(address));
    }
    ledger.expire(index, counters, horizon)?;
    ledger.forget(index, counters, &removed)?;
    Ok(())
}

impl Recovery {
    fn segment(&mut self, address: SegmentAddress, state: SegmentState) -> Result<(), EngineError> {
        self.trusted.insert(address, state.synced);
        self.ledger.know(address);
        if state.sealed {
            return Ok(());
        }
        let header = match read_segment_header(&*self.disk, address)? {
            Ok(header) => header,
            Err(source @ crate::record::FormatError::Version(_)) => {
                return Err(EngineError::Format { object: format!("segment {address}"), source });
            }
            Err(error) => {
                if state.synced > 0 {
                    tracing::error!(segment = %address, %error, "damaged");
                    self.counters.corrupt_reads.add(1);
                }
                return self.seal(address, state.synced);
            }
        };
        if (header.cluster, header.node) != (self.cluster, self.node) {
            let object = format!("segment {address}");
            let (cluster, node) = (header.cluster, header.node);
            return Err(EngineError::Foreign { object, cluster, node, own_cluster: self.cluster, own_node: self.node });
        }
        self.walk(address, header.marker, state.synced)?;
        let trusted = self.proven(address);
        self.seal(address, trusted)
    }

    /// How far a segment is known to be durable.
    fn proven(&self, address: SegmentAddress) -> u64 {
        self.trusted.get(&address).copied().unwrap_or_default()
    }

    fn walk(&mut self, address: SegmentAddress, marker: Marker, synced: u64) -> Result<(), EngineError> {
        let mut walk = Walk::new(Arc::clone(&self.disk), address, marker, synced)?;
        let mut waiting = VecDeque::new();
        let (mut weight, mut all_proven, mut end) = (0, false, synced);
        while let Some(found) = walk.next()? {
            let (read, proves) = self.read(address, &found);
            let offset;
            (offset, end) = match found {
                Found::Whole { offset, header, .. } | Found::Damaged { offset, header } => {
                    (offset, offset + header.record_bytes())
                }
                Found::Gap { offset, end } => (offset, end),
            };
            if proves > self.proven(address) {
                self.trusted.insert(address, proves);
            }
            if let Some(what) = read {
                weight += what.weight();
                waiting.push_back(Waiting { offset, end, what });
            }
            if weight > WAITING_MAX && !all_proven {
                self.look_ahead(address, marker, end)?;
                all_proven = true;
            }
            weight -= self.settle(address, &mut waiting)?;
            if all_proven {
                self.move_tail(address, &mut waiting)?;
                weight = 0;
            }
        }
        self.counters.recovery_bytes.add(end.saturating_sub(synced));
        // What waits still is not proven by anything.
        self.move_tail(address, &mut waiting)
    }

    /// What was found, if it means anything by itself, and how much of the segment it proves durable.
    fn read(&mut self, address: SegmentAddress, found: &Found<'_>) -> (Option<Read>, u64) {
        let (offset, header, payload) = match found {
            Found::Whole { offset, header, payload } => (*offset, header, *payload),
            // Extents and trees count only through their commit, which is what misses them.
            Found::Damaged { header, .. } if matches!(header.kind, RecordKind::Extent | RecordKind::Tree) => {
                return (None, header.synced);
            }
            Found::Damaged { offset, header } => {
                let here = Location { segment: address, offset: *offset };
                let blob = (header.kind == RecordKind::Blob)
                    .then(|| (header.subject.name(), BlobEntry { damaged: true, ..whole(header, here) }));
                return (Some(Read::Damage(blob)), header.synced);
            }
            Found::Gap { .. } => return (Some(Read::Damage(None)), 0),
        };
        let plain = || {
            let mut plain = payload.to_vec();
            header.unsalt(0, &mut plain);
            plain
        };
        let here = Location { segment: address, offset };
        let read = match header.kind {
            RecordKind::Extent | RecordKind::Tree => {
                if self.pieces.len() >= PIECES_MAX {
                    self.pieces.clear();
                }
                let end = offset + header.record_bytes();
                self.pieces.insert(here, Piece { kind: header.kind, subject: header.subject, end });
                return (None, header.synced);
            }
            RecordKind::Commit => {
                Commit::decode(&plain()).map_or(Read::Damage(None), |commit| Read::Commit(header.clone(), commit))
            }
            RecordKind::Locator => match decode_locator(&mut &plain()[..]) {
                Some(locator) => {
                    let change = Change::Locator(LocatorEntry { locator, put_time_ms: header.time_ms });
                    Read::Change(header.clone(), change)
                }
                None => Read::Damage(None),
            },
            RecordKind::Tombstone => Read::Change(header.clone(), Change::Tombstone(header.time_ms)),
            RecordKind::Hold => {
                let (placed, from_bucket) = decode_hold_position(header.position);
                let change = Change::Hold(HoldEntry { time_ms: header.time_ms, placed, from_bucket });
                Read::Change(header.clone(), change)
            }
            RecordKind::Blob => Read::Change(header.clone(), Change::Blob(whole(header, here))),
        };
        (Some(read), header.synced)
    }

    /// Adopts what is proven by now of what waits, where it lies. Returns how much less waits.
    fn settle(&mut self, address: SegmentAddress, waiting: &mut VecDeque<Waiting>) -> Result<usize, EngineError> {
        let proven = self.proven(address);
        let mut settled = 0;
        while let Some(Waiting { offset, end, what }) = waiting.pop_front_if(|first| match first.what {
            Read::Damage(_) => first.offset < proven,
            Read::Change(..) | Read::Commit(..) => first.end <= proven,
        }) {
            settled += what.weight();
            let whole = match what {
                Read::Damage(blob) => {
                    if let Some((name, blob)) = blob.filter(|_| end <= proven) {
                        self.dropped.extend(blob.bytes());
                        self.adopt(name, Change::Blob(blob))?;
                    }
                    false
                }
                Read::Change(header, change) => self.adopt(header.subject.name(), change).map(|()| true)?,
                Read::Commit(header, commit) => {
                    self.commit(&header, Location { segment: address, offset }, true, commit)?
                }
            };
            if !whole {
                tracing::error!(segment = %address, offset, "damaged");
                self.counters.corrupt_reads.add(1);
            }
        }
        Ok(settled)
    }

    /// Writes again what lies behind the last proof, and adopts it from there.
    fn move_tail(&mut self, address: SegmentAddress, waiting: &mut VecDeque<Waiting>) -> Result<(), EngineError> {
        for Waiting { offset, what, .. } in waiting.drain(..) {
            let here = Location { segment: address, offset };
            match what {
                Read::Damage(_) => {}
                Read::Change(header, change) => self.move_change(here, &header, change)?,
                Read::Commit(header, commit) => {
                    self.commit(&header, here, false, commit)?;
                }
            }
        }
        Ok(())
    }

    /// Looks for the segment's last proof, from `from` on, by its headers alone.
    fn look_ahead(&mut self, address: SegmentAddress, marker: Marker, from: u64) -> Result<(), EngineError> {
        let mut scan = Scan::new(Arc::clone(&self.disk), address, marker, from)?;
        let mut proven = self.proven(address);
        while let Some(step) = scan.next()? {
            if let Step::Record { header, .. } = step {
                proven = proven.max(header.synced);
            }
        }
        self.trusted.insert(address, proven);
        Ok(())
    }

    /// Writes a record of a tail again and adopts it from there.
    fn move_change(&mut self, here: Location, header: &RecordHeader, change: Change) -> Result<(), EngineError> {
        // It was whole a moment ago; if it is not now, it was never durable.
        let Some(buffer) = read_record_buffer(&*self.disk, here.segment, here.offset, header)? else { return Ok(()) };
        let place = self.rewrite(here.segment, header, buffer)?;
        let change = match change {
            Change::Blob(blob) => Change::Blob(BlobEntry { layout: Layout::Whole(place), ..blob }),
            other => other,
        };
        self.adopt(header.subject.name(), change)
    }

    /// Adopts a commit if all of its pieces are there; returns whether it is undamaged.
    fn commit(
        &mut self,
        header: &RecordHeader,
        here: Location,
        in_place: bool,
        commit: Commit,
    ) -> Result<bool, EngineError> {
        let subject = Subject::from(commit.upload);
        let mut settled = commit.clone();
        if settled.placement.is_none() {
            settled.placement = self.placement(&commit)?;
        }
        let extents = settled.extents.iter_mut().map(|location| (RecordKind::Extent, location));
        for (kind, location) in extents.chain(settled.tree.iter_mut().map(|location| (RecordKind::Tree, location))) {
            match self.piece(kind, subject, *location)? {
                Some(place) => *location = place,
                // A piece behind the proven offset was not acknowledged, and so neither was the commit: no damage.
                None => {
                    let at = *location;
                    let lost = self.trusted.get(&at.segment).is_none_or(|&trusted| at.offset >= trusted);
                    if !lost && in_place && settled.placement.is_some() {
                        self.adopt_commit(header, here, &Commit { placement: settled.placement, ..commit }, true)?;
                    }
                    return Ok(lost);
                }
            }
        }
        if !in_place || (&settled.extents, &settled.tree) != (&commit.extents, &commit.tree) {
            let mut buffer = record_buffer(0);
            settled.encode(&mut buffer);
            let record =
                PreparedRecord::new(RecordKind::Commit, header.subject, 0, header.time_ms, 0, header.salt, buffer);
            self.stage(here.segment.bucket, record)?;
        }
        self.adopt_commit(header, here, &settled, false)?;
        Ok(true)
    }

    fn adopt_commit(
        &mut self,
        header: &RecordHeader,
        here: Location,
        commit: &Commit,
        damaged: bool,
    ) -> Result<(), EngineError> {
        let (name, put_time_ms) = (header.subject.name(), header.time_ms);
        let held = here.segment.bucket == HELD_BUCKET;
        let owner = UploadOwner { name, bucket: if held { HELD_BUCKET } else { bucket_of(put_time_ms) } };
        self.uploads.push((commit.upload, owner));
        let blob = BlobEntry { length: commit.length, put_time_ms, layout: layout_of(commit), damaged };
        if damaged {
            self.dropped.extend(blob.bytes());
        }
        self.adopt(name, Change::Blob(blob))
    }

    /// The placement key that a commit of version 1 does not tell: the hash of the blob's beginning.
    fn placement(&self, commit: &Commit) -> Result<Option<PlacementKey>, EngineError> {
        let Some(&at) = commit.extents.first() else { return Ok(None) };
        let Some(header) = read_record_header(&*self.disk, at.segment, at.offset)? else { return Ok(None) };
        let Some(mut buffer) = read_record_buffer(&*self.disk, at.segment, at.offset, &header)? else {
            return Ok(None);
        };
        let content = buffer.get_mut(RECORD_HEADER_BYTES..).unwrap_or_default();
        header.unsalt(0, content);
        Ok(Some(PlacementKey(BlobName::of(content).0)))
    }

    /// Where a piece of a commit lies from now on; `None` if it is not there or not whole.
    fn piece(&mut self, kind: RecordKind, subject: Subject, at: Location) -> Result<Option<Location>, EngineError> {
        let Some(&trusted) = self.trusted.get(&at.segment) else { return Ok(None) };
        if let Some(piece) = self.pieces.remove(&at)
            && (piece.kind, piece.subject) == (kind, subject)
            && piece.end <= trusted
        {
            return Ok(Some(at));
        }
        let Some(header) = read_record_header(&*self.disk, at.segment, at.offset)? else { return Ok(None) };
        if header.kind != kind || header.subject != subject {
            return Ok(None);
        }
        let Some(buffer) = read_record_buffer(&*self.disk, at.segment, at.offset, &header)? else { return Ok(None) };
        if at.offset + header.record_bytes() <= trusted {
            return Ok(Some(at));
        }
        self.rewrite(at.segment, &header, buffer).map(Some)
    }

    fn rewrite(
        &mut self,
        from: SegmentAddress,
        header: &RecordHeader,
        buffer: Vec<u8>,
    ) -> Result<Location, EngineError> {
        self.stage(from.bucket, PreparedRecord::copied(header.clone(), buffer))
    }

    fn stage(&mut self, bucket: u32, record: PreparedRecord) -> Result<Location, EngineError> {
        self.staged_bytes += record.record_bytes();
        let location = self.segments.stage(bucket, record)?;
        if self.staged_bytes >= BATCH_BYTES_MAX {
            self.staged_bytes = 0;
            self.segments.write()?;
        }
        Ok(location)
    }

    fn adopt(&mut self, name: BlobName, change: Change) -> Result<(), EngineError> {
        let changed = match self.entries.entry(name) {
            std::collections::hash_map::Entry::Occupied(held) => held.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                let before = self.index.get(name)?.unwrap_or_default();
                free.insert(Changed { after: before.clone(), before })
            }
        };
        self.locations += match &change {
            Change::Blob(BlobEntry { layout: Layout::Streamed { extents, tree, .. }, .. }) => {
                extents.len() + tree.len()
            }
            _ => 1,
        };
        self.dropped.extend(changed.after.absorb(change));
        self.counters.recovered_records.add(1);
        if self.locations >= BATCH_LOCATIONS_MAX {
            self.flush(Vec::new())?;
        }
        Ok(())
    }

    /// Notes that nothing behind `synced` counts. Only after everything behind it that does was written again.
    fn seal(&mut self, address: SegmentAddress, synced: u64) -> Result<(), EngineError> {
        self.flush(vec![Progress { address, synced, sealed: true }])
    }

    fn flush(&mut self, sealed: Vec<Progress>) -> Result<(), EngineError> {
        (self.staged_bytes, self.locations) = (0, 0);
        self.segments.write()?;
        let mut progress = self.segments.sync_all()?;
        progress.extend(sealed);
        let changes = Changes {
            entries: self.entries.drain().collect(),
            progress,
            dropped: std::mem::take(&mut self.dropped),
            uploads: std::mem::take(&mut self.uploads),
            ..Changes::default()
        };
        Ok(self.ledger.apply(&*self.index, &self.counters, changes)?)
    }
}

fn whole(header: &RecordHeader, here: Location) -> BlobEntry {
    let length = u64::from(header.payload_bytes - header.tree_bytes);
    BlobEntry { length, put_time_ms: header.time_ms, layout: Layout::Whole(here), damaged: false }
}
