//! Runs a whole cluster's tasks on the calling thread, in virtual time.
//!
//! Which of the tasks that could go on does so is drawn from the run's seed, so that a seed stands for an order of events
//! and not only for faults. Time stands still while any task can go on, and then advances to the next timer at once. A
//! task belongs to a group, and a group can be ended at any point between two steps of its tasks, as the death of a
//! process ends all that it was doing.
//!
//! It is not tokio's runtime: that one polls in the order of wake-ups, can't end a set of tasks at once, and would need its
//! `test-util` in the binary. What it lacks on purpose is a reactor: shipped code that goes past its
//! [`Environment`](lazaret_node_client::Environment) to tokio's timers or tasks panics here, and is found.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use lazaret_node_client::environment::BoxFuture;

use crate::random::Decisions;

/// Steps of tasks after which a run is taken for one that never ends: several hundred times what a run of the default
/// length takes.
const POLLS_MAX: u64 = 400_000_000;
/// Events that are kept for the report of a failing run.
const RECENT_EVENTS_MAX: usize = 2000;

/// Tasks that end together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group(u64);

/// Why a run ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stuck {
    /// No task can go on and no timer runs.
    #[error("everything waits for something that never comes")]
    Deadlock,
    /// It goes on and on.
    #[error("no end after {POLLS_MAX} steps")]
    Endless,
    /// Code under test panicked.
    #[error("panic: {0}")]
    Panic(String),
}

/// What a run leaves behind for its report.
pub(crate) struct Trace {
    hasher: blake3::Hasher,
    recent: VecDeque<String>,
    events: u64,
}

/// The executor. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Executor {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    ready: Arc<Ready>,
}

/// Tasks that can go on. In the order of their numbers: tokio's `watch` wakes those who wait in a random order, which must
/// not show.
#[derive(Default)]
struct Ready(Mutex<BTreeMap<u64, Arc<TaskWaker>>>);

struct State {
    now: Duration,
    tasks: BTreeMap<u64, Task>,
    tasks_max: usize,
    next_task: u64,
    next_group: u64,
    timers: BTreeMap<(Duration, u64), Waker>,
    next_timer: u64,
    decisions: Decisions,
    trace: Trace,
    polls: u64,
    /// Over the numbers of the tasks that ran, in their order.
    order: u64,
}

struct Task {
    group: Group,
    /// Absent while it is being polled.
    future: Option<BoxFuture<'static, ()>>,
}

