//! Archives that are shared with other workers: opening a share and gathering its parts, and joining those of others.
//!
//! - A worker joins when it has a slot and the queue has nothing for it: whatever waits in the queue goes first.
//! - The lead waits for the others' parts without a slot. What a worker that died had claimed it scans itself, as a part more;
//!   nobody joins any more then. So a file that kills workers kills one helper at most besides those that had its task.
//! - An analysis that was leased before is not shared.
//! - Where parts don't come to what one scan would have found, their records are discarded and the file is scanned alone.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lazaret_analysis::{
    AnalysisRecord, FileResult, NewShare, Part, PartResult, PartState, PartToken, PartView, ResultStore, StoreError,
};
use lazaret_node_client::environment::Clock;
use lazaret_protocol::BlobName;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::fetch::Hindrance;
use super::records::RecordWriter;
use super::slots::{Place, Slot};
use super::supervisor::Supervisor;
use super::{STOP_GRACE, Shared};
use crate::budget::StopReason;
use crate::scan::{Remainder, Root, RootPart, Scanner, Sharing, TreeOutcome, Verdicts, Whole};
use crate::source::SourceError;

/// From what length on a file is shared: below, reading it once more costs more than it saves.
pub const SHARED_BYTES_MIN: u64 = 8 << 20;
/// How often an idle worker looks for something to join: one read of about 0.1 ms.
pub(super) const JOIN_INTERVAL: Duration = Duration::from_millis(200);
/// How often the lead looks at the others' parts once its own is done.
const GATHER_INTERVAL: Duration = Duration::from_millis(50);
/// How often a claim is tried before the scan is given up.
const CLAIM_TRIES: u32 = 3;
/// Records that are discarded at once.
const DISCARD_STEP: u32 = 500;

/// What may become of the parts of a root.
pub(super) enum Gathered {
    /// The whole result.
    Whole(Box<Whole>),
    /// The parts don't add up: the file is to be scanned alone.
    Alone,
    /// No result, for this reason.
    Unfinished { source: Option<SourceError>, detail: String },
}

/// What came of scanning another worker's members.
enum Rescanned {
    Part(Box<RootPart>),
    /// It was stopped before it began.
    Stopped(StopReason),
    /// It did not stop when it was told to.
    GivenUp(Box<FileResult>),
    Unfinished {
        source: Option<SourceError>,
        detail: String,
    },
}

/// One part of a share, as scan threads claim members for it.
struct Claims {
    results: Arc<dyn ResultStore>,
    runtime: Handle,
    token: OnceLock<PartToken>,
}

impl Claims {
    fn claim(&self, count: u32) -> Result<Option<Range<u32>>, String> {
        let Some(token) = self.token.get() else { return Ok(None) };
        let mut tries = 1;
        loop {
            match self.runtime.block_on(self.results.claim_members(token, count)) {
                Ok(range) => return Ok(range),
                Err(error) if tries >= CLAIM_TRIES => return Err(error.to_string()),
                Err(_) => tries += 1,
            }
        }
    }
}

/// The lead's side of a share.
pub(super) struct Lead {
    claims: Claims,
    share: NewShare,
    scanner: Scanner,
    lease_ms: u64,
    clock: Arc<dyn Clock>,
}

impl Lead {
    /// The share's token, if it was opened.
    pub fn token(&self) -> Option<&PartToken> {
        self.claims.token.get()
    }
}

impl Sharing for Lead {
    fn leads(&self) -> bool {
        true
    }

    fn begin(&self) -> bool {
        // The verdict is kept under the engines of the scan's beginning, which lies between; who helps has no older ones.
        if self.scanner.pipeline() != self.share.pipeline {
            return false;
        }
        let until_ms = self.clock.unix_ms().saturating_add(self.lease_ms);
        match self.claims.runtime.block_on(self.claims.results.open_share(&self.share, until_ms)) {
            Ok(token) => self.claims.token.set(token).is_ok(),
            Err(error) => {
                tracing::warn!(data_id = %self.share.root, %error, "the file could not be shared, it is scanned alone");
                false
            }
        }
    }

