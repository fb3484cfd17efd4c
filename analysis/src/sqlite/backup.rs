//! Copies of the results while they are in use, and their way back. The users' file, which is of another crate, may go along: a
//! backup that has it carries a copy of it in a table of its own, which restored results don't have. What is in that file
//! is not looked at here.
//!
//! Invariants:
//! - A backup is the results as of one moment (SQLite's `VACUUM INTO`, one read transaction): it holds whatever was
//!   acknowledged before it began, and writers don't wait for it. The users are as of a moment after that. It exists under
//!   its name only when it is whole, checked and durable.
//! - Results are restored only while no process has them open: each back-end holds a shared lock of `<path>.open`.
//! - What is restored is checked in full, and brought up to this build's schema, beside the results before it takes their
//!   place in one step. What was there before stays, under another name.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::Connection;

use super::{MIGRATOR, connection, lock_schema, migrate, migration_options, to_u64};
use crate::store::{StoreError, StoreFault};

/// The longest users' file that goes along, below the longest value that SQLite takes (10^9 bytes). It is read whole; one of a
/// hundred thousand users with a full audit log is a tenth of that.
const USERS_BYTES_MAX: u64 = 512 << 20;

/// A copy of the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Analyses in it.
    pub analyses: u64,
    /// Of these, those that are not finished.
    pub unfinished: u64,
    /// Its length.
    pub bytes: u64,
}

/// Copies the results at `path`, and the SQLite file `users` with them, to `target`, which must not be there yet. Both may
/// be in use.
pub async fn backup(path: &Path, users: Option<&Path>, target: &Path) -> Result<Copied, StoreError> {
    let (path, users, to) = (path.to_owned(), users.map(Path::to_owned), target.to_owned());
    on("back up the results to", target, blocking(move || try_backup(&path, users.as_deref(), &to)).await)
}

/// Writes the users' file that the backup `from` carries to `to`, which must not be there yet, and checks it. False if it carries
/// none, as those of older builds.
pub async fn users_in(from: &Path, to: &Path) -> Result<bool, StoreError> {
    let (backup, to) = (from.to_owned(), to.to_owned());
    on("read the users from", from, blocking(move || try_users_in(&backup, &to)).await)
}

/// Puts the SQLite file `prepared` in the place of the one at `path`, which nobody may have open, in one step. Returns under which
/// name the former one is kept, if there was one.
pub async fn put_in_place(path: &Path, prepared: &Path) -> Result<Option<PathBuf>, StoreError> {
    let (place, prepared) = (path.to_owned(), prepared.to_owned());
    on("replace", path, blocking(move || replace(&place, &prepared)).await)
}

/// Puts the backup `from` in the place of the results at `path`, which nobody may have open. Also returns under which name
/// the former results are kept, if there were any.
pub async fn restore(path: &Path, from: &Path) -> Result<(Copied, Option<PathBuf>), StoreError> {
    on("restore the results from", from, try_restore(path, from).await)
}

/// Off the threads that must not block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreFault> + Send + 'static,
) -> Result<T, StoreFault> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreFault::Closed)?
}

fn on<T>(operation: &'static str, object: &Path, outcome: Result<T, StoreFault>) -> Result<T, StoreError> {
    outcome.map_err(|source| StoreError { operation, object: object.display().to_string(), source })
}

/// The lock that whoever uses the results shares, held until the file is dropped. A restore holds it alone.
pub(super) fn share(path: &Path) -> Result<File, StoreFault> {
    let lock_path = beside(path, ".open");
    let file = open_lock(&lock_path)?;
    file.try_lock_shared().map_err(|error| refused(path, &lock_path, error, "they are being restored"))?;
    Ok(file)
}

fn alone(path: &Path) -> Result<File, StoreFault> {
    let lock_path = beside(path, ".open");
    let file = open_lock(&lock_path)?;
    file.try_lock()
        .map_err(|error| refused(path, &lock_path, error, "stop every gateway and scan worker that has them open"))?;
    Ok(file)
}

fn open_lock(path: &Path) -> Result<File, StoreFault> {
    let opened = File::options().create(true).truncate(false).read(true).write(true).open(path);
    opened.map_err(|error| io_fault(path, error))
}

fn refused(path: &Path, lock: &Path, error: TryLockError, why: &'static str) -> StoreFault {
    match error {
        TryLockError::WouldBlock => StoreFault::InUse { path: path.display().to_string(), why },
        TryLockError::Error(error) => io_fault(lock, error),
    }
}

