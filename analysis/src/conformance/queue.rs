//! What a queue of tasks does.

use std::collections::HashSet;
use std::time::Duration;

use crate::id::DataId;
use crate::store::{LEASE_MS_MAX, LeaseToken, SMALL_FILE_BYTES, Task, TaskQueue};

/// What a [`TaskQueue`] must do. It must be empty.
pub async fn task_queue(queue: &dyn TaskQueue) {
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.queued, depth.leased), (0, 0), "the suite wants an empty queue");
    assert_eq!(queue.oldest_ms().await.unwrap(), None);
    tasks_are_counted_by_owner(queue).await;
    tasks_are_queued_once_and_leased_in_order(queue).await;
    owners_take_turns_and_priorities_come_first(queue).await;
    small_files_are_leased_alone(queue).await;
    leases_are_extended_and_lost(queue).await;
    tasks_are_given_back(queue).await;
    ends_of_a_clock_that_was_set_back_are_past(queue).await;
    waiting_ends(queue).await;
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.queued, depth.leased), (0, 0), "everything was acknowledged");
}

async fn tasks_are_counted_by_owner(queue: &dyn TaskQueue) {
    assert_eq!(queue.waiting_by_owner().await.unwrap(), []);
    for (owner, enqueued_ms) in [("ann", 70), ("bob", 60), ("ann", 80)] {
        let task = Task { owner: owner.to_owned(), ..Task::scan(DataId::random(), enqueued_ms) };
        assert!(queue.push(task).await.unwrap());
    }
    let counts = async || {
        let mut counts = queue.waiting_by_owner().await.unwrap();
        counts.sort();
        counts
    };
    let all = [("ann".to_owned(), 2), ("bob".to_owned(), 1)];
    assert_eq!(counts().await, all);
    assert_eq!(queue.oldest_ms().await.unwrap(), Some(60));
    let leases = queue.lease("w", 3, 1000, 100).await.unwrap();
    assert_eq!(counts().await, all, "leased ones count as well");
    for lease in &leases {
        assert!(queue.ack(&lease.token).await.unwrap());
    }
    assert_eq!(counts().await, []);
}

async fn tasks_are_queued_once_and_leased_in_order(queue: &dyn TaskQueue) {
    let ids: Vec<DataId> = (0..5).map(|_| DataId::random()).collect();
    for (age, id) in ids.iter().enumerate() {
        assert!(!queue.contains(*id).await.unwrap());
        assert!(queue.push(Task::scan(*id, 100 + age as u64)).await.unwrap());
        assert!(!queue.push(Task::scan(*id, 50)).await.unwrap(), "queued already");
        assert!(queue.contains(*id).await.unwrap());
    }
    assert_eq!(queue.lease("w", 0, 1000, 200).await.unwrap(), []);
    let leases = queue.lease("w", 2, 1000, 200).await.unwrap();
    let taken: Vec<DataId> = leases.iter().map(|lease| lease.task.data_id).collect();
    assert_eq!(taken, ids[..2], "in the order in which they were queued");
    for (age, lease) in leases.iter().enumerate() {
        assert_eq!((lease.attempts, lease.releases), (1, 0));
        assert_eq!(lease.task, Task { attempts: 1, ..Task::scan(ids[age], 100 + age as u64) });
    }
    assert!(!queue.push(Task::scan(ids[0], 300)).await.unwrap(), "leased already");
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.queued, depth.leased), (3, 2));

    let others = queue.lease("v", 100, 1000, 200).await.unwrap();
    assert_eq!(others.iter().map(|lease| lease.task.data_id).collect::<Vec<_>>(), ids[2..]);
    assert_eq!(queue.lease("v", 100, 1000, 200).await.unwrap(), [], "a leased task is one worker's");
    let tokens: HashSet<&LeaseToken> = leases.iter().chain(&others).map(|lease| &lease.token).collect();
    assert_eq!(tokens.len(), 5, "each lease has its own token");
    for token in tokens {
        assert!(queue.ack(token).await.unwrap());
        assert!(!queue.ack(token).await.unwrap(), "acknowledged already");
        assert!(!queue.extend(token, 1000, 200).await.unwrap());
        assert!(!queue.release(token, 0, 200).await.unwrap());
    }
    for id in &ids {
        assert!(!queue.contains(*id).await.unwrap());
    }
    assert!(queue.push(Task::scan(ids[0], 300)).await.unwrap(), "a task that is done may be queued again");
    let lease = queue.lease("w", 1, 1000, 300).await.unwrap().remove(0);
    assert_eq!(lease.attempts, 1, "and begins anew");
    assert!(queue.ack(&lease.token).await.unwrap());
}

