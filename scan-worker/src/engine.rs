//! The seam for engines: whatever looks at one file and says what it found.
//!
//! An engine is synchronous, runs on a scan thread, and knows neither queue nor store nor container. What it could not judge
//! it says: [`ResultCode::SCAN_FAILED`] when it should have and could not, [`ResultCode::NOT_SCANNED`] when the sample is
//! not for it. It never answers "no threat" for what it did not look at as a whole.

use std::time::{Duration, Instant};

pub use lazaret_analysis::EngineInfo;
use lazaret_analysis::ResultCode;
use serde::{Deserialize, Serialize};

use crate::sample::Sample;

/// What bounds one scan.
#[derive(Debug, Clone, Copy)]
pub struct ScanContext {
    /// When the engine must have answered.
    pub deadline: Instant,
}

impl ScanContext {
    /// A scan that may take so long from now.
    pub fn within(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit }
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
}

impl EngineVerdict {
    /// It looked at everything and found nothing.
    pub fn clean() -> Self {
        Self { code: ResultCode::NO_THREAT, threat: String::new() }
    }

    /// It found this.
    pub fn infected(threat: impl Into<String>) -> Self {
        Self { code: ResultCode::INFECTED, threat: threat.into() }
    }

    /// It should have judged the file and could not.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self { code: ResultCode::SCAN_FAILED, threat: reason.into() }
    }
}

/// Judges files, any number at once.
pub trait Engine: Send + Sync {
    /// What the engine is now. Its database may change while it is loaded.
    fn info(&self) -> EngineInfo;

    /// Whether judging a file is mostly waiting, for another process or a machine. Other files are scanned meanwhile.
    fn waits(&self) -> bool {
        false
    }

    /// Judges one file.
    fn scan(&self, sample: &Sample, context: &ScanContext) -> EngineVerdict;
}
