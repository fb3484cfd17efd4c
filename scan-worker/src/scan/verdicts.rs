//! What earlier scans found, as scan threads use it.
//!
//! A member is asked about when it is queued, and the answer is there when a thread comes to it: questions are answered many
//! at once, off the scan threads. If nothing is kept its digests begin with the answer, among those of its neighbours.
//!
//! - Containers are always asked about. Leaves only while engines are slow: below [`LEAF_WORTH_US`] a question costs more
//!   than the scan, and a million entries that save nothing would push out those that do.
//! - The members of a container that is known are recorded again, page by page, under the ids that a scan would give them.
//!   So every tree that was scanned has records of its own, whatever of it was known, and ids follow from the place alone.
//!   A root that is known as a whole borrows its members instead, which costs the same whatever their number.
//! - Limits are counted for what is taken over as for what is scanned. What does not fit is scanned, so that the limit
//!   strikes where it would have.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lazaret_analysis::{
    DataId, FileInfo, FileResult, KeptTree, KeptVerdict, NestedRecord, Page, Rule, Times, TreeTotals, VerdictKey,
};
use lazaret_containers::{FileType, TreeBudget};
use lazaret_digests::{Pending, Selection};
use lazaret_protocol::BlobName;
use tokio::sync::oneshot;

use super::Tree;
use super::judge::begin_digests;
use super::node::Node;

/// From how long the engines take for a leaf, on average, it is worth to be asked about. A question and keeping its answer
/// cost about a tenth of it.
const LEAF_WORTH_US: u64 = 500;
/// How much the next leaf counts in that average: one in so many.
const LEAF_AVERAGE_OVER: u64 = 32;
/// Members of a known container that are recorded again at once. With each container in a container there is one more such
/// page in memory.
pub const PAGE_MEMBERS: u32 = 100;

/// What a question is answered with: what is kept, if anything.
pub type Answer = Box<dyn FnOnce(Option<KeptVerdict>) + Send>;

/// Verdicts of earlier scans.
pub trait Verdicts: Send + Sync {
    /// Asks what is kept under a key. The answer is called on a thread that may block; at once, with nothing, if too many
    /// questions wait.
    fn ask(&self, key: VerdictKey, answer: Answer);

    /// A page of the members of a container that is kept, [`PAGE_MEMBERS`] at most. Blocks.
    fn members(&self, parent: DataId, first: u32) -> Result<Page, String>;
}

/// What became of questions, since the process began.
#[derive(Debug, Default)]
pub struct VerdictCounters {
    /// Files that were asked about.
    pub asked: AtomicU64,
    /// Files that were known.
    pub known: AtomicU64,
    /// Files in known containers, which were neither extracted nor asked about.
    pub known_members: AtomicU64,
    /// Files whose verdict was kept.
    pub kept: AtomicU64,
    /// Submissions that waited for a twin.
    pub waited: AtomicU64,
}

/// How long engines take for a leaf.
#[derive(Debug, Default)]
pub(super) struct LeafCost {
    average_us: AtomicU64,
}

impl LeafCost {
    pub fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(1 << 32);
        // Threads that note at the same time may lose one of two; an average doesn't mind.
        let before = self.average_us.load(Ordering::Relaxed);
        let after = (before * (LEAF_AVERAGE_OVER - 1) + took).div_ceil(LEAF_AVERAGE_OVER);
        self.average_us.store(if before > after { after.min(before - 1) } else { after }, Ordering::Relaxed);
    }

    pub fn is_worth_asking(&self) -> bool {
        self.average_us.load(Ordering::Relaxed) >= LEAF_WORTH_US
    }
}

/// A question under way.
pub(super) struct Asked {
    pub key: VerdictKey,
    answer: oneshot::Receiver<(Option<KeptVerdict>, Option<Pending>)>,
}

impl Asked {
    /// The answer, and the digests that were begun if there is none.
    pub fn wait(self) -> (Option<KeptVerdict>, Option<Pending>) {
        self.answer.blocking_recv().unwrap_or_default()
    }
}

/// Asks about a member in memory, if that is worth it. Whoever gets no question begins the digests.
pub(super) fn ask(tree: &Arc<Tree>, name: &str, content: &Bytes, file_type: Option<&FileType>) -> Option<Asked> {
    let is_leaf = file_type.is_some_and(|file_type| file_type.containers.is_empty());
    if tree.scope.is_none() || (is_leaf && !tree.scanner.leaf_cost.is_worth_asking()) {
        return None;
    }
    let blob = BlobName::of(content);
    let (for_digests, content) = (tree.clone(), content.clone());
    ask_about(tree, name, blob, move || begin_digests(&for_digests, &content))
}

/// Asks about a member in the spool.
pub(super) fn ask_spooled(tree: &Arc<Tree>, name: &str, blob: BlobName) -> Option<Asked> {
    ask_about(tree, name, blob, || None)
}

fn ask_about(
    tree: &Tree,
    name: &str,
    blob: BlobName,
    otherwise: impl FnOnce() -> Option<Pending> + Send + 'static,
) -> Option<Asked> {
    let (scope, verdicts) = (tree.scope.as_ref()?, tree.verdicts.as_ref()?);
    let Selection { md5, sha1, sha256, sha512 } = tree.scanner.options.digests;
    let key = scope.key(blob.as_bytes(), name, [md5, sha1, sha256, sha512]);
    let (tell, answer) = oneshot::channel();
    tree.scanner.counters.asked.fetch_add(1, Ordering::Relaxed);
    verdicts.ask(
        key,
        Box::new(move |kept| {
            let digests = if kept.is_some() { None } else { otherwise() };
            // Whoever asked may have given up.
            let _ = tell.send((kept, digests));
        }),
    );
    Some(Asked { key, answer })
}

