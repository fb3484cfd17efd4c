//! The REST API as `lazaret scan` uses it: submit a file, poll until its result is whole, find what decided it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use indicatif::ProgressBar;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Body, Response, StatusCode};
use serde_json::Value;

use super::attendance::{Attendance, Unattended};
use crate::cli::ScanOptions;

/// Shortest and longest pause between two polls. Small files are done within milliseconds.
const POLL_PAUSE_MIN: Duration = Duration::from_millis(10);
const POLL_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Between these a pause is such a part of the time waited so far: nobody learns of a result much later than it is there.
const POLL_PAUSE_PART: u32 = 32;
/// A gateway that is busy (503) is asked again for so long.
const BUSY_PATIENCE: Duration = Duration::from_secs(120);
/// A gateway that answers no poll for so long is given up.
const SILENCE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a gateway may take to accept a connection, and to answer a poll: neither waits for anything.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const POLL_PATIENCE: Duration = Duration::from_secs(30);
/// Nested results that are followed from a root to what decided it.
const DEPTH_FOLLOWED_MAX: usize = 64;
/// How long a file is waited for before it is asked whether anybody scans at all.
const ATTENDED_UNASKED: Duration = Duration::from_secs(1);

/// An HTTP client that trusts what the system trusts (or the file named in SSL_CERT_FILE), and the authorities in `ca`.
pub fn http(ca: Option<&Path>) -> anyhow::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_PATIENCE);
    if let Some(path) = ca {
        let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let authorities = reqwest::Certificate::from_pem_bundle(&pem)
            .with_context(|| format!("{} holds no certificates that can be read (PEM)", path.display()))?;
        if authorities.is_empty() {
            bail!("{} holds no certificate (PEM)", path.display());
        }
        builder = builder.tls_certs_merge(authorities);
    }
    builder.build().context("cannot set up the HTTP client")
}

/// The API key in a file.
pub fn read_key(path: &Path) -> anyhow::Result<String> {
    let key = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(key.trim().to_owned())
}

/// One file's whole result.
pub struct Verdict {
    /// The gateway's analysis document.
    pub document: Value,
    /// The file's length in bytes.
    pub size_bytes: u64,
    /// The result code.
    pub code: u64,
    /// The result code's text.
    pub text: String,
    /// Whether the policy allows the file.
    pub allowed: bool,
    /// What it is blocked for: path inside, engine and threat, or the reason. Empty if it is allowed.
    pub found: String,
}

/// A gateway and the headers of every submission to it.
pub struct GatewayClient {
    http: reqwest::Client,
    url: String,
    submission: HeaderMap,
    access: HeaderMap,
    attendance: Attendance,
}

impl GatewayClient {
    /// A client of the gateway at `url`.
    pub fn new(
        url: &str,
        apikey: Option<String>,
        options: &ScanOptions,
        passwords: Vec<String>,
    ) -> anyhow::Result<Self> {
        let mut access = HeaderMap::new();
        if let Some(key) = apikey {
            let mut value = HeaderValue::from_str(&key)
                .map_err(|_| anyhow!("the API key has characters that no header may have"))?;
            value.set_sensitive(true);
            access.insert("apikey", value);
        }
        let mut submission = access.clone();
        if let Some(rule) = &options.rule {
            submission.insert("rule", encoded(rule)?);
        }
        for (number, password) in (1..).zip(&passwords) {
            let mut value = encoded(password)?;
            value.set_sensitive(true);
            submission.insert(HeaderName::from_bytes(format!("archivepwd{number}").as_bytes())?, value);
        }
        let http = http(options.ca.as_deref())?;
        let url = url.trim_end_matches('/').to_owned();
        let attendance = Attendance::new(Duration::from_secs(options.wait));
        Ok(Self { http, url, submission, access, attendance })
    }

    /// Has what is to be said while results are waited for written above this bar.
    pub fn show_progress(&mut self, progress: &ProgressBar) {
        self.attendance.show_progress(progress);
    }

    /// Submits the file and waits for its result.
    pub async fn scan(&self, path: &Path) -> anyhow::Result<Verdict> {
        let (data_id, size_bytes) = self.submit(path).await?;
        let document = self.wait(&data_id).await?;
        let results = &document["scan_results"];
        let allowed = document["process_info"]["result"] == "Allowed";
        let found = if allowed { String::new() } else { self.what_decided(&document).await? };
        Ok(Verdict {
            size_bytes,
            code: results["scan_all_result_i"].as_u64().context("the gateway's answer has no scan_all_result_i")?,
            text: text_of(&results["scan_all_result_a"]),
            allowed,
            found,
            document,
        })
    }

