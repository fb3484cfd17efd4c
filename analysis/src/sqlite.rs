//! The embedded back-end: one SQLite file for results, tasks and progress, shared by the processes of one host.
//!
//! Invariants:
//! - A write returns after its transaction's log was synced (WAL, `synchronous=FULL`). Many writes that wait share one
//!   transaction and so one sync: see `writer`.
//! - Every write transaction begins IMMEDIATE, so that none fails half-way because another process wrote.
//! - Reads have connections of their own and never wait for a write: see `readers`.
//! - The schema is changed under a file lock, `<path>.lock`, by one process; a file of a newer schema is refused.
//!
//! It does not spread over hosts (SQLite's locks don't hold over network file systems), and it
//! deletes nothing by itself.

pub mod backup;
mod batches;
mod borrowed;
mod connection;
mod history;
mod lookup;
mod progress;
mod queue;
mod readers;
mod reports;
mod results;
mod shares;
mod verdicts;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use sqlx::ConnectOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::Notify;

use crate::id::DataId;
use crate::store::{StoreError, StoreFault};
use borrowed::Places;
use readers::Readers;
use writer::Writer;

/// How long a write waits for another process' write transaction. Those are short; whoever holds one longer hangs.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

static MIGRATOR: Migrator = sqlx::migrate!();

/// The embedded back-end of all three seams. Clones share its connections.
#[derive(Clone)]
pub struct SqliteBackend {
    readers: Readers,
    writer: Writer,
    /// Told when a task became leasable in this process.
    leasable: Arc<Notify>,
    /// How often this process asked for tasks.
    leases: Arc<AtomicU64>,
    /// Makes the ids of borrowed members.
    places: Places,
    /// How many verdicts are kept at most, and how many this process has kept.
    verdicts_max: u64,
    verdicts_kept: Arc<AtomicU64>,
    /// Says to other processes that the results are in use.
    _open: Arc<File>,
}

impl SqliteBackend {
    /// Opens the file at `path`, which is created if it is missing; its directory is not. Must be called within a tokio
    /// runtime.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        Self::open_file(path).await.map_err(|source| StoreError {
            operation: "open the database",
            object: path.display().to_string(),
            source,
        })
    }

    async fn open_file(path: &Path) -> Result<Self, StoreFault> {
        // SQLite has no lock that holds over several migrations, and switching to WAL needs the file alone.
        let lock = lock_schema(path).await?;
        let shared = path.to_owned();
        let open =
            tokio::task::spawn_blocking(move || backup::share(&shared)).await.map_err(|_| StoreFault::Closed)??;
        let options = migration_options(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", format!("-{}", connection::WRITE_CACHE_KIB));
        migrate(options).await?;
        let file = path.to_owned();
        let starting = tokio::task::spawn_blocking(move || {
            let connection = connection::open_to_write(&file)?;
            let places = Places::load(&connection)?;
            Ok::<_, StoreFault>((Writer::spawn(connection, file)?, places))
        });
        let (writer, places) = starting.await.map_err(|_| StoreFault::Closed)??;
        drop(lock);

        Ok(Self {
            readers: Readers::open(path.to_owned()).await?,
            writer,
            leasable: Arc::new(Notify::new()),
            leases: Arc::default(),
            places,
            verdicts_max: verdicts::VERDICTS_MAX,
            verdicts_kept: Arc::default(),
            _open: Arc::new(open),
        })
    }

    /// The same back-end over connections of its own for reads. A gateway and a worker of one process share the rest; but
    /// clients that poll by the thousand would take all connections, and the worker's every read would wait behind theirs.
    pub async fn with_own_readers(&self) -> Result<Self, StoreError> {
        let path = self.readers.path();
        let readers = Readers::open(path.to_owned()).await.map_err(|source| StoreError {
            operation: "open for reading",
            object: path.display().to_string(),
            source,
        })?;
        Ok(Self { readers, ..self.clone() })
    }

    /// The same, with so many verdicts kept at most. Default: 250,000.
    #[must_use]
    pub fn with_verdicts_max(self, verdicts_max: u64) -> Self {
        Self { verdicts_max, ..self }
    }
}

