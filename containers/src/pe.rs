//! What Windows programs carry: data behind their last section, as self-extracting archives have it, and resources of their own
//! making. Format: "PE Format" of the Windows documentation.
//!
//! A program that carries nothing is no container. Icons, dialogs, strings and the like are left out: they are part of the program's
//! own bytes, which are scanned as they are. So are signatures. Programs that UPX packed are another format.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{array, invalid, le16, le32};
use crate::format::{Claim, Format};
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array, read_vec};

/// Most sections, as Windows has it.
const SECTIONS_MAX: u16 = 96;
/// Most entries of all resource directories together, and most resources that come out.
const ENTRIES_MAX: u32 = 65_536;
/// Entries of one directory that are read at once.
const DIRECTORY_ENTRIES_MAX: u32 = 8192;
/// Directories of types, names and languages, one in the other.
const LEVELS: u32 = 3;
/// The type of resources that a program makes what it wants of; those with a name for a type are too.
const RCDATA: u32 = 10;
/// Bit of a number that says that it is the place of a name, or of a directory.
const IS_PLACE: u32 = 0x8000_0000;
/// Shorter resources hold no file worth the name.
const RESOURCE_BYTES_MIN: u32 = 16;

/// Windows programs that carry something.
pub(crate) static FORMAT: Format = Format {
    name: "pe",
    description: "Windows executable",
    mime: "application/vnd.microsoft.portable-executable",
    extension: "exe",
    category: "E",
    // What other programs find behind a program is no surprise.
    beside: &["zip"],
    probe: |probe| {
        if !probe.head.starts_with(b"MZ") {
            return Ok(Vec::new());
        }
        // Headers that can't be read are those of no program.
        let carries = Program::read(probe.input, probe.length)
            .and_then(|program| Ok(!program.behind.is_empty() || program.resources(probe.input, &mut |_| Ok(false))?));
        Ok(if carries.unwrap_or(false) { vec![Claim::Whole(0)] } else { Vec::new() })
    },
    extractor: &Pe,
};

struct Pe;

impl Extractor for Pe {
    fn extract(&self, container: &mut Container<'_>, budget: &Budget, sink: &mut Sink<'_>) -> ExtractionOutcome {
        let mut out = Out::new(budget, sink);
        let result = program(&mut *container.input, container.length, &mut out);
        out.end("the program's headers are broken", result)
    }
}

/// Part of the file.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    length: u64,
}

pub(crate) struct Section {
    address: u32,
    pub(crate) span: Span,
}

/// What a program says of itself at its beginning.
pub(crate) struct Headers {
    /// The optional header, which programs have and objects may lack.
    optional: Vec<u8>,
    pub(crate) sections: Vec<Section>,
}

struct Program {
    sections: Vec<Section>,
    /// Where the resources' root directory is, as an address.
    resources: Option<u32>,
    /// What is behind the last section, without signatures.
    behind: Vec<Span>,
    /// The last section goes on beyond the file's end.
    is_cut_off: bool,
}

/// A resource: what it is called, and where it is.
struct Resource {
    name: String,
    span: Span,
}

fn program(input: &mut dyn ReadSeek, length: u64, out: &mut Out<'_, '_>) -> io::Result<()> {
    let program = Program::read(input, length)?;
    let mut found = Vec::new();
    let result = program.resources(input, &mut |resource| {
        found.push(resource);
        Ok(true)
    });
    for resource in found {
        if out.is_over() {
            return Ok(());
        }
        out.stored(resource.name, input, resource.span.offset, resource.span.length);
    }
    for span in &program.behind {
        if out.is_over() {
            return Ok(());
        }
        out.stored("behind the program".to_owned(), input, span.offset, span.length);
    }
    if program.is_cut_off { Err(cut_off()) } else { result.map(drop) }
}

/// Reads a program's headers.
pub(crate) fn headers(input: &mut dyn ReadSeek) -> io::Result<Headers> {
    let dos: [u8; 64] = read_array(input, 0)?;
    let at = u64::from(le32(&dos, 60).ok_or_else(cut_off)?);
    let header: [u8; 24] = read_array(input, at)?;
    let (Some(count), Some(optional_bytes)) = (le16(&header, 6), le16(&header, 20)) else { return Err(cut_off()) };
    if !dos.starts_with(b"MZ") || !header.starts_with(b"PE\0\0") || count > SECTIONS_MAX {
        return Err(invalid("no program for Windows"));
    }
    let optional = read_vec(input, at + 24, u64::from(optional_bytes), u64::from(u16::MAX))?;
    let table = at + 24 + u64::from(optional_bytes);
    let table = read_vec(input, table, u64::from(count) * 40, u64::from(SECTIONS_MAX) * 40)?;
    let mut sections = Vec::new();
    for section in table.chunks_exact(40) {
        let (Some(address), Some(bytes), Some(offset)) = (le32(section, 12), le32(section, 16), le32(section, 20))
        else {
            return Err(cut_off());
        };
        let span = Span { offset: u64::from(offset), length: u64::from(bytes) };
        sections.push(Section { address, span });
    }
    Ok(Headers { optional, sections })
}

