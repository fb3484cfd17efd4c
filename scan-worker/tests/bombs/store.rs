//! A store on disk, which a worker's memory is measured without; and files that are made where they are read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;
use lazaret_scan_worker::source::{BlobSource, BlobWriter, SourceError};
use tempfile::{NamedTempFile, TempDir};

/// Makes the bytes of a file from some place on.
pub type Make = fn(u64, &mut [u8]);

/// Blobs as files of a folder.
pub struct DiskStore {
    folder: TempDir,
    made: Mutex<HashMap<BlobName, Make>>,
    stored_bytes: AtomicU64,
}

impl DiskStore {
    pub fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), made: Mutex::default(), stored_bytes: AtomicU64::new(0) }
    }

    pub fn put(&self, bytes: &[u8]) -> BlobName {
        let name = BlobName::of(bytes);
        std::fs::write(self.folder.path().join(name.to_string()), bytes).unwrap();
        name
    }

    /// A blob of which any part can be made.
    pub fn put_made(&self, make: Make) -> BlobName {
        let name = BlobName::of(b"a file that is made");
        self.made.lock().unwrap().insert(name, make);
        name
    }

    /// What the worker stored.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }
}

impl BlobSource for DiskStore {
    fn read(&self, name: BlobName, range: ByteRange) -> Result<Bytes, SourceError> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let made = self.made.lock().unwrap().get(&name).copied();
        if let Some(make) = made {
            make(range.start, &mut bytes);
            return Ok(bytes.into());
        }
        let mut file = File::open(self.folder.path().join(name.to_string())).unwrap();
        file.seek(SeekFrom::Start(range.start)).unwrap();
        file.read_exact(&mut bytes).unwrap();
        Ok(bytes.into())
    }

    fn store(&self) -> Result<Box<dyn BlobWriter + '_>, SourceError> {
        let file = NamedTempFile::new_in(self.folder.path()).unwrap();
        Ok(Box::new(DiskWriter { store: self, hash: blake3::Hasher::new(), file }))
    }
}

struct DiskWriter<'s> {
    store: &'s DiskStore,
    hash: blake3::Hasher,
    file: NamedTempFile,
}

impl BlobWriter for DiskWriter<'_> {
    fn write(&mut self, piece: Bytes) -> Result<(), SourceError> {
        self.hash.update(&piece);
        self.file.write_all(&piece).unwrap();
        self.store.stored_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<BlobName, SourceError> {
        let name = BlobName(*self.hash.finalize().as_bytes());
        self.file.persist(self.store.folder.path().join(name.to_string())).unwrap();
        Ok(name)
    }
}
