//! How bytes travel in text: base64, quoted-printable, uuencode, hexadecimal. Each decoder reads what others read, which is more than
//! the specifications allow, since what a mail program shows must be seen here too. Formats: RFC 2045, POSIX uuencode.

/// What programs that decode base64 do with what should not be in it. The default is what web addresses need.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base64Rules {
    /// `-` and `_` stand for nothing, instead of for the same as `+` and `/`.
    pub(crate) passes_over_address_digits: bool,
    /// Padding counts only where a group may end, and ends the whole text there; instead of ending any group.
    pub(crate) padding_ends_text: bool,
}

/// Decodes base64 step by step. Whatever is not of its alphabet is passed over.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Base64 {
    bits: u32,
    digits: u8,
    padding: u8,
    has_ended: bool,
    rules: Base64Rules,
    /// Whether rules of either kind made a difference.
    disputed: Base64Rules,
}

impl Base64 {
    /// A decoder by these rules.
    pub(crate) fn by(rules: Base64Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// The other rules by which what was decoded would be something else.
    pub(crate) fn other_readings(&self) -> Vec<Base64Rules> {
        let all =
            [(true, false), (false, true), (true, true)].map(|(passes_over_address_digits, padding_ends_text)| {
                Base64Rules { passes_over_address_digits, padding_ends_text }
            });
        let differs = |rules: &Base64Rules| {
            (self.disputed.passes_over_address_digits || !rules.passes_over_address_digits)
                && (self.disputed.padding_ends_text || !rules.padding_ends_text)
        };
        all.into_iter().filter(differs).collect()
    }

    /// Takes so many characters, and adds what they stand for. Padding ends a group: some mails have texts one after the other.
    pub(crate) fn decode(&mut self, text: &[u8], into: &mut Vec<u8>) {
        for character in text {
            match character {
                b'=' => self.pad(into),
                b'-' | b'_' => {
                    self.disputed.passes_over_address_digits = true;
                    if !self.rules.passes_over_address_digits {
                        self.digit(*character, into);
                    }
                }
                _ => self.digit(*character, into),
            }
        }
    }

    fn digit(&mut self, character: u8, into: &mut Vec<u8>) {
        let Some(digit) = digit(character) else { return };
        // Behind padding programs go on, begin anew or end.
        self.disputed.padding_ends_text |= self.padding > 0 || self.has_ended;
        if self.has_ended && self.rules.padding_ends_text {
            return;
        }
        self.padding = 0;
        self.bits = (self.bits << 6) | u32::from(digit);
        self.digits += 1;
        if self.digits == 4 {
            let [_, bytes @ ..] = self.bits.to_be_bytes();
            into.extend_from_slice(&bytes);
            (self.bits, self.digits) = (0, 0);
        }
    }

    fn pad(&mut self, into: &mut Vec<u8>) {
        self.padding = self.padding.saturating_add(1);
        let ends = self.digits >= 2 && self.digits.saturating_add(self.padding) >= 4;
        self.has_ended |= ends;
        if ends || !self.rules.padding_ends_text {
            self.finish(into);
        }
    }

    /// Adds what the last, incomplete group stands for.
    pub(crate) fn finish(&mut self, into: &mut Vec<u8>) {
        let [_, bytes @ ..] = (self.bits << (6 * (4 - u32::from(self.digits.min(4))))).to_be_bytes();
        let whole = usize::from(self.digits) * 6 / 8;
        into.extend_from_slice(bytes.get(..whole).unwrap_or_default());
        (self.bits, self.digits) = (0, 0);
    }
}

/// What a character of base64 stands for.
pub(crate) fn digit(character: u8) -> Option<u8> {
    let digit = DIGITS[usize::from(character)];
    (digit < 64).then_some(digit)
}

/// The digit of each character; 64 of those that are none.
static DIGITS: [u8; 256] = {
    let mut digits = [64; 256];
    let mut character: u8 = 0;
    loop {
        digits[character as usize] = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => 64,
        };
        if character == u8::MAX {
            break digits;
        }
        character += 1;
    }
};

/// Decodes a whole text of base64; none if it has nothing.
pub(crate) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let (mut decoder, mut bytes) = (Base64::default(), Vec::new());
    decoder.decode(text, &mut bytes);
    decoder.finish(&mut bytes);
    (!bytes.is_empty()).then_some(bytes)
}

/// How many bytes at the end of a piece of quoted-printable may belong to what follows: an escape, and the spaces behind it.
const HELD_BYTES_MAX: usize = 4096;

