//! What is done with a storage node's disks while it does not run: `--rebuild-index` and `--fsck`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use comfy_table::Table;
use lazaret_node_client::Environment;
use lazaret_protocol::limits::MIB;
use lazaret_storage_node::engine::EngineOptions;
use lazaret_storage_node::fsck::{self, FsckReport, Listed};
use lazaret_storage_node::store;

use crate::config::StorageNodeConfig;

/// Names and places shown of each kind; `--json` lists more.
const SHOWN_MAX: usize = 20;

/// Rebuilds the index of every disk from its segments.
pub async fn rebuild_index(disks: Vec<(PathBuf, bool)>, options: EngineOptions) -> anyhow::Result<ExitCode> {
    for (disk, _) in disks {
        let (path, options) = (disk.clone(), options.clone());
        let rebuild = move || store::rebuild_index(&path, Environment::system(), options);
        let rebuilt = tokio::task::spawn_blocking(rebuild).await??;
        let (bytes, seconds) = (rebuilt.bytes_read, rebuilt.took.as_secs_f64());
        writeln!(
            crate::output::stdout(),
            "{}: {} blobs, {bytes} bytes of segments read in {seconds:.1} s ({:.0} MB/s), {} damaged records",
            disk.display(),
            rebuilt.blobs,
            bytes as f64 / 1e6 / seconds.max(0.001),
            rebuilt.damaged_records,
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks every disk and changes nothing.
pub async fn fsck(config: StorageNodeConfig, json: bool) -> anyhow::Result<ExitCode> {
    let mut reports = Vec::new();
    for (disk, _) in config.disks() {
        let report = tokio::task::spawn_blocking(move || fsck::fsck(&disk)).await??;
        if report.node != config.node.to_string() {
            bail!("{} belongs to node {}, not to {}", report.path, report.node, config.node);
        }
        reports.push(report);
    }
    let mut out = crate::output::stdout();
    if json {
        serde_json::to_writer_pretty(&mut out, &reports).context("cannot write the report")?;
        writeln!(out)?;
    } else {
        reports.iter().try_for_each(|report| show(&mut out, report))?;
    }
    Ok(ExitCode::from(u8::from(!reports.iter().all(FsckReport::is_clean))))
}

fn show(out: &mut impl Write, report: &FsckReport) -> anyhow::Result<()> {
    let path = Path::new(&report.path).display();
    writeln!(out, "{path}: {}", if report.is_clean() { "sound" } else { "DAMAGED" })?;
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let mut row = |what: &str, count: u64, bytes: Option<u64>| {
        let bytes = bytes.map(|bytes| format!("{:.1} MiB", bytes as f64 / MIB as f64));
        table.add_row([what.to_owned(), count.to_string(), bytes.unwrap_or_default()]);
    };
    row("segments", report.segments, Some(report.segment_bytes));
    for (kind, count) in &report.records {
        row(&format!("{kind} records"), count.records, Some(count.bytes));
    }
    row("of these not yet proven durable", report.tail.records, Some(report.tail.bytes));
    row("of these given up", report.given_up.records, Some(report.given_up.bytes));
    row("index entries", report.entries, None);
    row("blobs", report.blobs, Some(report.blob_bytes));
    row("damaged places", report.damaged.count, None);
    row("blobs known to be damaged", report.known_damaged.count, None);
    row("index entries without a record", report.without_record.count, None);
    row("records without an index entry", report.without_entry.count, None);
    row("missing segments", report.missing_segments.count, None);
    row("foreign files", report.foreign_files.len() as u64, None);
    writeln!(out, "{table}")?;
    if let Some(damage) = &report.index_damage {
        writeln!(out, "index: {damage}")?;
    }
    list(out, "damaged", &report.damaged, |place| {
        format!("{} {}-{}: {} {}", place.segment, place.offset, place.end, place.what, place.names.join(" "))
    })?;
    list(out, "known to be damaged", &report.known_damaged, Clone::clone)?;
    let place = |place: &fsck::Place| format!("{} at {} {}", place.name, place.segment, place.offset);
    list(out, "without a record", &report.without_record, place)?;
    list(out, "without an index entry", &report.without_entry, place)?;
    list(out, "missing segment", &report.missing_segments, Clone::clone)?;
    report.foreign_files.iter().take(SHOWN_MAX).try_for_each(|file| writeln!(out, "foreign file: {file}"))?;
    Ok(())
}

fn list<T>(out: &mut impl Write, what: &str, found: &Listed<T>, line: impl Fn(&T) -> String) -> anyhow::Result<()> {
    for item in found.first.iter().take(SHOWN_MAX) {
        writeln!(out, "{what}: {}", line(item))?;
    }
    if let Some(more) = found.count.checked_sub(SHOWN_MAX as u64).filter(|more| *more > 0) {
        writeln!(out, "{what}: {more} more")?;
    }
    Ok(())
}