struct TaskWaker {
    task: u64,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            lock(&self.ready.0).insert(self.task, Arc::clone(&self));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Executor {
    pub(crate) fn new(seed: u64) -> Self {
        let state = State {
            now: Duration::ZERO,
            tasks: BTreeMap::new(),
            tasks_max: 0,
            next_task: 0,
            next_group: 0,
            timers: BTreeMap::new(),
            next_timer: 0,
            decisions: Decisions::new(seed),
            trace: Trace { hasher: blake3::Hasher::new(), recent: VecDeque::new(), events: 0 },
            polls: 0,
            order: 0,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), ready: Arc::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    /// Virtual time since the run began.
    pub(crate) fn now(&self) -> Duration {
        self.state().now
    }

    /// Draws decisions.
    pub(crate) fn decide<T>(&self, draw: impl FnOnce(&mut Decisions) -> T) -> T {
        draw(&mut self.state().decisions)
    }

    /// Records an event.
    pub(crate) fn note(&self, event: impl Into<String>) {
        let mut state = self.state();
        let line = format!("{:>12.6} {}", state.now.as_secs_f64(), event.into());
        tracing::debug!("{line}");
        state.trace.hasher.update(line.as_bytes());
        state.trace.events += 1;
        if state.trace.recent.len() >= RECENT_EVENTS_MAX {
            state.trace.recent.pop_front();
        }
        state.trace.recent.push_back(line);
    }

    /// A hash over all events and over the order in which tasks ran.
    pub(crate) fn fingerprint(&self) -> blake3::Hash {
        let state = self.state();
        state.trace.hasher.clone().update(&state.order.to_le_bytes()).finalize()
    }

    /// The latest events, oldest first.
    pub(crate) fn recent(&self) -> Vec<String> {
        self.state().trace.recent.iter().cloned().collect()
    }

    /// How many events there were.
    pub(crate) fn events(&self) -> u64 {
        self.state().trace.events
    }

    /// The most tasks there ever were at once.
    pub(crate) fn tasks_max(&self) -> usize {
        self.state().tasks_max
    }

    pub(crate) fn new_group(&self) -> Group {
        let mut state = self.state();
        state.next_group += 1;
        Group(state.next_group)
    }

    pub(crate) fn spawn(&self, group: Group, future: BoxFuture<'static, ()>) {
        let mut state = self.state();
        let task = state.next_task;
        state.next_task += 1;
        state.tasks.insert(task, Task { group, future: Some(future) });
        state.tasks_max = state.tasks_max.max(state.tasks.len());
        drop(state);
        Arc::new(TaskWaker { task, queued: AtomicBool::new(false), ready: Arc::clone(&self.shared.ready) }).wake();
    }

    /// Ends all tasks of `group` where they are.
    pub(crate) fn end(&self, group: Group) {
        let mut state = self.state();
        let ended: Vec<u64> = state.tasks.iter().filter(|(_, task)| task.group == group).map(|(&id, _)| id).collect();
        let ended: Vec<Option<Task>> = ended.into_iter().map(|id| state.tasks.remove(&id)).collect();
        drop(state);
        // Dropping a task wakes others, which needs the state.
        drop(ended);
    }

    /// How many tasks `group` has.
    pub(crate) fn tasks_of(&self, group: Group) -> usize {
        self.state().tasks.values().filter(|task| task.group == group).count()
    }

    /// Completes once `duration` of virtual time has passed.
    pub(crate) fn sleep(&self, duration: Duration) -> Sleep {
        Sleep { executor: self.clone(), duration, timer: None }
    }

    /// Runs `root` to its end, and with it everything that was spawned; what is left then is dropped.
    pub(crate) fn run<T: Send + 'static>(&self, root: impl Future<Output = T> + Send + 'static) -> Result<T, Stuck> {
        let result = Arc::new(Mutex::new(None));
        let group = self.new_group();
        let slot = Arc::clone(&result);
        self.spawn(
            group,
            Box::pin(async move {
                let value = root.await;
                *lock(&slot) = Some(value);
            }),
        );
        let outcome = loop {
            if let Some(value) = lock(&result).take() {
                break Ok(value);
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => break Err(Stuck::Deadlock),
                Err(stuck) => break Err(stuck),
            }
        };
        let left = std::mem::take(&mut self.state().tasks);
        // A task that panicked may do so again while it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(left)));
        outcome
    }

    /// Polls one task, or advances time; false if there is nothing left to do.
    fn step(&self) -> Result<bool, Stuck> {
        let Some(waker) = self.next_ready() else { return Ok(self.advance()) };
        waker.queued.store(false, Ordering::Relaxed);
        let Some(mut future) = self.take(waker.task)? else { return Ok(true) };
        let task = waker.task;
        let waker = Waker::from(waker);
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        match polled {
            Ok(Poll::Pending) => {
                let mut state = self.state();
                match state.tasks.get_mut(&task) {
                    Some(place) => place.future = Some(future),
                    // Its group was ended meanwhile, by itself or by what it called.
                    None => {
                        drop(state);
                        drop(future);
                    }
                }
            }
            Ok(Poll::Ready(())) => {
                self.state().tasks.remove(&task);
                drop(future);
            }
            Err(panic) => {
                self.state().tasks.remove(&task);
                let message = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                return Err(Stuck::Panic(message.unwrap_or_else(|| "of an unknown kind".to_owned())));
            }
        }
        Ok(true)
    }

    fn next_ready(&self) -> Option<Arc<TaskWaker>> {
        let mut ready = lock(&self.shared.ready.0);
        if ready.is_empty() {
            return None;
        }
        let at = self.decide(|decisions| decisions.below(ready.len() as u64));
        let task = ready.keys().nth(usize::try_from(at).unwrap_or(0)).copied()?;
        ready.remove(&task)
    }

    fn take(&self, task: u64) -> Result<Option<BoxFuture<'static, ()>>, Stuck> {
        let mut state = self.state();
        state.polls += 1;
        if state.polls > POLLS_MAX {
            return Err(Stuck::Endless);
        }
        // FNV-1a (Fowler, Noll, Vo) over whole numbers: this runs for every step of every task.
        state.order = (state.order ^ task).wrapping_mul(0x0000_0100_0000_01b3);
        Ok(state.tasks.get_mut(&task).and_then(|task| task.future.take()))
    }

