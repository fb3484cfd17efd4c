//! The gateway's settings of how fast one key may submit.

use std::time::Duration;

use anyhow::bail;
use lazaret_gateway::RateLimits;
use serde::{Deserialize, Serialize};

/// How fast one key may submit. All sessions of a user count as one key; whoever has none counts by address.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitsConfig {
    /// Files a second; 0: any number.
    pub submissions_per_second: f64,
    /// Bytes a second, as they are sent; 0: any number.
    pub bytes_per_second: u64,
    /// So many seconds' worth may come at once.
    pub burst_seconds: f64,
}

impl Default for RateLimitsConfig {
    fn default() -> Self {
        let RateLimits { submissions_per_second, bytes_per_second, burst } = RateLimits::default();
        Self { submissions_per_second, bytes_per_second, burst_seconds: burst.as_secs_f64() }
    }
}

impl RateLimitsConfig {
    /// The same in the gateway's own words.
    pub fn limits(&self) -> RateLimits {
        RateLimits {
            submissions_per_second: self.submissions_per_second,
            bytes_per_second: self.bytes_per_second,
            burst: Duration::try_from_secs_f64(self.burst_seconds).unwrap_or_default(),
        }
    }

    /// Checks what types alone can't.
    pub fn check(&self) -> anyhow::Result<()> {
        if !(0.0..=1e6).contains(&self.submissions_per_second) {
            bail!("rate_limits.submissions_per_second must be 0 to 1000000, got {}", self.submissions_per_second);
        }
        if !(0.0..=86400.0).contains(&self.burst_seconds) {
            bail!("rate_limits.burst_seconds must be 0 to 86400, got {}", self.burst_seconds);
        }
        Ok(())
    }
}
