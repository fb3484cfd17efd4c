//! Verdicts that are kept, in SQLite.
//!
//! The table is bounded by rows. Counting them is a walk over an index, so it is done once in a thousand that came, and what
//! is too much goes in steps, the longest unused first. With several processes on one file each counts for itself, and the
//! table is larger than its bound by a thousand for each at most.

use std::sync::atomic::Ordering;

use super::connection::{all_or_none, at_one_moment, execute, from_json, one};
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
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        if keys.len() > VERDICT_BATCH_MAX {
            return Err(StoreFault::BatchTooLarge(keys.len()));
        }
        let (keys, hour) = (keys.to_vec(), to_i64(now_ms / HOUR_MS));
        let reading = self.readers.read(move |connection| {
            let mut used = Vec::new();
            let mut look_up = |key: &VerdictKey| {
                one(connection, "SELECT id, used_hour, kept FROM verdict WHERE key = ?1", (key.0,), |row| {
                    if row.get::<_, i64>("used_hour")? < hour {
                        used.push(row.get("id")?);
                    }
                    from_json(row, "kept")
                })
            };
            let found = match keys.as_slice() {
                // The usual question is about one.
                [key] => vec![look_up(key)?],
                keys => at_one_moment(connection, || keys.iter().map(look_up).collect())?,
            };
            Ok((found, used))
        });
        let (found, used) = reading.await?;
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
            // Each of them may stand alone.
            for row in rows {
                execute(connection, "UPDATE verdict SET used_hour = ?1 WHERE id = ?2", (hour, row))?;
            }
            Ok(())
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
            rows.push((key.0, serde_json::to_string(kept)?));
        }
        let kept = rows.len() as u64;
        let keeping = self.writer.write(move |connection| {
            all_or_none(connection, || {
                for (key, kept) in rows {
                    execute(
                        connection,
                        "INSERT INTO verdict (key, used_hour, kept) VALUES (?1, ?2, ?3)
                         ON CONFLICT (key) DO UPDATE SET used_hour = excluded.used_hour, kept = excluded.kept",
                        (key, hour, kept),
                    )?;
                }
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
        let counting = self
            .readers
            .read(|connection| one(connection, "SELECT count(*) FROM verdict", (), |row| Ok(row.get::<_, i64>(0)?)));
        let mut surplus = to_u64(counting.await?.unwrap_or(0)).saturating_sub(self.verdicts_max);
        while surplus > 0 {
            let step = surplus.min(u64::from(EVICT_STEP));
            let delete = self.writer.execute(
                "DELETE FROM verdict WHERE id IN (SELECT id FROM verdict ORDER BY used_hour, id LIMIT ?1)",
                (to_i64(step),),
            );
            if !delete.await? {
                break;
            }
            surplus -= step;
        }
        Ok(())
    }
}
