//! GET and POST /admin/user, DELETE /admin/user/{user_id}, POST /user/changepassword: users over REST, as the reference's
//! administration knows them.
//!
//! A key is made with each user and shown in that answer alone; lists have an empty text in its place, since only its hash is
//! kept. Nothing of a body is repeated in a refusal or a log: it holds passwords.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use lazaret_identity::{Actor, IdentityError, IdentityFault, LoginError, NumberedUser, Principal, Role, UserDetails};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::documented::{BadRequest, Busy, Forbidden, NoRight, NotFound, Unexpected};
use crate::access::{Gate, client_address, require};
use crate::error::ApiError;
use crate::gateway::Shared;

/// Longest body: all texts at their longest, with every character escaped, fit.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// The number of the one directory there is, by which the reference calls its local one.
const LOCAL_DIRECTORY: u64 = 1;

/// A user.
#[derive(Serialize, ToSchema)]
pub(super) struct User {
    /// Its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<i64>,
    /// Its first key, in the answer to its making; empty everywhere else.
    api_key: String,
    /// 1: users are kept here.
    directory_id: u64,
    display_name: String,
    email: String,
    /// What it logs in as.
    name: String,
    description: String,
    /// The name of its role.
    roles: Vec<String>,
    /// Empty.
    ui_settings: BTreeMap<String, String>,
}

impl User {
    fn new(id: Option<i64>, name: String, role: String, details: UserDetails) -> Self {
        let UserDetails { display_name, email, description } = details;
        Self {
            id,
            api_key: String::new(),
            directory_id: LOCAL_DIRECTORY,
            display_name,
            email,
            name,
            description,
            roles: vec![role],
            ui_settings: BTreeMap::new(),
        }
    }
}

/// The user to be made.
#[derive(Deserialize, ToSchema)]
#[serde(default)]
#[derive(Default)]
pub(super) struct NewUser {
    /// What it logs in as; unique.
    name: String,
    /// What it is shown as.
    display_name: String,
    email: String,
    /// 256 characters at most.
    description: String,
    /// The name of one role: administrator, submitter (if none is named), viewer, or one of the operator's.
    roles: Vec<String>,
    /// With one it can log in.
    password: Option<String>,
    /// Must be empty: a key is made.
    api_key: Option<String>,
    /// Must be 1, if it is there.
    directory_id: Option<u64>,
}

/// The passwords.
#[derive(Deserialize, ToSchema)]
pub(super) struct Passwords {
    old_password: String,
    new_password: String,
}

/// That it was done.
#[derive(Serialize, ToSchema)]
pub(super) struct Done {
    #[schema(value_type = String)]
    result: &'static str,
}

const DONE: Done = Done { result: "Success" };

/// All users.
#[utoipa::path(get, path = "/admin/user", tag = "Users",
    responses((status = 200, description = "The users", body = Vec<User>), Forbidden, NoRight, Unexpected))]
pub(super) async fn list(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<Vec<User>>, ApiError> {
    let (parts, _) = request.into_parts();
    require(&shared, &parts, Gate::USERS).await?;
    let users = shared.identity.numbered_users().await.map_err(ApiError::Identity)?;
    let shown = |user: NumberedUser| User::new(Some(user.number), user.name, user.role, user.details);
    Ok(Json(users.into_iter().map(shown).collect()))
}

/// Makes a user with a first key.
#[utoipa::path(post, path = "/admin/user", tag = "Users", request_body = NewUser,
    responses((status = 200, description = "The user, and its key", body = User),
        BadRequest, Forbidden, NoRight, Unexpected, Busy))]
