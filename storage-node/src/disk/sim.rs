//! A disk in memory that forgets, tears, fills up and fails on demand, for tests of everything that stands on a disk.
//!
//! It keeps what was synced apart from what was only written. [`SimDisk::crash`] cuts the power: the old disk is dead,
//! and the new one has what was synced and whatever a seed lets survive of the rest, sector by sector.
//! [`SimDisk::kill`] ends only the process: all that was written is still there, and may still be lost.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskError, SegmentFile, Space};
use crate::record::SegmentAddress;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// The power of a machine; what shares it stops working together.
#[derive(Debug, Clone, Default)]
pub struct Power(Arc<AtomicBool>);

impl Power {
    /// Whether it is off, for good.
    pub fn is_off(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    power: Power,
}

struct State {
    segments: BTreeMap<SegmentAddress, SimSegment>,
    /// Unlinked by a removal that did not come to its end: a crash may bring them back.
    unlinked: BTreeMap<SegmentAddress, SimSegment>,
    small: BTreeMap<String, Vec<u8>>,
    total_bytes: u64,
    syncs: u64,
    operations: u64,
    never_sync: bool,
    failing_syncs: u32,
    failing_writes: u32,
    power_fails_at: Option<u64>,
    lost_ranges: Vec<(SegmentAddress, Range<u64>)>,
}

#[derive(Default)]
struct SimSegment {
    entry_durable: bool,
    written: Vec<u8>,
    durable: Vec<u8>,
    /// Written since the last sync.
    dirty: Vec<Range<usize>>,
    /// Written before a sync that failed: a later sync takes no notice, as with a kernel's page cache.
    lost: Vec<Range<usize>>,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk of 1 TiB.
    pub fn new() -> Self {
        Self::with(State::empty())
    }

    fn with(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)), power: Power::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power that this disk hangs on.
    pub fn power(&self) -> Power {
        self.power.clone()
    }

    /// Lets nothing work any more after so many more operations, whatever is going on then. Whether it was the power or
    /// the process that went is up to what follows, [`SimDisk::crash`] or [`SimDisk::kill`].
    pub fn cut_power_after(&self, operations: u64) {
        let mut state = self.state();
        state.power_fails_at = Some(state.operations + operations);
    }

    /// Cuts the power, if it is still on, and returns the disk as it is afterwards: what was synced, and of the rest what
    /// `seed` lets survive. This disk is dead from then on.
    pub fn crash(&self, seed: u64) -> SimDisk {
        self.power.cut();
        let state = self.state();
        let mut random = SplitMix(seed);
        let unlinked = state.unlinked.iter().filter(|_| random.chance(2)).collect::<Vec<_>>();
        let segments = state
            .segments
            .iter()
            .chain(unlinked)
            .filter_map(|(&address, segment)| Some((address, segment.after_crash(&mut random)?)))
            .collect();
        Self::with(State {
            segments,
            small: state.small.clone(),
            total_bytes: state.total_bytes,
            never_sync: state.never_sync,
            ..State::empty()
        })
    }

    /// Ends the process that uses the disk, but not the machine: returns the disk with all that was written, of which what
    /// was not synced may still be lost. This disk is dead from then on.
    pub fn kill(&self) -> SimDisk {
        self.power.cut();
        let mut state = self.state();
        Self::with(State {
            segments: std::mem::take(&mut state.segments),
            unlinked: std::mem::take(&mut state.unlinked),
            small: state.small.clone(),
            total_bytes: state.total_bytes,
            never_sync: state.never_sync,
            ..State::empty()
        })
    }

    /// Makes every sync a lie: it reports success and does nothing. A test that does not notice tests nothing.
    pub fn never_sync(&self, never: bool) {
        self.state().never_sync = never;
    }

    /// Fails the next so many syncs with an I/O error.
    pub fn fail_syncs(&self, count: u32) {
        self.state().failing_syncs = count;
    }

    /// Fails the next so many writes for want of space, each half written.
    pub fn fail_writes(&self, count: u32) {
        self.state().failing_writes = count;
    }

    /// Lets every read that touches this range of a segment fail, as a bad sector does.
    pub fn lose_range(&self, address: SegmentAddress, range: Range<u64>) {
        self.state().lost_ranges.push((address, range));
    }

