//! What shares do.

use super::{sample_analysis, sample_nested};
use crate::id::DataId;
use crate::share::{NewShare, PartResult, PartState};
use crate::store::ResultStore;

const PIPELINE: &str = "conformance";

/// What [`crate::share::Shares`] must do. No share of this pipeline may be open.
pub async fn shares(store: &dyn ResultStore) {
    members_are_claimed_without_gaps_and_folded_once(store).await;
    a_part_that_is_lost_is_taken_once(store).await;
    parts_of_a_clock_that_was_set_back_are_lost(store).await;
    a_share_opened_again_forgets_its_parts(store).await;
    records_of_what_is_unfinished_are_discarded(store).await;
}

fn new_share(worker: &str) -> NewShare {
    NewShare { root: DataId::random(), worker: worker.to_owned(), pipeline: PIPELINE.to_owned(), deadline_ms: Some(77) }
}

async fn members_are_claimed_without_gaps_and_folded_once(store: &dyn ResultStore) {
    assert_eq!(store.join_share("b", PIPELINE, 1_000, 100).await.unwrap(), None);
    let share = new_share("a");
    let lead = store.open_share(&share, 1_000).await.unwrap();
    assert_eq!(store.join_share("a", PIPELINE, 1_000, 100).await.unwrap(), None, "it is in it already");
    assert_eq!(store.join_share("b", "another pipeline", 1_000, 100).await.unwrap(), None);
    assert_eq!(store.join_share("b", PIPELINE, 2_000, 1_000).await.unwrap(), None, "its lead is dead");
    assert_eq!(store.claim_members(&lead, 3).await.unwrap(), Some(0..3));
    let part = store.join_share("b", PIPELINE, 1_000, 100).await.unwrap().unwrap();
    assert_eq!((part.root, part.deadline_ms), (share.root, Some(77)));
    assert_eq!(store.join_share("b", PIPELINE, 1_000, 100).await.unwrap(), None, "once is enough");
    assert_eq!(store.claim_members(&part.token, 5).await.unwrap(), Some(3..8));
    assert_eq!(store.claim_members(&lead, 0).await.unwrap(), Some(8..9), "at least one");
    assert_eq!(store.claim_members(&part.token, 1).await.unwrap(), Some(9..10));

    let views = store.parts(&lead, 100).await.unwrap().unwrap();
    assert_eq!(views.len(), 1, "the lead's own is left out");
    assert_eq!((&views[0].token, &views[0].claimed), (&part.token, &vec![3..8, 9..10]));
    assert_eq!(views[0].state, PartState::Working);
    let result = PartResult { complete: true, detected: 4, ..PartResult::default() };
    assert!(store.finish_part(&part.token, &result).await.unwrap());
    assert!(!store.finish_part(&part.token, &result).await.unwrap(), "it has ended");
    assert!(!store.extend_part(&part.token, 5_000).await.unwrap());
    assert_eq!(store.claim_members(&part.token, 1).await.unwrap(), None);
    assert!(!store.take_part(&part.token, 9_000).await.unwrap(), "what is done is not taken");
    let views = store.parts(&lead, 9_000).await.unwrap().unwrap();
    assert_eq!(views[0].state, PartState::Done(Box::new(result)));
    store.close_share(share.root).await.unwrap();
    assert_eq!(store.parts(&lead, 100).await.unwrap(), None);
    assert_eq!(store.claim_members(&lead, 1).await.unwrap(), None);
    assert_eq!(store.join_share("c", PIPELINE, 1_000, 100).await.unwrap(), None);
}

