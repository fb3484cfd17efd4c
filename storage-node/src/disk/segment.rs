//! A segment's file, open for writing.
//!
//! Where much is written at once it goes to the disk around the page cache (`O_DIRECT`). Copying it there, writing it from
//! there and letting go of it later cost a node more than anything else about such a put; whoever reads it soon after would
//! find it let go of already, and finds it on the disk as fast as it was written. The kernel wants blocks for that: the ends
//! that are less than a block go through the page cache like what is short, which shares no page with what goes around it.
//! Where a file system knows no such writes, everything does.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use lazaret_protocol::limits::{KIB, MIB};

use super::fs::{LONG_BYTES, Segments};
use super::{DiskError, SegmentFile};
use crate::record::SegmentAddress;

/// From so many bytes on long pieces that follow each other go around the page cache.
const DIRECT_BYTES_MIN: usize = MIB as usize;
/// What is written around the page cache at once.
const STEP_BYTES: usize = MIB as usize;
/// A multiple of every disk's blocks.
const BLOCK_BYTES: usize = 4 * KIB as usize;
/// Most pieces that one `pwritev` takes (`IOV_MAX` on Linux).
const PIECES_MAX: usize = 1024;

/// Memory as the disk takes it: a step that begins at a block's boundary.
#[derive(Default)]
pub(super) struct Blocks(Vec<u8>);

impl Blocks {
    fn step(&mut self) -> &mut [u8] {
        self.0.resize(STEP_BYTES + BLOCK_BYTES, 0);
        let start = self.0.as_ptr().align_offset(BLOCK_BYTES);
        self.0.get_mut(start..).and_then(|aligned| aligned.get_mut(..STEP_BYTES)).unwrap_or_default()
    }
}

pub(super) struct FsSegment {
    segments: Arc<Segments>,
    address: SegmentAddress,
    file: File,
    /// The same file around the page cache, unless the file system has no such thing.
    direct: Option<File>,
    path: PathBuf,
}

impl FsSegment {
    pub(super) fn create(segments: &Arc<Segments>, address: SegmentAddress) -> Result<Self, DiskError> {
        Self::with(segments, address, "create", OpenOptions::new().write(true).create_new(true))
    }

    pub(super) fn open(segments: &Arc<Segments>, address: SegmentAddress) -> Result<Self, DiskError> {
        Self::with(segments, address, "open", OpenOptions::new().write(true))
    }

    fn with(
        segments: &Arc<Segments>,
        address: SegmentAddress,
        operation: &'static str,
        options: &OpenOptions,
    ) -> Result<Self, DiskError> {
        let path = segments.path(address);
        let file = options.open(&path).map_err(|source| DiskError::new(operation, path.display(), source))?;
        let around = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let direct = OpenOptions::new().write(true).custom_flags(around).open(&path).ok();
        Ok(Self { segments: Arc::clone(segments), address, file, direct, path })
    }

