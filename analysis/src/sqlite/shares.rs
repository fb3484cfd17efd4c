//! Shares in SQLite.
//!
//! Claiming is one statement: the next range begins where the highest one ends. Deleting a share deletes its parts and ranges,
//! so that whoever held one finds out at its next step.

use std::ops::Range;

use async_trait::async_trait;
use rusqlite::Connection;

use super::connection::{all, any, at_one_moment, execute, one};
use super::{SqliteBackend, on, to_i64, to_u64};
use crate::id::{DataId, random_bytes};
use crate::share::{NewShare, PARTS_MAX, Part, PartResult, PartState, PartToken, PartView, Shares};
use crate::store::{LEASE_MS_MAX, PAGE_RECORDS_MAX, StoreError, StoreFault, has_ended};

/// Joins the first share that the worker `?2` with the pipeline `?3` may join at `?4`.
const JOIN: &str = "
    INSERT INTO share_part (token, share, worker, until_ms) SELECT ?1, share.id, ?2, ?6
    FROM share JOIN share_part AS lead ON lead.token = share.lead
    WHERE share.build = ?3 AND lead.until_ms > ?4 AND lead.until_ms <= ?4 + ?7 AND lead.result IS NULL
      AND NOT EXISTS (SELECT 1 FROM share_part AS part WHERE part.share = share.id
          AND (part.worker = ?2 OR part.taken = 1
              OR (part.result IS NULL AND (part.until_ms <= ?4 OR part.until_ms > ?4 + ?7))))
      AND (SELECT count(*) FROM share_part AS part WHERE part.share = share.id) < ?5
    ORDER BY share.id LIMIT 1 RETURNING share";

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
        let insert = self.writer.execute(
            "INSERT INTO share (root, lead, build, deadline_ms) VALUES (?1, ?2, ?3, ?4)",
            (share.root, lead.0.clone(), share.pipeline.clone(), share.deadline_ms.map(to_i64)),
        );
        insert.await?;
        // Without its lead's part nobody can join it.
        let part = self.writer.execute(
            "INSERT INTO share_part (token, share, worker, until_ms)
             SELECT ?1, id, ?2, ?3 FROM share WHERE lead = ?1",
            (lead.0.clone(), share.worker.clone(), to_i64(until_ms)),
        );
        part.await?;
        Ok(lead)
    }

    async fn delete_share(&self, root: DataId) -> Result<(), StoreFault> {
        self.writer.execute("DELETE FROM share WHERE root = ?1", (root,)).await.map(drop)
    }

    async fn join(&self, worker: &str, pipeline: &str, until_ms: u64, now_ms: u64) -> Result<Option<Part>, StoreFault> {
        // An idle worker asks often; it should not take the write lock for that.
        if !self.readers.read(|connection| any(connection, "SELECT 1 FROM share LIMIT 1", ())).await? {
            return Ok(None);
        }
        let token = new_token();
        let (worker, pipeline) = (worker.to_owned(), pipeline.to_owned());
        let lasts_max = to_i64(LEASE_MS_MAX);
        let values = (token.0.clone(), worker, pipeline, to_i64(now_ms), PARTS_MAX, to_i64(until_ms), lasts_max);
        let joining = self.writer.write(|connection| {
            let Some(share) = one(connection, JOIN, values, |row| Ok(row.get::<_, i64>(0)?))? else { return Ok(None) };
            one(connection, "SELECT root, deadline_ms FROM share WHERE id = ?1", (share,), |row| {
                Ok((row.get("root")?, row.get::<_, Option<i64>>("deadline_ms")?))
            })
        });
        let part = |(root, deadline_ms): (_, Option<i64>)| Part { root, token, deadline_ms: deadline_ms.map(to_u64) };
        Ok(joining.await?.map(part))
    }

    async fn claim_next(&self, part: &PartToken, count: u32) -> Result<Option<Range<u32>>, StoreFault> {
        let values = (part.0.clone(), count.max(1));
        let claiming = self.writer.write(|connection| {
            one(
                connection,
                "INSERT INTO share_range (share, first, count, part)
                 SELECT share, coalesce((SELECT first + count FROM share_range AS range
                     WHERE range.share = share_part.share ORDER BY first DESC LIMIT 1), 0), ?2, token
                 FROM share_part WHERE token = ?1 AND taken = 0 AND result IS NULL RETURNING first",
                values,
                |row| Ok(row.get::<_, i64>(0)?),
            )
        });
        let Some(first) = claiming.await? else { return Ok(None) };
        let first = u32::try_from(first).map_err(|_| StoreFault::Malformed(format!("member {first}")))?;
        Ok(Some(first..first.saturating_add(count.max(1))))
    }

    async fn read_parts(&self, lead: &PartToken, now_ms: u64) -> Result<Option<Vec<PartView>>, StoreFault> {
        let lead = lead.0.clone();
        let reading =
            self.readers.read(move |connection| at_one_moment(connection, || parts_of(connection, &lead, now_ms)));
        reading.await
    }

    async fn discard(&self, root: DataId, limit: u32) -> Result<u64, StoreFault> {
        let discarding = self.writer.write(move |connection| {
            execute(
                connection,
                "DELETE FROM nested WHERE id IN (SELECT nested.id FROM nested JOIN analysis ON analysis.data_id = nested.root
                     WHERE nested.root = ?1 AND analysis.state < 2 LIMIT ?2)",
                (root, limit.clamp(1, PAGE_RECORDS_MAX)),
            )
        });
        discarding.await
    }
}

