//! Connections for reads, each a thread's of its own. A read is one closure and one hop, however many statements it has.
//!
//! Invariants:
//! - Whoever comes first is served first, and a read that no reader has begun in [`READER_WAIT`] is refused.
//! - A read that was begun is answered, whatever becomes of it. One that nobody waits for any more is not begun.
//! - A connection on which a read left a transaction, or panicked, is replaced.
//!
//! The threads end when the last handle is dropped.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::connection::open_to_read;
use super::{fault, panicked, spawn_thread};
use crate::store::StoreFault;

/// Connections for reads. Each is a thread that answers in well under a millisecond.
pub(super) const READERS_MAX: usize = 4;

/// How long a read waits for one of them before it is refused.
pub(super) const READER_WAIT: Duration = Duration::from_secs(30);

/// Most reads that wait for a reader. Whoever comes later waits to be let in.
const WAITING_MAX: usize = 256;

/// Hands reads to the reading threads.
#[derive(Clone)]
pub(super) struct Readers {
    handle: Arc<Handle>,
}

/// Dropped with the last clone of [`Readers`]: the threads hold the queue alone.
struct Handle {
    queue: Arc<Queue>,
    path: PathBuf,
    /// [`READER_WAIT`], but in tests.
    wait: Duration,
}

impl Readers {
    /// Connects to the file at `path`, which is there.
    pub(super) async fn open(path: PathBuf) -> Result<Self, StoreFault> {
        tokio::task::spawn_blocking(move || Self::connect(path, READER_WAIT)).await.map_err(|_| StoreFault::Closed)?
    }

    fn connect(path: PathBuf, wait: Duration) -> Result<Self, StoreFault> {
        let queue =
            Arc::new(Queue { state: Mutex::default(), work: Condvar::new(), room: Semaphore::new(WAITING_MAX) });
        // If one fails, the handle's end is that of those before it.
        let handle = Arc::new(Handle { queue, path, wait });
        for _ in 0..READERS_MAX {
            let thread = ReadingThread {
                connection: Some(open_to_read(&handle.path)?),
                path: handle.path.clone(),
                queue: handle.queue.clone(),
            };
            spawn_thread("results-read", move || thread.run())?;
        }
        Ok(Self { handle })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.handle.path
    }

    /// Carries out `read` and returns what it said.
    pub(super) async fn read<T, F>(&self, read: F) -> Result<T, StoreFault>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreFault> + Send + 'static,
    {
        let queue = &self.handle.queue;
        let refused_at = Instant::now() + self.handle.wait;
        let room = match queue.room.try_acquire() {
            Ok(room) => room,
            Err(_) => {
                let room = timeout_at(refused_at, queue.room.acquire()).await.map_err(|_| no_reader())?;
                room.map_err(|_| StoreFault::Closed)?
            }
        };
        // Given back by whoever takes the read from the queue.
        room.forget();
        let (answer, mut answered) = oneshot::channel();
        let begun = Arc::new(AtomicBool::new(false));
        let read = PendingRead { read, begun: begun.clone(), answer };
        if !queue.push(Box::new(read)) {
            match timeout_at(refused_at, &mut answered).await {
                Ok(answer) => return answer.map_err(|_| panicked())?,
                Err(_) if begun.load(Ordering::Acquire) => {}
                Err(_) => return Err(no_reader()),
            }
        }
        answered.await.map_err(|_| panicked())?
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.work.notify_all();
    }
}

/// A read whatever it answers with.
trait Read: Send {
    /// Carries it out and answers it, unless nobody waits for it any more.
    fn carry_out(self: Box<Self>, connection: Result<&Connection, StoreFault>);
}

struct PendingRead<T, F> {
    read: F,
    begun: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<T, StoreFault>>,
}

impl<T, F> Read for PendingRead<T, F>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreFault> + Send + 'static,
{
    fn carry_out(self: Box<Self>, connection: Result<&Connection, StoreFault>) {
        let Self { read, begun, answer } = *self;
        if answer.is_closed() {
            return;
        }
        begun.store(true, Ordering::Release);
        let _ = answer.send(connection.and_then(read));
    }
}

