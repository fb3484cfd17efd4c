//! XAR archives: macOS packages. Format: the xar project's wiki, "xarformat". A table of contents in XML names the files; what they hold
//! lies behind it, mostly compressed.
//!
//! Of the XML only what says where a file lies is taken, through comments, CDATA and entities, as any parser of XML reads it. Checksums
//! are not verified.

use std::io::{self, BufReader, Read};

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, display_name};
use crate::fields::{be16, be64, find, invalid, unsupported};
use crate::format::{Format, whole_if};
use crate::limits::DECODER_BYTES_MAX;
use crate::outcome::ExtractionOutcome;
use crate::parts::{BUFFER_BYTES, Exactly, Out, cut_off, part, read_array, read_vec};

const MAGIC: &[u8] = b"xar!";
/// The longest table of contents, compressed and not.
const CONTENTS_BYTES_MAX: u64 = 16 << 20;
/// How deep files may lie in folders.
const DEPTH_MAX: usize = 256;

/// XAR.
pub(crate) static FORMAT: Format = Format {
    name: "xar",
    description: "XAR",
    mime: "application/x-xar",
    extension: "xar",
    category: "A",
    beside: &[],
    probe: |probe| whole_if(probe.head.starts_with(MAGIC) && be16(probe.head, 6) == Some(1)),
    extractor: &Xar,
};

struct Xar;

impl Extractor for Xar {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = archive(container, &mut out);
        out.end("the archive is broken", result)
    }
}

fn archive(container: &mut Container<'_>, out: &mut Out<'_, '_>) -> io::Result<()> {
    let header: [u8; 28] = read_array(container.input, 0)?;
    let header_bytes = be16(&header, 4).map(u64::from).ok_or_else(cut_off)?;
    let (Some(packed_bytes), Some(bytes)) = (be64(&header, 8), be64(&header, 16)) else { return Err(cut_off()) };
    if bytes > CONTENTS_BYTES_MAX {
        return Err(invalid("a table of contents longer than any real one"));
    }
    let packed = read_vec(container.input, header_bytes, packed_bytes, CONTENTS_BYTES_MAX)?;
    let mut contents = Vec::new();
    flate2::bufread::ZlibDecoder::new(packed.as_slice()).take(CONTENTS_BYTES_MAX + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 != bytes {
        return Err(invalid("the table of contents is not as long as it says"));
    }
    let heap = header_bytes.checked_add(packed_bytes).ok_or_else(|| invalid("malformed length"))?;
    Contents { rest: &contents, stack: Vec::new(), files: Vec::new(), text: Text::default() }.walk(container, heap, out)
}

/// A file of the table, as far as it is read.
#[derive(Default)]
struct File {
    name: String,
    /// The same of the element `data` in it, whose fields have names that others have too.
    offset: Option<u64>,
    length: Option<u64>,
    size: Option<u64>,
    encoding: String,
}

/// The text of an element, as far as it is read.
#[derive(Default)]
struct Text {
    content: Vec<u8>,
    /// Of how many pieces that are not empty it is made: parsers give it out so, and some programs take the last for all of it.
    pieces: usize,
    /// It has an entity that is not known.
    is_unknown: bool,
}

impl Text {
    fn add(&mut self, piece: &[u8]) {
        self.content.extend_from_slice(piece);
        self.pieces += usize::from(!piece.trim_ascii().is_empty());
    }

    /// Adds text with entities.
    fn add_escaped(&mut self, text: &[u8]) {
        let mut pieces = text.split(|byte| *byte == b'&');
        self.add(pieces.next().unwrap_or_default());
        for piece in pieces {
            let end = piece.iter().position(|byte| *byte == b';');
            let (name, behind) = piece.split_at_checked(end.unwrap_or(piece.len())).unwrap_or_default();
            match character(name) {
                Some(character) => self.add(character.encode_utf8(&mut [0; 4]).as_bytes()),
                None => self.is_unknown = true,
            }
            self.add(behind.get(1..).unwrap_or_default());
        }
    }
}

/// The character that an entity stands for; none if only a document type could say it.
fn character(name: &[u8]) -> Option<char> {
    let name = std::str::from_utf8(name).ok()?;
    match (name.strip_prefix("#x"), name.strip_prefix('#')) {
        (Some(digits), _) => char::from_u32(u32::from_str_radix(digits, 16).ok()?),
        (None, Some(digits)) => char::from_u32(digits.parse().ok()?),
        _ => Some(match name {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            _ => return None,
        }),
    }
}

/// What an attribute of a tag says.
fn attribute(tag: &[u8], wanted: &[u8]) -> Option<String> {
    let mut rest = tag;
    loop {
        let equals = rest.iter().position(|byte| *byte == b'=')?;
        let (name, value) = rest.split_at_checked(equals)?;
        let name = name.trim_ascii_end().rsplit(u8::is_ascii_whitespace).next()?;
        let (quote, value) = value.get(1..)?.trim_ascii_start().split_first()?;
        let end = value.iter().position(|byte| byte == quote)?;
        let (value, behind) = value.split_at_checked(end)?;
        if name == wanted {
            let mut text = Text::default();
            text.add_escaped(value);
            return Some(String::from_utf8_lossy(&text.content).into_owned());
        }
        rest = behind.get(1..)?;
    }
}

struct Contents<'x> {
    rest: &'x [u8],
    /// The elements that are open.
    stack: Vec<&'x [u8]>,
    /// The files that are open: folders hold others.
    files: Vec<File>,
    /// What was read of the text since the last tag.
    text: Text,
}

