//! One disk of a node: where it is, whether it is in use, and what becomes of it when it fails.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use lazaret_protocol::message::DiskReport;
use lazaret_protocol::{BlobName, PlacementKey};

use crate::disk::{Disk, FsDisk};
use crate::engine::{DiskId, Engine, EngineError, Latch};
use crate::index::{Index, RocksIndex};

/// A disk is out of use after so many groups of writes failed in a row: one may be a bad moment, and each leaves a sealed
/// segment.
const FAILED_GROUPS_MAX: u32 = 3;

type OpenDisk = Box<dyn Fn() -> Result<Arc<dyn Disk>, EngineError> + Send + Sync>;
type OpenIndex = Box<dyn Fn() -> Result<Arc<dyn Index>, EngineError> + Send + Sync>;

/// Where a disk and its index come from.
pub struct DiskSource {
    /// What the disk is called in reports: its path.
    pub(crate) label: String,
    pub(crate) open_disk: OpenDisk,
    pub(crate) open_index: OpenIndex,
}

impl DiskSource {
    /// A directory, with its index in `index` below it. One that `must_exist` is not made: it is a mount point, and where it
    /// is missing the disk is.
    pub fn directory(root: impl Into<PathBuf>, must_exist: bool) -> Self {
        let root: PathBuf = root.into();
        let index = root.join("index");
        let label = root.display().to_string();
        let open_disk = move || -> Result<Arc<dyn Disk>, EngineError> {
            let disk = if must_exist { FsDisk::open_existing(&root)? } else { FsDisk::open(&root)? };
            Ok(Arc::new(disk))
        };
        Self::new(label, open_disk, move || Ok(Arc::new(RocksIndex::open(&index)?)))
    }

    /// A disk and its index as two functions open them. The index's is called again when the index was damaged.
    pub fn new(
        label: impl Into<String>,
        open_disk: impl Fn() -> Result<Arc<dyn Disk>, EngineError> + Send + Sync + 'static,
        open_index: impl Fn() -> Result<Arc<dyn Index>, EngineError> + Send + Sync + 'static,
    ) -> Self {
        Self { label: label.into(), open_disk: Box::new(open_disk), open_index: Box::new(open_index) }
    }
}

/// Whether a disk is in use.
#[derive(Clone)]
pub(crate) enum State {
    /// It takes writes and answers reads.
    Serving(Engine),
    /// Its index was damaged and is rebuilt from its segments.
    Rebuilding,
    /// It takes no writes; what can be read is read.
    Failed { reason: String, engine: Option<Engine> },
}

/// What a damaged index is opened anew from.
pub(crate) struct Reopening {
    pub(crate) source: DiskSource,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) index: RwLock<Arc<dyn Index>>,
    /// Pending while it is going on.
    pub(crate) done: Arc<Latch>,
}

pub(crate) struct Slot {
    pub(crate) label: String,
    /// `None` for a disk that could not be opened.
    pub(crate) id: Option<DiskId>,
    state: RwLock<State>,
    /// Groups of writes that failed since the last write that did not.
    failed_groups: AtomicU32,
    /// Why the last of them did.
    last_failure: Mutex<Option<EngineError>>,
    /// `None` if the index can't be opened again while the node runs.
    pub(crate) reopening: Option<Reopening>,
}

/// What became of a disk with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    /// Nothing: the error is not the disk's.
    Nothing,
    /// It is still in use.
    Counted,
    /// It is out of use from now on.
    Failed,
    /// Its index must be rebuilt, which the caller has to begin.
    IndexDamaged,
}

