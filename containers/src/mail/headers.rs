//! The headers of a message or a part: their fields, parameters and encoded words. Formats: RFC 5322, 2045, 2047, 2231.
//!
//! Names are read for showing only, so what is malformed becomes something readable and no error.

use crate::container::display_name;
use crate::transfer;

/// Most parts that a parameter is put together from.
const CONTINUATIONS_MAX: usize = 64;
/// Most fields that are asked how a part is encoded: real parts have one.
const ENCODINGS_MAX: usize = 4;

/// Finds the boundary in the value of a field.
type BoundaryRule = fn(&[u8]) -> Option<Vec<u8>>;

/// Rules by which programs find the boundary in a field that can be read in several ways.
pub(super) const BOUNDARY_RULES: [BoundaryRule; 8] = [
    |value| named(parameters(value, Quotes::Anywhere), b"boundary").next(),
    |value| named(parameters(value, Quotes::Anywhere), b"boundary").last(),
    |value| extended(value, "boundary").map(String::into_bytes),
    |value| continued(value, "boundary").map(String::into_bytes),
    |value| named(parameters(value, Quotes::Around), b"boundary").next(),
    |value| {
        let whole = named(parameters(value, Quotes::Around), b"boundary").next()?;
        Some(whole.split(|byte| matches!(byte, b' ' | b'\t' | b'(')).next()?.to_vec())
    },
    |value| named(parameters(&bare(value), Quotes::Anywhere), b"boundary").next(),
    |value| named(parameters(&bare(&decoded(value)), Quotes::Anywhere), b"boundary").next(),
];

/// The fields of a message or a part that say how to read it, in order: name in lower case, and value on one line. The others are
/// forgotten, so that memory doesn't depend on their length.
#[derive(Debug, Default)]
pub(super) struct Headers {
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// There was a field, and whether the last one is kept.
    last: Option<bool>,
}

impl Headers {
    /// Takes one more line, without its line break. False if it is no field and continues none.
    pub(super) fn push(&mut self, line: &[u8]) -> bool {
        if line.first().is_some_and(|first| matches!(first, b' ' | b'\t')) {
            self.append(b" ");
            self.append(line.trim_ascii());
            return self.last.is_some();
        }
        let Some((name, value)) = field(line) else { return false };
        self.take(name, value);
        true
    }

    /// Passes over a line that is no field, with those that continue it, unless it is one for programs that do so.
    pub(super) fn pass_over(&mut self, line: &[u8]) {
        self.last = Some(false);
        if let Some((name, value)) = loose_field(line) {
            self.take(name, value);
        }
    }

    fn take(&mut self, name: &[u8], value: &[u8]) {
        let name = name.to_ascii_lowercase();
        let is_kept = name.starts_with(b"content-");
        self.last = Some(is_kept);
        if is_kept {
            self.fields.push((name, value.trim_ascii_start().to_vec()));
        }
    }

    /// Takes more of the last line.
    pub(super) fn append(&mut self, piece: &[u8]) {
        if self.last == Some(true)
            && let Some((_, value)) = self.fields.last_mut()
        {
            value.extend_from_slice(piece);
        }
    }

