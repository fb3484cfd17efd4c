//! Engines of the site's own: programs that speak a small protocol on their standard input and output, or servers that
//! speak it on a Unix socket.
//!
//! # The protocol
//!
//! Everything but the file itself is one line of JSON, ended by a newline. The engine speaks first:
//!
//! ```json
//! {"version": "1.0", "database_version": "2026-11-22", "database_time_ms": 1795305600000}
//! ```
//!
//! of which only `version` is required. Then, again and again, it is sent a line about a file, followed by exactly `size` bytes,
//! the file:
//!
//! ```json
//! {"id": 1, "name": "report.doc", "size": 1234, "file_type": "application/msword", "md5": "", "sha1": "", "sha256": ""}
//! ```
//!
//! and answers, when it has read them all:
//!
//! ```json
//! {"id": 1, "result": "infected", "threat": "Some.Name"}
//! ```
//!
//! `result` is `clean`, `infected`, `suspicious`, `unwanted`, `not_scanned` (the file is not one that it judges) or `failed`;
//! `threat` names what was found, or says why not, and may be missing. Digests are empty unless `digests` is on. One
//! connection has one file at a time. When its input ends, the engine should end.
//!
//! An answer may tell `database_version` and `database_time_ms` too, by an engine that has loaded a newer database since.
//!
//! # What is made sure
//!
//! A verdict is kept under the version of the process or connection that gave it, or not at all. Servers are connected to anew
//! every few seconds, since only a connection's first line tells what they search with; a program that ends between two files is
//! started anew as soon.
//!
//! A crash, a hang, an answer that is none: the file is Scan Failed (25), the process is killed with all that it started,
//! and another is started for the next file, at once at first and then after ever longer pauses. No more than `processes`
//! files are with the engine at once.

use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use lazaret_analysis::{EngineVersion, ResultCode};
use serde::{Deserialize, Serialize};

use super::connection::{Connection, Pool, Slot, is_gone};
use crate::engine::{Engine, EngineInfo, EngineVerdict, ScanContext, Subject, base_name, version_of};
use crate::source::SourceError;

/// How long an engine may take until it says what it is: long enough to load a large database.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often an engine is asked what it is: the longest that a connection to a server is used.
const HELLO_INTERVAL: Duration = Duration::from_secs(5);
/// The longest line of an engine.
const LINE_BYTES_MAX: usize = 64 << 10;
/// The longest name of a threat that is kept.
const THREAT_CHARS_MAX: usize = 256;
/// The first pause after a second failure in a row; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A file waits so long for the end of a pause; behind a longer one it fails at once.
const BACKOFF_WAIT_MAX: Duration = Duration::from_secs(1);
/// The longest that a file waits for a process. One comes free at least every `timeout`.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// How much is read at once of a file that is not in memory.
const CHUNK_BYTES: u64 = 1 << 20;

/// How an engine is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExternalAddress {
    /// A program and its arguments. It has an empty environment but for `PATH`.
    Command(Vec<String>),
    /// A Unix socket on which a server listens.
    Socket(PathBuf),
}

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct ExternalOptions {
    /// What it is called, for clients and rules.
    pub name: String,
    /// How it is reached.
    pub address: ExternalAddress,
    /// How long a file may take.
    pub timeout: Duration,
    /// Processes, or connections to the server, at once.
    pub processes: usize,
    /// Longer files are not shown to it.
    pub max_file_bytes: u64,
    /// Whether it needs files' digests.
    pub digests: bool,
}

/// An engine of the site's own.
pub struct ExternalEngine {
    shared: Arc<Shared>,
}

struct Shared {
    options: ExternalOptions,
    conversations: Pool<Conversation>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What was said last, by whichever process.
    hello: Hello,
    trouble: Option<String>,
    failures_in_a_row: u32,
    /// No process is started before.
    resume: Option<Instant>,
}

/// What an engine says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Hello {
    version: String,
    #[serde(default)]
    database_version: String,
    #[serde(default)]
    database_time_ms: u64,
}

