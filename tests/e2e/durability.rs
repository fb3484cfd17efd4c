//! Nothing acknowledged is lost: nodes and whole clusters are killed under load, disks lie, and everything that was
//! acknowledged must be there.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_node_client::cluster::{Cluster, Stored};
use reqwest::StatusCode;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::harness::{Gateway, Processes, Up, cluster, content, files_below, lazaret, read, verdict};

/// Uploads through a gateway from several tasks until told to stop; keeps what was acknowledged.
struct Load {
    acknowledged: Arc<Mutex<Vec<String>>>,
    refused: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Load {
    fn start(gateway: &Gateway) -> Self {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let refused = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for task in 0..4_u64 {
            let (gateway, acknowledged, refused) = (gateway.clone(), Arc::clone(&acknowledged), Arc::clone(&refused));
            tasks.spawn(async move {
                for number in 0.. {
                    // Most are small; every tenth is long enough to be streamed.
                    let length = if number % 10 == 9 { 6 << 20 } else { 20_000 + (number as usize * 7919) % 200_000 };
                    match gateway.post("load", content(task << 32 | number, length)).await {
                        Ok((StatusCode::OK, answer)) => {
                            acknowledged.lock().await.push(answer["data_id"].as_str().unwrap().to_owned());
                        }
                        Ok(_) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        // The gateway is gone.
                        Err(_) => return,
                    }
                }
            });
        }
        Self { acknowledged, refused, tasks }
    }

    /// Waits until so many uploads were acknowledged since the call.
    async fn more(&self, count: usize) {
        let before = self.acknowledged.lock().await.len();
        while self.acknowledged.lock().await.len() < before + count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(mut self) -> Vec<String> {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut *self.acknowledged.lock().await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_stops_no_upload_and_loses_nothing_and_two_killed_nodes_stop_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut processes = Processes::start(dir.path());
    let load = Load::start(&processes.gateway);
    load.more(30).await;
    processes.nodes[1].kill();
    load.more(30).await;
    assert_eq!(load.refused.load(Ordering::Relaxed), 0, "an upload failed though two of three nodes live");
    let acknowledged = load.stop().await;
    for data_id in &acknowledged {
        let document = processes.gateway.finished(data_id).await;
        assert_eq!(verdict(&document), (0, true), "{document}");
    }

    processes.nodes[2].kill();
    let (status, answer) = processes.gateway.post("too late", content(1, 50_000)).await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    let reason = answer["err"].as_str().unwrap();
    assert!(reason.contains('2') && answer.get("data_id").is_none(), "{reason}");
    let (status, answer) = processes.gateway.post("too late", content(2, 6 << 20)).await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");

    // The nodes come back with what they had, and uploads go on.
    for node in [2, 3] {
        let config = dir.path().join(format!("node{node}.yml"));
        processes.nodes[node - 1] =
            crate::harness::Process::start(&["storage-node", "--config", config.to_str().unwrap()]);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    let data_id = loop {
        match processes.gateway.post("again", content(3, 50_000)).await.unwrap() {
            (StatusCode::OK, answer) => break answer["data_id"].as_str().unwrap().to_owned(),
            // A node that did not answer is not asked again for a moment.
            (_, answer) => assert!(Instant::now() < deadline, "the nodes are back, but {answer}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(verdict(&processes.gateway.finished(&data_id).await), (0, true));
}

/// Puts blobs from several tasks until the cluster is gone; what was acknowledged.
async fn put_until_gone(cluster: &Cluster, acknowledged: &Arc<Mutex<Vec<(u64, Stored)>>>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for task in 0..4_u64 {
        let (cluster, acknowledged) = (cluster.clone(), Arc::clone(acknowledged));
        tasks.spawn(async move {
            for number in 0.. {
                let seed = task << 32 | number;
                let length = if number % 10 == 9 { 5 << 20 } else { 1 + (number as usize * 7919) % 100_000 };
                match cluster.put(Bytes::from(content(seed, length))).await {
                    Ok(stored) => acknowledged.lock().await.push((seed, stored)),
                    Err(_) => return,
                }
            }
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_killed_under_load_keeps_every_acknowledged_blob_and_finishes_every_analysis() {
    let dir = tempfile::tempdir().unwrap();
    let mut analyses = Vec::new();
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    for round in 0..3 {
        let mut up = Up::start(dir.path(), &[]);
        let client = cluster(&up.cluster_file());
        let load = Load::start(&up.gateway);
        let puts = put_until_gone(&client, &acknowledged).await;
        load.more(20 + 10 * round).await;
        up.process.kill();
        drop(puts);
        analyses.extend(load.stop().await);
    }
    let up = Up::start(dir.path(), &[]);
    let client = cluster(&up.cluster_file());
    let blobs = acknowledged.lock().await;
    assert!(blobs.len() > 30 && analyses.len() > 60, "{} blobs, {} analyses", blobs.len(), analyses.len());
    for (seed, stored) in blobs.iter() {
        let bytes = read(&client, stored.name).await.unwrap();
        assert!(bytes == content(*seed, stored.length as usize), "{} came back changed", stored.name);
    }
    for data_id in &analyses {
        let document = up.gateway.finished(data_id).await;
        assert_eq!(verdict(&document), (0, true), "{document}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_finds_everything_and_is_ready_within_two_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let data_id = up.gateway.submit("kept", content(5, 3_000_000)).await;
    let document = up.gateway.finished(&data_id).await;
    let stored = cluster(&up.cluster_file()).put(Bytes::from(content(6, 9_000_000))).await.unwrap();
    let key = up.gateway.key.clone();
    assert_eq!(up.process.terminate(), Some(0));

    let up = Up::start(dir.path(), &[]);
    assert!(up.process.ready_after < Duration::from_secs(2), "ready after {:?}", up.process.ready_after);
    assert_eq!(up.gateway.key, key);
    assert_eq!(up.gateway.result(&data_id).await.unwrap(), document);
    assert_eq!(cluster(&up.cluster_file()).get(stored.name, None).await.unwrap().length(), 9_000_000);
}

/// The segments of one node, longest first.
fn segments(data: &std::path::Path, node: &str) -> Vec<PathBuf> {
    let mut segments: Vec<PathBuf> = files_below(&data.join(node).join("segments"));
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    segments.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
    segments
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_caught_and_counted_and_another_replica_answers() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let client = cluster(&up.cluster_file());
    let bytes = content(11, 2_000_000);
    let stored = client.put(Bytes::from(bytes.clone())).await.unwrap();
    client.settle().await;
    // The first node that is asked for the blob has it damaged: read order is put order.
    let map = client.map();
    let first = lazaret_protocol::placement::read_order(&map, stored.name.placement())[0];
    let segment = segments(dir.path(), &first.name).remove(0);
    let file = OpenOptions::new().read(true).write(true).open(&segment).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], middle).unwrap();

    let got = read(&client, stored.name).await.unwrap();
    assert!(got == bytes);
    let status = lazaret(&["cluster", "status", "--json", "--cluster", up.cluster_file().to_str().unwrap()]);
    assert!(status.status.success());
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let counted = |node: &serde_json::Value| node["status"]["corrupt_reads"].as_u64().unwrap();
    let damaged =
        status["nodes"].as_array().unwrap().iter().find(|node| node["node"]["name"] == first.name.as_str()).unwrap();
    assert!(counted(damaged) >= 1, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_plaintext_of_an_upload_is_found_below_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let whole = content(21, 300_000);
    let streamed = content(22, 9_000_000);
    let member = content(23, 50_000);
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    archive.start_file("member", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut archive, &member).unwrap();
    let archive = archive.finish().unwrap().into_inner();
    for body in [whole.clone(), streamed.clone(), archive] {
        assert_eq!(verdict(&up.gateway.scan("file", body).await), (0, true));
    }
    assert_eq!(up.process.terminate(), Some(0));

    let needles: Vec<&[u8]> = [&whole, &streamed, &member]
        .into_iter()
        .flat_map(|plain| [&plain[..32], &plain[plain.len() / 2..][..32]])
        .collect();
    let mut searched = 0;
    for path in files_below(dir.path()) {
        let bytes = fs::read(&path).unwrap();
        searched += bytes.len();
        for window in bytes.windows(32) {
            assert!(!needles.contains(&window), "plaintext in {}", path.display());
        }
    }
    assert!(searched > 2 * 9_000_000, "only {searched} bytes lie below the data directory");
}