    async fn submit(&self, path: &Path) -> anyhow::Result<(String, u64)> {
        if self.attendance.given_up() {
            bail!("not submitted, since nobody scans");
        }
        let deadline = Instant::now() + BUSY_PATIENCE;
        loop {
            let file = tokio::fs::File::open(path).await.with_context(|| format!("cannot open {}", path.display()))?;
            let metadata = file.metadata().await?;
            if !metadata.is_file() {
                bail!("cannot read {}: it is a folder or a device", path.display());
            }
            let size_bytes = metadata.len();
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            let response = self
                .http
                .post(format!("{}/file", self.url))
                .headers(self.submission.clone())
                .header("filename", encoded(&name)?)
                .header(CONTENT_LENGTH, size_bytes)
                .body(Body::wrap_stream(tokio_util::io::ReaderStream::with_capacity(file, 256 * 1024)))
                .send()
                .await
                .map_err(|error| self.unreachable(&error))?;
            if response.status() == StatusCode::SERVICE_UNAVAILABLE
                && Instant::now() < deadline
                && let Some(pause) = retry_after(&response)
            {
                tokio::time::sleep(pause).await;
                // A queue that nobody works on stays full.
                self.attended().await?;
                continue;
            }
            let answer = answer_of(response).await?;
            let data_id = answer["data_id"].as_str().context("the gateway's answer has no data_id")?;
            return Ok((data_id.to_owned(), size_bytes));
        }
    }

    async fn wait(&self, data_id: &str) -> anyhow::Result<Value> {
        let began = Instant::now();
        let mut answered = began;
        loop {
            tokio::time::sleep((began.elapsed() / POLL_PAUSE_PART).clamp(POLL_PAUSE_MIN, POLL_PAUSE_MAX)).await;
            match self.fetch(data_id).await {
                Ok(document) => {
                    answered = Instant::now();
                    if document["scan_results"]["progress_percentage"] == 100 {
                        return Ok(document);
                    }
                    if document["scan_results"].is_null() {
                        bail!("the gateway no longer knows the submission {data_id}");
                    }
                    if began.elapsed() >= ATTENDED_UNASKED {
                        self.attended().await.with_context(|| format!("no result for {data_id}"))?;
                    }
                }
                Err(error) if answered.elapsed() > SILENCE_PATIENCE => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Whether anybody scans.
    async fn attended(&self) -> Result<(), Unattended> {
        let ask = async {
            let url = format!("{}/readyz?verbose=true", self.url);
            let request = self.http.get(url).headers(self.access.clone()).timeout(POLL_PATIENCE);
            // It answers 503 and says why.
            Ok(request.send().await?.json().await?)
        };
        self.attendance.check(&self.url, ask).await
    }

    /// The document of a file with a page of those directly in it.
    pub async fn page(&self, data_id: &str, first: u64, size: u64) -> anyhow::Result<Value> {
        let url = format!("{}/file/{data_id}?first={first}&size={size}", self.url);
        let request = self.http.get(url).headers(self.access.clone()).timeout(POLL_PATIENCE);
        answer_of(request.send().await.map_err(|error| self.unreachable(&error))?).await
    }

    async fn fetch(&self, data_id: &str) -> anyhow::Result<Value> {
        let request = self.http.get(format!("{}/file/{data_id}?size=1", self.url)).headers(self.access.clone());
        let request = request.timeout(POLL_PATIENCE);
        answer_of(request.send().await.map_err(|error| self.unreachable(&error))?).await
    }

    /// Follows the worst nested results down to the file that an engine or a limit spoke about.
    async fn what_decided(&self, root: &Value) -> anyhow::Result<String> {
        let code = &root["scan_results"]["scan_all_result_i"];
        let mut path = Vec::new();
        let mut document = root.clone();
        for _ in 0..DEPTH_FOLLOWED_MAX {
            let worst = text_of(&document["extracted_files"]["worst_data_id"]);
            if worst.is_empty() {
                break;
            }
            let nested = self.fetch(&worst).await?;
            if nested["scan_results"]["scan_all_result_i"] != *code {
                break;
            }
            path.push(text_of(&nested["file_info"]["display_name"]));
            document = nested;
        }
        let found =
            engine_finding(&document, code).unwrap_or_else(|| text_of(&document["process_info"]["blocked_reason"]));
        Ok(if path.is_empty() { found } else { format!("{} ({found})", path.join("/")) })
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            reason = cause.to_string();
            source = cause.source();
        }
        anyhow!("the gateway at {} did not answer: {reason}", self.url)
    }
}

/// The engine whose verdict is the file's, and the threat it named.
fn engine_finding(document: &Value, code: &Value) -> Option<String> {
    let engines = document["scan_results"]["scan_details"].as_object()?;
    engines
        .iter()
        .find(|(_, result)| result["scan_result_i"] == *code && !text_of(&result["threat_found"]).is_empty())
        .map(|(engine, result)| format!("{engine}: {}", text_of(&result["threat_found"])))
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn encoded(text: &str) -> anyhow::Result<HeaderValue> {
    Ok(HeaderValue::from_str(&utf8_percent_encode(text, NON_ALPHANUMERIC).to_string())?)
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The JSON of a good answer; of any other, the reason it gives.
async fn answer_of(response: Response) -> anyhow::Result<Value> {
    let status = response.status();
    let body = response.bytes().await.context("the gateway broke off its answer")?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() && answer.is_object() {
        return Ok(answer);
    }
    match answer["err"].as_str() {
        Some(reason) => bail!("{reason} ({})", status.as_u16()),
        None => bail!("the gateway answered {status} with something else than JSON: is it a Lazaret gateway?"),
    }
}
