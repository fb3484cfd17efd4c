//! The file systems of older Macs: HFS+ and HFSX. Format: Apple's Technical Note TN1150.
//!
//! The catalog is read from its first leaf to its last. Data forks come out under their names, resource forks as `file/..namedfork/rsrc`, as macOS
//! shows them. Files that macOS compressed are told, and so is plain HFS; links and attributes are left out.

use std::collections::{HashMap, HashSet};
use std::io;

use crate::container::ReadSeek;
use crate::fields::{be16, be32, be64, invalid, unsupported};
use crate::file_systems::FileSystem;
use crate::format::{Format, whole_if};
use crate::parts::{Out, cut_off, read_array};
use crate::tree::{Pieces, join};

/// Where the header of a volume is.
const HEADER_AT: u64 = 1024;
const FORK_BYTES: usize = 80;
/// Nodes of a tree have 512 bytes to 32 KiB.
const NODE_BYTES_MAX: u64 = 32 << 10;
const NODE_BYTES_MIN: u64 = 512;
/// Most leaves of a tree that are read.
const LEAVES_MAX: u32 = 1 << 20;
/// Most folders whose names are remembered, and most further extents.
const FOLDERS_MAX: usize = 1 << 18;
const EXTENTS_MAX: usize = 1 << 18;
/// What the names of folders may take together.
const NAMES_BYTES_MAX: usize = 64 << 20;
/// How many folders a path is followed up.
const PATH_FOLDERS_MAX: usize = 256;
const LEAF: u8 = 0xff;
const ROOT_FOLDER: u32 = 2;
const RECORD_FOLDER: u16 = 1;
const RECORD_FILE: u16 = 2;
const CATALOG_FILE: u32 = 4;
const DATA_FORK: u8 = 0;
const RESOURCE_FORK: u8 = 0xff;
/// The flag of a file that macOS compressed.
const OWNER_FLAG_COMPRESSED: u8 = 0x20;

/// HFS+.
pub(crate) static FORMAT: Format = Format {
    name: "hfs",
    description: "HFS+ file system",
    mime: "application/x-hfs-image",
    extension: "img",
    category: "I",
    // Discs for Macs and for others.
    beside: &["iso9660", "disk"],
    probe: |probe| whole_if(is_one(probe.head)),
    extractor: &FILE_SYSTEM,
};

pub(crate) static FILE_SYSTEM: FileSystem =
    FileSystem { owns_first_sector: false, is_one, volume, broken: "the file system is broken" };

/// Whether a volume that begins like this is one.
fn is_one(head: &[u8]) -> bool {
    head.get(HEADER_AT as usize..).is_some_and(is_header)
}

fn is_header(header: &[u8]) -> bool {
    matches!(header, [b'H', b'+', 0, 4, ..] | [b'H', b'X', 0, 5, ..])
        && be32(header, 40).is_some_and(|bytes| bytes.is_power_of_two() && bytes >= 512)
}

/// What further extents a fork has, by the block of the fork that each begins with.
type Extents = HashMap<(u8, u32, u32), Vec<u8>>;

struct Volume<'v> {
    input: &'v mut dyn ReadSeek,
    block_bytes: u64,
    /// None until a fork needs it.
    extents: Option<Extents>,
    extents_fork: Vec<u8>,
}

/// A folder: the one that it is in, and its name.
struct Folder {
    parent: u32,
    name: String,
}

