//! Every known-bad cluster is found out within 200 seeds; a simulation that misses one proves nothing.
#![allow(clippy::unwrap_used, clippy::panic)]

use lazaret_simulation::{Mutant, Options, simulate};

/// The seeds within which each must be found.
const SEEDS: u64 = 200;

fn found(mutant: Mutant) -> u64 {
    for seed in 0..SEEDS {
        let outcome = simulate(Options { mutant: Some(mutant), ..Options::new(seed) });
        if let Some(violation) = outcome.violation {
            println!("{}: seed {seed}: {violation}", mutant.name());
            return seed;
        }
    }
    panic!("{} was not found out within {SEEDS} seeds", mutant.name());
}

#[test]
fn a_disk_that_never_syncs_is_found_out() {
    found(Mutant::SkipSync);
}

#[test]
fn an_early_acknowledgement_is_found_out() {
    found(Mutant::AcknowledgeEarly);
}

#[test]
fn an_adopted_unsynced_tail_is_found_out() {
    found(Mutant::AdoptUnsyncedTail);
}
