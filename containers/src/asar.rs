//! Electron's archives: a directory in JSON, and the files one after the other. Nobody wrote the format down; it is what `asar` writes and
//! Electron reads: four numbers of Chromium's "pickle" and the directory's text, in which a folder is `{"files": {name: entry}}`, and a file
//! `{"size": 1, "offset": "0"}`, its offset counted from the directory's end.
//!
//! Files are handed out as the directory is read, so that a directory of any form costs no memory but its own text. Of two keys of one name
//! both count. What is said to be unpacked lies beside the archive and not in it, and links are no files: nothing is missing then.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink};
use crate::fields::{invalid, le32};
use crate::format::{Format, whole_if};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array, read_vec};
use crate::tree::join;

/// The four numbers: the length of the next one, the directory's with the two numbers behind, that without the first of them, its text's.
const HEADER_BYTES: usize = 16;
/// The longest directory: it lies in memory.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// How many objects lie in each other at most: two a folder.
const DEPTH_MAX: usize = 256;

/// Electron's archives.
pub(crate) static FORMAT: Format = Format {
    name: "asar",
    description: "Electron archive",
    mime: "application/x-asar",
    extension: "asar",
    category: "A",
    beside: &[],
    probe: |probe| {
        let text = probe.head.get(HEADER_BYTES..).unwrap_or_default();
        whole_if(Header::new(probe.head).is_some() && text.trim_ascii_start().starts_with(b"{"))
    },
    extractor: &Asar,
};

/// What is before the directory.
struct Header {
    /// How long the directory's text is.
    text_bytes: u64,
    /// Where the files begin.
    files: u64,
}

impl Header {
    fn new(head: &[u8]) -> Option<Self> {
        let number = |at| le32(head, at).map(u64::from);
        let (four, directory, pickle, text_bytes) = (number(0)?, number(4)?, number(8)?, number(12)?);
        let fits = four == 4 && text_bytes > 0 && text_bytes + 4 <= pickle && pickle + 4 <= directory;
        fits.then_some(Self { text_bytes, files: directory + 8 })
    }
}

struct Asar;

impl Extractor for Asar {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = archive(container, &mut out);
        out.end("the archive's directory is broken", result)
    }
}

fn archive(container: &mut Container<'_>, out: &mut Out<'_, '_>) -> io::Result<()> {
    let head: [u8; HEADER_BYTES] = read_array(container.input, 0)?;
    let header = Header::new(&head).ok_or_else(|| invalid("its lengths don't fit"))?;
    let text = read_vec(container.input, HEADER_BYTES as u64, header.text_bytes, DIRECTORY_BYTES_MAX)?;
    let json = Json { text: &text, at: 0 };
    Directory { json, files: header.files, input: &mut *container.input, out }.entry("", 0)
}

/// The directory, as far as it was read.
struct Directory<'d, 'o, 's> {
    json: Json<'d>,
    files: u64,
    input: &'d mut dyn ReadSeek,
    out: &'d mut Out<'o, 's>,
}