/// Leases everything there is, one at a time, and acknowledges it.
async fn drain(queue: &dyn TaskQueue) -> Vec<Task> {
    let mut taken = Vec::new();
    while let Some(lease) = queue.lease("w", 1, 1000, 1000).await.unwrap().pop() {
        assert!(queue.ack(&lease.token).await.unwrap());
        taken.push(lease.task);
    }
    taken
}

async fn owners_take_turns_and_priorities_come_first(queue: &dyn TaskQueue) {
    let task = |owner: &str, priority: u8, age: u64| Task {
        owner: owner.to_owned(),
        priority,
        ..Task::scan(DataId::random(), age)
    };
    // One owner queues a hundred, then another five: these don't wait for those.
    for age in 0..100 {
        assert!(queue.push(task("many", 5, age)).await.unwrap());
    }
    for age in 100..105 {
        assert!(queue.push(task("few", 5, age)).await.unwrap());
    }
    let taken = drain(queue).await;
    let places: Vec<usize> = (0..105).filter(|at| taken[*at].owner == "few").collect();
    assert_eq!((taken.len(), places.len()), (105, 5));
    assert!(places[4] < 20, "the few waited for the many: {places:?}");
    for owner in ["many", "few"] {
        let ages: Vec<u64> = taken.iter().filter(|task| task.owner == owner).map(|task| task.enqueued_ms).collect();
        // One lease in some goes by age, which is the same order within an owner.
        assert!(ages.is_sorted(), "{owner}: {ages:?}");
    }

    for age in 0..40 {
        assert!(queue.push(task("a", 3, age)).await.unwrap());
    }
    for age in 40..44 {
        assert!(queue.push(task("b", 9, age)).await.unwrap());
    }
    let batch = queue.lease("w", 3, 1000, 1000).await.unwrap();
    let mut taken: Vec<Task> = batch.iter().map(|lease| lease.task.clone()).collect();
    for lease in &batch {
        assert!(queue.ack(&lease.token).await.unwrap());
    }
    taken.extend(drain(queue).await);
    let places: Vec<usize> = (0..44).filter(|at| taken[*at].priority == 9).collect();
    assert!(places.last() < Some(&12), "the higher priority waited: {places:?}");
    assert_eq!((taken.len(), places.len()), (44, 4));
}

async fn small_files_are_leased_alone(queue: &dyn TaskQueue) {
    let sizes = [SMALL_FILE_BYTES + 1, SMALL_FILE_BYTES, u64::MAX / 2, 0];
    let ids: Vec<DataId> = sizes.iter().map(|_| DataId::random()).collect();
    for (id, size_bytes) in ids.iter().zip(sizes) {
        assert!(queue.push(Task { size_bytes, ..Task::scan(*id, 7) }).await.unwrap());
    }
    let small = queue.lease_small("w", 10, 1000, 1000).await.unwrap();
    let taken: Vec<(DataId, u64)> = small.iter().map(|lease| (lease.task.data_id, lease.task.size_bytes)).collect();
    assert_eq!(taken, [(ids[1], sizes[1]), (ids[3], 0)]);
    assert_eq!(queue.lease_small("w", 10, 1000, 1000).await.unwrap(), []);
    for lease in &small {
        assert!(queue.ack(&lease.token).await.unwrap());
    }
    assert_eq!(drain(queue).await.len(), 2);
}

async fn leases_are_extended_and_lost(queue: &dyn TaskQueue) {
    let id = DataId::random();
    queue.push(Task::scan(id, 0)).await.unwrap();
    let first = queue.lease("w", 1, 1000, 5000).await.unwrap().remove(0);
    assert_eq!(queue.lease("v", 1, 1000, 5999).await.unwrap(), []);
    assert!(queue.extend(&first.token, 1000, 5500).await.unwrap());
    assert_eq!(queue.lease("v", 1, 1000, 6499).await.unwrap(), []);
    assert!(queue.contains(id).await.unwrap());

    let second = queue.lease("v", 1, 1000, 6500).await.unwrap().remove(0);
    assert_eq!((second.task.data_id, second.attempts), (id, 2), "an expired lease comes back");
    assert_ne!(first.token, second.token);
    assert!(!queue.extend(&first.token, 1000, 6500).await.unwrap(), "the first worker lost it");
    assert!(!queue.release(&first.token, 0, 6500).await.unwrap());
    assert!(!queue.ack(&first.token).await.unwrap());
    assert!(queue.contains(id).await.unwrap());

    // The first worker lives: it only was too slow.
    queue.survived(id).await.unwrap();
    queue.survived(id).await.unwrap();
    let third = queue.lease("u", 1, 1000, 7500).await.unwrap().remove(0);
    assert_eq!((third.attempts, third.releases), (2, 1), "who has the task keeps its attempt");
    queue.survived(id).await.unwrap();
    let second = queue.lease("v", 1, 1000, 8500).await.unwrap().remove(0);
    assert_eq!((second.attempts, second.releases), (2, 2));

    // Late, but nobody took it meanwhile.
    assert!(queue.extend(&second.token, 1000, 9900).await.unwrap());
    assert_eq!(queue.lease("w", 1, 1000, 10_899).await.unwrap(), []);
    assert!(queue.ack(&second.token).await.unwrap());
    assert!(!queue.contains(id).await.unwrap());
}