/// Hands out all files of a file system, in a folder.
fn volume(input: &mut dyn ReadSeek, folder: &str, out: &mut Out<'_, '_>) -> io::Result<()> {
    let header: [u8; 512] = read_array(input, HEADER_AT)?;
    let block_bytes = be32(&header, 40).map(u64::from).ok_or_else(cut_off)?;
    let fork = |at: usize| header.get(at..at + FORK_BYTES).map(<[u8]>::to_vec).ok_or_else(cut_off);
    if !is_header(&header) {
        return Err(invalid("a malformed header"));
    }
    let mut volume = Volume { input, block_bytes, extents: None, extents_fork: fork(192)? };
    let catalog = volume.fork(&fork(272)?, DATA_FORK, CATALOG_FILE, out)?;
    // A folder may come behind the files in it.
    let (mut folders, mut names_bytes) = (HashMap::new(), 0usize);
    let folder_names = volume.leaves(&catalog, out, &mut |_, key, record, _| {
        if be16(record, 0) == Some(RECORD_FOLDER)
            && let (Some(id), Some((parent, name))) = (be32(record, 8), catalog_key(key))
        {
            names_bytes = names_bytes.saturating_add(name.len());
            if folders.len() >= FOLDERS_MAX || names_bytes > NAMES_BYTES_MAX {
                return Err(invalid("more folders than any real file system has"));
            }
            folders.insert(id, Folder { parent, name });
        }
        Ok(())
    });
    // Files whose folders are not known come out all the same.
    let files = volume.leaves(&catalog, out, &mut |volume, key, record, out| {
        if be16(record, 0) == Some(RECORD_FILE)
            && let Some((parent, name)) = catalog_key(key)
        {
            let path = path(folder, parent, &name, &folders);
            if let Err(error) = volume.file(&path, record, out) {
                out.outcome.note_error(&format!("member {path:?}"), &error);
            }
        }
        Ok(())
    });
    folder_names.and(files)
}

/// The folder and the name of what a key of the catalog stands for.
fn catalog_key(key: &[u8]) -> Option<(u32, String)> {
    let units = usize::from(be16(key, 4)?);
    let name = key.get(6..)?.as_chunks::<2>().0.iter().take(units).map(|unit| u16::from_be_bytes(*unit));
    let name = char::decode_utf16(name).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER));
    Some((be32(key, 0)?, name.collect()))
}

fn path(folder: &str, mut parent: u32, name: &str, folders: &HashMap<u32, Folder>) -> String {
    let mut names = vec![name];
    while parent != ROOT_FOLDER
        && names.len() < PATH_FOLDERS_MAX
        && let Some(above) = folders.get(&parent)
    {
        names.push(&above.name);
        parent = above.parent;
    }
    names.iter().rev().fold(folder.to_owned(), |path, name| join(&path, name))
}

