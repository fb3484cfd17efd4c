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
use rusqlite::{Connection, Row};

use super::connection::{any, execute, from_json, one};
use super::to_u64;
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
    pub fn load(connection: &Connection) -> Result<Self, StoreFault> {
        let insert = "INSERT INTO secret (name, value) VALUES ('places', ?1) ON CONFLICT (name) DO NOTHING";
        execute(connection, insert, (random_bytes(),))?;
        let key: Vec<u8> =
            connection.query_row("SELECT value FROM secret WHERE name = 'places'", (), |row| row.get(0))?;
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
    fn of(row: &Row<'_>) -> Result<Option<Self>, StoreFault> {
        let Some(lender) = row.get("members_of")? else { return Ok(None) };
        Ok(Some(Self {
            row: row.get("id")?,
            data_id: row.get("data_id")?,
            lender,
            lender_root: row.get("members_root")?,
            lender_path: row.get("members_path")?,
            submission: row.get("submission")?,
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
pub(super) fn members(reading: &Connection, places: &Places, parent: DataId) -> Result<Members, StoreFault> {
    let text =
        "SELECT id, data_id, members_of, members_root, members_path, submission FROM analysis WHERE data_id = ?1";
    if let Some(borrower) = one(reading, text, (parent,), Borrower::of)? {
        return Ok(match borrower {
            None => Members::Own,
            Some(borrower) => {
                let lender = borrower.lender;
                Members::Of(borrower, lender)
            }
        });
    }
    if any(reading, "SELECT 1 FROM nested WHERE data_id = ?1", (parent,))? {
        return Ok(Members::Own);
    }
    Ok(match find(reading, places, parent)? {
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
    pub fn of(row: &Row<'_>) -> Result<Self, StoreFault> {
        let record = NestedRecord {
            data_id: row.get("data_id")?,
            root: row.get("root")?,
            parent: row.get("parent")?,
            ordinal: row.get("ordinal")?,
            path: row.get("path")?,
            result: from_json(row, "result")?,
        };
        Ok(Self { row: row.get("id")?, record })
    }
}

/// The borrower and the lender's row that an id stands for, if it does.
fn find(reading: &Connection, places: &Places, id: DataId) -> Result<Option<(Borrower, Found)>, StoreFault> {
    let (analysis, nested) = places.rows(id);
    let text = "SELECT id, data_id, members_of, members_root, members_path, submission FROM analysis
         WHERE id = ?1 AND expired = 0";
    let Some(borrower) = one(reading, text, (analysis,), Borrower::of)?.flatten() else { return Ok(None) };
    let text = "SELECT id, data_id, root, parent, ordinal, path, result FROM nested WHERE id = ?1 AND root = ?2";
    let Some(found) = one(reading, text, (nested, borrower.lender_root), Found::of)? else { return Ok(None) };
    let lent = is_below(reading, found.record.parent, borrower.lender, borrower.lender_root)?;
    Ok(lent.then_some((borrower, found)))
}

/// Whether what lies directly in `parent` lies in `lender`.
fn is_below(reading: &Connection, mut parent: DataId, lender: DataId, root: DataId) -> Result<bool, StoreFault> {
    for _ in 0..ANCESTORS_MAX {
        if parent == lender || parent == root {
            break;
        }
        let above = one(reading, "SELECT parent FROM nested WHERE data_id = ?1", (parent,), |row| Ok(row.get(0)?))?;
        match above {
            Some(above) => parent = above,
            None => return Ok(false),
        }
    }
    Ok(parent == lender)
}

/// A borrowed file by its id, with its borrower.
pub(super) fn get(
    reading: &Connection,
    places: &Places,
    id: DataId,
) -> Result<Option<(Borrower, NestedRecord)>, StoreFault> {
    let Some((borrower, found)) = find(reading, places, id)? else { return Ok(None) };
    let parent = if found.record.parent == borrower.lender {
        borrower.data_id
    } else {
        let rows = Rows::of(reading, &[found.record.parent])?;
        let Some(row) = rows.row(found.record.parent) else { return Ok(None) };
        places.id(borrower.row, row)
    };
    let ids = Rows::named_by(reading, std::slice::from_ref(&found))?;
    let record = borrower.borrow(places, found.record, found.row, parent, &ids);
    Ok(Some((borrower, record)))
}

/// A page of a lender's records as the borrower's.
pub(super) fn borrow_page(
    reading: &Connection,
    places: &Places,
    borrower: &Borrower,
    parent: DataId,
    page: Vec<Found>,
) -> Result<Vec<NestedRecord>, StoreFault> {
    let ids = Rows::named_by(reading, &page)?;
    Ok(page.into_iter().map(|found| borrower.borrow(places, found.record, found.row, parent, &ids)).collect())
}

/// The rows of some nested files.
struct Rows(Vec<(DataId, i64)>);

impl Rows {
    fn row(&self, id: DataId) -> Option<i64> {
        self.0.binary_search_by_key(&id, |(known, _)| *known).ok().and_then(|at| self.0.get(at)).map(|(_, row)| *row)
    }

    /// Of those that the records of a page name. A page is bounded, and so is what is read here.
    fn named_by(reading: &Connection, page: &[Found]) -> Result<Self, StoreFault> {
        let named = |found: &Found| found.record.result.container.as_ref().and_then(|container| container.worst_child);
        let ids: Vec<DataId> = page.iter().filter_map(named).collect();
        Self::of(reading, &ids)
    }

    fn of(reading: &Connection, ids: &[DataId]) -> Result<Self, StoreFault> {
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            let row = one(reading, "SELECT id FROM nested WHERE data_id = ?1", (id,), |row| Ok(row.get(0)?))?;
            rows.extend(row.map(|row| (*id, row)));
        }
        rows.sort_unstable();
        Ok(Self(rows))
    }
}

/// Finishes an analysis whose members are the lender's. One statement writes; the others find out what.
pub(super) fn finish(
    connection: &Connection,
    places: &Places,
    (data_id, lender): (DataId, DataId),
    mut result: FileResult,
    now_ms: i64,
) -> Result<bool, StoreFault> {
    let text = "SELECT id FROM analysis WHERE data_id = ?1 AND state < 2";
    let own = one(connection, text, (data_id,), |row| Ok(row.get(0)?))?;
    let (Some(own), Some((root, path))) = (own, lender_place(connection, lender)?) else { return Ok(false) };
    if let Some(container) = &mut result.container {
        let recorded = members_recorded(connection, lender)?;
        if recorded != container.extracted_count {
            return Ok(false);
        }
        if let Some(worst) = container.worst_child {
            let Some(row) = Rows::of(connection, &[worst])?.row(worst) else { return Ok(false) };
            container.worst_child = Some(places.id(own, row));
        }
    }
    let overall = i64::from(result.overall.code());
    let changed = execute(
        connection,
        "UPDATE analysis SET state = 2, result = ?1, started_ms = coalesce(started_ms, ?2), finished_ms = ?2,
             members_of = ?3, members_root = ?4, members_path = ?5, passwords = NULL, overall = ?8
         WHERE id = ?6 AND state < 2 AND NOT EXISTS (SELECT 1 FROM nested WHERE root = ?7)",
        (serde_json::to_string(&result)?, now_ms, lender, root, path, own, data_id, overall),
    )?;
    Ok(changed > 0)
}

/// How many files directly in `parent` are recorded. Ordinals have no gaps, so the highest one tells the number without a walk
/// over all rows.
pub(super) fn members_recorded(connection: &Connection, parent: DataId) -> Result<u64, StoreFault> {
    let text = "SELECT max(ordinal) FROM nested WHERE parent = ?1";
    let highest = one(connection, text, (parent,), |row| Ok(row.get::<_, Option<i64>>(0)?))?;
    Ok(highest.flatten().map_or(0, |highest| to_u64(highest) + 1))
}

/// The analysis that a lender lies in, and its place there; none unless that is finished and the lender's members are its own.
fn lender_place(connection: &Connection, lender: DataId) -> Result<Option<(DataId, String)>, StoreFault> {
    let done = super::results::state_to_i64(State::Done);
    let text = "SELECT state, members_of IS NULL AS own FROM analysis WHERE data_id = ?1 AND expired = 0";
    let lends =
        one(connection, text, (lender,), |row| Ok(row.get::<_, i64>("state")? == done && row.get::<_, bool>("own")?))?;
    if let Some(lends) = lends {
        return Ok(lends.then(|| (lender, String::new())));
    }
    one(
        connection,
        "SELECT nested.root, nested.path FROM nested JOIN analysis ON analysis.data_id = nested.root
         WHERE nested.data_id = ?1 AND analysis.state = ?2 AND analysis.expired = 0",
        (lender, done),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
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
