//! Changes of a running cluster's settings: drain, weight, replicas, retention, how blobs lie on disk.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use lazaret_protocol::message::{Expirable, Request, Response};
use lazaret_protocol::{ClusterMap, NodeEntry, NodeId, NodeState, StorageType};

use super::admin::{Admin, ask_all, find_node, told};
use crate::cli::{DrainOptions, SetOptions, Settings, StorageTypeOption};

/// Lets a node take no more writes, or take them again.
pub async fn drain(admin: &Admin, options: &DrainOptions) -> anyhow::Result<ExitCode> {
    admin
        .change(async |map| {
            let node = find_node(map, &options.node)?;
            if !options.undo {
                check_without(map, &node, options.force)?;
            }
            entry(map, node.id, |entry| entry.state = if options.undo { NodeState::Up } else { NodeState::Draining });
            Ok(())
        })
        .await
}

/// Refuses to do without `node` where too few others take writes.
pub fn check_without(map: &ClusterMap, node: &NodeEntry, force: bool) -> anyhow::Result<()> {
    let left = map.nodes.iter().filter(|other| other.state == NodeState::Up && other.id != node.id).count();
    let (min, max) = (usize::from(map.min_replica), usize::from(map.max_replica));
    if left < min {
        bail!(
            "without {} only {left} nodes take writes, and min_replica is {min}: no write could be acknowledged; add a \
             node first, or lower min_replica",
            node.name
        );
    }
    if left < max && !force {
        bail!(
            "without {} only {left} nodes take writes, and max_replica is {max}: blobs would have too few copies; add a \
             node first, or insist with --force",
            node.name
        );
    }
    Ok(())
}

/// Changes a node's share of the data.
pub async fn weight(admin: &Admin, node: &str, weight: u32) -> anyhow::Result<ExitCode> {
    admin
        .change(async |map| {
            let node = find_node(map, node)?;
            entry(map, node.id, |entry| entry.weight = weight);
            Ok(())
        })
        .await
}

fn entry(map: &mut ClusterMap, id: NodeId, change: impl FnOnce(&mut NodeEntry)) {
    if let Some(entry) = map.nodes.iter_mut().find(|entry| entry.id == id) {
        change(entry);
    }
}

/// Changes settings, or says what that would do.
pub async fn set(admin: &Admin, options: &SetOptions) -> anyhow::Result<ExitCode> {
    if options.dry_run {
        return preview(admin, &options.settings).await;
    }
    admin
        .change(async |map| {
            apply(map, &options.settings);
            check_settings(map)
        })
        .await
}

fn apply(map: &mut ClusterMap, settings: &Settings) {
    map.min_replica = settings.min_replica.unwrap_or(map.min_replica);
    map.max_replica = settings.max_replica.unwrap_or(map.max_replica);
    map.cleanuprange = settings.cleanuprange.unwrap_or(map.cleanuprange);
    map.storage_type = match settings.storage_type {
        Some(StorageTypeOption::Salt) => StorageType::Salt,
        Some(StorageTypeOption::None) => StorageType::None,
        None => map.storage_type,
    };
}

fn check_settings(map: &ClusterMap) -> anyhow::Result<()> {
    map.validate()?;
    let writable = map.nodes.iter().filter(|node| node.state == NodeState::Up).count();
    if writable < usize::from(map.min_replica) {
        bail!("{writable} nodes take writes: with min_replica {} no write could be acknowledged", map.min_replica);
    }
    Ok(())
}

/// Says what would change and what would expire at once. Exit code 2 if a node did not say.
async fn preview(admin: &Admin, settings: &Settings) -> anyhow::Result<ExitCode> {
    let base = admin.newest_map().await?;
    let mut map = base.clone();
    apply(&mut map, settings);
    check_settings(&map)?;
    let mut out = crate::output::stdout();
    writeln!(
        out,
        "nothing is changed; replicas would be {} to {}, cleanuprange {} h, storage type {}",
        map.min_replica,
        map.max_replica,
        map.cleanuprange,
        format!("{:?}", map.storage_type).to_lowercase(),
    )?;
    let answers = ask_all(&admin.cluster, &base.nodes, &Request::RetentionPreview(map.cleanuprange)).await;
    let mut total = Expirable::default();
    for (node, answer) in &answers {
        match answer {
            Ok(Response::RetentionPreview(expirable)) => {
                total.blobs += expirable.blobs;
                total.bytes += expirable.bytes;
                writeln!(out, "{}: {}", node.name, in_words(expirable))?;
            }
            Ok(_) => bail!("{} gave an unexpected answer", node.name),
            Err(_) => {}
        }
    }
    writeln!(out, "all nodes together: {}", in_words(&total))?;
    let missing = told(&answers);
    if missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    crate::output::complain(format_args!("these nodes did not say what they would remove: {missing}"));
    Ok(ExitCode::from(2))
}

fn in_words(expirable: &Expirable) -> String {
    format!("{} copies would expire, {:.1} MB", expirable.blobs, expirable.bytes as f64 / 1e6)
}
