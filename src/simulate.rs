//! `lazaret simulate`: whole clusters in virtual time, each run decided by its seed.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use lazaret_simulation::{Counts, Mutant, Options, Outcome, simulate_many};

use crate::cli::SimulateOptions;

/// Runs the command. Exit code 1 if a promise was broken.
pub fn run(options: &SimulateOptions) -> anyhow::Result<ExitCode> {
    let mutant = options.mutant.as_deref().and_then(Mutant::named);
    let first = Options { seed: options.seed, steps: options.steps, mutant };
    let (began, mut counts, mut violations, mut written) = (Instant::now(), Counts::default(), 0_u64, Ok(()));
    simulate_many(first, options.seeds, |outcome| {
        counts.add(&outcome.counts);
        violations += u64::from(outcome.violation.is_some());
        let replay = Options { seed: outcome.seed, ..first }.replay_command();
        written = print(outcome, &replay, options);
        written.is_ok()
    });
    written?;
    if !options.json && options.seeds > 1 {
        writeln!(
            crate::output::stdout(),
            "{} seeds of {} steps in {:.1} s, {violations} violations\n{counts}",
            options.seeds,
            options.steps,
            began.elapsed().as_secs_f64()
        )?;
    }
    Ok(if violations == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn print(outcome: &Outcome, replay: &str, options: &SimulateOptions) -> anyhow::Result<()> {
    let mut out = crate::output::stdout();
    if options.json {
        writeln!(out, "{}", serde_json::to_string(outcome)?)?;
        return Ok(());
    }
    if let Some(violation) = &outcome.violation {
        outcome.recent.iter().try_for_each(|event| writeln!(out, "{event}"))?;
        writeln!(out, "seed {}: {violation}\nreplay: {replay}", outcome.seed)?;
    } else if options.seeds == 1 {
        writeln!(
            out,
            "seed {}: no violation in {} steps, {} events, {:.0} s of virtual time\n{}\nfingerprint {}",
            outcome.seed, outcome.steps, outcome.events, outcome.seconds, outcome.counts, outcome.fingerprint
        )?;
    }
    Ok(())
}
