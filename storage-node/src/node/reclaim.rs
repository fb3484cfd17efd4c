//! Gives back the space of what nothing refers to any more, a segment at a time, when enough of one is dead.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;

pub(super) async fn run(shared: Arc<Shared>) {
    while shared.pause(shared.options.compact_interval).await {
        loop {
            let began = shared.environment.clock.monotonic();
            match shared.store.compact(shared.options.compact_min_dead_share).await {
                Ok(Some(bytes)) => {
                    tracing::info!(node = %shared.id, bytes, "a segment was compacted");
                    shared.reclaimed_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "compaction failed and is tried again");
                    break;
                }
            }
            let worked = shared.environment.clock.monotonic().saturating_sub(began);
            shared.foreground.yield_after(&shared.environment, worked).await;
            if shared.is_stopping() {
                return;
            }
        }
    }
}
