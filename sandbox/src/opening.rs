//! A file that is being opened in the sandbox, on the worker's side.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use lazaret_containers::container::{display_name, hand_out};
use lazaret_containers::format::{CLAIMS_MAX, Found};
use lazaret_containers::{Budget, ExtractionOutcome, FileType, Halt, Limit, Limits, Passwords, Sink, TreeUse, Turn};
use rustix_sandbox as rustix;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::channel::{MESSAGE_BYTES_MAX, hear, pair, tell, wait};
use crate::child::{EXIT_PANICKED, EXIT_UNCONFINED};
use crate::pool::{Sandbox, SandboxError, Template};
use crate::wire::{BLOCK_BYTES, BLOCKS, Begin, Ending, FromJob, HEADER_BYTES_MAX, Record, Task, ToJob, WINDOW_BYTES};

/// How often a wait looks up to see whether the job is still wanted.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Processor time that a job may take beyond the seconds of its rule: to detect types, and to find out that the time is over.
const CPU_SECONDS_MORE: u64 = 5;
/// How much a process may say as it dies, and how much of that is quoted.
const LAST_WORDS_BYTES: u64 = 4096;
const QUOTE_CHARS_MAX: usize = 200;

/// A file's content, as the worker has it.
pub trait Input {
    /// All of it, if it is in memory.
    fn whole(&self) -> Option<&[u8]>;
    /// Up to `most_bytes` of it from `offset` on; at least one, unless it ends there.
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

/// What is to be opened.
#[derive(Debug, Clone)]
pub struct Request<'r> {
    /// The file's name, for showing.
    pub name: &'r str,
    /// Its length.
    pub length: u64,
    /// What it is, if that is known.
    pub containers: Option<&'r [Found]>,
    /// Whether it may be taken apart.
    pub extract: bool,
    /// Whether others take parts of it: then the input is asked which members are wanted.
    pub shared: bool,
    /// The limits of its tree.
    pub limits: &'r Limits,
    /// What of them is used.
    pub used: TreeUse,
    /// The passwords to try.
    pub passwords: &'r Passwords,
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

/// A file that is being opened.
pub struct Opening<'o> {
    sandbox: Sandbox,
    /// Gone once the job is over.
    template: Option<Template>,
    socket: OwnedFd,
    input: &'o dyn Input,
    input_memory: File,
    length: u64,
    output_memory: File,
    last_words: File,
    /// Blocks that were taken.
    taken: u64,
    block: Vec<u8>,
    at: usize,
    buffer: Vec<u8>,
}

impl Sandbox {
    /// Begins to open a file.
    pub fn open<'o>(&self, request: &Request<'_>, input: &'o dyn Input) -> Result<Opening<'o>, SandboxError> {
        self.open_from(request, 0, false, input)
    }

    /// What the program in the sandbox notes about a file that is in memory. See [`crate::Extraction`].
    pub fn note(
        &self,
        request: &Request<'_>,
        input: &dyn Input,
        check: &dyn Fn() -> Result<(), Halt>,
    ) -> Result<Vec<u8>, Ended> {
        let opened = self.open_from(request, 0, true, input);
        let mut opening = opened.map_err(|error| Ended::Failed(None, error.to_string()))?;
        let Record::Note(bytes) = opening.record(check)? else { return Err(opening.confused()) };
        let rest = opening.block.get(opening.at..).unwrap_or_default();
        let Some(note) = rest.get(..bytes as usize).map(<[u8]>::to_vec) else { return Err(opening.confused()) };
        opening.at += note.len();
        opening.finish(check);
        Ok(note)
    }

    /// The same, without its first so many containers.
    fn open_from<'o>(
        &self,
        request: &Request<'_>,
        skip: u32,
        note: bool,
        input: &'o dyn Input,
    ) -> Result<Opening<'o>, SandboxError> {
        let failed = |source| SandboxError::Channel { operation: "prepare the channel of", source };
        let (socket, theirs) = pair().map_err(failed)?;
        let input_memory = input_memory(input).map_err(failed)?;
        let output_memory = shared_memory("output", BLOCK_BYTES as u64 * BLOCKS).map_err(failed)?;
        let last_words = shared_memory("last words", LAST_WORDS_BYTES).map_err(failed)?;
        let task = Task {
            name: request.name.to_owned(),
            length: request.length,
            whole: input.whole().is_some(),
            note,
            containers: request.containers.map(<[Found]>::to_vec),
            skip,
            extract: request.extract,
            shared: request.shared,
            limits: request.limits.clone(),
            used: request.used,
            passwords: request.passwords.clone(),
        };
        // Told first, so that the job process finds it waiting.
        tell(&socket, &task).map_err(failed)?;
        let begin = Begin {
            cpu_seconds: request.limits.archive_seconds.saturating_add(CPU_SECONDS_MORE),
            memory_bytes: self.options().memory_bytes,
        };
        let descriptors = [theirs.as_fd(), input_memory.as_fd(), output_memory.as_fd(), last_words.as_fd()];
        let template = self.begin(&begin, &descriptors)?;
        Ok(Opening {
            sandbox: self.clone(),
            template: Some(template),
            socket,
            input,
            input_memory,
            length: request.length,
            output_memory,
            last_words,
            taken: 0,
            block: Vec::new(),
            at: 0,
            buffer: vec![0; MESSAGE_BYTES_MAX],
        })
    }
}

