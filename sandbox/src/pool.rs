//! The templates that wait for jobs, on the worker's side.
//!
//! Nobody waits for a template: whoever finds none starts one, so that threads that open one file inside another can't wait
//! for each other. The number is bounded by the threads and by how deep each of them nests; what is not needed in
//! ordinary times ends after its job.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::channel::{MESSAGE_BYTES_MAX, hear, pair, tell_with, wait};
use crate::child::ARGUMENT;
use crate::wire::{Begin, Ending, FromTemplate};

/// After so many jobs a template is replaced, so that what one job learned of its address space is of no use for long.
pub const JOBS_PER_TEMPLATE_MAX: u32 = 10_000;
/// How long a template may take to begin: it compiles filters, and on a busy machine waits for a processor.
const START_MAX: Duration = Duration::from_secs(30);
/// How long a template may take to notice that its job process ended. Large memories take a while to be given back.
const END_MAX: Duration = Duration::from_secs(10);

/// How the sandbox uses the machine.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// The program that calls [`crate::child::run_if_asked`].
    pub program: PathBuf,
    /// How many templates are kept when they have nothing to do. To start one costs a hundred times as much as a job.
    pub idle_max: usize,
    /// How much memory a job process may have of its own, besides what it was forked with.
    pub memory_bytes: u64,
}

impl SandboxOptions {
    /// Re-executes this program, for so many threads, each of which usually has one file open, or one inside another.
    pub fn new(threads: usize) -> Self {
        Self { program: "/proc/self/exe".into(), idle_max: 2 * threads.max(1), memory_bytes: 240 << 20 }
    }
}

/// Why nothing can be opened in the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A process could not be started, or the kernel lacks something it must have.
    #[error("cannot start a sandboxed process: {0}")]
    Start(String),
    /// A channel failed.
    #[error("cannot {operation} a sandboxed process: {source}")]
    Channel {
        /// What was tried.
        operation: &'static str,
        /// What happened.
        source: io::Error,
    },
}

/// Runs jobs in processes of their own. Cheap to clone.
#[derive(Clone)]
pub struct Sandbox {
    shared: Arc<Shared>,
}

struct Shared {
    options: SandboxOptions,
    idle: Mutex<Vec<Template>>,
    /// Job processes that ended as none should.
    lost: AtomicU64,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Starts one template, to see whether it works.
    pub fn start(options: SandboxOptions) -> Result<Self, SandboxError> {
        let sandbox = Self { shared: Arc::new(Shared { options, idle: Mutex::default(), lost: AtomicU64::new(0) }) };
        let first = Template::start(&sandbox.shared.options)?;
        sandbox.put_back(first);
        Ok(sandbox)
    }

    /// How many job processes crashed, were killed by the kernel or said something senseless, since the start.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn count_lost(&self) {
        self.shared.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn options(&self) -> &SandboxOptions {
        &self.shared.options
    }

    fn take_idle(&self) -> Option<Template> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Begins a job.
    pub(crate) fn begin(&self, begin: &Begin, descriptors: &[BorrowedFd<'_>; 4]) -> Result<Template, SandboxError> {
        let failed = |source| SandboxError::Channel { operation: "give a job to", source };
        // One that waited may have died meanwhile, whatever the reason: the next one shows whether it is the rule.
        while let Some(mut idle) = self.take_idle() {
            if idle.begin(begin, descriptors).is_ok() {
                return Ok(idle);
            }
        }
        let mut template = Template::start(&self.shared.options)?;
        template.begin(begin, descriptors).map_err(failed)?;
        Ok(template)
    }

    /// Takes back a template whose job is done.
    pub(crate) fn put_back(&self, template: Template) {
        let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.shared.options.idle_max && template.jobs < JOBS_PER_TEMPLATE_MAX {
            idle.push(template);
        } else {
            drop(idle);
        }
    }
}

/// A template process. Dropped, it and its job process are killed.
pub(crate) struct Template {
    process: Child,
    control: OwnedFd,
    buffer: Vec<u8>,
    jobs: u32,
    /// A job was begun, and its end was not heard of.
    busy: bool,
}

impl Template {
    fn start(options: &SandboxOptions) -> Result<Self, SandboxError> {
        let failed = |error: io::Error| SandboxError::Start(error.to_string());
        let (control, theirs) = pair().map_err(failed)?;
        let process = Command::new(&options.program)
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| SandboxError::Start(format!("{}: {error}", options.program.display())))?;
        let mut template = Self { process, control, buffer: vec![0; MESSAGE_BYTES_MAX], jobs: 0, busy: false };
        match template.hear(START_MAX).map_err(failed)? {
            Some(FromTemplate::Ready) => Ok(template),
            Some(FromTemplate::Refused(reason)) => Err(SandboxError::Start(reason)),
            _ => Err(SandboxError::Start("it ended before it was ready".to_owned())),
        }
    }

    fn hear(&mut self, most: Duration) -> io::Result<Option<FromTemplate>> {
        if !wait(self.control.as_fd(), most)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        hear(&self.control, &mut self.buffer)
    }

    fn begin(&mut self, begin: &Begin, descriptors: &[BorrowedFd<'_>; 4]) -> io::Result<()> {
        if self.busy {
            self.ending()?;
        }
        tell_with(&self.control, begin, descriptors)?;
        self.busy = true;
        self.jobs += 1;
        Ok(())
    }

    /// How the job process ended; waits for that.
    pub fn ending(&mut self) -> io::Result<Ending> {
        match self.hear(END_MAX)? {
            Some(FromTemplate::Ended(ending)) => {
                self.busy = false;
                Ok(ending)
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
