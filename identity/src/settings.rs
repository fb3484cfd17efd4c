//! What can be set, with the defaults and their reasons.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long sessions live and what they are bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionPolicy {
    /// A session without a request for so long ends; zero: never for that reason. Default 30 minutes. It may end a
    /// sixteenth of this earlier, at most 30 s, since not every request is noted.
    pub idle: Duration,
    /// A session ends so long after its login, used or not; zero: never for that reason. Default 12 hours.
    pub absolute: Duration,
    /// Whether a user may have several sessions. If not, a login ends the user's earlier sessions: refusing it would lock
    /// out whoever lost a session id. Default yes.
    pub allow_duplicate: bool,
    /// Whether a session is good from other addresses than that of its login. Default no.
    pub allow_cross_ip: bool,
}

impl Default for SessionPolicy {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(30 * 60),
            absolute: Duration::from_secs(12 * 60 * 60),
            allow_duplicate: true,
            allow_cross_ip: false,
        }
    }
}

/// When wrong passwords lock a user out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockoutPolicy {
    /// So many wrong passwords within [`window`](Self::window) lock the user out; 0: never. Default 5: 480 guesses a day.
    pub attempts: u32,
    /// How long a wrong password counts, unless a right one comes. Default 15 minutes.
    pub window: Duration,
    /// How long no login of the user succeeds then. Default 15 minutes.
    pub duration: Duration,
}

impl Default for LockoutPolicy {
    fn default() -> Self {
        Self { attempts: 5, window: Duration::from_secs(15 * 60), duration: Duration::from_secs(15 * 60) }
    }
}

/// What passwords must be like. It holds for new ones; those that are set stay good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordPolicy {
    /// Fewest characters. Default 12.
    pub length_min: usize,
    /// Whether it needs characters of three kinds (small letters, capital letters, digits, others) and must not hold the
    /// user's name. Default no: length protects better and annoys less.
    pub complexity: bool,
    /// So many of a user's last passwords, the present one included, can't be set again; at most
    /// [`HISTORY_MAX`](Self::HISTORY_MAX). Default 0: any can.
    pub history: u32,
}

impl PasswordPolicy {
    /// Most passwords that are remembered: each costs a hash when a new one is set.
    pub const HISTORY_MAX: u32 = 24;
    /// Longest password, in bytes. Longer ones are not typed, and hashing them would be work for nothing.
    pub const BYTES_MAX: usize = 1024;
}

impl Default for PasswordPolicy {
    fn default() -> Self {
        Self { length_min: 12, complexity: false, history: 0 }
    }
}

/// The settings of an [`Identity`](crate::Identity).
#[derive(Debug, Clone, Default)]
pub struct IdentityOptions {
    /// How long sessions live and what they are bound to.
    pub sessions: SessionPolicy,
    /// When wrong passwords lock a user out.
    pub lockout: LockoutPolicy,
    /// What passwords must be like.
    pub passwords: PasswordPolicy,
    /// Where the time comes from.
    pub clock: Clock,
}

/// Where the time comes from: the system, or a test.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// A clock that answers with milliseconds since the Unix epoch.
    pub fn new(unix_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(unix_ms))
    }

    /// The time of the system: sessions outlive the process, so that no other clock would do.
    pub fn system() -> Self {
        Self::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    }

    /// Milliseconds since the Unix epoch.
    pub fn unix_ms(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A duration in the database's unit.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
