//! How bytes travel in text: base64, quoted-printable, uuencode, hexadecimal. Each decoder reads what others read, which is more than
//! the specifications allow, since what a mail program shows must be seen here too. Formats: RFC 2045, POSIX uuencode.

/// Decodes base64 step by step. Whatever is not of its alphabet is passed over, in both its spellings.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Base64 {
    bits: u32,
    digits: u8,
}

impl Base64 {
    /// Takes so many characters, and adds what they stand for. Padding ends a group: some mails have texts one after the other.
    pub(crate) fn decode(&mut self, text: &[u8], into: &mut Vec<u8>) {
        for character in text {
            let Some(digit) = digit(*character) else {
                if *character == b'=' {
                    self.finish(into);
                }
                continue;
            };
            self.bits = (self.bits << 6) | u32::from(digit);
            self.digits += 1;
            if self.digits == 4 {
                let [_, bytes @ ..] = self.bits.to_be_bytes();
                into.extend_from_slice(&bytes);
                *self = Self::default();
            }
        }
    }

    /// Adds what the last, incomplete group stands for.
    pub(crate) fn finish(&mut self, into: &mut Vec<u8>) {
        let [_, bytes @ ..] = (self.bits << (6 * (4 - u32::from(self.digits.min(4))))).to_be_bytes();
        let whole = usize::from(self.digits) * 6 / 8;
        into.extend_from_slice(bytes.get(..whole).unwrap_or_default());
        *self = Self::default();
    }
}

/// What a character of base64 stands for.
pub(crate) fn digit(character: u8) -> Option<u8> {
    Some(match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

/// Decodes a whole text of base64; none if it has nothing.
pub(crate) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let (mut decoder, mut bytes) = (Base64::default(), Vec::new());
    decoder.decode(text, &mut bytes);
    decoder.finish(&mut bytes);
    (!bytes.is_empty()).then_some(bytes)
}

/// Decodes a line of quoted-printable, with its line break. Malformed escapes stay as they are.
pub(crate) fn quoted_printable(line: &[u8], into: &mut Vec<u8>) {
    let body = line.trim_ascii_end();
    let soft = body.ends_with(b"=");
    let text = if soft { body.get(..body.len() - 1).unwrap_or_default() } else { body };
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let pair = text.get(at + 1).copied().and_then(hex_digit).zip(text.get(at + 2).copied().and_then(hex_digit));
        match (*byte, pair) {
            (b'=', Some((high, low))) => {
                into.push(high << 4 | low);
                at += 3;
            }
            (byte, _) => {
                into.push(byte);
                at += 1;
            }
        }
    }
    if !soft {
        let line_break = if line.ends_with(b"\r\n") { &b"\r\n"[..] } else { &b"\n"[..] };
        into.extend_from_slice(if line.ends_with(b"\n") { line_break } else { b"" });
    }
}

/// What a hexadecimal digit stands for.
pub(crate) fn hex_digit(character: u8) -> Option<u8> {
    char::from(character).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Decodes a line of uuencode. False if it is none.
pub(crate) fn uuencoded(line: &[u8], into: &mut Vec<u8>) -> bool {
    let line = line.trim_ascii_end();
    let Some((length, text)) = line.split_first() else { return true };
    if !(b' '..=b'`').contains(length) {
        return false;
    }
    let end = into.len() + usize::from((length - b' ') & 0x3f);
    let value =
        |text: &[u8], at: usize| text.get(at).map_or(0, |character| u32::from(character.wrapping_sub(b' ') & 0x3f));
    for group in text.chunks(4) {
        let bits = (0..4).fold(0, |bits, at| bits << 6 | value(group, at));
        let [_, bytes @ ..] = bits.to_be_bytes();
        into.extend_from_slice(&bytes);
    }
    // Spaces at the end of a line may have got lost: they stand for zeros.
    into.resize(end, 0);
    true
}

/// The mode and name of a line that begins a uuencoded file.
pub(crate) fn uuencoded_name(line: &[u8]) -> Option<&[u8]> {
    let rest = line.trim_ascii_end().strip_prefix(b"begin ")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let name = rest.get(digits..)?.strip_prefix(b" ")?;
    ((3..=6).contains(&digits) && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_in_pieces_and_forgives() {
        assert_eq!(base64(b"aGVs\r\nbG8=").unwrap(), b"hello");
        assert_eq!(base64(b"aGVsbG8").unwrap(), b"hello");
        assert_eq!(base64(b"aGVsbG8=aGVsbG8=").unwrap(), b"hellohello");
        assert_eq!(base64(b"_-8=").unwrap(), [0xff, 0xef]);
        assert_eq!(base64(b"a"), None);
        let (mut decoder, mut bytes) = (Base64::default(), Vec::new());
        for character in b"aGVsbG8=" {
            decoder.decode(&[*character], &mut bytes);
        }
        assert_eq!(bytes, b"hello");
    }

    #[test]
    fn quoted_printable_keeps_line_breaks_unless_they_are_soft() {
        let decode = |line: &[u8]| {
            let mut bytes = Vec::new();
            quoted_printable(line, &mut bytes);
            bytes
        };
        assert_eq!(decode(b"a=3Db =\r\n"), b"a=b ");
        assert_eq!(decode(b"a=ZZ=4\r\n"), b"a=ZZ=4\r\n");
        assert_eq!(decode(b"a  \n"), b"a\n");
    }

    #[test]
    fn uuencode_has_names_and_lengths() {
        assert_eq!(uuencoded_name(b"begin 644 a b.txt\n"), Some(&b"a b.txt"[..]));
        assert_eq!(uuencoded_name(b"begin to 644 x"), None);
        let mut bytes = Vec::new();
        assert!(uuencoded(b"#0V%T\n", &mut bytes));
        assert!(uuencoded(b"`\n", &mut bytes));
        assert_eq!(bytes, b"Cat");
        assert!(!uuencoded(b"~x", &mut bytes));
    }
}
