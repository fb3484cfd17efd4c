//! PDF's objects as text: numbers, names, strings, arrays, dictionaries, references. Format: ISO 32000-1, 7.3.
//!
//! Programs read malformed objects in ways of their own, most of them on to the next thing that they know; so it is done here, and what was
//! met is told. Never more than what was given is looked at. Nesting is bounded.

/// The deepest that arrays and dictionaries may lie in each other. What lies deeper is passed over.
const DEPTH_MAX: u32 = 48;

/// Words that are no values: an object ends before them, whatever is still open.
const END_WORDS: [&[u8]; 7] = [b"stream", b"endstream", b"obj", b"endobj", b"xref", b"trailer", b"startxref"];

/// How well an object could be read, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    None,
    /// An unknown word in a value's place. Careless writers leave numbers like `nan`; most programs take them for null.
    UnknownWord,
    /// Something lies where it must not, and programs make different things of what follows.
    Malformed,
    /// Part of it was not read: it is nested too deep, or ends with something open.
    Unread,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Null, and whatever isn't known.
    Other,
    Truth(bool),
    /// A number; what lies behind its point is left out.
    Number(i64),
    /// A name, with its escapes resolved.
    Name(Vec<u8>),
    /// A string, with its escapes resolved.
    Text(Vec<u8>),
    Array(Vec<Value>),
    Dictionary(Vec<(Vec<u8>, Value)>),
    /// The number of another object.
    Reference(u32),
}

impl Value {
    /// What a dictionary has under a name.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let Self::Dictionary(entries) = self else { return None };
        entries.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| value)
    }

    /// The last that a dictionary has under a name, if it has several.
    pub(super) fn get_last(&self, name: &str) -> Option<&Value> {
        let Self::Dictionary(entries) = self else { return None };
        entries.iter().rfind(|(key, _)| key == name.as_bytes()).map(|(_, value)| value)
    }

    pub(super) fn number(&self) -> Option<i64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    pub(super) fn name(&self) -> Option<&[u8]> {
        if let Self::Name(name) = self { Some(name) } else { None }
    }

    pub(super) fn text(&self) -> Option<&[u8]> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(super) fn reference(&self) -> Option<u32> {
        if let Self::Reference(number) = self { Some(*number) } else { None }
    }

    /// Whether a dictionary's entry is this name.
    pub(super) fn is(&self, key: &str, name: &str) -> bool {
        self.get(key).and_then(Self::name) == Some(name.as_bytes())
    }
}

/// Reads values from bytes.
pub(super) struct Parser<'b> {
    bytes: &'b [u8],
    pub(super) at: usize,
    /// The worst that was met.
    pub(super) fault: Fault,
}

pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, 0 | 9 | 10 | 12 | 13 | 32)
}

fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b'(' | b')' | b'<' | b'>' | b'[' | b']' | b'{' | b'}' | b'/' | b'%')
}

impl<'b> Parser<'b> {
    pub(super) fn new(bytes: &'b [u8], at: usize) -> Self {
        Self { bytes, at, fault: Fault::None }
    }