    /// Writes through the page cache.
    fn write_cached(&self, mut at: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        for some in pieces.chunks(PIECES_MAX) {
            let mut rest: Vec<IoSlice<'_>> = some.to_vec();
            let mut rest = rest.as_mut_slice();
            while !rest.is_empty() {
                match rustix::io::pwritev(&self.file, rest, at) {
                    Ok(0) if rest.iter().any(|piece| !piece.is_empty()) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        at += count as u64;
                        IoSlice::advance_slices(&mut rest, count);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Writes long pieces around the page cache, but for their ends.
    fn write_around(&mut self, at: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let begin = at.next_multiple_of(BLOCK_BYTES as u64);
        // The first piece is longer than a block.
        let head = pieces.first().and_then(|first| first.get(..(begin - at) as usize)).unwrap_or_default();
        self.write_cached(at, &[IoSlice::new(head)])?;
        let mut rest = pieces.to_vec();
        let mut rest = rest.as_mut_slice();
        IoSlice::advance_slices(&mut rest, head.len());
        let bytes = bytes_of(rest);
        let written = self.write_blocks(begin, rest, bytes - bytes % BLOCK_BYTES)?;
        if bytes - written >= BLOCK_BYTES {
            self.direct = None;
        }
        IoSlice::advance_slices(&mut rest, written);
        self.write_cached(begin + written as u64, rest)
    }

    /// Writes the first `bytes` of `pieces`, which are whole blocks, around the page cache; returns how many of them the file
    /// system took.
    fn write_blocks(&self, at: u64, pieces: &[IoSlice<'_>], bytes: usize) -> io::Result<usize> {
        let Some(file) = &self.direct else { return Ok(0) };
        let mut memory = self.segments.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = pieces.to_vec();
        let mut rest = rest.as_mut_slice();
        let mut written = 0;
        while written < bytes {
            let step = memory.step();
            let wanted = step.len().min(bytes - written);
            let mut filled = 0;
            while let Some(piece) = rest.first().filter(|_| filled < wanted) {
                let taken = piece.len().min(wanted - filled);
                if let (Some(to), Some(from)) = (step.get_mut(filled..filled + taken), piece.get(..taken)) {
                    to.copy_from_slice(from);
                }
                filled += taken;
                IoSlice::advance_slices(&mut rest, taken);
            }
            if filled == 0 {
                return Ok(written);
            }
            let mut step = step.get(..filled).unwrap_or_default();
            while !step.is_empty() {
                match file.write_at(step, at + written as u64) {
                    // What is no multiple of a block is what was left of a full disk: the page cache is told so.
                    Ok(count) if count > 0 && count % BLOCK_BYTES == 0 => {
                        written += count;
                        step = step.get(count..).unwrap_or_default();
                    }
                    Ok(_) => return Ok(written),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(written),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(written)
    }

    fn write(&mut self, mut at: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let long = |piece: &IoSlice<'_>| piece.len() >= LONG_BYTES;
        for run in pieces.chunk_by(|one, next| long(one) == long(next)) {
            let bytes = bytes_of(run);
            if run.iter().all(long) && bytes >= DIRECT_BYTES_MIN && self.direct.is_some() {
                self.write_around(at, run)?;
            } else {
                self.write_cached(at, run)?;
                run.iter().fold(at, |at, piece| {
                    self.segments.keep(self.address, at, piece.len());
                    at + piece.len() as u64
                });
            }
            at += bytes as u64;
        }
        Ok(())
    }
}

fn bytes_of(pieces: &[IoSlice<'_>]) -> usize {
    pieces.iter().map(|piece| piece.len()).sum()
}

impl SegmentFile for FsSegment {
    fn write_at(&mut self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.write(offset, pieces).map_err(|source| DiskError::new("write", self.path.display(), source))
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|source| DiskError::new("sync", self.path.display(), source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, FsDisk};

    #[test]
    fn long_pieces_lie_where_they_should_whatever_is_around_them() {
        let root = tempfile::tempdir().unwrap();
        let disk = FsDisk::open(root.path()).unwrap();
        let address = SegmentAddress { bucket: 1, id: 1 };
        let mut file = disk.create_segment(address).unwrap();
        let content =
            |length: usize, seed: usize| -> Vec<u8> { (0..length).map(|at| ((at * 31 + seed) >> 3) as u8).collect() };
        let block = BLOCK_BYTES;
        let (direct, long) = (DIRECT_BYTES_MIN, LONG_BYTES);
        // What is written at once: long pieces alone and together, enough of them or not, short ones between them, ends anywhere.
        let groups: [&[usize]; 6] = [
            &[64, direct, 1, direct - 1, 2 * direct + 5, 0],
            &[3 * block, block - 70, direct + 2 * block, 4 << 20, 4 << 20, 100],
            &[140_000, 300_001, 700_002, 99_999, long, long - 1, 200_000],
            &[long; 15],
            &[long; 16],
            &[long + 1; 40],
        ];
        let mut expected = Vec::new();
        for (seed, lengths) in groups.into_iter().enumerate() {
            let pieces: Vec<Vec<u8>> = lengths.iter().map(|&length| content(length, seed)).collect();
            let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            file.write_at(expected.len() as u64, &slices).unwrap();
            expected.extend(pieces.concat());
            let mut read = vec![0; expected.len() + 1];
            assert_eq!(disk.read_at(address, 0, &mut read).unwrap(), expected.len());
            assert!(read.starts_with(&expected));
            file.sync().unwrap();
        }
        // Opened again, at an end that is no block's.
        let mut file = disk.open_segment(address).unwrap();
        let more = content(DIRECT_BYTES_MIN + 9, 7);
        file.write_at(expected.len() as u64, &[IoSlice::new(&more)]).unwrap();
        file.sync().unwrap();
        expected.extend(more);
        let mut read = vec![0; expected.len()];
        assert_eq!(disk.read_at(address, 0, &mut read).unwrap(), expected.len());
        assert!(read == expected);
        assert_eq!(disk.length(address).unwrap(), expected.len() as u64);
    }
}
