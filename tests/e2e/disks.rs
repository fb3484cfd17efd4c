//! A storage node's disks from the command line: several of them, the offline check, the rebuild, and, on demand, how
//! long a large node takes to come back.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_node_client::Environment;
use lazaret_node_client::cluster_file::ClusterFile;
use lazaret_protocol::BlobName;
use lazaret_storage_node::engine::{EngineOptions, Origin};
use lazaret_storage_node::store::{DiskSource, Store};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::harness::{Process, cluster, command, content, files_below, free_addresses, lazaret, memory_mib};

/// A cluster of one node that does not run yet.
struct OneNode {
    dir: PathBuf,
    config: String,
}

impl OneNode {
    fn new(dir: &Path) -> Self {
        let address = free_addresses(1)[0].to_string();
        let path = dir.to_str().unwrap();
        let replicas = ["--min-replica", "1", "--max-replica", "1"];
        let output = lazaret(&[&["cluster", "init", path, "--node-address", &address], &replicas[..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { dir: dir.to_owned(), config: dir.join("node1.yml").to_str().unwrap().to_owned() }
    }

    fn start(&self) -> Process {
        Process::start(&["storage-node", "--config", &self.config])
    }

    fn offline(&self, what: &[&str]) -> (Option<i32>, String, String) {
        let output = lazaret(&[&["storage-node", "--config", &self.config], what].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn cluster_file(&self) -> PathBuf {
        self.dir.join("cluster.yml")
    }

    fn put(&self, file: &Path) -> String {
        let cluster = self.cluster_file();
        let output = lazaret(&["blob", "put", "--cluster", cluster.to_str().unwrap(), file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
    }

    fn get(&self, name: &str) -> Vec<u8> {
        let cluster = self.cluster_file();
        let output = lazaret(&["blob", "get", "--cluster", cluster.to_str().unwrap(), name]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

#[test]
fn a_node_of_several_disks_is_checked_and_rebuilt_offline_and_goes_on_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let node = OneNode::new(dir.path());
    // Relative to the configuration's directory, and absolute.
    let (second, third) = (dir.path().join("second"), dir.path().join("third"));
    fs::create_dir(&second).unwrap();
    fs::create_dir(&third).unwrap();
    let config = fs::read_to_string(&node.config).unwrap();
    fs::write(&node.config, format!("{config}disks: [second, {}]\n", third.display())).unwrap();
    let mut process = node.start();
    let mut stored = Vec::new();
    for at in 0..24 {
        let file = dir.path().join("file");
        fs::write(&file, content(at, 10_000)).unwrap();
        stored.push((node.put(&file), content(at, 10_000)));
    }
    let check = |node: &OneNode| stored.iter().for_each(|(name, content)| assert!(node.get(name) == *content));
    check(&node);
    for what in ["--fsck", "--rebuild-index"] {
        let (code, _, refused) = node.offline(&[what]);
        assert_eq!(code, Some(2), "{refused}");
        assert!(refused.contains("in use by another node"), "{refused}");
    }
    process.kill();

    let (code, text, _) = node.offline(&["--fsck"]);
    assert_eq!((code, text.matches(": sound").count()), (Some(0), 3), "{text}");
    let (code, text, _) = node.offline(&["--rebuild-index"]);
    let blobs = |line: &str| -> u64 { line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap() };
    assert_eq!((code, text.lines().map(blobs).sum::<u64>()), (Some(0), 24), "{text}");
    assert!(text.lines().count() == 3 && text.contains("MB/s"), "{text}");
    let process = node.start();
    check(&node);
    assert_eq!(process.terminate(), Some(0));

    // Damage in one disk is found by name, as JSON too.
    let segment = files_below(&second.join("segments")).remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[72 + 104 + 5] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let (code, text, _) = node.offline(&["--fsck"]);
    assert_eq!((code, text.matches("DAMAGED").count()), (Some(1), 1), "{text}");
    let (code, text, _) = node.offline(&["--fsck", "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, report.as_array().unwrap().len()), (Some(1), 3));
    assert_eq!(report[1]["damaged"]["count"], 1, "{report}");
    let named = report[1]["damaged"]["first"][0]["names"][0].as_str().unwrap().to_owned();
    assert!(stored.iter().any(|(name, _)| *name == named), "{report}");

    // A mount point that is gone: the node starts, and serves and takes what it can.
    fs::rename(&third, dir.path().join("unmounted")).unwrap();
    let mut process = node.start();
    let file = dir.path().join("file");
    fs::write(&file, content(100, 10_000)).unwrap();
    let name = node.put(&file);
    assert!(node.get(&name) == content(100, 10_000));
    process.kill();
    let (code, _, refused) = node.offline(&["--fsck"]);
    assert_eq!(code, Some(2), "{refused}");
    fs::rename(dir.path().join("unmounted"), &third).unwrap();
    let _process = node.start();
    for (name, content) in stored.iter().filter(|(name, _)| *name != named) {
        assert!(node.get(name) == *content);
    }
}

#[test]
fn a_disk_given_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = OneNode::new(dir.path());
    let config = fs::read_to_string(&node.config).unwrap();
    fs::write(&node.config, format!("{config}disks: [node1]\n")).unwrap();
    let (code, _, refused) = node.offline(&["--check-config"]);
    assert!(code == Some(2) && refused.contains("given twice"), "{refused}");
}

/// Bytes of a blob of the large node: 4 KiB unless told otherwise, the smallest that the rate of a rebuild is promised for.
static CONTENT_BYTES: LazyLock<usize> =
    LazyLock::new(|| std::env::var("LAZARET_CONTENT_BYTES").map_or(4096, |bytes| bytes.parse().unwrap()));
/// Puts on their way at once while it is filled.
const PUTS_AT_ONCE: u64 = 256;

fn small(at: u64) -> Bytes {
    content(at, *CONTENT_BYTES).into()
}

/// Fills the node's disk through the store itself, which is quicker than over the wire and leaves the same behind.
async fn fill(node: &OneNode, records: u64) {
    let map = ClusterFile::load(&node.cluster_file()).unwrap().map;
    let mut options = EngineOptions::new(map.cluster, map.nodes[0].id);
    options.storage_type = map.storage_type;
    let source = DiskSource::directory(node.dir.join("node1"), false);
    let environment = Environment::system();
    let put_time_ms = environment.clock.unix_ms();
    let store = tokio::task::spawn_blocking(|| Store::open(vec![source], Environment::system(), options));
    let store = store.await.unwrap().unwrap();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..PUTS_AT_ONCE {
        let (store, next) = (store.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= records {
                    return;
                }
                let content = small(at);
                // A peer's put times are taken as they are, however long this takes.
                store.put_whole(BlobName::of(&content), content, put_time_ms, Origin::Peer).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    tokio::task::spawn_blocking(move || store.close()).await.unwrap();
}

/// Empties the page cache, if that is allowed.
fn drop_caches() -> bool {
    std::process::Command::new("sync").status().is_ok_and(|done| done.success())
        && fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// MB/s at which the segments are read from front to back by nothing else.
fn sequential_rate(segments: &[PathBuf]) -> f64 {
    let (began, mut total, mut buffer) = (Instant::now(), 0_usize, vec![0; 4 << 20]);
    for segment in segments {
        let mut file = File::open(segment).unwrap();
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break,
                count => total += count,
            }
        }
    }
    total as f64 / 1e6 / began.elapsed().as_secs_f64()
}

/// `LAZARET_RECORDS` blobs (1,000,000 if not set; ten times as many take 43 GB) of `LAZARET_CONTENT_BYTES` below `LAZARET_DIR`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes and gigabytes"]
async fn a_large_node_is_small_in_memory_and_quickly_back() {
    let records: u64 = std::env::var("LAZARET_RECORDS").map_or(1_000_000, |records| records.parse().unwrap());
    let dir = match std::env::var("LAZARET_DIR") {
        Ok(below) => tempfile::tempdir_in(below).unwrap(),
        Err(_) => tempfile::tempdir().unwrap(),
    };
    let node = OneNode::new(dir.path());
    let began = Instant::now();
    fill(&node, records).await;
    println!("{records} blobs of {} bytes written in {:.0} s", *CONTENT_BYTES, began.elapsed().as_secs_f64());

    let (mut worst, mut resident) = (Duration::ZERO, 0);
    for round in 0..3_u64 {
        let caches = drop_caches();
        let mut process = node.start();
        // Under load, so that it dies with work in hand.
        let client = cluster(&node.cluster_file());
        let mut load = JoinSet::new();
        for task in 0..16_u64 {
            let client = client.clone();
            load.spawn(async move {
                for number in 0.. {
                    let content = small((round + 1) << 48 | task << 32 | number);
                    if client.put(content).await.is_err() {
                        return;
                    }
                    let _ = client.get(BlobName::of(&small((number * 7919 + task * 104_729) % records)), None).await;
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (now, highest) = (memory_mib(process.id(), "VmRSS:"), memory_mib(process.id(), "VmHWM:"));
        resident = resident.max(highest);
        let ready_after = process.ready_after;
        process.kill();
        load.abort_all();
        drop(process);
        let caches_again = drop_caches();
        let mut back = node.start();
        worst = worst.max(back.ready_after);
        println!(
            "round {round}: started in {:.2} s (caches dropped: {caches}), {now} MiB resident under load ({highest} at most); \
             back {:.2} s after kill -9 (caches dropped: {caches_again})",
            ready_after.as_secs_f64(),
            back.ready_after.as_secs_f64(),
        );
        resident = resident.max(memory_mib(back.id(), "VmHWM:"));
        back.kill();
    }

    let segments = files_below(&dir.path().join("node1/segments"));
    let caches = drop_caches();
    let disk_rate = sequential_rate(&segments);
    drop_caches();
    let args = ["storage-node", "--config", &node.config, "--rebuild-index"];
    let mut rebuild = command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let (began, mut rebuild_mib) = (Instant::now(), 0);
    while rebuild.try_wait().unwrap().is_none() {
        rebuild_mib = rebuild_mib.max(memory_mib(rebuild.id(), "VmHWM:"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut text = String::new();
    rebuild.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let bytes: u64 = segments.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let rate = bytes as f64 / 1e6 / seconds;
    println!("{}", text.trim());
    println!(
        "rebuilt at {rate:.0} MB/s in {seconds:.1} s with {rebuild_mib} MiB at most; the disk reads {disk_rate:.0} MB/s \
         (caches dropped: {caches}): {:.2}",
        rate / disk_rate
    );
    let began = Instant::now();
    let (code, text, _) = node.offline(&["--fsck"]);
    println!("{}checked in {:.1} s", text, began.elapsed().as_secs_f64());
    assert_eq!(code, Some(0));
    assert!(resident.max(rebuild_mib) <= 512, "{resident} and {rebuild_mib} MiB resident");
    assert!(worst <= Duration::from_secs(5), "{worst:?}");
    // Of smaller ones there are more to a second than an index takes.
    assert!(*CONTENT_BYTES < 4096 || rate >= disk_rate / 2.0, "{rate:.0} of {disk_rate:.0} MB/s");
}
