//! Puts: a body in frames, checked against what was announced, then handed to the engine.

use std::time::Duration;

use lazaret_node_client::stream::{Pieces, RecvHalf};
use lazaret_protocol::limits::{BLOB_BYTES_MAX, HELD_BYTES_MAX, PUT_TIME_SKEW_MAX_MS, UPLOAD_LEASE_MAX_MS};
use lazaret_protocol::message::{ErrorCode, PutDone, PutHeader, PutTarget, PutTrailer, Response};
use lazaret_protocol::name::{BlobName, PlacementKey, UploadId};

use super::{Inner, Refusal};
use crate::engine::Origin;

/// How long a streamed body may pause between frames: its bytes come from a user's upload, which may trickle.
const BODY_PAUSE_MAX: Duration = Duration::from_secs(120);

impl Inner {
    pub(super) async fn put(
        &self,
        header: PutHeader,
        origin: Origin,
        recv: &mut RecvHalf,
    ) -> Result<Response, Refusal> {
        self.check_writable()?;
        let now_ms = self.environment.clock.unix_ms();
        let skew_ms = now_ms.abs_diff(header.put_time_ms);
        if origin == Origin::Client && skew_ms > PUT_TIME_SKEW_MAX_MS {
            let message =
                format!("the put time is {skew_ms} ms off this node's clock, {PUT_TIME_SKEW_MAX_MS} are allowed");
            return Err(Refusal::new(ErrorCode::ClockSkew, message));
        }
        let done = match header.target {
            PutTarget::Whole { name, length } => self.put_whole(name, length, header.put_time_ms, origin, recv).await?,
            PutTarget::Streamed { upload, placement } => {
                self.put_streamed(upload, placement, &header, origin, recv).await?
            }
        };
        Ok(Response::Put(done))
    }

    async fn put_whole(
        &self,
        name: BlobName,
        length: u64,
        put_time_ms: u64,
        origin: Origin,
        recv: &mut RecvHalf,
    ) -> Result<PutDone, Refusal> {
        if length > HELD_BYTES_MAX as u64 {
            let message = format!("a body of {length} bytes is over the limit of {HELD_BYTES_MAX} for a whole put");
            return Err(Refusal::bad_request(message));
        }
        let _share = self.body_share(length as usize).await?;
        let content = self.whole_body(length as usize, recv).await?;
        let trailer: PutTrailer = self.step("sending the trailer", recv.recv_message()).await?;
        if trailer != (PutTrailer { name, length }) {
            return Err(Refusal::bad_request("the trailer differs from the header"));
        }
        Ok(self.store.put_whole(name, content, put_time_ms, origin).await?)
    }

    /// A body of exactly `length` bytes.
    async fn whole_body(&self, length: usize, recv: &mut RecvHalf) -> Result<Pieces, Refusal> {
        let mut body = Pieces::default();
        while let Some(frame) = self.step("sending the body", recv.recv_body_frame()).await? {
            body.extend(frame);
            if body.len() > length {
                return Err(Refusal::bad_request(format!("the body is longer than the {length} bytes announced")));
            }
        }
        if body.len() < length {
            return Err(Refusal::bad_request(format!("the body has {} bytes, {length} were announced", body.len())));
        }
        Ok(body)
    }

    async fn put_streamed(
        &self,
        upload: UploadId,
        placement: PlacementKey,
        header: &PutHeader,
        origin: Origin,
        recv: &mut RecvHalf,
    ) -> Result<PutDone, Refusal> {
        let lease_ms = header.lease_ms.min(UPLOAD_LEASE_MAX_MS);
        let received = self.environment.within(Duration::from_millis(lease_ms.into()), async {
            let mut engine_upload = self.store.begin_upload(upload, placement, header.put_time_ms, origin)?;
            let mut length = 0_u64;
            loop {
                let frame_length =
                    self.step_within(BODY_PAUSE_MAX, "sending the body", recv.recv_body_frame_length()).await?;
                if frame_length == 0 {
                    return Ok((engine_upload, length));
                }
                length += frame_length as u64;
                if length > BLOB_BYTES_MAX {
                    return Err(Refusal::bad_request(format!("the body is over the limit of {BLOB_BYTES_MAX} bytes")));
                }
                // Taken before the frame is read, so that what waits for the writer waits with the peer.
                let _share = self.body_share(frame_length).await?;
                let frame = self.step("sending the body", recv.read_pieces(frame_length)).await?;
                engine_upload.append(frame).await?;
            }
        });
        let lease_over = |_| Refusal::bad_request(format!("the upload took longer than its lease of {lease_ms} ms"));
        let (engine_upload, length) = received.await.map_err(lease_over)??;
        let trailer: PutTrailer = self.step("sending the trailer", recv.recv_message()).await?;
        if trailer.length != length {
            let message = format!("the body has {length} bytes, the trailer says {}", trailer.length);
            return Err(Refusal::bad_request(message));
        }
        Ok(engine_upload.commit(trailer.name, trailer.length).await?)
    }
}
