//! Analyses and nested files in SQLite.

use async_trait::async_trait;
use serde::Serialize;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row};

use super::borrowed::{self, Found, Members};
use super::{SqliteBackend, on, to_i64, to_id, to_u64};
use crate::analysis::{AnalysisRecord, FileInfo, FileResult, NestedRecord, NewAnalysis, State};
use crate::batch::{BatchRecord, NewBatch};
use crate::cache::{KeptVerdict, VerdictKey};
use crate::id::DataId;
use crate::password::SealedPasswords;
use crate::store::{
    Callback, Claim, DigestQuery, NESTED_BATCH_MAX, PAGE_RECORDS_MAX, Page, ResultStore, StoreError, StoreFault,
};
use crate::verdict::ResultCode;
use crate::worker_report::WorkerReport;

/// As much of a digest as an error repeats.
const DIGEST_BYTES_SHOWN: usize = 8;

/// The four digests as they are indexed: raw, absent if they were not taken.
struct Digests([Option<Vec<u8>>; 4]);

impl Digests {
    fn of(file: &FileInfo) -> Self {
        let raw = |digest: &String| hex::decode(digest).ok().filter(|bytes| !bytes.is_empty());
        Self([&file.md5, &file.sha1, &file.sha256, &file.sha512].map(raw))
    }
}

/// A nested file, encoded before it comes to the writing connection.
struct NestedRow {
    data_id: DataId,
    root: DataId,
    parent: DataId,
    ordinal: u32,
    path: String,
    digests: Digests,
    result: String,
}

impl NestedRow {
    fn of(record: &NestedRecord) -> Result<Self, StoreFault> {
        Ok(Self {
            data_id: record.data_id,
            root: record.root,
            parent: record.parent,
            ordinal: record.ordinal,
            path: record.path.clone(),
            digests: Digests::of(&record.result.file),
            result: to_json(&record.result)?,
        })
    }
}

/// Inserts all rows or none. False if one of their roots takes none.
async fn insert_nested(connection: &mut SqliteConnection, rows: Vec<NestedRow>) -> Result<bool, StoreFault> {
    let mut roots: Vec<DataId> = rows.iter().map(|row| row.root).collect();
    roots.sort_unstable();
    roots.dedup();
    for root in roots {
        let unfinished = sqlx::query("SELECT 1 FROM analysis WHERE data_id = $1 AND state < 2").bind(root.0.to_vec());
        if unfinished.fetch_optional(&mut *connection).await?.is_none() {
            return Ok(false);
        }
    }
    // REPLACE also clears the way where the same place has another id, which happens when the key of nested ids changed.
    let mut insert = QueryBuilder::new(
        "REPLACE INTO nested (data_id, root, parent, ordinal, path, md5, sha1, sha256, sha512, result) ",
    );
    // One statement for the batch: a statement a row spends most of its time on the way to the connection's thread.
    insert.push_values(rows, |mut values, row| {
        let Digests([md5, sha1, sha256, sha512]) = row.digests;
        values
            .push_bind(row.data_id.0.to_vec())
            .push_bind(row.root.0.to_vec())
            .push_bind(row.parent.0.to_vec())
            .push_bind(i64::from(row.ordinal))
            .push_bind(row.path)
            .push_bind(md5)
            .push_bind(sha1)
            .push_bind(sha256)
            .push_bind(sha512)
            .push_bind(row.result);
    });
    // Its text differs with the number of rows, so that keeping it prepared would only fill the cache.
    insert.build().persistent(false).execute(connection).await?;
    Ok(true)
}

