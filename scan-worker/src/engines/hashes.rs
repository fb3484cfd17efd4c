//! Lists of digests of known files: known bad (38) and known good (39).
//!
//! A list is read from texts in which every field that looks like an MD5, SHA-1, SHA-256 or SHA-512 counts, whatever stands
//! beside it: plain lists, and the comma-separated exports of MalwareBazaar, NSRL and others. In memory it is four sorted
//! arrays of fixed width, 16, 20, 32 or 64 bytes a digest and nothing besides; a look-up is a binary search. Lines in which
//! nothing could be read are counted and told: whoever wrote them means them to count.
//!
//! A file on none of its lists was not judged by this engine: Not Scanned, never clean. If a line of a list knows its file by
//! digests alone that are not taken, no file can be said not to be on it: Scan Failed.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use lazaret_analysis::{FileInfo, ResultCode};

use super::reload::{self, Found, LoadError, Reloadable, Trouble};
use crate::engine::{Engine, EngineInfo, EngineVerdict, ScanContext, Subject};

/// The longest line that is read of a list: no export has longer ones.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// How many first digests of the sorted array are told apart without a search: one entry for each leading 16 bits.
const PREFIXES: usize = 1 << 16;

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct HashListOptions {
    /// What it is called, for clients and rules.
    pub name: String,
    /// Files with digests of known malware, or folders of such files.
    pub bad: Vec<PathBuf>,
    /// Files with digests of what is known to be harmless, or folders of such files.
    pub good: Vec<PathBuf>,
}

/// Digests of one kind, sorted.
struct Sorted<const N: usize> {
    digests: Vec<[u8; N]>,
    /// Where digests begin whose first two bytes are at least the index.
    starts: Vec<u32>,
}

impl<const N: usize> Sorted<N> {
    fn new(mut digests: Vec<[u8; N]>) -> Self {
        digests.sort_unstable();
        digests.dedup();
        digests.shrink_to_fit();
        let mut starts = Vec::new();
        if !digests.is_empty() {
            starts.reserve_exact(PREFIXES + 1);
            let mut at = 0;
            for prefix in 0..PREFIXES {
                while digests.get(at).is_some_and(|digest| prefix_of(digest) < prefix) {
                    at += 1;
                }
                // A list has fewer entries than 2^32: `Reading::add` sees to it.
                starts.push(u32::try_from(at).unwrap_or(u32::MAX));
            }
            starts.push(u32::try_from(digests.len()).unwrap_or(u32::MAX));
        }
        Self { digests, starts }
    }

    fn contains(&self, hex: &str) -> bool {
        let Some(digest) = parse::<N>(hex.as_bytes()) else { return false };
        let prefix = prefix_of(&digest);
        let (Some(from), Some(to)) = (self.starts.get(prefix), self.starts.get(prefix + 1)) else { return false };
        let part = self.digests.get(*from as usize..*to as usize).unwrap_or_default();
        part.binary_search(&digest).is_ok()
    }
}

fn prefix_of(digest: &[u8]) -> usize {
    match digest {
        [first, second, ..] => usize::from(*first) << 8 | usize::from(*second),
        _ => 0,
    }
}

/// Reads `N` bytes of hexadecimal; none if the text is anything else.
fn parse<const N: usize>(hex: &[u8]) -> Option<[u8; N]> {
    if hex.len() != N * 2 {
        return None;
    }
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut digest = [0; N];
    for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(digest)
}

/// One list.
struct List {
    md5: Sorted<16>,
    sha1: Sorted<20>,
    sha256: Sorted<32>,
    sha512: Sorted<64>,
    lines: Kinds,
}

/// By which kinds of digests lines know their files: a bit for each combination.
#[derive(Clone, Copy, Default)]
struct Kinds(u16);

impl Kinds {
    const NAMES: [&str; 4] = ["MD5", "SHA-1", "SHA-256", "SHA-512"];

    /// Notes a line with these kinds.
    fn add(&mut self, kinds: [bool; 4]) {
        if kinds.contains(&true) {
            self.0 |= 1 << Self::combination(kinds);
        }
    }

