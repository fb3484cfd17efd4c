//! What the benchmarks share: contents that nothing can shorten or recognise, and latencies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lazaret_node_client::Environment;
use serde::Serialize;

/// Random bytes that contents are cut from.
const POOL_BYTES: usize = 64 << 20;
/// What makes each content unique: a number in its first bytes.
const STAMP_BYTES: usize = 8;

/// Contents that are unique and do not compress: pieces of one random pool, each with a number of its own in front.
pub struct Contents {
    pool: Vec<u8>,
    next: AtomicU64,
}

impl Contents {
    /// With a pool of their own.
    pub fn new() -> Self {
        let mut pool = vec![0; POOL_BYTES];
        let seed = Environment::system().random_bytes::<32>();
        blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut pool);
        Self { pool, next: AtomicU64::new(u64::from_le_bytes(Environment::system().random_bytes())) }
    }

    /// The next one, of `size` bytes.
    pub fn next(&self, size: usize) -> Bytes {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut content = BytesMut::with_capacity(size);
        content.extend_from_slice(number.to_le_bytes().get(..size.min(STAMP_BYTES)).unwrap_or_default());
        let mut from = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % POOL_BYTES as u64) as usize;
        while content.len() < size {
            let piece = self.pool.get(from..).unwrap_or_default();
            content.extend_from_slice(piece.get(..piece.len().min(size - content.len())).unwrap_or_default());
            from = 0;
        }
        content.freeze()
    }
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latencies {
    /// Half are shorter.
    pub p50_ms: f64,
    /// One in a hundred is longer.
    pub p99_ms: f64,
    /// One in a thousand is longer.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Latencies {
    /// Of these; all 0 if there are none.
    pub fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let quantile = |share: f64| {
            let at = (all.len().saturating_sub(1) as f64 * share).round() as usize;
            all.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        Self { p50_ms: quantile(0.5), p99_ms: quantile(0.99), p999_ms: quantile(0.999), max_ms: quantile(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_unique_and_of_the_length_that_was_asked_for() {
        let contents = Contents::new();
        let mut all: Vec<Bytes> =
            [0, 1, 7, 8, 9, 10_240, 10_240, POOL_BYTES + 1].map(|size| contents.next(size)).into();
        assert_eq!(all.iter().map(Bytes::len).collect::<Vec<_>>(), [0, 1, 7, 8, 9, 10_240, 10_240, POOL_BYTES + 1]);
        all.retain(|content| content.len() >= STAMP_BYTES);
        let unique: std::collections::HashSet<&Bytes> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
    }

    #[test]
    fn quantiles_are_of_the_sorted_latencies() {
        let latencies = Latencies::of((0..=1000).rev().map(Duration::from_millis).collect());
        assert_eq!(
            (latencies.p50_ms, latencies.p99_ms, latencies.p999_ms, latencies.max_ms),
            (500.0, 990.0, 999.0, 1000.0)
        );
        assert_eq!(Latencies::of(Vec::new()).max_ms, 0.0);
    }
}
