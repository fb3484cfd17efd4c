//! `lazaret user` beside a running cluster: what it changes holds at once, and nothing secret is on a command line.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Up, command, lazaret};

const PASSWORD: &str = "correct horse battery";

/// How soon a running gateway takes notice, with room for a busy machine.
const NOTICE: Duration = Duration::from_secs(10);

/// `lazaret user ...` on a data directory, with that on its standard input.
fn user(data: &Path, input: &str, args: &[&str]) -> Output {
    let mut command = command(&["user", "--data", data.to_str().unwrap()]);
    let mut child =
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// The same, which must succeed; what it printed.
fn done(data: &Path, input: &str, args: &[&str]) -> String {
    let output = user(data, input, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The same, which must fail; the one line that it said.
fn failed(data: &Path, input: &str, args: &[&str]) -> String {
    let output = user(data, input, args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

struct Asking<'a> {
    up: &'a Up,
    http: reqwest::Client,
}

impl<'a> Asking<'a> {
    fn new(up: &'a Up) -> Self {
        Self { up, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    async fn login(&self, user: &str, password: &str) -> (StatusCode, Value) {
        let body = json!({"user": user, "password": password}).to_string();
        let sent = self.http.post(format!("{}/login", self.up.gateway.url)).body(body).send().await.unwrap();
        (sent.status(), sent.json().await.unwrap())
    }

    async fn session(&self, user: &str, password: &str) -> String {
        let (status, begun) = self.login(user, password).await;
        assert_eq!(status, StatusCode::OK, "{begun}");
        begun["session_id"].as_str().unwrap().to_owned()
    }

    async fn status(&self, key: &str) -> u16 {
        let url = format!("{}/file/6e603ae3bf5395ddaf17364fa0ac12c7", self.up.gateway.url);
        self.http.get(url).header("apikey", key).send().await.unwrap().status().as_u16()
    }

    /// That the gateway refuses the key soon, though it accepted it a moment ago.
    async fn refused_soon(&self, key: &str) {
        let begun = Instant::now();
        while self.status(key).await != 403 {
            assert!(begun.elapsed() < NOTICE, "the gateway takes no notice");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_administered_while_the_gateway_runs() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = Up::start(&data, &[]);
    let asking = Asking::new(&up);

    done(&data, &format!("{PASSWORD}\n"), &["add", "ada", "--password"]);
    let session = asking.session("ada", PASSWORD).await;
    assert_eq!(asking.status(&session).await, 200);
    let key = done(&data, "", &["key", "ada"]);
    assert_eq!((key.len(), asking.status(&key).await), (64, 200));
    assert!(done(&data, "", &["key", "ada", "--list"]).contains(&key[..8]));

    done(&data, "", &["key", "ada", "--revoke", &key[..8]]);
    asking.refused_soon(&key).await;
    assert_eq!(asking.status(&session).await, 200, "the session is another thing");

    done(&data, "another good password", &["passwd", "ada"]);
    asking.refused_soon(&session).await;
    assert_eq!(asking.login("ada", PASSWORD).await.0.as_u16(), 403);
    let session = asking.session("ada", "another good password").await;

    done(&data, "", &["role", "set", "reader", "--rights", "read-own,stat"]);
    done(&data, "", &["add", "cy", "--role", "reader"]);
    let reader = done(&data, "", &["key", "cy"]);
    let mut gateway = up.gateway.clone();
    gateway.key = reader.clone();
    assert_eq!(asking.status(&reader).await, 200);
    assert_eq!(gateway.post("a", "body").await.unwrap().0.as_u16(), 403, "it may read, and not submit");

    let users = lines(&done(&data, "", &["list", "--json"]));
    let names: Vec<_> = users.iter().map(|user| user["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ada", "admin", "client", "cy"]);
    assert_eq!((&users[0]["has_password"], &users[0]["sessions"]), (&json!(true), &json!(1)));
    assert!(done(&data, "", &["list"]).contains("administrator"));

    done(&data, "", &["rm", "ada"]);
    asking.refused_soon(&session).await;
    assert_eq!(asking.login("ada", "another good password").await.0.as_u16(), 403);

    let audit = done(&data, "", &["audit", "--json", "--last", "0"]);
    for secret in [PASSWORD, "another good password", &session, &key, &reader] {
        assert!(!audit.contains(secret));
    }
    let events = lines(&audit);
    let said: Vec<_> = events.iter().map(|event| event["action"].as_str().unwrap()).collect();
    let tail = ["user removed", "login failed"];
    assert_eq!(said[said.len() - 2..], tail);
    let login = events.iter().find(|event| event["action"] == "login").unwrap();
    assert_eq!((&login["actor"], &login["address"]), (&json!("ada"), &json!("127.0.0.1")));
    let added = events.iter().find(|event| event["object"] == "ada").unwrap();
    assert!(added["actor"].as_str().unwrap().starts_with("lazaret user (uid "), "{added}");
    assert_eq!(lines(&done(&data, "", &["audit", "--json", "--last", "3"])), events[events.len() - 3..]);
    assert!(done(&data, "", &["audit"]).contains("user removed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_lockouts_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = Up::start(&data, &[]);
    done(&data, PASSWORD, &["add", "ada", "--password"]);
    done(&data, PASSWORD, &["add", "bob", "--password"]);
    let session = Asking::new(&up).session("ada", PASSWORD).await;
    for _ in 0..5 {
        assert_eq!(Asking::new(&up).login("bob", "wrong").await.0.as_u16(), 403);
    }
    // Killed rather than stopped.
    drop(up);
    let up = Up::start(&data, &[]);
    let asking = Asking::new(&up);
    assert_eq!(asking.status(&session).await, 200);
    assert_eq!(asking.login("bob", PASSWORD).await.0.as_u16(), 403);
    done(&data, "", &["unlock", "bob"]);
    asking.session("bob", PASSWORD).await;
    done(&data, "", &["rm", "client"]);
    drop(up);
    let up = Up::start(&data, &[]);
    let client = std::fs::read_to_string(data.join("client.key")).unwrap();
    assert_eq!(Asking::new(&up).status(client.trim()).await, 403, "who was removed does not come back");
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = failed(&dir.path().join("nowhere"), "", &["list"]);
    assert!(nowhere.contains("nowhere/identity.db is not there"), "{nowhere}");

    let data = dir.path().join("data");
    let up = Up::start(&data, &[]);
    let fails = |input: &str, args: &[&str], why: &str| {
        let said = failed(&data, input, args);
        assert!(said.contains(why), "{said}");
    };
    fails("short\n", &["add", "ada", "--password"], "12 characters at least");
    fails("", &["add", "ada", "--password"], "no password");
    fails("", &["add", "admin"], "such a user already");
    fails("", &["add", "ada", "--role", "god"], "god");
    fails("", &["rm", "ada"], "no such user");
    fails("", &["key", "admin", "--revoke", "zzzz"], "no such key");
    fails("", &["role", "set", "x", "--rights", "fly"], "no right is named");
    fails("", &["role", "set", "viewer", "--rights", "stat"], "built-in");
    fails("", &["role", "rm", "viewer"], "built-in");
    fails("", &["role", "rm", "nobody"], "no such role");
    done(&data, "", &["role", "set", "clerk", "--rights", "stat"]);
    done(&data, "", &["add", "eve", "--role", "clerk"]);
    fails("", &["role", "rm", "clerk"], "one user has it");
    done(&data, "", &["add", "bob", "--role", "clerk"]);
    fails("", &["role", "rm", "clerk"], "2 users have it");
    fails("", &["rm", "admin"], "the last one who may manage users");
    done(&data, "", &["add", "root", "--role", "administrator"]);
    done(&data, "", &["rm", "admin"]);
    // There is no way to give a password on the command line.
    fails("", &["add", "ada", "--password=correct-horse"], "unexpected value");
    drop(up);
}

#[test]
fn settings_are_checked_and_hold_for_the_command_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = dir.path().join("cluster");
    assert!(lazaret(&["cluster", "init", cluster.to_str().unwrap()]).status.success());
    let config = cluster.join("gateway.yml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("idle_seconds: 1800") && text.contains("anonymous: false"), "{text}");
    let check = |text: &str| {
        std::fs::write(&config, text).unwrap();
        lazaret(&["gateway", "--config", config.to_str().unwrap(), "--check-config"])
    };
    for (from, to, why) in [
        ("idle_seconds: 1800", "idle_seconds: 5", "idle_seconds"),
        ("idle_seconds: 1800", "idle_minutes: 30", "idle_minutes"),
        ("attempts: 5", "attempts: 5\n  retries: 3", "retries"),
        ("history: 0", "history: 25", "history"),
        ("length_min: 12", "length_min: 31", "length_min"),
        ("window_seconds: 900", "window_seconds: 0", "window_seconds"),
    ] {
        assert!(text.contains(from), "{text}");
        let output = check(&text.replace(from, to));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(why), "{to}: {said}");
    }
    assert!(check(&text.replace("length_min: 12", "length_min: 20")).status.success());
    let output = command(&["user", "list", "--config", config.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("identity.db is not there"), "{said}");
}
