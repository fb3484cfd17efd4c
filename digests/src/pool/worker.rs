//! One thread of a pool: lanes, the steps they take together, and the files that are closed together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::Instant;

use arrayvec::ArrayVec;
use bytes::Bytes;

use super::Shared;
use super::state::{Aftermath, Next, Seat, State};
use crate::file::{Ending, Part, advance, advance_blake3, close};
use crate::plan::LANES_MAX;

/// How far all lanes go before the next look at the queue. Sixteen times this is read four times over, from the level-2
/// cache; it takes a tenth of a millisecond.
const STEP_BYTES: usize = 8 * 1024;
/// How many bytes of all its files BLAKE3 may be behind the others: they are read again from the level-2 cache, and the more
/// chunks there are at once, the fewer lanes stay empty.
const BEHIND_BYTES_MAX: usize = 256 * 1024;
/// How long a file keeps its lane when others want it.
const STAY_BYTES: usize = 32 * 1024;
/// How far the lanes go while a file that is at its end waits for others, to be closed with them: closing one costs as much
/// as closing sixteen. Among small files ten come together within this, and one among long files waits half a millisecond.
const CLOSING_BYTES_MAX: usize = 2 * STEP_BYTES;

/// Works until the pool ends.
pub(super) fn run(shared: &Shared) {
    let mut worker =
        Worker { shared, lanes: Vec::with_capacity(LANES_MAX), ending: Vec::new(), ending_bytes: 0, behind_bytes: 0 };
    while worker.wait() {
        while worker.has_files() {
            if catch_unwind(AssertUnwindSafe(|| worker.turn())).is_err() {
                worker.give_up();
            }
        }
        shared.lock().end_running();
    }
}

struct Worker<'s> {
    shared: &'s Shared,
    lanes: Vec<Seat>,
    /// Files at their end but for the last bytes.
    ending: Vec<(Seat, Bytes)>,
    /// How far the lanes have gone since the first of them came.
    ending_bytes: usize,
    /// How many bytes of all these files BLAKE3 is behind.
    behind_bytes: usize,
}

