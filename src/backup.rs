//! `lazaret backup` and `lazaret restore`: the results and the users in one file, copied while they are in use, and their way back.
//!
//! A restore replaces the two files one after the other, each in one step, once everything in the backup was checked. If it is cut
//! short between the two, it can be run again.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lazaret_analysis::backup::{self, Copied};
use lazaret_identity::Identity;

use crate::cli::{BackupOptions, RestoreOptions};
use crate::user;

/// Makes a backup.
pub async fn backup(options: BackupOptions) -> anyhow::Result<ExitCode> {
    let config = user::gateway_config(&options.place)?;
    // A gateway makes the users' file when it is first started.
    let users = config.identity.exists().then_some(config.identity.as_path());
    let copied = backup::backup(&config.results, users, &options.target).await?;
    let mut out = crate::output::stdout();
    writeln!(out, "backed up {} to {}: {}", config.results.display(), options.target.display(), told(&copied))?;
    match users {
        Some(users) => writeln!(out, "with the users, roles and keys of {}", users.display())?,
        None => writeln!(out, "without users: {} is not there", config.identity.display())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts a backup in the place of the results, and of the users if it has them.
pub async fn restore(options: RestoreOptions) -> anyhow::Result<ExitCode> {
    let config = user::gateway_config(&options.place)?;
    let (results, from) = (&config.results, &options.from);
    let users = if options.keep_users { None } else { Users::prepare(&config.identity, from).await? };
    let (copied, kept): (Copied, Option<PathBuf>) = backup::restore(results, from).await?;
    let mut out = crate::output::stdout();
    writeln!(out, "restored {} from {}: {}", results.display(), from.display(), told(&copied))?;
    if let Some(kept) = kept {
        writeln!(out, "the former results are kept as {}", kept.display())?;
    }
    let Some(users) = users else {
        let why = if options.keep_users { "as asked" } else { "since the backup has none" };
        writeln!(out, "users, roles and keys stay as they are, {why}")?;
        return Ok(ExitCode::SUCCESS);
    };
    let kept = users.put_in_place().await?;
    writeln!(out, "restored {}: keys and users that were removed since are good again", config.identity.display())?;
    if let Some(kept) = kept {
        writeln!(out, "the former users are kept as {}", kept.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn told(copied: &Copied) -> String {
    format!("{} analyses ({} unfinished), {} bytes", copied.analyses, copied.unfinished, copied.bytes)
}

/// The users of a backup, checked and brought up to this build, beside those whose place they are to take.
struct Users {
    identity: PathBuf,
    prepared: PathBuf,
    /// Nobody opens the users' file while this is held.
    _alone: File,
}

impl Users {
    /// None if the backup has no users, as those of older builds.
    async fn prepare(identity: &Path, from: &Path) -> anyhow::Result<Option<Self>> {
        let alone = Identity::alone(identity)?;
        let mut prepared = identity.as_os_str().to_owned();
        prepared.push(".restoring");
        let users = Self { identity: identity.to_owned(), prepared: prepared.into(), _alone: alone };
        // What an earlier attempt left.
        users.remove();
        if !backup::users_in(from, &users.prepared).await? {
            return Ok(None);
        }
        Identity::bring_up(&users.prepared).await?;
        Ok(Some(users))
    }

    async fn put_in_place(self) -> anyhow::Result<Option<PathBuf>> {
        Ok(backup::put_in_place(&self.identity, &self.prepared).await?)
    }

    fn remove(&self) {
        for suffix in ["", "-wal", "-shm", "-journal", ".lock"] {
            let mut path = self.prepared.as_os_str().to_owned();
            path.push(suffix);
            let _ = fs::remove_file(PathBuf::from(path));
        }
    }
}

impl Drop for Users {
    /// Once it took its place there is nothing left to remove.
    fn drop(&mut self) {
        self.remove();
    }
}
