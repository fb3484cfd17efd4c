//! Deflated members that are decoded at once: into the reader's own buffer, where that has room for what the header says.
//!
//! Most members of most archives are short, and a decoder that has to stop and go on anywhere takes twice as long for them. What does not
//! decode like this, since the header lies or the data is broken or cut off, is decoded from its beginning as a stream: whatever comes
//! out before the fault comes out as ever. So is what may have another member behind its end, since the decoder at once doesn't tell where
//! that is.

use std::cell::Cell;
use std::io::{self, Cursor, Read};
use std::sync::LazyLock;

use flate2::bufread::DeflateDecoder;
use libdeflater::Decompressor;
use memchr::memmem::Finder;

use super::format::LOCAL_SIGNATURE;

/// The longest member that is decoded at once, and the longest that such a one may be packed: more is produced by no other decoder before
/// limits are looked at, and both stay in the processor's cache.
const CONTENT_BYTES_MAX: u64 = 256 * 1024;
const PACKED_BYTES_MAX: u64 = CONTENT_BYTES_MAX + 1024;

/// What is the same for all members.
#[derive(Default)]
pub(super) struct Bench {
    decompressor: Option<Decompressor>,
    packed: Vec<u8>,
}

/// Whether a member is worth it, by what its header says.
pub(super) fn is_short(packed_bytes: u64, content_bytes: u64) -> bool {
    packed_bytes <= PACKED_BYTES_MAX && content_bytes <= CONTENT_BYTES_MAX
}

/// Made once: for a short member making it would take longer than to search.
static HEADER_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(&LOCAL_SIGNATURE));

/// Whether a local header may begin in what is packed: archives in a member that could not be made shorter, and chance, look the same.
fn may_have_header(packed: &[u8]) -> bool {
    let begins_at_end = (1..LOCAL_SIGNATURE.len()).any(|bytes| packed.ends_with(LOCAL_SIGNATURE.split_at(bytes).0));
    begins_at_end || HEADER_FINDER.find(packed).is_some()
}

/// A short deflated member.
pub(super) struct Short<'b, R> {
    bench: &'b mut Bench,
    content_bytes: usize,
    used_bytes: &'b Cell<u64>,
    state: State<R>,
}

enum State<R> {
    Packed(R),
    Streamed(Box<DeflateDecoder<Cursor<Vec<u8>>>>),
    End,
}

impl<'b, R: Read> Short<'b, R> {
    /// So long by its header. What is packed ends where `packed` does; how much of it was used is told in `used_bytes`.
    pub(super) fn new(bench: &'b mut Bench, packed: R, content_bytes: u64, used_bytes: &'b Cell<u64>) -> Self {
        let content_bytes = content_bytes.min(CONTENT_BYTES_MAX) as usize;
        Self { bench, content_bytes, used_bytes, state: State::Packed(packed) }
    }

    /// Decodes all of it, if it is as the header says.
    fn whole(&mut self, into: &mut [u8]) -> Option<usize> {
        let into = into.get_mut(..self.content_bytes)?;
        let decompressor = self.bench.decompressor.get_or_insert_with(Decompressor::new);
        decompressor.deflate_decompress(&self.bench.packed, into).ok()
    }
}

impl<R: Read> Read for Short<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if let State::Packed(packed) = &mut self.state {
            self.bench.packed.clear();
            packed.take(PACKED_BYTES_MAX).read_to_end(&mut self.bench.packed)?;
            if !may_have_header(&self.bench.packed)
                && let Some(bytes) = self.whole(into)
            {
                self.used_bytes.set(self.bench.packed.len() as u64);
                self.state = State::End;
                return Ok(bytes);
            }
            let packed = Cursor::new(std::mem::take(&mut self.bench.packed));
            self.state = State::Streamed(Box::new(DeflateDecoder::new(packed)));
        }
        match &mut self.state {
            State::Streamed(stream) => {
                let read = stream.read(into)?;
                self.used_bytes.set(stream.total_in());
                Ok(read)
            }
            State::Packed(_) | State::End => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::DeflateEncoder;

    use super::*;

    fn packed(content: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// What comes out, and whether an error ended it.
    fn read(packed: &[u8], says: usize, buffer_bytes: usize) -> (Vec<u8>, bool) {
        let (mut bench, used) = (Bench::default(), Cell::new(0));
        let mut short = Short::new(&mut bench, packed, says as u64, &used);
        let (mut content, mut buffer) = (Vec::new(), vec![0; buffer_bytes]);
        loop {
            match short.read(&mut buffer) {
                Ok(0) => return (content, false),
                Ok(read) => content.extend_from_slice(&buffer[..read]),
                Err(_) => return (content, true),
            }
        }
    }

    #[test]
    fn what_comes_out_is_the_same_whatever_the_header_says() {
        let content = b"a content that has a good many words in it, some of them twice ".repeat(900);
        let whole = packed(&content);
        for says in [0, 1, content.len() - 1, content.len(), content.len() + 1, CONTENT_BYTES_MAX as usize] {
            for buffer_bytes in [1000, content.len(), 512 * 1024] {
                assert_eq!(read(&whole, says, buffer_bytes), (content.clone(), false), "{says} {buffer_bytes}");
            }
        }
        assert_eq!(read(&packed(b""), 0, 10), (Vec::new(), false));
        assert_eq!(read(&[&whole[..], b"more"].concat(), content.len(), 512 * 1024), (content, false));
    }

    #[test]
    fn what_comes_before_a_fault_comes_out() {
        // Not compressible, so that each piece of what is packed stands for a piece of the content.
        let mut state = 1u32;
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & 0x3f
        })
        .take(200_000)
        .collect();
        let whole = packed(&content);
        let cut = whole.get(..whole.len() / 2).unwrap();
        for says in [1000, content.len(), CONTENT_BYTES_MAX as usize] {
            let (came, _) = read(cut, says, 512 * 1024);
            assert!(content.starts_with(&came) && came.len() > content.len() / 3, "{} of {says}", came.len());
            let mut streamed = Vec::new();
            let ends_with_error = DeflateDecoder::new(cut).read_to_end(&mut streamed).is_err();
            assert_eq!(read(cut, says, 512 * 1024), (streamed, ends_with_error), "as a stream of it");
        }
    }

    #[test]
    fn what_has_a_header_behind_its_end_tells_where_that_is() {
        let whole = packed(b"a content of many words, of many words");
        for (behind, told) in [(&b"PK\x03\x04"[..], 0), (b"behind", 6), (b"behind PK\x03", 0), (b"P", 0), (b"", 0)] {
            let file = [&whole[..], behind].concat();
            let (mut bench, used, mut content) = (Bench::default(), Cell::new(0), vec![0; 1000]);
            let mut short = Short::new(&mut bench, &file[..], 38, &used);
            while short.read(&mut content).unwrap() > 0 {}
            assert_eq!(used.get(), (whole.len() + told) as u64, "{behind:?}");
        }
    }
}
