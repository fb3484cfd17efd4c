//! Every container format, alone, nested in each other, and broken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;

use common::*;
use lazaret_analysis::{FileResult, ResultCode, Rule};
use lazaret_scan_worker::engines;
use zip::CompressionMethod;

const INFECTED: ResultCode = ResultCode::INFECTED;

/// A container format: its name, how one is made around one member, and the member's name if the format keeps none.
type Format = (&'static str, fn(&[u8]) -> Vec<u8>, Option<&'static str>);

const FORMATS: &[Format] = &[
    ("zip", |content| zip(&[("member", content)]), Some("member")),
    ("tar", |content| tar(&[("member", content)]), Some("member")),
    ("ar", |content| ar(&[("member/", content)]), Some("member")),
    ("gz", gz, None),
    ("bz2", bz2, None),
    ("xz", xz, None),
    ("zst", zst, None),
];

#[test]
fn eicar_is_found_in_each_format_and_in_each_format_nested_in_each_other() {
    for (outer, make_outer, _) in FORMATS {
        let scanned = scan(&format!("file.{outer}"), make_outer(&eicar()));
        assert_eq!(scanned.root.overall, INFECTED, "{outer}");
        assert_eq!(scanned.records.len(), 1);
        assert_eq!(scanned.records[0].result.engines[0].threat, "EICAR-Test-File");
        let container = scanned.root.container.as_ref().unwrap();
        assert_eq!((container.extracted_count, container.detected_count), (1, 1));
        assert_eq!(container.worst_child, Some(scanned.records[0].data_id));
        for (inner, make_inner, _) in FORMATS {
            let scanned = scan(&format!("file.{outer}"), make_outer(&make_inner(&eicar())));
            assert_eq!(scanned.root.overall, INFECTED, "{inner} in {outer}");
            // An archive with nothing behind a ZIP archive in it ends as one, and is opened as both; what is before the ZIP archive is an
            // archive that is cut off.
            let both = (*outer, *inner) == ("ar", "zip");
            assert_eq!(scanned.root.own == ResultCode::SUSPICIOUS, both, "{inner} in {outer}");
            assert_eq!(scanned.records.len(), if both { 5 } else { 2 }, "{inner} in {outer}");
            assert!(scanned.root.container.as_ref().unwrap().reason.is_none(), "{inner} in {outer}");
        }
    }
}

#[test]
fn eicar_is_found_three_deep_and_each_file_has_its_place() {
    let inner = zip(&[("clean.txt", b"clean"), ("eicar.com", &eicar())]);
    let middle = gz(&tar(&[("readme", b"read me"), ("inner.zip", &inner)]));
    let scanned = scan("outer.zip", zip(&[("a.txt", b"a"), ("middle.tar.gz", &middle)]));
    assert_eq!((scanned.root.own, scanned.root.overall), (ResultCode::NO_THREAT, INFECTED));
    assert_eq!(scanned.records.len(), 7);
    let found = scanned.at("middle.tar.gz/middle.tar/inner.zip/eicar.com");
    assert_eq!((found.ordinal, found.result.own), (1, INFECTED));
    assert_eq!(found.result.blocked_reasons, ["Infected"]);
    assert_eq!(found.result.file.sha256.len(), 64);
    assert_eq!(found.parent, scanned.at("middle.tar.gz/middle.tar/inner.zip").data_id);
    let worst = |result: &FileResult| result.container.as_ref().unwrap().worst_child.unwrap();
    let mut follow = worst(&scanned.root);
    for path in ["middle.tar.gz", "middle.tar.gz/middle.tar", "middle.tar.gz/middle.tar/inner.zip"] {
        assert_eq!(follow, scanned.at(path).data_id, "the worst member leads to the file that decided");
        follow = worst(&scanned.at(path).result);
    }
    assert_eq!(follow, found.data_id);
    assert_eq!(scanned.at("middle.tar.gz/middle.tar/readme").result.overall, ResultCode::NO_THREAT);
    assert_eq!(scanned.at("middle.tar.gz/middle.tar").result.file.file_type, "application/x-tar");
    assert_eq!(scanned.root.file.type_category, ["A"]);
}

