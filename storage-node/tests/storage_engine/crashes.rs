//! Power failures at every point, failed syncs and writes, and deaths of the process, over many seeds: what was acknowledged is there and verifies, and nothing is half
//! there. The same runs on a disk that only pretends to sync must fail, or they would prove nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use lazaret_protocol::message::{Locator, PutLocator};
use lazaret_protocol::{BlobName, PlacementKey, UploadId};
use lazaret_storage_node::Origin;
use lazaret_storage_node::disk::SimDisk;
use lazaret_storage_node::record::SegmentAddress;
use lazaret_storage_node::{Disk, Engine, Index, MemoryIndex, Pump};
use tokio::task::JoinSet;

use crate::common::{Seeded, TestClock, content, environment, options, read_all};

const SEEDS: u64 = 400;
const LIVES: u64 = 6;
/// More operations than any run has.
const UNDISTURBED: u64 = 1 << 40;
const HOUR_MS: u64 = 3_600_000;

/// What the world knows of a node.
#[derive(Default)]
struct World {
    acknowledged: BTreeSet<BlobName>,
    attempted: BTreeMap<BlobName, Bytes>,
    locators: BTreeMap<BlobName, Locator>,
    lives_cut_short: u64,
    processes_died: u64,
    recovered: u64,
}

struct Life<'a> {
    disk: SimDisk,
    engine: Engine,
    pump: Pump,
    clock: Arc<TestClock>,
    random: &'a mut Seeded,
    now_ms: u64,
}

enum Done {
    Blob(BlobName),
    Locator(BlobName, Locator),
    Refused,
}

impl Life<'_> {
    /// A few concurrent requests, driven to their ends.
    async fn round(&mut self, world: &mut World, long: bool) {
        if self.random.below(5) == 0 {
            self.clock.advance(HOUR_MS);
            self.now_ms += HOUR_MS;
        }
        match self.random.below(20) {
            0 => self.disk.fail_syncs(1),
            1 => self.disk.fail_writes(1),
            _ => {}
        }
        let mut requests = JoinSet::new();
        for _ in 0..1 + self.random.below(6) {
            let (engine, now_ms) = (self.engine.clone(), self.now_ms);
            // Few enough different contents that some are put again.
            let seed = self.random.below(60);
            match self.random.below(12) {
                0 => {
                    let locator = Locator { placement: PlacementKey([seed as u8; 32]), length: seed };
                    let name = BlobName([seed as u8; 32]);
                    requests.spawn(async move {
                        let put = PutLocator { name, locator, put_time_ms: now_ms };
                        engine
                            .put_locator(put, Origin::Client)
                            .await
                            .map_or(Done::Refused, |()| Done::Locator(name, locator))
                    });
                }
                1 if long => {
                    let blob = content(seed, (4 << 20) + (seed as usize * 90_001));
                    let name = BlobName::of(&blob);
                    world.attempted.insert(name, blob.clone());
                    let upload = UploadId(self.random.next().to_le_bytes().repeat(2).try_into().unwrap());
                    requests.spawn(async move {
                        stream(engine, upload, blob, name, now_ms).await.map_or(Done::Refused, Done::Blob)
                    });
                }
                kind => {
                    let length = if kind == 2 { 66_000 } else { (seed * 50) as usize };
                    let blob = content(seed, length);
                    let name = BlobName::of(&blob);
                    world.attempted.insert(name, blob.clone());
                    requests.spawn(async move {
                        engine
                            .put_whole(name, blob, now_ms, Origin::Client)
                            .await
                            .map_or(Done::Refused, |_| Done::Blob(name))
                    });
                }
            }
        }
        while !requests.is_empty() {
            tokio::task::yield_now().await;
            self.pump.step();
            while let Some(done) = requests.try_join_next() {
                match done.unwrap() {
                    Done::Blob(name) => {
                        world.acknowledged.insert(name);
                    }
                    Done::Locator(name, locator) => {
                        world.locators.insert(name, locator);
                    }
                    Done::Refused => {}
                }
            }
        }
    }
}

async fn stream(engine: Engine, upload: UploadId, blob: Bytes, name: BlobName, now_ms: u64) -> Option<BlobName> {
    let mut upload = engine.begin_upload(upload, PlacementKey([7; 32]), now_ms, Origin::Client).ok()?;
    let mut rest = blob.clone();
    while !rest.is_empty() {
        upload.append(rest.split_to(rest.len().min(1 << 20))).await.ok()?;
    }
    upload.commit(name, blob.len() as u64).await.ok().map(|_| name)
}

