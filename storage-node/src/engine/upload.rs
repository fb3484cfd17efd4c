//! A streamed upload: content is hashed as it comes, cut into extents and appended without waiting for the disk; the
//! commit makes all of it durable at once, or none.

use std::collections::VecDeque;
use std::sync::Arc;

use lazaret_node_client::stream::Pieces;
use lazaret_protocol::limits::{BLOB_BYTES_MAX, EXTENT_BYTES_MAX};
use lazaret_protocol::message::PutDone;
use lazaret_protocol::tree::{TreeBuilder, tree_bytes};
use lazaret_protocol::{BlobName, PlacementKey, UploadId};
use tokio::sync::oneshot;

use super::moves::commit_record;
use super::{EngineError, Outcome, Shared, UnderWay, off_thread};
use crate::record::{
    Commit, HELD_BUCKET, Location, PreparedRecord, RECORD_HEADER_BYTES, RecordKind, TREE_PIECE_BYTES, record_buffer,
};
use crate::writer::{Meaning, Written};

/// Most pieces of one upload that wait to be written: one is on its way to the disk while the next one fills.
const PIECES_IN_FLIGHT_MAX: usize = 2;

/// An upload under way. Dropping it abandons it; what was written of it is garbage then.
pub struct EngineUpload {
    shared: Arc<Shared>,
    upload: UploadId,
    /// Keeps its pieces from being taken for garbage.
    under_way: Arc<UnderWay>,
    placement: PlacementKey,
    put_time_ms: u64,
    /// `None` while it is worked on elsewhere, and for good if that was cut short.
    content: Option<Content>,
    extents: Vec<Location>,
    tree: Vec<Location>,
    in_flight: VecDeque<(RecordKind, oneshot::Receiver<Result<Written, EngineError>>)>,
    extents_sent: u64,
    tree_bytes_sent: u64,
}

/// What has come and is not on its way to the disk.
struct Content {
    builder: TreeBuilder,
    /// The extent being filled, behind space for its header.
    extent: Vec<u8>,
    /// The tree not yet sent.
    pairs: Vec<u8>,
}

impl Content {
    fn extent_bytes(&self) -> usize {
        self.extent.len() - RECORD_HEADER_BYTES
    }

    fn push(&mut self, pieces: &Pieces) {
        let begin = self.extent.len();
        self.extent.reserve(pieces.len());
        pieces.iter().for_each(|piece| self.extent.extend_from_slice(piece));
        // Hashed where it lies together: pieces are shorter than what is fastest to hash.
        self.builder.push(self.extent.get(begin..).unwrap_or_default());
        let more = self.builder.take_pairs();
        self.pairs.extend_from_slice(&more);
    }
}

impl EngineUpload {
    pub(crate) fn new(shared: Arc<Shared>, upload: UploadId, placement: PlacementKey, put_time_ms: u64) -> Self {
        let content = Content { builder: TreeBuilder::new(), extent: record_buffer(0), pairs: Vec::new() };
        let under_way = shared.store.begin(upload);
        Self {
            shared,
            upload,
            under_way,
            placement,
            put_time_ms,
            content: Some(content),
            extents: Vec::new(),
            tree: Vec::new(),
            in_flight: VecDeque::new(),
            extents_sent: 0,
            tree_bytes_sent: 0,
        }
    }

    /// Takes what comes next of the content, of any length.
    pub async fn append(&mut self, more: impl Into<Pieces>) -> Result<(), EngineError> {
        let mut more = more.into();
        while !more.is_empty() {
            let content = self.content.as_ref().ok_or(EngineError::UploadLost { upload: self.upload })?;
            if content.builder.length() + more.len() as u64 > BLOB_BYTES_MAX {
                return Err(EngineError::BlobTooLong);
            }
            let space = EXTENT_BYTES_MAX - content.extent_bytes();
            if space == 0 {
                // Only now, when more comes, is it certain that this is not a blob of one record.
                self.send_extent().await?;
                continue;
            }
            let taken = more.split_to(space);
            self.with_content(taken.len(), move |content| content.push(&taken)).await?;
        }
        Ok(())
    }

    /// Makes the blob durable, if its content is what name and length say.
    pub async fn commit(mut self, name: BlobName, length: u64) -> Result<PutDone, EngineError> {
        let (builder, mut pairs) = {
            let content = self.content.as_mut().ok_or(EngineError::UploadLost { upload: self.upload })?;
            (std::mem::take(&mut content.builder), std::mem::take(&mut content.pairs))
        };
        let actual_length = builder.length();
        // At most one group is left to hash.
        let (actual_name, rest) = builder.finish();
        if (actual_name, actual_length) != (name, length) {
            return Err(EngineError::NameMismatch { name, length, actual_name, actual_length });
        }
        pairs.extend_from_slice(&rest);
        if self.extents_sent == 0 {
            return self.commit_whole(name, length, pairs).await;
        }
        self.send_extent().await?;
        self.send_tree(pairs).await?;
        while !self.in_flight.is_empty() {
            self.settle_one().await?;
        }
        debug_assert_eq!(self.tree_bytes_sent, tree_bytes(length));
        let (extents, tree) = (std::mem::take(&mut self.extents), std::mem::take(&mut self.tree));
        let commit = Commit { upload: self.upload, length, placement: Some(self.placement), extents, tree };
        let record = commit_record(name, self.put_time_ms, &commit);
        let meaning = Meaning::Commit { name, commit: commit.clone() };
        match self.shared.put(record, meaning, self.put_time_ms, Some(Arc::clone(&self.under_way))).await? {
            Outcome::Done(done) => Ok(done),
            Outcome::MustMove => self.commit_held(name, commit).await,
        }
    }

