//! What the index holds of one name, how changes to it merge, and how it lies in a database.
//!
//! Merging does not depend on the order of changes: of two copies of a blob the newest put time decides, then a sound one
//! before a damaged one, then the place (moved copies lie in newer segments); a tombstone kills whatever is not newer than
//! it, held or not; of holds the latest decides. Recovery relies on that. The put time comes first because tombstones go by
//! it: were a sound copy kept before a newer damaged one, what a later tombstone leaves would depend on the order.
//!
//! What has expired may still be in an entry. [`Entry::live`] takes it out, and nobody outside the engine sees an entry
//! without.

use std::cmp::{Ordering, Reverse};
use std::collections::HashSet;

use lazaret_protocol::limits::{BLOB_BYTES_MAX, EXTENT_BYTES_MAX};
use lazaret_protocol::message::{GetHeader, Hold, Locator};
use lazaret_protocol::tree::tree_bytes;
use lazaret_protocol::{BlobName, PlacementKey};

use crate::record::{
    HELD_BUCKET, Location, SegmentAddress, TREE_PIECE_BYTES, bucket_of, decode_location, decode_locations,
    decode_locator, encode_location, encode_locator, extent_count, piece_record_bytes, take, tree_piece_count,
    whole_record_bytes,
};

/// The version of an encoded entry. An index of another version is thrown away and rebuilt from the segments.
pub const ENTRY_VERSION: u8 = 2;

const HAS_WHOLE: u8 = 1;
const HAS_STREAMED: u8 = 2;
const HAS_LOCATOR: u8 = 4;
const HAS_TOMBSTONE: u8 = 8;
const HAS_HOLD: u8 = 16;
const HOLD_PLACED: u8 = 32;
const DAMAGED: u8 = 64;
const ALL_FLAGS: u8 = HAS_WHOLE | HAS_STREAMED | HAS_LOCATOR | HAS_TOMBSTONE | HAS_HOLD | HOLD_PLACED | DAMAGED;

/// Where a blob's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One record.
    Whole(Location),
    /// Extents and tree records, each in order.
    Streamed {
        /// Where the blob is placed: the hash of its beginning.
        placement: PlacementKey,
        /// The extents.
        extents: Vec<Location>,
        /// The tree records.
        tree: Vec<Location>,
    },
}

impl Layout {
    /// The places of all its records.
    pub fn locations(&self) -> impl Iterator<Item = &Location> {
        let (extents, tree) = match self {
            Self::Whole(location) => (std::slice::from_ref(location), [].as_slice()),
            Self::Streamed { extents, tree, .. } => (extents.as_slice(), tree.as_slice()),
        };
        extents.iter().chain(tree)
    }

    /// Whether all of it lies where nothing expires.
    pub fn never_expires(&self) -> bool {
        self.locations().all(|location| location.segment.bucket == HELD_BUCKET)
    }

    /// The places of its records and their bytes, for a blob of `length` bytes. Its commit record is not among them.
    fn parts(&self, length: u64) -> Vec<(Location, u64)> {
        match self {
            Self::Whole(location) => vec![(*location, whole_record_bytes(length))],
            Self::Streamed { extents, tree, .. } => {
                let pieces = |locations: &[Location], total: u64, each: usize| -> Vec<(Location, u64)> {
                    let bytes = |at| piece_record_bytes(at, total, each);
                    locations.iter().enumerate().map(|(at, location)| (*location, bytes(at))).collect()
                };
                let mut parts = pieces(extents, length, EXTENT_BYTES_MAX);
                parts.extend(pieces(tree, tree_bytes(length), TREE_PIECE_BYTES));
                parts
            }
        }
    }
}

/// A blob held here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobEntry {
    /// Its length in bytes.
    pub length: u64,
    /// Its newest put time in Unix milliseconds.
    pub put_time_ms: u64,
    /// Where it lies.
    pub layout: Layout,
    /// The copy here is known to be damaged: it is not served, and waits to be replaced.
    pub damaged: bool,
}

/// Bytes of records to which nothing refers any more, and where they lie.
pub type Dropped = Vec<(SegmentAddress, u64)>;

impl BlobEntry {
    /// What a reader is told first.
    pub fn header(&self) -> GetHeader {
        GetHeader { length: self.length, put_time_ms: self.put_time_ms }
    }

