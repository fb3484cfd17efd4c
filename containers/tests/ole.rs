//! Compound files: streams, packages, source, messages, encrypted packages. Written by the `cfb` crate; the encrypted
//! streams are bytes of other programs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod base64;

use std::io::{Cursor, Write};

use lazaret_containers::conformance::{self, Case, eicar, take_apart};
use lazaret_containers::{Passwords, Protection};

const ROUNDS: u32 = 500;

fn compound(version: cfb::Version, streams: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = cfb::CompoundFile::create_with_version(version, Cursor::new(Vec::new())).unwrap();
    for (path, content) in streams {
        if let Some((folder, _)) = path.rsplit_once('/').filter(|(folder, _)| !folder.is_empty()) {
            file.create_storage_all(folder).unwrap();
        }
        file.create_stream(path).unwrap().write_all(content).unwrap();
    }
    file.flush().unwrap();
    file.into_inner().into_inner()
}

/// A package as it lies in `Ole10Native`.
fn package(name: &str, content: &[u8]) -> Vec<u8> {
    let mut data = b"\x02\0".to_vec();
    data.extend_from_slice(format!("{name}\0C:\\Users\\me\\{name}\0").as_bytes());
    data.extend_from_slice(b"\0\0\x03\0\x04\0\0\0C:\\\0");
    data.extend_from_slice(&(content.len() as u32).to_le_bytes());
    data.extend_from_slice(content);
    data.extend_from_slice(b"\x01\0\0\0a\0");
    [&(data.len() as u32).to_le_bytes()[..], &data].concat()
}

/// Source compressed without any copies.
fn compressed(source: &[u8]) -> Vec<u8> {
    let mut out = vec![1];
    for chunk in source.chunks(3000) {
        let mut data = Vec::new();
        for group in chunk.chunks(8) {
            data.push(0);
            data.extend_from_slice(group);
        }
        out.extend_from_slice(&(0xb000 | (data.len() as u16 - 1)).to_le_bytes());
        out.extend_from_slice(&data);
    }
    out
}

fn names(file: &[u8]) -> Vec<String> {
    take_apart(file, &Passwords::NONE).members.into_iter().map(|(name, _)| name).collect()
}

fn large() -> Vec<u8> {
    [vec![0; 9000], eicar(), vec![1; 9000]].concat()
}

#[test]
fn streams_come_out_under_their_paths_in_both_versions() {
    for version in [cfb::Version::V3, cfb::Version::V4] {
        let (large, eicar) = (large(), eicar());
        let streams = [("/large", &large[..]), ("/a/b/small", &eicar[..]), ("/empty", b"")];
        let file = compound(version, &streams);
        let members = take_apart(&file, &Passwords::NONE).members;
        for (path, content) in streams {
            assert!(members.contains(&(path[1..].to_owned(), content.to_vec())), "{path}");
        }
        conformance::check(&Case::new("ole", &file, &eicar), ROUNDS);
    }
}

#[test]
fn a_file_of_many_sectors_comes_out() {
    // More than one sector of the table, and more than the header lists.
    let content: Vec<u8> = (0..9_000_000u32).map(|at| (at % 251) as u8).collect();
    let file = compound(cfb::Version::V3, &[("/content", &content), ("/eicar", &eicar())]);
    let taken = take_apart(&file, &Passwords::NONE);
    assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
    assert!(taken.members.contains(&("content".to_owned(), content)));
}

#[test]
fn a_package_is_handed_out_as_its_file() {
    for content in [eicar(), large()] {
        let package = package("eicar.com", &content);
        let file = compound(cfb::Version::V3, &[("/ObjectPool/_1/\u{1}Ole10Native", &package)]);
        let members = take_apart(&file, &Passwords::NONE).members;
        assert_eq!(members, [("ObjectPool/_1/eicar.com".to_owned(), content)]);
        conformance::check(&Case::new("ole", &file, &eicar()), ROUNDS);
    }
}

