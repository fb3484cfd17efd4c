//! `lazaret scan`: submits files to a gateway, waits for their verdicts, prints them.
//!
//! It speaks only the REST API, also to the temporary cluster that it starts when no gateway is named, so that what it shows
//! is what any client would get.

pub mod client;
mod report;

use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cli::{JudgingOptions, ScanOptions, UpOptions};
use crate::components;
use crate::up::EmbeddedCluster;
use client::{GatewayClient, read_key};
use report::{Report, Scanned};

/// Environment variable that may hold the API key.
const APIKEY_VARIABLE: &str = "LAZARET_APIKEY";

/// Scans everything named and returns the exit code that the verdicts ask for.
pub async fn run(options: ScanOptions) -> anyhow::Result<ExitCode> {
    let files = files_below(&options.paths)?;
    let passwords = match &options.password_file {
        Some(path) => read_text(path)?.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect(),
        None => Vec::new(),
    };
    let given_key = match &options.apikey_file {
        Some(path) => Some(read_key(path)?),
        None => std::env::var(APIKEY_VARIABLE).ok(),
    };
    let Some(url) = options.url.clone() else {
        // Declared before the cluster, so that it is removed after the cluster stopped.
        let data =
            tempfile::Builder::new().prefix("lazaret-scan-").tempdir().context("cannot make a temporary directory")?;
        let cluster = EmbeddedCluster::start(&temporary_cluster(data.path(), &options.judging)).await?;
        let client = GatewayClient::new(&cluster.url(), Some(cluster.client_key()?), &options, passwords)?;
        let code = tokio::select! {
            code = scan_all(client, files, &options) => code,
            () = components::terminated() => Err(anyhow!("interrupted before every file was judged")),
        };
        cluster.stop().await;
        return code;
    };
    if options.judging.rules.is_some() || options.judging.engines.is_some() {
        bail!("--rules and --engines are for the embedded cluster; the one at {url} has its own");
    }
    scan_all(GatewayClient::new(&url, given_key, &options, passwords)?, files, &options).await
}

fn temporary_cluster(data: &Path, judging: &JudgingOptions) -> UpOptions {
    UpOptions {
        data: data.to_owned(),
        nodes: Some(1),
        workers: 2,
        min_replica: Some(1),
        max_replica: Some(1),
        metrics: None,
        config: None,
        judging: judging.clone(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

async fn scan_all(client: GatewayClient, files: Vec<PathBuf>, options: &ScanOptions) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let progress = progress_bar(files.len());
    let client = Arc::new(client);
    let slots = Arc::new(Semaphore::new(usize::from(options.concurrency)));
    let mut running = JoinSet::new();
    let mut report = Report::new(options.json);
    let mut waiting = files.into_iter();
    loop {
        // The slot is taken before the task is made, so that a folder of a million files makes no million tasks.
        while let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            let Some(path) = waiting.next() else { break };
            let client = Arc::clone(&client);
            running.spawn(async move {
                let outcome = client.scan(&path).await;
                drop(slot);
                Scanned { path, outcome }
            });
        }
        let Some(scanned) = running.join_next().await else { break };
        progress.inc(1);
        progress.suspend(|| report.add(scanned?))?;
    }
    progress.finish_and_clear();
    report.finish(started.elapsed())
}

/// A bar on a terminal, nothing in a pipe.
fn progress_bar(files: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(files as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} files, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// The regular files among and below `paths`, in order of name. Symbolic links inside folders are not followed.
pub fn files_below(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot scan {}", path.display()))?;
        if metadata.is_file() {
            files.push(path.clone());
        } else if metadata.is_dir() {
            for entry in walkdir::WalkDir::new(path).sort_by_file_name() {
                match entry {
                    Ok(entry) if entry.file_type().is_file() => files.push(entry.into_path()),
                    Ok(_) => {}
                    // Left in, so that it has a row with the reason, and what can be read is judged all the same.
                    Err(error) => match error.path() {
                        Some(unreadable) => files.push(unreadable.to_owned()),
                        None => return Err(error).with_context(|| format!("cannot walk {}", path.display())),
                    },
                }
            }
        } else {
            bail!("cannot scan {}: it is neither a file nor a folder", path.display());
        }
    }
    if files.is_empty() {
        bail!("nothing to scan: no file in what was named");
    }
    Ok(files)
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
