//! Finding out what a file is, and taking it apart: in the sandbox, or in this process if the operator wants that.
//!
//! Invariant: whatever becomes of the process in the sandbox, the file has a code and a reason.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lazaret_analysis::{FileInfo, ResultCode, Signer};
use lazaret_containers::format::Found;
use lazaret_containers::{Budget, ExtractionOutcome, FileType, Guarded, Halt, Limit, Member, Remark, Turn, detect};
use lazaret_sandbox::{CONTENT_BYTES_MAX, Ended, Input, Opening, Request, Sandbox};

use super::members::{Members, nested};
use super::node::{Node, Opened};
use super::{Tree, lock, share};
use crate::budget::{limit_code, outcome_code};
use crate::confined::{About, Confined, Question};
use crate::examine::panic_text;
use crate::sample::Sample;
use crate::signers;

/// A file that is being looked into.
pub(super) struct FileOpening<'o> {
    tree: &'o Arc<Tree>,
    node: &'o Arc<Node>,
    sample: &'o Sample,
    input: &'o SandboxInput<'o>,
    budget: &'o Budget,
    begun: RefCell<Option<Opening<'o>>>,
    /// What was said of the file with its type.
    remark: OnceCell<Remark>,
}

impl<'o> FileOpening<'o> {
    pub fn new(
        tree: &'o Arc<Tree>,
        node: &'o Arc<Node>,
        sample: &'o Sample,
        input: &'o SandboxInput<'o>,
        budget: &'o Budget,
    ) -> Self {
        Self { tree, node, sample, input, budget, begun: RefCell::new(None), remark: OnceCell::new() }
    }

    /// A file's budget, whose clock begins to run.
    pub fn budget(tree: &Arc<Tree>, node: &Arc<Node>, sample: &Sample) -> Budget {
        let budget = Budget::new(tree.budget.clone(), tree.stop.clone(), sample.length());
        // In the sandbox it is the reader's own budget there that asks.
        if tree.scanner.sandbox().is_some() || !may_be_shared(tree, node) {
            return budget;
        }
        let (tree, node) = (tree.clone(), node.clone());
        budget.shared(Box::new(move |turn| share::turn(&tree, &node, turn, &|job| nested(job))))
    }

    fn admits_depth(&self) -> bool {
        self.tree.budget.admits_depth(self.node.depth)
    }

    fn request<'r>(&'r self, containers: Option<&'r [Found]>) -> Request<'r> {
        Request {
            name: self.sample.name(),
            length: self.sample.length(),
            containers,
            shared: may_be_shared(self.tree, self.node),
            limits: self.tree.budget.limits(),
            passwords: &self.tree.passwords,
            standing: None,
        }
    }

    /// What the file is; or a code, if there is one, and a reason why nobody knows.
    pub fn file_type(&self) -> Result<FileType, (Option<ResultCode>, String)> {
        let failed = |reason: String| (Some(ResultCode::SCAN_FAILED), reason);
        let Some(sandbox) = self.tree.scanner.sandbox() else {
            return detect(&mut self.sample.reader(), self.sample.length()).map_err(|error| failed(error.to_string()));
        };
        let seconds = Duration::from_secs(self.tree.budget.limits().archive_seconds);
        // Other limits of the tree keep nobody from telling what a file is.
        let check = || match self.tree.stop.reason() {
            Some(_) => Err(Halt::Stopped),
            None if self.budget.spent() > seconds => Err(Halt::Limit(Limit::Time)),
            None => Ok(()),
        };
        let standing = self.tree.standing_question();
        let tell = |standing| {
            let mut opening =
                begin(sandbox, &Request { standing, ..self.request(None) }, self.input).map_err(failed)?;
            Ok((opening.file_type(&check), opening))
        };
        let asked = standing.is_some();
        let (mut told, mut opening) = tell(standing)?;
        if asked && matches!(told, Err(Ended::Failed(..))) {
            // If it was the rules that ended the process, the file has a type all the same.
            (told, opening) = tell(None)?;
        }
        match told {
            Ok(Ok((file_type, remark))) => {
                *self.begun.borrow_mut() = Some(opening);
                if let Some(remark) = remark {
                    // Nobody told the type before: it is asked once.
                    let _ = self.remark.set(remark);
                }
                Ok(file_type)
            }
            Ok(Err(reason)) => Err(failed(reason)),
            Err(Ended::Halted(Halt::Stopped)) => Err((None, Halt::Stopped.to_string())),
            Err(Ended::Halted(Halt::Limit(limit)) | Ended::Failed(Some(limit), _)) => {
                Err((Some(limit_code(limit, &self.tree.rule)), limit.to_string()))
            }
            Err(Ended::Failed(None, reason)) => Err(failed(reason)),
        }
    }

