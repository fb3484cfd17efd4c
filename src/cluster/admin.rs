//! How the cluster map is changed: the newest map that nodes hold is changed, its epoch raised by one, and pushed to every
//! node, each of which takes it only in place of the map it was made from. A change is in force once a majority of the nodes
//! it was made from took it: of two changes made at once only one can.
//!
//! A change that reached fewer than a majority is not lost and not half in force for ever: the next command finds it as the
//! newest map and carries it on. Of two such changes the one that more nodes hold is carried on, and the other is gone.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use lazaret_node_client::NodeError;
use lazaret_node_client::cluster::Cluster;
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_protocol::message::{Request, Response};
use lazaret_protocol::{ClusterMap, NodeEntry, NodeId};

/// Nodes that are asked at once.
const ASKED_AT_ONCE: usize = 32;

/// A cluster, as who has its storage admin key sees it.
pub struct Admin {
    /// The cluster's file.
    pub path: PathBuf,
    /// What it says, its paths resolved.
    pub file: ClusterFile,
    /// The cluster.
    pub cluster: Cluster,
}

/// What a node said to a request, or why it said nothing.
pub type Answer = (NodeEntry, Result<Response, NodeError>);

/// What nodes hold for the cluster map.
pub struct Survey {
    /// The newest.
    pub newest: ClusterMap,
    held: Vec<(NodeEntry, ClusterMap)>,
    silent: Vec<(NodeEntry, NodeError)>,
}

/// Asks `nodes` the same. An answer that does not say what was asked is an error.
pub async fn ask_all(cluster: &Cluster, nodes: &[NodeEntry], request: &Request) -> Vec<Answer> {
    let asked = stream::iter(nodes.to_vec()).map(|node| {
        let (cluster, request) = (cluster.clone(), request.clone());
        async move {
            let answer = match cluster.ask_entry(&node, request.clone()).await {
                Ok(answer) if !answers(&request, &answer) => Err(NodeError::Unexpected { doing: "administering" }),
                answer => answer,
            };
            (node, answer)
        }
    });
    asked.buffered(ASKED_AT_ONCE).collect().await
}

/// Whether `answer` is the one that goes with `request`.
fn answers(request: &Request, answer: &Response) -> bool {
    match request {
        Request::Status => matches!(answer, Response::Status(_)),
        Request::Report => matches!(answer, Response::Report(_)),
        Request::Map => matches!(answer, Response::Map(_)),
        Request::PushMap(_) => matches!(answer, Response::MapPushed),
        Request::Delete(_) => matches!(answer, Response::Deleted),
        Request::Hold(_) => matches!(answer, Response::HoldSet),
        Request::Repair => matches!(answer, Response::Repairing),
        Request::Scrub => matches!(answer, Response::Scrubbing),
        Request::RetentionPreview(_) => matches!(answer, Response::RetentionPreview(_)),
        // Nothing else is asked here.
        _ => false,
    }
}

/// Names and reasons of those that said no, or nothing, in one line; empty if all said yes.
pub fn told(answers: &[Answer]) -> String {
    let failed = answers.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().err()?)));
    failed.map(|(node, error)| format!("{} ({error})", node.name)).collect::<Vec<_>>().join(", ")
}

/// Asks every node for its map, those included that only a newer map names.
pub async fn survey(cluster: &Cluster) -> anyhow::Result<Survey> {
    let mut survey = Survey { newest: cluster.map().as_ref().clone(), held: Vec::new(), silent: Vec::new() };
    loop {
        let asked = |id: NodeId| {
            let held = survey.held.iter().map(|(node, _)| node.id);
            held.chain(survey.silent.iter().map(|(node, _)| node.id)).any(|known| known == id)
        };
        let new: Vec<NodeEntry> = survey.newest.nodes.iter().filter(|node| !asked(node.id)).cloned().collect();
        if new.is_empty() {
            break;
        }
        for (node, answer) in ask_all(cluster, &new, &Request::Map).await {
            match answer {
                Ok(Response::Map(map)) if map.cluster == survey.newest.cluster && map.validate().is_ok() => {
                    survey.held.push((node, map));
                }
                Ok(_) => bail!("{} tells a cluster map that is none of this cluster's", node.name),
                Err(error) => survey.silent.push((node, error)),
            }
        }
        survey.newest = survey.choose();
    }
    Ok(survey)
}

