//! `lazaret bench`: how fast the parts are on this machine, with the limits they run against measured in the same run.

pub mod archive;
pub mod limits;
pub mod load;
pub mod report;
mod server;
pub mod store;
pub mod submit;

use std::process::ExitCode;

use crate::cli::BenchCommand;

/// Runs the command.
pub async fn run(command: BenchCommand) -> anyhow::Result<ExitCode> {
    match command {
        BenchCommand::Store(options) => store::run(options).await,
        BenchCommand::Archive(options) => archive::run(options).await,
        BenchCommand::Submit(options) => submit::run(options).await,
        BenchCommand::Report(options) => report::run(options).await,
    }
}
