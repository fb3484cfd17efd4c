//! What every back-end must do, as suites that run against it through its trait. They panic with what was violated.
//!
//! A suite leaves its rows behind and uses new ids each time, so that it may run against a store that holds other things;
//! [`task_queue`] wants an empty queue, since it would take other tasks. No suite sleeps or reads a clock.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a suite panics when it is violated")]

mod queue;
mod shares;
mod verdicts;

pub use self::queue::task_queue;
pub use self::shares::shares;
use self::verdicts::{
    borrowed_members_are_found_and_outlive_their_lender, lender, members_are_borrowed, one_of_several_claims_counts,
    only_finished_analyses_lend, verdicts_are_kept_and_found,
};
use crate::analysis::{
    ContainerResult, EngineResult, FileInfo, FileResult, Findings, NestedRecord, NewAnalysis, Principal, SentAlong,
    State, Times,
};
use crate::batch::NewBatch;
use crate::id::DataId;
use crate::password::SealedPasswords;
use crate::rule::Rule;
use crate::store::{
    CALLBACK_DELAY_MS_MAX, Callback, DigestQuery, LEASE_MS_MAX, NESTED_BATCH_MAX, PAGE_RECORDS_MAX, Progress,
    ProgressCache, ResultStore, StoreFault,
};
use crate::verdict::{Outcome, ResultCode};
use crate::worker_report::{EngineInfo, WorkerReport};

