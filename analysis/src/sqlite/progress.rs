//! Progress in SQLite.

use async_trait::async_trait;

use super::{SqliteBackend, on};
use crate::id::DataId;
use crate::store::{PROGRESS_PERCENT_MAX, Progress, ProgressCache, StoreError};

#[async_trait]
impl ProgressCache for SqliteBackend {
    async fn set(&self, data_id: DataId, progress: Progress) -> Result<(), StoreError> {
        let upsert = sqlx::query(
            "INSERT INTO progress (data_id, percent, last_file) VALUES ($1, $2, $3) ON CONFLICT (data_id) DO UPDATE
                 SET percent = max(percent, excluded.percent), last_file = excluded.last_file",
        )
        .bind(data_id.0.to_vec())
        .bind(i64::from(progress.percent.min(PROGRESS_PERCENT_MAX)))
        .bind(progress.last_file);
        self.writer.execute(upsert).await.map(drop).map_err(on("note progress of", data_id))
    }

    async fn get(&self, data_id: DataId) -> Result<Option<Progress>, StoreError> {
        let row: Result<Option<(u8, String)>, _> =
            sqlx::query_as("SELECT percent, last_file FROM progress WHERE data_id = $1")
                .bind(data_id.0.to_vec())
                .fetch_optional(&self.readers)
                .await;
        let progress = row.map(|row| row.map(|(percent, last_file)| Progress { percent, last_file }));
        progress.map_err(|error| on("read progress of", data_id)(error.into()))
    }

    async fn remove(&self, data_id: DataId) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM progress WHERE data_id = $1").bind(data_id.0.to_vec());
        self.writer.execute(delete).await.map(drop).map_err(on("forget progress of", data_id))
    }
}
