//! The zygote and the templates that wait for jobs, on the worker's side.
//!
//! Nobody waits for a template: whoever finds none has one forked, so that threads that open one file inside another can't wait
//! for each other. The number is bounded by the threads and by how deep each of them nests; what is not needed in
//! ordinary times ends after its job.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix_sandbox as rustix;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::channel::{DESCRIPTORS_MAX, Room, hear, hear_with, pair, tell, tell_with, wait};
use crate::child::ARGUMENT;
use crate::memory::sealed_memory;
use crate::wire::{Begin, Ended, Ending, FromZygote, ToZygote};

/// What they cost together is a hundred times what starting a zygote does.
const ZYGOTE_JOBS_MAX: u32 = 10_000;
/// Most databases that jobs may have at hand.
pub const DATABASES_MAX: usize = DESCRIPTORS_MAX;
/// How long a zygote may take to begin: it compiles filters and makes ready what it was given, and on a busy machine waits for a
/// processor.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a zygote may take to fork a template.
const PLANT_MAX: Duration = Duration::from_secs(10);
/// How long a template may take to notice that its job process ended, and a zygote that its templates have. Large memories take a
/// while to be given back.
const END_MAX: Duration = Duration::from_secs(10);

/// How the sandbox uses the machine.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// The program that calls [`crate::child::run_if_asked`].
    pub program: PathBuf,
    /// How many templates are kept when they have nothing to do.
    pub idle_max: usize,
    /// How much memory a job process may have of its own, besides what it was forked with.
    pub memory_bytes: u64,
    /// After so many jobs a zygote is replaced, so that what one job learned of its address space is of no use for long.
    pub zygote_jobs_max: u32,
}

impl SandboxOptions {
    /// Re-executes this program, for so many threads, each of which usually has one file open, or one inside another.
    pub fn new(threads: usize) -> Self {
        Self {
            program: "/proc/self/exe".into(),
            idle_max: 2 * threads.max(1),
            memory_bytes: 240 << 20,
            zygote_jobs_max: ZYGOTE_JOBS_MAX,
        }
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
    current: Mutex<Current>,
    /// Job processes that ended as none should.
    lost: AtomicU64,
}

/// What jobs are begun with.
struct Current {
    zygote: Arc<Zygote>,
    /// Templates of this zygote.
    idle: Vec<Template>,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Starts a zygote and one template, to see whether it works.
    pub fn start(options: SandboxOptions) -> Result<Self, SandboxError> {
        let zygote = Arc::new(Zygote::start(&options, Loaded::default())?);
        let idle = vec![zygote.plant()?];
        let current = Mutex::new(Current { zygote, idle });
        Ok(Self { shared: Arc::new(Shared { options, current, lost: AtomicU64::new(0) }) })
    }

    /// Gives jobs that begin from now on these to have at hand, [`DATABASES_MAX`] at most. See [`crate::child::Work::prepare`]. Takes
    /// as long as preparing takes, during which jobs begin as before; if they are refused, that stays so. Two of these at once are
    /// not expected.
    pub fn load(&self, databases: Vec<Database>) -> Result<(), SandboxError> {
        let loaded = Loaded { generation: self.generation() + 1, databases };
        let new = Current { zygote: Arc::new(Zygote::start(&self.shared.options, loaded)?), idle: Vec::new() };
        let former = std::mem::replace(&mut *self.current(), new);
        // Without the lock: it may wait for processes.
        drop(former);
        Ok(())
    }

    /// Counts what was loaded.
    pub fn generation(&self) -> u64 {
        self.current().zygote.loaded.generation
    }

    /// How many job processes crashed, were killed by the kernel or said something senseless, since the start.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// The zygote's process id.
    pub fn process_id(&self) -> u32 {
        self.current().zygote.process.id()
    }

