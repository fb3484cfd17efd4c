//! Text with files in it: web pages and style sheets with `data:` addresses, scripts with long strings of base64, XML with binary data
//! (flat OpenDocument, Word of 2003, Flat OPC), calendars and address books with attachments. Formats: RFC 2397, RFC 4648.
//!
//! Any text may be such a file, so a text is one if it has a `data:` address or a run of base64 anywhere, or if it is markup. It counts
//! only if the file is nothing else, and then other files are searched as well: what opens them passes over odd characters. Short runs are
//! left, and those in short lines, unless they stand for text or for what begins as files do: they are hashes, names and prose. Strings that a script puts together from
//! pieces count as one. Text in UTF-16 is the business of [`crate::utf16`].
//!
//! Characters may be written as escapes of HTML or of a script. Such a text is read a second time with these decoded, and what then has
//! one of them in it comes out as well.
//!
//! An address in quotes may have line breaks, which browsers take out; the lines behind the first are searched for themselves as well.
//!
//! Cut inside a string a text is complete, since text doesn't say where it ends; a `data:` address that nothing ends is cut off.
//!
//! An OpenDocument file under a password is a ZIP archive with a manifest that says so: the manifest is told as protected.

use std::collections::BTreeSet;
use std::io::{self, Read, SeekFrom};
use std::sync::LazyLock;

use memchr::memmem::Finder;
use memchr::{memchr, memrchr};

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, hand_out, read_full};
use crate::encoded::{
    self, Address, ESCAPE_BYTES_MAX, Found, JOINT_BYTES_MAX, LINE_CHARACTERS_MIN, SEARCH_AGAIN_BYTES, TOLD_BY_BYTES,
    begins_file_of_lines, characters, escaped, escaped_in_lines, is_taken_out, is_text, joint, long_beginnings,
    next_data, searched_until,
};
use crate::fields::{find, le32};
use crate::format::{CLAIMS_MAX, Claim, Claims, Format, HEAD_BYTES, Probe};
use crate::outcome::{ExtractionOutcome, Protection};
use crate::pdf;
use crate::transfer::{Base64, digit};

/// How much of the text is held.
const WINDOW_BYTES: usize = 64 * 1024;
/// How much is looked at of what may be an archive.
const HEADER_BYTES_MAX: usize = 640;
/// How many places are looked at that may be archives.
const CANDIDATES_MAX: usize = 4096;
/// How much of a manifest is looked at.
const MANIFEST_BYTES_MAX: usize = 60 * 1024;

/// Text with files in it.
pub(crate) static FORMAT: Format = Format {
    name: "text",
    description: "Plain Text",
    mime: "text/plain",
    extension: "txt",
    category: "T",
    beside: &[],
    probe,
    extractor: &Text,
};

/// Only what is seen at once: the rest of a file is searched if nothing claims it, see [`search`].
fn probe(probe: &mut Probe<'_>) -> io::Result<Claims> {
    let is_text = is_text(probe.head);
    if !is_text {
        return Ok(Vec::new());
    }
    let head = probe.head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(probe.head).trim_ascii_start();
    let markup = matches!(head, [b'<', b'!' | b'?' | b'a'..=b'z' | b'A'..=b'Z', ..]);
    let has_data = |text: &[u8]| !matches!(next_data(text, true, is_text), Found::Nothing(_));
    let is_one = markup || has_data(probe.head) || !probe.is_short() && has_data(probe.tail);
    probe.head_is_bare = !is_one;
    Ok(if is_one { vec![Claim::Inside(0)] } else { Vec::new() })
}

/// What a file that is no container holds as text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Hidden {
    pub(crate) data: bool,
    pub(crate) uuencode: bool,
    pub(crate) yenc: bool,
    /// Objects of a PDF.
    pub(crate) pdf: bool,
    /// Archives that programs find in it, where, and by their format's name.
    pub(crate) archives: Vec<(u64, &'static str)>,
    /// It has more that looks like an archive than was looked into.
    pub(crate) has_more: bool,
    /// A `data:` address in it says more of itself than is read.
    pub(crate) has_long_address: bool,
}

/// Searches all of a file. Its head, the first [`HEAD_BYTES`], may be text that was searched for data in vain.
pub(crate) fn search(input: &mut dyn ReadSeek, head_is_bare: bool) -> io::Result<Hidden> {
    let mut search = Search::new(head_is_bare);
    input.seek(SeekFrom::Start(0))?;
    search.all(input)?;
    search.end(input)
}

