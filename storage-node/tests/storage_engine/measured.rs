//! What expiry costs on a real disk with the real index. Not run by default:
//! `cargo test --release --workspace --test storage_engine -- --ignored --nocapture measured`

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use lazaret_protocol::BlobName;
use lazaret_protocol::limits::BUCKET_MS;
use lazaret_storage_node::disk::{SegmentFile, Space};
use lazaret_storage_node::record::SegmentAddress;
use lazaret_storage_node::{Disk, DiskError, Engine, FsDisk, Index, Origin, RocksIndex};

use crate::common::{NOON_MS, content, environment, options};

/// What lies in them, whatever number of blobs that is.
const ALL_BYTES: u64 = 4096 * 1_000_000;
/// Segments that both counts of blobs are spread over.
const SEGMENTS: u64 = 100;
const TASKS: u64 = 64;

/// A disk that takes the time of its removals.
struct Timed {
    disk: FsDisk,
    removing_us: AtomicU64,
}

impl Disk for Timed {
    fn place(&self) -> String {
        self.disk.place()
    }

    fn create_segment(&self, address: SegmentAddress) -> Result<Box<dyn SegmentFile>, DiskError> {
        self.disk.create_segment(address)
    }

    fn open_segment(&self, address: SegmentAddress) -> Result<Box<dyn SegmentFile>, DiskError> {
        self.disk.open_segment(address)
    }

    fn read_at(&self, address: SegmentAddress, offset: u64, bytes: &mut [u8]) -> Result<usize, DiskError> {
        self.disk.read_at(address, offset, bytes)
    }

    fn length(&self, address: SegmentAddress) -> Result<u64, DiskError> {
        self.disk.length(address)
    }

    fn remove_segments(&self, addresses: &[SegmentAddress]) -> Result<(), DiskError> {
        let began = Instant::now();
        let removed = self.disk.remove_segments(addresses);
        self.removing_us.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        removed
    }

    fn segments(&self) -> Result<Vec<SegmentAddress>, DiskError> {
        self.disk.segments()
    }

    fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        self.disk.read_small(name)
    }

    fn write_small(&self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        self.disk.write_small(name, content)
    }

    fn space(&self) -> Result<Space, DiskError> {
        self.disk.space()
    }
}

/// CPU seconds of this process, all threads, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // In hundredths of a second (proc(5), fields 14 and 15).
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Has the kernel let go of all files below a directory.
fn forget(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            forget(&path);
        } else {
            let file = File::open(path).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
}

/// How long the file system takes for as many files as there are segments, of their length, written at once and forgotten.
fn unlink_bare(directory: &Path) -> f64 {
    let bytes = vec![7; (ALL_BYTES / SEGMENTS) as usize];
    let paths: Vec<_> = (0..SEGMENTS).map(|at| directory.join(format!("bare{at}"))).collect();
    for path in &paths {
        std::fs::write(path, &bytes).unwrap();
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let began = Instant::now();
    paths.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    File::open(directory).unwrap().sync_all().unwrap();
    began.elapsed().as_secs_f64()
}

async fn expire(blobs: u64) -> (f64, f64) {
    let blob_bytes = (ALL_BYTES / blobs) as usize;
    let directory = tempfile::tempdir_in(std::env::var("CARGO_TARGET_TMPDIR").unwrap_or_else(|_| ".".into())).unwrap();
    let disk = FsDisk::open(directory.path()).unwrap();
    let disk = Arc::new(Timed { disk, removing_us: AtomicU64::new(0) });
    let index = Arc::new(RocksIndex::open(directory.path().join("index")).unwrap());
    let mut options = options();
    options.segment_bytes_max = (blobs / SEGMENTS) * (blob_bytes as u64 + 104) + 1000;
    let engine = Engine::open(
        Arc::clone(&disk) as Arc<dyn Disk>,
        Arc::clone(&index) as Arc<dyn Index>,
        environment(1).0,
        options,
    )
    .unwrap();
    let mut puts = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let engine = engine.clone();
        puts.spawn(async move {
            for at in (task..blobs).step_by(TASKS as usize) {
                let blob = content(at, blob_bytes);
                engine.put_whole(BlobName::of(&blob), blob, NOON_MS, Origin::Client).await.unwrap();
            }
        });
    }
    while let Some(done) = puts.join_next().await {
        done.unwrap();
    }
    let kept = content(u64::MAX, 100);
    engine.put_whole(BlobName::of(&kept), kept.clone(), NOON_MS + BUCKET_MS, Origin::Peer).await.unwrap();
    let segments = engine.report().segments;
    // What expires was written days ago: the page cache has forgotten it. Forgetting it is not expiry's work.
    forget(directory.path());
    // RocksDB's work on what was put is not expiry's.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    let expired = engine.expire((NOON_MS / BUCKET_MS) as u32 + 1).unwrap();
    let wall = wall.elapsed().as_secs_f64();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let cpu = cpu_seconds() - cpu;
    assert_eq!((expired.blobs, engine.status().blobs, engine.report().segments), (blobs, 1, 1));
    assert_eq!(index.entries(None, None, 10).unwrap().len(), 1, "the compaction filter has been over it");
    let removing = disk.removing_us.load(Ordering::Relaxed) as f64 / 1e6;
    let bare = unlink_bare(directory.path());
    println!(
        "{blobs} blobs of {blob_bytes} bytes in {segments} segments: {cpu:.2} s of CPU, {wall:.2} s in all, {removing:.2} s of \
         it unlinking; as many bare files {bare:.2} s"
    );
    (cpu, removing)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes 8 GiB twice and takes minutes"]
async fn measured_expiry() {
    let (_, few) = expire(100_000).await;
    let (cpu, many) = expire(1_000_000).await;
    println!("unlinking ten times the blobs in as many segments of as many bytes took {:.1} times as long", many / few);
    assert!(cpu <= 2.0, "{cpu} s of CPU");
    assert!(many <= 2.0 * few, "{many} s, {few} s");
}
