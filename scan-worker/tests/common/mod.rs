//! What the tests share: a store in memory, a list of records, archives made on the spot.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;
use std::io::{Cursor, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lazaret_analysis::{DataId, EngineInfo, FileInfo, FileResult, NestedRecord, Policy, Rule};
use lazaret_containers::Passwords;
use lazaret_digests::{Selection, Set};
use lazaret_node_client::Environment;
use lazaret_protocol::BlobName;
use lazaret_protocol::message::ByteRange;
use lazaret_sandbox::{Sandbox, SandboxOptions};
use lazaret_scan_worker::engine::Engine;
use lazaret_scan_worker::engines;
use lazaret_scan_worker::scan::{RecordSink, Root, Scanner, ScannerOptions, TreeOutcome};
use lazaret_scan_worker::source::{BlobSource, SourceError};
use lazaret_scan_worker::spool::SpoolOptions;

/// The EICAR test file. It is written backwards, so that neither this source nor the test program holds it.
pub fn eicar() -> Vec<u8> {
    br"*H+H$!ELIF-TSET-SURIVITNA-DRADNATS-RACIE$}7)CC7)^P(45XZP\4[PA@%P!O5X".iter().rev().copied().collect()
}

/// What an engine of a test's own says of itself.
pub fn engine_info(id: &str, name: &str) -> EngineInfo {
    EngineInfo {
        id: id.into(),
        name: name.into(),
        version: "1".into(),
        kind: "test".into(),
        database_version: "1".into(),
        def_time_ms: 1,
        trouble: String::new(),
    }
}

/// Blobs in memory.
#[derive(Default)]
pub struct MemoryStore {
    blobs: Mutex<HashMap<BlobName, Bytes>>,
}

impl MemoryStore {
    pub fn put(&self, content: Bytes) -> BlobName {
        let name = BlobName::of(&content);
        self.blobs.lock().unwrap().insert(name, content);
        name
    }
}

impl BlobSource for MemoryStore {
    fn read(&self, name: BlobName, range: ByteRange) -> Result<Bytes, SourceError> {
        let blob = self.blobs.lock().unwrap().get(&name).cloned().ok_or(SourceError::NotFound(name))?;
        Ok(blob.slice(range.start as usize..(range.end as usize).min(blob.len())))
    }
}

/// Keeps records, in the order in which they came.
#[derive(Default)]
pub struct Records(pub Mutex<Vec<NestedRecord>>);

impl RecordSink for Records {
    fn put(&self, record: NestedRecord) -> Result<(), String> {
        self.0.lock().unwrap().push(record);
        Ok(())
    }
}

pub const MIB: u64 = 1 << 20;

/// Everything is tested as it runs in earnest: in a sandbox, each scanner in its own.
pub fn sandbox() -> Sandbox {
    let program = env!("CARGO_BIN_EXE_sandboxed-scan-for-tests").into();
    Sandbox::start(SandboxOptions { program, ..SandboxOptions::new(4) }).unwrap()
}

pub fn options() -> ScannerOptions {
    ScannerOptions {
        scan_threads: 2,
        sample_memory_max_bytes: 64 * MIB,
        sample_budget_bytes: 128 * MIB,
        spool: SpoolOptions { folder: std::env::temp_dir(), bytes_max: 4096 * MIB },
        engine_timeout: Duration::from_secs(60),
        digests: Selection::ALL,
        sandbox: Some(sandbox()),
        nested_id_key: [7; 32],
    }
}

pub fn scanner(options: ScannerOptions, engines: Vec<Arc<dyn Engine>>) -> Scanner {
    Scanner::start(options, engines, &Environment::system()).unwrap()
}

/// A finished scan.
pub struct Scanned {
    pub root: FileResult,
    pub records: Vec<NestedRecord>,
    /// What went into the spool.
    pub spooled_bytes: u64,
}

impl Scanned {
    /// The record of the nested file at this path.
    pub fn at(&self, path: &str) -> &NestedRecord {
        let paths: Vec<_> = self.records.iter().map(|record| &record.path).collect();
        self.records.iter().find(|record| record.path == path).unwrap_or_else(|| panic!("no {path:?} in {paths:?}"))
    }

    pub fn detail(&self) -> &str {
        self.root.container.as_ref().map_or("", |container| &container.detail)
    }

    /// The records with what differs between runs taken out: times.
    pub fn without_times(&self) -> (FileResult, Vec<NestedRecord>) {
        fn strip(result: &mut FileResult) {
            result.times = Default::default();
            result.engines.iter_mut().for_each(|engine| (engine.scan_ms, engine.wait_ms) = (0, 0));
        }
        let (mut root, mut records) = (self.root.clone(), self.records.clone());
        strip(&mut root);
        records.iter_mut().for_each(|record| strip(&mut record.result));
        records.sort_by(|a, b| (&a.path, a.ordinal, a.data_id).cmp(&(&b.path, b.ordinal, b.data_id)));
        (root, records)
    }
}

pub const ROOT_ID: DataId = DataId([1; 16]);

pub fn root(name: &str, content: Bytes, rule: Rule, scanner: &Scanner) -> Root {
    let digests = Set::digest(Selection::ALL, &content);
    let reservation = scanner.memory().try_reserve(content.len() as u64).unwrap();
    Root {
        data_id: ROOT_ID,
        file: FileInfo {
            display_name: name.into(),
            size_bytes: content.len() as u64,
            md5: digests.md5_hex(),
            sha1: digests.sha1_hex(),
            sha256: digests.sha256_hex(),
            sha512: digests.sha512_hex(),
            ..FileInfo::default()
        },
        rule,
        blob: BlobName::of(&content),
        content: Some((content, reservation)),
        fetch_ms: 0,
        passwords: Passwords::NONE,
        verdicts: None,
        sharing: None,
    }
}

pub fn scan_with(scanner: &Scanner, name: &str, content: impl Into<Bytes>, rule: Rule) -> Scanned {
    scan_locked(scanner, name, content.into(), rule, Passwords::NONE)
}

pub fn scan_locked(scanner: &Scanner, name: &str, content: Bytes, rule: Rule, passwords: Passwords) -> Scanned {
    let (store, records) = (Arc::new(MemoryStore::default()), Arc::new(Records::default()));
    let policy = rule.policy();
    let root = Root { passwords, ..root(name, content, rule, scanner) };
    let spooled_before = scanner.spool().spooled_bytes();
    let scan = scanner.scan(root, store, records.clone());
    let TreeOutcome::Finished(root) = scan.wait() else { panic!("the scan of {name} was not finished") };
    let records = std::mem::take(&mut *records.0.lock().unwrap());
    check(&root, &records, &policy);
    Scanned { root: *root, records, spooled_bytes: scanner.spool().spooled_bytes() - spooled_before }
}

/// What holds of every scan.
fn check(root: &FileResult, records: &[NestedRecord], policy: &Policy) {
    let mut seen: HashMap<DataId, usize> = HashMap::new();
    let mut members: HashMap<DataId, Vec<u32>> = HashMap::new();
    for (at, record) in records.iter().enumerate() {
        assert_eq!(record.root, ROOT_ID);
        assert!(seen.insert(record.data_id, at).is_none(), "{} was recorded twice", record.path);
        members.entry(record.parent).or_default().push(record.ordinal);
        assert!(policy.rank(record.result.overall) <= policy.rank(record.result.own));
        assert!(policy.rank(root.overall) <= policy.rank(record.result.overall));
    }
    for record in records {
        if let Some(parent) = seen.get(&record.parent) {
            assert!(*parent > seen[&record.data_id], "{} came after its parent", record.path);
        } else {
            assert_eq!(record.parent, ROOT_ID);
        }
    }
    for ordinals in members.values_mut() {
        ordinals.sort_unstable();
        assert!(ordinals.iter().copied().eq(0..ordinals.len() as u32), "ordinals have gaps: {ordinals:?}");
    }
}

pub fn scan_under(name: &str, content: impl Into<Bytes>, rule: Rule) -> Scanned {
    scan_with(&scanner(options(), engines::builtin().unwrap()), name, content, rule)
}

pub fn scan(name: &str, content: impl Into<Bytes>) -> Scanned {
    scan_under(name, content, Rule::with_defaults("test"))
}

// Archives.

pub fn zip_by(method: zip::CompressionMethod, members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    zip_by(zip::CompressionMethod::Deflated, members)
}

pub fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gz(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub fn bz2(content: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub fn xz(content: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

pub fn zst(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

/// A Unix archive, as `dpkg-deb` writes it.
pub fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, content) in members {
        writeln!(archive, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, "100644", content.len()).unwrap();
        archive.extend_from_slice(content);
        if content.len() % 2 == 1 {
            archive.push(b'\n');
        }
    }
    archive
}
