//! `lazaret bench archive`: archives submitted to an embedded cluster over its REST API, until every result is readable; once
//! with nothing known, and on request once more with every verdict kept from before.
//!
//! Upload, digests, storage, scan and the polling of results are all in the time, as a client sees it. Load generator and
//! station share the machine. Stages are summed over all files and threads, so that together they may exceed the time.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cli::{BenchArchiveOptions, ScanOptions, UpOptions};
use crate::scan::client::{GatewayClient, read_key};
use crate::scan::files_below;
use crate::up::EmbeddedCluster;

/// Lengths of generated members: as in an archive of source code.
const MEMBER_BYTES: std::ops::Range<u64> = 200..12_000;
/// What a tar adds to each: a header, and half a block of padding on average.
const TAR_BYTES: u64 = 768;
/// Nested files read at once when stages are summed up.
const PAGE: u64 = 1_000;

/// Where the time of a pass went, over all files and nested files, in milliseconds.
#[derive(Debug, Default, Serialize)]
struct Stages {
    upload: u64,
    queue: u64,
    hash: u64,
    filetype: u64,
    engines: u64,
    extraction: u64,
}

/// All files once.
#[derive(Debug, Serialize)]
struct Pass {
    verdicts: &'static str,
    seconds: f64,
    files_per_second: f64,
    members_per_second: f64,
    mb_per_second: f64,
    /// From the moment a worker took a submission to its result, summed over submissions.
    worker_ms: u64,
    blocked: usize,
    stages_ms: Stages,
}

#[derive(Debug, Serialize)]
struct Report {
    files: usize,
    bytes: u64,
    members: u64,
    scan_threads: u16,
    concurrency: u16,
    passes: Vec<Pass>,
}

