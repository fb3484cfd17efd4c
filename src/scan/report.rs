//! What `lazaret scan` prints, and the exit code that follows from it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};

use super::attendance::Unattended;
use super::client::Verdict;
use crate::output;

/// Codes that say "nobody can tell" rather than "blocked for a reason".
const UNDECIDED_CODES: [u64; 5] = [3, 10, 19, 25, 31];

/// One file, with its verdict or the reason why it has none.
pub struct Scanned {
    /// The file.
    pub path: PathBuf,
    /// Its verdict.
    pub outcome: anyhow::Result<Verdict>,
}

/// Collects verdicts: prints JSON at once, tables at the end in order of path.
pub struct Report {
    json: bool,
    rows: Vec<(PathBuf, [String; 4])>,
    files: u64,
    bytes: u64,
    blocked: u64,
    undecided: u64,
}

impl Report {
    /// An empty report.
    pub fn new(json: bool) -> Self {
        Self { json, rows: Vec::new(), files: 0, bytes: 0, blocked: 0, undecided: 0 }
    }

    /// Takes in one file.
    pub fn add(&mut self, scanned: Scanned) -> anyhow::Result<()> {
        self.files += 1;
        let Scanned { path, outcome } = scanned;
        match outcome {
            Ok(verdict) => {
                self.bytes += verdict.size_bytes;
                if UNDECIDED_CODES.contains(&verdict.code) {
                    self.undecided += 1;
                } else if !verdict.allowed {
                    self.blocked += 1;
                }
                if self.json {
                    writeln!(output::stdout(), "{}", verdict.document)?;
                } else {
                    let result = if verdict.allowed { "Allowed" } else { "Blocked" };
                    self.rows.push((path, [size_text(verdict.size_bytes), result.into(), verdict.text, verdict.found]));
                }
            }
            Err(error) => {
                self.undecided += 1;
                let reason = format!("{error:#}");
                if self.json {
                    let line = serde_json::json!({ "path": path.to_string_lossy(), "err": reason });
                    writeln!(output::stdout(), "{line}")?;
                } else {
                    let verdict = if error.is::<Unattended>() { "Not scanned yet" } else { "Not submitted" };
                    self.rows.push((path, [String::new(), "Error".into(), verdict.into(), reason]));
                }
            }
        }
        Ok(())
    }

    /// Prints what is left to print and returns the exit code.
    pub fn finish(mut self, elapsed: Duration) -> anyhow::Result<ExitCode> {
        let summary = self.summary(elapsed);
        if self.json {
            // Standard output is one document a file and nothing else.
            let _ = writeln!(io::stderr(), "{summary}");
        } else {
            self.rows.sort();
            let mut table = Table::new();
            table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
            table.set_header(["File", "Size", "Result", "Verdict", "Found"]);
            for (path, cells) in &self.rows {
                table.add_row([shown(path)].iter().chain(cells));
            }
            writeln!(output::stdout(), "{table}\n{summary}")?;
        }
        Ok(self.exit_code())
    }

    fn exit_code(&self) -> ExitCode {
        match (self.blocked, self.undecided) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(2),
            _ => ExitCode::from(1),
        }
    }

    fn summary(&self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let megabytes = self.bytes as f64 / 1e6;
        format!(
            "{} files, {megabytes:.1} MB, {seconds:.2} s, {:.1} files/s, {:.1} MB/s: {} allowed, {} blocked, {} undecided",
            self.files,
            self.files as f64 / seconds,
            megabytes / seconds,
            self.files - self.blocked - self.undecided,
            self.blocked,
            self.undecided,
        )
    }
}

/// A path without what would steer a terminal.
fn shown(path: &Path) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_unicode().to_string() } else { c.to_string() };
    path.to_string_lossy().chars().map(escaped).collect()
}

fn size_text(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
