//! `lazaret bench submit`: files submitted at a fixed rate whatever the gateway does (an open loop), each followed to its
//! verdict. Latencies count from the moment at which a file was due, so that a gateway that stalls can't hide it.
//!
//! Without `--url` the gateway is a process of its own with everything embedded. Either way the load generator shares the
//! machine, and what it takes is part of what is measured. Files are like documents: unique, not compressible, a tenth to
//! twice as long as `--size`, which is their mean.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use reqwest::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::load::{Contents, Latencies};
use super::server::Server;
use crate::cli::BenchSubmitOptions;
use crate::scan::client::read_key;

/// Lengths of the files as shares of the mean; their own mean is 1.
const LENGTHS: [f64; 10] = [0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.0];
/// The first pause before a look for a verdict, and by how much each is longer than the last: a verdict is seen at most a quarter later
/// than it came. At a steady pace thousands that wait would cost the gateway more than what they wait for.
const POLL_PAUSE_FIRST: Duration = Duration::from_millis(20);
const POLL_PAUSE_GROWTH: f64 = 1.25;
/// How long verdicts are waited for once nothing more is submitted.
const DRAIN_MAX: Duration = Duration::from_secs(120);

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    rate_per_second: f64,
    mean_bytes: u64,
    seconds: f64,
    due: u64,
    accepted: u64,
    /// Answered 503: the gateway said that it is too busy.
    refused: u64,
    failed: u64,
    judged: u64,
    accepted_per_second: f64,
    judged_per_second: f64,
    bytes_per_second: f64,
    /// How many files got which result code.
    codes: BTreeMap<u64, u64>,
    /// From when a file was due until its id was answered.
    submission: Latencies,
    /// From when a file was due until its verdict was seen.
    verdict: Latencies,
    /// The longest resident memory of the process that was started, in bytes.
    peak_memory_bytes: Option<u64>,
}

