//! What taking containers apart may cost. Counted on what really comes out, never on what a header claims.
//!
//! Bytes, files and the ratio are counted over the whole tree of nested files, the ratio for each container too, and time for
//! each container alone. The first limit of the tree that is hit stops every extraction in it with the same limit.
//! Invariant: at most one read's worth of bytes comes out beyond a limit.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::limits::{Halt, Limit, Limits};

/// Says whether a tree is no longer scanned. Asked at every read, so it must cost next to nothing.
pub trait Stop: Send + Sync {
    /// Whether to stop.
    fn is_stopped(&self) -> bool;
}

impl Stop for AtomicBool {
    fn is_stopped(&self) -> bool {
        self.load(Ordering::Acquire)
    }
}

/// So much of a tree may be read again in other ways than the first, and as many times its root's length: what can be read in two
/// ways, and in each contains something that can, doubles with each step.
const REREAD_FREE_BYTES: u64 = 4 << 20;
const REREAD_TIMES: u64 = 16;
/// What a short one counts for: what comes of it costs more than its bytes.
const REREAD_BYTES_LEAST: u64 = 4 << 10;

/// How much of a tree's budget is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeUse {
    /// The length of its root.
    pub root_bytes: u64,
    /// How many nested files came out.
    pub files: u64,
    /// How many bytes came out.
    pub produced_bytes: u64,
    /// How many bytes were read again, in other ways than the first.
    pub reread_bytes: u64,
}

/// What one submission may cost in all.
#[derive(Debug)]
pub struct TreeBudget {
    limits: Limits,
    root_bytes: u64,
    files: AtomicU64,
    produced_bytes: AtomicU64,
    reread_bytes: AtomicU64,
    /// The limit that was hit first; 0 for none.
    hit: AtomicU8,
}

impl TreeBudget {
    /// The budget of a root of so many bytes.
    pub fn new(limits: Limits, root_bytes: u64) -> Self {
        let none = TreeUse { root_bytes, files: 0, produced_bytes: 0, reread_bytes: 0 };
        Self::resumed(limits, none)
    }

    /// A budget of which so much is used: another process's, or this one's at another time.
    pub fn resumed(limits: Limits, used: TreeUse) -> Self {
        let TreeUse { root_bytes, files, produced_bytes, reread_bytes } = used;
        Self {
            limits,
            root_bytes,
            files: files.into(),
            produced_bytes: produced_bytes.into(),
            reread_bytes: reread_bytes.into(),
            hit: AtomicU8::new(0),
        }
    }

    /// What is used of it.
    pub fn used(&self) -> TreeUse {
        TreeUse {
            root_bytes: self.root_bytes,
            files: self.files.load(Ordering::Relaxed),
            produced_bytes: self.produced_bytes(),
            reread_bytes: self.reread_bytes.load(Ordering::Relaxed),
        }
    }

    /// Counts a tree of so many files and bytes at once, one that is known. False, and nothing is counted, if it is more than
    /// is left.
    pub fn admit(&self, files: u64, bytes: u64) -> bool {
        let fits = |used: u64, more: u64, most: u64| used.checked_add(more).filter(|sum| *sum <= most);
        let take_files = |used| fits(used, files, self.limits.files);
        if self.check().is_err() || self.files.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take_files).is_err() {
            return false;
        }
        let take_bytes = |used| {
            fits(used, bytes, self.limits.produced_bytes).filter(|sum| !self.is_over_ratio(*sum, self.root_bytes))
        };
        let admitted = self.produced_bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take_bytes).is_ok();
        if !admitted {
            self.files.fetch_sub(files, Ordering::AcqRel);
        }
        admitted
    }

    /// Takes back what [`TreeBudget::admit`] counted.
    pub fn give_back(&self, files: u64, bytes: u64) {
        self.files.fetch_sub(files, Ordering::AcqRel);
        self.produced_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// What it allows.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many bytes came out so far.
    pub fn produced_bytes(&self) -> u64 {
        self.produced_bytes.load(Ordering::Relaxed)
    }

    /// Whether a container that lies `depth` containers deep may be taken apart.
    pub fn admits_depth(&self, depth: u32) -> bool {
        depth < self.limits.depth
    }

    /// The limit that was hit first, if one was.
    pub fn hit_limit(&self) -> Option<Limit> {
        limit_of(self.hit.load(Ordering::Relaxed))
    }

    fn check(&self) -> Result<(), Halt> {
        match limit_of(self.hit.load(Ordering::Relaxed)) {
            Some(limit) => Err(Halt::Limit(limit)),
            None => Ok(()),
        }
    }

    fn hit(&self, limit: Limit) -> Halt {
        let first = self.hit.compare_exchange(0, limit as u8, Ordering::AcqRel, Ordering::Acquire);
        Halt::Limit(first.err().and_then(limit_of).unwrap_or(limit))
    }

    fn is_over_ratio(&self, produced_bytes: u64, input_bytes: u64) -> bool {
        produced_bytes > self.limits.ratio_free_bytes && produced_bytes > self.limits.ratio.saturating_mul(input_bytes)
    }
}

