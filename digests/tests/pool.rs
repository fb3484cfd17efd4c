//! How a pool treats those who wait.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use lazaret_digests::{Pool, Selection, Set, Settings};

/// Longer than any test may take: whoever waits for company waits in vain.
const NEVER: Duration = Duration::from_secs(3600);

/// Longer than a file may take that waits for nothing.
const PATIENCE: Duration = Duration::from_secs(60);

fn content(length: usize) -> Bytes {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

fn one_thread(linger: Duration) -> Pool {
    Pool::new(Settings { threads: NonZeroUsize::MIN, linger, ..Settings::default() }).unwrap()
}

#[test]
fn a_file_alone_does_not_wait_for_company() {
    let pool = one_thread(NEVER);
    for length in [0, 10, 1000, 65_536, 65_537, 262_144, 262_145, 3_000_000] {
        let content = content(length);
        let mut stream = pool.stream(Selection::ALL);
        stream.update_blocking(content.clone());
        assert_eq!(stream.finish_blocking().unwrap(), Set::digest(Selection::ALL, &content));
    }
}

#[test]
fn a_file_that_is_joined_by_others_is_handed_on_to_the_last_byte() {
    let pool = one_thread(NEVER);
    let content = content(140_000);
    for joined_after in [0, 60_000, 100_000, 140_000] {
        let mut others = Vec::new();
        let mut stream = pool.stream(Selection::ALL);
        for at in (0..140_000).step_by(10_000) {
            if at >= joined_after && others.is_empty() {
                others.push(pool.stream(Selection::ALL));
            }
            stream.update_blocking(content.slice(at..at + 10_000));
        }
        others.push(pool.stream(Selection::ALL));
        assert_eq!(stream.finish_blocking().unwrap(), Set::digest(Selection::ALL, &content), "{joined_after}");
    }
}

#[test]
fn a_long_file_alone_goes_on_while_its_owner_does_something_else() {
    let pool = one_thread(NEVER);
    let content = content(3 << 20);
    let mut stream = pool.stream(Selection::ALL);
    // More than may wait: if nobody took the first, the last would not be taken in.
    for piece in 0..12 {
        stream.update_blocking(content.slice(piece << 18..(piece + 1) << 18));
    }
    assert_eq!(stream.finish_blocking().unwrap(), Set::digest(Selection::ALL, &content));
}

#[test]
fn a_file_among_idle_ones_does_not_wait_long() {
    let pool = one_thread(NEVER);
    let idle: Vec<_> = (0..100).map(|_| pool.stream(Selection::ALL)).collect();
    for length in [10, 100_000, 3_000_000] {
        let content = content(length);
        let mut stream = pool.stream(Selection::ALL);
        stream.update_blocking(content.clone());
        assert_eq!(stream.finish_blocking().unwrap(), Set::digest(Selection::ALL, &content));
    }
    drop(idle);
}

#[test]
fn files_that_are_all_there_go_without_anybody_waiting_for_them() {
    let pool = one_thread(NEVER);
    let content = content(5000);
    let begin = |_| {
        let mut stream = pool.stream(Selection::ALL);
        stream.update_blocking(content.clone());
        stream.end()
    };
    let mut pending: Vec<_> = (0..16).map(begin).collect();
    let last = pending.pop().unwrap();
    assert_eq!(last.wait().unwrap(), Set::digest(Selection::ALL, &content));
    // Nobody has asked for these, and there are digests.
    for pending in pending {
        assert_eq!(pending.wait().unwrap(), Set::digest(Selection::ALL, &content));
    }
}

#[test]
fn files_that_nobody_waits_for_have_time_until_somebody_waits_for_one() {
    let pool = one_thread(NEVER);
    let (told, digests) = mpsc::channel();
    let begin = |length: usize| {
        let told = told.clone();
        pool.digest_blocking(Selection::ALL, content(length))
            .then(move |digests| told.send((length, digests)).unwrap());
    };
    let lengths = [10, 5000, 100_000, 3_000_000, 63, 64];
    lengths.into_iter().for_each(begin);
    assert!(digests.recv_timeout(Duration::from_millis(50)).is_err(), "nobody waits, and company may come");
    let awaited = pool.digest_blocking(Selection::ALL, content(7000));
    assert_eq!(awaited.wait().unwrap(), Set::digest(Selection::ALL, &content(7000)));
    let mut came: Vec<usize> = Vec::new();
    for _ in lengths {
        let (length, digests) = digests.recv_timeout(PATIENCE).unwrap();
        assert_eq!(digests.unwrap(), Set::digest(Selection::ALL, &content(length)), "{length}");
        came.push(length);
    }
    came.sort_unstable();
    assert_eq!(came, [10, 63, 64, 5000, 100_000, 3_000_000]);
}

#[test]
fn one_file_that_nobody_waits_for_goes_when_its_time_is_over() {
    let pool = one_thread(Duration::from_millis(1));
    let (told, digests) = mpsc::channel();
    for length in [10, 100_000] {
        let pending = pool.digest_blocking(Selection::ALL, content(length));
        let told = told.clone();
        // What is done with digests may fail, which costs nobody else anything.
        pending.then(move |digests| {
            told.send(digests).unwrap();
            panic!("on purpose");
        });
        assert_eq!(digests.recv_timeout(PATIENCE).unwrap().unwrap(), Set::digest(Selection::ALL, &content(length)));
    }
    let pending = pool.digest_blocking(Selection::ALL, content(10));
    while !pending.is_there() {
        std::thread::yield_now();
    }
    pending.then(move |digests| told.send(digests).unwrap());
    assert!(digests.try_recv().is_ok(), "what is there is told at once");
}

#[test]
fn whoever_finds_no_room_has_the_others_hurry() {
    // The first long file takes all the room, and its owner does nothing more; the second must get its turn all the same.
    let pool = Pool::new(Settings {
        threads: NonZeroUsize::MIN,
        linger: NEVER,
        queued_bytes_max: 100_000,
        ..Settings::default()
    })
    .unwrap();
    let idle: Vec<_> = (0..10).map(|_| pool.stream(Selection::ALL)).collect();
    let mut first = pool.stream(Selection::ALL);
    first.update_blocking(content(200_000));
    let mut second = pool.stream(Selection::ALL);
    second.update_blocking(content(200_000));
    assert_eq!(second.finish_blocking().unwrap(), Set::digest(Selection::ALL, &content(200_000)));
    drop((first, idle));
}

#[test]
fn one_file_does_not_take_all_the_room() {
    let pool = one_thread(NEVER);
    let idle: Vec<_> = (0..10).map(|_| pool.stream(Selection::ALL)).collect();
    let mut stream = pool.stream(Selection::ALL);
    let piece = content(1 << 20);
    // Its own share is one piece; whoever waits for room has the thread hurry, so in the end all are taken.
    (0..8).for_each(|_| stream.update_blocking(piece.clone()));
    let mut whole = Set::new(Selection::ALL);
    (0..8).for_each(|_| whole.update(&piece));
    assert_eq!(stream.finish_blocking().unwrap(), whole.finish());
    drop(idle);
}

#[test]
fn a_thousand_that_give_up_leave_nothing_behind() {
    let pool = Pool::new(Settings { queued_bytes_max: 1 << 20, ..Settings::default() }).unwrap();
    let piece = content(100_000);
    for round in 0..1000 {
        let mut stream = pool.stream(Selection::ALL);
        stream.update_blocking(piece.clone());
        if round % 2 == 0 {
            drop(stream);
        } else {
            drop(stream.end());
        }
    }
    // Had any of it stayed, a hundred times the room, this would wait for ever.
    let mut stream = pool.stream(Selection::ALL);
    stream.update_blocking(piece.clone());
    assert_eq!(stream.finish_blocking().unwrap(), Set::digest(Selection::ALL, &piece));
}
