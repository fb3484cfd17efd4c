//! Numbers and texts at places in a slice, for readers of binary formats, and the errors of what is not as it should be.
//! Nothing here panics: what lies outside is none.

pub(crate) use memchr::memmem::find;
use std::io::{self, Read};

/// The `N` bytes at `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The little-endian number of 16 bits at `at`.
pub(crate) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// The little-endian number of 32 bits at `at`.
pub(crate) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// The little-endian number of 64 bits at `at`.
pub(crate) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// The big-endian number of 16 bits at `at`.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// The big-endian number of 32 bits at `at`.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// The big-endian number of 64 bits at `at`.
pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// Text in UTF-16, little-endian, up to its first zero or the end; what is malformed is replaced.
pub(crate) fn utf16_le(bytes: &[u8]) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// The bytes before the first zero, or all.
pub(crate) fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Reads what is left, but at most so many bytes.
pub(crate) fn read_at_most(input: &mut (impl Read + ?Sized), most_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(most_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// An error of malformed data.
pub(crate) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// An error of something that no reader here knows.
pub(crate) fn unsupported(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, reason.into())
}

/// Data that ends too early, with what ends.
pub(crate) fn cut_off(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_is_none() {
        assert_eq!((le16(&[1, 2], 0), le16(&[1, 2], 1), le16(&[], usize::MAX)), (Some(0x201), None, None));
        assert_eq!((le32(&[1, 0, 0, 0], 0), le64(&[1, 0, 0, 0], 0)), (Some(1), None));
        assert_eq!(utf16_le(b"a\0b\0\0\0c\0"), "ab");
        assert_eq!(find(b"abc", b"bc"), Some(1));
    }
}
