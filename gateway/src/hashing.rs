//! Digests of an upload, computed beside the network.
//!
//! Pieces are gathered into steps; one step is hashed on a blocking thread while the next is gathered. So a slow upload
//! holds no thread, a fast one overlaps hashing with its network, and at most two steps are in memory. A body that ends
//! within [`INLINE_BYTES`] is hashed in place: half a millisecond, less than a thread's hand-over is worth.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_digests::{Digests, Selection, Set};
use tokio::task::{JoinError, JoinHandle};

/// Bytes that are gathered before a thread hashes them: 5 to 10 ms of work. Two steps are half of the upload's window.
const STEP_BYTES: usize = 1024 * 1024;
/// Bytes that are hashed on the async thread.
const INLINE_BYTES: usize = 64 * 1024;

/// The digests of one upload under way.
pub(crate) struct Hashing {
    state: State,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
}

/// The set and the time that was spent on it, here or on its way through a thread.
enum State {
    Here(Box<Work>),
    Away(JoinHandle<Box<Work>>),
}

struct Work {
    set: Set,
    spent: Duration,
}

impl Work {
    fn update(&mut self, pieces: &[Bytes]) {
        let begun = Instant::now();
        for piece in pieces {
            self.set.update(piece);
        }
        self.spent += begun.elapsed();
    }
}

impl Hashing {
    pub(crate) fn new(selection: Selection) -> Self {
        let work = Work { set: Set::new(selection), spent: Duration::ZERO };
        Self { state: State::Here(Box::new(work)), gathered: Vec::new(), gathered_bytes: 0 }
    }

    /// Takes the next piece; waits while both steps are full.
    pub(crate) async fn update(self, piece: Bytes) -> Result<Self, JoinError> {
        let mut gathered = self.gathered;
        let gathered_bytes = self.gathered_bytes + piece.len();
        gathered.push(piece);
        if gathered_bytes < STEP_BYTES {
            return Ok(Self { state: self.state, gathered, gathered_bytes });
        }
        let mut work = self.state.settle().await?;
        let step = tokio::task::spawn_blocking(move || {
            work.update(&gathered);
            work
        });
        Ok(Self { state: State::Away(step), gathered: Vec::new(), gathered_bytes: 0 })
    }

    /// The digests, and the time that computing them took.
    pub(crate) async fn finish(self) -> Result<(Digests, Duration), JoinError> {
        let mut work = self.state.settle().await?;
        if self.gathered_bytes > INLINE_BYTES {
            let gathered = self.gathered;
            work = tokio::task::spawn_blocking(move || {
                work.update(&gathered);
                work
            })
            .await?;
        } else {
            work.update(&self.gathered);
        }
        Ok((work.set.finish(), work.spent))
    }
}

impl State {
    async fn settle(self) -> Result<Box<Work>, JoinError> {
        match self {
            Self::Here(work) => Ok(work),
            Self::Away(step) => step.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_give_the_digests_of_the_whole_at_every_step_boundary() {
        for length in [0, 1, INLINE_BYTES, INLINE_BYTES + 1, STEP_BYTES - 1, STEP_BYTES, 3 * STEP_BYTES + 17] {
            let body: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
            let mut hashing = Hashing::new(Selection::default());
            for piece in body.chunks(50_021) {
                hashing = hashing.update(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            let (digests, _) = hashing.finish().await.unwrap();
            let mut whole = Set::new(Selection::default());
            whole.update(&body);
            let expected = whole.finish();
            assert_eq!((digests.blake3, digests.sha512), (expected.blake3, expected.sha512), "{length} bytes");
        }
    }
}
