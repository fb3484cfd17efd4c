//! `lazaret user`: what can be asked.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct UserOptions {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub command: UserCommand,
}

/// Which gateway is meant. A running one takes notice of changes to users within a second.
#[derive(Debug, Args)]
pub struct Place {
    /// The data directory of `lazaret up` [default: lazaret-data]
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// A gateway's configuration file, which says where its results and users are
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "data")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Make a user
    Add {
        name: String,
        /// administrator, submitter, viewer, or one made with `user role set`
        #[arg(long, default_value = "submitter")]
        role: String,
        /// Give it a password, read from the terminal or from standard input, so that it can log in
        #[arg(long)]
        password: bool,
    },
    /// Show all users
    List {
        /// As JSON, one line a user
        #[arg(long)]
        json: bool,
    },
    /// Remove a user with its keys and sessions; what it submitted stays
    Rm { name: String },
    /// Set a user's password, read from the terminal or from standard input; its sessions end
    Passwd { name: String },
    /// Let a user log in again whom wrong passwords locked out
    Unlock { name: String },
    /// Make an API key for a user and print it; it is shown only now
    Key {
        name: String,
        /// Show the user's keys instead, by how they begin
        #[arg(long, conflicts_with = "revoke")]
        list: bool,
        /// Revoke the key that begins so instead
        #[arg(long, value_name = "PREFIX")]
        revoke: Option<String>,
    },
    /// Show roles and make your own
    #[command(subcommand)]
    Role(RoleCommand),
    /// Show who did what
    Audit {
        /// As JSON, one line an event
        #[arg(long)]
        json: bool,
        /// So many of the last events; 0: all
        #[arg(long, default_value_t = 100, value_name = "N")]
        last: usize,
    },
}

#[derive(Debug, Subcommand)]
pub enum RoleCommand {
    /// Show all roles and their rights
    List {
        /// As JSON, one line a role
        #[arg(long)]
        json: bool,
    },
    /// Make a role, or give one of yours other rights
    Set {
        name: String,
        /// Names of rights with commas; `user role list` shows all, as the administrator's
        #[arg(long)]
        rights: String,
    },
    /// Remove a role that no user has
    Rm { name: String },
}