impl Program {
    fn read(input: &mut dyn ReadSeek, length: u64) -> io::Result<Self> {
        let Headers { optional, sections } = headers(input)?;
        // PE32+ has wider fields in front of the table of directories.
        let directories = if le16(&optional, 0) == Some(0x20b) { 112 } else { 96 };
        let listed = le32(&optional, directories - 4).unwrap_or(0);
        let directory = |number: usize| {
            let place = (le32(&optional, directories + number * 8)?, le32(&optional, directories + number * 8 + 4)?);
            (number < listed as usize && place.0 != 0 && place.1 != 0).then_some(place)
        };
        let filled = sections.iter().map(|section| section.span).filter(|span| span.length > 0);
        let end = filled.map(|span| span.offset + span.length).max().unwrap_or(0);
        // The fifth directory is a place in the file, not an address: signatures.
        let signatures = directory(4).map(|(offset, bytes)| Span { offset: offset.into(), length: bytes.into() });
        let resources = directory(2).map(|(address, _)| address);
        Ok(Self { sections, resources, behind: behind(end, length, signatures), is_cut_off: end > length })
    }

    /// Where an address lies in the file.
    fn offset(&self, address: u32) -> Option<u64> {
        self.sections.iter().find_map(|section| {
            let at = u64::from(address.checked_sub(section.address)?);
            (at < section.span.length).then_some(section.span.offset + at)
        })
    }

    /// Tells of each resource of the program's own making, until told to stop. Whether there was one.
    fn resources(
        &self,
        input: &mut dyn ReadSeek,
        tell: &mut dyn FnMut(Resource) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let Some(root) = self.resources.and_then(|address| self.offset(address)) else { return Ok(false) };
        let mut any = false;
        let mut entries_left = ENTRIES_MAX;
        let mut stack = vec![(0, String::new(), 0)];
        while let Some((at, path, level)) = stack.pop() {
            let entries = directory(input, root + u64::from(at))?;
            for (name, place) in entries {
                entries_left = entries_left.checked_sub(1).ok_or_else(|| invalid("too many resources"))?;
                if level == 0 && name & IS_PLACE == 0 && name != RCDATA {
                    continue;
                }
                let name = label(input, root, name)?;
                let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                if place & IS_PLACE != 0 {
                    if level + 1 >= LEVELS {
                        return Err(invalid("resources in more levels than there are"));
                    }
                    stack.push((place & !IS_PLACE, path, level + 1));
                    continue;
                }
                let leaf: [u8; 8] = read_array(input, root + u64::from(place))?;
                let (Some(address), Some(length)) = (le32(&leaf, 0), le32(&leaf, 4)) else { return Err(cut_off()) };
                if length < RESOURCE_BYTES_MIN {
                    continue;
                }
                let offset = self.offset(address).ok_or_else(|| invalid("a resource that is nowhere"))?;
                any = true;
                let span = Span { offset, length: length.into() };
                if !tell(Resource { name: display_name(path.as_bytes()), span })? {
                    return Ok(true);
                }
            }
        }
        Ok(any)
    }
}

/// What is behind the last section, without signatures.
fn behind(end: u64, length: u64, signatures: Option<Span>) -> Vec<Span> {
    let span = |from: u64, to: u64| Span { offset: from, length: to.saturating_sub(from) };
    let spans = match signatures {
        Some(signed) if signed.offset >= end && signed.offset < length => {
            // Signatures begin and end at a multiple of eight bytes.
            let after = (signed.offset + signed.length).next_multiple_of(8).min(length);
            let padded = if signed.offset - end < 8 { signed.offset } else { end };
            vec![span(padded, signed.offset), span(after, length)]
        }
        _ => vec![span(end, length)],
    };
    spans.into_iter().filter(|span| end > 0 && span.length > 0).collect()
}

/// The entries of a resource directory: a number or the place of a name, and the place of what it is.
fn directory(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Vec<(u32, u32)>> {
    let header: [u8; 16] = read_array(input, offset)?;
    let (Some(named), Some(numbered)) = (le16(&header, 12), le16(&header, 14)) else { return Err(cut_off()) };
    let count = u32::from(named) + u32::from(numbered);
    if count > DIRECTORY_ENTRIES_MAX {
        return Err(invalid("a directory of too many resources"));
    }
    let entries = read_vec(input, offset + 16, u64::from(count) * 8, u64::from(DIRECTORY_ENTRIES_MAX) * 8)?;
    Ok(entries.chunks_exact(8).filter_map(|entry| Some((le32(entry, 0)?, le32(entry, 4)?))).collect())
}

fn label(input: &mut dyn ReadSeek, root: u64, name: u32) -> io::Result<String> {
    if name & IS_PLACE == 0 {
        return Ok(name.to_string());
    }
    let at = root + u64::from(name & !IS_PLACE);
    let length = u64::from(u16::from_le_bytes(read_array(input, at)?)).min(256);
    let raw = read_vec(input, at + 2, length * 2, 512)?;
    let units: Vec<u16> = raw.chunks_exact(2).filter_map(|unit| array(unit, 0).map(u16::from_le_bytes)).collect();
    Ok(String::from_utf16_lossy(&units))
}
