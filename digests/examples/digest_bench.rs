//! Measures the digests against OpenSSL computing them one after the other, in the same run.
//!
//! ```sh
//! cargo run --release -p lazaret-digests --example digest_bench              # everything, and a plot: digests/bench.svg
//! cargo run --release -p lazaret-digests --example digest_bench -- kernels   # one part: kernels, set, goals, latency
//! ```
//!
//! One core's work is counted, not the clock's time: each figure is bytes by the processor time that all threads of this
//! process took, so that other work on the machine and the number of threads change it little.

// A measurement that can't be taken ends the program.
#![allow(clippy::expect_used)]

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_digests::{Digest, Digests, Path, Pool, Selection, Set, Settings};
use openssl::hash::{Hasher, MessageDigest};

fn main() {
    let part = std::env::args().nth(1);
    let wants = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if wants("kernels") {
        kernels();
    }
    if wants("set") {
        set();
    }
    if wants("goals") {
        goals();
    }
    if wants("latency") {
        latency();
    }
    // Not among all: it measures nothing, a profiler does.
    if part.as_deref() == Some("profile") {
        let pool = Pool::new(Settings::default()).expect("threads can be started");
        let (_, nested) = loads();
        for _ in 0..10 {
            pooled(&pool, &nested, 256);
        }
    }
}

/// Processor time of all threads of this process that are still there.
fn cpu_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux tells the processor time of threads");
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let schedstat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn noise(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut content: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    content.truncate(bytes);
    content.into()
}

/// What everything is compared with: BLAKE3 by its crate, the rest by OpenSSL, each over the whole file in turn.
fn in_sequence(content: &[u8]) -> Digests {
    let digest = |kind: MessageDigest| {
        let mut hasher = Hasher::new(kind).expect("OpenSSL has the digest");
        hasher.update(content).expect("OpenSSL takes bytes");
        hasher.finish().expect("OpenSSL gives a digest")
    };
    Digests {
        blake3: *blake3::hash(content).as_bytes(),
        md5: digest(MessageDigest::md5()).as_ref().try_into().ok(),
        sha1: digest(MessageDigest::sha1()).as_ref().try_into().ok(),
        sha256: digest(MessageDigest::sha256()).as_ref().try_into().ok(),
        sha512: digest(MessageDigest::sha512()).as_ref().try_into().ok(),
    }
}

/// Every path of every digest with full lanes, in megabytes a second.
fn kernels() {
    println!(
        "kernels, MB/s with full lanes of 4 KiB (in cache); OpenSSL, and BLAKE3's crate, through their own interfaces"
    );
    print!("{:9}", "");
    Path::ALL.iter().for_each(|path| print!("{path:>10}"));
    println!("{:>10}  by number of files", "openssl*");
    let mut seconds_a_megabyte = 0.0;
    for digest in Digest::ALL {
        print!("{digest:9}");
        let mut fastest: f64 = 0.0;
        for path in Path::ALL {
            let speed = digest.lanes(path).and_then(|lanes| {
                let time = digest.time(path, lanes, 32, 400)?;
                Some(lanes as f64 * 4096.0 / time.as_secs_f64() / 1e6)
            });
            fastest = fastest.max(speed.unwrap_or(0.0));
            print!("{:>10}", speed.map_or("-".into(), |speed| format!("{speed:.0}")));
        }
        if !matches!(digest, Digest::Md5 | Digest::Sha1) {
            seconds_a_megabyte += 1.0 / fastest;
        }
        let kinds = match digest {
            Digest::Blake3 => vec![],
            Digest::Md5 => vec![MessageDigest::md5()],
            Digest::Sha1 => vec![MessageDigest::sha1()],
            Digest::Md5Sha1 => vec![MessageDigest::md5(), MessageDigest::sha1()],
            Digest::Sha256 => vec![MessageDigest::sha256()],
            Digest::Sha512 => vec![MessageDigest::sha512()],
        };
        let content = noise(65_536, 1);
        let time = (0..100).map(|_| {
            let began = Instant::now();
            for kind in &kinds {
                openssl::hash::hash(*kind, &content).expect("OpenSSL has the digest");
            }
            if kinds.is_empty() {
                std::hint::black_box(blake3::hash(&content));
            }
            began.elapsed()
        });
        let time = time.min().unwrap_or_default();
        print!("{:>10.0}  ", 65_536.0 / time.as_secs_f64() / 1e6);
        let mut before = None;
        for files in 1..=16 {
            let path = digest.path(files);
            if before.replace(path) != Some(path) {
                print!("{files}: {path}  ");
            }
        }
        println!();
    }
    println!(
        "all five, were they their kernels alone, MD5 and SHA-1 in one pass: {:.0} MB/s",
        1.0 / seconds_a_megabyte
    );
}

