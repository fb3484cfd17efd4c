//! Streams that NTFS compressed: units of clusters, each as it is, absent, or in LZNT1.

use std::io::{self, Read};

use crate::container::ReadSeek;
use crate::fields::{invalid, le16, unsupported};
use crate::parts::read_vec;

use super::attribute::Runs;

/// A unit has 64 KiB in all real file systems.
const UNIT_BYTES_MAX: u64 = 2 << 20;
/// What a chunk decodes to at most.
const CHUNK_BYTES: usize = 4096;

/// The content of a compressed stream.
pub(super) struct Units<'u> {
    input: &'u mut dyn ReadSeek,
    runs: std::vec::IntoIter<(Option<u64>, u64)>,
    /// What is left of the current run.
    run: (Option<u64>, u64),
    cluster_bytes: u64,
    unit_clusters: u64,
    /// How much of the stream is left to hand out, and how much of that was written.
    left: u64,
    written: u64,
    unit: io::Cursor<Vec<u8>>,
}

impl<'u> Units<'u> {
    pub(super) fn new(input: &'u mut dyn ReadSeek, runs: Runs, cluster_bytes: u64) -> io::Result<Self> {
        let unit_clusters = 1u64 << runs.unit_shift.min(16);
        if unit_clusters.saturating_mul(cluster_bytes) > UNIT_BYTES_MAX {
            return Err(unsupported("units of compression larger than any real ones"));
        }
        let (left, written) = (runs.length, runs.written);
        let (runs, unit) = (runs.runs.into_iter(), io::Cursor::new(Vec::new()));
        Ok(Self { input, runs, run: (None, 0), cluster_bytes, unit_clusters, left, written, unit })
    }

    /// Decodes the next unit.
    fn next_unit(&mut self) -> io::Result<Vec<u8>> {
        let unit_bytes = (self.unit_clusters * self.cluster_bytes) as usize;
        let (mut stored, mut holes) = (Vec::new(), 0);
        let mut missing = self.unit_clusters;
        while missing > 0 {
            if self.run.1 == 0 {
                match self.runs.next() {
                    Some(run) => self.run = run,
                    // The last unit may be short.
                    None => break,
                }
                continue;
            }
            let count = missing.min(self.run.1);
            match &mut self.run.0 {
                Some(first) => {
                    let (offset, length) = (first.saturating_mul(self.cluster_bytes), count * self.cluster_bytes);
                    stored.extend(read_vec(self.input, offset, length, UNIT_BYTES_MAX)?);
                    *first = first.saturating_add(count);
                }
                None => holes += count,
            }
            self.run.1 -= count;
            missing -= count;
        }
        if stored.is_empty() && holes == 0 {
            return Err(invalid("a file shorter than it says"));
        }
        let mut unit = if holes > 0 && !stored.is_empty() { decode(&stored, unit_bytes)? } else { stored };
        unit.resize(unit_bytes, 0);
        Ok(unit)
    }
}

impl Read for Units<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || into.is_empty() {
            return Ok(0);
        }
        if self.unit.position() >= self.unit.get_ref().len() as u64 {
            let mut unit = if self.written > 0 {
                self.next_unit()?
            } else {
                vec![0; (self.unit_clusters * self.cluster_bytes) as usize]
            };
            if let Some(unwritten) = unit.get_mut(usize::try_from(self.written).unwrap_or(usize::MAX)..) {
                unwritten.fill(0);
            }
            self.written = self.written.saturating_sub(unit.len() as u64);
            self.unit = io::Cursor::new(unit);
        }
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        let read = self.unit.read(into.get_mut(..most).unwrap_or_default())?;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Decodes LZNT1: chunks with a header of two bytes each, until an empty one or the end.
fn decode(mut stored: &[u8], most: usize) -> io::Result<Vec<u8>> {
    let mut decoded = Vec::new();
    while let Some(header) = le16(stored, 0).filter(|header| *header != 0) {
        let length = usize::from(header & 0xfff) + 1;
        let chunk = stored.get(2..2 + length).ok_or_else(|| invalid("a chunk that is cut off"))?;
        stored = stored.get(2 + length..).unwrap_or_default();
        let start = decoded.len();
        if header & 0x8000 == 0 {
            decoded.extend_from_slice(chunk);
        } else {
            decode_chunk(chunk, &mut decoded)?;
        }
        if stored.len() >= 2 && decoded.len() < most {
            // Only the last chunk may be short of its length.
            decoded.resize(start + CHUNK_BYTES.max(decoded.len() - start), 0);
        }
        if decoded.len() > most {
            return Err(invalid("a unit that decodes to more than its length"));
        }
    }
    Ok(decoded)
}

fn decode_chunk(mut chunk: &[u8], decoded: &mut Vec<u8>) -> io::Result<()> {
    let malformed = || invalid("a malformed chunk");
    let start = decoded.len();
    while let Some((flags, behind)) = chunk.split_first() {
        chunk = behind;
        for bit in 0..8 {
            let Some((byte, behind)) = chunk.split_first() else { break };
            if flags >> bit & 1 == 0 {
                decoded.push(*byte);
                chunk = behind;
                continue;
            }
            let token = le16(chunk, 0).ok_or_else(malformed)?;
            chunk = chunk.get(2..).unwrap_or_default();
            // The further into the chunk, the more bits the distance has.
            let at = decoded.len() - start;
            let distance_bits = (at.saturating_sub(1).checked_ilog2().map_or(1, |log| log + 1)).clamp(4, 12);
            let length = usize::from(token & (0xffff >> distance_bits)) + 3;
            let distance = usize::from(token >> (16 - distance_bits)) + 1;
            if distance > at || at + length > CHUNK_BYTES {
                return Err(malformed());
            }
            for _ in 0..length {
                let byte = decoded.get(decoded.len() - distance).copied().ok_or_else(malformed)?;
                decoded.push(byte);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification_is_decoded() {
        // [MS-XCA] 3.3.
        let stored = [
            0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2, 0x47, 0x01, 0xa0, 0x45,
            0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0, 0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xb4,
            0x02, 0x4a, 0x44, 0xef, 0x03, 0x58, 0x02, 0x8c, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00,
            0x04, 0x01, 0x18, 0x90, 0x00,
        ];
        let expected = b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E \
                         F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
        assert_eq!(decode(&stored, 65536).unwrap(), expected);
        assert!(decode(&stored[..20], 65536).is_err());
    }
}
