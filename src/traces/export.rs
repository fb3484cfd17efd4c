//! The queue of finished spans, and the thread that sends them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::{Client, StatusCode, Url, header, redirect};
use tokio::runtime::Runtime;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{Layer, layer::Filter};

use super::TARGET;
use super::message::{self, Resource};
use super::span::{Span, Spans, Value};
use crate::config::OtlpConfig;

/// Most spans of one request: some hundred kilobytes.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others before it is sent.
const BATCH_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a request may take.
const SEND_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the first pause is after a failure; pauses double up to the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often the same spans are sent before they are given up.
const TRIES_MAX: u32 = 5;
/// How often is told that spans are lost.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// How long the end of a process waits for its last spans.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

static SENT: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// Whether the process ends: nothing is tried again any more.
static ENDING: AtomicBool = AtomicBool::new(false);
/// The thread that sends, to be emptied before the process ends.
static SENDER: Mutex<Option<(SyncSender<Message>, Thread)>> = Mutex::new(None);

/// Spans that a collector took.
pub fn sent() -> u64 {
    SENT.load(Ordering::Relaxed)
}

/// Spans that were lost: too many at once, or no collector that took them.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// What waits to be sent.
pub enum Message {
    /// A finished span.
    Span(Box<Span>),
    /// Somebody waits until everything before this is sent or given up.
    Flush(SyncSender<()>),
}

/// Takes finished spans.
#[derive(Clone)]
pub struct Queue(SyncSender<Message>);