fn try_backup(path: &Path, users: Option<&Path>, target: &Path) -> Result<Copied, StoreFault> {
    if target.exists() {
        return Err(StoreFault::TargetExists(target.display().to_string()));
    }
    let partial = beside(target, ".partial");
    // For its owner's eyes alone, as the results are. What an earlier attempt left is begun anew.
    let made = File::options().create(true).write(true).truncate(true).mode(0o600).open(&partial);
    made.map_err(|error| io_fault(&partial, error))?;
    let copied = fill(path, users, &partial);
    if copied.is_ok() {
        // Unlike a rename this replaces nothing.
        fs::hard_link(&partial, target).map_err(|error| io_fault(target, error))?;
    }
    let _ = fs::remove_file(&partial);
    let copied = copied?;
    sync_folder(target)?;
    Ok(copied)
}

fn fill(path: &Path, users: Option<&Path>, partial: &Path) -> Result<Copied, StoreFault> {
    copy_into(path, partial)?;
    if let Some(users) = users {
        let copy = beside(partial, ".users");
        let carried = carry(users, &copy, partial);
        let _ = fs::remove_file(&copy);
        carried?;
    }
    let copied = check(partial)?;
    sync(partial)?;
    Ok(copied)
}

/// Fills the empty file `to` with what is in a SQLite file at one moment.
fn copy_into(path: &Path, to: &Path) -> Result<(), StoreFault> {
    // The name goes in as a value; an empty file is filled, anything else refused.
    connect(path)?.execute("VACUUM INTO ?1", (to.display().to_string(),))?;
    Ok(())
}

/// Puts a copy of the users' file into the backup, by way of the file `copy`.
fn carry(users: &Path, copy: &Path, backup: &Path) -> Result<(), StoreFault> {
    let _ = fs::remove_file(copy);
    make(copy)?;
    copy_into(users, copy)?;
    check_pages(&connect(copy)?, copy)?;
    let length = fs::metadata(copy).map_err(|error| io_fault(copy, error))?.len();
    if length > USERS_BYTES_MAX {
        let longer = format!("{} has {length} bytes, more than {USERS_BYTES_MAX}", users.display());
        return Err(StoreFault::NoBackup(longer));
    }
    let content = fs::read(copy).map_err(|error| io_fault(copy, error))?;
    let connection = connect(backup)?;
    connection.execute("CREATE TABLE users_file (content BLOB NOT NULL)", ())?;
    connection.execute("INSERT INTO users_file (content) VALUES (?1)", (content,))?;
    close(connection)
}

fn try_users_in(from: &Path, to: &Path) -> Result<bool, StoreFault> {
    // A damaged backup is refused before anything is believed that is in it.
    check(from)?;
    let connection = connect(from)?;
    if !carries_users(&connection)? {
        return Ok(false);
    }
    let text = "SELECT content FROM users_file LIMIT 1";
    let content = connection::one(&connection, text, (), |row| Ok(row.get::<_, Vec<u8>>(0)?))?;
    close(connection)?;
    let Some(content) = content else { return Ok(false) };
    make(to)?.write_all(&content).map_err(|error| io_fault(to, error))?;
    check_pages(&connect(to)?, to)?;
    sync(to)?;
    Ok(true)
}

fn carries_users(backup: &Connection) -> Result<bool, StoreFault> {
    connection::any(backup, "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'users_file'", ())
}

/// A new file for its owner's eyes alone.
fn make(path: &Path) -> Result<File, StoreFault> {
    let made = File::options().create_new(true).write(true).mode(0o600).open(path);
    made.map_err(|error| io_fault(path, error))
}

/// That every page of a SQLite file is sound.
fn check_pages(connection: &Connection, path: &Path) -> Result<(), StoreFault> {
    let findings = connection::all(connection, "PRAGMA integrity_check(10)", (), |row| Ok(row.get::<_, String>(0)?))
        .map_err(|error| not_one_of_ours(path, &error.to_string()))?;
    if findings == ["ok"] {
        return Ok(());
    }
    Err(StoreFault::NoBackup(format!("{} is damaged: {}", path.display(), findings.join("; "))))
}

fn not_one_of_ours(path: &Path, reason: &str) -> StoreFault {
    StoreFault::NoBackup(format!("{} is no backup of this program ({reason})", path.display()))
}

