//! Where log lines go: to the error output, and to whatever `log.streams` of a component's configuration names.
//!
//! - A stream is a thread of its own with a bounded number of lines before it. What doesn't fit is dropped and counted, and
//!   the count is told in the stream itself: a slow disk or a dead log server never stops a request.
//! - The most verbose level, `dump`, shows everything that Lazaret itself says. Libraries are shown down to `info` only:
//!   what they say below that may be bytes of requests. Whoever sets `LAZARET_LOG` decides alone.

mod file;
mod stream;
mod syslog;

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use self::stream::flush;
use self::stream::{Stream, Write};
use self::syslog::Server;
use crate::config::OtlpConfig;

/// The environment variable that filters what goes to the error output.
const FILTER_VARIABLE: &str = "LAZARET_LOG";
/// Most streams of one process.
const STREAMS_MAX: usize = 8;
/// What our own crates' targets begin with.
const OWN: &str = "lazaret";
/// The pool of database connections warns of each request that waits for one: thousands a second when there are too many.
const POOL: &str = "sqlx::pool";
/// The smallest file that is rotated: below it most lines would lie in files that are gone.
const FILE_BYTES_MIN: u64 = 64 * 1024;
/// Most rotated files of one stream.
const FILES_MAX: u32 = 1000;

/// Where a component's log lines go.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// None: to the error output, filtered by `LAZARET_LOG` (`warn`).
    pub streams: Vec<StreamConfig>,
}

/// One place where log lines go.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// What kind of place it is.
    pub log_type: StreamType,
    /// The least important lines that go there.
    #[serde(default)]
    pub log_level: StreamLevel,
    /// A file's path. Of syslog: `local` (/dev/log), the path of a socket, `udp://host:port` or `tcp://host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<String>,
    /// A file that would get longer is put aside as `PATH.1`, and the one that was there as `PATH.2`.
    #[serde(default = "default_file_bytes_max")]
    pub file_bytes_max: u64,
    /// How many files are kept aside; older ones are removed.
    #[serde(default = "default_files_max")]
    pub files_max: u32,
}

/// 100 MiB.
const fn default_file_bytes_max() -> u64 {
    100 * 1024 * 1024
}

/// Ten, so that a stream takes about a gigabyte at most.
const fn default_files_max() -> u32 {
    10
}

/// A kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamType {
    /// A file, rotated by its length.
    File,
    /// A syslog server.
    Syslog,
    /// The error output.
    Stderr,
}

/// How important a line must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamLevel {
    /// Everything.
    Dump,
    /// What helps to find a fault.
    Debug,
    /// What happens, the access log included.
    #[default]
    Info,
    /// What somebody should look at.
    Warning,
    /// What failed.
    Error,
}

impl StreamLevel {
    fn filter(self) -> Targets {
        let own = match self {
            Self::Dump => LevelFilter::TRACE,
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warning => LevelFilter::WARN,
            Self::Error => LevelFilter::ERROR,
        };
        Targets::new()
            .with_target(OWN, own)
            .with_target(POOL, LevelFilter::ERROR)
            .with_default(own.min(LevelFilter::INFO))
    }
}

impl LogConfig {
    /// The paths in it, so that relative ones can be taken from the file's directory.
    pub fn take_paths_from(&mut self, base: &std::path::Path) {
        for stream in self.streams.iter_mut().filter(|stream| stream.log_type == StreamType::File) {
            if let Some(path) = &mut stream.log_path {
                *path = base.join(&*path).display().to_string();
            }
        }
    }

    /// Checks what types alone can't.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.streams.len() > STREAMS_MAX {
            bail!("log.streams has {} entries, {STREAMS_MAX} at most", self.streams.len());
        }
        self.streams.iter().try_for_each(|stream| stream.check().context("log.streams"))
    }
}

impl StreamConfig {
    fn check(&self) -> anyhow::Result<()> {
        match (self.log_type, &self.log_path) {
            (StreamType::File, None) => bail!("a stream of log_type file needs its log_path"),
            (StreamType::Syslog, path) => drop(Server::named(path.as_deref())?),
            (StreamType::Stderr, Some(_)) => bail!("a stream of log_type stderr has no log_path"),
            _ => {}
        }
        if self.file_bytes_max < FILE_BYTES_MIN {
            bail!("file_bytes_max must be at least {FILE_BYTES_MIN}, got {}", self.file_bytes_max);
        }
        if !(1..=FILES_MAX).contains(&self.files_max) {
            bail!("files_max must be 1 to {FILES_MAX}, got {}", self.files_max);
        }
        Ok(())
    }

