//! Mail: parts in every encoding, names, nesting, text around and files in text, mailboxes, `winmail.dat`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod base64;

use lazaret_containers::conformance::{self, Case, eicar, take_apart, take_apart_as};
use lazaret_containers::{ContainerFormat, Passwords};

const ROUNDS: u32 = 500;

fn members(file: &[u8]) -> Vec<(String, Vec<u8>)> {
    take_apart(file, &Passwords::NONE).members
}

/// Cut inside its headers a message is one without parts.
fn check(file: &[u8]) {
    conformance::check(&Case { open_ended: true, ..Case::new("eml", file, &eicar()) }, ROUNDS);
}

fn text(content: &[u8]) -> String {
    String::from_utf8(content.to_vec()).unwrap()
}

/// In lines, as mails have it.
fn base64(content: &[u8]) -> String {
    let encoded = base64::encode(content);
    let lines = encoded.as_bytes().chunks(76).map(|line| text(line) + if line.len() == 76 { "\r\n" } else { "" });
    lines.collect()
}

fn quoted_printable(content: &[u8]) -> String {
    content
        .iter()
        .enumerate()
        .map(|(at, byte)| format!("={byte:02X}{}", if at % 20 == 19 { "=\r\n" } else { "" }))
        .collect()
}

fn uuencode(name: &str, content: &[u8]) -> String {
    let mut encoded = format!("begin 644 {name}\r\n");
    for line in content.chunks(45) {
        encoded.push(char::from(b' ' + line.len() as u8));
        for group in line.chunks(3) {
            let mut bits = [0; 4];
            bits[1..=group.len()].copy_from_slice(group);
            let bits = u32::from_be_bytes(bits);
            encoded.extend((0..4).map(|digit| match (bits >> (18 - 6 * digit)) as u8 & 63 {
                0 => '`',
                bits => char::from(b' ' + bits),
            }));
        }
        encoded.push_str("\r\n");
    }
    encoded + "`\r\nend\r\n"
}

fn message(content_type: &str, body: &str) -> Vec<u8> {
    format!("Received: from a\r\n by b\r\nFrom: a@b\r\nSubject: c\r\nMIME-Version: 1.0\r\nContent-Type: {content_type}\r\n\r\n{body}")
        .into_bytes()
}

fn mixed(parts: &[String]) -> Vec<u8> {
    let parts: String = parts.iter().map(|part| format!("--=_b\r\n{part}\r\n")).collect();
    message("multipart/mixed;\r\n boundary=\"=_b\"", &format!("{parts}--=_b--\r\n"))
}

#[test]
fn attachments_come_out_in_every_encoding() {
    let eicar = eicar();
    let parts = [
        ("7bit", text(&eicar)),
        ("base64", base64(&eicar)),
        ("BASE64", base64(&eicar).replace("\r\n", "")),
        ("quoted-printable", quoted_printable(&eicar)),
    ];
    for (encoding, body) in parts {
        let part = format!(
            "Content-Transfer-Encoding: {encoding}\r\nContent-Disposition: attachment; filename=\"e.com\"\r\n\r\n{body}"
        );
        let file = mixed(&["\r\nhello".to_owned(), part]);
        let expected = [("part-1.txt".to_owned(), b"hello".to_vec()), ("e.com".to_owned(), eicar.clone())];
        assert_eq!(members(&file), expected, "{encoding}");
        check(&file);
    }
}

#[test]
fn an_attachment_of_an_attached_message_is_found() {
    let inner = mixed(&[format!("Content-Transfer-Encoding: base64\r\n\r\n{}", base64(&eicar()))]);
    let attached = format!("Content-Type: message/rfc822\r\n\r\n{}", text(&inner).replace("=_b", "inner"));
    let file = mixed(&[attached]);
    assert_eq!(members(&file)[0].0, "part-1.eml");
    check(&file);
    let encoded =
        format!("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n{}", base64(&inner));
    conformance::comes_apart(&Case::new("eml", &mixed(&[encoded]), &eicar()));
}

