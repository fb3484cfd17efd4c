//! GET /stat/engines and GET /stat/nodes: scan workers and their engines, as the workers reported them last.
//!
//! The API reference answers -1 for slots; here they are real, since autoscalers read them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use lazaret_analysis::worker_report::REPORT_FRESH_MS;
use lazaret_analysis::{DiskReport, EngineInfo, WorkerReport};
use serde::Serialize;
use utoipa::ToSchema;

use super::documented::{Forbidden, NoRight, Unexpected};
use crate::access::{Gate, require};
use crate::error::ApiError;
use crate::gateway::Shared;
use crate::view::timestamp;

const BYTES_PER_MB: u64 = 1 << 20;

/// An engine.
#[derive(Serialize, ToSchema)]
pub(super) struct EngineAnswer {
    /// Whether it is given up.
    abandoned: bool,
    /// Whether a worker uses it.
    active: bool,
    /// When its database was made.
    def_time: String,
    /// Percent of its download.
    download_progress: u8,
    /// When its database came.
    download_time: String,
    /// Its id.
    eng_id: String,
    /// Its name, as in `scan_details`.
    eng_name: String,
    /// Its kind for people.
    eng_type: String,
    /// Its version.
    eng_ver: String,
    /// `av`, `archive` or `filetype`.
    engine_type: &'static str,
    /// Messages of the engine.
    notified_messages: Vec<String>,
    /// Whether it is kept at its version.
    pinned: bool,
    /// Its state.
    state: &'static str,
    /// `engine`.
    #[serde(rename = "type")]
    kind: &'static str,
}

/// All workers.
#[derive(Serialize, ToSchema)]
pub(super) struct NodesAnswer {
    /// Whether workers of other hosts may come.
    external_nodes_allowed: bool,
    /// How many there are.
    max_node_count: usize,
    /// Each of them.
    statuses: Vec<NodeAnswer>,
}

/// A worker.
#[derive(Serialize, ToSchema)]
pub(super) struct NodeAnswer {
    /// Always empty: nobody connects to a worker.
    address: String,
    /// Memory that can be had, in MB.
    available_mem: u64,
    /// Processors.
    cpu_cores: u64,
    /// Submissions that it scans now.
    current_processing_files: u64,
    /// Its engines.
    engines: Vec<NodeEngine>,
    /// Bytes that it may still write where it keeps files while it scans them.
    free_disk_space: u64,
    /// Its name.
    id: String,
    /// The disk where that is.
    info_disk_space: Vec<DiskSpace>,
    /// What is wrong with it.
    issues: Vec<Issue>,
    /// How busy its processors are, in percent.
    load: u64,
    /// Its operating system.
    os: String,
    /// Submissions that it scans now.
    scan_queue: u64,
    /// Its places for submissions.
    scan_queue_details: QueueDetails,
    /// Bytes that this disk has.
    total_disk_space: u64,
    /// Its memory in MB.
    total_mem: u64,
    /// How many submissions it scans at once at most.
    total_scan_queue: u64,
    /// Seconds since it started.
    uptime: u64,
    /// Its version.
    version: String,
}

/// An engine of a worker.
#[derive(Serialize, ToSchema)]
struct NodeEngine {
    active: bool,
    db_ver: String,
    def_time: String,
    download_time: String,
    eng_name: String,
    eng_ver: String,
    engine_type: &'static str,
    id: String,
    issues: Vec<String>,
}

/// A disk of a worker.
#[derive(Serialize, ToSchema)]
struct DiskSpace {
    /// The folders that the worker uses there.
    dirs: Vec<String>,
    /// Bytes that it may still write.
    free: u64,
    /// Where it is.
    location: String,
    /// Bytes that it has.
    total: u64,
}

/// What is wrong with a worker.
#[derive(Serialize, ToSchema)]
struct Issue {
    description: String,
    severity: &'static str,
}

/// Places for submissions.
#[derive(Serialize, ToSchema)]
struct QueueDetails {
    /// Always -1: archives have no places of their own.
    archive_scan_queue_ratio: i64,
    /// Places that are free.
    available_slots: u64,
    /// Always 0: nested files take no places.
    extracted_file_slots: u64,
    /// Places that are taken.
    file_slots: u64,
    /// All places.
    total_scan_queue: u64,
}

/// The engines of all workers, the newest database of each.
#[utoipa::path(get, path = "/stat/engines", tag = "Statistics",
    responses((status = 200, description = "The engines", body = Vec<EngineAnswer>), Forbidden, Unexpected))]
pub(super) async fn engines(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Vec<EngineAnswer>>, ApiError> {
    let (parts, _) = request.into_parts();
    require(&shared, &parts, Gate::ENGINES).await?;
    let engines = latest_engines(&workers(&shared).await?);
    Ok(Json(engines.into_iter().map(engine_answer).collect()))
}

/// The workers.
#[utoipa::path(get, path = "/stat/nodes", tag = "Statistics",
    responses((status = 200, description = "The workers", body = NodesAnswer), Forbidden, NoRight, Unexpected))]
