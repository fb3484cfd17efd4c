//! Scans one root with all files nested in it, on all scan threads.
//!
//! - A file is one job of the pool (`judge`): digests, type, engines, extraction. The members that come out become jobs of
//!   their own (`members`). A container holds no thread while its members are scanned: it is a row of counters
//!   (`node`), and whoever finishes the last of them finishes it too.
//! - Nobody waits for memory or for a place in the queue. A member for which there is none is scanned at once by the thread
//!   that extracted it, or spooled. See [`crate::memory`] and [`crate::spool`].
//! - A file's record goes out when everything in it is finished, so after its members' records. Nothing is kept of it then.
//! - Invariant: a nested file's id, ordinal and result follow from the root and the rule alone, on any number of threads.
//!   The exception is a limit over the whole tree (files, bytes, ratio): where in the tree it strikes depends on which member
//!   came out first.

mod judge;
mod members;
mod node;
mod opening;
mod share;
mod verdicts;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_analysis::{
    DataId, EngineVersion, FileInfo, FileResult, KeptVerdict, NestedRecord, Progress, Rule, SMALL_FILE_BYTES,
    VerdictKey, VerdictScope,
};
use lazaret_containers::{Passwords, TreeBudget};
use lazaret_digests::Selection;
use lazaret_node_client::environment::{Clock, Environment};
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;
use lazaret_sandbox::{Respondent, Sandbox};
use tokio::sync::oneshot;

use self::judge::{Known, process};
use self::node::Node;
use self::share::Shared as SharedRoot;
pub use self::share::{Remainder, RootPart, Sharing, Whole};
use self::verdicts::LeafCost;
pub use self::verdicts::{Answer, PAGE_MEMBERS, VerdictCounters, Verdicts, fits, root_fits, taken_over};
use crate::budget::{StopReason, StopSignal, limits};
use crate::confined::{Question, RuleSets};
use crate::engine::Engine;
use crate::examine::takes_part;
use crate::memory::{MemoryBudget, Reservation};
use crate::metrics::Metrics;
use crate::pool::{Lane, Pool};
use crate::program;
use crate::sample::Sample;
use crate::source::{BlobSource, SourceError};
use crate::spool::{Spool, SpoolOptions, TreeSpool};

/// Under which spans go to a collector of traces, if there is one.
pub(crate) const TRACE: &str = "lazaret::trace";

/// How the scanner uses the machine.
#[derive(Debug, Clone)]
pub struct ScannerOptions {
    /// Threads that scan and extract.
    pub scan_threads: usize,
    /// A file up to this length is held in memory while it is scanned; a longer one is read by ranges.
    pub sample_memory_max_bytes: u64,
    /// How many bytes of files may wait in memory at once. Besides, each thread may hold one file of its own.
    pub sample_budget_bytes: u64,
    /// Where nested files are that are too long for memory, and how many bytes of them.
    pub spool: SpoolOptions,
    /// How long one engine may take for one file.
    pub engine_timeout: Duration,
    /// Where files are identified and taken apart. None does so in this process, where a reader's fault is the worker's.
    pub sandbox: Option<Sandbox>,
    /// The digests that are taken of nested files.
    pub digests: Selection,
    /// The key from which nested files' ids are made. It must be the same for all workers, for as long as results are kept.
    pub nested_id_key: [u8; 32],
}

/// What is to be scanned.
pub struct Root {
    /// The analysis.
    pub data_id: DataId,
    /// What is known of the file: name, length, digests.
    pub file: FileInfo,
    /// The rule it is scanned under.
    pub rule: Rule,
    /// The file's content in the store.
    pub blob: BlobName,
    /// The content, if it was fetched into memory.
    pub content: Option<(Bytes, Reservation)>,
    /// How long fetching it took.
    pub fetch_ms: u64,
    /// The passwords for what is encrypted in it.
    pub passwords: Passwords,
    /// What earlier scans found; none to find out everything anew.
    pub verdicts: Option<Arc<dyn Verdicts>>,
    /// How it is shared with other workers; none to scan it alone.
    pub sharing: Option<Arc<dyn Sharing>>,
}

/// Where records of nested files go as they are finished. It may block the scan thread, which paces the scan.
pub trait RecordSink: Send + Sync {
    /// Takes one record. An error ends the scan without a result.
    fn put(&self, record: NestedRecord) -> Result<(), String>;

    /// Takes a verdict to be kept for other files, once the records that were put before are written.
    fn keep(&self, _key: VerdictKey, _verdict: KeptVerdict) {}
}