/// A submission to test with: every field is filled, and two of them differ in everything that may differ.
pub fn sample_analysis(data_id: DataId) -> NewAnalysis {
    let digest = blake3::hash(&data_id.0).to_hex().to_string();
    NewAnalysis {
        data_id,
        file: sample_file(&format!("report {data_id} \u{1F4C4}\0\n.zip"), &digest),
        blob: digest,
        rule: Rule::with_defaults("default"),
        principal: Principal { user_id: "7".to_owned(), user_name: "Ada".to_owned(), role: "submitter".to_owned() },
        user_agent: "conformance".to_owned(),
        metadata: Some(r#"{"ticket": 12}"#.to_owned()),
        sent_along: SentAlong {
            engines_metadata: Some(r#"{"depth": 3}"#.to_owned()),
            download_url: Some("https://files.example/report".to_owned()),
            ..SentAlong::default()
        },
        passwords: Some(SealedPasswords(data_id.0.to_vec())),
        receive_ms: 1_700_000_000_000,
        upload_ms: 1_700_000_000_400,
        hash_ms: 3,
        queued_ms: 1_700_000_000_500,
    }
}

/// A result to test with.
pub fn sample_result(code: ResultCode, name: &str) -> FileResult {
    FileResult {
        own: code,
        overall: code,
        engines: vec![EngineResult {
            engine: "builtin".to_owned(),
            engine_id: "builtin_1".to_owned(),
            code,
            threat: if code == ResultCode::INFECTED { "Test".to_owned() } else { String::new() },
            def_time_ms: 1_600_000_000_000,
            scan_ms: 3,
            wait_ms: 1,
        }],
        file: sample_file(name, blake3::hash(name.as_bytes()).to_hex().as_str()),
        container: None,
        blocked_reasons: Vec::new(),
        times: Times { start_ms: 1_700_000_001_000, total_ms: 9, ..Times::default() },
        detail: String::new(),
        findings: Findings::default(),
    }
}

/// A nested file to test with, at `ordinal` directly in `root`.
pub fn sample_nested(root: DataId, ordinal: u32) -> NestedRecord {
    let name = format!("member {ordinal}");
    NestedRecord {
        data_id: DataId::nested(&[1; 32], root, &[ordinal]),
        root,
        parent: root,
        ordinal,
        path: name.clone(),
        result: sample_result(ResultCode::NO_THREAT, &name),
    }
}

fn sample_file(name: &str, seed: &str) -> FileInfo {
    let digits = |count: usize| seed.chars().cycle().take(count).collect::<String>();
    FileInfo {
        display_name: name.to_owned(),
        size_bytes: 1 << 40,
        md5: digits(32),
        sha1: digits(40),
        sha256: digits(64),
        sha512: digits(128),
        file_type: "application/zip".to_owned(),
        file_type_description: "ZIP archive".to_owned(),
        type_category: vec!["A".to_owned()],
        extension: "zip".to_owned(),
    }
}

/// What a [`ResultStore`] must do.
pub async fn result_store(store: &dyn ResultStore) {
    analyses_are_recorded_once(store).await;
    analyses_go_through_their_states(store).await;
    cancelling_is_remembered(store).await;
    nested_files_are_recorded_and_paged(store).await;
    nested_files_of_finished_analyses_are_refused(store).await;
    unfinished_analyses_are_listed(store).await;
    analyses_are_found_by_digest(store).await;
    batches_take_files_until_they_are_closed(store).await;
    batches_are_cancelled_as_a_whole(store).await;
    workers_report(store).await;
    callbacks_are_due_until_they_are_settled(store).await;
    what_is_old_is_removed(store).await;
    verdicts_are_kept_and_found(store).await;
    one_of_several_claims_counts(store).await;
    members_are_borrowed(store).await;
    only_finished_analyses_lend(store).await;
    borrowed_members_are_found_and_outlive_their_lender(store).await;
}

async fn analyses_are_recorded_once(store: &dyn ResultStore) {
    let new = sample_analysis(DataId::random());
    assert_eq!(store.get(new.data_id).await.unwrap(), None, "unknown before it is recorded");
    store.create(&new).await.unwrap();
    let record = store.get(new.data_id).await.unwrap().expect("recorded");
    assert_eq!(record.new, new, "every field comes back");
    assert_eq!((record.data_id, record.root, record.parent), (new.data_id, new.data_id, None));
    assert_eq!((record.state, record.cancel_requested), (State::Queued, false));
    assert_eq!((record.started_ms, record.result, record.sanitized_blob), (None, None, None));

    let other = NewAnalysis { user_agent: "another".to_owned(), ..new.clone() };
    let error = store.create(&other).await.expect_err("an id is recorded once");
    assert!(matches!(error.source, StoreFault::Exists), "{error}");
    assert_eq!(store.get(new.data_id).await.unwrap().unwrap().new, new, "the first one stays");

    let bare =
        NewAnalysis { file: FileInfo::default(), metadata: None, passwords: None, ..sample_analysis(DataId::random()) };
    store.create(&bare).await.unwrap();
    assert_eq!(store.get(bare.data_id).await.unwrap().unwrap().new, bare, "digests may be absent");
}

async fn analyses_go_through_their_states(store: &dyn ResultStore) {
    let new = sample_analysis(DataId::random());
    let id = new.data_id;
    let clean = sample_result(ResultCode::NO_THREAT, "a");
    assert!(!store.start(id, 10).await.unwrap(), "an unknown analysis can't start");
    assert!(!store.finish(id, &clean, 10).await.unwrap(), "an unknown analysis can't finish");
    store.create(&new).await.unwrap();
    assert!(store.start(id, 10).await.unwrap());
    let record = store.get(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.started_ms), (State::Running, Some(10)));
    assert!(store.start(id, 20).await.unwrap(), "a redelivered task starts again");
    assert_eq!(store.get(id).await.unwrap().unwrap().started_ms, Some(20));

    let mut infected = sample_result(ResultCode::INFECTED, "a");
    infected.container = Some(ContainerResult { extracted_count: 2, detected_count: 1, ..Default::default() });
    infected.blocked_reasons = vec!["Infected".to_owned()];
    assert!(store.finish(id, &infected, 30).await.unwrap());
    let record = store.get(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.result.as_ref()), (State::Done, Some(&infected)));
    assert!(!store.finish(id, &clean, 40).await.unwrap(), "a finished analysis stays as it is");
    assert!(!store.start(id, 40).await.unwrap(), "a finished analysis doesn't start");
    assert!(!store.request_cancel(id).await.unwrap(), "a finished analysis can't be cancelled");
    assert_eq!(store.get(id).await.unwrap().unwrap(), record, "nothing changed");
}

