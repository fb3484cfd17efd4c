//! Logins and the sessions that come of them.
//!
//! Invariants:
//! - A refused login says nothing about why: an unknown name, a wrong password and a locked user answer alike and cost alike.
//! - Whether a login counts is decided in the transaction that counts wrong passwords. However many attempts run at once, no
//!   more of them are judged by their password than the lockout allows.
//! - Sessions are in the database: they survive a restart, and end there for every process.

use std::net::IpAddr;
use std::time::Duration;

use crate::audit::{self, Action, Actor};
use crate::error::{IdentityError, IdentityFault};
use crate::identity::{Found, Identity, UserRow, Writing};
use crate::key::{ApiKey, KeyHash};
use crate::principal::Principal;
use crate::settings::{SessionPolicy, millis};

/// Most sessions of one user; past it the oldest end. Clients that log in for each request and never out come to it.
const SESSIONS_OF_USER_MAX: i64 = 1000;

/// A session's last use is noted when a sixteenth of the idle time has passed since the last note...
const USE_NOTED_SHARE: u32 = 16;
/// ... or this, if it is less.
const USE_NOTED_MAX: Duration = Duration::from_secs(30);

/// What the audit log says instead of a name that no user has: people type passwords there.
const UNKNOWN_USER: &str = "(unknown)";

/// A session that has just begun.
#[derive(Debug, Clone)]
pub struct Session {
    /// What its requests present, like an API key. It is shown here only.
    pub id: ApiKey,
    /// Whom it stands for.
    pub principal: Principal,
}

/// Why a login came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// An unknown name, a wrong password or a locked user: which, is nobody's business.
    #[error("Failed to login")]
    Refused,
    /// Too many logins at once.
    #[error("too many logins at once")]
    Busy,
    /// It could not be decided.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What became of a logout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logout {
    /// The session is over.
    Ended,
    /// It is an API key, which has no end.
    ApiKey,
    /// No session is known by that id, or not any more.
    Unknown,
}

impl SessionPolicy {
    /// A session ends that began at the first of these times or was used last at the second, or earlier.
    pub(crate) fn ended_ms(&self, now_ms: i64) -> (i64, i64) {
        let before = |limit: Duration| match limit.is_zero() {
            true => i64::MIN,
            false => now_ms.saturating_sub(millis(limit)),
        };
        (before(self.absolute), before(self.idle))
    }

    /// How long ago the noted last use may be before it is noted anew.
    fn note_after_ms(&self) -> i64 {
        if self.idle.is_zero() { i64::MAX } else { millis((self.idle / USE_NOTED_SHARE).min(USE_NOTED_MAX)) }
    }
}

/// Whom the session of that hash stands for; none if there is none any more. Notes its use.
pub(crate) async fn find(identity: &Identity, hash: KeyHash, now_ms: i64) -> Result<Option<Found>, IdentityFault> {
    type Row = (String, String, String, Option<String>, i64, i64, Option<String>);
    let policy = &identity.options.sessions;
    let (created_ms, used_ms) = policy.ended_ms(now_ms);
    let row: Option<Row> = sqlx::query_as(
        "SELECT user.id, user.name, user.role, role.rights, session.created_ms, session.used_ms, session.address
         FROM session JOIN user ON user.id = session.user_id LEFT JOIN role ON role.name = user.role
         WHERE session.hash = $1 AND session.created_ms > $2 AND session.used_ms > $3",
    )
    .bind(hash.0.to_vec())
    .bind(created_ms)
    .bind(used_ms)
    .fetch_optional(&identity.database)
    .await?;
    let Some((id, name, role, rights, created_ms, used_ms, address)) = row else { return Ok(None) };
    if now_ms.saturating_sub(used_ms) >= policy.note_after_ms() {
        let update = sqlx::query("UPDATE session SET used_ms = $1 WHERE hash = $2").bind(now_ms).bind(hash.0.to_vec());
        // A request is not to fail for it: the session just seems to have been used less.
        if let Err(error) = update.execute(&identity.database).await {
            tracing::warn!(%error, "the use of a session could not be noted");
        }
    }
    let address = match address {
        Some(text) => Some(text.parse().map_err(|_| IdentityFault::DamagedAddress)?),
        None => None,
    };
    Ok(Some(Found {
        principal: Principal { by_session: true, ..UserRow { id, name, role, rights }.principal()? },
        only_from: (!policy.allow_cross_ip).then_some(address),
        ends_ms: (!policy.absolute.is_zero()).then(|| created_ms.saturating_add(millis(policy.absolute))),
    }))
}

