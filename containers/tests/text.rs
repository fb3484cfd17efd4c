//! Documents that are text: RTF, web pages, XML, scripts, calendars; and those that are put into them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod base64;

use std::io::{Cursor, Write};

use lazaret_containers::conformance::{self, Case, eicar, take_apart, take_apart_as};
use lazaret_containers::{ContainerFormat, Passwords, Protection};

const ROUNDS: u32 = 500;

fn members(file: &[u8]) -> Vec<(String, Vec<u8>)> {
    take_apart(file, &Passwords::NONE).members
}

/// Base64 in lines, with something between them.
fn lines(content: &[u8], between: &str) -> String {
    let encoded = base64::encode(content);
    encoded.as_bytes().chunks(48).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>().join(between)
}

fn hex(content: &[u8]) -> String {
    content.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn package(content: &[u8]) -> Vec<u8> {
    [b"\x02\0e.com\0C:\\e.com\0\0\0\x03\0\x02\0\0\0a\0", &(content.len() as u32).to_le_bytes()[..], content].concat()
}

fn object(class: &[u8], native: &[u8]) -> Vec<u8> {
    let class_bytes = (class.len() as u32).to_le_bytes();
    let native_bytes = (native.len() as u32).to_le_bytes();
    [b"\x01\x05\0\0\x02\0\0\0", &class_bytes[..], class, &[0; 8], &native_bytes, native].concat()
}

#[test]
fn a_text_that_speaks_of_binhex_is_only_a_text() {
    let mark = "(This file must be converted with BinHex 4.0)";
    for text in [
        format!("Look for {mark}: the file is behind it.\n"),
        format!("const MARK: &str = \"{mark}\";\nuse std::io;\n"),
    ] {
        assert!(take_apart(text.as_bytes(), &Passwords::NONE).outcome.is_complete(), "{text}");
    }
    // A file that is cut off is broken, not harmless.
    let text = format!("Look for\r\n{mark}\r\n:$f*TEQKPH#jdH5e1)3\r\n");
    assert!(take_apart(text.as_bytes(), &Passwords::NONE).outcome.broken.is_some());
}

#[test]
fn objects_of_rich_text_come_out() {
    let eicar = eicar();
    let package = hex(&object(b"Package\0", &package(&eicar)));
    let obfuscated: String = package
        .as_bytes()
        .chunks(2)
        .map(|pair| format!("{} \\foo1 {{\\*\\x 00}}\r\n", std::str::from_utf8(pair).unwrap()))
        .collect();
    for (data, name) in [
        (package.clone(), "e.com"),
        (package.to_uppercase(), "e.com"),
        (obfuscated, "e.com"),
        (hex(&object(b"Word.Document.8\0", &eicar)), "object-1"),
        (hex(&eicar), "object-1"),
    ] {
        let file = format!("{{\\rtf1\\ansi {{\\object{{\\*\\objclass x}}{{\\*\\objdata {data}}}}} text \\'7d}}");
        assert_eq!(members(file.as_bytes()), [(name.to_owned(), eicar.clone())], "{data}");
        conformance::check(&Case::new("rtf", file.as_bytes(), &eicar), ROUNDS);
    }
    // As bytes, with a picture before it; the braces in it are content.
    let binary = [b"}{\\".to_vec(), eicar.clone()].concat();
    let mut file = b"{\\rt {\\pict\\pngblip{\\*\\picprop 11} 8950}{\\object{\\objdata\\bin71 ".to_vec();
    file.extend_from_slice(&binary);
    file.extend_from_slice(b"}}}");
    assert_eq!(members(&file), [("picture-1".to_owned(), vec![0x89, 0x50]), ("object-2".to_owned(), binary)]);
}

#[test]
fn objects_of_rich_text_come_out_in_each_reading() {
    let eicar = eicar();
    let digits = hex(&object(b"Package\0", &package(&eicar)));
    let (before, behind) = digits.split_at(41);
    for data in [
        format!("{{{digits}}}"),
        format!("{before}{{{}}}{}", &behind[..19], &behind[19..]),
        format!("{before}{{\\foo {}}}{{\\*\\bar 41}}{}", &behind[..20], &behind[20..]),
        format!("{}7\\'41{}", &digits[..40], &digits[40..]),
    ] {
        let file = format!("{{\\rtf1 {{\\object\\objemb{{\\*\\objdata {data}}}}}}}");
        let taken = take_apart(file.as_bytes(), &Passwords::NONE);
        assert!(taken.members.contains(&("e.com".to_owned(), eicar.clone())), "{data}: {:?}", taken.members);
        assert!(taken.outcome.suspicious.is_some(), "{data}");
    }
    for data in [format!("{before}\\bin-8 {behind}"), hex(&object(b"Packager\0", &package(&eicar)))] {
        let file = format!("{{\\rtf1 {{\\object\\objemb{{\\*\\objdata {data}}}}}}}");
        assert_eq!(members(file.as_bytes()), [("e.com".to_owned(), eicar.clone())], "{data}");
        assert!(take_apart(file.as_bytes(), &Passwords::NONE).outcome.is_complete(), "{data}");
    }
    // A picture's properties are none of its data.
    let picture = b"{\\rtf1{\\pict{\\sp{\\sn 11}{\\sv 22}}\\pngblip 8950}}";
    assert!(take_apart(picture, &Passwords::NONE).outcome.is_complete());
}

#[test]
fn objects_of_rich_text_come_out_behind_headers_that_lie() {
    let (eicar, file) = (eicar(), package(&eicar()));
    let objects = [
        // A name longer than all there is, one that takes the package for part of itself, another kind of object, other bytes before it.
        [b"\x01\x05\0\0\x02\0\0\0\xff\xff\xff\x7fPackage\0", &[0; 12][..], &file].concat(),
        [b"\x01\x05\0\0\x02\0\0\0\x80\0\0\0Package\0", &[0; 12][..], &file, &[0; 9000]].concat(),
        [b"\x01\x05\0\0\x05\0\0\0\x08\0\0\0Package\0", &[0; 12][..], &file].concat(),
        object(b"Package\0", &[b"junk", &file[..]].concat()),
    ];
    for data in objects.map(|object| hex(&object)) {
        let file = format!("{{\\rtf1 {{\\object\\objemb{{\\*\\objdata {data}}}}}}}");
        let taken = take_apart(file.as_bytes(), &Passwords::NONE);
        assert!(taken.members.contains(&("e.com".to_owned(), eicar.clone())), "{data}: {:?}", taken.members);
        assert!(taken.outcome.is_complete(), "{data}: {}", taken.outcome.detail());
        conformance::survives_mutations(&Case::new("rtf", file.as_bytes(), &eicar), ROUNDS);
    }
    let compound = [b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", &[7; 600][..]].concat();
    let data = hex(&[b"\x01\x05\0\0\x02\0\0\0\xff\xff\xff\xff", &compound[..]].concat());
    let file = format!("{{\\rtf1 {{\\object\\objemb{{\\*\\objdata {data}}}}}}}");
    assert!(members(file.as_bytes()).contains(&("object-1.ole".to_owned(), compound)));
}

#[test]
fn objects_of_rich_text_come_out_wherever_they_lie() {
    let eicar = eicar();
    let data = hex(&object(b"Package\0", &package(&eicar)));
    for text in [
        format!("{{\\rtf1}}{{\\object\\objemb{{\\*\\objdata {data}}}}}"),
        format!("{{\\rtf1 a}} }} {{\\object\\objemb{{\\*\\objdata {data}}}}}}}"),
        // Data that begins in other data.
        format!("{{\\rtf1{{\\object{{\\*\\objdata 0105000\\objdata {data}}}}}}}"),
        format!("{{\\rtf1{{\\object{{\\*\\objdata 0105{{\\*\\objdata {data}}}}}}}}}"),
        format!("{{\\rtf1{{\\pict 0105{{\\sp{{\\sv{{\\object\\objdata {data}}}}}}}8950}}}}"),
    ] {
        let taken = take_apart(text.as_bytes(), &Passwords::NONE);
        assert!(taken.members.contains(&("e.com".to_owned(), eicar.clone())), "{text}: {:?}", taken.members);
        assert!(taken.outcome.is_complete(), "{text}: {}", taken.outcome.detail());
        conformance::survives_mutations(&Case::new("rtf", text.as_bytes(), &eicar), ROUNDS);
    }
    // What mail servers and editors leave behind a document is nothing to remark, whatever braces it has.
    for behind in ["\r\n\0", "\0\0\0", "-- \r\nThis mail {was checked", "}}}", "{\\rtf1 b}"] {
        let taken = take_apart(format!("{{\\rtf1 a}}{behind}").as_bytes(), &Passwords::NONE);
        assert!(taken.outcome.is_complete() && taken.members.is_empty(), "{behind}: {taken:?}");
    }
    // As deep as this each would be read as often as there are others around it.
    let deep = format!("{{\\rtf1{}", "{\\pict 00".repeat(100_000));
    assert!(take_apart(deep.as_bytes(), &Passwords::NONE).outcome.suspicious.is_some());
}

#[test]
fn short_armored_data_comes_out() {
    let content = b"IEX(x)";
    let armored =
        format!("-----BEGIN PGP MESSAGE-----\n\n{}\n=abcd\n-----END PGP MESSAGE-----\n", base64::encode(content));
    for text in [armored.clone(), format!("Look:\r\n\r\n{}", armored.replace('\n', "\r\n"))] {
        assert_eq!(members(text.as_bytes())[0].1, content, "{text}");
    }
    // In lines of any length.
    let lines: String = base64::encode(&eicar()).chars().enumerate().fold(String::new(), |mut lines, (at, digit)| {
        lines.push(digit);
        if at % 7 == 0 {
            lines.push('\n');
        }
        lines
    });
    let text = format!("-----BEGIN X-----\n{lines}\n-----END X-----\n");
    assert_eq!(members(text.as_bytes())[0].1, eicar());
}

#[test]
fn strings_come_out_of_scripts_with_other_bytes_in_them() {
    let mut random = conformance::Random(5);
    let key: Vec<u8> = (0..200).map(|_| random.next() as u8).collect();
    let tar = [&b"a.com"[..], &[0; 95], b"0000644\0", &[0; 400]].concat();
    for (content, before) in [(&key, "\r\n"), (&tar, "\r\n"), (&tar, " a=")] {
        let text =
            [&b"@echo off\r\nrem "[..], &[0; 500], before.as_bytes(), base64::encode(content).as_bytes(), b"\r\n"]
                .concat();
        assert_eq!(members(&text), [("data-1".to_owned(), content.clone())], "behind {before:?}");
    }
    // Long names of functions, as programs have them.
    let names =
        [&b"\x7fELF\0\0"[..], &[7; 500], &[b"_ZN4core3fmt9Formatter".repeat(12), vec![0]].concat().repeat(50)].concat();
    assert_eq!(members(&names), []);
}

#[test]
fn short_strings_come_out_that_stand_for_what_files_begin_with() {
    let mut deflated = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    deflated.write_all(&eicar()).unwrap();
    for content in [
        deflated.finish().unwrap(),
        [b"\xef\xbb\xbf", &eicar()[..]].concat(),
        [b"\xff\xfe".to_vec(), eicar().into_iter().flat_map(|byte| [byte, 0]).take(90).collect()].concat(),
    ] {
        let text = format!("{{\"a\": \"{}\"}}\n", base64::encode(&content));
        assert_eq!(members(text.as_bytes())[0].1, content, "{text}");
    }
}

#[test]
fn addresses_with_data_come_out() {
    let eicar = eicar();
    let percent: String = eicar.iter().map(|byte| format!("%{byte:02X}")).collect();
    let addresses = [
        format!("<a href=\"data:application/octet-stream;base64,{}\">", base64::encode(&eicar)),
        format!("<a href='DATA:;BASE64,{}'>", base64::encode(&eicar).replace('+', "%2B").replace('=', "%3D")),
        format!("a {{ background: url(data:image/png;x=y;base64,{}) }}", lines(&eicar, "\n")),
        format!("<iframe src=\"data:text/html,{percent}\">"),
    ];
    for address in addresses {
        let file = format!("<html>\n<p>data: none\n{address}\n</html>\n");
        let members = members(file.as_bytes());
        assert!(members.iter().any(|(_, content)| *content == eicar), "{address}: {members:?}");
        conformance::check(&Case { open_ended: true, ..Case::new("text", file.as_bytes(), &eicar) }, ROUNDS);
    }
}

#[test]
fn long_strings_of_base64_come_out() {
    let eicar = eicar();
    // In a script it must be longer than a hash.
    let long = [vec![b'x'; 60], eicar.clone()].concat();
    let texts = [
        format!("var a = \"{}\";\n", base64::encode(&long)),
        format!("var a = \"{}\";\n", lines(&long, "\" +\r\n  \"")),
        format!("a = \"{}\"\r\n", lines(&long, "\" & _\r\n\"")),
        format!("{{\"a\": \"{}\"}}\n", lines(&long, "\\n")),
        format!("<?xml version=\"1.0\"?>\n<w:binData w:name=\"a\">{}</w:binData>\n", lines(&eicar, "\r\n")),
        format!("<office:binary-data>{}</office:binary-data>\n", lines(&eicar, "&#13;\n   ")),
        format!(
            "BEGIN:VCALENDAR\r\nATTACH;ENCODING=BASE64;VALUE=BINARY:{}\r\nEND:VCALENDAR\r\n",
            lines(&eicar, "\r\n ")
        ),
        format!("BEGIN:VCARD\r\nPHOTO;ENCODING=b:{}\r\n\r\nEND:VCARD\r\n", lines(&eicar, "\r\n ")),
    ];
    for text in texts {
        let members = members(text.as_bytes());
        assert!(members.iter().any(|(_, content)| content.ends_with(&eicar)), "{text}: {members:?}");
        // A text doesn't say where it ends.
        let case = Case::new("text", text.as_bytes(), &eicar);
        conformance::comes_apart(&case);
        conformance::survives_mutations(&case, ROUNDS);
    }
}

#[test]
fn lists_of_hashes_are_no_data() {
    let list: String = (0..2000u32).map(|at| format!("{}  file-{at}\n", hex(&at.to_le_bytes().repeat(16)))).collect();
    assert_eq!(members(list.as_bytes()), []);
    let lock: String = (0..2000u32)
        .map(|at| format!("\"integrity\": \"sha512-{}\"\n", base64::encode(&at.to_le_bytes().repeat(16))))
        .collect();
    assert_eq!(members(lock.as_bytes()), []);
    // Nor are lists of short names, of one length or another.
    for length in 4..32 {
        let names =
            (0..20_000u64).map(|at| base64::encode(&at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(3)));
        let list: String = names.map(|name| format!("{}\n", &name[..length])).collect();
        assert_eq!(members(list.as_bytes()), [], "{length}");
    }
}

#[test]
fn data_far_into_a_text_comes_out_and_prose_has_none() {
    let eicar = eicar();
    let prose = "It is a truth universally acknowledged that a single man in possession of a good fortune ";
    for lines in [0, 700, 728, 729, 730, 2000] {
        let before = format!("<html>{}", format!("{prose}\n").repeat(lines));
        for shift in 0..3 {
            let file =
                format!("{before}{}<a href=\"data:a/b;base64,{}\">", "x".repeat(shift * 31), base64::encode(&eicar));
            let members = members(file.as_bytes());
            assert_eq!(members, [("data-1.b".to_owned(), eicar.clone())], "{lines} lines");
        }
    }
    assert_eq!(members(format!("<html>{}", prose.repeat(100)).as_bytes()), []);
    // One line of base64 that is longer than what is held at once.
    let long: Vec<u8> = (0..300_000u32).map(|at| (at * 7 % 251) as u8).chain(eicar).collect();
    assert_eq!(members(format!("<a>{}</a>", base64::encode(&long)).as_bytes()), [("data-1".to_owned(), long)]);
}

#[test]
fn a_manifest_of_an_encrypted_document_is_told() {
    let manifest = |entry: &str| {
        format!(
            "<?xml version=\"1.0\"?>\n<manifest:manifest xmlns:manifest=\"urn:oasis:names:tc:opendocument:xmlns:manifest:1.0\">{entry}</manifest:manifest>"
        )
    };
    let encrypted =
        manifest("<manifest:file-entry><manifest:encryption-data manifest:checksum=\"a\"/></manifest:file-entry>");
    assert_eq!(take_apart(encrypted.as_bytes(), &Passwords::NONE).outcome.protected, [Protection::Document].into());
    assert_eq!(take_apart(manifest("").as_bytes(), &Passwords::NONE).outcome.protected, [].into());
}

#[test]
fn macros_in_xml_are_found_three_deep() {
    let mut ole = cfb::CompoundFile::create(Cursor::new(Vec::new())).unwrap();
    ole.create_stream("/VBA").unwrap().write_all(&eicar()).unwrap();
    ole.flush().unwrap();
    let mut mime = b"ActiveMime\0\0\x01\xf0\x04\0\0\0".to_vec();
    mime.resize(50, 0);
    let mut encoder = flate2::write::ZlibEncoder::new(mime, flate2::Compression::default());
    encoder.write_all(&ole.into_inner().into_inner()).unwrap();
    let mime = encoder.finish().unwrap();
    conformance::check(&Case::new("activemime", &mime, &eicar()), ROUNDS);
    let xml =
        format!("<?xml version=\"1.0\"?>\n<w:binData w:name=\"editdata.mso\">{}</w:binData>\n", lines(&mime, "\r\n"));
    assert!(conformance::is_found(xml.as_bytes(), &eicar(), &Passwords::NONE));
}

#[test]
fn packages_named_otherwise_are_the_zip_and_tar_that_they_are() {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("manifest.json", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&eicar()).unwrap();
    let zip = zip.finish().unwrap().into_inner();
    // Chrome's extensions: a header with a signature, then a ZIP.
    let crx = [b"Cr24\x03\0\0\0\x10\0\0\0", &[7; 16][..], &zip].concat();
    assert!(conformance::is_found(&crx, &eicar(), &Passwords::NONE));
    take_apart_as(ContainerFormat::named("zip").unwrap(), &crx, 0, &Passwords::NONE);
}

fn must_be_found(what: &str, file: &[u8]) {
    assert!(conformance::is_found(file, &eicar(), &Passwords::NONE), "{what}: {:?}", members(file));
}

#[test]
fn data_is_found_wherever_it_lies() {
    let long = base64::encode(&[eicar(), vec![b' '; 300]].concat());
    let short = base64::encode(&eicar());
    for comment in ["// some harmless comment line here\n", "<p>a line &amp; another one</p>\n"] {
        let around = comment.repeat(4000);
        for data in [
            format!("var d = atob(\"{long}\");\n"),
            format!("var d = atob(\"{short}\");\n"),
            format!("<a href=\"data:x/y;base64,{short}\">\n"),
        ] {
            for shift in 0..3 {
                must_be_found(&data, format!("{around}{}{data}{around}", "x".repeat(shift * 29)).as_bytes());
            }
        }
    }
    for odd in ["\0\0\0", "\u{1}", &"\u{1}\u{2}".repeat(3000)] {
        must_be_found(odd, format!("<!--{odd}--><a href=\"data:x/y;base64,{short}\">").as_bytes());
        must_be_found(odd, format!("/*{odd}*/ var d = atob(\"{short}\");").as_bytes());
    }
}

#[test]
fn addresses_are_read_as_browsers_read_them() {
    let eicar = eicar();
    let percent: String = eicar.iter().map(|byte| format!("%{byte:02X}")).collect();
    let plain = String::from_utf8(eicar.clone()).unwrap().replace('%', "%25").replace('@', "%40");
    let data = base64::encode(&eicar);
    let numbers = |text: &str| text.bytes().map(|byte| format!("&#{byte};")).collect::<String>();
    let unicode: String = data.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let braces: String = data.bytes().map(|byte| format!("\\u{{{byte:x}}}")).collect();
    let octal: String = data.bytes().map(|byte| format!("\\{byte:o}")).collect();
    for address in [
        format!("\"data:,{percent}\""),
        format!("\"data:text/plain,{plain}\""),
        format!("\"data:a/b;x=\'a\';base64,{data}\""),
        format!("\'data:a/b;x=\"a\";base64,{data}\'"),
        format!("\"data:a/b;%62ase64,{data}\""),
        format!("\"data:a/b;x={};base64,{data}\"", "a".repeat(3000)),
        format!("\"data:a/b;base64,{}&#{};{}\"", &data[..5], data.as_bytes()[5], &data[6..]),
        format!("\"data&colon;a/b;base64,{data}\""),
        format!("\"{}\"", numbers(&format!("data:a/b;base64,{data}"))),
        format!("\"data:a/b;base64,{unicode}\""),
        format!("\"data:a/b;base64,{braces}\""),
        format!("\"{braces}\""),
        format!("\"{octal}\""),
    ] {
        for around in [0, 5000] {
            let around = "<p>text</p>\n".repeat(around);
            must_be_found(&address, format!("<html>{around}<a href={address}>{around}").as_bytes());
        }
    }
    // What has no escape in it comes out once.
    let page = format!("<a title=\"&#65;\" href=\"data:a/b;base64,{data}\">");
    assert_eq!(members(page.as_bytes()), [("data-1.b".to_owned(), eicar)]);
}

#[test]
fn an_address_may_say_much_of_itself() {
    let page = |before: usize, says: usize| {
        let words = "a word ".repeat(before);
        let (says, data) = ("x".repeat(says), base64::encode(&eicar()));
        format!("<p>{words}</p><a href=\"data:a/b;x={says};base64,{data}\">{words}</a>")
    };
    for before in [0, 1000, 5000, 8000, 9000, 20_000] {
        for says in [5000, 20_000, 28_000 - 100] {
            must_be_found(&format!("{before} {says}"), page(before, says).as_bytes());
        }
        let taken = take_apart(page(before, 50_000).as_bytes(), &Passwords::NONE);
        assert!(taken.outcome.suspicious.is_some(), "{before}");
    }
    let escaped = page(3000, 20_000).replace("data:", "&#100;ata:");
    let taken = take_apart(escaped.as_bytes(), &Passwords::NONE);
    assert!(
        taken.outcome.suspicious.is_some() || conformance::is_found(escaped.as_bytes(), &eicar(), &Passwords::NONE)
    );
    // Nobody's data, but a long string.
    let json = format!("{{\"text\": \"data: {}\", \"more\": \"the data:\"}}", "words without an end ".repeat(1000));
    assert!(take_apart(json.as_bytes(), &Passwords::NONE).outcome.is_complete());
}

#[test]
fn runs_in_short_lines_come_out() {
    let eicar = eicar();
    let data = base64::encode(&eicar);
    let in_lines = |of: usize, between: &str| {
        let pieces = data.as_bytes().chunks(of).map(|piece| std::str::from_utf8(piece).unwrap());
        pieces.collect::<Vec<_>>().join(between)
    };
    for (line, shorter) in [(4, 4), (20, 20), (28, 28), (31, 17)] {
        let uneven = format!("{}\n{}", &data[..shorter], &data[shorter..]);
        for text in [
            format!("var s = atob(\"{}\");\n", in_lines(line, " ")),
            format!("var s = \"{}\";\n", in_lines(line, "\" +\n  \"")),
            format!("-----BEGIN X-----\n{}\n-----END X-----\n", in_lines(line, "\n")),
            format!("BEGIN:VCALENDAR\r\nATTACH;ENCODING=BASE64:{}\r\nEND:VCALENDAR\r\n", in_lines(line, "\r\n ")),
            format!("<office:binary-data>{}</office:binary-data>\n", in_lines(line, "\n")),
            format!("var s = atob(\"{uneven}\");\n"),
        ] {
            for before in [0, 3, 5000] {
                let text = format!("{}{text}", "a word\n".repeat(before));
                assert_eq!(members(text.as_bytes()), [("data-1".to_owned(), eicar.clone())], "{text}");
            }
        }
    }
    // Lines of other lengths between those of a run.
    let long = base64::encode(&[eicar.clone(), vec![b' '; 1000]].concat());
    let text = format!("atob(\"{}\n{}\n{}\")", &long[..200], &long[200..210], &long[210..]);
    assert_eq!(members(text.as_bytes()).first().map(|(_, content)| content.len()), Some(eicar.len() + 1000));
    // A program, whose header is no text.
    let program = [b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff\0\0".as_slice(), &[0; 44], b"\x80\0\0\0", &eicar].concat();
    let text: String = base64::encode(&program)
        .as_bytes()
        .chunks(8)
        .map(|line| format!("{} ", std::str::from_utf8(line).unwrap()))
        .collect();
    assert_eq!(members(format!("'{text}'").as_bytes()), [("data-1".to_owned(), program)]);
}

#[test]
fn line_breaks_in_addresses_are_taken_out() {
    let data = base64::encode(&eicar());
    let in_lines = |text: &str, between: &str| {
        let pieces = text.as_bytes().chunks(7).map(|piece| std::str::from_utf8(piece).unwrap());
        pieces.collect::<Vec<_>>().join(between)
    };
    let percent: String = eicar().iter().map(|byte| format!("%{byte:02X}")).collect();
    let far = "\n".repeat(100);
    for address in [
        format!("\"da\nta:a/b;base64,{data}\""),
        format!("\"d\r\n\ta\nt\na\n:a/b;ba\nse64,{data}\""),
        format!("\"data:a/b;ba%7\n3e64,{data}\""),
        format!("\"data:a/b;base64,{}\"", in_lines(&data, "\n")),
        format!("\"data:a/b;base64,{}\"", in_lines(&data, &far)),
        format!("\"data:a/b;base64,{}\"", in_lines(&data.replace('=', "%3D"), "\t")),
        format!("\"data:a/b,{}\"", in_lines(&percent, "\n")),
        format!("\"data:a/b,{}\"", in_lines(&percent, "\t")),
        format!("\"data:a/b,{}\"", in_lines(&percent, &far)),
        format!("\"\n data:a/b,{}\"", in_lines(&percent, "\r\n")),
        format!("\"data:\n,{}\"", in_lines(&percent, "\r\n")),
        format!("'{}'", in_lines(&format!("data:text/html,{percent}"), "\n")),
        format!("'{}'", in_lines(&format!("data:text/html,{percent}"), "&#10;")),
        format!("'{}'", in_lines(&format!("data:text/html;base64,{data}"), "&NewLine;&Tab;")),
    ] {
        must_be_found(&address, format!("<a href={address}>\n").as_bytes());
    }
    // What is taken for a quote may be none: the lines behind it are searched all the same.
    let prose = "don't 'data: a/b, and so on\n";
    let page = format!("<p>{prose}\nbegin 644 a\n{data}\n<a href=\"data:a/b,{percent}\">\n");
    must_be_found("prose", page.as_bytes());
    // And a text in which it never ends is whole.
    let prose = format!("<p>{prose}\nThe end\n");
    assert!(take_apart(prose.as_bytes(), &Passwords::NONE).outcome.is_complete());
}

#[test]
fn addresses_in_addresses_are_read_a_few_times_at_most() {
    let nested = "\"data:a/b,\n'data:a/b,\n`data:a/b,\n(data:a/b,\n".repeat(20_000);
    let all: usize = members(nested.as_bytes()).iter().map(|(_, content)| content.len()).sum();
    assert!(all < 4 * nested.len(), "{all}");
}

#[test]
fn short_runs_count_if_they_stand_for_text_or_a_file() {
    let data = base64::encode(&eicar());
    for text in [
        data.clone(),
        format!("-----BEGIN X-----\n{}\n-----END X-----\n", lines(&eicar(), "\n")),
        format!("dn: x\nattr:: {data}\n"),
        format!("{{\"f\": \"{}\\u{:04x}{}\"}}", &data[..8], data.as_bytes()[8], &data[9..]),
    ] {
        must_be_found(&text, text.as_bytes());
    }
    let names =
        "aVeryLongNameOfAFunctionThatSomebodyInventedInAnHourOfBoredom_AndThenWentOnToUseItEverywhereInTheProgram2(); ";
    assert_eq!(members(names.repeat(1000).as_bytes()), []);
}

#[test]
fn data_anywhere_in_utf_16_is_found() {
    let data = base64::encode(&eicar());
    let escapes: String = data.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
    let encoded = format!("begin-base64 644 a\n{data}\n====\n");
    for what in [format!("var s = atob(\"{data}\");\n"), format!("var s = atob(\"{escapes}\");\n"), encoded] {
        for lines in [2, 5000, 6550, 6560, 20_000] {
            let around = "var a=1;\r\n".repeat(lines);
            let text = format!("\u{feff}{around}\n{what}{around}");
            let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            must_be_found(&what, &little);
            must_be_found(&what, &big);
        }
    }
    let prose: Vec<u8> = "\u{feff}It is a truth\r\n".repeat(10_000).encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(members(&prose), []);
}

#[test]
fn uuencode_is_found_wherever_it_lies() {
    let encoded =
        "M6#5/(5`E0$%06S1<4%I8-30H4%XI-T-#*3=])$5)0T%2+5-404Y$05)$+4%.\n75$E625)54RU415-4+49)3$4A)$@K2\"H`\n`\nend\n";
    let base64 = format!("{}\n====\n", base64::encode(&eicar()));
    for (begin, body) in [
        ("begin 0 a", encoded),
        ("begin 0644 a", encoded),
        ("begin-base64-encoded 644 YQ==", &base64),
        ("begin-base64 0 a", &base64),
    ] {
        for before in [0, 3000, 40_000] {
            must_be_found(begin, format!("{}{begin}\n{body}", "x\n".repeat(before)).as_bytes());
        }
    }
    assert_eq!(members("a\nbegin 7 days later\nThe end of it\n".as_bytes()), []);
}

#[test]
fn one_run_of_base64_behind_another_is_another() {
    let note = "Notes of a meeting, as they were taken; nothing of it is of interest to anybody else at all.";
    assert!(base64::encode(note.as_bytes()).len() % 48 < 32 && !note.len().is_multiple_of(3));
    let encoded = lines(note.as_bytes(), "\n").trim_end_matches('=').to_owned();
    let file = format!("{encoded}\n\n{}\n", lines(&[b"\x1f\x8b", &eicar()[..]].concat().repeat(4), "\n"));
    let found = members(file.as_bytes());
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0].1, note.as_bytes());
}
