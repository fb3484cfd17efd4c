//! Archives, compressed streams and disk images that other programs made, through the conformance suite.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod samples;

use lazaret_containers::conformance::{self, Case, eicar, take_apart};
use lazaret_containers::{ContainerFormat, Limit, Limits, Passwords};

use samples::{End, SAMPLES, Sample};

/// Random changes of each file, and of one that needs a password: each costs several key derivations.
const ROUNDS: u32 = 500;
const ROUNDS_ENCRYPTED: u32 = 20;

fn passwords(sample: &Sample) -> Passwords {
    // The right one comes last: all are tried.
    Passwords::new(["wrong".to_owned()].into_iter().chain(sample.password.map(str::to_owned)))
}

fn each(suite: impl Fn(&Sample, &Case<'_>)) {
    let only = std::env::var("LAZARET_SAMPLE").unwrap_or_default();
    for sample in SAMPLES.iter().filter(|sample| sample.name.starts_with(&only)) {
        println!("{}", sample.name);
        let (file, eicar) = (sample.file(), eicar());
        let case = Case::new(sample.format, &file, &eicar);
        suite(sample, &Case { passwords: passwords(sample), open_ended: sample.end == End::Open, ..case });
    }
}

#[test]
fn what_other_programs_made_comes_apart() {
    each(|_, case| conformance::comes_apart(case));
}

#[test]
fn a_cut_is_never_taken_for_the_whole() {
    each(|sample, case| {
        // Cut at every byte, each with its key derivations, takes minutes.
        if sample.end != End::Unknown && sample.password.is_none() {
            conformance::survives_cuts(case);
        }
    });
}

#[test]
fn random_changes_end_with_an_outcome() {
    each(|sample, case| {
        let rounds = if sample.password.is_some() { ROUNDS_ENCRYPTED } else { ROUNDS };
        conformance::survives_mutations(case, rounds);
    });
}

#[test]
fn the_squares_come_out_as_they_went_in() {
    let squares: String = (0..400).map(|number| format!("{}\n", number * number)).collect();
    each(|sample, case| {
        let taken = take_apart(case.file, &case.passwords);
        let whole: Vec<u8> = taken.members.iter().flat_map(|(_, content)| content.clone()).collect();
        let is_nested = ["rpm", "pe", "utf16"].contains(&sample.format);
        let is_short = ["lz4", "lzip-two"].contains(&sample.name);
        assert!(
            is_nested || is_short || whole.windows(squares.len()).any(|window| window == squares.as_bytes()),
            "{}: {:?}",
            sample.name,
            taken.members.iter().map(|(name, content)| (name, content.len())).collect::<Vec<_>>()
        );
    });
}

/// A file that is no container of the table's, or no whole one.
fn stray(digits: &str) -> Vec<u8> {
    samples::unpack(digits)
}

#[test]
fn a_first_volume_alone_is_told_as_one() {
    let taken = take_apart(&stray(include_str!("samples/rar-5-volume.hex")), &Passwords::NONE);
    assert!(taken.outcome.broken.as_deref().is_some_and(|reason| reason.contains("volume")), "{:?}", taken.outcome);
    let whole = SAMPLES.iter().find(|sample| sample.name == "7z-lzma").unwrap().file();
    let taken = take_apart(&whole[..200], &Passwords::NONE);
    assert!(taken.outcome.broken.as_deref().is_some_and(|reason| reason.contains("volume")), "{:?}", taken.outcome);
}

#[test]
fn a_dictionary_of_four_gibibytes_is_a_limit_and_costs_nothing() {
    let small = Limits { files: 3, ..conformance::limits() };
    for (name, format) in [("7z-lzma", "7z"), ("lzma", "lzma"), ("nsis-lzma-solid", "nsis")] {
        let sample = SAMPLES.iter().find(|sample| sample.name == name).unwrap();
        let mut file = sample.file();
        // The properties of LZMA: lc 3, lp 0, pb 2, and the dictionary's length behind.
        let at = file.windows(4).rposition(|four| matches!(four, [0x5d, _, _, _]) && four[1] == 0).unwrap();
        file[at + 1..at + 5].copy_from_slice(&u32::MAX.to_le_bytes());
        let format = ContainerFormat::named(format).unwrap();
        let taken = conformance::take_apart_within(format, &file, 0, &Passwords::NONE, small.clone());
        assert!(!taken.outcome.is_complete(), "{name}");
    }
}

#[test]
fn limits_of_count_and_length_hold_in_each_format() {
    each(|sample, case| {
        let format = ContainerFormat::named(sample.format).unwrap();
        let run = |limits: Limits| conformance::take_apart_within(format, case.file, 0, &case.passwords, limits);
        let whole = run(conformance::limits());
        if whole.members.len() > 1 {
            let taken = run(Limits { files: 1, ..conformance::limits() });
            assert_eq!((taken.outcome.limits, taken.members.len()), ([Limit::Files].into(), 1), "{}", sample.name);
        }
        let taken = run(Limits { produced_bytes: 10, ..conformance::limits() });
        assert_eq!(taken.outcome.limits, [Limit::Size].into(), "{}", sample.name);
    });
}

#[test]
fn without_its_password_it_is_protected_and_not_broken() {
    for sample in SAMPLES.iter().filter(|sample| sample.password.is_some()) {
        for passwords in [Passwords::NONE, Passwords::new(["wrong".to_owned()])] {
            let taken = take_apart(&sample.file(), &passwords);
            assert!(!taken.outcome.protected.is_empty(), "{}: {:?}", sample.name, taken.outcome);
            assert!(taken.outcome.broken.is_none(), "{}: {:?}", sample.name, taken.outcome);
        }
    }
}

#[test]
fn what_a_given_password_opened_is_told() {
    for sample in SAMPLES {
        // One password too many opens nothing that was open before.
        let outcome = take_apart(&sample.file(), &passwords(sample)).outcome;
        assert_eq!(outcome.decrypted, sample.password.is_some(), "{}: {outcome:?}", sample.name);
    }
}

/// A header of a tape archive.
fn tar_header(name: &str, size: usize, kind: u8) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_size(size as u64);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn tar_entry(name: &str, content: &[u8], kind: u8) -> Vec<u8> {
    let mut entry = [&tar_header(name, content.len(), kind)[..], content].concat();
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn gzipped(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, content).unwrap();
    encoder.finish().unwrap()
}

fn must_be_found(what: &str, file: &[u8]) {
    assert!(
        conformance::is_found(file, &eicar(), &Passwords::NONE),
        "{what}: {:?}",
        take_apart(file, &Passwords::NONE)
    );
}

#[test]
fn tape_archives_are_walked_as_all_programs_walk_them() {
    let evil = tar_entry("e.gz", &gzipped(&eicar()), b'0');
    let end = vec![0; 1024];
    // Whoever takes the entry before for longer or shorter than others does finds another file in the decoy's content.
    let decoy =
        |first: &[u8], size: usize| [first, &tar_header("decoy", size, b'0'), &[b'J'; 512], &evil, &end].concat();
    let length = 512 + evil.len();
    must_be_found("a link", &decoy(&tar_header("l", 1024, b'2'), length));
    must_be_found("a hard link", &decoy(&tar_header("l", 1024, b'1'), length));
    must_be_found("a pipe", &decoy(&tar_header("l", 1024, b'6'), length));
    must_be_found("of Solaris", &decoy(&tar_entry("x", b"12 size=512\n", b'X'), length));
    must_be_found("a space", &decoy(&tar_entry("x", b"13 size= 512\n", b'x'), length));
    must_be_found("before the first", &[&[b'J'; 512][..], &evil, &end].concat());
    // A link with a length and nothing else to it is nothing to remark, as often as it comes.
    let links = [tar_header("l", 1024, b'1').repeat(200), tar_entry("a", &[b'a'; 3000], b'0'), end].concat();
    let taken = take_apart(&links, &Passwords::NONE);
    assert!(taken.outcome.is_complete() && taken.members.len() == 1, "{taken:?}");
}

/// Whether a file has a member of exactly this content.
fn comes_out(content: &[u8], file: &[u8]) -> bool {
    take_apart(file, &Passwords::NONE).members.iter().any(|(_, member)| member == content)
}

#[test]
fn entries_of_tape_archives_come_out_as_long_as_any_program_takes_them_for() {
    // Content that looks like the end to whoever takes the entry for empty.
    let content = [vec![0; 512], eicar()].concat();
    let end = vec![0; 1024];
    let sized = |records: &[u8], kind: u8| {
        let first = tar_entry("readme", b"hello", b'0');
        [first, tar_entry("x", records, kind), tar_entry("e", &content, b'0'), end.clone()].concat()
    };
    for records in [
        &b"+11 size=0\n"[..],
        b"10 size=0\n",
        b" 10 size=0\n",
        b"11  size=0\n",
        b"12 size=0x\n\n",
        b"12 size=+0\n\n",
        b"16 comment=none\n+11 size=0\n",
    ] {
        let shown = String::from_utf8_lossy(records);
        assert!(comes_out(&content, &sized(records, b'x')), "{shown:?}");
        assert!(comes_out(&content, &sized(records, b'X')), "{shown:?}");
    }
    // And the other way round, where the header itself says that it is empty.
    let length = content.len();
    for record in [format!("size={length}"), format!("size= {length}"), format!("size=0_{length}")] {
        let records = format!("{} {record}\n", record.len() + 4);
        let entry = [tar_entry("x", records.as_bytes(), b'x'), tar_header("e", 0, b'0'), content.clone()].concat();
        assert!(comes_out(&content, &[entry, end.clone()].concat()), "{records:?}");
    }
    let mut signed = tar::Header::new_ustar();
    signed.as_mut_bytes()[124..136].copy_from_slice(b"+0000000000\0");
    signed.set_cksum();
    let signed = [&signed.as_bytes()[..], &content, &end].concat();
    assert!(take_apart(&signed, &Passwords::NONE).outcome.broken.is_some());
    // The content of hard links, in an archive of PAX and where no header follows.
    let link = [tar_entry("l", &content, b'1'), end.clone()].concat();
    assert!(comes_out(&content, &link));
    let decoy = [tar_entry("decoy", b"hello", b'0'), content.clone()].concat();
    let link = [tar_entry("x", b"10 mtime=1\n", b'x'), tar_entry("l", &decoy, b'1'), end.clone()].concat();
    assert!(comes_out(&decoy, &link));
    // More of it than a few times the archive's length is told.
    let links = tar_header("l", 1 << 20, b'1').repeat(100);
    let links = [tar_entry("x", b"10 mtime=1\n", b'x'), links, end.clone()].concat();
    assert!(take_apart(&links, &Passwords::NONE).outcome.suspicious.is_some());
}

#[test]
fn what_lies_behind_the_end_of_a_tape_archive_comes_out() {
    let archive = [tar_entry("readme", b"hello", b'0'), vec![0; 1024]].concat();
    // Programs pad an archive to 10 KiB, or to whole tracks.
    for padding in [0, 1, 9216, 1 << 20] {
        let taken = take_apart(&[archive.clone(), vec![0; padding]].concat(), &Passwords::NONE);
        assert!(taken.outcome.is_complete() && taken.members.len() == 1, "{padding}: {taken:?}");
    }
    let behind = [vec![b'J'; 600], vec![0; 2000], eicar()].concat();
    for padding in [0, 512, 5120] {
        let taken = take_apart(&[archive.clone(), vec![0; padding], behind.clone()].concat(), &Passwords::NONE);
        assert!(taken.outcome.is_complete(), "{taken:?}");
        assert_eq!(taken.members[1], ("behind the archive".to_owned(), behind.clone()));
    }
    // And so does what lies behind that.
    let more = [vec![0; 1024], archive.clone(), vec![b'K'; 512], archive].concat();
    let names: Vec<_> = take_apart(&more, &Passwords::NONE).members.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["readme", "behind the archive", "readme"]);
}