    fn layer(&self) -> anyhow::Result<BoxedLayer> {
        let format = tracing_subscriber::fmt::layer().with_ansi(false);
        let place: Box<dyn Write> = match self.log_type {
            StreamType::Stderr => {
                return Ok(format.with_writer(std::io::stderr).with_filter(self.log_level.filter()).boxed());
            }
            StreamType::File => {
                let path = PathBuf::from(self.log_path.as_deref().unwrap_or_default());
                Box::new(file::LogFile::open(path, self.file_bytes_max, self.files_max)?)
            }
            StreamType::Syslog => {
                let server = Server::named(self.log_path.as_deref())?;
                // The server notes the time itself.
                let stream = Stream::start(Box::new(syslog::Syslog::new(server)))?;
                let format = format.without_time().with_level(false).with_writer(stream);
                return Ok(format.with_filter(self.log_level.filter()).boxed());
            }
        };
        Ok(format.with_writer(Stream::start(place)?).with_filter(self.log_level.filter()).boxed())
    }
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging to the error output alone, filtered by `LAZARET_LOG`, or as usual.
pub fn start_plain(usual: &str) {
    tracing_subscriber::registry().with(to_stderr(usual)).init();
}

/// Starts logging as a component's configuration says. The error output is one more stream if `LAZARET_LOG` is set or no
/// other is named.
///
/// Traces go where `otlp` says, as those of `service`.
pub fn start(config: &LogConfig, otlp: &OtlpConfig, service: &str) -> anyhow::Result<()> {
    let mut layers = Vec::new();
    #[cfg(feature = "otlp")]
    layers.extend(crate::traces::start(otlp, service)?);
    // The configuration was refused if it names a collector.
    #[cfg(not(feature = "otlp"))]
    let _ = (otlp, service);
    if config.streams.is_empty() || std::env::var_os(FILTER_VARIABLE).is_some() {
        layers.push(to_stderr("warn"));
    }
    for stream in &config.streams {
        layers.push(stream.layer()?);
    }
    tracing_subscriber::registry().with(layers).try_init().context("cannot start logging")
}

fn to_stderr(usual: &str) -> BoxedLayer {
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(format!("{usual},{POOL}=error")));
    tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(filter)
        .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(yaml: &str) -> Result<LogConfig, String> {
        let config: LogConfig = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
        config.check().map(|()| config).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn streams_are_read_as_the_reference_writes_them_and_nonsense_is_refused() {
        let config = checked(
            "streams:\n  - {log_type: file, log_level: debug, log_path: a.log}\n  - {log_type: syslog, log_path: local}\n  \
             - {log_type: syslog, log_path: 'udp://127.0.0.1:514', log_level: warning}\n  - {log_type: stderr}\n",
        )
        .unwrap();
        assert_eq!(config.streams.len(), 4);
        assert_eq!((config.streams[0].log_level, config.streams[1].log_level), (StreamLevel::Debug, StreamLevel::Info));
        for (yaml, word) in [
            ("streams: [{log_type: file}]", "log_path"),
            ("streams: [{log_type: stderr, log_path: x}]", "log_path"),
            ("streams: [{log_type: syslog, log_path: 'http://x:1'}]", "http"),
            ("streams: [{log_type: syslog, log_path: 'udp://nowhere'}]", "nowhere"),
            ("streams: [{log_type: file, log_path: x, log_level: loud}]", "loud"),
            ("streams: [{log_type: file, log_path: x, file_bytes_max: 1}]", "file_bytes_max"),
            ("streams: [{log_type: file, log_path: x, files_max: 0}]", "files_max"),
            ("streams: [{log_type: file, log_path: x, colour: red}]", "colour"),
        ] {
            let refused = checked(yaml).unwrap_err();
            assert!(refused.contains(word), "{yaml}: {refused}");
        }
    }
}