    /// What can be asked about the file in the sandbox, if there is one. It is these containers, and this was said of it.
    pub fn confined<'f>(&'f self, containers: &'f [Found], remark: Option<&'f Remark>) -> Option<ConfinedFile<'f, 'o>> {
        let sandbox = self.tree.scanner.sandbox()?;
        Some(ConfinedFile { opening: self, sandbox, containers, remark: remark.or(self.remark.get()) })
    }

    /// Who signed the file, if it is a Windows program. What keeps anybody from telling is told nobody: a program that crashes
    /// its reader has no signers.
    pub fn signers(&self, file: &FileInfo, confined: Option<&dyn Confined>) -> Vec<Signer> {
        let Some(content) = self.sample.bytes().filter(|_| signers::may_have_signers(self.sample, file)) else {
            return Vec::new();
        };
        let Some(confined) = confined else { return signers::read(content) };
        let question = Question::Signers.to_bytes();
        let limit = self.tree.scanner.options.engine_timeout;
        match question.and_then(|question| confined.ask(question, About::File, limit)) {
            Ok(answer) => signers::of_answer(&answer),
            Err(reason) => {
                tracing::debug!(data_id = %self.node.data_id, reason, "nobody can tell who signed a program");
                Vec::new()
            }
        }
    }

    /// Takes the file apart as all the containers that it is, within the tree's limits. None if it is no container.
    pub fn take_apart(self, containers: &[Found]) -> Option<Opened> {
        if containers.is_empty() {
            return None;
        }
        if !self.admits_depth() {
            let reason = Some(limit_code(Limit::Depth, &self.tree.rule));
            return Some(Opened { reason, detail: Limit::Depth.to_string(), ..Opened::default() });
        }
        if self.node.parent.is_none() {
            self.tree.progress.begin_extraction();
            if let Some(shared) = &self.tree.shared {
                shared.begin(containers);
            }
        }
        let outcome = match self.tree.scanner.sandbox() {
            Some(sandbox) => {
                let begun = self.begun.take();
                self.take_apart_in(sandbox, begun, containers).unwrap_or_else(|reason| {
                    let mut outcome = ExtractionOutcome::default();
                    outcome.note_broken(reason);
                    outcome
                })
            }
            None => self.take_apart_here(containers),
        };
        let (encrypted, decrypted) = (!outcome.protected.is_empty(), outcome.decrypted);
        Some(Opened {
            reason: outcome_code(&outcome, &self.tree.rule),
            detail: outcome.detail(),
            encrypted,
            decrypted,
            unkeepable: outcome.unrepeatable,
        })
    }

    /// An error says why no process could be begun.
    fn take_apart_in(
        &self,
        sandbox: &Sandbox,
        begun: Option<Opening<'_>>,
        containers: &[Found],
    ) -> Result<ExtractionOutcome, String> {
        let request = Request { standing: self.tree.question_about_members(), ..self.request(Some(containers)) };
        let mut members = Members::new(self.tree, self.node, self.budget);
        let mut sink = |member: Member<'_>| members.take(member);
        if begun.is_none() && self.is_short_member() {
            let respondent = self.tree.respondent(sandbox)?;
            let (outcome, next) = respondent.members(&request, self.input, containers, self.budget, &mut sink);
            lock(&self.tree.respondents).extend(next);
            return Ok(outcome);
        }
        let opening = begun.map_or_else(|| begin(sandbox, &request, self.input), Ok)?;
        Ok(opening.members(&request, containers, self.budget, &mut sink))
    }

    /// Whether one of the tree's processes for many takes the file: that costs a fraction of a process of its own.
    fn is_short_member(&self) -> bool {
        self.node.parent.is_some() && self.sample.bytes().is_some_and(|bytes| bytes.len() as u64 <= CONTENT_BYTES_MAX)
    }

    fn take_apart_here(&self, containers: &[Found]) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        for found in containers {
            outcome.merge(self.take_apart_as(found));
            if outcome.is_over() {
                break;
            }
        }
        if self.budget.is_shared() && !outcome.is_over() {
            self.node.walked(self.budget.walked());
        }
        outcome
    }

    /// Takes the file apart as one container. A panic is the container's failure.
    fn take_apart_as(&self, found: &Found) -> ExtractionOutcome {
        let (tree, node, sample, budget) = (self.tree, self.node, self.sample, self.budget);
        let is_root = node.parent.is_none();
        let mut reader = sample.reader();
        let mut input = Guarded {
            input: &mut reader,
            budget,
            on_read: |bytes| {
                if is_root {
                    tree.progress.read(bytes);
                }
            },
        };
        let mut members = Members::new(tree, node, budget);
        let extracted = catch_unwind(AssertUnwindSafe(|| {
            found.extract(sample.name(), sample.length(), &mut input, &tree.passwords, budget, &mut |member| {
                members.take(member)
            })
        }));
        extracted.unwrap_or_else(|panic| {
            let detail = format!("the extractor panicked: {}", panic_text(&*panic));
            tracing::error!(data_id = %node.data_id, format = found.format.name(), detail, "extractor panicked");
            let mut outcome = ExtractionOutcome::default();
            outcome.note_broken(detail);
            outcome
        })
    }
}

