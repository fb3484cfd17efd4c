//! A job process at work, on the worker's side of its channel.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use lazaret_containers::container::display_name;
use lazaret_containers::windows::{WINDOW_BYTES_MAX, WINDOWS};
use lazaret_containers::{ExtractionOutcome, Halt, Limit, Turn};

use crate::channel::{Room, hear, pair, tell, tell_at_once, wait};
use crate::child::{EXIT_PANICKED, EXIT_UNCONFINED};
use crate::memory::shared_memory;
use crate::pool::{Sandbox, SandboxError, Template};
use crate::wire::{BLOCK_BYTES, BLOCKS, Begin, Ending, FromJob, RECORD_BYTES_MAX, Record, Records, Task, ToJob};

/// How often a wait looks up to see whether the job is still wanted.
const LOOK_UP: Duration = Duration::from_millis(50);
/// How much a process may say as it dies, and how much of that is quoted.
const LAST_WORDS_BYTES: u64 = 4096;
const QUOTE_CHARS_MAX: usize = 200;

/// A file's content, as the worker has it.
pub trait Input {
    /// All of it, if it is in memory.
    fn whole(&self) -> Option<&[u8]>;
    /// `most_bytes` of it from `offset` on; fewer only where it ends.
    fn read_at(&self, offset: u64, most_bytes: u64) -> io::Result<Vec<u8>>;
    /// Is told now and then how many bytes of it the job process says it has read, which counts twice what it reads twice.
    fn was_read(&self, _bytes: u64) {}
    /// Which members are to be handed out, if the request says that it is shared. It may take its time.
    fn turn(&self, _turn: Turn) -> Option<Range<u32>> {
        None
    }
    /// Is told how many members a shared container has, if the walk came to its end.
    fn walked(&self, _members: u32) {}
}

/// Why a job process says no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was ended, since it is no longer wanted or its time is over.
    Halted(Halt),
    /// It ended, for a limit that the kernel enforced or for a fault of its own, in words.
    Failed(Option<Limit>, String),
}

impl Ended {
    /// What that means for the container that was being taken apart.
    pub fn note(self, outcome: &mut ExtractionOutcome) {
        match self {
            Self::Halted(halt) => outcome.note_halt(halt),
            Self::Failed(Some(limit), _) => outcome.note_limit(limit),
            Self::Failed(None, reason) => outcome.note_broken(reason),
        }
    }
}

/// Whether a job is still wanted.
pub(crate) type Check<'c> = &'c dyn Fn() -> Result<(), Halt>;

/// A job process. Dropped while it waits for a command, it ends and its template takes the next job; at any other time both
/// are killed.
pub(crate) struct Job {
    sandbox: Sandbox,
    /// Gone once the job is over.
    template: Option<Template>,
    socket: OwnedFd,
    input_memory: File,
    output_memory: File,
    last_words: File,
    length: u64,
    /// Whether it waits for a command.
    waits: bool,
    /// What came last: records, and how many of them were looked at.
    records: Vec<u8>,
    at: usize,
    /// Blocks that were told of. All but the last were taken.
    told: u64,
    /// What is left of the last: where it begins, and how long it is.
    content_offset: u64,
    content_bytes: usize,
    /// Whether the job process was told that it may write there again.
    gave_back: bool,
    room: Room,
}

impl Job {
    /// Begins a job, which has its file, or windows of it, in `input_memory`.
    pub fn begin(sandbox: &Sandbox, task: &Task, input_memory: File, cpu_seconds: u64) -> Result<Self, SandboxError> {
        let failed = |source| SandboxError::Channel { operation: "prepare the channel of", source };
        let (socket, theirs) = pair().map_err(failed)?;
        let output_memory = shared_memory("output", BLOCK_BYTES as u64 * BLOCKS).map_err(failed)?;
        let last_words = shared_memory("last words", LAST_WORDS_BYTES).map_err(failed)?;
        // Told first, so that the job process finds it waiting.
        tell(&socket, task).map_err(failed)?;
        let begin = Begin { cpu_seconds, memory_bytes: sandbox.options().memory_bytes };
        let descriptors = [theirs.as_fd(), input_memory.as_fd(), output_memory.as_fd(), last_words.as_fd()];
        let template = sandbox.begin(&begin, &descriptors)?;
        Ok(Self {
            sandbox: sandbox.clone(),
            template: Some(template),
            socket,
            input_memory,
            output_memory,
            last_words,
            length: task.length,
            // What its file is, it tells unasked.
            waits: task.containers.is_some(),
            records: Vec::new(),
            at: 0,
            told: 0,
            content_offset: 0,
            content_bytes: 0,
            gave_back: true,
            room: Room::new(),
        })
    }

