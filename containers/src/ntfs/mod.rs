//! NTFS file systems. Format: the documentation of the Linux-NTFS project ("NTFS Documentation", Russon and Fledel); [MS-XCA]
//! 2.5 for LZNT1.
//!
//! The table of files is read from its beginning to its end, whatever the directories say: a file that no directory lists comes out too. Each of a
//! file's streams is a member, an alternate one as `file:stream`. What the file system keeps for itself, deleted files and links are left out;
//! files that Windows encrypted are told.

mod attribute;
mod lznt1;

use std::collections::{HashMap, HashSet};
use std::io;

use crate::container::ReadSeek;
use crate::fields::{array, invalid, le16, le64, utf16_le};
use crate::file_systems::FileSystem;
use crate::format::{Format, whole_if};
use crate::outcome::Protection;
use crate::parts::{Out, cut_off, read_array};
use crate::tree::{Pieces, join};

use attribute::{Attribute, Body, Runs, attributes};
use lznt1::Units;

/// Records of the table are 1 or 4 KiB, clusters up to 2 MiB.
const RECORD_BYTES_MAX: u64 = 64 << 10;
const CLUSTER_BYTES_MAX: u64 = 2 << 20;
/// Update marks are in the last two bytes of so many.
const MARKED_BYTES: usize = 512;
/// Files below this number are the file system's own, and the directory of this number holds more of them.
const OWN_RECORDS: u64 = 16;
const ROOT_RECORD: u64 = 5;
const OWN_DIRECTORY: u64 = 11;
/// The lower bits of a reference to a record are its number.
const NUMBER_MASK: u64 = (1 << 48) - 1;
/// Most records that one file is spread over.
const EXTENSIONS_MAX: usize = 4096;
/// The longest list of attributes: the format's bound.
const LIST_BYTES_MAX: u64 = 256 << 10;
/// How many folders a path is followed up.
const PATH_FOLDERS_MAX: usize = 256;
/// So many names of folders are remembered.
const NAMES_MAX: usize = 1 << 16;

const RECORD_IN_USE: u16 = 1;
const NAMESPACE_DOS: u8 = 2;
/// The stream in which files are that Windows compressed for its own installation.
const OVERLAY_STREAM: &str = "WofCompressedData";

/// NTFS.
pub(crate) static FORMAT: Format = Format {
    name: "ntfs",
    description: "NTFS file system",
    mime: "application/x-ntfs-image",
    extension: "img",
    category: "I",
    beside: &[],
    probe: |probe| whole_if(is_one(probe.head)),
    extractor: &FILE_SYSTEM,
};

pub(crate) static FILE_SYSTEM: FileSystem =
    FileSystem { owns_first_sector: true, is_one, volume, broken: "the file system is broken" };

/// Whether a volume that begins like this is one.
fn is_one(head: &[u8]) -> bool {
    Layout::parse(head).is_some()
}

/// Where things are, from the boot sector.
#[derive(Clone, Copy)]
struct Layout {
    cluster_bytes: u64,
    record_bytes: u64,
    table: u64,
}

impl Layout {
    /// None if it is no boot sector of NTFS.
    fn parse(boot: &[u8]) -> Option<Self> {
        if boot.get(3..11)? != b"NTFS    " {
            return None;
        }
        let sector_bytes = u64::from(le16(boot, 11)?);
        let [per_cluster] = array(boot, 13)?;
        // Large numbers are negative ones: powers of two.
        let shift = |number: u8| 1u64.checked_shl(u32::from(number.wrapping_neg()));
        let per_cluster = if per_cluster > 128 { shift(per_cluster)? } else { u64::from(per_cluster) };
        let cluster_bytes = sector_bytes.checked_mul(per_cluster)?;
        let [per_record] = array(boot, 64)?;
        let record_bytes = if per_record >= 128 { shift(per_record)? } else { u64::from(per_record) * cluster_bytes };
        let is_sane = matches!(sector_bytes, 256..=4096)
            && cluster_bytes.is_power_of_two()
            && cluster_bytes <= CLUSTER_BYTES_MAX
            && record_bytes.is_power_of_two()
            && (MARKED_BYTES as u64..=RECORD_BYTES_MAX).contains(&record_bytes);
        let table = le64(boot, 48)?.checked_mul(cluster_bytes)?;
        is_sane.then_some(Self { cluster_bytes, record_bytes, table })
    }
}

