//! The scan threads, shared by all trees that are scanned at once.
//!
//! Each tree has a lane. Threads take turns between lanes, so that a submission of a million files doesn't make the others
//! wait, and take the newest job of a lane first, so that a tree is walked in depth and little of it waits. No job
//! waits for another one.
//!
//! A job may be long: taking a large container apart is one. So that small files need not wait until one of the scan threads
//! comes round, their lanes are served by a thread more that nobody else uses. The processors are shared out among all of
//! them by the operating system. And a thread that merely waits, for an engine in another process, is stood in for by a
//! spare one meanwhile, so that as many threads compute as there should.

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

/// Most threads for small files alone. The first is there from the beginning; another one comes when small files wait and all
/// of them are busy, which takes a small file that is long in the scanning.
pub const EXPRESS_THREADS_MAX: usize = 4;

/// Most threads that stand in for waiting ones, as a multiple of the scan threads. Each may hold a file in memory.
pub const SPARE_THREADS_FACTOR: usize = 4;

/// A tree's lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LaneId(u64);

/// What a thread serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Every lane.
    Usual,
    /// Lanes of small files.
    Express,
    /// Every lane, while others wait.
    Spare,
}

#[derive(Default)]
struct LaneState {
    jobs: Vec<Job>,
    express: bool,
}

#[derive(Default)]
struct State {
    lanes: HashMap<LaneId, LaneState>,
    /// Lanes with jobs, the next to be served first.
    turns: VecDeque<LaneId>,
    next_lane: u64,
    /// Threads that sleep, of the usual and the express kind.
    usual_asleep: usize,
    express_asleep: usize,
    express_threads: usize,
    /// Threads that wait for something else than jobs.
    waiting: usize,
    spare_threads: usize,
    spare_busy: usize,
    ending: bool,
}

impl State {
    /// The newest job of the lane whose turn it is, for a thread of this kind.
    fn take(&mut self, kind: Kind) -> Option<Job> {
        if kind == Kind::Spare && self.spare_busy >= self.waiting {
            return None;
        }
        let serves = |lane: &LaneId| kind != Kind::Express || self.lanes.get(lane).is_some_and(|lane| lane.express);
        let at = self.turns.iter().position(serves)?;
        let lane = self.turns.remove(at)?;
        let state = self.lanes.get_mut(&lane)?;
        let job = state.jobs.pop();
        if !state.jobs.is_empty() {
            self.turns.push_back(lane);
        }
        if job.is_some() && kind == Kind::Spare {
            self.spare_busy += 1;
        }
        job
    }
}

struct Shared {
    state: Mutex<State>,
    /// For threads of each kind, so that none is woken for a job that it doesn't serve.
    usual: Condvar,
    express: Condvar,
    spare: Condvar,
    threads: usize,
    spawner: Arc<dyn Spawner>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock, so the state is whole even if one panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, kind: Kind) {
        while let Some(job) = self.next_job(kind) {
            // Jobs catch their own panics and report them; this keeps the thread whatever happens.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a scan job panicked outside its own protection");
            }
            if kind == Kind::Spare {
                self.lock().spare_busy -= 1;
            }
        }
    }

    fn next_job(&self, kind: Kind) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.take(kind) {
                return Some(job);
            }
            // A pool that ends does what waits, by the usual threads.
            if state.ending && (kind != Kind::Usual || state.turns.is_empty()) {
                return None;
            }
            match kind {
                Kind::Usual => state.usual_asleep += 1,
                Kind::Express => state.express_asleep += 1,
                Kind::Spare => {}
            }
            let wakes = match kind {
                Kind::Usual => &self.usual,
                Kind::Express => &self.express,
                Kind::Spare => &self.spare,
            };
            state = wakes.wait(state).unwrap_or_else(PoisonError::into_inner);
            match kind {
                Kind::Usual => state.usual_asleep -= 1,
                Kind::Express => state.express_asleep -= 1,
                Kind::Spare => {}
            }
        }
    }
}

/// The scan threads. Dropped, they end once all that waits is done.
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts so many threads, at least one, and one for small files.
    pub fn start(threads: usize, spawner: Arc<dyn Spawner>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            usual: Condvar::new(),
            express: Condvar::new(),
            spare: Condvar::new(),
            threads: threads.max(1),
            spawner,
        });
        let pool = Self { shared };
        for number in 0..pool.shared.threads {
            spawn(&pool.shared, Kind::Usual, &format!("scan-{number}"))?;
        }
        pool.shared.lock().express_threads = 1;
        spawn(&pool.shared, Kind::Express, "scan-small-0")?;
        Ok(pool)
    }

    /// Opens a lane; one of small files is served by threads of its own as well.
    pub fn lane(&self, express: bool) -> Lane {
        let mut state = self.shared.lock();
        let id = LaneId(state.next_lane);
        state.next_lane += 1;
        state.lanes.insert(id, LaneState { jobs: Vec::new(), express });
        Lane { id, shared: self.shared.clone() }
    }

    /// Whether jobs wait for a thread.
    pub fn has_waiting_jobs(&self) -> bool {
        !self.shared.lock().turns.is_empty()
    }

    /// Does what keeps this thread waiting rather than computing. A spare thread stands in for it meanwhile.
    pub fn while_waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        /// Counts the thread among those that compute again, even if the wait panics.
        struct Back<'s>(&'s Shared);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.lock().waiting -= 1;
            }
        }
        let spare = {
            let mut state = self.shared.lock();
            state.waiting += 1;
            let most = self.shared.threads * SPARE_THREADS_FACTOR;
            let wanted = state.spare_threads < state.waiting.min(most);
            state.spare_threads += usize::from(wanted);
            wanted.then_some(state.spare_threads)
        };
        let _back = Back(&self.shared);
        match spare {
            Some(number) => {
                if let Err(error) = spawn(&self.shared, Kind::Spare, &format!("scan-spare-{number}")) {
                    tracing::warn!(%error, "no thread could be started to stand in for a waiting one");
                    self.shared.lock().spare_threads -= 1;
                }
            }
            None => self.shared.spare.notify_one(),
        }
        wait()
    }
}

