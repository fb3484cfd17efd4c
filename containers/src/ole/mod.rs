//! Compound files of OLE: the office documents of before 2007, installers (MSI), Outlook's messages, and OOXML under a password.
//!
//! Every stream is handed out, under its path. Some hold something that is handed out instead or besides: the file in a
//! package (instead, with the name it was given), the source of VBA modules (besides, since the compiled code says
//! something else at times), an attachment of a message (under its own name), a message's compressed text, and the decrypted package of
//! an encrypted document (instead), the compound files that a presentation embeds (besides), the file in a stream that is a package by its
//! content alone (besides). Streams that no storage knows are handed out too.
//!
//! Documents of before 2007 that are encrypted are told as protected and not decrypted. The streams of Hangul's documents come out inflated as
//! well.

mod compound;
mod encryption;
mod hangul;
mod outlook;
pub(crate) mod package;
mod powerpoint;
mod vba;

use std::collections::HashMap;
use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::DeflateDecoder;

pub(crate) use self::compound::MAGIC;
use self::compound::{Compound, Kind};
pub(crate) use self::outlook::decompress as compressed_text;
use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, display_name, hand_out};
use crate::fields::{le16, le32, read_at_most, until_zero, utf16_le};
use crate::format::{Format, whole_if};
use crate::outcome::{ExtractionOutcome, Protection};
use crate::passwords::Passwords;

/// The longest stream that is taken into memory to look for source, and the longest directory of a project.
const MODULE_BYTES_MAX: u64 = 16 << 20;
/// How far into a document it is looked for whether it is encrypted: a workbook says so behind other records.
const RECORDS_BYTES_MAX: u64 = 1 << 20;
/// What is read like this of all streams of a file; then less of each.
const ALL_RECORDS_BYTES_MAX: usize = 64 << 20;
const FIRST_RECORDS_BYTES: u64 = 4096;
/// The longest name of an attachment that is read.
const NAME_BYTES_MAX: u64 = 4096;

/// Compound files of OLE.
pub(crate) static FORMAT: Format = Format {
    name: "ole",
    description: "Compound File Binary",
    mime: "application/x-cfb",
    extension: "cfb",
    category: "D",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(&compound::MAGIC)),
    extractor: &Ole,
};

struct Ole;

impl Extractor for Ole {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut outcome = ExtractionOutcome::default();
        let passwords = container.passwords;
        match Compound::open(container.input, container.length) {
            Ok(mut compound) => {
                if let Some(error) = compound.broken.take() {
                    outcome.note_error("the compound file is broken", &error);
                }
                let (is_deflated, attachment_names) = (false, HashMap::new());
                let mut walk = Walk { compound, passwords, budget, sink, outcome, is_deflated, attachment_names };
                walk.run();
                outcome = walk.outcome;
                if let Some(error) = walk.compound.broken {
                    outcome.note_error("the compound file is broken", &error);
                }
            }
            Err(error) => outcome.note_error("the compound file is broken", &error),
        }
        outcome
    }
}

struct Walk<'w, 's, 'i> {
    compound: Compound<'i>,
    passwords: &'w Passwords,
    budget: &'w Budget,
    sink: &'w mut Sink<'s>,
    outcome: ExtractionOutcome,
    /// It is a document of Hangul, whose streams are deflated.
    is_deflated: bool,
    /// The streams that name attachments, by the storage that they lie in and their property.
    attachment_names: HashMap<(Option<usize>, &'static str), usize>,
}

