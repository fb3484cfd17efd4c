//! PDF: every stream decoded, attachments under their names, scripts. Format: ISO 32000-1.
//!
//! The whole file is walked for objects; neither its cross-reference tables nor the tree of its pages decide what is seen, since
//! malware lies in both, and programs repair them in ways of their own. So objects of former revisions come out too.
//! Images in formats that are files by themselves come out as they are. Encrypted documents are opened with the empty
//! password and those given; what opens with neither is told, and its streams aren't handed out.

mod encryption;
mod filters;
mod object;
mod plan;

use std::collections::{HashMap, HashSet};
use std::io::{self, Cursor, Read, SeekFrom};
use std::sync::LazyLock;

use memchr::memmem::Finder;

use self::encryption::Encryption;
use self::object::{Fault, Parser, Value, is_space};
use self::plan::{Choice, Plan, decoded};
use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name, hand_out};
use crate::fields::{find, invalid, read_at_most};
use crate::format::{Claim, Claims, Format, Probe};
use crate::limits::{Halt, Limit};
use crate::outcome::{ExtractionOutcome, Protection};
use crate::passwords::Passwords;

/// Programs look for the header in so many bytes.
const HEADER_WITHIN_BYTES: usize = 1024;
/// How much is searched at once.
const WINDOW_BYTES: usize = 256 * 1024;
/// How much the number and generation before "obj" may take, with spaces and comments.
const BEFORE_BYTES: u64 = 4096;
/// How much of an object is looked at first, and then, if it goes on.
const OBJECT_BYTES: [u64; 4] = [1 << 10, 16 << 10, 256 << 10, OBJECT_BYTES_MAX];
/// The longest object apart from its stream.
const OBJECT_BYTES_MAX: u64 = 4 << 20;
/// Most objects of a file: each takes some bytes of memory.
const OBJECTS_MAX: usize = 1 << 20;
/// The longest stream of objects, decoded, that is looked into; longer ones come out without.
const OBJECT_STREAM_BYTES_MAX: u64 = 32 << 20;
/// Most objects that one stream of objects is asked for.
const OBJECTS_OF_STREAM_MAX: i64 = 1 << 16;
/// In a document of more streams than this, those that are nothing by themselves come out together: a long book has tens of
/// thousands, far more than files may come out of a container.
const STREAMS_ALONE_MAX: usize = 1000;
/// The longest stream that comes out with others, decoded.
const BUNDLED_BYTES_MAX: u64 = 64 << 10;
/// How much comes out together.
const BUNDLE_BYTES: usize = 1 << 20;
/// Of how many definitions of one object each is tried.
const DEFINITIONS_MAX: usize = 8;
/// Most entries that count in what says how a document is encrypted. Real ones have some twelve.
const ENCRYPTION_ENTRIES_MAX: usize = 64;
/// How deep dictionaries and arrays are searched for scripts and names.
const SEARCH_DEPTH_MAX: u32 = 48;

/// PDF.
pub(crate) static FORMAT: Format = Format {
    name: "pdf",
    description: "Portable Document Format",
    mime: "application/pdf",
    extension: "pdf",
    category: "P",
    beside: &[],
    probe,
    extractor: &Pdf,
};

fn probe(probe: &mut Probe<'_>) -> io::Result<Claims> {
    let head = probe.head.get(..HEADER_WITHIN_BYTES).unwrap_or(probe.head);
    let header = find(head, b"%PDF-").or_else(|| old_header(head)).map(|at| at as u64);
    if header == Some(0) {
        return Ok(vec![Claim::Whole(0)]);
    }
    // Programs open a file whose end leads them to its objects, whatever its beginning. Nothing else has such an end, a container with a
    // PDF in it included, since the place is counted from the file's beginning.
    let table = table_at(probe.tail);
    if let Some(table) = table
        && probe.read_at::<TABLE_HEAD_BYTES>(table)?.is_some_and(|head| begins_table(&head))
    {
        return Ok(vec![Claim::Whole(0)]);
    }
    // Something before the header is not uncommon, and not enough to make a container with a PDF in it a PDF.
    if let Some(header) = header {
        return Ok(vec![Claim::Inside(header)]);
    }
    // Some look further for the header, or for the objects wherever they are. That is believed if the end is one too, since many
    // files have the words in them: those about PDF, and programs that write it, seldom with a number between.
    let is_end = find(probe.tail, b"%%EOF").is_some() && find(probe.tail, b"startxref").is_some();
    Ok(match memchr::memmem::find(probe.head, b"%PDF-") {
        Some(at) if is_end => vec![Claim::Inside(at as u64)],
        _ if table.is_some() => vec![Claim::Inside(0)],
        _ => Vec::new(),
    })
}

