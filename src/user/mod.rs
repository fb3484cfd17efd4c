//! `lazaret user`: users, passwords, keys, roles and the audit log, straight in the identity database.
//!
//! It needs no running gateway and disturbs none: who may write the file is an administrator. Passwords come from the
//! terminal or from standard input, never from the command line, which others can see.

mod secret;
mod show;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use lazaret_identity::{Actor, AuditEvent, Identity, Rights, Role};

use crate::cli::{JudgingOptions, Place, RoleCommand, UserCommand, UserOptions};
use crate::config::{self, GatewayConfig};
use crate::up;

/// Events of the audit log that are read at once.
const AUDIT_PAGE: u32 = 1000;

/// Where users are when nothing else was said: where `lazaret up` keeps them.
const DATA_DEFAULT: &str = "lazaret-data";

/// Runs the command.
pub async fn run(options: UserOptions) -> anyhow::Result<ExitCode> {
    let identity = open(&options.place).await?;
    let actor = Actor::new(format!("lazaret user (uid {})", rustix::process::getuid().as_raw()), None);
    let mut out = crate::output::stdout();
    match options.command {
        UserCommand::Add { name, role, password } => {
            let password = if password { Some(secret::new_password().await?) } else { None };
            let role = Role::named(&role);
            identity.add_user(&actor, &name, &role, password.as_ref().map(|password| password.as_str())).await?;
            let next = if password.is_some() { "log in" } else { "do nothing before `lazaret user key` gave it a key" };
            writeln!(out, "added {name} ({role}), who can {next}")?;
        }
        UserCommand::List { json } => show::users(&identity.users().await?, json)?,
        UserCommand::Rm { name } => {
            identity.remove_user(&actor, &name).await?;
            writeln!(out, "removed {name}")?;
        }
        UserCommand::Passwd { name } => {
            let password = secret::new_password().await?;
            identity.set_password(&actor, &name, &password).await?;
            writeln!(out, "set the password of {name} and ended its sessions")?;
        }
        UserCommand::Unlock { name } => {
            identity.unlock(&actor, &name).await?;
            writeln!(out, "{name} can log in")?;
        }
        UserCommand::Key { name, list: true, .. } => show::keys(&identity.keys(&name).await?)?,
        UserCommand::Key { name, revoke: Some(prefix), .. } => {
            let revoked = identity.revoke_key(&actor, &name, &prefix).await?;
            writeln!(out, "revoked the key {revoked}... of {name}")?;
        }
        UserCommand::Key { name, .. } => writeln!(out, "{}", identity.add_key(&actor, &name).await?.0)?,
        UserCommand::Role(command) => role(&identity, &actor, command).await?,
        UserCommand::Audit { json, last } => show::audit(&last_events(&identity, last).await?, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn role(identity: &Identity, actor: &Actor, command: RoleCommand) -> anyhow::Result<()> {
    match command {
        RoleCommand::List { json } => show::roles(&identity.roles().await?, json)?,
        RoleCommand::Set { name, rights } => {
            let rights: Rights = rights.parse()?;
            identity.set_role(actor, &name, rights).await?;
            writeln!(crate::output::stdout(), "the role {name} may: {rights}")?;
        }
        RoleCommand::Rm { name } => {
            identity.remove_role(actor, &name).await?;
            writeln!(crate::output::stdout(), "removed the role {name}")?;
        }
    }
    Ok(())
}

/// The identity database of a gateway that was started once.
async fn open(place: &Place) -> anyhow::Result<Identity> {
    let config = gateway_config(place)?;
    let file: &PathBuf = &config.identity;
    if !file.try_exists().with_context(|| format!("cannot look for {}", file.display()))? {
        bail!("{} is not there: start the gateway once, or say where with --data or --config", file.display());
    }
    Ok(Identity::open_with(file, config.identity_options()).await?)
}

/// The configuration of the gateway that is meant.
pub fn gateway_config(place: &Place) -> anyhow::Result<GatewayConfig> {
    match &place.config {
        Some(file) => config::load(file),
        None => {
            let data = place.data.as_deref().unwrap_or(Path::new(DATA_DEFAULT));
            Ok(up::gateway_config(data, &JudgingOptions::default()))
        }
    }
}

/// The last events, the oldest of them first.
async fn last_events(identity: &Identity, last: usize) -> anyhow::Result<Vec<AuditEvent>> {
    let wanted = if last == 0 { usize::MAX } else { last };
    let mut events: Vec<AuditEvent> = Vec::new();
    while events.len() < wanted {
        let left = u32::try_from(wanted.saturating_sub(events.len())).unwrap_or(u32::MAX);
        let page = identity.audit(events.last().map(|event| event.id), left.min(AUDIT_PAGE)).await?;
        if page.is_empty() {
            break;
        }
        events.extend(page);
    }
    events.reverse();
    Ok(events)
}
