//! The seams behind which results, tasks and progress are kept. Each back-end passes the suites of
//! [`crate::conformance`] unchanged.
//!
//! Invariants that every back-end keeps:
//! - What a method acknowledged survives a crash of the process, except progress, which may fall behind.
//! - A task is leased to one worker at a time, and comes back when the lease ends without an acknowledgement.
//! - A finished analysis never changes.
//! - Reads don't wait for writes.
//!
//! `now_ms` is Unix milliseconds by the caller's clock: no method reads one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::analysis::{AnalysisRecord, FileResult, NestedRecord, NewAnalysis};
use crate::batch::{BatchRecord, NewBatch};
use crate::cache::{KeptVerdict, VerdictKey};
use crate::id::DataId;
use crate::share::Shares;
use crate::worker_report::WorkerReport;

/// Most nested files that one call records: about a megabyte, one short transaction.
pub const NESTED_BATCH_MAX: usize = 500;

/// Most rows that one page has; what is asked for beyond is not answered.
pub const PAGE_RECORDS_MAX: u32 = 1000;

/// Highest percentage that progress shows: 100 is the result itself.
pub const PROGRESS_PERCENT_MAX: u8 = 99;

/// A submitted file up to this length is small: it may be leased when everything else that runs is large. Nearly all
/// documents are; and what is read of it, if not what comes out of it, takes a fraction of a second.
pub const SMALL_FILE_BYTES: u64 = 1 << 20;

/// The longest lease, claim or delay of a task. One that ends further off was noted before the clock was set back, and counts as
/// ended: otherwise what a process that died had under way would wait until the clock comes there again.
pub const LEASE_MS_MAX: u64 = 60 * 60 * 1000;

/// The longest time to the next try of a callback, for the same reason: an hour's pause, and the try before it.
pub const CALLBACK_DELAY_MS_MAX: u64 = 2 * 60 * 60 * 1000;

/// One lease in so many goes to the task that waits longest, whatever its priority and owner, so that none waits for ever.
pub const OLDEST_EVERY: u64 = 8;

/// Whether what ends at `end_ms` has ended, or can't end so late unless the clock was set back since.
pub(crate) fn has_ended(end_ms: u64, now_ms: u64) -> bool {
    end_ms <= now_ms || end_ms > now_ms.saturating_add(LEASE_MS_MAX)
}

/// A request to a back-end that was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {operation} {object}: {source}")]
pub struct StoreError {
    /// What was asked for, in words.
    pub operation: &'static str,
    /// To what: an id, a path.
    pub object: String,
    /// Why not.
    pub source: StoreFault,
}

/// Why a request to a back-end was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreFault {
    /// The id is taken.
    #[error("an analysis of this id exists already")]
    Exists,
    /// The batch takes no files.
    #[error("the batch is unknown or closed")]
    BatchClosed,
    /// More at once than [`NESTED_BATCH_MAX`].
    #[error("{0} records at once, at most {NESTED_BATCH_MAX} are taken")]
    BatchTooLarge(usize),
    /// The data was written by a newer build.
    #[error(
        "its schema version {found} is newer than this build's ({known}): run the build that wrote it, or a newer one"
    )]
    NewerSchema {
        /// The version on disk.
        found: i64,
        /// The newest version that this build knows.
        known: i64,
    },
    /// What was read back or is to be written is not what it should be.
    #[error("malformed record: {0}")]
    Malformed(String),
    /// A file is no backup, or one that is damaged.
    #[error("{0}")]
    NoBackup(String),
    /// The file that was to be made is there.
    #[error("{0} exists already; nothing is overwritten: name another file")]
    TargetExists(String),
    /// Somebody has the results open.
    #[error("{path} is in use: {why}")]
    InUse {
        /// Which results.
        path: String,
        /// What can be done.
        why: &'static str,
    },
    /// The back-end was shut down, or its writer ended.
    #[error("the back-end is shut down")]
    Closed,
    /// A file could not be created or opened.
    #[error("{path}: {source} (its directory must exist and be writable)")]
    Io {
        /// Which.
        path: String,
        /// What the operating system said.
        source: Arc<std::io::Error>,
    },
    /// The database or the service behind the seam refused.
    #[error("{0}")]
    Backend(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl StoreFault {
    /// Whether the same request may be carried out later: the back-end refused or is out of reach, as while a disk is full or
    /// another program holds the database, and the request itself is in order.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Backend(_) | Self::Io { .. } | Self::Closed)
    }
}

/// What came of claiming to find something out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The analysis is unknown or finished: there is nothing to do.
    Nothing,
    /// It is the caller's to find out.
    Yours,
    /// An analysis that claimed it earlier is about to find out the same.
    Twin,
}