impl<'x> Contents<'x> {
    fn walk(mut self, container: &mut Container<'_>, heap: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
        let mut has_tags = false;
        while let Some(open) = self.rest.iter().position(|byte| *byte == b'<') {
            if out.is_over() {
                return Ok(());
            }
            let (text, behind) = self.rest.split_at_checked(open).unwrap_or_default();
            self.text.add_escaped(text);
            self.rest = behind;
            if self.passes_over_markup(out)? {
                continue;
            }
            has_tags = true;
            let tag = self.tag()?;
            self.end_text(out);
            if let Some(name) = tag.strip_prefix(b"/") {
                if self.stack.pop() != Some(name.trim_ascii()) {
                    return Err(invalid("the table of contents is no XML"));
                }
                if name.trim_ascii() == b"file" {
                    self.file(container, heap, out);
                }
                continue;
            }
            let name = tag.split(|byte| byte.is_ascii_whitespace() || *byte == b'/').next().unwrap_or_default();
            if name == b"encoding"
                && self.is_in_data()
                && let (Some(file), Some(style)) = (self.files.last_mut(), attribute(tag, b"style"))
            {
                file.encoding = style;
            }
            if !tag.ends_with(b"/") {
                self.stack.push(name);
                if name == b"file" {
                    self.files.push(File::default());
                }
                if self.stack.len() > DEPTH_MAX * 2 {
                    return Err(invalid("folders deeper than any real ones"));
                }
            }
        }
        if self.stack.is_empty() && has_tags { Ok(()) } else { Err(cut_off()) }
    }