    /// Sets the size of the disk.
    pub fn set_total_bytes(&self, total_bytes: u64) {
        self.state().total_bytes = total_bytes;
    }

    /// How many syncs of segments there were since this disk was made.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// How many operations there were since this disk was made.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Flips a bit of what lies at `offset` of a segment. Returns whether there was one.
    pub fn flip_bit(&self, address: SegmentAddress, offset: u64, bit: u8) -> bool {
        let mut state = self.state();
        let Some(segment) = state.segments.get_mut(&address) else { return false };
        let mut flipped = false;
        for content in [&mut segment.written, &mut segment.durable] {
            if let Some(byte) = usize::try_from(offset).ok().and_then(|at| content.get_mut(at)) {
                *byte ^= 1 << (bit % 8);
                flipped = true;
            }
        }
        flipped
    }

    /// The bytes of every segment, as a reader sees them.
    pub fn contents(&self) -> Vec<(SegmentAddress, Vec<u8>)> {
        self.state().segments.iter().map(|(&address, segment)| (address, segment.written.clone())).collect()
    }

    /// Counts an operation and fails it if the power is off or goes off now.
    fn begin(&self, operation: &'static str, object: impl ToString) -> Result<MutexGuard<'_, State>, DiskError> {
        let mut state = self.state();
        state.operations += 1;
        if state.power_fails_at.is_some_and(|at| state.operations > at) {
            self.power.cut();
        }
        if self.power.is_off() {
            return Err(DiskError::new(operation, object, io::Error::other("the power is off")));
        }
        Ok(state)
    }
}

impl State {
    fn empty() -> Self {
        Self {
            segments: BTreeMap::new(),
            unlinked: BTreeMap::new(),
            small: BTreeMap::new(),
            total_bytes: 1 << 40,
            syncs: 0,
            operations: 0,
            never_sync: false,
            failing_syncs: 0,
            failing_writes: 0,
            power_fails_at: None,
            lost_ranges: Vec::new(),
        }
    }

    fn used_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.written.len() as u64).sum()
    }
}

impl SimSegment {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.written.len() < end {
            self.written.resize(end, 0);
        }
        if let Some(place) = self.written.get_mut(offset..end) {
            place.copy_from_slice(bytes);
        }
        self.dirty.push(offset..end);
    }

    fn make_durable(&mut self) {
        for range in self.dirty.drain(..) {
            if self.durable.len() < range.end {
                self.durable.resize(range.end, 0);
            }
            if let (Some(to), Some(from)) = (self.durable.get_mut(range.clone()), self.written.get(range)) {
                to.copy_from_slice(from);
            }
        }
    }

    /// The segment after a power failure; `None` if its directory entry did not survive.
    fn after_crash(&self, random: &mut SplitMix) -> Option<SimSegment> {
        if !self.entry_durable && random.chance(2) {
            return None;
        }
        let mut survived = self.durable.clone();
        // The file's length may have reached the disk before its content did, or not at all.
        let longest = self.written.len().max(survived.len());
        let length = survived.len() + random.below((longest - survived.len()) as u64 + 1) as usize;
        survived.resize(length, 0);
        for range in self.dirty.iter().chain(&self.lost) {
            let all = random.chance(4);
            let mut at = range.start;
            while at < range.end {
                let end = (at / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES).min(range.end).min(length);
                if end <= at {
                    break;
                }
                if (all || random.chance(2))
                    && let (Some(to), Some(from)) = (survived.get_mut(at..end), self.written.get(at..end))
                {
                    to.copy_from_slice(from);
                }
                at = end;
            }
        }
        Some(Self {
            entry_durable: true,
            written: survived.clone(),
            durable: survived,
            dirty: Vec::new(),
            lost: Vec::new(),
        })
    }
}

impl Disk for SimDisk {
    fn place(&self) -> String {
        "in memory".to_owned()
    }

