//! A tree's file: blocks that are encrypted, each by itself, with AES-128-GCM.
//!
//! A nested file is a list of extents, and an extent is [`EXTENT_BYTES`] of the tree's file that are given out once and never
//! again. So a block's place is its nonce: no place is written twice, and the key serves this file alone. The blocks'
//! authentication tags stay in memory, 16 bytes for each 64 KiB: so a block that was changed, moved or cut off does not open,
//! and what is on the disk is aligned as the plaintext is.
//!
//! What is scanned goes at once: its extents become holes. A file system that can't make holes gives the space back when the
//! tree ends, and until then it counts as used.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fstatvfs, open, unlink};
use rustix::io::Errno;

use super::{Spool, SpoolError};

/// What is encrypted and read as one: what a reader wants at least, and large beside what a block costs by itself.
const BLOCK_BYTES: u64 = 64 << 10;
/// Blocks are written so many bytes at once.
const BUFFER_BYTES: usize = 1 << 20;
/// What a nested file is given at once, and what a reader reads at once.
const EXTENT_BYTES: u64 = 4 << 20;
/// What file systems give space by. A short file counts as one of these.
const PAGE_BYTES: u64 = 4 << 10;
const TAG_BYTES: usize = 16;

const _: () = assert!(
    (BUFFER_BYTES as u64).is_multiple_of(BLOCK_BYTES) && EXTENT_BYTES.is_multiple_of(BUFFER_BYTES as u64),
    "no block and no write lies in two extents"
);

/// A file without a name in `folder`, to be read and written by whoever has it.
pub(super) fn nameless(folder: &Path) -> Result<File, SpoolError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    // Exclusive: nobody can give it a name later.
    match open(folder, flags | OFlags::TMPFILE | OFlags::EXCL, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // How file systems, and the kernels before that knew of such files, say that they have none.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => unnamed(folder),
        Err(errno) => Err(SpoolError::Open { folder: folder.to_owned(), source: errno.into() }),
    }
}

/// The same where every file is made with a name: it loses it before anything is written.
pub(super) fn unnamed(folder: &Path) -> Result<File, SpoolError> {
    let failed = |errno: Errno| SpoolError::Open { folder: folder.to_owned(), source: errno.into() };
    let mut number = [0; 16];
    rand::fill(&mut number).map_err(|_| SpoolError::Cipher)?;
    let path = folder.join(format!("lazaret-spool-{:032x}", u128::from_le_bytes(number)));
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
    let file = open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    unlink(&path).map_err(failed)?;
    Ok(file.into())
}

/// A tree's file.
pub(super) struct TreeFile {
    spool: Arc<Spool>,
    file: File,
    key: LessSafeKey,
    /// Where the next extent lies.
    next: AtomicU64,
    /// What of the spool's room is this file's. Changed under the spool's lock.
    used_bytes: AtomicU64,
}

impl fmt::Debug for TreeFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeFile").field("used_bytes", &self.used_bytes).finish_non_exhaustive()
    }
}

impl TreeFile {
    pub(super) fn new(spool: Arc<Spool>) -> Result<Arc<Self>, SpoolError> {
        let mut key = [0; 16];
        rand::fill(&mut key).map_err(|_| SpoolError::Cipher)?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).map_err(|_| SpoolError::Cipher)?);
        let file = nameless(&spool.options.folder)?;
        Ok(Arc::new(Self { spool, file, key, next: AtomicU64::new(0), used_bytes: AtomicU64::new(0) }))
    }

    /// Room for one extent, and where it lies.
    fn extent(&self) -> Result<u64, SpoolError> {
        let asked = fstatvfs(&self.file);
        let system =
            asked.map_err(|errno| SpoolError::Io { operation: "ask how much is free beside", source: errno.into() })?;
        let free_bytes = system.f_bavail.saturating_mul(system.f_frsize);
        self.spool.take(&self.used_bytes, EXTENT_BYTES, free_bytes)?;
        Ok(self.next.fetch_add(EXTENT_BYTES, Ordering::Relaxed))
    }

    /// Lets go of extents, of which `bytes` still count.
    fn release(&self, extents: &[u64], bytes: u64) {
        // Those of one writer lie one behind the other.
        let freed = extents.chunk_by(|extent, next| extent + EXTENT_BYTES == *next).try_for_each(|run| {
            let (start, length) = (run.first().copied().unwrap_or(0), run.len() as u64 * EXTENT_BYTES);
            fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, length)
        });
        match freed {
            Ok(()) => self.spool.give_back(&self.used_bytes, bytes),
            // The space is there until the file goes.
            Err(error) => tracing::debug!(%error, "the spool's file system makes no holes"),
        }
    }

    /// Encrypts a block that is to lie at `place`.
    fn seal(&self, place: u64, block: &mut [u8]) -> Result<[u8; TAG_BYTES], SpoolError> {
        let sealed = self.key.seal_in_place_separate_tag(nonce(place), Aad::empty(), block);
        sealed.ok().and_then(|tag| tag.as_ref().try_into().ok()).ok_or(SpoolError::Cipher)
    }

    /// Decrypts the block that lay at `place`. False if it is not the one that was written there.
    fn unseal(&self, place: u64, tag: &[u8; TAG_BYTES], block: &mut [u8]) -> bool {
        self.key.open_in_place_separate_tag(nonce(place), Aad::empty(), tag, block).is_ok()
    }
}

