//! Every format of the table, through the conformance suite.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Cursor, Write};

use lazaret_containers::conformance::{self, Case, eicar};
use lazaret_containers::{ContainerFormat, Passwords};

/// Random changes of each file.
const ROUNDS: u32 = 500;

fn zip(method: zip::CompressionMethod, members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, content) in members {
        writeln!(archive, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, "100644", content.len()).unwrap();
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(2), b'\n');
    }
    archive
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(content: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn xz(content: &[u8]) -> Vec<u8> {
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

fn ole(content: &[u8]) -> Vec<u8> {
    let mut file = cfb::CompoundFile::create(Cursor::new(Vec::new())).unwrap();
    file.create_stream("/member").unwrap().write_all(content).unwrap();
    file.flush().unwrap();
    file.into_inner().into_inner()
}

/// One container of each format of the table, around the EICAR test file and something else.
fn containers() -> Vec<(&'static str, Vec<u8>, bool)> {
    let members: &[(&str, &[u8])] = &[("readme.txt", b"read me, read me, read me"), ("eicar.com", &eicar())];
    vec![
        ("zip", zip(zip::CompressionMethod::Deflated, members), false),
        ("tar", tar(members), true),
        ("ar", ar(members), true),
        ("gzip", gzip(&eicar()), false),
        ("bzip2", bzip2(&eicar()), false),
        ("xz", xz(&eicar()), false),
        ("zstd", zstd(&eicar()), false),
        ("ole", ole(&eicar()), false),
    ]
}

fn each(suite: impl Fn(&Case<'_>)) {
    for (format, file, open_ended) in containers() {
        suite(&Case { open_ended, ..Case::new(format, &file, &eicar()) });
    }
}

#[test]
fn the_table_is_covered() {
    let tested: Vec<_> = containers().into_iter().map(|(format, ..)| format).collect();
    for format in ContainerFormat::all() {
        assert!(tested.contains(&format.name()), "{format:?} has no test file");
    }
}

#[test]
fn each_format_comes_apart() {
    each(conformance::comes_apart);
}

#[test]
fn a_cut_is_never_taken_for_the_whole() {
    each(conformance::survives_cuts);
}

#[test]
fn random_changes_end_with_an_outcome() {
    each(|case| conformance::survives_mutations(case, ROUNDS));
}

#[test]
fn every_method_of_zip_survives() {
    use zip::CompressionMethod::{Bzip2, Stored, Xz, Zstd};
    for method in [Stored, Bzip2, Xz, Zstd] {
        let file = zip(method, &[("eicar.com", &eicar()), ("empty", b"")]);
        conformance::check(&Case::new("zip", &file, &eicar()), ROUNDS / 5);
    }
}

#[test]
fn content_is_found_three_deep_in_mixed_formats() {
    for (outer, _, _) in containers() {
        let wrap = |content: &[u8]| match outer {
            "zip" => zip(zip::CompressionMethod::Deflated, &[("member", content)]),
            "tar" => tar(&[("member", content)]),
            "ar" => ar(&[("member", content)]),
            "gzip" => gzip(content),
            "bzip2" => bzip2(content),
            "xz" => xz(content),
            "ole" => ole(content),
            _ => zstd(content),
        };
        for (inner, file, _) in containers() {
            let nested = wrap(&gzip(&file));
            assert!(conformance::is_found(&nested, &eicar(), &Passwords::NONE), "{inner} in gzip in {outer}");
        }
    }
}
