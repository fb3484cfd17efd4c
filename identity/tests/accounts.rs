//! Logins, sessions, lockout, passwords, keys, roles and the audit log, through the crate's face.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lazaret_identity::{
    Actor, AuditEvent, Clock, Identity, IdentityFault, IdentityOptions, LockoutPolicy, LoginError, Logout,
    PasswordPolicy, Principal, Right, Rights, Role, SessionPolicy, WeakPassword,
};

const PASSWORD: &str = "correct horse battery";
const WRONG: &str = "incorrect horse battery";

/// An identity file and a clock that only the test moves.
struct Place {
    directory: tempfile::TempDir,
    now_ms: Arc<AtomicU64>,
    options: IdentityOptions,
}

impl Place {
    fn new() -> Self {
        let now_ms = Arc::new(AtomicU64::new(1_800_000_000_000));
        let shown = Arc::clone(&now_ms);
        let clock = Clock::new(move || shown.load(Ordering::Relaxed));
        let options = IdentityOptions { clock, ..IdentityOptions::default() };
        Self { directory: tempfile::tempdir().unwrap(), now_ms, options }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("identity.db")
    }

    /// Another process, for all that the file shows.
    async fn open(&self) -> Identity {
        Identity::open_with(self.path(), self.options.clone()).await.unwrap()
    }

    fn pass(&self, time: Duration) {
        self.now_ms.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }

    /// An identity file with the user ada, who has a password.
    async fn with_ada(&self) -> Identity {
        let identity = self.open().await;
        identity.add_user(&actor(), "ada", &Role::Submitter, Some(PASSWORD)).await.unwrap();
        identity
    }
}

fn actor() -> Actor {
    Actor::new("test", None)
}

fn address(last: u8) -> Option<IpAddr> {
    Some(IpAddr::from([192, 0, 2, last]))
}

async fn login(identity: &Identity, password: &str) -> Option<String> {
    match identity.login("ada", password, None).await {
        Ok(session) => Some(session.id.0),
        Err(LoginError::Refused) => None,
        Err(error) => panic!("{error}"),
    }
}

async fn good(identity: &Identity, presented: &str) -> bool {
    identity.authenticate(presented).await.unwrap().is_some()
}

async fn events(identity: &Identity) -> Vec<AuditEvent> {
    let mut events = identity.audit(None, 1000).await.unwrap();
    events.reverse();
    events
}

async fn said(identity: &Identity) -> Vec<String> {
    events(identity).await.into_iter().map(|event| format!("{}: {}", event.action, event.detail)).collect()
}

#[tokio::test]
async fn a_login_begins_a_session_of_the_user() {
    let place = Place::new();
    let identity = place.with_ada().await;
    let session = identity.login("ada", PASSWORD, address(1)).await.unwrap();
    assert_eq!(session.principal.user_name, "ada");
    assert_eq!(session.principal.rights, Role::Submitter.built_in_rights().unwrap());
    let asked = identity.authenticate_from(&session.id.0, address(1)).await.unwrap().unwrap();
    assert_eq!(asked, session.principal);

    let key = identity.add_key(&actor(), "ada").await.unwrap();
    let by_key = Principal { by_session: false, ..asked };
    assert_eq!(identity.authenticate(&key.0).await.unwrap().unwrap(), by_key, "keys and sessions stand for one user");

    for (name, password) in [("ada", WRONG), ("ada", ""), ("Ada", PASSWORD), ("", ""), ("nobody", PASSWORD)] {
        let refused = identity.login(name, password, None).await;
        assert!(matches!(refused, Err(LoginError::Refused)), "{name} {password}");
        assert_eq!(refused.unwrap_err().to_string(), "Failed to login");
    }
    // Whoever has no password can't log in, with whatever.
    identity.add_user(&actor(), "bob", &Role::Viewer, None).await.unwrap();
    assert!(matches!(identity.login("bob", "", None).await, Err(LoginError::Refused)));
}