impl Identity {
    /// How many sessions are in force.
    pub async fn session_count(&self) -> Result<u64, IdentityError> {
        let (created_ms, used_ms) = self.options.sessions.ended_ms(self.now_ms());
        let count: Result<i64, sqlx::Error> =
            sqlx::query_scalar("SELECT count(*) FROM session WHERE created_ms > $1 AND used_ms > $2")
                .bind(created_ms)
                .bind(used_ms)
                .fetch_one(&self.database)
                .await;
        match count {
            Ok(count) => Ok(u64::try_from(count).unwrap_or(0)),
            Err(error) => Err(IdentityFault::from(error).during("count", "the sessions")),
        }
    }

    /// Begins a session of the user of that name, if the password is the user's.
    pub async fn login(&self, user_name: &str, password: &str, address: Option<IpAddr>) -> Result<Session, LoginError> {
        match self.try_login(user_name, password, address).await {
            Ok(Some(session)) => Ok(session),
            Ok(None) => Err(LoginError::Refused),
            Err(IdentityFault::Busy) => Err(LoginError::Busy),
            // Without the name, which is whatever somebody typed.
            Err(fault) => Err(LoginError::Identity(fault.during("log in", "a user"))),
        }
    }

    async fn try_login(
        &self,
        user_name: &str,
        password: &str,
        address: Option<IpAddr>,
    ) -> Result<Option<Session>, IdentityFault> {
        let user: Option<(String, Option<String>)> = sqlx::query_as("SELECT id, password FROM user WHERE name = $1")
            .bind(user_name)
            .fetch_optional(&self.database)
            .await?;
        let (user_id, hash) = user.unzip();
        let hash = hash.flatten();
        let right = self.hasher.verify(password, hash.as_deref()).await?;

        let now_ms = self.now_ms();
        let mut writing = self.begin().await?;
        let session = match &user_id {
            Some(user_id) => self.judge(&mut writing, user_id, hash, right, (now_ms, address)).await?,
            None => {
                let actor = Actor::new(UNKNOWN_USER, address);
                audit::record(&mut writing, now_ms, &actor, Action::LoginFailed, UNKNOWN_USER, "no such user").await?;
                None
            }
        };
        writing.commit().await?;
        if session.is_some() && !self.options.sessions.allow_duplicate {
            // The user's earlier sessions are over.
            self.forget_accepted();
        }
        Ok(session)
    }

    /// Decides about a login whose password was compared with `hash`, and records what was decided.
    async fn judge(
        &self,
        writing: &mut Writing,
        user_id: &str,
        hash: Option<String>,
        right: bool,
        (now_ms, address): (i64, Option<IpAddr>),
    ) -> Result<Option<Session>, IdentityFault> {
        type Row = (String, String, Option<String>, Option<String>, i64);
        let user: Option<Row> = sqlx::query_as(
            "SELECT user.name, user.role, role.rights, user.password, user.locked_until_ms
             FROM user LEFT JOIN role ON role.name = user.role WHERE user.id = $1",
        )
        .bind(user_id)
        .fetch_optional(&mut **writing)
        .await?;
        let Some((name, role, rights, present, locked_until_ms)) = user else { return Ok(None) };
        let actor = Actor::new(name.as_str(), address);
        let refusal = if now_ms < locked_until_ms {
            Some("locked out")
        } else if present != hash {
            Some("the password was changed meanwhile")
        } else if !right {
            self.count_failure(writing, user_id, &actor, &name, now_ms).await?;
            Some(if hash.is_some() { "wrong password" } else { "the user has no password" })
        } else {
            None
        };
        if let Some(reason) = refusal {
            audit::record(writing, now_ms, &actor, Action::LoginFailed, &name, reason).await?;
            return Ok(None);
        }
        forgive(writing, user_id).await?;
        let id = self.insert_session(writing, user_id, now_ms, address).await?;
        audit::record(writing, now_ms, &actor, Action::Login, &name, "").await?;
        let user = UserRow { id: user_id.to_owned(), name, role, rights };
        let principal = Principal { by_session: true, ..user.principal()? };
        Ok(Some(Session { id, principal }))
    }

