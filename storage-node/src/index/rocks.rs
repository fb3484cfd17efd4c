//! The index in RocksDB.
//!
//! | key | value |
//! |---|---|
//! | `n` and a name | the name's entry, see [`Entry::encode`] |
//! | `s`, bucket (4, big-endian), segment id (8, big-endian) | synced offset (8, little-endian), dead bytes (8, little-endian), flags (1): 1 sealed, 2 removed |
//! | `t`, bucket (4, big-endian) | blobs (8, little-endian), bytes (8, little-endian) |
//! | `u`, upload id (16) | the blob's name (32), its bucket (4, little-endian) |
//! | `v` | [`ENTRY_VERSION`] |
//!
//! Expired entries go when RocksDB compacts: its filter asks [`Entry::live`]. It is asked to compact everything only when
//! a good part of it has expired, which then costs less than reading past it would.
//!
//! Its write-ahead log is on and not synced: it survives the process, and of a power failure it loses a suffix, which the
//! segments bring back. For the same reason a damaged database, or one of another version, is removed and begun anew when it
//! is opened: missing, cut or flipped files of its own are damage, what the disk or the system refuses is not. Damage that
//! shows only later is noted durably beside the directory, in `<name>.damaged`, so that the next opening begins anew
//! whatever it would find.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use lazaret_protocol::{BlobName, UploadId};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, CompactionDecision as Decision, DB, DBCompressionType,
    DBRecoveryMode, Direction, ErrorKind, IteratorMode, LruCacheOptions, Options, WriteBatch,
};

use super::{ENTRY_VERSION, Entry, Index, IndexBatch, IndexError, SegmentState, Totals, UploadOwner};
use crate::record::{SegmentAddress, take};

/// Uncompressed blocks kept in memory, those of filters and of the tables' own indexes among them: two bytes for each name that the
/// index has, and the rest for entries, of which each has about 50 bytes.
const BLOCK_CACHE_BYTES: usize = 64 << 20;
/// Into how many parts the cache is divided, as a power of two. A block that is longer than its part is never kept: tables that an
/// earlier build wrote have a filter of more than a megabyte.
const BLOCK_CACHE_PARTS: i32 = 2;
/// How long the blocks of filters and of the tables' own indexes are. A table's filter in one piece is read as a whole for a single
/// name once it does not fit into the cache.
const METADATA_BLOCK_BYTES: usize = 4096;
/// What is collected in memory before it becomes a table. The log is as long, and is read again on open.
const WRITE_BUFFER_BYTES: usize = 32 << 20;
/// Tables kept open.
const OPEN_FILES_MAX: i32 = 256;
/// Bits of a Bloom filter for each key: one absent name in a hundred costs a read.
const BLOOM_BITS: f64 = 10.0;
/// What part of the write buffer is a Bloom filter over its keys: most names that are asked for are absent, and the walk
/// through the buffer to find that out was the largest part of a rebuild.
const WRITE_BUFFER_BLOOM_SHARE: f64 = 0.1;
/// RocksDB's own text logs kept.
const LOG_FILES_MAX: usize = 2;

/// A compaction of everything is asked for when one in so many entries has expired since the last one.
const COMPACT_SHARE: u64 = 2;
/// Fewer expired entries than these never ask for one.
const COMPACT_ENTRIES_MIN: u64 = 10_000;

const NAME: u8 = b'n';
const SEGMENT: u8 = b's';
const TOTALS: u8 = b't';
const UPLOAD: u8 = b'u';
const SEALED: u8 = 1;
const REMOVED: u8 = 2;
const VERSION_KEY: &[u8] = b"v";

type KeyValue = (Box<[u8]>, Box<[u8]>);

/// An index in a directory of its own.
pub struct RocksIndex {
    /// `None` once it is closed.
    database: RwLock<Option<DB>>,
    path: PathBuf,
    /// Read by the compaction filter.
    horizon: Arc<AtomicU32>,
    /// About how many entries have expired since the last compaction of everything.
    expired: AtomicU64,
    /// Whether something was written past the log since the last flush.
    unlogged: AtomicBool,
    /// Whether damage was noted.
    damaged: AtomicBool,
    closing: AtomicBool,
}

