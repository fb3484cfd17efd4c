//! What taking containers apart may cost. Counted on what really comes out, never on what a header claims.
//!
//! Bytes, files and the ratio are counted over the whole tree of nested files, the ratio for each container too, and time for
//! each container alone. The first limit of the tree that is hit stops every extraction in it with the same code.
//! Invariant: at most one read's worth of bytes comes out beyond a limit.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lazaret_analysis::{Limits, ResultCode, Rule};

/// Why a tree is no longer scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StopReason {
    /// The submitter cancelled it.
    Cancelled = 1,
    /// It took longer than its rule allows in all.
    GlobalTimeout = 2,
    /// Its worker may no longer write: the lease is lost, or the process ends.
    Abandoned = 3,
    /// Records or contents could not be written or read; another attempt may succeed.
    Failed = 4,
}

impl StopReason {
    /// The result of what was not scanned for this reason; none if no result may be written at all.
    pub fn code(self) -> Option<ResultCode> {
        match self {
            Self::Cancelled => Some(ResultCode::CANCELLED),
            Self::GlobalTimeout => Some(ResultCode::GLOBAL_TIMEOUT),
            Self::Abandoned | Self::Failed => None,
        }
    }
}

/// Tells all threads that work on a tree to stop. The first reason stays.
#[derive(Debug, Default)]
pub struct StopSignal(AtomicU8);

impl StopSignal {
    /// Stops the tree, unless it was stopped already.
    pub fn stop(&self, reason: StopReason) {
        let _ = self.0.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Why the tree was stopped, if it was.
    pub fn reason(&self) -> Option<StopReason> {
        match self.0.load(Ordering::Acquire) {
            1 => Some(StopReason::Cancelled),
            2 => Some(StopReason::GlobalTimeout),
            3 => Some(StopReason::Abandoned),
            4 => Some(StopReason::Failed),
            _ => None,
        }
    }
}

/// Why an extraction ends before its container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// A limit was hit; this is its code.
    #[error("{0}")]
    Limit(ResultCode),
    /// The tree is no longer scanned.
    #[error("stopped")]
    Stopped,
}

impl From<Halt> for io::Error {
    fn from(halt: Halt) -> Self {
        Self::other(halt)
    }
}

