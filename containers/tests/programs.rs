//! Programs for Linux with something behind them, of each width and order of bytes.

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
