//! Where encoded data lies in text: runs of base64, `data:` addresses, uuencode, yEnc; and text in which characters of it are written
//! as escapes of HTML and scripts. It is asked of every file that nothing else claims, so it must cost next to nothing.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use memchr::{memchr, memchr_iter, memchr2, memchr2_iter, memchr3};

use crate::fields::find;
use crate::transfer::{self, Base64, digit, hex_digit};

/// How many characters a run of base64 has at least that may stand for anything: the longest hash's in hexadecimal are 128, and lists
/// of hashes are long.
const RUN_CHARACTERS_MIN: usize = 160;
/// The same for what an element of XML or a field of a calendar begins with, or what stands for something that begins as files do:
/// the EICAR test file's are 92.
const SHORT_RUN_CHARACTERS_MIN: usize = 80;
/// How many different characters the beginning of a run has at least: else any line of dashes would be one.
const DIFFERENT_CHARACTERS_MIN: u32 = 8;
/// How many characters of a run stand together at least, before space or the end of a string: else any prose would be one.
pub(crate) const LINE_CHARACTERS_MIN: usize = 32;
/// The same where what a run stands for tells that it is one, whose lines may then be of any length: what is shorter is mostly a word.
pub(crate) const SHORT_LINE_CHARACTERS_MIN: usize = 4;
/// The same between lines that say that there is data between them.
const ARMORED_LINE_CHARACTERS_MIN: usize = 1;
/// Most lines behind the one with which it begins that say more of it.
const ARMOR_HEADERS_MAX: usize = 16;
/// How many characters of a run in such lines are looked at: they stand for more than a program's header, which begins with two letters only.
const LOOKED_AT_CHARACTERS: usize = 88;
/// The longest beginning of a `data:` address, up to its comma. Browsers take any, writers some hundred bytes.
const ADDRESS_BYTES_MAX: usize = 28 << 10;
/// The longest beginning of a run in short lines, and of an address that is looked for without a sign that one begins.
pub(crate) const SEARCH_AGAIN_BYTES: usize = 4608;
/// How far is looked ahead for where a string goes on.
pub(crate) const JOINT_BYTES_MAX: usize = 32;
/// The longest escape that is decoded, with zeros before its number.
pub(crate) const ESCAPE_BYTES_MAX: usize = 64;
/// Of how many bytes of a text at most one is a control character.
const CONTROLS_OF_TEXT: usize = 32;
/// How much of a file tells whether it is text.
pub(crate) const TOLD_BY_BYTES: usize = 4096;
/// The longest line that begins a file in text.
const LINE_BYTES_MAX: usize = 512;
/// What files begin with that are worth to be hidden.
const MAGIC: [&[u8]; 31] = [
    b"MZ",
    b"PK",
    b"\x1f\x8b\x08",
    b"%PDF",
    b"\x7fELF",
    b"Rar!",
    b"7z\xbc\xaf",
    b"BZh",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
    b"\xd0\xcf\x11\xe0",
    b"MSCF",
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"L\0\0\0",
    b"\xca\xfe\xba\xbe",
    b"ActiveMime",
    b"\xcf\xfa\xed\xfe",
    b"\x04\x22\x4d\x18",
    b"LZIP",
    b"\x78\x9f\x3e\x22",
    b"\x78\x01",
    b"\x78\x5e",
    b"\x78\x9c",
    b"\x78\xda",
    b"xar!\0",
    b"MSWIM\0",
    b"ITSF\x03\0",
    b"\x60\xea",
    b"\x5d\0\0",
];
/// What text may begin with.
const TEXT_MARKS: [&[u8]; 2] = [b"\xff\xfe", b"\xef\xbb\xbf"];

/// Whether a file that begins like this is a text, if with some odd characters in it.
pub(crate) fn is_text(head: &[u8]) -> bool {
    let head = head.get(..TOLD_BY_BYTES).unwrap_or(head);
    // In pieces whose sum is one byte, so that many are counted by each instruction.
    let is_control = |byte: &u8| u8::from(matches!(byte, 0..=8 | 14..=26 | 28..=31));
    let controls: usize = head.chunks(128).map(|piece| usize::from(piece.iter().map(is_control).sum::<u8>())).sum();
    controls * CONTROLS_OF_TEXT <= head.len().max(2 * CONTROLS_OF_TEXT)
}

/// What is next in a piece of text.
pub(crate) enum Found {
    /// Nothing in so many bytes.
    Nothing(usize),
    /// A run of base64 so far in, and how many of its characters stand together at least.
    Run(usize, usize),
    /// An address so far in.
    Address(usize, Address),
}

/// A `data:` address.
pub(crate) struct Address {
    /// How far behind its beginning its data begins.
    pub(crate) length: usize,
    pub(crate) is_base64: bool,
    pub(crate) extension: String,
    /// What ends it; none for what ends any that is not in quotes.
    pub(crate) ended_by: Option<u8>,
}

/// The first data in a piece of text. If the text goes on, what may be cut off at the end of the piece is left for the next. In what
/// is no text runs count only if they stand for something that begins as files do.
pub(crate) fn next_data(text: &[u8], is_all: bool, is_text: bool) -> Found {
    let address = first_address(text);
    let end = address.as_ref().map_or(text.len(), |(at, _)| *at);
    let run = first_run(text, end, is_text);
    let end = run.map_or(end, |(at, _)| at);
    let run = match (run, first_armored(text, end)) {
        // What stands before its lines may be anything: they are read for themselves.
        (Some((at, line)), Some(data)) if text.get(data..at).is_some_and(is_one_piece) => Some((at, line)),
        (_, Some(data)) => Some((data, ARMORED_LINE_CHARACTERS_MIN)),
        (run, None) => run,
    };
    let end = run.map_or(end, |(at, _)| at);
    if let Some((at, line)) = first_run_in_lines(text, end).map(|at| (at, SHORT_LINE_CHARACTERS_MIN)).or(run) {
        return Found::Run(at, line);
    }
    if let Some((at, address)) = address {
        return Found::Address(at, address);
    }
    // What may be the beginning of a run or an address is searched again with what follows.
    let searched = if is_all { text.len() } else { searched_until(text) };
    Found::Nothing(searched.max(1))
}