async fn cancelling_is_remembered(store: &dyn ResultStore) {
    let new = sample_analysis(DataId::random());
    let id = new.data_id;
    assert!(!store.request_cancel(id).await.unwrap());
    assert!(!store.cancel_requested(id).await.unwrap());
    store.create(&new).await.unwrap();
    assert!(!store.cancel_requested(id).await.unwrap());
    for _ in 0..2 {
        assert!(store.request_cancel(id).await.unwrap());
        assert!(store.cancel_requested(id).await.unwrap());
    }
    assert!(store.get(id).await.unwrap().unwrap().cancel_requested);
    assert!(store.finish(id, &sample_result(ResultCode::CANCELLED, "a"), 9).await.unwrap());
    assert_eq!(store.get(id).await.unwrap().unwrap().state, State::Cancelled);
}

async fn nested_files_are_recorded_and_paged(store: &dyn ResultStore) {
    let new = sample_analysis(DataId::random());
    let root = new.data_id;
    store.create(&new).await.unwrap();
    assert!(store.put_nested(&[]).await.unwrap(), "nothing is recorded easily");
    let empty = store.nested(root, 0, 10).await.unwrap();
    assert_eq!((empty.records.len(), empty.total), (0, 0));

    // Out of order, in two batches, and a grandchild.
    let children: Vec<NestedRecord> = (0..7).map(|ordinal| sample_nested(root, ordinal)).collect();
    let mut grandchild = sample_nested(root, 0);
    grandchild.data_id = DataId::nested(&[1; 32], root, &[3, 0]);
    grandchild.parent = children[3].data_id;
    grandchild.path = "member 3/\0\u{202e}..".to_owned();
    let late: Vec<NestedRecord> = children[..3].iter().chain([&grandchild]).cloned().collect();
    assert!(store.put_nested(&children[3..]).await.unwrap());
    assert!(store.put_nested(&late).await.unwrap());

    for (first, size, expected) in [(0, 3, 0..3), (3, 3, 3..6), (6, 3, 6..7), (7, 3, 7..7), (0, u32::MAX, 0..7)] {
        let page = store.nested(root, first, size).await.unwrap();
        assert_eq!((page.records.as_slice(), page.total), (&children[expected], 7), "page at {first}");
    }
    assert_eq!(store.nested(root, u32::MAX, u32::MAX).await.unwrap().records, []);
    assert_eq!(store.nested(root, 0, 0).await.unwrap().total, 7);
    let below = store.nested(children[3].data_id, 0, 10).await.unwrap();
    assert_eq!((below.records.as_slice(), below.total), (&[grandchild.clone()][..], 1));

    let record = store.get(grandchild.data_id).await.unwrap().expect("a nested id is known");
    assert_eq!((record.data_id, record.root, record.parent), (grandchild.data_id, root, Some(grandchild.parent)));
    assert_eq!((record.state, record.result), (State::Done, Some(grandchild.result.clone())));
    assert_eq!((record.new.rule, record.new.principal), (new.rule, new.principal), "inherited from the root");
    assert_eq!((record.new.user_agent, record.new.metadata), (new.user_agent, new.metadata));
    assert_eq!(
        (record.new.file, record.new.blob),
        (grandchild.result.file.clone(), String::new()),
        "its content is not kept"
    );

    // A redelivered task records again, perhaps with another result.
    let mut again = late.clone();
    again[1].result = sample_result(ResultCode::SCAN_FAILED, "member 1");
    for _ in 0..2 {
        assert!(store.put_nested(&again).await.unwrap());
    }
    let page = store.nested(root, 0, 10).await.unwrap();
    assert_eq!(page.total, 7, "recording again adds nothing");
    assert_eq!(page.records[1], again[1]);

    // The same place under another id: the new one counts.
    let mut moved = children[5].clone();
    moved.data_id = DataId::random();
    assert!(store.put_nested(&[moved.clone()]).await.unwrap());
    assert_eq!(store.nested(root, 5, 1).await.unwrap().records, [moved]);
    assert_eq!(store.get(children[5].data_id).await.unwrap(), None);

    let many: Vec<NestedRecord> = (0..=PAGE_RECORDS_MAX).map(|ordinal| sample_nested(root, ordinal)).collect();
    let error = store.put_nested(&many[..=NESTED_BATCH_MAX]).await.expect_err("batches are bounded");
    assert!(matches!(error.source, StoreFault::BatchTooLarge(_)), "{error}");
    for batch in many.chunks(NESTED_BATCH_MAX) {
        assert!(store.put_nested(batch).await.unwrap());
    }
    let page = store.nested(root, 0, u32::MAX).await.unwrap();
    assert_eq!(page.records.len(), PAGE_RECORDS_MAX as usize, "pages are bounded");
    assert_eq!(page.total, many.len() as u64);
}