impl RocksIndex {
    /// Opens the index in `path`, or begins one.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, IndexError> {
        let path: PathBuf = path.into();
        let horizon = Arc::new(AtomicU32::new(0));
        if let Some(reason) = noted_damage(&path)? {
            return Self::of(begin_anew(&path, &horizon, &reason)?, path, horizon);
        }
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            return Self::of(begin_anew(&path, &horizon, "a file is in its place")?, path, horizon);
        }
        let database = match open_database(&path, &horizon) {
            Err(error) if opens_anew(&error) => begin_anew(&path, &horizon, error.as_ref())?,
            Err(error) => return Err(IndexError::new("open", path.display(), error)),
            Ok(database) => database,
        };
        let database = match database.get(VERSION_KEY) {
            Ok(Some(version)) if version != [ENTRY_VERSION] => {
                // It holds the directory's lock.
                drop(database);
                begin_anew(&path, &horizon, "it is of another version")?
            }
            Err(error) if is_damage(&error) => {
                drop(database);
                begin_anew(&path, &horizon, error.as_ref())?
            }
            Err(error) => return Err(IndexError::new("read", path.display(), error)),
            Ok(_) => database,
        };
        Self::of(database, path, horizon)
    }

    /// Removes the index in `path`, whatever it is, and begins one.
    pub fn begin_anew(path: impl Into<PathBuf>) -> Result<Self, IndexError> {
        let path: PathBuf = path.into();
        let horizon = Arc::new(AtomicU32::new(0));
        Self::of(begin_anew(&path, &horizon, "it was asked for")?, path, horizon)
    }

    /// Opens the index in `path` to read it and change nothing. `None` if there is none that [`RocksIndex::open`] would not
    /// begin anew.
    pub fn open_read_only(path: impl Into<PathBuf>) -> Result<Option<Self>, IndexError> {
        let path: PathBuf = path.into();
        if noted_damage(&path)?.is_some() || !path.join("CURRENT").exists() {
            return Ok(None);
        }
        let horizon = Arc::new(AtomicU32::new(0));
        let mut options = database_options(&horizon);
        options.create_if_missing(false);
        // RocksDB writes a log of what it does even then, and here must not.
        let logs = std::env::temp_dir().join(format!("lazaret-index-log-{}", std::process::id()));
        options.set_db_log_dir(&logs);
        let opened = DB::open_for_read_only(&options, &path, false);
        // Nothing needs it.
        let _ = fs::remove_dir_all(&logs);
        let database = opened.map_err(|error| {
            let damaged = opens_anew(&error);
            let error = IndexError::new("open", path.display(), error);
            if damaged { error.damaged() } else { error }
        })?;
        let index = Self::around(database, path, horizon);
        let version = index.with(|database| database.get(VERSION_KEY).map_err(|error| index.error("read", error)))?;
        Ok(Some(index).filter(|_| version.as_deref() == Some(&[ENTRY_VERSION])))
    }

    fn of(database: DB, path: PathBuf, horizon: Arc<AtomicU32>) -> Result<Self, IndexError> {
        let index = Self::around(database, path, horizon);
        index.with(|database| {
            database.put(VERSION_KEY, [ENTRY_VERSION]).map_err(|error| index.error("write to", error))
        })?;
        Ok(index)
    }

    fn around(database: DB, path: PathBuf, horizon: Arc<AtomicU32>) -> Self {
        Self {
            database: RwLock::new(Some(database)),
            path,
            horizon,
            expired: AtomicU64::new(0),
            unlogged: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        }
    }

    /// Works with the database, as long as it is open.
    fn with<T>(&self, work: impl FnOnce(&DB) -> Result<T, IndexError>) -> Result<T, IndexError> {
        let closed = || IndexError::new("use", self.path.display(), "it is closed");
        if self.closing.load(Ordering::SeqCst) {
            return Err(closed());
        }
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or_else(closed)?)
    }

    fn error(&self, operation: &'static str, error: rocksdb::Error) -> IndexError {
        let damaged = is_damage(&error);
        let error = IndexError::new(operation, self.path.display(), error);
        if damaged { self.damage(error) } else { error }
    }

    fn malformed(&self, what: &str) -> IndexError {
        self.damage(IndexError::new("read", self.path.display(), format!("{what} is malformed")))
    }

    /// Notes that the index is damaged, so that the next opening begins anew.
    fn damage(&self, error: IndexError) -> IndexError {
        if !self.damaged.swap(true, Ordering::SeqCst) {
            tracing::error!(%error, "the index is damaged; it is rebuilt from the segments when it is opened again");
            if let Err(unwritten) = note_damage(&self.path, &error.to_string()) {
                tracing::error!(error = %unwritten, "the damage could not be noted");
            }
        }
        error.damaged()
    }

    fn get_raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.with(|database| database.get(key).map_err(|error| self.error("read", error)))
    }

    /// Keys of a kind and their values, from `from` on.
    fn scan<'a>(
        &'a self,
        database: &'a DB,
        from: &[u8],
        kind: u8,
    ) -> impl Iterator<Item = Result<KeyValue, IndexError>> + 'a {
        database
            .iterator(IteratorMode::From(from, Direction::Forward))
            .map(|item| item.map_err(|error| self.error("read", error)))
            .take_while(move |item| item.as_ref().map_or(true, |(key, _)| key.first() == Some(&kind)))
    }

    fn write(&self, changes: WriteBatch, logged: bool) -> Result<(), IndexError> {
        self.with(|database| {
            let written = if logged { database.write(changes) } else { database.write_without_wal(changes) };
            written.map_err(|error| self.error("write to", error))
        })
    }
}