    fn create_segment(&self, address: SegmentAddress) -> Result<Box<dyn SegmentFile>, DiskError> {
        {
            let mut state = self.begin("create", address)?;
            if state.segments.contains_key(&address) {
                return Err(DiskError::new("create", address, io::ErrorKind::AlreadyExists.into()));
            }
            state.segments.insert(address, SimSegment::default());
        }
        let mut state = self.begin("sync directory of", address)?;
        let lies = state.never_sync;
        if !lies {
            // The directory as it is now: what was unlinked in it before stays so.
            state.unlinked.retain(|unlinked, _| unlinked.bucket != address.bucket);
        }
        if let Some(segment) = state.segments.get_mut(&address) {
            segment.entry_durable = !lies;
        }
        Ok(Box::new(SimFile { disk: self.clone(), address }))
    }

    fn open_segment(&self, address: SegmentAddress) -> Result<Box<dyn SegmentFile>, DiskError> {
        if !self.begin("open", address)?.segments.contains_key(&address) {
            return Err(DiskError::new("open", address, io::ErrorKind::NotFound.into()));
        }
        Ok(Box::new(SimFile { disk: self.clone(), address }))
    }

    fn read_at(&self, address: SegmentAddress, offset: u64, bytes: &mut [u8]) -> Result<usize, DiskError> {
        let state = self.begin("read", address)?;
        let end = offset.saturating_add(bytes.len() as u64);
        if state.lost_ranges.iter().any(|(of, lost)| *of == address && offset < lost.end && lost.start < end) {
            // 5 is EIO.
            return Err(DiskError::new("read", address, io::Error::from_raw_os_error(5)));
        }
        let segment = state
            .segments
            .get(&address)
            .ok_or_else(|| DiskError::new("open", address, io::ErrorKind::NotFound.into()))?;
        let from = usize::try_from(offset).ok().and_then(|offset| segment.written.get(offset..)).unwrap_or_default();
        let count = from.len().min(bytes.len());
        if let (Some(to), Some(from)) = (bytes.get_mut(..count), from.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    fn length(&self, address: SegmentAddress) -> Result<u64, DiskError> {
        let state = self.begin("look at", address)?;
        let segment = state.segments.get(&address);
        segment
            .map(|segment| segment.written.len() as u64)
            .ok_or_else(|| DiskError::new("look at", address, io::ErrorKind::NotFound.into()))
    }

    fn remove_segments(&self, addresses: &[SegmentAddress]) -> Result<(), DiskError> {
        for address in addresses {
            let mut state = self.begin("remove", address)?;
            if let Some(segment) = state.segments.remove(address) {
                state.unlinked.insert(*address, segment);
            }
        }
        let mut state = self.begin("sync directory of", "segments")?;
        if !state.never_sync {
            addresses.iter().for_each(|address| drop(state.unlinked.remove(address)));
        }
        Ok(())
    }

    fn segments(&self) -> Result<Vec<SegmentAddress>, DiskError> {
        Ok(self.begin("list", "segments")?.segments.keys().copied().collect())
    }

    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.begin("read", name)?.small.get(name).cloned())
    }

    fn write_small(&self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        self.begin("write", name)?.small.insert(name.to_owned(), content.to_vec());
        Ok(())
    }

    fn space(&self) -> Result<Space, DiskError> {
        let state = self.begin("ask for the space of", "the disk")?;
        let free_bytes = state.total_bytes.saturating_sub(state.used_bytes());
        Ok(Space { free_bytes, total_bytes: state.total_bytes })
    }
}

struct SimFile {
    disk: SimDisk,
    address: SegmentAddress,
}

