//! `fsck`: reads everything that lies on one disk of a node that does not run, and says what it found. It changes nothing.
//!
//! Two passes: every record of every segment is read, checked, and compared with what the index says of its name; then
//! every entry of the index is followed to its records. What it holds in memory is twelve bytes a record, and of places
//! and names the first thousand of each kind; all are counted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lazaret_protocol::BlobName;
use serde::Serialize;

use crate::disk::{Disk, FsDisk};
use crate::engine::{EngineError, Identity, Retention};
use crate::index::{BlobEntry, Change, HoldEntry, Index, IndexError, Layout, LocatorEntry, RocksIndex, SegmentState};
use crate::record::{
    Commit, FormatError, Location, RecordHeader, RecordKind, SEGMENT_HEADER_BYTES, SegmentAddress,
    decode_hold_position, decode_locator,
};
use crate::scan::read_segment_header;
use crate::walk::{Found, Walk};
use crate::writer::layout_of;

/// Most places or names that are listed of a kind.
const LISTED_MAX: usize = 1000;
/// Entries read from the index in one go.
const PAGE_ENTRIES: usize = 4096;

/// What was found on a disk.
#[derive(Debug, Default, Serialize)]
pub struct FsckReport {
    /// The directory.
    pub path: String,
    /// The node whose disk it is.
    pub node: String,
    /// Segments.
    pub segments: u64,
    /// Bytes in them.
    pub segment_bytes: u64,
    /// Sound records by kind.
    pub records: BTreeMap<&'static str, Count>,
    /// Sound records behind the last proof of being durable, which the next start writes again or drops.
    pub tail: Count,
    /// Sound records to which the index has no entry, though it should: a rebuild of the index brings them back.
    pub without_entry: Listed<Place>,
    /// Sound records without an entry because the copy was given up, which a rebuild of the index brings back as well.
    pub given_up: Count,
    /// Places that hold nothing readable.
    pub damaged: Listed<DamagedPlace>,
    /// Bytes that the disk itself could not read.
    pub unreadable_bytes: u64,
    /// What is wrong with the index, if anything.
    pub index_damage: Option<String>,
    /// Entries in the index.
    pub entries: u64,
    /// Blobs among them.
    pub blobs: u64,
    /// Bytes of these blobs.
    pub blob_bytes: u64,
    /// Blobs that are known to be damaged here and wait for repair.
    pub known_damaged: Listed<String>,
    /// Entries whose records are not where the index says, and not in a damaged place either.
    pub without_record: Listed<Place>,
    /// Segments that the index knows and that are gone.
    pub missing_segments: Listed<String>,
    /// Files that are none of a node's.
    pub foreign_files: Vec<String>,
}

/// A number of records and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many.
    pub records: u64,
    /// Bytes of headers and payloads.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.records += 1;
        self.bytes += bytes;
    }
}

/// Things found, of which the first are listed.
#[derive(Debug, Serialize)]
pub struct Listed<T> {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub first: Vec<T>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { count: 0, first: Vec::new() }
    }
}

impl<T> Listed<T> {
    fn add(&mut self, item: T) {
        self.count += 1;
        if self.first.len() < LISTED_MAX {
            self.first.push(item);
        }
    }
}

/// A name and where it should lie or lies.
#[derive(Debug, Serialize)]
pub struct Place {
    /// The blob's name.
    pub name: String,
    /// The segment.
    pub segment: String,
    /// Where in it.
    pub offset: u64,
}

/// A damaged place.
#[derive(Debug, Serialize)]
pub struct DamagedPlace {
    /// The segment.
    pub segment: String,
    /// Where it begins.
    pub offset: u64,
    /// Where it ends.
    pub end: u64,
    /// What is wrong.
    pub what: &'static str,
    /// The names whose data it held, as far as that is known.
    pub names: Vec<String>,
}

impl FsckReport {
    /// Whether nothing is damaged or missing.
    pub fn is_clean(&self) -> bool {
        self.index_damage.is_none()
            && self.damaged.count == 0
            && self.unreadable_bytes == 0
            && self.without_entry.count == 0
            && self.without_record.count == 0
            && self.missing_segments.count == 0
            && self.known_damaged.count == 0
    }
}

