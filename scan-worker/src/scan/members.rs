//! What becomes of a member that comes out of a container: it is read into memory or, if it is too long, into the spool, and
//! then queued or scanned at once. What finds no room in the spool ends with a code of its own, and the next member is taken.
//!
//! Memory, at most: the budget, for what is queued; one file up to `sample_memory_max_bytes` a thread, for what the
//! extracting thread scans itself when the budget is used up; and [`SMALL_BYTES_MAX`] for each of the at most
//! [`INLINE_DEPTH_MAX`] containers that a thread is inside of. On disk, at most: what the spool has room for. While more than
//! half of that is used, what is spooled is scanned before the next member is taken.

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use lazaret_analysis::{FileInfo, ResultCode};
use lazaret_containers::{Budget, Limit, Member, Refused};
use lazaret_digests::{Pending, Stream};
use lazaret_protocol::BlobName;

use super::Tree;
use super::judge::{Known, begin_digests, process, wait_for_digests};
use super::node::{Judged, Node};
use super::verdicts::{ask, ask_spooled};
use crate::budget::limit_code;
use crate::memory::{MemoryBudget, Reservation};
use crate::sample::Sample;
use crate::spool::{SpoolError, SpoolWriter, Spooled, TreeSpool};

/// A member up to this length is held without the budget's permission if there is none.
const SMALL_BYTES_MAX: u64 = 4 << 20;
/// How many members, one inside the other, a thread scans at once before it leaves them to the queue: each takes stack.
const INLINE_DEPTH_MAX: u32 = 8;
/// How much is read from a member at once. Most members are shorter.
const SCRATCH_BYTES: usize = 128 * 1024;
/// How much goes to the spool at once.
const PIECE_BYTES: usize = 1 << 20;

thread_local! {
    /// How many members this thread is scanning while it extracts their containers.
    static INLINE_DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Whether this thread holds its one file without the budget's permission.
    static ALLOWANCE_TAKEN: Cell<bool> = const { Cell::new(false) };
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Takes the members of one container.
pub(super) struct Members<'m> {
    tree: &'m Arc<Tree>,
    parent: &'m Arc<Node>,
    budget: &'m Budget,
}

/// A member that was read.
enum Content {
    /// Into memory, with the permission that it was held with.
    Held(Bytes, Permit),
    /// Into the spool, or, for want of room or for a fault of the disk, nowhere.
    Spooled(Result<Spooled, SpoolError>, Measured),
}

/// What is known of a content that was not held.
struct Measured {
    name: BlobName,
    length: u64,
    digests: Pending,
}

impl<'m> Members<'m> {
    pub fn new(tree: &'m Arc<Tree>, parent: &'m Arc<Node>, budget: &'m Budget) -> Self {
        Self { tree, parent, budget }
    }

    /// Takes one member.
    pub fn take(&mut self, member: Member<'_>) -> Result<(), Refused> {
        let Member { name, content, file_type, remark, .. } = member;
        let content = self.read(content);
        let node = self.parent.member(self.tree, name);
        self.hand_on(&node, content, Known { file_type, remark, ..Known::default() });
        Ok(())
    }

    /// Reads a member to its end, or to the error that ends it.
    fn read(&self, content: &mut dyn Read) -> Content {
        let mut scratch = SCRATCH.with(RefCell::take);
        scratch.resize(SCRATCH_BYTES, 0);
        let content = self.read_with(content, &mut scratch);
        SCRATCH.with(|slot| slot.replace(scratch));
        content
    }

