//! Which path each digest takes for each number of files: measured once, when the first file comes.
//!
//! What is fastest depends on the processor in ways that its feature bits don't tell (a vector unit of half width, SHA
//! instructions that beat sixteen lanes, a C library without assembly). So each path is timed on a few blocks, two
//! milliseconds in all, and the number of files decides between a wide pass with empty lanes and narrow ones in sequence.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::file::BLOCK_BYTES;
use crate::kernels::{Algorithm, Blake3, Lane, Md5, Md5Sha1, Path, Sha1, Sha256, Sha512};

/// The most files in one pass: the lanes of the widest register.
pub(crate) const LANES_MAX: usize = 16;
/// Units of 128 bytes in each lane that a path is timed on: enough for going in and out of lanes to be a small part.
const TRIAL_UNITS: usize = 16;
/// How often each path is timed; the shortest time counts, since whatever else the machine does only makes it longer.
const TRIALS: usize = 5;

/// One digest's path for each number of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice([Path; LANES_MAX]);

impl Choice {
    /// The path for this many files.
    pub(crate) fn path(&self, files: usize) -> Path {
        at(&self.0, files).unwrap_or(Path::Rust)
    }

    fn forced<A: Algorithm>(path: Path) -> Self {
        Self([if A::lanes(path).is_some() { path } else { Path::Rust }; LANES_MAX])
    }

    /// The fastest, and how long each takes.
    fn measured(digest: Digest) -> (Self, [Duration; LANES_MAX]) {
        let timed = |path| {
            let lanes = digest.lanes(path)?;
            Some((path, lanes, digest.time(path, lanes, TRIAL_UNITS, TRIALS)?))
        };
        let timed: Vec<(Path, usize, Duration)> = Path::ALL.into_iter().filter_map(timed).collect();
        let fastest: [(Path, Duration); LANES_MAX] = std::array::from_fn(|i| {
            let passes = |lanes: usize| u32::try_from((i + 1).div_ceil(lanes)).unwrap_or(u32::MAX);
            let times = timed.iter().map(|(path, lanes, time)| (*path, time.saturating_mul(passes(*lanes))));
            times.min_by_key(|(_, time)| *time).unwrap_or((Path::Rust, Duration::MAX))
        });
        (Self(fastest.map(|(path, _)| path)), fastest.map(|(_, time)| time))
    }
}

/// What a table that begins with one file has for this many.
fn at<T: Copy>(table: &[T; LANES_MAX], files: usize) -> Option<T> {
    table.get(files.saturating_sub(1)).or(table.last()).copied()
}

/// One of the digests. Files share their passes; BLAKE3's lanes are chunks of 1 KiB and parents, of the same file or of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Digest {
    /// BLAKE3.
    Blake3,
    /// MD5.
    Md5,
    /// SHA-1.
    Sha1,
    /// MD5 and SHA-1 in one pass.
    Md5Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Digest {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Blake3, Self::Md5, Self::Sha1, Self::Md5Sha1, Self::Sha256, Self::Sha512];

    /// How many files this path takes side by side; none if it hasn't this digest, or this machine hasn't the path.
    pub fn lanes(self, path: Path) -> Option<usize> {
        match self {
            Self::Blake3 => Blake3::lanes(path),
            Self::Md5 => Md5::lanes(path),
            Self::Sha1 => Sha1::lanes(path),
            Self::Md5Sha1 => Md5Sha1::lanes(path),
            Self::Sha256 => Sha256::lanes(path),
            Self::Sha512 => Sha512::lanes(path),
        }
    }

    /// The path that this number of files takes on this machine.
    pub fn path(self, files: usize) -> Path {
        let plan = Plan::fastest();
        match self {
            Self::Blake3 => plan.blake3.path(files),
            Self::Md5 => plan.md5.path(files),
            Self::Sha1 => plan.sha1.path(files),
            Self::Md5Sha1 => plan.md5_sha1.path(files),
            Self::Sha256 => plan.sha256.path(files),
            Self::Sha512 => plan.sha512.path(files),
        }
    }

    /// The shortest of several times that a path takes for this number of files, each of 128 times `units` bytes; none as
    /// with [`Digest::lanes`]. The bytes are in the level-1 cache as far as it holds them.
    pub fn time(self, path: Path, files: usize, units: usize, trials: usize) -> Option<Duration> {
        self.lanes(path)?;
        let bytes = vec![0x5a; units * BLOCK_BYTES];
        Some(match self {
            Self::Blake3 => time::<Blake3>(path, files, &bytes, trials),
            Self::Md5 => time::<Md5>(path, files, &bytes, trials),
            Self::Sha1 => time::<Sha1>(path, files, &bytes, trials),
            Self::Md5Sha1 => time::<Md5Sha1>(path, files, &bytes, trials),
            Self::Sha256 => time::<Sha256>(path, files, &bytes, trials),
            Self::Sha512 => time::<Sha512>(path, files, &bytes, trials),
        })
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Blake3 => "BLAKE3",
            Self::Md5 => "MD5",
            Self::Sha1 => "SHA-1",
            Self::Md5Sha1 => "MD5+SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha512 => "SHA-512",
        })
    }
}