    pub(crate) fn count_lost(&self) {
        self.shared.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn options(&self) -> &SandboxOptions {
        &self.shared.options
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has jobs begin with another zygote from now on; not if what it is to take the place of has gone already.
    fn replace(&self, former: &Arc<Zygote>, new: Zygote) {
        let mut new = Current { zygote: Arc::new(new), idle: Vec::new() };
        let mut current = self.current();
        if Arc::ptr_eq(former, &current.zygote) {
            std::mem::swap(&mut *current, &mut new);
        }
        // Without the lock: it may wait for processes.
        drop(current);
        drop(new);
    }

    /// Begins a job.
    pub(crate) fn begin(&self, begin: &Begin, descriptors: &[BorrowedFd<'_>; 4]) -> Result<Template, SandboxError> {
        let failed = |source| SandboxError::Channel { operation: "give a job to", source };
        // One that waited may have died meanwhile, whatever the reason: the next one shows whether it is the rule.
        loop {
            let idle = self.current().idle.pop();
            let Some(mut idle) = idle else { break };
            if idle.begin(begin, descriptors).is_ok() {
                self.renew(&idle.zygote);
                return Ok(idle);
            }
        }
        let zygote = self.current().zygote.clone();
        let mut template = match zygote.plant() {
            Ok(template) => template,
            // A zygote that was killed is no reason to open nothing any more.
            Err(_) => {
                self.replace(&zygote, Zygote::start(&self.shared.options, zygote.loaded.clone())?);
                let zygote = self.current().zygote.clone();
                zygote.plant()?
            }
        };
        template.begin(begin, descriptors).map_err(failed)?;
        self.renew(&template.zygote);
        Ok(template)
    }

    /// Counts a job; replaces a zygote that has had its number.
    fn renew(&self, zygote: &Arc<Zygote>) {
        let jobs = zygote.jobs.fetch_add(1, Ordering::Relaxed);
        if !jobs.wrapping_add(1).is_multiple_of(self.shared.options.zygote_jobs_max.max(1))
            || !Arc::ptr_eq(zygote, &self.current().zygote)
        {
            return;
        }
        // If there can't be another one now, this one goes on.
        if let Ok(new) = Zygote::start(&self.shared.options, zygote.loaded.clone()) {
            self.replace(zygote, new);
        }
    }

    /// Takes back a template whose job is done.
    pub(crate) fn put_back(&self, template: Template) {
        let mut current = self.current();
        if Arc::ptr_eq(&template.zygote, &current.zygote) && current.idle.len() < self.shared.options.idle_max {
            current.idle.push(template);
        } else {
            drop(current);
            drop(template);
        }
    }
}

/// Something that jobs are to have at hand, in memory that the sandbox shares.
#[derive(Debug, Clone)]
pub struct Database(Arc<File>);

impl Database {
    /// With this content.
    pub fn new(content: &[u8]) -> io::Result<Self> {
        Ok(Self(Arc::new(sealed_memory("database", content)?)))
    }
}

/// What a zygote was given.
#[derive(Clone, Default)]
struct Loaded {
    generation: u64,
    databases: Vec<Database>,
}

/// A zygote. Dropped, which it is when the last of its templates is, it ends.
struct Zygote {
    process: Child,
    control: Mutex<OwnedFd>,
    /// It did not answer in time: what it says later would be taken for the answer to something else.
    broken: AtomicBool,
    loaded: Loaded,
    jobs: AtomicU32,
}

impl Zygote {
    fn start(options: &SandboxOptions, loaded: Loaded) -> Result<Self, SandboxError> {
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
        let zygote = Self {
            process,
            control: Mutex::new(control),
            broken: AtomicBool::new(false),
            loaded,
            jobs: AtomicU32::new(0),
        };
        let given: Vec<BorrowedFd<'_>> = zygote.loaded.databases.iter().map(|database| database.0.as_fd()).collect();
        let told = match given.as_slice() {
            [] => tell(&*zygote.control(), &ToZygote::Prepare),
            given => tell_with(&*zygote.control(), &ToZygote::Prepare, given),
        };
        drop(given);
        // One that ended at once says so by what it does not say.
        let heard = told.and_then(|()| heard(&zygote.control(), START_MAX));
        match heard.map_err(failed)? {
            Some(FromZygote::Ready) => Ok(zygote),
            Some(FromZygote::Refused(reason)) => Err(SandboxError::Start(reason)),
            _ => Err(SandboxError::Start("it ended before it was ready".to_owned())),
        }
    }

    fn control(&self) -> MutexGuard<'_, OwnedFd> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it fork a template.
    fn plant(self: &Arc<Self>) -> Result<Template, SandboxError> {
        let failed = |source| SandboxError::Channel { operation: "fork", source };
        let (control, theirs) = pair().map_err(failed)?;
        let zygotes = self.control();
        if self.broken.load(Ordering::Relaxed) {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        }
        let told = tell_with(&*zygotes, &ToZygote::Plant, &[theirs.as_fd()]);
        let heard = told.and_then(|()| heard(&zygotes, PLANT_MAX));
        self.broken.store(!matches!(heard, Ok(Some(_))), Ordering::Relaxed);
        match heard.map_err(failed)? {
            Some(FromZygote::Planted(pid)) => {
                // Still under the lock: the zygote waits for its children when it is told the next thing, and not before.
                let pid = Pid::from_raw(pid).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
                let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
                Ok(Template { zygote: self.clone(), process, control, room: Room::new(), busy: false })
            }
            Some(FromZygote::NotPlanted(reason)) => Err(SandboxError::Start(reason)),
            _ => Err(failed(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

fn heard(control: &OwnedFd, most: Duration) -> io::Result<Option<FromZygote>> {
    if !wait(control, most)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(hear_with(control)?.map(|(message, _)| message))
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // It sees its children off, whom nobody else would wait for, and ends, which ends the socket.
        let control = self.control();
        if tell(&*control, &ToZygote::End).is_ok() {
            let _ = wait(&*control, END_MAX);
        }
        drop(control);
        // It may have ended already; then there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A template process. Dropped, it and its job process are killed.
pub(crate) struct Template {
    zygote: Arc<Zygote>,
    process: OwnedFd,
    control: OwnedFd,
    room: Room,
    /// A job was begun, and its end was not heard of.
    busy: bool,
}

impl Template {
    /// What its jobs have at hand.
    pub fn generation(&self) -> u64 {
        self.zygote.loaded.generation
    }

    fn begin(&mut self, begin: &Begin, descriptors: &[BorrowedFd<'_>; 4]) -> io::Result<()> {
        if self.busy {
            self.ending()?;
        }
        tell_with(&self.control, begin, descriptors)?;
        self.busy = true;
        Ok(())
    }

    /// How the job process ended; waits for that.
    pub fn ending(&mut self) -> io::Result<Ending> {
        if !wait(self.control.as_fd(), END_MAX)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match hear(&self.control, &mut self.room)? {
            Some(Ended(ending)) => {
                self.busy = false;
                Ok(ending)
            }
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ = pidfd_send_signal(&self.process, Signal::Kill);
    }
}
