//! Users, their keys, and who a presented key stands for.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use sqlx::sqlite::SqlitePool;

use crate::database;
use crate::error::{IdentityError, IdentityFault};
use crate::key::{ApiKey, KeyHash};
use crate::key_file;
use crate::principal::{Principal, Role};

/// Most accepted keys that are remembered; about 200 bytes each. Past it all are forgotten, and looked up again as they come.
const ACCEPTED_MAX: usize = 4096;

/// Longest name of a user.
const USER_NAME_CHARS_MAX: usize = 256;

/// Makes API keys and tells whom they stand for. Clones share what they know.
#[derive(Clone)]
pub struct Identity {
    database: SqlitePool,
    accepted: Arc<RwLock<HashMap<KeyHash, Principal>>>,
}

impl Identity {
    /// Opens the file at `path`, which is created, for its owner alone, if it is missing; its directory is not.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let path = path.as_ref();
        let database =
            database::open(path).await.map_err(|fault| fault.during("open the identity database", path.display()))?;
        Ok(Self { database, accepted: Arc::default() })
    }

    /// Makes a key for the user of that name, who is recorded if new. The key is durable when this returns, and is shown
    /// here only.
    pub async fn create_key(&self, user_name: &str, role: Role) -> Result<ApiKey, IdentityError> {
        self.record_key(user_name, role)
            .await
            .map_err(|fault| fault.during("make a key for user", user_name.escape_debug()))
    }

    async fn record_key(&self, user_name: &str, role: Role) -> Result<ApiKey, IdentityFault> {
        let length = user_name.chars().count();
        if length == 0 || length > USER_NAME_CHARS_MAX || user_name.chars().any(char::is_control) {
            return Err(IdentityFault::UserName { max: USER_NAME_CHARS_MAX });
        }
        let key = ApiKey::random()?;
        let hash = KeyHash::of(&key.0).ok_or(IdentityFault::NoKey)?;
        let mut new_id = [0; 16];
        getrandom::fill(&mut new_id).map_err(IdentityFault::Randomness)?;

        let mut writing = self.database.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO user (id, name, role) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING")
            .bind(hex::encode(new_id))
            .bind(user_name)
            .bind(role.as_str())
            .execute(&mut *writing)
            .await?;
        let (user_id, found): (String, String) = sqlx::query_as("SELECT id, role FROM user WHERE name = $1")
            .bind(user_name)
            .fetch_one(&mut *writing)
            .await?;
        let found = Role::named(&found);
        if found != role {
            return Err(IdentityFault::OtherRole { found, wanted: role });
        }
        sqlx::query("INSERT INTO api_key (hash, user_id) VALUES ($1, $2)")
            .bind(hash.0.to_vec())
            .bind(user_id)
            .execute(&mut *writing)
            .await?;
        writing.commit().await?;
        Ok(key)
    }

    /// Whom a presented key stands for; nobody if it is unknown or no key at all.
    pub async fn authenticate(&self, presented: &str) -> Result<Option<Principal>, IdentityError> {
        let Some(hash) = KeyHash::of(presented) else { return Ok(None) };
        // Nothing panics under the lock, so that what it guards is whole even if it is called poisoned.
        if let Some(principal) = self.accepted.read().unwrap_or_else(PoisonError::into_inner).get(&hash) {
            return Ok(Some(principal.clone()));
        }
        let principal = self.find(hash).await.map_err(|fault| fault.during("look up", "the presented API key"))?;
        if let Some(principal) = &principal {
            let mut accepted = self.accepted.write().unwrap_or_else(PoisonError::into_inner);
            if accepted.len() >= ACCEPTED_MAX {
                accepted.clear();
            }
            accepted.insert(hash, principal.clone());
        }
        Ok(principal)
    }

    async fn find(&self, hash: KeyHash) -> Result<Option<Principal>, IdentityFault> {
        // The index compares hashes, not keys: how long it takes says nothing about a key that isn't known already.
        let row: Option<(String, String, String)> = sqlx::query_as(
            "SELECT user.id, user.name, user.role FROM api_key JOIN user ON user.id = api_key.user_id
             WHERE api_key.hash = $1",
        )
        .bind(hash.0.to_vec())
        .fetch_optional(&self.database)
        .await?;
        let Some((user_id, user_name, role)) = row else { return Ok(None) };
        let role = Role::named(&role);
        let rights = role.built_in_rights().unwrap_or_default();
        Ok(Some(Principal { user_id, user_name, role, rights }))
    }

    /// Sees to it that the file at `path` holds a key of a user of that role: it is made, for its owner alone, if it is
    /// missing; a file that is there is only checked.
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
            let key = self.create_key(user_name, role.clone()).await?;
            key_file::create(path, &key).await.map_err(|fault| fault.during("write the key file", shown()))?;
            // Not necessarily ours: another process may have been faster.
            held = read().await?;
        }
        let check = |fault: IdentityFault| fault.during("use the key file", shown());
        let held = held.ok_or(IdentityFault::NoKey).map_err(check)?;
        let principal = self.authenticate(&held.0).await?.ok_or(IdentityFault::UnknownKey).map_err(check)?;
        if principal.role != role {
            return Err(check(IdentityFault::OtherRole { found: principal.role, wanted: role }));
        }
        Ok(())
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
    async fn accepted_keys_need_no_database_and_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity::open(directory.path().join("i.db")).await.unwrap();
        let key = identity.create_key("ada", Role::Submitter).await.unwrap();
        let principal = identity.authenticate(&key.0).await.unwrap().unwrap();

        let strangers = (0..ACCEPTED_MAX as u64).map(|number| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            (KeyHash(hash), principal.clone())
        });
        identity.accepted.write().unwrap().extend(strangers);
        let other = identity.create_key("ada", Role::Submitter).await.unwrap();
        assert!(identity.authenticate(&other.0).await.unwrap().is_some());
        assert_eq!(identity.accepted.read().unwrap().len(), 1);

        identity.database.close().await;
        assert_eq!(identity.authenticate(&other.0).await.unwrap(), Some(principal));
        assert!(identity.authenticate(&key.0).await.is_err(), "a forgotten key is looked up again");
    }
}