impl Directory<'_, '_, '_> {
    /// Reads what a file or a folder is, and hands out what is in it.
    fn entry(&mut self, path: &str, depth: usize) -> io::Result<()> {
        let (mut size, mut offset) = (None, None);
        self.json.open(depth)?;
        while let Some(key) = self.json.key()? {
            match key.as_str() {
                "files" => self.folder(path, depth + 1)?,
                "size" => size = self.json.number(depth + 1)?,
                "offset" => offset = self.json.number(depth + 1)?,
                _ => self.json.pass_over(depth + 1)?,
            }
            if self.out.is_over() {
                return Ok(());
            }
        }
        if let (Some(size), Some(offset)) = (size, offset) {
            self.out.stored(path.to_owned(), self.input, self.files.saturating_add(offset), size);
        }
        Ok(())
    }

    fn folder(&mut self, path: &str, depth: usize) -> io::Result<()> {
        self.json.open(depth)?;
        while let Some(name) = self.json.key()? {
            self.entry(&join(path, &name), depth + 1)?;
            if self.out.is_over() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A text in JSON, read from its beginning to its end. What is no JSON is taken for what it seems to be, as long as it can be told what follows.
struct Json<'j> {
    text: &'j [u8],
    at: usize,
}

impl Json<'_> {
    /// The next character that is no space, or between two values.
    fn next(&mut self) -> io::Result<u8> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let space = rest.iter().take_while(|byte| byte.is_ascii_whitespace() || matches!(byte, b',' | b':')).count();
        self.at += space;
        self.text.get(self.at).copied().ok_or_else(cut_off)
    }

    /// The beginning of an object that lies in so many others.
    fn open(&mut self, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(invalid("more folders in each other than any real archive has"));
        }
        if self.next()? != b'{' {
            return Err(invalid(format!("no object at {}", self.at)));
        }
        self.at += 1;
        Ok(())
    }

    /// The next key of an object; none at its end.
    fn key(&mut self) -> io::Result<Option<String>> {
        match self.next()? {
            b'}' => {
                self.at += 1;
                Ok(None)
            }
            b'"' => self.string().map(Some),
            _ => Err(invalid(format!("no key at {}", self.at))),
        }
    }

    /// The string that begins here, without its quotes.
    fn string(&mut self) -> io::Result<String> {
        self.at += 1;
        let rest = self.text.get(self.at..).unwrap_or_default();
        let mut end = 0;
        let length = loop {
            let next = memchr::memchr2(b'"', b'\\', rest.get(end..).unwrap_or_default()).ok_or_else(cut_off)?;
            end += next;
            if rest.get(end) == Some(&b'"') {
                break end;
            }
            // What is escaped ends nothing.
            end += 2;
        };
        self.at += length + 1;
        Ok(unescaped(rest.get(..length).unwrap_or_default()))
    }

    /// The number that is next, if it is in quotes or not; none if something else is.
    fn number(&mut self, depth: usize) -> io::Result<Option<u64>> {
        let text = match self.next()? {
            b'"' => self.string()?,
            b'{' | b'[' => return self.pass_over(depth).map(|()| None),
            _ => String::from_utf8_lossy(self.word()).into_owned(),
        };
        let digits = text.trim_start_matches([' ', '+']);
        let length = digits.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, rest) = digits.split_at_checked(length).unwrap_or_default();
        if rest.starts_with(['.', 'e', 'E']) {
            // A number as JSON may write it, of which the fraction counts for nothing.
            return Ok(digits.parse::<f64>().ok().map(|number| number as u64));
        }
        Ok(whole.parse().ok())
    }

    /// What is neither a string nor an object or a list: a number, `true`, `null`.
    fn word(&mut self) -> &[u8] {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let ends =
            |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b':' | b'}' | b']' | b'{' | b'[' | b'"');
        let length = rest.iter().position(ends).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    /// Passes over one value, which may be an object or a list of others.
    fn pass_over(&mut self, depth: usize) -> io::Result<()> {
        let mut open = 0;
        loop {
            match self.next()? {
                b'{' | b'[' => {
                    self.at += 1;
                    open += 1;
                    if depth + open > DEPTH_MAX {
                        return Err(invalid("more values in each other than any real archive has"));
                    }
                }
                b'}' | b']' if open > 0 => {
                    self.at += 1;
                    open -= 1;
                }
                b'}' | b']' => return Err(invalid(format!("no value at {}", self.at))),
                b'"' => drop(self.string()?),
                _ => drop(self.word().len()),
            }
            if open == 0 {
                return Ok(());
            }
        }
    }
}