/// Whether a tree of these totals, whose container lies `depth` containers deep, is within what `limits` allow besides
/// numbers and bytes.
pub fn fits(rule: &Rule, depth: u32, totals: &TreeTotals) -> bool {
    let limits = &rule.limits;
    depth.saturating_add(totals.depth) <= limits.depth
        && limits.file_bytes.is_none_or(|most| totals.largest_bytes <= most)
}

/// Whether a whole submission of these totals is within its rule's limits.
pub fn root_fits(rule: &Rule, length: u64, totals: &TreeTotals) -> bool {
    fits(rule, 0, totals) && TreeBudget::new(crate::budget::limits(rule), length).admit(totals.files, totals.bytes)
}

/// What was found, as the result of a file that was not scanned for it. `name` and what else is known of the file are its own.
pub fn taken_over(kept: FileResult, file: FileInfo, start_ms: u64) -> FileResult {
    let mut result = kept;
    let FileInfo { display_name, size_bytes, md5, sha1, sha256, sha512, .. } = file;
    let either = |own: String, kept: &String| if own.is_empty() { kept.clone() } else { own };
    result.file = FileInfo {
        display_name,
        size_bytes,
        md5: either(md5, &result.file.md5),
        sha1: either(sha1, &result.file.sha1),
        sha256: either(sha256, &result.file.sha256),
        sha512: either(sha512, &result.file.sha512),
        ..result.file
    };
    for engine in &mut result.engines {
        (engine.scan_ms, engine.wait_ms) = (0, 0);
    }
    result.times = Times { start_ms, ..Times::default() };
    result
}

/// Takes a known file over: its result, after its members' records were put. None if it has to be scanned after all.
pub(super) fn take_over(
    tree: &Tree,
    node: &Node,
    kept: KeptVerdict,
    file: FileInfo,
) -> Option<(FileResult, TreeTotals)> {
    let counters = &tree.scanner.counters;
    let start_ms = tree.scanner.clock.unix_ms();
    let Some(KeptTree { source, totals }) = kept.tree else {
        counters.known.fetch_add(1, Ordering::Relaxed);
        return Some((taken_over(kept.result, file, start_ms), TreeTotals::default()));
    };
    if !fits(&tree.rule, node.depth, &totals) || !tree.budget.admit(totals.files, totals.bytes) {
        return None;
    }
    let mut result = taken_over(kept.result, file, start_ms);
    let mut copy = Copy { tree, ordinals: node.ordinals(), copied: 0 };
    let named = result.container.as_ref().and_then(|container| container.worst_child);
    let (lies_in, path) = (node.data_id, &node.path);
    match copy.members(source, lies_in, path, named) {
        Ok(worst_child) if copy.copied == totals.files => {
            if let Some(container) = &mut result.container {
                container.worst_child = worst_child;
            }
            counters.known.fetch_add(1, Ordering::Relaxed);
            counters.known_members.fetch_add(totals.files, Ordering::Relaxed);
            Some((result, totals))
        }
        Ok(_) => {
            // Its records went with an older analysis. What was recorded is recorded again by the scan, and counted once.
            tree.budget.give_back(totals.files, totals.bytes);
            None
        }
        Err(reason) => {
            tree.fail(reason);
            None
        }
    }
}

/// Records the members of a known container as another one's.
struct Copy<'c> {
    tree: &'c Tree,
    /// The place of the container whose members are being recorded.
    ordinals: Vec<u32>,
    copied: u64,
}

impl Copy<'_> {
    /// Records everything in `source` as lying in `parent` at `path`. Returns the new id of the member that is `named`.
    fn members(
        &mut self,
        source: DataId,
        parent: DataId,
        path: &str,
        named: Option<DataId>,
    ) -> Result<Option<DataId>, String> {
        let verdicts = self.tree.verdicts.as_ref().ok_or("no verdicts are kept")?;
        let (mut first, mut found) = (0, None);
        loop {
            if self.tree.stop.reason().is_some() {
                // The count is wrong then, and the file gets the code of what stopped it.
                return Ok(None);
            }
            let page = verdicts.members(source, first)?;
            let Some(last) = page.records.last() else { return Ok(found) };
            first = last.ordinal.saturating_add(1);
            for record in page.records {
                let original = record.data_id;
                let data_id = self.member(record, parent, path)?;
                if named == Some(original) {
                    found = Some(data_id);
                }
            }
        }
    }

    fn member(&mut self, record: NestedRecord, parent: DataId, path: &str) -> Result<DataId, String> {
        let NestedRecord { data_id: original, ordinal, mut result, .. } = record;
        self.ordinals.push(ordinal);
        let data_id = DataId::nested(&self.tree.scanner.options.nested_id_key, self.tree.root, &self.ordinals);
        let name = &result.file.display_name;
        let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        if let Some(container) = &mut result.container {
            container.worst_child = self.members(original, data_id, &path, container.worst_child)?;
        }
        self.ordinals.pop();
        self.copied = self.copied.saturating_add(1);
        let file = result.file.clone();
        let result = taken_over(result, file, self.tree.scanner.clock.unix_ms());
        self.tree.records.put(NestedRecord { data_id, root: self.tree.root, parent, ordinal, path, result })?;
        Ok(data_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_asked_about_while_engines_are_slow() {
        let cost = LeafCost::default();
        assert!(!cost.is_worth_asking());
        for _ in 0..100 {
            cost.note(Duration::from_micros(20));
        }
        assert!(!cost.is_worth_asking());
        for _ in 0..100 {
            cost.note(Duration::from_millis(5));
        }
        assert!(cost.is_worth_asking());
        for _ in 0..1_000 {
            cost.note(Duration::from_micros(20));
        }
        assert!(!cost.is_worth_asking());
    }
}
