//! What watches over one running scan: the lease's heartbeat, the submitter's wish to cancel, the rule's time limit, the
//! worker's shutdown.

use std::time::Duration;

use lazaret_analysis::{AnalysisRecord, DataId, Lease, Part, PartToken, StoreError};
use tokio::sync::watch;

use super::Shared;
use super::sharing::Lead;
use crate::budget::StopReason;

/// How often the store is asked whether the analysis is to be cancelled: one read of about 0.1 ms.
const CANCEL_INTERVAL: Duration = Duration::from_millis(250);

/// By what right a scan runs.
#[derive(Clone, Copy)]
enum Held<'s> {
    /// The analysis' task.
    Task(&'s Lease),
    /// A part of what another worker leads.
    Part(&'s PartToken),
}

/// Watches over one scan. All moments are on the environment's monotonic clock.
pub(super) struct Supervisor<'s> {
    shared: &'s Shared,
    data_id: DataId,
    held: Held<'s>,
    /// What this scan leads, so that it stays open.
    lead: Option<std::sync::Arc<Lead>>,
    /// Whether others may wait for what the scan finds out.
    claimed: bool,
    next_beat: Duration,
    lease_end: Duration,
    next_look: Option<Duration>,
    time_limit: Option<Duration>,
    shutdown: watch::Receiver<bool>,
    shutdown_end: Option<Duration>,
    lost: bool,
    abandoned: bool,
}

enum Due {
    Beat,
    Look,
    TimeLimit,
    ShutdownEnd,
}

impl<'s> Supervisor<'s> {
    pub fn new(
        shared: &'s Shared,
        lease: &'s Lease,
        record: &AnalysisRecord,
        claimed: bool,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let limit = record.new.rule.global_timeout_seconds.map(Duration::from_secs);
        Self { claimed, ..Self::begin(shared, lease.task.data_id, Held::Task(lease), limit, shutdown) }
    }

    /// Watches over a part of what another worker leads.
    pub fn of_part(shared: &'s Shared, part: &'s Part, shutdown: watch::Receiver<bool>) -> Self {
        let left_ms = part.deadline_ms.map(|deadline_ms| deadline_ms.saturating_sub(shared.now_ms()));
        let limit = left_ms.map(Duration::from_millis);
        Self::begin(shared, part.root, Held::Part(&part.token), limit, shutdown)
    }

    fn begin(
        shared: &'s Shared,
        data_id: DataId,
        held: Held<'s>,
        limit: Option<Duration>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let now = shared.environment.clock.monotonic();
        let lasts = Duration::from_millis(shared.options.lease_ms);
        Self {
            shared,
            data_id,
            held,
            lead: None,
            claimed: false,
            next_beat: now + lasts / 3,
            lease_end: now + lasts,
            // Whoever begins has just read the record, which says whether it is to be cancelled.
            next_look: Some(now + CANCEL_INTERVAL),
            time_limit: limit.map(|limit| now.saturating_add(limit)),
            shutdown,
            shutdown_end: None,
            lost: false,
            abandoned: false,
        }
    }

    /// From now on keeps open what the scan leads.
    pub fn leads(&mut self, lead: Option<std::sync::Arc<Lead>>) {
        self.lead = lead;
    }

    async fn extend(&self) -> Result<bool, StoreError> {
        let (lease_ms, now_ms) = (self.shared.options.lease_ms, self.shared.now_ms());
        match self.held {
            Held::Task(lease) => self.shared.queue.extend(&lease.token, lease_ms, now_ms).await,
            Held::Part(token) => self.shared.results.extend_part(token, now_ms.saturating_add(lease_ms)).await,
        }
    }

    /// Whether the scan is of a task that nobody had before.
    pub fn is_first_attempt(&self) -> bool {
        matches!(self.held, Held::Task(lease) if lease.attempts <= 1)
    }

    /// Whether somebody else may have the task.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the worker ends.
    pub fn is_shutting_down(&self) -> bool {
        self.shutdown_end.is_some()
    }