/// What an engine is told of a file.
#[derive(Serialize)]
struct Request<'f> {
    id: u64,
    name: &'f str,
    size: u64,
    file_type: &'f str,
    md5: &'f str,
    sha1: &'f str,
    sha256: &'f str,
}

/// What it answers.
#[derive(Deserialize)]
struct Response {
    id: u64,
    result: Outcome,
    #[serde(default)]
    threat: String,
    /// Told by an engine that loads its database anew while it runs.
    #[serde(default)]
    database_version: Option<String>,
    #[serde(default)]
    database_time_ms: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Clean,
    Infected,
    Suspicious,
    Unwanted,
    NotScanned,
    Failed,
}

/// One process, or one connection to a server.
struct Conversation {
    connection: Connection,
    /// Ends with the conversation.
    _process: Option<Process>,
    files: u64,
    /// What it said of itself.
    hello: Hello,
    began: Instant,
}

/// A program that was started. It goes with all that it started.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            // It may be gone already; its number is its own until it is waited for.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

impl ExternalEngine {
    /// Starts a first process, which shows that the command is right. A server that does not answer is no error here.
    pub fn start(options: ExternalOptions) -> io::Result<Self> {
        let conversations = Pool::new(options.processes);
        let shared = Arc::new(Shared { conversations, state: Mutex::default(), options });
        let first = shared.begin(Instant::now() + START_TIMEOUT);
        match (first, &shared.options.address) {
            (Ok(conversation), _) => {
                if let Some(slot) = shared.conversations.slot(Duration::ZERO) {
                    slot.keep(conversation);
                }
            }
            (Err(error), ExternalAddress::Command(_)) => return Err(error),
            (Err(error), ExternalAddress::Socket(_)) => shared.note_failure(&error),
        }
        let watched = Arc::downgrade(&shared);
        thread::Builder::new().name("lazaret-external".into()).spawn(move || watch(&watched))?;
        Ok(Self { shared })
    }
}

