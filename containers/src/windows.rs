//! Which parts of a file to have at hand that is far away, so that every look at it costs.
//!
//! Readers jump: from a directory to members and back, from one header over content to the next. So there are several windows,
//! each of which follows one of the places that a reader goes on from. Where it goes on, the window grows; where it does not
//! come back, the window goes to another place.

use std::io;
use std::ops::Range;

/// How many there are.
pub const WINDOWS: usize = 4;
/// The longest.
pub const WINDOW_BYTES_MAX: u64 = 4 << 20;
/// How long the window of a place is that nobody has gone on from yet.
const FIRST_BYTES: u64 = 256 * 1024;
/// Where windows begin: who reads backwards need not ask for every step.
const GRAIN_BYTES: u64 = 64 * 1024;

/// Windows of a file.
#[derive(Debug, Default)]
pub struct Windows {
    windows: [Window; WINDOWS],
    uses: u64,
}

#[derive(Debug, Clone, Default)]
struct Window {
    range: Range<u64>,
    last_use: u64,
}

impl Windows {
    /// Which window has this place of a file of this length, and the part of the file that it has. Where none does, `fetch` is
    /// to bring a part into one, and tells how much of it came; an error leaves that window empty.
    pub fn at(
        &mut self,
        position: u64,
        length: u64,
        fetch: impl FnOnce(usize, &Range<u64>) -> io::Result<u64>,
    ) -> io::Result<(usize, Range<u64>)> {
        self.uses += 1;
        let there = self.windows.iter_mut().enumerate().find(|(_, window)| window.range.contains(&position));
        if let Some((at, window)) = there {
            window.last_use = self.uses;
            return Ok((at, window.range.clone()));
        }
        let (at, bytes) = self.next(position);
        let start = position - position % GRAIN_BYTES;
        let mut range = start..start.saturating_add(bytes).min(length);
        if let Some(window) = self.windows.get_mut(at) {
            *window = Window { range: 0..0, last_use: self.uses };
            range.end = range.end.min(start.saturating_add(fetch(at, &range)?));
            if !range.contains(&position) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            window.range = range.clone();
        }
        Ok((at, range))
    }

    /// Which window is to go to this place, and how long it is to be: the one that a reader goes on from, or the one that was
    /// not used for the longest time.
    fn next(&self, position: u64) -> (usize, u64) {
        let bytes = |window: &Window| window.range.end - window.range.start;
        let goes_on = |window: &Window| {
            bytes(window) > 0 && (window.range.end..=window.range.end + bytes(window)).contains(&position)
        };
        let followed = self.windows.iter().enumerate().find(|(_, window)| goes_on(window));
        let oldest = || self.windows.iter().enumerate().min_by_key(|(_, window)| window.last_use);
        match followed {
            Some((at, window)) => (at, (2 * bytes(window)).min(WINDOW_BYTES_MAX)),
            None => (oldest().map_or(0, |(at, _)| at), FIRST_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes are fetched, and how often, by who reads so much at each of these places of a file of this length.
    fn fetched(length: u64, reads: impl IntoIterator<Item = (u64, u64)>) -> (u64, u64) {
        let (mut windows, mut bytes, mut times) = (Windows::default(), 0, 0);
        for (mut position, count) in reads {
            let end = (position + count).min(length);
            while position < end {
                let held = windows.at(position, length, |_, range| {
                    assert!(range.contains(&position) && range.end - range.start <= WINDOW_BYTES_MAX);
                    (bytes, times) = (bytes + range.end - range.start, times + 1);
                    Ok(range.end - range.start)
                });
                position = held.unwrap().1.end.min(end);
            }
        }
        (bytes, times)
    }

    const LENGTH: u64 = 512 << 20;

    #[test]
    fn who_reads_on_fetches_everything_once_in_long_pieces() {
        let (bytes, times) = fetched(LENGTH, [(0, LENGTH)]);
        assert!(bytes == LENGTH && times < 135, "{bytes} bytes, {times} times");
        // The same with a gap after each member.
        let (bytes, times) = fetched(LENGTH, (0..50_000).map(|member| (member * 10_000, 30)));
        assert!(bytes <= LENGTH && times < 140, "{bytes} bytes, {times} times");
    }

    #[test]
    fn who_goes_to_and_fro_fetches_nothing_twice() {
        let directory = LENGTH - (8 << 20);
        let members = (0..50_000).flat_map(|member| [(directory + member * 110, 110), (member * 10_000, 9_000)]);
        let (bytes, times) = fetched(LENGTH, members);
        assert!(bytes <= LENGTH && times < 150, "{bytes} bytes, {times} times");
    }

    #[test]
    fn who_looks_here_and_there_or_backwards_fetches_little() {
        let (bytes, times) = fetched(LENGTH, (0..100).map(|at| (at * 7_919 * 4_096 % LENGTH, 512)));
        assert!(times <= 100 && bytes <= 100 * FIRST_BYTES, "{bytes} bytes, {times} times");
        let (_, times) = fetched(LENGTH, (1..2_000).map(|step| (LENGTH - step * 512, 512)));
        assert!(times <= 17, "{times} times");
    }

    #[test]
    fn what_could_not_be_fetched_is_asked_for_again() {
        let mut windows = Windows::default();
        assert_eq!(windows.at(0, LENGTH, |_, part| Ok(part.end)).unwrap(), (0, 0..FIRST_BYTES));
        let refused = |_, _: &Range<u64>| Err(io::ErrorKind::TimedOut.into());
        // Where a reader goes on, and elsewhere.
        for position in [FIRST_BYTES, LENGTH - 1] {
            assert_eq!(windows.at(position, LENGTH, refused).unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(windows.at(position, LENGTH, refused).unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        // The window that was to go on has nothing meanwhile.
        assert_eq!(windows.at(0, LENGTH, refused).unwrap_err().kind(), io::ErrorKind::TimedOut);
        // Less than what the position needs is none of it.
        let short = windows.at(GRAIN_BYTES - 1, LENGTH, |_, _| Ok(GRAIN_BYTES - 1));
        assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(windows.at(GRAIN_BYTES - 1, LENGTH, |_, _| Ok(GRAIN_BYTES)).unwrap().1, 0..GRAIN_BYTES);
    }
}
