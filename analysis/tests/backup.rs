//! Copies of results that are in use, and their way back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lazaret_analysis::{DataId, ResultCode, ResultStore, SqliteBackend, StoreFault, backup, conformance};
use tokio::sync::mpsc;

/// Submissions written by each writer between looks at whether to stop.
const WRITERS: usize = 4;

async fn open(path: &Path) -> SqliteBackend {
    SqliteBackend::open(path).await.unwrap()
}

async fn holds(path: &Path, data_id: DataId) -> bool {
    ResultStore::get(&open(path).await, data_id).await.unwrap().is_some()
}

async fn submitted(store: &SqliteBackend) -> DataId {
    let new = conformance::sample_analysis(DataId::random());
    store.create(&new).await.unwrap();
    new.data_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_has_all_that_was_acknowledged_before_it_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("results.db");
    let store = open(&path).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (written, mut acknowledged) = mpsc::unbounded_channel();
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (store, stop, written) = (store.clone(), stop.clone(), written.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let data_id = submitted(&store).await;
                    store.finish(data_id, &conformance::sample_result(ResultCode::INFECTED, "x"), 5).await.unwrap();
                    written.send(data_id).unwrap();
                }
            })
        })
        .collect();
    // Some are there before the first backup begins, and some come while each is made.
    let mut before: Vec<DataId> = Vec::new();
    let mut backups = Vec::new();
    for number in 0..3 {
        for _ in 0..50 {
            before.push(acknowledged.recv().await.unwrap());
        }
        let target = directory.path().join(format!("backup{number}.db"));
        let copied = backup::backup(&path, None, &target).await.unwrap();
        assert!(copied.analyses >= before.len() as u64, "{copied:?}");
        backups.push((target, before.clone(), copied));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let after = submitted(&store).await;

    // In use it can't be restored, and nothing changes.
    let (last, _, _) = backups.last().unwrap();
    let refused = backup::restore(&path, last).await.unwrap_err();
    assert!(matches!(refused.source, StoreFault::InUse { .. }), "{refused}");
    assert!(holds(&path, after).await);
    drop(store);

    for (target, ids, copied) in &backups {
        let (restored, kept) = backup::restore(&path, target).await.unwrap();
        assert_eq!((restored.analyses, restored.unfinished), (copied.analyses, copied.unfinished));
        let again = open(&path).await;
        for id in ids {
            let record = ResultStore::get(&again, *id).await.unwrap().expect("it was acknowledged before the backup");
            assert_eq!(record.result.unwrap().overall, ResultCode::INFECTED);
        }
        assert!(ResultStore::get(&again, after).await.unwrap().is_none(), "it came after the backup");
        // It takes writes again, and what was there before is kept.
        submitted(&again).await;
        drop(again);
        let kept = kept.unwrap();
        if target == &backups[0].0 {
            assert!(holds(&kept, after).await, "{}", kept.display());
        }
        std::fs::remove_file(kept).unwrap();
    }
}

#[tokio::test]
async fn what_is_no_sound_backup_is_refused_and_the_results_stay() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let path = at("results.db");
    let store = open(&path).await;
    let data_id = submitted(&store).await;
    for _ in 0..300 {
        submitted(&store).await;
    }
    backup::backup(&path, None, &at("good.db")).await.unwrap();
    let refused = backup::backup(&path, None, &at("good.db")).await.unwrap_err();
    assert!(refused.to_string().contains("good.db exists already"), "nothing is overwritten: {refused}");
    drop(store);

    let good = std::fs::read(at("good.db")).unwrap();
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 8192].fill(0xa5);
    std::fs::write(at("damaged.db"), damaged).unwrap();
    std::fs::write(at("cut.db"), &good[..good.len() / 3]).unwrap();
    std::fs::write(at("text.db"), "not a database at all, but long enough to be looked at".repeat(100)).unwrap();
    std::fs::write(at("empty.db"), "").unwrap();
    for name in ["damaged.db", "cut.db", "text.db", "empty.db", "missing.db"] {
        let refused = backup::restore(&path, &at(name)).await.unwrap_err();
        assert!(refused.to_string().contains(name), "{refused}");
        assert!(holds(&path, data_id).await, "{name}");
        assert!(!at("results.db.restoring").exists(), "{name}");
    }
    // Results that are damaged themselves are what a backup is for.
    std::fs::write(&path, "gone").unwrap();
    let (restored, kept) = backup::restore(&path, &at("good.db")).await.unwrap();
    assert_eq!(restored.analyses, 301);
    assert!(holds(&path, data_id).await);
    assert_eq!(std::fs::read(kept.unwrap()).unwrap(), b"gone");
    // And so are results that are not there at all.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(backup::restore(&path, &at("good.db")).await.unwrap().1, None);
    assert!(holds(&path, data_id).await);
}

#[tokio::test]
async fn the_users_file_goes_along_and_comes_out_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (path, users) = (at("results.db"), at("users.db"));
    let store = open(&path).await;
    let data_id = submitted(&store).await;
    // Any SQLite file will do; it is in use, and what was written last is in its log alone.
    let other = open(&users).await;
    let marker = submitted(&other).await;
    backup::backup(&path, Some(&users), &at("both.db")).await.unwrap();
    backup::backup(&path, None, &at("old.db")).await.unwrap();
    drop((store, other));

    assert!(!backup::users_in(&at("old.db"), &at("none.db")).await.unwrap());
    assert!(!at("none.db").exists());
    assert!(backup::users_in(&at("both.db"), &at("out.db")).await.unwrap());
    assert_eq!(std::fs::metadata(at("out.db")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(backup::users_in(&at("both.db"), &at("out.db")).await.is_err(), "nothing is overwritten");
    let kept = backup::put_in_place(&users, &at("out.db")).await.unwrap().unwrap();
    assert!(holds(&users, marker).await && holds(&kept, marker).await);

    let (restored, _) = backup::restore(&path, &at("both.db")).await.unwrap();
    assert_eq!(restored.analyses, 1);
    assert!(holds(&path, data_id).await);
    // Nothing of the users is in the results.
    backup::backup(&path, None, &at("again.db")).await.unwrap();
    assert!(!backup::users_in(&at("again.db"), &at("none.db")).await.unwrap());
    let missing = backup::backup(&path, Some(&at("missing.db")), &at("neither.db")).await.unwrap_err().to_string();
    assert!(missing.contains("missing.db") && !at("neither.db").exists(), "{missing}");
}