/// Takes a record of a leaf: its key without its length, and its data.
type OnRecord<'r, 'v> = dyn FnMut(&mut Volume<'v>, &[u8], &[u8], &mut Out<'_, '_>) -> io::Result<()> + 'r;

impl<'v> Volume<'v> {
    fn file(&mut self, path: &str, record: &[u8], out: &mut Out<'_, '_>) -> io::Result<()> {
        let id = be32(record, 8).ok_or_else(cut_off)?;
        let is_compressed = record.get(41).is_some_and(|flags| flags & OWNER_FLAG_COMPRESSED != 0);
        let fork = |at: usize| record.get(at..at + FORK_BYTES).ok_or_else(cut_off);
        let (data, resources) = (fork(88)?, fork(168)?);
        if is_compressed && be64(data, 0) == Some(0) {
            out.outcome.note_broken(format!("member {path:?} is compressed by macOS, which is not read here"));
        } else {
            self.member(path.to_owned(), data, DATA_FORK, id, out)?;
        }
        if be64(resources, 0) != Some(0) && !out.outcome.is_over() {
            self.member(join("", &format!("{path}/..namedfork/rsrc")), resources, RESOURCE_FORK, id, out)?;
        }
        Ok(())
    }

    fn member(&mut self, name: String, fork: &[u8], kind: u8, id: u32, out: &mut Out<'_, '_>) -> io::Result<()> {
        let length = be64(fork, 0).ok_or_else(cut_off)?;
        let pieces = self.fork(fork, kind, id, out)?;
        out.member(name, Some(length), &mut pieces.content(self.input, length));
        Ok(())
    }

    /// Where a fork is: eight extents lie with it, and more of them in a tree.
    fn fork(&mut self, fork: &[u8], kind: u8, id: u32, out: &mut Out<'_, '_>) -> io::Result<Pieces> {
        let (Some(length), Some(blocks)) = (be64(fork, 0), be32(fork, 12)) else { return Err(cut_off()) };
        let mut pieces = Pieces::default();
        let mut found = self.add_extents(fork.get(16..).unwrap_or_default(), &mut pieces)?;
        while found < blocks && pieces.length() < length {
            if self.extents.is_none() {
                self.extents = Some(self.read_extents(out)?);
            }
            let more = self.extents.as_ref().and_then(|extents| extents.get(&(kind, id, found))).cloned();
            let more = more.ok_or_else(|| invalid("part of a file is missing"))?;
            let count = self.add_extents(&more, &mut pieces)?;
            found = found.checked_add(count).filter(|_| count > 0).ok_or_else(|| invalid("malformed extents"))?;
        }
        Ok(pieces)
    }

    /// Adds up to eight extents; says how many blocks they have.
    fn add_extents(&self, extents: &[u8], pieces: &mut Pieces) -> io::Result<u32> {
        let mut found = 0u32;
        for extent in extents.chunks_exact(8).take(8) {
            let (Some(first), Some(count)) = (be32(extent, 0), be32(extent, 4)) else { return Err(cut_off()) };
            pieces
                .push(Some(u64::from(first) * self.block_bytes), u64::from(count).saturating_mul(self.block_bytes))?;
            found = found.checked_add(count).ok_or_else(|| invalid("malformed extents"))?;
        }
        Ok(found)
    }

    fn read_extents(&mut self, out: &mut Out<'_, '_>) -> io::Result<Extents> {
        let fork = self.extents_fork.clone();
        let length = be64(&fork, 0).ok_or_else(cut_off)?;
        let mut pieces = Pieces::default();
        // The tree of extents has no further extents itself.
        self.add_extents(fork.get(16..).unwrap_or_default(), &mut pieces)?;
        pieces.cut(length);
        let mut all = Extents::new();
        self.leaves(&pieces, out, &mut |_, key, record, _| {
            let (Some(kind), Some(id), Some(first)) = (key.first(), be32(key, 2), be32(key, 6)) else {
                return Err(cut_off());
            };
            if all.len() >= EXTENTS_MAX {
                return Err(invalid("more extents than any real file system has"));
            }
            all.insert((*kind, id, first), record.get(..64).ok_or_else(cut_off)?.to_vec());
            Ok(())
        })?;
        Ok(all)
    }

    /// Goes through the leaves of a tree.
    fn leaves(&mut self, tree: &Pieces, out: &mut Out<'_, '_>, on_record: &mut OnRecord<'_, 'v>) -> io::Result<()> {
        let header = tree.read_vec(self.input, 48, 48)?;
        let (Some(first), Some(node_bytes)) = (be32(&header, 24), be16(&header, 32)) else { return Err(cut_off()) };
        let node_bytes = u64::from(node_bytes);
        if !node_bytes.is_power_of_two() || !(NODE_BYTES_MIN..=NODE_BYTES_MAX).contains(&node_bytes) {
            return Err(unsupported("a tree with nodes of a length that is not known here"));
        }
        let (mut at, mut seen) = (first, HashSet::new());
        while at != 0 && !out.is_over() {
            if seen.len() >= LEAVES_MAX as usize || !seen.insert(at) {
                return Err(invalid("a tree whose leaves go in a circle"));
            }
            let mut node = tree.clone();
            node.skip(u64::from(at).saturating_mul(node_bytes));
            let node = node.read_vec(self.input, node_bytes, NODE_BYTES_MAX)?;
            let (Some(next), Some(kind), Some(count)) = (be32(&node, 0), node.get(8), be16(&node, 10)) else {
                return Err(cut_off());
            };
            if *kind != LEAF {
                return Err(invalid("a malformed leaf"));
            }
            for number in 0..usize::from(count) {
                // Their places are at the end, backwards.
                let place = |number: usize| node.len().checked_sub(2 * (number + 1)).and_then(|at| be16(&node, at));
                let (Some(begin), Some(end)) = (place(number), place(number + 1)) else { return Err(cut_off()) };
                let record = node.get(usize::from(begin)..usize::from(end));
                let key_bytes = record.and_then(|record| be16(record, 0)).map(usize::from);
                let parts = record.zip(key_bytes).and_then(|(record, bytes)| {
                    Some((record.get(2..2 + bytes)?, record.get((2 + bytes).next_multiple_of(2)..)?))
                });
                let (key, record) = parts.ok_or_else(|| invalid("a malformed record"))?;
                on_record(self, key, record, out)?;
                if out.is_over() {
                    return Ok(());
                }
            }
            at = next;
        }
        Ok(())
    }
}
