//! The one writing connection of a process, and group commit: changes that wait are carried out in one transaction, and
//! each is answered after that transaction was committed. The connection is a thread's of its own, so that a group is one
//! hop, however many statements it has.
//!
//! Invariants:
//! - A change is answered with success only after the commit that contains it.
//! - A change writes with one statement, or with several as one (`all_or_none`), unless each may stand alone: where it fails,
//!   nothing is left in the group's transaction.
//! - A failed begin or commit fails the whole group, and so does a change that panics or ends the transaction. The next group
//!   starts on a new connection.
//!
//! While one group commits, the next gathers by itself. That alone would be thousands of commits a second of one or two
//! changes each, where a commit costs more than its changes: it writes anew each page that they touched, and a few are
//! touched by all. So commits are paced (`Pace`): the first of a burst are made at once, after them one each 3 ms.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Params};
use tokio::sync::{mpsc, oneshot};

use super::connection::{execute, open_to_write};
use super::{fault, panicked, spawn_thread};
use crate::store::StoreFault;

/// Most changes that wait. Whoever comes later waits to be let in.
const WAITING_MAX: usize = 256;

/// Most changes in one transaction, so that a heartbeat behind them never waits long.
const GROUP_MAX: usize = 128;

/// One commit each so often where many want one, and how many may come at once before: more than a file's changes, so that
/// a lone file never waits.
const COMMIT_EVERY: Duration = Duration::from_millis(3);
const COMMITS_AT_ONCE: u32 = 16;

/// Hands changes to the writing thread. That ends when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Writer {
    changes: mpsc::Sender<Box<dyn Change>>,
}

impl Writer {
    /// Starts the writing thread on a `connection` to the file at `path`; a broken one is replaced.
    pub(super) fn spawn(connection: Connection, path: PathBuf) -> Result<Self, StoreFault> {
        let (changes, waiting) = mpsc::channel(WAITING_MAX);
        let thread = WritingThread { connection: Some(connection), path, waiting };
        spawn_thread("results-write", move || thread.run())?;
        Ok(Self { changes })
    }

    /// Carries out a single statement and returns whether it changed any row, once that is durable.
    pub(super) async fn execute<P>(&self, text: &'static str, values: P) -> Result<bool, StoreFault>
    where
        P: Params + Send + 'static,
    {
        self.write(move |connection| Ok(execute(connection, text, values)? > 0)).await
    }

    /// Carries out `change` and returns what it said once that is durable. If the caller goes away it happens all the same.
    pub(super) async fn write<T, F>(&self, change: F) -> Result<T, StoreFault>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreFault> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let change = PendingChange { change: Some(change), said: None, answer };
        self.changes.send(Box::new(change)).await.map_err(|_| StoreFault::Closed)?;
        answered.await.map_err(|_| StoreFault::Closed)?
    }
}

/// A change whatever it answers with.
trait Change: Send {
    /// Carries it out within the transaction on `connection`, and keeps what it said.
    fn apply(&mut self, connection: &Connection);

    /// Answers it, now that the fate of its transaction is known.
    fn answer(self: Box<Self>, committed: Result<(), StoreFault>);
}

struct PendingChange<T, F> {
    change: Option<F>,
    said: Option<Result<T, StoreFault>>,
    answer: oneshot::Sender<Result<T, StoreFault>>,
}

impl<T, F> Change for PendingChange<T, F>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreFault> + Send + 'static,
{
    fn apply(&mut self, connection: &Connection) {
        if let Some(change) = self.change.take() {
            self.said = Some(change(connection));
        }
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreFault>) {
        let Self { said, answer, .. } = *self;
        // A caller that went away needs no answer.
        let _ = answer.send(committed.and_then(|()| said.unwrap_or(Err(StoreFault::Closed))));
    }
}

