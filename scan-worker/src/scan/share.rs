//! A root that several workers take apart together, as the scan of one of them sees it.
//!
//! Each walks through the whole container and takes the members that it has claimed; see `lazaret_analysis::share`. One of
//! them leads: it judges the root itself, and folds the others' parts into the result.
//!
//! Invariant: what is folded is what one worker alone would have found. Where that is in doubt (a limit was hit, a part did not
//! come to its end, two parts name different faults) nothing is folded, and the root is scanned by one worker alone.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lazaret_analysis::{FileResult, KeptVerdict, PartResult, ResultCode, Rule, VerdictKey};
use lazaret_containers::format::Found;
use lazaret_containers::{TreeBudget, Turn};

use super::judge::cut_short;
use super::node::{Folded, Judged, Node};
use super::{Tree, lock};
use crate::budget::{StopReason, limits};
use crate::pool::Job;

/// The formats that are worth it: of many members, and dear to judge but cheap to walk through. In a ZIP what others have is
/// not even read; in the others it is, and thrown away. Solid archives would be decoded once by each worker.
const FORMATS: [&str; 3] = ["zip", "tar", "cab"];
/// How long the members that are claimed at once should take: short, so that all workers end at about the same time, and long
/// beside a write to the store.
const CLAIM_DURATION: Duration = Duration::from_millis(250);
/// Most members that are claimed at once.
const CLAIM_MEMBERS_MAX: u32 = 4096;

/// How a scan shares its root with others. Its calls may block.
pub trait Sharing: Send + Sync {
    /// Whether it leads.
    fn leads(&self) -> bool;
    /// Lets others take part, now that the root has turned out to be worth it. False if they can't: it is taken apart alone.
    fn begin(&self) -> bool;
    /// The next members to take, about so many, in the container's order. None if they are no longer wanted here.
    fn claim(&self, count: u32) -> Result<Option<Range<u32>>, String>;
}

/// Members that were another worker's, for a scan that takes no others.
pub struct Remainder {
    ranges: Mutex<std::vec::IntoIter<Range<u32>>>,
}

impl Remainder {
    /// These, in order.
    pub fn new(ranges: Vec<Range<u32>>) -> Self {
        Self { ranges: Mutex::new(ranges.into_iter()) }
    }
}

impl Sharing for Remainder {
    fn leads(&self) -> bool {
        false
    }

    fn begin(&self) -> bool {
        true
    }

    fn claim(&self, _count: u32) -> Result<Option<Range<u32>>, String> {
        // Past the last one, a range that no container comes to.
        Ok(Some(lock(&self.ranges).next().unwrap_or(u32::MAX - 1..u32::MAX)))
    }
}

/// What a tree knows of its sharing.
pub(super) struct Shared {
    sharing: Arc<dyn Sharing>,
    active: AtomicBool,
    pace: Mutex<Pace>,
}

impl Shared {
    pub fn new(sharing: Arc<dyn Sharing>) -> Self {
        let active = AtomicBool::new(!sharing.leads());
        Self { sharing, active, pace: Mutex::default() }
    }

    /// Whether the root itself is judged here.
    pub fn leads(&self) -> bool {
        self.sharing.leads()
    }

    /// Whether others take parts of the root.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Shares the root if it is worth it, now that it is known to be these containers.
    pub fn begin(&self, containers: &[Found]) {
        let [only] = containers else { return };
        if !self.is_active() && FORMATS.contains(&only.format.name()) && self.sharing.begin() {
            self.active.store(true, Ordering::Release);
        }
    }
}

/// How many members are claimed at once.
#[derive(Default)]
struct Pace {
    claimed: Option<(u32, Instant)>,
}

impl Pace {
    fn next(&mut self) -> u32 {
        let count = match self.claimed {
            None => 1,
            Some((count, at)) if at.elapsed() < CLAIM_DURATION / 2 => count.saturating_mul(2).min(CLAIM_MEMBERS_MAX),
            Some((count, at)) if at.elapsed() > CLAIM_DURATION * 2 => (count / 2).max(1),
            Some((count, _)) => count,
        };
        self.claimed = Some((count, Instant::now()));
        count
    }
}

