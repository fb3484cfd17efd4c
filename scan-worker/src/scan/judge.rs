//! One file's own scan: digests, type, engines, and taking it apart. The digests are computed meanwhile, by threads of
//! their own; what a file waits for them at its end is its time for them.
//!
//! Invariant: it always ends with something judged. A panic of an engine is that engine's failure, a panic of an extractor
//! the container's, any other the file's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use lazaret_analysis::{FileInfo, Policy, ResultCode, VerdictKey};
use lazaret_containers::format::Found;
use lazaret_containers::{FileType, Remark};
use lazaret_digests::{Digests, Lost, Pending, Selection, Set};

use super::node::{Judged, Node};
use super::opening::{FileOpening, SandboxInput};
use super::verdicts::{Asked, take_over};
use super::{TRACE, Tree, ms_since};
use crate::budget::StopReason;
use crate::confined::Confined;
use crate::engine::Subject;
use crate::examine::{self, examine, panic_text};
use crate::sample::Sample;

/// What is known of a file before it is scanned.
#[derive(Default)]
pub(super) struct Known {
    /// Name, length and digests, if they were taken.
    pub file: Option<FileInfo>,
    /// Digests that are being computed.
    pub digests: Option<Pending>,
    pub fetch_ms: u64,
    /// What it is.
    pub file_type: Option<FileType>,
    /// What its container's process said of it.
    pub remark: Option<Remark>,
    /// Whether it is known from an earlier scan.
    pub asked: Option<Asked>,
    /// Under what its verdict is kept.
    pub key: Option<VerdictKey>,
}

/// Most files of a tree that are judged but for their digests: what is found of each is some kilobytes.
const UNDIGESTED_FILES_MAX: usize = 256;

/// Scans one file and records what was found.
pub(super) fn process(tree: &Arc<Tree>, node: &Arc<Node>, sample: Sample, known: Known) {
    let judged = catch_unwind(AssertUnwindSafe(|| judge(tree, node, &sample, known)));
    let (judged, pending) = judged.unwrap_or_else(|panic| {
        let detail = format!("scanning the file panicked: {}", panic_text(&*panic));
        tracing::error!(data_id = %node.data_id, detail, "scan panicked");
        let file = bare_info(&sample);
        (Judged { file, failure: Some(ResultCode::FAILED), detail, ..Judged::default() }, None)
    });
    match pending {
        Some(pending) => finish_digests(tree, node, sample, judged, pending),
        None => conclude(tree, node, sample, judged),
    }
}

/// Concludes once the digests are there. If other files wait the thread goes on with them meanwhile, so that many files' digests are
/// under way together; but not while it holds the file without the budget's permission, since nothing else bounds how many of those there are.
fn finish_digests(tree: &Arc<Tree>, node: &Arc<Node>, sample: Sample, mut judged: Judged, pending: Pending) {
    let may_go_on = sample.is_reserved() && !pending.is_there() && tree.scanner.pool.has_waiting_jobs();
    let undigested = if may_go_on { Undigested::count(tree) } else { None };
    let Some(undigested) = undigested else {
        wait_for_digests(tree, sample.bytes(), pending, &mut judged);
        return conclude(tree, node, sample, judged);
    };
    let (tree, node) = (tree.clone(), node.clone());
    pending.then(move |digests| {
        let job_tree = tree.clone();
        tree.lane.push(Box::new(move || {
            settle(&job_tree, sample.bytes(), digests, &mut judged);
            drop(undigested);
            conclude(&job_tree, &node, sample, judged);
        }));
    });
}

/// One of a tree's files that are judged but for their digests.
struct Undigested(Arc<Tree>);

impl Undigested {
    /// None if there are too many.
    fn count(tree: &Arc<Tree>) -> Option<Self> {
        let counted = Self(tree.clone());
        (tree.undigested.fetch_add(1, Ordering::Relaxed) < UNDIGESTED_FILES_MAX).then_some(counted)
    }
}