/// When commits may be made: a bucket of `COMMITS_AT_ONCE`, one more each `COMMIT_EVERY`.
struct Pace {
    /// When the bucket is full again.
    full: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// Takes a commit from the bucket: how long to wait until it is there.
    fn pause(&mut self, now: Instant) -> Duration {
        self.full = self.full.max(now) + COMMIT_EVERY;
        (self.full - now).saturating_sub(COMMIT_EVERY * COMMITS_AT_ONCE)
    }
}

struct WritingThread {
    /// Absent after a failure, until the next group.
    connection: Option<Connection>,
    path: PathBuf,
    waiting: mpsc::Receiver<Box<dyn Change>>,
}

impl WritingThread {
    fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        let mut pace = Pace::new(Instant::now());
        while self.waiting.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            let pause = pace.pause(Instant::now());
            if !pause.is_zero() {
                std::thread::sleep(pause);
                while group.len() < GROUP_MAX
                    && let Ok(change) = self.waiting.try_recv()
                {
                    group.push(change);
                }
            }
            let committed = catch_unwind(AssertUnwindSafe(|| self.commit(&mut group)));
            let committed = committed.unwrap_or_else(|_| Err(panicked()));
            if let Err(error) = &committed {
                tracing::error!(changes = group.len(), %error, "database transaction failed");
                // With it goes what it did not commit.
                self.connection = None;
            }
            for change in group.drain(..) {
                change.answer(committed.clone());
            }
        }
    }

    fn commit(&mut self, group: &mut [Box<dyn Change>]) -> Result<(), StoreFault> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            absent => absent.insert(open_to_write(&self.path)?),
        };
        // Deferred, the transaction would begin as a read and could fail at its first write, behind another process'.
        execute(connection, "BEGIN IMMEDIATE", ())?;
        for change in group {
            change.apply(connection);
            if connection.is_autocommit() {
                // SQLite does so when the disk is full or fails.
                return Err(fault("the database undid the transaction".to_owned()));
            }
        }
        execute(connection, "COMMIT", ())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::connection::{all, all_or_none};
    use super::*;

    const CREATE: &str = "CREATE TABLE row (value INTEGER NOT NULL)";

    async fn writer(directory: &Path) -> Writer {
        let path = directory.join("w.db");
        std::fs::write(&path, "").unwrap();
        let writer = Writer::spawn(open_to_write(&path).unwrap(), path).unwrap();
        writer.execute(CREATE, ()).await.unwrap();
        writer
    }

    async fn insert(writer: &Writer, value: Option<i64>) -> Result<bool, StoreFault> {
        writer.execute("INSERT INTO row VALUES (?1)", (value,)).await
    }

    async fn values(writer: &Writer) -> Vec<i64> {
        let values = writer.write(|connection| all(connection, "SELECT value FROM row", (), |row| Ok(row.get(0)?)));
        values.await.unwrap()
    }

    #[tokio::test]
    async fn what_was_not_committed_is_not_acknowledged_and_the_next_group_works() {
        let directory = tempfile::tempdir().unwrap();
        let writer = writer(directory.path()).await;
        assert!(insert(&writer, Some(1)).await.unwrap());

        // SQLite ends a transaction by itself like this when the disk is full or fails.
        let lost = writer.write(|connection| {
            execute(connection, "INSERT INTO row VALUES (2)", ())?;
            execute(connection, "ROLLBACK", ())
        });
        let (lost, after_it) = tokio::join!(lost, insert(&writer, Some(3)));
        assert!(matches!(lost, Err(StoreFault::Backend(_))), "{lost:?}");
        // In the same group it shares its fate.
        let expected = if after_it.is_ok() { vec![1, 3] } else { vec![1] };
        assert_eq!(values(&writer).await, expected);

        let refused = insert(&writer, None).await;
        assert!(matches!(refused, Err(StoreFault::Backend(_))), "{refused:?}");
        assert!(insert(&writer, Some(4)).await.unwrap(), "the next group works");
        assert_eq!(values(&writer).await, [expected, vec![4]].concat());
    }

    #[tokio::test]
    async fn a_change_that_fails_leaves_nothing_and_its_group_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let writer = writer(directory.path()).await;
        let several = writer.write(|connection| {
            all_or_none(connection, || {
                execute(connection, "INSERT INTO row VALUES (1)", ())?;
                execute(connection, "INSERT INTO row VALUES (NULL)", ())
            })
        });
        let (several, before, after) = tokio::join!(several, insert(&writer, Some(2)), insert(&writer, Some(3)));
        assert!(matches!(several, Err(StoreFault::Backend(_))), "{several:?}");
        assert!(before.unwrap() && after.unwrap());
        assert_eq!(values(&writer).await, [2, 3]);
    }

    #[tokio::test]
    async fn a_change_that_panics_is_an_error_and_the_next_group_works() {
        let directory = tempfile::tempdir().unwrap();
        let writer = writer(directory.path()).await;
        let lost: Result<(), _> = writer
            .write(|connection| {
                execute(connection, "INSERT INTO row VALUES (1)", ())?;
                panic!("as it should")
            })
            .await;
        assert!(lost.unwrap_err().to_string().contains("panicked"));
        assert!(insert(&writer, Some(2)).await.unwrap());
        assert_eq!(values(&writer).await, [2]);
    }

    #[test]
    fn a_burst_is_committed_at_once_and_after_it_one_group_each_three_milliseconds() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..COMMITS_AT_ONCE {
            assert_eq!(pace.pause(start), Duration::ZERO);
        }
        assert_eq!(pace.pause(start), COMMIT_EVERY);
        let mut now = start + COMMIT_EVERY;
        for _ in 0..1_000 {
            let pause = pace.pause(now);
            assert_eq!(pause, COMMIT_EVERY, "each takes what came since");
            now += pause;
        }
        now += COMMIT_EVERY * 10;
        let at_once = (0..100).take_while(|_| pace.pause(now).is_zero()).count();
        assert_eq!(at_once, 10, "as many as the time that passed");
        now += Duration::from_secs(3600);
        let at_once = (0..100).take_while(|_| pace.pause(now).is_zero()).count();
        assert_eq!(at_once, COMMITS_AT_ONCE as usize, "no more than the bucket holds");
    }

    /// Commits in a log: pages of which the head says how long the file is after them.
    fn commits(log: &Path) -> usize {
        let log = std::fs::read(log).unwrap();
        let page_bytes = u32::from_be_bytes(log[8..12].try_into().unwrap()) as usize;
        log[32..].chunks_exact(24 + page_bytes).filter(|page| page[4..8] != [0; 4]).count()
    }

    #[tokio::test]
    async fn changes_that_wait_share_commits_and_go_on_without_their_callers() {
        const CHANGES: i64 = 1_000;
        let directory = tempfile::tempdir().unwrap();
        let writer = writer(directory.path()).await;
        let before = commits(&directory.path().join("w.db-wal"));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let holding = tokio::spawn({
            let writer = writer.clone();
            async move { writer.write(move |_| Ok(held.recv().is_ok())).await }
        });
        let gone = tokio::spawn({
            let writer = writer.clone();
            async move { insert(&writer, Some(-1)).await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        let mut changes = tokio::task::JoinSet::new();
        for value in 0..CHANGES {
            let writer = writer.clone();
            changes.spawn(async move { insert(&writer, Some(value)).await });
        }
        release.send(()).unwrap();
        assert!(holding.await.unwrap().unwrap());
        assert!(changes.join_all().await.into_iter().all(|changed| changed.unwrap()));
        let commits = commits(&directory.path().join("w.db-wal")) - before;
        println!("{CHANGES} changes in {commits} commits");
        assert!(commits < 100, "{CHANGES} changes in {commits} commits");
        let mut values = values(&writer).await;
        values.sort_unstable();
        assert_eq!(values, (-1..CHANGES).collect::<Vec<_>>());
    }
}
