//! Log lines on their way to a place: a bounded queue and a thread that writes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Most lines that wait to be written: a second of the access log of a busy gateway, a few megabytes.
const LINES_MAX: usize = 8192;
/// Longest line; the rest of a longer one is cut off. Syslog servers take no more in one datagram.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// How long the end of a process waits for its last lines.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);
/// How often a failure to write is told on the error output.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// How long a line may stay in a buffer.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

/// All streams of this process, to be emptied before it ends.
static STREAMS: Mutex<Vec<SyncSender<Message>>> = Mutex::new(Vec::new());

/// Where lines end up. It works on its stream's thread, so it may block.
pub trait Write: Send {
    /// What it is, for complaints.
    fn name(&self) -> String;

    /// Takes one line, without its end.
    fn line(&mut self, level: Level, line: &[u8]) -> io::Result<()>;

    /// Hands on what is buffered.
    fn flush(&mut self) -> io::Result<()>;
}

enum Message {
    Line(Level, Vec<u8>),
    Flush(SyncSender<()>),
}

/// Takes lines for a place. Cheap to clone.
#[derive(Clone)]
pub struct Stream {
    lines: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

impl Stream {
    /// Starts the thread that writes.
    pub fn start(place: Box<dyn Write>) -> anyhow::Result<Self> {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let thread = Writing { place, waiting, lost: Arc::clone(&lost), complained: None };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || thread.run())
            .context("cannot start a thread for log lines")?;
        STREAMS.lock().unwrap_or_else(PoisonError::into_inner).push(lines.clone());
        Ok(Self { lines, lost })
    }
}

/// Waits until what was logged so far is written, within bounds.
pub fn flush() {
    let deadline = Instant::now() + FLUSH_TIME_MAX;
    let streams = std::mem::take(&mut *STREAMS.lock().unwrap_or_else(PoisonError::into_inner));
    for stream in streams {
        let (done, waiting) = sync_channel(1);
        while let Err(TrySendError::Full(_)) = stream.try_send(Message::Flush(done.clone())) {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = waiting.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// One line that is being made.
pub struct Line<'s> {
    stream: &'s Stream,
    level: Level,
}

impl io::Write for Line<'_> {
    /// The formatter hands a line over whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let kept = line.strip_suffix(b"\n").unwrap_or(line);
        let kept = kept.get(..LINE_BYTES_MAX).unwrap_or(kept).to_vec();
        if let Err(TrySendError::Full(_)) = self.stream.lines.try_send(Message::Line(self.level, kept)) {
            self.stream.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'s> MakeWriter<'s> for Stream {
    type Writer = Line<'s>;

    fn make_writer(&'s self) -> Line<'s> {
        Line { stream: self, level: Level::INFO }
    }

    fn make_writer_for(&'s self, meta: &Metadata<'_>) -> Line<'s> {
        Line { stream: self, level: *meta.level() }
    }
}

struct Writing {
    place: Box<dyn Write>,
    waiting: Receiver<Message>,
    lost: Arc<AtomicU64>,
    complained: Option<Instant>,
}

impl Writing {
    fn run(mut self) {
        let mut dirty = false;
        loop {
            let message = match dirty {
                true => self.waiting.recv_timeout(FLUSH_INTERVAL),
                false => self.waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Line(level, line)) => {
                    self.tell_of_losses();
                    let written = self.place.line(level, &line);
                    self.complain(written);
                    dirty = true;
                }
                Ok(Message::Flush(done)) => {
                    self.tell_of_losses();
                    let flushed = self.place.flush();
                    self.complain(flushed);
                    dirty = false;
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => {
                    let flushed = self.place.flush();
                    self.complain(flushed);
                    dirty = false;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tell_of_losses(&mut self) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let told = self.place.line(Level::WARN, format!("{lost} log lines were lost: too many at once").as_bytes());
            self.complain(told);
        }
    }

    fn complain(&mut self, outcome: io::Result<()>) {
        let Err(error) = outcome else { return };
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained = Some(Instant::now());
            crate::output::complain(format_args!("log lines for {} are lost: {error}", self.place.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc::channel;

    use super::*;

    /// A place that waits at each line until it is let go.
    struct Slow {
        begun: std::sync::mpsc::Sender<()>,
        go: std::sync::mpsc::Receiver<()>,
        lines: Arc<Mutex<Vec<String>>>,
    }

    impl Write for Slow {
        fn name(&self) -> String {
            "a test".to_owned()
        }

        fn line(&mut self, _: Level, line: &[u8]) -> io::Result<()> {
            let _ = self.begun.send(());
            let _ = self.go.recv();
            self.lines.lock().unwrap().push(String::from_utf8_lossy(line).into_owned());
            Ok(())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_place_that_stalls_costs_lines_and_says_how_many_but_nobody_waits_for_it() {
        let (begun, has_begun) = channel();
        let (let_go, go) = channel();
        let lines = Arc::default();
        let stream = Stream::start(Box::new(Slow { begun, go, lines: Arc::clone(&lines) })).unwrap();
        let mut line = Line { stream: &stream, level: Level::INFO };
        line.write_all(b"first\n").unwrap();
        has_begun.recv().unwrap();
        // The first one is being written; so many wait, and three are too many.
        for _ in 0..LINES_MAX + 3 {
            line.write_all(b"more\n").unwrap();
        }
        drop(let_go);
        flush();
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), LINES_MAX + 2);
        assert!(lines.iter().any(|line| line.starts_with("3 log lines were lost")));
        assert_eq!(lines[0], "first");
    }
}