    fn claim(&self, count: u32) -> Result<Option<Range<u32>>, String> {
        self.claims.claim(count)
    }
}

/// A helper's side.
struct Helper(Claims);

impl Sharing for Helper {
    fn leads(&self) -> bool {
        false
    }

    fn begin(&self) -> bool {
        true
    }

    fn claim(&self, count: u32) -> Result<Option<Range<u32>>, String> {
        self.0.claim(count)
    }
}

/// What gathering needs to scan the rest of a root once more.
pub(super) struct Gathering<'g> {
    pub record: &'g AnalysisRecord,
    pub blob: BlobName,
    pub verdicts: Option<Arc<dyn Verdicts>>,
    pub lead: &'g Lead,
}

impl Shared {
    fn claims(&self) -> Claims {
        Claims { results: self.results.clone(), runtime: self.runtime.clone(), token: OnceLock::new() }
    }

    /// How the file of an analysis is shared, if its rule wants that and it is worth it.
    pub(super) fn lead(&self, record: &AnalysisRecord) -> Option<Arc<Lead>> {
        let rule = &record.new.rule;
        if !rule.load_sharing || record.new.file.size_bytes < SHARED_BYTES_MIN {
            return None;
        }
        let share = NewShare {
            root: record.data_id,
            worker: self.identity.clone(),
            pipeline: self.scanner.pipeline(),
            deadline_ms: rule
                .global_timeout_seconds
                .map(|seconds| self.now_ms().saturating_add(seconds.saturating_mul(1_000))),
        };
        let (lease_ms, clock) = (self.options.lease_ms, self.environment.clock.clone());
        Some(Arc::new(Lead { claims: self.claims(), share, scanner: self.scanner.clone(), lease_ms, clock }))
    }

    /// Closes a share. If that fails its lead's lease ends, and the next who opens one of the root removes it.
    pub(super) async fn close_share(&self, lead: &Lead) {
        if lead.token().is_some()
            && let Err(error) = self.results.close_share(lead.share.root).await
        {
            tracing::warn!(data_id = %lead.share.root, %error, "a share could not be closed");
        }
    }

    /// Removes what parts recorded that don't add up.
    pub(super) async fn discard_parts(&self, record: &AnalysisRecord) -> Result<(), StoreError> {
        tracing::info!(data_id = %record.data_id, "what several workers found in the file does not add up, it is scanned alone");
        while self.results.discard_nested(record.data_id, DISCARD_STEP).await? > 0 {}
        Ok(())
    }

