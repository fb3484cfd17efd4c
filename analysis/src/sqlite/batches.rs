//! Batches in SQLite. What a batch's result is folded from lies in one index, so that asking for it reads no submission and
//! no result.

use sqlx::Row;

use super::results::{to_json, to_record};
use super::{SqliteBackend, to_i64, to_u64};
use crate::analysis::AnalysisRecord;
use crate::batch::{BatchGroup, BatchRecord, NewBatch};
use crate::id::DataId;
use crate::store::{PAGE_RECORDS_MAX, StoreFault};
use crate::verdict::ResultCode;

impl SqliteBackend {
    pub(super) async fn insert_batch(&self, new: &NewBatch) -> Result<(), StoreFault> {
        let insert = sqlx::query(
            "INSERT INTO batch (batch_id, created_ms, creation) VALUES ($1, $2, $3) ON CONFLICT (batch_id) DO NOTHING",
        )
        .bind(new.batch_id.0.to_vec())
        .bind(to_i64(new.created_ms))
        .bind(to_json(new)?);
        if self.writer.execute(insert).await? { Ok(()) } else { Err(StoreFault::Exists) }
    }

    pub(super) async fn read_batch_head(&self, batch_id: DataId) -> Result<Option<(NewBatch, bool)>, StoreFault> {
        let row = sqlx::query("SELECT creation, closed_ms IS NULL AS open FROM batch WHERE batch_id = $1")
            .bind(batch_id.0.to_vec())
            .fetch_optional(&self.readers)
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some((serde_json::from_str(row.try_get("creation")?)?, row.try_get::<i64, _>("open")? != 0)))
    }

    pub(super) async fn read_batch(&self, batch_id: DataId) -> Result<Option<BatchRecord>, StoreFault> {
        // Both statements see one state of the database only in a transaction: a file more without the batch's end, or the
        // other way round, would be a state that never was.
        let mut reading = self.readers.begin().await?;
        let row = sqlx::query("SELECT creation, closed_ms, cancelled FROM batch WHERE batch_id = $1")
            .bind(batch_id.0.to_vec())
            .fetch_optional(&mut *reading)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let rows = sqlx::query(
            "SELECT state >= 2 AS finished, overall, allowed_codes, count(*) AS files,
                 min(started_ms) AS started_ms, max(finished_ms) AS finished_ms
             FROM analysis WHERE batch_id = $1 GROUP BY 1, 2, 3",
        )
        .bind(batch_id.0.to_vec())
        .fetch_all(&mut *reading)
        .await?;
        let mut record = BatchRecord {
            new: serde_json::from_str(row.try_get("creation")?)?,
            closed_ms: row.try_get::<Option<i64>, _>("closed_ms")?.map(to_u64),
            cancelled: row.try_get::<i64, _>("cancelled")? != 0,
            groups: Vec::with_capacity(rows.len()),
            started_ms: None,
            finished_ms: None,
        };
        for row in rows {
            let time = |column: &str| Ok::<_, StoreFault>(row.try_get::<Option<i64>, _>(column)?.map(to_u64));
            record.started_ms = [record.started_ms, time("started_ms")?].into_iter().flatten().min();
            record.finished_ms = record.finished_ms.max(time("finished_ms")?);
            let finished = row.try_get::<i64, _>("finished")? != 0;
            record.groups.push(BatchGroup {
                count: to_u64(row.try_get("files")?),
                overall: if finished { Some(to_code(row.try_get("overall")?)?) } else { None },
                allowed: serde_json::from_str(row.try_get("allowed_codes")?)?,
            });
        }
        Ok(Some(record))
    }

    pub(super) async fn read_members(
        &self,
        batch_id: DataId,
        first: u32,
        size: u32,
    ) -> Result<Vec<AnalysisRecord>, StoreFault> {
        let rows = sqlx::query(
            "SELECT id, data_id, submission, passwords, state, cancel_requested, sanitized_blob, started_ms, result FROM analysis
             WHERE batch_id = $1 AND batch_ordinal >= $2 AND batch_ordinal < $3 AND expired = 0 ORDER BY batch_ordinal",
        )
        .bind(batch_id.0.to_vec())
        .bind(i64::from(first))
        .bind(i64::from(first) + i64::from(size.min(PAGE_RECORDS_MAX)))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(to_record).collect()
    }

    pub(super) async fn shut_batch(&self, batch_id: DataId, now_ms: u64) -> Result<bool, StoreFault> {
        let update = sqlx::query("UPDATE batch SET closed_ms = coalesce(closed_ms, $1) WHERE batch_id = $2")
            .bind(to_i64(now_ms))
            .bind(batch_id.0.to_vec());
        self.writer.execute(update).await
    }

    /// Two statements, each of which may be repeated: should the second fail, the batch takes no more files, and the caller
    /// is told to ask again.
    pub(super) async fn stop_batch(&self, batch_id: DataId, now_ms: u64) -> Result<bool, StoreFault> {
        let close =
            sqlx::query("UPDATE batch SET closed_ms = coalesce(closed_ms, $1), cancelled = 1 WHERE batch_id = $2")
                .bind(to_i64(now_ms))
                .bind(batch_id.0.to_vec());
        let cancel = sqlx::query("UPDATE analysis SET cancel_requested = 1 WHERE batch_id = $1 AND state < 2")
            .bind(batch_id.0.to_vec());
        let stopped = self.writer.write(|connection| {
            Box::pin(async move {
                let known = close.execute(&mut *connection).await?.rows_affected() > 0;
                cancel.execute(connection).await?;
                Ok(known)
            })
        });
        stopped.await
    }
}

/// A result as SQLite kept it. Analyses that were finished before results had a column of their own belong to no batch.
fn to_code(code: Option<i64>) -> Result<ResultCode, StoreFault> {
    let known = code.and_then(|code| u16::try_from(code).ok()).and_then(ResultCode::new);
    known.ok_or_else(|| StoreFault::Malformed(format!("result {code:?} of a finished file of a batch")))
}
