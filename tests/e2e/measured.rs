//! Measurements that are read, not passed: `cargo test --release --test e2e -- --ignored --nocapture measured`. They take
//! minutes and gigabytes, and an idle machine.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use lazaret_node_client::cluster::Cluster;
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_node_client::probe;
use lazaret_protocol::message::{Request, Response};
use lazaret_protocol::{BlobName, NodeId};

use crate::harness::{cluster, content, read};
use crate::storage::Storage;

const BLOB_BYTES: usize = 4 << 20;
const SMALL_BYTES: usize = 10 << 10;
const SMALL: u64 = 1000;
/// Between two questions of how far repair is.
const POLL: Duration = Duration::from_millis(20);
/// Between two requests of the foreground.
const PACE: Duration = Duration::from_millis(10);

/// How many bytes repair has copied to the nodes that can be asked.
async fn copied(client: &Cluster, nodes: &[NodeId]) -> u64 {
    let asked = nodes.iter().map(|&node| client.ask(node, Request::Report));
    let answers = join_all(asked).await;
    let copied = answers.into_iter().map(|answer| match answer {
        Ok(Response::Report(report)) => report.repair.copied_bytes,
        // One that can't be asked for a moment says nothing of what it did.
        _ => 0,
    });
    copied.sum()
}

/// Waits until `bytes` more were copied to `nodes` than `before`; how long that took from the first one on.
async fn until_copied(client: &Cluster, nodes: &[NodeId], before: u64, bytes: u64) -> Duration {
    let mut began = None;
    loop {
        let done = copied(client, nodes).await.saturating_sub(before);
        if done > 0 {
            began.get_or_insert_with(Instant::now);
        }
        if done >= bytes {
            return began.unwrap().elapsed();
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Small gets and puts at a steady pace until told to stop; their 99th percentiles, counted from when each was due.
async fn foreground(client: Cluster, from: u64, stop: Arc<AtomicBool>) -> (Duration, Duration) {
    let (mut gets, mut puts) = (Vec::new(), Vec::new());
    let mut tick = tokio::time::interval(PACE);
    for number in from.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let due = tick.tick().await.into_std();
        if number % 2 == 0 {
            read(&client, BlobName::of(&content(number * 7919 % SMALL, SMALL_BYTES))).await.unwrap();
            gets.push(due.elapsed());
        } else {
            client.put(Bytes::from(content(1 << 40 | number, SMALL_BYTES))).await.unwrap();
            puts.push(due.elapsed());
        }
    }
    let p99 = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() * 99 / 100]
    };
    (p99(&mut gets), p99(&mut puts))
}

/// `LAZARET_MEBIBYTES` (2,048 if not set) in four nodes with two to three copies; one is lost, and later returns with an empty
/// disk while the foreground goes on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; takes minutes and gigabytes"]
async fn measured_replication_after_a_loss() {
    let mebibytes: u64 = std::env::var("LAZARET_MEBIBYTES").map_or(2048, |number| number.parse().unwrap());
    let blobs = mebibytes * (1 << 20) / BLOB_BYTES as u64;
    let dir = tempfile::tempdir().unwrap();
    let mut storage = Storage::on_loopback(dir.path(), 4, 2, 3, &[("lost_after_seconds", "2")]);
    let client = cluster(&storage.file());
    for seed in 0..SMALL {
        client.put(Bytes::from(content(seed, SMALL_BYTES))).await.unwrap();
    }
    let names: Vec<BlobName> = stream::iter(0..blobs)
        .map(|seed| {
            let client = client.clone();
            async move { client.put(Bytes::from(content(1 << 32 | seed, BLOB_BYTES))).await.unwrap().name }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    client.settle().await;

    let file = ClusterFile::load(&storage.file()).unwrap();
    let pem = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let (node, streams, duration) = (file.map.nodes[0].id, 4, Duration::from_secs(4));
    let (ca, certificate, key) = (pem("ca.pem"), pem("node1.pem"), pem("node1.key"));
    let raw = probe::loopback_bytes_per_second(node, &ca, &certificate, &key, streams, duration).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let idle = tokio::spawn(foreground(client.clone(), 0, Arc::clone(&stop)));
    tokio::time::sleep(Duration::from_secs(10)).await;
    stop.store(true, Ordering::Relaxed);
    let idle = idle.await.unwrap();

    let mut on_third = 0;
    for name in &names {
        on_third += u64::from(client.stat(*name).await.unwrap().held_on.contains(&file.map.nodes[2].id));
    }
    let nodes: Vec<NodeId> = file.map.nodes.iter().map(|node| node.id).collect();
    let others = [nodes[0], nodes[1], nodes[3]];
    let before = copied(&client, &others).await;
    storage.kill(2);
    let took = until_copied(&client, &others, before, on_third * BLOB_BYTES as u64).await;
    let rate = (on_third * BLOB_BYTES as u64) as f64 / took.as_secs_f64();
    println!(
        "loss of one of four nodes: {on_third} blobs of 4 MiB copied in {:.1} s, {:.0} MB/s; raw QUIC {:.0} MB/s: {:.2}",
        took.as_secs_f64(),
        rate / 1e6,
        raw / 1e6,
        rate / raw
    );

    fs::remove_dir_all(storage.data(2)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(foreground(client.clone(), 1 << 20, Arc::clone(&stop)));
    // Others hand over what it fetches not; its own count begins anew.
    let before = copied(&client, &others).await;
    storage.start(2);
    let took = until_copied(&client, &nodes, before, on_third * BLOB_BYTES as u64).await;
    stop.store(true, Ordering::Relaxed);
    let under_repair = load.await.unwrap();
    println!("return with an empty disk under load: {:.1} s", took.as_secs_f64());
    println!(
        "p99 of 10 KiB: get {:.1} ms idle, {:.1} ms under repair; put {:.1} ms and {:.1} ms",
        idle.0.as_secs_f64() * 1e3,
        under_repair.0.as_secs_f64() * 1e3,
        idle.1.as_secs_f64() * 1e3,
        under_repair.1.as_secs_f64() * 1e3
    );
}
