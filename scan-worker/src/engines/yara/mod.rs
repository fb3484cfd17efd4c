//! The operator's own YARA rules.
//!
//! - Rules are compiled on the thread that watches their files, then swapped in. A set that does not compile is refused and
//!   the former one stays.
//!   What compiling took is given back to the operating system once nobody uses the former set.
//! - With a sandbox files are matched there, and the rules are nowhere else. Without one they are scanned by threads of the
//!   engine's own, as many as may scan at once. Each keeps a scanner, which is much dearer to make than a small file is to scan;
//!   it gives up the scanner of a former set as soon as there is a new one, so that the former set's memory comes back at once.
//! - A file that is not in memory is cut into overlapping pieces. Rules that may be judged by pieces (`windows`) are; if there
//!   are others, a file in which nothing was found is Not Scanned, never clean.

mod compile;
mod includes;
mod windows;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_analysis::rule::extension_of;
use lazaret_analysis::{FileInfo, ResultCode, YaraHit};
use lazaret_sandbox::CONTENT_BYTES_MAX;
use serde_json::Value;
use yara_x::{MetaValue, ScanError, Scanner};

use self::compile::{Compiled, Form, Sources};
use super::reload::{self, Found, LoadError, Reloadable, Trouble};
use crate::confined::{About, RuleSets, matches};
use crate::engine::{Engine, EngineInfo, EngineVerdict, ScanContext, Subject, base_name};

/// The engine's id.
pub const ENGINE_ID: &str = "yara";
/// The engine's name, as clients see it and rules use it.
pub const ENGINE_NAME: &str = "YARA";
/// The version of yara-x, as Cargo.lock has it: its crate doesn't tell.
const YARA_X_VERSION: &str = "1.22";

/// How much of a long file is scanned at once.
const WINDOW_BYTES: u64 = CONTENT_BYTES_MAX;
/// Most rules that are named for one file. A file that more match is known well enough.
pub(crate) const HITS_MAX: usize = 100;
/// Most of what a rule's author wrote that is kept with a hit.
const META_MAX: usize = 32;
/// Most of its tags.
const TAGS_MAX: usize = 32;
/// The longest text of that.
const META_TEXT_CHARS_MAX: usize = 1024;
/// How many rules are named in the engine's own entry.
const NAMES_SHOWN: usize = 3;
/// The longest that a file waits for a thread of the engine. Threads come free at least every `timeout`.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// How much longer than its timeout a scan may take: yara-x looks at the clock now and then.
const GRACE: Duration = Duration::from_secs(2);

/// By how many sets a long file is scanned that change meanwhile.
const SETS_MAX: usize = 4;

/// How often it is looked whether a former set is still in use, before its memory is given back.
const LET_GO_INTERVAL: Duration = Duration::from_millis(20);

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct YaraOptions {
    /// Rule files, and folders that are searched for `*.yar`, `*.yara`, `*.rule` and `*.rules`.
    pub rules: Vec<PathBuf>,
    /// How long a file may take. yara-x counts whole seconds.
    pub timeout: Duration,
    /// How many files are scanned at once.
    pub concurrency: usize,
}

/// The operator's YARA rules.
pub struct YaraEngine {
    shared: Arc<Shared>,
}

struct Shared {
    options: YaraOptions,
    loaded: RwLock<Arc<Compiled>>,
    /// Counts the sets that were in use, so that a thread notices a new one without taking a lock.
    generation: AtomicU64,
    queue: Mutex<Queue>,
    work: Condvar,
    trouble: Trouble,
    /// Where files were looked for that the rules include, those that were refused last too.
    included: Mutex<BTreeSet<PathBuf>>,
    /// The sandboxes that the rules are in. Locked while they change.
    confined: Mutex<Vec<Arc<RuleSets>>>,
}