/// Checks the disk at `root`. Blocks for as long as it takes to read it.
pub fn fsck(root: &Path) -> Result<FsckReport, EngineError> {
    let disk = FsDisk::inspect(root)?;
    let Some(identity) = Identity::read(&disk)? else {
        let reason = format!("{} is no disk of a node: node.yml is missing", root.display());
        return Err(EngineError::Identity(reason));
    };
    let mut check = Check {
        report: FsckReport {
            path: root.display().to_string(),
            node: identity.node.to_string(),
            foreign_files: disk.foreign_files()?,
            ..FsckReport::default()
        },
        horizon: Retention::load(&disk)?.expired_before_bucket,
        identity,
        disk: Arc::new(disk),
        index: None,
        segments: BTreeMap::new(),
    };
    match RocksIndex::open_read_only(root.join("index")) {
        Ok(Some(index)) => check.index = Some(index),
        Ok(None) => {
            check.report.index_damage = Some("it is missing, or was found damaged, and will be rebuilt".to_owned())
        }
        Err(error) => check.index_failed(error)?,
    }
    check.run()?;
    Ok(check.report)
}

struct Check {
    disk: Arc<dyn Disk>,
    /// `None` once it was found missing or damaged.
    index: Option<RocksIndex>,
    identity: Identity,
    horizon: u32,
    segments: BTreeMap<SegmentAddress, Seen>,
    report: FsckReport,
}

/// What was found in a segment.
#[derive(Default)]
struct Seen {
    /// Where sound records begin, in order, and the first bytes of whom they are about.
    offsets: Vec<u64>,
    tags: Vec<u32>,
    /// Places that hold nothing sound, in order: from, to, and their number among those listed.
    damaged: Vec<(u64, u64, Option<usize>)>,
}

/// How the whole blobs of a segment compare with the index.
#[derive(Default)]
struct Compared {
    /// Bytes of records to which the index does not refer.
    dead_blob_bytes: u64,
    /// Of these, the ones that the index does not explain by something newer.
    unknown: Listed<Place>,
    unknown_bytes: u64,
}

impl Seen {
    fn has(&self, offset: u64, tag: u32) -> bool {
        self.offsets.binary_search(&offset).is_ok_and(|at| self.tags.get(at) == Some(&tag))
    }

    fn damage_at(&self, offset: u64) -> Option<Option<usize>> {
        let at = self.damaged.partition_point(|(from, _, _)| *from <= offset).checked_sub(1)?;
        self.damaged.get(at).filter(|(_, to, _)| offset < *to).map(|(_, _, listed)| *listed)
    }
}

impl Check {
    fn run(&mut self) -> Result<(), EngineError> {
        let mut known: BTreeMap<SegmentAddress, SegmentState> = BTreeMap::new();
        if let Some(states) = self.ask(|index| index.segments())? {
            known.extend(states);
        }
        let mut on_disk = self.disk.segments()?;
        on_disk.sort_unstable();
        for (address, state) in &known {
            let gone = on_disk.binary_search(address).is_err();
            if gone && state.synced > 0 && !state.removed && address.bucket >= self.horizon {
                self.report.missing_segments.add(address.to_string());
            }
        }
        for address in on_disk {
            let state = known.get(&address).copied().unwrap_or_default();
            // What has expired or was moved away is only waiting to be unlinked.
            if !state.removed && address.bucket >= self.horizon {
                self.segment(address, state)?;
            }
        }
        self.entries()
    }