/// A run of the pool: how fast, by processor time and by the clock.
struct Speed {
    cpu: f64,
    clock: f64,
}

/// Digests `files` by a pool with `streams` of them open at once, in pieces of 256 KiB.
fn pooled(pool: &Pool, files: &[Bytes], streams: usize) -> Speed {
    let bytes: usize = files.iter().map(Bytes::len).sum();
    let (began, cpu_began) = (Instant::now(), cpu_time());
    let mut open: VecDeque<(lazaret_digests::Pending, usize)> = VecDeque::new();
    let collect = |(pending, _): (lazaret_digests::Pending, usize)| {
        std::hint::black_box(pending.wait().expect("the pool gives digests"));
    };
    // Long files take turns piece by piece, as uploads would.
    for group in files.chunks(streams) {
        let long = group.iter().any(|file| file.len() > 1024 * 1024);
        if long {
            let mut writing: Vec<_> = group.iter().map(|file| (pool.stream(Selection::ALL), file.clone())).collect();
            while writing.iter().any(|(_, left)| !left.is_empty()) {
                for (stream, left) in &mut writing {
                    stream.update_blocking(left.split_to(left.len().min(256 * 1024)));
                }
            }
            let pending: Vec<_> = writing.into_iter().map(|(stream, _)| stream.end()).collect();
            pending.into_iter().for_each(|pending| collect((pending, 0)));
        } else {
            for (i, file) in group.iter().enumerate() {
                if open.len() >= streams
                    && let Some(first) = open.pop_front()
                {
                    collect(first);
                }
                let mut stream = pool.stream(Selection::ALL);
                stream.update_blocking(file.clone());
                if streams == 1 {
                    std::hint::black_box(stream.finish_blocking().expect("the pool gives digests"));
                    continue;
                }
                open.push_back((stream.end(), i));
            }
        }
    }
    open.into_iter().for_each(collect);
    let speed = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e6;
    Speed { cpu: speed(cpu_time() - cpu_began), clock: speed(began.elapsed()) }
}

fn sequence_speed(files: &[Bytes]) -> f64 {
    let bytes: usize = files.iter().map(Bytes::len).sum();
    let began = cpu_time();
    files.iter().for_each(|file| {
        std::hint::black_box(in_sequence(file));
    });
    bytes as f64 / (cpu_time() - began).as_secs_f64() / 1e6
}

fn in_place_speed(files: &[Bytes]) -> f64 {
    let bytes: usize = files.iter().map(Bytes::len).sum();
    let began = cpu_time();
    files.iter().for_each(|file| {
        std::hint::black_box(Set::digest(Selection::ALL, file));
    });
    bytes as f64 / (cpu_time() - began).as_secs_f64() / 1e6
}

const STREAMS: [usize; 6] = [1, 4, 8, 16, 64, 256];
/// The bytes of one measurement, about.
const RUN_BYTES: usize = 64 << 20;