impl SegmentFile for SimFile {
    fn write_at(&mut self, mut offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), DiskError> {
        for piece in pieces {
            // One operation a piece, so that the power can fail between any two.
            let mut state = self.disk.begin("write", self.address)?;
            let refused = if state.failing_writes > 0 {
                state.failing_writes -= 1;
                true
            } else {
                state.used_bytes() + piece.len() as u64 > state.total_bytes
            };
            let Some(segment) = state.segments.get_mut(&self.address) else {
                return Err(DiskError::new("write", self.address, io::ErrorKind::NotFound.into()));
            };
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            if refused {
                segment.write(at, piece.get(..piece.len() / 2).unwrap_or_default());
                return Err(DiskError::new("write", self.address, io::ErrorKind::StorageFull.into()));
            }
            segment.write(at, piece);
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        let mut state = self.disk.begin("sync", self.address)?;
        state.syncs += 1;
        let (fails, lies) = (state.failing_syncs > 0, state.never_sync);
        state.failing_syncs = state.failing_syncs.saturating_sub(1);
        let Some(segment) = state.segments.get_mut(&self.address) else {
            return Err(DiskError::new("sync", self.address, io::ErrorKind::NotFound.into()));
        };
        if fails {
            let dirty = std::mem::take(&mut segment.dirty);
            segment.lost.extend(dirty);
            // 5 is EIO.
            return Err(DiskError::new("sync", self.address, io::Error::from_raw_os_error(5)));
        }
        if !lies {
            segment.make_durable();
        }
        Ok(())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014) from a seed: enough for choosing what survives, and the same on every machine.
#[derive(Debug, Clone)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True once in `of` times.
    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: SegmentAddress = SegmentAddress { bucket: 1, id: 1 };

    fn content(disk: &SimDisk) -> Option<Vec<u8>> {
        disk.contents().into_iter().map(|(_, content)| content).next()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_some_of_the_rest() {
        let mut lengths = std::collections::BTreeSet::new();
        let mut torn = 0;
        for seed in 0..200 {
            let disk = SimDisk::new();
            let mut file = disk.create_segment(AT).unwrap();
            file.write_at(0, &[IoSlice::new(&[1; 700])]).unwrap();
            file.sync().unwrap();
            file.write_at(700, &[IoSlice::new(&[2; 3000])]).unwrap();
            let after = content(&disk.crash(seed)).unwrap();
            assert_eq!(after[..700], [1; 700]);
            assert!(after[700..].iter().all(|&byte| byte == 0 || byte == 2));
            torn += usize::from(after[700..].contains(&0) && after[700..].contains(&2));
            lengths.insert(after.len());
            assert!(file.write_at(0, &[IoSlice::new(&[9])]).is_err(), "the old disk is dead");
        }
        assert!(lengths.len() > 20 && torn > 20, "{lengths:?} {torn}");
    }

    #[test]
    fn a_failed_sync_loses_what_a_later_one_does_not_bring_back() {
        let mut lost = 0;
        for seed in 0..50 {
            let disk = SimDisk::new();
            let mut file = disk.create_segment(AT).unwrap();
            file.write_at(0, &[IoSlice::new(&[1; 512])]).unwrap();
            disk.fail_syncs(1);
            assert!(file.sync().is_err());
            file.sync().unwrap();
            lost += usize::from(content(&disk.crash(seed)).unwrap() != [1; 512]);
        }
        assert!(lost > 5);
        let disk = SimDisk::new();
        disk.never_sync(true);
        let mut file = disk.create_segment(AT).unwrap();
        file.write_at(0, &[IoSlice::new(&[1; 512])]).unwrap();
        file.sync().unwrap();
        assert!((0..50).any(|seed| content(&disk.crash(seed)).is_none_or(|content| content != [1; 512])));
    }

    #[test]
    fn a_removal_that_is_cut_short_may_be_undone_and_one_that_is_not_stays() {
        let back = |operations| -> usize {
            (0..50)
                .filter(|&seed| {
                    let disk = SimDisk::new();
                    let mut file = disk.create_segment(AT).unwrap();
                    file.write_at(0, &[IoSlice::new(&[1; 512])]).unwrap();
                    file.sync().unwrap();
                    disk.cut_power_after(operations);
                    assert_eq!(disk.remove_segments(&[AT]).is_ok(), operations >= 2);
                    content(&disk.crash(seed)).is_some_and(|content| content == [1; 512])
                })
                .count()
        };
        assert_eq!((back(0), back(2)), (50, 0));
        assert!((10..40).contains(&back(1)), "{}", back(1));
    }

    #[test]
    fn a_full_disk_takes_half_and_says_so() {
        let disk = SimDisk::new();
        disk.set_total_bytes(1000);
        let mut file = disk.create_segment(AT).unwrap();
        file.write_at(0, &[IoSlice::new(&[1; 900])]).unwrap();
        let error = file.write_at(900, &[IoSlice::new(&[1; 200])]).unwrap_err();
        assert!(error.is_full(), "{error}");
        assert_eq!(disk.length(AT).unwrap(), 1000);
        assert_eq!(disk.space().unwrap(), Space { free_bytes: 0, total_bytes: 1000 });
    }
}
