//! What PDF's streams are encoded with: Flate, LZW, ASCIIHex, ASCII85, RunLength, each with the predictors that may follow. Format:
//! ISO 32000-1, 7.4. Images in formats of their own stay as they are, since those are files by themselves.

use std::io::{self, BufReader, Read};

use super::object::{Value, is_space};
use crate::fields::invalid;

/// Most filters of one stream. Real ones have two.
pub(super) const FILTERS_MAX: usize = 16;
/// The longest row that a predictor works on.
const ROW_BYTES_MAX: usize = 1 << 20;
const BUFFER_BYTES: usize = 16 * 1024;

/// Whether a filter makes an image, or something else that is a file by itself.
pub(super) fn extension(filter: &[u8]) -> Option<&'static str> {
    Some(match filter {
        b"DCTDecode" | b"DCT" => "jpg",
        b"JPXDecode" => "jp2",
        b"JBIG2Decode" => "jb2",
        b"CCITTFaxDecode" | b"CCF" => "fax",
        _ => return None,
    })
}

/// The filters whose names lie anywhere in a value, in their order.
pub(super) fn named_in(value: &Value) -> Vec<Vec<u8>> {
    let mut filters = Vec::new();
    add_named_in(value, &mut filters);
    filters
}

/// Values are nested no deeper than the parser lets them be.
fn add_named_in(value: &Value, filters: &mut Vec<Vec<u8>>) {
    let mut add = |name: &[u8]| {
        if filters.len() < FILTERS_MAX && (is_decoded(name) || extension(name).is_some()) {
            filters.push(name.to_vec());
        }
    };
    match value {
        Value::Name(name) => add(name),
        Value::Array(values) => values.iter().for_each(|value| add_named_in(value, filters)),
        Value::Dictionary(entries) => {
            for (key, value) in entries {
                add_named_in(&Value::Name(key.clone()), filters);
                add_named_in(value, filters);
            }
        }
        _ => {}
    }
}

fn is_decoded(filter: &[u8]) -> bool {
    let names: [&[u8]; 10] = [
        b"FlateDecode",
        b"Fl",
        b"LZWDecode",
        b"LZW",
        b"ASCIIHexDecode",
        b"AHx",
        b"ASCII85Decode",
        b"A85",
        b"RunLengthDecode",
        b"RL",
    ];
    names.contains(&filter)
}

/// Decodes what `input` yields by one filter.
pub(super) fn decoder<'i>(
    filter: &[u8],
    parameters: Option<&Value>,
    input: Box<dyn Read + 'i>,
) -> io::Result<Box<dyn Read + 'i>> {
    let input = BufReader::with_capacity(BUFFER_BYTES, input);
    let parameter = |name: &str| parameters.and_then(|parameters| parameters.get(name)).and_then(Value::number);
    let decoded: Box<dyn Read + 'i> = match filter {
        b"FlateDecode" | b"Fl" => Box::new(flate2::bufread::ZlibDecoder::new(input)),
        b"LZWDecode" | b"LZW" => Box::new(Steps::new(Lzw::new(input, parameter("EarlyChange") != Some(0)))),
        b"ASCIIHexDecode" | b"AHx" => Box::new(Steps::new(AsciiHex(input))),
        b"ASCII85Decode" | b"A85" => Box::new(Steps::new(Ascii85 { input, began: false })),
        b"RunLengthDecode" | b"RL" => Box::new(Steps::new(RunLength(input))),
        other => {
            return Err(invalid(format!("filter {} is not known", crate::container::display_name(other))));
        }
    };
    let predictor = parameter("Predictor").unwrap_or(1);
    if predictor < 2 || !matches!(filter, b"FlateDecode" | b"Fl" | b"LZWDecode" | b"LZW") {
        return Ok(decoded);
    }
    let number = |name, default| usize::try_from(parameter(name).unwrap_or(default)).unwrap_or(usize::MAX);
    let bits_of_pixel = number("Colors", 1).saturating_mul(number("BitsPerComponent", 8));
    let row_bytes = bits_of_pixel.saturating_mul(number("Columns", 1)).div_ceil(8);
    if row_bytes == 0 || row_bytes > ROW_BYTES_MAX {
        return Err(invalid("a predictor for rows of no sensible length"));
    }
    let input = BufReader::with_capacity(BUFFER_BYTES, decoded);
    let pixel_bytes = bits_of_pixel.div_ceil(8).min(row_bytes);
    Ok(Box::new(Steps::new(Predictor { input, is_png: predictor >= 10, pixel_bytes, before: vec![0; row_bytes] })))
}

