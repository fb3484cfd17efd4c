//! One file of a pool, as its owner sees it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;

use super::state::{Aftermath, Key, Outcome};
use super::{ALONE_BYTES, Lost, Pool, SHORT_BYTES};
use crate::file::{BLOCK_BYTES, File, advance_one, close_one};
use crate::{Digests, Selection};

/// Pieces shorter than this are copied together before they are handed on, so that the way to a thread is a small part of
/// the work on them.
const GATHER_BYTES: usize = 2 * 1024;

/// A file that is being digested by a [`Pool`]. Dropped before its end, it leaves the pool.
///
/// Its pieces are kept as they come, not copied, until a thread is through with them: a short [`Bytes`] that is part of a
/// long buffer keeps the long one.
pub struct Stream {
    place: Place,
    /// Less than a unit that was begun, or short pieces that were gathered.
    gathered: Vec<u8>,
    /// The same where nothing came after it yet, not copied.
    tail: Bytes,
    /// Whole units that were not handed on yet, because the file may turn out to be short, or to be alone to its end.
    held: Vec<Bytes>,
    /// Their bytes; none once pieces are handed on.
    held_bytes: Option<usize>,
}

impl Stream {
    pub(super) fn new(pool: Pool, selection: Selection) -> Self {
        let key = pool.shared().lock().open(&pool.shared().plan, selection);
        let place = Place { pool, key: Some(key) };
        Self { place, gathered: Vec::new(), tail: Bytes::new(), held: Vec::new(), held_bytes: Some(0) }
    }

    /// Takes the file's next bytes. Waits while too many bytes of this file, or of all together, are waiting for a thread.
    /// Given up half-way, the stream is good for nothing but to be dropped.
    pub async fn update(&mut self, piece: Bytes) {
        let (first, second) = self.cut(piece);
        let cut_bytes = first.len() + second.len();
        self.held_bytes =
            self.held_bytes.map(|held_bytes| held_bytes + cut_bytes).filter(|bytes| self.may_hold(*bytes));
        if self.held_bytes.is_some() {
            self.held.extend([first, second].into_iter().filter(|piece| !piece.is_empty()));
            return;
        }
        let held = std::mem::take(&mut self.held);
        for piece in held.into_iter().chain([first, second]).filter(|piece| !piece.is_empty()) {
            self.place.room().await;
            self.place.push(piece);
        }
    }

    /// [`Stream::update`] for threads that may block.
    pub fn update_blocking(&mut self, piece: Bytes) {
        block_on(self.update(piece));
    }

    /// Says that the file is at its end. Returns at once; its digests are computed whether anybody waits for them or not.
    pub fn end(mut self) -> Pending {
        let (pieces, rest) = self.last();
        self.place.end(pieces, rest, self.is_short());
        Pending { place: self.place }
    }

    /// Takes all of a file, of which nothing came before. Waits while too many bytes of all files together are waiting for a thread.
    pub(super) fn whole_blocking(mut self, content: Bytes) -> Pending {
        block_on(self.place.room());
        let (first, second) = self.cut(content);
        self.held_bytes = Some(first.len() + second.len());
        self.held.extend([first, second].into_iter().filter(|piece| !piece.is_empty()));
        self.end()
    }

    /// Ends the file and waits for its digests. One that is not long and the only one is digested here and now, and no thread
    /// hears of it.
    pub async fn finish(mut self) -> Result<Digests, Lost> {
        let (pieces, rest) = self.last();
        if self.held_bytes.is_some()
            && let Some(selection) = self.place.leave_if_alone()
        {
            return Ok(digest_here(&self.place.pool, selection, &pieces, &rest));
        }
        self.place.end(pieces, rest, self.is_short());
        Pending { place: self.place }.await
    }

    /// [`Stream::finish`] for threads that may block.
    pub fn finish_blocking(self) -> Result<Digests, Lost> {
        block_on(self.finish())
    }

    /// Whether so many bytes may be held until the file's end. More than a short file's only by one that is alone, so that it is
    /// the only one that does.
    fn may_hold(&self, bytes: usize) -> bool {
        bytes <= SHORT_BYTES || (bytes <= ALONE_BYTES && self.place.is_alone())
    }

    /// Whether the file came whole, at its end, and is short.
    fn is_short(&self) -> bool {
        self.held_bytes.is_some_and(|bytes| bytes <= SHORT_BYTES)
    }

    /// What was not handed on yet: whole units, and the rest behind them.
    fn last(&mut self) -> (Vec<Bytes>, Bytes) {
        let mut rest = std::mem::take(&mut self.tail);
        let mut pieces = std::mem::take(&mut self.held);
        if rest.is_empty() {
            rest = Bytes::from(std::mem::take(&mut self.gathered));
            let units = rest.split_to(rest.len() - rest.len() % BLOCK_BYTES);
            pieces.extend(Some(units).filter(|units| !units.is_empty()));
        }
        (pieces, rest)
    }

