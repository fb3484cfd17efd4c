//! Files of every format, changed at random for as long as it is told: `make soak`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "some of what it tells is for other tests")]
mod samples;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

use lazaret_containers::Passwords;
use lazaret_containers::conformance::{Random, mutate, take_apart};
use samples::SAMPLES;

#[test]
#[ignore = "runs as long as LAZARET_SOAK_SECONDS says"]
fn random_changes_never_panic() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let end = Instant::now() + Duration::from_secs(number("LAZARET_SOAK_SECONDS").unwrap_or(60));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let first = number("LAZARET_SEED").unwrap_or(now);
    let files: Vec<_> = SAMPLES.iter().map(|sample| (sample, sample.file())).collect();
    let mut rounds = 0;
    while Instant::now() < end {
        let seed = first.wrapping_add(rounds);
        let mut random = Random(seed);
        let (sample, file) = &files[random.below(files.len())];
        let mut file = file.clone();
        for _ in 0..=random.below(8) {
            mutate(&mut file, &mut random);
        }
        let taken = catch_unwind(AssertUnwindSafe(|| take_apart(&file, &Passwords::NONE)));
        assert!(taken.is_ok(), "{} with LAZARET_SEED={seed}", sample.name);
        rounds += 1;
    }
    println!("{rounds} files from LAZARET_SEED={first} on");
}