    /// Counts a wrong password, and locks the user out if there were too many of late.
    async fn count_failure(
        &self,
        writing: &mut Writing,
        user_id: &str,
        actor: &Actor,
        name: &str,
        now_ms: i64,
    ) -> Result<(), IdentityFault> {
        let policy = &self.options.lockout;
        if policy.attempts == 0 {
            return Ok(());
        }
        // Those that are too old, and those of a clock that ran ahead.
        sqlx::query("DELETE FROM login_failure WHERE user_id = $1 AND (at_ms <= $2 OR at_ms > $3)")
            .bind(user_id)
            .bind(now_ms.saturating_sub(millis(policy.window)))
            .bind(now_ms)
            .execute(&mut **writing)
            .await?;
        sqlx::query("INSERT INTO login_failure (user_id, at_ms) VALUES ($1, $2)")
            .bind(user_id)
            .bind(now_ms)
            .execute(&mut **writing)
            .await?;
        let (failures,): (i64,) = sqlx::query_as("SELECT count(*) FROM login_failure WHERE user_id = $1")
            .bind(user_id)
            .fetch_one(&mut **writing)
            .await?;
        if failures < i64::from(policy.attempts) {
            return Ok(());
        }
        forgive(writing, user_id).await?;
        sqlx::query("UPDATE user SET locked_until_ms = $1 WHERE id = $2")
            .bind(now_ms.saturating_add(millis(policy.duration)))
            .bind(user_id)
            .execute(&mut **writing)
            .await?;
        let detail = format!("{failures} wrong passwords, for {} s", policy.duration.as_secs());
        audit::record(writing, now_ms, actor, Action::LockedOut, name, &detail).await
    }

    /// Records a new session, and removes those that ended and those that are too many.
    async fn insert_session(
        &self,
        writing: &mut Writing,
        user_id: &str,
        now_ms: i64,
        address: Option<IpAddr>,
    ) -> Result<ApiKey, IdentityFault> {
        let policy = &self.options.sessions;
        let (created_ms, used_ms) = policy.ended_ms(now_ms);
        sqlx::query("DELETE FROM session WHERE created_ms <= $1 OR used_ms <= $2")
            .bind(created_ms)
            .bind(used_ms)
            .execute(&mut **writing)
            .await?;
        let left = if policy.allow_duplicate { SESSIONS_OF_USER_MAX - 1 } else { 0 };
        sqlx::query(
            "DELETE FROM session WHERE user_id = $1 AND hash NOT IN
             (SELECT hash FROM session WHERE user_id = $1 ORDER BY created_ms DESC LIMIT $2)",
        )
        .bind(user_id)
        .bind(left)
        .execute(&mut **writing)
        .await?;
        let id = ApiKey::random()?;
        let hash = KeyHash::of(&id.0).ok_or(IdentityFault::NoKey)?;
        sqlx::query("INSERT INTO session (hash, user_id, created_ms, used_ms, address) VALUES ($1, $2, $3, $3, $4)")
            .bind(hash.0.to_vec())
            .bind(user_id)
            .bind(now_ms)
            .bind(address.map(|address| address.to_string()))
            .execute(&mut **writing)
            .await?;
        Ok(id)
    }

