//! Administration: users, their passwords and keys, the operator's roles.
//!
//! Everything here is decided and recorded in one transaction with its line in the audit log, so that several processes may
//! administer at once. Other processes take notice within a second, when they look an accepted key up again.

use serde::Serialize;

use crate::audit::{self, Action, Actor, AuditEvent};
use crate::error::{IdentityError, IdentityFault};
use crate::identity::{Identity, Writing};
use crate::key::{ApiKey, KeyHash};
use crate::password::{self, WeakPassword};
use crate::principal::{Right, Rights, Role};
use crate::session;
use crate::settings::PasswordPolicy;

/// Longest name of a user or role.
const NAME_CHARS_MAX: usize = 256;

/// Most API keys of one user, so that a list of them stays one.
const KEYS_OF_USER_MAX: i64 = 1000;

/// Fewest characters by which a key is named when it is to be revoked.
const PREFIX_CHARS_MIN: usize = 4;

/// A user as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct UserInfo {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What people call it; unique.
    pub name: String,
    /// Its role's name.
    pub role: String,
    /// When it was made, in milliseconds since the Unix epoch; 0 if that is not known.
    pub created_ms: i64,
    /// Whether it can log in.
    pub has_password: bool,
    /// How many API keys it has.
    pub keys: i64,
    /// How many sessions it has.
    pub sessions: i64,
    /// Until when no login succeeds, in milliseconds since the Unix epoch; 0 if it is not locked out.
    pub locked_until_ms: i64,
}

/// An API key as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct KeyInfo {
    /// How the key begins; `old-` and how its hash begins for an older build's key that was not used since.
    pub prefix: String,
    /// When it was made, in milliseconds since the Unix epoch; 0 if that is not known.
    pub created_ms: i64,
}

/// A role as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoleInfo {
    /// What it is called.
    pub name: String,
    /// Names of its rights, with commas.
    pub rights: String,
    /// Whether every installation knows it.
    pub built_in: bool,
}

impl Identity {
    /// Makes a user, with a password or without.
    pub async fn add_user(
        &self,
        actor: &Actor,
        name: &str,
        role: &Role,
        password: Option<&str>,
    ) -> Result<(), IdentityError> {
        let failed = |fault: IdentityFault| fault.during("add user", name.escape_debug());
        // Before the work of hashing, and for the better message.
        check_name(name).map_err(failed)?;
        let hash = match password {
            Some(password) => Some(self.hash_new(name, password).await.map_err(failed)?),
            None => None,
        };
        self.insert_user(actor, name, role, hash.as_deref()).await.map_err(failed)
    }

    async fn insert_user(
        &self,
        actor: &Actor,
        name: &str,
        role: &Role,
        hash: Option<&str>,
    ) -> Result<(), IdentityFault> {
        let mut writing = self.begin().await?;
        let user_id = insert(&mut writing, self.now_ms(), actor, name, role, hash).await?;
        if let Some(hash) = hash {
            self.remember(&mut writing, &user_id, hash).await?;
        }
        writing.commit().await?;
        Ok(())
    }

    /// Removes a user with its keys, sessions and password. What it submitted stays.
    pub async fn remove_user(&self, actor: &Actor, name: &str) -> Result<(), IdentityError> {
        let removed = async {
            let mut writing = self.begin().await?;
            let user_id = user_id(&mut writing, name).await?;
            // Its keys, sessions and passwords go with it: the schema says so.
            let before = administrators(&mut writing).await?;
            sqlx::query("DELETE FROM user WHERE id = $1").bind(user_id).execute(&mut *writing).await?;
            keeps_an_administrator(&mut writing, before).await?;
            audit::record(&mut writing, self.now_ms(), actor, Action::UserRemoved, name, "").await?;
            writing.commit().await?;
            self.forget_accepted();
            Ok(())
        };
        removed.await.map_err(|fault: IdentityFault| fault.during("remove user", name.escape_debug()))
    }

