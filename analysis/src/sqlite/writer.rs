//! The one writing connection of a process, and group commit: changes that wait are carried out in one transaction, and
//! each is answered after that transaction was committed.
//!
//! Invariants:
//! - A change is answered with success only after the commit that contains it.
//! - A change writes with one statement: where that fails, SQLite undoes it, and nothing is left in the group's transaction.
//! - A failed begin or commit fails the whole group, and the next group starts on a new connection.
//!
//! There is no delay to gather a group: while one commits, the next gathers by itself.

use std::future::Future;
use std::pin::Pin;

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Sqlite};
use tokio::sync::{mpsc, oneshot};

use crate::store::StoreFault;

/// Most changes that wait. Whoever comes later waits to be let in.
const WAITING_MAX: usize = 256;

/// Most changes in one transaction, so that a heartbeat behind them never waits long.
const GROUP_MAX: usize = 128;

/// A change under way on the connection.
pub(super) type Changing<'c, T> = Pin<Box<dyn Future<Output = Result<T, StoreFault>> + Send + 'c>>;

/// Hands changes to the writing task. That ends when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Writer {
    changes: mpsc::Sender<Box<dyn Change>>,
}

impl Writer {
    /// Starts the writing task on `connection`; a broken one is replaced by the `options`.
    pub(super) fn spawn(connection: SqliteConnection, options: SqliteConnectOptions) -> Self {
        let (changes, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(WritingTask { connection: Some(connection), options, waiting }.run());
        Self { changes }
    }

    /// Carries out a single statement and returns whether it changed any row, once that is durable.
    pub(super) async fn execute(&self, statement: Query<'static, Sqlite, SqliteArguments>) -> Result<bool, StoreFault> {
        self.write(|connection| Box::pin(async move { Ok(statement.execute(connection).await?.rows_affected() > 0) }))
            .await
    }

    /// Carries out `change` and returns what it said once that is durable. If the caller goes away it happens all the same.
    pub(super) async fn write<T, F>(&self, change: F) -> Result<T, StoreFault>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Changing<'c, T> + Send + 'static,
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
    fn apply<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

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
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> Changing<'c, T> + Send + 'static,
{
    fn apply<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            if let Some(change) = self.change.take() {
                self.said = Some(change(connection).await);
            }
        })
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreFault>) {
        let Self { said, answer, .. } = *self;
        // A caller that went away needs no answer.
        let _ = answer.send(committed.and_then(|()| said.unwrap_or(Err(StoreFault::Closed))));
    }
}

struct WritingTask {
    /// Absent after a failure, until the next group.
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    waiting: mpsc::Receiver<Box<dyn Change>>,
}

impl WritingTask {
    async fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while self.waiting.recv_many(&mut group, GROUP_MAX).await > 0 {
            let committed = self.commit(&mut group).await.map_err(StoreFault::from);
            if let Err(error) = &committed {
                tracing::error!(changes = group.len(), %error, "database transaction failed");
                self.connection = None;
            }
            for change in group.drain(..) {
                change.answer(committed.clone());
            }
        }
        if let Some(connection) = self.connection {
            // Every change was answered already; a failure to close loses nothing.
            let _ = connection.close().await;
        }
    }

    async fn commit(&mut self, group: &mut [Box<dyn Change>]) -> Result<(), sqlx::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            absent => absent.insert(SqliteConnection::connect_with(&self.options).await?),
        };
        // Deferred, the transaction would begin as a read and could fail at its first write, behind another process'.
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for change in group {
            change.apply(&mut transaction).await;
        }
        transaction.commit().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn count(writer: &Writer) -> i64 {
        let count = writer.write(|connection| {
            Box::pin(async move { Ok(sqlx::query_scalar("SELECT count(*) FROM row").fetch_one(connection).await?) })
        });
        count.await.unwrap()
    }

    #[tokio::test]
    async fn what_was_not_committed_is_not_acknowledged_and_the_next_group_works() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new().filename(directory.path().join("w.db")).create_if_missing(true);
        let connection = SqliteConnection::connect_with(&options).await.unwrap();
        let writer = Writer::spawn(connection, options);
        writer.execute(sqlx::query("CREATE TABLE row (value INTEGER NOT NULL)")).await.unwrap();
        assert!(writer.execute(sqlx::query("INSERT INTO row VALUES (1)")).await.unwrap());

        // SQLite ends a transaction by itself like this when the disk is full or fails.
        let lost = writer.write(|connection| {
            Box::pin(async move {
                sqlx::query("INSERT INTO row VALUES (2)").execute(&mut *connection).await?;
                sqlx::query("ROLLBACK").execute(connection).await?;
                Ok(())
            })
        });
        let after_it = writer.execute(sqlx::query("INSERT INTO row VALUES (3)"));
        let (lost, after_it) = tokio::join!(lost, after_it);
        assert!(matches!(lost, Err(StoreFault::Backend(_))), "{lost:?}");
        // In the same group it shares its fate; it may only not be acknowledged and absent.
        let expected = 1 + i64::from(after_it.is_ok());
        assert!(count(&writer).await >= expected);

        let refused = writer.execute(sqlx::query("INSERT INTO row VALUES (NULL)")).await;
        assert!(matches!(refused, Err(StoreFault::Backend(_))), "{refused:?}");
        let before = count(&writer).await;
        assert!(writer.execute(sqlx::query("INSERT INTO row VALUES (4)")).await.unwrap(), "the next group works");
        assert_eq!(count(&writer).await, before + 1);
    }
}