    /// Beats until there is a reason to stop, and tells it; called again it beats on. May be dropped and called again.
    pub async fn next(&mut self) -> StopReason {
        loop {
            let Some((due, at)) = self.first_due() else { std::future::pending().await };
            let left = at.saturating_sub(self.shared.environment.clock.monotonic());
            let shutdown_known = self.shutdown_end.is_some();
            tokio::select! {
                biased;
                // An error means that whoever could ask for a shutdown is gone, which is one.
                _ = self.shutdown.wait_for(|asked| *asked), if !shutdown_known => {
                    let grace = self.shared.options.shutdown_grace;
                    self.shutdown_end = Some(self.shared.environment.clock.monotonic() + grace);
                    continue;
                }
                () = self.shared.environment.clock.sleep(left) => {}
            }
            let reason = match due {
                Due::Beat => self.beat().await,
                Due::Look => self.look().await,
                Due::TimeLimit => {
                    self.time_limit = None;
                    Some(StopReason::GlobalTimeout)
                }
                Due::ShutdownEnd => Some(StopReason::Abandoned),
            };
            self.abandoned |= reason == Some(StopReason::Abandoned);
            if let Some(reason) = reason {
                return reason;
            }
        }
    }

    /// What comes first; nothing once the scan was abandoned.
    fn first_due(&self) -> Option<(Due, Duration)> {
        if self.abandoned {
            return None;
        }
        let moments = [
            Some((Due::Beat, self.next_beat)),
            self.next_look.map(|at| (Due::Look, at)),
            self.time_limit.map(|at| (Due::TimeLimit, at)),
            self.shutdown_end.map(|at| (Due::ShutdownEnd, at)),
        ];
        moments.into_iter().flatten().min_by_key(|(_, at)| *at)
    }

    /// Extends the lease.
    async fn beat(&mut self) -> Option<StopReason> {
        let lasts = Duration::from_millis(self.shared.options.lease_ms);
        let began = self.shared.environment.clock.monotonic();
        match self.extend().await {
            Ok(true) => {
                self.next_beat = began + lasts / 3;
                self.lease_end = began + lasts;
                self.extend_claim().await;
                self.extend_lead().await;
                None
            }
            Ok(false) => {
                self.lost = true;
                Some(StopReason::Abandoned)
            }
            Err(error) if began < self.lease_end => {
                tracing::warn!(data_id = %self.data_id, %error, "a lease could not be extended, trying again");
                self.next_beat = began + lasts / 10;
                None
            }
            Err(_) => {
                self.lost = true;
                Some(StopReason::Abandoned)
            }
        }
    }

    /// Lets others wait on. If that fails they scan the file themselves, once the claim has ended.
    async fn extend_claim(&self) {
        let until_ms = self.shared.now_ms().saturating_add(self.shared.options.lease_ms);
        if self.claimed
            && let Err(error) = self.shared.results.extend_claim(self.data_id, until_ms).await
        {
            tracing::debug!(data_id = %self.data_id, %error, "a claim could not be extended");
        }
    }

    /// Lets others join on. If that fails nobody joins any more.
    async fn extend_lead(&self) {
        let until_ms = self.shared.now_ms().saturating_add(self.shared.options.lease_ms);
        if let Some(token) = self.lead.as_ref().and_then(|lead| lead.token())
            && let Err(error) = self.shared.results.extend_part(token, until_ms).await
        {
            tracing::debug!(data_id = %self.data_id, %error, "a share could not be kept open");
        }
    }

    /// Asks whether the analysis is to be cancelled.
    async fn look(&mut self) -> Option<StopReason> {
        let asked = self.shared.results.cancel_requested(self.data_id).await;
        self.next_look = Some(self.shared.environment.clock.monotonic() + CANCEL_INTERVAL);
        match asked {
            Ok(true) => {
                self.next_look = None;
                Some(StopReason::Cancelled)
            }
            Ok(false) => None,
            Err(error) => {
                tracing::debug!(data_id = %self.data_id, %error, "could not ask whether to cancel");
                None
            }
        }
    }
}
