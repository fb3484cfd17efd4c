//! Opening the file that identities are kept in.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use crate::error::IdentityFault;

/// How long a write waits for another process' write. Those are short; whoever holds one longer hangs.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections. Keys that were accepted a moment ago need none.
const CONNECTIONS_MAX: u32 = 4;

static MIGRATOR: Migrator = sqlx::migrate!();

/// Opens the file, creates it if it is missing, and brings its schema up to this build's.
pub(crate) async fn open(path: &Path) -> Result<SqlitePool, IdentityFault> {
    let lock = lock_schema(path).await?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging();
    let pool = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(BUSY_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        // The connections lead to a file, not over a network: none goes stale.
        .test_before_acquire(false)
        .connect_with(options)
        .await?;
    let known = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
    MIGRATOR.run(&pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(found) if found > known => IdentityFault::NewerSchema { found, known },
        other => IdentityFault::Schema(other),
    })?;
    drop(lock);
    Ok(pool)
}

/// The lock that whoever uses the file shares, held until the returned file is dropped. Whoever replaces it holds it alone.
pub(crate) fn share(path: &Path) -> Result<File, IdentityFault> {
    let lock = owner_only(&beside(path, ".open"))?;
    lock.try_lock_shared().map_err(|error| refused(error, "it is being restored"))?;
    Ok(lock)
}

/// The same lock for one alone.
pub(crate) fn alone(path: &Path) -> Result<File, IdentityFault> {
    let lock = owner_only(&beside(path, ".open"))?;
    lock.try_lock().map_err(|error| refused(error, "it is in use: stop every gateway that has it open"))?;
    Ok(lock)
}

fn refused(error: TryLockError, why: &'static str) -> IdentityFault {
    match error {
        TryLockError::WouldBlock => IdentityFault::InUse(why),
        TryLockError::Error(error) => error.into(),
    }
}

/// Removes the lock of a file that will not be opened under this name again.
pub(crate) fn forget_lock(path: &Path) {
    let _ = std::fs::remove_file(beside(path, ".lock"));
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(suffix);
    beside.into()
}

fn owner_only(path: &Path) -> std::io::Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

/// Waits until no other process changes the schema, and creates the file for its owner alone. The lock, on `<path>.lock`,
/// is held until the returned file is dropped: SQLite has none that holds over several migrations.
async fn lock_schema(path: &Path) -> Result<File, IdentityFault> {
    let path = path.to_owned();
    let locked = tokio::task::spawn_blocking(move || {
        let lock = owner_only(&beside(&path, ".lock"))?;
        lock.lock()?;
        // SQLite gives its own files the mode of this one.
        owner_only(&path)?;
        Ok(lock)
    });
    locked.await.map_err(|_| IdentityFault::ShuttingDown)?
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::key::{ApiKey, KeyHash};
    use crate::{Identity, Role};

    #[tokio::test]
    async fn an_older_builds_file_opens_and_its_keys_stay_good() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("i.db");
        let first =
            Migrator { migrations: Cow::Owned(MIGRATOR.iter().take(1).cloned().collect()), ..Migrator::DEFAULT };
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true).foreign_keys(true);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        first.run(&pool).await.unwrap();
        sqlx::query("INSERT INTO user VALUES ('0a', 'admin', 'administrator'), ('0b', 'bob', 'submitter')")
            .execute(&pool)
            .await
            .unwrap();
        let key = ApiKey::random().unwrap();
        sqlx::query("INSERT INTO api_key VALUES ($1, '0b')")
            .bind(KeyHash::old_of(&key.0).unwrap().0.to_vec())
            .execute(&pool)
            .await
            .unwrap();
        pool.close().await;

        let identity = Identity::open(&path).await.unwrap();
        assert!(identity.keys("bob").await.unwrap()[0].prefix.starts_with("old-"));
        let principal = identity.authenticate(&key.0).await.unwrap().unwrap();
        assert_eq!((principal.user_id.as_str(), &principal.role), ("0b", &Role::Submitter));
        assert_eq!(identity.keys("bob").await.unwrap()[0].prefix, key.prefix(), "kept by its SHA-256 now");
        let again = Identity::open(&path).await.unwrap();
        assert_eq!(again.authenticate(&key.0).await.unwrap(), Some(principal));
        // References to the tables that were made anew hold.
        again.remove_user(&crate::Actor::system(), "bob").await.unwrap();
        assert!(again.authenticate(&key.0).await.unwrap().is_none());
        assert_eq!(again.users().await.unwrap().len(), 1);
        let orphans: Vec<(String,)> =
            sqlx::query_as("SELECT \"table\" FROM pragma_foreign_key_check").fetch_all(&again.database).await.unwrap();
        assert!(orphans.is_empty(), "{orphans:?}");
    }
}