impl Halt {
    /// The halt that an error carries, however it was passed through decoders.
    pub fn of(error: &io::Error) -> Option<Self> {
        let mut source: Option<&(dyn std::error::Error + 'static)> =
            error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
        while let Some(error) = source {
            if let Some(halt) = error.downcast_ref::<Self>() {
                return Some(*halt);
            }
            source = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }
}

/// What one submission may cost in all.
#[derive(Debug)]
pub struct TreeBudget {
    limits: Limits,
    ratio_code: ResultCode,
    root_bytes: u64,
    files: AtomicU64,
    produced_bytes: AtomicU64,
    /// The code of the limit that was hit first; 0 for none.
    hit: AtomicU16,
}

impl TreeBudget {
    /// The budget of a root of so many bytes under `rule`.
    pub fn new(rule: &Rule, root_bytes: u64) -> Self {
        Self {
            limits: rule.limits.clone(),
            ratio_code: rule.ratio_code,
            root_bytes,
            files: AtomicU64::new(0),
            produced_bytes: AtomicU64::new(0),
            hit: AtomicU16::new(0),
        }
    }

    /// How many bytes came out so far.
    pub fn produced_bytes(&self) -> u64 {
        self.produced_bytes.load(Ordering::Relaxed)
    }

    /// Whether a container that lies `depth` containers deep may be taken apart.
    pub fn admits_depth(&self, depth: u32) -> bool {
        depth < self.limits.depth
    }

    fn check(&self) -> Result<(), Halt> {
        match ResultCode::new(self.hit.load(Ordering::Relaxed)) {
            Some(code) if code != ResultCode::NO_THREAT => Err(Halt::Limit(code)),
            _ => Ok(()),
        }
    }

    fn hit(&self, code: ResultCode) -> Halt {
        let first = self.hit.compare_exchange(0, code.code(), Ordering::AcqRel, Ordering::Acquire);
        let first = first.err().and_then(ResultCode::new);
        Halt::Limit(first.unwrap_or(code))
    }

    fn is_over_ratio(&self, produced_bytes: u64, input_bytes: u64) -> bool {
        produced_bytes > self.limits.ratio_free_bytes && produced_bytes > self.limits.ratio.saturating_mul(input_bytes)
    }
}

/// What taking one container apart may cost. Its clock starts with it.
pub struct Budget {
    tree: Arc<TreeBudget>,
    stop: Arc<StopSignal>,
    input_bytes: u64,
    produced_bytes: Cell<u64>,
    member_bytes: Cell<u64>,
    started: Instant,
    paused: Cell<Duration>,
}

impl Budget {
    /// The budget of a container of `input_bytes` in a tree.
    pub fn new(tree: Arc<TreeBudget>, stop: Arc<StopSignal>, input_bytes: u64) -> Self {
        Self {
            tree,
            stop,
            input_bytes,
            produced_bytes: Cell::new(0),
            member_bytes: Cell::new(0),
            started: Instant::now(),
            paused: Cell::new(Duration::ZERO),
        }
    }

    /// Whether to go on. Asked at every read, of the container as well as of its members.
    pub fn check(&self) -> Result<(), Halt> {
        if self.stop.reason().is_some() {
            return Err(Halt::Stopped);
        }
        self.tree.check()?;
        if self.spent() > Duration::from_secs(self.tree.limits.archive_seconds) {
            return Err(Halt::Limit(ResultCode::ARCHIVE_TIMEOUT));
        }
        Ok(())
    }

    /// Counts one more member.
    pub fn count_file(&self) -> Result<(), Halt> {
        self.check()?;
        self.member_bytes.set(0);
        if self.tree.files.fetch_add(1, Ordering::Relaxed) >= self.tree.limits.files {
            return Err(self.tree.hit(ResultCode::ARCHIVE_FILES));
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
            return Err(tree.hit(ResultCode::ARCHIVE_SIZE));
        }
        if tree.is_over_ratio(in_tree, tree.root_bytes) {
            return Err(tree.hit(tree.ratio_code));
        }
        if tree.is_over_ratio(in_container, self.input_bytes) {
            return Err(Halt::Limit(tree.ratio_code));
        }
        if tree.limits.file_bytes.is_some_and(|most| in_member > most) {
            return Err(Halt::Limit(ResultCode::ARCHIVE_SIZE));
        }
        self.check()
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
        let mut rule = Rule::with_defaults("test");
        change(&mut rule.limits);
        Budget::new(Arc::new(TreeBudget::new(&rule, input_bytes)), Arc::default(), input_bytes)
    }

    #[test]
    fn files_are_counted_over_the_tree_and_stop_it() {
        let first = budget(|limits| limits.files = 2, 10);
        let second = Budget::new(first.tree.clone(), first.stop.clone(), 10);
        first.count_file().unwrap();
        second.count_file().unwrap();
        assert_eq!(first.count_file(), Err(Halt::Limit(ResultCode::ARCHIVE_FILES)));
        assert_eq!(second.check(), Err(Halt::Limit(ResultCode::ARCHIVE_FILES)));
    }

    #[test]
    fn the_ratio_counts_beyond_the_free_bytes_only() {
        let budget = budget(|limits| (limits.ratio, limits.ratio_free_bytes) = (10, 1000), 50);
        budget.count_bytes(1000).unwrap();
        assert_eq!(budget.count_bytes(1), Err(Halt::Limit(ResultCode::ARCHIVE_SIZE)));
    }

    #[test]
    fn a_small_container_in_a_large_root_has_a_ratio_of_its_own() {
        let root = budget(|limits| (limits.ratio, limits.ratio_free_bytes) = (10, 1000), 1 << 20);
        let small = Budget::new(root.tree.clone(), root.stop.clone(), 50);
        small.count_bytes(1000).unwrap();
        assert_eq!(small.count_bytes(1), Err(Halt::Limit(ResultCode::ARCHIVE_SIZE)));
        root.count_bytes(5000).unwrap();
    }

    #[test]
    fn bytes_files_of_a_length_and_stops() {
        let first = budget(|limits| (limits.produced_bytes, limits.file_bytes) = (100, Some(60)), 50);
        first.count_file().unwrap();
        first.count_bytes(60).unwrap();
        assert_eq!(first.count_bytes(1), Err(Halt::Limit(ResultCode::ARCHIVE_SIZE)));
        first.count_file().unwrap();
        first.count_bytes(39).unwrap();
        assert_eq!(first.count_bytes(1), Err(Halt::Limit(ResultCode::ARCHIVE_SIZE)));
        let stopped = budget(|_| (), 50);
        stopped.stop.stop(StopReason::Cancelled);
        stopped.stop.stop(StopReason::Failed);
        assert_eq!(stopped.stop.reason(), Some(StopReason::Cancelled));
        assert_eq!(stopped.count_file(), Err(Halt::Stopped));
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

    #[test]
    fn a_halt_is_found_through_layers_of_errors() {
        let error = io::Error::other(io::Error::from(Halt::Stopped));
        assert_eq!(Halt::of(&error), Some(Halt::Stopped));
        assert_eq!(Halt::of(&io::Error::other("else")), None);
    }
}