impl Queue {
    /// Takes a span, or drops it if too many wait.
    pub fn push(&self, span: Span) {
        if self.0.try_send(Message::Span(Box::new(span))).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Starts to send what `service` does, if a collector is named.
pub fn start(config: &OtlpConfig, service: &str) -> anyhow::Result<Option<Box<dyn Layer<Registry> + Send + Sync>>> {
    let Some(url) = config.traces_url()? else { return Ok(None) };
    let (queue, waiting) = sync_channel(config.queue_spans);
    let text = |text: &str| Value::Text(text.to_owned());
    let resource = vec![
        ("service.name", text(service)),
        ("service.version", text(env!("CARGO_PKG_VERSION"))),
        ("process.pid", Value::Integer(std::process::id().into())),
    ];
    let client = Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(SEND_TIME_MAX)
        .build()
        .context("cannot make a client for traces")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime for traces")?;
    let sending = Sending { url, client, runtime, resource, waiting, pause: Duration::ZERO, complained: None, told: 0 };
    let thread = std::thread::Builder::new()
        .name("otlp".to_owned())
        .spawn(move || sending.run())
        .context("cannot start a thread for traces")?;
    *SENDER.lock().unwrap_or_else(PoisonError::into_inner) = Some((queue.clone(), thread.thread().clone()));
    let spans = Spans { queue: Queue(queue), sampled_below: share_of_all(config.sampled_share) };
    Ok(Some(spans.with_filter(only_ours()).boxed()))
}

fn only_ours() -> impl Filter<Registry> {
    Targets::new().with_target(TARGET, LevelFilter::TRACE)
}

/// The first of all ids, read as numbers, that is not in this share of them.
fn share_of_all(share: f64) -> u128 {
    // A conversion that is too large is the largest number.
    (share * u128::MAX as f64) as u128
}

/// Waits until what ended so far is sent or given up, within bounds.
pub fn flush() {
    let Some((queue, thread)) = SENDER.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let deadline = Instant::now() + FLUSH_TIME_MAX;
    ENDING.store(true, Ordering::Relaxed);
    thread.unpark();
    let (done, waiting) = sync_channel(1);
    while let Err(TrySendError::Full(_)) = queue.try_send(Message::Flush(done.clone())) {
        if Instant::now() >= deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = waiting.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

/// What becomes of a request.
enum Failure {
    /// Later it may be taken.
    ForNow(anyhow::Error),
    /// It never will.
    ForGood(anyhow::Error),
}

struct Sending {
    url: Url,
    client: Client,
    runtime: Runtime,
    resource: Resource,
    waiting: Receiver<Message>,
    /// How long the collector is left alone after the next failure; nothing while it answers.
    pause: Duration,
    complained: Option<Instant>,
    /// Losses that were told of.
    told: u64,
}

impl Sending {
    fn run(mut self) {
        let mut batch: Vec<Span> = Vec::new();
        let mut due = Instant::now();
        loop {
            let message = match batch.is_empty() {
                true => self.waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => self.waiting.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match message {
                Ok(Message::Span(span)) => {
                    if batch.is_empty() {
                        due = Instant::now() + BATCH_TIME_MAX;
                    }
                    batch.push(*span);
                    if batch.len() >= BATCH_SPANS_MAX {
                        self.send(&mut batch);
                    }
                }
                Ok(Message::Flush(done)) => {
                    self.send(&mut batch);
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => self.send(&mut batch),
                Err(RecvTimeoutError::Disconnected) => {
                    self.send(&mut batch);
                    return;
                }
            }
        }
    }

    /// Sends a batch, again and again while that may help, and empties it.
    fn send(&mut self, batch: &mut Vec<Span>) {
        let spans = batch.len() as u64;
        if spans == 0 {
            return;
        }
        let mut tries = 0;
        let outcome = loop {
            tries += 1;
            match self.runtime.block_on(self.post(batch)) {
                Err(Failure::ForNow(error)) => {
                    self.complain(&error);
                    if tries >= TRIES_MAX || ENDING.load(Ordering::Relaxed) {
                        break Err(error);
                    }
                    // Whatever ends the pause early: trying sooner does no harm.
                    self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                    std::thread::park_timeout(self.pause);
                }
                Err(Failure::ForGood(error)) => break Err(error),
                Ok(()) => break Ok(()),
            }
        };
        batch.clear();
        match outcome {
            Ok(()) => {
                self.pause = Duration::ZERO;
                SENT.fetch_add(spans, Ordering::Relaxed);
            }
            Err(error) => {
                DROPPED.fetch_add(spans, Ordering::Relaxed);
                self.complain(&error);
            }
        }
    }

    async fn post(&self, batch: &[Span]) -> Result<(), Failure> {
        let body = message::request(&self.resource, batch).map_err(|error| Failure::ForGood(error.into()))?;
        let request = self.client.post(self.url.clone()).header(header::CONTENT_TYPE, "application/x-protobuf");
        let response = request.body(body).send().await.map_err(|error| Failure::ForNow(error.without_url().into()))?;
        match response.status() {
            status if status.is_success() => Ok(()),
            // Those that the protocol says to try again.
            status @ (StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => Err(Failure::ForNow(refused(status))),
            status => Err(Failure::ForGood(refused(status))),
        }
    }

    fn complain(&mut self, error: &anyhow::Error) {
        if self.complained.is_some_and(|at| at.elapsed() < COMPLAINT_INTERVAL) {
            return;
        }
        self.complained = Some(Instant::now());
        let dropped = dropped();
        let lost = dropped - std::mem::replace(&mut self.told, dropped);
        tracing::warn!(collector = %self.url, error = format!("{error:#}"), lost, "traces are not taken by their collector");
    }
}

fn refused(status: StatusCode) -> anyhow::Error {
    anyhow::anyhow!("it answered {status}")
}

#[cfg(test)]
pub mod testing {
    use super::*;

    /// A queue, and its other end.
    pub fn queue(length: usize) -> (Queue, Receiver<Message>) {
        let (queue, waiting) = sync_channel(length);
        (Queue(queue), waiting)
    }

    /// The span of a message.
    pub fn span(message: Message) -> Option<Span> {
        match message {
            Message::Span(span) => Some(*span),
            Message::Flush(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_them_are_all_and_none_is_none() {
        assert_eq!(share_of_all(1.0), u128::MAX);
        assert_eq!(share_of_all(0.0), 0);
        assert_eq!(share_of_all(0.5), 1 << 127);
    }
}
