//! Digests of an upload, computed beside the network by the threads of the process's digest pool.
//!
//! The pool lays uploads, and nested files if a worker runs in the same process, side by side into vector registers. It takes
//! up to a megabyte of an upload ahead; past that, or when all uploads together fill it, the upload waits, and with it its
//! client. That wait, and the one at the end, is the time an upload's digests cost it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lazaret_digests::{Digests, Lost, Pool, Selection, Stream};

/// The digests of one upload under way.
pub(crate) struct Hashing {
    stream: Stream,
    waited: Duration,
}

impl Hashing {
    pub(crate) fn new(pool: &Pool, selection: Selection) -> Self {
        Self { stream: pool.stream(selection), waited: Duration::ZERO }
    }

    /// Takes the next piece; waits while too much of this upload, or of all, waits to be digested.
    pub(crate) async fn update(&mut self, piece: Bytes) {
        let began = Instant::now();
        self.stream.update(piece).await;
        self.waited += began.elapsed();
    }

    /// The digests, and how long the upload waited for them in all.
    pub(crate) async fn finish(self) -> Result<(Digests, Duration), Lost> {
        let began = Instant::now();
        let digests = self.stream.finish().await?;
        Ok((digests, self.waited + began.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use lazaret_digests::Set;

    use super::*;

    #[tokio::test]
    async fn uploads_side_by_side_have_the_digests_of_their_bodies() {
        let pool = Pool::of_process().unwrap();
        let lengths = [0, 1, 65_536, 65_537, 1 << 20, 3 * (1 << 20) + 17];
        let bodies: Vec<Vec<u8>> =
            lengths.iter().map(|length| (0..*length).map(|i: usize| (i * 31 % 251) as u8).collect()).collect();
        let uploads = bodies.iter().map(|body| async {
            let mut hashing = Hashing::new(&pool, Selection::default());
            for piece in body.chunks(50_021) {
                hashing.update(Bytes::copy_from_slice(piece)).await;
            }
            hashing.finish().await.unwrap()
        });
        let finished = futures_util::future::join_all(uploads).await;
        for (body, (digests, _)) in bodies.iter().zip(finished) {
            assert_eq!(digests, Set::digest(Selection::default(), body), "{} bytes", body.len());
        }
    }
}
