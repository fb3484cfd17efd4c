//! Submissions whose verdict is known or about to be: of the same content under a rule that comes to the same.
//!
//! - What is known is taken over: a leaf's result as it is, a container's with members that are borrowed.
//! - What a worker is about to find out is waited for, without a slot. The submission that claimed first scans; when it
//!   is done the others take over. If it was cancelled, failed or lost its worker the next one scans: its claim stands
//!   already, so that the rest goes on waiting for that one.
//! - Nobody waits for a later one, so nobody waits in a circle.

use std::sync::atomic::Ordering;
use std::time::Duration;

use lazaret_analysis::{AnalysisRecord, Claim, DataId, StoreError, VerdictKey};
use lazaret_protocol::BlobName;
use tokio::sync::Notify;

use super::Shared;
use super::ending::Ending;
use super::slots::Place;
use super::supervisor::Supervisor;
use crate::scan::{root_fits, taken_over};

/// How long a submission waits between looks at a twin of another process, the first time and at most. What ends in this
/// process is told at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(2);

/// Tells those who wait that a task of this process ended.
#[derive(Default)]
pub(super) struct Finished(Notify);

impl Finished {
    pub fn tell(&self) {
        self.0.notify_waiters();
    }
}

impl Shared {
    /// Under what the verdict of a submission is found; none if its rule wants it found out anew.
    pub(super) fn verdict_key(&self, record: &AnalysisRecord, blob: BlobName) -> Option<VerdictKey> {
        let scope = self.scanner.scope(&record.new.rule)?;
        let file = &record.new.file;
        Some(scope.key(blob.as_bytes(), &file.display_name, file.digests_taken()))
    }

    /// Claims what a submission is about to find out, for as long as its lease lasts.
    pub(super) async fn claim(&self, data_id: DataId, key: VerdictKey) -> Result<Claim, StoreError> {
        let now_ms = self.now_ms();
        self.results.claim(data_id, key, now_ms.saturating_add(self.options.lease_ms), now_ms).await
    }

    /// Gives a claim up, so that those who wait do not wait for the next attempt.
    pub(super) async fn disclaim(&self, data_id: DataId) {
        if let Err(error) = self.results.extend_claim(data_id, 0).await {
            tracing::debug!(%data_id, %error, "a claim could not be given up; it ends by itself");
        }
    }

    /// Finishes a submission whose verdict is known.
    pub(super) async fn known(&self, record: &AnalysisRecord, key: VerdictKey) -> Result<Option<Ending>, StoreError> {
        let now_ms = self.now_ms();
        let began = self.environment.clock.monotonic();
        let counters = self.scanner.counters();
        counters.asked.fetch_add(1, Ordering::Relaxed);
        let found = match self.results.verdicts(&[key], now_ms).await {
            Ok(found) => found.into_iter().next().flatten(),
            Err(error) => {
                tracing::warn!(data_id = %record.data_id, %error, "no verdict of an earlier scan could be looked up");
                None
            }
        };
        let Some(kept) = found else { return Ok(None) };
        let mut result = taken_over(kept.result, record.new.file.clone(), now_ms);
        result.times.total_ms = self.environment.clock.monotonic().saturating_sub(began).as_millis() as u64;
        let Some(tree) = kept.tree else {
            counters.known.fetch_add(1, Ordering::Relaxed);
            return Ok(Some(Ending::Result(Box::new(result))));
        };
        if !root_fits(&record.new.rule, record.new.file.size_bytes, &tree.totals)
            || !self.results.finish_as(record.data_id, &result, tree.source, now_ms).await?
        {
            return Ok(None);
        }
        counters.known.fetch_add(1, Ordering::Relaxed);
        counters.known_members.fetch_add(tree.totals.files, Ordering::Relaxed);
        self.scanner.metrics().analysis(result.overall, result.times.total_ms);
        tracing::info!(data_id = %record.data_id, result = %result.overall, members = tree.totals.files, "analysis finished, its verdict was known");
        Ok(Some(Ending::Done))
    }

    /// Waits until a twin's scan has ended. Ends with a slot if this submission is to be scanned, or with how it ended.
    pub(super) async fn wait_for_twin(
        &self,
        record: &AnalysisRecord,
        key: VerdictKey,
        place: &mut Place,
        supervisor: &mut Supervisor<'_>,
    ) -> Result<Option<Ending>, StoreError> {
        // If too many wait it is scanned too, which is right, only dearer.
        let Ok(permit) = self.waiting.clone().try_acquire_owned() else { return Ok(None) };
        *place = Place::Waiting { _permit: permit };
        self.scanner.counters().waited.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(data_id = %record.data_id, "an earlier submission of the same content is being scanned, this one waits for it");
        let mut interval = LOOK_INTERVAL;
        loop {
            // Listens before it looks, so that no ending falls between the two.
            let told = self.finished.0.notified();
            // First whether the twin still runs: if it does not, what it found is kept already.
            let claim = self.claim(record.data_id, key).await?;
            if let Some(ending) = self.known(record, key).await? {
                return Ok(Some(ending));
            }
            match claim {
                Claim::Nothing => return Ok(Some(Ending::Nothing)),
                Claim::Twin => {}
                Claim::Yours => break,
            }
            tokio::select! {
                biased;
                reason = supervisor.next() => return Ok(Some(self.stopped_early(record, reason, supervisor))),
                () = told => {}
                () = self.environment.clock.sleep(interval) => {}
            }
            interval = (interval * 3 / 2).min(LOOK_INTERVAL_MAX);
        }
        tokio::select! {
            biased;
            reason = supervisor.next() => Ok(Some(self.stopped_early(record, reason, supervisor))),
            slot = self.slots.any() => {
                *place = Place::Slot(slot);
                Ok(None)
            }
        }
    }
}
