//! What simulated parties take for the world: virtual time seen through a clock of their own, the run's randomness, and
//! tasks that end with the party.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use lazaret_node_client::environment::{BoxFuture, Clock, Environment, Random, Spawner};

use crate::executor::{Executor, Group};

/// The true time at which runs begin, in Unix milliseconds: some hour, and not at its beginning.
const START_MS: u64 = 500_000 * 3_600_000 + 600_000;

/// The true time in Unix milliseconds.
pub(crate) fn true_ms(executor: &Executor) -> u64 {
    START_MS + u64::try_from(executor.now().as_millis()).unwrap_or(u64::MAX - START_MS)
}

/// A party's clock: the true time and how far it is off.
pub(crate) struct SimClock {
    executor: Executor,
    ahead_ms: AtomicI64,
}

impl SimClock {
    pub(crate) fn new(executor: &Executor, ahead_ms: i64) -> Arc<Self> {
        Arc::new(Self { executor: executor.clone(), ahead_ms: AtomicI64::new(ahead_ms) })
    }

    /// Lets the clock jump to be `ahead_ms` ahead of true time.
    pub(crate) fn set_ahead(&self, ahead_ms: i64) {
        self.ahead_ms.store(ahead_ms, Ordering::Relaxed);
    }

    /// How far it is ahead of true time, in milliseconds.
    pub(crate) fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }
}

impl Clock for SimClock {
    fn unix_ms(&self) -> u64 {
        true_ms(&self.executor).saturating_add_signed(self.ahead_ms())
    }

    fn monotonic(&self) -> Duration {
        self.executor.now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.executor.sleep(duration))
    }
}

struct SimRandom(Executor);

impl Random for SimRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.decide(|decisions| decisions.fill(bytes));
    }
}

struct SimSpawner {
    executor: Executor,
    group: Group,
}

impl Spawner for SimSpawner {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.executor.spawn(self.group, task);
    }

    fn spawn_thread(&self, name: &str, _: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        Err(std::io::Error::other(format!("a simulated process has no threads, asked for {name}")))
    }

    fn run_blocking(&self, run: Box<dyn FnOnce() + Send>) {
        run();
    }

    fn blocks_in_place(&self) -> bool {
        true
    }
}

/// The world of a party whose tasks are `group`.
pub(crate) fn environment(executor: &Executor, clock: &Arc<SimClock>, group: Group) -> Environment {
    Environment {
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        random: Arc::new(SimRandom(executor.clone())),
        spawner: Arc::new(SimSpawner { executor: executor.clone(), group }),
    }
}