/// From where on a piece of text in which nothing is found is searched again with what follows.
pub(crate) fn searched_until(text: &[u8]) -> usize {
    let end = text.len().saturating_sub(SEARCH_AGAIN_BYTES);
    long_beginnings(text).unfinished.map_or(end, |(start, _)| end.min(start))
}

/// What there is in a piece of text of addresses with long beginnings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LongBeginnings {
    /// Where the first one begins whose comma is not there yet, with what is before it, and how much of that is there.
    unfinished: Option<(usize, usize)>,
    /// The comma of one is further away than is looked for.
    is_too_long: bool,
}

impl LongBeginnings {
    /// Whether one can't be read at all.
    pub(crate) fn is_too_long(&self) -> bool {
        self.is_too_long
    }

    /// Whether one can't be read if so many bytes are searched again with what follows.
    pub(crate) fn goes_on_for(&self, bytes: usize) -> bool {
        self.is_too_long || self.unfinished.is_some_and(|(_, length)| length > bytes)
    }
}

/// In prose "data:" may be followed by no comma for long as well: what counts is in quotes, brackets, or the value of an attribute.
pub(crate) fn long_beginnings(text: &[u8]) -> LongBeginnings {
    let mut found = LongBeginnings::default();
    let mut next = NextOfKinds { text, places: [None; KINDS] };
    for colon in memchr_iter(b':', text) {
        let Some(start) = scheme(text, colon) else { continue };
        // With what is before it, which is to be seen with what follows.
        let last = |end: usize| text.get(..end).unwrap_or_default().iter().rposition(|byte| *byte > b' ');
        let Some(from) = last(start) else { continue };
        let before = text.get(from).copied();
        let is_broken = text.get(from..start).is_some_and(|between| memchr2(b'\n', b'\r', between).is_some());
        let opens = || last(from).is_some_and(|at| matches!(text.get(at), Some(b'=' | b'(')));
        if is_broken && !matches!(before, Some(b'=' | b'(')) && !opens() {
            // A quote at the end of a line closes what is in it, unless a value begins there.
            continue;
        }
        let Some(end) = before.and_then(|before| next.end(before, colon)) else { continue };
        let comma = next.place(COMMA, colon);
        if comma > end || end < text.len() && comma == text.len() {
            continue;
        }
        if comma - from > ADDRESS_BYTES_MAX {
            found.is_too_long = true;
        } else if comma == text.len() {
            found.unfinished = found.unfinished.or(Some((from, text.len() - from)));
        }
    }
    found
}

/// How many kinds of characters are looked for, and which of them is the comma.
const KINDS: usize = 6;
const COMMA: usize = 0;

/// Where the next character of each kind lies. Remembered, so that no text makes this a search for each of its colons.
struct NextOfKinds<'t> {
    text: &'t [u8],
    places: [Option<usize>; KINDS],
}

impl NextOfKinds<'_> {
    /// Where an address ends with this character before it, at the latest; none if it is none then.
    fn end(&mut self, before: u8, colon: usize) -> Option<usize> {
        let kind = match before {
            b'"' => 1,
            b'\'' => 2,
            b'`' => 3,
            b'(' => 4,
            b'=' => 5,
            _ => return None,
        };
        Some(self.place(kind, colon))
    }

    /// The place of the next one behind a colon; the text's end if there is none.
    fn place(&mut self, kind: usize, colon: usize) -> usize {
        let known = self.places.get(kind).copied().flatten().filter(|place| *place > colon);
        known.unwrap_or_else(|| {
            let rest = self.text.get(colon..).unwrap_or_default();
            let at = match kind {
                COMMA => memchr(b',', rest),
                1 => memchr(b'"', rest),
                2 => memchr(b'\'', rest),
                3 => memchr(b'`', rest),
                4 => memchr2(b'(', b')', rest),
                _ => memchr3(b' ', b'\n', b'>', rest),
            };
            let place = at.map_or(self.text.len(), |at| colon + at);
            if let Some(known) = self.places.get_mut(kind) {
                *known = Some(place);
            }
            place
        })
    }
}

/// Whether a text has an address.
pub(crate) fn has_address(text: &[u8]) -> bool {
    first_address(text).is_some()
}

/// How many characters are looked at at once: every line of a run covers one such piece of the text whole.
const PIECE_BYTES: usize = LINE_CHARACTERS_MIN / 2;

/// Where the first run begins, before `end`, and how long its lines are at least.
fn first_run(text: &[u8], end: usize, is_text: bool) -> Option<(usize, usize)> {
    let digits = |text: &[u8]| text.iter().take_while(|byte| is_digit(**byte)).count();
    let mut free = 0;
    for (number, piece) in text.as_chunks::<PIECE_BYTES>().0.iter().enumerate() {
        let at = number * PIECE_BYTES;
        if at >= end {
            break;
        }
        // What lies before `free` is known, and the piece that it lies in has something else there.
        if !are_digits(piece) || at < free {
            continue;
        }
        let before = text.get(free..at).unwrap_or_default().iter().rev().take_while(|byte| is_digit(**byte)).count();
        let behind = digits(text.get(at..).unwrap_or_default());
        let start = at - before;
        if before + behind >= LINE_CHARACTERS_MIN
            && let Some(line) = run(text, start, is_text)
        {
            return Some((start, line));
        }
        free = at + behind;
    }
    None
}

/// Whether all of a piece are digits of base64. Written without branches and tables, so that it becomes a few vector instructions: it is
/// done with every byte of every file that nothing claims.
fn are_digits(piece: &[u8; PIECE_BYTES]) -> bool {
    piece.iter().fold(true, |all, byte| all & is_digit(*byte))
}

/// The same as whether [`digit`] has a value.
#[inline(always)]
fn is_digit(byte: u8) -> bool {
    let is_letter = (byte | 0x20).wrapping_sub(b'a') < 26;
    // The slash is right before the zero.
    let is_number = byte.wrapping_sub(b'/') < 11;
    is_letter | is_number | (byte == b'+') | (byte == b'-') | (byte == b'_')
}

