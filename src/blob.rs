//! `lazaret blob`: files into and out of the storage cluster, over QUIC with the connection key.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::BytesMut;
use lazaret_node_client::cluster::Cluster;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::cli::BlobCommand;
use crate::cluster::with_cluster;

/// Bytes read from a file at a time.
const PIECE_BYTES: usize = 1024 * 1024;

/// Runs the command.
pub async fn run(command: BlobCommand) -> anyhow::Result<ExitCode> {
    match command {
        BlobCommand::Put { cluster, files } => {
            with_cluster(&cluster, async |cluster| {
                for file in &files {
                    let name = put(cluster, file).await.with_context(|| format!("cannot put {}", file.display()))?;
                    writeln!(std::io::stdout(), "{name}")?;
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
    }
    Ok(ExitCode::SUCCESS)
}

async fn stat(cluster: &Cluster, name: BlobName) -> anyhow::Result<()> {
    let stat = cluster.stat(name).await?;
    let map = cluster.map();
    let holders = stat.held_on.iter().filter_map(|id| map.node(*id));
    let nodes: Vec<_> = holders.map(|node| json!({ "id": node.id, "name": node.name })).collect();
    let document = json!({ "name": name, "size": stat.length, "put_time_ms": stat.put_time_ms, "nodes": nodes });
    writeln!(std::io::stdout(), "{document}")?;
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