#[test]
fn a_package_is_handed_out_under_whatever_name_it_lies() {
    let eicar = eicar();
    let package = package("eicar.com", &eicar);
    let mut of_another_type = package.clone();
    of_another_type[4] = 3;
    for (path, stream) in [
        ("/ObjectPool/_1/\u{1}Ole10NativeX", &package[..]),
        ("/ObjectPool/_1/Contents", &package[4..]),
        ("/ObjectPool/_1/Contents", &of_another_type),
        ("/ObjectPool/_1/\u{1}Ole10Native", &of_another_type),
        ("/ObjectPool/_1/\u{1}Ole10Native", &package[4..]),
    ] {
        let file = compound(cfb::Version::V3, &[(path, stream)]);
        let taken = take_apart(&file, &Passwords::NONE);
        assert!(taken.members.contains(&("ObjectPool/_1/eicar.com".to_owned(), eicar.clone())), "{path:?}: {taken:?}");
        assert!(taken.members.len() == 2 && taken.outcome.is_complete(), "{path:?}");
    }
    // Streams that begin with small numbers, as those of documents do, are none.
    for stream in [&[0; 5000][..], &[2, 0, 0, 0, 0, 0, 3, 0].repeat(600), b"\x02\0\0\0\x02\0a\0b\0\0\0\x03\0"] {
        let file = compound(cfb::Version::V3, &[("/1Table", stream)]);
        assert_eq!(names(&file), ["1Table"]);
    }
}

#[test]
fn source_comes_out_by_the_directory_and_without_it() {
    let source = [b"Attribute VB_Name = \"M\"\r\n'".to_vec(), eicar()].concat();
    let module = [vec![0xcc; 700], compressed(&source)].concat();
    let mut dir = Vec::new();
    for (id, data) in [(0x1a_u16, &b"Module1"[..]), (0x31, &[0xbc, 2, 0, 0])] {
        dir.extend_from_slice(&id.to_le_bytes());
        dir.extend_from_slice(&(data.len() as u32).to_le_bytes());
        dir.extend_from_slice(data);
    }
    let dir = compressed(&dir);
    let file = compound(cfb::Version::V3, &[("/Macros/VBA/dir", &dir), ("/Macros/VBA/Module1", &module)]);
    assert!(
        take_apart(&file, &Passwords::NONE).members.contains(&("Macros/VBA/Module1.bas".to_owned(), source.clone()))
    );
    conformance::check(&Case::new("ole", &file, &eicar()), ROUNDS);
    let file = compound(cfb::Version::V3, &[("/Macros/VBA/dir", b"gone"), ("/Macros/VBA/Module1", &module)]);
    assert!(take_apart(&file, &Passwords::NONE).members.contains(&("Macros/VBA/Module1.bas".to_owned(), source)));
}

/// A record of a presentation.
fn record(version_and_instance: u16, kind: u16, data: &[u8]) -> Vec<u8> {
    let head = [version_and_instance.to_le_bytes(), kind.to_le_bytes()].concat();
    [head, (data.len() as u32).to_le_bytes().to_vec(), data.to_vec()].concat()
}

