//! Digests of many files at once, on threads of their own.
//!
//! A thread takes up to sixteen files that have bytes waiting, lays them side by side into the lanes of vector registers and
//! works through them in short steps. At the end of each step lanes whose bytes are used up take their file's next piece,
//! or the next file that waits. The files' last blocks are gathered and closed together.
//!
//! Invariants:
//! - A file is in one place: with its owner alone (idle), in the queue of those that have bytes waiting (ready), or in a
//!   thread's lane. Everything but the hashing itself happens under one lock, held for microseconds.
//! - The bytes that wait in the pool stay under [`Settings::queued_bytes_max`] plus one piece. Past it, and past a share for
//!   each file, whoever brings more waits.
//! - A file that is alone never waits for company, unless it is there to its end and nobody waits for it. Any other waits at most
//!   [`Settings::linger`], and no longer than [`URGENT`] once its owner does.
//! - Whoever waits is woken: a thread that fails tells the owners of the files that it held.

mod state;
mod stream;
mod worker;

use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use stream::{Pending, Stream};

use crate::plan::Plan;
use crate::{Path, Selection};
use state::State;

/// How long a file waits for others to fill the lanes once somebody waits for it: a fraction of what the pool takes for
/// sixteen small files.
const URGENT: Duration = Duration::from_micros(200);
/// The bytes of one file that may wait: a few pieces of an upload, so that the next is there when a lane has done one.
const FILE_BYTES_MAX: usize = 1024 * 1024;
/// A file that ends within this is handed on whole, at its end.
const SHORT_BYTES: usize = 64 * 1024;
/// A file that is the only one and ends within this is digested by whoever waits for its end: a millisecond at most, of which
/// waking a thread, and being woken, would be a noticeable part.
const ALONE_BYTES: usize = 256 * 1024;

/// What can be set on a pool.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Threads. Default: as many as the machine runs at once.
    pub threads: NonZeroUsize,
    /// The most bytes that may wait in the pool, not counting a last piece that passes the bound. Default 64 MiB.
    pub queued_bytes_max: usize,
    /// How long files wait for others, to be digested together, while none of their owners waits. Default 10 ms.
    pub linger: Duration,
    /// The one path to use, for tests and measurements. Default: what a measurement at the start finds fastest.
    pub path: Option<Path>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            queued_bytes_max: 64 * 1024 * 1024,
            linger: Duration::from_millis(10),
            path: None,
        }
    }
}

/// A thread of the pool failed while it held the file, which is a defect of this crate. The file can be digested anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("computing a file's digests failed: a thread of the digest pool panicked")]
pub struct Lost;

/// Digests many files at once. Cheap to clone; the threads end when the last clone and the last stream are gone.
#[derive(Clone)]
pub struct Pool {
    handle: Arc<Handle>,
}

impl Pool {
    /// Starts the threads.
    pub fn new(settings: Settings) -> std::io::Result<Self> {
        let threads = settings.threads.get();
        let shared = Arc::new(Shared {
            plan: Plan::of(settings.path),
            state: Mutex::new(State::new(&settings)),
            work: Condvar::new(),
        });
        // Whatever threads there are end with the handle if a later one can't be started.
        let handle = Arc::new(Handle { shared });
        for n in 0..threads {
            let shared = handle.shared.clone();
            std::thread::Builder::new().name(format!("digests-{n}")).spawn(move || worker::run(&shared))?;
        }
        Ok(Self { handle })
    }

    /// The pool that all parts of a process share, with the default settings: the more files there are together, the fuller
    /// its lanes. Its threads are started when it is first asked for, and stay.
    pub fn of_process() -> std::io::Result<Self> {
        static SHARED: Mutex<Option<Pool>> = Mutex::new(None);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shared {
            Some(pool) => Ok(pool.clone()),
            None => Ok(shared.insert(Self::new(Settings::default())?).clone()),
        }
    }

    /// Begins a file.
    pub fn stream(&self, selection: Selection) -> Stream {
        Stream::new(self.clone(), selection)
    }

    /// Begins the digests of a content that is there to its end. Blocks while too many bytes wait for a thread.
    pub fn digest_blocking(&self, selection: Selection, content: bytes::Bytes) -> Pending {
        self.stream(selection).whole_blocking(content)
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

/// What owners and threads share.
struct Shared {
    plan: Plan,
    state: Mutex<State>,
    /// Told when a thread may find something to do.
    work: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock; if it did, the state would still be one between two assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the threads when the last owner is gone.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_end_with_the_last_owner() {
        let pool = Pool::new(Settings::default()).unwrap();
        let stream = pool.stream(Selection::ALL);
        let shared = Arc::downgrade(&pool.handle.shared);
        drop(pool);
        assert!(stream.finish_blocking().is_ok());
        // Each thread holds the shared state until it ends.
        while shared.upgrade().is_some() {
            std::thread::yield_now();
        }
    }
}
