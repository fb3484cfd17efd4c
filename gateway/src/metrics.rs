//! What a gateway tells monitoring: requests and submissions, counted as they happen; the queue, the sessions and the parts
//! that the gateway depends on, as of when it is asked.
//!
//! Names and meanings are a promise to dashboards: README lists them. How the text travels is not this crate's part.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::error::ApiError;
use crate::gateway::Shared;
use crate::submit::SubmitError;

/// Upper bounds in seconds: a read of a result takes parts of a millisecond, an upload as long as its bytes.
const SECONDS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];

/// A request: by route, not by path, so that there are no more series than routes, methods and statuses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: String,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ComponentLabels {
    component: &'static str,
}

/// What is counted as it happens.
pub(crate) struct GatewayMetrics {
    requests: Family<RequestLabels, Histogram>,
    submissions: Family<OutcomeLabels, Counter>,
    submitted_bytes: Counter,
    connections: AtomicI64,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        Self {
            requests: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            submissions: Family::default(),
            submitted_bytes: Counter::default(),
            connections: AtomicI64::new(0),
        }
    }
}

impl GatewayMetrics {
    /// A request that ended. Methods that HTTP does not know are one.
    pub(crate) fn request(&self, route: &str, method: &str, status: &str, took: Duration) {
        const METHODS: [&str; 9] = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"];
        let method = if METHODS.contains(&method) { method } else { "other" };
        let labels = RequestLabels { route: route.to_owned(), method: method.to_owned(), status: status.to_owned() };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A submission that was taken in.
    pub(crate) fn accepted(&self, bytes: u64) {
        self.submissions.get_or_create(&OutcomeLabels { outcome: "accepted" }).inc();
        self.submitted_bytes.inc_by(bytes);
    }

    /// A submission that was not.
    pub(crate) fn refused(&self, error: &ApiError) {
        self.submissions.get_or_create(&OutcomeLabels { outcome: outcome(error) }).inc();
    }

    /// A connection, for as long as what is returned lives.
    pub(crate) fn connection(self: &Arc<Self>) -> Connection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connection(Arc::clone(self))
    }
}

/// A connection that is open.
pub(crate) struct Connection(Arc<GatewayMetrics>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why nothing was submitted, in a word.
fn outcome(error: &ApiError) -> &'static str {
    match error {
        ApiError::Submit(SubmitError::Busy) => "busy",
        ApiError::Submit(SubmitError::QueueFull) => "queue full",
        ApiError::Submit(SubmitError::TooFast { .. }) => "rate limit",
        ApiError::Refused { .. } => "denied",
        ApiError::Submit(error) if error.is_of_the_body() => "broken off",
        error if error.status().is_client_error() => "invalid",
        _ => "failed",
    }
}

/// A gateway as monitoring sees it. Cheap to clone.
#[derive(Clone)]
pub struct GatewayMonitor {
    pub(crate) shared: Arc<Shared>,
}

impl GatewayMonitor {
    /// Adds everything there is to tell. What can't be found out now is left out rather than guessed.
    pub async fn describe(&self, registry: &mut Registry) {
        let metrics = &self.shared.metrics;
        registry.register_with_unit(
            "lazaret_gateway_request",
            "requests by route, method and status (499: the client went away), and how long each took",
            Unit::Seconds,
            metrics.requests.clone(),
        );
        registry.register(
            "lazaret_gateway_submissions",
            "submissions by what became of them",
            metrics.submissions.clone(),
        );
        registry.register(
            "lazaret_gateway_submitted_bytes",
            "bytes of the files that were accepted",
            metrics.submitted_bytes.clone(),
        );
        let in_use = self.shared.intake.admission.in_use();
        gauge(
            registry,
            "lazaret_gateway_connections",
            "connections that are open",
            metrics.connections.load(Ordering::Relaxed),
        );
        gauge(registry, "lazaret_gateway_uploads", "uploads in flight", number(in_use.uploads));
        gauge(registry, "lazaret_gateway_upload_bytes", "memory that they were given", number(in_use.bytes));
        self.describe_queue(registry).await;
        self.describe_parts(registry).await;
        if let Ok(sessions) = self.shared.identity.session_count().await {
            gauge(registry, "lazaret_gateway_sessions", "sessions that are in force", number(sessions));
        }
    }

    async fn describe_queue(&self, registry: &mut Registry) {
        let queue = &self.shared.intake.queue;
        if let Ok(depth) = queue.depth().await {
            gauge(registry, "lazaret_queue_waiting", "submissions that wait for a worker", number(depth.queued));
            gauge(registry, "lazaret_queue_running", "submissions that a worker has", number(depth.leased));
        }
        if let Ok(oldest_ms) = queue.oldest_ms().await {
            let age_ms = oldest_ms.map_or(0, |oldest_ms| self.shared.now_ms().saturating_sub(oldest_ms));
            let age = ConstGauge::<f64>::new(age_ms as f64 / 1000.0);
            registry.register_with_unit(
                "lazaret_queue_oldest",
                "how long ago the oldest unfinished submission was queued",
                Unit::Seconds,
                age,
            );
        }
    }

    /// The parts that GET /readyz asks, under the names by which it knows them.
    async fn describe_parts(&self, registry: &mut Registry) {
        let report = self.shared.readiness.report().await;
        gauge(registry, "lazaret_ready", "1 if everything works", i64::from(report.status));
        let parts = &report.components;
        let up: Family<ComponentLabels, Gauge> = Family::default();
        for (name, part) in [
            ("datalake", &parts.datalake),
            ("caching", &parts.caching),
            ("broker", &parts.broker),
            ("filestorage", &parts.filestorage),
            ("identity", &parts.identity),
            ("ometascan", &parts.ometascan),
        ] {
            up.get_or_create(&ComponentLabels { component: name }).set(i64::from(part.status));
        }
        registry.register("lazaret_component_up", "1 if the part works, as GET /readyz says", up);
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    registry.register(name, help, ConstGauge::<i64>::new(value));
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