#[test]
fn objects_of_presentations_come_out() {
    let object = compound(cfb::Version::V3, &[("/\u{1}Ole10Native", &package("eicar.com", &eicar()))]);
    let mut deflated =
        flate2::write::ZlibEncoder::new((object.len() as u32).to_le_bytes().to_vec(), flate2::Compression::default());
    deflated.write_all(&object).unwrap();
    let deflated = deflated.finish().unwrap();
    // Among other records, over more than is searched at once, and what only looks like one.
    for before in [0, 262_144 - 20, 262_144 - 9, 262_144 - 3, 700_000] {
        let slides = [
            record(0x0f, 0x03e8, &vec![7; before]),
            record(0, 0x1011, b"no compound file"),
            record(0x10, 0x1011, &deflated),
            record(0, 0x1011, &object),
            record(0x0f, 0x03e8, &[7; 3000]),
        ];
        let file = compound(cfb::Version::V3, &[("/PowerPoint Document", &slides.concat())]);
        let taken = take_apart(&file, &Passwords::NONE);
        assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
        for number in [1, 2] {
            assert!(taken.members.contains(&(format!("object-{number}"), object.clone())), "{number} behind {before}");
        }
        assert!(conformance::is_found(&file, &eicar(), &Passwords::NONE));
        if before == 0 {
            conformance::survives_mutations(&Case::new("ole", &file, &eicar()), ROUNDS);
        }
    }
    let many = record(0, 0x1011, &object[..512]).repeat(1100);
    let file = compound(cfb::Version::V3, &[("/PowerPoint Document", &many)]);
    assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some());
}

#[test]
fn attachments_of_messages_have_their_names() {
    let utf16: Vec<u8> = "eicar.com".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let text = b"\x2d\0\0\0\x2b\0\0\0LZFu\xf1\xc5\xc7\xa7\x03\x00\x0a\x00\x72\x63\x70\x67\x31\x32\x35\x42\x32\x0a\xf3\x20\x68\x65\x6c\x09\x00\x20\x62\x77\x05\xb0\x6c\x64\x7d\x0a\x80\x0f\xa0";
    let nested = "/__attach_version1.0_#00000001/__substg1.0_3701000D/__attach_version1.0_#00000000";
    let file = compound(
        cfb::Version::V3,
        &[
            ("/__properties_version1.0", &[0; 32]),
            ("/__substg1.0_10090102", text),
            ("/__attach_version1.0_#00000000/__substg1.0_37010102", &eicar()),
            ("/__attach_version1.0_#00000000/__substg1.0_3707001F", &utf16),
            (&format!("{nested}/__substg1.0_37010102"), &large()),
            (&format!("{nested}/__substg1.0_3704001E"), b"SHORT.TXT\0"),
        ],
    );
    let names = names(&file);
    assert!(names.contains(&"__attach_version1.0_#00000000/eicar.com".to_owned()), "{names:?}");
    assert!(names.contains(&format!("{}/SHORT.TXT", &nested[1..])), "{names:?}");
    assert!(names.contains(&"text.rtf".to_owned()), "{names:?}");
    conformance::check(&Case::new("ole", &file, &eicar()), ROUNDS);
}

#[test]
fn an_encrypted_package_opens_with_its_password() {
    let file = compound(
        cfb::Version::V3,
        &[("/EncryptionInfo", &base64::decode(AGILE_INFO)), ("/EncryptedPackage", &base64::decode(AGILE_PACKAGE))],
    );
    let passwords = Passwords::new(["wrong", "secret"].map(str::to_owned));
    conformance::comes_apart(&Case { passwords: passwords.clone(), ..Case::new("ole", &file, &eicar()) });
    assert!(take_apart(&file, &passwords).outcome.decrypted);
    let taken = take_apart(&file, &Passwords::new(["wrong".to_owned()]));
    assert_eq!((taken.outcome.protected, taken.outcome.decrypted), ([Protection::Document].into(), false));
    assert!(!conformance::is_found(&file, &eicar(), &Passwords::NONE));
    let file = compound(
        cfb::Version::V3,
        &[
            ("/EncryptionInfo", &base64::decode(STANDARD_INFO)),
            ("/EncryptedPackage", &base64::decode(STANDARD_PACKAGE)),
        ],
    );
    conformance::comes_apart(&Case::new("ole", &file, &eicar()));
    // Under the password that every program tries by itself.
    assert!(!take_apart(&file, &passwords).outcome.decrypted);
    // Each change costs a key derivation of 50,000 rounds at most three times, so there are few.
    conformance::survives_mutations(&Case::new("ole", &file, &eicar()), 30);
}

