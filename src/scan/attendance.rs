//! Whether anybody scans: what the gateway says of its scan workers, asked while results are waited for.
//!
//! What no worker takes stays queued for ever, and rightly so, since the gateway keeps what it accepted. But whoever waits for
//! a result is told, and does not wait for ever. Where the gateway doesn't say, nothing is concluded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::output::complain;

/// How often the gateway is asked, however many files wait.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long nobody may scan before it is said: a worker that is restarted is no news.
const TELL_AFTER: Duration = Duration::from_secs(4);

/// Nobody scanned for as long as was to be waited.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{why} for {} s (--wait)", waited.as_secs())]
pub struct Unattended {
    why: &'static str,
    waited: Duration,
}

/// What is known of the gateway's scan workers.
pub struct Attendance {
    patience: Duration,
    progress: ProgressBar,
    given_up: AtomicBool,
    seen: Mutex<Seen>,
}

/// What the gateway said so far.
#[derive(Default)]
struct Seen {
    asked: Option<Instant>,
    /// Since when nobody scans, and why that is thought.
    missing: Option<(Instant, &'static str)>,
    told: bool,
}

impl Seen {
    fn note(&mut self, answer: &Value, now: Instant) {
        match trouble(answer) {
            Some(Some(why)) => self.missing = Some((self.missing.map_or(now, |(since, _)| since), why)),
            Some(None) => (self.missing, self.told) = (None, false),
            None => {}
        }
    }
}

impl Attendance {
    /// Gives up when nobody scans for as long as `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, progress: ProgressBar::hidden(), given_up: AtomicBool::new(false), seen: Mutex::default() }
    }

    /// Has what is to be said written above this bar.
    pub fn show_progress(&mut self, progress: &ProgressBar) {
        self.progress = progress.clone();
    }

    /// Whether waiting was given up, so that nothing more need be submitted.
    pub fn given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// To be called again and again by whoever waits for a result. `ask` is what `GET /readyz?verbose=true` of the gateway at
    /// `url` answers; it is awaited only when its turn has come.
    pub async fn check(&self, url: &str, ask: impl Future<Output = anyhow::Result<Value>>) -> Result<(), Unattended> {
        // Another one asks at this moment.
        let Ok(mut seen) = self.seen.try_lock() else { return Ok(()) };
        if seen.asked.is_none_or(|asked| asked.elapsed() >= LOOK_INTERVAL) {
            if let Ok(answer) = ask.await {
                seen.note(&answer, Instant::now());
            }
            seen.asked = Some(Instant::now());
        }
        self.conclude(&mut seen, url, Instant::now())
    }

    fn conclude(&self, seen: &mut Seen, url: &str, now: Instant) -> Result<(), Unattended> {
        let Some((since, why)) = seen.missing else { return Ok(()) };
        let waited = now.saturating_duration_since(since);
        // Said before it is given up, however slow the gateway was to answer.
        if waited >= TELL_AFTER && !seen.told {
            seen.told = true;
            let left = self.patience.saturating_sub(waited).as_secs();
            self.say(&format!("waiting for results from {url}: {why}; giving up in {left} s (--wait)"));
            return Ok(());
        }
        if waited >= self.patience {
            let unattended = Unattended { why, waited };
            if !self.given_up.swap(true, Ordering::Relaxed) {
                self.say(&format!(
                    "no results from {url}: {unattended}; start a scan worker: what was submitted is kept and scanned then"
                ));
            }
            return Err(unattended);
        }
        Ok(())
    }

    fn say(&self, line: &str) {
        self.progress.suspend(|| complain(line));
    }
}

/// Why nobody scans, by what `GET /readyz` says: none if somebody does. Nothing at all if it doesn't say. Without a key it tells
/// no more than whether everything works.
fn trouble(answer: &Value) -> Option<Option<&'static str>> {
    match (answer["scan_workers"].as_u64(), answer["status"].as_bool()) {
        (Some(0), _) => Some(Some("no scan worker is alive")),
        (Some(_), _) | (None, Some(true)) => Some(None),
        (None, Some(false)) => Some(Some("the gateway says that it is not ready (GET /readyz)")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn waiting_ends_when_nobody_scans_and_begins_anew_when_somebody_does() {
        let attendance = Attendance::new(Duration::from_secs(60));
        let [nobody, somebody] = [0, 1].map(|workers| json!({"status": true, "scan_workers": workers}));
        let (begun, mut seen) = (Instant::now(), Seen::default());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let conclude = |seen: &mut Seen, seconds| attendance.conclude(seen, "http://gateway", at(seconds));
        assert!(conclude(&mut seen, 1000).is_ok(), "nothing is known yet");
        seen.note(&nobody, at(0));
        seen.note(&nobody, at(3));
        assert!(conclude(&mut seen, 3).is_ok() && !seen.told);
        assert!(conclude(&mut seen, 59).is_ok() && seen.told);
        seen.note(&somebody, at(59));
        assert!(conclude(&mut seen, 100).is_ok() && !seen.told);
        seen.note(&nobody, at(100));
        assert!(conclude(&mut seen, 159).is_ok(), "counted anew");
        assert!(!attendance.given_up());
        // An answer that doesn't say changes nothing.
        seen.note(&json!({"err": "no such page"}), at(160));
        assert_eq!(conclude(&mut seen, 161).unwrap_err().to_string(), "no scan worker is alive for 61 s (--wait)");
        assert!(attendance.given_up());
    }

    #[tokio::test]
    async fn a_gateway_is_asked_at_most_every_other_second() {
        let attendance = Attendance::new(Duration::from_secs(60));
        attendance.check("", async { Ok(json!({"status": true})) }).await.unwrap();
        attendance.check("", async { panic!("asked again") }).await.unwrap();
    }

    #[test]
    fn only_what_is_said_counts() {
        assert_eq!(trouble(&json!({"status": true})), Some(None));
        assert_eq!(trouble(&json!({"status": false, "scan_workers": 2})), Some(None), "something else is ill");
        assert!(trouble(&json!({"status": false})).unwrap().unwrap().contains("not ready"));
        assert_eq!(trouble(&json!({"err": "no such page"})), None);
    }
}
