//! FAT12, FAT16 and FAT32 file systems. Format: "Microsoft Extensible Firmware Initiative FAT32 File System Specification" 1.03.
//!
//! Files are handed out by their long names where they have one. Deleted files and the space behind the end of a file are left
//! out. exFAT is another format.

use std::collections::HashSet;
use std::io::{self, Read, SeekFrom};

use crate::container::{ReadSeek, display_name, read_full};
use crate::fields::{array, invalid, le16, le32};
use crate::file_systems::FileSystem;
use crate::format::{Format, whole_if};
use crate::parts::{Out, cut_off, read_array};

/// A directory has at most 65,536 entries of 32 bytes.
const DIRECTORY_BYTES_MAX: u64 = 2 << 20;
const ENTRY_BYTES: usize = 32;
/// Most directories: each costs a place in a set.
const DIRECTORIES_MAX: usize = 1 << 16;
/// The longest path that is kept.
const PATH_BYTES_MAX: usize = 4096;
/// How much of the table is read at once.
const TABLE_BYTES: u64 = 4096;

const ATTRIBUTE_LABEL: u8 = 8;
const ATTRIBUTE_DIRECTORY: u8 = 16;
const ATTRIBUTES_LONG_NAME: u8 = 15;

/// FAT.
pub(crate) static FORMAT: Format = Format {
    name: "fat",
    description: "FAT file system",
    mime: "application/x-fat-image",
    extension: "img",
    category: "I",
    beside: &[],
    probe: |probe| whole_if(is_one(probe.head)),
    extractor: &FILE_SYSTEM,
};

pub(crate) static FILE_SYSTEM: FileSystem =
    FileSystem { owns_first_sector: true, is_one, volume, broken: "the file system is broken" };

#[derive(Clone, Copy)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

/// Where things are, from the boot sector.
#[derive(Clone, Copy)]
struct Layout {
    table: u64,
    /// The root directory of FAT12 and FAT16, which is no chain of clusters.
    root: u64,
    root_bytes: u64,
    root_cluster: u32,
    data: u64,
    cluster_bytes: u64,
    clusters: u32,
    width: Width,
}

impl Layout {
    /// None if it is no boot sector of a FAT file system.
    fn parse(boot: &[u8]) -> Option<Self> {
        let jump = matches!(boot, [0xeb, _, 0x90, ..] | [0xe9, ..]);
        let has_marks = jump && boot.get(510..512)? == [0x55, 0xaa];
        let sector = u64::from(le16(boot, 11)?);
        let [per_cluster, _, _, tables] = array(boot, 13)?;
        let reserved = u64::from(le16(boot, 14)?);
        let media = *boot.get(21)?;
        let is_one = matches!(sector, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=4).contains(&tables)
            && (media == 0xf0 || media >= 0xf8);
        if !is_one {
            return None;
        }
        let or = |small: u16, large: usize| match small {
            0 => le32(boot, large).map(u64::from),
            small => Some(u64::from(small)),
        };
        let table_sectors = or(le16(boot, 22)?, 36)?;
        let total = or(le16(boot, 19)?, 32)?;
        let root_bytes = u64::from(le16(boot, 17)?) * ENTRY_BYTES as u64;
        let root = (reserved + u64::from(tables) * table_sectors) * sector;
        let data = root + root_bytes.div_ceil(sector) * sector;
        let cluster_bytes = u64::from(per_cluster) * sector;
        let clusters = u32::try_from((total * sector).checked_sub(data)? / cluster_bytes).ok()?;
        let width = match clusters {
            0..4085 => Width::Bits12,
            4085..65_525 => Width::Bits16,
            _ => Width::Bits32,
        };
        let root_cluster = if root_bytes == 0 { le32(boot, 44)? } else { 0 };
        // Some programs look for neither the jump nor the mark at the end. Without them the numbers must agree: the table has room for
        // each cluster and the two before the first.
        let entry_bits = match width {
            Width::Bits12 => 12,
            Width::Bits16 => 16,
            Width::Bits32 => 32,
        };
        let is_consistent =
            clusters > 0 && (u64::from(clusters) + 2) * entry_bits <= table_sectors.saturating_mul(sector * 8);
        (table_sectors > 0 && (has_marks || is_consistent)).then_some(Self {
            table: reserved * sector,
            root,
            root_bytes,
            root_cluster,
            data,
            cluster_bytes,
            clusters,
            width,
        })
    }
}

