//! What a store does with kept verdicts: claims, and members that one analysis borrows of another.

use std::collections::HashSet;

use super::{sample_analysis, sample_batch, sample_nested, sample_result};
use crate::analysis::{ContainerResult, FileResult, NestedRecord, NewAnalysis, Principal, State};
use crate::batch::NewBatch;
use crate::cache::{KeptTree, KeptVerdict, TreeTotals, VERDICT_BATCH_MAX, VerdictKey};
use crate::id::DataId;
use crate::store::{Claim, DigestQuery, LEASE_MS_MAX, ResultStore, StoreFault};
use crate::verdict::ResultCode;

fn sample_key(seed: DataId, number: u8) -> VerdictKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.0).update(&[number]);
    VerdictKey(*hasher.finalize().as_bytes())
}

pub(super) async fn verdicts_are_kept_and_found(store: &dyn ResultStore) {
    let seed = DataId::random();
    let keys: Vec<VerdictKey> = (0..3).map(|number| sample_key(seed, number)).collect();
    assert_eq!(store.verdicts(&[], 0).await.unwrap(), []);
    store.keep_verdicts(&[], 0).await.unwrap();
    assert_eq!(store.verdicts(&keys, 0).await.unwrap(), [None, None, None]);
    let leaf = KeptVerdict { result: sample_result(ResultCode::INFECTED, "a"), tree: None };
    let totals = TreeTotals { files: 3, bytes: u64::from(u32::MAX) + 1, depth: 2, largest_bytes: 7 };
    let tree = KeptVerdict {
        result: sample_result(ResultCode::NO_THREAT, "b"),
        tree: Some(KeptTree { source: seed, totals }),
    };
    store.keep_verdicts(&[(keys[0], leaf.clone()), (keys[2], tree.clone())], 0).await.unwrap();
    let later = 40 * 3_600_000;
    for now_ms in [0, later, later] {
        let found = store.verdicts(&keys, now_ms).await.unwrap();
        assert_eq!(found, [Some(leaf.clone()), None, Some(tree.clone())], "in the order of the keys");
    }
    assert_eq!(store.verdicts(&[keys[2], keys[2]], 0).await.unwrap(), [Some(tree.clone()), Some(tree.clone())]);
    store.keep_verdicts(&[(keys[0], tree.clone())], later).await.unwrap();
    assert_eq!(store.verdicts(&keys[..1], later).await.unwrap(), [Some(tree)], "the last one counts");
    let many: Vec<VerdictKey> = (0..=VERDICT_BATCH_MAX).map(|_| sample_key(DataId::random(), 0)).collect();
    assert_eq!(store.verdicts(&many[1..], 0).await.unwrap(), vec![None; VERDICT_BATCH_MAX]);
    let error = store.verdicts(&many, 0).await.expect_err("batches are bounded");
    assert!(matches!(error.source, StoreFault::BatchTooLarge(_)), "{error}");
}

