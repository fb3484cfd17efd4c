//! Members that an analysis borrows: the nested files of a container whose verdict was kept are answered for as another
//! analysis', without being recorded again.
//!
//! The analysis' row names the container that lends (`members_of`). Each of the lender's rows is one of the borrower's under
//! an id of its own: the two rows' numbers, enciphered with a key that only the station has. So the id says where to look, is
//! the same each time, and can't be guessed from another one.
//!
//! Invariants:
//! - A lender's members have rows of their own, down to the last: whoever borrows never lends. So one step finds a row.
//! - A lender that was removed from the history keeps its rows for as long as anybody borrows them, and lends no more.
//! - Both analyses are finished before the one is said to borrow, so the rows' numbers never change.

use aes::Aes128;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row};

use super::{to_id, to_u64};
use crate::analysis::{FileResult, NestedRecord, State};
use crate::id::{DataId, random_bytes};
use crate::store::StoreFault;

/// Most containers one inside the other that a row is followed through. No rule's depth comes near it.
const ANCESTORS_MAX: usize = 1_000;

/// Makes ids of borrowed members, and finds their places again.
#[derive(Clone)]
pub(super) struct Places(Aes128);

impl Places {
    /// The station's. The first process makes the key; call it while the schema is locked.
    pub async fn load(connection: &mut SqliteConnection) -> Result<Self, StoreFault> {
        sqlx::query("INSERT INTO secret (name, value) VALUES ('places', $1) ON CONFLICT (name) DO NOTHING")
            .bind(random_bytes().to_vec())
            .execute(&mut *connection)
            .await?;
        let key: Vec<u8> =
            sqlx::query_scalar("SELECT value FROM secret WHERE name = 'places'").fetch_one(connection).await?;
        let cipher = Aes128::new_from_slice(&key);
        Ok(Self(cipher.map_err(|_| StoreFault::Malformed("the key of places has a wrong length".to_owned()))?))
    }

    /// The id of a lender's row `nested` as the borrower's, whose row is `analysis`.
    pub fn id(&self, analysis: i64, nested: i64) -> DataId {
        let mut bytes = [0; DataId::BYTES];
        let (first, second) = bytes.split_at_mut(8);
        first.copy_from_slice(&analysis.to_le_bytes());
        second.copy_from_slice(&nested.to_le_bytes());
        let mut block = Block::<Aes128>::from(bytes);
        self.0.encrypt_block(&mut block);
        DataId(block.into())
    }

    /// The rows that such an id names. For any other id they are numbers that no row has.
    fn rows(&self, id: DataId) -> (i64, i64) {
        let mut block = Block::<Aes128>::from(id.0);
        self.0.decrypt_block(&mut block);
        let bytes: [u8; DataId::BYTES] = block.into();
        let (first, second) = bytes.split_at(8);
        let number = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().unwrap_or_default());
        (number(first), number(second))
    }
}

/// An analysis that borrows its members.
pub(super) struct Borrower {
    /// Its row.
    row: i64,
    /// Its id.
    data_id: DataId,
    /// Whose members its are.
    lender: DataId,
    /// The lender's analysis.
    lender_root: DataId,
    /// The lender's place in that: empty if it is the analysis itself.
    lender_path: String,
    /// What was submitted, as JSON.
    pub submission: String,
}

impl Borrower {
    const COLUMNS: &str = "id, data_id, members_of, members_root, members_path, submission";

    fn of(row: &SqliteRow) -> Result<Option<Self>, StoreFault> {
        let Some(lender) = row.try_get::<Option<Vec<u8>>, _>("members_of")? else { return Ok(None) };
        Ok(Some(Self {
            row: row.try_get("id")?,
            data_id: to_id(row.try_get("data_id")?)?,
            lender: to_id(lender)?,
            lender_root: to_id(row.try_get("members_root")?)?,
            lender_path: row.try_get("members_path")?,
            submission: row.try_get("submission")?,
        }))
    }

    /// A lender's record as the borrower's. `ids` are the rows of the lender's files that it names.
    fn borrow(&self, places: &Places, record: NestedRecord, row: i64, parent: DataId, ids: &Rows) -> NestedRecord {
        let NestedRecord { path, mut result, .. } = record;
        if let Some(container) = &mut result.container {
            let worst = container.worst_child.and_then(|worst| ids.row(worst));
            container.worst_child = worst.map(|row| places.id(self.row, row));
        }
        let path = match self.lender_path.as_str() {
            "" => path,
            lender => path.strip_prefix(lender).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&path).to_owned(),
        };
        NestedRecord { data_id: places.id(self.row, row), root: self.data_id, parent, path, result, ..record }
    }
}

/// Whose rows answer for a container's members.
pub(super) enum Members {
    /// Its own.
    Own,
    /// A lender's: those under this id.
    Of(Borrower, DataId),
}

