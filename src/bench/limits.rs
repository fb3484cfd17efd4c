//! What the machine allows: raw QUIC with our settings, syncs of the disk, hashing, salting. Figures of the store are read
//! as shares of these.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use lazaret_node_client::probe;
use lazaret_protocol::NodeId;
use lazaret_storage_node::record::SegmentAddress;
use lazaret_storage_node::{Disk, FsDisk, salt};
use serde::Serialize;

/// How long each is measured.
const DURATION: Duration = Duration::from_secs(2);
/// What is hashed and salted at a time: a streamed blob's extent.
const PIECE_BYTES: usize = 4 << 20;
/// Streams on the raw connection.
const STREAMS: usize = 4;
/// What is written before each sync: a small blob's record.
const SYNC_BYTES: usize = 12 * 1024;

/// The limits.
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// Raw QUIC over loopback with our transport settings, both ends in one process.
    pub quic_bytes_per_second: f64,
    /// `fdatasync` after an append of 12 KiB, one after the other, on the file system of the nodes' data.
    pub fdatasync_per_second: f64,
    /// Appends of 4 MiB to a segment as a node makes them, each synced, one after the other: what the copies on this disk share.
    pub disk_bytes_per_second: f64,
    /// BLAKE3 on one core.
    pub blake3_bytes_per_second: f64,
    /// Salting on one core.
    pub salt_bytes_per_second: f64,
}

/// Measures them, one after the other. `dir` holds a cluster's files.
pub async fn measure(dir: &Path, node: NodeId, name: &str) -> anyhow::Result<Limits> {
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).with_context(|| format!("cannot read {file}"));
    let (ca, certificate, key) = (read("ca.pem")?, read(&format!("{name}.pem"))?, read(&format!("{name}.key"))?);
    let quic = probe::loopback_bytes_per_second(node, &ca, &certificate, &key, STREAMS, DURATION).await?;
    let path = dir.join("fdatasync.probe");
    let disk_dir = dir.join("disk.probe");
    let (syncs, disk, blake3, salt) = tokio::task::spawn_blocking(move || {
        let piece = vec![0x5a; PIECE_BYTES];
        let mut salted = piece.clone();
        let blake3 = per_second(|| _ = std::hint::black_box(blake3::hash(&piece)));
        let salt = per_second(|| salt::apply(&[7; 16], 0, std::hint::black_box(&mut salted)));
        anyhow::Ok((syncs_per_second(&path)?, extents_per_second(&disk_dir, &piece)?, blake3, salt))
    })
    .await??;
    Ok(Limits {
        quic_bytes_per_second: quic,
        fdatasync_per_second: syncs,
        disk_bytes_per_second: disk * PIECE_BYTES as f64,
        blake3_bytes_per_second: blake3 * PIECE_BYTES as f64,
        salt_bytes_per_second: salt * PIECE_BYTES as f64,
    })
}

fn per_second(mut work: impl FnMut()) -> f64 {
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < DURATION {
        work();
        count += 1;
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}

fn syncs_per_second(path: &Path) -> anyhow::Result<f64> {
    let mut file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let record = vec![0x5a; SYNC_BYTES];
    let mut failure = None;
    let rate = per_second(|| {
        if let Err(error) = file.write_all(&record).and_then(|()| file.sync_data()) {
            failure = Some(error);
        }
    });
    let _ = std::fs::remove_file(path);
    failure.map_or(Ok(rate), |error| Err(error).context("cannot measure fdatasync"))
}

fn extents_per_second(dir: &Path, extent: &[u8]) -> anyhow::Result<f64> {
    let disk = FsDisk::open(dir).with_context(|| format!("cannot use {}", dir.display()))?;
    let mut segment = disk.create_segment(SegmentAddress { bucket: 0, id: 0 })?;
    let (mut offset, mut failure) = (0, None);
    let rate = per_second(|| {
        if let Err(error) = segment.write_at(offset, &[IoSlice::new(extent)]).and_then(|()| segment.sync()) {
            failure = Some(error);
        }
        offset += extent.len() as u64;
    });
    drop((segment, disk));
    let _ = std::fs::remove_dir_all(dir);
    failure.map_or(Ok(rate), |error| Err(error).context("cannot measure the disk"))
}
