//! Bombs of the formats that the sandbox's own test of bombs leaves out: each ends with its own limit, whatever it claims, after
//! no more than a limit's worth of content. They are made here, and small: what they have much of is zeros or all alike.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "some of what it tells is for other tests")]
mod samples;

use std::io::{Cursor, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use lazaret_containers::conformance::{limits, take_apart_within};
use lazaret_containers::format::Found;
use lazaret_containers::{Budget, ContainerFormat, ExtractionOutcome, Limit, Limits, Member, Passwords, TreeBudget};
use samples::SAMPLES;

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;
/// On a machine with nothing else to do none takes ten seconds; a busy one may take longer and fails no test.
const WALL_MAX: Duration = Duration::from_secs(90);

fn bomb_limits() -> Limits {
    Limits { depth: 10, files: 10_000, produced_bytes: 1 << 30, ratio: 100, ratio_free_bytes: 4 << 20, ..limits() }
}

/// Opens a bomb, and lets its members go as they come. Tells how it ended and how many bytes came out.
fn explode(format: &str, bomb: &[u8]) -> (ExtractionOutcome, u64) {
    let length = bomb.len() as u64;
    let stop: Arc<AtomicBool> = Arc::default();
    let budget = Budget::new(Arc::new(TreeBudget::new(bomb_limits(), length)), stop, length);
    let mut produced = 0;
    let mut buffer = vec![0; 64 * 1024];
    let mut sink = |member: Member<'_>| {
        while let Ok(read @ 1..) = member.content.read(&mut buffer) {
            produced += read as u64;
        }
        Ok(())
    };
    let began = Instant::now();
    let found = Found { format: ContainerFormat::named(format).unwrap(), offset: 0 };
    let outcome = found.extract("file", length, &mut Cursor::new(bomb), &Passwords::NONE, &budget, &mut sink);
    println!("{format:<10} {length} bytes: {:?} in {:.1?} after {produced} bytes", outcome.limit, began.elapsed());
    assert!(began.elapsed() < WALL_MAX, "{format} took {:?}", began.elapsed());
    (outcome, produced)
}

fn ends_at_the_ratio(format: &str, bomb: &[u8]) {
    let (outcome, produced) = explode(format, bomb);
    assert!(matches!(outcome.limit, Some(Limit::Ratio | Limit::Size)), "{format}: {outcome:?}");
    let most = (bomb.len() as u64 * 100).max(4 << 20) + (1 << 20);
    assert!(produced <= most, "{format}: {produced} bytes came out of {}", bomb.len());
}

fn sample(name: &str) -> Vec<u8> {
    SAMPLES.iter().find(|sample| sample.name == name).unwrap().file()
}

/// 4 GiB of zeros in LZ4: a frame of blocks of 4 MiB.
fn lz4() -> Vec<u8> {
    let block = lz4_flex::block::compress(&vec![0; 4 * MIB]);
    let descriptor = [0x60, 0x70];
    let sum = twox_hash::XxHash32::oneshot(0, &descriptor).to_le_bytes()[1];
    let mut frame = [&[4, 0x22, 0x4d, 0x18], &descriptor[..], &[sum]].concat();
    for _ in 0..1024 {
        frame.extend_from_slice(&(block.len() as u32).to_le_bytes());
        frame.extend_from_slice(&block);
    }
    frame.extend_from_slice(&[0; 4]);
    frame
}

/// 4 GiB of zeros in LZW: each code stands for a zero more than the one before, and then the longest comes again and again.
fn compress() -> Vec<u8> {
    let (mut file, mut bits, mut count) = (b"\x1f\x9d\x90".to_vec(), 0u64, 0);
    let mut put = |file: &mut Vec<u8>, code: u32, width: u32| {
        bits |= u64::from(code) << count;
        count += width;
        while count >= 8 {
            file.push(bits as u8);
            bits >>= 8;
            count -= 8;
        }
    };
    put(&mut file, 0, 9);
    // Codes come in groups of eight, which the table's length makes whole here.
    let (mut next, mut width, mut in_group) = (257u32, 9u32, 1u32);
    while next < 1 << 16 {
        if next > (1 << width) - 1 && width < 16 {
            while in_group % 8 != 0 {
                put(&mut file, 0, width);
                in_group += 1;
            }
            width += 1;
        }
        put(&mut file, next, width);
        (next, in_group) = (next + 1, in_group + 1);
    }
    for _ in 0..4 * GIB / 65_000 {
        put(&mut file, (1 << 16) - 1, 16);
    }
    file
}

fn lzma(zeros: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::LzmaOptions::with_preset(0);
    let mut writer = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
    writer.write_all(zeros).unwrap();
    writer.finish().unwrap()
}

fn lzip(zeros: &[u8]) -> Vec<u8> {
    let mut writer = lzma_rust2::LzipWriter::new(Vec::new(), lzma_rust2::LzipOptions::with_preset(0));
    writer.write_all(zeros).unwrap();
    writer.finish().unwrap()
}