    /// Sets a user's password, ends its sessions, and lets it log in again if it was locked out.
    pub async fn set_password(&self, actor: &Actor, name: &str, password: &str) -> Result<(), IdentityError> {
        self.try_set_password(actor, name, password)
            .await
            .map_err(|fault| fault.during("set the password of user", name.escape_debug()))
    }

    async fn try_set_password(&self, actor: &Actor, name: &str, password: &str) -> Result<(), IdentityFault> {
        self.check_unused(name, password).await?;
        let hash = self.hash_new(name, password).await?;
        let mut writing = self.begin().await?;
        let user_id = user_id(&mut writing, name).await?;
        sqlx::query("UPDATE user SET password = $1, locked_until_ms = 0 WHERE id = $2")
            .bind(&hash)
            .bind(&user_id)
            .execute(&mut *writing)
            .await?;
        session::forgive(&mut writing, &user_id).await?;
        sqlx::query("DELETE FROM session WHERE user_id = $1").bind(&user_id).execute(&mut *writing).await?;
        self.remember(&mut writing, &user_id, &hash).await?;
        audit::record(&mut writing, self.now_ms(), actor, Action::PasswordSet, name, "").await?;
        writing.commit().await?;
        self.forget_accepted();
        Ok(())
    }

    pub(crate) async fn hash_new(&self, name: &str, password: &str) -> Result<String, IdentityFault> {
        password::check(&self.options.passwords, name, password)?;
        self.hasher.hash(password).await
    }

