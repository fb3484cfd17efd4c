//! The identity database as its users hold it: whom a presented key or session stands for, and the first keys.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use sqlx::Sqlite;
use sqlx::sqlite::SqlitePool;

use crate::audit::Actor;
use crate::database;
use crate::error::{IdentityError, IdentityFault};
use crate::key::{ApiKey, KeyHash};
use crate::key_file;
use crate::password::Hasher;
use crate::principal::{Principal, Role};
use crate::session;
use crate::settings::IdentityOptions;

/// Most accepted keys that are remembered; about 300 bytes each. Past it all are forgotten, and looked up again as they come.
const ACCEPTED_MAX: usize = 4096;

/// How long an accepted key needs no query. So long, at most, a key, session or user that another process removed is good.
const ACCEPTED_FRESH_MS: i64 = 1000;

/// Users, roles, keys, sessions and the audit log. Clones share what they know.
#[derive(Clone)]
pub struct Identity {
    pub(crate) database: SqlitePool,
    pub(crate) options: Arc<IdentityOptions>,
    pub(crate) hasher: Hasher,
    accepted: Arc<RwLock<HashMap<KeyHash, Accepted>>>,
    /// Says to whoever wants to replace the file that it is in use.
    _in_use: Arc<File>,
}

/// What is remembered of a key or session that was good.
struct Accepted {
    found: Found,
    /// From when until when it need not be looked up again. Both, since a clock may be set back.
    fresh_ms: (i64, i64),
}

/// Whom a key or session stands for.
pub(crate) struct Found {
    pub(crate) principal: Principal,
    /// From where alone it is good; none: from everywhere.
    pub(crate) only_from: Option<Option<IpAddr>>,
    /// When it ends whatever happens; none: never.
    pub(crate) ends_ms: Option<i64>,
}

impl Found {
    fn good_from(&self, address: Option<IpAddr>) -> bool {
        self.only_from.is_none_or(|only| only == address)
    }
}

/// A write transaction. SQLite's own way of beginning one would fail in its middle when another process writes.
pub(crate) type Writing = sqlx::Transaction<'static, Sqlite>;