/// Whether a boot sector is one of a FAT file system.
fn is_one(boot: &[u8]) -> bool {
    Layout::parse(boot).is_some()
}

struct Volume<'v> {
    input: &'v mut dyn ReadSeek,
    layout: Layout,
    /// Part of the table, and where it begins.
    kept: (u64, Vec<u8>),
}

struct Directory {
    cluster: u32,
    path: String,
}

/// Hands out all files of a file system, in a folder.
fn volume(input: &mut dyn ReadSeek, folder: &str, out: &mut Out<'_, '_>) -> io::Result<()> {
    let boot: [u8; 512] = read_array(input, 0)?;
    let layout = Layout::parse(&boot).ok_or_else(|| invalid("a malformed boot sector"))?;
    let mut volume = Volume { input, layout, kept: (0, Vec::new()) };
    let mut seen = HashSet::from([layout.root_cluster]);
    let mut queue = vec![Directory { cluster: layout.root_cluster, path: folder.to_owned() }];
    while let Some(directory) = queue.pop() {
        if out.is_over() {
            return Ok(());
        }
        if let Err(error) = volume.directory(&directory, &mut queue, &mut seen, out) {
            out.outcome.note_error(&format!("directory {:?}", directory.path), &error);
        }
    }
    Ok(())
}

