//! A file that is open in the sandbox, and processes there that answer questions about many.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};

use lazaret_containers::container::{display_name, hand_out};
use lazaret_containers::format::{CLAIMS_MAX, Found};
use lazaret_containers::{Budget, ExtractionOutcome, FileType, Halt, Limits, Passwords, Remark, Sink};

use crate::job::{Check, Ended, Input, Job};
use crate::memory::{sealed_memory, shared_memory};
use crate::pool::{Sandbox, SandboxError};
use crate::wire::{INPUT_BYTES, REMARK_BYTES_MAX, Record, Task, Terms, ToJob};

/// Processor time that a job may take beyond the seconds of its rule: to detect types and answer questions, and to find out that
/// the time is over.
const CPU_SECONDS_MORE: u64 = 60;
/// Processor time that a process may take for all that it is asked about. Whoever asks looks at the clock.
const CPU_SECONDS_OF_ANSWERS: u64 = 24 * 3600;
/// A process for many takes so many files apart: what one of them left of its memory scattered is no trouble for long.
const TAKEN_APART_MAX: u32 = 256;
/// The longest content that a process for many is asked about, or takes apart.
pub const CONTENT_BYTES_MAX: u64 = 4 << 20;

/// What is to be opened.
#[derive(Debug, Clone)]
pub struct Request<'r> {
    /// The file's name, for showing.
    pub name: &'r str,
    /// Its length.
    pub length: u64,
    /// What it is, if that is known.
    pub containers: Option<&'r [Found]>,
    /// Whether others take parts of it: then the input is asked which members are wanted.
    pub shared: bool,
    /// The limits of its tree.
    pub limits: &'r Limits,
    /// The passwords to try.
    pub passwords: &'r Passwords,
    /// A question that is to be answered unasked, in some kilobytes: as the file's type is told, about the file, and as it is taken
    /// apart, about each short member on the way. Without an answer it is to be asked again. The answers have no deadline but the
    /// file's, so that it must be one that never takes long.
    pub standing: Option<Vec<u8>>,
}

/// A file that is open in a job process.
pub struct Opening<'o> {
    job: Job,
    input: &'o dyn Input,
    /// Whether the process is for many: then it is told which file this is, and waits for the next one afterwards.
    for_many: bool,
}

impl Sandbox {
    /// Opens a file.
    pub fn open<'o>(&self, request: &Request<'_>, input: &'o dyn Input) -> Result<Opening<'o>, SandboxError> {
        let failed = |source| SandboxError::Channel { operation: "prepare the input of", source };
        let task = Task {
            name: request.name.to_owned(),
            length: request.length,
            whole: input.whole().is_some(),
            containers: request.containers.map(<[Found]>::to_vec),
            standing: request.standing.clone().filter(|_| request.containers.is_none()),
        };
        let cpu_seconds = request.limits.archive_seconds.saturating_add(CPU_SECONDS_MORE);
        let job = Job::begin(self, &task, input_memory(input).map_err(failed)?, cpu_seconds)?;
        Ok(Opening { job, input, for_many: false })
    }

    /// Starts a process for many contents, which must all be of one archive.
    pub fn respondent(&self) -> Result<Respondent, SandboxError> {
        let failed = |source| SandboxError::Channel { operation: "prepare the input of", source };
        let task = Task { name: String::new(), length: 0, whole: false, containers: Some(Vec::new()), standing: None };
        let input_memory = shared_memory("input", CONTENT_BYTES_MAX).map_err(failed)?;
        Ok(Respondent { job: Job::begin(self, &task, input_memory, CPU_SECONDS_OF_ANSWERS)?, taken_apart: 0 })
    }
}

fn input_memory(input: &dyn Input) -> io::Result<File> {
    input.whole().map_or_else(|| shared_memory("input", INPUT_BYTES), |whole| sealed_memory("input", whole))
}

/// A process that answers questions about contents and takes short ones apart. Whatever one of them makes of it is of no good to the
/// next one, so it is for the contents of one archive, whose own process could as well have hidden them.
pub struct Respondent {
    job: Job,
    /// How many files it has taken apart.
    taken_apart: u32,
}

impl Respondent {
    /// Whether it has at hand what the sandbox was given last.
    pub fn is_current(&self) -> bool {
        self.job.is_current()
    }

