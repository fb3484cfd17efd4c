//! What makes blobs go, and what keeps them: deletion, holds, retention, and the giving up of surplus copies.
//!
//! **What has expired stays expired**: the horizon is durable before anything is unlinked, and only grows. Nothing is moved
//! to expire a bucket, and what a hold protects was moved out of its bucket before the hold was acknowledged.

use lazaret_protocol::BlobName;
use lazaret_protocol::limits::BUCKET_MS;
use lazaret_protocol::message::{Expirable, Hold, Tombstone};

use super::ledger::{Changed, Changes};
use super::retention::Retention;
use super::{Engine, EngineError};
use crate::index::Change;
use crate::record::{HELD_BUCKET, PreparedRecord, RecordKind, SegmentAddress, encode_locator, record_buffer};
use crate::writer::{Meaning, Moved, Secured, Written};

/// How often a hold moves what it protects before it gives up: each time the blob was put again in a later hour.
const HOLD_TRIES_MAX: usize = 4;

impl Engine {
    /// Deletes a blob: kills every put of it up to the tombstone's time, in whatever order they arrive, held or not. Durable
    /// when it returns.
    pub async fn delete(&self, tombstone: Tombstone) -> Result<(), EngineError> {
        let Tombstone { name, time_ms } = tombstone;
        let record = PreparedRecord::new(RecordKind::Tombstone, name.into(), 0, time_ms, 0, None, record_buffer(0));
        self.shared.write(record, Meaning::Tombstone { name }, true).await.map(|_| ())
    }

    /// Places or releases a legal hold, whether the blob is here or not. Durable when it returns. Placing one copies the
    /// blob, if it is here, to where nothing expires. What had expired before stays expired, and is taken again from a node
    /// where the hold came in time.
    pub async fn hold(&self, hold: Hold) -> Result<(), EngineError> {
        let Hold { name, time_ms, placed, from_bucket } = hold;
        let mut secured = Secured::default();
        for _ in 0..HOLD_TRIES_MAX {
            let record = PreparedRecord::new(RecordKind::Hold, name.into(), 0, time_ms, 0, None, record_buffer(0));
            match self.shared.write(record, Meaning::Hold { name, placed, from_bucket, secured }, true).await? {
                Written::MustMove => secured = self.move_to_held(name).await?,
                _ => return Ok(()),
            }
        }
        Err(EngineError::Unsettled { name })
    }

