//! PDF: streams in every encoding, attachments, scripts, streams of objects, encrypted documents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod base64;

use std::io::Write;

use lazaret_containers::conformance::{self, Case, eicar, take_apart};
use lazaret_containers::{Passwords, Protection};

const ROUNDS: u32 = 500;

/// A document of objects: each a dictionary, and perhaps the data of a stream.
fn document(objects: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut file = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n".to_vec();
    let mut offsets = Vec::new();
    for (number, (value, data)) in objects.iter().enumerate() {
        offsets.push(file.len());
        write!(file, "{} 0 obj\n{value}\n", number + 1).unwrap();
        if let Some(data) = data {
            file.extend_from_slice(b"stream\n");
            file.extend_from_slice(data);
            file.extend_from_slice(b"\nendstream\n");
        }
        file.extend_from_slice(b"endobj\n");
    }
    let table = file.len();
    write!(file, "xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).unwrap();
    for offset in offsets {
        writeln!(file, "{offset:010} 00000 n ").unwrap();
    }
    write!(file, "trailer\n<< /Root 1 0 R /Size {} >>\nstartxref\n{table}\n%%EOF\n", objects.len() + 1).unwrap();
    file
}

fn with_stream(entries: &str, data: &[u8]) -> Vec<u8> {
    let dictionary = format!("<< /Length {} {entries} >>", data.len());
    document(&[("<< /Type /Catalog >>", None), (&dictionary, Some(data))])
}

fn flate(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn hex(data: &[u8]) -> Vec<u8> {
    let mut text: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('>');
    text.into_bytes()
}

fn ascii85(data: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for group in data.chunks(4) {
        let mut word = [0; 4];
        word[..group.len()].copy_from_slice(group);
        let word = u32::from_be_bytes(word);
        let digits = (0..5).rev().map(|power| (word / 85u32.pow(power) % 85) as u8 + b'!');
        text.extend(digits.take(group.len() + 1));
    }
    text.extend_from_slice(b"~>");
    text
}

/// LZW without any compression: every code is a byte, and the codes are cleared before they get longer.
fn lzw(data: &[u8]) -> Vec<u8> {
    let codes =
        data.chunks(200).flat_map(|chunk| std::iter::once(256).chain(chunk.iter().map(|byte| u32::from(*byte))));
    let mut bits = String::new();
    for code in codes.chain([257]) {
        bits.push_str(&format!("{code:09b}"));
    }
    bits.as_bytes()
        .chunks(8)
        .map(|byte| u8::from_str_radix(&format!("{:0<8}", std::str::from_utf8(byte).unwrap()), 2).unwrap())
        .collect()
}

fn run_length(data: &[u8]) -> Vec<u8> {
    let literals = data.chunks(128).flat_map(|chunk| [&[chunk.len() as u8 - 1], chunk].concat());
    literals.chain([128]).collect()
}

#[test]
fn every_filter_is_undone() {
    let eicar = eicar();
    let cases = [
        ("", eicar.clone()),
        ("/Filter /FlateDecode", flate(&eicar)),
        ("/Filter [/Fl]", flate(&eicar)),
        ("/Filter /ASCIIHexDecode", hex(&eicar)),
        ("/Filter /ASCII85Decode", ascii85(&eicar)),
        ("/Filter /LZWDecode", lzw(&eicar)),
        ("/Filter /RunLengthDecode", run_length(&eicar)),
        ("/Filter [/A#53CII85Decode /FlateDecode]", ascii85(&flate(&eicar))),
        ("/Filter [/AHx /LZW /RL] /DecodeParms [null << >> null]", hex(&lzw(&run_length(&eicar)))),
    ];
    for (entries, data) in cases {
        let file = with_stream(entries, &data);
        let members = take_apart(&file, &Passwords::NONE).members;
        assert!(members.contains(&("object-2".to_owned(), eicar.clone())), "{entries}: {members:?}");
        conformance::check(&Case::new("pdf", &file, &eicar), ROUNDS);
    }
}

#[test]
fn images_stay_as_they_are() {
    let file = with_stream("/Filter [/ASCIIHexDecode /DCTDecode]", &hex(&eicar()));
    assert_eq!(take_apart(&file, &Passwords::NONE).members, [("object-2.jpg".to_owned(), eicar())]);
}

#[test]
fn attachments_have_their_names_and_scripts_come_out() {
    let eicar = eicar();
    let file = document(&[
        (
            "<< /Type /Catalog /OpenAction << /S /JavaScript /JS (app.alert\\(1\\)) >> /AA << /O << /JS 4 0 R >> >> >>",
            None,
        ),
        ("<< /Type /Filespec /F (old) /UF <FEFF0065002E0063006F006D> /EF << /F 3 0 R >> >>", None),
        (&format!("<< /Type /EmbeddedFile /Length {} >>", eicar.len()), Some(&eicar)),
        ("<< /Length 8 >>", Some(b"script()")),
        ("(a string of its own)", None),
    ]);
    let members = take_apart(&file, &Passwords::NONE).members;
    let expected: [(&str, &[u8]); 4] = [
        ("object-1.js", b"app.alert(1)"),
        ("object-5.js", b"a string of its own"),
        ("e.com", &eicar),
        ("object-4.js", b"script()"),
    ];
    assert_eq!(members, expected.map(|(name, content)| (name.to_owned(), content.to_vec())));
    conformance::check(&Case::new("pdf", &file, &eicar), ROUNDS);
}

#[test]
fn objects_in_streams_are_seen() {
    let eicar = eicar();
    let objects = b"4 0 5 40 << /F (eicar.com) /EF << /F 3 0 R >> >> << /JS (script) >> ";
    let first = 9;
    let objects = flate(objects);
    let file = document(&[
        ("<< /Type /Catalog >>", None),
        (
            &format!("<< /Type /ObjStm /N 2 /First {first} /Length {} /Filter /FlateDecode >>", objects.len()),
            Some(&objects),
        ),
        (&format!("<< /Length {} >>", eicar.len()), Some(&eicar)),
    ]);
    let members = take_apart(&file, &Passwords::NONE).members;
    assert!(members.contains(&("eicar.com".to_owned(), eicar.clone())), "{members:?}");
    assert!(members.contains(&("object-5.js".to_owned(), b"script".to_vec())), "{members:?}");
    conformance::check(&Case::new("pdf", &file, &eicar), ROUNDS);
}

#[test]
fn lengths_that_lie_hide_nothing() {
    let eicar = eicar();
    for length in ["0", "3", "99999999", "-1", "9 0 R", "(x)"] {
        let file = document(&[("<< /Type /Catalog >>", None), (&format!("<< /Length {length} >>"), Some(&eicar))]);
        assert!(conformance::is_found(&file, &eicar, &Passwords::NONE), "{length}");
    }
    // A length that is an object of its own, behind the stream; data that has the word that ends it.
    let data = [b"endstream ".to_vec(), eicar.clone()].concat();
    let file = document(&[(&format!("<< /Length {} >>", data.len()), Some(&data))]);
    assert!(conformance::is_found(&file, &eicar, &Passwords::NONE));
    // An object that lies in the data of another stream, where a cross-reference table may lead.
    let data =
        [b"7 0 obj\n<< /Filter /FlateDecode >>\nstream\n".to_vec(), flate(&eicar), b"\nendstream\n".to_vec()].concat();
    let file = document(&[(&format!("<< /Length {} >>", data.len()), Some(&data))]);
    assert!(conformance::is_found(&file, &eicar, &Passwords::NONE));
    // One behind a string without an end.
    let file = [
        b"%PDF-1.4\n1 0 obj (\n2 0 obj\n<< /Filter /Fl >>\nstream\n".to_vec(),
        flate(&eicar),
        b"\nendstream\n%%EOF".to_vec(),
    ]
    .concat();
    assert!(conformance::is_found(&file, &eicar, &Passwords::NONE));
}

#[test]
fn streams_that_are_nothing_by_themselves_come_out_together_if_there_are_many() {
    let page = flate(b"BT /F1 12 Tf (page) Tj ET");
    let eicar = flate(&[b"PK\x03\x04".to_vec(), eicar()].concat());
    let dictionary = |data: &[u8]| format!("<< /Length {} /Filter /FlateDecode >>", data.len());
    let (of_page, of_eicar) = (dictionary(&page), dictionary(&eicar));
    let mut objects: Vec<(&str, Option<&[u8]>)> = vec![("<< /Type /Catalog >>", None), (&of_eicar, Some(&eicar))];
    objects.resize(5000, (&of_page, Some(&page)));
    let file = document(&objects);
    let taken = take_apart(&file, &Passwords::NONE);
    assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
    let names: Vec<&str> = taken.members.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["object-2", "streams-1"]);
    assert_eq!(taken.members[1].1.len(), 4998 * 26);
}

#[test]
fn a_header_of_another_kind_or_none_hides_no_document() {
    let of = |header: &str, more: &str, behind: &str| {
        let file = String::from_utf8(with_stream("/Filter /AHx", &hex(&eicar())).split_off(15)).unwrap();
        let (objects, end) = file.split_at(file.find("xref\n0").unwrap());
        let table = header.len() + objects.len();
        let end = end.split("startxref").next().unwrap();
        format!("{header}{objects}{end}startxref\n{}\n%%EOF\n{behind}", table + more.len()).into_bytes()
    };
    for file in [
        of("%\n", "", ""),
        of("", "", "and some bytes"),
        of("%!PS-Adobe-3.0 PDF-1.4\n", "", ""),
        of("%!PS-Adobe-3.0 PDF-1.4\n", "", &" ".repeat(70_000)),
        // The place is wrong, and programs search for the objects.
        of("", "wrong", ""),
        of(&"text\n".repeat(20_000), "", ""),
    ] {
        must_be_found("without a header", &file);
        assert!(take_apart(&file, &Passwords::NONE).outcome.is_complete());
    }
    // Nor does the end of another format behind it.
    let with_zip = of("\n%PDF-1.7\n", "", "PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    must_be_found("with a ZIP", &with_zip);
    // What only speaks of PDF is none: a program that writes it, PostScript.
    let program = "print(f\"1 0 obj\\n<<>>\\nendobj\\nxref\\n0 1\\ntrailer\\n<<>>\\nstartxref\\n{at}\\n%%EOF\\n\")\n";
    let source = "out.write(b'startxref\\n%d\\n%%EOF\\n' % at)\nout.write('startxref')\nout.write(str(at))\nout.write('%%EOF')\n";
    for text in [program, source, "%!PS-Adobe-3.0 EPSF-3.0\n%%Title: PDF-1.4\n%%EOF\n"] {
        assert_eq!(take_apart(text.as_bytes(), &Passwords::NONE).members, [], "{text}");
    }
}

#[test]
fn something_may_lie_before_the_header() {
    let file = [b"\n\n junk ".to_vec(), with_stream("/Filter /Fl", &flate(&eicar()))].concat();
    conformance::comes_apart(&Case::new("pdf", &file, &eicar()));
}

#[test]
fn encrypted_documents_open_with_either_password() {
    for (revision, document) in ENCRYPTED {
        let file = base64::decode(document);
        let opens_alone = matches!(revision, 2 | 4);
        for password in ["owner", "user"] {
            let passwords = Passwords::new(["wrong".to_owned(), password.to_owned()]);
            conformance::comes_apart(&Case { passwords: passwords.clone(), ..Case::new("pdf", &file, &eicar()) });
            let taken = take_apart(&file, &passwords);
            assert_eq!(taken.outcome.decrypted, !opens_alone, "revision {revision}");
            let members = taken.members;
            assert!(members.contains(&("eicar.com".to_owned(), eicar())), "revision {revision}: {members:?}");
            assert!(members.iter().any(|(_, content)| content == b"app.alert(1)"), "revision {revision}");
        }
        let taken = take_apart(&file, &Passwords::NONE);
        assert_eq!(
            taken.outcome.protected,
            (!opens_alone).then_some(Protection::Document).into_iter().collect(),
            "revision {revision}"
        );
        assert_eq!(conformance::is_found(&file, &eicar(), &Passwords::NONE), opens_alone, "revision {revision}");
        let passwords = Passwords::new(["user".to_owned()]);
        conformance::check(&Case { passwords, ..Case::new("pdf", &file, &eicar()) }, ROUNDS / 5);
    }
}

/// Documents that qpdf encrypted in each revision, with the user's password "user" in 3, 5 and 6, none in the others,
/// and the owner's "owner".
const ENCRYPTED: [(u32, &str); 5] = [
    (
        2,
        "\
         JVBERi0xLjMKJb/3ov4KMSAwIG9iago8PCAvTmFtZXMgPDwgL0VtYmVkZGVkRmlsZXMgPDwgL05hbWVzIFsgPDFlPiA8PCAvRUYgPDwgL0Yg\
         MiAwIFIgPj4gL0YgPDFhNzY0OTQ4MWVhZGZlNWU0MT4gL1R5cGUgL0ZpbGVzcGVjIC9VRiA8MWE3NjQ5NDgxZWFkZmU1ZTQxPiA+PiBdID4+\
         ID4+IC9PcGVuQWN0aW9uIDw8IC9KUyA8MWU2ZjVhMDcwZGVmZjg0MzU4NTc3Yjc3PiAvUyAvSmF2YVNjcmlwdCA+PiAvUGFnZXMgMyAwIFIg\
         L1R5cGUgL0NhdGFsb2cgPj4KZW5kb2JqCjIgMCBvYmoKPDwgL1R5cGUgL0VtYmVkZGVkRmlsZSAvTGVuZ3RoIDc2IC9GaWx0ZXIgL0ZsYXRl\
         RGVjb2RlID4+CnN0cmVhbQqKPoVZ5gKiI24UcxXoEPeul4NEbM/FtQr6wDsYsArJIh7Sa4ERQFR+Vjt6DaF9HmLFY6s+UJx5w+bL4gvHtPHw\
         4NH4yYfvIXDoXlEQCmVuZHN0cmVhbQplbmRvYmoKMyAwIG9iago8PCAvQ291bnQgMCAvS2lkcyBbIF0gL1R5cGUgL1BhZ2VzID4+CmVuZG9i\
         ago0IDAgb2JqCjw8IC9GaWx0ZXIgL1N0YW5kYXJkIC9MZW5ndGggNDAgL08gPGM5MjQyMjY4N2ZhY2VlNjg2ZTM3M2YxMGI1YzdkMDQ3Mzgw\
         NTMxNTJmN2UyZWUzMGUxMWM2OWVjNDQyNTc2YWI+IC9QIC0xMiAvUiAyIC9VIDw5ZTVkZTQ2NTIwOTkwMDdiZmY1ZTNlNmZlMzE4M2UyZTMz\
         MGI1MzZjMTI2OTFkNTdmYTZlOTZiZWUzMThiNzAzPiAvViAxID4+CmVuZG9iagp4cmVmCjAgNQowMDAwMDAwMDAwIDY1NTM1IGYgCjAwMDAw\
         MDAwMTUgMDAwMDAgbiAKMDAwMDAwMDI2OCAwMDAwMCBuIAowMDAwMDAwNDM1IDAwMDAwIG4gCjAwMDAwMDA0ODggMDAwMDAgbiAKdHJhaWxl\
         ciA8PCAvUm9vdCAxIDAgUiAvU2l6ZSA1IC9JRCBbPDMxNDE1OTI2NTM1ODk3OTMyMzg0NjI2NDMzODMyNzk1PjwzMTQxNTkyNjUzNTg5Nzkz\
         MjM4NDYyNjQzMzgzMjc5NT5dIC9FbmNyeXB0IDQgMCBSID4+CnN0YXJ0eHJlZgo2OTUKJSVFT0YK",
    ),
    (
        3,
        "\
         JVBERi0xLjQKJb/3ov4KMSAwIG9iago8PCAvTmFtZXMgPDwgL0VtYmVkZGVkRmlsZXMgPDwgL05hbWVzIFsgKCUpIDw8IC9FRiA8PCAvRiAy\
         IDAgUiA+PiAvRiA8MjEyZGI2OWNlYmJiMDg4OTMzPiAvVHlwZSAvRmlsZXNwZWMgL1VGIDwyMTJkYjY5Y2ViYmIwODg5MzM+ID4+IF0gPj4g\
         Pj4gL09wZW5BY3Rpb24gPDwgL0pTIDwyNTM0YTVkM2Y4ZjkwZTk0MmExNjkyNjE+IC9TIC9KYXZhU2NyaXB0ID4+IC9QYWdlcyAzIDAgUiAv\
         VHlwZSAvQ2F0YWxvZyA+PgplbmRvYmoKMiAwIG9iago8PCAvVHlwZSAvRW1iZWRkZWRGaWxlIC9MZW5ndGggNzYgL0ZpbHRlciAvRmxhdGVE\
         ZWNvZGUgPj4Kc3RyZWFtCrxkXGMxHtRMaxaezNgO2qzrI9qaElf1J7IF4wTGfSLxpIc5xNwv6ANgh3EX1cx9byOswLZ9j+9HyajErx0z23nx\
         tTfeMAUakpICy7AKZW5kc3RyZWFtCmVuZG9iagozIDAgb2JqCjw8IC9Db3VudCAwIC9LaWRzIFsgXSAvVHlwZSAvUGFnZXMgPj4KZW5kb2Jq\
         CjQgMCBvYmoKPDwgL0ZpbHRlciAvU3RhbmRhcmQgL0xlbmd0aCAxMjggL08gPDBiYTM4MzVmODhmOTAzODhlNzRlNTQ1ODQxMjVjZTE0MmJl\
         MGRlMjRjNmIwZDM3NzQ2ZTA3NWI4OTE3NTY2NzE+IC9QIC0xMDI4IC9SIDMgL1UgPGQyMzE4ZjEyMGI1NzU2ZjU2MWUzN2E2NjExY2VmM2Iz\
         MDAyMTQ0Njk5MGI5ZTQxMTQwNzFhNGQ5MTA0OTg0YzE+IC9WIDIgPj4KZW5kb2JqCnhyZWYKMCA1CjAwMDAwMDAwMDAgNjU1MzUgZiAKMDAw\
         MDAwMDAxNSAwMDAwMCBuIAowMDAwMDAwMjY3IDAwMDAwIG4gCjAwMDAwMDA0MzQgMDAwMDAgbiAKMDAwMDAwMDQ4NyAwMDAwMCBuIAp0cmFp\
         bGVyIDw8IC9Sb290IDEgMCBSIC9TaXplIDUgL0lEIFs8MzE0MTU5MjY1MzU4OTc5MzIzODQ2MjY0MzM4MzI3OTU+PDMxNDE1OTI2NTM1ODk3\
         OTMyMzg0NjI2NDMzODMyNzk1Pl0gL0VuY3J5cHQgNCAwIFIgPj4Kc3RhcnR4cmVmCjY5NwolJUVPRgo=",
    ),
    (
        4,
        "\
         JVBERi0xLjYKJb/3ov4KMSAwIG9iago8PCAvTmFtZXMgPDwgL0VtYmVkZGVkRmlsZXMgPDwgL05hbWVzIFsgPGJiZGU0MWRjZTFkOTllNzcx\
         N2M4NjU5MjAwZDI5MDI0ZmQ0ZTYyNjc2YzJmMWJmM2MzMmI4YzYzNDg0NTk5ZTY+IDw8IC9FRiA8PCAvRiAyIDAgUiA+PiAvRiA8YjA4YWIw\
         NTU0MDFjODYzNWY5ZTk4Njg4OWRjMjlmZDMwYTMzYTI3OTZhZjBmOTdlOTllMWEyOTFjNmZjMWE5OT4gL1R5cGUgL0ZpbGVzcGVjIC9VRiA8\
         YjYxMmE3ODk5ZWEyZGNiZTZiMThhMGI2NmJkZTgzNmFjYTczYmM2YTRmNmRhNDYyZmZkYzcwYzYwYmVmOWIwND4gPj4gXSA+PiA+PiAvT3Bl\
         bkFjdGlvbiA8PCAvSlMgPGFlNzYxMDhhMDJjNGQwZDc5ODBlZTkwNDUwYzhkNTI3OTc1YzlhOWMyZWZlZjgwMTE5NmUyZTRkOTIxNDc0YTI+\
         IC9TIC9KYXZhU2NyaXB0ID4+IC9QYWdlcyAzIDAgUiAvVHlwZSAvQ2F0YWxvZyA+PgplbmRvYmoKMiAwIG9iago8PCAvVHlwZSAvRW1iZWRk\
         ZWRGaWxlIC9MZW5ndGggOTYgL0ZpbHRlciAvRmxhdGVEZWNvZGUgPj4Kc3RyZWFtCnJB0bSUuUT5WfAowghz8ecysyuuRsyf2SPYflF5Hc8R\
         yXmN2Gaq3duYiyfu0HLP81Rwl8BJJEWQKbSiyO7/C7Mq1ZtxjA8H2YqkPSBJKN0VqxmsrNwCBk45mcBNtduOLgplbmRzdHJlYW0KZW5kb2Jq\
         CjMgMCBvYmoKPDwgL0NvdW50IDAgL0tpZHMgWyBdIC9UeXBlIC9QYWdlcyA+PgplbmRvYmoKNCAwIG9iago8PCAvQ0YgPDwgL1N0ZENGIDw8\
         IC9BdXRoRXZlbnQgL0RvY09wZW4gL0NGTSAvQUVTVjIgL0xlbmd0aCAxNiA+PiA+PiAvRmlsdGVyIC9TdGFuZGFyZCAvTGVuZ3RoIDEyOCAv\
         TyA8NTY2ZmE4NzNlZTMzYzc5N2NkM2I5MDRmZGFkZjgxNGFmYTM0ZGY5YTM4ZjZlZDQxYjk4NGUyYzZkYTJhYTZmNT4gL09FIDw+IC9QIC0x\
         MDI4IC9SIDQgL1N0bUYgL1N0ZENGIC9TdHJGIC9TdGRDRiAvVSA8ZGU3M2RjZGM1NzhkNTUyOWM3Y2M3YTg5YzIzMTk4MzgwMDIxNDQ2OTkw\
         YjllNDExNDA3MWE0ZDkxMDQ5ODRjMT4gL1VFIDw+IC9WIDQgPj4KZW5kb2JqCnhyZWYKMCA1CjAwMDAwMDAwMDAgNjU1MzUgZiAKMDAwMDAw\
         MDAxNSAwMDAwMCBuIAowMDAwMDAwNDYyIDAwMDAwIG4gCjAwMDAwMDA2NDkgMDAwMDAgbiAKMDAwMDAwMDcwMiAwMDAwMCBuIAp0cmFpbGVy\
         IDw8IC9Sb290IDEgMCBSIC9TaXplIDUgL0lEIFs8MzE0MTU5MjY1MzU4OTc5MzIzODQ2MjY0MzM4MzI3OTU+PDMxNDE1OTI2NTM1ODk3OTMy\
         Mzg0NjI2NDMzODMyNzk1Pl0gL0VuY3J5cHQgNCAwIFIgPj4Kc3RhcnR4cmVmCjEwMTgKJSVFT0YK",
    ),
    (
        5,
        "\
         JVBERi0xLjcKJb/3ov4KMSAwIG9iago8PCAvRXh0ZW5zaW9ucyA8PCAvQURCRSA8PCAvQmFzZVZlcnNpb24gLzEuNyAvRXh0ZW5zaW9uTGV2\
         ZWwgMyA+PiA+PiAvTmFtZXMgPDwgL0VtYmVkZGVkRmlsZXMgPDwgL05hbWVzIFsgPGI1YTFiOWE1OTYzZWJiNDM3OGU4NWM3ZWUxZWI5NTE0\
         YzQ0NDUyNjBlYjVkYTAyZWFlOGI5NzM0NDNkODVhZWQ+IDw8IC9FRiA8PCAvRiAyIDAgUiA+PiAvRiA8OGZkNmVlMzAxMmMxMmNhYjkzMjZm\
         ZTMzZGEyOTk1MmJmN2I5YjIzZGRiNjI3YzkyMTJlZDdhMzNlY2VhZjBkMz4gL1R5cGUgL0ZpbGVzcGVjIC9VRiA8MzE3YmU2ZDQ2ZjcxMGI3\
         MTdjZjQ5MjIzMTg5OWY1ZjY4ZWEzZjQ4ZjJmNGRhMjA2YzFkMWM4MWExNDQxMzAwZT4gPj4gXSA+PiA+PiAvT3BlbkFjdGlvbiA8PCAvSlMg\
         PGMxMTc4NjZkMDI4MzlhNGQzM2RjOWQyNjI4Mjg2YWY0NjIwMDUxOGEyOTM2ZDM4MjI3MDA3Nzk0MDcwM2M2ODI+IC9TIC9KYXZhU2NyaXB0\
         ID4+IC9QYWdlcyAzIDAgUiAvVHlwZSAvQ2F0YWxvZyA+PgplbmRvYmoKMiAwIG9iago8PCAvVHlwZSAvRW1iZWRkZWRGaWxlIC9MZW5ndGgg\
         OTYgL0ZpbHRlciAvRmxhdGVEZWNvZGUgPj4Kc3RyZWFtClUYjfIUtC2pTX2o1H1O/RQrKdk4CPxzuvKi+XnVcVTlPfQuo8AuB/LW9jmJpGsQ\
         r0pVQSLE/DYpyftoMvTS64xmLsISlfROfV9QeKCy3NcLWShis32q7rtSFIdq95x3EwplbmRzdHJlYW0KZW5kb2JqCjMgMCBvYmoKPDwgL0Nv\
         dW50IDAgL0tpZHMgWyBdIC9UeXBlIC9QYWdlcyA+PgplbmRvYmoKNCAwIG9iago8PCAvQ0YgPDwgL1N0ZENGIDw8IC9BdXRoRXZlbnQgL0Rv\
         Y09wZW4gL0NGTSAvQUVTVjMgL0xlbmd0aCAzMiA+PiA+PiAvRmlsdGVyIC9TdGFuZGFyZCAvTGVuZ3RoIDI1NiAvTyA8OTA3NWQxMDdkM2Rk\
         ZWEzZDZjODViYWZkY2NjMGQzM2MwZDAzYTM1NTNkNDc4OTgxMzE2ZWE3ODU3YTFjNGRlMjZhNWExMTdjOTcyMzgzNTFkMWE2MDM4NThiNTYx\
         MTE5PiAvT0UgPDAzMGQ1MjA3Yjk0MGQ0ZjI0ZWY0MTBiOTdlNmUyMDRjNjJkNDc2MGE5MjYzYWYxNWZhMGU2ODkwZTVhM2E1ZjM+IC9QIC0x\
         MDI4IC9QZXJtcyA8NTE5NDM3NzEzMGJjOGUxNTFhZDU3ZDliNTRjOTI0NGY+IC9SIDUgL1N0bUYgL1N0ZENGIC9TdHJGIC9TdGRDRiAvVSA8\
         ZjM1Y2QxYzcxODM4M2I0MzVmNWM4NDE3Y2JlMzAzYjEyZTAzMGUzMzBkNTQxYmIxYWVlNGViYWVhMjJkMmU3OTQ0NDc2YmFkNTE5ZWJlNGFk\
         MjkzNTc2NDgzMGM5MDEwPiAvVUUgPGE0YjYxNTdlNjAxNjMzN2Y2NDZjNmZiYTg4ODdkNDg2NWU0N2EzMTAxZTE2ZjllYmUxNTQ3YmFlNjYy\
         ZGZjYmE+IC9WIDUgPj4KZW5kb2JqCnhyZWYKMCA1CjAwMDAwMDAwMDAgNjU1MzUgZiAKMDAwMDAwMDAxNSAwMDAwMCBuIAowMDAwMDAwNTI4\
         IDAwMDAwIG4gCjAwMDAwMDA3MTUgMDAwMDAgbiAKMDAwMDAwMDc2OCAwMDAwMCBuIAp0cmFpbGVyIDw8IC9Sb290IDEgMCBSIC9TaXplIDUg\
         L0lEIFs8MzE0MTU5MjY1MzU4OTc5MzIzODQ2MjY0MzM4MzI3OTU+PDMxNDE1OTI2NTM1ODk3OTMyMzg0NjI2NDMzODMyNzk1Pl0gL0VuY3J5\
         cHQgNCAwIFIgPj4Kc3RhcnR4cmVmCjEzMTgKJSVFT0YK",
    ),
    (
        6,
        "\
         JVBERi0xLjcKJb/3ov4KMSAwIG9iago8PCAvRXh0ZW5zaW9ucyA8PCAvQURCRSA8PCAvQmFzZVZlcnNpb24gLzEuNyAvRXh0ZW5zaW9uTGV2\
         ZWwgOCA+PiA+PiAvTmFtZXMgPDwgL0VtYmVkZGVkRmlsZXMgPDwgL05hbWVzIFsgPDVmOThlNzFlYWQ2ODYyNGJlMWRkMjA5YjMyYTU4NzQx\
         NmMxMTc3MjhkMDVhYTU2Y2M1MmYwMzdjMzZhMzU0NTQ+IDw8IC9FRiA8PCAvRiAyIDAgUiA+PiAvRiA8OTFiNGY2Y2I3NjIzY2Y4ZTFlNDBi\
         NDA2MzNmODc3MGM4OWNlMTBjNmM3YTExNzk4Zjc0NDY1ZWRjZjNhMTI2YT4gL1R5cGUgL0ZpbGVzcGVjIC9VRiA8YzhhOGYzZTY2ZTE1YzQy\
         YTQ5OGU5NmVlYTJjMTczMmIzYzk0M2ZkMjZlNmM2NGM5NmRkM2Y4OWE2OTgzMDlhYj4gPj4gXSA+PiA+PiAvT3BlbkFjdGlvbiA8PCAvSlMg\
         PDhjMDM0ZGM1NGY5NTRmYTMxNTUxYTllOTdmNTY5NDU2MGFkYzA4YTQzMTM4NWE0ZTg0ZjExZjZjMzRhZjc0Y2M+IC9TIC9KYXZhU2NyaXB0\
         ID4+IC9QYWdlcyAzIDAgUiAvVHlwZSAvQ2F0YWxvZyA+PgplbmRvYmoKMiAwIG9iago8PCAvVHlwZSAvRW1iZWRkZWRGaWxlIC9MZW5ndGgg\
         OTYgL0ZpbHRlciAvRmxhdGVEZWNvZGUgPj4Kc3RyZWFtCmlS7/b2bRA8VdpZstaoiOIHAe/Ot/ot1LpYaDHzs6ydlJrM6xpSoPEOy3ER3s5D\
         grpuE1mDxna9TvrdkeMH9Z0JUbFCFxc9OWrP9jsHt7U2Hq7Sb0Vol71GVfayei4XkgplbmRzdHJlYW0KZW5kb2JqCjMgMCBvYmoKPDwgL0Nv\
         dW50IDAgL0tpZHMgWyBdIC9UeXBlIC9QYWdlcyA+PgplbmRvYmoKNCAwIG9iago8PCAvQ0YgPDwgL1N0ZENGIDw8IC9BdXRoRXZlbnQgL0Rv\
         Y09wZW4gL0NGTSAvQUVTVjMgL0xlbmd0aCAzMiA+PiA+PiAvRmlsdGVyIC9TdGFuZGFyZCAvTGVuZ3RoIDI1NiAvTyA8NGFhNzkwM2IxMWQ0\
         OWFiZmRlYzBmZjc5NjUwZTM0NWU2ZTExNDI1Zjg1YTRlYWZkMzljNGEwMGFhN2M5YTIyNzk1ZTE4NGYwNWM5NmMwNWU0MmE2MzI1ZmQ4YjY5\
         MTc3PiAvT0UgPDI4NmQwZjlmZTIzMmRjM2M2MzUxNGZmOGI2NmEwNmFjMThiM2MyOTAwNTBkMDYxMmRiMTcyNzY0MzU2OTU2NTI+IC9QIC0x\
         MDI4IC9QZXJtcyA8ODQ3ZGYxYzI2YWUwNDRlYTU1YzI0YzE0YzBkODJmN2I+IC9SIDYgL1N0bUYgL1N0ZENGIC9TdHJGIC9TdGRDRiAvVSA8\
         M2Q5YzQwNzdjZjg4ZDRlODRiNTlmNGNjMWNhY2I5NjRhZDllODBkNDA5OTkxNmQ3Yzg2ZjBhNmRjNTdjZjI5YWE3NDY1ZTRlZjE2NWI2NWY1\
         MmZkZjE5ZDkwNDk1ZDI0PiAvVUUgPDM2NDBiZjliYTJjYzVhZjZiMWU4YjQyZGUzMTlhNmNmNjczNjdlZmZmYzRmYjUxZTFlOWJjMTczNjIz\
         NTI4N2U+IC9WIDUgPj4KZW5kb2JqCnhyZWYKMCA1CjAwMDAwMDAwMDAgNjU1MzUgZiAKMDAwMDAwMDAxNSAwMDAwMCBuIAowMDAwMDAwNTI4\
         IDAwMDAwIG4gCjAwMDAwMDA3MTUgMDAwMDAgbiAKMDAwMDAwMDc2OCAwMDAwMCBuIAp0cmFpbGVyIDw8IC9Sb290IDEgMCBSIC9TaXplIDUg\
         L0lEIFs8MzE0MTU5MjY1MzU4OTc5MzIzODQ2MjY0MzM4MzI3OTU+PDMxNDE1OTI2NTM1ODk3OTMyMzg0NjI2NDMzODMyNzk1Pl0gL0VuY3J5\
         cHQgNCAwIFIgPj4Kc3RhcnR4cmVmCjEzMTgKJSVFT0YK",
    ),
];

fn must_be_found(what: &str, file: &[u8]) {
    let taken = take_apart(file, &Passwords::NONE);
    assert!(conformance::is_found(file, &eicar(), &Passwords::NONE), "{what}: {taken:?}");
}

#[test]
fn malformed_dictionaries_hide_no_stream() {
    let flated = flate(&eicar());
    let filter = "/Filter /FlateDecode";
    let deep = format!("/X {}{} {filter}", "[".repeat(60), "]".repeat(60));
    for entries in [
        &format!("/X > {filter}"),
        &format!("/X null /Y ] {filter}"),
        &format!("foo {filter}"),
        &format!("/X [ >> ] {filter}"),
        &format!("/X {{}} {filter}"),
        &format!("1 (x) {filter}"),
        &format!("/X 5 0 {filter}"),
        // The dictionary ends early for some programs.
        &format!("/X << /Y ] >> {filter} >> /Z >> 1"),
        "/Filter >[/FlateDecode]",
        "/Filter [/FlateDecode",
        &deep,
    ] {
        let file = with_stream(entries, &flated);
        must_be_found(entries, &file);
        assert!(take_apart(&file, &Passwords::NONE).outcome.broken.is_some(), "{entries}");
    }
    // A program that can't read the dictionary may take the data as they lie.
    must_be_found("as it lies", &with_stream("/X > /Filter /FlateDecode", &eicar()));
    // What other words end can't be read in all ways, and is told.
    for entries in ["/X endobj /Filter /FlateDecode", "/X stream /Filter /FlateDecode", "/X [1 0 obj] /Filter /Fl"] {
        assert!(take_apart(&with_stream(entries, &flated), &Passwords::NONE).outcome.broken.is_some(), "{entries}");
    }
}

#[test]
fn comments_between_the_numbers_hide_no_object() {
    let file = with_stream("/Filter /ASCIIHexDecode", &hex(&eicar()));
    let file = String::from_utf8_lossy(&file);
    for header in ["2%c\n0 obj", "2 0%c\nobj", "2 % 3 % c\n0 obj", "2 +0 obj", "2 00000000000000 obj"] {
        must_be_found(header, file.replace("2 0 obj", header).as_bytes());
    }
    let long = format!("2%{}\n0 obj", "c".repeat(5000));
    assert!(take_apart(file.replace("2 0 obj", &long).as_bytes(), &Passwords::NONE).outcome.broken.is_some());
    // Numbers on lines of their own, behind a percent sign that begins no comment: nothing to remark.
    let plain = file.replace("2 0 obj", "(100%)\n2\n0\nobj");
    must_be_found("lines", plain.as_bytes());
    assert!(take_apart(plain.as_bytes(), &Passwords::NONE).outcome.is_complete());
}

#[test]
fn careless_writers_break_nothing() {
    // Numbers that are none, which drawing programs write for shapes without an extent; an entry without a value; a date without parentheses,
    // in an object that has no stream.
    for entries in
        ["/BBox [nan -inf 0 inf] /Filter /FlateDecode", "/X 1.#QNAN /Y --5 /Filter /FlateDecode", "/Filter /Fl /X"]
    {
        let file = with_stream(entries, &flate(&eicar()));
        must_be_found(entries, &file);
        assert!(take_apart(&file, &Passwords::NONE).outcome.is_complete(), "{entries}");
    }
    let file = document(&[("<< /Type /Catalog >>", None), ("<< /CreationDate D:2020 01 02 /Title (x)) >>", None)]);
    assert!(take_apart(&file, &Passwords::NONE).outcome.is_complete());
}

#[test]
fn streams_are_decoded_as_all_programs_decode_them() {
    let flated = flate(&eicar());
    let with = |filter: &str, others: &[(&str, Option<&[u8]>)]| {
        let dictionary = format!("<< /Length {} {filter} >>", flated.len());
        let objects = [&[("<< /Type /Catalog >>", None), (dictionary.as_str(), Some(&flated[..]))], others].concat();
        document(&objects)
    };
    for filter in
        ["/Filter [] /Filter /FlateDecode", "/Filter /FlateDecode /Filter []", "/Filter [/DCTDecode /FlateDecode]"]
    {
        must_be_found(filter, &with(filter, &[]));
    }
    let twice = [("/FlateDecode", None), ("null", None), ("null", None)];
    for order in [[0, 1, 2], [1, 0, 2], [1, 2, 0]] {
        let file = with("/Filter 3 0 R", &order.map(|at| twice[at]));
        // All three are definitions of one object.
        let mut same = Vec::new();
        let mut rest = &file[..];
        while let Some(at) = rest.windows(8).position(|eight| matches!(eight, b"\n4 0 obj" | b"\n5 0 obj")) {
            same.extend_from_slice(&rest[..at]);
            same.extend_from_slice(b"\n3 0 obj");
            rest = &rest[at + 8..];
        }
        same.extend_from_slice(rest);
        must_be_found(&format!("{order:?}"), &same);
    }
    must_be_found("<~", &with_stream("/Filter /ASCII85Decode", &[b"<~", &ascii85(&eicar())[..]].concat()));
    let late = [&[b'X'; 1100][..], &with("/Filter /FlateDecode", &[])].concat();
    must_be_found("a late header", &late);
}
