//! Nodes that join and leave.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use lazaret_node_client::{Environment, tls};
use lazaret_protocol::message::{Request, Response};
use lazaret_protocol::{ClusterMap, NodeEntry, NodeId, NodeState};

use super::admin::{Admin, find_node};
use super::change::check_without;
use super::rotate;
use crate::init;

/// Enters nodes in the map: those given by address are made here, with files beside the cluster's file; a file tells of one
/// that was made elsewhere.
pub async fn add(admin: &Admin, nodes: &[String], weight: u32) -> anyhow::Result<ExitCode> {
    admin
        .change(async |map| {
            let mut made = Vec::new();
            for text in nodes {
                let entry = match text.parse::<SocketAddr>() {
                    Ok(address) => {
                        let entry = new_entry(map, rotate::directory(&admin.path), address, weight);
                        made.push(entry.clone());
                        entry
                    }
                    Err(_) => read_entry(Path::new(text))?,
                };
                check_new(map, &entry)?;
                map.nodes.push(entry);
            }
            // Whether it holds together is known before the first file is written.
            map.validate()?;
            for entry in made {
                let config = make_files(admin, &entry)?;
                writeln!(
                    crate::output::stdout(),
                    "{}: start it with lazaret storage-node --config {config}",
                    entry.name
                )?;
            }
            Ok(())
        })
        .await
}

fn new_entry(map: &ClusterMap, directory: &Path, address: SocketAddr, weight: u32) -> NodeEntry {
    // Files may be there of a node that was removed, or whose adding did not succeed: nothing is ever overwritten.
    let taken =
        |name: &str| map.nodes.iter().any(|node| node.name == name) || directory.join(format!("{name}.yml")).exists();
    let name = (map.nodes.len() + 1..).map(|number| format!("node{number}")).find(|name| !taken(name));
    NodeEntry {
        id: NodeId(init::random_bytes(&*Environment::system().random)),
        name: name.unwrap_or_default(),
        address,
        weight,
        state: NodeState::Up,
    }
}

fn read_entry(path: &Path) -> anyhow::Result<NodeEntry> {
    let text = fs::read_to_string(path).with_context(|| {
        format!("{} is neither an address (ADDR:PORT) nor a file with a node's map entry", path.display())
    })?;
    let entry: Result<NodeEntry, _> = serde_saphyr::from_str(&text);
    entry.map_err(|error| {
        let reason = error.to_string();
        anyhow::anyhow!("map entry {}: {}", path.display(), reason.lines().next().unwrap_or_default())
    })
}

fn check_new(map: &ClusterMap, entry: &NodeEntry) -> anyhow::Result<()> {
    if entry.address.port() == 0 {
        bail!("{} names no port: a node is found at a fixed one", entry.address);
    }
    if entry.name.is_empty() || !entry.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        bail!("a node's name is letters, digits, '-', '_' and '.', not {:?}", entry.name);
    }
    for node in &map.nodes {
        if node.address == entry.address || node.name == entry.name {
            bail!("{} ({}) is in the map already", node.name, node.address);
        }
    }
    Ok(())
}

/// A new node's certificate, key and configuration; the path of that.
fn make_files(admin: &Admin, entry: &NodeEntry) -> anyhow::Result<String> {
    let directory = rotate::directory(&admin.path);
    let issuer = rotate::issuer(&admin.file)?;
    let (certificate, key) = init::node_certificate(entry, &issuer)?;
    tls::verify_node_certificate(&admin.file.read_ca()?, &certificate, entry.id).context(rotate::FOREIGN_CA)?;
    init::write_node(directory, entry, (&certificate, &key))?;
    Ok(directory.join(format!("{}.yml", entry.name)).display().to_string())
}

/// Strikes a node from the map, once it is drained and empty, or by force.
pub async fn remove(admin: &Admin, node: &str, force: bool) -> anyhow::Result<ExitCode> {
    admin
        .change(async |map| {
            let node = find_node(map, node)?;
            if !force {
                check_empty(admin, &node).await?;
            }
            check_without(map, &node, true)?;
            map.nodes.retain(|entry| entry.id != node.id);
            Ok(())
        })
        .await
}

/// Refuses to give up a node that still has something.
async fn check_empty(admin: &Admin, node: &NodeEntry) -> anyhow::Result<()> {
    if node.state != NodeState::Draining {
        bail!("{0} is not drained: drain it first (lazaret cluster drain {0}), or give it up with --force", node.name);
    }
    let blobs = match admin.cluster.ask_entry(node, Request::Report).await {
        Ok(Response::Report(report)) => report.disks.iter().map(|disk| disk.blobs).sum::<u64>(),
        Ok(_) => bail!("{} gave an unexpected answer", node.name),
        Err(error) => bail!("{} does not say whether it is empty ({error}): give it up with --force", node.name),
    };
    if blobs > 0 {
        bail!(
            "{} still holds {blobs} blobs: wait until repair has moved them (lazaret cluster status), or give them up \
             with --force",
            node.name
        );
    }
    Ok(())
}
