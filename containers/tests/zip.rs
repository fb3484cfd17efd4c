//! ZIP archives that show different programs different members: every program's are handed out, and the archive is suspicious.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Cursor, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lazaret_containers::conformance::{self, Case, Taken, eicar, take_apart};
use lazaret_containers::{Budget, Passwords, TreeBudget, Turn, detect};

const DEFLATED: u16 = 8;
const STORED: u16 = 0;
/// Lengths and checksum follow the data.
const DESCRIPTOR: u16 = 8;

/// A member as its headers tell it.
struct Member {
    name: &'static str,
    flags: u16,
    method: u16,
    crc: u32,
    packed_bytes: u64,
    bytes: u64,
}

fn deflated(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn readme() -> Vec<u8> {
    b"There is nothing in here.\n".repeat(5)
}

impl Member {
    fn new(name: &'static str, content: &[u8], method: u16) -> Self {
        let packed_bytes = if method == STORED { content.len() } else { deflated(content).len() } as u64;
        Self { name, flags: 0, method, crc: crc32fast::hash(content), packed_bytes, bytes: content.len() as u64 }
    }

    /// The fields that both headers have.
    fn fields(&self, is_known: bool) -> Vec<u8> {
        let numbers = [u64::from(self.crc), self.packed_bytes, self.bytes];
        let mut fields = [20, self.flags, self.method, 0, 0x5a21].map(u16::to_le_bytes).concat();
        fields.extend(numbers.iter().flat_map(|number| if is_known { *number as u32 } else { 0 }.to_le_bytes()));
        fields.extend((self.name.len() as u16).to_le_bytes());
        fields
    }

    fn local(&self) -> Vec<u8> {
        let fields = self.fields(self.flags & DESCRIPTOR == 0);
        [b"PK\x03\x04", &fields[..], &[0, 0], self.name.as_bytes()].concat()
    }

    fn central(&self, offset: usize) -> Vec<u8> {
        let offset = (offset as u32).to_le_bytes();
        [b"PK\x01\x02\x14\0", &self.fields(true)[..], &[0; 12], &offset, self.name.as_bytes()].concat()
    }
}

fn end(members: u16, directory_bytes: u32, directory_offset: u32, comment: &[u8]) -> Vec<u8> {
    let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
    end.extend([members.to_le_bytes(), members.to_le_bytes()].concat());
    end.extend([directory_bytes.to_le_bytes(), directory_offset.to_le_bytes()].concat());
    end.extend((comment.len() as u16).to_le_bytes());
    [&end[..], comment].concat()
}

/// A ZIP64 end record that will lie at `offset`, and its locator.
fn end64(directory_bytes: usize, directory_offset: usize, offset: usize) -> Vec<u8> {
    let mut end = b"PK\x06\x06".to_vec();
    end.extend(44u64.to_le_bytes());
    end.extend([45u16, 45].map(u16::to_le_bytes).concat());
    end.extend([0u32; 2].map(u32::to_le_bytes).concat());
    end.extend([1, 1, directory_bytes as u64, directory_offset as u64].map(u64::to_le_bytes).concat());
    end.extend([b"PK\x06\x07\0\0\0\0", &(offset as u64).to_le_bytes()[..], &1u32.to_le_bytes()].concat());
    end
}

fn open(file: &[u8]) -> Taken {
    take_apart(file, &Passwords::NONE)
}

fn holds(file: &[u8], name: &str) -> bool {
    open(file).members.contains(&(name.to_owned(), eicar()))
}

fn is_suspicious(file: &[u8]) -> bool {
    open(file).outcome.suspicious.is_some()
}

/// Two archives with one local part: the first's comment is the directory of the second, whose end record has another byte behind it.
/// Tells also where the first directory is.
fn two_ends(local: &[u8], first: &[u8], second: &[u8]) -> Vec<u8> {
    let second_offset = (local.len() + first.len() + 22) as u32;
    let comment = [second, &end(1, second.len() as u32, second_offset, b""), b"\n"].concat();
    [local, first, &end(1, first.len() as u32, local.len() as u32, &comment)].concat()
}

#[test]
fn members_of_the_last_end_record_come_out_and_those_of_the_last_that_fits() {
    let (shown, hidden) = (Member::new("a.txt", &readme(), DEFLATED), Member::new("e.com", &eicar(), DEFLATED));
    // Not one program takes the method from the local header alone.
    let misnamed = Member { method: 77, ..Member::new("e.com", &eicar(), DEFLATED) };
    let mut local = [shown.local(), deflated(&readme())].concat();
    let place = local.len();
    local.extend([misnamed.local(), deflated(&eicar())].concat());
    let file = two_ends(&local, &shown.central(0), &hidden.central(place));
    assert!(holds(&file, "e.com") && is_suspicious(&file));
    assert!(open(&file).members.contains(&("a.txt".to_owned(), readme())));
}

#[test]
fn members_of_the_end_record_and_of_its_zip64_record_come_out() {
    let (shown, hidden) = (Member::new("a.txt", &readme(), DEFLATED), Member::new("e.com", &eicar(), DEFLATED));
    // A stored member is all of it a member's content: what lies in it is reached by a directory of its own only.
    let hidden_data = [hidden.local(), deflated(&eicar())].concat();
    let around = Member::new("b.bin", &hidden_data, STORED);
    let mut local = [shown.local(), deflated(&readme()), around.local()].concat();
    let place = local.len();
    local.extend(&hidden_data);
    let around_offset = place - around.local().len();
    let (one, other) = (hidden.central(place), around.central(around_offset));
    let (one_offset, other_offset) = (local.len(), local.len() + one.len());
    let directories = [one.clone(), other.clone()].concat();
    let records = end64(other.len(), other_offset, local.len() + directories.len());
    let file = [&local[..], &directories, &records, &end(1, one.len() as u32, one_offset as u32, b"")].concat();
    assert!(holds(&file, "e.com") && is_suspicious(&file));
    // A record that leads to one directory and fills the fields of the other with its own is one archive.
    let honest = end64(one.len(), one_offset, local.len() + one.len());
    for (bytes, offset) in [(u32::MAX, u32::MAX), (one.len() as u32, one_offset as u32), (u32::MAX, one_offset as u32)]
    {
        let file = [&local[..], &one, &honest, &end(1, bytes, offset, b"")].concat();
        assert!(holds(&file, "e.com") && open(&file).outcome.suspicious.is_some_and(|what| what.contains("a.txt")));
    }
}

#[test]
fn offsets_may_be_less_than_nothing_off() {
    let (shown, hidden) = (Member::new("e.com", &readme(), DEFLATED), Member::new("e.com", &eicar(), DEFLATED));
    let mut local = [hidden.local(), deflated(&eicar())].concat();
    let place = local.len();
    local.extend([shown.local(), deflated(&readme())].concat());
    let directory = shown.central(place);
    let file = [&local[..], &directory, &end(1, directory.len() as u32, (local.len() + place) as u32, b"")].concat();
    assert!(holds(&file, "e.com") && is_suspicious(&file));
}

#[test]
fn an_archive_of_zip64_is_found_between_anything() {
    let member = Member::new("e.com", &eicar(), DEFLATED);
    for (before, behind) in [("text\n", "\n"), ("", "\n"), ("text\n", ""), ("", "")] {
        for knows_place in [true, false] {
            let base = if knows_place { before.len() } else { 0 };
            let mut archive = [member.local(), deflated(&eicar())].concat();
            let (directory, offset) = (member.central(base), archive.len());
            archive.extend(&directory);
            let record_offset = base + archive.len();
            archive.extend(end64(directory.len(), base + offset, record_offset));
            archive.extend(end(u16::MAX, u32::MAX, u32::MAX, b""));
            let file = [before.as_bytes(), &archive, behind.as_bytes()].concat();
            assert!(holds(&file, "e.com"), "{before:?} {behind:?}");
            let outcome = open(&file).outcome;
            assert!(outcome.is_complete(), "{before:?} {behind:?} {}", outcome.detail());
        }
    }
    let far = [b"text\n".repeat(100), vec![b'.'; 70_000]];
    let mut archive = [member.local(), deflated(&eicar()), member.central(500)].concat();
    let directory_bytes = member.central(0).len();
    let offset = archive.len() - directory_bytes;
    archive.extend(end64(directory_bytes, far[0].len() + offset, far[0].len() + archive.len()));
    archive.extend(end(u16::MAX, u32::MAX, u32::MAX, b""));
    assert!(holds(&[&far[0][..], &archive, &far[1]].concat(), "e.com"), "far from both ends");
}

#[test]
fn what_other_archives_hold_is_not_this_one() {
    let written = |content: &[u8], comment: &str| {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        writer.start_file("member", stored).unwrap();
        writer.write_all(content).unwrap();
        writer.set_comment(comment).unwrap();
        writer.finish().unwrap().into_inner()
    };
    // Archives in archives are stored mostly, so their end records lie near the end as well.
    let nested = written(&written(&written(b"content", ""), "inner"), "outer");
    for (before, behind) in [("", ""), ("", "\n"), ("#!/bin/sh\n", ""), ("#!/bin/sh\n", "\n")] {
        let file = [before.as_bytes(), &nested, behind.as_bytes()].concat();
        let taken = open(&file);
        let members = 1 + usize::from(!before.is_empty());
        assert!(taken.outcome.is_complete() && taken.members.len() == members, "{before:?} {behind:?} {taken:?}");
    }
    let remark = written(b"content", "an end record begins with PK\x05\x06, and then come its 22 bytes");
    assert!(open(&remark).outcome.is_complete());
    let empty = end(0, 0, 0, b"");
    assert!(open(&empty).outcome.is_complete() && open(&[&empty[..], b"\n"].concat()).outcome.is_complete());
}

#[test]
fn end_records_without_end_are_told() {
    let ends = end(1, 1, 1, b"").repeat(400);
    let file = [&b"text\n"[..], &ends, b"\n"].concat();
    let detected = detect(&mut Cursor::new(&file), file.len() as u64).unwrap();
    assert_eq!(detected.containers[0].format.name(), "zip");
    assert!(is_suspicious(&file));
    let eicar = eicar();
    let member = Member::new("e.com", &eicar, DEFLATED);
    let local = [member.local(), deflated(&eicar)].concat();
    let file = two_ends(&local, &member.central(0), &member.central(0));
    conformance::survives_mutations(&Case::new("zip", &file, &eicar), 500);
}

/// A member whose length covers another one as well, which no directory has. Between the two lie the first's lengths, as behind data
/// whose length was not known before.
fn covering(content: &[u8], method: u16, packed: &[u8], hidden: &[u8]) -> Vec<u8> {
    let numbers = [crc32fast::hash(content), packed.len() as u32, content.len() as u32];
    let descriptor = [b"PK\x07\x08".to_vec(), numbers.map(u32::to_le_bytes).concat()].concat();
    let data = [packed, &descriptor, hidden].concat();
    let shown = match method {
        STORED => Member::new("a.txt", &data, STORED),
        _ => Member { packed_bytes: data.len() as u64, ..Member::new("a.txt", content, method) },
    };
    let shown = Member { flags: DESCRIPTOR, ..shown };
    let local = [shown.local(), data].concat();
    let directory = shown.central(0);
    [&local[..], &directory, &end(1, directory.len() as u32, local.len() as u32, b"")].concat()
}

fn bzipped(content: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = conformance::Random(7);
    std::iter::repeat_with(|| random.next() as u8).take(bytes).collect()
}

#[test]
fn what_a_member_says_it_covers_but_does_not_is_searched() {
    let member = Member::new("e.com", &eicar(), DEFLATED);
    let hidden = [member.local(), deflated(&eicar())].concat();
    let long = noise(400_000);
    for (content, method, packed) in [
        (&readme(), DEFLATED, deflated(&readme())),
        (&long, DEFLATED, deflated(&long)),
        (&readme(), 12, bzipped(&readme())),
    ] {
        let file = covering(content, method, &packed, &hidden);
        assert!(holds(&file, "e.com") && is_suspicious(&file), "method {method}");
        assert_eq!(open(&file).members[0], ("a.txt".to_owned(), content.clone()));
        // What is no member there is no more than what lies between members.
        let file = covering(content, method, &packed, b"PK");
        assert!(open(&file).outcome.is_complete(), "method {method} {:?}", open(&file).outcome);
    }
}

#[test]
fn a_header_may_reach_into_what_is_covered() {
    // The last byte of the hidden header, of a length, is the first of the next one: 0x5000 bytes follow it before its data.
    let hidden = Member { name: "", ..Member::new("e.com", &eicar(), DEFLATED) };
    let header = hidden.local();
    let mut content = noise(0x5100);
    let around = Member::new("a.bin", &content, STORED);
    let at = 29 + 1 + 0x5000 - 29 - around.local().len();
    content.splice(at..at + deflated(&eicar()).len(), deflated(&eicar()));
    let around = Member::new("a.bin", &content, STORED);
    let local = [&header[..29], &around.local(), &content].concat();
    let directory = around.central(29);
    let file = [&local[..], &directory, &end(1, directory.len() as u32, local.len() as u32, b"")].concat();
    assert!(holds(&file, "") && is_suspicious(&file), "{:?}", open(&file).outcome);
}

#[test]
fn a_hidden_member_of_an_unknown_method_is_told_and_code_is_not_one() {
    let shown = Member::new("a.txt", &readme(), DEFLATED);
    let hidden = Member { method: 77, ..Member::new("e.com", &eicar(), DEFLATED) };
    let archive = |before: &[u8]| {
        let local = [before, &shown.local(), &deflated(&readme())].concat();
        let directory = shown.central(before.len());
        [&local[..], &directory, &end(1, directory.len() as u32, local.len() as u32, b"")].concat()
    };
    assert!(is_suspicious(&archive(&[hidden.local(), deflated(&eicar())].concat())));
    // A program that reads archives compares with the signature: cmp eax, 4034b50h; jne; and what follows.
    let code =
        [b"MZ\x3d", &b"PK\x03\x04\x75\x1a\x8b\x45\x08\x83\xc0\x04\x50\xe8\x10\x20\0\0"[..], &noise(100)].concat();
    let taken = open(&archive(&code));
    assert!(taken.outcome.suspicious.is_none() && taken.members.len() == 2, "{:?}", taken.outcome);
}

#[test]
fn archives_that_members_are_made_of_are_not_hidden_members() {
    // What can't be made shorter is deflated as it is, and so an archive in an archive can be read in it.
    for bytes in [10_000, 500_000] {
        let content = noise(bytes);
        let inner = Member::new("inner.bin", &content, STORED);
        let inner = [inner.local(), content].concat();
        let member = Member::new("inner.zip", &inner, DEFLATED);
        let local = [member.local(), deflated(&inner)].concat();
        assert!(deflated(&inner).windows(4).any(|window| window == b"PK\x03\x04"), "as it is");
        let directory = member.central(0);
        let file = [&local[..], &directory, &end(1, directory.len() as u32, local.len() as u32, b"")].concat();
        let taken = open(&file);
        assert!(taken.outcome.is_complete() && taken.members.len() == 1, "{:?}", taken.outcome);
    }
}

#[test]
fn whoever_reads_a_member_tells_that_another_is_behind_it() {
    let member = Member::new("e.com", &eicar(), DEFLATED);
    let hidden = [member.local(), deflated(&eicar())].concat();
    let file = covering(&readme(), DEFLATED, &deflated(&readme()), &hidden);
    let length = file.len() as u64;
    let tree = Arc::new(TreeBudget::new(conformance::limits(), length));
    // It takes the members of the directory, and another one what they don't cover.
    let turns = |turn| matches!(turn, Turn::Next { .. }).then_some(0..1);
    let budget = Budget::new(tree, Arc::new(AtomicBool::new(false)), length).shared(Box::new(turns));
    let found = detect(&mut Cursor::new(&file), length).unwrap().containers[0];
    let mut sink = |member: lazaret_containers::Member<'_>| {
        member.content.read_to_end(&mut Vec::new()).unwrap();
        Ok(())
    };
    let outcome = found.extract("file", length, &mut Cursor::new(&file), &Passwords::NONE, &budget, &mut sink);
    assert!(outcome.suspicious.is_some_and(|what| what.contains("a.txt")), "another worker's rest");
}

