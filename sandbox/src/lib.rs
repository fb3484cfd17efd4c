//! Runs what touches hostile bytes in processes that can do nothing else.
//!
//! The worker starts a *zygote*: its own program again, under a hidden name, with an empty environment and one socket. It
//! makes ready what jobs are to have at hand, confines itself, and then forks a few *templates*, each of which forks one *job
//! process* for each file. The job process gets a socket and shared memory of its own, confines itself further, and ends with
//! its file, or, if it only answers questions about an archive's members, with that archive. So it never holds a key, an
//! environment, or the bytes of another submission's files, and whatever becomes of it costs that one.
//!
//! Invariants:
//! - Nothing is parsed before Landlock, seccomp and the resource limits are in force. If the kernel can't enforce them the
//!   zygote says so and the sandbox does not start: it fails closed.
//! - A job process has no right to a path, a socket, another process or executable memory, and no capability. It has its
//!   job's socket, its input, its output, and a few kilobytes for its last words.
//! - The worker believes nothing that comes out: it counts every member and byte itself, looks at nothing but copies of what
//!   is in shared memory, and ends a job that does not answer in time.
//! - Memory, processor time, open files and output of a job process are limited by the kernel too.
//!
//! It deliberately knows nothing of queues, stores, engines and result codes. Address space layout is the zygote's, so that
//! a bug that reveals addresses in one file's process might help in the next one of the same zygote; it is replaced for that
//! reason after [`SandboxOptions::zygote_jobs_max`] jobs.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod channel;
pub mod child;
mod confine;
mod extraction;
mod job;
mod memory;
mod opening;
mod output;
mod pool;
mod sys;
mod wire;

pub use extraction::{ANSWER_BYTES_MAX, Answers, Extraction};
pub use job::{Ended, Input};
pub use opening::{CONTENT_BYTES_MAX, Opening, Request, Respondent};
pub use pool::{DATABASES_MAX, Database, Sandbox, SandboxError, SandboxOptions};
