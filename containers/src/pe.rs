//! What Windows programs carry: data behind their last section, as self-extracting archives have it, and resources of their own
//! making. Format: "PE Format" of the Windows documentation.
//!
//! A program that carries nothing is no container. Resources of the types that Windows itself reads, icons, dialogs, strings and the like,
//! are left out: nearly all programs have them, and they are part of the program's own bytes, which are scanned as they are. So are
//! signatures; but not what lies among them, since nothing but their own length tells whether they are any. Programs that UPX packed are
//! another format.

use std::io;

use crate::budget::Budget;
use crate::container::{Container, Extractor, ReadSeek, Sink, display_name};
use crate::fields::{array, invalid, le16, le32};
use crate::format::{Claim, Format};
use crate::limits::Halt;
use crate::outcome::ExtractionOutcome;
use crate::parts::{Out, cut_off, read_array, read_vec};

/// Most sections, as Windows has it.
const SECTIONS_MAX: u16 = 96;
/// Most entries of all resource directories together, and most resources that come out.
const ENTRIES_MAX: u32 = 65_536;
/// Directories of types, names and languages, one in the other.
const LEVELS: u32 = 3;
/// The types of resources that Windows itself reads: cursors, bitmaps, icons, menus, dialogs, strings, fonts, accelerators, messages, groups of
/// cursors and of icons, versions, names of header files, animated cursors and icons, manifests, and what the resource editor keeps of dialogs and
/// toolbars. Of all others a program makes what it wants, and of those with a name for a type.
const SYSTEM_TYPES: [u32; 19] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 16, 17, 21, 22, 24, 240, 241];
/// Bit of a number that says that it is the place of a name, or of a directory.
const IS_PLACE: u32 = 0x8000_0000;
/// What a signature begins with: its length, and which version and type it is.
const SIGNATURE_HEADER_BYTES: u64 = 8;
/// Most signatures of a program: most have one, some two.
const SIGNATURES_MAX: usize = 64;
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
            .is_ok_and(|program| !program.behind.is_empty() || program.resources(probe.input, &mut |_| false).0);
        Ok(if carries { vec![Claim::Whole(0)] } else { Vec::new() })
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
    /// What is behind the last section, and among the signatures, without them.
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
    let (_, result) = program.resources(input, &mut |resource| {
        found.push(resource);
        true
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
    if program.is_cut_off { Err(cut_off()) } else { result }
}

/// Whether what comes out of a program begins at `offset`.
pub(crate) fn comes_out(input: &mut dyn ReadSeek, length: u64, offset: u64) -> bool {
    Program::read(input, length).is_ok_and(|program| program.behind.iter().any(|span| span.offset == offset))
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
        let behind = behind(input, end, length, signatures)?;
        Ok(Self { sections, resources, behind, is_cut_off: end > length })
    }

    /// Where an address lies in the file.
    fn offset(&self, address: u32) -> Option<u64> {
        self.sections.iter().find_map(|section| {
            let at = u64::from(address.checked_sub(section.address)?);
            (at < section.span.length).then_some(section.span.offset + at)
        })
    }

    /// Tells of each resource of the program's own making, until told to stop. Whether there was one, or are more than are looked into, and how
    /// it ended. An entry that can't be read hides none of the others: Windows reads those that it is asked for.
    fn resources(&self, input: &mut dyn ReadSeek, tell: &mut dyn FnMut(Resource) -> bool) -> (bool, io::Result<()>) {
        let Some(root) = self.resources.and_then(|address| self.offset(address)) else { return (false, Ok(())) };
        let (mut any, mut result) = (false, Ok(()));
        let mut entries_left = ENTRIES_MAX;
        let mut stack = vec![(0, String::new(), 0)];
        while let Some((at, path, level)) = stack.pop() {
            let entries = directory(input, root + u64::from(at)).unwrap_or_else(|error| {
                note(&mut result, error);
                Vec::new()
            });
            for (name, place) in entries {
                let Some(left) = entries_left.checked_sub(1) else {
                    // What is no directory may look like an endless one, but not further in.
                    return (any || level > 0, Err(invalid("too many resources")));
                };
                entries_left = left;
                if level == 0 && name & IS_PLACE == 0 && SYSTEM_TYPES.contains(&name) {
                    continue;
                }
                match self.entry(input, root, &path, name, place) {
                    Ok(Entry::Directory(_, _)) if level + 1 >= LEVELS => {
                        note(&mut result, invalid("resources in more levels than there are"));
                    }
                    Ok(Entry::Directory(at, path)) => stack.push((at, path, level + 1)),
                    Ok(Entry::Resource(resource)) => {
                        any = true;
                        if !tell(resource) {
                            return (any, result);
                        }
                    }
                    Ok(Entry::Nothing) => {}
                    Err(error) if Halt::of(&error).is_some() => return (any, Err(error)),
                    Err(error) => note(&mut result, error),
                }
            }
        }
        (any, result)
    }

    fn entry(&self, input: &mut dyn ReadSeek, root: u64, path: &str, name: u32, place: u32) -> io::Result<Entry> {
        let name = label(input, root, name)?;
        let path = if path.is_empty() { name } else { format!("{path}/{name}") };
        if place & IS_PLACE != 0 {
            return Ok(Entry::Directory(place & !IS_PLACE, path));
        }
        let leaf: [u8; 8] = read_array(input, root + u64::from(place))?;
        let (Some(address), Some(length)) = (le32(&leaf, 0), le32(&leaf, 4)) else { return Err(cut_off()) };
        if length < RESOURCE_BYTES_MIN {
            return Ok(Entry::Nothing);
        }
        let offset = self.offset(address).ok_or_else(|| invalid("a resource that is nowhere"))?;
        let span = Span { offset, length: length.into() };
        Ok(Entry::Resource(Resource { name: display_name(path.as_bytes()), span }))
    }
}