pub(super) async fn add(State(shared): State<Arc<Shared>>, request: Request) -> Result<Json<User>, ApiError> {
    let (parts, body) = request.into_parts();
    let principal = require(&shared, &parts, Gate::USERS).await?;
    let new: NewUser = read(body).await?;
    if new.api_key.is_some_and(|key| !key.is_empty()) {
        return Err(ApiError::BadUser("api_key can't be chosen: leave it out, and the answer has one".to_owned()));
    }
    if new.directory_id.is_some_and(|directory| directory != LOCAL_DIRECTORY) {
        return Err(ApiError::BadUser(format!("directory_id must be {LOCAL_DIRECTORY}")));
    }
    if new.name.is_empty() {
        return Err(ApiError::BadUser("name is missing: what the user logs in as".to_owned()));
    }
    let role = match new.roles.as_slice() {
        [] => Role::Submitter,
        [role] => Role::named(role),
        _ => return Err(ApiError::BadUser("a user has one role".to_owned())),
    };
    let details = UserDetails { display_name: new.display_name, email: new.email, description: new.description };
    let actor = actor(&principal, &parts);
    let added = shared.identity.add_user_for(
        (&principal, &actor),
        &new.name,
        &role,
        &details,
        new.password.as_deref().filter(|password| !password.is_empty()),
    );
    let key = added.await.map_err(refusal)?;
    Ok(Json(User { api_key: key.0, ..User::new(None, new.name, role.as_str().to_owned(), details) }))
}

/// Removes a user with its keys and sessions. What it submitted stays.
#[utoipa::path(delete, path = "/admin/user/{user_id}", tag = "Users",
    params(("user_id" = i64, Path, description = "The user's number")),
    responses((status = 200, description = "It is removed", body = Done),
        BadRequest, Forbidden, NotFound, NoRight, Unexpected))]
pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Done>, ApiError> {
    let (parts, _) = request.into_parts();
    let principal = require(&shared, &parts, Gate::USERS).await?;
    let number = path.ok().and_then(|Path(text)| text.parse::<i64>().ok()).ok_or_else(without_number)?;
    let actor = actor(&principal, &parts);
    shared.identity.remove_numbered_user((&principal, &actor), number).await.map_err(refusal)?;
    Ok(Json(DONE))
}

/// The answer to a removal that names nobody: 405 would say that the caller has not the right.
pub(super) fn without_number() -> ApiError {
    ApiError::BadUser("the path must end in the user's number: /admin/user/{user_id}".to_owned())
}

/// Changes the password of whoever asks, and ends its sessions.
#[utoipa::path(post, path = "/user/changepassword", tag = "Users", request_body = Passwords,
    responses((status = 200, description = "It is changed", body = Done), BadRequest, Forbidden, Unexpected, Busy))]
pub(super) async fn change_password(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Done>, ApiError> {
    let (parts, body) = request.into_parts();
    let principal = require(&shared, &parts, Gate::ANY_KEY).await?;
    let asked: Passwords = read(body).await?;
    let address = client_address(&parts);
    // A login judges the old password, and counts wrong ones towards a lockout. Its session ends with the others.
    match shared.identity.login(&principal.user_name, &asked.old_password, address).await {
        Ok(_) => {}
        Err(LoginError::Refused) => return Err(ApiError::Refused { status: StatusCode::FORBIDDEN }),
        Err(LoginError::Busy) => return Err(ApiError::TooManyLogins),
        Err(LoginError::Identity(error)) => return Err(ApiError::Identity(error)),
    }
    let actor = actor(&principal, &parts);
    let changed = shared.identity.set_password(&actor, &principal.user_name, &asked.new_password).await;
    changed.map_err(refusal)?;
    Ok(Json(DONE))
}

fn actor(principal: &Principal, parts: &Parts) -> Actor {
    Actor::new(principal.user_name.clone(), client_address(parts))
}

/// The body, which is JSON whatever its Content-Type says. The parser's own words would repeat it.
async fn read<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let bad = || ApiError::BadUser("The body must be the JSON that the reference describes.".to_owned());
    let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| bad())?;
    serde_json::from_slice(&body).map_err(|_| bad())
}

/// What a client can act on it is told.
fn refusal(error: IdentityError) -> ApiError {
    match &error.source {
        IdentityFault::NoUser => ApiError::NoItem,
        IdentityFault::BeyondRights => ApiError::Refused { status: StatusCode::METHOD_NOT_ALLOWED },
        IdentityFault::Busy => ApiError::TooManyLogins,
        IdentityFault::Name { .. }
        | IdentityFault::Text { .. }
        | IdentityFault::UserExists
        | IdentityFault::LastAdministrator
        | IdentityFault::NoRole(_)
        | IdentityFault::WeakPassword(_) => ApiError::BadUser(error.source.to_string()),
        _ => ApiError::Identity(error),
    }
}
