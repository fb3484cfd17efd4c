//! Batches in SQLite. What a batch's result is folded from lies in one index, so that asking for it reads no submission and
//! no result.

use rusqlite::Connection;

use super::connection::{all, at_one_moment, execute, from_json, one};
use super::results::{to_json, to_record};
use super::{SqliteBackend, to_i64, to_u64};
use crate::analysis::AnalysisRecord;
use crate::batch::{BatchGroup, BatchRecord, NewBatch};
use crate::id::DataId;
use crate::store::{PAGE_RECORDS_MAX, StoreFault};
use crate::verdict::ResultCode;

impl SqliteBackend {
    pub(super) async fn insert_batch(&self, new: &NewBatch) -> Result<(), StoreFault> {
        let insert = self.writer.execute(
            "INSERT INTO batch (batch_id, created_ms, creation) VALUES (?1, ?2, ?3) ON CONFLICT (batch_id) DO NOTHING",
            (new.batch_id, to_i64(new.created_ms), to_json(new)?),
        );
        if insert.await? { Ok(()) } else { Err(StoreFault::Exists) }
    }

    pub(super) async fn read_batch_head(&self, batch_id: DataId) -> Result<Option<(NewBatch, bool)>, StoreFault> {
        let reading = self.readers.read(move |connection| {
            let text = "SELECT creation, closed_ms IS NULL AS open FROM batch WHERE batch_id = ?1";
            one(connection, text, (batch_id,), |row| Ok((from_json(row, "creation")?, row.get("open")?)))
        });
        reading.await
    }

    pub(super) async fn read_batch(&self, batch_id: DataId) -> Result<Option<BatchRecord>, StoreFault> {
        // Both statements see one state of the database only in a transaction: a file more without the batch's end, or the
        // other way round, would be a state that never was.
        let reading = self.readers.read(move |connection| at_one_moment(connection, || batch_of(connection, batch_id)));
        reading.await
    }

    pub(super) async fn read_members(
        &self,
        batch_id: DataId,
        first: u32,
        size: u32,
    ) -> Result<Vec<AnalysisRecord>, StoreFault> {
        let end = i64::from(first) + i64::from(size.min(PAGE_RECORDS_MAX));
        let reading = self.readers.read(move |connection| {
            all(
                connection,
                "SELECT id, data_id, submission, passwords, state, cancel_requested, sanitized_blob, started_ms, result FROM analysis
                 WHERE batch_id = ?1 AND batch_ordinal >= ?2 AND batch_ordinal < ?3 AND expired = 0 ORDER BY batch_ordinal",
                (batch_id, first, end),
                to_record,
            )
        });
        reading.await
    }

    pub(super) async fn shut_batch(&self, batch_id: DataId, now_ms: u64) -> Result<bool, StoreFault> {
        let update = self.writer.execute(
            "UPDATE batch SET closed_ms = coalesce(closed_ms, ?1) WHERE batch_id = ?2",
            (to_i64(now_ms), batch_id),
        );
        update.await
    }

    /// Two statements, each of which may be repeated: should the second fail, the batch takes no more files, and the caller
    /// is told to ask again.
    pub(super) async fn stop_batch(&self, batch_id: DataId, now_ms: u64) -> Result<bool, StoreFault> {
        let stopped = self.writer.write(move |connection| {
            let known = execute(
                connection,
                "UPDATE batch SET closed_ms = coalesce(closed_ms, ?1), cancelled = 1 WHERE batch_id = ?2",
                (to_i64(now_ms), batch_id),
            )?;
            let cancel = "UPDATE analysis SET cancel_requested = 1 WHERE batch_id = ?1 AND state < 2";
            execute(connection, cancel, (batch_id,))?;
            Ok(known > 0)
        });
        stopped.await
    }
}

fn batch_of(connection: &Connection, batch_id: DataId) -> Result<Option<BatchRecord>, StoreFault> {
    let text = "SELECT creation, closed_ms, cancelled FROM batch WHERE batch_id = ?1";
    let record = one(connection, text, (batch_id,), |row| {
        Ok(BatchRecord {
            new: from_json(row, "creation")?,
            closed_ms: row.get::<_, Option<i64>>("closed_ms")?.map(to_u64),
            cancelled: row.get("cancelled")?,
            groups: Vec::new(),
            started_ms: None,
            finished_ms: None,
        })
    })?;
    let Some(mut record) = record else { return Ok(None) };
    let text = "SELECT state >= 2 AS finished, overall, allowed_codes, count(*) AS files,
             min(started_ms) AS started_ms, max(finished_ms) AS finished_ms
         FROM analysis WHERE batch_id = ?1 GROUP BY 1, 2, 3";
    let groups = all(connection, text, (batch_id,), |row| {
        let time = |column: &str| Ok::<_, StoreFault>(row.get::<_, Option<i64>>(column)?.map(to_u64));
        record.started_ms = [record.started_ms, time("started_ms")?].into_iter().flatten().min();
        record.finished_ms = record.finished_ms.max(time("finished_ms")?);
        Ok(BatchGroup {
            count: to_u64(row.get("files")?),
            overall: if row.get("finished")? { Some(to_code(row.get("overall")?)?) } else { None },
            allowed: from_json(row, "allowed_codes")?,
        })
    });
    record.groups = groups?;
    Ok(Some(record))
}

/// A result as SQLite kept it. Analyses that were finished before results had a column of their own belong to no batch.
fn to_code(code: Option<i64>) -> Result<ResultCode, StoreFault> {
    let known = code.and_then(|code| u16::try_from(code).ok()).and_then(ResultCode::new);
    known.ok_or_else(|| StoreFault::Malformed(format!("result {code:?} of a finished file of a batch")))
}
