//! The worker against the real result store and queue on SQLite, and the real cluster client over in-process nodes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
// The nodes of the cluster client's own tests: they keep blobs in memory and misbehave on request.
#[allow(dead_code, reason = "this test uses a part")]
#[path = "../../node-client/tests/support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use common::{eicar, engine_info, tar, zip};
use lazaret_analysis::{
    AnalysisRecord, DataId, EngineVersion, FileInfo, Limits, NestedRecord, NewAnalysis, PasswordSeal, Principal,
    ProgressCache, ResultCode, ResultStore, Rule, SentAlong, Shares, SqliteBackend, State, Task, TaskQueue,
};
use lazaret_node_client::{Cluster, ClusterOptions, Environment};
use lazaret_protocol::BlobName;
use lazaret_scan_worker::engine::{Engine, EngineInfo, EngineVerdict, ScanContext, Subject};
use lazaret_scan_worker::engines;
use lazaret_scan_worker::worker::ATTEMPTS_MAX;
use lazaret_scan_worker::{ScanWorker, WorkerOptions};
use support::{Fault, MemoryNode, TestCluster};
use tokio::sync::watch;
use tokio::task::JoinHandle;

struct Station {
    backend: Arc<SqliteBackend>,
    cluster: Cluster,
    nodes: Vec<MemoryNode>,
    _directory: tempfile::TempDir,
}

struct Running {
    shutdown: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.send(true).unwrap();
        self.task.await.unwrap();
    }
}

fn seal() -> Arc<PasswordSeal> {
    Arc::new(PasswordSeal::from_secret("secret").unwrap())
}

fn now_ms() -> u64 {
    Environment::system().clock.unix_ms()
}

