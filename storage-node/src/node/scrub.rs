//! Reads what lies on the disks to see whether it is sound: each segment soon after it was sealed, and all of them at a set
//! pace. What is damaged is marked, so that it is never served, and repair fetches it again.
//!
//! Nothing waits for a scrub: it holds no lock while it reads, and keeps to a pace.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lazaret_protocol::message::ScrubReport;
use tokio::sync::Notify;

use super::Shared;
use crate::record::SegmentAddress;

/// How often is looked for segments that were sealed meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct Scrub {
    wake: Notify,
    /// A whole pass was asked for.
    wanted: AtomicBool,
    running: AtomicBool,
    segments_done: AtomicU64,
    segments: AtomicU64,
    verified_bytes: AtomicU64,
    damaged_records: AtomicU64,
    finished_ms: AtomicU64,
    /// Segments read since the node started, so that only new ones are read before the next pass. As many as there are
    /// segments at most.
    seen: Mutex<HashSet<(usize, SegmentAddress)>>,
}

impl Scrub {
    /// Asks for a whole pass now.
    pub(crate) fn begin(&self) {
        self.wanted.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(crate) fn report(&self) -> ScrubReport {
        ScrubReport {
            running: self.running.load(Ordering::Relaxed),
            segments_done: self.segments_done.load(Ordering::Relaxed),
            segments: self.segments.load(Ordering::Relaxed),
            verified_bytes: self.verified_bytes.load(Ordering::Relaxed),
            damaged_records: self.damaged_records.load(Ordering::Relaxed),
            finished_ms: self.finished_ms.load(Ordering::Relaxed),
        }
    }
}

pub(super) async fn run(shared: Arc<Shared>) {
    let scrub = &shared.scrub;
    // What was sealed before the start was read by an earlier life, or is read by the next pass.
    let mut next_pass = shared.environment.clock.monotonic() + shared.options.scrub_interval;
    if let Some(Ok(sealed)) = shared.blocking(|store| store.sealed_segments()).await {
        scrub.seen.lock().unwrap_or_else(PoisonError::into_inner).extend(sealed);
    }
    loop {
        let look = async {
            tokio::select! {
                biased;
                () = scrub.wake.notified() => {}
                () = shared.environment.clock.sleep(LOOK_INTERVAL) => {}
            }
        };
        if shared.until(look).await.is_none() {
            return;
        }
        let due = shared.environment.clock.monotonic() >= next_pass;
        let whole = scrub.wanted.swap(false, Ordering::Relaxed) || due;
        if whole {
            scrub.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
            next_pass = shared.environment.clock.monotonic() + shared.options.scrub_interval;
        }
        if !pass(&shared).await {
            return;
        }
        if whole {
            scrub.finished_ms.store(shared.environment.clock.unix_ms(), Ordering::Relaxed);
        }
    }
}

/// Reads every sealed segment that was not read yet; false if the node is stopping.
async fn pass(shared: &Arc<Shared>) -> bool {
    let scrub = &shared.scrub;
    let sealed = match shared.blocking(|store| store.sealed_segments()).await {
        Some(Ok(sealed)) => sealed,
        Some(Err(error)) => {
            tracing::warn!(%error, "the segments can't be listed for the scrub");
            return true;
        }
        None => return true,
    };
    let (due, total) = {
        let mut seen = scrub.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let present: HashSet<_> = sealed.iter().copied().collect();
        seen.retain(|segment| present.contains(segment));
        (sealed.iter().copied().filter(|segment| !seen.contains(segment)).collect::<Vec<_>>(), sealed.len())
    };
    if due.is_empty() {
        return true;
    }
    scrub.segments.store(total as u64, Ordering::Relaxed);
    scrub.segments_done.store((total - due.len()) as u64, Ordering::Relaxed);
    scrub.running.store(true, Ordering::Relaxed);
    let mut going_on = true;
    for segment in due {
        going_on = read(shared, segment).await;
        if !going_on {
            break;
        }
        scrub.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(segment);
        scrub.segments_done.fetch_add(1, Ordering::Relaxed);
    }
    scrub.running.store(false, Ordering::Relaxed);
    going_on
}

/// Reads one segment, then rests for as long as the pace says; false if the node is stopping.
async fn read(shared: &Arc<Shared>, (disk, segment): (usize, SegmentAddress)) -> bool {
    let began = shared.environment.clock.monotonic();
    match shared.store.scrub_segment(disk, segment, shared.options.scrub_bytes_per_second).await {
        Ok(scrubbed) => {
            shared.scrub.verified_bytes.fetch_add(scrubbed.bytes, Ordering::Relaxed);
            shared.scrub.damaged_records.fetch_add(scrubbed.damaged_records, Ordering::Relaxed);
            if scrubbed.damaged_records > 0 {
                tracing::error!(%segment, damaged = scrubbed.damaged_records, blobs = scrubbed.names.len(), "scrub found damage");
                shared.repair.wake();
            }
        }
        Err(error) => tracing::warn!(%segment, %error, "a segment could not be scrubbed"),
    }
    let worked = shared.environment.clock.monotonic().saturating_sub(began);
    shared.foreground.yield_after(&shared.environment, worked).await;
    !shared.is_stopping()
}