    /// What it answers to a question about a content, up to [`CONTENT_BYTES_MAX`].
    pub fn ask(&mut self, question: Vec<u8>, content: &[u8], check: Check<'_>) -> Result<Vec<u8>, Ended> {
        self.job.hand_in(content)?;
        self.job.command(&ToJob::AskAbout(content.len() as u64, question))?;
        self.job.answer(&Nothing, check)
    }

    /// Hands out the members of all the containers that a file is, up to [`CONTENT_BYTES_MAX`] of it, which must be in memory and of
    /// which it is known what it is. What ends the process while nothing was handed out yet need not be this file's fault: another
    /// process begins anew then. Gives the process back if it is there for the next one.
    pub fn members(
        self,
        request: &Request<'_>,
        input: &dyn Input,
        found: &[Found],
        budget: &Budget,
        sink: &mut Sink<'_>,
    ) -> (ExtractionOutcome, Option<Self>) {
        let taken_apart = self.taken_apart + 1;
        let (outcome, job) = Opening { job: self.job, input, for_many: true }.all_members(request, found, budget, sink);
        let next = job.filter(|_| taken_apart < TAKEN_APART_MAX).map(|job| Self { job, taken_apart });
        (outcome, next)
    }
}

/// No file.
struct Nothing;

impl Input for Nothing {
    fn whole(&self) -> Option<&[u8]> {
        None
    }

    fn read_at(&self, _offset: u64, _most_bytes: u64) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Opening<'_> {
    /// What the file is, and what is said of it unasked. An error in words if that can't be told. Asked first, if the type was not
    /// known before.
    pub fn file_type(&mut self, check: Check<'_>) -> Result<Result<(FileType, Option<Remark>), String>, Ended> {
        let version = self.job.generation();
        let told = match self.job.record(self.input, check)? {
            Record::Type { file_type, remark } if file_type.containers.len() <= CLAIMS_MAX => {
                let remark = remark.filter(|said| said.len() <= REMARK_BYTES_MAX);
                Ok((file_type, remark.map(|said| Remark { version, said })))
            }
            Record::NoType(reason) => Err(reason),
            _ => return Err(self.job.confused()),
        };
        self.job.now_waits();
        Ok(told)
    }

    /// Whether it has at hand what the sandbox was given last.
    pub fn is_current(&self) -> bool {
        self.job.is_current()
    }

    /// What it answers to a question about the file, which must be in memory. See [`crate::Extraction`].
    pub fn ask(&mut self, question: Vec<u8>, check: Check<'_>) -> Result<Vec<u8>, Ended> {
        self.job.command(&ToJob::Ask(question))?;
        self.job.answer(self.input, check)
    }

    /// Hands out the members of all the file's containers. What ends the job early is in the outcome.
    pub fn members(
        self,
        request: &Request<'_>,
        found: &[Found],
        budget: &Budget,
        sink: &mut Sink<'_>,
    ) -> ExtractionOutcome {
        self.all_members(request, found, budget, sink).0
    }