fn time<A: Algorithm>(path: Path, files: usize, bytes: &[u8], trials: usize) -> Duration {
    let mut states = vec![A::START; files];
    let mut shortest = Duration::MAX;
    for _ in 0..trials {
        let mut lanes: Vec<_> = states.iter_mut().map(|state| Lane { state, bytes }).collect();
        let began = Instant::now();
        A::run(path, &mut lanes);
        shortest = shortest.min(began.elapsed());
    }
    shortest
}

/// All five digests' paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) blake3: Choice,
    pub(crate) md5: Choice,
    pub(crate) sha1: Choice,
    pub(crate) md5_sha1: Choice,
    /// For which numbers of files MD5 and SHA-1 in one pass are faster than one after the other.
    together: [bool; LANES_MAX],
    pub(crate) sha256: Choice,
    pub(crate) sha512: Choice,
}

impl Plan {
    /// What is fastest on this machine.
    pub(crate) fn fastest() -> &'static Self {
        static FASTEST: OnceLock<Plan> = OnceLock::new();
        FASTEST.get_or_init(|| {
            let (md5, md5_times) = Choice::measured(Digest::Md5);
            let (sha1, sha1_times) = Choice::measured(Digest::Sha1);
            let (md5_sha1, times) = Choice::measured(Digest::Md5Sha1);
            let apart = md5_times.into_iter().zip(sha1_times).map(|(md5, sha1)| md5.saturating_add(sha1));
            let mut together = [false; LANES_MAX];
            for ((together, time), apart) in together.iter_mut().zip(times).zip(apart) {
                *together = time < apart;
            }
            let blake3 = Choice::measured(Digest::Blake3).0;
            let (sha256, sha512) = (Choice::measured(Digest::Sha256).0, Choice::measured(Digest::Sha512).0);
            Self { blake3, md5, sha1, md5_sha1, together, sha256, sha512 }
        })
    }

    /// The same path whatever the number of files; a digest that the path hasn't, or that this machine hasn't got, goes by
    /// [`Path::Rust`].
    pub(crate) fn forced(path: Path) -> Self {
        Self {
            blake3: Choice::forced::<Blake3>(path),
            md5: Choice::forced::<Md5>(path),
            sha1: Choice::forced::<Sha1>(path),
            md5_sha1: Choice::forced::<Md5Sha1>(path),
            together: [Md5Sha1::lanes(path).is_some(); LANES_MAX],
            sha256: Choice::forced::<Sha256>(path),
            sha512: Choice::forced::<Sha512>(path),
        }
    }

    /// The forced path, or what is fastest.
    pub(crate) fn of(path: Option<Path>) -> Self {
        path.map_or_else(|| *Self::fastest(), Self::forced)
    }

    /// Whether MD5 and SHA-1 of this many files are best computed in one pass.
    pub(crate) fn together(&self, files: usize) -> bool {
        files > 0 && at(&self.together, files).unwrap_or(false)
    }
}