/// A decoder that makes a little at a time.
trait Step {
    /// Adds what comes next. False at the end.
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool>;
}

/// A decoder as a reader.
struct Steps<S> {
    step: S,
    out: Vec<u8>,
    given: usize,
    ended: bool,
}

impl<S: Step> Steps<S> {
    fn new(step: S) -> Self {
        Self { step, out: Vec::new(), given: 0, ended: false }
    }
}

impl<S: Step> Read for Steps<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given >= self.out.len() && !self.ended && !into.is_empty() {
            self.out.clear();
            self.given = 0;
            // A reader asks for much at once, and a step is a few bytes.
            while self.out.len() < BUFFER_BYTES && !self.ended {
                match self.step.step(&mut self.out) {
                    Ok(more) => self.ended = !more,
                    Err(error) if self.out.is_empty() => return Err(error),
                    // What was decoded goes out first; the error comes again, or the input is at its end.
                    Err(_) => break,
                }
            }
        }
        let mut rest = self.out.get(self.given..).unwrap_or_default();
        let read = rest.read(into)?;
        self.given += read;
        Ok(read)
    }
}

fn next(input: &mut impl Read) -> io::Result<Option<u8>> {
    let mut byte = [0];
    Ok((input.read(&mut byte)? == 1).then_some(byte[0]))
}

fn next_visible(input: &mut impl Read) -> io::Result<Option<u8>> {
    loop {
        match next(input)? {
            Some(byte) if is_space(byte) => {}
            other => return Ok(other),
        }
    }
}

struct AsciiHex<R>(R);

impl<R: Read> Step for AsciiHex<R> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let mut digits = [0; 2];
        for (at, digit) in digits.iter_mut().enumerate() {
            let byte = next_visible(&mut self.0)?.filter(|byte| *byte != b'>');
            let Some(byte) = byte else {
                if at == 1 {
                    out.push(digits[0] << 4);
                }
                return Ok(false);
            };
            *digit = crate::transfer::hex_digit(byte).ok_or_else(|| invalid("no hexadecimal digit"))?;
        }
        out.push(digits[0] << 4 | digits[1]);
        Ok(true)
    }
}

struct Ascii85<R> {
    input: R,
    began: bool,
}

impl<R: Read> Step for Ascii85<R> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let (mut value, mut digits) = (0u32, 0usize);
        while digits < 5 {
            match next_visible(&mut self.input)? {
                Some(b'z') if digits == 0 => {
                    self.began = true;
                    out.extend_from_slice(&[0; 4]);
                    return Ok(true);
                }
                Some(byte @ b'!'..=b'u') => {
                    value = value.wrapping_mul(85).wrapping_add(u32::from(byte - b'!'));
                    digits += 1;
                }
                // "<~" at the beginning is no content.
                Some(b'~') if digits == 1 && !self.began && value == u32::from(b'<' - b'!') => (value, digits) = (0, 0),
                None | Some(b'~') => {
                    for _ in digits..5 {
                        value = value.wrapping_mul(85).wrapping_add(84);
                    }
                    out.extend_from_slice(value.to_be_bytes().get(..digits.saturating_sub(1)).unwrap_or_default());
                    return Ok(false);
                }
                Some(_) => return Err(invalid("no digit of base 85")),
            }
        }
        self.began = true;
        out.extend_from_slice(&value.to_be_bytes());
        Ok(true)
    }
}