/// What an entry of a directory of resources leads to.
enum Entry {
    /// Where it is, and what it is called.
    Directory(u32, String),
    Resource(Resource),
    Nothing,
}

/// Keeps the first error.
fn note(result: &mut io::Result<()>, error: io::Error) {
    if result.is_ok() {
        *result = Err(error);
    }
}

/// What is behind the last section and is no signature.
fn behind(input: &mut dyn ReadSeek, end: u64, length: u64, signatures: Option<Span>) -> io::Result<Vec<Span>> {
    let span = |from: u64, to: u64| Span { offset: from, length: to.saturating_sub(from) };
    let spans = match signatures {
        Some(signed) if signed.offset >= end && signed.offset < length => {
            // Signatures begin and end at a multiple of eight bytes.
            let after = (signed.offset + signed.length).next_multiple_of(8).min(length);
            let padded = if signed.offset - end < 8 { signed.offset } else { end };
            let mut spans = vec![span(padded, signed.offset)];
            spans.extend(among_signatures(input, signed.offset, after)?);
            spans.push(span(after, length));
            spans
        }
        _ => vec![span(end, length)],
    };
    Ok(spans.into_iter().filter(|span| end > 0 && span.length > 0).collect())
}

/// What is no signature between two places where there should be nothing else: each is a header and a sequence of ASN.1, filled up to a multiple
/// of eight bytes. Installers put what they are told there behind it, since that doesn't break the signature.
fn among_signatures(input: &mut dyn ReadSeek, start: u64, end: u64) -> io::Result<Vec<Span>> {
    let mut spans = Vec::new();
    let mut at = start;
    for _ in 0..SIGNATURES_MAX {
        if at >= end {
            return Ok(spans);
        }
        let Some((signed_end, entry_end)) = signature(input, at)?.filter(|(_, entry_end)| *entry_end <= end) else {
            break;
        };
        let entry_end = entry_end.next_multiple_of(8).min(end);
        if entry_end - signed_end >= 8 {
            spans.push(Span { offset: signed_end, length: entry_end - signed_end });
        }
        at = entry_end;
    }
    if at < end {
        spans.push(Span { offset: at, length: end - at });
    }
    Ok(spans)
}

/// Where a signature at an offset ends, and where by its header. None if there is none.
fn signature(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Option<(u64, u64)>> {
    let Ok(bytes) = read_array::<14>(input, offset) else { return Ok(None) };
    let Some(entry_bytes) = le32(&bytes, 0).map(u64::from) else { return Ok(None) };
    let [_, _, _, _, _, _, _, _, 0x30, short, long @ ..] = bytes else { return Ok(None) };
    let header_bytes = SIGNATURE_HEADER_BYTES + 2;
    let signed_bytes = match usize::from(short).checked_sub(0x80) {
        None => header_bytes + u64::from(short),
        Some(digits @ 1..=4) => {
            let value = long.iter().take(digits).fold(0, |value, byte| value << 8 | u64::from(*byte));
            header_bytes + digits as u64 + value
        }
        Some(_) => return Ok(None),
    };
    Ok((signed_bytes <= entry_bytes).then_some((offset + signed_bytes, offset + entry_bytes)))
}

/// The entries of a resource directory: a number or the place of a name, and the place of what it is.
fn directory(input: &mut dyn ReadSeek, offset: u64) -> io::Result<Vec<(u32, u32)>> {
    let header: [u8; 16] = read_array(input, offset)?;
    let (Some(named), Some(numbered)) = (le16(&header, 12), le16(&header, 14)) else { return Err(cut_off()) };
    let count = u32::from(named) + u32::from(numbered);
    // One more than are looked into, so that it is told.
    let count = count.min(ENTRIES_MAX + 1);
    let entries = read_vec(input, offset + 16, u64::from(count) * 8, u64::from(ENTRIES_MAX + 1) * 8)?;
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