pub(super) async fn one_of_several_claims_counts(store: &dyn ResultStore) {
    let ids: Vec<DataId> = (0..3).map(|_| DataId::random()).collect();
    let key = sample_key(ids[0], 0);
    assert_eq!(store.claim(ids[0], key, 100, 10).await.unwrap(), Claim::Nothing, "unknown");
    for id in &ids {
        store.create(&sample_analysis(*id)).await.unwrap();
    }
    assert_eq!(store.claim(ids[1], key, 100, 10).await.unwrap(), Claim::Yours);
    let record = store.get(ids[1]).await.unwrap().unwrap();
    assert_eq!((record.state, record.started_ms), (State::Running, Some(10)));
    assert_eq!(store.claim(ids[2], key, 100, 20).await.unwrap(), Claim::Twin);
    assert_eq!(store.claim(ids[2], sample_key(ids[0], 1), 100, 20).await.unwrap(), Claim::Yours, "another key");
    assert_eq!(store.claim(ids[2], key, 200, 30).await.unwrap(), Claim::Twin);
    // Whoever claimed first has it, whatever was recorded first; and claims again as often as it likes.
    assert_eq!(store.claim(ids[0], key, 100, 30).await.unwrap(), Claim::Twin);
    assert_eq!(store.claim(ids[1], key, 100, 40).await.unwrap(), Claim::Yours);
    assert_eq!(store.get(ids[1]).await.unwrap().unwrap().started_ms, Some(40), "it began anew");
    store.extend_claim(ids[1], 150).await.unwrap();
    assert_eq!(store.claim(ids[2], key, 300, 120).await.unwrap(), Claim::Twin, "extended");
    assert_eq!(store.get(ids[1]).await.unwrap().unwrap().started_ms, Some(40), "which is no start");
    store.extend_claim(ids[1], 0).await.unwrap();
    assert_eq!(store.claim(ids[2], key, 300, 60).await.unwrap(), Claim::Yours, "given up");
    assert_eq!(store.claim(ids[1], key, 300, 65).await.unwrap(), Claim::Twin, "it comes last now");
    assert_eq!(store.claim(ids[0], key, 300, 70).await.unwrap(), Claim::Twin);
    assert!(store.finish(ids[2], &sample_result(ResultCode::CANCELLED, "a"), 80).await.unwrap());
    assert_eq!(store.claim(ids[2], key, 300, 90).await.unwrap(), Claim::Nothing, "finished");
    assert_eq!(store.claim(ids[1], key, 300, 90).await.unwrap(), Claim::Twin, "of the one before it");
    assert_eq!(store.claim(ids[0], key, 300, 90).await.unwrap(), Claim::Yours, "a claim ends with its analysis");
    assert_eq!(store.claim(ids[1], key, 900, 400).await.unwrap(), Claim::Yours, "a claim ends by its time");
    assert_eq!(store.get(ids[1]).await.unwrap().unwrap().started_ms, Some(400), "so it starts again");
    let ahead_ms = 2 * LEASE_MS_MAX;
    store.extend_claim(ids[1], ahead_ms).await.unwrap();
    assert_eq!(store.claim(ids[0], key, 600, 500).await.unwrap(), Claim::Yours, "the clock was set back since");
    assert_eq!(store.claim(ids[1], key, 600, 500).await.unwrap(), Claim::Twin, "it claims anew");
    for id in [ids[0], ids[1]] {
        store.finish(id, &sample_result(ResultCode::NO_THREAT, "a"), 500).await.unwrap();
    }
}

/// A finished analysis with members, of which the second is a container with two. The last one is the worst.
pub(super) async fn lender(store: &dyn ResultStore) -> (DataId, FileResult, Vec<NestedRecord>) {
    let root = DataId::random();
    store.create(&sample_analysis(root)).await.unwrap();
    let mut records: Vec<NestedRecord> = (0..3).map(|ordinal| sample_nested(root, ordinal)).collect();
    let inner = records[1].data_id;
    let members: Vec<NestedRecord> = (0..2)
        .map(|ordinal| {
            let mut record = sample_nested(root, ordinal);
            record.data_id = DataId::nested(&[1; 32], root, &[1, ordinal]);
            record.parent = inner;
            record.path = format!("member 1/{}", record.path);
            record
        })
        .collect();
    let container = |count, worst| {
        Some(ContainerResult { extracted_count: count, worst_child: Some(worst), ..ContainerResult::default() })
    };
    records[1].result.container = container(2, members[1].data_id);
    let mut result = sample_result(ResultCode::NO_THREAT, "a");
    result.container = container(3, inner);
    records.extend(members);
    assert!(store.put_nested(&records).await.unwrap());
    assert!(store.finish(root, &result, 1).await.unwrap());
    (root, result, records)
}