#[test]
fn zeros_in_every_compressor_of_streams_end_at_the_ratio() {
    let zeros = vec![0; 64 * MIB];
    ends_at_the_ratio("lz4", &lz4());
    ends_at_the_ratio("compress", &compress());
    ends_at_the_ratio("lzip", &lzip(&zeros).repeat(64));
    // One stream of it can't be repeated; the ratio is hit long before its end.
    ends_at_the_ratio("lzma", &lzma(&zeros));
}

#[test]
fn zeros_in_every_method_of_zip_end_at_the_ratio() {
    use zip::CompressionMethod::{Bzip2, Deflate64, Deflated, Xz, Zstd};
    // Four times what the ratio leaves free.
    let zeros = vec![0; 16 * MIB];
    for method in [Deflated, Deflate64, Bzip2, Zstd, Xz] {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        if writer.start_file("zeros", options).is_err() {
            // Deflate64 is read and not written by the crate.
            assert_eq!(method, Deflate64);
            continue;
        }
        writer.write_all(&zeros).unwrap();
        let file = writer.finish().unwrap().into_inner();
        println!("{method:?}");
        ends_at_the_ratio("zip", &file);
    }
}

#[test]
fn holes_in_disk_images_end_at_the_ratio() {
    // A file of 4 GiB, and one of 8 EiB, that have two kilobytes.
    for high in [1u32, 0x7fff_ffff] {
        let mut ext = sample("ext2");
        let at = ext.windows(8).position(|inode| inode[..4] == 2337u32.to_le_bytes()).unwrap();
        let inode = at - 4;
        ext[inode + 108..inode + 112].copy_from_slice(&high.to_le_bytes());
        let (outcome, produced) = explode("ext", &ext);
        assert!(outcome.limit.is_some() || outcome.broken.is_some(), "{outcome:?}");
        assert!(produced <= (ext.len() as u64) * 100 + (1 << 20));
    }
}

#[test]
fn ten_million_members_end_at_their_number() {
    let mut header = tar::Header::new_gnu();
    header.set_path("member").unwrap();
    header.set_size(0);
    header.set_cksum();
    // As many as fit into a test's memory: the number that counts is reached with the first ten thousand.
    let many = header.as_bytes().repeat(200_000);
    let taken = take_apart_within(ContainerFormat::named("tar").unwrap(), &many, 0, &Passwords::NONE, bomb_limits());
    assert_eq!((taken.outcome.limit, taken.members.len()), (Some(Limit::Files), 10_000));
    // Ten million of them, compressed: the ratio or the size of the tar is what ends it.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&header.as_bytes().repeat(20_000)).unwrap();
    ends_at_the_ratio("gzip", &encoder.finish().unwrap().repeat(500));
}

/// A folder in a folder in a folder, on a file system: each but the last in a cluster of its own.
#[test]
fn a_tree_of_a_hundred_thousand_folders_ends() {
    const DEPTH: u32 = 100_000;
    const CLUSTER: usize = 512;
    // exFAT, whose boot sector says all that is read of it; folders lie one behind the other, without chains.
    let mut image = vec![0; CLUSTER * (DEPTH as usize + 8)];
    image[3..11].copy_from_slice(b"EXFAT   ");
    image[80..84].copy_from_slice(&1u32.to_le_bytes());
    image[88..92].copy_from_slice(&4u32.to_le_bytes());
    image[92..96].copy_from_slice(&(DEPTH + 2).to_le_bytes());
    image[96..100].copy_from_slice(&2u32.to_le_bytes());
    (image[108], image[109]) = (9, 0);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    // The root's chain ends with itself.
    image[CLUSTER + 8..CLUSTER + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    for depth in 0..DEPTH {
        let entry = &mut image[CLUSTER * (4 + depth as usize)..][..CLUSTER];
        (entry[0], entry[1], entry[4]) = (0x85, 2, 16);
        (entry[32], entry[33], entry[35]) = (0xc0, 3, 1);
        entry[40..48].copy_from_slice(&(CLUSTER as u64).to_le_bytes());
        entry[52..56].copy_from_slice(&(depth + 3).to_le_bytes());
        entry[56..64].copy_from_slice(&(CLUSTER as u64).to_le_bytes());
        (entry[64], entry[66]) = (0xc1, b'd');
    }
    let last = &mut image[CLUSTER * (4 + DEPTH as usize)..][..CLUSTER];
    (last[0], last[1]) = (0x85, 2);
    (last[32], last[33], last[35]) = (0xc0, 3, 1);
    last[40..48].copy_from_slice(&5u64.to_le_bytes());
    last[52..56].copy_from_slice(&2u32.to_le_bytes());
    last[56..64].copy_from_slice(&5u64.to_le_bytes());
    (last[64], last[66]) = (0xc1, b'f');
    let (outcome, produced) = explode("exfat", &image);
    assert!(outcome.is_complete() && produced == 5, "{outcome:?} {produced}");
}