/// Runs the command.
pub async fn run(options: BenchArchiveOptions) -> anyhow::Result<ExitCode> {
    let folder =
        tempfile::Builder::new().prefix("lazaret-bench-").tempdir().context("cannot make a temporary directory")?;
    let generated = options.paths.is_empty() || options.paths == [Path::new("embedded")];
    if !generated && options.seconds.is_some() {
        bail!(
            "--seconds is for generated archives: of files that were given all verdicts are known after the first time"
        );
    }
    let source = if generated {
        Source::Generated(folder.path().to_owned())
    } else {
        Source::Given(files_below(&options.paths)?)
    };
    if let Some(url) = &options.url {
        let path = options.apikey_file.as_deref().context("--url needs --apikey-file")?;
        return tell(&options, &measure(url, read_key(path)?, &options, &source).await?);
    }
    let cluster = EmbeddedCluster::start(&UpOptions {
        data: folder.path().join("station"),
        nodes: Some(options.nodes),
        workers: options.workers,
        min_replica: Some(1),
        max_replica: Some(1),
        metrics: None,
        config: None,
        judging: options.judging.clone(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    })
    .await?;
    let report = match cluster.client_key() {
        Ok(key) => measure(&cluster.url(), key, &options, &source).await,
        Err(error) => Err(error),
    };
    cluster.stop().await;
    tell(&options, &report?)
}

fn tell(options: &BenchArchiveOptions, report: &Report) -> anyhow::Result<ExitCode> {
    let text = if options.json { serde_json::to_string(report)? } else { table(report) };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// What is submitted.
enum Source {
    Given(Vec<PathBuf>),
    /// Made below this folder, others for each pass with nothing known.
    Generated(PathBuf),
}

impl Source {
    /// The files of the pass of this number.
    async fn files(&self, options: &BenchArchiveOptions, number: u64) -> anyhow::Result<Vec<PathBuf>> {
        match self {
            Self::Given(files) => Ok(files.clone()),
            Self::Generated(folder) => {
                let length = MEMBER_BYTES.start.midpoint(MEMBER_BYTES.end) + TAR_BYTES;
                let members = options.size.map_or(u64::from(options.members), |size| (size / length).max(1));
                let (folder, archives) = (folder.clone(), options.archives);
                tokio::task::spawn_blocking(move || generate(&folder, archives, members, number)).await?
            }
        }
    }
}

async fn measure(url: &str, key: String, options: &BenchArchiveOptions, source: &Source) -> anyhow::Result<Report> {
    let submission = ScanOptions {
        paths: Vec::new(),
        url: None,
        apikey_file: None,
        rule: None,
        password_file: None,
        json: false,
        concurrency: options.concurrency,
        judging: options.judging.clone(),
    };
    let client = Arc::new(GatewayClient::new(url, Some(key), &submission, Vec::new())?);
    let mut passes = Vec::new();
    let end = Instant::now() + std::time::Duration::from_secs(options.seconds.unwrap_or_default());
    let (mut number_of_pass, mut verdicts, mut files) = (0, "cold", source.files(options, 0).await?);
    let (bytes, members) = loop {
        let bytes = files.iter().map(|path| Ok(std::fs::metadata(path)?.len())).sum::<std::io::Result<u64>>()?;
        let began = Instant::now();
        let documents = submit_all(&client, &files, options.concurrency).await?;
        let seconds = began.elapsed().as_secs_f64();
        let mut stages = Stages::default();
        let (mut worker_ms, mut blocked) = (0, 0);
        let mut members = 0;
        for document in &documents {
            worker_ms += number(&document["process_info"]["processing_time"]);
            blocked += usize::from(document["process_info"]["result"] != "Allowed");
            stages.upload += number(&document["file_info"]["upload_time"]);
            stages.queue += number(&document["process_info"]["queue_time"]);
            members += sum_up(&client, document, &mut stages).await?;
        }
        passes.push(Pass {
            verdicts,
            seconds,
            files_per_second: files.len() as f64 / seconds,
            members_per_second: members as f64 / seconds,
            mb_per_second: bytes as f64 / 1e6 / seconds,
            worker_ms,
            blocked,
            stages_ms: stages,
        });
        if verdicts == "cold" && options.warm {
            verdicts = "warm";
        } else if Instant::now() < end {
            number_of_pass += 1;
            (verdicts, files) = ("cold", source.files(options, number_of_pass).await?);
        } else {
            break (bytes, members);
        }
    };
    Ok(Report {
        files: files.len(),
        bytes,
        members,
        scan_threads: options.workers,
        concurrency: options.concurrency,
        passes,
    })
}

async fn submit_all(client: &Arc<GatewayClient>, files: &[PathBuf], concurrency: u16) -> anyhow::Result<Vec<Value>> {
    let slots = Arc::new(Semaphore::new(usize::from(concurrency)));
    let mut running = JoinSet::new();
    for path in files {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let (client, path) = (Arc::clone(client), path.clone());
        running.spawn(async move {
            let scanned = client.scan(&path).await;
            drop(slot);
            scanned.with_context(|| path.display().to_string())
        });
    }
    let mut documents = Vec::with_capacity(files.len());
    while let Some(scanned) = running.join_next().await {
        documents.push(scanned??.document);
    }
    Ok(documents)
}

/// Adds the times of a file and of all nested in it; returns how many these are.
async fn sum_up(client: &GatewayClient, document: &Value, stages: &mut Stages) -> anyhow::Result<u64> {
    let add = |info: &Value, stages: &mut Stages| {
        let details = &info["processing_time_details"];
        stages.hash += number(&info["hash_time"]);
        stages.filetype += number(&details["filetype_time"]);
        stages.engines += number(&details["av_scan_time"]);
        stages.extraction += number(&details["extraction_time"]);
    };
    add(&document["process_info"], stages);
    let (mut members, mut containers) = (0, vec![document["data_id"].as_str().unwrap_or_default().to_owned()]);
    while let Some(container) = containers.pop() {
        let mut first = 0;
        loop {
            let page = client.page(&container, first, PAGE).await?;
            let files = page["extracted_files"]["files_in_archive"].as_array().cloned().unwrap_or_default();
            for file in &files {
                add(&file["process_info"], stages);
                if number(&file["process_info"]["processing_time_details"]["extraction_time"]) > 0
                    || file["file_type"].as_str().is_some_and(is_archive)
                {
                    containers.push(file["data_id"].as_str().unwrap_or_default().to_owned());
                }
            }
            members += files.len() as u64;
            first += PAGE;
            if (files.len() as u64) < PAGE {
                break;
            }
        }
    }
    Ok(members)
}

/// Types whose members are looked for even if taking them apart took no measurable time.
fn is_archive(mime: &str) -> bool {
    ["zip", "tar", "gzip", "xz", "zstd", "bzip2", "7z", "rar"].iter().any(|part| mime.contains(part))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Archives whose members are unique and compress as texts do, and differ for each seed.
fn generate(folder: &Path, archives: u16, members: u64, seed: u64) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ seed.wrapping_mul(0xd6e8_feb8_6659_fd93);
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for archive in 0..archives {
        let path = folder.join(format!("archive-{archive}.tar"));
        let file = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut builder = tar::Builder::new(std::io::BufWriter::new(file));
        for member in 0..members {
            let length = MEMBER_BYTES.start + next() % (MEMBER_BYTES.end - MEMBER_BYTES.start);
            let mut content = String::new();
            while (content.len() as u64) < length {
                content.push_str(&format!("let value_{} = {};\n", next() % 1_000, next()));
            }
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, format!("source/file-{member}.rs"), content.as_bytes())?;
        }
        builder.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        paths.push(path);
    }
    if paths.is_empty() {
        bail!("no archive was to be made");
    }
    Ok(paths)
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["Verdicts", "Seconds", "Files/s", "Members/s", "MB/s", "Worker ms", "Stages, ms"]);
    for pass in &report.passes {
        let stages = &pass.stages_ms;
        table.add_row([
            pass.verdicts.to_owned(),
            format!("{:.2}", pass.seconds),
            format!("{:.1}", pass.files_per_second),
            format!("{:.0}", pass.members_per_second),
            format!("{:.1}", pass.mb_per_second),
            pass.worker_ms.to_string(),
            format!(
                "upload {}, queue {}, hash {}, type {}, engines {}, extraction {}",
                stages.upload, stages.queue, stages.hash, stages.filetype, stages.engines, stages.extraction
            ),
        ]);
    }
    format!(
        "{table}\n{} files, {:.1} MB, {} members, {} scan threads, {} submissions at once",
        report.files,
        report.bytes as f64 / 1e6,
        report.members,
        report.scan_threads,
        report.concurrency
    )
}
