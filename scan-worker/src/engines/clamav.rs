//! ClamAV, as a `clamd` of the site's own: FILDES with a memory file over its Unix socket, INSTREAM over TCP.
//!
//! - Sessions (IDSESSION) are kept and reused, no more than `connections` at once. One that clamd closed meanwhile is
//!   replaced, and the file tried once more.
//! - A clamd that can't be reached, hangs or is slow is a failure (25) within the timeout, never clean. Its health is asked
//!   every few seconds; while it is ill files fail at once instead of waiting, and it is used again as soon as it answers.
//! - clamd tells the version of one of its databases, and nothing of signatures that a site has beside it, nor when it has loaded
//!   those. So its verdicts are kept under the hour as well.
//! - clamd says OK to a file that is longer than its own `MaxFileSize`, unless `AlertExceedsMax` is on. So what is longer
//!   than `max_file_bytes` is not sent, and is Not Scanned.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lazaret_analysis::ResultCode;
use rustix_sandbox::fs::{MemfdFlags, memfd_create};
use rustix_sandbox::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::connection::{Connection, Pool, Slot, is_gone};
use crate::engine::{Engine, EngineInfo, EngineVerdict, ScanContext, Subject};

/// How long a session may lie idle before it is not used again: clamd closes it after 30 s (`IdleTimeout`).
const SESSION_IDLE_MAX: Duration = Duration::from_secs(20);
/// How long a question about clamd's health may take.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is asked while it is well: its database may have changed.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is asked while it is not.
const RECOVERY_INTERVAL: Duration = Duration::from_millis(500);
/// The longest that a file waits for a session. One comes free at least every `timeout`.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// For how long a verdict of clamd's is kept at most. It bounds how long signatures that no version tells of find nothing in a
/// file that is known, and costs each known file a scan so often.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// The longest answer: a path or `stream`, and a name.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How much of a file is sent in one INSTREAM chunk, and read of a file that is not in memory.
const CHUNK_BYTES: u64 = 256 << 10;

/// Where clamd listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClamdAddress {
    /// Its `LocalSocket`. Files are handed over as descriptors, so nothing is copied to its temporary directory first.
    Unix(PathBuf),
    /// Its `TCPAddr` and `TCPSocket`. Files are streamed.
    Tcp(SocketAddr),
}

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct ClamavOptions {
    /// What it is called, for clients and rules.
    pub name: String,
    /// Where clamd listens.
    pub address: ClamdAddress,
    /// How long a file may take.
    pub timeout: Duration,
    /// Sessions at once: no more than clamd's `MaxThreads`.
    pub connections: usize,
    /// Longer files are not sent. No more than clamd's `MaxFileSize` and `StreamMaxLength`.
    pub max_file_bytes: u64,
}

/// A clamd.
pub struct ClamavEngine {
    shared: Arc<Shared>,
}

struct Shared {
    options: ClamavOptions,
    sessions: Pool<Session>,
    health: Mutex<Health>,
}

#[derive(Clone, Default)]
struct Health {
    version: String,
    database_version: String,
    def_time_ms: u64,
    trouble: Option<String>,
}

struct Session {
    connection: Connection,
    /// How many commands it has had; answers are numbered by it.
    commands: u64,
}

impl ClamavEngine {
    /// Asks clamd what it is and begins to watch over its health. A clamd that does not answer is no error here.
    pub fn start(options: ClamavOptions) -> io::Result<Self> {
        let health = Mutex::new(Health { trouble: Some("it was not asked yet".into()), ..Health::default() });
        let shared = Arc::new(Shared { sessions: Pool::new(options.connections), health, options });
        shared.ask();
        let watched = Arc::downgrade(&shared);
        thread::Builder::new().name("lazaret-clamav".into()).spawn(move || watch(&watched))?;
        Ok(Self { shared })
    }
}

fn watch(watched: &Weak<Shared>) {
    let mut asked = Instant::now();
    loop {
        thread::sleep(RECOVERY_INTERVAL);
        let Some(shared) = watched.upgrade() else { return };
        if shared.health().trouble.is_some() || asked.elapsed() >= HEALTH_INTERVAL {
            shared.ask();
            asked = Instant::now();
        }
    }
}