#[test]
fn nested_multiparts_and_text_around_them_come_out() {
    let body = "before\r\n--a\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n\
                Content-Type: text/html\r\n\r\n<p>two\r\n--b--\r\n\r\n--a\r\n\r\nthree\r\n--a--\r\nafter\r\n";
    let file = message("multipart/mixed; boundary=a", body);
    let expected = [
        ("preamble", "before"),
        ("part-1.txt", "one"),
        ("part-2.html", "<p>two"),
        ("part-3.txt", "three"),
        ("epilogue", "after\r\n"),
    ];
    assert_eq!(members(&file), expected.map(|(name, content)| (name.to_owned(), content.as_bytes().to_vec())));
    // An outer boundary ends what lies in an inner multipart without an end.
    let file = message(
        "multipart/mixed; boundary=a",
        "--a\r\nContent-Type: multipart/x; boundary=b\r\n\r\n--b\r\n\r\none\r\n--a--\r\n",
    );
    assert_eq!(members(&file), [("part-1.txt".to_owned(), b"one".to_vec())]);
    let deep: String =
        (0..100).map(|at| format!("--{at}\r\nContent-Type: multipart/x; boundary={}\r\n\r\n", at + 1)).collect();
    let taken = take_apart(&message("multipart/x; boundary=0", &deep), &Passwords::NONE);
    assert!(taken.outcome.broken.is_some());
}

#[test]
fn files_in_text_come_out() {
    let eicar = eicar();
    let file = message("text/plain", &format!("hello\r\n{}bye\r\n", uuencode("e.com", &eicar)));
    let expected: [(&str, &[u8]); 3] = [("part-1.txt", b"hello"), ("e.com", &eicar), ("part-1.txt", b"bye\r\n")];
    assert_eq!(members(&file), expected.map(|(name, content)| (name.to_owned(), content.to_vec())));
    let mut encoded = Vec::new();
    for byte in &eicar {
        match byte.wrapping_add(42) {
            critical @ (0 | b'\n' | b'\r' | b'=') => encoded.extend([b'=', critical.wrapping_add(64)]),
            byte => encoded.push(byte),
        }
    }
    let mut file = message("text/plain", "=ybegin line=128 size=68 name=a b.com\r\n");
    file.extend_from_slice(&encoded);
    file.extend_from_slice(b"\r\n=yend size=68\r\n");
    assert!(members(&file).contains(&("a b.com".to_owned(), eicar.clone())), "{:?}", members(&file));
    conformance::survives_mutations(&Case::new("eml", &file, &eicar), ROUNDS);
}

#[test]
fn what_programs_read_differently_is_suspicious() {
    let file = message("text/plain\r\nContent-Type: multipart/mixed; boundary=x", "a");
    assert!(take_apart(&file, &Passwords::NONE).outcome.suspicious.is_some());
}

#[test]
fn web_pages_with_everything_in_them_come_apart() {
    let part = format!(
        "Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\nContent-Location: file:///C:/e.png\r\n\r\n{}",
        base64(&eicar())
    );
    let file = text(&mixed(&["Content-Type: text/html\r\n\r\n<html>".to_owned(), part])).replace("mixed", "related");
    assert_eq!(members(file.as_bytes())[1].0, "e.png");
    check(file.as_bytes());
}

#[test]
fn mailboxes_come_apart() {
    let one = mixed(&[format!("Content-Transfer-Encoding: base64\r\n\r\n{}", base64(&eicar()))]);
    let begin = b"From a@b Thu Jan  1 00:00:00 1970\n".to_vec();
    let quoted = message("text/plain", "a\r\n\r\n>From the beginning\r\n>From here\r\n\r\n");
    let file = [begin.clone(), quoted.clone(), begin, one.clone()].concat();
    let found = members(&file);
    let expected = [("message-1.eml", quoted), ("message-2.eml", one)];
    assert_eq!(found, expected.map(|(name, content)| (name.to_owned(), content)));
    let eicar = eicar();
    let case = Case::new("mbox", &file, &eicar);
    conformance::comes_apart(&case);
    conformance::survives_mutations(&case, ROUNDS);
    // A mailbox doesn't say where its last message ends: that is for the message to say.
    for length in 0..file.len() {
        take_apart_as(ContainerFormat::named("mbox").unwrap(), &file[..length], 0, &Passwords::NONE);
    }
}