impl std::fmt::Debug for SqliteBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqliteBackend")
    }
}

/// Waits until no other process changes the schema. The lock is held until the file is dropped.
async fn lock_schema(path: &Path) -> Result<File, StoreFault> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let fault = |path: &Path, error: std::io::Error| StoreFault::Io {
        path: path.display().to_string(),
        source: Arc::new(error),
    };
    tokio::task::spawn_blocking(move || {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(|error| fault(&lock_path, error))?;
        file.lock().map_err(|error| fault(&lock_path, error))?;
        Ok(file)
    })
    .await
    .map_err(|_| StoreFault::Closed)?
}

fn migration_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT).disable_statement_logging()
}

/// Brings the schema of a file up to this build's. That is all that sqlx does here, on a connection of its own.
async fn migrate(options: SqliteConnectOptions) -> Result<(), StoreFault> {
    // The migrator takes a bare connection only in a future that can't be sent to another thread.
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    let known = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
    let migrated = MIGRATOR.run(&pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(found) if found > known => StoreFault::NewerSchema { found, known },
        other => StoreFault::Backend(Arc::new(other)),
    });
    pool.close().await;
    migrated
}

/// Starts a thread that lives as long as there is work for it.
fn spawn_thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StoreFault> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map(drop).map_err(|error| StoreFault::Backend(Arc::new(error)))
}

/// What became of a read or a change that has a bug. The panic itself is in the log.
fn panicked() -> StoreFault {
    fault("the operation on the database panicked".to_owned())
}

fn fault(message: String) -> StoreFault {
    StoreFault::Backend(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(message)))
}

impl From<rusqlite::Error> for StoreFault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Backend(Arc::new(error))
    }
}

impl From<sqlx::Error> for StoreFault {
    fn from(error: sqlx::Error) -> Self {
        Self::Backend(Arc::new(error))
    }
}

impl From<serde_json::Error> for StoreFault {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// An error of `operation` on the analysis or nested file `data_id`.
fn on(operation: &'static str, data_id: DataId) -> impl FnOnce(StoreFault) -> StoreError {
    move |source| StoreError { operation, object: data_id.to_string(), source }
}

/// A count or a time as SQLite keeps it. What doesn't fit is 292 million years away.
fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A count or a time as SQLite kept it.
fn to_u64(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl ToSql for DataId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for DataId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        FromSql::column_result(value).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::readers::{READER_WAIT, READERS_MAX};
    use super::*;
    use crate::conformance;
    use crate::store::ResultStore;

    #[tokio::test]
    async fn reads_over_own_connections_do_not_wait_behind_those_of_others() {
        let directory = tempfile::tempdir().unwrap();
        let backend = SqliteBackend::open(directory.path().join("a.db")).await.unwrap();
        let own = backend.with_own_readers().await.unwrap();
        let new = conformance::sample_analysis(DataId::random());
        backend.create(&new).await.unwrap();
        let (mut releases, mut held) = (Vec::new(), tokio::task::JoinSet::new());
        for _ in 0..READERS_MAX {
            let (release, released) = std::sync::mpsc::channel::<()>();
            let readers = backend.readers.clone();
            held.spawn(async move { readers.read(move |_| Ok(released.recv().is_ok())).await });
            releases.push(release);
        }
        tokio::task::yield_now().await;
        let read = tokio::time::timeout(READER_WAIT / 2, ResultStore::get(&own, new.data_id));
        assert_eq!(read.await.unwrap().unwrap().unwrap().new, new);
        assert!(held.try_join_next().is_none());
        drop(releases);
        held.join_all().await;
        assert!(ResultStore::get(&backend, new.data_id).await.unwrap().is_some());
    }
}
