//! Who may ask what: every route, asked by everybody there is, against the table of what each is to answer.
//!
//! A new route is a line in [`ROUTES`]. What lies behind a route has tests of its own; here it is asked for things that do
//! not exist, so that a caller who is let in is told so by the route itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use common::{Station, ask};
use lazaret_gateway::GatewayOptions;
use lazaret_identity::{Actor, Clock, Identity, IdentityOptions, Right, Rights, Role};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ID: &str = "6e603ae3bf5395ddaf17364fa0ac12c7";
const PASSWORD: &str = "correct horse battery";

/// What the callers of a route are answered.
struct Route {
    method: Method,
    path: &'static str,
    /// Whoever has no key, or a wrong one.
    keyless: u16,
    /// Whoever has a key and none of `rights`.
    rightless: u16,
    /// Any of these rights opens it. None: the route is public.
    rights: &'static [Right],
    /// Whoever is let in. The request asks for nothing that exists.
    let_in: u16,
}

const fn route(
    method: Method,
    path: &'static str,
    (keyless, rightless): (u16, u16),
    rights: &'static [Right],
    let_in: u16,
) -> Route {
    Route { method, path, keyless, rightless, rights, let_in }
}

const READ: &[Right] = &[Right::ReadOwn, Right::ReadAll];
const CANCEL: &[Right] = &[Right::CancelOwn, Right::CancelAll];
const RULES: &[Right] = &[Right::Submit, Right::ReadAll, Right::AdminRead];

/// All routes but those in [`ELSEWHERE`]. What stands in braces is [`ID`], which nothing has.
const ROUTES: &[Route] = &[
    // Empty: what is let in is told that.
    route(Method::POST, "/file", (403, 403), &[Right::Submit], 422),
    route(Method::POST, "/file/sync", (403, 403), &[Right::Submit], 422),
    route(Method::GET, "/file/{data_id}", (403, 405), READ, 200),
    route(Method::GET, "/hash/{hash}", (403, 403), &[Right::Search], 200),
    route(Method::GET, "/file/rules", (403, 403), RULES, 200),
    route(Method::GET, "/file/converted/{data_id}", (403, 405), &[Right::Download], 404),
    route(Method::GET, "/file/download/{data_id}", (403, 405), &[Right::Download], 404),
    route(Method::POST, "/file/{data_id}/cancel", (400, 405), CANCEL, 404),
    // Makes one, which is no analysis.
    route(Method::POST, "/file/batch", (400, 403), &[Right::Batch], 200),
    route(Method::POST, "/file/batch/{batch_id}/close", (400, 403), &[Right::Batch], 404),
    route(Method::GET, "/file/batch/{batch_id}", (400, 403), READ, 404),
    route(Method::GET, "/file/batch/{batch_id}/certificate", (400, 403), READ, 404),
    route(Method::POST, "/file/batch/{batch_id}/cancel", (400, 403), CANCEL, 404),
    route(Method::GET, "/admin/license", (403, 405), &[Right::AdminRead], 200),
    route(Method::GET, "/admin/config/healthcheck", (403, 405), &[Right::Stat], 200),
    route(Method::GET, "/stat/engines", (403, 403), &[Right::Stat], 200),
    route(Method::GET, "/stat/nodes", (403, 405), &[Right::Stat], 200),
    route(Method::GET, "/admin/user", (403, 405), &[Right::ManageUsers], 200),
    // Without a body.
    route(Method::POST, "/admin/user", (403, 405), &[Right::ManageUsers], 400),
    // With an id that is no number.
    route(Method::DELETE, "/admin/user/{user_id}", (403, 405), &[Right::ManageUsers], 400),
    route(Method::GET, "/readyz", (200, 200), &[], 200),
    route(Method::GET, "/version", (200, 200), &[], 200),
    route(Method::GET, "/openapi.json", (200, 200), &[], 200),
];

/// Routes that are asked otherwise: sessions have tests below, passwords in `users.rs`, and the page is no JSON.
const ELSEWHERE: [(Method, &str); 4] = [
    (Method::POST, "/login"),
    (Method::POST, "/logout"),
    (Method::POST, "/user/changepassword"),
    (Method::GET, "/docs"),
];

/// Somebody who asks.
struct Caller {
    name: &'static str,
    key: Option<String>,
    /// None: the key is good for nothing.
    rights: Option<Rights>,
}

