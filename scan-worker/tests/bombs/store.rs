//! A store on disk, which a worker's memory is measured without; and files that are made where they are read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Mutex;

use bytes::Bytes;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;
use lazaret_scan_worker::source::{BlobSource, SourceError};
use tempfile::TempDir;

/// Makes the bytes of a file from some place on.
pub type Make = fn(u64, &mut [u8]);

/// Blobs as files of a folder.
pub struct DiskStore {
    folder: TempDir,
    made: Mutex<HashMap<BlobName, Make>>,
}

impl DiskStore {
    pub fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), made: Mutex::default() }
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
}
