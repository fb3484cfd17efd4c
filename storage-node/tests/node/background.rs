//! Whole nodes at work: what they do by themselves when nodes go, come back, join or leave, when maps change, when time passes
//! and when bits rot. Real engines on simulated disks, in one process.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Node, ask, content, map, node_among, read};
use lazaret_node_client::environment::{BoxFuture, Clock, Environment};
use lazaret_node_client::{Cluster, ClusterOptions, GetError, LocalNetwork};
use lazaret_protocol::cluster_map::{ClusterMap, NodeState};
use lazaret_protocol::limits::BUCKET_MS;
use lazaret_protocol::message::{CopyClaim, CopyClaims, ErrorCode, Hold, Request, Response, Role, Tombstone};
use lazaret_protocol::name::{BlobName, NodeId};
use lazaret_protocol::placement::write_order;
use lazaret_storage_node::SimDisk;

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(30);

/// The system's clock, which can be moved.
struct MovableClock {
    system: Arc<dyn Clock>,
    /// Time that passed at once, for both clocks.
    passed_ms: AtomicI64,
    /// How wrong the wall clock is.
    wrong_ms: AtomicI64,
}

impl Clock for MovableClock {
    fn unix_ms(&self) -> u64 {
        let moved = self.passed_ms.load(Ordering::SeqCst) + self.wrong_ms.load(Ordering::SeqCst);
        self.system.unix_ms().saturating_add_signed(moved)
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic() + Duration::from_millis(self.passed_ms.load(Ordering::SeqCst) as u64)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.system.sleep(duration)
    }
}

/// A cluster whose nodes can be taken off the network.
struct Test {
    peers: LocalNetwork,
    clients: LocalNetwork,
    nodes: Vec<Node>,
    clocks: Vec<Arc<MovableClock>>,
    cluster: Cluster,
}

impl Test {
    fn start(map: ClusterMap) -> Self {
        Self::start_with(map, |_| ())
    }

    fn start_with(map: ClusterMap, prepare: impl Fn(&MovableClock)) -> Self {
        let (peers, clients) = (LocalNetwork::new(), LocalNetwork::new());
        let mut test = Self { cluster: client(&map, &clients), peers, clients, nodes: Vec::new(), clocks: Vec::new() };
        for entry in &map.nodes {
            let clock = Arc::new(MovableClock {
                system: Environment::system().clock,
                passed_ms: AtomicI64::new(0),
                wrong_ms: AtomicI64::new(0),
            });
            prepare(&clock);
            test.clocks.push(clock);
            let node = test.open(test.clocks.len() - 1, entry.id, &map, SimDisk::new());
            test.nodes.push(node);
        }
        test
    }

    fn open(&self, at: usize, id: NodeId, map: &ClusterMap, disk: SimDisk) -> Node {
        let environment = Environment { clock: self.clocks[at].clone(), ..Environment::system() };
        let node = node_among(id, map, &self.peers, environment, disk);
        node.node.start();
        self.connect(&node);
        node
    }

    fn connect(&self, node: &Node) {
        self.peers.register(node.id, node.service.handler(Role::Peer));
        self.clients.register(node.id, node.service.handler(Role::Client));
    }

    fn disconnect(&self, at: usize) {
        self.peers.unregister(self.nodes[at].id);
        self.clients.unregister(self.nodes[at].id);
    }

    async fn put(&self, lengths: impl IntoIterator<Item = usize>) -> Vec<BlobName> {
        let mut names = Vec::new();
        for length in lengths {
            names.push(self.cluster.put(content(length)).await.unwrap().name);
        }
        self.cluster.settle().await;
        names
    }

    async fn change(&self, change: impl FnOnce(&mut ClusterMap)) {
        let mut map = ClusterMap::clone(&self.nodes[0].node.map());
        map.epoch += 1;
        change(&mut map);
        let entry = map.nodes[0].clone();
        // Whoever else is there learns it from this one.
        let answer = ask(&self.peers, &entry, &Request::PushMap(map.clone())).await;
        assert_eq!(answer, Response::MapPushed);
        self.cluster.adopt(map).unwrap();
    }