    /// How many bytes are kept.
    pub(super) fn kept_bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// The first field of a name.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.values(name).map(<[u8]>::trim_ascii)
    }

    /// The same with the spaces behind them.
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |(field, _)| field == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Whether a field is there twice with different values, so that programs differ in what they take.
    pub(super) fn is_ambiguous(&self, name: &str) -> bool {
        let mut values = self.all(name);
        let first = values.next();
        values.any(|value| Some(value) != first)
    }

    /// The media type in lower case, without parameters.
    pub(super) fn media_type(&self) -> String {
        let value = self.get("content-type").unwrap_or_default();
        let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
        String::from_utf8_lossy(value.get(..end).unwrap_or_default()).trim().to_ascii_lowercase()
    }

    /// Whether the type is plainly one of several parts.
    pub(super) fn is_multipart(&self) -> bool {
        self.media_type().starts_with("multipart/")
    }

    /// Whether the type is one of a message, for whatever program.
    pub(super) fn is_message(&self) -> bool {
        self.get("content-type").is_some_and(|value| has_type(value, b"message/"))
    }

    /// What the content is encoded with, in lower case; several if programs differ in that.
    pub(super) fn encodings(&self) -> Vec<String> {
        let mut encodings = Vec::new();
        for value in self.values("content-transfer-encoding").take(ENCODINGS_MAX) {
            let whole = String::from_utf8_lossy(value).to_ascii_lowercase();
            let word = token(&whole);
            let uncommented = match (whole.find('('), whole.rfind(')')) {
                (Some(start), Some(end)) if start < end => {
                    let (before, behind) = (whole.get(..start), whole.get(end + 1..));
                    format!("{}{}", before.unwrap_or_default(), behind.unwrap_or_default()).trim().to_owned()
                }
                _ => word.clone(),
            };
            let decoded = token(&encoded_words(&String::from_utf8_lossy(value)).to_ascii_lowercase());
            let unquoted = whole.trim_matches('"').to_owned();
            // Whoever compares the whole value finds nothing in it that it knows, if it has so much as a space behind it.
            for encoding in [word, uncommented, decoded, unquoted] {
                if !encodings.contains(&encoding) {
                    encodings.push(encoding);
                }
            }
        }
        encodings
    }

    /// Whether there are more than are told.
    pub(super) fn has_more_encodings(&self) -> bool {
        let told: Vec<&[u8]> = self.all("content-transfer-encoding").take(ENCODINGS_MAX).collect();
        self.all("content-transfer-encoding").any(|value| !told.contains(&value))
    }

    /// The name of a part as its sender gave it.
    pub(super) fn file_name(&self) -> Option<String> {
        let of = |field, name| parameter(self.get(field)?, name);
        let name = of("content-disposition", "filename").or_else(|| of("content-type", "name")).or_else(|| {
            Some(String::from_utf8_lossy(self.get("content-location")?.rsplit(|b| *b == b'/').next()?).into_owned())
        })?;
        let name = encoded_words(&name);
        (!name.trim().is_empty()).then(|| display_name(name.trim().as_bytes()))
    }

    /// What separates parts, by each of the [`BOUNDARY_RULES`] and whatever the type; none if nothing does.
    pub(super) fn boundaries(&self) -> Option<Boundaries> {
        boundaries(self.get("content-type")?)
    }
}

/// What separates parts, by each of the [`BOUNDARY_RULES`].
type Boundaries = [Option<Vec<u8>>; BOUNDARY_RULES.len()];

fn boundaries(value: &[u8]) -> Option<Boundaries> {
    let boundaries = BOUNDARY_RULES.map(|rule| {
        let boundary = rule(value)?;
        let boundary = boundary.trim_ascii_end();
        (!boundary.is_empty()).then(|| boundary.to_vec())
    });
    boundaries.iter().any(Option::is_some).then_some(boundaries)
}

/// Whether a program that reads a Content-Type with this value may find parts or a message behind it.
pub(super) fn may_hold_parts(value: &[u8]) -> bool {
    has_type(value, b"multipart/") || has_type(value, b"message/") || boundaries(value).is_some()
}

/// Whether a type is written in a value, in whatever form.
fn has_type(value: &[u8], family: &[u8]) -> bool {
    [value, &bare(value), &bare(&decoded(value))].into_iter().any(|value| {
        let value = value.trim_ascii_start();
        let start = value.strip_prefix(b"\"").unwrap_or(value).get(..family.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(family))
    })
}

/// A value with its encoded words decoded.
fn decoded(value: &[u8]) -> Vec<u8> {
    match crate::fields::find(value, b"=?") {
        Some(_) => encoded_words(&String::from_utf8_lossy(value)).into_bytes(),
        None => value.to_vec(),
    }
}

/// A value without its comments, and without what stands between a quoted string and the end of its parameter.
fn bare(value: &[u8]) -> Vec<u8> {
    let mut bare = Vec::new();
    let (mut comments, mut quoted, mut closed) = (0u32, false, false);
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                let escaped = [Some(byte), bytes.next()];
                bare.extend(escaped.into_iter().flatten().filter(|_| comments == 0 && !closed));
            }
            b'(' if !quoted => comments = comments.saturating_add(1),
            b')' if comments > 0 => comments -= 1,
            _ if comments > 0 => {}
            b';' if !quoted => {
                closed = false;
                bare.push(byte);
            }
            _ if closed => {}
            b'"' => {
                closed = quoted;
                quoted = !quoted;
                bare.push(byte);
            }
            _ => bare.push(byte),
        }
    }
    bare
}