#[test]
fn archives_are_found_behind_and_before_anything() {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("e.com", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut zip, &eicar()).unwrap();
    let zip = zip.finish().unwrap().into_inner();
    let junk = |byte: u8, length: usize| vec![byte; length];
    must_be_found("in text", &[junk(b'J', 100_000), zip.clone(), junk(b'K', 70_000)].concat());
    must_be_found("in an image", &[b"\xff\xd8\xff\xe0".to_vec(), junk(b'J', 1000), zip, junk(b'K', 66_000)].concat());
    let seven = SAMPLES.iter().find(|sample| sample.name == "7z-lzma").unwrap().file();
    must_be_found("behind a program", &[b"MZ".to_vec(), junk(b'J', 100_000), seven].concat());
    let tar = [tar_entry("e.com", &eicar(), b'0'), vec![0; 1024]].concat();
    must_be_found("behind a script", &[b"#!/bin/sh\ntail -n +3 $0 | tar xz\nexit\n".to_vec(), gzipped(&tar)].concat());
}

#[test]
fn archives_of_each_kind_are_found_behind_a_script() {
    let script = b"#!/bin/sh\n# ustar \n070701 LZIP\ntail -n +5 $0 | unpack\nexit\n";
    let sample = |name| SAMPLES.iter().find(|sample| sample.name == name).unwrap().file();
    let tar = [tar_entry("e.com", &eicar(), b'0'), vec![0; 1024]].concat();
    let mut archives = vec![("tar", tar)];
    archives.extend([("lz4", sample("lz4")), ("lz4", sample("lz4-legacy")), ("lzip", sample("lzip-two"))]);
    archives.extend([("lzma", sample("lzma")), ("compress", sample("compress"))]);
    archives.extend([("cpio", sample("cpio-odc")), ("cpio", sample("cpio-newc"))]);
    for (format, archive) in archives {
        // Near, and across what is searched at once.
        for padding in [0, 65_536 - script.len() - 3, 65_536 - script.len() - 262] {
            let file = [script, &vec![b'#'; padding][..], b"\n", &archive].concat();
            let found = lazaret_containers::detect_content(&file).unwrap().containers;
            let found: Vec<_> = found.iter().map(|found| (found.format.name(), found.offset as usize)).collect();
            assert_eq!(found, [(format, script.len() + padding + 1)]);
            assert!(!take_apart(&file, &Passwords::NONE).members.is_empty(), "{format}");
            // Shells run what has no mark as well, and so do other programs that go by a file's name.
            let unmarked = [&b"echo\n"[..], &vec![b'#'; padding + script.len() - 5], b"\n", &archive].concat();
            let found = lazaret_containers::detect_content(&unmarked).unwrap().containers;
            assert!(found.iter().any(|found| found.format.name() == format), "{format} behind {padding}: {found:?}");
            assert!(!take_apart(&unmarked, &Passwords::NONE).members.is_empty(), "{format}");
        }
    }
    // Pictures and tables begin with text, too.
    let mut random = conformance::Random(4);
    let noise: Vec<u8> = (0..3_000_000).map(|_| random.next() as u8).collect();
    for header in ["P6\n1000 1000\n255\n", "MATLAB 5.0 MAT-file\n", "a,b\n\n"] {
        let file = [header.as_bytes(), b"\0", &noise, b"\n\x1f\x9d\x90", b"\n\x1f\x8b\x08\0", &noise].concat();
        assert_eq!(lazaret_containers::detect_content(&file).unwrap().containers, []);
    }
    assert_eq!(lazaret_containers::detect_content(script).unwrap().containers, []);
}