async fn tasks_are_given_back(queue: &dyn TaskQueue) {
    let id = DataId::random();
    queue.push(Task::scan(id, 0)).await.unwrap();
    let first = queue.lease("w", 1, 1000, 0).await.unwrap().remove(0);
    assert!(queue.release(&first.token, 500, 100).await.unwrap());
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.queued, depth.leased), (1, 0));
    assert!(!queue.push(Task::scan(id, 0)).await.unwrap(), "a task that was given back is queued");
    assert!(!queue.ack(&first.token).await.unwrap(), "who gave it back has it no longer");
    assert_eq!(queue.lease("w", 1, 1000, 599).await.unwrap(), [], "not before its delay");
    let second = queue.lease("w", 1, 1000, 600).await.unwrap().remove(0);
    assert_eq!((second.attempts, second.releases), (1, 1), "giving back is no attempt");
    assert!(queue.release(&second.token, 0, 600).await.unwrap());
    let third = queue.lease("w", 1, 1000, 600).await.unwrap().remove(0);
    assert_eq!((third.attempts, third.releases), (1, 2));
    assert!(queue.unlease(&third.token).await.unwrap());
    assert!(!queue.unlease(&third.token).await.unwrap() && !queue.ack(&third.token).await.unwrap());
    let third = queue.lease("w", 1, 1000, 600).await.unwrap().remove(0);
    assert_eq!((third.attempts, third.releases), (1, 2), "what was not begun leaves no trace");
    assert!(queue.ack(&third.token).await.unwrap());
}

async fn ends_of_a_clock_that_was_set_back_are_past(queue: &dyn TaskQueue) {
    let (id, ahead_ms) = (DataId::random(), 7_200_000);
    queue.push(Task { size_bytes: 1, ..Task::scan(id, ahead_ms) }).await.unwrap();
    queue.lease("w", 1, 30_000, ahead_ms).await.unwrap().remove(0);
    assert_eq!(queue.lease("w", 1, 30_000, ahead_ms).await.unwrap(), []);
    let second = queue.lease("v", 1, 30_000, 1_000).await.unwrap().remove(0);
    assert_eq!((second.task.data_id, second.attempts), (id, 2));
    // The longest lease that there may be is one.
    assert!(queue.extend(&second.token, LEASE_MS_MAX, 1_000).await.unwrap());
    assert_eq!(queue.lease("w", 1, 30_000, 1_000).await.unwrap(), []);
    assert!(queue.release(&second.token, 1_000, ahead_ms).await.unwrap());
    let third = queue.lease_small("w", 1, 30_000, 1_000).await.unwrap().remove(0);
    assert_eq!(third.task.data_id, id, "nor does a delay last so long");
    assert!(queue.ack(&third.token).await.unwrap());
}

async fn waiting_ends(queue: &dyn TaskQueue) {
    // With nothing to come it ends by its time at the latest; the bound only keeps a hanging back-end from hanging the test.
    let bound = Duration::from_secs(30);
    tokio::time::timeout(bound, queue.wait(Duration::from_millis(1))).await.expect("waiting ends by its timeout");
    // With a task to lease it ends long before.
    let id = DataId::random();
    let waiting = async {
        loop {
            queue.wait(Duration::from_secs(3600)).await;
            if let Some(lease) = queue.lease("w", 1, 1000, 0).await.unwrap().pop() {
                return lease;
            }
        }
    };
    let pushing = async { queue.push(Task::scan(id, 0)).await.unwrap() };
    let (lease, pushed) = tokio::time::timeout(bound, async { tokio::join!(waiting, pushing) })
        .await
        .expect("waiting ends when a task is pushed");
    assert_eq!((lease.task.data_id, pushed), (id, true));
    assert!(queue.ack(&lease.token).await.unwrap());
}