    fn read_with(&self, content: &mut dyn Read, scratch: &mut [u8]) -> Content {
        let options = &self.tree.scanner.options;
        let mut permit = Permit::new(&self.tree.scanner.memory);
        let mut held: Vec<u8> = Vec::new();
        loop {
            let read = fill(content, scratch);
            let piece = scratch.get(..read).unwrap_or_default();
            let length = (held.len() + read) as u64;
            if length > options.sample_memory_max_bytes || !permit.cover(length, &self.tree.scanner.memory) {
                return self.spool((held.into(), permit), piece, content, read == scratch.len());
            }
            if read < scratch.len() {
                if held.is_empty() {
                    return Content::Held(Bytes::copy_from_slice(piece), permit);
                }
                held.extend_from_slice(piece);
                held.shrink_to_fit();
                return Content::Held(held.into(), permit);
            }
            held.extend_from_slice(piece);
        }
    }

    /// Sends what is held, what was read and what is still to come to the spool. What was held is so no longer.
    fn spool(&self, held: (Bytes, Permit), piece: &[u8], rest: &mut dyn Read, more: bool) -> Content {
        let scanner = &self.tree.scanner;
        let mut to_spool = ToSpool::new(&self.tree.spool, scanner.digests.stream(scanner.options.digests));
        to_spool.take(&held.0);
        drop(held);
        to_spool.take(piece);
        if more {
            // To its end, also if there is no room for it: what comes after it in the container lies behind it, and it is
            // counted and digested all the same.
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                let read = fill(rest, &mut buffer);
                to_spool.take(buffer.get(..read).unwrap_or_default());
                if read < buffer.len() {
                    break;
                }
            }
        }
        to_spool.end()
    }

    /// Queues a member, or scans it at once.
    fn hand_on(&self, node: &Arc<Node>, content: Content, known: Known) {
        let may_nest = INLINE_DEPTH.get() < INLINE_DEPTH_MAX;
        match content {
            Content::Held(bytes, Permit::Reserved(reservation)) => {
                // Begun here, they are there when a thread comes to the file, and computed with those of its neighbours.
                let asked = ask(self.tree, &node.name, &bytes, known.file_type.as_ref());
                let digests = if asked.is_none() { begin_digests(self.tree, &bytes) } else { None };
                let sample = Sample::reserved(node.name.clone(), bytes, Some(reservation));
                self.queue(node, sample, Known { digests, asked, ..known }, may_nest);
            }
            Content::Held(bytes, permit) if may_nest => {
                let asked = ask(self.tree, &node.name, &bytes, known.file_type.as_ref());
                let sample = Sample::memory(node.name.clone(), bytes);
                self.scan_now(node, sample, Known { asked, ..known });
                drop(permit);
            }
            // Too deep to be scanned here, and no permission to be held until somebody else does.
            Content::Held(bytes, permit) => {
                let spooled = self.spool((bytes, permit), &[], &mut std::io::empty(), false);
                self.hand_on(node, spooled, known);
            }
            Content::Spooled(Ok(spooled), Measured { name, digests, .. }) => {
                let is_crowded = self.tree.spool.spool().is_crowded();
                let sample = Sample::spooled(node.name.clone(), spooled);
                let asked = ask_spooled(self.tree, &node.name, name);
                let known = Known { digests: Some(digests), asked, ..known };
                if is_crowded && may_nest {
                    self.scan_now(node, sample, known);
                } else {
                    self.queue(node, sample, known, may_nest);
                }
            }
            Content::Spooled(Err(error), measured) => self.unspooled(node, &error, measured),
        }
    }

    /// Ends a member that is nowhere: its code says that nobody saw it.
    fn unspooled(&self, node: &Arc<Node>, error: &SpoolError, measured: Measured) {
        let scanner = &self.tree.scanner;
        let code = if error.is_full() {
            scanner.spool.count_refused();
            limit_code(Limit::Memory, &self.tree.rule)
        } else {
            ResultCode::SCAN_FAILED
        };
        tracing::warn!(data_id = %node.data_id, length = measured.length, %error, "a nested file could not be spooled");
        let file = FileInfo { display_name: node.name.clone(), size_bytes: measured.length, ..FileInfo::default() };
        let mut judged =
            Judged { file, failure: Some(code), detail: error.to_string(), unkeepable: true, ..Judged::default() };
        judged.times.start_ms = scanner.clock.unix_ms();
        wait_for_digests(self.tree, None, measured.digests, &mut judged);
        scanner.metrics.file(&judged.times, &judged.engines);
        node.judged(self.tree, judged);
    }

    /// Queues a member. If the lane is full it is scanned at once, or, inside too many others, queued all the same.
    fn queue(&self, node: &Arc<Node>, sample: Sample, known: Known, may_nest: bool) {
        let (tree, job_node) = (self.tree.clone(), node.clone());
        let job = Box::new(move || process(&tree, &job_node, sample, known));
        if let Err(job) = self.tree.lane.try_push(job) {
            if may_nest {
                self.nested(job);
            } else {
                self.tree.lane.push(job);
            }
        }
    }

    fn scan_now(&self, node: &Arc<Node>, sample: Sample, known: Known) {
        self.nested(|| process(self.tree, node, sample, known));
    }

    /// Does the work of another job on this thread, off the clock of the container that is being taken apart.
    fn nested(&self, work: impl FnOnce()) {
        self.budget.pause(|| nested(work));
    }
}

