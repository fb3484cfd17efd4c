//! What a worker takes on: tasks for its free slots, parts of what others share when there is none, and the sweep for what is
//! unfinished and has no task.

use std::sync::Arc;
use std::time::Duration;

use lazaret_analysis::{Lease, StoreError, Task};
use tokio::sync::{oneshot, watch};

use super::sharing::JOIN_INTERVAL;
use super::slots::Slot;
use super::{RETRY_DELAY, Shared, is_suspect};

/// The pause after tasks could not be leased doubles from [`RETRY_DELAY`] up to here.
const LEASE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Most unfinished analyses that one pass of the sweep looks at; the next pass sees the rest.
const SWEEP_MAX: u32 = 1_000;

/// The pauses while no task can be leased.
#[derive(Default)]
struct Pauses {
    last: Option<Duration>,
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let pause = self.last.map_or(RETRY_DELAY, |last| (last * 2).min(LEASE_PAUSE_MAX));
        self.last = Some(pause);
        pause
    }

    /// The queue answers.
    fn end(&mut self) {
        self.last = None;
    }
}

impl Shared {
    /// Leases tasks and starts their scans, for ever. May be dropped at any point: a task that was leased and not begun
    /// comes back when its lease ends.
    pub(super) async fn take_tasks(self: &Arc<Self>, shutdown: &watch::Receiver<bool>) {
        let mut next_join = Duration::ZERO;
        let mut pauses = Pauses::default();
        loop {
            let (any, small) = self.slots.free().await;
            // Side by side they cost one transaction of the queue.
            let (leased, leased_small) = tokio::join!(self.lease(any.len(), false), self.lease(small.len(), true));
            let error = [&leased, &leased_small].into_iter().find_map(|leased| leased.as_ref().err().cloned());
            let (leased, leased_small) = (leased.unwrap_or_default(), leased_small.unwrap_or_default());
            if leased.is_empty() && leased_small.is_empty() {
                drop(small);
                let Some(error) = error else {
                    pauses.end();
                    self.idle(any, &mut next_join, shutdown).await;
                    continue;
                };
                drop(any);
                let pause = pauses.next();
                tracing::warn!(%error, pause_s = pause.as_secs(), "no task could be leased, trying again later");
                self.environment.clock.sleep(pause).await;
                continue;
            }
            pauses.end();
            let leased = leased.into_iter().zip(any).chain(leased_small.into_iter().zip(small));
            let (mut suspects, mut begun): (Vec<_>, Vec<_>) = leased.partition(|(lease, _)| is_suspect(lease));
            // One at a time: if it takes this worker down, those that had yet to be begun are not to be blamed.
            for (lease, _) in suspects.drain(suspects.len().min(1)..) {
                if let Err(error) = self.queue.unlease(&lease.token).await {
                    let data_id = lease.task.data_id;
                    tracing::warn!(%data_id, %error, "a task that was not begun could not be given back, it comes back late");
                }
            }
            begun.append(&mut suspects);
            let mut alone = None;
            for (lease, slot) in begun {
                let (shared, slot, shutdown) = (self.clone(), self.slots.occupy(slot), shutdown.clone());
                let (end, ended) = oneshot::channel::<()>();
                if is_suspect(&lease) {
                    alone = Some(ended);
                }
                self.environment.spawner.spawn(Box::pin(async move {
                    shared.work(lease, slot, shutdown).await;
                    drop(end);
                }));
            }
            if let Some(ended) = alone {
                // Whatever were leased meanwhile would be blamed with it.
                let _ = ended.await;
            }
        }
    }

    /// There is no task for these slots: joins what another worker shares, or waits until there may be something to do.
    async fn idle(self: &Arc<Self>, mut any: Vec<Slot>, next_join: &mut Duration, shutdown: &watch::Receiver<bool>) {
        let had_none = any.is_empty();
        let now = self.environment.clock.monotonic();
        if now >= *next_join
            && let Some(slot) = any.pop()
        {
            *next_join = now + JOIN_INTERVAL;
            if let Some(part) = self.join().await {
                let (shared, slot, shutdown) = (self.clone(), self.slots.occupy(slot), shutdown.clone());
                self.environment.spawner.spawn(Box::pin(async move {
                    shared.help(part, slot, shutdown).await;
                }));
                return;
            }
        }
        // No slot is held meanwhile: whoever scans a small file may want one.
        drop(any);
        let any_slot = async {
            match had_none {
                true => drop(self.slots.any().await),
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.queue.wait(RETRY_DELAY) => {}
            () = any_slot => {}
        }
    }

    async fn lease(&self, max: usize, small: bool) -> Result<Vec<Lease>, StoreError> {
        let (name, lease_ms, now_ms) = (&self.options.name, self.options.lease_ms, self.now_ms());
        match small {
            _ if max == 0 => Ok(Vec::new()),
            true => self.queue.lease_small(name, max, lease_ms, now_ms).await,
            false => self.queue.lease(name, max, lease_ms, now_ms).await,
        }
    }

    /// Queues what is unfinished and has no task, again and again.
    pub(super) async fn sweep(self: Arc<Self>) {
        loop {
            if let Err(error) = self.sweep_once().await {
                tracing::warn!(%error, "the sweep for lost tasks failed");
            }
            self.environment.clock.sleep(self.options.sweep_interval).await;
        }
    }

    async fn sweep_once(&self) -> Result<(), StoreError> {
        let now_ms = self.now_ms();
        let before_ms = now_ms.saturating_sub(self.options.sweep_age_ms);
        for data_id in self.results.unfinished(before_ms, SWEEP_MAX).await? {
            if self.queue.contains(data_id).await? {
                continue;
            }
            // It may have been finished, and its task with it, since the list was made.
            let record = self.results.get(data_id).await?;
            let Some(record) = record.filter(|record| !record.state.is_finished()) else { continue };
            if self.queue.push(Task::of(&record.new, now_ms)).await? {
                tracing::warn!(%data_id, "an unfinished analysis had no task and was queued again");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_refuses_is_asked_again_after_growing_pauses() {
        let mut pauses = Pauses::default();
        let seconds: Vec<u64> = (0..6).map(|_| pauses.next().as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
        pauses.end();
        assert_eq!(pauses.next(), RETRY_DELAY);
    }
}
