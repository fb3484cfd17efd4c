//! The program of the processes in the sandbox: a template, and the job processes that it forks.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use rustix_sandbox as rustix;

use rustix::process::{Pid, Signal, WaitOptions, getpid, getppid, set_parent_process_death_signal, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin};

use crate::channel::{hear_with, tell};
use crate::confine::Filters;
pub use crate::output::Output;
use crate::sys::{Forked, SingleThreaded, close_inherited, exit_now, fork};
use crate::wire::{BLOCK_BYTES, BLOCKS, Begin, Ending, FromTemplate};

/// The argument that makes a program a template instead of whatever else it is.
pub const ARGUMENT: &str = "sandboxed-process";

/// Exit code of a job process that could not confine itself, and so did nothing.
pub(crate) const EXIT_UNCONFINED: i32 = 120;
/// Exit code of a job process whose work panicked where nothing caught it.
pub(crate) const EXIT_PANICKED: i32 = 121;

/// What is done in a job process.
pub trait Work {
    /// Called once in each template, before there is anything to fear: does what every job would do anew otherwise, such as
    /// asking the processor what it can, which takes long in a virtual machine.
    fn warm(&self) {}
    /// Does one job. The process ends with it. An error says that the other side is gone.
    fn work(&self, input: &File, output: Output) -> io::Result<()>;
}

/// If the command line says so, does the work of a template, until the socket on standard input ends. A program whose sandbox
/// re-executes it calls this first of all in `main`, before it makes threads or opens files.
pub fn run_if_asked(work: &dyn Work) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        return None;
    }
    // Nobody reads what a template would say besides what it tells on its socket.
    Some(template(work).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

fn template(work: &dyn Work) -> io::Result<()> {
    close_inherited()?;
    work.warm();
    let stdin = io::stdin();
    let (single, filters) = match prepare() {
        Ok(prepared) => prepared,
        Err(reason) => return tell(stdin.as_fd(), &FromTemplate::Refused(reason)),
    };
    tell(stdin.as_fd(), &FromTemplate::Ready)?;
    let own = getpid();
    while let Some((begin, descriptors)) = hear_with::<Begin>(stdin.as_fd())? {
        let ending = match fork(&single) {
            Ok(Forked::Child) => exit_now(job(work, &filters, own, &begin, descriptors)),
            Ok(Forked::Parent(pid)) => {
                drop(descriptors);
                ending_of(pid.get())?
            }
            Err(_) => Ending::NotBegun,
        };
        tell(stdin.as_fd(), &FromTemplate::Ended(ending))?;
    }
    Ok(())
}

fn prepare() -> Result<(SingleThreaded, Filters), String> {
    let single = SingleThreaded::check().map_err(|error| error.to_string())?;
    let filters = Filters::compile()?;
    filters.confine_template()?;
    Ok((single, filters))
}

fn ending_of(pid: i32) -> io::Result<Ending> {
    loop {
        match waitpid(Pid::from_raw(pid), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) | Ok(None) => {}
            Err(error) => return Err(error.into()),
            Ok(Some(status)) => {
                let signal = status.terminating_signal().map(|signal| Ending::Killed(signal as i32));
                let exit = status.exit_status().map(|code| Ending::Exited(code as i32));
                return Ok(signal.or(exit).unwrap_or(Ending::NotBegun));
            }
        }
    }
}

/// A job process: confines itself, does its work, and tells its exit code.
fn job(work: &dyn Work, filters: &Filters, template: Pid, begin: &Begin, descriptors: Vec<OwnedFd>) -> i32 {
    let Ok([socket, input, memory, last_words]) = <[OwnedFd; 4]>::try_from(descriptors) else {
        return EXIT_UNCONFINED;
    };
    // The template's socket is closed with this: jobs come by it that are none of this process's business.
    let redirected = dup2_stdin(&socket).and_then(|()| dup2_stderr(&last_words));
    // Whoever ends the template ends its job; if the template ended before this, nobody would.
    let tied = set_parent_process_death_signal(Some(Signal::Kill)).is_ok() && getppid() == Some(template);
    if redirected.is_err() || !tied {
        return EXIT_UNCONFINED;
    }
    drop(last_words);
    let output_bytes = BLOCK_BYTES as u64 * BLOCKS;
    if let Err(reason) = filters.confine_job(begin.cpu_seconds, begin.memory_bytes, output_bytes) {
        eprintln!("{reason}");
        return EXIT_UNCONFINED;
    }
    let output = Output::new(socket, File::from(memory));
    let input = File::from(input);
    match catch_unwind(AssertUnwindSafe(|| work.work(&input, output))) {
        Ok(_) => 0,
        Err(_) => EXIT_PANICKED,
    }
}
