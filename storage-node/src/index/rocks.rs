//! The index in RocksDB.
//!
//! | key | value |
//! |---|---|
//! | `n` and a name | the name's entry, see [`Entry::encode`] |
//! | `s`, bucket (4, big-endian), segment id (8, big-endian) | synced offset (8, little-endian), sealed (1) |
//! | `b` | how many entries have a blob (8, little-endian) |
//! | `v` | [`ENTRY_VERSION`] |
//!
//! Its write-ahead log is on and not synced: it survives the process, and of a power failure it loses a suffix, which the
//! segments bring back. For the same reason a damaged database, or one of another version, is removed and begun anew.

use std::path::{Path, PathBuf};

use lazaret_protocol::BlobName;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Direction, ErrorKind, IteratorMode, Options,
    WriteBatch,
};

use super::{ENTRY_VERSION, Entry, Index, IndexBatch, IndexError, SegmentState};
use crate::record::{SegmentAddress, take};

/// Uncompressed blocks kept in memory. Entries are about 50 bytes, so that it holds some hundred thousand of them.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// What is collected in memory before it becomes a table. The log is as long, and is read again on open.
const WRITE_BUFFER_BYTES: usize = 32 << 20;
/// Tables kept open.
const OPEN_FILES_MAX: i32 = 256;
/// Bits of a Bloom filter for each key: one absent name in a hundred costs a read.
const BLOOM_BITS: f64 = 10.0;
/// RocksDB's own text logs kept.
const LOG_FILES_MAX: usize = 2;

const NAME: u8 = b'n';
const SEGMENT: u8 = b's';
const BLOBS_KEY: &[u8] = b"b";
const VERSION_KEY: &[u8] = b"v";

type KeyValue = (Box<[u8]>, Box<[u8]>);

/// An index in a directory of its own.
pub struct RocksIndex {
    database: DB,
    path: PathBuf,
}

impl RocksIndex {
    /// Opens the index in `path`, or begins one.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, IndexError> {
        let path: PathBuf = path.into();
        let database = match open_database(&path) {
            Err(error) if error.kind() == ErrorKind::Corruption => begin_anew(&path, error.as_ref())?,
            Err(error) => return Err(IndexError::new("open", path.display(), error)),
            Ok(database) => database,
        };
        let mut index = Self { database, path };
        let version = index.get_raw(VERSION_KEY)?;
        if version.as_deref().is_some_and(|version| version != [ENTRY_VERSION]) {
            let Self { database, path } = index;
            // It holds the directory's lock.
            drop(database);
            index = Self { database: begin_anew(&path, "it is of another version")?, path };
        }
        index.database.put(VERSION_KEY, [ENTRY_VERSION]).map_err(|error| index.error("write to", error))?;
        Ok(index)
    }

    fn error(&self, operation: &'static str, error: rocksdb::Error) -> IndexError {
        IndexError::new(operation, self.path.display(), error)
    }

    fn damaged(&self, what: &str) -> IndexError {
        let advice = "stop the node, remove the directory and start it again: it is rebuilt from the segments";
        IndexError::new("read", self.path.display(), format!("{what} is malformed; {advice}"))
    }

    fn get_raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.database.get(key).map_err(|error| self.error("read", error))
    }

    /// Keys of a kind and their values, from `from` on.
    fn scan(&self, from: &[u8], kind: u8) -> impl Iterator<Item = Result<KeyValue, IndexError>> + '_ {
        self.database
            .iterator(IteratorMode::From(from, Direction::Forward))
            .map(|item| item.map_err(|error| self.error("read", error)))
            .take_while(move |item| item.as_ref().map_or(true, |(key, _)| key.first() == Some(&kind)))
    }
}

fn open_database(path: &Path) -> Result<DB, rocksdb::Error> {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    tables.set_bloom_filter(BLOOM_BITS, false);
    tables.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&tables);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_keep_log_file_num(LOG_FILES_MAX);
    // A torn end of the log is a crash; whatever lies behind a torn place must not count, or it would not be a prefix.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    DB::open(&options, path)
}

fn begin_anew(path: &Path, reason: &str) -> Result<DB, IndexError> {
    tracing::warn!(path = %path.display(), reason, "the index can't be used and is rebuilt from the segments");
    std::fs::remove_dir_all(path).map_err(|error| IndexError::new("remove", path.display(), error))?;
    open_database(path).map_err(|error| IndexError::new("open", path.display(), error))
}

fn name_key(name: BlobName) -> [u8; 33] {
    let mut key = [NAME; 33];
    if let Some((_, rest)) = key.split_first_mut() {
        rest.copy_from_slice(name.as_bytes());
    }
    key
}

fn segment_key(address: SegmentAddress) -> Vec<u8> {
    let mut key = vec![SEGMENT];
    key.extend_from_slice(&address.bucket.to_be_bytes());
    key.extend_from_slice(&address.id.to_be_bytes());
    key
}