#[derive(Default)]
struct Queue {
    /// No longer than there are scan threads: each waits for its job.
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Job {
    content: Bytes,
    externals: [String; 4],
    /// Only rules that may be judged by pieces count.
    piece: bool,
    limit: Duration,
    reply: SyncSender<Reply>,
}

enum Reply {
    /// A thread has begun with it.
    Begun,
    Done(Result<Vec<YaraHit>, String>),
}

impl YaraEngine {
    /// Compiles the rules and starts the engine's threads. Takes as long as compiling takes.
    pub fn start(options: YaraOptions) -> Result<Self, LoadError> {
        let files = reload::list(&options.rules)?;
        let sources = Sources::read(&files, &options.rules)?;
        let compiled = compile::compile(&sources, &options.rules)?;
        if compiled.count == 0 {
            tracing::warn!(engine = ENGINE_NAME, "there is no rule in its files");
        }
        let files = with(files.clone(), sources.includes.found);
        let shared = Arc::new(Shared {
            loaded: RwLock::new(Arc::new(compiled)),
            generation: AtomicU64::new(0),
            queue: Mutex::default(),
            work: Condvar::new(),
            trouble: Trouble::default(),
            included: Mutex::new(sources.includes.places),
            confined: Mutex::default(),
            options,
        });
        let failed = |error: std::io::Error| LoadError(format!("cannot start a thread: {error}"));
        // Made before the threads: it closes the queue if one of them can't be started.
        let engine = Self { shared: shared.clone() };
        for _ in 0..shared.options.concurrency.max(1) {
            let shared = shared.clone();
            thread::Builder::new().name("lazaret-yara".into()).spawn(move || shared.serve()).map_err(failed)?;
        }
        reload::watch(Arc::downgrade(&shared), files).map_err(failed)?;
        Ok(engine)
    }

    /// How many rules are in use.
    pub fn rule_count(&self) -> usize {
        self.shared.loaded().count
    }

    /// Scans a file that is not in memory.
    fn scan_pieces(&self, loaded: &Compiled, subject: &Subject<'_>, context: &ScanContext) -> EngineVerdict {
        if loaded.by_pieces.is_empty() {
            return EngineVerdict::not_scanned("the file is too long for these rules, which need it whole");
        }
        let mut waited = Duration::ZERO;
        for window in subject.sample.windows(WINDOW_BYTES, windows::OVERLAP_BYTES) {
            let window = match window {
                Ok(window) => window,
                Err(error) => return EngineVerdict::failed(error.to_string()),
            };
            let answer = self.scan_bytes(subject, window.bytes, true, context);
            waited += answer.waited;
            match answer.result {
                Ok(hits) if hits.is_empty() => {}
                decided => return verdict(decided, waited),
            }
        }
        if loaded.by_pieces.len() < loaded.count {
            return EngineVerdict::not_scanned("the file is too long for some of the rules, which need it whole");
        }
        verdict(Ok(Vec::new()), waited)
    }

    fn scan_bytes(&self, subject: &Subject<'_>, content: Bytes, piece: bool, context: &ScanContext) -> Answer {
        let limit = context.limit.min(self.shared.options.timeout);
        if let Some(confined) = subject.confined {
            let values = externals(subject.file);
            let externals: Vec<_> = named(&values).collect();
            let about = if piece { About::Piece(&content) } else { About::File };
            let result = matches(confined, ENGINE_ID, &externals, about, limit.max(Duration::from_secs(1)));
            return Answer { result, waited: Duration::ZERO };
        }
        let (reply, replies) = sync_channel(2);
        let queued = Instant::now();
        let job = Job { content, externals: externals(subject.file), piece, limit, reply };
        self.shared.lock().jobs.push_back(job);
        self.shared.work.notify_one();
        let begun = replies.recv_timeout(WAIT_MAX);
        let waited = queued.elapsed();
        let result = match begun {
            Ok(Reply::Done(result)) => result,
            Ok(Reply::Begun) => match replies.recv_timeout(limit.max(Duration::from_secs(1)) + GRACE) {
                Ok(Reply::Done(result)) => result,
                Ok(Reply::Begun) | Err(RecvTimeoutError::Disconnected) => {
                    Err("the scan ended without an answer".into())
                }
                Err(RecvTimeoutError::Timeout) => Err("the scan took longer than it may".into()),
            },
            Err(_) => Err("no thread of the engine came free".into()),
        };
        Answer { result, waited }
    }
}

struct Answer {
    result: Result<Vec<YaraHit>, String>,
    waited: Duration,
}

impl Drop for YaraEngine {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl Engine for YaraEngine {
    fn info(&self) -> EngineInfo {
        let loaded = self.shared.loaded();
        EngineInfo {
            id: ENGINE_ID.into(),
            name: ENGINE_NAME.into(),
            version: YARA_X_VERSION.into(),
            kind: "yara".into(),
            database_version: loaded.version.clone(),
            def_time_ms: loaded.time_ms,
            trouble: self.shared.trouble.get().unwrap_or_default(),
        }
    }