/// Part of the files directly in one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Those recorded with ordinals `first` up to but not including `first + size`, in order.
    pub records: Vec<NestedRecord>,
    /// The highest recorded ordinal plus one.
    pub total: u64,
}

/// A look-up of analyses by a digest of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DigestQuery {
    /// MD5, SHA-1, SHA-256 or SHA-512, told apart by their length: 16, 20, 32 or 64 bytes. Of another length nothing is found.
    pub digest: Vec<u8>,
    /// Only what this user submitted.
    pub user_id: Option<String>,
    /// Only what was submitted under a rule of this name.
    pub rule: Option<String>,
    /// Only what was queued at this time or later.
    pub since_ms: u64,
    /// Also files nested in what was submitted.
    pub nested: bool,
    /// Also what is not finished.
    pub unfinished: bool,
}

/// A finished analysis that somebody wants to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callback {
    /// The analysis.
    pub data_id: DataId,
    /// Where it is to be told.
    pub url: String,
    /// How often that was tried already.
    pub attempts: u32,
    /// From when it is due, in Unix milliseconds.
    pub due_ms: u64,
}

/// Keeps analyses and their results, and who takes which part of a container that is shared. It is the truth about what was
/// submitted.
#[async_trait]
pub trait ResultStore: Shares {
    /// Records a submission. Durable when it returns. An id that exists is refused ([`StoreFault::Exists`]), and so is a
    /// submission to a batch that takes none ([`StoreFault::BatchClosed`]).
    async fn create(&self, new: &NewAnalysis) -> Result<(), StoreError>;

    /// Notes that a worker has begun. False if the analysis is unknown or finished already: there is nothing to do.
    async fn start(&self, data_id: DataId, now_ms: u64) -> Result<bool, StoreError>;

    /// Notes that a worker has begun, like [`ResultStore::start`], and that until `until_ms` others may wait for what it
    /// finds out under `key`. Of analyses that claim the same key at once the one that claimed first has it; the others'
    /// claims stand too, in their order. Called again before its claim ended, it begins anew in the same place and tells
    /// whether it is still a twin's. A claim ends with the analysis, and counts as ended if it ends further off than
    /// [`LEASE_MS_MAX`].
    async fn claim(&self, data_id: DataId, key: VerdictKey, until_ms: u64, now_ms: u64) -> Result<Claim, StoreError>;

    /// Lets a claim end at `until_ms`; at 0, at once.
    async fn extend_claim(&self, data_id: DataId, until_ms: u64) -> Result<(), StoreError>;

    /// What was kept under each of the keys, in their order; at most [`crate::cache::VERDICT_BATCH_MAX`].
    async fn verdicts(&self, keys: &[VerdictKey], now_ms: u64) -> Result<Vec<Option<KeptVerdict>>, StoreError>;

    /// Keeps verdicts, at most [`crate::cache::VERDICT_BATCH_MAX`]. A container's members must be recorded already. What is
    /// kept under a key already is replaced. How many are kept is bounded; the longest unused go first. It may lose them.
    async fn keep_verdicts(&self, verdicts: &[(VerdictKey, KeptVerdict)], now_ms: u64) -> Result<(), StoreError>;

