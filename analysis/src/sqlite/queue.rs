//! Tasks in SQLite.
//!
//! A task's row says from when it may be leased (`ready_ms`): that is the end of the lease while it is leased, so that an
//! expired lease needs nobody to notice. An end that lies further off than any lease lasts is past as well: the clock was set
//! back. The token tells whether a lease is still its holder's.
//!
//! Owners take turns by numbers (start-time fair queueing): a task's turn is one after its owner's last, but not before the
//! turn that is being served, so that who was away has saved nothing up. Leasing is then one walk along an index.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Row;

use super::connection::{all, any, one};
use super::{SqliteBackend, on, to_i64, to_u64};
use crate::id::{DataId, random_bytes};
use crate::store::{
    LEASE_MS_MAX, Lease, LeaseToken, OLDEST_EVERY, QueueDepth, SMALL_FILE_BYTES, StoreError, StoreFault, Task,
    TaskKind, TaskQueue,
};

/// How often a waiting worker looks for tasks that other processes pushed, or whose lease or delay ended. It is what a file
/// waits on an idle station of several processes; one look is one read of about 0.1 ms.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Most tasks that one call leases.
const LEASE_MAX: usize = 1000;

fn on_queue(operation: &'static str) -> impl FnOnce(StoreFault) -> StoreError {
    move |source| StoreError { operation, object: "the task queue".to_owned(), source }
}

fn on_lease(operation: &'static str, token: &LeaseToken) -> impl FnOnce(StoreFault) -> StoreError {
    let object = token.0.clone();
    move |source| StoreError { operation, object, source }
}

fn to_lease(row: &Row<'_>) -> Result<Lease, StoreFault> {
    let attempts = row.get("attempts")?;
    Ok(Lease {
        task: Task {
            data_id: row.get("data_id")?,
            // The schema admits no other.
            kind: TaskKind::Scan,
            attempts,
            enqueued_ms: to_u64(row.get("enqueued_ms")?),
            owner: row.get("owner")?,
            priority: row.get("priority")?,
            size_bytes: to_u64(row.get("size_bytes")?),
        },
        token: LeaseToken(row.get("token")?),
        attempts,
        releases: row.get("releases")?,
    })
}

/// A way to lease tasks.
struct Which {
    /// Whether there are any.
    any: &'static str,
    /// Leases them.
    lease: &'static str,
}

