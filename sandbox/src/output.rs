//! A job process's side of its channel: what it tells goes into blocks of shared memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use lazaret_containers::Turn;

use crate::channel::{MESSAGE_BYTES_MAX, hear, tell};
use crate::wire::{BLOCK_BYTES, BLOCKS, FromJob, HEADER_BYTES_MAX, Record, Task, ToJob};

/// Writes records into blocks, and tells the worker of each that is full.
pub struct Output {
    socket: OwnedFd,
    memory: File,
    block: Vec<u8>,
    /// Blocks that were told of, and those that the worker has copied.
    told: u64,
    copied: u64,
    buffer: Vec<u8>,
    /// How much of the file was read up to now.
    input_read: u64,
    /// How much of it need not be read, since it is others'.
    passed: u64,
}

impl Output {
    pub(crate) fn new(socket: OwnedFd, memory: File) -> Self {
        Self {
            socket,
            memory,
            block: Vec::new(),
            told: 0,
            copied: 0,
            buffer: vec![0; MESSAGE_BYTES_MAX],
            input_read: 0,
            passed: 0,
        }
    }

    /// The shared memory, for tests of what can't be done with it.
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
        hear(&self.socket, &mut self.buffer)?.ok_or_else(gone)
    }

    /// What is to be done next; none at the end.
    pub(crate) fn command(&mut self) -> io::Result<Option<ToJob>> {
        loop {
            match hear(&self.socket, &mut self.buffer)? {
                Some(ToJob::Copied) => self.copied += 1,
                other => return Ok(other),
            }
        }
    }

    /// Asks for the file from `offset` on; tells how much of it the input then holds.
    pub(crate) fn fill(&mut self, offset: u64) -> io::Result<u64> {
        tell(&self.socket, &FromJob::Read(offset))?;
        loop {
            match hear(&self.socket, &mut self.buffer)?.ok_or_else(gone)? {
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
            match hear(&self.socket, &mut self.buffer)?.ok_or_else(gone)? {
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

    /// Writes a record, and what follows it.
    pub(crate) fn put(&mut self, record: &Record, content: &[u8]) -> io::Result<()> {
        let header = postcard::to_allocvec(record).map_err(io::Error::other)?;
        debug_assert!(header.len() <= HEADER_BYTES_MAX && content.len() <= BLOCK_BYTES / 2);
        if self.block.len() + 4 + header.len() + content.len() > BLOCK_BYTES {
            self.flush()?;
        }
        self.block.extend_from_slice(&(header.len() as u32).to_le_bytes());
        self.block.extend_from_slice(&header);
        self.block.extend_from_slice(content);
        Ok(())
    }

    /// Tells the worker of what was written. Waits if too many blocks are on their way.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        while self.told - self.copied >= BLOCKS {
            match hear(&self.socket, &mut self.buffer)?.ok_or_else(gone)? {
                ToJob::Copied => self.copied += 1,
                _ => return Err(unexpected()),
            }
        }
        self.memory.write_all_at(&self.block, self.told % BLOCKS * BLOCK_BYTES as u64)?;
        tell(&self.socket, &FromJob::Block(self.block.len() as u32, self.came_to()))?;
        self.told += 1;
        self.block.clear();
        Ok(())
    }
}

fn unexpected() -> io::Error {
    io::Error::other("nothing of the kind was asked")
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
