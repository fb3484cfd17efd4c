//! Nested files that are too long for memory: where they are while they are scanned, and that nothing of them stays.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lazaret_protocol::message::NodeStatus;

use crate::harness::{Process, Processes, cluster, content, files_below, verdict};

/// How long anything may take on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(240);

/// A ZIP with a gz of `mebibytes` of `content`, again and again, in it.
fn bomb(content: &[u8], mebibytes: usize) -> Vec<u8> {
    let piece: Vec<u8> = content.iter().copied().cycle().take(1 << 20).collect();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    (0..mebibytes).for_each(|_| gz.write_all(&piece).unwrap());
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    // Stored, so that it is the gz alone that makes much of little.
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("long.gz", stored).unwrap();
    zip.write_all(&gz.finish().unwrap()).unwrap();
    zip.finish().unwrap().into_inner()
}

/// The open files of a process that lie in a folder and have no name: paths under which they can be opened, and their lengths.
fn open_in(process: &Process, folder: &Path) -> Vec<(PathBuf, u64)> {
    // Files come and go meanwhile.
    let links = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().map(|entry| entry.unwrap().path());
    let is_one = |target: &Path| target.starts_with(folder) && target.to_string_lossy().ends_with(" (deleted)");
    let ones = links.filter(|link| std::fs::read_link(link).is_ok_and(|target| is_one(&target)));
    ones.filter_map(|link| Some((link.clone(), std::fs::metadata(link).ok()?.len()))).collect()
}

/// Waits until so many bytes are spooled; the file.
async fn spooled(process: &Process, folder: &Path, bytes: u64) -> PathBuf {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some((file, _)) = open_in(process, folder).into_iter().find(|(_, length)| *length >= bytes) {
            return file;
        }
        assert!(Instant::now() < deadline, "nothing is spooled");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts the worker anew, with more settings.
fn restart(processes: &mut Processes, dir: &Path, settings: &str) {
    processes.worker.kill();
    let config = dir.join("scan-worker.yml");
    let text = std::fs::read_to_string(&config).unwrap();
    let set = |line: &&str| settings.lines().any(|new| line.split(':').next() == new.split(':').next());
    let others: Vec<&str> = text.lines().filter(|line| !set(line)).collect();
    std::fs::write(&config, format!("{}\n{settings}", others.join("\n"))).unwrap();
    processes.worker = Process::start(&["scan-worker", "--config", config.to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_file_in_an_archive_is_judged_and_leaves_nothing_in_cluster_or_spool() {
    let dir = tempfile::tempdir().unwrap();
    let mut processes = Processes::start(dir.path());
    let folder = dir.path().join("spool");
    std::fs::create_dir(&folder).unwrap();
    let folder = folder.canonicalize().unwrap();
    restart(&mut processes, dir.path(), "spool_dir: spool\n");
    let cluster = cluster(&dir.path().join("cluster.yml"));
    let blobs = async || -> (u64, u64) {
        cluster.settle().await;
        let status = cluster.status().await;
        let sum = |of: fn(&NodeStatus) -> u64| status.iter().map(|(_, status)| of(status.as_ref().unwrap())).sum();
        (sum(|status| status.blobs), sum(|status| status.segment_bytes))
    };
    assert_eq!(blobs().await, (0, 0));
    // Zeros, but for as much as keeps it below the limit for ratios.
    let archive = bomb(&[content(1, 1024), vec![0; (1 << 20) - 1024]].concat(), 600);
    let data_id = processes.gateway.submit("bomb.zip", archive.clone()).await;
    spooled(&processes.worker, &folder, 300 << 20).await;
    let document = processes.gateway.finished(&data_id).await;
    assert_eq!(verdict(&document), (0, true), "{document}");
    let gz = document["extracted_files"]["files_in_archive"][0]["data_id"].as_str().unwrap();
    let gz = processes.gateway.result(gz).await.unwrap();
    let long = &gz["extracted_files"]["files_in_archive"][0];
    assert_eq!((&long["file_size"], &long["scan_all_result_i"]), (&(600_u64 << 20).into(), &0.into()), "{gz}");

    // The submission alone, once a node.
    let (count, bytes) = blobs().await;
    assert_eq!(count, 3);
    assert!(bytes < 3 * (archive.len() as u64 + (1 << 20)), "{bytes} bytes of segments for {}", archive.len());
    // The file goes with the last thread that has the tree, which may be a moment after the result.
    let deadline = Instant::now() + PATIENCE;
    while !open_in(&processes.worker, &folder).is_empty() {
        assert!(Instant::now() < deadline, "the spool is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(files_below(&folder).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_plain_is_in_the_spool_and_a_killed_worker_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut processes = Processes::start(dir.path());
    // By default it lies where the results are.
    let folder = dir.path().canonicalize().unwrap();
    restart(&mut processes, dir.path(), "sample_memory_max_bytes: 1048576\nlease_seconds: 5\n");
    let line = b"a line that must be on no disk\n";
    let data_id = processes.gateway.submit("bomb.zip", bomb(line, 400)).await;
    let file = spooled(&processes.worker, &folder, 32 << 20).await;
    let mut on_disk = Vec::new();
    std::fs::File::open(&file).unwrap().take(32 << 20).read_to_end(&mut on_disk).unwrap();
    processes.worker.kill();
    assert!(on_disk.iter().filter(|byte| **byte != 0).count() > 16 << 20, "it was read while it was there");
    assert!(!on_disk.windows(12).any(|window| window == &line[..12]), "a line of the file is on disk");
    let left = files_below(&folder).into_iter().filter(|path| {
        let is_long = path.metadata().is_ok_and(|file| file.len() > 32 << 20);
        is_long || path.to_string_lossy().contains("lazaret-spool")
    });
    assert_eq!(left.collect::<Vec<_>>(), Vec::<PathBuf>::new());

    restart(&mut processes, dir.path(), "lease_seconds: 5\n");
    assert_eq!(verdict(&processes.gateway.finished(&data_id).await), (0, true));
}
