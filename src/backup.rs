//! `lazaret backup` and `lazaret restore`: copies of the results file while it is in use, and their way back.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use lazaret_analysis::backup::{self, Copied};

use crate::cli::{BackupOptions, RestoreOptions};
use crate::user;

/// Makes a backup.
pub async fn backup(options: BackupOptions) -> anyhow::Result<ExitCode> {
    let results = user::gateway_config(&options.place)?.results;
    let copied = backup::backup(&results, &options.target).await?;
    writeln!(std::io::stdout(), "backed up {} to {}: {}", results.display(), options.target.display(), told(&copied))?;
    Ok(ExitCode::SUCCESS)
}

/// Puts a backup in the place of the results.
pub async fn restore(options: RestoreOptions) -> anyhow::Result<ExitCode> {
    let results = user::gateway_config(&options.place)?.results;
    let (copied, kept): (Copied, Option<PathBuf>) = backup::restore(&results, &options.from).await?;
    let mut out = std::io::stdout();
    writeln!(out, "restored {} from {}: {}", results.display(), options.from.display(), told(&copied))?;
    if let Some(kept) = kept {
        writeln!(out, "the former results are kept as {}", kept.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn told(copied: &Copied) -> String {
    format!("{} analyses ({} unfinished), {} bytes", copied.analyses, copied.unfinished, copied.bytes)
}
