//! A streamed upload on one of a node's disks.

use bytes::Bytes;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::PutDone;

use super::Store;
use crate::engine::{Engine, EngineError, EngineUpload};

/// An upload under way. It stays on the disk on which it began, and fails if that does: nobody keeps what was sent.
pub struct StoreUpload {
    store: Store,
    slot: usize,
    engine: Engine,
    failed_before: u32,
    upload: EngineUpload,
}

impl StoreUpload {
    pub(super) fn new(store: Store, slot: usize, engine: Engine, upload: EngineUpload) -> Self {
        let failed_before = store.slot(slot).map_or(0, |slot| slot.failed_writes());
        Self { store, slot, engine, failed_before, upload }
    }

    /// Takes the next piece of content, of any length.
    pub async fn append(&mut self, piece: Bytes) -> Result<(), EngineError> {
        let appended = self.upload.append(piece).await;
        if let Err(error) = &appended {
            self.store.note(self.slot, &self.engine, error, self.failed_before);
        }
        appended
    }

    /// Makes the blob durable, if its content is what name and length say.
    pub async fn commit(self, name: BlobName, length: u64) -> Result<PutDone, EngineError> {
        let Self { store, slot, engine, failed_before, upload } = self;
        let done = upload.commit(name, length).await;
        match &done {
            Ok(_) => store.slot(slot)?.note_success(),
            Err(error) => {
                store.note(slot, &engine, error, failed_before);
            }
        }
        done
    }
}