    /// Records the root's result, like [`ResultStore::finish`], and that the files nested in it are those of `source`: an
    /// analysis, or a container nested in one, that is finished and whose members are recorded as its own. From then on they
    /// are answered for as this analysis', with ids, parents and paths of their own, which stay the same. `worst_child`
    /// names a member of the source in the argument. Its cost does not grow with their number. False, and nothing changes, if
    /// the analysis is unknown or finished, has records of its own, or the source is not such a one.
    async fn finish_as(
        &self,
        data_id: DataId,
        result: &FileResult,
        source: DataId,
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// Records nested files, at most [`NESTED_BATCH_MAX`], all or none. What is recorded already is replaced, so that the
    /// same call may be made again. False, and nothing is recorded, if one of their roots is unknown or finished already:
    /// then the caller's lease is long lost.
    async fn put_nested(&self, records: &[NestedRecord]) -> Result<bool, StoreError>;

    /// Records the root's result, which finishes the analysis. False, and nothing changes, if it is unknown or finished.
    async fn finish(&self, data_id: DataId, result: &FileResult, now_ms: u64) -> Result<bool, StoreError>;

    /// What is recorded of an analysis or of a nested file.
    async fn get(&self, data_id: DataId) -> Result<Option<AnalysisRecord>, StoreError>;

    /// Part of the files directly in `parent`, by ordinal; at most [`PAGE_RECORDS_MAX`]. Its cost grows with the page, not
    /// with the container.
    async fn nested(&self, parent: DataId, first: u32, size: u32) -> Result<Page, StoreError>;

    /// Unfinished analyses that were queued before `before_ms`, oldest first; and those that were queued more than
    /// [`LEASE_MS_MAX`] later than that, by a clock that was set back since.
    async fn unfinished(&self, before_ms: u64, limit: u32) -> Result<Vec<DataId>, StoreError>;

    /// Asks for an analysis to be cancelled. False if it is unknown or finished already. Asking twice is asking once.
    async fn request_cancel(&self, data_id: DataId) -> Result<bool, StoreError>;

    /// Whether somebody asked for it to be cancelled. An unknown one was not.
    async fn cancel_requested(&self, data_id: DataId) -> Result<bool, StoreError>;

    /// How many analyses are not finished.
    async fn count_unfinished(&self) -> Result<u64, StoreError>;

    /// Analyses and nested files of a digest, finished ones first, then the newest submission first; at most `limit`. What was
    /// cancelled, and what is nested in an unfinished submission, is not found. An id may turn out to be unknown: what is
    /// borrowed is only found by its path. Of a file that was submitted very often only
    /// the newest submissions are looked at, ten thousand at least.
    async fn find_by_digest(&self, query: &DigestQuery, limit: u32) -> Result<Vec<DataId>, StoreError>;

    /// Makes a batch. An id that exists is refused ([`StoreFault::Exists`]).
    async fn create_batch(&self, new: &NewBatch) -> Result<(), StoreError>;

    /// What was asked for of a batch, and whether it takes files. Its cost does not grow with the batch.
    async fn batch_head(&self, batch_id: DataId) -> Result<Option<(NewBatch, bool)>, StoreError>;

    /// What is recorded of a batch. Its cost grows with the batch, but it reads no analysis.
    async fn batch(&self, batch_id: DataId) -> Result<Option<BatchRecord>, StoreError>;

    /// Part of a batch's files in the order in which they came, from index `first`; at most [`PAGE_RECORDS_MAX`].
    async fn batch_members(&self, batch_id: DataId, first: u32, size: u32) -> Result<Vec<AnalysisRecord>, StoreError>;

    /// Lets a batch take no more files. False if it is unknown. Closing twice is closing once.
    async fn close_batch(&self, batch_id: DataId, now_ms: u64) -> Result<bool, StoreError>;

    /// Closes a batch and asks for all its unfinished analyses to be cancelled. False if it is unknown.
    async fn cancel_batch(&self, batch_id: DataId, now_ms: u64) -> Result<bool, StoreError>;

    /// Notes what a worker says of itself, in place of what it said before.
    async fn report_worker(&self, report: &WorkerReport, now_ms: u64) -> Result<(), StoreError>;

    /// What workers said of themselves at `since_ms` or later, by name.
    async fn workers(&self, since_ms: u64) -> Result<Vec<WorkerReport>, StoreError>;

    /// Finished analyses whose submitter is to be told of them by now, the longest due first. What is due later than
    /// [`CALLBACK_DELAY_MS_MAX`] from now is due too. Those `after` a time and an analysis, as a [`Callback`] has them, make the
    /// next page.
    async fn due_callbacks(
        &self,
        now_ms: u64,
        after: Option<(u64, DataId)>,
        limit: u32,
    ) -> Result<Vec<Callback>, StoreError>;

    /// Notes that telling was tried: the next time is at `next_ms`, or never. False if there was nothing to tell.
    async fn callback_tried(&self, data_id: DataId, next_ms: Option<u64>) -> Result<bool, StoreError>;

    /// Removes what was finished before `before_ms`, a step at a time: at most `limit` rows of each kind. How many rows it
    /// touched; 0 when nothing is left to remove. A batch goes as a whole, once nothing of it is younger. What is
    /// being removed is unknown to every other method from the first step on. What is yet to be told stays.
    async fn expire(&self, before_ms: u64, limit: u32) -> Result<u64, StoreError>;
}

/// What is to be done with an analysis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// Scan it.
    Scan,
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The analysis that it is about.
    pub data_id: DataId,
    /// What to do.
    pub kind: TaskKind,
    /// How often it was leased and not given back by [`TaskQueue::release`].
    pub attempts: u32,
    /// When it was queued, in Unix milliseconds.
    pub enqueued_ms: u64,
    /// Who submitted it: owners take turns.
    pub owner: String,
    /// The higher, the sooner.
    pub priority: u8,
    /// The length of the file.
    pub size_bytes: u64,
}

impl Task {
    /// A scan of `data_id` that nobody tried yet, nobody's in particular.
    pub fn scan(data_id: DataId, enqueued_ms: u64) -> Self {
        let (owner, priority) = (String::new(), crate::rule::PRIORITY_DEFAULT);
        Self { data_id, kind: TaskKind::Scan, attempts: 0, enqueued_ms, owner, priority, size_bytes: 0 }
    }

