//! Who is where: the files of a pool, the queue of those that have bytes waiting, and the bounds.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;

use super::{FILE_BYTES_MAX, Lost, Settings, URGENT};
use crate::file::{File, Run};
use crate::plan::{LANES_MAX, Plan};
use crate::{Digests, Selection};

/// A file that has not come further than this goes before those that have, every other time: small files and beginnings
/// don't wait until gigabytes are through.
const FRESH_BYTES: u64 = 64 * 1024;
/// Up to this many files are better spread over the threads than laid side by side: sharing a pass gains nothing yet.
const SPREAD_FILES: usize = 3;

/// How many files that are through are kept for others: as many as a few threads close in a moment.
const SPARE_FILES_MAX: usize = 128;

/// Names a file of the pool for as long as its owner or a thread holds it.
pub(super) type Key = usize;

/// A file of the pool.
pub(super) struct Entry {
    /// Here while no thread has it.
    file: Option<Box<File>>,
    /// Whole units that wait, in order.
    pieces: VecDeque<Bytes>,
    pieces_bytes: usize,
    /// How much of the first piece BLAKE3 has had already.
    ahead_bytes: usize,
    /// What is left after the last whole unit; there once the owner has said that the file is at its end.
    rest: Option<Bytes>,
    /// It came whole, at its end.
    short: bool,
    /// Bytes that threads have taken.
    taken_bytes: u64,
    place: Place,
    outcome: Option<Result<Digests, Lost>>,
    /// The owner, if it waits.
    waker: Option<Waker>,
    /// What is done with the digests, if the owner left that here.
    then: Option<Then>,
    /// It waits until fewer bytes of all files do.
    in_room: bool,
    /// The owner is gone; whoever meets the file next takes it away.
    dropped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Idle,
    Ready,
    Lane,
}

/// A file in a thread's lane, with the piece that is being worked on.
pub(super) struct Seat {
    pub(super) key: Key,
    pub(super) file: Box<File>,
    pub(super) piece: Bytes,
    /// How far the piece has come.
    pub(super) done: usize,
    /// How far BLAKE3 has come, which is behind the others, or ahead by less than a chunk.
    pub(super) hashed: usize,
    /// The file ends with this piece, but for the rest.
    pub(super) last: bool,
    /// Bytes since the file came into this lane.
    pub(super) stay_bytes: usize,
}

impl Seat {
    /// How many bytes of the piece are still to be done.
    pub(super) fn remaining(&self) -> usize {
        self.piece.len().saturating_sub(self.done)
    }

    /// How many bytes BLAKE3 is behind.
    pub(super) fn behind(&self) -> usize {
        self.done.saturating_sub(self.hashed)
    }

    /// What BLAKE3 takes to be as far as the others.
    pub(super) fn catch_up(&mut self) -> Option<Run<'_>> {
        let behind = self.behind();
        if behind == 0 {
            return None;
        }
        let at_hand = self.piece.get(self.hashed..)?;
        let reach = self.file.reach(behind, at_hand.len());
        self.hashed += reach;
        Some(Run { file: &mut self.file, bytes: at_hand.get(..reach)?, more: reach < at_hand.len() })
    }
}

/// What an owner who asks for digests gets.
pub(super) enum Outcome {
    /// Digests, or the news that there will be none.
    There(Result<Digests, Lost>),
    /// The file's bytes, to digest them: its pieces, and the rest behind them.
    Yours(Selection, VecDeque<Bytes>, Bytes),
    /// It is to be woken.
    Wait,
}

/// What a seat's file does next.
pub(super) enum Next {
    /// It stays, with bytes to work on.
    Stay(Seat),
    /// It is at its end but for these bytes.
    End(Seat, Bytes),
    /// It left the lane.
    Gone,
}

/// What is done with a file's digests once they are there.
pub(super) type Then = Box<dyn FnOnce(Result<Digests, Lost>) + Send>;

/// Owners to be woken and things to be dropped once the lock is released: wakers and bytes are other people's code, which
/// could come back here.
#[derive(Default)]
pub(super) struct Aftermath {
    wakers: Vec<Waker>,
    thens: Vec<(Then, Result<Digests, Lost>)>,
    retired: Vec<Waker>,
    pieces: Vec<Bytes>,
    files: Vec<Option<Box<File>>>,
}

