//! Opening a node's disks, and one of them again when its index was damaged.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use lazaret_node_client::environment::Environment;

use super::Store;
use super::slot::{DiskSource, Reopening, Slot, State};
use crate::disk::{Disk, DiskError, FsDisk};
use crate::engine::{Engine, EngineError, EngineOptions, LatchGuard, check_owner};
use crate::index::{Index, RocksIndex};

/// A disk that could be opened.
struct Opened {
    source: DiskSource,
    disk: Arc<dyn Disk>,
    index: Arc<dyn Index>,
    engine: Engine,
}

impl Store {
    /// Opens a node's disks, all at once. A disk that can't be opened is out of use, as long as another one can. Blocks
    /// for as long as recovery takes.
    ///
    /// A disk of another node or cluster, of another format, one that another process uses and one that is given twice
    /// are refused: going on without them would hide a mistake.
    pub fn open(
        sources: Vec<DiskSource>,
        environment: Environment,
        options: EngineOptions,
    ) -> Result<Store, EngineError> {
        let outcomes: Vec<Result<Opened, (String, EngineError)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = sources
                .into_iter()
                .map(|source| {
                    let (label, environment, options) = (source.label.clone(), environment.clone(), options.clone());
                    let thread = scope.spawn(move || open_one(source, &environment, &options));
                    (label, thread)
                })
                .collect();
            let died = || EngineError::Thread { operation: "opening a disk", reason: "it panicked".to_owned() };
            let join = |(label, thread): (String, std::thread::ScopedJoinHandle<'_, _>)| {
                thread.join().unwrap_or_else(|_| Err(died())).map_err(|error| (label, error))
            };
            threads.into_iter().map(join).collect()
        });
        let opened: Vec<Engine> = outcomes.iter().flatten().map(|opened| opened.engine.clone()).collect();
        Self::of_outcomes(outcomes, environment, options).inspect_err(|_| {
            // A process must not end while an engine's threads still run.
            opened.iter().for_each(Engine::close);
        })
    }

    fn of_outcomes(
        outcomes: Vec<Result<Opened, (String, EngineError)>>,
        environment: Environment,
        options: EngineOptions,
    ) -> Result<Store, EngineError> {
        let (mut slots, mut first_error) = (Vec::<Slot>::new(), None);
        let mut horizon = 0;
        for outcome in outcomes {
            match outcome {
                Ok(Opened { source, disk, index, engine }) => {
                    let (label, id) = (source.label.clone(), engine.disk_id());
                    if let Some(twin) = slots.iter().find(|slot| slot.id == Some(id)) {
                        let reason =
                            format!("{label} and {} are the same disk, or one is a copy: give it once", twin.label);
                        return Err(EngineError::Identity(reason));
                    }
                    horizon = horizon.max(engine.horizon());
                    let reopening = Reopening { source, disk, index: RwLock::new(index), done: Arc::default() };
                    slots.push(Slot::new(label, Some(id), State::Serving(engine), Some(reopening)));
                }
                Err((_, error)) if is_refusal(&error) => return Err(error),
                Err((label, error)) => {
                    tracing::error!(disk = label, %error, "a disk can't be opened and is out of use");
                    let state = State::Failed { reason: error.to_string(), engine: None };
                    slots.push(Slot::new(label, None, state, None));
                    first_error = first_error.or(Some(error));
                }
            }
        }
        if let Some(error) = first_error
            && slots.iter().all(|slot| slot.id.is_none())
        {
            return Err(error);
        }
        let store = Self::of(slots, environment, Some(options), horizon);
        store.read_who_agrees()?;
        Ok(store)
    }

    /// Opens a disk again whose index was damaged, on a thread of its own.
    pub(super) fn begin_reopening(&self, number: usize, engine: Engine) {
        let Some(done) = self.reopening(number).map(|reopening| Arc::clone(&reopening.done)) else { return };
        let (store, guard) = (self.clone(), LatchGuard::new(done));
        let run = Box::new(move || {
            let _guard = guard;
            store.reopen(number, engine);
        });
        if let Err(error) = self.inner.environment.spawner.spawn_thread("lazaret-reopen", run)
            && let Ok(slot) = self.slot(number)
        {
            slot.set_state(State::Failed { reason: format!("no thread to rebuild its index: {error}"), engine: None });
        }
    }

    fn reopening(&self, number: usize) -> Option<&Reopening> {
        self.inner.slots.get(number)?.reopening.as_ref()
    }

    fn reopen(&self, number: usize, old: Engine) {
        let (Some(reopening), Some(options), Ok(slot)) =
            (self.reopening(number), self.inner.options.clone(), self.slot(number))
        else {
            return;
        };
        // Whoever still works with the old engine gets errors from here on, never an answer from half an index.
        old.close();
        reopening.index.read().unwrap_or_else(PoisonError::into_inner).close();
        drop(old);
        let opened = (reopening.source.open_index)().and_then(|index| {
            let (disk, environment) = (Arc::clone(&reopening.disk), self.inner.environment.clone());
            Ok((Arc::clone(&index), Engine::open(disk, index, environment, options)?))
        });
        match opened {
            Ok((index, engine)) => {
                *reopening.index.write().unwrap_or_else(PoisonError::into_inner) = index;
                tracing::warn!(disk = slot.label, "the index was rebuilt, the disk is in use again");
                self.inner.returns.fetch_add(1, Ordering::SeqCst);
                if self.inner.slots.len() > 1 {
                    self.inner.agreed.store(false, Ordering::SeqCst);
                }
                slot.set_state(State::Serving(engine));
            }
            Err(error) => {
                tracing::error!(disk = slot.label, %error, "the index can't be rebuilt, the disk is out of use");
                slot.set_state(State::Failed { reason: error.to_string(), engine: None });
            }
        }
    }

    /// Waits until no damaged index is being rebuilt. Blocks.
    pub fn wait_for_reopening(&self) {
        self.inner.slots.iter().filter_map(|slot| slot.reopening.as_ref()).for_each(|reopening| reopening.done.wait());
    }
}

