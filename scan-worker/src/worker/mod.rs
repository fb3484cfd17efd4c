//! The scan worker: leases tasks, scans what they name, and records the results.
//!
//! - A task is leased, and the lease extended every third of its time while the scan runs. A worker whose lease is lost stops
//!   and writes nothing more: somebody else has the task.
//! - Rows of nested files are written before the root is finished, and the task is acknowledged last. A crash anywhere in
//!   between leads to the same rows again.
//! - What may work later (content unavailable, records not writable) gives the task back with a growing delay, at most
//!   [`RELEASES_MAX`] times. What never will (the blob is gone) closes the analysis as Failed, with the reason. A task that
//!   was leased more than [`ATTEMPTS_MAX`] times without being given back took its worker down each time, and is closed too.
//!   A worker that lost its lease and lives says so: that was no such time.
//! - A task that was under way twice when a worker died is scanned alone the third time, so that no other one is blamed if it
//!   takes this worker down as well. After one death it is scanned like any other: most workers die of something else.
//! - Every few seconds the worker reports who it is and what it does, which decides nothing: see `report`.
//! - The result store is the truth: a sweep queues again whatever is unfinished and has no task.

mod ending;
mod fetch;
mod leasing;
mod records;
mod report;
mod sharing;
mod slots;
mod supervisor;
mod twins;
mod verdicts;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lazaret_analysis::{
    AnalysisRecord, Claim, DataId, Lease, PasswordSeal, ProgressCache, ResultCode, ResultStore, StoreError, TaskQueue,
};
use lazaret_containers::Passwords;
use lazaret_digests::Selection;
use lazaret_node_client::{Cluster, Environment};
use lazaret_protocol::BlobName;
use lazaret_sandbox::Sandbox;
use tokio::sync::{Semaphore, watch};
use tracing::Instrument;
use tracing::field::Empty;

use self::ending::Ending;
use self::fetch::Hindrance;
use self::records::RecordWriter;
use self::sharing::{Gathered, Gathering, Lead};
use self::slots::{Place, Slot, Slots};
use self::supervisor::Supervisor;
use self::twins::Finished;
use self::verdicts::StoredVerdicts;
use crate::engine::Engine;
use crate::metrics::{Seen, WorkerMonitor};
use crate::scan::{Root, Scanner, ScannerOptions, Sharing, TRACE, TreeOutcome, TreeScan, Verdicts};
use crate::source::{BlobSource, ClusterSource};
use crate::spool::SpoolOptions;

/// A task that was leased more often without being given back is not tried again: it took its worker down each time.
pub const ATTEMPTS_MAX: u32 = 3;
/// How often a task is given back because content could not be read or records not written, before it is closed as Failed.
/// With the delays between, this is about half an hour.
pub const RELEASES_MAX: u32 = 10;
/// How often a task may be given back or lost by workers that live, for whatever reason, before it is closed as Failed: a file
/// whose scan never holds its lease must end at some time.
pub const LOSSES_MAX: u32 = 100;
/// How long the loops wait after the queue or the store refused, and between looks at a queue of another process.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long a scan that is cancelled or out of time may take to stop, before its analysis ends without it. With what it takes
/// to notice the wish, cancelling takes less than a second.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// How often progress is noted.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Most submissions whose end is being recorded. Further ones keep their slots.
const SETTLING_MAX: u32 = 256;
/// Most submissions that wait for a twin. Further ones are scanned.
const TWINS_WAITING_MAX: usize = 1_000;

const _: () = assert!(
    lazaret_analysis::password::PASSWORDS_MAX <= lazaret_containers::passwords::PASSWORDS_MAX
        && lazaret_analysis::password::PASSWORD_BYTES_MAX <= lazaret_containers::passwords::PASSWORD_BYTES_MAX,
    "every password that a gateway takes is tried"
);

