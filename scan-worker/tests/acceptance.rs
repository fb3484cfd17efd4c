//! What a gateway must find, whatever it is wrapped in: the EICAR test file in every format of README's table.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod table;

use bytes::Bytes;
use common::*;
use lazaret_analysis::{ResultCode, Rule};
use lazaret_containers::Passwords;
use lazaret_scan_worker::engines;
use lazaret_scan_worker::scan::Scanner;
use table::{File, rows};

const INFECTED: ResultCode = ResultCode::INFECTED;

fn rule() -> Rule {
    Rule::with_defaults("test")
}

fn scan_file(scanner: &Scanner, file: &File, passwords: Passwords) -> Scanned {
    scan_locked(scanner, &file.name, Bytes::copy_from_slice(&file.bytes), rule(), passwords)
}

fn with_password(file: &File) -> Passwords {
    // The right one comes last: all are tried.
    Passwords::new(["wrong".to_owned()].into_iter().chain(file.password.map(str::to_owned)))
}

#[test]
fn eicar_is_found_in_every_format_of_the_table() {
    let rows = rows();
    table::check(&rows);
    let scanner = scanner(options(), engines::builtin().unwrap());
    println!("| Format | Files |\n|---|---|");
    for row in &rows {
        println!("| {} | {} |", row.formats, row.files.len());
        for file in &row.files {
            let scanned = scan_file(&scanner, file, with_password(file));
            let result = &scanned.root;
            if row.is_opened {
                let at: Vec<_> = scanned.records.iter().map(|record| (&record.path, record.result.own)).collect();
                assert_eq!(result.overall, INFECTED, "{}: {} {at:?}", file.name, scanned.detail());
                let by_name = scanned.records.iter().any(|record| record.result.own == INFECTED);
                assert!(by_name, "{}: found, and not in what came out of it", file.name);
            } else {
                assert_eq!(result.overall, ResultCode::EXTRACTION_FAILED, "{}", file.name);
            }
        }
    }
}

#[test]
fn without_its_password_a_file_is_told_as_protected() {
    let scanner = scanner(options(), engines::builtin().unwrap());
    let rows = rows();
    let locked: Vec<&File> = rows.iter().flat_map(|row| &row.files).filter(|file| file.password.is_some()).collect();
    for kind in ["zip-aes", "zip-traditional", "7z-aes", "rar-4-aes", "rar-5-aes", "arj"] {
        assert!(locked.iter().any(|file| file.name.starts_with(kind)), "no {kind} behind a password");
    }
    for file in locked {
        for passwords in [Passwords::NONE, Passwords::new(["wrong".to_owned()])] {
            let scanned = scan_file(&scanner, file, passwords);
            assert_eq!(scanned.root.overall, ResultCode::ENCRYPTED_ARCHIVE, "{}: {}", file.name, scanned.detail());
        }
    }
}

/// Each format three deep: in one of another kind, in one of a third.
#[test]
fn eicar_is_found_three_deep_in_mixed_formats() {
    let scanner = scanner(options(), engines::builtin().unwrap());
    let rows = rows();
    let files: Vec<&File> = rows.iter().filter(|row| row.is_opened).flat_map(|row| &row.files).collect();
    type Wrap = fn(&[u8]) -> Vec<u8>;
    let wraps: [Wrap; 7] = [
        |content| zip(&[("member", content)]),
        |content| tar(&[("member", content)]),
        gz,
        table::eml,
        xz,
        |content| ar(&[("member/", content)]),
        table::pdf,
    ];
    for (at, file) in files.iter().enumerate() {
        let (middle, outer) = (wraps[at % wraps.len()], wraps[(at / wraps.len() + at + 1) % wraps.len()]);
        let nested = outer(&middle(&file.bytes));
        let scanned = scan_locked(&scanner, "outer", nested.into(), rule(), with_password(file));
        assert_eq!(scanned.root.overall, INFECTED, "{}: {}", file.name, scanned.detail());
    }
}

#[test]
fn an_attachment_of_an_attached_message_is_found() {
    let scanned = scan("mail.eml", table::attached_message(&zip(&[("e.com", &eicar())])));
    let found = scanned.records.iter().find(|record| record.result.own == INFECTED).unwrap();
    assert!(found.path.ends_with(".eml/e.com/e.com"), "{}", found.path);
}

/// Whatever is behind a program, be it for Windows or Linux.
#[test]
fn the_tail_of_a_program_is_opened() {
    let windows = table::samples::SAMPLES.iter().find(|sample| sample.name == "pe-resource").unwrap().file();
    let linux = std::fs::read("/bin/true").unwrap();
    for (of, program) in [("windows", windows), ("linux", linux)] {
        for (name, tail) in [
            ("zip", zip(&[("e.com", &eicar())])),
            ("tar.gz", gz(&tar(&[("e.com", &eicar())]))),
            ("7z", table::samples::SAMPLES.iter().find(|sample| sample.name == "7z-lzma").unwrap().file()),
            ("cab", table::samples::SAMPLES.iter().find(|sample| sample.name == "cab-mszip").unwrap().file()),
            ("rar", table::samples::SAMPLES.iter().find(|sample| sample.name == "rar-5").unwrap().file()),
        ] {
            let scanned = scan("setup.exe", [program.as_slice(), &tail].concat());
            let by_name = scanned
                .records
                .iter()
                .any(|record| record.path.ends_with("e.com") || record.path.ends_with("eicar.com"));
            assert!(by_name && scanned.root.overall == INFECTED, "{name} behind {of}: {}", scanned.detail());
        }
    }
}