/// Both statements over the tasks that `$which` names, which is a whole rest of a statement, so that it has its index.
macro_rules! which {
    ($which:literal) => {
        Which {
            any: concat!("SELECT 1 ", $which, " LIMIT 1"),
            lease: concat!(
                "UPDATE task SET attempts = attempts + 1, ready_ms = ?2, worker = ?3, token = ?4 || '-' || id
                 WHERE id IN (SELECT id ",
                $which,
                " LIMIT ?5)
                 RETURNING data_id, attempts, releases, enqueued_ms, token, owner, priority, size_bytes, turn"
            ),
        }
    };
}

/// Which tasks are leased, and in what order.
const BY_TURN: Which =
    which!("FROM task WHERE (ready_ms <= ?1 OR ready_ms > ?1 + 3600000) ORDER BY priority DESC, turn, id");
const SMALL_BY_TURN: Which = which!(
    "FROM task WHERE (ready_ms <= ?1 OR ready_ms > ?1 + 3600000) AND size_bytes <= 1048576
     ORDER BY priority DESC, turn, id"
);
const BY_AGE: Which = which!("FROM task WHERE (ready_ms <= ?1 OR ready_ms > ?1 + 3600000) ORDER BY enqueued_ms, id");
const _: () = assert!(LEASE_MS_MAX == 3_600_000, "it stands in the statements");
const _: () = assert!(SMALL_FILE_BYTES == 1_048_576, "it stands in SMALL_BY_TURN and in the index's definition");

impl SqliteBackend {
    async fn lease_which(
        &self,
        which: Which,
        worker: &str,
        max: usize,
        lease_ms: u64,
        now_ms: u64,
    ) -> Result<Vec<Lease>, StoreError> {
        let now = to_i64(now_ms);
        if max == 0 {
            return Ok(Vec::new());
        }
        // An idle worker asks often; it should not take the write lock for that.
        let looking = self.readers.read(move |connection| any(connection, which.any, (now,)));
        if !looking.await.map_err(on_queue("look into"))? {
            return Ok(Vec::new());
        }
        let until = to_i64(now_ms.saturating_add(lease_ms));
        let values = (now, until, worker.to_owned(), hex::encode(random_bytes()), max.min(LEASE_MAX) as i64);
        let leasing = self.writer.write(move |connection| {
            all(connection, which.lease, values, |row| Ok((row.get::<_, i64>("turn")?, to_lease(row)?)))
        });
        let mut leases = leasing.await.map_err(on_queue("lease tasks from"))?;
        // RETURNING promises no order.
        leases.sort_by_key(|(turn, lease)| (u8::MAX - lease.task.priority, *turn));
        Ok(leases.into_iter().map(|(_, lease)| lease).collect())
    }
}

#[async_trait]
impl TaskQueue for SqliteBackend {
    async fn push(&self, task: Task) -> Result<bool, StoreError> {
        let data_id = task.data_id;
        let kind = match task.kind {
            TaskKind::Scan => "scan",
        };
        let insert = self.writer.execute(
            "INSERT INTO task (data_id, kind, attempts, enqueued_ms, owner, priority, size_bytes, turn)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, max(
                 coalesce((SELECT max(turn) + 1 FROM task WHERE priority = ?6 AND owner = ?5), 0),
                 coalesce((SELECT turn FROM task WHERE priority = ?6 AND token IS NULL ORDER BY turn LIMIT 1),
                          (SELECT max(turn) FROM task WHERE priority = ?6), 0))
             WHERE true ON CONFLICT (data_id) DO NOTHING",
            (
                data_id,
                kind,
                task.attempts,
                to_i64(task.enqueued_ms),
                task.owner,
                task.priority,
                to_i64(task.size_bytes),
            ),
        );
        let queued = insert.await.map_err(on("queue task", data_id))?;
        if queued {
            self.leasable.notify_one();
        }
        Ok(queued)
    }

    async fn lease(&self, worker: &str, max: usize, lease_ms: u64, now_ms: u64) -> Result<Vec<Lease>, StoreError> {
        let number = self.leases.fetch_add(1, Ordering::Relaxed);
        let which = if number % OLDEST_EVERY == OLDEST_EVERY - 1 { BY_AGE } else { BY_TURN };
        self.lease_which(which, worker, max, lease_ms, now_ms).await
    }

    async fn lease_small(
        &self,
        worker: &str,
        max: usize,
        lease_ms: u64,
        now_ms: u64,
    ) -> Result<Vec<Lease>, StoreError> {
        self.lease_which(SMALL_BY_TURN, worker, max, lease_ms, now_ms).await
    }

    async fn extend(&self, token: &LeaseToken, lease_ms: u64, now_ms: u64) -> Result<bool, StoreError> {
        let until = to_i64(now_ms.saturating_add(lease_ms));
        let update = self.writer.execute("UPDATE task SET ready_ms = ?1 WHERE token = ?2", (until, token.0.clone()));
        update.await.map_err(on_lease("extend lease", token))
    }

    async fn ack(&self, token: &LeaseToken) -> Result<bool, StoreError> {
        let delete = self.writer.execute("DELETE FROM task WHERE token = ?1", (token.0.clone(),));
        delete.await.map_err(on_lease("acknowledge lease", token))
    }

    async fn release(&self, token: &LeaseToken, delay_ms: u64, now_ms: u64) -> Result<bool, StoreError> {
        let update = self.writer.execute(
            "UPDATE task SET token = NULL, worker = NULL, attempts = attempts - 1, releases = releases + 1,
                 ready_ms = ?1 WHERE token = ?2",
            (to_i64(now_ms.saturating_add(delay_ms)), token.0.clone()),
        );
        let released = update.await.map_err(on_lease("release lease", token))?;
        if released && delay_ms == 0 {
            self.leasable.notify_one();
        }
        Ok(released)
    }

    async fn unlease(&self, token: &LeaseToken) -> Result<bool, StoreError> {
        let update = self.writer.execute(
            "UPDATE task SET token = NULL, worker = NULL, attempts = attempts - 1, ready_ms = 0 WHERE token = ?1",
            (token.0.clone(),),
        );
        update.await.map_err(on_lease("give back lease", token))
    }

    async fn survived(&self, data_id: DataId) -> Result<(), StoreError> {
        // Whoever has the task now keeps its own attempt.
        let update = self.writer.execute(
            "UPDATE task SET attempts = attempts - 1, releases = releases + 1
             WHERE data_id = ?1 AND attempts > (token IS NOT NULL)",
            (data_id,),
        );
        update.await.map(drop).map_err(on("forgive task", data_id))
    }

    async fn depth(&self) -> Result<QueueDepth, StoreError> {
        let counting = self.readers.read(|connection| {
            let text = "SELECT count(*), count(token) FROM task";
            one(connection, text, (), |row| Ok((row.get(0)?, row.get(1)?)))
        });
        let (all, leased): (i64, i64) = counting.await.map_err(on_queue("count"))?.unwrap_or_default();
        Ok(QueueDepth { queued: to_u64(all - leased), leased: to_u64(leased) })
    }

    async fn waiting_by_owner(&self) -> Result<Vec<(String, u64)>, StoreError> {
        // One walk along `task_owner`: some 20 ms for a hundred thousand tasks.
        let counting = self.readers.read(|connection| {
            let text = "SELECT owner, count(*) FROM task GROUP BY owner";
            all(connection, text, (), |row| Ok((row.get(0)?, to_u64(row.get(1)?))))
        });
        counting.await.map_err(on_queue("count by owner"))
    }

    async fn oldest_ms(&self) -> Result<Option<u64>, StoreError> {
        let looking = self.readers.read(|connection| {
            one(connection, "SELECT min(enqueued_ms) FROM task", (), |row| Ok(row.get::<_, Option<i64>>(0)?))
        });
        Ok(looking.await.map_err(on_queue("look into"))?.flatten().map(to_u64))
    }

    async fn contains(&self, data_id: DataId) -> Result<bool, StoreError> {
        let looking =
            self.readers.read(move |connection| any(connection, "SELECT 1 FROM task WHERE data_id = ?1", (data_id,)));
        looking.await.map_err(on("look for task", data_id))
    }

    async fn wait(&self, timeout: Duration) {
        // Whether the notification or the time comes first, the caller looks for tasks next.
        let _ = tokio::time::timeout(timeout.min(POLL_INTERVAL), self.leasable.notified()).await;
    }
}