    /// Goes on to the next timer; false if there is none.
    fn advance(&self) -> bool {
        let mut state = self.state();
        let Some(((at, _), waker)) = state.timers.pop_first() else { return false };
        state.now = state.now.max(at);
        drop(state);
        waker.wake();
        true
    }
}

/// Waits for virtual time to pass, from when it is first polled.
pub(crate) struct Sleep {
    executor: Executor,
    duration: Duration,
    timer: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut state = this.executor.state();
        let key = *this.timer.get_or_insert_with(|| {
            state.next_timer += 1;
            (state.now.saturating_add(this.duration), state.next_timer)
        });
        if state.now >= key.0 {
            state.timers.remove(&key);
            return Poll::Ready(());
        }
        state.timers.insert(key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.timer {
            self.executor.state().timers.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_only_when_nothing_can_go_on_and_groups_end_at_once() {
        let executor = Executor::new(1);
        let (inside, doomed) = (executor.clone(), executor.new_group());
        let dropped = Arc::new(());
        let held = Arc::clone(&dropped);
        executor.spawn(
            doomed,
            Box::pin(async move {
                let _held = held;
                std::future::pending::<()>().await;
            }),
        );
        let late = executor.run(async move {
            inside.sleep(Duration::from_secs(3600)).await;
            assert_eq!(inside.tasks_of(doomed), 1);
            inside.end(doomed);
            (inside.now(), Arc::strong_count(&dropped))
        });
        assert_eq!(late, Ok((Duration::from_secs(3600), 1)));
    }

    #[test]
    fn a_deadlock_and_a_panic_are_told_from_an_end() {
        assert_eq!(Executor::new(1).run(std::future::pending::<()>()), Err(Stuck::Deadlock));
        let panicked = Executor::new(1).run(async { panic!("as it happens") });
        assert_eq!(panicked, Err::<(), _>(Stuck::Panic("as it happens".to_owned())));
        let executor = Executor::new(1);
        let inside = executor.clone();
        let slept =
            executor.run(async move { tokio::time::timeout(Duration::ZERO, inside.sleep(Duration::ZERO)).await });
        assert!(matches!(slept, Err(Stuck::Panic(_))), "tokio's timers are not to be had");
    }

    #[test]
    fn a_seed_decides_the_order_of_tasks() {
        let order = |seed| {
            let executor = Executor::new(seed);
            let group = executor.new_group();
            for task in 0..8 {
                let noting = executor.clone();
                executor.spawn(group, Box::pin(async move { noting.note(format!("task {task}")) }));
            }
            let inside = executor.clone();
            executor.run(async move { inside.sleep(Duration::from_secs(1)).await }).unwrap();
            (executor.recent(), executor.fingerprint())
        };
        assert_eq!(order(1), order(1));
        assert!((2..10).any(|seed| order(seed) != order(1)));
    }
}
