//! Verdicts that are kept, in SQLite.
//!
//! The table is bounded by rows. Counting them is a walk over an index, so it is done once in a thousand that came, and what
//! is too much goes in steps, the longest unused first. With several processes on one file each counts for itself, and the
//! table is larger than its bound by a thousand for each at most.

use std::sync::atomic::Ordering;

use sqlx::{QueryBuilder, Row};

use super::{SqliteBackend, to_i64, to_u64};
use crate::cache::{KeptVerdict, VERDICT_BATCH_MAX, VerdictKey};
use crate::store::StoreFault;

/// How many verdicts are kept unless something else is said. At about a kilobyte each: a few hundred megabytes.
pub(super) const VERDICTS_MAX: u64 = 250_000;

/// After how many new ones they are counted.
const COUNT_EVERY: u64 = 1_000;

/// How many go at once. A transaction of a few milliseconds, so that nothing behind it waits long.
const EVICT_STEP: u32 = 500;

/// Time as it is noted for what was of use.
const HOUR_MS: u64 = 3_600_000;

impl SqliteBackend {
    pub(super) async fn look_up(
        &self,
        keys: &[VerdictKey],
        now_ms: u64,
    ) -> Result<Vec<Option<KeptVerdict>>, StoreFault> {
        let mut found = vec![None; keys.len()];
        if keys.is_empty() {
            return Ok(found);
        }
        if keys.len() > VERDICT_BATCH_MAX {
            return Err(StoreFault::BatchTooLarge(keys.len()));
        }
        let mut query = QueryBuilder::new("SELECT id, key, used_hour, kept FROM verdict WHERE key IN (");
        let mut list = query.separated(", ");
        for key in keys {
            list.push_bind(key.0.to_vec());
        }
        query.push(")");
        // The usual question is about one; texts for other numbers would only fill the cache of statements.
        let rows = query.build().persistent(keys.len() == 1).fetch_all(&self.readers).await?;
        let hour = to_i64(now_ms / HOUR_MS);
        let mut used = Vec::new();
        for row in rows {
            let key: Vec<u8> = row.try_get("key")?;
            let kept: KeptVerdict = serde_json::from_str(row.try_get("kept")?)?;
            if row.try_get::<i64, _>("used_hour")? < hour {
                used.push(row.try_get::<i64, _>("id")?);
            }
            for (at, _) in keys.iter().enumerate().filter(|(_, asked)| asked.0[..] == key[..]) {
                if let Some(place) = found.get_mut(at) {
                    *place = Some(kept.clone());
                }
            }
        }
        if !used.is_empty()
            && let Err(error) = self.note_use(used, hour).await
        {
            // It goes a little earlier than it should.
            tracing::debug!(%error, "the use of kept verdicts could not be noted");
        }
        Ok(found)
    }

    async fn note_use(&self, rows: Vec<i64>, hour: i64) -> Result<(), StoreFault> {
        let noting = self.writer.write(move |connection| {
            Box::pin(async move {
                let mut update = QueryBuilder::new("UPDATE verdict SET used_hour = ");
                update.push_bind(hour).push(" WHERE id IN (");
                let mut list = update.separated(", ");
                for row in rows {
                    list.push_bind(row);
                }
                update.push(")");
                update.build().persistent(false).execute(connection).await?;
                Ok(())
            })
        });
        noting.await
    }

    pub(super) async fn keep(&self, verdicts: &[(VerdictKey, KeptVerdict)], now_ms: u64) -> Result<(), StoreFault> {
        if verdicts.is_empty() {
            return Ok(());
        }
        if verdicts.len() > VERDICT_BATCH_MAX {
            return Err(StoreFault::BatchTooLarge(verdicts.len()));
        }
        let hour = to_i64(now_ms / HOUR_MS);
        let mut rows = Vec::with_capacity(verdicts.len());
        for (key, kept) in verdicts {
            rows.push((key.0.to_vec(), serde_json::to_string(kept)?));
        }
        let kept = rows.len() as u64;
        let keeping = self.writer.write(move |connection| {
            Box::pin(async move {
                let mut insert = QueryBuilder::new("INSERT INTO verdict (key, used_hour, kept) ");
                insert.push_values(rows, |mut values, (key, kept)| {
                    values.push_bind(key).push_bind(hour).push_bind(kept);
                });
                insert.push(" ON CONFLICT (key) DO UPDATE SET used_hour = excluded.used_hour, kept = excluded.kept");
                insert.build().persistent(false).execute(connection).await?;
                Ok(())
            })
        });
        keeping.await?;
        let before = self.verdicts_kept.fetch_add(kept, Ordering::Relaxed);
        if before / COUNT_EVERY != (before + kept) / COUNT_EVERY {
            self.evict().await?;
        }
        Ok(())
    }

    /// Lets the longest unused go until there are no more than there may be.
    async fn evict(&self) -> Result<(), StoreFault> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM verdict").fetch_one(&self.readers).await?;
        let mut surplus = to_u64(count).saturating_sub(self.verdicts_max);
        while surplus > 0 {
            let step = surplus.min(u64::from(EVICT_STEP));
            let delete =
                sqlx::query("DELETE FROM verdict WHERE id IN (SELECT id FROM verdict ORDER BY used_hour, id LIMIT $1)")
                    .bind(to_i64(step));
            if !self.writer.execute(delete).await? {
                break;
            }
            surplus -= step;
        }
        Ok(())
    }
}