/// How a worker works.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// The worker's name, as the queue shows it.
    pub name: String,
    /// The key from which nested files' ids are made. It must be the same for all workers, for as long as results are kept.
    pub nested_id_key: [u8; 32],
    /// What opens the archive passwords that gateways sealed.
    pub seal: Arc<PasswordSeal>,
    /// Threads that scan and extract. Default: one a core.
    pub scan_threads: usize,
    /// How many submissions are scanned at once, and four times as many small ones besides. Default: twice the threads, so
    /// that fetching and scanning overlap.
    pub concurrent_files: usize,
    /// A file up to this length is held in memory while it is scanned. Default: 256 MiB.
    pub sample_memory_max_bytes: u64,
    /// How many bytes of files may wait in memory at once, besides one file a thread. Default: 1 GiB.
    pub sample_budget_bytes: u64,
    /// Where nested files are that are too long for memory, encrypted, and how many bytes of them at most. Default: the
    /// system's temporary folder, 16 GiB.
    pub spool: SpoolOptions,
    /// How long a lease lasts without a heartbeat. Default: 30 seconds.
    pub lease_ms: u64,
    /// How long one engine may take for one file. Default: 60 seconds.
    pub engine_timeout: Duration,
    /// The digests that are taken of nested files. Default: all.
    pub digests: Selection,
    /// Where files are identified and taken apart. None does so in this process, where a reader's fault is the worker's.
    pub sandbox: Option<Sandbox>,
    /// How often unfinished analyses are looked for that have no task. Default: 5 seconds.
    pub sweep_interval: Duration,
    /// How long an analysis may be without a task before the sweep queues it. Default: 15 seconds.
    pub sweep_age_ms: u64,
    /// How long running scans may take to finish after a shutdown was asked for, before they are given back. Default: 5
    /// seconds.
    pub shutdown_grace: Duration,
}

