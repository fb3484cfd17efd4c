//! A file of the tree while it is being scanned: its place, and the counters that fold its members' results into its own.
//!
//! A node stays only as long as something in it is unfinished, so a container with a million members costs as much as
//! one with a single member.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use lazaret_analysis::cache::may_be_kept;
use lazaret_analysis::verdict::Extraction;
use lazaret_analysis::{
    ContainerResult, DataId, EngineResult, FileInfo, FileResult, Findings, KeptTree, KeptVerdict, NestedRecord,
    Outcome, PartResult, Policy, ResultCode, Rule, Times, TreeTotals, VerdictKey, WorstMember, own_result,
};

use super::share::RootPart;
use super::{Tree, lock, ms_since};

/// A file's place in its tree, and what is known of its results so far.
pub(super) struct Node {
    pub parent: Option<Arc<Node>>,
    pub data_id: DataId,
    pub ordinal: u32,
    /// How many containers deep it lies; the root is at 0.
    pub depth: u32,
    pub name: String,
    /// Its place in the root: names joined by `/`; empty for the root.
    pub path: String,
    pub created: Instant,
    state: Mutex<State>,
}

struct State {
    /// What is unfinished: the file's own scan and its direct members.
    open: u64,
    judged: Option<Judged>,
    folded: Folded,
    /// Where the members that are this scan's end, if others take some of them.
    claimed_end: u32,
    /// Whether all members were walked past, those of others included.
    walked: bool,
}

/// What direct members' results come to.
#[derive(Default)]
pub(super) struct Folded {
    /// How many there are.
    pub members: u32,
    pub detected: u64,
    /// The one with the worst result so far, its own nested files included, so that whoever follows it from container to
    /// container arrives at the file that decided. Of equally bad ones the first in the archive's order, whoever was
    /// finished first.
    pub worst: Option<WorstMember>,
    /// What its members took, theirs included.
    pub totals: TreeTotals,
    /// Whether one of them can't be kept as a verdict, so that its container can't either.
    pub unkeepable: bool,
    /// Past the last member that came.
    came: u32,
    /// Whether members came that were others'.
    strayed: bool,
}

impl Folded {
    fn add_worst(&mut self, candidate: WorstMember, policy: &Policy) {
        let key = |worst: &WorstMember| (policy.rank(worst.code), worst.ordinal);
        if self.worst.as_ref().is_none_or(|so_far| key(&candidate) < key(so_far)) {
            self.worst = Some(candidate);
        }
    }

    /// Adds what another worker found in its members.
    pub fn add(&mut self, part: &PartResult, policy: &Policy) {
        if let Some(worst) = part.worst {
            self.add_worst(worst, policy);
        }
        self.detected = self.detected.saturating_add(part.detected);
        self.totals.merge(&part.totals);
        self.unkeepable |= part.unkeepable;
    }
}

/// What a finished file tells its container besides its result.
#[derive(Clone, Copy)]
struct Tally {
    totals: TreeTotals,
    keepable: bool,
}

/// What a file's own scan found.
#[derive(Default)]
pub(super) struct Judged {
    pub file: FileInfo,
    pub engines: Vec<EngineResult>,
    pub container: Option<Opened>,
    /// The result of what kept the file from being judged at all.
    pub failure: Option<ResultCode>,
    pub times: Times,
    pub detail: String,
    pub findings: Findings,
    /// Under what the verdict is kept, if it is worth that.
    pub key: Option<VerdictKey>,
    /// It can't be kept, nor can that of a container which it lies in: another scan might find more.
    pub unkeepable: bool,
    /// The whole result, and what is nested in it, if that was known.
    pub taken: Option<(FileResult, TreeTotals)>,
}

impl Judged {
    /// Takes in what came of taking the file apart.
    pub fn came_apart(&mut self, opened: Option<Opened>) {
        self.unkeepable |= opened.as_ref().is_some_and(|opened| opened.unkeepable);
        self.container = opened;
    }
}

/// What came of taking it apart.
#[derive(Default)]
pub(super) struct Opened {
    /// Why it did not come apart completely.
    pub reason: Option<ResultCode>,
    pub detail: String,
    pub encrypted: bool,
    pub decrypted: bool,
    /// In another tree it may come apart further.
    pub unkeepable: bool,
}

impl Node {
    pub fn root(data_id: DataId, name: String) -> Self {
        Self::new(None, data_id, 0, 0, name, String::new())
    }

    fn new(parent: Option<Arc<Node>>, data_id: DataId, ordinal: u32, depth: u32, name: String, path: String) -> Self {
        let state = State { open: 1, judged: None, folded: Folded::default(), claimed_end: u32::MAX, walked: false };
        Self { parent, data_id, ordinal, depth, name, path, created: Instant::now(), state: Mutex::new(state) }
    }