/// Whether a text that can be read once only holds files as text does.
pub(crate) fn holds_files(input: &mut dyn Read) -> io::Result<bool> {
    let mut search = Search::new(false);
    search.all(input)?;
    let hidden = search.hidden;
    Ok(hidden.data || hidden.uuencode || hidden.yenc)
}

/// The same as [`search`] for a file in memory.
pub(crate) fn search_content(content: &[u8], input: &mut dyn ReadSeek, head_is_bare: bool) -> io::Result<Hidden> {
    let mut search = Search::new(head_is_bare);
    let mut rest = content;
    while let Some(window) = rest.get(..WINDOW_BYTES) {
        rest = rest.get(search.window(window)..).unwrap_or_default();
    }
    search.window(rest);
    search.end(input)
}

// The first window is the head.
const _: () = assert!(WINDOW_BYTES == HEAD_BYTES);

/// Whether a file has, anywhere, what a browser takes for a script or an element with an attribute: others do nothing.
pub(crate) fn has_markup(input: &mut dyn ReadSeek) -> io::Result<bool> {
    any_window(input, WINDOW_BYTES / 2, |text| {
        // Where the next attribute's sign or the element's end is.
        let mut next = 0;
        memchr::memchr_iter(b'<', text).any(|at| {
            let name = text.get(at + 1..).unwrap_or_default();
            if next <= at {
                next = memchr::memchr2(b'=', b'>', name).map_or(text.len(), |end| at + 1 + end);
            }
            let is_script = name.get(..6).is_some_and(|name| name.eq_ignore_ascii_case(b"script"));
            name.first().is_some_and(u8::is_ascii_alphabetic) && (is_script || text.get(next) == Some(&b'='))
        })
    })
}

/// Whether a file has a `data:` address, anywhere.
pub(crate) fn has_address(input: &mut dyn ReadSeek) -> io::Result<bool> {
    let mut plain = Vec::new();
    any_window(input, WINDOW_BYTES / 2, |text| {
        if encoded::has_address(text) || characters(text).next().is_none() {
            return encoded::has_address(text);
        }
        plain.clear();
        unescape(text, text.len(), |part, _| plain.extend_from_slice(part));
        encoded::has_address(&plain)
    })
}

/// Whether one of a file's windows, each of which begins with so many bytes of the one before it, is as is asked.
pub(crate) fn any_window(
    input: &mut dyn ReadSeek,
    overlap: usize,
    mut is_so: impl FnMut(&[u8]) -> bool,
) -> io::Result<bool> {
    input.seek(SeekFrom::Start(0))?;
    let mut bytes = vec![0; WINDOW_BYTES];
    let mut kept = 0;
    loop {
        let filled = kept + read_full(input, bytes.get_mut(kept..).unwrap_or_default())?;
        if is_so(bytes.get(..filled).unwrap_or_default()) {
            return Ok(true);
        }
        if filled < bytes.len() {
            return Ok(false);
        }
        bytes.copy_within(filled - overlap.., 0);
        kept = overlap;
    }
}

/// A search, window by window.
struct Search {
    hidden: Hidden,
    plain: Vec<u8>,
    is_text: Option<bool>,
    is_script: bool,
    /// All was text so far.
    is_all_text: bool,
    /// In the next window no data lies, but for what is written as escapes.
    is_bare: bool,
    /// Where the next window begins in the file.
    start: u64,
    /// What looks like archives.
    candidates: BTreeSet<(u64, &'static str)>,
}

impl Search {
    fn new(head_is_bare: bool) -> Self {
        let (hidden, plain) = (Hidden::default(), Vec::new());
        Self {
            hidden,
            plain,
            is_text: None,
            is_script: false,
            is_all_text: true,
            is_bare: head_is_bare,
            start: 0,
            candidates: BTreeSet::new(),
        }
    }

    /// Searches what is read.
    fn all(&mut self, input: &mut dyn Read) -> io::Result<()> {
        let mut bytes = vec![0; WINDOW_BYTES];
        let mut kept = 0;
        loop {
            let filled = kept + read_full(input, bytes.get_mut(kept..).unwrap_or_default())?;
            let next = self.window(bytes.get(..filled).unwrap_or_default());
            if filled < bytes.len() {
                return Ok(());
            }
            bytes.copy_within(next..filled, 0);
            kept = filled - next;
        }
    }

