//! Log lines in a file, which is put aside when it has reached its length.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tracing::Level;

use super::stream::Write;

/// A file of log lines. It is for its owner's eyes alone: it tells who asked for what.
pub struct LogFile {
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
    bytes_max: u64,
    files_max: u32,
}

impl LogFile {
    /// Opens the file, or makes it, to write at its end.
    pub fn open(path: PathBuf, bytes_max: u64, files_max: u32) -> anyhow::Result<Self> {
        let (file, length) = append(&path).with_context(|| format!("cannot write the log {}", path.display()))?;
        Ok(Self { path, file, length, bytes_max, files_max })
    }

    /// Puts the file aside under the name of its number, and those that were put aside before under the next ones.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        for number in (1..self.files_max).rev() {
            match fs::rename(self.aside(number), self.aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.aside(1))?;
        (self.file, self.length) = append(&self.path)?;
        Ok(())
    }

    fn aside(&self, number: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

fn append(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    let file = File::options().create(true).append(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok((BufWriter::new(file), length))
}

impl Write for LogFile {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn line(&mut self, _: Level, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        if self.length > 0 && self.length.saturating_add(length) > self.bytes_max {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.file.write_all(b"\n")?;
        self.length = self.length.saturating_add(length);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_put_aside_before_it_gets_too_long_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut log = LogFile::open(path.clone(), 20, 2).unwrap();
        for number in 0..8 {
            // Ten bytes with the end of the line.
            log.line(Level::INFO, format!("line {number:04}").as_bytes()).unwrap();
        }
        log.flush().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        assert_eq!(read("a.log"), "line 0006\nline 0007\n");
        assert_eq!(read("a.log.1"), "line 0004\nline 0005\n");
        assert_eq!(read("a.log.2"), "line 0002\nline 0003\n");
        assert!(!dir.path().join("a.log.3").exists());
        // Opened again it goes on where it ended.
        drop(log);
        let mut log = LogFile::open(path, 20, 2).unwrap();
        log.line(Level::INFO, b"after").unwrap();
        log.flush().unwrap();
        assert_eq!((read("a.log").as_str(), read("a.log.1").as_str()), ("after\n", "line 0006\nline 0007\n"));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_said_at_the_start() {
        let error = LogFile::open("/nowhere/at/all.log".into(), 1 << 20, 1).err().unwrap();
        assert!(format!("{error:#}").contains("/nowhere/at/all.log"));
    }
}
