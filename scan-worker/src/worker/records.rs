//! Writes the records of one root's nested files, in the order in which they were finished, in batches.
//!
//! Scan threads block when the channel is full, which paces them to the store. A batch is what came within a quarter of a second: a
//! record's ids and digests lie all over the store's indexes, so that a small batch writes a page for each of them, and in a large one
//! they share pages. The end of a tree waits for nothing. Verdicts to be kept follow the records they stand for; one that can't be
//! kept is no fault.

use std::sync::Arc;
use std::time::Duration;

use lazaret_analysis::{KeptVerdict, NESTED_BATCH_MAX, NestedRecord, ResultStore, VERDICT_BATCH_MAX, VerdictKey};
use lazaret_node_client::Environment;
use tokio::sync::{mpsc, oneshot};

use crate::scan::RecordSink;

/// Records that wait to be written: two batches, so that one fills while the other is written.
const WAITING_MAX: usize = 2 * NESTED_BATCH_MAX;
/// How long a batch gathers records at most.
const GATHERING: Duration = Duration::from_millis(250);
/// How often a batch is offered to a store that refuses it.
const TRIES: u32 = 3;
/// How long to wait in between.
const RETRY_DELAY: Duration = Duration::from_millis(500);

enum Message {
    Record(Box<NestedRecord>),
    Keep(Box<(VerdictKey, KeptVerdict)>),
    End,
}

/// The writer of one root's records, running beside the scan.
pub(super) struct RecordWriter {
    messages: mpsc::Sender<Message>,
    written: oneshot::Receiver<Result<(), String>>,
}

struct Sink(mpsc::Sender<Message>);

impl RecordSink for Sink {
    fn put(&self, record: NestedRecord) -> Result<(), String> {
        self.0
            .blocking_send(Message::Record(Box::new(record)))
            .map_err(|_| "records can no longer be written".to_owned())
    }

    fn keep(&self, key: VerdictKey, verdict: KeptVerdict) {
        // If nothing is written any more, nothing is to be kept.
        let _ = self.0.blocking_send(Message::Keep(Box::new((key, verdict))));
    }
}

impl RecordWriter {
    /// Starts it, and makes what the scan puts its records into.
    pub fn start(results: Arc<dyn ResultStore>, environment: &Environment) -> (Self, Arc<dyn RecordSink>) {
        let (messages, waiting) = mpsc::channel(WAITING_MAX);
        let (done, written) = oneshot::channel();
        let writing = write_all(results, environment.clone(), waiting);
        environment.spawner.spawn(Box::pin(async move {
            // Nobody listens any more if the analysis was given up.
            let _ = done.send(writing.await);
        }));
        let sink = Arc::new(Sink(messages.clone()));
        (Self { messages, written }, sink)
    }

    /// Waits until everything that was put is written.
    pub async fn finish(self) -> Result<(), String> {
        // A writer that failed has gone; its answer says why.
        let _ = self.messages.send(Message::End).await;
        self.written.await.unwrap_or_else(|_| Err("the writer of records ended early".to_owned()))
    }
}

async fn write_all(
    results: Arc<dyn ResultStore>,
    environment: Environment,
    mut waiting: mpsc::Receiver<Message>,
) -> Result<(), String> {
    let mut messages = Vec::with_capacity(NESTED_BATCH_MAX);
    loop {
        gather(&mut waiting, &mut messages, &environment).await;
        // No message: whoever scans is gone, and so is whoever asks.
        let mut ended = messages.is_empty();
        let mut batch = Vec::with_capacity(messages.len());
        let mut kept = Vec::new();
        for message in messages.drain(..) {
            match message {
                Message::Record(record) => batch.push(*record),
                Message::Keep(verdict) => kept.push(*verdict),
                Message::End => ended = true,
            }
        }
        if !batch.is_empty() {
            write(&*results, &environment, &batch).await?;
        }
        for verdicts in kept.chunks(VERDICT_BATCH_MAX) {
            if let Err(error) = results.keep_verdicts(verdicts, environment.clock.unix_ms()).await {
                tracing::debug!(%error, "verdicts could not be kept");
            }
        }
        if ended {
            return Ok(());
        }
    }
}

/// Waits for the next batch. It is empty if no more can come.
async fn gather(waiting: &mut mpsc::Receiver<Message>, messages: &mut Vec<Message>, environment: &Environment) {
    waiting.recv_many(messages, NESTED_BATCH_MAX).await;
    let mut gathered = environment.clock.sleep(GATHERING);
    while messages.len() < NESTED_BATCH_MAX && !matches!(messages.last(), None | Some(Message::End)) {
        tokio::select! {
            () = &mut gathered => return,
            came = waiting.recv_many(messages, NESTED_BATCH_MAX - messages.len()) => if came == 0 { return },
        }
    }
}

async fn write(results: &dyn ResultStore, environment: &Environment, batch: &[NestedRecord]) -> Result<(), String> {
    let mut tries = 1;
    loop {
        match results.put_nested(batch).await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err("the analysis was finished by somebody else".to_owned()),
            Err(error) if tries >= TRIES => return Err(error.to_string()),
            Err(_) => {
                tries += 1;
                environment.clock.sleep(RETRY_DELAY).await;
            }
        }
    }
}