#[test]
fn mailboxes_are_read_as_all_programs_read_them() {
    let begin = b"From a@b Thu Jan  1 00:00:00 1970\n".to_vec();
    let encoded: String = eicar().iter().map(|byte| format!("={byte:02X}")).collect();
    let mail = two_parts(MIXED, "Content-Transfer-Encoding: quoted-printable\r\n", &encoded);
    let other = message("text/plain", "a\r\n");
    must_be_found("no blank line before it", &[begin.clone(), other.clone(), begin.clone(), mail.clone()].concat());
    let no_mail = [begin.clone(), b"\nhello\n\n".to_vec(), begin.clone(), mail.clone()].concat();
    must_be_found("no mail before it", &no_mail);
    let far = [begin.clone(), b"\nhello\n\n".repeat(20_000), begin.clone(), mail.clone()].concat();
    must_be_found("no mail for long before it", &far);
    must_be_found("blank lines before it", &[b"\n\r\n".to_vec(), begin.clone(), mail.clone()].concat());
    // Such a line may as well be text: the message comes out whole, and what is behind the line again, and nothing is wrong with it.
    let prose = message("text/plain", "a\r\nFrom here on\r\nb\r\n\r\n");
    let taken = take_apart(&[begin.clone(), prose.clone(), begin.clone(), other.clone()].concat(), &Passwords::NONE);
    assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
    let names: Vec<_> = taken.members.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["message-1.eml", "message-1-2.eml", "message-2.eml"]);
    assert_eq!((&taken.members[0].1, taken.members[1].1.as_slice()), (&prose, &b"b\r\n\r\n"[..]));
    conformance::survives_mutations(&Case::new("mbox", &no_mail, &eicar()), ROUNDS / 10);
    assert!(members(b"From here on\nNote: a\n\nFrom there\nb\n").is_empty(), "prose is no mailbox");
}

#[test]
fn outlooks_attachments_come_out() {
    fn attribute(file: &mut Vec<u8>, level: u8, number: u32, data: &[u8]) {
        file.push(level);
        file.extend_from_slice(&number.to_le_bytes());
        file.extend_from_slice(&(data.len() as u32).to_le_bytes());
        file.extend_from_slice(data);
        file.extend_from_slice(&data.iter().fold(0u16, |sum, byte| sum.wrapping_add(u16::from(*byte))).to_le_bytes());
    }
    let eicar = eicar();
    let long_name: Vec<u8> = "a long name.com\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut properties = 4u32.to_le_bytes().to_vec();
    // A number, a named property with two strings, the long name, an embedded object.
    properties.extend_from_slice(b"\x03\0\x05\x37\x01\0\0\0");
    properties.extend_from_slice(b"\x1e\x10\x01\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x04\0\0\0n\0\0\0\x02\0\0\0\x02\0\0\0a\0\0\0\x01\0\0\0b\0\0\0");
    properties.extend_from_slice(b"\x1f\0\x07\x37\x01\0\0\0");
    properties.extend_from_slice(&(long_name.len() as u32).to_le_bytes());
    properties.extend_from_slice(&long_name);
    properties.extend_from_slice(b"\x0d\0\x01\x37\x01\0\0\0");
    properties.extend_from_slice(&(16 + eicar.len() as u32).to_le_bytes());
    properties.extend_from_slice(&[0; 16]);
    properties.extend_from_slice(&eicar);
    let mut file = b"\x78\x9f\x3e\x22\x01\0".to_vec();
    attribute(&mut file, 1, 0x0008_9006, &[0, 0, 1, 0]);
    attribute(&mut file, 2, 0x0006_9002, &[0; 14]);
    attribute(&mut file, 2, 0x0001_8010, b"SHORT.COM\0");
    attribute(&mut file, 2, 0x0006_800f, &eicar);
    attribute(&mut file, 2, 0x0006_9002, &[0; 14]);
    attribute(&mut file, 2, 0x0006_9005, &properties);
    let expected = [("SHORT.COM".to_owned(), eicar.clone()), ("a long name.com".to_owned(), eicar.clone())];
    assert_eq!(members(&file), expected);
    // Cut between two attachments it is complete.
    conformance::check(&Case { open_ended: true, ..Case::new("tnef", &file, &eicar) }, ROUNDS);
}

