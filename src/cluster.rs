//! `lazaret cluster`: make a cluster's files; show and change a running one.

mod admin;
mod change;
mod members;
mod rotate;
mod status;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use lazaret_node_client::cluster::Cluster;
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_node_client::{CredentialFiles, Environment};
use lazaret_protocol::message::Request;

pub use admin::{Admin, ask_all, survey, told};

use crate::cli::{ClusterCommand, ClusterFileOption};
use crate::components::{quic_cluster, quic_cluster_as};
use crate::init;

/// Runs the command.
pub async fn run(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::Init(options) => {
            let file = init::init(&options, &*Environment::system().random)?;
            writeln!(crate::output::stdout(), "{}", file.display())?;
            Ok(ExitCode::SUCCESS)
        }
        ClusterCommand::Status(options) => {
            with_cluster(&options.cluster, async |cluster| status::status(cluster, options.json).await).await
        }
        ClusterCommand::Map(options) => {
            with_cluster(&options.cluster, async |cluster| status::map(cluster, options.json).await).await
        }
        ClusterCommand::Repair { cluster } => {
            with_admin(&cluster, async |admin| begin(admin, Request::Repair, "a comparison has begun").await).await
        }
        ClusterCommand::Scrub { cluster, now: _ } => {
            with_admin(&cluster, async |admin| begin(admin, Request::Scrub, "a scrub has begun").await).await
        }
        ClusterCommand::Drain(options) => {
            with_admin(&options.cluster, async |admin| change::drain(admin, &options).await).await
        }
        ClusterCommand::Set(options) => {
            with_admin(&options.cluster, async |admin| change::set(admin, &options).await).await
        }
        ClusterCommand::Weight { cluster, node, weight } => {
            with_admin(&cluster, async |admin| change::weight(admin, &node, weight).await).await
        }
        ClusterCommand::Add { cluster, nodes, weight } => {
            with_admin(&cluster, async |admin| members::add(admin, &nodes, weight).await).await
        }
        ClusterCommand::Remove { cluster, node, force } => {
            with_admin(&cluster, async |admin| members::remove(admin, &node, force).await).await
        }
        ClusterCommand::Rotate(options) => rotate::run(&options).await,
    }
}

/// The path of the cluster's file, which the option or the environment names.
fn path_of(option: &ClusterFileOption) -> anyhow::Result<&Path> {
    option.file.as_deref().context(
        "which cluster? name its file with --cluster FILE or LAZARET_CLUSTER (lazaret up writes it to DATA/cluster.yml)",
    )
}

/// Does `work` with the cluster that the option names, over QUIC with the connection key, and closes its connections
/// whatever came of it.
pub async fn with_cluster<T>(
    option: &ClusterFileOption,
    work: impl AsyncFnOnce(&Cluster) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let cluster = quic_cluster(&ClusterFile::load(path_of(option)?)?)?;
    let outcome = work(&cluster).await;
    cluster.close().await;
    outcome
}

/// The same with the storage admin key.
pub async fn with_admin<T>(
    option: &ClusterFileOption,
    work: impl AsyncFnOnce(&Admin) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let path = path_of(option)?;
    let file = ClusterFile::load(path)?;
    let key = file.admin_key.clone().with_context(|| {
        format!("{} names no storage admin key: this needs one, on the host where it is kept", path.display())
    })?;
    let cluster = quic_cluster_as(&file, CredentialFiles::Admin(key))?;
    let admin = Admin { path: path.to_owned(), file, cluster };
    let outcome = work(&admin).await;
    admin.cluster.close().await;
    outcome
}

/// Asks every node to begin something. Exit code 2 if one of them did not.
async fn begin(admin: &Admin, request: Request, what: &str) -> anyhow::Result<ExitCode> {
    let map = admin::survey(&admin.cluster).await?.newest;
    let answers = admin::ask_all(&admin.cluster, &map.nodes, &request).await;
    let mut all = true;
    for (node, answer) in &answers {
        match answer {
            Ok(_) => writeln!(crate::output::stdout(), "{}: {what}", node.name)?,
            Err(error) => {
                all = false;
                crate::output::complain(format_args!("{}: {error}", node.name));
            }
        }
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