#[test]
fn every_compression_method_of_zip_is_read() {
    for method in [
        CompressionMethod::Stored,
        CompressionMethod::Deflated,
        CompressionMethod::Bzip2,
        CompressionMethod::Zstd,
        CompressionMethod::Xz,
    ] {
        let scanned = scan("file.zip", zip_by(method, &[("eicar", &eicar()), ("empty", b"")]));
        assert_eq!(scanned.root.overall, INFECTED, "{method}: {}", scanned.detail());
        assert_eq!((scanned.records.len(), scanned.detail()), (2, ""), "{method}");
    }
    // No library at hand writes these. Deflate64 reads what deflate writes, as long as nothing repeats over 32 KiB.
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&eicar()).unwrap();
    let options = lzma_rust2::LzmaOptions::with_preset(1);
    let mut lzma = lzma_rust2::LzmaWriter::new_no_header(Vec::new(), &options, false).unwrap();
    lzma.write_all(&eicar()).unwrap();
    let mut lzma_data = vec![9, 20, 5, 0, options.get_props()];
    lzma_data.extend_from_slice(&options.dict_size.to_le_bytes());
    lzma_data.extend_from_slice(&lzma.finish().unwrap());
    for (method, data) in [(9, encoder.finish().unwrap()), (14, lzma_data)] {
        let scanned = scan("file.zip", zip_raw(method, &data, &eicar()));
        assert_eq!((scanned.root.overall, scanned.detail()), (INFECTED, ""), "method {method}");
    }
    let scanned = scan("file.zip", zip_raw(97, b"????", &eicar()));
    assert_eq!(scanned.root.own, ResultCode::EXTRACTION_FAILED);
    assert!(scanned.detail().contains("method 97"), "{}", scanned.detail());
}

/// A ZIP file of one member that was compressed elsewhere.
fn zip_raw(method: u16, data: &[u8], content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(content);
    let mut common = method.to_le_bytes().to_vec();
    common.extend_from_slice(&[0; 4]);
    common.extend_from_slice(&crc.sum().to_le_bytes());
    common.extend_from_slice(&(data.len() as u32).to_le_bytes());
    common.extend_from_slice(&(content.len() as u32).to_le_bytes());
    common.extend_from_slice(&[6, 0, 0, 0]);
    let mut file = [b"PK\x03\x04\x3f\0\0\0", &common[..], b"member", data].concat();
    let start = file.len() as u32;
    file.extend([b"PK\x01\x02\x3f\0\x3f\0\0\0", &common[..], &[0; 14], b"member"].concat());
    let bytes = file.len() as u32 - start;
    file.extend([b"PK\x05\x06\0\0\0\0\x01\0\x01\0", &bytes.to_le_bytes()[..], &start.to_le_bytes(), b"\0\0"].concat());
    file
}

#[test]
fn streams_of_several_parts_are_read_to_the_end_and_zeros_may_follow() {
    for (name, make) in [("gz", gz as fn(&[u8]) -> Vec<u8>), ("bz2", bz2), ("xz", xz), ("zst", zst)] {
        let mut parts = make(b"one ");
        parts.extend_from_slice(&make(b"two"));
        let scanned = scan(&format!("file.{name}"), parts.clone());
        assert_eq!((scanned.records.len(), scanned.detail()), (1, ""), "{name}");
        assert_eq!((scanned.at("file").result.file.size_bytes, scanned.root.overall), (7, ResultCode::NO_THREAT));
        if name == "gz" || name == "bz2" {
            parts.extend_from_slice(&[0; 1000]);
            assert_eq!(scan("file", parts.clone()).root.own, ResultCode::NO_THREAT, "{name} and zeros");
        }
        parts.extend_from_slice(b"garbage");
        let scanned = scan("file", parts);
        assert_eq!(scanned.root.own, ResultCode::EXTRACTION_FAILED, "{name} and garbage");
        assert_eq!(scanned.records[0].result.file.size_bytes, 7);
    }
}

