//! A streamed upload on one of a node's disks.

use lazaret_node_client::stream::Pieces;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::PutDone;

use super::Store;
use crate::engine::{Engine, EngineError, EngineUpload};

/// An upload under way. It stays on the disk on which it began, and fails if that does: nobody keeps what was sent.
pub struct StoreUpload {
    store: Store,
    slot: usize,
    engine: Engine,
    upload: EngineUpload,
}

impl StoreUpload {
    pub(super) fn new(store: Store, slot: usize, engine: Engine, upload: EngineUpload) -> Self {
        Self { store, slot, engine, upload }
    }

    /// Takes what comes next of the content, of any length.
    pub async fn append(&mut self, more: impl Into<Pieces>) -> Result<(), EngineError> {
        let appended = self.upload.append(more).await;
        if let Err(error) = &appended {
            self.store.note(self.slot, &self.engine, error);
        }
        appended
    }

    /// Makes the blob durable, if its content is what name and length say.
    pub async fn commit(self, name: BlobName, length: u64) -> Result<PutDone, EngineError> {
        let Self { store, slot, engine, upload } = self;
        let done = upload.commit(name, length).await;
        match &done {
            Ok(_) => store.slot(slot)?.note_success(),
            Err(error) => {
                store.note(slot, &engine, error);
            }
        }
        done
    }
}