    /// The placement key, if it is not the name.
    pub fn placement(&self) -> Option<PlacementKey> {
        match &self.layout {
            Layout::Whole(_) => None,
            Layout::Streamed { placement, .. } => Some(*placement),
        }
    }

    /// Whether a put of this time has nothing to add: it is no newer, and the copy is not known to be damaged. A later put of
    /// the same hour does add something: a tombstone that this node has not seen yet may lie between the two.
    pub fn covers(&self, put_time_ms: u64) -> bool {
        !self.damaged && put_time_ms <= self.put_time_ms
    }

    /// The bytes of all its records.
    pub fn bytes(&self) -> Dropped {
        self.layout.parts(self.length).into_iter().map(|(at, bytes)| (at.segment, bytes)).collect()
    }

    /// What only `self` refers to, if `kept` stays and `self` goes. A damaged copy's bytes are dead already.
    pub fn dropped(&self, kept: Option<&BlobEntry>) -> Dropped {
        if self.damaged || kept.is_some_and(|kept| kept.layout == self.layout) {
            return Dropped::new();
        }
        let kept: HashSet<&Location> = kept.into_iter().flat_map(|kept| kept.layout.locations()).collect();
        let parts = self.layout.parts(self.length).into_iter();
        parts.filter(|(at, _)| !kept.contains(at)).map(|(at, bytes)| (at.segment, bytes)).collect()
    }

    /// Which of two copies decides: the greater.
    fn order(&self, other: &Self) -> Ordering {
        let rank = |blob: &Self| (blob.put_time_ms, !blob.damaged, blob.layout.never_expires());
        let place = |location: &Location| (location.segment.id, location.offset);
        rank(self)
            .cmp(&rank(other))
            .then_with(|| self.layout.locations().map(place).cmp(other.layout.locations().map(place)))
    }
}

/// A locator held here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocatorEntry {
    /// What it says.
    pub locator: Locator,
    /// The put time of the blob it is about.
    pub put_time_ms: u64,
}

/// A legal hold, standing or released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldEntry {
    /// When it was placed or released, in Unix milliseconds.
    pub time_ms: u64,
    /// Placed, or released.
    pub placed: bool,
    /// The first bucket whose puts it protects: the first that had not expired when it was placed, on whichever node was told
    /// first. What had expired before stays expired.
    pub from_bucket: u32,
}

impl HoldEntry {
    /// The hold as nodes speak of it.
    pub fn told(self, name: BlobName) -> Hold {
        Hold { name, time_ms: self.time_ms, placed: self.placed, from_bucket: self.placed.then_some(self.from_bucket) }
    }

    /// Whether `hold` says nothing that this one does not: it is earlier, or the same and protects no more.
    pub fn covers(&self, hold: &Hold) -> bool {
        let (own, other) = ((self.time_ms, self.placed), (hold.time_ms, hold.placed));
        own > other || own == other && hold.from_bucket.is_none_or(|from| self.from_bucket <= from)
    }

    /// Of two, the later one counts, and of the same one that which protects more.
    fn order(&self) -> (u64, bool, Reverse<u32>) {
        (self.time_ms, self.placed, Reverse(self.from_bucket))
    }
}

/// All that is known of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The blob, if it is held here.
    pub blob: Option<BlobEntry>,
    /// The locator, if there is one here.
    pub locator: Option<LocatorEntry>,
    /// The newest tombstone's time.
    pub killed_until_ms: Option<u64>,
    /// The latest hold.
    pub hold: Option<HoldEntry>,
}

/// What a record changes about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A blob was put.
    Blob(BlobEntry),
    /// A locator was put.
    Locator(LocatorEntry),
    /// Every put up to this time was killed.
    Tombstone(u64),
    /// A hold was placed or released.
    Hold(HoldEntry),
}

