//! What a job process does with a file: tells its type, takes it apart, and tells the types of its short members.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lazaret_containers::format::Found;
use lazaret_containers::{Budget, ExtractionOutcome, FileType, Guarded, Member, Refused, TreeBudget, detect};

use crate::child::Work;
use crate::output::Output;
use crate::wire::{BLOCK_BYTES, Record, Task};

/// Members are shown to their types' detection up to this length, and told in pieces of it.
const PIECE_BYTES: usize = BLOCK_BYTES / 2;
/// How much of the input is read ahead when little is asked for: short enough that a reader that jumps about wastes little.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// Detects and takes apart.
pub struct Extraction;

impl Work for Extraction {
    fn work(&self, input: &File, output: &mut Output) -> io::Result<()> {
        let task = output.task()?;
        let job = Job { task: &task, output: RefCell::new(output) };
        let mut input = TaskInput::new(input, &job);
        let containers = match &task.containers {
            Some(containers) => containers.clone(),
            None => job.detect(&mut input)?,
        };
        if task.extract {
            let budget = job.budget();
            for found in containers.iter().skip(task.skip as usize) {
                let outcome = job.take_apart(found, &mut input, &budget);
                let over = outcome.is_over();
                job.put(&Record::Outcome(outcome), &[])?;
                if over {
                    break;
                }
            }
        }
        job.put(&Record::Done, &[])?;
        job.output.borrow_mut().flush()
    }
}

struct Job<'j> {
    task: &'j Task,
    output: RefCell<&'j mut Output>,
}

impl Job<'_> {
    fn put(&self, record: &Record, content: &[u8]) -> io::Result<()> {
        self.output.borrow_mut().put(record, content)
    }

    /// Tells what the file is, and at once, so that the worker can go on with it meanwhile.
    fn detect(&self, input: &mut TaskInput<'_>) -> io::Result<Vec<Found>> {
        let (record, containers) = match detect(input, self.task.length) {
            Ok(file_type) => {
                let containers = file_type.containers.clone();
                (Record::Type(file_type), containers)
            }
            Err(error) => (Record::NoType(error.to_string()), Vec::new()),
        };
        self.put(&record, &[])?;
        if !containers.is_empty() {
            self.output.borrow_mut().flush()?;
        }
        Ok(containers)
    }

    /// The budget of the tree as it was when the job began. What other jobs of the tree use meanwhile, the worker counts.
    fn budget(&self) -> Budget {
        let tree = Arc::new(TreeBudget::resumed(self.task.limits.clone(), self.task.used));
        let never: Arc<AtomicBool> = Arc::default();
        Budget::new(tree, never, self.task.length)
    }

    fn take_apart(&self, found: &Found, input: &mut TaskInput<'_>, budget: &Budget) -> ExtractionOutcome {
        let mut scratch = Vec::with_capacity(PIECE_BYTES);
        let mut input = Guarded { input, budget, on_read: |_| () };
        let task = self.task;
        let extracted = catch_unwind(AssertUnwindSafe(|| {
            found.extract(&task.name, task.length, &mut input, &task.passwords, budget, &mut |member| {
                self.hand_on(member, &mut scratch, budget).map_err(|_| Refused)
            })
        }));
        extracted.unwrap_or_else(|panic| {
            let mut outcome = ExtractionOutcome::default();
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            outcome.note_broken(format!("the reader panicked: {}", text.unwrap_or("no reason given")));
            outcome
        })
    }

    fn hand_on(&self, member: Member<'_>, scratch: &mut Vec<u8>, budget: &Budget) -> io::Result<()> {
        let Member { name, length_hint, content, file_type: _ } = member;
        let mut broken = fill(content, scratch);
        let whole = scratch.len() < PIECE_BYTES || broken.is_some();
        let file_type = if whole { type_of(scratch) } else { None };
        // Waiting for the worker is not this container's time.
        budget.pause(|| {
            self.put(&Record::Member { name, length_hint, file_type }, &[])?;
            self.put(&Record::Data(scratch.len() as u32), scratch)
        })?;
        while !whole && broken.is_none() {
            broken = fill(content, scratch);
            if scratch.is_empty() {
                break;
            }
            budget.pause(|| self.put(&Record::Data(scratch.len() as u32), scratch))?;
        }
        self.put(&Record::MemberEnd(broken), &[])
    }
}

/// Reads a piece; tells what broke the member, if it did.
fn fill(content: &mut dyn Read, scratch: &mut Vec<u8>) -> Option<String> {
    scratch.clear();
    let read = content.take(PIECE_BYTES as u64).read_to_end(scratch);
    read.err().map(|error| error.to_string())
}

fn type_of(content: &[u8]) -> Option<FileType> {
    // Without one the worker asks for it, and hears of what went wrong.
    detect(&mut Cursor::new(content), content.len() as u64).ok()
}

/// The file as a job process has it: all of it in its input, or a part that the worker replaces on demand.
struct TaskInput<'i> {
    file: &'i File,
    job: &'i Job<'i>,
    position: u64,
    /// The part of the file that the input holds.
    window: (u64, u64),
    /// The part that was read ahead.
    ahead: Vec<u8>,
    ahead_offset: u64,
}

impl<'i> TaskInput<'i> {
    fn new(file: &'i File, job: &'i Job<'i>) -> Self {
        let window = if job.task.whole { (0, job.task.length) } else { (0, 0) };
        Self { file, job, position: 0, window, ahead: Vec::new(), ahead_offset: 0 }
    }

    /// Reads at the position, from the input alone.
    fn read_input(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !(self.window.0..self.window.1).contains(&self.position) {
            let filled = self.job.output.borrow_mut().fill(self.position)?;
            self.window = (self.position, self.position.saturating_add(filled));
        }
        let most = usize::try_from(self.window.1.saturating_sub(self.position)).unwrap_or(usize::MAX).min(into.len());
        let offset = self.position.saturating_sub(self.window.0);
        let read = self.file.read_at(into.get_mut(..most).unwrap_or_default(), offset)?;
        self.job.output.borrow_mut().count_input(read as u64);
        Ok(read)
    }
}

impl Read for TaskInput<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.job.task.length {
            return Ok(0);
        }
        let ahead =
            self.position.checked_sub(self.ahead_offset).and_then(|at| self.ahead.get(usize::try_from(at).ok()?..));
        let read = match ahead.filter(|ahead| !ahead.is_empty()) {
            Some(mut ahead) => ahead.read(into)?,
            None if into.len() >= READ_AHEAD_BYTES => self.read_input(into)?,
            None => {
                let mut ahead = std::mem::take(&mut self.ahead);
                ahead.resize(READ_AHEAD_BYTES, 0);
                let read = self.read_input(&mut ahead)?;
                ahead.truncate(read);
                (self.ahead, self.ahead_offset) = (ahead, self.position);
                self.ahead.as_slice().read(into)?
            }
        };
        if read == 0 && !into.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before its length"));
        }
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for TaskInput<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.job.task.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position =
            target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the beginning"))?;
        Ok(self.position)
    }
}
