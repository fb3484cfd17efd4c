//! Runs what touches hostile bytes in processes that can do nothing else.
//!
//! The worker starts a few *templates*: its own program again, under a hidden name, with an empty environment and one
//! socket. A template confines itself, and then forks one *job process* for each file. The job process gets a socket and
//! shared memory of its own, confines itself further, and ends with its file. So it never holds a key, an environment, or the
//! bytes of another file, and whatever becomes of it costs that one file.
//!
//! Invariants:
//! - Nothing is parsed before Landlock, seccomp and the resource limits are in force. If the kernel can't enforce them the
//!   template says so and the sandbox does not start: it fails closed.
//! - A job process has no right to a path, a socket, another process or executable memory, and no capability. It has its
//!   job's socket, its input, its output, and a few kilobytes for its last words.
//! - The worker believes nothing that comes out: it counts every member and byte itself, copies out of the shared memory
//!   before it looks, and ends a job that does not answer in time.
//! - Memory, processor time, open files and output of a job process are limited by the kernel too.
//!
//! It deliberately knows nothing of queues, stores, engines and result codes. Address space layout is the template's, so that
//! a bug that reveals addresses in one file's process might help in the next one of the same template; templates are replaced
//! for that reason after [`JOBS_PER_TEMPLATE_MAX`] jobs.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod channel;
pub mod child;
mod confine;
mod extraction;
mod opening;
mod output;
mod pool;
mod sys;
mod wire;

pub use extraction::{Extraction, NOTE_BYTES_MAX};
pub use opening::{Ended, Input, Opening, Request};
pub use pool::{JOBS_PER_TEMPLATE_MAX, Sandbox, SandboxError, SandboxOptions};
pub use sys::{give_back_memory, keep_no_large_blocks};
