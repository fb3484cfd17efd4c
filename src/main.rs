//! The `lazaret` binary: parses the command line, starts telemetry, runs the command, turns its outcome into an exit code.

mod allocator;
mod backup;
mod bench;
mod blob;
mod cli;
mod cluster;
mod components;
mod config;
mod init;
mod logging;
mod metrics;
mod nodes;
mod notify;
mod offline;
mod output;
mod rules;
mod scan;
mod simulate;
#[cfg(feature = "otlp")]
mod traces;
mod up;
mod user;

use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use cli::{Cli, Command};

/// More than this nothing here has open at once.
const OPEN_FILES_MAX: u64 = 65_536;

fn main() -> ExitCode {
    // The scan worker starts this program again for what reads hostile bytes: nothing else may happen before.
    if let Some(code) = lazaret_sandbox::child::run_if_asked(&mut lazaret_scan_worker::sandboxed()) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::usage_error(&error),
    };
    start_telemetry(&cli.command);
    allocator::give_back_when_idle();
    allow_open_files();
    let outcome = run(cli.command);
    #[cfg(feature = "otlp")]
    traces::flush();
    logging::flush();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            output::complain(one_line(&error));
            ExitCode::from(2)
        }
    }
}

/// A node has hundreds of files open for each of its disks, and a gateway thousands of connections. Shells allow 1,024 unless asked for
/// what the system allows.
fn allow_open_files() {
    let limits = getrlimit(Resource::Nofile);
    let wanted = limits.maximum.map_or(OPEN_FILES_MAX, |most| most.min(OPEN_FILES_MAX));
    if limits.current.is_some_and(|now| now < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limits.maximum })
    {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Up(options) => up::run(options).await,
            Command::Scan(options) => scan::run(options).await,
            Command::Blob(command) => blob::run(command).await,
            Command::Cluster(command) => cluster::run(command).await,
            Command::Rules(command) => rules::run(command),
            Command::User(options) => user::run(options).await,
            Command::Backup(options) => backup::backup(options).await,
            Command::Restore(options) => backup::restore(options).await,
            Command::Simulate(options) => simulate::run(&options),
            Command::Bench(command) => bench::run(command).await,
            Command::StorageNode(options) => components::storage_node(options).await,
            Command::Gateway(options) => components::gateway(options).await,
            Command::ScanWorker(options) => components::scan_worker(options).await,
        }
    })
}

/// Logs go to stderr, filtered by `LAZARET_LOG` (`warn` unless told otherwise; a simulation's faults are no news). What has
/// a configuration starts them when it has read it.
fn start_telemetry(command: &Command) {
    match command {
        Command::StorageNode(_) | Command::Gateway(_) | Command::ScanWorker(_) | Command::Up(_) => {}
        Command::Simulate(_) => logging::start_plain("off"),
        _ => logging::start_plain("warn"),
    }
}

/// An error and its causes as one line; a cause that its parent's text already ends with is not repeated.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
