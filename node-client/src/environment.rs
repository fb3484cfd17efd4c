//! The world outside: time, randomness, and where work runs. Everything that decides anything takes these from an
//! [`Environment`], so that a simulation can supply its own and a run can be replayed from a seed.
//!
//! The system's own implementations need a running tokio runtime for [`Clock::sleep`] and [`Spawner::spawn`].

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A future on the heap, as the traits here hand them around.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Time.
pub trait Clock: Send + Sync {
    /// Wall-clock time in Unix milliseconds. It may jump.
    fn unix_ms(&self) -> u64;

    /// Time since some fixed moment, for measuring intervals. A clock that never jumps may leave this as it is.
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.unix_ms())
    }

    /// Completes once `duration` has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Randomness fit for keys.
pub trait Random: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// Where concurrent work runs.
pub trait Spawner: Send + Sync {
    /// Runs `task` to its end beside the caller. Nobody waits for it.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Runs `run` on a thread of its own, for work that blocks for as long as it lives.
    fn spawn_thread(&self, name: &str, run: Box<dyn FnOnce() + Send>) -> std::io::Result<()>;

    /// Runs `run`, which may block for a while, where it holds up no task. A simulation runs it at once, on the spot.
    fn run_blocking(&self, run: Box<dyn FnOnce() + Send>);

    /// Whether [`Self::run_blocking`] runs its work on the spot: such work must wait for nobody.
    fn blocks_in_place(&self) -> bool {
        false
    }
}

/// Time, randomness and spawning, handed through to whatever needs them.
#[derive(Clone)]
pub struct Environment {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Where concurrent work runs.
    pub spawner: Arc<dyn Spawner>,
}

/// A future did not complete in the time it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no progress for {} ms", .0.as_millis())]
pub struct Elapsed(pub Duration);

impl Environment {
    /// The operating system's clock and randomness, tokio's timers and tasks.
    pub fn system() -> Self {
        Self { clock: Arc::new(SystemClock), random: Arc::new(SystemRandom), spawner: Arc::new(TokioSpawner) }
    }

    /// What `future` returns, if it does within `limit`.
    pub async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
        tokio::select! {
            // What is ready counts, however late it is polled.
            biased;
            value = future => Ok(value),
            () = self.clock.sleep(limit) => Err(Elapsed(limit)),
        }
    }

    /// What `work`, which may block for a while, returns; `None` if it panicked.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, outcome) = tokio::sync::oneshot::channel();
        self.spawner.run_blocking(Box::new(move || {
            // The caller may have gone away meanwhile.
            let _ = done.send(work());
        }));
        outcome.await.ok()
    }

    /// `N` random bytes.
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes);
        bytes
    }
}

struct SystemClock;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        // A clock set before 1970 reads as 1970: put times are then refused by nodes whose clocks are right.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn monotonic(&self) -> Duration {
        START.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        // Inside `async`, so that the timer is made where it is polled and not where it is named.
        Box::pin(async move { tokio::time::sleep(duration).await })
    }
}

struct SystemRandom;

impl Random for SystemRandom {
    #[allow(clippy::expect_used)]
    fn fill(&self, bytes: &mut [u8]) {
        // Without randomness there are no salts, keys or upload ids; going on with predictable ones would be worse than
        // stopping. Linux fails here only when getrandom(2) is forbidden to the process.
        getrandom::fill(bytes).expect("the operating system supplies randomness");
    }
}

struct TokioSpawner;

impl Spawner for TokioSpawner {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn spawn_thread(&self, name: &str, run: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        std::thread::Builder::new().name(name.to_owned()).spawn(run).map(|_| ())
    }

    fn run_blocking(&self, run: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(run);
    }
}