pub(super) async fn nodes(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<NodesAnswer>, ApiError> {
    let (parts, _) = request.into_parts();
    require(&shared, &parts, Gate::NODES).await?;
    let now_ms = shared.now_ms();
    let workers = workers(&shared).await?;
    Ok(Json(NodesAnswer {
        external_nodes_allowed: true,
        max_node_count: workers.len(),
        statuses: workers.into_iter().map(|worker| node_answer(worker, now_ms)).collect(),
    }))
}

/// The workers that reported of late.
pub(super) async fn workers(shared: &Shared) -> Result<Vec<WorkerReport>, ApiError> {
    let since_ms = shared.now_ms().saturating_sub(REPORT_FRESH_MS);
    shared.results.workers(since_ms).await.map_err(ApiError::Results)
}

/// The ids of the engines that are loaded, and when their databases were made, asked at most once a second: every poll of a
/// finished analysis wants to know.
#[derive(Default)]
pub(crate) struct EnginesSeen(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    asked: Option<Instant>,
    engines: Arc<Vec<(String, u64)>>,
}

/// How long that is repeated. Workers report every five seconds.
const ENGINES_FRESH_FOR: Duration = Duration::from_secs(1);

impl EnginesSeen {
    /// As of a second ago at most. Without word of the workers, as they were known last.
    pub(crate) async fn current(&self, shared: &Shared) -> Arc<Vec<(String, u64)>> {
        {
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.asked.is_some_and(|asked| asked.elapsed() < ENGINES_FRESH_FOR) {
                return Arc::clone(&seen.engines);
            }
            // Whoever comes meanwhile goes by what was known.
            seen.asked = Some(Instant::now());
        }
        let workers = workers(shared).await;
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match workers {
            Ok(workers) => {
                let engines = latest_engines(&workers).into_iter().map(|engine| (engine.id, engine.def_time_ms));
                seen.engines = Arc::new(engines.collect());
            }
            Err(error) => tracing::debug!(?error, "the reports of workers could not be read"),
        }
        Arc::clone(&seen.engines)
    }
}

/// Each engine once, by name: where workers differ, the one with the newest database.
pub(super) fn latest_engines(workers: &[WorkerReport]) -> Vec<EngineInfo> {
    let mut latest: BTreeMap<&str, &EngineInfo> = BTreeMap::new();
    for engine in workers.iter().flat_map(|worker| &worker.engines) {
        let known = latest.entry(&engine.name).or_insert(engine);
        if engine.def_time_ms > known.def_time_ms {
            *known = engine;
        }
    }
    latest.into_values().cloned().collect()
}

fn engine_answer(engine: EngineInfo) -> EngineAnswer {
    EngineAnswer {
        abandoned: false,
        active: true,
        def_time: timestamp(engine.def_time_ms),
        download_progress: 100,
        download_time: timestamp(engine.def_time_ms),
        eng_id: engine.id,
        eng_name: engine.name,
        eng_type: format!("{} engine", engine.kind),
        eng_ver: engine.version,
        engine_type: ENGINE_TYPE,
        notified_messages: messages(&engine.trouble),
        pinned: false,
        state: "production",
        kind: "engine",
    }
}

/// What is wrong with an engine, as a list.
fn messages(trouble: &str) -> Vec<String> {
    if trouble.is_empty() { Vec::new() } else { vec![trouble.to_owned()] }
}

/// Whatever judges files is one of these to clients of this API.
const ENGINE_TYPE: &str = "av";

fn node_answer(worker: WorkerReport, now_ms: u64) -> NodeAnswer {
    let no_engine = worker
        .engines
        .is_empty()
        .then(|| Issue { description: "no engine is loaded: files are Not Scanned".to_owned(), severity: "error" });
    let engines = worker.engines.into_iter().map(|engine| NodeEngine {
        active: true,
        db_ver: engine.database_version,
        def_time: timestamp(engine.def_time_ms),
        download_time: timestamp(engine.def_time_ms),
        eng_name: engine.name,
        eng_ver: engine.version,
        engine_type: ENGINE_TYPE,
        id: engine.id,
        issues: messages(&engine.trouble),
    });
    let DiskReport { folder, free_bytes, total_bytes } = worker.host.disk;
    // Workers of earlier versions tell of none.
    let disk = (!folder.is_empty()).then(|| DiskSpace {
        dirs: vec![folder.clone()],
        free: free_bytes,
        location: folder,
        total: total_bytes,
    });
    NodeAnswer {
        address: String::new(),
        available_mem: worker.host.memory_available_bytes / BYTES_PER_MB,
        cpu_cores: worker.host.cpu_cores,
        current_processing_files: worker.running,
        engines: engines.collect(),
        free_disk_space: free_bytes,
        id: worker.name,
        info_disk_space: disk.into_iter().collect(),
        issues: no_engine.into_iter().collect(),
        load: worker.host.load_percent,
        os: worker.host.os,
        scan_queue: worker.running,
        scan_queue_details: QueueDetails {
            archive_scan_queue_ratio: -1,
            available_slots: worker.concurrent_files.saturating_sub(worker.running),
            extracted_file_slots: 0,
            file_slots: worker.running,
            total_scan_queue: worker.concurrent_files,
        },
        total_disk_space: total_bytes,
        total_mem: worker.host.memory_bytes / BYTES_PER_MB,
        total_scan_queue: worker.concurrent_files,
        uptime: now_ms.saturating_sub(worker.started_ms) / 1000,
        version: worker.version,
    }
}
