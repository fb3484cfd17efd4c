//! Forgetting what is old: finished analyses past the time that they are kept, with all that was found in them.
//!
//! It goes in steps with rests between, so that nothing else waits for it, and it may be cut short anywhere. Several gateways
//! may do it at once.
//!
//! **Invariant.** Nothing goes by a clock that has not run evenly for an hour, the gateway's start being a jump like any
//! other, or that does not agree with a majority of the storage nodes. What is kept too long can go later.

use std::time::Duration;

use futures_util::future::join_all;
use lazaret_protocol::NodeId;
use lazaret_protocol::limits::PUT_TIME_SKEW_MAX_MS;
use lazaret_protocol::message::{Ping, Request, Response};

use crate::gateway::Shared;

/// How often is looked for what has expired.
const INTERVAL: Duration = Duration::from_secs(60);
/// Rows of each kind that one step touches: a few milliseconds of the write lock.
const STEP_ROWS: u32 = 500;
/// The rest between two steps.
const REST: Duration = Duration::from_millis(20);
/// How long a clock must run evenly before anything goes by it, as for the storage nodes' retention.
const STEADY_FOR: Duration = Duration::from_secs(3600);
/// Wall-clock and monotonic time may drift apart by so much from one look to the next, before it counts as a jump: more
/// than a time daemon slews.
const JUMP_MIN_MS: u64 = 60_000;

/// Forgets what is older than `kept`, for ever.
pub(crate) async fn forget(shared: &Shared, kept: Duration) {
    let kept_ms = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
    let clock = &shared.intake.environment.clock;
    let mut steadiness = Steadiness::begin(clock.unix_ms(), clock.monotonic());
    let mut agreed = true;
    loop {
        clock.sleep(INTERVAL).await;
        let now_ms = clock.unix_ms();
        if !steadiness.look(now_ms, clock.monotonic()) {
            continue;
        }
        let agrees = agrees(shared).await;
        if agreed && !agrees {
            tracing::warn!("old analyses stay: this gateway's clock agrees with no majority of the storage nodes");
        }
        agreed = agrees;
        if !agrees {
            continue;
        }
        // By the time of the look, whatever the clock says meanwhile.
        match forget_before(shared, now_ms.saturating_sub(kept_ms)).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "old analyses were removed"),
            Err(error) => tracing::warn!(%error, "old analyses could not be removed now"),
        }
    }
}

/// Since when the clock has run evenly.
struct Steadiness {
    since: Duration,
    /// The clocks at the last look: wall clock in milliseconds and monotonic time.
    last: (u64, Duration),
}

impl Steadiness {
    fn begin(unix_ms: u64, now: Duration) -> Self {
        Self { since: now, last: (unix_ms, now) }
    }

    /// Whether the clock has run evenly for long enough.
    fn look(&mut self, unix_ms: u64, now: Duration) -> bool {
        let (last_unix_ms, last) = std::mem::replace(&mut self.last, (unix_ms, now));
        let passed_ms = u64::try_from(now.saturating_sub(last).as_millis()).unwrap_or(u64::MAX);
        let jump_ms = unix_ms.abs_diff(last_unix_ms.saturating_add(passed_ms));
        if jump_ms >= JUMP_MIN_MS {
            tracing::error!(
                jump_ms,
                "this gateway's clock jumped: old analyses stay until it has run evenly for an hour"
            );
            self.since = now;
        }
        now.saturating_sub(self.since) >= STEADY_FOR
    }
}

/// Whether this clock is that of more than half of the storage nodes. Those that don't answer don't agree.
async fn agrees(shared: &Shared) -> bool {
    let map = shared.intake.cluster.map();
    is_majority(&join_all(map.nodes.iter().map(|node| difference_ms(shared, map.epoch, node.id))).await)
}

/// Whether more than half of the answers tell a difference that is no larger than put times may be off.
fn is_majority(differences_ms: &[Option<u64>]) -> bool {
    let agreeing = differences_ms.iter().flatten().filter(|difference_ms| **difference_ms <= PUT_TIME_SKEW_MAX_MS);
    agreeing.count() * 2 > differences_ms.len()
}

/// By how much a node's clock differs from this one; `None` for one that does not answer.
async fn difference_ms(shared: &Shared, epoch: u64, node: NodeId) -> Option<u64> {
    let now_ms = shared.now_ms();
    match shared.intake.cluster.ask(node, Request::Ping(Ping { epoch, now_ms })).await {
        Ok(Response::Pong(pong)) => Some(pong.now_ms.abs_diff(now_ms)),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_by_a_clock_that_has_not_run_evenly_for_an_hour() {
        let (minute, hour_ms) = (Duration::from_secs(60), 3_600_000);
        let mut now = Duration::from_secs(5);
        let mut unix_ms = 100 * hour_ms;
        let mut steadiness = Steadiness::begin(unix_ms, now);
        let mut run = |unix_ms: &mut u64, minutes: u32| {
            let looks = (0..minutes).map(|_| {
                now += minute;
                *unix_ms += 60_000;
                steadiness.look(*unix_ms, now)
            });
            looks.filter(|steady| *steady).count()
        };
        assert_eq!(run(&mut unix_ms, 61), 2, "nothing in the hour after the start");
        for jumped_ms in [1_000 * hour_ms, 10 * hour_ms] {
            unix_ms = jumped_ms;
            assert_eq!(run(&mut unix_ms, 60), 0, "there and back");
        }
        assert_eq!(run(&mut unix_ms, 1), 1);
        unix_ms += 1_000;
        assert_eq!(run(&mut unix_ms, 1), 1, "what a time daemon puts right is no jump");
    }

    #[test]
    fn a_clock_is_gone_by_if_most_nodes_have_it() {
        let off = Some(PUT_TIME_SKEW_MAX_MS + 1);
        for (answers, is) in [
            ([Some(0), Some(PUT_TIME_SKEW_MAX_MS), None], true),
            ([Some(0), Some(0), off], true),
            ([Some(0), off, off], false),
            ([Some(0), None, None], false),
        ] {
            assert_eq!(is_majority(&answers), is, "{answers:?}");
        }
        assert!(!is_majority(&[]) && !is_majority(&[Some(0), off]));
    }
}