    fn segment(&mut self, address: SegmentAddress, state: SegmentState) -> Result<(), EngineError> {
        let length = self.disk.length(address)?;
        self.report.segments += 1;
        self.report.segment_bytes += length;
        let header = match read_segment_header(&*self.disk, address)? {
            Ok(header) => header,
            Err(source @ FormatError::Version(_)) => {
                return Err(EngineError::Format { object: format!("segment {address}"), source });
            }
            Err(_) if state.synced == 0 && !state.sealed => return Ok(()),
            Err(_) => {
                let mut seen = Seen::default();
                self.damage(address, &mut seen, 0, length, "the segment's header", None);
                self.segments.insert(address, seen);
                return Ok(());
            }
        };
        if (header.cluster, header.node) != (self.identity.cluster, self.identity.node) {
            let object = format!("segment {address}");
            return Err(EngineError::Foreign {
                object,
                cluster: header.cluster,
                node: header.node,
                own_cluster: self.identity.cluster,
                own_node: self.identity.node,
            });
        }
        let mut walk = Walk::new(Arc::clone(&self.disk), address, header.marker, SEGMENT_HEADER_BYTES as u64)?;
        let mut seen = Seen::default();
        let mut compared = Compared::default();
        let mut proven = state.synced;
        let mut tail = Vec::new();
        while let Some(found) = walk.next()? {
            let (offset, end) = match &found {
                Found::Whole { offset, header, .. } | Found::Damaged { offset, header } => {
                    proven = proven.max(header.synced);
                    (*offset, offset + header.record_bytes())
                }
                Found::Gap { offset, end } => (*offset, *end),
            };
            if state.sealed && offset >= state.synced {
                break;
            }
            match found {
                Found::Whole { header, payload, .. } => {
                    seen.offsets.push(offset);
                    seen.tags.push(tag(&header));
                    self.report.records.entry(kind_name(header.kind)).or_default().add(header.record_bytes());
                    if end > state.synced {
                        self.report.tail.add(header.record_bytes());
                    } else {
                        self.record(address, offset, &header, payload, &mut compared)?;
                    }
                }
                Found::Damaged { header, .. } => tail.push((offset, end, "a record's payload", named(&header))),
                Found::Gap { .. } => tail.push((offset, end, "no readable record", None)),
            }
        }
        self.report.unreadable_bytes += walk.unreadable_bytes;
        self.settle(compared, state);
        // What is torn behind the last proof was never acknowledged.
        for (offset, end, what, name) in tail.into_iter().filter(|(offset, ..)| *offset < proven) {
            self.damage(address, &mut seen, offset, end, what, name);
        }
        self.segments.insert(address, seen);
        Ok(())
    }

    fn damage(
        &mut self,
        address: SegmentAddress,
        seen: &mut Seen,
        offset: u64,
        end: u64,
        what: &'static str,
        name: Option<BlobName>,
    ) {
        let listed = self.report.damaged.first.len();
        let names = name.map(|name| name.to_string()).into_iter().collect();
        self.report.damaged.add(DamagedPlace { segment: address.to_string(), offset, end, what, names });
        seen.damaged.push((offset, end, (listed < LISTED_MAX).then_some(listed)));
    }

    /// Compares a sound record with what the index says.
    fn record(
        &mut self,
        address: SegmentAddress,
        offset: u64,
        header: &RecordHeader,
        payload: &[u8],
        compared: &mut Compared,
    ) -> Result<(), EngineError> {
        let (name, bytes) = (header.subject.name(), header.record_bytes());
        let change = change_of(header, payload, Location { segment: address, offset });
        let Some(change) = change else { return Ok(()) };
        let Some(entry) = self.ask(|index| index.get(name))? else { return Ok(()) };
        let entry = entry.unwrap_or_default();
        let referred = matches!((&change, &entry.blob), (Change::Blob(here), Some(blob)) if here.layout == blob.layout);
        if header.kind == RecordKind::Blob && !referred {
            compared.dead_blob_bytes += bytes;
        }
        let mut merged = entry.clone();
        let kind = header.kind;
        merged.absorb(change);
        if merged.live(self.horizon).0 == entry.live(self.horizon).0 {
            return Ok(());
        }
        let place = Place { name: name.to_string(), segment: address.to_string(), offset };
        match kind {
            RecordKind::Blob => {
                compared.unknown_bytes += bytes;
                compared.unknown.add(place);
            }
            // Copies and locators are given up in the index alone; tombstones and holds never are.
            RecordKind::Tombstone | RecordKind::Hold => self.report.without_entry.add(place),
            RecordKind::Commit | RecordKind::Locator | RecordKind::Extent | RecordKind::Tree => {
                self.report.given_up.add(bytes);
            }
        }
        Ok(())
    }

    /// Tells blobs that were given up, which the index counts as dead, from those that it lost.
    fn settle(&mut self, compared: Compared, state: SegmentState) {
        let Compared { dead_blob_bytes, unknown, unknown_bytes } = compared;
        if dead_blob_bytes > state.dead_bytes {
            self.report.without_entry.count += unknown.count;
            let space = LISTED_MAX.saturating_sub(self.report.without_entry.first.len());
            self.report.without_entry.first.extend(unknown.first.into_iter().take(space));
        } else {
            self.report.given_up.records += unknown.count;
            self.report.given_up.bytes += unknown_bytes;
        }
    }

