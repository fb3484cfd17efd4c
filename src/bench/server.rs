//! Parts of a station in processes of their own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// This program in a process of its own, for as long as this lives.
pub struct Server {
    process: Child,
    ready: String,
}

impl Server {
    /// Starts it with these arguments and waits for its ready line.
    pub fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> anyhow::Result<Self> {
        let process = Command::new(std::env::current_exe()?)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process of this program")?;
        let mut server = Self { process, ready: String::new() };
        let stdout = server.process.stdout.take().context("it has no standard output")?;
        BufReader::new(stdout).read_line(&mut server.ready)?;
        if server.ready().is_empty() {
            bail!("a process of this program did not start");
        }
        Ok(server)
    }

    /// What its ready line says.
    pub fn ready(&self) -> &str {
        self.ready.strip_prefix("ready ").unwrap_or_default().trim_end()
    }

    /// The most resident memory it had.
    pub fn peak_memory_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
