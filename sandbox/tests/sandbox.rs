//! The sandbox from inside and from outside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Bytes;
use lazaret_containers::conformance::{self, eicar};
use lazaret_containers::{Budget, ExtractionOutcome, Halt, Limit, Limits, Member, Passwords, TreeBudget};
use lazaret_sandbox::{Ended, Input, Request, Respondent, Sandbox, SandboxError, SandboxOptions};

fn options() -> SandboxOptions {
    SandboxOptions { program: env!("CARGO_BIN_EXE_sandboxed-for-tests").into(), ..SandboxOptions::new(2) }
}

fn sandbox() -> Sandbox {
    Sandbox::start(options()).unwrap()
}

/// Names, lengths and endings: what is shown when two lists of members differ.
fn brief(members: &[(String, Vec<u8>)]) -> Vec<(&str, usize)> {
    members.iter().map(|(name, content)| (name.as_str(), content.len())).collect()
}

#[derive(Debug, PartialEq)]
struct Opened {
    mime: Result<String, String>,
    members: Vec<(String, Vec<u8>)>,
    types: Vec<Option<String>>,
    outcome: ExtractionOutcome,
}

fn open_within(sandbox: &Sandbox, input: &dyn Input, length: u64, limits: Limits) -> Result<Opened, Ended> {
    let stop: Arc<AtomicBool> = Arc::default();
    let tree = Arc::new(TreeBudget::new(limits.clone(), length));
    let budget = Budget::new(tree.clone(), stop, length);
    let request = Request {
        name: "file",
        length,
        containers: None,
        shared: false,
        limits: &limits,
        passwords: &Passwords::NONE,
        standing: None,
    };
    let check = || budget.check();
    let mut opening = sandbox.open(&request, input).unwrap();
    let file_type = opening.file_type(&check)?;
    let mut opened = Opened { mime: Ok(String::new()), members: vec![], types: vec![], outcome: Default::default() };
    let found = match file_type {
        Ok((file_type, _)) => {
            opened.mime = Ok(file_type.mime);
            file_type.containers
        }
        Err(reason) => {
            opened.mime = Err(reason);
            vec![]
        }
    };
    if found.is_empty() {
        return Ok(opened);
    }
    opened.outcome = opening.members(&request, &found, &budget, &mut |member: Member<'_>| {
        let mut content = Vec::new();
        let _ = member.content.read_to_end(&mut content);
        opened.members.push((member.name, content));
        opened.types.push(member.file_type.map(|file_type| file_type.mime));
        Ok(())
    });
    Ok(opened)
}

fn open(sandbox: &Sandbox, file: &[u8]) -> Opened {
    open_within(sandbox, &Bytes(file, true), file.len() as u64, conformance::limits()).unwrap()
}

fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, content) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = conformance::Random(7);
    (0..length).map(|_| random.next() as u8).collect()
}

/// What became of a process that tries something. The sandbox goes on afterwards.
fn subvert(deed: &str) -> (Option<Limit>, String) {
    let sandbox = sandbox();
    let file = format!("SUBVERT {deed}\n");
    // What only ends by the clock ends soon; the others have time, on a busy machine too.
    let limits = Limits { archive_seconds: if deed == "loop" { 2 } else { 60 }, ..conformance::limits() };
    let ended = open_within(&sandbox, &Bytes(file.as_bytes(), true), file.len() as u64, limits).unwrap_err();
    assert_eq!(open(&sandbox, b"hello, world\n").mime.as_deref(), Ok("text/plain"), "after {deed}");
    match ended {
        Ended::Failed(limit, reason) => (limit, reason),
        Ended::Halted(Halt::Limit(limit)) => (Some(limit), "halted".into()),
        Ended::Halted(Halt::Stopped) => panic!("nobody stopped it"),
    }
}