    /// Copies all that is known of a name to where nothing expires, durably. Returns which small records that was.
    async fn move_to_held(&self, name: BlobName) -> Result<Secured, EngineError> {
        let _generation = self.shared.store.removals.enter();
        let read = move |shared: &super::Shared| shared.store.entry(name);
        let entry = self.shared.blocking("a read of the index", read).await?.unwrap_or_default();
        if let Some(blob) = entry.blob.filter(|blob| !blob.damaged && !blob.layout.never_expires()) {
            match self.shared.move_blob(name, blob, HELD_BUCKET, false).await {
                // Noted as damaged now, it waits to be replaced, by what goes where nothing expires at once.
                Ok(()) | Err(EngineError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut secured = Secured::default();
        if let Some(held) = entry.locator {
            let mut buffer = record_buffer(0);
            encode_locator(&held.locator, &mut buffer);
            let record = PreparedRecord::new(RecordKind::Locator, name.into(), 0, held.put_time_ms, 0, None, buffer);
            secured.locator = self.secure(name, record, Change::Locator(held)).await?.then_some(held);
        }
        if let Some(time_ms) = entry.killed_until_ms {
            let record = PreparedRecord::new(RecordKind::Tombstone, name.into(), 0, time_ms, 0, None, record_buffer(0));
            secured.killed_until_ms = self.secure(name, record, Change::Tombstone(time_ms)).await?.then_some(time_ms);
        }
        Ok(secured)
    }

    /// Writes a record once more, where nothing expires; false if it says nothing any more.
    async fn secure(&self, name: BlobName, record: PreparedRecord, change: Change) -> Result<bool, EngineError> {
        let meaning = Meaning::Moved { name, bucket: HELD_BUCKET, moved: Moved::Standing(change) };
        Ok(matches!(self.shared.write(record, meaning, true).await?, Written::At(_)))
    }

    /// Drops this disk's copy of a blob, if it is still of that put and not held; a locator stays. Returns whether there was
    /// one. It is not a deletion: the blob may be put again, and until compaction has been over its segment, an index that
    /// is rebuilt finds the copy again.
    pub async fn forget(&self, name: BlobName, put_time_ms: u64) -> Result<bool, EngineError> {
        self.drop_copy(name, put_time_ms, false).await
    }

    /// The same for a copy that may be held: for who knows that others hold the blob and know of the hold.
    pub async fn forget_held(&self, name: BlobName, put_time_ms: u64) -> Result<bool, EngineError> {
        self.drop_copy(name, put_time_ms, true).await
    }

    async fn drop_copy(&self, name: BlobName, put_time_ms: u64, held_too: bool) -> Result<bool, EngineError> {
        let drop_copy = move |shared: &super::Shared| {
            let store = &shared.store;
            let mut ledger = store.ledger.lock();
            let Some(before) = store.index.get(name)? else { return Ok(false) };
            let (mut after, mut dropped) = before.clone().live(ledger.horizon);
            if !held_too && after.holds(put_time_ms) {
                return Ok(false);
            }
            let Some(blob) = after.blob.take_if(|blob| blob.put_time_ms == put_time_ms) else { return Ok(false) };
            dropped.extend(blob.dropped(None));
            let changes = Changes { entries: vec![(name, Changed { before, after })], dropped, ..Changes::default() };
            ledger.apply(&*store.index, &store.counters, changes)?;
            Ok(true)
        };
        self.shared.blocking("forgetting a blob", drop_copy).await
    }

    /// The bucket before which everything has expired.
    pub fn horizon(&self) -> u32 {
        self.shared.store.horizon()
    }

    /// What expiring the buckets before `before_bucket` would remove now: exact, and free but for
    /// waiting for the writer's group.
    pub fn expirable(&self, before_bucket: u32) -> Expirable {
        let totals = self.shared.store.ledger.lock().before(before_bucket);
        Expirable { blobs: totals.blobs, bytes: totals.bytes, before_ms: u64::from(before_bucket) * BUCKET_MS }
    }

    /// Expires the buckets before `before_bucket`, for good, and unlinks their segments. Returns what went; nothing if they
    /// had expired before. Readers that began before go on; their segments go when they do. Blocks, for the writer's group
    /// and the unlinking, and waits for no other task.
    pub fn expire(&self, before_bucket: u32) -> Result<Expirable, EngineError> {
        let store = &self.shared.store;
        let expired = {
            let mut ledger = store.ledger.lock();
            let bucket = before_bucket.max(ledger.horizon);
            let expired = ledger.before(bucket);
            if bucket > ledger.horizon {
                let on_disk = store.disk.segments()?;
                let newest = ledger.segments().keys().chain(&on_disk).map(|address| address.id).max();
                let first_segment_id = newest.map_or(1, |id| id.saturating_add(1));
                // None of those that were there at the last expiry may be left.
                let first_segment_id = first_segment_id.max(Retention::load(&*store.disk)?.first_segment_id);
                Retention { expired_before_bucket: bucket, first_segment_id }.save(&*store.disk)?;
            }
            // From here on nothing of them is answered, whatever fails.
            store.expire(&mut ledger, bucket)?;
            expired
        };
        let horizon = self.horizon();
        let doomed: Vec<SegmentAddress> =
            store.disk.segments()?.into_iter().filter(|address| address.bucket < horizon).collect();
        store.remove(doomed);
        store.index.expire(horizon, expired.blobs)?;
        Ok(Expirable { blobs: expired.blobs, bytes: expired.bytes, before_ms: u64::from(horizon) * BUCKET_MS })
    }
}
