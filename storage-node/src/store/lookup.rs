//! What all disks together know of a name.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use lazaret_protocol::BlobName;
use lazaret_protocol::limits::HELD_BYTES_MAX;
use lazaret_protocol::message::BlobStat;

use super::Store;
use super::slot::State;
use crate::engine::{BlobReader, Engine, EngineError, refuse_damaged};
use crate::index::{BlobEntry, Change, Entry};

/// What is known of a name.
pub(super) struct Lookup {
    /// As if it had all come to one disk.
    pub(super) entry: Entry,
    /// The copies of the blob that nothing kills, the best one first.
    pub(super) copies: Vec<Copy>,
    /// A disk on which more may lie, if one is being rebuilt.
    rebuilding: Option<String>,
    /// Whether a disk out of use could not be asked: what lies on it counts as missing, and is not said to be absent.
    unasked: bool,
}

/// A copy of a blob.
pub(super) struct Copy {
    pub(super) slot: usize,
    pub(super) engine: Engine,
    pub(super) blob: BlobEntry,
    /// Its disk is out of use: the copy counts as missing, and is read as long as that works.
    failed: bool,
}

impl Store {
    /// What this node knows of a blob. A copy that is known to be damaged is an error, since its absence would be a lie.
    /// Blocks for as long as a read of the indexes takes.
    pub fn stat(&self, name: BlobName) -> Result<BlobStat, EngineError> {
        let found = self.lookup(name)?;
        if let Some(blob) = &found.entry.blob {
            refuse_damaged(name, blob)?;
        }
        let stat = BlobStat {
            held: found.entry.blob.as_ref().map(BlobEntry::header),
            locator: found.entry.locator.map(|held| held.locator),
        };
        match found.rebuilding {
            Some(disk) if stat.held.is_none() => Err(EngineError::Rebuilding { disk }),
            None if stat.held.is_none() && found.unasked => Err(EngineError::DiskOut { reasons: self.failures() }),
            _ => Ok(stat),
        }
    }

    /// Whether this node holds a blob, as far as it knows soundly. Blocks likewise.
    pub fn holds(&self, name: BlobName) -> Result<bool, EngineError> {
        let found = self.lookup(name)?;
        let held = found.entry.blob.is_some_and(|blob| !blob.damaged);
        match found.rebuilding {
            Some(disk) if !held => Err(EngineError::Rebuilding { disk }),
            _ => Ok(held),
        }
    }

    /// All that this node knows of a name, without what has expired. Blocks likewise.
    pub fn entry(&self, name: BlobName) -> Result<Option<Entry>, EngineError> {
        let found = self.lookup(name)?;
        match found.rebuilding {
            Some(disk) => Err(EngineError::Rebuilding { disk }),
            None => Ok(Some(found.entry).filter(|entry| !entry.is_empty())),
        }
    }

    /// The next `limit` entries in the order of their names, of names after `after`, without what has expired. Fewer only
    /// at the end. Blocks for as long as reads of the indexes take.
    pub fn entries(
        &self,
        after: Option<BlobName>,
        until: Option<BlobName>,
        limit: usize,
    ) -> Result<Vec<(BlobName, Entry)>, EngineError> {
        let (mut after, mut found) = (after, Vec::new());
        while found.len() < limit {
            let page = self.merged_page(after, until, limit - found.len())?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            found.extend(page.into_iter().filter(|(_, entry)| !entry.is_empty()));
        }
        Ok(found)
    }

    /// The next names of all disks; none at the end.
    fn merged_page(
        &self,
        after: Option<BlobName>,
        until: Option<BlobName>,
        limit: usize,
    ) -> Result<Vec<(BlobName, Entry)>, EngineError> {
        let mut merged: BTreeMap<BlobName, Entry> = BTreeMap::new();
        for (number, slot) in self.inner.slots.iter().enumerate() {
            let (engine, serves) = match slot.state() {
                State::Rebuilding => return Err(EngineError::Rebuilding { disk: slot.label.clone() }),
                State::Failed { engine: None, .. } => continue,
                State::Failed { engine: Some(engine), .. } => (engine, false),
                State::Serving(engine) => (engine, true),
            };
            match self.noted(number, &engine, engine.entries(after, until, limit)) {
                Ok(page) => {
                    for (name, entry) in page {
                        let entry = if serves { entry } else { standing(entry) };
                        merge(merged.entry(name).or_default(), entry);
                    }
                }
                Err(error) if serves => return Err(error),
                Err(_) => {}
            }
        }
        // A disk that told fewer has no more, and one that told as many has told all up to its last: so far all is merged.
        let page = merged.into_iter().take(limit);
        Ok(if self.inner.slots.len() > 1 {
            page.map(|(name, entry)| (name, entry.live(self.horizon()).0)).collect()
        } else {
            page.collect()
        })
    }