impl Shared {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, deadline: Instant) -> io::Result<Connection> {
        match &self.options.address {
            ClamdAddress::Unix(path) => Connection::unix(path),
            ClamdAddress::Tcp(address) => Connection::tcp(address, deadline),
        }
    }

    /// Asks clamd for its version, on a connection of its own.
    fn ask(&self) {
        let deadline = Instant::now() + HEALTH_TIMEOUT;
        let answer = self.connect(deadline).and_then(|mut connection| {
            connection.write(b"zVERSION\0", deadline)?;
            connection.read_until(0, ANSWER_BYTES_MAX, deadline)
        });
        let now = match answer {
            Ok(answer) => parse_version(&String::from_utf8_lossy(&answer)),
            Err(error) => Err(format!("clamd does not answer: {error}")),
        };
        let mut health = self.health();
        match now {
            Ok(now) => {
                if health.trouble.is_some() {
                    tracing::info!(engine = self.options.name, version = now.version, "clamd answers");
                }
                *health = now;
            }
            Err(trouble) => {
                if health.trouble.as_ref() != Some(&trouble) {
                    tracing::error!(engine = self.options.name, trouble, "clamd is ill");
                }
                health.trouble = Some(trouble);
            }
        }
    }

    fn judge(&self, slot: &Slot<'_, Session>, subject: &Subject<'_>, deadline: Instant) -> io::Result<EngineVerdict> {
        let mut kept = slot.kept(SESSION_IDLE_MAX);
        loop {
            let reused = kept.is_some();
            let mut session = match kept.take() {
                Some(session) => session,
                None => Session::open(self.connect(deadline)?, deadline)?,
            };
            match session.scan(subject, deadline) {
                Ok((verdict, ended)) => {
                    if !ended && !session.connection.has_unread() {
                        slot.keep(session);
                    }
                    return Ok(verdict);
                }
                // clamd may have closed it since the last file.
                Err(error) if reused && is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Session {
    fn open(mut connection: Connection, deadline: Instant) -> io::Result<Self> {
        connection.write(b"zIDSESSION\0", deadline)?;
        Ok(Self { connection, commands: 0 })
    }

    /// What clamd says of a file, and whether the session ended with it.
    fn scan(&mut self, subject: &Subject<'_>, deadline: Instant) -> io::Result<(EngineVerdict, bool)> {
        self.commands += 1;
        let sent = match (subject.sample.bytes(), self.connection.unix_fd().is_some()) {
            (Some(content), true) => self.send_file(content, deadline),
            _ => self.send_stream(subject, deadline),
        };
        // A stream that is too long for clamd is refused in the middle: the answer says so.
        if let Some(error) = sent.err().filter(|error| !is_gone(error)) {
            return Err(error);
        }
        let answer = self.connection.read_until(0, ANSWER_BYTES_MAX, deadline)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let garbage = || io::Error::new(io::ErrorKind::InvalidData, format!("clamd answered {answer:?}"));
        let (id, text) = answer.split_once(": ").ok_or_else(garbage)?;
        if id.trim().parse() != Ok(self.commands) {
            return Err(garbage());
        }
        parse_answer(text).ok_or_else(garbage)
    }

    /// Hands the file over as a descriptor of a file in memory.
    fn send_file(&mut self, content: &[u8], deadline: Instant) -> io::Result<()> {
        let mut memory = File::from(memfd_create("sample", MemfdFlags::CLOEXEC)?);
        memory.write_all(content)?;
        self.connection.write(b"zFILDES\0", deadline)?;
        let Some(socket) = self.connection.unix_fd() else { return Err(io::ErrorKind::Unsupported.into()) };
        let descriptors = [memory.as_fd()];
        let mut space = [0; rustix_sandbox::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn send_stream(&mut self, subject: &Subject<'_>, deadline: Instant) -> io::Result<()> {
        self.connection.write(b"zINSTREAM\0", deadline)?;
        let mut offset = 0;
        while offset < subject.sample.length() {
            let chunk = subject.sample.read_at(offset, CHUNK_BYTES).map_err(io::Error::other)?;
            let length = u32::try_from(chunk.len()).map_err(io::Error::other)?;
            self.connection.write(&length.to_be_bytes(), deadline)?;
            self.connection.write(&chunk, deadline)?;
            offset += chunk.len() as u64;
        }
        self.connection.write(&0_u32.to_be_bytes(), deadline)
    }
}

/// What an answer without its number says, and whether clamd ends the session with it; none if it is no answer.
fn parse_answer(text: &str) -> Option<(EngineVerdict, bool)> {
    if text.contains("size limit exceeded") {
        return Some((left_out("the file is longer than clamd's StreamMaxLength"), true));
    }
    // Before it stands `stream` or `fd[12]`.
    let (_, said) = text.split_once(": ").unwrap_or(("", text));
    if said == "OK" {
        return Some((EngineVerdict::clean(), false));
    }
    if let Some(name) = said.strip_suffix(" FOUND") {
        let verdict = match code_of(name) {
            ResultCode::NOT_SCANNED => left_out(name),
            code => EngineVerdict::new(code, name),
        };
        return Some((verdict, false));
    }
    let error = said.strip_suffix("ERROR")?;
    Some((EngineVerdict::failed(format!("clamd: {}", error.trim())), true))
}

/// What clamd did not judge by a limit of its own, which it does not tell: it may be another one tomorrow.
fn left_out(reason: &str) -> EngineVerdict {
    EngineVerdict { passing: true, ..EngineVerdict::not_scanned(reason) }
}

/// The result of what clamd found. Its own limits, and what it could not open, are no infections.
fn code_of(name: &str) -> ResultCode {
    let limit = |prefix: &str| name.strip_prefix(prefix);
    if let Some(which) = limit("Heuristics.Limits.Exceeded.") {
        return match which.split('.').next().unwrap_or_default() {
            "MaxScanSize" => ResultCode::ARCHIVE_SIZE,
            "MaxFiles" => ResultCode::ARCHIVE_FILES,
            "MaxRecursion" => ResultCode::ARCHIVE_DEPTH,
            "MaxFileSize" => ResultCode::NOT_SCANNED,
            // MaxScanTime, and what newer versions may bring.
            _ => ResultCode::SCAN_FAILED,
        };
    }
    match limit("Heuristics.Encrypted.") {
        Some(which) if ["PDF", "Doc"].iter().any(|kind| which.starts_with(kind)) => ResultCode::PASSWORD_PROTECTED,
        Some(_) => ResultCode::ENCRYPTED_ARCHIVE,
        None if name.starts_with("PUA.") => ResultCode::POTENTIALLY_UNWANTED,
        None => ResultCode::INFECTED,
    }
}

/// What its answers depend on at a time.
fn settings_at(options: &ClamavOptions, now: SystemTime) -> String {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let period = since.as_secs() / KEPT_FOR.as_secs();
    format!("{:?}, max_file_bytes {}, period {period}", options.address, options.max_file_bytes)
}

/// `Mon Jan  6 08:00:00 2025`, which clamd means in its own time zone; servers have UTC.
const DATABASE_DATE: &[BorrowedFormatItem<'static>] =
    format_description!("[weekday repr:short] [month repr:short] [day padding:none] [hour]:[minute]:[second] [year]");

/// Reads `ClamAV 1.4.3/27500/Mon Jan  6 08:00:00 2025`, or without a database of its own `ClamAV 1.4.3`.
fn parse_version(text: &str) -> Result<Health, String> {
    let mut parts = text.trim().split('/');
    let version = parts.next().and_then(|part| part.strip_prefix("ClamAV "));
    let version = version.ok_or_else(|| format!("what answers is no clamd: it says {text:?}"))?;
    let database_version = parts.next().unwrap_or_default().to_owned();
    let date = parts.next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let time = PrimitiveDateTime::parse(&date, DATABASE_DATE).ok().map(|date| date.assume_utc().unix_timestamp());
    let def_time_ms = time.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default().saturating_mul(1000);
    Ok(Health { version: version.to_owned(), database_version, def_time_ms, trouble: None })
}

impl Engine for ClamavEngine {
    fn info(&self) -> EngineInfo {
        let health = self.shared.health().clone();
        EngineInfo {
            id: format!("clamav-{}", self.shared.options.name),
            name: self.shared.options.name.clone(),
            version: health.version,
            kind: "antivirus".into(),
            database_version: health.database_version,
            def_time_ms: health.def_time_ms,
            trouble: health.trouble.unwrap_or_default(),
        }
    }

    fn settings(&self) -> String {
        settings_at(&self.shared.options, SystemTime::now())
    }

    fn waits(&self) -> bool {
        true
    }

    fn scan(&self, subject: &Subject<'_>, context: &ScanContext) -> EngineVerdict {
        let options = &self.shared.options;
        if subject.sample.length() > options.max_file_bytes {
            return EngineVerdict::not_scanned(format!("the file is longer than {} bytes", options.max_file_bytes));
        }
        let queued = Instant::now();
        let Some(slot) = self.shared.sessions.slot(WAIT_MAX) else {
            return EngineVerdict::failed("no session with clamd came free");
        };
        let wait_ms = queued.elapsed().as_millis() as u64;
        let verdict = match self.trouble() {
            Some(trouble) => EngineVerdict::failed(trouble),
            None => {
                let deadline = context.capped(options.timeout).deadline;
                self.shared.judge(&slot, subject, deadline).unwrap_or_else(|error| match error.kind() {
                    io::ErrorKind::TimedOut => EngineVerdict::failed("clamd took longer than it may"),
                    _ => EngineVerdict::failed(format!("clamd could not be asked: {error}")),
                })
            }
        };
        EngineVerdict { wait_ms, ..verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_what_they_mean() {
        let code = |text: &str| parse_answer(text).map(|(verdict, ended)| (verdict.code.code(), ended));
        assert_eq!(code("fd[12]: OK"), Some((0, false)));
        assert_eq!(code("stream: Eicar-Test-Signature FOUND"), Some((1, false)));
        assert_eq!(code("stream: PUA.Win.Tool FOUND"), Some((22, false)));
        assert_eq!(code("stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND"), Some((10, false)));
        assert_eq!(code("stream: Heuristics.Limits.Exceeded.MaxScanSize.UNOFFICIAL FOUND"), Some((13, false)));
        assert_eq!(code("stream: Heuristics.Limits.Exceeded.MaxScanTime FOUND"), Some((25, false)));
        assert_eq!(code("stream: Heuristics.Encrypted.Zip FOUND"), Some((12, false)));
        assert_eq!(code("stream: Heuristics.Encrypted.PDF FOUND"), Some((15, false)));
        assert_eq!(code("INSTREAM size limit exceeded. ERROR"), Some((10, true)));
        assert_eq!(code("fd[12]: Can't allocate memory ERROR"), Some((25, true)));
        for garbage in ["", "stream: ", "stream: ok", "OKAY", "stream: FOUND", "UNKNOWN COMMAND"] {
            assert_eq!(code(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn what_no_version_tells_is_kept_for_a_while_only() {
        let options = ClamavOptions {
            name: "ClamAV".into(),
            address: ClamdAddress::Unix("/a".into()),
            timeout: Duration::from_secs(1),
            connections: 1,
            max_file_bytes: 10,
        };
        let at = |options: &ClamavOptions, seconds| {
            settings_at(options, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        };
        assert_eq!(at(&options, 7200), at(&options, 7200 + 3599));
        assert_ne!(at(&options, 7200), at(&options, 7200 + 3600));
        assert_ne!(at(&options, 0), at(&ClamavOptions { max_file_bytes: 11, ..options.clone() }, 0));
        assert_ne!(at(&options, 0), at(&ClamavOptions { address: ClamdAddress::Unix("/b".into()), ..options }, 0));
        let passing = |text: &str| parse_answer(text).unwrap().0.passing;
        assert!(passing("INSTREAM size limit exceeded. ERROR"));
        assert!(passing("stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND"));
        assert!(!passing("stream: OK") && !passing("stream: Some.Name FOUND"));
    }

    #[test]
    fn versions_are_read_with_and_without_a_database() {
        let full = parse_version("ClamAV 1.4.3/27500/Mon Jan  6 08:00:00 2025\n").unwrap();
        assert_eq!((full.version.as_str(), full.database_version.as_str()), ("1.4.3", "27500"));
        assert_eq!(full.def_time_ms, 1_736_150_400_000);
        let bare = parse_version("ClamAV 1.4.6").unwrap();
        assert_eq!((bare.version.as_str(), bare.database_version.as_str(), bare.def_time_ms), ("1.4.6", "", 0));
        assert!(parse_version("220 smtp ready").is_err());
    }
}