/// A message with the EICAR test file in the part behind the fields `part`, separated by `zz`.
fn two_parts(content_type: &str, part: &str, body: &str) -> Vec<u8> {
    message(
        content_type,
        &format!("--zz\r\nContent-Type: text/plain\r\n\r\nhello\r\n--zz\r\n{part}\r\n{body}\r\n--zz--\r\n"),
    )
}

const MIXED: &str = "multipart/mixed; boundary=zz";
const BASE64: &str = "Content-Transfer-Encoding: base64\r\n";

fn must_be_found(what: &str, file: &[u8]) {
    assert!(conformance::is_found(file, &eicar(), &Passwords::NONE), "{what}: {:?}", members(file));
}

#[test]
fn base64_is_read_as_all_programs_read_it() {
    let whole = base64(&eicar()).replace("\r\n", "");
    let at = |at: usize, what: &str| format!("{}{what}{}", &whole[..at], &whole[at..]);
    let dashes: Vec<_> = whole.as_bytes().chunks(3).map(|three| std::str::from_utf8(three).unwrap()).collect();
    let bodies = [dashes.join("-"), at(5, "_"), at(1, "="), at(2, "="), at(6, "=\r\n"), format!("{}\r\nQUJD", whole)];
    for body in bodies.iter().chain([&whole.replace('+', "-").replace('/', "_")]) {
        must_be_found(body, &two_parts(MIXED, BASE64, body));
        conformance::survives_mutations(&Case::new("eml", &two_parts(MIXED, BASE64, body), &eicar()), ROUNDS / 10);
    }
    // What can be read in one way is read once.
    assert_eq!(members(&two_parts(MIXED, BASE64, &base64(&eicar()))).len(), 2);
}

#[test]
fn boundaries_are_read_as_all_programs_read_them() {
    for parameters in [
        "boundary*0=z; boundary*1=z",
        "boundary*=us-ascii''z%7A",
        "boundary=yy; boundary=zz",
        "boundary=zz; boundary=yy",
        "boundary=zz (and a comment)",
        &format!("x=\"{}\"; boundary=zz", "a".repeat(70_000)),
    ] {
        let file = two_parts(&format!("multipart/mixed; {parameters}"), BASE64, &base64(&eicar()));
        for end in ["", "--yy--\r\n"] {
            must_be_found(parameters, &[&file, end.as_bytes()].concat());
        }
    }
    let file = text(&two_parts("multipart/mixed; boundary=zz", BASE64, &base64(&eicar()))).replace("zz", "z\"q\"z");
    must_be_found("quotes inside", &[file.as_bytes(), b"--zqz--\r\n"].concat());
}

#[test]
fn lines_that_are_no_fields_hide_no_mail() {
    let encoded: String = eicar().iter().map(|byte| format!("={byte:02X}")).collect();
    let mail = two_parts(MIXED, "Content-Transfer-Encoding: quoted-printable\r\n", &encoded);
    for first in [&b" goes on\r\n"[..], b"X-A: b\r\nno field\r\n", b"X-\xe4: y\r\n", b"no field\r\n goes on\r\n"] {
        let what = String::from_utf8_lossy(first);
        must_be_found(&what, &[first, &mail].concat());
        must_be_found(&what, &[&b"no field\r\n".repeat(20_000), first, &mail].concat());
        let returns: Vec<u8> = [first, &mail].concat().into_iter().filter(|byte| *byte != b'\n').collect();
        must_be_found(&what, &returns);
        let taken = take_apart(&[first, &mail].concat(), &Passwords::NONE);
        assert!(taken.outcome.is_complete(), "{what}: {}", taken.outcome.detail());
    }
    // Some programs take what looks like a space for no part of a name.
    for name in ["Content-Transfer-Encoding\u{b}", "\u{c}Content-Transfer-Encoding"] {
        must_be_found(name, &two_parts(MIXED, &format!("{name}: quoted-printable\r\n"), &encoded));
    }
    let first = "From: a\r\n\r\n--zz\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n";
    must_be_found("the first", format!(" Content-Type: {MIXED}\r\n{first}{encoded}\r\n--zz--\r\n").as_bytes());
    // What is read as mail in that way is a text all the same, and doesn't hold itself.
    let page = format!(
        "<html>\nDate: a\nContent-Type: text/html\n<a href=\"data:application/octet-stream;base64,{}\">\n\n",
        base64(&eicar()).replace("\r\n", "")
    );
    let found = members(page.as_bytes());
    assert!(found.iter().any(|(_, content)| *content == eicar()), "{found:?}");
    assert!(found.iter().all(|(_, content)| content.as_slice() != page.as_bytes()), "{found:?}");
}

