//! What scan workers say of themselves, so that a gateway can tell who scans, with which engines, and how busy they are.
//!
//! A worker reports every [`REPORT_INTERVAL_MS`]. A report that is older than [`REPORT_FRESH_MS`] is of a worker that is gone
//! or cut off. Reports promise nothing: no task is given or taken because of one.

use serde::{Deserialize, Serialize};

/// How often a worker reports.
pub const REPORT_INTERVAL_MS: u64 = 5_000;

/// How long a report counts: three reports may be lost or late.
pub const REPORT_FRESH_MS: u64 = 4 * REPORT_INTERVAL_MS;

/// What an engine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// A stable id.
    pub id: String,
    /// The name that clients see and rules use.
    pub name: String,
    /// The engine's own version.
    pub version: String,
    /// What kind of engine it is: "signatures", "antivirus", "yara".
    pub kind: String,
    /// The version of what it searches for.
    pub database_version: String,
    /// When that was made, in Unix milliseconds.
    pub def_time_ms: u64,
    /// What is wrong with it, in words; empty if it is well.
    #[serde(default)]
    pub trouble: String,
}

/// The machine that a worker runs on. What could not be found out is 0 or empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostReport {
    /// The operating system, as people call it.
    pub os: String,
    /// Processors that the worker may use.
    pub cpu_cores: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Memory that can be had without swapping, in bytes.
    pub memory_available_bytes: u64,
    /// How busy the processors are, from 0 to 100: the load of the last minute on those cores.
    pub load_percent: u64,
    /// The disk on which the worker keeps files while it scans them.
    pub disk: DiskReport,
}

/// A disk that a worker uses. What could not be found out is 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskReport {
    /// The folder that the worker uses there.
    pub folder: String,
    /// Bytes that the worker may still write.
    pub free_bytes: u64,
    /// Bytes that the disk has.
    pub total_bytes: u64,
}

/// A worker as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    /// The worker's name: a later report of the same name replaces this one.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// Threads that scan and extract.
    pub scan_threads: u64,
    /// How many submissions it scans at once at most.
    pub concurrent_files: u64,
    /// How many it scans now.
    pub running: u64,
    /// The engines that are loaded.
    pub engines: Vec<EngineInfo>,
    /// When the worker started, in Unix milliseconds.
    pub started_ms: u64,
    /// The machine that it runs on.
    pub host: HostReport,
}