    /// Passes over a comment, CDATA, which is text, or something else that is no tag.
    fn passes_over_markup(&mut self, out: &mut Out<'_, '_>) -> io::Result<bool> {
        let kinds: [(&[u8], &[u8]); 4] = [(b"<!--", b"-->"), (b"<![CDATA[", b"]]>"), (b"<?", b"?>"), (b"<!", b">")];
        let kind = kinds.into_iter().find(|(begin, _)| self.rest.starts_with(begin));
        let Some((begin, end)) = kind else { return Ok(false) };
        let behind = self.rest.get(begin.len()..).unwrap_or_default();
        let length = find(behind, end).ok_or_else(cut_off)?;
        let (content, behind) = behind.split_at_checked(length).unwrap_or_default();
        self.rest = behind.get(end.len()..).unwrap_or_default();
        match begin {
            b"<![CDATA[" => self.text.add(content),
            b"<?" => {
                let encoding = attribute(content, b"encoding").filter(|_| content.starts_with(b"xml"));
                if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("utf-8")) {
                    out.outcome.note_broken("the table of contents is in an encoding that no program writes");
                }
            }
            // It may define entities, and no program writes one.
            b"<!" => out.outcome.note_broken("the table of contents has a document type"),
            _ => {}
        }
        Ok(true)
    }

    /// Takes the tag that is next, without its brackets. In quotes a bracket doesn't end it.
    fn tag(&mut self) -> io::Result<&'x [u8]> {
        let rest = self.rest.get(1..).unwrap_or_default();
        let mut quote = None;
        let end = rest.iter().position(|byte| {
            match (quote, byte) {
                (None, b'>') => return true,
                (None, b'"' | b'\'') => quote = Some(*byte),
                (Some(open), byte) if open == *byte => quote = None,
                _ => {}
            }
            false
        });
        let (tag, behind) = rest.split_at_checked(end.ok_or_else(cut_off)?).unwrap_or_default();
        self.rest = behind.get(1..).unwrap_or_default();
        Ok(tag)
    }

    fn is_in_data(&self) -> bool {
        matches!(self.stack.as_slice(), [.., b"file", b"data"])
    }

    /// The text up to the next tag is read: it may be a name, or a number.
    fn end_text(&mut self, out: &mut Out<'_, '_>) {
        let text = std::mem::take(&mut self.text);
        let content = text.content.trim_ascii();
        let Some(file) = self.files.last_mut() else { return };
        let number = match self.stack.as_slice() {
            [.., b"file", b"name"] if !content.is_empty() => {
                file.name = display_name(content);
                return;
            }
            [.., b"file", b"data", b"offset"] => &mut file.offset,
            [.., b"file", b"data", b"length"] => &mut file.length,
            [.., b"file", b"data", b"size"] => &mut file.size,
            _ => return,
        };
        if content.is_empty() && !text.is_unknown {
            return;
        }
        let is_number = !text.is_unknown && content.iter().all(u8::is_ascii_digit);
        let parsed = std::str::from_utf8(content).ok().and_then(|digits| digits.parse().ok()).filter(|_| is_number);
        if parsed.is_none() {
            out.outcome.note_broken("the table of contents has a number that can't be read");
        }
        if text.pieces > 1 || (number.is_some() && *number != parsed) {
            out.outcome.note_suspicious("the table of contents has a number that programs read differently");
        }
        *number = parsed;
    }

    /// Hands out the file that ends here, if it has content.
    fn file(&mut self, container: &mut Container<'_>, heap: u64, out: &mut Out<'_, '_>) {
        let Some(file) = self.files.pop() else { return };
        let path: Vec<&str> =
            self.files.iter().map(|folder| folder.name.as_str()).chain([file.name.as_str()]).collect();
        let path = display_name(path.join("/").as_bytes());
        if (file.offset, file.length, file.size) == (None, None, None) {
            return;
        }
        let (Some(length), Some(size)) = (file.length, file.size) else {
            return out.outcome.note_broken(format!("{path}: the table of contents doesn't say how long it is"));
        };
        // Programs take what is not said for the beginning.
        let content = heap
            .checked_add(file.offset.unwrap_or(0))
            .ok_or_else(|| invalid("malformed offset"))
            .and_then(|offset| part(container.input, offset, length))
            .and_then(|packed| decoder(&file.encoding, packed));
        out.made(path, Some(size), content.map(|content| Exactly::new(content, size)));
    }
}