    /// Waits for the others' parts, scans those that were lost, and folds all of them.
    pub(super) async fn gather(
        &self,
        gathering: &Gathering<'_>,
        own: Box<RootPart>,
        supervisor: &mut Supervisor<'_>,
        place: &mut Place,
    ) -> Gathered {
        let mut own = own;
        let mut rescanned: Vec<PartResult> = Vec::new();
        let mut taken: Vec<PartToken> = Vec::new();
        let mut deadline = own.stopped().map(|_| self.environment.clock.monotonic() + STOP_GRACE);
        loop {
            // Of a walk that came to its end it is known which claims led to members.
            let members = if own.result().complete { own.members() } else { u32::MAX };
            let views = match self.views(gathering.lead, members).await {
                Ok(Some(views)) => views,
                Ok(None) => return unfinished("the share was closed by somebody else"),
                Err(error) => return unfinished(error.to_string()),
            };
            let open = views.iter().filter(|view| !taken.contains(&view.token)).collect::<Vec<_>>();
            let lost = open.iter().find(|view| view.state == PartState::Lost);
            if let Some(lost) = lost.filter(|_| own.result().complete && own.stopped().is_none()) {
                match self.results.take_part(&lost.token, self.now_ms()).await {
                    // Extended or ended meanwhile.
                    Ok(false) => continue,
                    Ok(true) => taken.push(lost.token.clone()),
                    Err(error) => return unfinished(error.to_string()),
                }
                tracing::warn!(data_id = %gathering.record.data_id, "a worker that had a part of the file is gone, its part is scanned here");
                match self.rescan(gathering, lost.claimed.clone(), supervisor, place).await {
                    Rescanned::Part(part) => {
                        if let Some(reason) = part.stopped() {
                            own.stop(reason);
                        }
                        rescanned.push(part.result().clone());
                    }
                    Rescanned::Stopped(reason) if reason.code().is_some() => own.stop(reason),
                    Rescanned::Stopped(_) => return unfinished("the scan was abandoned"),
                    Rescanned::GivenUp(result) => return Gathered::Whole(Box::new((*result, None))),
                    Rescanned::Unfinished { source, detail } => return Gathered::Unfinished { source, detail },
                }
                if own.stopped().is_some() {
                    deadline.get_or_insert(self.environment.clock.monotonic() + STOP_GRACE);
                }
                continue;
            }
            let is_over = deadline.is_some_and(|at| at <= self.environment.clock.monotonic());
            if is_over || !open.iter().any(|view| view.state == PartState::Working) {
                if !own.result().complete && own.stopped().is_none() && !views.is_empty() {
                    return Gathered::Alone;
                }
                let done = views.into_iter().filter_map(|view| match view.state {
                    PartState::Done(result) => Some(*result),
                    PartState::Working | PartState::Lost => None,
                });
                let others: Vec<PartResult> = done.chain(rescanned).collect();
                return own.whole(&others).map_or(Gathered::Alone, |whole| Gathered::Whole(Box::new(whole)));
            }
            self.park(place);
            tokio::select! {
                biased;
                reason = supervisor.next() => match reason.code() {
                    Some(_) => {
                        own.stop(reason);
                        deadline.get_or_insert(self.environment.clock.monotonic() + STOP_GRACE);
                    }
                    None => return unfinished("the scan was abandoned"),
                },
                () = self.environment.clock.sleep(GATHER_INTERVAL) => {}
            }
        }
    }

    /// The parts that claimed any of the members, of which there are so many at most.
    async fn views(&self, lead: &Lead, members: u32) -> Result<Option<Vec<PartView>>, StoreError> {
        let Some(token) = lead.token() else { return Ok(None) };
        let views = self.results.parts(token, self.now_ms()).await?;
        let counts = |view: &PartView| view.claimed.iter().any(|range| range.start < members);
        Ok(views.map(|views| views.into_iter().filter(counts).collect()))
    }

    /// Gives up the slot while others work.
    fn park(&self, place: &mut Place) {
        if let Place::Slot(_) = place
            && let Ok(permit) = self.waiting.clone().try_acquire_owned()
        {
            *place = Place::Waiting { _permit: permit };
        }
    }

    /// Scans the members that were another worker's.
    async fn rescan(
        &self,
        gathering: &Gathering<'_>,
        claimed: Vec<Range<u32>>,
        supervisor: &mut Supervisor<'_>,
        place: &mut Place,
    ) -> Rescanned {
        let Gathering { record, blob, ref verdicts, .. } = *gathering;
        let (content, _) = match self.content(record, blob, supervisor, place).await {
            Ok(fetched) => fetched,
            Err(Hindrance::Stopped(reason)) => return Rescanned::Stopped(reason),
            Err(Hindrance::Source(error)) => {
                return Rescanned::Unfinished { detail: error.to_string(), source: Some(error) };
            }
        };
        let sharing: Arc<dyn Sharing> = Arc::new(Remainder::new(claimed));
        let root = Root { content, sharing: Some(sharing), ..self.root(record, blob, verdicts.clone()) };
        let (writer, sink) = RecordWriter::start(self.results.clone(), &self.environment);
        let mut tree = self.scanner.scan(root, self.source.clone(), sink);
        let outcome = self.watch(record, &mut tree, supervisor, place).await;
        drop(tree);
        match (outcome, writer.finish().await) {
            (TreeOutcome::Shared(part), Ok(())) => Rescanned::Part(part),
            (TreeOutcome::Finished(result), Ok(())) => Rescanned::GivenUp(result),
            (TreeOutcome::Unfinished { source, detail }, _) => Rescanned::Unfinished { source, detail },
            (_, Err(detail)) => Rescanned::Unfinished { source: None, detail },
        }
    }