struct RunLength<R>(R);

impl<R: Read> Step for RunLength<R> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        match next(&mut self.0)? {
            None | Some(128) => Ok(false),
            Some(length @ 0..=127) => {
                let expected = usize::from(length) + 1;
                let read = self.0.by_ref().take(expected as u64).read_to_end(out)?;
                Ok(read == expected)
            }
            Some(length) => {
                let Some(byte) = next(&mut self.0)? else { return Ok(false) };
                out.resize(out.len() + 257 - usize::from(length), byte);
                Ok(true)
            }
        }
    }
}

/// LZW with codes of 9 to 12 bits, the highest bit first.
struct Lzw<R> {
    input: R,
    bits: u32,
    held: u32,
    width: u32,
    /// 1 if codes get longer one code early, as most writers do.
    early: usize,
    /// For each code from 258 on: the code before and the last byte.
    codes: Vec<(u16, u8)>,
    before: Option<u16>,
}

const LZW_CLEAR: u16 = 256;
const LZW_END: u16 = 257;
const LZW_FIRST: u16 = 258;
const LZW_CODES_MAX: usize = 4096;

impl<R: Read> Lzw<R> {
    fn new(input: R, is_early: bool) -> Self {
        let early = usize::from(is_early);
        Self { input, bits: 0, held: 0, width: 9, early, codes: Vec::new(), before: None }
    }

    fn code(&mut self) -> io::Result<Option<u16>> {
        while self.held < self.width {
            let Some(byte) = next(&mut self.input)? else { return Ok(None) };
            self.bits = self.bits << 8 | u32::from(byte);
            self.held += 8;
        }
        self.held -= self.width;
        Ok(Some((self.bits >> self.held & ((1 << self.width) - 1)) as u16))
    }

    /// Adds what a code stands for; tells its first byte.
    fn expand(&self, mut code: u16, out: &mut Vec<u8>) -> io::Result<u8> {
        let start = out.len();
        // Each step leads to an older code, so it ends.
        while code >= LZW_FIRST {
            let entry = self.codes.get(usize::from(code - LZW_FIRST));
            let (before, byte) = entry.ok_or_else(|| invalid("an LZW code that isn't there"))?;
            out.push(*byte);
            code = *before;
        }
        out.push(code as u8);
        if let Some(expanded) = out.get_mut(start..) {
            expanded.reverse();
        }
        Ok(code as u8)
    }
}

impl<R: Read> Step for Lzw<R> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let Some(code) = self.code()?.filter(|code| *code != LZW_END) else { return Ok(false) };
        if code == LZW_CLEAR {
            self.codes.clear();
            self.width = 9;
            self.before = None;
            return Ok(true);
        }
        let known = usize::from(LZW_FIRST) + self.codes.len();
        match self.before {
            None if code < LZW_CLEAR => out.push(code as u8),
            None => return Err(invalid("LZW data begins with a code that isn't there")),
            Some(before) if usize::from(code) < known => {
                let first = self.expand(code, out)?;
                self.add(before, first);
            }
            Some(before) if usize::from(code) == known => {
                let first = self.expand(before, out)?;
                out.push(first);
                self.add(before, first);
            }
            Some(_) => return Err(invalid("an LZW code that isn't there")),
        }
        self.before = Some(code);
        Ok(true)
    }
}

impl<R> Lzw<R> {
    fn add(&mut self, before: u16, byte: u8) {
        let known = usize::from(LZW_FIRST) + self.codes.len();
        if known < LZW_CODES_MAX {
            self.codes.push((before, byte));
            self.width = match known + 1 + self.early {
                ..512 => 9,
                512..1024 => 10,
                1024..2048 => 11,
                _ => 12,
            };
        }
    }
}

/// Undoes what was done to rows before they were compressed.
struct Predictor<R> {
    input: R,
    is_png: bool,
    pixel_bytes: usize,
    before: Vec<u8>,
}

