//! What the index holds of one name, how changes to it merge, and how it lies in a database.
//!
//! Merging does not depend on the order of changes (but for two puts of the same time, which are the same content): the
//! newest put time decides, and a tombstone kills whatever is not newer than it. Recovery relies on that.

use lazaret_protocol::limits::{BLOB_BYTES_MAX, BUCKET_MS};
use lazaret_protocol::message::{GetHeader, Locator};

use crate::record::{
    Location, decode_location, decode_locations, decode_locator, encode_location, encode_locator, extent_count, take,
    tree_piece_count,
};

/// The version of an encoded entry. An index of another version is thrown away and rebuilt from the segments.
pub const ENTRY_VERSION: u8 = 1;

const HAS_WHOLE: u8 = 1;
const HAS_STREAMED: u8 = 2;
const HAS_LOCATOR: u8 = 4;
const HAS_TOMBSTONE: u8 = 8;

/// Where a blob's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One record.
    Whole(Location),
    /// Extents and tree records, each in order.
    Streamed {
        /// The extents.
        extents: Vec<Location>,
        /// The tree records.
        tree: Vec<Location>,
    },
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
}

impl BlobEntry {
    /// What a reader is told first.
    pub fn header(&self) -> GetHeader {
        GetHeader { length: self.length, put_time_ms: self.put_time_ms }
    }

    /// Whether a put of this time has nothing to add: it falls in the bucket of the newest one or in an earlier bucket.
    pub fn covers(&self, put_time_ms: u64) -> bool {
        put_time_ms / BUCKET_MS <= self.put_time_ms / BUCKET_MS
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

/// All that is known of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The blob, if it is held here.
    pub blob: Option<BlobEntry>,
    /// The locator, if there is one here.
    pub locator: Option<LocatorEntry>,
    /// The newest tombstone's time.
    pub killed_until_ms: Option<u64>,
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
}

impl Entry {
    /// Merges a change.
    pub fn absorb(&mut self, change: Change) {
        let dead = |put_time_ms: u64, until: Option<u64>| until.is_some_and(|until| put_time_ms <= until);
        match change {
            Change::Blob(blob) => {
                let newest = self.blob.as_ref().is_none_or(|held| held.put_time_ms <= blob.put_time_ms);
                if newest && !dead(blob.put_time_ms, self.killed_until_ms) {
                    self.blob = Some(blob);
                }
            }
            Change::Locator(locator) => {
                let newest = self.locator.is_none_or(|held| held.put_time_ms <= locator.put_time_ms);
                if newest && !dead(locator.put_time_ms, self.killed_until_ms) {
                    self.locator = Some(locator);
                }
            }
            Change::Tombstone(time_ms) => {
                self.killed_until_ms = self.killed_until_ms.max(Some(time_ms));
                self.blob.take_if(|blob| dead(blob.put_time_ms, Some(time_ms)));
                self.locator.take_if(|locator| dead(locator.put_time_ms, Some(time_ms)));
            }
        }
    }

    /// The entry as a database holds it.
    pub fn encode(&self) -> Vec<u8> {
        let mut flags = 0;
        match &self.blob {
            Some(BlobEntry { layout: Layout::Whole(_), .. }) => flags |= HAS_WHOLE,
            Some(BlobEntry { layout: Layout::Streamed { .. }, .. }) => flags |= HAS_STREAMED,
            None => {}
        }
        flags |= if self.locator.is_some() { HAS_LOCATOR } else { 0 };
        flags |= if self.killed_until_ms.is_some() { HAS_TOMBSTONE } else { 0 };
        let mut out = vec![ENTRY_VERSION, flags];
        if let Some(blob) = &self.blob {
            out.extend_from_slice(&blob.length.to_le_bytes());
            out.extend_from_slice(&blob.put_time_ms.to_le_bytes());
            match &blob.layout {
                Layout::Whole(location) => encode_location(location, &mut out),
                Layout::Streamed { extents, tree } => {
                    extents.iter().chain(tree).for_each(|location| encode_location(location, &mut out));
                }
            }
        }
        if let Some(held) = &self.locator {
            encode_locator(&held.locator, &mut out);
            out.extend_from_slice(&held.put_time_ms.to_le_bytes());
        }
        if let Some(time_ms) = self.killed_until_ms {
            out.extend_from_slice(&time_ms.to_le_bytes());
        }
        out
    }