async fn answer(router: &Router, route: &Route, prefix: &str, key: Option<&str>) -> (u16, Value) {
    let asked = |segment| if str::starts_with(segment, '{') { ID } else { segment };
    let path = route.path.split('/').map(asked).collect::<Vec<_>>().join("/");
    let mut request = Request::builder().method(route.method.clone()).uri(format!("{prefix}{path}"));
    if let Some(key) = key {
        request = request.header("apikey", key);
    }
    if route.method == Method::POST {
        request = request.header("content-length", 0);
    }
    let (status, document) = ask(router, request.body(Body::empty()).unwrap()).await;
    (status.as_u16(), document)
}

async fn session(identity: &Identity, name: &str) -> String {
    identity.login(name, PASSWORD, None).await.unwrap().id.0
}

/// One of each kind that is let in or not.
async fn callers(station: &Station) -> Vec<Caller> {
    let (identity, actor) = (&station.identity, Actor::system());
    let own = Role::Custom("nothing".to_owned());
    identity.set_role(&actor, "nothing", Rights::NONE).await.unwrap();
    for (name, role) in [("viewer", &Role::Viewer), ("nothing", &own), ("locked", &Role::Submitter)] {
        identity.add_user(&actor, name, role, Some(PASSWORD)).await.unwrap();
    }
    identity.set_password(&actor, "alice", PASSWORD).await.unwrap();
    let key = async |name: &str| Some(identity.add_key(&actor, name).await.unwrap().0);
    let (revoked, locked) = (key("alice").await, key("locked").await);
    identity.revoke_key(&actor, "alice", revoked.as_deref().unwrap()).await.unwrap();
    let ended = session(identity, "alice").await;
    identity.logout(&ended, None).await.unwrap();
    // Of yesterday, by a clock that shows it.
    let yesterday = Clock::new(|| Clock::system().unix_ms().saturating_sub(24 * 3600 * 1000));
    let options = IdentityOptions { clock: yesterday, ..IdentityOptions::default() };
    let expired = session(&Identity::open_with(station.identity_file(), options).await.unwrap(), "alice").await;
    while identity.users().await.unwrap().iter().all(|user| user.locked_until_ms == 0) {
        assert!(identity.login("locked", "wrong", None).await.is_err());
    }
    let rights = |role: Role| role.built_in_rights();
    let caller = |name, key, rights| Caller { name, key, rights };
    vec![
        caller("no key", None, None),
        caller("an empty key", Some(String::new()), None),
        caller("a wrong key", Some("0".repeat(64)), None),
        caller("nonsense", Some("wrong".to_owned()), None),
        caller("a password", Some(PASSWORD.to_owned()), None),
        caller("a revoked key", revoked, None),
        caller("an ended session", Some(ended), None),
        caller("an expired session", Some(expired), None),
        caller("an administrator", Some(station.admin.clone()), rights(Role::Administrator)),
        caller("a submitter", Some(station.alice.clone()), rights(Role::Submitter)),
        caller("a submitter's session", Some(session(identity, "alice").await), rights(Role::Submitter)),
        caller("a viewer", key("viewer").await, rights(Role::Viewer)),
        caller("a viewer's session", Some(session(identity, "viewer").await), rights(Role::Viewer)),
        caller("a locked user's key", locked, rights(Role::Submitter)),
        caller("a role without rights", key("nothing").await, Some(Rights::NONE)),
    ]
}

#[tokio::test]
async fn every_route_answers_every_caller_as_the_table_says() {
    let station = Station::new().await;
    station.attend().await;
    let router = station.router();
    for caller in callers(&station).await {
        for route in ROUTES {
            let expected = match caller.rights {
                _ if route.rights.is_empty() => route.let_in,
                None => route.keyless,
                Some(rights) if rights.intersects(Rights::of(route.rights)) => route.let_in,
                Some(_) => route.rightless,
            };
            for prefix in ["", "/metascan_rest"] {
                let (status, document) = answer(&router, route, prefix, caller.key.as_deref()).await;
                let what = format!("{} {prefix}{} by {}: {document}", route.method, route.path, caller.name);
                assert_eq!(status, expected, "{what}");
                if caller.rights.is_none() && !route.rights.is_empty() {
                    assert_eq!(document, json!({"err": "Access denied"}), "{what}");
                }
                if status >= 400 {
                    assert!(document.as_object().unwrap().len() == 1 && document["err"].is_string(), "{what}");
                }
            }
        }
    }
    station.assert_nothing_created().await;
}

