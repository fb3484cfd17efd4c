//! What earlier scans found, out of the result store.
//!
//! Scan threads ask one file at a time; a thread of its own puts what has gathered meanwhile into one question to the store.
//! It ends with the last of those who may ask. A store that doesn't answer costs time, never a result: then nothing is known.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use lazaret_analysis::{DataId, Page, ResultStore, VERDICT_BATCH_MAX, VerdictKey};
use lazaret_node_client::environment::{Clock, Environment};
use tokio::runtime::Handle;

use crate::scan::{Answer, PAGE_MEMBERS, Verdicts};

/// Most questions that wait. A scan thread that finds the queue full has its file scanned.
const QUESTIONS_MAX: usize = 2 * VERDICT_BATCH_MAX;

struct Question {
    key: VerdictKey,
    answer: Answer,
}

/// The verdicts in a result store.
pub(super) struct StoredVerdicts {
    results: Arc<dyn ResultStore>,
    runtime: Handle,
    questions: SyncSender<Question>,
}

impl StoredVerdicts {
    /// Starts the thread that asks.
    pub fn start(results: Arc<dyn ResultStore>, runtime: Handle, environment: &Environment) -> std::io::Result<Self> {
        let (questions, waiting) = sync_channel(QUESTIONS_MAX);
        let (asked, clock, on) = (results.clone(), environment.clock.clone(), runtime.clone());
        let answering = move || answer_all(&*asked, &*clock, &on, &waiting);
        environment.spawner.spawn_thread("verdicts", Box::new(answering))?;
        Ok(Self { results, runtime, questions })
    }
}

impl Verdicts for StoredVerdicts {
    fn ask(&self, key: VerdictKey, answer: Answer) {
        match self.questions.try_send(Question { key, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(question) | TrySendError::Disconnected(question)) => (question.answer)(None),
        }
    }

    fn members(&self, parent: DataId, first: u32) -> Result<Page, String> {
        self.runtime.block_on(self.results.nested(parent, first, PAGE_MEMBERS)).map_err(|error| error.to_string())
    }
}

fn answer_all(results: &dyn ResultStore, clock: &dyn Clock, runtime: &Handle, waiting: &Receiver<Question>) {
    while let Ok(first) = waiting.recv() {
        let mut questions = vec![first];
        questions.extend(waiting.try_iter().take(VERDICT_BATCH_MAX - 1));
        let keys: Vec<VerdictKey> = questions.iter().map(|question| question.key).collect();
        let mut found = runtime.block_on(results.verdicts(&keys, clock.unix_ms())).unwrap_or_else(|error| {
            tracing::warn!(%error, "verdicts of earlier scans could not be looked up");
            Vec::new()
        });
        found.resize(questions.len(), None);
        for (question, found) in questions.into_iter().zip(found) {
            (question.answer)(found);
        }
    }
}
