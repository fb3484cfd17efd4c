//! Seeds without a violation, and seeds that replay.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};

use lazaret_simulation::{Options, simulate};

const SEEDS: u64 = 400;

#[test]
fn seeds_pass() {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    let options = Options::new(seed);
                    let outcome = simulate(options);
                    if let Some(violation) = &outcome.violation {
                        panic!("{violation}\nreplay: {}\n{}", options.replay_command(), outcome.recent.join("\n"));
                    }
                }
            });
        }
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 7, 23] {
        let (first, second) = (simulate(Options::new(seed)), simulate(Options::new(seed)));
        assert_eq!(first, second, "seed {seed}");
        assert!(first.events > 50, "{first:?}");
    }
}