impl Entry {
    /// Merges a change. Returns what of a blob nothing refers to any more because of it, be it the change's own.
    pub fn absorb(&mut self, change: Change) -> Dropped {
        match change {
            Change::Blob(blob) => {
                if self.kills(blob.put_time_ms) {
                    return blob.dropped(None);
                }
                match self.blob.take() {
                    Some(held) if held.order(&blob) == Ordering::Greater => {
                        let dropped = blob.dropped(Some(&held));
                        self.blob = Some(held);
                        dropped
                    }
                    held => self.replace_blob(held, Some(blob)),
                }
            }
            Change::Locator(locator) => {
                let order = |held: &LocatorEntry| (held.put_time_ms, held.locator.placement.0, held.locator.length);
                let newest = self.locator.is_none_or(|held| order(&held) <= order(&locator));
                if newest && !self.kills(locator.put_time_ms) {
                    self.locator = Some(locator);
                }
                Dropped::new()
            }
            Change::Tombstone(time_ms) => {
                self.killed_until_ms = self.killed_until_ms.max(Some(time_ms));
                self.locator.take_if(|locator| locator.put_time_ms <= time_ms);
                let killed = self.blob.take_if(|blob| blob.put_time_ms <= time_ms);
                killed.map(|blob| blob.dropped(None)).unwrap_or_default()
            }
            Change::Hold(hold) => {
                if self.hold.is_none_or(|held| held.order() <= hold.order()) {
                    self.hold = Some(hold);
                }
                Dropped::new()
            }
        }
    }

    /// Whether a change is what the entry says.
    pub fn states(&self, change: &Change) -> bool {
        match change {
            Change::Blob(blob) => self.blob.as_ref() == Some(blob),
            Change::Locator(locator) => self.locator == Some(*locator),
            Change::Tombstone(time_ms) => self.killed_until_ms == Some(*time_ms),
            Change::Hold(hold) => self.hold == Some(*hold),
        }
    }

    fn replace_blob(&mut self, old: Option<BlobEntry>, new: Option<BlobEntry>) -> Dropped {
        self.blob = new;
        old.map(|old| old.dropped(self.blob.as_ref())).unwrap_or_default()
    }

    /// Whether a put of this time is killed by a tombstone.
    pub fn kills(&self, put_time_ms: u64) -> bool {
        self.killed_until_ms.is_some_and(|until| put_time_ms <= until)
    }

    /// Whether a standing hold protects what was put, or killed, at this time.
    pub fn holds(&self, time_ms: u64) -> bool {
        self.hold.is_some_and(|hold| hold.placed && bucket_of(time_ms) >= hold.from_bucket)
    }

    /// The bucket with which what was put, or killed, at this time expires.
    pub fn expiry_bucket(&self, time_ms: u64) -> u32 {
        if self.holds(time_ms) { HELD_BUCKET } else { bucket_of(time_ms) }
    }

    /// The entry without what has expired, where buckets before `horizon` have, and what of the blob nothing refers to any
    /// more because of that.
    pub fn live(mut self, horizon: u32) -> (Self, Dropped) {
        let gone = |entry: &Self, time_ms: u64| entry.expiry_bucket(time_ms) < horizon;
        if self.locator.is_some_and(|locator| gone(&self, locator.put_time_ms)) {
            self.locator = None;
        }
        if self.killed_until_ms.is_some_and(|time_ms| gone(&self, time_ms)) {
            self.killed_until_ms = None;
        }
        if self.blob.as_ref().is_some_and(|blob| gone(&self, blob.put_time_ms)) {
            let dropped = self.blob.take().map(|blob| blob.dropped(None)).unwrap_or_default();
            return (self, dropped);
        }
        (self, Dropped::new())
    }

    /// Whether it says nothing. An index does not keep such an entry.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The bucket with which its blob is counted, and the blob's length.
    pub fn counted(&self) -> Option<(u32, u64)> {
        self.blob.as_ref().map(|blob| (self.expiry_bucket(blob.put_time_ms), blob.length))
    }

    /// The entry as a database holds it.
    pub fn encode(&self) -> Vec<u8> {
        let mut flags = match &self.blob {
            Some(BlobEntry { layout: Layout::Whole(_), .. }) => HAS_WHOLE,
            Some(BlobEntry { layout: Layout::Streamed { .. }, .. }) => HAS_STREAMED,
            None => 0,
        };
        let mut set = |condition: bool, flag: u8| flags |= if condition { flag } else { 0 };
        set(self.blob.as_ref().is_some_and(|blob| blob.damaged), DAMAGED);
        set(self.locator.is_some(), HAS_LOCATOR);
        set(self.killed_until_ms.is_some(), HAS_TOMBSTONE);
        set(self.hold.is_some(), HAS_HOLD);
        set(self.hold.is_some_and(|hold| hold.placed), HOLD_PLACED);
        let mut out = vec![ENTRY_VERSION, flags];
        if let Some(blob) = &self.blob {
            out.extend_from_slice(&blob.length.to_le_bytes());
            out.extend_from_slice(&blob.put_time_ms.to_le_bytes());
            if let Layout::Streamed { placement, .. } = &blob.layout {
                out.extend_from_slice(&placement.0);
            }
            blob.layout.locations().for_each(|location| encode_location(location, &mut out));
        }
        if let Some(held) = &self.locator {
            encode_locator(&held.locator, &mut out);
            out.extend_from_slice(&held.put_time_ms.to_le_bytes());
        }
        if let Some(time_ms) = self.killed_until_ms {
            out.extend_from_slice(&time_ms.to_le_bytes());
        }
        if let Some(hold) = &self.hold {
            out.extend_from_slice(&hold.time_ms.to_le_bytes());
            out.extend_from_slice(&hold.from_bucket.to_le_bytes());
        }
        out
    }

