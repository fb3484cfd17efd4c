//! Users over REST, as programs that administer them know them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use common::{Station, ask, get, refused, submission};
use lazaret_identity::{Actor, Right, Rights, Role};
use serde_json::{Value, json};

const PASSWORD: &str = "correct horse battery";

fn request(method: Method, path: &str, key: &str, body: &Value) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path).header("apikey", key);
    builder.body(Body::from(if body.is_null() { String::new() } else { body.to_string() })).unwrap()
}

async fn done(router: &Router, method: Method, path: &str, key: &str, body: Value) -> Value {
    let (status, answer) = ask(router, request(method, path, key, &body)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

async fn users(router: &Router, key: &str) -> Vec<Value> {
    let (status, answer) = ask(router, get("/admin/user", key)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer.as_array().unwrap().clone()
}

fn number_of(users: &[Value], name: &str) -> i64 {
    users.iter().find(|user| user["name"] == name).unwrap()["id"].as_i64().unwrap()
}

#[tokio::test]
async fn a_user_is_made_listed_used_and_removed() {
    let station = Station::new().await;
    let router = station.router();
    let asked = json!({
        "name": "ada", "display_name": "Ada L.", "email": "ada@site.example", "description": "first", "roles": ["viewer"],
        "password": PASSWORD, "directory_id": 1, "ui_settings": {}, "api_key": "",
    });
    let made = done(&router, Method::POST, "/admin/user", &station.admin, asked).await;
    let key = made["api_key"].as_str().unwrap().to_owned();
    assert_eq!(key.len(), 64);
    for (field, value) in [
        ("name", json!("ada")),
        ("display_name", json!("Ada L.")),
        ("email", json!("ada@site.example")),
        ("description", json!("first")),
        ("roles", json!(["viewer"])),
        ("directory_id", json!(1)),
        ("ui_settings", json!({})),
    ] {
        assert_eq!(made[field], value, "{field}");
    }
    let all = users(&router, &station.admin).await;
    assert_eq!(all.len(), 4, "root, alice, bob and ada");
    let ada = all.iter().find(|user| user["name"] == "ada").unwrap();
    assert_eq!((&ada["email"], &ada["api_key"]), (&json!("ada@site.example"), &json!("")), "a key is shown once");
    assert!(!json!(all).to_string().contains(&key));

    // The key and the password are good for what the role may.
    assert_eq!(ask(&router, get("/stat/engines", &key)).await.0, StatusCode::OK);
    assert_eq!(ask(&router, get("/admin/user", &key)).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let login = json!({"user": "ada", "password": PASSWORD});
    let session = done(&router, Method::POST, "/login", "", login.clone()).await["session_id"].clone();
    let session = session.as_str().unwrap();

    // It changes its password, and its sessions end.
    let change = |old: &str, new: &str| json!({"old_password": old, "new_password": new});
    let path = "/user/changepassword";
    refused(&router, request(Method::POST, path, session, &change("wrong", "another horse battery")), 403).await;
    refused(&router, request(Method::POST, path, session, &change(PASSWORD, "short")), 400).await;
    refused(&router, request(Method::POST, path, "", &change(PASSWORD, "another horse battery")), 403).await;
    let session = done(&router, Method::POST, "/login", "", login).await["session_id"].clone();
    let session = session.as_str().unwrap();
    let changed = done(&router, Method::POST, path, session, change(PASSWORD, "another horse battery")).await;
    assert_eq!(changed, json!({"result": "Success"}));
    assert_eq!(ask(&router, get("/stat/engines", session)).await.0, StatusCode::FORBIDDEN);

    let number = number_of(&all, "ada");
    let removed = done(&router, Method::DELETE, &format!("/admin/user/{number}"), &station.admin, Value::Null).await;
    assert_eq!(removed, json!({"result": "Success"}));
    assert_eq!(ask(&router, get("/stat/engines", &key)).await.0, StatusCode::FORBIDDEN);
    let gone = request(Method::DELETE, &format!("/admin/user/{number}"), &station.admin, &Value::Null);
    assert_eq!(refused(&router, gone, 404).await, "Item does not exist");
    // Its number is nobody else's.
    let again = json!({"name": "ada"});
    done(&router, Method::POST, "/admin/user", &station.admin, again).await;
    assert!(number_of(&users(&router, &station.admin).await, "ada") > number);
}

#[tokio::test]
async fn what_makes_no_user_is_refused_without_repeating_it() {
    let station = Station::new().await;
    let router = station.router();
    for (body, word) in [
        (json!({"name": ""}), "name is missing"),
        (json!({"roles": ["viewer"]}), "name is missing"),
        (json!({"name": "n".repeat(257)}), "1 to"),
        (json!({"name": "alice"}), "already"),
        (json!({"name": "x", "password": "short"}), "characters"),
        (json!({"name": "x", "roles": ["nobody-has-it"]}), "role"),
        (json!({"name": "x", "roles": ["viewer", "submitter"]}), "one role"),
        (json!({"name": "x", "roles": ["anonymous"]}), "role"),
        (json!({"name": "x", "api_key": "0".repeat(36)}), "api_key"),
        (json!({"name": "x", "directory_id": 7}), "directory_id"),
        (json!({"name": "x", "description": "d".repeat(257)}), "256"),
        (json!({"name": 5, "password": "a secret that is not JSON"}), "JSON"),
    ] {
        let text = refused(&router, request(Method::POST, "/admin/user", &station.admin, &body), 400).await;
        assert!(text.contains(word) && !text.contains("a secret"), "{body}: {text}");
    }
    let broken = Request::post("/admin/user").header("apikey", &station.admin).body(Body::from("{\"name\":")).unwrap();
    refused(&router, broken, 400).await;
    for path in ["/admin/user", "/admin/user/", "/metascan_rest/admin/user", "/admin/user/alice", "/admin/user/1x"] {
        let nobody = request(Method::DELETE, path, &station.admin, &Value::Null);
        assert!(refused(&router, nobody, 400).await.contains("/admin/user/{user_id}"), "{path}");
    }
    assert_eq!(users(&router, &station.admin).await.len(), 3);
}

#[tokio::test]
async fn who_manages_users_can_give_and_take_no_more_than_it_has() {
    let station = Station::new().await;
    let router = station.router();
    let actor = Actor::system();
    let rights = Rights::of(&[Right::ManageUsers, Right::Submit, Right::ReadOwn]);
    station.identity.set_role(&actor, "personnel", rights).await.unwrap();
    station.identity.set_role(&actor, "drop-box", Rights::of(&[Right::Submit])).await.unwrap();
    station.identity.add_user(&actor, "clerk", &Role::named("personnel"), None).await.unwrap();
    let clerk = station.identity.add_key(&actor, "clerk").await.unwrap().0;

    let box_key =
        done(&router, Method::POST, "/admin/user", &clerk, json!({"name": "box", "roles": ["drop-box"]})).await;
    assert_eq!(ask(&router, submission(box_key["api_key"].as_str().unwrap(), b"x")).await.0, StatusCode::OK);
    for role in ["administrator", "submitter"] {
        let beyond = request(Method::POST, "/admin/user", &clerk, &json!({"name": "x", "roles": [role]}));
        refused(&router, beyond, 405).await;
    }
    let all = users(&router, &clerk).await;
    let root = request(Method::DELETE, &format!("/admin/user/{}", number_of(&all, "root")), &clerk, &Value::Null);
    refused(&router, root, 405).await;
    let path = format!("/admin/user/{}", number_of(&all, "box"));
    done(&router, Method::DELETE, &path, &clerk, Value::Null).await;
    // Who did it is on record.
    let log = station.identity.audit(None, 100).await.unwrap();
    assert!(log.iter().any(|event| event.actor == "clerk" && event.object == "box"));
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let station = Station::new().await;
    let router = station.router();
    let root = number_of(&users(&router, &station.admin).await, "root");
    let removal = || request(Method::DELETE, &format!("/admin/user/{root}"), &station.admin, &Value::Null);
    let text = refused(&router, removal(), 400).await;
    assert!(text.contains("the last one"), "{text}");
    assert_eq!(ask(&router, get("/admin/user", &station.admin)).await.0, StatusCode::OK);
    // Whoever else may manage users will do.
    let actor = Actor::system();
    let (identity, personnel) = (&station.identity, Rights::of(&[Right::ManageUsers]));
    identity.set_role(&actor, "personnel", personnel).await.unwrap();
    identity.add_user(&actor, "clerk", &Role::named("personnel"), None).await.unwrap();
    assert_eq!(ask(&router, removal()).await.0, StatusCode::OK);
    // And stays in turn, whichever way it would go.
    let removed = identity.remove_user(&actor, "clerk").await.unwrap_err();
    assert!(removed.to_string().contains("the last one"), "{removed}");
    let demoted = identity.set_role(&actor, "personnel", Rights::of(&[Right::Submit])).await.unwrap_err();
    assert!(demoted.to_string().contains("the last one"), "{demoted}");
    identity.set_role(&actor, "personnel", Rights::of(&[Right::ManageUsers, Right::Submit])).await.unwrap();
}