    /// Searches the next window. Tells from where in it on it is searched again with what follows.
    fn window(&mut self, text: &[u8]) -> usize {
        if self.is_text.is_none() {
            self.is_script = text.starts_with(b"#!");
        }
        let is_text = *self.is_text.get_or_insert_with(|| encoded::is_text(text));
        if self.is_all_text && !self.is_script {
            self.archive_behind_text(text);
        }
        let hidden = &mut self.hidden;
        let has_data = |text: &[u8]| !matches!(next_data(text, true, is_text), Found::Nothing(_));
        hidden.data = hidden.data || !std::mem::take(&mut self.is_bare) && has_data(text);
        if !hidden.data && characters(text).next().is_some() {
            self.plain.clear();
            unescape(text, text.len(), |part, _| self.plain.extend_from_slice(part));
            hidden.data = has_data(&self.plain);
            hidden.has_long_address |= long_beginnings(&self.plain).goes_on_for(SEARCH_AGAIN_BYTES);
        }
        let (uuencode, yenc) = begins_file_of_lines(text);
        hidden.uuencode |= uuencode;
        hidden.yenc |= yenc;
        hidden.pdf = hidden.pdf || pdf::has_objects(text, is_text);
        for (name, at) in archives(text, self.is_script) {
            let header = text.get(at..).unwrap_or_default();
            if header.len() >= HEADER_BYTES_MAX && !may_begin(name, header) {
                continue;
            }
            if self.candidates.len() < CANDIDATES_MAX {
                self.candidates.insert((self.start + at as u64, name));
            } else {
                hidden.has_more = true;
            }
        }
        hidden.has_long_address |= long_beginnings(text).is_too_long();
        let next = searched_until(text);
        self.start += next as u64;
        next
    }

    /// Notes the archive that begins where the text ends: a shell runs a script without a mark as well.
    fn archive_behind_text(&mut self, text: &[u8]) {
        let Some(end) = end_of_text(text) else { return };
        if text.len() == WINDOW_BYTES && end + SEARCH_AGAIN_BYTES > text.len() {
            // It is seen again, with what follows.
            return;
        }
        self.is_all_text = false;
        // The line break before the archive belongs to the script.
        let Some(line_break) = text.get(..end).and_then(|text| memrchr(b'\n', text)) else { return };
        let begins = |(name, magic, anywhere): &(&'static str, &[u8], bool)| {
            let at = if *name == "tar" { line_break + 1 + TAR_MAGIC_AT } else { line_break };
            let is_one = !anywhere && text.get(at..).is_some_and(|rest| rest.starts_with(magic));
            is_one.then_some((self.start + line_break as u64 + 1, *name))
        };
        self.candidates.extend(ARCHIVES.iter().filter_map(begins));
    }