#[test]
fn files_come_apart_as_they_do_without_it() {
    let sandbox = sandbox();
    let large = noise(3 << 20);
    let members: &[(&str, &[u8])] =
        &[("eicar.com", &eicar()), ("empty", b""), ("large", &large), ("inner.zip", &zip(&[("a", b"a")]))];
    let file = zip(members);
    let direct = conformance::take_apart(&file, &Passwords::NONE);
    for whole in [true, false] {
        let opened = open_within(&sandbox, &Bytes(&file, whole), file.len() as u64, conformance::limits()).unwrap();
        assert_eq!((brief(&opened.members), &opened.outcome), (brief(&direct.members), &direct.outcome));
        assert!(opened.members == direct.members);
        assert_eq!(opened.mime.as_deref(), Ok("application/zip"));
        // Types of short members come along; the others are asked for.
        assert_eq!(opened.types[2], None);
        assert_eq!(opened.types[3].as_deref(), Some("application/zip"));
    }
    let mut cut = file.clone();
    cut.truncate(file.len() / 2);
    let direct = conformance::take_apart(&cut, &Passwords::NONE);
    let opened = open(&sandbox, &cut);
    assert_eq!((brief(&opened.members), &opened.outcome), (brief(&direct.members), &direct.outcome));
    assert!(opened.members == direct.members);
}

type Members = Vec<(String, Vec<u8>)>;

/// What another file comes to in a process for many, and the process if it goes on.
fn another(respondent: Respondent, file: &[u8]) -> (Members, ExtractionOutcome, Option<Respondent>) {
    let limits = conformance::limits();
    let tree = Arc::new(TreeBudget::new(limits.clone(), file.len() as u64));
    let never: Arc<AtomicBool> = Arc::default();
    let budget = Budget::new(tree, never, file.len() as u64);
    let found = lazaret_containers::detect_content(file).unwrap().containers;
    let request = Request {
        name: "file",
        length: file.len() as u64,
        containers: Some(&found),
        shared: false,
        limits: &limits,
        passwords: &Passwords::NONE,
        standing: None,
    };
    let mut members = Vec::new();
    let (outcome, next) = respondent.members(&request, &Bytes(file, true), &found, &budget, &mut |member| {
        let mut content = Vec::new();
        let _ = member.content.read_to_end(&mut content);
        members.push((member.name, content));
        Ok(())
    });
    (members, outcome, next)
}

#[test]
fn a_process_for_many_takes_one_file_after_the_other_apart() {
    let sandbox = sandbox();
    let large = noise(3 << 20);
    let mut broken = zip(&[("a", b"one"), ("large", &large)]);
    broken.truncate(2 << 20);
    let files = [
        zip(&[("eicar.com", &eicar()), ("empty", b""), ("large", &large)]),
        broken,
        zip(&[("b", b"the next")]),
        // Longer than what was in its place before.
        zip(&[("c", &noise(1000)), ("more", &large)]),
    ];
    let mut respondent = sandbox.respondent().unwrap();
    for file in files.iter().cycle().take(12) {
        let direct = conformance::take_apart(file, &Passwords::NONE);
        let (members, outcome, next) = another(respondent, file);
        assert_eq!((brief(&members), &outcome), (brief(&direct.members), &direct.outcome));
        assert!(members == direct.members);
        respondent = next.expect("it goes on");
    }
    assert_eq!(sandbox.lost(), 0);
}