    fn confine(&self, rule_sets: &Arc<RuleSets>) -> Result<(), LoadError> {
        let mut confined = self.shared.confined.lock().unwrap_or_else(PoisonError::into_inner);
        let sealed = self.shared.loaded().sealed(ENGINE_ID)?;
        if let Form::Sealed(database) = &sealed.form {
            rule_sets.put(ENGINE_ID, database)?;
        }
        confined.push(rule_sets.clone());
        self.shared.take_up(sealed);
        Ok(())
    }

    fn scan(&self, subject: &Subject<'_>, context: &ScanContext) -> EngineVerdict {
        if let Some(content) = subject.sample.bytes() {
            let answer = self.scan_bytes(subject, content.clone(), false, context);
            return verdict(answer.result, answer.waited);
        }
        for _ in 0..SETS_MAX {
            let loaded = self.shared.loaded();
            let verdict = self.scan_pieces(&loaded, subject, context);
            // Which rules could judge it whole was asked of this set; the pieces may have been judged by another one.
            if self.shared.loaded().version == loaded.version {
                return verdict;
            }
        }
        EngineVerdict::failed("the rules changed again and again while the file was scanned")
    }
}

fn verdict(result: Result<Vec<YaraHit>, String>, waited: Duration) -> EngineVerdict {
    let verdict = match result {
        Err(reason) => EngineVerdict::failed(reason),
        Ok(hits) if hits.is_empty() => EngineVerdict::clean(),
        Ok(hits) => {
            let names: Vec<&str> = hits.iter().take(NAMES_SHOWN).map(|hit| hit.rule.as_str()).collect();
            let more = hits.len() - names.len();
            let threat = if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") };
            EngineVerdict { hits, ..EngineVerdict::new(ResultCode::YARA_MATCHED, threat) }
        }
    };
    EngineVerdict { wait_ms: waited.as_millis() as u64, ..verdict }
}

/// What rules may ask of the file by name, in the order of [`compile::EXTERNALS`].
fn externals(file: &FileInfo) -> [String; 4] {
    // Without the folders before it: a verdict is found again by this name, wherever the file lies.
    let name = base_name(&file.display_name);
    [
        name.to_owned(),
        name.to_owned(),
        extension_of(name).map(|extension| format!(".{extension}")).unwrap_or_default(),
        file.file_type.clone(),
    ]
}

/// Rule files and what they include, in order.
fn with(mut files: Vec<Found>, included: Vec<Found>) -> Vec<Found> {
    files.extend(included);
    files.sort();
    files.dedup();
    files
}

impl Reloadable for Shared {
    fn files(&self) -> Result<Vec<Found>, LoadError> {
        let places = self.included.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let included = places.iter().filter_map(|place| Found::at(place)).collect();
        Ok(with(reload::list(&self.options.rules)?, included))
    }

    /// The rule files are listed once more, since what they include is no rule file by itself.
    fn load(&self, _: &[Found]) -> Result<(), LoadError> {
        let files = reload::list(&self.options.rules)?;
        let sources = Sources::read(&files, &self.options.rules)?;
        // Also if they are refused, for what is wrong may be in there. Others than before are loaded once more for it.
        self.included.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&sources.includes.places);
        let mut compiled = compile::compile(&sources, &self.options.rules)?;
        if compiled.count == 0 && self.loaded().count > 0 {
            return Err(reload::nothing_left("rules"));
        }
        let confined = self.confined.lock().unwrap_or_else(PoisonError::into_inner);
        if !confined.is_empty() {
            compiled = compiled.sealed(ENGINE_ID)?;
        }
        if let Form::Sealed(database) = &compiled.form {
            // Before the new version shows: what is asked afterwards is never judged by the former set.
            confined.iter().try_for_each(|rule_sets| rule_sets.put(ENGINE_ID, database))?;
        }
        self.take_up(compiled);
        Ok(())
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.options.rules.clone()
    }

    fn what(&self) -> String {
        ENGINE_NAME.into()
    }

