//! The program in the sandbox, by itself, for the tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    lazaret_sandbox::child::run_if_asked(&mut lazaret_scan_worker::sandboxed()).unwrap_or(ExitCode::FAILURE)
}