#[test]
fn types_are_read_as_all_programs_read_them() {
    let encoded: String = eicar().iter().map(|byte| format!("={byte:02X}")).collect();
    let fields = "Content-Transfer-Encoding: quoted-printable\r\n";
    for content_type in [
        "(c) multipart/mixed; boundary=zz",
        "multipart(c)/mixed; boundary=zz",
        "multipart /mixed; boundary=zz",
        "\"multipart/mixed\"; boundary=zz",
        "=?utf-8?q?multipart/mixed?=; boundary=zz",
        "=?utf-8?q?multipart/mixed;_boundary=3Dzz?=",
        "text/plain; boundary=zz",
        "multipart/mixed; (c) boundary=(d) \"zz\"e",
        "multipart/mixed; boundary=\"=?utf-8?q?zz?=\"",
    ] {
        must_be_found(content_type, &two_parts(content_type, fields, &encoded));
        let part = format!("Content-Type: {content_type}\r\n\r\n--zz\r\n{fields}\r\n{encoded}\r\n--zz--");
        must_be_found(content_type, &message("multipart/x; boundary=y", &format!("--y\r\n{part}\r\n--y--\r\n")));
    }
    for encoding in ["=?utf-8?q?quoted-printable?=", "quoted-(c)printable", "=?utf-8?B?UVVPVEVELXByaW50YWJsZQ==?="] {
        let fields = format!("Content-Transfer-Encoding: {encoding}\r\n");
        must_be_found(encoding, &two_parts(MIXED, &fields, &encoded));
    }
    // A space behind it, and some decode nothing.
    let found = members(&two_parts(MIXED, "Content-Transfer-Encoding: base64 \r\n", "QUJD"));
    assert!(
        ["ABC", "QUJD"].iter().all(|text| found.iter().any(|(_, content)| content == text.as_bytes())),
        "{found:?}"
    );
    // Types that nothing disputes are read once, and a boundary that never comes breaks nothing.
    assert_eq!(members(&two_parts(MIXED, "Content-Type: text/plain; charset=utf-8\r\n", "a")).len(), 2);
    let taken = take_apart(&message("text/plain; charset=utf-8; boundary=zz", "a\r\n"), &Passwords::NONE);
    assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
}

#[test]
fn fields_are_read_as_all_programs_read_them() {
    let body = base64(&eicar());
    for fields in [
        format!("Content-Type: a/b\r\n: x\r\n{BASE64}"),
        format!("Content-Type: a/b\r\nFrom x\r\n{BASE64}"),
        format!("Content-Type: a/b\r\nno field\r\n{BASE64}"),
        "Content-Transfer-Encoding: (a (b)) base64\r\n".to_owned(),
        "Content-Transfer-Encoding: \"base64\"\r\n".to_owned(),
    ] {
        must_be_found(&fields, &two_parts(MIXED, &fields, &body));
    }
    let file = text(&two_parts(MIXED, BASE64, &body));
    must_be_found("returns alone", file.replace("\r\n", "\r").as_bytes());
    must_be_found("other fields first", format!("{}{file}", "X-Other: a\r\n".repeat(8000)).as_bytes());
    must_be_found("a long field first", format!("X-Other: a\r\n{}{file}", " a\r\n".repeat(400_000)).as_bytes());
    must_be_found("one field", format!("{BASE64}\r\n{body}").as_bytes());
    for (content_type, fields, inner) in [
        (MIXED, "Content-Type: message/rfc822\r\n", format!("{BASE64}\r\n{body}")),
        (MIXED, "Content-Type: message/rfc822\r\n", format!("X-Other: a\r\n{BASE64}\r\n{body}")),
        ("multipart/digest; boundary=zz", "", format!("{BASE64}\r\n{body}")),
        (MIXED, "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n", format!("{BASE64}\r\n{body}")),
    ] {
        must_be_found(content_type, &two_parts(content_type, fields, &inner));
    }
}

