use lazaret_protocol::limits::MIB;

use super::Disk;
use crate::record::SegmentAddress;

/// How much is asked for before it is needed.
const AHEAD_BYTES: u64 = MIB;

/// Asks a disk for what one reader of a segment is going to read, in time and no further.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ahead {
    asked: u64,
}

impl Ahead {
    /// Notes that `from` to `until` is read now, and that reading goes on from there, up to `limit` at most.
    pub(crate) fn read(&mut self, disk: &dyn Disk, segment: SegmentAddress, from: u64, until: u64, limit: u64) {
        if self.asked >= limit || until + AHEAD_BYTES / 2 <= self.asked {
            return;
        }
        let start = from.max(self.asked);
        self.asked = (until + AHEAD_BYTES).min(limit);
        disk.read_ahead(segment, start, self.asked.saturating_sub(start));
    }
}