impl Walk<'_, '_, '_> {
    fn run(&mut self) {
        let streams: Vec<usize> = (0..self.compound.entries.len())
            .filter(|index| self.compound.entries.get(*index).is_some_and(|entry| entry.kind == Kind::Stream))
            .collect();
        for index in &streams {
            let property = property(self.name_of(*index));
            let property = property.and_then(|property| {
                outlook::ATTACHMENT_NAMES.into_iter().find(|name| property.eq_ignore_ascii_case(name))
            });
            if let Some(property) = property {
                self.attachment_names.insert((self.parent_of(*index), property), *index);
            }
        }
        self.note_protection(&streams);
        let encrypted = self.encrypted_package(&streams);
        let offsets = self.module_offsets(&streams);
        for index in streams {
            if self.outcome.is_over() || self.budget.check().map_err(|halt| self.outcome.note_halt(halt)).is_err() {
                return;
            }
            if Some(index) != encrypted {
                self.stream(index, &offsets);
            }
        }
    }

    fn name_of(&self, index: usize) -> &str {
        self.compound.entries.get(index).map_or("", |entry| entry.name.as_str())
    }

    fn parent_of(&self, index: usize) -> Option<usize> {
        self.compound.entries.get(index).and_then(|entry| entry.parent)
    }

    fn beginning(&mut self, index: usize, most_bytes: u64) -> io::Result<Vec<u8>> {
        read_at_most(&mut self.compound.stream(index)?, most_bytes)
    }

    /// Notes that a document of before 2007 is encrypted.
    fn note_protection(&mut self, streams: &[usize]) {
        let mut read_bytes = 0;
        for index in streams {
            // Programs find streams whatever the case of their names. A document that is embedded has them in its storage.
            let is_encrypted: fn(&[u8]) -> bool = match self.name_of(*index).to_ascii_lowercase().as_str() {
                // FibBase: magic number, then the flags at 10, of which one is fEncrypted.
                "worddocument" => {
                    |head| le16(head, 0) == Some(0xa5ec) && le16(head, 10).is_some_and(|flags| flags & 0x0100 != 0)
                }
                "workbook" | "book" => workbook_is_encrypted,
                // CurrentUserAtom: an encrypted document has this token.
                "current user" => |head| le32(head, 12) == Some(0xf3d1_c4df),
                "encryptedsummary" => |_| true,
                "fileheader" => {
                    let flags = self.beginning(*index, 64).ok().and_then(|header| hangul::flags(&header));
                    self.is_deflated |= flags.is_some_and(|flags| flags & hangul::DEFLATED != 0);
                    |header| hangul::flags(header).is_some_and(|flags| flags & hangul::ENCRYPTED != 0)
                }
                _ => continue,
            };
            // Of many of them, which may all be the same, only the first records.
            let most = if read_bytes < ALL_RECORDS_BYTES_MAX { RECORDS_BYTES_MAX } else { FIRST_RECORDS_BYTES };
            let Ok(head) = self.beginning(*index, most) else { continue };
            read_bytes += head.len();
            if is_encrypted(&head) {
                return self.outcome.note_protected(Protection::Document);
            }
        }
    }

    /// Hands out the document that an encrypted one is, decrypted. Tells which stream it lies in.
    fn encrypted_package(&mut self, streams: &[usize]) -> Option<usize> {
        let named = |walk: &Self, name| {
            let is_it = |index: &usize| walk.name_of(*index).eq_ignore_ascii_case(name);
            streams.iter().copied().find(|index| is_it(index) && walk.parent_of(*index) == Some(0))
        };
        let (info, package) = (named(self, "EncryptionInfo")?, named(self, "EncryptedPackage")?);
        let info = match self.beginning(info, encryption::INFO_BYTES_MAX) {
            Ok(info) => info,
            Err(error) => {
                self.outcome.note_error("the document's encryption can't be read", &error);
                return None;
            }
        };
        match encryption::open(&info, self.passwords, self.budget) {
            Ok(Some((key, is_given))) => {
                if is_given {
                    self.outcome.note_decrypted();
                }
                let content = self.compound.stream(package);
                let content = content.map(|stream| encryption::Decrypted::new(stream, key));
                match content {
                    Ok(mut content) => {
                        let handed_out = hand_out("package".to_owned(), None, &mut content, self.budget, self.sink);
                        self.note("the encrypted package", handed_out);
                    }
                    Err(error) => self.outcome.note_error("the encrypted package", &error),
                }
                Some(package)
            }
            Ok(None) => {
                self.outcome.note_protected(Protection::Document);
                None
            }
            Err(halt) => {
                self.outcome.note_halt(halt);
                None
            }
        }
    }

    /// Where in which streams VBA source begins, by the directories of the projects.
    fn module_offsets(&mut self, streams: &[usize]) -> HashMap<(Option<usize>, String), u32> {
        let mut offsets = HashMap::new();
        for index in streams {
            if !self.name_of(*index).eq_ignore_ascii_case("dir") {
                continue;
            }
            let parent = self.parent_of(*index);
            let Ok(stream) = self.compound.stream(*index) else { continue };
            let mut dir = Vec::new();
            // A directory that is broken further on names modules nevertheless.
            let read = vba::Decompressor::new(stream).take(MODULE_BYTES_MAX).read_to_end(&mut dir);
            let (modules, is_whole) = vba::modules(&dir);
            // What it doesn't name is found only if its source begins as it mostly does.
            if self.is_beside_a_project(*index) && (read.is_err() || !is_whole) {
                self.outcome.note_broken("the directory of a project is malformed");
            }
            for module in modules {
                offsets.insert((parent, module.stream.to_lowercase()), module.offset);
            }
        }
        offsets
    }

    /// Hands out a stream, and what is made of it.
    fn stream(&mut self, index: usize, offsets: &HashMap<(Option<usize>, String), u32>) {
        let name = self.name_of(index).to_owned();
        let path = display_name(shown_path(&self.compound.path(index)).as_bytes());
        if name.to_ascii_lowercase().ends_with("ole10native") {
            return self.package(index, &path);
        }
        if let Some(property) = property(&name) {
            match property.to_ascii_uppercase().as_str() {
                outlook::ATTACHMENT => {
                    let path = self.attachment_path(index, &path);
                    return self.raw(index, path);
                }
                outlook::TEXT_COMPRESSED => return self.compressed_text(index, &path),
                _ => {}
            }
        }
        self.raw(index, path.clone());
        self.unnamed_package(index, &path);
        if self.is_deflated && !self.outcome.is_over() && path.split_once('/').is_some() {
            self.inflated(index, &path);
        }
        if name.eq_ignore_ascii_case(powerpoint::STREAM) {
            return self.storages(index, &path);
        }
        let offset = offsets.get(&(self.parent_of(index), name.to_lowercase())).copied();
        let beside_dir = self.is_beside_a_project(index);
        if !self.outcome.is_over() && (offset.is_some() || beside_dir) && !name.eq_ignore_ascii_case("dir") {
            self.source(index, &path, offset, beside_dir);
        }
    }

    fn raw(&mut self, index: usize, path: String) {
        let size = self.compound.entries.get(index).map(|entry| entry.size);
        let handed_out = match self.compound.stream(index) {
            Ok(mut stream) => hand_out(path.clone(), size, &mut stream, self.budget, self.sink),
            Err(error) => Ok(Some(error)),
        };
        self.note(&format!("stream {path:?}"), handed_out);
    }

    /// Hands out what a stream of Hangul is inflated, if it was deflated: pictures of some kinds are not.
    fn inflated(&mut self, index: usize, path: &str) {
        let Ok(stream) = self.compound.stream(index) else { return };
        let mut content = DeflateDecoder::new(BufReader::new(stream));
        let Ok(beginning) = read_at_most(&mut content, hangul::BEGINNING_BYTES) else { return };
        if beginning.is_empty() {
            return;
        }
        let mut content = Cursor::new(beginning).chain(content);
        let handed_out = hand_out(format!("{path}.inflated"), None, &mut content, self.budget, self.sink);
        // What is wrong with it means that it lies there as it is, and so it came out.
        if let Err(halt) = handed_out {
            self.outcome.note_halt(halt);
        }
    }

    /// Hands out the compound files that a presentation embeds.
    fn storages(&mut self, index: usize, path: &str) {
        let found = self.compound.stream(index).and_then(powerpoint::storages);
        let (storages, are_more) = match found {
            Ok(found) => found,
            Err(error) => return self.outcome.note_error(&format!("stream {path:?}"), &error),
        };
        if are_more {
            self.outcome.note_broken("the presentation embeds more objects than are read");
        }
        for (number, storage) in (1..).zip(storages) {
            if self.outcome.is_over() {
                return;
            }
            let name = format!("{}object-{number}", folder(path));
            let handed_out = match self.compound.stream(index).and_then(|mut stream| {
                skip(&mut stream, storage.offset)?;
                Ok(stream.take(storage.length))
            }) {
                Ok(content) if storage.is_deflated => {
                    let mut content = flate2::bufread::ZlibDecoder::new(BufReader::new(content));
                    hand_out(name, None, &mut content, self.budget, self.sink)
                }
                Ok(mut content) => hand_out(name, Some(storage.length), &mut content, self.budget, self.sink),
                Err(error) => Ok(Some(error)),
            };
            self.note(&format!("object {number} of {path:?}"), handed_out);
        }
    }

    /// Whether a stream lies in the storage of a project's modules.
    fn is_beside_a_project(&self, index: usize) -> bool {
        let parent = self.parent_of(index).and_then(|parent| self.compound.entries.get(parent));
        parent.is_some_and(|parent| parent.kind == Kind::Storage && parent.name.eq_ignore_ascii_case("VBA"))
    }

    /// Hands out a module's source: from where the directory says, or else from where it seems to begin.
    fn source(&mut self, index: usize, path: &str, offset: Option<u32>, search: bool) {
        let Ok(stream) = self.beginning(index, MODULE_BYTES_MAX) else { return };
        let begins = |at: &usize| stream.get(*at) == Some(&1);
        let named = offset.and_then(|offset| usize::try_from(offset).ok()).filter(begins);
        let found = if search { vba::find_source(&stream) } else { None };
        if named.is_none() && found.is_none() {
            // The streams that are no module have no source; one that is named as a module should have.
            if offset.is_some() {
                self.outcome.note_broken(format!("module {path:?} has no source where the project says"));
            }
            return;
        }
        let mut offsets = vec![];
        offsets.extend(named);
        offsets.extend(found.filter(|found| Some(*found) != named));
        for at in offsets {
            let mut source = vba::Decompressor::new(stream.get(at..).unwrap_or_default());
            let handed_out = hand_out(format!("{path}.bas"), None, &mut source, self.budget, self.sink);
            self.note(&format!("the source of {path:?}"), handed_out);
            if self.outcome.is_over() {
                return;
            }
        }
    }

    /// Hands out the file in a package; or what lies in an object that is none, without its length.
    fn package(&mut self, index: usize, path: &str) {
        let beginning = match self.beginning(index, package::HEADER_BYTES_MAX) {
            Ok(beginning) => beginning,
            Err(error) => return self.outcome.note_error(&format!("stream {path:?}"), &error),
        };
        let (name, offset, length) = match package::package(&beginning, 4) {
            Some(package) => {
                (format!("{}{}", folder(path), package.name), package.offset as u64, Some(u64::from(package.length)))
            }
            None => {
                self.unnamed_package(index, path);
                (path.to_owned(), 4, None)
            }
        };
        let size = self.compound.entries.get(index).map_or(0, |entry| entry.size);
        let rest = size.saturating_sub(offset);
        if length.is_some_and(|length| length > rest) {
            self.outcome.note_broken(format!("the package in {path:?} ends inside its file"));
        }
        // What follows the file are its names again, in UTF-16.
        self.part(index, path, name, offset, length.unwrap_or(rest));
    }

    /// Hands out part of a stream.
    fn part(&mut self, index: usize, path: &str, name: String, offset: u64, length: u64) {
        let handed_out = match self.compound.stream(index) {
            Ok(mut stream) => match skip(&mut stream, offset) {
                Ok(()) => hand_out(name, Some(length), &mut stream.take(length), self.budget, self.sink),
                Err(error) => Ok(Some(error)),
            },
            Err(error) => Ok(Some(error)),
        };
        self.note(&format!("stream {path:?}"), handed_out);
    }

    /// Hands out the file in what is a package by its content alone: some programs go by that.
    fn unnamed_package(&mut self, index: usize, path: &str) {
        if self.outcome.is_over() {
            return;
        }
        let size = self.compound.entries.get(index).map_or(0, |entry| entry.size);
        // What can't be read was told with the stream.
        let Ok(beginning) = self.beginning(index, package::HEADER_BYTES_MAX) else { return };
        let Some(package) = package::unnamed_package(&beginning, size) else { return };
        let name = format!("{}{}", folder(path), package.name);
        self.part(index, path, name, package.offset as u64, u64::from(package.length));
    }

    /// Under which path an attachment is shown: by its name, which is a stream beside it.
    fn attachment_path(&mut self, index: usize, path: &str) -> String {
        let parent = self.parent_of(index);
        for property in outlook::ATTACHMENT_NAMES {
            let beside = self.attachment_names.get(&(parent, property)).copied();
            let Some(name) = beside.and_then(|beside| self.beginning(beside, NAME_BYTES_MAX).ok()) else { continue };
            let name = if property.ends_with("1F") {
                utf16_le(&name)
            } else {
                String::from_utf8_lossy(until_zero(&name)).into_owned()
            };
            if !name.is_empty() {
                return display_name(format!("{}{name}", folder(path)).as_bytes());
            }
        }
        path.to_owned()
    }

    fn compressed_text(&mut self, index: usize, path: &str) {
        let size = self.compound.entries.get(index).map_or(0, |entry| entry.size);
        if size > outlook::TEXT_BYTES_MAX {
            return self.raw(index, path.to_owned());
        }
        match self.beginning(index, outlook::TEXT_BYTES_MAX) {
            Ok(data) => {
                let (text, end) = outlook::decompress(&data);
                let length = Some(text.len() as u64);
                let name = format!("{}text.rtf", folder(path));
                let handed_out = hand_out(name, length, &mut Cursor::new(text), self.budget, self.sink);
                self.note("the message's text", handed_out);
                if let Err(error) = end {
                    self.outcome.note_error("the message's text", &error);
                }
            }
            Err(error) => self.outcome.note_error(&format!("stream {path:?}"), &error),
        }
    }

    fn note(&mut self, what: &str, handed_out: Result<Option<io::Error>, crate::limits::Halt>) {
        match handed_out {
            Ok(None) => {}
            Ok(Some(error)) => self.outcome.note_error(what, &error),
            Err(halt) => self.outcome.note_halt(halt),
        }
    }
}

