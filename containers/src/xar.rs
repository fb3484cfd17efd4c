//! XAR archives: macOS packages. Format: the xar project's wiki, "xarformat". A table of contents in XML names the files; what they hold
//! lies behind it, mostly compressed.
//!
//! Of the XML only what says where a file lies is taken; entities in names stay as they are. Checksums are not verified.

use std::io::{self, BufReader, Read};

use crate::budget::Budget;
use crate::container::{Container, Extractor, Sink, display_name};
use crate::fields::{be16, be64, invalid, unsupported};
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
    Contents { rest: &contents, stack: Vec::new(), files: Vec::new() }.walk(container, heap, out)
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

struct Contents<'x> {
    rest: &'x [u8],
    /// The elements that are open.
    stack: Vec<&'x [u8]>,
    /// The files that are open: folders hold others.
    files: Vec<File>,
}

impl<'x> Contents<'x> {
    fn walk(mut self, container: &mut Container<'_>, heap: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
        while let Some(open) = self.rest.iter().position(|byte| *byte == b'<') {
            if out.is_over() {
                return Ok(());
            }
            let (text, behind) = self.rest.split_at_checked(open).unwrap_or_default();
            let end = behind.iter().position(|byte| *byte == b'>').ok_or_else(cut_off)?;
            let tag = behind.get(1..end).unwrap_or_default();
            self.rest = behind.get(end + 1..).unwrap_or_default();
            self.text(text.trim_ascii());
            if let Some(name) = tag.strip_prefix(b"/") {
                if self.stack.pop() != Some(name.trim_ascii()) {
                    return Err(invalid("the table of contents is no XML"));
                }
                if name.trim_ascii() == b"file" {
                    self.file(container, heap, out);
                }
                continue;
            }
            if tag.starts_with(b"?") || tag.starts_with(b"!") {
                continue;
            }
            let name = tag.split(|byte| byte.is_ascii_whitespace() || *byte == b'/').next().unwrap_or_default();
            if name == b"encoding" && self.is_in_data() {
                let style = String::from_utf8_lossy(tag).into_owned();
                if let (Some(file), Some((_, style))) = (self.files.last_mut(), style.split_once("style=")) {
                    file.encoding = style.chars().skip(1).take_while(|c| !matches!(c, '"' | '\'')).collect();
                }
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
        if self.stack.is_empty() { Ok(()) } else { Err(cut_off()) }
    }

    fn is_in_data(&self) -> bool {
        matches!(self.stack.as_slice(), [.., b"file", b"data"])
    }

    fn text(&mut self, text: &[u8]) {
        let number = || std::str::from_utf8(text).ok()?.parse().ok();
        let Some(file) = self.files.last_mut() else { return };
        match self.stack.as_slice() {
            [.., b"file", b"name"] => file.name = display_name(text),
            [.., b"file", b"data", b"offset"] => file.offset = number(),
            [.., b"file", b"data", b"length"] => file.length = number(),
            [.., b"file", b"data", b"size"] => file.size = number(),
            _ => {}
        }
    }

    /// Hands out the file that ends here, if it has content.
    fn file(&mut self, container: &mut Container<'_>, heap: u64, out: &mut Out<'_, '_>) {
        let Some(file) = self.files.pop() else { return };
        let path: Vec<&str> =
            self.files.iter().map(|folder| folder.name.as_str()).chain([file.name.as_str()]).collect();
        let path = display_name(path.join("/").as_bytes());
        let (Some(offset), Some(length), Some(size)) = (file.offset, file.length, file.size) else {
            return;
        };
        let content = heap
            .checked_add(offset)
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
