//! Analyses by digest in SQLite.

use super::connection::all;
use super::{SqliteBackend, to_i64};
use crate::id::DataId;
use crate::store::{DigestQuery, PAGE_RECORDS_MAX, StoreFault};

/// The statement for the digest in the column `$digest`. At most 20,000 submissions and as many nested files of a digest are
/// looked at, newest first: a test file that everybody sends all day must not make a look-up read for seconds. They come from
/// the index over the digest's first eight bytes. What an analysis borrows is found by its lender's rows; whether a file
/// lies in what is lent is told by its path here, and for certain when it is read. `?1` is the digest, `?2` the user, `?3` the
/// rule, `?4` the time, `?5` and `?6` whether unfinished and nested ones count, `?7` the limit.
macro_rules! by_digest {
    ($digest:literal) => {
        concat!(
            "WITH of_analysis AS (SELECT id FROM analysis WHERE substr(",
            $digest,
            ", 1, 8) = substr(?1, 1, 8) AND ",
            $digest,
            " IS NOT NULL ORDER BY id DESC LIMIT 20000),
             of_nested AS (SELECT id FROM nested WHERE ?6 AND substr(",
            $digest,
            ", 1, 8) = substr(?1, 1, 8) AND ",
            $digest,
            " IS NOT NULL ORDER BY id DESC LIMIT 20000)
             SELECT data_id, state = 2 AS done, queued_ms, id, 0 AS depth, NULL AS borrower FROM analysis
             WHERE id IN of_analysis AND ",
            $digest,
            " = ?1 AND expired = 0 AND (state = 2 OR (?5 AND state < 2))
                 AND (?2 IS NULL OR user_id = ?2) AND queued_ms >= ?4
                 AND (?3 IS NULL OR json_extract(submission, '$.rule.name') = ?3)
             UNION ALL
             SELECT nested.data_id, 1, root.queued_ms, nested.id, 1, NULL
             FROM nested JOIN analysis AS root ON root.data_id = nested.root
             WHERE nested.id IN of_nested AND nested.",
            $digest,
            " = ?1 AND root.expired = 0 AND root.state = 2
                 AND (?2 IS NULL OR root.user_id = ?2) AND root.queued_ms >= ?4
                 AND (?3 IS NULL OR json_extract(root.submission, '$.rule.name') = ?3)
             UNION ALL
             SELECT NULL, 1, borrower.queued_ms, nested.id, 1, borrower.id
             FROM nested JOIN analysis AS borrower ON borrower.members_root = nested.root
             WHERE nested.id IN of_nested AND nested.",
            $digest,
            " = ?1 AND borrower.expired = 0 AND borrower.state = 2
                 AND borrower.id IN (SELECT id FROM analysis WHERE members_root = nested.root ORDER BY id DESC LIMIT 20000)
                 AND (borrower.members_path = '' OR
                     substr(nested.path, 1, length(borrower.members_path) + 1) = borrower.members_path || '/')
                 AND (?2 IS NULL OR borrower.user_id = ?2) AND borrower.queued_ms >= ?4
                 AND (?3 IS NULL OR json_extract(borrower.submission, '$.rule.name') = ?3)
             ORDER BY 2 DESC, 3 DESC, 5, 4 DESC LIMIT ?7"
        )
    };
}

impl SqliteBackend {
    pub(super) async fn find(&self, query: &DigestQuery, limit: u32) -> Result<Vec<DataId>, StoreFault> {
        let statement = match query.digest.len() {
            16 => by_digest!("md5"),
            20 => by_digest!("sha1"),
            32 => by_digest!("sha256"),
            64 => by_digest!("sha512"),
            _ => return Ok(Vec::new()),
        };
        let (query, places) = (query.clone(), self.places.clone());
        let reading = self.readers.read(move |connection| {
            let DigestQuery { digest, user_id, rule, since_ms, unfinished, nested } = query;
            let limit = limit.min(PAGE_RECORDS_MAX);
            let values = (digest, user_id, rule, to_i64(since_ms), unfinished, nested, limit);
            all(connection, statement, values, |row| match row.get("borrower")? {
                // What is borrowed has no row of its own: its id is made of its lender's and its borrower's.
                Some(borrower) => Ok(places.id(borrower, row.get("id")?)),
                None => Ok(row.get("data_id")?),
            })
        });
        reading.await
    }
}