    /// The entry that `bytes` are; `None` if they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let [version, flags] = take(&mut rest)?;
        if version != ENTRY_VERSION || flags & !ALL_FLAGS != 0 {
            return None;
        }
        let has = |flag: u8| flags & flag != 0;
        let mut entry = Self::default();
        if has(HAS_WHOLE | HAS_STREAMED) {
            let length = u64::from_le_bytes(take(&mut rest)?);
            let put_time_ms = u64::from_le_bytes(take(&mut rest)?);
            if length > BLOB_BYTES_MAX {
                return None;
            }
            let layout = if has(HAS_WHOLE) {
                Layout::Whole(decode_location(&mut rest)?)
            } else {
                let placement = PlacementKey(take(&mut rest)?);
                let extents = decode_locations(&mut rest, extent_count(length))?;
                let tree = decode_locations(&mut rest, tree_piece_count(length))?;
                Layout::Streamed { placement, extents, tree }
            };
            entry.blob = Some(BlobEntry { length, put_time_ms, layout, damaged: has(DAMAGED) });
        }
        if has(HAS_LOCATOR) {
            let locator = decode_locator(&mut rest)?;
            entry.locator = Some(LocatorEntry { locator, put_time_ms: u64::from_le_bytes(take(&mut rest)?) });
        }
        if has(HAS_TOMBSTONE) {
            entry.killed_until_ms = Some(u64::from_le_bytes(take(&mut rest)?));
        }
        if has(HAS_HOLD) {
            let time_ms = u64::from_le_bytes(take(&mut rest)?);
            let from_bucket = u32::from_le_bytes(take(&mut rest)?);
            entry.hold = Some(HoldEntry { time_ms, placed: has(HOLD_PLACED), from_bucket });
        }
        rest.is_empty().then_some(entry)
    }
}

