//! Keys, principals and key files, through the crate's face.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lazaret_identity::{Identity, IdentityFault, Principal, Role};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn keys_stand_for_their_users() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("identity.db");
    let identity = Identity::open(&path).await.unwrap();
    let ada = identity.create_key("ada", Role::Administrator).await.unwrap();
    let bob = identity.create_key("bob", Role::Submitter).await.unwrap();
    let bob_again = identity.create_key("bob", Role::Submitter).await.unwrap();

    // By whoever made them, by another process, and after a restart.
    let other = Identity::open(&path).await.unwrap();
    for identity in [&identity, &other] {
        for _ in 0..2 {
            let principal = identity.authenticate(&ada.0).await.unwrap().unwrap();
            assert_eq!((principal.user_name.as_str(), principal.role), ("ada", Role::Administrator));
            let principals: Vec<Principal> = [
                identity.authenticate(&bob.0).await.unwrap().unwrap(),
                identity.authenticate(&bob_again.0).await.unwrap().unwrap(),
            ]
            .into();
            assert_eq!(principals[0], principals[1], "all keys of a user stand for one principal");
            assert_eq!(principals[0].role.as_str(), "submitter");
            assert_ne!(principals[0].user_id, principal.user_id);
        }
    }
    let late = identity.create_key("cy", Role::Submitter).await.unwrap();
    assert!(other.authenticate(&late.0).await.unwrap().is_some(), "keys made elsewhere are known at once");
}

#[tokio::test]
async fn what_is_no_key_stands_for_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let identity = Identity::open(directory.path().join("identity.db")).await.unwrap();
    let key = identity.create_key("ada", Role::Submitter).await.unwrap().0;
    let mut near = key.clone();
    let last = if near.pop() == Some('0') { '1' } else { '0' };
    near.push(last);
    for wrong in ["", "x", &key[1..], &near, &format!("{key}0"), &format!(" {key}"), &"0".repeat(64), &"é".repeat(32)]
    {
        assert_eq!(identity.authenticate(wrong).await.unwrap(), None, "{wrong}");
    }
}

#[tokio::test]
async fn a_user_keeps_its_role_and_has_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let identity = Identity::open(directory.path().join("identity.db")).await.unwrap();
    identity.create_key("ada", Role::Submitter).await.unwrap();
    let error = identity.create_key("ada", Role::Administrator).await.unwrap_err();
    assert!(matches!(error.source, IdentityFault::OtherRole { .. }), "{error}");
    for name in ["", "a\nb", &"x".repeat(257)] {
        let error = identity.create_key(name, Role::Submitter).await.unwrap_err();
        assert!(matches!(error.source, IdentityFault::Name { .. }), "{error}");
    }
}

#[tokio::test]
async fn keys_are_on_no_disk_and_for_the_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("identity.db");
    let identity = Identity::open(&path).await.unwrap();
    let key = identity.create_key("somebody of note", Role::Submitter).await.unwrap().0;
    let raw: Vec<u8> = (0..64).step_by(2).map(|at| u8::from_str_radix(&key[at..at + 2], 16).unwrap()).collect();
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        seen.extend(std::fs::read(&path).unwrap());
    }
    let holds = |bytes: &[u8]| seen.windows(bytes.len()).any(|window| window == bytes);
    assert!(holds(b"somebody of note"), "the right files were looked at");
    assert!(!holds(key.as_bytes()) && !holds(&raw));
}

#[tokio::test]
async fn a_key_file_is_made_once_and_checked_after() {
    let directory = tempfile::tempdir().unwrap();
    let identity = Identity::open(directory.path().join("identity.db")).await.unwrap();
    let file = directory.path().join("admin.key");
    identity.ensure_key_file(&file, "admin", Role::Administrator).await.unwrap();
    assert_eq!(mode(&file), 0o600);
    let content = std::fs::read_to_string(&file).unwrap();
    let principal = identity.authenticate(content.trim()).await.unwrap().unwrap();
    assert_eq!((principal.user_name.as_str(), &principal.role), ("admin", &Role::Administrator));

    identity.ensure_key_file(&file, "admin", Role::Administrator).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), content, "a file that is there stays");
    let error = identity.ensure_key_file(&file, "client", Role::Submitter).await.unwrap_err();
    assert!(matches!(error.source, IdentityFault::OtherRole { .. }), "{error}");

    let stranger = Identity::open(directory.path().join("other.db")).await.unwrap();
    let error = stranger.ensure_key_file(&file, "admin", Role::Administrator).await.unwrap_err();
    assert!(matches!(error.source, IdentityFault::UnknownKey), "{error}");
    assert!(error.to_string().contains("admin.key") && !error.to_string().contains(content.trim()), "{error}");
    assert!(!format!("{error:?}").contains(content.trim()));

    std::fs::write(&file, "not a key").unwrap();
    let error = identity.ensure_key_file(&file, "admin", Role::Administrator).await.unwrap_err();
    assert!(matches!(error.source, IdentityFault::NoKey), "{error}");

    std::fs::remove_file(&file).unwrap();
    identity.ensure_key_file(&file, "admin", Role::Administrator).await.unwrap();
    let again = identity.authenticate(std::fs::read_to_string(&file).unwrap().trim()).await.unwrap().unwrap();
    assert_eq!(again, principal, "a new key of the same user");

    let nowhere = directory.path().join("nowhere").join("k");
    let error = identity.ensure_key_file(&nowhere, "admin", Role::Administrator).await.unwrap_err().to_string();
    assert!(error.contains("nowhere/k") && error.contains("directory must exist"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_at_once_agree_on_the_key_file() {
    let directory = tempfile::tempdir().unwrap();
    let (database, file) = (directory.path().join("identity.db"), directory.path().join("admin.key"));
    let mut starting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (database, file) = (database.clone(), file.clone());
        starting.spawn(async move {
            let identity = Identity::open(&database).await.unwrap();
            identity.ensure_key_file(&file, "admin", Role::Administrator).await.unwrap();
            std::fs::read_to_string(&file).unwrap()
        });
    }
    let seen = starting.join_all().await;
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "everybody read the same key");
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".new"))
        .collect();
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = Identity::open(directory.path().join("nowhere").join("i.db")).await.unwrap_err().to_string();
    assert!(error.contains("nowhere/i.db") && error.contains("directory must exist"), "{error}");

    let path = directory.path().join("identity.db");
    drop(Identity::open(&path).await.unwrap());
    let mut connection = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&path)).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, 'later', 1, x'00', 0)";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let error = Identity::open(&path).await.unwrap_err();
    assert!(matches!(error.source, IdentityFault::NewerSchema { found: 9999, .. }), "{error}");
}
