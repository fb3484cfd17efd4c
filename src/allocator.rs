//! jemalloc in place of the system's allocator, for the whole process, RocksDB and SQLite included (ARCHITECTURE.md, "Load and
//! operation").

#![allow(unsafe_code)]

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Bodies and extents are kept for the next ones like anything else: by itself jemalloc gives back at once what is of 8 MiB and
/// more. What was not used for ten seconds goes back in any case.
// SAFETY: jemalloc reads a pointer to a C string under this name, which is the first word of a slice; nothing else has the name.
#[unsafe(export_name = "malloc_conf")]
static CONFIGURATION: &[u8] = b"oversize_threshold:0\0";
