//! The compression functions of BLAKE3, MD5, SHA-1, SHA-256 and SHA-512 by every path that the processor offers: several files side
//! by side in vector registers, two interleaved by the SHA instructions, or one alone.
//!
//! Invariant: every path leaves the same state for the same blocks, so a file may change paths between any two blocks.
//! Nothing here pads, counts or buffers; see [`crate::file`].

pub(crate) mod blake3;
pub(crate) mod constants;
mod drive;
mod rounds;
mod single;
mod words;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod shani;

pub(crate) use blake3::Blake3;
pub(crate) use drive::Lane;
pub(crate) use rounds::{Md5, Md5Sha1, Sha1, Sha256, Sha512};

/// A way to compute digests. Which ones a machine has is found out when the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// Rust on every processor, one file at a time: the crates `sha1` and `sha2`, and MD5 here.
    Rust,
    /// OpenSSL's assembly, one file at a time. It has no MD5 here.
    OpenSsl,
    /// The processor's SHA instructions, two files at a time. They have SHA-1 and SHA-256.
    ShaNi,
    /// 256-bit registers: eight files at a time, four with SHA-512.
    Avx2,
    /// 512-bit registers: sixteen files at a time, eight with SHA-512.
    Avx512,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Rust, Self::OpenSsl, Self::ShaNi, Self::Avx2, Self::Avx512];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Rust | Self::OpenSsl => true,
            #[cfg(target_arch = "x86_64")]
            Self::ShaNi => {
                is_x86_feature_detected!("sha")
                    && is_x86_feature_detected!("ssse3")
                    && is_x86_feature_detected!("sse4.1")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::ShaNi | Self::Avx2 | Self::Avx512 => false,
        }
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rust => "rust",
            Self::OpenSsl => "openssl",
            Self::ShaNi => "sha-ni",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// One of the four digests.
pub(crate) trait Algorithm {
    /// What blocks are mixed into.
    type State: Clone;
    /// The state of an empty file.
    const START: Self::State;
    /// Bytes a block.
    const BLOCK_BYTES: usize;

    /// How many files this path takes side by side; none if it hasn't this digest.
    fn lanes(path: Path) -> Option<usize>;

    /// Mixes each lane's blocks into its state; all lanes are equally long. More lanes than the path is wide go through it
    /// one registerful after the other.
    fn run(path: Path, lanes: &mut [Lane<'_, Self::State>]);
}

/// How many blocks each lane has, which must be whole and as many in all.
fn blocks<S>(lanes: &[Lane<'_, S>], block_bytes: usize) -> usize {
    let length = lanes.first().map_or(0, |lane| lane.bytes.len());
    assert!(length.is_multiple_of(block_bytes), "a lane ends within a block");
    assert!(lanes.iter().all(|lane| lane.bytes.len() == length), "lanes are of different lengths");
    length / block_bytes
}

/// An algorithm's table of paths: `lanes` wide in 256-bit registers and twice that in 512-bit ones.
macro_rules! algorithm {
    ($name:ident, $state:ty, $start:expr, $block:literal, $module:ident, $lanes:literal,
     openssl: $openssl:expr, sha_ni: $sha_ni:expr) => {
        impl Algorithm for $name {
            type State = $state;
            const START: $state = $start;
            const BLOCK_BYTES: usize = $block;

            fn lanes(path: Path) -> Option<usize> {
                let openssl: Option<fn(&mut $state, &[u8])> = $openssl;
                match path {
                    Path::Rust => Some(1),
                    Path::OpenSsl => openssl.map(|_| 1),
                    Path::ShaNi => $sha_ni,
                    Path::Avx2 => Some($lanes),
                    Path::Avx512 => Some(2 * $lanes),
                }
                .filter(|_| path.is_available())
            }

            fn run(path: Path, lanes: &mut [Lane<'_, $state>]) {
                let blocks = blocks(lanes, $block);
                let width = Self::lanes(path);
                let openssl: Option<fn(&mut $state, &[u8])> = $openssl;
                match (path, openssl) {
                    #[cfg(target_arch = "x86_64")]
                    (Path::ShaNi | Path::Avx2 | Path::Avx512, _) if width.is_some() => {
                        vector::$module(path, lanes, width.unwrap_or(1), blocks);
                    }
                    (Path::OpenSsl, Some(compress)) => {
                        lanes.iter_mut().for_each(|lane| compress(lane.state, lane.bytes));
                    }
                    _ => lanes.iter_mut().for_each(|lane| single::$module(lane.state, lane.bytes)),
                }
            }
        }
    };
}

algorithm!(Blake3, blake3::Node, blake3::Node::chunk(0), 64, blake3, 8, openssl: None, sha_ni: None);
algorithm!(Md5, [u32; 4], constants::MD5_START, 64, md5, 8, openssl: None, sha_ni: None);
algorithm!(Md5Sha1, [u32; 9], constants::MD5_SHA1_START, 64, md5_sha1, 8, openssl: None, sha_ni: None);
algorithm!(Sha1, [u32; 5], constants::SHA1_START, 64, sha1, 8,
    openssl: Some(single::openssl_sha1), sha_ni: Some(2));
algorithm!(Sha256, [u32; 8], constants::SHA256_START, 64, sha256, 8,
    openssl: Some(single::openssl_sha256), sha_ni: Some(2));
algorithm!(Sha512, [u64; 8], constants::SHA512_START, 128, sha512, 4,
    openssl: Some(single::openssl_sha512), sha_ni: None);

/// The steps from a path that was found available to the functions that need its instructions.
///
/// Safety: each function checks again what it is about to call, so that no caller can get the promise wrong; the check
/// is a load and a compare for many blocks.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod vector {
    use super::blake3::Node;
    use super::{Lane, Path, avx2, avx512, shani};

    macro_rules! entry {
        ($name:ident, $state:ty $(, $sha_ni:path)?) => {
            pub(super) fn $name(path: Path, lanes: &mut [Lane<'_, $state>], width: usize, blocks: usize) {
                assert!(path.is_available(), "the processor lacks {path}");
                for group in lanes.chunks_mut(width) {
                    match path {
                        // SAFETY: the processor has the path's instructions, as asserted above.
                        Path::Avx512 => unsafe { avx512::$name(group, blocks) },
                        // SAFETY: as above.
                        Path::Avx2 => unsafe { avx2::$name(group, blocks) },
                        $(
                            // SAFETY: as above.
                            Path::ShaNi => unsafe { $sha_ni(group, blocks) },
                        )?
                        _ => unreachable!("not a vector path"),
                    }
                }
            }
        };
    }

    entry!(blake3, Node);
    entry!(md5, [u32; 4]);
    entry!(md5_sha1, [u32; 9]);
    entry!(sha1, [u32; 5], shani::sha1);
    entry!(sha256, [u32; 8], shani::sha256);
    entry!(sha512, [u64; 8]);
}
