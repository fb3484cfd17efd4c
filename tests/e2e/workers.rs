//! Scan workers as processes: killed in the middle, taken down by a file, kept busy by others, told to stop.
//!
//! `LAZARET_KILL_ROUNDS` makes the loop of kills longer than it is by default.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use lazaret_analysis::{DataId, ResultStore, SqliteBackend, State};

use crate::harness::{Gateway, Process, Processes, content, eicar, memory_mib, verdict};

/// A lease that ends soon, so that tests don't wait for it, but not while its holder merely gets no processor.
const LEASE_SECONDS: u64 = 5;
/// How long anything may take on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(240);

/// A station whose worker can be killed and started again.
struct Station {
    processes: Processes,
    results: SqliteBackend,
    config: String,
}

impl Station {
    async fn start(dir: &Path, settings: &[(&str, &str)]) -> Self {
        let mut processes = Processes::start(dir);
        processes.worker.kill();
        let config = dir.join("scan-worker.yml").to_str().unwrap().to_owned();
        let mut text = std::fs::read_to_string(&config).unwrap();
        let lease = LEASE_SECONDS.to_string();
        for (key, value) in settings.iter().chain(&[("lease_seconds", lease.as_str())]) {
            let others: Vec<&str> = text.lines().filter(|line| !line.starts_with(&format!("{key}:"))).collect();
            text = format!("{}\n{key}: {value}\n", others.join("\n"));
        }
        std::fs::write(&config, text).unwrap();
        let results = SqliteBackend::open(dir.join("results.db")).await.unwrap();
        processes.worker = Process::start(&["scan-worker", "--config", &config]);
        Self { processes, results, config }
    }

    fn gateway(&self) -> &Gateway {
        &self.processes.gateway
    }

    fn restart_worker(&mut self) {
        self.processes.worker = Process::start(&["scan-worker", "--config", &self.config]);
    }

    /// How many files directly in it are recorded.
    async fn recorded(&self, data_id: DataId) -> u64 {
        self.results.nested(data_id, 0, 0).await.unwrap().total
    }

    async fn state(&self, data_id: DataId) -> (State, Option<u64>) {
        let record = ResultStore::get(&self.results, data_id).await.unwrap().unwrap();
        (record.state, record.started_ms)
    }