fn parts_of(connection: &Connection, lead: &str, now_ms: u64) -> Result<Option<Vec<PartView>>, StoreFault> {
    let share = one(connection, "SELECT id FROM share WHERE lead = ?1", (lead,), |row| Ok(row.get::<_, i64>(0)?))?;
    let Some(share) = share else { return Ok(None) };
    let text = "SELECT token, until_ms, taken, result FROM share_part WHERE share = ?1 AND token <> ?2 ORDER BY token";
    let parts = all(connection, text, (share, lead), |part| {
        let token: String = part.get("token")?;
        let text = "SELECT first, count FROM share_range WHERE share = ?1 AND part = ?2 ORDER BY first";
        let claimed = all(connection, text, (share, &token), |range| {
            let (first, count): (u32, u32) = (range.get("first")?, range.get("count")?);
            Ok(first..first.saturating_add(count))
        })?;
        let result: Option<String> = part.get("result")?;
        let state = match result {
            Some(json) => PartState::Done(Box::new(serde_json::from_str(&json)?)),
            None if part.get("taken")? => PartState::Lost,
            None if has_ended(to_u64(part.get("until_ms")?), now_ms) => PartState::Lost,
            None => PartState::Working,
        };
        Ok(PartView { token: PartToken(token), claimed, state })
    });
    parts.map(Some)
}

#[async_trait]
impl Shares for SqliteBackend {
    async fn open_share(&self, share: &NewShare, until_ms: u64) -> Result<PartToken, StoreError> {
        self.insert_share(share, until_ms).await.map_err(on("share the file of", share.root))
    }

    async fn join_share(
        &self,
        worker: &str,
        pipeline: &str,
        until_ms: u64,
        now_ms: u64,
    ) -> Result<Option<Part>, StoreError> {
        self.join(worker, pipeline, until_ms, now_ms).await.map_err(on_share("join"))
    }

    async fn claim_members(&self, part: &PartToken, count: u32) -> Result<Option<Range<u32>>, StoreError> {
        self.claim_next(part, count).await.map_err(on_share("claim members of"))
    }

    async fn extend_part(&self, part: &PartToken, until_ms: u64) -> Result<bool, StoreError> {
        let update = self.writer.execute(
            "UPDATE share_part SET until_ms = ?1 WHERE token = ?2 AND taken = 0 AND result IS NULL",
            (to_i64(until_ms), part.0.clone()),
        );
        update.await.map_err(on_share("extend a part of"))
    }

    async fn finish_part(&self, part: &PartToken, result: &PartResult) -> Result<bool, StoreError> {
        let json = serde_json::to_string(result).map_err(StoreFault::from).map_err(on_share("finish a part of"))?;
        let update = self.writer.execute(
            "UPDATE share_part SET result = ?1 WHERE token = ?2 AND taken = 0 AND result IS NULL",
            (json, part.0.clone()),
        );
        update.await.map_err(on_share("finish a part of"))
    }

    async fn parts(&self, lead: &PartToken, now_ms: u64) -> Result<Option<Vec<PartView>>, StoreError> {
        self.read_parts(lead, now_ms).await.map_err(on_share("look at the parts of"))
    }

    async fn take_part(&self, part: &PartToken, now_ms: u64) -> Result<bool, StoreError> {
        let update = self.writer.execute(
            "UPDATE share_part SET taken = 1 WHERE token = ?1 AND taken = 0 AND result IS NULL
                 AND (until_ms <= ?2 OR until_ms > ?2 + ?3)",
            (part.0.clone(), to_i64(now_ms), to_i64(LEASE_MS_MAX)),
        );
        update.await.map_err(on_share("take a part of"))
    }

    async fn close_share(&self, root: DataId) -> Result<(), StoreError> {
        self.delete_share(root).await.map_err(on("close the share of", root))
    }

    async fn discard_nested(&self, root: DataId, limit: u32) -> Result<u64, StoreError> {
        self.discard(root, limit).await.map_err(on("discard files nested in", root))
    }
}