impl Slot {
    pub(crate) fn new(label: String, id: Option<DiskId>, state: State, reopening: Option<Reopening>) -> Self {
        Self {
            label,
            id,
            state: RwLock::new(state),
            failed_groups: AtomicU32::new(0),
            last_failure: Mutex::default(),
            reopening,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_state(&self, state: State) {
        self.note_success();
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The engine, if the disk takes writes.
    pub(crate) fn serving(&self) -> Option<Engine> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Serving(engine) => Some(engine.clone()),
            State::Rebuilding | State::Failed { .. } => None,
        }
    }

    /// The engine, if there is one.
    pub(crate) fn engine(&self) -> Option<Engine> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Serving(engine) | State::Failed { engine: Some(engine), .. } => Some(engine.clone()),
            State::Rebuilding | State::Failed { engine: None, .. } => None,
        }
    }

    pub(crate) fn note_success(&self) {
        // Mostly it is zero, and the cache line stays shared.
        if self.failed_groups.load(Ordering::SeqCst) != 0 {
            self.failed_groups.store(0, Ordering::SeqCst);
        }
    }

    /// Draws the conclusion from an error of `engine`.
    pub(crate) fn note(&self, engine: &Engine, error: &EngineError) -> Noted {
        match error {
            EngineError::Index(index) if index.damaged => return self.note_damage(engine, error),
            EngineError::Disk(disk) if disk.is_full() => return Noted::Nothing,
            EngineError::Disk(_) | EngineError::Index(_) => {}
            _ => return Noted::Nothing,
        }
        {
            let mut last = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
            if last.as_ref().is_some_and(|last| is_one_failure(last, error)) {
                return Noted::Counted;
            }
            *last = Some(error.clone());
        }
        if self.failed_groups.fetch_add(1, Ordering::SeqCst).saturating_add(1) < FAILED_GROUPS_MAX {
            return Noted::Counted;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(&*state, State::Serving(serving) if serving.is_same(engine)) {
            return Noted::Counted;
        }
        tracing::error!(disk = self.label, %error, "a disk failed and is out of use");
        *state = State::Failed { reason: error.to_string(), engine: Some(engine.clone()) };
        Noted::Failed
    }

    fn note_damage(&self, engine: &Engine, error: &EngineError) -> Noted {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(&*state, State::Serving(serving) if serving.is_same(engine)) {
            return Noted::Counted;
        }
        if self.reopening.is_none() {
            tracing::error!(disk = self.label, %error, "the index of a disk is damaged: restart the node to rebuild it");
            *state = State::Failed { reason: error.to_string(), engine: None };
            return Noted::Failed;
        }
        tracing::error!(disk = self.label, %error, "the index of a disk is damaged and is rebuilt");
        *state = State::Rebuilding;
        Noted::IndexDamaged
    }

    /// What an operator is told of the disk.
    pub(crate) fn report(&self) -> DiskReport {
        let (report, failed) = match self.state() {
            State::Serving(engine) => (engine.report(), None),
            State::Failed { reason, engine } => {
                (engine.map_or_else(DiskReport::default, |engine| engine.report()), Some(reason))
            }
            State::Rebuilding => (DiskReport::default(), Some("its index was damaged and is being rebuilt".to_owned())),
        };
        DiskReport { path: self.label.clone(), failed, ..report }
    }

    /// How much this disk is the one for a name: the highest of a node's disks has it (rendezvous hashing, so that a disk
    /// more or less moves only its own share).
    pub(crate) fn score(&self, key: Placed) -> [u8; 32] {
        let Placed(key) = key;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.id.map_or([0; 16], |id| id.0));
        hasher.update(&key);
        *hasher.finalize().as_bytes()
    }
}

/// Whether two errors are one: all writes of a group fail with the same.
fn is_one_failure(one: &EngineError, other: &EngineError) -> bool {
    match (one, other) {
        (EngineError::Disk(one), EngineError::Disk(other)) => Arc::ptr_eq(&one.source, &other.source),
        (EngineError::Index(one), EngineError::Index(other)) => {
            std::ptr::addr_eq(Arc::as_ptr(&one.source), Arc::as_ptr(&other.source))
        }
        _ => false,
    }
}

/// What decides on which disk something lies: a name, or the placement key of a streamed blob.
#[derive(Clone, Copy)]
pub(crate) struct Placed([u8; 32]);

impl From<BlobName> for Placed {
    fn from(name: BlobName) -> Self {
        Self(name.0)
    }
}

impl From<PlacementKey> for Placed {
    fn from(key: PlacementKey) -> Self {
        Self(key.0)
    }
}
