//! A disk that is a directory of a file system.
//!
//! ```text
//! <root>/lock                       locked for as long as the disk is open
//! <root>/<small file>
//! <root>/segments/<bucket>/<id>.seg
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lazaret_protocol::limits::KIB;

use super::recent::{Range, Recent};
use super::segment::{Blocks, FsSegment};
use super::{Disk, DiskError, SegmentFile, Space};
use crate::record::SegmentAddress;

/// Most segments kept open for reading: far fewer than the 1,024 files that a process may usually open.
const READ_FILES_MAX: usize = 256;
/// Of shorter pieces it is left to the kernel how long it keeps them: to read one again costs as long as a hundred times as many
/// bytes of a long one.
pub(super) const LONG_BYTES: usize = 64 * KIB as usize;
/// What the page cache is made of, or a divisor of it where pages are longer.
const PAGE_BYTES: u64 = 4 * KIB;

/// What a node puts into its directory; the small files' names are those of whoever writes them.
const OWN_FILES: [&str; 9] =
    ["lock", "segments", "index", "index.damaged", "index.log", "node.yml", "retention.yml", "map.yml", "agreed"];
/// What the name of a small file ends in while it is being written.
const NEW_SUFFIX: &str = ".new";

/// A directory, locked against other engines.
pub struct FsDisk {
    root: PathBuf,
    /// Holds the lock; the kernel lets go of it when the process ends, however it ends.
    _lock: Option<File>,
    segments: Arc<Segments>,
    /// Held while a small file is replaced: two writers of one would take each other's new file away.
    writing_small: Mutex<()>,
}

/// The segments' files, and what of them the page cache keeps.
pub(super) struct Segments {
    directory: PathBuf,
    read_files: Mutex<ReadFiles>,
    recent: Mutex<Recent>,
    /// What goes around the page cache lies here on its way.
    pub(super) blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct ReadFiles {
    open: HashMap<SegmentAddress, (Arc<File>, u64)>,
    clock: u64,
}

impl Segments {
    fn new(root: &Path) -> Arc<Self> {
        Arc::new(Self {
            directory: root.join("segments"),
            read_files: Mutex::default(),
            recent: Mutex::default(),
            blocks: Mutex::default(),
        })
    }

    fn bucket_path(&self, bucket: u32) -> PathBuf {
        self.directory.join(bucket.to_string())
    }

    pub(super) fn path(&self, address: SegmentAddress) -> PathBuf {
        self.bucket_path(address.bucket).join(format!("{:016x}.seg", address.id))
    }

    fn read_file(&self, address: SegmentAddress) -> Result<Arc<File>, DiskError> {
        let mut files = self.read_files.lock().unwrap_or_else(PoisonError::into_inner);
        files.clock += 1;
        let now = files.clock;
        if let Some((file, used)) = files.open.get_mut(&address) {
            *used = now;
            return Ok(Arc::clone(file));
        }
        let path = self.path(address);
        let file = File::open(&path).map_err(|source| DiskError::new("open", path.display(), source))?;
        // Who reads knows how far, and says so ([`Disk::read_ahead`]); the kernel would read as much again of what lies around.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
        if files.open.len() >= READ_FILES_MAX {
            let oldest = files.open.iter().min_by_key(|(_, (_, used))| *used).map(|(&address, _)| address);
            oldest.and_then(|address| files.open.remove(&address));
        }
        let file = Arc::new(file);
        files.open.insert(address, (Arc::clone(&file), now));
        Ok(file)
    }

    /// Has the page cache keep what was just used, if it is long, and let go of what was used longest ago.
    pub(super) fn keep(&self, segment: SegmentAddress, offset: u64, length: usize) {
        if length < LONG_BYTES {
            return;
        }
        let length = length as u64;
        let former = self.recent.lock().unwrap_or_else(PoisonError::into_inner).note(Range { segment, offset, length });
        for Range { segment, offset, length } in former {
            // A page at the end is shared with what follows, which lets go of it; a segment may be gone meanwhile.
            let start = offset - offset % PAGE_BYTES;
            let end = (offset + length) - (offset + length) % PAGE_BYTES;
            if let (Ok(file), Some(length)) = (self.read_file(segment), NonZeroU64::new(end.saturating_sub(start))) {
                // Advice: if it is not taken the kernel keeps the pages until it needs the memory.
                let _ = rustix::fs::fadvise(&*file, start, Some(length), rustix::fs::Advice::DontNeed);
            }
        }
    }
}

impl FsDisk {
    /// Takes the directory `root`, which must exist.
    pub fn open_existing(root: impl Into<PathBuf>) -> Result<Self, DiskError> {
        let root: PathBuf = root.into();
        fs::read_dir(&root).map_err(|source| DiskError::new("open", root.display(), source))?;
        Self::open(root)
    }