fn limit_of(number: u8) -> Option<Limit> {
    Limit::ALL.into_iter().find(|limit| *limit as u8 == number)
}

/// What is asked of whoever decides who takes which members of a container that several take apart together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// Which members are the next to be handed out here, where all before this one are somebody's already.
    Next {
        /// The first that is nobody's, as far as is known here.
        member: u32,
        /// How much of the container was not read up to now, since it is others'.
        passed_bytes: u64,
    },
    /// Whether everything from this member on is to be handed out here: what only one of all can find.
    Rest(u32),
}

/// Answers [`Turn`]s: a range of members for `Next`, anything but none for `Rest`. None to `Next` ends the extraction.
pub type Turns = Box<dyn Fn(Turn) -> Option<Range<u32>>>;

/// The part of a container that is handed out here, while others take the rest of it apart. Members are numbered in the order
/// in which the reader comes to them.
struct Share {
    turns: Turns,
    /// The members that were claimed last.
    claimed: RefCell<Range<u32>>,
    /// The next member's number.
    next: Cell<u32>,
    /// How much of the container was not read, since it is others'.
    passed_bytes: Cell<u64>,
}

/// What taking one container apart may cost. Its clock starts with it.
pub struct Budget {
    tree: Arc<TreeBudget>,
    stop: Arc<dyn Stop>,
    input_bytes: u64,
    produced_bytes: Cell<u64>,
    member_bytes: Cell<u64>,
    started: Instant,
    paused: Cell<Duration>,
    share: Option<Share>,
}

impl Budget {
    /// The budget of a container of `input_bytes` in a tree.
    pub fn new(tree: Arc<TreeBudget>, stop: Arc<dyn Stop>, input_bytes: u64) -> Self {
        Self {
            tree,
            stop,
            input_bytes,
            produced_bytes: Cell::new(0),
            member_bytes: Cell::new(0),
            started: Instant::now(),
            paused: Cell::new(Duration::ZERO),
            share: None,
        }
    }

    /// The same for a container that several take apart together. Readers hand out here what is this one's turn.
    #[must_use]
    pub fn shared(self, turns: Turns) -> Self {
        let share = Share { turns, claimed: RefCell::new(0..0), next: Cell::new(0), passed_bytes: Cell::new(0) };
        Self { share: Some(share), ..self }
    }

    /// Whether others take parts of the container.
    pub fn is_shared(&self) -> bool {
        self.share.is_some()
    }

    /// Whether the next member is to be handed out here. Waiting for the answer is not this container's time.
    pub fn takes_next(&self) -> Result<bool, Halt> {
        let Some(share) = &self.share else { return Ok(true) };
        let next = share.next.get();
        if next >= share.claimed.borrow().end {
            let turn = Turn::Next { member: next, passed_bytes: share.passed_bytes.get() };
            let claimed = self.pause(|| (share.turns)(turn)).ok_or(Halt::Stopped)?;
            if claimed.start < next || claimed.is_empty() {
                return Err(Halt::Stopped);
            }
            share.claimed.replace(claimed);
        }
        Ok(share.claimed.borrow().contains(&next))
    }