async fn nested_files_of_finished_analyses_are_refused(store: &dyn ResultStore) {
    let (unknown, done, running) = (DataId::random(), DataId::random(), DataId::random());
    store.create(&sample_analysis(done)).await.unwrap();
    store.create(&sample_analysis(running)).await.unwrap();
    assert!(store.put_nested(&[sample_nested(done, 0)]).await.unwrap());
    assert!(store.finish(done, &sample_result(ResultCode::NO_THREAT, "a"), 1).await.unwrap());
    assert!(!store.put_nested(&[sample_nested(unknown, 0)]).await.unwrap());
    assert!(!store.put_nested(&[sample_nested(running, 0), sample_nested(done, 1)]).await.unwrap());
    assert_eq!(store.nested(running, 0, 1).await.unwrap().total, 0, "all or none");
    assert_eq!(store.nested(done, 0, 9).await.unwrap().total, 1, "finished is finished");
}

async fn unfinished_analyses_are_listed(store: &dyn ResultStore) {
    let before = store.count_unfinished().await.unwrap();
    // Older than whatever the other suites recorded.
    let ids: Vec<DataId> = (0..4).map(|_| DataId::random()).collect();
    for (age, id) in ids.iter().enumerate() {
        let new = NewAnalysis { queued_ms: 1000 + age as u64, ..sample_analysis(*id) };
        store.create(&new).await.unwrap();
    }
    assert_eq!(store.count_unfinished().await.unwrap(), before + 4);
    store.start(ids[1], 2000).await.unwrap();
    store.finish(ids[0], &sample_result(ResultCode::NO_THREAT, "a"), 2000).await.unwrap();
    // What the other suites left unfinished was queued far ahead of this one's time.
    let listed = async |before_ms, limit| {
        let mut listed = store.unfinished(before_ms, limit).await.unwrap();
        listed.retain(|id| ids.contains(id));
        listed
    };
    assert_eq!(listed(1003, 10).await, ids[1..3], "queued before, running or not, oldest first");
    assert_eq!(listed(1003, 1).await, ids[1..2]);
    assert_eq!(listed(1000, 10).await, []);
    assert_eq!(store.count_unfinished().await.unwrap(), before + 3);
    for id in &ids[1..] {
        store.finish(*id, &sample_result(ResultCode::NO_THREAT, "a"), 2000).await.unwrap();
    }
    let ahead = NewAnalysis { queued_ms: 1001 + LEASE_MS_MAX, ..sample_analysis(DataId::random()) };
    store.create(&ahead).await.unwrap();
    assert_ne!(store.unfinished(1001, 1).await.unwrap(), [ahead.data_id]);
    assert_eq!(store.unfinished(1000, 1).await.unwrap(), [ahead.data_id], "the clock was set back since");
    store.finish(ahead.data_id, &sample_result(ResultCode::NO_THREAT, "a"), 2000).await.unwrap();
    assert_eq!(store.count_unfinished().await.unwrap(), before);
}

