//! How many submissions may wait for workers: a bound on the queue, shared fairly among those who submit.
//!
//! The queue is shared by all gateways and counted once a second; what this one adds meanwhile is added to the count. So the
//! bound may be passed by what the other gateways take in within a second, and by the uploads in flight. Both are small
//! beside it. What workers take meanwhile is not: a short queue is counted again before anybody is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lazaret_analysis::TaskQueue;
use lazaret_node_client::Environment;

use crate::admission::is_fair;

/// How long a count of the queue is good for.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// The bound and what is known of the queue.
pub(crate) struct Backlog {
    queue: Arc<dyn TaskQueue>,
    environment: Environment,
    /// Most tasks that wait; 0: any number.
    max: u64,
    known: Mutex<Known>,
    /// Held by who counts.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// When it began to be counted last.
    counted: Option<Duration>,
    all: u64,
    of: HashMap<String, u64>,
}

impl Backlog {
    pub(crate) fn new(queue: Arc<dyn TaskQueue>, environment: Environment, max: u64) -> Self {
        Self { queue, environment, max, known: Mutex::default(), counting: tokio::sync::Mutex::default() }
    }

    /// Whether one more submission of that user may wait.
    pub(crate) async fn has_room(&self, user_id: &str) -> bool {
        if self.max == 0 {
            return true;
        }
        if !self.is_known(FRESH_FOR)
            && let Ok(_counting) = self.counting.try_lock()
        {
            // One request counts, the others go by the last count meanwhile.
            self.count().await;
        }
        if self.is_fair_to(user_id) {
            return true;
        }
        // A short queue may have been emptied since. The shorter it is, the less it costs to count.
        let fresh_for = Duration::from_millis(self.max).min(FRESH_FOR);
        if !self.is_known(fresh_for) {
            let _counting = self.counting.lock().await;
            if !self.is_known(fresh_for) {
                self.count().await;
            }
        }
        self.is_fair_to(user_id)
    }

    fn is_fair_to(&self, user_id: &str) -> bool {
        let known = self.known();
        is_fair(self.max, known.all, known.of.get(user_id).copied().unwrap_or(0), 1)
    }

    /// Whether the last count is no older than that.
    fn is_known(&self, fresh_for: Duration) -> bool {
        let now = self.environment.clock.monotonic();
        self.known().counted.is_some_and(|counted| now.saturating_sub(counted) < fresh_for)
    }

    /// One more waits.
    pub(crate) fn add(&self, user_id: &str) {
        if self.max == 0 {
            return;
        }
        let mut known = self.known();
        known.all = known.all.saturating_add(1);
        match known.of.get_mut(user_id) {
            Some(count) => *count = count.saturating_add(1),
            None => {
                known.of.insert(user_id.to_owned(), 1);
            }
        }
    }

    /// Counts the queue.
    async fn count(&self) {
        self.known().counted = Some(self.environment.clock.monotonic());
        match self.queue.waiting_by_owner().await {
            Ok(owners) => {
                let mut known = self.known();
                known.all = owners.iter().map(|(_, count)| *count).fold(0, u64::saturating_add);
                known.of = owners.into_iter().collect();
            }
            // What can't be counted can't be queued either; that says more than this could.
            Err(error) => tracing::warn!(%error, "the queue could not be counted"),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
