//! How a task ends: what is recorded of it, and whether it is given back, and when.

use lazaret_analysis::{AnalysisRecord, DataId, FileResult, Lease, ResultCode, StoreError};

use super::supervisor::Supervisor;
use super::{RELEASES_MAX, RETRY_DELAY, Shared};
use crate::budget::StopReason;
use crate::source::SourceError;

/// The first delay before a task that is given back is leased again; it doubles up to the longest.
const RELEASE_DELAY_MS: u64 = 1_000;
const RELEASE_DELAY_MS_MAX: u64 = 10 * 60 * 1_000;
/// How often a root's result is offered to a store that refuses, before the task is given back.
const FINISH_TRIES: u32 = 3;

/// How a task ended.
pub(super) enum Ending {
    /// There was nothing to do.
    Nothing,
    /// Its result is recorded already.
    Done,
    /// With a result.
    Result(Box<FileResult>),
    /// It never will succeed.
    Failed { record: Box<AnalysisRecord>, detail: String },
    /// It may succeed later.
    Retry { detail: String },
    /// The worker ends before the scan does.
    GiveBack,
    /// Somebody else has the task.
    Lost,
}

impl Ending {
    /// Whether somebody will begin the scan again.
    pub(super) fn leaves_it_unfinished(&self) -> bool {
        matches!(self, Self::Retry { .. } | Self::GiveBack)
    }

    pub(super) fn of_source(record: AnalysisRecord, error: &SourceError) -> Self {
        match error {
            SourceError::NotFound(_) => Self::Failed { record: Box::new(record), detail: error.to_string() },
            SourceError::Unavailable { .. } | SourceError::Spool { .. } => Self::Retry { detail: error.to_string() },
        }
    }
}

impl Shared {
    /// The result of an analysis whose file was not scanned.
    pub(super) fn unscanned(&self, record: &AnalysisRecord, code: ResultCode, detail: String) -> Box<FileResult> {
        Box::new(FileResult::unscanned(record.new.file.clone(), code, detail, self.now_ms()))
    }

    /// A scan that was stopped before it had any content.
    pub(super) fn stopped_early(
        &self,
        record: &AnalysisRecord,
        reason: StopReason,
        supervisor: &Supervisor<'_>,
    ) -> Ending {
        match reason.code() {
            Some(code) => Ending::Result(self.unscanned(record, code, String::new())),
            None if supervisor.is_lost() => Ending::Lost,
            None => Ending::GiveBack,
        }
    }

    /// Records how a task ended.
    pub(super) async fn end(&self, lease: &Lease, ending: Ending) -> Result<(), StoreError> {
        let data_id = lease.task.data_id;
        let result = match ending {
            Ending::Nothing | Ending::Done => {
                self.queue.ack(&lease.token).await?;
                return Ok(());
            }
            Ending::Lost => {
                tracing::warn!(%data_id, worker = self.options.name, "the lease was lost, the scan is left to another worker");
                // It was slow, not dead: the file is not to be blamed.
                self.queue.survived(data_id).await?;
                return Ok(());
            }
            Ending::GiveBack => {
                self.queue.release(&lease.token, 0, self.now_ms()).await?;
                return Ok(());
            }
            Ending::Retry { detail } if lease.releases < RELEASES_MAX => {
                let delay_ms = (RELEASE_DELAY_MS << lease.releases.min(32)).min(RELEASE_DELAY_MS_MAX);
                tracing::warn!(%data_id, detail, delay_ms, releases = lease.releases, "the scan is given back to be tried later");
                self.queue.release(&lease.token, delay_ms, self.now_ms()).await?;
                return Ok(());
            }
            Ending::Retry { detail } => match self.results.get(data_id).await? {
                Some(record) => self.unscanned(&record, ResultCode::FAILED, detail),
                None => return Ok(()),
            },
            Ending::Failed { record, detail } => self.unscanned(&record, ResultCode::FAILED, detail),
            Ending::Result(result) => result,
        };
        self.finish(data_id, &result).await?;
        let (acknowledged, forgotten) = tokio::join!(self.queue.ack(&lease.token), self.progress.remove(data_id));
        if let Err(error) = forgotten {
            tracing::debug!(%data_id, %error, "progress could not be forgotten");
        }
        acknowledged.map(drop)
    }

    async fn finish(&self, data_id: DataId, result: &FileResult) -> Result<(), StoreError> {
        let mut tries = 1;
        loop {
            match self.results.finish(data_id, result, self.now_ms()).await {
                Ok(_) => break,
                Err(error) if tries >= FINISH_TRIES => return Err(error),
                Err(error) => {
                    tracing::warn!(%data_id, %error, "the result could not be recorded, trying again");
                    tries += 1;
                    self.environment.clock.sleep(RETRY_DELAY).await;
                }
            }
        }
        tracing::Span::current().record("result", tracing::field::display(result.overall));
        self.scanner.metrics().analysis(result.overall, result.times.total_ms);
        tracing::info!(%data_id, result = %result.overall, total_ms = result.times.total_ms, "analysis finished");
        Ok(())
    }
}
