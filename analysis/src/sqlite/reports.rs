//! What workers say of themselves, and callbacks that are due, in SQLite.

use sqlx::Row;

use super::results::to_json;
use super::{SqliteBackend, to_i64, to_id};
use crate::store::{Callback, PAGE_RECORDS_MAX, StoreFault};
use crate::worker_report::WorkerReport;

/// How long the report of a worker that is gone stays. It is removed when another one reports.
const REPORT_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

impl SqliteBackend {
    pub(super) async fn note_worker(&self, report: &WorkerReport, now_ms: u64) -> Result<(), StoreFault> {
        let note = sqlx::query(
            "INSERT INTO worker (name, reported_ms, report) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET reported_ms = excluded.reported_ms, report = excluded.report",
        )
        .bind(report.name.clone())
        .bind(to_i64(now_ms))
        .bind(to_json(report)?);
        let forget = sqlx::query("DELETE FROM worker WHERE reported_ms < $1")
            .bind(to_i64(now_ms.saturating_sub(REPORT_KEPT_MS)));
        let noted = self.writer.write(|connection| {
            Box::pin(async move {
                forget.execute(&mut *connection).await?;
                note.execute(connection).await?;
                Ok(())
            })
        });
        noted.await
    }

    pub(super) async fn read_workers(&self, since_ms: u64) -> Result<Vec<WorkerReport>, StoreFault> {
        let reports: Vec<String> =
            sqlx::query_scalar("SELECT report FROM worker WHERE reported_ms >= $1 ORDER BY name")
                .bind(to_i64(since_ms))
                .fetch_all(&self.readers)
                .await?;
        reports.iter().map(|report| Ok(serde_json::from_str(report)?)).collect()
    }

    pub(super) async fn read_callbacks(&self, now_ms: u64, limit: u32) -> Result<Vec<Callback>, StoreFault> {
        let rows = sqlx::query(
            "SELECT data_id, callback_attempts, coalesce(json_extract(submission, '$.sent_along.callback_url'), '') AS url
             FROM analysis WHERE callback_ms IS NOT NULL AND state >= 2 AND callback_ms <= $1 AND expired = 0
             ORDER BY callback_ms LIMIT $2",
        )
        .bind(to_i64(now_ms))
        .bind(i64::from(limit.min(PAGE_RECORDS_MAX)))
        .fetch_all(&self.readers)
        .await?;
        let callback = |row: &sqlx::sqlite::SqliteRow| {
            Ok(Callback {
                data_id: to_id(row.try_get("data_id")?)?,
                url: row.try_get("url")?,
                attempts: u32::try_from(row.try_get::<i64, _>("callback_attempts")?).unwrap_or(u32::MAX),
            })
        };
        rows.iter().map(callback).collect()
    }
}
