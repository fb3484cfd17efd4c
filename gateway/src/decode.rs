//! Bodies that come encoded: gzip or base64, decoded piece by piece while they come.
//!
//! **Invariants.** A step hands on at most `STEP_BYTES` and holds no more besides the piece it decodes, whatever that says, so
//! that a few bytes that decode to gigabytes cost no memory. Decoding runs on threads of its own. An encoding that ends
//! early, or is damaged, is an error: half a file is never taken for a whole one.

use std::io::{self, BufRead, ErrorKind, Read};

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;

/// Most decoded bytes that one step hands on: as many as the upload gathers before it hands them on itself.
const STEP_BYTES: usize = 256 * 1024;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 4648, with or without line ends.
    Base64,
}

impl Encoding {
    /// The encoding of this name, as the `content-encoding` header has it.
    pub fn named(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "base64" => Some(Self::Base64),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Base64 => "base64",
        }
    }
}

/// A body that is not what its encoding says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the body is not valid {encoding}: {reason}")]
pub struct DecodeError {
    encoding: &'static str,
    reason: String,
}

/// Decodes one body.
pub(crate) struct Decoder {
    encoding: Encoding,
    inner: Inner,
}

enum Inner {
    Gzip(Box<MultiGzDecoder<Piece>>),
    Base64(Base64),
    /// After an error, or while a step runs.
    Gone,
}

/// What has come of the body and is not decoded yet.
#[derive(Default)]
struct Piece {
    bytes: Bytes,
    /// Nothing follows it.
    last: bool,
}

impl BufRead for Piece {
    /// Where more is to come, the decoder is told to wait for it: it keeps what it knows and goes on from there.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.bytes.is_empty() && !self.last { Err(ErrorKind::WouldBlock.into()) } else { Ok(&self.bytes) }
    }

    fn consume(&mut self, amount: usize) {
        self.bytes.advance(amount.min(self.bytes.len()));
    }
}

impl Read for Piece {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(out)?;
        self.consume(read);
        Ok(read)
    }
}

impl Decoder {
    pub(crate) fn new(encoding: Encoding) -> Self {
        let inner = match encoding {
            Encoding::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(Piece::default()))),
            Encoding::Base64 => Inner::Base64(Base64::default()),
        };
        Self { encoding, inner }
    }

    /// Decodes the beginning of `piece`, as much as one step may, and leaves the rest in it.
    pub(crate) async fn step(&mut self, piece: &mut Bytes) -> Result<Bytes, DecodeError> {
        let mut rest = std::mem::take(piece);
        let decoded = self.on_a_thread(move |inner| match inner {
            Inner::Gzip(decoder) => {
                decoder.get_mut().bytes = rest;
                let out = read_step(decoder)?;
                Ok((out, std::mem::take(&mut decoder.get_mut().bytes)))
            }
            Inner::Base64(decoder) => {
                let mut out = Vec::new();
                let input = rest.split_to(rest.len().min(STEP_BYTES));
                decoder.push(&input, &mut out).map_err(str::to_owned)?;
                Ok((out, rest))
            }
            Inner::Gone => Err("it failed before".to_owned()),
        });
        let (out, rest) = decoded.await?;
        *piece = rest;
        Ok(Bytes::from(out))
    }

    /// What is left once the body has ended, a step at a time; nothing when it is whole.
    pub(crate) async fn finish(&mut self) -> Result<Bytes, DecodeError> {
        let decoded = self.on_a_thread(|inner| match inner {
            Inner::Gzip(decoder) => {
                decoder.get_mut().last = true;
                read_step(decoder)
            }
            Inner::Base64(decoder) => decoder.finish().map(|()| Vec::new()).map_err(str::to_owned),
            Inner::Gone => Err("it failed before".to_owned()),
        });
        decoded.await.map(Bytes::from)
    }

    async fn on_a_thread<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Inner) -> Result<T, String> + Send + 'static,
    ) -> Result<T, DecodeError> {
        let mut inner = std::mem::replace(&mut self.inner, Inner::Gone);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&mut inner);
            (inner, done)
        });
        let encoding = self.encoding.as_str();
        let (inner, done) =
            done.await.map_err(|_| DecodeError { encoding, reason: "its decoder was stopped".to_owned() })?;
        if done.is_ok() {
            self.inner = inner;
        }
        done.map_err(|reason| DecodeError { encoding, reason })
    }
}

