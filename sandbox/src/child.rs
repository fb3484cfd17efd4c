//! The program of the processes in the sandbox: a zygote, the templates that it forks, and the job processes that those fork.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use rustix_sandbox as rustix;

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, set_child_subreaper, set_parent_process_death_signal, wait, waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin};

use crate::channel::{Room, hear_with, tell};
use crate::confine::{Filters, data_bytes};
pub use crate::output::Output;
use crate::sys::{Forked, Mapped, SingleThreaded, close_inherited, exit_now, fork};
use crate::wire::{BLOCK_BYTES, BLOCKS, Begin, Ended, Ending, FromZygote, ToZygote};

/// The argument that makes a program a zygote instead of whatever else it is.
pub const ARGUMENT: &str = "sandboxed-process";

/// Exit code of a job process that could not confine itself, and so did nothing.
pub(crate) const EXIT_UNCONFINED: i32 = 120;
/// Exit code of a job process whose work panicked where nothing caught it.
pub(crate) const EXIT_PANICKED: i32 = 121;

/// How much is said of why a zygote can't begin.
const REASON_CHARS_MAX: usize = 200;

/// What is done in a job process.
pub trait Work {
    /// Called once in each zygote, before there is anything to fear, with what its jobs are to have at hand, if the sandbox was
    /// given anything: every job finds it there without a copy. Does as well what each would do anew otherwise, such as asking
    /// the processor what it can, which takes long in a virtual machine. An error in words refuses what was given.
    fn prepare(&mut self, _databases: &[&[u8]]) -> Result<(), String> {
        Ok(())
    }
    /// Does one job. The process ends with it. An error says that the other side is gone.
    fn work(&mut self, input: &File, output: Output) -> io::Result<()>;
}

/// If the command line says so, does the work of a zygote, until the socket on standard input ends. A program whose sandbox
/// re-executes it calls this first of all in `main`, before it makes threads or opens files.
pub fn run_if_asked(work: &mut dyn Work) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        return None;
    }
    // Nobody reads what a zygote would say besides what it tells on its socket.
    Some(zygote(work).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

/// What every process that a zygote forks finds ready.
struct Prepared {
    single: SingleThreaded,
    filters: Filters,
    /// How much memory of its own a process has before it does anything.
    own_bytes: u64,
}

fn zygote(work: &mut dyn Work) -> io::Result<()> {
    close_inherited()?;
    let stdin = io::stdin();
    let Some((ToZygote::Prepare, given)) = hear_with(stdin.as_fd())? else { return Ok(()) };
    let prepared = match prepare(work, given) {
        Ok(prepared) => prepared,
        Err(reason) => {
            let reason = reason.chars().take(REASON_CHARS_MAX).collect();
            return tell(stdin.as_fd(), &FromZygote::Refused(reason));
        }
    };
    tell(stdin.as_fd(), &FromZygote::Ready)?;
    let own = getpid();
    while let Some((message, sockets)) = hear_with(stdin.as_fd())? {
        match message {
            ToZygote::Plant => {}
            ToZygote::End => {
                // Nobody else would see to it that they are gone.
                while !matches!(wait(WaitOptions::empty()), Err(rustix::io::Errno::CHILD)) {}
                break;
            }
            ToZygote::Prepare => return Err(io::ErrorKind::InvalidInput.into()),
        }
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        match fork(&prepared.single) {
            Ok(Forked::Child) => exit_now(i32::from(template(work, &prepared, own, sockets).is_err())),
            Ok(Forked::Parent(pid)) => {
                drop(sockets);
                // Not by a descriptor: a process without rights may send none while others on their way are more than it may open.
                tell(stdin.as_fd(), &FromZygote::Planted(pid.get()))?;
            }
            Err(error) => tell(stdin.as_fd(), &FromZygote::NotPlanted(error.to_string()))?,
        }
    }
    // If it was the worker that ended, what is left of it ends with this process.
    Ok(())
}

fn prepare(work: &mut dyn Work, given: Vec<OwnedFd>) -> Result<Prepared, String> {
    let words = |error: io::Error| error.to_string();
    let mapped: io::Result<Vec<Mapped>> = given.into_iter().map(|given| Mapped::sealed(&File::from(given))).collect();
    let mapped = mapped.map_err(words)?;
    work.prepare(&mapped.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>())?;
    drop(mapped);
    // Job processes whose template was killed are seen off by this one.
    set_child_subreaper(Some(getpid())).map_err(|error| words(error.into()))?;
    let single = SingleThreaded::check().map_err(words)?;
    let own_bytes = data_bytes().map_err(words)?;
    let filters = Filters::compile()?;
    filters.confine_template()?;
    Ok(Prepared { single, filters, own_bytes })
}

/// A template: forks a job process for each job that is told on its socket.
fn template(work: &mut dyn Work, prepared: &Prepared, zygote: Pid, sockets: Vec<OwnedFd>) -> io::Result<()> {
    let Ok([socket]) = <[OwnedFd; 1]>::try_from(sockets) else { return Err(io::ErrorKind::InvalidInput.into()) };
    // While a job is at work nobody here reads the socket that ends with the worker; the zygote does.
    set_parent_process_death_signal(Some(Signal::Kill))?;
    if getppid() != Some(zygote) {
        return Err(io::ErrorKind::NotFound.into());
    }
    // The zygote's socket is closed with this.
    dup2_stdin(&socket)?;
    drop(socket);
    let stdin = io::stdin();
    let own = getpid();
    // Each job process finds it made, and has it to itself.
    let room = Room::new();
    while let Some((begin, descriptors)) = hear_with::<Begin>(stdin.as_fd())? {
        let ending = match fork(&prepared.single) {
            Ok(Forked::Child) => exit_now(job(work, prepared, own, &begin, descriptors, room)),
            Ok(Forked::Parent(pid)) => {
                drop(descriptors);
                ending_of(pid.get())?
            }
            Err(_) => Ending::NotBegun,
        };
        tell(stdin.as_fd(), &Ended(ending))?;
    }
    Ok(())
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
fn job(
    work: &mut dyn Work,
    prepared: &Prepared,
    template: Pid,
    begin: &Begin,
    descriptors: Vec<OwnedFd>,
    room: Room,
) -> i32 {
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
    let memory_bytes = begin.memory_bytes.saturating_add(prepared.own_bytes);
    if let Err(reason) = prepared.filters.confine_job(begin.cpu_seconds, memory_bytes, output_bytes) {
        eprintln!("{reason}");
        return EXIT_UNCONFINED;
    }
    let output = Output::new(socket, File::from(memory), room);
    let input = File::from(input);
    match catch_unwind(AssertUnwindSafe(|| work.work(&input, output))) {
        Ok(_) => 0,
        Err(_) => EXIT_PANICKED,
    }
}