/// How much at the end of a piece of a line means nothing before what follows is seen: the beginning of an escape, and spaces,
/// which don't count at the end of a line.
pub(crate) fn undecided(piece: &[u8]) -> usize {
    if piece.ends_with(b"\n") {
        return 0;
    }
    let before = piece.trim_ascii_end();
    let last = before.get(before.len().saturating_sub(2)..).unwrap_or_default();
    let escape = last.iter().position(|byte| *byte == b'=').map_or(0, |at| last.len() - at);
    (piece.len() - before.len() + escape).min(HELD_BYTES_MAX)
}

/// Decodes a line of quoted-printable, with its line break. Malformed escapes stay as they are.
pub(crate) fn quoted_printable(line: &[u8], into: &mut Vec<u8>) {
    let body = line.trim_ascii_end();
    let soft = body.ends_with(b"=");
    let text = if soft { body.get(..body.len() - 1).unwrap_or_default() } else { body };
    escapes(text, into);
    if !soft {
        let line_break = if line.ends_with(b"\r\n") { &b"\r\n"[..] } else { &b"\n"[..] };
        into.extend_from_slice(if line.ends_with(b"\n") { line_break } else { b"" });
    }
}

/// Decodes a piece of a line of quoted-printable that goes on behind it.
pub(crate) fn escapes(text: &[u8], into: &mut Vec<u8>) {
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
}

/// Whether a piece of quoted-printable is something else to programs that read it literally.
pub(crate) fn is_disputed(piece: &[u8]) -> bool {
    let line = piece.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let ends_in_space = line.is_some_and(|line| line.last().is_some_and(u8::is_ascii_whitespace));
    let is_odd = |at: usize| match piece.get(at + 1..).unwrap_or_default() {
        [b'=', ..] => true,
        [b'\r', next, ..] => *next != b'\n',
        _ => false,
    };
    ends_in_space || memchr::memchr_iter(b'=', piece).any(is_odd)
}

/// Decodes quoted-printable step by step as programs do that read it literally: spaces at the end of a line stay, `==` stands for `=`,
/// and behind `=` with a carriage return the rest of the line counts for nothing.
#[derive(Debug, Default)]
pub(crate) enum LiteralQuotedPrintable {
    /// Nothing has begun.
    #[default]
    Text,
    /// An escape has.
    Escape,
    /// So has one with this digit.
    Digit(u8),
    /// What comes counts for nothing up to the end of the line.
    PassedOver,
}

impl LiteralQuotedPrintable {
    /// Takes so many characters, and adds what they stand for. Malformed escapes stay as they are.
    pub(crate) fn decode(&mut self, text: &[u8], into: &mut Vec<u8>) {
        for byte in text {
            *self = match (&*self, *byte) {
                (Self::Text, b'=') => Self::Escape,
                (Self::Escape | Self::PassedOver, b'\n') => Self::Text,
                (Self::Escape | Self::PassedOver, b'\r') | (Self::PassedOver, _) => Self::PassedOver,
                (Self::Escape, b'=') => {
                    into.push(b'=');
                    Self::Text
                }
                (Self::Escape, digit) if hex_digit(digit).is_some() => Self::Digit(digit),
                (Self::Escape, other) => {
                    into.extend_from_slice(&[b'=', other]);
                    Self::Text
                }
                (Self::Digit(first), second) => match hex_digit(*first).zip(hex_digit(second)) {
                    Some((high, low)) => {
                        into.push(high << 4 | low);
                        Self::Text
                    }
                    None if second == b'=' => {
                        into.extend_from_slice(&[b'=', *first]);
                        Self::Escape
                    }
                    None => {
                        into.extend_from_slice(&[b'=', *first, second]);
                        Self::Text
                    }
                },
                (Self::Text, other) => {
                    into.push(other);
                    Self::Text
                }
            };
        }
    }

    /// Adds what an escape stands for that nothing follows.
    pub(crate) fn finish(&mut self, into: &mut Vec<u8>) {
        if let Self::Digit(first) = *self {
            into.extend_from_slice(&[b'=', first]);
        }
        *self = Self::Text;
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

/// The line that begins a uuencoded file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UuBegin<'l> {
    /// The file's name; may be empty.
    pub(crate) name: &'l [u8],
    /// The content is base64.
    pub(crate) is_base64: bool,
    /// It has a mode and a name as programs write them. Otherwise a line of prose may be like this.
    pub(crate) is_sure: bool,
}

/// Reads the line that begins a uuencoded file. Programs take any octal number for a mode, and need no name.
pub(crate) fn uu_begin(line: &[u8]) -> Option<UuBegin<'_>> {
    let line = line.trim_ascii_end();
    let rest = line.strip_prefix(b"begin")?;
    let (is_base64, rest) = match rest.strip_prefix(b"-base64") {
        Some(rest) => (true, rest.strip_prefix(b"-encoded").unwrap_or(rest)),
        None => (false, rest.strip_prefix(b"-encoded").unwrap_or(rest)),
    };
    let text = rest.trim_ascii_start();
    let digits = text.iter().take_while(|byte| matches!(byte, b'0'..=b'7' | b'+' | b'-' | b'_' | b'o')).count();
    let (mode, behind) = text.split_at_checked(digits)?;
    let is_mode = mode.iter().any(u8::is_ascii_digit) && rest.len() > text.len();
    let name = behind.trim_ascii_start();
    if !is_mode || name.len() == behind.len() && !name.is_empty() {
        return None;
    }
    let is_sure = (3..=6).contains(&digits) && mode.iter().all(u8::is_ascii_digit) && !name.is_empty();
    Some(UuBegin { name, is_base64, is_sure })
}