/// Where a header begins of the kind that Acrobat takes for its own besides: `%!PS-Adobe-3.0 PDF-1.4`. Real PostScript says `EPSF-`
/// in that place, or nothing.
fn old_header(head: &[u8]) -> Option<usize> {
    let at = find(head, b"%!PS-Adobe-")?;
    let line = head.get(at..)?.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    find(line, b" PDF-").map(|_| at)
}

/// Where the cross-reference table is, as the end of a document says it.
fn table_at(tail: &[u8]) -> Option<u64> {
    let behind = tail.get(memchr::memmem::rfind(tail, b"startxref")? + b"startxref".len()..)?;
    let behind = behind.trim_ascii_start();
    let digits = behind.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, behind) = behind.split_at_checked(digits)?;
    let is_end = behind.trim_ascii_start().starts_with(b"%%EOF");
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|_| is_end)
}

/// Whether objects of a PDF lie in a file that has neither its header nor its end: programs that know it by its name alone repair it. In text
/// an object begins a line, since programs that write PDF, and what is written about it, have objects in strings.
pub(crate) fn has_objects(bytes: &[u8], is_text: bool) -> bool {
    OBJ.find_iter(bytes).any(|at| {
        let (before, behind) = bytes.split_at_checked(at).unwrap_or_default();
        let start = before.len().saturating_sub(ID_BYTES_MAX);
        let before = before.get(start..).unwrap_or_default();
        let is_dictionary = || behind.get(OBJ_BYTES..).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"<<"));
        let begins_line = || {
            let line =
                before.iter().rposition(is_line_break).map_or(before, |at| before.get(at + 1..).unwrap_or_default());
            line.first().is_some_and(u8::is_ascii_digit) && (line.len() < before.len() || start == 0)
        };
        id_before(before, without_spaces).is_some() && is_dictionary() && (!is_text || begins_line())
    })
}

/// How much of what lies before "obj" is looked at then.
const ID_BYTES_MAX: usize = 32;
const OBJ_BYTES: usize = 3;
static OBJ: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"obj"));

/// How much of a cross-reference table, or of the stream that it is, is looked at.
const TABLE_HEAD_BYTES: usize = 24;

/// Whether a cross-reference table begins so, or an object.
fn begins_table(head: &[u8]) -> bool {
    let head = head.trim_ascii_start();
    let is_object = || find(head, b"obj").and_then(|at| id_before(head.get(..at)?, without_spaces)).is_some();
    head.starts_with(b"xref") || (head.first().is_some_and(u8::is_ascii_digit) && is_object())
}

struct Pdf;

impl Extractor for Pdf {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut walk = Walk {
            input: &mut *container.input,
            length: container.length,
            passwords: container.passwords,
            budget,
            sink,
            outcome: ExtractionOutcome::default(),
            offsets: HashMap::new(),
            definitions: HashMap::new(),
            streams: Vec::new(),
            interesting: Vec::new(),
            encryption_dictionary: None,
            plain_trailer: false,
            content_end: 0,
            id: Vec::new(),
            encryption: None,
            names: HashMap::new(),
            scripts: HashSet::new(),
            bundle: None,
            bundles: 0,
        };
        if let Err(error) = walk.run() {
            walk.outcome.note_error("the document is broken", &error);
        }
        walk.outcome
    }
}

/// The number and generation of an object.
type Id = (u32, u32);

/// A stream, as far as its object was looked at.
#[derive(Clone)]
struct StreamObject {
    id: Id,
    dictionary: Value,
    start: u64,
    end: u64,
    /// All the filters that the dictionary names anywhere, if it is malformed: programs differ in which of them are the stream's.
    doubtful_filters: Option<Vec<Vec<u8>>>,
}

/// An object of the file.
struct Object {
    value: Value,
    /// Where its stream's data begins, if it has one.
    stream: Option<u64>,
    /// How well it could be read.
    fault: Fault,
}

struct Walk<'w, 's> {
    input: &'w mut dyn ReadSeek,
    length: u64,
    passwords: &'w Passwords,
    budget: &'w Budget,
    sink: &'w mut Sink<'s>,
    outcome: ExtractionOutcome,
    /// Where each object begins, behind "obj"; the last one of a number.
    offsets: HashMap<u32, u64>,
    /// Where objects begin that are defined several times: all of these places.
    definitions: HashMap<u32, Vec<u64>>,
    streams: Vec<StreamObject>,
    /// Objects without a stream that have something to hand out, and where they begin.
    interesting: Vec<(Id, u64)>,
    encryption_dictionary: Option<Value>,
    /// Whether a trailer says nothing of encryption.
    plain_trailer: bool,
    /// Where the streams end whose length is certain: what lies before is content as well.
    content_end: u64,
    /// The first half of the document's identifier, which is part of what it is encrypted with.
    id: Vec<u8>,
    encryption: Option<Encryption>,
    /// The names of attachments, by the number of their stream.
    names: HashMap<u32, String>,
    /// The streams that are scripts.
    scripts: HashSet<u32>,
    /// Streams that come out together, if there are too many.
    bundle: Option<Vec<u8>>,
    bundles: u32,
}

