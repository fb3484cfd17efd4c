//! Users as programs administer them that know them by number: the users of REST APIs of this kind.
//!
//! **Invariant.** Nobody gives or takes away more than it has: a user is made, and removed, only by whoever has all of its
//! rights. Otherwise the right to manage users would be all rights.

use serde::Serialize;

use crate::audit::{self, Action, Actor};
use crate::error::{IdentityError, IdentityFault};
use crate::identity::{Identity, Writing};
use crate::key::ApiKey;
use crate::principal::{Principal, Rights, Role};
use crate::users::{administrators, insert, insert_key, keeps_an_administrator};

/// Longest description, as the reference of that API says; the other texts are given the same.
const TEXT_CHARS_MAX: usize = 256;

/// What is noted of a user for people.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, sqlx::FromRow)]
pub struct UserDetails {
    /// What it is shown as.
    pub display_name: String,
    /// Where mail reaches it.
    pub email: String,
    /// Anything.
    pub description: String,
}

impl UserDetails {
    fn check(&self) -> Result<(), IdentityFault> {
        let texts = [&self.display_name, &self.email, &self.description];
        let fits = |text: &&String| text.chars().count() <= TEXT_CHARS_MAX && !text.chars().any(char::is_control);
        if texts.iter().all(fits) { Ok(()) } else { Err(IdentityFault::Text { max: TEXT_CHARS_MAX }) }
    }
}

/// A user with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct NumberedUser {
    /// Its number, never given twice.
    pub number: i64,
    /// What it logs in as; unique.
    pub name: String,
    /// Its role's name.
    pub role: String,
    /// What is noted of it.
    #[sqlx(flatten)]
    pub details: UserDetails,
}

const USERS: &str = "SELECT number, name, role, display_name, email, description
    FROM user JOIN user_detail ON user_detail.user_id = user.id";

impl Identity {
    /// All users by number.
    pub async fn numbered_users(&self) -> Result<Vec<NumberedUser>, IdentityError> {
        sqlx::query_as(sqlx::AssertSqlSafe(format!("{USERS} ORDER BY number")))
            .fetch_all(&self.database)
            .await
            .map_err(|error| IdentityFault::from(error).during("list", "the users"))
    }

    /// Makes a user on behalf of `by`, with a first key, which is shown here only.
    pub async fn add_user_for(
        &self,
        by: (&Principal, &Actor),
        name: &str,
        role: &Role,
        details: &UserDetails,
        password: Option<&str>,
    ) -> Result<ApiKey, IdentityError> {
        let added = async {
            details.check()?;
            crate::users::check_name(name)?;
            let hash = match password {
                Some(password) => Some(self.hash_new(name, password).await?),
                None => None,
            };
            let mut writing = self.begin().await?;
            within_rights(&mut writing, by.0, role).await?;
            let now_ms = self.now_ms();
            let user_id = insert(&mut writing, now_ms, by.1, name, role, hash.as_deref()).await?;
            sqlx::query("UPDATE user_detail SET display_name = $1, email = $2, description = $3 WHERE user_id = $4")
                .bind(&details.display_name)
                .bind(&details.email)
                .bind(&details.description)
                .bind(&user_id)
                .execute(&mut *writing)
                .await?;
            if let Some(hash) = hash {
                self.remember(&mut writing, &user_id, &hash).await?;
            }
            let key = insert_key(&mut writing, now_ms, by.1, (&user_id, name)).await?;
            writing.commit().await?;
            Ok(key)
        };
        added.await.map_err(|fault: IdentityFault| fault.during("add user", name.escape_debug()))
    }

    /// Removes the user of that number on behalf of `by`, with its keys, sessions and password. What it submitted stays.
    pub async fn remove_numbered_user(&self, by: (&Principal, &Actor), number: i64) -> Result<(), IdentityError> {
        let removed = async {
            let mut writing = self.begin().await?;
            let user: Option<NumberedUser> = sqlx::query_as(sqlx::AssertSqlSafe(format!("{USERS} WHERE number = $1")))
                .bind(number)
                .fetch_optional(&mut *writing)
                .await?;
            let user = user.ok_or(IdentityFault::NoUser)?;
            within_rights(&mut writing, by.0, &Role::named(&user.role)).await?;
            let before = administrators(&mut writing).await?;
            sqlx::query("DELETE FROM user WHERE name = $1").bind(&user.name).execute(&mut *writing).await?;
            keeps_an_administrator(&mut writing, before).await?;
            audit::record(&mut writing, self.now_ms(), by.1, Action::UserRemoved, &user.name, "").await?;
            writing.commit().await?;
            self.forget_accepted();
            Ok(())
        };
        removed.await.map_err(|fault: IdentityFault| fault.during("remove user number", number))
    }
}

/// That `by` has all rights of the role.
async fn within_rights(writing: &mut Writing, by: &Principal, role: &Role) -> Result<(), IdentityFault> {
    let rights = match role.built_in_rights() {
        Some(rights) => rights,
        None => {
            let rights: Option<String> = sqlx::query_scalar("SELECT rights FROM role WHERE name = $1")
                .bind(role.as_str())
                .fetch_optional(&mut **writing)
                .await?;
            rights.ok_or_else(|| IdentityFault::NoRole(role.to_string()))?.parse::<Rights>()?
        }
    };
    let exceeds = rights.iter().any(|right| !by.rights.has(right));
    if exceeds { Err(IdentityFault::BeyondRights) } else { Ok(()) }
}