async fn a_part_that_is_lost_is_taken_once(store: &dyn ResultStore) {
    let share = new_share("a");
    let lead = store.open_share(&share, 10_000).await.unwrap();
    let part = store.join_share("b", PIPELINE, 1_000, 100).await.unwrap().unwrap();
    assert_eq!(store.claim_members(&part.token, 2).await.unwrap(), Some(0..2));
    assert!(!store.take_part(&part.token, 999).await.unwrap(), "its lease has not ended");
    assert!(store.extend_part(&part.token, 2_000).await.unwrap());
    assert_eq!(store.parts(&lead, 1_999).await.unwrap().unwrap()[0].state, PartState::Working);
    assert_eq!(store.parts(&lead, 2_000).await.unwrap().unwrap()[0].state, PartState::Lost);
    assert_eq!(store.join_share("c", PIPELINE, 9_000, 2_000).await.unwrap(), None, "somebody died of it");
    assert!(store.take_part(&part.token, 2_000).await.unwrap());
    assert!(!store.take_part(&part.token, 2_000).await.unwrap());
    assert!(!store.extend_part(&part.token, 9_000).await.unwrap());
    assert!(!store.finish_part(&part.token, &PartResult::default()).await.unwrap());
    assert_eq!(store.claim_members(&part.token, 1).await.unwrap(), None);
    assert_eq!(store.claim_members(&lead, 1).await.unwrap(), Some(2..3), "what was taken is not handed out again");
    let views = store.parts(&lead, 2_000).await.unwrap().unwrap();
    assert_eq!(views[0].state, PartState::Lost);
    assert!(views[0].claimed.iter().eq(std::iter::once(&(0..2))));
    store.close_share(share.root).await.unwrap();
}

async fn parts_of_a_clock_that_was_set_back_are_lost(store: &dyn ResultStore) {
    let (share, ahead_ms) = (new_share("a"), 7_200_000);
    let lead = store.open_share(&share, ahead_ms + 30_000).await.unwrap();
    let part = store.join_share("b", PIPELINE, ahead_ms + 30_000, ahead_ms).await.unwrap().unwrap();
    assert_eq!(store.join_share("c", PIPELINE, 31_000, 1_000).await.unwrap(), None, "its lead is dead");
    assert!(store.extend_part(&lead, 31_000).await.unwrap());
    assert_eq!(store.parts(&lead, 1_000).await.unwrap().unwrap()[0].state, PartState::Lost);
    assert_eq!(store.join_share("c", PIPELINE, 31_000, 1_000).await.unwrap(), None, "somebody died of it");
    assert!(store.take_part(&part.token, 1_000).await.unwrap());
    store.close_share(share.root).await.unwrap();
}

async fn a_share_opened_again_forgets_its_parts(store: &dyn ResultStore) {
    let share = new_share("a");
    let first = store.open_share(&share, 10_000).await.unwrap();
    let part = store.join_share("b", PIPELINE, 10_000, 100).await.unwrap().unwrap();
    store.claim_members(&part.token, 2).await.unwrap().unwrap();
    let second = store.open_share(&share, 10_000).await.unwrap();
    assert_eq!(store.parts(&first, 100).await.unwrap(), None);
    assert!(!store.extend_part(&part.token, 20_000).await.unwrap());
    assert!(!store.finish_part(&part.token, &PartResult::default()).await.unwrap());
    assert_eq!(store.claim_members(&second, 1).await.unwrap(), Some(0..1));
    assert_eq!(store.parts(&second, 100).await.unwrap(), Some(Vec::new()));
    store.close_share(share.root).await.unwrap();
}

async fn records_of_what_is_unfinished_are_discarded(store: &dyn ResultStore) {
    let new = sample_analysis(DataId::random());
    store.create(&new).await.unwrap();
    let records: Vec<_> = (0..5).map(|ordinal| sample_nested(new.data_id, ordinal)).collect();
    assert!(store.put_nested(&records).await.unwrap());
    assert_eq!(store.discard_nested(new.data_id, 3).await.unwrap(), 3);
    assert_eq!(store.discard_nested(new.data_id, 3).await.unwrap(), 2);
    assert_eq!(store.discard_nested(new.data_id, 3).await.unwrap(), 0);
    assert_eq!(store.nested(new.data_id, 0, 10).await.unwrap().total, 0);
    assert!(store.put_nested(&records).await.unwrap());
    let result = super::sample_result(crate::verdict::ResultCode::NO_THREAT, "done");
    assert!(store.finish(new.data_id, &result, 1).await.unwrap());
    assert_eq!(store.discard_nested(new.data_id, 3).await.unwrap(), 0, "what is finished stays");
}