impl Identity {
    /// Opens the file at `path` with default settings, creating it, for its owner alone, if it is missing; its directory is
    /// not created.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        Self::open_with(path, IdentityOptions::default()).await
    }

    /// The same with other settings.
    pub async fn open_with(path: impl AsRef<Path>, options: IdentityOptions) -> Result<Self, IdentityError> {
        let path = path.as_ref();
        let failed = |fault: IdentityFault| fault.during("open the identity database", path.display());
        let in_use = database::share(path).map_err(failed)?;
        let database = database::open(path).await.map_err(failed)?;
        let hasher = Hasher::new().map_err(failed)?;
        Ok(Self { database, options: Arc::new(options), hasher, accepted: Arc::default(), _in_use: Arc::new(in_use) })
    }

    /// Says that nobody has the file at `path` open, nor opens it while what is returned is held.
    pub fn alone(path: impl AsRef<Path>) -> Result<File, IdentityError> {
        let path = path.as_ref();
        database::alone(path).map_err(|fault| fault.during("replace the identity database", path.display()))
    }

    /// Checks that the file at `path` is an identity database of this build or an older one, and brings it up to this build's.
    /// Nobody else may use it.
    pub async fn bring_up(path: impl AsRef<Path>) -> Result<(), IdentityError> {
        let path = path.as_ref();
        let opened = database::open(path).await;
        opened.map_err(|fault| fault.during("open the identity database", path.display()))?.close().await;
        database::forget_lock(path);
        Ok(())
    }

    pub(crate) async fn begin(&self) -> Result<Writing, IdentityFault> {
        Ok(self.database.begin_with("BEGIN IMMEDIATE").await?)
    }

    pub(crate) fn now_ms(&self) -> i64 {
        // In the form that the database keeps.
        i64::try_from(self.options.clock.unix_ms()).unwrap_or(i64::MAX)
    }

    /// Whom a presented key or session stands for; nobody if it is unknown, ended, or no key at all. Where requests come
    /// over a network, [`authenticate_from`](Self::authenticate_from) is the one to use.
    pub async fn authenticate(&self, presented: &str) -> Result<Option<Principal>, IdentityError> {
        self.authenticate_from(presented, None).await
    }

    /// The same for a request from that address, to which a session may be bound.
    pub async fn authenticate_from(
        &self,
        presented: &str,
        address: Option<IpAddr>,
    ) -> Result<Option<Principal>, IdentityError> {
        let Some(hash) = KeyHash::of(presented) else { return Ok(None) };
        let now_ms = self.now_ms();
        // Nothing panics under the lock, so that what it guards is whole even if it is called poisoned.
        if let Some(accepted) = self.accepted.read().unwrap_or_else(PoisonError::into_inner).get(&hash)
            && (accepted.fresh_ms.0..accepted.fresh_ms.1).contains(&now_ms)
        {
            return Ok(accepted.found.good_from(address).then(|| accepted.found.principal.clone()));
        }
        let found = self
            .find(presented, hash, now_ms)
            .await
            .map_err(|fault| fault.during("look up", "the presented API key"))?;
        let mut accepted = self.accepted.write().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = found else {
            accepted.remove(&hash);
            return Ok(None);
        };
        if accepted.len() >= ACCEPTED_MAX {
            accepted.clear();
        }
        let principal = found.good_from(address).then(|| found.principal.clone());
        let until_ms = now_ms.saturating_add(ACCEPTED_FRESH_MS).min(found.ends_ms.unwrap_or(i64::MAX));
        accepted.insert(hash, Accepted { found, fresh_ms: (now_ms, until_ms) });
        Ok(principal)
    }

    /// Forgets which keys were good: something changed.
    pub(crate) fn forget_accepted(&self) {
        self.accepted.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn find(&self, presented: &str, hash: KeyHash, now_ms: i64) -> Result<Option<Found>, IdentityFault> {
        if let Some(principal) = self.find_key(presented, hash).await? {
            return Ok(Some(Found { principal, only_from: None, ends_ms: None }));
        }
        session::find(self, hash, now_ms).await
    }

    async fn find_key(&self, presented: &str, hash: KeyHash) -> Result<Option<Principal>, IdentityFault> {
        let old = KeyHash::old_of(presented).unwrap_or(hash);
        // The index compares hashes, not keys: how long it takes says nothing about a key that isn't known already.
        let row: Option<(UserRow, String)> = sqlx::query_as(
            "SELECT user.id, user.name, user.role, role.rights, api_key.digest
             FROM api_key JOIN user ON user.id = api_key.user_id LEFT JOIN role ON role.name = user.role
             WHERE (api_key.hash = $1 AND api_key.digest = 'sha256') OR (api_key.hash = $2 AND api_key.digest = 'blake3')",
        )
        .bind(hash.0.to_vec())
        .bind(old.0.to_vec())
        .fetch_optional(&self.database)
        .await?
        .map(|(id, name, role, rights, digest): (String, String, String, Option<String>, String)| {
            (UserRow { id, name, role, rights }, digest)
        });
        let Some((user, digest)) = row else { return Ok(None) };
        if digest == "blake3" {
            self.renew(presented, old, hash).await;
        }
        user.principal().map(Some)
    }

    /// Keeps an older build's key by its SHA-256 from now on, and with its prefix. If that fails, the next use tries again.
    async fn renew(&self, presented: &str, old: KeyHash, hash: KeyHash) {
        let prefix = ApiKey(presented.to_lowercase()).prefix().to_owned();
        let update = sqlx::query("UPDATE api_key SET hash = $1, digest = 'sha256', prefix = $2 WHERE hash = $3")
            .bind(hash.0.to_vec())
            .bind(prefix)
            .bind(old.0.to_vec());
        if let Err(error) = update.execute(&self.database).await {
            tracing::warn!(%error, "an older build's key could not be renewed");
        }
    }

    /// Makes a key for the user of that name, who is recorded if new. The key is durable when this returns, and is shown
    /// here only.
    pub async fn create_key(&self, user_name: &str, role: Role) -> Result<ApiKey, IdentityError> {
        self.ensure_user_with_key(user_name, &role, false)
            .await
            .and_then(|key| key.ok_or(IdentityFault::NoUser))
            .map_err(|fault| fault.during("make a key for user", user_name.escape_debug()))
    }

    /// Sees to it that the file at `path` holds a key of a user of that role: it is made, for its owner alone, if it is
    /// missing, and so is the user. A file that is there is only checked. A user that was removed is not made again, and a
    /// file whose key was revoked stays as it is.
    pub async fn ensure_key_file(
        &self,
        path: impl AsRef<Path>,
        user_name: &str,
        role: Role,
    ) -> Result<(), IdentityError> {
        let path = path.as_ref();
        let shown = || path.display().to_string();
        let read = || async { key_file::read(path).await.map_err(|fault| fault.during("read the key file", shown())) };
        let mut held = read().await?;
        if held.is_none() {
            let made = self.ensure_user_with_key(user_name, &role, true).await;
            let Some(key) = made.map_err(|fault| fault.during("make a key for user", user_name))? else {
                tracing::info!(user_name, path = shown(), "the user was removed, so its key file is not made");
                return Ok(());
            };
            key_file::create(path, &key).await.map_err(|fault| fault.during("write the key file", shown()))?;
            held = read().await?;
            // Not necessarily ours: another process may have been faster. Then ours is nowhere and good for nothing.
            if held.as_ref().is_some_and(|held| held.0 != key.0) {
                self.drop_key(&key).await.map_err(|fault| fault.during("make a key for user", user_name))?;
            }
        }
        let check = |fault: IdentityFault| fault.during("use the key file", shown());
        let held = held.ok_or(IdentityFault::NoKey).map_err(check)?;
        match self.authenticate(&held.0).await? {
            Some(principal) if principal.role == role => Ok(()),
            Some(principal) => Err(check(IdentityFault::OtherRole { found: principal.role, wanted: role })),
            None if self.was_first(user_name).await.map_err(check)? => {
                tracing::warn!(user_name, path = shown(), "the file's key was revoked, or its user removed");
                Ok(())
            }
            None => Err(check(IdentityFault::UnknownKey)),
        }
    }

    /// Makes a key and, if need be, its user. None for a `first` user who was made before and removed since.
    async fn ensure_user_with_key(
        &self,
        user_name: &str,
        role: &Role,
        first: bool,
    ) -> Result<Option<ApiKey>, IdentityFault> {
        let (actor, now_ms) = (Actor::system(), self.now_ms());
        let mut writing = self.begin().await?;
        let user: Option<(String, String)> = sqlx::query_as("SELECT id, role FROM user WHERE name = $1")
            .bind(user_name)
            .fetch_optional(&mut *writing)
            .await?;
        let user_id = match user {
            Some((_, found)) if Role::named(&found) != *role => {
                return Err(IdentityFault::OtherRole { found: Role::named(&found), wanted: role.clone() });
            }
            Some((user_id, _)) => user_id,
            None => {
                if first {
                    let made = sqlx::query("INSERT INTO first_user (name) VALUES ($1) ON CONFLICT DO NOTHING")
                        .bind(user_name)
                        .execute(&mut *writing)
                        .await?;
                    if made.rows_affected() == 0 {
                        return Ok(None);
                    }
                }
                crate::users::insert(&mut writing, now_ms, &actor, user_name, role, None).await?
            }
        };
        let key = crate::users::insert_key(&mut writing, now_ms, &actor, (&user_id, user_name)).await?;
        writing.commit().await?;
        Ok(Some(key))
    }

    async fn drop_key(&self, key: &ApiKey) -> Result<(), IdentityFault> {
        let hash = KeyHash::of(&key.0).ok_or(IdentityFault::NoKey)?;
        sqlx::query("DELETE FROM api_key WHERE hash = $1").bind(hash.0.to_vec()).execute(&self.database).await?;
        Ok(())
    }

    /// Whether a start made a user of that name in this database.
    async fn was_first(&self, user_name: &str) -> Result<bool, IdentityFault> {
        let row: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM first_user WHERE name = $1")
            .bind(user_name)
            .fetch_optional(&self.database)
            .await?;
        Ok(row.is_some())
    }
}