    /// Ends the session of that id, if it is good from that address.
    pub async fn logout(&self, presented: &str, address: Option<IpAddr>) -> Result<Logout, IdentityError> {
        let Some(principal) = self.authenticate_from(presented, address).await? else { return Ok(Logout::Unknown) };
        self.end_session(presented, &principal, address)
            .await
            .map_err(|fault| fault.during("end a session of user", principal.user_name.escape_debug()))
    }

    async fn end_session(
        &self,
        presented: &str,
        principal: &Principal,
        address: Option<IpAddr>,
    ) -> Result<Logout, IdentityFault> {
        let hash = KeyHash::of(presented).ok_or(IdentityFault::NoKey)?;
        let mut writing = self.begin().await?;
        let ended = sqlx::query("DELETE FROM session WHERE hash = $1")
            .bind(hash.0.to_vec())
            .execute(&mut *writing)
            .await?
            .rows_affected();
        if ended == 0 {
            let key = sqlx::query("SELECT 1 FROM api_key WHERE hash = $1").bind(hash.0.to_vec());
            let found = key.fetch_optional(&mut *writing).await?.is_some();
            return Ok(if found { Logout::ApiKey } else { Logout::Unknown });
        }
        let (name, actor) = (&principal.user_name, Actor::new(principal.user_name.as_str(), address));
        audit::record(&mut writing, self.now_ms(), &actor, Action::Logout, name, "").await?;
        writing.commit().await?;
        self.forget_accepted();
        Ok(Logout::Ended)
    }
}

/// Forgets the wrong passwords of the user.
pub(crate) async fn forgive(writing: &mut Writing, user_id: &str) -> Result<(), IdentityFault> {
    sqlx::query("DELETE FROM login_failure WHERE user_id = $1").bind(user_id).execute(&mut **writing).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::Role;

    #[tokio::test]
    async fn every_refusal_costs_one_run_of_argon2() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity::open(directory.path().join("i.db")).await.unwrap();
        let actor = Actor::system();
        identity.add_user(&actor, "ada", &Role::Submitter, Some("correct horse battery")).await.unwrap();
        identity.add_user(&actor, "bob", &Role::Submitter, None).await.unwrap();
        identity.add_user(&actor, "eve", &Role::Submitter, Some("correct horse battery")).await.unwrap();
        for _ in 0..identity.options.lockout.attempts {
            assert!(identity.login("eve", "wrong", None).await.is_err());
        }
        for (name, password, right) in [
            ("ada", "correct horse battery", true),
            ("ada", "wrong", false),
            ("bob", "wrong", false),
            ("eve", "correct horse battery", false),
            ("nobody", "wrong", false),
            ("", "", false),
            ("nobody\0of\nnote", "wrong", false),
        ] {
            let before = identity.hasher.runs();
            assert_eq!(identity.login(name, password, None).await.is_ok(), right, "{name:?}");
            assert_eq!(identity.hasher.runs() - before, 1, "{name:?}");
        }
    }

    #[tokio::test]
    async fn sessions_of_a_user_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity::open(directory.path().join("i.db")).await.unwrap();
        identity.add_user(&Actor::system(), "ada", &Role::Submitter, None).await.unwrap();
        let user_id = identity.users().await.unwrap()[0].id.clone();
        let now_ms = identity.now_ms();
        let mut writing = identity.begin().await.unwrap();
        let mut ids = Vec::new();
        for number in 0..SESSIONS_OF_USER_MAX + 3 {
            ids.push(identity.insert_session(&mut writing, &user_id, now_ms + number, None).await.unwrap());
        }
        writing.commit().await.unwrap();
        assert_eq!(identity.users().await.unwrap()[0].sessions, SESSIONS_OF_USER_MAX);
        let good = async |number: usize| identity.authenticate(&ids[number].0).await.unwrap().is_some();
        assert!(!good(2).await && good(3).await && good(ids.len() - 1).await, "the oldest ended");
    }
}