impl Walk<'_, '_> {
    fn run(&mut self) -> io::Result<()> {
        self.find_objects()?;
        if !self.open_encryption()? {
            return Ok(());
        }
        for (id, offset) in std::mem::take(&mut self.interesting) {
            let object = self.object(offset)?;
            self.look_into(id, &object.value, true);
            if self.outcome.is_over() {
                return Ok(());
            }
        }
        let streams = std::mem::take(&mut self.streams);
        for stream in &streams {
            self.look_into(stream.id, &stream.dictionary, true);
        }
        if streams.len() > STREAMS_ALONE_MAX {
            self.bundle = Some(Vec::new());
        }
        // Those of objects first, since they name others.
        let (of_objects, others): (Vec<_>, Vec<_>) =
            streams.into_iter().partition(|stream| stream.dictionary.is("Type", "ObjStm"));
        for stream in of_objects.iter().chain(&others) {
            if self.outcome.is_over() {
                return Ok(());
            }
            self.budget.check()?;
            let is_of_objects = stream.dictionary.is("Type", "ObjStm");
            if is_of_objects {
                self.stream_of_objects(stream);
            }
            if !is_of_objects || self.plans(stream).is_ok_and(|plans| plans.len() > 1) {
                self.stream(stream);
            }
        }
        self.hand_out_bundle();
        Ok(())
    }

    fn read(&mut self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        self.input.seek(SeekFrom::Start(offset))?;
        read_at_most(&mut *self.input, bytes)
    }

    /// Walks the file for objects and trailers, in the data of streams too: a cross-reference table may lead there.
    fn find_objects(&mut self) -> io::Result<()> {
        let mut position = 0;
        let mut has_end = false;
        while position < self.length {
            let from = position.saturating_sub(BEFORE_BYTES);
            let window = self.read(from, WINDOW_BYTES as u64)?;
            let mut at = (position - from) as usize;
            while let Some((word, found)) = next_word(&window, at) {
                self.budget.check()?;
                at = found + word.len();
                let behind = from + at as u64;
                match word {
                    b"obj" => {
                        let before = window.get(found.saturating_sub(BEFORE_BYTES as usize)..found).unwrap_or_default();
                        for id in self.ids_before(before, behind)? {
                            has_end = false;
                            self.found_object(id, behind)?;
                            if self.outcome.is_over() {
                                return Ok(());
                            }
                        }
                    }
                    b"trailer" if behind >= self.content_end => {
                        let trailer = self.object(behind)?;
                        self.found_trailer(&trailer);
                    }
                    b"trailer" => {}
                    _ => has_end = true,
                }
            }
            let window_end = from + window.len() as u64;
            if window_end >= self.length || window.len() < WINDOW_BYTES {
                break;
            }
            // A word may lie across the end of the window.
            position = (window_end - WORD_BYTES_MAX).max(from + at as u64);
        }
        // Objects in a text that is no document have no end either.
        if !has_end && find(&self.read(0, WINDOW_BYTES as u64)?, b"%PDF-").is_some() {
            self.outcome.note_broken("the document has no end: it is cut off");
        }
        Ok(())
    }

