//! jemalloc in place of the system's allocator, for the whole process, RocksDB and SQLite included (ARCHITECTURE.md, "Load and
//! operation").

#![allow(unsafe_code)]

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Bodies and extents are kept for the next ones like anything else: by itself jemalloc gives back at once what is of 8 MiB and
/// more. What was not used for ten seconds goes back in any case, see [`give_back_when_idle`].
// SAFETY: jemalloc reads a pointer to a C string under this name, which is the first word of a slice; nothing else has the name.
#[unsafe(export_name = "malloc_conf")]
static CONFIGURATION: &[u8] = b"oversize_threshold:0\0";

/// Has memory that was not used for ten seconds go back to the system even if the threads that used it do nothing any more, such as
/// those that compiled rules: by itself jemalloc looks only when they ask for memory again. Makes threads, so not for the sandbox.
pub fn give_back_when_idle() {
    let mut on = true;
    // SAFETY: the name is a C string, and the option of that name is a bool, which is only read, of the size that is told.
    let failed = unsafe {
        tikv_jemalloc_sys::mallctl(
            c"background_thread".as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw mut on).cast(),
            size_of::<bool>(),
        )
    };
    if failed != 0 {
        let error = std::io::Error::from_raw_os_error(failed);
        tracing::warn!(%error, "threads that are idle keep the memory that they used");
    }
}