/// How a scan ended.
#[derive(Debug)]
pub enum TreeOutcome {
    /// With a result. It may say that the scan was cancelled.
    Finished(Box<FileResult>),
    /// With the part of the result that was this scan's: the root is shared with other workers.
    Shared(Box<RootPart>),
    /// Without one: the worker may not write any more, or content or records could not be read or written.
    Unfinished {
        /// The content that could not be read, if that was it.
        source: Option<SourceError>,
        /// In words.
        detail: String,
    },
}

/// Scans trees. Cheap to clone.
#[derive(Clone)]
pub struct Scanner {
    shared: Arc<Shared>,
}

struct Shared {
    options: ScannerOptions,
    /// What results depend on besides rules and engines: the build of the program, and the digests that are taken.
    attributes: String,
    /// The rules that files are matched against in the sandbox, if there is one.
    confined: Option<Arc<RuleSets>>,
    engines: Vec<Arc<dyn Engine>>,
    memory: Arc<MemoryBudget>,
    spool: Arc<Spool>,
    clock: Arc<dyn Clock>,
    pool: Pool,
    /// Trees under way.
    trees: AtomicUsize,
    /// Digests of nested files, many at once.
    digests: lazaret_digests::Pool,
    leaf_cost: LeafCost,
    counters: Arc<VerdictCounters>,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn sandbox(&self) -> Option<&Sandbox> {
        self.confined.as_ref().map(|rule_sets| rule_sets.sandbox())
    }
}

impl Scanner {
    /// Starts the scan threads, and has the engines' rules in the sandbox, which must be this scanner's alone.
    pub fn start(
        options: ScannerOptions,
        engines: Vec<Arc<dyn Engine>>,
        environment: &Environment,
    ) -> io::Result<Self> {
        let confined = options.sandbox.clone().map(|sandbox| Arc::new(RuleSets::new(sandbox)));
        if let Some(rule_sets) = &confined {
            engines.iter().try_for_each(|engine| engine.confine(rule_sets)).map_err(io::Error::other)?;
        }
        let pool = Pool::start(options.scan_threads, environment.spawner.clone())?;
        let memory = MemoryBudget::new(options.sample_budget_bytes);
        let spool = Spool::open(options.spool.clone()).map_err(io::Error::other)?;
        let clock = environment.clock.clone();
        let digests = lazaret_digests::Pool::of_process()?;
        let (leaf_cost, counters, metrics) = (LeafCost::default(), Arc::default(), Arc::default());
        let trees = AtomicUsize::new(0);
        let attributes = format!("{} {:?}", program::identity(), options.digests);
        let shared = Shared {
            options,
            attributes,
            confined,
            engines,
            memory,
            spool,
            clock,
            pool,
            trees,
            digests,
            leaf_cost,
            counters,
            metrics,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What became of questions about earlier scans.
    pub fn counters(&self) -> &Arc<VerdictCounters> {
        &self.shared.counters
    }

    /// What is told to monitoring.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// What the verdicts of a rule depend on, with the engines as they are now. None if it wants none of earlier scans.
    pub fn scope(&self, rule: &Rule) -> Option<VerdictScope> {
        VerdictScope::new(rule, &self.engine_versions(), &self.shared.attributes)
    }

    /// What takes files apart and judges them, with the engines as they are now: two of the same name find the same in the same file, and
    /// in the same order.
    pub fn pipeline(&self) -> String {
        let whole = (&self.shared.attributes, self.engine_versions());
        blake3::hash(format!("{whole:?}").as_bytes()).to_string()
    }

    fn engine_versions(&self) -> Vec<EngineVersion> {
        self.shared.engines.iter().map(|engine| engine.version()).collect()
    }

    /// The byte budget over all samples, for fetching a root into memory.
    pub fn memory(&self) -> &Arc<MemoryBudget> {
        &self.shared.memory
    }

    /// Where nested files are that are too long for memory.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.shared.spool
    }

    /// Begins to scan a tree.
    pub fn scan(&self, root: Root, source: Arc<dyn BlobSource>, records: Arc<dyn RecordSink>) -> TreeScan {
        let (done, outcome) = oneshot::channel();
        let stop = Arc::new(StopSignal::default());
        let source = Arc::new(Watched { source, stop: stop.clone(), failure: Mutex::new(None) });
        let length = root.content.as_ref().map_or(root.file.size_bytes, |(content, _)| content.len() as u64);
        // Before the first engine runs: what a newer database finds may be kept as an older one's, never the reverse.
        let scope = root.verdicts.as_ref().and_then(|_| self.scope(&root.rule));
        let (file, blob) = (&root.file, &root.blob);
        let key = scope.as_ref().map(|scope| scope.key(blob.as_bytes(), &file.display_name, file.digests_taken()));
        self.shared.trees.fetch_add(1, Ordering::Relaxed);
        let tree = Arc::new(Tree {
            scope,
            verdicts: root.verdicts,
            shared: root.sharing.map(SharedRoot::new),
            budget: Arc::new(TreeBudget::new(limits(&root.rule), length)),
            scanner: self.shared.clone(),
            root: root.data_id,
            rule: root.rule,
            passwords: root.passwords,
            stop,
            source: source.clone(),
            spool: TreeSpool::new(self.shared.spool.clone()),
            records,
            respondents: Mutex::default(),
            lane: self.shared.pool.lane(length <= SMALL_FILE_BYTES),
            undigested: AtomicUsize::new(0),
            progress: ProgressState::new(length),
            failure: Mutex::new(None),
            done: Mutex::new(Some(done)),
            trace: tracing::Span::current(),
        });
        let name = root.file.display_name.clone();
        let node = Arc::new(Node::root(root.data_id, name.clone()));
        let sample = match root.content {
            Some((content, reservation)) => Sample::reserved(name, content, Some(reservation)),
            None => Sample::remote(name, root.blob, length, source),
        };
        let known = Known { file: Some(root.file), fetch_ms: root.fetch_ms, key, ..Known::default() };
        let job_tree = tree.clone();
        tree.lane.push(Box::new(move || process(&job_tree, &node, sample, known)));
        TreeScan { tree, outcome }
    }
}

/// A tree that is being scanned. Dropped, the scan stops without a result.
pub struct TreeScan {
    tree: Arc<Tree>,
    outcome: oneshot::Receiver<TreeOutcome>,
}

impl TreeScan {
    /// Ends the scan as soon as each thread looks up from its file. The first reason stays.
    pub fn stop(&self, reason: StopReason) {
        self.tree.stop.stop(reason);
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.tree.progress.get()
    }