    /// Takes the directory `root` to look at it and change nothing. It must exist; a lock is taken only if there is one,
    /// which there is wherever a node ever ran.
    pub fn inspect(root: impl Into<PathBuf>) -> Result<Self, DiskError> {
        let root: PathBuf = root.into();
        fs::read_dir(&root).map_err(|source| DiskError::new("open", root.display(), source))?;
        let lock_path = root.join("lock");
        let lock = match File::open(&lock_path) {
            Ok(lock) => lock_file(lock, &root).map(Some)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(DiskError::new("open", lock_path.display(), source)),
        };
        Ok(Self { segments: Segments::new(&root), root, _lock: lock, writing_small: Mutex::default() })
    }

    /// Files in the directory that no node puts there.
    pub fn foreign_files(&self) -> Result<Vec<String>, DiskError> {
        let mut foreign = Vec::new();
        let own = |name: &str| OWN_FILES.contains(&name) || name.ends_with(NEW_SUFFIX);
        let mut look = |directory: &Path, own: &dyn Fn(&str) -> bool| -> Result<(), DiskError> {
            let failed = |source| DiskError::new("list", directory.display(), source);
            for entry in fs::read_dir(directory).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if !entry.file_name().to_str().is_some_and(own) {
                    foreign.push(entry.path().display().to_string());
                }
            }
            Ok(())
        };
        look(&self.root, &own)?;
        let segments = self.root.join("segments");
        if segments.exists() {
            look(&segments, &|name| bucket_of_name(name).is_some())?;
            for (bucket, _) in entries(&segments, bucket_of_name)? {
                look(&bucket, &|name| id_of_name(name).is_some())?;
            }
        }
        foreign.sort_unstable();
        Ok(foreign)
    }

    /// Takes the directory `root`, which is created if it does not exist.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, DiskError> {
        let root: PathBuf = root.into();
        let segments = root.join("segments");
        fs::create_dir_all(&segments).map_err(|source| DiskError::new("create", segments.display(), source))?;
        sync_directory(&root)?;
        let lock_path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| DiskError::new("open", lock_path.display(), source))?;
        let lock = Some(lock_file(lock, &root)?);
        Ok(Self { segments: Segments::new(&root), root, _lock: lock, writing_small: Mutex::default() })
    }
}

impl Disk for FsDisk {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn create_segment(&self, address: SegmentAddress) -> Result<Box<dyn SegmentFile>, DiskError> {
        let bucket = self.segments.bucket_path(address.bucket);
        fs::create_dir_all(&bucket).map_err(|source| DiskError::new("create", bucket.display(), source))?;
        // Even if the bucket was there: whoever created it may have failed before it was durable.
        sync_directory(&self.segments.directory)?;
        let segment = FsSegment::create(&self.segments, address)?;
        sync_directory(&bucket)?;
        Ok(Box::new(segment))
    }

    fn open_segment(&self, address: SegmentAddress) -> Result<Box<dyn SegmentFile>, DiskError> {
        Ok(Box::new(FsSegment::open(&self.segments, address)?))
    }

    fn read_at(&self, address: SegmentAddress, offset: u64, bytes: &mut [u8]) -> Result<usize, DiskError> {
        let file = self.segments.read_file(address)?;
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(DiskError::new("read", self.segments.path(address).display(), source)),
            }
        }
        self.segments.keep(address, offset, filled);
        Ok(filled)
    }

    fn read_ahead(&self, address: SegmentAddress, offset: u64, length: u64) {
        if let (Ok(file), Some(length)) = (self.segments.read_file(address), NonZeroU64::new(length)) {
            // Advice: whether it was taken shows in how long the read takes.
            let _ = rustix::fs::fadvise(&*file, offset, Some(length), rustix::fs::Advice::WillNeed);
        }
    }

    fn length(&self, address: SegmentAddress) -> Result<u64, DiskError> {
        let path = self.segments.path(address);
        fs::metadata(&path)
            .map(|metadata| metadata.len())
            .map_err(|source| DiskError::new("look at", path.display(), source))
    }

    fn remove_segments(&self, addresses: &[SegmentAddress]) -> Result<(), DiskError> {
        {
            let mut files = self.segments.read_files.lock().unwrap_or_else(PoisonError::into_inner);
            addresses.iter().for_each(|address| drop(files.open.remove(address)));
        }
        for &address in addresses {
            let path = self.segments.path(address);
            gone(fs::remove_file(&path)).map_err(|source| DiskError::new("remove", path.display(), source))?;
        }
        let buckets: BTreeSet<u32> = addresses.iter().map(|address| address.bucket).collect();
        for bucket in buckets {
            let path = self.segments.bucket_path(bucket);
            match fs::remove_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => sync_directory(&path)?,
                removed => gone(removed).map_err(|source| DiskError::new("remove", path.display(), source))?,
            }
        }
        sync_directory(&self.segments.directory)
    }

    fn segments(&self) -> Result<Vec<SegmentAddress>, DiskError> {
        let mut found = Vec::new();
        for (bucket_path, bucket) in entries(&self.segments.directory, bucket_of_name)? {
            found.extend(entries(&bucket_path, id_of_name)?.into_iter().map(|(_, id)| SegmentAddress { bucket, id }));
        }
        Ok(found)
    }

    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        let path = self.root.join(name);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DiskError::new("read", path.display(), source)),
        }
    }

    fn write_small(&self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        let path = self.root.join(name);
        let new_path = self.root.join(format!("{name}{NEW_SUFFIX}"));
        let _alone = self.writing_small.lock().unwrap_or_else(PoisonError::into_inner);
        let written = File::create(&new_path).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
        written
            .and_then(|()| fs::rename(&new_path, &path))
            .map_err(|source| DiskError::new("write", path.display(), source))?;
        sync_directory(&self.root)
    }

    fn space(&self) -> Result<Space, DiskError> {
        let space = rustix::fs::statvfs(&self.root)
            .map_err(|error| DiskError::new("ask for the space of", self.root.display(), error.into()))?;
        // What the file system keeps for root (f_bfree - f_bavail) is not ours.
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        Ok(Space { free_bytes: bytes(space.f_bavail), total_bytes: bytes(space.f_blocks) })
    }
}

