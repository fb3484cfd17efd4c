//! What a node tells monitoring, in the OpenMetrics text format that Prometheus reads: how often each request came, how it
//! ended and how long it took, counted as it happens; and the node's account of itself, as of when it is asked.
//!
//! Names and meanings are a promise to dashboards: README lists them. How the text travels is not this crate's part.

use std::time::Duration;

use lazaret_protocol::message::NodeReport;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Node;

/// Upper bounds in seconds: a put is a sync (0.1 ms and up), a hung peer is given up after 30 s.
const SECONDS: [f64; 14] = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    request: String,
    outcome: String,
}

/// What is counted as it happens.
pub(crate) struct Metrics {
    /// One series for each request and outcome that occurred: some tens.
    requests: Family<Labels, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { requests: Family::new_with_constructor(|| Histogram::new(SECONDS)) }
    }
}

impl Metrics {
    /// A request that ended.
    pub(crate) fn request(&self, request: &str, outcome: &str, took: Duration) {
        let labels = Labels { request: request.to_owned(), outcome: outcome.to_owned() };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// Adds everything that these nodes have to tell. Asks the file system for its space, which is short.
pub fn describe(nodes: &[Node], registry: &mut Registry) {
    for node in nodes {
        let mut labels = vec![("node".into(), node.id().to_string().into())];
        if let Some(entry) = node.map().node(node.id()) {
            labels.push(("name".into(), entry.name.clone().into()));
        }
        let registry = registry.sub_registry_with_labels(labels.into_iter());
        let requests = node.shared.metrics.requests.clone();
        let help = "requests by kind and outcome, and how long each took";
        registry.register_with_unit("lazaret_node_request", help, Unit::Seconds, requests);
        describe_report(registry, &node.report());
    }
}

fn describe_report(registry: &mut Registry, report: &NodeReport) {
    let flag = |flag: bool| i64::from(flag);
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let gauges = [
        ("node_map_epoch", "epoch of the cluster map in force", number(report.epoch)),
        ("node_clock_trusted", "1 if the clock agrees with a majority of the cluster", flag(report.clock_trusted)),
        ("node_expired_before_ms", "put times before this have expired (Unix ms)", number(report.expired_before_ms)),
        ("node_unreachable_peers", "nodes that do not answer this one", number(report.unreachable.len() as u64)),
        ("repair_running", "1 while this node compares itself with the others", flag(report.repair.running)),
        ("repair_clean", "1 if the last comparison found nothing to do", flag(report.repair.clean)),
        ("repair_missing_blobs", "copies this node should have and has not", number(report.repair.missing_blobs)),
        ("repair_missing_bytes", "bytes of them", number(report.repair.missing_bytes)),
        ("repair_damaged_blobs", "copies found damaged, not yet made good", number(report.repair.damaged_blobs)),
        ("repair_surplus_blobs", "copies here that belong elsewhere", number(report.repair.surplus_blobs)),
        ("repair_failed_blobs", "copies that could not be made, to be tried again", number(report.repair.failed_blobs)),
        ("scrub_running", "1 while segments are verified", flag(report.scrub.running)),
        ("scrub_finished_ms", "when the last whole scrub ended (Unix ms)", number(report.scrub.finished_ms)),
    ];
    for (name, help, value) in gauges {
        registry.register(format!("lazaret_{name}"), help, ConstGauge::<i64>::new(value));
    }
    let counters = [
        ("node_reclaimed_bytes", "bytes that compaction gave back", report.reclaimed_bytes),
        ("repair_rounds", "comparisons finished", report.repair.rounds),
        ("repair_copied_blobs", "copies fetched or sent", report.repair.copied_blobs),
        ("repair_copied_bytes", "bytes of them", report.repair.copied_bytes),
        ("repair_removed_blobs", "surplus copies removed", report.repair.removed_blobs),
        ("scrub_verified_bytes", "bytes read and verified", report.scrub.verified_bytes),
        ("scrub_damaged_records", "records found damaged", report.scrub.damaged_records),
    ];
    for (name, help, value) in counters {
        registry.register(format!("lazaret_{name}"), help, ConstCounter::<u64>::new(value));
    }
    for disk in &report.disks {
        let registry = registry.sub_registry_with_label(("disk".into(), disk.path.clone().into()));
        let gauges = [
            ("failed", "1 if the disk is out of use", flag(disk.failed.is_some())),
            ("full", "1 while writes are refused for want of space", flag(disk.full)),
            ("blobs", "blobs in the index", number(disk.blobs)),
            ("segments", "segments", number(disk.segments)),
            ("segment_bytes", "bytes in segments", number(disk.segment_bytes)),
            ("dead_bytes", "of these, bytes that nothing refers to", number(disk.dead_bytes)),
            ("free_bytes", "bytes free", number(disk.free_bytes)),
            ("total_bytes", "bytes in all", number(disk.total_bytes)),
        ];
        for (name, help, value) in gauges {
            registry.register(format!("lazaret_disk_{name}"), help, ConstGauge::<i64>::new(value));
        }
    }
}