impl Drop for Undigested {
    fn drop(&mut self) {
        self.0.undigested.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Records what was found of a file.
fn conclude(tree: &Arc<Tree>, node: &Arc<Node>, sample: Sample, mut judged: Judged) {
    if let Some(fault) = sample.fault() {
        // Whatever was found, something of it was seen by nobody.
        let failed = ResultCode::SCAN_FAILED;
        judged.failure = Some(judged.failure.map_or(failed, |code| tree.rule.policy().worst(code, failed)));
        (judged.detail, judged.unkeepable) = (fault.to_owned(), true);
    }
    // Before the result, so that whoever has a tree's result can count on its memory.
    drop(sample);
    tree.scanner.metrics.file(&judged.times, &judged.engines);
    node.judged(tree, judged);
}

/// What was found of a file, and its digests if they were not needed for that.
fn judge(tree: &Arc<Tree>, node: &Arc<Node>, sample: &Sample, mut known: Known) -> (Judged, Option<Pending>) {
    let mut judged = Judged::default();
    judged.times.start_ms = tree.scanner.clock.unix_ms();
    judged.times.fetch_ms = known.fetch_ms;
    judged.times.wait_ms = ms_since(node.created);
    if let Some(reason) = tree.stop.reason() {
        judged.file = known.file.unwrap_or_else(|| bare_info(sample));
        judged.failure = reason.code().or(Some(ResultCode::FAILED));
        return (judged, None);
    }
    tree.progress.begin_file(&node.name);
    if let Some(asked) = known.asked.take() {
        known.key = Some(asked.key);
        let (kept, digests) = asked.wait();
        known.digests = known.digests.or(digests);
        let file = || known.file.clone().unwrap_or_else(|| bare_info(sample));
        if let Some(taken) = kept.and_then(|kept| take_over(tree, node, kept, file())) {
            judged.taken = Some(taken);
            return (judged, None);
        }
    }
    judged.key = known.key.filter(|_| tree.may_keep());

    let mut pending = match &known.file {
        Some(_) => None,
        // Only contents in memory come without: what is spooled is digested on the way.
        None => known.digests.or_else(|| begin_digests(tree, sample.bytes()?)),
    };
    judged.file = known.file.unwrap_or_else(|| bare_info(sample));

    let began = Instant::now();
    let trace = stage(tree, node, "file type");
    let budget = FileOpening::budget(tree, node, sample);
    let input = SandboxInput::new(tree, node, sample, &budget);
    let opening = FileOpening::new(tree, node, sample, &input, &budget);
    let containers = identify(&opening, known.file_type, &mut judged);
    judged.times.filetype_ms = ms_since(began);
    drop(trace);

    if node.parent.is_none() && tree.shared.as_ref().is_some_and(|shared| !shared.leads()) {
        // Whoever leads judges the root itself. Here it is only taken apart.
        judged.came_apart(opening.take_apart(&containers));
        return (judged, None);
    }

    let shared = &tree.scanner;
    if examine::needs_digests(&shared.engines, &tree.rule)
        && let Some(pending) = pending.take()
    {
        wait_for_digests(tree, sample.bytes(), pending, &mut judged);
    }

    let (began, began_ms) = (Instant::now(), tree.scanner.clock.unix_ms());
    let trace = stage(tree, node, "engines");
    let confined = opening.confined(&containers, known.remark.as_ref());
    let confined = confined.as_ref().map(|file| file as &dyn Confined);
    let subject = Subject { sample, file: &judged.file, confined };
    let limit = shared.options.engine_timeout;
    let examined = budget.pause(|| {
        let (waited, signers) = (node.created.elapsed(), || opening.signers(&judged.file, confined));
        examine(&shared.engines, &tree.rule, &subject, limit, waited, &shared.pool, signers)
    });
    judged.times.scan_ms = ms_since(began);
    judged.engines = examined.engines;
    for engine in judged.engines.iter().filter(|_| !trace.is_disabled()) {
        tracing::trace_span!(
            target: TRACE,
            parent: &trace,
            "engine",
            otel.name = engine.engine,
            result = %engine.code,
            started_unix_ms = began_ms,
            took_ms = engine.scan_ms,
            wait_ms = engine.wait_ms,
        );
    }
    drop(trace);
    // An engine that would have judged it in memory: with more of that, or on another worker, it may find something.
    let left_out =
        sample.bytes().is_none() && judged.engines.iter().any(|engine| engine.code == ResultCode::NOT_SCANNED);
    // By a process with a former database, say: the key promises what the newer one would find.
    let named = |version| tree.scope.as_ref().is_some_and(|scope| scope.names(version));
    judged.unkeepable = left_out || examined.passing || !examined.judged_by.iter().all(named);
    judged.findings = examined.findings;
    if judged.detail.is_empty() {
        judged.detail = examined.detail;
    }
    let policy = tree.rule.policy();
    judged.failure = [judged.failure, examined.failure].into_iter().flatten().reduce(|a, b| policy.worst(a, b));
    if containers.is_empty() {
        shared.leaf_cost.note(began.elapsed());
    }

    // Where its content decided, what is in it is not looked at.
    if !examined.closed {
        let began = Instant::now();
        let _trace = (!containers.is_empty()).then(|| stage(tree, node, "extraction"));
        judged.came_apart(opening.take_apart(&containers));
        judged.times.extraction_ms = ms_since(began);
    }
    if let Some(code) = tree.stop.reason().and_then(StopReason::code) {
        cut_short(&mut judged, code, &policy);
    }
    (judged, pending)
}

/// A stage of a submitted file's own scan, for traces. Of nested files, of which there may be a million, there is none.
fn stage(tree: &Tree, node: &Node, name: &'static str) -> tracing::Span {
    if node.parent.is_some() {
        return tracing::Span::none();
    }
    tracing::trace_span!(target: TRACE, parent: &tree.trace, "stage", otel.name = name)
}

/// Says of a file whose scan was stopped that it was, so that it does not look judged. What failed may have failed for
/// that alone: a stop ends the processes that read the file.
pub(super) fn cut_short(judged: &mut Judged, code: ResultCode, policy: &Policy) {
    let faults = [ResultCode::SCAN_FAILED, ResultCode::EXTRACTION_FAILED];
    let is_fault = |reason: &ResultCode| faults.contains(reason);
    if let Some(container) = &mut judged.container
        && container.reason.as_ref().is_some_and(is_fault)
    {
        container.reason = Some(code);
    }
    let failure = judged.failure.filter(|failure| !is_fault(failure));
    judged.failure = Some(failure.map_or(code, |failure| policy.worst(failure, code)));
}

fn bare_info(sample: &Sample) -> FileInfo {
    FileInfo { display_name: sample.name().to_owned(), size_bytes: sample.length(), ..FileInfo::default() }
}

/// Begins the digests of a file in memory, unless none are wanted. Blocks while too many bytes wait for theirs.
pub(super) fn begin_digests(tree: &Tree, content: &Bytes) -> Option<Pending> {
    let selection = tree.scanner.options.digests;
    if selection == Selection::NONE {
        return None;
    }
    Some(tree.scanner.digests.digest_blocking(selection, content.clone()))
}

/// Takes a file's digests once they are there.
pub(super) fn wait_for_digests(tree: &Tree, content: Option<&Bytes>, pending: Pending, judged: &mut Judged) {
    let began = Instant::now();
    settle(tree, content, pending.wait(), judged);
    judged.times.hash_ms = ms_since(began);
}

/// Takes a file's digests; computes them here if the thread that had them failed.
fn settle(tree: &Tree, content: Option<&Bytes>, digests: Result<Digests, Lost>, judged: &mut Judged) {
    let digests = digests.map_or_else(
        |lost| {
            tracing::error!(error = %lost, "digests lost");
            content.map(|content| Set::digest(tree.scanner.options.digests, content))
        },
        Some,
    );
    let hex = |hex: fn(&Digests) -> String| digests.as_ref().map(hex).unwrap_or_default();
    let file = &mut judged.file;
    file.md5 = hex(Digests::md5_hex);
    file.sha1 = hex(Digests::sha1_hex);
    file.sha256 = hex(Digests::sha256_hex);
    file.sha512 = hex(Digests::sha512_hex);
}

/// Finds out what a file is; tells the containers that it is.
fn identify(opening: &FileOpening<'_>, known: Option<FileType>, judged: &mut Judged) -> Vec<Found> {
    match known.map_or_else(|| opening.file_type(), Ok) {
        Ok(FileType { mime, extension, description, category, containers, suspicious }) => {
            if let Some(suspicious) = suspicious {
                judged.failure = Some(ResultCode::SUSPICIOUS);
                judged.detail = suspicious;
            }
            judged.file.file_type = mime;
            judged.file.file_type_description = description;
            judged.file.type_category = category;
            judged.file.extension = extension;
            containers
        }
        Err((code, reason)) => {
            judged.failure = code;
            judged.detail = format!("the file's type could not be detected: {reason}");
            Vec::new()
        }
    }
}