/// How long the lines of the run are at least that begins so far into a text, in one line or several; none if it isn't long enough, or
/// a hash.
fn run(text: &[u8], start: usize, is_text: bool) -> Option<usize> {
    let before = start.checked_sub(1).and_then(|before| text.get(before));
    let is_element = matches!(before, Some(b'>' | b':'));
    let characters = characters_of_run(text, start, LINE_CHARACTERS_MIN, RUN_CHARACTERS_MIN);
    if !is_varied(&characters) || characters.len() < SHORT_RUN_CHARACTERS_MIN {
        return None;
    }
    let is_long = characters.len() >= RUN_CHARACTERS_MIN;
    if begins_as_file(&characters) {
        return Some(SHORT_LINE_CHARACTERS_MIN);
    }
    // A program that decodes a file's lines doesn't ask what else is in it.
    let is_line = before == Some(&b'\n') && is_long;
    let counts = is_line || is_text && (is_long || is_element && !characters.iter().all(u8::is_ascii_hexdigit));
    counts.then_some(LINE_CHARACTERS_MIN)
}

/// The first characters of a run, at most so many, whose lines have so many at least.
fn characters_of_run(text: &[u8], start: usize, line_min: usize, most: usize) -> Vec<u8> {
    let mut characters = Vec::with_capacity(most);
    let mut rest = text.get(start..).unwrap_or_default();
    while characters.len() < most {
        let line = rest.iter().take(most - characters.len()).take_while(|byte| digit(**byte).is_some()).count();
        let (line, behind) = rest.split_at_checked(line).unwrap_or_default();
        characters.extend_from_slice(line);
        if line.len() < line_min {
            break;
        }
        let Some(length) = joint(behind.get(..JOINT_BYTES_MAX).unwrap_or(behind)) else { break };
        rest = behind.get(length..).unwrap_or_default();
    }
    characters
}

fn is_varied(characters: &[u8]) -> bool {
    let different = characters.iter().filter_map(|byte| digit(*byte)).fold(0u64, |all, digit| all | 1 << digit);
    different.count_ones() >= DIFFERENT_CHARACTERS_MIN
}

/// How many characters are looked at at once for runs in short lines.
const LINES_BYTES: usize = 64;

/// Where the first run begins, before `end`, whose lines may be short. It counts only if it stands for text or a file, since most prose
/// has the form of one: the first character tells that of most words, and the first three bytes of nearly all.
fn first_run_in_lines(text: &[u8], end: usize) -> Option<usize> {
    let (pieces, rest) = text.as_chunks::<LINES_BYTES>();
    let mut last = [0; LINES_BYTES];
    last.iter_mut().zip(rest).for_each(|(last, byte)| *last = *byte);
    let mut pieces = pieces.iter().chain([&last, &[0; LINES_BYTES]]).map(|piece| (piece, places(piece, is_of_run)));
    let mut here = pieces.next()?;
    for (number, next) in pieces.enumerate() {
        let at = number * LINES_BYTES;
        if at >= end {
            break;
        }
        let ((piece, of_run), (next_piece, next_of_run)) = (std::mem::replace(&mut here, next), next);
        let long_enough = long_enough(of_run, next_of_run);
        if long_enough == 0 {
            continue;
        }
        let (digits, next_digits) = (places(piece, is_digit), places(next_piece, is_digit));
        let before = at.checked_sub(1).and_then(|before| text.get(before)).is_some_and(|before| is_digit(*before));
        // The first digit of at least so many as a short line has.
        let behind = |characters: u32| digits >> characters | next_digits << (u64::BITS - characters);
        let mut starts = long_enough & digits & !(digits << 1 | u64::from(before)) & behind(1) & behind(2) & behind(3);
        while starts != 0 {
            let start = at + starts.trailing_zeros() as usize;
            if start >= end {
                break;
            }
            if begins_file_in_lines(text, start) {
                return Some(start);
            }
            starts &= starts - 1;
        }
    }
    None
}

/// From which characters of a piece of text on, of which a bit for each says whether it may be in a run, there are as many of these as the
/// shortest run has, in this piece and the next.
fn long_enough(of_run: u64, next_of_run: u64) -> u64 {
    const BEYOND: usize = SHORT_RUN_CHARACTERS_MIN - LINES_BYTES;
    let first = u64::MAX.checked_shl(u64::BITS - of_run.leading_ones()).unwrap_or(0);
    // The last from which what is in the next piece is enough; all of that is enough for any.
    let last = match (next_of_run.trailing_ones() as usize).checked_sub(BEYOND) {
        None => 0,
        Some(_) if next_of_run == u64::MAX => u64::MAX,
        Some(last) => u64::MAX >> (LINES_BYTES - 1 - last),
    };
    first & last
}

/// Whether a character is a digit of base64 or may be in a [`joint`].
#[inline(always)]
fn is_of_run(byte: u8) -> bool {
    // From the tab to the line break, and from the space to the digit 9 most.
    let is_joint = byte.wrapping_sub(b'\t') < 5
        || matches!(byte, b' ' | b'"' | b'#' | b'&' | b'\'' | b',' | b'.' | b';' | b'\\' | b'`');
    is_digit(byte) | is_joint
}

/// Where in a piece of text characters are of a kind: a bit for each. Without branches, like [`are_digits`].
#[inline(always)]
fn places(piece: &[u8; LINES_BYTES], is_of_kind: impl Fn(u8) -> bool) -> u64 {
    let mut ones = [0; LINES_BYTES];
    for (one, byte) in ones.iter_mut().zip(piece) {
        *one = u8::from(is_of_kind(*byte));
    }
    bits(&ones)
}

/// The bits that are one of bytes that are 0 or 1. Without branches, like [`are_digits`].
fn bits(ones: &[u8; LINES_BYTES]) -> u64 {
    // Eight of them in one byte: each lands in a bit of its own at the top, and nothing is carried there.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let eights = ones.as_chunks::<8>().0.iter().enumerate();
    eights.fold(0, |bits, (at, eight)| bits | (u64::from_le_bytes(*eight).wrapping_mul(GATHER) >> 56) << (8 * at))
}

