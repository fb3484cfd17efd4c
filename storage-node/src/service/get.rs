//! Gets: a blocking thread reads and encodes, a bounded channel holds it back, the stream takes what comes.

use std::io;

use bytes::{Bytes, BytesMut};
use lazaret_node_client::stream::SendHalf;
use lazaret_protocol::message::{Absent, ByteRange, ErrorCode, GetHeader, GetRequest, Locator, Response};
use lazaret_protocol::name::BlobName;
use lazaret_protocol::tree::tree_bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Inner, PROGRESS_TIMEOUT, Refusal};
use crate::engine::EngineError;
use crate::store::Store;

/// Bytes that go to the stream at once: two groups of the tree.
const CHUNK_BYTES: usize = 128 * 1024;
/// Chunks encoded ahead of the stream: half a MiB a get.
const CHUNKS_AHEAD_MAX: usize = 4;

/// What the reading thread hands over, in order: a header or an absence, chunks, the end.
enum Read {
    Absent(Option<Locator>),
    Header(GetHeader),
    Chunk(Bytes),
    Done,
    Failed(EngineError),
}

impl Inner {
    pub(super) async fn get(&self, request: GetRequest, send: &mut SendHalf) -> Result<(), Refusal> {
        if let Some(ByteRange { start, end }) = request.range
            && start > end
        {
            return Err(Refusal::bad_request(format!("range {start}-{end} is backwards")));
        }
        let busy = || Refusal::new(ErrorCode::Busy, "too many gets are under way, try again");
        let permit = match self.environment.within(PROGRESS_TIMEOUT, self.reads.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => return Err(busy()),
        };
        let spawner = &self.environment.spawner;
        // Work that runs on the spot must not wait for the stream.
        let ahead = if spawner.blocks_in_place() { Semaphore::MAX_PERMITS } else { CHUNKS_AHEAD_MAX };
        let (sender, mut reads) = mpsc::channel(ahead);
        let store = self.store.clone();
        spawner.run_blocking(Box::new(move || read(&store, request, &sender, permit)));

        let header = match reads.recv().await {
            Some(Read::Header(header)) => header,
            Some(Read::Absent(None)) => {
                return self.respond(send, Response::Absent(Absent { epoch: self.node.map().epoch })).await;
            }
            Some(Read::Absent(Some(locator))) => return self.respond(send, Response::Located(locator)).await,
            Some(Read::Failed(error)) => return Err(error.into()),
            Some(Read::Chunk(_) | Read::Done) | None => return Err(ended_early()),
        };
        // The first chunk is waited for before the header goes out: a copy found damaged there is still answered as such.
        let mut next = match reads.recv().await {
            Some(Read::Failed(error)) => return Err(error.into()),
            next => next,
        };
        self.step("taking the answer", send.send_message(&Response::Get(header))).await?;
        loop {
            match next {
                Some(Read::Chunk(chunk)) => self.step("taking the blob", send.send(chunk)).await?,
                Some(Read::Done) => return self.step("taking the blob", send.finish()).await,
                Some(Read::Failed(error)) => return Err(Refusal::Gone(error.to_string())),
                Some(Read::Header(_) | Read::Absent(_)) | None => {
                    return Err(Refusal::Gone("reading ended early".to_owned()));
                }
            }
            next = reads.recv().await;
        }
    }
}

fn ended_early() -> Refusal {
    Refusal::new(ErrorCode::Internal, "reading ended early")
}

/// Hands over what was read, waiting for space; false if nobody takes it any more. Where there is space it does not block,
/// and where the work runs on the spot there always is.
fn hand_over(sender: &mpsc::Sender<Read>, read: Read) -> bool {
    match sender.try_send(read) {
        Ok(()) => true,
        Err(TrySendError::Full(read)) => sender.blocking_send(read).is_ok(),
        Err(TrySendError::Closed(_)) => false,
    }
}

/// Runs on a blocking thread; ends when all is read, or when nobody takes it any more.
fn read(store: &Store, request: GetRequest, sender: &mpsc::Sender<Read>, permit: OwnedSemaphorePermit) {
    let outcome = read_blob(store, request, sender);
    drop(permit);
    // Nobody may be there to hear it.
    hand_over(sender, outcome.unwrap_or_else(Read::Failed));
}

fn read_blob(store: &Store, request: GetRequest, sender: &mpsc::Sender<Read>) -> Result<Read, EngineError> {
    let GetRequest { name, range } = request;
    let Some(blob) = store.open_blob(name)? else { return absent(store, name) };
    // Nobody may be there any more; writing the first chunk then fails as well.
    hand_over(sender, Read::Header(blob.header()));
    let length = blob.header().length;
    let encoded_bytes = usize::try_from(length.saturating_add(tree_bytes(length))).unwrap_or(CHUNK_BYTES);
    let mut chunks = Chunks { sender, gathered: BytesMut::with_capacity(encoded_bytes.min(CHUNK_BYTES)) };
    blob.encode(range, &mut chunks)?;
    chunks.flush_chunk();
    Ok(Read::Done)
}

fn absent(store: &Store, name: BlobName) -> Result<Read, EngineError> {
    Ok(Read::Absent(store.stat(name)?.locator))
}

/// Gathers what is written into chunks.
struct Chunks<'a> {
    sender: &'a mpsc::Sender<Read>,
    gathered: BytesMut,
}

impl Chunks<'_> {
    /// Hands over what was gathered; false if nobody takes it any more.
    fn flush_chunk(&mut self) -> bool {
        let chunk = self.gathered.split().freeze();
        chunk.is_empty() || hand_over(self.sender, Read::Chunk(chunk))
    }
}

impl io::Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..taken]);
        if self.gathered.len() == CHUNK_BYTES {
            if !self.flush_chunk() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.gathered.reserve(CHUNK_BYTES);
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