/// Does the work of another job on this thread, which takes a container apart.
pub(super) fn nested(work: impl FnOnce()) {
    INLINE_DEPTH.set(INLINE_DEPTH.get() + 1);
    work();
    INLINE_DEPTH.set(INLINE_DEPTH.get() - 1);
}

/// A member on its way to the spool.
struct ToSpool {
    /// Given up, with all that was written, at the first error.
    writer: Result<SpoolWriter, SpoolError>,
    blake3: blake3::Hasher,
    digests: Stream,
    length: u64,
}

impl ToSpool {
    fn new(spool: &TreeSpool, digests: Stream) -> Self {
        Self { writer: spool.writer(), blake3: blake3::Hasher::new(), digests, length: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.blake3.update(piece);
            self.digests.update_blocking(Bytes::copy_from_slice(piece));
            self.length += piece.len() as u64;
            if let Err(error) = self.writer.as_mut().map_or(Ok(()), |writer| writer.write(piece)) {
                self.writer = Err(error);
            }
        }
    }

    fn end(self) -> Content {
        let Self { writer, blake3, digests, length } = self;
        let measured = Measured { name: BlobName(*blake3.finalize().as_bytes()), length, digests: digests.end() };
        Content::Spooled(writer.and_then(SpoolWriter::finish), measured)
    }
}

/// Reads until the buffer is full, or the member ends or breaks. What breaks a member is noted where it is counted.
fn fill(content: &mut dyn Read, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match content.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    filled
}

/// By what right a member is held in memory.
enum Permit {
    /// The budget's.
    Reserved(Reservation),
    /// It is small.
    Small,
    /// It is the one file that a thread may hold of its own.
    Allowance(Allowance),
}

impl Permit {
    fn new(memory: &Arc<MemoryBudget>) -> Self {
        memory.try_reserve(0).map_or(Self::Small, Self::Reserved)
    }

    /// Makes it cover `length` bytes, by whatever right there is.
    fn cover(&mut self, length: u64, memory: &Arc<MemoryBudget>) -> bool {
        let covered = match self {
            Self::Reserved(reservation) => reservation.grow_to(length),
            Self::Allowance(_) => true,
            Self::Small => false,
        };
        if covered {
            return true;
        }
        let permit = if length <= SMALL_BYTES_MAX {
            Some(Self::Small)
        } else if let Some(reservation) = memory.try_reserve(length) {
            Some(Self::Reserved(reservation))
        } else {
            Allowance::take().map(Self::Allowance)
        };
        permit.map(|permit| *self = permit).is_some()
    }
}

/// A thread's right to hold one file without the budget's permission, for as long as this lives.
struct Allowance;

impl Allowance {
    fn take() -> Option<Self> {
        (!ALLOWANCE_TAKEN.replace(true)).then_some(Self)
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        ALLOWANCE_TAKEN.set(false);
    }
}
