//! Storage nodes as processes of their own, without gateway and worker, and a load of puts and gets that remembers what was
//! acknowledged.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_node_client::cluster::Cluster;
use lazaret_protocol::BlobName;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::harness::{Process, content, free_addresses, lazaret, read};

/// How long repair may take here.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Storage nodes without gateway and worker.
pub struct Storage {
    pub dir: PathBuf,
    /// What each node's command begins with, as `ip netns exec`.
    pub prefixes: Vec<Vec<String>>,
    pub nodes: Vec<Option<Process>>,
}

impl Storage {
    /// A new cluster in `dir`, of which nothing runs yet. `settings` replaces lines of the nodes' configuration.
    pub fn init(dir: &Path, addresses: &[String], min: u8, max: u8, settings: &[(&str, &str)]) -> Self {
        let (min, max) = (min.to_string(), max.to_string());
        let nodes = addresses.len().to_string();
        let mut init = vec!["cluster", "init", dir.to_str().unwrap(), "--nodes", &nodes];
        init.extend(["--min-replica", &min, "--max-replica", &max]);
        for address in addresses {
            init.extend(["--node-address", address]);
        }
        let output = lazaret(&init);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let storage = Self {
            dir: dir.to_owned(),
            prefixes: vec![Vec::new(); addresses.len()],
            nodes: addresses.iter().map(|_| None).collect(),
        };
        let quick =
            [("ping_milliseconds", "200"), ("repair_interval_seconds", "2"), ("retention_interval_seconds", "1")];
        for at in 0..addresses.len() {
            for (key, value) in quick.iter().chain(settings) {
                storage.set(at, key, value);
            }
        }
        storage
    }

    pub fn on_loopback(dir: &Path, nodes: usize, min: u8, max: u8, settings: &[(&str, &str)]) -> Self {
        let addresses: Vec<String> = free_addresses(nodes).iter().map(ToString::to_string).collect();
        let mut storage = Self::init(dir, &addresses, min, max, settings);
        (0..nodes).for_each(|at| storage.start(at));
        storage
    }

    pub fn config(&self, at: usize) -> PathBuf {
        self.dir.join(format!("node{}.yml", at + 1))
    }

    pub fn data(&self, at: usize) -> PathBuf {
        self.dir.join(format!("node{}", at + 1))
    }

    /// Gives a setting of a node's configuration another value.
    pub fn set(&self, at: usize, key: &str, value: &str) {
        let text = fs::read_to_string(self.config(at)).unwrap();
        let lines: Vec<String> = text
            .lines()
            .map(|line| match line.trim_start().strip_prefix(key) {
                Some(rest) if rest.starts_with(':') => {
                    format!("{}{key}: {value}", " ".repeat(line.len() - line.trim_start().len()))
                }
                _ => line.to_owned(),
            })
            .collect();
        assert!(lines.iter().any(|line| line.trim_start() == format!("{key}: {value}")), "no setting {key} in {text}");
        fs::write(self.config(at), lines.join("\n") + "\n").unwrap();
    }

    pub fn start(&mut self, at: usize) {
        let config = self.config(at);
        let lazaret = crate::harness::command(&["storage-node", "--config", config.to_str().unwrap()]);
        let command = match self.prefixes[at].split_first() {
            None => lazaret,
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(lazaret.get_program()).args(lazaret.get_args()).env("LAZARET_LOG", "warn");
                command
            }
        };
        self.nodes[at] = Some(Process::try_start_command(command).unwrap());
    }

    pub fn kill(&mut self, at: usize) {
        self.nodes[at].take().unwrap().kill();
    }

    pub fn terminate(&mut self, at: usize) {
        assert_eq!(self.nodes[at].take().unwrap().terminate(), Some(0));
    }

    pub fn file(&self) -> PathBuf {
        self.dir.join("cluster.yml")
    }
}

/// Puts and gets from several tasks until told to stop, and remembers what was acknowledged.
pub struct Load {
    pub shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
pub struct Shared {
    pub acknowledged: Mutex<HashMap<BlobName, (u64, usize)>>,
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    stop: AtomicBool,
}

impl Load {
    pub fn start(cluster: &Cluster, tasks: u64, pause: Duration) -> Self {
        static SEEDS: AtomicU64 = AtomicU64::new(0);
        let shared = Arc::new(Shared::default());
        let mut running = JoinSet::new();
        for _ in 0..tasks {
            let (cluster, shared) = (cluster.clone(), Arc::clone(&shared));
            let task = SEEDS.fetch_add(1, Ordering::Relaxed);
            running.spawn(async move {
                for number in 0_u64.. {
                    if shared.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let length = if number % 25 == 24 { 5 << 20 } else { 1 + (number as usize * 7919) % 60_000 };
                    let seed = task << 32 | number;
                    shared.step(&cluster, seed, length).await;
                    tokio::time::sleep(pause).await;
                }
            });
        }
        Self { shared, tasks: running }
    }

    /// Waits until so many more requests were answered.
    pub async fn more(&self, count: u64) {
        let until = self.shared.requests.load(Ordering::Relaxed) + count;
        let begun = Instant::now();
        while self.shared.requests.load(Ordering::Relaxed) < until {
            assert!(begun.elapsed() < PATIENCE, "the load stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn stop(mut self) -> Arc<Shared> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.shared
    }
}

impl Shared {
    /// A put of something new and a get of something old.
    async fn step(&self, cluster: &Cluster, seed: u64, length: usize) {
        self.requests.fetch_add(2, Ordering::Relaxed);
        match cluster.put(Bytes::from(content(seed, length))).await {
            Ok(stored) => drop(self.acknowledged.lock().await.insert(stored.name, (seed, length))),
            Err(error) => self.failed("put", &error),
        }
        let some = {
            let acknowledged = self.acknowledged.lock().await;
            let at = seed as usize % acknowledged.len().max(1);
            acknowledged.iter().nth(at).map(|(name, made)| (*name, *made))
        };
        if let Some((name, (seed, length))) = some {
            match read(cluster, name).await {
                Ok(bytes) => assert!(bytes == content(seed, length), "{name} came back changed"),
                Err(error) => self.failed("get", &error),
            }
        }
    }

    fn failed(&self, what: &str, error: &dyn std::fmt::Display) {
        eprintln!("{what}: {error}");
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads everything that was acknowledged; how much of it is lost.
    pub async fn lost(&self, cluster: &Cluster) -> usize {
        let mut lost = 0;
        for (name, (seed, length)) in self.acknowledged.lock().await.iter() {
            match read(cluster, *name).await {
                Ok(bytes) => assert!(bytes == content(*seed, *length), "{name} came back changed"),
                Err(error) => {
                    eprintln!("lost: {error}");
                    lost += 1;
                }
            }
        }
        lost
    }

    /// Waits until everything acknowledged has `copies`; how long that took.
    pub async fn replicated(&self, cluster: &Cluster, copies: usize) -> Duration {
        let begun = Instant::now();
        for name in self.acknowledged.lock().await.keys() {
            loop {
                let holders = cluster.stat(*name).await.map(|stat| stat.held_on.len());
                if holders.as_ref().is_ok_and(|holders| *holders >= copies) {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "{name} has {holders:?} copies after {PATIENCE:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        begun.elapsed()
    }
}