    fn trouble(&self) -> &Trouble {
        &self.trouble
    }
}

impl Shared {
    fn loaded(&self) -> Arc<Compiled> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges by this set from now on.
    fn take_up(&self, compiled: Compiled) {
        let former = {
            // Under the queue's lock: what is queued once the new set shows is never judged by the former.
            let _queue = self.lock();
            self.generation.fetch_add(1, Ordering::Release);
            std::mem::replace(&mut *self.loaded.write().unwrap_or_else(PoisonError::into_inner), Arc::new(compiled))
        };
        // Those that wait let go of the former set at once, the others after the file that they have.
        self.work.notify_all();
        let deadline = Instant::now() + self.options.timeout + GRACE;
        while Arc::strong_count(&former) > 1 && Instant::now() < deadline {
            thread::sleep(LET_GO_INTERVAL);
        }
        drop(former);
    }

    /// What each thread of the engine does.
    fn serve(&self) {
        while !self.lock().closed {
            // Before the set: a newer one than this says is only noticed too often.
            let generation = self.generation.load(Ordering::Acquire);
            let compiled = self.loaded();
            let served = catch_unwind(AssertUnwindSafe(|| self.serve_set(&compiled, generation)));
            if served.is_err() {
                tracing::error!("a YARA scan panicked");
            }
        }
    }

    /// Scans with one set until there is a newer one.
    fn serve_set(&self, compiled: &Compiled, generation: u64) {
        let mut scanner = match &compiled.form {
            Form::Here(rules) => Some(Scanner::new(rules)),
            Form::Sealed(_) => None,
        };
        while let Some(job) = self.next(generation) {
            // Whoever waited may have given up.
            let _ = job.reply.send(Reply::Begun);
            let scanned = scanner.as_mut().map(|scanner| scan(scanner, compiled, &job));
            let result = scanned.unwrap_or_else(|| Err("its rules are in the sandbox alone".to_owned()));
            let _ = job.reply.send(Reply::Done(result));
        }
    }