#[test]
fn old_documents_under_a_password_are_told() {
    let mut word = [0u8; 64];
    word[..2].copy_from_slice(&[0xec, 0xa5]);
    word[11] = 0x01;
    let workbook = [&[0x09, 8, 16, 0][..], &[0; 16], &[0x2f, 0, 2, 0, 1, 0]].concat();
    let user = [&[0; 12][..], &[0xdf, 0xc4, 0xd1, 0xf3]].concat();
    for (stream, content) in [("/WordDocument", &word[..]), ("/Workbook", &workbook), ("/Current User", &user)] {
        let file = compound(cfb::Version::V3, &[(stream, content)]);
        assert_eq!(take_apart(&file, &Passwords::NONE).outcome.protected, [Protection::Document].into(), "{stream}");
        let file = compound(cfb::Version::V3, &[(stream, &[0; 64])]);
        assert_eq!(take_apart(&file, &Passwords::NONE).outcome.protected, [].into(), "{stream}");
    }
}

#[test]
fn streams_are_known_whatever_the_case_of_their_names() {
    let package = package("eicar.com", &eicar());
    let file = compound(cfb::Version::V3, &[("/OBJECTPOOL/_1/\u{1}OLE10NATIVE", &package)]);
    assert_eq!(take_apart(&file, &Passwords::NONE).members, [("OBJECTPOOL/_1/eicar.com".to_owned(), eicar())]);
    let mut word = [0u8; 64];
    word[..2].copy_from_slice(&[0xec, 0xa5]);
    word[11] = 0x01;
    let file = compound(cfb::Version::V3, &[("/WORDDOCUMENT", &word)]);
    assert_eq!(take_apart(&file, &Passwords::NONE).outcome.protected, [Protection::Document].into());
    let info = base64::decode(STANDARD_INFO);
    let encrypted = base64::decode(STANDARD_PACKAGE);
    let file = compound(cfb::Version::V3, &[("/encryptioninfo", &info), ("/ENCRYPTEDPACKAGE", &encrypted)]);
    assert!(conformance::is_found(&file, &eicar(), &Passwords::NONE));
}

#[test]
fn workbooks_say_anywhere_that_they_are_encrypted() {
    let record = |kind: u16, data: &[u8]| [&kind.to_le_bytes()[..], &(data.len() as u16).to_le_bytes(), data].concat();
    let (begin, end, password) = (record(0x809, &[0; 16]), record(0x0a, b""), record(0x2f, &[1, 0]));
    let comments = record(0x5c, &[b' '; 112]).repeat(60);
    let protection = |path: &str, workbook: &[u8]| {
        let taken = take_apart(&compound(cfb::Version::V3, &[(path, workbook)]), &Passwords::NONE);
        taken.outcome.protected == [Protection::Document].into()
    };
    let encrypted = [&begin[..], &comments, &password, &end].concat();
    assert!(protection("/Workbook", &encrypted));
    assert!(protection("/ObjectPool/_1/Workbook", &encrypted));
    // Behind the first part no record says so.
    assert!(!protection("/Workbook", &[&begin[..], &comments, &end, &password].concat()));
}

#[test]
fn headers_that_programs_read_differently_are_told() {
    let file = compound(cfb::Version::V3, &[("/a", &eicar())]);
    // How long small sectors are, and what lies in them.
    for (at, byte) in [(32, 7), (57, 0x20)] {
        let mut file = file.clone();
        file[at] = byte;
        assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some(), "{at}");
    }
    // The table's first sector moves to the second place: nothing is left where it belongs.
    let mut file = file;
    file.copy_within(76..80, 80);
    file[76..80].fill(0xff);
    assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some());
}