    /// A scan of what was submitted, which nobody tried yet.
    pub fn of(new: &NewAnalysis, enqueued_ms: u64) -> Self {
        Self {
            owner: new.principal.user_id.clone(),
            priority: new.rule.priority,
            size_bytes: new.file.size_bytes,
            ..Self::scan(new.data_id, enqueued_ms)
        }
    }
}

/// What proves that a lease is held. Made by the back-end; nothing else can be read from it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LeaseToken(pub String);

impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseToken({})", self.0)
    }
}

/// A task that is one worker's for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The task. Its `attempts` equal the lease's.
    pub task: Task,
    /// What to extend, acknowledge or release it with.
    pub token: LeaseToken,
    /// How often the task was leased, this time included, and not given back by [`TaskQueue::release`]: 1 for the first. It
    /// is higher if workers died with the task.
    pub attempts: u32,
    /// How often it was given back.
    pub releases: u32,
}

/// How much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueDepth {
    /// Tasks that nobody has.
    pub queued: u64,
    /// Tasks that a worker has, or had when its lease ended.
    pub leased: u64,
}

/// Hands tasks to workers, each to one at a time. It may lose tasks, since a sweep over [`ResultStore::unfinished`] pushes
/// them again, but not double them.
#[async_trait]
pub trait TaskQueue: Send + Sync {
    /// Queues a task. False if one of the same id is queued or leased already, which stays as it is.
    async fn push(&self, task: Task) -> Result<bool, StoreError>;

    /// Takes up to `max` tasks for `lease_ms`: those of the highest priority first, and of these one of each owner in turn, in
    /// the order in which each owner's were queued. One call in [`OLDEST_EVERY`] goes by age alone. A task whose lease ended
    /// counts as queued, and keeps its turn. So does one whose lease or delay ends further off than [`LEASE_MS_MAX`].
    async fn lease(&self, worker: &str, max: usize, lease_ms: u64, now_ms: u64) -> Result<Vec<Lease>, StoreError>;

    /// The same among files of at most [`SMALL_FILE_BYTES`].
    async fn lease_small(&self, worker: &str, max: usize, lease_ms: u64, now_ms: u64)
    -> Result<Vec<Lease>, StoreError>;

    /// Lets a lease end `lease_ms` from now. False if it is lost.
    async fn extend(&self, token: &LeaseToken, lease_ms: u64, now_ms: u64) -> Result<bool, StoreError>;

    /// Removes a task that is done. False if the lease was lost.
    async fn ack(&self, token: &LeaseToken) -> Result<bool, StoreError>;

    /// Gives a task back, to be leased again after `delay_ms`. It doesn't count as an attempt, since the worker lives. False
    /// if the lease was lost.
    async fn release(&self, token: &LeaseToken, delay_ms: u64, now_ms: u64) -> Result<bool, StoreError>;

    /// Gives a task back that was not begun, as if it had not been leased. False if the lease was lost.
    async fn unlease(&self, token: &LeaseToken) -> Result<bool, StoreError>;

    /// Says that a worker lives which lost its lease of this task: the lease was no attempt, but one that was given back. Nothing
    /// if the task is gone.
    async fn survived(&self, data_id: DataId) -> Result<(), StoreError>;

    /// How much waits.
    async fn depth(&self) -> Result<QueueDepth, StoreError>;

    /// How many tasks each owner has, queued and leased; those who have none are left out.
    async fn waiting_by_owner(&self) -> Result<Vec<(String, u64)>, StoreError>;

    /// When the oldest of all tasks was queued, in Unix milliseconds; none if there is no task.
    async fn oldest_ms(&self) -> Result<Option<u64>, StoreError>;

    /// Whether a task of this id is queued or leased.
    async fn contains(&self, data_id: DataId) -> Result<bool, StoreError>;

    /// Returns when something may be leasable, and after `timeout` at the latest. It may return early for no reason.
    async fn wait(&self, timeout: Duration);
}

/// How far a running analysis is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to [`PROGRESS_PERCENT_MAX`].
    pub percent: u8,
    /// The name of the nested file that was last begun; empty if none.
    pub last_file: String,
}

/// Keeps how far running analyses are. It may lose what it knows; it never goes back.
#[async_trait]
pub trait ProgressCache: Send + Sync {
    /// Notes progress. A lower percentage than is noted already changes the last file only; a higher one than
    /// [`PROGRESS_PERCENT_MAX`] is cut to it.
    async fn set(&self, data_id: DataId, progress: Progress) -> Result<(), StoreError>;

    /// What was noted last.
    async fn get(&self, data_id: DataId) -> Result<Option<Progress>, StoreError>;

    /// Forgets it.
    async fn remove(&self, data_id: DataId) -> Result<(), StoreError>;
}
