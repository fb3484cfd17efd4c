//! Every format of the table, through the conformance suite.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Cursor, Write};

use lazaret_containers::conformance::{self, Case, eicar};
use lazaret_containers::{ContainerFormat, Passwords};

mod base64;
mod built;
mod samples;

use built::{activemime, appledouble, asar, cms, dotnet, onenote, pgp, pyinstaller, pyz, zlib};
use samples::{End, SAMPLES};

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

fn eml(content: &[u8]) -> Vec<u8> {
    format!(
        "From: a@b\r\nSubject: c\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\
         Content-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename=a\r\n\r\n{}\r\n--x--\r\n",
        base64::encode(content)
    )
    .into_bytes()
}

fn mbox(content: &[u8]) -> Vec<u8> {
    [b"From a Thu Jan  1 00:00:00 1970\n".to_vec(), eml(content), b"\nFrom b\n".to_vec(), eml(b"other")].concat()
}

fn tnef(content: &[u8]) -> Vec<u8> {
    let mut file = b"\x78\x9f\x3e\x22\x01\0".to_vec();
    for (number, data) in [(0x0006_9002_u32, &[0; 14][..]), (0x0001_8010, b"a\0"), (0x0006_800f, content)] {
        file.push(2);
        file.extend_from_slice(&number.to_le_bytes());
        file.extend_from_slice(&(data.len() as u32).to_le_bytes());
        file.extend_from_slice(data);
        file.extend_from_slice(&data.iter().fold(0u16, |sum, byte| sum.wrapping_add(u16::from(*byte))).to_le_bytes());
    }
    file
}

fn nuitka(content: &[u8]) -> Vec<u8> {
    [b"KAY", &zstd(content)[..]].concat()
}

fn rtf(content: &[u8]) -> Vec<u8> {
    let mut object = b"\x01\x05\0\0\x02\0\0\0\x08\0\0\0Package\0\0\0\0\0\0\0\0\0".to_vec();
    let package = [b"\x02\0a\0a\0\0\0\x03\0\x02\0\0\0a\0", &(content.len() as u32).to_le_bytes()[..], content].concat();
    object.extend_from_slice(&(package.len() as u32).to_le_bytes());
    object.extend_from_slice(&package);
    let digits: String = object.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{{\\rtf1 text{{\\object\\objemb{{\\*\\objclass Package}}{{\\*\\objdata\n{digits}}}}}}}").into_bytes()
}

fn text(content: &[u8]) -> Vec<u8> {
    format!("<!DOCTYPE html>\n<a href=\"data:application/zip;base64,{}\">a</a>\n", base64::encode(content)).into_bytes()
}

fn swf(content: &[u8]) -> Vec<u8> {
    let mut file = flate2::write::ZlibEncoder::new(b"CWS\x0a\x4c\0\0\0".to_vec(), flate2::Compression::default());
    file.write_all(content).unwrap();
    file.finish().unwrap()
}

fn pdf(content: &[u8]) -> Vec<u8> {
    let before = format!("%PDF-1.4\n1 0 obj\n<< /Length {} >>\nstream\n", content.len());
    [before.as_bytes(), content, b"\nendstream\nendobj\nstartxref\n0\n%%EOF\n"].concat()
}

fn ole(content: &[u8]) -> Vec<u8> {
    let mut file = cfb::CompoundFile::create(Cursor::new(Vec::new())).unwrap();
    file.create_stream("/member").unwrap().write_all(content).unwrap();
    file.flush().unwrap();
    file.into_inner().into_inner()
}

/// One container of each format of the table, around the EICAR test file and something else.
///
/// What only other programs write comes from the samples, the first of each format.
fn containers() -> Vec<(&'static str, Vec<u8>, bool)> {
    let mut all = written_here();
    for sample in SAMPLES.iter().filter(|sample| sample.password.is_none() && sample.end != End::Unknown) {
        if !all.iter().any(|(format, ..)| *format == sample.format) {
            all.push((sample.format, sample.file(), sample.end == End::Open));
        }
    }
    all
}

fn written_here() -> Vec<(&'static str, Vec<u8>, bool)> {
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
        ("pdf", pdf(&eicar()), false),
        ("cms", cms(&eicar()), true),
        ("tnef", tnef(&eicar()), false),
        ("mbox", mbox(&eicar()), true),
        ("eml", eml(&eicar()), true),
        ("rtf", rtf(&eicar()), false),
        ("onenote", onenote(&eicar()), false),
        ("activemime", activemime(&eicar()), false),
        ("text", text(&eicar()), true),
        ("swf", swf(&eicar()), false),
        ("zlib", zlib(b"", &eicar()), false),
        ("asar", asar(&eicar()), false),
        ("appledouble", appledouble(false, &eicar()), false),
        ("pgp", pgp(&eicar()), false),
        ("pyinstaller", pyinstaller(&eicar()), false),
        ("pyz", pyz(&eicar()), false),
        ("dotnet", dotnet(&eicar()), false),
        ("nuitka", nuitka(&eicar()), false),
    ]
}

fn each(suite: impl Fn(&Case<'_>)) {
    for (format, file, open_ended) in containers() {
        suite(&Case { open_ended, ..Case::new(format, &file, &eicar()) });
    }
}

#[test]
fn the_table_is_covered() {
    let mut tested: Vec<_> = containers().into_iter().map(|(format, ..)| format).collect();
    tested.extend(SAMPLES.iter().map(|sample| sample.format));
    // `disks.rs` has DMG, with every one of its methods, `programs.rs` ELF and `upx.rs` UPX; what is known and not opened holds nothing.
    // Shortcuts and encoded scripts, whose files may be cut off behind what is theirs, have tests beside them.
    let elsewhere = ["dmg", "elf", "upx", "unopened", "scriptencoder", "lnk"];
    for format in ContainerFormat::all().filter(|format| !elsewhere.contains(&format.name())) {
        assert!(tested.contains(&format.name()), "{format:?} has no test file");
    }
}

#[test]
fn each_format_comes_apart() {
    each(conformance::comes_apart);
}

#[test]
fn a_cut_is_never_taken_for_the_whole() {
    each(|case| {
        // A mailbox doesn't say where its last message ends: that is for the message to say.
        if case.format != "mbox" {
            conformance::survives_cuts(case);
        }
    });
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
    for (outer, _, _) in written_here() {
        let wrap = |content: &[u8]| match outer {
            "zip" => zip(zip::CompressionMethod::Deflated, &[("member", content)]),
            "tar" => tar(&[("member", content)]),
            "ar" => ar(&[("member", content)]),
            "gzip" => gzip(content),
            "bzip2" => bzip2(content),
            "xz" => xz(content),
            "ole" => ole(content),
            "pdf" => pdf(content),
            "cms" => cms(content),
            "tnef" => tnef(content),
            "mbox" => mbox(content),
            "eml" => eml(content),
            "rtf" => rtf(content),
            "onenote" => onenote(content),
            "activemime" => activemime(content),
            "text" => text(content),
            "zlib" => zlib(b"", content),
            "asar" => asar(content),
            "appledouble" => appledouble(false, content),
            "pgp" => pgp(content),
            "pyinstaller" => pyinstaller(content),
            "pyz" => pyz(content),
            "dotnet" => dotnet(content),
            "nuitka" => nuitka(content),
            _ => zstd(content),
        };
        for (inner, file, _) in containers() {
            let nested = wrap(&gzip(&file));
            assert!(conformance::is_found(&nested, &eicar(), &Passwords::NONE), "{inner} in gzip in {outer}");
        }
    }
}
