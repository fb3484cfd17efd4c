//! `lazaret blob`: files into and out of the storage cluster, over QUIC with the connection key; deletion and holds with the
//! storage admin key.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::BytesMut;
use lazaret_node_client::Environment;
use lazaret_node_client::cluster::{Cluster, GetError};
use lazaret_protocol::BlobName;
use lazaret_protocol::message::{ByteRange, Hold, Request, Tombstone};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::cli::{BlobCommand, BlobNames};
use crate::cluster::{ask_all, survey, told, with_admin, with_cluster};
use crate::output::complain;

/// Bytes read from a file at a time.
const PIECE_BYTES: usize = 1024 * 1024;

/// Runs the command.
pub async fn run(command: BlobCommand) -> anyhow::Result<ExitCode> {
    match command {
        BlobCommand::Put { cluster, files } => {
            with_cluster(&cluster, async |cluster| {
                for file in &files {
                    let name = put(cluster, file).await.with_context(|| format!("cannot put {}", file.display()))?;
                    writeln!(crate::output::stdout(), "{name}")?;
                }
                Ok(())
            })
            .await?;
        }
        BlobCommand::Get { cluster, name, output, range } => {
            let name: BlobName = name.parse()?;
            let range = range.as_deref().map(parse_range).transpose()?;
            with_cluster(&cluster, async |cluster| get(cluster, name, range, output.as_deref()).await).await?;
        }
        BlobCommand::Stat { cluster, name } => {
            let name: BlobName = name.parse()?;
            with_cluster(&cluster, async |cluster| stat(cluster, name).await).await?;
        }
        BlobCommand::Rm(names) => return decide(&names, &Decision::Delete).await,
        BlobCommand::Hold(names) => return decide(&names, &Decision::Hold).await,
        BlobCommand::Release(names) => return decide(&names, &Decision::Release).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// What an administrator decides about a blob. Every node of the map keeps it.
enum Decision {
    Delete,
    Hold,
    Release,
}

impl Decision {
    fn in_words(&self) -> &'static str {
        match self {
            Self::Delete => "deleted",
            Self::Hold => "held",
            Self::Release => "released",
        }
    }

    /// The request that carries it to a node.
    fn request(&self, name: BlobName, time_ms: u64) -> Request {
        match self {
            Self::Delete => Request::Delete(Tombstone { name, time_ms }),
            Self::Hold => Request::Hold(Hold { name, time_ms, placed: true, from_bucket: None }),
            Self::Release => Request::Hold(Hold { name, time_ms, placed: false, from_bucket: None }),
        }
    }
}

/// Tells every node what was decided about the blobs. Exit code 2 unless all of them confirmed all of it, or if
/// there is no such blob.
async fn decide(names: &BlobNames, decision: &Decision) -> anyhow::Result<ExitCode> {
    let parsed = names.names.iter().map(|name| name.parse()).collect::<Result<Vec<BlobName>, _>>()?;
    with_admin(&names.cluster, async |admin| {
        let map = survey(&admin.cluster).await?.newest;
        let mut all = true;
        for name in parsed {
            let found = admin.cluster.stat(name).await;
            // What a hold protected may be gone: it is let go of all the same.
            if !matches!(decision, Decision::Release) && matches!(found, Err(GetError::NotFound { .. })) {
                all = false;
                complain(format_args!("{name} is not {}: no node has such a blob", decision.in_words()));
                continue;
            }
            // Now; or, if the blob was put by a clock that is ahead of this one, as late as that.
            let put_time_ms = found.map_or(0, |stat| stat.put_time_ms);
            let request = decision.request(name, Environment::system().clock.unix_ms().max(put_time_ms));
            let answers = ask_all(&admin.cluster, &map.nodes, &request).await;
            let (confirmed, missing) = (answers.iter().filter(|(_, answer)| answer.is_ok()).count(), told(&answers));
            let (done, nodes) = (decision.in_words(), map.nodes.len());
            if missing.is_empty() {
                writeln!(crate::output::stdout(), "{name} {done} on {confirmed} nodes")?;
                continue;
            }
            all = false;
            if confirmed == 0 {
                complain(format_args!("{name} is not {done}, no node confirmed it: {missing}"));
            } else {
                complain(format_args!("{name} is {done} on {confirmed} of {nodes} nodes, and repair carries that on to the others when they answer: {missing}"));
            }
        }
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(2) })
    })
    .await
}

async fn stat(cluster: &Cluster, name: BlobName) -> anyhow::Result<()> {
    let stat = cluster.stat(name).await?;
    let map = cluster.map();
    let holders = stat.held_on.iter().filter_map(|id| map.node(*id));
    let nodes: Vec<_> = holders.map(|node| json!({ "id": node.id, "name": node.name })).collect();
    let document = json!({ "name": name, "size": stat.length, "put_time_ms": stat.put_time_ms, "nodes": nodes });
    writeln!(crate::output::stdout(), "{document}")?;
    Ok(())
}

async fn put(cluster: &Cluster, path: &Path) -> anyhow::Result<BlobName> {
    let mut file = tokio::fs::File::open(path).await?;
    if !file.metadata().await?.is_file() {
        bail!("it is not a regular file");
    }
    let mut upload = cluster.upload();
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        if file.read_buf(&mut piece).await? == 0 {
            break;
        }
        upload.write(piece.freeze()).await?;
    }
    Ok(upload.finish().await?.name)
}

/// Writes the blob to standard output, or to `output`, which appears only when it is whole.
async fn get(cluster: &Cluster, name: BlobName, range: Option<ByteRange>, output: Option<&Path>) -> anyhow::Result<()> {
    let Some(output) = output else {
        return download(cluster, name, range, std::io::stdout()).await;
    };
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file =
        tempfile::NamedTempFile::new_in(folder).with_context(|| format!("cannot write to {}", folder.display()))?;
    download(cluster, name, range, file.as_file()).await?;
    file.persist(output).with_context(|| format!("cannot write {}", output.display()))?;
    Ok(())
}

async fn download(
    cluster: &Cluster,
    name: BlobName,
    range: Option<ByteRange>,
    mut sink: impl Write,
) -> anyhow::Result<()> {
    let mut download = cluster.get(name, range).await?;
    while let Some(piece) = download.next().await? {
        match sink.write_all(&piece) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("cannot write the blob")?,
        }
    }
    sink.flush().context("cannot write the blob")
}

/// `A-B`, both included, as in HTTP.
fn parse_range(text: &str) -> anyhow::Result<ByteRange> {
    let parsed = text.split_once('-').and_then(|(first, last)| {
        let (start, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        (start <= last && last < u64::MAX).then(|| ByteRange { start, end: last + 1 })
    });
    parsed.with_context(|| {
        format!("not a range: {text:?} (write first-last, for example 0-99 for the first hundred bytes)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive_and_nonsense_is_refused() {
        assert_eq!(parse_range("0-0").unwrap(), ByteRange { start: 0, end: 1 });
        assert_eq!(parse_range("5-99").unwrap(), ByteRange { start: 5, end: 100 });
        for bad in ["", "5", "-5", "9-5", "a-b", "0-18446744073709551615", "1-2-3"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }
}
