//! The scan threads, shared by all trees that are scanned at once.
//!
//! Each tree has a lane. Threads take turns between lanes, so that a submission of a million files doesn't make the others
//! wait, and take the newest job of a lane first, so that a tree is walked in depth and little of it waits. No job
//! waits for another one.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lazaret_node_client::environment::Spawner;

/// What is done on a scan thread.
pub type Job = Box<dyn FnOnce() + Send>;

/// Most jobs that wait in one lane, unless they are pushed by force: enough to keep every thread of a large machine busy;
/// what comes beyond is done by whoever brings it.
pub const LANE_JOBS_MAX: usize = 1024;

/// A tree's lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LaneId(u64);

#[derive(Default)]
struct State {
    lanes: HashMap<LaneId, Vec<Job>>,
    /// Lanes with jobs, the next to be served first.
    turns: VecDeque<LaneId>,
    next_lane: u64,
    ending: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wakes: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock, so the state is whole even if one panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(job) = self.next_job() {
            // Jobs catch their own panics and report them; this keeps the thread whatever happens.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a scan job panicked outside its own protection");
            }
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(lane) = state.turns.pop_front() {
                let jobs = state.lanes.get_mut(&lane);
                let (job, more) = jobs.map_or((None, false), |jobs| (jobs.pop(), !jobs.is_empty()));
                if more {
                    state.turns.push_back(lane);
                }
                if job.is_some() {
                    return job;
                }
            } else if state.ending {
                return None;
            } else {
                state = self.wakes.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The scan threads. Dropped, they end once all that waits is done.
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts so many threads, at least one.
    pub fn start(threads: usize, spawner: &dyn Spawner) -> io::Result<Self> {
        let pool = Self { shared: Arc::default() };
        for number in 0..threads.max(1) {
            let shared = pool.shared.clone();
            spawner.spawn_thread(&format!("scan-{number}"), Box::new(move || shared.run()))?;
        }
        Ok(pool)
    }

    /// Opens a lane.
    pub fn lane(&self) -> Lane {
        let mut state = self.shared.lock();
        let id = LaneId(state.next_lane);
        state.next_lane += 1;
        state.lanes.insert(id, Vec::new());
        Lane { id, shared: self.shared.clone() }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.wakes.notify_all();
    }
}

/// A lane of the pool. Dropped, what still waits in it is forgotten.
pub struct Lane {
    id: LaneId,
    shared: Arc<Shared>,
}

impl Lane {
    /// Queues a job, or gives it back if too many wait.
    pub fn try_push(&self, job: Job) -> Result<(), Job> {
        self.push_below(LANE_JOBS_MAX, job)
    }

    /// Queues a job however many wait. For jobs whose number something else bounds.
    pub fn push(&self, job: Job) {
        // No lane has so many jobs: the memory they take would not exist.
        let _ = self.push_below(usize::MAX, job);
    }

    fn push_below(&self, most: usize, job: Job) -> Result<(), Job> {
        let mut state = self.shared.lock();
        let jobs = state.lanes.entry(self.id).or_default();
        if jobs.len() >= most {
            return Err(job);
        }
        jobs.push(job);
        if jobs.len() == 1 {
            state.turns.push_back(self.id);
        }
        drop(state);
        self.shared.wakes.notify_one();
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let forgotten = {
            let mut state = self.shared.lock();
            state.turns.retain(|lane| *lane != self.id);
            state.lanes.remove(&self.id)
        };
        // Jobs may hold other lanes: they are dropped outside the lock.
        drop(forgotten);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use lazaret_node_client::environment::Environment;

    use super::*;

    #[test]
    fn lanes_take_turns_and_the_newest_job_of_each_comes_first() {
        let pool = Pool::start(1, &*Environment::system().spawner).unwrap();
        let (first, second) = (pool.lane(), pool.lane());
        let (told, order) = mpsc::channel();
        // The only thread is held until all jobs wait.
        let (release, held) = mpsc::channel::<()>();
        let (entered, begun) = mpsc::channel();
        first.push(Box::new(move || {
            entered.send(()).unwrap();
            held.recv().unwrap();
        }));
        begun.recv().unwrap();
        for (lane, name) in [(&first, "a1"), (&first, "a2"), (&first, "a3"), (&second, "b1"), (&second, "b2")] {
            let told = told.clone();
            lane.push(Box::new(move || told.send(name).unwrap()));
        }
        release.send(()).unwrap();
        let order: Vec<_> = (0..5).map(|_| order.recv().unwrap()).collect();
        assert_eq!(order, ["a3", "b2", "a2", "b1", "a1"]);
    }

    #[test]
    fn a_full_lane_gives_jobs_back_and_a_panic_costs_no_thread() {
        let pool = Pool::start(1, &*Environment::system().spawner).unwrap();
        let lane = pool.lane();
        let (release, held) = mpsc::channel::<()>();
        let (entered, begun) = mpsc::channel();
        lane.push(Box::new(move || {
            entered.send(()).unwrap();
            held.recv().unwrap();
            panic!("on purpose");
        }));
        begun.recv().unwrap();
        let (told, heard) = mpsc::channel();
        for _ in 0..LANE_JOBS_MAX {
            let told = told.clone();
            assert!(lane.try_push(Box::new(move || told.send(()).unwrap())).is_ok());
        }
        assert!(lane.try_push(Box::new(|| ())).is_err());
        release.send(()).unwrap();
        for _ in 0..LANE_JOBS_MAX {
            heard.recv().unwrap();
        }
    }
}