/// That a file is sound results of this build or an earlier one; what is in it.
fn check(path: &Path) -> Result<Copied, StoreFault> {
    let not_results = |reason: String| not_one_of_ours(path, &reason);
    let connection = connect(path)?;
    check_pages(&connection, path)?;
    let found: Option<i64> = connection
        .query_row("SELECT max(version) FROM _sqlx_migrations WHERE success", (), |row| row.get(0))
        .map_err(|error| not_results(error.to_string()))?;
    let known = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
    match found {
        None => return Err(not_results("nothing was ever written to it".to_owned())),
        Some(found) if found > known => return Err(StoreFault::NewerSchema { found, known }),
        Some(_) => {}
    }
    let text = "SELECT count(*), count(*) FILTER (WHERE state < 2) FROM analysis";
    let (analyses, unfinished) = connection
        .query_row(text, (), |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(|error| not_results(error.to_string()))?;
    close(connection)?;
    let bytes = fs::metadata(path).map_err(|error| io_fault(path, error))?.len();
    Ok(Copied { analyses: to_u64(analyses), unfinished: to_u64(unfinished), bytes })
}

async fn try_restore(path: &Path, from: &Path) -> Result<(Copied, Option<PathBuf>), StoreFault> {
    // Whoever starts waits for the first lock, or is refused by the second.
    let _starting = lock_schema(path).await?;
    let _alone = alone(path)?;
    let restoring = beside(path, ".restoring");
    let (backup, copy) = (from.to_owned(), restoring.clone());
    blocking(move || check(&backup)).await?;
    let kept = match prepare(from, &restoring).await {
        Ok(copied) => {
            let path = path.to_owned();
            blocking(move || replace(&path, &copy)).await.map(|kept| (copied, kept))
        }
        Err(fault) => Err(fault),
    };
    if kept.is_err() {
        let _ = fs::remove_file(&restoring);
    }
    kept
}

/// A copy of the backup beside the results, of this build's schema, sound and durable.
async fn prepare(from: &Path, restoring: &Path) -> Result<Copied, StoreFault> {
    let (backup, copy) = (from.to_owned(), restoring.to_owned());
    blocking(move || copy_results(&backup, &copy)).await?;
    migrate(migration_options(restoring)).await?;
    let copy = restoring.to_owned();
    let checked = blocking(move || {
        let copied = check(&copy)?;
        sync(&copy)?;
        Ok(copied)
    });
    checked.await
}

/// Makes the file `copy` of the backup, without the users.
fn copy_results(backup: &Path, copy: &Path) -> Result<(), StoreFault> {
    let _ = fs::remove_file(copy);
    make(copy)?;
    // Rather than the bytes of one file: what was restored may have a log beside it that belongs to it.
    copy_into(backup, copy)?;
    let connection = connect(copy)?;
    if carries_users(&connection)? {
        // They go to a file of their own, and leave nothing of theirs here.
        connection.execute_batch("DROP TABLE users_file; VACUUM")?;
    }
    close(connection)
}

/// Puts `restoring` in the place of the results, which are kept under another name.
fn replace(path: &Path, restoring: &Path) -> Result<Option<PathBuf>, StoreFault> {
    let kept = if path.exists() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let kept = beside(path, &format!(".before-{}", now.as_millis()));
        settle(path);
        fs::hard_link(path, &kept).map_err(|error| io_fault(&kept, error))?;
        // What can't be settled, since the results are damaged, goes with them: it must not be taken for the backup's.
        for suffix in ["-wal", "-shm"] {
            let (log, log_kept) = (beside(path, suffix), beside(&kept, suffix));
            match fs::rename(&log, &log_kept) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io_fault(&log, error)),
                _ => {}
            }
        }
        Some(kept)
    } else {
        None
    };
    fs::rename(restoring, path).map_err(|error| io_fault(path, error))?;
    sync_folder(path)?;
    Ok(kept)
}

/// Brings what is only in the log into the file, as far as that is possible.
fn settle(path: &Path) {
    let settled = connect(path).and_then(|connection| {
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))?;
        close(connection)
    });
    if let Err(error) = settled {
        tracing::warn!(path = %path.display(), %error, "the log of the former results stays beside them");
    }
}

fn connect(path: &Path) -> Result<Connection, StoreFault> {
    // SQLite says of a file that is missing no more than that it can't be opened.
    fs::metadata(path).map_err(|error| io_fault(path, error))?;
    connection::open(path)
}

fn close(connection: Connection) -> Result<(), StoreFault> {
    Ok(connection.close().map_err(|(_, error)| error)?)
}

fn sync(path: &Path) -> Result<(), StoreFault> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| io_fault(path, error))
}

fn sync_folder(path: &Path) -> Result<(), StoreFault> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync(folder)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(suffix);
    beside.into()
}

fn io_fault(path: &Path, error: std::io::Error) -> StoreFault {
    StoreFault::Io { path: path.display().to_string(), source: Arc::new(error) }
}
