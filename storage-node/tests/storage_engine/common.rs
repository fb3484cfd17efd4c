//! What the engine's tests share: a clock and randomness under control, content that repeats nowhere, verified reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lazaret_node_client::environment::{BoxFuture, Clock, Environment, Random, Spawner};
use lazaret_protocol::PlacementKey;
use lazaret_protocol::message::{ByteRange, PutDone};
use lazaret_protocol::tree::Decoder;
use lazaret_protocol::{BlobName, ClusterId, NodeId, UploadId};
use lazaret_storage_node::Origin;
use lazaret_storage_node::disk::SimDisk;
use lazaret_storage_node::{Disk, Engine, EngineError, EngineOptions, Index, MemoryIndex};

/// A moment in the middle of a bucket, so that a few minutes either way stay inside it.
pub const NOON_MS: u64 = 500_000 * 3_600_000 + 1_800_000;

/// How many seeds a random test runs: `usual`, or as many as `LAZARET_CRASH_SEEDS` says if those are more.
pub fn seeds(usual: u64) -> u64 {
    std::env::var("LAZARET_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(0).max(usual)
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Seeded(pub u64);

impl Seeded {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub struct TestClock(AtomicU64);

impl TestClock {
    pub fn advance(&self, by_ms: u64) {
        self.0.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        // The engine never sleeps.
        Box::pin(std::future::pending())
    }
}

struct TestRandom(Mutex<Seeded>);

impl Random for TestRandom {
    fn fill(&self, bytes: &mut [u8]) {
        let mut random = self.0.lock().unwrap();
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]));
    }
}

/// An environment at [`NOON_MS`], and its clock.
pub fn environment(seed: u64) -> (Environment, Arc<TestClock>) {
    let clock = Arc::new(TestClock(AtomicU64::new(NOON_MS)));
    let random = Arc::new(TestRandom(Mutex::new(Seeded(seed))));
    (Environment { clock: clock.clone(), random, ..Environment::system() }, clock)
}

/// Runs what blocks on the spot, so that a run depends on nothing but its seed.
struct OnTheSpot;

impl Spawner for OnTheSpot {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn spawn_thread(&self, _: &str, _: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        Err(std::io::Error::other("there are no threads here"))
    }

    fn run_blocking(&self, run: Box<dyn FnOnce() + Send>) {
        run();
    }

    fn blocks_in_place(&self) -> bool {
        true
    }
}

/// As [`environment`], without threads.
pub fn environment_on_the_spot(seed: u64) -> (Environment, Arc<TestClock>) {
    let (environment, clock) = environment(seed);
    (Environment { spawner: Arc::new(OnTheSpot), ..environment }, clock)
}

pub fn options() -> EngineOptions {
    EngineOptions::new(ClusterId([1; 16]), NodeId([2; 16]))
}

/// An engine on a simulated disk, with its writer on a thread.
pub fn open(disk: &SimDisk, index: &MemoryIndex) -> Engine {
    open_on(Arc::new(disk.clone()), Arc::new(index.clone())).unwrap()
}

pub fn open_on(disk: Arc<dyn Disk>, index: Arc<dyn Index>) -> Result<Engine, EngineError> {
    Engine::open(disk, index, environment(3).0, options())
}

/// Content of which no two pieces are alike, in one blob or over all of them.
pub fn content(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

pub async fn put(engine: &Engine, content: &Bytes) -> Result<PutDone, EngineError> {
    engine.put_whole(BlobName::of(content), content.clone(), NOON_MS, Origin::Client).await
}

pub async fn upload(engine: &Engine, content: &Bytes, piece: usize) -> Result<PutDone, EngineError> {
    let mut upload = engine.begin_upload(UploadId([9; 16]), PlacementKey([7; 32]), NOON_MS, Origin::Client)?;
    let mut rest = content.clone();
    while !rest.is_empty() {
        upload.append(rest.split_to(piece.min(rest.len()))).await?;
    }
    upload.commit(BlobName::of(content), content.len() as u64).await
}

/// An offset and what lies there.
pub type Leaf = (u64, Vec<u8>);

/// Reads as a client does: encodes, verifies against the name alone, and returns (offset, bytes) of what came.
pub fn read(engine: &Engine, name: BlobName, range: Option<ByteRange>) -> Result<Option<Vec<Leaf>>, EngineError> {
    let Some(reader) = engine.open_blob(name)? else { return Ok(None) };
    let mut encoded = Vec::new();
    reader.encode(range, &mut encoded)?;
    let mut decoder = Decoder::new(name, reader.header().length, range).unwrap();
    let (mut rest, mut leaves) = (&encoded[..], Vec::new());
    while let Some(needed) = decoder.needed() {
        let (item, after) = rest.split_at(needed);
        if let Some(offset) = decoder.push(item).unwrap() {
            leaves.push((offset, item.to_vec()));
        }
        rest = after;
    }
    assert!(rest.is_empty());
    Ok(Some(leaves))
}

/// The whole content, verified.
pub fn read_all(engine: &Engine, name: BlobName) -> Result<Option<Vec<u8>>, EngineError> {
    Ok(read(engine, name, None)?.map(|leaves| leaves.into_iter().flat_map(|(_, bytes)| bytes).collect()))
}

pub fn assert_holds(engine: &Engine, content: &Bytes) {
    let held = read_all(engine, BlobName::of(content)).unwrap().expect("the blob is not held");
    assert!(held == content[..], "other content");
}

pub fn assert_absent(engine: &Engine, content: &Bytes) {
    assert!(engine.open_blob(BlobName::of(content)).unwrap().is_none());
}
