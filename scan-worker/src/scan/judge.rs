//! One file's own scan: digests, type, engines, and taking it apart.
//!
//! Invariant: it always ends with something judged. A panic of an engine is that engine's failure, a panic of an extractor
//! the container's, any other the file's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use lazaret_analysis::{EngineResult, FileInfo, ResultCode};
use lazaret_containers::FileType;
use lazaret_containers::format::Found;
use lazaret_digests::{Digests, Set};
use lazaret_protocol::BlobName;

use super::node::{Judged, Node};
use super::opening::{FileOpening, SandboxInput};
use super::{Tree, ms_since};
use crate::budget::StopReason;
use crate::engine::{Engine, EngineVerdict, ScanContext};
use crate::sample::Sample;

/// What is known of a file before it is scanned.
#[derive(Default)]
pub(super) struct Known {
    /// Name, length and digests, if they were taken.
    pub file: Option<FileInfo>,
    /// The content's name, if it was kept as a blob.
    pub blob: Option<BlobName>,
    pub fetch_ms: u64,
    /// What it is.
    pub file_type: Option<FileType>,
}

/// Scans one file and records what was found.
pub(super) fn process(tree: &Arc<Tree>, node: &Arc<Node>, sample: Sample, known: Known) {
    let blob = known.blob;
    let judged = catch_unwind(AssertUnwindSafe(|| judge(tree, node, &sample, known))).unwrap_or_else(|panic| {
        let detail = format!("scanning the file panicked: {}", panic_text(&*panic));
        tracing::error!(data_id = %node.data_id, detail, "scan panicked");
        let file = bare_info(&sample);
        Judged { file, blob, failure: Some(ResultCode::FAILED), detail, ..Judged::default() }
    });
    // Before the result, so that whoever has a tree's result can count on its memory.
    drop(sample);
    node.judged(tree, judged);
}

fn judge(tree: &Arc<Tree>, node: &Arc<Node>, sample: &Sample, known: Known) -> Judged {
    let mut judged = Judged { blob: known.blob, ..Judged::default() };
    judged.times.start_ms = tree.scanner.clock.unix_ms();
    judged.times.fetch_ms = known.fetch_ms;
    if let Some(reason) = tree.stop.reason() {
        judged.file = known.file.unwrap_or_else(|| bare_info(sample));
        judged.failure = reason.code().or(Some(ResultCode::FAILED));
        return judged;
    }
    tree.progress.begin_file(&node.name);

    let began = Instant::now();
    judged.file = known.file.unwrap_or_else(|| with_digests(tree, sample));
    judged.times.hash_ms = ms_since(began);

    let began = Instant::now();
    let input = SandboxInput::new(tree, node, sample);
    let mut opening = FileOpening::new(tree, node, sample, &input);
    let containers = identify(&mut opening, known.file_type, &mut judged);
    judged.times.filetype_ms = ms_since(began);

    let began = Instant::now();
    judged.engines = opening.budget().pause(|| run_engines(tree, node, sample));
    judged.times.scan_ms = ms_since(began);

    let began = Instant::now();
    judged.container = opening.take_apart(&containers);
    judged.times.extraction_ms = ms_since(began);
    // A file whose scan was cut short must not look judged.
    judged.failure = judged.failure.or_else(|| tree.stop.reason().and_then(StopReason::code));
    judged
}

fn bare_info(sample: &Sample) -> FileInfo {
    FileInfo { display_name: sample.name().to_owned(), size_bytes: sample.length(), ..FileInfo::default() }
}

fn with_digests(tree: &Tree, sample: &Sample) -> FileInfo {
    // Only contents in memory come here: what goes to the store is digested on the way.
    let digests = sample.bytes().map(|content| Set::digest(tree.scanner.options.digests, content));
    info(sample.name(), sample.length(), digests.as_ref())
}

/// A file's description but for its type.
pub(super) fn info(name: &str, size_bytes: u64, digests: Option<&Digests>) -> FileInfo {
    FileInfo {
        display_name: name.to_owned(),
        size_bytes,
        md5: digests.map(Digests::md5_hex).unwrap_or_default(),
        sha1: digests.map(Digests::sha1_hex).unwrap_or_default(),
        sha256: digests.map(Digests::sha256_hex).unwrap_or_default(),
        sha512: digests.map(Digests::sha512_hex).unwrap_or_default(),
        ..FileInfo::default()
    }
}

/// Finds out what a file is; tells the containers that it is.
fn identify(opening: &mut FileOpening<'_>, known: Option<FileType>, judged: &mut Judged) -> Vec<Found> {
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

/// Runs the engines that the rule names, or all of them.
fn run_engines(tree: &Tree, node: &Node, sample: &Sample) -> Vec<EngineResult> {
    let loaded = &tree.scanner.engines;
    let named = &tree.rule.engines;
    let mut results = Vec::new();
    for engine in loaded {
        let info = engine.info();
        if !named.is_empty() && !named.contains(&info.name) {
            continue;
        }
        let wait_ms = ms_since(node.created);
        let began = Instant::now();
        let verdict = run_engine(tree, &**engine, sample);
        results.push(EngineResult {
            engine: info.name,
            engine_id: info.id,
            code: verdict.code,
            threat: verdict.threat,
            def_time_ms: info.def_time_ms,
            scan_ms: ms_since(began),
            wait_ms,
        });
    }
    for name in named {
        if !results.iter().any(|result| result.engine == *name) {
            results.push(EngineResult {
                engine: name.clone(),
                engine_id: String::new(),
                code: ResultCode::SCAN_FAILED,
                threat: "the rule names this engine, but it is not loaded".into(),
                def_time_ms: 0,
                scan_ms: 0,
                wait_ms: 0,
            });
        }
    }
    results
}

fn run_engine(tree: &Tree, engine: &dyn Engine, sample: &Sample) -> EngineVerdict {
    let context = ScanContext::within(tree.scanner.options.engine_timeout);
    match catch_unwind(AssertUnwindSafe(|| engine.scan(sample, &context))) {
        Ok(verdict) if verdict.code.is_final() => verdict,
        Ok(_) => EngineVerdict::failed("the engine gave no final verdict"),
        Err(panic) => {
            let reason = format!("the engine panicked: {}", panic_text(&*panic));
            tracing::error!(engine = engine.info().name, reason, "engine panicked");
            EngineVerdict::failed(reason)
        }
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}