/// What was removed before is removed as well.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The entries of a directory whose names mean something. Others are none of ours and left alone.
fn entries<T>(directory: &Path, meaning: impl Fn(&str) -> Option<T>) -> Result<Vec<(PathBuf, T)>, DiskError> {
    let failed = |source| DiskError::new("list", directory.display(), source);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.file_name().to_str().and_then(&meaning) {
            Some(meant) => found.push((entry.path(), meant)),
            None => tracing::warn!(path = %entry.path().display(), "ignoring a file that is none of ours"),
        }
    }
    Ok(found)
}

fn bucket_of_name(name: &str) -> Option<u32> {
    name.parse().ok()
}

fn id_of_name(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".seg")?, 16).ok()
}

fn lock_file(lock: File, root: &Path) -> Result<File, DiskError> {
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let reason = "it is in use by another node: stop that one, or choose another data directory";
            let source = io::Error::new(io::ErrorKind::ResourceBusy, reason);
            Err(DiskError::new("take", format!("data directory {}", root.display()), source))
        }
        Err(TryLockError::Error(source)) => Err(DiskError::new("lock", root.join("lock").display(), source)),
    }
}

fn sync_directory(path: &Path) -> Result<(), DiskError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| DiskError::new("sync directory", path.display(), source))
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;

    #[test]
    fn what_is_written_is_read_listed_and_locked() {
        let root = tempfile::tempdir().unwrap();
        let disk = FsDisk::open(root.path()).unwrap();
        let (one, two) = (SegmentAddress { bucket: 5, id: 1 }, SegmentAddress { bucket: 6, id: 0xabc });
        let mut file = disk.create_segment(one).unwrap();
        // More pieces than one call of the kernel takes.
        let pieces: Vec<[u8; 3]> = (0..3000u16).map(|at| [at as u8, (at >> 8) as u8, 9]).collect();
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        file.write_at(10, &slices).unwrap();
        file.sync().unwrap();
        disk.create_segment(two).unwrap();
        assert!(disk.create_segment(two).is_err());
        fs::write(root.path().join("segments").join("6").join("stray"), b"x").unwrap();

        let mut read = vec![0; 9_100];
        assert_eq!(disk.read_at(one, 10, &mut read).unwrap(), 9_000);
        assert_eq!(read[..9_000], pieces.concat());
        assert_eq!(disk.length(one).unwrap(), 9_010);
        disk.open_segment(one).unwrap().write_at(9_010, &[IoSlice::new(b"more")]).unwrap();
        assert_eq!(disk.length(one).unwrap(), 9_014);
        assert!(disk.open_segment(SegmentAddress { bucket: 5, id: 2 }).is_err());
        let mut segments = disk.segments().unwrap();
        segments.sort_unstable();
        assert_eq!(segments, [one, two]);

        disk.remove_segments(&[one, SegmentAddress { bucket: 9, id: 9 }]).unwrap();
        assert_eq!(disk.segments().unwrap(), [two]);
        assert!(disk.read_at(one, 0, &mut [0]).is_err());
        assert!(!root.path().join("segments").join("5").exists());
        disk.remove_segments(&[two]).unwrap();
        assert!(disk.segments().unwrap().is_empty() && root.path().join("segments").join("6").exists(), "a stray file");

        assert_eq!(disk.read_small("node.yml").unwrap(), None);
        disk.write_small("node.yml", b"first").unwrap();
        disk.write_small("node.yml", b"second").unwrap();
        assert_eq!(disk.read_small("node.yml").unwrap().as_deref(), Some(&b"second"[..]));
        let writers = |content: &'static [u8]| (0..50).for_each(|_| disk.write_small("map.yml", content).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| writers(b"one"));
            scope.spawn(|| writers(b"other"));
        });
        assert!(matches!(disk.read_small("map.yml").unwrap().as_deref(), Some(b"one" | b"other")));
        let space = disk.space().unwrap();
        assert!(space.free_bytes > 0 && space.free_bytes <= space.total_bytes);

        let refused = FsDisk::open(root.path()).err().unwrap().to_string();
        assert!(refused.contains("in use by another node"), "{refused}");
        drop((disk, file));
        FsDisk::open(root.path()).unwrap();
    }
}