#[test]
fn streams_of_hangul_come_out_inflated() {
    let mut header = b"HWP Document File".to_vec();
    header.resize(256, 0);
    header[36] = 1;
    let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    deflated.write_all(&eicar()).unwrap();
    let deflated = deflated.finish().unwrap();
    let streams =
        [("/FileHeader", &header[..]), ("/BinData/BIN0001.eps", &deflated), ("/BinData/BIN0002.png", b"\x89PNG")];
    let file = compound(cfb::Version::V3, &streams);
    let taken = take_apart(&file, &Passwords::NONE);
    assert!(taken.members.contains(&("BinData/BIN0001.eps.inflated".to_owned(), eicar())), "{:?}", taken.members);
    assert!(taken.outcome.is_complete() && taken.members.len() == 4);
    header[36] = 3;
    let file = compound(cfb::Version::V3, &[("/FileHeader", &header)]);
    assert_eq!(take_apart(&file, &Passwords::NONE).outcome.protected, [Protection::Document].into());
}

#[test]
fn a_project_whose_directory_is_malformed_is_told() {
    // A record whose length no program goes by, and source that begins with what its compression makes of a quote.
    let dir = compressed(b"\x05\0\xff\xff\xff\x7f\x1a\0\x01\0\0\0M\x31\0\x04\0\0\0\0\0\0\0");
    let file = compound(cfb::Version::V3, &[("/VBA/dir", &dir), ("/VBA/M", b"\x01\x03\xb0\x02a\x45\x00")]);
    assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some());
    // Elsewhere a stream of this name may be anything.
    let file = compound(cfb::Version::V3, &[("/other/dir", &dir)]);
    assert!(take_apart(&file, &Passwords::NONE).outcome.is_complete());
}

#[test]
fn circles_end() {
    let mut file = compound(cfb::Version::V3, &[("/large", &large())]);
    let sound = take_apart(&file, &Passwords::NONE);
    assert!(sound.outcome.is_complete());
    // Every chain leads back to sector 1, every entry to every other.
    let table = 512 * (1 + u32::from_le_bytes(file[76..80].try_into().unwrap()) as usize);
    for at in 0..128 {
        file[table + 4 * at..][..4].copy_from_slice(&1u32.to_le_bytes());
    }
    let broken = take_apart(&file, &Passwords::NONE).outcome.broken.unwrap();
    assert!(broken.contains("circle"), "{broken}");
}

