//! Shares in SQLite.
//!
//! Claiming is one statement: the next range begins where the highest one ends. Deleting a share deletes its parts and ranges,
//! so that whoever held one finds out at its next step.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::Row;

use super::{SqliteBackend, on, to_i64, to_id, to_u64};
use crate::id::{DataId, random_bytes};
use crate::share::{NewShare, PARTS_MAX, Part, PartResult, PartState, PartToken, PartView, Shares};
use crate::store::{PAGE_RECORDS_MAX, StoreError, StoreFault};

/// What a share must be to be joined by the worker `$2` of build `$3` at `$4`.
const JOINABLE: &str = "
    FROM share JOIN share_part AS lead ON lead.token = share.lead
    WHERE share.build = $3 AND lead.until_ms > $4 AND lead.result IS NULL
      AND NOT EXISTS (SELECT 1 FROM share_part AS part WHERE part.share = share.id
          AND (part.worker = $2 OR part.taken = 1 OR (part.result IS NULL AND part.until_ms <= $4)))
      AND (SELECT count(*) FROM share_part AS part WHERE part.share = share.id) < $5
    ORDER BY share.id LIMIT 1";

fn on_share(operation: &'static str) -> impl FnOnce(StoreFault) -> StoreError {
    move |source| StoreError { operation, object: "a shared container".to_owned(), source }
}

fn new_token() -> PartToken {
    PartToken(hex::encode(random_bytes()))
}

impl SqliteBackend {
    async fn insert_share(&self, share: &NewShare, until_ms: u64) -> Result<PartToken, StoreFault> {
        let lead = new_token();
        // First the deletion alone: a former share's parts are lost even if this process dies in between.
        self.delete_share(share.root).await?;
        let insert = sqlx::query("INSERT INTO share (root, lead, build, deadline_ms) VALUES ($1, $2, $3, $4)")
            .bind(share.root.0.to_vec())
            .bind(lead.0.clone())
            .bind(share.build.clone())
            .bind(share.deadline_ms.map(to_i64));
        self.writer.execute(insert).await?;
        // Without its lead's part nobody can join it.
        let part = sqlx::query(
            "INSERT INTO share_part (token, share, worker, until_ms)
             SELECT $1, id, $2, $3 FROM share WHERE lead = $1",
        )
        .bind(lead.0.clone())
        .bind(share.worker.clone())
        .bind(to_i64(until_ms));
        self.writer.execute(part).await?;
        Ok(lead)
    }

    async fn delete_share(&self, root: DataId) -> Result<(), StoreFault> {
        let delete = sqlx::query("DELETE FROM share WHERE root = $1").bind(root.0.to_vec());
        self.writer.execute(delete).await.map(drop)
    }