/// Whether the first byte of text, or of what begins as files do, may begin with this digit.
fn may_begin_file(character: u8) -> bool {
    static DIGITS: LazyLock<u64> = LazyLock::new(|| {
        let marks = MAGIC.iter().chain(&TEXT_MARKS).filter_map(|magic| magic.first().copied());
        let first = (0..=u8::MAX).filter(is_of_text).chain(marks);
        first.fold(0, |digits, byte| digits | 1 << (byte >> 2))
    });
    digit(character).is_some_and(|digit| *DIGITS >> digit & 1 == 1)
}

/// Whether something of [`MAGIC`] begins with this byte.
fn begins_magic(byte: u8) -> bool {
    static FIRST: LazyLock<[u64; 4]> = LazyLock::new(|| {
        let mut first = [0; 4];
        for byte in MAGIC.iter().filter_map(|magic| magic.first()) {
            if let Some(bits) = first.get_mut(usize::from(byte >> 6)) {
                *bits |= 1 << (byte & 63);
            }
        }
        first
    });
    FIRST.get(usize::from(byte >> 6)).is_some_and(|bits| bits >> (byte & 63) & 1 == 1)
}

/// Whether a run in lines of any length begins so far into a text, by what it stands for.
fn begins_file_in_lines(text: &[u8], start: usize) -> bool {
    let decoded = |characters: &[u8]| {
        let (mut decoder, mut bytes) = (Base64::default(), Vec::new());
        decoder.decode(characters, &mut bytes);
        bytes
    };
    // By hand: most words are asked about, and end here.
    let Some(&[a, b, c, d]) = text.get(start..).and_then(|rest| rest.first_chunk()) else { return false };
    if !may_begin_file(a) {
        return false;
    }
    let (Some(a), Some(b), Some(c), Some(d)) = (digit(a), digit(b), digit(c), digit(d)) else { return false };
    let first = [a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d];
    let begins = |magic: &&[u8]| magic.iter().zip(&first).all(|(magic, byte)| magic == byte);
    let may_begin_magic = begins_magic(first[0]) && MAGIC.iter().any(begins);
    if !may_begin_magic && !is_all_text(&first) {
        return false;
    }
    let characters = characters_of_run(text, start, SHORT_LINE_CHARACTERS_MIN, LOOKED_AT_CHARACTERS);
    if characters.len() < SHORT_RUN_CHARACTERS_MIN || !is_varied(&characters) || !begins_as_file(&characters) {
        return false;
    }
    // Two letters begin many a name: of a program its new header lies in its first 16 MiB, and a ZIP begins with a record.
    match decoded(&characters).as_slice() {
        [b'M', b'Z', rest @ ..] => rest.get(61) == Some(&0),
        [b'P', b'K', one, other, ..] => matches!((one, other), (1, 2) | (3, 4) | (5, 6) | (7, 8)),
        // Words begin with what these two bytes are in base64.
        [0x78, 1 | 0x5e | 0x9c | 0xda, ..] | [0x60, 0xea, ..] => false,
        _ => true,
    }
}

/// Whether base64 stands for text, or for what begins as files do.
fn begins_as_file(characters: &[u8]) -> bool {
    let (mut decoder, mut bytes) = (Base64::default(), Vec::new());
    decoder.decode(characters, &mut bytes);
    // A tape archive begins with a name, behind which the numbers of its owner are.
    let is_tar = bytes.get(100..107).is_some_and(|mode| mode.iter().all(|byte| matches!(byte, b'0'..=b'7')));
    is_tar || is_all_text(&bytes) || MAGIC.iter().any(|magic| bytes.starts_with(magic))
}

fn is_of_text(byte: &u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')
}

/// Whether bytes are text, also in two bytes a character, as some shells take it.
fn is_all_text(bytes: &[u8]) -> bool {
    let bytes = TEXT_MARKS.iter().find_map(|mark| bytes.strip_prefix(*mark)).unwrap_or(bytes);
    bytes.iter().all(is_of_text) || bytes.as_chunks::<2>().0.iter().all(|[low, high]| is_of_text(low) && *high == 0)
}

/// Made once: for a short text making it would take longer than to search.
static ARMOR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"-----BEGIN "));

/// Where the first data begins, not behind `end`, after a line that says so, as those of OpenPGP and PEM do: however short it is, programs that
/// look for the line decode it.
fn first_armored(text: &[u8], end: usize) -> Option<usize> {
    let mut begins = ARMOR.find_iter(text).take_while(|at| *at < end);
    begins.find_map(|at| armored(text, at)).filter(|data| *data <= end)
}

/// Whether armored data goes on through all of this, which is not nothing.
fn is_one_piece(text: &[u8]) -> bool {
    !text.is_empty() && memchr::memmem::find(text, b"-----").is_none()
}

/// Where the data begins after such a line, and those that say more of it.
fn armored(text: &[u8], begin: usize) -> Option<usize> {
    let head = text.get(..begin + SEARCH_AGAIN_BYTES / 2).unwrap_or(text);
    let mut at = begin;
    for _ in 0..=ARMOR_HEADERS_MAX {
        at += memchr(b'\n', head.get(at..)?)? + 1;
        let rest = head.get(at..)?;
        let line = rest.get(..memchr(b'\n', rest).unwrap_or(rest.len()))?.trim_ascii_end();
        let start = line.trim_ascii_start();
        if start.is_empty() || memchr(b':', line).is_some() {
            continue;
        }
        // Else it is what somebody writes about such lines.
        let is_data = !start.starts_with(b"=") && start.iter().all(|byte| digit(*byte).is_some() || *byte == b'=');
        return (is_data && !start.starts_with(b"-----")).then_some(at + line.len() - start.len());
    }
    None
}

