//! Seeds without a violation, and seeds that replay.
#![allow(clippy::unwrap_used, clippy::panic)]

use lazaret_simulation::{Counts, Options, simulate, simulate_many};

const SEEDS: u64 = 200;
const REPLAYED: u64 = 8;

#[test]
fn seeds_pass() {
    let (mut counts, mut failures) = (Counts::default(), Vec::new());
    simulate_many(Options::new(0), SEEDS, |outcome| {
        counts.add(&outcome.counts);
        if let Some(violation) = &outcome.violation {
            let replay = Options::new(outcome.seed).replay_command();
            failures.push(format!(
                "{}\nseed {}: {violation}\nreplay: {replay}",
                outcome.recent.join("\n"),
                outcome.seed
            ));
        }
        failures.is_empty()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{SEEDS} seeds: {counts}");
    // The runs must have come to the places that matter.
    assert!(counts.acknowledged > 10 * SEEDS && counts.found > 10 * SEEDS && counts.not_found > SEEDS / 2, "{counts}");
    assert!(counts.deletions > SEEDS / 4 && counts.holds > SEEDS / 4 && counts.maps > SEEDS / 4, "{counts}");
    assert!(counts.power_losses > SEEDS && counts.kills > SEEDS / 2 && counts.cuts > SEEDS / 4, "{counts}");
    assert!(counts.disks_lost > SEEDS / 40 && counts.flips > SEEDS / 40 && counts.disk_faults > SEEDS / 2, "{counts}");
    assert!(counts.clocks > SEEDS / 4 && counts.reckonings == 2 * SEEDS, "{counts}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..REPLAYED {
        let (first, second) = (simulate(Options::new(seed)), simulate(Options::new(seed)));
        assert!(first == second, "seed {seed} gives {first:?}\nand then {second:?}");
    }
    assert_ne!(simulate(Options::new(1)).fingerprint, simulate(Options::new(2)).fingerprint);
}
