//! What workers say of themselves, and callbacks that are due, in SQLite.

use rusqlite::Row;

use super::connection::{all, execute, from_json};
use super::results::to_json;
use super::{SqliteBackend, to_i64, to_u64};
use crate::id::DataId;
use crate::store::{CALLBACK_DELAY_MS_MAX, Callback, LEASE_MS_MAX, PAGE_RECORDS_MAX, StoreFault};
use crate::worker_report::WorkerReport;

/// How long the report of a worker that is gone stays. It is removed when another one reports.
const REPORT_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

impl SqliteBackend {
    pub(super) async fn note_worker(&self, report: &WorkerReport, now_ms: u64) -> Result<(), StoreFault> {
        let values = (report.name.clone(), to_i64(now_ms), to_json(report)?);
        let too_old = to_i64(now_ms.saturating_sub(REPORT_KEPT_MS));
        // Nor does one stay that comes from before the clock was set back: its worker would seem to live on.
        let too_young = to_i64(now_ms.saturating_add(LEASE_MS_MAX));
        let noted = self.writer.write(move |connection| {
            let gone = "DELETE FROM worker WHERE reported_ms < ?1 OR reported_ms > ?2";
            execute(connection, gone, (too_old, too_young))?;
            execute(
                connection,
                "INSERT INTO worker (name, reported_ms, report) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET reported_ms = excluded.reported_ms, report = excluded.report",
                values,
            )
        });
        noted.await.map(drop)
    }

    pub(super) async fn read_workers(&self, since_ms: u64) -> Result<Vec<WorkerReport>, StoreFault> {
        let reading = self.readers.read(move |connection| {
            let text = "SELECT report FROM worker WHERE reported_ms >= ?1 ORDER BY name";
            all(connection, text, (to_i64(since_ms),), |row| from_json(row, "report"))
        });
        reading.await
    }

    pub(super) async fn read_callbacks(
        &self,
        now_ms: u64,
        after: Option<(u64, DataId)>,
        limit: u32,
    ) -> Result<Vec<Callback>, StoreFault> {
        let (after_ms, after_id) = after.map_or((-1, DataId([0; 16])), |(due_ms, id)| (to_i64(due_ms), id));
        let callback = |row: &Row<'_>| {
            Ok(Callback {
                data_id: row.get("data_id")?,
                url: row.get("url")?,
                attempts: u32::try_from(row.get::<_, i64>("callback_attempts")?).unwrap_or(u32::MAX),
                due_ms: to_u64(row.get("callback_ms")?),
            })
        };
        let reading = self.readers.read(move |connection| {
            all(
                connection,
                "SELECT data_id, callback_ms, callback_attempts, coalesce(json_extract(submission, '$.sent_along.callback_url'), '') AS url
                 FROM analysis WHERE callback_ms IS NOT NULL AND state >= 2 AND expired = 0
                     AND (callback_ms <= ?1 OR callback_ms > ?1 + ?3)
                     AND (callback_ms, data_id) > (?4, ?5)
                 ORDER BY callback_ms, data_id LIMIT ?2",
                (to_i64(now_ms), limit.min(PAGE_RECORDS_MAX), to_i64(CALLBACK_DELAY_MS_MAX), after_ms, after_id),
                callback,
            )
        });
        reading.await
    }
}
