//! d
#![allow(clippy::unwrap_used)]
use lazaret_simulation::*;
#[test]
fn compare() {
    let first: u64 = std::env::var("SEED").map_or(0, |s| s.parse().unwrap());
    let count: u64 = std::env::var("COUNT").map_or(1, |s| s.parse().unwrap());
    for seed in first..first + count {
        let a = events_of(seed);
        let b = events_of(seed);
        let fa = simulate(Options::new(seed));
        let fb = simulate(Options::new(seed));
        println!("seed {seed}: events same {} fingerprint same {}", a == b, fa.fingerprint == fb.fingerprint);
        for (i, (x, y)) in a.iter().zip(&b).enumerate() {
            if x != y {
                println!("{i}: {x}\n   {y}");
                for l in &a[i.saturating_sub(10)..i] {
                    println!("  {l}");
                }
                break;
            }
        }
    }
}
#[test]
fn many() {
    let first: u64 = std::env::var("SEED").map_or(0, |s| s.parse().unwrap());
    let count: u64 = std::env::var("COUNT").map_or(1, |s| s.parse().unwrap());
    let tail: usize = std::env::var("TAIL").map_or(30, |s| s.parse().unwrap());
    let steps: u64 = std::env::var("STEPS").map_or(STEPS_DEFAULT, |s| s.parse().unwrap());
    let mut counts = Counts::default();
    let mut bad = 0;
    let began = std::time::Instant::now();
    simulate_many(Options { steps, ..Options::new(first) }, count, |outcome| {
        counts.add(&outcome.counts);
        if let Some(violation) = &outcome.violation {
            bad += 1;
            let from = outcome.recent.len().saturating_sub(tail);
            if tail > 0 {
                println!("{}", outcome.recent[from..].join("\n"));
            }
            println!("seed {}: {violation}", outcome.seed);
        }
        true
    });
    println!("{count} seeds, {bad} violations, {:.1} s: {counts}", began.elapsed().as_secs_f64());
}
