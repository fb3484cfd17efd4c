//! Lets what is older than the cluster's retention expire, a bucket at a time.
//!
//! A bucket goes once its end is as old as the range: then everything in it is older, and nothing that is younger goes. The
//! setting comes from the map and may change at any time; what has expired stays expired.

use std::sync::Arc;

use lazaret_protocol::ClusterMap;
use lazaret_protocol::limits::BUCKET_MS;

use super::Shared;

/// The first bucket that is kept with a range of so many hours at `now_ms`; 0 keeps everything.
pub(crate) fn first_kept_bucket(cleanuprange_hours: u32, now_ms: u64) -> u32 {
    if cleanuprange_hours == 0 {
        return 0;
    }
    let expired_ms = now_ms.saturating_sub(u64::from(cleanuprange_hours) * BUCKET_MS);
    u32::try_from(expired_ms / BUCKET_MS).unwrap_or(0)
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut maps = shared.cluster.watch_map();
    let mut alarmed = false;
    loop {
        let map = Arc::clone(&maps.borrow_and_update());
        pass(&shared, &map, &mut alarmed).await;
        // A changed setting counts at once.
        let next = async {
            tokio::select! {
                biased;
                _ = maps.changed() => {}
                () = shared.environment.clock.sleep(shared.options.retention_interval) => {}
            }
        };
        if shared.until(next).await.is_none() {
            return;
        }
    }
}

async fn pass(shared: &Shared, map: &ClusterMap, alarmed: &mut bool) {
    let clock = &shared.environment.clock;
    if first_kept_bucket(map.cleanuprange, clock.unix_ms()) <= shared.store.horizon() {
        return;
    }
    let Some(now_ms) = shared.peers.trusted_unix_ms(map, clock.monotonic()) else {
        if !std::mem::replace(alarmed, true) {
            tracing::error!(node = %shared.id, "nothing expires: this node's clock is not that of a majority of the cluster, or jumped");
        }
        return;
    };
    *alarmed = false;
    let before = first_kept_bucket(map.cleanuprange, now_ms);
    if before <= shared.store.horizon() {
        return;
    }
    match shared.store.expire(before).await {
        Ok(gone) => {
            tracing::info!(node = %shared.id, before_bucket = before, blobs = gone.blobs, bytes = gone.bytes, "expired");
        }
        Err(error) => tracing::error!(%error, "expiry failed and is tried again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_goes_when_its_end_is_as_old_as_the_range() {
        assert_eq!(first_kept_bucket(0, 500_000 * BUCKET_MS), 0);
        // The bucket 499,975 ended 24 hours before this moment.
        assert_eq!(first_kept_bucket(24, 500_000 * BUCKET_MS), 499_976);
        assert_eq!(first_kept_bucket(24, 500_000 * BUCKET_MS - 1), 499_975);
        assert_eq!(first_kept_bucket(24, 5), 0);
    }
}
