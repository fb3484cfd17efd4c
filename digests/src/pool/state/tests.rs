//! What the pool's state does, step by step, without threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use super::*;

/// Counts how often it is woken.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn state(queued_bytes_max: usize) -> State {
    State::new(&Settings { queued_bytes_max, ..Settings::default() })
}

fn open(state: &mut State) -> Key {
    state.open(Plan::fastest(), Selection::ALL)
}

fn piece(bytes: usize) -> Bytes {
    vec![0; bytes].into()
}

#[test]
fn whoever_finds_no_room_is_woken_when_another_gives_up() {
    let mut state = state(1000);
    let (one, two) = (open(&mut state), open(&mut state));
    let counting = Arc::new(Counting::default());
    let waker = Waker::from(counting.clone());
    assert!(state.has_room(one, waker.clone(), &mut Aftermath::default()).0);
    // The last piece may pass the bound, but nothing after it.
    state.push(one, piece(128_000));
    assert!(!state.has_room(two, waker.clone(), &mut Aftermath::default()).0);
    state.abandon(one).settle();
    assert_eq!(counting.0.load(Ordering::SeqCst), 1);
    assert!(state.has_room(two, waker.clone(), &mut Aftermath::default()).0);
    assert_eq!(state.queued_bytes, 0);
}

#[test]
fn a_file_that_has_its_share_waits_until_a_lane_takes_some() {
    let mut state = state(usize::MAX);
    let key = open(&mut state);
    let counting = Arc::new(Counting::default());
    let waker = Waker::from(counting.clone());
    state.push(key, piece(FILE_BYTES_MAX));
    assert!(!state.has_room(key, waker.clone(), &mut Aftermath::default()).0);
    let mut aftermath = Aftermath::default();
    state.begin_running();
    let seat = state.take(0, &mut aftermath).unwrap();
    aftermath.settle();
    assert_eq!(counting.0.load(Ordering::SeqCst), 1);
    assert!(state.has_room(key, waker.clone(), &mut Aftermath::default()).0);
    assert_eq!(seat.piece.len(), FILE_BYTES_MAX);
    assert_eq!(state.waited_for, 0);
}

#[test]
fn files_of_a_thread_that_failed_are_told_and_leave_nothing() {
    let mut state = state(usize::MAX);
    let key = open(&mut state);
    state.push(key, piece(1280));
    state.push(key, piece(128));
    let counting = Arc::new(Counting::default());
    let waker = Waker::from(counting.clone());
    let mut aftermath = Aftermath::default();
    state.begin_running();
    let seat = state.take(0, &mut aftermath).unwrap();
    state.end(key, vec![piece(256)], Bytes::new(), false);
    assert!(matches!(state.outcome(key, waker.clone(), &mut Aftermath::default()).0, Outcome::Wait));
    state.lose(seat, &mut aftermath);
    aftermath.settle();
    assert_eq!(counting.0.load(Ordering::SeqCst), 1);
    assert!(matches!(state.outcome(key, waker.clone(), &mut Aftermath::default()).0, Outcome::There(Err(Lost))));
    let left = (state.queued_bytes, state.open, state.in_lanes, state.waited_for, state.files.len());
    assert_eq!(left, (0, 0, 0, 0, 0));
}

#[test]
fn a_file_dropped_in_the_queue_or_in_a_lane_is_gone_when_it_is_met() {
    let mut state = state(usize::MAX);
    let (queued, seated) = (open(&mut state), open(&mut state));
    state.push(seated, piece(1280));
    state.begin_running();
    let mut aftermath = Aftermath::default();
    let seat = state.take(0, &mut aftermath).unwrap();
    state.push(queued, piece(1280));
    state.abandon(queued).settle();
    state.abandon(seated).settle();
    assert_eq!((state.open, state.queued_bytes), (0, 1280));
    assert!(matches!(state.next(seat, false, &mut aftermath), Next::Gone));
    assert!(state.take(0, &mut aftermath).is_none());
    assert_eq!((state.queued_bytes, state.in_lanes, state.files.len()), (0, 0, 0));
    assert!(state.ready_since.is_none());
}

#[test]
fn a_file_at_its_end_keeps_its_piece_until_it_is_closed_and_leaves_its_room_to_another() {
    let mut state = state(usize::MAX);
    let key = open(&mut state);
    let mut aftermath = Aftermath::default();
    state.end(key, vec![piece(1280), piece(256)], piece(5), true);
    state.begin_running();
    let mut seat = state.take(0, &mut aftermath).unwrap();
    assert!(!seat.last);
    (seat.done, seat.hashed) = (1280, 1280);
    let Next::Stay(mut seat) = state.next(seat, false, &mut aftermath) else { panic!("its second piece is there") };
    // BLAKE3 has had none of the last piece yet, which therefore stays, and counts.
    assert!(seat.last);
    seat.done = 256;
    assert_eq!(seat.behind(), 256);
    let Next::End(seat, rest) = state.next(seat, false, &mut aftermath) else { panic!("it is at its end") };
    assert_eq!((rest.len(), seat.piece.len(), state.queued_bytes), (5, 256, 256));
    let digests = seat.file.digests();
    state.finish(seat, Ok(digests), &mut aftermath);
    assert_eq!((state.queued_bytes, state.in_lanes, state.spare.len()), (0, 0, 1));
    let next = open(&mut state);
    assert!(state.spare.is_empty() && state.files[next].file.is_some());
}

#[test]
fn what_lanes_have_begun_with_is_theirs_to_end() {
    let mut state = state(usize::MAX);
    let key = open(&mut state);
    let mut aftermath = Aftermath::default();
    state.end(key, (0..4).map(|_| piece(16 << 10)).collect(), Bytes::new(), true);
    state.begin_running();
    let mut seat = state.take(0, &mut aftermath).unwrap();
    (seat.done, seat.hashed) = (16 << 10, 16 << 10);
    assert!(matches!(state.next(seat, true, &mut aftermath), Next::Gone), "it gives way at a piece's end");
    assert_eq!((state.open, state.files[key].ahead_bytes), (1, 0));
    let outcome = state.outcome(key, Waker::noop().clone(), &mut aftermath).0;
    assert!(matches!(outcome, Outcome::Wait), "the rest alone has other digests");
}

#[test]
fn small_files_and_long_ones_take_turns() {
    let mut state = state(usize::MAX);
    let open_after = |state: &mut State, taken_bytes| {
        let key = open(state);
        state.files[key].taken_bytes = taken_bytes;
        state.push(key, piece(128));
        key
    };
    let long: Vec<Key> = (0..4).map(|_| open_after(&mut state, FRESH_BYTES)).collect();
    let fresh: Vec<Key> = (0..4).map(|_| open_after(&mut state, 0)).collect();
    let mut aftermath = Aftermath::default();
    state.begin_running();
    let order: Vec<Key> = std::iter::from_fn(|| state.take(0, &mut aftermath)).map(|seat| seat.key).collect();
    let turns = fresh.into_iter().zip(long).flat_map(|(fresh, long)| [fresh, long]);
    assert_eq!(order, turns.collect::<Vec<_>>());
}