    fn holders(&self, name: BlobName) -> BTreeSet<NodeId> {
        let holds = |node: &&Node| {
            let entry = node.engine.entry(name).unwrap();
            entry.and_then(|entry| entry.blob).is_some_and(|blob| !blob.damaged)
        };
        self.nodes.iter().filter(holds).map(|node| node.id).collect()
    }

    /// Waits until every blob lies on exactly its owners, and all of them verify.
    async fn converged(&self, names: &[BlobName], lost: &[NodeId]) {
        let map = self.nodes[0].node.map();
        let mut stats = Vec::new();
        for name in names {
            // A streamed blob is placed by its beginning, as every copy says. Locators may be on their way.
            let copies = self.nodes.iter().filter_map(|node| node.engine.entry(*name).unwrap()?.blob);
            let placement = copies.filter_map(|blob| blob.placement()).next().unwrap_or_else(|| name.placement());
            let order = write_order(&map, placement).into_iter().map(|node| node.id);
            let owners: BTreeSet<NodeId> =
                order.filter(|id| !lost.contains(id)).take(usize::from(map.max_replica)).collect();
            stats.push((*name, owners));
        }
        let what = "copies on exactly the owners";
        eventually(what, || {
            stats.iter().all(|(name, owners)| {
                let mut holders = self.holders(*name);
                holders.retain(|id| !lost.contains(id));
                holders == *owners
            })
        })
        .await;
        for (name, owners) in stats {
            for node in self.nodes.iter().filter(|node| owners.contains(&node.id)) {
                assert!(node.engine.verify(name).unwrap());
            }
        }
    }
}

