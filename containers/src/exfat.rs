//! exFAT file systems. Format: "exFAT file system specification" of the Windows documentation, revision 1.00.
//!
//! Deleted files and the space behind the end of a file are left out; what was allocated and never written reads as zeros, as Windows shows it.

use std::io;

use crate::container::ReadSeek;
use crate::fields::{array, invalid, le16, le32, le64, utf16_le};
use crate::file_systems::FileSystem;
use crate::format::{Format, whole_if};
use crate::parts::{Out, cut_off, read_array};
use crate::tree::{Folders, Pieces, join};

/// The longest directory: a quarter of what the format allows, some 700,000 files.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// A directory whose length is not known, the root, is followed so far: real roots are short.
const ROOT_BYTES_MAX: u64 = 16 << 20;
const ENTRY_BYTES: usize = 32;
/// Sectors are 512 to 4,096 bytes, clusters at most 32 MiB.
const SECTOR_SHIFTS: std::ops::RangeInclusive<u8> = 9..=12;
const CLUSTER_SHIFT_MAX: u8 = 25;
/// Cluster numbers from here on end a chain or mark what is unusable.
const LAST_CLUSTER_MAX: u32 = 0xffff_fff6;

const ENTRY_FILE: u8 = 0x85;
const ENTRY_STREAM: u8 = 0xc0;
const ENTRY_NAME: u8 = 0xc1;
const ATTRIBUTE_DIRECTORY: u16 = 16;
const FLAG_CONTIGUOUS: u8 = 2;

/// exFAT.
pub(crate) static FORMAT: Format = Format {
    name: "exfat",
    description: "exFAT file system",
    mime: "application/x-exfat-image",
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
    table: u64,
    data: u64,
    cluster_bytes: u64,
    clusters: u32,
    root: u32,
}

impl Layout {
    /// None if it is no boot sector of exFAT.
    fn parse(boot: &[u8]) -> Option<Self> {
        let [sector_shift, per_cluster_shift] = array(boot, 108)?;
        let is_one = boot.get(3..11)? == b"EXFAT   "
            && SECTOR_SHIFTS.contains(&sector_shift)
            && sector_shift.checked_add(per_cluster_shift)? <= CLUSTER_SHIFT_MAX;
        is_one.then_some(())?;
        let sectors = |at| le32(boot, at).map(|sectors| u64::from(sectors) << sector_shift);
        Some(Self {
            table: sectors(80)?,
            data: sectors(88)?,
            cluster_bytes: 1 << (sector_shift + per_cluster_shift),
            clusters: le32(boot, 92)?,
            root: le32(boot, 96)?,
        })
    }
}

struct Volume<'v> {
    input: &'v mut dyn ReadSeek,
    layout: Layout,
}

/// Where a file's clusters begin, how long it is, how much of it was written, and whether its clusters lie one behind the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Stream {
    first: u32,
    length: u64,
    written: u64,
    is_contiguous: bool,
}

/// Hands out all files of a file system, in a folder.
fn volume(input: &mut dyn ReadSeek, folder: &str, out: &mut Out<'_, '_>) -> io::Result<()> {
    let boot: [u8; 512] = read_array(input, 0)?;
    let layout = Layout::parse(&boot).ok_or_else(|| invalid("a malformed boot sector"))?;
    let mut volume = Volume { input, layout };
    let root = Stream { first: layout.root, length: u64::MAX, written: u64::MAX, is_contiguous: false };
    let mut folders = Folders::new(layout.root, folder);
    let mut streams = std::collections::HashMap::from([(layout.root, root)]);
    while let Some((first, path)) = folders.next() {
        if out.is_over() {
            return Ok(());
        }
        let Some(stream) = streams.remove(&first) else { continue };
        let result = volume.directory(stream, &path, out, &mut |child, path| {
            folders.push(child.first, path)?;
            streams.entry(child.first).or_insert(child);
            Ok(())
        });
        if let Err(error) = result {
            out.outcome.note_error(&format!("directory {path:?}"), &error);
        }
    }
    Ok(())
}