    /// The same; and the process, if it is for many and waits for the next file.
    fn all_members(
        mut self,
        request: &Request<'_>,
        found: &[Found],
        budget: &Budget,
        sink: &mut Sink<'_>,
    ) -> (ExtractionOutcome, Option<Job>) {
        let mut outcome = ExtractionOutcome::default();
        let mut done = 0;
        let request = Request { containers: Some(found), ..request.clone() };
        let handed_out = Cell::new(false);
        let mut sink = |member: lazaret_containers::Member<'_>| {
            handed_out.set(true);
            sink(member)
        };
        loop {
            let terms = Terms {
                skip: u32::try_from(done).unwrap_or(u32::MAX),
                shared: request.shared,
                limits: request.limits.clone(),
                used: budget.tree_use(),
                passwords: request.passwords.clone(),
                standing: request.standing.clone(),
            };
            let begun = if self.for_many { self.hand_in(&request) } else { Ok(()) };
            let told = begun.and_then(|()| self.job.command(&ToJob::TakeApart(terms)));
            match told.and_then(|()| self.some_members(budget, &mut sink, &mut outcome, &mut done)) {
                Ok(()) => return (outcome, Some(self.job).filter(|_| self.for_many)),
                Err(Ended::Failed(..)) if self.for_many && !handed_out.get() && done == 0 => {}
                Err(ended) => {
                    ended.note(&mut outcome);
                    done += 1;
                }
            }
            // The container that ended the process is given up; the file may be another one too.
            if outcome.is_over() || done >= found.len() {
                return (outcome, None);
            }
            match self.job.sandbox().open(&request, self.input) {
                Ok(opening) => self = opening,
                Err(error) => {
                    outcome.note_broken(error.to_string());
                    return (outcome, None);
                }
            }
        }
    }

    /// Tells a process for many which file is next.
    fn hand_in(&mut self, request: &Request<'_>) -> Result<(), Ended> {
        let content = self.input.whole().unwrap_or_default();
        self.job.hand_in(content)?;
        self.job.command(&ToJob::Another(Task {
            name: request.name.to_owned(),
            length: content.len() as u64,
            whole: true,
            containers: request.containers.map(<[Found]>::to_vec),
            standing: None,
        }))
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
        let version = self.job.generation();
        loop {
            match self.job.record(self.input, &check)? {
                Record::Member { name, length_hint, file_type, remark } => {
                    let name = display_name(name.as_bytes());
                    let mut content = Content { opening: self, check: &check, left: 0, ended: None };
                    let file_type = file_type.filter(|file_type| file_type.containers.len() <= CLAIMS_MAX);
                    let remark = remark.filter(|said| said.len() <= REMARK_BYTES_MAX);
                    let known = (file_type, remark.map(|said| Remark { version, said }));
                    let handed_out = hand_out_known(name, length_hint, known, &mut content, budget, sink);
                    if let Err(halt) = handed_out {
                        // Whatever is left of the member is not wanted, nor is anything after it.
                        self.job.kill();
                        return Err(Ended::Halted(halt));
                    }
                    content.finish()?;
                }
                Record::Outcome(part) => {
                    outcome.merge(part);
                    *done += 1;
                }
                Record::Walked(members) => self.input.walked(members),
                Record::Done { reread_bytes } => {
                    budget.add_reread(reread_bytes);
                    if self.for_many {
                        self.job.now_waits();
                    } else {
                        self.job.give_back();
                    }
                    return Ok(());
                }
                Record::Type { .. }
                | Record::NoType(_)
                | Record::Data(_)
                | Record::MemberEnd(_)
                | Record::Answer(_) => {
                    return Err(self.job.confused());
                }
            }
        }
    }
}

/// [`hand_out`] for a member whose type is known, and of which something is said.
fn hand_out_known(
    name: String,
    length_hint: Option<u64>,
    known: (Option<FileType>, Option<Remark>),
    content: &mut dyn Read,
    budget: &Budget,
    sink: &mut Sink<'_>,
) -> Result<(), Halt> {
    let (mut file_type, mut remark) = known;
    hand_out(name, length_hint, content, budget, &mut |member| {
        sink(lazaret_containers::Member { file_type: file_type.take(), remark: remark.take(), ..member })
    })
    .map(|_| ())
}

/// The content of a member, as it comes.
struct Content<'c, 'o> {
    opening: &'c mut Opening<'o>,
    check: Check<'c>,
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
        self.opening.job.pass_over(std::mem::take(&mut self.left));
        // What it says is heard by whoever asks for the end.
        let _ = self.next_piece();
    }

    /// Takes the next piece's head. False at the member's end.
    fn next_piece(&mut self) -> io::Result<bool> {
        match self.opening.job.record(self.opening.input, self.check) {
            Ok(Record::Data(bytes)) => {
                self.left = bytes as usize;
                if self.left > self.opening.job.content_bytes() {
                    self.left = 0;
                    self.ended = Some(Err(self.opening.job.confused()));
                    return Err(io::Error::other("the sandboxed process said something senseless"));
                }
                Ok(true)
            }
            Ok(Record::MemberEnd(broken)) => {
                self.ended = Some(Ok(()));
                broken.map_or(Ok(false), |reason| Err(io::Error::other(reason)))
            }
            Ok(_) => {
                self.ended = Some(Err(self.opening.job.confused()));
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
        let most = self.left.min(into.len());
        self.opening.job.take_content(into.get_mut(..most).unwrap_or_default())?;
        self.left -= most;
        Ok(most)
    }
}