    /// Counts a member that others hand out, and so much of the container that need not be read for it.
    pub fn pass_over(&self, bytes: u64) {
        if let Some(share) = &self.share {
            share.passed_bytes.set(share.passed_bytes.get().saturating_add(bytes));
        }
        self.number_one();
    }

    /// Counts a member that was handed out, or passed over.
    pub(crate) fn number_one(&self) {
        if let Some(share) = &self.share {
            share.next.set(share.next.get().saturating_add(1));
        }
    }

    /// Whether what is still to be found is to be handed out here, all of it: what others don't look for.
    pub fn takes_rest(&self) -> bool {
        let Some(share) = &self.share else { return true };
        let next = share.next.get();
        let taken = self.pause(|| (share.turns)(Turn::Rest(next))).is_some();
        if taken {
            share.claimed.replace(next..u32::MAX);
        }
        taken
    }

    /// How many members of a shared container there were up to now.
    pub fn walked(&self) -> u32 {
        self.share.as_ref().map_or(0, |share| share.next.get())
    }

    /// Whether to go on. Asked at every read, of the container as well as of its members.
    pub fn check(&self) -> Result<(), Halt> {
        if self.stop.is_stopped() {
            return Err(Halt::Stopped);
        }
        self.tree.check()?;
        if self.spent() > Duration::from_secs(self.tree.limits.archive_seconds) {
            return Err(Halt::Limit(Limit::Time));
        }
        Ok(())
    }

    /// Counts one more member.
    pub fn count_file(&self) -> Result<(), Halt> {
        self.check()?;
        self.member_bytes.set(0);
        if self.tree.files.fetch_add(1, Ordering::Relaxed) >= self.tree.limits.files {
            return Err(self.tree.hit(Limit::Files));
        }
        Ok(())
    }

    /// Counts bytes that came out of the current member.
    pub fn count_bytes(&self, bytes: u64) -> Result<(), Halt> {
        let tree = &self.tree;
        let in_tree = tree.produced_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let in_container = self.produced_bytes.get().saturating_add(bytes);
        let in_member = self.member_bytes.get().saturating_add(bytes);
        self.produced_bytes.set(in_container);
        self.member_bytes.set(in_member);
        if in_tree > tree.limits.produced_bytes {
            return Err(tree.hit(Limit::Size));
        }
        if tree.is_over_ratio(in_tree, tree.root_bytes) {
            return Err(tree.hit(Limit::Ratio));
        }
        if tree.is_over_ratio(in_container, self.input_bytes) {
            return Err(Halt::Limit(Limit::Ratio));
        }
        if tree.limits.file_bytes.is_some_and(|most| in_member > most) {
            return Err(Halt::Limit(Limit::Size));
        }
        self.check()
    }

    /// Whether something of the tree may be read once more, in another way. What is read so is counted when that is done.
    pub fn admits_rereading(&self) -> bool {
        let most = REREAD_FREE_BYTES.saturating_add(REREAD_TIMES.saturating_mul(self.tree.root_bytes));
        self.tree.reread_bytes.load(Ordering::Relaxed) < most
    }

    /// Counts something that is read once more.
    pub fn count_rereading(&self, bytes: u64) {
        self.tree.reread_bytes.fetch_add(bytes.max(REREAD_BYTES_LEAST), Ordering::Relaxed);
    }

    /// Counts what another process read once more.
    pub fn add_reread(&self, bytes: u64) {
        let add = |sum: u64| Some(sum.saturating_add(bytes));
        let _ = self.tree.reread_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// What is used of the tree's budget.
    pub fn tree_use(&self) -> TreeUse {
        self.tree.used()
    }

    /// Does what is not taking the container apart, off its clock.
    pub fn pause<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        self.paused.set(self.paused.get() + began.elapsed());
        done
    }

