//! The SQLite back-end within one process: the suites of the seams, sharing a file, opening what can't be opened, and
//! containers of many files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use lazaret_analysis::{
    DataId, KeptVerdict, NESTED_BATCH_MAX, ResultCode, ResultStore, SqliteBackend, StoreFault, Task, TaskQueue,
    VerdictKey, conformance,
};
use rusqlite::{Connection, TransactionBehavior};

#[tokio::test]
async fn result_store_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(directory.path().join("a.db")).await.unwrap();
    conformance::result_store(&backend).await;
    // Again, with everything from the first time still there.
    conformance::result_store(&backend).await;
}

#[tokio::test]
async fn task_queue_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(directory.path().join("a.db")).await.unwrap();
    conformance::task_queue(&backend).await;
    conformance::task_queue(&backend).await;
}

#[tokio::test]
async fn shares_conform() {
    let directory = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(directory.path().join("a.db")).await.unwrap();
    conformance::shares(&backend).await;
    conformance::shares(&backend).await;
}

#[tokio::test]
async fn progress_cache_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(directory.path().join("a.db")).await.unwrap();
    conformance::progress_cache(&backend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_at_once_and_again_is_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let opening: Vec<_> = (0..8).map(|_| tokio::spawn(SqliteBackend::open(path.clone()))).collect();
    let new = conformance::sample_analysis(DataId::random());
    let mut backends = Vec::new();
    for opened in opening {
        backends.push(opened.await.unwrap().unwrap());
    }
    backends[0].create(&new).await.unwrap();
    for backend in &backends {
        assert_eq!(ResultStore::get(backend, new.data_id).await.unwrap().unwrap().new, new);
    }
    drop(backends);
    let again = SqliteBackend::open(&path).await.unwrap();
    assert_eq!(ResultStore::get(&again, new.data_id).await.unwrap().unwrap().new, new);
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    drop(SqliteBackend::open(&path).await.unwrap());
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', 1, x'00', 0)";
    Connection::open(&path).unwrap().execute(later, ()).unwrap();
    let error = SqliteBackend::open(&path).await.unwrap_err();
    assert!(matches!(error.source, StoreFault::NewerSchema { found: 9999, .. }), "{error}");
    assert!(error.to_string().contains("a.db") && error.to_string().contains("9999"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("nowhere").join("a.db");
    let error = SqliteBackend::open(&missing).await.unwrap_err().to_string();
    assert!(error.contains("nowhere/a.db") && error.contains("directory must exist and be writable"), "{error}");
    assert!(!missing.exists());

    let other = directory.path().join("other.db");
    std::fs::write(&other, "this is no database, and long enough to be looked at as one ".repeat(20)).unwrap();
    let error = SqliteBackend::open(&other).await.unwrap_err().to_string();
    assert!(error.contains("other.db") && error.contains("not a database"), "{error}");

    // No user may create files here, root included.
    let error = SqliteBackend::open("/proc/lazaret.db").await.unwrap_err().to_string();
    assert!(error.contains("/proc/lazaret.db") && error.contains("writable"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_backends_lease_each_task_once() {
    const TASKS: usize = 500;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut backends = Vec::new();
    for _ in 0..2 {
        backends.push(SqliteBackend::open(&path).await.unwrap());
    }
    let mut expected = HashSet::new();
    for age in 0..TASKS {
        let id = DataId::random();
        expected.insert(id);
        backends[0].push(Task::scan(id, age as u64)).await.unwrap();
    }
    let mut workers = tokio::task::JoinSet::new();
    for (number, backend) in backends.iter().cycle().take(6).cloned().enumerate() {
        workers.spawn(async move {
            let mut taken = Vec::new();
            loop {
                let leases = backend.lease(&format!("w{number}"), 1 + number, 60_000, 1000).await.unwrap();
                if leases.is_empty() && backend.depth().await.unwrap().queued == 0 {
                    return taken;
                }
                for lease in leases {
                    taken.push(lease.task.data_id);
                    assert!(backend.ack(&lease.token).await.unwrap());
                }
            }
        });
    }
    let taken: Vec<DataId> = workers.join_all().await.concat();
    assert_eq!(taken.len(), TASKS);
    assert_eq!(taken.into_iter().collect::<HashSet<_>>(), expected);
}

/// Many writers at once are answered, all of them, in far fewer transactions than there are writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creates_share_transactions() {
    const CREATES: usize = 2000;
    let directory = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(directory.path().join("a.db")).await.unwrap();
    let begun = Instant::now();
    let mut creating = tokio::task::JoinSet::new();
    for _ in 0..CREATES {
        let backend = backend.clone();
        creating.spawn(async move {
            let new = conformance::sample_analysis(DataId::random());
            backend.create(&new).await.unwrap();
            new.data_id
        });
    }
    let ids = creating.join_all().await;
    println!("{CREATES} concurrent creates in {:?}", begun.elapsed());
    assert_eq!(backend.count_unfinished().await.unwrap(), CREATES as u64);
    for id in ids {
        assert!(ResultStore::get(&backend, id).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_change_leaves_its_group_alone() {
    let directory = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(directory.path().join("a.db")).await.unwrap();
    let taken = conformance::sample_analysis(DataId::random());
    backend.create(&taken).await.unwrap();
    let mut creating = tokio::task::JoinSet::new();
    for number in 0..300 {
        let backend = backend.clone();
        let new = if number % 3 == 0 { taken.clone() } else { conformance::sample_analysis(DataId::random()) };
        creating.spawn(async move { (number % 3 == 0, backend.create(&new).await) });
    }
    for (is_taken, created) in creating.join_all().await {
        assert_eq!(
            is_taken,
            matches!(created, Err(ref error) if matches!(error.source, StoreFault::Exists)),
            "{created:?}"
        );
    }
    assert_eq!(backend.count_unfinished().await.unwrap(), 201);
}

/// Another process that holds the write lock delays writes, never reads.
#[tokio::test]
async fn reads_do_not_wait_for_writes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let backend = SqliteBackend::open(&path).await.unwrap();
    let new = conformance::sample_analysis(DataId::random());
    backend.create(&new).await.unwrap();
    let mut other = Connection::open(&path).unwrap();
    let writing = other.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    writing.execute("UPDATE analysis SET state = 1", ()).unwrap();

    let waiting = conformance::sample_analysis(DataId::random());
    let create = backend.create(&waiting);
    tokio::pin!(create);
    let reads = async {
        for _ in 0..50 {
            assert!(ResultStore::get(&backend, new.data_id).await.unwrap().is_some());
            assert_eq!(backend.lease("w", 1, 1000, 0).await.unwrap(), [], "looking for tasks takes no write lock");
        }
    };
    tokio::select! {
        biased;
        created = &mut create => panic!("written while another process holds the lock: {created:?}"),
        () = reads => {}
    }
    writing.commit().unwrap();
    create.await.unwrap();
    assert!(ResultStore::get(&backend, waiting.data_id).await.unwrap().is_some());
}

#[tokio::test]
async fn pages_of_a_large_container_are_fast_and_stable() {
    const FILES: u32 = 50_000;
    let directory = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(directory.path().join("a.db")).await.unwrap();
    let root = DataId::random();
    backend.create(&conformance::sample_analysis(root)).await.unwrap();
    let records: Vec<_> = (0..FILES).map(|ordinal| conformance::sample_nested(root, ordinal)).collect();
    let begun = Instant::now();
    for batch in records.chunks(NESTED_BATCH_MAX) {
        assert!(backend.put_nested(batch).await.unwrap());
    }
    println!("{FILES} nested files recorded in {:?}", begun.elapsed());
    let result = conformance::sample_result(ResultCode::NO_THREAT, "root");
    assert!(backend.finish(root, &result, 1).await.unwrap());

    const PAGES: u32 = 200;
    let begun = Instant::now();
    for page in 0..PAGES {
        // From the first to the last, so that a walk over the container would show.
        let first = page * (FILES / PAGES);
        let answer = backend.nested(root, first, 50).await.unwrap();
        assert_eq!(answer.total, u64::from(FILES));
        assert_eq!(answer.records, records[first as usize..first as usize + 50]);
    }
    let each = begun.elapsed() / PAGES;
    println!("a page of 50 in {each:?}");
    // About 1 ms here; a walk over 50,000 rows takes far more than the bound.
    assert!(each < Duration::from_millis(25), "a page took {each:?}");
}

#[tokio::test]
async fn verdicts_are_bounded_and_the_longest_unused_go() {
    const MAX: u64 = 1_000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let backend = SqliteBackend::open(&path).await.unwrap().with_verdicts_max(MAX);
    let kept = KeptVerdict { result: conformance::sample_result(ResultCode::NO_THREAT, "a"), tree: None };
    let key = |number: u64| VerdictKey(*blake3::hash(&number.to_le_bytes()).as_bytes());
    let hour = |number: u64| number * 3_600_000;
    for batch in 0..6 {
        let verdicts: Vec<_> = (batch * 500..(batch + 1) * 500).map(|number| (key(number), kept.clone())).collect();
        backend.keep_verdicts(&verdicts, hour(2 * batch)).await.unwrap();
        // The very first one stays of use, later than its batch.
        assert!(backend.verdicts(&[key(0)], hour(2 * batch + 1)).await.unwrap()[0].is_some(), "after batch {batch}");
    }
    let connection = Connection::open(&path).unwrap();
    let rows: i64 = connection.query_row("SELECT count(*) FROM verdict", (), |row| row.get(0)).unwrap();
    assert_eq!(rows as u64, MAX, "what came last was counted");
    let found = backend.verdicts(&[key(0), key(1), key(1_999), key(2_001), key(2_999)], hour(12)).await.unwrap();
    let found: Vec<bool> = found.iter().map(Option::is_some).collect();
    assert_eq!(found, [true, false, false, true, true]);
}
