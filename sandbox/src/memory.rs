//! Memory that the worker and its processes in the sandbox share.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix_sandbox as rustix;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// Shared memory of a fixed size.
pub(crate) fn shared_memory(name: &str, bytes: u64) -> io::Result<File> {
    let memory = memory(name)?;
    ftruncate(&memory, bytes)?;
    fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(memory)
}

/// Shared memory with a content that can't change any more.
pub(crate) fn sealed_memory(name: &str, content: &[u8]) -> io::Result<File> {
    let memory = memory(name)?;
    memory.write_all_at(content, 0)?;
    fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(memory)
}

fn memory(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}
