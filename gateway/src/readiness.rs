//! Whether the gateway can keep its promises now: each thing it depends on is asked, within a bound, at most once a
//! second however many probes come.
//!
//! Files are scanned while at least one worker reports, which the API reference asks for ("the required minimum of healthy
//! instances"), and takes what waits: tasks that wait while no worker has any mean that nobody scans, whoever reports.

use std::sync::Arc;
use std::time::Duration;

use lazaret_analysis::worker_report::REPORT_FRESH_MS;
use lazaret_analysis::{DataId, ProgressCache, QueueDepth, ResultStore, TaskQueue};
use lazaret_identity::Identity;
use lazaret_node_client::{Cluster, Environment};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use utoipa::ToSchema;

/// How long an answer is repeated to further probes.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// How long one component may take to answer. A connection attempt to a dead node takes 2 s.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long tasks may wait with no worker on any before scanning counts as down: longer than a worker's start.
const UNATTENDED_MAX: Duration = Duration::from_secs(30);

/// What is said when no worker reported of late.
const NOBODY: &str = "no scan worker is alive";

/// GET /readyz in full.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Report {
    pub(crate) status: bool,
    pub(crate) scan_queue: ScanQueue,
    pub(crate) license: License,
    pub(crate) components: Components,
    /// How many scan workers reported of late; left out when that could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scan_workers: Option<u64>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ScanQueue {
    pub(crate) number_in_queue: u64,
    pub(crate) status: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = LicenseStatus)]
pub(crate) struct License {
    pub(crate) status: &'static str,
}

/// The parts under the names that the API reference gives them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Components {
    pub(crate) status: bool,
    pub(crate) datalake: Component,
    pub(crate) caching: Component,
    pub(crate) broker: Component,
    pub(crate) filestorage: Component,
    pub(crate) identity: Component,
    pub(crate) ometascan: Component,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Component {
    pub(crate) status: bool,
    pub(crate) detail: String,
}

/// Asks the components and remembers the answer for a moment.
pub(crate) struct Readiness {
    results: Arc<dyn ResultStore>,
    queue: Arc<dyn TaskQueue>,
    progress: Arc<dyn ProgressCache>,
    cluster: Cluster,
    identity: Identity,
    environment: Environment,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    report: Option<(Instant, Arc<Report>)>,
    /// Since when tasks have waited with no worker on any.
    unattended_since: Option<Instant>,
}

impl Readiness {
    pub(crate) fn new(
        results: Arc<dyn ResultStore>,
        queue: Arc<dyn TaskQueue>,
        progress: Arc<dyn ProgressCache>,
        cluster: Cluster,
        identity: Identity,
        environment: Environment,
    ) -> Self {
        Self { results, queue, progress, cluster, identity, environment, last: Mutex::new(Last::default()) }
    }

    /// The state of everything, no older than [`FRESH_FOR`]. Probes that come together share one round of questions.
    pub(crate) async fn report(&self) -> Arc<Report> {
        let mut last = self.last.lock().await;
        if let Some((asked, report)) = &last.report
            && asked.elapsed() < FRESH_FOR
        {
            return Arc::clone(report);
        }
        let report = Arc::new(self.ask(&mut last.unattended_since).await);
        if !report.status {
            tracing::warn!(components = ?report.components, "not ready");
        }
        last.report = Some((Instant::now(), Arc::clone(&report)));
        report
    }

    async fn ask(&self, unattended_since: &mut Option<Instant>) -> Report {
        // Any id and any key do: the question is whether an answer comes.
        let probe = DataId([0; 16]);
        let no_key = "0".repeat(64);
        let (datalake, caching, (broker, depth), filestorage, identity, scan_workers) = tokio::join!(
            check(async { self.results.get(probe).await.map(drop) }),
            check(async { self.progress.get(probe).await.map(drop) }),
            self.ask_queue(),
            check(self.cluster.writable()),
            check(async { self.identity.authenticate(&no_key).await.map(drop) }),
            self.scan_workers(),
        );
        let ometascan = scanning(depth, scan_workers, unattended_since, Instant::now());
        let parts = [&datalake, &caching, &broker, &filestorage, &identity, &ometascan];
        let status = parts.iter().all(|part| part.status);
        Report {
            status,
            scan_queue: ScanQueue {
                number_in_queue: depth.queued.saturating_add(depth.leased),
                status: ometascan.status,
            },
            license: License { status: "ok" },
            components: Components { status, datalake, caching, broker, filestorage, identity, ometascan },
            scan_workers,
        }
    }

