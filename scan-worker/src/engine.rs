//! The seam for engines: whatever looks at one file and says what it found.
//!
//! An engine is synchronous, runs on a scan thread, and knows neither queue nor store nor container. What it could not judge
//! it says: [`ResultCode::SCAN_FAILED`] when it should have and could not, [`ResultCode::NOT_SCANNED`] when the sample is
//! not for it. It never answers "no threat" for what it did not look at as a whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use lazaret_analysis::EngineInfo;
use lazaret_analysis::{EngineVersion, FileInfo, ResultCode, YaraHit};
use serde::{Deserialize, Serialize};

use crate::confined::{Confined, RuleSets};
use crate::engines::reload::LoadError;
use crate::sample::Sample;

/// The file to be judged: its content, and what is known of it.
#[derive(Clone, Copy)]
pub struct Subject<'f> {
    /// Its content.
    pub sample: &'f Sample,
    /// Its name, length and type; and its digests, if a loaded engine asks for them.
    pub file: &'f FileInfo,
    /// Where its content is matched against rules; none if that is done in this process.
    pub confined: Option<&'f dyn Confined>,
}

/// A file's name without the folders before it: all of the name that an engine may go by, since a verdict counts for the
/// same file in another folder.
pub fn base_name(name: &str) -> &str {
    name.rsplit(['/', '\\']).next().unwrap_or(name)
}

/// What bounds one scan.
#[derive(Debug, Clone, Copy)]
pub struct ScanContext {
    /// When the engine must have answered.
    pub deadline: Instant,
    /// How long it may take once it has begun: an engine that files wait for counts from the end of the wait.
    pub limit: Duration,
}

impl ScanContext {
    /// A scan that may take so long from now.
    pub fn within(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit, limit }
    }

    /// The same, with no more time than this from now.
    pub fn capped(&self, limit: Duration) -> Self {
        Self::within(self.limit.min(limit))
    }

    /// How long there is still; none when the deadline has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

/// What an engine says of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineVerdict {
    /// The result.
    pub code: ResultCode,
    /// The threat's name, or what kept the engine from judging; empty if it found nothing.
    pub threat: String,
    /// The YARA rules that matched, for an engine of the kind "yara".
    #[serde(default)]
    pub hits: Vec<YaraHit>,
    /// How long the file waited until the engine began with it, in milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
    /// What judged the file, where that may be another version than the one that the engine tells of itself: one of several
    /// processes, say. The verdict is kept under that version or not at all.
    #[serde(default)]
    pub judged_by: Option<EngineVersion>,
    /// Whether another scan may say otherwise although nothing has changed that verdicts are kept under.
    #[serde(default)]
    pub passing: bool,
}

impl EngineVerdict {
    /// This result, and what is to be said of it.
    pub fn new(code: ResultCode, threat: impl Into<String>) -> Self {
        Self { code, threat: threat.into(), hits: Vec::new(), wait_ms: 0, judged_by: None, passing: false }
    }

    /// It looked at everything and found nothing.
    pub fn clean() -> Self {
        Self::new(ResultCode::NO_THREAT, "")
    }

    /// It found this.
    pub fn infected(threat: impl Into<String>) -> Self {
        Self::new(ResultCode::INFECTED, threat)
    }

    /// The file is not one that it judges.
    pub fn not_scanned(reason: impl Into<String>) -> Self {
        Self::new(ResultCode::NOT_SCANNED, reason)
    }

    /// It should have judged the file and could not.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::new(ResultCode::SCAN_FAILED, reason)
    }
}

/// Judges files, any number at once.
pub trait Engine: Send + Sync {
    /// What the engine is now. Its database may change while it is loaded.
    fn info(&self) -> EngineInfo;

    /// What its answers depend on besides that: its settings, and the time if it can't tell that its database has changed.
    fn settings(&self) -> String {
        String::new()
    }

    /// Everything of it that its verdicts are kept under.
    fn version(&self) -> EngineVersion {
        version_of(self.info(), self.settings())
    }

    /// What is wrong with it, in words; none if it is well.
    fn trouble(&self) -> Option<String> {
        Some(self.info().trouble).filter(|trouble| !trouble.is_empty())
    }

    /// Whether it must know a file's digests. It is not shown the file before they are there.
    fn needs_digests(&self) -> bool {
        false
    }

    /// Whether judging a file is mostly waiting, for another process or a machine. Other files are scanned meanwhile.
    fn waits(&self) -> bool {
        false
    }

    /// Has the rules that it matches contents against, if any, in this sandbox, from now on and when they change. It is shown files that
    /// are confined to it afterwards.
    fn confine(&self, _rule_sets: &Arc<RuleSets>) -> Result<(), LoadError> {
        Ok(())
    }

    /// The set of rules that it has in the sandbox, if no content makes matching it take long or much memory, so that it needs no deadline.
    fn swift_rule_set(&self) -> Option<&'static str> {
        None
    }

    /// Judges one file.
    fn scan(&self, subject: &Subject<'_>, context: &ScanContext) -> EngineVerdict;
}

/// What the verdicts of an engine are kept under.
pub(crate) fn version_of(info: EngineInfo, settings: String) -> EngineVersion {
    let EngineInfo { id, name, version, database_version, def_time_ms, .. } = info;
    EngineVersion { id, name, version, database: (database_version, def_time_ms), settings }
}
