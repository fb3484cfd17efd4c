//! Whole clusters in one thread, in virtual time, under faults drawn from a seed.
//!
//! What runs is what ships: placement, the cluster client, the node's service and its engine. Simulated are the disk, the
//! index's forgetting, the clock, the network, randomness and the order in which tasks run. A model is told what clients
//! were told and what was broken on purpose, and says what must be true. The same seed gives the same run, event by event.
//!
//! It knows no HTTP, no scanning and no sockets, and does nothing in real time.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod random;

mod environment;
mod executor;
mod network;

mod counts;
mod model;
mod names;
mod world;

mod machine;
mod mutants;
mod operator;
mod workload;

mod faults;
mod reckoning;
mod run;
mod temper;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub use counts::Counts;
pub use mutants::Mutant;
use serde::Serialize;

use crate::executor::Executor;
use crate::run::Run;

/// Steps of a run unless told otherwise.
pub const STEPS_DEFAULT: u64 = 150;

/// What to simulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The seed, which decides everything.
    pub seed: u64,
    /// How often something is asked or broken.
    pub steps: u64,
    /// A promise to break.
    pub mutant: Option<Mutant>,
}

impl Options {
    /// A run of the default length.
    pub fn new(seed: u64) -> Self {
        Self { seed, steps: STEPS_DEFAULT, mutant: None }
    }

    /// The command that runs the same again.
    pub fn replay_command(&self) -> String {
        let mutant = self.mutant.map(|mutant| format!(" --mutant {}", mutant.name())).unwrap_or_default();
        format!("lazaret simulate --seed {} --steps {}{mutant}", self.seed, self.steps)
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The steps asked for.
    pub steps: u64,
    /// What was violated, if anything was.
    pub violation: Option<String>,
    /// Hash over all events and the order in which tasks ran: the same for the same seed.
    pub fingerprint: String,
    /// Events in all.
    pub events: u64,
    /// Virtual seconds that passed.
    pub seconds: f64,
    /// The most tasks there were at once.
    pub tasks_max: u64,
    /// What was done.
    pub counts: Counts,
    /// The latest events, oldest first, if something was violated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recent: Vec<String>,
}

/// Runs seeds from `first.seed` on, `count` of them, on all cores. `ended` is told of each in the order in which they end,
/// and says whether to go on.
pub fn simulate_many(first: Options, count: u64, ended: impl FnMut(&Outcome) -> bool + Send) {
    let next = AtomicU64::new(0);
    let ended = Mutex::new(ended);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let outcome = simulate(Options { seed: first.seed.wrapping_add(number), ..first });
            if !ended.lock().unwrap_or_else(PoisonError::into_inner)(&outcome) {
                next.store(count, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
}

/// Runs a seed.
pub fn simulate(options: Options) -> Outcome {
    let executor = Executor::new(options.seed);
    let run = Run::new(&executor, options.mutant);
    let world = std::sync::Arc::clone(&run.world);
    let ended = executor.run(run.run(options.steps));
    let violation = match ended {
        Ok(()) => world.model().violation().map(str::to_owned),
        Err(stuck) => {
            Some(world.model().violation().map_or_else(|| stuck.to_string(), |first| format!("{first}; {stuck}")))
        }
    };
    let counts = world.model().counts.clone();
    Outcome {
        seed: options.seed,
        steps: options.steps,
        recent: if violation.is_some() { executor.recent() } else { Vec::new() },
        violation,
        fingerprint: hex::encode(executor.fingerprint().as_bytes()),
        events: executor.events(),
        seconds: executor.now().as_secs_f64(),
        tasks_max: executor.tasks_max() as u64,
        counts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_leaves_nothing_behind() {
        let executor = Executor::new(7);
        let run = Run::new(&executor, None);
        let is_held = run.network.watch();
        executor.run(run.run(30)).unwrap();
        drop(executor);
        assert!(!is_held(), "a thousand seeds would take as much memory as a thousand clusters");
    }
}