    /// The next direct member.
    pub fn member(self: &Arc<Self>, tree: &Tree, name: String) -> Arc<Self> {
        let ordinal = {
            let mut state = lock(&self.state);
            state.open += 1;
            let ordinal = state.folded.members;
            state.folded.members = ordinal.saturating_add(1);
            state.folded.came = state.folded.members;
            state.folded.strayed |= ordinal >= state.claimed_end;
            ordinal
        };
        let mut ordinals = self.ordinals();
        ordinals.push(ordinal);
        let data_id = DataId::nested(&tree.scanner.options.nested_id_key, tree.root, &ordinals);
        let path = if self.path.is_empty() { name.clone() } else { format!("{}/{name}", self.path) };
        Arc::new(Self::new(Some(self.clone()), data_id, ordinal, self.depth + 1, name, path))
    }

    /// Whether all members that were claimed have come. If not, whoever asks for more does not say what it should.
    pub fn may_claim(&self) -> bool {
        let mut state = lock(&self.state);
        let may = state.claimed_end == u32::MAX || state.folded.members >= state.claimed_end;
        state.folded.strayed |= !may;
        may
    }

    /// The next members that come are these: those before are others'.
    pub fn claimed(&self, range: Range<u32>) {
        let mut state = lock(&self.state);
        state.folded.strayed |= range.start < state.folded.came;
        (state.folded.members, state.claimed_end) = (range.start, range.end);
    }

    /// That is how many direct members there are, those of others included.
    pub fn walked(&self, members: u32) {
        let mut state = lock(&self.state);
        state.folded.members = members;
        state.walked = true;
    }

    /// Its place in the root: the index within each container, outermost first; empty for the root.
    pub fn ordinals(&self) -> Vec<u32> {
        let mut ordinals = Vec::new();
        let mut node = Some(self);
        while let Some(Self { parent: Some(parent), ordinal, .. }) = node {
            ordinals.push(*ordinal);
            node = Some(parent);
        }
        ordinals.reverse();
        ordinals
    }

    /// The file's own scan is done.
    pub fn judged(self: &Arc<Self>, tree: &Tree, judged: Judged) {
        lock(&self.state).judged = Some(judged);
        let mut finished = Some(self.clone());
        while let Some(node) = finished {
            finished = node.close_one(tree);
        }
    }

    /// One of the things that were open is finished. If it was the last, the file is, and something of its parent.
    fn close_one(self: &Arc<Self>, tree: &Tree) -> Option<Arc<Self>> {
        if self.parent.is_none() && tree.is_shared() {
            self.close_part(tree);
            return None;
        }
        let (result, tally, key) = {
            let mut state = lock(&self.state);
            state.open = state.open.saturating_sub(1);
            if state.open > 0 {
                return None;
            }
            let mut judged = state.judged.take().unwrap_or_default();
            let (key, unkeepable) = (judged.key, judged.unkeepable || state.folded.unkeepable);
            let (result, totals) = match judged.taken.take() {
                Some((mut result, totals)) => {
                    result.times.total_ms = ms_since(self.created);
                    (result, totals)
                }
                None => (self.result(&state.folded, judged, &tree.rule), state.folded.totals),
            };
            let keepable = !unkeepable && may_be_kept(&result) && tree.stop.reason().is_none();
            (result, Tally { totals, keepable }, key)
        };
        let Some(parent) = self.parent.clone() else {
            self.keep(tree, key, &result, tally);
            tree.finish(result);
            return None;
        };
        parent.fold(self, &result, tally, &tree.rule.policy());
        if !tree.is_lost() {
            let kept = key.map(|key| (key, result.clone()));
            let record = NestedRecord {
                data_id: self.data_id,
                root: tree.root,
                parent: parent.data_id,
                ordinal: self.ordinal,
                path: self.path.clone(),
                result,
            };
            if let Err(error) = tree.records.put(record) {
                tree.fail(error);
            } else if let Some((key, result)) = kept {
                self.keep(tree, Some(key), &result, tally);
            }
        }
        Some(parent)
    }

    /// The same for a root of which others have parts: its result is told by whoever folds them.
    fn close_part(self: &Arc<Self>, tree: &Tree) {
        let (judged, folded, walked) = {
            let mut state = lock(&self.state);
            state.open = state.open.saturating_sub(1);
            if state.open > 0 {
                return;
            }
            (state.judged.take().unwrap_or_default(), std::mem::take(&mut state.folded), state.walked)
        };
        let stopped = tree.stop.reason();
        let used = tree.budget.used();
        let opened = judged.container.as_ref();
        let result = PartResult {
            complete: walked && !folded.strayed && stopped.is_none() && tree.budget.hit_limit().is_none(),
            worst: folded.worst,
            detected: folded.detected,
            totals: folded.totals,
            unkeepable: folded.unkeepable || judged.unkeepable,
            used_files: used.files,
            used_bytes: used.produced_bytes,
            reason: opened.and_then(|opened| opened.reason),
            detail: opened.map(|opened| opened.detail.clone()).unwrap_or_default(),
            encrypted: opened.is_some_and(|opened| opened.encrypted),
            decrypted: opened.is_some_and(|opened| opened.decrypted),
        };
        let (node, rule, length) = (self.clone(), tree.rule.clone(), used.root_bytes);
        tree.finish_part(RootPart { node, rule, length, judged, folded, result, stopped });
    }