async fn analyses_are_found_by_digest(store: &dyn ResultStore) {
    let user = DataId::random().to_string();
    // One content, submitted three times by one user and once by another; nested in a fifth submission.
    let file = sample_file("same", blake3::hash(user.as_bytes()).to_hex().as_str());
    let new = |queued_ms: u64, user_id: &str, rule: &str| NewAnalysis {
        file: file.clone(),
        rule: Rule::with_defaults(rule),
        principal: Principal { user_id: user_id.to_owned(), ..Principal::default() },
        queued_ms,
        ..sample_analysis(DataId::random())
    };
    let (old, newer, foreign) = (new(1000, &user, "a"), new(2000, &user, "b"), new(3000, "another", "a"));
    let (open, cancelled) = (new(4000, &user, "a"), new(4500, &user, "a"));
    let container = NewAnalysis { file: FileInfo::default(), ..new(5000, &user, "c") };
    let mut nested = sample_nested(container.data_id, 0);
    nested.result.file = file.clone();
    for new in [&old, &newer, &foreign, &open, &cancelled, &container] {
        store.create(new).await.unwrap();
    }
    store.put_nested(std::slice::from_ref(&nested)).await.unwrap();
    for id in [old.data_id, newer.data_id, foreign.data_id] {
        store.finish(id, &sample_result(ResultCode::NO_THREAT, "x"), 6000).await.unwrap();
    }
    store.finish(cancelled.data_id, &sample_result(ResultCode::CANCELLED, "x"), 6000).await.unwrap();

    let of_user = DigestQuery { user_id: Some(user.clone()), nested: true, ..DigestQuery::default() };
    for digest in [&file.md5, &file.sha1, &file.sha256, &file.sha512] {
        let query = DigestQuery { digest: hex::decode(digest).unwrap(), ..of_user.clone() };
        let found = store.find_by_digest(&query, 9).await.unwrap();
        assert_eq!(found, [newer.data_id, old.data_id], "finished, the user's own, newest first: {digest}");
    }
    store.finish(container.data_id, &sample_result(ResultCode::NO_THREAT, "x"), 6000).await.unwrap();
    let query = DigestQuery { digest: hex::decode(&file.sha256).unwrap(), ..of_user };
    let find = async |query: DigestQuery, limit| store.find_by_digest(&query, limit).await.unwrap();
    let (n, a, b) = (nested.data_id, newer.data_id, old.data_id);
    assert_eq!(find(query.clone(), 9).await, [n, a, b], "nested files as well, once their root is finished");
    assert_eq!(find(query.clone(), 1).await, [n]);
    assert_eq!(find(DigestQuery { nested: false, ..query.clone() }, 9).await, [a, b]);
    assert_eq!(find(DigestQuery { rule: Some("a".to_owned()), ..query.clone() }, 9).await, [b]);
    assert_eq!(find(DigestQuery { since_ms: 1500, nested: false, ..query.clone() }, 9).await, [a]);
    let all = DigestQuery { user_id: None, nested: false, ..query.clone() };
    assert_eq!(find(all, 9).await, [foreign.data_id, a, b], "everybody's");
    let unfinished = DigestQuery { unfinished: true, nested: false, ..query.clone() };
    assert_eq!(find(unfinished.clone(), 9).await, [a, b, open.data_id], "what is finished comes first");
    let late = DigestQuery { since_ms: 4000, ..unfinished };
    assert_eq!(find(late, 9).await, [open.data_id]);
    // The index looks at the first bytes only.
    let mut other = query.digest.clone();
    *other.last_mut().unwrap() ^= 1;
    assert_eq!(find(DigestQuery { digest: other, ..query.clone() }, 9).await, []);
    for length in [0, 1, 15, 33, 65] {
        assert_eq!(find(DigestQuery { digest: vec![0; length], ..query.clone() }, 9).await, []);
    }
    store.finish(open.data_id, &sample_result(ResultCode::NO_THREAT, "x"), 6000).await.unwrap();
}

fn sample_batch() -> NewBatch {
    NewBatch {
        batch_id: DataId::random(),
        rule: Rule::with_defaults("default"),
        principal: Principal { user_id: "7".to_owned(), ..Principal::default() },
        user_agent: "conformance".to_owned(),
        user_data: "night \u{1F319}\n\"x\"".to_owned(),
        created_ms: 1_700_000_000_000,
    }
}

fn member_of(batch_id: DataId, allowed: &[ResultCode]) -> NewAnalysis {
    let mut new = sample_analysis(DataId::random());
    new.rule.allowed_codes = allowed.to_vec();
    new.sent_along.batch = Some(batch_id);
    new
}