    /// The entry that `bytes` are; `None` if they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let [version, flags] = take(&mut rest)?;
        let known = HAS_WHOLE | HAS_STREAMED | HAS_LOCATOR | HAS_TOMBSTONE;
        if version != ENTRY_VERSION || flags & !known != 0 {
            return None;
        }
        let mut entry = Self::default();
        if flags & (HAS_WHOLE | HAS_STREAMED) != 0 {
            let length = u64::from_le_bytes(take(&mut rest)?);
            let put_time_ms = u64::from_le_bytes(take(&mut rest)?);
            if length > BLOB_BYTES_MAX {
                return None;
            }
            let layout = if flags & HAS_WHOLE != 0 {
                Layout::Whole(decode_location(&mut rest)?)
            } else {
                let extents = decode_locations(&mut rest, extent_count(length))?;
                Layout::Streamed { extents, tree: decode_locations(&mut rest, tree_piece_count(length))? }
            };
            entry.blob = Some(BlobEntry { length, put_time_ms, layout });
        }
        if flags & HAS_LOCATOR != 0 {
            let locator = decode_locator(&mut rest)?;
            entry.locator = Some(LocatorEntry { locator, put_time_ms: u64::from_le_bytes(take(&mut rest)?) });
        }
        if flags & HAS_TOMBSTONE != 0 {
            entry.killed_until_ms = Some(u64::from_le_bytes(take(&mut rest)?));
        }
        rest.is_empty().then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use lazaret_protocol::PlacementKey;
    use proptest::prelude::*;

    use super::*;
    use crate::record::SegmentAddress;

    fn location(offset: u64) -> Location {
        Location { segment: SegmentAddress { bucket: 7, id: 9 }, offset }
    }

    fn blob(put_time_ms: u64) -> BlobEntry {
        BlobEntry { length: 3, put_time_ms, layout: Layout::Whole(location(put_time_ms)) }
    }

    fn locator(put_time_ms: u64) -> LocatorEntry {
        LocatorEntry { locator: Locator { placement: PlacementKey([put_time_ms as u8; 32]), length: 3 }, put_time_ms }
    }

    #[test]
    fn golden_entry() {
        let entry = Entry { blob: Some(blob(0x1234)), locator: None, killed_until_ms: Some(0x11) };
        let expected = "010903000000000000003412000000000000070000000900000000000000341200000000000011\
                        00000000000000";
        assert_eq!(hex::encode(entry.encode()), expected.replace(' ', ""));
    }

    #[test]
    fn entries_come_back() {
        let long = (5 << 20) + 1;
        let streamed = BlobEntry {
            length: long,
            put_time_ms: 8,
            layout: Layout::Streamed { extents: vec![location(1), location(2)], tree: vec![location(3)] },
        };
        for blob in [None, Some(blob(5)), Some(streamed)] {
            for locator in [None, Some(locator(6))] {
                for killed_until_ms in [None, Some(4)] {
                    let entry = Entry { blob: blob.clone(), locator, killed_until_ms };
                    let bytes = entry.encode();
                    assert_eq!(Entry::decode(&bytes), Some(entry));
                    assert_eq!(Entry::decode(&bytes[..bytes.len() - 1]), None);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Entry::decode(&bytes);
        }

        #[test]
        fn the_order_of_changes_does_not_matter(
            changes in proptest::collection::vec((0..3u8, 0..12u64), 0..8),
            seed in any::<u64>(),
        ) {
            let changes: Vec<Change> = changes
                .into_iter()
                .map(|(kind, time_ms)| match kind {
                    0 => Change::Blob(blob(time_ms)),
                    1 => Change::Locator(locator(time_ms)),
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
                changes.into_iter().for_each(|change| entry.absorb(change));
                entry
            };
            prop_assert_eq!(merged(changes), merged(shuffled));
        }
    }
}