/// Answers which members of the root are to be handed out. `scan` does a queued job of the tree on this thread: before more is
/// claimed, what was claimed is scanned, or one worker would soon have everything in its queue.
pub(super) fn turn(tree: &Tree, root: &Node, turn: Turn, scan: &dyn Fn(Job)) -> Option<Range<u32>> {
    let Some(shared) = tree.shared.as_ref().filter(|shared| shared.is_active()) else { return Some(0..u32::MAX) };
    match turn {
        Turn::Rest(at) if shared.leads() => {
            root.claimed(at..u32::MAX);
            Some(at..u32::MAX)
        }
        // Every claim is paid for by members, which limits count: a reader that was subverted can't ask for ever.
        Turn::Next { .. } if !root.may_claim() => None,
        Turn::Rest(_) => None,
        Turn::Next { .. } => {
            let others = tree.scanner.options.scan_threads.saturating_sub(1);
            while tree.stop.reason().is_none()
                && let Some(job) = tree.lane.pop_beyond(2 * others)
            {
                scan(job);
            }
            let count = lock(&shared.pace).next();
            match shared.sharing.claim(count) {
                Ok(Some(range)) => {
                    root.claimed(range.clone());
                    Some(range)
                }
                Ok(None) => {
                    tree.stop.stop(StopReason::Abandoned);
                    None
                }
                Err(reason) => {
                    tree.fail(reason);
                    None
                }
            }
        }
    }
}

/// The part of a root that this scan took, to be folded with the others'.
pub struct RootPart {
    pub(super) node: Arc<Node>,
    pub(super) rule: Rule,
    pub(super) length: u64,
    pub(super) judged: Judged,
    pub(super) folded: Folded,
    pub(super) result: PartResult,
    pub(super) stopped: Option<StopReason>,
}

impl std::fmt::Debug for RootPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootPart").field("result", &self.result).field("stopped", &self.stopped).finish_non_exhaustive()
    }
}

/// A root's result, and its verdict to be kept for others if it is worth that.
pub type Whole = (FileResult, Option<(VerdictKey, KeptVerdict)>);

impl RootPart {
    /// What was found in this part.
    pub fn result(&self) -> &PartResult {
        &self.result
    }

    /// How many direct members the root has, as far as this scan saw.
    pub fn members(&self) -> u32 {
        self.folded.members
    }

    /// Why the scan was stopped, if it was.
    pub fn stopped(&self) -> Option<StopReason> {
        self.stopped
    }

    /// Notes that it is stopped while others' parts are waited for.
    pub fn stop(&mut self, reason: StopReason) {
        if let (None, Some(code)) = (self.stopped, reason.code()) {
            cut_short(&mut self.judged, code, &self.rule.policy());
            self.stopped = Some(reason);
        }
    }

    /// The root's result, with the others' parts folded in. None if it can't be told from parts what one scan of the whole
    /// would have found. Of a scan that was stopped there is always one: of what was found until then.
    pub fn whole(mut self, others: &[PartResult]) -> Option<Whole> {
        if self.stopped.is_none() && !others.is_empty() && !self.agrees_with(others) {
            return None;
        }
        let policy = self.rule.policy();
        for part in others {
            self.folded.add(part, &policy);
            let opened = self.judged.container.get_or_insert_default();
            if opened.reason.is_none() {
                (opened.reason, opened.detail) = (part.reason, part.detail.clone());
            }
            opened.encrypted |= part.encrypted;
            opened.decrypted |= part.decrypted;
        }
        let key = self.judged.key;
        let (result, keepable) = self.node.root_result(&self.folded, self.judged, &self.rule);
        let kept = key.filter(|_| keepable && self.stopped.is_none());
        let kept = kept.map(|key| (key, self.node.kept_verdict(&result, self.folded.totals)));
        Some((result, kept))
    }

    fn agrees_with(&self, others: &[PartResult]) -> bool {
        let all = || others.iter().chain([&self.result]);
        let fault = |part: &PartResult| part.reason.map(|reason| (reason, part.detail.clone()));
        let mut faults: Vec<(ResultCode, String)> = all().filter_map(fault).collect();
        faults.dedup();
        let sum = |of: fn(&PartResult) -> u64| all().map(of).fold(0, u64::saturating_add);
        let tree = TreeBudget::new(limits(&self.rule), self.length);
        all().all(|part| part.complete)
            && faults.len() <= 1
            && tree.admit(sum(|part| part.used_files), sum(|part| part.used_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_what_members_take() {
        let mut pace = Pace::default();
        let counts: Vec<u32> = (0..15).map(|_| pace.next()).collect();
        assert_eq!(counts[..4], [1, 2, 4, 8]);
        assert_eq!(counts[14], CLAIM_MEMBERS_MAX);
        let long_ago = Instant::now().checked_sub(3 * CLAIM_DURATION).unwrap();
        pace.claimed = Some((8, long_ago));
        assert_eq!(pace.next(), 4);
        pace.claimed = Some((1, long_ago));
        assert_eq!(pace.next(), 1);
    }

    #[test]
    fn a_remainder_is_claimed_in_order_and_then_nothing() {
        let remainder = Remainder::new(vec![3..5, 9..10]);
        let claims: Vec<_> = (0..4).map(|_| remainder.claim(7).unwrap().unwrap()).collect();
        assert_eq!(claims, [3..5, 9..10, u32::MAX - 1..u32::MAX, u32::MAX - 1..u32::MAX]);
    }
}