fn on_verdicts(operation: &'static str) -> impl FnOnce(StoreFault) -> StoreError {
    move |source| StoreError { operation, object: "verdicts".to_owned(), source }
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String, StoreFault> {
    Ok(serde_json::to_string(value)?)
}

pub(super) fn state_to_i64(state: State) -> i64 {
    match state {
        State::Queued => 0,
        State::Running => 1,
        State::Done => 2,
        State::Cancelled => 3,
    }
}

fn state_from_i64(state: i64) -> Result<State, StoreFault> {
    match state {
        0 => Ok(State::Queued),
        1 => Ok(State::Running),
        2 => Ok(State::Done),
        3 => Ok(State::Cancelled),
        other => Err(StoreFault::Malformed(format!("state {other}"))),
    }
}

/// An analysis as its row has it.
pub(super) fn to_record(row: &SqliteRow) -> Result<AnalysisRecord, StoreFault> {
    let data_id = to_id(row.try_get("data_id")?)?;
    let result: Option<String> = row.try_get("result")?;
    Ok(AnalysisRecord {
        data_id,
        new: NewAnalysis {
            passwords: row.try_get::<Option<Vec<u8>>, _>("passwords")?.map(SealedPasswords),
            ..serde_json::from_str(row.try_get("submission")?)?
        },
        state: state_from_i64(row.try_get("state")?)?,
        cancel_requested: row.try_get::<i64, _>("cancel_requested")? != 0,
        sanitized_blob: row.try_get("sanitized_blob")?,
        started_ms: row.try_get::<Option<i64>, _>("started_ms")?.map(to_u64),
        result: result.map(|json| serde_json::from_str(&json)).transpose()?,
        root: data_id,
        parent: None,
    })
}

impl SqliteBackend {
    async fn get_root(&self, data_id: DataId) -> Result<Option<AnalysisRecord>, StoreFault> {
        let row = sqlx::query(
            "SELECT id, data_id, submission, passwords, state, cancel_requested, sanitized_blob, started_ms, result
             FROM analysis WHERE data_id = $1 AND expired = 0",
        )
        .bind(data_id.0.to_vec())
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(to_record).transpose()
    }

    async fn exists(&self, data_id: DataId) -> bool {
        matches!(self.get_root(data_id).await, Ok(Some(_)))
    }

    async fn get_nested(&self, data_id: DataId) -> Result<Option<AnalysisRecord>, StoreFault> {
        let row = sqlx::query(
            "SELECT nested.root, nested.parent, nested.result, analysis.submission
             FROM nested JOIN analysis ON analysis.data_id = nested.root AND analysis.expired = 0
             WHERE nested.data_id = $1",
        )
        .bind(data_id.0.to_vec())
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let result: FileResult = serde_json::from_str(row.try_get("result")?)?;
        let submission: NewAnalysis = serde_json::from_str(row.try_get("submission")?)?;
        Ok(Some(AnalysisRecord {
            data_id,
            new: NewAnalysis { data_id, blob: String::new(), file: result.file.clone(), ..submission },
            state: State::Done,
            cancel_requested: false,
            sanitized_blob: None,
            started_ms: Some(result.times.start_ms),
            result: Some(result),
            root: to_id(row.try_get("root")?)?,
            parent: Some(to_id(row.try_get("parent")?)?),
        }))
    }

    /// A borrowed file.
    async fn get_borrowed(&self, data_id: DataId) -> Result<Option<AnalysisRecord>, StoreFault> {
        let mut reading = self.readers.begin().await?;
        let Some((borrower, record)) = borrowed::get(&mut reading, &self.places, data_id).await? else {
            return Ok(None);
        };
        let submission: NewAnalysis = serde_json::from_str(&borrower.submission)?;
        let NestedRecord { root, parent, result, .. } = record;
        Ok(Some(AnalysisRecord {
            data_id,
            new: NewAnalysis { data_id, blob: String::new(), file: result.file.clone(), ..submission },
            state: State::Done,
            cancel_requested: false,
            sanitized_blob: None,
            started_ms: Some(result.times.start_ms),
            result: Some(result),
            root,
            parent: Some(parent),
        }))
    }

    async fn page(&self, parent: DataId, first: u32, size: u32) -> Result<Page, StoreFault> {
        // Ordinals have no gaps, so the highest one tells the number without a walk over all rows. The statements see one
        // state of the database only in a transaction.
        let mut reading = self.readers.begin().await?;
        let members = borrowed::members(&mut reading, &self.places, parent).await?;
        let recorded_under = match &members {
            Members::Own => parent,
            Members::Of(_, lender) => *lender,
        };
        let highest: Option<i64> = sqlx::query_scalar("SELECT max(ordinal) FROM nested WHERE parent = $1")
            .bind(recorded_under.0.to_vec())
            .fetch_one(&mut *reading)
            .await?;
        let end = i64::from(first) + i64::from(size.min(PAGE_RECORDS_MAX));
        let query = format!(
            "SELECT {} FROM nested WHERE parent = $1 AND ordinal >= $2 AND ordinal < $3 ORDER BY ordinal",
            Found::COLUMNS
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(recorded_under.0.to_vec())
            .bind(i64::from(first))
            .bind(end)
            .fetch_all(&mut *reading)
            .await?;
        let found = rows.iter().map(Found::of).collect::<Result<Vec<_>, StoreFault>>()?;
        let records = match &members {
            Members::Own => found.into_iter().map(|found| found.record).collect(),
            Members::Of(borrower, _) => {
                borrowed::borrow_page(&mut reading, &self.places, borrower, parent, found).await?
            }
        };
        Ok(Page { records, total: highest.map_or(0, |ordinal| to_u64(ordinal) + 1) })
    }
}

/// Notes a claim and looks who else has one. One statement writes.
async fn claim(
    connection: &mut SqliteConnection,
    data_id: DataId,
    key: VerdictKey,
    until_ms: i64,
    now_ms: i64,
) -> Result<Claim, StoreFault> {
    let claimed: Option<i64> = sqlx::query_scalar(
        "UPDATE analysis SET state = 1, claim_key = $1, claim_until_ms = $2, started_ms = $3,
             claim_order = CASE WHEN claim_key = $1 AND claim_until_ms > $3 THEN claim_order ELSE
                 (SELECT coalesce(max(claim_order), 0) + 1 FROM analysis WHERE claim_key = $1 AND state = 1) END
         WHERE data_id = $4 AND state < 2 RETURNING claim_order",
    )
    .bind(key.0.to_vec())
    .bind(until_ms)
    .bind(now_ms)
    .bind(data_id.0.to_vec())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(order) = claimed else { return Ok(Claim::Nothing) };
    let twin = sqlx::query(
        "SELECT 1 FROM analysis WHERE claim_key = $1 AND state = 1 AND claim_until_ms > $2 AND claim_order < $3 LIMIT 1",
    )
    .bind(key.0.to_vec())
    .bind(now_ms)
    .bind(order);
    let twin = twin.fetch_optional(connection).await?;
    Ok(if twin.is_some() { Claim::Twin } else { Claim::Yours })
}

#[async_trait]
impl ResultStore for SqliteBackend {
    async fn create(&self, new: &NewAnalysis) -> Result<(), StoreError> {
        let operation = "record analysis";
        let submission = to_json(new).map_err(on(operation, new.data_id))?;
        let Digests([md5, sha1, sha256, sha512]) = Digests::of(&new.file);
        let batch = new.sent_along.batch.map(|batch| batch.0.to_vec());
        let allowed = to_json(&new.rule.allowed_codes).map_err(on(operation, new.data_id))?;
        // One statement, so that a batch can't be closed between the look at it and the insert.
        let insert = sqlx::query(
            "INSERT INTO analysis (data_id, state, blob, md5, sha1, sha256, sha512, queued_ms, submission, user_id,
                 batch_id, batch_ordinal, allowed_codes, callback_ms, passwords)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
                 $11, (SELECT coalesce(max(batch_ordinal) + 1, 0) FROM analysis WHERE batch_id = $11), $12, $13, $14
             WHERE $11 IS NULL OR EXISTS (SELECT 1 FROM batch WHERE batch_id = $11 AND closed_ms IS NULL)
             ON CONFLICT (data_id) DO NOTHING",
        )
        .bind(new.data_id.0.to_vec())
        .bind(state_to_i64(State::Queued))
        .bind(new.blob.clone())
        .bind(md5)
        .bind(sha1)
        .bind(sha256)
        .bind(sha512)
        .bind(to_i64(new.queued_ms))
        .bind(submission)
        .bind(new.principal.user_id.clone())
        .bind(batch)
        .bind(new.sent_along.batch.map(|_| allowed))
        .bind(new.sent_along.callback_url.as_ref().map(|_| to_i64(new.queued_ms)))
        .bind(new.passwords.as_ref().map(|sealed| sealed.0.clone()));
        let created = match self.writer.execute(insert).await {
            Ok(true) => Ok(()),
            Ok(false) if new.sent_along.batch.is_some() && !self.exists(new.data_id).await => {
                Err(StoreFault::BatchClosed)
            }
            Ok(false) => Err(StoreFault::Exists),
            Err(fault) => Err(fault),
        };
        created.map_err(on(operation, new.data_id))
    }

    async fn start(&self, data_id: DataId, now_ms: u64) -> Result<bool, StoreError> {
        let update = sqlx::query("UPDATE analysis SET state = $1, started_ms = $2 WHERE data_id = $3 AND state < 2")
            .bind(state_to_i64(State::Running))
            .bind(to_i64(now_ms))
            .bind(data_id.0.to_vec());
        self.writer.execute(update).await.map_err(on("start analysis", data_id))
    }

    async fn claim(&self, data_id: DataId, key: VerdictKey, until_ms: u64, now_ms: u64) -> Result<Claim, StoreError> {
        let (until_ms, now_ms) = (to_i64(until_ms), to_i64(now_ms));
        let claiming = self.writer.write(move |connection| Box::pin(claim(connection, data_id, key, until_ms, now_ms)));
        claiming.await.map_err(on("start analysis", data_id))
    }

    async fn extend_claim(&self, data_id: DataId, until_ms: u64) -> Result<(), StoreError> {
        let update = sqlx::query("UPDATE analysis SET claim_until_ms = $1 WHERE data_id = $2 AND state = 1")
            .bind(to_i64(until_ms))
            .bind(data_id.0.to_vec());
        self.writer.execute(update).await.map(drop).map_err(on("extend the claim of", data_id))
    }

    async fn verdicts(&self, keys: &[VerdictKey], now_ms: u64) -> Result<Vec<Option<KeptVerdict>>, StoreError> {
        self.look_up(keys, now_ms).await.map_err(on_verdicts("look up"))
    }

    async fn keep_verdicts(&self, verdicts: &[(VerdictKey, KeptVerdict)], now_ms: u64) -> Result<(), StoreError> {
        self.keep(verdicts, now_ms).await.map_err(on_verdicts("keep"))
    }

    async fn finish_as(
        &self,
        data_id: DataId,
        result: &FileResult,
        source: DataId,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        let (places, result, now_ms) = (self.places.clone(), result.clone(), to_i64(now_ms));
        let finishing = self.writer.write(move |connection| {
            Box::pin(async move { borrowed::finish(connection, &places, (data_id, source), result, now_ms).await })
        });
        finishing.await.map_err(on("finish analysis", data_id))
    }

    async fn put_nested(&self, records: &[NestedRecord]) -> Result<bool, StoreError> {
        let Some(first) = records.first() else { return Ok(true) };
        let recorded = async {
            if records.len() > NESTED_BATCH_MAX {
                return Err(StoreFault::BatchTooLarge(records.len()));
            }
            // Encoded here, so that the writing connection has only to write.
            let rows = records.iter().map(NestedRow::of).collect::<Result<Vec<_>, _>>()?;
            self.writer.write(|connection| Box::pin(insert_nested(connection, rows))).await
        };
        recorded.await.map_err(on("record files nested in", first.root))
    }

    async fn finish(&self, data_id: DataId, result: &FileResult, now_ms: u64) -> Result<bool, StoreError> {
        let operation = "finish analysis";
        let json = to_json(result).map_err(on(operation, data_id))?;
        let state = if result.own == ResultCode::CANCELLED { State::Cancelled } else { State::Done };
        let update = sqlx::query(
            "UPDATE analysis SET state = $1, result = $2, finished_ms = $3, overall = $4, passwords = NULL
             WHERE data_id = $5 AND state < 2",
        )
        .bind(state_to_i64(state))
        .bind(json)
        .bind(to_i64(now_ms))
        .bind(i64::from(result.overall.code()))
        .bind(data_id.0.to_vec());
        self.writer.execute(update).await.map_err(on(operation, data_id))
    }

    async fn get(&self, data_id: DataId) -> Result<Option<AnalysisRecord>, StoreError> {
        let mut record = self.get_root(data_id).await;
        if let Ok(None) = record {
            record = self.get_nested(data_id).await;
        }
        if let Ok(None) = record {
            record = self.get_borrowed(data_id).await;
        }
        record.map_err(on("read analysis", data_id))
    }

    async fn nested(&self, parent: DataId, first: u32, size: u32) -> Result<Page, StoreError> {
        self.page(parent, first, size).await.map_err(on("read files nested in", parent))
    }

    async fn unfinished(&self, before_ms: u64, limit: u32) -> Result<Vec<DataId>, StoreError> {
        let ids = sqlx::query_scalar(
            "SELECT data_id FROM analysis WHERE state < 2 AND queued_ms < $1 ORDER BY queued_ms, id LIMIT $2",
        )
        .bind(to_i64(before_ms))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(StoreFault::from)
        .and_then(|ids: Vec<Vec<u8>>| ids.into_iter().map(to_id).collect());
        ids.map_err(|source| StoreError { operation: "list", object: "unfinished analyses".to_owned(), source })
    }

    async fn request_cancel(&self, data_id: DataId) -> Result<bool, StoreError> {
        let update = sqlx::query("UPDATE analysis SET cancel_requested = 1 WHERE data_id = $1 AND state < 2")
            .bind(data_id.0.to_vec());
        self.writer.execute(update).await.map_err(on("cancel analysis", data_id))
    }

    async fn cancel_requested(&self, data_id: DataId) -> Result<bool, StoreError> {
        let flag: Result<Option<i64>, _> =
            sqlx::query_scalar("SELECT cancel_requested FROM analysis WHERE data_id = $1")
                .bind(data_id.0.to_vec())
                .fetch_optional(&self.readers)
                .await;
        flag.map(|flag| flag == Some(1)).map_err(|error| on("read analysis", data_id)(error.into()))
    }

    async fn count_unfinished(&self) -> Result<u64, StoreError> {
        let count: Result<i64, _> =
            sqlx::query_scalar("SELECT count(*) FROM analysis WHERE state < 2").fetch_one(&self.readers).await;
        count.map(to_u64).map_err(|error| StoreError {
            operation: "count",
            object: "unfinished analyses".to_owned(),
            source: error.into(),
        })
    }
    async fn find_by_digest(&self, query: &DigestQuery, limit: u32) -> Result<Vec<DataId>, StoreError> {
        let found = self.find(query, limit).await;
        found.map_err(|source| StoreError {
            operation: "look up the digest",
            object: hex::encode(query.digest.get(..DIGEST_BYTES_SHOWN).unwrap_or(&query.digest)),
            source,
        })
    }

    async fn create_batch(&self, new: &NewBatch) -> Result<(), StoreError> {
        self.insert_batch(new).await.map_err(on("make batch", new.batch_id))
    }

    async fn batch_head(&self, batch_id: DataId) -> Result<Option<(NewBatch, bool)>, StoreError> {
        self.read_batch_head(batch_id).await.map_err(on("read batch", batch_id))
    }

    async fn batch(&self, batch_id: DataId) -> Result<Option<BatchRecord>, StoreError> {
        self.read_batch(batch_id).await.map_err(on("read batch", batch_id))
    }

    async fn batch_members(&self, batch_id: DataId, first: u32, size: u32) -> Result<Vec<AnalysisRecord>, StoreError> {
        self.read_members(batch_id, first, size).await.map_err(on("read the files of batch", batch_id))
    }

    async fn close_batch(&self, batch_id: DataId, now_ms: u64) -> Result<bool, StoreError> {
        self.shut_batch(batch_id, now_ms).await.map_err(on("close batch", batch_id))
    }

    async fn cancel_batch(&self, batch_id: DataId, now_ms: u64) -> Result<bool, StoreError> {
        self.stop_batch(batch_id, now_ms).await.map_err(on("cancel batch", batch_id))
    }

    async fn report_worker(&self, report: &WorkerReport, now_ms: u64) -> Result<(), StoreError> {
        self.note_worker(report, now_ms).await.map_err(|source| StoreError {
            operation: "note the report of worker",
            object: report.name.clone(),
            source,
        })
    }

    async fn workers(&self, since_ms: u64) -> Result<Vec<WorkerReport>, StoreError> {
        let workers = self.read_workers(since_ms).await;
        workers.map_err(|source| StoreError { operation: "list", object: "workers".to_owned(), source })
    }

    async fn due_callbacks(&self, now_ms: u64, limit: u32) -> Result<Vec<Callback>, StoreError> {
        let due = self.read_callbacks(now_ms, limit).await;
        due.map_err(|source| StoreError { operation: "list", object: "callbacks".to_owned(), source })
    }

    async fn callback_tried(&self, data_id: DataId, next_ms: Option<u64>) -> Result<bool, StoreError> {
        let update = sqlx::query(
            "UPDATE analysis SET callback_ms = $1, callback_attempts = callback_attempts + 1
             WHERE data_id = $2 AND callback_ms IS NOT NULL",
        )
        .bind(next_ms.map(to_i64))
        .bind(data_id.0.to_vec());
        self.writer.execute(update).await.map_err(on("note a callback of analysis", data_id))
    }

    async fn expire(&self, before_ms: u64, limit: u32) -> Result<u64, StoreError> {
        let removed = self.remove_step(before_ms, limit).await;
        removed.map_err(|source| StoreError { operation: "remove", object: "what has expired".to_owned(), source })
    }
}