impl Aftermath {
    /// To be called without the lock.
    pub(super) fn settle(self) {
        drop(self.retired);
        drop(self.pieces);
        drop(self.files);
        for waker in self.wakers {
            // A waker is its owner's code: if it panics, this thread and the other owners are not to suffer.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        for (then, outcome) in self.thens {
            let _ = catch_unwind(AssertUnwindSafe(|| then(outcome)));
        }
    }
}

/// Everything that a pool's lock guards.
pub(super) struct State {
    files: Slab<Entry>,
    fresh: VecDeque<Key>,
    long: VecDeque<Key>,
    /// Of those, files that are there to their end.
    ready_whole: usize,
    /// Whose turn it is of the two queues.
    long_next: bool,
    /// Since when a file has been ready without interruption.
    ready_since: Option<Instant>,
    /// Files that are not through yet and whose owner is there.
    open: usize,
    /// Of those, files whose owner waits.
    waited_for: usize,
    queued_bytes: usize,
    queued_bytes_max: usize,
    /// Files whose owners wait until fewer bytes do.
    room: Vec<Key>,
    /// Files that are through, for others to begin in: they are some kilobytes each, most of which need not be written.
    #[allow(clippy::vec_box, reason = "the boxes are what is kept")]
    spare: Vec<Box<File>>,
    /// Threads that are at work, and the files in their lanes.
    running: usize,
    in_lanes: usize,
    threads: usize,
    linger: Duration,
    pub(super) closing: bool,
}