fn spawn(shared: &Arc<Shared>, kind: Kind, name: &str) -> io::Result<()> {
    let its = shared.clone();
    shared.spawner.spawn_thread(name, Box::new(move || its.run(kind)))
}

/// Starts another thread for small files if more of them wait than threads sleep.
fn staff_express(shared: &Arc<Shared>) {
    let number = {
        let mut state = shared.lock();
        let is_express = |lane: &LaneId| state.lanes.get(lane).is_some_and(|lane| lane.express);
        let small = state.turns.iter().filter(|lane| is_express(lane)).count();
        let idle = state.express_asleep + state.usual_asleep.saturating_sub(state.turns.len() - small);
        if small <= idle || state.express_threads >= EXPRESS_THREADS_MAX {
            return;
        }
        state.express_threads += 1;
        state.express_threads - 1
    };
    if let Err(error) = spawn(shared, Kind::Express, &format!("scan-small-{number}")) {
        // The file waits its turn.
        tracing::warn!(%error, "no further thread for small files could be started");
        shared.lock().express_threads -= 1;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        for wakes in [&self.shared.usual, &self.shared.express, &self.shared.spare] {
            wakes.notify_all();
        }
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

    /// Takes the newest job out of the lane if more than `most` wait, for whoever does it at once.
    pub fn pop_beyond(&self, most: usize) -> Option<Job> {
        let mut state = self.shared.lock();
        let lane = state.lanes.get_mut(&self.id).filter(|lane| lane.jobs.len() > most)?;
        let job = lane.jobs.pop();
        if lane.jobs.is_empty() {
            state.turns.retain(|lane| *lane != self.id);
        }
        job
    }

    fn push_below(&self, most: usize, job: Job) -> Result<(), Job> {
        let mut state = self.shared.lock();
        let lane = state.lanes.entry(self.id).or_default();
        if lane.jobs.len() >= most {
            return Err(job);
        }
        lane.jobs.push(job);
        let (is_first, express) = (lane.jobs.len() == 1, lane.express);
        if is_first {
            state.turns.push_back(self.id);
        }
        let spare = state.waiting > state.spare_busy;
        drop(state);
        self.shared.usual.notify_one();
        if express {
            self.shared.express.notify_one();
            if is_first {
                staff_express(&self.shared);
            }
        }
        if spare {
            self.shared.spare.notify_one();
        }
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
        let pool = Pool::start(1, Environment::system().spawner).unwrap();
        let (first, second) = (pool.lane(false), pool.lane(false));
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
        let pool = Pool::start(1, Environment::system().spawner).unwrap();
        let lane = pool.lane(false);
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

    /// Keeps a thread busy until the sender is dropped. Returns once it is.
    fn occupy(lane: &Lane) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel::<()>();
        let (entered, begun) = mpsc::channel();
        lane.push(Box::new(move || {
            entered.send(()).unwrap();
            let _ = held.recv();
        }));
        begun.recv().unwrap();
        release
    }

    #[test]
    fn small_files_pass_those_that_keep_every_thread_busy() {
        let pool = Pool::start(2, Environment::system().spawner).unwrap();
        let large = pool.lane(false);
        let _busy = [occupy(&large), occupy(&large)];
        let (told, heard) = mpsc::channel();
        let waits = told.clone();
        large.push(Box::new(move || waits.send("large").unwrap()));
        // Longer than there are threads for small files at first.
        let small: Vec<Lane> = (0..EXPRESS_THREADS_MAX).map(|_| pool.lane(true)).collect();
        let _long: Vec<_> = small[1..].iter().map(occupy).collect();
        small[0].push(Box::new(move || told.send("small").unwrap()));
        assert_eq!(heard.recv(), Ok("small"));
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn a_thread_that_waits_is_stood_in_for() {
        let pool = Arc::new(Pool::start(1, Environment::system().spawner).unwrap());
        let lane = pool.lane(false);
        let (told, heard) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        let waiting = pool.clone();
        let done = told.clone();
        lane.push(Box::new(move || {
            waiting.while_waiting(|| held.recv().unwrap());
            done.send("waited").unwrap();
        }));
        for _ in 0..3 {
            let told = told.clone();
            lane.push(Box::new(move || told.send("stood in").unwrap()));
            assert_eq!(heard.recv(), Ok("stood in"));
        }
        release.send(()).unwrap();
        assert_eq!(heard.recv(), Ok("waited"));
        // No more than one computes now.
        let busy = occupy(&lane);
        lane.push(Box::new(move || told.send("alone").unwrap()));
        assert!(heard.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        drop(busy);
        assert_eq!(heard.recv(), Ok("alone"));
    }
}