/// What the decoder makes of what it has, up to a step's worth.
fn read_step(decoder: &mut impl Read) -> Result<Vec<u8>, String> {
    let mut out = vec![0; STEP_BYTES];
    let mut length = 0;
    while let Some(room) = out.get_mut(length..).filter(|room| !room.is_empty()) {
        match decoder.read(room) {
            Ok(0) => break,
            Ok(read) => length = length.saturating_add(read),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    out.truncate(length);
    // What was made of a few bytes must not hold a whole step's memory.
    out.shrink_to_fit();
    Ok(out)
}

/// Base64 of the standard alphabet. White space between digits is passed over, padding is needed.
#[derive(Debug, Default)]
pub(crate) struct Base64 {
    bits: u32,
    digits: u32,
    padding: u32,
}

impl Base64 {
    pub(crate) fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        for byte in input {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b' ' | b'\t' | b'\r' | b'\n' => continue,
                b'=' => {
                    self.padding += 1;
                    if self.digits + self.padding > 4 || self.digits < 2 {
                        return Err("padding where none belongs");
                    }
                    continue;
                }
                _ => return Err("a character that is no digit of base64"),
            };
            if self.padding > 0 {
                return Err("something follows the padding");
            }
            self.bits = (self.bits << 6) | u32::from(digit);
            self.digits += 1;
            if self.digits == 4 {
                let [_, bytes @ ..] = self.bits.to_be_bytes();
                out.extend_from_slice(&bytes);
                (self.bits, self.digits) = (0, 0);
            }
            // The last group's bytes are known with its second and third digit; they go out when it ends.
        }
        if self.padding > 0 && self.digits + self.padding == 4 {
            self.flush(out);
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        match self.digits {
            2 => out.push((self.bits >> 4) as u8),
            3 => out.extend_from_slice(&((self.bits >> 2) as u16).to_be_bytes()),
            _ => {}
        }
        (self.bits, self.digits) = (0, 0);
        // Whatever follows is refused.
        self.padding = 4;
    }

    pub(crate) fn finish(&mut self) -> Result<(), &'static str> {
        match (self.digits, self.padding) {
            (0, _) => Ok(()),
            _ => Err("it ends in the middle of a group"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    async fn decode(encoding: Encoding, body: &[u8], piece_bytes: usize) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = Decoder::new(encoding);
        let mut out = Vec::new();
        for piece in body.chunks(piece_bytes) {
            let mut piece = Bytes::copy_from_slice(piece);
            while !piece.is_empty() {
                let decoded = decoder.step(&mut piece).await?;
                assert!(decoded.len() <= STEP_BYTES, "a step is bounded: {}", decoded.len());
                out.extend_from_slice(&decoded);
            }
        }
        loop {
            let last = decoder.finish().await?;
            if last.is_empty() {
                return Ok(out);
            }
            assert!(last.len() <= STEP_BYTES);
            out.extend_from_slice(&last);
        }
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn gzip_is_decoded_in_bounded_steps() {
        let zeros = vec![0; 50 << 20];
        for (content, piece) in [(&b"hello"[..], 1), (b"", 3), (&zeros, 256 * 1024)] {
            assert!(decode(Encoding::Gzip, &gzip(content), piece).await.unwrap() == content);
        }
        let two = [gzip(b"one"), gzip(b""), gzip(b"two")].concat();
        for piece in 1..two.len() {
            let decoded = decode(Encoding::Gzip, &two, piece).await.unwrap();
            assert_eq!(decoded, b"onetwo", "members follow one another, by {piece}");
        }
    }

    #[tokio::test]
    async fn what_is_cut_short_or_damaged_is_refused() {
        let whole = gzip(&b"some content, long enough to be cut anywhere".repeat(10));
        for cut in [1, 5, 11, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
            assert!(decode(Encoding::Gzip, &whole[..cut], 16).await.is_err(), "cut at {cut}");
        }
        let mut wrong = whole.clone();
        let checksum = wrong.len() - 5;
        wrong[checksum] ^= 1;
        assert!(decode(Encoding::Gzip, &wrong, 16).await.is_err(), "its checksum counts");
        assert!(decode(Encoding::Gzip, &[whole, b"garbage".to_vec()].concat(), 16).await.is_err());
        assert!(decode(Encoding::Gzip, b"not gzip at all", 16).await.is_err());
    }

    #[tokio::test]
    async fn base64_is_decoded_with_and_without_lines_and_padding() {
        for (text, content) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9v\r\nYmFy\n", b"foobar"),
            (" Z g = = \n", b"f"),
            ("//79+w==", &[0xff, 0xfe, 0xfd, 0xfb]),
        ] {
            for piece in 1..5 {
                assert_eq!(
                    decode(Encoding::Base64, text.as_bytes(), piece).await.unwrap(),
                    content,
                    "{text} by {piece}"
                );
            }
        }
        for bad in ["Z", "Zg", "Zg=", "Zg===", "Zg==Zg==", "=", "Z===", "Zm9v=", "Zm-v", "Zm9v!"] {
            for piece in 1..5 {
                assert!(decode(Encoding::Base64, bad.as_bytes(), piece).await.is_err(), "{bad} by {piece}");
            }
        }
    }
}