/// The name of a file or a folder, and the folder that it is in.
#[derive(Clone)]
struct Name {
    parent: u64,
    name: String,
}

struct Volume<'v> {
    input: &'v mut dyn ReadSeek,
    layout: Layout,
    table: Pieces,
    /// Names of folders that were looked up; none for one that has no name.
    names: HashMap<u64, Option<Name>>,
}

/// Hands out all files of a file system, in a folder.
fn volume(input: &mut dyn ReadSeek, folder: &str, out: &mut Out<'_, '_>) -> io::Result<()> {
    let boot: [u8; 512] = read_array(input, 0)?;
    let layout = Layout::parse(&boot).ok_or_else(|| invalid("a malformed boot sector"))?;
    let mut first = Pieces::default();
    first.push(Some(layout.table), layout.record_bytes)?;
    let mut volume = Volume { input, layout, table: first, names: HashMap::new() };
    volume.table = volume.whole_table(out)?;
    let records = volume.table.length() / layout.record_bytes;
    for number in 0..records {
        if out.is_over() {
            return Ok(());
        }
        if let Err(error) = volume.file(number, folder, out) {
            // Behind the end of an image that is cut off there is nothing more.
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return Err(error);
            }
            out.outcome.note_error(&format!("record {number}"), &error);
        }
    }
    Ok(())
}

