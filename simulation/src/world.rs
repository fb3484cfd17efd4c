//! What all parties of a run share: the executor, and the model that hears of everything.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::environment::true_ms;
use crate::executor::Executor;
use crate::model::{Model, Moment};
use crate::random::Decisions;

/// What the parties of a run share.
pub(crate) struct World {
    pub(crate) executor: Executor,
    model: Mutex<Model>,
}

impl World {
    pub(crate) fn new(executor: &Executor, model: Model) -> Self {
        Self { executor: executor.clone(), model: Mutex::new(model) }
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Moment {
        Moment { at: self.executor.now(), unix_ms: true_ms(&self.executor) }
    }

    pub(crate) fn note(&self, event: impl Into<String>) {
        self.executor.note(event);
    }

    pub(crate) fn decide<T>(&self, draw: impl FnOnce(&mut Decisions) -> T) -> T {
        self.executor.decide(draw)
    }
}
