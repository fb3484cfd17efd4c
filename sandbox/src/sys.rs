//! The system calls that Rust can't vouch for: the only unsafe code of the crate.

#![allow(unsafe_code)]

use std::io::{self, Seek};
use std::num::NonZeroI32;
use std::os::fd::AsRawFd;

use rustix_sandbox::fs::SealFlags;

/// Proof that this process has one thread only, so that a fork copies a whole process.
///
/// Threads can't come to be later: the template's filter forbids a clone that shares memory. See `confine`.
pub(crate) struct SingleThreaded(());

impl SingleThreaded {
    /// Counts the threads. Called before the process loses the right to look.
    pub fn check() -> io::Result<Self> {
        match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            threads => Err(io::Error::other(format!("the process has {threads} threads, it must have one"))),
        }
    }
}

/// Closes every descriptor but standard input, output and error: what the starting process left open by mistake.
///
/// Called first of all, when nothing in this process can own a descriptor above 2.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: the call touches no memory. Nobody owns the descriptors: the process has just begun, with one thread, and this
    // is the first thing that it does.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends this process at once, without running what libraries registered for the end: that is the template's.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: it does nothing but end the process.
    unsafe { libc::_exit(code) }
}

/// The beginning of a file, mapped. Whoever makes one sees to it that the file is not shortened.
struct Mapping {
    address: std::ptr::NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn of(file: &std::fs::File, length: usize, rights: libc::c_int, sharing: libc::c_int) -> io::Result<Self> {
        if length == 0 {
            return Ok(Self { address: std::ptr::NonNull::dangling(), length });
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, rights, sharing, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::ptr::NonNull::new(address.cast())
            .map(|address| Self { address, length })
            .ok_or_else(|| io::Error::other("nothing was mapped"))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the mapping is this one's own, and no slice of it outlives it.
            unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) };
        }
    }
}

/// A file in shared memory that can't change any more, as bytes.
pub(crate) struct Mapped(Mapping);

impl Mapped {
    /// Maps the whole of a file whose seals forbid that it is written or shortened; any other is refused.
    pub fn sealed(file: &std::fs::File) -> io::Result<Self> {
        let seals = rustix_sandbox::fs::fcntl_get_seals(file)?;
        let needed = SealFlags::WRITE | SealFlags::SHRINK;
        if !seals.contains(needed) {
            return Err(io::Error::other("the file might change while it is mapped"));
        }
        let mut end = file;
        let length = usize::try_from(end.seek(io::SeekFrom::End(0))?).map_err(io::Error::other)?;
        // Private, which for a mapping that nobody writes is the same: before 6.7 Linux took any other of a sealed file for one that
        // is to be written.
        Mapping::of(file, length, libc::PROT_READ, libc::MAP_PRIVATE).map(Self)
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the mapping is that long, lives as long as `self`, and is initialised, being a file's. Its seals keep
        // every process from changing or shortening the file, so that the bytes are as constant as a slice's must be.
        unsafe { std::slice::from_raw_parts(self.0.address.as_ptr(), self.0.length) }
    }
}

/// A file in shared memory that this process alone writes, as bytes.
///
/// The worker reads it by system calls, when it was told that what it reads is written; it maps nothing and writes nothing.
pub(crate) struct Writable(Mapping);

impl Writable {
    /// Maps the first `length` bytes of a file whose seals forbid that it is shortened, and which has as many.
    pub fn of(file: &std::fs::File, length: usize) -> io::Result<Self> {
        let seals = rustix_sandbox::fs::fcntl_get_seals(file)?;
        let mut end = file;
        if !seals.contains(SealFlags::SHRINK) || end.seek(io::SeekFrom::End(0))? < length as u64 || length == 0 {
            return Err(io::Error::other("the file may be shorter than what is to be mapped of it"));
        }
        Mapping::of(file, length, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED).map(Self)
    }
}

impl AsMut<[u8]> for Writable {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is that long, lives as long as `self`, and is initialised, being a file's. It is borrowed as often as
        // `self` is. No other process writes the file: it is a job's output, which the worker made for this one process and only
        // reads. What it reads meanwhile by system calls changes nothing here.
        unsafe { std::slice::from_raw_parts_mut(self.0.address.as_ptr(), self.0.length) }
    }
}

/// Which side of a fork this is.
pub(crate) enum Forked {
    Child,
    Parent(NonZeroI32),
}

unsafe extern "C" {
    /// glibc's fork without the handlers that libraries registered for one.
    fn _Fork() -> libc::pid_t;
}

/// Forks. No library is told: what they would do is take and renew all their locks, the allocator's alone in some thirty pages,
/// each of which the kernel would have to copy twice.
pub(crate) fn fork(_: &SingleThreaded) -> io::Result<Forked> {
    // SAFETY: with a single thread no lock is held when this is called, and none by a thread that the copy lacks, so that the copy
    // is as consistent as the original without anybody's help, and both may go on to use all of Rust.
    match unsafe { _Fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(NonZeroI32::new(pid).map_or(Forked::Child, Forked::Parent)),
    }
}