/// Whether a line is one of uuencode, by its length.
pub(crate) fn is_uuencoded(line: &[u8]) -> bool {
    let text = line.trim_ascii_end();
    let Some((length, digits)) = text.split_first() else { return false };
    if !text.iter().all(|byte| (b' '..=b'`').contains(byte)) {
        return false;
    }
    let whole = usize::from((length - b' ') & 0x3f).div_ceil(3) * 4;
    // Spaces at the end get lost, and some programs add a character.
    (1..=whole + 2).contains(&digits.len()) && digits.len() + 8 >= whole
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
    fn base64_is_read_by_every_rule() {
        let readings = |text: &[u8]| {
            let (mut decoder, mut bytes) = (Base64::default(), Vec::new());
            decoder.decode(text, &mut bytes);
            let others = decoder.other_readings();
            others
                .into_iter()
                .map(|rules| {
                    let (mut decoder, mut bytes) = (Base64::by(rules), Vec::new());
                    decoder.decode(text, &mut bytes);
                    decoder.finish(&mut bytes);
                    String::from_utf8_lossy(&bytes).into_owned()
                })
                .collect::<Vec<_>>()
        };
        assert!(readings(b"aGVsbG8=\r\n").is_empty());
        assert_eq!(readings(b"aGV-sbG8="), ["hello"]);
        assert_eq!(readings(b"a=GVsbG8="), ["hello"]);
        assert_eq!(readings(b"aG=VsbG8="), ["hello"]);
        assert_eq!(readings(b"aGVsbG8=aGVs"), ["hello"]);
        assert!(readings(b"_aG=VsbG8=").contains(&"hello".to_owned()));
    }

    #[test]
    fn an_escape_is_not_cut() {
        let counts = [&b"a"[..], b"a=", b"a=4", b"a=41", b"a= ", b"a  ", b"a=\r\n"].map(undecided);
        assert_eq!(counts, [0, 1, 2, 0, 2, 2, 0]);
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
    fn quoted_printable_is_read_literally() {
        let decode = |text: &[u8]| {
            let (mut decoder, mut bytes) = (LiteralQuotedPrintable::default(), Vec::new());
            for character in text {
                decoder.decode(&[*character], &mut bytes);
            }
            decoder.finish(&mut bytes);
            bytes
        };
        assert_eq!(decode(b"=41=\rxx=\rx\r\n=42=\r\n=\nc \r\n"), b"ABc \r\n");
        assert_eq!(decode(b"==41=4==42=4x=xy= \n=4"), b"=41=4=42=4x=xy= \n=4");
        assert_eq!(decode(b"a="), b"a");
        for disputed in [&b"a=\rb"[..], b"a==", b"a \n", b"a= \r\n", b"a\r\r\n"] {
            assert!(is_disputed(disputed), "{disputed:?}");
        }
        // As encoders write it.
        for plain in [&b"a=3D=\r\n"[..], b"a=20\r\n", b"a\n", b"\r\n", b"a b", b"=\n"] {
            assert!(!is_disputed(plain), "{plain:?}");
        }
    }

    #[test]
    fn uuencode_has_names_and_lengths() {
        let begin = |name, is_base64, is_sure| Some(UuBegin { name, is_base64, is_sure });
        assert_eq!(uu_begin(b"begin 644 a b.txt\n"), begin(&b"a b.txt"[..], false, true));
        assert_eq!(uu_begin(b"begin-base64 0 a"), begin(&b"a"[..], true, false));
        assert_eq!(uu_begin(b"begin 644 \r\n"), begin(&b""[..], false, false));
        assert_eq!(uu_begin(b"begin to 644 x").or(uu_begin(b"begin644 x")).or(uu_begin(b"begin 9 x")), None);
        assert!(is_uuencoded(b"#0V%T\n") && !is_uuencoded(b"The next chapter\n"));
        let mut bytes = Vec::new();
        assert!(uuencoded(b"#0V%T\n", &mut bytes));
        assert!(uuencoded(b"`\n", &mut bytes));
        assert_eq!(bytes, b"Cat");
        assert!(!uuencoded(b"~x", &mut bytes));
    }
}