#[test]
fn what_came_out_of_a_truncated_archive_is_scanned() {
    let noise: Vec<u8> = (0..100_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for (name, whole) in [
        ("zip", zip(&[("eicar", &eicar()), ("noise", &noise)])),
        ("tar", tar(&[("eicar", &eicar()), ("noise", &noise)])),
        ("ar", ar(&[("eicar/", &eicar()), ("noise/", &noise)])),
        ("tar.gz", gz(&tar(&[("eicar", &eicar()), ("noise", &noise)]))),
        ("tar.bz2", bz2(&tar(&[("eicar", &eicar()), ("noise", &noise), ("noise", &noise), ("noise", &noise)]))),
        ("tar.xz", xz(&tar(&[("eicar", &eicar()), ("noise", &noise)]))),
        ("tar.zst", zst(&tar(&[("eicar", &eicar()), ("noise", &noise)]))),
    ] {
        let half = whole[..whole.len() * 3 / 4].to_vec();
        let scanned = scan(&format!("file.{name}"), half);
        assert_eq!(scanned.root.overall, INFECTED, "{name}: {}", scanned.detail());
        // The damage is in the container itself or, in a compressed one, in the stream around it.
        let reason = scanned.root.container.as_ref().unwrap().reason;
        assert_eq!(reason, Some(ResultCode::EXTRACTION_FAILED), "{name}");
        assert!(!scanned.detail().is_empty());
        // The last member is there as far as it came out.
        let noise_records = scanned.records.iter().filter(|record| record.path.ends_with("noise"));
        assert!(noise_records.clone().all(|record| record.result.file.size_bytes > 0), "{name}");
    }
}

#[test]
fn every_cut_of_an_archive_ends_with_a_result_and_never_with_a_clean_one() {
    for (name, make, _) in FORMATS {
        let whole = make(b"content that is a little longer than nothing");
        for length in 9..whole.len() {
            let scanned = scan(&format!("file.{name}"), whole[..length].to_vec());
            // A tar without its closing zeros, or an ar without its padding, is complete.
            let complete = match *name {
                "tar" => length >= 512 + 44,
                "ar" => length >= 8 + 60 + 44,
                _ => false,
            };
            if scanned.root.container.is_some() && !complete {
                assert_ne!(scanned.root.overall, ResultCode::NO_THREAT, "{name} cut at {length}");
            }
        }
    }
}

#[test]
fn names_are_shown_and_never_followed() {
    let mut raw = zip(&[("../../../tmp/evil", b"one"), ("/absolute", b"two"), ("name-to-break", b"three")]);
    // Not UTF-8, and with a zero byte, in both headers.
    while let Some(at) = raw.windows(13).position(|name| name == b"name-to-break") {
        raw[at..at + 13].copy_from_slice(b"\xff\xfe\0-to-brea\n\x1b");
    }
    let scanned = scan("file.zip", raw);
    assert_eq!((scanned.root.overall, scanned.detail()), (ResultCode::NO_THREAT, ""));
    scanned.at("../../../tmp/evil");
    scanned.at("/absolute");
    scanned.at("\u{fffd}\u{fffd}\\u{0}-to-brea\\n\\u{1b}");
    assert!(!std::path::Path::new("/tmp/evil").exists());
}

#[test]
fn long_names_links_and_other_entries_of_tar() {
    let long = "d/".repeat(100) + "long";
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", "/etc/passwd").unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    builder.append_data(&mut header, "directory/", std::io::empty()).unwrap();
    builder.append_pax_extensions([("path", "named by pax".as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_path("short").unwrap();
    header.set_cksum();
    builder.append(&header, &b"pax"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(68);
    builder.append_data(&mut header, &long, &eicar()[..]).unwrap();
    let scanned = scan("file.tar", builder.into_inner().unwrap());
    assert_eq!(scanned.records.len(), 2, "{}", scanned.detail());
    assert_eq!(scanned.at(&long).result.own, INFECTED);
    scanned.at("named by pax");
    // What follows the end of an archive is looked at too.
    let mut two = tar(&[("first", b"1")]);
    two.extend_from_slice(&tar(&[("second", &eicar())]));
    assert_eq!(scan("two.tar", two).at("second").result.own, INFECTED);
}

#[test]
fn a_debian_package_is_taken_apart() {
    let control = gz(&tar(&[("./control", b"Package: test\n")]));
    let data = xz(&tar(&[("./usr/bin/test", &eicar())]));
    let package = ar(&[("debian-binary", b"2.0\n"), ("control.tar.gz", &control), ("data.tar.xz", &data)]);
    let scanned = scan("test.deb", package);
    assert_eq!(scanned.at("data.tar.xz/data.tar/usr/bin/test").result.own, INFECTED);
    assert_eq!((scanned.records.len(), scanned.detail()), (7, ""));
}

#[test]
fn an_encrypted_member_is_said_and_the_others_are_scanned() {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let plain = zip::write::SimpleFileOptions::default();
    writer.start_file("plain", plain).unwrap();
    writer.write_all(b"plain").unwrap();
    let mut raw = writer.finish().unwrap().into_inner();
    // The encryption flag, in both headers.
    let central = raw.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    raw[6] |= 1;
    raw[central + 8] |= 1;
    let scanned = scan("file.zip", raw.clone());
    assert_eq!(scanned.root.own, ResultCode::ENCRYPTED_ARCHIVE);
    assert!(scanned.root.container.as_ref().unwrap().encrypted);
    // In one header only: some readers ignore it, so the member is read, and the archive is suspicious.
    raw[6] &= !1;
    let scanned = scan("file.zip", raw);
    assert_eq!(scanned.root.own, ResultCode::SUSPICIOUS);
    assert_eq!(scanned.at("plain").result.file.size_bytes, 5);
}

#[test]
fn what_a_rule_allows_hides_nothing_that_it_blocks() {
    let mut locked = zip_by(CompressionMethod::Stored, &[("member", b"content")]);
    let central = locked.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    locked[6] |= 1;
    locked[central + 8] |= 1;
    let mut cut = gz(b"content");
    cut.truncate(cut.len() - 4);
    let both = tar(&[("cut.gz", &cut), ("locked.zip", &locked)]);
    // Severity would have the one that is cut off decide.
    assert_eq!(scan("both.tar", both.clone()).root.overall, ResultCode::EXTRACTION_FAILED);
    let mut rule = Rule::with_defaults("test");
    rule.allowed_codes.push(ResultCode::EXTRACTION_FAILED);
    let scanned = scan_with(&scanner(options(), engines::builtin().unwrap()), "both.tar", both, rule);
    assert_eq!(scanned.root.overall, ResultCode::ENCRYPTED_ARCHIVE);
    assert_eq!(scanned.root.blocked_reasons, ["Encrypted Archive"]);
}

#[test]
fn a_wrong_checksum_is_a_failed_extraction() {
    let mut raw = zip_by(CompressionMethod::Stored, &[("member", b"content")]);
    let at = raw.windows(7).position(|seven| seven == b"content").unwrap();
    raw[at] = b'C';
    let scanned = scan("file.zip", raw);
    assert_eq!(scanned.root.own, ResultCode::EXTRACTION_FAILED);
    assert!(scanned.detail().contains("checksum"), "{}", scanned.detail());
    assert_eq!(scanned.records.len(), 1);
}

// ZIP files that show different readers different members.

fn central_offset(raw: &[u8]) -> usize {
    raw.windows(4).position(|four| four == b"PK\x01\x02").unwrap()
}

#[test]
fn a_member_without_a_central_header_is_found_and_suspicious() {
    let hidden = zip(&[("hidden", &eicar())]);
    let hidden = &hidden[..central_offset(&hidden)];
    let visible = zip(&[("visible", b"harmless")]);
    // Before the archive, where programs for self-extracting archives are.
    let before = [hidden, &visible].concat();
    // Between the members and the directory; the end record's offset is moved behind it.
    let at = central_offset(&visible);
    let mut between = [&visible[..at], hidden, &visible[at..]].concat();
    let end = between.len() - 6;
    between[end..end + 4].copy_from_slice(&((at + hidden.len()) as u32).to_le_bytes());
    // Behind the end record.
    let behind = [&visible[..], hidden].concat();
    for (place, raw) in [("before", before), ("between", between), ("behind", behind)] {
        let scanned = scan("file.zip", raw);
        assert_eq!(scanned.root.own, ResultCode::SUSPICIOUS, "{place}: {}", scanned.detail());
        assert_eq!(scanned.root.overall, INFECTED, "{place}");
        assert_eq!(scanned.at("hidden").result.own, INFECTED, "{place}");
        assert_eq!(scanned.at("visible").result.own, ResultCode::NO_THREAT, "{place}");
    }
}

#[test]
fn concatenated_archives_are_both_read() {
    let scanned = scan("file.zip", [zip(&[("first", &eicar())]), zip(&[("second", b"harmless")])].concat());
    assert_eq!(scanned.at("first").result.own, INFECTED);
    assert_eq!(scanned.at("second").result.own, ResultCode::NO_THREAT);
    assert_eq!(scanned.root.own, ResultCode::SUSPICIOUS);
}

#[test]
fn two_directories_are_both_followed() {
    // One end record: its offset leads to the first directory, its length to the second.
    let shown = zip_by(CompressionMethod::Stored, &[("shown", &[b'.'; 100])]);
    let other = zip_by(CompressionMethod::Stored, &[("other", &eicar())]);
    let (at_shown, at_other) = (central_offset(&shown), central_offset(&other));
    let first_directory = &shown[at_shown..shown.len() - 22];
    let second_directory = &other[at_other..other.len() - 22];
    let mut raw = [&shown[..at_shown], &other[..at_other], first_directory, second_directory].concat();
    let first_offset = at_shown + at_other;
    let second_base = raw.len() - second_directory.len() - first_offset;
    let mut end = shown[shown.len() - 22..].to_vec();
    end[12..16].copy_from_slice(&(second_directory.len() as u32).to_le_bytes());
    end[16..20].copy_from_slice(&(first_offset as u32).to_le_bytes());
    // Readers that trust the length take the difference for something put before the archive.
    let second_entry = first_offset + first_directory.len();
    let header = (at_shown - second_base) as u32;
    raw[second_entry + 42..second_entry + 46].copy_from_slice(&header.to_le_bytes());
    raw.extend_from_slice(&end);
    let scanned = scan("file.zip", raw);
    assert_eq!(scanned.root.container.as_ref().unwrap().reason, Some(ResultCode::SUSPICIOUS), "{}", scanned.detail());
    assert_eq!(scanned.at("other").result.own, INFECTED);
    assert_eq!(scanned.at("shown").result.own, ResultCode::NO_THREAT);
}

#[test]
fn two_names_or_methods_for_one_member_are_suspicious() {
    let raw = zip(&[("name-one", b"harmless")]);
    let at = central_offset(&raw);
    let mut renamed = raw.clone();
    renamed[30..38].copy_from_slice(b"name.two");
    let scanned = scan("file.zip", renamed);
    assert_eq!((scanned.root.own, scanned.records.len()), (ResultCode::SUSPICIOUS, 1));
    let mut other_method = raw;
    other_method[at + 10] = 0;
    let scanned = scan("file.zip", other_method);
    assert_eq!((scanned.root.own, scanned.records.len()), (ResultCode::SUSPICIOUS, 2));
}

#[test]
fn archives_as_other_programs_write_them_are_not_suspicious() {
    // Lengths behind the data, ZIP64 fields, directories, a comment, something before the archive.
    let mut writer = zip::ZipWriter::new_stream(Vec::new());
    let options = zip::write::SimpleFileOptions::default();
    writer.add_directory("directory/", options).unwrap();
    writer.start_file("directory/streamed", options).unwrap();
    writer.write_all(b"streamed").unwrap();
    writer.start_file("large", options.large_file(true)).unwrap();
    writer.write_all(b"with zip64 fields").unwrap();
    writer.set_comment("a comment").unwrap();
    let streamed = writer.finish().unwrap().into_inner();
    let behind_a_stub = [&b"#!/bin/sh\nexec unzip \"$0\"\n"[..], &zip(&[("a", b"a"), ("b", b"b")])].concat();
    for (what, raw) in [("streamed", streamed), ("stub", behind_a_stub), ("empty", zip(&[]))] {
        let scanned = scan("file.zip", raw);
        assert!(scanned.root.container.is_some(), "{what}");
        assert_eq!((scanned.root.overall, scanned.detail()), (ResultCode::NO_THREAT, ""), "{what}");
    }
}

#[test]
fn a_rule_decides_what_is_blocked() {
    let mut rule = Rule::with_defaults("lenient");
    rule.allowed_codes.push(ResultCode::EXTRACTION_FAILED);
    let mut cut = zip(&[("member", b"content")]);
    cut.truncate(cut.len() - 30);
    let scanned = scan_under("file.zip", cut, rule);
    assert_eq!(scanned.root.overall, ResultCode::EXTRACTION_FAILED);
    assert!(scanned.root.blocked_reasons.is_empty());
}

#[test]
fn a_zip_behind_other_bytes_and_before_others_is_opened() {
    let archive = zip(&[("eicar.com", &eicar())]);
    for (before, after) in [("", "junk"), ("#!/bin/sh\nexit\n", ""), ("#!/bin/sh\nexit\n", "junk behind the end")] {
        let scanned = scan("installer", [before.as_bytes(), &archive, after.as_bytes()].concat());
        assert_eq!(scanned.root.overall, INFECTED, "{before:?} {after:?}");
        assert_eq!(scanned.at("eicar.com").result.own, INFECTED);
    }
    let mention = scan("notes", b"PK\x05\x06 begins the end record of an archive, it is said".to_vec());
    assert!(mention.root.container.is_none_or(|container| container.extracted_count == 0));
}

/// A tar archive of one member whose header is made by `edit`.
fn tar_with(content: &[u8], edit: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    edit(&mut header);
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append(&header, content).unwrap();
    archive.into_inner().unwrap()
}

#[test]
fn a_tar_that_begins_like_something_else_is_suspicious() {
    for name in [&b"PK\x03\x04.txt"[..], &[0x50, 0x2a, 0x4d, 0x18], &[0x1f, 0x8b, 8]] {
        let archive = tar_with(b"content", |header| header.as_old_mut().name[..name.len()].copy_from_slice(name));
        assert_eq!(scan("file", archive).root.own, ResultCode::SUSPICIOUS, "{name:?}");
    }
    let tar_and_zip = [tar(&[("a", b"content")]), zip(&[("b", b"content")])].concat();
    assert_eq!(scan("file", tar_and_zip).root.own, ResultCode::SUSPICIOUS);
}

#[test]
fn what_of_a_tar_is_not_seen_as_it_will_be_written_is_not_allowed() {
    let sparse = tar_with(b"piece", |header| header.set_entry_type(tar::EntryType::GNUSparse));
    let scanned = scan("sparse.tar", sparse);
    assert_eq!(scanned.root.own, ResultCode::EXTRACTION_FAILED);
    assert_eq!(scanned.records.len(), 1, "what is there is scanned");
    let global = tar_with(b"10 size=1\n", |header| header.set_entry_type(tar::EntryType::XGlobalHeader));
    assert_eq!(scan("global.tar", global).root.own, ResultCode::EXTRACTION_FAILED);
    let comment = tar_with(b"17 comment=abcde\n", |header| header.set_entry_type(tar::EntryType::XGlobalHeader));
    assert_eq!(scan("comment.tar", comment).root.own, ResultCode::NO_THREAT);
}

#[test]
fn a_checksum_behind_a_zero_byte_is_a_checksum() {
    let mut archive = tar(&[("eicar.com", &eicar())]);
    archive.copy_within(148..155, 149);
    archive[148] = 0;
    assert_eq!(scan("file", archive).at("eicar.com").result.own, INFECTED);
}