    fn end(self, input: &mut dyn ReadSeek) -> io::Result<Hidden> {
        Ok(Hidden { archives: confirmed(input, self.candidates)?, ..self.hidden })
    }
}

/// Where in a piece of text the first byte lies that is none of text.
fn end_of_text(text: &[u8]) -> Option<usize> {
    let is_control = |byte: &u8| matches!(byte, 0..=8 | 14..=26 | 28..=31);
    // In pieces, so that many are asked about by each instruction.
    let piece = text.chunks(128).position(|piece| piece.iter().fold(false, |any, byte| any | is_control(byte)))?;
    text.iter().skip(piece * 128).position(is_control).map(|at| piece * 128 + at)
}

/// What an archive begins with that programs look for, and whether they look for it anywhere, or behind a script only.
const ARCHIVES: [(&str, &[u8], bool); 15] = [
    ("7z", b"7z\xbc\xaf\x27\x1c", true),
    ("rar", b"Rar!\x1a\x07", true),
    ("cab", b"MSCF", true),
    ("zip", b"PK\x05\x06", true),
    ("gzip", b"\n\x1f\x8b\x08", false),
    ("bzip2", b"\nBZh", false),
    ("xz", b"\n\xfd7zXZ\0", false),
    ("zstd", b"\n\x28\xb5\x2f\xfd", false),
    ("lz4", b"\n\x04\x22\x4d\x18", false),
    ("lz4", b"\n\x02\x21\x4c\x18", false),
    ("lzip", b"\nLZIP\x01", false),
    ("lzma", b"\n\x5d\0\0", false),
    ("compress", b"\n\x1f\x9d", false),
    ("cpio", b"\n07070", false),
    ("tar", b"ustar", false),
];
/// Where in a tape archive's header its magic number lies.
const TAR_MAGIC_AT: usize = 257;

/// Made once: for a short text making them would take longer than to search.
static ARCHIVE_FINDERS: LazyLock<[Finder<'static>; ARCHIVES.len()]> =
    LazyLock::new(|| ARCHIVES.map(|(_, magic, _)| Finder::new(magic)));

/// Where archives begin, or end, in a part of a file.
fn archives(text: &[u8], is_script: bool) -> impl Iterator<Item = (&'static str, usize)> {
    let formats = ARCHIVES.into_iter().zip(ARCHIVE_FINDERS.iter());
    let formats = formats.filter(move |((_, _, anywhere), _)| is_script || *anywhere);
    formats.flat_map(move |((name, magic, anywhere), finder)| {
        // The line break before it belongs to the script.
        let skip = usize::from(magic.starts_with(b"\n"));
        let most = if anywhere { usize::MAX } else { 1 };
        let start = move |at: usize| if name == "tar" { at.checked_sub(TAR_MAGIC_AT) } else { Some(at + skip) };
        // Of the first ones in a script only those count that are more than a word.
        let is_one = move |at: &usize| !is_weak(name) || may_begin(name, text.get(*at..).unwrap_or_default());
        finder.find_iter(text).filter_map(start).filter(is_one).map(move |at| (name, at)).take(most)
    })
}

/// Whether what an archive of this format begins with may be anything else as well.
fn is_weak(name: &str) -> bool {
    matches!(name, "lzma" | "compress" | "cpio" | "tar")
}

/// Whether an archive may begin with this header, all of which is there.
fn may_begin(name: &str, header: &[u8]) -> bool {
    match name {
        "rar" => crate::rar::begins_archive(header),
        "cab" => crate::cab::begins_cabinet(header),
        // The header has a checksum.
        "7z" => header.get(12..32).map(crc32fast::hash) == le32(header, 8),
        "gzip" => header.get(3).is_some_and(|flags| flags & 0xe0 == 0),
        "bzip2" => header.get(4..10) == Some(b"1AY&SY"),
        // Its dictionary has a length that a program chose, and what is encoded begins with a zero.
        "lzma" => {
            let is_length = |bytes: u32| bytes.count_ones() <= 2 && bytes >= 1 << 12;
            le32(header, 1).is_some_and(is_length) && header.get(13) == Some(&0)
        }
        "compress" => header.get(2).is_some_and(|flags| flags & 0x60 == 0 && matches!(flags & 0x1f, 9..=16)),
        "cpio" => crate::cpio::begins_archive(header),
        "tar" => header.first_chunk().is_some_and(crate::tar::has_magic),
        _ => true,
    }
}

/// Those that are archives by more than a word, from the first on.
fn confirmed(
    input: &mut dyn ReadSeek,
    candidates: impl IntoIterator<Item = (u64, &'static str)>,
) -> io::Result<Vec<(u64, &'static str)>> {
    let mut confirmed: Vec<(u64, &'static str)> = Vec::new();
    for (offset, name) in candidates {
        // One more than counts shows that there are too many.
        if confirmed.len() > CLAIMS_MAX {
            break;
        }
        let mut header = [0; HEADER_BYTES_MAX];
        input.seek(SeekFrom::Start(offset))?;
        let read = read_full(input, &mut header)?;
        let header = header.get(..read).unwrap_or_default();
        match name {
            _ if !may_begin(name, header) => {}
            "7z" | "rar" | "cab" => confirmed.push((offset, name)),
            "zip" if confirmed.contains(&(0, "zip")) => {}
            // The end record leads to a directory. The walk finds its own way.
            "zip" if crate::zip::is_end_of_archive(input, offset)? => confirmed.push((0, "zip")),
            "zip" => {}
            // Of what a script has behind itself, the first is what it opens.
            _ if confirmed.iter().any(|(_, other)| !matches!(*other, "7z" | "rar" | "cab" | "zip")) => {}
            _ => confirmed.push((offset, name)),
        }
    }
    Ok(confirmed)
}

/// Decodes the escapes in a text that begin before `end`. Tells how much of it that was.
fn unescape(text: &[u8], end: usize, mut keep: impl FnMut(&[u8], usize)) -> usize {
    let mut done = 0;
    for (at, byte, length) in characters(text) {
        if at < done || at >= end {
            continue;
        }
        keep(text.get(done..at).unwrap_or_default(), done);
        keep(&[byte], at);
        done = at + length;
    }
    let end = end.max(done);
    keep(text.get(done..end).unwrap_or_default(), done);
    end
}

struct Text;

impl Extractor for Text {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut walk = Walk { budget, sink, outcome: ExtractionOutcome::default(), members: 0 };
        if let Err(error) = walk.all(container) {
            walk.outcome.note_error("the text can't be read", &error);
        }
        walk.outcome
    }
}

struct Walk<'w, 's> {
    budget: &'w Budget,
    sink: &'w mut Sink<'s>,
    outcome: ExtractionOutcome,
    members: u64,
}

impl Walk<'_, '_> {
    fn all(&mut self, container: &mut Container<'_>) -> io::Result<()> {
        let mut window = Window::new(&mut *container.input, false)?;
        if is_encrypted_manifest(window.ahead(MANIFEST_BYTES_MAX)?) {
            self.outcome.note_protected(Protection::Document);
        }
        self.text(&mut window)?;
        if window.has_escapes {
            self.text(&mut Window::new(&mut *container.input, true)?)?;
        }
        Ok(())
    }

    /// Hands out what lies in a text. If its escapes are decoded, only what has one.
    fn text(&mut self, window: &mut Window<'_>) -> io::Result<()> {
        let is_text = is_text(window.ahead(TOLD_BY_BYTES)?);
        loop {
            self.budget.check()?;
            let ahead = window.ahead(WINDOW_BYTES / 2)?;
            if ahead.is_empty() {
                return Ok(());
            }
            let is_all = ahead.len() < WINDOW_BYTES / 2;
            let (skip, written) = match next_data(ahead, is_all, is_text) {
                Found::Nothing(skip) => {
                    window.at += skip;
                    continue;
                }
                Found::Run(at, line) => (at, Written::Run(line)),
                Found::Address(at, address) => (at, Written::Address(address)),
            };
            window.at += skip;
            let beginning = window.place();
            window.at += if let Written::Address(address) = &written { address.length } else { 0 };
            if window.is_unescaped {
                let data_at = window.place();
                let mut passed = Data::new(window, &written);
                let mut scratch = [0; 4096];
                while passed.read(&mut scratch)? > 0 {
                    self.budget.check()?;
                }
                let line_break = passed.line_break;
                if !window.place().has_escape_since(beginning) {
                    line_break.map_or(Ok(()), |place| window.go_back(place))?;
                    continue;
                }
                window.go_back(data_at)?;
            }
            self.data(window, &written)?;
        }
    }

    fn data(&mut self, window: &mut Window<'_>, written: &Written) -> io::Result<()> {
        self.members += 1;
        let extension = if let Written::Address(address) = written { address.extension.as_str() } else { "" };
        let name = format!("data-{}{extension}", self.members);
        let mut data = Data::new(window, written);
        let result = hand_out(name.clone(), None, &mut data, self.budget, self.sink);
        let (end, line_break) = (data.end, data.line_break);
        match result {
            Ok(None) => {}
            Ok(Some(error)) => return Err(error),
            Err(halt) => return Err(halt.into()),
        }
        match line_break {
            // A quote that is never closed was none, and what looked like an address was its line. So the lines behind that are searched
            // for themselves. Each kind of quote ends at the next one, so that no byte is read for more than one address a kind.
            Some(place) => window.go_back(place)?,
            None if matches!(written, Written::Address(_)) && end == Some(End::OfText) => {
                self.outcome.note_broken(format!("the text ends inside {name}"));
            }
            None => {}
        }
        Ok(())
    }
}

fn is_encrypted_manifest(head: &[u8]) -> bool {
    find(head, b"urn:oasis:names:tc:opendocument:xmlns:manifest").is_some() && find(head, b":encryption-data").is_some()
}

/// A part of the text in memory, that moves along.
struct Window<'w> {
    input: &'w mut dyn ReadSeek,
    /// Escapes are decoded.
    is_unescaped: bool,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
    /// If escapes are decoded, where each of the bytes lies in the text, and what was read and is not decoded yet.
    places: Vec<u64>,
    raw: Vec<u8>,
    /// Where in the text the next byte is read, and how many bytes lie before the window.
    offset: u64,
    passed: u64,
    has_escapes: bool,
}

/// A place in the text, and how many bytes came before it.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    passed: u64,
}

impl Place {
    /// Whether fewer bytes came since than lie between.
    fn has_escape_since(self, beginning: Self) -> bool {
        self.offset.saturating_sub(beginning.offset) != self.passed.saturating_sub(beginning.passed)
    }
}

impl<'w> Window<'w> {
    fn new(input: &'w mut dyn ReadSeek, is_unescaped: bool) -> io::Result<Self> {
        input.seek(SeekFrom::Start(0))?;
        let (bytes, places, raw) = (Vec::new(), Vec::new(), Vec::new());
        let (at, ended, offset, passed) = (0, false, 0, 0);
        Ok(Self { input, is_unescaped, bytes, at, ended, places, raw, offset, passed, has_escapes: false })
    }