    async fn until<F: Future<Output = bool>>(&self, what: &str, mut condition: impl FnMut() -> F) {
        let deadline = Instant::now() + PATIENCE;
        while !condition().await {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn finished(&self, data_id: DataId) {
        self.until("the analysis is finished", || async { self.state(data_id).await.0.is_finished() }).await;
    }
}

/// A member's content: unique, a threat now and then.
fn member(seed: u64, number: u32) -> Vec<u8> {
    if number % 4_999 == 17 { eicar() } else { format!("member {number} of {seed}\n").repeat(5).into_bytes() }
}

/// An archive of so many members. Stored and with short headers, so that a million of them is quickly made and sent.
fn archive(seed: u64, members: u32) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for number in 0..members {
        writer.start_file(format!("{number}.txt"), stored).unwrap();
        writer.write_all(&member(seed, number)).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Members of an archive that takes seconds to scan.
const LARGE_MEMBERS: u32 = 100_000;

/// Checks that each member is recorded once, with its own digest and result.
async fn check_members(station: &Station, data_id: DataId, seed: u64, members: u32) {
    let mut found = BTreeMap::new();
    let mut first = 0;
    loop {
        let page = station.results.nested(data_id, first, 1_000).await.unwrap();
        assert_eq!(page.total, u64::from(members));
        let Some(last) = page.records.last() else { break };
        first = last.ordinal + 1;
        for record in page.records {
            let alone = ResultStore::get(&station.results, record.data_id).await.unwrap().unwrap();
            assert_eq!((alone.parent, alone.root), (Some(data_id), data_id));
            let twice = found.insert(record.path.clone(), record);
            assert!(twice.is_none(), "{twice:?} is there twice");
        }
    }
    assert_eq!(found.len(), members as usize);
    for number in 0..members {
        let record = &found[&format!("{number}.txt")];
        let expected = member(seed, number);
        let code = if expected == eicar() { 1 } else { 0 };
        assert_eq!((record.result.own.code(), record.result.file.size_bytes), (code, expected.len() as u64));
        assert_eq!(record.result.file.sha256, sha256(&expected), "{}", record.path);
    }
}

fn sha256(content: &[u8]) -> String {
    lazaret_digests::Set::digest(lazaret_digests::Selection::ALL, content).sha256_hex()
}

fn id(text: &str) -> DataId {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_of_an_archive_changes_nothing() {
    const MEMBERS: u32 = 20_000;
    let rounds: u64 = std::env::var("LAZARET_KILL_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut station = Station::start(dir.path(), &[]).await;
    for seed in 0..rounds {
        let data_id = id(&station.gateway().submit("many.zip", archive(seed, MEMBERS)).await);
        // Somewhere in the middle, elsewhere each time.
        let at = 1 + (u64::from(MEMBERS) * 3 / 4) * (seed * 7 % 10) / 10;
        station.until("members are recorded", || async { station.recorded(data_id).await >= at }).await;
        let before = station.state(data_id).await;
        station.processes.worker.kill();
        println!("killed with {} of {MEMBERS} recorded, {:?}", station.recorded(data_id).await, before.0);
        assert_eq!(before.0, State::Running, "the kill came too late to matter");
        station.restart_worker();
        station.finished(data_id).await;
        let document = station.gateway().finished(&data_id.to_string()).await;
        assert_eq!(verdict(&document), (1, false));
        assert_eq!(document["extracted_files"]["files_extracted_count"], MEMBERS);
        assert_eq!(document["extracted_files"]["detected_by"], 4);
        check_members(&station, data_id, seed, MEMBERS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_takes_its_worker_down_is_given_up_after_three() {
    let dir = tempfile::tempdir().unwrap();
    let mut station = Station::start(dir.path(), &[]).await;
    let poison = id(&station.gateway().submit("poison.zip", archive(1, 20_000)).await);
    // Under way each time until the poison is suspected.
    let mut others = vec![station.gateway().submit("bystander.zip", archive(2, 10_000)).await];
    let mut started = None;
    for round in 0..3u64 {
        others.push(station.gateway().submit("other", content(round, 1_000)).await);
        // As if reading it had taken the worker down: it dies each time it has the file.
        station
            .until("a worker has the file", || async {
                let (state, at) = station.state(poison).await;
                state == State::Running && at != started
            })
            .await;
        started = station.state(poison).await.1;
        station.processes.worker.kill();
        station.restart_worker();
    }
    station.finished(poison).await;
    let document = station.gateway().finished(&poison.to_string()).await;
    assert_eq!(verdict(&document), (3, false), "{document}");
    let reasons = document["process_info"]["blocked_reasons"].to_string();
    assert!(reasons.contains("three times"), "{reasons}");
    for (at, other) in others.iter().enumerate() {
        // The first one holds a threat.
        let expected = if at == 0 { (1, false) } else { (0, true) };
        assert_eq!(verdict(&station.gateway().finished(other).await), expected);
    }
    assert_eq!(verdict(&station.gateway().scan("after", content(9, 1_000)).await), (0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_passes_large_archives_and_a_cancelled_one_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let station = Station::start(dir.path(), &[("scan_threads", "2"), ("concurrent_files", "2")]).await;
    let gateway = station.gateway();
    // A second on a machine that does nothing else. How much more it may be is told by what a small file takes alone.
    let mut alone = Duration::ZERO;
    for round in 0..3 {
        let began = Instant::now();
        gateway.scan("alone", content(200 + round, 10 << 10)).await;
        alone = alone.max(began.elapsed());
    }
    let allowed = Duration::from_secs(1) + 20 * alone;
    // More archives than there are slots and threads.
    let mut archives = Vec::new();
    for seed in 0..4 {
        archives.push(id(&gateway.submit("large.zip", archive(seed, LARGE_MEMBERS)).await));
    }
    let (first, second) = (archives[0], archives[1]);
    let busy = || async { station.recorded(first).await > 500 && station.recorded(second).await > 500 };
    station.until("two archives are being scanned", busy).await;
    for round in 0..5u64 {
        let began = Instant::now();
        let document = gateway.scan("small", content(100 + round, 10 << 10)).await;
        let took = began.elapsed();
        println!("a small file took {took:?}, alone {alone:?}");
        assert_eq!(verdict(&document), (0, true));
        assert!(took < allowed, "{took:?}, alone {alone:?}");
    }
    assert!(!station.state(first).await.0.is_finished() && !station.state(second).await.0.is_finished());

    for data_id in archives.iter().rev() {
        assert!(station.results.request_cancel(*data_id).await.unwrap());
    }
    let began = Instant::now();
    for data_id in &archives {
        station.finished(*data_id).await;
        let document = gateway.finished(&data_id.to_string()).await;
        // A threat that was seen by then outranks that nobody looked further.
        assert!([1, 19].contains(&verdict(&document).0), "{document}");
        assert!(station.recorded(*data_id).await < LARGE_MEMBERS.into(), "it was not cut short");
    }
    println!("cancelling took {:?}", began.elapsed());
    assert!(began.elapsed() < allowed, "{:?}, a small file took {alone:?} alone", began.elapsed());
    // Nothing of them is worked on any more.
    let recorded = station.recorded(first).await;
    assert_eq!(verdict(&gateway.scan("after", content(9, 1_000)).await), (0, true));
    assert_eq!(station.recorded(first).await, recorded);
}

/// A station whose rule has archives shared, and where nothing is known from before.
async fn sharing_station(dir: &Path) -> Station {
    let mut station = Station::start(dir, &[("scan_threads", "1")]).await;
    let rules = dir.join("rules.yml");
    std::fs::write(&rules, "rules:\n  - name: default\n    load_sharing: true\n    verdict_cache: false\n").unwrap();
    let config = dir.join("gateway.yml");
    let text = std::fs::read_to_string(&config).unwrap();
    let others: Vec<&str> = text.lines().filter(|line| !line.starts_with("rules:")).collect();
    std::fs::write(&config, format!("{}\nrules: {}\n", others.join("\n"), rules.display())).unwrap();
    station.processes.gateway_process.kill();
    station.processes.gateway_process = Process::start(&["gateway", "--config", config.to_str().unwrap()]);
    let url = &station.processes.gateway_process.ready["gateway"];
    station.processes.gateway = Gateway::new(url, &dir.join("client.key"));
    station
}

/// An archive that is long enough to be shared: `many` members, every hundredth an archive with a member of its own.
fn shared_archive(seed: u64, many: u32) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for number in 0..many {
        let (name, content) = match number % 100 {
            7 => (format!("{number}.zip"), archive(seed, 18)),
            _ => (format!("{number}.txt"), [member(seed, number), content(u64::from(number), 3_000)].concat()),
        };
        writer.start_file(name, stored).unwrap();
        writer.write_all(&content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// All rows of a root, by place: ordinal, size, results, digest, and how many are directly in it.
async fn rows(station: &Station, data_id: DataId) -> BTreeMap<String, (u32, u64, u16, u16, String, u64)> {
    let mut rows = BTreeMap::new();
    let mut open = vec![data_id];
    while let Some(parent) = open.pop() {
        let mut first = 0;
        loop {
            let page = station.results.nested(parent, first, 1_000).await.unwrap();
            let Some(last) = page.records.last() else { break };
            first = last.ordinal + 1;
            for record in page.records {
                assert_eq!((record.root, record.parent), (data_id, parent));
                let result = record.result;
                let members = result.container.as_ref().map_or(0, |container| container.extracted_count);
                if members > 0 {
                    open.push(record.data_id);
                }
                let (own, overall) = (result.own.code(), result.overall.code());
                let row = (record.ordinal, result.file.size_bytes, own, overall, result.file.sha256, members);
                assert!(rows.insert(record.path.clone(), row).is_none(), "{} is there twice", record.path);
            }
        }
    }
    rows
}

/// The seconds of processor time that a process has had.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).map_or(0.0, |field: &&str| field.parse::<f64>().unwrap());
    (ticks(11) + ticks(12)) / 100.0
}

/// What of a root's document must not depend on who scanned it.
fn told(document: &serde_json::Value) -> [serde_json::Value; 4] {
    let mut extracted = document["extracted_files"].clone();
    // Ids and times differ from submission to submission.
    for key in ["files_in_archive", "data_id"] {
        if let Some(map) = extracted.as_object_mut() {
            map.remove(key);
        }
    }
    let results = &document["scan_results"];
    [
        results["scan_all_result_i"].clone(),
        document["process_info"]["result"].clone(),
        document["process_info"]["blocked_reasons"].clone(),
        extracted,
    ]
}

const SHARED_MEMBERS: u32 = 8_000;

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_take_one_archive_apart_and_find_what_one_finds() {
    let dir = tempfile::tempdir().unwrap();
    let mut station = sharing_station(dir.path()).await;
    let alone = id(&station.gateway().submit("shared.zip", shared_archive(1, SHARED_MEMBERS)).await);
    station.finished(alone).await;
    let expected = rows(&station, alone).await;
    assert!(expected.len() > SHARED_MEMBERS as usize);
    let expected_document = told(&station.gateway().finished(&alone.to_string()).await);

    let mut helper = Process::start(&["scan-worker", "--config", &station.config]);
    let before = [cpu_seconds(station.processes.worker.id()), cpu_seconds(helper.id())];
    let shared = id(&station.gateway().submit("shared.zip", shared_archive(1, SHARED_MEMBERS)).await);
    let mut last_percent = 0;
    while !station.state(shared).await.0.is_finished() {
        let document = station.gateway().result(&shared.to_string()).await.unwrap();
        let percent = document["scan_results"]["progress_percentage"].as_u64().unwrap();
        assert!(percent >= last_percent, "progress went back from {last_percent} to {percent}");
        last_percent = percent;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = [cpu_seconds(station.processes.worker.id()), cpu_seconds(helper.id())];
    println!("processor seconds of both: {:.2} {:.2}", after[0] - before[0], after[1] - before[1]);
    assert!(after[0] - before[0] > 0.1 && after[1] - before[1] > 0.1, "one of them did all of it");
    assert_eq!(rows(&station, shared).await, expected);
    assert_eq!(told(&station.gateway().finished(&shared.to_string()).await), expected_document);

    // Either of them is killed in the middle.
    for (round, kill_helper) in [(0, true), (1, false), (2, true), (3, false)] {
        let killed = id(&station.gateway().submit("shared.zip", shared_archive(1, SHARED_MEMBERS)).await);
        let at = u64::from(SHARED_MEMBERS) * (round + 2) / 8;
        station.until("members are recorded", || async { station.recorded(killed).await >= at }).await;
        assert_eq!(station.state(killed).await.0, State::Running, "the kill came too late to matter");
        let victim = if kill_helper { &mut helper } else { &mut station.processes.worker };
        victim.kill();
        let again = Process::start(&["scan-worker", "--config", &station.config]);
        if kill_helper {
            helper = again;
        } else {
            station.processes.worker = again;
        }
        station.finished(killed).await;
        assert_eq!(rows(&station, killed).await, expected, "round {round}");
        assert_eq!(told(&station.gateway().finished(&killed.to_string()).await), expected_document);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_and_time_limits_reach_every_worker_that_has_a_part() {
    let dir = tempfile::tempdir().unwrap();
    let station = sharing_station(dir.path()).await;
    let _helper = Process::start(&["scan-worker", "--config", &station.config]);
    let data_id = id(&station.gateway().submit("shared.zip", shared_archive(1, 3 * SHARED_MEMBERS)).await);
    station.until("members are recorded", || async { station.recorded(data_id).await >= 2_000 }).await;
    assert!(station.results.request_cancel(data_id).await.unwrap());
    station.finished(data_id).await;
    let document = station.gateway().finished(&data_id.to_string()).await;
    // A threat that was seen by then outranks that nobody looked further.
    assert!([1, 19].contains(&verdict(&document).0), "{document}");
    let recorded = station.recorded(data_id).await;
    assert!(recorded < u64::from(3 * SHARED_MEMBERS), "it was not cut short");
    // Nobody works on it any more.
    assert_eq!(verdict(&station.gateway().scan("after", content(9, 1_000)).await), (0, true));
    assert_eq!(station.recorded(data_id).await, recorded);

    // Its rule has a time limit now.
    let rule =
        "rules:\n  - name: default\n    load_sharing: true\n    verdict_cache: false\n    global_timeout_seconds: 1\n";
    std::fs::write(dir.path().join("rules.yml"), rule).unwrap();
    station
        .until("the rule is in force", || async {
            let data_id = id(&station.gateway().submit("probe", content(11, 100)).await);
            station.finished(data_id).await;
            let record = ResultStore::get(&station.results, data_id).await.unwrap().unwrap();
            record.new.rule.global_timeout_seconds == Some(1)
        })
        .await;
    let data_id = id(&station.gateway().submit("shared.zip", shared_archive(1, 3 * SHARED_MEMBERS)).await);
    station.finished(data_id).await;
    let document = station.gateway().finished(&data_id.to_string()).await;
    assert!([1, 31].contains(&verdict(&document).0), "{document}");
    assert!(station.recorded(data_id).await < u64::from(3 * SHARED_MEMBERS), "it was not cut short");
}

async fn many_members(members: u32) {
    let dir = tempfile::tempdir().unwrap();
    let station = Station::start(dir.path(), &[]).await;
    let data_id = id(&station.gateway().submit("many.zip", archive(1, members)).await);
    let began = Instant::now();
    let mut last_percent = 0;
    loop {
        let document = station.gateway().result(&data_id.to_string()).await.unwrap();
        let percent = document["scan_results"]["progress_percentage"].as_u64().unwrap();
        assert!(percent >= last_percent, "progress went back from {last_percent} to {percent}");
        last_percent = percent;
        if percent == 100 {
            break;
        }
        assert!(began.elapsed() < 15 * PATIENCE);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (took, peak) = (began.elapsed(), memory_mib(station.processes.worker.id(), "VmHWM:"));
    // Nobody else uses the station now: the pages' times are their own.
    let mut pages = Vec::new();
    for first in [0, members / 2, members - 1_000] {
        let began = Instant::now();
        let page = station.results.nested(data_id, first, 1_000).await.unwrap();
        pages.push(began.elapsed());
        assert_eq!((page.total, page.records.len()), (u64::from(members), 1_000));
        let names: Vec<String> = (first..first + 1_000).map(|number| format!("{number}.txt")).collect();
        assert!(page.records.iter().map(|record| &record.path).eq(&names));
    }
    println!("{members} members in {took:?}, worker's peak {peak} MiB, pages of 1,000 in {pages:?}");
    // The archive itself, what the budget allows, and what a worker takes anyway; nothing for each member.
    assert!((1..700).contains(&peak), "{peak} MiB");
    let (fastest, slowest) = (pages.iter().min().unwrap(), pages.iter().max().unwrap());
    assert!(*slowest < *fastest * 5 + Duration::from_millis(50), "{pages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_members_take_bounded_memory() {
    many_members(30_000).await;
}

/// Takes minutes: cargo test --release --workspace --test e2e -- --ignored --nocapture a_million_members
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_million_members_take_bounded_memory() {
    many_members(1_000_000).await;
}