/// A member of an archive of Spark's.
fn spark(method: u8, packed: &[u8], content: &[u8]) -> Vec<u8> {
    let sum = content.iter().fold(0u16, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xa001 } else { sum >> 1 })
    });
    let mut member = vec![0x1a, method];
    member.extend_from_slice(b"eicar/com\0\0\0\0");
    member.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    member.extend_from_slice(&[0; 4]);
    member.extend_from_slice(&sum.to_le_bytes());
    member.extend_from_slice(&(content.len() as u32).to_le_bytes());
    member.extend_from_slice(&[0xff; 12]);
    [member, packed.to_vec(), vec![0x1a, 0x80]].concat()
}

#[test]
fn archives_of_spark_come_apart() {
    let eicar = eicar();
    conformance::check(&Case::new("arc", &spark(0x82, &eicar, &eicar), &eicar), ROUNDS);
    // What compress(1) makes, with the width of its codes in one byte.
    let stream = SAMPLES.iter().find(|sample| sample.name == "compress").unwrap().file();
    let content = take_apart(&stream, &Passwords::NONE).members.remove(0).1;
    let packed = [&[stream[2] & 0x1f], &stream[3..]].concat();
    conformance::check(&Case::new("arc", &spark(0xff, &packed, &content), &eicar), ROUNDS);
    for method in [5, 6, 7, 10, 11] {
        let file = spark(0x80 | method, &packed, &content);
        assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some(), "{method}");
    }
    let behind = [spark(0x82, &eicar, &eicar), vec![0x1a; 100]].concat();
    assert!(take_apart(&behind, &Passwords::NONE).outcome.is_complete());
    let behind = [spark(0x82, b"clean", b"clean"), eicar.clone()].concat();
    must_be_found("behind the archive", &behind);
}