/// A string without its escapes.
fn unescaped(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    if !text.contains('\\') {
        return text.into_owned();
    }
    let mut units: Vec<u16> = Vec::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        let mut push = |character: char| units.extend(character.encode_utf16(&mut [0; 2]).iter());
        if character != '\\' {
            push(character);
            continue;
        }
        match rest.next() {
            Some('u') => {
                let digits: String = rest.by_ref().take(4).collect();
                units.push(u16::from_str_radix(&digits, 16).unwrap_or(0xfffd));
            }
            Some('n') => push('\n'),
            Some('t') => push('\t'),
            Some('r') => push('\r'),
            Some('b') => push('\u{8}'),
            Some('f') => push('\u{c}'),
            Some(other) => push(other),
            None => {}
        }
    }
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    #[test]
    fn pages_in_the_directory_are_found() {
        // Whoever opens it by its name takes it for a page.
        let text = b"{\"files\":{},\"x\":\"<script src='data:text/plain;base64,QUJDREVGR0hJSktMTU5PUA=='>\"}";
        let length = text.len() as u32;
        let header: Vec<u8> = [4, length + 8, length + 4, length].into_iter().flat_map(u32::to_le_bytes).collect();
        let found = crate::detect::detect_content(&[&header[..], text].concat()).unwrap().containers;
        assert_eq!(found.iter().map(|found| found.format.name()).collect::<Vec<_>>(), ["asar", "text"]);
    }

    use crate::conformance::{Case, Taken, check, eicar, take_apart};
    use crate::passwords::Passwords;

    fn archive(directory: &str, files: &[u8]) -> Vec<u8> {
        let text = directory.len() as u32;
        let padded = text.next_multiple_of(4);
        let numbers = [4, padded + 8, padded + 4, text];
        let header: Vec<u8> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
        [&header, directory.as_bytes(), &vec![0; (padded - text) as usize], files].concat()
    }

    fn taken(directory: &str) -> Taken {
        take_apart(&archive(directory, b"0123456789"), &Passwords::NONE)
    }

    #[test]
    fn files_in_folders_come_out() {
        let directory = r#"{"files":{"package.json":{"size":4,"offset":"0","integrity":{"algorithm":"SHA256","hash":"x","blocks":["x","y"]}},"dist":{"files":{"main.js":{"size":68,"offset":"4","executable":true},"empty":{"size":0,"offset":"72"}}}}}"#;
        let file = archive(directory, &[b"json", eicar().as_slice()].concat());
        check(&Case::new("asar", &file, &eicar()), 500);
        let names: Vec<_> = take_apart(&file, &Passwords::NONE).members.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["package.json", "dist/main.js", "dist/empty"]);
    }

    #[test]
    fn what_lies_elsewhere_is_not_missing() {
        let taken =
            taken(r#"{"files":{"a.node":{"size":1000,"unpacked":true},"b":{"link":"a"},"c":{"size":1,"offset":"9"}}}"#);
        assert!(taken.outcome.is_complete(), "{:?}", taken.outcome);
        assert_eq!(taken.members, [("c".to_owned(), b"9".to_vec())]);
    }

    #[test]
    fn a_directory_is_read_as_programs_read_it() {
        for directory in [
            r#" { "files" : { "a" : { "offset" : 2 , "size" : 3.0 } } } "#,
            r#"{"\u0066iles":{"a":{"s\u0069ze":3e0,"offset":"2"}}}"#,
            r#"{"x":[{"files":{}},"}\"",null,-1],"files":{"a":{"offset":"2","size":3,"size":3}}}"#,
        ] {
            let taken = taken(directory);
            assert!(taken.outcome.is_complete(), "{directory}: {:?}", taken.outcome);
            assert_eq!(taken.members, [("a".to_owned(), b"234".to_vec())], "{directory}");
        }
        let twice = taken(r#"{"files":{"a":{"size":1,"offset":"0"}},"files":{"a":{"size":1,"offset":"5"}}}"#);
        assert_eq!(twice.members.len(), 2);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let deep = [r#"{"files":{"a":"#.repeat(1000), "}}".repeat(1000)].concat();
        let lists = format!(r#"{{"x":{}"#, "[".repeat(1000));
        let far = r#"{"files":{"a":{"size":9,"offset":"5"}}}"#;
        for directory in [&deep, &lists, far, r#"{"files":{"a":{"size""#, r#"{"files":[]}"#] {
            assert!(taken(directory).outcome.broken.is_some(), "{directory}");
        }
    }
}