/// Runs the command.
pub async fn run(options: BenchSubmitOptions) -> anyhow::Result<ExitCode> {
    let (url, key, own) = match &options.url {
        Some(url) => {
            let path = options.apikey_file.as_ref().context("--url needs --apikey-file")?;
            (url.trim_end_matches('/').to_owned(), read_key(path)?, None)
        }
        None => {
            let own = OwnStation::start(&options)?;
            (own.url.clone(), read_key(&own.dir.path().join("client.key"))?, Some(own))
        }
    };
    let http = crate::scan::client::http(options.ca.as_deref())?;
    let load = Arc::new(Load { http, url, key, contents: Contents::new(), seen: Mutex::default() });
    let began = Instant::now();
    let (due, submitting) = load.run(&options).await;
    let report = load.report(&options, due, submitting, began, own.as_ref());
    let text = if options.json { serde_json::to_string(&report)? } else { table(&report) };
    writeln!(crate::output::stdout(), "{text}")?;
    Ok(if report.failed > 0 || report.judged < report.accepted { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["", "Files", "Per second", "p50 ms", "p99 ms", "p99.9 ms", "max ms"]);
    let rows = [
        ("accepted", report.accepted, report.accepted_per_second, &report.submission),
        ("judged", report.judged, report.judged_per_second, &report.verdict),
    ];
    for (what, count, per_second, latencies) in rows {
        let mut row = vec![what.to_owned(), count.to_string(), format!("{per_second:.0}")];
        let all = [latencies.p50_ms, latencies.p99_ms, latencies.p999_ms, latencies.max_ms];
        row.extend(all.map(|latency| format!("{latency:.1}")));
        table.add_row(row);
    }
    let memory =
        report.peak_memory_bytes.map_or(String::new(), |bytes| format!(", {} MB of memory at most", bytes / 1_000_000));
    format!(
        "{table}\n{:.0}/s were due for {:.0} s, {} bytes on average: {:.1} MB/s accepted, {} refused (503), {} failed{memory}",
        report.rate_per_second,
        report.seconds,
        report.mean_bytes,
        report.bytes_per_second / 1e6,
        report.refused,
        report.failed,
    )
}

/// What was seen so far.
#[derive(Default)]
struct Seen {
    accepted_bytes: u64,
    refused: u64,
    failed: u64,
    submissions: Vec<Duration>,
    verdicts: Vec<Duration>,
    last_verdict: Option<Instant>,
    codes: BTreeMap<u64, u64>,
}

struct Load {
    http: reqwest::Client,
    url: String,
    key: String,
    contents: Contents,
    seen: Mutex<Seen>,
}

/// What became of a submission.
enum Answer {
    Accepted(String),
    Refused,
}

impl Load {
    /// Submits at the rate, waits for what was accepted. Returns how many were due and how long submitting took.
    async fn run(self: &Arc<Self>, options: &BenchSubmitOptions) -> (u64, Duration) {
        let began = Instant::now();
        let duration = Duration::from_secs(options.seconds);
        let places = Arc::new(Semaphore::new(usize::from(options.concurrency)));
        let mut tasks = JoinSet::new();
        let mut number: u64 = 0;
        loop {
            let due = began + Duration::from_secs_f64(number as f64 / options.rate);
            if due.duration_since(began) >= duration {
                break;
            }
            tokio::time::sleep_until(due).await;
            let share = LENGTHS.get((number % LENGTHS.len() as u64) as usize).copied().unwrap_or(1.0);
            let length = ((options.size as f64 * share) as usize).max(1);
            let (load, places) = (Arc::clone(self), Arc::clone(&places));
            tasks.spawn(async move { load.one(due, length, &places).await });
            while tasks.try_join_next().is_some() {}
            number += 1;
        }
        let submitting = began.elapsed();
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
            tracing::warn!("some verdicts did not come within {} s", DRAIN_MAX.as_secs());
        }
        (number, submitting)
    }

    /// One file, from when it is due to its verdict.
    async fn one(&self, due: Instant, length: usize, places: &Semaphore) {
        let outcome = async {
            let data_id = {
                let _place = places.acquire().await?;
                match self.submit(length).await? {
                    Answer::Accepted(data_id) => data_id,
                    Answer::Refused => {
                        self.seen().refused += 1;
                        return Ok(());
                    }
                }
            };
            {
                let mut seen = self.seen();
                seen.submissions.push(due.elapsed());
                seen.accepted_bytes += length as u64;
            }
            let code = self.verdict(&data_id).await?;
            let mut seen = self.seen();
            seen.verdicts.push(due.elapsed());
            seen.last_verdict = Some(Instant::now());
            *seen.codes.entry(code).or_default() += 1;
            anyhow::Ok(())
        };
        if let Err(error) = outcome.await {
            tracing::warn!(error = format!("{error:#}"), "a file failed");
            self.seen().failed += 1;
        }
    }

    async fn submit(&self, length: usize) -> anyhow::Result<Answer> {
        let request = self.http.post(format!("{}/file", self.url)).header("apikey", &self.key);
        let response = request.header("filename", "bench.bin").body(self.contents.next(length)).send().await?;
        let status = response.status();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Ok(Answer::Refused);
        }
        let answer: Value = response.json().await?;
        match answer["data_id"].as_str() {
            Some(data_id) if status.is_success() => Ok(Answer::Accepted(data_id.to_owned())),
            _ => bail!("the gateway answered {status}: {answer}"),
        }
    }

    async fn verdict(&self, data_id: &str) -> anyhow::Result<u64> {
        let mut pause = POLL_PAUSE_FIRST;
        loop {
            tokio::time::sleep(pause).await;
            pause = pause.mul_f64(POLL_PAUSE_GROWTH).min(DRAIN_MAX / 8);
            let request = self.http.get(format!("{}/file/{data_id}", self.url)).header("apikey", &self.key);
            let document: Value = request.send().await?.error_for_status()?.json().await?;
            if document["scan_results"]["progress_percentage"] == 100 {
                return document["scan_results"]["scan_all_result_i"].as_u64().context("the verdict has no code");
            }
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(
        &self,
        options: &BenchSubmitOptions,
        due: u64,
        submitting: Duration,
        began: Instant,
        own: Option<&OwnStation>,
    ) -> Report {
        let seen = std::mem::take(&mut *self.seen());
        let judging = seen.last_verdict.map_or(submitting, |last| last.duration_since(began)).max(submitting);
        let (accepted, judged) = (seen.submissions.len() as u64, seen.verdicts.len() as u64);
        Report {
            rate_per_second: options.rate,
            mean_bytes: options.size,
            seconds: submitting.as_secs_f64(),
            due,
            accepted,
            refused: seen.refused,
            failed: seen.failed,
            judged,
            accepted_per_second: accepted as f64 / submitting.as_secs_f64(),
            judged_per_second: judged as f64 / judging.as_secs_f64(),
            bytes_per_second: seen.accepted_bytes as f64 / submitting.as_secs_f64(),
            codes: seen.codes,
            submission: Latencies::of(seen.submissions),
            verdict: Latencies::of(seen.verdicts),
            peak_memory_bytes: own.and_then(|own| own.process.peak_memory_bytes()),
        }
    }
}

/// `lazaret up` in a process of its own, on a directory of its own, for as long as this lives.
struct OwnStation {
    url: String,
    process: Server,
    /// Last, so that the process has ended when it is removed.
    dir: tempfile::TempDir,
}

impl OwnStation {
    fn start(options: &BenchSubmitOptions) -> anyhow::Result<Self> {
        let below: PathBuf = options.dir.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("lazaret-bench-").tempdir_in(below)?;
        let mut args =
            vec![OsString::from("up"), "--data".into(), dir.path().into(), "--listen".into(), "127.0.0.1:0".into()];
        for (option, value) in [
            ("--nodes", options.max_replica.max(1)),
            ("--min-replica", options.min_replica),
            ("--max-replica", options.max_replica),
        ] {
            args.extend([option.into(), value.to_string().into()]);
        }
        let process = Server::start(args)?;
        let url = process.ready().strip_prefix("gateway=").and_then(|rest| rest.split(' ').next());
        let url = url.context("the cluster names no gateway")?.to_owned();
        Ok(Self { url, process, dir })
    }
}
