//! Programs that carry something: for Linux, of each width and order of bytes, and for Windows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Cursor, Write};

use lazaret_containers::conformance::{self, Case, eicar, take_apart};
use lazaret_containers::{ContainerFormat, Passwords, detect};

const ROUNDS: u32 = 500;

/// A program of one segment and one section, whose table of sections is not the last of it.
fn program(is_wide: bool, is_big_endian: bool) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1 + u8::from(is_wide), 1 + u8::from(is_big_endian), 1]);
    let mut put = |at: usize, bytes: usize, number: u64| {
        let raw = if is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() };
        let raw = if is_big_endian { &raw[8 - bytes..] } else { &raw[..bytes] };
        file[at..at + bytes].copy_from_slice(raw);
    };
    let word = if is_wide { 8 } else { 4 };
    let at = |narrow: usize, wide: usize| if is_wide { wide } else { narrow };
    put(at(28, 32), word, 64);
    put(at(32, 40), word, 128);
    let sizes = at(42, 54);
    for (place, number) in [(0, 56), (2, 1), (4, 64), (6, 2)] {
        put(sizes + place, 2, number);
    }
    // The segment, a section of bytes that ends where the program does, and one that takes no place.
    for (place, number) in [(at(4, 8), 256), (at(16, 32), 512)] {
        put(64 + place, word, number);
    }
    for (section, kind, offset, length) in [(0, 1, 512, 512), (1, 8, 512, 1 << 20)] {
        let section = 128 + section * 64;
        put(section + 4, 4, kind);
        put(section + at(16, 24), word, offset);
        put(section + at(20, 32), word, length);
    }
    file
}

fn gz(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn formats(file: &[u8]) -> Vec<&'static str> {
    let detected = detect(&mut Cursor::new(file), file.len() as u64).unwrap();
    detected.containers.iter().map(|found| found.format.name()).collect()
}

#[test]
fn what_is_behind_a_program_comes_out() {
    for (is_wide, is_big_endian) in [(false, false), (false, true), (true, false), (true, true)] {
        let program = program(is_wide, is_big_endian);
        assert_eq!(formats(&program), [""; 0], "a program that carries nothing");
        let tail = gz(&eicar());
        let file = [program.as_slice(), &tail].concat();
        let taken = take_apart(&file, &Passwords::NONE);
        assert_eq!(taken.members, [("behind the program".to_owned(), tail)], "{is_wide} {is_big_endian}");
        let eicar = eicar();
        let case = Case::new("elf", &file, &eicar);
        conformance::comes_apart(&case);
        conformance::survives_mutations(&case, ROUNDS);
        // Cut off it carries nothing, and is no container.
        assert_eq!(formats(&program[..800]), [""; 0]);
        for length in 0..program.len() {
            conformance::take_apart_as(ContainerFormat::named("elf").unwrap(), &program[..length], 0, &Passwords::NONE);
        }
    }
}

#[test]
fn an_archive_behind_a_program_is_no_surprise() {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("e.com", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&eicar()).unwrap();
    let file = [program(true, false), zip.finish().unwrap().into_inner()].concat();
    let taken = take_apart(&file, &Passwords::NONE);
    assert!(taken.outcome.is_complete(), "{:?}", taken.outcome);
    assert!(conformance::is_found(&file, &eicar(), &Passwords::NONE));
}

#[test]
fn real_programs_carry_nothing() {
    for path in ["/bin/true", "/bin/sh", "/bin/ls"] {
        let Ok(file) = std::fs::read(path) else { continue };
        assert_eq!(formats(&file), [""; 0], "{path}");
    }
}

/// A program for Windows of one section, with a directory of the number in its headers.
fn windows(section: &[u8], number: usize, place: (u32, u32)) -> Vec<u8> {
    let mut file = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(60, &64u32.to_le_bytes());
    // One section, an optional header of 224 bytes, of which 16 directories are the end.
    put(64, b"PE\0\0\x4c\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\xe0\0\x02\x01\x0b\x01");
    put(88 + 92, &16u32.to_le_bytes());
    put(88 + 96 + number * 8, &[place.0.to_le_bytes(), place.1.to_le_bytes()].concat());
    let numbers = [section.len() as u32, 0x1000, section.len() as u32, 512];
    put(312, b".data\0\0\0");
    put(320, &numbers.map(u32::to_le_bytes).concat());
    [&file[..], section].concat()
}

/// Resources of a type each, as a section. Without a content a resource is nowhere in the file.
fn resources(types: &[u32], content: Option<&[u8]>) -> Vec<u8> {
    let directory = |entries: &[(u32, u32)]| {
        let mut bytes = [&[0; 14][..], &(entries.len() as u16).to_le_bytes()].concat();
        bytes.extend(entries.iter().flat_map(|(name, place)| [name.to_le_bytes(), place.to_le_bytes()].concat()));
        bytes
    };
    let below = (16 + types.len() * 8) as u32;
    let is_directory = 1 << 31;
    let list: Vec<_> = types.iter().map(|kind| (*kind, is_directory | below)).collect();
    let mut section = directory(&list);
    section.extend(directory(&[(1, is_directory | (below + 24))]));
    section.extend(directory(&[(1033, below + 48)]));
    let length = content.map_or(100, <[u8]>::len) as u32;
    let address = if content.is_some() { 0x1000 + below + 64 } else { 0x9000_0000 };
    section.extend([address, length, 0, 0].map(u32::to_le_bytes).concat());
    section.extend(content.unwrap_or_default());
    section.resize(section.len().next_multiple_of(512), 0);
    section
}

