//! Removing old analyses from SQLite, in steps that hold the write lock for a moment each.
//!
//! **Invariant.** An analysis is marked before anything of it is removed, and what is marked is unknown to every read: nobody
//! sees a container that has lost half of its files. What lends its members stays until its last
//! borrower is gone. A step may fail or be cut short anywhere; the next one goes on.

use super::connection::execute;
use super::{SqliteBackend, to_i64};
use crate::store::{PAGE_RECORDS_MAX, StoreFault};

/// A batch goes when it and all its files are older than `?1`: its row first, which makes its files eligible.
const BATCHES: &str = "DELETE FROM batch WHERE id IN (
    SELECT id FROM batch WHERE created_ms < ?1 AND coalesce(closed_ms, created_ms) < ?1 AND NOT EXISTS (
        SELECT 1 FROM analysis WHERE analysis.batch_id = batch.batch_id AND (state < 2 OR finished_ms >= ?1))
    ORDER BY created_ms LIMIT ?2)";
/// A callback that nobody has tried for as long as analyses are kept is nobody's.
const MARK: &str = "UPDATE analysis SET expired = 1 WHERE id IN (
    SELECT id FROM analysis WHERE finished_ms IS NOT NULL AND finished_ms < ?1 AND expired = 0
        AND (callback_ms IS NULL OR callback_ms < ?1)
        AND (batch_id IS NULL OR NOT EXISTS (SELECT 1 FROM batch WHERE batch.batch_id = analysis.batch_id))
    LIMIT ?2)";
const NESTED: &str = "DELETE FROM nested WHERE id IN (
    SELECT nested.id FROM analysis JOIN nested ON nested.root = analysis.data_id
    WHERE analysis.expired = 1 AND NOT EXISTS (SELECT 1 FROM analysis AS borrower WHERE borrower.members_root = analysis.data_id)
    LIMIT ?1)";
const ROOTS: &str = "DELETE FROM analysis WHERE id IN (
    SELECT id FROM analysis WHERE expired = 1
        AND NOT EXISTS (SELECT 1 FROM nested WHERE nested.root = analysis.data_id)
        AND NOT EXISTS (SELECT 1 FROM analysis AS borrower WHERE borrower.members_root = analysis.data_id)
    LIMIT ?1)";

/// What a worker that died left behind of a shared container, once its analysis has ended.
const SHARES: &str = "DELETE FROM share WHERE NOT EXISTS (
    SELECT 1 FROM analysis WHERE analysis.data_id = share.root AND analysis.state < 2)";

impl SqliteBackend {
    pub(super) async fn remove_step(&self, before_ms: u64, limit: u32) -> Result<u64, StoreFault> {
        let (before, limit) = (to_i64(before_ms), i64::from(limit.clamp(1, PAGE_RECORDS_MAX)));
        let removed = self.writer.write(move |connection| {
            let mut rows = 0;
            for statement in [BATCHES, MARK] {
                rows += execute(connection, statement, (before, limit))?;
            }
            for statement in [NESTED, ROOTS] {
                rows += execute(connection, statement, (limit,))?;
            }
            execute(connection, SHARES, ())?;
            Ok(rows)
        });
        removed.await
    }
}