    /// The next bytes: so many, if the text has as many.
    fn ahead(&mut self, bytes: usize) -> io::Result<&[u8]> {
        while self.bytes.len() - self.at < bytes && !self.ended {
            self.passed += self.at as u64;
            self.bytes.drain(..self.at);
            self.places.drain(..self.at.min(self.places.len()));
            self.at = 0;
            let missing = WINDOW_BYTES.saturating_sub(self.bytes.len()) as u64;
            let into = if self.is_unescaped { &mut self.raw } else { &mut self.bytes };
            let read = (&mut *self.input).take(missing).read_to_end(into)?;
            self.ended = (read as u64) < missing;
            self.offset += read as u64;
            if self.is_unescaped {
                self.decode();
            } else {
                self.has_escapes = self.has_escapes || characters(&self.bytes).next().is_some();
            }
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        Ok(rest.get(..bytes).unwrap_or(rest))
    }

    fn decode(&mut self) {
        let start = self.offset.saturating_sub(self.raw.len() as u64);
        // An escape may be cut off at the end.
        let end = if self.ended { self.raw.len() } else { self.raw.len().saturating_sub(ESCAPE_BYTES_MAX) };
        let (bytes, places) = (&mut self.bytes, &mut self.places);
        let used = unescape(&self.raw, end, |part, at| {
            bytes.extend_from_slice(part);
            places.extend((at..at + part.len()).map(|at| start + at as u64));
        });
        self.raw.drain(..used);
    }

    fn place(&self) -> Place {
        let passed = self.passed + self.at as u64;
        let behind = self.offset.saturating_sub(self.raw.len() as u64);
        let offset = if self.is_unescaped { self.places.get(self.at).copied().unwrap_or(behind) } else { passed };
        Place { offset, passed }
    }

    /// Goes back to a place, which is not inside an escape.
    fn go_back(&mut self, place: Place) -> io::Result<()> {
        // Mostly it is still held: many short ways back must not read as many windows.
        let held = place.passed.checked_sub(self.passed).and_then(|at| usize::try_from(at).ok());
        if let Some(at) = held.filter(|at| *at <= self.bytes.len()) {
            self.at = at;
            return Ok(());
        }
        self.input.seek(SeekFrom::Start(place.offset))?;
        self.bytes.clear();
        self.places.clear();
        self.raw.clear();
        (self.at, self.ended, self.offset, self.passed) = (0, false, place.offset, place.passed);
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    OfData,
    OfText,
}

/// How data is written in a text.
enum Written {
    /// In base64, of which so many characters stand together at least.
    Run(usize),
    Address(Address),
}

/// Data on its way out, decoded.
struct Data<'d, 'w> {
    window: &'d mut Window<'w>,
    is_base64: bool,
    is_address: bool,
    /// What ends an address.
    ended_by: Option<u8>,
    decoder: Base64,
    /// The padding at the end was there.
    is_padded: bool,
    /// A line was as long as those of most writers.
    had_long_line: bool,
    /// How many characters stand together so far.
    line: usize,
    /// How many stand together at least where the data goes on behind them.
    line_min: usize,
    out: Vec<u8>,
    given: usize,
    end: Option<End>,
    /// Where the first line break lies that was taken out of an address that isn't base64.
    line_break: Option<Place>,
}

impl<'d, 'w> Data<'d, 'w> {
    /// The data that begins where the window is.
    fn new(window: &'d mut Window<'w>, written: &Written) -> Self {
        let (address, line_min) = match written {
            Written::Address(address) => (Some(address), 0),
            Written::Run(line_min) => (None, *line_min),
        };
        Self {
            window,
            is_base64: address.is_none_or(|address| address.is_base64),
            is_address: address.is_some(),
            ended_by: address.and_then(|address| address.ended_by),
            decoder: Base64::default(),
            is_padded: false,
            had_long_line: false,
            line: 0,
            line_min,
            out: Vec::new(),
            given: 0,
            end: None,
            line_break: None,
        }
    }

    /// Decodes what is ahead.
    fn step(&mut self) -> io::Result<()> {
        let ahead = self.window.ahead(4096)?;
        let Some(first) = ahead.first().copied() else {
            self.end = Some(End::OfText);
            return Ok(());
        };
        let mut used = 1;
        if self.is_base64 {
            let length = ahead.iter().take_while(|byte| digit(**byte).is_some()).count();
            if length > 0 && self.is_padded {
                return self.finish();
            } else if length > 0 {
                self.decoder.decode(ahead.get(..length).unwrap_or_default(), &mut self.out);
                self.line += length;
                used = length;
            } else if first == b'%' && self.is_address {
                let (byte, length) = escaped_in_lines(ahead).unwrap_or((b'=', 1));
                self.decoder.decode(&[byte], &mut self.out);
                used = length;
            } else if self.is_address && first.is_ascii_whitespace() {
                // However much of it there is.
                let length = ahead.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                used = length;
            } else if first == b'=' {
                self.is_padded = true;
                self.decoder.decode(b"=", &mut self.out);
            } else {
                return self.next_line();
            }
        } else {
            // Quotes may hold lines.
            let is_quoted = matches!(self.ended_by, Some(b'"' | b'\'' | b'`'));
            let ends = match self.ended_by {
                Some(last) => first == last || first == b'\n' && !is_quoted,
                None => matches!(first, b'"' | b'\'' | b'<' | b'>' | b')' | b'`' | b'\n' | b' '),
            };
            if ends {
                return self.finish();
            }
            let escaped = if is_quoted { escaped_in_lines(ahead) } else { escaped(ahead).map(|byte| (byte, 3)) };
            match escaped {
                Some((byte, length)) => {
                    self.out.push(byte);
                    used = length;
                }
                None if is_taken_out(first) => {}
                None => self.out.push(first),
            }
            if let Some(at) = memchr(b'\n', ahead.get(..used).unwrap_or_default()) {
                self.note_line_break(at);
            }
        }
        self.window.at += used;
        Ok(())
    }

    /// There is a line break so far ahead.
    fn note_line_break(&mut self, ahead: usize) {
        if self.line_break.is_none() {
            self.window.at += ahead;
            self.line_break = Some(self.window.place());
            self.window.at -= ahead;
        }
    }

    /// Moves to where a run goes on, if it does.
    fn next_line(&mut self) -> io::Result<()> {
        let ahead = self.window.ahead(JOINT_BYTES_MAX)?;
        self.had_long_line |= self.line >= LINE_CHARACTERS_MIN;
        let is_long = self.line >= self.line_min;
        let goes_on = joint(ahead).filter(|length| {
            // Behind the shorter last line of one run and a blank one begins another.
            let breaks = ahead.iter().take(*length).filter(|byte| **byte == b'\n').count();
            is_long && !self.is_padded && !(self.had_long_line && self.line < LINE_CHARACTERS_MIN && breaks > 1)
        });
        match goes_on {
            Some(length) => {
                self.window.at += length;
                self.line = 0;
                Ok(())
            }
            None => {
                // Something ends an address always.
                let is_cut = self.is_address && ahead.trim_ascii().is_empty();
                self.end = Some(if is_cut { End::OfText } else { End::OfData });
                Ok(())
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.end = Some(End::OfData);
        Ok(())
    }
}

impl Read for Data<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        while self.given >= self.out.len() {
            self.out.clear();
            self.given = 0;
            if self.end.is_some() {
                return Ok(0);
            }
            while self.out.len() < WINDOW_BYTES && self.end.is_none() {
                self.step()?;
            }
            if self.end.is_some() {
                self.decoder.finish(&mut self.out);
            }
        }
        let mut rest = self.out.get(self.given..).unwrap_or_default();
        let read = rest.read(into)?;
        self.given += read;
        Ok(read)
    }
}
