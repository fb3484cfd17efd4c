//! Notices that files which an engine was made from have changed, and has it made anew.
//!
//! Invariants: what is loaded stays in use until something newer is whole and sound. Loading happens on a thread of its
//! own. Files that change are given two seconds of rest before they are read, and what was refused is not tried again before
//! it changes. What was something and is nothing now is refused: a list that is being written and a mount that is away look
//! like that, and every file would pass. Whoever means it starts anew.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

/// How often files are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How many looks must have found a change the same before it is loaded.
const LOOKS_AT_REST: u32 = 4;
/// After so many changes without such a rest it is told that they keep the files from being loaded.
const RESTLESS_MAX: u32 = 60;
/// Most files below all paths of an engine: more is a wrong path.
const FILES_MAX: usize = 200_000;
/// How deep folders may be nested.
const DEPTH_MAX: usize = 32;

/// A file that was found, and what shows that it was changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// What it is called: its path below the folder that was given, or its name.
    pub name: String,
    length: u64,
    modified_ns: i128,
    inode: u64,
}

impl Found {
    /// The file at a path; none if there is none.
    pub fn at(path: &Path) -> Option<Self> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some(Self::new(path, name, &metadata))
    }

    fn new(path: &Path, name: String, metadata: &fs::Metadata) -> Self {
        let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified_ns = since.and_then(|since| i128::try_from(since.as_nanos()).ok()).unwrap_or_default();
        Self { path: path.to_owned(), name, length: metadata.len(), modified_ns, inode: metadata.ino() }
    }

    /// When it was last written, in Unix milliseconds.
    pub fn modified_ms(&self) -> u64 {
        u64::try_from(self.modified_ns / 1_000_000).unwrap_or_default()
    }
}

/// What kept files from being loaded, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

impl LoadError {
    /// What could not be done, to what, and why.
    pub fn of(action: &str, path: &Path, reason: impl std::fmt::Display) -> Self {
        let line = format!("cannot {action} {}: {reason}", path.display());
        Self(line.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// All files at these paths: the paths themselves, or what lies below them if they are folders. Hidden ones are left out.
pub fn list(paths: &[PathBuf]) -> Result<Vec<Found>, LoadError> {
    let mut found = Vec::new();
    for path in paths {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        walk(path, name, true, 0, &mut found)?;
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn walk(path: &Path, name: String, given: bool, depth: usize, found: &mut Vec<Found>) -> Result<(), LoadError> {
    let metadata = fs::metadata(path).map_err(|error| LoadError::of("read", path, error))?;
    if metadata.is_file() {
        if found.len() >= FILES_MAX {
            return Err(LoadError(format!("there are more than {FILES_MAX} files")));
        }
        found.push(Found::new(path, name, &metadata));
        return Ok(());
    }
    if !metadata.is_dir() || depth > DEPTH_MAX {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(|error| LoadError::of("read", path, error))? {
        let entry = entry.map_err(|error| LoadError::of("read", path, error))?;
        let below = entry.file_name().to_string_lossy().into_owned();
        if below.starts_with('.') {
            continue;
        }
        let name = if given { below } else { format!("{name}/{below}") };
        walk(&entry.path(), name, false, depth + 1, found)?;
    }
    Ok(())
}

/// Something made from files.
pub trait Reloadable: Send + Sync + 'static {
    /// The files it is to be made from, as they are now.
    fn files(&self) -> Result<Vec<Found>, LoadError>;

    /// Makes it anew from these files and puts that in use, or leaves everything as it is.
    fn load(&self, files: &[Found]) -> Result<(), LoadError>;

    /// The paths that the files are at or below, as they were given.
    fn paths(&self) -> Vec<PathBuf>;

    /// What it is called in logs.
    fn what(&self) -> String;

    /// Where it is noted that newer files were refused.
    fn trouble(&self) -> &Trouble;
}

/// What is wrong with an engine, if anything is.
#[derive(Debug, Default)]
pub struct Trouble(Mutex<Option<String>>);

impl Trouble {
    /// What is wrong.
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what is wrong, or that nothing is.
    pub fn set(&self, trouble: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// Watches the files of something that was made from `files`, for as long as it exists.
pub fn watch<T: Reloadable>(watched: Weak<T>, files: Vec<Found>) -> std::io::Result<()> {
    let body = move || {
        let (mut in_use, mut tried, mut before) = (files.clone(), files.clone(), files);
        let (mut looks, mut changes, mut is_sound) = (0, 0, true);
        loop {
            thread::sleep(POLL_INTERVAL);
            let Some(engine) = watched.upgrade() else { return };
            match engine.files() {
                Ok(now) if now == tried => {
                    (looks, changes) = (0, 0);
                    if is_sound {
                        // What could not be read for a while is back as it was.
                        engine.trouble().set(None);
                    }
                }
                Ok(now) if now == before => {
                    looks += 1;
                    if looks >= LOOKS_AT_REST {
                        is_sound = reload(&*engine, &in_use, &now);
                        if is_sound {
                            in_use.clone_from(&now);
                        }
                        (tried, looks, changes) = (now, 0, 0);
                    }
                }
                Ok(now) => {
                    (before, looks) = (now, 0);
                    changes += 1;
                    if changes >= RESTLESS_MAX {
                        refuse(&*engine, &LoadError("they change again and again and are never at rest".into()));
                        changes = 0;
                    }
                }
                Err(error) => refuse(&*engine, &error),
            }
        }
    };
    thread::Builder::new().name("lazaret-reload".into()).spawn(body).map(drop)
}

/// Whether the files are in use now.
fn reload<T: Reloadable>(engine: &T, in_use: &[Found], files: &[Found]) -> bool {
    let what = engine.what();
    match nothing_lost(&engine.paths(), in_use, files).and_then(|()| engine.load(files)) {
        Ok(()) => {
            engine.trouble().set(None);
            tracing::info!(engine = what, files = files.len(), "engine reloaded");
            true
        }
        Err(error) => {
            refuse(engine, &error);
            false
        }
    }
}

/// An error if a file was something and is empty, or there were files at or below a path and there are none.
fn nothing_lost(paths: &[PathBuf], in_use: &[Found], files: &[Found]) -> Result<(), LoadError> {
    let among = |files: &[Found], path: &Path| files.iter().any(|found| found.path.starts_with(path));
    if let Some(path) = paths.iter().find(|path| among(in_use, path) && !among(files, path)) {
        return Err(LoadError::of("take", path, "there are no files any more"));
    }
    let lengths: HashMap<&Path, u64> = in_use.iter().map(|found| (found.path.as_path(), found.length)).collect();
    let was_something = |found: &Found| lengths.get(found.path.as_path()).is_some_and(|length| *length > 0);
    match files.iter().find(|found| found.length == 0 && was_something(found)) {
        Some(found) => Err(LoadError::of("take", &found.path, "it is empty now")),
        None => Ok(()),
    }
}

/// What is refused of files that hold nothing, in the place of some that did.
pub fn nothing_left(what: &str) -> LoadError {
    LoadError(format!("there are no {what} any more; if that is meant, start the worker anew"))
}

fn refuse<T: Reloadable>(engine: &T, error: &LoadError) {
    let trouble = format!("newer files were refused, the former stay in use: {error}");
    if engine.trouble().get().as_ref() != Some(&trouble) {
        tracing::error!(engine = engine.what(), %error, "newer files were refused, the former stay in use");
        engine.trouble().set(Some(trouble));
    }
}