impl Worker<'_> {
    fn has_files(&self) -> bool {
        !self.lanes.is_empty() || !self.ending.is_empty()
    }

    /// Sleeps until there are files to take, and takes them. False when the pool has ended.
    fn wait(&mut self) -> bool {
        let mut aftermath = Aftermath::default();
        let mut state = self.shared.lock();
        loop {
            let now = Instant::now();
            if state.may_take(now) {
                break;
            }
            if state.closing && !state.has_ready() {
                return false;
            }
            state = match state.deadline() {
                Some(deadline) => {
                    let wait = deadline.saturating_duration_since(now);
                    let woken = self.shared.work.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.begin_running();
        self.fill(&mut state, &mut aftermath);
        let more = state.may_take(Instant::now());
        drop(state);
        if more {
            self.shared.work.notify_one();
        }
        aftermath.settle();
        true
    }

    /// One step of all lanes, and what comes of it.
    fn turn(&mut self) {
        self.step();
        // Whoever may give its lane or its piece away must have nothing left to do for BLAKE3. A file at its end keeps its
        // piece until it is closed.
        let full = self.lanes.len() >= LANES_MAX;
        let may_leave = |seat: &Seat| if seat.remaining() == 0 { !seat.last } else { full && has_stayed(seat) };
        if self.behind_bytes >= BEHIND_BYTES_MAX || self.lanes.iter().any(may_leave) {
            self.catch_up();
        }
        self.exchange();
        let due = self.ending.len() >= LANES_MAX || self.lanes.is_empty() || self.ending_bytes >= CLOSING_BYTES_MAX;
        if due && !self.ending.is_empty() {
            self.close();
        }
    }

    /// Every lane goes as far as the one that has the least before it, or a full step.
    fn step(&mut self) {
        let bytes = self.lanes.iter().map(Seat::remaining).min().unwrap_or(0).min(STEP_BYTES);
        if bytes == 0 {
            return;
        }
        self.ending_bytes += bytes;
        self.behind_bytes += bytes * self.lanes.len();
        let parts = self.lanes.iter_mut().map(|seat| Part {
            file: &mut seat.file,
            bytes: seat.piece.get(seat.done..seat.done + bytes).unwrap_or_default(),
        });
        let mut parts: ArrayVec<Part<'_>, LANES_MAX> = parts.collect();
        advance(&self.shared.plan, &mut parts);
        drop(parts);
        for seat in &mut self.lanes {
            seat.done += bytes;
            seat.stay_bytes += bytes;
        }
    }

    /// Takes BLAKE3 as far as the others are, in all files together.
    fn catch_up(&mut self) {
        self.behind_bytes = 0;
        let ending = self.ending.iter_mut().map(|(seat, _)| seat);
        advance_blake3(&self.shared.plan, self.lanes.iter_mut().chain(ending).filter_map(Seat::catch_up));
    }

    /// Lanes whose piece is used up take the next; free ones take other files.
    fn exchange(&mut self) {
        let mut aftermath = Aftermath::default();
        let mut state = self.shared.lock();
        let full = self.lanes.len() >= LANES_MAX;
        for lane in (0..self.lanes.len()).rev() {
            let Some(seat) = self.lanes.get(lane) else { continue };
            let give_way = full && has_stayed(seat) && state.has_ready();
            if seat.remaining() > 0 && !give_way && !state.is_dropped(seat.key) {
                continue;
            }
            // Whatever takes its place has been looked at already.
            let seat = self.lanes.swap_remove(lane);
            let next = state.next(seat, give_way, &mut aftermath);
            self.seat(next);
        }
        self.fill(&mut state, &mut aftermath);
        drop(state);
        aftermath.settle();
    }

    fn fill(&mut self, state: &mut State, aftermath: &mut Aftermath) {
        while self.lanes.len() < LANES_MAX && self.ending.len() < 2 * LANES_MAX {
            let Some(seat) = state.take(self.lanes.len() + self.ending.len(), aftermath) else { break };
            let next = state.next(seat, false, aftermath);
            self.seat(next);
        }
    }

    fn seat(&mut self, next: Next) {
        match next {
            Next::Stay(seat) => self.lanes.push(seat),
            Next::End(seat, rest) => {
                if self.ending.is_empty() {
                    self.ending_bytes = 0;
                }
                self.ending.push((seat, rest));
            }
            Next::Gone => {}
        }
    }

    fn close(&mut self) {
        self.catch_up();
        let mut endings: Vec<Ending<'_>> = Vec::with_capacity(self.ending.len());
        endings.extend(self.ending.iter_mut().map(|(seat, rest)| Ending { file: &mut seat.file, rest }));
        close(&self.shared.plan, &mut endings);
        let digests: Vec<_> = self.ending.iter().map(|(seat, _)| seat.file.digests()).collect();
        let mut aftermath = Aftermath::default();
        let closed = std::mem::take(&mut self.ending);
        let mut state = self.shared.lock();
        for ((seat, _), digests) in closed.into_iter().zip(digests) {
            state.finish(seat, Ok(digests), &mut aftermath);
        }
        drop(state);
        aftermath.settle();
    }

    /// After a panic: the owners of all files that this thread held are told that they are lost.
    fn give_up(&mut self) {
        let mut aftermath = Aftermath::default();
        let mut state = self.shared.lock();
        let ending = self.ending.drain(..).map(|(seat, _)| seat);
        for seat in self.lanes.drain(..).chain(ending) {
            state.lose(seat, &mut aftermath);
        }
        drop(state);
        aftermath.settle();
    }
}

/// Whether a seat's file has had its lane long enough if others want it. One that will be through before long stays: to sit
/// down a second time would cost more.
fn has_stayed(seat: &Seat) -> bool {
    let ends_soon = seat.last && seat.remaining() <= STAY_BYTES;
    seat.stay_bytes >= STAY_BYTES && !ends_soon
}