async fn batches_take_files_until_they_are_closed(store: &dyn ResultStore) {
    let batch = sample_batch();
    let id = batch.batch_id;
    let (clean, infected) = (ResultCode::NO_THREAT, ResultCode::INFECTED);
    let early = member_of(id, &[clean]);
    let error = store.create(&early).await.expect_err("the batch is unknown");
    assert!(matches!(error.source, StoreFault::BatchClosed), "{error}");
    assert_eq!((store.batch(id).await.unwrap(), store.batch_head(id).await.unwrap()), (None, None));
    assert!(!store.close_batch(id, 5).await.unwrap() && !store.cancel_batch(id, 5).await.unwrap());

    store.create_batch(&batch).await.unwrap();
    let error = store.create_batch(&batch).await.expect_err("an id is taken once");
    assert!(matches!(error.source, StoreFault::Exists), "{error}");
    let members = [member_of(id, &[clean]), member_of(id, &[clean]), member_of(id, &[clean, infected])];
    for member in &members {
        store.create(member).await.unwrap();
    }
    let error = store.create(&members[0]).await.expect_err("recorded already");
    assert!(matches!(error.source, StoreFault::Exists), "{error}");
    assert_eq!(store.batch_head(id).await.unwrap(), Some((batch.clone(), true)));
    let record = store.batch(id).await.unwrap().unwrap();
    assert_eq!((&record.new, record.closed_ms, record.cancelled), (&batch, None, false));
    assert_eq!((record.count(), record.code()), (3, ResultCode::IN_PROGRESS));

    let shown = |records: Vec<crate::analysis::AnalysisRecord>| -> Vec<DataId> {
        records.iter().map(|record| record.data_id).collect()
    };
    let ids = members.each_ref().map(|member| member.data_id);
    assert_eq!(shown(store.batch_members(id, 0, 9).await.unwrap()), ids, "in the order in which they came");
    assert_eq!(shown(store.batch_members(id, 1, 1).await.unwrap()), ids[1..2]);
    assert_eq!(shown(store.batch_members(id, 3, 9).await.unwrap()), []);
    assert_eq!(store.batch_members(id, u32::MAX, u32::MAX).await.unwrap(), []);

    store.start(ids[0], 70).await.unwrap();
    store.start(ids[1], 60).await.unwrap();
    assert!(store.close_batch(id, 50).await.unwrap() && store.close_batch(id, 90).await.unwrap());
    assert_eq!(store.batch_head(id).await.unwrap(), Some((batch.clone(), false)));
    let late = member_of(id, &[clean]);
    let error = store.create(&late).await.expect_err("the batch is closed");
    assert!(matches!(error.source, StoreFault::BatchClosed), "{error}");
    assert_eq!(store.get(late.data_id).await.unwrap(), None);
    for (member, code) in ids.iter().zip([clean, clean, infected]) {
        assert_eq!(store.batch(id).await.unwrap().unwrap().outcome(), Outcome::Processing);
        store.finish(*member, &sample_result(code, "x"), 100).await.unwrap();
    }
    let record = store.batch(id).await.unwrap().unwrap();
    assert_eq!((record.closed_ms, record.count(), record.code()), (Some(50), 3, infected));
    assert_eq!(record.outcome(), Outcome::Allowed, "each file is judged by its own rule");
    assert_eq!((record.started_ms, record.finished_ms), (Some(60), Some(100)));
}

async fn batches_are_cancelled_as_a_whole(store: &dyn ResultStore) {
    let batch = sample_batch();
    let id = batch.batch_id;
    store.create_batch(&batch).await.unwrap();
    let (done, open) = (member_of(id, &[ResultCode::NO_THREAT]), member_of(id, &[ResultCode::NO_THREAT]));
    store.create(&done).await.unwrap();
    store.create(&open).await.unwrap();
    store.finish(done.data_id, &sample_result(ResultCode::NO_THREAT, "x"), 9).await.unwrap();
    for now_ms in [10, 11] {
        assert!(store.cancel_batch(id, now_ms).await.unwrap());
    }
    assert!(!store.cancel_requested(done.data_id).await.unwrap(), "what is finished stays as it is");
    assert!(store.cancel_requested(open.data_id).await.unwrap());
    assert!(store.create(&member_of(id, &[])).await.is_err(), "a cancelled batch takes no files");
    store.finish(open.data_id, &sample_result(ResultCode::CANCELLED, "x"), 12).await.unwrap();
    let record = store.batch(id).await.unwrap().unwrap();
    assert_eq!((record.closed_ms, record.cancelled, record.code()), (Some(10), true, ResultCode::CANCELLED));
    assert_eq!(record.outcome(), Outcome::Blocked);
}