impl Station {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let backend = Arc::new(SqliteBackend::open(directory.path().join("results.db")).await.unwrap());
        let TestCluster { nodes, cluster, .. } = TestCluster::with_options(1, 1, 1, ClusterOptions::default());
        Self { backend, cluster, nodes, _directory: directory }
    }

    fn options(&self) -> WorkerOptions {
        WorkerOptions {
            lease_ms: 3_000,
            scan_threads: 2,
            concurrent_files: 4,
            sweep_interval: Duration::from_millis(50),
            shutdown_grace: Duration::from_millis(100),
            ..WorkerOptions::new("worker", [7; 32], seal())
        }
    }

    fn start_with(&self, options: WorkerOptions, engines: Vec<Arc<dyn Engine>>) -> Running {
        let backend = self.backend.clone();
        let worker = ScanWorker::new(
            options,
            backend.clone(),
            backend.clone(),
            backend,
            self.cluster.clone(),
            Environment::system(),
            engines,
        );
        let (shutdown, asked) = watch::channel(false);
        let task = tokio::spawn(worker.unwrap().run(asked));
        Running { shutdown, task }
    }

    fn start(&self) -> Running {
        self.start_with(self.options(), engines::builtin().unwrap())
    }

    /// Stores a file and records its analysis, without queueing it.
    async fn create(&self, name: &str, content: impl Into<Bytes>, rule: Rule) -> DataId {
        let content = content.into();
        let stored = self.cluster.put(content.clone()).await.unwrap();
        let new = NewAnalysis {
            data_id: DataId::random(),
            blob: stored.name.to_string(),
            file: FileInfo {
                display_name: name.into(),
                size_bytes: content.len() as u64,
                md5: "from the gateway".into(),
                sha1: "from the gateway".into(),
                sha256: "from the gateway".into(),
                sha512: "from the gateway".into(),
                ..FileInfo::default()
            },
            rule,
            principal: Principal::default(),
            user_agent: String::new(),
            metadata: None,
            sent_along: SentAlong::default(),
            passwords: None,
            receive_ms: now_ms(),
            upload_ms: now_ms(),
            hash_ms: 0,
            queued_ms: now_ms(),
        };
        self.backend.create(&new).await.unwrap();
        new.data_id
    }

    async fn queue(&self, data_id: DataId) {
        self.backend.push(Task::scan(data_id, now_ms())).await.unwrap();
    }

    async fn submit(&self, name: &str, content: impl Into<Bytes>) -> DataId {
        let data_id = self.create(name, content, Rule::with_defaults("test")).await;
        self.queue(data_id).await;
        data_id
    }

    /// Polls, as a client does, until the result stands.
    async fn finished(&self, data_id: DataId) -> AnalysisRecord {
        self.becomes(data_id, State::is_finished).await
    }

    async fn running(&self, data_id: DataId) -> AnalysisRecord {
        self.becomes(data_id, |state| state == State::Running).await
    }

    async fn becomes(&self, data_id: DataId, is_wanted: impl Fn(State) -> bool) -> AnalysisRecord {
        let poll = async {
            loop {
                let record = ResultStore::get(&*self.backend, data_id).await.unwrap().unwrap();
                if is_wanted(record.state) {
                    return record;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), poll).await.expect("not within a minute")
    }

    async fn task_is_gone(&self, data_id: DataId) {
        let gone = async {
            while self.backend.contains(data_id).await.unwrap() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the task is still there");
    }
}

/// An engine that tells the test when it begins and may be held.
struct Probe {
    begun: mpsc::Sender<String>,
    held: Mutex<mpsc::Receiver<()>>,
    hold: &'static str,
    scans: AtomicUsize,
}

impl Probe {
    fn new(hold: &'static str) -> (Arc<Self>, mpsc::Receiver<String>, mpsc::Sender<()>) {
        let (begun, on_begin) = mpsc::channel();
        let (release, held) = mpsc::channel();
        (Arc::new(Self { begun, held: Mutex::new(held), hold, scans: AtomicUsize::new(0) }), on_begin, release)
    }
}

impl Engine for Probe {
    fn info(&self) -> EngineInfo {
        engine_info("probe", "Probe")
    }

    fn scan(&self, subject: &Subject<'_>, _: &ScanContext) -> EngineVerdict {
        let sample = subject.sample;
        self.scans.fetch_add(1, Ordering::Relaxed);
        let _ = self.begun.send(sample.name().to_owned());
        if sample.name() == self.hold {
            let _ = self.held.lock().unwrap().recv();
        }
        EngineVerdict::clean()
    }
}

async fn begun(on_begin: mpsc::Receiver<String>, name: &'static str) -> mpsc::Receiver<String> {
    tokio::task::spawn_blocking(move || {
        while on_begin.recv_timeout(Duration::from_secs(30)).unwrap() != name {}
        on_begin
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn submissions_are_scanned_and_their_trees_recorded() {
    let station = Station::new().await;
    let clean = station.submit("clean.txt", "harmless").await;
    let infected = station.submit("a.zip", zip(&[("b.tar", &tar(&[("eicar.com", &eicar()), ("c", b"c")]))])).await;
    let worker = station.start();
    let record = station.finished(clean).await;
    let result = record.result.unwrap();
    assert_eq!((record.state, result.overall), (State::Done, ResultCode::NO_THREAT));
    assert_eq!(result.file.sha256, "from the gateway");
    assert_eq!(result.file.file_type, "text/plain");
    let record = station.finished(infected).await;
    let result = record.result.unwrap();
    assert_eq!(result.overall, ResultCode::INFECTED);
    let page = station.backend.nested(infected, 0, 10).await.unwrap();
    assert_eq!((page.total, page.records[0].path.as_str()), (1, "b.tar"));
    let page = station.backend.nested(page.records[0].data_id, 0, 10).await.unwrap();
    let paths: Vec<_> = page.records.iter().map(|record| (record.path.as_str(), record.result.own)).collect();
    assert_eq!(paths, [("b.tar/eicar.com", ResultCode::INFECTED), ("b.tar/c", ResultCode::NO_THREAT)]);
    station.task_is_gone(infected).await;
    station.task_is_gone(clean).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_gone_is_failed_with_the_reason() {
    let station = Station::new().await;
    let gone = station.submit("gone", "gone before it was scanned").await;
    station.nodes[0].forget(BlobName::of(b"gone before it was scanned"));
    let worker = station.start();
    let result = station.finished(gone).await.result.unwrap();
    assert_eq!(result.overall, ResultCode::FAILED);
    assert!(result.detail.contains("no node of the cluster holds it any more"), "{}", result.detail);
    assert!(result.blocked_reasons.contains(&result.detail));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_unavailable_is_tried_again_later() {
    let station = Station::new().await;
    let data_id = station.submit("file", vec![b'x'; 200_000]).await;
    // Before a single group of it has come.
    station.nodes[0].set(Fault::ResetsGetAfter(10_000));
    let worker = station.start();
    let requests = station.nodes[0].requests.clone();
    while requests.load(Ordering::Relaxed) < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!ResultStore::get(&*station.backend, data_id).await.unwrap().unwrap().state.is_finished());
    station.nodes[0].set(Fault::None);
    assert_eq!(station.finished(data_id).await.result.unwrap().overall, ResultCode::NO_THREAT);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_took_its_workers_down_is_closed() {
    let station = Station::new().await;
    let data_id = station.submit("killer", "content").await;
    // Workers that leased it and were never heard of again.
    let mut now = now_ms() - 100_000;
    for _ in 0..ATTEMPTS_MAX {
        assert_eq!(station.backend.lease("dead", 1, 1_000, now).await.unwrap().len(), 1);
        now += 2_000;
    }
    let worker = station.start();
    let result = station.finished(data_id).await.result.unwrap();
    assert_eq!(result.overall, ResultCode::FAILED);
    assert!(result.detail.contains("three times"), "{}", result.detail);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_queues_what_has_no_task() {
    let station = Station::new().await;
    let lost = station.create("lost", "never queued", Rule::with_defaults("test")).await;
    let worker =
        station.start_with(WorkerOptions { sweep_age_ms: 0, ..station.options() }, engines::builtin().unwrap());
    assert_eq!(station.finished(lost).await.result.unwrap().overall, ResultCode::NO_THREAT);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_analysis_says_so_whether_it_runs_or_waits() {
    let station = Station::new().await;
    let (probe, on_begin, release) = Probe::new("held");
    let running = station.submit("file.tar", tar(&[("held", b"1"), ("other", b"2")])).await;
    let worker = station.start_with(station.options(), vec![probe]);
    begun(on_begin, "held").await;
    assert!(station.backend.request_cancel(running).await.unwrap());
    // The supervisor looks every second; the engine is let go when it must have looked.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    release.send(()).unwrap();
    let record = station.finished(running).await;
    assert_eq!(record.result.unwrap().overall, ResultCode::CANCELLED);
    worker.stop().await;

    let waiting = station.submit("waiting", "content").await;
    assert!(station.backend.request_cancel(waiting).await.unwrap());
    let worker = station.start();
    assert_eq!(station.finished(waiting).await.result.unwrap().overall, ResultCode::CANCELLED);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_timeout_is_31_and_limits_come_from_the_rule() {
    let station = Station::new().await;
    let (probe, on_begin, release) = Probe::new("held");
    let slow = Rule { global_timeout_seconds: Some(1), ..Rule::with_defaults("slow") };
    let slow = station.create("file.tar", tar(&[("held", b"1"), ("other", b"2")]), slow).await;
    station.queue(slow).await;
    let shallow = Rule { limits: Limits { depth: 1, ..Limits::default() }, ..Rule::with_defaults("shallow") };
    let shallow = station.create("file.zip", zip(&[("inner.zip", &zip(&[("a", b"a")]))]), shallow).await;
    let worker = station.start_with(station.options(), vec![probe]);
    begun(on_begin, "held").await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    release.send(()).unwrap();
    assert_eq!(station.finished(slow).await.result.unwrap().overall, ResultCode::GLOBAL_TIMEOUT);
    station.queue(shallow).await;
    assert_eq!(station.finished(shallow).await.result.unwrap().overall, ResultCode::ARCHIVE_DEPTH);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_gives_running_scans_back_and_another_worker_finishes_them() {
    let station = Station::new().await;
    let (probe, on_begin, release) = Probe::new("held");
    let data_id = station.submit("file.tar", tar(&[("held", b"1"), ("other", &eicar())])).await;
    let worker = station.start_with(station.options(), vec![probe]);
    begun(on_begin, "held").await;
    worker.shutdown.send(true).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    release.send(()).unwrap();
    worker.task.await.unwrap();
    assert!(!ResultStore::get(&*station.backend, data_id).await.unwrap().unwrap().state.is_finished());
    // Given back, not abandoned: it can be leased at once and it doesn't count as an attempt.
    let lease = station.backend.lease("other", 1, 0, now_ms()).await.unwrap().remove(0);
    assert_eq!((lease.attempts, lease.releases), (1, 1));
    station.backend.release(&lease.token, 0, now_ms()).await.unwrap();
    let worker = station.start();
    assert_eq!(station.finished(data_id).await.result.unwrap().overall, ResultCode::INFECTED);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_lease_writes_nothing() {
    let station = Station::new().await;
    let (probe, on_begin, release) = Probe::new("held");
    let data_id = station.submit("file.tar", tar(&[("held", b"1"), ("other", b"2")])).await;
    let worker = station.start_with(WorkerOptions { lease_ms: 600, ..station.options() }, vec![probe]);
    begun(on_begin, "held").await;
    // By a clock far ahead the lease has ended: somebody else takes the task.
    let stolen = station.backend.lease("thief", 1, 60_000, now_ms() + 1_000_000).await.unwrap();
    assert_eq!(stolen.len(), 1);
    tokio::time::sleep(Duration::from_millis(600)).await;
    release.send(()).unwrap();
    worker.stop().await;
    let record = ResultStore::get(&*station.backend, data_id).await.unwrap().unwrap();
    assert!(!record.state.is_finished());
    assert!(station.backend.extend(&stolen[0].token, 1_000, now_ms()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_submissions_on_few_threads_all_finish() {
    let station = Station::new().await;
    let worker = station.start();
    let mut ids = Vec::new();
    for i in 0..60 {
        let content = if i % 3 == 0 { zip(&[("eicar", &eicar())]) } else { format!("content {i}").into_bytes() };
        ids.push((i, station.submit(&format!("file-{i}"), content).await));
    }
    for (i, data_id) in ids {
        let expected = if i % 3 == 0 { ResultCode::INFECTED } else { ResultCode::NO_THREAT };
        assert_eq!(station.finished(data_id).await.result.unwrap().overall, expected);
    }
    assert_eq!(station.backend.count_unfinished().await.unwrap(), 0);
    worker.stop().await;
    assert!(ProgressCache::get(&*station.backend, DataId([0; 16])).await.unwrap().is_none());
}

/// Path, ordinal, own and overall result, SHA-512 and threats.
type Seen = (String, u32, u16, u16, String, Vec<String>);

/// What clients see of a tree: every file below `parent` with what was found, and that its own id leads to the same.
async fn tree_of(station: &Station, parent: DataId) -> Vec<Seen> {
    let mut found = Vec::new();
    let mut open = vec![parent];
    while let Some(parent) = open.pop() {
        let mut records: Vec<NestedRecord> = Vec::new();
        loop {
            let page = station.backend.nested(parent, records.len() as u32, 1000).await.unwrap();
            records.extend(page.records);
            if records.len() as u64 >= page.total {
                assert_eq!(page.total, records.len() as u64);
                break;
            }
        }
        for record in records {
            let alone = ResultStore::get(&*station.backend, record.data_id).await.unwrap().unwrap();
            assert_eq!((alone.parent, alone.root), (Some(parent), record.root));
            let result = record.result;
            if let Some(container) = &result.container {
                if let Some(worst) = container.worst_child {
                    let worst = ResultStore::get(&*station.backend, worst).await.unwrap().unwrap();
                    assert_eq!(worst.parent, Some(record.data_id));
                }
                open.push(record.data_id);
            }
            let threats = result.engines.iter().map(|engine| engine.threat.clone()).collect();
            found.push((
                record.path,
                record.ordinal,
                result.own.code(),
                result.overall.code(),
                result.file.sha512,
                threats,
            ));
        }
    }
    found.sort();
    found
}

/// Scans of the probe so far.
fn scans(probe: &Probe) -> usize {
    probe.scans.load(Ordering::Relaxed)
}

async fn scanned(station: &Station, name: &str, content: Vec<u8>, rule: Rule) -> (DataId, AnalysisRecord) {
    let data_id = station.create(name, content, rule).await;
    station.queue(data_id).await;
    (data_id, station.finished(data_id).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_is_not_scanned_again_and_looks_the_same() {
    let station = Station::new().await;
    let (probe, _on_begin, _release) = Probe::new("");
    let mut engines = engines::builtin().unwrap();
    engines.push(probe.clone());
    let worker = station.start_with(station.options(), engines);
    let rule = || Rule::with_defaults("test");
    let inner = zip(&[("eicar.com", &eicar()), ("deep.tar", &tar(&[("x", b"x"), ("y", b"y")])), ("c", b"c")]);
    let outer = tar(&[("first", b"1"), ("inner.zip", &inner), ("last", b"2")]);

    let (first, record) = scanned(&station, "outer.tar", outer.clone(), rule()).await;
    let result = record.result.unwrap();
    assert_eq!(result.overall, ResultCode::INFECTED);
    let tree = tree_of(&station, first).await;
    assert_eq!((tree.len(), scans(&probe)), (8, 9));

    // The whole submission again, a container out of it, a leaf; and the container in a new one.
    let (again, record) = scanned(&station, "outer.tar", outer.clone(), rule()).await;
    let known = record.result.unwrap();
    assert_eq!(scans(&probe), 9, "nothing was scanned");
    assert_eq!(
        (known.own, known.overall, &known.blocked_reasons),
        (result.own, result.overall, &result.blocked_reasons)
    );
    assert_eq!((&known.file, known.engines.len()), (&result.file, result.engines.len()));
    assert_eq!(tree_of(&station, again).await, tree);
    let (within, record) = scanned(&station, "inner.zip", inner.clone(), rule()).await;
    let below = |tree: &[Seen]| {
        let inner = |path: &str| path.strip_prefix("inner.zip/").map(str::to_owned);
        let mut files: Vec<_> = tree.iter().filter_map(|file| Some((inner(&file.0)?, file.2, file.3))).collect();
        files.sort();
        files
    };
    assert_eq!((record.result.unwrap().overall, scans(&probe)), (ResultCode::INFECTED, 9));
    let files: Vec<_> = tree_of(&station, within).await.into_iter().map(|file| (file.0, file.2, file.3)).collect();
    assert_eq!(files, below(&tree));

    let (moved, _) = scanned(&station, "new.tar", tar(&[("n", b"new"), ("a/inner.zip", &inner)]), rule()).await;
    assert_eq!(scans(&probe), 11, "the new container and its new leaf");
    let moved: Vec<_> = tree_of(&station, moved).await.into_iter().map(|file| (file.0, file.2, file.3)).collect();
    assert_eq!(moved.len(), 2 + 5);
    for (path, own, overall) in below(&tree) {
        assert!(moved.contains(&(format!("a/inner.zip/{path}"), own, overall)), "{path} in {moved:?}");
    }
    let (_, leaf) = scanned(&station, "leaf", b"leaf".to_vec(), rule()).await;
    let (_, known) = scanned(&station, "leaf", b"leaf".to_vec(), rule()).await;
    assert_eq!(scans(&probe), 12);
    assert_eq!(known.result.unwrap().file, leaf.result.unwrap().file);

    // Another name, other engines and a rule that wants none of it find nothing; nor do tighter limits.
    scanned(&station, "other", b"leaf".to_vec(), rule()).await;
    scanned(&station, "leaf", b"leaf".to_vec(), Rule { engines: vec!["Probe".into()], ..rule() }).await;
    scanned(&station, "leaf", b"leaf".to_vec(), Rule { verdict_cache: false, ..rule() }).await;
    assert_eq!(scans(&probe), 15);
    let limits = [
        (Limits { depth: 2, ..Limits::default() }, ResultCode::ARCHIVE_DEPTH),
        (Limits { files: 7, ..Limits::default() }, ResultCode::ARCHIVE_FILES),
        (Limits { produced_bytes: 3_000, ..Limits::default() }, ResultCode::ARCHIVE_SIZE),
        (Limits { file_bytes: Some(2_000), ..Limits::default() }, ResultCode::ARCHIVE_SIZE),
    ];
    for (limits, code) in limits {
        let strict = Rule { limits, ..rule() };
        let (data_id, _) = scanned(&station, "outer.tar", outer.clone(), strict).await;
        let tree = tree_of(&station, data_id).await;
        let root = ResultStore::get(&*station.backend, data_id).await.unwrap().unwrap().result.unwrap();
        let mut codes: Vec<u16> = tree.iter().map(|file| file.2).collect();
        codes.push(root.own.code());
        assert!(codes.contains(&code.code()), "{code}: {codes:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_or_hit_a_limit_is_found_out_anew() {
    let station = Station::new().await;
    let (probe, _on_begin, _release) = Probe::new("");
    let worker = station.start_with(station.options(), vec![probe.clone()]);
    let shallow = Rule { limits: Limits { depth: 1, ..Limits::default() }, ..Rule::with_defaults("shallow") };
    let content = zip(&[("inner.zip", &zip(&[("a", b"a")])), ("good.zip", &zip(&[("b", b"b")]))]);
    let (_, record) = scanned(&station, "file.zip", content.clone(), shallow).await;
    assert_eq!((record.result.unwrap().overall, scans(&probe)), (ResultCode::ARCHIVE_DEPTH, 3));
    let (_, record) = scanned(&station, "file.zip", content, Rule::with_defaults("deep")).await;
    assert_eq!((record.result.unwrap().overall, scans(&probe)), (ResultCode::NO_THREAT, 8));
    // Broken: what is whole in it is kept, the container is not.
    let mut broken = zip(&[("whole.zip", &zip(&[("c", b"c")])), ("cut", &[b'x'; 5_000])]);
    broken.truncate(broken.len() - 30);
    // The second time the root, and its leaf unless engines were so slow that leaves were kept too.
    for expected in [12..=12, 13..=14] {
        let (_, record) = scanned(&station, "broken.zip", broken.clone(), Rule::with_defaults("deep")).await;
        assert_eq!(record.result.unwrap().overall, ResultCode::EXTRACTION_FAILED);
        assert!(expected.contains(&scans(&probe)), "{} of {expected:?}", scans(&probe));
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twins_wait_for_one_scan_and_are_not_cancelled_with_it() {
    let station = Station::new().await;
    let (probe, on_begin, release) = Probe::new("held");
    let worker = station.start_with(WorkerOptions { concurrent_files: 2, ..station.options() }, vec![probe.clone()]);
    let content = tar(&[("held", b"1"), ("other", b"2")]);
    let rule = || Rule::with_defaults("test");
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(station.create("file.tar", content.clone(), rule()).await);
    }
    // One after the other, so that they claim in this order.
    for id in &ids {
        station.queue(*id).await;
        station.running(*id).await;
    }
    let on_begin = begun(on_begin, "held").await;
    // Another file passes them all, though they are more than there are slots.
    let (_, other) = scanned(&station, "another", b"another".to_vec(), rule()).await;
    assert_eq!(other.result.unwrap().overall, ResultCode::NO_THREAT);
    assert!(station.backend.request_cancel(ids[0]).await.unwrap());
    assert_eq!(station.finished(ids[0]).await.state, State::Cancelled);
    release.send(()).unwrap();
    // The next one scans, the rest waits on.
    begun(on_begin, "held").await;
    assert!(station.backend.request_cancel(ids[2]).await.unwrap());
    assert_eq!(station.finished(ids[2]).await.state, State::Cancelled, "one that waits is cancelled alone");
    release.send(()).unwrap();
    for id in [ids[1], ids[3]] {
        let record = station.finished(id).await;
        assert_eq!((record.state, record.result.unwrap().overall), (State::Done, ResultCode::NO_THREAT));
        assert_eq!(tree_of(&station, id).await.len(), 2);
    }
    // The other file; three files by the first, at most, until it was cancelled; three by the second.
    assert!((1 + 3 + 2..=1 + 3 + 3).contains(&scans(&probe)), "{}", scans(&probe));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_taken_a_worker_down_is_scanned_alone() {
    let station = Station::new().await;
    let (probe, on_begin, release) = Probe::new("held");
    let running = station.submit("held", "held").await;
    let worker = station.start_with(station.options(), vec![probe]);
    let on_begin = begun(on_begin, "held").await;
    // Leased by two workers that were never heard of again.
    let suspect = station.create("suspect", "suspect", Rule::with_defaults("test")).await;
    station.backend.push(Task { attempts: 2, ..Task::scan(suspect, now_ms()) }).await.unwrap();
    let leased = async {
        while station.backend.depth().await.unwrap().leased < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), leased).await.expect("the suspect is leased");
    let other = station.submit("other", "other").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(on_begin.try_recv().is_err(), "neither the suspect nor what came after it has begun");
    release.send(()).unwrap();
    station.finished(running).await;
    let on_begin = begun(on_begin, "suspect").await;
    station.finished(suspect).await;
    begun(on_begin, "other").await;
    station.finished(other).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_under_way_when_one_worker_died_holds_up_nothing() {
    let station = Station::new().await;
    let (probe, on_begin, release) = Probe::new("held");
    let held = station.create("held", "held", Rule::with_defaults("test")).await;
    station.backend.push(Task { attempts: 1, ..Task::scan(held, now_ms()) }).await.unwrap();
    let worker = station.start_with(station.options(), vec![probe]);
    begun(on_begin, "held").await;
    let other = station.submit("other", "other").await;
    station.finished(other).await;
    release.send(()).unwrap();
    station.finished(held).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_that_may_have_taken_workers_down_one_is_under_way() {
    let station = Station::new().await;
    let (probe, on_begin, release) = Probe::new("first");
    let mut ids = Vec::new();
    for name in ["first", "second", "third"] {
        let id = station.create(name, name, Rule::with_defaults("test")).await;
        station.backend.push(Task { attempts: 2, ..Task::scan(id, now_ms()) }).await.unwrap();
        ids.push(id);
    }
    let worker = station.start_with(station.options(), vec![probe]);
    let on_begin = begun(on_begin, "first").await;
    // If it took the worker down now, the others would have been under way twice still.
    let waiting = station.backend.lease("other", 9, 0, now_ms()).await.unwrap();
    let waiting: Vec<(DataId, u32)> = waiting.iter().map(|lease| (lease.task.data_id, lease.attempts)).collect();
    assert_eq!(waiting, [(ids[1], 3), (ids[2], 3)]);
    for id in &ids[1..] {
        station.backend.survived(*id).await.unwrap();
    }
    assert!(on_begin.try_recv().is_err());
    release.send(()).unwrap();
    for id in ids {
        assert_eq!(station.finished(id).await.result.unwrap().overall, ResultCode::NO_THREAT);
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_slow_and_lives_is_no_reason_to_close_a_file() {
    let station = Station::new().await;
    let (probe, on_begin, release) = Probe::new("held");
    let data_id = station.submit("held", "content").await;
    let worker = station.start_with(WorkerOptions { lease_ms: 600, ..station.options() }, vec![probe]);
    let mut on_begin = on_begin;
    // More often than a file may take its worker down.
    for _ in 0..=ATTEMPTS_MAX {
        on_begin = begun(on_begin, "held").await;
        // By a clock that is ahead the lease has ended: somebody else takes the task, for no time at all.
        assert_eq!(station.backend.lease("thief", 1, 0, now_ms() + 1_500).await.unwrap().len(), 1);
        station.backend.survived(data_id).await.unwrap();
        // Until the loss is noticed.
        tokio::time::sleep(Duration::from_secs(1)).await;
        release.send(()).unwrap();
    }
    begun(on_begin, "held").await;
    release.send(()).unwrap();
    assert_eq!(station.finished(data_id).await.result.unwrap().overall, ResultCode::NO_THREAT);
    worker.stop().await;
}

/// Judges only what is in memory.
struct InMemoryOnly;

impl Engine for InMemoryOnly {
    fn info(&self) -> EngineInfo {
        engine_info("memory", "Memory")
    }

    fn scan(&self, subject: &Subject<'_>, _: &ScanContext) -> EngineVerdict {
        match subject.sample.bytes() {
            Some(_) => EngineVerdict::infected("Seen"),
            None => EngineVerdict::not_scanned("not in memory"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_left_out_for_want_of_memory_is_not_kept() {
    let station = Station::new().await;
    let (probe, _on_begin, _release) = Probe::new("");
    let both = || -> Vec<Arc<dyn Engine>> { vec![probe.clone(), Arc::new(InMemoryOnly)] };
    // Nothing may be held in memory.
    let scarce = WorkerOptions { sample_budget_bytes: 0, ..station.options() };
    let worker = station.start_with(scarce, both());
    let rule = || Rule::with_defaults("test");
    let (_, record) = scanned(&station, "long", vec![b'x'; 8 << 20], rule()).await;
    assert_eq!(record.result.unwrap().overall, ResultCode::NO_THREAT, "one of two engines judged it");
    worker.stop().await;
    let worker = station.start_with(station.options(), both());
    let (_, record) = scanned(&station, "long", vec![b'x'; 8 << 20], rule()).await;
    assert_eq!(record.result.unwrap().overall, ResultCode::INFECTED);
    assert_eq!(scans(&probe), 2);
    worker.stop().await;
}

/// Two processes with databases of their own: it tells the newer one, and the other one judges.
struct TwoProcesses {
    judging: AtomicUsize,
}

impl Engine for TwoProcesses {
    fn info(&self) -> EngineInfo {
        EngineInfo { database_version: "2".into(), ..engine_info("two", "Two") }
    }

    fn scan(&self, _: &Subject<'_>, _: &ScanContext) -> EngineVerdict {
        let database = self.judging.load(Ordering::Relaxed);
        let judged_by = EngineVersion { database: (database.to_string(), 1), ..self.version() };
        let found = if database == 2 { EngineVerdict::infected("New") } else { EngineVerdict::clean() };
        EngineVerdict { judged_by: Some(judged_by), ..found }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_former_database_judged_is_not_kept_as_the_newer_ones() {
    let station = Station::new().await;
    let engine = Arc::new(TwoProcesses { judging: AtomicUsize::new(1) });
    let worker = station.start_with(station.options(), vec![engine.clone()]);
    let content = || zip(&[("member", b"content")]);
    let overall = async |station: &Station| {
        scanned(station, "a.zip", content(), Rule::with_defaults("test")).await.1.result.unwrap().overall
    };
    assert_eq!(overall(&station).await, ResultCode::NO_THREAT);
    engine.judging.store(2, Ordering::Relaxed);
    assert_eq!(overall(&station).await, ResultCode::INFECTED);
    // And that is kept.
    engine.judging.store(1, Ordering::Relaxed);
    assert_eq!(overall(&station).await, ResultCode::INFECTED);
    worker.stop().await;
}

/// An archive that is long enough to be shared.
fn long_archive(members: u32) -> Vec<u8> {
    let pad = vec![b'.'; 4_000];
    let members: Vec<(String, Vec<u8>)> = (0..members)
        .map(|number| {
            let content = match number % 50 {
                3 => zip(&[("inner", format!("{number}").as_bytes()), ("eicar.com", &eicar())]),
                _ => [format!("member {number}").as_bytes(), &pad].concat(),
            };
            (format!("{number}"), content)
        })
        .collect();
    let named: Vec<(&str, &[u8])> = members.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    tar(&named)
}

/// Takes a millisecond for each file, so that an archive is long enough for others to come.
struct Slow;

impl Engine for Slow {
    fn info(&self) -> EngineInfo {
        engine_info("slow", "Slow")
    }

    fn scan(&self, _: &Subject<'_>, _: &ScanContext) -> EngineVerdict {
        std::thread::sleep(Duration::from_millis(1));
        EngineVerdict::clean()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_share_an_archive_and_the_rows_are_those_of_one() {
    let station = Station::new().await;
    let rule = |load_sharing| Rule { load_sharing, verdict_cache: false, ..Rule::with_defaults("test") };
    let content = long_archive(4_000);
    let alone = station.start();
    let (expected, record) = scanned(&station, "archive.tar", content.clone(), rule(false)).await;
    let expected_result = record.result.unwrap();
    let expected = tree_of(&station, expected).await;
    alone.stop().await;
    let workers: Vec<(Arc<Probe>, Running)> = (0..3)
        .map(|_| {
            let (probe, _, _) = Probe::new("");
            let own: [Arc<dyn Engine>; 2] = [probe.clone(), Arc::new(Slow)];
            let engines = engines::builtin().unwrap().into_iter().chain(own).collect();
            (probe, station.start_with(station.options(), engines))
        })
        .collect();
    let (shared, record) = scanned(&station, "archive.tar", content, rule(true)).await;
    let result = record.result.unwrap();
    let counts: Vec<usize> = workers.iter().map(|(probe, _)| scans(probe)).collect();
    println!("scans of each worker: {counts:?}");
    assert!(counts.iter().filter(|count| **count > 100).count() >= 2, "{counts:?}");
    let rows = tree_of(&station, shared).await;
    assert_eq!(rows.len(), expected.len());
    for ((path, ordinal, own, overall, digest, _), row) in expected.iter().zip(&rows) {
        assert_eq!((path, ordinal, own, overall, digest), (&row.0, &row.1, &row.2, &row.3, &row.4));
    }
    assert_eq!(
        (result.own, result.overall, &result.blocked_reasons),
        (expected_result.own, expected_result.overall, &expected_result.blocked_reasons)
    );
    let (one, other) = (result.container.unwrap(), expected_result.container.unwrap());
    assert_eq!(
        (one.extracted_count, one.detected_count, one.reason),
        (other.extracted_count, other.detected_count, other.reason)
    );
    let worst = ResultStore::get(&*station.backend, one.worst_child.unwrap()).await.unwrap().unwrap();
    assert_eq!(worst.new.file.display_name, "3");
    for (_, worker) in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_other_engines_takes_no_part() {
    let station = Station::new().await;
    let rule = Rule { load_sharing: true, verdict_cache: false, ..Rule::with_defaults("test") };
    let (probe, _, _) = Probe::new("");
    let slow: Arc<dyn Engine> = Arc::new(Slow);
    let lead = station.start_with(station.options(), engines::builtin().unwrap().into_iter().chain([slow]).collect());
    let data_id = station.create("archive.tar", long_archive(4_000), rule).await;
    station.queue(data_id).await;
    while ResultStore::get(&*station.backend, data_id).await.unwrap().unwrap().state == State::Queued {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // It finds no threat in anything.
    let helper = station.start_with(station.options(), vec![probe.clone()]);
    let result = station.finished(data_id).await.result.unwrap();
    let container = result.container.unwrap();
    assert_eq!(
        (result.overall, container.extracted_count, container.detected_count),
        (ResultCode::INFECTED, 4_000, 80)
    );
    assert_eq!(scans(&probe), 0);
    helper.stop().await;
    lead.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_helper_had_claimed_and_never_did_is_done_by_the_lead() {
    let station = Station::new().await;
    let rule = Rule { load_sharing: true, verdict_cache: false, ..Rule::with_defaults("test") };
    let worker = station.start();
    let data_id = station.create("archive.tar", long_archive(4_000), rule).await;
    station.queue(data_id).await;
    let pipeline = common::scanner(common::options(), engines::builtin().unwrap()).pipeline();
    // A helper that claims some members and is never heard of again.
    let joined = async {
        loop {
            let (until_ms, now_ms) = (now_ms() + 500, now_ms());
            let joined = station.backend.join_share("dead", &pipeline, until_ms, now_ms).await.unwrap();
            if let Some(part) = joined {
                break part;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let part = tokio::time::timeout(Duration::from_secs(60), joined).await.expect("nothing to join");
    assert_eq!(part.root, data_id);
    for _ in 0..3 {
        assert!(station.backend.claim_members(&part.token, 40).await.unwrap().is_some());
    }
    let result = station.finished(data_id).await.result.unwrap();
    assert_eq!((result.overall, result.container.unwrap().extracted_count), (ResultCode::INFECTED, 4_000));
    assert_eq!(station.backend.nested(data_id, 0, 0).await.unwrap().total, 4_000);
    let rows = tree_of(&station, data_id).await;
    assert_eq!(rows.len(), 4_000 + 2 * 80);
    assert!(!station.backend.extend_part(&part.token, u64::MAX).await.unwrap());
    worker.stop().await;
}
