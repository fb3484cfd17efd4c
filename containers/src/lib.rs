//! Takes containers apart: detects which formats a file is, and reads each of them as a stream of members.
//!
//! Invariants:
//! - Nothing passes silently. Whatever did not come out has an [`ExtractionOutcome`] that says so and why.
//! - Every byte and every member that comes out is counted against a [`Budget`] before anybody sees it.
//! - Memory is bounded by constants and limits, never by what a file claims.
//! - No file of any content makes a reader panic or run without end.
//!
//! It knows no threads, queues, stores, engines or result codes, and what it exchanges with the rest is plain and
//! serialisable, so that it runs in a process of its own, builds in seconds and can be fuzzed. Result codes are a matter of
//! whoever asks: a limit here is a [`Limit`], not a number.
//!
//! A format is one module with a `FORMAT`, and one line in the table of [`formats`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod budget;
pub mod conformance;
pub mod container;
pub mod detect;
pub mod format;
pub mod formats;
pub mod limits;
pub mod outcome;
pub mod passwords;
pub mod windows;

mod activemime;
mod appledouble;
mod ar;
mod arc;
mod asar;
mod binhex;
mod cab;
mod chm;
mod cipher;
mod cms;
mod coded;
mod cpio;
mod disk;
mod dotnet;
mod elf;
mod encoded;
mod exfat;
mod ext;
mod fat;
mod fields;
mod file_systems;
mod hfs;
mod iso9660;
mod lnk;
mod lzh;
mod mail;
mod nsis;
mod ntfs;
mod ole;
mod onenote;
mod parts;
mod pdf;
mod pe;
mod pgp;
mod pyinstaller;
mod rar;
mod rpm;
mod rtf;
mod runs;
mod script_encoder;
mod sevenz;
mod squashfs;
mod stream;
mod swf;
mod tar;
mod text;
mod textual;
mod transfer;
mod tree;
mod udf;
mod unopened;
mod upx;
mod utf16;
mod wim;
mod xar;
mod zip;

pub use budget::{Budget, Stop, TreeBudget, TreeUse, Turn, Turns};
pub use container::{Container, Extractor, Guarded, Member, ReadSeek, Refused, Remark, Sink};
pub use detect::{FileType, detect, detect_content};
pub use format::{Claim, Claims, ContainerFormat, Format, Probe};
pub use limits::{Halt, Limit, Limits};
pub use outcome::{ExtractionOutcome, Protection};
pub use passwords::Passwords;