    /// The next job, or none if there is a newer set or no more work will come.
    fn next(&self, generation: u64) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.closed || self.generation.load(Ordering::Acquire) != generation {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn scan(scanner: &mut Scanner<'_>, compiled: &Compiled, job: &Job) -> Result<Vec<YaraHit>, String> {
    scanner.set_timeout(job.limit.max(Duration::from_secs(1)));
    hits(scanner, named(&job.externals), &job.content, job.piece.then_some(&compiled.by_pieces))
}

/// What rules may ask of a file, with the names by which they do.
fn named(externals: &[String; 4]) -> impl Iterator<Item = (&str, &str)> {
    compile::EXTERNALS.into_iter().zip(externals.iter().map(String::as_str))
}

/// Which rules match a content, if what they may ask of it has these values: all, or those of a list.
pub(crate) fn hits<'e>(
    scanner: &mut Scanner<'_>,
    externals: impl IntoIterator<Item = (&'e str, &'e str)>,
    content: &[u8],
    only: Option<&HashSet<(String, String)>>,
) -> Result<Vec<YaraHit>, String> {
    for (name, value) in externals {
        scanner.set_global(name, value).map_err(|error| format!("cannot set {name}: {error}"))?;
    }
    let results = scanner.scan(content).map_err(|error| match error {
        ScanError::Timeout => "the scan took longer than it may".to_owned(),
        other => other.to_string(),
    })?;
    let counts = |rule: &yara_x::Rule<'_, '_>| {
        only.is_none_or(|only| only.contains(&(rule.namespace().to_owned(), rule.identifier().to_owned())))
    };
    Ok(results.matching_rules().filter(counts).take(HITS_MAX).map(|rule| hit(&rule)).collect())
}

fn hit(rule: &yara_x::Rule<'_, '_>) -> YaraHit {
    let text = |text: &str| text.chars().take(META_TEXT_CHARS_MAX).collect::<String>();
    let meta = rule.metadata().take(META_MAX).map(|(key, value)| {
        let value = match value {
            MetaValue::Integer(number) => Value::from(number),
            MetaValue::Float(number) if number.is_finite() => Value::from(number),
            // JSON has no other numbers.
            MetaValue::Float(number) => Value::from(number.to_string()),
            MetaValue::Bool(truth) => Value::from(truth),
            MetaValue::String(string) => Value::from(text(string)),
            MetaValue::Bytes(bytes) => Value::from(text(&String::from_utf8_lossy(bytes))),
        };
        (text(key), value)
    });
    YaraHit {
        rule: text(rule.identifier()),
        namespace: rule.namespace().to_owned(),
        tags: rule.tags().take(TAGS_MAX).map(|tag| text(tag.identifier())).collect(),
        meta: meta.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::sample::Sample;
    use crate::testing::{LazyBlob, wait_until};

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn start(folder: &Path) -> Result<YaraEngine, LoadError> {
        let timeout = Duration::from_secs(10);
        YaraEngine::start(YaraOptions { rules: vec![folder.to_owned()], timeout, concurrency: 2 })
    }

    fn context() -> ScanContext {
        ScanContext::within(Duration::from_secs(60))
    }

    fn scan(engine: &YaraEngine, name: &str, content: &str) -> EngineVerdict {
        let sample = Sample::memory(name, content.to_owned());
        let file = FileInfo { display_name: name.into(), file_type: "text/plain".into(), ..FileInfo::default() };
        let verdict = engine.scan(&Subject { sample: &sample, file: &file, confined: None }, &context());
        EngineVerdict { wait_ms: 0, ..verdict }
    }

    #[test]
    fn tells_the_rules_that_match_and_what_they_say_of_themselves() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            "team/a.yar",
            r#"
            rule finds_abc : first second {
                meta: description = "three letters" score = 75 sure = true
                strings: $a = "abc" condition: $a and filesize < 100
            }
            rule by_name { condition: filename == "x.doc" and filepath == filename and extension == ".doc" and filetype == "text/plain" }"#,
        );
        write(
            folder.path(),
            "b.yara",
            r#"include "parts/c.yar" private rule hidden { condition: true } rule finds_abc { condition: hidden and part }"#,
        );
        write(folder.path(), "parts/c.yar", r#"rule part { strings: $a = "def" condition: $a }"#);
        write(folder.path(), "notes.txt", "no rule");
        let engine = start(folder.path()).unwrap();
        assert_eq!(engine.rule_count(), 5);
        assert_eq!(scan(&engine, "f", "nothing"), EngineVerdict::clean());
        let verdict = scan(&engine, "f", "xx abc xx");
        assert_eq!(
            (verdict.code, verdict.threat.as_str(), verdict.hits.len()),
            (ResultCode::YARA_MATCHED, "finds_abc", 1)
        );
        let hit = &verdict.hits[0];
        assert_eq!(
            (hit.namespace.as_str(), &hit.tags[..]),
            ("team/a.yar", &["first".to_owned(), "second".to_owned()][..])
        );
        assert_eq!(
            serde_json::to_value(&hit.meta).unwrap(),
            serde_json::json!({"description": "three letters", "score": 75, "sure": true})
        );
        assert_eq!(scan(&engine, "in/x.doc", "").threat, "by_name");
        let both = scan(&engine, "f", "abc def");
        let found: Vec<_> = both.hits.iter().map(|hit| (hit.namespace.as_str(), hit.rule.as_str())).collect();
        assert_eq!(found, [("b.yara", "part"), ("b.yara", "finds_abc"), ("team/a.yar", "finds_abc")]);
    }

    #[test]
    fn broken_rules_stop_the_start_and_later_leave_those_of_before() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.yar", "rule a { strings: $a = \"abc\" condition: $b }");
        let error = start(folder.path()).err().unwrap().to_string();
        assert!(error.contains("a.yar") && error.contains("$b") && !error.contains('\n'), "{error}");

        write(folder.path(), "a.yar", "rule a { strings: $a = \"abc\" condition: $a }");
        let engine = start(folder.path()).unwrap();
        let before = engine.info();
        write(folder.path(), "b.yar", "rule b { strings: $a = \"def\" condition: }");
        wait_until("the refusal", || engine.trouble().is_some());
        assert_eq!(
            (scan(&engine, "f", "abc").code, scan(&engine, "f", "def").code.code()),
            (ResultCode::YARA_MATCHED, 0)
        );
        assert_eq!(EngineInfo { trouble: String::new(), ..engine.info() }, before);
        write(folder.path(), "b.yar", "rule b { strings: $a = \"def\" condition: $a }");
        wait_until("the new rules", || scan(&engine, "f", "def").threat == "b");
        wait_until("recovery", || engine.trouble().is_none());
        assert_ne!(engine.info().database_version, before.database_version);
        fs::remove_file(folder.path().join("a.yar")).unwrap();
        wait_until("one rule less", || scan(&engine, "f", "abc").code == ResultCode::NO_THREAT);
    }

