//! Every known-bad cluster is found out within 200 seeds; a simulation that misses one proves nothing.
#![allow(clippy::unwrap_used, clippy::panic)]

use lazaret_simulation::{Mutant, Options, simulate_many};

/// The seeds within which each must be found.
const SEEDS: u64 = 200;

fn is_found_out(mutant: Mutant) {
    let mut found = None;
    simulate_many(Options { mutant: Some(mutant), ..Options::new(0) }, SEEDS, |outcome| {
        if let Some(violation) = &outcome.violation {
            found.get_or_insert_with(|| format!("seed {}: {violation}", outcome.seed));
        }
        found.is_none()
    });
    let found = found.unwrap_or_else(|| panic!("{} was not found out within {SEEDS} seeds", mutant.name()));
    println!("{}: {found}", mutant.name());
}

#[test]
fn a_disk_that_never_syncs() {
    is_found_out(Mutant::SkipSync);
}

#[test]
fn an_early_acknowledgement() {
    is_found_out(Mutant::AcknowledgeEarly);
}

#[test]
fn an_adopted_unsynced_tail() {
    is_found_out(Mutant::AdoptUnsyncedTail);
}

#[test]
fn a_dropped_tombstone() {
    is_found_out(Mutant::DropTombstone);
}

#[test]
fn a_trusted_wrong_clock() {
    is_found_out(Mutant::TrustWrongClock);
}