pub(super) async fn members_are_borrowed(store: &dyn ResultStore) {
    let (root, result, records) = lender(store).await;
    let by_root = DataId::random();
    store.create(&sample_analysis(by_root)).await.unwrap();
    assert!(store.finish_as(by_root, &result, root, 50).await.unwrap());
    assert!(!store.finish_as(by_root, &result, root, 60).await.unwrap(), "finished is finished");
    let borrowed = store.get(by_root).await.unwrap().unwrap();
    assert_eq!((borrowed.state, borrowed.started_ms), (State::Done, Some(50)));

    // As a whole, and again page by page.
    let page = store.nested(by_root, 0, 10).await.unwrap();
    assert_eq!(page.total, 3);
    for (at, record) in page.records.iter().enumerate() {
        let original = &records[at];
        assert_eq!((record.root, record.parent, record.ordinal), (by_root, by_root, original.ordinal));
        assert_eq!((&record.path, &record.result.file), (&original.path, &original.result.file));
        assert_ne!(record.data_id, original.data_id, "ids of its own");
        assert_eq!(store.nested(by_root, original.ordinal, 1).await.unwrap().records, std::slice::from_ref(record));
        let alone = store.get(record.data_id).await.unwrap().expect("a borrowed id is known");
        assert_eq!((alone.data_id, alone.root, alone.parent), (record.data_id, by_root, Some(by_root)));
        assert_eq!((alone.state, alone.result.as_ref()), (State::Done, Some(&record.result)));
        assert_eq!(alone.new.receive_ms, borrowed.new.receive_ms);
    }
    let worst = |result: &FileResult| result.container.as_ref().unwrap().worst_child.unwrap();
    let inner = &page.records[1];
    assert_eq!(worst(&borrowed.result.unwrap()), inner.data_id, "the way to the worst leads through its own ids");
    let below = store.nested(inner.data_id, 0, 10).await.unwrap();
    assert_eq!((below.total, below.records.len()), (2, 2));
    assert_eq!(worst(&inner.result), below.records[1].data_id);
    assert_eq!(below.records[1].path, "member 1/member 1");
    let deep = store.get(below.records[0].data_id).await.unwrap().unwrap();
    assert_eq!((deep.root, deep.parent), (by_root, Some(inner.data_id)));

    // From a container inside another one: paths begin there.
    let by_inner = DataId::random();
    store.create(&sample_analysis(by_inner)).await.unwrap();
    let inner_result = records[1].result.clone();
    assert!(store.finish_as(by_inner, &inner_result, records[1].data_id, 50).await.unwrap());
    let page = store.nested(by_inner, 0, 10).await.unwrap();
    let paths: Vec<&str> = page.records.iter().map(|record| record.path.as_str()).collect();
    assert_eq!((page.total, paths), (2, vec!["member 0", "member 1"]));
    assert_eq!(store.get(page.records[1].data_id).await.unwrap().unwrap().parent, Some(by_inner));
    let seen: HashSet<DataId> = page.records.iter().chain(&below.records).map(|record| record.data_id).collect();
    assert_eq!(seen.len(), 4, "two borrowers' ids differ");
    // What the one borrowed leads nowhere else, and the lender is what it was.
    assert_eq!(store.nested(root, 0, 10).await.unwrap().records, records[..3]);
    assert_eq!(store.get(DataId::random()).await.unwrap(), None);
    assert_eq!(store.nested(DataId::random(), 0, 10).await.unwrap().total, 0);
}