    /// Refuses a password that the policy's history holds. The user's present one counts as its last.
    async fn check_unused(&self, name: &str, password: &str) -> Result<(), IdentityFault> {
        let history = self.options.passwords.history.min(PasswordPolicy::HISTORY_MAX);
        if history == 0 {
            return Ok(());
        }
        let present: Option<(String, Option<String>)> = sqlx::query_as("SELECT id, password FROM user WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.database)
            .await?;
        let (user_id, present) = present.ok_or(IdentityFault::NoUser)?;
        let former: Vec<(String,)> =
            sqlx::query_as("SELECT password FROM password_history WHERE user_id = $1 ORDER BY id DESC LIMIT $2")
                .bind(user_id)
                .bind(history)
                .fetch_all(&self.database)
                .await?;
        let mut known: Vec<String> = former.into_iter().map(|(hash,)| hash).collect();
        // It is missing if the history was switched on after it was set.
        if let Some(present) = present.filter(|present| !known.contains(present)) {
            known.insert(0, present);
        }
        for hash in known.iter().take(usize::try_from(history).unwrap_or(usize::MAX)) {
            if self.hasher.verify(password, Some(hash)).await? {
                return Err(WeakPassword::Reused { history }.into());
            }
        }
        Ok(())
    }

    /// Notes a password for the history, and forgets those that it no longer covers.
    pub(crate) async fn remember(&self, writing: &mut Writing, user_id: &str, hash: &str) -> Result<(), IdentityFault> {
        let history = self.options.passwords.history.min(PasswordPolicy::HISTORY_MAX);
        if history > 0 {
            sqlx::query("INSERT INTO password_history (user_id, password) VALUES ($1, $2)")
                .bind(user_id)
                .bind(hash)
                .execute(&mut **writing)
                .await?;
        }
        sqlx::query(
            "DELETE FROM password_history WHERE user_id = $1 AND id NOT IN
             (SELECT id FROM password_history WHERE user_id = $1 ORDER BY id DESC LIMIT $2)",
        )
        .bind(user_id)
        .bind(history)
        .execute(&mut **writing)
        .await?;
        Ok(())
    }

    /// Lets a user log in again who is locked out.
    pub async fn unlock(&self, actor: &Actor, name: &str) -> Result<(), IdentityError> {
        let unlocked = async {
            let mut writing = self.begin().await?;
            let user_id = user_id(&mut writing, name).await?;
            sqlx::query("UPDATE user SET locked_until_ms = 0 WHERE id = $1")
                .bind(&user_id)
                .execute(&mut *writing)
                .await?;
            session::forgive(&mut writing, &user_id).await?;
            audit::record(&mut writing, self.now_ms(), actor, Action::Unlocked, name, "").await?;
            writing.commit().await?;
            Ok(())
        };
        unlocked.await.map_err(|fault: IdentityFault| fault.during("unlock user", name.escape_debug()))
    }

    /// All users, by name.
    pub async fn users(&self) -> Result<Vec<UserInfo>, IdentityError> {
        let now_ms = self.now_ms();
        let (created_ms, used_ms) = self.options.sessions.ended_ms(now_ms);
        sqlx::query_as(
            "SELECT id, name, role, created_ms, password IS NOT NULL AS has_password,
                 (SELECT count(*) FROM api_key WHERE user_id = user.id) AS keys,
                 (SELECT count(*) FROM session WHERE user_id = user.id AND created_ms > $1 AND used_ms > $2) AS sessions,
                 CASE WHEN locked_until_ms > $3 THEN locked_until_ms ELSE 0 END AS locked_until_ms
             FROM user ORDER BY name",
        )
        .bind(created_ms)
        .bind(used_ms)
        .bind(now_ms)
        .fetch_all(&self.database)
        .await
        .map_err(|error| IdentityFault::from(error).during("list", "the users"))
    }

    /// Makes a key for a user. It is durable when this returns, and is shown here only.
    pub async fn add_key(&self, actor: &Actor, name: &str) -> Result<ApiKey, IdentityError> {
        let made = async {
            let mut writing = self.begin().await?;
            let user_id = user_id(&mut writing, name).await?;
            let key = insert_key(&mut writing, self.now_ms(), actor, (&user_id, name)).await?;
            writing.commit().await?;
            Ok(key)
        };
        made.await.map_err(|fault: IdentityFault| fault.during("make a key for user", name.escape_debug()))
    }

    /// A user's keys, the oldest first.
    pub async fn keys(&self, name: &str) -> Result<Vec<KeyInfo>, IdentityError> {
        let listed = async {
            let mut reading = self.database.begin().await?;
            let user_id = user_id(&mut reading, name).await?;
            let keys = "SELECT prefix, created_ms FROM api_key WHERE user_id = $1 ORDER BY created_ms, prefix";
            Ok(sqlx::query_as(keys).bind(user_id).fetch_all(&mut *reading).await?)
        };
        listed.await.map_err(|fault: IdentityFault| fault.during("list the keys of user", name.escape_debug()))
    }

    /// Revokes the one key of the user that begins so. The prefix of the key that it was.
    pub async fn revoke_key(&self, actor: &Actor, name: &str, prefix: &str) -> Result<String, IdentityError> {
        self.try_revoke_key(actor, name, &prefix.to_lowercase())
            .await
            .map_err(|fault| fault.during("revoke a key of user", name.escape_debug()))
    }

    async fn try_revoke_key(&self, actor: &Actor, name: &str, wanted: &str) -> Result<String, IdentityFault> {
        if wanted.chars().count() < PREFIX_CHARS_MIN {
            return Err(IdentityFault::ShortPrefix { min: PREFIX_CHARS_MIN });
        }
        let mut writing = self.begin().await?;
        let user_id = user_id(&mut writing, name).await?;
        let keys: Vec<(Vec<u8>, String)> = sqlx::query_as("SELECT hash, prefix FROM api_key WHERE user_id = $1")
            .bind(user_id)
            .fetch_all(&mut *writing)
            .await?;
        // Whoever gives the whole key means it as well.
        let whole = KeyHash::of(wanted);
        let meant = |(hash, prefix): &&(Vec<u8>, String)| match &whole {
            Some(whole) => hash.as_slice() == whole.0,
            None => prefix.starts_with(wanted),
        };
        let mut meant = keys.iter().filter(meant);
        let (hash, prefix) = meant.next().ok_or(IdentityFault::NoSuchKey)?;
        if meant.next().is_some() {
            return Err(IdentityFault::AmbiguousKey);
        }
        sqlx::query("DELETE FROM api_key WHERE hash = $1").bind(hash).execute(&mut *writing).await?;
        audit::record(&mut writing, self.now_ms(), actor, Action::KeyRevoked, name, prefix).await?;
        writing.commit().await?;
        self.forget_accepted();
        Ok(prefix.clone())
    }

    /// Makes a role of the operator's, or gives it other rights.
    pub async fn set_role(&self, actor: &Actor, name: &str, rights: Rights) -> Result<(), IdentityError> {
        let made = async {
            check_name(name)?;
            if !matches!(Role::named(name), Role::Custom(_)) {
                return Err(IdentityFault::BuiltInRole);
            }
            let mut writing = self.begin().await?;
            let before = administrators(&mut writing).await?;
            sqlx::query(
                "INSERT INTO role (name, rights) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET rights = excluded.rights",
            )
            .bind(name)
            .bind(rights.to_string())
            .execute(&mut *writing)
            .await?;
            keeps_an_administrator(&mut writing, before).await?;
            audit::record(&mut writing, self.now_ms(), actor, Action::RoleSet, name, &rights.to_string()).await?;
            writing.commit().await?;
            self.forget_accepted();
            Ok(())
        };
        made.await.map_err(|fault: IdentityFault| fault.during("set role", name.escape_debug()))
    }

    /// Removes a role of the operator's that no user has.
    pub async fn remove_role(&self, actor: &Actor, name: &str) -> Result<(), IdentityError> {
        let removed = async {
            if !matches!(Role::named(name), Role::Custom(_)) {
                return Err(IdentityFault::BuiltInRole);
            }
            let mut writing = self.begin().await?;
            let (users,): (i64,) =
                sqlx::query_as("SELECT count(*) FROM user WHERE role = $1").bind(name).fetch_one(&mut *writing).await?;
            if users > 0 {
                return Err(IdentityFault::RoleInUse { users });
            }
            let role = sqlx::query("DELETE FROM role WHERE name = $1").bind(name);
            if role.execute(&mut *writing).await?.rows_affected() == 0 {
                return Err(IdentityFault::UnknownRole);
            }
            audit::record(&mut writing, self.now_ms(), actor, Action::RoleRemoved, name, "").await?;
            writing.commit().await?;
            Ok(())
        };
        removed.await.map_err(|fault: IdentityFault| fault.during("remove role", name.escape_debug()))
    }

    /// All roles that users can have: the built-in ones, then the operator's by name.
    pub async fn roles(&self) -> Result<Vec<RoleInfo>, IdentityError> {
        let custom: Vec<(String, String)> = sqlx::query_as("SELECT name, rights FROM role ORDER BY name")
            .fetch_all(&self.database)
            .await
            .map_err(|error| IdentityFault::from(error).during("list", "the roles"))?;
        let built_in = Role::BUILT_IN.iter().map(|role| RoleInfo {
            name: role.as_str().to_owned(),
            rights: role.built_in_rights().unwrap_or_default().to_string(),
            built_in: true,
        });
        Ok(built_in
            .chain(custom.into_iter().map(|(name, rights)| RoleInfo { name, rights, built_in: false }))
            .collect())
    }

    /// Events of the audit log before the one of that id (`None`: the last ones), newest first; at most 1,000.
    pub async fn audit(&self, before: Option<i64>, count: u32) -> Result<Vec<AuditEvent>, IdentityError> {
        let read = async {
            let mut reading = self.database.acquire().await?;
            audit::page(&mut reading, before.unwrap_or(i64::MAX), count).await
        };
        read.await.map_err(|fault: IdentityFault| fault.during("read", "the audit log"))
    }
}

/// How many users may manage users.
pub(crate) async fn administrators(writing: &mut Writing) -> Result<i64, IdentityFault> {
    let roles: Vec<(String, i64, Option<String>)> = sqlx::query_as(
        "SELECT user.role, count(*), max(role.rights) FROM user LEFT JOIN role ON role.name = user.role GROUP BY user.role",
    )
    .fetch_all(&mut **writing)
    .await?;
    let manages = |role: &str, rights: Option<String>| {
        let rights = Role::named(role).built_in_rights().or_else(|| rights?.parse::<Rights>().ok());
        rights.is_some_and(|rights| rights.has(Right::ManageUsers))
    };
    let managing = roles.into_iter().filter_map(|(role, users, rights)| manages(&role, rights).then_some(users));
    Ok(managing.fold(0, i64::saturating_add))
}

/// Refuses a change, made in this transaction, that took away the last of the `before` users who may manage users.
pub(crate) async fn keeps_an_administrator(writing: &mut Writing, before: i64) -> Result<(), IdentityFault> {
    if before > 0 && administrators(writing).await? == 0 {
        return Err(IdentityFault::LastAdministrator);
    }
    Ok(())
}

pub(crate) fn check_name(name: &str) -> Result<(), IdentityFault> {
    let length = name.chars().count();
    if length == 0 || length > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(IdentityFault::Name { max: NAME_CHARS_MAX });
    }
    Ok(())
}