#[test]
fn trees_of_squeezed_members_that_lead_in_circles_end() {
    // One node whose children are itself; and one that is left for a node that is not there.
    for tree in [&b"\x01\0\0\0\0\0"[..], b"\x01\0\x01\0\x01\0", b"\x01\0\xfe\xfe\xfe\xfe", b"\xff\xff", b"\0\0"] {
        let packed = [tree, &[0x55; 1000]].concat();
        let taken = take_apart(&spark(0x84, &packed, b"content"), &Passwords::NONE);
        assert!(taken.outcome.broken.is_some(), "{tree:?}: {taken:?}");
    }
}

#[test]
fn films_come_out_and_what_is_not_opened_is_told() {
    let mut encoder = flate2::write::ZlibEncoder::new(b"CWS\x0a\x4c\0\0\0".to_vec(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, &eicar()).unwrap();
    let film = encoder.finish().unwrap();
    conformance::check(&Case::new("swf", &film, &eicar()), ROUNDS);
    for head in [&b"QFI\xfb\0\0\0\x03"[..], b"\x37\xe4\x53\x96\xc9\xdb\xd6\x07", b"WARC/1.0\r\n", b"ZWS\x0d\0\0\0\0"] {
        assert!(take_apart(head, &Passwords::NONE).outcome.broken.is_some(), "{head:?}");
    }
}

#[test]
fn the_last_volume_of_a_split_archive_is_told() {
    // What 7-Zip ends an archive with: where the packed header lies, behind some 300,000 bytes, and how it is packed.
    let end = b"\x17\x06\xc4\xfb\x93\x01\x09\x67\0\x07\x0b\x01\0\x01\x23\x03\x01\x01\x05\x5d\0\x10\0\0\x0c\x6e\x0a\x01\xc8\xe4\x1f\x90\0\0";
    let mut random = conformance::Random(1);
    let mut noise = |length: usize| (0..length).map(|_| random.next() as u8).collect::<Vec<_>>();
    let before = 32 + 0x493fb + 0x67;
    for length in [200, 95_000, before - 1] {
        let file = [&noise(length)[..], end].concat();
        let taken = take_apart(&file, &Passwords::NONE);
        assert!(taken.outcome.broken.is_some_and(|reason| reason.contains("volume")), "{length}");
        assert!(take_apart(&file[..file.len() - 1], &Passwords::NONE).outcome.is_complete());
    }
    // One that lies whole at the end of something else is found by its beginning.
    let file = [&noise(before)[..], end].concat();
    assert!(take_apart(&file, &Passwords::NONE).outcome.is_complete());
}