fn decoder<'i>(encoding: &str, packed: impl io::BufRead + 'i) -> io::Result<Box<dyn Read + 'i>> {
    Ok(match encoding {
        "" | "application/octet-stream" => Box::new(packed),
        // It is called so, but it is zlib.
        "application/x-gzip" => Box::new(flate2::bufread::ZlibDecoder::new(packed)),
        "application/x-bzip2" => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
        "application/x-lzma" | "application/x-xz" => {
            let most_kib = (DECODER_BYTES_MAX / 1024) as u32;
            let mut packed = BufReader::with_capacity(BUFFER_BYTES, packed);
            let is_xz = io::BufRead::fill_buf(&mut packed)?.starts_with(b"\xfd7zXZ");
            if is_xz {
                Box::new(lzma_rust2::XzReader::new_mem_limit(packed, true, most_kib))
            } else {
                Box::new(lzma_rust2::LzmaReader::new_mem_limit(packed, most_kib, None)?)
            }
        }
        other => return Err(unsupported(format!("encoding {other:?}"))),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::conformance::{Taken, eicar, take_apart};
    use crate::passwords::Passwords;

    fn deflated(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// An archive of one file, deflated, with the fields of its data.
    fn archive(before: &str, data: &str) -> Taken {
        let heap = deflated(&eicar());
        let data = data.replace("LENGTH", &format!("<length>{}</length>", heap.len()));
        let contents = format!(
            "{before}<xar><toc><file id='1'><name>a</name><type>file</type><data>{data}</data></file></toc></xar>"
        );
        let packed = deflated(contents.as_bytes());
        let mut file = [b"xar!".as_slice(), &28_u16.to_be_bytes(), &1_u16.to_be_bytes()].concat();
        file.extend((packed.len() as u64).to_be_bytes());
        file.extend((contents.len() as u64).to_be_bytes());
        file.extend([0; 4]);
        take_apart(&[file, packed, heap].concat(), &Passwords::NONE)
    }

    const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
    const STYLE: &str = "<encoding style='application/x-gzip'/>";

    #[test]
    fn numbers_are_read_through_all_that_xml_allows() {
        let with = |offset: &str| format!("LENGTH <offset>{offset}</offset> <size> 68 </size> {STYLE}");
        for (before, data) in [
            (DECLARATION, with("0")),
            (DECLARATION, with("0<!-- <x> -->")),
            (DECLARATION, with("<?x > ?>0")),
            ("", with("&#48;")),
            ("<!-- <file> -->", with("&#x30;")),
            ("", with("<![CDATA[0]]>")),
            ("", format!("LENGTH<size>68</size>{STYLE}")),
            ("", with("0").replace(STYLE, "<encoding xstyle=\"a>b\" style = \"application/x-&#103;zip\" />")),
        ] {
            let taken = archive(before, &data);
            assert_eq!(taken.members, [("a".to_owned(), eicar())], "{data}");
            assert!(taken.outcome.is_complete(), "{data}: {}", taken.outcome.detail());
        }
    }

    #[test]
    fn what_is_no_number_is_told() {
        let with = |offset: &str| format!("LENGTH<offset>{offset}</offset><size>68</size>{STYLE}");
        let broken = |before: &str, data: &str| archive(before, data).outcome.broken.is_some();
        for offset in ["&zero;", "0x", "+0", "-1", "99999999999999999999999", "a"] {
            assert!(broken("", &with(offset)), "{offset}");
        }
        assert!(broken("<!DOCTYPE xar [<!ENTITY zero '0'>]>", &with("0")));
        assert!(broken("<?xml version='1.0' encoding='UTF-7'?>", &with("0")));
        assert!(broken("", "<offset>0</offset><size>68</size>") && broken("", "LENGTH<offset>0</offset>"));
        // Some programs take the last piece for all, and the last number.
        for offset in ["1<!-- -->0", "1&#48;", "1</offset><offset>0"] {
            assert!(archive("", &with(offset)).outcome.suspicious.is_some(), "{offset}");
        }
        // A folder, and a file of no bytes, have nothing to find.
        assert!(archive("", "").outcome.is_complete());
    }
}
