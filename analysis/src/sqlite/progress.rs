//! Progress in SQLite.

use async_trait::async_trait;

use super::connection::one;
use super::{SqliteBackend, on};
use crate::id::DataId;
use crate::store::{PROGRESS_PERCENT_MAX, Progress, ProgressCache, StoreError};

#[async_trait]
impl ProgressCache for SqliteBackend {
    async fn set(&self, data_id: DataId, progress: Progress) -> Result<(), StoreError> {
        let upsert = self.writer.execute(
            "INSERT INTO progress (data_id, percent, last_file) VALUES (?1, ?2, ?3) ON CONFLICT (data_id) DO UPDATE
                 SET percent = max(percent, excluded.percent), last_file = excluded.last_file",
            (data_id, progress.percent.min(PROGRESS_PERCENT_MAX), progress.last_file),
        );
        upsert.await.map(drop).map_err(on("note progress of", data_id))
    }

    async fn get(&self, data_id: DataId) -> Result<Option<Progress>, StoreError> {
        let reading = self.readers.read(move |connection| {
            one(connection, "SELECT percent, last_file FROM progress WHERE data_id = ?1", (data_id,), |row| {
                Ok(Progress { percent: row.get("percent")?, last_file: row.get("last_file")? })
            })
        });
        reading.await.map_err(on("read progress of", data_id))
    }

    async fn remove(&self, data_id: DataId) -> Result<(), StoreError> {
        let delete = self.writer.execute("DELETE FROM progress WHERE data_id = ?1", (data_id,));
        delete.await.map(drop).map_err(on("forget progress of", data_id))
    }
}