/// `EncryptionInfo` of a package that msoffcrypto-tool encrypted with the password "secret".
const AGILE_INFO: &str = "\
    BAAEAEAAAAA8P3htbCB2ZXJzaW9uPSIxLjAiIGVuY29kaW5nPSJVVEYtOCIgc3RhbmRhbG9uZT0ieWVzIj8+CjxlbmNyeXB0aW9uIHhtbG5zPSJo\
    dHRwOi8vc2NoZW1hcy5taWNyb3NvZnQuY29tL29mZmljZS8yMDA2L2VuY3J5cHRpb24iIHhtbG5zOnA9Imh0dHA6Ly9zY2hlbWFzLm1pY3Jvc29m\
    dC5jb20vb2ZmaWNlLzIwMDYva2V5RW5jcnlwdG9yL3Bhc3N3b3JkIiB4bWxuczpjPSJodHRwOi8vc2NoZW1hcy5taWNyb3NvZnQuY29tL29mZmlj\
    ZS8yMDA2L2tleUVuY3J5cHRvci9jZXJ0aWZpY2F0ZSI+CiAgICA8a2V5RGF0YSBzYWx0U2l6ZT0iMTYiIGJsb2NrU2l6ZT0iMTYiIGtleUJpdHM9\
    IjI1NiIgaGFzaFNpemU9IjY0IgogICAgICAgICAgICAgY2lwaGVyQWxnb3JpdGhtPSJBRVMiIGNpcGhlckNoYWluaW5nPSJDaGFpbmluZ01vZGVD\
    QkMiIGhhc2hBbGdvcml0aG09IlNIQTUxMiIgc2FsdFZhbHVlPSI5WFVYNXJRa0VzcDJjNHNEZk9NcmVBPT0iIC8+CiAgICA8ZGF0YUludGVncml0\
    eSBlbmNyeXB0ZWRIbWFjS2V5PSJscm0rQldTQlpXbkJqN0krVlp3MDMrMFlHS2p4UUZodzg5TVVUZzV1T2pSYWFnZlFTWjR2TGNiTWNVcUtINSsz\
    U2JWNWt2aWFTdEttTjAxN0xaT3J6UT09IiBlbmNyeXB0ZWRIbWFjVmFsdWU9Im1HRjZGZlpvK3dBRjlFZkxvQkwvT0l1dE5XcTdOMHhIbUNaaGVp\
    TDdlSXlIVGtSM2E0bkNqKzFlWEZWcnNRcDZGVkRnb2pINzl2TE94Y3E2RHlZd2N3PT0iIC8+CiAgICA8a2V5RW5jcnlwdG9ycz4KICAgICAgICA8\
    a2V5RW5jcnlwdG9yIHVyaT0iaHR0cDovL3NjaGVtYXMubWljcm9zb2Z0LmNvbS9vZmZpY2UvMjAwNi9rZXlFbmNyeXB0b3IvcGFzc3dvcmQiPgog\
    ICAgICAgICAgICA8cDplbmNyeXB0ZWRLZXkgc3BpbkNvdW50PSIxMDAwMDAiIHNhbHRTaXplPSIxNiIgYmxvY2tTaXplPSIxNiIga2V5Qml0cz0i\
    MjU2IgogICAgICAgICAgICAgICAgICAgICAgICAgICAgaGFzaFNpemU9IjY0IiBjaXBoZXJBbGdvcml0aG09IkFFUyIgY2lwaGVyQ2hhaW5pbmc9\
    IkNoYWluaW5nTW9kZUNCQyIgaGFzaEFsZ29yaXRobT0iU0hBNTEyIgogICAgICAgICAgICAgICAgICAgICAgICAgICAgc2FsdFZhbHVlPSIrTzJq\
    RWszZzhiZWc1cjI2Mm03WHlRPT0iIGVuY3J5cHRlZFZlcmlmaWVySGFzaElucHV0PSJiNjdZQkRUYnVBNUpScWM5ZTkwQUlRPT0iCiAgICAgICAg\
    ICAgICAgICAgICAgICAgICAgICBlbmNyeXB0ZWRWZXJpZmllckhhc2hWYWx1ZT0iN1d4c2kxMVlJTmFQM1REWnpOYW90M0hvWkN3dm90STJTUjQ0\
    dFl4Skwrc0NWTjRLWXdRbUpESjhlZW1SVTRIdEZzWTNtRjZzMmc5S2ZOM1A4S1BlR3c9PSIgZW5jcnlwdGVkS2V5VmFsdWU9Imhnck1BVmsrc1hY\
    amJJcEYzQTh5clcydG4yTjJwMzdHbFlENitCTGdKWXc9IiAvPgogICAgICAgIDwva2V5RW5jcnlwdG9yPgogICAgPC9rZXlFbmNyeXB0b3JzPgo8\
    L2VuY3J5cHRpb24+Cg==";

