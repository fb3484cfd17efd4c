//! Copies records to another segment and lets the entry point to the copy: for holds and for compaction.
//!
//! A copy counts only once the writer has seen that the entry still points to what was copied. If it does not, the copy is
//! garbage and nothing is lost. Copies are as they lie on disk, salted, with checksums and put times unchanged.

use std::sync::Arc;

use lazaret_protocol::{BlobName, UploadId};

use super::{EngineError, Shared};
use crate::index::{BlobEntry, Layout};
use crate::record::{
    Commit, Location, PreparedRecord, RecordHeader, RecordKind, SegmentAddress, Subject, record_buffer,
};
use crate::scan::{read_record_buffer, read_record_header};
use crate::writer::{Meaning, Moved, Written};

/// The record that commits an upload.
pub(crate) fn commit_record(name: BlobName, put_time_ms: u64, commit: &Commit) -> PreparedRecord {
    let mut buffer = record_buffer(0);
    commit.encode(&mut buffer);
    // Neither names nor places are a file's content: there is nothing to salt.
    PreparedRecord::new(RecordKind::Commit, name.into(), 0, put_time_ms, 0, None, buffer)
}

impl Shared {
    /// Moves a blob to `bucket`. If it changes meanwhile, the move has no effect.
    pub(crate) async fn move_blob(
        self: &Arc<Self>,
        name: BlobName,
        blob: BlobEntry,
        bucket: u32,
        urgent: bool,
    ) -> Result<(), EngineError> {
        match blob.layout.clone() {
            Layout::Whole(from) => {
                let Some(record) = self.read_copy(name, &blob, RecordKind::Blob, from).await? else {
                    return Err(self.damaged(name, &blob).await);
                };
                let meaning = Meaning::Moved { name, bucket, moved: Moved::Whole { from } };
                self.write(record, meaning, urgent).await.map(|_| ())
            }
            Layout::Streamed { .. } => self.move_streamed(name, &blob, bucket, None, urgent).await.map(|_| ()),
        }
    }

    /// Moves the pieces of a blob that lie in `only`, or all that do not lie in `bucket`, and its commit.
    pub(crate) async fn move_streamed(
        self: &Arc<Self>,
        name: BlobName,
        blob: &BlobEntry,
        bucket: u32,
        only: Option<SegmentAddress>,
        urgent: bool,
    ) -> Result<Written, EngineError> {
        let Layout::Streamed { placement, extents, tree } = blob.layout.clone() else { return Ok(Written::Overtaken) };
        let Some(upload) = self.upload_of(blob).await? else { return Err(self.damaged(name, blob).await) };
        let under_way = self.store.begin(upload);
        let commit = Commit { upload, length: blob.length, placement: Some(placement), extents, tree };
        let commit = match self.copy_pieces(commit, bucket, only, urgent).await {
            Err(EngineError::UploadLost { .. }) => return Err(self.damaged(name, blob).await),
            copied => copied?,
        };
        let record = commit_record(name, blob.put_time_ms, &commit);
        let moved = Moved::Commit { from: blob.layout.clone(), commit };
        let reply = self.send(record, Meaning::Moved { name, bucket, moved }, urgent, Some(under_way)).await?;
        reply.await.unwrap_or(Err(EngineError::Closed))
    }

    /// Copies the pieces of a commit that lie in `only`, or all that do not lie in `bucket`, to that bucket, one at a time, and
    /// returns the commit with their new places. A piece that is not whole makes it an upload that was lost.
    pub(crate) async fn copy_pieces(
        self: &Arc<Self>,
        commit: Commit,
        bucket: u32,
        only: Option<SegmentAddress>,
        urgent: bool,
    ) -> Result<Commit, EngineError> {
        let mut moved = commit.clone();
        let subject = Subject::from(commit.upload);
        let extents = moved.extents.iter_mut().map(|location| (RecordKind::Extent, location));
        for (kind, location) in extents.chain(moved.tree.iter_mut().map(|location| (RecordKind::Tree, location))) {
            if only.map_or(location.segment.bucket == bucket, |only| location.segment != only) {
                continue;
            }
            *location = self.copy_piece(commit.upload, kind, subject, *location, bucket, urgent).await?;
        }
        Ok(moved)
    }

    async fn copy_piece(
        self: &Arc<Self>,
        upload: UploadId,
        kind: RecordKind,
        subject: Subject,
        from: Location,
        bucket: u32,
        urgent: bool,
    ) -> Result<Location, EngineError> {
        let lost = EngineError::UploadLost { upload };
        let read = self.blocking("a read of the disk", move |shared| shared.read_record(kind, from)).await?;
        let record = read.filter(|record| record.header().subject == subject).ok_or(lost.clone())?;
        match self.write(record, Meaning::Piece { bucket: Some(bucket) }, urgent).await? {
            Written::At(location) => Ok(location),
            _ => Err(lost),
        }
    }

    /// A record of a kind as it lies on disk, if it is whole.
    pub(crate) fn read_record(&self, kind: RecordKind, at: Location) -> Result<Option<PreparedRecord>, EngineError> {
        let disk = &*self.store.disk;
        let Some(header) = read_record_header(disk, at.segment, at.offset)? else { return Ok(None) };
        if header.kind != kind {
            return Ok(None);
        }
        let buffer = read_record_buffer(disk, at.segment, at.offset, &header)?;
        Ok(buffer.map(|buffer| PreparedRecord::copied(header, buffer)))
    }

    /// The record of a whole blob, if it is what the entry says.
    async fn read_copy(
        self: &Arc<Self>,
        name: BlobName,
        blob: &BlobEntry,
        kind: RecordKind,
        from: Location,
    ) -> Result<Option<PreparedRecord>, EngineError> {
        let read = self.blocking("a read of the disk", move |shared| shared.read_record(kind, from)).await?;
        let as_said = |header: &RecordHeader| {
            header.subject == name.into() && u64::from(header.payload_bytes - header.tree_bytes) == blob.length
        };
        Ok(read.filter(|record| as_said(record.header())))
    }

    /// The upload whose pieces a blob is made of: its first piece tells.
    async fn upload_of(self: &Arc<Self>, blob: &BlobEntry) -> Result<Option<UploadId>, EngineError> {
        let Some(&first) = blob.layout.locations().next() else { return Ok(None) };
        let read = move |shared: &Shared| Ok(read_record_header(&*shared.store.disk, first.segment, first.offset)?);
        let header = self.blocking("a read of the disk", read).await?;
        Ok(header.filter(|header| header.kind == RecordKind::Extent).map(|header| header.subject.upload()))
    }

    /// Notes that a blob could not be copied because it is damaged.
    pub(crate) async fn damaged(self: &Arc<Self>, name: BlobName, blob: &BlobEntry) -> EngineError {
        let layout = blob.layout.clone();
        let mark = move |shared: &Shared| {
            shared.store.counters.corrupt_reads.add(1);
            shared.store.mark_damaged(name, &layout)
        };
        match self.blocking("marking a blob as damaged", mark).await {
            Ok(_) => EngineError::Corrupt { name, reason: "it can't be moved as it is".to_owned() },
            Err(error) => error,
        }
    }
}