/// The processes that this one forked.
fn children(process: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    children.split_ascii_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// Whether nothing of it runs any more.
fn ended(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = status.rsplit(')').next().unwrap().split_ascii_whitespace().next();
    matches!(state, None | Some("Z" | "X"))
}

fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_ended_a_process_for_many_before_costs_no_file() {
    let sandbox = sandbox();
    let respondent = sandbox.respondent().unwrap();
    // As if a former file had ended it.
    let template = until("it is planted", || children(sandbox.process_id()).first().copied());
    let process = until("it is forked", || children(template).first().copied());
    assert!(std::process::Command::new("kill").args(["-9", &process.to_string()]).status().unwrap().success());
    until("it has ended", || ended(process).then_some(()));
    let (members, outcome, next) = another(respondent, &zip(&[("a", b"one")]));
    assert_eq!((brief(&members), outcome), (vec![("a", 3)], ExtractionOutcome::default()));
    assert!(next.is_none());
}

#[test]
fn members_fill_blocks_and_messages_in_any_order() {
    let sandbox = sandbox();
    let mut random = conformance::Random(11);
    // Lengths around those of pieces and blocks; and names so long that a message is full before a block is.
    const PIECE: usize = 512 << 10;
    let lengths = [0, 1, 300, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 1, 2 * PIECE, 3 * PIECE + 7];
    let mut members: Vec<(String, Vec<u8>)> = Vec::new();
    for at in 0..600 {
        let length = if at % 20 == 0 { lengths[random.next() as usize % lengths.len()] } else { at };
        let name = format!("{at:0>width$}", width = if at % 3 == 0 { 1000 } else { 4 });
        // None like another, so that none can pass for another.
        let mut content = conformance::Random(at as u64 + 1);
        members.push((name, (0..length).map(|_| content.next() as u8).collect()));
    }
    let borrowed: Vec<(&str, &[u8])> =
        members.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let file = zip(&borrowed);
    for whole in [true, false] {
        let opened = open_within(&sandbox, &Bytes(&file, whole), file.len() as u64, conformance::limits()).unwrap();
        assert_eq!(brief(&opened.members), brief(&members));
        assert!(opened.members == members);
        assert_eq!(opened.outcome, ExtractionOutcome::default());
    }
}

#[test]
fn a_process_that_reaches_out_is_stopped() {
    for deed in ["open", "create", "socket", "unix", "exec", "fork", "thread", "signal", "limit", "executable"] {
        let (limit, reason) = subvert(deed);
        assert!(limit.is_none() && reason.contains("forbidden system call"), "{deed}: {limit:?} {reason}");
    }
    assert!(!std::path::Path::new("/tmp/lazaret-sandbox-was-here").exists());
}

#[test]
fn a_process_sees_nothing_but_its_job() {
    // Standard input, output and error, socket, input and output.
    assert!(subvert("look").1.contains("(environment 0 descriptors 6)"), "{}", subvert("look").1);
    // SIGXFSZ: the output is as long as it is.
    assert!(subvert("grow").1.contains("signal 25"), "{}", subvert("grow").1);
}

#[test]
fn what_ends_a_process_costs_one_file_and_has_a_reason() {
    assert_eq!(subvert("memory").0, Some(Limit::Memory));
    assert_eq!(subvert("loop").0, Some(Limit::Time));
    for (deed, reason) in [
        ("crash", "reading it crashed"),
        ("stack", "overflowed its stack"),
        ("panic", "reading it panicked"),
        ("leave", "ended early, with code 7"),
        ("babble", "senseless"),
    ] {
        let (limit, said) = subvert(deed);
        assert!(limit.is_none() && said.contains(reason), "{deed}: {limit:?} {said}");
    }
}

#[test]
fn what_is_no_longer_wanted_ends_at_once() {
    let sandbox = sandbox();
    let stop = Arc::new(AtomicBool::new(false));
    let limits = conformance::limits();
    let tree = Arc::new(TreeBudget::new(limits.clone(), 10));
    let budget = Budget::new(tree.clone(), stop.clone(), 10);
    let file = b"SUBVERT loop\n";
    let request = Request {
        name: "file",
        length: file.len() as u64,
        containers: None,
        shared: false,
        limits: &limits,
        passwords: &Passwords::NONE,
        standing: None,
    };
    let input = Bytes(file, true);
    let mut opening = sandbox.open(&request, &input).unwrap();
    stop.store(true, Ordering::Release);
    let began = Instant::now();
    assert_eq!(opening.file_type(&|| budget.check()), Err(Ended::Halted(Halt::Stopped)));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn what_others_have_on_their_way_costs_nothing() {
    use rustix_sandbox::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
        socketpair,
    };
    // The kernel counts a user's descriptors that were sent and not received, and lets nobody send more than it may have open itself
    // while there are as many: job processes, and what they come of, may have few.
    let (from, _to) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    for _ in 0..64 {
        let mut space = [0; rustix_sandbox::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [std::os::fd::AsFd::as_fd(&from)];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&from, &[io::IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
    }
    let sandbox = sandbox();
    let archive = zip(&[("eicar.com", &eicar())]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(open(&sandbox, &archive).members, [("eicar.com".to_owned(), eicar())]));
        }
    });
    assert_eq!(sandbox.lost(), 0);
}

#[test]
fn it_fails_closed() {
    let options = SandboxOptions { program: "/bin/true".into(), ..options() };
    assert!(matches!(Sandbox::start(options), Err(SandboxError::Start(_))));
    let options = SandboxOptions { program: "/nothing/there".into(), ..SandboxOptions::new(1) };
    assert!(Sandbox::start(options).is_err());
}

/// Run with `--ignored --nocapture`: what a job costs.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_job() {
    let sandbox = sandbox();
    let file = b"hello, world\n";
    for _ in 0..100 {
        open(&sandbox, file);
    }
    let began = Instant::now();
    for _ in 0..2000 {
        open(&sandbox, file);
    }
    println!("a job: {:?}", began.elapsed() / 2000);
}