    /// Whether nothing is left, so that what was read may go on behind the bytes that were given.
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// Skips spaces and comments.
    pub(super) fn skip_space(&mut self) {
        while let Some(byte) = self.peek() {
            if byte == b'%' {
                while self.peek().is_some_and(|byte| byte != b'\n' && byte != b'\r') {
                    self.at += 1;
                }
            } else if is_space(byte) {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    /// Takes a word if it is next.
    pub(super) fn takes(&mut self, word: &[u8]) -> bool {
        let takes = self.is_next(word);
        if takes {
            self.at += word.len();
        }
        takes
    }

    fn met(&mut self, fault: Fault) {
        self.fault = self.fault.max(fault);
    }

    /// The next value; none if there is none before the end, or before a word that ends objects.
    pub(super) fn value(&mut self) -> Option<Value> {
        self.nested(0)
    }

    /// What lies behind a malformed dictionary that ended too early, up to a word that ends objects: its entries, without their keys.
    pub(super) fn rest_into(&mut self, entries: &mut Vec<(Vec<u8>, Value)>) {
        while let Some(value) = self.nested(1) {
            entries.push((Vec::new(), value));
        }
    }

    fn nested(&mut self, depth: u32) -> Option<Value> {
        self.skip_space();
        match self.peek()? {
            b'[' if depth > DEPTH_MAX => Some(self.too_deep()),
            b'<' if depth > DEPTH_MAX && self.is_next(b"<<") => Some(self.too_deep()),
            b'<' if self.takes(b"<<") => Some(self.dictionary(depth)),
            b'<' => Some(Value::Text(self.hex_string())),
            b'(' => Some(Value::Text(self.string())),
            b'/' => Some(Value::Name(self.name())),
            b'[' => Some(self.array(depth)),
            b'0'..=b'9' | b'+' | b'-' | b'.' => Some(self.number_or_reference()),
            byte if is_delimiter(byte) => {
                self.met(Fault::Malformed);
                let _ = self.takes(b">>") || self.next().is_some();
                Some(Value::Other)
            }
            _ if self.is_at_end_word() => None,
            _ => match self.word() {
                b"true" => Some(Value::Truth(true)),
                b"false" => Some(Value::Truth(false)),
                b"null" => Some(Value::Other),
                _ => {
                    self.met(Fault::UnknownWord);
                    Some(Value::Other)
                }
            },
        }
    }

    /// Passes over an array or a dictionary that lies too deep.
    fn too_deep(&mut self) -> Value {
        self.met(Fault::Unread);
        let mut open = 0u64;
        loop {
            self.skip_space();
            match self.peek() {
                Some(b'(') => drop(self.string()),
                Some(b'/') => drop(self.name()),
                Some(b'<') if !self.is_next(b"<<") => drop(self.hex_string()),
                Some(b'<' | b'[') => {
                    let _ = self.takes(b"<<") || self.takes(b"[");
                    open += 1;
                }
                Some(b'>' | b']') => {
                    let _ = self.takes(b">>") || self.next().is_some();
                    open -= 1;
                    if open == 0 {
                        return Value::Other;
                    }
                }
                Some(byte) if is_delimiter(byte) => self.at += 1,
                Some(_) if !self.is_at_end_word() => drop(self.word()),
                _ => return Value::Other,
            }
        }
    }

    fn is_next(&self, word: &[u8]) -> bool {
        self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word))
    }

    fn is_at_end_word(&self) -> bool {
        let mut ahead = Parser::new(self.bytes, self.at);
        END_WORDS.contains(&ahead.word())
    }

    /// Letters and whatever else is neither a space nor a delimiter.
    fn word(&mut self) -> &'b [u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().take_while(|byte| !is_space(**byte) && !is_delimiter(**byte)).count();
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    fn array(&mut self, depth: u32) -> Value {
        self.at += 1;
        let mut values = Vec::new();
        loop {
            self.skip_space();
            if self.takes(b"]") {
                return Value::Array(values);
            }
            let Some(value) = self.nested(depth + 1) else {
                self.met(Fault::Unread);
                return Value::Array(values);
            };
            values.push(value);
        }
    }

    /// What lies where a key belongs, and is none, becomes an entry under an empty key.
    fn dictionary(&mut self, depth: u32) -> Value {
        let mut entries = Vec::new();
        loop {
            self.skip_space();
            if self.takes(b">>") {
                return Value::Dictionary(entries);
            }
            let mut key = Vec::new();
            if self.peek() == Some(b'/') {
                key = self.name();
                self.skip_space();
                // A key without a value, at the end.
                if self.takes(b">>") {
                    return Value::Dictionary(entries);
                }
            } else {
                self.met(Fault::Malformed);
            }
            let Some(value) = self.nested(depth + 1) else {
                self.met(Fault::Unread);
                return Value::Dictionary(entries);
            };
            entries.push((key, value));
        }
    }

    fn name(&mut self) -> Vec<u8> {
        self.at += 1;
        let raw = self.word();
        let mut name = Vec::with_capacity(raw.len());
        let mut rest = raw;
        while let Some((byte, after)) = rest.split_first() {
            let escaped = match after {
                [high, low, ..] if *byte == b'#' => hex(*high).zip(hex(*low)),
                _ => None,
            };
            match escaped {
                Some((high, low)) => {
                    name.push(high << 4 | low);
                    rest = after.get(2..).unwrap_or_default();
                }
                None => {
                    name.push(*byte);
                    rest = after;
                }
            }
        }
        name
    }

    fn hex_string(&mut self) -> Vec<u8> {
        self.at += 1;
        let mut text = Vec::new();
        let mut half = None;
        while let Some(byte) = self.next().filter(|byte| *byte != b'>') {
            match (hex(byte), half.take()) {
                (Some(digit), None) => half = Some(digit),
                (Some(digit), Some(high)) => text.push(high << 4 | digit),
                (None, before) => half = before,
            }
        }
        text.extend(half.map(|high| high << 4));
        text
    }

    fn string(&mut self) -> Vec<u8> {
        self.at += 1;
        let mut text = Vec::new();
        let mut open = 1u32;
        while let Some(byte) = self.next() {
            match byte {
                b'\\' => self.escape(&mut text),
                b'(' => {
                    open += 1;
                    text.push(byte);
                }
                b')' => {
                    open -= 1;
                    if open == 0 {
                        return text;
                    }
                    text.push(byte);
                }
                _ => text.push(byte),
            }
        }
        text
    }

    fn escape(&mut self, text: &mut Vec<u8>) {
        let Some(byte) = self.next() else { return };
        match byte {
            b'n' => text.push(b'\n'),
            b'r' => text.push(b'\r'),
            b't' => text.push(b'\t'),
            b'b' => text.push(8),
            b'f' => text.push(12),
            b'\r' => drop(self.takes(b"\n")),
            b'\n' => {}
            b'0'..=b'7' => {
                let mut code = u32::from(byte - b'0');
                for _ in 0..2 {
                    let Some(digit @ b'0'..=b'7') = self.peek() else { break };
                    code = code * 8 + u32::from(digit - b'0');
                    self.at += 1;
                }
                text.push(code as u8);
            }
            other => text.push(other),
        }
    }

    fn number_or_reference(&mut self) -> Value {
        let Some(number) = self.number() else { return Value::Other };
        let after = self.at;
        if let Ok(object) = u32::try_from(number) {
            self.skip_space();
            if self.peek().is_some_and(|byte| byte.is_ascii_digit()) && self.number().is_some() {
                self.skip_space();
                if self.word() == b"R" {
                    return Value::Reference(object);
                }
            }
        }
        self.at = after;
        Value::Number(number)
    }

    fn number(&mut self) -> Option<i64> {
        let word = self.word();
        let whole = word.split(|byte| *byte == b'.').next().unwrap_or_default();
        match whole {
            [] | [b'+' | b'-'] if !word.is_empty() => Some(0),
            _ => std::str::from_utf8(whole).ok()?.parse().ok(),
        }
    }
}

fn hex(byte: u8) -> Option<u8> {
    crate::transfer::hex_digit(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_the_specification_has_them() {
        let text = br"<< /J#53 (a\(b\)(c)\101\n) /N -12.5 /A [1 0 R 2 <48 6> true] % comment
            /D << /E null >> >> endobj";
        let mut parser = Parser::new(text, 0);
        let value = parser.value().unwrap();
        assert_eq!(value.get("JS"), Some(&Value::Text(b"a(b)(c)A\n".to_vec())));
        assert_eq!(value.get("N"), Some(&Value::Number(-12)));
        let array = [Value::Reference(1), Value::Number(2), Value::Text(b"H`".to_vec()), Value::Truth(true)];
        assert_eq!(value.get("A"), Some(&Value::Array(array.to_vec())));
        parser.skip_space();
        assert!(parser.takes(b"endobj") && parser.is_at_end());
    }

    fn read(text: &[u8]) -> (Option<Value>, Fault) {
        let mut parser = Parser::new(text, 0);
        (parser.value(), parser.fault)
    }

    #[test]
    fn what_is_malformed_is_read_on_and_told() {
        let all_say = |text: &str, fault| {
            let (value, met) = read(text.as_bytes());
            let value = value.unwrap();
            assert!(value.is("A", "b"), "{text}: {value:?}");
            assert_eq!(met, fault, "{text}");
        };
        for text in ["<</X null/A/b>>", "<</X -.5e/A/b/Y>>", "<</A/b/X(a(b)>)>>", "<</X<</Y[1 0 R]>>/A/b>>"] {
            all_say(text, Fault::None);
        }
        for text in ["<</X nan/A/b>>", "<</X [0 inf *] /A/b>>", "<</D D:2020 /A/b>>"] {
            all_say(text, Fault::UnknownWord);
        }
        for text in ["<</X >/A/b>>", "<</X ]/A/b>>", "<</X [ >> ]/A/b>>", "<< 1 (x) foo/A/b>>", "<</X{}/A/b>>"] {
            all_say(text, Fault::Malformed);
        }
        let deep = |open: &str, close: &str| format!("<</X{}{}/A/b>>", open.repeat(100), close.repeat(100));
        for text in ["<</A/b", "<</A/b/X[1 endobj", "<</A/b/X", &deep("[(])", "]"), &deep("<</X", ">>")] {
            all_say(text, Fault::Unread);
        }
    }

    #[test]
    fn nothing_is_nested_without_end() {
        let (value, fault) = read(&[b'['; 100_000]);
        assert!(matches!((value, fault), (Some(Value::Array(_)), Fault::Unread)));
        for text in [&b""[..], b"endobj", b" stream"] {
            assert_eq!(read(text), (None, Fault::None));
        }
    }
}
