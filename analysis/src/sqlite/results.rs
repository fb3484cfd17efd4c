//! Analyses and nested files in SQLite.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};
use serde::Serialize;

use super::borrowed::{self, Found, Members, Places};
use super::connection::{all, all_or_none, any, at_one_moment, execute, from_json, one};
use super::{SqliteBackend, on, to_i64, to_u64};
use crate::analysis::{AnalysisRecord, FileInfo, FileResult, NestedRecord, NewAnalysis, State};
use crate::batch::{BatchRecord, NewBatch};
use crate::cache::{KeptVerdict, VerdictKey};
use crate::id::DataId;
use crate::password::SealedPasswords;
use crate::store::{
    Callback, Claim, DigestQuery, LEASE_MS_MAX, NESTED_BATCH_MAX, PAGE_RECORDS_MAX, Page, ResultStore, StoreError,
    StoreFault,
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

/// Adds a nested file. What is to happen to one that is in its way is said by how the statement begins. REPLACE alone would do,
/// but it keeps a copy of each page that it changes, in case that it fails: half as much again in time.
macro_rules! insert_row {
    ($begin:literal) => {
        concat!(
            $begin,
            " INTO nested (data_id, root, parent, ordinal, path, md5, sha1, sha256, sha512, result)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
        )
    };
}

/// Inserts all rows or none. False if one of their roots takes none.
fn insert_nested(connection: &Connection, rows: Vec<NestedRow>) -> Result<bool, StoreFault> {
    let mut roots: Vec<DataId> = rows.iter().map(|row| row.root).collect();
    roots.sort_unstable();
    roots.dedup();
    for root in roots {
        if !any(connection, "SELECT 1 FROM analysis WHERE data_id = ?1 AND state < 2", (root,))? {
            return Ok(false);
        }
    }
    // A loop over short statements takes as long as one long statement for all rows, whose text would be another for each
    // number of rows.
    all_or_none(connection, || {
        for row in rows {
            let Digests([md5, sha1, sha256, sha512]) = row.digests;
            let NestedRow { data_id, root, parent, ordinal, path, result, .. } = row;
            let values = params![data_id, root, parent, ordinal, path, md5, sha1, sha256, sha512, result];
            if execute(connection, insert_row!("INSERT OR IGNORE"), values)? == 0 {
                // It is recorded already, or the same place has another id, which happens when the key of nested ids changed.
                execute(connection, insert_row!("REPLACE"), values)?;
            }
        }
        Ok(true)
    })
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
pub(super) fn to_record(row: &Row<'_>) -> Result<AnalysisRecord, StoreFault> {
    let data_id = row.get("data_id")?;
    let result: Option<String> = row.get("result")?;
    Ok(AnalysisRecord {
        data_id,
        new: NewAnalysis {
            passwords: row.get::<_, Option<Vec<u8>>>("passwords")?.map(SealedPasswords),
            ..from_json(row, "submission")?
        },
        state: state_from_i64(row.get("state")?)?,
        cancel_requested: row.get("cancel_requested")?,
        sanitized_blob: row.get("sanitized_blob")?,
        started_ms: row.get::<_, Option<i64>>("started_ms")?.map(to_u64),
        result: result.map(|json| serde_json::from_str(&json)).transpose()?,
        root: data_id,
        parent: None,
    })
}

/// A nested file, own or borrowed, of what was submitted.
fn nested_record(
    data_id: DataId,
    submission: NewAnalysis,
    result: FileResult,
    (root, parent): (DataId, DataId),
) -> AnalysisRecord {
    AnalysisRecord {
        data_id,
        new: NewAnalysis { data_id, blob: String::new(), file: result.file.clone(), ..submission },
        state: State::Done,
        cancel_requested: false,
        sanitized_blob: None,
        started_ms: Some(result.times.start_ms),
        result: Some(result),
        root,
        parent: Some(parent),
    }
}

fn root_of(connection: &Connection, data_id: DataId) -> Result<Option<AnalysisRecord>, StoreFault> {
    one(
        connection,
        "SELECT id, data_id, submission, passwords, state, cancel_requested, sanitized_blob, started_ms, result
         FROM analysis WHERE data_id = ?1 AND expired = 0",
        (data_id,),
        to_record,
    )
}

fn nested_of(connection: &Connection, data_id: DataId) -> Result<Option<AnalysisRecord>, StoreFault> {
    one(
        connection,
        "SELECT nested.root, nested.parent, nested.result, analysis.submission
         FROM nested JOIN analysis ON analysis.data_id = nested.root AND analysis.expired = 0
         WHERE nested.data_id = ?1",
        (data_id,),
        |row| {
            let place = (row.get("root")?, row.get("parent")?);
            Ok(nested_record(data_id, from_json(row, "submission")?, from_json(row, "result")?, place))
        },
    )
}

fn borrowed_of(
    connection: &Connection,
    places: &Places,
    data_id: DataId,
) -> Result<Option<AnalysisRecord>, StoreFault> {
    let found = at_one_moment(connection, || borrowed::get(connection, places, data_id))?;
    let Some((borrower, NestedRecord { root, parent, result, .. })) = found else { return Ok(None) };
    Ok(Some(nested_record(data_id, serde_json::from_str(&borrower.submission)?, result, (root, parent))))
}

/// Part of the files in `parent`, from index `first`. The statements must see one state of the database.
fn page_of(
    connection: &Connection,
    places: &Places,
    parent: DataId,
    (first, size): (u32, u32),
) -> Result<Page, StoreFault> {
    let members = borrowed::members(connection, places, parent)?;
    let recorded_under = match &members {
        Members::Own => parent,
        Members::Of(_, lender) => *lender,
    };
    let total = borrowed::members_recorded(connection, recorded_under)?;
    let end = i64::from(first) + i64::from(size.min(PAGE_RECORDS_MAX));
    let found = all(
        connection,
        "SELECT id, data_id, root, parent, ordinal, path, result FROM nested
         WHERE parent = ?1 AND ordinal >= ?2 AND ordinal < ?3 ORDER BY ordinal",
        (recorded_under, first, end),
        Found::of,
    )?;
    let records = match &members {
        Members::Own => found.into_iter().map(|found| found.record).collect(),
        Members::Of(borrower, _) => borrowed::borrow_page(connection, places, borrower, parent, found)?,
    };
    Ok(Page { records, total })
}

/// Notes a claim and looks who else has one. One statement writes.
fn claim(
    connection: &Connection,
    data_id: DataId,
    key: VerdictKey,
    until_ms: i64,
    now_ms: i64,
) -> Result<Claim, StoreFault> {
    let claimed = one(
        connection,
        "UPDATE analysis SET state = 1, claim_key = ?1, claim_until_ms = ?2, started_ms = ?3,
             claim_order = CASE WHEN claim_key = ?1 AND claim_until_ms > ?3 AND claim_until_ms <= ?3 + ?5 THEN claim_order ELSE
                 (SELECT coalesce(max(claim_order), 0) + 1 FROM analysis WHERE claim_key = ?1 AND state = 1) END
         WHERE data_id = ?4 AND state < 2 RETURNING claim_order",
        (key.0, until_ms, now_ms, data_id, to_i64(LEASE_MS_MAX)),
        |row| Ok(row.get::<_, i64>(0)?),
    )?;
    let Some(order) = claimed else { return Ok(Claim::Nothing) };
    let twin = any(
        connection,
        "SELECT 1 FROM analysis WHERE claim_key = ?1 AND state = 1 AND claim_until_ms > ?2 AND claim_until_ms <= ?2 + ?4
             AND claim_order < ?3 LIMIT 1",
        (key.0, now_ms, order, to_i64(LEASE_MS_MAX)),
    )?;
    Ok(if twin { Claim::Twin } else { Claim::Yours })
}

impl SqliteBackend {
    async fn exists(&self, data_id: DataId) -> bool {
        matches!(self.readers.read(move |connection| root_of(connection, data_id)).await, Ok(Some(_)))
    }
}

#[async_trait]
impl ResultStore for SqliteBackend {
    async fn create(&self, new: &NewAnalysis) -> Result<(), StoreError> {
        let operation = "record analysis";
        let submission = to_json(new).map_err(on(operation, new.data_id))?;
        let Digests([md5, sha1, sha256, sha512]) = Digests::of(&new.file);
        let batch = new.sent_along.batch;
        let allowed = to_json(&new.rule.allowed_codes).map_err(on(operation, new.data_id))?;
        // One statement, so that a batch can't be closed between the look at it and the insert.
        let insert = self.writer.execute(
            "INSERT INTO analysis (data_id, state, blob, md5, sha1, sha256, sha512, queued_ms, submission, user_id,
                 batch_id, batch_ordinal, allowed_codes, callback_ms, passwords)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10,
                 ?11, (SELECT coalesce(max(batch_ordinal) + 1, 0) FROM analysis WHERE batch_id = ?11), ?12, ?13, ?14
             WHERE ?11 IS NULL OR EXISTS (SELECT 1 FROM batch WHERE batch_id = ?11 AND closed_ms IS NULL)
             ON CONFLICT (data_id) DO NOTHING",
            (
                new.data_id,
                state_to_i64(State::Queued),
                new.blob.clone(),
                md5,
                sha1,
                sha256,
                sha512,
                to_i64(new.queued_ms),
                submission,
                new.principal.user_id.clone(),
                batch,
                batch.map(|_| allowed),
                new.sent_along.callback_url.as_ref().map(|_| to_i64(new.queued_ms)),
                new.passwords.as_ref().map(|sealed| sealed.0.clone()),
            ),
        );
        let created = match insert.await {
            Ok(true) => Ok(()),
            Ok(false) if batch.is_some() && !self.exists(new.data_id).await => Err(StoreFault::BatchClosed),
            Ok(false) => Err(StoreFault::Exists),
            Err(fault) => Err(fault),
        };
        created.map_err(on(operation, new.data_id))
    }

    async fn start(&self, data_id: DataId, now_ms: u64) -> Result<bool, StoreError> {
        let update = self.writer.execute(
            "UPDATE analysis SET state = ?1, started_ms = ?2 WHERE data_id = ?3 AND state < 2",
            (state_to_i64(State::Running), to_i64(now_ms), data_id),
        );
        update.await.map_err(on("start analysis", data_id))
    }

    async fn claim(&self, data_id: DataId, key: VerdictKey, until_ms: u64, now_ms: u64) -> Result<Claim, StoreError> {
        let (until_ms, now_ms) = (to_i64(until_ms), to_i64(now_ms));
        let claiming = self.writer.write(move |connection| claim(connection, data_id, key, until_ms, now_ms));
        claiming.await.map_err(on("start analysis", data_id))
    }

    async fn extend_claim(&self, data_id: DataId, until_ms: u64) -> Result<(), StoreError> {
        let update = self.writer.execute(
            "UPDATE analysis SET claim_until_ms = ?1 WHERE data_id = ?2 AND state = 1",
            (to_i64(until_ms), data_id),
        );
        update.await.map(drop).map_err(on("extend the claim of", data_id))
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
        let finishing = self
            .writer
            .write(move |connection| borrowed::finish(connection, &places, (data_id, source), result, now_ms));
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
            self.writer.write(|connection| insert_nested(connection, rows)).await
        };
        recorded.await.map_err(on("record files nested in", first.root))
    }

    async fn finish(&self, data_id: DataId, result: &FileResult, now_ms: u64) -> Result<bool, StoreError> {
        let operation = "finish analysis";
        let json = to_json(result).map_err(on(operation, data_id))?;
        let state = if result.own == ResultCode::CANCELLED { State::Cancelled } else { State::Done };
        let update = self.writer.execute(
            "UPDATE analysis SET state = ?1, result = ?2, finished_ms = ?3, overall = ?4, passwords = NULL
             WHERE data_id = ?5 AND state < 2",
            (state_to_i64(state), json, to_i64(now_ms), i64::from(result.overall.code()), data_id),
        );
        update.await.map_err(on(operation, data_id))
    }

    async fn get(&self, data_id: DataId) -> Result<Option<AnalysisRecord>, StoreError> {
        let places = self.places.clone();
        let reading = self.readers.read(move |connection| {
            let mut record = root_of(connection, data_id)?;
            if record.is_none() {
                record = nested_of(connection, data_id)?;
            }
            if record.is_none() {
                record = borrowed_of(connection, &places, data_id)?;
            }
            Ok(record)
        });
        reading.await.map_err(on("read analysis", data_id))
    }

    async fn nested(&self, parent: DataId, first: u32, size: u32) -> Result<Page, StoreError> {
        let places = self.places.clone();
        let reading = self
            .readers
            .read(move |connection| at_one_moment(connection, || page_of(connection, &places, parent, (first, size))));
        reading.await.map_err(on("read files nested in", parent))
    }

    async fn unfinished(&self, before_ms: u64, limit: u32) -> Result<Vec<DataId>, StoreError> {
        let reading = self.readers.read(move |connection| {
            let text = "SELECT data_id FROM analysis WHERE state < 2 AND (queued_ms < ?1 OR queued_ms > ?1 + ?3)
                 ORDER BY queued_ms, id LIMIT ?2";
            all(connection, text, (to_i64(before_ms), limit, to_i64(LEASE_MS_MAX)), |row| Ok(row.get(0)?))
        });
        reading.await.map_err(|source| StoreError {
            operation: "list",
            object: "unfinished analyses".to_owned(),
            source,
        })
    }

    async fn request_cancel(&self, data_id: DataId) -> Result<bool, StoreError> {
        let text = "UPDATE analysis SET cancel_requested = 1 WHERE data_id = ?1 AND state < 2";
        self.writer.execute(text, (data_id,)).await.map_err(on("cancel analysis", data_id))
    }

    async fn cancel_requested(&self, data_id: DataId) -> Result<bool, StoreError> {
        let reading = self.readers.read(move |connection| {
            any(connection, "SELECT 1 FROM analysis WHERE data_id = ?1 AND cancel_requested = 1", (data_id,))
        });
        reading.await.map_err(on("read analysis", data_id))
    }

    async fn count_unfinished(&self) -> Result<u64, StoreError> {
        let counting = self.readers.read(|connection| {
            one(connection, "SELECT count(*) FROM analysis WHERE state < 2", (), |row| Ok(to_u64(row.get(0)?)))
        });
        let count = counting.await.map_err(|source| StoreError {
            operation: "count",
            object: "unfinished analyses".to_owned(),
            source,
        });
        Ok(count?.unwrap_or(0))
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

    async fn due_callbacks(
        &self,
        now_ms: u64,
        after: Option<(u64, DataId)>,
        limit: u32,
    ) -> Result<Vec<Callback>, StoreError> {
        let due = self.read_callbacks(now_ms, after, limit).await;
        due.map_err(|source| StoreError { operation: "list", object: "callbacks".to_owned(), source })
    }

    async fn callback_tried(&self, data_id: DataId, next_ms: Option<u64>) -> Result<bool, StoreError> {
        let update = self.writer.execute(
            "UPDATE analysis SET callback_ms = ?1, callback_attempts = callback_attempts + 1
             WHERE data_id = ?2 AND callback_ms IS NOT NULL",
            (next_ms.map(to_i64), data_id),
        );
        update.await.map_err(on("note a callback of analysis", data_id))
    }

    async fn expire(&self, before_ms: u64, limit: u32) -> Result<u64, StoreError> {
        let removed = self.remove_step(before_ms, limit).await;
        removed.map_err(|source| StoreError { operation: "remove", object: "what has expired".to_owned(), source })
    }
}