fn begin<'o>(sandbox: &Sandbox, request: &Request<'_>, input: &'o dyn Input) -> Result<Opening<'o>, String> {
    sandbox.open(request, input).map_err(|error| {
        tracing::error!(%error, "a file could not be opened in the sandbox");
        error.to_string()
    })
}

/// Whether other workers may come to take parts of the file.
fn may_be_shared(tree: &Tree, node: &Node) -> bool {
    node.parent.is_none() && tree.shared.is_some()
}

/// A file that the sandbox is asked about.
pub(super) struct ConfinedFile<'f, 'o> {
    opening: &'f FileOpening<'o>,
    sandbox: &'f Sandbox,
    containers: &'f [Found],
    remark: Option<&'f Remark>,
}

impl ConfinedFile<'_, '_> {
    /// Asks the process that has the file open, if there is one, or is going to be.
    fn ask_opened(&self, question: Vec<u8>, check: &dyn Fn() -> Result<(), Halt>) -> Result<Vec<u8>, String> {
        let opening = self.opening;
        let mut begun = opening.begun.borrow_mut();
        if begun.is_none() && !self.containers.is_empty() && opening.admits_depth() && !opening.is_short_member() {
            *begun = Some(begin(self.sandbox, &opening.request(Some(self.containers)), opening.input)?);
        }
        // One that was begun before the rules changed judges by those of before.
        if let Some(one) = begun.as_mut().filter(|one| one.is_current()) {
            let answer = one.ask(question, check);
            if answer.is_err() {
                *begun = None;
            }
            return answer.map_err(in_words);
        }
        drop(begun);
        match opening.sample.bytes() {
            Some(content) if content.len() as u64 <= CONTENT_BYTES_MAX => self.ask_another(question, content, check),
            _ => {
                let mut other = begin(self.sandbox, &opening.request(Some(&[])), opening.input)?;
                other.ask(question, check).map_err(in_words)
            }
        }
    }

    /// Asks one of the processes that answer for this tree.
    fn ask_another(
        &self,
        question: Vec<u8>,
        content: &[u8],
        check: &dyn Fn() -> Result<(), Halt>,
    ) -> Result<Vec<u8>, String> {
        let mut respondent = self.opening.tree.respondent(self.sandbox)?;
        let answer = respondent.ask(question, content, check).map_err(in_words)?;
        lock(&self.opening.tree.respondents).push(respondent);
        Ok(answer)
    }
}

impl Confined for ConfinedFile<'_, '_> {
    fn ask(&self, question: Vec<u8>, about: About<'_>, limit: Duration) -> Result<Vec<u8>, String> {
        let began = Instant::now();
        let check = || match self.opening.tree.stop.reason() {
            Some(_) => Err(Halt::Stopped),
            None if began.elapsed() > limit => Err(Halt::Limit(Limit::Time)),
            None => Ok(()),
        };
        match about {
            About::File => self.ask_opened(question, &check),
            About::Piece(content) => self.ask_another(question, content, &check),
        }
    }

    fn remark(&self) -> Option<&[u8]> {
        self.remark.filter(|remark| remark.version == self.sandbox.generation()).map(|remark| remark.said.as_slice())
    }
}

/// Why there is no answer.
fn in_words(ended: Ended) -> String {
    match ended {
        Ended::Halted(Halt::Stopped) => Halt::Stopped.to_string(),
        Ended::Halted(Halt::Limit(_)) => "the scan took longer than it may".to_owned(),
        Ended::Failed(_, reason) => reason,
    }
}

/// A sample as the sandbox takes it.
pub(super) struct SandboxInput<'i> {
    tree: &'i Tree,
    node: &'i Node,
    sample: &'i Sample,
    budget: &'i Budget,
    told_bytes: Cell<u64>,
}

impl<'i> SandboxInput<'i> {
    pub fn new(tree: &'i Tree, node: &'i Node, sample: &'i Sample, budget: &'i Budget) -> Self {
        Self { tree, node, sample, budget, told_bytes: Cell::new(0) }
    }
}

impl Input for SandboxInput<'_> {
    fn whole(&self) -> Option<&[u8]> {
        self.sample.bytes().map(|bytes| &**bytes)
    }

    fn read_at(&self, offset: u64, most_bytes: u64) -> io::Result<Vec<u8>> {
        self.sample.read_at(offset, most_bytes).map(Vec::from).map_err(io::Error::other)
    }

    fn was_read(&self, bytes: u64) {
        if self.node.parent.is_none() {
            let before = self.told_bytes.replace(bytes);
            self.tree.progress.read(bytes.saturating_sub(before));
        }
    }
    fn turn(&self, turn: Turn) -> Option<Range<u32>> {
        // What is scanned meanwhile is not this container's time.
        self.budget.pause(|| share::turn(self.tree, self.node, turn, &|job| nested(job)))
    }

    fn walked(&self, members: u32) {
        self.node.walked(members);
    }
}