    /// A kind by which some line alone knows its file, if none of that line's kinds was taken.
    fn unknown(self, taken: [bool; 4]) -> Option<&'static str> {
        let taken = Self::combination(taken);
        let unknown = (1..u16::BITS).find(|kinds| self.0 & (1 << kinds) != 0 && kinds & taken == 0)?;
        Self::NAMES.into_iter().enumerate().find_map(|(at, name)| (unknown & (1 << at) != 0).then_some(name))
    }

    fn combination(kinds: [bool; 4]) -> u32 {
        kinds.into_iter().enumerate().map(|(at, kind)| u32::from(kind) << at).sum()
    }
}

/// A list that is being read.
#[derive(Default)]
struct Reading {
    md5: Vec<[u8; 16]>,
    sha1: Vec<[u8; 20]>,
    sha256: Vec<[u8; 32]>,
    sha512: Vec<[u8; 64]>,
    lines: Kinds,
    /// Whether `_` ends a field. Where a digest condemns, one that is part of a name counts; where it clears, it does not.
    in_names: bool,
}

/// Lines in which nothing could be read.
#[derive(Default)]
struct Unread {
    count: u64,
    /// Where the first one is.
    first: Option<(PathBuf, u64)>,
}

impl Unread {
    fn add(&mut self, found: &Found, number: u64) {
        self.count += 1;
        self.first.get_or_insert_with(|| (found.path.clone(), number));
    }

    /// What is to be told of them, if there are any.
    fn told(&self) -> Option<String> {
        let (path, number) = self.first.as_ref()?;
        let Self { count, .. } = self;
        Some(format!(
            "lines that name no digest which can be read: {count}, the first is line {number} of {}",
            path.display()
        ))
    }
}

impl Reading {
    fn add(&mut self, field: &[u8]) -> Result<bool, LoadError> {
        fn push<const N: usize>(digests: &mut Vec<[u8; N]>, field: &[u8]) -> Result<bool, LoadError> {
            let Some(digest) = parse::<N>(field) else { return Ok(false) };
            if digests.len() >= u32::MAX as usize {
                return Err(LoadError("a hash list has more than 4 billion digests".into()));
            }
            digests.push(digest);
            Ok(true)
        }
        match field.len() {
            32 => push(&mut self.md5, field),
            40 => push(&mut self.sha1, field),
            64 => push(&mut self.sha256, field),
            128 => push(&mut self.sha512, field),
            _ => Ok(false),
        }
    }

    fn read(&mut self, found: &Found, unread: &mut Unread) -> Result<(), LoadError> {
        let failed = |error: std::io::Error| LoadError::of("read", &found.path, error);
        let mut reader = BufReader::with_capacity(1 << 20, File::open(&found.path).map_err(failed)?);
        let (mut line, mut number, mut content_lines, mut any) = (Vec::new(), 0_u64, 0_u64, false);
        loop {
            line.clear();
            number += 1;
            let read = std::io::Read::take(&mut reader, LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?;
            if read == 0 {
                break;
            }
            if read as u64 == LINE_BYTES_MAX {
                return Err(LoadError::of("read", &found.path, format!("line {number} is too long for a hash list")));
            }
            // Some systems end lines with a carriage return alone.
            for line in line.split(|byte| *byte == b'\r') {
                let line = line.trim_ascii();
                if line.is_empty() || line.first() == Some(&b'#') {
                    continue;
                }
                content_lines += 1;
                let kinds = self.read_line(line)?;
                any |= kinds.contains(&true);
                // The first may be the names of the fields.
                if !kinds.contains(&true) && content_lines > 1 {
                    unread.add(found, number);
                }
            }
        }
        // An empty list is one; a file of something else is a mistake.
        if !any && content_lines > 0 {
            return Err(LoadError::of("read", &found.path, "no field of it is an MD5, SHA-1, SHA-256 or SHA-512"));
        }
        Ok(())
    }

    /// Takes the digests of a line. Returns which kinds there are.
    fn read_line(&mut self, line: &[u8]) -> Result<[bool; 4], LoadError> {
        let (mut kinds, in_names) = ([false; 4], self.in_names);
        for field in line.split(|byte| !byte.is_ascii_alphanumeric() && (in_names || *byte != b'_')) {
            if self.add(field)? {
                for (kind, digits) in kinds.iter_mut().zip([32, 40, 64, 128]) {
                    *kind |= field.len() == digits;
                }
            }
        }
        self.lines.add(kinds);
        Ok(kinds)
    }

    fn finish(self) -> List {
        let Self { md5, sha1, sha256, sha512, lines, .. } = self;
        List {
            md5: Sorted::new(md5),
            sha1: Sorted::new(sha1),
            sha256: Sorted::new(sha256),
            sha512: Sorted::new(sha512),
            lines,
        }
    }
}

impl List {
    fn read(files: &[Found], in_names: bool, unread: &mut Unread) -> Result<Self, LoadError> {
        let mut reading = Reading { in_names, ..Reading::default() };
        for found in files {
            reading.read(found, unread)?;
        }
        Ok(reading.finish())
    }

