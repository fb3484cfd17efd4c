//! What a job process does with a file: tells its type, answers questions about it, takes it apart, and tells the types of its short
//! members.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lazaret_containers::format::Found;
use lazaret_containers::windows::{WINDOW_BYTES_MAX, Windows};
use lazaret_containers::{
    Budget, ExtractionOutcome, FileType, Guarded, Member, ReadSeek, Refused, TreeBudget, detect, detect_content,
};

use crate::child::Work;
use crate::opening::CONTENT_BYTES_MAX;
use crate::output::Output;
use crate::sys::{Mapped, Writable};
use crate::wire::{BLOCK_BYTES, BLOCKS, PIECE_BYTES, REMARK_BYTES_MAX, Record, Task, Terms, ToJob};

/// How much of the input is read ahead when little is asked for: short enough that a reader that jumps about wastes little.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// Text in which many kinds of data are looked for.
const WARMING: &[u8] =
    b"From: a\r\nSubject: b\r\n\r\n<html>%PDF-1.4 begin 644 c PK\x03\x04 data:text/html;base64,TVqQAAMA\r\n";

/// The longest answer.
pub const ANSWER_BYTES_MAX: usize = PIECE_BYTES;

/// Answers questions about contents. The worker believes an answer no more than anything else from here.
pub trait Answers {
    /// Is made ready in the zygote, with what the sandbox was given, if anything.
    fn prepare(&mut self, databases: &[&[u8]]) -> Result<(), String>;
    /// Answers in a job process, in up to [`ANSWER_BYTES_MAX`] bytes.
    fn answer(&mut self, question: &[u8], content: &[u8]) -> Vec<u8>;
}

/// Detects and takes apart; and, if it was given something that does, answers questions.
#[derive(Default)]
pub struct Extraction {
    answers: Option<Box<dyn Answers>>,
}

impl Extraction {
    /// With something that answers questions.
    pub fn with(answers: impl Answers + 'static) -> Self {
        Self { answers: Some(Box::new(answers)) }
    }
}

impl Work for Extraction {
    fn prepare(&mut self, databases: &[&[u8]]) -> Result<(), String> {
        // What it is matters to nobody.
        let _ = type_of(WARMING);
        self.answers.as_mut().map_or(Ok(()), |answers| answers.prepare(databases))
    }

    fn work(&mut self, input: &File, mut output: Output) -> io::Result<()> {
        let task = output.task()?;
        let job = Job { task: &task, output: Rc::new(RefCell::new(output)), blocks: Rc::default() };
        if task.whole {
            let mapped = Mapped::sealed(input)?;
            let content = mapped.as_ref();
            if content.len() as u64 != task.length {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            job.serve(&mut Mapping { input: Cursor::new(content), job: &job }, &About::File(content), self)
        } else {
            job.serve(&mut OnDemand::new(input, &job), &About::Input(input), self)
        }
    }
}

impl Extraction {
    fn answer(&mut self, question: &[u8], content: &[u8]) -> Vec<u8> {
        self.answers.as_mut().map(|answers| answers.answer(question, content)).unwrap_or_default()
    }