#[tokio::test]
async fn the_table_has_every_route_that_there_is() {
    let station = Station::new().await;
    let described = ask(&station.router(), common::get("/openapi.json", "")).await.1;
    let mut described: Vec<(String, String)> = described["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |method| (path, method)))
        .map(|(path, method)| (path.clone(), method.to_uppercase()))
        .collect();
    let tabled = ROUTES.iter().map(|route| (&route.method, route.path));
    let elsewhere = ELSEWHERE.iter().map(|(method, path)| (method, *path));
    let mut known: Vec<(String, String)> =
        tabled.chain(elsewhere).map(|(method, path)| (path.to_owned(), method.to_string())).collect();
    described.sort();
    known.sort();
    assert_eq!(known, described);
}

#[tokio::test]
async fn without_a_key_a_route_is_open_if_that_is_set_and_whoever_has_none_may() {
    let station = Station::new().await;
    station.attend().await;
    let router = station.gateway(GatewayOptions { anonymous: true, ..station.options() }).router();
    let rights = Role::Anonymous.built_in_rights().unwrap();
    for route in ROUTES {
        let open = route.rights.is_empty() || rights.intersects(Rights::of(route.rights));
        let (status, document) = answer(&router, route, "", None).await;
        assert_eq!(status, if open { route.let_in } else { route.keyless }, "{} {document}", route.path);
        let (status, document) = answer(&router, route, "", Some("wrong")).await;
        assert_eq!(status, route.keyless, "{} {document}", route.path);
    }
}

#[tokio::test]
async fn a_viewer_sees_what_everybody_submitted_and_a_submitter_its_own() {
    let station = Station::new().await;
    let actor = Actor::system();
    station.identity.add_user(&actor, "viewer", &Role::Viewer, None).await.unwrap();
    let viewer = station.identity.add_key(&actor, "viewer").await.unwrap().0;
    let router = station.router();
    let data_id = common::accepted(&router, common::submission(&station.alice, b"alice's")).await;
    let path = format!("/file/{data_id}");
    for (key, sees) in [(&station.alice, true), (&station.bob, false), (&viewer, true), (&station.admin, true)] {
        let (status, document) = ask(&router, common::get(&path, key)).await;
        assert_eq!(status, 200);
        assert_eq!(document["data_id"].is_string(), sees, "{document}");
        if !sees {
            assert_eq!(document, json!({data_id.to_string(): "Not Found"}));
        }
    }
}

#[tokio::test]
async fn without_a_key_files_are_taken_only_where_that_is_set() {
    let station = Station::new().await;
    let router = station.gateway(GatewayOptions { anonymous: true, ..station.options() }).router();
    let post = |key: Option<&str>| {
        let mut request = Request::post("/file").header("content-length", 1);
        if let Some(key) = key {
            request = request.header("apikey", key);
        }
        request.body(Body::from("x")).unwrap()
    };
    let data_id = common::accepted(&router, post(None)).await;
    let record = station.record(data_id).await;
    assert_eq!(
        (record.new.principal.user_name.as_str(), record.new.principal.role.as_str()),
        ("anonymous", "anonymous")
    );
    let read = |id: &str| Request::get(format!("/file/{id}")).body(Body::empty()).unwrap();
    assert_eq!(ask(&router, read(&data_id.to_string())).await.1["data_id"], data_id.to_string());
    // A user's results are not anybody's, and a wrong key is not none.
    let alices = common::accepted(&router, post(Some(&station.alice))).await.to_string();
    assert_eq!(ask(&router, read(&alices)).await.1, json!({alices: "Not Found"}));
    common::accepted(&router, post(Some(""))).await;
    for wrong in ["wrong", &"0".repeat(64), &"x".repeat(1000)] {
        common::refused(&router, post(Some(wrong)), 403).await;
    }
    // What any key opens is not open to whoever has none.
    let (_, document) = ask(&router, Request::get("/readyz?verbose=true").body(Body::empty()).unwrap()).await;
    assert_eq!(document.as_object().unwrap().len(), 1, "{document}");
    common::refused(&router, Request::post("/logout").body(Body::empty()).unwrap(), 403).await;
}

fn login(body: impl Into<Body>) -> Request<Body> {
    // What curl says of whatever it sends.
    Request::post("/login").header("content-type", "application/x-www-form-urlencoded").body(body.into()).unwrap()
}

fn logout(key: &str) -> Request<Body> {
    Request::post("/metascan_rest/logout").header("apikey", key).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_session_is_a_key_from_login_to_logout() {
    let station = Station::new().await;
    station.identity.set_password(&Actor::system(), "alice", PASSWORD).await.unwrap();
    let router = station.router();
    let credentials = json!({"user": "alice", "password": PASSWORD}).to_string();
    let (status, begun) = ask(&router, login(credentials.clone())).await;
    assert_eq!(status, 200, "{begun}");
    assert_eq!(begun.as_object().unwrap().len(), 2, "{begun}");
    let session = begun["session_id"].as_str().unwrap();
    assert!(begun["oms-csrf-token"].as_str().unwrap().len() >= 32);

    let data_id = common::accepted(&router, common::submission(session, b"by session")).await;
    assert_eq!(station.record(data_id).await.new.principal.user_name, "alice");
    let path = format!("/file/{data_id}");
    for key in [session, &station.alice] {
        assert_eq!(ask(&router, common::get(&path, key)).await.1["data_id"], data_id.to_string());
    }
    let by_query = Request::get(format!("{path}?apikey={session}")).body(Body::empty()).unwrap();
    assert_eq!(ask(&router, by_query).await.0, 200);

    let (status, ended) = ask(&router, logout(session)).await;
    assert_eq!((status.as_u16(), ended), (200, json!({"response": "Logout success"})));
    common::refused(&router, common::get(&path, session), 403).await;
    for gone in [session, "", "nonsense", &"0".repeat(64)] {
        assert_eq!(common::refused(&router, logout(gone), 403).await, "Access denied");
    }
    let text = common::refused(&router, logout(&station.alice), 400).await;
    assert!(text.contains("not a session"), "{text}");
    assert_eq!(ask(&router, common::get(&path, &station.alice)).await.0, 200, "the key stays good");
}

#[tokio::test]
async fn a_login_that_fails_says_nothing_of_why() {
    let station = Station::new().await;
    station.identity.set_password(&Actor::system(), "alice", PASSWORD).await.unwrap();
    let router = station.router();
    let wrong = |user: &str, password: &str| login(json!({"user": user, "password": password}).to_string());
    for (user, password) in [("alice", "wrong"), ("bob", ""), ("nobody", PASSWORD), ("", ""), ("alice\n", PASSWORD)] {
        assert_eq!(common::refused(&router, wrong(user, password), 403).await, "Failed to login", "{user}");
    }
    for _ in 0..IdentityOptions::default().lockout.attempts {
        common::refused(&router, wrong("alice", "wrong"), 403).await;
    }
    assert_eq!(common::refused(&router, wrong("alice", PASSWORD), 403).await, "Failed to login", "locked out");

    for body in [
        "",
        "user=alice&password=hunter22",
        "[]",
        r#"{"user": "alice"}"#,
        r#"{"user": "alice", "password": 22}"#,
        r#"{"user": "hunter22", "password": "hunter22""#,
    ] {
        let text = common::refused(&router, login(body), 400).await;
        assert!(text.contains("must be JSON") && !text.contains("hunter"), "{text}");
    }
    let long = format!(r#"{{"user": "alice", "password": "{}"}}"#, "x".repeat(100_000));
    common::refused(&router, login(long), 400).await;
    let other_method = Request::get("/login").body(Body::empty()).unwrap();
    common::refused(&router, other_method, 405).await;
}

/// One request over a connection of its own from an address of the machine's; the answer's status and JSON.
async fn from(address: &str, to: SocketAddr, head: &str, body: &str) -> (u16, Value) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
    let mut stream: TcpStream = socket.connect(to).await.unwrap();
    let length = body.len();
    let request = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn a_session_is_good_from_the_address_of_its_login() {
    let station = Station::new().await;
    station.identity.set_password(&Actor::system(), "alice", PASSWORD).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(station.gateway(GatewayOptions::default()).serve(listener, async {
        let _ = stopped.await;
    }));
    let credentials = json!({"user": "alice", "password": PASSWORD}).to_string();
    let (status, begun) = from("127.0.0.1", to, "POST /login HTTP/1.1", &credentials).await;
    assert_eq!(status, 200, "{begun}");
    let session = begun["session_id"].as_str().unwrap();
    let read = format!("GET /file/{ID} HTTP/1.1\r\napikey: {session}");
    assert_eq!(from("127.0.0.1", to, &read, "").await, (200, json!({ID: "Not Found"})));
    assert_eq!(from("127.0.0.2", to, &read, "").await, (403, json!({"err": "Access denied"})));
    let key = format!("GET /file/{ID} HTTP/1.1\r\napikey: {}", station.alice);
    assert_eq!(from("127.0.0.2", to, &key, "").await.0, 200, "a key is good from everywhere");
    let audit = station.identity.audit(None, 1).await.unwrap();
    assert_eq!((audit[0].action.as_str(), audit[0].address.as_deref()), ("login", Some("127.0.0.1")));
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}