    /// Waits for the end of the scan. May be dropped and called again, until it has returned.
    pub async fn outcome(&mut self) -> TreeOutcome {
        (&mut self.outcome).await.unwrap_or_else(|_| TreeOutcome::Unfinished {
            source: None,
            detail: "the scan was forgotten by its threads".into(),
        })
    }

    /// The same for a thread that may block.
    pub fn wait(self) -> TreeOutcome {
        let mut this = self;
        let outcome = std::mem::replace(&mut this.outcome, oneshot::channel().1);
        outcome.blocking_recv().unwrap_or_else(|_| TreeOutcome::Unfinished {
            source: None,
            detail: "the scan was forgotten by its threads".into(),
        })
    }
}

impl Drop for TreeScan {
    fn drop(&mut self) {
        self.tree.stop.stop(StopReason::Abandoned);
    }
}

/// What all jobs of one root share.
struct Tree {
    scanner: Arc<Shared>,
    root: DataId,
    rule: Rule,
    passwords: Passwords,
    /// What verdicts depend on; none if none are taken from earlier scans, or kept.
    scope: Option<VerdictScope>,
    verdicts: Option<Arc<dyn Verdicts>>,
    shared: Option<SharedRoot>,
    budget: Arc<TreeBudget>,
    stop: Arc<StopSignal>,
    source: Arc<Watched>,
    spool: TreeSpool,
    records: Arc<dyn RecordSink>,
    /// Processes in the sandbox that are asked about this tree's members and take short ones apart: no more than that threads have
    /// under way at once, one member inside the other.
    respondents: Mutex<Vec<Respondent>>,
    lane: Lane,
    /// How many files are judged but for their digests.
    undigested: AtomicUsize,
    progress: ProgressState,
    failure: Mutex<Option<String>>,
    done: Mutex<Option<oneshot::Sender<TreeOutcome>>>,
    /// What the root's stages belong to in traces.
    trace: tracing::Span,
}

impl Tree {
    /// What containers' own processes are to say of each short member on the way. With at least as many trees as threads each tree's
    /// process matches its members itself, which spares handing every one of them to another; with fewer, members are matched by as
    /// many processes as there are threads. The operator's own rules are always matched there: one that takes long must cost its
    /// file, and not the archive.
    fn question_about_members(&self) -> Option<Vec<u8>> {
        let scanner = &self.scanner;
        let all_busy = scanner.trees.load(Ordering::Relaxed) >= scanner.options.scan_threads;
        if all_busy { self.standing_question() } else { None }
    }

