//! Storage nodes as processes of their own, under load, while things go wrong. For each fault a line tells how many requests
//! there were, how many failed, how many acknowledged blobs were lost, and how long it took until every blob had all its
//! copies again. None may ever be lost.
//!
//! `LAZARET_KILL_ROUNDS` makes the loop of kills longer than it is by default. Tests that make namespaces or file systems need
//! root and say so where they do not have it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_node_client::cluster::Cluster;
use lazaret_protocol::BlobName;

use crate::harness::{cluster, content, free_addresses, lazaret, read};
use crate::storage::{Load, PATIENCE, Shared, Storage};

/// Kills in `make test`.
const KILL_ROUNDS: usize = 50;

/// Checks and prints a fault's line.
async fn conclude(fault: &str, shared: &Shared, cluster: &Cluster, copies: usize) -> u64 {
    let replicated = shared.replicated(cluster, copies).await;
    let lost = shared.lost(cluster).await;
    let (requests, failures) = (shared.requests.load(Ordering::Relaxed), shared.failures.load(Ordering::Relaxed));
    let blobs = shared.acknowledged.lock().await.len();
    println!(
        "fault: {fault} | requests {requests} | failed {failures} | blobs {blobs}, lost {lost} | all {copies} copies {:.1} s after",
        replicated.as_secs_f64()
    );
    assert_eq!(lost, 0, "{fault}");
    failures
}

/// Whether this process may make namespaces and mount file systems.
fn is_root() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !root {
        eprintln!("skipped: it needs root");
    }
    root
}

fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_nodes_lose_nothing_however_often() {
    let rounds = std::env::var("LAZARET_KILL_ROUNDS").map_or(KILL_ROUNDS, |rounds| rounds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut storage = Storage::on_loopback(dir.path(), 3, 2, 3, &[]);
    let client = cluster(&storage.file());
    let load = Load::start(&client, 4, Duration::from_millis(5));
    load.more(40).await;
    for round in 0..rounds {
        // Which one differs from round to round and is the same in every run.
        let victim = content(round as u64, 1)[0] as usize % 3;
        storage.kill(victim);
        load.more(20).await;
        storage.start(victim);
        load.more(10).await;
    }
    let shared = load.stop().await;
    let failures = conclude(&format!("kill -9 of a random node, {rounds} times"), &shared, &client, 3).await;
    // One node at a time is down, so two of three always are there.
    let requests = shared.requests.load(Ordering::Relaxed);
    assert!(failures * 100 <= requests, "{failures} of {requests} requests failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = Storage::on_loopback(dir.path(), 3, 2, 3, &[]);
    let client = cluster(&storage.file());
    let load = Load::start(&client, 4, Duration::from_millis(5));
    load.more(40).await;
    for _ in 0..2 {
        for at in 0..3 {
            storage.terminate(at);
            load.more(30).await;
            storage.start(at);
            // The next one goes once this one is back in use.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            load.more(30).await;
        }
    }
    let shared = load.stop().await;
    let failures = conclude("rolling restart, twice", &shared, &client, 3).await;
    assert_eq!(failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_is_made_good_by_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = Storage::on_loopback(dir.path(), 4, 2, 3, &[("lost_after_seconds", "2")]);
    let client = cluster(&storage.file());
    let load = Load::start(&client, 4, Duration::from_millis(5));
    load.more(300).await;
    storage.kill(2);
    load.more(100).await;
    let shared = load.stop().await;
    let failures = conclude("loss of one of four nodes", &shared, &client, 3).await;
    assert_eq!(failures, 0);
    // It returns with an empty disk.
    fs::remove_dir_all(storage.data(2)).unwrap();
    storage.start(2);
    conclude("return with an empty disk", &shared, &client, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_behind_a_slow_network_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let slow = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let real = free_addresses(3);
    let mut addresses: Vec<String> = real.iter().map(ToString::to_string).collect();
    addresses[1] = slow.local_addr().unwrap().to_string();
    let mut storage = Storage::init(dir.path(), &addresses, 2, 3, &[]);
    storage.set(1, "listen", &real[1].to_string());
    crate::relay::start(slow, real[1], Duration::from_millis(200));
    (0..3).for_each(|at| storage.start(at));
    let client = cluster(&storage.file());
    let load = Load::start(&client, 4, Duration::from_millis(5));
    load.more(200).await;
    let shared = load.stop().await;
    client.settle().await;
    let begun = Instant::now();
    for name in shared.acknowledged.lock().await.keys().take(50) {
        read(&client, *name).await.unwrap();
    }
    let mean = begun.elapsed() / 50;
    let failures = conclude("200 ms delay before one of three nodes", &shared, &client, 3).await;
    assert_eq!(failures, 0);
    assert!(mean < Duration::from_millis(150), "a get took {mean:?}, though two nodes of three are near");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_refuses_writes_and_recovers_alone() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let addresses: Vec<String> = free_addresses(3).iter().map(ToString::to_string).collect();
    let mut storage = Storage::init(dir.path(), &addresses, 2, 2, &[("segment_bytes_max", "8388608")]);
    let small = storage.data(0);
    fs::create_dir_all(&small).unwrap();
    run(&["mount", "-t", "tmpfs", "-o", "size=96m", "none", small.to_str().unwrap()]);
    let _unmount = Unmount(small.clone());
    storage.set(0, "reserve_bytes", "33554432");
    (0..3).for_each(|at| storage.start(at));
    let client = cluster(&storage.file());
    let load = Load::start(&client, 4, Duration::ZERO);
    let begun = Instant::now();
    let full = || async {
        let status = client.status().await;
        status.iter().any(|(_, status)| status.as_ref().is_ok_and(|status| status.full))
    };
    while !full().await {
        assert!(begun.elapsed() < PATIENCE, "the small disk does not fill");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    load.more(100).await;
    let shared = load.stop().await;
    let failures = conclude("a full disk on one of three nodes", &shared, &client, 2).await;
    assert_eq!(failures, 0, "the other two take everything");
    run(&["mount", "-o", "remount,size=512m", small.to_str().unwrap()]);
    let begun = Instant::now();
    // A write tells whether there is space again.
    for seed in 0.. {
        client.put(Bytes::from(content(u64::MAX - seed, 1000))).await.unwrap();
        if !full().await {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the node does not notice the space it has");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_clocks_expire_nothing_and_late_returns_bring_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = Storage::on_loopback(dir.path(), 3, 2, 3, &[]);
    set_retention(&storage, 2);
    let client = cluster(&storage.file());
    let load = Load::start(&client, 4, Duration::from_millis(5));
    load.more(100).await;
    // A node whose clock is a week ahead: it must not let anything expire.
    storage.terminate(1);
    storage.prefixes[1] = clock_ahead(dir.path(), 7 * 24);
    storage.start(1);
    load.more(100).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    storage.terminate(1);
    storage.prefixes[1].clear();
    storage.start(1);
    let shared = load.stop().await;
    let failures = conclude("a node's clock a week ahead", &shared, &client, 3).await;
    assert_eq!(failures, 0);

    // All but one go on five hours later; the one returns with what has expired meanwhile.
    let old: Vec<BlobName> = shared.acknowledged.lock().await.keys().copied().collect();
    (0..3).for_each(|at| storage.terminate(at));
    for at in 0..3 {
        storage.prefixes[at] = clock_ahead(dir.path(), 5);
    }
    storage.start(0);
    storage.start(1);
    gone(&client, &old[..20.min(old.len())], 2).await;
    storage.start(2);
    gone(&client, &old, 3).await;
    println!("fault: return after the retention window | blobs {}, returned 0", old.len());
}

/// Begins a command that runs with its wall clock set ahead, by a library that stands between it and the kernel. (libfaketime allocates
/// before it knows the time, and an allocator that asks for the time waits for it forever.)
fn clock_ahead(dir: &Path, hours: u64) -> Vec<String> {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    if !library.exists() {
        fs::write(&source, CLOCK).unwrap();
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).status().unwrap();
        assert!(built.success());
    }
    let (preload, ahead) = (format!("LD_PRELOAD={}", library.display()), format!("CLOCK_AHEAD={}", hours * 3600));
    ["env", &preload, &ahead].map(str::to_owned).to_vec()
}

/// The wall clock, as many seconds ahead as the environment says.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    const char *ahead = getenv("CLOCK_AHEAD");
    if (!failed && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += atoll(ahead);
    return failed;
}
"#;

/// Waits until none of the nodes that run holds any of these.
async fn gone(client: &Cluster, names: &[BlobName], nodes: usize) {
    let begun = Instant::now();
    loop {
        let answering = client.status().await.iter().filter(|(_, status)| status.is_ok()).count();
        let mut held = 0;
        for name in names {
            held += usize::from(client.stat(*name).await.is_ok());
        }
        if held == 0 && answering == nodes {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{held} expired blobs are still there, {answering} nodes answer");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn set_retention(storage: &Storage, hours: u32) {
    let file = storage.file();
    let output =
        lazaret(&["cluster", "set", "--cleanuprange", &hours.to_string(), "--cluster", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Nodes in network namespaces of their own, and this test again in one that reaches them all.
struct Namespaces {
    names: Vec<String>,
}

impl Namespaces {
    const HUB: &'static str = "hub";

    fn make(nodes: usize) -> Self {
        let prefix = format!("lz{}", std::process::id());
        let hub = format!("{prefix}{}", Self::HUB);
        run(&["ip", "netns", "add", &hub]);
        let mut made = Self { names: vec![hub.clone()] };
        run(&["ip", "-n", &hub, "link", "add", "br0", "type", "bridge"]);
        run(&["ip", "-n", &hub, "addr", "add", "10.77.0.1/24", "dev", "br0"]);
        run(&["ip", "-n", &hub, "link", "set", "br0", "up"]);
        run(&["ip", "-n", &hub, "link", "set", "lo", "up"]);
        for at in 0..nodes {
            let name = format!("{prefix}n{at}");
            run(&["ip", "netns", "add", &name]);
            made.names.push(name.clone());
            let (outer, address) = (format!("v{at}"), format!("10.77.0.{}/24", 10 + at));
            run(&["ip", "-n", &hub, "link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            run(&["ip", "-n", &hub, "link", "set", &outer, "master", "br0", "up"]);
            run(&["ip", "-n", &name, "addr", "add", &address, "dev", "eth0"]);
            run(&["ip", "-n", &name, "link", "set", "eth0", "up"]);
            run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        }
        made
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Set for the run of a test inside the hub's namespace: where the namespaces' names begin.
const INSIDE: &str = "LAZARET_TEST_NAMESPACES";

#[test]
fn a_partition_is_survived_and_healed() {
    if !is_root() {
        return;
    }
    let namespaces = Namespaces::make(3);
    let hub = &namespaces.names[0];
    let prefix = hub.strip_suffix(Namespaces::HUB).unwrap();
    let status = Command::new("ip")
        .args(["netns", "exec", hub])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults::inside_the_namespaces", "--ignored", "--nocapture"])
        .env(INSIDE, prefix)
        .status()
        .unwrap();
    assert!(status.success());
}

/// The part of the partition test that runs in the namespace that reaches all nodes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs inside a namespace that another test makes"]
async fn inside_the_namespaces() {
    let Ok(prefix) = std::env::var(INSIDE) else { panic!("only a_partition_is_survived_and_healed runs this") };
    let dir = tempfile::tempdir().unwrap();
    let addresses: Vec<String> = (0..3).map(|at| format!("10.77.0.{}:8890", 10 + at)).collect();
    let mut storage = Storage::init(dir.path(), &addresses, 2, 3, &[]);
    for at in 0..3 {
        storage.prefixes[at] = ["ip", "netns", "exec", &format!("{prefix}n{at}")].map(str::to_owned).to_vec();
        storage.start(at);
    }
    let client = cluster(&storage.file());
    let load = Load::start(&client, 4, Duration::from_millis(5));
    load.more(60).await;
    for victim in [0, 2, 1] {
        // The node reaches nobody, and nobody it; packets vanish without an answer.
        run(&["ip", "link", "set", &format!("v{victim}"), "down"]);
        load.more(60).await;
        run(&["ip", "link", "set", &format!("v{victim}"), "up"]);
        load.more(60).await;
    }
    let shared = load.stop().await;
    let failures = conclude("each of three nodes cut off in turn", &shared, &client, 3).await;
    assert_eq!(failures, 0);
}