impl WorkerOptions {
    /// The defaults, for a worker of this name.
    pub fn new(name: impl Into<String>, nested_id_key: [u8; 32], seal: Arc<PasswordSeal>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            name: name.into(),
            nested_id_key,
            seal,
            scan_threads: cores,
            concurrent_files: 2 * cores,
            sample_memory_max_bytes: 256 << 20,
            sample_budget_bytes: 1 << 30,
            spool: SpoolOptions { folder: std::env::temp_dir(), bytes_max: 16 << 30 },
            lease_ms: 30_000,
            engine_timeout: Duration::from_secs(60),
            digests: Selection::ALL,
            sandbox: None,
            sweep_interval: Duration::from_secs(5),
            sweep_age_ms: 15_000,
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// A scan worker. Made inside a tokio runtime, whose handle the scan threads use to read blobs.
pub struct ScanWorker {
    shared: Arc<Shared>,
}

/// What all running scans share.
struct Shared {
    options: WorkerOptions,
    /// A name that no other process has.
    identity: String,
    started_ms: u64,
    /// On which scan threads wait for the store.
    runtime: tokio::runtime::Handle,
    results: Arc<dyn ResultStore>,
    queue: Arc<dyn TaskQueue>,
    progress: Arc<dyn ProgressCache>,
    cluster: Cluster,
    source: Arc<dyn BlobSource>,
    environment: Environment,
    scanner: Scanner,
    verdicts: Arc<dyn Verdicts>,
    slots: Slots,
    /// Places for those that wait for a twin.
    waiting: Arc<Semaphore>,
    /// Places for those whose end is being recorded.
    settling: Semaphore,
    finished: Finished,
    engines: Vec<Arc<dyn Engine>>,
}

impl ScanWorker {
    /// Starts the scan threads. Takes no task before [`ScanWorker::run`].
    pub fn new(
        options: WorkerOptions,
        results: Arc<dyn ResultStore>,
        queue: Arc<dyn TaskQueue>,
        progress: Arc<dyn ProgressCache>,
        cluster: Cluster,
        environment: Environment,
        engines: Vec<Arc<dyn Engine>>,
    ) -> io::Result<Self> {
        let scanner_options = ScannerOptions {
            scan_threads: options.scan_threads,
            sample_memory_max_bytes: options.sample_memory_max_bytes,
            sample_budget_bytes: options.sample_budget_bytes,
            spool: options.spool.clone(),
            engine_timeout: options.engine_timeout,
            digests: options.digests,
            sandbox: options.sandbox.clone(),
            nested_id_key: options.nested_id_key,
        };
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let scanner = Scanner::start(scanner_options, engines.clone(), &environment)?;
        let verdicts = Arc::new(StoredVerdicts::start(results.clone(), runtime.clone(), &environment)?);
        let source: Arc<dyn BlobSource> = Arc::new(ClusterSource::new(cluster.clone(), runtime.clone()));
        let identity = format!("{}/{}", options.name, DataId::random());
        let slots = Slots::new(options.concurrent_files);
        let shared = Shared {
            options,
            identity,
            started_ms: environment.clock.unix_ms(),
            runtime,
            results,
            queue,
            progress,
            cluster,
            source,
            environment,
            scanner,
            engines,
            verdicts,
            slots,
            waiting: Arc::new(Semaphore::new(TWINS_WAITING_MAX)),
            settling: Semaphore::new(SETTLING_MAX as usize),
            finished: Finished::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The worker as monitoring sees it.
    pub fn monitor(&self) -> WorkerMonitor {
        let shared = Arc::downgrade(&self.shared);
        let look = move || {
            let shared = shared.upgrade()?;
            Some(Seen {
                metrics: shared.scanner.metrics().clone(),
                verdicts: shared.scanner.counters().clone(),
                spool: shared.scanner.spool().clone(),
                sandbox_lost: shared.options.sandbox.as_ref().map(Sandbox::lost),
                running: shared.slots.occupied(),
            })
        };
        WorkerMonitor { look: Arc::new(look) }
    }

    /// Says that the worker is there, so that whoever asks a gateway from now on hears of it.
    pub async fn announce(&self) {
        self.shared.report_once().await;
    }

    /// Works until `shutdown` becomes true or its sender is gone. Then it takes no more tasks, lets running scans finish for
    /// a while, gives the others back, and returns when nothing runs any more.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        let shared = self.shared;
        let sweep = shared.clone().sweep();
        let report = shared.report();
        let for_scans = shutdown.clone();
        tokio::select! {
            () = shared.take_tasks(&for_scans) => {}
            () = sweep => {}
            () = report => {}
            _ = shutdown.wait_for(|asked| *asked) => {}
        }
        // Every task that was begun holds a slot or a place to wait, and who has the one may yet come for the other; and comes
        // to the place where its end is recorded before it gives either back.
        let _ = tokio::join!(shared.slots.all(), shared.waiting.acquire_many(TWINS_WAITING_MAX as u32));
        let _ = shared.settling.acquire_many(SETTLING_MAX).await;
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        self.environment.clock.unix_ms()
    }

    /// Does one task, whatever comes of it.
    async fn work(&self, lease: Lease, slot: Slot, shutdown: watch::Receiver<bool>) {
        let data_id = lease.task.data_id;
        let trace = tracing::trace_span!(
            target: TRACE,
            "analysis",
            %data_id,
            worker = self.options.name,
            bytes = lease.task.size_bytes,
            attempt = lease.attempts,
            result = Empty,
        );
        let queued_ms = lease.task.enqueued_ms;
        tracing::trace_span!(target: TRACE, parent: &trace, "queue wait", started_unix_ms = queued_ms);
        let mut place = Place::Slot(slot);
        let mut claimed = false;
        let trying = self.try_work(&lease, &mut place, &mut claimed, shutdown).instrument(trace.clone());
        let ending = match trying.await {
            Ok(ending) => ending,
            Err(error) => Ending::Retry { detail: error.to_string() },
        };
        // The next file is scanned while this one's end is recorded, which is mostly waiting for the results' store. A worker
        // that ends waits for those that have a place. The place comes first: what can't be recorded stops the scanning.
        let _settling = self.settling.acquire().await;
        drop(place);
        if claimed && ending.leaves_it_unfinished() {
            self.disclaim(data_id).await;
        }
        if let Err(error) = self.end(&lease, ending).instrument(trace).await {
            // The lease ends by itself, and the task comes back.
            tracing::warn!(%data_id, %error, "the end of a scan could not be recorded");
        }
        self.finished.tell();
    }

    async fn try_work(
        &self,
        lease: &Lease,
        place: &mut Place,
        claimed: &mut bool,
        shutdown: watch::Receiver<bool>,
    ) -> Result<Ending, StoreError> {
        let data_id = lease.task.data_id;
        let Some(record) = self.results.get(data_id).await? else { return Ok(Ending::Nothing) };
        if record.state.is_finished() {
            return Ok(Ending::Nothing);
        }
        if lease.attempts > ATTEMPTS_MAX {
            let detail = "scanning the file took its worker down three times: it is not tried again".to_owned();
            return Ok(Ending::Failed { record: Box::new(record), detail });
        }
        if lease.releases > LOSSES_MAX {
            let detail = format!("the scan was begun and given back or lost {LOSSES_MAX} times: it is not tried again");
            return Ok(Ending::Failed { record: Box::new(record), detail });
        }
        if record.cancel_requested {
            return Ok(Ending::Result(self.unscanned(&record, ResultCode::CANCELLED, String::new())));
        }
        let Ok(blob) = record.new.blob.parse::<BlobName>() else {
            let detail = format!("the analysis names no blob: {:?}", record.new.blob);
            return Ok(Ending::Failed { record: Box::new(record), detail });
        };
        let Some(key) = self.verdict_key(&record, blob) else {
            if !self.results.start(data_id, self.now_ms()).await? {
                return Ok(Ending::Nothing);
            }
            let mut supervisor = Supervisor::new(self, lease, &record, false, shutdown);
            return Ok(match self.alone_if_suspect(lease, &record, place, &mut supervisor).await {
                Ok(()) => self.scan(record, blob, None, supervisor, place).await,
                Err(ending) => ending,
            });
        };
        if let Some(ending) = self.known(&record, key).await? {
            return Ok(ending);
        }
        *claimed = true;
        let mut supervisor = Supervisor::new(self, lease, &record, true, shutdown);
        match self.claim(data_id, key).await? {
            Claim::Nothing => return Ok(Ending::Nothing),
            Claim::Yours => {}
            // While it waits nothing else is leased, so it waits for nobody.
            Claim::Twin if is_suspect(lease) => {}
            Claim::Twin => {
                if let Some(ending) = self.wait_for_twin(&record, key, place, &mut supervisor).await? {
                    return Ok(ending);
                }
            }
        }
        Ok(match self.alone_if_suspect(lease, &record, place, &mut supervisor).await {
            Ok(()) => self.scan(record, blob, Some(self.verdicts.clone()), supervisor, place).await,
            Err(ending) => ending,
        })
    }

    /// Waits until nothing else runs if the task is leased for the last time: its workers may have died of it, or of another
    /// one that they had at the same time. Alone it can only be its own fault.
    async fn alone_if_suspect(
        &self,
        lease: &Lease,
        record: &AnalysisRecord,
        place: &mut Place,
        supervisor: &mut Supervisor<'_>,
    ) -> Result<(), Ending> {
        if lease.attempts <= 1 {
            return Ok(());
        }
        // Its former worker may have led others, who are to stop.
        if let Err(error) = self.results.close_share(record.data_id).await {
            tracing::debug!(data_id = %record.data_id, %error, "what a former worker shared could not be closed");
        }
        if !is_suspect(lease) {
            return Ok(());
        }
        // Not without any place, or a worker that ends would not wait for it.
        *place = match self.waiting.clone().try_acquire_owned() {
            Ok(permit) => Place::Waiting { _permit: permit },
            Err(_) => Place::None,
        };
        tokio::select! {
            biased;
            reason = supervisor.next() => Err(self.stopped_early(record, reason, supervisor)),
            slot = self.slots.every() => {
                *place = Place::Slot(slot);
                Ok(())
            }
        }
    }

    /// Scans a file under the supervisor's eyes, together with other workers if its rule wants that.
    async fn scan(
        &self,
        record: AnalysisRecord,
        blob: BlobName,
        verdicts: Option<Arc<dyn Verdicts>>,
        mut supervisor: Supervisor<'_>,
        place: &mut Place,
    ) -> Ending {
        let lead = if supervisor.is_first_attempt() { self.lead(&record) } else { None };
        let Some(lead) = lead else {
            return self.scan_once(&record, blob, verdicts, &mut supervisor, place, None).await.unwrap_or_else(alone);
        };
        supervisor.leads(Some(lead.clone()));
        let shared = self.scan_once(&record, blob, verdicts.clone(), &mut supervisor, place, Some(&lead)).await;
        self.close_share(&lead).await;
        supervisor.leads(None);
        match shared {
            Ok(ending) => ending,
            Err(Alone) => match self.discard_parts(&record).await {
                Ok(()) => {
                    self.scan_once(&record, blob, verdicts, &mut supervisor, place, None).await.unwrap_or_else(alone)
                }
                Err(error) => Ending::Retry { detail: error.to_string() },
            },
        }
    }

    /// Fetches and scans a file, once.
    async fn scan_once(
        &self,
        record: &AnalysisRecord,
        blob: BlobName,
        verdicts: Option<Arc<dyn Verdicts>>,
        supervisor: &mut Supervisor<'_>,
        place: &mut Place,
        lead: Option<&Arc<Lead>>,
    ) -> Result<Ending, Alone> {
        let (content, fetch_ms) = match self.content(record, blob, supervisor, place).await {
            Ok(fetched) => fetched,
            Err(Hindrance::Stopped(reason)) => return Ok(self.stopped_early(record, reason, supervisor)),
            Err(Hindrance::Source(error)) => return Ok(Ending::of_source(record.clone(), &error)),
        };
        let sharing = lead.map(|lead| Arc::clone(lead) as Arc<dyn Sharing>);
        let root = Root { content, fetch_ms, sharing, ..self.root(record, blob, verdicts.clone()) };
        let (writer, sink) = RecordWriter::start(self.results.clone(), &self.environment);
        let trace = tracing::trace_span!(target: TRACE, "scan");
        let mut tree = trace.in_scope(|| self.scanner.scan(root, self.source.clone(), sink));
        let outcome = self.watch(record, &mut tree, supervisor, place).instrument(trace).await;
        drop(tree);
        let written = writer.finish().await;
        let outcome = match (outcome, &written, lead) {
            (TreeOutcome::Shared(own), Ok(()), Some(lead)) => {
                let gathering = Gathering { record, blob, verdicts, lead };
                match self.gather(&gathering, own, supervisor, place).await {
                    Gathered::Whole(whole) => TreeOutcome::Finished(Box::new(self.keep_whole(*whole).await)),
                    Gathered::Alone => return Err(Alone),
                    Gathered::Unfinished { source, detail } => TreeOutcome::Unfinished { source, detail },
                }
            }
            (outcome, ..) => outcome,
        };
        Ok(match (outcome, written) {
            (TreeOutcome::Finished(result), Ok(())) => Ending::Result(result),
            (_, _) if supervisor.is_lost() => Ending::Lost,
            (_, _) if supervisor.is_shutting_down() => Ending::GiveBack,
            (TreeOutcome::Unfinished { source: Some(error), .. }, _) => Ending::of_source(record.clone(), &error),
            (_, Err(detail)) | (TreeOutcome::Unfinished { detail, .. }, _) => Ending::Retry { detail },
            // Only of what nobody leads: there is no such scan.
            (TreeOutcome::Shared(_), Ok(())) => Ending::Retry { detail: "a part has no result of its own".to_owned() },
        })
    }

    /// What is to be scanned of an analysis, without content.
    fn root(&self, record: &AnalysisRecord, blob: BlobName, verdicts: Option<Arc<dyn Verdicts>>) -> Root {
        Root {
            data_id: record.data_id,
            file: record.new.file.clone(),
            rule: record.new.rule.clone(),
            blob,
            content: None,
            fetch_ms: 0,
            passwords: self.passwords(record),
            verdicts,
            sharing: None,
        }
    }

    /// The passwords that came with the submission. Sealed ones that don't open are none: what needs one is blocked as
    /// encrypted.
    fn passwords(&self, record: &AnalysisRecord) -> Passwords {
        let Some(sealed) = &record.new.passwords else { return Passwords::NONE };
        match self.options.seal.open(record.data_id, sealed) {
            Ok(list) => Passwords::new(list.iter().map(str::to_owned)),
            Err(error) => {
                tracing::error!(data_id = %record.data_id, %error, "the archive passwords are lost");
                Passwords::NONE
            }
        }
    }

    /// Waits for the end of a scan, notes its progress, and stops it when the supervisor says so. A scan that doesn't stop
    /// soon, because an engine doesn't look up from its file, is left to itself: its analysis ends all the same.
    async fn watch(
        &self,
        record: &AnalysisRecord,
        tree: &mut TreeScan,
        supervisor: &mut Supervisor<'_>,
        place: &mut Place,
    ) -> TreeOutcome {
        let data_id = record.data_id;
        let mut give_up: Option<(ResultCode, Duration)> = None;
        loop {
            let overdue = async {
                match give_up {
                    Some((code, at)) => {
                        self.environment.clock.sleep(at.saturating_sub(self.environment.clock.monotonic())).await;
                        code
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                outcome = tree.outcome() => return outcome,
                code = overdue => {
                    tracing::warn!(%data_id, "a scan did not stop when it was told to, its analysis ends without it");
                    let detail = "what had not been scanned by then was not waited for".to_owned();
                    return TreeOutcome::Finished(self.unscanned(record, code, detail));
                }
                reason = supervisor.next() => {
                    tree.stop(reason);
                    if let (Some(code), None) = (reason.code(), give_up) {
                        give_up = Some((code, self.environment.clock.monotonic() + STOP_GRACE));
                    }
                }
                () = self.environment.clock.sleep(PROGRESS_INTERVAL) => {
                    if let Place::Slot(slot) = place {
                        self.slots.prefer_any(slot);
                    }
                    if let Err(error) = self.progress.set(data_id, tree.progress()).await {
                        tracing::debug!(%data_id, %error, "progress could not be noted");
                    }
                }
            }
        }
    }
}

/// The parts of a file don't add up: it is to be scanned by one worker alone.
struct Alone;

/// What is scanned alone has no parts that might not add up.
fn alone(_: Alone) -> Ending {
    Ending::Retry { detail: "parts of a file that nobody shares".to_owned() }
}

/// Whether a task may have taken workers down, and would be closed for it if it took down one more.
fn is_suspect(lease: &Lease) -> bool {
    lease.attempts == ATTEMPTS_MAX
}
