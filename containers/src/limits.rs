//! What taking containers apart is limited by, and how hitting a limit is told. Plain values, without a clock or a counter.

use std::io;

use serde::{Deserialize, Serialize};

/// The most that a decoder may hold for its dictionary or window, whatever a header asks for: as much as `xz -9` and
/// `zstd --ultra` need, and little enough that a process which holds one stays under 300 MiB.
pub const DECODER_BYTES_MAX: u64 = 192 << 20;

/// What one submission may make its scan do. Counted over the whole tree of nested files, on produced bytes.
///
/// There are no defaults here: they belong to whoever reads rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How many containers deep a file may lie.
    pub depth: u32,
    /// How many nested files may come out.
    pub files: u64,
    /// How many bytes may come out.
    pub produced_bytes: u64,
    /// How many times a container's own bytes may come out of it.
    pub ratio: u64,
    /// So many bytes may come out before the ratio counts.
    pub ratio_free_bytes: u64,
    /// How many seconds taking one container apart may take.
    pub archive_seconds: u64,
    /// How long a single nested file may be; none for as long as `produced_bytes` allows.
    pub file_bytes: Option<u64>,
}

/// Which limit was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
#[repr(u8)]
pub enum Limit {
    /// The container lies too deep.
    #[error("the container lies too deep to be taken apart")]
    Depth = 1,
    /// Too many files.
    #[error("more files come out than allowed")]
    Files = 2,
    /// Too many bytes, in all or of one file.
    #[error("more bytes come out than allowed")]
    Size = 3,
    /// Too many bytes for what went in.
    #[error("too much comes out for what went in")]
    Ratio = 4,
    /// Too long.
    #[error("taking it apart takes longer than allowed")]
    Time = 5,
    /// A decoder asks for more memory than it gets.
    #[error("decoding it takes more memory than allowed")]
    Memory = 6,
}

impl Limit {
    /// Every limit there is.
    pub const ALL: [Self; 6] = [Self::Depth, Self::Files, Self::Size, Self::Ratio, Self::Time, Self::Memory];
}

/// Why an extraction ends before its container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Halt {
    /// A limit was hit.
    #[error("{0}")]
    Limit(Limit),
    /// The tree is no longer scanned.
    #[error("stopped")]
    Stopped,
}

impl From<Halt> for io::Error {
    fn from(halt: Halt) -> Self {
        Self::other(halt)
    }
}

impl Halt {
    /// The halt that an error carries, however it was passed through decoders.
    pub fn of(error: &io::Error) -> Option<Self> {
        carried(error)
    }
}

/// A decoder asked for more memory than it may have. Unlike a [`Halt`] it ends one member, not the extraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its decoder needs {asked_bytes} bytes of memory, {DECODER_BYTES_MAX} are allowed")]
pub struct TooMuchMemory {
    /// What it asked for.
    pub asked_bytes: u64,
}

impl TooMuchMemory {
    /// The refusal that an error carries, however it was passed through decoders.
    pub fn of(error: &io::Error) -> Option<Self> {
        carried(error)
    }
}

impl From<TooMuchMemory> for io::Error {
    fn from(refusal: TooMuchMemory) -> Self {
        Self::other(refusal)
    }
}

/// Whether a decoder may hold so many bytes. Asked before any dictionary or window is allocated by what a header claims.
pub fn admit_decoder(asked_bytes: u64) -> Result<(), TooMuchMemory> {
    if asked_bytes > DECODER_BYTES_MAX { Err(TooMuchMemory { asked_bytes }) } else { Ok(()) }
}

/// The `T` in an error's chain of sources.
fn carried<T: std::error::Error + Copy + 'static>(error: &io::Error) -> Option<T> {
    let mut source: Option<&(dyn std::error::Error + 'static)> =
        error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(*found);
        }
        source = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halts_and_refusals_are_found_through_layers_of_errors() {
        let error = io::Error::other(io::Error::from(Halt::Stopped));
        assert_eq!((Halt::of(&error), TooMuchMemory::of(&error)), (Some(Halt::Stopped), None));
        assert_eq!(Halt::of(&io::Error::other("else")), None);
        assert!(admit_decoder(DECODER_BYTES_MAX).is_ok());
        let error = io::Error::from(admit_decoder(4 << 30).unwrap_err());
        assert_eq!(TooMuchMemory::of(&error), Some(TooMuchMemory { asked_bytes: 4 << 30 }));
    }
}