/// The `EncryptedPackage` that belongs to it.
const AGILE_PACKAGE: &str = "\
    CAIAAAAAAAA2XhCA8GMP6NuFIWtDjtuOdBMC8yjQkx+dGW3r2ImYA0TMU3/U5gsafKYCga8RUEWg3LmXeepf1UvTZ3PWSI+/j9fUluVy1Cikt2oF\
    1YGSYO/hg7tZWqvAaFTirwXXRjIa5xqkdCaSSAoIK2hhEFvD4mb8Jpjudlmf/sBXn619dP3QWhIIBGnkxZmxaFjIDbyfpkpSb3OAJFu3HdZ/wS9M\
    Pfl4F5KFdfItNGYwXxleQCZ2QaMDsQJrLiT7J1TH60VeMMrXG6oQVF9iGxrFzWxg/ECXt5ELGPA0ea4Rp7V4csKke8sb7YpfHux1XTCNBsTtcgl7\
    ybi5AB8JRI9tM4p0woDbI5n2O5NZYOph3kOI7ncmW7Fp5BPIGiImHsuitYoLf+fJGO9URJqUTQAQWo/pG5A9dbv3bvBM6P0SDJnHNvu4KKCg4GZf\
    yDE27r8VKpCcavosjB3ro8WaXSKzmaWISYvV09515PZpW56OgvVxnhpJWmnzbMPobZ/o/KLS49KPMkjVG0qTZ7/kTVNwYyf92onCeszh0xiJQNjA\
    My7uYQdPenBTIjcE/t9k52yS+gPUsPMxxHA1k00q5R3FWonlZdeBBA/cJM5JdmFaIUyniWy+10SKSX9gW3aCFxle/nqoT2hp08se25pC8k8gQEBY\
    HPTIDsxrB6ZzdZCVg7jaR1HXDKMCNQD6NorPxdvpbYE=";

/// The same in the standard way, under the password that Excel tries by itself.
const STANDARD_INFO: &str = "\
    BAACACQAAACMAAAAJAAAAAAAAAAOZgAABIAAAIAAAAAYAAAAAAAAAAAAAABNAGkAYwByAG8AcwBvAGYAdAAgAEUAbgBoAGEAbgBjAGUAZAAgAFIA\
    UwBBACAAYQBuAGQAIABBAEUAUwAgAEMAcgB5AHAAdABvAGcAcgBhAHAAaABpAGMAIABQAHIAbwB2AGkAZABlAHIAAAAQAAAAAAECAwQFBgcICQoL\
    DA0OD8nDiK1JDpRwRUTbW7g4tu4UAAAAvlsTmUILMKa9EPhHT8AcYLTqVKtU+vlOTmKicMIbuTM=";

/// The `EncryptedPackage` that belongs to it.
const STANDARD_PACKAGE: &str = "\
    CAIAAAAAAAAJvw25g1m7VUmlu6ZgycPYwMPBy8W40HdAJd/QnBbnJ3+vSzkYTwccvHUa+t2Wawf32gPNAhJf3fJ7bxuEhUlp9Lfftn+L4NIA8uAf\
    lkENdJYzfitt/dUfqtI5IQez8hSkq0MJzf4tmJ9726OD5vlzmOYALQW6s9ypOkG4kWjR4y4Ki82AggR50RwcYvSwCW47l+lom40oK5Njn5U3ic6k\
    Nu+gnHlv8FYC599PClwycjxjRIxDJ57hVHU8xHkaWJwluImPB8cPP0JYkGb/yKHJ9IzAoZzqjngHv0KuqqrUJxW35fLjxTEKKMxYsGY+FYC6Vi7/\
    D/4OXcWZfIJ/xQi2r4vobhQ5y+RL9v+RUen06nrDltYk01ftIPsnhpuwterul/r+fWnEGHmXC4T49cnCAv0KHWspw61lfLanOBfz/oqznLWZ6g/j\
    QoAsDA5Y/+QXhSiNhzz9kN7i+t5bIeKCcWhXjUHcXx8eakm0MuGM681XaXUHIV6yLC3Kx9Y5PwqWIJ4RocogSjaRwmy6vUGx5eLIuHvmXDBzmw5R\
    WH+El2P47HtAdGxFuNdatQslG87EvdcJFdgsUvbcsx6ss3rZwKMbxhqclxORG6AYFlim4rKAl0k1u0eBAqlGui87jWsYcIH7oFwpxTEEYcEahgYd\
    lKl3wksb1C8x30gel3V7DattvMuFwRGcbUrCtxqX2cI=";
