//! Passwords: what they must be like, and their hashes.
//!
//! Invariants:
//! - Hashing runs on threads for blocking work, a bounded number at once, since each takes memory and time on purpose.
//! - A check costs the same whether there is a hash to check against or not, so that time tells nothing about names.
//! - Parameters come with each hash; one that asks for more than this build ever used is refused, not computed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::error::IdentityFault;
use crate::settings::PasswordPolicy;

/// Argon2id's memory, in KiB: 19 MiB, with [`PASSES`] and [`LANES`] the first of OWASP's recommended settings (Password
/// Storage Cheat Sheet).
const MEMORY_KIB: u32 = 19 * 1024;
/// Argon2id's passes over it.
const PASSES: u32 = 2;
/// Argon2id's lanes.
const LANES: u32 = 1;
/// Length of a hash in bytes.
const HASH_BYTES: usize = 32;
/// Length of a salt in bytes.
const SALT_BYTES: usize = 16;
/// Most that a stored hash may ask for, as a multiple of the above: room for later builds' settings, not for 4 TiB.
const COST_FACTOR_MAX: u32 = 16;

/// Most hashes computed at once, of half as many as there are cores: whoever floods the login takes no more than half of
/// the machine, and 76 MiB, from requests that have a key.
const AT_ONCE_MAX: usize = 4;
/// Checks under way or waiting for their turn: about two seconds' work. Past it a login is told to come back.
const PLACES: usize = 64;

/// Kinds of characters that a complex password has, of four.
const KINDS_MIN: usize = 3;
/// A user's name shorter than this may occur in a password by chance.
const NAME_CHARS_MIN: usize = 3;

/// Why a password can't be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    /// Too few characters.
    #[error("a password has {min} characters at least")]
    Short {
        /// The fewest.
        min: usize,
    },
    /// Too many bytes.
    #[error("a password has {max} bytes at most")]
    Long {
        /// The most.
        max: usize,
    },
    /// Characters of too few kinds.
    #[error("a password needs characters of three kinds: small letters, capital letters, digits, others")]
    Plain,
    /// The user's name is in it.
    #[error("a password must not hold the user's name")]
    Name,
    /// It was the user's before.
    #[error("it was among the user's last {history} passwords")]
    Reused {
        /// How many are remembered.
        history: u32,
    },
}

/// Checks all of the policy but the history.
pub(crate) fn check(policy: &PasswordPolicy, user_name: &str, password: &str) -> Result<(), WeakPassword> {
    // An empty one is none, whatever the policy says.
    let min = policy.length_min.max(1);
    if password.chars().count() < min {
        return Err(WeakPassword::Short { min });
    }
    if password.len() > PasswordPolicy::BYTES_MAX {
        return Err(WeakPassword::Long { max: PasswordPolicy::BYTES_MAX });
    }
    if !policy.complexity {
        return Ok(());
    }
    let (mut small, mut capital, mut digit, mut other) = (false, false, false, false);
    for c in password.chars() {
        match c {
            c if c.is_lowercase() => small = true,
            c if c.is_uppercase() => capital = true,
            c if c.is_numeric() => digit = true,
            _ => other = true,
        }
    }
    if [small, capital, digit, other].into_iter().filter(|there| *there).count() < KINDS_MIN {
        return Err(WeakPassword::Plain);
    }
    let name = user_name.to_lowercase();
    if name.chars().count() >= NAME_CHARS_MIN && password.to_lowercase().contains(&name) {
        return Err(WeakPassword::Name);
    }
    Ok(())
}

/// Computes and checks hashes, a bounded number at once. Clones share the bound.
#[derive(Clone)]
pub(crate) struct Hasher {
    /// The hash of no password that anybody knows, for names without one.
    decoy: Arc<str>,
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
    /// How often Argon2 ran.
    runs: Arc<AtomicU64>,
}

impl Hasher {
    pub(crate) fn new() -> Result<Self, IdentityFault> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = Arc::new(Semaphore::new((cores / 2).clamp(1, AT_ONCE_MAX)));
        Ok(Self { decoy: decoy()?.into(), turns, places: Arc::new(Semaphore::new(PLACES)), runs: Arc::default() })
    }

    /// How often Argon2 ran so far.
    #[cfg(test)]
    pub(crate) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// The hash of a new password.
    pub(crate) async fn hash(&self, password: &str) -> Result<String, IdentityFault> {
        let password = Zeroizing::new(password.as_bytes().to_vec());
        let runs = Arc::clone(&self.runs);
        self.in_turn(move || hash(&password, &runs)).await?
    }

    /// Whether the password is the hash's. Without a hash it is not, which takes as long to find out.
    pub(crate) async fn verify(&self, password: &str, hash: Option<&str>) -> Result<bool, IdentityFault> {
        // Longer ones can't have been set; the work is the same for whatever is put in their place.
        let fits = password.len() <= PasswordPolicy::BYTES_MAX;
        let password = Zeroizing::new(if fits { password.as_bytes().to_vec() } else { Vec::new() });
        let (against, known): (Arc<str>, bool) = match hash {
            Some(hash) => (hash.into(), true),
            None => (Arc::clone(&self.decoy), false),
        };
        let runs = Arc::clone(&self.runs);
        let matches = self.in_turn(move || verify(&password, &against, &runs)).await??;
        Ok(matches & known & fits)
    }

    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, IdentityFault> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| IdentityFault::Busy)?;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| IdentityFault::ShuttingDown)?;
        // The work holds its turn itself: it goes on if whoever asked goes away.
        let worked = tokio::task::spawn_blocking(move || {
            let done = work();
            drop((turn, place));
            done
        });
        worked.await.map_err(|_| IdentityFault::ShuttingDown)
    }
}

