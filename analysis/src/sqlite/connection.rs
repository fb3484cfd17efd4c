//! Connections to the file, and statements on one.
//!
//! A connection belongs to one thread, which carries out whole changes and whole reads: handing each statement over would
//! cost two changes of threads, many times what most statements take. Texts are constant, so that each is prepared once a
//! connection; lists go row by row.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Params, Row};
use serde::de::DeserializeOwned;

use super::BUSY_TIMEOUT;
use crate::store::StoreFault;

/// Memory for pages while writing. Indexes over digests are touched all over; with SQLite's own 2 MiB a large container's
/// rows spend most of their time fetching index pages again.
pub(super) const WRITE_CACHE_KIB: u32 = 64 * 1024;

/// Pages that the log grows by before they go to where they belong: 16 MiB. Those of an index are written many times to the log, and
/// once from there; with SQLite's own 1,000 that took a tenth of the time of a large container.
const LOG_PAGES: u32 = 4000;

/// Statements that a connection keeps prepared, more than there are texts.
const STATEMENTS_KEPT: usize = 128;

/// A connection to a file that is there, for whatever.
pub(super) fn open(path: &Path) -> Result<Connection, StoreFault> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    // Else a statement is prepared again for each value that might decide whether a partial index serves it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

/// The writer's. That the file has a log is part of the file since it was migrated.
pub(super) fn open_to_write(path: &Path) -> Result<Connection, StoreFault> {
    let connection = open(path)?;
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -{WRITE_CACHE_KIB};
         PRAGMA wal_autocheckpoint = {LOG_PAGES}"
    ))?;
    Ok(connection)
}

/// A reader's.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreFault> {
    let connection = open(path)?;
    connection.execute_batch("PRAGMA query_only = ON")?;
    Ok(connection)
}

/// Carries out a statement that answers with no rows, and returns how many rows it changed.
pub(super) fn execute(connection: &Connection, text: &str, values: impl Params) -> Result<u64, StoreFault> {
    Ok(connection.prepare_cached(text)?.execute(values)? as u64)
}

/// The row of an answer that has one at most.
pub(super) fn one<T>(
    connection: &Connection,
    text: &str,
    values: impl Params,
    of: impl FnOnce(&Row<'_>) -> Result<T, StoreFault>,
) -> Result<Option<T>, StoreFault> {
    let mut statement = connection.prepare_cached(text)?;
    let mut rows = statement.query(values)?;
    let one = rows.next()?.map(of).transpose()?;
    if one.is_some() {
        // What writes is carried out to its end.
        rows.next()?;
    }
    Ok(one)
}

/// All rows of a statement's answer.
pub(super) fn all<T>(
    connection: &Connection,
    text: &str,
    values: impl Params,
    mut of: impl FnMut(&Row<'_>) -> Result<T, StoreFault>,
) -> Result<Vec<T>, StoreFault> {
    let mut statement = connection.prepare_cached(text)?;
    let mut rows = statement.query(values)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(of(row)?);
    }
    Ok(all)
}

/// Whether a statement answers with any row.
pub(super) fn any(connection: &Connection, text: &str, values: impl Params) -> Result<bool, StoreFault> {
    Ok(connection.prepare_cached(text)?.exists(values)?)
}

/// What the JSON text in the column `name` says.
pub(super) fn from_json<T: DeserializeOwned>(row: &Row<'_>, name: &str) -> Result<T, StoreFault> {
    Ok(serde_json::from_str(row.get_ref(name)?.as_str().map_err(rusqlite::Error::from)?)?)
}

/// Reads by several statements, which see one state of the database.
pub(super) fn at_one_moment<T>(
    connection: &Connection,
    read: impl FnOnce() -> Result<T, StoreFault>,
) -> Result<T, StoreFault> {
    execute(connection, "BEGIN", ())?;
    let read = read();
    execute(connection, "COMMIT", ())?;
    read
}

/// Writes by several statements within a transaction, all or none: what fails leaves nothing there.
pub(super) fn all_or_none<T>(
    connection: &Connection,
    write: impl FnOnce() -> Result<T, StoreFault>,
) -> Result<T, StoreFault> {
    execute(connection, "SAVEPOINT several", ())?;
    let written = write();
    let undone = if written.is_err() { execute(connection, "ROLLBACK TO several", ()).map(drop) } else { Ok(()) };
    if undone.and_then(|()| execute(connection, "RELEASE several", ())).is_err() {
        // Half of it may be left, so that nothing of the transaction may stay.
        let _ = execute(connection, "ROLLBACK", ());
    }
    written
}
