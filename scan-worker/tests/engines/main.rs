//! Engines against what they really speak to: clamd, programs, files that change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod clamav;
mod external;
mod files;

use std::time::{Duration, Instant};

/// As in the program: what is measured of memory depends on it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

// SAFETY: as in the program's `allocator`, which switches this on later, since its processes in the sandbox may have no threads.
#[allow(unsafe_code)]
#[unsafe(export_name = "malloc_conf")]
static CONFIGURATION: &[u8] = b"oversize_threshold:0,background_thread:true\0";

/// Waits for what another thread or process does. Thirty seconds is long past what any of it takes.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}
