//! Stores on simulated disks and in directories, and reads through them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::PutDone;
use lazaret_protocol::tree::Decoder;
use lazaret_storage_node::store::{DiskSource, Store};
use lazaret_storage_node::{Disk, EngineError, Index, MemoryIndex, Origin, SimDisk};

use crate::common::{NOON_MS, environment, options};

/// A simulated disk and its index.
#[derive(Clone)]
pub struct Simulated {
    pub label: &'static str,
    pub disk: SimDisk,
    pub index: MemoryIndex,
}

impl Simulated {
    pub fn new(label: &'static str) -> Self {
        Self { label, disk: SimDisk::new(), index: MemoryIndex::new() }
    }

    /// Both after a power failure of which nothing but what was synced need survive.
    pub fn crash(&self, seed: u64) -> Self {
        Self { label: self.label, disk: self.disk.crash(seed), index: self.index.crash(seed) }
    }

    /// The same disk when the process ended.
    pub fn kill(&self) -> Self {
        Self { label: self.label, disk: self.disk.kill(), index: self.index.clone() }
    }

    pub fn source(&self) -> DiskSource {
        let (disk, index) = (self.disk.clone(), self.index.clone());
        let open_disk = move || -> Result<Arc<dyn Disk>, EngineError> { Ok(Arc::new(disk.clone())) };
        let open_index = move || -> Result<Arc<dyn Index>, EngineError> { Ok(Arc::new(index.clone())) };
        DiskSource::new(self.label, open_disk, open_index)
    }
}

/// A disk that is not there.
pub fn missing(label: &'static str) -> DiskSource {
    let open_disk = || -> Result<Arc<dyn Disk>, EngineError> {
        let source = std::io::ErrorKind::NotFound.into();
        Err(lazaret_storage_node::DiskError::new("open", "the missing disk", source).into())
    };
    DiskSource::new(label, open_disk, || Ok(Arc::new(MemoryIndex::new())))
}

pub fn open(sources: Vec<DiskSource>, seed: u64) -> Result<Store, EngineError> {
    Store::open(sources, environment(seed).0, options())
}

pub fn open_simulated(disks: &[&Simulated], seed: u64) -> Store {
    open(disks.iter().map(|disk| disk.source()).collect(), seed).unwrap()
}

/// A store in directories, which are made.
pub fn open_directories(roots: &[&Path], seed: u64) -> Store {
    open(roots.iter().map(|root| DiskSource::directory(*root, false)).collect(), seed).unwrap()
}

pub async fn put(store: &Store, content: &Bytes) -> Result<PutDone, EngineError> {
    store.put_whole(BlobName::of(content), content.clone(), NOON_MS, Origin::Client).await
}

/// Reads as a client does: encodes, and verifies against the name alone.
pub fn read_all(store: &Store, name: BlobName) -> Result<Option<Vec<u8>>, EngineError> {
    let Some(reader) = store.open_blob(name)? else { return Ok(None) };
    let mut encoded = Vec::new();
    reader.encode(None, &mut encoded)?;
    let mut decoder = Decoder::new(name, reader.header().length, None).unwrap();
    let (mut rest, mut content) = (&encoded[..], Vec::new());
    while let Some(needed) = decoder.needed() {
        let (item, after) = rest.split_at(needed);
        if decoder.push(item).unwrap().is_some() {
            content.extend_from_slice(item);
        }
        rest = after;
    }
    Ok(Some(content))
}

pub fn assert_holds(store: &Store, content: &Bytes) {
    let held = read_all(store, BlobName::of(content)).unwrap().expect("the blob is not held");
    assert!(held == content[..], "other content");
}

pub fn assert_absent(store: &Store, content: &Bytes) {
    assert!(store.open_blob(BlobName::of(content)).unwrap().is_none());
}

/// Every file below a directory and its content.
pub fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                found.insert(entry.path().display().to_string(), std::fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}