    /// What is to be said of a member, if anything is asked and the answer is short.
    fn remark(&mut self, question: Option<&[u8]>, content: &[u8]) -> Option<Vec<u8>> {
        let said = self.answer(question?, content);
        (1..=REMARK_BYTES_MAX).contains(&said.len()).then_some(said)
    }
}

/// What can be asked about.
enum About<'a> {
    /// The file.
    File(&'a [u8]),
    /// What the worker puts into the input.
    Input(&'a File),
}

impl About<'_> {
    /// What is asked about, if so many bytes of the input are meant, or the file.
    fn content(&self, bytes: Option<u64>) -> io::Result<Cow<'_, [u8]>> {
        match (self, bytes) {
            (Self::File(content), None) => Ok(Cow::Borrowed(content)),
            (Self::Input(input), Some(bytes)) => {
                // A copy: the worker may write there, though it does not.
                let mut content = vec![0; usize::try_from(bytes.min(CONTENT_BYTES_MAX)).unwrap_or(0)];
                input.read_exact_at(&mut content, 0)?;
                Ok(Cow::Owned(content))
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

struct Job<'j> {
    task: &'j Task,
    output: Rc<RefCell<Output>>,
    /// Where contents go. Apart from the output, which is needed while one is written: for what it is read from.
    blocks: Rc<RefCell<Blocks>>,
}

/// The output's shared memory, mapped at first use: most files hand no content out.
#[derive(Default)]
struct Blocks(Option<Writable>);

impl Blocks {
    /// A place in it.
    fn place(&mut self, output: &RefCell<Output>, place: Range<usize>) -> io::Result<&mut [u8]> {
        if self.0.is_none() {
            self.0 = Some(Writable::of(output.borrow().memory(), BLOCK_BYTES * BLOCKS as usize)?);
        }
        Ok(self.0.as_mut().and_then(|blocks| blocks.as_mut().get_mut(place)).unwrap_or_default())
    }
}

impl Job<'_> {
    /// Does what it is told, until the end.
    fn serve(&self, input: &mut dyn ReadSeek, about: &About<'_>, extraction: &mut Extraction) -> io::Result<()> {
        let containers = match &self.task.containers {
            Some(containers) => containers.clone(),
            None => self.detect(input, about, extraction)?,
        };
        loop {
            let command = self.output.borrow_mut().command()?;
            let (bytes, question) = match command {
                Some(ToJob::TakeApart(terms)) => return self.take_all_apart(&containers, input, &terms, extraction),
                Some(ToJob::Ask(question)) => (None, question),
                Some(ToJob::AskAbout(bytes, question)) => (Some(bytes), question),
                Some(ToJob::Another(task)) => {
                    self.take_another_apart(&task, about, extraction)?;
                    continue;
                }
                _ => return Ok(()),
            };
            let mut answer = extraction.answer(&question, &about.content(bytes)?);
            answer.truncate(ANSWER_BYTES_MAX);
            self.answer(&answer)?;
        }
    }

    /// Takes another file apart, which lies in the input.
    fn take_another_apart(&self, task: &Task, about: &About<'_>, extraction: &mut Extraction) -> io::Result<()> {
        let content = about.content(Some(task.length))?;
        let Some(ToJob::TakeApart(terms)) = self.output.borrow_mut().command()? else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let job = Job { task, output: self.output.clone(), blocks: self.blocks.clone() };
        let containers = task.containers.as_deref().unwrap_or_default();
        job.take_all_apart(containers, &mut Mapping { input: Cursor::new(&*content), job: &job }, &terms, extraction)
    }

    fn take_all_apart(
        &self,
        containers: &[Found],
        input: &mut dyn ReadSeek,
        terms: &Terms,
        extraction: &mut Extraction,
    ) -> io::Result<()> {
        let budget = self.budget(terms);
        for found in containers.iter().skip(terms.skip as usize) {
            let outcome = self.take_apart(found, input, terms, &budget, extraction);
            let over = outcome.is_over();
            self.put(&Record::Outcome(outcome))?;
            if terms.shared && !over {
                self.put(&Record::Walked(budget.walked()))?;
            }
            if over {
                break;
            }
        }
        let reread_bytes = budget.tree_use().reread_bytes.saturating_sub(terms.used.reread_bytes);
        self.put(&Record::Done { reread_bytes })?;
        self.flush()
    }

    fn flush(&self) -> io::Result<()> {
        self.output.borrow_mut().flush()
    }

    fn put(&self, record: &Record) -> io::Result<()> {
        self.output.borrow_mut().put(record)
    }

    fn answer(&self, mut answer: &[u8]) -> io::Result<()> {
        let room = self.output.borrow_mut().room()?;
        let mut blocks = self.blocks.borrow_mut();
        let (piece, _) = fill(&mut answer, blocks.place(&self.output, room)?);
        let mut output = self.output.borrow_mut();
        output.put_content(&[Record::Answer(piece.len() as u32)], piece.len())?;
        output.flush()
    }

    /// Tells what the file is, and what is to be said of it unasked.
    fn detect(
        &self,
        input: &mut dyn ReadSeek,
        about: &About<'_>,
        extraction: &mut Extraction,
    ) -> io::Result<Vec<Found>> {
        let detected = match about {
            About::File(content) => detect_content(content),
            About::Input(_) => detect(input, self.task.length),
        };
        let (record, containers) = match detected {
            Ok(file_type) => {
                let containers = file_type.containers.clone();
                let remark = match about {
                    About::File(content) if content.len() as u64 <= CONTENT_BYTES_MAX => {
                        extraction.remark(self.task.standing.as_deref(), content)
                    }
                    _ => None,
                };
                (Record::Type { file_type, remark }, containers)
            }
            Err(error) => (Record::NoType(error.to_string()), Vec::new()),
        };
        self.put(&record)?;
        self.flush()?;
        Ok(containers)
    }

    /// The budget of the tree as it was when the job began. What other jobs of the tree use meanwhile, the worker counts.
    fn budget(&self, terms: &Terms) -> Budget {
        let tree = Arc::new(TreeBudget::resumed(terms.limits.clone(), terms.used));
        let never: Arc<AtomicBool> = Arc::default();
        let budget = Budget::new(tree, never, self.task.length);
        if !terms.shared {
            return budget;
        }
        let output = self.output.clone();
        // A worker that is gone wants nothing more.
        budget.shared(Box::new(move |turn| output.borrow_mut().turn(turn).ok().flatten()))
    }

    fn take_apart(
        &self,
        found: &Found,
        input: &mut dyn ReadSeek,
        terms: &Terms,
        budget: &Budget,
        extraction: &mut Extraction,
    ) -> ExtractionOutcome {
        let mut input = Guarded { input, budget, on_read: |_| () };
        let task = self.task;
        let extracted = catch_unwind(AssertUnwindSafe(|| {
            found.extract(&task.name, task.length, &mut input, &terms.passwords, budget, &mut |member| {
                self.hand_on(member, budget, terms, extraction).map_err(|_| Refused)
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

    /// Tells a member, whose content is read into the place where the worker takes it from.
    fn hand_on(
        &self,
        member: Member<'_>,
        budget: &Budget,
        terms: &Terms,
        extraction: &mut Extraction,
    ) -> io::Result<()> {
        let Member { name, length_hint, content, .. } = member;
        let mut blocks = self.blocks.borrow_mut();
        // Answers, and waiting for the worker, are not this container's time.
        let room = || budget.pause(|| self.output.borrow_mut().room());
        let (piece, mut ended) = fill(content, blocks.place(&self.output, room()?)?);
        let file_type = ended.as_ref().and_then(|_| type_of(piece));
        let standing = terms.standing.as_deref();
        let remark = file_type.as_ref().and_then(|_| budget.pause(|| extraction.remark(standing, piece)));
        let head = Record::Member { name, length_hint, file_type, remark };
        self.output.borrow_mut().put_content(&[head, Record::Data(piece.len() as u32)], piece.len())?;
        while ended.is_none() {
            let piece;
            (piece, ended) = fill(content, blocks.place(&self.output, room()?)?);
            self.output.borrow_mut().put_content(&[Record::Data(piece.len() as u32)], piece.len())?;
        }
        budget.pause(|| self.put(&Record::MemberEnd(ended.flatten())))
    }
}

/// Reads a piece, as much as there is room for; tells whether the member ended with it, and what broke it.
fn fill<'s>(content: &mut dyn Read, scratch: &'s mut [u8]) -> (&'s [u8], Option<Option<String>>) {
    let mut filled = 0;
    let ended = loop {
        match scratch.get_mut(filled..).filter(|rest| !rest.is_empty()).map(|rest| content.read(rest)) {
            None => break None,
            Some(Ok(0)) => break Some(None),
            Some(Ok(read)) => filled += read,
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Some(Err(error)) => break Some(Some(error.to_string())),
        }
    };
    (scratch.get(..filled).unwrap_or_default(), ended)
}

fn type_of(content: &[u8]) -> Option<FileType> {
    // Without one the worker asks for it, and hears of what went wrong.
    detect_content(content).ok()
}

/// A file that the input holds as a whole.
struct Mapping<'i> {
    input: Cursor<&'i [u8]>,
    job: &'i Job<'i>,
}

impl Read for Mapping<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        self.job.output.borrow_mut().count_input(read as u64);
        Ok(read)
    }
}

impl Seek for Mapping<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.input.seek(to)
    }
}

/// A file of which the input holds windows, which the worker fills on demand.
struct OnDemand<'i> {
    file: &'i File,
    job: &'i Job<'i>,
    position: u64,
    windows: Windows,
    /// The part that was read ahead.
    ahead: Vec<u8>,
    ahead_offset: u64,
}

impl<'i> OnDemand<'i> {
    fn new(file: &'i File, job: &'i Job<'i>) -> Self {
        Self { file, job, position: 0, windows: Windows::default(), ahead: Vec::new(), ahead_offset: 0 }
    }

    /// Reads at the position, from the input alone.
    fn read_input(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let fill = |window, part: &_| self.job.output.borrow_mut().fill(window, part);
        let (window, part) = self.windows.at(self.position, self.job.task.length, fill)?;
        let most = usize::try_from(part.end - self.position).unwrap_or(usize::MAX).min(into.len());
        let offset = window as u64 * WINDOW_BYTES_MAX + (self.position - part.start);
        let read = self.file.read_at(into.get_mut(..most).unwrap_or_default(), offset)?;
        self.job.output.borrow_mut().count_input(read as u64);
        Ok(read)
    }
}

impl Read for OnDemand<'_> {
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

impl Seek for OnDemand<'_> {
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
