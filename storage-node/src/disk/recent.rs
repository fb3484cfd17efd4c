//! What of a disk's segments the page cache keeps on our account: what was written or read at length last, and no more.
//!
//! Left to itself the kernel keeps every page until memory is short. A store that writes for hours then fills the host's
//! memory with what nobody reads again, pushes out what others use, and pays for a fresh page with every 4 KiB, the
//! dearest part of a long put where a hypervisor has to back it first. A file that was stored is usually read within a
//! moment, to be scanned: so what is recent stays. Reads of small pieces are left to the kernel.

use std::collections::VecDeque;

use lazaret_protocol::limits::MIB;

use crate::record::SegmentAddress;

/// Most bytes that a disk keeps so: a second or more of what it writes at its fastest.
const CACHED_BYTES_MAX: u64 = 128 * MIB;
/// Longest range that is let go at once.
const RANGE_BYTES_MAX: u64 = 4 * MIB;
/// Most ranges that are remembered.
const RANGES_MAX: usize = 16 * 1024;

/// A part of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) segment: SegmentAddress,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Ranges in the order in which they were used.
#[derive(Default)]
pub(super) struct Recent {
    ranges: VecDeque<Range>,
    bytes: u64,
}

impl Recent {
    /// Notes that `range` was written or read, and returns what is to be let go of for it.
    pub(super) fn note(&mut self, range: Range) -> Vec<Range> {
        self.bytes += range.length;
        match self.ranges.back_mut() {
            Some(last)
                if last.segment == range.segment
                    && last.offset + last.length == range.offset
                    && last.length + range.length <= RANGE_BYTES_MAX =>
            {
                last.length += range.length;
            }
            _ => self.ranges.push_back(range),
        }
        let mut former = Vec::new();
        while (self.bytes > CACHED_BYTES_MAX || self.ranges.len() > RANGES_MAX)
            && let Some(oldest) = self.ranges.pop_front()
        {
            self.bytes -= oldest.length;
            former.push(oldest);
        }
        former
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_let_go_of_when_there_are_too_many_bytes_or_ranges() {
        let segment = |id| SegmentAddress { bucket: 1, id };
        let range = |id, offset, length| Range { segment: segment(id), offset, length };
        let mut recent = Recent::default();
        // One after the other they are one range, up to its longest.
        for piece in 0..4 {
            assert!(recent.note(range(1, piece * MIB, MIB)).is_empty());
        }
        assert!(recent.note(range(1, 4 * MIB, 1)).is_empty());
        assert!(recent.note(range(2, 0, CACHED_BYTES_MAX - 4 * MIB - 1)).is_empty());
        assert_eq!(recent.note(range(2, CACHED_BYTES_MAX, 1)), [range(1, 0, 4 * MIB)]);
        assert_eq!(recent.note(range(3, 0, 4 * MIB)).len(), 1);
        assert_eq!(recent.note(range(4, 0, CACHED_BYTES_MAX + 1)).len(), 4, "one that is too long alone as well");
        assert_eq!((recent.bytes, recent.ranges.len()), (0, 0));
        let many = (0..RANGES_MAX as u64 + 5).map(|at| recent.note(range(5, 2 * at, 1)).len());
        assert_eq!(many.sum::<usize>(), 5);
    }
}