fn client(map: &ClusterMap, network: &LocalNetwork) -> Cluster {
    Cluster::new(map.clone(), Arc::new(network.clone()), Environment::system(), ClusterOptions::default()).unwrap()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Small ones, one of several groups, one that is streamed.
fn lengths() -> impl Iterator<Item = usize> {
    (1..40).map(|at| at * 37).chain([200_000, 5_000_000])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_is_brought_up_to_date() {
    let test = Test::start(map(3, 2, 3));
    test.disconnect(2);
    let names = test.put(lengths()).await;
    assert!(names.iter().all(|name| test.holders(*name).len() == 2));
    test.connect(&test.nodes[2]);
    test.converged(&names, &[]).await;
    eventually("a clean round", || test.nodes.iter().all(|node| node.node.report().repair.clean)).await;
    let report = test.nodes[2].node.report();
    assert_eq!((report.repair.missing_blobs, report.repair.copied_blobs), (0, names.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_is_replaced_and_gets_its_share_back_when_it_returns() {
    let test = Test::start(map(4, 2, 3));
    let names = test.put(lengths()).await;
    test.converged(&names, &[]).await;
    test.disconnect(1);
    let lost = test.nodes[1].id;
    test.converged(&names, &[lost]).await;
    test.connect(&test.nodes[1]);
    test.converged(&names, &[]).await;
    let removed: u64 = test.nodes.iter().map(|node| node.node.report().repair.removed_blobs).sum();
    assert!(removed > 0, "the copies made in its absence are surplus now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_empty_is_filled() {
    let mut test = Test::start(map(3, 2, 2));
    let names = test.put(lengths()).await;
    test.disconnect(0);
    let (id, map) = (test.nodes[0].id, ClusterMap::clone(&test.nodes[0].node.map()));
    test.nodes[0].node.stop();
    test.nodes[0] = test.open(0, id, &map, SimDisk::new());
    test.converged(&names, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_hands_over_everything() {
    let test = Test::start(map(4, 1, 2));
    let names = test.put(lengths()).await;
    test.change(|map| map.nodes[3].state = NodeState::Draining).await;
    test.converged(&names, &[]).await;
    eventually("the drained node is empty", || test.nodes[3].node.report().disks.iter().all(|disk| disk.blobs == 0))
        .await;
    for name in &names {
        read(&test.cluster, *name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_follow_weights_and_replica_settings() {
    let test = Test::start(map(4, 1, 1));
    let names = test.put(lengths()).await;
    test.change(|map| map.nodes[2].weight = 5).await;
    test.converged(&names, &[]).await;
    test.change(|map| (map.min_replica, map.max_replica) = (2, 3)).await;
    test.converged(&names, &[]).await;
    test.change(|map| (map.min_replica, map.max_replica) = (1, 2)).await;
    test.converged(&names, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_does_not_come_back_with_a_node() {
    let test = Test::start(map(3, 2, 3));
    let names = test.put(lengths()).await;
    test.converged(&names, &[]).await;
    test.disconnect(2);
    let time_ms = Environment::system().clock.unix_ms();
    for (entry, name) in
        test.nodes[0].node.map().nodes.iter().take(2).flat_map(|entry| names.iter().map(move |n| (entry, n)))
    {
        let delete = Request::Delete(Tombstone { name: *name, time_ms });
        assert_eq!(ask(&test.peers, entry, &delete).await, Response::Deleted);
    }
    test.connect(&test.nodes[2]);
    eventually("deleted everywhere", || names.iter().all(|name| test.holders(*name).is_empty())).await;
    eventually("a clean round", || test.nodes.iter().all(|node| node.node.report().repair.clean)).await;
    for name in &names {
        assert!(matches!(read(&test.cluster, *name).await, Err(GetError::NotFound { .. })));
    }
    // Put again, it lives.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let again = test.put([37]).await;
    assert_eq!(again, names[..1]);
    test.converged(&again, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expired_is_gone_everywhere_and_what_is_held_stays() {
    let test = Test::start(ClusterMap { cleanuprange: 2, ..map(3, 2, 3) });
    let names = test.put(lengths()).await;
    test.converged(&names, &[]).await;
    let hold = Hold { name: names[5], time_ms: Environment::system().clock.unix_ms(), placed: true, from_bucket: None };
    let entry = test.nodes[0].node.map().nodes[0].clone();
    assert_eq!(ask(&test.peers, &entry, &Request::Hold(hold)).await, Response::HoldSet);
    eventually("the hold is on all nodes", || {
        test.nodes.iter().all(|node| node.engine.entry(names[5]).unwrap().unwrap().hold.is_some())
    })
    .await;
    for clock in &test.clocks {
        clock.passed_ms.fetch_add(2 * BUCKET_MS as i64 + BUCKET_MS as i64, Ordering::SeqCst);
    }
    eventually("expired", || names.iter().filter(|name| test.holders(**name).is_empty()).count() == names.len() - 1)
        .await;
    assert_eq!(test.holders(names[5]).len(), 3);
    assert_eq!(read(&test.cluster, names[5]).await.unwrap().len(), 6 * 37);
    assert!(matches!(read(&test.cluster, names[6]).await, Err(GetError::NotFound { .. })));
    for node in &test.nodes {
        assert!(node.node.report().expired_before_ms > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_expires_by_a_clock_that_is_wrong() {
    let test = Test::start(ClusterMap { cleanuprange: 24, ..map(3, 2, 3) });
    let names = test.put([100, 200, 300]).await;
    test.converged(&names, &[]).await;
    test.clocks[1].wrong_ms.store(40 * 24 * BUCKET_MS as i64, Ordering::SeqCst);
    eventually("the node doubts its clock", || !test.nodes[1].node.report().clock_trusted).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(names.iter().all(|name| test.holders(*name).len() == 3));
    assert!([0, 2].iter().all(|at| test.nodes[*at].node.report().clock_trusted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_was_wrong_from_the_start_waits_for_the_others() {
    let test = Test::start_with(ClusterMap { cleanuprange: 24, ..map(3, 1, 3) }, |_| ());
    let names = test.put([100]).await;
    test.converged(&names, &[]).await;
    // Alone it knows nothing of the time.
    test.disconnect(0);
    test.disconnect(1);
    eventually("no majority, no trust", || !test.nodes[2].node.report().clock_trusted).await;
    assert_eq!(test.holders(names[0]).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_is_found_and_made_good() {
    let test = Test::start(map(3, 2, 3));
    let names = test.put(lengths()).await;
    test.converged(&names, &[]).await;
    let victim = &test.nodes[0];
    // Segments that still take records are not scrubbed; reads find what is wrong with those.
    for (address, bytes) in victim.disk.contents() {
        for offset in (2_000..bytes.len() as u64).step_by(100_000) {
            victim.disk.flip_bit(address, offset, 3);
        }
    }
    let broken = names.iter().filter(|name| !victim.engine.verify(**name).unwrap()).count();
    assert!(broken > 0);
    let entry = victim.node.map().nodes[0].clone();
    assert_eq!(ask(&test.peers, &entry, &Request::Repair).await, Response::Repairing);
    test.converged(&names, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_confirmed_only_to_a_node_of_the_same_map() {
    let test = Test::start(map(3, 3, 3));
    let names = test.put([1_000]).await;
    let entry = test.nodes[0].node.map().nodes[0].clone();
    let put_time_ms = test.nodes[0].engine.entry(names[0]).unwrap().unwrap().blob.unwrap().put_time_ms;
    let verify = |epoch| {
        let absent = CopyClaim { name: BlobName([7; 32]), put_time_ms };
        Request::Verify(CopyClaims { epoch, copies: vec![CopyClaim { name: names[0], put_time_ms }, absent] })
    };
    assert_eq!(ask(&test.peers, &entry, &verify(1)).await, Response::Verified(vec![true, false]));
    test.change(|map| map.cleanuprange = 48).await;
    for epoch in [1, 3] {
        match ask(&test.peers, &entry, &verify(epoch)).await {
            Response::Error(reply) => assert_eq!(reply.code, ErrorCode::OtherEpoch, "{}", reply.message),
            other => panic!("by the map of epoch {epoch}: {other:?}"),
        }
    }
    assert_eq!(ask(&test.peers, &entry, &verify(2)).await, Response::Verified(vec![true, false]));
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_are_replaced_one_epoch_at_a_time_and_kept() {
    let test = Test::start(map(3, 2, 3));
    let current = ClusterMap::clone(&test.nodes[0].node.map());
    let entry = current.nodes[0].clone();
    for wrong in [
        ClusterMap { epoch: 3, ..current.clone() },
        ClusterMap { max_replica: 2, ..current.clone() },
        ClusterMap { epoch: 2, min_replica: 9, ..current.clone() },
        ClusterMap { epoch: 2, cluster: lazaret_protocol::ClusterId([1; 16]), ..current.clone() },
    ] {
        match ask(&test.peers, &entry, &Request::PushMap(wrong)).await {
            Response::Error(reply) => assert_eq!(reply.code, ErrorCode::MapRefused, "{}", reply.message),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ask(&test.peers, &entry, &Request::PushMap(current.clone())).await, Response::MapPushed);
    test.change(|map| map.cleanuprange = 48).await;
    eventually("all nodes have it", || test.nodes.iter().all(|node| node.node.map().cleanuprange == 48)).await;
    // A node that starts with the old map remembers the new one.
    test.nodes[1].node.stop();
    test.disconnect(1);
    test.nodes[1].engine.close();
    let again = test.open(1, test.nodes[1].id, &current, test.nodes[1].disk.kill());
    assert_eq!(again.node.map().cleanuprange, 48);
}