/// The first address of a text, and where it begins.
fn first_address(text: &[u8]) -> Option<(usize, Address)> {
    // What lies before a comma is looked at once, since a text may have many colons before it.
    let mut beginning: Option<Beginning> = None;
    for colon in memchr_iter(b':', text) {
        let Some(start) = scheme(text, colon) else { continue };
        if beginning.as_ref().is_none_or(|beginning| beginning.comma <= colon) {
            let comma = memchr(b',', text.get(colon..)?)? + colon;
            beginning = Some(Beginning::new(text, colon, comma));
        }
        let beginning = beginning.as_ref()?;
        if beginning.comma - start <= ADDRESS_BYTES_MAX
            && let Some(address) = beginning.address(text, start, colon)
        {
            return Some((start, address));
        }
    }
    None
}

/// Where the word "data" begins that a colon ends, with what programs take out of it.
fn scheme(text: &[u8], colon: usize) -> Option<usize> {
    let mut end = colon;
    for letter in b"atad" {
        let at = text.get(..end)?.iter().rposition(|byte| !is_taken_out(*byte))?;
        if !text.get(at)?.eq_ignore_ascii_case(letter) {
            return None;
        }
        end = at;
    }
    Some(end)
}

/// Whether programs take a character out of an address, wherever it is, before they read that. Line breaks in what lies between quotes
/// are among these; what lies between none ends there.
pub(crate) fn is_taken_out(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\r' | b'\n')
}

/// What tells whether an address begins with one of the colons before a comma: where what counts lies last before that.
struct Beginning {
    comma: usize,
    semicolon: Option<usize>,
    slash: Option<usize>,
    /// A quote or bracket.
    odd: Option<usize>,
    line_break: Option<usize>,
    /// The semicolon of a parameter that says `base64`.
    base64: Option<usize>,
    /// The last parameter says so, if with escapes.
    ends_in_base64: bool,
}

impl Beginning {
    /// `colon` is the first that counts.
    fn new(text: &[u8], colon: usize, comma: usize) -> Self {
        let start = (colon + 1).max(comma.saturating_sub(ADDRESS_BYTES_MAX));
        let says = text.get(start..comma).unwrap_or_default();
        let last = |counts: fn(&u8) -> bool| says.iter().rposition(counts).map(|at| start + at);
        let semicolon = last(|byte| *byte == b';');
        let odd = last(|byte| matches!(byte, b'"' | b'\'' | b'<' | b'>' | b'(' | b')' | b'{' | b'}'));
        let line_break = last(|byte| matches!(byte, b'\r' | b'\n'));
        let (mut base64, mut at) = (None, start);
        for part in says.split(|byte| *byte == b';') {
            if at > start && part.trim_ascii().eq_ignore_ascii_case(b"base64") {
                base64 = Some(at - 1);
            }
            at += part.len() + 1;
        }
        let last_part = semicolon.and_then(|at| text.get(at + 1..comma)).unwrap_or_default();
        let last_part: Vec<u8> = last_part.iter().copied().filter(|byte| !is_taken_out(*byte)).collect();
        let word: Vec<u8> =
            unescaped_address(&last_part).into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let ends_in_base64 = word.eq_ignore_ascii_case(b"base64");
        Self { comma, semicolon, slash: last(|byte| *byte == b'/'), odd, line_break, base64, ends_in_base64 }
    }

    /// The address that begins with "data" at `start` and goes on behind a colon, if it is one.
    fn address(&self, text: &[u8], start: usize, colon: usize) -> Option<Address> {
        let comma = self.comma;
        let says = text.get(colon + 1..comma)?;
        let next = text.get(comma + 1).copied();
        // Programs pass over what lies before an address.
        let before = text.get(..start)?.iter().rev().copied().find(|byte| *byte > b' ');
        let is_quoted = matches!(before, Some(b'"' | b'\'' | b'`'));
        let is_behind = |at: Option<usize>| at > Some(colon);
        let is_plain = !is_behind(self.odd) && (is_quoted || !is_behind(self.line_break));
        let is_base64 = self.ends_in_base64 && is_behind(self.semicolon) || is_plain && is_behind(self.base64);
        // "data:" is a common word in front of a colon; an address says what it is, or begins like one.
        let begins_data =
            next.is_some_and(|next| digit(next).is_some() || matches!(next, b'%' | b' ' | b'\t' | b'\r' | b'\n'));
        let is_empty = says.iter().all(|byte| is_taken_out(*byte));
        let is_address = match (is_base64, is_plain) {
            (true, true) => true,
            (true, false) => begins_data,
            (false, plain) => plain && (is_behind(self.slash) || is_empty && (next == Some(b'%') || is_quoted)),
        };
        if !is_address {
            return None;
        }
        let ended_by = match before {
            Some(b'(') => Some(b')'),
            quote => quote.filter(|_| is_quoted),
        };
        let extension = extension(says);
        Some(Address { length: comma + 1 - start, is_base64, extension, ended_by })
    }
}

/// The extension for what an address says that it is.
fn extension(says: &[u8]) -> String {
    let kind = says.split(|byte| *byte == b';').next().unwrap_or_default();
    let subtype = kind.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let word: String =
        subtype.iter().take_while(|byte| byte.is_ascii_alphanumeric()).take(8).copied().map(char::from).collect();
    if word.is_empty() { word } else { format!(".{word}") }
}

/// Text of an address without its escapes.
fn unescaped_address(text: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::new(), text);
    while let Some((first, behind)) = rest.split_first() {
        let escaped = escaped(rest);
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { rest.get(3..).unwrap_or_default() } else { behind };
    }
    plain
}

/// The byte that an escape of an address stands for: `%2B`.
pub(crate) fn escaped(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    Some(hex_digit(*high)? << 4 | hex_digit(*low)?)
}

/// The same with what programs take out of an address, and how long it is.
pub(crate) fn escaped_in_lines(text: &[u8]) -> Option<(u8, usize)> {
    let mut left = text.iter().enumerate().filter(|(_, byte)| !is_taken_out(**byte));
    let ((_, mark), (_, high), (last, low)) = (left.next()?, left.next()?, left.next()?);
    Some((escaped(&[*mark, *high, *low])?, last + 1))
}

