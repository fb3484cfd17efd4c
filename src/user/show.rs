//! How users, keys, roles and events are printed: tables for people, JSON lines for programs.

use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use lazaret_identity::{AuditEvent, KeyInfo, RoleInfo, UserInfo};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub fn users(users: &[UserInfo], json: bool) -> anyhow::Result<()> {
    print(users, json, &["User", "Role", "Made", "Password", "Keys", "Sessions", "Locked out until"], |user| {
        vec![
            user.name.clone(),
            user.role.clone(),
            at(user.created_ms),
            if user.has_password { "yes" } else { "no" }.to_owned(),
            user.keys.to_string(),
            user.sessions.to_string(),
            at(user.locked_until_ms),
        ]
    })
}

pub fn keys(keys: &[KeyInfo]) -> anyhow::Result<()> {
    print(keys, false, &["Key begins", "Made"], |key| vec![key.prefix.clone(), at(key.created_ms)])
}

pub fn roles(roles: &[RoleInfo], json: bool) -> anyhow::Result<()> {
    print(roles, json, &["Role", "Rights"], |role| vec![role.name.clone(), role.rights.replace(',', " ")])
}

pub fn audit(events: &[AuditEvent], json: bool) -> anyhow::Result<()> {
    print(events, json, &["Time", "Who", "What", "Whom", "From", "Detail"], |event| {
        vec![
            at(event.at_ms),
            event.actor.clone(),
            event.action.clone(),
            event.object.clone(),
            event.address.clone().unwrap_or_default(),
            event.detail.clone(),
        ]
    })
}

fn print<T: Serialize>(
    items: &[T],
    json: bool,
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> anyhow::Result<()> {
    let mut out = crate::output::stdout();
    if json {
        for item in items {
            serde_json::to_writer(&mut out, item)?;
            writeln!(out)?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    items.iter().for_each(|item| {
        table.add_row(row(item));
    });
    writeln!(out, "{table}")?;
    Ok(())
}

/// A time for people, to the second; nothing for one that is not known.
fn at(unix_ms: i64) -> String {
    if unix_ms == 0 {
        return String::new();
    }
    let time = OffsetDateTime::from_unix_timestamp(unix_ms.div_euclid(1000)).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}
