//! Whether anybody is waiting for the node, so that background work can step back. It only ever slows work down: nothing
//! depends on it but latency.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lazaret_node_client::environment::Environment;

/// For so long after a request the node counts as wanted: requests of a busy client are closer together.
const BUSY_FOR: Duration = Duration::from_millis(200);
/// While the node is wanted, background work rests so many times as long as it worked. With one step at a time it then
/// takes about a fifth of one disk and one core.
const REST_FACTOR: u32 = 4;
/// The longest rest, so that work goes on however slow a step was.
const REST_MAX: Duration = Duration::from_secs(2);

/// Counts clients' requests.
#[derive(Debug, Default)]
pub(crate) struct Foreground {
    under_way: AtomicU64,
    /// Monotonic milliseconds of the last request's end, plus one; 0 for none.
    last_ms: AtomicU64,
}

/// A client's request under way.
pub(crate) struct Request<'f> {
    foreground: &'f Foreground,
    environment: &'f Environment,
}

impl Foreground {
    pub(crate) fn begin<'f>(&'f self, environment: &'f Environment) -> Request<'f> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Request { foreground: self, environment }
    }

    /// Whether a client's request is under way, or was just now.
    pub(crate) fn is_busy(&self, environment: &Environment) -> bool {
        if self.under_way.load(Ordering::Relaxed) > 0 {
            return true;
        }
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        last_ms > 0 && monotonic_ms(environment).saturating_sub(last_ms - 1) < BUSY_FOR.as_millis() as u64
    }

    /// Rests after a step of background work that took `worked`, if clients want the node.
    pub(crate) async fn yield_after(&self, environment: &Environment, worked: Duration) {
        if self.is_busy(environment) {
            environment.clock.sleep((worked * REST_FACTOR).min(REST_MAX)).await;
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.foreground.last_ms.store(monotonic_ms(self.environment) + 1, Ordering::Relaxed);
        self.foreground.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

fn monotonic_ms(environment: &Environment) -> u64 {
    environment.clock.monotonic().as_millis() as u64
}