/// To which blob the pieces of an upload belong: the pieces themselves can't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadOwner {
    /// The blob.
    pub name: BlobName,
    /// The bucket of its put time.
    pub bucket: u32,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn location(offset: u64) -> Location {
        Location { segment: SegmentAddress { bucket: 7, id: 9 }, offset }
    }

    fn blob(put_time_ms: u64) -> BlobEntry {
        BlobEntry { length: 3, put_time_ms, layout: Layout::Whole(location(put_time_ms)), damaged: false }
    }

    fn locator(put_time_ms: u64) -> LocatorEntry {
        LocatorEntry { locator: Locator { placement: PlacementKey([put_time_ms as u8; 32]), length: 3 }, put_time_ms }
    }

    #[test]
    fn golden_entry() {
        let hold = HoldEntry { time_ms: 0x22, placed: true, from_bucket: 0x33 };
        let entry = Entry { blob: Some(blob(0x1234)), locator: None, killed_until_ms: Some(0x11), hold: Some(hold) };
        let expected = [
            "0239",
            "0300000000000000",
            "3412000000000000",
            "0700000009000000000000003412000000000000",
            "1100000000000000",
            "220000000000000033000000",
        ];
        assert_eq!(hex::encode(entry.encode()), expected.concat());
    }

    #[test]
    fn entries_come_back() {
        let long = (5 << 20) + 1;
        let streamed = BlobEntry {
            length: long,
            put_time_ms: 8,
            layout: Layout::Streamed {
                placement: PlacementKey([4; 32]),
                extents: vec![location(1), location(2)],
                tree: vec![location(3)],
            },
            damaged: true,
        };
        let hold = HoldEntry { time_ms: 9, placed: false, from_bucket: 3 };
        for blob in [None, Some(blob(5)), Some(streamed)] {
            for locator in [None, Some(locator(6))] {
                for killed_until_ms in [None, Some(4)] {
                    for hold in [None, Some(hold), Some(HoldEntry { placed: true, ..hold })] {
                        let entry = Entry { blob: blob.clone(), locator, killed_until_ms, hold };
                        let bytes = entry.encode();
                        assert_eq!(Entry::decode(&bytes), Some(entry));
                        assert_eq!(Entry::decode(&bytes[..bytes.len() - 1]), None);
                    }
                }
            }
        }
    }

    #[test]
    fn what_expired_is_taken_out_unless_a_hold_protects_it() {
        const HOUR_MS: u64 = 3_600_000;
        let at = |bucket: u64| Entry {
            blob: Some(blob(bucket * HOUR_MS)),
            locator: Some(locator(bucket * HOUR_MS)),
            killed_until_ms: Some(bucket * HOUR_MS - 1),
            hold: None,
        };
        assert_eq!(at(5).live(5).0, Entry { killed_until_ms: None, ..at(5) });
        let (gone, dropped) = at(5).live(6);
        assert_eq!((gone, dropped), (Entry::default(), vec![(location(0).segment, whole_record_bytes(3))]));
        let hold = |placed, from_bucket| Some(HoldEntry { time_ms: 1, placed, from_bucket });
        let held = Entry { hold: hold(true, 4), ..at(5) };
        assert_eq!(held.clone().live(9).0, held);
        assert_eq!(held.counted(), Some((HELD_BUCKET, 3)));
        for hold in [hold(true, 6), hold(false, 4)] {
            assert_eq!(Entry { hold, ..at(5) }.live(6).0, Entry { hold, ..Entry::default() });
        }
    }

    #[test]
    fn a_sound_copy_decides_before_a_damaged_one_and_a_moved_one_before_the_first() {
        let place = |bucket, id| Layout::Whole(Location { segment: SegmentAddress { bucket, id }, offset: 72 });
        let damaged = BlobEntry { damaged: true, layout: place(7, 99), ..blob(8) };
        let mut entry = Entry::default();
        assert_eq!(entry.absorb(Change::Blob(damaged.clone())), []);
        assert_eq!(entry.absorb(Change::Blob(blob(8))), [], "a damaged copy is dead already");
        assert_eq!(entry.blob, Some(blob(8)));
        entry.absorb(Change::Blob(damaged));
        assert_eq!(entry.blob, Some(blob(8)));
        assert_eq!(entry.absorb(Change::Blob(blob(7))).len(), 1, "the loser's own bytes");
        for (bucket, id) in [(7, 10), (HELD_BUCKET, 8)] {
            let moved = BlobEntry { layout: place(bucket, id), ..blob(8) };
            let mut entry = entry.clone();
            assert_eq!(entry.absorb(Change::Blob(moved.clone())), [(location(0).segment, whole_record_bytes(3))]);
            assert_eq!(entry.blob, Some(moved));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Entry::decode(&bytes);
        }

        #[test]
        fn the_order_of_changes_does_not_matter(
            changes in proptest::collection::vec((0..5u8, 0..12u64), 0..8),
            seed in any::<u64>(),
        ) {
            let changes: Vec<Change> = changes
                .into_iter()
                .map(|(kind, time_ms)| match kind {
                    0 => Change::Blob(blob(time_ms)),
                    1 => Change::Locator(locator(time_ms)),
                    2 => Change::Blob(BlobEntry { damaged: true, ..blob(time_ms) }),
                    3 => Change::Hold(HoldEntry { time_ms: time_ms / 2, placed: time_ms % 2 == 0, from_bucket: 0 }),
                    _ => Change::Tombstone(time_ms),
                })
                .collect();
            let mut shuffled = changes.clone();
            let mut random = crate::disk::SplitMix(seed);
            for at in (1..shuffled.len()).rev() {
                shuffled.swap(at, random.below(at as u64 + 1) as usize);
            }
            let merged = |changes: Vec<Change>| {
                let mut entry = Entry::default();
                changes.into_iter().for_each(|change| drop(entry.absorb(change)));
                entry
            };
            prop_assert_eq!(merged(changes), merged(shuffled));
        }
    }
}