pub(super) async fn only_finished_analyses_lend(store: &dyn ResultStore) {
    let (root, result, records) = lender(store).await;
    let (unknown, running, borrower) = (DataId::random(), DataId::random(), DataId::random());
    for id in [running, borrower] {
        store.create(&sample_analysis(id)).await.unwrap();
    }
    assert!(store.put_nested(&[sample_nested(running, 0)]).await.unwrap());
    let mut one = result.clone();
    one.container = Some(ContainerResult { extracted_count: 1, ..ContainerResult::default() });
    assert!(!store.finish_as(unknown, &result, root, 9).await.unwrap(), "nobody");
    assert!(!store.finish_as(borrower, &one, running, 9).await.unwrap(), "from an unfinished one");
    assert!(!store.finish_as(borrower, &one, unknown, 9).await.unwrap(), "from nobody");
    assert!(!store.finish_as(borrower, &one, root, 9).await.unwrap(), "from one that lost some");
    assert!(!store.finish_as(running, &result, root, 9).await.unwrap(), "one with records of its own");
    assert!(store.finish_as(borrower, &result, root, 9).await.unwrap());
    let second = DataId::random();
    store.create(&sample_analysis(second)).await.unwrap();
    assert!(!store.finish_as(second, &result, borrower, 9).await.unwrap(), "from a borrower");
    let inner = store.nested(borrower, 1, 1).await.unwrap().records.remove(0);
    assert!(!store.finish_as(second, &records[1].result, inner.data_id, 9).await.unwrap(), "from within a borrower");
    for id in [running, second] {
        assert!(store.finish(id, &one, 9).await.unwrap());
    }
}

pub(super) async fn borrowed_members_are_found_and_outlive_their_lender(store: &dyn ResultStore) {
    let (root, result, records) = lender(store).await;
    let user = DataId::random().to_string();
    let borrower = async |source: DataId, result: &FileResult| {
        let principal = Principal { user_id: user.clone(), ..Principal::default() };
        let mut new = NewAnalysis { principal, ..sample_analysis(DataId::random()) };
        let batch = NewBatch { batch_id: DataId::random(), ..sample_batch() };
        store.create_batch(&batch).await.unwrap();
        new.sent_along.batch = Some(batch.batch_id);
        store.create(&new).await.unwrap();
        assert!(store.finish_as(new.data_id, result, source, 1 << 46).await.unwrap());
        let groups = store.batch(batch.batch_id).await.unwrap().unwrap().groups;
        assert_eq!(groups[0].overall, Some(result.overall), "its result counts in its batch");
        new.data_id
    };
    let find = async |record: &NestedRecord| {
        let digest = hex::decode(&record.result.file.sha256).unwrap();
        let query = DigestQuery { digest, user_id: Some(user.clone()), nested: true, ..DigestQuery::default() };
        store.find_by_digest(&query, 9).await.unwrap()
    };
    assert_eq!(find(&records[0]).await, [], "nothing is borrowed yet");
    let whole = borrower(root, &result).await;
    let page = store.nested(whole, 0, 9).await.unwrap().records;
    let deep = store.nested(page[1].data_id, 0, 9).await.unwrap().records;
    let (first, second) = (find(&records[0]).await, find(&records[2]).await);
    assert!(first.contains(&page[0].data_id) && first.contains(&deep[0].data_id), "two files of the same content");
    assert_eq!(second, [page[2].data_id]);
    let inner = borrower(records[1].data_id, &records[1].result).await;
    let inner_page = store.nested(inner, 0, 9).await.unwrap().records;
    assert!(find(&records[0]).await.contains(&inner_page[0].data_id));
    assert_eq!(find(&records[2]).await, [page[2].data_id], "what lies beside the inner container was not borrowed");

    while store.expire(2, 100).await.unwrap() > 0 {}
    assert_eq!(store.get(root).await.unwrap(), None, "the lender is gone");
    assert_eq!(store.get(records[0].data_id).await.unwrap(), None, "and so are its files");
    assert_eq!(store.nested(whole, 0, 9).await.unwrap().records, page, "what was borrowed stays");
    assert_eq!(find(&records[2]).await, [page[2].data_id]);
    let late = sample_analysis(DataId::random());
    store.create(&late).await.unwrap();
    assert!(!store.finish_as(late.data_id, &result, root, 9).await.unwrap(), "what is gone lends no more");
    store.finish(late.data_id, &result, 1 << 46).await.unwrap();
}