/// Whether the database itself is damaged: its files are not what it wrote, or are gone.
fn is_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        ErrorKind::Corruption => true,
        // RocksDB tells a missing file from others by the system's text alone.
        ErrorKind::IOError => error.as_ref().contains("No such file or directory"),
        _ => false,
    }
}

/// Whether a database that can't be opened is begun anew. Another process's lock, a refused permission and what the disk
/// fails to read are I/O errors of other texts: a new database would meet them too, or hide them.
fn opens_anew(error: &rocksdb::Error) -> bool {
    is_damage(error)
        || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotSupported | ErrorKind::InvalidArgument)
}

fn damage_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    name.into()
}

/// Why the index must be begun anew, if that was noted.
fn noted_damage(path: &Path) -> Result<Option<String>, IndexError> {
    let note = damage_path(path);
    match fs::read(&note) {
        Ok(reason) => Ok(Some(String::from_utf8_lossy(&reason).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(IndexError::new("read the note beside", note.display(), error)),
    }
}

fn note_damage(path: &Path, reason: &str) -> io::Result<()> {
    let mut note = File::create(damage_path(path))?;
    note.write_all(reason.as_bytes())?;
    note.sync_all()?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// What there is no more is removed.
fn removed(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn open_database(path: &Path, horizon: &Arc<AtomicU32>) -> Result<DB, rocksdb::Error> {
    DB::open(&database_options(horizon), path)
}

fn database_options(horizon: &Arc<AtomicU32>) -> Options {
    let mut tables = BlockBasedOptions::default();
    let mut cache = LruCacheOptions::default();
    cache.set_capacity(BLOCK_CACHE_BYTES);
    cache.set_num_shard_bits(BLOCK_CACHE_PARTS);
    tables.set_block_cache(&Cache::new_lru_cache_opts(&cache));
    tables.set_bloom_filter(BLOOM_BITS, false);
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    tables.set_partition_filters(true);
    tables.set_metadata_block_size(METADATA_BLOCK_BYTES);
    tables.set_pin_top_level_index_and_filter(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&tables);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_memtable_prefix_bloom_ratio(WRITE_BUFFER_BLOOM_SHARE);
    options.set_memtable_whole_key_filtering(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_keep_log_file_num(LOG_FILES_MAX);
    // A torn end of the log is a crash; whatever lies behind a torn place must not count, or it would not be a prefix.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    let horizon = Arc::clone(horizon);
    options.set_compaction_filter("lazaret-expiry", move |_, key, value| {
        if expired(key, value, horizon.load(Ordering::Relaxed)) { Decision::Remove } else { Decision::Keep }
    });
    options
}

fn begin_anew(path: &Path, horizon: &Arc<AtomicU32>, reason: &str) -> Result<DB, IndexError> {
    tracing::warn!(path = %path.display(), reason, "the index can't be used and is rebuilt from the segments");
    let failed = |error: io::Error| IndexError::new("remove", path.display(), error);
    // Noted first, since half a directory may look whole.
    note_damage(path, reason).map_err(failed)?;
    let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir());
    removed(if is_file { fs::remove_file(path) } else { fs::remove_dir_all(path) }).map_err(failed)?;
    let database = open_database(path, horizon).map_err(|error| IndexError::new("open", path.display(), error))?;
    removed(fs::remove_file(damage_path(path))).and_then(|()| sync_parent(path)).map_err(failed)?;
    Ok(database)
}

/// Whether nothing of what a key stands for is left. What can't be read is kept, for a read to complain about.
fn expired(key: &[u8], value: &[u8], horizon: u32) -> bool {
    match key.first() {
        Some(&NAME) => Entry::decode(value).is_some_and(|entry| entry.live(horizon).0.is_empty()),
        Some(&UPLOAD) => decode_owner(value).is_some_and(|owner| owner.bucket < horizon),
        _ => false,
    }
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
    let dead_bytes = u64::from_le_bytes(take(&mut value)?);
    let [flags] = take(&mut value)?;
    Some((address, SegmentState { synced, sealed: flags & SEALED != 0, dead_bytes, removed: flags & REMOVED != 0 }))
}

fn encode_segment(state: &SegmentState) -> Vec<u8> {
    let mut value = state.synced.to_le_bytes().to_vec();
    value.extend_from_slice(&state.dead_bytes.to_le_bytes());
    value.push(if state.sealed { SEALED } else { 0 } | if state.removed { REMOVED } else { 0 });
    value
}

fn totals_key(bucket: u32) -> [u8; 5] {
    let [a, b, c, d] = bucket.to_be_bytes();
    [TOTALS, a, b, c, d]
}

fn decode_totals(key: &[u8], value: &[u8]) -> Option<(u32, Totals)> {
    let (mut key, mut value) = (key.get(1..)?, value);
    let bucket = u32::from_be_bytes(take(&mut key)?);
    let blobs = u64::from_le_bytes(take(&mut value)?);
    Some((bucket, Totals { blobs, bytes: u64::from_le_bytes(take(&mut value)?) }))
}

fn upload_key(upload: UploadId) -> Vec<u8> {
    let mut key = vec![UPLOAD];
    key.extend_from_slice(upload.as_bytes());
    key
}

fn decode_owner(mut value: &[u8]) -> Option<UploadOwner> {
    Some(UploadOwner { name: BlobName(take(&mut value)?), bucket: u32::from_le_bytes(take(&mut value)?) })
}

fn decode_named(key: &[u8], value: &[u8]) -> Option<(BlobName, Entry)> {
    let mut key = key.get(1..)?;
    Some((BlobName(take(&mut key)?), Entry::decode(value)?))
}

fn batch_of(batch: &IndexBatch) -> WriteBatch {
    let mut changes = WriteBatch::default();
    // In order, so that each finds its place in the write buffer beside the one before.
    let mut entries: Vec<_> = batch.entries.iter().collect();
    entries.sort_unstable_by_key(|(name, _)| *name);
    for (name, entry) in entries {
        if entry.is_empty() {
            changes.delete(name_key(*name));
        } else {
            changes.put(name_key(*name), entry.encode());
        }
    }
    for (address, state) in &batch.segments {
        match state {
            Some(state) => changes.put(segment_key(*address), encode_segment(state)),
            None => changes.delete(segment_key(*address)),
        }
    }
    for (bucket, totals) in &batch.totals {
        if *totals == Totals::default() {
            changes.delete(totals_key(*bucket));
        } else {
            let value = [totals.blobs.to_le_bytes(), totals.bytes.to_le_bytes()].concat();
            changes.put(totals_key(*bucket), value);
        }
    }
    for (upload, owner) in &batch.uploads {
        let value = [owner.name.as_bytes().as_slice(), &owner.bucket.to_le_bytes()].concat();
        changes.put(upload_key(*upload), value);
    }
    changes
}

impl Index for RocksIndex {
    fn get(&self, name: BlobName) -> Result<Option<Entry>, IndexError> {
        self.with(|database| {
            let found = database.get_pinned(name_key(name)).map_err(|error| self.error("read", error))?;
            let Some(value) = found else { return Ok(None) };
            Entry::decode(&value).map(Some).ok_or_else(|| self.malformed(&format!("the entry of {name}")))
        })
    }

    fn apply(&self, batch: IndexBatch) -> Result<(), IndexError> {
        self.write(batch_of(&batch), true)
    }

    fn load(&self, batch: IndexBatch) -> Result<(), IndexError> {
        self.unlogged.store(true, Ordering::SeqCst);
        self.write(batch_of(&batch), false)
    }

    fn segments(&self) -> Result<Vec<(SegmentAddress, SegmentState)>, IndexError> {
        self.with(|database| {
            let decode = |item: Result<KeyValue, IndexError>| {
                let (key, value) = item?;
                decode_segment(&key, &value).ok_or_else(|| self.malformed("the state of a segment"))
            };
            self.scan(database, &[SEGMENT], SEGMENT).map(decode).collect()
        })
    }

    fn entries(
        &self,
        after: Option<BlobName>,
        until: Option<BlobName>,
        limit: usize,
    ) -> Result<Vec<(BlobName, Entry)>, IndexError> {
        let from = after.map_or_else(|| vec![NAME], |name| name_key(name).to_vec());
        let (after, until) = (after.map(name_key), until.map(name_key));
        let is_within = |key: &[u8]| until.as_ref().is_none_or(|until| key <= &until[..]);
        let is_after = |key: &[u8]| Some(key) != after.as_ref().map(|key| &key[..]);
        self.with(|database| {
            self.scan(database, &from, NAME)
                .filter(|item| item.as_ref().map_or(true, |(key, _)| is_after(key)))
                .take_while(|item| item.as_ref().map_or(true, |(key, _)| is_within(key)))
                .take(limit)
                .map(|item| {
                    let (key, value) = item?;
                    decode_named(&key, &value).ok_or_else(|| self.malformed("an entry"))
                })
                .collect()
        })
    }

    fn totals(&self) -> Result<Vec<(u32, Totals)>, IndexError> {
        self.with(|database| {
            let decode = |item: Result<KeyValue, IndexError>| {
                let (key, value) = item?;
                decode_totals(&key, &value).ok_or_else(|| self.malformed("what is held of a bucket"))
            };
            self.scan(database, &[TOTALS], TOTALS).map(decode).collect()
        })
    }

    fn upload(&self, upload: UploadId) -> Result<Option<UploadOwner>, IndexError> {
        let Some(value) = self.get_raw(&upload_key(upload))? else { return Ok(None) };
        decode_owner(&value).map(Some).ok_or_else(|| self.malformed("the owner of an upload"))
    }

    fn expire(&self, horizon: u32, blobs: u64) -> Result<(), IndexError> {
        self.horizon.fetch_max(horizon, Ordering::Relaxed);
        let expired = self.expired.fetch_add(blobs, Ordering::Relaxed).saturating_add(blobs);
        self.with(|database| {
            let keys = database.property_int_value("rocksdb.estimate-num-keys");
            let keys = keys.map_err(|error| self.error("read", error))?.unwrap_or_default();
            if expired >= COMPACT_ENTRIES_MIN && expired >= keys / COMPACT_SHARE {
                self.expired.store(0, Ordering::Relaxed);
                database.compact_range(Some([NAME]), Some([NAME + 1]));
                database.compact_range(Some([UPLOAD]), Some([UPLOAD + 1]));
            }
            Ok(())
        })
    }

    fn flush(&self) -> Result<(), IndexError> {
        self.with(|database| {
            // What was written past the log is durable only as a table.
            let unlogged = self.unlogged.swap(false, Ordering::SeqCst);
            let flushed = if unlogged { database.flush() } else { database.flush_wal(true) };
            flushed.map_err(|error| self.error("flush", error))
        })
    }

    fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        drop(self.database.write().unwrap_or_else(PoisonError::into_inner).take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::HoldEntry;

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
        let totals = vec![(7, Totals { blobs: at, bytes: at })];
        IndexBatch { entries: vec![(BlobName([at as u8; 32]), entry)], totals, ..IndexBatch::default() }
    }

    #[test]
    fn an_index_survives_being_closed_and_one_of_another_version_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let index = RocksIndex::open(directory.path()).unwrap();
        index.apply(killed(3)).unwrap();
        assert!(RocksIndex::open(directory.path()).is_err(), "two at a time");
        drop(index);
        let index = RocksIndex::open(directory.path()).unwrap();
        assert_eq!(index.totals().unwrap(), [(7, Totals { blobs: 3, bytes: 3 })]);
        assert_eq!(index.get(BlobName([3; 32])).unwrap().unwrap().killed_until_ms, Some(3));
        index
            .with(|database| {
                database.put(VERSION_KEY, [ENTRY_VERSION + 1]).map_err(|error| index.error("write to", error))
            })
            .unwrap();
        drop(index);
        let index = RocksIndex::open(directory.path()).unwrap();
        assert_eq!(index.entries(None, None, 10).unwrap(), []);
        assert_eq!(index.totals().unwrap(), []);
    }

    #[test]
    fn a_damaged_index_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let index = RocksIndex::open(directory.path()).unwrap();
        index.apply(killed(3)).unwrap();
        drop(index);
        std::fs::write(directory.path().join("CURRENT"), b"garbage").unwrap();
        let index = RocksIndex::open(directory.path()).unwrap();
        assert_eq!(index.entries(None, None, 10).unwrap(), []);
        index.apply(killed(4)).unwrap();
        assert_eq!(index.totals().unwrap(), [(7, Totals { blobs: 4, bytes: 4 })]);
    }

    #[test]
    fn a_look_up_in_a_large_index_reads_a_few_blocks() {
        const ENTRIES: u64 = 2_000_000;
        const BATCH: u64 = 10_000;
        const LOOK_UPS: u64 = 1_000;
        let directory = tempfile::tempdir().unwrap();
        let index = RocksIndex::open(directory.path()).unwrap();
        let name = |number: u64| BlobName(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let entry = Entry { killed_until_ms: Some(u64::MAX), ..Entry::default() };
        for batch in 0..ENTRIES / BATCH {
            let entries = (batch * BATCH..(batch + 1) * BATCH).map(|number| (name(number), entry.clone())).collect();
            index.load(IndexBatch { entries, ..IndexBatch::default() }).unwrap();
        }
        index.flush().unwrap();
        drop(index);
        let index = RocksIndex::open(directory.path()).unwrap();
        let look_up = |range: std::ops::Range<u64>| {
            let mut context = rocksdb::perf::PerfContext::default();
            context.reset();
            rocksdb::perf::set_perf_stats(rocksdb::perf::PerfStatsLevel::EnableCount);
            let found = range.clone().filter(|number| index.get(name(*number)).unwrap().is_some()).count() as u64;
            (found, context.metric(rocksdb::perf::PerfMetric::BlockReadByte) / (range.end - range.start))
        };
        let (found, bytes) = look_up(0..LOOK_UPS);
        assert_eq!(found, LOOK_UPS);
        assert!(bytes < 64 << 10, "{bytes} bytes for a name that is there");
        let (found, bytes) = look_up(ENTRIES..ENTRIES + LOOK_UPS);
        assert_eq!(found, 0);
        assert!(bytes < 64 << 10, "{bytes} bytes for a name that is not");
    }

    #[test]
    fn expired_keys_leave_the_database_when_it_compacts() {
        const KEYS: u64 = 40_000;
        let directory = tempfile::tempdir().unwrap();
        let index = RocksIndex::open(directory.path()).unwrap();
        let keys =
            |index: &RocksIndex| index.with(|database| Ok(database.iterator(IteratorMode::Start).count())).unwrap();
        let name = |at: u64| {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&at.to_be_bytes());
            BlobName(name)
        };
        for at in 0..KEYS {
            // Three of four are of an hour that expires; of these one in ten has a hold.
            let bucket = if at % 4 == 0 { 9 } else { 5 };
            let entry = Entry {
                killed_until_ms: Some(bucket * 3_600_000),
                hold: (at % 10 == 0).then_some(HoldEntry { time_ms: 1, placed: at % 20 == 0, from_bucket: 0 }),
                ..Entry::default()
            };
            let owner = UploadOwner { name: name(at), bucket: bucket as u32 };
            let upload = UploadId(name(at).0[..16].try_into().unwrap());
            let batch = IndexBatch {
                entries: vec![(name(at), entry)],
                uploads: vec![(upload, owner)],
                ..IndexBatch::default()
            };
            index.apply(batch).unwrap();
        }
        let all = 2 * KEYS as usize + 1;
        assert_eq!(keys(&index), all);
        index.expire(5, 2 * KEYS).unwrap();
        assert_eq!(keys(&index), all, "nothing has expired");
        index.expire(9, 10).unwrap();
        assert_eq!(keys(&index), all, "for so few it is not worth it");
        index.expire(9, 2 * KEYS).unwrap();
        let gone = |at: &u64| !at.is_multiple_of(4) && !at.is_multiple_of(10);
        let left = (0..KEYS).filter(|at| !gone(at)).count() + (0..KEYS).filter(|at| at.is_multiple_of(4)).count() + 1;
        assert_eq!(keys(&index), left);
        for at in 0..100 {
            assert_eq!(index.get(name(at)).unwrap().is_none(), gone(&at), "{at}");
        }
        // One that comes back is a new one.
        let entry = Entry { killed_until_ms: Some(9 * 3_600_000), ..Entry::default() };
        index.apply(IndexBatch { entries: vec![(name(1), entry.clone())], ..IndexBatch::default() }).unwrap();
        index.expire(9, 2 * KEYS).unwrap();
        assert_eq!(index.get(name(1)).unwrap(), Some(entry));
    }
}