/// The number and type of the property of a message that a stream is named after.
fn property(name: &str) -> Option<&str> {
    let (prefix, property) = name.split_at_checked(outlook::PROPERTY.len())?;
    Some(property).filter(|_| prefix.eq_ignore_ascii_case(outlook::PROPERTY))
}

/// Whether a workbook's first records say that the others are encrypted. Format: [MS-XLS] 2.4.117. It ends with the first part of the
/// workbook, whose other parts lie behind it as they are.
fn workbook_is_encrypted(head: &[u8]) -> bool {
    const FILE_PASS: u16 = 0x2f;
    const END: u16 = 0x0a;
    let mut at = 0;
    while let (Some(kind), Some(length)) = (le16(head, at), le16(head, at + 2)) {
        if kind == FILE_PASS {
            return true;
        }
        if kind == END {
            return false;
        }
        at += 4 + usize::from(length);
    }
    false
}

/// A path's folder with its slash; nothing for a name alone.
fn folder(path: &str) -> &str {
    path.rfind('/').and_then(|slash| path.get(..=slash)).unwrap_or("")
}

fn skip(input: &mut impl Read, bytes: u64) -> io::Result<()> {
    io::copy(&mut input.take(bytes), &mut io::sink()).map(drop)
}

/// A path as it is meant: installers write two characters of a name as one that nobody can read.
fn shown_path(path: &str) -> String {
    const CHARACTERS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._";
    let mut shown = String::new();
    for character in path.chars() {
        let code = u32::from(character);
        let letter = |index: u32| CHARACTERS.get((index & 0x3f) as usize).map_or('_', |byte| char::from(*byte));
        match code {
            0x3800..0x4800 => shown.extend([letter(code - 0x3800), letter((code - 0x3800) >> 6)]),
            0x4800..0x4840 => shown.push(letter(code - 0x4800)),
            0x4840 => shown.push('!'),
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_installers_can_be_read() {
        // The stream of the table "_Tables".
        assert_eq!(shown_path("\u{4840}\u{3f7f}\u{4164}\u{422f}\u{4836}"), "!_Tables");
        assert_eq!(shown_path("a/\u{5}Summary"), "a/\u{5}Summary");
        assert_eq!((folder("a/b/c"), folder("c")), ("a/b/", ""));
    }
}