    /// A hold stands for this name, which nobody could know before: the pieces are moved where nothing expires.
    async fn commit_held(self, name: BlobName, commit: Commit) -> Result<PutDone, EngineError> {
        let commit = self.shared.copy_pieces(commit, HELD_BUCKET, None, false).await?;
        let record = commit_record(name, self.put_time_ms, &commit);
        let meaning = Meaning::Commit { name, commit };
        match self.shared.put(record, meaning, self.put_time_ms, Some(self.under_way)).await? {
            Outcome::Done(done) => Ok(done),
            Outcome::MustMove => Err(EngineError::Unsettled { name }),
        }
    }

    async fn commit_whole(mut self, name: BlobName, length: u64, pairs: Vec<u8>) -> Result<PutDone, EngineError> {
        let content = self.content.take().ok_or(EngineError::UploadLost { upload: self.upload })?;
        let (put_time_ms, salt, mut buffer) = (self.put_time_ms, self.shared.salt(), content.extent);
        let record = off_thread(&self.shared.environment, buffer.len(), move || {
            buffer.extend_from_slice(&pairs);
            PreparedRecord::new(RecordKind::Blob, name.into(), 0, put_time_ms, pairs.len(), salt, buffer)
        })
        .await?;
        self.shared.put_done(record, Meaning::Whole { name, length }, put_time_ms).await
    }

    /// Sends the extent that was filled, and what is whole of the tree.
    async fn send_extent(&mut self) -> Result<(), EngineError> {
        let (upload, put_time_ms, salt) = (self.upload, self.put_time_ms, self.shared.salt());
        let position = self.extents_sent * EXTENT_BYTES_MAX as u64;
        let (record, pairs) = self
            .with_content(EXTENT_BYTES_MAX, move |content| {
                let extent = std::mem::replace(&mut content.extent, record_buffer(EXTENT_BYTES_MAX));
                let whole = content.pairs.len() - content.pairs.len() % TREE_PIECE_BYTES;
                let rest = content.pairs.split_off(whole);
                let pairs = std::mem::replace(&mut content.pairs, rest);
                let record =
                    PreparedRecord::new(RecordKind::Extent, upload.into(), position, put_time_ms, 0, salt, extent);
                (record, pairs)
            })
            .await?;
        self.extents_sent += 1;
        self.send_piece(record).await?;
        self.send_tree(pairs).await
    }

    async fn send_tree(&mut self, pairs: Vec<u8>) -> Result<(), EngineError> {
        for piece in pairs.chunks(TREE_PIECE_BYTES) {
            let mut buffer = record_buffer(piece.len());
            buffer.extend_from_slice(piece);
            let (upload, put_time_ms, position) = (self.upload, self.put_time_ms, self.tree_bytes_sent);
            let salt = self.shared.salt();
            let record = off_thread(&self.shared.environment, piece.len(), move || {
                PreparedRecord::new(RecordKind::Tree, upload.into(), position, put_time_ms, 0, salt, buffer)
            })
            .await?;
            self.tree_bytes_sent += piece.len() as u64;
            self.send_piece(record).await?;
        }
        Ok(())
    }

    async fn send_piece(&mut self, record: PreparedRecord) -> Result<(), EngineError> {
        while self.in_flight.len() >= PIECES_IN_FLIGHT_MAX {
            self.settle_one().await?;
        }
        let kind = record.header().kind;
        let reply = self.shared.send(record, Meaning::Piece { bucket: None }, false, None).await?;
        self.in_flight.push_back((kind, reply));
        Ok(())
    }

    /// Learns where the oldest piece on its way lies.
    async fn settle_one(&mut self) -> Result<(), EngineError> {
        let Some((kind, reply)) = self.in_flight.pop_front() else { return Ok(()) };
        let written = match reply.await.unwrap_or(Err(EngineError::Closed)) {
            Ok(Written::At(location)) => location,
            Ok(_) => return Err(EngineError::UploadLost { upload: self.upload }),
            Err(error) => {
                // A gap in the content can't be filled: nothing may be appended after it.
                self.content = None;
                return Err(error);
            }
        };
        match kind {
            RecordKind::Extent => self.extents.push(written),
            _ => self.tree.push(written),
        }
        Ok(())
    }

    /// Works on the content off the async threads. If the caller gives up meanwhile, the upload is lost.
    async fn with_content<T: Send + 'static>(
        &mut self,
        bytes: usize,
        work: impl FnOnce(&mut Content) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let mut content = self.content.take().ok_or(EngineError::UploadLost { upload: self.upload })?;
        let (content, result) = off_thread(&self.shared.environment, bytes, move || {
            let result = work(&mut content);
            (content, result)
        })
        .await?;
        self.content = Some(content);
        Ok(result)
    }
}