    #[test]
    fn rules_that_are_gone_stay_in_use() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.yar", "rule a { strings: $a = \"abc\" condition: $a }");
        let engine = start(folder.path()).unwrap();
        let away = tempfile::tempdir().unwrap();
        for emptied in [false, true] {
            fs::copy(folder.path().join("a.yar"), away.path().join("a.yar")).unwrap();
            match emptied {
                true => write(folder.path(), "a.yar", "// nothing yet"),
                false => fs::remove_file(folder.path().join("a.yar")).unwrap(),
            }
            wait_until("the refusal", || engine.trouble().is_some());
            assert_eq!((engine.rule_count(), scan(&engine, "f", "abc").code), (1, ResultCode::YARA_MATCHED));
            fs::copy(away.path().join("a.yar"), folder.path().join("a.yar")).unwrap();
            wait_until("recovery", || engine.trouble().is_none());
        }
    }

    #[test]
    fn what_rules_include_is_followed_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "index.yar", "include \"parts/a.yar\"");
        write(folder.path(), "parts/a.yar", "include \"deep/b.inc\" rule a { strings: $a = \"abc\" condition: $a }");
        write(folder.path(), "parts/deep/b.inc", "rule b { strings: $a = \"def\" condition: $a }");
        let engine = start(&folder.path().join("index.yar")).unwrap();
        let before = engine.info().database_version;
        write(folder.path(), "parts/a.yar", "include \"deep/b.inc\" rule a { strings: $a = \"new\" condition: $a }");
        wait_until("the new file", || scan(&engine, "f", "new").threat == "a");
        let between = engine.info().database_version;
        assert_ne!(between, before);
        write(folder.path(), "parts/deep/b.inc", "include \"c.inc\"");
        wait_until("the refusal", || engine.trouble().is_some());
        assert_eq!(scan(&engine, "f", "def").threat, "b");
        // What was missing comes.
        write(folder.path(), "parts/deep/c.inc", "rule c { strings: $a = \"ghi\" condition: $a }");
        wait_until("the missing file", || scan(&engine, "f", "ghi").threat == "c");
        assert_ne!(engine.info().database_version, between);
        wait_until("recovery", || engine.trouble().is_none());
        // Another start reads the same version.
        wait_until("the same version", || {
            start(&folder.path().join("index.yar")).unwrap().info().database_version == engine.info().database_version
        });
    }

    #[test]
    fn a_long_file_is_judged_by_the_rules_that_piece_by_piece_allows() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.yar", "rule short { strings: $a = \"needle in a haystack\" condition: $a }");
        let engine = start(folder.path()).unwrap();
        let judge = |engine: &YaraEngine, offset, planted: &str| {
            let sample = LazyBlob::sample(2 * WINDOW_BYTES, offset, planted.as_bytes());
            crate::testing::judge(engine, &sample, &context()).code.code()
        };
        assert_eq!(judge(&engine, WINDOW_BYTES - 5, "needle in a haystack"), 21);
        assert_eq!(judge(&engine, 0, "nothing"), 0);
        drop(engine);
        write(folder.path(), "b.yar", "rule whole { condition: filesize > 4 and uint8(0) == 1 }");
        let engine = start(folder.path()).unwrap();
        assert_eq!(judge(&engine, 2 * WINDOW_BYTES - 20, "needle in a haystack"), 21);
        // The other rule asked for the whole file: nothing that it said of a piece counts, and nothing is called clean.
        assert_eq!(judge(&engine, 0, "\x01"), 10);
    }

    #[test]
    fn a_scan_that_takes_too_long_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            "slow.yar",
            "rule slow { condition: for all i in (0..filesize * 100000) : (uint8(i % 7) + i != 1 ) }",
        );
        let engine = start(folder.path()).unwrap();
        let sample = Sample::memory("f", vec![b'x'; 1 << 20]);
        let began = Instant::now();
        let context = ScanContext::within(Duration::from_secs(1));
        let verdict = crate::testing::judge(&engine, &sample, &context);
        assert_eq!(verdict.code, ResultCode::SCAN_FAILED, "{verdict:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
