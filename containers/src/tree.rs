//! What the readers of file systems have in common: the folders that are still to be read, and files that lie in pieces.
//!
//! Invariants: a folder is read once and a file handed out once, however many entries lead to it; the longest path and the number of
//! folders, files and pieces are bounded, whatever a file system claims.

use std::collections::HashSet;
use std::hash::Hash;
use std::io::{self, Read, SeekFrom};

use crate::container::{ReadSeek, display_name};
use crate::fields::invalid;
use crate::parts::{Exactly, cut_off};

/// Most folders, and most files: each costs a place in a set.
const FOLDERS_MAX: usize = 1 << 18;
const FILES_MAX: usize = 1 << 21;
/// The longest path that is kept; of a longer one its end is.
const PATH_BYTES_MAX: usize = 4096;
/// What the paths of all folders that wait may take together.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// Most pieces of one file: each costs 24 bytes.
const PIECES_MAX: usize = 1 << 18;

/// The folders of a file system that wait to be read. `K` names a folder or a file: its inode, its first cluster.
pub(crate) struct Folders<K> {
    waiting: Vec<(K, String)>,
    waiting_bytes: usize,
    folders: HashSet<K>,
    files: HashSet<K>,
}

impl<K: Copy + Eq + Hash> Folders<K> {
    /// The root alone, whose path is `path`.
    pub(crate) fn new(root: K, path: &str) -> Self {
        let waiting = vec![(root, path.to_owned())];
        Self { waiting, waiting_bytes: path.len(), folders: HashSet::from([root]), files: HashSet::new() }
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> Option<(K, String)> {
        let (key, path) = self.waiting.pop()?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(path.len());
        Some((key, path))
    }

    /// One more, unless it was there before.
    pub(crate) fn push(&mut self, key: K, path: String) -> io::Result<()> {
        if self.folders.len() >= FOLDERS_MAX || self.waiting_bytes >= WAITING_BYTES_MAX {
            return Err(invalid("more folders than any real file system has"));
        }
        if self.folders.insert(key) {
            self.waiting_bytes = self.waiting_bytes.saturating_add(path.len());
            self.waiting.push((key, path));
        }
        Ok(())
    }

    /// Whether a file was not handed out before.
    pub(crate) fn is_new(&mut self, key: K) -> io::Result<bool> {
        if self.files.len() >= FILES_MAX {
            return Err(invalid("more files than any real file system has"));
        }
        Ok(self.files.insert(key))
    }
}

/// The path of something in a folder. It is for showing, so one that gets too long loses its beginning.
pub(crate) fn join(folder: &str, name: &str) -> String {
    let name = display_name(name.as_bytes());
    match folder.len().saturating_add(name.len()) {
        _ if folder.is_empty() => name,
        0..PATH_BYTES_MAX => format!("{folder}/{name}"),
        _ => format!(".../{name}"),
    }
}

/// Part of a file: where it lies, or none for a hole, which reads as zeros.
#[derive(Clone, Copy)]
struct Piece {
    offset: Option<u64>,
    length: u64,
}

/// The pieces that a file lies in, in order.
#[derive(Clone, Default)]
pub(crate) struct Pieces {
    pieces: Vec<Piece>,
    length: u64,
}

impl Pieces {
    /// Adds a piece, which is joined with the last one where it follows it.
    pub(crate) fn push(&mut self, offset: Option<u64>, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.length = self.length.checked_add(length).ok_or_else(|| invalid("a file longer than any real one"))?;
        if let Some(last) = self.pieces.last_mut() {
            let follows = match (last.offset, offset) {
                (Some(last_offset), Some(offset)) => last_offset.checked_add(last.length) == Some(offset),
                (None, None) => true,
                _ => false,
            };
            if follows {
                last.length = last.length.saturating_add(length);
                return Ok(());
            }
        }
        if self.pieces.len() >= PIECES_MAX {
            return Err(invalid("a file of more pieces than any real one has"));
        }
        self.pieces.push(Piece { offset, length });
        Ok(())
    }

    /// How long they are together.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Adds a hole up to a length, if they are shorter.
    pub(crate) fn fill_up(&mut self, length: u64) -> io::Result<()> {
        self.push(None, length.saturating_sub(self.length))
    }

    /// Makes them no longer than so much.
    pub(crate) fn cut(&mut self, length: u64) {
        while self.length > length
            && let Some(last) = self.pieces.last_mut()
        {
            let less = last.length.min(self.length - length);
            last.length -= less;
            self.length -= less;
            if last.length == 0 {
                self.pieces.pop();
            }
        }
    }

