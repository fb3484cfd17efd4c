//! The SQLite back-end shared by processes that die: this test's own binary, started again as a child.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use lazaret_analysis::{DataId, ResultStore, SqliteBackend, Task, TaskQueue, conformance};

/// Tells a child which file to use.
const DATABASE: &str = "LAZARET_TEST_DATABASE";

/// What a child writes before each id, so that the test harness' own lines are told apart.
const MARK: &str = "id ";

/// Starts this binary again as `role`, one of the ignored tests below.
fn child(role: &str, database: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", role, "--ignored", "--nocapture"])
        .env(DATABASE, database)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn database() -> PathBuf {
    std::env::var_os(DATABASE).expect("only a child of another test runs this").into()
}

/// The id in a child's line, which is whole: a line that a kill cut off has no end.
fn marked(line: &str) -> Option<DataId> {
    line.split_once(MARK)?.1.strip_suffix('\n')?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs as a child of what_was_acknowledged_survives_kill_9"]
async fn child_that_creates() {
    let backend = SqliteBackend::open(database()).await.unwrap();
    // Several at once, so that the kill meets groups of more than one.
    let mut creating = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let backend = backend.clone();
        creating.spawn(async move {
            loop {
                let new = conformance::sample_analysis(DataId::random());
                backend.create(&new).await.unwrap();
                backend.push(Task::scan(new.data_id, 0)).await.unwrap();
                println!("{MARK}{}", new.data_id);
            }
        });
    }
    creating.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut acknowledged = Vec::new();
    // Three lives, each killed in the middle of its work.
    for life in 1..=3 {
        let (mut child, mut output) = child("child_that_creates", &path);
        let mut line = String::new();
        while acknowledged.len() < life * 200 {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended by itself");
            acknowledged.extend(marked(&line));
        }
        // SIGKILL on Unix.
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        acknowledged.extend(rest.split_inclusive('\n').filter_map(marked));
    }
    let backend = SqliteBackend::open(&path).await.unwrap();
    for id in &acknowledged {
        let record = ResultStore::get(&backend, *id).await.unwrap().expect("acknowledged");
        assert_eq!(record.new, conformance::sample_analysis(*id));
        assert!(backend.contains(*id).await.unwrap());
    }
    assert!(backend.count_unfinished().await.unwrap() >= acknowledged.len() as u64);
    println!("{} acknowledged", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs as a child of processes_lease_each_task_once"]
async fn child_that_leases() {
    let backend = SqliteBackend::open(database()).await.unwrap();
    while backend.depth().await.unwrap().queued > 0 {
        for lease in backend.lease("child", 3, 60_000, 1000).await.unwrap() {
            println!("{MARK}{}", lease.task.data_id);
            assert!(backend.ack(&lease.token).await.unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_lease_each_task_once() {
    const TASKS: usize = 500;
    const PROCESSES: usize = 3;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let backend = SqliteBackend::open(&path).await.unwrap();
    let mut expected = HashSet::new();
    for age in 0..TASKS {
        let id = DataId::random();
        expected.insert(id);
        backend.push(Task::scan(id, age as u64)).await.unwrap();
    }
    let children: Vec<_> = (0..PROCESSES).map(|_| child("child_that_leases", &path)).collect();
    let mut leased = Vec::new();
    let mut shares = Vec::new();
    for (mut child, mut output) in children {
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        let share: Vec<DataId> = text.split_inclusive('\n').filter_map(marked).collect();
        shares.push(share.len());
        leased.extend(share);
    }
    println!("shares {shares:?}");
    assert_eq!(leased.len(), TASKS, "none twice");
    assert_eq!(leased.into_iter().collect::<HashSet<_>>(), expected, "none missed");
    let depth = backend.depth().await.unwrap();
    assert_eq!((depth.queued, depth.leased), (0, 0));
}
