//! What something costs: time, and the memory of this process with all of its descendants, which are the sandbox's.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a measured piece of work cost.
pub struct Cost {
    pub took: Duration,
    pub before_bytes: u64,
    pub peak_bytes: u64,
}

/// Does some work, and watches it.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (peak, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let before_bytes = tree_bytes();
    let watch = std::thread::spawn({
        let (peak, done) = (peak.clone(), done.clone());
        move || {
            loop {
                peak.fetch_max(tree_bytes(), Ordering::Relaxed);
                if done.load(Ordering::Acquire) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    let began = Instant::now();
    let result = work();
    let took = began.elapsed();
    done.store(true, Ordering::Release);
    watch.join().unwrap();
    (result, Cost { took, before_bytes, peak_bytes: peak.load(Ordering::Relaxed) })
}

/// What this process and its descendants hold now. Pages that several of them share count once, where the kernel tells that,
/// and for each of them where it does not.
fn tree_bytes() -> u64 {
    let mut processes = HashMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // "pid (name) state parent ... resident pages", the name in parentheses being anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        processes.insert(pid, (number(1) as u32, number(21) * 4096));
    }
    let own = std::process::id();
    let descends = |mut pid: u32| {
        for _ in 0..64 {
            match (pid, processes.get(&pid)) {
                (pid, _) if pid == own => return true,
                (_, Some((parent, _))) => pid = *parent,
                _ => return false,
            }
        }
        false
    };
    let family = processes.iter().filter(|(pid, _)| descends(**pid));
    family.map(|(pid, (_, resident))| proportional_bytes(*pid).unwrap_or(*resident)).sum()
}

fn proportional_bytes(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
