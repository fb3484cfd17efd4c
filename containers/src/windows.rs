//! Which parts of a file to have at hand that is far away, so that every look at it costs.
//!
//! Readers jump: from a directory to members and back, from one header over content to the next. So there are several windows,
//! each of which follows one of the places that a reader goes on from. Where it goes on, the window grows; where it does not
//! come back, the window goes to another place.

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
    /// The window that has this place of the file, and where it begins and ends.
    pub fn at(&mut self, position: u64) -> Option<(usize, Range<u64>)> {
        let (at, window) = self.windows.iter_mut().enumerate().find(|(_, window)| window.range.contains(&position))?;
        self.uses += 1;
        window.last_use = self.uses;
        Some((at, window.range.clone()))
    }

    /// Which window is to have this place, and from where to where in a file of this length. Until it has, it has nothing.
    pub fn move_to(&mut self, position: u64, length: u64) -> (usize, Range<u64>) {
        let bytes = |window: &Window| window.range.end - window.range.start;
        let goes_on = |window: &&Window| {
            (window.range.end..=window.range.end + bytes(window)).contains(&position) && bytes(window) > 0
        };
        let followed = self.windows.iter().enumerate().find(|(_, window)| goes_on(window));
        let (at, wanted) = match followed {
            Some((at, window)) => (at, (2 * bytes(window)).min(WINDOW_BYTES_MAX)),
            None => {
                let oldest = self.windows.iter().enumerate().min_by_key(|(_, window)| window.last_use);
                (oldest.map_or(0, |(at, _)| at), FIRST_BYTES)
            }
        };
        if let Some(window) = self.windows.get_mut(at) {
            window.range = 0..0;
        }
        let start = position - position % GRAIN_BYTES;
        (at, start..start.saturating_add(wanted).min(length))
    }

    /// The window has these bytes of the file.
    pub fn moved(&mut self, at: usize, range: Range<u64>) {
        self.uses += 1;
        if let Some(window) = self.windows.get_mut(at) {
            *window = Window { range, last_use: self.uses };
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
                position = match windows.at(position) {
                    Some((_, range)) => range.end.min(end),
                    None => {
                        let (at, range) = windows.move_to(position, length);
                        assert!(range.contains(&position) && range.end - range.start <= WINDOW_BYTES_MAX);
                        assert!(windows.at(position).is_none_or(|(other, _)| other != at), "it has nothing meanwhile");
                        (bytes, times) = (bytes + range.end - range.start, times + 1);
                        windows.moved(at, range);
                        position
                    }
                }
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
}