#[test]
fn a_stored_member_ends_at_its_descriptor_for_who_is_not_told_its_length() {
    let member = Member::new("e.com", &eicar(), DEFLATED);
    let hidden = [member.local(), deflated(&eicar())].concat();
    for content in [readme(), noise(64 * 1024 - 5), noise(200_000)] {
        let file = covering(&content, STORED, &content, &hidden);
        assert!(holds(&file, "e.com") && is_suspicious(&file), "{}", content.len());
    }
    // An archive written as it came, stored in another one that was: its members' descriptors are none of the outer one's.
    let inner = covering(&readme(), DEFLATED, &deflated(&readme()), b"");
    let member = Member { flags: DESCRIPTOR, ..Member::new("inner.zip", &inner, STORED) };
    let numbers = [member.crc, inner.len() as u32, inner.len() as u32].map(u32::to_le_bytes).concat();
    let local = [&member.local()[..], &inner, b"PK\x07\x08", &numbers].concat();
    let directory = member.central(0);
    let file = [&local[..], &directory, &end(1, directory.len() as u32, local.len() as u32, b"")].concat();
    let taken = open(&file);
    assert!(taken.outcome.is_complete() && taken.members.len() == 1, "{:?}", taken.outcome);
}

#[test]
fn what_is_before_an_archive_comes_out() {
    let page = b"<html><a href=\"data:application/octet-stream;base64,QUJDREVGR0hJSktMTU5PUA==\">x</a></html>\n";
    let taken = open(&[page, &end(0, 0, 0, b"")[..]].concat());
    assert_eq!(taken.members, [("before the archive".to_owned(), page.to_vec())]);
    assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
}
