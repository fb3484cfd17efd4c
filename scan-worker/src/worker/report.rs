//! What the worker says of itself every few seconds: the engines that are loaded, what it does, the machine.
//!
//! A report that can't be recorded is logged and forgotten: nothing depends on it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lazaret_analysis::worker_report::REPORT_INTERVAL_MS;
use lazaret_analysis::{DiskReport, HostReport, WorkerReport};
use rustix::fs::statvfs;

use super::Shared;

impl Shared {
    /// Reports, for ever.
    pub(super) async fn report(&self) {
        loop {
            self.report_once().await;
            self.environment.clock.sleep(Duration::from_millis(REPORT_INTERVAL_MS)).await;
        }
    }

    /// Reports.
    pub(super) async fn report_once(&self) {
        // The files under /proc answer from memory.
        if let Err(error) = self.results.report_worker(&self.own_report(), self.now_ms()).await {
            tracing::warn!(%error, "the worker's report could not be recorded");
        }
    }

    fn own_report(&self) -> WorkerReport {
        WorkerReport {
            name: self.options.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            scan_threads: self.options.scan_threads as u64,
            concurrent_files: self.options.concurrent_files.max(1) as u64,
            running: self.slots.occupied(),
            engines: self.engines.iter().map(|engine| engine.info()).collect(),
            started_ms: self.started_ms,
            host: HostReport { disk: disk(&self.options.spool.folder), ..host() },
        }
    }
}

/// The machine, as the kernel tells it.
fn host() -> HostReport {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu_cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let memory = read("/proc/meminfo");
    HostReport {
        os: os_name(&read("/etc/os-release")).unwrap_or_else(|| std::env::consts::OS.to_owned()),
        cpu_cores,
        memory_bytes: memory_field(&memory, "MemTotal:"),
        memory_available_bytes: memory_field(&memory, "MemAvailable:"),
        load_percent: load_percent(&read("/proc/loadavg"), cpu_cores),
        disk: DiskReport::default(),
    }
}

/// The disk below a folder.
fn disk(folder: &Path) -> DiskReport {
    let told = statvfs(folder).ok();
    let bytes = |blocks: u64, size: u64| blocks.saturating_mul(size);
    DiskReport {
        folder: folder.display().to_string(),
        free_bytes: told.as_ref().map_or(0, |told| bytes(told.f_bavail, told.f_frsize)),
        total_bytes: told.as_ref().map_or(0, |told| bytes(told.f_blocks, told.f_frsize)),
    }
}

/// `PRETTY_NAME="..."` of os-release(5).
fn os_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned()).filter(|name| !name.is_empty())
}

/// A field of /proc/meminfo, which counts in KiB, in bytes.
fn memory_field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let kib = value.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// The load of the last minute, as a share of the cores.
fn load_percent(text: &str, cpu_cores: u64) -> u64 {
    let load = text.split_whitespace().next().and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0);
    // The cast saturates, and what is no number becomes 0.
    ((100.0 * load / cpu_cores.max(1) as f64) as u64).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let memory = "MemTotal:       24689764 kB\nMemFree:         1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(memory_field(memory, "MemTotal:"), 24_689_764 * 1024);
        assert_eq!(memory_field(memory, "MemAvailable:"), 2 << 20);
        assert_eq!((memory_field("", "MemTotal:"), memory_field("MemTotal: x", "MemTotal:")), (0, 0));
        assert_eq!(load_percent("1.50 0.2 0.1 1/2 3", 2), 75);
        assert_eq!((load_percent("9.00", 2), load_percent("", 2), load_percent("nan", 0)), (100, 0, 0));
        assert_eq!(os_name("ID=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n").as_deref(), Some("Debian GNU/Linux 12"));
        assert_eq!(os_name("PRETTY_NAME=\"\""), None);
        let here = host();
        let root = disk(Path::new("/"));
        assert!(root.folder == "/" && root.total_bytes > 0 && root.free_bytes <= root.total_bytes, "{root:?}");
        assert_eq!(disk(Path::new("/nowhere/at/all")).total_bytes, 0);
        assert!(here.cpu_cores > 0 && here.memory_bytes > here.memory_available_bytes, "{here:?}");
    }
}