async fn user_id(reading: &mut sqlx::SqliteConnection, name: &str) -> Result<String, IdentityFault> {
    let row: Option<(String,)> =
        sqlx::query_as("SELECT id FROM user WHERE name = $1").bind(name).fetch_optional(reading).await?;
    row.map(|(user_id,)| user_id).ok_or(IdentityFault::NoUser)
}

/// Records a new user; its id.
pub(crate) async fn insert(
    writing: &mut Writing,
    now_ms: i64,
    actor: &Actor,
    name: &str,
    role: &Role,
    password: Option<&str>,
) -> Result<String, IdentityFault> {
    check_name(name)?;
    match role {
        Role::Anonymous => return Err(IdentityFault::NoRole(role.to_string())),
        Role::Custom(role) => {
            let known = sqlx::query("SELECT 1 FROM role WHERE name = $1").bind(role);
            if known.fetch_optional(&mut **writing).await?.is_none() {
                return Err(IdentityFault::NoRole(role.clone()));
            }
        }
        _ => {}
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(IdentityFault::Randomness)?;
    let id = hex::encode(id);
    let inserted = sqlx::query(
        "INSERT INTO user (id, name, role, created_ms, password) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING",
    )
    .bind(&id)
    .bind(name)
    .bind(role.as_str())
    .bind(now_ms)
    .bind(password)
    .execute(&mut **writing)
    .await?;
    if inserted.rows_affected() == 0 {
        return Err(IdentityFault::UserExists);
    }
    audit::record(writing, now_ms, actor, Action::UserAdded, name, role.as_str()).await?;
    Ok(id)
}

/// Records a new key of the user of that id and name.
pub(crate) async fn insert_key(
    writing: &mut Writing,
    now_ms: i64,
    actor: &Actor,
    (user_id, name): (&str, &str),
) -> Result<ApiKey, IdentityFault> {
    let (keys,): (i64,) = sqlx::query_as("SELECT count(*) FROM api_key WHERE user_id = $1")
        .bind(user_id)
        .fetch_one(&mut **writing)
        .await?;
    if keys >= KEYS_OF_USER_MAX {
        return Err(IdentityFault::TooManyKeys { max: KEYS_OF_USER_MAX });
    }
    let key = ApiKey::random()?;
    let hash = KeyHash::of(&key.0).ok_or(IdentityFault::NoKey)?;
    sqlx::query("INSERT INTO api_key (hash, user_id, digest, prefix, created_ms) VALUES ($1, $2, 'sha256', $3, $4)")
        .bind(hash.0.to_vec())
        .bind(user_id)
        .bind(key.prefix())
        .bind(now_ms)
        .execute(&mut **writing)
        .await?;
    audit::record(writing, now_ms, actor, Action::KeyMade, name, key.prefix()).await?;
    Ok(key)
}