impl Volume<'_> {
    /// The clusters of a stream.
    fn pieces(&mut self, stream: Stream, out: &Out<'_, '_>) -> io::Result<Pieces> {
        let Layout { table, data, cluster_bytes, clusters, .. } = self.layout;
        let mut pieces = Pieces::default();
        let mut cluster = stream.first;
        while pieces.length() < stream.length {
            let at = cluster.checked_sub(2).filter(|at| *at < clusters);
            let at = at.ok_or_else(|| invalid(format!("cluster {cluster} is not there")))?;
            let offset = data.saturating_add(u64::from(at).saturating_mul(cluster_bytes));
            if stream.is_contiguous {
                let most = u64::from(clusters - at).saturating_mul(cluster_bytes);
                pieces.push(Some(offset), stream.length.min(most))?;
                break;
            }
            pieces.push(Some(offset), cluster_bytes)?;
            out.check()?;
            cluster = u32::from_le_bytes(read_array(self.input, table.saturating_add(u64::from(cluster) * 4))?);
            let is_root = stream.length == u64::MAX;
            if is_root && pieces.length() > ROOT_BYTES_MAX {
                return Err(invalid("a root directory longer than any real one"));
            }
            if cluster > LAST_CLUSTER_MAX {
                break;
            }
        }
        Ok(pieces)
    }

    /// Reads a directory: hands out its files, and tells of its directories.
    fn directory(
        &mut self,
        stream: Stream,
        path: &str,
        out: &mut Out<'_, '_>,
        folder: &mut dyn FnMut(Stream, String) -> io::Result<()>,
    ) -> io::Result<()> {
        let pieces = self.pieces(stream, out)?;
        let length = stream.length.min(pieces.length());
        let bytes = pieces.read_vec(self.input, length, DIRECTORY_BYTES_MAX)?;
        let mut rest = bytes.as_slice();
        while let Some((entry, behind)) = rest.split_at_checked(ENTRY_BYTES) {
            let (Some(kind), Some(count)) = (entry.first(), entry.get(1)) else { return Err(cut_off()) };
            rest = behind;
            match *kind {
                0 => break,
                ENTRY_FILE => {
                    let others = behind.get(..usize::from(*count) * ENTRY_BYTES);
                    let others = others.ok_or_else(|| invalid("a file whose entries are cut off"))?;
                    if let Err(error) = self.entry(entry, others, path, out, folder) {
                        out.outcome.note_error(&format!("directory {path:?}"), &error);
                    }
                }
                _ => {}
            }
            if out.is_over() {
                break;
            }
        }
        if length < stream.length && stream.length != u64::MAX { Err(cut_off()) } else { Ok(()) }
    }

    fn entry(
        &mut self,
        file: &[u8],
        others: &[u8],
        path: &str,
        out: &mut Out<'_, '_>,
        folder: &mut dyn FnMut(Stream, String) -> io::Result<()>,
    ) -> io::Result<()> {
        let of = |kind: u8| others.chunks_exact(ENTRY_BYTES).filter(move |entry| entry.first() == Some(&kind));
        let stream = of(ENTRY_STREAM).next().ok_or_else(|| invalid("a file without a stream"))?;
        let name: Vec<u8> = of(ENTRY_NAME).flat_map(|entry| entry.get(2..).unwrap_or_default()).copied().collect();
        let fields = (array(stream, 1), le64(stream, 8), le32(stream, 20), le64(stream, 24), le16(file, 4));
        let (Some([flags, _, name_units]), Some(written), Some(first), Some(length), Some(attributes)) = fields else {
            return Err(cut_off());
        };
        let name = utf16_le(name.get(..usize::from(name_units) * 2).unwrap_or(&name));
        let path = join(path, &name);
        let stream = Stream { first, length, written, is_contiguous: flags & FLAG_CONTIGUOUS != 0 };
        if attributes & ATTRIBUTE_DIRECTORY != 0 {
            return if length == 0 { Ok(()) } else { folder(stream, path) };
        }
        let pieces = if length == 0 { Ok(Pieces::default()) } else { self.pieces(stream, out) };
        let pieces = pieces.and_then(|mut pieces| {
            if written < length {
                pieces.cut(written);
                pieces.fill_up(length)?;
            }
            Ok(pieces)
        });
        match pieces {
            Ok(pieces) => drop(out.member(path, Some(length), &mut pieces.content(self.input, length))),
            Err(error) => out.outcome.note_error(&format!("member {path:?}"), &error),
        }
        Ok(())
    }
}
