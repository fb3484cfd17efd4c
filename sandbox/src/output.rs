//! A job process's side of its channel: what it tells goes in messages, and contents into blocks of shared memory.
//!
//! Invariant: nothing is written into a block before the worker has said of it that it copied what it needs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use lazaret_containers::Turn;

use crate::channel::{Room, hear, tell};
use crate::wire::{
    BLOCK_BYTES, BLOCKS, FromJob, PIECE_BYTES, RECORD_BYTES_MAX, RECORDS_BYTES_MAX, Record, Records, Task, ToJob,
};

/// From how many bytes of records on they are told before another piece begins, so that what is said of that piece fits in as well.
const RECORDS_TOLD_BYTES: usize = RECORDS_BYTES_MAX / 4;
/// How long a record's length is.
const LENGTH_BYTES: usize = size_of::<u32>();
const _: () = assert!(RECORDS_TOLD_BYTES + RECORD_BYTES_MAX + 64 <= RECORDS_BYTES_MAX);

/// Tells the worker of records, and where to put contents.
pub struct Output {
    socket: OwnedFd,
    memory: File,
    /// What the next message tells, and how much of the current block it speaks of.
    records: Records,
    filled: usize,
    /// Blocks that were told of, and those that the worker has copied.
    told: u64,
    copied: u64,
    message: Room,
    /// How much of the file was read up to now.
    input_read: u64,
    /// How much of it need not be read, since it is others'.
    passed: u64,
}

impl Output {
    pub(crate) fn new(socket: OwnedFd, memory: File, message: Room) -> Self {
        Self {
            socket,
            memory,
            records: Records::default(),
            filled: 0,
            told: 0,
            copied: 0,
            message,
            input_read: 0,
            passed: 0,
        }
    }

    /// The shared memory.
    #[doc(hidden)]
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Says anything, for tests of a process that says what it should not.
    #[doc(hidden)]
    pub fn tell_raw(&self, bytes: &[u8]) -> io::Result<()> {
        tell(&self.socket, &bytes)
    }

    /// The task. Asked once.
    pub(crate) fn task(&mut self) -> io::Result<Task> {
        hear(&self.socket, &mut self.message)?.ok_or_else(gone)
    }

    /// What is to be done next; none at the end.
    pub(crate) fn command(&mut self) -> io::Result<Option<ToJob>> {
        loop {
            match hear(&self.socket, &mut self.message)? {
                Some(ToJob::Copied) => self.copied += 1,
                other => return Ok(other),
            }
        }
    }

    /// Asks for a part of the file in a window; tells how much of it that then has, from the part's beginning on.
    pub(crate) fn fill(&mut self, window: usize, part: &Range<u64>) -> io::Result<u64> {
        tell(&self.socket, &FromJob::Read(window as u32, part.start, part.end - part.start))?;
        loop {
            match hear(&self.socket, &mut self.message)?.ok_or_else(gone)? {
                ToJob::Copied => self.copied += 1,
                ToJob::Filled(bytes) => return Ok(bytes),
                ToJob::NotReadable => return Err(io::Error::other("the file can't be read")),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Asks which members of a shared container are wanted, once all before are on their way.
    pub(crate) fn turn(&mut self, turn: Turn) -> io::Result<Option<Range<u32>>> {
        if let Turn::Next { passed_bytes, .. } = turn {
            self.passed = passed_bytes;
        }
        self.flush()?;
        tell(&self.socket, &FromJob::Turn(turn, self.came_to()))?;
        loop {
            match hear(&self.socket, &mut self.message)?.ok_or_else(gone)? {
                ToJob::Copied => self.copied += 1,
                ToJob::Turn(range) => return Ok(range.map(|(start, end)| start..end)),
                _ => return Err(unexpected()),
            }
        }
    }

    /// How far it has come in the file.
    fn came_to(&self) -> u64 {
        self.input_read.saturating_add(self.passed)
    }

    /// Counts what was read of the file.
    pub(crate) fn count_input(&mut self, bytes: u64) {
        self.input_read = self.input_read.saturating_add(bytes);
    }

    /// Where in the shared memory the next piece of content is to be written, [`PIECE_BYTES`] of it. Waits if too many blocks are on their
    /// way.
    pub(crate) fn room(&mut self) -> io::Result<Range<usize>> {
        if self.filled > BLOCK_BYTES - PIECE_BYTES || self.records.0.len() > RECORDS_TOLD_BYTES {
            self.flush()?;
        }
        self.wait_for_block()?;
        let start = (self.told % BLOCKS) as usize * BLOCK_BYTES + self.filled;
        Ok(start..start + PIECE_BYTES)
    }

    /// Tells a record that speaks of no content.
    pub(crate) fn put(&mut self, record: &Record) -> io::Result<()> {
        let before = self.records.0.len();
        self.append(record)?;
        if self.records.0.len() > RECORDS_BYTES_MAX {
            let late = self.records.0.split_off(before);
            self.flush()?;
            self.records.0 = late;
        }
        Ok(())
    }

    /// Tells records that speak of so many bytes of content, which were written where there was [`Output::room`] last.
    pub(crate) fn put_content(&mut self, records: &[Record], bytes: usize) -> io::Result<()> {
        for record in records {
            self.append(record)?;
        }
        self.filled += bytes;
        debug_assert!(self.filled <= BLOCK_BYTES && self.records.0.len() <= RECORDS_BYTES_MAX, "there was room");
        Ok(())
    }

    /// Adds a record, behind its length.
    fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut records = std::mem::take(&mut self.records.0);
        let before = records.len();
        records.extend_from_slice(&[0; LENGTH_BYTES]);
        let mut records = postcard::to_extend(record, records).map_err(io::Error::other)?;
        let length = records.len() - before - LENGTH_BYTES;
        debug_assert!(length <= RECORD_BYTES_MAX, "{record:?}");
        if let Some(head) = records.get_mut(before..).and_then(<[u8]>::first_chunk_mut) {
            *head = (length as u32).to_le_bytes();
        }
        self.records.0 = records;
        Ok(())
    }

    /// Tells the worker of what was written. Waits if too many blocks are on their way.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.records.0.is_empty() {
            return Ok(());
        }
        self.wait_for_block()?;
        let records = std::mem::take(&mut self.records);
        let message = FromJob::Block(records, self.filled as u32, self.came_to());
        tell(&self.socket, &message)?;
        self.told += 1;
        self.filled = 0;
        Ok(())
    }

    /// Waits until the current block is nobody else's.
    fn wait_for_block(&mut self) -> io::Result<()> {
        while self.told - self.copied >= BLOCKS {
            match hear(&self.socket, &mut self.message)?.ok_or_else(gone)? {
                ToJob::Copied => self.copied += 1,
                _ => return Err(unexpected()),
            }
        }
        Ok(())
    }
}

fn unexpected() -> io::Error {
    io::Error::other("nothing of the kind was asked")
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