/// All five digests by the pool, against OpenSSL in sequence.
fn set() {
    let pool = Pool::new(Settings::default()).expect("threads can be started");
    let threads = Settings::default().threads;
    println!("\nall five digests, MB/s of processor time and times OpenSSL in sequence ({threads} threads)");
    print!("{:>10} {:>9} {:>13}", "file", "openssl", "Set");
    STREAMS.iter().for_each(|streams| print!("{:>15}", format!("{streams} streams")));
    println!();
    let mut lines = Vec::new();
    for (name, length) in [
        ("1 KiB", 1 << 10),
        ("4 KiB", 4 << 10),
        ("16 KiB", 16 << 10),
        ("27 KB", 27_000),
        ("140 KB", 140_000),
        ("1 MiB", 1 << 20),
        ("16 MiB", 16 << 20),
    ] {
        // As many files as make up the run; the mean of the 27 KB is that of files from 1 to 53 KB.
        let count = (RUN_BYTES / length).clamp(16, 16_384);
        let length_of = |i: usize| if length == 27_000 { 1_000 + (i * 7_919) % 52_000 } else { length };
        // Long files are cut from one buffer twice the level-3 cache, so that 256 of them fit in memory.
        let buffer = noise(64 << 20, 1);
        let cut = |i: usize| {
            let start = (i * 5_000_011) % (buffer.len() - length_of(i));
            buffer.slice(start..start + length_of(i))
        };
        let files: Vec<Bytes> = (0..count).map(cut).collect();
        let sequence = sequence_speed(&files);
        let in_place = in_place_speed(&files);
        print!("{name:>10} {sequence:>9.0} {in_place:>7.0} {:>4.2}x", in_place / sequence);
        let mut ratios = Vec::new();
        for streams in STREAMS {
            let speed = if files.len() < streams {
                // As many as are open at once, and each a second time, so that not all begin and end together.
                let more: Vec<Bytes> = (0..2 * streams).map(|i| files[i % files.len()].clone()).collect();
                pooled(&pool, &more, streams)
            } else {
                pooled(&pool, &files, streams)
            };
            // Once more against what the machine does now: the two are compared, not each with another day.
            let sequence = (sequence + sequence_speed(&files)) / 2.0;
            print!("{:>8.0} {:>5.2}x", speed.cpu, speed.cpu / sequence);
            ratios.push(speed.cpu / sequence);
        }
        println!();
        lines.push((name, ratios));
    }
    let svg = plot(&lines);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/bench.svg");
    match std::fs::write(path, svg) {
        Ok(()) => println!("plot: {path}"),
        Err(error) => eprintln!("{path}: {error}"),
    }
}

/// The files of the two loads that the pool was built for: uploads and nested files.
fn loads() -> (Vec<Bytes>, Vec<Bytes>) {
    let buffer = noise(64 << 20, 1);
    let cut = |count: usize, length: &dyn Fn(usize) -> usize| -> Vec<Bytes> {
        let start = |i: usize| (i * 5_000_011) % (buffer.len() - length(i));
        (0..count).map(|i| buffer.slice(start(i)..start(i) + length(i))).collect()
    };
    (cut(64 * 32, &|_| 140_000), cut(15_700, &|i| 1_000 + (i * 7_919) % 52_000))
}

/// Two loads that the pool was built for, several times over: 64 uploads of 140 KB at once, 15,700 nested files of 27 KB.
fn goals() {
    println!("\nMB/s of processor time: OpenSSL in sequence, the pool, and how many times that is; MB/s by the clock");
    let pool = Pool::new(Settings::default()).expect("threads can be started");
    let (uploads, nested) = loads();
    for (name, files, streams) in [("140 KB, 64 at once", uploads, 64), ("15,700 of 27 KB, 256 at once", nested, 256)] {
        for _ in 0..3 {
            let before = sequence_speed(&files);
            let speed = pooled(&pool, &files, streams);
            let sequence = (before + sequence_speed(&files)) / 2.0;
            let Speed { cpu, clock } = speed;
            println!("{name:32} {sequence:>6.0} {cpu:>6.0} {:>5.2}x {clock:>6.0}", cpu / sequence);
        }
    }
}

