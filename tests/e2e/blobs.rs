//! Blobs in and out, whole and in ranges, at the sizes around every boundary.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_node_client::cluster::{Cluster, GetError};
use lazaret_protocol::BlobName;
use lazaret_protocol::limits::{GROUP_BYTES, HELD_BYTES_MAX};
use lazaret_protocol::message::ByteRange;

use crate::harness::{Up, cluster, content, lazaret};

const HUNDRED_MIB: usize = 100 * 1024 * 1024;

fn sizes() -> Vec<usize> {
    let mut sizes = vec![0, 1, 3 * HELD_BYTES_MAX + 7, HUNDRED_MIB];
    for boundary in [GROUP_BYTES, HELD_BYTES_MAX] {
        sizes.extend([boundary - 1, boundary, boundary + 1]);
    }
    sizes
}

/// Five ranges of a blob: its ends, one across a group's boundary, one far inside, one that reaches past the end.
fn ranges(length: usize) -> [ByteRange; 5] {
    let length = length as u64;
    let group = GROUP_BYTES as u64;
    [
        (0, 1),
        (length.saturating_sub(1), length),
        (group - 1, group + 1),
        (length / 2, length / 2 + 100_000),
        (length / 3, length + 10),
    ]
    .map(|(start, end)| ByteRange { start, end })
}

async fn get(cluster: &Cluster, name: BlobName, range: Option<ByteRange>) -> Result<Vec<u8>, GetError> {
    let mut download = cluster.get(name, range).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = download.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_size_comes_back_whole_and_in_five_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), &[]);
    let cluster = cluster(&up.cluster_file());
    for size in sizes() {
        let bytes = content(size as u64, size);
        let mut upload = cluster.upload();
        for piece in bytes.chunks(1_000_003) {
            upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        let stored = upload.finish().await.unwrap();
        assert_eq!((stored.name, stored.length), (BlobName::of(&bytes), size as u64));
        assert!(stored.durable_on.len() >= 2, "{size}: {:?}", stored.durable_on);
        assert!(get(&cluster, stored.name, None).await.unwrap() == bytes, "{size}");
        for range in ranges(size) {
            let got = get(&cluster, stored.name, Some(range)).await.unwrap();
            let (start, end) = ((range.start as usize).min(size), (range.end as usize).min(size));
            assert!(got == bytes[start..end.max(start)], "{size} {range:?}: got {} bytes", got.len());
        }
        let stat = cluster.stat(stored.name).await.unwrap();
        assert_eq!(stat.length, size as u64);
    }
    let absent = BlobName::of(b"never stored");
    assert!(matches!(get(&cluster, absent, None).await, Err(GetError::NotFound { .. })));
}

#[test]
fn the_command_line_puts_gets_and_stats() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("data"), &[]);
    let cluster_file = up.cluster_file();
    let cluster_file = cluster_file.to_str().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let bytes = content(7, 9 * 1024 * 1024 + 5);
    std::fs::write(path("a"), &bytes).unwrap();
    std::fs::write(path("b"), b"small").unwrap();

    let put = lazaret(&["blob", "put", "--cluster", cluster_file, &path("a"), &path("b")]);
    assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    let names = String::from_utf8(put.stdout).unwrap();
    let names: Vec<&str> = names.lines().collect();
    assert_eq!(names, [BlobName::of(&bytes).to_string(), BlobName::of(b"small").to_string()]);

    let get = lazaret(&["blob", "get", "--cluster", cluster_file, names[0], "-o", &path("out")]);
    assert!(get.status.success(), "{}", String::from_utf8_lossy(&get.stderr));
    assert!(std::fs::read(path("out")).unwrap() == bytes);
    let range = lazaret(&["blob", "get", "--cluster", cluster_file, names[0], "--range", "70000-70009"]);
    assert_eq!(range.stdout, &bytes[70_000..70_010]);

    let stat = lazaret(&["blob", "stat", "--cluster", cluster_file, names[1]]);
    let stat: serde_json::Value = serde_json::from_slice(&stat.stdout).unwrap();
    assert_eq!(stat["name"], names[1]);
    assert_eq!(stat["size"], 5);
    assert!(stat["nodes"].as_array().unwrap().len() >= 2, "{stat}");

    let absent = BlobName::of(b"absent").to_string();
    let absent_cluster = dir.path().join("absent.yml");
    for (args, says) in [
        (["blob", "get", "--cluster", cluster_file, &absent], "no blob"),
        (["blob", "get", "--cluster", cluster_file, "xyz"], "64 hexadecimal digits"),
        (["blob", "put", "--cluster", cluster_file, dir.path().to_str().unwrap()], "not a regular file"),
        (["blob", "get", "--cluster", absent_cluster.to_str().unwrap(), &absent], "absent.yml"),
    ] {
        let output = lazaret(&args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr.contains(says) && stderr.lines().count() == 1, "{args:?}: {stderr}");
    }

    // The commands said goodbye: nothing of theirs holds the nodes up.
    let stopping = Instant::now();
    assert_eq!(up.process.terminate(), Some(0));
    assert!(stopping.elapsed() < Duration::from_secs(5), "stopping took {:?}", stopping.elapsed());
}