    /// The time that taking the container apart took so far.
    pub fn spent(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.paused.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(change: impl FnOnce(&mut Limits), input_bytes: u64) -> Budget {
        let mut limits = crate::conformance::limits();
        change(&mut limits);
        let stop: Arc<AtomicBool> = Arc::default();
        Budget::new(Arc::new(TreeBudget::new(limits, input_bytes)), stop, input_bytes)
    }

    #[test]
    fn members_of_others_are_passed_over_and_the_rest_is_one_walks() {
        let claims = RefCell::new(vec![5..6, 1..3]);
        let turns = move |turn| match turn {
            Turn::Next { .. } => claims.borrow_mut().pop(),
            Turn::Rest(at) => Some(at..u32::MAX),
        };
        let budget = budget(|_| (), 50).shared(Box::new(turns));
        let taken: Vec<bool> = (0..6)
            .map(|_| {
                let takes = budget.takes_next().unwrap();
                assert_eq!(budget.takes_next(), Ok(takes), "asked twice, answered the same");
                budget.pass_over(10);
                takes
            })
            .collect();
        assert_eq!(taken, [false, true, true, false, false, true]);
        assert_eq!(budget.walked(), 6);
        assert_eq!(budget.takes_next(), Err(Halt::Stopped), "nobody answers any more");
        assert!(budget.takes_rest());
        assert_eq!(budget.takes_next(), Ok(true));
        assert!(super::tests::budget(|_| (), 50).takes_rest(), "what is not shared is all one's own");
    }

    #[test]
    fn files_are_counted_over_the_tree_and_stop_it() {
        let first = budget(|limits| limits.files = 2, 10);
        let second = Budget::new(first.tree.clone(), first.stop.clone(), 10);
        first.count_file().unwrap();
        second.count_file().unwrap();
        assert_eq!(first.count_file(), Err(Halt::Limit(Limit::Files)));
        assert_eq!(second.check(), Err(Halt::Limit(Limit::Files)));
    }

    #[test]
    fn the_ratio_counts_beyond_the_free_bytes_only() {
        let budget = budget(|limits| (limits.ratio, limits.ratio_free_bytes) = (10, 1000), 50);
        budget.count_bytes(1000).unwrap();
        assert_eq!(budget.count_bytes(1), Err(Halt::Limit(Limit::Ratio)));
    }

    #[test]
    fn a_small_container_in_a_large_root_has_a_ratio_of_its_own() {
        let root = budget(|limits| (limits.ratio, limits.ratio_free_bytes) = (10, 1000), 1 << 20);
        let small = Budget::new(root.tree.clone(), root.stop.clone(), 50);
        small.count_bytes(1000).unwrap();
        assert_eq!(small.count_bytes(1), Err(Halt::Limit(Limit::Ratio)));
        root.count_bytes(5000).unwrap();
    }

    #[test]
    fn bytes_files_of_a_length_and_stops() {
        let first = budget(|limits| (limits.produced_bytes, limits.file_bytes) = (100, Some(60)), 50);
        first.count_file().unwrap();
        first.count_bytes(60).unwrap();
        assert_eq!(first.count_bytes(1), Err(Halt::Limit(Limit::Size)));
        first.count_file().unwrap();
        first.count_bytes(39).unwrap();
        assert_eq!(first.count_bytes(1), Err(Halt::Limit(Limit::Size)));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Budget::new(first.tree.clone(), stop.clone(), 50);
        stop.store(true, Ordering::Release);
        assert_eq!(stopped.count_file(), Err(Halt::Stopped));
    }

    #[test]
    fn a_known_tree_counts_as_a_whole_or_not_at_all() {
        let budget = budget(|limits| (limits.files, limits.produced_bytes) = (10, 100), 50);
        let tree = &budget.tree;
        assert!(tree.admit(9, 60));
        assert!(!tree.admit(2, 1) && !tree.admit(1, 41));
        let used = tree.used();
        assert_eq!((used.files, used.produced_bytes), (9, 60));
        budget.count_file().unwrap();
        assert!(!tree.admit(1, 1));
        tree.give_back(9, 60);
        assert!(tree.admit(9, 100));
        assert!(!tree.admit(u64::MAX, u64::MAX));
        let ratio = super::tests::budget(|limits| (limits.ratio, limits.ratio_free_bytes) = (10, 1000), 50);
        assert!(ratio.tree.admit(1, 1000) && !ratio.tree.admit(1, 1));
    }

    #[test]
    fn the_clock_leaves_out_what_is_paused() {
        let budget = budget(|_| (), 50);
        let before = budget.spent();
        budget.pause(|| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(20) {}
        });
        assert!(budget.spent() < before + Duration::from_millis(20));
    }
}