#[test]
fn resources_of_any_type_but_those_of_windows_itself_come_out() {
    let content = gz(&eicar());
    let program = |types: &[u32]| windows(&resources(types, Some(&content)), 2, (0x1000, 512));
    for kind in [10, 19, 20, 23, 25, 300, 9999] {
        let file = program(&[kind]);
        let taken = take_apart(&file, &Passwords::NONE);
        assert_eq!(taken.members, [(format!("{kind}/1/1033"), content.clone())]);
        assert!(taken.outcome.is_complete());
    }
    // Icons, versions and manifests are in nearly all programs, which are no containers for that.
    assert_eq!(formats(&program(&[1, 3, 5, 6, 12, 14, 16, 24, 241])), [""; 0]);
}

#[test]
fn a_resource_that_cannot_be_read_hides_no_other() {
    // The directories of the second section are those of the first, but for one entry that leads nowhere.
    let content = gz(&eicar());
    let mut section = resources(&[300, 301], Some(&content));
    section[16 + 12..16 + 16].copy_from_slice(&0x8fff_ffffu32.to_le_bytes());
    let file = windows(&section, 2, (0x1000, 512));
    assert_eq!(formats(&file), ["pe"]);
    let taken = take_apart(&file, &Passwords::NONE);
    assert_eq!(taken.members, [("300/1/1033".to_owned(), content)]);
    assert!(taken.outcome.broken.is_some());
    // Packed programs have resources that are nowhere until they run.
    assert_eq!(formats(&windows(&resources(&[10], None), 2, (0x1000, 512))), [""; 0]);
}

/// An entry of the table of signatures.
fn signature(signed: &[u8], behind: &[u8]) -> Vec<u8> {
    let der = [&[0x30, 0x82], &(signed.len() as u16).to_be_bytes()[..], signed].concat();
    let length = (8 + der.len() + behind.len()).next_multiple_of(8);
    let mut entry = [&(length as u32).to_le_bytes()[..], b"\0\x02\x02\0", &der, behind].concat();
    entry.resize(length, 0);
    entry
}

#[test]
fn what_lies_among_signatures_comes_out() {
    let signed = |table: &[u8]| [windows(&[1; 512], 4, (1024, table.len() as u32)), table.to_vec()].concat();
    let (one, other) = (signature(&[7; 1001], b""), signature(&[8; 300], b""));
    for table in [&one, &other, &[&one[..], &other].concat()] {
        assert_eq!(formats(&signed(table)), [""; 0], "a signed program carries nothing");
    }
    let content = gz(&eicar());
    for table in [content.clone(), signature(&[7; 1001], &content), [&one[..], &content].concat()] {
        let file = signed(&table);
        assert!(conformance::is_found(&file, &eicar(), &Passwords::NONE));
        assert!(take_apart(&file, &Passwords::NONE).outcome.is_complete());
        let eicar = eicar();
        conformance::survives_mutations(&Case::new("pe", &file, &eicar), ROUNDS);
    }
}

/// A RAR archive of a stored member.
fn rar(content: &[u8]) -> Vec<u8> {
    let block = |fields: &[u8], data: &[u8]| {
        let header = [&[fields.len() as u8], fields].concat();
        [&crc32fast::hash(&header).to_le_bytes()[..], &header, data].concat()
    };
    let length = content.len() as u8;
    assert!(length < 128, "numbers of one byte");
    let crc = crc32fast::hash(content).to_le_bytes();
    let file = [&[2, 2, length, 4, length, 0x20][..], &crc, &[0, 1, 6], b"member"].concat();
    [b"Rar!\x1a\x07\x01\0".to_vec(), block(&[1, 0, 0], b""), block(&file, content), block(&[5, 0, 0], b"")].concat()
}

#[test]
fn an_archive_of_rar_is_found_anywhere_in_a_program() {
    let content = gz(&eicar());
    let archive = rar(&content);
    assert!(conformance::is_found(&archive, &eicar(), &Passwords::NONE), "alone");
    // What unpacks archives has their mark in its own data.
    let mark = b"Rar!\x1a\x07\x01\0Rar!\x1a\x07\0";
    let bare = windows(&[&mark[..], &[0; 496]].concat(), 4, (0, 0));
    assert_eq!(formats(&bare), [""; 0]);
    let mut section = [&mark[..], &resources(&[10], Some(b"a resource of the program")), &archive].concat();
    let root = 0x1000 + mark.len() as u32;
    section.resize(2048, 0);
    // Addresses in the resources are those of a section that begins with them.
    let leaf = mark.len() + 24 + 24 + 24;
    section[leaf..leaf + 4].copy_from_slice(&(root + 88).to_le_bytes());
    let file = windows(&section, 2, (root, 512));
    assert_eq!(formats(&file), ["rar", "pe"]);
    assert!(conformance::is_found(&file, &eicar(), &Passwords::NONE));
    assert!(take_apart(&file, &Passwords::NONE).outcome.suspicious.is_none());
    // Behind the program it is handed out as all is that lies there, and is not opened twice.
    assert_eq!(formats(&[bare, archive].concat()), ["pe"]);
}