/// Finds out whose rows answer for the members of `parent`.
pub(super) async fn members(
    reading: &mut SqliteConnection,
    places: &Places,
    parent: DataId,
) -> Result<Members, StoreFault> {
    let query = format!("SELECT {} FROM analysis WHERE data_id = $1", Borrower::COLUMNS);
    let row = sqlx::query(sqlx::AssertSqlSafe(query)).bind(parent.0.to_vec()).fetch_optional(&mut *reading).await?;
    if let Some(row) = row {
        return Ok(match Borrower::of(&row)? {
            None => Members::Own,
            Some(borrower) => {
                let lender = borrower.lender;
                Members::Of(borrower, lender)
            }
        });
    }
    let nested = sqlx::query("SELECT 1 FROM nested WHERE data_id = $1").bind(parent.0.to_vec());
    if nested.fetch_optional(&mut *reading).await?.is_some() {
        return Ok(Members::Own);
    }
    Ok(match find(reading, places, parent).await? {
        Some((borrower, found)) => Members::Of(borrower, found.record.data_id),
        None => Members::Own,
    })
}

/// A row of `nested`.
pub(super) struct Found {
    pub row: i64,
    pub record: NestedRecord,
}

impl Found {
    /// The columns that it is made of.
    pub const COLUMNS: &str = "id, data_id, root, parent, ordinal, path, result";

    pub fn of(row: &SqliteRow) -> Result<Self, StoreFault> {
        let record = NestedRecord {
            data_id: to_id(row.try_get("data_id")?)?,
            root: to_id(row.try_get("root")?)?,
            parent: to_id(row.try_get("parent")?)?,
            ordinal: row.try_get("ordinal")?,
            path: row.try_get("path")?,
            result: serde_json::from_str(row.try_get("result")?)?,
        };
        Ok(Self { row: row.try_get("id")?, record })
    }
}

/// The borrower and the lender's row that an id stands for, if it does.
async fn find(
    reading: &mut SqliteConnection,
    places: &Places,
    id: DataId,
) -> Result<Option<(Borrower, Found)>, StoreFault> {
    let (analysis, nested) = places.rows(id);
    let query = format!("SELECT {} FROM analysis WHERE id = $1 AND expired = 0", Borrower::COLUMNS);
    let row = sqlx::query(sqlx::AssertSqlSafe(query)).bind(analysis).fetch_optional(&mut *reading).await?;
    let Some(borrower) = row.map(|row| Borrower::of(&row)).transpose()?.flatten() else { return Ok(None) };
    let query = format!("SELECT {} FROM nested WHERE id = $1 AND root = $2", Found::COLUMNS);
    let row = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(nested)
        .bind(borrower.lender_root.0.to_vec())
        .fetch_optional(&mut *reading)
        .await?;
    let Some(found) = row.map(|row| Found::of(&row)).transpose()? else { return Ok(None) };
    let lent = is_below(reading, found.record.parent, borrower.lender, borrower.lender_root).await?;
    Ok(lent.then_some((borrower, found)))
}

/// Whether what lies directly in `parent` lies in `lender`.
async fn is_below(
    reading: &mut SqliteConnection,
    mut parent: DataId,
    lender: DataId,
    root: DataId,
) -> Result<bool, StoreFault> {
    for _ in 0..ANCESTORS_MAX {
        if parent == lender || parent == root {
            break;
        }
        let above: Option<Vec<u8>> = sqlx::query_scalar("SELECT parent FROM nested WHERE data_id = $1")
            .bind(parent.0.to_vec())
            .fetch_optional(&mut *reading)
            .await?;
        match above {
            Some(above) => parent = to_id(above)?,
            None => return Ok(false),
        }
    }
    Ok(parent == lender)
}

/// A borrowed file by its id, with its borrower.
pub(super) async fn get(
    reading: &mut SqliteConnection,
    places: &Places,
    id: DataId,
) -> Result<Option<(Borrower, NestedRecord)>, StoreFault> {
    let Some((borrower, found)) = find(reading, places, id).await? else { return Ok(None) };
    let parent = if found.record.parent == borrower.lender {
        borrower.data_id
    } else {
        let rows = Rows::of(reading, &[found.record.parent]).await?;
        let Some(row) = rows.row(found.record.parent) else { return Ok(None) };
        places.id(borrower.row, row)
    };
    let ids = Rows::named_by(reading, std::slice::from_ref(&found)).await?;
    let record = borrower.borrow(places, found.record, found.row, parent, &ids);
    Ok(Some((borrower, record)))
}

/// A page of a lender's records as the borrower's.
pub(super) async fn borrow_page(
    reading: &mut SqliteConnection,
    places: &Places,
    borrower: &Borrower,
    parent: DataId,
    page: Vec<Found>,
) -> Result<Vec<NestedRecord>, StoreFault> {
    let ids = Rows::named_by(reading, &page).await?;
    Ok(page.into_iter().map(|found| borrower.borrow(places, found.record, found.row, parent, &ids)).collect())
}

/// The rows of some nested files.
struct Rows(Vec<(DataId, i64)>);

impl Rows {
    fn row(&self, id: DataId) -> Option<i64> {
        self.0.binary_search_by_key(&id, |(known, _)| *known).ok().and_then(|at| self.0.get(at)).map(|(_, row)| *row)
    }