    /// The sandbox that it is in.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Which of the things that the sandbox was given it has at hand; 0 once it is over.
    pub fn generation(&self) -> u64 {
        self.template.as_ref().map_or(0, Template::generation)
    }

    /// Whether it has at hand what the sandbox was given last.
    pub fn is_current(&self) -> bool {
        self.template.is_some() && self.generation() == self.sandbox.generation()
    }

    /// Tells it what to do.
    pub fn command(&mut self, command: &ToJob) -> Result<(), Ended> {
        self.waits = false;
        tell_at_once(&self.socket, command).map_err(|_| self.gone())
    }

    /// Notes that it waits for the next command.
    pub fn now_waits(&mut self) {
        self.waits = true;
    }

    /// What it answers to what it was asked.
    pub fn answer(&mut self, input: &dyn Input, check: Check<'_>) -> Result<Vec<u8>, Ended> {
        let Record::Answer(bytes) = self.record(input, check)? else { return Err(self.confused()) };
        let bytes = bytes as usize;
        if bytes > self.content_bytes {
            return Err(self.confused());
        }
        let mut answer = vec![0; bytes];
        if self.take_content(&mut answer).is_err() {
            return Err(self.confused());
        }
        self.waits = true;
        Ok(answer)
    }

    /// Puts a content into the input.
    pub fn hand_in(&mut self, content: &[u8]) -> Result<(), Ended> {
        match self.input_memory.write_all_at(content, 0) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.gone()),
        }
    }

    /// The job is over: its template takes the next one.
    pub fn give_back(&mut self) {
        if let Some(template) = self.template.take() {
            self.sandbox.put_back(template);
        }
    }

    /// The job is not wanted any more, whatever it is at.
    pub fn kill(&mut self) {
        self.template = None;
    }

    /// The next record.
    pub fn record(&mut self, input: &dyn Input, check: Check<'_>) -> Result<Record, Ended> {
        if self.at >= self.records.len() {
            self.next_block(input, check)?;
        }
        let rest = self.records.get(self.at..).unwrap_or_default();
        let record = rest.split_first_chunk().and_then(|(length, rest)| {
            let length = u32::from_le_bytes(*length) as usize;
            rest.get(..length).filter(|_| length <= RECORD_BYTES_MAX)
        });
        let Some(record) = record else { return Err(self.confused()) };
        let length = record.len();
        match postcard::from_bytes(record) {
            Ok(record) => {
                self.at += 4 + length;
                Ok(record)
            }
            Err(_) => Err(self.confused()),
        }
    }

    /// How much content is left in the block of the last record.
    pub fn content_bytes(&self) -> usize {
        self.content_bytes
    }

    /// Copies so much of the content out of the shared memory. An error if there is less.
    pub fn take_content(&mut self, into: &mut [u8]) -> io::Result<()> {
        if into.len() > self.content_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.output_memory.read_exact_at(into, self.content_offset)?;
        self.pass_over(into.len());
        Ok(())
    }

    /// Leaves so much of the content where it is.
    pub fn pass_over(&mut self, bytes: usize) {
        let bytes = bytes.min(self.content_bytes);
        self.content_bytes -= bytes;
        self.content_offset += bytes as u64;
    }

    /// Gives back the last block, and waits for the next.
    fn next_block(&mut self, input: &dyn Input, check: Check<'_>) -> Result<(), Ended> {
        if !std::mem::replace(&mut self.gave_back, true) {
            // A process that is gone needs no answer: it may have said all that it had to.
            let _ = tell_at_once(&self.socket, &ToJob::Copied);
        }
        loop {
            if self.template.is_none() {
                return Err(Ended::Failed(None, "the sandboxed process ended before".to_owned()));
            }
            match self.heard(check)? {
                FromJob::Block(Records(records), content_bytes, input_read) => {
                    input.was_read(input_read);
                    let content_bytes = content_bytes as usize;
                    if records.is_empty() || content_bytes > BLOCK_BYTES {
                        return Err(self.confused());
                    }
                    (self.records, self.at) = (records, 0);
                    self.content_offset = self.told % BLOCKS * BLOCK_BYTES as u64;
                    self.content_bytes = content_bytes;
                    self.told += 1;
                    self.gave_back = false;
                    return Ok(());
                }
                FromJob::Read(window, offset, bytes) => self.fill(input, window, offset, bytes)?,
                FromJob::Turn(turn, input_read) => {
                    input.was_read(input_read);
                    let range = input.turn(turn).map(|range| (range.start, range.end));
                    // A process that is gone needs no answer.
                    let _ = tell_at_once(&self.socket, &ToJob::Turn(range));
                }
            }
        }
    }

    fn heard(&mut self, check: Check<'_>) -> Result<FromJob, Ended> {
        loop {
            if let Err(halt) = check() {
                self.template = None;
                return Err(Ended::Halted(halt));
            }
            match wait(&self.socket, LOOK_UP) {
                Ok(false) => {}
                Ok(true) => break,
                Err(_) => return Err(self.gone()),
            }
        }
        match hear(&self.socket, &mut self.room) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.gone()),
            Err(_) => Err(self.confused()),
        }
    }

    /// Gives the job process the part of the file that it asks for.
    fn fill(&mut self, input: &dyn Input, window: u32, offset: u64, bytes: u64) -> Result<(), Ended> {
        if window as usize >= WINDOWS || bytes > WINDOW_BYTES_MAX {
            return Err(self.confused());
        }
        let wanted = bytes.min(self.length.saturating_sub(offset));
        let part = if input.whole().is_some() || wanted == 0 {
            Err(io::ErrorKind::InvalidInput.into())
        } else {
            input.read_at(offset, wanted)
        };
        let answer = match part {
            Ok(part) if !part.is_empty() && part.len() as u64 <= wanted => {
                let place = u64::from(window) * WINDOW_BYTES_MAX;
                self.input_memory.write_all_at(&part, place).map(|()| ToJob::Filled(part.len() as u64))
            }
            _ => Ok(ToJob::NotReadable),
        };
        match answer.and_then(|answer| tell_at_once(&self.socket, &answer)) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.gone()),
        }
    }

    /// The job process says what it can't: it is not what it was when it began.
    pub fn confused(&mut self) -> Ended {
        self.template = None;
        self.sandbox.count_lost();
        Ended::Failed(None, "the sandboxed process said something senseless".to_owned())
    }

    /// The job process is gone. Its template knows why.
    fn gone(&mut self) -> Ended {
        let ending = self.template.take().map(|mut template| {
            let ending = template.ending();
            if ending.is_ok() {
                self.sandbox.put_back(template);
            }
            ending
        });
        self.sandbox.count_lost();
        let words = self.last_words();
        match ending {
            Some(Ok(ending)) => why(ending, &words),
            _ => Ended::Failed(None, "the sandboxed process and its template are gone".to_owned()),
        }
    }

    fn last_words(&self) -> String {
        let mut words = vec![0; LAST_WORDS_BYTES as usize];
        // Zeros follow what was said; a reason that can't be read is a reason less.
        let _ = self.last_words.read_at(&mut words, 0);
        let said: Vec<u8> = words.into_iter().take_while(|byte| *byte != 0).collect();
        display_name(&said).chars().take(QUOTE_CHARS_MAX).collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // Its socket ends with this, and with it the process.
        if self.waits {
            self.give_back();
        }
    }
}