    fn count(&self) -> usize {
        self.md5.digests.len() + self.sha1.digests.len() + self.sha256.digests.len() + self.sha512.digests.len()
    }

    /// Whether a file is on it. An error if it is not found and the list knows some file by a kind of digest only that was not
    /// taken of this one.
    fn has(&self, file: &FileInfo) -> Result<bool, &'static str> {
        let found = self.sha256.contains(&file.sha256)
            || self.sha1.contains(&file.sha1)
            || self.md5.contains(&file.md5)
            || self.sha512.contains(&file.sha512);
        match self.lines.unknown(file.digests_taken()) {
            Some(kind) if !found => Err(kind),
            _ => Ok(found),
        }
    }
}

struct Lists {
    bad: List,
    good: List,
    version: String,
    time_ms: u64,
    /// What is to be told of lines that could not be read.
    unread: Option<String>,
}

/// Known files, by digest.
pub struct HashListEngine {
    shared: Arc<Shared>,
}

struct Shared {
    options: HashListOptions,
    lists: RwLock<Arc<Lists>>,
    trouble: Trouble,
}

impl HashListEngine {
    /// Reads the lists and begins to watch their files.
    pub fn start(options: HashListOptions) -> Result<Self, LoadError> {
        let files = files(&options)?;
        let lists = read(&options, &files)?;
        if lists.bad.count() + lists.good.count() == 0 {
            tracing::warn!(engine = options.name, "there is no digest in its lists");
        }
        let shared = Arc::new(Shared { lists: RwLock::new(Arc::new(lists)), trouble: Trouble::default(), options });
        reload::watch(Arc::downgrade(&shared), files)
            .map_err(|error| LoadError(format!("cannot start a thread: {error}")))?;
        Ok(Self { shared })
    }

    /// How many digests are known: bad and good.
    pub fn counts(&self) -> (usize, usize) {
        let lists = self.shared.lists();
        (lists.bad.count(), lists.good.count())
    }
}

fn files(options: &HashListOptions) -> Result<Vec<Found>, LoadError> {
    let mut files = reload::list(&options.bad)?;
    files.extend(reload::list(&options.good)?);
    Ok(files)
}

/// Reads all files anew. They are listed once more, since which list they are on is told by where they lie.
fn read(options: &HashListOptions, files: &[Found]) -> Result<Lists, LoadError> {
    let mut unread = Unread::default();
    let bad = List::read(&reload::list(&options.bad)?, true, &mut unread)?;
    let good = List::read(&reload::list(&options.good)?, false, &mut unread)?;
    let unread = unread.told();
    if let Some(unread) = &unread {
        tracing::warn!(engine = options.name, "{unread}");
    }
    let mut digest = blake3::Hasher::new();
    for list in [&bad, &good] {
        digest.update(&(list.count() as u64).to_le_bytes());
        digest.update(&list.lines.0.to_le_bytes());
        digest.update(list.md5.digests.as_flattened());
        digest.update(list.sha1.digests.as_flattened());
        digest.update(list.sha256.digests.as_flattened());
        digest.update(list.sha512.digests.as_flattened());
    }
    let version = digest.finalize().to_hex().chars().take(16).collect();
    let time_ms = files.iter().map(Found::modified_ms).max().unwrap_or_default();
    Ok(Lists { bad, good, version, time_ms, unread })
}