/// A user as the database has it, and the rights of its role if that is one of the operator's.
pub(crate) struct UserRow {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) rights: Option<String>,
}

impl UserRow {
    pub(crate) fn principal(self) -> Result<Principal, IdentityFault> {
        let role = Role::named(&self.role);
        let rights = match (role.built_in_rights(), self.rights) {
            (Some(rights), _) => rights,
            (None, Some(rights)) => rights.parse()?,
            (None, None) => return Err(IdentityFault::NoRole(self.role)),
        };
        Ok(Principal { user_id: self.id, user_name: self.name, role, rights, by_session: false })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_keys_need_no_database_for_a_moment_and_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let now = Arc::new(std::sync::atomic::AtomicU64::new(1_000_000));
        let shown = Arc::clone(&now);
        let clock = crate::Clock::new(move || shown.load(std::sync::atomic::Ordering::Relaxed));
        let options = IdentityOptions { clock, ..IdentityOptions::default() };
        let identity = Identity::open_with(directory.path().join("i.db"), options).await.unwrap();
        let key = identity.create_key("ada", Role::Submitter).await.unwrap();
        let principal = identity.authenticate(&key.0).await.unwrap().unwrap();

        let strangers = (0..ACCEPTED_MAX as u64).map(|number| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            let found = Found { principal: principal.clone(), only_from: None, ends_ms: None };
            (KeyHash(hash), Accepted { found, fresh_ms: (0, i64::MAX) })
        });
        identity.accepted.write().unwrap().extend(strangers);
        let other = identity.create_key("ada", Role::Submitter).await.unwrap();
        assert!(identity.authenticate(&other.0).await.unwrap().is_some());
        assert_eq!(identity.accepted.read().unwrap().len(), 1);

        identity.database.close().await;
        assert_eq!(identity.authenticate(&other.0).await.unwrap(), Some(principal));
        assert!(identity.authenticate(&key.0).await.is_err(), "a forgotten key is looked up again");
        now.fetch_add(ACCEPTED_FRESH_MS as u64, std::sync::atomic::Ordering::Relaxed);
        assert!(identity.authenticate(&other.0).await.is_err(), "and so is every key after a moment");
        now.fetch_sub(2 * ACCEPTED_FRESH_MS as u64, std::sync::atomic::Ordering::Relaxed);
        assert!(identity.authenticate(&other.0).await.is_err(), "also when the clock was set back");
    }
}