    /// A root's result, of all that was folded; and whether its verdict may be kept.
    pub fn root_result(&self, folded: &Folded, judged: Judged, rule: &Rule) -> (FileResult, bool) {
        let unkeepable = folded.unkeepable || judged.unkeepable;
        let result = self.result(folded, judged, rule);
        let keepable = !unkeepable && may_be_kept(&result);
        (result, keepable)
    }

    /// Offers its verdict for keeping, after its own record and those of its members.
    fn keep(&self, tree: &Tree, key: Option<VerdictKey>, result: &FileResult, tally: Tally) {
        let Some(key) = key.filter(|_| tally.keepable) else { return };
        tree.scanner.counters.kept.fetch_add(1, Ordering::Relaxed);
        tree.records.keep(key, self.kept_verdict(result, tally.totals));
    }

    /// The verdict as it is kept for others.
    pub fn kept_verdict(&self, result: &FileResult, totals: TreeTotals) -> KeptVerdict {
        let tree = container_totals(result, totals).map(|totals| KeptTree { source: self.data_id, totals });
        KeptVerdict { result: result.clone(), tree }
    }

    /// Takes a direct member's result into account.
    fn fold(&self, member: &Self, result: &FileResult, tally: Tally, policy: &Policy) {
        let candidate = WorstMember { code: result.overall, ordinal: member.ordinal, data_id: member.data_id };
        let within = container_totals(result, tally.totals);
        let folded = &mut lock(&self.state).folded;
        folded.totals.add(result.file.size_bytes, within.as_ref());
        folded.unkeepable |= !tally.keepable;
        folded.detected += u64::from(is_threat(result.own));
        folded.detected += result.container.as_ref().map_or(0, |container| container.detected_count);
        folded.add_worst(candidate, policy);
    }

    fn result(&self, folded: &Folded, judged: Judged, rule: &Rule) -> FileResult {
        let extraction = match &judged.container {
            None => Extraction::NotAContainer,
            Some(Opened { reason: None, .. }) => Extraction::Complete,
            Some(Opened { reason: Some(code), .. }) => Extraction::Incomplete(*code),
        };
        let policy = rule.policy();
        let mut own = match (&judged.findings.skipped, extraction) {
            // Not "Not Scanned" made good by members that were: the rule has it not scanned.
            (Some(skipped), Extraction::Incomplete(limit)) => policy.worst(skipped.code, limit),
            (Some(skipped), _) => skipped.code,
            (None, _) => own_result(&policy, judged.engines.iter().map(|engine| engine.code), extraction),
        };
        if let Some(failure) = judged.failure {
            own = policy.worst(own, failure);
        }
        let overall = folded.worst.map_or(own, |nested| policy.worst(own, nested.code));
        let mut blocked_reasons = Vec::new();
        for code in [overall, own] {
            let text = code.text().to_owned();
            if policy.outcome(code) == Outcome::Blocked && !blocked_reasons.contains(&text) {
                blocked_reasons.push(text);
            }
        }
        // A container's is told with how it came apart.
        if judged.container.is_none() && judged.failure.is_some() && !blocked_reasons.is_empty() {
            blocked_reasons.extend((!judged.detail.is_empty()).then(|| judged.detail.clone()));
        }
        let container = judged.container.map(|opened| ContainerResult {
            extracted_count: u64::from(folded.members),
            detected_count: folded.detected,
            worst_child: folded.worst.filter(|nested| nested.code == overall).map(|nested| nested.data_id),
            reason: opened.reason,
            detail: opened.detail,
            encrypted: opened.encrypted,
            decrypted: opened.decrypted,
        });
        let times = Times { total_ms: ms_since(self.created), ..judged.times };
        FileResult {
            own,
            overall,
            engines: judged.engines,
            file: judged.file,
            container,
            blocked_reasons,
            times,
            detail: judged.detail,
            findings: judged.findings,
        }
    }
}

/// What the members of a file took, if it is a container: that is a level deep even if nothing came out of it.
fn container_totals(result: &FileResult, totals: TreeTotals) -> Option<TreeTotals> {
    result.container.as_ref().map(|_| TreeTotals { depth: totals.depth.max(1), ..totals })
}

/// Whether a code is a threat and not a fault, a limit or a clean bill: the part of the severity table above "Scan Failed".
fn is_threat(code: ResultCode) -> bool {
    code.severity_rank() < ResultCode::SCAN_FAILED.severity_rank()
}