impl Volume<'_> {
    fn read_at(&mut self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        crate::parts::read_vec(self.input, offset, length, DIRECTORY_BYTES_MAX)
    }

    /// The byte at a place of the table.
    fn table_byte(&mut self, at: u64) -> io::Result<u8> {
        let start = at - at % TABLE_BYTES;
        if self.kept.0 != start || self.kept.1.is_empty() {
            self.input.seek(SeekFrom::Start(self.layout.table.saturating_add(start)))?;
            let mut kept = vec![0; TABLE_BYTES as usize];
            let read = read_full(self.input, &mut kept)?;
            kept.truncate(read);
            self.kept = (start, kept);
        }
        self.kept.1.get((at - start) as usize).copied().ok_or_else(cut_off)
    }

    /// The cluster that follows one; none behind the last.
    fn next(&mut self, cluster: u32) -> io::Result<Option<u32>> {
        let at = u64::from(cluster);
        let width = self.layout.width;
        let mut bytes = |offset: u64, count: u64| {
            (0..count).try_fold(0u32, |number, byte| {
                Ok::<_, io::Error>(number | u32::from(self.table_byte(offset + byte)?) << (8 * byte))
            })
        };
        let (next, end) = match width {
            Width::Bits12 => (bytes(at + at / 2, 2)? >> (4 * (at % 2)) & 0xfff, 0xff8),
            Width::Bits16 => (bytes(at * 2, 2)?, 0xfff8),
            Width::Bits32 => (bytes(at * 4, 4)? & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((next < end).then_some(next))
    }

    fn offset(&self, cluster: u32) -> io::Result<u64> {
        let at = cluster.checked_sub(2).filter(|at| *at < self.layout.clusters);
        let at = at.ok_or_else(|| invalid(format!("cluster {cluster} is not there")))?;
        Ok(self.layout.data + u64::from(at) * self.layout.cluster_bytes)
    }

    fn directory(
        &mut self,
        directory: &Directory,
        queue: &mut Vec<Directory>,
        seen: &mut HashSet<u32>,
        out: &mut Out<'_, '_>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        if directory.cluster == 0 {
            bytes = self.read_at(self.layout.root, self.layout.root_bytes)?;
        } else {
            let mut cluster = Some(directory.cluster);
            while let Some(at) = cluster {
                bytes.extend(self.read_at(self.offset(at)?, self.layout.cluster_bytes)?);
                if bytes.len() as u64 > DIRECTORY_BYTES_MAX {
                    return Err(invalid("a directory longer than the format allows"));
                }
                cluster = self.next(at)?;
            }
        }
        let mut long = Vec::new();
        for entry in bytes.chunks_exact(ENTRY_BYTES) {
            if out.is_over() {
                return Ok(());
            }
            let [first, ..] = entry else { continue };
            let attributes = *entry.get(11).unwrap_or(&0);
            match (*first, attributes & 0x3f) {
                (0, _) => break,
                (0xe5, _) => long.clear(),
                (b'.', attributes) if attributes & ATTRIBUTE_DIRECTORY != 0 && is_own(entry) => long.clear(),
                (_, ATTRIBUTES_LONG_NAME) => long_name(entry, &mut long),
                (_, attributes) if attributes & ATTRIBUTE_LABEL != 0 => long.clear(),
                _ => {
                    let name = name(entry, &std::mem::take(&mut long));
                    self.entry(entry, attributes, join(&directory.path, &name)?, queue, seen, out)?;
                }
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: &[u8],
        attributes: u8,
        path: String,
        queue: &mut Vec<Directory>,
        seen: &mut HashSet<u32>,
        out: &mut Out<'_, '_>,
    ) -> io::Result<()> {
        let (high, low, length) = (le16(entry, 20), le16(entry, 26), le32(entry, 28));
        let (Some(high), Some(low), Some(length)) = (high, low, length) else { return Err(cut_off()) };
        let high = if matches!(self.layout.width, Width::Bits32) { u32::from(high) << 16 } else { 0 };
        let cluster = high | u32::from(low);
        if attributes & ATTRIBUTE_DIRECTORY != 0 {
            if seen.len() >= DIRECTORIES_MAX {
                return Err(invalid("more directories than any real file system has"));
            }
            if seen.insert(cluster) {
                queue.push(Directory { cluster, path });
            }
            return Ok(());
        }
        let mut content = Chain { volume: self, cluster: Some(cluster), at: 0, left: u64::from(length) };
        out.member(path, Some(u64::from(length)), &mut content);
        Ok(())
    }
}

/// Whether an entry has the name of the directory itself or of the one that it is in.
fn is_own(entry: &[u8]) -> bool {
    matches!(entry.get(..11), Some(b".          " | b"..         "))
}

/// Takes part of a long name: thirteen units of UTF-16, the last part first.
fn long_name(entry: &[u8], long: &mut Vec<u16>) {
    let units =
        [1..11, 14..26, 28..32].into_iter().flat_map(|range| entry.get(range).unwrap_or_default().chunks_exact(2));
    let mut part: Vec<u16> = units.map(|unit| array(unit, 0).map_or(0, u16::from_le_bytes)).collect();
    // The last part is marked and begins a name.
    if entry.first().is_some_and(|order| order & 0x40 != 0) {
        long.clear();
    }
    part.append(long);
    // 255 units are the most of a name, in 20 parts.
    part.truncate(260);
    *long = part;
}

fn name(entry: &[u8], long: &[u16]) -> String {
    let end = long.iter().position(|unit| matches!(unit, 0 | 0xffff)).unwrap_or(long.len());
    let long = String::from_utf16_lossy(long.get(..end).unwrap_or_default());
    if !long.is_empty() {
        return display_name(long.as_bytes());
    }
    let base = entry.get(..8).unwrap_or_default().trim_ascii_end();
    let extension = entry.get(8..11).unwrap_or_default().trim_ascii_end();
    let dot: &[u8] = if extension.is_empty() { b"" } else { b"." };
    display_name(&[base, dot, extension].concat())
}

fn join(path: &str, name: &str) -> io::Result<String> {
    let joined = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    if joined.len() > PATH_BYTES_MAX { Err(invalid("a path longer than any real one")) } else { Ok(joined) }
}

/// The content of a file: so many bytes of a chain of clusters.
struct Chain<'c, 'v> {
    volume: &'c mut Volume<'v>,
    cluster: Option<u32>,
    /// How much of the cluster was read.
    at: u64,
    left: u64,
}

impl Read for Chain<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || into.is_empty() {
            return Ok(0);
        }
        let cluster_bytes = self.volume.layout.cluster_bytes;
        let mut cluster = self.cluster.ok_or_else(cut_off)?;
        if self.at >= cluster_bytes {
            // The file's length bounds a chain that goes in a circle.
            cluster = self.volume.next(cluster)?.ok_or_else(|| invalid("a file shorter than it says"))?;
            (self.cluster, self.at) = (Some(cluster), 0);
        }
        let offset = self.volume.offset(cluster)? + self.at;
        let most = (cluster_bytes - self.at).min(self.left).min(into.len() as u64) as usize;
        self.volume.input.seek(SeekFrom::Start(offset))?;
        let read = self.volume.input.read(into.get_mut(..most).unwrap_or_default())?;
        if read == 0 {
            return Err(cut_off());
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