/// What may lie between two pieces of one run: space and line breaks, written out or escaped, and what puts two strings of a script
/// together. Tells how long it is; none if the run is not going on.
pub(crate) fn joint(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut quotes = 0;
    let mut joins = false;
    while let Some(byte) = text.get(at) {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | 11 | 12 => at += 1,
            b'\\' => match text.get(at + 1) {
                Some(b'n' | b'r' | b't' | b'\n' | b'\r') => at += 2,
                Some(b'/') => return Some(at + 1),
                _ => return None,
            },
            b'&' if text.get(at..at + 2) == Some(b"&#") => {
                let end = text.get(at..)?.iter().take(7).position(|byte| *byte == b';')?;
                at += end + 1;
            }
            b'"' | b'\'' | b'`' => {
                quotes += 1;
                at += 1;
            }
            // Visual Basic continues lines with an underscore.
            b'+' | b'&' | b'.' | b'_' | b',' if quotes == 1 => {
                joins = true;
                at += 1;
            }
            _ => {
                let goes_on = digit(*byte).is_some() && (quotes == 0 || quotes == 2 && joins);
                // The end of what is between lines that say what it is.
                let goes_on = goes_on && !text.get(at..).is_some_and(|rest| rest.starts_with(b"-----"));
                return (goes_on && at > 0).then_some(at);
            }
        }
    }
    None
}

/// The character of ASCII that an escape of HTML, JSON or a script stands for, and its length: `&#65;`, `&colon;`, `\\u0041`,
/// `\\u{41}`, `\\U00000041`, `\\x41`, `\\101`.
pub(crate) fn character(text: &[u8]) -> Option<(u8, usize)> {
    const NAMES: [(&[u8], u8); 14] = [
        (b"colon;", b':'),
        (b"comma;", b','),
        (b"semi;", b';'),
        (b"sol;", b'/'),
        (b"plus;", b'+'),
        (b"equals;", b'='),
        (b"Tab;", b'\t'),
        (b"NewLine;", b'\n'),
        (b"percnt;", b'%'),
        (b"period;", b'.'),
        (b"lowbar;", b'_'),
        (b"num;", b'#'),
        (b"quest;", b'?'),
        (b"amp;", b'&'),
    ];
    let number = |digits: &[u8], radix: u32| -> Option<u8> {
        let value = digits.iter().try_fold(0u32, |value, digit| {
            Some(value.saturating_mul(radix).saturating_add(char::from(*digit).to_digit(radix)?))
        })?;
        u8::try_from(value).ok().filter(u8::is_ascii)
    };
    match text {
        [b'&', b'#', rest @ ..] => {
            let (radix, skip) = if matches!(rest.first(), Some(b'x' | b'X')) { (16, 1) } else { (10, 0) };
            let rest = rest.get(skip..ESCAPE_BYTES_MAX - 3).or_else(|| rest.get(skip..))?;
            let digits = rest.iter().take_while(|byte| char::from(**byte).is_digit(radix)).count();
            let byte = number(rest.get(..digits).filter(|digits| !digits.is_empty())?, radix)?;
            Some((byte, 2 + skip + digits + usize::from(rest.get(digits) == Some(&b';'))))
        }
        [b'&', rest @ ..] => {
            let (name, byte) = NAMES.iter().find(|(name, _)| rest.starts_with(name))?;
            Some((*byte, 1 + name.len()))
        }
        [b'\\', b'u', b'{', rest @ ..] => {
            let rest = rest.get(..ESCAPE_BYTES_MAX - 3).unwrap_or(rest);
            let digits = memchr(b'}', rest).filter(|digits| *digits > 0)?;
            Some((number(rest.get(..digits)?, 16)?, 3 + digits + 1))
        }
        [b'\\', b'u', rest @ ..] => Some((number(rest.get(..4)?, 16)?, 6)),
        [b'\\', b'U', rest @ ..] => Some((number(rest.get(..8)?, 16)?, 10)),
        [b'\\', b'x', rest @ ..] => Some((number(rest.get(..2)?, 16)?, 4)),
        [b'\\', rest @ ..] => {
            let most = if matches!(rest.first(), Some(b'0'..=b'3')) { 3 } else { 2 };
            let digits = rest.iter().take(most).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
            // Short ones are mostly something else: what a pattern found, or the beginning of a name.
            let byte = number(rest.get(..digits)?, 8).filter(|byte| matches!(byte, b'\t'..=b'\r' | b' '..=b'~'))?;
            Some((byte, 1 + digits))
        }
        _ => None,
    }
}

/// The escapes of a text that are decoded: where, what for, and how long.
pub(crate) fn characters(text: &[u8]) -> impl Iterator<Item = (usize, u8, usize)> {
    memchr2_iter(b'&', b'\\', text).filter_map(|at| {
        let (byte, length) = character(text.get(at..)?)?;
        Some((at, byte, length))
    })
}

/// Made once: for a short text making it would take longer than to search.
static BEGIN: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"begin"));

/// Whether a text has the word that a file of uuencode or yEnc begins with.
pub(crate) fn has_begin(text: &[u8]) -> bool {
    BEGIN.find(text).is_some()
}

/// Whether a file of uuencode or yEnc begins somewhere in a text.
pub(crate) fn begins_file_of_lines(text: &[u8]) -> (bool, bool) {
    let (mut is_uuencode, mut is_yenc) = (false, false);
    for word in BEGIN.find_iter(text) {
        let before = text.get(..word).unwrap_or_default();
        let (before, is_y) = before.strip_suffix(b"=y").map_or((before, false), |before| (before, true));
        if !matches!(before.last(), None | Some(b'\n' | b'\r')) {
            continue;
        }
        let rest = text.get(before.len()..).unwrap_or_default();
        let rest = rest.get(..LINE_BYTES_MAX).unwrap_or(rest);
        let (line, next) = rest.split_at_checked(memchr(b'\n', rest).unwrap_or(rest.len())).unwrap_or_default();
        if is_y {
            is_yenc |=
                line.starts_with(b"=ybegin ") && find(line, b" name=").is_some() && find(line, b"size=").is_some();
        } else {
            let next = next.strip_prefix(b"\n").unwrap_or(next);
            is_uuencode |=
                transfer::uu_begin(line).is_some_and(|begin| begin.is_sure || begin.is_base64 || is_uuencoded(next));
        }
        if is_uuencode && is_yenc {
            break;
        }
    }
    (is_uuencode, is_yenc)
}

