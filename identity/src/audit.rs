//! The audit log: who did what to whose account, and when.
//!
//! Invariants:
//! - What changes an account is recorded in the same transaction as the change: there is no change without its line.
//! - No line holds a password, a key or a session id, nor the name that an unknown user gave: people type passwords there.
//! - Both kinds of events are bounded in number, each by itself: the oldest of a kind go first.

use std::net::IpAddr;

use serde::Serialize;
use sqlx::SqliteConnection;

use crate::error::IdentityFault;

/// Most events of each kind that are kept: about 20 MiB in all.
const EVENTS_MAX: i64 = 100_000;
/// How often the oldest are removed, in events: to count them for each would cost more than to keep a few more.
const TRIM_EVERY: i64 = 64;
/// Most events on a page.
pub(crate) const PAGE_MAX: u32 = 1000;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Login,
    LoginFailed,
    LockedOut,
    Logout,
    UserAdded,
    UserRemoved,
    PasswordSet,
    Unlocked,
    KeyMade,
    KeyRevoked,
    RoleSet,
    RoleRemoved,
}

impl Action {
    /// What it is called in the log (*format*).
    const fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::LoginFailed => "login failed",
            Self::LockedOut => "locked out",
            Self::Logout => "logout",
            Self::UserAdded => "user added",
            Self::UserRemoved => "user removed",
            Self::PasswordSet => "password set",
            Self::Unlocked => "unlocked",
            Self::KeyMade => "key made",
            Self::KeyRevoked => "key revoked",
            Self::RoleSet => "role set",
            Self::RoleRemoved => "role removed",
        }
    }

    /// Its kind, by which it is bounded. Whoever can't log in can bring about events of the one kind only.
    const fn kind(self) -> &'static str {
        match self {
            Self::Login | Self::LoginFailed | Self::LockedOut | Self::Logout => "access",
            _ => "change",
        }
    }
}

/// Who does something to accounts, as the audit log names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    name: String,
    address: Option<IpAddr>,
}

impl Actor {
    /// Whoever that is, from wherever: a user, or who runs the program.
    pub fn new(name: impl Into<String>, address: Option<IpAddr>) -> Self {
        Self { name: name.into(), address }
    }

    /// The program itself, on its first start.
    pub fn system() -> Self {
        Self::new("lazaret", None)
    }
}

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct AuditEvent {
    /// Grows with every event, and is never used again.
    pub id: i64,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Who did it: a user's name as of then, or who ran the program.
    pub actor: String,
    /// What.
    pub action: String,
    /// To whom or what: a user's or role's name as of then.
    pub object: String,
    /// From which address; none if it came over no network.
    pub address: Option<String>,
    /// What else there is to say: a reason, a key's prefix, a role.
    pub detail: String,
}

/// Records an event in the transaction of what it tells of.
pub(crate) async fn record(
    writing: &mut SqliteConnection,
    at_ms: i64,
    actor: &Actor,
    action: Action,
    object: &str,
    detail: &str,
) -> Result<(), IdentityFault> {
    let inserted = sqlx::query(
        "INSERT INTO audit (at_ms, kind, actor, action, object, address, detail) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(at_ms)
    .bind(action.kind())
    .bind(&actor.name)
    .bind(action.as_str())
    .bind(object)
    .bind(actor.address.map(|address| address.to_string()))
    .bind(detail)
    .execute(&mut *writing)
    .await?;
    if inserted.last_insert_rowid() % TRIM_EVERY == 0 {
        for kind in ["change", "access"] {
            trim(writing, kind, EVENTS_MAX).await?;
        }
    }
    Ok(())
}

/// Removes the oldest events of the kind, so that `max` are left.
async fn trim(writing: &mut SqliteConnection, kind: &str, max: i64) -> Result<(), IdentityFault> {
    sqlx::query(
        "DELETE FROM audit WHERE kind = $1
         AND id <= (SELECT id FROM audit WHERE kind = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
    )
    .bind(kind)
    .bind(max)
    .execute(writing)
    .await?;
    Ok(())
}

/// Events before that id, newest first.
pub(crate) async fn page(
    reading: &mut SqliteConnection,
    before: i64,
    count: u32,
) -> Result<Vec<AuditEvent>, IdentityFault> {
    let events = sqlx::query_as(
        "SELECT id, at_ms, actor, action, object, address, detail FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2",
    )
    .bind(before)
    .bind(count.min(PAGE_MAX))
    .fetch_all(reading)
    .await?;
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_kind_is_bounded_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        let database = crate::database::open(&directory.path().join("i.db")).await.unwrap();
        let mut connection = database.acquire().await.unwrap();
        let actor = Actor::system();
        record(&mut connection, 1, &actor, Action::UserAdded, "ada", "").await.unwrap();
        for number in 0..50 {
            record(&mut connection, number, &actor, Action::LoginFailed, "ada", "").await.unwrap();
        }
        trim(&mut connection, "access", 20).await.unwrap();
        trim(&mut connection, "change", 20).await.unwrap();
        let left = page(&mut connection, i64::MAX, 1000).await.unwrap();
        assert_eq!(left.len(), 21);
        assert_eq!((left[0].id, left[19].id, left[20].id), (51, 32, 1), "the oldest logins went, the change stayed");
        assert_eq!(left[20].action, "user added");
        assert_eq!(page(&mut connection, 40, 3).await.unwrap().iter().map(|e| e.id).collect::<Vec<_>>(), [39, 38, 37]);
    }
}