    /// The numbers and generations of the object at `offset`: mostly one, or none if there is no object. Comments may lie between,
    /// and whether a percent sign begins one depends on all that lies before.
    fn ids_before(&mut self, before: &[u8], offset: u64) -> io::Result<Vec<Id>> {
        let mut ids: Vec<Id> = id_before(before, without_spaces).into_iter().collect();
        if without_spaces(before).len() == before.len() || !is_line_broken(before) {
            return Ok(ids);
        }
        let (near, far) = (id_before(before, without_comments::<true>), id_before(before, without_comments::<false>));
        if near != far {
            self.outcome.note_suspicious(format!("the number of the object at {offset} can be read in two ways"));
        }
        for id in [near, far].into_iter().flatten() {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let is_of_numbers = |byte: &u8| is_space(*byte) || matches!(byte, b'0'..=b'9' | b'+' | b'-');
        let other = before.iter().rposition(|byte| !is_of_numbers(byte)).and_then(|at| before.get(..at));
        let is_too_long = before.len() as u64 >= BEFORE_BYTES && !other.unwrap_or_default().iter().any(is_line_break);
        if ids.is_empty() && is_too_long && matches!(self.object(offset)?.value, Value::Dictionary(_)) {
            self.outcome.note_broken(format!("the object at {offset} has no number that can be found"));
        }
        Ok(ids)
    }

    /// The object at `offset`, behind "obj".
    fn object(&mut self, offset: u64) -> io::Result<Object> {
        for bytes in OBJECT_BYTES {
            let head = self.read(offset, bytes)?;
            let is_all = (head.len() as u64) < bytes;
            let mut parser = Parser::new(&head, 0);
            let mut value = parser.value();
            if let (Fault::Malformed | Fault::Unread, Some(Value::Dictionary(entries))) = (parser.fault, &mut value) {
                parser.rest_into(entries);
            }
            let value_end = parser.at;
            parser.skip_space();
            // What touches the end of what was read may go on behind it, the word "stream" and its line break included.
            if !is_all && parser.at + 16 > head.len() && bytes < OBJECT_BYTES_MAX {
                continue;
            }
            // Of forms' data the end is such a comment, with no table before it.
            let behind = head.get(value_end..).unwrap_or_default();
            if parser.is_at_end() && find(behind, b"%%EOF").is_none() {
                self.outcome.note_broken(format!("the object at {offset} is cut off"));
            }
            let mut stream = None;
            if parser.takes(b"stream") {
                let _ = parser.takes(b"\r\n") || parser.takes(b"\n") || parser.takes(b"\r");
                stream = Some(offset + parser.at as u64);
            }
            match parser.fault {
                Fault::Malformed if stream.is_some() => {
                    self.outcome.note_broken(format!("the dictionary of the stream at {offset} is malformed"));
                }
                Fault::Unread => self.outcome.note_broken(format!("the object at {offset} can't be read whole")),
                // Without a stream all that it says is read, whatever lies between.
                _ => {}
            }
            return Ok(Object { value: value.unwrap_or(Value::Other), stream, fault: parser.fault });
        }
        Err(invalid("an object without a length"))
    }

    /// Takes note of an object.
    fn found_object(&mut self, id: Id, offset: u64) -> io::Result<()> {
        if self.offsets.len() + self.interesting.len() + self.streams.len() >= OBJECTS_MAX {
            self.outcome.note_halt(Halt::Limit(Limit::Files));
            return Ok(());
        }
        let object = self.object(offset)?;
        let is_content = offset < self.content_end;
        if let Some(other) = self.offsets.get(&id.0) {
            let all = self.definitions.entry(id.0).or_insert_with(|| vec![*other]);
            if all.len() >= DEFINITIONS_MAX {
                // The first and the last of them are those that programs take.
                all.pop();
            }
            all.push(offset);
        }
        if is_content {
            self.offsets.entry(id.0).or_insert(offset);
        } else {
            self.offsets.insert(id.0, offset);
            if object.value.is("Type", "XRef") {
                self.found_trailer(&object);
            }
        }
        let Some(start) = object.stream else {
            if is_interesting(&object.value, 0) || matches!(object.value, Value::Text(_)) {
                self.interesting.push((id, offset));
            }
            return Ok(());
        };
        let end = self.stream_end(&object.value, start)?;
        let doubtful_filters = (object.fault != Fault::None).then(|| filters::named_in(&object.value));
        self.streams.push(StreamObject { id, dictionary: summary(object.value), start, end, doubtful_filters });
        Ok(())
    }

    /// Where a stream's data ends: where its length says, if that is true, or else before the next "endstream".
    fn stream_end(&mut self, dictionary: &Value, start: u64) -> io::Result<u64> {
        let length = match dictionary.get("Length") {
            Some(length) => self.resolved(length, None)?.number(),
            None => None,
        };
        let end = length.and_then(|length| start.checked_add_signed(length)).filter(|end| *end >= start);
        if let Some(end) = end.filter(|end| *end <= self.length) {
            let behind = self.read(end, 20)?;
            if behind.trim_ascii_start().starts_with(b"endstream") {
                self.content_end = self.content_end.max(end);
                return Ok(end);
            }
        }
        let mut position = start;
        loop {
            self.budget.check()?;
            let window = self.read(position, WINDOW_BYTES as u64)?;
            if let Some(at) = find(&window, b"endstream") {
                let data = window.get(..at).unwrap_or_default();
                let data = data.strip_suffix(b"\n").unwrap_or(data);
                let data = data.strip_suffix(b"\r").unwrap_or(data);
                return Ok(position + data.len() as u64);
            }
            if window.len() < WINDOW_BYTES {
                self.outcome.note_broken(format!("the stream at {start} has no end"));
                return Ok(self.length);
            }
            position += window.len() as u64 - WORD_BYTES_MAX;
        }
    }

    fn found_trailer(&mut self, trailer: &Object) {
        let (trailer, fault) = (&trailer.value, trailer.fault);
        match trailer.get("Encrypt") {
            Some(encrypt) => {
                self.note_fault_of_encryption(fault);
                self.encryption_dictionary = Some(encrypt.clone());
            }
            None => self.plain_trailer |= trailer.get("Root").is_some(),
        }
        if let Some(Value::Array(parts)) = trailer.get("ID")
            && let Some(id) = parts.first().and_then(Value::text)
        {
            self.id = id.to_vec();
        }
    }

    /// Where programs may read other things of how the document is encrypted, what comes out may not be what they show.
    fn note_fault_of_encryption(&mut self, fault: Fault) {
        if fault != Fault::None {
            self.outcome.note_broken("what says how the document is encrypted is malformed");
        }
    }

    /// The dictionary of the encryption with all that counts in it resolved.
    fn resolved_encryption(&mut self, dictionary: &Value) -> io::Result<Value> {
        let mut resolved = Vec::new();
        let Value::Dictionary(entries) = dictionary else { return Ok(dictionary.clone()) };
        for (key, value) in entries.iter().take(ENCRYPTION_ENTRIES_MAX) {
            let mut value = self.resolved(value, None)?;
            if let (b"CF", Value::Dictionary(filters)) = (&**key, &mut value) {
                filters.truncate(encryption::CRYPT_FILTERS_MAX);
                for (_, filter) in filters {
                    *filter = self.resolved(filter, None)?;
                    let method = filter.get("CFM").cloned().unwrap_or(Value::Other);
                    if let (Value::Reference(_), Value::Dictionary(entries)) = (&method, filter) {
                        entries.insert(0, (b"CFM".to_vec(), self.resolved(&method, None)?));
                    }
                }
            }
            if resolved.iter().any(|(other, before)| other == key && *before != value) {
                self.outcome.note_suspicious("the document says in two ways how it is encrypted");
            }
            resolved.push((key.clone(), value));
        }
        Ok(Value::Dictionary(resolved))
    }

    /// Opens the encryption, if there is one. False if that can't be done.
    fn open_encryption(&mut self) -> io::Result<bool> {
        let dictionary = match self.encryption_dictionary.take() {
            None => return Ok(true),
            Some(Value::Reference(number)) => {
                let last = self.offsets.get(&number).copied();
                let mut places = self.definitions.get(&number).cloned().unwrap_or_default();
                places.extend(last);
                self.interesting.retain(|(_, at)| !places.contains(at));
                let mut dictionary = Value::Other;
                if places.is_empty() && self.streams.iter().any(|stream| stream.dictionary.is("Type", "ObjStm")) {
                    // It must not lie in a stream of objects, but some programs find it there.
                    self.outcome.note_broken("what says how the document is encrypted is missing");
                }
                for place in places {
                    let Object { value, fault, .. } = self.object(place)?;
                    self.note_fault_of_encryption(fault);
                    let is_dictionary = matches!(value, Value::Dictionary(_));
                    if dictionary != Value::Other && dictionary != value {
                        self.outcome.note_suspicious("the document says in two ways how it is encrypted");
                    }
                    if is_dictionary {
                        dictionary = value;
                    }
                }
                dictionary
            }
            Some(dictionary) => dictionary,
        };
        if dictionary == Value::Other {
            // Readers take a document for not encrypted if it says how nowhere.
            return Ok(true);
        }
        if self.plain_trailer {
            self.outcome.note_suspicious("the document is encrypted by one trailer and not by another");
        }
        let dictionary = self.resolved_encryption(&dictionary)?;
        self.encryption = Encryption::open(&dictionary, &self.id, self.passwords.iter());
        if self.encryption.as_ref().is_some_and(|encryption| encryption.has_unknown) {
            self.outcome.note_broken("something is encrypted in a way that is not known");
        }
        match &self.encryption {
            None => self.outcome.note_protected(Protection::Document),
            Some(encryption) if encryption.by_password => self.outcome.note_decrypted(),
            Some(_) => {}
        }
        Ok(self.encryption.is_some())
    }

    /// Hands out the scripts of a value, and takes note of the names of attachments.
    fn look_into(&mut self, id: Id, value: &Value, is_encrypted: bool) {
        if let (Value::Text(text), (number, _)) = (value, id) {
            // A string that is an object of its own is likely long, and a script.
            return self.text(format!("object-{number}.js"), text, id, is_encrypted);
        }
        let mut values = vec![(value, 0)];
        while let Some((value, depth)) = values.pop() {
            if depth > SEARCH_DEPTH_MAX || self.outcome.is_over() {
                return;
            }
            match value {
                Value::Array(array) => values.extend(array.iter().map(|value| (value, depth + 1))),
                Value::Dictionary(entries) => {
                    self.look_into_dictionary(id, value, is_encrypted);
                    values.extend(entries.iter().map(|(_, value)| (value, depth + 1)));
                }
                _ => {}
            }
        }
    }

    fn look_into_dictionary(&mut self, id: Id, dictionary: &Value, is_encrypted: bool) {
        match dictionary.get("JS") {
            Some(Value::Text(script)) => self.text(format!("object-{}.js", id.0), script, id, is_encrypted),
            Some(Value::Reference(number)) => drop(self.scripts.insert(*number)),
            _ => {}
        }
        let Some(Value::Dictionary(embedded)) = dictionary.get("EF") else { return };
        let name = ["UF", "F"].into_iter().find_map(|key| dictionary.get(key)?.text());
        let Some(name) = name.filter(|name| !name.is_empty()) else { return };
        let name = display_name(text_of(&self.decrypted(name, id, is_encrypted)).as_bytes());
        for number in embedded.iter().filter_map(|(_, value)| value.reference()) {
            self.names.insert(number, name.clone());
        }
    }

    fn decrypted(&self, text: &[u8], id: Id, is_encrypted: bool) -> Vec<u8> {
        match &self.encryption {
            Some(encryption) if is_encrypted => encryption.string(text, id),
            _ => text.to_vec(),
        }
    }

    fn text(&mut self, name: String, text: &[u8], id: Id, is_encrypted: bool) {
        let text = self.decrypted(text, id, is_encrypted);
        let text = if text.starts_with(&[0xfe, 0xff]) { text_of(&text).into_bytes() } else { text };
        let handed_out = hand_out(name, Some(text.len() as u64), &mut Cursor::new(text), self.budget, self.sink);
        self.note(id, handed_out);
    }

    fn note(&mut self, id: Id, handed_out: Result<Option<io::Error>, Halt>) {
        match handed_out {
            Ok(None) => {}
            Ok(Some(error)) => self.outcome.note_error(&format!("object {}", id.0), &error),
            Err(halt) => self.outcome.note_halt(halt),
        }
    }

    /// Hands out a stream.
    fn stream(&mut self, stream: &StreamObject) {
        match self.plans(stream) {
            Ok(plans) => {
                for plan in plans {
                    self.stream_by(stream, &plan);
                }
            }
            Err(error) => self.outcome.note_error(&format!("object {}", stream.id.0), &error),
        }
    }

    fn stream_by(&mut self, stream: &StreamObject, plan: &Plan) {
        if self.outcome.is_over() {
            return;
        }
        let number = stream.id.0;
        let extension = plan.extension.map_or(String::new(), |extension| format!(".{extension}"));
        let name = match self.names.get(&number) {
            Some(name) => name.clone(),
            None if self.scripts.contains(&number) => format!("object-{number}.js"),
            None => format!("object-{number}{extension}"),
        };
        let is_named = plan.extension.is_some() || self.names.contains_key(&number) || self.scripts.contains(&number);
        let mut beginning = Vec::new();
        let handed_out = match decoded(&mut *self.input, self.encryption.as_ref(), stream, plan) {
            Err(_) if plan.is_other_cipher => return,
            Ok(mut data) => {
                if plan.is_other_cipher && (&mut data).take(1).read_to_end(&mut beginning).unwrap_or(0) == 0 {
                    return;
                }
                let bundle = self.bundle.as_mut().filter(|_| !is_named);
                let read = match &bundle {
                    Some(_) => (&mut data).take(BUNDLED_BYTES_MAX).read_to_end(&mut beginning).map(|read| read as u64),
                    None => Ok(0),
                };
                match (bundle, read) {
                    (Some(bundle), Ok(read)) if read < BUNDLED_BYTES_MAX && is_nothing_by_itself(&beginning) => {
                        bundle.append(&mut beginning);
                        bundle.push(b'\n');
                        Ok(None)
                    }
                    (_, Ok(_)) => hand_out(name, None, &mut beginning.chain(data), self.budget, self.sink),
                    (_, Err(error)) => match hand_out(name, None, &mut &*beginning, self.budget, self.sink) {
                        Ok(first) => Ok(first.or(Some(error))),
                        Err(halt) => Err(halt),
                    },
                }
            }
            Err(error) => Ok(Some(error)),
        };
        self.note(
            stream.id,
            handed_out.map(|error| error.filter(|error| !plan.is_other_cipher || Halt::of(error).is_some())),
        );
        if self.bundle.as_ref().is_some_and(|bundle| bundle.len() >= BUNDLE_BYTES) {
            self.hand_out_bundle();
        }
    }

    /// Hands out what comes out together, if there is anything.
    fn hand_out_bundle(&mut self) {
        let Some(bundle) = self.bundle.as_mut().map(std::mem::take).filter(|bundle| !bundle.is_empty()) else { return };
        self.bundles += 1;
        let name = format!("streams-{}", self.bundles);
        let length = Some(bundle.len() as u64);
        if let Err(halt) = hand_out(name, length, &mut Cursor::new(bundle), self.budget, self.sink) {
            self.outcome.note_halt(halt);
        }
    }

    /// Hands out a stream of objects, and what those have to hand out.
    fn stream_of_objects(&mut self, stream: &StreamObject) {
        let mut data = Vec::new();
        let plan = self.plan(stream, Choice::default());
        let read = plan.and_then(|plan| {
            let decoded = decoded(&mut *self.input, self.encryption.as_ref(), stream, &plan)?;
            decoded.take(OBJECT_STREAM_BYTES_MAX + 1).read_to_end(&mut data)
        });
        if data.len() as u64 > OBJECT_STREAM_BYTES_MAX {
            self.outcome.note_limit(Limit::Memory);
            return self.stream(stream);
        }
        let name = format!("object-{}", stream.id.0);
        let handed_out = hand_out(name, Some(data.len() as u64), &mut &*data, self.budget, self.sink);
        self.note(stream.id, handed_out);
        if let Err(error) = read {
            self.outcome.note_error(&format!("object {}", stream.id.0), &error);
        }
        let number = |name| stream.dictionary.get(name).and_then(Value::number).unwrap_or(0);
        let first = usize::try_from(number("First")).unwrap_or(usize::MAX);
        let mut header = Parser::new(&data, 0);
        for _ in 0..number("N").min(OBJECTS_OF_STREAM_MAX) {
            if self.outcome.is_over() || self.budget.check().map_err(|halt| self.outcome.note_halt(halt)).is_err() {
                return;
            }
            let (Some(Value::Number(id)), Some(Value::Number(offset))) = (header.value(), header.value()) else {
                return self.outcome.note_broken(format!("object {} has no list of its objects", stream.id.0));
            };
            let at = usize::try_from(offset).ok().and_then(|offset| first.checked_add(offset));
            let Some(value) = at.and_then(|at| Parser::new(&data, at).value()) else { continue };
            self.look_into((u32::try_from(id).unwrap_or(0), 0), &value, false);
        }
    }
}

/// Whether a stream's content is of no type that is worth looking at alone.
fn is_nothing_by_itself(content: &[u8]) -> bool {
    crate::detect::detect(&mut Cursor::new(content), content.len() as u64).is_ok_and(|detected| {
        detected.containers.is_empty()
            && matches!(detected.mime.as_str(), "text/plain" | "application/octet-stream" | "application/x-empty")
    })
}

/// The longest of the words that the file is searched for, and what may lie before the last of them.
const WORD_BYTES_MAX: u64 = 16;

/// The next word of those that matter, and where it begins.
fn next_word(window: &[u8], from: usize) -> Option<(&'static [u8], usize)> {
    let rest = window.get(from..)?;
    rest.iter().enumerate().find_map(|(at, byte)| {
        let words: &[&'static [u8]] = match byte {
            b'o' => &[b"obj"],
            b't' => &[b"trailer"],
            b's' => &[b"startxref"],
            b'%' => &[b"%%EOF"],
            _ => return None,
        };
        let begins = |word: &&&'static [u8]| rest.get(at..).is_some_and(|rest| rest.starts_with(word));
        words.iter().find(begins).map(|word| (*word, from + at))
    })
}

/// The number and generation that end here, before "obj". `skip` leaves out what may lie behind each of them.
fn id_before(before: &[u8], skip: fn(&[u8]) -> &[u8]) -> Option<Id> {
    fn number(before: &[u8]) -> Option<(u32, &[u8])> {
        let digits = before.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let (rest, digits) = before.split_at_checked(before.len() - digits)?;
        Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
    }
    let (generation, rest) = number(skip(before))?;
    let rest = rest.strip_suffix(b"+").or_else(|| rest.strip_suffix(b"-")).unwrap_or(rest);
    let (number, _) = number(skip(rest)).filter(|_| skip(rest).len() < rest.len())?;
    Some((number, generation))
}

fn without_spaces(before: &[u8]) -> &[u8] {
    let spaces = before.iter().rev().take_while(|byte| is_space(**byte)).count();
    before.get(..before.len() - spaces).unwrap_or_default()
}

fn is_line_break(byte: &u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Whether a line ends between what lies before "obj" and the object's number, so that a comment may.
fn is_line_broken(before: &[u8]) -> bool {
    let generation = without_spaces(before);
    let digits = generation.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = generation.get(..generation.len() - digits).unwrap_or_default();
    let rest = rest.strip_suffix(b"+").or_else(|| rest.strip_suffix(b"-")).unwrap_or(rest);
    let spaces = [(before, generation), (rest, without_spaces(rest))];
    spaces.iter().any(|(all, visible)| all.get(visible.len()..).unwrap_or_default().iter().any(is_line_break))
}

/// Leaves out spaces and comments. Where several percent signs of a line may begin its comment, it is the last of them, or the first.
fn without_comments<const NEAR: bool>(mut before: &[u8]) -> &[u8] {
    loop {
        let visible = without_spaces(before);
        if !before.get(visible.len()..).unwrap_or_default().iter().any(is_line_break) {
            return visible;
        }
        let line_at = visible.iter().rposition(is_line_break).map_or(0, |at| at + 1);
        // Behind a number, or on a line of its own.
        let begins_comment = |at: &usize| {
            let in_line = || visible.get(line_at..*at).map(without_spaces).unwrap_or_default();
            visible.get(*at) == Some(&b'%') && in_line().last().is_none_or(u8::is_ascii_digit)
        };
        let mut places = line_at..visible.len();
        match if NEAR { places.rfind(begins_comment) } else { places.find(begins_comment) } {
            Some(at) => before = visible.get(..at).unwrap_or_default(),
            None => return visible,
        }
    }
}

/// Whether a value has scripts, or names of attachments.
fn is_interesting(value: &Value, depth: u32) -> bool {
    match value {
        _ if depth > SEARCH_DEPTH_MAX => true,
        Value::Array(values) => values.iter().any(|value| is_interesting(value, depth + 1)),
        Value::Dictionary(entries) => {
            entries.iter().any(|(key, value)| matches!(&**key, b"JS" | b"EF") || is_interesting(value, depth + 1))
        }
        _ => false,
    }
}

/// What is kept of a stream's dictionary.
fn summary(dictionary: Value) -> Value {
    if is_interesting(&dictionary, 0) {
        return dictionary;
    }
    let Value::Dictionary(mut entries) = dictionary else { return Value::Other };
    entries.retain(|(key, _)| matches!(&**key, b"Type" | b"Filter" | b"DecodeParms" | b"DP" | b"N" | b"First"));
    Value::Dictionary(entries)
}

/// The text of a string: UTF-16, UTF-8, or near enough to Latin-1.
fn text_of(bytes: &[u8]) -> String {
    match bytes {
        [0xfe, 0xff, rest @ ..] => {
            let units = rest.as_chunks().0.iter().map(|pair| u16::from_be_bytes(*pair));
            char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => bytes.iter().copied().map(char::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::take_apart;

    #[test]
    fn objects_are_told_by_their_numbers() {
        let id = |before: &[u8]| id_before(before, without_spaces);
        assert_eq!(id(b"x 12 0 "), Some((12, 0)));
        assert_eq!(id(b"7\r\n65535\t"), Some((7, 65535)));
        assert_eq!(id(b" 00000000000000007 +00000000000000000 "), Some((7, 0)));
        assert_eq!((id(b"end"), id(b"0 "), id(b"99999999999 0 ")), (None, None, None));
        assert_eq!(next_word(b"endobj %%EOF", 4), Some((&b"%%EOF"[..], 7)));
        assert_eq!(text_of(b"\xfe\xff\0a"), "a");
    }

    #[test]
    fn data_of_forms_are_whole() {
        let taken = take_apart(
            b"%FDF-1.2\n1 0 obj\n<</FDF<</F(a.pdf)>>>>\nendobj\ntrailer\n<</Root 1 0 R>>\n%%EOF\n",
            &Passwords::NONE,
        );
        assert!(taken.outcome.is_complete(), "{:?}", taken.outcome);
    }

    #[test]
    fn objects_count_where_no_program_writes_them_in_strings() {
        for text in [&b"1 0 obj\n<</A 1>>"[..], b"words\r\n12 0 obj<<>>", b"%c\n1  0  obj \r\n <<>>"] {
            assert!(has_objects(text, true) && has_objects(text, false), "{}", String::from_utf8_lossy(text));
        }
        for text in [&b"\x80 1 0 obj<<>>"[..], b"\"1 0 obj <<>>", b"    1 0 obj\n<<"] {
            assert!(!has_objects(text, true) && has_objects(text, false), "{}", String::from_utf8_lossy(text));
        }
        for text in [&b"1 obj\n<<"[..], b"\n1 0 obj\\n<<", b"endobj <<", b"1 0 objects", b"1 0 obj", b"obj"] {
            assert!(!has_objects(text, true) && !has_objects(text, false), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_is_written_about_objects_is_not_cut_off() {
        let text = b"# PDF\n\n1 0 obj\n<< /Type /Catalog >>\nendobj\n\nis an object.\n";
        let taken = take_apart(text, &Passwords::NONE);
        assert!(taken.outcome.is_complete(), "{:?}", taken.outcome);
        let cut = [b"%PDF-1.4\n", &text[7..]].concat();
        assert!(take_apart(&cut, &Passwords::NONE).outcome.broken.is_some());
    }

    #[test]
    fn comments_may_lie_between_the_numbers() {
        let near = |before: &[u8]| id_before(before, without_comments::<true>);
        let far = |before: &[u8]| id_before(before, without_comments::<false>);
        for before in
            [&b"x 5%c\n0 "[..], b"5 0%c\r", b"5 % c\n%d\r\n\n 0 % 7 e\n", b"(100%) 5%c\n0 ", b"5 0 ", b"5\n0\n"]
        {
            assert_eq!(near(before), Some((5, 0)), "{}", String::from_utf8_lossy(before));
        }
        let doubtful = b"5 %7 %c\n0 ";
        assert_eq!((near(doubtful), far(doubtful)), (Some((7, 0)), Some((5, 0))));
        assert_eq!((near(b"x%\n0 "), near(b"%\n"), near(b"5%c 0 ")), (None, None, None));
        assert!(is_line_broken(b"5%c\n0 ") && is_line_broken(b"5 0%c\n") && !is_line_broken(b"\n5 0 "));
    }
}