fn is_uuencoded(text: &[u8]) -> bool {
    transfer::is_uuencoded(text.split(|byte| *byte == b'\n').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn digits_are_the_same_by_arithmetic_and_by_table() {
        for byte in 0..=u8::MAX {
            assert_eq!(is_digit(byte), digit(byte).is_some(), "{byte}");
        }
    }

    #[test]
    fn a_run_is_found_wherever_it_begins() {
        let run: Vec<u8> = b"VGhpcyBpcyBhIHRlc3Qgb2YgYSBydW4u".repeat(6);
        for length in [RUN_CHARACTERS_MIN, RUN_CHARACTERS_MIN + 1, run.len()] {
            let run = run.get(..length).unwrap();
            for before in 0..200 {
                for behind in [0, 1, 17, 40] {
                    let text =
                        [&b"a word ".repeat(40)[..before], b"\n", run, b"\n", &b" word".repeat(9)[..behind]].concat();
                    assert_eq!(first_run(&text, text.len(), true), Some((before + 1, 4)), "{before} {length} {behind}");
                    assert_eq!(first_run(&text, before + 1, true), None, "{before} {length} {behind}");
                }
            }
        }
        let lines = [b"\n".as_slice(), &run[..31], b"\n", &run[..31], b"\n"].concat().repeat(9);
        assert_eq!(first_run(&lines, lines.len(), true), None, "lines that are too short");
    }

    #[test]
    fn a_run_in_short_lines_is_found_wherever_it_begins() {
        let run = b"VGhpcyBpcyBhIHRlc3Qgb2YgYSBydW4u".repeat(3);
        for line in [4, 5, 7, 20, 31, 60] {
            for between in [" ", "\r\n ", "\" + \"", "&#13;\n", &" ".repeat(JOINT_BYTES_MAX - 1)] {
                let lines = run.get(..SHORT_RUN_CHARACTERS_MIN).unwrap().chunks(line).collect::<Vec<_>>();
                let lines = lines.join(between.as_bytes());
                for before in 0..70 {
                    let text = [&b"a word: ".repeat(10)[..before], b"(", &lines, b")."].concat();
                    assert_eq!(first_run_in_lines(&text, text.len()), Some(before + 1), "{before} {line} {between}");
                    assert_eq!(first_run_in_lines(&text, before + 1), None, "{before} {line} {between}");
                }
            }
        }
        let three = run.chunks(3).collect::<Vec<_>>().join(&b" "[..]);
        assert_eq!(first_run_in_lines(&three, three.len()), None, "lines that are too short");
    }

    #[test]
    fn a_run_in_short_lines_is_found_where_it_is_by_looking_everywhere() {
        let everywhere = |text: &[u8], end: usize| {
            let is_start = |at: &usize| *at == 0 || !is_digit(text[at - 1]);
            (0..end.min(text.len())).filter(is_start).find(|at| begins_file_in_lines(text, *at))
        };
        let run = b"VGhpcyBpcyBhIHRlc3Qgb2YgYSBydW4u".repeat(4);
        let between: [&[u8]; 10] = [b" ", b"\n", b"  \r\n", b"\" + \"", b",", b"(", b": ", b"", b"&#13;", b"\\n"];
        let (mut random, mut found) = (7u64, 0);
        for _ in 0..4000 {
            let mut next = |below: usize| {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (random >> 33) as usize % below
            };
            let mut text = Vec::new();
            // Mostly what joins lines, else hardly any run would go on.
            let odd = 1 + next(400);
            for _ in 0..20 + next(60) {
                let (start, length) = (next(run.len() - 30), 4 + next(26));
                text.extend_from_slice(&run[start / 4 * 4..][..length]);
                text.extend_from_slice(between[if next(odd) == 0 { next(between.len()) } else { next(4) }]);
            }
            let end = if next(2) == 0 { text.len() } else { next(text.len() + 1) };
            let at = everywhere(&text, end);
            assert_eq!(first_run_in_lines(&text, end), at, "{}", String::from_utf8_lossy(&text));
            found += usize::from(at.is_some());
        }
        assert!((200..3800).contains(&found), "{found}");
    }

    #[test]
    fn armored_data_counts_however_short_it_is() {
        for headers in ["", "Version: 1\nComment: data: x\n", "\r\n", "Proc-Type: 4,ENCRYPTED\n \n"] {
            for data in ["QUJD", "QUJDREVG\nRw==\n=abcd", "  QUJDREVG"] {
                let text = format!("words\n-----BEGIN X-----\n{headers}{data}\n-----END X-----\n");
                let at = text.find("QUJD").unwrap();
                assert_eq!(first_armored(text.as_bytes(), text.len()), Some(at), "{text}");
                assert_eq!(first_armored(text.as_bytes(), at - 1), None);
            }
        }
        for text in [
            "-----BEGIN X-----",
            "-----BEGIN X-----\n...\n-----END X-----\n",
            "-----BEGIN X-----\n-----END X-----\n",
            "behind -----BEGIN X-----\nthere are letters\n",
            "printf(\"-----BEGIN %s-----\\n\", name);\nreturn;\n",
        ] {
            assert_eq!(first_armored(text.as_bytes(), text.len()), None, "{text}");
        }
        let begun = Instant::now();
        for text in ["-----BEGIN ", "-----BEGIN :\n"] {
            assert!(first_armored(text.repeat(60_000).as_bytes(), usize::MAX).is_none());
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[test]
    fn what_stands_before_armored_lines_hides_none() {
        let run = "TVqQAAMAAAAEAAAA//8AALgAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".repeat(4);
        for before in ["A\n", ""] {
            let text = format!("-----BEGIN X-----\n{before}{run}\n-----END X-----\n");
            let Found::Run(at, _) = next_data(text.as_bytes(), true, true) else { panic!("nothing in {text}") };
            assert_eq!(text.get(at..at + 4), Some("TVqQ"), "{text}");
        }
    }

    #[test]
    fn words_are_no_runs() {
        let prose = "It is a truth universally acknowledged that a single man in possession of a good fortune ";
        let code = "int value = other, another; \"first\", 'second' # comment\n";
        let names = "TVqQAAMA TVrueNorthStrong UEsAnd UEsDetailsOfOther VGhpcyBp aGVsbG8gd29y\n";
        for text in [prose, code, names, "VVVV ", "48656c6c 6f20776f\n", "acgtacgtac gtacgtgtca\n", "-----\n"] {
            let text = text.repeat(1000);
            assert_eq!(first_run_in_lines(text.as_bytes(), text.len()), None, "{text}");
        }
    }

    #[test]
    fn what_seems_to_begin_everywhere_costs_little() {
        // Each word begins what might be text, to its last line but one.
        let line = "VVVV VVVV VGhp cyBp cyBh IHRl c3Qg b2Yg YSBy dW4u VGhp cyBp cyBh IHRl c3Qg b2Yg YSBy dW4u VVVV!\n";
        let text = [line, "VVVV                            "].map(|text| text.repeat(20_000)).concat();
        let begun = Instant::now();
        assert_eq!(first_run_in_lines(text.as_bytes(), text.len()), None);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[test]
    fn strings_go_on_in_many_ways() {
        for text in ["\r\n  A", "\" +\n\"A", "' & _\r\n '/", "\\nA", "&#13;\nA", "\\/", "\n--A"] {
            assert!(joint(text.as_bytes()).is_some(), "{text:?}");
        }
        for text in ["", "A", "\"A", ",\"A", "\"\"A", " <", "\" + B", "\\x", "\n-----END X-----"] {
            assert!(joint(text.as_bytes()).is_none(), "{text:?}");
        }
    }

    #[test]
    fn addresses_say_what_they_are() {
        let address =
            |text: &str| first_address(text.as_bytes()).map(|(at, address)| (at, address.length, address.is_base64));
        assert_eq!(address("data:image/svg+xml;charset=x;base64,QQ"), Some((0, 36, true)));
        assert_eq!(address("(data:a/b;x=\"y\";%62ASE64,QQ"), Some((1, 24, true)));
        assert_eq!(address("data: 1, 2").or(address("data:text/plain")).or(address("{data:,a}")), None);
        assert_eq!(address("data:,x data:text/html,a"), Some((8, 15, false)));
    }

    #[test]
    fn many_beginnings_of_addresses_cost_as_much_as_few() {
        // Looked at anew for each colon, these would be some gigabytes.
        let text = ["data:".repeat(800), "\",".to_owned()].concat().repeat(1000);
        let begun = Instant::now();
        assert!(first_address(text.as_bytes()).is_none());
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        // Of several colons before a comma the first counts with which it is an address.
        let text = b"data:\"data:a/b;data:x;base64,QQ";
        assert_eq!(first_address(text).map(|(at, address)| (at, address.length)), Some((0, 29)));
        let text = b"data:\"data:a/b;data:x,\"QQ";
        assert_eq!(first_address(text).map(|(at, address)| (at, address.extension)), Some((6, ".b".to_owned())));
    }

    #[test]
    fn long_beginnings_are_told_where_they_are_addresses() {
        let told = |text: String| {
            let found = long_beginnings(text.as_bytes());
            (found.unfinished.map(|(start, _)| start), found.is_too_long)
        };
        let (some, many) = ("x".repeat(20_000), "x".repeat(40_000));
        for before in ["\"", "'", "(", "=", "= "] {
            assert_eq!(told(format!("{before}data:a/b;{some}")), (Some(0), false), "{before}");
            assert_eq!(told(format!("{before}data:a/b;{some},")), (None, false), "{before}");
            assert_eq!(told(format!("{before}data:a/b;{many}")), (None, true), "{before}");
            assert_eq!(told(format!("{before}data:a/b;{many},")), (None, true), "{before}");
        }
        assert_eq!(told(format!("href=\n\"\n data:a/b;{many},")), (None, true));
        // What a program prints, and what is written about data.
        for text in [
            format!("  version: \"1.16.0\"\ndata:\n  keystore: {many}"),
            format!("\"data:\" {many}"),
            format!("the data: {many}"),
            format!("(data: see below) {many}"),
            format!("x =data: {many}"),
        ] {
            assert_eq!(told(text), (None, false));
        }
        let begun = Instant::now();
        for text in ["(data:", "\"data:", "=data:", "'data:(data:`data:"] {
            long_beginnings(text.repeat(1_000_000).as_bytes());
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }

    #[test]
    fn escapes_stand_for_characters() {
        let zeros = format!("\\u{{{}41}}", "0".repeat(50));
        for text in
            ["&#65;", "&#0065", "&#x41;", "\\u0041", "\\u{41}", "\\u{000041}", &zeros, "\\U00000041", "\\x41", "\\101"]
        {
            assert_eq!(character(text.as_bytes()), Some((b'A', text.len())), "{text}");
        }
        assert_eq!(character(b"&colon;//"), Some((b':', 7)));
        // As many digits as make a character.
        assert_eq!(character(b"\\1277"), Some((b'W', 4)));
        assert_eq!(character(b"\\607"), Some((b'0', 3)));
        assert_eq!(character(b"\\53A"), Some((b'+', 3)));
        for text in [
            "&nbsp;",
            "&#228;",
            "&#;",
            "\\u00e4",
            "\\u{e4}",
            "\\u{}",
            "\\u{41",
            "\\Users",
            "\\n",
            "\\1",
            "\\0",
            "\\377",
            "&",
            "&#99999999999999999999",
        ] {
            assert_eq!(character(text.as_bytes()), None, "{text}");
        }
    }
}