fn decode_segment(key: &[u8], value: &[u8]) -> Option<(SegmentAddress, SegmentState)> {
    let (mut key, mut value) = (key.get(1..)?, value);
    let address =
        SegmentAddress { bucket: u32::from_be_bytes(take(&mut key)?), id: u64::from_be_bytes(take(&mut key)?) };
    let synced = u64::from_le_bytes(take(&mut value)?);
    let [sealed] = take(&mut value)?;
    Some((address, SegmentState { synced, sealed: sealed != 0 }))
}

fn decode_named(key: &[u8], value: &[u8]) -> Option<(BlobName, Entry)> {
    let mut key = key.get(1..)?;
    Some((BlobName(take(&mut key)?), Entry::decode(value)?))
}

impl Index for RocksIndex {
    fn get(&self, name: BlobName) -> Result<Option<Entry>, IndexError> {
        let found = self.database.get_pinned(name_key(name)).map_err(|error| self.error("read", error))?;
        let Some(value) = found else { return Ok(None) };
        Entry::decode(&value).map(Some).ok_or_else(|| self.damaged(&format!("the entry of {name}")))
    }

    fn apply(&self, batch: IndexBatch) -> Result<(), IndexError> {
        let mut changes = WriteBatch::default();
        for (name, entry) in &batch.entries {
            changes.put(name_key(*name), entry.encode());
        }
        for (address, state) in &batch.segments {
            let mut value = state.synced.to_le_bytes().to_vec();
            value.push(u8::from(state.sealed));
            changes.put(segment_key(*address), value);
        }
        changes.put(BLOBS_KEY, batch.blobs.to_le_bytes());
        self.database.write(changes).map_err(|error| self.error("write to", error))
    }

    fn segments(&self) -> Result<Vec<(SegmentAddress, SegmentState)>, IndexError> {
        self.scan(&[SEGMENT], SEGMENT)
            .map(|item| {
                let (key, value) = item?;
                decode_segment(&key, &value).ok_or_else(|| self.damaged("the state of a segment"))
            })
            .collect()
    }

    fn entries(&self, after: Option<BlobName>, limit: usize) -> Result<Vec<(BlobName, Entry)>, IndexError> {
        let from = after.map_or_else(|| vec![NAME], |name| name_key(name).to_vec());
        let after = after.map(name_key);
        self.scan(&from, NAME)
            .filter(|item| item.as_ref().map_or(true, |(key, _)| Some(&key[..]) != after.as_ref().map(|key| &key[..])))
            .take(limit)
            .map(|item| {
                let (key, value) = item?;
                decode_named(&key, &value).ok_or_else(|| self.damaged("an entry"))
            })
            .collect()
    }

    fn blobs(&self) -> Result<u64, IndexError> {
        let Some(value) = self.get_raw(BLOBS_KEY)? else { return Ok(0) };
        let count = take(&mut &value[..]).ok_or_else(|| self.damaged("the count of blobs"))?;
        Ok(u64::from_le_bytes(count))
    }

    fn flush(&self) -> Result<(), IndexError> {
        self.database.flush_wal(true).map_err(|error| self.error("flush", error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn conforms() {
        let directory = tempfile::tempdir().unwrap();
        let count = std::cell::Cell::new(0);
        super::super::conformance::all(&|| {
            count.set(count.get() + 1);
            Arc::new(RocksIndex::open(directory.path().join(count.get().to_string())).unwrap())
        });
    }

    fn killed(at: u64) -> IndexBatch {
        let entry = Entry { killed_until_ms: Some(at), ..Entry::default() };
        IndexBatch { entries: vec![(BlobName([at as u8; 32]), entry)], blobs: at, ..IndexBatch::default() }
    }

    #[test]
    fn an_index_survives_being_closed_and_one_of_another_version_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let index = RocksIndex::open(directory.path()).unwrap();
        index.apply(killed(3)).unwrap();
        assert!(RocksIndex::open(directory.path()).is_err(), "two at a time");
        drop(index);
        let index = RocksIndex::open(directory.path()).unwrap();
        assert_eq!(index.blobs().unwrap(), 3);
        assert_eq!(index.get(BlobName([3; 32])).unwrap().unwrap().killed_until_ms, Some(3));
        index.database.put(VERSION_KEY, [ENTRY_VERSION + 1]).unwrap();
        drop(index);
        let index = RocksIndex::open(directory.path()).unwrap();
        assert_eq!(index.entries(None, 10).unwrap(), []);
        assert_eq!(index.blobs().unwrap(), 0);
    }

    #[test]
    fn a_damaged_index_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let index = RocksIndex::open(directory.path()).unwrap();
        index.apply(killed(3)).unwrap();
        drop(index);
        std::fs::write(directory.path().join("CURRENT"), b"garbage").unwrap();
        let index = RocksIndex::open(directory.path()).unwrap();
        assert_eq!(index.entries(None, 10).unwrap(), []);
        index.apply(killed(4)).unwrap();
        assert_eq!(index.blobs().unwrap(), 4);
    }
}