    fn entries(&mut self) -> Result<(), EngineError> {
        let mut after = None;
        loop {
            let Some(page) = self.ask(|index| index.entries(after, None, PAGE_ENTRIES))? else { return Ok(()) };
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(*last);
            for (name, entry) in page {
                self.report.entries += 1;
                if let Some(blob) = entry.live(self.horizon).0.blob {
                    self.blob(name, &blob);
                }
            }
        }
    }

    fn blob(&mut self, name: BlobName, blob: &BlobEntry) {
        self.report.blobs += 1;
        self.report.blob_bytes += blob.length;
        if blob.damaged {
            self.report.known_damaged.add(name.to_string());
        }
        let whole_tag = u32::from_le_bytes(name.0.first_chunk().copied().unwrap_or_default());
        for location in blob.layout.locations() {
            let seen = self.segments.get(&location.segment);
            let found = match &blob.layout {
                Layout::Whole(_) => seen.is_some_and(|seen| seen.has(location.offset, whole_tag)),
                Layout::Streamed { .. } => {
                    seen.is_some_and(|seen| seen.offsets.binary_search(&location.offset).is_ok())
                }
            };
            if found {
                continue;
            }
            match seen.and_then(|seen| seen.damage_at(location.offset)) {
                Some(listed) => {
                    let place = listed.and_then(|at| self.report.damaged.first.get_mut(at));
                    let text = name.to_string();
                    if let Some(place) = place.filter(|place| !place.names.contains(&text)) {
                        place.names.push(text);
                    }
                }
                None => self.report.without_record.add(Place {
                    name: name.to_string(),
                    segment: location.segment.to_string(),
                    offset: location.offset,
                }),
            }
        }
    }

    /// What the index answers; `None` if it is missing or damaged, which is noted.
    fn ask<T>(
        &mut self,
        question: impl FnOnce(&RocksIndex) -> Result<T, IndexError>,
    ) -> Result<Option<T>, EngineError> {
        match self.index.as_ref().map(question) {
            None => Ok(None),
            Some(Ok(answer)) => Ok(Some(answer)),
            Some(Err(error)) => self.index_failed(error).map(|()| None),
        }
    }

    fn index_failed(&mut self, error: IndexError) -> Result<(), EngineError> {
        if !error.damaged {
            return Err(error.into());
        }
        self.index = None;
        self.report.index_damage = Some(error.to_string());
        Ok(())
    }
}

fn tag(header: &RecordHeader) -> u32 {
    u32::from_le_bytes(header.subject.0.first_chunk().copied().unwrap_or_default())
}

/// The name that a record is about, if it is about one.
fn named(header: &RecordHeader) -> Option<BlobName> {
    (!matches!(header.kind, RecordKind::Extent | RecordKind::Tree)).then(|| header.subject.name())
}

fn kind_name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Blob => "blob",
        RecordKind::Extent => "extent",
        RecordKind::Tree => "tree",
        RecordKind::Commit => "commit",
        RecordKind::Locator => "locator",
        RecordKind::Tombstone => "tombstone",
        RecordKind::Hold => "hold",
    }
}

/// What a record changes about its name; `None` for a part of an upload, and for a record that says nothing sensible.
fn change_of(header: &RecordHeader, payload: &[u8], here: Location) -> Option<Change> {
    let plain = || {
        let mut plain = payload.to_vec();
        header.unsalt(0, &mut plain);
        plain
    };
    let put_time_ms = header.time_ms;
    Some(match header.kind {
        RecordKind::Extent | RecordKind::Tree => return None,
        RecordKind::Blob => {
            let length = u64::from(header.payload_bytes - header.tree_bytes);
            Change::Blob(BlobEntry { length, put_time_ms, layout: Layout::Whole(here), damaged: false })
        }
        RecordKind::Commit => {
            let commit = Commit::decode(&plain()).ok()?;
            Change::Blob(BlobEntry { length: commit.length, put_time_ms, layout: layout_of(&commit), damaged: false })
        }
        RecordKind::Locator => {
            Change::Locator(LocatorEntry { locator: decode_locator(&mut &plain()[..])?, put_time_ms })
        }
        RecordKind::Tombstone => Change::Tombstone(header.time_ms),
        RecordKind::Hold => {
            let (placed, from_bucket) = decode_hold_position(header.position);
            Change::Hold(HoldEntry { time_ms: header.time_ms, placed, from_bucket })
        }
    })
}
