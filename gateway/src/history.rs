//! Forgetting what is old: finished analyses past the time that they are kept, with all that was found in them.
//!
//! It goes in steps with rests between, so that nothing else waits for it, and it may be cut short anywhere. Several gateways
//! may do it at once.

use std::time::Duration;

use crate::gateway::Shared;

/// How often is looked for what has expired.
const INTERVAL: Duration = Duration::from_secs(60);
/// Rows of each kind that one step touches: a few milliseconds of the write lock.
const STEP_ROWS: u32 = 500;
/// The rest between two steps.
const REST: Duration = Duration::from_millis(20);

/// Forgets what is older than `kept`, for ever.
pub(crate) async fn forget(shared: &Shared, kept: Duration) {
    let kept_ms = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
    loop {
        let before_ms = shared.now_ms().saturating_sub(kept_ms);
        match forget_before(shared, before_ms).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "old analyses were removed"),
            Err(error) => tracing::warn!(%error, "old analyses could not be removed now"),
        }
        shared.intake.environment.clock.sleep(INTERVAL).await;
    }
}

async fn forget_before(shared: &Shared, before_ms: u64) -> Result<u64, lazaret_analysis::StoreError> {
    let mut all: u64 = 0;
    loop {
        let rows = shared.results.expire(before_ms, STEP_ROWS).await?;
        if rows == 0 {
            return Ok(all);
        }
        all = all.saturating_add(rows);
        shared.intake.environment.clock.sleep(REST).await;
    }
}