    /// Cuts what was gathered and a new piece into whole units: of what was gathered, made up to a unit, and of the piece
    /// behind. The rest is gathered.
    fn cut(&mut self, mut piece: Bytes) -> (Bytes, Bytes) {
        self.gathered.extend_from_slice(&std::mem::take(&mut self.tail));
        if self.gathered.len() + piece.len() < GATHER_BYTES {
            self.gathered.extend_from_slice(&piece);
            return (Bytes::new(), Bytes::new());
        }
        let mut first = Bytes::new();
        if !self.gathered.is_empty() {
            let missing = self.gathered.len().next_multiple_of(BLOCK_BYTES) - self.gathered.len();
            // A short piece is copied whole; one too short for the unit that was begun leaves it begun.
            let joined = if piece.len() < GATHER_BYTES { piece.len() } else { missing };
            self.gathered.extend_from_slice(&piece.split_to(joined.min(piece.len())));
            let rest = self.gathered.split_off(self.gathered.len() - self.gathered.len() % BLOCK_BYTES);
            first = std::mem::replace(&mut self.gathered, rest).into();
        }
        let second = piece.split_to(piece.len() - piece.len() % BLOCK_BYTES);
        // Nothing is gathered now but what is less than a unit, and then the piece was used up.
        debug_assert!(self.gathered.is_empty() || piece.is_empty());
        self.tail = piece;
        (first, second)
    }
}

/// A file's digests, as soon as they are there: a future, or [`Pending::wait`]. Dropped, the file leaves the pool.
#[must_use = "the digests come when this is awaited"]
pub struct Pending {
    place: Place,
}

impl Pending {
    /// Blocks until the digests are there.
    pub fn wait(self) -> Result<Digests, Lost> {
        block_on(self)
    }

    /// Whether the digests are there.
    pub fn is_there(&self) -> bool {
        self.place.key.is_none_or(|key| self.place.pool.shared().lock().is_there(key))
    }

    /// Leaves to the pool what is done with the digests, on a thread of its own, which it must not hold up. Nobody waits for the file
    /// then, so that it may wait for company.
    pub fn then(mut self, done: impl FnOnce(Result<Digests, Lost>) + Send + 'static) {
        let Some(key) = self.place.key.take() else { return done(Err(Lost)) };
        let is_there = self.place.pool.shared().lock().when_there(key, Box::new(done));
        if let Some((done, outcome)) = is_there {
            done(outcome);
        }
    }
}

impl Future for Pending {
    type Output = Result<Digests, Lost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.place.outcome(context.waker().clone())
    }
}

/// A file's place in the pool, which it leaves when this goes.
struct Place {
    pool: Pool,
    key: Option<Key>,
}

impl Place {
    async fn room(&self) {
        let Some(key) = self.key else { return };
        let room = |context: &mut Context<'_>| {
            let (waker, mut aftermath) = (context.waker().clone(), Aftermath::default());
            let (has_room, look) = self.pool.shared().lock().has_room(key, waker, &mut aftermath);
            self.tell(look);
            aftermath.settle();
            if has_room { Poll::Ready(()) } else { Poll::Pending }
        };
        poll_fn(room).await;
    }

    fn push(&self, piece: Bytes) {
        let Some(key) = self.key else { return };
        let look = self.pool.shared().lock().push(key, piece);
        self.tell(look);
    }

    fn end(&self, pieces: Vec<Bytes>, rest: Bytes, short: bool) {
        let Some(key) = self.key else { return };
        let look = self.pool.shared().lock().end(key, pieces, rest, short);
        self.tell(look);
    }

    /// Whether this is the pool's only file.
    fn is_alone(&self) -> bool {
        self.pool.shared().lock().is_alone()
    }

    /// What is wanted of a file that brought nothing yet and is the only one. The pool knows nothing of it from then on.
    fn leave_if_alone(&mut self) -> Option<Selection> {
        let selection = self.pool.shared().lock().leave_if_alone(self.key?)?;
        self.key = None;
        Some(selection)
    }

    fn tell(&self, look: bool) {
        if look {
            self.pool.shared().work.notify_one();
        }
    }

    /// The file's digests, or a wait. A short file that nobody has begun and that is the only one is digested here and now,
    /// which is quicker than the way through a thread.
    fn outcome(&mut self, waker: Waker) -> Poll<Result<Digests, Lost>> {
        let Some(key) = self.key else { return Poll::Ready(Err(Lost)) };
        let mut aftermath = Aftermath::default();
        let (outcome, look) = self.pool.shared().lock().outcome(key, waker, &mut aftermath);
        self.tell(look);
        aftermath.settle();
        let digests = match outcome {
            Outcome::Wait => return Poll::Pending,
            Outcome::There(outcome) => outcome,
            Outcome::Yours(selection, mut pieces, rest) => {
                Ok(digest_here(&self.pool, selection, pieces.make_contiguous(), &rest))
            }
        };
        self.key = None;
        Poll::Ready(digests)
    }
}

fn digest_here(pool: &Pool, selection: Selection, pieces: &[Bytes], rest: &[u8]) -> Digests {
    let (plan, mut file) = (&pool.shared().plan, File::alone(selection));
    for bytes in pieces {
        advance_one(plan, &mut file, bytes);
    }
    close_one(plan, &mut file, rest)
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let aftermath = self.pool.shared().lock().abandon(key);
            aftermath.settle();
        }
    }
}

/// Waits for a future on this thread, which sleeps meanwhile.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    // Most often there is room, and nothing to wait for. Whoever is pending is polled again, with a waker that wakes.
    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return output;
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
