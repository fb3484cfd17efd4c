//! A disk that lies in pieces of a file, as an input of its own.

use std::io::{self, Read, Seek, SeekFrom};

use crate::container::ReadSeek;
use crate::fields::invalid;
use crate::parts::cut_off;

/// So many decoded pieces are kept: a file system's directories are read in turns with its files.
const KEPT: usize = 8;

/// The pieces of a disk.
pub(super) trait Blocks {
    /// Reads what is at a place of the disk: at least a byte, and at most up to the end of the piece there. `into` is not empty.
    fn read_at(&mut self, position: u64, into: &mut [u8]) -> io::Result<usize>;
}

/// Reads what lies at `place` of a file, or zeros for what lies nowhere: at most `most` bytes.
pub(super) fn read_part(input: &mut dyn ReadSeek, place: Option<u64>, most: u64, into: &mut [u8]) -> io::Result<usize> {
    let most = usize::try_from(most).map_or(into.len(), |most| most.min(into.len()));
    let into = into.get_mut(..most).unwrap_or_default();
    match place {
        Some(offset) => {
            input.seek(SeekFrom::Start(offset))?;
            match input.read(into)? {
                0 => Err(cut_off()),
                read => Ok(read),
            }
        }
        None => {
            into.fill(0);
            Ok(into.len())
        }
    }
}

/// Decoded pieces that were read last, each with a key.
#[derive(Default)]
pub(super) struct Kept(Vec<(u64, Vec<u8>)>);

impl Kept {
    /// The piece of a key, decoded by `decode` if it is not there.
    pub(super) fn get(&mut self, key: u64, decode: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<&[u8]> {
        match self.0.iter().position(|(kept, _)| *kept == key) {
            Some(at) => {
                let piece = self.0.remove(at);
                self.0.push(piece);
            }
            None => {
                let piece = decode()?;
                if self.0.len() >= KEPT {
                    self.0.remove(0);
                }
                self.0.push((key, piece));
            }
        }
        Ok(self.0.last().map(|(_, piece)| piece.as_slice()).unwrap_or_default())
    }
}

/// A disk of a length, made of pieces.
pub(super) struct VirtualDisk<B> {
    blocks: B,
    length: u64,
    position: u64,
}

impl<B> VirtualDisk<B> {
    pub(super) fn new(blocks: B, length: u64) -> Self {
        Self { blocks, length, position: 0 }
    }
}

impl<B: Blocks> Read for VirtualDisk<B> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position);
        let most = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
        let Some(into) = into.get_mut(..most).filter(|into| !into.is_empty()) else { return Ok(0) };
        let read = self.blocks.read_at(self.position, into)?;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}

impl<B> Seek for VirtualDisk<B> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or_else(|| invalid("seek before the beginning"))?;
        Ok(self.position)
    }
}