/// The first word of a value, without the comments before it.
fn token(value: &str) -> String {
    let mut rest = value.trim_start();
    while let Some(comment) = rest.strip_prefix('(') {
        let mut depth = 1u32;
        let end = comment.find(|character| {
            match character {
                '(' => depth = depth.saturating_add(1),
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0
        });
        rest = end.and_then(|end| comment.get(end + 1..)).unwrap_or_default().trim_start();
    }
    let word = rest.split(|character: char| character.is_whitespace() || matches!(character, ';' | '(')).next();
    word.unwrap_or_default().trim_matches('"').to_owned()
}

/// A line as a field: its name, and its value behind the colon.
pub(super) fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = line.split_at_checked(colon)?;
    let name = name.trim_ascii_end();
    let is_name = !name.is_empty() && name.iter().all(|byte| matches!(byte, 33..=126));
    is_name.then_some((name, value.get(1..).unwrap_or_default()))
}

/// The same of a line that is no field, with all around the name that some programs take for space.
pub(super) fn loose_field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_space = |byte: &u8| matches!(byte, b'\t' | 0x0b | 0x0c | b'\r' | b' ' | 0xa0);
    let start = line.iter().position(|byte| !is_space(byte))?;
    let (name, value) = line.get(start..)?.split_at_checked(memchr::memchr(b':', line)?.checked_sub(start)?)?;
    let name = name.get(..name.iter().rposition(|byte| !is_space(byte))? + 1)?;
    name.iter().all(|byte| matches!(byte, 33..=126)).then_some((name, value.get(1..).unwrap_or_default()))
}

/// Which quotes are no part of a parameter's value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    /// All.
    Anywhere,
    /// Those around the whole value.
    Around,
}

/// The parameters of a value: names and values.
fn parameters(value: &[u8], quotes: Quotes) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut parameters = Vec::new();
    let mut current = Vec::new();
    let mut bytes = value.iter().copied();
    let mut quoted = false;
    let mut finish = |current: &mut Vec<u8>| {
        if let Some(equals) = current.iter().position(|byte| *byte == b'=') {
            let (name, value) = current.split_at(equals);
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            let value = inner.filter(|_| quotes == Quotes::Around).unwrap_or(value);
            parameters.push((name.trim_ascii().to_ascii_lowercase(), value.to_vec()));
        }
        current.clear();
    };
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                quoted = !quoted;
                if quotes == Quotes::Around {
                    current.push(byte);
                }
            }
            b'\\' if quoted => current.extend(bytes.next()),
            b';' if !quoted => finish(&mut current),
            _ => current.push(byte),
        }
    }
    finish(&mut current);
    parameters
}

fn named(parameters: Vec<(Vec<u8>, Vec<u8>)>, name: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    parameters.into_iter().filter(move |(parameter, _)| parameter == name).map(|(_, value)| value)
}

/// A parameter, in one piece or several, with escapes or without.
fn parameter(value: &[u8], name: &str) -> Option<String> {
    let plain = || named(parameters(value, Quotes::Anywhere), name.as_bytes()).next();
    extended(value, name)
        .or_else(|| plain().map(|plain| String::from_utf8_lossy(&plain).into_owned()))
        .or_else(|| continued(value, name))
}

/// A parameter with escapes: `name*=utf-8''a%20b`.
fn extended(value: &[u8], name: &str) -> Option<String> {
    let value = named(parameters(value, Quotes::Anywhere), format!("{name}*").as_bytes()).next()?;
    Some(extended_value(&value))
}