/// What the end of a job process means.
fn why(ending: Ending, words: &str) -> Ended {
    let failed = |reason: &str| {
        let said = if words.is_empty() { String::new() } else { format!(" ({words})") };
        Ended::Failed(None, format!("{reason}{said}"))
    };
    match ending {
        Ending::Killed(libc::SIGABRT) if words.contains("memory allocation of") => {
            Ended::Failed(Some(Limit::Memory), words.to_owned())
        }
        // Whoever uses up the machine's memory is ended by the kernel; nobody else kills without saying so.
        Ending::Killed(libc::SIGKILL) => Ended::Failed(Some(Limit::Memory), "it was killed".to_owned()),
        Ending::Killed(libc::SIGXCPU) => Ended::Failed(Some(Limit::Time), "its processor time is over".to_owned()),
        Ending::Killed(libc::SIGSYS) => failed("reading it led to a forbidden system call"),
        Ending::Killed(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGABRT) => {
            failed("reading it crashed")
        }
        Ending::Killed(signal) => failed(&format!("reading it ended with signal {signal}")),
        Ending::Exited(EXIT_UNCONFINED) => failed("the sandbox could not be closed around it"),
        Ending::Exited(EXIT_PANICKED) => failed("reading it panicked"),
        Ending::Exited(code) => failed(&format!("reading it ended early, with code {code}")),
        Ending::NotBegun => failed("no process could be made for it"),
    }
}