#[test]
fn long_lines_of_quoted_printable_come_out_whole() {
    let encoded: String = eicar().iter().map(|byte| format!("={byte:02X}")).collect();
    for length in 65_536 - 8..65_536 + 2 {
        let body = format!("{}=\r\n", "A".repeat(length)) + &encoded;
        let long = format!("{}{encoded}", "A".repeat(length));
        for body in [body, long] {
            let file = two_parts(MIXED, "Content-Transfer-Encoding: quoted-printable\r\n", &body);
            let found = members(&file);
            assert_eq!((found[1].1.len(), found[1].1.ends_with(&eicar())), (length + 68, true), "{length}");
        }
    }
}

#[test]
fn quoted_printable_is_read_as_all_programs_read_it() {
    let escaped = |content: &[u8]| content.iter().map(|byte| format!("={byte:02X}")).collect::<String>();
    let encoded = escaped(&eicar());
    let (first, second) = encoded.split_at(90);
    let fields = "Content-Transfer-Encoding: quoted-printable\r\n";
    must_be_found("a return", &two_parts(MIXED, fields, &format!("{first}=\rnothing\r\n{second}")));
    let long = format!("{}{first}=\r{}\r\n{second}", "A".repeat(65_500), "B".repeat(70_000));
    must_be_found("in a long line", &two_parts(MIXED, fields, &long));
    // Here the returns end lines, except behind an escape.
    let returns = text(&two_parts(MIXED, fields, &format!("{first}=#nothing#\n{second}"))).replace("\r\n", "\r");
    must_be_found("only returns", returns.replace('#', "\r").as_bytes());
    let holds = |body: &str, what: &[u8]| {
        let found = members(&two_parts(MIXED, fields, body));
        assert!(found.iter().any(|(_, content)| content == what), "{body:?}: {found:?}");
    };
    holds("a==b", b"a=b");
    holds("a==b", b"a==b");
    holds("a \r\nb=\r\n", b"a \r\nb");
    holds("a \r\nb=\r\n", b"a\r\nb");
    let file = two_parts(MIXED, fields, &format!("{first}=\rnothing\r\n{second}"));
    conformance::survives_mutations(&Case::new("eml", &file, &eicar()), ROUNDS / 10);
    // What encoders write can be read in one way.
    assert_eq!(members(&two_parts(MIXED, fields, &quoted_printable(b"a = b\r\n \xe4"))).len(), 2);
}

#[test]
fn uuencode_needs_no_name_and_prose_is_none() {
    for begin in ["begin 0 a", "begin 644 ", "begin 644"] {
        let body = uuencode("e", &eicar()).replace("begin 644 e", begin);
        let file = two_parts(MIXED, "Content-Transfer-Encoding: x-uuencode\r\n", &body);
        assert!(members(&file).iter().any(|(_, content)| *content == eicar()), "{begin}");
    }
    let taken = take_apart(&message("text/plain", "begin 7 days later\r\nthe end\r\n"), &Passwords::NONE);
    assert!(taken.outcome.is_complete(), "{}", taken.outcome.detail());
}

#[test]
fn a_message_with_a_byte_order_mark_does_not_hold_itself() {
    let file = [b"\xef\xbb\xbf".to_vec(), two_parts(MIXED, BASE64, &base64(&eicar()))].concat();
    let expected = [("part-1.txt".to_owned(), b"hello".to_vec()), ("part-2.txt".to_owned(), eicar())];
    assert_eq!(members(&file), expected);
}