impl Volume<'_> {
    /// Where the whole table is: its first record says it, or the records that it names.
    fn whole_table(&mut self, out: &Out<'_, '_>) -> io::Result<Pieces> {
        let record = self.record(0)?.ok_or_else(|| invalid("no table of files"))?;
        // What the first record says of the table may be needed for finding what the others say.
        let own: Vec<Attribute> = attributes(&record)?.into_iter().filter(is_plain_data).collect();
        self.table = self.pieces(&own, out)?;
        let all: Vec<Attribute> = self.all_attributes(0, &record)?.into_iter().filter(is_plain_data).collect();
        self.pieces(&all, out)
    }

    /// A record, its update marks taken out; none if nothing was ever there.
    fn record(&mut self, number: u64) -> io::Result<Option<Vec<u8>>> {
        let at = number.checked_mul(self.layout.record_bytes);
        let missing = || invalid(format!("record {number} is not there"));
        let (offset, left) = at.and_then(|at| self.table.locate(at)).ok_or_else(missing)?;
        let offset = offset.ok_or_else(cut_off)?;
        let mut record = if left >= self.layout.record_bytes {
            crate::parts::read_vec(self.input, offset, self.layout.record_bytes, RECORD_BYTES_MAX)?
        } else {
            // A record longer than a cluster may lie in two places.
            let mut part = self.table.clone();
            part.cut(at.unwrap_or(0).saturating_add(self.layout.record_bytes));
            part.skip(at.unwrap_or(0));
            part.read_vec(self.input, self.layout.record_bytes, RECORD_BYTES_MAX)?
        };
        if !record.starts_with(b"FILE") {
            return Ok(None);
        }
        take_marks_out(&mut record)?;
        Ok(Some(record))
    }

    /// The attributes of a file: those in its record, and those in the records that its list names.
    fn all_attributes(&mut self, number: u64, record: &[u8]) -> io::Result<Vec<Attribute>> {
        let mut all = attributes(record)?;
        let Some(list) = all.iter().find(|attribute| attribute.kind == attribute::LIST).cloned() else {
            return Ok(all);
        };
        let list = match list.body {
            Body::Resident(bytes) => bytes,
            Body::Elsewhere(runs) => {
                let mut pieces = Pieces::default();
                runs.add_to(&mut pieces, self.layout.cluster_bytes)?;
                pieces.read_vec(self.input, runs.length, LIST_BYTES_MAX)?
            }
        };
        let mut others = HashSet::new();
        let mut rest = list.as_slice();
        while let (Some(length), Some(reference)) = (le16(rest, 4), le64(rest, 16)) {
            others.insert(reference & NUMBER_MASK);
            rest = rest.get(usize::from(length.max(24))..).unwrap_or_default();
            if others.len() > EXTENSIONS_MAX {
                return Err(invalid("a file of more records than any real one has"));
            }
        }
        // The record itself is in its own list.
        others.remove(&number);
        for other in others {
            let Some(extension) = self.record(other)? else { continue };
            if le64(&extension, 32).is_some_and(|base| base & NUMBER_MASK == number) {
                all.extend(attributes(&extension)?);
            }
        }
        Ok(all)
    }

    /// Where a stream is that these attributes describe, each a part of it.
    fn pieces(&mut self, parts: &[Attribute], out: &Out<'_, '_>) -> io::Result<Pieces> {
        out.check()?;
        let mut pieces = Pieces::default();
        joined(parts)?.add_to(&mut pieces, self.layout.cluster_bytes)?;
        Ok(pieces)
    }

    /// Hands out the streams of a file, and those of a folder.
    fn file(&mut self, number: u64, folder: &str, out: &mut Out<'_, '_>) -> io::Result<()> {
        let Some(record) = self.record(number)? else { return Ok(()) };
        let (Some(flags), Some(base)) = (le16(&record, 22), le64(&record, 32)) else { return Err(cut_off()) };
        if flags & RECORD_IN_USE == 0 || base & NUMBER_MASK != 0 {
            return Ok(());
        }
        let mut attributes = self.all_attributes(number, &record)?;
        let name = name_of(&attributes);
        let is_own = (number < OWN_RECORDS && number != ROOT_RECORD)
            || name.as_ref().is_some_and(|name| name.parent == OWN_DIRECTORY);
        attributes.retain(|attribute| {
            attribute.kind == attribute::DATA
                && !(is_own && (attribute.name.is_empty() || attribute.name.starts_with('$')))
        });
        attributes.sort_by(|a, b| (&a.name, a.first_cluster).cmp(&(&b.name, b.first_cluster)));
        if attributes.is_empty() {
            return Ok(());
        }
        let path = self.path(name, number, folder)?;
        let is_overlaid = attributes.iter().any(|attribute| attribute.name == OVERLAY_STREAM);
        for parts in attributes.chunk_by(|a, b| a.name == b.name) {
            let stream = parts.first().map(|part| part.name.as_str()).unwrap_or_default();
            if is_overlaid && stream.is_empty() {
                out.outcome.note_broken(format!("member {path:?} is compressed in a way that is not read here"));
                continue;
            }
            let name = if stream.is_empty() { path.clone() } else { join("", &format!("{path}:{stream}")) };
            if let Err(error) = self.stream(&name, parts, out) {
                out.outcome.note_error(&format!("member {name:?}"), &error);
            }
            if out.is_over() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn stream(&mut self, name: &str, parts: &[Attribute], out: &mut Out<'_, '_>) -> io::Result<()> {
        let Some(first) = parts.first() else { return Ok(()) };
        if first.is_encrypted() {
            out.outcome.note_protected(Protection::Archive);
            return Ok(());
        }
        if let Body::Resident(content) = &first.body {
            out.member(name.to_owned(), Some(content.len() as u64), &mut content.as_slice());
            return Ok(());
        }
        let runs = joined(parts)?;
        let (length, written) = (runs.length, runs.written.min(runs.length));
        if runs.unit_shift > 0 && first.is_compressed() {
            let mut content = Units::new(self.input, runs, self.layout.cluster_bytes)?;
            out.member(name.to_owned(), Some(length), &mut content);
            return Ok(());
        }
        let mut pieces = self.pieces(parts, out)?;
        if pieces.length() < written {
            return Err(cut_off());
        }
        pieces.cut(written);
        pieces.fill_up(length)?;
        out.member(name.to_owned(), Some(length), &mut pieces.content(self.input, length));
        Ok(())
    }

    /// The path of a file, by the folders above it.
    fn path(&mut self, name: Option<Name>, number: u64, folder: &str) -> io::Result<String> {
        let mut names = Vec::new();
        let mut at = name.unwrap_or_else(|| Name { parent: ROOT_RECORD, name: format!("file {number}") });
        if number == ROOT_RECORD {
            return Ok(folder.to_owned());
        }
        for _ in 0..PATH_FOLDERS_MAX {
            let parent = at.parent;
            names.push(at.name);
            if parent == ROOT_RECORD {
                break;
            }
            match self.folder(parent) {
                Some(name) => at = name,
                None => {
                    names.push("lost".to_owned());
                    break;
                }
            }
        }
        Ok(names.iter().rev().fold(folder.to_owned(), |path, name| join(&path, name)))
    }

    /// The name of a folder.
    fn folder(&mut self, number: u64) -> Option<Name> {
        if let Some(name) = self.names.get(&number) {
            return name.clone();
        }
        let record = self.record(number).ok().flatten();
        let name = record.and_then(|record| self.all_attributes(number, &record).ok()).and_then(|all| name_of(&all));
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        self.names.insert(number, name.clone());
        name
    }
}

fn is_plain_data(attribute: &Attribute) -> bool {
    attribute.kind == attribute::DATA && attribute.name.is_empty()
}

/// The parts of a stream as one.
fn joined(parts: &[Attribute]) -> io::Result<Runs> {
    let mut parts: Vec<&Attribute> = parts.iter().collect();
    parts.sort_by_key(|part| part.first_cluster);
    let mut whole: Option<Runs> = None;
    let mut clusters = 0u64;
    for part in parts {
        let Body::Elsewhere(runs) = &part.body else { return Err(invalid("a stream of two kinds")) };
        if part.first_cluster != clusters {
            return Err(invalid("a part of a stream is missing"));
        }
        clusters = clusters.saturating_add(runs.clusters());
        match &mut whole {
            None => whole = Some(runs.clone()),
            Some(whole) => whole.runs.extend_from_slice(&runs.runs),
        }
    }
    whole.ok_or_else(|| invalid("a stream without a place"))
}

/// The name of a file: the long one, if it has a short one too.
fn name_of(attributes: &[Attribute]) -> Option<Name> {
    let names = attributes.iter().filter(|attribute| attribute.kind == attribute::FILE_NAME);
    let names = names.filter_map(|attribute| {
        let Body::Resident(bytes) = &attribute.body else { return None };
        let [units, namespace] = array(bytes, 64)?;
        let name = utf16_le(bytes.get(66..66 + usize::from(units) * 2)?);
        Some((namespace == NAMESPACE_DOS, Name { parent: le64(bytes, 0)? & NUMBER_MASK, name }))
    });
    names.min_by_key(|(is_short, _)| *is_short).map(|(_, name)| name)
}

/// Takes out the marks that tell whether a record was written completely, and puts back what they stand for.
fn take_marks_out(record: &mut [u8]) -> io::Result<()> {
    let (Some(at), Some(count)) = (le16(record, 4), le16(record, 6)) else { return Err(cut_off()) };
    let marks = record.get(usize::from(at)..).and_then(|marks| marks.get(..usize::from(count) * 2));
    let marks = marks.ok_or_else(|| invalid("malformed update marks"))?.to_vec();
    let (mark, originals) = marks.split_at_checked(2).ok_or_else(|| invalid("no update marks"))?;
    for (block, original) in record.chunks_exact_mut(MARKED_BYTES).zip(originals.as_chunks::<2>().0) {
        let end = block.last_chunk_mut::<2>().ok_or_else(cut_off)?;
        if end != mark {
            return Err(invalid("a record that was not written completely"));
        }
        *end = *original;
    }
    Ok(())
}
