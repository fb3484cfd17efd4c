//! What a running cluster says of itself, for people and as JSON.

use std::io::Write;
use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use lazaret_node_client::cluster::Cluster;
use lazaret_node_client::{Environment, NodeError};
use lazaret_protocol::message::{NodeReport, NodeStatus, Request, Response};
use lazaret_protocol::{ClusterMap, NodeEntry};
use serde_json::json;

use super::admin::{ask_all, survey};

/// One node and what it said.
struct Row {
    node: NodeEntry,
    status: Result<NodeStatus, NodeError>,
    /// Absent if the node did not answer, or knows no report.
    report: Option<Report>,
}

struct Report {
    report: NodeReport,
    /// The node's clock less this host's, in milliseconds.
    clock_offset_ms: i64,
}

/// Prints what every node says of itself. Exit code 2 if fewer nodes answer than a write needs.
pub async fn status(cluster: &Cluster, as_json: bool) -> anyhow::Result<ExitCode> {
    let map = survey(cluster).await?.newest;
    let rows = rows(cluster, &map).await;
    let reachable = rows.iter().filter(|row| row.status.is_ok()).count();
    let document = if as_json { as_document(&map, &rows).to_string() } else { as_table(&map, &rows) };
    writeln!(crate::output::stdout(), "{document}")?;
    Ok(if reachable >= usize::from(map.min_replica) { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Prints the newest cluster map that nodes hold.
pub async fn map(cluster: &Cluster, as_json: bool) -> anyhow::Result<ExitCode> {
    let map = survey(cluster).await?.newest;
    if as_json {
        writeln!(crate::output::stdout(), "{}", serde_json::to_string(&map)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = new_table();
    table.set_header(["Node", "Id", "Address", "Weight", "State"]);
    for node in &map.nodes {
        let state = format!("{:?}", node.state).to_lowercase();
        table.add_row([
            node.name.clone(),
            node.id.to_string(),
            node.address.to_string(),
            node.weight.to_string(),
            state,
        ]);
    }
    writeln!(
        crate::output::stdout(),
        "{table}\ncluster {}, epoch {}, replicas {} to {}, cleanuprange {} h, storage type {}",
        map.cluster,
        map.epoch,
        map.min_replica,
        map.max_replica,
        map.cleanuprange,
        format!("{:?}", map.storage_type).to_lowercase(),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

async fn rows(cluster: &Cluster, map: &ClusterMap) -> Vec<Row> {
    let clock = Environment::system().clock;
    let before_ms = clock.unix_ms();
    // At once: a node that does not answer is waited for once.
    let statuses = ask_all(cluster, &map.nodes, &Request::Status);
    let reports = ask_all(cluster, &map.nodes, &Request::Report);
    let (statuses, reports) = tokio::join!(statuses, reports);
    // What the answers took is halved between the two ways.
    let asked_ms = before_ms.midpoint(clock.unix_ms());
    let rows = statuses.into_iter().zip(reports).map(|((node, status), (_, report))| Row {
        node,
        status: match status {
            Ok(Response::Status(status)) => Ok(status),
            Ok(_) => Err(NodeError::Unexpected { doing: "asking for the node's status" }),
            Err(error) => Err(error),
        },
        report: match report {
            Ok(Response::Report(report)) => Some(Report {
                clock_offset_ms: report.now_ms.cast_signed().saturating_sub(asked_ms.cast_signed()),
                report,
            }),
            _ => None,
        },
    });
    rows.collect()
}

/// The cluster as a whole, from what its nodes say of themselves.
#[derive(Default)]
struct Totals {
    missing_blobs: u64,
    missing_bytes: u64,
    damaged_blobs: u64,
    surplus_blobs: u64,
    failed_blobs: u64,
    /// Of the node that takes longest.
    remaining_seconds: Option<u64>,
}

impl Totals {
    fn of(rows: &[Row]) -> Self {
        let mut totals = Self::default();
        for Report { report, .. } in rows.iter().filter_map(|row| row.report.as_ref()) {
            let repair = &report.repair;
            totals.missing_blobs = totals.missing_blobs.saturating_add(repair.missing_blobs);
            totals.missing_bytes = totals.missing_bytes.saturating_add(repair.missing_bytes);
            totals.damaged_blobs = totals.damaged_blobs.saturating_add(repair.damaged_blobs);
            totals.surplus_blobs = totals.surplus_blobs.saturating_add(repair.surplus_blobs);
            totals.failed_blobs = totals.failed_blobs.saturating_add(repair.failed_blobs);
            totals.remaining_seconds = totals.remaining_seconds.max(repair.remaining_seconds);
        }
        totals
    }
}

fn as_document(map: &ClusterMap, rows: &[Row]) -> serde_json::Value {
    let nodes: Vec<_> = rows
        .iter()
        .map(|row| {
            let report = row.report.as_ref();
            let (offset, report) = (report.map(|report| report.clock_offset_ms), report.map(|report| &report.report));
            match &row.status {
                Ok(status) => json!({
                    "node": row.node, "reachable": true, "status": status, "report": report, "clock_offset_ms": offset,
                }),
                Err(error) => json!({ "node": row.node, "reachable": false, "error": error.to_string() }),
            }
        })
        .collect();
    let totals = Totals::of(rows);
    json!({
        "cluster": map.cluster, "epoch": map.epoch, "min_replica": map.min_replica, "max_replica": map.max_replica,
        "cleanuprange": map.cleanuprange, "storage_type": map.storage_type,
        "under_replicated_copies": totals.missing_blobs, "under_replicated_bytes": totals.missing_bytes,
        "damaged_copies": totals.damaged_blobs, "surplus_copies": totals.surplus_blobs,
        "failed_copies": totals.failed_blobs, "repair_remaining_seconds": totals.remaining_seconds,
        "nodes": nodes,
    })
}

fn as_table(map: &ClusterMap, rows: &[Row]) -> String {
    let mut table = new_table();
    table.set_header([
        "Node",
        "Address",
        "State",
        "Epoch",
        "Clock",
        "Blobs",
        "Segments",
        "Used",
        "Free",
        "Corrupt reads",
        "Repair",
        "Scrub",
    ]);
    for row in rows {
        table.add_row(cells(row));
    }
    let reachable = rows.iter().filter(|row| row.status.is_ok()).count();
    let mut lines = vec![
        table.to_string(),
        format!(
            "cluster {}, epoch {}, replicas {} to {}, {reachable} of {} nodes answer",
            map.cluster,
            map.epoch,
            map.min_replica,
            map.max_replica,
            map.nodes.len()
        ),
    ];
    lines.extend(remarks(map, rows));
    lines.join("\n")
}

fn cells(row: &Row) -> Vec<String> {
    let state = match &row.status {
        Ok(status) if status.full => "full".to_owned(),
        Ok(_) => format!("{:?}", row.node.state).to_lowercase(),
        Err(error) => error.to_string(),
    };
    let mut cells = vec![row.node.name.clone(), row.node.address.to_string(), state];
    let Ok(status) = &row.status else { return cells };
    let report = row.report.as_ref();
    cells.push(report.map_or_else(|| "-".to_owned(), |report| report.report.epoch.to_string()));
    cells.push(report.map_or_else(|| "-".to_owned(), clock));
    cells.extend([status.blobs, status.segments].map(|count| count.to_string()));
    cells.extend([status.segment_bytes, status.disk_free_bytes].map(megabytes));
    cells.push(status.corrupt_reads.to_string());
    cells.push(report.map_or_else(|| "-".to_owned(), |report| repair(&report.report)));
    cells.push(report.map_or_else(|| "-".to_owned(), |report| scrub(&report.report)));
    cells
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn clock(report: &Report) -> String {
    let offset = format!("{:+.1} s", report.clock_offset_ms as f64 / 1e3);
    if report.report.clock_trusted { offset } else { format!("{offset}, not trusted") }
}

fn repair(report: &NodeReport) -> String {
    let repair = &report.repair;
    match (repair.running, repair.clean) {
        (true, _) => {
            let estimate = repair.remaining_seconds.map(|seconds| format!(", {}", about(seconds))).unwrap_or_default();
            format!("{} of 256 parts{estimate}", repair.partitions_done)
        }
        (false, true) => "clean".to_owned(),
        (false, false) if repair.rounds == 0 => "not yet".to_owned(),
        (false, false) => format!("{} copies missing", repair.missing_blobs),
    }
}

fn scrub(report: &NodeReport) -> String {
    let scrub = &report.scrub;
    let damage = if scrub.damaged_records > 0 { format!(", {} damaged", scrub.damaged_records) } else { String::new() };
    if scrub.running {
        format!("{} of {} segments{damage}", scrub.segments_done, scrub.segments)
    } else if scrub.finished_ms == 0 {
        format!("not yet{damage}")
    } else {
        let ago_seconds = report.now_ms.saturating_sub(scrub.finished_ms) / 1000;
        format!("{} ago{damage}", about(ago_seconds))
    }
}

/// A duration in the unit that suits it.
fn about(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// What an operator should know beyond the table.
fn remarks(map: &ClusterMap, rows: &[Row]) -> Vec<String> {
    let totals = Totals::of(rows);
    let mut remarks = Vec::new();
    let (missing, damaged) = (totals.missing_blobs, totals.damaged_blobs);
    if missing + damaged + totals.surplus_blobs + totals.failed_blobs > 0 {
        let estimate = totals.remaining_seconds.map(|s| format!(", done in about {}", about(s))).unwrap_or_default();
        remarks.push(format!(
            "copies missing {missing} ({}), damaged {damaged}, to be moved {}, failed and to be tried again {}{estimate}",
            megabytes(totals.missing_bytes),
            totals.surplus_blobs,
            totals.failed_blobs
        ));
    }
    if map.cleanuprange > 0 {
        remarks.push(format!("blobs expire after {} h", map.cleanuprange));
    }
    for row in rows {
        let Some(Report { report, .. }) = &row.report else { continue };
        if report.epoch != map.epoch {
            remarks.push(format!("{} goes by the map of epoch {}", row.node.name, report.epoch));
        }
        for id in &report.unreachable {
            let other = map.node(*id).map_or_else(|| id.to_string(), |node| node.name.clone());
            remarks.push(format!("{} does not reach {other}", row.node.name));
        }
        if report.expired_before_ms > 0 {
            let age_seconds = report.now_ms.saturating_sub(report.expired_before_ms) / 1000;
            remarks.push(format!("{}: everything older than {} has expired", row.node.name, about(age_seconds)));
        }
        for disk in &report.disks {
            match &disk.failed {
                Some(reason) => remarks.push(format!("{}: disk {} is out of use: {reason}", row.node.name, disk.path)),
                None if disk.full => remarks.push(format!(
                    "{}: disk {} is full ({} free of {})",
                    row.node.name,
                    disk.path,
                    megabytes(disk.free_bytes),
                    megabytes(disk.total_bytes)
                )),
                None => {}
            }
        }
    }
    remarks
}