    async fn join(&self, worker: &str, build: &str, until_ms: u64, now_ms: u64) -> Result<Option<Part>, StoreFault> {
        // An idle worker asks often; it should not take the write lock for that.
        if sqlx::query("SELECT 1 FROM share LIMIT 1").fetch_optional(&self.readers).await?.is_none() {
            return Ok(None);
        }
        let token = new_token();
        let insert = format!(
            "INSERT INTO share_part (token, share, worker, until_ms) SELECT $1, share.id, $2, $6 {JOINABLE} RETURNING share"
        );
        let insert = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(insert))
            .bind(token.0.clone())
            .bind(worker.to_owned())
            .bind(build.to_owned())
            .bind(to_i64(now_ms))
            .bind(i64::from(PARTS_MAX))
            .bind(to_i64(until_ms));
        let joined = self.writer.write(|connection| {
            Box::pin(async move {
                let Some(share) = insert.fetch_optional(&mut *connection).await? else { return Ok(None) };
                let row = sqlx::query("SELECT root, deadline_ms FROM share WHERE id = $1").bind(share);
                let row = row.fetch_one(connection).await?;
                let deadline_ms: Option<i64> = row.try_get("deadline_ms")?;
                Ok(Some((to_id(row.try_get("root")?)?, deadline_ms.map(to_u64))))
            })
        });
        Ok(joined.await?.map(|(root, deadline_ms)| Part { root, token, deadline_ms }))
    }

    async fn claim_next(&self, part: &PartToken, count: u32) -> Result<Option<Range<u32>>, StoreFault> {
        let insert = sqlx::query_scalar::<_, i64>(
            "INSERT INTO share_range (share, first, count, part)
             SELECT share, coalesce((SELECT first + count FROM share_range AS range
                 WHERE range.share = share_part.share ORDER BY first DESC LIMIT 1), 0), $2, token
             FROM share_part WHERE token = $1 AND taken = 0 AND result IS NULL RETURNING first",
        )
        .bind(part.0.clone())
        .bind(i64::from(count.max(1)));
        let first = self
            .writer
            .write(|connection| Box::pin(async move { Ok(insert.fetch_optional(connection).await?) }))
            .await?;
        let Some(first) = first else { return Ok(None) };
        let first = u32::try_from(first).map_err(|_| StoreFault::Malformed(format!("member {first}")))?;
        Ok(Some(first..first.saturating_add(count.max(1))))
    }

    async fn read_parts(&self, lead: &PartToken, now_ms: u64) -> Result<Option<Vec<PartView>>, StoreFault> {
        let mut reading = self.readers.begin().await?;
        let share: Option<i64> = sqlx::query_scalar("SELECT id FROM share WHERE lead = $1")
            .bind(lead.0.clone())
            .fetch_optional(&mut *reading)
            .await?;
        let Some(share) = share else { return Ok(None) };
        let parts = sqlx::query(
            "SELECT token, until_ms, taken, result FROM share_part WHERE share = $1 AND token <> $2 ORDER BY token",
        )
        .bind(share)
        .bind(lead.0.clone())
        .fetch_all(&mut *reading)
        .await?;
        let mut views = Vec::with_capacity(parts.len());
        for part in parts {
            let token: String = part.try_get("token")?;
            let ranges =
                sqlx::query("SELECT first, count FROM share_range WHERE share = $1 AND part = $2 ORDER BY first")
                    .bind(share)
                    .bind(token.clone())
                    .fetch_all(&mut *reading)
                    .await?;
            let claimed = ranges.iter().map(|range| {
                let (first, count): (u32, u32) = (range.try_get("first")?, range.try_get("count")?);
                Ok(first..first.saturating_add(count))
            });
            let claimed = claimed.collect::<Result<Vec<_>, StoreFault>>()?;
            let result: Option<String> = part.try_get("result")?;
            let state = match result {
                Some(json) => PartState::Done(Box::new(serde_json::from_str(&json)?)),
                None if part.try_get::<i64, _>("taken")? != 0 => PartState::Lost,
                None if to_u64(part.try_get("until_ms")?) <= now_ms => PartState::Lost,
                None => PartState::Working,
            };
            views.push(PartView { token: PartToken(token), claimed, state });
        }
        Ok(Some(views))
    }

    async fn discard(&self, root: DataId, limit: u32) -> Result<u64, StoreFault> {
        let delete = sqlx::query(
            "DELETE FROM nested WHERE id IN (SELECT nested.id FROM nested JOIN analysis ON analysis.data_id = nested.root
                 WHERE nested.root = $1 AND analysis.state < 2 LIMIT $2)",
        )
        .bind(root.0.to_vec())
        .bind(i64::from(limit.clamp(1, PAGE_RECORDS_MAX)));
        self.writer
            .write(|connection| Box::pin(async move { Ok(delete.execute(connection).await?.rows_affected()) }))
            .await
    }
}

#[async_trait]
impl Shares for SqliteBackend {
    async fn open_share(&self, share: &NewShare, until_ms: u64) -> Result<PartToken, StoreError> {
        self.insert_share(share, until_ms).await.map_err(on("share the file of", share.root))
    }

    async fn join_share(
        &self,
        worker: &str,
        build: &str,
        until_ms: u64,
        now_ms: u64,
    ) -> Result<Option<Part>, StoreError> {
        self.join(worker, build, until_ms, now_ms).await.map_err(on_share("join"))
    }

    async fn claim_members(&self, part: &PartToken, count: u32) -> Result<Option<Range<u32>>, StoreError> {
        self.claim_next(part, count).await.map_err(on_share("claim members of"))
    }

    async fn extend_part(&self, part: &PartToken, until_ms: u64) -> Result<bool, StoreError> {
        let update =
            sqlx::query("UPDATE share_part SET until_ms = $1 WHERE token = $2 AND taken = 0 AND result IS NULL")
                .bind(to_i64(until_ms))
                .bind(part.0.clone());
        self.writer.execute(update).await.map_err(on_share("extend a part of"))
    }

    async fn finish_part(&self, part: &PartToken, result: &PartResult) -> Result<bool, StoreError> {
        let json = serde_json::to_string(result).map_err(StoreFault::from).map_err(on_share("finish a part of"))?;
        let update = sqlx::query("UPDATE share_part SET result = $1 WHERE token = $2 AND taken = 0 AND result IS NULL")
            .bind(json)
            .bind(part.0.clone());
        self.writer.execute(update).await.map_err(on_share("finish a part of"))
    }

    async fn parts(&self, lead: &PartToken, now_ms: u64) -> Result<Option<Vec<PartView>>, StoreError> {
        self.read_parts(lead, now_ms).await.map_err(on_share("look at the parts of"))
    }

    async fn take_part(&self, part: &PartToken, now_ms: u64) -> Result<bool, StoreError> {
        let update = sqlx::query(
            "UPDATE share_part SET taken = 1 WHERE token = $1 AND taken = 0 AND result IS NULL AND until_ms <= $2",
        )
        .bind(part.0.clone())
        .bind(to_i64(now_ms));
        self.writer.execute(update).await.map_err(on_share("take a part of"))
    }

    async fn close_share(&self, root: DataId) -> Result<(), StoreError> {
        self.delete_share(root).await.map_err(on("close the share of", root))
    }

    async fn discard_nested(&self, root: DataId, limit: u32) -> Result<u64, StoreError> {
        self.discard(root, limit).await.map_err(on("discard files nested in", root))
    }
}
