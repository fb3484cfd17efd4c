//! `lazaret cluster`: make a cluster's files; show the state of a running one.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use lazaret_node_client::Environment;
use lazaret_node_client::cluster::Cluster;
use lazaret_node_client::cluster_file::ClusterFile;
use serde_json::json;

use crate::cli::{ClusterCommand, ClusterFileOption};
use crate::components::quic_cluster;
use crate::init;

/// Runs the command.
pub async fn run(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::Init(options) => {
            let file = init::init(&options, &*Environment::system().random)?;
            writeln!(std::io::stdout(), "{}", file.display())?;
            Ok(ExitCode::SUCCESS)
        }
        ClusterCommand::Status { cluster, json } => {
            with_cluster(&cluster, async |cluster| status(cluster, json).await).await
        }
    }
}

/// Does `work` with the cluster that the option names, over QUIC with the connection key, and closes its connections
/// whatever came of it.
pub async fn with_cluster<T>(
    option: &ClusterFileOption,
    work: impl AsyncFnOnce(&Cluster) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let path = option.file.as_deref().context(
        "which cluster? name its file with --cluster FILE or LAZARET_CLUSTER (lazaret up writes it to DATA/cluster.yml)",
    )?;
    let cluster = quic_cluster(&ClusterFile::load(path)?)?;
    let outcome = work(&cluster).await;
    cluster.close().await;
    outcome
}

/// Prints what every node says of itself. Exit code 2 if fewer nodes answer than a write needs.
async fn status(cluster: &Cluster, as_json: bool) -> anyhow::Result<ExitCode> {
    let map = cluster.map();
    let nodes = cluster.status().await;
    let reachable = nodes.iter().filter(|(_, status)| status.is_ok()).count();
    if as_json {
        let nodes: Vec<_> = nodes
            .iter()
            .map(|(node, status)| match status {
                Ok(status) => json!({ "node": node, "reachable": true, "status": status }),
                Err(error) => json!({ "node": node, "reachable": false, "error": error.to_string() }),
            })
            .collect();
        let document = json!({
            "cluster": map.cluster, "epoch": map.epoch, "min_replica": map.min_replica, "max_replica": map.max_replica,
            "nodes": nodes,
        });
        writeln!(std::io::stdout(), "{document}")?;
    } else {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["Node", "Address", "State", "Blobs", "Segments", "Used", "Free", "Corrupt reads"]);
        for (node, status) in &nodes {
            let state = match status {
                Ok(status) if status.full => "full".to_owned(),
                Ok(_) => format!("{:?}", node.state).to_lowercase(),
                Err(error) => error.to_string(),
            };
            let mut row = vec![node.name.clone(), node.address.to_string(), state];
            if let Ok(status) = status {
                row.extend([status.blobs, status.segments].map(|count| count.to_string()));
                row.extend(
                    [status.segment_bytes, status.disk_free_bytes].map(|bytes| format!("{:.1} MB", bytes as f64 / 1e6)),
                );
                row.push(status.corrupt_reads.to_string());
            }
            table.add_row(row);
        }
        writeln!(
            std::io::stdout(),
            "{table}\ncluster {}, epoch {}, replicas {} to {}, {reachable} of {} nodes answer",
            map.cluster,
            map.epoch,
            map.min_replica,
            map.max_replica,
            nodes.len()
        )?;
    }
    Ok(if reachable >= usize::from(map.min_replica) { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
