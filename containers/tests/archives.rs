//! Archives, compressed streams and disk images that other programs made, through the conformance suite.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod samples;

use lazaret_containers::Passwords;
use lazaret_containers::conformance::{self, Case, eicar, take_apart};

use samples::{End, SAMPLES, Sample};

/// Random changes of each file, and of one that needs a password: each costs several key derivations.
const ROUNDS: u32 = 500;
const ROUNDS_ENCRYPTED: u32 = 20;

fn passwords(sample: &Sample) -> Passwords {
    // The right one comes last: all are tried.
    Passwords::new(["wrong".to_owned()].into_iter().chain(sample.password.map(str::to_owned)))
}

fn each(suite: impl Fn(&Sample, &Case<'_>)) {
    let only = std::env::var("LAZARET_SAMPLE").unwrap_or_default();
    for sample in SAMPLES.iter().filter(|sample| sample.name.starts_with(&only)) {
        println!("{}", sample.name);
        let (file, eicar) = (sample.file(), eicar());
        let case = Case::new(sample.format, &file, &eicar);
        suite(sample, &Case { passwords: passwords(sample), open_ended: sample.end == End::Open, ..case });
    }
}

#[test]
fn what_other_programs_made_comes_apart() {
    each(|_, case| conformance::comes_apart(case));
}

#[test]
fn a_cut_is_never_taken_for_the_whole() {
    each(|sample, case| {
        // Cut at every byte, each with its key derivations, takes minutes.
        if sample.end != End::Unknown && sample.password.is_none() {
            conformance::survives_cuts(case);
        }
    });
}

#[test]
fn random_changes_end_with_an_outcome() {
    each(|sample, case| {
        let rounds = if sample.password.is_some() { ROUNDS_ENCRYPTED } else { ROUNDS };
        conformance::survives_mutations(case, rounds);
    });
}

#[test]
fn the_squares_come_out_as_they_went_in() {
    let squares: String = (0..400).map(|number| format!("{}\n", number * number)).collect();
    each(|sample, case| {
        let taken = take_apart(case.file, &case.passwords);
        let whole: Vec<u8> = taken.members.iter().flat_map(|(_, content)| content.clone()).collect();
        let is_nested = ["rpm"].contains(&sample.format);
        let is_short = ["lz4", "lzip-two"].contains(&sample.name);
        assert!(
            is_nested || is_short || whole.windows(squares.len()).any(|window| window == squares.as_bytes()),
            "{}: {:?}",
            sample.name,
            taken.members.iter().map(|(name, content)| (name, content.len())).collect::<Vec<_>>()
        );
    });
}

#[test]
fn without_its_password_it_is_protected_and_not_broken() {
    for sample in SAMPLES.iter().filter(|sample| sample.password.is_some()) {
        for passwords in [Passwords::NONE, Passwords::new(["wrong".to_owned()])] {
            let taken = take_apart(&sample.file(), &passwords);
            assert!(taken.outcome.protected.is_some(), "{}: {:?}", sample.name, taken.outcome);
            assert!(taken.outcome.broken.is_none(), "{}: {:?}", sample.name, taken.outcome);
        }
    }
}
