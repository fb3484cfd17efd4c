//! The headers of a message or a part: their fields, parameters and encoded words. Formats: RFC 5322, 2045, 2047, 2231.
//!
//! Names are read for showing only, so what is malformed becomes something readable and no error.

use crate::container::display_name;
use crate::transfer;

/// Most parts that a parameter is put together from.
const CONTINUATIONS_MAX: usize = 64;

/// The fields of a message or a part, in order: name in lower case, and value on one line.
#[derive(Debug, Default)]
pub(super) struct Headers(Vec<(Vec<u8>, Vec<u8>)>);

impl Headers {
    /// Takes one more line, without its line break. False if it is no field and continues none.
    pub(super) fn push(&mut self, line: &[u8]) -> bool {
        if line.first().is_some_and(|first| matches!(first, b' ' | b'\t')) {
            let Some((_, value)) = self.0.last_mut() else { return false };
            value.push(b' ');
            value.extend_from_slice(line.trim_ascii());
            return true;
        }
        let Some((name, value)) = field(line) else { return false };
        self.0.push((name.to_ascii_lowercase(), value.trim_ascii().to_vec()));
        true
    }

    /// The first field of a name.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(field, _)| field == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Whether a field is there twice with different values, so that programs differ in what they take.
    pub(super) fn is_ambiguous(&self, name: &str) -> bool {
        let mut values = self.0.iter().filter(|(field, _)| field == name.as_bytes()).map(|(_, value)| value);
        let first = values.next();
        values.any(|value| Some(value) != first)
    }

    /// The media type in lower case, without parameters.
    pub(super) fn media_type(&self) -> String {
        let value = self.get("content-type").unwrap_or_default();
        let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
        String::from_utf8_lossy(value.get(..end).unwrap_or_default()).trim().to_ascii_lowercase()
    }

    /// What the content is encoded with, in lower case.
    pub(super) fn encoding(&self) -> String {
        let value = String::from_utf8_lossy(self.get("content-transfer-encoding").unwrap_or_default());
        let word = value.split(|character: char| character.is_whitespace() || matches!(character, ';' | '(')).next();
        word.unwrap_or_default().trim_matches('"').to_ascii_lowercase()
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

    /// What separates the parts.
    pub(super) fn boundary(&self) -> Option<Vec<u8>> {
        if !self.media_type().starts_with("multipart/") {
            return None;
        }
        let boundary = raw_parameter(self.get("content-type")?, b"boundary")?;
        let boundary = boundary.trim_ascii_end();
        (!boundary.is_empty()).then(|| boundary.to_vec())
    }
}

/// A line as a field: its name, and its value behind the colon.
pub(super) fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at_checked(colon)?;
    let name = name.trim_ascii_end();
    let is_name = !name.is_empty() && name.iter().all(|byte| matches!(byte, 33..=126));
    is_name.then_some((name, value.get(1..).unwrap_or_default()))
}

/// The parameters of a value: names and values, without quotes.
fn parameters(value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut parameters = Vec::new();
    let mut current = Vec::new();
    let mut bytes = value.iter().copied();
    let mut quoted = false;
    let mut finish = |current: &mut Vec<u8>| {
        if let Some(equals) = current.iter().position(|byte| *byte == b'=') {
            let (name, value) = current.split_at(equals);
            let value = value.get(1..).unwrap_or_default();
            parameters.push((name.trim_ascii().to_ascii_lowercase(), value.trim_ascii().to_vec()));
        }
        current.clear();
    };
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => current.extend(bytes.next()),
            b';' if !quoted => finish(&mut current),
            _ => current.push(byte),
        }
    }
    finish(&mut current);
    parameters
}

fn raw_parameter(value: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    parameters(value).into_iter().find(|(parameter, _)| parameter == name).map(|(_, value)| value)
}

/// A parameter, in one piece or several, with escapes or without.
fn parameter(value: &[u8], name: &str) -> Option<String> {
    let all = parameters(value);
    let get = |name: &str| all.iter().find(|(parameter, _)| parameter == name.as_bytes()).map(|(_, value)| value);
    if let Some(extended) = get(&format!("{name}*")) {
        return Some(extended_value(extended));
    }
    if let Some(plain) = get(name) {
        return Some(String::from_utf8_lossy(plain).into_owned());
    }
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
    fn structure_is_read_from_fields() {
        let fields = headers("CONTENT-type: Multipart/Mixed; boundary=\"a b \"\nContent-Transfer-Encoding: BASE64 (x)");
        assert_eq!(fields.boundary().unwrap(), b"a b");
        assert_eq!((fields.media_type().as_str(), fields.encoding().as_str()), ("multipart/mixed", "base64"));
        assert!(!fields.is_ambiguous("content-type"));
        assert!(headers("A: b\na: c").is_ambiguous("a"));
        assert!(!Headers::default().push(b"no field") && !Headers::default().push(b" continued"));
    }
}