impl Survey {
    /// The map of the highest epoch; of several, the one that most nodes hold.
    fn choose(&self) -> ClusterMap {
        let maps = self.held.iter().map(|(_, map)| map).chain([&self.newest]);
        let holders = |map: &ClusterMap| self.held.iter().filter(|(_, held)| held == map).count();
        // The text decides between equals, so that every administrator chooses the same.
        let newest = maps.max_by_key(|map| (map.epoch, holders(map), format!("{map:?}")));
        newest.unwrap_or(&self.newest).clone()
    }

    /// Refuses to go on if too few nodes answered to be sure that no change is missed.
    fn check_majority(&self) -> anyhow::Result<()> {
        let answered = self.newest.nodes.iter().filter(|node| self.held.iter().any(|(held, _)| held.id == node.id));
        let (answered, needed) = (answered.count(), majority(&self.newest));
        if answered < needed {
            let silent: Vec<_> = self.silent.iter().map(|(node, error)| format!("{} ({error})", node.name)).collect();
            bail!(
                "{answered} of {} nodes answer, and a change of the map needs {needed}: {}",
                self.newest.nodes.len(),
                silent.join(", ")
            );
        }
        Ok(())
    }
}

fn majority(map: &ClusterMap) -> usize {
    map.nodes.len() / 2 + 1
}

/// The node that `text` names, by its name or id.
pub fn find_node(map: &ClusterMap, text: &str) -> anyhow::Result<NodeEntry> {
    let mut found = map.nodes.iter().filter(|node| node.name == text || node.id.to_string() == text);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node.clone()),
        (Some(_), Some(_)) => bail!("several nodes are called {text}: name the one you mean by its id"),
        _ => {
            let names: Vec<_> = map.nodes.iter().map(|node| node.name.as_str()).collect();
            bail!("there is no node {text}: the map has {}", names.join(", "))
        }
    }
}

impl Admin {
    /// The newest map, and the certainty that there is none newer. A change that was not carried through is carried on.
    pub async fn newest_map(&self) -> anyhow::Result<ClusterMap> {
        let survey = survey(&self.cluster).await?;
        survey.check_majority()?;
        let newest = survey.newest;
        let behind = |map: &ClusterMap| map.epoch.checked_add(1) == Some(newest.epoch);
        let behind: Vec<NodeEntry> =
            survey.held.iter().filter(|(_, map)| behind(map)).map(|(node, _)| node.clone()).collect();
        // Who still refuses is named when the change that comes next is pushed.
        ask_all(&self.cluster, &behind, &Request::PushMap(newest.clone())).await;
        Ok(newest)
    }

    /// Changes the newest map with `edit`, puts the outcome in force and says who took it.
    pub async fn change(
        &self,
        edit: impl AsyncFnOnce(&mut ClusterMap) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        let base = self.newest_map().await?;
        let mut map = base.clone();
        edit(&mut map).await?;
        if map == base {
            writeln!(crate::output::stdout(), "nothing to change, the map of epoch {} says so already", base.epoch)?;
            self.store(&base).await?;
            return Ok(ExitCode::SUCCESS);
        }
        map.epoch = base.epoch.checked_add(1).context("there is no epoch above the present one")?;
        map.validate()?;
        self.push(&base, &map).await
    }

    async fn push(&self, base: &ClusterMap, map: &ClusterMap) -> anyhow::Result<ExitCode> {
        // Not to nodes that are new in it: they start with it in the cluster's file.
        let answers = ask_all(&self.cluster, &base.nodes, &Request::PushMap(map.clone())).await;
        let taken = answers.iter().filter(|(_, answer)| answer.is_ok()).count();
        let needed = majority(base);
        let missing = told(&answers);
        if taken < needed {
            bail!(
                "the map of epoch {} was taken by {taken} of {} nodes, {needed} are needed: run this again, it is then \
                 carried on or replaced ({missing})",
                map.epoch,
                base.nodes.len()
            );
        }
        writeln!(
            crate::output::stdout(),
            "epoch {} is in force: {taken} of {} nodes have it",
            map.epoch,
            base.nodes.len()
        )?;
        if !missing.is_empty() {
            writeln!(crate::output::stdout(), "not yet, they learn of it from the others: {missing}")?;
        }
        self.store(map).await?;
        Ok(ExitCode::SUCCESS)
    }

    /// Brings the cluster's file up to date.
    async fn store(&self, map: &ClusterMap) -> anyhow::Result<()> {
        let (path, stored) = (self.path.clone(), map.clone());
        tokio::task::spawn_blocking(move || ClusterFile::store_map(&path, &stored))
            .await?
            .with_context(|| format!("the map of epoch {} is in force, but", map.epoch))?;
        Ok(())
    }
}