    /// Of those that the records of a page name. A page is bounded, and so is the statement.
    async fn named_by(reading: &mut SqliteConnection, page: &[Found]) -> Result<Self, StoreFault> {
        let named = |found: &Found| found.record.result.container.as_ref().and_then(|container| container.worst_child);
        let ids: Vec<DataId> = page.iter().filter_map(named).collect();
        Self::of(reading, &ids).await
    }

    async fn of(reading: &mut SqliteConnection, ids: &[DataId]) -> Result<Self, StoreFault> {
        let mut rows = Vec::with_capacity(ids.len());
        if !ids.is_empty() {
            let mut query = QueryBuilder::new("SELECT data_id, id FROM nested WHERE data_id IN (");
            let mut list = query.separated(", ");
            for id in ids {
                list.push_bind(id.0.to_vec());
            }
            query.push(")");
            for row in query.build().persistent(false).fetch_all(reading).await? {
                rows.push((to_id(row.try_get("data_id")?)?, row.try_get("id")?));
            }
        }
        rows.sort_unstable();
        Ok(Self(rows))
    }
}

/// Finishes an analysis whose members are the lender's. One statement writes; the others find out what.
pub(super) async fn finish(
    connection: &mut SqliteConnection,
    places: &Places,
    (data_id, lender): (DataId, DataId),
    mut result: FileResult,
    now_ms: i64,
) -> Result<bool, StoreFault> {
    let own: Option<i64> = sqlx::query_scalar("SELECT id FROM analysis WHERE data_id = $1 AND state < 2")
        .bind(data_id.0.to_vec())
        .fetch_optional(&mut *connection)
        .await?;
    let (Some(own), Some((root, path))) = (own, lender_place(connection, lender).await?) else { return Ok(false) };
    if let Some(container) = &mut result.container {
        let recorded: Option<i64> = sqlx::query_scalar("SELECT max(ordinal) FROM nested WHERE parent = $1")
            .bind(lender.0.to_vec())
            .fetch_one(&mut *connection)
            .await?;
        if recorded.map_or(0, |highest| to_u64(highest) + 1) != container.extracted_count {
            return Ok(false);
        }
        if let Some(worst) = container.worst_child {
            let Some(row) = Rows::of(connection, &[worst]).await?.row(worst) else { return Ok(false) };
            container.worst_child = Some(places.id(own, row));
        }
    }
    let update = sqlx::query(
        "UPDATE analysis SET state = 2, result = $1, started_ms = coalesce(started_ms, $2), finished_ms = $2,
             members_of = $3, members_root = $4, members_path = $5, passwords = NULL, overall = $8
         WHERE id = $6 AND state < 2 AND NOT EXISTS (SELECT 1 FROM nested WHERE root = $7)",
    )
    .bind(serde_json::to_string(&result)?)
    .bind(now_ms)
    .bind(lender.0.to_vec())
    .bind(root.0.to_vec())
    .bind(path)
    .bind(own)
    .bind(data_id.0.to_vec())
    .bind(i64::from(result.overall.code()));
    Ok(update.execute(connection).await?.rows_affected() > 0)
}

/// The analysis that a lender lies in, and its place there; none unless that is finished and the lender's members are its own.
async fn lender_place(
    connection: &mut SqliteConnection,
    lender: DataId,
) -> Result<Option<(DataId, String)>, StoreFault> {
    let done = super::results::state_to_i64(State::Done);
    let root: Option<(i64, Option<Vec<u8>>)> =
        sqlx::query_as("SELECT state, members_of FROM analysis WHERE data_id = $1 AND expired = 0")
            .bind(lender.0.to_vec())
            .fetch_optional(&mut *connection)
            .await?;
    if let Some((state, members_of)) = root {
        return Ok((state == done && members_of.is_none()).then(|| (lender, String::new())));
    }
    let nested: Option<(Vec<u8>, String)> = sqlx::query_as(
        "SELECT nested.root, nested.path FROM nested JOIN analysis ON analysis.data_id = nested.root
         WHERE nested.data_id = $1 AND analysis.state = $2 AND analysis.expired = 0",
    )
    .bind(lender.0.to_vec())
    .bind(done)
    .fetch_optional(connection)
    .await?;
    nested.map(|(root, path)| Ok((to_id(root)?, path))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_to_its_rows_and_no_other_does() {
        let places = Places(Aes128::new_from_slice(&[7; 16]).unwrap());
        let id = places.id(3, 70_000);
        // A golden value: clients keep ids.
        assert_eq!(id.to_string(), "f9f952e33710a8beec8ae726fc95d40f");
        assert_eq!(places.rows(id), (3, 70_000));
        assert_ne!(places.id(3, 70_001), places.id(4, 70_000));
        let mut changed = id;
        changed.0[0] ^= 1;
        let (analysis, nested) = places.rows(changed);
        assert!(!(0..1 << 40).contains(&analysis) && !(0..1 << 40).contains(&nested));
    }
}