    /// Takes so many bytes away from their beginning.
    pub(crate) fn skip(&mut self, mut length: u64) {
        self.length = self.length.saturating_sub(length);
        self.pieces.retain_mut(|piece| {
            let less = piece.length.min(length);
            length -= less;
            piece.length -= less;
            piece.offset = piece.offset.map(|offset| offset.saturating_add(less));
            piece.length > 0
        });
    }

    /// Where the byte at `position` lies, and how many follow it there; none behind the end.
    pub(crate) fn locate(&self, mut position: u64) -> Option<(Option<u64>, u64)> {
        for piece in &self.pieces {
            if position < piece.length {
                return Some((piece.offset.map(|offset| offset.saturating_add(position)), piece.length - position));
            }
            position -= piece.length;
        }
        None
    }

    /// The first `length` bytes of them as a stream; an error if they are shorter.
    pub(crate) fn content<'i>(&self, input: &'i mut dyn ReadSeek, length: u64) -> Exactly<InPieces<'i, '_>> {
        Exactly::new(InPieces { input, pieces: &self.pieces, read: 0 }, length)
    }

    /// The first `length` bytes of them, which must be no more than `most`.
    pub(crate) fn read_vec(&self, input: &mut dyn ReadSeek, length: u64, most: u64) -> io::Result<Vec<u8>> {
        if length > most {
            return Err(invalid(format!("a structure of {length} bytes, longer than any real one")));
        }
        let mut bytes = Vec::new();
        self.content(input, length).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The content of a file that lies in pieces.
pub(crate) struct InPieces<'i, 'p> {
    input: &'i mut dyn ReadSeek,
    pieces: &'p [Piece],
    /// How much of the first of them was read.
    read: u64,
}

impl Read for InPieces<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some((piece, behind)) = self.pieces.split_first() {
            let left = piece.length.saturating_sub(self.read);
            if left == 0 {
                (self.pieces, self.read) = (behind, 0);
                continue;
            }
            let most = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
            let into = into.get_mut(..most).unwrap_or_default();
            let read = match piece.offset {
                _ if into.is_empty() => return Ok(0),
                Some(offset) => {
                    self.input.seek(SeekFrom::Start(offset.saturating_add(self.read)))?;
                    match self.input.read(into)? {
                        0 => return Err(cut_off()),
                        read => read,
                    }
                }
                None => {
                    into.fill(0);
                    into.len()
                }
            };
            self.read = self.read.saturating_add(read as u64);
            return Ok(read);
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn pieces_are_joined_cut_and_read() {
        let mut input = Cursor::new(b"0123456789");
        let mut pieces = Pieces::default();
        for (offset, length) in [(Some(2), 2), (Some(4), 1), (None, 1), (None, 1), (Some(0), 2)] {
            pieces.push(offset, length).unwrap();
        }
        assert_eq!((pieces.pieces.len(), pieces.length()), (3, 7));
        assert_eq!(pieces.read_vec(&mut input, 7, 10).unwrap(), b"234\0\x0001");
        assert_eq!((pieces.locate(1), pieces.locate(3)), (Some((Some(3), 2)), Some((None, 2))));
        assert!(pieces.read_vec(&mut input, 8, 10).is_err() && pieces.read_vec(&mut input, 7, 6).is_err());
        pieces.cut(4);
        pieces.fill_up(6).unwrap();
        assert_eq!(pieces.read_vec(&mut input, 6, 10).unwrap(), b"234\0\0\0");
        pieces.cut(0);
        assert!(pieces.pieces.is_empty() && pieces.locate(0).is_none());
        assert!(pieces.push(None, u64::MAX).is_ok() && pieces.push(Some(1), 1).is_err());
    }

    #[test]
    fn folders_and_files_count_once_and_paths_have_an_end() {
        let mut folders = Folders::new(1, "");
        folders.push(2, "a".to_owned()).unwrap();
        folders.push(2, "b".to_owned()).unwrap();
        folders.push(1, "c".to_owned()).unwrap();
        assert_eq!(
            std::iter::from_fn(|| folders.next()).collect::<Vec<_>>(),
            [(2, "a".to_owned()), (1, String::new())]
        );
        assert!(folders.is_new(1).unwrap() && !folders.is_new(1).unwrap());
        let long = (0..10_000).fold(String::new(), |path, _| join(&path, "folder"));
        assert!(long.len() <= PATH_BYTES_MAX && long.ends_with("folder/folder"));
    }
}
