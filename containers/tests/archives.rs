//! Archives, compressed streams and disk images that other programs made, through the conformance suite.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod samples;

use lazaret_containers::conformance::{self, Case, eicar, take_apart};
use lazaret_containers::{ContainerFormat, Limit, Limits, Passwords};

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
        let is_nested = ["rpm", "pe", "utf16"].contains(&sample.format);
        let is_short = ["lz4", "lzip-two"].contains(&sample.name);
        assert!(
            is_nested || is_short || whole.windows(squares.len()).any(|window| window == squares.as_bytes()),
            "{}: {:?}",
            sample.name,
            taken.members.iter().map(|(name, content)| (name, content.len())).collect::<Vec<_>>()
        );
    });
}

/// A file that is no container of the table's, or no whole one.
fn stray(digits: &str) -> Vec<u8> {
    samples::unpack(digits)
}

#[test]
fn a_first_volume_alone_is_told_as_one() {
    let taken = take_apart(&stray(include_str!("samples/rar-5-volume.hex")), &Passwords::NONE);
    assert!(taken.outcome.broken.as_deref().is_some_and(|reason| reason.contains("volume")), "{:?}", taken.outcome);
    let whole = SAMPLES.iter().find(|sample| sample.name == "7z-lzma").unwrap().file();
    let taken = take_apart(&whole[..200], &Passwords::NONE);
    assert!(taken.outcome.broken.as_deref().is_some_and(|reason| reason.contains("volume")), "{:?}", taken.outcome);
}

#[test]
fn a_dictionary_of_four_gibibytes_is_a_limit_and_costs_nothing() {
    let small = Limits { files: 3, ..conformance::limits() };
    for (name, format) in [("7z-lzma", "7z"), ("lzma", "lzma"), ("nsis-lzma-solid", "nsis")] {
        let sample = SAMPLES.iter().find(|sample| sample.name == name).unwrap();
        let mut file = sample.file();
        // The properties of LZMA: lc 3, lp 0, pb 2, and the dictionary's length behind.
        let at = file.windows(4).rposition(|four| matches!(four, [0x5d, _, _, _]) && four[1] == 0).unwrap();
        file[at + 1..at + 5].copy_from_slice(&u32::MAX.to_le_bytes());
        let format = ContainerFormat::named(format).unwrap();
        let taken = conformance::take_apart_within(format, &file, 0, &Passwords::NONE, small.clone());
        assert!(!taken.outcome.is_complete(), "{name}");
    }
}

#[test]
fn limits_of_count_and_length_hold_in_each_format() {
    each(|sample, case| {
        let format = ContainerFormat::named(sample.format).unwrap();
        let run = |limits: Limits| conformance::take_apart_within(format, case.file, 0, &case.passwords, limits);
        let whole = run(conformance::limits());
        if whole.members.len() > 1 {
            let taken = run(Limits { files: 1, ..conformance::limits() });
            assert_eq!((taken.outcome.limit, taken.members.len()), (Some(Limit::Files), 1), "{}", sample.name);
        }
        let taken = run(Limits { produced_bytes: 10, ..conformance::limits() });
        assert_eq!(taken.outcome.limit, Some(Limit::Size), "{}", sample.name);
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
