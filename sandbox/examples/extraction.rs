//! Takes archives apart and throws away what comes out: in the sandbox, in this process, and, for ZIP archives, with nothing
//! but the `zip` crate. `cargo run --release -p lazaret-sandbox --example extraction -- THREADS FILE...`

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::Bytes;
use lazaret_containers::{Budget, Limits, Member, Passwords, TreeBudget, detect, detect_content};
use lazaret_sandbox::{Extraction, Request, Sandbox, SandboxOptions};

/// The same as the whole program's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Default)]
struct Total {
    members: AtomicU64,
    bytes: AtomicU64,
}

impl Total {
    fn take(&self, content: &mut dyn Read, buffer: &mut [u8]) {
        self.members.fetch_add(1, Ordering::Relaxed);
        while let Ok(read @ 1..) = content.read(buffer) {
            self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        }
    }
}

fn limits() -> Limits {
    Limits {
        depth: 10,
        files: 1_000_000,
        produced_bytes: 1 << 40,
        ratio: 1_000_000,
        ratio_free_bytes: 1 << 40,
        archive_seconds: 3600,
        file_bytes: None,
    }
}

fn sandboxed(sandbox: &Sandbox, file: &[u8], total: &Total, buffer: &mut [u8]) {
    let (limits, length) = (limits(), file.len() as u64);
    let tree = Arc::new(TreeBudget::new(limits.clone(), length));
    let stop: Arc<AtomicBool> = Arc::default();
    let budget = Budget::new(tree.clone(), stop, length);
    let input = Bytes(file, true);
    let request = Request {
        name: "file",
        length,
        containers: None,
        shared: false,
        limits: &limits,
        passwords: &Passwords::NONE,
        standing: None,
    };
    let mut opening = sandbox.open(&request, &input).unwrap();
    let (file_type, _) = opening.file_type(&|| budget.check()).unwrap().unwrap();
    let outcome = opening.members(&request, &file_type.containers, &budget, &mut |member: Member<'_>| {
        total.take(member.content, buffer);
        Ok(())
    });
    assert!(outcome.broken.is_none() && outcome.limits.is_empty(), "{}", outcome.detail());
}

fn in_process(file: &[u8], total: &Total, buffer: &mut [u8]) {
    let length = file.len() as u64;
    let stop: Arc<AtomicBool> = Arc::default();
    let budget = Budget::new(Arc::new(TreeBudget::new(limits(), length)), stop, length);
    let found = detect(&mut Cursor::new(file), length).unwrap().containers;
    for found in found {
        found.extract("file", length, &mut Cursor::new(file), &Passwords::NONE, &budget, &mut |member| {
            let mut content = Vec::with_capacity(64 * 1024);
            member.content.read_to_end(&mut content).unwrap();
            // The sandbox tells the type of each member too.
            if content.len() < 512 * 1024 {
                detect_content(&content).unwrap();
            }
            total.take(&mut content.as_slice(), buffer);
            Ok(())
        });
    }
}

fn bare(file: &[u8], total: &Total, buffer: &mut [u8]) {
    let Ok(mut archive) = zip::ZipArchive::new(Cursor::new(file)) else { return };
    for at in 0..archive.len() {
        total.take(&mut archive.by_index(at).unwrap(), buffer);
    }
}

/// The best of so many rounds counts.
const ROUNDS: u64 = 3;

fn run(name: &str, threads: usize, files: &[Vec<u8>], work: impl Fn(&[u8], &Total, &mut [u8]) + Sync) {
    let (total, next) = (Total::default(), AtomicUsize::new(0));
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        next.store(0, Ordering::Relaxed);
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut buffer = vec![0; 128 * 1024];
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        work(file, &total, &mut buffer);
                    }
                });
            }
        });
        best = best.min(began.elapsed());
    }
    let (members, bytes) =
        (total.members.load(Ordering::Relaxed) / ROUNDS, total.bytes.load(Ordering::Relaxed) / ROUNDS);
    println!("{name:<12} {:>6.3} s  {members} members, {} MB", best.as_secs_f64(), bytes / 1_000_000);
}

fn main() -> ExitCode {
    if let Some(code) = lazaret_sandbox::child::run_if_asked(&mut Extraction::default()) {
        return code;
    }
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().and_then(|threads| threads.parse().ok()).unwrap_or(2);
    let files: HashMap<String, Vec<u8>> = arguments.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    let mut files: Vec<Vec<u8>> = files.into_values().collect();
    // The longest first, so that no thread is left with it at the end.
    files.sort_by_key(|file| std::cmp::Reverse(file.len()));
    let sandbox = Sandbox::start(SandboxOptions::new(threads)).unwrap();
    // One way only, if the environment names it: then `time` tells its processor time.
    let only = std::env::var("ONLY").ok();
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wanted("sandbox") {
        run("sandbox", threads, &files, |file, total, buffer| sandboxed(&sandbox, file, total, buffer));
    }
    if wanted("process") {
        run("in process", threads, &files, in_process);
    }
    if wanted("zip") {
        run("zip crate", threads, &files, bare);
    }
    ExitCode::SUCCESS
}
