//! What a scan worker tells monitoring: analyses by verdict, where the time went, what engines said and how long they took,
//! what earlier scans saved, and sandboxed processes that were lost. Counted as it happens.
//!
//! Names and meanings are a promise to dashboards: README lists them. How the text travels is not this crate's part.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lazaret_analysis::{EngineResult, ResultCode, Times};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::scan::VerdictCounters;
use crate::spool::Spool;

/// Upper bounds in seconds. Times come in whole milliseconds: most files take less than one, an archive minutes.
const SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    code: u16,
    verdict: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EngineLabels {
    engine: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EngineVerdictLabels {
    engine: String,
    code: u16,
}

/// What is counted. As many series as there are verdicts, stages and engines.
pub(crate) struct Metrics {
    analyses: Family<VerdictLabels, Counter>,
    analysis_seconds: Histogram,
    stages: Family<StageLabels, Histogram>,
    engines: Family<EngineLabels, Histogram>,
    engine_verdicts: Family<EngineVerdictLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            analyses: Family::default(),
            analysis_seconds: Histogram::new(SECONDS),
            stages: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            engines: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            engine_verdicts: Family::default(),
        }
    }
}

impl Metrics {
    /// An analysis that is finished, with what is nested in it.
    pub(crate) fn analysis(&self, verdict: ResultCode, total_ms: u64) {
        let labels = VerdictLabels { code: verdict.code(), verdict: verdict.text().to_owned() };
        self.analyses.get_or_create(&labels).inc();
        self.analysis_seconds.observe(seconds(total_ms));
    }

    /// A file, submitted or nested, that was judged.
    pub(crate) fn file(&self, times: &Times, engines: &[EngineResult]) {
        for (stage, ms) in [
            ("wait", times.wait_ms),
            ("fetch", times.fetch_ms),
            ("file type", times.filetype_ms),
            ("engines", times.scan_ms),
            ("extraction", times.extraction_ms),
            ("digests", times.hash_ms),
        ] {
            self.stages.get_or_create(&StageLabels { stage }).observe(seconds(ms));
        }
        for said in engines {
            let engine = || said.engine.clone();
            self.engines.get_or_create(&EngineLabels { engine: engine() }).observe(seconds(said.scan_ms));
            self.engine_verdicts.get_or_create(&EngineVerdictLabels { engine: engine(), code: said.code.code() }).inc();
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// A worker at one moment.
pub(crate) struct Seen {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) verdicts: Arc<VerdictCounters>,
    pub(crate) spool: Arc<Spool>,
    /// Sandboxed processes that were lost; none without a sandbox.
    pub(crate) sandbox_lost: Option<u64>,
    /// Submissions being scanned.
    pub(crate) running: u64,
}

/// A worker as monitoring sees it, for as long as it is there. Cheap to clone.
#[derive(Clone)]
pub struct WorkerMonitor {
    pub(crate) look: Arc<dyn Fn() -> Option<Seen> + Send + Sync>,
}

impl WorkerMonitor {
    /// Adds everything there is to tell.
    pub fn describe(&self, registry: &mut Registry) {
        let Some(Seen { metrics, verdicts, spool, sandbox_lost, running }) = (self.look)() else { return };
        registry.register("lazaret_scan_analyses", "analyses finished by verdict", metrics.analyses.clone());
        let help = "how long each analysis took, once begun";
        registry.register_with_unit("lazaret_scan_analysis", help, Unit::Seconds, metrics.analysis_seconds.clone());
        registry.register_with_unit(
            "lazaret_scan_stage",
            "how long each file, nested ones included, took in each stage",
            Unit::Seconds,
            metrics.stages.clone(),
        );
        registry.register_with_unit(
            "lazaret_scan_engine",
            "files that each engine judged, and how long each took",
            Unit::Seconds,
            metrics.engines.clone(),
        );
        let help = "files by engine and what it said of them";
        registry.register("lazaret_scan_engine_verdicts", help, metrics.engine_verdicts.clone());
        let running = ConstGauge::<i64>::new(i64::try_from(running).unwrap_or(i64::MAX));
        registry.register("lazaret_scan_running", "submissions being scanned", running);
        let used = ConstGauge::<i64>::new(i64::try_from(spool.used_bytes()).unwrap_or(i64::MAX));
        let help = "nested files too long for memory that lie in the spool";
        registry.register_with_unit("lazaret_scan_spool", help, Unit::Bytes, used);
        for (name, help, value) in [
            ("spooled", "bytes of nested files that went into the spool", spool.spooled_bytes()),
            ("spool_refused", "nested files for which the spool had no room", spool.refused()),
        ] {
            registry.register(format!("lazaret_scan_{name}"), help, ConstCounter::<u64>::new(value));
        }
        if let Some(lost) = sandbox_lost {
            let help = "sandboxed processes that crashed, were killed by the kernel or said something senseless";
            registry.register("lazaret_scan_sandbox_lost", help, ConstCounter::<u64>::new(lost));
        }
        for (name, help, counter) in [
            ("asked", "files that were looked up among the verdicts of earlier scans", &verdicts.asked),
            ("known", "files whose verdict was known", &verdicts.known),
            ("known_members", "files nested in containers that were known", &verdicts.known_members),
            ("kept", "files whose verdict was kept for others", &verdicts.kept),
            ("waited", "submissions that waited for the scan of a twin", &verdicts.waited),
        ] {
            let value = ConstCounter::<u64>::new(counter.load(Ordering::Relaxed));
            registry.register(format!("lazaret_scan_verdicts_{name}"), help, value);
        }
    }
}