impl State {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            files: Slab::new(),
            fresh: VecDeque::new(),
            long: VecDeque::new(),
            ready_whole: 0,
            long_next: false,
            ready_since: None,
            open: 0,
            waited_for: 0,
            queued_bytes: 0,
            queued_bytes_max: settings.queued_bytes_max,
            room: Vec::new(),
            spare: Vec::new(),
            running: 0,
            in_lanes: 0,
            threads: settings.threads.get(),
            linger: settings.linger,
            closing: false,
        }
    }

    // What owners do.

    /// A new file.
    pub(super) fn open(&mut self, plan: &Plan, selection: Selection) -> Key {
        self.open += 1;
        let file = match self.spare.pop() {
            Some(mut file) => {
                file.begin(selection);
                file
            }
            None => Box::new(File::new(plan, selection)),
        };
        self.files.insert(Entry {
            file: Some(file),
            pieces: VecDeque::new(),
            pieces_bytes: 0,
            ahead_bytes: 0,
            rest: None,
            short: false,
            taken_bytes: 0,
            place: Place::Idle,
            outcome: None,
            waker: None,
            then: None,
            in_room: false,
            dropped: false,
        })
    }

    /// Whether there is room for another piece of this file; if not, `waker` is told when to ask again. Also whether a thread
    /// should look, because somebody waits now.
    pub(super) fn has_room(&mut self, key: Key, waker: Waker, aftermath: &mut Aftermath) -> (bool, bool) {
        let Some(entry) = self.files.get_mut(key) else { return (true, false) };
        if entry.outcome.is_some() {
            // Lost: nothing more is taken in, and the owner learns it at the end.
            return (true, false);
        }
        if entry.pieces_bytes >= FILE_BYTES_MAX {
            let first = entry.waker.is_none();
            aftermath.retired.extend(entry.waker.replace(waker));
            self.waited_for += usize::from(first);
            return (false, first);
        }
        if self.queued_bytes >= self.queued_bytes_max {
            let first = entry.waker.is_none();
            aftermath.retired.extend(entry.waker.replace(waker));
            self.waited_for += usize::from(first);
            if !std::mem::replace(&mut entry.in_room, true) {
                self.room.push(key);
            }
            return (false, first);
        }
        (true, false)
    }

    /// Takes whole units of a file. Returns whether a thread should look.
    pub(super) fn push(&mut self, key: Key, piece: Bytes) -> bool {
        let Some(entry) = self.files.get_mut(key).filter(|entry| entry.outcome.is_none()) else { return false };
        if piece.is_empty() {
            return false;
        }
        entry.pieces_bytes += piece.len();
        self.queued_bytes += piece.len();
        entry.pieces.push_back(piece);
        self.make_ready(key)
    }

    /// Takes what is left of a file: whole units, and the rest behind them. `short` says that this is all of it. Returns
    /// whether a thread should look.
    pub(super) fn end(&mut self, key: Key, pieces: Vec<Bytes>, rest: Bytes, short: bool) -> bool {
        let Some(entry) = self.files.get_mut(key).filter(|entry| entry.outcome.is_none()) else { return false };
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        if entry.pieces.is_empty() {
            entry.pieces = pieces.into();
        } else {
            entry.pieces.extend(pieces);
        }
        entry.pieces_bytes += bytes;
        entry.rest = Some(rest);
        entry.short = short;
        self.queued_bytes += bytes;
        if entry.place == Place::Ready {
            self.ready_whole += 1;
        }
        self.make_ready(key)
    }

    /// Whether no more than one file is open.
    pub(super) fn is_alone(&self) -> bool {
        self.open <= 1
    }

    /// Takes a file out of the pool again that has brought nothing yet, if it is the only one. Returns what is wanted of it.
    pub(super) fn leave_if_alone(&mut self, key: Key) -> Option<Selection> {
        let alone = self.is_alone();
        let entry = self.files.get_mut(key).filter(|_| alone)?;
        let is_new = entry.place == Place::Idle && entry.taken_bytes == 0 && entry.outcome.is_none();
        let file = entry.file.take_if(|_| is_new)?;
        self.files.remove(key);
        self.open -= 1;
        let selection = file.selection();
        drop(self.spare(file));
        Some(selection)
    }

    /// Keeps a file that nobody needs any more for others to begin in.
    fn spare(&mut self, file: Box<File>) -> Option<Box<File>> {
        if self.spare.len() >= SPARE_FILES_MAX {
            return Some(file);
        }
        self.spare.push(file);
        None
    }

    fn make_ready(&mut self, key: Key) -> bool {
        let Some(entry) = self.files.get_mut(key) else { return false };
        if entry.place != Place::Idle {
            return false;
        }
        entry.place = Place::Ready;
        self.ready_whole += usize::from(entry.rest.is_some());
        if entry.taken_bytes < FRESH_BYTES {
            self.fresh.push_back(key)
        } else {
            self.long.push_back(key)
        }
        self.ready_since.get_or_insert_with(Instant::now);
        // The first begins a thread's wait for company; after that it need only know when there is enough of it.
        self.ready() == 1 || self.may_take(Instant::now())
    }

    /// The file's digests, or `waker` is told when they are there. Also whether a thread should look.
    pub(super) fn outcome(&mut self, key: Key, waker: Waker, aftermath: &mut Aftermath) -> (Outcome, bool) {
        let lost = Outcome::There(Err(Lost));
        let alone = self.is_alone();
        let Some(entry) = self.files.get_mut(key) else { return (lost, false) };
        if let Some(outcome) = entry.outcome.take() {
            self.files.remove(key);
            return (Outcome::There(outcome), false);
        }
        if alone
            && entry.short
            && entry.place == Place::Ready
            // No lane has begun with it: what is handed over are its bytes, all of them.
            && entry.taken_bytes == 0
            && let (Some(file), Some(rest)) = (entry.file.take(), entry.rest.take())
        {
            let pieces = std::mem::take(&mut entry.pieces);
            self.queued_bytes -= entry.pieces_bytes;
            self.waited_for -= usize::from(entry.waker.is_some());
            aftermath.retired.extend(entry.waker.take());
            self.open -= 1;
            self.files.remove(key);
            self.ready_whole -= 1;
            // The only file's key, and perhaps those of files that were dropped.
            self.fresh.retain(|other| *other != key);
            self.note_empty();
            let selection = file.selection();
            aftermath.files.extend(self.spare(file).map(Some));
            return (Outcome::Yours(selection, pieces, rest), false);
        }
        let first = entry.waker.is_none();
        aftermath.retired.extend(entry.waker.replace(waker));
        self.waited_for += usize::from(first);
        (Outcome::Wait, first && self.ready() > 0)
    }

    /// Leaves to the pool what is done with the digests. Given back, with them, if they are there.
    pub(super) fn when_there(&mut self, key: Key, then: Then) -> Option<(Then, Result<Digests, Lost>)> {
        let Some(entry) = self.files.get_mut(key) else { return Some((then, Err(Lost))) };
        let Some(outcome) = entry.outcome.take() else {
            entry.then = Some(then);
            return None;
        };
        self.files.remove(key);
        Some((then, outcome))
    }

    /// Whether the digests are there.
    pub(super) fn is_there(&self, key: Key) -> bool {
        self.files.get(key).is_none_or(|entry| entry.outcome.is_some())
    }

    /// The owner goes. If nobody else has the file it is gone, else as soon as somebody meets it.
    pub(super) fn abandon(&mut self, key: Key) -> Aftermath {
        let mut aftermath = Aftermath::default();
        let Some(entry) = self.files.get_mut(key) else { return aftermath };
        self.waited_for -= usize::from(entry.waker.is_some());
        aftermath.retired.extend(entry.waker.take());
        if entry.outcome.is_none() {
            self.open -= 1;
        }
        entry.dropped = true;
        aftermath.pieces.extend(entry.pieces.drain(..));
        let freed = std::mem::take(&mut entry.pieces_bytes);
        aftermath.files.push(entry.file.take());
        if entry.place == Place::Idle {
            self.files.remove(key);
        }
        self.free(freed, &mut aftermath);
        aftermath
    }

    // What threads do.

    fn ready(&self) -> usize {
        self.fresh.len() + self.long.len()
    }

    /// Whether files wait that an idle thread should take now.
    pub(super) fn may_take(&self, now: Instant) -> bool {
        let ready = self.ready();
        if ready == 0 {
            return false;
        }
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            return true;
        }
        // One that is whole and nobody waits for has time: company may come.
        let is_wanted = self.waited_for > 0 || ready > self.ready_whole;
        if self.open <= SPREAD_FILES {
            return is_wanted;
        }
        // Those who are at work take up to sixteen each at their next step.
        if self.running > 0 && ready + self.in_lanes <= self.running * LANES_MAX {
            return false;
        }
        ready >= LANES_MAX || is_wanted && ready + self.in_lanes >= self.open
    }

    /// When the files that wait have waited for company long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let linger = if self.waited_for > 0 { self.linger.min(URGENT) } else { self.linger };
        self.ready_since.and_then(|since| since.checked_add(linger))
    }

    pub(super) fn begin_running(&mut self) {
        self.running += 1;
    }

    pub(super) fn end_running(&mut self) {
        self.running -= 1;
    }

    /// The next file for a lane of a thread that has `seats` files already.
    pub(super) fn take(&mut self, seats: usize, aftermath: &mut Aftermath) -> Option<Seat> {
        if seats > 0 && self.open <= SPREAD_FILES && self.running < self.open.min(self.threads) {
            return None;
        }
        loop {
            let first_long = self.long_next;
            self.long_next = !first_long;
            let (first, second) =
                if first_long { (&mut self.long, &mut self.fresh) } else { (&mut self.fresh, &mut self.long) };
            let key = first.pop_front().or_else(|| second.pop_front());
            self.note_empty();
            let key = key?;
            let Some(entry) = self.files.get_mut(key) else { continue };
            self.ready_whole -= usize::from(entry.rest.is_some());
            if entry.dropped {
                self.files.remove(key);
                continue;
            }
            let Some(file) = entry.file.take() else { continue };
            entry.place = Place::Lane;
            self.in_lanes += 1;
            let hashed = std::mem::take(&mut entry.ahead_bytes);
            let (piece, last) = self.next_piece(key, aftermath).unwrap_or_default();
            return Some(Seat { key, file, piece, done: 0, hashed, last, stay_bytes: 0 });
        }
    }

    /// The file's next piece, for its lane, and whether it is the last.
    fn next_piece(&mut self, key: Key, aftermath: &mut Aftermath) -> Option<(Bytes, bool)> {
        let entry = self.files.get_mut(key)?;
        let piece = entry.pieces.pop_front()?;
        entry.taken_bytes += piece.len() as u64;
        entry.pieces_bytes -= piece.len();
        if entry.pieces_bytes < FILE_BYTES_MAX
            && entry.rest.is_none()
            && let Some(waker) = entry.waker.take()
        {
            self.waited_for -= 1;
            aftermath.wakers.push(waker);
        }
        Some((piece, entry.rest.is_some() && entry.pieces.is_empty()))
    }

    /// Between two steps: what a seat does next. `give_way` says that others want the lane.
    pub(super) fn next(&mut self, mut seat: Seat, give_way: bool, aftermath: &mut Aftermath) -> Next {
        let Some(entry) = self.files.get_mut(seat.key) else { return Next::Gone };
        if entry.dropped {
            self.files.remove(seat.key);
            self.in_lanes -= 1;
            self.free(seat.piece.len(), aftermath);
            aftermath.files.push(Some(seat.file));
            aftermath.pieces.push(seat.piece);
            return Next::Gone;
        }
        if seat.remaining() > 0 {
            if give_way {
                self.stand_up(seat);
                return Next::Gone;
            }
            return Next::Stay(seat);
        }
        if seat.last
            && let Some(rest) = entry.rest.take()
        {
            return Next::End(seat, rest);
        }
        debug_assert!(seat.behind() == 0, "BLAKE3 has not had all of a piece");
        let used = std::mem::take(&mut seat.piece);
        self.free(used.len(), aftermath);
        aftermath.pieces.push(used);
        if let Some((piece, last)) = self.next_piece(seat.key, aftermath) {
            (seat.piece, seat.last, seat.done, seat.hashed) = (piece, last, 0, 0);
            if give_way {
                self.stand_up(seat);
                return Next::Gone;
            }
            return Next::Stay(seat);
        }
        let Some(entry) = self.files.get_mut(seat.key) else { return Next::Gone };
        if let Some(rest) = entry.rest.take() {
            return Next::End(seat, rest);
        }
        entry.file = Some(seat.file);
        entry.place = Place::Idle;
        self.in_lanes -= 1;
        Next::Gone
    }

    /// Puts a file that has bytes left back into the queue.
    fn stand_up(&mut self, mut seat: Seat) {
        debug_assert!(seat.behind() == 0, "BLAKE3 has not had all that the others have");
        self.in_lanes -= 1;
        let Some(entry) = self.files.get_mut(seat.key) else { return };
        let done = seat.piece.split_to(seat.done);
        self.queued_bytes -= done.len();
        entry.taken_bytes -= seat.piece.len() as u64;
        entry.pieces_bytes += seat.piece.len();
        entry.pieces.push_front(seat.piece);
        entry.ahead_bytes = seat.hashed.saturating_sub(seat.done);
        entry.file = Some(seat.file);
        entry.place = Place::Idle;
        self.make_ready(seat.key);
    }

    /// A file is through, with its last piece.
    pub(super) fn finish(&mut self, seat: Seat, outcome: Result<Digests, Lost>, aftermath: &mut Aftermath) {
        let Seat { key, file, piece, .. } = seat;
        self.in_lanes -= 1;
        self.free(piece.len(), aftermath);
        aftermath.pieces.push(piece);
        aftermath.files.extend(self.spare(file).map(Some));
        let Some(entry) = self.files.get_mut(key) else { return };
        if entry.dropped {
            self.files.remove(key);
            return;
        }
        self.open -= 1;
        entry.place = Place::Idle;
        if let Some(then) = entry.then.take() {
            self.files.remove(key);
            aftermath.thens.push((then, outcome));
            return;
        }
        entry.outcome = Some(outcome);
        if let Some(waker) = entry.waker.take() {
            self.waited_for -= 1;
            aftermath.wakers.push(waker);
        }
    }

    /// A thread failed with this file in a lane: its bytes are given back and its owner is told.
    pub(super) fn lose(&mut self, seat: Seat, aftermath: &mut Aftermath) {
        let Some(entry) = self.files.get_mut(seat.key) else { return };
        let freed = std::mem::take(&mut entry.pieces_bytes);
        aftermath.pieces.extend(entry.pieces.drain(..));
        self.free(freed, aftermath);
        self.finish(seat, Err(Lost), aftermath);
    }

    fn note_empty(&mut self) {
        if self.ready() == 0 {
            self.ready_since = None;
        }
    }

    fn free(&mut self, bytes: usize, aftermath: &mut Aftermath) {
        self.queued_bytes -= bytes;
        if self.queued_bytes < self.queued_bytes_max {
            for key in self.room.drain(..) {
                // A file that gave up may have left its key to another.
                let Some(entry) = self.files.get_mut(key).filter(|entry| entry.in_room) else { continue };
                entry.in_room = false;
                let waker = entry.waker.take();
                self.waited_for -= usize::from(waker.is_some());
                aftermath.wakers.extend(waker);
            }
        }
    }

    pub(super) fn is_dropped(&self, key: Key) -> bool {
        self.files.get(key).is_none_or(|entry| entry.dropped)
    }

    pub(super) fn has_ready(&self) -> bool {
        self.ready() > 0
    }
}

#[cfg(test)]
mod tests;
