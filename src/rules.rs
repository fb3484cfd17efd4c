//! The file of rules: checked on the command line, and followed by whoever goes by it.
//!
//! A file that changed is read when two looks in a row found it the same, so that one being written is not read half. A
//! broken one is refused with a line in the log, and the rules of before stay in force.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use comfy_table::{ContentArrangement, Table, presets};
use lazaret_analysis::rule::Rule;
use lazaret_analysis::{RuleSet, Rules};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::RulesCommand;

/// How often the file is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// `lazaret rules`.
pub fn run(command: RulesCommand) -> anyhow::Result<ExitCode> {
    match command {
        RulesCommand::Check { file } => check(&file),
    }
}

fn check(path: &Path) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(path).with_context(|| cannot_read(path))?;
    let set = parse(path, &text)?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["Rule", "For", "Engines", "File types", "Not scanned", "Limits"]);
    for rule in set.rules() {
        table.add_row([
            rule.name.clone(),
            audience(rule),
            listed(&rule.engines, "all"),
            types(rule),
            skipped(rule),
            limits(rule),
        ]);
    }
    let mut stdout = crate::output::stdout();
    writeln!(stdout, "{table}")?;
    let default = set.rules().first().map(|rule| rule.name.as_str()).unwrap_or_default();
    writeln!(stdout, "{}: {} rules, the default is {default:?}", path.display(), set.rules().len())?;
    Ok(ExitCode::SUCCESS)
}

fn listed<T: ToString>(items: &[T], none: &str) -> String {
    if items.is_empty() {
        return none.to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn audience(rule: &Rule) -> String {
    let roles = listed(&rule.roles, "everybody");
    if rule.user_agents.is_empty() { roles } else { format!("{roles}; {}", rule.user_agents.join(", ")) }
}

fn types(rule: &Rule) -> String {
    let types = &rule.file_types;
    let mut parts = Vec::new();
    if !types.blocked.is_empty() {
        parts.push(format!("not {}", listed(&types.blocked, "")));
    }
    if !types.allowed.is_empty() {
        parts.push(format!("only {}", listed(&types.allowed, "")));
    }
    parts.extend(types.mismatch.then(|| "no mismatch".to_owned()));
    parts.extend(types.spoofing.then(|| "no spoofing".to_owned()));
    if parts.is_empty() { "all".to_owned() } else { parts.join("; ") }
}

fn skipped(rule: &Rule) -> String {
    let skip = &rule.skip;
    let mut parts: Vec<String> = skip.types.iter().map(ToString::to_string).collect();
    parts.extend(skip.larger_than_bytes.map(|bytes| format!("over {bytes} bytes")));
    if !parts.is_empty() {
        parts.push(format!("-> {}", skip.code));
    }
    if !skip.hashes.is_empty() {
        parts.push(format!("{} by hash", skip.hashes.len()));
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(" ") }
}

fn limits(rule: &Rule) -> String {
    let limits = &rule.limits;
    let body = if rule.max_file_size_bytes == Rule::with_defaults("").max_file_size_bytes {
        String::new()
    } else {
        format!(", body {} bytes", rule.max_file_size_bytes)
    };
    format!(
        "depth {}, {} files, {} bytes, ratio {}, {} s{body}",
        limits.depth, limits.files, limits.produced_bytes, limits.ratio, limits.archive_seconds
    )
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read the rules {}", path.display())
}

fn parse(path: &Path, text: &str) -> anyhow::Result<RuleSet> {
    RuleSet::from_yaml(text).map_err(|error| anyhow!("{}: {error}", path.display()))
}

/// What shows that a file was changed; none as long as it is not there.
type Stamp = Option<(u64, u64, SystemTime)>;

async fn stamp(path: &Path) -> Stamp {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some((metadata.len(), metadata.ino(), metadata.modified().ok()?))
}

async fn load(path: &Path) -> anyhow::Result<RuleSet> {
    let text = tokio::fs::read_to_string(path).await.with_context(|| cannot_read(path))?;
    parse(path, &text)
}

/// The rules of a file, which follow it from then on: when it changes, and at once at SIGHUP.
pub async fn follow(path: &Path) -> anyhow::Result<Rules> {
    let first = stamp(path).await;
    let rules = Rules::from(load(path).await?);
    let hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    tokio::spawn(keep_current(path.to_owned(), rules.clone(), first, hangup));
    Ok(rules)
}

async fn keep_current(path: PathBuf, rules: Rules, first: Stamp, mut hangup: tokio::signal::unix::Signal) {
    let (mut tried, mut before) = (first, first);
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            _ = ticks.tick() => false,
            _ = hangup.recv() => true,
        };
        let now = stamp(&path).await;
        let settled = now != tried && now == before;
        before = now;
        if !asked && !settled {
            continue;
        }
        tried = now;
        match load(&path).await {
            Ok(set) => {
                tracing::info!(path = %path.display(), rules = set.rules().len(), "rules replaced");
                rules.replace(set);
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(path = %path.display(), error, "the new rules were refused, those of before stay");
            }
        }
    }
}