    /// Something to join, if there is any.
    pub(super) async fn join(&self) -> Option<Part> {
        let now_ms = self.now_ms();
        let until_ms = now_ms.saturating_add(self.options.lease_ms);
        match self.results.join_share(&self.identity, &self.scanner.pipeline(), until_ms, now_ms).await {
            Ok(part) => part,
            Err(error) => {
                tracing::warn!(%error, "no shared file could be joined");
                None
            }
        }
    }

    /// Does one part of somebody else's analysis, whatever comes of it.
    pub(super) async fn help(&self, part: Part, slot: Slot, shutdown: watch::Receiver<bool>) {
        let found = self.scan_part(&part, shutdown).await;
        let ended = match &found {
            Ok(Some(result)) => self.results.finish_part(&part.token, result).await,
            // Its lead takes it at once.
            Ok(None) => self.results.extend_part(&part.token, 0).await,
            Err(detail) => {
                tracing::warn!(data_id = %part.root, detail, "a part of a file is given back");
                self.results.extend_part(&part.token, 0).await
            }
        };
        match ended {
            Ok(held) => tracing::info!(data_id = %part.root, held, "a part of a file was scanned for another worker"),
            Err(error) => tracing::warn!(data_id = %part.root, %error, "the end of a part could not be recorded"),
        }
        drop(slot);
    }

    /// What was found in a part; none if it is not this worker's any more, or the worker ends.
    async fn scan_part(&self, part: &Part, shutdown: watch::Receiver<bool>) -> Result<Option<PartResult>, String> {
        let record = self.results.get(part.root).await.map_err(|error| error.to_string())?;
        let Some(record) = record.filter(|record| !record.state.is_finished()) else { return Ok(None) };
        let blob: BlobName = record.new.blob.parse().map_err(|_| "the analysis names no blob".to_owned())?;
        let mut supervisor = Supervisor::of_part(self, part, shutdown);
        let fetched = tokio::select! {
            biased;
            _ = supervisor.next() => return Ok(None),
            fetched = self.fetch(blob, record.new.file.size_bytes) => fetched,
        };
        let content = fetched.map_err(|error| error.to_string())?;
        let claims = self.claims();
        // It was just made.
        let _ = claims.token.set(part.token.clone());
        let sharing: Arc<dyn Sharing> = Arc::new(Helper(claims));
        let verdicts: Option<Arc<dyn Verdicts>> = Some(self.verdicts.clone());
        let root = Root { content, sharing: Some(sharing), ..self.root(&record, blob, verdicts) };
        let (writer, sink) = RecordWriter::start(self.results.clone(), &self.environment);
        let mut tree = self.scanner.scan(root, self.source.clone(), sink);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = tree.outcome() => break outcome,
                reason = supervisor.next() => tree.stop(reason),
            }
        };
        drop(tree);
        writer.finish().await?;
        match outcome {
            TreeOutcome::Shared(part) => Ok(Some(part.result().clone())),
            TreeOutcome::Finished(_) => Err("the part has no result of its own".to_owned()),
            TreeOutcome::Unfinished { .. } if supervisor.is_lost() || supervisor.is_shutting_down() => Ok(None),
            TreeOutcome::Unfinished { detail, .. } => Err(detail),
        }
    }

    /// Keeps a whole result's verdict, after the records that it stands for.
    pub(super) async fn keep_whole(&self, whole: Whole) -> FileResult {
        let (result, kept) = whole;
        if let Some(kept) = kept
            && let Err(error) = self.results.keep_verdicts(&[kept], self.now_ms()).await
        {
            tracing::debug!(%error, "a verdict could not be kept");
        }
        result
    }
}

fn unfinished(detail: impl Into<String>) -> Gathered {
    Gathered::Unfinished { source: None, detail: detail.into() }
}