/// Hears what the engine is also while it has no files: those that are known are not shown to it.
fn watch(watched: &Weak<Shared>) {
    loop {
        thread::sleep(HELLO_INTERVAL);
        let Some(shared) = watched.upgrade() else { return };
        shared.hear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process or connects, and hears what it is.
    fn begin(&self, deadline: Instant) -> io::Result<Conversation> {
        let (mut connection, process) = match &self.options.address {
            ExternalAddress::Socket(path) => (Connection::unix(path)?, None),
            ExternalAddress::Command(command) => {
                let (ours, theirs) = UnixStream::pair()?;
                let mut parts = command.iter();
                let program = parts.next().ok_or(io::ErrorKind::InvalidInput)?;
                let child = Command::new(program)
                    .args(parts)
                    .env_clear()
                    .env("PATH", "/usr/local/bin:/usr/bin:/bin")
                    .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs.try_clone()?)))
                    .stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
                    .process_group(0)
                    .spawn()?;
                (Connection::from(ours), Some(Process(child)))
            }
        };
        let line = connection.read_until(b'\n', LINE_BYTES_MAX, deadline)?;
        let hello: Hello = serde_json::from_slice(&line).map_err(|error| garbage("did not say what it is", &error))?;
        self.state().hello = hello.clone();
        Ok(Conversation { connection, _process: process, files: 0, hello, began: Instant::now() })
    }

    /// Whether a conversation that was kept is the one to go on with.
    fn is_current(&self, conversation: &Conversation) -> bool {
        match &self.options.address {
            ExternalAddress::Command(_) => conversation.connection.is_at_rest(),
            ExternalAddress::Socket(_) => {
                conversation.began.elapsed() < HELLO_INTERVAL && conversation.connection.is_at_rest()
            }
        }
    }

    /// Begins a conversation anew that is not current any more.
    fn hear(&self) {
        // If files have all places they hear it themselves.
        let Some(slot) = self.conversations.slot(Duration::ZERO) else { return };
        let kept = slot.kept(Duration::MAX);
        let never_began = kept.is_none() && matches!(self.options.address, ExternalAddress::Command(_));
        match kept {
            Some(conversation) if self.is_current(&conversation) => return slot.keep(conversation),
            // A program that failed is started for the next file.
            None if never_began => return,
            former => drop(former),
        }
        match self.begin(Instant::now() + START_TIMEOUT) {
            Ok(conversation) => {
                self.note_success();
                slot.keep(conversation);
            }
            // Told once; the files that come meanwhile fail by themselves.
            Err(error) if self.state().trouble.is_none() => self.note_failure(&error),
            Err(_) => {}
        }
    }

    fn version(&self, hello: &Hello) -> EngineVersion {
        version_of(self.info(hello.clone(), None), self.settings())
    }

    fn info(&self, hello: Hello, trouble: Option<String>) -> EngineInfo {
        EngineInfo {
            id: format!("external-{}", self.options.name),
            name: self.options.name.clone(),
            version: hello.version,
            kind: "external".into(),
            database_version: hello.database_version,
            def_time_ms: hello.database_time_ms,
            trouble: trouble.unwrap_or_default(),
        }
    }

    /// What its answers depend on besides its database.
    fn settings(&self) -> String {
        let ExternalOptions { address, max_file_bytes, digests, .. } = &self.options;
        format!("{address:?}, max_file_bytes {max_file_bytes}, digests {digests}")
    }

    /// Another conversation, no sooner than the pause after failures allows.
    fn begin_after_pause(&self) -> Result<Conversation, Failure> {
        let pause = self.state().resume.and_then(|resume| resume.checked_duration_since(Instant::now()));
        if let Some(pause) = pause {
            if pause > BACKOFF_WAIT_MAX {
                return Err(Failure::Pausing);
            }
            std::thread::sleep(pause);
        }
        // Starting may take longer than a file may.
        Ok(self.begin(Instant::now() + START_TIMEOUT)?)
    }

    fn note_failure(&self, error: &io::Error) {
        let mut state = self.state();
        tracing::error!(engine = self.options.name, %error, "an external engine failed");
        state.trouble = Some(error.to_string());
        state.failures_in_a_row = state.failures_in_a_row.saturating_add(1);
        let doublings = state.failures_in_a_row.saturating_sub(2).min(16);
        let pause = if state.failures_in_a_row < 2 { Duration::ZERO } else { BACKOFF_FIRST * 2_u32.pow(doublings) };
        state.resume = Some(Instant::now() + pause.min(BACKOFF_MAX));
    }

    fn note_success(&self) {
        let mut state = self.state();
        if state.failures_in_a_row > 0 {
            *state = State { hello: std::mem::take(&mut state.hello), ..State::default() };
        }
    }

    fn judge(
        &self,
        slot: &Slot<'_, Conversation>,
        subject: &Subject<'_>,
        context: &ScanContext,
    ) -> Result<EngineVerdict, Failure> {
        let mut kept = slot.kept(Duration::MAX).filter(|conversation| self.is_current(conversation));
        loop {
            let reused = kept.is_some();
            let mut conversation = match kept.take() {
                Some(conversation) => conversation,
                None => self.begin_after_pause()?,
            };
            let before = conversation.hello.clone();
            match conversation.ask(subject, context.capped(self.options.timeout).deadline) {
                Ok(mut verdict) => {
                    if conversation.hello != before {
                        self.state().hello = conversation.hello.clone();
                    }
                    verdict.judged_by = Some(self.version(&conversation.hello));
                    if !conversation.connection.has_unread() {
                        slot.keep(conversation);
                    }
                    return Ok(verdict);
                }
                // It may have ended since the last file.
                Err(Failure::Engine(error)) if reused && is_gone(&error) => {}
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// Why a file was not judged.
enum Failure {
    /// The engine failed too often to be started again at once.
    Pausing,
    /// It failed.
    Engine(io::Error),
    /// The file could not be read, which is no fault of the engine.
    Sample(SourceError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Engine(error)
    }
}

impl Conversation {
    fn ask(&mut self, subject: &Subject<'_>, deadline: Instant) -> Result<EngineVerdict, Failure> {
        self.files += 1;
        let file = subject.file;
        let request = Request {
            id: self.files,
            name: base_name(&file.display_name),
            size: subject.sample.length(),
            file_type: &file.file_type,
            md5: &file.md5,
            sha1: &file.sha1,
            sha256: &file.sha256,
        };
        let mut line = serde_json::to_vec(&request).map_err(io::Error::other)?;
        line.push(b'\n');
        self.connection.write(&line, deadline)?;
        match subject.sample.bytes() {
            Some(content) => self.connection.write(content, deadline)?,
            None => {
                let mut offset = 0;
                while offset < subject.sample.length() {
                    let chunk = subject.sample.read_at(offset, CHUNK_BYTES).map_err(Failure::Sample)?;
                    self.connection.write(&chunk, deadline)?;
                    offset += chunk.len() as u64;
                }
            }
        }
        let answer = self.connection.read_until(b'\n', LINE_BYTES_MAX, deadline)?;
        let response: Response =
            serde_json::from_slice(&answer).map_err(|error| garbage("gave an answer that is none", &error))?;
        if response.id != self.files {
            return Err(garbage("answered for another file", &response.id).into());
        }
        if let Some(version) = response.database_version {
            self.hello.database_version = version;
            self.hello.database_time_ms = response.database_time_ms.unwrap_or(self.hello.database_time_ms);
        }
        let threat: String = response.threat.chars().filter(|c| !c.is_control()).take(THREAT_CHARS_MAX).collect();
        let code = match response.result {
            Outcome::Clean => ResultCode::NO_THREAT,
            Outcome::Infected => ResultCode::INFECTED,
            Outcome::Suspicious => ResultCode::SUSPICIOUS,
            Outcome::Unwanted => ResultCode::POTENTIALLY_UNWANTED,
            Outcome::NotScanned => ResultCode::NOT_SCANNED,
            Outcome::Failed => ResultCode::SCAN_FAILED,
        };
        Ok(EngineVerdict::new(code, threat))
    }
}

fn garbage(what: &str, detail: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the engine {what}: {detail}"))
}

impl Engine for ExternalEngine {
    fn info(&self) -> EngineInfo {
        let (hello, trouble) = {
            let state = self.shared.state();
            (state.hello.clone(), state.trouble.clone())
        };
        self.shared.info(hello, trouble)
    }

    fn settings(&self) -> String {
        self.shared.settings()
    }

    fn waits(&self) -> bool {
        true
    }

    fn needs_digests(&self) -> bool {
        self.shared.options.digests
    }

    fn scan(&self, subject: &Subject<'_>, context: &ScanContext) -> EngineVerdict {
        let most = self.shared.options.max_file_bytes;
        if subject.sample.length() > most {
            return EngineVerdict::not_scanned(format!("the file is longer than {most} bytes"));
        }
        let queued = Instant::now();
        let Some(slot) = self.shared.conversations.slot(WAIT_MAX) else {
            return EngineVerdict::failed("no process of the engine came free");
        };
        let wait_ms = queued.elapsed().as_millis() as u64;
        let verdict = match self.shared.judge(&slot, subject, context) {
            Ok(verdict) => {
                self.shared.note_success();
                verdict
            }
            Err(Failure::Pausing) => {
                let trouble = self.trouble().unwrap_or_default();
                EngineVerdict::failed(format!("the engine failed and is not started again yet: {trouble}"))
            }
            Err(Failure::Sample(error)) => EngineVerdict::failed(error.to_string()),
            Err(Failure::Engine(error)) => {
                self.shared.note_failure(&error);
                EngineVerdict::failed(match error.kind() {
                    io::ErrorKind::TimedOut => "the engine took longer than it may".to_owned(),
                    _ if is_gone(&error) => "the engine ended in the middle of the file".to_owned(),
                    _ => error.to_string(),
                })
            }
        };
        EngineVerdict { wait_ms, ..verdict }
    }
}
