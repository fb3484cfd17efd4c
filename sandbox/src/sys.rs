//! The system calls that Rust can't vouch for: the only unsafe code of the crate.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroI32;

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

/// Which side of a fork this is.
pub(crate) enum Forked {
    Child,
    Parent(NonZeroI32),
}

/// Forks.
pub(crate) fn fork(_: &SingleThreaded) -> io::Result<Forked> {
    // SAFETY: with a single thread no lock can be held by a thread that the copy lacks, so that the copy is as
    // consistent as the original, and both may go on to use all of Rust.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(NonZeroI32::new(pid).map_or(Forked::Child, Forked::Parent)),
    }
}