/// Reads on their way to the threads.
struct Queue {
    state: Mutex<QueueState>,
    /// Told of each read, and of the end.
    work: Condvar,
    /// Places for reads that wait.
    room: Semaphore,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Box<dyn Read>>,
    /// Threads that wait for work.
    idle: usize,
    /// No more reads will come.
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a reader is free for it.
    fn push(&self, read: Box<dyn Read>) -> bool {
        let mut state = self.state();
        state.waiting.push_back(read);
        let (free, idle) = (state.waiting.len() <= state.idle, state.idle);
        drop(state);
        if idle > 0 {
            self.work.notify_one();
        }
        free
    }

    /// The next read; none when there will be no more.
    fn take(&self) -> Option<Box<dyn Read>> {
        let mut state = self.state();
        loop {
            if let Some(read) = state.waiting.pop_front() {
                drop(state);
                self.room.add_permits(1);
                return Some(read);
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

struct ReadingThread {
    /// Absent after a failure, until the next read.
    connection: Option<Connection>,
    path: PathBuf,
    queue: Arc<Queue>,
}

impl ReadingThread {
    fn run(mut self) {
        while let Some(read) = self.queue.take() {
            let done = catch_unwind(AssertUnwindSafe(|| read.carry_out(self.connection())));
            if done.is_err() || self.connection.as_ref().is_some_and(|connection| !connection.is_autocommit()) {
                self.connection = None;
            }
        }
    }

    fn connection(&mut self) -> Result<&Connection, StoreFault> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            absent => Ok(absent.insert(open_to_read(&self.path)?)),
        }
    }
}

fn no_reader() -> StoreFault {
    fault(format!("no connection for reading was free within {} s", READER_WAIT.as_secs()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    async fn one(readers: &Readers) -> Result<i64, StoreFault> {
        readers.read(|connection| Ok(connection.query_row("SELECT 1", (), |row| row.get(0))?)).await
    }

    async fn readers(directory: &Path) -> Readers {
        let path = directory.join("r.db");
        std::fs::write(&path, "").unwrap();
        Readers::open(path).await.unwrap()
    }

    #[tokio::test]
    async fn a_read_that_panics_is_an_error_and_the_next_ones_work() {
        let directory = tempfile::tempdir().unwrap();
        let readers = readers(directory.path()).await;
        for _ in 0..2 * READERS_MAX {
            let panicked: Result<(), _> = readers.read(|_| panic!("as it should")).await;
            assert!(panicked.unwrap_err().to_string().contains("panicked"));
            let left = readers.read(|connection| Ok(connection.execute_batch("BEGIN")?)).await;
            assert!(left.is_ok(), "no earlier read's transaction is open: {left:?}");
        }
        assert_eq!(one(&readers).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_read_that_finds_no_reader_is_refused_and_one_that_found_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        drop(readers(directory.path()).await);
        let readers = Readers::connect(directory.path().join("r.db"), Duration::from_millis(50)).unwrap();
        // Those that are being carried out take longer than others wait.
        let begun = Arc::new(AtomicUsize::new(0));
        let (mut releases, mut long) = (Vec::new(), tokio::task::JoinSet::new());
        for _ in 0..READERS_MAX {
            let (release, released) = std::sync::mpsc::channel::<()>();
            let (readers, begun) = (readers.clone(), begun.clone());
            let read = move |_: &Connection| {
                begun.fetch_add(1, Ordering::Relaxed);
                Ok(released.recv().is_ok())
            };
            long.spawn(async move { readers.read(read).await });
            releases.push(release);
        }
        while begun.load(Ordering::Relaxed) < READERS_MAX {
            tokio::task::yield_now().await;
        }
        // More than there is room for.
        let mut refused = tokio::task::JoinSet::new();
        for _ in 0..WAITING_MAX + 10 {
            let readers = readers.clone();
            refused.spawn(async move { one(&readers).await });
        }
        for refused in refused.join_all().await {
            assert!(refused.unwrap_err().to_string().contains("was free within"));
        }
        for release in releases {
            release.send(()).unwrap();
        }
        assert!(long.join_all().await.into_iter().all(|read| read.unwrap()));
        assert_eq!(one(&readers).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn threads_end_with_the_last_handle() {
        let directory = tempfile::tempdir().unwrap();
        let readers = readers(directory.path()).await;
        let queue = Arc::downgrade(&readers.handle.queue);
        drop((readers.clone(), readers));
        while queue.upgrade().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