async fn workers_report(store: &dyn ResultStore) {
    let named = |name: &str, running| WorkerReport {
        name: name.to_owned(),
        running,
        engines: vec![EngineInfo {
            id: "builtin_1".to_owned(),
            name: "Lazaret".to_owned(),
            version: "1".to_owned(),
            kind: "signatures".to_owned(),
            database_version: "2".to_owned(),
            def_time_ms: 3,
            trouble: "it limps".to_owned(),
        }],
        ..WorkerReport::default()
    };
    // Younger than whatever was reported before.
    let now_ms = 1 << 45;
    store.report_worker(&named("b", 1), now_ms).await.unwrap();
    store.report_worker(&named("a", 2), now_ms + 1).await.unwrap();
    store.report_worker(&named("b", 3), now_ms + 2).await.unwrap();
    assert_eq!(
        store.workers(now_ms).await.unwrap(),
        [named("a", 2), named("b", 3)],
        "the last report of each, by name"
    );
    assert_eq!(store.workers(now_ms + 2).await.unwrap(), [named("b", 3)]);
    assert_eq!(store.workers(now_ms + 3).await.unwrap(), []);
}

async fn callbacks_are_due_until_they_are_settled(store: &dyn ResultStore) {
    let mut new = sample_analysis(DataId::random());
    let id = new.data_id;
    new.sent_along.callback_url = Some("https://example.test/done".to_owned());
    store.create(&new).await.unwrap();
    let now_ms = new.queued_ms;
    let due = async |now_ms| -> Vec<(String, u32)> {
        let all = store.due_callbacks(now_ms, None, 100).await.unwrap();
        all.into_iter()
            .filter(|callback| callback.data_id == id)
            .map(|callback| (callback.url, callback.attempts))
            .collect()
    };
    let url = "https://example.test/done".to_owned();
    assert_eq!(due(now_ms).await, [], "not before the analysis is finished");
    store.finish(id, &sample_result(ResultCode::NO_THREAT, "x"), now_ms).await.unwrap();
    assert_eq!(due(now_ms).await, [(url.clone(), 0)]);
    // Page by page each is told of once, those that are due at the same time too.
    for _ in 0..4 {
        let other = NewAnalysis { data_id: DataId::random(), ..new.clone() };
        store.create(&other).await.unwrap();
        store.finish(other.data_id, &sample_result(ResultCode::NO_THREAT, "x"), now_ms).await.unwrap();
    }
    let all = store.due_callbacks(now_ms, None, 100).await.unwrap();
    let mut paged: Vec<Callback> = Vec::new();
    loop {
        let after = paged.last().map(|last| (last.due_ms, last.data_id));
        let page = store.due_callbacks(now_ms, after, 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert!(all.len() >= 5 && all == paged, "{all:?} {paged:?}");
    for callback in all.iter().filter(|callback| callback.data_id != id) {
        assert!(store.callback_tried(callback.data_id, None).await.unwrap());
    }
    assert!(store.callback_tried(id, Some(now_ms + 10)).await.unwrap());
    assert_eq!(due(now_ms + 9).await, []);
    assert_eq!(due(now_ms - CALLBACK_DELAY_MS_MAX).await, [(url.clone(), 1)], "the clock was set back since");
    assert_eq!(due(now_ms + 10).await, [(url, 1)]);
    assert!(store.callback_tried(id, None).await.unwrap());
    assert!(!store.callback_tried(id, Some(now_ms)).await.unwrap(), "settled for good");
    assert_eq!(due(u64::MAX).await, []);
}

async fn what_is_old_is_removed(store: &dyn ResultStore) {
    let clean = sample_result(ResultCode::NO_THREAT, "x");
    let finished = async |new: &NewAnalysis, at_ms| {
        store.create(new).await.unwrap();
        let nested: Vec<NestedRecord> = (0..5).map(|ordinal| sample_nested(new.data_id, ordinal)).collect();
        store.put_nested(&nested).await.unwrap();
        store.finish(new.data_id, &clean, at_ms).await.unwrap();
        (new.data_id, nested[4].data_id)
    };
    let known = async |id| store.get(id).await.unwrap().is_some();
    // Older than whatever the other suites finished but for some, which don't look back.
    let (old, old_nested) = finished(&sample_analysis(DataId::random()), 2).await;
    let (young, young_nested) = finished(&sample_analysis(DataId::random()), 1 << 46).await;
    let open = sample_analysis(DataId::random());
    store.create(&open).await.unwrap();
    let mut told = sample_analysis(DataId::random());
    told.sent_along.callback_url = Some("https://example.test/".to_owned());
    let (told, _) = finished(&told, 2).await;
    // A batch with a young file keeps its old one; a batch of old files goes, and so does an old one without files.
    let (mixed, gone, empty) = (sample_batch(), sample_batch(), sample_batch());
    let old_batch = |batch: &NewBatch| NewBatch { created_ms: 1, ..batch.clone() };
    for batch in [&mixed, &gone, &empty] {
        store.create_batch(&old_batch(batch)).await.unwrap();
    }
    let (kept, _) = finished(&member_of(mixed.batch_id, &[]), 2).await;
    finished(&member_of(mixed.batch_id, &[]), 1 << 46).await;
    let (member, _) = finished(&member_of(gone.batch_id, &[]), 2).await;
    store.close_batch(gone.batch_id, 2).await.unwrap();

    // What is borrowed stays for its borrower, and is unknown by its own ids; it goes with the last borrower.
    let (lender, lent, records) = lender(store).await;
    let (by_young, by_old) = (DataId::random(), DataId::random());
    for (borrower, at_ms) in [(by_young, 1 << 46), (by_old, 2)] {
        store.create(&sample_analysis(borrower)).await.unwrap();
        assert!(store.finish_as(borrower, &lent, lender, at_ms).await.unwrap());
    }
    let late = DataId::random();
    store.create(&sample_analysis(late)).await.unwrap();

    let mut steps = 0;
    while store.expire(3, 2).await.unwrap() > 0 {
        assert_eq!(known(old).await, known(old_nested).await, "it goes as a whole");
        steps += 1;
        assert!(steps < 10_000, "it comes to an end");
    }
    assert!(steps > 2, "in steps");
    assert_eq!(store.expire(3, 2).await.unwrap(), 0);
    assert!(known(young).await && known(young_nested).await && known(open.data_id).await);
    assert!(known(told).await, "what is yet to be told stays");
    assert!(known(kept).await && store.batch(mixed.batch_id).await.unwrap().unwrap().count() == 2);
    assert!(!known(member).await && store.batch(gone.batch_id).await.unwrap().is_none());
    assert_eq!(store.batch(empty.batch_id).await.unwrap(), None);
    assert!(!known(lender).await && !known(records[0].data_id).await && !known(by_old).await);
    assert_eq!(store.nested(by_young, 0, 10).await.unwrap().records.len(), 3, "a borrower loses nothing");
    assert!(!store.finish_as(late, &lent, lender, 1 << 46).await.unwrap(), "what is unknown lends no more");
    store.finish(late, &clean, 1 << 46).await.unwrap();
    let query = DigestQuery { nested: true, unfinished: true, ..DigestQuery::default() };
    let digest = hex::decode(sample_analysis(old).file.sha256).unwrap();
    assert_eq!(store.find_by_digest(&DigestQuery { digest, ..query }, 9).await.unwrap(), []);
    store.callback_tried(told, None).await.unwrap();
    store.finish(open.data_id, &clean, 1 << 46).await.unwrap();
}

/// What a [`ProgressCache`] must do.
pub async fn progress_cache(cache: &dyn ProgressCache) {
    let (id, other) = (DataId::random(), DataId::random());
    let progress = |percent, last_file: &str| Progress { percent, last_file: last_file.to_owned() };
    assert_eq!(cache.get(id).await.unwrap(), None);
    cache.set(id, progress(10, "a")).await.unwrap();
    cache.set(other, progress(3, "z")).await.unwrap();
    assert_eq!(cache.get(id).await.unwrap(), Some(progress(10, "a")));
    cache.set(id, progress(40, "b")).await.unwrap();
    cache.set(id, progress(20, "c\0\u{1F4C4}")).await.unwrap();
    assert_eq!(cache.get(id).await.unwrap(), Some(progress(40, "c\0\u{1F4C4}")), "it never goes back");
    cache.set(id, progress(100, "d")).await.unwrap();
    assert_eq!(cache.get(id).await.unwrap(), Some(progress(99, "d")), "100 is the result itself");
    cache.remove(id).await.unwrap();
    cache.remove(id).await.unwrap();
    assert_eq!(cache.get(id).await.unwrap(), None);
    assert_eq!(cache.get(other).await.unwrap(), Some(progress(3, "z")), "others are untouched");
    cache.remove(other).await.unwrap();
}