    /// The blob, if this node holds it. Blocks for as long as a read of the indexes takes.
    pub fn open_blob(&self, name: BlobName) -> Result<Option<BlobReader>, EngineError> {
        let found = self.lookup(name)?;
        let mut damaged = None;
        for Copy { slot, engine, failed, .. } in &found.copies {
            match self.noted(*slot, engine, engine.open_blob(name)) {
                Ok(Some(reader)) if *failed && !is_readable(&reader) => {}
                Ok(Some(reader)) => return Ok(Some(reader)),
                Err(error) if !failed => damaged = damaged.or(Some(error)),
                Ok(None) | Err(_) => {}
            }
        }
        match (damaged, found.rebuilding) {
            (Some(error), _) => Err(error),
            (None, Some(disk)) => Err(EngineError::Rebuilding { disk }),
            (None, None) if found.unasked => Err(EngineError::DiskOut { reasons: self.failures() }),
            (None, None) => Ok(None),
        }
    }

    /// Reads all copies of a blob whole and marks those that are damaged. Returns whether one is sound. Blocks.
    pub fn verify(&self, name: BlobName) -> Result<bool, EngineError> {
        let mut sound = false;
        for Copy { slot, engine, .. } in self.lookup(name)?.copies.into_iter().filter(|copy| !copy.failed) {
            match self.noted(slot, &engine, engine.verify(name)) {
                Ok(verified) => sound |= verified,
                Err(error) if self.slot(slot)?.serving().is_some() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(sound)
    }

    /// Asks every disk.
    pub(super) fn lookup(&self, name: BlobName) -> Result<Lookup, EngineError> {
        let mut found = Lookup { entry: Entry::default(), copies: Vec::new(), rebuilding: None, unasked: false };
        for (number, slot) in self.inner.slots.iter().enumerate() {
            let (engine, serves) = match slot.state() {
                State::Rebuilding => {
                    found.rebuilding = Some(slot.label.clone());
                    continue;
                }
                State::Failed { engine: None, .. } => {
                    found.unasked = true;
                    continue;
                }
                State::Failed { engine: Some(engine), .. } => (engine, false),
                State::Serving(engine) => (engine, true),
            };
            let entry = match self.noted(number, &engine, engine.entry(name)) {
                Ok(entry) => entry.unwrap_or_default(),
                Err(error) if serves => return Err(error),
                Err(_) => {
                    found.unasked = true;
                    continue;
                }
            };
            if let Some(blob) = entry.blob.clone() {
                found.copies.push(Copy { slot: number, engine, blob, failed: !serves });
            }
            merge(&mut found.entry, if serves { entry } else { standing(entry) });
        }
        if self.inner.slots.len() > 1 {
            let horizon = self.horizon();
            found.entry = found.entry.live(horizon).0;
            let entry = &found.entry;
            // A copy that is older than the newest has the same content; one that is killed or expired counts no more.
            let lives = |time_ms| !entry.kills(time_ms) && entry.expiry_bucket(time_ms) >= horizon;
            found.copies.retain(|copy| lives(copy.blob.put_time_ms));
            found.copies.sort_by_key(|copy| (copy.failed, copy.blob.damaged, Reverse(copy.blob.put_time_ms)));
        }
        Ok(found)
    }
}

/// What a disk out of use still has to say: what it knows of deletions and holds. Its blobs count as missing.
fn standing(entry: Entry) -> Entry {
    Entry { blob: None, locator: None, ..entry }
}

/// Whether a copy on a disk out of use can be read. Long ones are found out on the way, rather than read twice.
fn is_readable(reader: &BlobReader) -> bool {
    reader.header().length > HELD_BYTES_MAX as u64 || reader.verify().is_ok()
}

/// Merges what one disk knows of a name into what others know.
fn merge(all: &mut Entry, one: Entry) {
    let Entry { blob, locator, killed_until_ms, hold } = one;
    let changes = [
        killed_until_ms.map(Change::Tombstone),
        hold.map(Change::Hold),
        blob.map(Change::Blob),
        locator.map(Change::Locator),
    ];
    for change in changes.into_iter().flatten() {
        all.absorb(change);
    }
}