impl Drop for TreeFile {
    fn drop(&mut self) {
        // What made no hole.
        self.spool.give_back(&self.used_bytes, self.used_bytes.load(Ordering::Relaxed));
    }
}

/// No two blocks of a file lie at one place, ever, and no other file has the key.
fn nonce(place: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    for (into, byte) in nonce.iter_mut().rev().zip(place.to_le_bytes()) {
        *into = byte;
    }
    Nonce::assume_unique_for_key(nonce)
}

/// Takes a nested file from its beginning on. Dropped before `finish`, it leaves nothing.
#[derive(Debug)]
pub struct SpoolWriter {
    spooled: Spooled,
    /// What is not written yet; less than [`BUFFER_BYTES`].
    buffer: Vec<u8>,
}

impl SpoolWriter {
    pub(super) fn new(file: Arc<TreeFile>) -> Self {
        let (extents, tags) = (Vec::new(), Vec::new());
        let spooled = Spooled { file, length: 0, extents, tags, charged_bytes: 0, fault: OnceLock::new() };
        Self { spooled, buffer: Vec::new() }
    }

    /// Takes the next bytes. After an error the file is good for nothing.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), SpoolError> {
        while !bytes.is_empty() {
            let most = bytes.len().min(BUFFER_BYTES - self.buffer.len());
            let (now, later) = bytes.split_at(most);
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// The whole file.
    pub fn finish(mut self) -> Result<Spooled, SpoolError> {
        if !self.buffer.is_empty() {
            self.flush()?;
        }
        let Spooled { file, length, charged_bytes, .. } = &mut self.spooled;
        let needed = length.next_multiple_of(PAGE_BYTES);
        file.spool.give_back(&file.used_bytes, charged_bytes.saturating_sub(needed));
        *charged_bytes = needed;
        Ok(self.spooled)
    }

    /// Encrypts and writes what is in the buffer: a full one, or the last one.
    fn flush(&mut self) -> Result<(), SpoolError> {
        let Self { spooled, buffer } = self;
        let within = spooled.length % EXTENT_BYTES;
        if within == 0 {
            spooled.extents.push(spooled.file.extent()?);
            spooled.charged_bytes += EXTENT_BYTES;
        }
        let place = spooled.extents.last().copied().unwrap_or(0) + within;
        let places = (place..).step_by(BLOCK_BYTES as usize);
        for (block, place) in buffer.chunks_mut(BLOCK_BYTES as usize).zip(places) {
            spooled.tags.push(spooled.file.seal(place, block)?);
        }
        let written = spooled.file.file.write_all_at(buffer, place);
        written.map_err(|source| SpoolError::Io { operation: "write", source })?;
        spooled.length += buffer.len() as u64;
        spooled.file.spool.spooled_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        buffer.clear();
        Ok(())
    }
}

/// A nested file in the spool. It may be read by any number of threads at once, and is gone when it is dropped.
#[derive(Debug)]
pub struct Spooled {
    file: Arc<TreeFile>,
    length: u64,
    /// Where its extents lie, in order.
    extents: Vec<u64>,
    /// Its blocks' tags, in order.
    tags: Vec<[u8; TAG_BYTES]>,
    /// What of the tree's room it has.
    charged_bytes: u64,
    fault: OnceLock<String>,
}

impl Spooled {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What of it could not be read at some time, in words.
    pub fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// The bytes from `start` up to `end`, both cut at the file's end.
    pub fn read(&self, start: u64, end: u64) -> Result<Bytes, SpoolError> {
        let end = end.min(self.length);
        if start >= end {
            return Ok(Bytes::new());
        }
        // Whole blocks, since only those can be told to be what was written.
        let from = start - start % BLOCK_BYTES;
        let until = end.next_multiple_of(BLOCK_BYTES).min(self.length);
        let mut bytes = vec![0; (until - from) as usize];
        if let Err(error) = self.read_blocks(from, &mut bytes) {
            tracing::error!(%error, folder = %self.file.spool.options.folder.display(), "a spooled file can't be read");
            self.fault.get_or_init(|| error.to_string());
            return Err(error);
        }
        Ok(Bytes::from(bytes).slice((start - from) as usize..(end - from) as usize))
    }

    /// Fills `into` with whole blocks from `offset` on.
    fn read_blocks(&self, mut offset: u64, mut into: &mut [u8]) -> Result<(), SpoolError> {
        while !into.is_empty() {
            let within = offset % EXTENT_BYTES;
            let most = into.len().min((EXTENT_BYTES - within) as usize);
            let (part, rest) = into.split_at_mut(most);
            let damaged = || SpoolError::Damaged { offset, length: most };
            let place = self.extents.get((offset / EXTENT_BYTES) as usize).ok_or_else(damaged)? + within;
            let read = self.file.file.read_exact_at(part, place);
            read.map_err(|source| SpoolError::Io { operation: "read", source })?;
            let tags = self.tags.get((offset / BLOCK_BYTES) as usize..).unwrap_or_default();
            let places = (place..).step_by(BLOCK_BYTES as usize);
            let blocks = part.chunks_mut(BLOCK_BYTES as usize);
            let sound = tags.len() >= blocks.len()
                && blocks.zip(tags).zip(places).all(|((block, tag), place)| self.file.unseal(place, tag, block));
            if !sound {
                return Err(damaged());
            }
            offset += most as u64;
            into = rest;
        }
        Ok(())
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        self.file.release(&self.extents, self.charged_bytes);
    }
}