    /// A process in the sandbox for this tree's members. Whoever is done with it puts it back to the others.
    fn respondent(&self, sandbox: &Sandbox) -> Result<Respondent, String> {
        // A statement of its own: one that is dropped may have to wait, and not under the lock.
        let idle = lock(&self.respondents).pop();
        let idle = idle.filter(Respondent::is_current);
        idle.map_or_else(|| sandbox.respondent(), Ok).map_err(|error| error.to_string())
    }

    /// What a process in the sandbox is to answer unasked: by the rules that never take long.
    fn standing_question(&self) -> Option<Vec<u8>> {
        let scanner = &self.scanner;
        let taking_part = scanner.engines.iter().filter(|engine| takes_part(engine, &self.rule));
        let sets: Vec<&str> = taking_part.filter_map(|engine| engine.swift_rule_set()).collect();
        if sets.is_empty() { None } else { Question::Members(sets).to_bytes().ok() }
    }

    /// Whether results may no longer be written.
    fn is_lost(&self) -> bool {
        self.stop.reason().is_some_and(|reason| reason.code().is_none())
    }

    /// Whether what is found may be kept for others: not if they might lack a password that helped.
    fn may_keep(&self) -> bool {
        self.passwords == Passwords::NONE
    }

    /// Ends the scan without a result.
    fn fail(&self, detail: String) {
        lock(&self.failure).get_or_insert(detail);
        self.stop.stop(StopReason::Failed);
    }

    /// Whether other workers take parts of the root.
    fn is_shared(&self) -> bool {
        self.shared.as_ref().is_some_and(SharedRoot::is_active)
    }

    /// Tells whoever waits how the scan ended.
    fn finish(&self, result: FileResult) {
        self.end(TreeOutcome::Finished(Box::new(result)));
    }

    /// The same for a root that is shared.
    fn finish_part(&self, part: RootPart) {
        self.end(TreeOutcome::Shared(Box::new(part)));
    }

    fn end(&self, outcome: TreeOutcome) {
        let outcome = if self.is_lost() {
            let source = lock(&self.source.failure).clone();
            let detail = lock(&self.failure).clone().or_else(|| source.as_ref().map(ToString::to_string));
            TreeOutcome::Unfinished { source, detail: detail.unwrap_or_else(|| "the scan was abandoned".into()) }
        } else {
            outcome
        };
        if let Some(done) = lock(&self.done).take() {
            // Whoever waited may be gone; then nobody wants the outcome.
            let _ = done.send(outcome);
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.scanner.trees.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A source that ends the scan at its first failure: what could not be read must not look like a broken file.
struct Watched {
    source: Arc<dyn BlobSource>,
    stop: Arc<StopSignal>,
    failure: Mutex<Option<SourceError>>,
}

impl BlobSource for Watched {
    fn read(&self, name: BlobName, range: ByteRange) -> Result<Bytes, SourceError> {
        self.source.read(name, range).inspect_err(|error| {
            lock(&self.failure).get_or_insert_with(|| error.clone());
            self.stop.stop(StopReason::Failed);
        })
    }
}

/// How far a tree is, by how much of the root was read for taking it apart: how many files there are is known at the end only.
struct ProgressState {
    root_bytes: u64,
    read_bytes: AtomicU64,
    extracting: AtomicBool,
    last_file: Mutex<String>,
}

impl ProgressState {
    fn new(root_bytes: u64) -> Self {
        Self {
            root_bytes,
            read_bytes: AtomicU64::new(0),
            extracting: AtomicBool::new(false),
            last_file: Mutex::default(),
        }
    }

    fn begin_extraction(&self) {
        self.extracting.store(true, Ordering::Relaxed);
    }

    fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn begin_file(&self, name: &str) {
        let mut last = lock(&self.last_file);
        last.clear();
        last.push_str(name);
    }

    fn get(&self) -> Progress {
        let read = self.read_bytes.load(Ordering::Relaxed).min(self.root_bytes);
        let percent = match u128::from(read) * 90 / u128::from(self.root_bytes.max(1)) {
            _ if !self.extracting.load(Ordering::Relaxed) => 1,
            part => 5 + part as u8,
        };
        Progress { percent, last_file: lock(&self.last_file).clone() }
    }
}

/// Locks data that stays whole even if a thread panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ms_since(began: Instant) -> u64 {
    began.elapsed().as_millis() as u64
}