fn open_one(source: DiskSource, environment: &Environment, options: &EngineOptions) -> Result<Opened, EngineError> {
    let disk = (source.open_disk)()?;
    let mut index = (source.open_index)()?;
    let open = |index: &Arc<dyn Index>| {
        Engine::open(Arc::clone(&disk), Arc::clone(index), environment.clone(), options.clone())
    };
    let engine = match open(&index) {
        // Damage that shows only when it is read: the index has noted it, and begins anew when it is opened again.
        Err(EngineError::Index(error)) if error.damaged => {
            tracing::error!(disk = source.label, %error, "the index is damaged and is rebuilt");
            index.close();
            index = (source.open_index)()?;
            open(&index)?
        }
        opened => opened?,
    };
    Ok(Opened { source, disk, index, engine })
}

/// What a rebuild of an index found.
#[derive(Debug, Clone, Copy)]
pub struct Rebuilt {
    /// Blobs in the new index.
    pub blobs: u64,
    /// Bytes of segments read.
    pub bytes_read: u64,
    /// Damaged records met.
    pub damaged_records: u64,
    /// How long it took, until the index was durable.
    pub took: Duration,
}

/// Throws away the index of the disk at `root`, which no node may be using, and rebuilds it from the segments. Blocks.
pub fn rebuild_index(root: &Path, environment: Environment, options: EngineOptions) -> Result<Rebuilt, EngineError> {
    let disk = FsDisk::open_existing(root)?;
    check_owner(&disk, &options)?;
    let index = RocksIndex::begin_anew(root.join("index"))?;
    let clock = Arc::clone(&environment.clock);
    let began = clock.monotonic();
    let engine = Engine::open(Arc::new(disk), Arc::new(index), environment, options)?;
    engine.close();
    engine.flush()?;
    let took = clock.monotonic().saturating_sub(began);
    let (bytes_read, damaged_records) = engine.recovery();
    Ok(Rebuilt { blobs: engine.status().blobs, bytes_read, damaged_records, took })
}

/// Whether an error says that the node is set up wrong, rather than that a disk is broken.
fn is_refusal(error: &EngineError) -> bool {
    match error {
        EngineError::Foreign { .. } | EngineError::Format { .. } => true,
        EngineError::Disk(error) => is_in_use(error),
        _ => false,
    }
}

fn is_in_use(error: &DiskError) -> bool {
    error.source.kind() == std::io::ErrorKind::ResourceBusy
}