impl<R: Read> Step for Predictor<R> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let kind = if self.is_png { next(&mut self.input)? } else { Some(1) };
        let Some(kind) = kind else { return Ok(false) };
        let mut row = Vec::new();
        self.input.by_ref().take(self.before.len() as u64).read_to_end(&mut row)?;
        for at in 0..row.len() {
            let back = at.checked_sub(self.pixel_bytes);
            let left = back.and_then(|back| row.get(back)).copied().unwrap_or(0);
            let up = self.before.get(at).copied().unwrap_or(0);
            let up_left = back.and_then(|back| self.before.get(back)).copied().unwrap_or(0);
            let added = match kind {
                1 => left,
                2 => up,
                3 => ((u16::from(left) + u16::from(up)) / 2) as u8,
                4 => paeth(left, up, up_left),
                _ => 0,
            };
            if let Some(byte) = row.get_mut(at) {
                *byte = byte.wrapping_add(added);
            }
        }
        out.extend_from_slice(&row);
        let is_whole = row.len() == self.before.len();
        self.before = row;
        Ok(is_whole)
    }
}

/// The neighbour that is nearest to left + up - up left. Format: PNG, 9.4.
fn paeth(left: u8, up: u8, up_left: u8) -> u8 {
    let estimate = i32::from(left) + i32::from(up) - i32::from(up_left);
    let distance = |byte: u8| (estimate - i32::from(byte)).abs();
    if distance(left) <= distance(up) && distance(left) <= distance(up_left) {
        left
    } else if distance(up) <= distance(up_left) {
        up
    } else {
        up_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(filter: &str, parameters: Option<&Value>, data: &'static [u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decoder(filter.as_bytes(), parameters, Box::new(data))?.read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn texts_and_runs_are_decoded() {
        assert_eq!(decoded("ASCIIHexDecode", None, b"68 65\n6c6C 6f7>x").unwrap(), b"hellop");
        assert_eq!(decoded("A85", None, b"87cURD]i,\"Ebo80~>").unwrap(), b"Hello World!");
        assert_eq!(decoded("A85", None, b"z87cUR~>").unwrap(), b"\0\0\0\0Hell");
        assert_eq!(decoded("RL", None, b"\x02abc\xfed\x80x").unwrap(), b"abcddd");
        assert!(decoded("AHx", None, b"4x").is_err());
        assert!(decoded("Nothing", None, b"").is_err());
    }

    #[test]
    fn lzw_is_that_of_the_specification() {
        // ISO 32000-1, 7.4.4.2, example 2.
        let data = b"\x80\x0b\x60\x50\x22\x0c\x0c\x85\x01";
        assert_eq!(decoded("LZWDecode", None, data).unwrap(), [45, 45, 45, 45, 45, 65, 45, 45, 45, 66]);
        assert!(decoded("LZW", None, b"\xff\xff").is_err());
    }

    #[test]
    fn predictors_are_undone() {
        let parameters = |predictor| {
            let entries = [("Predictor", predictor), ("Columns", 3)];
            Value::Dictionary(entries.map(|(key, number)| (key.into(), Value::Number(number))).to_vec())
        };
        let run = |predictor: i64, rows: &[u8]| {
            let rows: &'static [u8] = rows.to_vec().leak();
            let input = flate2::bufread::ZlibEncoder::new(rows, flate2::Compression::fast());
            let mut out = Vec::new();
            decoder(b"Fl", Some(&parameters(predictor)), Box::new(input)).unwrap().read_to_end(&mut out).unwrap();
            out
        };
        assert_eq!(run(12, &[0, 1, 2, 3, 2, 1, 1, 1, 1, 5, 1, 1]), [1, 2, 3, 2, 3, 4, 5, 6, 7]);
        assert_eq!(run(15, &[3, 10, 0, 0, 4, 1, 0, 0]), [10, 5, 2, 11, 5, 2]);
        assert_eq!(run(2, &[1, 1, 1, 5, 0, 0]), [1, 2, 3, 5, 5, 5]);
    }
}