#[tokio::test]
async fn wrong_passwords_lock_a_user_out_for_a_while() {
    let place = Place::new();
    let identity = place.with_ada().await;
    let policy = place.options.lockout;
    let key = identity.add_key(&actor(), "ada").await.unwrap();
    let session = login(&identity, PASSWORD).await.unwrap();
    for _ in 0..policy.attempts {
        assert!(login(&identity, WRONG).await.is_none());
    }
    assert!(login(&identity, PASSWORD).await.is_none(), "not even with the right one");
    assert!(login(&place.open().await, PASSWORD).await.is_none(), "nor by another process");
    assert!(identity.users().await.unwrap()[0].locked_until_ms > 0);
    assert!(good(&identity, &key.0).await && good(&identity, &session).await, "keys and sessions are no guesses");
    place.pass(policy.duration - Duration::from_millis(1));
    assert!(login(&identity, PASSWORD).await.is_none());
    place.pass(Duration::from_millis(1));
    assert!(login(&identity, PASSWORD).await.is_some());
    assert_eq!(identity.users().await.unwrap()[0].locked_until_ms, 0);

    // A right one in between takes all back.
    for _ in 0..3 {
        for _ in 1..policy.attempts {
            assert!(login(&identity, WRONG).await.is_none());
        }
        assert!(login(&identity, PASSWORD).await.is_some());
    }
    // What is too old does not count.
    for _ in 1..policy.attempts {
        assert!(login(&identity, WRONG).await.is_none());
    }
    place.pass(policy.window);
    assert!(login(&identity, WRONG).await.is_none());
    assert!(login(&identity, PASSWORD).await.is_some());
    // An administrator takes it back.
    for _ in 0..policy.attempts {
        assert!(login(&identity, WRONG).await.is_none());
    }
    assert!(login(&identity, PASSWORD).await.is_none());
    identity.unlock(&actor(), "ada").await.unwrap();
    assert!(login(&identity, PASSWORD).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_at_once_are_judged_no_more_often_than_the_lockout_allows() {
    const ATTEMPTS: usize = 40;
    let place = Place::new();
    let identity = place.with_ada().await;
    let other = place.open().await;
    let mut trying = tokio::task::JoinSet::new();
    for number in 0..ATTEMPTS {
        let identity = if number % 2 == 0 { identity.clone() } else { other.clone() };
        trying.spawn(async move { login(&identity, WRONG).await });
    }
    assert!(trying.join_all().await.iter().all(Option::is_none));
    let said = said(&identity).await;
    let count = |line: &str| said.iter().filter(|said| *said == line).count();
    assert_eq!(count("login failed: wrong password"), place.options.lockout.attempts as usize);
    assert_eq!(count("login failed: locked out"), ATTEMPTS - place.options.lockout.attempts as usize);
    assert_eq!(said.iter().filter(|said| said.starts_with("locked out:")).count(), 1);
    assert!(login(&identity, PASSWORD).await.is_none());
}

#[tokio::test]
async fn without_attempts_nobody_is_locked_out() {
    let mut place = Place::new();
    place.options.lockout = LockoutPolicy { attempts: 0, ..LockoutPolicy::default() };
    let identity = place.with_ada().await;
    for _ in 0..20 {
        assert!(login(&identity, WRONG).await.is_none());
    }
    assert!(login(&identity, PASSWORD).await.is_some());
}

#[tokio::test]
async fn sessions_end_unused_and_in_the_end() {
    let place = Place::new();
    let identity = place.with_ada().await;
    let SessionPolicy { idle, absolute, .. } = place.options.sessions;
    let unused = login(&identity, PASSWORD).await.unwrap();
    place.pass(idle - Duration::from_millis(1));
    assert!(good(&identity, &unused).await, "until the last moment");
    place.pass(idle);
    assert!(!good(&identity, &unused).await);
    place.now_ms.fetch_sub(idle.as_millis() as u64, Ordering::Relaxed);
    assert_eq!(identity.users().await.unwrap()[0].sessions, 1, "the last use was noted");

    // Used all the time, by one process and another, it lives to its absolute end and no longer.
    let used = login(&identity, PASSWORD).await.unwrap();
    let begun = place.now_ms.load(Ordering::Relaxed);
    let step = idle * 3 / 4;
    let mut other = place.open().await;
    while place.now_ms.load(Ordering::Relaxed) + (step.as_millis() as u64) < begun + absolute.as_millis() as u64 {
        place.pass(step);
        assert!(good(&identity, &used).await);
        assert!(good(&other, &used).await);
        // Sessions survive a restart.
        other = place.open().await;
    }
    let left = begun + absolute.as_millis() as u64 - place.now_ms.load(Ordering::Relaxed);
    place.pass(Duration::from_millis(left - 1));
    assert!(good(&identity, &used).await);
    place.pass(Duration::from_millis(1));
    assert!(!good(&identity, &used).await, "though it was found good a millisecond ago");
    assert!(!good(&other, &used).await);
    assert_eq!(identity.users().await.unwrap()[0].sessions, 0);
}

#[tokio::test]
async fn sessions_without_timeouts_do_not_end() {
    let mut place = Place::new();
    place.options.sessions =
        SessionPolicy { idle: Duration::ZERO, absolute: Duration::ZERO, ..SessionPolicy::default() };
    let identity = place.with_ada().await;
    let session = login(&identity, PASSWORD).await.unwrap();
    place.pass(Duration::from_secs(10 * 365 * 24 * 3600));
    assert!(good(&identity, &session).await);
}

#[tokio::test]
async fn sessions_are_bound_to_an_address_unless_told_otherwise() {
    let mut place = Place::new();
    let identity = place.with_ada().await;
    let session = identity.login("ada", PASSWORD, address(1)).await.unwrap().id.0;
    for _ in 0..2 {
        assert!(identity.authenticate_from(&session, address(1)).await.unwrap().is_some());
        for elsewhere in [address(2), None] {
            assert!(identity.authenticate_from(&session, elsewhere).await.unwrap().is_none());
        }
        // Once more, with the one and then the other remembered no longer.
        place.pass(Duration::from_secs(2));
    }
    assert_eq!(identity.logout(&session, address(2)).await.unwrap(), Logout::Unknown);
    assert!(identity.authenticate_from(&session, address(1)).await.unwrap().is_some(), "a stranger can't end it");
    place.options.sessions.allow_cross_ip = true;
    let roaming = place.open().await;
    assert!(roaming.authenticate_from(&session, address(2)).await.unwrap().is_some());
}

#[tokio::test]
async fn one_session_a_user_if_so_set() {
    let mut place = Place::new();
    let identity = place.with_ada().await;
    let (first, second) = (login(&identity, PASSWORD).await.unwrap(), login(&identity, PASSWORD).await.unwrap());
    assert!(good(&identity, &first).await && good(&identity, &second).await);
    place.options.sessions.allow_duplicate = false;
    let strict = place.open().await;
    assert!(good(&strict, &first).await);
    let third = login(&strict, PASSWORD).await.unwrap();
    assert!(!good(&strict, &first).await && !good(&strict, &second).await && good(&strict, &third).await);
    place.pass(Duration::from_secs(1));
    assert!(!good(&identity, &first).await, "another process takes notice");
}

#[tokio::test]
async fn a_logout_ends_the_session_everywhere() {
    let place = Place::new();
    let identity = place.with_ada().await;
    let other = place.open().await;
    let (session, stays) = (login(&identity, PASSWORD).await.unwrap(), login(&identity, PASSWORD).await.unwrap());
    let key = identity.add_key(&actor(), "ada").await.unwrap();
    assert!(good(&other, &session).await);
    assert_eq!(identity.logout(&session, None).await.unwrap(), Logout::Ended);
    assert_eq!(identity.logout(&session, None).await.unwrap(), Logout::Unknown);
    assert!(!good(&identity, &session).await && good(&identity, &stays).await);
    place.pass(Duration::from_secs(1));
    assert!(!good(&other, &session).await);
    assert_eq!(identity.logout(&key.0, None).await.unwrap(), Logout::ApiKey);
    assert!(good(&identity, &key.0).await);
    assert_eq!(identity.logout("nonsense", None).await.unwrap(), Logout::Unknown);
}

#[tokio::test]
async fn removed_keys_and_users_are_good_for_a_second_at_most() {
    let place = Place::new();
    let identity = place.with_ada().await;
    let gateway = place.open().await;
    let (key, stays) =
        (identity.add_key(&actor(), "ada").await.unwrap(), identity.add_key(&actor(), "ada").await.unwrap());
    assert!(good(&gateway, &key.0).await && good(&gateway, &stays.0).await, "new keys are good at once");
    let prefixes: Vec<_> = identity.keys("ada").await.unwrap().into_iter().map(|key| key.prefix).collect();
    assert!(prefixes.contains(&key.prefix().to_owned()) && prefixes.len() == 2);

    let fault = identity.revoke_key(&actor(), "ada", &key.0[..3]).await.unwrap_err().source;
    assert!(matches!(fault, IdentityFault::ShortPrefix { .. }));
    let fault = identity.revoke_key(&actor(), "ada", "zzzz").await.unwrap_err().source;
    assert!(matches!(fault, IdentityFault::NoSuchKey));
    identity.revoke_key(&actor(), "ada", &key.prefix()[..6]).await.unwrap();
    assert!(!good(&identity, &key.0).await, "at once where it was revoked");
    place.pass(Duration::from_secs(1));
    assert!(!good(&gateway, &key.0).await);
    assert!(good(&gateway, &stays.0).await);

    let session = login(&gateway, PASSWORD).await.unwrap();
    assert!(good(&gateway, &session).await);
    identity.remove_user(&actor(), "ada").await.unwrap();
    assert!(!good(&identity, &stays.0).await);
    place.pass(Duration::from_secs(1));
    assert!(!good(&gateway, &stays.0).await && !good(&gateway, &session).await);
    assert!(login(&gateway, PASSWORD).await.is_none());
    // Who comes under the same name later is another.
    identity.add_user(&actor(), "ada", &Role::Submitter, None).await.unwrap();
    assert!(identity.keys("ada").await.unwrap().is_empty());
    assert!(!good(&identity, &stays.0).await);
}

#[tokio::test]
async fn a_whole_key_names_itself() {
    let place = Place::new();
    let identity = place.with_ada().await;
    let key = identity.add_key(&actor(), "ada").await.unwrap();
    identity.revoke_key(&actor(), "ada", &key.0).await.unwrap();
    assert!(identity.keys("ada").await.unwrap().is_empty());
    assert!(!good(&identity, &key.0).await);
}

#[tokio::test]
async fn passwords_keep_to_the_policy_and_the_history() {
    let mut place = Place::new();
    place.options.passwords = PasswordPolicy { length_min: 8, complexity: true, history: 3 };
    let identity = place.open().await;
    let weak = identity.add_user(&actor(), "ada", &Role::Submitter, Some("password")).await.unwrap_err();
    assert!(matches!(weak.source, IdentityFault::WeakPassword(WeakPassword::Plain)));
    assert!(!weak.to_string().contains("password\""), "{weak}");
    assert!(identity.users().await.unwrap().is_empty());

    let password = |number: u32| format!("Horse-{number}");
    identity.add_user(&actor(), "ada", &Role::Submitter, Some(&password(10))).await.unwrap();
    for number in 11..14 {
        for last in [number - 1, number - 2, number - 3] {
            if last >= 10 {
                let reused = identity.set_password(&actor(), "ada", &password(last)).await.unwrap_err();
                let fault = reused.source;
                assert!(matches!(fault, IdentityFault::WeakPassword(WeakPassword::Reused { history: 3 })), "{last}");
            }
        }
        identity.set_password(&actor(), "ada", &password(number)).await.unwrap();
    }
    identity.set_password(&actor(), "ada", &password(10)).await.unwrap();
    assert!(login(&identity, &password(10)).await.is_some());
    assert!(login(&identity, &password(13)).await.is_none(), "a former one is good no longer");

    // Switched on later, it knows the present one.
    let late = Place::new();
    late.with_ada().await;
    let mut options = late.options.clone();
    options.passwords.history = 1;
    let identity = Identity::open_with(late.path(), options).await.unwrap();
    assert!(identity.set_password(&actor(), "ada", PASSWORD).await.is_err());
    identity.set_password(&actor(), "ada", WRONG).await.unwrap();
    identity.set_password(&actor(), "ada", PASSWORD).await.unwrap();
    let nobody = identity.set_password(&actor(), "nobody", PASSWORD).await.unwrap_err();
    assert!(matches!(nobody.source, IdentityFault::NoUser), "{nobody}");
}

#[tokio::test]
async fn a_new_password_ends_sessions_and_a_lockout_but_no_keys() {
    let place = Place::new();
    let identity = place.with_ada().await;
    let key = identity.add_key(&actor(), "ada").await.unwrap();
    let session = login(&identity, PASSWORD).await.unwrap();
    for _ in 0..place.options.lockout.attempts {
        assert!(login(&identity, WRONG).await.is_none());
    }
    identity.set_password(&actor(), "ada", WRONG).await.unwrap();
    assert!(!good(&identity, &session).await && good(&identity, &key.0).await);
    assert!(login(&identity, WRONG).await.is_some());
}

#[tokio::test]
async fn roles_of_the_operator_have_the_rights_they_were_given() {
    let place = Place::new();
    let identity = place.open().await;
    let gateway = place.open().await;
    let role = Role::Custom("mail-gate".to_owned());
    let fault = identity.add_user(&actor(), "gate", &role, None).await.unwrap_err().source;
    assert!(matches!(fault, IdentityFault::NoRole(_)), "no user before the role");
    for built_in in ["administrator", "anonymous"] {
        let fault = identity.set_role(&actor(), built_in, Rights::ALL).await.unwrap_err().source;
        assert!(matches!(fault, IdentityFault::BuiltInRole), "{built_in}");
    }
    assert!(identity.add_user(&actor(), "x", &Role::Anonymous, None).await.is_err());
    identity.set_role(&actor(), "mail-gate", Rights::of(&[Right::Submit])).await.unwrap();
    identity.add_user(&actor(), "gate", &role, None).await.unwrap();
    let key = identity.add_key(&actor(), "gate").await.unwrap();
    let principal = gateway.authenticate(&key.0).await.unwrap().unwrap();
    assert_eq!((&principal.role, principal.rights), (&role, Rights::of(&[Right::Submit])));

    let more = Rights::of(&[Right::Submit, Right::ReadAll]);
    identity.set_role(&actor(), "mail-gate", more).await.unwrap();
    place.pass(Duration::from_secs(1));
    assert_eq!(gateway.authenticate(&key.0).await.unwrap().unwrap().rights, more);
    let names: Vec<_> = identity.roles().await.unwrap().into_iter().map(|role| role.name).collect();
    assert_eq!(names, ["administrator", "submitter", "viewer", "mail-gate"]);
    let fault = identity.remove_role(&actor(), "mail-gate").await.unwrap_err().source;
    assert!(matches!(fault, IdentityFault::RoleInUse { users: 1 }));
    identity.remove_user(&actor(), "gate").await.unwrap();
    identity.remove_role(&actor(), "mail-gate").await.unwrap();
    assert!(identity.remove_role(&actor(), "mail-gate").await.is_err());
}

#[tokio::test]
async fn the_audit_log_tells_who_did_what() {
    let place = Place::new();
    let identity = place.with_ada().await;
    let key = identity.add_key(&actor(), "ada").await.unwrap();
    let session = identity.login("ada", PASSWORD, address(7)).await.unwrap();
    let _ = identity.login("ada", WRONG, address(8)).await;
    let _ = identity.login("my secret typed as a name", "x", address(9)).await;
    identity.logout(&session.id.0, address(7)).await.unwrap();
    identity.revoke_key(&actor(), "ada", key.prefix()).await.unwrap();
    identity.set_password(&actor(), "ada", WRONG).await.unwrap();
    identity.remove_user(&actor(), "ada").await.unwrap();

    let events = events(&identity).await;
    let told: Vec<[&str; 5]> = events
        .iter()
        .map(|event| {
            let from = event.address.as_deref().unwrap_or("");
            [event.actor.as_str(), &event.action, &event.object, from, &event.detail]
        })
        .collect();
    let expected = [
        ["test", "user added", "ada", "", "submitter"],
        ["test", "key made", "ada", "", key.prefix()],
        ["ada", "login", "ada", "192.0.2.7", ""],
        ["ada", "login failed", "ada", "192.0.2.8", "wrong password"],
        ["(unknown)", "login failed", "(unknown)", "192.0.2.9", "no such user"],
        ["ada", "logout", "ada", "192.0.2.7", ""],
        ["test", "key revoked", "ada", "", key.prefix()],
        ["test", "password set", "ada", "", ""],
        ["test", "user removed", "ada", "", ""],
    ];
    assert_eq!(told, expected);
    assert!(events.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert_eq!(identity.audit(Some(events[3].id), 2).await.unwrap().len(), 2);
}

#[tokio::test]
async fn no_secret_lies_on_disk() {
    let mut place = Place::new();
    place.options.passwords.history = 5;
    let identity = place.with_ada().await;
    identity.set_password(&actor(), "ada", WRONG).await.unwrap();
    let session = login(&identity, WRONG).await.unwrap();
    let _ = identity.login("ada", "something else that was tried", None).await;
    let key = identity.add_key(&actor(), "ada").await.unwrap().0;
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(place.directory.path()).unwrap() {
        seen.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    let holds = |text: &[u8]| seen.windows(text.len()).any(|window| window == text);
    assert!(holds(b"$argon2id$"), "the right files were looked at");
    for secret in [PASSWORD, WRONG, "something else that was tried", &session, &key] {
        assert!(!holds(secret.as_bytes()), "{secret}");
        // Nor as bytes, nor a part that would make the rest easy to guess.
        assert!(!holds(&secret.as_bytes()[..16.min(secret.len())]), "{secret}");
    }
    assert!(!holds(&hex(&session)) && !holds(&hex(&key)));
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test]
async fn first_users_that_were_removed_stay_away() {
    let place = Place::new();
    let identity = place.open().await;
    let file = |name: &str| -> PathBuf { Path::new(place.directory.path()).join(name) };
    let start = async || {
        identity.ensure_key_file(&file("admin.key"), "admin", Role::Administrator).await.unwrap();
        identity.ensure_key_file(&file("client.key"), "client", Role::Submitter).await.unwrap();
    };
    start().await;
    let client = std::fs::read_to_string(file("client.key")).unwrap();
    let admin = std::fs::read_to_string(file("admin.key")).unwrap();
    identity.remove_user(&actor(), "client").await.unwrap();
    identity.revoke_key(&actor(), "admin", admin.trim()).await.unwrap();
    start().await;
    assert!(!good(&identity, client.trim()).await && !good(&identity, admin.trim()).await);
    assert_eq!(std::fs::read_to_string(file("admin.key")).unwrap(), admin, "the file stays as it is");
    std::fs::remove_file(file("client.key")).unwrap();
    std::fs::remove_file(file("admin.key")).unwrap();
    start().await;
    assert!(!file("client.key").exists(), "nobody comes back by itself");
    let renewed = std::fs::read_to_string(file("admin.key")).unwrap();
    assert!(good(&identity, renewed.trim()).await, "whoever is there gets a new key in place of a lost file");
    assert_eq!(identity.users().await.unwrap().len(), 1);
}
