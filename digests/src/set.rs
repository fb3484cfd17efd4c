//! One file's digests on the caller's thread.

use crate::file::{BLOCK_BYTES, File, advance_one, close_one};
use crate::plan::Plan;
use crate::{Digests, Path, Selection};

/// How far all five digests work through a piece before the next step: small enough that the bytes, read from memory once,
/// are still in the level-2 cache for the fifth of them, long enough for BLAKE3's widest code path (16 chunks with AVX-512).
const STEP_BYTES: usize = 64 * 1024;

/// All digests of one file in one pass, on the thread that calls.
pub struct Set {
    plan: Plan,
    file: Box<File>,
    // The bytes after the last whole unit.
    rest: [u8; BLOCK_BYTES],
    rest_bytes: usize,
}

impl Set {
    /// Begins a file.
    pub fn new(selection: Selection) -> Self {
        Self::planned(selection, Plan::of(None))
    }

    /// The same by a chosen path, for tests and measurements. Digests that the path lacks go by [`Path::Rust`], BLAKE3 by
    /// its crate.
    pub fn by(path: Path, selection: Selection) -> Self {
        Self::planned(selection, Plan::forced(path))
    }

    pub(crate) fn planned(selection: Selection, plan: Plan) -> Self {
        let file = Box::new(File::alone(selection));
        Self { plan, file, rest: [0; BLOCK_BYTES], rest_bytes: 0 }
    }

    /// Takes the file's next bytes.
    pub fn update(&mut self, piece: &[u8]) {
        let piece = self.complete(piece);
        let (whole, rest) = piece.split_at(piece.len() - piece.len() % BLOCK_BYTES);
        whole.chunks(STEP_BYTES).for_each(|step| self.step(step));
        for (to, from) in self.rest.iter_mut().skip(self.rest_bytes).zip(rest) {
            *to = *from;
        }
        self.rest_bytes += rest.len();
    }

    /// Fills up the unit that was begun, and returns what is left of the piece: nothing, or bytes behind a whole unit.
    fn complete<'p>(&mut self, piece: &'p [u8]) -> &'p [u8] {
        if self.rest_bytes == 0 {
            return piece;
        }
        let (missing, piece) = piece.split_at(piece.len().min(BLOCK_BYTES - self.rest_bytes));
        for (to, from) in self.rest.iter_mut().skip(self.rest_bytes).zip(missing) {
            *to = *from;
        }
        self.rest_bytes += missing.len();
        if self.rest_bytes == BLOCK_BYTES {
            let unit = self.rest;
            self.step(&unit);
            self.rest_bytes = 0;
        }
        piece
    }

    fn step(&mut self, bytes: &[u8]) {
        advance_one(&self.plan, &mut self.file, bytes);
    }

    /// The digests of all bytes taken.
    pub fn finish(mut self) -> Digests {
        let rest = self.rest.get(..self.rest_bytes).unwrap_or_default();
        close_one(&self.plan, &mut self.file, rest)
    }

    /// The digests of bytes that are in memory already.
    pub fn digest(selection: Selection, content: &[u8]) -> Digests {
        let mut set = Self::new(selection);
        set.update(content);
        set.finish()
    }
}

impl Default for Set {
    fn default() -> Self {
        Self::new(Selection::default())
    }
}