/// How long a small file takes alone and among many.
fn latency() {
    let pool = Pool::new(Settings::default()).expect("threads can be started");
    println!("\nlatency of a file of 10 KB, microseconds: median, 99 %, largest");
    let small: Vec<Bytes> = (0..2000).map(|i| noise(10_000, i)).collect();
    let report = |name: &str, mut times: Vec<Duration>| {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
        println!("{name:44} {:>7} {:>7} {:>7}", at(0.5), at(0.99), at(1.0));
        at(0.99)
    };
    let timed = |work: &dyn Fn(&Bytes)| {
        let time = |file| {
            let began = Instant::now();
            work(file);
            began.elapsed()
        };
        small.iter().map(time).collect::<Vec<_>>()
    };
    let alone = report(
        "OpenSSL in sequence",
        timed(&|file| {
            std::hint::black_box(in_sequence(file));
        }),
    );
    report(
        "Set",
        timed(&|file| {
            std::hint::black_box(Set::digest(Selection::ALL, file));
        }),
    );
    let through = |pool: &Pool, file: &Bytes| {
        let mut stream = pool.stream(Selection::ALL);
        stream.update_blocking(file.clone());
        drop(stream.finish_blocking());
    };
    report("the pool, alone", timed(&|file| through(&pool, file)));
    // Full load: 64 other files, each with bytes waiting all the time.
    for threads in [1, Settings::default().threads.get()] {
        let pool = Pool::new(Settings {
            threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
            ..Settings::default()
        })
        .expect("threads can be started");
        let stop = std::sync::atomic::AtomicBool::new(false);
        let loaded = std::thread::scope(|scope| {
            for feeder in 0..2 {
                let (pool, stop) = (&pool, &stop);
                scope.spawn(move || {
                    let piece = noise(256 * 1024, feeder);
                    let mut streams: Vec<_> = (0..32).map(|_| pool.stream(Selection::ALL)).collect();
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        for stream in &mut streams {
                            stream.update_blocking(piece.clone());
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(200));
            let times = timed(&|file| through(&pool, file));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            times
        });
        let loaded = report(&format!("the pool with {threads} threads, 64 others under way"), loaded);
        println!("  99 % is {} us over OpenSSL alone", loaded as i128 - alone as i128);
    }
}

/// Times OpenSSL over the number of streams, a line for each file length.
fn plot(lines: &[(&str, Vec<f64>)]) -> String {
    let (width, height, left, top) = (640.0, 360.0, 50.0, 40.0);
    let highest = lines.iter().flat_map(|(_, ratios)| ratios).fold(4.0, |a: f64, b| a.max(*b)).ceil();
    let x = |i: usize| left + i as f64 * (width - 160.0) / (STREAMS.len() - 1) as f64;
    let y = |ratio: f64| top + (height - 90.0) * (1.0 - ratio / highest);
    let colours = ["#999999", "#56b4e9", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#000000"];
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n<text x=\"{left}\" y=\"20\" \
         font-size=\"14\">All five digests: times OpenSSL in sequence, by processor time</text>\n"
    );
    for ratio in 0..=highest as usize {
        let y = y(ratio as f64);
        let dash = if ratio == 1 { "" } else { " stroke-dasharray=\"2 4\"" };
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" y1=\"{y:.0}\" x2=\"{:.0}\" y2=\"{y:.0}\" stroke=\"#888\"{dash}/><text x=\"30\" \
             y=\"{:.0}\">{ratio}</text>",
            x(STREAMS.len() - 1),
            y + 4.0
        );
    }
    for (i, streams) in STREAMS.iter().enumerate() {
        let _ =
            writeln!(svg, "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{streams}</text>", x(i), height - 30.0);
    }
    let _ = writeln!(svg, "<text x=\"{:.0}\" y=\"{:.0}\">files at once</text>", x(2), height - 10.0);
    for ((name, ratios), (i, colour)) in lines.iter().zip(colours.iter().enumerate()) {
        let points: Vec<String> = ratios.iter().enumerate().map(|(i, r)| format!("{:.0},{:.0}", x(i), y(*r))).collect();
        let legend = top + 18.0 * i as f64 + 10.0;
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{:.0}\" \
             y=\"{legend:.0}\" fill=\"{colour}\">{name}</text>",
            points.join(" "),
            width - 80.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}
