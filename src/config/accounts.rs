//! The gateway's settings of sessions, lockout and passwords. `lazaret user` keeps to them as well.

use std::time::Duration;

use anyhow::bail;
use lazaret_identity::{IdentityOptions, LockoutPolicy, PasswordPolicy, SessionPolicy};
use serde::{Deserialize, Serialize};

/// Sessions, which `POST /login` begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsConfig {
    /// A session without a request for so long ends; 0: never for that reason.
    pub idle_seconds: u64,
    /// A session ends so long after its login, used or not; 0: never for that reason.
    pub absolute_seconds: u64,
    /// Whether a user may have several sessions; if not, a login ends the earlier ones.
    pub allow_duplicate: bool,
    /// Whether a session is good from other addresses than that of its login.
    pub allow_cross_ip: bool,
}

impl Default for SessionsConfig {
    fn default() -> Self {
        let policy = SessionPolicy::default();
        Self {
            idle_seconds: policy.idle.as_secs(),
            absolute_seconds: policy.absolute.as_secs(),
            allow_duplicate: policy.allow_duplicate,
            allow_cross_ip: policy.allow_cross_ip,
        }
    }
}

/// What wrong passwords lead to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LockoutConfig {
    /// So many wrong passwords within the window lock the user out; 0: never.
    pub attempts: u32,
    /// How long a wrong password counts.
    pub window_seconds: u64,
    /// How long the user is locked out.
    pub lock_seconds: u64,
}

impl Default for LockoutConfig {
    fn default() -> Self {
        let policy = LockoutPolicy::default();
        Self {
            attempts: policy.attempts,
            window_seconds: policy.window.as_secs(),
            lock_seconds: policy.duration.as_secs(),
        }
    }
}

/// What new passwords must be like.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PasswordsConfig {
    /// Fewest characters.
    pub length_min: usize,
    /// Whether it needs three of small letters, capital letters, digits and others, and must not hold the user's name.
    pub complexity: bool,
    /// So many of the last passwords, the present one included, can't be set again; 0 to 24.
    pub history: u32,
}

impl Default for PasswordsConfig {
    fn default() -> Self {
        let policy = PasswordPolicy::default();
        Self { length_min: policy.length_min, complexity: policy.complexity, history: policy.history }
    }
}

/// The three in the identity database's own words.
pub fn identity_options(
    sessions: &SessionsConfig,
    lockout: &LockoutConfig,
    passwords: &PasswordsConfig,
) -> IdentityOptions {
    IdentityOptions {
        sessions: SessionPolicy {
            idle: Duration::from_secs(sessions.idle_seconds),
            absolute: Duration::from_secs(sessions.absolute_seconds),
            allow_duplicate: sessions.allow_duplicate,
            allow_cross_ip: sessions.allow_cross_ip,
        },
        lockout: LockoutPolicy {
            attempts: lockout.attempts,
            window: Duration::from_secs(lockout.window_seconds),
            duration: Duration::from_secs(lockout.lock_seconds),
        },
        passwords: PasswordPolicy {
            length_min: passwords.length_min,
            complexity: passwords.complexity,
            history: passwords.history,
        },
        ..IdentityOptions::default()
    }
}

/// Checks what types alone can't.
pub fn check(sessions: &SessionsConfig, lockout: &LockoutConfig, passwords: &PasswordsConfig) -> anyhow::Result<()> {
    // Below this a browser's own requests would be too rare to keep a session.
    const IDLE_SECONDS_MIN: u64 = 10;
    // Each wrong password within the window is a row that the next one counts.
    const ATTEMPTS_MAX: u32 = 1000;
    // As the reference bounds it.
    const LENGTH_MIN_MAX: usize = 30;
    // Ten years: longer ones are a slip of the keyboard.
    const SECONDS_MAX: u64 = 10 * 366 * 24 * 3600;
    if (1..IDLE_SECONDS_MIN).contains(&sessions.idle_seconds) {
        bail!("sessions.idle_seconds must be 0 (off) or at least {IDLE_SECONDS_MIN}, got {}", sessions.idle_seconds);
    }
    let spans = [
        ("sessions.idle_seconds", sessions.idle_seconds),
        ("sessions.absolute_seconds", sessions.absolute_seconds),
        ("lockout.window_seconds", lockout.window_seconds),
        ("lockout.lock_seconds", lockout.lock_seconds),
    ];
    if let Some((name, _)) = spans.iter().find(|(_, seconds)| *seconds > SECONDS_MAX) {
        bail!("{name} must be at most {SECONDS_MAX}");
    }
    if lockout.attempts > ATTEMPTS_MAX {
        bail!("lockout.attempts must be at most {ATTEMPTS_MAX}, got {}", lockout.attempts);
    }
    if lockout.attempts > 0 && (lockout.window_seconds == 0 || lockout.lock_seconds == 0) {
        bail!(
            "lockout.window_seconds and lockout.lock_seconds must be at least 1; lockout.attempts: 0 locks nobody out"
        );
    }
    if passwords.length_min > LENGTH_MIN_MAX {
        bail!("passwords.length_min must be at most {LENGTH_MIN_MAX}, got {}", passwords.length_min);
    }
    if passwords.history > PasswordPolicy::HISTORY_MAX {
        bail!("passwords.history must be at most {}, got {}", PasswordPolicy::HISTORY_MAX, passwords.history);
    }
    Ok(())
}