/// A parameter in several pieces: `name*0=a; name*1*=%20b`.
fn continued(value: &[u8], name: &str) -> Option<String> {
    let all = parameters(value, Quotes::Anywhere);
    let get = |name: &str| all.iter().find(|(parameter, _)| parameter == name.as_bytes()).map(|(_, value)| value);
    let mut whole = Vec::new();
    let mut is_extended = false;
    for part in 0..CONTINUATIONS_MAX {
        if let Some(escaped) = get(&format!("{name}*{part}*")) {
            is_extended = true;
            whole.extend_from_slice(escaped);
        } else if let Some(plain) = get(&format!("{name}*{part}")) {
            whole.extend_from_slice(plain);
        } else {
            break;
        }
    }
    match whole.is_empty() {
        true => None,
        false if is_extended => Some(extended_value(&whole)),
        false => Some(String::from_utf8_lossy(&whole).into_owned()),
    }
}

/// A value with its character set and language before it: `utf-8'en'a%20b`.
fn extended_value(value: &[u8]) -> String {
    let mut parts = value.splitn(3, |byte| *byte == b'\'');
    let (charset, escaped) = match (parts.next(), parts.next(), parts.next()) {
        (Some(charset), Some(_), Some(escaped)) => (charset, escaped),
        _ => (&b"utf-8"[..], value),
    };
    let mut bytes = Vec::new();
    let mut rest = escaped;
    while let Some((byte, after)) = rest.split_first() {
        let pair = match after {
            [high, low, ..] if *byte == b'%' => transfer::hex_digit(*high).zip(transfer::hex_digit(*low)),
            _ => None,
        };
        bytes.push(pair.map_or(*byte, |(high, low)| high << 4 | low));
        rest = if pair.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    in_charset(charset, &bytes)
}

fn in_charset(charset: &[u8], bytes: &[u8]) -> String {
    let encoding = encoding_rs::Encoding::for_label(charset).unwrap_or(encoding_rs::UTF_8);
    encoding.decode(bytes).0.into_owned()
}

/// A text with its encoded words decoded: `=?utf-8?B?w6Q=?=`.
fn encoded_words(text: &str) -> String {
    let mut decoded = String::new();
    let mut rest = text;
    let mut after_word = false;
    while let Some(start) = rest.find("=?") {
        let (before, word) = rest.split_at(start);
        let mut parts = word.get(2..).unwrap_or_default().splitn(4, '?');
        let (charset, how, data, behind) = (parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(charset), Some(how), Some(data), Some(behind)) = (charset, how, data, behind) else { break };
        let Some(behind) = behind.strip_prefix('=') else { break };
        let bytes = match how {
            "B" | "b" => transfer::base64(data.as_bytes()).unwrap_or_default(),
            "Q" | "q" => {
                let mut bytes = Vec::new();
                transfer::quoted_printable(data.replace('_', " ").as_bytes(), &mut bytes);
                bytes
            }
            _ => break,
        };
        // Space between two words belongs to neither.
        if !(after_word && before.trim().is_empty()) {
            decoded.push_str(before);
        }
        decoded.push_str(&in_charset(charset.split('*').next().unwrap_or_default().as_bytes(), &bytes));
        after_word = true;
        rest = behind;
    }
    decoded.push_str(rest);
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(text: &str) -> Headers {
        let mut headers = Headers::default();
        for line in text.lines() {
            assert!(headers.push(line.as_bytes()), "{line}");
        }
        headers
    }

    #[test]
    fn names_are_decoded_in_all_their_forms() {
        let name = |text: &str| headers(text).file_name().unwrap();
        assert_eq!(name("Content-Disposition: attachment; filename=\"a;\\\"b\\\".txt\""), "a;\"b\".txt");
        assert_eq!(name("Content-Type: x/y;\n name=\"=?utf-8?B?w6Q=?= =?iso-8859-1?Q?=E4_b?=\""), "\u{e4}\u{e4} b");
        assert_eq!(name("Content-Disposition: attachment; filename*=utf-8''%C3%A4%zz"), "\u{e4}%zz");
        assert_eq!(name("Content-Disposition: a; filename*0*=utf-8''a%20; filename*1=b.exe"), "a b.exe");
        assert_eq!(name("Content-Location: file:///C:/a/image.png"), "image.png");
        assert_eq!(headers("A: b").file_name(), None);
    }

    #[test]
    fn what_some_programs_take_for_space_is_no_part_of_a_name() {
        assert_eq!(loose_field(b"\xa0 A-b\x0b\xa0: c"), Some((&b"A-b"[..], &b" c"[..])));
        assert_eq!(loose_field(b" : a").or(loose_field(b"a b: c")).or(loose_field(b"a")).or(loose_field(b"")), None);
        let mut fields = headers("Content-A: b");
        fields.pass_over(b"no field");
        assert!(fields.push(b" of that"));
        assert_eq!(fields.get("content-a"), Some(&b"b"[..]));
    }

    #[test]
    fn structure_is_read_from_fields() {
        let fields = headers("CONTENT-type: Multipart/Mixed; boundary=\"a b \"\nContent-Transfer-Encoding: BASE64 (x)");
        assert_eq!(fields.boundaries().unwrap()[0].as_deref(), Some(&b"a b"[..]));
        assert_eq!((fields.media_type().as_str(), fields.encodings()[0].as_str()), ("multipart/mixed", "base64"));
        assert!(!fields.is_ambiguous("content-type"));
        assert!(headers("Content-A: b\nA: x\ncontent-a: c").is_ambiguous("content-a"));
        assert_eq!(headers("Content-Transfer-Encoding: (a(b)) base64").encodings()[0], "base64");
        assert!(!Headers::default().push(b"no field") && !Headers::default().push(b" continued"));
    }

    #[test]
    fn a_boundary_is_read_by_every_rule() {
        let boundaries = |parameters: &str| {
            let all = headers(&format!("Content-Type: multipart/x; {parameters}")).boundaries().unwrap();
            all.map(|boundary| boundary.map(|boundary| String::from_utf8(boundary).unwrap()).unwrap_or_default())
        };
        assert_eq!(boundaries("boundary=a"), ["a", "a", "", "", "a", "a", "a", "a"]);
        assert_eq!(boundaries("boundary=a; boundary=\"b c\""), ["a", "b c", "", "", "a", "a", "a", "a"]);
        assert_eq!(boundaries("boundary*=us-ascii''z%7A"), ["", "", "zz", "", "", "", "", ""]);
        assert_eq!(boundaries("boundary*0=z; boundary*1=z"), ["", "", "", "zz", "", "", "", ""]);
        assert_eq!(
            boundaries("boundary=z\"q\"z (c)"),
            ["zqz (c)", "zqz (c)", "", "", "z\"q\"z (c)", "z\"q\"z", "zq", "zq"]
        );
        assert_eq!(boundaries("(c(d\\))) boundary=(e) \"a(b)\"c"), ["", "", "", "", "", "", "a(b)", "a(b)"]);
        assert_eq!(boundaries("=?utf-8?q?boundary=3Da?="), ["", "", "", "", "", "", "", "a"]);
        // As mail programs write it.
        assert_eq!(
            boundaries("boundary=\"----=_Part_1\""),
            ["----=_Part_1", "----=_Part_1", "", "", "----=_Part_1", "----=_Part_1", "----=_Part_1", "----=_Part_1"]
        );
    }

    #[test]
    fn types_and_encodings_are_read_in_all_their_forms() {
        for value in [
            "multipart/x",
            " Multipart/x",
            "(c) multipart/x",
            "\"multipart/x\"",
            "multi(c)part/x",
            "=?utf-8?q?multipart=2Fx?=",
        ] {
            assert!(may_hold_parts(value.as_bytes()), "{value}");
        }
        assert!(may_hold_parts(b"text/plain; boundary=a") && may_hold_parts(b"message/rfc822"));
        assert!(!may_hold_parts(b"text/plain; charset=utf-8") && !may_hold_parts(b"(multipart/x"));
        let encodings = |value: &str| headers(&format!("Content-Transfer-Encoding: {value}")).encodings();
        // What is written as it should be can be read in one way.
        assert_eq!(encodings("Quoted-Printable"), ["quoted-printable"]);
        for value in ["=?utf-8?q?base=364?=", "=?utf-8?B?QmFzZTY0?=", "base(c)64", "base64 (c)", "base64 "] {
            let all = encodings(value);
            assert!(all.iter().any(|encoding| encoding == "base64"), "{value}: {all:?}");
            assert!(all.len() > 1, "{value}: {all:?}");
        }
    }
}