    /// How many workers reported of late.
    async fn scan_workers(&self) -> Option<u64> {
        let since_ms = self.environment.clock.unix_ms().saturating_sub(REPORT_FRESH_MS);
        let workers = tokio::time::timeout(CHECK_TIMEOUT, self.results.workers(since_ms)).await.ok()?.ok()?;
        Some(workers.len() as u64)
    }

    async fn ask_queue(&self) -> (Component, QueueDepth) {
        let mut depth = QueueDepth::default();
        let component = check(async {
            depth = self.queue.depth().await?;
            Ok::<_, lazaret_analysis::StoreError>(())
        })
        .await;
        (component, depth)
    }
}

async fn check<E: std::fmt::Display>(question: impl Future<Output = Result<(), E>>) -> Component {
    match tokio::time::timeout(CHECK_TIMEOUT, question).await {
        Ok(Ok(())) => Component { status: true, detail: "ok".to_owned() },
        Ok(Err(error)) => Component { status: false, detail: error.to_string() },
        Err(_) => Component { status: false, detail: format!("no answer within {} s", CHECK_TIMEOUT.as_secs()) },
    }
}

fn scanning(
    depth: QueueDepth,
    scan_workers: Option<u64>,
    unattended_since: &mut Option<Instant>,
    now: Instant,
) -> Component {
    let nobody = scan_workers == Some(0);
    if depth.queued == 0 || depth.leased > 0 {
        *unattended_since = None;
        let detail = if nobody { NOBODY } else { "ok" };
        return Component { status: !nobody, detail: detail.to_owned() };
    }
    let waited = now.saturating_duration_since(*unattended_since.get_or_insert(now));
    let waiting = format!("{} tasks wait and no worker has taken one for {} s", depth.queued, waited.as_secs());
    let detail = if nobody { format!("{NOBODY}; {waiting}") } else { waiting };
    Component { status: !nobody && waited < UNATTENDED_MAX, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_that_nobody_takes_mean_that_nobody_scans() {
        let waiting = QueueDepth { queued: 3, leased: 0 };
        let attended = QueueDepth { queued: 3, leased: 1 };
        let begun = Instant::now();
        let mut since = None;
        assert!(scanning(waiting, Some(1), &mut since, begun).status);
        assert!(scanning(waiting, Some(1), &mut since, begun + UNATTENDED_MAX - Duration::from_secs(1)).status);
        let down = scanning(waiting, Some(1), &mut since, begun + UNATTENDED_MAX);
        assert!(!down.status && down.detail.contains("3 tasks"), "{down:?}");
        assert!(scanning(attended, Some(1), &mut since, begun + UNATTENDED_MAX).status);
        assert!(scanning(waiting, Some(1), &mut since, begun + 2 * UNATTENDED_MAX).status, "counted anew");
        assert!(scanning(QueueDepth::default(), Some(1), &mut since, begun + 9 * UNATTENDED_MAX).status);
        let nobody = scanning(waiting, Some(0), &mut since, begun);
        assert!(!nobody.status && nobody.detail.starts_with("no scan worker is alive; 3 tasks wait"), "{nobody:?}");
        assert!(
            !scanning(QueueDepth::default(), Some(0), &mut since, begun).status,
            "nothing waits, and nothing would be scanned"
        );
        assert!(scanning(QueueDepth::default(), None, &mut since, begun).status, "the results' store is what is ill");
    }
}