/// Shared memory of a fixed size.
fn shared_memory(name: &str, bytes: u64) -> io::Result<File> {
    let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, bytes)?;
    fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(File::from(memory))
}

fn input_memory(input: &dyn Input) -> io::Result<File> {
    let Some(whole) = input.whole() else { return shared_memory("input", WINDOW_BYTES) };
    let memory = memfd_create("input", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let memory = File::from(memory);
    memory.write_all_at(whole, 0)?;
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&memory, seals)?;
    Ok(memory)
}

impl Opening<'_> {
    /// What the file is. An error in words if that can't be told. Asked first, if the type was not known before.
    pub fn file_type(&mut self, check: &dyn Fn() -> Result<(), Halt>) -> Result<Result<FileType, String>, Ended> {
        match self.record(check)? {
            Record::Type(file_type) if file_type.containers.len() <= CLAIMS_MAX => Ok(Ok(file_type)),
            Record::NoType(reason) => Ok(Err(reason)),
            _ => Err(self.confused()),
        }
    }

    /// Hands out the members of all the file's containers. What ends the job early is in the outcome.
    pub fn members(
        mut self,
        request: &Request<'_>,
        found: &[Found],
        budget: &Budget,
        sink: &mut Sink<'_>,
    ) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        let mut done = 0;
        loop {
            match self.some_members(budget, sink, &mut outcome, &mut done) {
                Ok(()) => return outcome,
                Err(ended) => ended.note(&mut outcome),
            }
            done += 1;
            // The container that ended the process is given up; the file may be another one too.
            if outcome.is_over() || done >= found.len() {
                return outcome;
            }
            let request = Request { containers: Some(found), used: budget.tree_use(), ..request.clone() };
            match self.sandbox.open_from(&request, u32::try_from(done).unwrap_or(u32::MAX), false, self.input) {
                Ok(opening) => self = opening,
                Err(error) => {
                    outcome.note_broken(error.to_string());
                    return outcome;
                }
            }
        }
    }

    /// Hands out members until the job is done, and counts its containers.
    fn some_members(
        &mut self,
        budget: &Budget,
        sink: &mut Sink<'_>,
        outcome: &mut ExtractionOutcome,
        done: &mut usize,
    ) -> Result<(), Ended> {
        let check = || budget.check();
        loop {
            match self.record(&check)? {
                Record::Member { name, length_hint, file_type } => {
                    let name = display_name(name.as_bytes());
                    let mut content = Content { opening: self, check: &check, left: 0, ended: None };
                    let file_type = file_type.filter(|file_type| file_type.containers.len() <= CLAIMS_MAX);
                    let handed_out = hand_out_typed(name, length_hint, file_type, &mut content, budget, sink);
                    if let Err(halt) = handed_out {
                        // Whatever is left of the member is not wanted, nor is anything after it.
                        self.template = None;
                        return Err(Ended::Halted(halt));
                    }
                    content.finish()?;
                }
                Record::Outcome(part) => {
                    outcome.merge(part);
                    *done += 1;
                }
                Record::Walked(members) => self.input.walked(members),
                Record::Done => {
                    self.give_back();
                    return Ok(());
                }
                Record::Type(_) | Record::NoType(_) | Record::Data(_) | Record::MemberEnd(_) | Record::Note(_) => {
                    return Err(self.confused());
                }
            }
        }
    }

    /// The job is over: its template takes the next one.
    fn give_back(&mut self) {
        if let Some(template) = self.template.take() {
            self.sandbox.put_back(template);
        }
    }

    /// Waits for the end of a job that has nothing more to say: a file that is no container.
    pub fn finish(mut self, check: &dyn Fn() -> Result<(), Halt>) {
        if matches!(self.record(check), Ok(Record::Done)) {
            self.give_back();
        }
    }

    /// The next record's head.
    fn record(&mut self, check: &dyn Fn() -> Result<(), Halt>) -> Result<Record, Ended> {
        if self.at >= self.block.len() {
            self.next_block(check)?;
        }
        let rest = self.block.get(self.at..).unwrap_or_default();
        let header = rest.split_first_chunk().and_then(|(length, rest)| {
            let length = u32::from_le_bytes(*length) as usize;
            rest.get(..length).filter(|_| length <= HEADER_BYTES_MAX)
        });
        let Some(header) = header else { return Err(self.confused()) };
        let length = header.len();
        match postcard::from_bytes(header) {
            Ok(record) => {
                self.at += 4 + length;
                Ok(record)
            }
            Err(_) => Err(self.confused()),
        }
    }

    /// Copies the next block out of the shared memory.
    fn next_block(&mut self, check: &dyn Fn() -> Result<(), Halt>) -> Result<(), Ended> {
        loop {
            if self.template.is_none() {
                return Err(Ended::Failed(None, "the sandboxed process ended before".to_owned()));
            }
            match self.heard(check)? {
                FromJob::Block(bytes, input_read) => {
                    self.input.was_read(input_read);
                    let bytes = bytes as usize;
                    if bytes == 0 || bytes > BLOCK_BYTES {
                        return Err(self.confused());
                    }
                    self.block.resize(bytes, 0);
                    self.at = 0;
                    let offset = self.taken % BLOCKS * BLOCK_BYTES as u64;
                    if self.output_memory.read_exact_at(&mut self.block, offset).is_err() {
                        return Err(self.confused());
                    }
                    self.taken += 1;
                    // A process that is gone needs no answer: it may have said all that it had to.
                    let _ = tell(&self.socket, &ToJob::Copied);
                    return Ok(());
                }
                FromJob::Read(offset) => self.hand_in(offset)?,
                FromJob::Turn(turn, input_read) => {
                    self.input.was_read(input_read);
                    let range = self.input.turn(turn).map(|range| (range.start, range.end));
                    // A process that is gone needs no answer.
                    let _ = tell(&self.socket, &ToJob::Turn(range));
                }
            }
        }
    }

    fn heard(&mut self, check: &dyn Fn() -> Result<(), Halt>) -> Result<FromJob, Ended> {
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
        match hear(&self.socket, &mut self.buffer) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.gone()),
            Err(_) => Err(self.confused()),
        }
    }

    /// Gives the job process the part of the file that it asks for.
    fn hand_in(&mut self, offset: u64) -> Result<(), Ended> {
        let wanted = WINDOW_BYTES.min(self.length.saturating_sub(offset));
        let part = if self.input.whole().is_some() || wanted == 0 {
            Err(io::ErrorKind::InvalidInput.into())
        } else {
            self.input.read_at(offset, wanted)
        };
        let answer = match part {
            Ok(part) if !part.is_empty() && part.len() as u64 <= WINDOW_BYTES => {
                self.input_memory.write_all_at(&part, 0).map(|()| ToJob::Filled(part.len() as u64))
            }
            _ => Ok(ToJob::NotReadable),
        };
        match answer.and_then(|answer| tell(&self.socket, &answer)) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.gone()),
        }
    }

    /// The job process says what it can't: it is not what it was when it began.
    fn confused(&mut self) -> Ended {
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

/// [`hand_out`] for a member whose type is known.
fn hand_out_typed(
    name: String,
    length_hint: Option<u64>,
    file_type: Option<FileType>,
    content: &mut dyn Read,
    budget: &Budget,
    sink: &mut Sink<'_>,
) -> Result<(), Halt> {
    let mut file_type = file_type;
    hand_out(name, length_hint, content, budget, &mut |member| {
        sink(lazaret_containers::Member { file_type: file_type.take(), ..member })
    })
    .map(|_| ())
}

/// The content of a member, as it comes.
struct Content<'c, 'o> {
    opening: &'c mut Opening<'o>,
    check: &'c dyn Fn() -> Result<(), Halt>,
    /// How much of the current piece is still to be read.
    left: usize,
    /// How the member ended, once it did.
    ended: Option<Result<(), Ended>>,
}

impl Content<'_, '_> {
    /// How the process ended, if it ended in this member. A member that was not read to its end leaves the rest behind.
    fn finish(mut self) -> Result<(), Ended> {
        while self.ended.is_none() {
            self.skip();
        }
        self.ended.unwrap_or(Ok(()))
    }

    fn skip(&mut self) {
        self.opening.at += std::mem::take(&mut self.left);
        // What it says is heard by whoever asks for the end.
        let _ = self.next_piece();
    }

    /// Takes the next piece's head. False at the member's end.
    fn next_piece(&mut self) -> io::Result<bool> {
        match self.opening.record(self.check) {
            Ok(Record::Data(bytes)) => {
                self.left = bytes as usize;
                let there = self.opening.block.len().saturating_sub(self.opening.at);
                if self.left > there {
                    self.left = 0;
                    self.ended = Some(Err(self.opening.confused()));
                    return Err(io::Error::other("the sandboxed process said something senseless"));
                }
                Ok(true)
            }
            Ok(Record::MemberEnd(broken)) => {
                self.ended = Some(Ok(()));
                broken.map_or(Ok(false), |reason| Err(io::Error::other(reason)))
            }
            Ok(_) => {
                self.ended = Some(Err(self.opening.confused()));
                Err(io::Error::other("the sandboxed process said something senseless"))
            }
            Err(ended) => {
                let error = match &ended {
                    Ended::Halted(halt) => io::Error::from(*halt),
                    Ended::Failed(_, reason) => io::Error::other(reason.clone()),
                };
                self.ended = Some(Err(ended));
                Err(error)
            }
        }
    }
}

impl Read for Content<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            if self.ended.is_some() || !self.next_piece()? {
                return Ok(0);
            }
        }
        let piece = self.opening.block.get(self.opening.at..).unwrap_or_default();
        let mut piece = piece.get(..self.left).unwrap_or_default();
        let read = piece.read(into)?;
        self.left -= read;
        self.opening.at += read;
        Ok(read)
    }
}