impl Reloadable for Shared {
    fn files(&self) -> Result<Vec<Found>, LoadError> {
        files(&self.options)
    }

    fn load(&self, files: &[Found]) -> Result<(), LoadError> {
        let lists = Arc::new(read(&self.options, files)?);
        let former = self.lists();
        for (before, now) in [(&former.bad, &lists.bad), (&former.good, &lists.good)] {
            if before.count() > 0 && now.count() == 0 {
                return Err(reload::nothing_left("digests"));
            }
        }
        *self.lists.write().unwrap_or_else(PoisonError::into_inner) = lists;
        Ok(())
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.options.bad.iter().chain(&self.options.good).cloned().collect()
    }

    fn what(&self) -> String {
        self.options.name.clone()
    }

    fn trouble(&self) -> &Trouble {
        &self.trouble
    }
}

impl Shared {
    fn lists(&self) -> Arc<Lists> {
        self.lists.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Engine for HashListEngine {
    fn info(&self) -> EngineInfo {
        let lists = self.shared.lists();
        EngineInfo {
            id: format!("hashes-{}", self.shared.options.name),
            name: self.shared.options.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            kind: "hashes".into(),
            database_version: lists.version.clone(),
            def_time_ms: lists.time_ms,
            trouble: self.shared.trouble.get().or_else(|| lists.unread.clone()).unwrap_or_default(),
        }
    }

    fn needs_digests(&self) -> bool {
        true
    }

    fn scan(&self, subject: &Subject<'_>, _: &ScanContext) -> EngineVerdict {
        let lists = self.shared.lists();
        let without =
            |kind: &str| EngineVerdict::failed(format!("the list knows files by {kind} alone, which is not taken"));
        match lists.bad.has(subject.file) {
            Ok(true) => return EngineVerdict::new(ResultCode::KNOWN_BAD, "Known bad file"),
            Ok(false) => {}
            Err(kind) => return without(kind),
        }
        match lists.good.has(subject.file) {
            Ok(true) => EngineVerdict::new(ResultCode::KNOWN_GOOD, ""),
            Ok(false) => EngineVerdict::not_scanned(""),
            Err(kind) => without(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::sample::Sample;

    const MD5: &str = "44d88612fea8a8f36de82e1278abb02f";
    const SHA1: &str = "3395856ce81f2b7382dee72602f798b642f14140";
    const SHA256: &str = "275a021bbfb6489e54d471899f7db9d1663fc695ec2fe2a2c4538aabf651fd0f";

    fn engine(bad: &str, good: &str) -> Result<(HashListEngine, tempfile::TempDir), LoadError> {
        let folder = tempfile::tempdir().unwrap();
        let (bad_file, good_file) = (folder.path().join("bad.csv"), folder.path().join("good.txt"));
        fs::write(&bad_file, bad).unwrap();
        fs::write(&good_file, good).unwrap();
        let options = HashListOptions { name: "Known files".into(), bad: vec![bad_file], good: vec![good_file] };
        HashListEngine::start(options).map(|engine| (engine, folder))
    }

    fn scan(engine: &HashListEngine, md5: &str, sha1: &str, sha256: &str) -> EngineVerdict {
        let file = FileInfo { md5: md5.into(), sha1: sha1.into(), sha256: sha256.into(), ..FileInfo::default() };
        let sample = Sample::memory("file", "content");
        engine.scan(
            &Subject { sample: &sample, file: &file, confined: None },
            &ScanContext::within(Duration::from_secs(1)),
        )
    }

    #[test]
    fn finds_every_digest_of_exports_as_they_are_handed_out() {
        let bazaar = format!(
            "# MalwareBazaar full export\n\"2026-01-01 00:00:00\", \"{SHA256}\", \"{MD5}\", \"{SHA1}\", \"abuse\", \"a, b.exe\"\n"
        );
        let nsrl = "\"SHA-1\",\"MD5\",\"CRC32\",\"FileName\"\n\"0000004DA6391F7F5D2F7FCCF36CEBDA60C6EA02\",\"0E53C14A3E48D94FF596A2824307B492\",\"AA6A7B16\",\"00br2026.gif\"\n";
        let (engine, _folder) = engine(&bazaar, nsrl).unwrap();
        assert_eq!(engine.counts(), (3, 2));
        let (zero_md5, zero_sha1, zero_sha256) = ("0".repeat(32), "0".repeat(40), "0".repeat(64));
        for (md5, sha1, sha256) in [
            (MD5, zero_sha1.as_str(), zero_sha256.as_str()),
            (zero_md5.as_str(), SHA1, zero_sha256.as_str()),
            (zero_md5.as_str(), zero_sha1.as_str(), SHA256),
        ] {
            assert_eq!(scan(&engine, md5, sha1, sha256).code, ResultCode::KNOWN_BAD);
        }
        let good = scan(&engine, "0e53c14a3e48d94ff596a2824307b492", &zero_sha1, &zero_sha256);
        assert_eq!(good.code, ResultCode::KNOWN_GOOD);
        assert_eq!(scan(&engine, &zero_md5, &zero_sha1, &zero_sha256).code, ResultCode::NOT_SCANNED);
        // None of the digests that the list has was taken: it should have judged the file and could not.
        assert_eq!(scan(&engine, "", "", "").code, ResultCode::SCAN_FAILED);
        // One of each line's is enough.
        assert_eq!(scan(&engine, "", &zero_sha1, "").code, ResultCode::NOT_SCANNED);
    }

    #[test]
    fn a_line_whose_only_digest_is_not_taken_is_no_clean_bill() {
        let (engine, _folder) = engine(&format!("{MD5}\n{SHA256}\n"), "").unwrap();
        let (zero_md5, zero_sha256) = ("0".repeat(32), "0".repeat(64));
        let without = scan(&engine, "", "", &zero_sha256);
        assert_eq!(without.code, ResultCode::SCAN_FAILED);
        assert!(without.threat.contains("MD5"), "{without:?}");
        assert_eq!(scan(&engine, "", "", SHA256).code, ResultCode::KNOWN_BAD);
        assert_eq!(scan(&engine, &zero_md5, "", &zero_sha256).code, ResultCode::NOT_SCANNED);
    }

    #[test]
    fn finds_each_of_many_and_no_other() {
        let digests: Vec<String> =
            (0..20_000_u32).map(|n| blake3::hash(&n.to_le_bytes()).to_hex().to_string()).collect();
        let (listed, others) = digests.split_at(10_000);
        let (engine, _folder) = engine(&listed.join("\n"), "").unwrap();
        assert_eq!(engine.counts(), (10_000, 0));
        for digest in listed {
            assert_eq!(scan(&engine, "", "", digest).code, ResultCode::KNOWN_BAD);
        }
        for digest in others {
            assert_eq!(scan(&engine, "", "", digest).code, ResultCode::NOT_SCANNED);
        }
    }

    #[test]
    fn refuses_a_file_without_digests_and_takes_an_empty_list() {
        assert!(engine("name,size\nx,1\n", "").err().unwrap().to_string().contains("bad.csv"));
        assert_eq!(engine("# nothing yet\n\n", "").unwrap().0.counts(), (0, 0));
    }

    #[test]
    fn reads_lines_however_they_end_and_tells_those_it_cannot_read() {
        // Carriage returns alone, a byte order mark, a name around a digest.
        for text in [
            format!("# list\r{SHA256}\r"),
            format!("\u{feff}{}\r\n", SHA256.to_uppercase()),
            format!("{MD5}\n{SHA256}_name.exe\nname_{SHA1}.exe\n"),
        ] {
            let (engine, _folder) = engine(&text, "").unwrap();
            assert_eq!(scan(&engine, MD5, SHA1, SHA256).code, ResultCode::KNOWN_BAD, "{text}");
            assert_eq!(engine.trouble(), None, "{text}");
        }
        let sha512 = "ab".repeat(64);
        let (with_sha512, _folder) = engine(&format!("{MD5}\n{sha512}\n"), "").unwrap();
        assert_eq!(with_sha512.counts(), (2, 0));
        let file = FileInfo { md5: "0".repeat(32), sha512, ..FileInfo::default() };
        let sample = Sample::memory("file", "content");
        let subject = Subject { sample: &sample, file: &file, confined: None };
        let verdict = with_sha512.scan(&subject, &ScanContext::within(Duration::from_secs(1)));
        assert_eq!(verdict.code, ResultCode::KNOWN_BAD);
        // A digest in a name clears nothing, and what is no digest at all is told with its place.
        let (engine, _folder) = engine(&format!("name\n{SHA1}\n"), &format!("{SHA256}\n{MD5}_name.exe\n")).unwrap();
        assert_eq!(scan(&engine, MD5, &"0".repeat(40), &"0".repeat(64)).code, ResultCode::NOT_SCANNED);
        let trouble = engine.trouble().unwrap();
        assert!(
            trouble.contains("read: 1,") && trouble.contains("line 2 of") && trouble.contains("good.txt"),
            "{trouble}"
        );
    }

    #[test]
    fn follows_its_files_and_refuses_broken_ones() {
        let (engine, folder) = engine(MD5, "").unwrap();
        let version = engine.info().database_version;
        let bad = folder.path().join("bad.csv");
        fs::write(&bad, format!("{MD5}\n{SHA1}\n")).unwrap();
        crate::testing::wait_until("the new list", || engine.counts() == (2, 0));
        assert_ne!(engine.info().database_version, version);
        fs::write(&bad, "this is no list\n").unwrap();
        crate::testing::wait_until("the refusal", || engine.trouble().is_some());
        assert_eq!(engine.counts(), (2, 0));
        fs::write(&bad, MD5).unwrap();
        crate::testing::wait_until("recovery", || engine.trouble().is_none());
        assert_eq!(engine.counts(), (1, 0));
    }

    #[test]
    fn a_list_that_is_emptied_stays_in_use() {
        let (engine, folder) = engine(MD5, "").unwrap();
        let bad = folder.path().join("bad.csv");
        // Being written; with its header alone; written.
        for nothing in ["", "# generated today\n"] {
            fs::write(&bad, nothing).unwrap();
            crate::testing::wait_until("the refusal", || engine.trouble().is_some());
            assert_eq!((engine.counts(), scan(&engine, MD5, "", "").code), ((1, 0), ResultCode::KNOWN_BAD));
            fs::write(&bad, format!("{MD5}\n")).unwrap();
            crate::testing::wait_until("recovery", || engine.trouble().is_none());
        }
        drop(engine);
        // One of several files, and one of several folders.
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        for (folder, digests) in [(&one, [MD5, SHA1]), (&other, [SHA256, SHA256])] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("a"), digests[0]).unwrap();
            fs::write(folder.join("b"), digests[1]).unwrap();
        }
        let options = HashListOptions { name: "Lists".into(), bad: vec![one.clone(), other.clone()], good: vec![] };
        let engine = HashListEngine::start(options).unwrap();
        fs::write(one.join("a"), "").unwrap();
        crate::testing::wait_until("the refusal of an empty file", || engine.trouble().is_some());
        assert_eq!(engine.counts(), (3, 0));
        // One that is removed is meant.
        fs::remove_file(one.join("a")).unwrap();
        crate::testing::wait_until("the others", || engine.counts() == (2, 0));
        assert_eq!(engine.trouble(), None);
        fs::remove_file(other.join("a")).unwrap();
        fs::remove_file(other.join("b")).unwrap();
        crate::testing::wait_until("the refusal of an empty folder", || engine.trouble().is_some());
        assert_eq!(engine.counts(), (2, 0));
    }
}