fn argon2() -> Result<Argon2<'static>, IdentityFault> {
    let parameters = Params::new(MEMORY_KIB, PASSES, LANES, Some(HASH_BYTES)).map_err(|_| IdentityFault::Hashing)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters))
}

/// What looks like the hash of a password and is random: finding out that a password is not its costs as much as for any.
fn decoy() -> Result<String, IdentityFault> {
    let (mut salt, mut output) = ([0; SALT_BYTES], [0; HASH_BYTES]);
    getrandom::fill(&mut salt).map_err(IdentityFault::Randomness)?;
    getrandom::fill(&mut output).map_err(IdentityFault::Randomness)?;
    let argon2 = argon2()?;
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(argon2.params()).map_err(|_| IdentityFault::Hashing)?,
        salt: Some(Salt::new(&salt).map_err(|_| IdentityFault::Hashing)?),
        hash: Some(Output::new(&output).map_err(|_| IdentityFault::Hashing)?),
    };
    Ok(hash.to_string())
}

fn hash(password: &[u8], runs: &AtomicU64) -> Result<String, IdentityFault> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(IdentityFault::Randomness)?;
    runs.fetch_add(1, Ordering::Relaxed);
    let hash: PasswordHash = argon2()?.hash_password_with_salt(password, &salt).map_err(|_| IdentityFault::Hashing)?;
    Ok(hash.to_string())
}

fn verify(password: &[u8], hash: &str, runs: &AtomicU64) -> Result<bool, IdentityFault> {
    let hash = PasswordHash::new(hash).map_err(|_| IdentityFault::DamagedHash)?;
    let parameters = Params::try_from(&hash).map_err(|_| IdentityFault::DamagedHash)?;
    let too_much = parameters.m_cost() > MEMORY_KIB * COST_FACTOR_MAX
        || parameters.t_cost() > PASSES * COST_FACTOR_MAX
        || parameters.p_cost() > LANES * COST_FACTOR_MAX;
    if too_much {
        return Err(IdentityFault::DamagedHash);
    }
    runs.fetch_add(1, Ordering::Relaxed);
    match argon2()?.verify_password(password, &hash) {
        Ok(()) => Ok(true),
        Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
        Err(_) => Err(IdentityFault::DamagedHash),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hashes_are_argon2id_salted_and_checked_at_one_cost() {
        let hasher = Hasher::new().unwrap();
        let before = hasher.runs();
        let (one, two) = (hasher.hash("correct horse").await.unwrap(), hasher.hash("correct horse").await.unwrap());
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert_ne!(one, two, "each has a salt of its own");
        assert_eq!(hasher.runs() - before, 2);
        for (password, hash, right) in [
            ("correct horse", Some(one.as_str()), true),
            ("correct horsf", Some(&one), false),
            ("correct horse", None, false),
            ("", None, false),
            (&"x".repeat(PasswordPolicy::BYTES_MAX + 1), Some(&one), false),
        ] {
            let before = hasher.runs();
            assert_eq!(hasher.verify(password, hash).await.unwrap(), right, "{password}");
            assert_eq!(hasher.runs() - before, 1, "one run, known or not");
        }
        // What unknown names are checked against costs what a password's hash costs.
        let cost = |hash: &str| hash.split('$').nth(3).unwrap().to_owned();
        assert_eq!(cost(&hasher.decoy), cost(&one));
    }

    #[tokio::test]
    async fn hashes_that_ask_for_too_much_are_not_computed() {
        let hasher = Hasher::new().unwrap();
        let good = hasher.hash("x").await.unwrap();
        for bad in [
            good.replace("m=19456", "m=4294967295"),
            good.replace("t=2", "t=4000000"),
            good.replace("p=1", "p=200"),
            good.replace("argon2id", "scrypt"),
            "plain".to_owned(),
            String::new(),
        ] {
            let refused = hasher.verify("x", Some(&bad)).await;
            assert!(matches!(refused, Err(IdentityFault::DamagedHash)), "{bad}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn past_the_bound_whoever_asks_is_sent_away() {
        let hasher = Hasher::new().unwrap();
        let all = u32::try_from(PLACES).unwrap();
        let held = Arc::clone(&hasher.places).acquire_many_owned(all).await.unwrap();
        assert!(matches!(hasher.verify("x", None).await, Err(IdentityFault::Busy)));
        assert!(matches!(hasher.hash("x").await, Err(IdentityFault::Busy)));
        drop(held);
        assert!(!hasher.verify("x", None).await.unwrap(), "and may come back");
    }

    #[test]
    fn the_policy_is_kept() {
        let policy = PasswordPolicy { length_min: 8, complexity: true, history: 0 };
        for (password, verdict) in [
            ("Abcdef1", Err(WeakPassword::Short { min: 8 })),
            ("abcdefgh", Err(WeakPassword::Plain)),
            ("abcdefg1", Err(WeakPassword::Plain)),
            ("Abcdefg1", Ok(())),
            ("abcdef-1", Ok(())),
            ("Äbcdefg1", Ok(())),
            ("xADAlove1", Err(WeakPassword::Name)),
            (&"aB1".repeat(400), Err(WeakPassword::Long { max: PasswordPolicy::BYTES_MAX })),
        ] {
            assert_eq!(check(&policy, "Ada", password), verdict, "{password}");
        }
        let lax = PasswordPolicy { length_min: 0, complexity: false, history: 0 };
        assert_eq!(check(&lax, "ada", ""), Err(WeakPassword::Short { min: 1 }));
        assert_eq!(check(&lax, "ada", "ada"), Ok(()));
        assert_eq!(check(&policy, "Al", "xALlove1"), Ok(()), "a short name occurs by chance");
    }
}