fn check(engine: &Engine, world: &mut World) {
    for (name, blob) in &world.attempted {
        let held = read_all(engine, *name).unwrap_or_else(|error| panic!("{name} is half there: {error}"));
        match held {
            Some(held) => {
                assert!(held == blob[..], "{name} has other content");
                // What was served once must stay: the same put again would be answered without writing.
                world.acknowledged.insert(*name);
            }
            None => assert!(!world.acknowledged.contains(name), "{name} was acknowledged and is gone"),
        }
    }
    for (name, locator) in &world.locators {
        assert_eq!(engine.stat(*name).unwrap().locator, Some(*locator), "the locator of {name}");
    }
    let held = world.attempted.keys().filter(|name| engine.open_blob(**name).unwrap().is_some()).count();
    assert_eq!(engine.status().blobs, held as u64, "the count of blobs");
    assert_eq!(engine.status().corrupt_reads, 0);
}

/// Some lives of a node, each ended by a power failure or by the death of its process. Panics on a violation.
fn run(seed: u64, pretend_to_sync: bool) -> World {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut random = Seeded(seed);
    let (mut disk, mut index) = (SimDisk::new(), MemoryIndex::new());
    disk.never_sync(pretend_to_sync);
    let mut world = World::default();
    let long = seed.is_multiple_of(5);
    let mut now_ms = crate::common::NOON_MS;
    for life in 0..=LIVES {
        index = index.powered_by(disk.power());
        let known: BTreeSet<SegmentAddress> = disk.segments().unwrap().into_iter().collect();
        let told = index.segments().unwrap().into_iter().map(|(address, _)| address);
        let newest = known.iter().copied().chain(told).map(|address| address.id).max().unwrap_or(0);
        let last = life == LIVES;
        // The last life is only looked at, and undisturbed.
        let spread = [20, 80, 300][random.below(3) as usize];
        disk.cut_power_after(if last { UNDISTURBED } else { random.below(spread) });
        let (environment, clock) = environment(random.next());
        clock.advance(now_ms - crate::common::NOON_MS);
        let mut options = options();
        options.segment_bytes_max = 8192 << random.below(12);
        let opened = Engine::open_pumped(Arc::new(disk.clone()), Arc::new(index.clone()), environment, options);
        match opened {
            Ok((engine, pump)) => {
                if !disk.power().is_off() {
                    // Reads are operations too, so this may itself be cut short.
                    let checked = catch_unwind(AssertUnwindSafe(|| check(&engine, &mut world)));
                    assert!(checked.is_ok() || disk.power().is_off(), "a violation in life {life} of seed {seed}");
                }
                world.recovered += engine.status().recovered_records;
                let mut living = Life { disk: disk.clone(), engine, pump, clock, random: &mut random, now_ms };
                for _ in 0..if last { 0 } else { 12 } {
                    runtime.block_on(living.round(&mut world, long));
                    if disk.power().is_off() {
                        world.lives_cut_short += 1;
                        break;
                    }
                }
                now_ms = living.now_ms;
            }
            Err(error) => assert!(disk.power().is_off(), "could not open in life {life} of seed {seed}: {error}"),
        }
        for (address, _) in disk.contents().into_iter().filter(|(address, _)| !known.contains(address)) {
            assert!(address.id > newest, "segment {address} of life {life} of seed {seed} has a used id");
        }
        if random.below(2) == 0 {
            disk = disk.crash(random.next());
            index = index.crash(random.next());
        } else {
            // Only the process died: what was written and not synced is still read, and may still be lost.
            disk = disk.kill();
            world.processes_died += 1;
        }
    }
    world
}

#[test]
fn what_was_acknowledged_survives_power_failures_anywhere() {
    let (mut acknowledged, mut cut_short, mut died, mut recovered) = (0, 0, 0, 0);
    for seed in 0..crate::common::seeds(SEEDS) {
        println!("seed {seed}");
        let world = run(seed, false);
        acknowledged += world.acknowledged.len();
        cut_short += world.lives_cut_short;
        died += world.processes_died;
        recovered += world.recovered;
    }
    println!("{acknowledged} acknowledged, {cut_short} power failures at work, {died} deaths, {recovered} recovered");
    // The runs must have come to the places that matter.
    assert!(acknowledged > 4000 && cut_short > 300 && died > 100 && recovered > 1000);
}

#[test]
fn a_disk_that_only_pretends_to_sync_is_found_out() {
    let found = (0..30).filter(|&seed| catch_unwind(|| run(seed, true)).is_err()).count();
    println!("{found} of 30 seeds found a violation");
    assert!(found >= 10, "only {found} of 30");
}
